"""The face is scikit-learn's: its own checks, pipelines, grid search, containers and errors."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import oracles
import pytest
from cases import CASES, MACHINES, Case, not_promised, short
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from energyscape.callbacks import Checkpoint
from energyscape.errors import CapabilityError, DataRangeWarning
from energyscape.models import (
    RBM,
    CovarianceRBM,
    DeepBoltzmannMachine,
    GaussianRBM,
    McRBM,
    MPoT,
    PoT,
    SparseCoding,
)
from energyscape.samplers import AIS, Gibbs
from energyscape.trainers import CD, EM, FPCD, PCD

BITS = CASES[0].data.astype(np.float32)
SHORT = {"n_epochs": 2, "n_chains": 20}


@pytest.mark.filterwarnings("ignore::energyscape.errors.DataRangeWarning")
@pytest.mark.filterwarnings("ignore::energyscape.errors.SamplerWarning")
@pytest.mark.filterwarnings("ignore::energyscape.errors.UnnormalizedScoreWarning")
@parametrize_with_checks(
    [
        RBM(4, trainer=PCD(**SHORT)),
        RBM(4, trainer=CD(n_epochs=2), centered=False),
        GaussianRBM(4, trainer=FPCD(**SHORT)),
        GaussianRBM(4, variance=1.0, trainer=PCD(**SHORT, averaging=0.5)),
        PoT(4, trainer=PCD(**SHORT)),
        CovarianceRBM(4, trainer=PCD(**SHORT)),
        McRBM(4, n_mean_components=2, normalize=True, trainer=PCD(**SHORT)),
        MPoT(4, n_mean_components=2, trainer=FPCD(**SHORT)),
    ]
)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::energyscape.errors.DataRangeWarning")
@pytest.mark.filterwarnings("ignore::energyscape.errors.SamplerWarning")
@pytest.mark.filterwarnings("ignore::energyscape.errors.UnnormalizedScoreWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(
    [
        kind()
        for kind in dict.fromkeys(type(case.make()) for case in CASES)
        # A fit of these takes minutes at its defaults (PoT stands for its kin), and the checks know
        # rows alone, not images or clips.
        if kind not in (DeepBoltzmannMachine, CovarianceRBM, McRBM, MPoT)
        and not hasattr(kind, "takes_images")
        and not hasattr(kind, "takes_clips")
    ],
    expected_failed_checks=not_promised,
)
def test_scikit_learn_checks_at_the_defaults(estimator: Any, check: Any) -> None:
    check(estimator)


# One of six trajectories that diverges says nothing of what this is about.
@pytest.mark.filterwarnings("ignore::energyscape.errors.SamplerWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_models_construct_without_arguments_and_clone(case: Case) -> None:
    model = type(case.make())()
    assert model.trainer is None and repr(clone(model)) == repr(model)
    assert model.default_sampler().obstacle(model.target({})) is None
    machine = case in MACHINES or "Boltz" in case.name or "TiledRBM" in case.name
    assert isinstance(model.default_sampler(), Gibbs) == machine
    trainer = short(case.trainers[0], n_epochs=1, tol=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = case.make(trainer=trainer, random_state=0).fit(case.data)
    assert isinstance(fitted.trainer_, type(trainer))
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.transform(case.data), fitted.transform(case.data))
    if fitted.proper or hasattr(fitted, "sample_exact"):
        np.testing.assert_array_equal(again.sample(2, n_steps=3), fitted.sample(2, n_steps=3))


def test_fitted_attributes_have_their_shapes() -> None:
    model = RBM(4, trainer=PCD(n_epochs=1), random_state=0).fit(BITS)
    assert model.components_.shape == (4, 7)
    assert model.intercept_hidden_.shape == (4,) and model.intercept_visible_.shape == (7,)
    assert model.n_features_in_ == 7 and model.n_iter_ == 1 and model.seed_ == 0
    assert list(model.get_feature_names_out()) == ["rbm0", "rbm1", "rbm2", "rbm3"]
    for name in ("components_", "params_", "history_", "n_iter_"):
        assert not hasattr(RBM(), name)
    gaussian = GaussianRBM(4, trainer=PCD(n_epochs=1)).fit(CASES[2].data)
    assert gaussian.variances_.shape == (6,)
    np.testing.assert_allclose(np.log(gaussian.variances_), gaussian.params_["log_var"])


def test_exact_scores_are_log_likelihoods() -> None:
    model = RBM(5, random_state=0, trainer=PCD(n_epochs=5)).fit(BITS)
    v = oracles.states(7)
    log_p = oracles.rbm_log_p({k: w.astype(np.float64) for k, w in model.params_.items()})
    # The model computes fields in float32.
    np.testing.assert_allclose(model.score_samples(v), log_p, atol=1e-4)
    assert model.score(BITS) == pytest.approx(model.score_samples(BITS).mean())
    assert model.log_partition_ess_ == np.inf
    assert model.log_partition_interval_ == (model.log_partition_, model.log_partition_)
    low, high = model.log_likelihood_bounds(BITS, AIS(200, 500))
    # Bootstrapped error of both sides is about 0.005 nat here.
    assert low == pytest.approx(model.score(BITS), abs=0.05)
    assert high == pytest.approx(model.score(BITS), abs=0.05)


@pytest.mark.slow
def test_large_models_are_estimated_once() -> None:
    rng = np.random.default_rng(0)
    X = (rng.random((50, 30)) < 0.3).astype(np.float32)
    model = RBM(24, random_state=0, trainer=PCD(n_epochs=20)).fit(X)
    exact = model.log_partition(model.params_)
    low, high = model.log_partition_interval_
    assert 0 < model.log_partition_ess_ <= 100
    assert abs(model.log_partition_ - exact) < 0.2 and high - low < 0.5
    kept = model._partition
    model.score_samples(X)
    assert model._partition is kept
    bounds = model.log_likelihood_bounds(X, AIS(100, 1000))
    assert bounds.low_holds_for == "annealed model"
    truth = -model.energy(X).mean() - exact
    assert bounds.low - 0.2 < truth < bounds.high + 0.2
    assert model._partition is kept
    model.partial_fit(X)
    assert model._partition is None


def test_grid_search_picks_the_rate_with_the_best_exact_likelihood() -> None:
    X = np.tile(oracles.bars_and_stripes(3), (6, 1))
    rates = [0.0001, 0.05, 5.0]
    model = RBM(12, trainer=PCD(n_epochs=300, batch_size=96), random_state=0)
    grid = {"trainer__learning_rate": rates}
    # All rows on both sides: the data set is its own test set.
    split = PredefinedSplit(np.zeros(len(X)))
    rows = np.arange(len(X))
    assert split.get_n_splits() == 1
    search = GridSearchCV(model, grid, cv=[(rows, rows)], refit=False).fit(X)
    exact = []
    for rate in rates:
        fitted = clone(model).set_params(trainer__learning_rate=rate).fit(X)
        log_p = oracles.rbm_log_p({k: v.astype(np.float64) for k, v in fitted.params_.items()})
        exact.append(log_p[(X @ (1 << np.arange(9))).astype(int)].mean())
    assert search.best_params_["trainer__learning_rate"] == rates[int(np.argmax(exact))] == 0.05
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], exact, atol=1e-3)


def test_setting_a_parameter_of_no_trainer_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"RBM\.trainer is None.*RBM\(trainer=PCD\(\)\)"):
        RBM().set_params(trainer__learning_rate=0.1)
    model = RBM().set_params(trainer=CD(), trainer__learning_rate=0.3)
    assert model.trainer.learning_rate == 0.3


@pytest.mark.slow
def test_features_go_into_a_classifier() -> None:
    from energyscape.data import load_digits

    X, y = load_digits()
    rbm = RBM(100, trainer=PCD(learning_rate=0.5), random_state=0)
    pipeline = make_pipeline(rbm, LogisticRegression(C=10, max_iter=500))
    # Ten classes: chance is 0.1, random features of this size reach about 0.6.
    assert pipeline.fit(X[:1200], y[:1200]).score(X[1200:], y[1200:]) > 0.85
    frame = pipeline[0].set_output(transform="pandas").transform(X[:3])
    assert list(frame.columns[:2]) == ["rbm0", "rbm1"]


# ---------------------------------------------------------------- sampling


def test_the_same_call_gives_the_same_samples() -> None:
    model = RBM(4, trainer=PCD(n_epochs=2), random_state=0).fit(BITS)
    S = model.sample(6, n_steps=5)
    assert S.shape == (6, 7) and S.dtype == np.float32 and set(np.unique(S)) <= {0, 1}
    np.testing.assert_array_equal(S, model.sample(6, n_steps=5))
    assert not np.array_equal(S, model.sample(6, n_steps=5, random_state=1))
    np.testing.assert_array_equal(
        model.sample(6, n_steps=5, random_state=1),
        model.sample(6, n_steps=5, random_state=1, sampler=Gibbs()),
    )
    assert model.sample().shape == (1, 7)
    start = np.ones((3, 7))
    np.testing.assert_array_equal(model.sample(3, n_steps=0, start=start), start)


def test_models_without_chains_start_from_the_base_measure() -> None:
    model = RBM(4, trainer=CD(n_epochs=2), random_state=0).fit(BITS)
    x = model.sample(20_000, n_steps=0)
    # Rates within 5 standard errors of the data's (kept off 0 and 1 by a thousandth).
    rates = BITS.mean(axis=0)
    assert (np.abs(x.mean(axis=0) - rates) < 0.02).all()


def test_clamped_samples_hold_their_values() -> None:
    model = RBM(4, trainer=PCD(n_epochs=50), random_state=0).fit(BITS)
    mask = np.arange(7) < 3
    one = model.sample(50, n_steps=20, clamp=(mask, BITS[0]))
    assert (one[:, mask] == BITS[0, mask]).all()
    rows = model.sample(5, n_steps=20, clamp=(np.tile(mask, (5, 1)), BITS[:5]))
    assert (rows[:, mask] == BITS[:5, mask]).all()
    assert (one[:, ~mask] != one[0, ~mask]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_samples": 0}, "n_samples must be an integer >= 1"),
        ({"n_steps": -1}, "n_steps must be an integer >= 0"),
        ({"n_samples": 2.0}, "n_samples must be an integer"),
        ({"beta": 0}, "beta must be > 0"),
        ({"beta": np.ones(3)}, "beta must be > 0"),
        ({"start": np.zeros((2, 7))}, r"start has shape \(2, 7\), wanted \(3, 7\)"),
        ({"start": np.full((3, 7), np.nan)}, "start contains NaN"),
        ({"clamp": (np.zeros(7), np.zeros(7))}, "must be boolean"),
        ({"clamp": (np.zeros(6, bool), np.zeros(7))}, r"mask has shape \(6,\)"),
        ({"clamp": np.zeros((2, 7), bool)}, r"clamp must be a pair \(mask, values\), got ndarray"),
        ({"clamp": (np.zeros(7, bool), np.zeros((2, 7)))}, r"values has shape \(2, 7\)"),
        ({"random_state": -1}, "random_state must be >= 0"),
        ({"random_state": "x"}, "random_state must be an int"),
    ],
)
def test_bad_sampling_calls_are_named(arguments: dict[str, Any], message: str) -> None:
    model = RBM(4, trainer=PCD(n_epochs=1), random_state=0).fit(BITS)
    with pytest.raises(ValueError, match=message):
        model.sample(**({"n_samples": 3, "n_steps": 1} | arguments))


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "call",
    ["sample", "transform", "energy", "score", "score_samples", "reconstruct", "inverse_transform"],
)
def test_everything_needs_a_fit_first(call: str) -> None:
    with pytest.raises(NotFittedError):
        getattr(RBM(), call)(*([] if call == "sample" else [BITS]))
    for late in (lambda: RBM().log_partition_, lambda: RBM().log_likelihood_bounds(BITS)):
        with pytest.raises(NotFittedError):
            late()
    with pytest.raises(NotFittedError):
        RBM().resume(BITS)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.zeros((0, 3)), r"0 sample\(s\)"),
        (np.zeros((3, 0)), r"0 feature\(s\)"),
        (np.array([[0.0, np.nan]]), "NaN"),
        (np.array([[0.0, np.inf]]), "infinity"),
        (np.zeros(3), "Expected 2D array"),
        (np.zeros((2, 2, 2)), r"dim 3"),
        (np.array([["a", "b"]]), "could not convert|dtype"),
    ],
)
def test_bad_rows_are_refused(X: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RBM().fit(X)
    with pytest.raises(ValueError, match=message):
        RBM().partial_fit(X)


def test_other_widths_are_refused() -> None:
    model = RBM(4, trainer=PCD(n_epochs=1)).fit(BITS)
    for call in (model.transform, model.energy, model.partial_fit, model.resume):
        with pytest.raises(ValueError, match="X has 3 features, but RBM is expecting 7 features"):
            call(BITS[:, :3])
    with pytest.raises(ValueError, match=r"decodes codes of shape \(n, 4\)"):
        model.inverse_transform(BITS)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (RBM(0), "n_components must be an integer >= 1, got 0"),
        (RBM(2.5), "n_components must be an integer >= 1, got 2.5"),
        (RBM(random_state=-1), "random_state must be >= 0"),
        (GaussianRBM(variance="fixed"), "variance must be 'learned' or > 0, got 'fixed'"),
        (GaussianRBM(variance=-1.0), "variance must be 'learned' or > 0"),
        (GaussianRBM(min_variance=0), r"min_variance must be in \(0, 1\]"),
    ],
    ids=repr,
)
def test_bad_constructor_arguments_are_named(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.fit(BITS)


@pytest.mark.parametrize(
    ("X", "remedy"),
    [
        (BITS * 255, r"values in \[0, 255\].*X / 255"),
        ((BITS * 255).astype(np.uint8), r"\[0, 255\].*X / 255"),
        (BITS - 0.5, r"values in \[-0.5, 0.5\].*MinMaxScaler"),
    ],
)
def test_values_off_the_unit_interval_warn_with_the_remedy(X: Any, remedy: str) -> None:
    with pytest.warns(DataRangeWarning, match=remedy) as caught:
        RBM(4, trainer=PCD(n_epochs=1)).fit(X)
    assert caught[0].filename == __file__
    with pytest.warns(DataRangeWarning, match=remedy):
        RBM(4, trainer=PCD(n_epochs=1)).partial_fit(X)


def _awkward(kind: str) -> np.ndarray:
    """Rows that a model of bits in [0, 1], or of standardised reals, would not expect."""
    rng = np.random.default_rng(0)
    if kind == "bytes":
        from energyscape.data import load_digits

        return (load_digits()[0][:300] * 255).astype(np.uint8)
    return {
        "integers": rng.integers(-1000, 1000, (200, 10)),
        "far": rng.normal(100, 1, (200, 10)).astype(np.float32),
        "constant": np.full((50, 5), 7.0),
        "wide": rng.normal(0, 1, (200, 6)) * 10.0 ** np.arange(-6, 6, 2),
        "one row": np.ones((1, 4)),
    }[kind]


def _all_finite(model: Any, X: np.ndarray) -> bool:
    results = [model.transform(X), model.sample(3, n_steps=10), model.score_samples(X)]
    return all(np.isfinite(v).all() for v in [*model.params_.values(), *results])


@pytest.mark.filterwarnings("ignore::energyscape.errors.DataRangeWarning")
@pytest.mark.parametrize("model", [RBM, GaussianRBM])
@pytest.mark.parametrize("kind", ["bytes", "integers", "far", "constant", "wide", "one row"])
def test_defaults_stay_finite_on_any_scale(model: type, kind: str) -> None:
    trainer = model().default_trainer().set_params(n_epochs=40)
    X = _awkward(kind)
    assert _all_finite(model(16, trainer=trainer, random_state=0).fit(X), X)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::energyscape.errors.DataRangeWarning")
@pytest.mark.filterwarnings("ignore::energyscape.errors.SamplerWarning")
@pytest.mark.parametrize("model", [RBM, GaussianRBM])
@pytest.mark.parametrize("kind", ["bytes", "integers", "far"])
def test_plain_default_fits_stay_finite_on_any_scale(model: type, kind: str) -> None:
    """The whole default training, as a user meets it who sets nothing."""
    X = _awkward(kind)
    assert _all_finite(model().fit(X), X)


def test_asking_for_too_large_a_sum_says_what_else_there_is() -> None:
    rng = np.random.default_rng(0)
    model = RBM(30, trainer=PCD(n_epochs=1)).fit((rng.random((9, 40)) < 0.5).astype(np.float32))
    with pytest.raises(CapabilityError, match="log_likelihood_bounds"):
        model.log_partition(model.params_)


def test_many_chains_move_in_blocks(monkeypatch: Any) -> None:
    """Blocks draw fresh numbers, and starts and clamps of single rows stay with their rows."""
    from energyscape.models import sampling

    monkeypatch.setattr(sampling, "CHAINS_AT_ONCE", 7)
    model = RBM(4, trainer=CD(n_epochs=1), random_state=0).fit(BITS)
    start = np.repeat(BITS[:1], 20, axis=0)
    kept = start.copy()
    S = model.sample(20, start=start, n_steps=5)
    np.testing.assert_array_equal(start, kept)
    assert S.shape == (20, 7) and not np.array_equal(S[:7], S[7:14])
    mask = np.zeros((20, 7), bool)
    mask[np.arange(20), np.arange(20) % 7] = True
    values = np.random.default_rng(0).integers(0, 2, (20, 7)).astype(np.float32)
    S = model.sample(20, clamp=(mask, values), n_steps=5)
    np.testing.assert_array_equal(S[mask], values[mask])


# ---------------------------------------------------------------- objects and containers


class Recorder:
    """A callback that keeps what it sees."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def __call__(self, model: Any, state: Any, info: Any) -> bool:
        self.seen.append(model.log_partition_)
        return False


