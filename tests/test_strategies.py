"""Strategies without chains: gradients are those of their textbook losses, consistent ones are at
rest at the truth, and quick ways agree with the general one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import population
import pytest
from cases import CASES, short
from scipy.stats import multivariate_normal

from energyscape.backend import Purpose, stream
from energyscape.errors import CapabilityError
from energyscape.evaluation.laws import generic_params
from energyscape.losses import LVQ2, MCE, Energy, Hinge, Log, Perceptron, SquareSquare
from energyscape.models import (
    ICA,
    PCA,
    RBM,
    AutoEncoder,
    FactorAnalysis,
    GaussianMixture,
    GaussianRBM,
    KMeans,
    MPoT,
    OvercompleteICA,
)
from energyscape.optim import SGD, Constant
from energyscape.samplers import HMC
from energyscape.trainers import (
    NCE,
    BitFlips,
    Chains,
    ConditionalNCE,
    DenoisingScoreMatching,
    EmbeddingLoss,
    GaussianJitter,
    MarginLoss,
    MinimumProbabilityFlow,
    MostOffending,
    PseudoLikelihood,
    RatioMatching,
    ScoreMatching,
    SlicedScoreMatching,
)
from energyscape.trainers.base import Batch
from energyscape.verbs import Pass

BITS = CASES[0].data
REALS = next(c.data for c in CASES if c.name == "GaussianRBM")
FLIPS = [PseudoLikelihood, RatioMatching, MinimumProbabilityFlow]
PHI = {
    PseudoLikelihood: lambda d: np.logaddexp(0, d),
    RatioMatching: lambda d: 1 / (1 + np.exp(-d)) ** 2,
    MinimumProbabilityFlow: lambda d: np.exp(d / 2),
}


def _rng(step: int = 0) -> Any:
    return stream(3, Purpose.COLLECT, step)


def _begun(trainer: Any, model: Any, params: Any, x: np.ndarray) -> Any:
    return trainer.start(model, params, x, stream(3, Purpose.START))


def _agree(grads: Any, loss: Any, model: Any, params: Any, tolerance: float = 1e-6) -> None:
    """Every trainable entry (at most 40 a parameter) against central differences of ``loss``."""
    rng = np.random.default_rng(0)
    for name, spec in model.param_specs().items():
        if not spec.trainable:
            continue
        picks, wanted = rng.permutation(params[name].size)[:40], []
        for flat in picks:
            h, sides = 1e-5 * max(1.0, abs(params[name].flat[flat])), []
            for sign in (1, -1):
                moved = np.array(params[name])
                moved.flat[flat] += sign * h
                sides.append(loss(params | {name: moved}))
            wanted.append((sides[0] - sides[1]) / (2 * h))
        got = np.ravel(grads[name])[picks]
        scale = max(1.0, abs(np.array(wanted)).max())
        np.testing.assert_allclose(got, wanted, atol=tolerance * scale, rtol=0, err_msg=name)


# ---------------------------------------------------------------- bit flips


def _flip_loss(model: Any, params: Any, x: np.ndarray, phi: Any) -> np.ndarray:
    """Σ_d φ(F(x) - F(x with d flipped)) of every row, one bit after the other."""
    own, total = model.free_energy(params, x), np.zeros(len(x))
    flat = x.reshape(len(x), -1)
    for d in range(flat.shape[1]):
        y = flat.copy()
        y[:, d] = 1 - y[:, d]
        total += phi(own - model.free_energy(params, y.reshape(x.shape)))
    return total


@pytest.mark.parametrize("trainer", FLIPS, ids=lambda t: t.__name__)
@pytest.mark.parametrize("name", ["RBM", "TiledRBM"])
def test_flips_follow_their_textbook_loss(trainer: type, name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    model, x = case.make(), case.data[:4]
    params, strategy = generic_params(model, x), trainer()
    carry = _begun(strategy, model, params, x)
    sums = strategy.collect(model, params, carry, Batch(x, 8), _rng())
    loss = lambda p: _flip_loss(model, p, x, PHI[trainer]).sum() / 8  # noqa: E731
    _agree(sums, loss, model, params)
    assert sums["loss/mean"] == pytest.approx(loss(params), rel=1e-12)


@pytest.mark.parametrize("trainer", FLIPS, ids=lambda t: t.__name__)
def test_flips_are_at_rest_at_the_truth(trainer: type) -> None:
    """With p(x) as the weights of all x the gradient is 0; a φ that is not consistent, max(0, Δ),
    is the control."""
    truth = population.machine(BITS)
    assert population.largest(population.of_flips(*truth, trainer().slope)) <= 1e-12
    assert population.largest(population.of_flips(*truth, lambda d: (d > 0) * 1.0)) > 1e-2


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_flips_of_machines_are_those_of_every_model(dtype: Any) -> None:
    model = RBM(40)
    x = (np.random.default_rng(0).random((30, 50)) < 0.3).astype(dtype)
    params = {k: v.astype(dtype) for k, v in generic_params(model, x.astype(float)).items()}
    bits, slope = np.arange(50)[::-3].copy(), PseudoLikelihood().slope
    passed = model.forward(params, x)
    quick, general = passed.flips(bits, slope), Pass.flips(passed, bits, slope)
    # float32: the general way subtracts energies of some 30 nats, rounded at 1e-6 each.
    tolerance = 1e-11 if dtype == np.float64 else 2e-4
    np.testing.assert_allclose(quick[0], general[0], atol=tolerance)
    for key in quick[1]:
        np.testing.assert_allclose(quick[1][key], general[1][key], atol=10 * tolerance)
        assert quick[1][key].dtype == dtype


def test_quick_flips_are_exact_in_float32() -> None:
    """Differences come from logarithms, not from two large energies: to 1e-6 of float64's."""
    model, rng = RBM(60), np.random.default_rng(0)
    x = (rng.random((20, 80)) < 0.3).astype(np.float64)
    params = generic_params(model, x, noise=1.0)
    narrow = {k: v.astype(np.float32) for k, v in params.items()}
    wide = {k: v.astype(np.float64) for k, v in narrow.items()}
    slope = PseudoLikelihood().slope
    exact, _ = model.forward(wide, x).flips(np.arange(80), slope)
    single, _ = model.forward(narrow, x.astype(np.float32)).flips(np.arange(80), slope)
    np.testing.assert_allclose(single, exact, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [3.0, 12.0, 30.0])
