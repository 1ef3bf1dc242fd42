"""Margin losses: push down at the rows, pull up at points nearby until a margin is kept.

    L = ⟨ℓ(F(x), F(x̃_1), …)⟩

With ℓ a loss of `energyscape.losses` and x̃ from `negatives`. One backward pass: the points are the
rows and their negatives, the weights ∂ℓ/∂F.

Only the log loss with symmetric negatives (`ConditionalNCE`) and NLL with samples of the model (CD)
estimate a density. All others shape an energy: it is low at the data and higher beside, by as much
as the loss asks, and exp(-F) means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from energyscape.backend import Array, namespace
from energyscape.errors import CapabilityError
from energyscape.losses import POOLINGS, Hinge, Loss
from energyscape.optim import Optimizer
from energyscape.registry import register
from energyscape.trainers.base import Batch, PointLoss
from energyscape.trainers.negatives import BitFlips, GaussianJitter, Negatives
from energyscape.verbs import Params, Pass, check_count, need


@register
class MarginLoss(PointLoss):
    """Gradient descent on a margin loss between rows and points beside them.

    Parameters
    ----------
    loss : Loss, optional
        Of `energyscape.losses`; default ``Hinge()``, of margin 1.
    negatives : Negatives, optional
        `GaussianJitter` (default on reals), `BitFlips` (default on bits), `Chains` or
        `MostOffending`.
    n_negatives : int, default 1
        Points for each row.
    pooling : {"sum", "worst", "softmax"}, default "sum"
        What several points come to: the sum of their losses; the loss of the one with the lowest
        energy; or that of a soft minimum of their energies. `NLL` and `MEE` take all at once.
    n_epochs, batch_size, learning_rate, optimizer, averaging, batch_transform, \
validation_fraction, callbacks
        As for `NCE`.

    References
    ----------
    LeCun, Y., Chopra, S., Hadsell, R., Ranzato, M., Huang, F. (2006). A tutorial on energy-based
    learning.
    """

    domains = ("binary", "real")
    examples: ClassVar[dict[str, str]] = {"loss": "Hinge(2.0)"}
    needs_proper = True
    needs_visible = True

    def __init__(
        self,
        loss: Loss | None = None,
        negatives: Negatives | None = None,
        n_negatives: int = 1,
        pooling: str = "sum",
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
        self.negatives = negatives
        self.n_negatives = n_negatives
        self.pooling = pooling
        self.n_epochs = n_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.averaging = averaging
        self.batch_transform = batch_transform
        self.validation_fraction = validation_fraction
        self.callbacks = callbacks

    def validate(self, model: Any) -> None:
        super().validate(model)
        name, loss = type(self).__name__, self.chosen_loss()
        check_count(f"{name}.n_negatives", self.n_negatives)
        if self.pooling not in POOLINGS:
            raise ValueError(
                f"{name}.pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}"
            )
        if not isinstance(loss, Loss):
            raise ValueError(f"{name}.loss must be a loss of energyscape.losses, got {loss!r}")
        loss.validate()
        if loss.needs_nonnegative and not model.nonnegative:
            raise CapabilityError(
                f"{type(loss).__name__} is for energies that are not negative, and those of "
                f"{type(model).__name__} may be. Losses of differences: Hinge, Log, MCE, NLL"
            )
        self._check_negatives(model)

    def _check_negatives(self, model: Any) -> None:
        name, found = type(self).__name__, self.chosen_negatives(model)
        if not isinstance(found, Negatives):
            raise ValueError(
                f"{name}.negatives must be GaussianJitter, BitFlips, Chains or MostOffending, got "
                f"{found!r}"
            )
        kind = type(found).__name__
        if model.domain not in found.domains:
            raise CapabilityError(
                f"{kind} needs {' or '.join(found.domains)} units; {type(model).__name__}'s are "
                f"{model.domain}"
            )
        need(model, found.requires, kind)
        found.validate(model)

    def chosen_loss(self) -> Any:
        """The loss, or the default one."""
        return Hinge() if self.loss is None else self.loss

    def chosen_negatives(self, model: Any) -> Any:
        """The negatives, or those for the model's units."""
        if self.negatives is not None:
            return self.negatives
        return BitFlips() if model.domain == "binary" else GaussianJitter()

    def start(self, model: Any, params: Params, x: Array, rng: Any) -> Params:
        carry = super().start(model, params, x, rng)
        return carry | self.chosen_negatives(model).start(model, params, x, rng)

    def evaluate(
        self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any
    ) -> tuple[Pass, Array, Array]:
        xp, x, k = namespace(batch.x), batch.x, self.n_negatives
        loss = self.chosen_loss()
        rows = xp.concatenate([x] * k)
        away = self.chosen_negatives(model).draw(model, params, carry, rows, rng)
        passed = model.forward(params, xp.concatenate([x, away]))
        energy = passed.energy()
        p, q = energy[: len(x)], energy[len(x) :].reshape(k, -1)
        q = q - loss.margins(x, away.reshape(k, *x.shape))
        value, at_p, at_q = loss.evaluate(p, q, self.pooling)
        return passed, xp.concatenate([at_p, at_q.ravel()]) / batch.n, value
