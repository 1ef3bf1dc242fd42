"""Laws that every sampler inherits by its row in `sampler_cases`: of arrays.

Chains do not see each other, and one that goes bad stays alone; inputs are left alone; float32
follows float64; a checkpoint goes on to the bit; NumPy and CuPy take the same steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import standin
from sampler_cases import (
    LADDER,
    PAIRS,
    ROWS,
    TRUTHS,
    Row,
    Truth,
    begin,
    gaussian,
    over,
    pair_id,
    replicas,
    rng_at,
)
from sklearn.base import clone
from streams import ReplayStream

from energyscape.backend import HostStream, Purpose, Stream, stream, to_host
from energyscape.samplers import HMC, Metropolis, Moments, Trace
from energyscape.samplers.base import Chains
from energyscape.samplers.target import FunctionTarget

# ---------------------------------------------------------------- chains do not see each other


class Recorder(Stream):
    """A host stream that keeps what it gave."""

    def __init__(self) -> None:
        self._host, self.given = HostStream(3, 0, 0), []  # type: ignore[var-annotated]

    def uniform(self, shape: Any = None, dtype: Any = np.float32, out: Any = None) -> Any:
        self.given.append(self._host.uniform(shape, dtype, out).copy())
        return self.given[-1].copy()

    def normal(self, shape: Any = None, dtype: Any = np.float32, out: Any = None) -> Any:
        self.given.append(self._host.normal(shape, dtype, out).copy())
        return self.given[-1].copy()


class OneChain(Stream):
    """One chain's part of what a `Recorder` gave; what all chains share, such as an order, is
    asked for in the same shape by one chain as by many."""

    def __init__(self, given: list[np.ndarray], chain: int) -> None:
        self._given, self._chain = iter(given), chain

    def uniform(self, shape: Any = None, dtype: Any = np.float32, out: Any = None) -> Any:
        noise, shape = next(self._given), (shape,) if isinstance(shape, int) else tuple(shape)
        if noise.shape == shape:
            return noise.copy()
        rows = slice(self._chain * shape[0], (self._chain + 1) * shape[0])
        assert noise[rows].shape == shape
        return noise[rows].copy()

    normal = uniform


def _one(chains: Chains, i: int) -> Chains:
    own = {key: value[i : i + 1] for key, value in chains.own.items()}
    return Chains(chains.x[i : i + 1], own, dict(chains.shared))


@over(PAIRS)
def test_chains_at_once_are_chains_one_by_one(row: Row, truth: Truth) -> None:
    """Fed the same noise. Products of one row and of many round differently: 1e-9, over 3 steps."""
    sampler, target, chains = begin(row, truth, 7)
    alone = {i: _one(chains, i) for i in (0, 4)}  # even: the parity that a case by rows looks at
    recorder = Recorder()
    for _ in range(3):
        sampler.step(target, chains, recorder)
    for i, single in alone.items():
        noise = OneChain(recorder.given, i)
        for _ in range(3):
            sampler.step(truth.target(1), single, noise)
        for x, other in zip(replicas(single), replicas(chains), strict=True):
            np.testing.assert_allclose(x[0], other[i], rtol=1e-9, atol=1e-9)


class Poisoned(FunctionTarget):
    """The same functions, but for some chains what they give is ``value`` once they move."""

    def __init__(self, target: Any, start: np.ndarray, value: float) -> None:
        super().__init__(self._bad_energy, self._bad_grad, start.shape[1:], target.domain)
        self.plain, self.start, self.value = target, start, value

    def _away(self, x: np.ndarray) -> np.ndarray:
        each = len(x) // len(self.start)
        moved = (x != np.repeat(self.start, each, axis=0)).reshape(len(x), -1).any(axis=1)
        chain = np.arange(len(x)) // each
        return moved & (chain % 3 == 1)

    def _bad_energy(self, x: np.ndarray) -> np.ndarray:
        return np.where(self._away(x), self.value, self.plain.energy(x))

    def _bad_grad(self, x: np.ndarray) -> np.ndarray:
        away = self._away(x).reshape(-1, *[1] * (x.ndim - 1))
        return np.where(away, self.value, self.plain.input_grad(x))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@over([(r, t) for r, t in PAIRS if r.invariant and t.name in ("Ising", "Gaussian", "product of t")])
def test_a_chain_gone_bad_rejects_and_leaves_the_others_alone(
    row: Row, truth: Truth, value: float
) -> None:
    sampler, target, chains = begin(row, truth, 10)
    x = chains.x
    if "hot" in chains.own:  # all replicas where their chain begins
        chains.own["hot"] = np.repeat(x[:, None], len(LADDER) - 1, axis=1)
    other = Chains(x, dict(chains.own), dict(chains.shared))
    bad = np.arange(10) % 3 == 1
    poisoned = Poisoned(target, x, value)
    for step in range(3):
        sampler.step(target, chains, rng_at(step))
        sampler.step(poisoned, other, rng_at(step))
    for good, mixed in zip(replicas(chains), replicas(other), strict=True):
        assert np.array_equal(mixed[bad], x[bad])
        assert np.array_equal(mixed[~bad], good[~bad])
    for key, held in other.own.items():
        assert np.array_equal(held[~bad], chains.own[key][~bad])
        assert np.isfinite(held).all()


# ---------------------------------------------------------------- arrays in, arrays out


@over(PAIRS)
def test_inputs_are_left_alone_and_not_handed_out(row: Row, truth: Truth) -> None:
    sampler, target = row.make(truth), truth.target(6)
    settings = clone(sampler).get_params()
    x = truth.draw(6, np.random.default_rng(0), 1.0)
    x.flags.writeable = False
    for n_steps in (1, 2):
        run = sampler.run(target, x, n_steps, 5)
        for replica in replicas(run.chains):
            assert not np.shares_memory(replica, x), f"after {n_steps} steps"
        assert run.x.shape == x.shape and run.x.dtype == x.dtype
    again = sampler.run(target, x, 2, 5)
    assert np.array_equal(again.x, run.x), "one seed, two results"
    assert repr(sampler.get_params()) == repr(settings), "a run changes the sampler"


def test_a_run_of_no_steps_hands_out_a_copy() -> None:
    x = np.zeros((3, 8))
    assert not np.shares_memory(HMC(2, 0.1).run(gaussian(), x, 0, 0).x, x)


class Narrow:
    """NumPy, but what is put on the device is float32."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def asarray(a: Any) -> np.ndarray:
        return a.astype(np.float32) if a.dtype == np.float64 else a


