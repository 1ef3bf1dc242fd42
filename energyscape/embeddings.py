"""Losses of two embeddings u and v of the same thing, or of things that are alike or not.

    Siamese       (2/Q) D² if alike, else 2Q e^(-2.77 D/Q),   D = |u - v|₁
    DrLIM         ½D² if alike, else ½ max(0, m - D)²,        D = |u - v|₂
    InfoNCE       ⟨-log softmax_j(cos(u_i, v_j)/τ)_i⟩
    Barlow Twins  Σ_k (1 - C_kk)² + λ Σ_k≠l C_kl²             C: correlations of u_k and v_l
    VICReg        25 ⟨(u_k - v_k)²⟩ + 25 ⟨max(0, 1 - std)⟩ + Σ_k≠l cov_kl² / K

The first two are told which pairs are alike, and pull the others apart; the third pulls apart what
is in different rows of a batch. The last two pull nothing apart: they bound the volume of low
energy, as each dimension must vary, and not as another does. All are computed in float64.

References
----------
Chopra, S., Hadsell, R., LeCun, Y. (2005). Learning a similarity metric discriminatively, with
application to face verification.
Hadsell, R., Chopra, S., LeCun, Y. (2006). Dimensionality reduction by learning an invariant
mapping.
van den Oord, A., Li, Y., Vinyals, O. (2018). Representation learning with contrastive predictive
coding. arXiv:1807.03748.
Zbontar, J., Jing, L., Misra, I., LeCun, Y., Deny, S. (2021). Barlow Twins: self-supervised learning
via redundancy reduction.
Bardes, A., Ponce, J., LeCun, Y. (2022). VICReg: variance-invariance-covariance regularization for
self-supervised learning.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator

from energyscape.backend import Array, namespace
from energyscape.registry import register

__all__ = ["DISTANCES", "BarlowTwins", "DrLIM", "InfoNCE", "Siamese", "VICReg"]

# Euclidean distances below this have no direction: the slope of theirs falls to 0.
_LEAST = 1e-12
_DECAY = 2.77  # of the siamese loss: D = Q costs 2Q/16
_SPREAD = 1e-4  # added to VICReg's variances, whose root would have no slope at 0


# ---------------------------------------------------------------- distances


def manhattan(u: Array, v: Array) -> tuple[Array, Array, Array]:
    """Σ_k |u_k - v_k| of each row, (n,), and its derivatives in u and in v, (n, k), float64."""
    d = u.astype(np.float64) - v
    slope = namespace(d).sign(d)
    return abs(d).sum(axis=1), slope, -slope


def euclidean(u: Array, v: Array) -> tuple[Array, Array, Array]:
    """|u - v| of each row, and its derivatives, which are 0 where u = v."""
    xp, d = namespace(u), u.astype(np.float64) - v
    D = xp.sqrt((d * d).sum(axis=1))
    slope = d / xp.maximum(D, _LEAST)[:, None]
    return D, slope, -slope


def cosine(u: Array, v: Array) -> tuple[Array, Array, Array]:
    """1 - cos(u, v) of each row, and its derivatives; a row of zeros is at 1 from all."""
    (a, per_a), (b, per_b) = _directions(u), _directions(v)
    c = (a * b).sum(axis=1, keepdims=True)
    return 1 - c[:, 0], (a * c - b) * per_a, (b * c - a) * per_b


DISTANCES = {"manhattan": manhattan, "euclidean": euclidean, "cosine": cosine}


def _directions(u: Array) -> tuple[Array, Array]:
    """Rows of length 1, or 0 where they are 0, and what their lengths were divided by: (n, 1)."""
    xp, u = namespace(u), u.astype(np.float64)
    size = xp.sqrt((u * u).sum(axis=1, keepdims=True))
    per = xp.where(size > 0, 1 / xp.where(size > 0, size, 1.0), 0.0)
    return u * per, per


# ---------------------------------------------------------------- losses


class Loss(BaseEstimator):
    """What all share: ``loss(u, v)`` checks, `evaluate` computes."""

    # Which of DISTANCES it speaks of, whether it is told which pairs are alike, and how many rows
    # it compares with each other at least.
    metric: ClassVar[str] = "euclidean"
    labelled: ClassVar[bool] = False
    least_rows: ClassVar[int] = 1

    def __call__(self, u: Any, v: Any, similar: Any = None) -> tuple[Any, Any, Any]:
        """The loss of a batch, and its derivatives.

        Parameters
        ----------
        u, v : arrays, shape (n, k)
            Embeddings of the two sides, row by row.
        similar : array, shape (n,), optional
            1 or True for pairs that are alike, 0 or False for others, where the loss asks for it.

        Returns
        -------
        value : array, shape (), float64
        du, dv : arrays, shape (n, k), dtype of u and v

        Raises
        ------
        ValueError
            For shapes, labels or settings that cannot be, NaN and infinity.
        """
        self.validate()
        xp, name = namespace(u), type(self).__name__
        if u.ndim != 2 or u.shape != v.shape or u.shape[0] < self.least_rows or u.shape[1] < 1:
            raise ValueError(
                f"{name} takes embeddings u and v of one shape (n, k), n >= {self.least_rows}; got "
                f"{tuple(u.shape)} and {tuple(v.shape)}"
            )
        if u.dtype.kind != "f" or v.dtype.kind != "f":
            raise ValueError(f"{name} takes floating-point embeddings, got {u.dtype} and {v.dtype}")
        if not bool((xp.isfinite(u) & xp.isfinite(v)).all()):
            raise ValueError(f"embeddings given to {name} contain NaN or infinity")
        if self.labelled:
            similar = self._told(similar, xp, len(u))
        return self.evaluate(u, v, similar)

    def _told(self, similar: Any, xp: Any, n: int) -> Array:
        if similar is None:
            raise ValueError(f"{type(self).__name__} needs to be told which pairs are similar")
        similar = xp.asarray(similar)
        if similar.shape != (n,) or not bool(((similar == 0) | (similar == 1)).all()):
            raise ValueError(
                f"similar must hold 0 or 1 for each of {n} pairs, got shape {tuple(similar.shape)}"
            )
        return similar

    def validate(self) -> None:
        """Raise ValueError for settings that cannot be."""

    def evaluate(self, u: Array, v: Array, similar: Array = None) -> tuple[Array, Array, Array]:
        """The same for what is known to be right."""
        raise NotImplementedError

    def _positive(self, **settings: float) -> None:
        for key, value in settings.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{type(self).__name__}.{key} must be > 0, got {value!r}")

    def _not_negative(self, **settings: float) -> None:
        for key, value in settings.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{type(self).__name__}.{key} must be >= 0, got {value!r}")


class DistanceLoss(Loss):
    """A loss of the distance of each pair; subclasses write `of`."""

    labelled = True

    def of(self, D: Array, similar: Array) -> tuple[Array, Array]:
        """Loss and slope at distances ``D``; ``similar`` is 1 for pairs that are alike, else 0."""
        raise NotImplementedError

    def evaluate(self, u: Array, v: Array, similar: Array = None) -> tuple[Array, Array, Array]:
        D, du, dv = DISTANCES[self.metric](u, v)
        value, slope = self.of(D, similar.astype(np.float64))
        slope = (slope / len(u))[:, None]
        return value.mean(), (slope * du).astype(u.dtype), (slope * dv).astype(v.dtype)


@register
class Siamese(DistanceLoss):
    """(2/Q) D² for pairs that are alike, 2Q e^(-2.77 D/Q) for others; D = |u - v|₁ (Chopra, Hadsell
    and LeCun, 2005, eq. 8).

    Parameters
    ----------
    bound : float > 0, default 1
        Q, how far apart pairs that are not alike are to be about: there they cost a sixteenth of
        what they do at 0. The paper's Q is the largest energy that its embedding can have.
    """

    metric = "manhattan"

    def __init__(self, bound: float = 1.0) -> None:
        self.bound = bound

    def validate(self) -> None:
        self._positive(bound=self.bound)

    def of(self, D: Array, similar: Array) -> tuple[Array, Array]:
        Q, other = self.bound, 1 - similar
        far = namespace(D).exp(-_DECAY / Q * D)
        value = similar * (2 / Q) * D * D + other * 2 * Q * far
        return value, similar * (4 / Q) * D - other * 2 * _DECAY * far


@register
class DrLIM(DistanceLoss):
    """½D² for pairs that are alike, ½ max(0, m - D)² for others; D = |u - v|₂ (Hadsell, Chopra and
    LeCun, 2006, eq. 4).

    Two different things that have the very same embedding are not pulled apart: there is no
    direction to do so.

    Parameters
    ----------
    margin : float > 0, default 1
        m, from which on others are far enough.
    """

    metric = "euclidean"

    def __init__(self, margin: float = 1.0) -> None:
        self.margin = margin

    def validate(self) -> None:
        self._positive(margin=self.margin)

    def of(self, D: Array, similar: Array) -> tuple[Array, Array]:
        lacking = namespace(D).maximum(self.margin - D, 0.0) * (1 - similar)
        return 0.5 * (similar * D * D + lacking * lacking), similar * D - lacking


@register
class InfoNCE(Loss):
    """⟨-log e^(S_ii) / Σ_j e^(S_ij)⟩, S_ij = cos(u_i, v_j)/τ: which v is of the same thing as u?
    (van den Oord, Li and Vinyals, 2018). log n is what knowing nothing costs.

    Parameters
    ----------
    temperature : float > 0, default 0.1
        τ.
    """

    metric = "cosine"
    least_rows = 2

    def __init__(self, temperature: float = 0.1) -> None:
        self.temperature = temperature

    def validate(self) -> None:
        self._positive(temperature=self.temperature)

    def evaluate(self, u: Array, v: Array, similar: Array = None) -> tuple[Array, Array, Array]:
        xp, n = namespace(u), len(u)
        (a, per_a), (b, per_b) = _directions(u), _directions(v)
        S = a @ b.T / self.temperature
        most = S.max(axis=1, keepdims=True)
        share = xp.exp(S - most)
        total = share.sum(axis=1, keepdims=True)
        value = (xp.log(total[:, 0]) + most[:, 0] - xp.diagonal(S)).mean()
        G = (share / total - xp.eye(n)) / (n * self.temperature)
        da, db = G @ b, G.T @ a
        du = (da - a * (a * da).sum(axis=1, keepdims=True)) * per_a
        dv = (db - b * (b * db).sum(axis=1, keepdims=True)) * per_b
        return value, du.astype(u.dtype), dv.astype(v.dtype)


@register
class BarlowTwins(Loss):
    """Σ_k (1 - C_kk)² + λ Σ_k≠l C_kl², C_kl the correlation of u_k and v_l over the batch (Zbontar
    et al., 2021): the same in both views, and nothing twice. A dimension that is constant has no
    correlation with anything: it costs 1, and no slope leads out of that.

    Parameters
    ----------
    redundancy : float >= 0, default 0.005
        λ.
    """

    least_rows = 2

    def __init__(self, redundancy: float = 0.005) -> None:
        self.redundancy = redundancy

    def validate(self) -> None:
        self._not_negative(redundancy=self.redundancy)

    def evaluate(self, u: Array, v: Array, similar: Array = None) -> tuple[Array, Array, Array]:
        xp, (n, k) = namespace(u), u.shape
        (a, per_a), (b, per_b) = _standardized(u), _standardized(v)
        C, same = a.T @ b / n, xp.eye(k)
        away = C - same
        weighted = away * (same + self.redundancy * (1 - same))
        G = 2 * weighted / n
        du = _unstandardized(b @ G.T, a) * per_a
        dv = _unstandardized(a @ G, b) * per_b
        return (away * weighted).sum(), du.astype(u.dtype), dv.astype(v.dtype)


@register
class VICReg(Loss):
    """α ⟨(u - v)²⟩ + μ (V(u) + V(v))/2 + ν (c(u) + c(v)) (Bardes, Ponce and LeCun, 2022):

        V(u) = ⟨max(0, 1 - √(var u_k + 10⁻⁴))⟩_k,    c(u) = Σ_k≠l cov(u_k, u_l)² / K

    The first mean is over rows and dimensions, and V is halved, as in the authors' program, whose
    weights are the defaults; the paper's equations leave out both factors.

    Parameters
    ----------
    invariance, variance, covariance : float >= 0, default 25, 25, 1
        α, μ, ν.
    """

    least_rows = 2

    def __init__(
        self, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
    ) -> None:
        self.invariance = invariance
        self.variance = variance
        self.covariance = covariance

    def validate(self) -> None:
        self._not_negative(
            invariance=self.invariance, variance=self.variance, covariance=self.covariance
        )

    def evaluate(self, u: Array, v: Array, similar: Array = None) -> tuple[Array, Array, Array]:
        d = u.astype(np.float64) - v
        apart = 2 * self.invariance / d.size * d
        (at_u, du), (at_v, dv) = self._spread(u), self._spread(v)
        value = self.invariance * (d * d).mean() + at_u + at_v
        return value, (du + apart).astype(u.dtype), (dv - apart).astype(v.dtype)

    def _spread(self, u: Array) -> tuple[Array, Array]:
        """μ V(u)/2 + ν c(u), and its derivative in u."""
        xp, (n, k) = namespace(u), u.shape
        u = u.astype(np.float64)
        u = u - u.mean(axis=0)
        C = u.T @ u / (n - 1)
        deviation = xp.sqrt(xp.diagonal(C) + _SPREAD)
        lacking = xp.maximum(1 - deviation, 0.0)
        C = C * (1 - xp.eye(k))
        value = 0.5 * self.variance * lacking.mean() + self.covariance / k * (C * C).sum()
        pull = 0.5 * self.variance / k * (lacking > 0) / deviation
        return value, (4 * self.covariance / k * (u @ C) - u * pull) / (n - 1)


def _standardized(u: Array) -> tuple[Array, Array]:
    """Columns of mean 0 and variance 1, or of zeros where they are constant but for rounding, and
    what they were divided by, (k,)."""
    xp, rounding = namespace(u), np.finfo(u.dtype).eps
    u = u.astype(np.float64)
    mean = u.mean(axis=0)
    u = u - mean
    size = xp.sqrt((u * u).mean(axis=0))
    varies = size > 4 * rounding * abs(mean)
    per = xp.where(varies, 1 / xp.where(varies, size, 1.0), 0.0)
    return u * per, per


def _unstandardized(da: Array, a: Array) -> Array:
    """Derivative in columns before they were standardised, times what they were divided by."""
    return da - da.mean(axis=0) - a * (a * da).mean(axis=0)