def test_callbacks_are_the_users_own_and_see_fresh_likelihoods() -> None:
    recorder = Recorder()
    model = RBM(4, trainer=PCD(n_epochs=3, callbacks=[recorder]), random_state=0).fit(BITS)
    assert len(set(recorder.seen)) == 3
    assert recorder.seen[-1] == model.log_partition_


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_names_of_features_are_those_of_the_fit(case: Case) -> None:
    """Whatever the settings are since."""
    if not hasattr(case.make(), "get_feature_names_out"):
        return
    with pytest.raises(NotFittedError):
        case.make().get_feature_names_out()
    model = case.make(trainer=short(case.trainers[0], n_epochs=1)).fit(case.data)
    names = list(model.get_feature_names_out())
    width = model.transform(case.data).shape[1:]
    assert len(names) in (np.prod(width), width[-1])  # or of maps
    if isinstance(model.get_params().get("n_components"), int):
        model.set_params(n_components=model.n_components + 1)
        assert list(model.get_feature_names_out()) == names


def test_without_a_density_there_is_no_log_partition() -> None:
    model = SparseCoding(4, trainer=EM(n_epochs=1), random_state=0).fit(CASES[2].data)
    for name in ("log_partition_", "log_partition_interval_", "log_partition_ess_"):
        assert not hasattr(model, name)


