"""Supervised training of a network: labels decide where a code must be told from another.

    ⟨-log p(y | x)⟩,   p = softmax of the last layer

Unsupervised strategies find the layers; this one fine-tunes them (Hinton and Salakhutdinov, 2006).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from energyscape.backend import Array
from energyscape.optim import SGD, Optimizer
from energyscape.registry import register
from energyscape.trainers.base import Batch, Trainer
from energyscape.verbs import Params


@register
class Backpropagation(Trainer):
    """Gradient descent on the cross-entropy of labels.

    Parameters
    ----------
    dropout : float in [0, 1), default 0
        Fraction of hidden units that are left out of an update, at random.
    input_dropout : float in [0, 1), default 0
        The same for the input.
    n_epochs : int, default 30
    batch_size : int, default 100
    learning_rate : float, optional
        Shorthand for ``optimizer=SGD(learning_rate)``.
    optimizer : Optimizer, optional
        Schedule, momentum and weight decay are its own. Default: ``SGD(0.1, momentum=0.9)``.
    averaging : float in (0, 1], optional
        As for `CD`.
    batch_transform : transform, optional
        Applied to each batch with fresh random numbers, e.g. `energyscape.data.Jitter`.
    validation_fraction : float in [0, 1), default 0
        Rows set apart (by index) for ``loss_valid`` and ``error_valid`` in the history.
    callbacks : sequence of callables, default ()
        ``callback(model, state, info)`` after each epoch; True stops the training.

    References
    ----------
    Srivastava, N., Hinton, G. E., Krizhevsky, A., Sutskever, I., Salakhutdinov, R. (2014). Dropout:
    a simple way to prevent neural networks from overfitting.
    """

    requires = ("param_specs", "network", "label_loss", "network_grad")
    monitor_rows = 10_000
    monitor_transformed = False  # rows that are shifted or noisy are for learning alone

    def __init__(
        self,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        n_epochs: int = 30,
        batch_size: int = 100,
        learning_rate: float | None = None,
        optimizer: Optimizer | None = None,
        averaging: float | None = None,
        batch_transform: Any = None,
        validation_fraction: float = 0.0,
        callbacks: Sequence[Callable[..., Any]] = (),
    ) -> None:
        self.dropout = dropout
        self.input_dropout = input_dropout
        self.n_epochs = n_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.averaging = averaging
        self.batch_transform = batch_transform
        self.validation_fraction = validation_fraction
        self.callbacks = callbacks

    def resolved_optimizer(self) -> Optimizer:
        if self.optimizer is None and self.learning_rate is None:
            return SGD(0.1, momentum=0.9)
        return super().resolved_optimizer()

    def validate(self, model: Any) -> None:
        super().validate(model)
        for key in ("dropout", "input_dropout"):
            value = getattr(self, key)
            if not 0 <= value < 1:
                raise ValueError(f"Backpropagation.{key} must be in [0, 1), got {value!r}")

    def collect(self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any) -> Params:
        x = batch.x
        if self.input_dropout:
            x = x * _mask(x, self.input_dropout, rng)
        passes = model.network(params, x, self._drop(rng) if self.dropout else None)
        return model.network_grad(passes, batch.y, 1.0 / batch.n)

    def _drop(self, rng: Any) -> Callable[[Any], None]:
        def drop(layer: Any) -> None:
            layer.keep(_mask(layer.h, self.dropout, rng))

        return drop

    def measure(self, model: Any, params: Params, x: Array, y: Array) -> dict[str, Any]:
        out = model.network(params, x)[-1].h
        loss = model.label_loss(out, y).mean()
        return {"loss": loss, "error": (out.argmax(axis=1) != y).mean()}


def _mask(x: Array, fraction: float, rng: Any) -> Array:
    """0 with probability ``fraction``, else 1/(1 - fraction), so that sums keep their mean."""
    kept = rng.uniform(x.shape, x.dtype) >= fraction
    return kept * x.dtype.type(1.0 / (1.0 - fraction))
