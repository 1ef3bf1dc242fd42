"""Losses of embeddings against differences and known answers, and an encoder trained by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import energyscape
from energyscape.backend import Purpose, stream, to_host
from energyscape.corruptions import Masking
from energyscape.embeddings import DISTANCES, BarlowTwins, DrLIM, InfoNCE, Siamese, VICReg
from energyscape.errors import CapabilityError
from energyscape.evaluation.laws import generic_params
from energyscape.models import SiameseEncoder
from energyscape.optim import SGD, Adam
from energyscape.trainers import EmbeddingLoss
from energyscape.trainers.base import Batch

LOSSES = [
    Siamese(),
    Siamese(3.0),
    DrLIM(),
    DrLIM(4.0),
    InfoNCE(),
    InfoNCE(0.5),
    BarlowTwins(),
    BarlowTwins(0.7),
    VICReg(),
    VICReg(1.0, 3.0, 2.0),
]
NAMES = [repr(loss) for loss in LOSSES]


def _batch(n: int = 9, k: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two views of something, and labels of both kinds."""
    rng = np.random.default_rng(seed)
    u = 0.7 * rng.standard_normal((n, k)) + 0.3
    return u, u + 0.5 * rng.standard_normal((n, k)), np.arange(n) % 2


# ---------------------------------------------------------------- losses


