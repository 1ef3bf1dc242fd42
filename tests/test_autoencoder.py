"""Auto-encoders obey the laws of models, and their energies are those that are known elsewhere."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import standin
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks
from streams import ReplayStream

import energyscape
from energyscape.activations import Shrink, SmoothShrink, TopK
from energyscape.backend import Purpose, stream, to_host
from energyscape.corruptions import GaussianNoise, Masking
from energyscape.evaluation.laws import check_model, generic_params
from energyscape.models import GaussianRBM
from energyscape.models.autoencoder import AutoEncoder
from energyscape.models.pca import PCA
from energyscape.penalties import KSparse
from energyscape.samplers import HMC, DenoisingChain
from energyscape.trainers import CD, Contraction, Denoising, Reconstruction, Saturation, Sparsity

ACTIVATIONS = ["sigmoid", "tanh", "identity", "relu", "saturated_linear"]
OBJECTS = [SmoothShrink(0.5, 3.0), Shrink(0.2), TopK(2)]
LOSSES = [{}, {"loss": "cross_entropy"}, {"output": "sigmoid"}, {"output": "tanh"}]
LAWS = [
    "energy_is_free_energy",
    "gradient_is_central_difference",
    "gradient_is_additive",
    "input_gradient_is_central_difference",
]
OF_CURVATURE = [
    "laplacian_is_the_trace_of_second_derivatives",
    "score_matching_is_its_definition",
    "squared_curvature_is_its_definition",
]


def reals(n: int, d: int = 4) -> np.ndarray:
    """Correlated reals, off zero."""
    rng = np.random.default_rng(3)
    return 5 + rng.standard_normal((n, d)) @ rng.standard_normal((d, d))


def greys(n: int, d: int = 4) -> np.ndarray:
    return np.random.default_rng(4).random((n, d))


def rows_for(settings: dict[str, Any], n: int, d: int = 4) -> np.ndarray:
    return greys(n, d) if settings else reals(n, d)


def short(activation: Any) -> str:
    return activation if isinstance(activation, str) else type(activation).__name__


def named(settings: dict[str, Any]) -> str:
    return "-".join(map(str, settings.values())) or "squared"


# ---------------------------------------------------------------- laws


@pytest.mark.parametrize("settings", LOSSES, ids=named)
@pytest.mark.parametrize("activation", [*ACTIVATIONS, *OBJECTS], ids=short)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_every_auto_encoder_obeys_the_laws(tied: bool, activation: Any, settings: Any) -> None:
    model = AutoEncoder(3, activation=activation, tied=tied, **settings)
    assert check_model(model, rows_for(settings, 8)) == LAWS


@pytest.mark.parametrize("activation", [*ACTIVATIONS, Shrink(0.2)], ids=short)
def test_every_potential_obeys_the_laws(activation: Any) -> None:
    model = AutoEncoder(3, activation=activation, energy_kind="potential")
    assert check_model(model, reals(8)) == LAWS + (OF_CURVATURE if model.smooth else [])


class ForgottenDecoder(AutoEncoder):
    """The tied gradient of the encoder alone: the bug that tied weights invite."""

    def backward(self, up: Any, down: Any, *rest: Any, **options: Any) -> Any:
        grads, dx = super().backward(up, down, *rest, **options)
        return grads | {"W": up[0].x.T @ np.zeros_like(up[0].a)}, dx


class UnscaledSlope(AutoEncoder):
    def unit(self, params: Any) -> Any:
        return params["scale"]


@pytest.mark.parametrize("broken", [ForgottenDecoder, UnscaledSlope], ids=lambda c: c.__name__)
def test_the_laws_catch_what_they_are_for(broken: type) -> None:
    with pytest.raises(AssertionError, match="central_difference"):
        check_model(broken(3), 10 * reals(8))


# ---------------------------------------------------------------- energies by their definitions


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("settings", LOSSES, ids=named)
def test_the_energy_is_the_reconstruction_error(settings: Any, tied: bool) -> None:
    """In the units of the rows; written out from the definitions, to 1e-10 of the largest."""
    x = rows_for(settings, 20)
    model = AutoEncoder(3, tied=tied, **settings)
    p = generic_params(model, x)
    scale, mean = p.get("scale", 1.0), p["mean"] if "scale" in p else 0.0
    a = sigmoid((x - mean) / scale @ p["W"] + p["c"]) @ (p["W"].T if tied else p["V"]) + p["b"]
    output = np.tanh if settings.get("output") == "tanh" else sigmoid
    r = scale * (output(a) if settings else a) + mean
    wanted = ((x - r) ** 2).sum(axis=1)
    if settings.get("loss") == "cross_entropy":
        wanted = -(x * np.log(r) + (1 - x) * np.log(1 - r)).sum(axis=1)
    np.testing.assert_allclose(model.free_energy(p, x), wanted, rtol=1e-10)
    np.testing.assert_allclose(model.decode(p, model.encode(p, x)), r, rtol=1e-10)


def test_the_potential_is_the_free_energy_of_a_gaussian_rbm() -> None:
    """Sigmoid code, at the same parameters and σ = 1, in standardised units: the constant is 0.

    To 1e-12 of the largest energy: both are sums of some twenty terms.
    """
    x = reals(30, 6)
    model = AutoEncoder(5, energy_kind="potential")
    p = generic_params(model, x)
    z = (x - p["mean"]) / p["scale"]
    rbm = {k: p[k] for k in "Wbc"} | {"log_var": np.zeros(6), "var_v": np.ones(6)}
    rbm |= {"mean_v": np.zeros(6), "mean_h": np.zeros(5)}
    wanted = GaussianRBM(5, variance=1.0, centered=False).free_energy(rbm, z)
    got = model.free_energy(p, x)
    np.testing.assert_allclose(got, wanted, atol=1e-12 * np.abs(wanted).max())


@pytest.mark.parametrize("activation", [*ACTIVATIONS, Shrink(0.2)], ids=short)
def test_minus_the_slope_of_the_potential_is_the_step_to_the_reconstruction(
    activation: Any,
) -> None:
    """-∂F/∂z = r(z) - z in standardised units, so -∂F/∂x = (r(x) - x)/scale²."""
    x = reals(30)
    model = AutoEncoder(3, activation=activation, energy_kind="potential")
    p = generic_params(model, x)
    step = model.decode(p, model.encode(p, x)) - x
    np.testing.assert_allclose(-model.input_grad(p, x) * p["scale"] ** 2, step, atol=1e-11)
    error = AutoEncoder(3, activation=activation)
    assert np.abs(error.input_grad(p, x) - model.input_grad(p, x)).max() > 1e-3  # another energy


def test_a_linear_auto_encoder_has_the_energy_of_pca() -> None:
    """Tied, identity, at PCA's axes; 1e-10: standardising and back cancels 5² against 1e-16."""
    x = reals(50, 6)
    pca = PCA(2).fit(x)
    model = AutoEncoder(2, activation="identity")
    p = model.init_params(x, stream(0, Purpose.INIT))
    p |= {"W": pca.components_.T.copy(), "c": np.zeros(2), "b": np.zeros(6)}
    np.testing.assert_allclose(model.free_energy(p, x), pca.energy(x), rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------- draws


@pytest.mark.parametrize("settings", [{}, {"loss": "cross_entropy"}], ids=named)
def test_a_regenerated_row_is_a_draw_around_the_reconstruction(settings: Any) -> None:
    """Means and variances of 20,000 draws: 16 normal statistics within 6 errors, false alarm
    3e-8. The variance without noise, or that of another row, is off by far more."""
    n, model = 20_000, AutoEncoder(3, **settings)
    x = rows_for(settings, 2)
    p = generic_params(model, rows_for(settings, 20))
    if "residual" in p:
        p |= {"residual": np.array([0.1, 0.5, 1.0, 2.0])}
    mean = model.decode(p, model.encode(p, x))
    var = p["residual"] * p["scale"] ** 2 * np.ones((2, 1)) if not settings else mean * (1 - mean)
    draws = model.regenerate(p, np.tile(x, (n, 1)), stream(0, Purpose.SAMPLE)).reshape(n, 2, 4)
    error = np.sqrt(var / n)
    assert (np.abs(draws.mean(axis=0) - mean) < 6 * error).all()
    assert (np.abs(draws.mean(axis=0) - mean[::-1]) > 6 * error).any()
    fourth = 3 * var**2 if not settings else var * (1 - 3 * var)
    assert (np.abs(draws.var(axis=0) - var) < 6 * np.sqrt((fourth - var**2) / n) + 36 / n).all()


def test_the_default_sampler_is_the_dynamics_that_were_taught() -> None:
    noise = GaussianNoise(0.7)
    taught = AutoEncoder(trainer=Denoising(noise)).default_sampler()
    assert isinstance(taught, DenoisingChain) and taught.corruption is noise
    contractive = AutoEncoder(trainer=Contraction(corruption=noise)).default_sampler()
    assert isinstance(contractive, DenoisingChain) and contractive.corruption is noise
    default = AutoEncoder(trainer=Denoising()).default_sampler()
    assert isinstance(default.corruption, Masking)
    assert isinstance(AutoEncoder().default_sampler(), HMC)


def test_contrastive_trainers_shape_the_potential() -> None:
    """One step of CD moves it down at the data against where its chains went."""
    x = reals(60)
    trainer = CD(sampler=HMC(3, step_size=0.1), n_epochs=1, batch_size=60, learning_rate=1e-4)
    model = AutoEncoder(5, energy_kind="potential", trainer=trainer, random_state=0)
    start = model.init_params(x, stream(0, Purpose.INIT, 2))
    after = model.fit(x)._params
    assert all((after[key] != start[key]).any() for key in "Wbc")
    assert (after["scale"], after["mean"].tolist()) == (start["scale"], start["mean"].tolist())


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "hinge"}, r"loss must be one of squared, cross_entropy, got 'hinge'"),
        ({"activation": "softmax"}, r"activation must be one of 'identity'.*got 'softmax'"),
        ({"activation": TopK(0)}, r"TopK\.k must be an integer >= 1, got 0"),
        ({"output": "softmax"}, r"activation must be one of"),
        (
            {"loss": "cross_entropy", "output": "tanh"},
            r"a Tanh output does not give; use output='sigmoid' or loss='squared'",
        ),
        ({"energy_kind": "score"}, r"energy_kind must be one of reconstruction, potential"),
        ({"energy_kind": "potential", "tied": False}, r"has a potential with tied.*tied=False"),
        ({"energy_kind": "potential", "loss": "cross_entropy"}, r"got.*loss='cross_entropy'"),
        ({"energy_kind": "potential", "output": "tanh"}, r"has a potential.*output='tanh'"),
        ({"energy_kind": "potential", "activation": TopK(2)}, r"with a primitive.*TopK\(k=2\)"),
        ({"n_components": 0}, r"n_components must be an integer >= 1, got 0"),
    ],
    ids=lambda value: named(value) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_are_named(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoEncoder(**settings).fit(greys(10))


# ---------------------------------------------------------------- scikit-learn, files, devices

QUICK = {"n_epochs": 2}
FACES = [
    AutoEncoder(3, trainer=Reconstruction(**QUICK)),
    AutoEncoder(3, loss="cross_entropy", tied=False, trainer=Denoising(walkback=1, **QUICK)),
    AutoEncoder(3, trainer=Denoising(GaussianNoise(0.1), emphasis=(1, 0), walkback=1, **QUICK)),
    AutoEncoder(3, trainer=Sparsity(**QUICK)),
    AutoEncoder(3, activation="identity", trainer=Sparsity(KSparse(2, start=3), **QUICK)),
    AutoEncoder(3, activation="tanh", trainer=Contraction(averaging=0.5, **QUICK)),
    AutoEncoder(3, activation="relu", trainer=Saturation(learning_rate=0.01, **QUICK)),
]


@pytest.mark.filterwarnings("ignore::energyscape.errors.DataRangeWarning")
@pytest.mark.filterwarnings("ignore::energyscape.errors.UnnormalizedScoreWarning")
@parametrize_with_checks(FACES)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def face(model: AutoEncoder) -> str:
    return type(model.trainer).__name__


@pytest.mark.parametrize("model", FACES, ids=face)
def test_models_are_cloned_pickled_and_saved(model: Any, tmp_path: Any) -> None:
    x = greys(40)
    fitted = clone(model).set_params(random_state=1).fit(x)
    fitted.save(tmp_path / "model.h5")
    for again in (
        pickle.loads(pickle.dumps(fitted)),
        energyscape.load(tmp_path / "model.h5"),
        clone(fitted).fit(x),
    ):
        assert repr(again) == repr(fitted)
        for name in ("transform", "energy", "reconstruct"):
            np.testing.assert_array_equal(getattr(again, name)(x), getattr(fitted, name)(x))
    assert fitted.components_.shape == (3, 4) and fitted.transform(x).shape == (40, 3)
    assert fitted.n_iter_ == 2 and set(fitted.history_) >= {"energy_train", "reconstruction"}


def test_constant_data_and_any_scale_stay_finite() -> None:
    for x in (np.ones((30, 3)), 1e-12 * reals(30), 1e12 * reals(30)):
        for dtype in (np.float32, np.float64):
            trainer = Denoising(GaussianNoise(0.3 * float(x.std())), n_epochs=3)
            model = AutoEncoder(2, trainer=trainer, random_state=0).fit(x.astype(dtype))
            assert np.isfinite(model.history_["energy_train"]).all()
            assert np.isfinite(model.params_["residual"]).all()


@pytest.mark.parametrize("settings", LOSSES[:2], ids=named)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_both_paths_agree(settings: Any, tied: bool, dtype: Any, cupy: Any) -> None:
    """Every verb, on the host and on the device: to rounding of sums of ten terms."""
    model, host = AutoEncoder(3, tied=tied, **settings), rows_for(settings, 12).astype(dtype)
    results = []
    for xp in (np, cupy):
        x = host if xp is np else xp.asarray(host)
        p = model.init_params(x, ReplayStream(xp, 1))
        results.append(
            {k: to_host(v) for k, v in p.items()}
            | {
                "energy": to_host(model.free_energy(p, x)),
                "slope": to_host(model.input_grad(p, x)),
                "redrawn": to_host(model.regenerate(p, x, ReplayStream(xp, 2))),
                "start": to_host(model.start_points(p, 5, ReplayStream(xp, 3))),
                "code": to_host(model.encode(p, x)),
            }
        )
    close = 1e-5 if dtype == np.float32 else 1e-12
    for name, value in results[0].items():
        assert value.dtype == results[1][name].dtype, name
        scale = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(results[1][name], value, atol=close * scale, err_msg=name)


def test_an_epoch_waits_for_the_device_once(fake_cupy: Any) -> None:
    """Synchronisations do not grow with the number of batches."""
    counts = []
    for size in (60, 5):
        trainer = Denoising(GaussianNoise(0.1), walkback=1, n_epochs=1, batch_size=size)
        x = fake_cupy.asarray(reals(60).astype(np.float32))
        standin.Counter.syncs = 0
        AutoEncoder(3, trainer=trainer, random_state=0).fit(x)
        counts.append(standin.Counter.syncs)
    assert counts[0] == counts[1]
