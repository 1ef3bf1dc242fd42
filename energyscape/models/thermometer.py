"""A Gaussian RBM that begins as the Gaussian of its data: thermometer codes along principal axes.

Along a direction in which the data's variance λ exceeds the visible units' variance s, F must be
y²/2λ although the visible term gives y²/2s; the softplus terms have to supply the curvature
-(1/s - 1/λ) over the range of the data. A row of units with equal weights w and thresholds t_k at
equal spacing δ does: Σ_k (w/s)² σ'(w(y - t_k)/s) ≈ w/(sδ), hence w = δ(1 - s/λ). With δ near 2√s
the units overlap, so that block Gibbs walks along the code instead of freezing in it.

Starting here, rather than from small random weights, removes the collective mode that makes
gradient descent on correlated pixels unstable (all units run after the first principal axis
at once, overshoot, and saturate for good).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.utils.extmath import randomized_svd

_SPACING = 2.0  # δ in units of √s
_REACH = 2.5  # thresholds cover ± this many standard deviations of the data
_SHARE = 0.75  # of the hidden units, at most; the rest start at small random weights
_CONTRAST = 2.0  # axes with λ below this multiple of s are left to learning


@dataclass(frozen=True)
class ThermometerCode:
    """Units along principal axes of standardised data.

    Attributes
    ----------
    weights : array, shape (n_features, k)
        What each of the k units adds to the mean, in standardised units.
    bias : array, shape (k,)
        Hidden bias at the mean of the data.
    variance : float
        s, of every visible unit given the hidden ones.
    """

    weights: np.ndarray
    bias: np.ndarray
    variance: float


def thermometer_code(y: np.ndarray, n_units: int, min_variance: float) -> ThermometerCode:
    """As many leading axes as ``n_units`` hidden units can code.

    The visible variance is the mean of the eigenvalues that are left, as in probabilistic PCA
    (Tipping and Bishop, 1999), but no less than ``min_variance``.

    Parameters
    ----------
    y : array, shape (n, n_features)
        Data of zero mean and unit variance.
    n_units : int
    min_variance : float
    """
    n, d = y.shape
    budget = int(_SHARE * n_units)
    # An axis takes at least 2·reach·√(contrast - 1)/spacing units, which bounds how many there are.
    most = min(budget // int(2 * _REACH * np.sqrt(_CONTRAST - 1) / _SPACING), n - 1, d - 1)
    if most < 1:
        return ThermometerCode(np.zeros((d, 0)), np.zeros(0), 1.0)
    _, singular, axes = randomized_svd(y, most, n_iter=4, random_state=0)
    eigenvalues = singular.astype(np.float64) ** 2 / n
    left = (np.einsum("ij,ij->", y, y, dtype=np.float64) / n - np.cumsum(eigenvalues)).clip(0)
    rows, s = np.zeros(0, int), 1.0
    for q in range(1, most + 1):
        rest = max(left[q - 1] / (d - q), min_variance)
        if eigenvalues[q - 1] < _CONTRAST * rest:
            break
        reach = 2 * _REACH * np.sqrt(eigenvalues[:q] - rest)
        counts = np.ceil(reach / (_SPACING * np.sqrt(rest))).astype(int)
        if counts.sum() > budget:
            break
        rows, s = counts, rest
    weights, bias = [np.zeros((d, 0))], [np.zeros(0)]
    for axis, eigenvalue, count in zip(axes, eigenvalues, rows, strict=False):
        half = _REACH * np.sqrt(eigenvalue)
        spacing = 2 * half / count
        thresholds = -half + (np.arange(count) + 0.5) * spacing
        size = spacing * (1 - s / eigenvalue)
        weights.append(np.outer(axis, np.full(count, size)))
        bias.append(-size * thresholds / s)
    return ThermometerCode(np.concatenate(weights, axis=1), np.concatenate(bias), float(s))
