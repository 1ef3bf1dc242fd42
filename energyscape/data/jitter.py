"""Images shifted by a few pixels at random: more data from those there are."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import OneToOneFeatureMixin
from sklearn.utils.validation import check_is_fitted

from energyscape.backend import Array, Purpose, device_of, draw_seed, namespace, stream
from energyscape.data.transformer import RowTransformer
from energyscape.models.inputs import as_rows
from energyscape.registry import register

__all__ = ["Jitter"]


@register
class Jitter(OneToOneFeatureMixin, RowTransformer):
    """Rows that are images, each shifted down and across by -max_shift … max_shift pixels.

    A callable for a trainer's ``batch_transform``, which then sees other shifts in every epoch, and
    a transformer whose shifts are fixed by ``random_state``.

    Parameters
    ----------
    image_shape : (int, int) or (int, int, int)
        Height, width and channels of the image that a row holds, in C order.
    max_shift : int, default 1
        Every shift up to it is as likely as any other, in both directions.
    padding : {"constant", "edge"}, default "constant"
        What moves in from beyond the edge: zeros, or the pixels at the edge (as `numpy.pad`).
    random_state : int, None, RandomState or Generator
        Of ``transform``; becomes ``seed_`` in ``fit``.

    Attributes
    ----------
    seed_, n_features_in_ : int

    Examples
    --------
    >>> from energyscape.data import Jitter
    >>> from energyscape.trainers import PCD
    >>> trainer = PCD(batch_transform=Jitter((28, 28), max_shift=2))
    """

    seed_: int

    def __init__(
        self,
        image_shape: tuple[int, ...],
        max_shift: int = 1,
        padding: str = "constant",
        random_state: Any = None,
    ) -> None:
        self.image_shape = image_shape
        self.max_shift = max_shift
        self.padding = padding
        self.random_state = random_state

    def __call__(self, x: Array, rng: Any) -> Array:
        """Rows of the shape and dtype of ``x``, shifted by numbers from the stream ``rng``."""
        self._check(x.shape[1])
        return self._shift(x, self._shifts(len(x), rng))

    def fit(self, X: Any, y: Any = None) -> Any:
        """Check the rows and fix the seed.

        Parameters
        ----------
        X : array, shape (n, n_features)
        y : ignored

        Returns
        -------
        self
        """
        rows = as_rows(self, X, reset=True)
        self._check(rows.event_shape[0])
        self.seed_ = draw_seed(self.random_state)
        return self

    def transform(self, X: Any) -> Any:
        """Shifted rows; equal calls give equal shifts.

        Parameters
        ----------
        X : array, shape (n, n_features)

        Returns
        -------
        array, shape (n, n_features), container and dtype of X
        """
        check_is_fitted(self)
        rows = as_rows(self, X, reset=False)
        return self(rows.take(slice(None)), stream(self.seed_, Purpose.TRANSFORM, 0, device_of(X)))

    def _shifts(self, n: int, rng: Any) -> Array:
        """Down and across, shape (2, n), integers."""
        # float64, in which the product of a number below 1 and an odd one never rounds up to it.
        u = rng.uniform((2, n), np.float64) * (2 * self.max_shift + 1)
        return u.astype(np.int64) - self.max_shift

    def _shift(self, x: Array, shifts: Array) -> Array:
        xp, (n, d), (h, w) = namespace(x), x.shape, self.image_shape[:2]
        images = x.reshape(n, h, w, -1)
        row = xp.arange(h) - shifts[0][:, None]
        column = xp.arange(w) - shifts[1][:, None]
        inside_row, inside_column = xp.clip(row, 0, h - 1), xp.clip(column, 0, w - 1)
        every = xp.arange(n)[:, None, None]
        out = images[every, inside_row[:, :, None], inside_column[:, None, :]]
        if self.padding == "constant":
            out *= ((row == inside_row)[:, :, None] & (column == inside_column)[:, None, :])[
                :, :, :, None
            ].astype(x.dtype)
        return out.reshape(n, d)

    def _check(self, d: int) -> None:
        shape = self.image_shape
        whole = isinstance(shape, tuple | list) and all(
            isinstance(v, int | np.integer) and v >= 1 for v in shape
        )
        if not whole or len(shape) not in (2, 3) or int(np.prod(shape)) != d:
            raise ValueError(
                "Jitter.image_shape must be (h, w) or (h, w, channels) with as many pixels as rows "
                f"have features, {d}; got {shape!r}"
            )
        if not isinstance(self.max_shift, int | np.integer) or self.max_shift < 0:
            raise ValueError(f"Jitter.max_shift must be an int >= 0, got {self.max_shift!r}")
        if self.padding not in ("constant", "edge"):
            raise ValueError(f"Jitter.padding must be 'constant' or 'edge', got {self.padding!r}")
