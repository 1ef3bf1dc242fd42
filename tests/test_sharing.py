"""What workers share: their sums are those of one process, their states one state."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import standin
from cases import CASES, Case, short
from crew import RowBlind, Sliced, Threaded, together
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone

from energyscape import sharing, training
from energyscape.backend import HostStream, Purpose, device_of, stream, to_host
from energyscape.callbacks import EarlyStopping
from energyscape.errors import DivergenceError
from energyscape.models import PCA, RBM, AutoEncoder, GaussianMixture, KMeans, SparseCoding
from energyscape.optim import SGD
from energyscape.sources import Rows
from energyscape.trainers import CD, EM, FPCD, NCE, PCD, Reconstruction
from energyscape.trainers.base import Batch
from energyscape.workers import ALONE, Workers, add_up, split_evenly

PAIRS = [(case, trainer) for case in CASES for trainer in case.trainers]
IDS = [f"{case.name}-{trainer.__name__}" for case, trainer in PAIRS]


def _copied(arrays: Any) -> Any:
    return {key: value.copy() for key, value in arrays.items()}


@pytest.mark.parametrize(("case", "trainer"), PAIRS, ids=IDS)
def test_sums_are_additive_over_workers(case: Case, trainer: type) -> None:
    """A batch in one part or in two unequal ones, with noise that is the same for every row.

    Equal within what the differences of energies round (1e-5: they divide rounding by a small
    step), or the sum of a few float64 (1e-8, of the largest).
    """
    model, x = case.make(), case.data[:12]
    strategy = short(trainer, n_epochs=1, batch_size=12)
    why = strategy.sharing_obstacle() or strategy.sharing_note()
    if why is not None:
        pytest.skip(why)
    params = model.init_params(case.data, stream(0, Purpose.INIT))
    carry = strategy.start(model, params, case.data, stream(0, Purpose.START))
    chains = [len(value) for key, value in carry.items() if key.startswith("chain/")]
    total = chains[0] if chains else None
    batch = Batch(x, 12, chains=total)
    whole = strategy.collect(model, params, _copied(carry), batch, RowBlind(3))
    parts = []
    for rows, mine in ((slice(0, 3), slice(0, 30)), (slice(3, 12), slice(30, None))):
        own = {k: v[mine] if k.startswith("chain/") else v for k, v in carry.items()}
        part = Batch(x[rows], 12, chains=total)
        parts.append(strategy.collect(model, params, _copied(own), part, RowBlind(3)))
    differences = trainer.__name__ == "SlicedScoreMatching"
    largest = max(np.abs(value).max() for value in whole.values())
    assert whole.keys() == parts[0].keys()
    for key, value in whole.items():
        assert np.asarray(value).dtype.kind == "f", key
        assert np.shape(value) == np.shape(parts[0][key]), key
        worst = np.abs(parts[0][key] + parts[1][key] - value).max()
        assert worst <= (1e-5 * largest if differences else 1e-8 * np.abs(value).max() + 1e-12), key


def test_a_mean_over_own_chains_alone_is_caught() -> None:
    """The control of the law above: workers that each take the mean over their own chains."""
    case = next(case for case in CASES if case.name == "RBM")
    model, strategy = case.make(), PCD(n_epochs=1, n_chains=100)
    params = model.init_params(case.data, stream(0, Purpose.INIT))
    carry = strategy.start(model, params, case.data, stream(0, Purpose.START))
    x = case.data[:12]
    whole = strategy.collect(model, params, _copied(carry), Batch(x, 12), RowBlind(3))
    parts = []
    for rows, mine in ((slice(0, 3), slice(0, 30)), (slice(3, 12), slice(30, None))):
        own = {key: value[mine].copy() for key, value in carry.items() if key == "chain/h"}
        parts.append(strategy.collect(model, params, own, Batch(x[rows], 12), RowBlind(3)))
    worst = np.abs(parts[0]["b"] + parts[1]["b"] - whole["b"]).max()
    assert worst > 0.1 * np.abs(whole["b"]).max()


# ---------------------------------------------------------------- whole runs


def _learned(
    model: Any, X: np.ndarray, workers: Workers, own_rows: bool = True, seed: int = 7
) -> Any:
    """``model`` fitted by one of ``workers`` on its part of ``X``."""
    model = clone(model)
    trainer, rows = model._prepare(X, None, reset=True)
    if own_rows:
        part = split_evenly(len(X), workers.size, workers.rank)
        trainer, rows = model._prepare(X[part], None, reset=True)
    model.seed_, model._device = seed, device_of(rows.X)
    if workers.rank:
        trainer.set_params(callbacks=())
    model.learn(trainer, rows, workers)
    return model


def _bits(n: int, d: int = 12) -> np.ndarray:
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 2, (4, d))
    return (patterns[rng.integers(0, 4, n)] ^ (rng.random((n, d)) < 0.1)).astype(np.float64)


def _reals(n: int, d: int = 6) -> np.ndarray:
    rng = np.random.default_rng(1)
    mixing = rng.standard_normal((d, d))
    return rng.standard_normal((n, d)) @ mixing + 3 * rng.integers(0, 2, (n, 1))


class _InOrder(Rows):
    """Rows in the order that the workers together go through theirs, in `_shared_order`."""

    def batches(self, batch_size: int, rng: Any) -> Iterator[Any]:
        for lo in range(0, len(self), batch_size):
            yield self.take(slice(lo, lo + batch_size)), None


def _same_rows_and_noise(
    monkeypatch: pytest.MonkeyPatch, model: Any, X: np.ndarray, size: int, batch: int
) -> tuple[Any, list[Any]]:
    """A run by one process, and one of ``size`` workers whose batches have its rows and noise."""
    whole = training.Plan.stream

    def sliced(self: Any, purpose: Purpose, step: int, device: str = "cpu") -> Any:
        if purpose not in (Purpose.COLLECT, Purpose.TRANSFORM):
            return whole(self, purpose, step, device)
        return Sliced(HostStream(self.seed, purpose, step), self.workers)

    monkeypatch.setattr(training.Plan, "stream", sliced)
    monkeypatch.setattr(Rows, "batches", _InOrder.batches)
    # Batch i of the single process is batch i of worker 0, then of worker 1, ...
    each = batch // size
    order = np.arange(len(X)).reshape(-1, size, each).transpose(1, 0, 2).ravel()

    def work(workers: Workers) -> Any:
        return _learned(model, X[order], workers)

    return _learned(model, X, ALONE), together(size, work)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    "trainer",
    [
        PCD(n_epochs=2, batch_size=40, n_chains=80, optimizer=SGD(0.05, momentum=0.5)),
        CD(n_epochs=2, batch_size=40),
        FPCD(n_epochs=2, batch_size=40, n_chains=80),
    ],
    ids=lambda trainer: type(trainer).__name__,
)
def test_workers_make_the_updates_of_one_process(
    monkeypatch: pytest.MonkeyPatch, trainer: Any, size: int
) -> None:
    """All the parameters after ten updates on the same rows and noise, but for the order of sums:
    in float64 ten times the rounding of a mean of 40 rows, with room."""
    X = _bits(200)
    monkeypatch.setattr(trainer, "start_rows", 200, raising=False)
    monkeypatch.setattr(sharing, "shared_rows", lambda workers, x: _bits(200))
    monkeypatch.setattr(training, "shared_rows", lambda workers, x: _bits(200))
    one, several = _same_rows_and_noise(monkeypatch, RBM(8, trainer=trainer), X, size, 40)
    for worker in several:
        for key, value in one._state.params.items():
            assert_allclose(worker._state.params[key], value, rtol=1e-9, atol=1e-10, err_msg=key)
        for key, value in one._state.carry.items():
            assert_allclose(worker._state.carry[key], value, rtol=1e-9, atol=1e-10, err_msg=key)


MODELS = [
    (RBM(6, trainer=PCD(n_epochs=3, batch_size=30)), _bits),
    (RBM(6, trainer=CD(n_steps=2, n_epochs=3, batch_size=30)), _bits),
    (RBM(6, trainer=FPCD(n_epochs=3, batch_size=30)), _bits),
    (RBM(6, trainer=NCE(n_epochs=3, batch_size=30)), _bits),
    (AutoEncoder(6, trainer=Reconstruction(n_epochs=3, batch_size=30)), _bits),
    (KMeans(3), _reals),
    (GaussianMixture(2, trainer=EM(n_epochs=5)), _reals),
    (GaussianMixture(2, trainer=EM(n_epochs=5, n_init=2)), _reals),
    (PCA(2), _reals),
    (PCA(2, algorithm="randomized"), _reals),
    (SparseCoding(8), _reals),
]


@pytest.mark.parametrize("sync_every", [1, 4])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(("model", "data"), MODELS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_all_workers_end_with_one_state(model: Any, data: Any, size: int, sync_every: int) -> None:
    """Bit for bit: parameters, all of the carry, history but for the seconds; from parts of unequal
    size, whose chains together are as many as one process has."""
    X = data(211)
    if "n_epochs" in model.default_trainer().get_params() and model.trainer is None:
        model = clone(model).set_params(trainer=model.default_trainer().set_params(n_epochs=2))
    found = together(size, lambda workers: _learned(model, X, workers), sync_every)
    alone = _learned(model, X, ALONE)
    first = found[0]._state
    assert first.n_rows == 211
    assert first.history.keys() == alone._state.history.keys()
    for other in found[1:]:
        for part in ("params", "carry"):
            mine, theirs = getattr(first, part), getattr(other._state, part)
            assert mine.keys() == theirs.keys()
            for key, value in mine.items():
                assert_array_equal(value, theirs[key], err_msg=key)
        for key, values in first.history.items():
            assert_array_equal(values, other._state.history[key], err_msg=key)
    for part in ("params", "carry"):
        shapes = {key: value.shape for key, value in getattr(first, part).items()}
        assert shapes == {k: v.shape for k, v in getattr(alone._state, part).items()}


@pytest.mark.parametrize("size", [2, 3])
def test_closed_forms_do_not_depend_on_who_computes_them(size: int) -> None:
    """Principal components and a mixture after as many iterations, from the same start, to the
    rounding of float64 sums."""
    X = _reals(301)
    for model, key in ((PCA(3), "W"), (GaussianMixture(2, trainer=EM(n_epochs=4, tol=0)), "M")):
        one = _learned(model, X, ALONE)._state.params[key]
        for worker in together(size, lambda workers, m=model: _learned(m, X, workers)):
            other = worker._state.params[key]
            if key == "M":  # its start is from rows in another order: as two sets of means
                other = other[np.argsort(other[:, 0])]
                one = one[np.argsort(one[:, 0])]
                assert_allclose(other, one, rtol=0.2)
            else:
                assert_allclose(np.abs(other), np.abs(one), rtol=1e-8, atol=1e-10)


def test_steps_apart_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one update an epoch and ``sync_every=2``: the mean, weighted by rows, of what each
    worker's own update makes, to rounding."""
    X, model = _bits(90), RBM(5, centered=False, trainer=CD(n_epochs=1, batch_size=1000))
    seen: list[Any] = [None, None]
    average = sharing.Share._average

    def spied(self: Any, model: Any, state: Any) -> None:
        seen[self.workers.rank] = _copied(state.params)
        average(self, model, state)

    monkeypatch.setattr(sharing.Share, "_average", spied)
    parts = [X[:30], X[30:]]

    def work(workers: Workers) -> Any:
        return _learned(model, parts[workers.rank], workers, own_rows=False)

    found = together(2, work, sync_every=2)
    assert np.abs(seen[0]["W"] - seen[1]["W"]).max() > 1e-4  # they did go apart
    for key, value in found[0]._state.params.items():
        assert_allclose(value, (30 * seen[0][key] + 60 * seen[1][key]) / 90, atol=1e-14)


