"""Samplers leave the distribution alone, and estimates of log Z have the error they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from cases import CASES
from scipy.stats import chi2, kstest

from energyscape.backend import Purpose, stream
from energyscape.errors import CapabilityError, SamplerWarning
from energyscape.evaluation.laws import generic_params
from energyscape.models import RBM, GaussianRBM
from energyscape.samplers import AIS, Clamped, Gibbs

BITS, REALS = CASES[0].data, CASES[2].data
ALARM = 1e-6  # false-alarm rate of every statistical assertion


def _pattern_counts(x: np.ndarray) -> np.ndarray:
    d = x.shape[1]
    return np.bincount((x @ (1 << np.arange(d))).astype(int), minlength=1 << d)


def _misfit(counts: np.ndarray, p: np.ndarray) -> float:
    """Pearson's χ² with cells of fewer than five expected counts pooled, over its threshold."""
    n = counts.sum()
    rare = n * p < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = n * np.append(p[~rare], p[rare].sum())
    if expected[-1] < 5:
        observed, expected = observed[:-1], expected[:-1]
    statistic = ((observed - expected) ** 2 / expected).sum()
    return statistic / chi2.isf(ALARM, len(expected) - 1)


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_gibbs_does_not_drift_from_exact_draws(beta: float) -> None:
    model = RBM(4)
    params = generic_params(model, BITS[:, :6], noise=1.0)
    # Exact draws at β: those of the model with every parameter multiplied by β.
    hot = {k: (v * beta if k in "Wbc" else v) for k, v in params.items()}
    p = np.exp(oracles.rbm_log_p(hot))
    x = model.sample_exact(hot, 100_000, stream(0, Purpose.SAMPLE))
    for steps in (1, 3):
        moved = Gibbs().run(model.target(params, beta=beta), x, steps, stream(1, Purpose.SAMPLE)).x
        assert _misfit(_pattern_counts(moved), p) < 1
        assert (moved != x).any(axis=1).mean() > 0.3, "the chains hardly move"
    # Negative control, same n: a sampler at a temperature 5 % too high.
    wrong = Gibbs().run(model.target(params, beta=beta / 1.05), x, 3, stream(1, Purpose.SAMPLE)).x
    assert _misfit(_pattern_counts(wrong), p) > 1


def test_gaussian_gibbs_does_not_drift_from_exact_draws() -> None:
    model = GaussianRBM(5)
    params = generic_params(model, REALS)
    x = model.sample_exact(params, 50_000, stream(0, Purpose.SAMPLE))
    moved = Gibbs().run(model.target(params), x, 2, stream(1, Purpose.SAMPLE)).x
    again = model.sample_exact(params, 50_000, stream(2, Purpose.SAMPLE))
    hot = Gibbs().run(model.target(params, beta=1 / 1.1), x, 2, stream(1, Purpose.SAMPLE)).x

    def gap(a: np.ndarray, b: np.ndarray) -> float:
        """Largest Kolmogorov-Smirnov distance over coordinates and F, over its threshold."""
        a, b = ([*rows.T, model.free_energy(params, rows)] for rows in (a, b))
        smallest = min(kstest(u, w).pvalue for u, w in zip(a, b, strict=True))
        return np.log(smallest) / np.log(ALARM / len(a))

    assert gap(moved, again) < 1
    assert gap(hot, again) > 1


def test_clamped_gibbs_draws_the_conditional() -> None:
    model = RBM(4)
    params = generic_params(model, BITS[:, :6], noise=1.0)
    mask = np.array([True, False, False, True, False, False])
    values = np.array([1.0, 0, 0, 0, 0, 0])
    log_p = oracles.rbm_log_p(params)
    v = oracles.states(6)
    log_p[(v[:, mask] != values[mask]).any(axis=1)] = -np.inf
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    target = Clamped(model.target(params), mask, values)
    start = target.hold(np.zeros((60_000, 6)))
    x = Gibbs().run(target, start, 60, stream(0, Purpose.SAMPLE)).x
    counts = _pattern_counts(x)
    assert counts[p == 0].sum() == 0
    assert _misfit(counts[p > 0], p[p > 0]) < 1


