"""What samplers refuse, and what they say: wrong starts, wrong targets, wrong settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sampler_cases import (
    COLOURS,
    GRID,
    MEAN,
    REALS_AT,
    REALS_HELD,
    ROWS,
    TRUTHS,
    Row,
    gaussian,
    pair_id,
    product_of_t,
)

from energyscape.backend import Purpose, stream
from energyscape.errors import CapabilityError
from energyscape.samplers import (
    HMC,
    Clamped,
    Gibbs,
    Langevin,
    Metropolis,
    ParallelTempering,
    Posterior,
    from_functions,
)
from energyscape.samplers.target import as_target

ALL = pytest.mark.parametrize("row", ROWS, ids=pair_id)


def _start(row: Row, n: int = 5) -> tuple[Any, Any, np.ndarray]:
    truth = TRUTHS[row.truths[0]]
    return row.make(truth), truth.target(n), truth.draw(n, np.random.default_rng(0), 1.0)


def _run(sampler: Any, target: Any, x: np.ndarray) -> Any:
    return sampler.run(target, x, 2, stream(0, Purpose.SAMPLE))


# ---------------------------------------------------------------- starts


@ALL
def test_starts_of_another_shape_are_refused(row: Row) -> None:
    sampler, target, x = _start(row)
    wide = np.concatenate([x, x], axis=-1)
    shape = ", ".join(map(str, x.shape[1:]))
    for wrong in (wide, x[0], x.reshape(1, *x.shape)):
        with pytest.raises(ValueError, match=rf"start has shape .*\(n_chains, {shape}\)"):
            _run(sampler, target, wrong)
    with pytest.raises(ValueError, match="start has no chains"):
        _run(sampler, target, x[:0])
    for dtype in (int, bool, np.float16):
        with pytest.raises(ValueError, match="wanted float32 or float64"):
            _run(sampler, target, x.astype(dtype))


@ALL
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_start_that_is_not_finite_names_its_chains(row: Row, value: float) -> None:
    sampler, target, x = _start(row)
    x[[1, 3], ..., 0] = value
    with pytest.raises(ValueError, match=r"start is not finite for 2 of 5 chains: 1, 3$"):
        _run(sampler, target, x)


def _spoilt(what: str, value: float) -> Any:
    """A Gaussian whose energy or gradient is ``value`` beyond 5."""
    plain = gaussian()

    def spoil(result: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.where((x[:, 0] > 5).reshape(-1, *[1] * (result.ndim - 1)), value, result)

    def energy(x: np.ndarray) -> np.ndarray:
        return spoil(plain.energy(x), x) if what == "energy" else plain.energy(x)

    def grad(x: np.ndarray) -> np.ndarray:
        return spoil(plain.input_grad(x), x) if what == "gradient" else plain.input_grad(x)

    return from_functions(energy, grad, (8,))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "sampler",
    [
        HMC(3, 0.2),
        Langevin(0.02),
        Langevin(0.02, adjusted=False),
        ParallelTempering(HMC(3, 0.2), betas=[1, 0.5]),
    ],
)
def test_energies_and_gradients_that_are_not_finite_name_their_chains(
    sampler: Any, value: float
) -> None:
    x = np.tile(MEAN, (12, 1))
    x[[0, 2, 4, 5, 7, 8, 9], 0] = 6
    with pytest.raises(ValueError, match=r"no finite energy for 7 of 12 chains: 0, 2, 4, 5, 7, …$"):
        _run(sampler, _spoilt("energy", value), x)
    with pytest.raises(ValueError, match=r"gradient .* not finite at the start for 7 of 12 ch"):
        _run(sampler, _spoilt("gradient", value), x)


def test_metropolis_starts_from_bits() -> None:
    with pytest.raises(ValueError, match="start must hold 0 and 1 alone"):
        _run(Metropolis(), TRUTHS["RBM"].target(1), np.full((3, 10), 0.5))


# ---------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("sampler", "name", "message"),
    [
        (
            HMC(3, 0.1),
            "RBM",
            r"HMC cannot sample RBM: it moves real values; those of RBM are binary\. "
            r"Samplers that can: Gibbs, Metropolis, ParallelTempering\.",
        ),
        (Langevin(0.1), "RBM", r"Langevin cannot .* Samplers that can: Gibbs, Metropolis"),
        (Metropolis(), "GaussianRBM", r"moves binary values.*Gibbs, HMC, Langevin, Parallel"),
        (Metropolis(), "Gaussian", r"moves binary values.* can: HMC, Langevin\."),
        (Gibbs(), "Gaussian", r"needs a model with sample_hidden.* can: HMC, Langevin\."),
        (Gibbs(), "Ising", r"needs a model with sample_hidden.* can: Metropolis\."),
        (ParallelTempering(), "Gaussian", r"needs a model with sample_hidden"),
        (ParallelTempering(HMC(3, 0.1)), "Ising", r"moves real values"),
        (ParallelTempering(Metropolis()), "banana", r"moves binary values"),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "run") else str(value)[:12],
)
def test_a_sampler_says_what_it_cannot_move_and_which_can(
    sampler: Any, name: str, message: str
) -> None:
    truth = TRUTHS[name]
    x = truth.draw(3, np.random.default_rng(0), 1.0)
    with pytest.raises(CapabilityError, match=message):
        _run(sampler, truth.target(3), x)


def test_hmc_needs_a_gradient() -> None:
    target = from_functions(lambda x: (x * x).sum(axis=1))
    for sampler in (HMC(3, 0.1), Langevin(0.1), ParallelTempering(HMC(3, 0.1))):
        with pytest.raises(CapabilityError, match=r"needs the gradient ∂F/∂x"):
            _run(sampler, target, np.zeros((3, 2)))


@pytest.mark.parametrize(
    "energy", [lambda x: (x * x).sum(axis=1, keepdims=True), lambda x: (x * x).sum()]
)
def test_an_energy_is_one_number_per_chain(energy: Any) -> None:
    for sampler in (HMC(3, 0.1), ParallelTempering(HMC(3, 0.1))):
        with pytest.raises(ValueError, match=r"the energy of \d points has shape .*one number per"):
            _run(sampler, (energy, lambda x: x), np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"one number per chain"):
        _run(Metropolis(), from_functions(energy, domain="binary"), np.zeros((3, 2)))


def test_a_gradient_has_the_shape_of_its_points() -> None:
    pair = (lambda x: (x * x).sum(axis=1), lambda x: x.sum(axis=1))
    with pytest.raises(ValueError, match=r"gradient at x of shape \(3, 2\) has shape \(3,\)"):
        _run(HMC(3, 0.1), pair, np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: as_target(3), TypeError, "got int"),
        (lambda: as_target(()), TypeError, "a target is wanted"),
        (lambda: from_functions(1.0), TypeError, "takes callables"),  # type: ignore[arg-type]
        (lambda: from_functions(np.sum, 2), TypeError, "takes callables"),  # type: ignore[arg-type]
        (lambda: from_functions(np.sum, domain="unit"), ValueError, "domain must be 'real' or"),
        (lambda: Posterior(gaussian(), MEAN, 0.0), ValueError, "sigma must be > 0, got 0.0"),
        (lambda: Posterior(gaussian(), MEAN, -1.0), ValueError, "sigma must be > 0, got -1.0"),
        (lambda: Posterior(gaussian(), MEAN, np.nan), ValueError, "sigma must be > 0, got nan"),
    ],
)
def test_bad_targets_are_named(make: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


# ---------------------------------------------------------------- energies without a Z


def _ramp(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x).sum(axis=1)


def _ramp_grad(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _wall(x: np.ndarray) -> np.ndarray:
    return 0.5 * (np.maximum(x, 0) ** 2).sum(axis=1)


IMPROPER = {
    "flat": (from_functions(lambda x: np.zeros(len(x)), np.zeros_like), (3,)),
    "logarithm": (from_functions(lambda x: np.log1p((x * x).sum(axis=1)), np.zeros_like), (3,)),
    "product of t at 0.4": (product_of_t(gamma=0.4), (2, 3)),
    # Grows exactly like d log|x|: ∫ |x|^-d dx diverges at infinity, if only as log log.
    "product of t at a half": (product_of_t(gamma=0.5), (2, 3)),
    # Flat on one side: half of all rays, an open set of directions, see no growth.
    "ramp": (from_functions(_ramp, _ramp_grad), (1,)),
    "wall": (from_functions(_wall, lambda x: np.maximum(x, 0)), (2,)),
}


@pytest.mark.parametrize("name", IMPROPER)
@pytest.mark.parametrize("sampler", [HMC(3, 0.1), Langevin(0.1)], ids=lambda s: type(s).__name__)
def test_an_energy_that_cannot_be_normalised_is_refused(sampler: Any, name: str) -> None:
    target, shape = IMPROPER[name]
    with pytest.raises(ValueError, match="improper"):
        _run(sampler, target, np.zeros((20, *shape)))


@pytest.mark.parametrize(
    ("sampler", "gamma"),
    [
        (ParallelTempering(HMC(3, 0.1), betas=[1.0, 0.8, 0.5]), 0.95),
        (ParallelTempering(Langevin(0.1), betas=[1.0, 0.5]), 1.0),
        (Langevin(0.1, temperature=2.0), 0.9),
    ],
    ids=["ladder", "ladder to a half", "temperature"],
)
def test_an_energy_that_cannot_be_normalised_when_hot_is_refused(
    sampler: Any, gamma: float
) -> None:
    """γ > ½ is proper, but the hottest rung, or the sampler's own temperature, is at γβ <= ½."""
    x = np.zeros((5, 2, 3))
    _run(HMC(3, 0.1), product_of_t(gamma=gamma), x)
    with pytest.raises(ValueError, match="improper"):
        _run(sampler, product_of_t(gamma=gamma), x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_energies_that_can_be_normalised_are_taken(dtype: Any, scale: float) -> None:
    """Heavy tails just above the limit, quadratics and fourth powers, at any scale of the start."""
    x = scale * np.random.default_rng(0).standard_normal((4, 2, 3)).astype(dtype)
    for gamma in (0.52, 3.0):
        _run(HMC(1, 1e-4), product_of_t(gamma=gamma), x)
    flat = x.reshape(4, 6)
    _run(HMC(1, 1e-4), (lambda x: 0.5 * (x * x).sum(axis=1), lambda x: x), flat)
    quartic = (lambda x: 0.25 * (x**4).sum(axis=1), lambda x: x**3)
    _run(HMC(1, 1e-9), quartic, flat)


def test_what_is_held_does_not_count_as_a_dimension() -> None:
    """Flat along a held coordinate is no harm."""
    flat = from_functions(
        lambda x: 0.5 * (x[:, 1:] ** 2).sum(axis=1), lambda x: x * [0, 1, 1], (3,)
    )
    first = np.array([True, False, False])
    run = _run(HMC(3, 0.1), Clamped(flat, first, np.ones(3)), np.ones((4, 3)))
    assert (run.x[:, 0] == 1).all()


def test_chains_whose_coordinates_are_all_held_stay() -> None:
    everything = Clamped(gaussian(), np.ones(8, bool), MEAN)
    assert np.array_equal(_run(HMC(3, 0.2), everything, np.tile(MEAN, (4, 1))).x[0], MEAN)


def test_rows_of_their_own_may_be_many() -> None:
    """Masks, values and observations by row, for more chains than any check looks at."""
    x = TRUTHS["Gaussian"].draw(40, np.random.default_rng(0), 1.0)
    mask = np.random.default_rng(1).random(x.shape) < 0.5
    for target in (Clamped(gaussian(), mask, x), Posterior(gaussian(), x + 1, 0.5)):
        for sampler in (HMC(3, 0.1), ParallelTempering(HMC(3, 0.1), betas=[1, 0.5]), HMC(3)):
            assert _run(sampler, target, x).x.shape == x.shape


# ---------------------------------------------------------------- blocks of bits


def _bits(energy: Any, d: int) -> Any:
    return from_functions(energy, event_shape=(d,), domain="binary")


@pytest.mark.parametrize(
    "blocks", [[[0, 1]], [[0], [1], [2], [2]], [[0, 1, 2, 3]], [[0], [1], [-1]], []]
)
def test_blocks_name_every_bit_once(blocks: Any) -> None:
    target = _bits(lambda x: x.sum(axis=1), 3)
    with pytest.raises(ValueError, match="blocks must name each of the 3 bits once"):
        _run(Metropolis(blocks), target, np.zeros((4, 3)))


def test_bits_that_interact_cannot_share_a_block() -> None:
    """Two colours of a grid are right; one bit of the other colour among them is not."""
    truth = TRUTHS["Ising"]
    x = truth.draw(5, np.random.default_rng(0), 1.0)
    _run(Metropolis(COLOURS), truth.target(5), x)
    even, odd = COLOURS
    with pytest.raises(ValueError, match=r"bits \[.*\] interact"):
        _run(Metropolis([[*even, odd[0]], odd[1:]]), truth.target(5), x)
    rows = [[r * GRID[1] + c for c in range(GRID[1])] for r in range(GRID[0])]
    with pytest.raises(ValueError, match=r"bits \[0, 1, 2, 3\] interact"):
        _run(Metropolis(rows), truth.target(5), x)


@pytest.mark.parametrize(
    ("energy", "blocks"),
    [
        (lambda x: -3 * x[:, 0] * x[:, 1] * x[:, 2], [[0, 1], [2]]),
        (lambda x: 2 * x[:, 0] * x[:, 1] - 2 * x[:, 1] * x[:, 2], [[0, 1, 2]]),
    ],
    ids=["through a third bit", "couplings that cancel"],
)
def test_interactions_that_the_start_hides_are_seen(energy: Any, blocks: Any) -> None:
    """Where all chains begin at 0 these blocks change the energy by the sum of their changes; in
    other states they do not."""
    with pytest.raises(ValueError, match="interact"):
        _run(Metropolis(blocks), _bits(energy, 3), np.zeros((10, 3)))


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (HMC(3, 0.0), "HMC.step_size must be > 0, got 0.0"),
        (HMC(3, -0.1), "HMC.step_size must be > 0"),
        (HMC(3, np.nan), "HMC.step_size must be > 0"),
        (HMC(3, np.inf), "HMC.step_size must be > 0"),
        (Langevin(0.0), "Langevin.step_size must be > 0"),
        (HMC(0, 0.1), "HMC.n_leapfrog must be an integer >= 1, got 0"),
        (HMC(2.5, 0.1), "HMC.n_leapfrog must be an integer"),  # type: ignore[arg-type]
        (HMC(3, 0.1, jitter=1.0), r"HMC.jitter must be in \[0, 1\), got 1.0"),
        (HMC(3, 0.1, jitter=-0.1), r"HMC.jitter must be in \[0, 1\)"),
        (HMC(3, 0.1, persistence=1.0), r"HMC.persistence must be in \[0, 1\), got 1.0"),
        (HMC(3, 0.1, persistence=-0.5), r"HMC.persistence must be in \[0, 1\)"),
        (HMC(3, 0.1, inverse_mass=np.ones(7)), r"inverse_mass must be positive and of shape \(8,"),
        (HMC(3, 0.1, inverse_mass=np.zeros(8)), "inverse_mass must be positive"),
        (HMC(3, 0.1, adaptation=0.8), "adaptation must hold adapters"),
        (Langevin(0.1, temperature=0.0), "Langevin.temperature must be > 0"),
        (Langevin(adjusted=False), "needs a step_size"),
        (ParallelTempering(ParallelTempering(HMC(3, 0.1))), "inside ParallelTempering"),
        (ParallelTempering(HMC(3, -1.0)), "HMC.step_size must be > 0"),
        (ParallelTempering(HMC(3, 0.1), [1.0]), "at least two"),
        (ParallelTempering(HMC(3, 0.1), [[1.0, 0.5]]), "at least two"),  # type: ignore[list-item]
        (ParallelTempering(HMC(3, 0.1), [0.9, 0.5]), "fall strictly from 1"),
        (ParallelTempering(HMC(3, 0.1), [1.0, 1.0, 0.5]), "fall strictly from 1"),
        (ParallelTempering(HMC(3, 0.1), [1.0, 0.5, 0.7]), "fall strictly from 1"),
        (ParallelTempering(HMC(3, 0.1), [1.0, 0.5, 0.0]), "fall strictly from 1"),
        (ParallelTempering(HMC(3, 0.1), [1.0, 0.5, -0.5]), "fall strictly from 1"),
        (ParallelTempering(HMC(3, 0.1), [1.0, np.nan]), "fall strictly from 1"),
        (ParallelTempering(HMC(3, 0.1), n_temperatures=1), "n_temperatures must be an integer >="),
    ],
    ids=repr,
)
def test_bad_settings_are_named(sampler: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _run(sampler, gaussian(), np.zeros((4, 8)))


def test_a_ladder_begins_at_the_model() -> None:
    with pytest.raises(ValueError, match="give it the target at β = 1"):
        _run(ParallelTempering(HMC(3, 0.1)), gaussian().at(0.5), np.zeros((4, 8)))
    assert ParallelTempering(n_temperatures=4).ladder().tolist() == [1.0, 0.75, 0.5, 0.25]


# ---------------------------------------------------------------- wrappers


def test_wrappers_may_be_nested() -> None:
    """What is held stays held within a posterior, and an observation counts within a clamp."""
    x = TRUTHS["Gaussian held"].draw(6, np.random.default_rng(0), 1.0)
    held_first = Posterior(Clamped(gaussian(), REALS_HELD, REALS_AT), MEAN + 1, 0.5)
    held_last = Clamped(Posterior(gaussian(), MEAN + 1, 0.5), REALS_HELD, REALS_AT)
    one, other = (_run(HMC(3, 0.2), target, x).x for target in (held_first, held_last))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(one[:, REALS_HELD], x[:, REALS_HELD])
    ladder = ParallelTempering(HMC(3, 0.2), betas=[1, 0.5])
    one, other = (_run(ladder, target, x).x for target in (held_first, held_last))
    np.testing.assert_array_equal(one, other)
