"""Whitening, contrast, patches and jitter obey their laws; images come out of files upright."""

from __future__ import annotations

import math
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import sklearn
import standin
from scipy.ndimage import correlate as nd_correlate
from scipy.stats import chi2
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.feature_extraction.image import extract_patches_2d, reconstruct_from_patches_2d
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from streams import ReplayStream

import energyscape
from energyscape.backend import Purpose, stream, to_host
from energyscape.data import (
    ZCA,
    ContrastNormalize,
    FrequencyWhitening,
    Jitter,
    LocalContrastNormalize,
    PatchExtractor,
    PCAWhitening,
    data_home,
    load_cifar10,
    load_digits,
    load_images,
    load_olivetti,
    load_photographs,
    load_silhouettes,
)
from energyscape.models import RBM
from energyscape.trainers import PCD

EPS = np.finfo(np.float64).eps
WHITENING = [ZCA(), ZCA(0.0), PCAWhitening(), PCAWhitening(3, 0.1)]
ROWS = [*WHITENING, ContrastNormalize(), ContrastNormalize(0.0), Jitter((2, 3), random_state=0)]


def _rows(n: int = 200, d: int = 6) -> np.ndarray:
    """Correlated, off zero and of unequal scale."""
    rng = np.random.default_rng(0)
    return 5 + rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) * np.geomspace(0.1, 10, d)


@parametrize_with_checks([ZCA(), PCAWhitening(), ContrastNormalize()])
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


# ---------------------------------------------------------------- whitening


