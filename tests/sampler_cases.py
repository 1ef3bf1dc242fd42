"""Distributions that are known exactly, and one row per sampler that must leave them alone.

A sampler inherits every law by one row of ``ROWS``, a distribution by one of ``TRUTHS``: exact
draws at every β are written here and in `oracles`, from the definitions and with NumPy's own
generator.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracles
import pytest
from cases import CASES
from scipy.special import logsumexp

from energyscape.backend import Purpose, stream
from energyscape.evaluation.laws import generic_params
from energyscape.models import (
    RBM,
    CovarianceRBM,
    FieldsOfExperts,
    GaussianRBM,
    McRBM,
    MPoT,
    PoT,
    TiledMPoT,
    TiledRBM,
)
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

LADDER = (1.0, 0.7, 0.45)


@dataclass(frozen=True, eq=False)
class Truth:
    """A target and what is known of it.

    Attributes
    ----------
    make : (xp, n) → target at β = 1 for n chains, its arrays in the namespace ``xp``
    draw : (n, generator, β) → exact draws at β, shape (n, *event_shape)
    log_p : β → log-probability of every binary state; None for real values
    log_z : log Z at β = 1
    step : a leapfrog step that is mostly accepted
    heat : a temperature that is wrong, and must be seen to be
    slowness : how much longer than others it takes to forget its start
    n : chains with which that is seen well
    """

    name: str
    make: Callable[[Any, int], Any]
    draw: Callable[[int, Any, float], np.ndarray]
    log_p: Callable[[float], np.ndarray] | None = None
    log_z: float = np.nan
    step: float = np.nan
    heat: float = 1.05
    slowness: int = 1
    n: int = 20_000

    def target(self, n: int, xp: Any = np) -> Any:
        return self.make(xp, n)

    @functools.cached_property
    def spread(self) -> np.ndarray:
        """Standard deviation of every coordinate, 1 where it does not vary."""
        deviation = self.draw(20_000, np.random.default_rng(9), 1.0).std(axis=0)
        return np.where(deviation > 1e-9, deviation, 1.0)


# ---------------------------------------------------------------- bits


def _binary(
    name: str, make: Any, log_p: Callable[[float], np.ndarray], shape: Any, **more: Any
) -> Truth:
    """A truth over bits, all of whose states are enumerated."""
    states = oracles.states(int(np.prod(shape)))

    def draw(n: int, rng: Any, beta: float) -> np.ndarray:
        cumulative = np.cumsum(np.exp(log_p(beta)))
        index = np.searchsorted(cumulative / cumulative[-1], rng.random(n), side="right")
        return states[index].reshape(n, *shape)

    return Truth(name, make, draw, log_p, n=40_000, **more)


def _given(log_p: Callable[[float], np.ndarray], mask: np.ndarray, values: np.ndarray) -> Any:
    """The same with some bits held."""
    states = oracles.states(mask.size)
    out = (states[:, mask.ravel()] != values.ravel()[mask.ravel()]).any(axis=1)

    def conditional(beta: float) -> np.ndarray:
        held = np.where(out, -np.inf, log_p(beta))
        return held - logsumexp(held)

    return conditional


STRONG = oracles.strong_rbm()
STRONG_RBM = RBM(6)
_STRONG_BASE = STRONG_RBM.base_measure(STRONG)


def on(xp: Any, params: dict[str, np.ndarray]) -> dict[str, Any]:
    """Parameters in another namespace."""
    return {k: xp.asarray(v) for k, v in params.items()}


def _strong_log_p(beta: float) -> np.ndarray:
    return oracles.rbm_log_p({k: beta * STRONG[k] for k in "Wbc"})


def _strong_path(xp: Any, n: int) -> Any:
    params = on(xp, STRONG)
    return STRONG_RBM.target(params, STRONG_RBM.base_measure(params))


GRID = (3, 4)
COLOURS = [[i * 4 + j for i in range(3) for j in range(4) if (i + j) % 2 == c] for c in (0, 1)]
_COUPLINGS, _FIELDS = oracles.grid_ising(GRID)


def _ising(xp: Any, n: int) -> Any:
    J, h = xp.asarray(0.5 * _COUPLINGS), xp.asarray(_FIELDS)

    def energy(x: Any) -> Any:
        flat = x.reshape(len(x), -1).astype(np.float64)
        return -((flat @ J) * flat).sum(axis=1) - flat @ h

    return from_functions(energy, event_shape=GRID, domain="binary")


def _ising_log_p(beta: float) -> np.ndarray:
    s = oracles.states(12)
    log_p = beta * (0.5 * ((s @ _COUPLINGS) * s).sum(axis=1) + s @ _FIELDS)
    return log_p - logsumexp(log_p)


_BITS_HELD = np.arange(10) % 3 == 0
_BITS_AT = (np.arange(10) % 2).astype(np.float64)
_GRID_HELD = np.arange(12).reshape(GRID) % 5 == 1
_GRID_AT = (np.arange(12).reshape(GRID) % 2).astype(np.float64)


def clamped(make: Any, mask: np.ndarray, values: np.ndarray) -> Any:
    """The same target with coordinates held, in any namespace."""
    return lambda xp, n: Clamped(make(xp, n), xp.asarray(mask), xp.asarray(values))


def _strong(xp: Any, n: int) -> Any:
    return STRONG_RBM.target(on(xp, STRONG))


# ---------------------------------------------------------------- reals


def _few_modes() -> dict[str, np.ndarray]:
    """A 4-unit GaussianRBM over 5 reals of unequal scale, whose modes overlap."""
    rng = np.random.default_rng(4)
    params = generic_params(GaussianRBM(4), CASES[2].data[:, :5])
    log_var = np.linspace(-1.0, 0.6, 5)
    W = 0.7 * rng.standard_normal((5, 4)) * np.exp(0.5 * log_var)[:, None]
    b, c = rng.standard_normal(5), rng.standard_normal(4)
    plain = params | {"W": W, "b": b, "c": c, "log_var": log_var}
    log_w, mean, var = oracles.gaussian_rbm_mixture(plain)
    p = np.exp(log_w - logsumexp(log_w))
    at = p @ mean
    return plain | {"mean_v": at, "var_v": var + p @ (mean - at) ** 2}


MODES = _few_modes()
MODES_RBM = GaussianRBM(4)


def _tempered_modes(beta: float) -> dict[str, np.ndarray]:
    """Parameters of βE: the quadratic part narrows, the biases of the hidden units grow."""
    return MODES | {"c": beta * MODES["c"], "log_var": MODES["log_var"] - np.log(beta)}


def _draw_modes(n: int, rng: Any, beta: float) -> np.ndarray:
    log_w, mean, var = oracles.gaussian_rbm_mixture(_tempered_modes(beta))
    cumulative = np.cumsum(np.exp(log_w - logsumexp(log_w)))
    component = np.searchsorted(cumulative / cumulative[-1], rng.random(n), side="right")
    return mean[component] + np.sqrt(var) * rng.standard_normal((n, len(var)))


def _modes_path_draw(n: int, rng: Any, beta: float) -> np.ndarray:
    """On the path from the base measure: a mixture again, of components between the two."""
    log_w, mean, var = oracles.gaussian_rbm_mixture(_tempered_modes(beta))
    if beta == 1:
        return _draw_modes(n, rng, 1.0)
    b0, var0 = MODES["mean_v"], MODES["var_v"] / (1 - beta)
    both = 1 / (1 / var + 1 / var0)
    # ∫ w_h N(x; m_h, V) exp(-(x - b₀)²/2V₀) dx = w_h √(2πV₀) N(m_h; b₀, V + V₀)
    log_w = log_w - 0.5 * ((mean - b0) ** 2 / (var + var0)).sum(axis=1)
    cumulative = np.cumsum(np.exp(log_w - logsumexp(log_w)))
    component = np.searchsorted(cumulative / cumulative[-1], rng.random(n), side="right")
    centre = both * (mean / var + b0 / var0)
    return centre[component] + np.sqrt(both) * rng.standard_normal((n, len(var)))


GAMMA = 3.0
FILTERS = np.eye(6) + 0.4 * np.random.default_rng(5).standard_normal((6, 6))


def product_of_t(xp: Any = np, gamma: float = GAMMA, W: np.ndarray = FILTERS) -> Any:
    """U(x) = γ Σ log(1 + (Wx)_i²/2) for x of shape (2, 3)."""
    W = xp.asarray(W)

    def energy(x: Any) -> Any:
        y = x.reshape(len(x), -1) @ W.T.astype(x.dtype)
        return gamma * xp.log1p(0.5 * y * y).sum(axis=1)

    def grad(x: Any) -> Any:
        V = W.astype(x.dtype)
        y = x.reshape(len(x), -1) @ V.T
        return ((gamma * y / (1 + 0.5 * y * y)) @ V).reshape(x.shape)

    return from_functions(energy, grad, (2, 3))


def _draw_product(n: int, rng: Any, beta: float) -> np.ndarray:
    df = 2 * beta * GAMMA - 1
    y = np.sqrt(2 / df) * rng.standard_t(df, (n, 6))
    return np.linalg.solve(FILTERS, y.T).T.reshape(n, 2, 3)


def _wide_gaussian() -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of 8 correlated reals: variances along the axes from 0.04 to 4."""
    rng = np.random.default_rng(6)
    Q = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    return rng.standard_normal(8), (Q * np.logspace(np.log10(0.04), np.log10(4), 8)) @ Q.T


