"""Parallel tempering: the swap is in detailed balance, books are right, ladders can be tuned.

That replicas at every temperature keep their distribution is among the laws of
test_sampler_laws.py, with and without a base measure.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from goodness import ALARM, SIGMAS, misfit
from sampler_cases import LADDER, TRUTHS, Row, begin, gaussian, replicas
from scipy.special import logsumexp
from scipy.stats import binom

from energyscape.backend import Purpose, Stream, stream
from energyscape.models import RBM
from energyscape.samplers import (
    HMC,
    Langevin,
    Metropolis,
    ParallelTempering,
    from_functions,
)
from energyscape.samplers.base import Chains

# ---------------------------------------------------------------- the swap by itself


class Given(Stream):
    """One uniform for every chain, as it is told."""

    def __init__(self, u: np.ndarray) -> None:
        self.u = u

    def uniform(self, shape: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        assert shape == (len(self.u), 1), "one pair of replicas has a turn"
        return self.u[:, None].copy()


def _by_table(spins: int) -> tuple[Any, Any]:
    """Any energies at all, multiplied by β; and their log-probabilities at β."""
    table = 1.5 * np.random.default_rng(0).standard_normal(1 << spins)

    def energy(x: np.ndarray) -> np.ndarray:
        return table[(x @ (1 << np.arange(spins))).astype(int)]

    target = from_functions(energy, event_shape=(spins,), domain="binary")
    return target, lambda beta: -beta * table - logsumexp(-beta * table)


def _by_path(spins: int) -> tuple[Any, Any]:
    """An RBM on the path from its base measure: here F_β is neither βF nor linear in β."""
    params = {k: v[:spins] if v.shape[0] == 10 else v for k, v in oracles.strong_rbm().items()}
    base = RBM(6).base_measure(params)
    target = RBM(6).target(params, base)
    return target, lambda beta: oracles.rbm_path_log_p(params, base["b"], beta)


def _swap(
    sampler: Any, target: Any, joint: np.ndarray, u: np.ndarray, turn: int, betas: np.ndarray
) -> np.ndarray:
    """Every joint state after one turn of swaps, given the uniform numbers."""
    n, replicas = joint.shape[:2]
    rows = joint.reshape(n * replicas, -1)
    shared = {"betas": betas, "turn": np.array(turn), "round_trips": np.zeros(())}
    shared |= {"swaps": np.zeros(replicas - 1), "proposals": np.zeros(replicas - 1)}
    own = {"hot": joint[:, 1:], "visited": np.zeros((n, replicas), np.int8)}
    passed = target.at(np.tile(betas, n)).forward(rows)
    order = sampler._swapped(Chains(joint[:, 0], own, shared), passed, Given(u))
    return rows[order.reshape(-1)].reshape(joint.shape)


def _imbalance(sampler: Any, target: Any, log_p: Any, spins: int, turn: int) -> float:
    """Largest |π(s)T(s, s') - π(s')T(s', s)| of the swap over all joint states, T by bisection of
    the uniform number at which each state begins to swap."""
    ladder = np.array(LADDER if spins == 2 else LADDER[::2])
    replicas = len(ladder)
    joint = oracles.states(replicas * spins).reshape(-1, replicas, spins)
    low, high = np.zeros(len(joint)), np.full(len(joint), np.nextafter(1, 0))
    after = _swap(sampler, target, joint, high, turn, ladder)
    differs = (after != joint).any(axis=(1, 2))
    for _ in range(55):
        middle = 0.5 * (low + high)
        swapped = (_swap(sampler, target, joint, middle, turn, ladder) != joint).any(axis=(1, 2))
        low, high = np.where(swapped, low, middle), np.where(swapped, middle, high)
    number = (joint.reshape(len(joint), -1) @ (1 << np.arange(replicas * spins))).astype(int)
    goes_to = (after.reshape(len(joint), -1) @ (1 << np.arange(replicas * spins))).astype(int)
    assert np.array_equal(number[goes_to][goes_to], number), "a swap undoes itself"
    rate = np.where(differs, 1 - high, 0.0)
    one = (joint @ (1 << np.arange(spins))).astype(int)
    pi = np.exp(sum(log_p(beta)[one[:, r]] for r, beta in enumerate(ladder)))
    assert pi.sum() == pytest.approx(1)
    return float(abs(pi * rate - pi[goes_to] * rate[goes_to]).max())


class Tampered:
    """A pass whose energies go through ``rule(own, at_beta)``."""

    def __init__(self, passed: Any, rule: Any, own: np.ndarray | None = None) -> None:
        self._passed, self._rule, self._own = passed, rule, own

    def at(self, beta: Any) -> Any:
        return Tampered(self._passed.at(beta), self._rule, self._passed.energy())

    def energy(self) -> np.ndarray:
        energy = self._passed.energy()
        return self._rule(energy if self._own is None else self._own, energy)


class WrongSign(ParallelTempering):
    """exp(+a) for exp(-a)."""

    def _swapped(self, chains: Any, passed: Any, rng: Any) -> Any:
        return super()._swapped(chains, Tampered(passed, lambda own, other: -other), rng)


class OneSided(ParallelTempering):
    """Energies are exchanged at the lower temperature of a pair only."""

    def _swapped(self, chains: Any, passed: Any, rng: Any) -> Any:
        odd = np.arange(len(passed.x)) % len(chains.shared["betas"]) % 2 == 1
        rule = lambda own, other: np.where(odd, own, other)  # noqa: E731
        return super()._swapped(chains, Tampered(passed, rule), rng)


class Multiplied:
    """βF for F_β."""

    def __init__(self, plain: Any, beta: Any) -> None:
        self._plain, self.beta = plain, beta

    def at(self, beta: Any) -> Any:
        return Multiplied(self._plain, beta)

    def energy(self) -> np.ndarray:
        return self.beta * self._plain.energy()


class OfMarginals(ParallelTempering):
    """The rule for a multiplied energy, where it is the joint energy that is multiplied."""

    def _swapped(self, chains: Any, passed: Any, rng: Any) -> Any:
        return super()._swapped(chains, Multiplied(passed.at(1.0), passed.beta), rng)


@pytest.mark.parametrize(("spins", "turn"), [(3, 0), (2, 0), (2, 1)])
@pytest.mark.parametrize(
    ("make", "controls"),
    [(_by_table, (WrongSign, OneSided)), (_by_path, (WrongSign, OfMarginals))],
    ids=["table", "path"],
)
def test_the_swap_is_in_detailed_balance(make: Any, controls: Any, spins: int, turn: int) -> None:
    """Two replicas of three spins, and both turns of three replicas of two: to rounding."""
    target, log_p = make(spins)
    assert _imbalance(ParallelTempering(), target, log_p, spins, turn) < 1e-14
    for wrong in controls:
        assert _imbalance(wrong(), target, log_p, spins, turn) > 1e-4


@pytest.mark.parametrize(
    ("wrong", "name"), [(WrongSign, "RBM"), (OfMarginals, "RBM path"), (OneSided, "Gaussian")]
)
def test_a_wrong_swap_drifts(wrong: Any, name: str) -> None:
    """The law of exact draws sees it too."""
    truth = TRUTHS[name]
    inner = HMC(3, truth.step) if truth.log_p is None else Metropolis()
    row = Row("wrong", lambda t: wrong(inner, betas=LADDER), ())
    sampler, target, chains = begin(row, truth, truth.n)
    rng = stream(1, Purpose.SAMPLE)
    for _ in range(4):
        sampler.step(target, chains, rng)
    off = [misfit(truth, x, b) for x, b in zip(replicas(chains), LADDER, strict=True)]
    assert max(off) > 1


# ---------------------------------------------------------------- temperatures and the sampler


def test_a_temperature_of_its_own_does_not_spoil_the_ladder() -> None:
    """A sampler that leaves exp(-βF/T) alone must swap by the same energies, or be refused."""
    truth = TRUTHS["Gaussian"]
    row = Row(
        "warm",
        lambda t: ParallelTempering(Langevin(0.06, temperature=2.0), betas=LADDER),
        (),
        temperature=2.0,
    )
    try:
        sampler, target, chains = begin(row, truth, truth.n)
    except ValueError as error:
        assert "temperature" in str(error)
        return
    rng = stream(1, Purpose.SAMPLE)
    for _ in range(8):
        sampler.step(target, chains, rng)
    for x, beta in zip(replicas(chains), LADDER, strict=True):
        assert misfit(truth, x, beta / 2.0, checks=3) < 1


def _two_wells() -> Any:
    """0.3 N(-6, 1) + 0.7 N(6, 1)."""

    def parts(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.log(0.3) - 0.5 * (x[:, 0] + 6) ** 2, np.log(0.7) - 0.5 * (x[:, 0] - 6) ** 2

    def energy(x: np.ndarray) -> np.ndarray:
        return -np.logaddexp(*parts(x))

    def grad(x: np.ndarray) -> np.ndarray:
        left, right = parts(x)
        return x + 6 - 12 * np.exp(right - np.logaddexp(left, right))[:, None]

    return from_functions(energy, grad, (1,))


def test_a_ladder_crosses_where_one_chain_does_not() -> None:
    """All chains begin in the smaller well; afterwards 70 % are in the other."""
    n, start = 2000, np.full((2000, 1), -6.0)
    alone = HMC(5, 0.5).run(_two_wells(), start, 300, 0).x
    assert (alone > 0).mean() < 0.01
    betas = [1.0, 0.5, 0.2, 0.08, 0.03]
    run = ParallelTempering(HMC(5, 0.5), betas=betas).run(_two_wells(), start, 300, 0)
    crossed = int((run.x > 0).sum())
    assert binom.cdf(crossed, n, 0.7) > ALARM / 2 and binom.sf(crossed - 1, n, 0.7) > ALARM / 2
    assert run.rates["round_trips"] > 0
    assert run.rates["swap_rate"].shape == (4,) and (run.rates["swap_rate"] > 0.2).all()


# ---------------------------------------------------------------- books and ladders


def test_round_trips_are_counted() -> None:
    """Where every swap is accepted, replicas march: R of them make one trip each in 2R turns."""
    flat = from_functions(lambda x: np.zeros(len(x)), event_shape=(2,), domain="binary")
    sampler = ParallelTempering(Metropolis(), n_temperatures=4)
    run = sampler.run(flat, np.zeros((3, 2)), 400, 0)
    np.testing.assert_array_equal(run.rates["swap_rate"], 1)
    # The first 2R turns bring none home.
    assert run.rates["round_trips"] == pytest.approx(0.5 * (1 - 8 / 400), abs=2 / 400)


def test_two_replicas_swap_at_every_other_step() -> None:
    flat = from_functions(lambda x: np.zeros(len(x)), event_shape=(2,), domain="binary")
    run = ParallelTempering(Metropolis(), betas=[1.0, 0.5]).run(flat, np.zeros((3, 2)), 10, 0)
    assert run.chains.shared["proposals"].tolist() == [15]
    assert run.rates["swap_rate"].tolist() == [1]


def test_swap_rates_are_those_of_the_exact_distribution() -> None:
    """From exact draws: E min(1, e^a) of every pair by fresh pairs of draws."""
    truth = TRUTHS["Gaussian"]
    row = Row("", lambda t: ParallelTempering(HMC(3, t.step), betas=LADDER), ())
    sampler, target, chains = begin(row, truth, truth.n)
    for step in range(2):
        sampler.step(target, chains, stream(step, Purpose.SAMPLE))
    rates = sampler.summary(chains)["swap_rate"]
    rng = np.random.default_rng(5)
    for r, rate in enumerate(rates):
        cold, hot = (truth.target(1).energy(truth.draw(100_000, rng, b)) for b in LADDER[r : r + 2])
        p = np.exp(np.minimum(0, (LADDER[r] - LADDER[r + 1]) * (cold - hot)))
        error = np.sqrt(p.mean() * (1 - p.mean()) / truth.n + p.var() / 100_000)
        assert abs(rate - p.mean()) < SIGMAS * error


@pytest.mark.slow
def test_a_tuned_ladder_has_equal_swap_rates() -> None:
    """Each within 10 % of their mean, on a ladder that begins at rates from 0.01 to 0.6."""
    target = gaussian(mean=np.zeros(20), cov=np.diag(np.linspace(0.5, 2, 20)))
    start = np.random.default_rng(0).standard_normal((100, 20))
    sampler = ParallelTempering(HMC(5, 0.5), betas=np.linspace(1, 0.05, 6))
    before = sampler.run(target, start, 200, 1).rates["swap_rate"]
    assert before.min() < 0.05 and before.max() > 0.5, "the ladder is good as it is"
    tuned = sampler.tuned(target, start, random_state=2)
    ladder = tuned.ladder()
    assert (ladder[0], ladder[-1], len(ladder)) == (1.0, pytest.approx(0.05), 6)
    after = tuned.run(target, start, 600, 3, n_warmup=200).rates["swap_rate"]
    np.testing.assert_allclose(after / after.mean(), 1, atol=0.1)
    assert sampler.betas is not tuned.betas