@pytest.mark.parametrize("regularization", [0.0, 0.1, 3.0])
@pytest.mark.parametrize("kind", [ZCA, PCAWhitening])
def test_whitened_covariance_is_known_exactly(kind: Any, regularization: float) -> None:
    """V diag(λ/(λ+ε)) V' (turned by V for PCA), up to rounding times the condition of C, 1e6."""
    X = _rows()
    model = kind(regularization=regularization)
    Z = model.fit_transform(X)
    value, vector = np.linalg.eigh(np.cov(X.T))
    epsilon = regularization * value.mean()
    assert model.epsilon_ == pytest.approx(epsilon)
    wanted = np.diag((value / (value + epsilon))[::-1])
    if kind is ZCA:
        wanted = (vector * (value / (value + epsilon))) @ vector.T
    np.testing.assert_allclose(np.cov(Z.T), wanted, atol=100 * EPS * value[-1] / value[0])
    np.testing.assert_allclose(Z.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(model.explained_variance_, value[::-1], rtol=1e-9)


def test_zca_is_symmetric_and_stays_nearest() -> None:
    X = _rows()
    model = ZCA(0.0).fit(X)
    np.testing.assert_allclose(model.components_, model.components_.T, rtol=1e-9)
    assert (np.linalg.eigvalsh(model.components_) > 0).all()
    near = abs(model.transform(X) - (X - X.mean(axis=0))).mean()
    assert near < abs(PCAWhitening().fit_transform(X) - (X - X.mean(axis=0))).mean()


def test_pca_whitening_is_scikit_learns() -> None:
    X = _rows()
    theirs = PCA(4, whiten=True).fit(X)
    ours = PCAWhitening(4).fit(X)
    signs = np.sign((ours.components_ * theirs.components_).sum(axis=1))
    np.testing.assert_allclose(ours.transform(X), theirs.transform(X) * signs, atol=1e-9)
    np.testing.assert_allclose(ours.explained_variance_, theirs.explained_variance_)
    back = ours.inverse_transform(ours.transform(X))
    np.testing.assert_allclose(back, theirs.inverse_transform(theirs.transform(X)), atol=1e-9)
    largest = abs(ours.components_).argmax(axis=1)
    assert (ours.components_[np.arange(4), largest] > 0).all()


@pytest.mark.parametrize("model", [ZCA(0.0), ZCA(0.1), PCAWhitening(), PCAWhitening(None, 0.1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_inverse_leads_back(model: Any, dtype: Any) -> None:
    """Two products with maps of condition κ: rounding of d κ ε in units of the rows."""
    X = _rows().astype(dtype)
    model = clone(model).fit(X)
    value = model.explained_variance_ + model.epsilon_
    bound = 20 * 6 * np.sqrt(value[0] / value[-1]) * np.finfo(dtype).eps * abs(X).max()
    back = model.inverse_transform(model.transform(X))
    assert back.dtype == dtype
    np.testing.assert_allclose(back, X, atol=bound)


@pytest.mark.parametrize("kind", [ZCA, PCAWhitening])
@pytest.mark.parametrize("regularization", [0.0, 0.1])
def test_constant_features_and_few_rows_stay_finite(kind: Any, regularization: float) -> None:
    X = _rows()
    X[:, 2] = 7.3
    model = kind(regularization=regularization).fit(X)
    Z = model.transform(X)
    # Without the feature, d is smaller and with it the mean variance: ε is made the same.
    rest = kind(regularization=regularization * 5 / 6).fit(np.delete(X, 2, axis=1))
    if kind is ZCA:
        np.testing.assert_allclose(Z[:, 2], 0, atol=1e-6)
        wanted = rest.transform(np.delete(X, 2, axis=1))
        np.testing.assert_allclose(np.delete(Z, 2, axis=1), wanted, atol=1e-9)
    np.testing.assert_allclose(model.inverse_transform(Z), X, atol=1e-9)
    few = kind(regularization=regularization).fit(_rows()[:3])  # two directions vary
    assert abs(few.transform(_rows()[:3])).max() < 2
    for shape in ((4, 3), (60, 6)):  # of 60, the mean is off by rounding
        flat = kind(regularization=regularization).fit(np.full(shape, 0.1))
        assert abs(flat.transform(np.full(shape, 0.1))).max() < 1e-9
    with pytest.raises(ValueError, match="regularization must be >= 0 and finite, got None"):
        kind(regularization=None).fit(X)


def test_parts_add_up_to_the_whole() -> None:
    """Also far from zero, where sums of squares would lose all digits: 1e8² · 2e-16 = 2."""
    X = _rows() + 1e8
    parts = ZCA()
    for part in np.array_split(X, [1, 50, 120]):
        parts.partial_fit(part)
    whole = ZCA().fit(X)
    assert parts.n_samples_seen_ == 200
    exact = np.cov((X - 1e8).T)  # differences of close numbers are exact
    # Means are known to 1e8 · ε, a millionth of the smallest deviation.
    for model in (parts, whole):
        np.testing.assert_allclose(model.covariance_, exact, atol=1e-6 * abs(exact).max())
        np.testing.assert_allclose(model.mean_, X.mean(axis=0), rtol=1e-14)
    with sklearn.config_context(working_memory=1e-3):
        np.testing.assert_allclose(ZCA().fit(X).components_, whole.components_, rtol=1e-6)
    refitted = parts.fit(X[:50])
    assert refitted.n_samples_seen_ == 50


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ZCA(-1), "regularization must be >= 0"),
        (ZCA(np.nan), "regularization must be >= 0"),
        (PCAWhitening(7), "from 1 to the 6 features, got 7"),
        (PCAWhitening(0), "from 1 to the 6 features, got 0"),
        (ContrastNormalize(-0.1), "regularization must be >= 0"),
        (Jitter((2, 2)), r"as many pixels as rows have features, 6; got \(2, 2\)"),
        (Jitter(6), r"must be \(h, w\)"),
        (Jitter((2, 3), max_shift=-1), "max_shift must be an int >= 0"),
        (Jitter((2, 3), padding="wrap"), "padding must be 'constant' or 'edge'"),
    ],
)
def test_bad_settings_are_named(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.fit(_rows())


def test_the_wrong_number_of_codes_is_named() -> None:
    with pytest.raises(ValueError, match=r"inverts rows of shape \(n, 3\)"):
        PCAWhitening(3).fit(_rows()).inverse_transform(_rows())


# ---------------------------------------------------------------- contrast


def test_contrast_is_its_formula() -> None:
    X = _rows()
    model = ContrastNormalize(0.05).fit(X)
    epsilon = 0.05 * X.var(axis=1).mean()
    assert model.epsilon_ == pytest.approx(epsilon)
    wanted = (X - X.mean(axis=1)[:, None]) / np.sqrt(X.var(axis=1) + epsilon)[:, None]
    np.testing.assert_allclose(model.transform(X), wanted, atol=1e-13)
    assert not hasattr(model, "inverse_transform")


def test_the_scale_of_grey_values_does_not_matter() -> None:
    X = np.random.default_rng(0).random((50, 9))
    small, large = ContrastNormalize(), ContrastNormalize()
    # Equal but for the rounding of 255 x, which differences from the mean see in full.
    np.testing.assert_allclose(small.fit_transform(X), large.fit_transform(255 * X), atol=1e-13)
    bytes_ = (255 * X).astype(np.uint8)
    assert large.fit_transform(bytes_).dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("regularization", [0.0, 0.01])
def test_rows_without_contrast_become_zero(dtype: Any, regularization: float) -> None:
    """Their mean is off by a rounding, which must not be divided by itself."""
    X = np.concatenate([np.full((3, 7), 0.1), np.zeros((1, 7)), np.full((1, 7), 1e5 / 3)])
    X = np.concatenate([X, np.random.default_rng(0).random((5, 7))]).astype(dtype)
    Z = ContrastNormalize(regularization).fit_transform(X)
    # With ε > 0 what is left of them is 0 as well.
    np.testing.assert_array_equal(Z[:5], 0)
    assert (abs(Z[5:]).max(axis=1) > 0.5).all()


def test_the_mean_of_bright_rows_leaves_no_direction() -> None:
    """Two roundings of half a digit of each entry, whose mean size is below 1; a mean rounded as
    it is subtracted is off by twenty times that, which a whitening without ε scales to 1."""
    X = (120 + 3 * np.random.default_rng(0).standard_normal((2000, 36))).astype(np.float32)
    Z = ContrastNormalize().fit_transform(X)
    assert abs(Z.mean(axis=1, dtype=np.float64)).max() <= np.finfo(np.float32).eps
    variance = PCAWhitening().fit_transform(Z).var(axis=0)
    np.testing.assert_allclose(variance[:-1], 1, rtol=1e-3)
    assert variance[-1] == 0


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_local_contrast_is_its_formula(channels: int | None) -> None:
    """A window in two dimensions, by scipy; weights beyond the edge count for nothing."""
    rng = np.random.default_rng(0)
    x = rng.random((2, 11, 13) if channels is None else (2, 11, 13, channels)) * 9 + 3
    found = LocalContrastNormalize(1.5).fit_transform(x)
    axis = np.arange(-3, 4)  # ⌈2 · 1.5⌉ = 3
    w = np.exp(-0.5 * (axis[:, None] ** 2 + axis**2) / 1.5**2)
    inside = nd_correlate(np.ones((11, 13)), w, mode="constant")

    def mean(image: np.ndarray) -> np.ndarray:
        return nd_correlate(image.mean(axis=2), w, mode="constant")[:, :, None] / inside[:, :, None]

    for image, ours in zip(x.reshape(2, 11, 13, -1), found.reshape(2, 11, 13, -1), strict=True):
        v = image - mean(image)
        sigma = np.sqrt(mean(v**2))
        np.testing.assert_allclose(ours, v / np.maximum(sigma, sigma.mean()), atol=1e-12)
    again = LocalContrastNormalize(1.5).fit_transform(100 * x)
    np.testing.assert_allclose(again, found, atol=1e-11)


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("shape", [(16, 16), (11, 14)])
def test_frequencies_are_weighed_by_their_filter(shape, channels: int | None) -> None:
    """A wave comes out R(f) times as large, for every wave that fits; the mean goes."""
    h, w = shape
    y, x = np.mgrid[:h, :w]
    for down, across in ((0, 1), (2, 0), (3, 2), (1, -4)):
        f = np.hypot(down / h, across / w)
        wave = np.cos(2 * np.pi * (down * y / h + across * x / w) + 0.3)
        images = (
            (5 + wave)[None] if channels is None else np.repeat(wave[None, ..., None], channels, 3)
        )
        model = FrequencyWhitening(0.3).fit(images)
        gain = f * np.exp(-((f / 0.3) ** 4))
        found = model.transform(images)
        assert found.shape == images.shape
        np.testing.assert_allclose(found.var(), 1, rtol=1e-9)
        plain = images - images.mean()
        np.testing.assert_allclose(found * model.scale_, gain * plain, atol=1e-12)
    # Any size goes in; the number of channels stays.
    assert model.transform(images[:, :7, :5]).shape[1:3] == (7, 5)
    with pytest.raises(ValueError, match=r"was fitted to images with \d channel"):
        model.transform(np.zeros((1, 5, 5, 2)))
    with pytest.raises(ValueError, match="cutoff must lie in"):
        FrequencyWhitening(0.8).fit(images)
    for shape in ((1, 6, 6), (20, 12, 10)):
        assert abs(FrequencyWhitening().fit_transform(np.full(shape, 0.3))).max() < 1e-12


def test_flat_patches_are_left_out_and_counted(caplog) -> None:
    rng = np.random.default_rng(0)
    images = np.full((2, 8, 8), 0.1)
    images[0, :, 4:] += rng.standard_normal((8, 4))
    images[1, :, 4:] += 0.1 * rng.standard_normal((8, 4))
    every = PatchExtractor(4, stride=4).fit_transform(images)
    with caplog.at_level("INFO", "energyscape"):
        varied = PatchExtractor(4, stride=4, flat=0.0).fit_transform(images)
        strong = PatchExtractor(4, stride=4, flat=0.1).fit_transform(images)
    np.testing.assert_array_equal(varied, every[[1, 3, 5, 7]])
    np.testing.assert_array_equal(strong, every[[1, 3]])
    assert "left out 4 flat patches of 8" in caplog.text
    assert "left out 6 flat patches of 8" in caplog.text
    few = PatchExtractor(4, 50, flat=0.0, random_state=0).fit_transform(images)
    assert 0 < len(few) < 50 and (few.std(axis=1) > 0).all()
    assert not hasattr(PatchExtractor(4, flat=0.1), "inverse_transform")
    with pytest.raises(ValueError, match=r"flat must lie in \[0, 1\)"):
        PatchExtractor(4, flat=1.0).fit(images)


def test_local_contrast_of_flat_images_is_none() -> None:
    """Rounding over √ε of the brightness: 1e-8 and a few."""
    flat = np.full((2, 9, 9), 0.1) * [[[1]], [[0]]]
    found = LocalContrastNormalize().fit_transform(flat)
    assert abs(found).max() < 1e-6
    with pytest.raises(ValueError, match="sigma must be > 0"):
        LocalContrastNormalize(0).fit(flat)
    with pytest.raises(ValueError, match=r"fitted to images of shape \(9, 9\)"):
        LocalContrastNormalize().fit(flat).transform(flat[:, :8])


# ---------------------------------------------------------------- patches


@pytest.mark.parametrize("shape", [(3, 6, 5), (3, 6, 5, 1), (3, 6, 5, 2)])
def test_all_patches_are_scikit_learns(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).random(shape)
    found = PatchExtractor((3, 2)).fit_transform(images)
    wanted = [extract_patches_2d(image, (3, 2)).reshape(4 * 4, -1) for image in images]
    np.testing.assert_array_equal(found, np.concatenate(wanted))


@pytest.mark.parametrize(("size", "stride"), [(3, 1), ((2, 3), (2, 1)), (2, 2), ((6, 5), 1)])
def test_images_come_back_from_patches(size: Any, stride: Any) -> None:
    images = np.random.default_rng(0).random((3, 6, 6 if stride == 2 else 5, 2))
    extractor = PatchExtractor(size, stride=stride).fit(images)
    rows = extractor.transform(images)
    np.testing.assert_allclose(extractor.inverse_transform(rows), images, atol=1e-15)
    grey = PatchExtractor(size, stride=stride).fit(images[..., 0])
    back = grey.inverse_transform(grey.transform(images[..., 0]).astype(np.float32))
    assert back.shape == images.shape[:3] and back.dtype == np.float32


def test_overlaps_are_averaged() -> None:
    rows = np.random.default_rng(0).random((4 * 3, 9))
    extractor = PatchExtractor(3).fit(np.zeros((1, 6, 5)))
    wanted = reconstruct_from_patches_2d(rows.reshape(-1, 3, 3), (6, 5))
    np.testing.assert_allclose(extractor.inverse_transform(rows)[0], wanted, atol=1e-15)


def test_what_cannot_be_put_together_is_named() -> None:
    images = np.zeros((2, 6, 5))
    with pytest.raises(ValueError, match="leave out pixels of images of 6×5"):
        PatchExtractor(2, stride=2).fit(images).inverse_transform(np.zeros((6, 4)))
    with pytest.raises(ValueError, match="leave out pixels"):
        PatchExtractor(1, stride=5).fit(np.zeros((2, 6, 6))).inverse_transform(np.zeros((4, 1)))
    with pytest.raises(ValueError, match="have 12 patches of 9 values each"):
        PatchExtractor(3).fit(images).inverse_transform(np.zeros((13, 9)))
    with pytest.raises(ValueError, match="unequal sizes"):
        several = [np.zeros((6, 5)), np.zeros((5, 6))]
        PatchExtractor(3).fit(several).inverse_transform(np.zeros((12, 9)))
    assert not hasattr(PatchExtractor(3, n_patches=5), "inverse_transform")


def _numbered(*shapes: tuple[int, int]) -> list[np.ndarray]:
    """Images whose pixels have numbers of their own, so that a patch tells where it is from."""
    ends = np.cumsum([0, *(h * w for h, w in shapes)])
    return [
        np.arange(a, a + h * w, dtype=float).reshape(h, w)
        for a, (h, w) in zip(ends, shapes, strict=False)
    ]


@pytest.mark.parametrize("kind", ["array", "list"])
def test_random_patches_are_uniform_over_images_and_places(kind: str) -> None:
    """χ² of the counts of all places, at 1e-6; a biased draw, the control, fails."""
    images = (
        _numbered((4, 5), (4, 5), (4, 5)) if kind == "array" else _numbered((4, 5), (7, 3), (3, 3))
    )
    X = np.stack(images) if kind == "array" else images
    all_ = PatchExtractor((3, 2)).fit_transform(X)
    extractor = PatchExtractor((3, 2), n_patches=20_000, random_state=0).fit(X)
    rows = extractor.transform(X)
    known = {tuple(row): i for i, row in enumerate(all_)}
    count = np.bincount([known[tuple(row)] for row in rows], minlength=len(all_))
    np.testing.assert_array_equal(extractor.transform(X), rows)

    def misfit(count: np.ndarray) -> float:
        return float(((count - count.mean()) ** 2 / count.mean()).sum())

    assert misfit(count) < chi2.isf(1e-6, len(all_) - 1)
    biased = np.bincount(np.arange(20_000) % (len(all_) - 1), minlength=len(all_))
    assert misfit(biased) > chi2.isf(1e-6, len(all_) - 1)
    # In random order, not by image: the first half is from all images, too.
    first = np.bincount([known[tuple(row)] for row in rows[:10_000]], minlength=len(all_))
    assert misfit(first) < chi2.isf(1e-6, len(all_) - 1)


def test_images_of_unequal_sizes() -> None:
    images = _numbered((4, 5), (7, 3), (3, 3))
    rows = PatchExtractor(3).fit_transform(images)
    wanted = [PatchExtractor(3).fit_transform(image[None]) for image in images]
    np.testing.assert_array_equal(rows, np.concatenate(wanted))
    bytes_ = [image.astype(np.uint8) for image in images]
    assert PatchExtractor(3, 7, random_state=0).fit_transform(bytes_).dtype == np.float32
    with pytest.raises(ValueError, match=r"patches of 4×4 .* got an image of shape \(7, 3\)"):
        PatchExtractor(4).fit(images)
    with pytest.raises(ValueError, match=r"with 1 channel\(s\), got an image of shape \(7, 5, 3\)"):
        PatchExtractor(3).fit(images).transform([np.zeros((7, 5, 3))])
    equal = PatchExtractor(2).fit([np.eye(3), np.ones((3, 3))])
    assert equal.inverse_transform(np.ones((8, 4))).shape == (2, 3, 3)


def test_stored_images_give_the_same_patches(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((20, 6, 5))
    stored = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float64, images.shape)
    stored[:] = images
    for n in (None, 9):
        extractor = PatchExtractor(3, n, random_state=0)
        np.testing.assert_array_equal(
            extractor.fit_transform(stored), extractor.fit_transform(images)
        )


# ---------------------------------------------------------------- jitter


@pytest.mark.parametrize("padding", ["constant", "edge"])
@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3)])
def test_jitter_is_a_shift_of_the_padded_image(shape: tuple[int, ...], padding: str) -> None:
    x = np.random.default_rng(0).random((200, math.prod(shape)))
    jitter = Jitter(shape, max_shift=2, padding=padding)
    rng = stream(0, Purpose.TRANSFORM)
    moved = jitter(x, rng)
    shifts = jitter._shifts(200, stream(0, Purpose.TRANSFORM))
    assert {tuple(s) for s in shifts.T} == {(a, b) for a in range(-2, 3) for b in range(-2, 3)}
    margin = [(2, 2), (2, 2), (0, 0)][: len(shape)]
    for row, found, (down, across) in zip(x, moved, shifts.T, strict=True):
        image = np.pad(row.reshape(shape), margin, mode=padding)  # type: ignore[call-overload]
        wanted = image[2 - down : 2 - down + shape[0], 2 - across : 2 - across + shape[1]]
        np.testing.assert_array_equal(found.reshape(shape), wanted)
    assert abs(jitter(x, rng) - moved).max() > 0.1  # the stream goes on