MEAN, COV = _wide_gaussian()


def gaussian(xp: Any = np, mean: np.ndarray = MEAN, cov: np.ndarray = COV) -> Any:
    """(x - m)'C⁻¹(x - m)/2."""
    m, P = xp.asarray(mean), xp.asarray(np.linalg.inv(cov))

    def grad(x: Any) -> Any:
        return (x - m.astype(x.dtype)) @ P.astype(x.dtype)

    def energy(x: Any) -> Any:
        return 0.5 * (grad(x) * (x - m.astype(x.dtype))).sum(axis=1)

    return from_functions(energy, grad, (len(mean),))


def _draw_gaussian(mean: np.ndarray, cov: np.ndarray) -> Any:
    root = np.linalg.cholesky(cov)
    return lambda n, rng, beta: mean + rng.standard_normal((n, len(mean))) @ root.T / np.sqrt(beta)


REALS_HELD = np.array([False, True, False, False, True, False, True, False])
REALS_AT = np.where(REALS_HELD, MEAN + np.linspace(-0.5, 0.5, 8), 0.0)


def _draw_held(mask: np.ndarray, values: np.ndarray) -> Any:
    draw = _draw_gaussian(*oracles.gaussian_given(MEAN, COV, mask, values))

    def full(n: int, rng: Any, beta: float) -> np.ndarray:
        x = np.repeat(values[None], n, 0)
        x[:, ~mask] = draw(n, rng, beta)
        return x

    return full


