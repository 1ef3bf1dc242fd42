"""Laws that every sampler inherits by its row in `sampler_cases`.

Chains at exact draws stay exact draws, and the same test sees a temperature that is 5 % wrong;
held coordinates are held to the bit; chains do not see each other; a checkpoint goes on to the
bit; NumPy and CuPy take the same steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
import sampler_cases
import standin
from sampler_cases import (
    ALARM,
    LADDER,
    MEAN,
    PAIRS,
    ROWS,
    TRUTHS,
    Row,
    Truth,
    begin,
    betas_of,
    displacement,
    gaussian,
    misfit,
    pair_id,
    replicas,
)
from scipy.stats import kstest
from sklearn.base import clone
from streams import ReplayStream

from energyscape.backend import HostStream, Purpose, Stream, stream, to_host
from energyscape.registry import registered
from energyscape.samplers import HMC, Clamped, Langevin, Metropolis, from_functions, hmc
from energyscape.samplers.base import Chains, Sampler
from energyscape.samplers.target import FunctionTarget

INVARIANT = [(row, truth) for row, truth in PAIRS if row.invariant]
HELD = [(row, truth) for row, truth in PAIRS if "held" in truth.name]


def over(pairs: Any) -> Any:
    return pytest.mark.parametrize(("row", "truth"), pairs, ids=pair_id)


def rng_at(step: int = 0) -> Any:
    return stream(1, Purpose.SAMPLE, step)


def test_every_sampler_has_a_row() -> None:
    tested = {type(row.make(truth)) for row, truth in PAIRS}
    assert tested == {cls for cls in registered(Sampler).values() if "energyscape" in cls.__module__}
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
    rng = rng_at()
    for _ in range(row.slow * truth.slowness):
        sampler.step(target, chains, rng)
    assert misfit(truth, chains.x, 1 / row.temperature) > 1


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
@pytest.mark.parametrize(
    "sampler", [HMC(3, 0.25), Langevin(0.025)], ids=lambda s: type(s).__name__
)
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
@pytest.mark.parametrize("reused", ["gradient", "energy"])
def test_what_functions_return_is_copied(sampler: Any, reused: str) -> None:
    plain = gaussian()
    energy, grad = plain.energy, plain.input_grad
    pair = (OneBuffer(energy), grad) if reused == "energy" else (energy, OneBuffer(grad))
    x = TRUTHS["Gaussian"].draw(50, np.random.default_rng(0), 1.0)
    wanted = sampler.run(plain, x, 5, rng_at()).x
    np.testing.assert_array_equal(sampler.run(pair, x, 5, rng_at()).x, wanted)


def test_a_gradient_that_is_its_argument_is_copied() -> None:
    """∂(x²/2)/∂x = x: what a function returns may be the very array that is moved next."""
    x = np.random.default_rng(0).standard_normal((50, 3))
    for sampler in (HMC(3, 0.5), Langevin(0.2), Langevin(0.2, adjusted=False)):
        same = sampler.run((lambda x: 0.5 * (x * x).sum(axis=1), lambda x: x), x, 5, rng_at()).x
        copy = sampler.run((lambda x: 0.5 * (x * x).sum(axis=1), np.copy), x, 5, rng_at()).x
        np.testing.assert_array_equal(same, copy)


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


@pytest.mark.parametrize("row", [r for r in ROWS if r.invariant], ids=pair_id)
def test_exact_draws_with_each_row_held_at_itself_do_not_drift(row: Row) -> None:
    """Every chain moves its own half of the coordinates given the others: joint draws stay so.

    Hot replicas have no such law, so that ladders are left to the cases with masks of a formula.
    """
    truth = TRUTHS[row.truths[0]]
    if len(betas_of(row.make(truth))) > 1:
        pytest.skip("a ladder moves its replicas under different distributions")
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
@over([(r, t) for r, t in INVARIANT if t.name in ("Ising", "Gaussian", "product of t")])
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
    """Through `carry` and back, where the cache is left out; and a carry is not written to."""
    sampler, target, chains = begin(row, truth, 9)
    for adapter in sampler.adapters(persistent=True):
        adapter.start(chains, 0)
    for step in range(3):
        sampler.step(target, chains, rng_at(step))
    kept = chains.carry()
    copied = {key: np.array(value) for key, value in kept.items()}
    for step in range(3, 6):
        sampler.step(target, chains, rng_at(step))
    resumed = Chains.of({key: value.copy() for key, value in copied.items()})
    for step in range(3, 6):
        sampler.step(truth.target(9), resumed, rng_at(step))
    assert resumed.carry().keys() == chains.carry().keys()
    for key, value in chains.carry().items():
        np.testing.assert_array_equal(resumed.carry()[key], value, err_msg=key)
    for key, value in kept.items():
        np.testing.assert_array_equal(copied[key], value, err_msg=f"{key} was written to")


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
    from energyscape.samplers import Moments, Trace

    sampler, target = row.make(truth), truth.target(6, cupy)
    x = cupy.asarray(truth.draw(6, np.random.default_rng(0), 1.0))
    run = sampler.run(target, x, 3, 0, reducers=[Trace(), Moments()])
    assert isinstance(run.x, cupy.ndarray) and run.x.shape == x.shape
    assert np.isfinite(to_host(run.x)).all()
    assert run.reduced[0].shape == (6, 3, *x.shape[1:])
    assert all(isinstance(value, np.ndarray | float) for value in run.rates.values())
    assert all(isinstance(value, np.ndarray) for value in run.shared.values())
