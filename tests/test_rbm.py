"""Both machines against enumeration, mixtures and quadrature."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from cases import MACHINES

from energyscape.backend import Purpose, stream
from energyscape.errors import CapabilityError
from energyscape.evaluation import find_learning_rate
from energyscape.evaluation.laws import generic_params
from energyscape.models import RBM, GaussianRBM
from energyscape.optim import SGD, Moment
from energyscape.trainers import CD, FPCD, PCD

BITS, REALS = MACHINES[0].data, MACHINES[2].data


@pytest.mark.parametrize(("d", "k"), [(6, 4), (4, 6), (5, 5)])
def test_rbm_against_enumeration(d: int, k: int) -> None:
    model = RBM(k)
    params = generic_params(model, BITS[:, :d])
    v = oracles.states(d)
    log_z = oracles.rbm_log_z(params)
    # float64 sums of 2^11 terms: 1e-10 is generous.
    assert abs(model.log_partition(params) - log_z) < 1e-10
    np.testing.assert_allclose(
        -model.free_energy(params, v) - log_z, oracles.rbm_log_p(params), rtol=0, atol=1e-10
    )


def test_gaussian_rbm_against_its_mixture() -> None:
    model = GaussianRBM(5)
    params = generic_params(model, REALS)
    log_p = -model.free_energy(params, REALS) - model.log_partition(params)
    np.testing.assert_allclose(log_p, oracles.gaussian_rbm_log_p(params, REALS), atol=1e-9)


def test_gaussian_rbm_integrates_to_one_by_quadrature() -> None:
    model = GaussianRBM(3)
    params = generic_params(model, REALS[:, :1])
    x = np.linspace(-60, 80, 200_001)[:, None]
    density = np.exp(-model.free_energy(params, x) - model.log_partition(params))
    assert abs(np.trapezoid(density, x[:, 0]) - 1) < 1e-8


def test_gaussian_conditional_is_that_of_the_joint() -> None:
    """p(x|h) ∝ exp(-E(x, h)) at β and with a base: log-density differences against energies."""
    model = GaussianRBM(4)
    params = generic_params(model, REALS)
    base = model.base_measure(params)
    h = oracles.states(4)[[5]]
    draws = {}
    for beta, b in ((1.0, None), (0.3, None), (0.3, base)):
        rng = stream(0, Purpose.SAMPLE)
        x = model.sample_visible(params, np.repeat(h, 40_000, 0), rng, beta, b)
        draws[beta, b is None] = x
        own, at_base = model.visible_energies(params, x[:200], b)
        field = model.scaled(params, x[:200]) @ params["W"] + params["c"]
        energy = beta * (own - field @ h[0]) + (0 if at_base is None else (1 - beta) * at_base)
        # The energy must be quadratic with the moments of the draws: fit both and compare.
        mean, var = x.mean(axis=0), x.var(axis=0)
        quadratic = ((x[:200] - mean) ** 2 / (2 * var)).sum(axis=1)
        slope = np.polyfit(quadratic, energy, 1)
        residual = energy - np.polyval(slope, quadratic)
        # 40,000 draws: variances to 0.7 %, so slope to a few per cent and small residuals.
        assert abs(slope[0] - 1) < 0.05, slope
        assert residual.std() < 0.1 * energy.std(), residual.std()


@pytest.mark.parametrize(("d", "k"), [(6, 4), (4, 6)])
def test_exact_draws_follow_the_enumerated_distribution(d: int, k: int) -> None:
    model = RBM(k)
    params = generic_params(model, BITS[:, :d])
    n = 200_000
    x = model.sample_exact(params, n, stream(0, Purpose.SAMPLE))
    counts = np.bincount((x @ (1 << np.arange(d))).astype(int), minlength=1 << d)
    p = np.exp(oracles.rbm_log_p(params))
    chi2 = ((counts - n * p) ** 2 / (n * p)).sum()
    # χ² with 2^d - 1 degrees of freedom; false-alarm rate 1e-6.
    from scipy.stats import chi2 as law

    assert chi2 < law.isf(1e-6, (1 << d) - 1)
    wrong = np.exp(1.05 * oracles.rbm_log_p(params))
    wrong /= wrong.sum()
    assert ((counts - n * wrong) ** 2 / (n * wrong)).sum() > law.isf(1e-6, (1 << d) - 1)


def test_enumeration_stops_at_25_units() -> None:
    model = RBM(26)
    params = model.init_params(np.ones((2, 30)) * 0.5, stream(0, Purpose.INIT))
    with pytest.raises(CapabilityError, match=r"2\^26 states.*log_likelihood_bounds"):
        model.log_partition(params)


@pytest.mark.parametrize("case", [MACHINES[0], MACHINES[2], MACHINES[3]], ids=lambda c: c.name)
def test_centred_step_is_gradient_descent_on_centred_parameters(case) -> None:
    """A step is along PP'∇, by a numerical Jacobian P of the map from centred to plain ones."""
    model = case.make()
    params = generic_params(model, case.data)
    if "log_var" in params and not model._fixed:
        params["log_var"] = np.log(params["var_v"]) - 1  # off its bounds
    mu, lam = params["mean_v"], params["mean_h"]
    names = [k for k, s in model.param_specs().items() if s.trainable]
    real = "log_var" in params
    scale = np.sqrt(np.exp(params["log_var"])) if real else np.ones(len(mu))

    def plain(t: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Centred, unit-free increments t around the present parameters to plain ones."""
        log_var = params.get("log_var", np.zeros(len(mu))) + t.get("log_var", 0.0)
        W = params["W"] + scale[:, None] * t["W"]
        # b and c are read off at h = λ and x = μ, where the centred ones live.
        b = params["b"] + params["W"] @ lam + scale * t["b"] - W @ lam
        old = np.exp(-params.get("log_var", np.zeros(len(mu))))
        c = params["c"] + (mu * old) @ params["W"] + t["c"] - (mu * np.exp(-log_var)) @ W
        return {"W": W, "b": b, "c": c} | ({"log_var": log_var} if real else {})

    zero = {k: np.zeros_like(params[k]) for k in names}

    def flat(t: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([t[k].ravel() for k in names])

    columns = []
    for k in names:
        for i in range(params[k].size):
            up, down = ({n: z.copy() for n, z in zero.items()} for _ in range(2))
            up[k].flat[i], down[k].flat[i] = 1e-6, -1e-6
            columns.append((flat(plain(up)) - flat(plain(down))) / 2e-6)
    P = np.array(columns).T
    rng = np.random.default_rng(3)
    grads = {k: rng.standard_normal(params[k].shape) for k in names}
    if "log_var" in params and not real:
        grads["log_var"] = np.zeros_like(params["log_var"])
    wanted = P @ (P.T @ flat(grads))
    steps = dict(grads)
    model.precondition(params, steps)

    def stepped(size: float) -> np.ndarray:
        after = {k: v.copy() for k, v in params.items()}
        moved = model.coordinates(after)
        moved |= {k: moved[k] + size * steps[k] for k in names}
        model.set_coordinates(after, moved)
        return flat(after)

    # A central difference: steps of order 1e4 change log σ² by 1e-3 here, squared 1e-6.
    got = (stepped(1e-7) - stepped(-1e-7)) / 2e-7
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("case", MACHINES, ids=lambda c: c.name)
def test_coordinates_there_and_back(case) -> None:
    model = case.make()
    params = {k: v.copy() for k, v in generic_params(model, case.data).items()}
    before = {k: v.copy() for k, v in params.items()}
    model.set_coordinates(params, model.coordinates(params))
    for key, value in before.items():
        np.testing.assert_allclose(params[key], value, rtol=0, atol=1e-11 * np.abs(value).max())


@pytest.mark.parametrize("trainer", [CD, PCD, FPCD], ids=lambda t: t.__name__)
@pytest.mark.parametrize("averaging", [None, 0.5])
def test_where_the_origin_lies_does_not_matter(trainer: type, averaging: Any) -> None:
    """GaussianRBM on X and on X + 1000: the same model, moved (float64, the same draws)."""
    X = REALS * 0.3
    settings = {"n_epochs": 30, "batch_size": 20, "averaging": averaging, "learning_rate": 0.02}
    near, far = (
        GaussianRBM(6, trainer=trainer(**settings), random_state=0).fit(rows)
        for rows in (X, X + 1000)
    )
    # Fields near 1e6 are rounded to 1e-10; chains of a few thousand draws never saw it matter.
    np.testing.assert_allclose(far.components_, near.components_, rtol=0, atol=1e-4)
    assert abs(far.score(X + 1000) - near.score(X)) < 1e-4


def _penalised_gradient(centered: bool, rates: dict[str, float] | None, l2: float) -> Any:
    """∇ of -log-likelihood + penalty where exact gradient descent comes to rest."""
    X = BITS[:, :5].astype(np.float64)
    model = RBM(3, centered=centered)
    params = {k: v.copy() for k, v in generic_params(model, X, noise=1.0).items()}
    states, optimizer = oracles.states(5), SGD(0.5, l2=l2, rates=rates)
    points = np.concatenate([X, states])

    def gradient() -> dict[str, np.ndarray]:
        weights = np.concatenate([np.full(len(X), 1 / len(X)), -np.exp(oracles.rbm_log_p(params))])
        return model.free_energy_grad(params, points, weights)

    for step in range(6000):
        sums = gradient()
        model.precondition(params, sums)
        moved = model.coordinates(params)
        optimizer.step(moved, sums, {}, model.param_specs(), Moment(0, step, None))
        model.set_coordinates(params, moved)
    left = gradient()
    left["W"] = left["W"] + l2 * params["W"]
    return {k: float(np.abs(v).max()) for k, v in left.items() if (rates or {}).get(k) != 0}


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize(("rates", "l2"), [(None, 0.02), ({"W": 0.0}, 0.0)])
def test_decay_and_rates_lead_to_the_penalised_optimum(
    centered: bool, rates: Any, l2: float
) -> None:
    """Decay and frozen parameters must not drag the biases along (they did under centring)."""
    # What 6,000 steps leave is 7e-4 at most; the wrong optimum had 4e-2.
    assert max(_penalised_gradient(centered, rates, l2).values()) < 2e-3


def test_flipped_bits_train_to_the_same_likelihood() -> None:
    """Centred training does not see which value of a bit is called 1 (Melchior et al., 2016)."""

    X = BITS.astype(np.float32)
    scores = []
    for rows in (X, 1 - X):
        model = RBM(5, trainer=PCD(n_epochs=300, batch_size=60), random_state=0)
        scores.append(model.fit(rows).score(rows))
    assert abs(scores[0] - scores[1]) < 0.05, scores


def test_pseudo_likelihood_is_the_sum_of_conditionals() -> None:
    model = RBM(4, random_state=0).fit(BITS[:, :5])
    params = model.params_
    v = oracles.states(5)
    log_p = oracles.rbm_log_p(params)
    wanted = np.zeros(len(v))
    for i in range(5):
        flipped = np.arange(len(v)) ^ (1 << i)
        wanted += log_p - np.logaddexp(log_p, log_p[flipped])
    np.testing.assert_allclose(model.pseudo_log_likelihood(v), wanted, atol=1e-9)


class WithoutBase(RBM):
    base_measure = None
    encode = None


def test_missing_verbs_are_named_where_they_are_wanted() -> None:
    """What a model does not offer is said at the call, and costs no more than that call."""
    X = (np.random.default_rng(0).random((30, 40)) < 0.5).astype(np.float32)
    model = WithoutBase(30, trainer=CD(n_epochs=2), random_state=0).fit(X)
    assert "reconstruction" not in model.history_
    for call in (
        lambda: model.sample(3, n_steps=1),
        lambda: model.log_likelihood_bounds(X),
        lambda: model.score(X),
        lambda: find_learning_rate(model, X),
    ):
        with pytest.raises(CapabilityError, match=r"needs .*base_measure\(params\)"):
            call()
    assert model.sample(30, start=X, n_steps=1).shape == X.shape