def test_workers_meet_as_often_as_they_were_told() -> None:
    X, model = _bits(200), RBM(5, trainer=PCD(n_epochs=1, batch_size=10))
    count = {
        every: together(2, lambda workers: (_learned(model, X, workers), workers.sums)[1], every)
        for every in (1, 5)
    }
    # 20 updates: a sum for each, or an average of the carry and one of the parameters every five.
    assert count[1][0] - count[5][0] >= 20 - 2 * 4 - 1


def test_a_resumed_run_is_the_uninterrupted_one() -> None:
    """Bit for bit, with as many workers; with fewer it goes on with all chains and rows."""
    X, trainer = _bits(150), PCD(n_epochs=4, batch_size=25)

    def stopping(epoch: int) -> Any:
        return lambda model, state, info: state.epoch == epoch

    def work(workers: Workers, callbacks: Any = ()) -> Any:
        model = RBM(5, trainer=clone(trainer).set_params(callbacks=callbacks))
        return _learned(model, X, workers)

    def going_on(workers: Workers, state: Any) -> Any:
        model = RBM(5, trainer=trainer)
        part = split_evenly(len(X), workers.size, workers.rank)
        chosen, rows = model._prepare(X[part], None, reset=True)
        model.seed_, model._device, model._home = 7, "cpu", "cpu"
        model._environment, model.trainer_ = {}, chosen
        model._state = training.TrainState(
            _copied(state.params), _copied(state.carry), state.epoch, state.step,
            {k: list(v) for k, v in state.history.items()}, state.n_rows,
        )  # fmt: skip
        model._forget()
        model.go_on(chosen, rows, workers)
        return model

    whole = together(3, work)[0]._state
    half = together(3, lambda workers: work(workers, (stopping(2),)))[0]._state
    assert half.epoch == 2
    rest = together(3, lambda workers: going_on(workers, half))[0]._state
    for key, value in whole.params.items():
        assert_array_equal(rest.params[key], value, err_msg=key)
    fewer = together(2, lambda workers: going_on(workers, half))[0]._state
    assert fewer.epoch == 4
    assert fewer.carry["chain/h"].shape == whole.carry["chain/h"].shape
    alone = going_on(ALONE, half)._state
    assert alone.epoch == 4