def test_all_shifts_are_as_likely() -> None:
    """χ² over 25 shifts of 25,000 draws, at 1e-6; shifts rounded from uniforms fail."""
    jitter, n = Jitter((9, 9), max_shift=2), 25_000
    shifts = jitter._shifts(n, stream(1, Purpose.TRANSFORM))
    u = np.random.default_rng(0).random((2, n))

    def misfit(shifts: np.ndarray) -> float:
        count = np.bincount((shifts[0] + 2) * 5 + shifts[1] + 2, minlength=25)
        return float(((count - n / 25) ** 2 / (n / 25)).sum())

    assert misfit(shifts) < chi2.isf(1e-6, 24)
    assert misfit(np.round(4 * u - 2).astype(int)) > chi2.isf(1e-6, 24)


def test_jitter_serves_a_trainer() -> None:
    X, _ = load_digits()
    jitter = Jitter((8, 8), random_state=0)
    trainer = PCD(n_epochs=1, n_chains=10, batch_transform=jitter)
    plain = RBM(3, trainer=PCD(n_epochs=1, n_chains=10), random_state=0).fit(X[:200])
    moved = RBM(3, trainer=trainer, random_state=0).fit(X[:200])
    assert abs(moved.components_ - plain.components_).max() > 0
    with pytest.raises(ValueError, match="rows have features, 64"):
        clone(moved).set_params(trainer__batch_transform__image_shape=(7, 8)).fit(X[:200])


