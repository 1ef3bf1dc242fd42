"""A deep auto-encoder obeys the laws of models; its gradients are those of its loss and penalties,
and where there is another name for it, it is that."""

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
from energyscape.backend import Purpose, stream, to_host
from energyscape.callbacks import Checkpoint
from energyscape.corruptions import GaussianNoise
from energyscape.errors import DivergenceError
from energyscape.evaluation.laws import check_model, generic_params
from energyscape.layers import SmoothShrink, TopK
from energyscape.models import PCA, AutoEncoder, DeepAutoEncoder
from energyscape.optim import Adam
from energyscape.penalties import KL, Contractive, Hutchinson, KSparse, Student
from energyscape.samplers import DenoisingChain
from energyscape.trainers import Contraction, Denoising, Reconstruction, Sparsity
from energyscape.trainers.base import Batch

LAWS = [
    "energy_is_free_energy",
    "gradient_is_central_difference",
    "gradient_is_additive",
    "input_gradient_is_central_difference",
]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"tied": False},
    {"activation": "tanh", "output": "sigmoid"},
    {"activation": ["tanh", "relu", "sigmoid"]},
    {"activation": ["sigmoid", SmoothShrink(0.5, 3.0), TopK(1)], "tied": False},
    {"decoder_activation": "tanh"},
    {"decoder_activation": ["relu", "tanh"], "tied": False, "output": "tanh"},
    {"loss": "cross_entropy"},
    {"loss": "cross_entropy", "tied": False, "activation": "saturated_linear"},
    {"loss": "cross_entropy", "decoder_activation": ["tanh", "identity"]},
]


def reals(n: int, d: int = 5) -> np.ndarray:
    """Correlated reals, off zero."""
    rng = np.random.default_rng(3)
    return 5 + rng.standard_normal((n, d)) @ rng.standard_normal((d, d))


def greys(n: int, d: int = 5) -> np.ndarray:
    return np.random.default_rng(4).random((n, d))


def rows_for(settings: dict[str, Any], n: int, d: int = 5) -> np.ndarray:
    return greys(n, d) if "loss" in settings or "output" in settings else reals(n, d)


def named(settings: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in settings.items()) or "plain"


each_variant = pytest.mark.parametrize("settings", VARIANTS, ids=named)


# ---------------------------------------------------------------- laws


@each_variant
def test_every_deep_auto_encoder_obeys_the_laws(settings: Any) -> None:
    model = DeepAutoEncoder((4, 3, 2), **settings)
    assert check_model(model, rows_for(settings, 8)) == LAWS


class ForgottenDecoder(DeepAutoEncoder):
    """Tied weights that the way down does not teach."""

    def backward(self, up: Any, down: Any, *rest: Any, **options: Any) -> Any:
        grads, dx = super().backward(up, down, *rest, **options)
        return grads | {"W2": grads["W2"] - down[1].backward(dh=down[1].h * 0 + 1).W.T}, dx


class CrossedDecoder(DeepAutoEncoder):
    """Activations of the way down in the order of the way up."""

    def outputs(self) -> list[Any]:
        return super().outputs()[::-1]


def test_the_laws_catch_what_they_are_for() -> None:
    with pytest.raises(AssertionError, match="central_difference"):
        check_model(ForgottenDecoder((4, 3, 2)), reals(8))


@each_variant
def test_the_energy_is_the_reconstruction_error(settings: Any) -> None:
    """Written out layer by layer, to 1e-10."""
    x = rows_for(settings, 20)
    model = DeepAutoEncoder((4, 3, 2), **settings)
    p = generic_params(model, x)
    scale, mean = p.get("scale", 1.0), p["mean"] if "scale" in p else 0.0
    ups = model.activations()
    inner = settings.get("decoder_activation", ups[:2])
    inner = [inner] * 2 if isinstance(inner, str) else inner
    h = (x - mean) / scale
    for i in (1, 2, 3):
        h = ups[i - 1].value(h @ p[f"W{i}"] + p[f"c{i}"])
    np.testing.assert_allclose(model.encode(p, x), h, rtol=1e-10, atol=1e-12)
    for i, f in ((3, inner[1]), (2, inner[0]), (1, model.output_activation())):
        V = p[f"V{i}"] if f"V{i}" in p else p[f"W{i}"].T
        f = energyscape.layers.activation(f)
        h = f.value(h @ V + p[f"b{i}"])
    r = h * scale + mean
    wanted = ((x - r) ** 2).sum(axis=1)
    if settings.get("loss") == "cross_entropy":
        wanted = -(x * np.log(r) + (1 - x) * np.log(1 - r)).sum(axis=1)
    np.testing.assert_allclose(model.free_energy(p, x), wanted, rtol=1e-10)
    crossed = CrossedDecoder((4, 3, 2), **settings)
    if len({repr(f) for f in model.outputs()}) == 3 and settings.get("loss") is None:
        assert np.abs(crossed.free_energy(p, x) - wanted).max() > 1e-3