def test_early_stopping_stops_everyone() -> None:
    X = _bits(120)
    trainer = PCD(n_epochs=50, batch_size=40, callbacks=(EarlyStopping("learning_rate", 1),))
    model = RBM(4, trainer=trainer.set_params(learning_rate=0.1))
    trainer.callbacks = (lambda model, state, info: state.epoch == 3,)
    found = together(3, lambda workers: _learned(model, X, workers))
    assert {worker.n_iter_ for worker in found} == {3}


def test_a_worker_whose_numbers_overflow_stops_everyone() -> None:
    X = _reals(120) * 1e3
    model = AutoEncoder(4, trainer=Reconstruction(n_epochs=3, batch_size=20, learning_rate=1e200))
    with pytest.raises(DivergenceError, match="learning rate"):
        together(2, lambda workers: _learned(model, X, workers))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_as_many_rows_are_set_apart_however_many_workers(size: int) -> None:
    """So that a run goes on with more or fewer."""
    X, trainer = _bits(1000), CD(validation_fraction=0.1)

    def work(workers: Workers) -> int:
        part = split_evenly(1000, workers.size, workers.rank)
        kept, apart, total = training.split(clone(trainer), Rows(X[part]), 0, workers)
        assert apart is not None and len(kept) + len(apart) == part.stop - part.start
        assert total == 900
        return len(apart)

    assert sum(together(size, work)) == 100
    with pytest.raises(ValueError, match="the rows of some worker leaves 0 for validation"):
        together(
            3, lambda workers: training.split(CD(validation_fraction=0.1), Rows(X[:3]), 0, workers)
        )


