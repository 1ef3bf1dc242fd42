"""Step sizes, masses and lengths end where they should, stay there, and survive a checkpoint."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import pytest

from energyscape.backend import Purpose, stream
from energyscape.errors import SamplerWarning
from energyscape.samplers import (
    HMC,
    ChEES,
    Clamped,
    DualAveraging,
    Langevin,
    Multiplicative,
    ParallelTempering,
    PooledMass,
    RobbinsMonro,
    Trace,
    from_functions,
)
from energyscape.samplers.base import Chains
from energyscape.samplers.diagnostics import ess_mean

# Two-sided normal quantile of 4e-8: below 1e-6 over all z-tests of one test, 24 at most.
LIMIT = 5.5
# A ten-thousandfold range of variances around 1.
LONG = np.logspace(-2, 2, 100)


def _names(value: Any) -> str | None:
    kinds = value if isinstance(value, tuple | list) else [value]
    names = [k.__name__ if isinstance(k, type) else type(k).__name__ for k in kinds]
    return "-".join(names) if any(name[0].isupper() for name in names) else None


class Normal:
    """N(0, diag(variance)), which counts its gradients."""

    def __init__(self, variance: Any) -> None:
        self.variance = np.asarray(variance, np.float64)
        self.grads = 0

    def energy(self, x: np.ndarray) -> np.ndarray:
        return (x * x / self.variance).sum(axis=1, dtype=np.float64) / 2

    def grad(self, x: np.ndarray) -> np.ndarray:
        self.grads += 1
        return x / self.variance.astype(x.dtype)

    def draw(self, n: int, seed: int = 0) -> np.ndarray:
        rows = np.random.default_rng(seed).standard_normal((n, len(self.variance)))
        return rows * np.sqrt(self.variance)

    def target(self) -> Any:
        return from_functions(self.energy, self.grad, self.variance.shape)


class Watched(HMC):
    """HMC that keeps the shared values and the number of leapfrog steps of every step."""

    def __init__(self, n_leapfrog: int = 20, step_size: Any = None, adaptation: Any = None) -> None:
        super().__init__(n_leapfrog, step_size, adaptation=adaptation)
        self.seen: list[dict[str, Any]] = []

    def _lengths(self, chains: Chains, rng: Any) -> Any:
        lengths = super()._lengths(chains, rng)
        kept = {k: np.array(v) for k, v in chains.shared.items()}
        self.seen.append(kept | {"count": lengths[1]})
        return lengths

    def steps(self) -> np.ndarray:
        return np.array([seen["step_size"] for seen in self.seen])[:, 0]


def _efficiency(trace: np.ndarray, gradients: float) -> float:
    """Smallest effective sample size of x and x² over coordinates, per chain and gradient."""
    ess = min(ess_mean(trace).min(), ess_mean(trace**2).min())
    return float(ess) / len(trace) / gradients


# ---------------------------------------------------------------- step sizes


@pytest.mark.filterwarnings("ignore:.*diverged:energyscape.errors.SamplerWarning")
@pytest.mark.parametrize("aim", [0.65, 0.8])
@pytest.mark.parametrize("adapter", [RobbinsMonro, DualAveraging])
@pytest.mark.parametrize("d", [10, 100])
def test_the_target_acceptance_is_reached(d: int, adapter: type, aim: float) -> None:
    """Over seeds, 200 chains give a standard deviation of 0.002 (Robbins-Monro) and 0.003.

    Dual averaging also has a bias, -0.010 to +0.006 here; with a single chain it ends 0.03 above.
    """
    known = Normal(np.ones(d))
    run = HMC(10, adaptation=adapter(aim)).run(known, known.draw(200), 200, 0)
    assert abs(run.rates["acceptance"] - aim) < 0.02
    # Negative control: a step size half as long again misses.
    off = HMC(10, 1.5 * run.shared["step_size"][0]).run(known, known.draw(200), 200, 0)
    assert abs(off.rates["acceptance"] - aim) > 0.02


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_step_size_follows_the_scale_of_the_data(scale: float, dtype: Any) -> None:
    known = Normal(np.full(10, scale**2))
    run = HMC(10).run(known, known.draw(200).astype(dtype), 200, 0)
    assert abs(run.rates["acceptance"] - 0.8) < 0.02 and run.rates["divergent"] == 0
    unit = HMC(10).run(Normal(np.ones(10)), Normal(np.ones(10)).draw(200), 200, 0)
    # log ε has a standard deviation of 0.001 over seeds.
    assert run.shared["step_size"][0] / scale == pytest.approx(
        unit.shared["step_size"][0], rel=0.01
    )
    assert run.x.dtype == dtype


@pytest.mark.parametrize("heat", [1.0, 0.01])
def test_langevin_finds_its_step_size(heat: float) -> None:
    """Standard deviation over seeds: 0.002."""
    known = Normal(np.full(10, 4.0))
    start = known.draw(200) * np.sqrt(heat)
    run = Langevin(temperature=heat).run(known, start, 200, 0)
    assert abs(run.rates["acceptance"] - 0.574) < 0.02


@pytest.mark.parametrize("factor", [1e-6, 1e6])
@pytest.mark.parametrize(
    ("adapter", "tolerance"), [(RobbinsMonro, 0.02), (DualAveraging, 0.03)], ids=_names
)
def test_a_first_step_size_far_off_is_survived(
    adapter: type, tolerance: float, factor: float
) -> None:
    """Robbins-Monro can climb by exp(rate (1 - target) Σ t^-0.6), 1e6 in 750 steps and not 500:
    hence 2000 of them. Measured: 0.800 ± 0.002, and 0.807 and 0.790 for dual averaging."""
    known = Normal(np.ones(10))
    sampler = Watched(5, factor, adapter())
    run = sampler.run(known, known.draw(200), 200, 0, n_warmup=2000)
    assert np.isfinite(sampler.steps()).all() and np.isfinite(run.x).all()
    assert abs(run.rates["acceptance"] - 0.8) < tolerance


@pytest.mark.parametrize(
    "adaptation",
    [
        RobbinsMonro(),
        DualAveraging(),
        Multiplicative(bounds=(0.01, 10)),
        [RobbinsMonro(), PooledMass()],
        [RobbinsMonro(), ChEES()],
        [DualAveraging(), PooledMass(), ChEES()],
    ],
    ids=_names,
)
def test_values_are_frozen_after_the_warm_up(adaptation: Any) -> None:
    known = Normal(np.linspace(0.5, 2, 10))
    sampler = Watched(5, 0.3, adaptation)
    run = sampler.run(known, known.draw(20), 50, 0, n_warmup=60)
    warm, rest = sampler.steps()[:60], sampler.steps()[60:]
    assert len(np.unique(warm)) > 30
    assert (rest == run.shared["step_size"][0]).all()
    for key in ("inverse_mass", "trajectory"):
        assert all(np.array_equal(s[key], run.shared[key]) for s in sampler.seen[60:] if key in s)
    # What the adapters kept for themselves is gone; bounds and running rates may stay.
    assert not [k for k in run.shared if k.startswith(("rm_", "da_", "pm_", "chees_"))]


def test_averages_are_taken_over_the_second_half() -> None:
    """Robbins-Monro's recursion and its average, written out."""
    known = Normal(np.ones(5))
    for n in (1, 2, 7, 10):
        chains = HMC(3, 1.5).start(known.target(), known.draw(20), stream(0, Purpose.SAMPLE))
        adapter, log_step, logs = RobbinsMonro(0.7, rate=1.5), np.log(1.5), []
        adapter.start(chains, n)
        for t, acceptance in enumerate(np.random.default_rng(0).random((n, 20))):
            adapter.update(chains, {"acceptance": acceptance})
            log_step += 1.5 * (t + 1) ** -0.6 * (acceptance.mean() - 0.7)
            logs.append(log_step)
            assert chains.shared["step_size"][0] == pytest.approx(np.exp(log_step), rel=1e-12)
        adapter.finish(chains)
        kept = logs[(n + 1) // 2 :] or logs
        assert chains.shared["step_size"][0] == pytest.approx(np.exp(np.mean(kept)), rel=1e-12)


def test_dual_averaging_is_hoffman_and_gelmans() -> None:
    known = Normal(np.ones(5))
    chains = HMC(3, 0.3).start(known.target(), known.draw(20), stream(0, Purpose.SAMPLE))
    adapter = DualAveraging(0.8)
    adapter.start(chains, 40)
    gap = mean = 0.0
    for t, acceptance in enumerate(np.random.default_rng(0).random((40, 20)), start=1):
        adapter.update(chains, {"acceptance": acceptance})
        gap = (1 - 1 / (t + 10)) * gap + (0.8 - acceptance.mean()) / (t + 10)
        log_step = np.log(10 * 0.3) - np.sqrt(t) / 0.05 * gap
        mean = t**-0.75 * log_step + (1 - t**-0.75) * mean
        assert chains.shared["step_size"][0] == pytest.approx(np.exp(log_step), rel=1e-10)
    adapter.finish(chains)
    assert chains.shared["step_size"][0] == pytest.approx(np.exp(mean), rel=1e-10)


# ---------------------------------------------------------------- the multiplicative rule


@pytest.mark.parametrize("aim", [0.1, 0.3])
def test_the_multiplicative_rule_cycles_around_its_target(aim: float) -> None:
    """Mean rejection of 1000 steps of 200 chains: the cycle is ±1 %, worth 0.005 of rejection."""
    known = Normal(np.ones(20))
    sampler = Watched(5, 0.5, Multiplicative(aim))
    sampler.run(known, known.draw(200), 0, 0, n_warmup=1200)
    steps = sampler.steps()
    ratios = steps[1:] / steps[:-1]
    up = np.isclose(ratios, 1.01, rtol=1e-12)
    assert (up | np.isclose(ratios, 0.99, rtol=1e-12)).all()
    assert 0.3 < up[200:].mean() < 0.7, "it never settles"
    settled = steps[200:]
    # Turns come within ten steps, the memory of the running rate.
    assert settled.max() / settled.min() < 1.01**20
    run = HMC(5, float(np.exp(np.log(settled).mean()))).run(known, known.draw(200), 300, 1)
    assert abs(1 - run.rates["acceptance"] - aim) < 0.02


def test_the_running_rate_decides_the_direction() -> None:
    known = Normal(np.ones(5))
    chains = HMC(3, 0.5).start(known.target(), known.draw(10), stream(0, Purpose.SAMPLE))
    adapter = Multiplicative(0.2, up=1.5, down=0.5)
    adapter.start(chains, 100)
    rate, step = 0.2, 0.5
    for acceptance in np.random.default_rng(0).random((30, 10)) ** 0.25:
        adapter.update(chains, {"acceptance": acceptance})
        rate = 0.9 * rate + 0.1 * (1 - acceptance.mean())
        step *= 1.5 if rate < 0.2 else 0.5
        step = min(max(step, 0.5e-3), 0.5e3)
        assert chains.shared["step_size"][0] == pytest.approx(step, rel=1e-12)


@pytest.mark.parametrize(
    ("first", "bounds", "side"),
    [(0.15, (0.1, 0.2), "upper"), (8.0, (5.0, 10.0), "lower"), (1e-6, None, "upper")],
)
def test_bounds_are_kept_and_named_when_reached(first: float, bounds: Any, side: str) -> None:
    known = Normal(np.ones(20))
    sampler = Watched(5, first, Multiplicative(bounds=bounds))
    with pytest.warns(SamplerWarning) as said:
        sampler.run(known, known.draw(50), 5, 0, n_warmup=900)
    assert any(f"sits at its {side} bound" in str(one.message) for one in said)
    assert {one.filename for one in said} == {__file__}, "warnings point at the caller"
    low, high = bounds or (first * 1e-3, first * 1e3)
    assert sampler.steps().min() >= low and sampler.steps().max() <= high


@pytest.mark.filterwarnings("ignore::energyscape.errors.SamplerWarning")
@pytest.mark.parametrize(("first", "aim"), [(0.01, 0.5), (1.0, 0.01)])
def test_a_first_step_size_out_of_bounds_is_brought_inside(first: float, aim: float) -> None:
    known = Normal(np.ones(20))
    sampler = Watched(5, first, Multiplicative(aim, bounds=(0.1, 0.2)))
    sampler.run(known, known.draw(50), 0, 0, n_warmup=5)
    assert ((sampler.steps()[1:] >= 0.1) & (sampler.steps()[1:] <= 0.2)).all()


def test_no_warning_inside_the_bounds() -> None:
    known = Normal(np.ones(20))
    HMC(5, 0.5, adaptation=Multiplicative()).run(known, known.draw(50), 5, 0, n_warmup=100)


# ---------------------------------------------------------------- trajectory lengths


@pytest.mark.slow
def test_chees_finds_an_efficient_length() -> None:
    """At least 0.7 of the best of fixed lengths. Effective sample sizes of the worst of 200
    quantities have a standard deviation of about 5 %, and the best of the grid is picked."""
    known = Normal(np.logspace(-1, 1, 100))
    start, n = known.draw(50), 400
    chees = HMC(adaptation=[RobbinsMonro(0.65), ChEES()]).run(known, start, 0, 0)
    step, found = chees.shared["step_size"], chees.shared["trajectory"]

    def uniform(length: Any) -> float:
        """Lengths uniform on (0, T], as ChEES leaves them."""
        sampler, rng, trace = HMC(), stream(1, Purpose.SAMPLE), Trace()
        chains = sampler.start(known.target(), start, rng)
        ChEES().start(chains, 1)
        chains.shared |= {"step_size": step, "trajectory": length}
        known.grads, state = 0, []
        for _ in range(n):
            sampler.step(known.target(), chains, rng)
            state = trace.add(state, chains.x)
        return _efficiency(trace.end(state), known.grads)

    def fixed(n_leapfrog: int) -> float:
        run = HMC(n_leapfrog, step[0]).run(known, start, n, 1, reducers=[Trace()])
        return _efficiency(run.reduced[0], n_leapfrog * n)

    own = uniform(found)
    lengths = {factor: uniform(factor * found) for factor in (0.25, 0.5, 0.7, 1.4, 2, 4)}
    counts = {count: fixed(count) for count in (3, 4, 6, 8, 12, 16, 24, 32, 48)}
    assert own > 0.7 * max(lengths.values()), (own, lengths)
    assert own > 0.7 * max(counts.values()), (own, counts)
    # Negative control: lengths four times too short or long would be found wanting.
    assert max(lengths[0.25], lengths[4]) < 0.7 * max(own, *lengths.values())


@pytest.mark.parametrize("step_adapter", [RobbinsMonro, DualAveraging])
@pytest.mark.parametrize("chees_first", [False, True])
@pytest.mark.parametrize("longest", [1, 3, 8])
def test_no_trajectory_is_longer_than_the_longest(
    longest: int, chees_first: bool, step_adapter: type
) -> None:
    known = Normal(LONG)
    for seed in range(3):
        adaptation = [step_adapter(0.65), ChEES(longest=longest)]
        sampler = Watched(adaptation=adaptation[::-1] if chees_first else adaptation)
        sampler.run(known, known.draw(50), 256, seed, n_warmup=300)
        counts = [seen["count"] for seen in sampler.seen]
        assert max(counts[300:]) <= longest, "after the warm-up"
        assert longest / 2 < max(counts) <= longest, "in the warm-up"


def test_chees_lengths_are_in_haltons_order() -> None:
    """Every block of 2^k steps has one length in each of 2^k equal parts of (0, T]."""
    known = Normal(np.ones(10))
    sampler, rng = Watched(5, 0.01), stream(0, Purpose.SAMPLE)
    chains = sampler.start(known.target(), known.draw(4), rng)
    ChEES().start(chains, 1)
    chains.shared["trajectory"] = np.array([0.319])  # a part of a step is a whole one
    for _ in range(32):
        sampler.step(known.target(), chains, rng)
    counts = [seen["count"] for seen in sampler.seen]
    assert counts[:4] == [16, 8, 24, 4]
    assert sorted(counts[:31]) == list(range(1, 32))


def test_chees_ends_with_the_average_of_its_logarithms() -> None:
    """With weights t^-½, and a length that begins at one step."""
    known = Normal(np.logspace(-1, 1, 10))
    target, rng, adapter = known.target(), stream(0, Purpose.SAMPLE), ChEES()
    sampler = HMC(step_size=0.3, adaptation=adapter)
    chains = sampler.start(target, known.draw(20), rng)
    adapter.start(chains, 100)
    assert chains.shared["trajectory"][0] == 0.3
    average = 0.0
    for t in range(1, 101):
        adapter.update(chains, sampler.step(target, chains, rng))
        average += t**-0.5 * (np.log(chains.shared["trajectory"][0]) - average)
    last = chains.shared["trajectory"][0]
    adapter.finish(chains)
    assert chains.shared["trajectory"][0] == pytest.approx(np.exp(average), rel=1e-12)
    assert abs(np.log(last) - average) > 0.01, "the last one is another"


def test_velocities_are_those_of_the_positions() -> None:
    """Without a force the proposal is x + Lε v, whatever the masses."""
    target = from_functions(lambda x: np.zeros(len(x)), np.zeros_like, (3,))
    rng, inverse = stream(0, Purpose.SAMPLE), np.array([0.1, 1.0, 7.0])
    sampler = HMC(step_size=0.25, inverse_mass=inverse, adaptation=ChEES())
    chains = sampler.start(target, np.ones((5, 3)), rng)
    ChEES().start(chains, 10)
    chains.shared["trajectory"] = np.array([2.0])  # the first of Halton's is half of it
    info = sampler.step(target, chains, rng)
    np.testing.assert_allclose(info["proposal"] - info["origin"], info["velocity"], rtol=1e-12)
    assert info["jitter"] == 0.5


def test_chees_criterion_is_the_derivative_of_its_expectation() -> None:
    """∂/∂T of E (|x'-m|² - |x-m|²)²/4 along exact flow on N(0, I): x' = cos T x + sin T p.

    Per chain |x'|² - |x|² = -sin²T (|x|² - |p|²) + sin 2T x'p, of mean square
    4d sin⁴T + d sin²2T = 4d sin²T; hence d sin²T is the criterion, d sin 2T its derivative.
    """
    from energyscape.samplers.adaptation import _chees_slope

    d, n = 5, 40_000
    rng = np.random.default_rng(0)
    x, p = rng.standard_normal((2, n, d))
    for length in (0.3, 1.0, 1.4, 2.0):
        end = np.cos(length) * x + np.sin(length) * p
        velocity = np.cos(length) * p - np.sin(length) * x
        each = ((end**2).sum(axis=1) - (x**2).sum(axis=1)) * (end * velocity).sum(axis=1)
        info = {
            "origin": x,
            "proposal": end,
            "velocity": velocity,
            "acceptance": np.ones(n),
            "jitter": 1.0,
        }
        error = each.std() / np.sqrt(n)
        # Centring by the sample's means costs O(d/n) more.
        assert abs(_chees_slope(info, x) - d * np.sin(2 * length)) < LIMIT * error + 4 * d**2 / n
        # Proposals that are not accepted, or are not numbers, do not count.
        bad = {k: v.copy() for k, v in info.items() if k != "jitter"} | {"jitter": 1.0}
        for key in ("origin", "proposal", "velocity", "acceptance"):
            bad[key] = np.concatenate([bad[key], bad[key][:1]])
        bad["origin"] = np.concatenate([x, x.mean(axis=0, keepdims=True)])
        bad["proposal"][-1], bad["velocity"][-1], bad["acceptance"][-1] = np.nan, np.inf, 0.0
        assert _chees_slope(bad, x) == pytest.approx(_chees_slope(info, x), rel=1e-9)


# ---------------------------------------------------------------- masses


def test_masses_are_the_inverse_variances() -> None:
    """Within the sampling error of variances from the last window, as their ESS has it."""
    known = Normal(LONG)
    sampler = Watched(20, adaptation=[RobbinsMonro(), PooledMass()])
    run = sampler.run(known, known.draw(50), 300, 0, reducers=[Trace()])
    found = run.shared["inverse_mass"]
    changes = [
        t
        for t in range(1, 500)
        if not np.array_equal(sampler.seen[t]["inverse_mass"], sampler.seen[t - 1]["inverse_mass"])
    ]
    assert changes[-1] == 450, "the last tenth is left to the step size"
    window = changes[-1] - changes[-2]
    assert window >= 250 and all(
        np.diff([0, *changes[:-1]]) == 12 * 2 ** np.arange(len(changes) - 1)
    )
    share = ess_mean(run.reduced[0] ** 2) / (50 * 300)
    error = np.sqrt(2 / (share * 50 * window))
    z = np.log(found / LONG) / error
    assert abs(z).max() < LIMIT
    assert abs(np.log(1.5 * found / LONG) / error).min() > LIMIT / 2, "negative control"
    assert abs(run.rates["acceptance"] - 0.8) < 0.02


def test_masses_pay() -> None:
    known = Normal(LONG)
    found = []
    for adaptation in ([RobbinsMonro()], [RobbinsMonro(), PooledMass()]):
        sampler = HMC(20, adaptation=adaptation)
        run = sampler.run(known, known.draw(50), 200, 0, reducers=[Trace()])
        found.append(_efficiency(run.reduced[0], 20 * 200))
    # Measured: 12 times, at a resonant length.
    assert found[1] > 4 * found[0]


@pytest.mark.parametrize("centre", [0.0, 1e6])
def test_a_window_is_shrunk_and_keeps_the_length_of_a_step(centre: float) -> None:
    rng = np.random.default_rng(0)
    states = centre + rng.standard_normal((10, 3, 4)) * [0.01, 1, 3, 10]
    chains = Chains(states[0], {}, {"step_size": np.array([0.7]), "n_leapfrog": np.array(5)})
    adapter = PooledMass()
    adapter.start(chains, 400)
    for t, state in enumerate(states):
        assert (chains.shared["inverse_mass"] == 1).all() and t < 10
        chains.x = state
        adapter.update(chains, {})
    rows = states.reshape(-1, 4)
    variance = rows.var(axis=0)
    wanted = (30 * variance + 5e-3 * np.exp(np.log(variance).mean())) / 35
    # Squares about the first states' mean: the cancellation is of order 1.
    np.testing.assert_allclose(chains.shared["inverse_mass"], wanted, rtol=1e-12 + 1e-15 * centre)
    length = np.log(0.7) - 0.5 * np.log(wanted).mean()
    assert np.log(chains.shared["step_size"][0]) == pytest.approx(length, rel=1e-6)
    # The next window is twice as long and has forgotten this one.
    later = 7 + centre + np.random.default_rng(1).standard_normal((20, 3, 4))
    for state in later:
        chains.x = state
        adapter.update(chains, {})
    variance = later.reshape(-1, 4).var(axis=0)
    wanted = (60 * variance + 5e-3 * np.exp(np.log(variance).mean())) / 65
    # About a mean that is 7 standard deviations away.
    np.testing.assert_allclose(chains.shared["inverse_mass"], wanted, rtol=1e-11 + 1e-14 * centre)
    adapter.finish(chains)
    assert set(chains.shared) == {"step_size", "n_leapfrog", "inverse_mass"}


def test_chains_that_have_not_moved_yet_leave_the_masses_finite() -> None:
    """All at one point, and rejecting for longer than the first window."""
    known = Normal(np.linspace(0.5, 2, 20))
    sampler = Watched(5, 1e6, [RobbinsMonro(), PooledMass()])
    run = sampler.run(known, np.zeros((20, 20)), 100, 0)
    assert np.isfinite(sampler.steps()).all()
    assert np.isfinite(run.shared["inverse_mass"]).all() and (run.shared["inverse_mass"] > 0).all()
    assert run.rates["acceptance"] > 0.5


# ---------------------------------------------------------------- several together


@pytest.mark.parametrize(
    "order", list(itertools.permutations((RobbinsMonro, PooledMass, ChEES))), ids=_names
)
def test_adapters_work_together_in_any_order(order: Any) -> None:
    """Standard deviation of the acceptance over seeds: 0.003."""
    known = Normal(LONG)
    run = HMC(adaptation=[kind() for kind in order]).run(known, known.draw(100), 200, 0)
    assert abs(run.rates["acceptance"] - 0.8) < 0.02
    assert abs(np.log(run.shared["inverse_mass"] / LONG)).max() < 0.3
    # Whitened, a quarter of a turn is π/2; uniform lengths reach to about 1.6 of them.
    assert 1 < run.shared["trajectory"][0] < 4


@pytest.mark.parametrize("scale", [2.0**-7, 2.0**7])
@pytest.mark.parametrize(
    "order", [(RobbinsMonro, PooledMass, ChEES), (ChEES, PooledMass, RobbinsMonro)], ids=_names
)
def test_lengths_do_not_depend_on_the_units(order: Any, scale: float) -> None:
    """Masses carry the units, so step sizes and trajectories are numbers near 1, and a step costs
    the same. Standard deviations over seeds are 1 and 3 %."""
    found = []
    for units in (1.0, scale):
        known = Normal(units**2 * np.logspace(-1, 1, 20))
        sampler = Watched(adaptation=[kind() for kind in order])
        run = sampler.run(known, known.draw(100), 100, 0, n_warmup=400)
        counts = [seen["count"] for seen in sampler.seen]
        found.append(
            [run.shared["step_size"][0], run.shared["trajectory"][0], np.mean(counts), max(counts)]
        )
    np.testing.assert_allclose(found[0][:2], found[1][:2], rtol=0.2)
    assert found[1][2] < 1.5 * found[0][2] + 1 and found[1][3] < 3 * found[0][3] + 10


ORDERS = [
    order
    for kind in (RobbinsMonro, DualAveraging)
    for order in itertools.permutations((kind, PooledMass, ChEES))
]


@pytest.mark.parametrize("n_held", [0, 10])
@pytest.mark.parametrize("n_warmup", [1, 3, 20])
@pytest.mark.parametrize("order", ORDERS, ids=_names)
def test_new_masses_carry_over_what_was_learnt(order: Any, n_warmup: int, n_held: int) -> None:
    """A short warm-up renews the masses at its end, and averages must follow. With units of a
    power of two, only logarithms round; but a ChEES that comes after the new masses sees
    velocities of the old ones once, which is worth a move or two of 0.025."""
    late = order.index(ChEES) > order.index(PooledMass)
    found = []
    for units in (1.0, 2.0**7):
        known = Normal(units**2 * np.logspace(-1, 1, 20))
        target = Clamped(known.target(), np.arange(20) < n_held, np.zeros(20))
        sampler = HMC(adaptation=[kind() for kind in order])
        shared = sampler.run(target, known.draw(50), 0, 0, n_warmup=n_warmup).shared
        masses = shared["inverse_mass"][n_held:] / units**2
        found.append([shared["step_size"][0], shared["trajectory"][0], *masses])
    np.testing.assert_allclose(found[0], found[1], rtol=0.05 if late else 1e-9)


@pytest.mark.parametrize("held", [0.0, 0.3])
def test_held_coordinates_have_no_say(held: float) -> None:
    """Masses, steps and lengths are those of the free coordinates alone, within 20 %."""
    known = Normal(np.logspace(-1, 1, 40))
    mask = np.arange(40) < 30
    whole = Clamped(known.target(), mask, np.full(40, held))
    part = Normal(known.variance[~mask])
    found = []
    for target, start in ((whole, known.draw(50)), (part, known.draw(50)[:, ~mask])):
        sampler = HMC(adaptation=[RobbinsMonro(), PooledMass(), ChEES()])
        run = sampler.run(target, start, 200, 0)
        assert abs(run.rates["acceptance"] - 0.8) < 0.02
        masses = run.shared["inverse_mass"][-10:]
        found.append([run.shared["step_size"][0], run.shared["trajectory"][0], *masses])
    np.testing.assert_allclose(found[0], found[1], rtol=0.2)


ADAPTATIONS = [
    [RobbinsMonro()],
    [DualAveraging()],
    [Multiplicative()],
    [RobbinsMonro(), ChEES()],
    [RobbinsMonro(), PooledMass()],
    [DualAveraging(), PooledMass(), ChEES()],
]


@pytest.mark.parametrize("persistence", [0.0, 0.5])
@pytest.mark.parametrize("adapters", ADAPTATIONS, ids=_names)
def test_adaptation_goes_on_after_a_checkpoint(adapters: Any, persistence: float) -> None:
    """Bit for bit, through a file, with new objects."""
    known = Normal(np.linspace(0.5, 2, 10))
    target = known.target()
    sampler = HMC(5, persistence=persistence, adaptation=adapters)

    def go(chains: Chains, adapters: Any, steps: range) -> Chains:
        for i in steps:
            info = sampler.step(target, chains, stream(0, Purpose.SAMPLE, i))
            for adapter in adapters:
                adapter.update(chains, info)
        return chains

    def started() -> Chains:
        chains = sampler.start(target, known.draw(20), stream(0, Purpose.START))
        for adapter in adapters:
            adapter.start(chains, 80)
        return chains

    def finished(chains: Chains, adapters: Any) -> dict[str, Any]:
        for adapter in adapters:
            adapter.finish(chains)
        return go(chains, [], range(80, 90)).carry()

    whole = finished(go(started(), adapters, range(80)), adapters)
    half = go(started(), adapters, range(37)).carry()
    assert ("chain/momentum" in half) == (persistence > 0)
    file = io.BytesIO()
    np.savez(file, **half)
    file.seek(0)
    with np.load(file) as loaded:
        resumed = Chains.of(dict(loaded))
    again = [type(a)(**a.get_params()) for a in adapters]
    parts = finished(go(resumed, again, range(37, 80)), again)
    assert whole.keys() == parts.keys()
    for key in whole:
        assert np.array_equal(whole[key], parts[key]), key
    # Negative control: adapters that begin anew arrive elsewhere.
    fresh = Chains.of({k: v.copy() for k, v in half.items()})
    for adapter in again:
        adapter.start(fresh, 80)
    fresh_end = finished(go(fresh, again, range(37, 80)), again)
    # The multiplicative rule keeps one running rate, which may well lead the same way.
    if not isinstance(adapters[0], Multiplicative):
        assert not np.array_equal(whole["chain/x"], fresh_end["chain/x"])


# ---------------------------------------------------------------- temperatures

BETAS = [1.0, 0.6, 0.3, 0.1]


@pytest.mark.parametrize("adapter", [RobbinsMonro, DualAveraging])
def test_tempered_chains_have_a_step_size_per_temperature(adapter: type) -> None:
    """On a Gaussian the best one goes like β^-½; log ε has a standard deviation below 0.02."""
    known = Normal(np.ones(10))
    sampler = ParallelTempering(HMC(5, adaptation=adapter()), betas=BETAS)
    run = sampler.run(known, known.draw(100), 100, 0)
    step = run.shared["step_size"]
    assert step.shape == (4,)
    level = step * np.sqrt(BETAS)
    assert level.max() / level.min() < 1.1
    assert step[3] / step[0] > 2.5, "negative control: not one for all"
    for beta, each in zip(BETAS, step, strict=True):
        alone = HMC(5, each).run(known.target().at(beta), known.draw(200) / np.sqrt(beta), 100, 1)
        assert abs(alone.rates["acceptance"] - 0.8) < 0.03
    assert abs(run.rates["acceptance"] - 0.8) < 0.03


def test_tempered_chains_with_adapted_lengths_swap_all_pairs() -> None:
    known = Normal(np.ones(10))
    inner = HMC(5, adaptation=[RobbinsMonro(), ChEES()])
    run = ParallelTempering(inner, betas=BETAS).run(known, known.draw(100), 100, 0, n_warmup=200)
    fixed = ParallelTempering(HMC(5), betas=BETAS).run(known, known.draw(100), 100, 0, n_warmup=200)
    # 5000 proposals per pair: a standard deviation of 0.007 at most, of correlated swaps 0.02.
    np.testing.assert_allclose(run.rates["swap_rate"], fixed.rates["swap_rate"], atol=0.11)
    assert (run.rates["swap_rate"] > 0).all() and run.rates["round_trips"] > 0


def test_tempered_chains_adapt_masses() -> None:
    known = Normal(np.array([0.25, 1.0, 4.0, 16.0]))
    inner = HMC(5, adaptation=[RobbinsMonro(), PooledMass()])
    run = ParallelTempering(inner, betas=[1.0, 0.5]).run(known, known.draw(100), 50, 0)
    # Variances of the model itself, from at least 200 × 100 draws; correlated, a tenth of them.
    assert abs(np.log(run.shared["inverse_mass"] / known.variance)).max() < LIMIT * np.sqrt(
        2 / 2000
    )
    assert run.shared["step_size"].shape == (2,)


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (Multiplicative(0.0), "target_rejection must be in"),
        (Multiplicative(1.0), "target_rejection must be in"),
        (Multiplicative(np.nan), "target_rejection must be in"),
        (Multiplicative(up=1.0), "up must be > 1"),
        (Multiplicative(down=1.0), "down in"),
        (Multiplicative(down=0.0), "down in"),
        (Multiplicative(bounds=(0.2, 0.1)), "bounds must be"),
        (Multiplicative(bounds=(0.0, 0.1)), "bounds must be"),
        (RobbinsMonro(0.0), "target must be in"),
        (RobbinsMonro(1.0), "target must be in"),
        (RobbinsMonro(rate=0.0), "rate must be > 0"),
        (RobbinsMonro(rate=np.nan), "rate must be > 0"),
        (DualAveraging(1.2), "target must be in"),
        (DualAveraging(gamma=0.0), "DualAveraging wants"),
        (DualAveraging(t0=-1.0), "DualAveraging wants"),
        (DualAveraging(kappa=0.0), "DualAveraging wants"),
        (DualAveraging(kappa=1.1), "DualAveraging wants"),
        (ChEES(rate=0.0), "ChEES wants"),
        (ChEES(longest=0), "ChEES wants"),
    ],
    ids=repr,
)
def test_settings_that_cannot_be_are_refused(adapter: Any, message: str) -> None:
    known = Normal(np.ones(3))
    with pytest.raises(ValueError, match=message):
        HMC(3, 0.1, adaptation=adapter).run(known, known.draw(5), 1, 0, n_warmup=2)


def test_adapters_say_which_sampler_they_need() -> None:
    known = Normal(np.ones(3))
    with pytest.raises(ValueError, match="it needs at least two"):
        HMC(adaptation=ChEES()).run(known, known.draw(1), 1, 0)
    for adapter in (ChEES(), PooledMass()):
        with pytest.raises(ValueError, match="this sampler has none"):
            Langevin(adaptation=adapter).run(known, known.draw(5), 1, 0)


def test_trainers_and_warm_ups_have_their_own_defaults() -> None:
    assert [type(a) for a in HMC().adapters(False)] == [RobbinsMonro]
    assert [type(a) for a in HMC().adapters(True)] == [Multiplicative]
    assert HMC().adapters(False)[0].target == 0.8
    assert HMC().adapters(True)[0].target_rejection == pytest.approx(0.2)
    assert Langevin().adapters(False)[0].target == 0.574
    assert HMC(step_size=0.1).adapters(False) == HMC(step_size=0.1).adapters(True) == ()
    own = ChEES()
    assert HMC(adaptation=own).adapters(True) == (own,)