TRAINERS = [
    Reconstruction(),
    Reconstruction(GaussianNoise(0.3)),
    Sparsity(),
    Sparsity(Student(0.3)),
    Contraction(Hutchinson(0.2, n_draws=2)),
    Contraction(Contractive(0.2), penalties=(Hutchinson(0.2), KL(0.1, 0.3))),
]


def trained_loss(model: Any, trainer: Any, params: Any, x: np.ndarray) -> float:
    """What the trainer says it descends: mean loss in units of the data's scale, and penalties."""
    rng = stream(0, Purpose.COLLECT)
    seen = x if trainer.noise() is None else trainer.noise().corrupt(x, rng)[0]
    up = model.encoder(params, seen)
    out = model.decoder(params, up[-1].h)[-1]
    loss = (model.row_loss(params, out, model.standardized(params, x)) / model.unit(params)).mean()
    return float(loss + sum(penalty(up, rng)[0] for penalty in trainer.all_penalties()))


@pytest.mark.parametrize("settings", [{}, {"loss": "cross_entropy"}], ids=named)
@pytest.mark.parametrize("trainer", TRAINERS, ids=repr)
def test_trainers_descend_their_loss_through_three_layers(trainer: Any, settings: Any) -> None:
    """Every entry by central differences of step 1e-5, to 1e-6 of the largest."""
    x = rows_for(settings, 12)
    model = DeepAutoEncoder((4, 3, 2), **settings)
    params = {k: v.copy() for k, v in generic_params(model, x).items()}
    trainer.validate(model)
    sums = trainer.collect(model, params, {}, Batch(x, len(x)), stream(0, Purpose.COLLECT))
    for name, spec in model.param_specs().items():
        if not spec.trainable:
            continue
        wanted, flat = np.empty(params[name].size), params[name].reshape(-1)
        for i, kept in enumerate(flat.copy()):
            at = []
            for step in (1e-5, -1e-5):
                flat[i] = kept + step
                at.append(trained_loss(model, trainer, params, x))
            flat[i] = kept
            wanted[i] = (at[0] - at[1]) / 2e-5
        close = 1e-6 * max(1.0, np.abs(wanted).max())
        np.testing.assert_allclose(sums[name].ravel(), wanted, atol=close, err_msg=name)


# ---------------------------------------------------------------- other names for it


@pytest.mark.parametrize(
    "settings", [{}, {"tied": False}, {"loss": "cross_entropy"}, {"activation": "relu"}], ids=named
)
def test_one_hidden_layer_is_an_auto_encoder(settings: Any) -> None:
    """At the same parameters, and trained from the same seed: bit for bit."""
    x = rows_for(settings, 50)
    trainer = Denoising(GaussianNoise(0.3), n_epochs=2, batch_size=20)
    shallow = AutoEncoder(3, trainer=trainer, random_state=0, **settings).fit(x)
    deep = DeepAutoEncoder((3,), trainer=trainer, random_state=0, **settings).fit(x)
    assert {k.rstrip("1"): v for k, v in deep.params_.items()}.keys() == shallow.params_.keys()
    for key, value in deep.params_.items():
        np.testing.assert_array_equal(value, shallow.params_[key.rstrip("1")], err_msg=key)
    np.testing.assert_array_equal(deep.energy(x), shallow.energy(x))
    np.testing.assert_array_equal(deep.components_, shallow.components_)
    weights = np.linspace(-1, 1, 50)
    p = shallow.free_energy_grad(shallow._params, x, weights)
    for key, value in deep.free_energy_grad(deep._params, x, weights).items():
        np.testing.assert_array_equal(value, p[key.rstrip("1")], err_msg=key)


