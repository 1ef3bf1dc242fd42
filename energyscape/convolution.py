"""Filters slid over images, and pooling: forward, adjoint and gradient in NumPy or CuPy.

y(n, i, j, k) = Σ_{a, b, c} x(n, i + a, j + b, c) f(k, a, b, c): the cross-correlation that machine
learning calls a convolution (the filter is not turned round). It is linear in x and in f, so that
the gradients are two more products of the same three arrays (LeCun et al., 1998). All three are one
matrix product with the windows of the image as rows, on a CPU one for each column of places
(`strips`); pooling sums, averages or takes the largest over the blocks of a grid, one axis after
the other.

References
----------
LeCun, Y., Bottou, L., Bengio, Y., Haffner, P. (1998). Gradient-based learning applied to document
recognition. Proceedings of the IEEE 86(11).
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from energyscape import strips
from energyscape.backend import Array, is_gpu_array, namespace
from energyscape.kernels import col2im, im2col
from energyscape.sources import compute_dtype

__all__ = ["adjoint", "convolve", "filters_grad", "overlap_add", "pool", "pool_grad", "windows"]

Pair = tuple[int, int]
_PLANES_AT_ONCE = 1 << 19  # elements


# ---------------------------------------------------------------- convolution


def convolve(x: Array, filters: Array, mode: str = "valid") -> Array:
    """Responses of every filter at every place.

    On a GPU the windows are copied, fh · fw times the memory of ``x``: give many images in parts.

    Parameters
    ----------
    x : array, shape (n, h, w, c)
    filters : array, shape (k, fh, fw, c)
        In the dtype and container of ``x``.
    mode : {"valid", "full", "same"}
        Places where the filter lies inside the image, h' = h - fh + 1; all where it meets it,
        h' = h + fh - 1; or the middle h' = h of these. The image is 0 beyond its edge.

    Returns
    -------
    array, shape (n, h', w', k)

    Raises
    ------
    ValueError
        For shapes that do not go together and modes other than these.
    """
    if x.ndim != 4 or filters.ndim != 4 or x.shape[3] != filters.shape[3]:
        raise ValueError(
            "images (n, h, w, c) and filters (k, fh, fw, c) of equal c are wanted, got shapes "
            f"{x.shape} and {filters.shape}"
        )
    # Sums of bytes would overflow.
    x, filters = (v.astype(compute_dtype(v.dtype), copy=False) for v in (x, filters))
    k, *size = filters.shape[:3]
    places, before = _places(x, size, mode)
    if not is_gpu_array(x):
        return strips.correlate(_padded(x, size, mode), filters)
    rows = im2col(x, size, before, places)
    return (rows @ filters.reshape(k, -1).T).reshape(len(x), *places, k)


def adjoint(y: Array, filters: Array, mode: str = "valid") -> Array:
    """The x with ⟨convolve(x', filters), y⟩ = ⟨x', x⟩ for all x': the gradient in the images.

    Parameters
    ----------
    y : array, shape (n, h', w', k)
    filters : array, shape (k, fh, fw, c)
    mode : {"valid", "full", "same"}
        That of the convolution.

    Returns
    -------
    array, shape (n, h, w, c)
    """
    if y.ndim != 4 or filters.ndim != 4 or y.shape[3] != filters.shape[0]:
        raise ValueError(
            "responses (n, h, w, k) and filters (k, fh, fw, c) of equal k are wanted, got shapes "
            f"{y.shape} and {filters.shape}"
        )
    (n, h, w, k), (fh, fw, c) = y.shape, filters.shape[1:]
    (top, bottom), (left, right) = _padding(mode, fh), _padding(mode, fw)
    if is_gpu_array(y):
        rows = y.reshape(-1, k) @ filters.reshape(k, -1)
        padded = col2im(rows, (n, h + fh - 1, w + fw - 1, c), (fh, fw), (1, 1), (h, w))
    else:
        padded = strips.spread(y, filters)
    return padded[:, top : h + fh - 1 - bottom, left : w + fw - 1 - right]


def filters_grad(x: Array, dy: Array, size: Pair, mode: str = "valid") -> Array:
    """Gradient of ⟨convolve(x, filters), dy⟩ in the filters, summed over images and places.

    Parameters
    ----------
    x : array, shape (n, h, w, c)
    dy : array, shape (n, h', w', k)
    size : (fh, fw)
    mode : {"valid", "full", "same"}

    Returns
    -------
    array, shape (k, fh, fw, c)
    """
    places, before = _places(x, size, mode)
    if dy.ndim != 4 or dy.shape[:3] != (len(x), *places):
        raise ValueError(
            f"filters of {size} at images of shape {x.shape} give {mode} responses of shape "
            f"{(len(x), *places, 'k')}, got {dy.shape}"
        )
    if not is_gpu_array(x):
        return strips.slopes(_padded(x, size, mode), dy, size)
    k, rows = dy.shape[3], im2col(x, size, before, places)
    return (dy.reshape(-1, k).T @ rows).reshape(k, *size, x.shape[3])


def windows(x: Array, size: Pair, stride: Pair = (1, 1)) -> Array:
    """All windows of the images, as a view that must not be written to.

    Parameters
    ----------
    x : array, shape (n, h, w, c)
    size : (fh, fw)
    stride : (int, int), default (1, 1)
        Steps between windows.

    Returns
    -------
    array, shape (n, (h - fh) // stride + 1, (w - fw) // stride + 1, fh, fw, c)
    """
    (n, h, w, c), (fh, fw), (down, across) = x.shape, size, stride
    places = (h - fh) // down + 1, (w - fw) // across + 1
    _check_fit(size, (h, w), places)
    sn, sh, sw, sc = x.strides
    return namespace(x).lib.stride_tricks.as_strided(
        x, (n, *places, fh, fw, c), (sn, sh * down, sw * across, sh, sw, sc)
    )


def overlap_add(rows: Array, size: Pair, shape: tuple[int, ...], stride: Pair = (1, 1)) -> Array:
    """Windows added up where they lie: the adjoint of `windows`.

    Parameters
    ----------
    rows : array, shape (n, places, fh * fw * c)
        All windows of each image.
    size : (fh, fw)
    shape : (n, h, w, c)
    stride : (int, int), default (1, 1)
        Steps between windows.

    Returns
    -------
    array of ``shape``, dtype of ``rows``

    Raises
    ------
    ValueError
        For rows that are not the windows of such images.
    """
    (n, h, w, c), (fh, fw), (sh, sw) = shape, size, stride
    down, across = (h - fh) // sh + 1, (w - fw) // sw + 1
    wanted = (n, down * across, fh * fw * c)
    if rows.shape != wanted:
        raise ValueError(
            f"windows of {fh}×{fw} of images of shape {shape} have shape {wanted}, got {rows.shape}"
        )
    if is_gpu_array(rows):
        return col2im(rows, shape, size, stride, (down, across))
    out = np.zeros(shape, rows.dtype)
    # Sums of whole planes, a few images at a time so that they stay in the cache: five times as
    # quick for 5×5 windows of 128×128 as strided ones.
    step = max(1, _PLANES_AT_ONCE // max(1, wanted[1] * wanted[2]))
    for lo in range(0, n, step):
        part = out[lo : lo + step]
        planes = np.ascontiguousarray(rows[lo : lo + step].reshape(-1, wanted[2]).T)
        planes = planes.reshape(fh, fw, c, len(part), down, across)
        for a in range(fh):
            for b in range(fw):
                i, j = slice(a, a + down * sh, sh), slice(b, b + across * sw, sw)
                part[:, i, j] += planes[a, b].transpose(1, 2, 3, 0)
    return out


def _check_fit(size: Pair, sides: Pair, places: Pair) -> None:
    if min(places) < 1:
        (fh, fw), (h, w) = size, sides
        raise ValueError(f"windows of {fh}×{fw} do not fit into images of {h}×{w}")


def _places(x: Array, size: Pair, mode: str) -> tuple[Pair, Pair]:
    """(h', w') of responses, and the zeros above and to the left of the images."""
    sides, before = [], []
    for side, length in zip(x.shape[1:3], size, strict=True):
        first, last = _padding(mode, length)
        sides.append(first + side + last - length + 1)
        before.append(first)
    _check_fit(size, x.shape[1:3], (sides[0], sides[1]))
    return (sides[0], sides[1]), (before[0], before[1])


def _padded(x: np.ndarray, size: Pair, mode: str) -> np.ndarray:
    """Images with the zeros around them that filters reach."""
    around = [(0, 0), *(_padding(mode, length) for length in size), (0, 0)]
    return x if mode == "valid" else np.pad(x, around)


def _padding(mode: str, length: int) -> Pair:
    """Zeros before and after an axis; the middle of "full" is scipy.signal's for even filters."""
    if mode == "valid":
        return 0, 0
    if mode == "full":
        return length - 1, length - 1
    if mode == "same":
        return length // 2, (length - 1) // 2
    raise ValueError(f"mode must be 'valid', 'full' or 'same', got {mode!r}")


# ---------------------------------------------------------------- pooling


def pool(
    x: Array, kind: str, *, size: int | Pair | None = None, grid: int | Pair | None = None
) -> Array:
    """One value per channel and region.

    Parameters
    ----------
    x : array, shape (n, h, w, c)
    kind : {"max", "mean", "sum"}
    size : int or (int, int), optional
        Regions of so many rows and columns, which must divide h and w.
    grid : int or (int, int), optional
        So many regions down and across, as equal as they can be: part i of g begins at row
        ⌊i h/g + 1/2⌋, so that 27 rows are split 14 and 13 (Coates, Lee and Ng, 2011).

    Returns
    -------
    array, shape (n, gh, gw, c), dtype of x where that is float32 or float64;
        float32 for bool, 8-bit integers and float16, float64 for other integers
        Sums and means are added up in float64 from the sums of columns on.

    Raises
    ------
    ValueError
        For regions that are empty or left over, and kinds other than these.
    """
    down, across = _edges(x, size, grid)
    x = x.astype(compute_dtype(x.dtype), copy=False)  # sums of bytes would overflow
    found = _reduce(_reduce(x, down, 1, kind), across, 2, kind)
    if kind == "mean":
        found /= namespace(x).asarray(_areas(down, across))
    return found.astype(x.dtype, copy=False)


def pool_grad(
    dy: Array,
    x: Array,
    kind: str,
    *,
    size: int | Pair | None = None,
    grid: int | Pair | None = None,
) -> Array:
    """Gradient of ⟨pool(x, ...), dy⟩ in x; the largest ones share theirs where several are equal.

    Parameters
    ----------
    dy : array, shape (n, gh, gw, c)
    x : array, shape (n, h, w, c)
    kind, size, grid
        Those of `pool`.

    Returns
    -------
    array, shape (n, h, w, c)
    """
    xp, (down, across) = namespace(x), _edges(x, size, grid)
    if kind == "max":
        top = _spread(pool(x, "max", size=size, grid=grid), down, across)
        chosen = (x == top).astype(x.dtype)
        dy = dy / pool(chosen, "sum", size=size, grid=grid)
        return chosen * _spread(dy, down, across)
    if kind == "mean":
        dy = dy / xp.asarray(_areas(down, across)).astype(dy.dtype)
    elif kind != "sum":
        raise _bad_kind(kind)
    return _spread(dy, down, across)


def _edges(
    x: Array, size: int | Pair | None, grid: int | Pair | None
) -> tuple[list[int], list[int]]:
    """Where regions begin and end, down and across."""
    h, w = x.shape[1:3]
    if (size is None) == (grid is None):
        raise ValueError(f"one of size and grid is wanted, got size={size}, grid={grid}")
    if size is not None:
        sh, sw = pair("size", size)
        if h % sh or w % sw:
            raise ValueError(
                f"regions of {sh}×{sw} leave over a part of maps of {h}×{w}: crop these to "
                f"{h - h % sh}×{w - w % sw}, or give grid=, whose regions may be unequal"
            )
        return list(range(0, h + 1, sh)), list(range(0, w + 1, sw))
    gh, gw = pair("grid", grid)
    if gh > h or gw > w:
        raise ValueError(f"a grid of {gh}×{gw} regions is finer than maps of {h}×{w}")
    return [(2 * i * h + gh) // (2 * gh) for i in range(gh + 1)], [
        (2 * i * w + gw) // (2 * gw) for i in range(gw + 1)
    ]


def pair(name: str, value: Any) -> Pair:
    """``value`` as two integers >= 1; an int stands for two."""
    found = (value, value) if isinstance(value, int | np.integer) else value
    if (
        not isinstance(found, tuple | list)
        or len(found) != 2
        or not all(isinstance(v, int | np.integer) and v >= 1 for v in found)
    ):
        raise ValueError(f"{name} must be an int >= 1 or two of them, got {value!r}")
    return int(found[0]), int(found[1])


def _reduce(x: Array, edges: list[int], axis: int, kind: str) -> Array:
    """Maxima or sums of the parts of an axis."""
    xp, parts = namespace(x), itertools.pairwise(edges)
    before = (slice(None),) * axis
    if kind == "max":
        return xp.stack([x[(*before, slice(a, b))].max(axis=axis) for a, b in parts], axis=axis)
    if kind not in ("sum", "mean"):
        raise _bad_kind(kind)
    # Columns in their own dtype, which streams; what is left is small enough for float64.
    dtype = x.dtype if axis == 1 else np.float64
    sums = [x[(*before, slice(a, b))].sum(axis=axis, dtype=dtype) for a, b in parts]
    return xp.stack(sums, axis=axis)


def _spread(y: Array, down: list[int], across: list[int]) -> Array:
    """Each region's value at all of its places."""
    xp = namespace(y)
    for axis, edges in ((1, down), (2, across)):
        y = xp.repeat(y, [b - a for a, b in itertools.pairwise(edges)], axis=axis)
    return y


def _areas(down: list[int], across: list[int]) -> np.ndarray:
    return np.outer(np.diff(down), np.diff(across))[:, :, None].astype(np.float64)


def _bad_kind(kind: str) -> ValueError:
    return ValueError(f"kind must be 'max', 'mean' or 'sum', got {kind!r}")
