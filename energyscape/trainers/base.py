"""The contract of a strategy: start, collect, apply. The loop in `training` knows nothing else.

`collect` gives sums over rows (additive over batches and workers), `apply` alone writes the
parameters. Nearly every strategy is one choice, *which points with which signed weights*:

    Δθ ∝ − Σ_i w_i ∂F(x_i; θ)/∂θ        w > 0 pushes the energy down at x_i, w < 0 pulls it up

so a `Contrast` writes `points` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator

from energyscape.backend import Array, namespace
from energyscape.optim import SGD, Moment, Optimizer
from energyscape.verbs import Params, Pass, check_count, check_nested

# What to give where a nested parameter is set of something that is None.
_EXAMPLES = {
    "optimizer": "SGD(0.1)",
    "sampler": "HMC()",
    "corruption": "Masking(0.25)",
    "penalty": "KL(0.05)",
    "negatives": "GaussianJitter(0.5)",
}
# Enough updates to learn, but small data are not gone through until they are known by heart.
_UPDATES, _FEWEST_EPOCHS, _MOST_EPOCHS = 10_000, 10, 1000
_MEMORY = 0.01  # share of an update in the running mean of a loss


@dataclass(slots=True)
class Batch:
    """Rows of one update.

    Attributes
    ----------
    x : array, shape (rows, *event_shape)
    n : int
        Rows of the whole batch over all workers; weights of the data are 1/n.
    y : array, shape (rows, ...), or None
        Labels, where the rows came with them, or the trainer's `targets`.
    progress : float or None
        Finished fraction of the run; None where a run has no end.
    chains : int or None
        Persistent chains over all workers; None where those at hand are all of them.
    """

    x: Array
    n: int
    y: Array = None
    progress: float | None = None
    chains: int | None = None


class Trainer(BaseEstimator):
    """Base of all strategies.

    Subclasses take in their constructor, besides their own parameters, those of `validate` here:
    ``n_epochs``, ``batch_size``, ``learning_rate`` (shorthand for ``SGD(learning_rate)``) or
    ``optimizer``, ``averaging``, ``batch_transform``, ``validation_fraction``, ``callbacks``.
    """

    requires: ClassVar[tuple[str, ...]] = ("init_params", "param_specs", "forward")
    domains: ClassVar[tuple[str, ...]] = ()
    default_rate: ClassVar[float] = 0.1
    # As `_EXAMPLES`, of this trainer alone.
    examples: ClassVar[dict[str, str]] = {}
    # Whether the energy must belong to a density: chains run away on one that does not, and what is
    # pulled up near the data stays low farther out.
    needs_proper: ClassVar[bool] = False
    # Whether the energy must be bounded in volume, as where it is pushed down on data alone.
    needs_limited: ClassVar[bool] = False
    # Whether F must have a curvature everywhere, and be that of data rows as they are.
    needs_smooth: ClassVar[bool] = False
    needs_visible: ClassVar[bool] = False
    # Starts from different random numbers, the best of which by the history's ``bound`` stays.
    n_init = 1
    # Rows that parameters start from.
    start_rows = 10_000
    # Rows that the history's values are taken at, and whether `batch_transform` applies to them.
    monitor_rows = 1000
    monitor_transformed = True

    n_epochs: int | None
    batch_size: int
    learning_rate: float | None
    optimizer: Optimizer | None
    averaging: float | None
    batch_transform: Any
    validation_fraction: float
    callbacks: Sequence[Callable[..., Any]]

    @property
    def every(self) -> str:
        """When `apply` runs: after each "batch", or once an "epoch" on the sums over all rows."""
        return "batch"

    def validate(self, model: Any) -> None:
        """Raise ValueError for settings that cannot be; the model's specs are known by then."""
        name = type(self).__name__
        for key in ("n_epochs", "batch_size"):
            value = getattr(self, key)
            if value is None and (key == "n_epochs" or self.every == "epoch"):
                continue
            check_count(f"{name}.{key}", value)
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(
                f"{name}.validation_fraction must be in [0, 1), got {self.validation_fraction!r}"
            )
        self.validate_steps(model)
        if not isinstance(self.callbacks, Sequence) or not all(map(callable, self.callbacks)):
            raise ValueError(
                f"{name}.callbacks must be a list or tuple of callables, got {self.callbacks!r}"
            )
        for callback in self.callbacks:
            if hasattr(callback, "validate"):
                callback.validate()

    def validate_steps(self, model: Any) -> None:
        """The same for what says how an update is made."""
        name = type(self).__name__
        if self.averaging is not None and not 0 < self.averaging <= 1:
            raise ValueError(f"{name}.averaging must be None or in (0, 1], got {self.averaging!r}")
        if self.optimizer is not None and self.learning_rate is not None:
            raise ValueError(
                f"{name} got both learning_rate={self.learning_rate!r} and an optimizer; "
                "learning_rate is shorthand for SGD(learning_rate), so give one"
            )
        if self.optimizer is not None and not isinstance(self.optimizer, Optimizer):
            raise ValueError(f"{name}.optimizer must be an optimizer, got {self.optimizer!r}")
        self.resolved_optimizer().validate(model.param_specs())

    def set_params(self, **params: Any) -> Any:
        """Set parameters by name, nested ones as ``optimizer__momentum``."""
        check_nested(self, params, _EXAMPLES | self.examples)
        return super().set_params(**params)

    def settle(self, n_rows: int) -> None:
        """Put numbers where None stood for "enough for this many training rows"."""
        if self.n_epochs is None:
            wanted = -(-_UPDATES // self.updates_per_epoch(n_rows))
            self.n_epochs = min(_MOST_EPOCHS, max(_FEWEST_EPOCHS, wanted))

    def updates_per_epoch(self, n_rows: int) -> int:
        """Batches of an epoch; the last may be short."""
        return 1 if self.every == "epoch" else -(-n_rows // self.batch_size)

    def resolved_optimizer(self) -> Optimizer:
        """``optimizer``, or the SGD that ``learning_rate`` stands for."""
        if self.optimizer is not None:
            return self.optimizer
        return SGD(self.default_rate if self.learning_rate is None else self.learning_rate)

    def rate(self, at: Moment) -> float | None:
        """The learning rate at a moment; None where there is no such thing."""
        return self.resolved_optimizer().rate(at)

    def converged(self, history: dict[str, list[float]]) -> bool:
        """Whether a run has nothing left to do, as its history tells."""
        return False

    def complaint(self, history: dict[str, list[float]]) -> str | None:
        """What a run came to that its user should know, in words; None by default."""
        return None

    def sharing_obstacle(self) -> str | None:
        """Why workers cannot share this strategy's updates, in words; None where they can."""
        return None

    def sharing_note(self) -> str | None:
        """What is not the same when workers share an update, in words; None where all is."""
        return None

    def lost(self, model: Any, carry: Params) -> str | None:
        """What the model has come to that a run cannot go on from, though all numbers are finite,
        in words; asked after every epoch."""
        return None

    def start(self, model: Any, params: Params, x: Array, rng: Any) -> Params:
        """What the strategy keeps between updates, as named arrays.

        Parameters
        ----------
        model : object with the verbs
        params : dict of arrays
        x : array, shape (n, *event_shape)
            Rows of training data to begin with.
        rng : Stream

        Returns
        -------
        dict of arrays, keys ``owner/name``
        """
        carry = self.resolved_optimizer().start(params, model.param_specs())
        if self.averaging is not None:
            moved = model.coordinates(params)
            carry |= {f"average/{key}": value.copy() for key, value in moved.items()}
        return carry

    def start_again(self, model: Any, params: Params, x: Array, rng: Any, kept: Params) -> Params:
        """What a run keeps that goes on from ``kept``, told from one row: names and shapes are
        compared with it, and `settings` replace its own. What only many rows tell is ``kept``'s.
        """
        return self.start(model, params, x, rng)

    def targets(self, model: Any, params: Params, x: Array) -> Array:
        """What an update wants to know about each of the rows ``x`` and no update changes, or None.
        Where it fits in memory, batches have it as their ``y``."""
        return None

    def collect(self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any) -> Params:
        """Sums over the rows of ``batch`` that the update needs; may move its own chains."""
        raise NotImplementedError

    def apply(self, model: Any, params: Params, carry: Params, sums: Params, at: Moment) -> None:
        """Update ``params`` and ``carry`` in place; ``sums`` are used up."""
        model.precondition(params, sums)
        moved = model.coordinates(params)
        self._descend(model, moved, carry, sums, at)
        model.set_coordinates(params, moved)
        model.project(params, sums, at.rng)
        if self.averaging is not None:
            self._average(model.coordinates(params), carry, at)

    def _descend(self, model: Any, moved: Params, carry: Params, sums: Params, at: Moment) -> None:
        """The step of the coordinates ``moved`` along ``sums``."""
        self.resolved_optimizer().step(moved, sums, carry, model.param_specs(), at)

    def _average(self, moved: Params, carry: Params, at: Moment) -> None:
        weight = min(1.0, 1.0 / (self.averaging * (at.step + 1)))  # type: ignore[operator]
        for key, value in moved.items():
            average = carry[f"average/{key}"]
            average += value.dtype.type(weight) * (value - average)

    def final(self, model: Any, params: Params, carry: Params) -> Params:
        """The parameters that the fitted model shows: the averages where they are kept."""
        if self.averaging is None:
            return params
        return at_coordinates(model, {key: carry[f"average/{key}"].copy() for key in params})

    def settings(self, model: Any) -> tuple[str, ...]:
        """Keys of the carry that are configuration: a run that goes on takes them from ``self``."""
        return ()

    def measure(self, model: Any, params: Params, x: Array, y: Array) -> dict[str, Any]:
        """Scalars at rows (with labels, if any), for the history: once at rows of the training,
        once at those set apart."""
        return {"energy": model.free_energy(params, x).mean()}

    def report(self, model: Any, params: Params, carry: Params, rng: Any) -> dict[str, Any]:
        """Scalars about the strategy's state for the history, once an epoch."""
        return {}


def at_coordinates(model: Any, moved: Params) -> Params:
    """The parameters at coordinates ``moved``, whose trainable arrays are used up."""
    model.set_coordinates(moved, moved)
    return moved


class Contrast(Trainer):
    """A strategy that says which points to push and pull; subclasses write `points`."""

    def points(
        self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any
    ) -> tuple[Pass, Array]:
        """The pass at the points and their signed weights, data rows first.

        The points come as a `Pass`, not as an array, so that chains which need the same matrix
        product share it with the gradient.
        """
        raise NotImplementedError

    def collect(self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any) -> Params:
        passed, weights = self.points(model, params, carry, batch, rng)
        return gathered(passed, weights, batch)


class Objective(Trainer):
    """A strategy whose loss has a value: subclasses write `collect`, with it under "loss/mean".

    The history's ``loss`` is its mean over about the last hundred updates.
    """

    def start(self, model: Any, params: Params, x: Array, rng: Any) -> Params:
        mean = namespace(x).zeros(1, np.float64)
        return super().start(model, params, x, rng) | {"loss/mean": mean}

    def apply(self, model: Any, params: Params, carry: Params, sums: Params, at: Moment) -> None:
        self.remember(carry, sums, "loss/mean", at)
        super().apply(model, params, carry, sums, at)

    @staticmethod
    def remember(carry: Params, sums: Params, key: str, at: Moment) -> None:
        """Let a running mean of the carry follow what an update gave."""
        mean = carry[key]
        mean += max(_MEMORY, 1.0 / (at.step + 1)) * (sums.pop(key) - mean)

    def report(self, model: Any, params: Params, carry: Params, rng: Any) -> dict[str, Any]:
        return {"loss": carry["loss/mean"][0]}


class PointLoss(Objective):
    """A loss of the energies at some points; subclasses write `evaluate`."""

    requires = (*Objective.requires, "free_energy_grad")

    def evaluate(
        self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any
    ) -> tuple[Pass, Array, Array]:
        """The pass at the points, data rows first, their signed weights, and the loss of every row,
        (rows,), float64: Σ weights ∂F is the gradient of its sum over ``batch.n``."""
        raise NotImplementedError

    def collect(self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any) -> Params:
        return self.summed(*self.evaluate(model, params, carry, batch, rng), batch)

    def summed(self, passed: Pass, weights: Array, loss: Array, batch: Batch) -> Params:
        """Sums of an update from what `evaluate` gives."""
        weights = weights.astype(batch.x.dtype, copy=False)
        return gathered(passed, weights, batch) | {"loss/mean": loss.sum() / batch.n}


def gathered(passed: Pass, weights: Array, batch: Batch) -> Params:
    """Σ weights ∂F at the points of a pass that begins with the data, and the means that buffers
    ask for."""
    return passed.grad(weights) | mean_stats(passed[: len(batch.x)], batch.n)


def mean_stats(passed: Pass, n: int) -> Params:
    """What buffers ask for of data rows, over the ``n`` of the whole batch."""
    sums = passed.stats()
    for total in sums.values():
        total *= total.dtype.type(1.0 / n)
    return sums


def contrast_weights(x: Array, n: int, n_negative: float, rows: int) -> Array:
    """1/n for the first ``rows`` points (data), -1/n_negative for the rest."""
    xp = namespace(x)
    weights = xp.empty(len(x), x.dtype)
    weights[:rows] = 1.0 / n
    weights[rows:] = -1.0 / n_negative
    return weights