def linear_at(pca: PCA, x: np.ndarray, which: list[int]) -> tuple[Any, Any]:
    """A linear chain onto three axes of PCA and on to two of these, ``which``, and its verbs."""
    model = DeepAutoEncoder((3, 2), activation="identity")
    p = model.init_params(x, stream(0, Purpose.INIT))
    zeros = {k: np.zeros_like(v) for k, v in p.items() if k[0] in "bc"}
    return model, p | zeros | {"W1": pca.components_.T.copy(), "W2": np.eye(3)[:, which]}


def test_the_axes_of_pca_are_where_a_linear_chain_rests() -> None:
    """No gradient, to 1e-9 of rows of order 10; and energies are PCA's. Half way between axes there
    is a gradient."""
    x = reals(50, 6)
    pca = PCA(3).fit(x)
    model, p = linear_at(pca, x, [0, 1])
    grads = model.free_energy_grad(p, x, np.full(50, 1 / 50))
    assert max(np.abs(g).max() for g in grads.values()) < 1e-9
    best = PCA(2).fit(x)
    np.testing.assert_allclose(model.free_energy(p, x), best.energy(x), rtol=1e-9, atol=1e-9)
    turned = p | {"W2": np.array([[1.0, 0.0], [0.0, 0.8], [0.0, 0.6]])}
    grads = model.free_energy_grad(turned, x, np.full(50, 1 / 50))
    assert max(np.abs(g).max() for g in grads.values()) > 1e-2
    assert model.free_energy(turned, x).mean() > best.energy(x).mean() + 1e-2


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_trained_linear_chain_spans_the_axes_of_pca(tied: bool) -> None:
    """The excess of the error over PCA's falls below 1 %, and the sines of the angles between the
    planes below 0.1 (the excess is of second order in them). Before training they are not."""
    x = reals(200, 6)
    best = PCA(2).fit(x)
    trainer = Reconstruction(n_epochs=300, batch_size=50, optimizer=Adam(0.01))
    model = DeepAutoEncoder((4, 2), activation="identity", tied=tied, random_state=0)
    model.set_params(trainer=trainer).fit(x)
    assert best.energy(x).mean() <= model.energy(x).mean() < 1.01 * best.energy(x).mean()
    rebuilt = model.reconstruct(x)
    rebuilt -= rebuilt.mean(axis=0)
    _, sizes, axes = np.linalg.svd(rebuilt, full_matrices=False)
    assert (sizes[2:] < 1e-9 * sizes[0]).all()
    apart = best.components_ - best.components_ @ axes[:2].T @ axes[:2]
    assert np.linalg.norm(apart, 2) < 0.1
    start = DeepAutoEncoder((4, 2), activation="identity", tied=tied, random_state=0)
    start.set_params(trainer=Reconstruction(n_epochs=1)).fit(x)
    assert start.energy(x).mean() > 1.1 * best.energy(x).mean()


