"""Proximal gradient descent on whole batches: ISTA, and FISTA with a restart for each row.

    y = h + β (h - h_before),    h = prox_{p/L}(y + (c - Gy)/L)

one product with a matrix and a few passes over the codes an iteration. Momentum is a row's own: it
starts anew where it points uphill. Rows leave the batch as soon as they are done: the slowest of a
thousand natural patches takes four times the iterations of the average one.

References
----------
Beck, A., Teboulle, M. (2009). A fast iterative shrinkage-thresholding algorithm.
O'Donoghue, B., Candès, E. (2015). Adaptive restart for accelerated gradient schemes. Section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from energyscape.backend import Array, namespace, to_host
from energyscape.kernels import momentum_step, rectify
from energyscape.solvers.duality import norm_gap
from energyscape.solvers.quadratic import DirectRows, Gram, Rows

# Iterations between checks, which cost a product each.
_EVERY = 10


@dataclass
class Codes:
    """What a solver came to.

    Attributes
    ----------
    h : array, shape (n, m)
    gap : array, shape (n,), float64
        Duality gap of each row relative to its energy at h = 0; of penalties that are not norms,
        the largest change that a step of 1/L would make, relative to |c|_∞/L.
    n_iter : array, shape (n,), int64
        Iterations that each row took.
    """

    h: Array
    gap: Array
    n_iter: Array


def ista(gram: Gram, rows: Rows, penalty: Any, **settings: Any) -> Codes:
    """Proximal gradient descent without momentum: the energy of no row ever rises.

    Parameters as for `fista`.
    """
    return _descend(gram, rows, penalty, False, **settings)


def fista(gram: Gram, rows: Rows, penalty: Any, **settings: Any) -> Codes:
    """Proximal gradient descent with momentum.

    Parameters
    ----------
    gram : Gram
    rows : Rows
    penalty : penalty of codes
        With ``code_value``, ``prox`` and, if it is a norm, ``dual_norm``.
    start : array, shape (n, m), optional
        Codes to begin at; default 0.
    positive : bool, default False
        Codes >= 0.
    tol : float, default 1e-4
        Gap at which a row is done.
    max_iter : int, default 1000
        Iterations after which it stays as it is.

    Returns
    -------
    Codes
    """
    return _descend(gram, rows, penalty, True, **settings)


def _descend(
    gram: Gram,
    rows: Rows,
    penalty: Any,
    accelerate: bool,
    *,
    start: Array = None,
    positive: bool = False,
    tol: float = 1e-4,
    max_iter: int = 1000,
) -> Codes:
    xp, real = namespace(rows.c), rows.c.dtype.type
    n, m = rows.c.shape
    h = xp.zeros((n, m), rows.c.dtype) if start is None else start.astype(rows.c.dtype)
    found = Codes(h.copy(), xp.full(n, np.inf), xp.zeros(n, np.int64))
    step = _step(gram, penalty)
    # v = y + (c - Gy)/L as one product and one sum.
    S = gram.G * real(-step)
    S.ravel()[:: m + 1] += real(1)
    state = _State(xp.arange(n), h, h.copy(), xp.ones(n, rows.c.dtype), rows.c * real(step))
    left, done = rows, 0
    # Of codes of 0 and of the first step the residual tells all, without another product.
    q, rest = rows.residual(gram, h) if start is not None else (rows.c.copy(), rows.squares)
    ahead = q * real(step)
    ahead += h
    ahead -= state.b
    gap = _distance(gram, rows, penalty, h, q, rest, positive)
    while True:
        # The one wait for a device between checks: by number rows are picked without another.
        leave = to_host(gap <= tol) if done < max_iter else np.ones(len(gap), bool)
        if leave.any():
            out = xp.asarray(np.flatnonzero(leave))
            index = state.index[out]
            found.h[index], found.gap[index] = state.h[out], gap[out]
            found.n_iter[index] = done
            if leave.all():
                return found
            keep = xp.asarray(np.flatnonzero(~leave))
            state, left = state[keep], left[keep]
            ahead = ahead[keep] if done == 0 else None
        for _ in range(min(_EVERY, max_iter - done)):
            v = state.y @ S if ahead is None else ahead
            state.move(v, penalty, step, positive, accelerate)
            ahead = None
        done += min(_EVERY, max_iter - done)
        gap = distance(gram, left, penalty, state.h, positive)


@dataclass
class _State:
    """Rows that are not done: their numbers, codes, where the next step is taken, t of their
    momentum, c/L."""

    index: Array
    h: Array
    y: Array
    t: Array
    b: Array

    def __getitem__(self, keep: Array) -> _State:
        return _State(*(getattr(self, k)[keep] for k in ("index", "h", "y", "t", "b")))

    def move(self, v: Array, penalty: Any, step: float, positive: bool, accelerate: bool) -> None:
        """On from ``v`` + b, a step down the slope from y; ``v`` is used up."""
        y = self.y
        if accelerate and hasattr(penalty, "threshold"):
            theta = penalty.threshold(step)
            self.h = momentum_step(v, self.b, self.h, y, self.t, theta, positive)
            return
        v += self.b
        if positive:
            rectify(v, out=v)
        v = penalty.prox(v, step, y)
        if accelerate:
            self.h = momentum_step(v, self.b, self.h, y, self.t, None)
        else:
            self.h = self.y = v


def distance(
    gram: Gram, rows: Rows | DirectRows, penalty: Any, h: Array, positive: bool = False
) -> Array:
    """How far codes are from the best ones: what `Codes` calls gap, shape (n,), float64."""
    return _distance(gram, rows, penalty, h, *rows.residual(gram, h), positive)


def _distance(
    gram: Gram,
    rows: Rows | DirectRows,
    penalty: Any,
    h: Array,
    q: Array,
    rest: Array,
    positive: bool,
) -> Array:
    """The same from the residual, of which ``q`` is used up."""
    xp, tiny = namespace(h), np.finfo(np.float64).tiny
    if hasattr(penalty, "dual_norm"):
        return norm_gap(penalty, h, q, rest, positive) / xp.maximum(0.5 * rows.squares, tiny)
    step = _step(gram, penalty)
    if hasattr(penalty, "code_grad"):
        # Smooth: what is left of the gradient, which a step by a bound may be far smaller than.
        q -= penalty.code_grad(h)
        change = xp.where((h == 0) & (q < 0), 0, q) if positive else q
        change *= h.dtype.type(step)
    else:
        q *= h.dtype.type(step)
        q += h
        if positive:
            rectify(q, out=q)
        change = penalty.prox(q, step, h)
        change -= h
    largest = step * xp.abs(rows.c).max(axis=1).astype(np.float64)
    return xp.abs(change).max(axis=1) / xp.maximum(largest, tiny)


def _step(gram: Gram, penalty: Any) -> float:
    """1/L: what a penalty that is not convex adds to the curvature is in L."""
    bound = gram.bound + getattr(penalty, "curvature", 0.0)
    return 1.0 / bound if bound > 0 else 1.0
