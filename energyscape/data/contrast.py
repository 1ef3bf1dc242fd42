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
from sklearn.utils.validation import check_is_fitted

from energyscape.backend import Array, namespace
from energyscape.data.transformer import RowTransformer, Transformer, in_blocks, row_blocks
from energyscape.models.inputs import as_images, as_rows
from energyscape.registry import register

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
        if not 0 <= self.regularization < np.inf:
            raise ValueError(
                "ContrastNormalize.regularization must be >= 0 and finite, got "
                f"{self.regularization!r}"
            )
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
class LocalContrastNormalize(Transformer):
    """Images with mean and contrast made equal around every place, over all channels together.

    v = x - Σ w x is what differs from the neighbourhood, σ = √(Σ w v²) its deviation there, and
    y = v / max(σ, c) with c the mean of σ over the image, which keeps flat parts flat. The weights
    w are a Gaussian window that adds up to 1; at the edge it is what lies inside, normalised anew.

    Parameters
    ----------
    sigma : float, default 2.0
        Deviation of the window in pixels; it reaches ⌈2 sigma⌉ pixels (9×9 for 2.0, as Jarrett et
        al.).

    Attributes
    ----------
    image_shape_ : tuple of int
        (h, w) or (h, w, channels) of the images seen in ``fit``.

    References
    ----------
    Jarrett, K., Kavukcuoglu, K., Ranzato, M., LeCun, Y. (2009). What is the best multi-stage
    architecture for object recognition? ICCV.
    """

    image_shape_: tuple[int, ...]

    def __init__(self, sigma: float = 2.0) -> None:
        self.sigma = sigma

    def fit(self, X: Any, y: Any = None) -> Any:
        """Check the images; nothing is learned.

        Parameters
        ----------
        X : array, shape (n, h, w) or (n, h, w, channels)
        y : ignored

        Returns
        -------
        self
        """
        if not 0 < self.sigma < np.inf:
            raise ValueError(
                f"LocalContrastNormalize.sigma must be > 0 and finite, got {self.sigma!r}"
            )
        self.image_shape_ = as_images(self, X).event_shape
        return self

    def transform(self, X: Any) -> Any:
        """Normalised images.

        Parameters
        ----------
        X : array, shape (n, h, w) or (n, h, w, channels)
            Of the shape seen in ``fit``.

        Returns
        -------
        array, shape of X, container and dtype of X (8-bit integers: float32)
        """
        check_is_fitted(self)
        return in_blocks(as_images(self, X, self.image_shape_), self._apply)

    def _apply(self, x: Array) -> Array:
        xp, (n, h, w) = namespace(x), x.shape[:3]
        down = xp.asarray(_window(h, self.sigma))
        across = xp.asarray(_window(w, self.sigma))

        def blur(values: Array) -> Array:
            """Weighted mean over the neighbourhood and all channels, shape (n, h, w, 1)."""
            return (down @ values.mean(axis=3) @ across.T)[:, :, :, None]

        v = x.reshape(n, h, w, -1).astype(np.float64)
        size = abs(v).max(axis=(1, 2, 3))
        v -= blur(v)
        deviation = xp.sqrt(blur(v * v))
        c = deviation.mean(axis=(1, 2, 3))
        # What is left of a flat image is rounding, which must not be divided by itself.
        c = xp.maximum(c, math.sqrt(np.finfo(np.float64).eps) * size)
        c = xp.where(c > 0, c, 1.0)[:, None, None, None]
        v /= xp.maximum(deviation, c)
        return v.astype(x.dtype, copy=False).reshape(x.shape)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        return tags


def _window(length: int, sigma: float) -> np.ndarray:
    """Gaussian weights of every place for every place of an axis; rows add up to 1."""
    distance = np.arange(length)[:, None] - np.arange(length)
    weights = np.exp(-0.5 * (distance / sigma) ** 2) * (abs(distance) <= math.ceil(2 * sigma))
    return weights / weights.sum(axis=1, keepdims=True)
