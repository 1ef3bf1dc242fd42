"""Codes of any number of rows: which solver, in which blocks, and in which precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from energyscape.backend import Array, is_gpu_array, namespace
from energyscape.solvers.active_set import active_set
from energyscape.solvers.coordinate_descent import cyclic, greedy
from energyscape.solvers.proximal import Codes, distance, fista, ista
from energyscape.solvers.quadratic import DirectRows, Gram, Rows

__all__ = ["ALGORITHMS", "sparse_codes"]

# Numbers of one array of codes at once, on a CPU: fewer make small products, more leave the cache.
_NUMBERS = 1 << 18
# Iterations of FISTA after which a badly conditioned dictionary is suspected.
_PATIENCE = 200
# Below this relative gap the rounding of float32 iterations shows: the rest is done in float64.
_SINGLE = 1e-5
# From here on gaps are measured in float32 by D itself, without the rounding of D'D.
_COARSE = 1e-4


def _auto(gram: Gram, rows: Rows, penalty: Any, **settings: Any) -> Codes:
    """FISTA; for rows of a lasso that are not done in time, systems on their supports."""
    most = settings["max_iter"]
    exact = getattr(penalty, "linear_given_signs", False)
    found = fista(gram, rows, penalty, **settings | {"max_iter": min(most, _PATIENCE)})
    left = namespace(rows.c).flatnonzero(found.gap > settings["tol"])
    if most > _PATIENCE and len(left):
        settings |= {"max_iter": most - _PATIENCE, "start": found.h[left]}
        more = (active_set if exact else fista)(gram, rows[left], penalty, **settings)
        found.h[left], found.gap[left] = more.h, more.gap
        found.n_iter[left] += more.n_iter
    return found


ALGORITHMS: dict[str, Callable[..., Codes]] = {
    "auto": _auto,
    "ista": ista,
    "fista": fista,
    "greedy": greedy,
    "cyclic": cyclic,
    "active_set": active_set,
}


def sparse_codes(
    D: Array,
    x: Array,
    penalty: Any,
    *,
    alpha: float = 0.0,
    prediction: Array = None,
    start: Array = None,
    positive: bool = False,
    algorithm: str = "auto",
    tol: float = 1e-4,
    max_iter: int = 1000,
) -> Codes:
    """argmin_h ½|x - Dh|² + p(h) + (α/2)|h - f|² of each row.

    Rows leave the batch as they are done. In float32 gaps are measured from the residual x - Dh
    (below a tolerance of 1e-4 once more, in float64), and rows that rounding keeps from the
    tolerance are finished in float64.

    Parameters
    ----------
    D : array, shape (n_features, m)
        Dictionary, atoms in columns; float32 or float64.
    x : array, shape (n, n_features)
        In the dtype and container of ``D``.
    penalty : penalty of codes
        `L1`, `Student`, ...: p.
    alpha : float, default 0
        α >= 0.
    prediction : array, shape (n, m), optional
        f; default 0.
    start : array, shape (n, m), optional
        Codes to begin at; default 0.
    positive : bool, default False
        Codes >= 0.
    algorithm : {"auto", "ista", "fista", "greedy", "cyclic", "active_set"}
        "auto" is FISTA, followed by systems on the supports where it takes long.
    tol : float, default 1e-4
        Relative gap (`Codes`) at which a row is done.
    max_iter : int, default 1000
        Most iterations.

    Returns
    -------
    Codes
    """
    solve, gram = ALGORITHMS[algorithm], Gram.of(D, alpha)
    single = D.dtype == np.float32
    settings = {"positive": positive, "max_iter": max_iter}
    xp, (n, m) = namespace(x), (len(x), D.shape[1])
    found = Codes(xp.zeros((n, m), x.dtype), xp.zeros(n), xp.zeros(n, np.int64))
    size = max(1, n) if is_gpu_array(x) else max(32, _NUMBERS // m)
    for lo in range(0, n, size):
        part = slice(lo, lo + size)
        f = None if prediction is None else prediction[part]
        h0 = None if start is None else start[part]
        near = max(tol, _SINGLE) if single else tol
        rows = Rows.of(gram, x[part], f, direct=single and tol >= _COARSE)
        codes = solve(gram, rows, penalty, start=h0, tol=near, **settings)
        if single:
            _confirm(gram, x[part], f, penalty, codes, tol, solve, settings)
        found.h[part], found.gap[part], found.n_iter[part] = codes.h, codes.gap, codes.n_iter
    return found


def _confirm(
    gram: Gram,
    x: Array,
    f: Array,
    penalty: Any,
    codes: Codes,
    tol: float,
    solve: Callable[..., Codes],
    settings: dict[str, Any],
) -> None:
    """Measure gaps in float64 where float32 is too coarse, and finish what is not done in it."""
    xp, wide, positive = namespace(x), np.float64, settings["positive"]
    if tol < _COARSE:
        g = None if f is None else f.astype(wide)
        rows = DirectRows.of(gram.D.astype(wide), gram.alpha, x.astype(wide), g)
        codes.gap = distance(gram, rows, penalty, codes.h.astype(wide), positive)
    late = xp.flatnonzero(codes.gap > tol)
    if not len(late):
        return
    double, start = gram.double(), codes.h[late].astype(wide)
    left = Rows.of(double, x[late].astype(wide), None if f is None else f[late].astype(wide))
    # Rounding the result to float32 costs a little of the gap again.
    more = solve(double, left, penalty, start=start, tol=0.5 * tol, **settings)
    codes.h[late] = more.h
    codes.gap[late] = distance(double, left, penalty, codes.h[late].astype(wide), positive)
    codes.n_iter[late] += more.n_iter
