"""Clips: windows that move across images in straight lines, frame by frame."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from energyscape.backend import (
    Array,
    HostStream,
    Purpose,
    device_of,
    draw_seed,
    namespace,
    stream,
    to_device,
)
from energyscape.convolution import pair
from energyscape.data.patches import by_size, cut_at, n_channels, varied
from energyscape.data.transformer import ImageTransformer
from energyscape.registry import register
from energyscape.sources import Rows
from energyscape.verbs import check_count

__all__ = ["ClipExtractor"]


@register
class ClipExtractor(ImageTransformer):
    """Images to clips of windows that move across them.

    A clip begins at a random place and moves in a random direction at a random speed, the same in
    all its frames, by whole pixels (places are rounded), and never leaves its image.

    Parameters
    ----------
    patch_size : int or (int, int), default 8
        Height and width of a frame.
    n_clips : int, default 1000
        Drawn with replacement, every patch of every image as likely as any other in the mean over
        directions.
    n_frames : int, default 4
    speed : float or (float, float), default (1, 2)
        Pixels from one frame to the next; of two numbers each clip draws its own between them. 0
        stands still.
    flat : float in [0, 1), optional
        Clips whose variance is at most this share of the mean variance are left out, as patches
        are by `PatchExtractor`. Default: all are kept.
    random_state : int, None, RandomState or Generator
        Becomes ``seed_`` in ``fit``; equal calls of ``transform`` give equal clips.

    Attributes
    ----------
    n_channels_ : int
    seed_ : int

    Examples
    --------
    >>> import numpy as np
    >>> from energyscape.data import ClipExtractor
    >>> images = np.random.default_rng(0).random((3, 20, 30))
    >>> ClipExtractor(6, 100, 5, random_state=0).fit_transform(images).shape
    (100, 5, 36)
    """

    n_channels_: int
    seed_: int

    def __init__(
        self,
        patch_size: int | tuple[int, int] = 8,
        n_clips: int = 1000,
        n_frames: int = 4,
        speed: float | tuple[float, float] = (1.0, 2.0),
        flat: float | None = None,
        random_state: Any = None,
    ) -> None:
        self.patch_size = patch_size
        self.n_clips = n_clips
        self.n_frames = n_frames
        self.speed = speed
        self.flat = flat
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Any:
        """Check the images.

        Parameters
        ----------
        X : array, shape (n, h, w) or (n, h, w, channels), or list of images of unequal sizes
        y : ignored

        Returns
        -------
        self
        """
        pair("ClipExtractor.patch_size", self.patch_size)
        check_count("ClipExtractor.n_clips", self.n_clips)
        check_count("ClipExtractor.n_frames", self.n_frames)
        self._speeds()
        if self.flat is not None and not 0 <= self.flat < 1:
            raise ValueError(f"ClipExtractor.flat must lie in [0, 1), got {self.flat!r}")
        groups = by_size(self, X)
        self.n_channels_ = n_channels(groups[0].event_shape)
        self._check(groups)
        self.seed_ = draw_seed(self.random_state)
        return self

    def transform(self, X: Any) -> Any:
        """Clips of frames, each in C order: rows, columns, channels.

        Parameters
        ----------
        X : array, shape (n, h, w) or (n, h, w, channels), or list of images of unequal sizes

        Returns
        -------
        array, shape (m, n_frames, ph * pw * channels), container and dtype of X (8-bit integers:
            float32)
        """
        check_is_fitted(self)
        groups = by_size(self, X)
        self._check(groups)
        clips = self._clips(groups)
        if self.flat is None:
            return clips
        rows = varied(clips.reshape(len(clips), -1), self.flat, "ClipExtractor", "clips")
        return rows.reshape(-1, *clips.shape[1:])

    def _speeds(self) -> tuple[float, float]:
        lo, hi = map(float, np.broadcast_to(self.speed, 2))
        if not 0 <= lo <= hi < math.inf:
            raise ValueError(
                "ClipExtractor.speed must be a number >= 0 or two in ascending order, got "
                f"{self.speed!r}"
            )
        return lo, hi

    def _check(self, groups: list[Rows]) -> None:
        """Channels as in ``fit``, and room for the fastest clip in any direction."""
        ph, pw = pair("patch_size", self.patch_size)
        far = round((self.n_frames - 1) * self._speeds()[1])
        for rows in groups:
            shape = rows.event_shape
            small = shape[0] < ph + far or shape[1] < pw + far
            if n_channels(shape) != self.n_channels_ or small:
                raise ValueError(
                    f"ClipExtractor moves windows of {ph}×{pw} by up to {far} pixels across images "
                    f"with {self.n_channels_} channel(s), got an image of shape {shape}: lower "
                    "speed or n_frames, or leave the image out"
                )

    def _clips(self, groups: list[Rows]) -> Array:
        """Drawn on the host, so that both kinds of arrays give the same clips."""
        ph, pw = pair("patch_size", self.patch_size)
        n, t = self.n_clips, self.n_frames
        rng: HostStream = stream(self.seed_, Purpose.TRANSFORM)
        image, angle, pace, down, across = (rng.uniform(n, np.float64) for _ in range(5))
        room = [(h - ph + 1) * (w - pw + 1) for h, w in (g.event_shape[:2] for g in groups)]
        ends = np.cumsum([len(g) * r for g, r in zip(groups, room, strict=True)])
        place = (image * ends[-1]).astype(np.int64)
        group = np.searchsorted(ends, place, side="right")
        image = (place - np.concatenate([[0], ends[:-1]])[group]) // np.take(room, group)
        lo, hi = self._speeds()
        way = (lo + (hi - lo) * pace)[:, None] * np.arange(t)
        turn = 2 * np.pi * angle[:, None]
        out = None
        for i in np.unique(group):
            mine = np.flatnonzero(group == i)
            h, w = groups[i].event_shape[:2]
            row = _path(way[mine] * np.sin(turn[mine]), down[mine], h - ph)
            column = _path(way[mine] * np.cos(turn[mine]), across[mine], w - pw)
            flat = np.repeat(image[mine], t), row.ravel(), column.ravel()
            part = cut_at(groups[i], (ph, pw), *flat).reshape(len(mine), t, -1)
            if len(groups) == 1:
                return part
            if out is None:
                dtype = np.result_type(*(g.dtype for g in groups))
                out = namespace(part).empty((n, *part.shape[1:]), dtype)
            out[to_device(mine, device_of(part))] = part
        return out


def _path(way: np.ndarray, where: np.ndarray, last: int) -> np.ndarray:
    """Rounded coordinates of clips that move by ``way`` (n, t) from a random place on, within 0 and
    ``last``; ``where`` in [0, 1) chooses among the places that keep them there."""
    steps = np.rint(way).astype(np.int64)
    low, high = steps.min(axis=1), steps.max(axis=1)
    free = last - (high - low) + 1
    return (where * free).astype(np.int64)[:, None] - low[:, None] + steps
