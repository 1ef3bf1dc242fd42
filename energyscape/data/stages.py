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
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from energyscape.backend import Array, device_of, is_gpu_array, namespace, to_device
from energyscape.convolution import Pair, pair
from energyscape.data.patches import with_channels
from energyscape.data.transformer import ImageTransformer, in_blocks, row_blocks
from energyscape.models.inputs import as_images
from energyscape.registry import register
from energyscape.sources import Rows
from energyscape.verbs import Params

__all__ = ["Flatten", "Pool", "Rectify", "Stage", "Standardize"]


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
        return {}, dy * namespace(dy).sign(cache)

    def switches(self, cache: Any) -> tuple[Array, ...]:
        return (cache < 0,)

    def invert(self, y: Array, *switches: Array) -> Array:
        return namespace(y).where(switches[0], -y, y)


@register
class Pool(Stage):
    """One value per map and window: what is there, and only roughly where.

    The way back puts a maximum where it was and zeros elsewhere, and a mean (of values or squares)
    at all places of its window; where windows overlap, the mean of what they say. Maxima of maps
    >= 0 are so found again, means where windows do not overlap. Rows and columns that no window
    covers count for nothing.

    Parameters
    ----------
    kind : {"mean", "max", "l2"}, default "mean"
        l2 is the root of the mean square.
    size : int or (int, int), default 2
        Of a window.
    stride : int or (int, int), optional
        Steps between windows. Default: ``size``, windows side by side.

    Attributes
    ----------
    image_shape_ : tuple of int

    Examples
    --------
    >>> import numpy as np
    >>> from energyscape.data import Pool
    >>> maps = np.arange(16.0).reshape(1, 4, 4)
    >>> pool = Pool("max", 2)
    >>> pool.fit_transform(maps)[0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    >>> pool.inverse_transform(pool.transform(maps))[0, :2].tolist()
    [[0.0, 0.0, 0.0, 0.0], [0.0, 5.0, 0.0, 7.0]]
    """

    def __init__(
        self,
        kind: str = "mean",
        size: int | tuple[int, int] = 2,
        stride: int | tuple[int, int] | None = None,
    ) -> None:
        self.kind = kind
        self.size = size
        self.stride = stride

    @property
    def switched(self) -> bool:  # type: ignore[override]
        """Whether places are kept: those of maxima."""
        return self.kind == "max"

    def check_maps(self, shape: tuple[int, ...]) -> None:
        if self.kind not in ("mean", "max", "l2"):
            raise ValueError(f"Pool.kind must be 'mean', 'max' or 'l2', got {self.kind!r}")
        size, _ = self._sizes()
        if size[0] > shape[0] or size[1] > shape[1]:
            raise ValueError(
                f"Pool.size: windows of {size[0]}×{size[1]} do not fit into maps of "
                f"{shape[0]}×{shape[1]}"
            )

    def _sizes(self) -> tuple[Pair, Pair]:
        size = pair("Pool.size", self.size)
        return size, size if self.stride is None else pair("Pool.stride", self.stride)

    def shape_out(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        (sh, sw), (down, across) = self._sizes()
        return ((shape[0] - sh) // down + 1, (shape[1] - sw) // across + 1, *shape[2:])

    def _places(self, shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
        """For every place in a window: where that of all windows lies in maps of ``shape``."""
        (sh, sw), (down, across) = self._sizes()
        h, w = self.shape_out(shape)
        for a, b in itertools.product(range(sh), range(sw)):
            yield (
                slice(None),
                slice(a, a + (h - 1) * down + 1, down),
                slice(b, b + (w - 1) * across + 1, across),
            )

    def forward(self, params: Params, x: Array) -> tuple[Array, Any]:
        xp, places = namespace(x), list(self._places(x.shape[1:3]))
        if self.kind == "max":
            best = x[places[0]]
            index = xp.zeros(best.shape, np.min_scalar_type(len(places)))
            for i, at in enumerate(places[1:], 1):
                better = x[at] > best
                index = xp.where(better, index.dtype.type(i), index)
                best = xp.where(better, x[at], best)
            return best, (x.shape, index)
        total = xp.zeros((len(x), *self.shape_out(x.shape[1:])), x.dtype)
        for at in places:
            total += x[at] if self.kind == "mean" else x[at] * x[at]
        total /= x.dtype.type(len(places))
        if self.kind == "l2":
            xp.sqrt(total, out=total)
            return total, (x, total)
        return total, x.shape

    def backward(
        self, params: Params, cache: Any, dy: Array, need_dx: bool = True
    ) -> tuple[Params, Array]:
        xp = namespace(dy)
        if self.kind == "max":
            shape, index = cache
            return {}, self._sums(shape, lambda i, at: dy * (index == i), dy)
        share = dy / dy.dtype.type(math.prod(self._sizes()[0]))
        if self.kind == "mean":
            return {}, self._sums(cache, lambda i, at: share, dy)
        x, y = cache
        share /= xp.where(y > 0, y, 1)  # all of a window is 0 where its root is: no slope
        return {}, self._sums(x.shape, lambda i, at: share * x[at], dy)

    def switches(self, cache: Any) -> tuple[Array, ...]:
        return (cache[1],)

    def invert(self, y: Array, *switches: Array) -> Array:
        xp = namespace(y)
        shape = (len(y), *self.image_shape_[:2], y.shape[3])
        if self.kind == "max":
            (index,) = switches
            sums = self._sums(shape, lambda i, at: y * (index == i), y)
            count = self._sums(shape, lambda i, at: (index == i).astype(y.dtype), y)
        else:
            one = xp.ones((1, *y.shape[1:3], 1), y.dtype)
            sums = self._sums(shape, lambda i, at: y, y)
            count = self._sums((1, *shape[1:3], 1), lambda i, at: one, y)
        return sums / xp.maximum(count, 1)

    def _sums(self, shape: tuple[int, ...], part: Any, like: Array) -> Array:
        """Maps of ``shape`` in which ``part(i, where)`` is added at place i of all windows."""
        out = namespace(like).zeros(shape, like.dtype)
        for i, at in enumerate(self._places(shape[1:3])):
            out[at] += part(i, at)
        return out


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
