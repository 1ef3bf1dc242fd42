"""Codes of clips that are products: what is there, times where it is in each frame.

    Σ_t [½|x_t - Dz_t|² + (α/2)|z_t - f_t|² + λ|c|₁ + λ|l_t|₁],   z_t = (P'c) ⊙ l_t,   c, l >= 0

Given c this is a lasso in z with a weight of λ/(P'c) for each code, of which a step of proximal
gradient descent is taken; given z the best c, of λT|c|₁ + λ Σ_t Σ_j z_tj/(P'c)_j, is approached by

    c_k ← c_k √(Σ_j P_kj s_j/(P'c)_j² / T),    s = Σ_t z_t

from a bound of 1/(P'c)_j that touches at c (Jensen), exact in one step where pools do not overlap:
then c_k² is the pool's mean activity. Neither step raises the energy. It is not convex, and codes
of 0 are a place to rest at: what is found is where descent leads from a lasso of equal weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from energyscape.backend import Array, is_gpu_array, namespace
from energyscape.kernels import rectify
from energyscape.solvers.proximal import Codes
from energyscape.solvers.quadratic import Gram
from energyscape.verbs import check_count

__all__ = ["equal_what", "factors_of", "next_what", "product_codes", "simple_codes"]

_EVERY = 10  # iterations between checks, and those of the lasso at the beginning
_NUMBERS = 1 << 18  # of one array of codes at once, on a CPU
_SINGLE = 1e-5  # changes that float32 still tells from rounding


def simple_codes(h: Array, P: Array) -> Array:
    """z of codes ``h`` = (c, l_1, ..., l_T), shape (n, t, m)."""
    k, m = P.shape
    return (h[:, :k] @ P)[:, None] * h[:, k:].reshape(len(h), -1, m)


def factors_of(z: Array, c: Array, P: Array) -> Array:
    """The codes (c, l_1, ..., l_T) whose product is ``z``, given c; shape (n, n_what + t·m)."""
    where = z / _weights(c, P)[:, None]
    return namespace(z).concatenate([c, where.reshape(len(z), -1)], axis=1)


def next_what(z: Array, c: Array, P: Array, w: Array = None) -> Array:
    """A c of no more energy given ``z``, shape (n, n_what); the best where pools do not overlap.
    ``z`` is 0 where P'c is; ``w`` is `_weights` where the caller has them."""
    w = _weights(c, P) if w is None else w
    share = z.sum(axis=1)
    share /= w * w
    found = share @ P.T
    found /= z.shape[1]
    namespace(z).sqrt(found, out=found)
    found *= c
    return found


def equal_what(z: Array, P: Array, lam: float) -> Array:
    """(λ/2)^⅓, the least c but 0 at which a lone code, of z = c², can rest."""
    return namespace(z).full((len(z), len(P)), _least(lam), z.dtype)


def _least(lam: float) -> float:
    return float((lam / 2) ** (1 / 3))


