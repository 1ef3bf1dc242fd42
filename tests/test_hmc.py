"""The leapfrog is of second order, reversible and keeps volume; what is built on it is exact."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from cases import CASES
from scipy.special import erfc
from scipy.stats import chi2, kstest
from scipy.stats import f as f_law

from energyscape.backend import HostStream, Purpose, stream
from energyscape.errors import CapabilityError, SamplerWarning
from energyscape.evaluation.laws import generic_params
from energyscape.kernels import leapfrog
from energyscape.models import RBM, GaussianRBM
from energyscape.samplers import (
    HMC,
    Langevin,
    Moments,
    ParallelTempering,
    RobbinsMonro,
    Trace,
    from_functions,
)
from energyscape.samplers.hmc import energy_change, trajectory

# Two-sided normal quantile of 4e-8: below 1e-6 over all z-tests of one test, 24 at most.
LIMIT = 5.5


def _z_score(values: np.ndarray, wanted: float) -> float:
    return (values.mean() - wanted) / (values.std(ddof=1) / np.sqrt(len(values)))


# ---------------------------------------------------------------- densities with exact draws


@dataclass(frozen=True)
class Known:
    """A density, exact draws of it from (n, seed), and a length per coordinate."""

    name: str
    target: Any
    draw: Callable[[int, int], np.ndarray]
    scale: np.ndarray


def _gaussian(variance: Any) -> Known:
    variance = np.asarray(variance, np.float64)
    target = from_functions(
        lambda x: (x * x / variance).sum(axis=1) / 2, lambda x: x / variance, variance.shape
    )
    root = np.sqrt(variance)

    def draw(n: int, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal((n, len(root))) * root

    return Known("Gaussian", target, draw, root)


def _product_of_t(d: int) -> Known:
    """U = γ Σ log(1 + (Wx)²/2) with W square: y = Wx are independent Student-t of 2γ - 1."""
    gamma = 2.5
    spread = np.linspace(0.6, 0.3, d)  # curvature γW² stays below 1
    W = np.linalg.qr(np.random.default_rng(d).standard_normal((d, d)))[0] * spread
    freedom = 2 * gamma - 1

    def grad(x: np.ndarray) -> np.ndarray:
        y = x @ W.T
        return gamma * (y / (1 + y * y / 2)) @ W

    def draw(n: int, seed: int) -> np.ndarray:
        y = np.random.default_rng(seed).standard_t(freedom, (n, d)) * np.sqrt(2 / freedom)
        return np.linalg.solve(W, y.T).T

    target = from_functions(lambda x: gamma * np.log1p((x @ W.T) ** 2 / 2).sum(axis=1), grad, (d,))
    return Known("product of t", target, draw, np.ones(d))


def _banana() -> Known:
    """x₁ ~ N(0, 1), x₂ ~ N(b(x₁² - 1), 1)."""
    b = 0.2

    def off(x: np.ndarray) -> np.ndarray:
        return x[:, 1] - b * (x[:, 0] ** 2 - 1)

    def grad(x: np.ndarray) -> np.ndarray:
        return np.stack([x[:, 0] - 2 * b * x[:, 0] * off(x), off(x)], axis=1)

    def draw(n: int, seed: int) -> np.ndarray:
        x = np.random.default_rng(seed).standard_normal((n, 2))
        x[:, 1] += b * (x[:, 0] ** 2 - 1)
        return x

    target = from_functions(lambda x: (x[:, 0] ** 2 + off(x) ** 2) / 2, grad, (2,))
    return Known("banana", target, draw, np.ones(2))


def _gaussian_rbm() -> Known:
    model = GaussianRBM(5)
    params = generic_params(model, CASES[2].data)

    def draw(n: int, seed: int) -> np.ndarray:
        return model.sample_exact(params, n, stream(seed, Purpose.SAMPLE))

    return Known("GaussianRBM", model.target(params), draw, np.exp(params["log_var"] / 2))


CURVED = [_product_of_t(4), _banana(), _gaussian_rbm()]


def _name(value: Any) -> str | None:
    return getattr(value, "name", None)


def _moved(known: Known, x: Any, z: Any, step: float, n_leapfrog: int, mass: Any = None) -> Any:
    """The library's trajectory with steps of ``step`` lengths, and its ΔH."""
    target = known.target
    scale = step * known.scale * (1 if mass is None else np.sqrt(mass))
    scale = np.broadcast_to(scale.astype(x.dtype), x.shape)
    energy, grad = target.energy_and_grad(x)
    end = trajectory(target, x, grad, z, scale, n_leapfrog)
    return end, energy_change(energy, z, end)


def _plain(
    known: Known, x: Any, z: Any, step: float, n: int, first: float = 0.5, last: float = 0.5
) -> Any:
    """The leapfrog as textbooks have it, in (x, p) with masses 1/scale²; ΔH as well."""
    target, scale = known.target, known.scale
    start = target.energy(x) + 0.5 * (z * z).sum(axis=1)
    p = z / scale - first * step * target.input_grad(x)
    for i in range(n):
        x = x + step * scale**2 * p
        p = p - (step if i < n - 1 else last * step) * target.input_grad(x)
    z = p * scale
    return x, z, target.energy(x) + 0.5 * (z * z).sum(axis=1) - start


# ---------------------------------------------------------------- the integrator


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("one_row", [False, True])
@pytest.mark.parametrize("one_column", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (5, 40_000), (3, 32_768), (2100, 50), (0, 4)])
def test_the_kernel_is_a_kick_and_a_drift(
    shape: Any, one_column: bool, one_row: bool, dtype: Any
) -> None:
    """The same roundings as two plain lines, also where rows are split into many blocks."""
    rng = np.random.default_rng(0)
    x, q, g = (rng.standard_normal(shape).astype(dtype) for _ in range(3))
    factor = rng.random((1 if one_row else shape[0], 1 if one_column else shape[1])).astype(dtype)
    kicked = q - factor * g
    drifted = x + kicked
    kept = g.copy(), factor.copy()
    leapfrog(x, q, g, factor)
    assert np.array_equal(q, kicked) and np.array_equal(x, drifted)
    assert np.array_equal(g, kept[0]) and np.array_equal(factor, kept[1])


