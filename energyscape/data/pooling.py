"""Pooling of maps: what is there, and only roughly where.

    mean   y = Σ x / |window|      max   y = max x      l2   y = √(Σ x² / |window|)

over windows that may overlap (`energyscape.convolution.pool` has regions side by side alone, and no
way back).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.convolution import Pair, pair
from energyscape.data.stages import Stage
from energyscape.registry import register
from energyscape.verbs import Params

__all__ = ["Pool"]


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
        total = x if self.kind == "mean" else x * x
        sizes, strides = self._sizes()
        # Whole rows first: long runs, and what is left for columns is less.
        for axis, more in enumerate(self.shape_out(x.shape[1:])[:2], 1):
            size, stride = sizes[axis - 1], strides[axis - 1]
            parts = [
                total[(slice(None),) * axis + (slice(a, a + (more - 1) * stride + 1, stride),)]
                for a in range(size)
            ]
            total = sum(parts[1:], parts[0])
        total = total * x.dtype.type(1 / len(places))
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
        (sh, sw), (down, across) = self._sizes()
        apart = sh <= down and sw <= across  # no place is in two windows
        for i, at in enumerate(self._places(shape[1:3])):
            if apart:
                out[at] = part(i, at)
            else:
                out[at] += part(i, at)
        return out