@pytest.mark.parametrize("grey", [False, True])
def test_quick_flips_of_strong_weights(scale: float, grey: bool) -> None:
    """Where units are as good as on, and a flip as good as turns them off, differences of tens of
    nats come out right in float32, too: log(1 + p (e^-W - 1)) would be that of 0."""
    model, rng = RBM(40), np.random.default_rng(0)
    x = (rng.random((20, 30)) < 0.3).astype(np.float32)
    if grey:
        x = 0.1 + 0.8 * x
    W = rng.normal(size=(30, 40), scale=scale).astype(np.float32)
    params = generic_params(model, x.astype(float)) | {"W": W}
    narrow = {k: v.astype(np.float32) for k, v in params.items()}
    wide = {k: v.astype(np.float64) for k, v in narrow.items()}
    bits, slope = np.arange(30), PseudoLikelihood().slope
    exact, wanted = Pass.flips(model.forward(wide, x.astype(np.float64)), bits, slope)
    single, grads = model.forward(narrow, x).flips(bits, slope)
    # Fields of float32 are off by 1e-7 of up to a few hundred, and so are sums over 40 of them.
    np.testing.assert_allclose(single, exact, atol=1e-4 * scale, rtol=1e-5)
    for key, value in wanted.items():
        np.testing.assert_allclose(grads[key], value, atol=1e-3, err_msg=key)


def test_grey_rows_are_flipped_like_any_others() -> None:
    """A flip of a probability is 1 - x."""
    model, x = RBM(4), np.random.default_rng(0).random((5, 6))
    params = generic_params(model, x)
    passed = model.forward(params, x)
    change, grads = passed.flips(np.array([2]), lambda d: d)
    for found in (passed.flips(np.array([2])), Pass.flips(passed, np.array([2]))):
        np.testing.assert_allclose(found[0], change)
        assert found[1] == {}
    for key, wanted in Pass.flips(passed, np.array([2]), lambda d: d)[1].items():
        np.testing.assert_allclose(grads[key], wanted, atol=1e-12)
    y = x.copy()
    y[:, 2] = 1 - y[:, 2]
    wanted = model.free_energy(params, x) - model.free_energy(params, y)
    np.testing.assert_allclose(change[:, 0], wanted)


