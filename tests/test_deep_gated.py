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
from energyscape.backend import Purpose, stream
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
    TiledMPoT,
    TiledRBM,
)
from energyscape.trainers import PCD

SHORT = {"trainer": PCD(n_epochs=2, n_chains=10, batch_size=20), "random_state": 0}
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


def stiff(params: dict[str, np.ndarray]) -> None:
    """γ of 1e10 with filters that much shorter: draws of h are within 1e-4 of their means, so that
    x is Gaussian."""
    params["C"] *= np.exp(0.5 * (params["a"] - np.log(1e10)))[..., None, :]
    params["a"][...] = np.log(1e10)


ACTIVITY = np.linspace(0.2, 0.8, 7)


def test_samples_have_the_covariance_that_activities_choose() -> None:
    stack = independent(PoT(7, **SHORT), ACTIVITY)
    bottom = stack.layers_[0]
    stiff(bottom._state.params)
    h = ACTIVITY * bottom.units.shapes(bottom._params)
    held_to(stack.sample(20_000, n_steps=1), *moments(stack, h))


def test_values_that_are_held_shift_the_others() -> None:
    stack = independent(PoT(7, **SHORT), ACTIVITY)
    bottom = stack.layers_[0]
    stiff(bottom._state.params)
    mask = np.array([True, False, True, False, False])
    x = stack.sample(20_000, n_steps=2, clamp=(mask, X[0]))
    assert (x[:, mask] == X[0, mask]).all()
    h = ACTIVITY * bottom.units.shapes(bottom._params)
    held_to(x[:, ~mask], *oracles.gaussian_given(*moments(stack, h), mask, X[0]))


def test_gamma_units_are_drawn() -> None:
    """The mean variance over their states, and not that at their means, which is less: a unit that
    is nearly off in some rows lets go of its direction there."""
    stack = independent(PoT(7, **SHORT), ACTIVITY)
    bottom = stack.layers_[0]
    bottom._state.params["a"][...] = np.log(0.1)
    shapes = bottom.units.shapes(bottom._params)
    x = stack.sample(20_000, n_steps=1)
    squares = (x - bottom.params_["mean_v"]) ** 2
    drawn = ACTIVITY * np.random.default_rng(1).gamma(shapes, size=(20_000, 7))
    precision, _ = bottom.conditional(bottom._params, drawn)
    var = bottom.params_["deviation"][0] ** 2 * np.linalg.inv(precision).diagonal(0, 1, 2)
    error = np.sqrt((squares.var(axis=0) + var.var(axis=0)) / 20_000)
    assert (abs(squares.mean(axis=0) - var.mean(axis=0)) < SIGMAS * error).all()
    at_means = moments(stack, ACTIVITY * shapes)[1].diagonal()
    assert (squares.mean(axis=0) - at_means > SIGMAS * error).any()


@pytest.mark.parametrize("bottom", [PoT(7, **SHORT), CovarianceRBM(7, **SHORT)])
def test_units_at_an_activity_are_those_given_the_row_that_has_it(bottom: Any) -> None:
    units, params = bottom.fit(X).units, bottom._params
    z = bottom.forward(params, X).known["z"]
    given = units.sample(params, z, stream(1, Purpose.SAMPLE, 0), 1.0)
    at = units.sample_at(params, units.activity(params, z), stream(1, Purpose.SAMPLE, 0))
    assert given.std() > 0
    np.testing.assert_allclose(at, given, rtol=1e-12)


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


# ---------------------------------------------------------------- whole images


def textures(n: int, side: int, channels: int = 0) -> np.ndarray:
    """Smooth stationary noise, off zero."""
    x = np.random.default_rng(2).standard_normal((n, side + 1, side + 1, max(channels, 1)))
    x = 3 + x[:, 1:, 1:] + x[:, :-1, 1:] + x[:, 1:, :-1]
    return x if channels else x[..., 0]


def field(**settings: Any) -> TiledMPoT:
    own = {"n_mean_components": 0, "tile": 2, "stride": 1} | settings
    return TiledMPoT(3, **own, **SHORT)


def independent_maps(activity: np.ndarray) -> DeepGatedMRF:
    """A stack whose machine of maps has units that know nothing of each other."""
    lower = field().fit(textures(40, 7))
    upper = TiledRBM(2, **SHORT).fit(lower.maps(textures(40, 7)))
    upper._state.params["W"][...] = 0
    upper._state.params["b"][...] = np.log(activity / (1 - activity))
    stiff(lower._state.params)
    layers = [FrozenEstimator(lower), FrozenEstimator(upper)]
    return DeepGatedMRF(layers, random_state=0).fit(textures(40, 7))