def test_integers_are_those_of_worker_0() -> None:
    """Counts of what each did by itself, which have no mean."""
    X = _reals(90)
    model = KMeans(8, trainer=EM(n_epochs=3, batch_size=10))
    found = together(3, lambda workers: _learned(model, X, workers), sync_every=2)
    for key in ("reseeded", "worst"):
        assert len({int(worker._state.params[key]) for worker in found}) == 1


def test_rows_too_few_for_the_updates_are_refused() -> None:
    X, model = _bits(100), RBM(4, trainer=CD(n_epochs=1, batch_size=2))
    parts = [X[:97], X[97:]]
    with pytest.raises(ValueError, match="worker 1 has 3 of 100 rows, fewer than the 50 updates"):
        together(2, lambda workers: _learned(model, parts[workers.rank], workers, own_rows=False))


def test_chains_too_few_for_the_workers_are_refused() -> None:
    X, model = _bits(100), RBM(4, trainer=PCD(n_epochs=1, n_chains=2))
    with pytest.raises(ValueError, match="2 chains cannot be shared by 3 workers"):
        together(3, lambda workers: _learned(model, X, workers))


@pytest.mark.parametrize("sync_every", [1, 4])
@pytest.mark.parametrize("trainer", [PCD(), FPCD(), NCE()], ids=lambda t: type(t).__name__)
def test_arrays_on_a_device_are_shared_there(trainer: Any, sync_every: int, fake_cupy: Any) -> None:
    """On the stand-in: one state for all, and no more waiting than one process has, but where an
    epoch ends."""
    X = fake_cupy.asarray(_bits(121).astype(np.float32))
    model = RBM(5, trainer=clone(trainer).set_params(n_epochs=2, batch_size=30))
    found = together(2, lambda workers: _learned(model, X, workers), sync_every)
    for part in ("params", "carry"):
        mine, theirs = (getattr(worker._state, part) for worker in found)
        for key, value in mine.items():
            assert device_of(value) == "cuda:0", key
            assert_array_equal(to_host(value), to_host(theirs[key]), err_msg=key)
    model = RBM(5, trainer=clone(trainer).set_params(n_epochs=1, batch_size=10))
    waits = []
    for n in (200, 400):
        X = fake_cupy.asarray(_bits(n).astype(np.float32))
        before = standin.Counter.syncs
        together(2, lambda workers, X=X: _learned(model, X, workers), sync_every)
        waits.append(standin.Counter.syncs - before)
    assert waits[0] == waits[1]  # twenty more updates wait for nothing