def test_transform_repeats_its_shifts() -> None:
    X = _rows()
    jitter = Jitter((2, 3), random_state=0).fit(X)
    np.testing.assert_array_equal(jitter.transform(X), jitter.transform(X))
    assert (jitter.transform(X) != Jitter((2, 3), random_state=1).fit_transform(X)).any()
    np.testing.assert_array_equal(Jitter((2, 3), max_shift=0).fit_transform(X), X)
    float32 = jitter.transform(X.astype(np.float32))
    assert float32.dtype == np.float32
    np.testing.assert_array_equal(float32, jitter.transform(X).astype(np.float32))


# ---------------------------------------------------------------- what all share


@pytest.mark.parametrize("model", ROWS, ids=repr)
def test_containers_and_dtypes_are_kept(model: Any, cupy: Any) -> None:
    """Device and host share the numbers of Jitter only on the stand-in, by a replayed stream."""
    X = _rows()
    kept = X.copy()
    for dtype in (np.float32, np.float64):
        host = clone(model).fit(X.astype(dtype))
        device = clone(model).fit(cupy.asarray(X.astype(dtype)))
        wanted, found = (
            host.transform(X.astype(dtype)),
            device.transform(cupy.asarray(X.astype(dtype))),
        )
        assert wanted.dtype == found.dtype == dtype and isinstance(found, cupy.ndarray)
        if isinstance(model, Jitter):
            a = model(X.astype(dtype), ReplayStream(np))
            standin.Counter.syncs = 0
            b = model(cupy.asarray(X.astype(dtype)), ReplayStream(cupy))
            assert standin.Counter.syncs == 0
            np.testing.assert_array_equal(to_host(b), a)
            continue
        # Maps of condition 1e3 at most.
        tolerance = 1e5 * np.finfo(dtype).eps
        np.testing.assert_allclose(to_host(found), wanted, atol=tolerance)
        # Fitted there, used here.
        here = pickle.loads(pickle.dumps(device))
        assert not any(isinstance(value, cupy.ndarray) for value in vars(here).values())
        np.testing.assert_allclose(here.transform(X.astype(dtype)), wanted, atol=tolerance)
        if hasattr(model, "inverse_transform"):
            back = device.inverse_transform(found)
            assert isinstance(back, cupy.ndarray)
            np.testing.assert_allclose(
                to_host(back), host.inverse_transform(wanted), atol=100 * tolerance
            )
            device.partial_fit(X.astype(dtype))  # goes on with rows of the host
            twice = host.partial_fit(X.astype(dtype)).covariance_
            np.testing.assert_allclose(device.covariance_, twice, rtol=1e-9)
    np.testing.assert_array_equal(X, kept)


