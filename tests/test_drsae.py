"""A discriminative recurrent sparse auto-encoder: its network, its two losses, its face."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

import energyscape
from energyscape.backend import Purpose, stream, to_host
from energyscape.errors import CapabilityError
from energyscape.models import LISTA, PCA, PSD, DrSAE
from energyscape.models.learned_descent import LCoDEncoder
from energyscape.models.unrolled import CoupledLISTAEncoder, LISTAEncoder
from energyscape.penalties import L1
from energyscape.trainers import PCD, Backpropagation, EnergyLoss
from energyscape.trainers.base import Batch

ATOMS, D_IN, T = 6, 5, 4


def planted(n: int = 400, seed: int = 0, noise: float = 0.05) -> tuple[Any, Any, Any]:
    """Rows ±a d_k, of class k mod 2: no plane tells the classes apart, codes >= 0 do."""
    atoms = np.linalg.qr(np.random.default_rng(5).standard_normal((8, 8)))[0][:6]
    rng = np.random.default_rng(seed)
    k, signs = rng.integers(0, 6, n), rng.choice([-1.0, 1.0], n)
    rows = (signs * rng.uniform(0.5, 1.5, n))[:, None] * atoms[k]
    return rows + noise * rng.standard_normal(rows.shape), k % 2, atoms


def labelled(n: int = 60) -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal((n, D_IN)), rng.integers(0, 3, n)
    return X + 2 * np.eye(3, D_IN)[y], np.array(["ant", "bee", "cat"])[y]


X, Y = labelled()
SHARED: dict[str, Any] = {
    "dictionary": np.random.default_rng(2).standard_normal((ATOMS, D_IN)),
    "penalty": L1(0.1),
    "positive": True,
    "train_dictionary": True,
    "replace": False,
    "trainer": EnergyLoss(n_epochs=2, batch_size=20),
}
SHORT = Backpropagation(n_epochs=2, batch_size=20)
ENCODERS = [LISTAEncoder(T - 1), LISTAEncoder(2, tied=False), CoupledLISTAEncoder(2)]


def below(encoder: Any = None) -> LISTA:
    return LISTA(ATOMS, encoder=LISTAEncoder(T - 1) if encoder is None else encoder, **SHARED)


def fitted(encoder: Any = None, **settings: Any) -> DrSAE:
    model = DrSAE(below(encoder), trainer=SHORT, random_state=0)
    return model.set_params(**settings).fit(X, Y)


def moved(model: DrSAE) -> dict[str, Any]:
    """Parameters off where training ends, so that nothing is 0 or symmetric by chance."""
    rng = np.random.default_rng(3)
    params = {k: v.copy() for k, v in model._params.items()}
    for key in ("C", "c", *model.model_.encoder.names):
        params[key] = params[key] + 0.1 * rng.standard_normal(params[key].shape)
    return params | {"theta": np.abs(params["theta"])}


# ---------------------------------------------------------------- the network and its losses


def test_codes_and_probabilities_are_those_of_the_printed_recurrence() -> None:
    model = fitted()
    p = model.params_
    z = np.zeros((len(X), ATOMS))
    for _ in range(T):
        z = np.maximum(0, X @ p["We"] + z @ p["S"][0].T - p["theta"][0])
    assert (z == 0).any() and (z > 0).any()
    np.testing.assert_allclose(model.transform(X), z, atol=1e-12)
    np.testing.assert_allclose(model.reconstruct(X), z @ model.components_, atol=1e-12)
    lengths = np.linalg.norm(z, axis=1, keepdims=True)
    sure = lengths[:, 0] > 0.01 * np.sqrt(p["squares"])
    logits = z[sure] / lengths[sure] @ model.coef_.T + model.intercept_
    np.testing.assert_allclose(model.decision_function(X[sure]), logits, atol=1e-12)
    odds = np.exp(logits)
    wanted = odds / odds.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.predict_proba(X[sure]), wanted, atol=1e-12)
    assert list(model.classes_) == ["ant", "bee", "cat"]
    assert set(model.predict(X)) <= set(model.classes_) and model.components_.shape == (6, 5)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("encoder", [*ENCODERS, LCoDEncoder(5)], ids=repr)
def test_gradients_of_both_losses_are_central_differences(encoder: Any, dropout: float) -> None:
    """Step 1e-6: rounding of a mean of 12 terms over 2e-6; kinks and ties are as likely as 1e-4 to
    be crossed, and were not."""
    model = fitted(encoder, energy_weight=0.7)
    params, trainer = moved(model), Backpropagation(dropout=dropout)
    batch = Batch(X[:12], 12, np.searchsorted(model.classes_, Y[:12]))

    def loss(params: dict[str, Any]) -> float:
        drop = trainer._drop(stream(0, Purpose.COLLECT)) if dropout else None
        logits = model.network(params, batch.x, drop)[-1].h
        energy = model.model_.free_energy(params, batch.x).mean() / float(params["squares"])
        return float(model.label_loss(logits, batch.y).mean() + 0.7 * energy)

    sums = trainer.collect(model, params, {}, batch, stream(0, Purpose.COLLECT))
    assert {k for k, spec in model.param_specs().items() if spec.trainable} == set(sums)
    for key, grad in sums.items():
        wanted = np.empty(grad.size)
        for i in range(grad.size):
            at = []
            for step in (1e-6, -1e-6):
                value = params[key].copy()
                value.flat[i] += step
                at.append(loss(params | {key: value}))
            wanted[i] = (at[0] - at[1]) / 2e-6
        np.testing.assert_allclose(grad.ravel(), wanted, atol=1e-8, err_msg=key)


def test_the_gradient_is_the_energy_s_where_labels_say_nothing() -> None:
    """At C = 0 codes do not move the logits; and w multiplies the energy's part alone."""
    model = fitted()
    params, y = moved(model), np.searchsorted(model.classes_, Y)
    energy = EnergyLoss().collect(model.model_, params, {}, Batch(X, 60), None)

    def grads(params: dict[str, Any], weight: float) -> dict[str, Any]:
        model.set_params(energy_weight=weight)
        return Backpropagation().collect(model, params, {}, Batch(X, 60, y), None)

    silent = grads(params | {"C": np.zeros_like(params["C"])}, 1.0)
    some, none = grads(params, 2.5), grads(params, 0.0)
    for key in ("We", "S", "theta", "D"):
        unit = energy[key] / params["squares"]
        np.testing.assert_allclose(silent[key], unit, atol=1e-12)
        np.testing.assert_allclose(some[key] - none[key], 2.5 * unit, atol=1e-12)
        assert key == "D" or np.abs(none[key]).max() > 1e-6
    assert np.abs(none["D"]).max() == 0
    np.testing.assert_array_equal(some["C"], none["C"])