def _slopes_agree(loss: Any) -> None:
    """Truncation h² = 1e-10, rounding ε/h = 1e-10, of values and slopes of order 1 to 100."""
    u, v, y = _batch()
    value, du, dv = loss(u, v, y)
    assert value.shape == () and value.dtype == np.float64
    for side, slope in ((0, du), (1, dv)):
        for at in np.ndindex(u.shape):
            sides = []
            for h in (1e-5, -1e-5):
                moved = [u.copy(), v.copy()]
                moved[side][at] += h
                sides.append(float(loss(*moved, y)[0]))
            wanted = (sides[0] - sides[1]) / 2e-5
            assert slope[at] == pytest.approx(wanted, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_gradients_are_central_differences(loss: Any) -> None:
    _slopes_agree(loss)


class SlightlyOff(VICReg):
    """A small constant too much."""

    def evaluate(self, u: Any, v: Any, similar: Any = None) -> Any:
        value, du, dv = super().evaluate(u, v)
        return value, du + u.mean(axis=0) / 1000, dv


class OneSide(DrLIM):
    """Pulls the other side the wrong way."""

    def evaluate(self, u: Any, v: Any, similar: Any = None) -> Any:
        value, du, _ = super().evaluate(u, v, similar)
        return value, du, du


@pytest.mark.parametrize("loss", [SlightlyOff(), OneSide()])
def test_wrong_gradients_are_found(loss: Any) -> None:
    """Negative controls."""
    with pytest.raises(AssertionError):
        _slopes_agree(loss)


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_rows_come_in_any_order_and_in_float32(loss: Any) -> None:
    u, v, y = _batch()
    value, du, dv = loss(u, v, y)
    order = np.random.default_rng(1).permutation(len(u))
    again, du2, dv2 = loss(u[order], v[order], y[order])
    assert float(again) == pytest.approx(float(value), rel=1e-12)
    np.testing.assert_allclose(du2, du[order], atol=1e-12)
    np.testing.assert_allclose(dv2, dv[order], atol=1e-12)
    single, du3, dv3 = loss(u.astype(np.float32), v.astype(np.float32), y.astype(bool))
    assert single.dtype == np.float64 and du3.dtype == dv3.dtype == np.float32
    # Rounding of the inputs, 6e-8, times slopes in units of the loss of up to about 100.
    assert float(single) == pytest.approx(float(value), rel=1e-5)
    np.testing.assert_allclose(du3, du, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_losses_on_a_device(loss: Any, cupy: Any) -> None:
    u, v, y = _batch()
    there = loss(*(cupy.asarray(a) for a in (u, v, y)))
    for found, wanted in zip(there, loss(u, v, y), strict=True):
        assert type(found) is cupy.ndarray
        np.testing.assert_allclose(to_host(found), wanted, rtol=1e-12, atol=1e-14)


def test_known_answers_of_siamese() -> None:
    u, v = np.zeros((2, 2)), np.array([[0.0, 0.0], [1.5, -0.5]])  # D = 0 and 2
    for Q in (1.0, 2.0):
        alike, others = (float(Siamese(Q)(u, v, np.full(2, s))[0]) for s in (1, 0))
        assert alike == pytest.approx((0 + 2 / Q * 4) / 2, rel=1e-14)
        assert others == pytest.approx((2 * Q + 2 * Q * np.exp(-2.77 * 2 / Q)) / 2, rel=1e-14)


def test_known_answers_of_drlim() -> None:
    u, v = np.zeros((4, 2)), np.array([[0.0, 0.0], [0.3, 0.4], [0.6, 0.8], [3.0, 4.0]])
    D = np.array([0, 0.5, 1, 5])
    value, du, dv = DrLIM()(u, v, np.ones(4))
    assert float(value) == pytest.approx((D**2).mean() / 2, rel=1e-14)
    np.testing.assert_allclose(du, (u - v) / 4, atol=1e-15)
    value, du, dv = DrLIM()(u, v, np.zeros(4))
    assert float(value) == pytest.approx((1 + 0.25) / 8, rel=1e-14)
    np.testing.assert_array_equal(du[[0, 2, 3]], 0)  # no direction, and far enough
    np.testing.assert_allclose(du[1], [0.5 * 0.6 / 4, 0.5 * 0.8 / 4], atol=1e-15)
    np.testing.assert_array_equal(du, -dv)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_drlim_stays_finite_where_points_meet(dtype: Any) -> None:
    """However near two are, the slope is at most the margin: its direction has length 1 or less."""
    for gap in (1e-3, 1e-10, 1e-20, 1e-30, 1e-38):
        u = np.array([[0.0, 0.0]], dtype)
        _, du, _ = DrLIM()(u, u + dtype(gap), np.zeros(1))
        assert np.isfinite(du).all() and np.linalg.norm(du) <= 1 + 1e-6
        if gap > 1e-8:
            assert np.linalg.norm(du) == pytest.approx(1 - np.sqrt(2) * gap, rel=1e-5)


@pytest.mark.parametrize("n", [2, 5, 32])
def test_known_answers_of_infonce(n: int) -> None:
    """Equal similarities cost log n; orthogonal pairs log(1 + (n - 1) e^(-1/τ))."""
    same = np.tile([[3.0, -4.0]], (n, 1))
    assert float(InfoNCE()(same, 2 * same)[0]) == pytest.approx(np.log(n), rel=1e-14)
    wanted = np.log1p((n - 1) * np.exp(-1 / 0.2))
    value, du, _ = InfoNCE(0.2)(np.eye(n), 5 * np.eye(n))
    assert float(value) == pytest.approx(wanted, rel=1e-12)
    u, v, _ = _batch(n)
    value, du, dv = InfoNCE()(u, v)
    assert float(InfoNCE()(3 * u, 0.1 * v)[0]) == pytest.approx(float(value), rel=1e-12)
    np.testing.assert_allclose((u * du).sum(axis=1), 0, atol=1e-12)  # lengths do not matter
    np.testing.assert_allclose((v * dv).sum(axis=1), 0, atol=1e-12)


def test_an_embedding_of_zeros_has_no_direction() -> None:
    u, v, _ = _batch()
    u[0] = 0
    value, du, dv = InfoNCE()(u, v)
    assert np.isfinite(value) and np.isfinite(dv).all()
    np.testing.assert_array_equal(du[0], 0)


def test_known_answers_of_barlow_twins() -> None:
    H = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])  # uncorrelated columns
    value, du, dv = BarlowTwins(0.5)(H, 3 * H + [1, -2, 5])
    assert float(value) == pytest.approx(0, abs=1e-28)
    np.testing.assert_allclose(du, 0, atol=1e-14)
    np.testing.assert_allclose(dv, 0, atol=1e-14)
    assert float(BarlowTwins(0.5)(H, -H)[0]) == pytest.approx(3 * 4)  # (1 + 1)² each
    same = H[:, :1] * [1, 2, 3]
    assert float(BarlowTwins(0.5)(same, same)[0]) == pytest.approx(0.5 * 6)  # six pairs of one
    for dtype in (np.float32, np.float64):  # constant: correlated with nothing
        flat = np.full((7, 3), 0.1, dtype)
        value, du, _ = BarlowTwins()(flat, flat)
        assert float(value) == 3 and not du.any()