class Rounded(ReplayStream):
    """The noise of a float64 run, in whatever dtype is asked for."""

    def uniform(self, shape: Any = None, dtype: Any = np.float32, out: Any = None) -> Any:
        return self._give(self._host.uniform(shape, np.float64).astype(dtype), out)

    def normal(self, shape: Any = None, dtype: Any = np.float32, out: Any = None) -> Any:
        return self._give(self._host.normal(shape, np.float64).astype(dtype), out)


@over(PAIRS)
def test_float32_follows_float64(row: Row, truth: Truth) -> None:
    """Two steps with the same noise: positions to 1e-4 of the spread, energies in float64."""
    sampler, target, chains = begin(row, truth, 8)
    narrow = truth.target(8, Narrow())
    assert narrow.energy(chains.x.astype(np.float32)).dtype == np.float64
    own = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in chains.own.items()}
    single = Chains(chains.x.astype(np.float32), own, dict(chains.shared))
    noise, again = Rounded(np), Rounded(np)
    for _ in range(2):
        sampler.step(target, chains, noise)
        sampler.step(narrow, single, again)
    assert single.cache is None or single.cache[1].dtype == np.float64
    for x, wide in zip(replicas(single), replicas(chains), strict=True):
        assert x.dtype == np.float32
        np.testing.assert_allclose(x / truth.spread, wide / truth.spread, rtol=0, atol=1e-4)


@over(PAIRS)
def test_a_checkpoint_goes_on_to_the_bit(row: Row, truth: Truth) -> None:
    """Through `carry` and back, where the cache is left out."""
    sampler, target, chains = begin(row, truth, 9)
    for adapter in sampler.adapters(persistent=True):
        adapter.start(chains, 0)
    for step in range(3):
        sampler.step(target, chains, rng_at(step))
    kept = {key: np.array(value) for key, value in chains.carry().items()}
    for step in range(3, 6):
        sampler.step(target, chains, rng_at(step))
    resumed = Chains.of(kept)
    for step in range(3, 6):
        sampler.step(truth.target(9), resumed, rng_at(step))
    assert resumed.carry().keys() == chains.carry().keys()
    for key, value in chains.carry().items():
        np.testing.assert_array_equal(resumed.carry()[key], value, err_msg=key)


@pytest.mark.parametrize("row", ROWS, ids=pair_id)
def test_what_was_carried_is_not_written_to(row: Row) -> None:
    """A trainer goes back to what it kept, after steps that went wrong."""
    sampler, target, chains = begin(row, TRUTHS[row.truths[0]], 9)
    sampler.step(target, chains, rng_at())
    kept = chains.carry()
    copied = {key: np.array(value) for key, value in kept.items()}
    for step in range(1, 4):
        sampler.step(target, chains, rng_at(step))
    for key, value in kept.items():
        np.testing.assert_array_equal(copied[key], value, err_msg=key)