def test_images_on_both_kinds_of_arrays(cupy: Any) -> None:
    images = np.random.default_rng(0).random((4, 6, 5, 2))
    models = [
        LocalContrastNormalize(1.0),
        PatchExtractor(3),
        FrequencyWhitening(),
        PatchExtractor(3, flat=0.5),
        PatchExtractor(3, n_patches=11, random_state=0),
    ]
    for model in models:
        wanted = model.fit_transform(images)
        found = model.fit_transform(cupy.asarray(images))
        assert isinstance(found, cupy.ndarray)
        np.testing.assert_allclose(to_host(found), wanted, atol=1e-12)
        kept = model.transform(images.astype(np.float32))
        assert kept.dtype == np.float32
        np.testing.assert_allclose(kept, wanted, atol=1e-5)
    rows = models[1].fit(images).transform(cupy.asarray(images))
    np.testing.assert_allclose(to_host(models[1].inverse_transform(rows)), images, atol=1e-15)
    several = [cupy.asarray(images[0]), cupy.asarray(images[1][:4])]
    assert PatchExtractor(3, 7).fit_transform(several).shape == (7, 18)


@pytest.mark.parametrize("model", ROWS, ids=repr)
def test_files_hold_all(model: Any, tmp_path: Path) -> None:
    X = _rows()
    fitted = clone(model).fit(X)
    fitted.save(tmp_path / "one.h5")
    loaded = energyscape.load(tmp_path / "one.h5")
    np.testing.assert_array_equal(loaded.transform(X), fitted.transform(X))
    assert repr(loaded) == repr(model) and loaded.n_features_in_ == 6
    whole = make_pipeline(clone(model), RBM(3, trainer=PCD(n_epochs=1), random_state=0))
    with pytest.warns(energyscape.errors.DataRangeWarning):
        whole.fit(X)
    energyscape.save(whole, tmp_path / "two.h5")
    np.testing.assert_array_equal(
        energyscape.load(tmp_path / "two.h5").transform(X), whole.transform(X)
    )