def test_known_answers_of_vicreg() -> None:
    """Each term with the weights of the others at 0."""
    u, v, _ = _batch(7, 3)
    apart = VICReg(1.0, 0.0, 0.0)
    assert float(apart(u, u + 2)[0]) == pytest.approx(4, rel=1e-14)
    spread = VICReg(0.0, 1.0, 0.0)
    deviations = [np.sqrt(z.var(axis=0, ddof=1) + 1e-4) for z in (u, v)]
    wanted = sum(np.maximum(1 - s, 0).mean() for s in deviations) / 2
    assert float(spread(u, v)[0]) == pytest.approx(wanted, rel=1e-13)
    assert float(spread(u * 0, v * 0)[0]) == pytest.approx(0.99, rel=1e-14)
    assert float(spread(u * 100, v * 100)[0]) == 0
    doubled = VICReg(0.0, 0.0, 1.0)
    covariances = [np.cov(z.T) for z in (u, v)]
    wanted = sum((C**2).sum() - (np.diag(C) ** 2).sum() for C in covariances) / 3
    assert float(doubled(u, v)[0]) == pytest.approx(wanted, rel=1e-13)
    parts = 25 * float(apart(u, v)[0]) + 25 * float(spread(u, v)[0]) + float(doubled(u, v)[0])
    assert float(VICReg()(u, v)[0]) == pytest.approx(parts, rel=1e-13)


@pytest.mark.parametrize("metric", DISTANCES)
def test_distances_and_their_slopes(metric: str) -> None:
    from scipy.spatial.distance import cdist

    u, v, _ = _batch()
    D, du, dv = DISTANCES[metric](u, v)
    named = {"manhattan": "cityblock"}.get(metric, metric)
    np.testing.assert_allclose(D, np.diag(cdist(u, v, named)), rtol=1e-12)
    for at in np.ndindex(u.shape):
        for side, slope in ((0, du), (1, dv)):
            sides = []
            for h in (1e-6, -1e-6):
                moved = [u.copy(), v.copy()]
                moved[side][at] += h
                sides.append(DISTANCES[metric](*moved)[0][at[0]])
            assert slope[at] == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-8)


