"""Images cut into tiles of P × P pixels, which are the channels of one large pixel, and back."""

from __future__ import annotations

from energyscape.backend import Array, is_gpu_array, namespace

__all__ = ["tiled", "untiled"]

# What lies together moves as one number of so many bytes: a quarter of the time for 4 of float32.
_AS_ONE = {8: "float64", 16: "complex128"}


def tiled(x: Array, period: int) -> Array:
    """Images or maps (n, h, w, c) with the pixels of a tile as channels, (n, h/P, w/P, P·P·c)."""
    n, h, w, c = x.shape
    down, across = h // period, w // period
    found = _swapped(x.reshape(n, down, period, across, period * c))
    return found.reshape(n, down, across, -1)


def untiled(x: Array, period: int) -> Array:
    """The way back, (n, h, w, c)."""
    n, down, across, channels = x.shape
    found = _swapped(x.reshape(n, down, across, period, channels // period))
    return found.reshape(n, down * period, across * period, -1)


def _swapped(x: Array) -> Array:
    """An array with the third and fourth of five axes in each other's place."""
    wide = None if is_gpu_array(x) else _AS_ONE.get(x.itemsize * x.shape[4])
    if wide is None or not x.flags.c_contiguous:
        return namespace(x).ascontiguousarray(x.transpose(0, 1, 3, 2, 4))
    turned = x.view(wide).transpose(0, 1, 3, 2, 4).copy()
    return turned.view(x.dtype)
