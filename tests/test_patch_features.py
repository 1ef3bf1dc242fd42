"""Encoders are their formulas, and features of images those of a loop over patches."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn
import standin
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import KBinsDiscretizer, StandardScaler

import energyscape
from energyscape.backend import to_host
from energyscape.data import (
    ZCA,
    ContrastNormalize,
    Hard,
    PatchFeatures,
    PCAWhitening,
    SoftThreshold,
    Triangle,
)
from energyscape.data.encoders import dictionary_of
from energyscape.models import RBM
from energyscape.trainers import PCD

IMAGES = np.random.default_rng(0).random((7, 9, 8, 2))


def _kmeans(k: int = 5) -> KMeans:
    return KMeans(k, n_init=1, max_iter=10, random_state=0)


# ---------------------------------------------------------------- encoders


def _inputs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((50, 6)), rng.standard_normal((9, 6)) * 0.7


def test_triangle_is_its_formula() -> None:
    """Distances of order 1 from squares of order 10: 1e-15 · 10 / 1, with a factor to spare."""
    z, D = _inputs()
    distance = cdist(z, D)
    wanted = np.maximum(0, distance.mean(axis=1, keepdims=True) - distance)
    found = Triangle()(z, D)
    np.testing.assert_allclose(found, wanted, atol=1e-13)
    assert 0.3 < (found == 0).mean() < 0.7
    # A negative control: squared distances make another code.
    squared = np.maximum(0, (distance**2).mean(axis=1, keepdims=True) - distance**2)
    assert abs(found - squared).max() > 0.1


@pytest.mark.parametrize("offset", [0, 100, 10_000])
def test_distances_far_from_zero(offset: float) -> None:
    """Squares about 0 would cancel in float32, below 0 where a row is in the dictionary."""
    rng = np.random.default_rng(0)
    D = (offset + rng.standard_normal((40, 6))).astype(np.float32)
    z = np.concatenate([D, (offset + rng.standard_normal((30, 6))).astype(np.float32)])
    distance = cdist(z.astype(np.float64), D.astype(np.float64))
    wanted = np.maximum(0, distance.mean(axis=1, keepdims=True) - distance)
    # Rounding of squares, 1e-6, is 1e-3 under the root where the distance is 0.
    np.testing.assert_allclose(Triangle()(z, D), wanted, atol=2e-3)
    np.testing.assert_array_equal(Hard()(z, D).argmax(axis=1), distance.argmin(axis=1))


def test_hard_is_the_nearest() -> None:
    z, D = _inputs()
    found = Hard()(z, D)
    np.testing.assert_array_equal(found, np.eye(9)[cdist(z, D).argmin(axis=1)])
    # Not the largest response: rows of the dictionary have unequal norms.
    assert (found.argmax(axis=1) != (z @ D.T).argmax(axis=1)).any()
    equal = Hard()(z, np.concatenate([D, D]))
    assert (equal.sum(axis=1) == 1).all() and not equal[:, 9:].any()


def test_soft_threshold_is_its_formula() -> None:
    z, D = _inputs()
    positive = np.maximum(0, z @ D.T - 0.25)
    np.testing.assert_allclose(SoftThreshold()(z, D), positive, atol=1e-14)
    both = SoftThreshold(0.5, split=True)(z, D)
    wanted = np.hstack([np.maximum(0, z @ D.T - 0.5), np.maximum(0, -z @ D.T - 0.5)])
    np.testing.assert_allclose(both, wanted, atol=1e-14)


@pytest.mark.parametrize(
    "encoder", [Hard(), Triangle(), SoftThreshold(), SoftThreshold(split=True)]
)
def test_encoders_keep_containers_and_dtypes(encoder: Any, cupy: Any) -> None:
    z, D = _inputs()
    kept = z.copy(), D.copy()
    for dtype in (np.float32, np.float64):
        host = encoder(z.astype(dtype), D)
        standin.Counter.syncs = 0
        device = encoder(cupy.asarray(z.astype(dtype)), cupy.asarray(D))
        assert standin.Counter.syncs == 0
        assert host.dtype == device.dtype == dtype and isinstance(device, cupy.ndarray)
        np.testing.assert_allclose(to_host(device), host, atol=100 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(z, kept[0])
    np.testing.assert_array_equal(D, kept[1])
    assert repr(clone(encoder)) == repr(encoder)
    with pytest.raises(ValueError, match="rows of 5 values, z of 6"):
        encoder(z, D[:, :5])


def test_a_model_without_a_dictionary_is_refused() -> None:
    features = PatchFeatures(StandardScaler(), patch=3, encoder=Triangle(), n_patches=20)
    with pytest.raises(ValueError, match="StandardScaler has neither; use encoder=None"):
        features.fit(IMAGES)
    fitted = KMeans(2, n_init=1).fit(np.eye(4))
    assert dictionary_of(fitted) is fitted.cluster_centers_


# ---------------------------------------------------------------- features of images


def _by_loop(features: PatchFeatures, images: np.ndarray) -> np.ndarray:
    """Patch by patch and region by region, from the words of the documentation."""
    ph, stride, g = features.patch, features.stride, features.pool
    out = []
    for image in images:
        h, w = image.shape[:2]
        places = [range(0, n - ph + 1, stride) for n in (h, w)]
        regions: dict[tuple[int, int], list[np.ndarray]] = {}
        for i, r in enumerate(places[0]):
            for j, c in enumerate(places[1]):
                row = image[r : r + ph, c : c + ph].reshape(1, -1)
                if features.encoder is None:
                    code = features.model_.transform(row)
                else:
                    steps = [s for _, s in features.model_.steps]
                    for step in steps[:-1]:
                        row = step.transform(row)
                    code = features.encoder(row, steps[-1].cluster_centers_)
                where = tuple(
                    sum(k >= np.floor(e * len(p) / g + 0.5) for e in range(1, g))
                    for k, p in zip((i, j), places, strict=True)
                )
                regions.setdefault(where, []).append(code[0])
        reduce = getattr(np, features.pooling)
        order = [(a, b) for a in range(g) for b in range(g)]
        out.append(np.concatenate([reduce(regions[at], axis=0) for at in order]))
    return np.array(out)


@pytest.mark.parametrize("pooling", ["sum", "mean", "max"])
@pytest.mark.parametrize(("stride", "pool"), [(1, 2), (2, 3), (3, 1)])
def test_features_are_those_of_a_loop(stride: int, pool: int, pooling: str) -> None:
    model = make_pipeline(ContrastNormalize(), ZCA(), _kmeans())
    features = PatchFeatures(
        model, 3, stride, pool, pooling, Triangle(), n_patches=60, random_state=0
    )
    found = features.fit_transform(IMAGES)
    assert found.shape == (7, pool * pool * 5) and not hasattr(model[-1], "cluster_centers_")
    np.testing.assert_allclose(found, _by_loop(features, IMAGES), atol=1e-12)
    names = features.get_feature_names_out()
    assert len(names) == found.shape[1] and names[0] == "patchfeatures0"


def test_without_an_encoder_it_is_the_models_transform() -> None:
    features = PatchFeatures(make_pipeline(PCA(3)), 3, n_patches=60, random_state=0).fit(IMAGES)
    wanted = _by_loop(features, IMAGES)
    np.testing.assert_allclose(features.transform(IMAGES), wanted, atol=1e-12)
    bare = PatchFeatures(PCA(3), 3, n_patches=60, random_state=0).fit(IMAGES)
    np.testing.assert_allclose(bare.transform(IMAGES), wanted, atol=1e-12)


def test_a_model_of_the_library_is_as_good_as_one_of_scikit_learn() -> None:
    grey = (load_digits().images / 16).astype(np.float32)[:40]
    rbm = RBM(4, trainer=PCD(n_epochs=1, n_chains=10), random_state=0)
    found = PatchFeatures(rbm, 4, n_patches=200, random_state=0).fit_transform(grey)
    assert found.shape == (40, 16) and found.dtype == np.float32
    encoded = PatchFeatures(rbm, 4, encoder=SoftThreshold(), n_patches=200, random_state=0)
    assert encoded.fit_transform(grey).shape == (40, 16)


def test_blocks_do_not_matter() -> None:
    model = make_pipeline(ZCA(), _kmeans())
    features = PatchFeatures(model, 3, encoder=Triangle(), n_patches=60, random_state=0).fit(IMAGES)
    whole = features.transform(IMAGES)
    with sklearn.config_context(working_memory=0.01):  # one image at a time
        # Products of other shapes add in another order.
        np.testing.assert_allclose(features.transform(IMAGES), whole, rtol=1e-12)
    one_by_one = [features.transform(image[None])[0] for image in IMAGES]
    np.testing.assert_allclose(one_by_one, whole, rtol=1e-12)


def test_grey_images_need_no_channel_axis() -> None:
    grey = IMAGES[..., 0]
    features = PatchFeatures(_kmeans(), 3, encoder=Hard(), n_patches=60, random_state=0)
    flat, deep = features.fit_transform(grey), features.fit_transform(grey[..., None])
    np.testing.assert_array_equal(flat, deep)
    assert (flat.sum(axis=1) == 7 * 6).all()  # one vote a place


def test_integers_are_computed_in_float32() -> None:
    bytes_ = (IMAGES * 255).astype(np.uint8)
    features = PatchFeatures(PCAWhitening(3), 3, n_patches=60, random_state=0)
    found = features.fit_transform(bytes_)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, features.fit_transform(bytes_.astype(np.float32)))


def test_stored_images_are_read_by_blocks(tmp_path: Path) -> None:
    stored = np.lib.format.open_memmap(
        tmp_path / "x.npy", mode="w+", dtype=np.float64, shape=IMAGES.shape
    )
    stored[:] = IMAGES
    features = PatchFeatures(PCAWhitening(3), 3, n_patches=60, random_state=0)
    np.testing.assert_array_equal(features.fit_transform(stored), features.fit_transform(IMAGES))


def test_both_kinds_of_arrays_agree(cupy: Any) -> None:
    """Rounding of float64 through an eigendecomposition of condition ~1e2."""
    model = make_pipeline(ContrastNormalize(), ZCA(), PCAWhitening(4))
    for encoder in (None, Triangle()):
        features = PatchFeatures(model, 3, encoder=encoder, n_patches=60, random_state=0)
        wanted = features.fit_transform(IMAGES)
        found = features.fit_transform(cupy.asarray(IMAGES))
        assert isinstance(found, cupy.ndarray)
        np.testing.assert_allclose(to_host(found), wanted, atol=1e-9)
        again = pickle.loads(pickle.dumps(features))
        np.testing.assert_allclose(again.transform(IMAGES), wanted, atol=1e-9)


@pytest.mark.parametrize("encoder", [None, Triangle(), SoftThreshold(0.5, split=True)])
def test_files_hold_the_model(encoder: Any, tmp_path: Path) -> None:
    """Bit for bit, also inside a pipeline, and with a bare model."""
    for model in (make_pipeline(ContrastNormalize(), ZCA(), PCAWhitening(4)), PCAWhitening(4)):
        features = PatchFeatures(model, 3, encoder=encoder, n_patches=60, random_state=0)
        wanted = features.fit_transform(IMAGES)
        features.save(tmp_path / "features.h5")
        loaded = energyscape.load(tmp_path / "features.h5")
        np.testing.assert_array_equal(loaded.transform(IMAGES), wanted)
        assert isinstance(loaded.model_, Pipeline) == isinstance(model, Pipeline)
        assert repr(clone(loaded)) == repr(clone(features))
        np.testing.assert_array_equal(loaded.fit_transform(IMAGES), wanted)
        whole = make_pipeline(features, ContrastNormalize()).fit(IMAGES)
        energyscape.save(whole, tmp_path / "whole.h5")
        np.testing.assert_array_equal(
            energyscape.load(tmp_path / "whole.h5").transform(IMAGES), whole.transform(IMAGES)
        )


def test_what_files_cannot_hold_is_refused(tmp_path: Path) -> None:
    features = PatchFeatures(make_pipeline(ZCA(), _kmeans()), 3, n_patches=60, random_state=0)
    with pytest.raises(TypeError, match="KMeans cannot be saved"):
        features.fit(IMAGES).save(tmp_path / "x.h5")


def test_a_file_leads_to_no_cache(tmp_path: Path) -> None:
    """A cache of scikit-learn's holds pickles, which run code when they are read."""
    inner = Pipeline([("zca", ZCA())], memory=str(tmp_path))
    model = Pipeline([("inner", inner), ("pca", PCAWhitening(4))], memory=str(tmp_path))
    features = PatchFeatures(model, 3, n_patches=60, random_state=0).fit(IMAGES)
    features.save(tmp_path / "x.h5")
    loaded = energyscape.load(tmp_path / "x.h5")
    for held in (loaded.model, loaded.model_):
        assert held.memory is None and held.steps[0][1].memory is None
    np.testing.assert_array_equal(loaded.transform(IMAGES), features.transform(IMAGES))


