"""Exact maximum likelihood: push down on the data, pull up everywhere.

    ∇ = ⟨∂F/∂θ⟩_data + ∂ log Z/∂θ

where log Z is a formula, or a sum over the states of a small machine. It is what every contrastive
strategy approximates, and the oracle that they are tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from energyscape.backend import Array, namespace
from energyscape.errors import CapabilityError
from energyscape.optim import Optimizer
from energyscape.registry import register
from energyscape.trainers.base import Batch, Contrast
from energyscape.verbs import Params, Pass

# 2^20 states of a gradient take seconds an update.
_MOST_UNITS = 20


@register
class MaximumLikelihood(Contrast):
    """Gradient descent on the exact negative log-likelihood.

    Of a `DeepBoltzmannMachine` it is that of the variational bound, whose log Z is exact.

    Parameters
    ----------
    n_epochs : int, optional
        Default: as many as make 10,000 updates, at least 10 and at most 1000.
    batch_size : int, default 100
        Rows of an update. The gradient of log Z is exact whatever it is; larger batches share it.
    learning_rate : float, optional
        Shorthand for ``optimizer=SGD(learning_rate)``; default 0.1.
    optimizer : Optimizer, optional
    averaging : float in (0, 1], optional
        As for `CD`.
    batch_transform : transform, optional
        Applied to each batch with fresh random numbers.
    validation_fraction : float in [0, 1), default 0
        Rows set apart (by index) for ``energy_valid`` in the history.
    callbacks : sequence of callables, default ()
        ``callback(model, state, info)`` after each epoch; True stops the training.
    """

    requires = (*Contrast.requires, "free_energy_grad", "log_partition_grad")

    def __init__(
        self,
        n_epochs: int | None = None,
        batch_size: int = 100,
        learning_rate: float | None = None,
        optimizer: Optimizer | None = None,
        averaging: float | None = None,
        batch_transform: Any = None,
        validation_fraction: float = 0.0,
        callbacks: Sequence[Callable[..., Any]] = (),
    ) -> None:
        self.n_epochs = n_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.averaging = averaging
        self.batch_transform = batch_transform
        self.validation_fraction = validation_fraction
        self.callbacks = callbacks

    def start(self, model: Any, params: Params, x: Array, rng: Any) -> Params:
        units = model.enumerable_units(params)
        if units > _MOST_UNITS:
            raise CapabilityError(
                f"MaximumLikelihood would sum over 2^{units} states of {type(model).__name__} at "
                f"every update; that is done up to 2^{_MOST_UNITS}. Use PCD"
            )
        return super().start(model, params, x, rng)

    def points(
        self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any
    ) -> tuple[Pass, Array]:
        weights = namespace(batch.x).full(len(batch.x), 1.0 / batch.n, batch.x.dtype)
        return model.forward(params, batch.x), weights

    def collect(self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any) -> Params:
        sums = super().collect(model, params, carry, batch, rng)
        share = len(batch.x) / batch.n  # of the rows: log Z counts once over all workers
        for key, value in model.log_partition_grad(params).items():
            sums[key] += value.dtype.type(share) * value
        return sums
