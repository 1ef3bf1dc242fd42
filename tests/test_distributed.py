"""Fits on a cluster of processes: what workers make is what threads make; what fails says so."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.sparse
from crew import together
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import ConvergenceWarning
from test_sharing import _bits, _learned, _reals

import energyscape
from energyscape import distributed as shared
from energyscape.callbacks import Checkpoint
from energyscape.distributed import cluster as client_side
from energyscape.distributed import task
from energyscape.distributed.spread import spread
from energyscape.errors import (
    CapabilityError,
    DataRangeWarning,
    DeviceError,
    DivergenceError,
    WorkerLostError,
)
from energyscape.models import (
    PCA,
    RBM,
    AutoEncoder,
    ConvSparseCoding,
    DeepBoltzmannMachine,
    GaussianMixture,
    KMeans,
    SiameseEncoder,
    SparseCoding,
    StackedAutoEncoder,
)
from energyscape.sources import is_stored
from energyscape.trainers import CD, EM, PCD, Reconstruction, ScoreMatching
from energyscape.workers import Workers

da = pytest.importorskip("dask.array")
dask = pytest.importorskip("distributed")
dask_config = pytest.importorskip("dask.config")
pytestmark = pytest.mark.slow


def _start(n_workers: int) -> Any:
    return dask.LocalCluster(
        n_workers=n_workers, threads_per_worker=1, dashboard_address=":0", memory_limit=0
    )


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _start(2) as cluster, dask.Client(cluster) as connected:
            yield connected


def _same(a: Any, b: Any) -> None:
    for part in ("params", "carry"):
        mine, theirs = getattr(a._state, part), getattr(b._state, part)
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            assert_array_equal(value, theirs[key], err_msg=key)


MODELS = [
    (RBM(6, trainer=PCD(n_epochs=2, batch_size=30)), _bits),
    (RBM(6, trainer=CD(n_epochs=2, batch_size=30)), _bits),
    (AutoEncoder(4, trainer=Reconstruction(n_epochs=2, batch_size=30)), _bits),
    (SparseCoding(8).set_params(max_iter=200), _reals),
    (KMeans(3), _reals),
    (GaussianMixture(2, trainer=EM(n_epochs=3, tol=0)), _reals),
    (PCA(2), _reals),
]


@pytest.mark.parametrize("sync_every", [1, 3])
@pytest.mark.parametrize(("model", "data"), MODELS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_a_cluster_makes_what_threads_make(
    client: Any, model: Any, data: Any, sync_every: int, tmp_path: Path
) -> None:
    """Bit for bit, as two numbers are added: and the estimator is then a fitted one."""
    X = data(301)
    model.random_state = 7
    if model.trainer is None and "n_epochs" in model.default_trainer().get_params():
        model.trainer = model.default_trainer().set_params(n_epochs=2)
    threads = together(2, lambda workers: _learned(model, X, workers), sync_every)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = shared.fit(model, X, client, sync_every=sync_every)
    assert fitted is model
    _same(model, threads)
    assert model.n_iter_ == threads.n_iter_
    assert model.transform(X[:5]).shape == threads.transform(X[:5]).shape
    model.save(tmp_path / "model.h5")
    _same(energyscape.load(tmp_path / "model.h5"), model)


def test_chunks_slices_and_files_are_the_same_rows(client: Any, tmp_path: Path) -> None:
    """A Dask array with empty, unequal and column-wise chunks, of unknown sizes; files of which one
    lies across two workers; a resumed fit: all as an array in memory."""
    X = _bits(300).astype(np.float32)
    names = []
    for i, rows in enumerate((slice(0, 40), slice(40, 190), slice(190, 300))):
        names.append(str(tmp_path / f"{i}.h5"))
        with h5py.File(names[-1], "w") as file:
            file["X"] = X[rows]
    model = RBM(5, trainer=CD(n_epochs=2, batch_size=20), random_state=7)
    whole = shared.fit(model, X, client)
    from_files = shared.fit(
        RBM(5, trainer=CD(n_epochs=2, batch_size=20), random_state=7), names, client
    )
    assert from_files._state.n_rows == 300
    assert_allclose(from_files._state.params["b"], whole._state.params["b"], atol=0.2)
    blocks = da.from_array(X, chunks=((0, 100, 200), (5, 7)))
    from_blocks = shared.fit(RBM(5, trainer=CD(n_epochs=2), random_state=7), blocks, client)
    assert from_blocks._state.n_rows == 300
    unknown = blocks[blocks.sum(axis=1) > -1]
    assert np.isnan(unknown.shape[0])
    assert shared.fit(RBM(5, trainer=CD(n_epochs=1)), unknown, client)._state.n_rows == 300
    one = da.from_array(X, chunks=(300, 12))
    assert shared.fit(RBM(5, trainer=CD(n_epochs=1)), one, client)._state.n_rows == 300


def test_chunks_belong_to_the_client_that_is_given(client: Any) -> None:
    """Which need not be the one that Dask takes by default."""
    X = da.from_array(_bits(300), chunks=(100, 12))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _start(1) as cluster, dask.Client(cluster, set_as_default=False) as other:
            for rows in (X, X[X.sum(axis=1) > -1]):
                model = RBM(5, trainer=CD(n_epochs=1))
                assert shared.fit(model, other.persist(rows), other)._state.n_rows == 300


def test_principal_components_of_files_are_those_of_the_array(client: Any, tmp_path: Path) -> None:
    """Exactly the rows of the files, each once: their covariance, to the rounding of its sums."""
    X = _reals(301)
    names = []
    for i, rows in enumerate((slice(0, 7), slice(7, 200), slice(200, 301))):
        names.append(f"{tmp_path / f'{i}.h5'}:rows")
        with h5py.File(names[-1].rpartition(":")[0], "w") as file:
            file["rows"], file["other"] = X[rows], np.zeros((3, 3))
    fitted = shared.fit(PCA(3), names, client)
    assert_allclose(fitted.explained_variance_, PCA(3).fit(X).explained_variance_, rtol=1e-9)


def test_files_are_read_where_they_lie(client: Any, tmp_path: Path) -> None:
    """Small ones too, of both kinds together, and images as images."""
    X = _reals(120)
    np.save(tmp_path / "a.npy", X[:50])
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["X"] = X[50:]
    for names in (["a.npy", "b.h5"], ["b.h5", "a.npy"]):
        with task._opened([str(tmp_path / name) for name in names]) as opened:
            assert all(map(is_stored, opened))
        fitted = shared.fit(PCA(3), [str(tmp_path / name) for name in names], client)
        assert_allclose(fitted.explained_variance_, PCA(3).fit(X).explained_variance_, rtol=1e-9)
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((60, 8, 8)))
    model = ConvSparseCoding(2)
    model.trainer = model.default_trainer().set_params(n_epochs=1, batch_size=10)
    assert shared.fit(model, str(tmp_path / "images.npy"), client)._state.n_rows == 60


def test_names_are_patterns_and_paths_too(client: Any, tmp_path: Path) -> None:
    X = _reals(120)
    for i in range(4):
        with h5py.File(tmp_path / f"{'ab'[i % 2]}{i}.h5", "w") as file:
            file["X"] = X[30 * i : 30 * i + 30]
    expected = PCA(3).fit(X).explained_variance_
    files = sorted(tmp_path.iterdir())
    for data in (files, [f"{tmp_path}/a*.h5", tmp_path / "b*.h5"], tmp_path / "*.h5"):
        assert_allclose(shared.fit(PCA(3), data, client).explained_variance_, expected, rtol=1e-9)


def test_sparse_chunks_are_rows(client: Any) -> None:
    X = _bits(300)
    chunks = da.from_array(X, chunks=(50, 12)).map_blocks(scipy.sparse.csr_matrix)
    sparse = shared.fit(RBM(4, trainer=CD(n_epochs=2), random_state=0), chunks, client)
    assert sparse._state.n_rows == 300


def test_unequal_chunks_are_spread_evenly(client: Any) -> None:
    """Each worker gets at least half of an equal share, whatever the chunks are."""
    addresses = sorted(client.nthreads())
    for chunks in ((299, 1), (300,), (1, 1, 298), (100, 100, 100), (0, 300)):
        X = da.from_array(_bits(300), chunks=(chunks, (12,)))
        parts = spread(X, client, addresses, 60)
        rows = [sum(map(len, client.gather(part.pieces))) for part in parts]
        assert sum(rows) == 300 and min(rows) >= 75, chunks
    assert [len(part.pieces) for part in spread(da.ones((1, 4)), client, addresses, 60)] == [1]


def test_a_second_fit_leaves_nothing_of_the_first(client: Any) -> None:
    model = KMeans(2, random_state=0).fit(_reals(50))
    assert len(model.labels_) == 50
    shared.fit(model, _reals(301), client)
    with pytest.raises(AttributeError, match="nor after one by workers"):
        _ = model.labels_
    assert len(model.predict(_reals(301))) == 301
    topics = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.get_events()))
    assert [name for name in topics if name.startswith("energyscape")] == ["energyscape"]


def test_workers_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a checkpoint in a folder that only the workers are asked for. BLAS keeps its threads:
    a limit would be one of the whole process, and two that overlap are not taken back."""
    X, limits = _bits(100), list[Any]()

    def limit(n: Any) -> Any:
        limits.append(n)
        return contextlib.nullcontext()

    monkeypatch.setattr(task, "threadpool_limits", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster = dask.LocalCluster(n_workers=2, processes=False, dashboard_address=":0")
        with cluster, dask.Client(cluster) as client:
            trainer = CD(n_epochs=2, callbacks=[Checkpoint(tmp_path / "m.h5")])
            assert shared.fit(RBM(3, trainer=trainer), X, client).n_iter_ == 2
    assert limits == [None, None]
    assert energyscape.load(tmp_path / "m.h5").n_iter_ == 2


# ---------------------------------------------------------------- checkpoints and losses


def test_a_lost_worker_ends_the_fit_and_fewer_go_on(tmp_path: Path) -> None:
    """A worker killed in mid-epoch: the error names the last checkpoint, which is at most one
    epoch old, and another cluster, of one worker, goes on to the end."""
    X, path = _bits(4000), tmp_path / "machine.h5"
    trainer = PCD(n_epochs=200, batch_size=20, callbacks=[Checkpoint(path)])
    model = RBM(6, trainer=trainer, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _start(2) as cluster, dask.Client(cluster) as client:
            victim = client.run(os.getpid)[sorted(client.nthreads())[1]]

            def kill() -> None:
                while not path.exists():
                    time.sleep(0.01)
                time.sleep(0.3)
                os.kill(victim, signal.SIGKILL)

            killer = threading.Thread(target=kill)
            killer.start()
            with pytest.raises(WorkerLostError, match=r"machine\.h5, of epoch \d+.*resume"):
                shared.fit(model, X, client)
            killer.join()
        assert not hasattr(model, "params_")
        kept = energyscape.load(path)
        assert 0 < kept.n_iter_ < 200
        kept.trainer = kept.trainer_.set_params(n_epochs=kept.n_iter_ + 2, callbacks=())
        with _start(1) as cluster, dask.Client(cluster) as client:
            done = shared.resume(kept, X, client)
            assert done.n_iter_ == kept.trainer.n_epochs
            with pytest.raises(ValueError, match="had 4000 training rows, X gives 3000"):
                shared.resume(kept, X[:3000], client)


def test_a_silent_worker_ends_the_fit_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is stopped, not dead; and the next fit, which meets it at the door, likewise."""
    monkeypatch.setattr(client_side, "_GRACE", 1.0)
    monkeypatch.setattr(client_side, "_PATIENCE", 1.0)
    long = RBM(4, trainer=CD(n_epochs=100_000, batch_size=20))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _start(2) as cluster, dask.Client(cluster) as client:
            victim = client.run(os.getpid)[sorted(client.nthreads())[1]]
            # The second, so that a client which waits for the worker does not wait for ever.
            timers = [
                threading.Timer(seconds, os.kill, (victim, what))
                for seconds, what in ((2.0, signal.SIGSTOP), (40.0, signal.SIGCONT))
            ]
            for timer in timers:
                timer.start()
            started = time.monotonic()
            with pytest.raises(WorkerLostError, match=r"silent|said nothing"):
                shared.fit(long, _bits(300), client, timeout=2)
            with pytest.raises(WorkerLostError, match="said nothing for 2 seconds"):
                shared.fit(long, _bits(300), client, timeout=2)
            assert time.monotonic() - started < 30
            timers[1].cancel()
            os.kill(victim, signal.SIGCONT)
            short = RBM(4, trainer=CD(n_epochs=1))
            assert shared.fit(short, _bits(300), client).n_iter_ == 1


def test_a_scheduler_that_dies_is_named_with_the_checkpoint(tmp_path: Path) -> None:
    path, file = tmp_path / "machine.h5", tmp_path / "scheduler.json"
    dask_command = [sys.executable, "-m", "dask"]
    common = ["--no-dashboard", "--scheduler-file", str(file)]
    long = RBM(4, trainer=CD(n_epochs=100_000, batch_size=20, callbacks=[Checkpoint(path)]))
    with contextlib.ExitStack() as processes:

        def start(*words: str) -> Any:
            process = subprocess.Popen([*dask_command, *words, *common], stderr=subprocess.DEVNULL)
            processes.callback(process.wait)
            processes.callback(process.kill)
            return process

        scheduler = start("scheduler", "--host", "127.0.0.1", "--port", "0")
        while not file.exists() or not file.stat().st_size:
            time.sleep(0.05)
        start("worker", "--no-nanny", "--nthreads", "1", "--memory-limit", "0")

        def kill() -> None:
            while not path.exists():
                time.sleep(0.01)
            scheduler.kill()

        killer = threading.Thread(target=kill)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            client = dask.Client(scheduler_file=str(file), set_as_default=False)
            client.wait_for_workers(1, timeout=60)
            killer.start()
            with pytest.raises(WorkerLostError, match=r"scheduler is gone; .*machine\.h5"):
                shared.fit(long, _bits(300), client)
            killer.join()
            client.close()


def test_what_the_client_asks_by_itself_makes_no_worker_lost(client: Any) -> None:
    with (
        dask_config.set({"distributed.client.scheduler-info-interval": "1ms"}),
        dask.Client(client.scheduler.address) as another,
    ):
        wanted, end = set(client.nthreads()), time.monotonic() + 3
        while time.monotonic() < end:
            assert client_side._alive(another) == wanted


def test_an_interrupt_frees_the_workers(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next fit runs."""
    X = _bits(4000)

    def interrupted(self: Any, bar: Any) -> None:
        if self.told:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client_side._Watch, "_show", interrupted)
        with pytest.raises(KeyboardInterrupt):
            shared.fit(RBM(4, trainer=CD(n_epochs=500, batch_size=10)), X, client)
    started = time.monotonic()
    shared.fit(RBM(4, trainer=CD(n_epochs=1)), X, client)
    assert time.monotonic() - started < 60


def test_an_interrupt_while_waiting_gives_up_the_turn(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fit after it runs, once the workers are free."""
    addresses = sorted(client.nthreads())
    held = dask.MultiLock(names=addresses, client=client)
    assert held.acquire(timeout=5)

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client_side._log, "warning", interrupted)
        with pytest.raises(KeyboardInterrupt):
            shared.fit(RBM(4, trainer=CD(n_epochs=1)), _bits(50), client)
    held.release()
    shared.fit(RBM(4, trainer=CD(n_epochs=1)), _bits(50), client)


def test_two_fits_take_turns(client: Any) -> None:
    """From two clients of one cluster, at the same time: each is what it is alone."""
    X = _bits(400)
    models = [RBM(5, trainer=CD(n_epochs=2), random_state=seed) for seed in range(2)]
    alone = [together(2, lambda w, m=model: _learned_with(m, X, w))[0] for model in models]
    with dask.Client(client.scheduler.address, set_as_default=False) as second:
        threads = [
            threading.Thread(target=shared.fit, args=(model, X, by))
            for model, by in zip(models, (client, second), strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for model, expected in zip(models, alone, strict=True):
        _same(model, expected)


def _learned_with(model: Any, X: np.ndarray, workers: Any) -> Any:
    import test_sharing

    return test_sharing._learned(model, X, workers, seed=model.random_state)


# ---------------------------------------------------------------- bad input


def test_what_cannot_be_shared_says_why(client: Any) -> None:
    X = _bits(100)
    with pytest.raises(CapabilityError, match="no single model with a trainer"):
        shared.fit(StackedAutoEncoder([AutoEncoder(4)]), X, client)
    with pytest.raises(CapabilityError, match="compare the pairs of a batch"):
        shared.fit(SiameseEncoder(), X.reshape(50, 2, 12), client)
    deep = DeepBoltzmannMachine((4, 3))
    if deep.pretraining is not None:
        with pytest.raises(CapabilityError, match="pretraining=None"):
            shared.fit(deep, X, client)
    with pytest.raises(CapabilityError, match="ScoreMatching cannot train RBM"):
        shared.fit(RBM(4, trainer=ScoreMatching()), X, client)
    with pytest.raises(ValueError, match="sync_every must be"):
        shared.fit(RBM(4), X, client, sync_every=0)
    with pytest.raises(ValueError, match="timeout must be > 0"):
        shared.fit(RBM(4), X, client, timeout=0)
    with pytest.raises(ValueError, match="was begun"):
        shared.resume(RBM(4), X, client)


def test_bad_rows_are_refused(client: Any, tmp_path: Path) -> None:
    model = RBM(4, trainer=CD(n_epochs=1))
    with h5py.File(tmp_path / "open.h5", "w") as file:
        file["X"] = np.zeros((5, 4))
        with pytest.raises(TypeError, match="give the names of their files"):
            shared.fit(model, file["X"], client)
    with pytest.raises(TypeError, match=r"dask\.array, an array, or a list"):
        shared.fit(model, iter([1, 2]), client)
    for rows in (np.zeros(5), da.zeros(5), da.asarray(1.0)):
        with pytest.raises(ValueError, match=r"Expected 2D array, got [01]D"):
            shared.fit(model, rows, client)
    with pytest.raises(ValueError, match="list of files is empty"):
        shared.fit(model, [], client)
    ragged = da.zeros((60, 4), chunks=(10, 4)).map_blocks(
        lambda x, block_info: x[:, block_info[0]["chunk-location"][0] % 2 :], dtype=float
    )
    with pytest.raises(ValueError, match="must have the same columns"):
        shared.fit(model, ragged, client)
    with pytest.raises(ValueError, match="0 sample"):
        shared.fit(model, np.zeros((0, 4)), client)
    with pytest.raises(ValueError, match="NaN"):
        shared.fit(model, da.from_array(np.where(np.eye(20) > 0, np.nan, 1.0), chunks=10), client)
    with pytest.raises(FileNotFoundError, match=r"worker tcp.*cannot read .*nowhere\.h5"):
        shared.fit(model, [str(tmp_path / "nowhere.h5")], client)
    names = []
    for i, columns in enumerate((6, 7, 0)):
        names.append(str(tmp_path / f"{i}.h5"))
        with h5py.File(names[-1], "w") as file:
            file["X"] = np.zeros((10 if columns else 0, columns or 6))
    with pytest.raises(ValueError, match=r"1\.h5 has rows \(7,\).*same columns"):
        shared.fit(model, names[:2], client)
    with pytest.raises(ValueError, match=r"2\.h5 has no rows"):
        shared.fit(model, [names[0], names[2]], client)
    with pytest.warns(DataRangeWarning, match=r"values in \[0, 1\]"):
        shared.fit(model, _reals(100), client)


class _TwoWorkers(Workers):
    """Of which the other has ``other`` to say."""

    size = 2

    def __init__(self, other: bool) -> None:
        self.other = other

    def gather(self, part: np.ndarray) -> list[np.ndarray]:
        return [part, np.array([self.other])]


def test_gradients_go_over_sockets_where_nccl_is_absent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def absent(*args: Any) -> None:
        raise DeviceError("pip install nvidia-nccl-cu12")

    monkeypatch.setattr(task, "NcclWorkers", absent)
    both: Any = _TwoWorkers(True)
    assert task._on_device(both, "cuda:0") is both
    assert "over sockets, which is slower: pip install nvidia-nccl" in caplog.text
    neither: Any = _TwoWorkers(False)
    assert task._on_device(neither, "cpu") is neither
    with pytest.raises(DeviceError, match="say which by the model's device"):
        task._on_device(neither, "cuda:0")


def test_an_error_of_a_worker_is_told_as_it_is(client: Any) -> None:
    """And the estimator stays as it was."""
    model = AutoEncoder(4, trainer=Reconstruction(n_epochs=3, learning_rate=1e200))
    with pytest.raises(DivergenceError, match="learning rate"):
        shared.fit(model, _reals(300), client)
    assert not hasattr(model, "params_")


def test_a_failed_fit_lets_go_of_its_rows(client: Any, tmp_path: Path) -> None:
    """Files can be written at once, and nothing stays in the workers' memory."""

    def left() -> int:
        import gc

        from energyscape.sources import Rows

        return sum(isinstance(thing, Rows) for thing in gc.get_objects())

    X, name = _reals(300), str(tmp_path / "rows.h5")
    with h5py.File(name, "w") as file:
        file["X"] = np.where(np.arange(6) == 5, np.nan, X)
    before = client.run(left)
    for rows, model, error in (
        (name, RBM(4, trainer=CD(n_epochs=1)), ValueError),
        ([name, name], RBM(4, trainer=CD(n_epochs=1)), ValueError),
        (X, AutoEncoder(4, trainer=Reconstruction(learning_rate=1e200)), DivergenceError),
    ):
        with pytest.raises(error):
            shared.fit(model, rows, client)
        assert client.run(left) == before
        with h5py.File(name, "r+"):
            pass


def test_clients_that_cannot_are_refused() -> None:
    X, model = _bits(50), RBM(4, trainer=CD(n_epochs=1))
    with pytest.raises(TypeError, match=r"must be a dask\.distributed\.Client, got str"):
        shared.fit(model, X, "tcp://somewhere")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _start(1) as cluster:
            client = dask.Client(cluster)
            client.close()
            with pytest.raises(ValueError, match="client is closed: connect a new one"):
                shared.fit(model, X, client)
            client = dask.Client(cluster)
            later = threading.Timer(3.0, client.close)
            later.start()
            long = RBM(4, trainer=CD(n_epochs=100_000, batch_size=1))
            with pytest.raises(ValueError, match=r"closed during the fit.*no (checkpoint|epoch)"):
                shared.fit(long, X, client)
            later.join()
        nobody = pytest.raises(ValueError, match="has no workers")
        with _start(0) as cluster, dask.Client(cluster) as client, nobody:
            shared.fit(model, X, client)
