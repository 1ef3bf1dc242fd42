"""Hamiltonian Monte Carlo on batches of chains, and Langevin dynamics as its one-step case.

    H(x, p) = F(x) + p'M⁻¹p/2
    L times:  p ← p - ε/2 ∂F;  x ← x + ε M⁻¹p;  p ← p - ε/2 ∂F
    accept where Exp(1) > ΔH, chain by chain                (Duane et al., 1987; Neal, 2011)

Momenta are drawn and kept standardised, z = M^-½ p, and inside a trajectory scaled to
displacements, q = ε M^-½ z: a step is then one kick q ← q - ε²M⁻¹∂F and one drift x ← x + q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from energyscape.backend import Array, namespace, to_host
from energyscape.kernels import accept, arrive, leapfrog, set_off, squares
from energyscape.registry import register
from energyscape.samplers.adaptation import Multiplicative, RobbinsMonro
from energyscape.samplers.base import Chains, Info, Sampler
from energyscape.verbs import check_count

# |ΔH| beyond which a trajectory is called divergent, as Stan does.
_DIVERGENT = 1000.0
_MOST_DOUBLINGS = 200
# Gradients of one trajectory that do not pay for preparing them.
_FEW = 4


@dataclass(slots=True)
class Moved:
    """The end of a trajectory: position, standardised momentum, energy and gradient there."""

    x: Array
    z: Array
    energy: Array
    grad: Array


def trajectory(
    target: Any, x: Array, grad: Array, z: Array, scale: Array, n_leapfrog: int, heat: float = 1.0
) -> Moved:
    """``n_leapfrog`` steps of the leapfrog from ``x``, whose gradient is known.

    Parameters
    ----------
    target : target
    x, grad, z : arrays, shape (n, *event_shape)
        Left as they are.
    scale : array that broadcasts to (n, d)
        ε M^-½; 0 where a coordinate is held.
    n_leapfrog : int
    heat : float, default 1
        Temperature: the energy is divided by it.
    """
    n, shape = len(x), x.shape
    z = z.reshape(n, -1)
    flat, q = set_off(x.reshape(n, -1), z, grad.reshape(n, -1), scale, heat)
    moved = flat.reshape(shape)
    if n_leapfrog > 1:
        gradient = target.gradient() if n_leapfrog > _FEW else target.input_grad
        factor = scale * scale
        if heat != 1.0:
            factor /= x.dtype.type(heat)
        for _ in range(n_leapfrog - 1):
            leapfrog(flat, q, gradient(moved).reshape(n, -1), factor)
    energy, grad = target.energy_and_grad(moved)
    z = arrive(q, z, grad.reshape(n, -1), scale, heat)
    return Moved(moved, z.reshape(shape), energy, grad)


def energy_change(energy: Array, z: Array, end: Moved, heat: float = 1.0) -> Array:
    """ΔH of a trajectory in float64, +∞ where it is not a number: NaN must reject."""
    xp = namespace(z)
    change = (end.energy - energy) / heat + 0.5 * (squares(end.z) - squares(z))
    return xp.where(xp.isfinite(change), change, xp.inf)


class Gradient(Sampler):
    """What samplers that follow the gradient share: the cache, the step size, the accept step."""

    domains: ClassVar[tuple[str, ...]] = ("real",)
    needs_gradient: ClassVar[bool] = True
    target_acceptance: ClassVar[float] = 0.8
    remedy: ClassVar[str] = "A smaller step_size, or a warm-up (n_warmup), helps"

    step_size: float | None
    adaptation: Any

    def adapters(self, persistent: bool) -> tuple[Any, ...]:
        if self.adaptation is None:
            if self.step_size is not None:
                return ()
            aim = self.target_acceptance
            return (Multiplicative(1 - aim),) if persistent else (RobbinsMonro(aim),)
        single = not isinstance(self.adaptation, tuple | list)
        return (self.adaptation,) if single else tuple(self.adaptation)

    def validate(self) -> None:
        name, step = type(self).__name__, self.step_size
        if step is not None and not 0 < step < math.inf:
            raise ValueError(f"{name}.step_size must be > 0, got {step!r}")
        for adapter in self.adapters(False):
            if not callable(getattr(adapter, "update", None)):
                raise ValueError(f"{name}.adaptation must hold adapters, got {adapter!r}")

    def start(self, target: Any, x: Array, rng: Any) -> Chains:
        chains = Chains(x, {}, self._constants(x))
        xp = namespace(x)
        step = self.step_size
        if step is None:
            step = self._first_step_size(target, chains, rng)
        chains.shared["step_size"] = xp.full((1,), step, np.float64)
        return chains

    def settings(self) -> tuple[str, ...]:
        return () if self.adapters(persistent=True) else ("step_size",)

    def _constants(self, x: Array) -> dict[str, Array]:
        """Shared values besides the step size."""
        return {}

    def _first_step_size(self, target: Any, chains: Chains, rng: Any) -> float:
        """The power of two at which one leapfrog step is accepted 0.8 of the time (Hoffman and
        Gelman, 2014, algorithm 4, over all chains)."""
        x, xp = chains.x, namespace(chains.x)
        energy, grad = self._at_start(target, chains, None)
        z = rng.normal(x.shape, x.dtype)

        def acceptance(log2: int) -> float:
            scale = self._scaled(target, xp.full((len(x), 1), 2.0**log2, x.dtype), chains)
            with np.errstate(all="ignore"):
                end = trajectory(target, x, grad, z, scale, 1, self.temperature)
                change = energy_change(energy, z, end, self.temperature)
                return float(xp.exp(-xp.maximum(change, 0)).mean())

        log2, up = 0, acceptance(0) > 0.8
        for _ in range(_MOST_DOUBLINGS):
            following = log2 + (1 if up else -1)
            if abs(following) > 100 or (acceptance(following) > 0.8) != up:
                return self._from_scale(2.0 ** (log2 if up else following))
            log2 = following
        return self._from_scale(2.0**log2)

    def _from_scale(self, scale: float) -> float:
        """The step size whose first leapfrog step is ``scale`` long."""
        return scale

    def _scaled(self, target: Any, step: Array, chains: Chains) -> Array:
        """ε M^-½, which broadcasts to (n, d); 0 where a coordinate is held."""
        inverse, free, x = chains.shared.get("inverse_mass"), target.free, chains.x
        if inverse is not None:
            step = step * namespace(x).sqrt(inverse).astype(step.dtype).reshape(1, -1)
        if free is not None:
            rows = len(x) if free.ndim == x.ndim else 1
            step = step * free.reshape(rows, -1).astype(step.dtype)
        return step

    def _step_sizes(self, chains: Chains) -> Array:
        """One step size, shape (1, 1), or one per chain, (n, 1), in the dtype of x."""
        step, groups = chains.shared["step_size"], len(chains.shared["step_size"])
        if groups > 1:
            step = namespace(step).concatenate([step] * (len(chains.x) // groups))
        return step.astype(chains.x.dtype)[:, None]

    def _at_start(self, target: Any, chains: Chains, passed: Any) -> tuple[Array, Array]:
        """Energy and gradient at the chains: from the cache if its tag still holds."""
        if passed is not None:
            return passed.energy(), passed.input_grad().copy()
        if chains.cache is not None and chains.cache[0] == target.tag:
            return chains.cache[1], chains.cache[2]
        energy, grad = target.energy_and_grad(chains.x)
        # Functions may hand out the same buffer at every call.
        return energy, grad.copy()

    def _accept(
        self,
        target: Any,
        chains: Chains,
        start: tuple[Array, Array],
        z: Array,
        end: Moved,
        rng: Any,
    ) -> Info:
        """Each chain takes its proposal or stays; the cache follows."""
        (energy, grad), u = start, rng.uniform((len(chains.x),), np.float64)
        now, after = (chains.x, z, grad, energy), (end.x, end.z, end.grad, end.energy)
        found = accept(now, after, u, self.temperature, _DIVERGENT)
        chains.x, grad, energy, acceptance, accepted, divergent = found
        chains.cache = (target.tag, energy, grad)
        return {"acceptance": acceptance, "accepted": accepted, "divergent": divergent}


@register
class HMC(Gradient):
    """Hamiltonian Monte Carlo.

    Parameters
    ----------
    n_leapfrog : int, default 20
        L, steps of a trajectory; each costs one gradient of all chains.
    step_size : float, optional
        ε, in the units of x (times √mass). Default: found at the start, then adapted.
    jitter : float in [0, 1), default 0.2
        Each trajectory of each chain has its own ε, uniform within ± this share: a fixed εL
        resonates with some direction of the target, where the chain then hardly moves.
    persistence : float in [0, 1), default 0
        Share a of the momentum that is kept, z ← a z + √(1 - a²) ξ, with the sign turned where a
        proposal is rejected (Horowitz, 1991).
    inverse_mass : array_like of event_shape, optional
        Diagonal of M⁻¹, best near the variances of the target; default 1.
    adaptation : adapter or sequence of adapters, optional
        Default: none where ``step_size`` is given, else `RobbinsMonro` in a warm-up and
        `Multiplicative` in a trainer.

    References
    ----------
    Duane, S., Kennedy, A., Pendleton, B., Roweth, D. (1987). Hybrid Monte Carlo.
    Neal, R. (2011). MCMC using Hamiltonian dynamics.
    """

    def __init__(
        self,
        n_leapfrog: int = 20,
        step_size: float | None = None,
        jitter: float = 0.2,
        persistence: float = 0.0,
        inverse_mass: Any = None,
        adaptation: Any = None,
    ) -> None:
        self.n_leapfrog = n_leapfrog
        self.step_size = step_size
        self.jitter = jitter
        self.persistence = persistence
        self.inverse_mass = inverse_mass
        self.adaptation = adaptation

    @property
    def reversible(self) -> bool:
        """A kept momentum makes the step on x alone irreversible."""
        return self.persistence == 0

    def validate(self) -> None:
        super().validate()
        check_count("HMC.n_leapfrog", self.n_leapfrog)
        for name in ("jitter", "persistence"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"HMC.{name} must be in [0, 1), got {getattr(self, name)!r}")

    def start(self, target: Any, x: Array, rng: Any) -> Chains:
        chains = super().start(target, x, rng)
        self.restart(chains, rng)
        return chains

    def _constants(self, x: Array) -> dict[str, Array]:
        shared: dict[str, Array] = {"n_leapfrog": np.array(self.n_leapfrog)}
        if self.inverse_mass is not None:
            inverse = np.asarray(self.inverse_mass, np.float64)
            if inverse.shape != x.shape[1:] or not (inverse > 0).all():
                raise ValueError(
                    f"HMC.inverse_mass must be positive and of shape {x.shape[1:]}, got shape "
                    f"{inverse.shape}"
                )
            shared["inverse_mass"] = namespace(x).asarray(inverse)
        return shared

    def settings(self) -> tuple[str, ...]:
        masses = () if self.inverse_mass is None else ("inverse_mass",)
        return (*super().settings(), "n_leapfrog", *masses)

    def restart(self, chains: Chains, rng: Any) -> None:
        super().restart(chains, rng)
        if self.persistence:
            chains.own["momentum"] = rng.normal(chains.x.shape, chains.x.dtype)

    def step(self, target: Any, chains: Chains, rng: Any, passed: Any = None) -> Info:
        energy, grad = self._at_start(target, chains, passed)
        z = self._momentum(chains, rng)
        step, count, share = self._lengths(chains, rng)
        with np.errstate(over="ignore", invalid="ignore"):
            end = trajectory(target, chains.x, grad, z, self._scaled(target, step, chains), count)
            origin = chains.x
            info = self._accept(target, chains, (energy, grad), z, end, rng)
        if self.persistence:
            column = info["accepted"].reshape(len(z), *([1] * (z.ndim - 1)))
            chains.own["momentum"] = namespace(z).where(column, end.z, -z)
        if "chees_time" in chains.shared:
            mass = chains.shared.get("inverse_mass")
            velocity = end.z if mass is None else end.z * namespace(z).sqrt(mass)
            info |= {"origin": origin, "proposal": end.x, "velocity": velocity, "jitter": share}
        return info

    def _momentum(self, chains: Chains, rng: Any) -> Array:
        z = rng.normal(chains.x.shape, chains.x.dtype)
        if self.persistence:
            real = chains.x.dtype.type
            z *= real(math.sqrt(1 - self.persistence**2))
            z += real(self.persistence) * chains.own["momentum"]
        return z

    def _lengths(self, chains: Chains, rng: Any) -> tuple[Array, int, float]:
        """Step sizes (n, 1), the number of steps, and the share of the trajectory's length."""
        step = self._step_sizes(chains)
        shared = chains.shared
        if "trajectory" in shared:
            # Lengths uniform on (0, T], in Halton's order.
            turn = int(shared.get("halton", 0)) + 1
            shared["halton"] = np.array(turn)
            share = _halton(turn)
            longest = float(shared["trajectory"][0]) / float(to_host(shared["step_size"]).max())
            count = max(1, math.ceil(share * longest))
            return step, min(count, int(shared.get("most_leapfrog", count))), share
        if self.jitter:
            u = rng.uniform((len(chains.x), 1), step.dtype)
            step = step * (1 + step.dtype.type(self.jitter) * (2 * u - 1))
        return step, self.n_leapfrog, 1.0