@pytest.mark.parametrize("n_leapfrog", [1, 2, 9])
@pytest.mark.parametrize("known", CURVED, ids=_name)
def test_a_trajectory_is_the_textbook_leapfrog(known: Known, n_leapfrog: int) -> None:
    x = known.draw(50, 0)
    z = np.random.default_rng(1).standard_normal(x.shape)
    kept = x.copy(), z.copy()
    end, change = _moved(known, x, z, 0.3, n_leapfrog)
    plain_x, plain_z, plain_change = _plain(known, x, z, 0.3, n_leapfrog)
    # A few roundings per step of numbers up to 100, with no amplification at this step.
    np.testing.assert_allclose(end.x, plain_x, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(end.z, plain_z, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(change, plain_change, atol=1e-11 * abs(known.target.energy(x)).max())
    assert np.array_equal(end.energy, known.target.energy(end.x))
    assert np.array_equal(end.grad, known.target.input_grad(end.x))
    assert np.array_equal(x, kept[0]) and np.array_equal(z, kept[1])


STEPS = np.array([0.4, 0.2, 0.1, 0.05])


def _order(change: Callable[[float, int], np.ndarray]) -> float:
    """Slope of log RMS ΔH over log ε at a fixed length of 1.2."""
    rms = [np.sqrt((change(e, round(1.2 / e)) ** 2).mean()) for e in STEPS]
    return float(np.polyfit(np.log(STEPS), np.log(rms), 1)[0])


@pytest.mark.parametrize("known", CURVED, ids=_name)
def test_the_energy_error_is_of_second_order(known: Known) -> None:
    """0.05 is what the next term, (ωε)²/4 ≤ 0.04 of the error, can turn the slope by."""
    x = known.draw(2000, 0)
    z = np.random.default_rng(1).standard_normal(x.shape)
    assert abs(_order(lambda e, n: _moved(known, x, z, e, n)[1]) - 2) < 0.05
    # Negative controls: kicks of 0.6 ε at both ends, at one end, a gradient wrong by 5 %.
    assert _order(lambda e, n: _plain(known, x, z, e, n, 0.6, 0.6)[2]) < 1.5
    assert _order(lambda e, n: _plain(known, x, z, e, n, 0.6)[2]) < 1.5
    true = known.target
    steep = from_functions(true.energy, lambda x: 1.05 * true.input_grad(x))
    wrong = Known("", steep, known.draw, known.scale)
    assert _order(lambda e, n: _moved(wrong, x, z, e, n)[1]) < 1.0


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-4)])
@pytest.mark.parametrize("n_leapfrog", [1, 10, 100])
@pytest.mark.parametrize("known", [*CURVED[:2], _gaussian([0.01, 1, 100])], ids=_name)
def test_a_trajectory_runs_backwards(
    known: Known, n_leapfrog: int, dtype: Any, tolerance: float
) -> None:
    """A rounding per step, grown in proportion to L, is 100² of them: 2e-12 in float64."""
    x = known.draw(200, 0).astype(dtype)
    z = np.random.default_rng(1).standard_normal(x.shape).astype(dtype)
    end, _ = _moved(known, x, z, 0.3, n_leapfrog)
    back, _ = _moved(known, end.x, -end.z, 0.3, n_leapfrog)
    assert back.x.dtype == back.z.dtype == dtype
    assert abs(back.x - x).max() < tolerance * abs(x).max()
    assert abs(back.z + z).max() < tolerance * abs(z).max()
    assert abs(end.x - x).mean() > 0.05 * known.scale.min(), "nothing moved"
    # Negative control: a whole kick at the start and none at the end is not symmetric.
    ahead = _plain(known, x, z, 0.3, n_leapfrog, 1.0, 0.0)
    astray = _plain(known, ahead[0], -ahead[1], 0.3, n_leapfrog, 1.0, 0.0)
    assert abs(astray[0] - x).max() > 10 * tolerance * abs(x).max()


def _log_volume(move: Callable[[np.ndarray, np.ndarray], Any], point: np.ndarray) -> float:
    """log |det| of (x, z) → (x', z') by central differences, all in one batch."""
    d, h = len(point) // 2, 2e-5
    away = np.concatenate([point + h * np.eye(2 * d), point - h * np.eye(2 * d)])
    ends = np.concatenate(move(away[:, :d].copy(), away[:, d:].copy()), axis=1)
    jacobian = (ends[: 2 * d] - ends[2 * d :]) / (2 * h)
    return float(np.linalg.slogdet(jacobian)[1])


@pytest.mark.parametrize("mass", [False, True])
@pytest.mark.parametrize("known", [_banana(), *map(_product_of_t, (2, 3, 4))], ids=_name)
def test_a_trajectory_keeps_volume(known: Known, mass: bool) -> None:
    """Differences err by h²f'''/6 + ε_mach/h, about 1e-9 here."""
    d = len(known.scale)
    inverse = np.array([0.3, 2.0, 1.0, 0.5])[:d] if mass else None
    errors = []

    def move(x: np.ndarray, z: np.ndarray) -> Any:
        end, _ = _moved(known, x, z, 0.4, 6, inverse)
        return end.x, end.z

    def euler(x: np.ndarray, z: np.ndarray) -> Any:
        return x + 0.4 * z, z - 0.4 * known.target.input_grad(x)

    for seed in range(5):
        point = np.concatenate([known.draw(1, seed)[0], known.draw(1, seed + 5)[0]])
        errors.append([abs(np.expm1(_log_volume(f, point))) for f in (move, euler)])
    most = np.max(errors, axis=0)
    assert most[0] < 1e-7
    assert most[1] > 1e-3, "negative control"


# ---------------------------------------------------------------- closed forms