@pytest.fixture(scope="module")
def strong() -> tuple[RBM, dict[str, np.ndarray], float]:
    """A 10×6 RBM with |W| near 1, its parameters and exact log Z."""
    params = oracles.strong_rbm()
    return RBM(6), params, oracles.rbm_log_z(params)


def _z_score(ratios: np.ndarray) -> float:
    return (ratios.mean() - 1) / (ratios.std(ddof=1) / np.sqrt(len(ratios)))


# Two-sided normal quantile at the false-alarm rate: 4.9.
THRESHOLD = 4.9


@pytest.mark.parametrize("n_temperatures", [3, 10, 30])
def test_ais_is_unbiased_forward_and_reverse(strong: Any, n_temperatures: int) -> None:
    model, params, log_z = strong
    path = model.target(params, base=model.base_measure(params))
    ais = AIS(n_chains=40_000, n_temperatures=n_temperatures, n_pilot=0)
    forward = ais.run(path, stream(1, Purpose.PARTITION))
    log_z_base = path.base_log_partition()
    assert abs(_z_score(np.exp(forward.log_weights + log_z_base - log_z))) < THRESHOLD
    draws = model.sample_exact(params, 40_000, stream(2, Purpose.SAMPLE))
    backward = ais.reverse(path, draws, stream(3, Purpose.PARTITION), exact=True)
    assert abs(_z_score(np.exp(backward.log_weights + log_z - log_z_base))) < THRESHOLD
    assert (forward.kind, backward.kind) == ("lower bound", "upper bound")
    assert forward.log_weights.mean() + log_z_base < log_z  # Jensen, far beyond noise here
    assert log_z < log_z_base - backward.log_weights.mean()


class WeightAfterMove(AIS):
    """The wrong order: the state moves before its weight is taken."""

    def run(self, target: Any, rng: Any, verbose: bool = False, path: Any = None) -> Any:
        betas = np.linspace(0, 1, self.n_temperatures + 1)
        x = target.sample_base(self.n_chains, rng)
        log_w = np.zeros(len(x))
        for k in range(len(betas) - 1):
            x = target.at(betas[k + 1]).sweep(x, rng)
            log_w += target.at(betas[k]).energy(x) - target.at(betas[k + 1]).energy(x)
        return log_w


class DroppedFactor(AIS):
    """Reverse AIS with the k = 0 factor left out."""

    def _descend(self, target: Any, x: Any, rng: Any, verbose: bool, path: Any) -> Any:
        betas, log_w = np.linspace(0, 1, self.n_temperatures + 1), np.zeros(len(x))
        for k in range(len(betas) - 2, 0, -1):
            x = target.at(betas[k + 1]).sweep(x, rng)
            log_w += target.at(betas[k + 1]).energy(x) - target.at(betas[k]).energy(x)
        return log_w


@pytest.mark.parametrize("n_temperatures", [3, 10, 30])
def test_the_unbiasedness_test_sees_known_bugs(strong: Any, n_temperatures: int) -> None:
    model, params, log_z = strong
    path = model.target(params, base=model.base_measure(params))
    log_z_base = path.base_log_partition()
    log_w = WeightAfterMove(40_000, n_temperatures).run(path, stream(1, Purpose.PARTITION))
    assert abs(_z_score(np.exp(log_w + log_z_base - log_z))) > THRESHOLD
    draws = model.sample_exact(params, 40_000, stream(2, Purpose.SAMPLE))
    ais = DroppedFactor(40_000, n_temperatures)
    backward = ais.reverse(path, draws, stream(3, Purpose.PARTITION), exact=True)
    assert abs(_z_score(np.exp(backward.log_weights + log_z - log_z_base))) > THRESHOLD


