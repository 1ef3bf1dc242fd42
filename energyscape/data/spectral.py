"""Whole images whitened as the statistics of photographs suggest: by their spatial frequencies.

Amplitudes of photographs fall as 1/f. The filter R(f) = f exp(-(f/f₀)⁴) makes them flat up to f₀
and leaves out what lies beyond, which is mostly noise and the corners of the spectrum (Olshausen
and Field, 1997, page 3315).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from energyscape.backend import Array, namespace, to_host
from energyscape.data.transformer import Transformer, in_blocks
from energyscape.models.inputs import as_images
from energyscape.registry import register

__all__ = ["FrequencyWhitening"]


@register
class FrequencyWhitening(Transformer):
    """Images filtered by R(f) = f exp(-(f/f₀)⁴), f in cycles a pixel, and scaled by one number.

    The image is taken as a torus, so that the outermost pixels feel the opposite edge: leave a
    few of them out when patches are cut.

    Parameters
    ----------
    cutoff : float, default 0.4
        f₀ in cycles a pixel, at most 0.5·√2; 200 cycles on 512 pixels is 0.39.

    Attributes
    ----------
    scale_ : float
        What filtered images are divided by, so that those of ``fit`` have variance 1.
    n_channels_ : int

    References
    ----------
    Olshausen, B. A., Field, D. J. (1997). Sparse coding with an overcomplete basis set: a strategy
    employed by V1?
    """

    scale_: float
    n_channels_: int

    def __init__(self, cutoff: float = 0.4) -> None:
        self.cutoff = cutoff

    def fit(self, X: Any, y: Any = None) -> Any:
        """Find the scale.

        Parameters
        ----------
        X : array, shape (n, h, w) or (n, h, w, channels)
        y : ignored

        Returns
        -------
        self
        """
        if not 0 < self.cutoff <= 0.5 * np.sqrt(2):
            raise ValueError(
                "FrequencyWhitening.cutoff must lie in (0, 0.5·√2] cycles a pixel, got "
                f"{self.cutoff!r}"
            )
        rows = as_images(self, X)
        shape = rows.event_shape
        self.n_channels_ = shape[2] if len(shape) == 3 else 1
        self.scale_ = 1.0
        squares = in_blocks(rows, self._mean_squares)
        size, spread = np.sqrt(to_host(squares.mean(axis=0)))
        # What rounding leaves of images that are constant is no pattern.
        self.scale_ = float(spread) if spread > 16 * np.finfo(rows.dtype).eps * size else 1.0
        return self

    def transform(self, X: Any) -> Any:
        """Filtered images.

        Parameters
        ----------
        X : array, shape (n, h, w) or (n, h, w, channels)
            Of any height and width, with the channels seen in ``fit``.

        Returns
        -------
        array, shape of X, container and dtype of X (8-bit integers: float32)
        """
        check_is_fitted(self)
        rows = as_images(self, X)
        shape = rows.event_shape
        channels = shape[2] if len(shape) == 3 else 1
        if channels != self.n_channels_:
            raise ValueError(
                f"FrequencyWhitening was fitted to images with {self.n_channels_} channel(s), X "
                f"has images of shape {tuple(shape)}"
            )
        return in_blocks(rows, self._apply)

    def _mean_squares(self, x: Array) -> Array:
        """Of the pixels of each image, and of what is made of them, shape (n, 2), float64."""
        both = namespace(x).stack([x, self._apply(x)], axis=1).astype(np.float64)
        return (both**2).reshape(len(x), 2, -1).mean(axis=2)

    def _apply(self, x: Array) -> Array:
        xp, (h, w) = namespace(x), x.shape[1:3]
        down, across = np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)
        f = np.sqrt(down**2 + across**2)
        R = xp.asarray(f * np.exp(-((f / self.cutoff) ** 4)) / self.scale_)
        R = R.reshape(*R.shape, *([1] * (x.ndim - 3)))
        waves = xp.fft.rfft2(x.astype(np.float64), axes=(1, 2))
        return xp.fft.irfft2(waves * R, s=(h, w), axes=(1, 2)).astype(x.dtype, copy=False)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        return tags