@pytest.mark.parametrize(
    ("loss", "given", "message"),
    [
        (DrLIM(), (np.zeros((3, 2)), np.zeros((3, 2))), "told which pairs are similar"),
        (Siamese(), (np.zeros((3, 2)), np.zeros((3, 2)), np.ones(2)), "0 or 1 for each of 3"),
        (DrLIM(), (np.zeros((3, 2)), np.zeros((3, 2)), [1, -1, 1]), "0 or 1 for each of 3"),
        (InfoNCE(), (np.zeros((3, 2)), np.zeros((3, 4))), "of one shape"),
        (InfoNCE(), (np.zeros((1, 2)), np.zeros((1, 2))), "n >= 2"),
        (VICReg(), (np.zeros(4), np.zeros(4)), "of one shape"),
        (VICReg(), (np.zeros((3, 0)), np.zeros((3, 0))), "of one shape"),
        (BarlowTwins(), (np.full((3, 2), np.nan), np.zeros((3, 2))), "NaN or infinity"),
        (BarlowTwins(), (np.zeros((3, 2), int), np.zeros((3, 2))), "floating-point"),
        (Siamese(0), _batch(), r"Siamese\.bound must be > 0"),
        (DrLIM(np.inf), _batch(), r"DrLIM\.margin must be > 0"),
        (InfoNCE(-1), _batch(), r"InfoNCE\.temperature must be > 0"),
        (BarlowTwins(-1), _batch(), r"BarlowTwins\.redundancy must be >= 0"),
        (VICReg(variance=-1), _batch(), r"VICReg\.variance must be >= 0"),
    ],
)
def test_bad_input_is_refused(loss: Any, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(*given)


# ---------------------------------------------------------------- an encoder trained by them


def _pairs(n: int = 60, d: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of three classes that two of six features tell apart, in pairs, and whose they are."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (n, 2))
    X = 3 + rng.standard_normal((n, 2, d))
    X[:, :, :2] += 4 * np.array([[0.0, 1.0], [0.9, -0.5], [-0.9, -0.5]])[labels]
    return X, (labels[:, 0] == labels[:, 1]).astype(int)


def _views(n: int = 400, d: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pairs whose first feature is (nearly) the same on both sides, and that feature."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal(n)
    X = rng.standard_normal((n, 2, d))
    X[:, :, 0] = shared[:, None] + 0.1 * X[:, :, 0]
    return X, shared


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_what_is_collected_is_the_gradient_of_the_loss(loss: Any) -> None:
    X, y = _pairs(11)
    model = SiameseEncoder(3, hidden_layer_sizes=(5,), activation="tanh")
    trainer, params = EmbeddingLoss(loss), generic_params(model, X)

    def value(params: Any) -> float:
        z = model.encode(params, X)
        return float(loss(z[:, 0], z[:, 1], y)[0])

    assert float(trainer.measure(model, params, X, y)["loss"]) == pytest.approx(value(params))
    rng = stream(0, Purpose.COLLECT)
    grads = trainer.collect(model, params, {}, Batch(X, len(X), y), rng)
    assert set(grads) == {name for name, spec in model.param_specs().items() if spec.trainable}
    for name, grad in grads.items():
        for flat in np.random.default_rng(0).permutation(grad.size)[:20]:
            sides = []
            for h in (1e-5, -1e-5):
                moved = np.array(params[name])
                moved.flat[flat] += h
                sides.append(value(params | {name: moved}))
            wanted = (sides[0] - sides[1]) / 2e-5
            assert grad.flat[flat] == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("loss", [Siamese(), DrLIM()])
def test_labels_say_what_is_near(loss: Any) -> None:
    """New pairs of the same class are nearer than any others but a few: AUC of energies."""
    X, y = _pairs(500)
    trainer = EmbeddingLoss(loss, n_epochs=100, optimizer=Adam(0.01))
    model = SiameseEncoder(hidden_layer_sizes=(16,), trainer=trainer, random_state=0).fit(X, y)
    X, y = _pairs(500, seed=1)
    E = model.energy(X)
    assert (E[y == 1][:, None] < E[y == 0]).mean() > 0.95
    assert model.history_["loss_train"][-1] < 0.3 * model.history_["loss_train"][0]
    np.testing.assert_array_equal(model.transform(X)[:, 1], model.transform(X[:, 1]))
    z = model.transform(X)
    np.testing.assert_allclose(E, DISTANCES[loss.metric](z[:, 0], z[:, 1])[0], rtol=1e-10)


def test_without_pull_everything_collapses() -> None:
    """A negative control: told that all pairs are alike, DrLIM puts everything in one place."""
    X, y = _pairs(500)
    spreads = []
    for told in (y, np.ones(500)):
        trainer = EmbeddingLoss(DrLIM(), n_epochs=100, optimizer=Adam(0.01))
        model = SiameseEncoder(hidden_layer_sizes=(), trainer=trainer, random_state=0)
        spreads.append(model.fit(X, told).transform(X[:, 0]).std())
    assert spreads[0] > 0.2 and spreads[1] < 0.02


@pytest.mark.parametrize("loss", [InfoNCE(), BarlowTwins(), VICReg()])
def test_what_both_views_share_is_found(loss: Any) -> None:
    """One of six directions is the same in both views: embeddings keep it, and so lose others."""
    X, _ = _views()
    trainer = EmbeddingLoss(loss, n_epochs=200, optimizer=Adam(0.02))
    model = SiameseEncoder(
        2 if isinstance(loss, InfoNCE) else 1, hidden_layer_sizes=(), trainer=trainer
    )
    model.set_params(random_state=0).fit(X)
    X, shared = _views(seed=1)
    z = model.transform(X[:, 0])
    fit = np.linalg.lstsq(np.c_[z, np.ones(len(z))], shared, rcond=None)[0]
    explained = np.corrcoef(np.c_[z, np.ones(len(z))] @ fit, shared)[0, 1] ** 2
    assert explained > 0.9


@pytest.mark.parametrize("loss", [DrLIM(), VICReg()])
def test_resumed_loaded_and_cloned(loss: Any, tmp_path: Path) -> None:
    X, y = _pairs(61)  # the last batch is a single pair
    trainer = EmbeddingLoss(loss, n_epochs=4, batch_size=20, averaging=0.5)
    model = SiameseEncoder(hidden_layer_sizes=(4,), trainer=trainer, random_state=0)
    whole = clone(model).fit(X, y)
    stopped = clone(model).set_params(trainer__callbacks=(lambda m, state, i: state.epoch == 2,))
    stopped.fit(X, y)
    assert stopped.n_iter_ == 2
    with pytest.warns(UserWarning, match="is not stored"):
        stopped.save(tmp_path / "m.h5")
    again = energyscape.load(tmp_path / "m.h5")
    np.testing.assert_array_equal(again.transform(X), stopped.transform(X))
    again.set_params(trainer__callbacks=())
    again.resume(X, y)
    for name, value in whole.params_.items():
        np.testing.assert_array_equal(again.params_[name], value)
    assert repr(clone(again)) == repr(model)
    assert again.partial_fit(X, y).n_iter_ == 5


def test_a_single_last_pair_teaches_nothing_to_losses_of_batches() -> None:
    X, _ = _pairs(3)
    model = SiameseEncoder(hidden_layer_sizes=(4,))
    params, rng = generic_params(model, X), stream(0, Purpose.COLLECT)
    grads = EmbeddingLoss(InfoNCE()).collect(model, params, {}, Batch(X[:1], 1), rng)
    assert not any(g.any() for g in grads.values())
    grads = EmbeddingLoss(DrLIM()).collect(model, params, {}, Batch(X[:1], 1, np.ones(1)), rng)
    assert grads["W1"].any()


def test_history_has_both_losses_and_views_may_be_made() -> None:
    X, y = _pairs(80)
    trainer = EmbeddingLoss(DrLIM(), n_epochs=3, validation_fraction=0.25)
    model = SiameseEncoder(trainer=trainer, random_state=0).fit(X, y)
    assert {"loss_train", "loss_valid", "energy_train", "energy_valid"} <= set(model.history_)
    trainer = EmbeddingLoss(n_epochs=3, batch_transform=Masking(0.5))
    twice = np.stack([X[:, 0]] * 2, axis=1)
    model = SiameseEncoder(trainer=trainer, random_state=0).fit(twice)
    assert np.isfinite(model.history_["loss_train"]).all()
    np.testing.assert_allclose(model.energy(twice), 0, atol=1e-7)  # the same in both sides


def test_labels_and_pairs_are_checked() -> None:
    X, y = _pairs(20)
    told = SiameseEncoder(trainer=EmbeddingLoss(DrLIM(), n_epochs=1))
    for labels, message in [
        (None, "requires y to be passed"),
        (y[:-1], "inconsistent numbers of samples"),
        (2 * y - 1, "y must be 1 for pairs that are alike"),
        (np.where(y, np.nan, 1.0), "NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            told.fit(X, labels)
    for rows, message in [
        (X[:, 0], r"needs clips \(n, t, n_features\)"),
        (X[:, :1], r"needs pairs \(n, 2, n_features\)"),
        (np.full_like(X, np.nan), "NaN or infinity"),
    ]:
        with pytest.raises(ValueError, match=message):
            told.fit(rows, y)
    with pytest.raises(ValueError, match="at least 2 are needed, X has 1"):
        SiameseEncoder().fit(X[:1])
    fitted = told.fit(X, y.astype(bool))
    with pytest.raises(ValueError, match="expecting 6 features"):
        fitted.transform(X[:, 0, :5])
    with pytest.raises(NotFittedError):
        SiameseEncoder().transform(X[:, 0])
    with pytest.raises(CapabilityError, match="has no normaliser"):
        fitted.sample(2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": "hamming"}, "metric must be one of manhattan, euclidean, cosine"),
        ({"hidden_layer_sizes": 5}, "hidden_layer_sizes must be a tuple"),
        ({"hidden_layer_sizes": (0,)}, "hidden_layer_sizes must be an integer >= 1"),
        ({"n_components": 0}, "n_components must be an integer >= 1"),
        ({"trainer": EmbeddingLoss("drlim")}, "must be a loss of energyscape.embeddings"),
        ({"trainer": EmbeddingLoss(DrLIM(-1))}, r"DrLIM\.margin"),
        ({"trainer": EmbeddingLoss(batch_size=1)}, "batch_size must be >= 2"),
        ({"trainer": EmbeddingLoss(learning_rate=1.0, optimizer=SGD())}, "give one"),
    ],
)
def test_bad_settings_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SiameseEncoder(**settings).fit(_pairs(20)[0])


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_rows_does_not_matter(scale: float) -> None:
    X, y = _pairs(100)
    trainer = EmbeddingLoss(DrLIM(), n_epochs=5)
    model = SiameseEncoder(trainer=trainer, random_state=0)
    plain = clone(model).fit(X, y).transform(X)
    np.testing.assert_allclose(
        clone(model).fit(scale * X, y).transform(scale * X), plain, rtol=1e-6
    )
