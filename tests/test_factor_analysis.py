"""Factor analysis against scikit-learn, SciPy, and planted factors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.decomposition import FactorAnalysis as Reference
from sklearn.exceptions import ConvergenceWarning

from energyscape.backend import Purpose, stream
from energyscape.evaluation.laws import check_model, generic_params
from energyscape.models.factor_analysis import FactorAnalysis
from energyscape.optim import Adam
from energyscape.trainers import EM, MaximumLikelihood


def _planted(n: int, d: int = 10, q: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ``q`` factors, and their covariance."""
    rng = np.random.default_rng(seed)
    W, psi = rng.standard_normal((d, q)), 0.3 + rng.random(d)
    noise = rng.standard_normal((n, d)) * np.sqrt(psi)
    return rng.standard_normal((n, q)) @ W.T + noise + 4, W @ W.T + np.diag(psi)


SETS = {"planted": _planted(500)[0], "wine": load_wine().data, "far": _planted(500)[0] + 1e3}


def _covariance(params: Any) -> np.ndarray:
    W = params["W"].astype(np.float64)
    return np.asarray(W @ W.T + np.diag(np.exp(params["log_psi"].astype(np.float64))))


# ---------------------------------------------------------------- the solution


@pytest.mark.parametrize("name", ["planted", "far"])
@pytest.mark.parametrize("q", [1, 3])
def test_likelihood_is_scikit_learns_at_the_end(name: str, q: int) -> None:
    X = SETS[name]
    ours = FactorAnalysis(q, tol=1e-12, max_iter=20_000).fit(X)
    theirs = Reference(q, tol=1e-10, max_iter=20_000, svd_method="lapack").fit(X)
    # Both stop within their tolerance of the maximum; theirs is in nats of all rows.
    assert ours.score(X) == pytest.approx(theirs.score(X), rel=1e-6)
    assert ours.score(X) >= theirs.score(X) - 1e-6
    np.testing.assert_allclose(ours.mean_, X.mean(axis=0), rtol=1e-10)
    # The control: one iteration is not enough.
    with pytest.warns(ConvergenceWarning, match="max_iter=1 iterations"):
        early = FactorAnalysis(q, max_iter=1).fit(X)
    assert early.score(X) < ours.score(X) - 1e-6 * abs(ours.score(X))


@pytest.mark.parametrize("name", SETS)
def test_the_bound_never_falls(name: str) -> None:
    X = SETS[name]
    model, bounds = FactorAnalysis(3), []
    params = model.init_params(X, stream(0, Purpose.INIT))
    for _ in range(300):
        stats = model.statistics(params, X)
        bounds.append(-float(stats["energy"]) / len(X))
        params = model.maximize(params, stats)
    assert bounds[-1] > bounds[0]
    assert (np.diff(bounds) >= -1e-10 * np.abs(bounds[1:])).all(), np.diff(bounds).min()


def test_a_step_of_one_kind_alone_is_seen_to_fall() -> None:
    """The control: an M step of Ψ that forgets the factors' posterior loses likelihood."""
    X = SETS["planted"]
    model = FactorAnalysis(3)
    params = model.init_params(X, stream(0, Purpose.INIT))
    for _ in range(20):
        params = model.maximize(params, model.statistics(params, X))
    before = model.free_energy(params, X).mean()
    wrong = params | {"log_psi": np.log(X.var(axis=0))}
    assert model.free_energy(wrong, X).mean() > before + 1e-3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_give_the_mean_energy(dtype: Any) -> None:
    for shift in (0, 1e3):
        X = (SETS["planted"] + shift).astype(dtype)
        model = FactorAnalysis(3)
        params = model.init_params(X, stream(0, Purpose.INIT))
        params = model.maximize(params, model.statistics(params, X))
        energy = float(model.statistics(params, X)["energy"]) / len(X)
        # Products of float32 rows have ε in them, and a mean of 1e3 is rounded to 6e-5.
        tolerance = 1e-12 if dtype == np.float64 else 1e-5 if shift == 0 else 1e-4
        if shift:
            tolerance = max(tolerance, 1e-10)
        assert energy == pytest.approx(model.free_energy(params, X).mean(), rel=tolerance)


def test_a_planted_covariance_is_found() -> None:
    n = 100_000
    X, C = _planted(n)
    model = FactorAnalysis(3).fit(X)
    # The sample covariance has errors of √((C_ij² + C_ii C_jj)/n); a fit of fewer parameters has
    # no larger ones. 55 entries, false alarm 1e-6 in all.
    error = np.sqrt((C**2 + np.outer(np.diag(C), np.diag(C))) / n)
    bound = norm.isf(1e-6 / 2 / 55)
    assert (np.abs(_covariance(model.params_) - C) / error).max() < bound
    fewer = FactorAnalysis(2).fit(X)  # the control
    assert (np.abs(_covariance(fewer.params_) - C) / error).max() > bound
    np.testing.assert_allclose(
        model.components_.T @ model.components_ + np.diag(model.noise_variance_),
        _covariance(model.params_),
    )


def test_passes_over_rows_and_iterations_on_moments_agree() -> None:
    X = SETS["planted"]
    closed = FactorAnalysis(3, tol=1e-12, max_iter=5000).fit(X)
    em = FactorAnalysis(3, trainer=EM(n_epochs=5000, tol=1e-10)).fit(X)
    assert em.score(X) == pytest.approx(closed.score(X), rel=1e-8)
    np.testing.assert_allclose(_covariance(em.params_), _covariance(closed.params_), atol=1e-3)
    assert closed.n_iter_ == 1 and em.n_iter_ > 5


