"""Trainers that need no chains: EM, closed forms, exact maximum likelihood, and their loop."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import oracles
import pytest
import scipy.sparse
import standin
from cases import not_promised
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import parametrize_with_checks
from streams import ReplayStream

import energyscape
from energyscape import training
from energyscape.backend import Purpose, stream
from energyscape.callbacks import Checkpoint, EarlyStopping
from energyscape.errors import CapabilityError, DivergenceError
from energyscape.evaluation.laws import generic_params
from energyscape.models import RBM, GaussianRBM
from energyscape.models.factor_analysis import FactorAnalysis
from energyscape.models.mixture import GaussianMixture
from energyscape.models.pca import PCA
from energyscape.optim import Moment
from energyscape.trainers import EM, PCD, ClosedForm, MaximumLikelihood
from energyscape.trainers.base import Batch
from energyscape.verbs import speaks

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def _rows(n: int = 300, d: int = 4, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = 2 * rng.standard_normal((3, d))
    return np.asarray(centres[np.arange(n) % 3] + rng.standard_normal((n, d)) + 5)


X = _rows()
MODELS = {
    "full": GaussianMixture(3, random_state=0),
    "diag": GaussianMixture(3, covariance_type="diag", random_state=0),
    "spherical": GaussianMixture(3, covariance_type="spherical", random_state=0),
    "pca": PCA(2, random_state=0),
    "randomized": PCA(2, algorithm="randomized", random_state=0),
    "factors": FactorAnalysis(1, random_state=0),
}
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())


def _same(a: Any, b: Any) -> None:
    assert a._state.params.keys() == b._state.params.keys()
    for part in ("params", "carry"):
        for key, value in getattr(a._state, part).items():
            np.testing.assert_array_equal(value, getattr(b._state, part)[key], err_msg=key)


# ---------------------------------------------------------------- scikit-learn's face


@parametrize_with_checks(
    [
        GaussianMixture(2, trainer=EM(n_epochs=5)),
        GaussianMixture(2, covariance_type="diag", trainer=EM(n_epochs=5)),
        GaussianMixture(2, covariance_type="spherical", trainer=EM(batch_size=10, n_epochs=2)),
        PCA(1),
        PCA(1, algorithm="randomized", whiten=True),
        FactorAnalysis(1, max_iter=20),
        FactorAnalysis(1, trainer=EM(n_epochs=5)),
    ],
    expected_failed_checks=not_promised,
)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@each_model
def test_sparse_rows_are_rows(model: Any) -> None:
    zeros = np.where(X > 5, X, 0)
    dense, sparse = clone(model).fit(zeros), clone(model).fit(scipy.sparse.csr_array(zeros))
    _same(sparse, dense)
    got = sparse.score_samples(scipy.sparse.csr_array(zeros))
    np.testing.assert_array_equal(got, dense.score_samples(zeros))


@each_model
def test_copies_pickles_and_files_are_the_same_model(model: Any, tmp_path: Path) -> None:
    assert repr(clone(type(model)())) == repr(type(model)())
    fitted = clone(model).fit(X)
    fitted.save(tmp_path / "m.h5")
    for again in (pickle.loads(pickle.dumps(fitted)), energyscape.load(tmp_path / "m.h5")):
        _same(again, fitted)
        for call in (again.transform, again.score_samples, again.energy, again.reconstruct):
            np.testing.assert_array_equal(call(X), getattr(fitted, call.__name__)(X))
        np.testing.assert_array_equal(again.sample(4), fitted.sample(4))
        assert again.history_ == fitted.history_
    names = fitted.get_feature_names_out()
    assert len(names) == fitted.transform(X).shape[1] == fitted.n_components


@each_model
def test_device_arrays_give_what_numpy_gives(model: Any, fake_cupy: Any) -> None:
    """Start, sums and solution on the same noise; and no waiting for the device but once in an M
    step of full covariances."""
    trainer = model.default_trainer()
    results = []
    for xp in (np, fake_cupy):
        x = X if xp is np else fake_cupy.asarray(X)
        params = model.init_params(x, ReplayStream(xp))
        carry = trainer.start(model, params, x, None)
        standin.Counter.syncs = 0
        for _ in range(2):
            sums = trainer.collect(model, params, carry, Batch(x, len(x)), None)
            solve = getattr(model, "maximize", None) or model.solve
            params = solve(params, sums)
        waited = standin.Counter.syncs
        out = [*params.values(), model.free_energy(params, x), model.input_grad(params, x)]
        out += [model.encode(params, x), model.sample_exact(params, 5, ReplayStream(xp))]
        results.append(out if xp is np else [v.get() for v in out])
    assert waited <= 2 * (getattr(model, "covariance_type", "") == "full")
    for host, device in zip(*results, strict=True):
        np.testing.assert_allclose(device, host, rtol=1e-9, atol=1e-9)


@each_model
def test_whole_fits_run_on_the_device(model: Any, fake_cupy: Any) -> None:
    host = clone(model).fit(X)
    fitted = clone(model).fit(fake_cupy.asarray(X))
    assert isinstance(fitted.components_, standin.ndarray)
    assert isinstance(fitted.score_samples(fake_cupy.asarray(X)), standin.ndarray)
    # Other random numbers: the same optimum all the same.
    got = float(fitted.score_samples(fake_cupy.asarray(X)).mean())
    assert got == pytest.approx(host.score(X), rel=1e-2)


# ---------------------------------------------------------------- the loop


@pytest.mark.parametrize("rows", [7, 300, 1000])
@each_model
def test_an_epoch_is_all_rows_once_in_their_order(model: Any, rows: int, monkeypatch: Any) -> None:
    seen: list[np.ndarray] = []
    model = clone(model).set_params(trainer=model.default_trainer())
    if isinstance(model.trainer, EM):
        model.trainer.n_epochs = 5
    whole = clone(model).fit(X)
    trainer = type(model.default_trainer())

    def collect(self: Any, m: Any, params: Any, carry: Any, batch: Any, rng: Any) -> Any:
        seen.append(batch.x.copy())
        assert batch.n == len(X)
        return kept(self, m, params, carry, batch, rng)

    kept = trainer.collect
    monkeypatch.setattr(trainer, "collect", collect)
    monkeypatch.setattr(training, "EPOCH_BLOCK_BYTES", rows * X[0].nbytes)
    parts = clone(model).fit(X)
    per_pass = -(-len(X) // min(rows, len(X)))
    assert len(seen) == per_pass * parts.n_iter_ and parts.n_iter_ == whole.n_iter_
    for start in range(0, len(seen), per_pass):
        np.testing.assert_array_equal(np.concatenate(seen[start : start + per_pass]), X)
    for key, value in whole.params_.items():
        # Sums in another order; EM may amplify their rounding a little on its way.
        np.testing.assert_allclose(parts.params_[key], value, rtol=1e-6, atol=1e-7)


@each_model
def test_stored_rows_are_rows(model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(training, "EPOCH_BLOCK_BYTES", 50 * X[0].nbytes)
    whole = clone(model).fit(X)
    np.save(tmp_path / "x.npy", X)
    _same(clone(model).fit(np.load(tmp_path / "x.npy", mmap_mode="r")), whole)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = X
        _same(clone(model).fit(file["x"]), whole)


@each_model
def test_history_has_a_bound_and_no_learning_rate(model: Any) -> None:
    trainer = model.default_trainer().set_params(validation_fraction=0.2)
    fitted = clone(model).set_params(trainer=trainer).fit(X)
    keys = {"epoch", "seconds", "energy_train", "energy_valid", "energy_gap", "reconstruction"}
    wanted = keys | {"bound"} if isinstance(trainer, EM) else keys
    history = fitted.history_
    assert set(history) == wanted
    assert history["epoch"] == list(range(1, fitted.n_iter_ + 1))
    assert all(type(v) in (int, float) for values in history.values() for v in values)
    if "bound" in history:  # of the parameters before the update, on the rows that are trained on
        last = -np.mean(history["energy_train"][-2])
        assert history["bound"][-1] == pytest.approx(last, rel=1e-9)


@pytest.mark.filterwarnings("ignore:.*callbacks.* is not stored")
def test_callbacks_hear_every_pass_and_can_stop(tmp_path: Path) -> None:
    heard = []

    def stop_at_three(model: Any, state: Any, info: Any) -> bool:
        heard.append(info["bound"])
        return state.epoch == 3

    trainer = EM(tol=0, callbacks=[stop_at_three, Checkpoint(tmp_path / "{epoch}.h5")])
    model = GaussianMixture(3, trainer=trainer, random_state=0).fit(X)
    assert model.n_iter_ == 3 and heard == model.history_["bound"] == sorted(heard)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.h5", "2.h5", "3.h5"]
    early = EM(tol=0, validation_fraction=0.3, callbacks=[EarlyStopping("energy_valid", 2)])
    stopped = GaussianMixture(20, trainer=early, random_state=0).fit(X)
    assert stopped.n_iter_ < 30


# ---------------------------------------------------------------- EM


@pytest.mark.parametrize("batch_size", [None, 50])
@pytest.mark.parametrize(
    "model", [MODELS["full"], MODELS["diag"], MODELS["factors"]], ids=["full", "diag", "factors"]
)
def test_a_resumed_run_is_the_uninterrupted_one(
    model: Any, batch_size: int | None, tmp_path: Path
) -> None:
    def trainer(n_epochs: int, *callbacks: Any) -> EM:
        return EM(n_epochs, tol=1e-12, batch_size=batch_size, callbacks=callbacks)

    whole = clone(model).set_params(trainer=trainer(8)).fit(X)
    checkpoint = Checkpoint(tmp_path / "{epoch}.h5")
    clone(model).set_params(trainer=trainer(8, checkpoint)).fit(X)
    part: Any = energyscape.load(tmp_path / "3.h5")
    assert part.n_iter_ == 3
    resumed = part.set_params(trainer=trainer(8)).resume(X)
    assert resumed.n_iter_ == whole.n_iter_
    _same(resumed, whole)
    assert resumed.history_["energy_train"] == whole.history_["energy_train"]
    again = copy.deepcopy(whole).resume(X)  # nothing is left to do
    _same(again, whole)


def test_em_stops_when_it_gains_little() -> None:
    """By what it gained since the first pass, whatever the scale and zero of the energy."""
    counts = []
    for scale in (1e-3, 1.0, 1e3):
        model = GaussianMixture(3, random_state=0, trainer=EM(tol=1e-3)).fit(X * scale)
        bound = np.array(model.history_["bound"])
        gains = np.diff(bound)
        assert gains[-1] <= 1e-3 * (bound[-1] - bound[0])
        assert (gains[:-1] > 1e-3 * (bound[1:-1] - bound[0])).all()
        counts.append(model.n_iter_)
    assert len(set(counts)) == 1
    with pytest.warns(
        ConvergenceWarning, match="still gained .* in its last pass of 2; raise n_ep"
    ):
        GaussianMixture(3, random_state=0, trainer=EM(2, tol=0)).fit(X)


def test_the_best_of_several_starts_stays() -> None:
    hard, ends = _rows(200, 2, 5), []
    for seed in range(3):
        for n_init in (1, 4):
            trainer = EM(n_init=n_init, n_epochs=200)
            model = GaussianMixture(8, trainer=trainer, random_state=seed).fit(hard)
            ends.append(model.history_["bound"][-1])
            assert model.n_iter_ == len(model.history_["bound"]) <= 200
    gains = np.diff(np.reshape(ends, (-1, 2)), axis=1)
    assert (gains >= 0).all() and (gains > 1e-3).any()
    trainer = EM(n_init=4, n_epochs=200)
    _same(GaussianMixture(8, trainer=trainer, random_state=2).fit(hard), model)


def test_running_means_of_all_rows_are_em() -> None:
    """κ = 1 from scratch weighs all batches alike: with one batch of all rows the first update is
    EM's own, and the sums are the means of all so far."""
    model = GaussianMixture(2, random_state=0)
    params = model.init_params(X, stream(0, Purpose.INIT))
    trainer = EM(batch_size=100, learning_decay=1.0)
    carry = trainer.start(model, params, X, None)
    total, fixed = {}, {k: v.copy() for k, v in params.items()}
    for step in range(3):
        rows = X[100 * step : 100 * step + 100]
        sums = model.statistics(fixed, rows)
        total = {k: total[k] + v for k, v in sums.items()} if total else dict(sums)
        trainer.apply(model, params, carry, sums, Moment(0, step, 0.0, None))
    for key, value in total.items():
        np.testing.assert_allclose(carry[f"sums/{key}"], value / total["rows"], rtol=1e-12)
    wanted = model.maximize(fixed, model.statistics(fixed, X))
    np.testing.assert_allclose(np.diff(params["w"]), np.diff(wanted["w"]), atol=1e-9)
    for key in "ML":
        np.testing.assert_allclose(params[key], wanted[key], rtol=1e-9, atol=1e-12)