def test_displaying_a_model_estimates_nothing() -> None:
    X = (np.random.default_rng(0).random((50, 30)) < 0.3).astype(np.float32)
    model = RBM(24, random_state=0, trainer=PCD(n_epochs=1)).fit(X)
    assert "components_" in model._repr_html_()
    assert model._partition is None and "log_partition_" not in dir(model)
    assert np.isfinite(model.log_partition_) and "log_partition_" in dir(model)


def test_copies_do_not_share_what_training_moves() -> None:
    model = RBM(4, trainer=PCD(n_epochs=1), random_state=0).fit(BITS)
    kept = model.components_.copy()
    copy.copy(model).partial_fit(BITS)
    np.testing.assert_array_equal(model.components_, kept)


def test_rows_of_another_dtype_are_computed_in_that_of_the_fit() -> None:
    model = RBM(4, trainer=PCD(n_epochs=1), random_state=0).fit(BITS)
    same = copy.copy(model).partial_fit(BITS)
    for dtype in (np.float64, np.int64, bool):
        other = copy.copy(model).partial_fit(BITS.astype(dtype))
        assert {v.dtype for v in other._state.carry.values()} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(other.components_, same.components_)


def test_numpy_integers_are_integers() -> None:
    grid = {"trainer__batch_size": np.array([20, 30]), "n_components": np.array([2, 3])}
    search = GridSearchCV(RBM(2, trainer=PCD(n_epochs=np.int64(1))), grid, cv=2).fit(BITS)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainer__optimizer__momentum": 0.5}, "PCD.optimizer is None"),
        ({"trainer__optimizer": RBM()}, "must be an optimizer"),
        ({"trainer__callbacks": "word"}, "list or tuple of callables"),
        ({"trainer__callbacks": Recorder()}, "list or tuple of callables"),
        ({"trainer__callbacks": [Checkpoint("m.h5", every=0)]}, "every must be an integer >= 1"),
    ],
)
def test_bad_trainers_are_named_before_training(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RBM(2, trainer=PCD(n_epochs=1)).set_params(**change).fit(BITS)


def test_unknown_pixels_may_be_nan_in_a_clamp() -> None:
    model = RBM(4, trainer=PCD(n_epochs=1), random_state=0).fit(BITS)
    mask = np.arange(7) < 3
    values = np.where(mask, BITS[0], np.nan)
    x = model.sample(5, clamp=(mask, values), n_steps=3)
    assert np.isfinite(x).all()
    with pytest.raises(ValueError, match="values contains NaN"):
        model.sample(5, clamp=(~mask, values), n_steps=3)


def test_names_of_an_older_fit_are_forgotten(tmp_path: Any) -> None:
    import pandas as pd

    np.save(tmp_path / "X.npy", BITS[:, :5])
    stored = np.load(tmp_path / "X.npy", mmap_mode="r")
    model = RBM(2, trainer=PCD(n_epochs=1), random_state=0)
    model.fit(pd.DataFrame(BITS, columns=list("abcdefg"))).fit(stored)
    assert not hasattr(model, "feature_names_in_") and model.n_features_in_ == 5
