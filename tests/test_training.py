"""The loop: history, callbacks, divergence, interrupts, early stopping, stored data."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.sparse
from cases import CASES

import energyscape
from energyscape.callbacks import Checkpoint, EarlyStopping, JsonLines
from energyscape.errors import DivergenceError
from energyscape.models import RBM, GaussianRBM
from energyscape.optim import SGD, Constant
from energyscape.trainers import PCD

BITS = CASES[0].data.astype(np.float32)


def test_history_has_the_promised_keys() -> None:
    model = RBM(4, trainer=PCD(n_epochs=3, validation_fraction=0.2), random_state=0).fit(BITS)
    history = model.history_
    assert set(history) == {
        "epoch",
        "seconds",
        "learning_rate",
        "grad_norm",
        "energy_train",
        "energy_valid",
        "energy_gap",
        "reconstruction",
        "chain_energy",
        "chain_spread",
    }
    assert history["epoch"] == [1, 2, 3]
    assert history["learning_rate"] == pytest.approx([0.1, 0.1 * 2 / 3, 0.1 / 3])
    assert all(type(v) in (int, float) for values in history.values() for v in values)
    gap = np.subtract(history["energy_valid"], history["energy_train"])
    np.testing.assert_allclose(history["energy_gap"], gap)


def test_history_may_gain_and_lose_keys() -> None:
    model = RBM(4, trainer=PCD(n_epochs=2, validation_fraction=0.2), random_state=0).fit(BITS)
    model.partial_fit(BITS)
    lengths = {len(values) for values in model.history_.values()}
    assert lengths == {3}
    assert np.isnan(model.history_["energy_valid"][-1])


def test_callbacks_hear_every_epoch_and_can_stop(tmp_path: Path) -> None:
    heard = []

    def stop_at_two(model: Any, state: Any, info: Any) -> bool:
        heard.append((state.epoch, info["epoch"], model.n_iter_))
        return state.epoch == 2

    lines = JsonLines(tmp_path / "log.jsonl")
    trainer = PCD(n_epochs=5, callbacks=[stop_at_two, lines])
    model = RBM(4, trainer=trainer, random_state=0).fit(BITS)
    assert heard == [(1, 1, 1), (2, 2, 2)]
    assert model.n_iter_ == 2
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records] == [1, 2]
    assert records[1]["energy_train"] == model.history_["energy_train"][1]


def test_early_stopping_waits_and_then_stops() -> None:
    class State:
        history = {"x": [3.0, 2.0, 2.5, 2.4]}

    stop = EarlyStopping(monitor="x", patience=2)
    assert stop(None, State, {"x": 2.4})
    State.history = {"x": [3.0, 2.0, 2.5]}
    assert not stop(None, State, {"x": 2.5})
    assert EarlyStopping("x", patience=3, min_delta=1.5)(None, State, {"x": 2.5}) is False
    with pytest.raises(ValueError, match=r"monitor='energy_gap' is not in the history"):
        EarlyStopping("energy_gap")(None, State, {"x": 1.0})


@pytest.mark.parametrize("patience", [0, -1, 1.5])
def test_a_patience_that_would_stop_before_the_first_epoch_is_refused(patience: Any) -> None:
    trainer = PCD(n_epochs=2, callbacks=[EarlyStopping(patience=patience)])
    with pytest.raises(ValueError, match=r"EarlyStopping\.patience must be an integer >= 1"):
        RBM(3, trainer=trainer, random_state=0).fit(np.eye(6))


def test_checkpoint_resumes_after_a_kill(tmp_path: Path) -> None:
    """SIGKILL in the middle of training; the checkpoint continues to the very same model."""
    code = """
        import numpy as np, sys
        from energyscape.models import RBM
        from energyscape.trainers import PCD
        from energyscape.callbacks import Checkpoint
        X = np.load(sys.argv[1])
        trainer = PCD(n_epochs=1_000_000, batch_size=10, callbacks=[Checkpoint(sys.argv[2])])
        RBM(4, trainer=trainer, random_state=0).fit(X)
    """
    data, path = tmp_path / "x.npy", tmp_path / "model.h5"
    np.save(data, BITS)
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), data, path])
    while not path.exists():
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    model = energyscape.load(path)
    epochs = model.n_iter_ + 3
    whole = PCD(n_epochs=1_000_000, batch_size=10, callbacks=[_StopAt(epochs)])
    whole = RBM(4, trainer=whole, random_state=0).fit(BITS)
    model.trainer_.callbacks = [_StopAt(epochs)]
    resumed = model.set_params(trainer=model.trainer_).resume(BITS)
    for key, value in whole.params_.items():
        np.testing.assert_array_equal(value, resumed.params_[key])


class _StopAt:
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, model: Any, state: Any, info: Any) -> bool:
        return state.epoch == self.epoch


def test_interrupt_keeps_the_last_epoch_and_a_checkpoint(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "model.h5"
    apply = PCD.apply

    def interrupted(*args: Any) -> None:
        apply(*args)
        if args[-1].step == 14:  # in the third epoch of six batches
            os.kill(os.getpid(), signal.SIGINT)

    def make(**settings: Any) -> RBM:
        return RBM(4, trainer=PCD(n_epochs=5, batch_size=10, **settings), random_state=0)

    whole = make().fit(BITS)
    model = make(callbacks=[Checkpoint(path, every=100)])
    # A shell that starts the tests in its background leaves SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PCD, "apply", interrupted)
        model.fit(BITS)
    signal.signal(signal.SIGINT, before)
    # The Python object and the checkpoint both stand at the end of the second epoch.
    for kept in (model, energyscape.load(path)):
        assert kept.n_iter_ == 2
        np.testing.assert_array_equal(kept.resume(BITS).params_["W"], whole.params_["W"])


def test_divergence_restores_and_explains() -> None:
    X = CASES[2].data.astype(np.float32)
    trainer = PCD(n_epochs=50, batch_size=10, optimizer=SGD(1e9, schedule=Constant()))
    model = GaussianRBM(6, trainer=trainer, random_state=0)
    with pytest.raises(DivergenceError) as caught:
        model.fit(X)
    text = str(caught.value)
    assert "learning rate 1e+09" in text and "epoch" in text and "find_learning_rate" in text
    assert all(np.isfinite(v).all() for v in model.params_.values())
    assert model.transform(X).shape == (len(X), 6)
    # NaN planted in the second epoch: the first one's parameters come back.
    planted = PCD(n_epochs=3, callbacks=[_Poison(1)])
    model = RBM(4, trainer=planted, random_state=0)
    with pytest.raises(DivergenceError, match=r"in epoch 2 .* back at epoch 1"):
        model.fit(BITS)
    clean = RBM(4, trainer=PCD(n_epochs=3, callbacks=[_StopAt(1)]), random_state=0).fit(BITS)
    assert model.n_iter_ == 1
    np.testing.assert_array_equal(model.params_["b"][1:], clean.params_["b"][1:])


class _Poison:
    """Puts a NaN into the parameters after some epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, model: Any, state: Any, info: Any) -> bool:
        if state.epoch == self.epoch:
            state.params["b"][0] = np.nan
        return False