@pytest.mark.parametrize("encoder", [None, Triangle()])
def test_data_frames_between_steps_change_nothing(encoder: Any) -> None:
    model = make_pipeline(ContrastNormalize(), PCA(4))
    features = PatchFeatures(model, patch=3, encoder=encoder, n_patches=50, random_state=0)
    wanted = features.fit_transform(IMAGES)
    with sklearn.config_context(transform_output="pandas"):
        frame = clone(features).fit_transform(IMAGES)
    assert list(frame.columns[:2]) == ["patchfeatures0", "patchfeatures1"]
    np.testing.assert_array_equal(frame.to_numpy(), wanted)
    inner = clone(features).set_params(model=clone(model).set_output(transform="pandas"))
    np.testing.assert_array_equal(inner.fit_transform(IMAGES), wanted)


def test_what_cannot_be_is_said_in_words() -> None:
    with pytest.raises(ValueError, match=r"an instance such as Triangle\(\)"):
        PatchFeatures(_kmeans(), patch=3, encoder=Triangle, n_patches=50).fit(IMAGES)
    with pytest.raises(ValueError, match="images of one shape"):
        PatchFeatures(_kmeans(), patch=3, n_patches=50).fit([IMAGES[0], IMAGES[1][:5]])


def test_a_model_with_sparse_codes() -> None:
    images = np.random.default_rng(0).random((4, 6, 6))
    dense = KBinsDiscretizer(3, encode="onehot-dense", strategy="uniform")
    found = [
        PatchFeatures(model, patch=2, n_patches=50, random_state=0).fit_transform(images)
        for model in (dense, clone(dense).set_params(encode="onehot"))
    ]
    np.testing.assert_array_equal(*found)