def test_partial_fit_goes_on() -> None:
    model = GaussianMixture(3, random_state=0)
    for k in range(5):
        model.partial_fit(X)
        assert model.n_iter_ == k + 1
    assert model.history_["bound"] == sorted(model.history_["bound"])
    whole = GaussianMixture(3, random_state=0, trainer=EM(5, tol=0)).fit(X)
    _same(model, whole)
    online = GaussianMixture(3, random_state=0, trainer=EM(batch_size=20))
    for lo in range(0, 300, 100):
        online.partial_fit(X[lo : lo + 100])
    assert online._state.step == 15
    assert online.score(X) > GaussianMixture(1).fit(X).score(X)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (EM(0), "EM.n_epochs must be an integer >= 1"),
        (EM(n_init=0), "EM.n_init must be an integer >= 1"),
        (EM(tol=-1), "EM.tol must be >= 0"),
        (EM(learning_decay=0.5), r"EM.learning_decay must be in \(0.5, 1\]"),
        (EM(batch_size=0), "EM.batch_size must be an integer >= 1"),
        (EM(validation_fraction=1), r"EM.validation_fraction must be in \[0, 1\)"),
        (EM(callbacks="x"), "EM.callbacks must be a list or tuple"),
    ],
    ids=repr,
)
def test_bad_settings_are_named(trainer: EM, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianMixture(2, trainer=trainer).fit(X)


def test_other_pairs_are_refused() -> None:
    with pytest.raises(
        CapabilityError, match=r"ClosedForm cannot train GaussianMixture.*needs solve"
    ):
        GaussianMixture(2, trainer=ClosedForm()).fit(X)
    with pytest.raises(CapabilityError, match="EM cannot train RBM: it needs statistics"):
        RBM(2, trainer=EM()).fit(X)


# ---------------------------------------------------------------- exact maximum likelihood


def _rbms() -> list[Any]:
    bits = oracles.bars_and_stripes(3).astype(np.float64)
    reals = _rows(40, 3)
    return [
        (RBM(4), bits[:10]),
        (RBM(11), bits[:10]),  # sums over the nine visible units
        (RBM(4, centered=False), bits[:10]),
        (GaussianRBM(4), reals),
        (GaussianRBM(4, variance=1.0), reals),
    ]


@pytest.mark.parametrize(("model", "x"), _rbms(), ids=lambda v: repr(v)[:30])
def test_the_gradient_of_log_z_is_central_differences(model: Any, x: np.ndarray) -> None:
    params = generic_params(model, x)
    grads = model.log_partition_grad(params)
    trainable = {k for k, spec in model.param_specs().items() if spec.trainable}
    assert set(grads) == trainable
    for key in trainable:
        numeric = np.empty(params[key].size)
        for i in range(numeric.size):
            ends = []
            for sign in (1, -1):
                moved = np.array(params[key])
                moved.flat[i] += sign * 1e-5
                ends.append(model.log_partition(params | {key: moved}))
            numeric[i] = (ends[0] - ends[1]) / 2e-5
        # Truncation h² and rounding ε |log Z| / h: below 1e-6 of the largest.
        scale = max(1.0, np.abs(numeric).max())
        np.testing.assert_allclose(grads[key].ravel(), numeric, atol=1e-6 * scale)
        assert np.abs(numeric).max() > 1e-3  # it is not all zeros that agree


@pytest.mark.parametrize(("model", "x"), _rbms(), ids=lambda v: repr(v)[:30])
def test_what_is_collected_is_the_gradient_of_the_likelihood(model: Any, x: np.ndarray) -> None:
    params = generic_params(model, x)
    trainer = MaximumLikelihood()
    sums = trainer.collect(model, params, {}, Batch(x, len(x)), None)
    halves = [
        trainer.collect(model, params, {}, Batch(part, len(x)), None) for part in (x[:3], x[3:])
    ]
    rng = np.random.default_rng(0)
    for key in (k for k, spec in model.param_specs().items() if spec.trainable):
        np.testing.assert_allclose(halves[0][key] + halves[1][key], sums[key], atol=1e-10)
        for i in rng.permutation(params[key].size)[:10]:
            ends = []
            for sign in (1, -1):
                moved = np.array(params[key])
                moved.flat[i] += sign * 1e-5
                at = params | {key: moved}
                ends.append(model.free_energy(at, x).mean() + model.log_partition(at))
            slope = (ends[0] - ends[1]) / 2e-5
            assert sums[key].flat[i] == pytest.approx(slope, abs=1e-6 * max(1, abs(slope)))


def test_nothing_of_a_normalised_model_is_pulled_up() -> None:
    for model in (MODELS["full"], MODELS["diag"], MODELS["factors"]):
        params = generic_params(model, X)
        sums = MaximumLikelihood().collect(model, params, {}, Batch(X, len(X)), None)
        grads = model.free_energy_grad(params, X, np.full(len(X), 1 / len(X)))
        for key, value in sums.items():
            np.testing.assert_allclose(value, grads[key], rtol=1e-12)


def test_it_is_at_least_as_likely_as_with_chains() -> None:
    bars = np.tile(oracles.bars_and_stripes(3), (6, 1))
    scores = []
    for trainer in (MaximumLikelihood, PCD):
        settings = {"n_epochs": 1500, "batch_size": 96, "learning_rate": 1.0}
        model = RBM(8, trainer=trainer(**settings), random_state=0).fit(bars)
        scores.append(model.score(bars))
        assert speaks(model, ("log_partition_grad",)) == []
    assert scores[0] >= scores[1]
    # Twelve images come once in 16 and two come twice: their entropy is the most that there is.
    most = (12 * np.log(1 / 16) + 4 * np.log(2 / 16)) / 16
    assert most - 0.2 < scores[0] <= most + 1e-3


def test_the_loop_of_exact_likelihood() -> None:
    bars = oracles.bars_and_stripes(3)
    trainer = MaximumLikelihood(n_epochs=3, batch_size=5, averaging=0.5, validation_fraction=0.2)
    model = RBM(3, trainer=trainer, random_state=0).fit(bars)
    assert {"learning_rate", "grad_norm", "energy_valid"} <= set(model.history_)
    part = RBM(3, trainer=MaximumLikelihood(n_epochs=4), random_state=0)
    whole = clone(part).fit(bars)
    stopped = part.set_params(trainer__callbacks=[lambda m, state, info: state.epoch == 2]).fit(
        bars
    )
    assert stopped.n_iter_ == 2
    _same(stopped.set_params(trainer__callbacks=()).resume(bars), whole)


def test_too_many_states_are_refused() -> None:
    bits = (np.random.default_rng(0).random((5, 30)) < 0.5).astype(np.float32)
    with pytest.raises(
        CapabilityError, match=r"sum over 2\^25 states of RBM.*up to 2\^20. Use PCD"
    ):
        RBM(25, trainer=MaximumLikelihood()).fit(bits)
    with pytest.raises(CapabilityError, match="MaximumLikelihood cannot train PCA: it needs log_p"):
        PCA(2, trainer=MaximumLikelihood()).fit(X)


# ---------------------------------------------------------------- several starts, and overflow


def test_files_hold_the_best_of_several_starts(tmp_path: Path) -> None:
    """A checkpoint is written along every start; what stays is the one that the model shows."""
    path, best = tmp_path / "m.h5", 0
    for seed in range(4):
        trainer = EM(n_epochs=4, n_init=5, callbacks=[Checkpoint(path)])
        model = GaussianMixture(5, trainer=trainer, random_state=seed).fit(_rows())
        assert energyscape.load(path).score(_rows()) == model.score(_rows())
        last = EM(n_epochs=4)
        best += model.score(_rows()) > clone(model).set_params(trainer=last).fit(_rows()).score(
            _rows()
        )
    assert best  # other starts than the first did win somewhere, or nothing was shown


def test_an_error_in_a_late_start_leaves_the_best_of_the_earlier() -> None:
    heard = []

    def fail(model: Any, state: Any, info: Any) -> bool:
        heard.append(info["bound"])
        if len(heard) == 7:  # the second epoch of the second start
            raise RuntimeError("enough")
        return False

    model = GaussianMixture(3, trainer=EM(n_epochs=5, tol=0, n_init=3, callbacks=[fail]))
    with pytest.raises(RuntimeError, match="enough"):
        model.set_params(random_state=0).fit(_rows())
    assert model.n_iter_ == 5 and model.history_["bound"] == heard[:5]


@pytest.mark.parametrize("model", [PCA(2), PCA(), FactorAnalysis(2), GaussianMixture(2)], ids=repr)
def test_overflow_is_told_as_divergence(model: Any) -> None:
    """Squares of 1e25 are beyond float32, and no solver's own words say so."""
    with pytest.raises(DivergenceError, match="cause is the scale of the data"):
        clone(model).fit((_rows() * 1e25).astype(np.float32))


def test_pca_keeps_all_axes_whatever_it_starts_from(monkeypatch: Any) -> None:
    monkeypatch.setattr(ClosedForm, "start_rows", 3)
    assert PCA().fit(_rows(50, 6)).components_.shape == (6, 6)


def test_chains_on_an_energy_of_no_density_are_refused() -> None:
    model, X = PCA(2).fit(_rows()), _rows()
    for asked in ({"start": X[:5]}, {"beta": 0.5}, {"clamp": (np.arange(4) < 2, X[0])}):
        with pytest.raises(CapabilityError, match=r"PCA has no normaliser, so that the chains"):
            model.sample(5, **asked)
    assert model.sample(5).shape == (5, 4)
