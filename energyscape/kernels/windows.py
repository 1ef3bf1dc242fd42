"""Windows of images as rows, and their adjoint, each in one launch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.kernels.calls import each, packed

Pair = tuple[int, int]


def im2col(x: Array, size: Pair, before: Pair, places: Pair) -> Array:
    """All windows of images on a GPU that is 0 beyond their edge.

    Parameters
    ----------
    x : array, shape (n, h, w, c)
    size : (fh, fw)
    before : (int, int)
        Zeros above and to the left.
    places : (int, int)
        Windows down and across, one at each place.

    Returns
    -------
    array, shape (n · down · across, fh · fw · c)
    """
    (x,) = packed(x)
    rows = namespace(x).empty((len(x) * math.prod(places), math.prod(size) * x.shape[3]), x.dtype)
    sizes = _sizes(*x.shape[1:], *size, *before, *places)
    each("im2col", rows, (x, rows, *sizes, np.uint64(rows.size)))
    return rows


def col2im(rows: Array, shape: tuple[int, ...], size: Pair, stride: Pair, places: Pair) -> Array:
    """Windows added up where they lie, shape ``shape`` = (n, h, w, c); on a GPU.

    Parameters
    ----------
    rows : array of n · down · across · fh · fw · c elements, in that order
    stride : (int, int)
        Steps between windows.
    """
    (rows,) = packed(rows)
    x = namespace(rows).empty(shape, rows.dtype)
    each("col2im", x, (rows, x, *_sizes(*shape[1:], *size, *stride, *places), np.uint64(x.size)))
    return x


def _sizes(*sizes: int) -> tuple[Any, ...]:
    return tuple(np.uint32(size) for size in sizes)