def _held_by_rows(xp: Any, n: int) -> Any:
    """Even rows hold some coordinates, odd rows the others, at values of their own."""
    odd = (np.arange(n) % 2 == 1)[:, None]
    mask, values = np.where(odd, ~REALS_HELD, REALS_HELD), np.where(odd, MEAN + 0.3, REALS_AT)
    return Clamped(gaussian(xp), xp.asarray(mask), xp.asarray(values))


def _draw_by_rows(n: int, rng: Any, beta: float) -> np.ndarray:
    x = _draw_held(REALS_HELD, REALS_AT)(n, rng, beta)
    x[1::2] = _draw_held(~REALS_HELD, MEAN + 0.3)(n // 2, rng, beta)
    return x


OBSERVED, NOISE = MEAN + np.linspace(1, -1, 8), 0.8


def posterior_moments() -> tuple[np.ndarray, np.ndarray]:
    """Of the Gaussian above given x + 0.8 ξ = ``OBSERVED``."""
    cov = np.linalg.inv(np.linalg.inv(COV) + np.eye(8) / NOISE**2)
    return cov @ (np.linalg.solve(COV, MEAN) + OBSERVED / NOISE**2), cov


def _banana(xp: Any, n: int) -> Any:
    def bend(x: Any) -> Any:
        return x[:, 1] - 0.03 * (x[:, 0] * x[:, 0] - 100)

    def energy(x: Any) -> Any:
        r = bend(x)
        return x[:, 0] * x[:, 0] / 200 + 0.5 * r * r

    def grad(x: Any) -> Any:
        r = bend(x)
        return xp.stack([x[:, 0] / 100 - 0.06 * r * x[:, 0], r], axis=1)

    return from_functions(energy, grad, (2,))


def _draw_banana(n: int, rng: Any, beta: float) -> np.ndarray:
    z = rng.standard_normal((n, 2)) / np.sqrt(beta)
    return np.stack([10 * z[:, 0], 0.03 * (100 * z[:, 0] ** 2 - 100) + z[:, 1]], axis=1)


def _gated(model: Any) -> dict[str, np.ndarray]:
    """Filters and mean weights strong enough to matter, over 3 reals off zero."""
    rng = np.random.default_rng(11)
    params = dict(generic_params(model, CASES[2].data[:, :3]))
    params["C"] = rng.standard_normal(params["C"].shape)
    if "W" in params:
        params["W"] = rng.standard_normal(params["W"].shape) / model.relative_sigma
    x = oracles.gated_draws(params, 20_000, rng, 1.0)
    return params | {"var_v": x.var(axis=0)}


GATED = {
    "CovarianceRBM": CovarianceRBM(4, pools=2),
    "McRBM": McRBM(4, n_mean_components=2, learn_pools=False),
    "PoT": PoT(4),
    "MPoT": MPoT(4, n_mean_components=2, pools=2),
}
GATED_AT = {name: _gated(model) for name, model in GATED.items()}


def _gated_truth(name: str, base: bool) -> Truth:
    model, params = GATED[name], GATED_AT[name]

    def make(xp: Any, n: int) -> Any:
        p = on(xp, params)
        return model.target(p, model.base_measure(p) if base else None)

    def draw(n: int, rng: Any, beta: float) -> np.ndarray:
        return oracles.gated_draws(params, n, rng, beta, base)

    step = 0.4 * float(params["deviation"][0])
    # The base has the model's own variances: near β = 1 it hardly changes it.
    return Truth(f"{name}{' path' * base}", make, draw, step=step, heat=1.3 if base else 1.05)


FIELDS = {
    "TiledMPoT": (TiledMPoT(3, n_mean_components=1, tile=2, stride=1), [[0], [3]]),
    "FieldsOfExperts": (FieldsOfExperts(2, size=2, sigma=2.0), [[0, 1, 2, 3]]),
}


def _field_truth(name: str) -> Truth:
    """A field on a torus of 2 × 2 pixels, where windows overlap themselves."""
    (model, corners), rng = FIELDS[name], np.random.default_rng(12)
    (case,) = (case for case in CASES if case.name == name)
    params = dict(generic_params(model, case.data))
    params["C"] = 0.7 * rng.standard_normal(params["C"].shape)
    params["a"] = np.full_like(params["a"], np.log(0.4))
    if "W" in params:
        params |= {"W": rng.standard_normal(params["W"].shape), "c": np.full((2, 1), -0.5)}
    L = oracles.field_map(params, (2, 2), 2, corners)

    def make(xp: Any, n: int) -> Any:
        target = model.target(on(xp, params))
        target.event_shape = (2, 2, 1)
        return target

    def draw(n: int, rng: Any, beta: float) -> np.ndarray:
        return oracles.field_draws(params, L, n, rng, beta).reshape(n, 2, 2, 1)

    return Truth(name, make, draw, step=0.3)


_MACHINE = TiledRBM(2)
_MACHINE_AT = {
    "W": 1.5 * np.random.default_rng(13).standard_normal((2, 4, 2)),
    "b": np.array([-0.5]),
    "c": np.array([[0.3, -0.6], [-0.2, 0.5]]),
}


def _machine(xp: Any, n: int) -> Any:
    """A tiled machine on a torus of 2 × 2 bits, which windows of either set cover."""
    target = _MACHINE.target(on(xp, _MACHINE_AT))
    target.event_shape = (2, 2, 1)
    return target


# ---------------------------------------------------------------- the tables

_MODES_LOG_Z = float(logsumexp(oracles.gaussian_rbm_mixture(MODES)[0]))
_GAUSSIAN_LOG_Z = 0.5 * float(np.linalg.slogdet(2 * np.pi * COV)[1])
TRUTHS = {
    truth.name: truth
    for truth in (
        _binary("RBM", _strong, _strong_log_p, (10,)),
        _binary(
            "RBM path",
            _strong_path,
            lambda beta: oracles.rbm_path_log_p(STRONG, _STRONG_BASE["b"], beta),
            (10,),
            # Near β = 1 the base, which has the model's own means, hardly changes it.
            heat=1.3,
        ),
        _binary(
            "RBM held",
            clamped(_strong, _BITS_HELD, _BITS_AT),
            _given(_strong_log_p, _BITS_HELD, _BITS_AT),
            (10,),
        ),
        _binary(
            "TiledRBM",
            _machine,
            lambda beta: oracles.tiled_machine_log_p(
                _MACHINE_AT, [[0, 1, 2, 3], [3, 2, 1, 0]], beta
            ),
            (2, 2, 1),
        ),
        _binary("Ising", _ising, _ising_log_p, GRID),
        _binary(
            "Ising held",
            clamped(_ising, _GRID_HELD, _GRID_AT),
            _given(_ising_log_p, _GRID_HELD, _GRID_AT),
            GRID,
        ),
        Truth(
            "GaussianRBM",
            lambda xp, n: MODES_RBM.target(on(xp, MODES)),
            _draw_modes,
            log_z=_MODES_LOG_Z,
            step=0.5,
        ),
        Truth(
            "GaussianRBM path",
            lambda xp, n: MODES_RBM.target(on(xp, MODES), MODES_RBM.base_measure(on(xp, MODES))),
            _modes_path_draw,
            log_z=_MODES_LOG_Z,
            step=0.5,
            heat=1.3,
        ),
        Truth(
            "product of t",
            lambda xp, n: product_of_t(xp),
            _draw_product,
            log_z=oracles.product_of_t_log_z(FILTERS, GAMMA),
            step=0.4,
        ),
        Truth(
            "Gaussian",
            lambda xp, n: gaussian(xp),
            _draw_gaussian(MEAN, COV),
            log_z=_GAUSSIAN_LOG_Z,
            step=0.25,
        ),
        Truth(
            "Gaussian held",
            lambda xp, n: Clamped(gaussian(xp), xp.asarray(REALS_HELD), xp.asarray(REALS_AT)),
            _draw_held(REALS_HELD, REALS_AT),
            step=0.3,
        ),
        Truth("Gaussian held by rows", _held_by_rows, _draw_by_rows, step=0.25, slowness=2),
        Truth(
            "Gaussian posterior",
            lambda xp, n: Posterior(gaussian(xp), xp.asarray(OBSERVED), NOISE),
            _draw_gaussian(*posterior_moments()),
            step=0.25,
        ),
        Truth(
            "banana",
            _banana,
            _draw_banana,
            log_z=float(np.log(20 * np.pi)),
            step=1.1,
            slowness=4,
            n=40_000,
        ),
        *(_gated_truth(name, False) for name in GATED),
        _gated_truth("McRBM", True),
        _gated_truth("MPoT", True),
        *map(_field_truth, FIELDS),
    )
}


@dataclass(frozen=True, eq=False)
class Row:
    """A sampler and where it is put to the test.

    Attributes
    ----------
    make : truth → sampler, with settings that suit it
    truths : names
    moves : least mean displacement of every free coordinate in four steps, in units of that
        between independent draws
    slow : steps after which a wrong temperature shows
    temperature : of the dynamics: what it leaves alone is the truth at β = 1/temperature
    invariant, reversible : what the sampler must say of itself
    """

    name: str
    make: Callable[[Truth], Any]
    truths: tuple[str, ...]
    moves: float = 0.2
    slow: int = 20
    temperature: float = 1.0
    invariant: bool = True
    reversible: bool = True

    def __repr__(self) -> str:
        return self.name


_SWEEP = ("RBM", "RBM held", "TiledRBM", "GaussianRBM", *GATED, *FIELDS)
_BITS = ("RBM", "RBM held", "TiledRBM", "Ising", "Ising held")
_REALS = (
    "GaussianRBM",
    "product of t",
    "Gaussian",
    "banana",
    "Gaussian held",
    "Gaussian held by rows",
    "Gaussian posterior",
    "McRBM",
    "MPoT",
    "TiledMPoT",
)
_MODES_PATH = ("GaussianRBM", "GaussianRBM path")
_ONE_WAY = {"reversible": False}


def _ladder(sampler: Any) -> Any:
    return ParallelTempering(sampler, betas=LADDER)


ROWS = [
    Row("Gibbs", lambda t: Gibbs(), _SWEEP),
    Row("Metropolis", lambda t: Metropolis(), _BITS, slow=5),
    Row("Metropolis by colours", lambda t: Metropolis(COLOURS), ("Ising", "Ising held"), slow=5),
    Row("HMC", lambda t: HMC(5, t.step), _REALS),
    Row("HMC without jitter", lambda t: HMC(5, t.step, jitter=0), ("Gaussian", "product of t")),
    Row(
        "HMC with persistence",
        lambda t: HMC(1, 1.4 * t.step, persistence=0.8),
        ("Gaussian", "product of t", "GaussianRBM", "Gaussian held"),
        slow=40,
        **_ONE_WAY,
    ),
    Row(
        "HMC with masses",
        lambda t: HMC(5, 0.8 * t.step, inverse_mass=(t.spread / t.spread.mean()) ** 2),
        ("Gaussian", "product of t", "Gaussian held"),
    ),
    Row("Langevin", lambda t: Langevin(0.4 * t.step**2), _REALS, 0.05, slow=100),
    Row(
        "Langevin at T = 2",
        lambda t: Langevin(0.4 * t.step**2, temperature=2.0),
        ("Gaussian", "product of t", "banana", "Gaussian held"),
        0.05,
        slow=100,
        temperature=2.0,
    ),
    Row(
        "tempered Gibbs",
        lambda t: _ladder(Gibbs()),
        (*_SWEEP, "RBM path", "McRBM path", "MPoT path"),
        **_ONE_WAY,
    ),
    Row("tempered Metropolis", lambda t: _ladder(Metropolis()), _BITS, slow=5, **_ONE_WAY),
    Row(
        "tempered HMC",
        lambda t: _ladder(HMC(3, t.step)),
        (*_MODES_PATH, "product of t", *_REALS[4:], "McRBM path", "MPoT path"),
        **_ONE_WAY,
    ),
    Row(
        "tempered HMC with persistence",
        lambda t: _ladder(HMC(2, 1.2 * t.step, persistence=0.8)),
        ("Gaussian", "product of t"),
        **_ONE_WAY,
    ),
    Row(
        "tempered Langevin",
        lambda t: _ladder(Langevin(0.4 * t.step**2)),
        ("Gaussian", "product of t", "Gaussian held"),
        slow=60,
        **_ONE_WAY,
    ),
    Row(
        "Langevin unadjusted",
        lambda t: Langevin(0.05 * t.step**2, adjusted=False),
        ("Gaussian",),
        0.02,
        invariant=False,
        reversible=False,
    ),
]
PAIRS = [(row, TRUTHS[name]) for row in ROWS for name in row.truths]


def pair_id(value: Any) -> str | None:
    """What a row or a truth is called in the name of a test."""
    return getattr(value, "name", None)


def over(pairs: Any) -> Any:
    """Run a test for every row and truth."""
    return pytest.mark.parametrize(("row", "truth"), pairs, ids=pair_id)


def rng_at(step: int = 0) -> Any:
    """The noise of a test's step."""
    return stream(1, Purpose.SAMPLE, step)


def betas_of(sampler: Any) -> tuple[float, ...]:
    """The temperatures at which the sampler must be right."""
    return LADDER if isinstance(sampler, ParallelTempering) else (1.0,)


def replicas(chains: Any) -> list[np.ndarray]:
    """States of every rung, the cold chains first."""
    hot = chains.own.get("hot")
    return [chains.x] + ([] if hot is None else [hot[:, r] for r in range(hot.shape[1])])


def begin(row: Row, truth: Truth, n: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """The sampler, the target, and chains at exact draws, those of every rung at its own β."""
    sampler, target = row.make(truth), truth.target(n)
    rng = np.random.default_rng(seed)
    x, *hot = (truth.draw(n, rng, beta / row.temperature) for beta in betas_of(sampler))
    sampler.check(target, x)
    chains = sampler.start(target, x, stream(seed, Purpose.SAMPLE))
    if hot:
        chains.own["hot"] = np.stack(hot, axis=1)
    return sampler, target, chains