def product_codes(
    D: Array,
    x: Array,
    P: Array,
    lam: float,
    *,
    alpha: float = 0.0,
    prediction: Array = None,
    start: Array = None,
    tol: float = 1e-4,
    max_iter: int = 1000,
) -> Codes:
    """What and where of each clip, where descent rests.

    Parameters
    ----------
    D : array, shape (n_features, m)
        Dictionary, atoms in columns; float32 or float64.
    x : array, shape (n, t, n_features)
        In the dtype and container of ``D``.
    P : array, shape (n_what, m)
        Which pools the atoms are in, >= 0.
    lam : float
        λ > 0.
    alpha : float, default 0
        α >= 0.
    prediction : array, shape (n, t, m), optional
        f; default 0.
    start : array, shape (n, n_what + t·m), optional
        Codes to begin at; default: the prediction, in a lasso of equal weights.
    tol : float, default 1e-4
        Change of a step at which a clip is done: of z, relative to the largest code of a step from
        0; of c, to (λ/2)^⅓.
    max_iter : int >= 1, default 1000
        Iterations after which a clip stays as it is.

    Returns
    -------
    Codes
        ``h`` are c and the l_t, one after the other; ``gap`` is the change of the last step.
    """
    check_count("max_iter", max_iter)
    xp, (n, t), (k, m) = namespace(x), x.shape[:2], P.shape
    found = Codes(xp.zeros((n, k + t * m), x.dtype), xp.zeros(n), xp.zeros(n, np.int64))
    steps, single = _Steps.of(D, P, lam, alpha), x.dtype == np.float32
    finish = single and tol < _SINGLE
    double = _Steps.of(_wide(D), _wide(P), lam, alpha) if finish else steps
    size = max(1, n) if is_gpu_array(x) else max(8, _NUMBERS // (t * m))
    for lo in range(0, n, size):
        rows = slice(lo, lo + size)
        f = None if prediction is None else prediction[rows]
        state = steps.begin(x[rows], f, None if start is None else start[rows])
        _descend(steps, state, max(tol, _SINGLE) if single else tol, max_iter)
        late = xp.flatnonzero(state.gap > tol) if finish else xp.arange(0)
        found.h[rows] = factors_of(state.z, state.c, P)
        found.gap[rows], found.n_iter[rows] = state.gap, state.n_iter
        if len(late):
            late += lo
            g = None if f is None else _wide(prediction[late])
            state = double.begin(_wide(x[late]), g, _wide(found.h[late]))
            _descend(double, state, tol, max_iter)
            found.h[late] = factors_of(state.z, state.c, double.P)
            found.gap[late] = state.gap
            found.n_iter[late] += state.n_iter
    return found


def _weights(c: Array, P: Array) -> Array:
    """P'c, plus the least number whose square is not 0: c of pools that overlap may fall from step
    to step by a constant factor. Divided by that, λ is more than any code pays."""
    w = c @ P
    w += float(np.finfo(w.dtype).tiny) ** 0.5
    return w


def _wide(values: Array) -> Array:
    """The same in float64."""
    return values.astype(np.float64)


@dataclass
class _State:
    """Clips at work: z, c, (D'x + αf)/L, the change of the last step, and iterations."""

    z: Array
    c: Array
    b: Array
    gap: Array
    n_iter: Array

    def __getitem__(self, rows: Any) -> _State:
        return _State(*(v[rows] for v in vars(self).values()))

    def put(self, rows: Array, other: _State) -> None:
        """What steps change; b stays."""
        for name in ("z", "c", "gap", "n_iter"):
            getattr(self, name)[rows] = getattr(other, name)


@dataclass(frozen=True)
class _Steps:
    """What all clips share: I - G/L, 1/L, pools and λ."""

    D: Array
    P: Array
    lam: float
    alpha: float
    S: Array
    step: float

    @classmethod
    def of(cls, D: Array, P: Array, lam: float, alpha: float) -> _Steps:
        gram = Gram.of(D, alpha)
        step = 1.0 / gram.bound if gram.bound > 0 else 1.0
        S = gram.G * gram.G.dtype.type(-step)
        S.ravel()[:: len(S) + 1] += S.dtype.type(1)
        return cls(D, P, lam, alpha, S, step)

    def begin(self, x: Array, f: Array, h: Array) -> _State:
        xp, (n, t), m = namespace(x), x.shape[:2], len(self.S)
        b = (x.reshape(n * t, -1) @ self.D).reshape(n, t, m)
        if self.alpha and f is not None:
            b += b.dtype.type(self.alpha) * f
        b *= b.dtype.type(self.step)
        state = _State(b, b, b, xp.full(n, np.inf), xp.zeros(n, np.int64))
        if h is not None:
            state.z, state.c = simple_codes(h, self.P), h[:, : len(self.P)].copy()
            return state
        state.z = xp.zeros_like(b) if f is None else f
        state.c = equal_what(state.z, self.P, self.lam)
        cost, spare = self.cost(_weights(state.c, self.P)), xp.empty_like(b)
        for i in range(_EVERY):
            z, state.z = state.z, self.move(state, cost, spare)
            spare = xp.empty_like(b) if i == 0 else z  # the first is the caller's
        return state

    def cost(self, w: Array) -> Array:
        """λ/(LP'c), what a step takes off each code; may be in the memory of ``w``."""
        return w.dtype.type(self.lam * self.step) / w

    def move(self, state: _State, cost: Array, out: Array) -> Array:
        """z after a step of the lasso whose weights c says, in ``out``."""
        flat = (-1, len(self.S))
        namespace(out).matmul(state.z.reshape(flat), self.S, out=out.reshape(flat))
        out += state.b
        out -= cost[:, None]
        return rectify(out, out=out)


def _descend(steps: _Steps, state: _State, tol: float, max_iter: int) -> None:
    """Steps of z and of c in turn until all clips are done, in place."""
    xp, usual = namespace(state.z), _least(steps.lam)
    scale = xp.abs(state.b).max(axis=(1, 2)).astype(np.float64)
    scale = xp.where(scale > 0, scale, 1)
    index, now, done = xp.arange(len(state.z)), state[:], 0
    now.z, spare = now.z.copy(), xp.empty_like(now.z)  # which take turns
    while len(index):
        turns = min(_EVERY, max_iter - done)
        for _ in range(turns):
            z, c = now.z, now.c
            w = _weights(c, steps.P)
            now.z, spare = steps.move(now, steps.cost(w), spare), z
            now.c = next_what(now.z, c, steps.P, w)
        done += turns
        moved = xp.abs(xp.subtract(now.z, z, out=z)).max(axis=(1, 2)) / scale
        now.gap = xp.maximum(moved, xp.abs(now.c - c).max(axis=1) / usual).astype(np.float64)
        now.n_iter = now.n_iter + turns
        state.put(index, now)
        left = xp.flatnonzero(now.gap > tol) if done < max_iter else index[:0]
        if len(left) < len(index):
            index, now, scale, spare = index[left], now[left], scale[left], spare[: len(left)]
