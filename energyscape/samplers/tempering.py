"""Parallel tempering: replicas of every chain at falling β, which now and then change places.

Replicas r and r + 1 of a chain swap with probability min(1, exp(a)),
a = F_r(x_r) + F_{r+1}(x_{r+1}) - F_r(x_{r+1}) - F_{r+1}(x_r), F_r being the energy at β_r: right
for a multiplied energy as for a path from a base measure (Geyer, 1991; Swendsen and Wang, 1986).
Even and odd pairs take turns (Syed, Bouchard-Côté, Deligiannidis, Doucet, 2021). All replicas of
all chains move as one batch, so that R replicas of n chains cost what Rn chains do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from scipy.special import erfcinv
from sklearn.base import clone

from energyscape.backend import Array, namespace, to_host
from energyscape.errors import CapabilityError
from energyscape.progress import Bar
from energyscape.registry import register
from energyscape.samplers.base import Chains, Info, Sampler, as_stream, need_unit_temperature
from energyscape.samplers.gibbs import Gibbs
from energyscape.samplers.target import as_target
from energyscape.verbs import check_count


@register
class ParallelTempering(Sampler):
    """Any sampler, on a ladder of temperatures.

    Parameters
    ----------
    sampler : sampler, optional
        Moves the replicas. Default: `Gibbs`.
    betas : sequence of float in (0, 1], optional
        The ladder, falling from 1. Default: ``n_temperatures`` of equal distance, the last one
        1/n_temperatures. `tuned` finds one of equal swap rates.
    n_temperatures : int, default 8
        R, where ``betas`` is None.

    Notes
    -----
    The target decides what β means: a model with a base measure,
    ``model.target(params, base=model.base_measure(params))``, leads to that measure, and any other
    target's (joint) energy is multiplied. Real values need an energy that can be normalised at the
    smallest β.
    """

    tempers: ClassVar[bool] = True

    def __init__(
        self,
        sampler: Sampler | None = None,
        betas: Sequence[float] | None = None,
        n_temperatures: int = 8,
    ) -> None:
        self.sampler = sampler
        self.betas = betas
        self.n_temperatures = n_temperatures

    # ------------------------------------------------------------ settings

    @property
    def inner(self) -> Sampler:
        """What moves the replicas."""
        return Gibbs() if self.sampler is None else self.sampler

    def ladder(self) -> np.ndarray:
        """β from 1 downwards, shape (R,).

        Raises
        ------
        ValueError
            Unless it falls strictly from 1 and stays above 0.
        """
        if self.betas is None:
            check_count("ParallelTempering.n_temperatures", self.n_temperatures, 2)
            return np.linspace(1.0, 1.0 / self.n_temperatures, self.n_temperatures)
        betas = np.asarray(self.betas, np.float64)
        if betas.ndim != 1 or len(betas) < 2:
            raise ValueError(f"betas must be a sequence of at least two, got {self.betas!r}")
        if betas[0] != 1 or not (np.diff(betas) < 0).all() or not betas[-1] > 0:
            raise ValueError(
                "betas must lie in (0, 1] and fall strictly from 1, the temperature of the model; "
                f"got {betas.tolist()}"
            )
        return betas

    @property
    def reversible(self) -> bool:
        """Turns of even and odd pairs have a direction."""
        return False

    @property
    def invariant(self) -> bool:
        """As the sampler inside."""
        return self.inner.invariant

    def validate(self) -> None:
        self.ladder()
        if isinstance(self.inner, ParallelTempering):
            raise ValueError("ParallelTempering inside ParallelTempering: one ladder is enough")
        need_unit_temperature(self.inner, "ParallelTempering")
        self.inner.validate()

    def obstacle(self, target: Any) -> str | None:
        return self.inner.obstacle(target)

    def check(self, target: Any, x: Array) -> None:
        self.validate()
        if not hasattr(target.forward(x[:1]), "at"):
            raise CapabilityError(
                f"ParallelTempering needs energies at every β from one evaluation; the passes of "
                f"{target.name} have no at(beta)"
            )
        if np.ndim(target.beta) or target.beta != 1.0:
            raise ValueError("ParallelTempering sets β itself: give it the target at β = 1")
        for beta in self.ladder()[[0, -1]]:
            self.inner.check(target.at(float(beta)), x)

    def adapters(self, persistent: bool) -> tuple[Any, ...]:
        return self.inner.adapters(persistent)

    # ------------------------------------------------------------ moves

    def start(self, target: Any, x: Array, rng: Any) -> Chains:
        """All replicas of a chain begin where it does."""
        xp, ladder = namespace(x), self.ladder()
        n, replicas = len(x), len(ladder)
        betas = xp.asarray(ladder)
        rows = xp.repeat(x, replicas, axis=0)
        inner = self.inner.start(_folded(target, betas, n), rows, rng)
        if "step_size" in inner.shared:
            inner.shared["step_size"] = xp.zeros(replicas) + inner.shared["step_size"]
        chains = Chains(x, {}, inner.shared | {"betas": betas})
        self.restart(chains, rng)
        self.reset(chains)
        return chains

    def settings(self) -> tuple[str, ...]:
        return (*self.inner.settings(), "betas")

    def restart(self, chains: Chains, rng: Any) -> None:
        n, replicas = len(chains.x), len(chains.shared["betas"])
        inner = Chains(namespace(chains.x).repeat(chains.x, replicas, axis=0))
        self.inner.restart(inner, rng)
        chains.cache = None
        chains.own = {f"inner_{key}": _apart(value, n) for key, value in inner.own.items()}
        chains.own["hot"] = _apart(inner.x, n)[:, 1:]
        chains.own["visited"] = namespace(chains.x).zeros((n, replicas), np.int8)

    def reset(self, chains: Chains) -> None:
        xp, replicas = namespace(chains.x), len(chains.shared["betas"])
        chains.shared |= {
            "turn": np.array(0),
            "swaps": xp.zeros(replicas - 1),
            "proposals": np.zeros(replicas - 1),
            "round_trips": xp.zeros(()),
        }

    def step(self, target: Any, chains: Chains, rng: Any, passed: Any = None) -> Info:
        xp, n, betas = namespace(chains.x), len(chains.x), chains.shared["betas"]
        rows = xp.concatenate([chains.x[:, None], chains.own["hot"]], axis=1)
        rows = rows.reshape(-1, *chains.x.shape[1:])
        folded = _folded(target, betas, n)
        passed = folded.forward(rows)
        order = self._swapped(chains, passed, rng).reshape(-1)
        rows, passed = rows[order], passed[order].at(folded.beta)
        prefix = "inner_"
        own = {
            key.removeprefix(prefix): value.reshape(-1, *value.shape[2:])
            for key, value in chains.own.items()
            if key.startswith(prefix)
        }
        inner = Chains(rows, own, chains.shared)
        info = self.inner.step(folded, inner, rng, passed)
        moved = _apart(inner.x, n)
        chains.x, chains.own["hot"] = xp.ascontiguousarray(moved[:, 0]), moved[:, 1:]
        chains.own |= {prefix + key: _apart(value, n) for key, value in inner.own.items()}
        return info

    def _swapped(self, chains: Chains, passed: Any, rng: Any) -> Array:
        """Which row stands where after this turn's swaps, shape (n, R); books are kept."""
        xp, shared, n = namespace(chains.x), chains.shared, len(chains.x)
        betas = shared["betas"]
        replicas, turn = len(betas), int(shared["turn"])
        shared["turn"] = np.array(turn + 1)
        order = xp.arange(n * replicas).reshape(n, replicas)
        low, high = slice(turn % 2, replicas - 1, 2), slice(turn % 2 + 1, replicas, 2)
        if len(range(replicas)[low]) == 0:
            return order
        partners = betas.copy()
        partners[low], partners[high] = betas[high], betas[low]
        own = passed.energy().reshape(n, replicas)
        other = passed.at(_each(partners, n)).energy().reshape(n, replicas)
        gain = own[:, low] + own[:, high] - other[:, low] - other[:, high]
        swapped = rng.exponential(gain.shape) > -gain
        below, above = order[:, low].copy(), order[:, high].copy()
        order[:, low] = xp.where(swapped, above, below)
        order[:, high] = xp.where(swapped, below, above)
        # New arrays: a checkpoint may hold the old ones.
        swaps, proposals = shared["swaps"].copy(), shared["proposals"].copy()
        swaps[low] += swapped.sum(axis=0)
        proposals[low] += n
        shared |= {"swaps": swaps, "proposals": proposals}
        self._count_round_trips(chains, order)
        return order

    def _count_round_trips(self, chains: Chains, order: Array) -> None:
        """A replica that was cold, then hottest, and is cold again has made one."""
        xp = namespace(order)
        visited = chains.own["visited"].reshape(-1)[order]
        cold, hottest = visited[:, 0], visited[:, -1]
        shared = chains.shared
        shared["round_trips"] = shared["round_trips"] + (cold == 2).sum()
        visited[:, 0] = 1
        visited[:, -1] = xp.where(hottest == 1, 2, hottest)
        chains.own["visited"] = visited

    def summary(self, chains: Chains) -> dict[str, Any]:
        """``swap_rate`` of every neighbouring pair, and ``round_trips`` per chain and step."""
        shared = chains.shared
        steps = max(1, int(shared["turn"])) * len(chains.x)
        return {
            "swap_rate": to_host(shared["swaps"]) / np.maximum(shared["proposals"], 1),
            "round_trips": float(to_host(shared["round_trips"])) / steps,
        }

    # ------------------------------------------------------------ the ladder

    def tuned(
        self,
        target: Any,
        start: Array,
        n_steps: int = 200,
        random_state: Any = None,
        n_rounds: int = 4,
    ) -> ParallelTempering:
        """The same sampler on a ladder of equal swap rates, found in ``n_rounds`` pilot runs.

        Where energies are nearly normal the swap rate of a pair is erfc of a distance, and
        distances add up along the ladder (Kofke, 2004): log β is moved so that they are equal; the
        ends stay.

        Parameters
        ----------
        target, start, random_state
            As for `run`.
        n_steps : int, default 200
            Steps of one pilot run; each goes on where the last one ended.

        Returns
        -------
        ParallelTempering
        """
        target, rng = as_target(target), as_stream(random_state, start)
        tuned = clone(self).set_params(betas=[float(b) for b in self.ladder()])
        tuned.check(target, start)
        chains = tuned.start(target, start, rng)
        adapters = tuned.adapters(persistent=False)
        if adapters:
            tuned._warm_up(target, chains, adapters, n_steps, rng, Bar(disable=True))
        for _ in range(n_rounds):
            for _ in range(n_steps):
                tuned.step(target, chains, rng)
            # A rate of 0 or 1 says no more than how many swaps were tried.
            rate = np.clip(tuned.summary(chains)["swap_rate"], 1e-3, 1 - 1e-3)
            length = np.concatenate([[0.0], np.cumsum(erfcinv(rate))])
            even = np.linspace(0, length[-1], len(length))
            betas = np.exp(np.interp(even, length, np.log(tuned.ladder())))
            betas[0] = 1.0
            tuned.set_params(betas=[float(b) for b in betas])
            chains.shared["betas"] = namespace(start).asarray(betas)
            tuned.reset(chains)
        return tuned


def _each(betas: Array, n: int) -> Array:
    """The ladder for each of ``n`` chains, replicas of a chain side by side."""
    return namespace(betas).concatenate([betas] * n)


def _folded(target: Any, betas: Array, n: int) -> Any:
    """The target of all replicas as one batch."""
    return target.tiled(len(betas)).at(_each(betas, n))


def _apart(rows: Array, n: int) -> Array:
    """(n·R, …) as (n, R, …)."""
    return rows.reshape(n, -1, *rows.shape[1:])
