"""How far a code is from the best one: the duality gap and the optimality conditions of the lasso.

    P(h) = ½|x - Dh|² + λ|h|₁        (canonical: what other conventions call λ or α, see `docs`)

With the residual r = x - Dh, q = D'r and s = max(1, |q|_∞/λ), r/s is dual feasible, and

    P(h) - Dual(r/s) = ½|r|² (1 - 1/s)² + Σ_j |h_j| (λ - sign(h_j) q_j/s)

which is a sum of terms that are not negative. The usual difference of two objectives loses in
float32 what it is to measure; here an error in |r|² counts only as far as the code is from optimal,
so that |r|² may come from products with the Gram matrix. Everything below takes q and |r|² from
whoever has them: a matrix, a convolution, or a matrix with further rows (the prediction term
(α/2)|h - f|² is √α I under D and √α f under x).

References
----------
Kim, S.-J., Koh, K., Lustig, M., Boyd, S., Gorinevsky, D. (2007). An interior-point method for
large-scale l1-regularized least squares. Section III.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.penalties import L1

__all__ = ["duality_gap", "kkt_violation", "norm_gap"]


def duality_gap(h: Array, q: Array, squares: Array, lam: float, positive: bool = False) -> Array:
    """P(h) less the dual objective at the residual, scaled until it is feasible: >= P(h) - min P.

    Parameters
    ----------
    h : array, shape (n, ...)
        Codes, >= 0 if ``positive``.
    q : array, shape of ``h``
        D'(x - Dh).
    squares : array, shape (n,)
        |x - Dh|² of each row.
    lam : float
        λ > 0.
    positive : bool, default False
        Whether codes are kept >= 0, so that only large q (not large -q) are infeasible.

    Returns
    -------
    array, shape (n,), float64
        0 at the optimum; in the units of x².
    """
    n = len(h)
    return norm_gap(L1(lam), h.reshape(n, -1), q.reshape(n, -1), squares, positive)


def kkt_violation(h: Array, q: Array, lam: float, positive: bool = False) -> Array:
    """Largest distance of -q to the subdifferential of the penalty: |q_j - λ sign h_j| where h_j is
    not 0, max(|q_j| - λ, 0) (max(q_j - λ, 0) if ``positive``) where it is.

    Parameters
    ----------
    h, q : arrays, shape (n, ...)
    lam : float
    positive : bool, default False

    Returns
    -------
    array, shape (n,), float64
    """
    xp, n = namespace(h), len(h)
    flat, slope = h.reshape(n, -1), q.reshape(n, -1)
    at_zero = xp.maximum((slope if positive else xp.abs(slope)) - lam, 0)
    away = xp.abs(slope - lam * xp.sign(flat))
    return xp.where(flat != 0, away, at_zero).max(axis=1).astype(np.float64)


def norm_gap(penalty: Any, h: Array, q: Array, squares: Array, positive: bool = False) -> Array:
    """The same for any norm p(h) in place of λ|h|₁: ½|r|²(1 - 1/s)² + p(h) - h'q/s.

    Parameters
    ----------
    penalty : penalty of codes
        With ``code_value`` and ``dual_norm``, s before it is kept from falling below 1.
    h, q : arrays, shape (n, m)
    squares : array, shape (n,)
    positive : bool, default False

    Returns
    -------
    array, shape (n,), float64
    """
    xp = namespace(h)
    inverse = 1.0 / xp.maximum(1.0, penalty.dual_norm(xp.maximum(q, 0) if positive else q))
    # What is missing is far smaller than both terms: their products are summed in float64.
    missing = penalty.code_value(h) - (h * q).sum(axis=1, dtype=np.float64) * inverse
    rest = 0.5 * squares.astype(np.float64) * (1.0 - inverse) ** 2
    return rest + xp.maximum(missing, 0.0)
