"""What sets a sampler's step size, trajectory length and masses from what its chains do.

An adapter is an object of its own: it writes to the shared values of the `Chains` and to nothing
else, all on the device. Stand-alone sampling adapts in a warm-up and freezes; a sampler inside a
trainer follows a model that moves, and never does.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from sklearn.base import BaseEstimator

from energyscape.backend import Array, namespace, to_host
from energyscape.registry import register
from energyscape.samplers.base import Chains, Info

# Steps that tell an acceptance, and how far from its target it is worth a word.
_ENOUGH, _OFF = 50, 0.15


class Adapter(BaseEstimator):
    """Base of all adapters.

    ``follows`` says whether it can adapt without end, to a model that is being trained; the others
    converge within a warm-up.
    """

    follows: ClassVar[bool] = False

    def start(self, chains: Chains, n_steps: int) -> None:
        """Put what the adapter keeps into ``chains.shared``; ``n_steps`` are to come."""

    def update(self, chains: Chains, info: Info) -> None:
        """Change the shared values after a step that gave ``info``."""

    def finish(self, chains: Chains) -> None:
        """Settle on what will be used from here on."""

    def complaint(self, chains: Chains) -> str | None:
        """What is wrong with the values that were reached, in words; asked before `finish`."""
        return None

    def lost(self, chains: Chains) -> str | None:
        """What a model has whose chains can no longer follow it, in words; None if they can."""
        return None


def grouped_mean(values: Array, groups: int) -> Array:
    """Means over the chains of each group (replicas of a chain lie side by side), (groups,)."""
    return values.reshape(-1, groups).mean(axis=0)


def _acceptance(chains: Chains, info: Info) -> Array:
    """One mean acceptance for each step size."""
    return grouped_mean(info["acceptance"], len(chains.shared["step_size"]))


@register
class Multiplicative(Adapter):
    """Step size up by one percent while chains reject too little, down while too much.

    The running rejection rate is a ← 0.9a + 0.1r. It settles into a limit cycle of ±1 % and never
    converges: made for chains that follow a model in training (Ranzato, Krizhevsky, Hinton, 2010).

    Parameters
    ----------
    target_rejection : float in (0, 1), default 0.1
    up, down : float, default 1.01 and 0.99
    bounds : (low, high), optional
        Of the step size. Default: a thousandth of the first step size, and a thousand times.
    """

    follows: ClassVar[bool] = True

    def __init__(
        self,
        target_rejection: float = 0.1,
        up: float = 1.01,
        down: float = 0.99,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        self.target_rejection = target_rejection
        self.up = up
        self.down = down
        self.bounds = bounds

    @property
    def target(self) -> float:
        """The mean acceptance, as of the other adapters of step sizes."""
        return 1 - self.target_rejection

    def start(self, chains: Chains, n_steps: int) -> None:
        _check_rate("Multiplicative.target_rejection", self.target_rejection)
        if not self.up > 1 or not 0 < self.down < 1:
            raise ValueError(f"up must be > 1 and down in (0, 1), got {self.up}, {self.down}")
        if self.bounds is not None and not 0 < self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds must be 0 < low < high, got {self.bounds!r}")
        step, xp = chains.shared["step_size"], namespace(chains.x)
        low, high = self.bounds if self.bounds is not None else (step * 1e-3, step * 1e3)
        lowest, highest = xp.zeros_like(step) + low, xp.zeros_like(step) + high
        chains.shared |= {
            "rejection": xp.full_like(step, self.target_rejection),
            "lowest": lowest,
            "highest": highest,
            "step_size": xp.clip(step, lowest, highest),
        }

    def update(self, chains: Chains, info: Info) -> None:
        xp, shared = namespace(chains.x), chains.shared
        rejection = 0.9 * shared["rejection"] + 0.1 * (1 - _acceptance(chains, info))
        step = shared["step_size"]
        longer = xp.minimum(self.up * step, shared["highest"])
        shorter = xp.maximum(self.down * step, shared["lowest"])
        shared["rejection"] = rejection
        shared["step_size"] = xp.where(rejection < self.target_rejection, longer, shorter)

    def lost(self, chains: Chains) -> str | None:
        """Where the bounds are the default ones: a thousandth of the first step is none."""
        step = to_host(chains.shared["step_size"])
        if self.bounds is not None or (step > to_host(chains.shared["lowest"])).any():
            return None
        return f"has chains whose steps fell to a thousandth of the first ({float(step.min()):.3g})"

    def complaint(self, chains: Chains) -> str | None:
        step = to_host(chains.shared["step_size"])
        for name, side in (("lowest", "lower"), ("highest", "upper")):
            if (step == to_host(chains.shared[name])).any():
                return (
                    f"the step size sits at its {side} bound, {float(step.min()):.3g}: the chains "
                    f"{'hardly move' if side == 'lower' else 'could move further'}. Widen the "
                    "bounds, or look at the scale of the data"
                )
        return None


@register
class RobbinsMonro(Adapter):
    """log ε ← log ε + rate · t^-0.6 (acceptance - target): converges, and overshoots little.

    What is used afterwards is the average of log ε over the second half of the warm-up.

    Parameters
    ----------
    target : float in (0, 1), default 0.8
        Mean acceptance. 0.65 is best for a Gaussian of many dimensions (Beskos et al., 2013).
    rate : float > 0, default 2
    """

    def __init__(self, target: float = 0.8, rate: float = 2.0) -> None:
        self.target = target
        self.rate = rate

    def start(self, chains: Chains, n_steps: int) -> None:
        _check_rate("RobbinsMonro.target", self.target)
        if not self.rate > 0:
            raise ValueError(f"RobbinsMonro.rate must be > 0, got {self.rate!r}")
        step = chains.shared["step_size"]
        chains.shared["rm_time"] = np.array([0, n_steps])
        chains.shared["rm_log"] = namespace(step).zeros_like(step)
        chains.shared["rm_rate"] = namespace(step).zeros_like(step)

    def update(self, chains: Chains, info: Info) -> None:
        shared, xp = chains.shared, namespace(chains.x)
        t, total = (int(v) for v in shared["rm_time"])
        gain = self.rate * (t + 1) ** -0.6
        log_step, rate = xp.log(shared["step_size"]), _acceptance(chains, info)
        log_step = log_step + gain * (rate - self.target)
        shared["step_size"] = xp.exp(log_step)
        shared["rm_time"] = np.array([t + 1, total])
        if 2 * t >= total:
            shared["rm_log"] = shared["rm_log"] + log_step
            shared["rm_rate"] = shared["rm_rate"] + rate

    def finish(self, chains: Chains) -> None:
        shared = chains.shared
        t, total = (int(v) for v in shared.pop("rm_time"))
        summed, kept = shared.pop("rm_log"), t - (total + 1) // 2
        del shared["rm_rate"]
        if kept > 0:
            shared["step_size"] = namespace(summed).exp(summed / kept)

    def complaint(self, chains: Chains) -> str | None:
        t, total = (int(v) for v in chains.shared["rm_time"])
        kept = t - (total + 1) // 2
        if kept < _ENOUGH:
            return None
        rates = to_host(chains.shared["rm_rate"]) / kept
        worst = float(rates[abs(rates - self.target).argmax()])
        if abs(worst - self.target) < _OFF:
            return None
        return (
            f"the warm-up ended at an acceptance of {worst:.2f}, not {self.target:g}: the first "
            "step size was too far off. More n_warmup, or a step_size, helps"
        )


@register
class DualAveraging(Adapter):
    """Nesterov's dual averaging of log ε (Hoffman and Gelman, 2014, algorithm 5).

    As Stan and its kin have it, for those who compare. With a single chain on an easy target it
    lands too low: 0.83 for 0.8 in ten dimensions, measured over seeds.

    Parameters
    ----------
    target : float in (0, 1), default 0.8
    gamma, t0, kappa : float, default 0.05, 10, 0.75
    """

    def __init__(
        self, target: float = 0.8, gamma: float = 0.05, t0: float = 10.0, kappa: float = 0.75
    ) -> None:
        self.target = target
        self.gamma = gamma
        self.t0 = t0
        self.kappa = kappa

    def start(self, chains: Chains, n_steps: int) -> None:
        _check_rate("DualAveraging.target", self.target)
        if not (self.gamma > 0 and self.t0 >= 0 and 0 < self.kappa <= 1):
            raise ValueError("DualAveraging wants gamma > 0, t0 >= 0 and kappa in (0, 1]")
        step = chains.shared["step_size"]
        xp = namespace(step)
        chains.shared |= {
            "da_time": np.array(0),
            "da_centre": xp.log(10 * step),
            "da_gap": xp.zeros_like(step),
            "da_log": xp.zeros_like(step),
        }

    def update(self, chains: Chains, info: Info) -> None:
        shared, xp = chains.shared, namespace(chains.x)
        t = int(shared["da_time"]) + 1
        share = 1 / (t + self.t0)
        gap = (1 - share) * shared["da_gap"] + share * (self.target - _acceptance(chains, info))
        log_step = shared["da_centre"] - gap * (math.sqrt(t) / self.gamma)
        weight = t**-self.kappa
        shared["da_log"] = (1 - weight) * shared["da_log"] + weight * log_step
        shared["da_gap"], shared["da_time"] = gap, np.array(t)
        shared["step_size"] = xp.exp(log_step)

    def finish(self, chains: Chains) -> None:
        shared = chains.shared
        t = int(shared.pop("da_time"))
        log_step = shared.pop("da_log")
        del shared["da_gap"], shared["da_centre"]
        if t:
            shared["step_size"] = namespace(log_step).exp(log_step)


@register
class ChEES(Adapter):
    """Trajectory length by the change in the estimator of the expected square (Hoffman, Radul,
    Sountsov, 2021): stochastic ascent on E(|x'-m|² - |x-m|²)²/4 by Adam on log T, from all chains.

    Parameters
    ----------
    rate : float > 0, default 0.025
        Of Adam.
    longest : int, default 1000
        Most leapfrog steps of one trajectory.
    """

    def __init__(self, rate: float = 0.025, longest: int = 1000) -> None:
        self.rate = rate
        self.longest = longest

    def start(self, chains: Chains, n_steps: int) -> None:
        if not self.rate > 0 or self.longest < 1:
            raise ValueError("ChEES wants rate > 0 and longest >= 1")
        if len(chains.x) < 2:
            raise ValueError("ChEES compares chains: it needs at least two")
        if "n_leapfrog" not in chains.shared:
            raise ValueError("ChEES adapts the trajectories of HMC; this sampler has none")
        chains.shared |= {
            "most_leapfrog": np.array(self.longest),
            "halton": np.array(0),
            "chees_time": np.array(0),
            "chees_adam": np.zeros(2),
            "chees_log": np.zeros(1),
        }
        # The length begins at one step and is found from below: long trajectories are dear.
        chains.shared["trajectory"] = to_host(chains.shared["step_size"])[:1].copy()

    def update(self, chains: Chains, info: Info) -> None:
        shared = chains.shared
        slope = float(to_host(_chees_slope(info, chains.x))) * float(shared["trajectory"][0])
        t = int(shared["chees_time"]) + 1
        moments = to_host(shared["chees_adam"])
        if math.isfinite(slope):
            moments = np.array([0.0, 0.95]) * moments + np.array([1.0, 0.05]) * [slope, slope**2]
        scale = math.sqrt(moments[1] / (1 - 0.95**t)) + 1e-30
        move = float(np.clip(self.rate * moments[0] / scale, -0.35, 0.35))
        step = float(to_host(shared["step_size"]).max())
        low, high = math.log(step), math.log(step * self.longest)
        log_length = min(max(math.log(float(shared["trajectory"][0])) + move, low), high)
        weight = t**-0.5
        shared["chees_log"] = (1 - weight) * to_host(shared["chees_log"]) + weight * log_length
        shared["chees_adam"], shared["chees_time"] = moments, np.array(t)
        shared["trajectory"] = np.array([math.exp(log_length)])

    def finish(self, chains: Chains) -> None:
        shared = chains.shared
        if int(shared.pop("chees_time")):
            shared["trajectory"] = np.exp(shared.pop("chees_log"))
        del shared["chees_adam"]


def _chees_slope(info: Info, x: Array) -> Array:
    """∂/∂T of the criterion, weighted by acceptance; end points and velocities are proposals."""
    xp = namespace(x)
    start, end, velocity = (_flat64(info[key]) for key in ("origin", "proposal", "velocity"))
    weight = xp.where(info["acceptance"] > 1e-4, info["acceptance"], 0.0)
    total = weight.sum() + 1e-30
    end = xp.where(weight[:, None] > 0, end, 0.0)
    velocity = xp.where(weight[:, None] > 0, velocity, 0.0)
    before = start - start.mean(axis=0)
    after = end - (weight @ end) / total
    gain = (after * after).sum(axis=1) - (before * before).sum(axis=1)
    return info["jitter"] * (weight @ (gain * (after * velocity).sum(axis=1))) / total


def _flat64(x: Array) -> Array:
    return x.reshape(len(x), -1).astype(np.float64)


@register
class PooledMass(Adapter):
    """Diagonal masses from the variances over all chains and steps, the inverse mass being the
    shrunk variance (Stan's rule: n/(n+5) s² + 5/(n+5) of its mean times 1e-3).

    Masses are renewed in windows that double in length, so that what the chains did on the way to
    the target is forgotten; the step size adapts to each.
    """

    def start(self, chains: Chains, n_steps: int) -> None:
        if "n_leapfrog" not in chains.shared:
            raise ValueError("PooledMass adapts the masses of HMC; this sampler has none")
        ones = namespace(chains.x).ones(chains.x.shape[1:], np.float64)
        chains.shared.setdefault("inverse_mass", ones)
        # Windows that end with the warm-up's first 90 %: the step size has the rest.
        ends, length, at = [], max(10, n_steps // 40), 0
        while at + 3 * length < 0.9 * n_steps:
            at += length
            ends.append(at)
            length *= 2
        ends.append(max(at + 1, int(0.9 * n_steps)))
        chains.shared["pm_time"] = np.array(0)
        chains.shared["pm_ends"] = np.array(ends)
        self._forget(chains)

    def _forget(self, chains: Chains) -> None:
        zero = namespace(chains.x).zeros(chains.x.shape[1:], np.float64)
        # Around the present mean: sums of squares of features far from 0 would cancel.
        chains.shared |= {
            "pm_centre": chains.x.mean(axis=0, dtype=np.float64),
            "pm_sum": zero,
            "pm_squares": zero.copy(),
            "pm_count": np.array(0),
        }

    def update(self, chains: Chains, info: Info) -> None:
        shared, xp = chains.shared, namespace(chains.x)
        d = chains.x - shared["pm_centre"]
        shared["pm_sum"] = shared["pm_sum"] + d.sum(axis=0)
        shared["pm_squares"] = shared["pm_squares"] + (d * d).sum(axis=0)
        n = int(shared["pm_count"]) + len(chains.x)
        t = int(shared["pm_time"]) + 1
        shared["pm_count"], shared["pm_time"] = np.array(n), np.array(t)
        if t not in to_host(shared["pm_ends"]):
            return
        variance = shared["pm_squares"] / n - (shared["pm_sum"] / n) ** 2
        # Coordinates that have not moved, or are held, say nothing of the masses.
        old, moved = shared["inverse_mass"], variance > 0
        count = xp.maximum(moved.sum(), 1)
        # The geometric mean: one wide coordinate is no floor for narrow ones.
        floor = 1e-3 * xp.exp(xp.log(xp.where(moved, variance, 1.0)).sum() / count)
        variance = xp.where(moved, (n * variance + 5 * floor) / (n + 5), old)
        # One leapfrog step stays as long as it was, on average over the coordinates.
        ratio = xp.exp(0.5 * (xp.log(old) - xp.log(variance)).sum() / count)
        shared["inverse_mass"] = variance
        _rescale(shared, ratio)
        self._forget(chains)

    def finish(self, chains: Chains) -> None:
        for key in [key for key in chains.shared if key.startswith("pm_")]:
            del chains.shared[key]


def _rescale(shared: dict[str, Array], ratio: Array) -> None:
    """All lengths, and the logarithms that adapters keep of them, in the units of new masses."""
    log_ratio = namespace(ratio).log(ratio)
    shared["step_size"] = shared["step_size"] * ratio
    for key in ("da_centre", "da_log"):
        if key in shared:
            shared[key] = shared[key] + log_ratio
    if "rm_log" in shared:
        t, total = (int(v) for v in shared["rm_time"])
        shared["rm_log"] = shared["rm_log"] + max(0, t - (total + 1) // 2) * log_ratio
    if "trajectory" in shared:
        shared["trajectory"] = shared["trajectory"] * float(to_host(ratio))
    if "chees_log" in shared:
        shared["chees_log"] = shared["chees_log"] + float(to_host(log_ratio))


def _check_rate(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must be in (0, 1), got {value!r}")