def test_resume_refuses_other_data_and_other_trainers(caplog: Any) -> None:
    model = RBM(4, trainer=PCD(n_epochs=4, callbacks=[_StopAt(2)]), random_state=0).fit(BITS)
    with pytest.raises(ValueError, match="had 60 training rows, X gives 50"):
        model.resume(BITS[:50])
    model.set_params(trainer=PCD(n_epochs=4, optimizer=SGD(momentum=0.5)))
    with pytest.raises(ValueError, match="the trainer was changed since"):
        model.resume(BITS)
    model.set_params(trainer=PCD(n_epochs=4), n_components=5)
    for go_on in (model.resume, model.partial_fit):
        with pytest.raises(ValueError, match=r"settings of RBM were changed .* fit anew, or rest"):
            go_on(BITS)
    model.set_params(n_components=4)
    model._environment["numpy"] = "1.0"
    with caplog.at_level(logging.WARNING, "energyscape"):
        model.resume(BITS)
    assert "numpy was 1.0" in caplog.text
    assert model.n_iter_ == 4


def test_progress_goes_to_stderr_only_when_verbose(capsys: Any) -> None:
    RBM(4, trainer=PCD(n_epochs=2), random_state=0).fit(BITS)
    assert capsys.readouterr() == ("", "")
    RBM(4, trainer=PCD(n_epochs=2), random_state=0, verbose=1).fit(BITS)
    out, err = capsys.readouterr()
    assert out == "" and "RBM/PCD" in err
    assert "tqdm_monitor" not in [thread.name for thread in threading.enumerate()]


# ---------------------------------------------------------------- where rows come from


@pytest.fixture
def stored(tmp_path: Path) -> Any:
    """The same 3000 rows as array, memory map and chunked HDF5 dataset of bytes."""
    rng = np.random.default_rng(0)
    X = (rng.random((3000, 7)) < 0.3).astype(np.uint8)
    np.save(tmp_path / "x.npy", X)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("X", data=X, chunks=(100, 7), compression="gzip")
    with h5py.File(tmp_path / "x.h5", "r") as file:
        yield X, np.load(tmp_path / "x.npy", mmap_mode="r"), file["X"]