def _quadratic_law(d: int, step: float, n_leapfrog: int) -> tuple[float, float, float, float]:
    """Exact mean and variance of ΔH, acceptance and cos Lθ on N(0, I_d).

    The leapfrog keeps p² + χ²x², χ² = 1 - ε²/4, hence ΔH = (ε²/8) Σ (x'² - x²) with
    x' = cos(Lθ) x + sin(Lθ) p/χ: a quadratic form with one positive and one negative eigenvalue.
    A reversible volume-preserving proposal is accepted with probability 2 P(ΔH < 0), and that is
    a ratio of two χ²_d.
    """
    theta, chi_squared = np.arccos(1 - step**2 / 2), 1 - step**2 / 4
    c, s = np.cos(n_leapfrog * theta), np.sin(n_leapfrog * theta)
    cross = c * s / np.sqrt(chi_squared)
    form = step**2 / 8 * np.array([[c * c - 1, cross], [cross, s * s / chi_squared]])
    low, high = np.linalg.eigvalsh(form)
    acceptance = 2 * f_law.cdf(-low / high, d, d)
    return d * (low + high), 2 * d * (low**2 + high**2), float(acceptance), float(c)


@pytest.mark.parametrize(("d", "step", "n_leapfrog"), [(50, 0.35, 5), (100, 0.6, 3)])
def test_closed_forms_of_a_gaussian(d: int, step: float, n_leapfrog: int) -> None:
    known, n = _gaussian(np.ones(d)), 20_000
    mean, variance, accept, cosine = _quadratic_law(d, step, n_leapfrog)
    theta = np.arccos(1 - step**2 / 2)
    mu = d * step**4 * np.sin(n_leapfrog * theta) ** 2 / (32 * (1 - step**2 / 4))
    assert mean == pytest.approx(mu, rel=1e-9)
    # The central limit theorem over coordinates: wrong by O(1/d).
    assert accept == pytest.approx(erfc(np.sqrt(mu) / 2), abs=0.1 / d)
    x = known.draw(n, 0)
    z = np.random.default_rng(1).standard_normal(x.shape)
    end, change = _moved(known, x, z, step, n_leapfrog)
    assert abs(_z_score(change, mean)) < LIMIT
    assert abs(_z_score((change - mean) ** 2, variance)) < LIMIT
    assert abs(_z_score((end.x * x).mean(axis=1), cosine)) < LIMIT
    # Negative controls: the law of a step size 5 % off, or of one step more.
    for wrong in (_quadratic_law(d, 1.05 * step, n_leapfrog), _quadratic_law(d, step, 4)):
        far = abs(_z_score(change, wrong[0])), abs(_z_score((end.x * x).mean(axis=1), wrong[3]))
        assert max(far) > LIMIT
    # The whole step of the sampler.
    sampler = HMC(n_leapfrog, step, jitter=0)
    rng = stream(2, Purpose.SAMPLE)
    chains = sampler.start(known.target, x, rng)
    info = sampler.step(known.target, chains, rng)
    assert abs(_z_score(info["acceptance"], accept)) < LIMIT
    assert abs(_z_score(info["accepted"].astype(float), accept)) < LIMIT
    assert np.array_equal((chains.x != x).any(axis=1), info["accepted"])
    assert abs(_z_score(info["acceptance"], _quadratic_law(d, 1.05 * step, n_leapfrog)[2])) > LIMIT


@pytest.mark.parametrize(("step", "n_leapfrog"), [(0.5, 1), (0.5, 4), (0.25, 20), (0.7, 3)])
@pytest.mark.parametrize("known", CURVED, ids=_name)
def test_the_mean_of_exp_minus_energy_error_is_1(
    known: Known, step: float, n_leapfrog: int
) -> None:
    """∫∫ exp(-H) over the image of a map that keeps volume: 1, whatever its length.

    That holds of a wrong half step as well, which keeps volume too; the next test sees it.
    """
    x = known.draw(40_000, 0)
    z = np.random.default_rng(1).standard_normal(x.shape)
    assert abs(_z_score(np.exp(-_moved(known, x, z, step, n_leapfrog)[1]), 1)) < LIMIT
    inverse = np.linspace(0.75, 1, x.shape[1])
    end, change = _moved(known, x, z, step, n_leapfrog, inverse)
    assert abs(_z_score(np.exp(-change), 1)) < LIMIT
    # Negative control: the kinetic energy of other masses.
    wrong = change + 0.5 * ((1 / inverse - 1) * (end.z**2 - z**2)).sum(axis=1)
    assert abs(_z_score(np.exp(-wrong), 1)) > LIMIT


@pytest.mark.parametrize(("step", "n_leapfrog"), [(0.25, 1), (0.5, 4), (0.7, 3)])
@pytest.mark.parametrize("known", CURVED, ids=_name)
def test_accepted_proposals_keep_the_mean_energy(
    known: Known, step: float, n_leapfrog: int
) -> None:
    """E[min(1, exp(-ΔH)) (U' - U)] = 0, as a map that is its own inverse has it."""
    x = known.draw(40_000, 0)
    z = np.random.default_rng(1).standard_normal(x.shape)

    def drift(end: np.ndarray, change: np.ndarray) -> np.ndarray:
        energy = known.target.energy
        return np.exp(-np.maximum(change, 0)) * (energy(end) - energy(x))

    end, change = _moved(known, x, z, step, n_leapfrog)
    assert abs(_z_score(drift(end.x, change), 0)) < LIMIT
    # Negative control: a whole kick where the first half belongs, and none at the end.
    wrong_x, _, wrong = _plain(known, x, z, step, n_leapfrog, 1.0, 0.0)
    assert abs(_z_score(drift(wrong_x, wrong), 0)) > LIMIT


# ---------------------------------------------------------------- Langevin


