"""Convolutional encoders: their gradients, what they are at first, and what predictive sparse
decomposition of images makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_conv_sparse import filters, planted

from energyscape.models import PSD, ConvPSD, ConvSparseCoding, encoded
from energyscape.models.conv_encoders import (
    ConvLISTAEncoder,
    ConvShrinkEncoder,
    ConvSmoothShrinkEncoder,
    ConvTanhEncoder,
)
from energyscape.models.encoders import ShrinkEncoder, TanhEncoder
from energyscape.penalties import L1
from energyscape.solvers.conv_dictionary import ConvDictionary
from energyscape.solvers.laid_filters import BOUNDARIES
from energyscape.trainers import EnergyLoss, Prediction

LAM = 0.3
ENCODERS = [
    ConvShrinkEncoder(),
    ConvSmoothShrinkEncoder(),
    ConvTanhEncoder(),
    ConvLISTAEncoder(0),
    ConvLISTAEncoder(2),
]
each_boundary = pytest.mark.parametrize("boundary", BOUNDARIES)
each_encoder = pytest.mark.parametrize("encoder", ENCODERS, ids=repr)


def params_of(encoder: Any, noise: float = 0.0, dtype: Any = np.float64) -> Any:
    D = filters(3, 3, 2, 2)
    x = np.random.default_rng(3).standard_normal((4, 6, 5, 2))
    params = encoder.init(D, LAM, x)
    rng = np.random.default_rng(1)
    for key in encoder.names:
        params[key] = params[key] + noise * rng.standard_normal(params[key].shape)
    params |= encoder.feasible(params)
    return {k: v.astype(dtype) for k, v in params.items()}, x.astype(dtype)


@each_boundary
@each_encoder
def test_gradients_are_central_differences(encoder: Any, boundary: str) -> None:
    encoder = encoder.at(boundary)
    params, x = params_of(encoder, 0.1)
    code, cache = encoder.forward(params, x)
    weights = np.random.default_rng(2).standard_normal(code.shape)
    assert code.shape[1:] == ConvDictionary(filters(3, 3, 2, 2), (6, 5), boundary).maps_shape
    grads, dx = encoder.backward(params, cache, weights, need_dx=True)
    assert sorted(grads) == sorted(encoder.names)
    assert encoder.backward(params, cache, weights)[1] is None

    def loss(params: Any, x: Any) -> float:
        return float((weights * encoder.forward(params, x)[0]).sum())

    step = 1e-6
    for key, grad in [*grads.items(), ("x", dx)]:
        at = x if key == "x" else params[key]
        for flat in np.random.default_rng(3).permutation(at.size)[:25]:
            moved = [np.array(at), np.array(at)]
            moved[0].flat[flat] += step
            moved[1].flat[flat] -= step
            both = [loss(params, m) if key == "x" else loss(params | {key: m}, x) for m in moved]
            # Rounding of a sum of at most 500 terms over 2e-6.
            assert abs(grad.flat[flat] - (both[0] - both[1]) / (2 * step)) < 5e-7, key


@each_encoder
def test_shapes_and_dtypes_are_those_that_are_said(encoder: Any) -> None:
    for dtype in (np.float32, np.float64):
        params, x = params_of(encoder, 0.1, dtype)
        assert {k: v.shape for k, v in params.items()} == encoder.shapes((3, 2, 2), 3)
        code, cache = encoder.forward(params, x, positive=True)
        grads, dx = encoder.backward(params, cache, code, need_dx=True)
        assert {code.dtype, dx.dtype, *(g.dtype for g in grads.values())} == {np.dtype(dtype)}
        assert code.min() >= 0


@each_boundary
@pytest.mark.parametrize("layers", [0, 1, 4])
def test_unrolled_encoders_begin_as_one_more_step_of_ista(layers: int, boundary: str) -> None:
    encoder = ConvLISTAEncoder(layers).at(boundary)
    params, x = params_of(encoder)
    dictionary = ConvDictionary(filters(3, 3, 2, 2), (6, 5), boundary)
    bound, steps = dictionary.lipschitz(), []
    z = np.zeros((4, *dictionary.maps_shape))
    for _ in range(layers + 1):
        z = z + dictionary.analyze(x - dictionary.synthesize(z)) / bound
        z = np.sign(z) * np.maximum(abs(z) - LAM / bound, 0)
        steps.append(z)
    code = encoder.forward(params, x)[0]
    np.testing.assert_allclose(code, steps[-1], atol=1e-12)
    if layers:
        assert np.abs(code - steps[-2]).max() > 1e-6  # the negative control
    else:
        shrunk = ConvShrinkEncoder().at(boundary)
        params, x = params_of(shrunk)
        np.testing.assert_allclose(shrunk.forward(params, x)[0], code, atol=1e-14)


def test_filters_of_the_images_size_are_encoders_of_rows() -> None:
    X = np.random.default_rng(0).standard_normal((30, 4, 3))
    D, trainer = filters(5, 4, 3), EnergyLoss(n_epochs=3, batch_size=10)
    shared: dict[str, Any] = {"penalty": L1(0.4), "tol": 1e-12, "random_state": 0}
    conv = ConvPSD(5, filter_size=(4, 3), dictionary=D, trainer=trainer, **shared).fit(X)
    rows = PSD(5, dictionary=D.reshape(5, 12), trainer=trainer, **shared).fit(X.reshape(30, 12))
    # The steepest direction is bounded differently, so that encoders learn at other rates; codes
    # and energies of equal parameters are the same.
    params = {k: np.asarray(v) for k, v in conv.params_.items()}
    for key in ("D", "W"):
        rows._state.params[key][...] = params[key].reshape(5, 12).T
    for key in ("c", "theta"):
        rows._state.params[key][...] = params[key]
    flat = X.reshape(30, 12)
    np.testing.assert_allclose(conv.transform(X).reshape(30, 5), rows.transform(flat), atol=1e-12)
    np.testing.assert_allclose(conv.energy(X), rows.energy(flat), rtol=1e-9)
    np.testing.assert_allclose(conv.dual_gap(X), rows.dual_gap(flat), rtol=1e-6)
    both = [m.set_params(exact=True) for m in (conv, rows)]
    wanted = both[1].transform(flat)
    np.testing.assert_allclose(both[0].transform(X).reshape(30, 5), wanted, atol=1e-4)


@pytest.mark.parametrize("encoder", [ConvShrinkEncoder(), ConvLISTAEncoder(1)], ids=repr)
def test_the_encoder_learns_to_predict_maps_of_images_it_has_not_seen(encoder: Any) -> None:
    D, X = planted()
    settings: dict[str, Any] = {"encoder": encoder, "dictionary": D, "filter_size": 5}
    settings |= {"tol": 1e-2, "random_state": 0, "algorithm": "fista"}
    first = ConvPSD(3, trainer=EnergyLoss(n_epochs=1, learning_rate=1e-9), **settings)
    model = ConvPSD(3, trainer=EnergyLoss(n_epochs=6, batch_size=4), **settings)

    def error(model: Any) -> float:
        model.fit(X[:20])
        code = model.set_params(exact=True).transform(X[20:])
        guess = model.set_params(exact=False).transform(X[20:])
        return float(((code - guess) ** 2).sum() / (code**2).sum())

    assert error(model) < 0.8 * error(first)
    assert model.energy(X[20:]).mean() < first.energy(X[20:]).mean()


def test_an_encoder_is_taught_after_its_filters_and_filters_stay() -> None:
    D, X = planted(20)
    model = ConvPSD(3, filter_size=5, dictionary=D, train_dictionary=False, random_state=0)
    model.set_params(trainer=Prediction(5, batch_size=4, learning_rate=0.5), tol=1e-2)
    model.fit(X)
    np.testing.assert_allclose(model.params_["D"], D, rtol=1e-12)
    errors = model.history_["prediction_train"]
    assert errors[-1] < 0.9 * errors[0]


def test_without_the_prediction_in_it_codes_are_those_of_sparse_coding() -> None:
    D, X = planted(6)
    shared: dict[str, Any] = {"filter_size": 5, "dictionary": D, "penalty": L1(0.2), "tol": 1e-8}
    shared |= {"trainer": EnergyLoss(n_epochs=1, learning_rate=1e-12), "max_iter": 5000}
    plain = ConvSparseCoding(3, random_state=0, **shared).fit(X)
    model = ConvPSD(3, joint=False, exact=True, random_state=0, **shared).fit(X)
    np.testing.assert_allclose(model.transform(X), plain.transform(X), atol=1e-3)
    joint = ConvPSD(3, exact=True, random_state=0, **shared).fit(X)
    assert np.abs(joint.transform(X) - plain.transform(X)).max() > 1e-2  # the negative control


def test_maps_of_larger_images_are_those_of_smaller_ones() -> None:
    X = planted(6, 20)[1][..., 0]
    model = ConvPSD(3, filter_size=5, random_state=0, tol=1e-1)
    model.set_params(trainer=EnergyLoss(n_epochs=1, batch_size=3)).fit(X[:, :10, :10])
    whole = model.transform(X)
    assert whole.shape == (6, 16, 16, 3)
    np.testing.assert_allclose(whole[:, 3:9, 5:11], model.transform(X[:, 3:13, 5:15]), atol=1e-13)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "ConvPSD.alpha must be >= 0, got -1.0"),
        ({"encoder": TanhEncoder()}, "must be a convolutional encoder such as"),
        ({"encoder": ShrinkEncoder}, "must be a convolutional encoder such as"),
        ({"encoder": ConvShrinkEncoder}, "must be a convolutional encoder such as"),
        ({"encoder": ConvLISTAEncoder(-1)}, "ConvLISTAEncoder.n_layers must be an integer >= 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvPSD(3, filter_size=3, **settings).fit(np.ones((4, 6, 6)))


def test_maps_that_are_made_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    X = np.random.default_rng(0).standard_normal((40, 8, 9))
    trainer = EnergyLoss(n_epochs=1, batch_size=40)
    model = ConvPSD(4, filter_size=3, tol=0.1, trainer=trainer, random_state=0).fit(X)
    whole = model.transform(X)
    monkeypatch.setattr(encoded, "_NUMBERS", 90)  # less than the maps of an image have
    np.testing.assert_allclose(model.transform(X), whole, rtol=1e-12, atol=1e-14)
