"""Corruptions: how often, to what, independently of the rows, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import standin
from goodness import ALARM, SIGMAS
from scipy.stats import binom, chi2
from sklearn.base import clone
from streams import ReplayStream

from energyscape.backend import HostStream
from energyscape.corruptions import Binarize, GaussianNoise, Masking, SaltAndPepper
from energyscape.registry import from_tree, to_tree

ALL = [Masking(0.25), SaltAndPepper(0.25, -2.0, 3.0), GaussianNoise(0.3)]
each = pytest.mark.parametrize("corruption", ALL, ids=lambda c: type(c).__name__)


def rows(n: int = 2000, d: int = 1000) -> np.ndarray:
    """Values in (0.1, 0.9): none is what a corruption writes."""
    return 0.1 + 0.8 * HostStream(5, 0, 0).uniform((n, d))


def usual(count: int, n: int, p: float) -> bool:
    """Whether a binomial count is within the two-sided bounds of the false-alarm rate."""
    return bool(binom.ppf(ALARM / 2, n, p) <= count <= binom.isf(ALARM / 2, n, p))


@pytest.mark.parametrize("fraction", [0.02, 0.25, 0.9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_entries_are_masked_as_often_as_asked(fraction: float, dtype: Any) -> None:
    x = rows().astype(dtype)
    corrupted, touched = Masking(fraction).corrupt(x, HostStream(0, 0, 0))
    assert np.array_equal(corrupted, np.where(touched, 0, x))
    assert corrupted.dtype == dtype
    assert touched.dtype == bool
    assert usual(touched.sum(), x.size, fraction)
    assert not usual(touched.sum(), x.size, fraction + 0.005)  # 2 million entries: 5 σ < 0.002
    columns = touched.sum(axis=0)
    edges = binom.ppf(ALARM / 2 / 1000, 2000, fraction), binom.isf(ALARM / 2 / 1000, 2000, fraction)
    assert edges[0] <= columns.min()
    assert columns.max() <= edges[1]


@pytest.mark.parametrize("fraction", [0.02, 0.4])
def test_salt_is_as_frequent_as_pepper(fraction: float) -> None:
    x = rows()
    corrupted, touched = SaltAndPepper(fraction, -2.0, 3.0).corrupt(x, HostStream(0, 0, 0))
    low, high = corrupted == -2.0, corrupted == 3.0
    assert np.array_equal(low | high, touched)
    assert np.array_equal(corrupted[~touched], x[~touched])
    for part in (low, high):
        assert usual(part.sum(), x.size, fraction / 2)
    assert not usual(low.sum(), x.size, fraction / 2 + 0.005)


def test_the_defaults_of_salt_and_pepper_are_bits() -> None:
    corrupted, touched = SaltAndPepper().corrupt(rows(20, 50), HostStream(0, 0, 0))
    assert set(np.unique(corrupted[touched])) == {0, 1}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_noise_has_the_scale_that_is_asked(dtype: Any) -> None:
    x = rows().astype(dtype)
    corrupted, touched = GaussianNoise(0.3).corrupt(x, HostStream(0, 0, 0))
    assert corrupted.dtype == dtype
    assert touched.dtype == bool
    assert touched.all()
    z = (corrupted.astype(np.float64) - x) / 0.3
    assert abs(z.mean()) * np.sqrt(z.size) < SIGMAS
    # 10,000 of them: the tails of float32 normals, cut at 5.8 σ, and rounding are far below
    square = (z.ravel()[:10_000] ** 2).sum()
    assert chi2.ppf(ALARM / 2, 10_000) < square < chi2.isf(ALARM / 2, 10_000)
    assert not chi2.ppf(ALARM / 2, 10_000) < 1.1**2 * square < chi2.isf(ALARM / 2, 10_000)


@each
def test_what_is_touched_does_not_depend_on_the_rows(corruption: Any) -> None:
    x = rows(20, 50)
    one, touched = corruption.corrupt(x, HostStream(0, 0, 0))
    two, same = corruption.corrupt(x[::-1] * 0.5, HostStream(0, 0, 0))
    assert np.array_equal(touched, same)
    if type(corruption) is GaussianNoise:
        np.testing.assert_allclose(two - x[::-1] * 0.5, one - x, atol=1e-6)
    else:
        assert np.array_equal(one[touched], two[touched])
        _, wide = corruption.corrupt(x.astype(np.float64), HostStream(0, 0, 0))
        assert np.array_equal(touched, wide)
    _, other = Masking(0.25).corrupt(x, HostStream(0, 0, 1))
    assert not np.array_equal(touched, other)


@each
def test_rows_are_not_written_to_and_a_call_gives_the_corrupted_ones(corruption: Any) -> None:
    x = rows(20, 50)
    kept = x.copy()
    called = corruption(x, HostStream(0, 0, 0))
    corrupted, _ = corruption.corrupt(x, HostStream(0, 0, 0))
    assert np.array_equal(called, corrupted)
    assert np.array_equal(x, kept)
    assert not np.shares_memory(called, x)
    nothing = clone(corruption)
    nothing.set_params(**{"scale" if hasattr(corruption, "scale") else "fraction": 0.0})
    same = nothing(x, HostStream(0, 0, 0))
    assert np.array_equal(same, x)
    assert not np.shares_memory(same, x)


def test_all_entries_are_touched_at_a_fraction_of_one() -> None:
    x = rows(20, 50)
    assert not Masking(1.0)(x, HostStream(0, 0, 0)).any()
    assert set(np.unique(SaltAndPepper(1.0)(x, HostStream(0, 0, 0)))) == {0, 1}


@pytest.mark.parametrize(
    "wrong",
    [
        Masking(-0.1),
        Masking(1.1),
        Masking(np.nan),
        SaltAndPepper(2.0),
        GaussianNoise(-1.0),
        GaussianNoise(np.inf),
    ],
)
def test_settings_that_cannot_be_are_refused_at_use(wrong: Any) -> None:
    for use in (wrong, wrong.corrupt):
        with pytest.raises(ValueError, match=rf"{type(wrong).__name__}\.(fraction|scale) must"):
            use(rows(2, 3), HostStream(0, 0, 0))


@each
def test_the_device_path_agrees_without_waiting(corruption: Any, cupy: Any) -> None:
    x = rows(20, 50)
    device = cupy.asarray(x)
    standin.Counter.syncs = 0
    pair = corruption.corrupt(device, ReplayStream(cupy))
    called = corruption(device, ReplayStream(cupy))
    assert standin.Counter.syncs == 0
    for got, want in zip(pair, corruption.corrupt(x, ReplayStream(np)), strict=True):
        assert got.dtype == want.dtype
        assert np.array_equal(got.get(), want)
    assert np.array_equal(called.get(), pair[0].get())


@pytest.mark.parametrize("corruption", [*ALL, Binarize()], ids=lambda c: type(c).__name__)
def test_files_name_corruptions(corruption: Any) -> None:
    same = from_tree(to_tree(corruption))
    assert type(same) is type(corruption)
    assert same.get_params() == clone(corruption).get_params() == corruption.get_params()
