"""Encoders: their gradients, what they are at first, and what predictive sparse decomposition makes
of them."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn

from energyscape import training
from energyscape.errors import CapabilityError
from energyscape.kernels import soft_threshold
from energyscape.models import LISTA, PSD, SparseCoding, encoded
from energyscape.models.encoders import (
    DoubleTanhEncoder,
    LinearEncoder,
    ShrinkEncoder,
    SmoothShrinkEncoder,
    TanhEncoder,
)
from energyscape.models.learned_descent import LCoDEncoder
from energyscape.models.unrolled import CoupledLISTAEncoder, LISTAEncoder, StepLISTAEncoder
from energyscape.penalties import L1, GroupL1
from energyscape.solvers.coordinate_descent import greedy
from energyscape.solvers.proximal import ista
from energyscape.solvers.quadratic import Gram, Rows
from energyscape.trainers import EM, EnergyLoss, Prediction

N, M, ROWS, LAM = 6, 9, 40, 0.3
ENCODERS = [
    LinearEncoder(),
    TanhEncoder(),
    DoubleTanhEncoder(),
    ShrinkEncoder(),
    SmoothShrinkEncoder(),
    LISTAEncoder(0),
    LISTAEncoder(3),
    LISTAEncoder(3, tied=False),
    CoupledLISTAEncoder(3),
    StepLISTAEncoder(3),
    LCoDEncoder(0),
    LCoDEncoder(12),
]
UNROLLED = [
    *(LISTAEncoder(t) for t in (0, 1, 3, 7, 19)),
    *(LISTAEncoder(t, tied=False) for t in (0, 1, 7)),
    *(CoupledLISTAEncoder(t) for t in (0, 1, 7)),
    *(StepLISTAEncoder(t) for t in (0, 1, 7)),
]


def name(encoder):
    return repr(encoder)


def problem(seed=0):
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((N, M))
    D /= np.linalg.norm(D, axis=0)
    return D, rng.standard_normal((ROWS, N))


def params_of(encoder, noise=0.0, dtype=np.float64):
    D, x = problem()
    params = {"D": D, "lam": np.array(LAM)} | encoder.init(D, LAM, x)
    rng = np.random.default_rng(1)
    for key in encoder.names:
        moved = params[key] + noise * rng.standard_normal(params[key].shape)
        params[key] = moved
    params |= encoder.feasible(params)
    return {k: v.astype(dtype) for k, v in params.items()}, x.astype(dtype)


@pytest.mark.parametrize("positive", [False, True], ids=["real", "positive"])
@pytest.mark.parametrize("encoder", ENCODERS, ids=name)
def test_gradients_are_central_differences(encoder, positive):
    params, x = params_of(encoder, 0.1)
    weights = np.random.default_rng(2).standard_normal((ROWS, M))

    def loss(params, x):
        return (weights * encoder.forward(params, x, positive)[0]).sum()

    code, cache = encoder.forward(params, x, positive)
    assert code.shape == (ROWS, M) and (code.min() >= 0 or not positive)
    grads, dx = encoder.backward(params, cache, weights, need_dx=True)
    names = [*encoder.names, *(["D"] if getattr(encoder, "uses_dictionary", False) else [])]
    assert sorted(grads) == sorted(names)
    assert encoder.backward(params, cache, weights)[1] is None
    step = 1e-6
    for key, grad in [*((k, grads[k]) for k in names), ("x", dx)]:
        at = x if key == "x" else params[key]
        for flat in np.random.default_rng(3).permutation(at.size)[:40]:
            moved = [np.array(at), np.array(at)]
            moved[0].flat[flat] += step
            moved[1].flat[flat] -= step
            both = [loss(params, m) if key == "x" else loss(params | {key: m}, x) for m in moved]
            # Rounding of a sum of 360 terms over 2e-6.
            assert abs(grad.flat[flat] - (both[0] - both[1]) / (2 * step)) < 2e-7, key


@pytest.mark.parametrize("encoder", ENCODERS, ids=name)
def test_shapes_and_dtypes_are_those_that_are_said(encoder):
    for dtype in (np.float32, np.float64):
        params, x = params_of(encoder, 0.1, dtype)
        shapes = encoder.shapes(N, M)
        assert {k: params[k].shape for k in encoder.names} == shapes
        code, cache = encoder.forward(params, x)
        grads, dx = encoder.backward(params, cache, code, need_dx=True)
        assert {code.dtype, dx.dtype, *(g.dtype for g in grads.values())} == {np.dtype(dtype)}
    assert set(encoder.specs()) == set(encoder.names)


@pytest.mark.parametrize("positive", [False, True], ids=["real", "positive"])
@pytest.mark.parametrize("encoder", UNROLLED, ids=name)
def test_unrolled_encoders_begin_as_one_more_step_of_ista(encoder, positive):
    params, x = params_of(encoder)
    gram = Gram.of(params["D"])
    steps = encoder.n_layers + 1
    found = ista(gram, Rows.of(gram, x), L1(LAM), tol=0.0, max_iter=steps, positive=positive)
    code = encoder.forward(params, x, positive)[0]
    np.testing.assert_allclose(code, found.h, atol=1e-12)
    if steps > 1:  # the negative control: not one step less
        less = ista(gram, Rows.of(gram, x), L1(LAM), tol=0.0, max_iter=steps - 1)
        assert np.abs(code - less.h).max() > 1e-6


def greedy_descent(D, x, lam, steps, positive):
    """Algorithm 2 of Gregor and LeCun (2010) for one row, as it is printed."""

    def shrunk(b):
        return np.maximum(b - lam, 0) - (0 if positive else np.maximum(-b - lam, 0))

    S, b, z = np.eye(D.shape[1]) - D.T @ D, D.T @ x, np.zeros(D.shape[1])
    for _ in range(steps):
        bar = shrunk(b)
        k = np.abs(z - bar).argmax()
        b = b + S[:, k] * (bar[k] - z[k])
        z[k] = bar[k]
    return shrunk(b)


@pytest.mark.parametrize("positive", [False, True], ids=["real", "positive"])
@pytest.mark.parametrize("steps", [0, 1, 5, 40])
def test_learned_descent_begins_as_coordinate_descent(steps, positive):
    params, x = params_of(LCoDEncoder(steps))
    code = LCoDEncoder(steps).forward(params, x, positive)[0]
    wanted = [greedy_descent(params["D"], row, LAM, steps, positive) for row in x]
    np.testing.assert_allclose(code, wanted, atol=1e-12)
    if steps > 1:  # the negative control: not one step less
        less = [greedy_descent(params["D"], row, LAM, steps - 1, positive) for row in x]
        assert np.abs(code - less).max() > 1e-6


@pytest.mark.parametrize("positive", [False, True], ids=["real", "positive"])
def test_many_steps_of_learned_descent_are_the_solver_s_codes(positive):
    params, x = params_of(LCoDEncoder(5000))
    gram = Gram.of(params["D"])
    best = greedy(gram, Rows.of(gram, x), L1(LAM), tol=1e-13, positive=positive)
    code = LCoDEncoder(5000).forward(params, x, positive)[0]
    # Half of a gap of 1e-13 |x|² under a curvature of 0.01: 1e-5.
    np.testing.assert_allclose(code, best.h, atol=1e-5)


def test_what_elementwise_encoders_are_at_first_and_in_their_limits():
    D, x = problem()
    bound = Gram.of(D).bound
    params, _ = params_of(ShrinkEncoder())
    shrunk = ShrinkEncoder().forward(params, x)[0]
    np.testing.assert_allclose(shrunk, soft_threshold(x @ D / bound, LAM / bound), atol=1e-14)
    params, _ = params_of(SmoothShrinkEncoder())
    for sharp in (100.0, 1e4):
        params["r"][...] = np.log(sharp)
        smooth = SmoothShrinkEncoder().forward(params, x)[0]
        np.testing.assert_allclose(smooth, shrunk, atol=np.log(2) / sharp + 1e-12)
    far = SmoothShrinkEncoder().forward(params, 1e6 * x)[0]
    assert np.isfinite(far).all()  # no exponent overflows
    params, _ = params_of(SmoothShrinkEncoder())
    np.testing.assert_allclose(
        SmoothShrinkEncoder().forward(params, -x)[0], -SmoothShrinkEncoder().forward(params, x)[0]
    )
    params, _ = params_of(TanhEncoder())
    np.testing.assert_allclose(TanhEncoder().forward(params, 1e-3 * x)[0], 1e-3 * x @ D, rtol=1e-5)


# ---------------------------------------------------------------- predictive sparse decomposition


def rows(n=600, seed=0):
    D = np.random.default_rng(7).standard_normal((12, 16))
    D /= np.linalg.norm(D, axis=0)
    rng = np.random.default_rng(seed)
    H = rng.standard_normal((n, 16)) * (rng.random((n, 16)) < 0.15)
    return H @ D.T + 0.02 * rng.standard_normal((n, 12))


@pytest.mark.parametrize(
    "encoder",
    [TanhEncoder(), ShrinkEncoder(), SmoothShrinkEncoder(), LISTAEncoder(2), LCoDEncoder(6)],
    ids=name,
)
def test_the_encoder_learns_to_predict_codes_of_rows_it_has_not_seen(encoder):
    X, new = rows(), rows(seed=1)
    shared = {"encoder": encoder, "random_state": 0, "sparsity": 0.1}
    first = PSD(16, trainer=EnergyLoss(n_epochs=1, learning_rate=1e-9), **shared).fit(X)
    model = PSD(16, trainer=EnergyLoss(n_epochs=40), **shared).fit(X)

    def error(model):
        code = model.set_params(exact=True).transform(new)
        guess = model.set_params(exact=False).transform(new)
        return ((code - guess) ** 2).sum() / (code**2).sum()

    assert error(model) < 0.7 * error(first)
    assert model.energy(new).mean() < 0.9 * first.energy(new).mean()
    np.testing.assert_allclose(np.linalg.norm(model.components_, axis=1), 1, rtol=1e-12)


def test_without_the_prediction_in_it_the_code_is_that_of_the_lasso():
    X = rows(100)
    model = PSD(16, joint=False, exact=True, random_state=0, tol=1e-10)
    model.set_params(trainer=EnergyLoss(n_epochs=2)).fit(X)
    plain = SparseCoding(16, dictionary=model.components_, penalty=L1(model.strength_), tol=1e-10)
    plain.set_params(trainer=EnergyLoss(n_epochs=1, learning_rate=1e-12)).fit(X)
    np.testing.assert_allclose(model.transform(X), plain.transform(X), atol=1e-4)
    joint = PSD(16, exact=True, random_state=0, tol=1e-10, trainer=EnergyLoss(n_epochs=2)).fit(X)
    far = np.abs(joint.transform(X) - model.transform(X)).max()
    assert far > 1e-2  # the negative control


def test_no_weight_of_the_prediction_is_sparse_coding():
    X = rows(200)
    trainer = EnergyLoss(n_epochs=3)
    psd = PSD(16, alpha=0.0, exact=True, random_state=0, tol=1e-12, trainer=trainer).fit(X)
    plain = SparseCoding(16, random_state=0, tol=1e-12, trainer=trainer).fit(X)
    np.testing.assert_allclose(psd.components_, plain.components_, atol=1e-6)
    np.testing.assert_allclose(psd.energy(X), plain.energy(X), rtol=1e-6)


def test_a_dictionary_that_is_not_to_be_learned_stays():
    X = rows(200)
    D = SparseCoding(16, random_state=0, trainer=EM(n_epochs=5, batch_size=100)).fit(X).components_
    model = PSD(16, dictionary=D, train_dictionary=False, replace=False, random_state=0)
    model.set_params(trainer=EnergyLoss(n_epochs=3)).fit(X)
    np.testing.assert_allclose(model.components_, D, rtol=1e-12)
    assert "late" in model.params_


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "alpha must be >= 0, got -1.0"),
        ({"encoder": TanhEncoder}, "encoder must be an encoder such as"),
        ({"encoder": "tanh"}, "encoder must be an encoder such as"),
        ({"encoder": LISTAEncoder(-1)}, "LISTAEncoder.n_layers must be an integer >= 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PSD(4, **settings).fit(rows(30))


# ---------------------------------------------------------------- learned ISTA


def code_error(model, X):
    exact = model.set_params(exact=True).transform(X)
    guess = model.set_params(exact=False).transform(X)
    return ((exact - guess) ** 2).sum(1).mean()


@pytest.mark.slow
def test_lista_learns_codes_that_ista_of_as_many_steps_does_not_reach():
    X, new = rows(2000), rows(seed=1)
    D = SparseCoding(16, random_state=0, trainer=EM(n_epochs=5, batch_size=100)).fit(X)
    shared = {"dictionary": D.components_, "penalty": L1(D.strength_), "random_state": 0}
    errors = []
    for layers in (0, 1, 3):
        model = LISTA(16, encoder=LISTAEncoder(layers), **shared)
        model.set_params(trainer=Prediction(n_epochs=30, learning_rate=0.2)).fit(X)
        errors.append(code_error(model, new))
        gram = Gram.of(D.components_.T)
        steps = {"tol": 0.0, "max_iter": layers + 1}
        plain = ista(gram, Rows.of(gram, new), L1(D.strength_), **steps).h
        exact = model.set_params(exact=True).transform(new)
        assert errors[-1] < 0.7 * ((exact - plain) ** 2).sum(1).mean()
    assert errors[0] > errors[1] > errors[2]


def test_lista_learns_from_the_energy_itself():
    X, new = rows(2000), rows(seed=1)
    shared = {"encoder": LISTAEncoder(2), "random_state": 0}
    first = LISTA(16, trainer=EnergyLoss(n_epochs=1, learning_rate=1e-9), **shared).fit(X)
    model = LISTA(16, trainer=EnergyLoss(n_epochs=40), **shared).fit(X)
    np.testing.assert_array_equal(model.components_, first.components_)
    # The energy is the lasso's at the code, above that of the best one by no more than the gap.
    best = SparseCoding(16, dictionary=model.components_, penalty=L1(model.strength_), tol=1e-9)
    best.set_params(trainer=EnergyLoss(n_epochs=1, learning_rate=1e-12), replace=False).fit(X)
    above = model.energy(new) - best.energy(new)
    assert (above > -1e-7).all()
    assert above.mean() < 0.7 * (first.energy(new) - best.energy(new)).mean()
    assert (above <= model.dual_gap(new) * 0.5 * (new**2).sum(1) + 1e-7).all()


@pytest.mark.parametrize("trainer", [EnergyLoss(n_epochs=3), Prediction(n_epochs=3)])
@pytest.mark.parametrize("kind", [PSD, LISTA])
def test_no_atom_of_a_dictionary_that_stays_is_replaced(kind, trainer):
    """Not even a double, which training would make anew."""
    D = near_double()
    model = kind(16, dictionary=D, train_dictionary=False, trainer=trainer, random_state=0)
    model.set_params(encoder=CoupledLISTAEncoder(1)).fit(rows(200))
    np.testing.assert_allclose(model.components_, D, rtol=1e-12)
    assert model.n_replaced_ == 0 and not model.param_specs()["D"].trainable
    if isinstance(trainer, Prediction):
        return
    moves = kind(16, dictionary=D, train_dictionary=True, trainer=trainer, random_state=0)
    assert moves.fit(rows(200)).n_replaced_ > 0  # the negative control


def near_double():
    D = np.random.default_rng(2).standard_normal((16, 12))
    D[1] = D[0] + 1e-3 * D[1]
    return D / np.linalg.norm(D, axis=1)[:, None]


def test_lista_needs_the_gradient_of_what_codes_pay():
    with pytest.raises(ValueError, match="LISTA needs a penalty with a gradient"):
        LISTA(4, penalty=GroupL1(2, 1.0)).fit(rows(30))


def test_an_encoder_is_taught_after_its_dictionary():
    X = rows(1000)
    first = PSD(16, joint=False, random_state=0, trainer=EnergyLoss(n_epochs=10)).fit(X)
    D = first.components_
    model = PSD(16, dictionary=D, joint=False, random_state=0, replace=False)
    model.set_params(trainer=Prediction(n_epochs=30)).fit(X)
    np.testing.assert_allclose(model.components_, D, rtol=1e-12)
    errors = model.history_["prediction_train"]
    assert errors[-1] < 0.9 * errors[0]
    with pytest.raises(CapabilityError, match="Prediction cannot train SparseCoding"):
        SparseCoding(4, trainer=Prediction()).fit(X)


def test_an_encoder_that_works_in_parts_gives_the_same(monkeypatch):
    X = rows(100)
    model = PSD(16, random_state=0, trainer=EnergyLoss(n_epochs=1)).fit(X)
    whole = model.transform(X)
    monkeypatch.setattr(encoded, "_NUMBERS", 16 * 32)  # parts of 32 rows, the last of 4
    # The order of sums in a product may depend on its size.
    np.testing.assert_allclose(model.transform(X), whole, rtol=1e-12, atol=1e-14)


# ---------------------------------------------------------------- codes to be predicted


@pytest.mark.parametrize(("memory", "rounds"), [(1024, 1), (1e-6, 4)])
def test_codes_that_fit_in_memory_are_inferred_once(monkeypatch, memory, rounds):
    seen, solve = [], LISTA.solve_codes

    def counted(self, params, x, *args, **settings):
        seen.append(len(x))
        return solve(self, params, x, *args, **settings)

    monkeypatch.setattr(LISTA, "solve_codes", counted)
    X, D = rows(50), np.random.default_rng(2).standard_normal((16, 12))
    model = LISTA(16, dictionary=D, trainer=Prediction(n_epochs=4), random_state=0)
    with sklearn.config_context(working_memory=memory):
        model.fit(X)
    # One more row says how large a code is; each epoch's report wants codes of all.
    assert sum(seen) == (51 if rounds == 1 else 1 + 2 * rounds * 50)


def test_codes_of_before_teach_what_codes_of_each_batch_do():
    X, D = rows(300), np.random.default_rng(2).standard_normal((16, 12))
    settings = {"dictionary": D, "tol": 1e-12, "max_iter": 10_000, "random_state": 0}
    found = []
    for memory in (1024, 1e-6):
        model = LISTA(16, trainer=Prediction(n_epochs=4), **settings)
        with sklearn.config_context(working_memory=memory):
            found.append(model.fit(X).params_)
    for key, value in found[0].items():
        np.testing.assert_allclose(value, found[1][key], rtol=1e-5, atol=1e-7, err_msg=key)


@pytest.mark.parametrize("stored", [False, True])
def test_every_row_is_taught_its_own_code(monkeypatch, tmp_path, stored):
    seen, collect = [], Prediction.collect

    def checked(self, model, params, carry, batch, rng):
        np.testing.assert_allclose(
            batch.y, model.solve_codes(params, batch.x).h, rtol=1e-4, atol=1e-6
        )
        seen.append(len(batch.x))
        return collect(self, model, params, carry, batch, rng)

    monkeypatch.setattr(Prediction, "collect", checked)
    monkeypatch.setattr(training, "EPOCH_BLOCK_BYTES", 16 * 8 * 40)  # blocks of 40 rows
    X = rows(150)
    if stored:
        np.save(tmp_path / "rows.npy", X)
        X = np.load(tmp_path / "rows.npy", mmap_mode="r")
    trainer = Prediction(n_epochs=1, batch_size=30, validation_fraction=0.2)
    settings = {"tol": 1e-12, "max_iter": 10_000, "random_state": 0}
    LISTA(16, dictionary=np.eye(16, 12) + 0.1, trainer=trainer, **settings).fit(X)
    assert sum(seen) == 120


@pytest.mark.parametrize("model", [LISTA, PSD], ids=lambda model: model.__name__)
@pytest.mark.parametrize("scale", [1e-13, 1e9])
def test_learning_does_not_know_the_scale_of_the_rows(model, scale, rng):
    """In float32, where squares of these are out of range."""
    X = (rng.laplace(size=(200, 6)) @ rng.standard_normal((6, 6))).astype(np.float32)
    trainer = Prediction(n_epochs=3) if model is LISTA else EnergyLoss(n_epochs=3)
    one, other = (
        model(8, trainer=trainer, random_state=0).fit(x) for x in (X, X * np.float32(scale))
    )
    np.testing.assert_allclose(
        other.transform(X * np.float32(scale)) / scale, one.transform(X), atol=1e-3
    )


@pytest.mark.parametrize("rows", ["zeros", "weak"])
def test_codes_that_are_all_0_teach_nothing(rows, rng):
    X = np.zeros((50, 6)) if rows == "zeros" else rng.standard_normal((50, 6))
    model = LISTA(8, penalty=L1(100.0), trainer=Prediction(n_epochs=2), random_state=0).fit(X)
    assert not model.transform(X).any()
