"""How a gradient becomes a step: SGD, Adam, and schedules of the learning rate.

An optimiser keeps its arrays in the trainer's ``carry`` under ``opt/``, so that a checkpoint
holds them. Weight decay is the proximal step of l1|w| + l2 w²/2 after the update: stable for any
rate, and it touches only the parameters whose `Param` says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sklearn.base import BaseEstimator

from energyscape.backend import namespace
from energyscape.kernels import adapt, descend
from energyscape.registry import register
from energyscape.verbs import Param, Params

__all__ = ["SGD", "Adam", "Constant", "ExponentialDecay", "LinearDecay"]


@dataclass(slots=True)
class Moment:
    """When an update happens.

    Attributes
    ----------
    epoch, step : int
        Finished epochs and updates.
    progress : float or None
        Finished fraction of the run, in [0, 1); None where a run has no end (``partial_fit``).
    rng : Stream
        The random numbers of this step.
    """

    epoch: int
    step: int
    progress: float | None
    rng: Any = None


class Schedule(BaseEstimator):
    """Factor of the learning rate as a function of the finished fraction of a run."""

    def __call__(self, fraction: float) -> float:
        """The factor at ``fraction`` in [0, 1]."""
        raise NotImplementedError


@register
class Constant(Schedule):
    """The learning rate as it is."""

    def __call__(self, fraction: float) -> float:
        return 1.0


@register
class LinearDecay(Schedule):
    """Constant up to ``start``, then a straight line to ``end`` at the last update.

    Parameters
    ----------
    start : float, default 0
        Fraction of the run at which the fall begins.
    end : float, default 0
        Factor at the end of the run.
    """

    def __init__(self, start: float = 0.0, end: float = 0.0) -> None:
        self.start = start
        self.end = end

    def __call__(self, fraction: float) -> float:
        if fraction <= self.start:
            return 1.0
        return 1.0 + (self.end - 1.0) * (fraction - self.start) / (1.0 - self.start)


@register
class ExponentialDecay(Schedule):
    """A geometric fall to ``end`` at the last update.

    Parameters
    ----------
    end : float, default 0.01
        Factor at the end of the run, > 0.
    """

    def __init__(self, end: float = 0.01) -> None:
        self.end = end

    def __call__(self, fraction: float) -> float:
        return self.end**fraction


class Optimizer(BaseEstimator):
    """What SGD and Adam share: the rate of each parameter at each moment."""

    learning_rate: float
    schedule: Schedule | None
    rates: dict[str, float] | None
    l1: float
    l2: float

    def start(self, params: Params, specs: dict[str, Param]) -> Params:
        """The optimiser's arrays at the beginning, for ``carry``."""
        raise NotImplementedError

    def step(
        self, params: Params, grads: Params, carry: Params, specs: dict[str, Param], at: Moment
    ) -> None:
        """Move ``params`` against ``grads`` (which are used up) and update ``carry``."""
        raise NotImplementedError

    def validate(self, specs: dict[str, Param]) -> None:
        """Raise ValueError for settings that cannot be."""
        name = type(self).__name__
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"{name}.learning_rate must be > 0, got {self.learning_rate!r}")
        if self.l1 < 0 or self.l2 < 0:
            raise ValueError(f"{name}.l1 and l2 must be >= 0, got {self.l1!r} and {self.l2!r}")
        trainable = [k for k, spec in specs.items() if spec.trainable]
        for key, rate in (self.rates or {}).items():
            if key not in trainable:
                raise ValueError(
                    f"{name}.rates names {key!r}; the model's parameters are {', '.join(trainable)}"
                )
            if not rate >= 0:
                raise ValueError(f"{name}.rates[{key!r}] must be >= 0, got {rate!r}")

    def rate(self, at: Moment) -> float:
        """The learning rate at a moment; constant where the run has no end."""
        if at.progress is None:
            return self.learning_rate
        schedule = LinearDecay() if self.schedule is None else self.schedule
        return self.learning_rate * schedule(at.progress)

    def shares(self, specs: dict[str, Param], at: Moment) -> dict[str, float]:
        """Rates relative to the learning rate, by the name of every parameter that moves yet."""
        own, progress = self.rates or {}, at.progress or 0.0
        return {
            key: spec.rate * own.get(key, 1.0)
            for key, spec in specs.items()
            if spec.trainable and (at.progress is None or progress >= spec.start)
        }

    def _rates(self, specs: dict[str, Param], at: Moment) -> dict[str, float]:
        rate = self.rate(at)
        return {key: rate * share for key, share in self.shares(specs, at).items()}


