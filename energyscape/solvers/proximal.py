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

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from energyscape.backend import Array, is_gpu_array, namespace, to_host
from energyscape.kernels import momentum_step, rectify
from energyscape.solvers.duality import norm_gap
from energyscape.solvers.quadratic import DirectRows, Gram, Rows

# Iterations between checks, which cost passes, and a product where it is not the next step's.
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
    moves = _Moves(S, step, penalty, positive, accelerate)
    by_codes = accelerate and hasattr(penalty, "threshold") and not is_gpu_array(h)
    kind: Any = _Momentum if by_codes else _Ahead
    state = kind.begin(h, rows.c, step)
    left, done = rows, 0
    # Of codes of 0 the residual is known without a product.
    q, rest = rows.residual(gram, h) if start is not None else (rows.c.copy(), rows.squares)
    while True:
        # Where a step from h goes, by the check's product: `_Momentum` makes that from y of it.
        ahead = None
        if by_codes or not accelerate or done == 0:
            ahead = q * real(step)
            ahead += state.h
        gap = _distance(gram, left, penalty, state.h, q, rest, positive)
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
            ahead = None if ahead is None else ahead[keep]
        turns = min(_EVERY, max_iter - done)
        state.advance(moves, ahead, done, turns)
        done += turns
        q, rest = left.residual(gram, state.h)


@dataclass(frozen=True)
class _Moves:
    """What the steps of all rows share: I - G/L, 1/L, and what codes pay."""

    S: Array
    step: float
    penalty: Any
    positive: bool
    accelerate: bool


@dataclass
class _State:
    """Rows that are not done: their numbers and codes."""

    index: Array
    h: Array

    def __getitem__(self, keep: Array) -> Any:
        return type(self)(*(v[keep] for v in vars(self).values()))


@dataclass
class _Ahead(_State):
    """With c/L, where the next step is taken, and t of their momentum."""

    b: Array
    y: Array
    t: Array

    @classmethod
    def begin(cls, h: Array, c: Array, step: float) -> _Ahead:
        xp, b = namespace(h), c * c.dtype.type(step)
        return cls(xp.arange(len(h)), h, b, h.copy(), xp.ones(len(h), h.dtype))

    def advance(self, moves: _Moves, ahead: Array, done: int, turns: int) -> None:
        """``turns`` steps; ``ahead`` is yS + c/L where that is known, and is used up."""
        if ahead is not None:
            ahead -= self.b
        for _ in range(turns):
            self._move(moves, self.y @ moves.S if ahead is None else ahead)
            ahead = None

    def _move(self, moves: _Moves, v: Array) -> None:
        y, penalty, step = self.y, moves.penalty, moves.step
        if moves.accelerate and hasattr(penalty, "threshold"):
            theta = penalty.threshold(step)
            self.h = momentum_step(v, self.b, self.h, y, self.t, theta, moves.positive)
            return
        v += self.b
        if moves.positive:
            rectify(v, out=v)
        v = penalty.prox(v, step, y)
        if moves.accelerate:
            self.h = momentum_step(v, self.b, self.h, y, self.t, None)
        else:
            self.h = self.y = v


@dataclass
class _Momentum(_State):
    """The same on a CPU where the penalty is a threshold, of products with moves d = h - h_before:

        yS + c/L = a + β dS,    a = hS + c/L = a_before + dS

    so that a check, which makes a anew, has made the next step's product as well. z is uphill where
    (βd - (z - h))'(z - h) > 0.
    """

    before: Array  # a_before
    moved: Array  # d
    beta: Array
    age: Array  # steps since the momentum began, less one

    @classmethod
    def begin(cls, h: Array, c: Array, step: float) -> _Momentum:
        n, still = len(h), np.zeros_like(h)
        beta, age = np.zeros(n, h.dtype), np.full(n, -1)
        return cls(np.arange(n), h, still, still.copy(), beta, age)

    def advance(self, moves: _Moves, ahead: Array, done: int, turns: int) -> None:
        """``turns`` steps; ``ahead`` is a, and is used up."""
        theta = float(moves.penalty.threshold(moves.step))
        momenta = _momenta(done + turns).astype(self.h.dtype)
        h, moved, spare = self.h, self.moved, np.empty_like(self.h)
        v = np.subtract(ahead, self.before, out=self.before)
        for i in range(turns):
            if i:
                np.matmul(moved, moves.S, out=v)
                ahead += v
            v *= self.beta[:, None]
            v += ahead
            if moves.positive:
                v -= theta
                rectify(v, out=v)
            else:
                v -= v.clip(-theta, theta, out=spare)
            np.subtract(v, h, out=h)
            self.beta *= np.vecdot(moved, h)
            uphill = self.beta > np.vecdot(h, h)
            self.age += 1
            self.age[uphill] = 0
            self.beta = momenta[self.age]
            h, moved, v = v, h, moved
        self.h, self.moved, self.before = h, moved, ahead


def _momenta(count: int) -> np.ndarray:
    """At least ``count`` of FISTA's (t - 1)/t_next, from t = 1, t_next = (1 + √(1 + 4t²))/2 on."""
    return _first_momenta(1 << count.bit_length())


@lru_cache
def _first_momenta(count: int) -> np.ndarray:
    t, found = 1.0, []
    for _ in range(count):
        t, last = 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * t * t)), t
        found.append((last - 1.0) / t)
    return np.array(found)


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
