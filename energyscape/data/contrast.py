"""Contrast normalisation: brightness taken off and contrast made equal, by row or by place.

A patch keeps its pattern whatever the light: (p - mean(p)) / √(var(p) + ε) (Coates, Lee and Ng,
2011). In a whole image mean and deviation are taken in a Gaussian window around every place
(Jarrett et al., 2009).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.base import OneToOneFeatureMixin

from energyscape.backend import Array, namespace
from energyscape.data.stages import Stage
from energyscape.data.transformer import RowTransformer, check_regularization, row_blocks
from energyscape.models.inputs import as_rows
from energyscape.registry import register
from energyscape.verbs import Params

__all__ = ["ContrastNormalize", "LocalContrastNormalize"]


@register
class ContrastNormalize(OneToOneFeatureMixin, RowTransformer):
    """Every row less its mean, divided by its deviation: (p - mean(p)) / √(var(p) + ε).

    There is no way back, since each row's mean and deviation are gone.

    Parameters
    ----------
    regularization : float, default 0.01
        ε as a multiple of the mean variance within the training rows, so that grey values in
        [0, 1] and in [0, 255] give the same. Coates, Lee and Ng (2011) use ε = 10 on values in
        [0, 255], which is about 0.01 of the mean variance of small patches of photographs.

    Attributes
    ----------
    epsilon_ : float
        ε, in squared units of the rows.
    n_features_in_ : int

    References
    ----------
    Coates, A., Lee, H., Ng, A. (2011). An analysis of single-layer networks in unsupervised feature
    learning. AISTATS.
    """

    epsilon_: float

    def __init__(self, regularization: float = 0.01) -> None:
        self.regularization = regularization

    def fit(self, X: Any, y: Any = None) -> Any:
        """Find ε.

        Parameters
        ----------
        X : array, shape (n, n_features)
        y : ignored

        Returns
        -------
        self
        """
        check_regularization(self)
        rows = as_rows(self, X, reset=True)
        total: Any = 0.0
        for block in row_blocks(rows):
            x = block.astype(np.float64)
            x -= x.mean(axis=1)[:, None]
            total = total + (x * x).sum()
        self.epsilon_ = float(self.regularization * total / (len(rows) * rows.event_shape[0]))
        return self

    def _apply(self, x: Array) -> Array:
        xp, d = namespace(x), x.shape[1]
        mean = x.mean(axis=1, dtype=np.float64)
        out = x - mean.astype(x.dtype)[:, None]
        # The mean of a bright row was rounded: a whitening would blow up what that has left.
        out -= out.mean(axis=1, dtype=np.float64).astype(x.dtype)[:, None]
        variance = (out * out).sum(axis=1, dtype=np.float64) / d
        # A row that is constant but for rounding has no contrast, also where ε is 0.
        rounding = (4 * np.finfo(x.dtype).eps * mean) ** 2
        varies = variance > rounding
        deviation = xp.sqrt(xp.where(varies, variance + self.epsilon_, 1.0))
        out *= xp.where(varies, 1 / deviation, 0.0).astype(x.dtype)[:, None]
        return out


@register
class LocalContrastNormalize(Stage):
    """Images with mean and contrast made equal around every place, over all channels together.

    v = x - Σ w x is what differs from the neighbourhood, σ = √(Σ w v²) its deviation there, and
    y = v / max(σ, c), where c keeps flat parts flat. The weights w are a Gaussian window that adds
    up to 1; at the edge it is what lies inside, normalised anew.

    The way back is v = y max(σ, c), with the divisors of the last ``transform``: maps get the
    contrast of their places again, and not the brightness, so that it is linear and 0 leads to 0.
    (Zeiler and Fergus, 2014, leave it out, and so what they show has the contrast of no place.)

    Parameters
    ----------
    sigma : float, default 2.0
        Deviation of the window in pixels; it reaches ⌈2 sigma⌉ pixels (9×9 for 2.0, as Jarrett et
        al.).
    floor : float, optional
        c, in units of x. Default: the mean of σ over the image, by image, which Jarrett et al. have
        between stages; on images of variance 1 they have 1.

    Attributes
    ----------
    image_shape_ : tuple of int
        (h, w) or (h, w, channels) of the images seen in ``fit``.

    References
    ----------
    Jarrett, K., Kavukcuoglu, K., Ranzato, M., LeCun, Y. (2009). What is the best multi-stage
    architecture for object recognition? ICCV.
    """

    def __init__(self, sigma: float = 2.0, floor: float | None = None) -> None:
        self.sigma = sigma
        self.floor = floor

    def check_maps(self, shape: tuple[int, ...]) -> None:
        if not 0 < self.sigma < np.inf:
            raise ValueError(
                f"LocalContrastNormalize.sigma must be > 0 and finite, got {self.sigma!r}"
            )
        if self.floor is not None and not 0 < self.floor < np.inf:
            raise ValueError(
                f"LocalContrastNormalize.floor must be None or > 0, got {self.floor!r}"
            )

    def forward(self, params: Params, x: Array) -> tuple[Array, Any]:
        xp, wide, k = namespace(x), np.float64, x.shape[3]
        windows = self._windows(x)
        size = abs(x).max(axis=(1, 2, 3), keepdims=True).astype(wide)
        y = x - _blur(x.mean(axis=3, dtype=wide), *windows).astype(x.dtype)
        squares = xp.einsum("nhwc,nhwc->nhw", y, y).astype(wide) / k
        deviation = xp.sqrt(_blur(squares, *windows))
        if self.floor is None:
            mean = deviation.mean(axis=(1, 2, 3), keepdims=True)
        else:
            mean = xp.full(size.shape, float(self.floor))
        # What is left of a flat image is rounding, which must not be divided by itself.
        eps = np.finfo(wide).eps ** 0.5, 4 * np.finfo(x.dtype).eps
        c = xp.maximum(mean, max(eps) * size)
        c = xp.where(c > 0, c, 1.0)
        divisor = xp.maximum(deviation, c)
        y /= divisor.astype(x.dtype)
        moves = (c == mean) if self.floor is None else xp.zeros(c.shape, bool)
        return y, (y, deviation, divisor, moves)

    def backward(
        self, params: Params, cache: Any, dy: Array, need_dx: bool = True
    ) -> tuple[Params, Array]:
        y, deviation, divisor, moves = cache
        xp, (down, across) = namespace(dy), self._windows(dy)
        back, k, own = (down.T, across.T), dy.shape[3], deviation >= divisor
        dv = dy / divisor.astype(dy.dtype)
        of_divisor = -xp.einsum("nhwc,nhwc->nhw", dv, y).astype(np.float64)[:, :, :, None]
        # c is the mean of σ over all places, and all places that it divides move it.
        of_c = xp.where(own, 0, of_divisor).mean(axis=(1, 2, 3), keepdims=True)
        of_deviation = xp.where(own, of_divisor, 0) + xp.where(moves, of_c, 0)
        of_square = of_deviation / xp.where(deviation > 0, 2 * deviation, np.inf)
        dv += y * (2 / k * divisor * _blur(of_square[:, :, :, 0], *back)).astype(dy.dtype)
        dv -= (_blur(dv.sum(axis=3, dtype=np.float64), *back) / k).astype(dy.dtype)
        return {}, dv

    def switches(self, cache: Any) -> tuple[Array, ...]:
        return (cache[2],)

    def invert(self, y: Array, *switches: Array) -> Array:
        return y * switches[0].astype(y.dtype)

    def _windows(self, x: Array) -> tuple[Array, Array]:
        """Weights down and across."""
        xp = namespace(x)
        down, across = (xp.asarray(_window(side, self.sigma)) for side in x.shape[1:3])
        return down, across


def _blur(values: Array, down: Array, across: Array) -> Array:
    """Weighted sums over the neighbourhood of maps (n, h, w), shape (n, h, w, 1)."""
    return (down @ values @ across.T)[:, :, :, None]


def _window(length: int, sigma: float) -> np.ndarray:
    """Gaussian weights of every place for every place of an axis; rows add up to 1."""
    distance = np.arange(length)[:, None] - np.arange(length)
    weights = np.exp(-0.5 * (distance / sigma) ** 2) * (abs(distance) <= math.ceil(2 * sigma))
    return weights / weights.sum(axis=1, keepdims=True)
