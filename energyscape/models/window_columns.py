"""Windows of images as columns, and values in windows added up where they lie: the CPU's quick way.

A column is a window and a row one pixel of all of them, so that what a unit gives is one piece of
memory. How the pixels lie decides what the copies cost:

    sliding   images one after the other, (c, n, h, w), and windows at all places of the rows that
              have any. Each row of the columns is then one piece of an image, and what pixels add
              up to one sum over a slanted view (a third of the time of as many sums of planes).
              Windows that reach beyond the end of their row are void.
    tiles     images side by side, (h, w, c, n): rows of tiles are short, those of images are not.

Memory is kept, for pages of new memory cost as much as a product.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from energyscape.backend import Array

# OpenBLAS has kernels that copy nothing first for products (m×k)(k×n) with m k n up to a million:
# 0.6 of the time of larger products for 24 filters of 5×5, 0.8 for 80 of 8×8.
_SMALL = 1_000_000


class Columns:
    """What both share: images (n, H, W, c), or tori that they are wrapped from.

    Columns have the shape (rows, groups, length); `values` says how images lie in them.

    Parameters
    ----------
    shape : (H, W, c)
    size : int
        Side of a window.
    dtype : dtype

    Attributes
    ----------
    order : tuple of int
        Axes of images (n, h, w, c) in the order in which they lie in memory.
    one : array that broadcasts to columns, or None
        1, but ∞ in those that are void; None where none is.
    across : int or None
    """

    order: ClassVar[tuple[int, ...]]
    groups: int
    length: int

    def __init__(self, shape: tuple[int, ...], size: int, dtype: Any) -> None:
        self.shape, self.size, self.dtype = shape, size, np.dtype(dtype)
        self.one: Array = None
        self.across: int | None = None
        self._n, self._torus = 0, shape[:2]
        self._kept: dict[str, Array] = {}
        self._pixels: Array = None
        self._sums: Array = None

    def space(self, name: str, rows: int) -> Array:
        """Memory for ``rows`` of columns; that of a name is used again."""
        shape = rows, self.groups, self.length
        return self._memory(name, math.prod(shape)).reshape(shape)

    def load(self, u: Array) -> None:
        """Take images (n, H, W, c), or tori that are smaller and repeat their beginning."""
        (n, h, w, _), (H, W, _) = u.shape, self.shape
        if n != self._n:
            self._n = n
            self._lay_out(n)
        x, self._torus = self._pixels, (h, w)
        x[:, :h, :w] = u
        x[:, h:, :w] = x[:, : H - h, :w]
        x[:, :, w:] = x[:, :, : W - w]

    def cut(self, i: int, out: Array) -> None:
        """Write the windows of set i into ``out``, (size · size · c, groups, length)."""
        raise NotImplementedError

    def room(self) -> Array:
        """Where to put the columns that `add` takes, of the shape of those of `cut`."""
        raise NotImplementedError

    def add(self, i: int) -> None:
        """Add the columns in `room` to the pixels that set i has them from; void ones are 0."""
        raise NotImplementedError

    def total(self) -> Array:
        """What all sets have added since `load`, the shape of what was loaded; a view."""
        y, (h, w), (H, W, _) = self._sums, self._torus, self.shape
        y[:, : H - h] += y[:, h:]
        y[:, :, : W - w] += y[:, :, w:]
        return y[:, :h, :w]

    def values(self, columns: Array) -> Array:
        """By image, (rows, n, places) or (rows, n, places down, across), a view; `across` of the
        last axis are not void."""
        raise NotImplementedError

    def _lay_out(self, n: int) -> None:
        """Make room for n images."""
        raise NotImplementedError

    def _memory(self, name: str, size: int) -> Array:
        if name not in self._kept or self._kept[name].size < size:
            self._kept[name] = np.empty(size, self.dtype)
        return self._kept[name][:size]

    def _natural(self, pixels: Array) -> Array:
        """Pixels in `order` as (n, H, W, c)."""
        return pixels.transpose(np.argsort(self.order))


class SlidingColumns(Columns):
    """Windows at every place; images are groups."""

    order = (3, 0, 1, 2)

    def _lay_out(self, n: int) -> None:
        (H, W, c), t, item = self.shape, self.size, self.dtype.itemsize
        strided = np.lib.stride_tricks.as_strided
        down, self.across = H - t + 1, W - t + 1
        self.groups, self.length = n, down * W
        one = np.full((down, W), np.inf, self.dtype)
        one[:, : self.across] = 1
        self.one = one.ravel()
        # The last void windows reach beyond the last pixel.
        pixels = np.zeros(c * n * H * W + t, self.dtype)
        self._pixels = self._natural(pixels[:-t].reshape(c, n, H, W))
        at = W * item, item, n * H * W * item, H * W * item, item
        self._windows = strided(pixels, (t, t, c, n, self.length), at)
        # Between the rows of `room` lies as much 0 as windows are long, so that one that is read
        # too early or too far adds nothing.
        reach = (t - 1) * (W + 1)
        whole = self.length + reach
        memory = np.zeros(reach + t * t * c * n * whole, self.dtype)[reach:]
        self._room = memory.reshape(t * t * c, n, whole)[:, :, : self.length]
        at = t * c * n * whole - W, c * n * whole - 1, n * whole, whole, 1
        self._slanted = strided(memory, (t, t, c, n, whole), [item * step for step in at])
        self._flat = np.zeros((c, n, whole), self.dtype)
        self._sums = self._natural(self._flat[:, :, : H * W].reshape(c, n, H, W))

    def cut(self, i: int, out: Array) -> None:
        np.copyto(out.reshape(self._windows.shape), self._windows)

    def room(self) -> Array:
        return self._room

    def add(self, i: int) -> None:
        np.add.reduce(self._slanted, axis=(0, 1), out=self._flat)

    def values(self, columns: Array) -> Array:
        return columns.reshape(*columns.shape[:2], -1, self.shape[1])


class TileColumns(Columns):
    """Windows that tile images, those of set i from (i · stride, i · stride) on; one group."""

    order = (1, 2, 3, 0)

    def __init__(self, shape: tuple[int, ...], size: int, stride: int, dtype: Any) -> None:
        super().__init__(shape, size, dtype)
        self._stride = stride
        self._tiles = [(side - size + stride) // size for side in shape[:2]]

    def _lay_out(self, n: int) -> None:
        H, W, c = self.shape
        self.groups, self.length = 1, math.prod(self._tiles) * n
        self._inner = np.empty((2, H, W, c, n), self.dtype)
        self._pixels, self._sums = (self._natural(part) for part in self._inner)

    def load(self, u: Array) -> None:
        super().load(u)
        self._sums[...] = 0

    def cut(self, i: int, out: Array) -> None:
        windows = self._windows(self._inner[0], i)
        np.copyto(out.reshape(windows.shape), windows)

    def room(self) -> Array:
        return self.space("room", self.size**2 * self.shape[2])

    def add(self, i: int) -> None:
        windows = self._windows(self._inner[1], i)
        windows += self.room().reshape(windows.shape)

    def values(self, columns: Array) -> Array:
        return columns.reshape(len(columns), -1, self._n).transpose(0, 2, 1)

    def _windows(self, pixels: Array, i: int) -> Array:
        """(row, column, channel, down, across, n), a view."""
        (down, across), t, o = self._tiles, self.size, i * self._stride
        part = pixels[o : o + down * t, o : o + across * t]
        tiles = part.reshape(down, t, across, t, *part.shape[2:])
        return tiles.transpose(1, 3, 4, 0, 2, 5)


def multiply(a: Array, columns: Array, out: Array) -> None:
    """a @ columns of every group, in products that are `_SMALL`.

    Parameters
    ----------
    a : array, shape (m, k)
    columns : array, shape (k, groups, length)
    out : array, shape (m, groups, length)
        The last axis contiguous.
    """
    for part, pieces in _cuts(columns.shape[2], a.size, 32):
        given, found = (_pieces(values[:, :, part], pieces) for values in (columns, out))
        np.matmul(a, given, out=found)


def outer(columns: Array, others: Array) -> Array:
    """columns @ others' over all groups, (rows, rows of the others), in such products too."""
    total = np.zeros((len(columns), len(others)), columns.dtype)
    for part, pieces in _cuts(columns.shape[2], total.size, 480):
        a, b = (_pieces(values[:, :, part], pieces) for values in (columns, others))
        total += (a @ b.swapaxes(2, 3)).sum(axis=(0, 1))
    return total


def _cuts(length: int, size: int, fewest: int) -> list[tuple[slice, int]]:
    """Parts of the columns, and in how many products each is made whose other two lengths make
    ``size``; with fewer columns than ``fewest`` these do not pay."""
    most = _SMALL // size
    if most < fewest:
        return [(slice(None), 1)]
    least = -(-length // most)
    pieces = next((count for count in range(least, 2 * least) if length % count == 0), least)
    whole = length // pieces * pieces
    rest = [(slice(whole, None), 1)] if whole < length else []
    return [(slice(0, whole), pieces), *rest]


def _pieces(values: Array, pieces: int) -> Array:
    """(rows, groups, length) as (groups, pieces, rows, columns); a view."""
    rows, groups, length = values.shape
    return values.reshape(rows, groups, pieces, length // pieces).transpose(1, 2, 0, 3)
