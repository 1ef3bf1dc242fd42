"""Models of whole images: where windows lie, tori and edges, and what users meet.

Their gradients are held to the laws of all models, and their chains to exact draws on a torus of
2 × 2 pixels, by rows of `cases` and `sampler_cases`.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import oracles
import pytest
from cases import CASES
from scipy.special import logsumexp

import energyscape
from energyscape.backend import Purpose, stream
from energyscape.errors import CapabilityError, DataRangeWarning, UnnormalizedScoreWarning
from energyscape.evaluation.laws import generic_params
from energyscape.models import (
    FieldsOfExperts,
    TiledMPoT,
    TiledRBM,
    field_gradient,
    window_columns,
)
from energyscape.models.layouts import Sliding, Tiles
from energyscape.samplers import HMC, Gibbs
from energyscape.trainers import CD, FPCD, PCD

LAYOUTS = [
    (Tiles(4, 2), (10, 14)),
    (Tiles(6, 2), (16, 10)),
    (Sliding(3), (8, 9)),
    (Tiles(3, 3), (6, 3)),
]
IMAGES = [case for case in CASES if hasattr(case.make(), "layout")]
FIELDS = [case for case in IMAGES if case.make().domain == "real"]
DIFFERENCES = [[[-1, 1], [0, 0]], [[-1, 0], [1, 0]]]
QUICK = {"n_steps": 2, "sampler": HMC(5, 0.05)}  # without a warm-up
each_layout = pytest.mark.parametrize(
    ("layout", "sides"),
    LAYOUTS,
    ids=[f"{type(layout).__name__} {layout.size}" for layout, _ in LAYOUTS],
)
each_model = pytest.mark.parametrize("case", IMAGES, ids=lambda case: case.name)
each_field = pytest.mark.parametrize("case", FIELDS, ids=lambda case: case.name)


def textures(n: int, side: int, seed: int = 0) -> np.ndarray:
    """Stationary noise, smooth, off zero, float32."""
    x = np.random.default_rng(seed).standard_normal((n, side + 2, side + 2))
    x = x[:, 1:] + 0.7 * x[:, :-1]
    return (3 + x[:, :-1, 1:-1] + 0.5 * x[:, 1:, :-2]).astype(np.float32)


def fitted(model: Any, X: np.ndarray, **settings: Any) -> Any:
    trainer = PCD(n_epochs=2, batch_size=10, n_chains=10, learning_rate=0.05, **settings)
    return model.set_params(trainer=trainer, random_state=0).fit(X)


# ---------------------------------------------------------------- layouts


@each_layout
def test_paste_and_fold_are_adjoints(layout: Any, sides: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *sides, 2))
    rows = layout.cut(x)
    y = rng.standard_normal(rows.shape)
    assert layout.fits(*sides)
    assert np.isclose((rows * y).sum(), (x * layout.paste(y, x.shape)).sum())
    torus = rng.standard_normal((2, sides[0] - layout.reach, sides[1] - layout.reach, 2))
    assert np.isclose((layout.wrap(torus) * x).sum(), (torus * layout.fold(x)).sum())


@each_layout
def test_every_pixel_of_a_torus_lies_in_as_many_windows(
    layout: Any, sides: tuple[int, int]
) -> None:
    wrapped = (1, *sides, 1)
    ones = np.ones(layout.cut(np.ones(wrapped)).shape)
    assert (layout.fold(layout.paste(ones, wrapped)) == layout.coverage).all()


# ---------------------------------------------------------------- tori


@each_model
def test_a_torus_is_its_wrapped_image_wherever_it_begins(case: Any) -> None:
    model = case.make()
    params = generic_params(model, case.data)
    layout = model.layout()
    y = np.random.default_rng(0).standard_normal((3, 4, 4, case.data.shape[3]))
    energy = model.target(params).forward(y).energy()
    assert np.allclose(energy, model.free_energy(params, model.from_chains(params, y)))
    moved = np.roll(y, (layout.grain, -layout.grain), axis=(1, 2))
    assert np.allclose(energy, model.target(params).forward(moved).energy())
    x = model.tori(params, y)
    assert np.allclose(model.chain_states(params, x), y)


@each_field
def test_gradients_of_chains_are_central_differences(case: Any) -> None:
    model = case.make()
    params = generic_params(model, case.data)
    rng = np.random.default_rng(1)
    y, away = rng.standard_normal((2, 3, 4, 4, 1))
    beta = np.array([0.3, 0.7, 1.0])
    target = model.target(params, beta=beta)
    step = 1e-5
    slope = target.forward(y + step * away).energy() - target.forward(y - step * away).energy()
    grad = (target.forward(y).input_grad() * away).sum(axis=(1, 2, 3))
    assert np.allclose(grad, slope / (2 * step), rtol=1e-7)


@each_field
def test_gradients_along_a_trajectory_are_those_of_a_pass(
    case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filters with everything worked in, by blocks of images, with two channels: up to the rounding
    of sums of a few hundred terms."""
    monkeypatch.setattr(field_gradient, "_NUMBERS", 1)  # an image at a time
    rng = np.random.default_rng(0)
    model, x = case.make(), rng.standard_normal((9, *case.data.shape[1:3], 2))
    model = model if getattr(model, "filters", None) is None else FieldsOfExperts(3, size=2)
    params = generic_params(model, x)
    target = model.target(params)
    y = model.to_chains(params, x)
    wanted = target.input_grad(y)
    found = target.gradient()(y)
    assert type(target.gradient()).__name__ == "TorusGradient"
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12 * abs(wanted).max())
    energy, grad = target.energy_and_grad(y)
    np.testing.assert_allclose(grad, wanted, rtol=0, atol=1e-12 * abs(wanted).max())
    np.testing.assert_allclose(energy, target.energy(y), rtol=1e-12)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(target)).gradient()(y), grad)