@register
class Langevin(Gradient):
    """Langevin dynamics: x' = x - ε ∂F + √(2εT) ξ.

    Samples exp(-F/T). ``adjusted`` accepts or rejects each step (MALA; Roberts and Tweedie, 1996),
    which makes it exact; without, the step size is the bias: N(0, σ²) comes out with variance
    σ²/(1 - ε/2σ²).

    Parameters
    ----------
    step_size : float, optional
        ε, in squared units of x. Default: found at the start, then adapted.
    temperature : float > 0, default 1
        T; the noise always belongs to the step.
    adjusted : bool, default True
    adaptation : adapter or sequence of adapters, optional
        As for `HMC`; only for an adjusted sampler.
    """

    target_acceptance: ClassVar[float] = 0.574

    def __init__(
        self,
        step_size: float | None = None,
        temperature: float = 1.0,
        adjusted: bool = True,
        adaptation: Any = None,
    ) -> None:
        self.step_size = step_size
        self.temperature = temperature
        self.adjusted = adjusted
        self.adaptation = adaptation

    @property
    def invariant(self) -> bool:
        """Only the adjusted dynamics leave the target alone."""
        return self.adjusted

    @property
    def reversible(self) -> bool:
        """Only the adjusted dynamics satisfy detailed balance."""
        return self.adjusted

    def validate(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"Langevin.temperature must be > 0, got {self.temperature!r}")
        super().validate()
        if not self.adjusted and self.step_size is None:
            raise ValueError(
                "Langevin(adjusted=False) needs a step_size: nothing tells it which bias is small "
                "enough. adjusted=True finds one"
            )
        if not self.adjusted and self.adaptation is not None:
            raise ValueError("Langevin(adjusted=False) accepts every step: nothing to adapt to")

    def _from_scale(self, scale: float) -> float:
        return scale * scale / (2 * self.temperature)

    def step(self, target: Any, chains: Chains, rng: Any, passed: Any = None) -> Info:
        xp, x, heat = namespace(chains.x), chains.x, self.temperature
        step = xp.sqrt(self._step_sizes(chains) * x.dtype.type(2 * heat))
        scale = self._scaled(target, step, chains)
        z = rng.normal(x.shape, x.dtype)
        if not self.adjusted:
            grad = target.input_grad(x) if passed is None else passed.input_grad()
            moved = x.copy()
            q = z.reshape(len(x), -1) * scale
            half = scale * scale * x.dtype.type(0.5 / heat)
            leapfrog(moved.reshape(len(x), -1), q, grad.reshape(len(x), -1), half)
            chains.x = moved
            return {"acceptance": xp.ones(len(x))}
        energy, grad = self._at_start(target, chains, passed)
        with np.errstate(over="ignore", invalid="ignore"):
            end = trajectory(target, x, grad, z, scale, 1, heat)
            return self._accept(target, chains, (energy, grad), z, end, rng)


def _halton(i: int) -> float:
    """The i-th number of the van der Corput sequence in base 2, in (0, 1)."""
    value, base = 0.0, 0.5
    while i:
        value += base * (i & 1)
        i, base = i >> 1, base / 2
    return value
