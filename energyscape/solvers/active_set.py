"""The lasso on supports: where signs are right, a linear system gives the exact code.

    G_SS d_S = q_S - λ sign(h_S),    q = c - Gh

is the way from h to the best code with its support S and signs. Where signs change on the way, the
energy is piecewise quadratic along it, and the step ends at its minimum, so that it never rises; at
a kink a coordinate becomes 0. Coordinates join the support by steps of `fista` between. The systems
of a batch are solved at once. Where the dictionary is badly conditioned, so that first-order
methods crawl, and where codes are wanted to the last digits, that is what ends.

References
----------
Lee, H., Battle, A., Raina, R., Ng, A. (2007). Efficient sparse coding algorithms. Section 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.solvers.proximal import Codes, distance, fista
from energyscape.solvers.quadratic import Gram, Rows

_SPAN = 10  # iterations of FISTA between systems
_STEPS = 3  # systems in a row
_NUMBERS = 1 << 22  # of all systems that are solved at once


def active_set(
    gram: Gram,
    rows: Rows,
    penalty: Any,
    *,
    start: Array = None,
    positive: bool = False,
    tol: float = 1e-4,
    max_iter: int = 1000,
) -> Codes:
    """FISTA and, every so often, the exact code on each row's support; for `L1`.

    Parameters and result as for `fista`, whose iterations are counted.
    """
    xp, done = namespace(rows.c), 0
    settings: dict[str, Any] = {"positive": positive, "tol": tol}
    found = fista(gram, rows, penalty, start=start, max_iter=0, **settings)
    while True:
        left = xp.flatnonzero(found.gap > tol)
        if not len(left) or done >= max_iter:
            return found
        span = min(_SPAN, max_iter - done)
        part = rows[left]
        codes = fista(gram, part, penalty, start=found.h[left], max_iter=span, **settings)
        _polish(gram, part, penalty, codes, positive, tol)
        found.h[left], found.gap[left] = codes.h, codes.gap
        found.n_iter[left] += codes.n_iter
        done += span


def _polish(gram: Gram, rows: Rows, penalty: Any, codes: Codes, positive: bool, tol: float) -> None:
    """Steps on the supports of the codes that are not done, in place."""
    xp = namespace(rows.c)
    left = xp.flatnonzero(codes.gap > tol)
    if not len(left):
        return
    # Rows with supports of about one size side by side: the systems of a part are padded.
    left = left[xp.argsort((codes.h[left] != 0).sum(axis=1))]
    at_once = max(1, _NUMBERS // max(1, len(gram.G) ** 2))
    for lo in range(0, len(left), at_once):
        which = left[lo : lo + at_once]
        part, h = rows[which], codes.h[which]
        for _ in range(_STEPS):
            h = support_step(gram, part, penalty.strength, h, positive)
        codes.h[which] = h
        codes.gap[which] = distance(gram, part, penalty, h, positive)


def support_step(gram: Gram, rows: Rows, lam: float, h: Array, positive: bool = False) -> Array:
    """The best code between ``h`` and where the energy is flat on its support and signs, and
    beyond.

    Parameters
    ----------
    gram, rows
    lam : float
        λ.
    h : array, shape (n, m)
    positive : bool, default False

    Returns
    -------
    array, shape (n, m)
        With an energy that is not above that of ``h``.
    """
    xp, real = namespace(h), h.dtype.type
    sizes = (h != 0).sum(axis=1)
    width = int(sizes.max())
    if width == 0:
        return h
    S = xp.argsort(h == 0, axis=1, kind="stable")[:, :width]  # support first
    on = xp.arange(width) < sizes[:, None]
    own = xp.take_along_axis(h, S, axis=1)
    q = xp.take_along_axis(rows.residual(gram, h)[0], S, axis=1)
    right = (q - real(lam) * xp.sign(own)) * on
    way = xp.linalg.solve(_systems(gram, S, on), right[:, :, None])[:, :, 0].astype(h.dtype)
    length, kinks = _line_search(own, way, right, lam, positive)
    new = own + length[:, None].astype(h.dtype) * way
    new = xp.where(kinks == length[:, None], 0, new)
    moved = xp.zeros_like(h)
    moved[xp.arange(len(h))[:, None], S] = xp.where(on, new, 0)
    return moved


def _systems(gram: Gram, S: Array, on: Array) -> Array:
    """G of each row's support, padded by the identity, with a trace of ridge: more atoms than
    features would be singular."""
    xp, G = namespace(S), gram.G
    systems = G[S[:, :, None], S[:, None, :]]
    systems *= on[:, :, None] & on[:, None, :]
    each, ridge = xp.arange(S.shape[1]), 10 * float(np.finfo(G.dtype).eps) * gram.bound
    systems[:, each, each] += xp.where(on, ridge, 1).astype(G.dtype)
    return systems


def _line_search(
    own: Array, way: Array, right: Array, lam: float, positive: bool
) -> tuple[Array, Array]:
    """How far along ``way`` the energy falls, shape (n,), and where each coordinate meets 0.

    Its slope is -a + ta + Σ 2λ|d_j| over the kinks passed, with a = d'(q - λ sign h) = d'G_SS d.
    """
    xp = namespace(own)
    a = xp.maximum((way * right).sum(axis=1, dtype=np.float64), np.finfo(np.float64).tiny)
    back = way * own < 0
    kinks = xp.where(back, -own / xp.where(back, way, 1), np.inf).astype(np.float64)
    order = xp.argsort(kinks, axis=1)
    at = xp.take_along_axis(kinks, order, axis=1)
    jump = 2.0 * lam * xp.abs(xp.take_along_axis(way, order, axis=1))
    jump = xp.where(xp.isfinite(at), np.inf if positive else jump, 0)
    before = xp.zeros((len(own), 1))
    passed = xp.concatenate([before, xp.cumsum(jump, axis=1, dtype=np.float64)], axis=1)
    begin = xp.concatenate([before, at], axis=1)
    end = xp.concatenate([at, before + np.inf], axis=1)
    flat = 1.0 - passed / a[:, None]  # where the slope of each piece would vanish
    piece = (flat <= end).argmax(axis=1)[:, None]
    where = [xp.take_along_axis(v, piece, axis=1)[:, 0] for v in (flat, begin)]
    return xp.maximum(*where), kinks