def torus_moments(
    stack: DeepGatedMRF, activity: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the pixels of a torus, all of whose units are at these activities."""
    bottom = stack.layers_[0]
    p, starts = bottom.params_, range(0, side, 2)
    corners = [[(o + i) * side + o + j for i in starts for j in starts] for o in (0, 1)]
    L = oracles.field_map(p, (side, side), 2, corners)
    h = (activity.reshape(2, 3) * np.exp(p["a"]))[:, None]
    R = np.einsum("spda,sdk->spka", L, p["C"])
    precision = np.exp(-p["log_var"][0]) / 2 * np.einsum("spda,spdb->ab", L, L)
    precision += np.einsum("spka,spk,spkb->ab", R, np.broadcast_to(h, R.shape[:3]), R)
    pixels = side * side
    basis = np.eye(pixels).reshape(pixels, side, side, 1)
    A = (bottom.tori(p, basis) - p["mean_v"]).reshape(pixels, pixels).T
    return np.full(pixels, p["mean_v"][0]), A @ np.linalg.solve(precision, A.T)


MAPS = np.linspace(0.2, 0.8, 6)


def test_images_have_the_covariance_that_activities_choose() -> None:
    stack = independent_maps(MAPS)
    mean, cov = torus_moments(stack, MAPS, 8)
    some = np.array([0, 1, 8, 9, 27, 50])
    x = stack.sample(8_000, shape=(8, 8), n_steps=1).reshape(-1, 64)
    held_to(x[:, some], mean[some], cov[np.ix_(some, some)])


def test_pixels_that_are_held_shift_the_others() -> None:
    """On the torus with its margin of unknown pixels, of which 12 × 12 is the smallest here."""
    stack, X = independent_maps(MAPS), textures(1, 7)
    mask = np.random.default_rng(0).random((7, 7)) < 0.8
    x = stack.sample(8_000, n_steps=1, clamp=(mask, X[0]))
    assert (x[:, mask] == X[0, mask]).all()
    known = np.zeros((12, 12), bool)
    known[:7, :7] = mask
    values = np.zeros((12, 12))
    values[:7, :7] = X[0]
    mean, cov = oracles.gaussian_given(
        *torus_moments(stack, MAPS, 12), known.ravel(), values.ravel()
    )
    inside = np.zeros((12, 12), bool)
    inside[:7, :7] = True
    ours = inside.ravel()[~known.ravel()]
    held_to(x[:, ~mask], mean[ours], cov[np.ix_(ours, ours)])


def test_stacks_of_images(tmp_path: Any) -> None:
    X = textures(30, 15, channels=2)
    layers = [field(n_mean_components=2), TiledRBM(4, **SHORT), TiledRBM(3, **SHORT)]
    stack = DeepGatedMRF(layers, features="all", random_state=0).fit(X)
    maps = [X]
    for layer in stack.layers_:
        maps.append(layer.maps(maps[-1]))
    assert [m.shape[1:] for m in maps[1:]] == [(7, 7, 10), (3, 3, 8), (1, 1, 6)]
    wanted = np.hstack([m.reshape(30, -1) for m in maps[1:]])
    np.testing.assert_array_equal(stack.transform(X), wanted)
    assert stack.get_feature_names_out().shape == (wanted.shape[1],)
    assert stack.set_params(features=1).transform(X).shape == (30, 72)
    stack.save(tmp_path / "stack.h5")
    again = energyscape.load(tmp_path / "stack.h5")
    assert again.image_shape_ == (15, 15, 2)
    mask = np.zeros((9, 12), bool)
    mask[:, :6] = True
    mask = np.repeat(mask[:, :, None], 2, axis=2)
    values = textures(3, 12, channels=2)[:, :9]
    for settings, shape in (
        ({}, (15, 15)),
        ({"shape": (9, 20)}, (9, 20)),
        ({"clamp": (mask, values), "start": values}, (9, 12)),
    ):
        x = stack.sample(3, n_steps=2, **settings)
        assert x.shape == (3, *shape, 2) and np.isfinite(x).all()
        np.testing.assert_array_equal(x, stack.sample(3, n_steps=2, **settings))
        np.testing.assert_array_equal(x, again.sample(3, n_steps=2, **settings))
    assert (x[:, mask] == values[:, mask]).all()
    rows = np.random.default_rng(3).standard_normal((60, 5))
    stack.set_params(layers=[PoT(3, **SHORT), RBM(2, **SHORT)]).fit(rows)
    assert stack.transform(rows).shape == (60, 2) and not hasattr(stack, "image_shape_")
    stack.set_params(layers=layers, features="last").fit(X)
    frozen = [FrozenEstimator(stack.layers_[0]), TiledRBM(3, **SHORT)]
    other = DeepGatedMRF(frozen, random_state=0).fit(textures(30, 11, channels=2))
    assert other.transform(textures(2, 11, channels=2)).shape == (2, 24)


def test_images_that_do_not_fit() -> None:
    layers = [field(), TiledRBM(2, **SHORT)]
    with pytest.raises(ValueError, match=r"sides are 7 plus multiples of 4.*2 layers.* got 9×9"):
        DeepGatedMRF(layers).fit(textures(5, 9))
    with pytest.raises(ValueError, match="needs images"):
        DeepGatedMRF(layers).fit(X)
    for upper in (RBM(3), TiledMPoT(3)):
        with pytest.raises(ValueError, match=f"got {type(upper).__name__}; use TiledRBM"):
            DeepGatedMRF([field(), upper]).fit(textures(5, 7))
    with pytest.raises(ValueError, match="got TiledRBM; use RBM"):
        DeepGatedMRF([PoT(3), TiledRBM(3)]).fit(X)
    with pytest.raises(ValueError, match="needs a TiledRBM above its TiledMPoT"):
        DeepGatedMRF([field()]).fit(textures(5, 7))
    stack = DeepGatedMRF(layers).fit(textures(40, 7))
    with pytest.raises(ValueError, match="images of shape"):
        stack.transform(textures(5, 11))
    for verb in (stack.reconstruct, stack.inverse_transform):
        with pytest.raises(CapabilityError, match="for whole images"):
            verb(textures(5, 7))
    with pytest.raises(ValueError, match="leave it out"):
        stack.sample(1, shape=(7, 7), clamp=(np.ones((7, 7), bool), textures(1, 7)))
    with pytest.raises(ValueError, match="give clamp"):
        stack.sample(1, start=textures(1, 7))
    with pytest.raises(ValueError, match="mask"):
        stack.sample(1, clamp=(np.ones((7, 7)), textures(1, 7)))


# ---------------------------------------------------------------- what cannot be


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