def test_depth_helps_where_a_plane_does_not() -> None:
    """A curve in five dimensions through one code: below a quarter of PCA(1)'s error."""
    t = np.random.default_rng(0).uniform(-1, 1, (300, 1))
    x = np.concatenate([t, t**2, np.sin(3 * t), np.cos(2 * t), t**3], axis=1)
    model = DeepAutoEncoder((16, 1), activation=["tanh", "identity"], decoder_activation="tanh")
    trainer = Reconstruction(n_epochs=150, batch_size=20, optimizer=Adam(0.01))
    model.set_params(trainer=trainer, tied=False, random_state=0).fit(x)
    assert model.energy(x).mean() < 0.25 * PCA(1).fit(x).energy(x).mean()


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_layer_sizes": ()}, r"must be a tuple of layer sizes, got \(\)"),
        ({"hidden_layer_sizes": 3}, r"must be a tuple of layer sizes, got 3"),
        ({"hidden_layer_sizes": (3, 0)}, r"hidden_layer_sizes must be an integer >= 1, got 0"),
        ({"activation": ["relu"]}, r"activation has 1 entries; 2 hidden layers take 2"),
        ({"decoder_activation": ["relu", "tanh"]}, r"decoder_activation has 2 .* layers take 1"),
        ({"activation": "softmax"}, r"activation must be one of"),
        ({"decoder_activation": "softmax"}, r"activation must be one of"),
        ({"decoder_activation": TopK(0)}, r"TopK\.k must be an integer >= 1, got 0"),
        ({"loss": "hinge"}, r"DeepAutoEncoder\.loss must be one of"),
        ({"loss": "cross_entropy", "output": "tanh"}, r"DeepAutoEncoder: loss='cross_entropy'"),
    ],
    ids=lambda value: named(value) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_are_named(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepAutoEncoder(**{"hidden_layer_sizes": (3, 2)} | settings).fit(greys(10))


def test_where_codes_and_rows_lie() -> None:
    model = DeepAutoEncoder((3, 2), activation=["relu", "sigmoid"], loss="cross_entropy")
    assert (model.domain, model.codes, model.proper) == ("unit", "unit", False)
    model = DeepAutoEncoder((3, 2), activation=["tanh", "relu"])
    assert (model.domain, model.codes, model.proper) == ("real", "nonneg", False)
    assert DeepAutoEncoder((3, 2)).proper


def test_numbers_that_run_away_are_told() -> None:
    trainer = Reconstruction(n_epochs=50, learning_rate=10)
    model = DeepAutoEncoder((4, 2), activation="identity", trainer=trainer, random_state=0)
    with pytest.raises(DivergenceError, match=r"DeepAutoEncoder met numbers .* learning rate 10;"):
        model.fit(reals(200))
    assert np.isfinite(model.reconstruct(reals(20))).all()


# ---------------------------------------------------------------- scikit-learn, files, devices

QUICK = {"n_epochs": 2}
FACES = [
    DeepAutoEncoder((4, 2), trainer=Reconstruction(**QUICK)),
    DeepAutoEncoder([4, 3, 2], tied=False, trainer=Denoising(GaussianNoise(0.1), **QUICK)),
    DeepAutoEncoder(
        (4, 2),
        activation=["relu", "identity"],
        decoder_activation=["tanh"],
        trainer=Sparsity(KSparse(1), averaging=0.5, **QUICK),
    ),
]


@pytest.mark.filterwarnings("ignore::energyscape.errors.UnnormalizedScoreWarning")
@parametrize_with_checks(FACES[:1])
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("model", FACES, ids=lambda m: type(m.trainer).__name__)
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
    assert fitted.components_.shape == (4, 5) and fitted.transform(x).shape == (40, 2)
    assert fitted.inverse_transform(fitted.transform(x)).shape == x.shape
    assert list(fitted.get_feature_names_out()) == ["deepautoencoder0", "deepautoencoder1"]


def test_an_interrupted_run_resumes_bit_for_bit(tmp_path: Any) -> None:
    x, path = reals(40), tmp_path / "after_{epoch}.h5"
    trainer = Denoising(GaussianNoise(0.1), n_epochs=5, batch_size=10, callbacks=[Checkpoint(path)])
    whole = DeepAutoEncoder((4, 2), trainer=trainer, random_state=0).fit(x)
    resumed = energyscape.load(tmp_path / "after_2.h5")
    assert resumed.n_iter_ == 2
    resumed.resume(x)
    for key, value in whole.params_.items():
        np.testing.assert_array_equal(resumed.params_[key], value, err_msg=key)


def test_it_samples_by_the_dynamics_that_were_taught() -> None:
    x = reals(100)
    trainer = Denoising(GaussianNoise(0.5), n_epochs=2)
    model = DeepAutoEncoder((8, 4), trainer=trainer, random_state=0).fit(x)
    assert isinstance(model.default_sampler(), DenoisingChain)
    draws = model.sample(20, n_steps=10)
    assert draws.shape == (20, 5) and np.isfinite(draws).all()


@pytest.mark.parametrize("settings", [{}, {"loss": "cross_entropy", "tied": False}], ids=named)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_both_paths_agree(settings: Any, dtype: Any, cupy: Any) -> None:
    """Every verb, on the host and on the device: to rounding of sums of ten terms."""
    model, host = DeepAutoEncoder((4, 2), **settings), rows_for(settings, 12).astype(dtype)
    results = []
    for xp in (np, cupy):
        x = host if xp is np else xp.asarray(host)
        p = model.init_params(x, ReplayStream(xp, 1))
        results.append(
            {k: to_host(v) for k, v in p.items()}
            | {
                "energy": to_host(model.free_energy(p, x)),
                "slope": to_host(model.input_grad(p, x)),
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
        trainer = Contraction(Hutchinson(0.1), n_epochs=1, batch_size=size)
        x = fake_cupy.asarray(reals(60).astype(np.float32))
        standin.Counter.syncs = 0
        DeepAutoEncoder((4, 2), trainer=trainer, random_state=0).fit(x)
        counts.append(standin.Counter.syncs)
    assert counts[0] == counts[1]