def test_gradients_reach_the_same_likelihood() -> None:
    X = SETS["planted"]
    closed = FactorAnalysis(3).fit(X)
    trainer = MaximumLikelihood(200, 100, optimizer=Adam(0.02))
    slope = FactorAnalysis(3, trainer=trainer, random_state=0).fit(X)
    # What is left of the steps' noise when the rate has fallen to 0.
    assert slope.score(X) == pytest.approx(closed.score(X), abs=2e-3)


def test_rows_in_parts_are_one_fit() -> None:
    X = SETS["planted"][np.argsort(SETS["planted"][:, 0])]
    whole, parts = (
        FactorAnalysis(3, tol=1e-12, max_iter=9999),
        FactorAnalysis(3, tol=1e-12, max_iter=9999),
    )
    whole.fit(X)
    for lo, hi in ((0, 50), (50, 300), (300, 500)):
        parts.partial_fit(X[lo:hi])
    assert parts.score(X) == pytest.approx(whole.score(X), rel=1e-8)
    np.testing.assert_allclose(parts.mean_, whole.mean_, rtol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.filterwarnings("ignore:FactorAnalysis still gained")
def test_noise_that_vanishes_is_named(dtype: Any) -> None:
    """A Heywood case: a feature that a factor explains in full."""
    X, _ = _planted(300, 6, 2)
    X[:, 1] = 2 * X[:, 0]
    model = FactorAnalysis(2, max_iter=5000)
    with pytest.warns(ConvergenceWarning, match=r"\(Heywood cases\): use fewer factors"):
        model.fit(X.astype(dtype))
    assert np.isfinite(model.score_samples(X)).all() and np.isfinite(model.sample(5)).all()
    least = 1e-6 * X.var(axis=0)
    assert (model.noise_variance_ >= 0.99 * least).all()


@pytest.mark.parametrize("X", [np.full((20, 4), 7.1), load_digits().data[:200]])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_constant_features_stay_finite(X: np.ndarray, dtype: Any) -> None:
    model = FactorAnalysis(2).fit(X.astype(dtype))
    for values in (model.score_samples(X), model.sample(5), model.transform(X), model.energy(X)):
        assert np.isfinite(values).all()


# ---------------------------------------------------------------- the density


def test_it_obeys_the_laws() -> None:
    for seed in (0, 1):
        assert "gradient_is_central_difference" in check_model(
            FactorAnalysis(3), _planted(20)[0], seed
        )


def test_energies_and_codes_are_by_definition() -> None:
    X = SETS["planted"]
    model = FactorAnalysis(3)
    params = generic_params(model, X)
    C = _covariance(params)
    log_p = multivariate_normal(params["mean"], C).logpdf(X)
    np.testing.assert_allclose(model.free_energy(params, X), -log_p, rtol=1e-10)
    away = X - params["mean"]
    codes = away @ np.linalg.solve(C, params["W"])
    np.testing.assert_allclose(model.encode(params, X), codes, atol=1e-10)
    assert model.log_partition(params) == 0
    theirs = Reference(3).fit(X)
    same = params | {"mean": theirs.mean_, "W": theirs.components_.T}
    same["log_psi"] = np.log(theirs.noise_variance_)
    np.testing.assert_allclose(model.encode(same, X), theirs.transform(X), atol=1e-10)


@pytest.mark.filterwarnings("ignore:FactorAnalysis still gained")
def test_draws_are_of_the_model() -> None:
    X = load_iris().data
    model = FactorAnalysis(1, random_state=0).fit(X)
    mean, C, x = model.mean_, _covariance(model.params_), model.sample(50_000)

    def z(C: np.ndarray) -> Any:
        s, away = np.sqrt(np.diag(C)), x - mean
        error = np.sqrt((C**2 + np.outer(s, s) ** 2) / len(x))
        second = np.abs(away.T @ away / len(x) - C) / error
        return np.append(second[np.triu_indices(4)], np.abs(away.mean(axis=0)) / s * len(x) ** 0.5)

    bound = norm.isf(1e-6 / 2 / 14)  # false alarm 1e-6 in all
    assert z(C).max() < bound
    assert z(C + np.diag(0.05 * np.diag(C))).max() > bound  # the control


def test_bad_settings_are_named() -> None:
    X = SETS["planted"]
    for model, message in (
        (FactorAnalysis(11), "n_components=11 must be between 1 and n_features=10"),
        (FactorAnalysis(2, tol=-1), r"FactorAnalysis.tol must be >= 0, got -1"),
        (FactorAnalysis(2, max_iter=0), r"FactorAnalysis.max_iter must be an integer >= 1"),
        (FactorAnalysis(2, min_variance=1), r"min_variance must be in \(0, 1\), got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit(X)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # of the first rows
@pytest.mark.parametrize("first", [1, 3])
def test_the_rows_that_came_first_do_not_matter(first: int) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 1)) @ rng.standard_normal((1, 5)) + rng.standard_normal((200, 5))
    whole = FactorAnalysis(1).fit(1e-5 * X).score(1e-5 * X)
    model = FactorAnalysis(1).partial_fit(1e-5 * X[:first]).partial_fit(1e-5 * X[first:])
    assert model.score(1e-5 * X) == pytest.approx(whole, abs=1e-6)
