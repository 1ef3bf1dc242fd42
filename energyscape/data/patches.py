"""Patches: small windows of images as rows, at random or on a grid, and images from them."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_array, check_is_fitted

from energyscape.backend import (
    Array,
    HostStream,
    Purpose,
    device_of,
    draw_seed,
    is_gpu_array,
    namespace,
    stream,
    to_device,
)
from energyscape.convolution import overlap_add, pair, windows
from energyscape.data.transformer import ImageTransformer, apart
from energyscape.models.inputs import as_images
from energyscape.registry import register
from energyscape.sources import Rows, is_stored
from energyscape.verbs import check_count

__all__ = ["PatchExtractor"]

_log = logging.getLogger("energyscape")


def with_channels(x: Array) -> Array:
    """Images (n, h, w, c); grey ones get one channel."""
    return x if x.ndim == 4 else x[:, :, :, None]


def varied(rows: Array, flat: float, name: str, what: str = "patches") -> Array:
    """Rows without those that are flat: whose variance is at most ``flat`` times the mean one.

    The log says how many of them ``name`` has left out.
    """
    mean = rows.mean(axis=1, dtype=np.float64)[:, None]
    variance = ((rows - mean) ** 2).mean(axis=1)
    # What is constant but for rounding of its mean has no variance, also where flat is 0.
    variance *= variance > (4 * np.finfo(rows.dtype).eps * mean[:, 0]) ** 2
    kept = variance > flat * variance.mean()
    dropped = len(rows) - int(kept.sum())
    if dropped:
        _log.info("%s: left out %d flat %s of %d", name, dropped, what, len(rows))
    return rows[kept]


@register
class PatchExtractor(ClassNamePrefixFeaturesOutMixin, ImageTransformer):
    """Images to rows of patches.

    Parameters
    ----------
    patch_size : int or (int, int), default 8
        Height and width.
    n_patches : int, optional
        So many random patches in all, drawn with replacement, every place of every image as likely
        as any other. None takes all patches on the grid, image by image, row by row.
    stride : int or (int, int), default 1
        Steps of the grid.
    flat : float in [0, 1), optional
        Patches whose variance is at most this share of the mean variance of all patches of a call
        are left out, and the log says how many: 0 leaves out constant ones alone, 0.1 is that of
        Olshausen and Field (1997). Default: all are kept.
    random_state : int, None, RandomState or Generator
        Becomes ``seed_`` in ``fit``; equal calls of ``transform`` give equal patches.

    Attributes
    ----------
    image_shape_ : tuple of int, or None
        (h, w) or (h, w, channels); None after images of unequal sizes.
    n_channels_ : int
    seed_ : int

    Examples
    --------
    >>> import numpy as np
    >>> from energyscape.data import PatchExtractor
    >>> images = np.arange(32.0).reshape(2, 4, 4)
    >>> cut = PatchExtractor(patch_size=2, stride=2).fit(images)
    >>> rows = cut.transform(images)
    >>> rows.shape, rows[1].tolist()
    ((8, 4), [2.0, 3.0, 6.0, 7.0])
    >>> np.array_equal(cut.inverse_transform(rows), images)
    True
    """

    image_shape_: tuple[int, ...] | None
    n_channels_: int
    seed_: int

    def __init__(
        self,
        patch_size: int | tuple[int, int] = 8,
        n_patches: int | None = None,
        stride: int | tuple[int, int] = 1,
        flat: float | None = None,
        random_state: Any = None,
    ) -> None:
        self.patch_size = patch_size
        self.n_patches = n_patches
        self.stride = stride
        self.flat = flat
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Any:
        """Check the images and note their shape.

        Parameters
        ----------
        X : array, shape (n, h, w) or (n, h, w, channels), or list of images of unequal sizes
        y : ignored

        Returns
        -------
        self
        """
        pair("PatchExtractor.patch_size", self.patch_size)
        pair("PatchExtractor.stride", self.stride)
        if self.n_patches is not None:
            check_count("n_patches", self.n_patches)
        if self.flat is not None and not 0 <= self.flat < 1:
            raise ValueError(f"PatchExtractor.flat must lie in [0, 1), got {self.flat!r}")
        groups = by_size(self, X)
        self.n_channels_ = n_channels(groups[0].event_shape)
        shapes = {tuple(g.event_shape) for g in groups}
        self.image_shape_ = shapes.pop() if len(shapes) == 1 else None
        self._check(groups)
        self.seed_ = draw_seed(self.random_state)
        return self

    def transform(self, X: Any) -> Any:
        """Patches as rows, in C order: rows, columns, channels.

        Parameters
        ----------
        X : array, shape (n, h, w) or (n, h, w, channels), or list of images of unequal sizes
            Of any height and width that the patch fits into.

        Returns
        -------
        array, shape (m, ph * pw * channels), container and dtype of X (8-bit integers: float32)
        """
        check_is_fitted(self)
        groups = by_size(self, X)
        self._check(groups)
        parts = self._all(groups) if self.n_patches is None else self._some(groups)
        found = parts[0] if len(parts) == 1 else namespace(parts[0]).concatenate(parts)
        return found if self.flat is None else varied(found, self.flat, "PatchExtractor")

    @available_if(lambda self: self.n_patches is None and self.flat is None)
    def inverse_transform(self, P: Any) -> Any:
        """Images from all their patches, the mean where patches overlap.

        Parameters
        ----------
        P : array, shape (m, ph * pw * channels)
            Patches of whole images of the shape seen in ``fit``.

        Returns
        -------
        array, shape (n, *image_shape_), container and dtype of P

        Raises
        ------
        ValueError
            If the images of ``fit`` had unequal sizes, the grid leaves pixels out, or the rows are
            not those of whole images.
        """
        check_is_fitted(self)
        if not is_gpu_array(P):
            P = check_array(P, dtype=[np.float64, np.float32])
        if self.image_shape_ is None:
            raise ValueError("images of unequal sizes cannot be put together from their patches")
        (ph, pw), (down, across) = self._sizes()
        h, w = self.image_shape_[:2]
        places = (h - ph) // down + 1, (w - pw) // across + 1
        if (h - ph) % down or (w - pw) % across or down > ph or across > pw:
            raise ValueError(
                f"patches of {ph}×{pw} at a stride of {down}, {across} leave out pixels of images "
                f"of {h}×{w}: choose a stride that reaches them all"
            )
        d, each = ph * pw * self.n_channels_, places[0] * places[1]
        if P.shape[1] != d or len(P) % each:
            raise ValueError(
                f"P has shape {P.shape}; images of shape {self.image_shape_} have {each} patches "
                f"of {d} values each"
            )
        xp, size, stride = namespace(P), (ph, pw), (down, across)
        parts = P.astype(np.float64, copy=False).reshape(-1, each, d)
        sums = overlap_add(parts, size, (len(parts), h, w, self.n_channels_), stride)
        count = overlap_add(xp.ones((1, each, ph * pw)), size, (1, h, w, 1), stride)
        return (sums / count).astype(P.dtype, copy=False).reshape(-1, *self.image_shape_)

    def _sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return pair("patch_size", self.patch_size), pair("stride", self.stride)

    def _check(self, groups: list[Rows]) -> None:
        """Channels as in ``fit``, one number of them, and room for a patch."""
        ph, pw = self._sizes()[0]
        for rows in groups:
            shape = rows.event_shape
            if n_channels(shape) != self.n_channels_ or shape[0] < ph or shape[1] < pw:
                raise ValueError(
                    f"PatchExtractor cuts patches of {ph}×{pw} from images with {self.n_channels_} "
                    f"channel(s), got an image of shape {shape}"
                )

    def _all(self, groups: list[Rows]) -> list[Array]:
        size, stride = self._sizes()
        d = size[0] * size[1] * self.n_channels_
        images = [with_channels(g.take(slice(None))) for g in groups]
        return [apart(windows(x, size, stride).reshape(-1, d), x) for x in images]

    def _some(self, groups: list[Rows]) -> list[Array]:
        """Random places, drawn on the host so that both kinds of arrays give the same patches."""
        (ph, pw), _ = self._sizes()
        room = [(s[0] - ph + 1) * (s[1] - pw + 1) for s in (g.event_shape for g in groups)]
        ends = np.cumsum([len(g) * r for g, r in zip(groups, room, strict=True)])
        rng: HostStream = stream(self.seed_, Purpose.TRANSFORM)
        places = (rng.uniform(self.n_patches, np.float64) * ends[-1]).astype(np.int64)
        group = np.searchsorted(ends, places, side="right")
        places -= np.concatenate([[0], ends[:-1]])[group]
        out = None
        for i in np.unique(group):
            mine = np.flatnonzero(group == i)
            part = self._cut(groups[i], places[mine])
            if len(groups) == 1:
                return [part]
            if out is None:
                dtype = np.result_type(*(g.dtype for g in groups))
                out = namespace(part).empty((len(places), part.shape[1]), dtype)
            out[to_device(mine, device_of(part))] = part
        return [out]

    def _cut(self, rows: Rows, places: np.ndarray) -> Array:
        """Patches at places numbered image by image, row by row."""
        (ph, pw), (h, w) = self._sizes()[0], rows.event_shape[:2]
        image, place = np.divmod(places, (h - ph + 1) * (w - pw + 1))
        row, column = np.divmod(place, w - pw + 1)
        return cut_at(rows, (ph, pw), image, row, column)

    @property
    def _n_features_out(self) -> int:
        ph, pw = self._sizes()[0]
        return ph * pw * self.n_channels_


def by_size(estimator: Any, X: Any) -> list[Rows]:
    """Images of one size each: one group for an array, as many as images for a list."""
    if isinstance(X, list | tuple) and X and all(hasattr(x, "shape") for x in X):
        return [as_images(estimator, x[None]) for x in X]
    return [as_images(estimator, X)]


def n_channels(shape: tuple[int, ...]) -> int:
    """Channels of images of ``shape``."""
    return shape[2] if len(shape) == 3 else 1


def cut_at(
    rows: Rows, size: tuple[int, int], image: np.ndarray, row: np.ndarray, column: np.ndarray
) -> Array:
    """Patches of images by their numbers and upper left corners, shape (n, ph * pw * channels)."""
    if is_stored(rows.X):
        # Only the images that are needed, each read once.
        kept, image = np.unique(image, return_inverse=True)
        x = rows.take(kept)
    else:
        x = rows.X
    at = [to_device(v, device_of(x)) for v in (image, row, column)]
    xp = namespace(x)
    down, across = xp.arange(size[0]), xp.arange(size[1])
    found = x[
        at[0][:, None, None],
        at[1][:, None, None] + down[:, None],
        at[2][:, None, None] + across,
    ]
    return found.reshape(len(image), -1).astype(rows.dtype, copy=False)
