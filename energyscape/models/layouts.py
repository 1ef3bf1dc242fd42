"""Where the windows lie that the filters of a field see: cut out of images, and pasted back.

    Tiles     each set of filters has windows that tile the image without overlap; sets begin at
              (0, 0), (s, s), (2s, 2s), … along the diagonal (Ranzato, Mnih, Hinton, 2010)
    Sliding   one set of filters sees every window (Roth and Black, 2009)

`paste` is the adjoint of `cut`: it adds windows up where they lie. A torus becomes an image whose
windows are those of the torus by `wrap`, which repeats its first ``reach`` rows and columns at the
end; `fold`, its adjoint, adds them up again.

References
----------
Ranzato, M., Mnih, V., Hinton, G. E. (2010). Generating more realistic images using gated MRF's.
Roth, S., Black, M. J. (2009). Fields of experts.
"""

from __future__ import annotations

from typing import Any

from energyscape.backend import Array, namespace
from energyscape.convolution import overlap_add, windows
from energyscape.models.window_columns import Columns, SlidingColumns, TileColumns
from energyscape.verbs import check_count

__all__ = ["Layout", "Sliding", "Tiles", "check_tiles"]


class Layout:
    """What both share.

    Attributes
    ----------
    size : int
        Side of a window.
    sets : int
        Of filters.
    grain : int
        Sides of a torus are multiples of it.
    reach : int
        By how much the image is longer that a torus is wrapped to.
    coverage : int
        Windows of all sets that a pixel of a torus lies in.
    stationary : bool
        Whether windows lie at every place.
    """

    size: int
    sets: int
    grain: int
    reach: int
    coverage: int
    stationary: bool = False

    def places(self, h: int, w: int) -> tuple[int, int]:
        """Windows of a set, down and across, in an image of h × w."""
        return (h - self.reach) // self.grain, (w - self.reach) // self.grain

    def fits(self, h: int, w: int) -> bool:
        """Whether windows of every set cover the image that far, and a torus makes such images."""
        torus = [side - self.reach for side in (h, w)]
        return all(side >= self.size and side % self.grain == 0 for side in torus)

    def image(self, h: int, w: int) -> tuple[int, int]:
        """The smallest sides that fit, at least h and w."""
        return tuple(  # type: ignore[return-value]
            max(self.torus(side - self.reach), self.torus(self.size)) + self.reach
            for side in (h, w)
        )

    def torus(self, side: int) -> int:
        """The smallest side of a torus that is at least ``side``."""
        return -(-side // self.grain) * self.grain

    def cut(self, x: Array) -> Array:
        """Images (n, h, w, c) to windows as rows, (sets, n, places, size·size·c)."""
        raise NotImplementedError

    def paste(self, rows: Array, shape: tuple[int, ...]) -> Array:
        """Windows added up into images of ``shape`` (n, h, w, c)."""
        raise NotImplementedError

    def columns_of(self, shape: tuple[int, ...], dtype: Any) -> Columns:
        """Where windows of images of ``shape`` (h, w, c) are laid out as columns; on the CPU."""
        raise NotImplementedError

    def wrap(self, x: Array) -> Array:
        """A torus (n, h, w, c) as the image (n, h + reach, w + reach, c)."""
        xp, r = namespace(x), self.reach
        if not r:
            return x
        x = xp.concatenate([x, x[:, :r]], axis=1)
        return xp.concatenate([x, x[:, :, :r]], axis=2)

    def fold(self, x: Array) -> Array:
        """The adjoint of `wrap`: what lies beyond the torus is added to where it came from."""
        r = self.reach
        if not r:
            return x
        h, w = x.shape[1] - r, x.shape[2] - r
        out = x[:, :h, :w].copy()
        out[:, :r] += x[:, h:, :w]
        out[:, :, :r] += x[:, :h, w:]
        out[:, :r, :r] += x[:, h:, w:]
        return out

    # ------------------------------------------------------------ units of windows

    def to_maps(self, units: Array, sides: tuple[int, int]) -> Array:
        """Units of windows, (sets, n, places, units of a set), as maps (n, down, across, units)."""
        n = units.shape[1]
        rows = units.transpose(1, 2, 0, 3).reshape(n, *sides, -1)
        return namespace(units).ascontiguousarray(rows)

    def from_maps(self, maps: Array) -> Array:
        """The way back from maps, or from those of some units of every set."""
        rows = maps.reshape(len(maps), -1, self.sets, maps.shape[3] // self.sets)
        return rows.transpose(2, 0, 1, 3)


class Tiles(Layout):
    """Windows that tile the image, once for each offset along the diagonal.

    Parameters
    ----------
    size : int
    stride : int
        From one set's offset to the next; divides ``size``.
    """

    def __init__(self, size: int, stride: int) -> None:
        self.size, self.stride = size, stride
        self.sets, self.grain, self.reach = size // stride, size, size - stride
        self.coverage = self.sets

    def cut(self, x: Array) -> Array:
        xp, (n, h, w, c), t = namespace(x), x.shape, self.size
        down, across = self.places(h, w)
        out = xp.empty((self.sets, n, down * across, t * t * c), x.dtype)
        for i in range(self.sets):
            o = i * self.stride
            part = x[:, o : o + down * t, o : o + across * t].reshape(n, down, t, across, t, c)
            out[i].reshape(n, down, across, t, t, c)[...] = part.transpose(0, 1, 3, 2, 4, 5)
        return out

    def paste(self, rows: Array, shape: tuple[int, ...]) -> Array:
        (n, h, w, c), t = shape, self.size
        down, across = self.places(h, w)
        out = namespace(rows).zeros(shape, rows.dtype)
        for i in range(self.sets):
            o = i * self.stride
            part = out[:, o : o + down * t, o : o + across * t].reshape(n, down, t, across, t, c)
            part += rows[i].reshape(n, down, across, t, t, c).transpose(0, 1, 3, 2, 4, 5)
        return out

    def columns_of(self, shape: tuple[int, ...], dtype: Any) -> TileColumns:
        return TileColumns(shape, self.size, self.stride, dtype)


class Sliding(Layout):
    """Every window, seen by the same filters.

    Parameters
    ----------
    size : int
    """

    def __init__(self, size: int) -> None:
        self.size, self.sets, self.grain, self.reach = size, 1, 1, size - 1
        self.coverage, self.stationary = size * size, True

    def cut(self, x: Array) -> Array:
        views = windows(x, (self.size, self.size))
        n, down, across = views.shape[:3]
        return views.reshape(1, n, down * across, -1)

    def paste(self, rows: Array, shape: tuple[int, ...]) -> Array:
        return overlap_add(rows[0], (self.size, self.size), shape)

    def columns_of(self, shape: tuple[int, ...], dtype: Any) -> SlidingColumns:
        return SlidingColumns(shape, self.size, dtype)


def check_tiles(tile: Any, stride: Any) -> None:
    """Raise ValueError where sets of windows cannot be shifted along the diagonal like that."""
    check_count("tile", tile)
    check_count("stride", stride)
    if tile % stride:
        raise ValueError(f"stride must divide tile, got {stride} and {tile}")
