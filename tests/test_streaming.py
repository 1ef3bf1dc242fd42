"""Models on data that are larger than memory: several files, memory maps and streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from sklearn.base import clone

from energyscape.data import ZCA, Blocks, PatchExtractor
from energyscape.models import (
    PCA,
    RBM,
    ConvSparseCoding,
    FineTunedClassifier,
    GaussianMixture,
    KMeans,
    SiameseEncoder,
    TiledMPoT,
    inputs,
)
from energyscape.models.inputs import deviation, value_range
from energyscape.optim import SGD
from energyscape.sources import StoredRows, StreamedRows, buffered, joined
from energyscape.trainers import EM, PCD

N = 600
BITS = (np.random.default_rng(0).random((N, 9)) < 0.3).astype(np.uint8)


def _file(path: Path, values: np.ndarray) -> Any:
    with h5py.File(path, "w") as file:
        file.create_dataset("X", data=values, chunks=(min(50, len(values)), *values.shape[1:]))
    return h5py.File(path, "r")["X"]


def _map(path: Path, values: np.ndarray) -> Any:
    np.save(path, values)
    return np.load(path.with_suffix(".npy"), mmap_mode="r")


KINDS: dict[str, Any] = {
    "hdf5": lambda folder, values: _file(folder / "x.h5", values),
    "memmap": lambda folder, values: _map(folder / "x", values),
    "pieces": lambda folder, values: [
        _file(folder / "a.h5", values[:97]),
        _map(folder / "b", values[97:98]),
        _file(folder / "c.h5", values[98:]),
    ],
    "blocks": lambda folder, values: Blocks(lambda: iter(np.array_split(values, 7))),
}


@pytest.fixture(params=KINDS)
def kind(request: Any, monkeypatch: Any) -> str:
    """A kind of source; buffers hold 130 rows of BITS."""
    monkeypatch.setattr(buffered, "BUFFER_BYTES", 130 * 9)
    return request.param


class _StopAt:
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, model: Any, state: Any, info: Any) -> bool:
        return state.epoch == self.epoch


@pytest.mark.parametrize("held_out", [0.0, 0.1])
def test_a_resumed_run_equals_the_whole_one(kind: str, held_out: float, tmp_path: Path) -> None:
    X = KINDS[kind](tmp_path, BITS)
    settings = {"n_epochs": 4, "batch_size": 32, "validation_fraction": held_out}
    whole = RBM(4, trainer=PCD(**settings), random_state=0).fit(X)
    stopped = PCD(**settings, callbacks=[_StopAt(2)])
    kept = RBM(4, trainer=stopped, random_state=0).fit(X)
    assert kept.n_iter_ == 2
    kept.set_params(trainer=PCD(**settings)).resume(X)
    assert kept.n_iter_ == 4
    for key, value in whole.params_.items():
        np.testing.assert_array_equal(kept.params_[key], value)
    assert kept.history_["energy_train"] == whole.history_["energy_train"]


def test_what_a_model_says_of_rows_is_what_it_says_of_the_array(kind: str, tmp_path: Path) -> None:
    X = KINDS[kind](tmp_path, BITS)
    (tmp_path / "narrow").mkdir()
    model = RBM(4, trainer=PCD(n_epochs=2), random_state=0)
    codes = model.fit_transform(X)
    assert type(codes) is np.ndarray and codes.dtype == np.float32
    for method in (model.transform, model.energy, model.score_samples, model.reconstruct):
        np.testing.assert_allclose(method(X), method(BITS), rtol=1e-6, atol=1e-6)
    model.partial_fit(X)
    with pytest.raises(ValueError, match="8 features, but RBM is expecting 9"):
        model.transform(KINDS[kind](tmp_path / "narrow", BITS[:, :8]))


def test_sums_over_all_rows_do_not_ask_where_they_are(kind: str, tmp_path: Path) -> None:
    """Closed forms and EM of files equal those of arrays, up to the order of sums in float64."""
    values = np.random.default_rng(0).standard_normal((N, 5)) @ np.diag([5.0, 3, 2, 1, 0.5])
    X = KINDS[kind](tmp_path, values)
    ours, arrays = PCA(2, random_state=0).fit(X), PCA(2, random_state=0).fit(values)
    np.testing.assert_allclose(abs(ours.components_), abs(arrays.components_), atol=1e-10)
    np.testing.assert_allclose(ours.explained_variance_, arrays.explained_variance_)
    np.testing.assert_allclose(
        PCA(2).partial_fit(X).explained_variance_, arrays.explained_variance_
    )
    for model in (KMeans(3, random_state=0), GaussianMixture(2, random_state=0)):
        fitted = model.set_params(trainer=EM(n_epochs=3, tol=1e3)).fit(X)
        np.testing.assert_allclose(fitted.energy(X), fitted.energy(values))
    np.testing.assert_allclose(ZCA().fit(X).transform(X), ZCA().fit(values).transform(values))


def test_labels_come_along(kind: str, tmp_path: Path) -> None:
    """Rows whose first bit is their label are told apart; the labels of other rows would not do."""
    X, y = KINDS[kind](tmp_path, BITS), BITS[:, 0]
    model = FineTunedClassifier(RBM(8, trainer=PCD(n_epochs=1), random_state=0), random_state=0)
    model.set_params(trainer=model.default_trainer().set_params(n_epochs=30))
    assert model.fit(X, y).score(BITS, y) == 1.0
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.fit(X, y[1:])


def test_images_and_clips(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((40, 16, 16)).astype(np.float32)
    X = _small(kind, tmp_path, images)
    model = ConvSparseCoding(3, filter_size=3, random_state=0)
    model.set_params(trainer=EM(n_epochs=1, batch_size=8)).fit(X)
    np.testing.assert_allclose(model.transform(X), model.transform(images), atol=1e-5)
    tiled = TiledMPoT(2, n_mean_components=2, tile=6, random_state=0).partial_fit(X)
    np.testing.assert_allclose(tiled.energy(X), tiled.energy(images), rtol=1e-6)
    if kind != "pieces":  # which takes a list as images of several sizes
        extractor = PatchExtractor(4, n_patches=100, random_state=0)
        patches = extractor.fit_transform(X)
        np.testing.assert_array_equal(patches, extractor.fit_transform(images))
    pairs = rng.standard_normal((40, 2, 6))
    (tmp_path / "pairs").mkdir()
    X = _small(kind, tmp_path / "pairs", pairs)
    siamese = SiameseEncoder(2, random_state=0).partial_fit(X)
    np.testing.assert_allclose(siamese.transform(X), siamese.transform(pairs), atol=1e-10)


def _small(kind: str, folder: Path, values: np.ndarray) -> Any:
    if kind != "pieces":
        return KINDS[kind](folder, values)
    return [_file(folder / "p.h5", values[:15]), _map(folder / "q", values[15:])]


@pytest.mark.parametrize("shape", [(300,), (20, 30), (10, 10, 3)])
def test_the_scale_is_told_from_the_first_rows(
    kind: str, shape: tuple[int, ...], tmp_path: Path, monkeypatch: Any
) -> None:
    """No more than the first 64 MiB of what is computed in are asked for, whatever rows look
    like; the values are those of the array."""
    X = joined(KINDS[kind](tmp_path, np.full((N, *shape), 255, np.uint8)), len(shape) + 1)
    asked = []
    for rows in (StoredRows, StreamedRows):
        take = rows.take
        monkeypatch.setattr(rows, "take", lambda s, w, of=take: asked.append(w) or of(s, w))
    assert value_range(X) == (255.0, 255.0) and deviation(X) == 0.0
    monkeypatch.setattr(inputs, "_SHOWN_BYTES", 4 * 900)
    assert value_range(X) == (255.0, 255.0) and deviation(X) == 0.0
    most = 900 // int(np.prod(shape))
    assert asked[2:] == [slice(0, most), slice(0, most)]


def test_a_fit_on_a_gpu_is_that_of_the_array(kind: str, tmp_path: Path, cupy: Any) -> None:
    """Bit for bit where rows fit a buffer, of which there is one; through two of them, rows are on
    the device as well."""
    X = BITS.astype(np.float32)
    model = RBM(4, trainer=PCD(n_epochs=2, batch_size=32), device="cuda", random_state=0)
    through = clone(model).fit(KINDS[kind](tmp_path, X))
    assert np.isfinite(through.components_).all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buffered, "BUFFER_BYTES", X.nbytes)
        (tmp_path / "again").mkdir()
        stored = clone(model).fit(KINDS[kind](tmp_path / "again", X))
    np.testing.assert_array_equal(stored.components_, model.fit(X).components_)
    assert (stored.components_ != through.components_).any()


def test_arrays_that_come_one_by_one(tmp_path: Path) -> None:
    """`partial_fit` of a user's own loop goes on where it was: chains, momentum and steps, as one
    pass over `Blocks` of the same arrays does, whose batches are the arrays in another order."""
    arrays = np.array_split(BITS[:320].astype(np.float32), 10)
    model = RBM(4, trainer=PCD(optimizer=SGD(0.05, momentum=0.5), batch_size=32), random_state=0)
    for array in arrays:
        model.partial_fit(array)
    assert model.n_iter_ == 10 and model._state.step == 10
    once = model._state.carry["chain/h"].copy()
    model.partial_fit(Blocks(arrays))
    assert model.n_iter_ == 11 and model._state.step == 20
    assert (once != model._state.carry["chain/h"]).any()