@each_layout
def test_columns_are_windows_and_their_adjoint_adds_them(
    layout: Any, sides: tuple[int, int]
) -> None:
    """Of images and of tori, of as many as before and of fewer."""
    rng = np.random.default_rng(0)
    columns = layout.columns_of((*sides, 2), np.float64)
    for n, beyond in ((3, 0), (3, layout.reach), (2, 0)):
        torus = rng.standard_normal((n, sides[0] - beyond, sides[1] - beyond, 2))
        columns.load(torus)
        dot, d = 0.0, layout.size**2 * 2
        for i, rows in enumerate(layout.cut(layout.wrap(torus) if beyond else torus)):
            found = columns.space("windows", d)
            columns.cut(i, found)
            windows = columns.values(found)[..., : columns.across].reshape(d, n, -1)
            np.testing.assert_array_equal(windows.transpose(1, 2, 0), rows)
            room = columns.room()
            room[...] = rng.standard_normal(room.shape)
            if columns.one is not None:
                room /= columns.one
            dot += (found * room).sum()
            columns.add(i)
        assert np.isclose(dot, (torus * columns.total()).sum())


@pytest.mark.parametrize("length", [1, 50, 1667, 4001])
def test_products_with_columns_are_those_of_matrices(length: int) -> None:
    rng = np.random.default_rng(0)
    a, x = rng.standard_normal((24, 25)), rng.standard_normal((25, 2, length))
    room = np.zeros((24, 2, length + 3))
    window_columns.multiply(a, x, room[:, :, :length])
    wanted = np.einsum("ij,jgl->igl", a, x)
    np.testing.assert_allclose(room[:, :, :length], wanted, rtol=0, atol=1e-13)
    assert not room[:, :, length:].any()
    found = window_columns.outer(x, wanted)
    np.testing.assert_allclose(found, np.einsum("igl,jgl->ij", x, wanted), rtol=0, atol=1e-9)


