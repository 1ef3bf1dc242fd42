"""What every sampler shares: the state of its chains, the checks at the door, and the one loop.

A sampler is configuration; its state is `Chains`, arrays alone, so that a checkpoint holds it as
it is; randomness is a stream that the caller gives. Chains lie on axis 0 and move as one batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator

from energyscape.backend import (
    Array,
    Purpose,
    Stream,
    device_of,
    draw_seed,
    namespace,
    stream,
    to_host,
)
from energyscape.errors import CapabilityError, SamplerWarning
from energyscape.progress import Bar
from energyscape.registry import registered
from energyscape.samplers.target import Tag, as_target
from energyscape.verbs import check_count


@dataclass(slots=True)
class Chains:
    """Where the chains are, and what their sampler keeps.

    Attributes
    ----------
    x : array, shape (n_chains, *event_shape)
    own : dict of arrays, n_chains on axis 0
        What belongs to single chains: momenta, hot replicas.
    shared : dict of arrays
        What all share: step size, running rates, the state of adaptation.
    cache : (Tag, energies, gradients) or None
        At ``x``; it holds only while the target's tag is the same.
    """

    x: Array
    own: dict[str, Array] = field(default_factory=dict)
    shared: dict[str, Array] = field(default_factory=dict)
    cache: tuple[Tag, Array, Array] | None = None

    def carry(self) -> dict[str, Array]:
        """The arrays by the names that checkpoints use; the cache is left out."""
        own = {f"chain/{key}": value for key, value in self.own.items()}
        return own | {"chain/x": self.x} | {f"sampler/{k}": v for k, v in self.shared.items()}

    @classmethod
    def of(cls, carry: dict[str, Array]) -> Chains:
        """The chains that `carry` wrote."""
        parts: dict[str, dict[str, Array]] = {"chain": {}, "sampler": {}}
        for key, value in carry.items():
            owner, _, name = key.partition("/")
            if owner in parts:
                parts[owner][name] = value
        return cls(parts["chain"].pop("x"), parts["chain"], parts["sampler"])


Info = dict[str, Array]


@dataclass
class ChainRun:
    """What a run leaves.

    Attributes
    ----------
    x : array, shape (n_chains, *event_shape)
        Last states.
    reduced : list
        One result per reducer, in their order.
    rates : dict of float or array
        Means over the steps after the warm-up: ``acceptance``, ``divergent``, ``swap_rate`` ….
    shared : dict of arrays
        The sampler's values at the end, such as ``step_size``.
    n_steps, n_warmup : int
    """

    x: Array
    reduced: list[Any]
    rates: dict[str, Any]
    shared: dict[str, np.ndarray]
    n_steps: int
    n_warmup: int
    chains: Chains = field(repr=False)


class Sampler(BaseEstimator):
    """Base of all samplers: subclasses write `start` and `step`."""

    domains: ClassVar[tuple[str, ...]] = ()
    needs_gradient: ClassVar[bool] = False
    needs_sweep: ClassVar[bool] = False
    tempers: ClassVar[bool] = False
    # Whether chains go where the energy is low; those of learned dynamics go where these lead.
    follows_energy: ClassVar[bool] = True
    remedy: ClassVar[str] = ""  # against chains that hardly move
    # T of the dynamics: they leave exp(-F/T) alone.
    temperature: float = 1.0

    @property
    def reversible(self) -> bool:
        """Whether a step satisfies detailed balance, as the reverse of an annealing path needs."""
        return True

    @property
    def invariant(self) -> bool:
        """Whether a step leaves the target as it is; False for an unadjusted one."""
        return True

    # ------------------------------------------------------------ what subclasses say

    def validate(self) -> None:
        """Raise ValueError for settings that cannot be."""

    def start(self, target: Any, x: Array, rng: Any) -> Chains:
        """Chains at ``x``, with whatever the sampler keeps."""
        return Chains(x)

    def step(self, target: Any, chains: Chains, rng: Any, passed: Any = None) -> Info:
        """Move every chain once, in place of its old state.

        Parameters
        ----------
        target : target
        chains : Chains
        rng : Stream
        passed : pass, optional
            The target's evaluation at ``chains.x``, where the caller has it.

        Returns
        -------
        dict of arrays
            ``acceptance`` and the like, on the device.
        """
        raise NotImplementedError

    def adapters(self, persistent: bool) -> tuple[Any, ...]:
        """What changes the sampler's values as it goes: in a warm-up, or (``persistent``) for as
        long as it follows a model that is being trained."""
        return ()

    def restart(self, chains: Chains, rng: Any) -> None:
        """New chains at ``chains.x``; what all share goes on."""
        chains.own, chains.cache = {}, None

    def settings(self) -> tuple[str, ...]:
        """Names of shared values that are configuration, not state."""
        return ()

    def reset(self, chains: Chains) -> None:
        """Forget what was counted: a warm-up is over."""

    def summary(self, chains: Chains) -> dict[str, Any]:
        """What the chains' own counts say of the run, for `ChainRun.rates`."""
        return {}

    # ------------------------------------------------------------ checks

    def obstacle(self, target: Any) -> str | None:
        """Why this sampler cannot move ``target``, in words; None if it can."""
        if self.domains and target.domain not in self.domains:
            wanted = " or ".join(self.domains)
            return f"it moves {wanted} values; those of {target.name} are {target.domain}"
        if self.needs_gradient and not target.has_gradient:
            return f"it needs the gradient ∂F/∂x, which {target.name} does not offer"
        if self.needs_sweep and not target.has_sweep:
            return f"it needs a model with sample_hidden and sample_visible; {target.name} is none"
        return None

    def check(self, target: Any, x: Array) -> None:
        """Raise what is wrong with the settings, the target or the start.

        Raises
        ------
        CapabilityError
            If the target has the wrong kind of units, or lacks a gradient or conditionals.
        ValueError
            For a start of the wrong shape or with values that are not finite, for energies or
            gradients that are not finite there, and for an energy that grows too slowly to be
            normalised.
        """
        self.validate()
        why = self.obstacle(target)
        if why is not None:
            able = [cls().obstacle(target) is None and name for name, cls in _samplers().items()]
            raise CapabilityError(
                f"{type(self).__name__} cannot sample {target.name}: {why}. Samplers that can: "
                f"{', '.join(name for name in able if name) or 'none'}."
            )
        _check_shape(target, x)
        _check_finite(namespace(x).isfinite(x), "start", "is not finite")
        passed = target.forward(x)
        _check_finite(namespace(x).isfinite(passed.energy()), "start", "has no finite energy")
        if self.needs_gradient:
            finite = namespace(x).isfinite(passed.input_grad())
            _check_finite(finite, "the gradient of the target", "is not finite at the start")
        if target.domain == "real":
            check_proper(target, x, self.temperature)

    # ------------------------------------------------------------ the loop

    def run(
        self,
        target: Any,
        start: Array,
        n_steps: int,
        random_state: Any = None,
        *,
        n_warmup: int | None = None,
        thin: int = 1,
        reducers: Sequence[Any] = (),
        verbose: bool = False,
    ) -> ChainRun:
        """Run all chains from ``start``; nothing is stored but what the reducers ask for.

        Parameters
        ----------
        target : target, (energy, grad), or an object with both
            ``model.target(params)``, or functions of x of shape (n, *event_shape).
        start : array, shape (n_chains, *event_shape)
            Left as it is; held coordinates are put in.
        n_steps : int
            Steps after the warm-up.
        random_state : int, Generator, RandomState, Stream or None
        n_warmup : int, optional
            Steps before, in which the sampler adapts; frozen afterwards. Default: 500 if there is
            something to adapt, else 0.
        thin : int, default 1
            The reducers see every ``thin``-th state.
        reducers : sequence, default ()
            `Trace`, `Moments`, or any object with ``begin(x, n)``, ``add(state, x) → state`` and
            ``end(state)``.
        verbose : bool, default False
            Show progress on stderr.

        Returns
        -------
        ChainRun

        Raises
        ------
        CapabilityError, ValueError
            As for `check`.

        Warns
        -----
        SamplerWarning
            If an adaptation ended at its bound, or chains diverged or never moved.
        """
        target = as_target(target)
        check_count("n_steps", n_steps, 0)
        check_count("thin", thin)
        _check_shape(target, start)
        target = target.shaped(tuple(start.shape[1:]))
        start = target.hold(start.copy())
        self.check(target, start)
        rng = as_stream(random_state, start)
        adapters = self.adapters(persistent=False)
        if n_warmup is None:
            n_warmup = 500 if adapters else 0
        check_count("n_warmup", n_warmup, 0)
        chains = self.start(target, start, rng)
        bar = Bar(total=n_warmup + n_steps, desc=type(self).__name__, disable=not verbose)
        with bar:
            if n_warmup:
                self._warm_up(target, chains, adapters, n_warmup, rng, bar)
            return self._sample(target, chains, n_steps, n_warmup, thin, reducers, rng, bar)

    def _warm_up(
        self, target: Any, chains: Chains, adapters: Any, n: int, rng: Any, bar: Any
    ) -> None:
        for adapter in adapters:
            adapter.start(chains, n)
        for _ in range(n):
            info = self.step(target, chains, rng)
            for adapter in adapters:
                adapter.update(chains, info)
            bar.update()
        complain(adapters, chains)
        for adapter in adapters:
            adapter.finish(chains)
        self.reset(chains)

    def _sample(
        self,
        target: Any,
        chains: Chains,
        n_steps: int,
        n_warmup: int,
        thin: int,
        reducers: Sequence[Any],
        rng: Any,
        bar: Any,
    ) -> ChainRun:
        states = [reducer.begin(chains.x, n_steps // thin) for reducer in reducers]
        sums: dict[str, Array] = {}
        for i in range(n_steps):
            info = self.step(target, chains, rng)
            for key, value in info.items():
                if key in _RATES:
                    mean = value.mean(axis=0, dtype=np.float64)
                    sums[key] = sums[key] + mean if key in sums else mean
            if (i + 1) % thin == 0:
                states = [
                    reducer.add(state, chains.x)
                    for reducer, state in zip(reducers, states, strict=True)
                ]
            bar.update()
        rates: dict[str, Any] = {key: float(total) / n_steps for key, total in sums.items()}
        rates |= self.summary(chains)
        if rates.get("acceptance", 1.0) < 1e-3:
            warnings.warn(
                f"{type(self).__name__} accepted {rates['acceptance']:.2g} of its proposals: the "
                f"chains hardly moved. {self.remedy}".rstrip(),
                SamplerWarning,
                stacklevel=3,
            )
        elif rates.get("divergent", 0.0) > _DIVERGING:
            warnings.warn(
                f"{rates['divergent']:.1%} of the trajectories of {type(self).__name__} diverged: "
                "its step size is too long for some region, which the chains then miss. A smaller "
                "step_size, or another scale of the coordinates, helps",
                SamplerWarning,
                stacklevel=3,
            )
        reduced = [r.end(state) for r, state in zip(reducers, states, strict=True)]
        shared = {key: to_host(value) for key, value in chains.shared.items()}
        return ChainRun(chains.x, reduced, rates, shared, n_steps, n_warmup, chains)


_RATES = ("acceptance", "divergent")
_DIVERGING = 0.01  # share of divergent trajectories that is worth a word


def as_stream(random_state: Any, like: Array) -> Any:
    """A stream on the device of ``like``: the one given, or a new one from a seed."""
    if isinstance(random_state, Stream):
        return random_state
    return stream(draw_seed(random_state), Purpose.SAMPLE, 0, device_of(like))


def need_unit_temperature(sampler: Sampler, who: str) -> None:
    """Raise ValueError for a sampler whose own temperature would be taken for the ladder's."""
    if sampler.temperature != 1.0:
        raise ValueError(
            f"{who} sets the temperature itself; {sampler!r} has another one of its own"
        )


def complain(adapters: Sequence[Any], chains: Chains) -> None:
    """Warn where an adaptation has something to say, such as that it sits at its bound."""
    for adapter in adapters:
        words = adapter.complaint(chains)
        if words is not None:
            warnings.warn(words, SamplerWarning, stacklevel=4)


def _samplers() -> dict[str, Any]:
    return registered(Sampler)


def _check_shape(target: Any, x: Array) -> None:
    shape = target.event_shape
    if x.ndim < 2 or (shape is not None and tuple(x.shape[1:]) != shape):
        wanted = "event shape" if shape is None else ", ".join(map(str, shape))
        raise ValueError(
            f"start has shape {tuple(x.shape)}; chains of this target have shape "
            f"(n_chains, {wanted})"
        )
    if len(x) < 1:
        raise ValueError("start has no chains")
    if x.dtype not in (np.float32, np.float64):
        raise ValueError(f"start has dtype {x.dtype}, wanted float32 or float64")


def _check_finite(finite: Array, what: str, fault: str) -> None:
    bad = np.flatnonzero(~to_host(finite).reshape(len(finite), -1).all(axis=1))
    if len(bad):
        names = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
        raise ValueError(f"{what} {fault} for {len(bad)} of {len(finite)} chains: {names}")


# How far out along a ray energies are compared, in units of the start's size: if the nearer pair
# raises an alarm, the farther one (which float32 cannot reach) decides.
_FAR = ((1e6, 1e8), (1e12, 1e14))


def check_proper(target: Any, x: Array, temperature: float = 1.0) -> None:
    """∫exp(-F/T) is infinite if F/T grows no faster than d·log|x| along an open set of directions.

    Measured between two far points of a random ray for each chain, so that an energy which fails
    only along single directions passes.
    """
    xp = namespace(x)
    free = xp.ones(x.shape, bool)
    if target.free is not None:
        free &= target.free
    dims = to_host(free).reshape(len(x), -1).sum(axis=1)
    if not dims.any():
        return
    ray = np.random.default_rng(0).standard_normal(x.shape).astype(x.dtype)
    ray = xp.where(free, xp.asarray(ray), 0)
    size = max(1.0, float(abs(x).max()))
    improper, slope = np.ones(len(x), bool), np.zeros(len(x))
    for ends in _FAR[: 1 if x.dtype == np.float32 else 2]:
        with np.errstate(all="ignore"):
            near, far = (
                to_host(target.energy(xp.where(free, ray * x.dtype.type(size * r), x)))
                for r in ends
            )
            slope = (far - near) / np.log(ends[1] / ends[0]) / temperature
        # NaN, as from an overflow to +∞, is not known to be improper.
        improper &= ((slope <= dims * (1 + 1e-6)) | np.isneginf(far)) & (dims > 0)
        if not improper.any():
            return
    worst = int(np.argmax(improper))
    raise ValueError(
        f"the energy of {target.name} grows like {float(slope[worst]):.4g} log|x| far out; in "
        f"{int(dims[worst])} dimensions exp(-F) can be normalised only if it grows faster than "
        f"{int(dims[worst])} log|x|. It is improper at this temperature"
    )