def test_files_of_image_transformers(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((4, 6, 5, 2))
    for model in (PatchExtractor(3, 7, random_state=0), LocalContrastNormalize()):
        fitted = model.fit(images)
        fitted.save(tmp_path / "x.h5")
        loaded = energyscape.load(tmp_path / "x.h5")
        np.testing.assert_array_equal(loaded.transform(images), fitted.transform(images))
        assert loaded.image_shape_ == (6, 5, 2)


def test_a_forged_file_sets_fitted_attributes_only() -> None:
    with pytest.raises(energyscape.errors.FileFormatError, match="'fit' is no fitted attribute"):
        ZCA().set_file_state({"fitted": {"fit": 1}}, {})


def test_data_frames_keep_their_names() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(_rows(), columns=list("abcdef"))
    out = ZCA().set_output(transform="pandas").fit_transform(frame)
    assert list(out.columns) == list("abcdef")
    out = PCAWhitening(2).set_output(transform="pandas").fit_transform(frame)
    assert list(out.columns) == ["pcawhitening0", "pcawhitening1"]


# ---------------------------------------------------------------- files


def _needs(folder: str) -> None:
    if not (data_home() / folder).is_dir():
        pytest.skip(f"no {folder} in {data_home()}")


def test_faces_are_upright() -> None:
    _needs("olivetti")
    images, y = load_olivetti()
    assert images.shape == (400, 64, 64) and images.dtype == np.uint8
    assert np.bincount(y).tolist() == [10] * 40
    # Faces are symmetric left to right, not top to bottom.
    mean = images.mean(axis=0)
    assert abs(mean - mean[:, ::-1]).mean() < 0.5 * abs(mean - mean[::-1]).mean()
    # Images of one person are nearer than those of others.
    X = images[:, ::4, ::4].reshape(400, -1).astype(np.float64)
    own = np.array([X[y == k].mean(axis=0) for k in range(40)])
    assert (((X[:, None] - own[None]) ** 2).sum(axis=2).argmin(axis=1) == y).mean() > 0.9


def test_cifar_is_in_order() -> None:
    _needs("cifar10_subset")
    X, y = load_cifar10()
    assert X.shape == (4000, 32, 32, 3) and X.dtype == np.uint8 and y.dtype == np.int64
    # The first labels of data_batch_1 and of test_batch: frog, truck, truck; cat, ship, ship.
    assert y[:3].tolist() == [6, 9, 9] and load_cifar10("test")[1][:3].tolist() == [3, 8, 8]
    assert X.reshape(-1, 3).mean(axis=0) == pytest.approx([125.3, 123.0, 113.9], abs=3)
    with pytest.raises(ValueError, match="subset must be"):
        load_cifar10("all")


def test_silhouettes_are_objects_on_an_empty_ground() -> None:
    _needs("caltech101_silhouettes")
    X, y = load_silhouettes()
    assert X.shape == (8671, 28, 28) and set(np.unique(X)) == {0, 1}
    assert (y.min(), y.max()) == (0, 100)
    assert X[:, 13:15, 13:15].mean() > 0.8 > 0.5 > X[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean()
    # Class 0, airplanes from the side, lie along the rows, with the tail fin above the body.
    plane = X[y == 0].mean(axis=0)
    across, down = plane.mean(axis=1), plane.mean(axis=0)
    assert across.std() > 2 * down.std() and across[14:].mean() > across[:14].mean()


def test_photographs_need_no_download() -> None:
    pytest.importorskip("PIL")
    images = load_photographs()
    assert [image.shape for image in images] == [(427, 640, 3)] * 2
    rows = PatchExtractor(8, 50, random_state=0).fit_transform(images)
    assert rows.shape == (50, 192) and rows.dtype == np.float32


def test_folders_of_images(tmp_path: Path, monkeypatch: Any) -> None:
    Image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    grey, colour = (rng.integers(0, 256, shape).astype(np.uint8) for shape in [(5, 4), (3, 6, 3)])
    folder = tmp_path / "set"
    folder.mkdir()
    Image.fromarray(colour).save(folder / "b.PNG")
    Image.fromarray(grey).save(folder / "a.png")
    np.savez(folder / "set_gray.npz", a=grey)
    found = load_images(folder)
    np.testing.assert_array_equal(found[0], grey)
    np.testing.assert_array_equal(found[1], colour)
    monkeypatch.setenv("ENERGYSCAPE_DATA", str(tmp_path))
    assert len(load_images("set")) == 2
    assert len(load_images("set/set_gray.npz")) == 1
    (folder / "c.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"c\.png cannot be read"):
        load_images("set")
    for file in folder.glob("*.[pP][nN][gG]"):
        file.unlink()
    np.testing.assert_array_equal(load_images("set")[0], grey)
    (folder / "set_gray.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"set_gray\.npz cannot be read"):
        load_images("set")
    (folder / "set_gray.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"0 \.npz files"):
        load_images("set")
    with pytest.raises(FileNotFoundError, match="neither here nor in"):
        load_images("absent")


def test_pillow_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL", None)
    for call in (load_photographs, lambda: load_images(tmp_path)):
        with pytest.raises(ImportError, match=r"energyscape\[images\]"):
            call()


def test_missing_and_damaged_sets_are_named(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("ENERGYSCAPE_DATA", str(tmp_path))
    sets = {
        load_olivetti: "olivetti/olivettifaces.mat",
        load_cifar10: "cifar10_subset/cifar10_subset.npz",
        load_silhouettes: "caltech101_silhouettes/caltech101_silhouettes_28.mat",
    }
    for loader, name in sets.items():
        with pytest.raises(FileNotFoundError, match=rf"{Path(name).name} is missing.*ENERGYSCAPE"):
            loader()
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"no such thing" * 50)
        with pytest.raises(ValueError, match=r"cannot be read|is not the part"):
            loader()
    scipy.io.savemat(tmp_path / sets[load_olivetti], {"faces": np.zeros((3, 3))})
    with pytest.raises(ValueError, match=r"should hold arrays of shapes .*\(4096, 400\)"):
        load_olivetti()


def test_deep_grey_images_keep_their_values(tmp_path: Path) -> None:
    Image = pytest.importorskip("PIL.Image")
    deep = (np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    (found,) = load_images(tmp_path)
    np.testing.assert_array_equal(found, deep)


def test_patches_of_unlike_images_have_one_dtype() -> None:
    grey, real = np.ones((9, 9), np.uint8), np.full((9, 9), 1e300)
    for images in ([grey, real], [real, grey]):
        rows = PatchExtractor(3, 20, random_state=0).fit_transform(images)
        assert rows.dtype == np.float64 and np.isfinite(rows).all()