@each_field
def test_gradients_of_parameters_by_columns_are_those_of_a_pass(
    case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(field_gradient, "_NUMBERS", 1)
    model, weights = case.make(), np.array([0.5, -2.0, 1.5])
    params = generic_params(model, case.data)
    x = case.data[:3].astype(np.float64)
    by_columns = model.forward(params, x).grad(weights)
    known = model.forward(params, x)
    known.known  # noqa: B018 - there from now on
    for name, wanted in known.grad(weights).items():
        atol = 1e-12 * abs(wanted).max()
        np.testing.assert_allclose(by_columns[name], wanted, rtol=0, atol=atol)


@each_field
def test_the_mean_given_hidden_units_is_where_the_joint_energy_is_least(case: Any) -> None:
    model = case.make()
    params = generic_params(model, case.data)
    y = np.random.default_rng(2).standard_normal((3, 4, 4, 1))
    h = model.target(params).forward(y).sample_hidden(stream(0, Purpose.SAMPLE))
    mean = model.given(params, h)

    def joint(y: np.ndarray) -> np.ndarray:
        passed = model.target(params).forward(y)
        levels, g = model.from_maps(h)
        w, z = passed.known["w"], passed.known["z"]
        own = 0.5 * np.exp(-params["log_var"]) / model.layout().coverage
        energy = own * (w * w).sum(axis=(0, 2, 3)) + (levels * z).sum(axis=(0, 2, 3))
        return energy if g is None else energy - (g * passed.known["a"]).sum(axis=(0, 2, 3))

    for seed in range(5):
        away = 1e-3 * np.random.default_rng(seed).standard_normal(y.shape)
        up, down = joint(mean + away), joint(mean - away)
        assert np.allclose(up, down, atol=1e-12) and (up > joint(mean)).all()


def test_systems_that_do_not_converge_are_said() -> None:
    model = TiledMPoT(3, n_mean_components=2, tile=2, stride=1)
    params = dict(generic_params(model, FIELDS[0].data))
    h = np.full((1, 2, 2, 10), np.nan)
    with pytest.raises(FloatingPointError, match="conjugate gradients"):
        model.given(params, h)


def test_the_spectrum_of_the_data_is_found() -> None:
    """Power falls as planted, and noise in the chains' coordinates has the variance of the data."""
    planted = np.array([0.3, -1.6, np.log(0.05)])
    model = FieldsOfExperts(3, size=2)
    noise = np.random.default_rng(3).standard_normal((200, 64, 64, 1))
    plain = {"mean_v": np.full(1, 4.0), "deviation": np.full(1, 2.0)}
    X = model.tori(plain | {"spectrum": planted}, noise)[:, :24, :24]
    params = model.init_params(X, stream(0, Purpose.INIT))
    found = params["spectrum"]
    found[0] += 2 * np.log(params["deviation"][0] / 2)
    bumps = np.geomspace(0.05, 8, 20)

    def power(spectrum: np.ndarray) -> np.ndarray:
        return spectrum[0] + spectrum[1] * np.log(np.exp(spectrum[2]) + bumps)

    assert abs(power(found) - power(planted)).max() < 0.25
    assert abs(model.tori(plain | {"spectrum": found}, noise).std() / X.std() - 1) < 0.05


# ---------------------------------------------------------------- training


def test_filters_keep_one_length() -> None:
    model = fitted(TiledMPoT(6, n_mean_components=2, tile=4, stride=2), textures(40, 10))
    lengths = np.sqrt((model.params_["C"] ** 2).sum(axis=1))
    assert lengths.shape == (2, 6) and np.allclose(lengths, lengths[0, 0], rtol=1e-5)
    assert model.components_.shape == (12, 16) and model.mean_components_.shape == (4, 16)
    S = model.params_["S"]
    assert np.allclose(model.patterns_ @ S @ S, model.components_, atol=1e-4)


@pytest.mark.parametrize("trainer", [PCD, FPCD, CD], ids=lambda t: t.__name__)
def test_gibbs_chains_train_too(trainer: Any) -> None:
    """Chains that are kept as hidden units of the torus, and start anew from crops."""
    own = trainer(2, sampler=Gibbs(), n_epochs=2, batch_size=10, learning_rate=0.02)
    model = TiledMPoT(5, n_mean_components=2, tile=4, trainer=own, random_state=0)
    model.fit(textures(40, 10))
    assert model.sample(2, **QUICK).shape == (2, 10, 10)
    if trainer is not CD:
        assert model._state.carry["chain/h"].shape == (100, 2, 2, 14)
        assert 0.3 < model.history_["chain_spread"][-1] < 3


def test_given_filters_keep_their_shape() -> None:
    model = fitted(FieldsOfExperts(2, size=2, filters=DIFFERENCES), textures(40, 9))
    wanted = np.array(DIFFERENCES, float).reshape(2, 4)
    shares = model.components_ / np.linalg.norm(model.components_, axis=1)[:, None]
    assert np.allclose(shares, wanted / np.sqrt(2), atol=1e-4)
    before = model.init_params(textures(40, 9)[..., None], stream(0, Purpose.INIT))
    assert not np.allclose(model.params_["C"], before["C"], rtol=1e-3)


@pytest.mark.slow
def test_a_pair_wise_field_learns_the_width_of_differences() -> None:
    """Planted: a fitted field comes near to the lengths of the one that made the images."""
    model = FieldsOfExperts(2, size=2, filters=DIFFERENCES)
    start = model.init_params(textures(300, 9).astype(np.float64)[..., None], stream(0, 1))
    lengths = np.array([3.0, 1.5])
    C = start["C"] / np.sqrt((start["C"] ** 2).sum(axis=1, keepdims=True)) * lengths
    planted = start | {"C": C, "a": np.full((1, 2), np.log(0.8))}
    rng = stream(1, Purpose.SAMPLE)
    y = rng.normal((100, 24, 24, 1), np.float64)
    x = model.tori(planted, HMC(10).run(model.target(planted), y, 100, rng, n_warmup=100).x)
    X = np.concatenate([x[:, i : i + 9, j : j + 9] for i in (0, 12) for j in (0, 12)])
    trainer = PCD(n_epochs=40, batch_size=50, n_chains=50, learning_rate=0.1, averaging=0.1)
    model.set_params(trainer=trainer, random_state=0).fit(X)
    spread = [
        np.sqrt((np.diff(x, axis=a) ** 2).mean())
        for x in (X[..., 0], model.sample(200, n_steps=100)[..., 0])
        for a in (1, 2)
    ]
    assert np.allclose(spread[:2], spread[2:], rtol=0.05)


# ---------------------------------------------------------------- machines of maps


def test_hidden_units_of_windows_are_summed_out() -> None:
    """F against the sum over all states of the units of two windows, one of each set."""
    (case,) = (case for case in IMAGES if case.name == "TiledRBM")
    model, rng = TiledRBM(2), np.random.default_rng(0)
    params = generic_params(model, case.data)
    x = rng.integers(0, 2, (6, 3, 3, 2)).astype(float)
    h = oracles.states(2)
    total = np.zeros(6)
    for i in range(2):
        w = x[:, i : i + 2, i : i + 2].reshape(6, 8)
        total += w @ np.tile(params["b"], 4) / 2
        total += logsumexp(w @ params["W"][i] @ h.T + params["c"][i] @ h.T, axis=1)
    assert np.allclose(model.free_energy(params, x), -total)


@pytest.mark.parametrize("trainer", [PCD, FPCD], ids=lambda t: t.__name__)
def test_a_planted_machine_of_maps_is_found(trainer: Any) -> None:
    """Tori of 2 × 2 bits, wrapped: the fit comes as near to what made them as counting does."""
    rng = np.random.default_rng(1)
    planted = {"W": 2.5 * rng.standard_normal((2, 4, 2)), "b": np.array([0.3])}
    planted["c"] = -planted["W"].sum(axis=1) / 2
    orders = [[0, 1, 2, 3], [3, 2, 1, 0]]
    truth = oracles.tiled_machine_log_p(planted, orders, 1.0)
    n = 4000
    index = rng.choice(16, n, p=np.exp(truth))
    tori = oracles.states(4)[index].reshape(n, 2, 2, 1)
    model = TiledRBM(4, random_state=0)
    X = model.layout().wrap(tori)
    own = trainer(n_epochs=60, batch_size=100, n_chains=200, learning_rate=0.1, averaging=0.3)
    model.set_params(trainer=own).fit(X)
    found = oracles.tiled_machine_log_p(model.params_, orders, 1.0)
    rates = oracles.states(4)
    p = tori.mean()
    independent = (rates * np.log(p) + (1 - rates) * np.log(1 - p)).sum(axis=1)
    apart = [float(np.exp(truth) @ (truth - log_p)) for log_p in (independent, found)]
    assert apart[0] > 0.2 and apart[1] < 0.02, apart


def test_machines_of_maps_keep_the_containers_of_images() -> None:
    X = IMAGES[-1].data.astype(np.float32)
    model = TiledRBM(3, trainer=PCD(n_epochs=2, n_chains=10, batch_size=20)).fit(X)
    assert model.components_.shape == (6, 8) and model.maps(X).shape == (60, 2, 2, 6)
    x = model.sample(3, shape=(7, 4), n_steps=2)
    assert x.shape == (3, 7, 4, 2) and x.dtype == np.float32 and set(np.unique(x)) <= {0, 1}
    with pytest.raises(CapabilityError, match="in-painting needs input_grad"):
        model.sample(1, clamp=(np.ones((5, 5), bool), X[0]))
    with pytest.raises(ValueError, match=r"sides are 3 plus multiples of 2.*got 4×4"):
        TiledRBM(3).fit(np.zeros((5, 4, 4, 2)))
    with pytest.raises(ValueError, match="stride must divide tile"):
        TiledRBM(3, tile=3, stride=2).fit(X)
    with pytest.warns(DataRangeWarning, match="TiledRBM has binary units"):
        TiledRBM(3, trainer=PCD(n_epochs=1)).fit(3 * X)


# ---------------------------------------------------------------- uses


@pytest.fixture(scope="module")
def tiled() -> TiledMPoT:
    return fitted(TiledMPoT(6, n_mean_components=2, tile=4, stride=2), textures(40, 10))


def test_samples_have_any_size(tiled: TiledMPoT) -> None:
    assert tiled.sample(2, **QUICK).shape == (2, 10, 10)
    x = tiled.sample(2, shape=(13, 22), **QUICK)
    assert x.shape == (2, 13, 22) and x.dtype == np.float32 and np.isfinite(x).all()
    assert np.array_equal(x, tiled.sample(2, shape=(13, 22), **QUICK))
    gibbs = tiled.sample(2, shape=(9, 9), n_steps=2, sampler=Gibbs(), start=textures(2, 9))
    assert gibbs.shape == (2, 9, 9) and np.isfinite(gibbs).all()


def test_in_painting_holds_what_is_known(tiled: TiledMPoT) -> None:
    X = textures(2, 11, seed=5)
    mask = np.ones((11, 11), bool)
    mask[3:7, 4:9] = False
    x = tiled.sample(2, clamp=(mask, X), n_steps=3, sampler=HMC(5, 0.02))
    assert np.array_equal(x[:, mask], X[:, mask]) and (x[:, ~mask] != X[:, ~mask]).all()


@pytest.mark.slow
def test_denoising_a_gaussian_field_is_its_posterior_mean() -> None:
    """With experts that say nothing, F is a quadratic form: a linear system, edges included."""
    model = fitted(FieldsOfExperts(1, size=2, sigma=1.0), textures(30, 5))
    params = model._state.params
    params["a"][...] = -30.0
    params = model._params
    y = textures(3, 5, seed=7) + np.float32(0.5)
    wide = {k: v.astype(np.float64) for k, v in params.items()}
    mean, d = float(wide["mean_v"][0]), 25
    basis = np.eye(d).reshape(d, 5, 5, 1)
    H = model.input_grad(wide, mean + basis).reshape(d, d)
    wanted = mean + np.linalg.solve(H + np.eye(d) / 0.25, (y.reshape(3, d) - mean).T / 0.25).T
    found = model.denoise(y, 0.5, sampler=HMC(5), n_steps=4000, n_warmup=200, random_state=0)
    assert abs(found.reshape(3, d) - wanted).max() < 0.06
    assert abs(y.reshape(3, d) - wanted).max() > 0.2


def test_features_are_maps_of_places(tiled: TiledMPoT) -> None:
    X = textures(3, 10)
    maps = tiled.maps(X)
    assert maps.shape == (3, 2, 2, 16) and maps.min() >= 0 and maps.max() <= 1
    assert np.array_equal(tiled.transform(X), maps.reshape(3, -1))
    assert tiled.get_feature_names_out().shape == (64,)
    assert tiled.maps(textures(3, 14)).shape == (3, 3, 3, 16)
    assert np.allclose(
        tiled.maps(textures(3, 14))[:, :2, :2], tiled.maps(textures(3, 14)[:, :10, :10])
    )


def test_files_keep_fields(tiled: TiledMPoT, tmp_path: Any) -> None:
    tiled.save(tmp_path / "field.h5")
    again = energyscape.load(tmp_path / "field.h5")
    X = textures(2, 10)
    assert again.image_shape_ == (10, 10) and np.array_equal(again.energy(X), tiled.energy(X))
    assert np.array_equal(again.sample(1, **QUICK), tiled.sample(1, **QUICK))


def test_colour() -> None:
    X = np.stack([textures(30, 10, seed) for seed in range(3)], axis=-1)
    model = fitted(TiledMPoT(4, n_mean_components=2, tile=4, stride=2), X)
    assert model.components_.shape == (8, 48) and model.params_["mean_v"].shape == (3,)
    assert model.sample(1, shape=(7, 9), **QUICK).shape == (1, 7, 9, 3)
    assert model.denoise(X[:2], 0.3, n_steps=3, n_warmup=3).shape == (2, 10, 10, 3)


# ---------------------------------------------------------------- what cannot be


def test_images_that_do_not_fit(tiled: TiledMPoT) -> None:
    model = TiledMPoT(4, tile=4, stride=2)
    with pytest.raises(ValueError, match=r"sides are 6 plus multiples of 4.*got 9×9.*10×10"):
        model.fit(textures(5, 9))
    with pytest.raises(ValueError, match="needs images"):
        model.fit(np.zeros((5, 36)))
    with pytest.raises(ValueError, match="1 channel"):
        tiled.energy(np.zeros((2, 10, 10, 3), np.float32))
    with pytest.raises(ValueError, match="images of shape"):
        tiled.transform(textures(2, 14))
    with pytest.raises(ValueError, match="got 9×9"):
        tiled.maps(textures(2, 9))
    with pytest.raises(ValueError, match="mask"):
        tiled.sample(1, clamp=(np.zeros((10, 10)), textures(1, 10)))
    with pytest.raises(ValueError, match="shape out"):
        tiled.sample(1, shape=(9, 9), clamp=(np.zeros((10, 10), bool), textures(1, 10)))
    held = np.ones((10, 10), bool), textures(1, 10)
    with pytest.raises(CapabilityError, match="Gibbs cannot sample an image with an edge, of Til"):
        tiled.sample(1, clamp=held, sampler=Gibbs())
    with pytest.raises(ValueError, match="NaN"):
        tiled.sample(1, start=np.full((10, 10), np.nan))
    with pytest.raises(ValueError, match="sigma"):
        tiled.denoise(textures(1, 10), 0.0)
    with pytest.warns(UnnormalizedScoreWarning, match="log Z is not known"):
        tiled.score(textures(2, 10))


def test_settings_that_cannot_be() -> None:
    X = textures(5, 10)
    for model, words in (
        (TiledMPoT(4, tile=4, stride=3), "stride must divide tile"),
        (TiledMPoT(4, tile=0), "tile must be an integer"),
        (TiledMPoT(4, sigma=np.inf), "sigma must be > 0 and finite"),
        (TiledMPoT(4, n_mean_components=-1), "n_mean_components"),
        (FieldsOfExperts(3, size=2, filters=DIFFERENCES), r"shape \(3, 2, 2\)"),
        (FieldsOfExperts(2, size=2, filters=np.zeros((2, 2, 2))), "none of them zero"),
        (FieldsOfExperts(2, size=2, filters=np.ones((2, 2, 2, 3))), "3 channel"),
    ):
        with pytest.raises(ValueError, match=words):
            model.fit(X)
    with pytest.raises(AttributeError, match="mean_components_"):
        fitted(TiledMPoT(4, n_mean_components=0, tile=4, stride=2), X).mean_components_  # noqa: B018