def test_codes_that_are_off_have_no_direction_and_no_gradient() -> None:
    model = fitted()
    params = moved(model)
    rows = np.concatenate([np.zeros((1, D_IN)), 1e-9 * X[:1], X[:1]])
    params["theta"][...] = 0
    passes = model.network(params, rows)
    assert (passes[0].h[0] == 0).all() and np.abs(passes[0].h[1]).max() < 1e-6
    assert np.linalg.norm(passes[0].h[2]) == pytest.approx(1)
    grads = model.network_grad(passes, np.array([0, 1, 2]), 1.0)
    assert all(np.isfinite(g).all() for g in grads.values())


def test_units_of_the_data_do_not_matter() -> None:
    """Rounding of 6 updates; without units of its own, a step at a scale of 1000 diverges."""
    small = fitted()
    model = below().set_params(penalty=L1(100.0))
    large = DrSAE(model, trainer=SHORT, random_state=0).fit(1000 * X, Y)
    np.testing.assert_allclose(large.predict_proba(1000 * X), small.predict_proba(X), atol=1e-8)
    np.testing.assert_allclose(large.transform(1000 * X), 1000 * small.transform(X), rtol=1e-6)


# ---------------------------------------------------------------- what it learns


def test_planted_classes_are_learned_that_no_plane_tells_apart() -> None:
    """300 test rows: of logistic regression half are wrong, fewer than a third by chance once in
    1e8; of the network at most 5 % (measured: none), while its atoms stay those of the rows."""
    train, y, atoms = planted()
    test, labels, _ = planted(300, seed=1)
    lista = LISTA(
        16,
        encoder=LISTAEncoder(4),
        positive=True,
        train_dictionary=True,
        trainer=EnergyLoss(n_epochs=20, batch_size=20),
    )
    trainer = Backpropagation(n_epochs=10, batch_size=20)
    model = DrSAE(lista, trainer=trainer, random_state=0).fit(train, y)
    assert 1 - LogisticRegression().fit(train, y).score(test, labels) > 1 / 3
    assert 1 - model.score(test, labels) <= 0.05
    cosines = model.components_ @ np.concatenate([atoms, -atoms]).T
    assert (cosines.max(axis=0) > 0.95).mean() > 0.9
    assert model.history_["error_train"][-1] <= model.history_["error_train"][0]
    # The energy of rows falls further where it counts beside the labels, and not where it does not.
    free = clone(model).set_params(energy_weight=0.0).fit(train, y)
    before, kept, lost = (
        m.model_.forward(params, test).energy().mean()
        for m, params in (
            (model, model.model_._params),
            (model, model._params),
            (free, free._params),
        )
    )
    assert kept < min(before, lost)


