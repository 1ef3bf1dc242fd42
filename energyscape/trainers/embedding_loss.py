"""Losses of the embeddings of pairs: what belongs together is near, but not all in one place.

    L = ℓ(f(x_1), f(x_2), y)

with ℓ of `energyscape.embeddings` and one encoder f for both sides. The energy of a pair is the
distance of its embeddings, which has no density: what pulls other pairs up is in ℓ.

References
----------
Bromley, J., Guyon, I., LeCun, Y., Säckinger, E., Shah, R. (1993). Signature verification using a
"siamese" time delay neural network.
Chopra, S., Hadsell, R., LeCun, Y. (2005). Learning a similarity metric discriminatively, with
application to face verification.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from energyscape import embeddings
from energyscape.backend import Array, namespace
from energyscape.optim import Adam, Optimizer
from energyscape.registry import register
from energyscape.trainers.base import Batch, Trainer
from energyscape.verbs import Params


@register
class EmbeddingLoss(Trainer):
    """Gradient descent on a loss of the embeddings of pairs.

    Parameters
    ----------
    loss : loss of `energyscape.embeddings`, optional
        `Siamese` and `DrLIM` take labels, 1 for pairs that are alike and 0 for others; `InfoNCE`,
        `BarlowTwins` and `VICReg` take pairs that are all alike. Default: ``InfoNCE()``.
    n_epochs : int, optional
        Default: as many as make 10,000 updates, at least 10 and at most 1000.
    batch_size : int, default 100
        Pairs of an update. The last three losses compare the pairs of a batch with each other, so
        that it is part of what they ask for; a last batch of a single pair is left out.
    learning_rate : float, optional
        Shorthand for ``optimizer=SGD(learning_rate)``.
    optimizer : Optimizer, optional
        Default: ``Adam(0.001)``.
    averaging : float in (0, 1], optional
        As for `CD`.
    batch_transform : transform, optional
        Applied to each batch (n, 2, n_features) with fresh random numbers, e.g. ``Masking(0.25)``:
        pairs of a row and itself become two views of it. What knows rows alone, such as `Jitter`,
        is called with ``x.reshape(-1, n_features)`` by a function of one's own.
    validation_fraction : float in [0, 1), default 0
        Pairs set apart (by index) for ``loss_valid`` and ``energy_valid`` in the history.
    callbacks : sequence of callables, default ()
        ``callback(model, state, info)`` after each epoch; True stops the training.

    Notes
    -----
    The history has ``loss_train``, the mean over batches of at most 1000 pairs, and
    ``energy_train``, their mean distance.
    """

    requires = ("init_params", "param_specs", "encoder", "embedding_grad")
    examples: ClassVar[dict[str, str]] = {"loss": "DrLIM()"}

    def __init__(
        self,
        loss: embeddings.Loss | None = None,
        n_epochs: int | None = None,
        batch_size: int = 100,
        learning_rate: float | None = None,
        optimizer: Optimizer | None = None,
        averaging: float | None = None,
        batch_transform: Any = None,
        validation_fraction: float = 0.0,
        callbacks: Sequence[Callable[..., Any]] = (),
    ) -> None:
        self.loss = loss
        self.n_epochs = n_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.averaging = averaging
        self.batch_transform = batch_transform
        self.validation_fraction = validation_fraction
        self.callbacks = callbacks

    def chosen_loss(self) -> Any:
        """The loss, or the default one."""
        return embeddings.InfoNCE() if self.loss is None else self.loss

    def resolved_optimizer(self) -> Optimizer:
        if self.optimizer is None and self.learning_rate is None:
            return Adam()
        return super().resolved_optimizer()

    def validate(self, model: Any) -> None:
        super().validate(model)
        loss = self.chosen_loss()
        if not isinstance(loss, embeddings.Loss):
            raise ValueError(
                f"EmbeddingLoss.loss must be a loss of energyscape.embeddings, got {loss!r}"
            )
        loss.validate()
        if self.batch_size < loss.least_rows:
            raise ValueError(
                f"EmbeddingLoss.batch_size must be >= {loss.least_rows}: {type(loss).__name__} "
                f"compares pairs with each other; got {self.batch_size}"
            )

    def sharing_obstacle(self) -> str | None:
        return "its losses compare the pairs of a batch with each other, and are no sum over them"

    def collect(self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any) -> Params:
        passes, u, v = _both(model, params, batch.x)
        loss, xp = self.chosen_loss(), namespace(u)
        if len(u) < loss.least_rows:
            return model.embedding_grad(passes, xp.zeros_like(passes[-1].h))
        _, du, dv = loss.evaluate(u, v, batch.y)
        return model.embedding_grad(passes, xp.concatenate([du, dv]))

    def measure(self, model: Any, params: Params, x: Array, y: Array) -> dict[str, Any]:
        _, u, v = _both(model, params, x)
        loss, total, count = self.chosen_loss(), 0.0, 0
        for lo in range(0, len(u), self.batch_size):
            part = slice(lo, lo + self.batch_size)
            rows = len(u[part])
            if rows >= loss.least_rows:
                value = loss.evaluate(u[part], v[part], None if y is None else y[part])[0]
                total, count = total + rows * value, count + rows
        return {
            "loss": total / count if count else np.nan,
            "energy": model.free_energy(params, x).mean(),
        }


def _both(model: Any, params: Params, x: Array) -> tuple[list[Any], Array, Array]:
    """The layers' passes at the first sides of all pairs and then the second ones; both's
    embeddings."""
    rows = namespace(x).concatenate([x[:, 0], x[:, 1]])
    passes = model.encoder(params, rows)
    z = passes[-1].h
    return passes, z[: len(x)], z[len(x) :]