@register
class SGD(Optimizer):
    """Stochastic gradient descent, plain or with momentum.

    Parameters
    ----------
    learning_rate : float, default 0.1
        Step along the mean gradient, before the schedule.
    momentum : float, default 0
        Fraction of the last step that the next one keeps, in [0, 1).
    nesterov : bool, default False
        Look ahead along the momentum (Sutskever, Martens, Dahl, Hinton, 2013, eq. 3-4).
    schedule : Schedule, optional
        Default: a linear fall to 0 over the epochs of ``fit``. ``partial_fit`` has no end, so
        the rate stays constant there.
    rates : dict of str to float, optional
        Further factors by parameter name, e.g. ``{"b": 2.0}``; 0 freezes one.
    l1, l2 : float, default 0
        Weight decay: the penalty l1 Σ|w| + l2/2 Σw², in the units of the parameters.
    """

    def __init__(
        self,
        learning_rate: float = 0.1,
        momentum: float = 0.0,
        nesterov: bool = False,
        schedule: Schedule | None = None,
        rates: dict[str, float] | None = None,
        l1: float = 0.0,
        l2: float = 0.0,
    ) -> None:
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.nesterov = nesterov
        self.schedule = schedule
        self.rates = rates
        self.l1 = l1
        self.l2 = l2

    def validate(self, specs: dict[str, Param]) -> None:
        super().validate(specs)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"SGD.momentum must be in [0, 1), got {self.momentum!r}")
        if self.nesterov and not self.momentum:
            raise ValueError("SGD.nesterov needs momentum > 0")

    def start(self, params: Params, specs: dict[str, Param]) -> Params:
        if not self.momentum:
            return {}
        return {
            f"opt/{key}": namespace(params[key]).zeros_like(params[key])
            for key, spec in specs.items()
            if spec.trainable
        }

    def step(
        self, params: Params, grads: Params, carry: Params, specs: dict[str, Param], at: Moment
    ) -> None:
        for key, rate in self._rates(specs, at).items():
            velocity = carry.get(f"opt/{key}")
            momentum = 0.0 if velocity is None else self.momentum
            # The gradient reaches 1/(1 - momentum) steps far, and so must the penalty.
            factor = specs[key].decay / (1.0 - momentum)
            decay = (self.l1 * factor, self.l2 * factor)
            descend(params[key], grads[key], velocity, rate, momentum, self.nesterov, *decay)


@register
class Adam(Optimizer):
    """Steps of equal size per parameter, by running moments (Kingma, Ba, 2015, algorithm 1).

    Parameters
    ----------
    learning_rate : float, default 0.001
        Size of a step in the units of the parameters.
    beta1, beta2 : float, default 0.9, 0.999
        Memory of the first and second moment, in [0, 1).
    epsilon : float, default 1e-8
        Added to the root of the second moment.
    schedule, rates, l1, l2
        As for `SGD`; the decay is decoupled from the moments (Loshchilov, Hutter, 2019).
    """

    def __init__(
        self,
        learning_rate: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        schedule: Schedule | None = None,
        rates: dict[str, float] | None = None,
        l1: float = 0.0,
        l2: float = 0.0,
    ) -> None:
        self.learning_rate = learning_rate
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon
        self.schedule = schedule
        self.rates = rates
        self.l1 = l1
        self.l2 = l2

    def validate(self, specs: dict[str, Param]) -> None:
        super().validate(specs)
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"Adam.{name} must be in [0, 1), got {getattr(self, name)!r}")

    def start(self, params: Params, specs: dict[str, Param]) -> Params:
        return {
            f"opt/{moment}/{key}": namespace(params[key]).zeros_like(params[key])
            for moment in ("mean", "square")
            for key, spec in specs.items()
            if spec.trainable
        }

    def step(
        self, params: Params, grads: Params, carry: Params, specs: dict[str, Param], at: Moment
    ) -> None:
        steps = at.step + 1
        unbias1, unbias2 = 1.0 - self.beta1**steps, 1.0 - self.beta2**steps
        # m/u₁ / (√(v/u₂) + ε) is m / (√v + ε√u₂) times √u₂/u₁: two passes less.
        root = math.sqrt(unbias2)
        scale = root / unbias1
        for key, rate in self._rates(specs, at).items():
            g, mean, square = grads[key], carry[f"opt/mean/{key}"], carry[f"opt/square/{key}"]
            adapt(mean, square, g, self.beta1, self.beta2, self.epsilon * root)
            # The decay goes by the learning rate alone.
            l1, l2 = (self.l1, self.l2) if specs[key].decay else (0.0, 0.0)
            descend(params[key], g, None, rate * scale, 0.0, False, l1 / scale, l2 / scale)