# ---------------------------------------------------------------- the face


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(
    [
        DrSAE(
            LISTA(
                8,
                encoder=LISTAEncoder(2),
                positive=True,
                train_dictionary=True,
                trainer=EnergyLoss(n_epochs=3, batch_size=20),
                sparsity=0.05,
                tol=0.1,
                max_iter=20,
            ),
            trainer=Backpropagation(n_epochs=15, batch_size=10),
        )
    ]
)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("encoder", ENCODERS, ids=repr)
def test_it_is_cloned_pickled_and_saved(encoder: Any, tmp_path: Any) -> None:
    model = fitted(encoder)
    model.save(tmp_path / "model.h5")
    for again in (
        pickle.loads(pickle.dumps(model)),
        energyscape.load(tmp_path / "model.h5"),
        clone(model).fit(X, Y),
    ):
        assert again.n_features_in_ == D_IN and again.n_iter_ == 2
        np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
        np.testing.assert_array_equal(again.predict(X), model.predict(X))
        np.testing.assert_array_equal(again.transform(X), model.transform(X))
        np.testing.assert_array_equal(again.model_.transform(X), model.model_.transform(X))
        np.testing.assert_array_equal(again.components_, model.components_)
        np.testing.assert_array_equal(again.coef_, model.coef_)
    assert list(model.get_feature_names_out()) == [f"drsae{i}" for i in range(ATOMS)]


def test_a_file_of_another_shape_is_refused(tmp_path: Any) -> None:
    model = fitted()
    model._state.params["C"] = model._state.params["C"][:-1]
    model.save(tmp_path / "model.h5")
    with pytest.raises(energyscape.errors.FileFormatError, match="parameters have shapes"):
        energyscape.load(tmp_path / "model.h5")


def test_a_fitted_model_stays_as_it_is() -> None:
    first = below().fit(X)
    before = first.transform(X)
    model = DrSAE(FrozenEstimator(first), trainer=SHORT, random_state=0).fit(X, Y)
    np.testing.assert_array_equal(first.transform(X), before)
    assert model.model_ is first and np.abs(model.transform(X) - before).max() > 1e-6
    narrow = clone(model).fit(X.astype(np.float32), Y)
    assert narrow.transform(X.astype(np.float32)).dtype == np.float32
    assert {v.dtype for v in narrow.params_.values()} == {np.dtype("f4"), np.dtype("i8")}


def test_a_dictionary_that_is_not_to_be_learned_stays() -> None:
    model = fitted(model__train_dictionary=False)
    np.testing.assert_array_equal(model.components_, model.model_.components_)


def test_it_runs_on_the_device(fake_cupy: Any) -> None:
    x = fake_cupy.asarray(X.astype(np.float32))
    trainer = Backpropagation(n_epochs=2, batch_size=20, dropout=0.2, validation_fraction=0.2)
    model = DrSAE(below(), trainer=trainer, random_state=0).fit(x, Y)
    for value in (model.predict_proba(x), model.transform(x), model.coef_, model.components_):
        assert isinstance(value, fake_cupy.ndarray) and value.dtype == np.float32
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_allclose(again.transform(X), to_host(model.transform(x)), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"energy_weight": -0.1}, ValueError, "DrSAE.energy_weight must be >= 0, got -0.1"),
        ({"energy_weight": np.nan}, ValueError, "DrSAE.energy_weight must be >= 0, got nan"),
        ({"model": PCA(2)}, CapabilityError, "energy is taken at an encoder's codes"),
        ({"model": PSD(2)}, CapabilityError, "energy is taken at an encoder's codes"),
        ({"model": LISTA}, CapabilityError, "energy is taken at an encoder's codes"),
        ({"trainer": PCD()}, CapabilityError, "PCD cannot train DrSAE"),
        ({"trainer": Backpropagation(dropout=2)}, ValueError, "dropout must be in"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        DrSAE(below(), trainer=SHORT).set_params(**settings).fit(X, Y)


def test_what_is_missing_is_said() -> None:
    with pytest.raises(ValueError, match="needs samples of at least 2 classes"):
        DrSAE(below(), trainer=SHORT).fit(X, np.zeros(60))
    with pytest.raises(ValueError, match=r"Pass one first, e.g. DrSAE\(model=LISTA\(\)\)"):
        DrSAE().set_params(model__sparsity=0.1)
    for name in ("coef_", "components_", "history_", "params_", "n_iter_"):
        assert not hasattr(DrSAE(), name)
    assert DrSAE().default_model().encoder.n_layers == 10
