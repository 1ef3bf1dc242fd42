"""Coordinate descent in Gram form, on whole batches: one coordinate after the other, or the best.

Given the others, coordinate j of a row is best at prox_{p/G_jj}(h_j + q_j/G_jj), with q = c - Gh
kept up to date by one row of G for each change. For codes of few non-zeros and few iterations; for
the rest `fista`, whose iteration is one product, is quicker (measured: `benchmarks/RESULTS.md`).

References
----------
Li, Y., Osher, S. (2009). Coordinate descent optimization for l1 minimization with application to
compressed sensing; a greedy algorithm. Algorithm 1.
Friedman, J., Hastie, T., Tibshirani, R. (2010). Regularization paths for generalized linear models
via coordinate descent. Section 2.2, covariance updates.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.solvers.proximal import Codes, distance
from energyscape.solvers.quadratic import Gram, Rows

# Coordinates that are gone through before the rest of q follows, by one product.
_BLOCK = 16


def cyclic(
    gram: Gram,
    rows: Rows,
    penalty: Any,
    *,
    start: Array = None,
    positive: bool = False,
    tol: float = 1e-4,
    max_iter: int = 1000,
) -> Codes:
    """Sweeps over all coordinates in their order; the energy never rises.

    Parameters and result as for `fista`; an iteration is a sweep. For penalties that are norms and
    sums over coordinates (`L1`).
    """
    return _until_done(_sweep, gram, rows, penalty, start, positive, tol, max_iter, 1)


def greedy(
    gram: Gram,
    rows: Rows,
    penalty: Any,
    *,
    start: Array = None,
    positive: bool = False,
    tol: float = 1e-4,
    max_iter: int = 1000,
) -> Codes:
    """Each step changes the coordinate of each row that moves furthest (Li and Osher, 2009).

    Parameters and result as for `fista`; an iteration is as many steps as there are coordinates.
    """
    m = len(gram.G)
    parts = max(1, m // _BLOCK)  # steps between checks, as shares of an iteration
    return _until_done(_pursue, gram, rows, penalty, start, positive, tol, max_iter, parts)


def _until_done(
    advance: Any,
    gram: Gram,
    rows: Rows,
    penalty: Any,
    start: Array,
    positive: bool,
    tol: float,
    max_iter: int,
    parts: int,
) -> Codes:
    """Advance all rows that are not done, check them, and let those that are done leave."""
    xp = namespace(rows.c)
    n, m = rows.c.shape
    h = xp.zeros((n, m), rows.c.dtype) if start is None else start.astype(rows.c.dtype)
    found = Codes(h.copy(), xp.full(n, np.inf), xp.zeros(n, np.int64))
    left, index, done = rows, xp.arange(n), 0
    while True:
        gap = distance(gram, left, penalty, h, positive)
        leave = gap <= tol if done < max_iter * parts else xp.ones(len(gap), bool)
        if bool(leave.any()):
            which = index[leave]
            found.h[which], found.gap[which] = h[leave], gap[leave]
            found.n_iter[which] = -(-done // parts)
            if bool(leave.all()):
                return found
            h, left, index = h[~leave], left[~leave], index[~leave]
        # q anew at every check, so that the errors of its updates do not add up.
        h = advance(gram, h, left.residual(gram, h)[0], penalty, positive, m // parts)
        done += 1


def _sweep(gram: Gram, h: Array, q: Array, penalty: Any, positive: bool, steps: int) -> Array:
    """All coordinates once, ``_BLOCK`` at a time: within a block q is corrected for its own changes
    alone, and one product corrects the rest."""
    xp, G = namespace(h), gram.G
    # Coordinates down: a coordinate of all rows is contiguous.
    ht, qt = xp.ascontiguousarray(h.T), xp.ascontiguousarray(q.T)
    diagonal = [float(g) for g in _diagonal(G)]
    for lo in range(0, len(G), _BLOCK):
        block = slice(lo, min(lo + _BLOCK, len(G)))
        own = G[block, block]
        before = ht[block].copy()
        for j, d in enumerate(diagonal[block]):
            if d == 0.0:
                ht[lo + j] = 0
                continue
            v = qt[lo + j] / d
            v += ht[lo + j]
            if positive:
                xp.maximum(v, 0, out=v)
            v = penalty.prox(v, 1.0 / d, ht[lo + j])
            change = v - ht[lo + j]
            ht[lo + j] = v
            qt[block] -= own[:, j : j + 1] * change
        changes = ht[block] - before
        if block.stop < len(G):
            qt[block.stop :] -= G[block.stop :, block] @ changes
        if lo:
            qt[:lo] -= G[:lo, block] @ changes
    return xp.ascontiguousarray(ht.T)


def _pursue(gram: Gram, h: Array, q: Array, penalty: Any, positive: bool, steps: int) -> Array:
    """``steps`` times the best coordinate of each row."""
    xp, G = namespace(h), gram.G
    diagonal = _diagonal(G)
    flat = diagonal == 0
    inverse = (xp.where(flat, 0, 1) / xp.where(flat, 1, diagonal)).astype(h.dtype)
    size = xp.where(flat, 0, xp.sqrt(diagonal)).astype(h.dtype)
    each = xp.arange(len(h))
    for _ in range(max(1, steps)):
        v = q * inverse
        v += h
        if positive:
            xp.maximum(v, 0, out=v)
        v = penalty.prox(v, inverse, h)
        far = v - h
        far *= size  # the change of |Dh|, whatever the atoms' norms
        best = xp.abs(far).argmax(axis=1)
        new = v[each, best]  # not h + change, which would leave rounding where a zero belongs
        q -= (new - h[each, best])[:, None] * G[best]
        h[each, best] = new
    return h


def _diagonal(G: Array) -> Array:
    return G.ravel()[:: len(G) + 1]