def test_blocks_of_flips_change_nothing(monkeypatch: Any) -> None:
    model, x = RBM(4), BITS[:8]
    params = generic_params(model, x)
    passed, bits, slope = model.forward(params, x), np.arange(7), RatioMatching().slope
    whole = passed.flips(bits, slope)
    monkeypatch.setattr("energyscape.models.rbm._FLIPPED", 1)
    monkeypatch.setattr("energyscape.verbs.rows_per_block", lambda bytes: 2)
    for found in (passed.flips(bits, slope), Pass.flips(passed, bits, slope)):
        np.testing.assert_allclose(found[0], whole[0], rtol=1e-12)
        for key in whole[1]:
            np.testing.assert_allclose(found[1][key], whole[1][key], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("trainer", FLIPS, ids=lambda t: t.__name__)
def test_some_of_the_bits_are_unbiased(trainer: type) -> None:
    """The mean over draws of 2 of 7 bits is the gradient of all. |z| < 6 over 38 entries: false
    alarm below 1e-6; unscaled sums are the control."""
    model, x = RBM(4), BITS[:8]
    params = generic_params(model, x)
    whole = trainer().collect(model, params, {}, Batch(x, 8), _rng())
    some, found = trainer(n_bits=2), []
    for step in range(400):
        sums = some.collect(model, params, {}, Batch(x, 8), _rng(step))
        found.append(np.concatenate([sums[k].ravel() for k in "Wbc"]))
    wanted = np.concatenate([whole[k].ravel() for k in "Wbc"])
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / 20
    assert (abs(mean - wanted) < 6 * error + 1e-12).all()
    assert (abs(mean * 2 / 7 - wanted) > 6 * error).any()


# ---------------------------------------------------------------- noise


def _points(trainer: Any, model: Any, params: Any, x: np.ndarray) -> tuple[Any, Any, Any]:
    carry = _begun(trainer, model, params, x)
    passed, _, _ = trainer.evaluate(model, params, carry, Batch(x, len(x)), _rng())
    sums = trainer.collect(model, params, carry, Batch(x, len(x)), _rng())
    return np.array(passed.x), carry, sums


@pytest.mark.parametrize("kind", ["bits", "reals"])
def test_nce_follows_its_textbook_loss(kind: str) -> None:
    model, x = (RBM(4), BITS[:9]) if kind == "bits" else (GaussianRBM(3), REALS[:20])
    params, trainer = generic_params(model, x), NCE(noise_ratio=3)
    points, carry, sums = _points(trainer, model, params, x)
    y = points[len(x) :]
    if kind == "bits":
        rate = (x.sum(axis=0) + 0.5) / (len(x) + 1)
        log_noise = lambda u: (u * np.log(rate) + (1 - u) * np.log1p(-rate)).sum(axis=1)  # noqa: E731
    else:
        log_noise = multivariate_normal(x.mean(axis=0), np.cov(x.T, bias=True)).logpdf

    def loss(params: Any, c: float = float(carry["nce/log_z"][0])) -> float:
        G = lambda u: -model.free_energy(params, u) - c - log_noise(u) - math.log(3)  # noqa: E731
        return float((np.logaddexp(0, -G(x)).sum() + np.logaddexp(0, G(y)).sum()) / len(x))

    _agree(sums, loss, model, params)
    c, h = float(carry["nce/log_z"][0]), 1e-5
    assert sums["log_z"][0] == pytest.approx(
        (loss(params, c + h) - loss(params, c - h)) / (2 * h), abs=1e-7
    )
    assert sums["loss/mean"] == pytest.approx(loss(params), rel=1e-10)


def test_nce_is_at_rest_at_the_truth() -> None:
    """All x with p(x) as data, all y with p_noise(y) as noise; a c that is off is the control."""
    truth = population.machine(BITS)
    assert population.largest(population.of_noise(*truth, BITS)) <= 1e-12
    assert population.largest(population.of_noise(*truth, BITS, off=0.5)) > 1e-2


def test_nce_begins_near_log_z() -> None:
    model = GaussianMixture(2)
    params = generic_params(model, REALS, noise=0.01)
    carry = _begun(NCE(), model, params, REALS)
    assert abs(carry["nce/log_z"][0]) < 0.3  # normalised; 1000 draws of importance sampling


def test_noise_that_never_meets_the_data_is_told() -> None:
    """Data on two far points: of a Gaussian that covers both nothing falls near."""
    rng = np.random.default_rng(0)
    ends = np.where(rng.random((200, 1)) < 0.5, 1.0, -1.0) * np.ones(30)
    X = 100 * ends + rng.normal(size=(200, 30))
    model = GaussianMixture(2, trainer=NCE(n_epochs=2, learning_rate=1e-6), random_state=0)
    with pytest.warns(UserWarning, match=r"NCE tells (9\d\.\d|100\.0) % of the points"):
        model.fit(X)
    assert model.history_["noise_saturated"][-1] > 0.99


def test_rows_in_a_subspace_have_no_noise() -> None:
    X = REALS.copy()
    X[:, 2] = X[:, 1]
    with pytest.raises(ValueError, match="do not vary along 1 of 6 directions"):
        GaussianRBM(3, trainer=NCE()).fit(X)
    with pytest.raises(ValueError, match="5 of them do not tell that of 6 features"):
        GaussianRBM(3, trainer=NCE()).fit(REALS[:5])


@pytest.mark.parametrize(
    ("model", "x", "trainer"),
    [
        (RBM(4), BITS[:9], ConditionalNCE()),
        (RBM(4), BITS[:9], ConditionalNCE(BitFlips(3), n_negatives=2)),
        (GaussianRBM(3), REALS[:9], ConditionalNCE(n_negatives=2)),
        (GaussianRBM(3), REALS[:9], MarginLoss(Hinge(1.0), GaussianJitter(3.0), 4)),
        (GaussianRBM(3), REALS[:9], MarginLoss(Log(), n_negatives=4, pooling="worst")),
        (GaussianRBM(3), REALS[:9], MarginLoss(MCE(), n_negatives=4, pooling="softmax")),
        (GaussianRBM(3), REALS[:9], MarginLoss(negatives=MostOffending(2.0))),
        (GaussianRBM(3), REALS[:9], MarginLoss(Log(), Chains(2))),
        (AutoEncoder(3), REALS[:9], MarginLoss(SquareSquare(3.0))),
        (RBM(4), BITS[:9], MarginLoss(LVQ2(), Chains())),
    ],
    ids=repr,
)
def test_pairs_follow_their_textbook_loss(model: Any, x: np.ndarray, trainer: Any) -> None:
    """With the points held where they are."""
    params = generic_params(model, x)
    points, _, sums = _points(trainer, model, params, x)
    k = trainer.n_negatives
    pooling = getattr(trainer, "pooling", "sum")

    def loss(params: Any) -> float:
        energy = model.free_energy(params, points)
        p, q = energy[: len(x)], energy[len(x) :].reshape(k, -1)
        chosen = trainer.chosen_loss()
        q = q - chosen.margins(x, None)
        return float(chosen.evaluate(p, q, pooling)[0].sum() / len(x))

    _agree(sums, loss, model, params)


def test_only_the_log_loss_is_at_rest_at_the_truth() -> None:
    """The documented bias: every other loss moves a model that is the data's own."""
    truth = population.machine(BITS)
    assert population.largest(population.of_pairs(*truth, Log())) <= 1e-12
    for loss in (Energy(), Perceptron(), Hinge(), LVQ2(), MCE()):
        assert population.largest(population.of_pairs(*truth, loss)) > 1e-2, loss


def test_conditional_nce_of_flips_is_pseudo_likelihood() -> None:
    model, x = RBM(4), np.repeat(BITS[:1], 2000, axis=0)
    params = generic_params(model, BITS[:8])
    carry = _begun(ConditionalNCE(), model, params, x)
    sums = ConditionalNCE().collect(model, params, carry, Batch(x, len(x)), _rng())
    whole = PseudoLikelihood().collect(model, params, {}, Batch(x[:1], 1), _rng())
    for key in "Wbc":
        # A seventh of the bits each: entries of order 1/7, known to 1/√2000 of their spread.
        np.testing.assert_allclose(sums[key], whole[key] / 7, atol=0.05)


def test_flipped_bits_are_as_many_as_asked_for() -> None:
    x = BITS[:20]
    for n in (1, 3, 7, 9):
        y = BitFlips(n).draw(None, {}, {}, x, _rng())
        assert (abs(y - x).sum(axis=1) == min(n, 7)).all()


def test_offending_points_are_low_and_outside_the_ball() -> None:
    model, x = GaussianRBM(3), REALS[:30]
    params = generic_params(model, x, noise=0.1)
    negatives = MostOffending(1.5, n_steps=30)
    carry = negatives.start(model, params, x, _rng())
    y = negatives.draw(model, params, carry, x, _rng())
    apart, radius = np.linalg.norm(y - x, axis=1), float(carry["negatives/radius"][0])
    assert (apart > radius * (1 - 1e-9)).all()
    random = x + radius * (d := np.random.default_rng(0).normal(size=x.shape)) / np.linalg.norm(
        d, axis=1, keepdims=True
    )
    assert (model.free_energy(params, y) < model.free_energy(params, random)).mean() > 0.9


# ---------------------------------------------------------------- scores

SLICED = [
    SlicedScoreMatching(),
    SlicedScoreMatching(2, variance_reduced=False),
    SlicedScoreMatching(3),
]


def _second(model: Any, params: Any, x: np.ndarray, v: np.ndarray) -> np.ndarray:
    """v'Hv of every row, by differences of ∂F/∂x."""
    h = 1e-5
    up, down = (model.input_grad(params, x + s * h * v) for s in (1, -1))
    return ((up - down) * v).reshape(len(x), -1).sum(axis=1) / (2 * h)


@pytest.mark.parametrize("trainer", SLICED, ids=repr)
@pytest.mark.parametrize("name", ["GaussianRBM", "MPoT", "AutoEncoder", "FieldsOfExperts"])
def test_sliced_score_matching_follows_its_textbook_loss(trainer: Any, name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    model, x, k = case.make(), case.data[:7], trainer.n_slices
    params = generic_params(model, x, noise=0.1)
    carry = _begun(trainer, model, params, case.data)
    points, _, sums = *_points_at(trainer, model, params, carry, x), None
    rows, epsilon = np.concatenate([x] * k), carry["score/epsilon"][0]
    v = (points[7 : 7 * (1 + k)] - rows) / epsilon
    np.testing.assert_allclose(abs(v), 1, rtol=1e-5)
    v, square = np.sign(v), carry["score/length"][0] ** 2

    def loss(params: Any) -> float:
        g = model.input_grad(params, rows).reshape(len(rows), -1)
        along = (g * v.reshape(g.shape)).sum(axis=1) ** 2
        first = (g * g).sum(axis=1) if trainer.variance_reduced else along
        return float(square * (0.5 * first - _second(model, params, rows, v)).mean())

    sums = trainer.collect(model, params, carry, Batch(x, 7), _rng())
    # Truncation: ε² = 1e-8 of the next derivative, and rounding 1e-16 F/ε².
    _agree(sums, loss, model, params, 3e-5)
    assert sums["loss/mean"] == pytest.approx(loss(params), rel=1e-4, abs=1e-4)


def _points_at(
    trainer: Any, model: Any, params: Any, carry: Any, x: np.ndarray
) -> tuple[np.ndarray, Any]:
    passed, weights, _ = trainer.evaluate(model, params, carry, Batch(x, len(x)), _rng())
    return np.array(passed.x), weights


@pytest.mark.parametrize("trainer", [DenoisingScoreMatching(), DenoisingScoreMatching(2.0, 3)])
@pytest.mark.parametrize("name", ["GaussianRBM", "MPoT", "KMeans", "SparseCoding", "TiledMPoT"])
def test_denoising_score_matching_follows_its_textbook_loss(trainer: Any, name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    model, x, k = case.make(), case.data[:7], trainer.n_noise
    params = generic_params(model, x, noise=0.1)
    carry = _begun(trainer, model, params, case.data)
    points, _ = _points_at(trainer, model, params, carry, x)
    noisy, sigma = points.reshape(2, 7 * k, *x.shape[1:]).mean(axis=0), carry["score/sigma"][0]
    rows = np.concatenate([x] * k)

    def loss(params: Any) -> float:
        r = model.input_grad(params, noisy) - (noisy - rows) / sigma**2
        return float(0.5 * sigma**2 * (r * r).sum() / len(noisy))

    sums = trainer.collect(model, params, carry, Batch(x, 7), _rng())
    _agree(sums, loss, model, params, 1e-5)
    assert sums["loss/mean"] == pytest.approx(loss(params), rel=1e-9)


@pytest.mark.parametrize("curvature", [0.0, 0.3])
def test_score_matching_follows_its_textbook_loss(curvature: float) -> None:
    model, x = GaussianRBM(3), REALS[:7]
    params, trainer = generic_params(model, x, noise=0.1), ScoreMatching(curvature)
    carry = _begun(trainer, model, params, REALS)
    square = carry["score/length"][0] ** 2

    def loss(params: Any) -> float:
        g = model.input_grad(params, x)
        own = 0.5 * (g * g).sum(axis=1) - model.laplacian(params, x)
        bent, _ = model.squared_curvature(params, model.forward(params, x), np.ones(7))
        return float(square * (own + square * curvature * bent).sum() / 9)

    sums = trainer.collect(model, params, carry, Batch(x, 9), _rng())
    _agree(sums, loss, model, params, 1e-5)
    assert sums["loss/mean"] == pytest.approx(loss(params), rel=1e-6)


def test_score_matching_of_a_gaussian_gives_the_inverse_covariance() -> None:
    """At the sample covariance, and there alone, the gradient is 0; of the denoising variant it is
    0 at the covariance of noisy data."""
    x = REALS - REALS.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))

    def at(added: float) -> Any:
        precision = vectors / np.sqrt(values + added)
        L = np.linalg.cholesky((precision @ precision.T)[::-1, ::-1])[::-1, ::-1]
        return model.init_params(x, stream(0, Purpose.INIT)) | {
            "M": np.zeros((1, 6)),
            "L": L[None],
            "w": np.zeros(1),
        }

    model = GaussianMixture(1)
    trainer = ScoreMatching()
    for added, rests in ((0.0, True), (0.3, False)):
        params = at(added)
        sums = trainer.collect(
            model, params, _begun(trainer, model, params, x), Batch(x, len(x)), _rng()
        )
        assert (max(abs(sums[k]).max() for k in "ML") < 1e-9) == rests


SCORES = [SlicedScoreMatching(), SlicedScoreMatching(variance_reduced=False)]


def test_score_matching_is_at_rest_at_the_truth() -> None:
    """By quadrature over the plane; means a fifth farther out are the control."""
    model, truth = population.mixture()
    x, p = population.plane(model, truth, 0.15)
    for moved, rests in ((1.0, True), (1.2, False)):
        there = population.mixture(moved=moved)[1]
        grads = model.score_matching(there, model.forward(there, x), p)[1]
        assert (population.largest(grads) <= 1e-12) == rests


@pytest.mark.parametrize("trainer", SCORES, ids=repr)
def test_sliced_scores_are_at_rest_at_the_truth(trainer: Any) -> None:
    """Over the plane and all slices, within the truncation of the differences, ε² = 1e-8."""
    model, truth = population.mixture()
    for moved, rests in ((1.0, True), (1.2, False)):
        there = population.mixture(moved=moved)[1]
        grads = population.of_scores(trainer, model, truth, there)
        assert (population.largest(grads) <= 1e-6) == rests


def test_denoised_scores_are_at_rest_at_the_smoothed_truth() -> None:
    """Over the plane and the noise: 0 with the noise's variance added, not at the data's own."""
    model, truth = population.mixture()
    trainer = DenoisingScoreMatching(0.5)
    smooth = population.of_scores(trainer, model, truth, population.mixture(widened=0.25)[1])
    assert population.largest(smooth) <= 1e-7
    assert population.largest(population.of_scores(trainer, model, truth, truth)) > 1e-2


@pytest.mark.parametrize(
    "trainer",
    [
        *SCORES,
        ScoreMatching(),
        DenoisingScoreMatching(0.5),
        ScoreMatching(0.1),
        ConditionalNCE(),
        NCE(),
        MarginLoss(),
    ],
    ids=repr,
)
def test_the_energy_is_low_at_the_data(trainer: Any) -> None:
    """The sign: on N(0, 1) the energy at 3 is above that at 0. (The printed form of the slides,
    with the wrong sign of the curvature, learns the opposite.)"""
    X = np.random.default_rng(0).normal(size=(500, 1))
    trainer = trainer.set_params(n_epochs=20)
    model = FactorAnalysis(1) if not getattr(trainer, "curvature", 0) else OvercompleteICA(2)
    model.set_params(trainer=trainer, random_state=0).fit(X)
    low, high = model.energy(np.array([[0.0], [3.0]]))
    assert low < high - 1


def _wide(dtype: Any) -> tuple[Any, Any, np.ndarray]:
    rng = np.random.default_rng(0)
    model, x = GaussianRBM(500, variance=1.0), rng.normal(size=(64, 784))
    params = model.init_params(x, stream(0, Purpose.INIT))
    params["W"] = rng.normal(size=(784, 500)) / 28
    return model, {k: v.astype(dtype) for k, v in params.items()}, x.astype(dtype)


@pytest.mark.parametrize(
    ("trainer", "tolerance"),
    [
        (SlicedScoreMatching(), 1e-3),
        (SlicedScoreMatching(variance_reduced=False), 1e-3),
        (DenoisingScoreMatching(0.3), 1e-4),
    ],
    ids=repr,
)
def test_gradients_hold_in_float32(trainer: Any, tolerance: float) -> None:
    """784 features, 500 units: against float64 at its own, far smaller step, relative in norm."""
    found = {}
    model, wide, x = _wide(np.float64)
    draws = np.random.default_rng(1).random(x.shape)

    class Same:
        """The same noise in both dtypes."""

        def uniform(self, shape: Any) -> np.ndarray:
            return draws

        def normal(self, shape: Any, dtype: Any) -> np.ndarray:
            return (draws * 2 - 1).astype(dtype) * math.sqrt(3)

    for key, dtype in (("double", np.float64), ("single", np.float32)):
        params = {k: v.astype(dtype) for k, v in wide.items()}
        carry = _begun(trainer, model, params, x.astype(dtype))
        sums = trainer.collect(model, params, carry, Batch(x.astype(dtype), 64), Same())
        found[key] = sums["W"].astype(np.float64)
    error = np.linalg.norm(found["single"] - found["double"]) / np.linalg.norm(found["double"])
    assert error < tolerance, error


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("model", "trainer", "message"),
    [
        (
            RBM(3),
            ScoreMatching(),
            r"ScoreMatching cannot train RBM: it needs score_matching.*Trainers that can: .*"
            r"MinimumProbabilityFlow, .*PseudoLikelihood, RatioMatching",
        ),
        (RBM(3), DenoisingScoreMatching(), "DenoisingScoreMatching cannot train RBM"),
        (
            GaussianRBM(3),
            RatioMatching(),
            r"RatioMatching cannot train GaussianRBM: it needs binary units; GaussianRBM's are real"
            r".*ScoreMatching, SlicedScoreMatching",
        ),
        (KMeans(2), SlicedScoreMatching(), "has kinks, whose curvature no point shows"),
        (PCA(2), MarginLoss(), "MarginLoss cannot train PCA: the energy of PCA is that of no"),
        (GaussianRBM(3), MarginLoss(SquareSquare()), "SquareSquare is for energies that are not"),
        (GaussianRBM(3), MarginLoss(negatives=BitFlips()), "BitFlips needs binary units"),
        (RBM(3), MarginLoss(negatives=GaussianJitter()), "GaussianJitter needs real units"),
        (GaussianMixture(2), ScoreMatching(0.1), "needs squared_curvature.*take curvature=0"),
        (MPoT(3), ScoreMatching(), "ScoreMatching cannot train MPoT"),
        (ICA(pools=2), ScoreMatching(), "ScoreMatching cannot train ICA"),
    ],
    ids=repr,
)
def test_void_pairs_name_what_would_work(model: Any, trainer: Any, message: str) -> None:
    X = BITS if model.domain == "binary" else REALS
    with pytest.raises(CapabilityError, match=message):
        model.set_params(trainer=trainer).fit(X)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (NCE(noise_ratio=0), "NCE.noise_ratio must be an integer >= 1"),
        (ConditionalNCE(MostOffending()), "must step as often there as back"),
        (ConditionalNCE(3), "negatives must be GaussianJitter"),
        (MarginLoss(loss=3), "loss must be a loss of energyscape.losses, got 3"),
        (MarginLoss(pooling="mean"), "pooling must be one of sum, worst, softmax"),
        (MarginLoss(n_negatives=0), "MarginLoss.n_negatives must be an integer >= 1"),
        (MarginLoss(Hinge(-1.0)), "Hinge.margin must be > 0"),
        (MarginLoss(negatives=GaussianJitter(0)), "GaussianJitter.length must be > 0"),
        (MarginLoss(negatives=MostOffending(-1)), "MostOffending.radius must be > 0"),
        (MarginLoss(negatives=MostOffending(step=2)), r"MostOffending.step must be in \(0, 1\]"),
        (MarginLoss(negatives=Chains(0)), "n_steps must be an integer >= 1"),
        (ScoreMatching(-1), "ScoreMatching.curvature must be >= 0"),
        (SlicedScoreMatching(0), "n_slices must be an integer >= 1"),
        (SlicedScoreMatching(epsilon=0), "epsilon must be None or > 0"),
        (SlicedScoreMatching(epsilon=1e-9), r"lost in the rounding of float64 energies; it takes"),
        (DenoisingScoreMatching(sigma=-1), "sigma must be None or > 0"),
        (DenoisingScoreMatching(n_noise=0), "n_noise must be an integer >= 1"),
        (DenoisingScoreMatching(epsilon=1e-15), r"lost in the rounding of float64 rows; it takes"),
    ],
    ids=repr,
)
def test_bad_settings_are_named(trainer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianRBM(3, trainer=trainer).fit(REALS)


@pytest.mark.parametrize(
    ("trainer", "setting", "example"),
    [
        (MarginLoss(), "loss__margin", r"MarginLoss\(loss=Hinge\(2\.0\)\)"),
        (ConditionalNCE(), "negatives__length", r"ConditionalNCE\(negatives=GaussianJitter"),
        (EmbeddingLoss(), "loss__margin", r"EmbeddingLoss\(loss=DrLIM\(\)\)"),
    ],
)
def test_parts_that_are_not_there_are_named(trainer: Any, setting: str, example: str) -> None:
    with pytest.raises(ValueError, match=example):
        trainer.set_params(**{setting: 2.0})


def test_bad_numbers_of_bits_are_named() -> None:
    with pytest.raises(ValueError, match=r"RatioMatching\.n_bits must be an integer >= 1"):
        RBM(3, trainer=RatioMatching(0)).fit(BITS)


def test_a_refused_step_says_one_that_fits() -> None:
    """The number in the message is taken at its word."""
    X = REALS.astype(np.float32)
    for make, tiny in ((SlicedScoreMatching, 1e-5), (DenoisingScoreMatching, 1e-7)):
        with pytest.raises(ValueError, match="it takes") as told:
            GaussianRBM(3, trainer=make(epsilon=tiny, n_epochs=1)).fit(X)
        fits = float(str(told.value).rpartition(" ")[2])
        GaussianRBM(3, trainer=make(epsilon=fits, n_epochs=1), random_state=0).fit(X)


def test_the_history_has_the_loss() -> None:
    optimizer = SGD(0.05, schedule=Constant())
    trainer = PseudoLikelihood(n_epochs=60, batch_size=30, optimizer=optimizer)
    model = RBM(5, trainer=trainer, random_state=0).fit(BITS)
    loss = model.history_["loss"]
    assert len(loss) == 60 and loss[-1] < loss[0]
    own = PseudoLikelihood().collect(model, model._params, {}, Batch(BITS, 60), _rng())
    assert loss[-1] == pytest.approx(own["loss/mean"], abs=0.15)
    again = RBM(5, trainer=short(NCE, n_epochs=2), random_state=0).fit(BITS)
    assert {"loss", "log_partition", "noise_saturated"} <= set(again.history_)


# ---------------------------------------------------------------- interruptions


@pytest.mark.parametrize(
    "trainer",
    [
        NCE(3),
        ConditionalNCE(n_negatives=2),
        PseudoLikelihood(n_bits=3),
        MarginLoss(Hinge(), Chains()),
        SlicedScoreMatching(2),
        DenoisingScoreMatching(),
        ScoreMatching(0.1),
        MarginLoss(negatives=MostOffending()),
        MarginLoss(Log(), Chains(sampler=HMC(3))),
    ],
    ids=repr,
)
def test_resume_is_bit_exact(trainer: Any, tmp_path: Any) -> None:
    from energyscape import load

    binary = trainer.domains == ("binary",) or repr(trainer).startswith(("NCE", "Cond"))
    binary |= "Chains()" in repr(trainer)
    make, X = (RBM, BITS) if binary else (GaussianRBM, REALS)
    X = X.astype(np.float32)
    trainer = trainer.set_params(
        n_epochs=6, batch_size=25, optimizer=SGD(0.01, momentum=0.5), averaging=0.3
    )
    whole = make(4, trainer=trainer, random_state=3).fit(X)
    trainer.set_params(callbacks=[lambda model, state, info: state.epoch == 2])
    broken = make(4, trainer=trainer, random_state=3).fit(X)
    trainer.set_params(callbacks=())
    broken.trainer_.callbacks = ()
    broken.set_params(trainer=trainer).save(tmp_path / "broken.h5")
    resumed = load(tmp_path / "broken.h5").resume(X)
    for part in ("params", "carry"):
        got, wanted = getattr(resumed._state, part), getattr(whole._state, part)
        assert got.keys() == wanted.keys()
        for key in wanted:
            np.testing.assert_array_equal(got[key], wanted[key], err_msg=key)
