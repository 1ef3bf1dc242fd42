"""The energy loss: push down on the data, and on nothing else.

    L = ⟨F(x)⟩_data

is a strategy where something else bounds the volume of low energy (LeCun et al., 2006, section
3.2): a code that is limited (strategy 6), with atoms that cannot grow. Elsewhere F becomes low
everywhere.

References
----------
LeCun, Y., Chopra, S., Hadsell, R., Ranzato, M., Huang, F. (2006). A tutorial on energy-based
learning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from energyscape.backend import Array, namespace
from energyscape.optim import Optimizer
from energyscape.registry import register
from energyscape.trainers.base import Batch, Contrast
from energyscape.verbs import Params, Pass


@register
class EnergyLoss(Contrast):
    """Gradient descent on the mean energy of the data, for models whose codes are limited.

    Parameters
    ----------
    n_epochs : int, optional
        Default: as many as make 10,000 updates, at least 10 and at most 1000.
    batch_size : int, default 100
        Rows of an update.
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

    requires = (*Contrast.requires, "free_energy_grad")
    needs_limited = True

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

    def points(
        self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any
    ) -> tuple[Pass, Array]:
        x = batch.x
        weights = namespace(x).full(len(x), 1.0 / batch.n, x.dtype)
        return model.forward(params, x), weights
