"""Pictures as PNG files: grids of filters and samples need NumPy alone, curves need matplotlib."""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from energyscape.backend import to_host
from energyscape.io import write_atomic

__all__ = ["image_grid", "pool_members", "save_curves", "save_grid", "save_png", "save_traces"]


def image_grid(
    rows: Any,
    image_shape: tuple[int, ...] | None = None,
    n_columns: int | None = None,
    symmetric: bool = False,
    scale: str = "each",
) -> np.ndarray:
    """Images side by side, as 8-bit values.

    Parameters
    ----------
    rows : array, shape (n, n_pixels) or (n, h, w) or (n, h, w, 3)
    image_shape : (h, w) or (h, w, 3), optional
        Shape of an image in C order; default: square.
    n_columns : int, optional
        Default: as square a grid as can be.
    symmetric : bool, default False
        Put 0 at mid grey (filters) instead of stretching between extremes (images).
    scale : {"each", "all"}
        Whether every image is stretched by itself or all alike.

    Returns
    -------
    array, shape (H, W) or (H, W, 3), uint8
        With a one-pixel frame around each image.

    Raises
    ------
    ValueError
        If there is no image, its shape does not fit, or a value is not finite.
    """
    if scale not in ("each", "all"):
        raise ValueError(f"scale must be 'each' or 'all', got {scale!r}")
    images = np.asarray(to_host(rows), np.float64)
    if images.ndim not in (2, 3, 4) or images.size == 0 or images.shape[3:] not in ((), (3,)):
        raise ValueError(
            "at least one image (n_pixels,), (h, w) or (h, w, 3) is wanted, got shape "
            f"{images.shape}"
        )
    if not np.isfinite(images).all():
        raise ValueError("the images contain NaN or infinity")
    if images.ndim == 2:
        images = images.reshape(len(images), *_shape_of(images.shape[1], image_shape))
    axes = tuple(range(1, images.ndim)) if scale == "each" else None
    if symmetric:
        top = np.abs(images).max(axis=axes, keepdims=True)
        images = 0.5 + 0.5 * images / np.where(top > 0, top, 1)
    else:
        lo, hi = images.min(axis=axes, keepdims=True), images.max(axis=axes, keepdims=True)
        images = (images - lo) / np.where(hi > lo, hi - lo, 1)
    n, h, w = images.shape[:3]
    columns = math.ceil(math.sqrt(n)) if n_columns is None else n_columns
    lines = math.ceil(n / columns)
    grid = np.full((lines * (h + 1) + 1, columns * (w + 1) + 1, *images.shape[3:]), 0.5)
    for i, image in enumerate(images):
        top_edge, left = 1 + (i // columns) * (h + 1), 1 + (i % columns) * (w + 1)
        grid[top_edge : top_edge + h, left : left + w] = image
    return np.round(grid * 255).astype(np.uint8)


def save_grid(path: str | os.PathLike[str], rows: Any, zoom: int = 2, **options: Any) -> None:
    """`image_grid` of ``rows``, enlarged ``zoom`` times, written as PNG."""
    grid = image_grid(rows, **options)
    save_png(path, grid.repeat(zoom, axis=0).repeat(zoom, axis=1))


def pool_members(filters: Any, pools: Any, n_pools: int = 16, n_members: int = 9) -> np.ndarray:
    """The heaviest filters of some pools, pool by pool: rows of a grid of ``n_members`` columns.

    Parameters
    ----------
    filters : array, shape (n_filters, …)
    pools : array, shape (n_filters, n_pools)
        Weights P >= 0, as ``params_["P"]`` holds them.
    n_pools : int, default 16
        Shown, at even distances in the model's order.
    n_members : int, default 9
        Shown of each pool, heaviest first; zero where a pool has fewer.

    Returns
    -------
    array, shape (pools shown * n_members, …)
    """
    filters, weights = np.asarray(to_host(filters)), np.asarray(to_host(pools))
    if weights.ndim != 2 or len(weights) != len(filters):
        raise ValueError(
            f"pools of {len(filters)} filters have shape ({len(filters)}, n_pools), got "
            f"{weights.shape}"
        )
    shown = np.linspace(0, weights.shape[1] - 1, min(n_pools, weights.shape[1])).astype(int)
    rows = np.zeros((len(shown), n_members, *filters.shape[1:]), filters.dtype)
    for row, pool in zip(rows, shown, strict=True):
        heaviest = np.argsort(-weights[:, pool], kind="stable")[:n_members]
        heaviest = heaviest[weights[heaviest, pool] > 0]
        row[: len(heaviest)] = filters[heaviest]
    return rows.reshape(-1, *filters.shape[1:])


def save_png(path: str | os.PathLike[str], pixels: np.ndarray) -> None:
    """Write 8-bit grey (h, w) or RGB (h, w, 3) pixels as a PNG file (ISO/IEC 15948)."""
    fits = pixels.ndim in (2, 3) and pixels.shape[2:] in ((), (3,)) and pixels.size > 0
    if pixels.dtype != np.uint8 or not fits:
        raise ValueError(
            f"uint8 of shape (h, w) or (h, w, 3) is wanted, got {pixels.dtype} of shape "
            f"{pixels.shape}"
        )
    height, width = pixels.shape[:2]
    color = 0 if pixels.ndim == 2 else 2
    lines = pixels.reshape(height, -1)
    raw = np.concatenate([np.zeros((height, 1), np.uint8), lines], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    write_atomic(path, b"\x89PNG\r\n\x1a\n", *(_chunk(kind, data) for kind, data in chunks))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _shape_of(n_pixels: int, image_shape: tuple[int, ...] | None) -> tuple[int, ...]:
    if image_shape is None:
        side = math.isqrt(n_pixels)
        if side * side != n_pixels:
            raise ValueError(
                f"{n_pixels} pixels are no square image; give image_shape=(height, width)"
            )
        return side, side
    if math.prod(image_shape) != n_pixels:
        raise ValueError(f"image_shape={image_shape} does not hold {n_pixels} pixels")
    return tuple(image_shape)


def save_curves(
    path: str | os.PathLike[str], history: dict[str, list[float]], keys: Sequence[str] | None = None
) -> None:
    """Learning curves over epochs, one panel per quantity, as PNG (needs matplotlib).

    Parameters
    ----------
    path : path-like
    history : dict of lists
        A model's ``history_``.
    keys : sequence of str, optional
        Which; default: energies, reconstruction and gradient norm, as far as recorded.
    """
    from matplotlib.figure import Figure

    panels = [[k] for k in keys] if keys else _default_panels(history)
    figure = Figure(figsize=(3.6 * len(panels), 3.0), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for key in panel:
            axes.plot(history["epoch"], history[key], label=key.replace("_", " "))
        axes.set_xlabel("epoch")
        axes.legend(loc="upper right", frameon=False, fontsize="small")
    figure.savefig(path, dpi=120, format="png")


def _default_panels(history: dict[str, list[float]]) -> list[list[str]]:
    wanted = (
        ("energy_train", "energy_valid", "chain_energy"),
        ("energy_gap",),
        ("reconstruction",),
        ("grad_norm",),
    )
    return [found for group in wanted if (found := [k for k in group if k in history])]


_TRACES = 8  # chains drawn one by one; more could not be told apart


def save_traces(
    path: str | os.PathLike[str],
    labels: Sequence[str],
    traces: np.ndarray,
    autocorrelations: np.ndarray,
) -> None:
    """A line per quantity: how its chains ran, and their autocorrelations (needs matplotlib).

    Parameters
    ----------
    path : path-like
    labels : sequence of k str
        Titles of the lines.
    traces : array, shape (k, n_chains, n_draws)
        Up to eight chains are drawn, from that of the lowest mean to that of the highest.
    autocorrelations : array, shape (k, n_chains, n_lags)
        From lag 0; the mean over all chains that have one is drawn in black.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 2.0 * len(labels) + 0.4), layout="constrained")
    panels = figure.subplots(len(labels), 2, squeeze=False, width_ratios=(2, 1), sharex="col")
    for (left, right), label, chains, rho in zip(
        panels, labels, traces, autocorrelations, strict=True
    ):
        with np.errstate(invalid="ignore"):
            order = np.argsort(chains.mean(axis=1))
        shown = order[np.linspace(0, len(order) - 1, min(len(order), _TRACES)).astype(int)]
        left.plot(chains[shown].T, linewidth=0.6)
        left.set_title(label, loc="left", fontsize="medium")
        right.axhline(0, color="0.7", linewidth=0.8)
        right.plot(rho[shown].T, linewidth=0.6, alpha=0.5)
        known = rho[np.isfinite(rho).all(axis=1)]
        if len(known):
            right.plot(known.mean(axis=0), color="black")
        right.set_ylim(min(-0.25, known.min(initial=0)), 1.05)
    panels[0, 1].set_title("autocorrelation", loc="left", fontsize="medium")
    panels[-1, 0].set_xlabel("draw")
    panels[-1, 1].set_xlabel("lag")
    figure.savefig(path, dpi=120, format="png")