@pytest.mark.parametrize("heat", [1.0, 0.25, 9.0])
@pytest.mark.parametrize(("variance", "step"), [(1.0, 0.5), (4.0, 3.0), (0.01, 0.001)])
def test_unadjusted_langevin_has_the_variance_of_its_step(
    variance: float, step: float, heat: float
) -> None:
    """x is Gaussian of variance Tσ²/(1 - ε/2σ²) once (1 - ε/σ²)^2k < 1e-7: Σx² is a χ²."""
    known, n, k = _gaussian([variance] * 2), 20_000, 80
    sampler = Langevin(step, heat, adjusted=False)
    x = sampler.run(known.target, np.zeros((n, 2)), k, 0).x
    wanted = heat * variance / (1 - step / (2 * variance))
    low, high = chi2.ppf([2e-7, 1 - 2e-7], 2 * n)
    assert low < (x * x).sum() / wanted < high
    # Negative controls: no bias, and noise of another temperature.
    for wrong in (heat * variance, wanted * 1.1):
        assert not low < (x * x).sum() / wrong < high
    # Adjusted, exact draws stay what they are.
    start = known.draw(n, 1) * np.sqrt(heat)
    x = Langevin(step, heat).run(known.target, start, 5, 0).x
    assert low < (x * x).sum() / (heat * variance) < high


