"""Stages of a hierarchy of feature maps: forward, the gradient, and the way back down.

    maps → filters → |·| → local contrast → pool → maps

(Jarrett et al., 2009). Every stage is a transformer of maps (n, h, w, c), so that a hierarchy is a
`Pipeline`; it also goes backward, for the fine-tuning of all of them, and projects maps back to
what they came from. What a stage throws away on the way up (a sign, a contrast, the place of a
maximum: the *switches* of Zeiler and Fergus, 2014) it keeps until the next call.

References
----------
Jarrett, K., Kavukcuoglu, K., Ranzato, M., LeCun, Y. (2009). What is the best multi-stage
architecture for object recognition? ICCV.
Zeiler, M., Fergus, R. (2014). Visualizing and understanding convolutional networks. ECCV.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from energyscape.backend import Array, device_of, is_gpu_array, namespace, to_device
from energyscape.data.patches import with_channels
from energyscape.data.transformer import ImageTransformer, in_blocks, row_blocks
from energyscape.models.inputs import as_images
from energyscape.registry import register
from energyscape.sources import Rows
from energyscape.verbs import Params

__all__ = ["Flatten", "Rectify", "Stage", "Standardize"]


class Stage(ImageTransformer):
    """What stages share; subclasses write `forward`, `backward` and `invert`.

    Attributes
    ----------
    image_shape_ : tuple of int
        (h, w) or (h, w, channels) of the maps seen in ``fit``, which all further ones must have.
    """

    image_shape_: tuple[int, ...]
    # Whether what `invert` does depends on what went up; if not, any maps can be led back.
    switched = True

    def fit(self, X: Any, y: Any = None) -> Any:
        """Check the maps; nothing is learned.

        Parameters
        ----------
        X : array, shape (n, h, w) or (n, h, w, channels)
        y : ignored

        Returns
        -------
        self
        """
        shape = tuple(as_images(self, X).event_shape)
        self.check_maps(shape)
        self.image_shape_ = shape
        return self

    def check_maps(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError for settings that cannot be, or not with such maps."""

    # ------------------------------------------------------------ up and down, without a face

    def trainable(self) -> Params:
        """Fitted arrays that a gradient may move, by name; none by default."""
        return {}

    def feasible(self, params: Params) -> Params:
        """Those of ``params`` that have constraints, within them."""
        return {}

    def units(self, params: Params, x: Array) -> dict[str, float]:
        """In what units each array of `trainable` is learned, given maps (n, h, w, c)."""
        return {}

    def forward(self, params: Params, x: Array) -> tuple[Array, Any]:
        """Maps (n, h', w', c') of maps (n, h, w, c), and what `backward` needs."""
        raise NotImplementedError

    def backward(
        self, params: Params, cache: Any, dy: Array, need_dx: bool = True
    ) -> tuple[Params, Array]:
        """Gradients by name and, if asked for, in x, of a loss with the derivative ``dy``."""
        raise NotImplementedError

    def switches(self, cache: Any) -> tuple[Array, ...]:
        """What `invert` needs of the way up, an entry for each row."""
        return ()

    def invert(self, y: Array, *switches: Array) -> Array:
        """Maps (n, h, w, c) from maps (n, h', w', c')."""
        raise NotImplementedError

    def shape_out(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of what comes of maps of ``shape`` (h, w, ...)."""
        return shape

    def row_numbers(self, shape: tuple[int, ...]) -> int:
        """Numbers that maps of ``shape`` take while they are worked on."""
        return 4 * math.prod(shape)

    # ------------------------------------------------------------ the face

    def transform(self, X: Any) -> Any:
        """One stage up.

        Parameters
        ----------
        X : array, shape (n, h, w) or (n, h, w, channels)
            Of the shape seen in ``fit``.

        Returns
        -------
        array, container and dtype of X (8-bit integers: float32)
        """
        check_is_fitted(self)
        rows = as_images(self, X, self.image_shape_)
        shape, kept = self.shape_out(self.image_shape_), []

        def up(x: Array) -> Array:
            y, cache = self.forward(self._arrays(x), with_channels(x))
            kept.append((len(x), self.switches(cache) if self.switched else ()))
            return y.reshape(len(x), *shape)

        row_bytes = self.row_numbers(self.image_shape_) * np.dtype(rows.dtype).itemsize
        found = in_blocks(rows, up, row_bytes)
        self._kept = kept
        return found

    def inverse_transform(self, X: Any) -> Any:
        """One stage down.

        Parameters
        ----------
        X : array, shape of what ``transform`` gives
            Where a stage has switches, as many as it was last given, in that order.

        Returns
        -------
        array, shape (n, h, w) or (n, h, w, channels), container and dtype of X

        Raises
        ------
        ValueError
            If these are no maps of this stage, or not those of the last ``transform``.
        """
        check_is_fitted(self)
        rows = self._maps(X)
        if not self.switched:
            return in_blocks(rows, self._down)
        kept = getattr(self, "_kept", [])
        seen = sum(n for n, _ in kept)
        if seen != len(rows):
            raise ValueError(
                f"{type(self).__name__} leads maps back by what it kept of the last transform, "
                f"which had {seen} row(s); X has {len(rows)}. Call transform on the rows that X "
                "came from first"
            )
        ends = itertools.accumulate(n for n, _ in kept)
        parts = []
        for end, (n, switches) in zip(ends, kept, strict=True):
            y = rows.take(slice(end - n, end))
            parts.append(self._down(y, *[to_device(s, device_of(y)) for s in switches]))
        return parts[0] if len(parts) == 1 else namespace(parts[0]).concatenate(parts)

    def _maps(self, X: Any) -> Rows:
        """``X`` as rows of what `transform` gives."""
        shape = self.shape_out(self.image_shape_)
        X = X if is_gpu_array(X) else np.asarray(X)
        if X.dtype.kind != "f" or tuple(X.shape[1:]) != shape or not len(X):
            raise ValueError(
                f"{type(self).__name__} leads back floats of shape {('n', *shape)}, got "
                f"{X.dtype} of shape {X.shape}"
            )
        return Rows(X)

    def _down(self, y: Array, *switches: Array) -> Array:
        x = self.invert(with_channels(y) if y.ndim > 2 else y, *switches)
        return x.reshape(len(y), *self.image_shape_)

    def _arrays(self, x: Array) -> Params:
        """The fitted arrays on the device and in the dtype of ``x``."""
        device = device_of(x)
        moved = {key: to_device(value, device) for key, value in self.trainable().items()}
        return {key: value.astype(x.dtype, copy=False) for key, value in moved.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {key: v for key, v in super().__getstate__().items() if key != "_kept"}


@register
class Rectify(Stage):
    """|x|: what matters is that there is an edge, not whether it is dark or bright.

    The way back gives maps the signs that went up. Without it averages over places cancel: 63.7 %
    fall to 23.1 % on Caltech-101 (Jarrett et al., 2009, table 1).

    Attributes
    ----------
    image_shape_ : tuple of int
    """

    def forward(self, params: Params, x: Array) -> tuple[Array, Any]:
        return namespace(x).abs(x), x

    def backward(
        self, params: Params, cache: Any, dy: Array, need_dx: bool = True
    ) -> tuple[Params, Array]:
        dx = namespace(dy).sign(cache)
        dx *= dy
        return {}, dx

    def switches(self, cache: Any) -> tuple[Array, ...]:
        return (cache < 0,)

    def invert(self, y: Array, *switches: Array) -> Array:
        return namespace(y).where(switches[0], -y, y)


@register
class Standardize(Stage):
    """(x - mean) / deviation of every map at every place, over the rows of ``fit``.

    What a linear classifier on top, and its weight decay, should find. Deviations of 0 count as 1.

    Attributes
    ----------
    mean_, scale_ : arrays, shape of a row, float64
    image_shape_ : tuple of int
    """

    mean_: Array
    scale_: Array
    switched = False

    def fit(self, X: Any, y: Any = None) -> Any:
        """Find means and deviations.

        Parameters
        ----------
        X : array, shape (n, h, w) or (n, h, w, channels)
        y : ignored

        Returns
        -------
        self
        """
        super().fit(X)
        rows = as_images(self, X)
        mean = sum(x.sum(axis=0, dtype=np.float64) for x in row_blocks(rows)) / len(rows)
        squares = sum(((x - mean) ** 2).sum(axis=0) for x in row_blocks(rows))
        xp, scale = namespace(mean), (squares / len(rows)) ** 0.5
        # What is constant but for rounding is not scaled up.
        rounding = 4 * np.finfo(rows.dtype).eps * abs(mean)
        self.mean_, self.scale_ = mean, xp.where(scale > rounding, scale, 1.0)
        return self

    def _moments(self, x: Array) -> list[Array]:
        """Means and deviations of maps (h, w, c), as ``x`` is."""
        return [v.reshape(*v.shape[:2], -1) for v in self._at(x, "mean_", "scale_")]

    def forward(self, params: Params, x: Array) -> tuple[Array, Any]:
        mean, scale = self._moments(x)
        return (x - mean) / scale, None

    def backward(
        self, params: Params, cache: Any, dy: Array, need_dx: bool = True
    ) -> tuple[Params, Array]:
        return {}, dy / self._moments(dy)[1]

    def invert(self, y: Array, *switches: Array) -> Array:
        mean, scale = self._moments(y)
        return y * scale + mean


@register
class Flatten(Stage):
    """Maps as rows of features in C order: rows, columns, maps.

    Attributes
    ----------
    image_shape_ : tuple of int
    """

    switched = False

    def shape_out(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (math.prod(shape),)

    def forward(self, params: Params, x: Array) -> tuple[Array, Any]:
        return x.reshape(len(x), -1), x.shape

    def backward(
        self, params: Params, cache: Any, dy: Array, need_dx: bool = True
    ) -> tuple[Params, Array]:
        return {}, dy.reshape(cache)

    def invert(self, y: Array, *switches: Array) -> Array:
        return y
