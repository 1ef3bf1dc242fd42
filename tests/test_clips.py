"""Clips are the windows that they claim to be, and stay inside their images."""

from __future__ import annotations

import re

import numpy as np
import pytest

import energyscape
from energyscape.data import ClipExtractor


def numbered(n, h, w):
    """Images whose pixels say where they are."""
    image, row, column = np.indices((n, h, w))
    return (1e6 * image + 1e3 * row + column).astype(np.float64)


def corners(clips):
    """(image, row, column) of each frame's first pixel."""
    first = clips[:, :, 0]
    return np.stack([first // 1e6, first % 1e6 // 1e3, first % 1e3], axis=2).astype(int)


@pytest.mark.parametrize("speed", [0, 1.5, (1, 2.5)])
def test_frames_are_windows_that_move_in_a_straight_line(speed):
    images = numbered(3, 20, 31)
    clips = ClipExtractor((4, 5), 400, 6, speed, random_state=0).fit_transform(images)
    assert clips.shape == (400, 6, 20) and clips.dtype == np.float64
    place = corners(clips)
    rows, columns = place[..., 1, None] + np.arange(4), place[..., 2, None] + np.arange(5)
    # Indexing by them would fail outside, and negative ones would not say where they are.
    wanted = images[place[..., :1, None], rows[..., None], columns[..., None, :]]
    np.testing.assert_array_equal(clips, wanted.reshape(clips.shape))
    assert (place[:, 1:, 0] == place[:, :1, 0]).all() and set(place[:, 0, 0]) == {0, 1, 2}
    way = place[:, :, 1:] - place[:, :1, 1:]
    lo, hi = np.broadcast_to(speed, 2)
    gone = np.linalg.norm(way[:, -1], axis=1) / 5
    # Each coordinate of the last place is rounded by at most ½, over 5 steps.
    assert gone.min() >= lo - 0.15 and gone.max() <= hi + 0.15
    straight = way[:, -1:] * np.arange(6)[:, None] / 5
    assert np.abs(way - straight).max() <= 1.0


def test_directions_and_places_cover_all_there_are():
    place = corners(ClipExtractor(3, 4000, 3, 2, random_state=1).fit_transform(numbered(1, 9, 9)))
    assert set(place[..., 1].ravel()) == set(place[..., 2].ravel()) == set(range(7))
    way = place[:, 2, 1:] - place[:, 0, 1:]
    octants = np.bincount(
        (np.round(np.arctan2(way[:, 0], way[:, 1]) / (np.pi / 4)) % 8).astype(int), minlength=8
    )
    # 500 expected of each; by rounding an eighth may hold more or less by a tenth, and 5 standard
    # deviations of a binomial are 105.
    assert np.abs(octants - 500).max() < 155


def test_equal_calls_give_equal_clips_of_lists_and_channels(tmp_path):
    images = [numbered(1, 12, 14)[0], numbered(1, 15, 11)[0].astype(np.float32)]
    cut = ClipExtractor(4, 50, random_state=0).fit(images)
    clips = cut.transform(images)
    np.testing.assert_array_equal(clips, cut.transform(images))
    assert clips.dtype == np.float64
    cut.save(tmp_path / "c.h5")
    np.testing.assert_array_equal(energyscape.load(tmp_path / "c.h5").transform(images), clips)
    coloured = np.random.default_rng(0).random((2, 12, 12, 3)).astype(np.float32)
    assert ClipExtractor(4, 7, 2).fit_transform(coloured).shape == (7, 2, 48)
    assert ClipExtractor(4, 7, 1).fit_transform(coloured).dtype == np.float32


def test_flat_clips_are_left_out():
    images = np.zeros((1, 30, 60))
    images[:, :, 30:] = np.random.default_rng(0).random((30, 30))
    whole = ClipExtractor(4, 500, random_state=0).fit_transform(images)
    kept = ClipExtractor(4, 500, flat=0.0, random_state=0).fit_transform(images)
    np.testing.assert_array_equal(kept, whole[whole.var(axis=(1, 2)) > 0])
    assert 0 < len(kept) < 500


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_clips": 0}, "n_clips must be an integer >= 1"),
        ({"n_frames": 0}, "n_frames must be an integer >= 1"),
        ({"speed": -1}, "speed must be a number >= 0 or two in ascending order, got -1"),
        ({"speed": (2, 1)}, "in ascending order, got (2, 1)"),
        ({"flat": 1.0}, "flat must lie in [0, 1), got 1.0"),
        ({"n_frames": 6}, "of 8×8 by up to 10 pixels across images with 1 channel(s), got an"),
    ],
)
def test_what_cannot_be_is_said(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ClipExtractor(**settings).fit(np.zeros((2, 16, 16)))