def test_stored_rows_are_all_seen_once_an_epoch(stored: Any, monkeypatch: Any) -> None:
    from energyscape import sources
    from energyscape.backend import Purpose, stream

    monkeypatch.setattr(sources.buffered, "BUFFER_BYTES", 7 * 1000)
    X, *others = stored
    for data in others:
        rows = sources.open_rows(data)
        assert isinstance(rows, sources.StoredRows) and len(rows) == 3000
        batches = [x for x, _ in rows.batches(70, stream(0, Purpose.ORDER))]
        assert [len(b) for b in batches] == [70] * 42 + [60]
        seen = np.concatenate(batches)
        assert seen.dtype == np.float32
        assert not np.array_equal(seen, X)
        order = np.lexsort(seen.T)
        np.testing.assert_array_equal(seen[order], X[np.lexsort(X.T)].astype(np.float32))


def test_stored_rows_train_and_transform(stored: Any) -> None:
    X, memmap, dataset = stored
    trainer = PCD(n_epochs=3, validation_fraction=0.1)
    for data in (memmap, dataset):
        model = RBM(4, trainer=trainer, random_state=0).fit(data)
        assert model.n_features_in_ == 7
        np.testing.assert_allclose(model.transform(data), model.transform(X), atol=1e-6)
        np.testing.assert_array_equal(model.transform(data[:9]), model.transform(X[:9]))
        model.resume(data)
    with h5py.File("bad", "w", driver="core", backing_store=False) as file:
        bad = file.create_dataset("X", data=np.array([[0.0, np.nan]]))
        with pytest.raises(ValueError, match="NaN or infinity"):
            RBM(2).fit(bad)


def test_integer_rows_stay_integers_and_agree_with_floats() -> None:
    trainer = PCD(n_epochs=3)
    wide = RBM(4, trainer=trainer, random_state=0).fit(BITS)
    for dtype in (bool, np.uint8, np.int8, np.float16):
        model = RBM(4, trainer=trainer, random_state=0).fit(BITS.astype(dtype))
        assert model.components_.dtype == np.float32
        np.testing.assert_array_equal(model.components_, wide.components_)
    assert RBM(4, trainer=trainer).fit(BITS.astype(np.int64)).components_.dtype == np.float64


def test_csr_rows_equal_dense_ones() -> None:
    trainer = PCD(n_epochs=3)
    dense = RBM(4, trainer=trainer, random_state=0).fit(BITS)
    sparse = RBM(4, trainer=trainer, random_state=0).fit(scipy.sparse.csr_matrix(BITS))
    np.testing.assert_array_equal(dense.components_, sparse.components_)
    np.testing.assert_array_equal(
        dense.transform(BITS), sparse.transform(scipy.sparse.csr_array(BITS))
    )


def test_no_copy_of_the_training_set() -> None:
    """Peak memory while fitting stays far below a second copy of X."""
    import tracemalloc

    X = np.random.default_rng(0).random((40_000, 200), dtype=np.float32)
    model = RBM(4, trainer=PCD(n_epochs=1, batch_size=500), random_state=0)
    tracemalloc.start()
    model.fit(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The first 10,000 rows are taken to begin with: a quarter of X, plus their centred copy.
    assert peak < 0.7 * X.nbytes, peak / X.nbytes


def test_working_memory_does_not_change_results() -> None:
    import sklearn

    model = RBM(4, random_state=0).partial_fit(BITS)
    whole = model.transform(BITS), model.energy(BITS), model.reconstruct(BITS)
    with sklearn.config_context(working_memory=0.002):
        parts = model.transform(BITS), model.energy(BITS), model.reconstruct(BITS)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


class FailsOnce:
    """A batch transform that breaks down in the middle of an epoch."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Any, rng: Any) -> Any:
        self.calls += 1
        if self.calls == 11:
            raise OSError("the disk went away")
        return x


def test_any_failure_leaves_the_last_whole_epoch() -> None:
    settings = {"n_epochs": 5, "batch_size": 20}
    whole = RBM(4, trainer=PCD(**settings), random_state=0).fit(BITS)
    broken = RBM(4, trainer=PCD(**settings, batch_transform=FailsOnce()), random_state=0)
    with pytest.raises(OSError, match="went away"):
        broken.fit(BITS)
    assert 0 < broken.n_iter_ < 5 and broken._state.step == 3 * broken.n_iter_
    broken.set_params(trainer=PCD(**settings)).resume(BITS)
    np.testing.assert_array_equal(broken.components_, whole.components_)


def test_a_stopped_run_stays_stopped() -> None:
    stop = EarlyStopping("epoch", patience=2)  # epochs only rise
    model = RBM(4, trainer=PCD(n_epochs=50, callbacks=[stop]), random_state=0).fit(BITS)
    stopped_at = model.n_iter_
    assert model.resume(BITS).n_iter_ == stopped_at < 50
