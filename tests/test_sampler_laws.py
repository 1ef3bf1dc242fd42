"""Laws that every sampler inherits by its row in `sampler_cases`: of distributions.

Chains at exact draws stay exact draws, and the same test sees a temperature that is 5 % wrong;
with coordinates held, chains draw the conditional. Known bugs of other libraries are planted, and
are seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
import sampler_cases
from goodness import ALARM, displacement, misfit
from sampler_cases import (
    GATED,
    GATED_AT,
    MEAN,
    PAIRS,
    ROWS,
    TRUTHS,
    Row,
    Truth,
    begin,
    betas_of,
    gaussian,
    over,
    pair_id,
    replicas,
    rng_at,
)
from scipy.stats import kstest

from energyscape.models import MPoT
from energyscape.registry import registered
from energyscape.samplers import HMC, Clamped, Langevin, Posterior, from_functions, hmc
from energyscape.samplers.base import Chains, Sampler

INVARIANT = [(row, truth) for row, truth in PAIRS if row.invariant]
HELD = [(row, truth) for row, truth in PAIRS if "held" in truth.name]


def test_every_sampler_has_a_row() -> None:
    tested = {type(row.make(truth)) for row, truth in PAIRS}
    assert tested == {
        cls
        for cls in registered(Sampler).values()
        if "energyscape" in cls.__module__ and cls.follows_energy
    }
    unused = set(TRUTHS) - {name for row in ROWS for name in row.truths}
    assert not unused


# ---------------------------------------------------------------- exact draws stay exact


@over(INVARIANT)
def test_exact_draws_do_not_drift(row: Row, truth: Truth) -> None:
    """After one step and after four, at every temperature of a ladder; and a wrong one shows."""
    sampler, target, chains = begin(row, truth, truth.n)
    start, rng = chains.x, rng_at()
    betas = betas_of(sampler)
    for step in range(4):
        sampler.step(target, chains, rng)
        if step in (0, 3):
            for x, beta in zip(replicas(chains), betas, strict=True):
                off = misfit(truth, x, beta / row.temperature, checks=2 * len(betas))
                assert off < 1, f"{off:.2f} after {step + 1} steps at β = {beta}"
    moved = displacement(truth, chains.x, start)
    assert moved.min() > row.moves, f"a coordinate hardly moves: {moved}"


@over(INVARIANT)
def test_a_wrong_temperature_is_seen(row: Row, truth: Truth) -> None:
    """The negative control of the law above: as many chains, at 1.05 times the temperature."""
    sampler, target, chains = begin(row, truth, truth.n)
    if len(betas_of(sampler)) > 1:
        chains.shared["betas"] = chains.shared["betas"] / truth.heat
    else:
        target = target.at(1 / truth.heat)
    rng, steps = rng_at(), row.slow * truth.slowness
    for step in range(1, steps + 1):
        sampler.step(target, chains, rng)
        if step * 5 % steps < 5 and misfit(truth, chains.x, 1 / row.temperature) > 1:
            return
    pytest.fail(f"a temperature {truth.heat} times too high is not seen in {steps} steps")


@pytest.mark.parametrize("row", ROWS, ids=pair_id)
def test_samplers_say_what_they_are(row: Row) -> None:
    sampler = row.make(TRUTHS[row.truths[0]])
    assert (sampler.invariant, sampler.reversible) == (row.invariant, row.reversible)


def test_unadjusted_langevin_has_the_variance_of_its_step() -> None:
    """N(0, s²) comes out with s²/(1 - ε/2s²) exactly, and the test can tell that from s²."""
    s, step = np.array([0.5, 1.0, 2.0]), 0.1
    target = from_functions(lambda x: 0.5 * (x * x / s**2).sum(axis=1), lambda x: x / s**2)
    wrong = s**2 / (1 - step / (2 * s**2))
    start = np.random.default_rng(0).standard_normal((50_000, 3)) * np.sqrt(wrong)
    x = Langevin(step, adjusted=False).run(target, start, 100, rng_at()).x
    assert min(kstest(u, "norm", (0, v)).pvalue for u, v in zip(x.T, wrong**0.5, strict=True)) > (
        ALARM / 3
    )
    assert kstest(x[:, 0], "norm", (0, s[0])).pvalue < ALARM
    # Warm: the same step at T = 2 doubles both.
    x = Langevin(step, 2.0, adjusted=False).run(target, np.sqrt(2) * start, 100, rng_at()).x
    assert min(
        kstest(u, "norm", (0, np.sqrt(2) * v)).pvalue for u, v in zip(x.T, wrong**0.5, strict=True)
    ) > (ALARM / 3)


# ---------------------------------------------------------------- broken samplers are seen


class NoFlip(HMC):
    """A rejected proposal must turn the momentum round; this one does not."""

    def step(self, target: Any, chains: Chains, rng: Any, passed: Any = None) -> Any:
        info = super().step(target, chains, rng, passed)
        z = chains.own["momentum"]
        chains.own["momentum"] = np.where(info["accepted"][:, None], z, -z)
        return info


def test_a_missing_flip_of_the_momentum_is_seen() -> None:
    truth = TRUTHS["Gaussian"]
    row = next(row for row in ROWS if row.name == "HMC with persistence")
    settings = row.make(truth).get_params()
    for cls, broken in ((HMC, False), (NoFlip, True)):
        again = Row("", lambda t, cls=cls: cls(**settings), ())  # type: ignore[misc]
        sampler, target, chains = begin(again, truth, truth.n)
        rng = rng_at()
        rates = [sampler.step(target, chains, rng)["acceptance"].mean() for _ in range(12)]
        assert np.mean(rates) < 0.7, "without rejections nothing is tested"
        assert (misfit(truth, chains.x) > 1) is broken


@pytest.mark.parametrize("name", ["HMC without jitter", "Langevin"])
def test_a_wrong_half_step_at_one_end_is_seen(name: str, monkeypatch: Any) -> None:
    right = hmc.trajectory

    def wrong(target: Any, x: Any, grad: Any, z: Any, scale: Any, *rest: Any) -> Any:
        """The last kick is a whole one."""
        end = right(target, x, grad, z, scale, *rest)
        end.z = end.z - 0.5 * scale * end.grad
        return end

    monkeypatch.setattr(hmc, "trajectory", wrong)
    truth = TRUTHS["Gaussian"]
    row = next(row for row in ROWS if row.name == name)
    sampler, target, chains = begin(row, truth, truth.n)
    rng = rng_at()
    for _ in range(8):
        sampler.step(target, chains, rng)
    assert misfit(truth, chains.x) > 1


def _ignoring_tags(cls: Any) -> Any:
    def at_start(self: Any, target: Any, chains: Chains, passed: Any) -> Any:
        cached = chains.cache
        return cls._at_start(self, target, chains, passed) if cached is None else cached[1:]

    return type("Stale", (cls,), {"__init__": cls.__init__, "_at_start": at_start})


@pytest.mark.parametrize("changed", ["temperature", "parameters"])
@pytest.mark.parametrize("sampler", [HMC(3, 0.25), Langevin(0.025)], ids=lambda s: type(s).__name__)
def test_energies_of_another_target_are_not_used(sampler: Any, changed: str) -> None:
    """Exact draws whose cache was filled under another target, by a step that none accepted."""
    truth = TRUTHS["Gaussian"]
    target = truth.target(truth.n)
    other = target.at(0.5) if changed == "temperature" else gaussian(mean=MEAN + 0.3)
    stale = _ignoring_tags(type(sampler))(**sampler.get_params())
    for kernel, broken in ((sampler, False), (stale, True)):
        x, rng = truth.draw(truth.n, np.random.default_rng(0), 1.0), rng_at()
        chains = kernel.start(target, x, rng)
        right = chains.shared["step_size"]
        chains.shared["step_size"] = right * 1e4
        kernel.step(other, chains, rng)
        assert np.array_equal(chains.x, x)
        chains.shared["step_size"] = right
        for _ in range(2):
            kernel.step(target, chains, rng)
        assert (misfit(truth, chains.x) > 1) is broken


class OneBuffer:
    """A function that writes all its results for one number of points to one array."""

    def __init__(self, function: Any) -> None:
        self._function, self._buffers = function, {}  # type: ignore[var-annotated]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        result = self._function(x)
        buffer = self._buffers.setdefault(len(x), np.empty_like(result))
        buffer[...] = result
        return buffer


@pytest.mark.parametrize("sampler", [HMC(3, 0.25), HMC(1, 0.3, persistence=0.5), Langevin(0.025)])
def test_energies_in_one_buffer_are_copied(sampler: Any) -> None:
    plain = gaussian()
    x = TRUTHS["Gaussian"].draw(50, np.random.default_rng(0), 1.0)
    wanted = sampler.run(plain, x, 5, rng_at()).x
    pair = (OneBuffer(plain.energy), plain.input_grad)
    np.testing.assert_array_equal(sampler.run(pair, x, 5, rng_at()).x, wanted)


def test_a_gradient_that_is_its_argument_is_copied() -> None:
    """∂(x²/2)/∂x = x: what a function returns may be the very array that is moved next."""
    x = np.random.default_rng(0).standard_normal((50, 3))
    for sampler in (HMC(3, 0.5), Langevin(0.2), Langevin(0.2, adjusted=False)):
        same = sampler.run((lambda x: 0.5 * (x * x).sum(axis=1), lambda x: x), x, 5, rng_at()).x
        copy = sampler.run((lambda x: 0.5 * (x * x).sum(axis=1), np.copy), x, 5, rng_at()).x
        np.testing.assert_array_equal(same, copy)


class Forgetful(MPoT):
    """Draws all coordinates given h, as if those that are held said nothing of the others."""

    def sample_visible_free(
        self, params: Any, h: Any, rng: Any, x: Any, free: Any, *at: Any
    ) -> Any:
        return self.sample_visible(params, h, rng, *at)


@pytest.mark.parametrize("cls", [MPoT, Forgetful])
def test_held_coordinates_that_say_nothing_of_the_others_are_seen(cls: type) -> None:
    truth = TRUTHS["MPoT"]
    x = truth.draw(truth.n, np.random.default_rng(3), 1.0)
    model = cls(**GATED["MPoT"].get_params())
    target = Clamped(model.target(GATED_AT["MPoT"]), np.arange(x.shape[1]) < 2, x)
    moved = SWEEPING.make(truth).run(target, x, 3, rng_at()).x
    assert (misfit(truth, moved) > 1) is (cls is Forgetful)


REALS = [truth for truth in TRUTHS.values() if truth.log_p is None]


@pytest.mark.parametrize("truth", REALS, ids=pair_id)
def test_gradients_are_central_differences(truth: Truth) -> None:
    """At one β and at many; samplers stay right, but slow, under a wrong one, and no other law
    sees it. h = 1e-5 leaves 1e-6 of truncation and rounding."""
    x = truth.draw(6, np.random.default_rng(0), 1.0)
    for beta in (1.0, 0.4, np.linspace(0.2, 1.0, 6)):
        target, slopes = truth.target(6).at(beta), np.empty_like(x)
        for i in range(x[0].size):
            h = np.zeros(x[0].size)
            h[i] = 1e-5
            h = h.reshape(x.shape[1:])
            slopes.reshape(6, -1)[:, i] = (target.energy(x + h) - target.energy(x - h)) / 2e-5
        for grad in (target.input_grad(x), target.gradient()(x), target.energy_and_grad(x)[1]):
            np.testing.assert_allclose(grad, slopes, rtol=1e-6, atol=1e-6 * abs(slopes).max())


def test_the_gaussian_machine_draws_exactly() -> None:
    """`sample_exact` and `log_partition` against the mixture written out."""
    truth = TRUTHS["GaussianRBM"]
    x = sampler_cases.MODES_RBM.sample_exact(sampler_cases.MODES, truth.n, rng_at())
    assert misfit(truth, x) < 1
    assert misfit(truth, x * 1.02) > 1
    log_z = sampler_cases.MODES_RBM.log_partition(sampler_cases.MODES)
    assert log_z == pytest.approx(truth.log_z, abs=1e-9)
    log_p = -truth.target(5).energy(x[:5]) - log_z
    np.testing.assert_allclose(log_p, oracles.gaussian_rbm_log_p(sampler_cases.MODES, x[:5]))


# ---------------------------------------------------------------- coordinates that are held


@over(HELD)
def test_held_coordinates_are_held_to_the_bit(row: Row, truth: Truth) -> None:
    """In every replica, for masks of one shape and for masks of each row."""
    sampler, target, chains = begin(row, truth, 50)
    rng, start = rng_at(), replicas(chains)
    for _ in range(5):
        sampler.step(target, chains, rng)
    held = np.broadcast_to(target.mask, chains.x.shape)
    assert held.any() and not held.all()
    for x, x0 in zip(replicas(chains), start, strict=True):
        assert np.array_equal(x[held], x0[held])
        assert np.array_equal(x[held], np.broadcast_to(target.values, x.shape)[held])
        assert (x[~held] != x0[~held]).any()


ALONE = [row for row in ROWS if row.invariant and not row.name.startswith("tempered")]


SWEEPING = next(row for row in ROWS if row.name == "Gibbs")


@pytest.mark.parametrize(
    ("row", "truth"),
    [(row, TRUTHS[row.truths[0]]) for row in ALONE] + [(SWEEPING, TRUTHS[n]) for n in GATED],
    ids=pair_id,
)
def test_exact_draws_with_each_row_held_at_itself_do_not_drift(row: Row, truth: Truth) -> None:
    """Every chain moves its own half of the coordinates given the others: joint draws stay so.

    Hot replicas have no such law, so that ladders are left to the cases with masks of a formula.
    """
    n, generator = truth.n, np.random.default_rng(3)
    x = truth.draw(n, generator, 1 / row.temperature)
    mask = generator.random(x.shape) < 0.5
    sampler = row.make(truth)
    target = Clamped(truth.target(n), mask, x)
    moved = sampler.run(target, x, 3, rng_at()).x
    assert np.array_equal(moved[mask], x[mask])
    assert misfit(truth, moved, 1 / row.temperature) < 1
    assert (displacement(truth, moved, x) > 0.2 * row.moves).all()
    # Negative control: too warm by a fifth, which moves half of the coordinates only.
    target, rng = target.at(1 / 1.2), rng_at()
    chains = sampler.start(target, x, rng)
    for _ in range(row.slow):
        sampler.step(target, chains, rng)
    assert misfit(truth, chains.x, 1 / row.temperature) > 1


@pytest.mark.parametrize(
    "row", [r for r in ALONE if r.name.startswith(("HMC", "Langevin"))], ids=pair_id
)
@pytest.mark.parametrize("name", ["GaussianRBM", "product of t", "Gaussian"])
def test_draws_given_their_own_observations_do_not_drift(row: Row, name: str) -> None:
    """x from the prior and y = x + σξ, row by row: steps on p(x|y) leave the prior of x alone."""
    truth = TRUTHS[name]
    n, generator, sigma = 10_000, np.random.default_rng(4), 2 * truth.step
    sampler = row.make(truth)
    if row.temperature != 1:
        sampler.set_params(temperature=1.0)
    x = truth.draw(n, generator, 1.0)
    y = x + sigma * generator.standard_normal(x.shape)
    moved = sampler.run(Posterior(truth.target(n), y, sigma), x, 4, rng_at()).x
    assert misfit(truth, moved) < 1
    assert displacement(truth, moved, x).min() > 0.5 * row.moves
    # Negative control: a pull towards y of the wrong strength.
    wrong = Posterior(truth.target(n), y, 0.7 * sigma)
    assert misfit(truth, sampler.run(wrong, x, 30, rng_at()).x) > 1


@over([pair for pair in HELD if pair[1].name in ("RBM held", "Gaussian held")])
def test_values_are_held_wherever_the_chains_begin(row: Row, truth: Truth) -> None:
    """A start that is not at the held values is put there, or refused, but never sampled from."""
    sampler, target = row.make(truth), truth.target(10)
    x = truth.draw(10, np.random.default_rng(0), 1.0)
    x[:, target.mask] = 1 - x[:, target.mask]
    try:
        run = sampler.run(target, x, 3, rng_at())
    except ValueError as error:
        assert "held" in str(error)
        return
    for replica in replicas(run.chains):
        assert np.array_equal(replica[:, target.mask], target.hold(x)[:, target.mask])