@pytest.mark.parametrize("heat", [1.0, 0.3])
@pytest.mark.parametrize("known", CURVED[:2], ids=_name)
def test_langevin_is_its_formula(known: Known, heat: float) -> None:
    """Unadjusted as written; adjusted with Roberts and Tweedie's (1996) acceptance."""
    step, target = 0.4, known.target
    x = known.draw(200, 0) * np.sqrt(heat)
    noise = HostStream(0, 0, 0)
    z, threshold = noise.normal(x.shape, x.dtype), noise.exponential(len(x))
    proposal = x - step * target.input_grad(x) + np.sqrt(2 * step * heat) * z
    sampler = Langevin(step, heat, adjusted=False)
    chains = sampler.start(target, x, HostStream(0, 0, 0))
    sampler.step(target, chains, HostStream(0, 0, 0))
    np.testing.assert_allclose(chains.x, proposal, rtol=1e-12, atol=1e-12)

    def log_q(there: np.ndarray, here: np.ndarray) -> np.ndarray:
        miss = there - here + step * target.input_grad(here)
        return -(miss**2).sum(axis=1) / (4 * step * heat)

    log_ratio = (target.energy(x) - target.energy(proposal)) / heat
    log_ratio += log_q(x, proposal) - log_q(proposal, x)
    sampler = Langevin(step, heat)
    chains = sampler.start(target, x, HostStream(0, 0, 0))
    info = sampler.step(target, chains, HostStream(0, 0, 0))
    np.testing.assert_allclose(info["acceptance"], np.exp(np.minimum(log_ratio, 0)), rtol=1e-9)
    accepted = threshold > -log_ratio
    assert 0 < accepted.mean() < 1
    expected = np.where(accepted[:, None], proposal, x)
    np.testing.assert_allclose(chains.x, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("heat", [1.0, 0.3])
@pytest.mark.parametrize("known", CURVED[:2], ids=_name)
def test_langevin_is_one_leapfrog_step_of_the_cooled_target(known: Known, heat: float) -> None:
    """ε becomes √(2εT) on F/T, with the same noise; roundings differ."""
    step, x, cooled = 0.4, known.draw(200, 0), known.target.at(1 / heat)
    one = Langevin(step, heat).run(known.target, x, 10, HostStream(0, 0, 0), reducers=[Trace()])
    hmc = HMC(1, np.sqrt(2 * step * heat), jitter=0)
    other = hmc.run(cooled, x, 10, HostStream(0, 0, 0), reducers=[Trace()])
    np.testing.assert_allclose(one.reduced[0], other.reduced[0], rtol=1e-9, atol=1e-9)
    assert one.rates["acceptance"] == pytest.approx(other.rates["acceptance"], rel=1e-9)
    assert 0.2 < one.rates["acceptance"] < 0.98


@pytest.mark.parametrize("log2", [-20, -10, 0, 10])
def test_the_first_step_of_langevin_belongs_to_its_temperature(log2: int) -> None:
    """εT is the same as on F/T: exactly, because the scales are powers of two."""
    heat, known = 2.0**log2, _gaussian(np.ones(10))
    x = known.draw(50, 0) * np.sqrt(heat)
    hot = Langevin(temperature=heat).start(known.target, x, HostStream(0, 0, 0))
    plain = Langevin().start(known.target.at(1 / heat), x, HostStream(0, 0, 0))
    assert hot.shared["step_size"][0] * heat == plain.shared["step_size"][0]


# ---------------------------------------------------------------- momentum and mass


def test_kept_momentum_turns_where_a_proposal_is_rejected() -> None:
    known, keep = _gaussian(np.ones(10)), 0.7
    x = known.draw(500, 0)
    sampler = HMC(3, 1.2, jitter=0, persistence=keep)
    rng, same = HostStream(0, 0, 0), HostStream(0, 0, 0)
    chains = sampler.start(known.target, x, rng)
    old = same.normal(x.shape, x.dtype)
    assert np.array_equal(chains.own["momentum"], old)
    for _ in range(3):
        x, old = chains.x.copy(), chains.own["momentum"].copy()
        info = sampler.step(known.target, chains, rng)
        z = keep * old + np.sqrt(1 - keep**2) * same.normal(x.shape, x.dtype)
        same.exponential(len(x))
        rejected = ~info["accepted"]
        assert 0.1 < rejected.mean() < 0.9
        np.testing.assert_allclose(chains.own["momentum"][rejected], -z[rejected], rtol=1e-14)
        moved_x, moved_z, _ = _plain(known, x, z, 1.2, 3)
        there = chains.x[~rejected], chains.own["momentum"][~rejected]
        np.testing.assert_allclose(there[0], moved_x[~rejected], rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(there[1], moved_z[~rejected], rtol=1e-11, atol=1e-11)


def test_kept_momentum_suppresses_the_random_walk() -> None:
    """On N(0, 1), x after k steps of L = 1 has the correlation of a product of 2×2 maps."""
    known, n, step, k = _gaussian([1.0]), 40_000, 0.2, 8
    theta, chi = np.arccos(1 - step**2 / 2), np.sqrt(1 - step**2 / 4)
    turn = np.array([[np.cos(theta), np.sin(theta) / chi], [-chi * np.sin(theta), np.cos(theta)]])
    x = known.draw(n, 0)
    found = {}
    for keep in (0.0, 0.9):
        run = HMC(1, step, jitter=0, persistence=keep).run(known.target, x, k, 1)
        wanted = np.linalg.matrix_power(turn @ np.diag([1, keep]), k)[0, 0]
        found[keep] = (run.x * x)[:, 0]
        # A rejection turns the momentum: each may change a product by 2 standard units.
        slack = 4 * k * (1 - run.rates["acceptance"])
        assert slack < 0.05
        error = LIMIT * found[keep].std() / np.sqrt(n) + slack
        assert abs(found[keep].mean() - wanted) < error
    assert found[0.9].mean() < found[0.0].mean() - 0.3
    assert HMC().reversible and not HMC(persistence=0.5).reversible


def test_masses_make_an_ill_conditioned_gaussian_spherical() -> None:
    """With powers of two every rounding scales, and draws agree bit for bit."""
    root = 2.0 ** np.arange(-5, 5)
    long, round_ = _gaussian(root**2), _gaussian(np.ones(10))
    start = round_.draw(100, 0)
    trace = {"reducers": [Trace()]}
    for persistence in (0.0, 0.6):
        shared = {"step_size": 0.9, "persistence": persistence}
        heavy = HMC(5, inverse_mass=root**2, **shared)
        one = heavy.run(long.target, start * root, 20, 3, **trace)
        other = HMC(5, **shared).run(round_.target, start, 20, 3, **trace)
        assert np.array_equal(one.reduced[0], other.reduced[0] * root)
        assert one.rates == other.rates and 0.5 < one.rates["acceptance"] < 0.95
    # Negative control: unit masses at that step length stand still.
    with pytest.warns(SamplerWarning, match="hardly moved"):
        HMC(5, 0.9).run(long.target, start * root, 20, 3)


def test_masses_and_points_of_any_shape() -> None:
    variance = np.array([0.5, 2.0, 1.0, 3.0, 0.2, 1.5])
    flat = _gaussian(variance).target
    cube = from_functions(
        lambda x: flat.energy(x.reshape(-1, 6)),
        lambda x: flat.input_grad(x.reshape(-1, 6)).reshape(x.shape),
        (3, 2),
    )
    x = _gaussian(variance).draw(20, 0)
    for kind, settings in ((HMC, {"n_leapfrog": 4, "step_size": 0.5}), (Langevin, {})):
        wide = kind(**settings).run(cube, x.reshape(20, 3, 2), 10, 0, n_warmup=5)
        assert np.array_equal(
            wide.x.reshape(20, 6), kind(**settings).run(flat, x, 10, 0, n_warmup=5).x
        )
    heavy = HMC(4, 0.5, inverse_mass=variance.reshape(3, 2)).run(cube, x.reshape(20, 3, 2), 10, 0)
    flat_run = HMC(4, 0.5, inverse_mass=variance).run(flat, x, 10, 0)
    assert np.array_equal(heavy.x.reshape(20, 6), flat_run.x)
    for wrong in (variance, [1.0], np.zeros((3, 2)), -np.ones((3, 2)), np.full((3, 2), np.nan)):
        with pytest.raises(ValueError, match="inverse_mass must be positive and of shape"):
            HMC(4, 0.5, inverse_mass=wrong).run(cube, x.reshape(20, 3, 2), 1, 0)


# ---------------------------------------------------------------- lengths


class SameNoise(HostStream):
    """Every chain gets the same normals; uniforms differ."""

    def normal(self, shape: Any = None, dtype: Any = np.float32, out: Any = None) -> Any:
        return np.repeat(super().normal((1, *shape[1:]), dtype), shape[0], axis=0)


def _free_flight(sampler: HMC, n: int) -> np.ndarray:
    """Distances in units of the momentum where there is no force: the length of trajectories."""
    target = from_functions(lambda x: np.zeros(len(x)), np.zeros_like, (3,))
    rng = SameNoise(0, 0, 0)
    chains = sampler.start(target, np.zeros((n, 3)), rng)
    sampler.step(target, chains, rng)
    return np.linalg.norm(chains.x, axis=1) / np.linalg.norm(
        SameNoise(0, 0, 0).normal((1, 3), float)
    )


def test_jitter_is_uniform_over_chains() -> None:
    n = 10_000
    lengths = _free_flight(HMC(7, 0.1, jitter=0.2), n)
    assert kstest(lengths / 0.7, "uniform", (0.8, 0.4)).pvalue > 1e-6
    # Negative control: another spread.
    assert kstest(lengths / 0.7, "uniform", (0.75, 0.5)).pvalue < 1e-6
    np.testing.assert_allclose(_free_flight(HMC(7, 0.1, jitter=0), 10), 0.7, rtol=1e-12)


def test_a_resonant_length_does_not_move_the_squares() -> None:
    """Lθ = π: x' = -x. With ε within 20 %, one step keeps E cos²(Lθ) of the correlation of x²,
    1/2 + sin(0.4π)/0.8π = 0.878 up to O(ε²), and 20 steps 0.878²⁰ = 0.075."""
    known, n_leapfrog = _gaussian(np.ones(5)), 10
    step = np.sqrt(2 * (1 - np.cos(np.pi / n_leapfrog)))
    x = known.draw(2000, 0)
    still = HMC(n_leapfrog, step, jitter=0).run(known.target, x, 20, 1)
    assert still.rates["acceptance"] > 0.99
    # 200 rotations of numbers below 5, at a rounding each.
    np.testing.assert_allclose(still.x**2, x**2, rtol=0, atol=1e-11)
    moved = HMC(n_leapfrog, step, jitter=0.2).run(known.target, x, 20, 1)
    correlation = np.corrcoef((moved.x**2).ravel(), (x**2).ravel())[0, 1]
    # Chains share a length over their 5 coordinates: 2000 to 10 000 pairs of χ²_1.
    assert abs(correlation - 0.075) < LIMIT * 2 / np.sqrt(2000)


# ---------------------------------------------------------------- the cache


class Counting:
    """Functions that count the points they are asked for."""

    def __init__(self, known: Known) -> None:
        self.known, self.energies, self.grads = known, 0, 0

    def energy(self, x: np.ndarray) -> np.ndarray:
        self.energies += 1
        return self.known.target.energy(x)

    def grad(self, x: np.ndarray) -> np.ndarray:
        self.grads += 1
        return self.known.target.input_grad(x)


@pytest.mark.parametrize(
    ("sampler", "grads", "energies"),
    [
        (HMC(1, 0.3), 1, 1),
        (HMC(7, 0.3), 7, 1),
        (HMC(7, 0.3, persistence=0.5, inverse_mass=[1.0, 2.0]), 7, 1),
        (Langevin(0.1), 1, 1),
        (Langevin(0.1, adjusted=False), 1, 0),
    ],
    ids=repr,
)
def test_a_step_costs_its_gradients_and_no_more(sampler: Any, grads: int, energies: int) -> None:
    counts = []
    for steps in (1, 11):
        counting = Counting(_banana())
        sampler.run(counting, counting.known.draw(20, 0), steps, 0)
        counts.append((counting.grads, counting.energies))
    assert counts[1][0] - counts[0][0] == 10 * grads
    assert counts[1][1] - counts[0][1] == 10 * energies
    # The check, and what the first step has to know.
    assert counts[0][0] <= grads + 2


@pytest.mark.parametrize("sampler", [HMC(3, 0.5), HMC(3, 0.5, persistence=0.5), Langevin(0.3)])
def test_the_cache_holds_for_one_target_and_temperature_only(sampler: Any) -> None:
    known = _banana()
    x = known.draw(50, 0)
    rows = np.linspace(0.3, 1, 50)
    base, other = (
        known.target,
        from_functions(_product_of_t(2).target.energy, _product_of_t(2).target.input_grad),
    )
    targets = [base, base.at(0.4), base.at(0.4), other, base.at(rows), base.at(rows.copy()), base]

    def run(forget: bool, lie: bool = False) -> np.ndarray:
        rng = HostStream(0, 0, 0)
        chains = sampler.start(base, x, rng)
        for target in targets * 3:
            if forget:
                chains.cache = None
            if lie and chains.cache is not None:
                chains.cache = (target.tag, *chains.cache[1:])
            sampler.step(target, chains, rng)
        return chains.x

    assert np.array_equal(run(forget=False), run(forget=True))
    assert not np.array_equal(run(forget=False, lie=True), run(forget=True)), "negative control"


def test_a_pass_at_the_chains_saves_its_evaluation() -> None:
    counting = Counting(_banana())
    target = from_functions(counting.energy, counting.grad)
    x = counting.known.draw(50, 0)
    ends, costs = [], []
    for given in (False, True):
        sampler, rng = HMC(3, 0.5), HostStream(0, 0, 0)
        chains = sampler.start(target, x, rng)
        passed = target.forward(x) if given else None
        if given:
            passed.energy(), passed.input_grad()
        before = counting.grads
        sampler.step(target, chains, rng, passed)
        ends.append(chains.x)
        costs.append(counting.grads - before)
    assert np.array_equal(*ends)
    assert costs == [4, 3]


class OneBuffer:
    """Energies and gradients that are written to the same places at every call."""

    def __init__(self, known: Known) -> None:
        self.known, self.out = known, {}

    def _kept(self, what: str, values: np.ndarray) -> np.ndarray:
        if what not in self.out or self.out[what].shape != values.shape:
            self.out[what] = np.empty_like(values)
        self.out[what][...] = values
        return self.out[what]

    def energy(self, x: np.ndarray) -> np.ndarray:
        return self._kept("energy", self.known.target.energy(x))

    def grad(self, x: np.ndarray) -> np.ndarray:
        return self._kept("grad", self.known.target.input_grad(x))


@pytest.mark.parametrize(
    "sampler",
    [
        HMC(3),
        HMC(6, 0.5, persistence=0.5),
        Langevin(),
        Langevin(0.2, adjusted=False),
        ParallelTempering(HMC(3), betas=[1.0, 0.6]),
    ],
    ids=lambda s: type(s).__name__,
)
def test_results_in_one_buffer_are_copied(sampler: Any) -> None:
    known = _banana()
    x = known.draw(30, 0)
    fresh = sampler.run(known.target, x, 20, 0, n_warmup=20).x
    assert np.array_equal(sampler.run(OneBuffer(known), x, 20, 0, n_warmup=20).x, fresh)


def test_gradients_of_a_pass_are_copied() -> None:
    """The chains that reject go on from the gradient that they were given."""
    known, ends = _banana(), []
    x = known.draw(200, 0)
    for functions in (OneBuffer(known), Counting(known)):
        target = from_functions(functions.energy, functions.grad)
        sampler, rng = HMC(3, 1.2), HostStream(0, 0, 0)
        chains = sampler.start(target, x, rng)
        accepted = sampler.step(target, chains, rng, target.forward(x))["accepted"]
        assert 0.05 < accepted.mean() < 0.95
        sampler.step(target, chains, rng)
        ends.append(chains.x)
    assert np.array_equal(*ends)


# ---------------------------------------------------------------- the run


def test_any_kind_of_target_gives_the_same_draws() -> None:
    known = _banana()
    x = known.draw(10, 0)

    class Plain:
        def energy(self, x: np.ndarray) -> np.ndarray:
            return known.target.energy(x)

    class WithGrad(Plain):
        def grad(self, x: np.ndarray) -> np.ndarray:
            return known.target.input_grad(x)

    class WithInputGrad(Plain):
        def input_grad(self, x: np.ndarray) -> np.ndarray:
            return known.target.input_grad(x)

    pair = known.target.energy, known.target.input_grad
    ends = [
        HMC(3, 0.5).run(target, x, 5, 0).x
        for target in (known.target, pair, list(pair), WithGrad(), WithInputGrad())
    ]
    assert all(np.array_equal(end, ends[0]) for end in ends)
    with pytest.raises(CapabilityError, match="needs the gradient"):
        HMC(3, 0.5).run(Plain(), x, 5, 0)
    with pytest.raises(CapabilityError, match="needs the gradient"):
        HMC(3, 0.5).run((known.target.energy,), x, 5, 0)
    with pytest.raises(TypeError, match="a target is wanted"):
        HMC(3, 0.5).run(known.target.energy, x, 5, 0)


def test_a_model_is_a_target_if_it_has_a_gradient_of_reals() -> None:
    rbm = _gaussian_rbm()
    x = rbm.draw(20, 0)
    run = HMC(5, inverse_mass=rbm.scale**2).run(rbm.target, x, 20, 0, n_warmup=200)
    assert run.x.shape == x.shape and 0.6 < run.rates["acceptance"] < 0.95
    with pytest.raises(CapabilityError, match="moves real values"):
        model, bits = RBM(4), CASES[0].data
        HMC(5).run(model.target(generic_params(model, bits)), bits, 1, 0)


@pytest.mark.filterwarnings("ignore:.*diverged:energyscape.errors.SamplerWarning")
@pytest.mark.parametrize("seed", [3, np.int64(3), "generator", "random state", "stream"])
def test_the_same_seed_gives_the_same_draws(seed: Any) -> None:
    known = _banana()
    x = known.draw(10, 0)

    def source(number: int) -> Any:
        return {
            "generator": np.random.default_rng(number),
            "random state": np.random.RandomState(number),
            "stream": stream(number, Purpose.SAMPLE),
        }.get(seed, number)

    one, same, other = (HMC(3).run(known.target, x, 5, source(k), n_warmup=10).x for k in (3, 3, 4))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    free = [HMC(3).run(known.target, x, 5, n_warmup=10).x for _ in range(2)]
    assert not np.array_equal(*free)


def test_a_run_counts_its_steps() -> None:
    known = _banana()
    x = known.draw(10, 0)

    class Steps:
        def begin(self, x: np.ndarray, n: int) -> list[Any]:
            self.n = n
            return []

        def add(self, state: list[Any], x: np.ndarray) -> list[Any]:
            return [*state, x.copy()]

        def end(self, state: list[Any]) -> list[Any]:
            return state

    for n_steps, thin in ((10, 1), (10, 3), (9, 3), (2, 5), (0, 1)):
        steps = Steps()
        run = HMC(3, 0.5).run(known.target, x, n_steps, 0, thin=thin, reducers=[steps])
        assert steps.n == len(run.reduced[0]) == n_steps // thin
        assert (run.n_steps, run.n_warmup) == (n_steps, 0)
    every = HMC(3, 0.5).run(known.target, x, 10, 0, reducers=[Steps()]).reduced[0]
    third = HMC(3, 0.5).run(known.target, x, 10, 0, thin=3, reducers=[Steps()]).reduced[0]
    assert all(np.array_equal(a, b) for a, b in zip(every[2::3], third, strict=True))
    # A warm-up is 500 steps where there is something to adapt, and as long as one says.
    assert HMC(3).run(known.target, x, 0, 0).n_warmup == 500
    assert HMC(3, 0.5, adaptation=RobbinsMonro()).run(known.target, x, 0, 0).n_warmup == 500
    assert HMC(3).run(known.target, x, 0, 0, n_warmup=7).n_warmup == 7
    assert HMC(3).run(known.target, x, 0, 0, n_warmup=0).n_warmup == 0
    # Steps of a warm-up are steps of the same chain, where nothing adapts.
    whole = HMC(3, 0.5).run(known.target, x, 8, 0).x
    assert np.array_equal(HMC(3, 0.5).run(known.target, x, 5, 0, n_warmup=3).x, whole)


def test_a_run_without_steps_stays_where_it_is() -> None:
    known = _banana()
    x = known.draw(10, 0)
    run = HMC(3, 0.5).run(known.target, x, 0, 0)
    assert np.array_equal(run.x, x) and run.reduced == [] and run.rates == {}
    with pytest.raises(ValueError, match="would keep nothing"):
        HMC(3, 0.5).run(known.target, x, 0, 0, reducers=[Trace()])
    with pytest.raises(ValueError, match="at least two states"):
        HMC(3, 0.5).run(known.target, x, 0, 0, reducers=[Moments()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_steps": -1}, "n_steps must be an integer >= 0"),
        ({"n_steps": 1.5}, "n_steps must be an integer >= 0"),
        ({"thin": 0}, "thin must be an integer >= 1"),
        ({"n_warmup": -1}, "n_warmup must be an integer >= 0"),
    ],
)
def test_a_run_refuses_bad_counts(arguments: dict[str, Any], message: str) -> None:
    known = _banana()
    with pytest.raises(ValueError, match=message):
        HMC(3, 0.5).run(known.target, known.draw(10, 0), **{"n_steps": 5} | arguments)


def test_traces_are_chains_by_draws() -> None:
    known = _gaussian_rbm()
    x = known.draw(7, 0)
    reducers = [
        Trace(),
        Trace(known.target.energy),
        Trace(lambda x: x[:, :2]),
        Trace(lambda x: x[:, 0]),
    ]
    sampler = HMC(3, 0.3, inverse_mass=known.scale**2)
    run = sampler.run(known.target, x, 12, 0, thin=2, reducers=reducers)
    whole, energy, two, one = run.reduced
    assert whole.shape == (7, 6, x.shape[1]) and energy.shape == (7, 6)
    assert np.array_equal(whole[:, -1], run.x)
    assert np.array_equal(two, whole[:, :, :2]) and np.array_equal(one, whole[:, :, 0])
    # The same rows in another batch: products may round differently.
    np.testing.assert_allclose(energy[:, 3], known.target.energy(whole[:, 3]), rtol=1e-12)
    # A sampler may move its chains in place.
    moving = np.zeros((2, 1))
    state = Trace().add(Trace().begin(moving, 1), moving)
    moving += 1
    assert (Trace().end(state) == 0).all()


def test_single_precision_stays_single() -> None:
    known, seen = _banana(), set()

    def grad(x: np.ndarray) -> np.ndarray:
        seen.add(x.dtype)
        return known.target.input_grad(x)

    sampler = HMC(3, persistence=0.5, inverse_mass=[0.5, 2.0])
    start = known.draw(5, 0).astype(np.float32)
    run = sampler.run((known.target.energy, grad), start, 3, 0, n_warmup=3)
    assert seen == {run.x.dtype} == {run.chains.own["momentum"].dtype} == {np.dtype(np.float32)}
    assert run.chains.cache[1].dtype == np.float64, "energies are summed in double"


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("centre", [0.0, 1e4, -1e6])
def test_running_moments_are_those_of_the_trace(centre: float, dtype: Any) -> None:
    """Relative error of a variance: a few roundings of the mean over the standard deviation."""
    rng = np.random.default_rng(0)
    batches = (centre + rng.standard_normal((50, 30, 4)) * [0.5, 1, 2, 3]).astype(dtype)
    moments = Moments()
    state = moments.begin(batches[0], 50)
    for batch in batches:
        state = moments.add(state, batch)
    found = moments.end(state)
    rows = batches.astype(np.longdouble).reshape(-1, 4)
    tolerance = max(1e-12, 1e-15 * abs(centre))
    assert found["count"] == 1500
    assert found["mean"].dtype == found["variance"].dtype == np.float64
    np.testing.assert_allclose(
        found["mean"], rows.mean(axis=0).astype(float), rtol=1e-12, atol=1e-14
    )
    wanted = rows.var(axis=0, ddof=1).astype(float)
    np.testing.assert_allclose(found["variance"], wanted, rtol=tolerance)
    # Negative control: E x² - (E x)² of the same numbers, where that cancels.
    x = batches.astype(np.float64).reshape(-1, 4)
    naive = (x * x).mean(axis=0) - x.mean(axis=0) ** 2
    assert centre == 0 or abs(naive * 1500 / 1499 / wanted - 1).max() > tolerance


def test_moments_of_a_run_are_those_of_its_trace() -> None:
    known = _banana()
    run = HMC(3, 0.5).run(
        known.target, known.draw(20, 0), 30, 0, thin=2, reducers=[Moments(), Trace()]
    )
    moments, trace = run.reduced
    rows = trace.reshape(-1, 2)
    assert moments["count"] == len(rows) == 300
    np.testing.assert_allclose(moments["mean"], rows.mean(axis=0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(moments["variance"], rows.var(axis=0, ddof=1), rtol=1e-12)


@pytest.mark.parametrize(
    ("reducers", "most"),
    [
        ([], 20),
        ([Moments()], 20),
        ([Trace(lambda x: x[:, :1])], 20),
        ([Trace(lambda x: x.mean(axis=1))], 20),
    ],
    ids=["none", "moments", "one coordinate", "function"],
)
def test_nothing_is_stored_but_what_is_asked_for(reducers: list[Any], most: int) -> None:
    """In states of all chains: about 10 live at once in a step, and 100 are visited."""
    x = _gaussian(np.ones(500)).draw(100, 0)

    def peak(reducers: list[Any]) -> float:
        tracemalloc.start()
        run = HMC(2, 0.1).run(_gaussian(np.ones(500)).target, x, 100, 0, reducers=reducers)
        highest = tracemalloc.get_traced_memory()[1] / x.nbytes
        tracemalloc.stop()
        assert len(run.reduced) == len(reducers)
        return highest

    assert peak(reducers) < most
    assert peak([Trace()]) > 100, "negative control"


def test_progress_is_shown_on_stderr_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    known = _banana()
    HMC(3, 0.5).run(known.target, known.draw(5, 0), 5, 0)
    assert capsys.readouterr() == ("", "")
    HMC(3, 0.5).run(known.target, known.draw(5, 0), 5, 0, n_warmup=4, verbose=True)
    shown = capsys.readouterr()
    assert shown.out == "" and "HMC" in shown.err and "9/9" in shown.err


@pytest.mark.parametrize("sampler", [HMC(5, 1e3), Langevin(1e6)])
def test_chains_that_never_move_are_named(sampler: Any) -> None:
    known = _gaussian(np.ones(5))
    x = known.draw(20, 0)
    with pytest.warns(
        SamplerWarning, match=f"{type(sampler).__name__} accepted 0 of its proposals"
    ) as said:
        run = sampler.run(known.target, x, 10, 0)
    assert said[0].filename == __file__, "the warning points at the caller"
    assert np.array_equal(run.x, x) and run.rates["acceptance"] == 0
    assert run.rates["divergent"] == 1


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (HMC(0), "n_leapfrog must be an integer >= 1"),
        (HMC(2.5), "n_leapfrog must be an integer >= 1"),
        (HMC(step_size=0), r"HMC.step_size must be > 0"),
        (HMC(step_size=-1.0), r"HMC.step_size must be > 0"),
        (HMC(step_size=np.nan), r"HMC.step_size must be > 0"),
        (HMC(step_size=np.inf), r"HMC.step_size must be > 0"),
        (HMC(jitter=1.0), r"jitter must be in \[0, 1\)"),
        (HMC(jitter=-0.1), r"jitter must be in \[0, 1\)"),
        (HMC(persistence=1.0), r"persistence must be in \[0, 1\)"),
        (HMC(persistence=np.nan), r"persistence must be in \[0, 1\)"),
        (HMC(adaptation="rm"), "adaptation must hold adapters"),
        (HMC(adaptation=[RobbinsMonro(), None]), "adaptation must hold adapters"),
        (Langevin(0.0), "step_size must be > 0"),
        (Langevin(0.1, temperature=0.0), "temperature must be > 0"),
        (Langevin(0.1, temperature=np.inf), "temperature must be > 0"),
        (Langevin(adjusted=False), "needs a step_size"),
        (Langevin(0.1, adjusted=False, adaptation=RobbinsMonro()), "nothing to adapt to"),
    ],
    ids=repr,
)
def test_settings_that_cannot_be_are_refused(sampler: Any, message: str) -> None:
    known = _banana()
    with pytest.raises(ValueError, match=message):
        sampler.run(known.target, known.draw(5, 0), 1, 0)