@pytest.mark.parametrize("row", ROWS, ids=pair_id)
def test_chains_may_begin_anew(row: Row) -> None:
    """`restart` at other points leaves nothing of the old ones, but for what all chains share."""
    truth = TRUTHS[row.truths[0]]
    sampler, target, chains = begin(row, truth, 9)
    for step in range(2):
        sampler.step(target, chains, rng_at(step))
    chains.x = truth.draw(9, np.random.default_rng(5), 1.0)
    sampler.restart(chains, rng_at(2))
    fresh = sampler.start(target, chains.x, rng_at(2))
    assert chains.own.keys() == fresh.own.keys()
    fresh.own, fresh.shared = dict(chains.own), dict(chains.shared)
    for step in range(3, 6):
        sampler.step(target, chains, rng_at(step))
        sampler.step(target, fresh, rng_at(step))
    for new, old in zip(replicas(fresh), replicas(chains), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("row", ROWS, ids=pair_id)
def test_a_run_is_its_steps(row: Row) -> None:
    truth = TRUTHS[row.truths[0]]
    sampler, target = row.make(truth), truth.target(6)
    x = truth.draw(6, np.random.default_rng(0), 1.0)
    run = sampler.run(target, x, 5, rng_at())
    rng = rng_at()
    chains = sampler.start(target, x, rng)
    rates = [sampler.step(target, chains, rng).get("acceptance") for _ in range(5)]
    assert np.array_equal(run.x, chains.x)
    if rates[0] is not None:
        assert run.rates["acceptance"] == pytest.approx(np.mean(rates))


# ---------------------------------------------------------------- NumPy and CuPy


def _on(xp: Any, chains: Chains) -> Chains:
    own = {key: xp.asarray(value) for key, value in chains.own.items()}
    return Chains(xp.asarray(chains.x), own)


@over(PAIRS)
def test_cupy_takes_the_steps_of_numpy(row: Row, truth: Truth, cupy: Any) -> None:
    """Three steps on the same noise: bits alike, reals to 1e-9 (sums in another order)."""
    sampler, target, chains = begin(row, truth, 6)
    there = truth.target(6, cupy)
    mine, other = ReplayStream(np), ReplayStream(cupy)
    moved = sampler.start(there, cupy.asarray(chains.x), ReplayStream(cupy))
    moved.own |= _on(cupy, chains).own
    for _ in range(3):
        sampler.step(target, chains, mine)
        info = sampler.step(there, moved, other)
    assert all(isinstance(value, cupy.ndarray) for value in info.values())
    for key, value in {"x": moved.x, **moved.own}.items():
        assert isinstance(value, cupy.ndarray), key
        wanted = chains.x if key == "x" else chains.own[key]
        np.testing.assert_allclose(to_host(value), wanted, rtol=1e-9, atol=1e-9, err_msg=key)


@over([(row, truth) for row, truth in PAIRS if truth.name in row.truths[:1]])
def test_a_step_does_not_wait_for_the_gpu(row: Row, truth: Truth, fake_cupy: Any) -> None:
    sampler, target = row.make(truth), truth.target(6, fake_cupy)
    x = fake_cupy.asarray(truth.draw(6, np.random.default_rng(0), 1.0))
    rng = stream(0, Purpose.SAMPLE, 0, "cuda:0")
    chains = sampler.start(target, x, rng)
    before = standin.Counter.syncs
    for _ in range(2):
        sampler.step(target, chains, rng)
    inner = getattr(sampler, "inner", sampler)
    # Metropolis asks the stream for the order of its blocks, once a sweep.
    assert standin.Counter.syncs - before == (2 if isinstance(inner, Metropolis) else 0)


@over([(row, truth) for row, truth in PAIRS if truth.name in row.truths[:2]])
def test_a_whole_run_works_on_the_gpu(row: Row, truth: Truth, cupy: Any) -> None:
    """Checks, start, steps, rates and books, with the device's own random numbers."""
    sampler, target = row.make(truth), truth.target(6, cupy)
    x = cupy.asarray(truth.draw(6, np.random.default_rng(0), 1.0))
    run = sampler.run(target, x, 3, 0, reducers=[Trace(), Moments()])
    assert isinstance(run.x, cupy.ndarray) and run.x.shape == x.shape
    assert np.isfinite(to_host(run.x)).all()
    assert run.reduced[0].shape == (6, 3, *x.shape[1:])
    assert all(isinstance(value, np.ndarray | float) for value in run.rates.values())
    assert all(isinstance(value, np.ndarray) for value in run.shared.values())