# ---------------------------------------------------------------- small parts


def test_sums_of_many_arrays_are_one_buffer_for_each_dtype() -> None:
    def work(workers: Threaded) -> Any:
        arrays = {
            "a": np.full((2, 3), 1.0 + workers.rank, np.float32),
            "b": np.float64(10.0 * (workers.rank + 1)),
            "c": np.arange(4.0)[::-1] * (workers.rank + 1),
            "d": np.zeros((0, 5), np.float32),
        }
        return add_up(workers, arrays), workers.sums

    for found, sums in together(3, work):
        assert sums == 2
        assert list(found) == list("abcd")
        assert_array_equal(found["a"], np.full((2, 3), 6, np.float32))
        assert found["a"].dtype == np.float32 and found["b"].dtype == np.float64
        assert found["b"] == 60 and found["b"].shape == ()
        assert_array_equal(found["c"], np.arange(4.0)[::-1] * 6)
        assert found["d"].shape == (0, 5)


@pytest.mark.parametrize(("n", "updates", "batch"), [(100, 10, 10), (101, 7, 15), (9, 9, 4)])
def test_batches_are_cut_evenly(n: int, updates: int, batch: int) -> None:
    """Every row once, in batches that differ by one at most, for every kind of order."""
    X = np.arange(n, dtype=np.float64)[:, None]
    sizes = [split_evenly(n, updates, i) for i in range(updates)]
    counts = [part.stop - part.start for part in sizes]
    found = [x for x, _ in sharing._cut(Rows(X), counts, HostStream(0, 0, 0))]
    assert [len(x) for x in found] == counts
    assert max(counts) - min(counts) <= 1
    assert sorted(itertools.chain(*(x[:, 0] for x in found))) == list(range(n))


def test_workers_draw_noise_of_their_own() -> None:
    draws = [stream(3, Purpose.COLLECT, 5, "cpu", part).uniform(1000) for part in range(3)]
    assert_array_equal(draws[0], stream(3, Purpose.COLLECT, 5).uniform(1000))
    for a, b in itertools.combinations(draws, 2):
        # 1000 products of independent uniforms: |r| > 6/sqrt(1000) about twice in 1e9
        assert abs(np.corrcoef(a, b)[0, 1]) < 6 / np.sqrt(1000)
