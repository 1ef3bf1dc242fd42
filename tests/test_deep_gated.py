"""Gated models with machines above: what comes down is the Gaussian that the units have chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from goodness import SIGMAS
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.estimator_checks import parametrize_with_checks

import energyscape
from energyscape.errors import CapabilityError
from energyscape.models import (
    RBM,
    CovarianceRBM,
    DeepBoltzmannMachine,
    DeepGatedMRF,
    GaussianRBM,
    McRBM,
    MPoT,
    PoT,
)
from energyscape.trainers import PCD

SHORT = {"trainer": PCD(n_epochs=2, n_chains=10, batch_size=20)}
X = 3 + np.random.default_rng(0).standard_normal((60, 5)) @ np.random.default_rng(1).normal(
    size=(5, 5)
)


def independent(bottom: Any, activity: np.ndarray) -> DeepGatedMRF:
    """A fitted stack whose top machine has units that know nothing of each other."""
    lower = bottom.fit(X)
    upper = RBM(3, centered=False, **SHORT).fit(lower.transform(X))
    params = upper._state.params
    params["W"][...] = 0
    params["b"][...] = np.log(activity / (1 - activity))
    layers = [FrozenEstimator(lower), FrozenEstimator(upper)]
    return DeepGatedMRF(layers, random_state=0).fit(X)


def moments(stack: DeepGatedMRF, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of x given hidden units of the lowest layer, in the units of the data."""
    bottom = stack.layers_[0]
    precision, pull = bottom.conditional(bottom._params, h[None])
    cov, s = np.linalg.inv(precision[0]), bottom.params_["deviation"][0]
    return bottom.params_["mean_v"] + s * cov @ pull[0], s * s * cov


def held_to(x: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> None:
    """Rows have these moments."""
    n, white = len(x), np.linalg.inv(np.linalg.cholesky(cov))
    z = (x - mean) @ white.T
    assert abs(z.mean(axis=0)).max() * np.sqrt(n) < SIGMAS
    assert abs(np.cov(z.T) - np.eye(len(mean))).max() * np.sqrt(n / 2) < SIGMAS


ACTIVITY = np.linspace(0.2, 0.8, 7)


def test_samples_have_the_covariance_that_activities_choose() -> None:
    stack = independent(PoT(7, **SHORT), ACTIVITY)
    bottom = stack.layers_[0]
    h = ACTIVITY * bottom.units.shapes(bottom._params)
    held_to(stack.sample(20_000, n_steps=1), *moments(stack, h))


def test_values_that_are_held_shift_the_others() -> None:
    stack = independent(PoT(7, **SHORT), ACTIVITY)
    bottom = stack.layers_[0]
    mask = np.array([True, False, True, False, False])
    x = stack.sample(20_000, n_steps=2, clamp=(mask, X[0]))
    assert (x[:, mask] == X[0, mask]).all()
    h = ACTIVITY * bottom.units.shapes(bottom._params)
    held_to(x[:, ~mask], *oracles.gaussian_given(*moments(stack, h), mask, X[0]))


def test_mean_units_are_drawn() -> None:
    """A mixture over their states: one mean unit that is on in a tenth of the rows."""
    activity = np.array([0.5, 0.5, 0.1])
    stack = independent(MPoT(2, n_mean_components=1, **SHORT), activity)
    params = stack.layers_[0]._state.params
    params["W"][...] = 3.0
    h = np.append(0.5 * stack.layers_[0].units.shapes(params), 0.0)
    (off, _), (on, _) = moments(stack, h), moments(stack, h + np.array([0, 0, 1]))
    x = stack.sample(20_000, n_steps=1)
    assert np.allclose(x.mean(axis=0), 0.9 * off + 0.1 * on, atol=0.1 * abs(on - off).max())


@pytest.mark.parametrize(
    "bottom",
    [
        PoT(6, **SHORT),
        CovarianceRBM(6, **SHORT),
        McRBM(6, n_mean_components=3, **SHORT),
        MPoT(6, n_mean_components=3, pools=2, **SHORT),
    ],
    ids=lambda model: type(model).__name__,
)
def test_stacks_of_any_gated_model(bottom: Any, tmp_path: Any) -> None:
    layers = [bottom, RBM(5, **SHORT), RBM(4, **SHORT)]
    stack = DeepGatedMRF(layers, features="all", random_state=0).fit(X)
    first = stack.layers_[0].transform(X)
    second = stack.layers_[1].transform(first)
    third = stack.layers_[2].transform(second)
    np.testing.assert_array_equal(stack.transform(X), np.hstack([first, second, third]))
    stack.save(tmp_path / "stack.h5")
    again = energyscape.load(tmp_path / "stack.h5")
    mask = np.arange(5) < 2
    for settings in ({}, {"clamp": (mask, X[:4]), "start": X[:4]}):
        x = stack.sample(4, n_steps=3, **settings)
        assert x.shape == (4, 5) and np.isfinite(x).all()
        np.testing.assert_array_equal(x, stack.sample(4, n_steps=3, **settings))
        np.testing.assert_array_equal(x, again.sample(4, n_steps=3, **settings))
    assert (x[:, mask] == X[:4, mask]).all()
    assert repr(clone(stack)) == repr(stack)


def test_float32_stays() -> None:
    stack = DeepGatedMRF([PoT(6, **SHORT), RBM(5, **SHORT)]).fit(X.astype(np.float32))
    assert stack.sample(2, n_steps=1).dtype == np.float32
    clamp = np.arange(5) < 2, X[0]
    assert stack.sample(2, n_steps=1, clamp=clamp).dtype == np.float32


@pytest.mark.parametrize(
    ("layers", "error", "words"),
    [
        ([RBM(3), RBM(3)], CapabilityError, "must be a gated Markov random field, got RBM"),
        ([PoT(3)], ValueError, "needs an RBM above its PoT"),
        ([PoT(3), GaussianRBM(3)], ValueError, "layer 2 .* got GaussianRBM"),
        ([PoT(3), DeepBoltzmannMachine((3, 2))], ValueError, "got DeepBoltzmannMachine"),
        ([McRBM(3, normalize=True), RBM(3)], CapabilityError, "layer 1 of DeepGatedMRF needs"),
        ([], ValueError, "layers is empty"),
    ],
)
def test_layers_that_do_not_fit_are_named(layers: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        DeepGatedMRF(layers).fit(X)


def test_what_cannot_be_sampled() -> None:
    stack = DeepGatedMRF([PoT(6, **SHORT), RBM(5, **SHORT)]).fit(X)
    mask = np.arange(5) < 2
    for settings, words in (
        ({"start": X[:1]}, "give clamp as well"),
        ({"clamp": (mask.astype(float), X[0])}, "must be boolean"),
        ({"clamp": (mask[:4], X[0])}, "mask has shape"),
        ({"clamp": (mask, np.full(5, np.nan))}, "NaN"),
        ({"n_steps": -1, "clamp": (mask, X[0])}, "n_steps"),
    ):
        with pytest.raises(ValueError, match=words):
            stack.sample(1, **settings)


def test_default_layers() -> None:
    bottom, top = DeepGatedMRF().default_layers()
    assert isinstance(bottom, MPoT) and isinstance(top, RBM)


@pytest.mark.filterwarnings("ignore::energyscape.errors.DataRangeWarning")
@pytest.mark.filterwarnings("ignore::energyscape.errors.SamplerWarning")
@parametrize_with_checks([DeepGatedMRF([PoT(3, **SHORT), RBM(2, **SHORT)])])
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)