def test_gaussian_ais_is_unbiased() -> None:
    model = GaussianRBM(5)
    params = generic_params(model, REALS, noise=0.1)
    log_z = model.log_partition(params)
    path = model.target(params, base=model.base_measure(params))
    ais = AIS(n_chains=40_000, n_temperatures=30, n_pilot=0)
    forward = ais.run(path, stream(1, Purpose.PARTITION))
    assert forward.ess_fraction > 0.1
    z = _z_score(np.exp(forward.log_weights + path.base_log_partition() - log_z))
    assert abs(z) < THRESHOLD
    draws = model.sample_exact(params, 40_000, stream(2, Purpose.SAMPLE))
    backward = ais.reverse(path, draws, stream(3, Purpose.PARTITION), exact=True)
    z = _z_score(np.exp(backward.log_weights + log_z - path.base_log_partition()))
    assert abs(z) < THRESHOLD


def test_raise_is_unbiased_for_the_annealed_model(strong: Any) -> None:
    """E exp(RAISE) = p_ann(v), with p_ann by propagating exact probabilities up the path."""
    model, params, _ = strong
    params = {k: (v[:6] if v.shape[0] == 10 else v) for k, v in params.items()}
    v = oracles.states(6)
    base = model.base_measure(params)
    path = model.target(params, base=base)
    ais = AIS(n_temperatures=5, n_pilot=0)
    betas = np.linspace(0, 1, 6)
    from energyscape.evaluation.laws import _transition

    # p_K = p_0 T_1 … T_K; RAISE's own definition of the path's last state.
    p = np.exp(-path.at(0.0).energy(v))
    p /= p.sum()
    for beta in betas[1:]:
        p = p @ _transition(model, params, v, float(beta), base)
    row = 37
    x = np.repeat(v[row : row + 1], 200_000, 0)
    rng = stream(3, Purpose.PARTITION)
    log_p = ais.annealed_log_likelihood(path, x, rng)
    assert abs(_z_score(np.exp(log_p) / p[row])) < THRESHOLD
    exact = np.exp(-path.energy(v[row : row + 1]) - model.log_partition(params))
    assert abs(_z_score(np.exp(log_p) / exact)) > THRESHOLD, "five temperatures are not the model"


def test_ais_reports_its_error(strong: Any) -> None:
    model, params, log_z = strong
    path = model.target(params, base=model.base_measure(params))
    hits = 0
    for seed in range(100):
        estimate = AIS(100, 100).run(path, stream(seed, Purpose.PARTITION))
        low, high = estimate.interval
        assert low < estimate.log_partition < high
        hits += low < log_z < high
    # A 95 % interval: fewer than 80 hits of 100 has probability below 1e-6.
    assert hits >= 80
    assert 1 < estimate.ess <= 100


def test_wide_weights_warn() -> None:
    model = RBM(40)
    rng = np.random.default_rng(0)
    params = model.init_params(rng.random((5, 60)), stream(0, Purpose.INIT))
    params["W"] = 3 * rng.standard_normal((60, 40))
    path = model.target(params, base=model.base_measure(params))
    with pytest.warns(SamplerWarning, match="chains count"):
        AIS(20, 2).run(path, stream(0, Purpose.PARTITION))


@pytest.mark.parametrize(
    ("ais", "message"),
    [
        (AIS(n_chains=0), "n_chains must be an integer >= 1"),
        (AIS(n_temperatures=0), "n_temperatures must be an integer >= 1"),
        (AIS(n_pilot=-1), "n_pilot must be an integer >= 0"),
    ],
)
def test_ais_refuses_bad_settings(strong: Any, ais: AIS, message: str) -> None:
    model, params, _ = strong
    path = model.target(params, base=model.base_measure(params))
    with pytest.raises(ValueError, match=message):
        ais.run(path, stream(0, Purpose.PARTITION))


def test_samplers_say_what_they_need(strong: Any) -> None:
    model, params, _ = strong
    with pytest.raises(CapabilityError, match="base measure"):
        AIS().run(model.target(params), stream(0, Purpose.PARTITION))
    with pytest.raises(ValueError, match=r"start has shape \(3, 4\)"):
        Gibbs().run(model.target(params), np.zeros((3, 4)), 1, stream(0, Purpose.SAMPLE))
