"""Strategy 7, make the code locally constant: what does not move the code is not reconstructed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from energyscape.optim import Optimizer
from energyscape.penalties import Contractive, Saturating
from energyscape.registry import register
from energyscape.trainers.reconstruction import Reconstruction


@register
class Contraction(Reconstruction):
    """Reconstruct rows from codes that change little with the row.

    Parameters
    ----------
    penalty : penalty, optional
        `Contractive` (closed form, layer by layer), `HessianContractive` (CAE+H), `Hutchinson`
        (of a deep encoder as a whole). Default: ``Contractive(0.1)``.
    corruption, penalties, n_epochs, batch_size, learning_rate, optimizer, averaging, \
batch_transform, validation_fraction, callbacks
        As for `Reconstruction`; ``penalties`` are further ones.

    References
    ----------
    Rifai, S., Vincent, P., Muller, X., Glorot, X., Bengio, Y. (2011). Contractive auto-encoders.
    """

    def __init__(
        self,
        penalty: Any = None,
        corruption: Any = None,
        penalties: Sequence[Any] = (),
        n_epochs: int | None = None,
        batch_size: int = 100,
        learning_rate: float | None = None,
        optimizer: Optimizer | None = None,
        averaging: float | None = None,
        batch_transform: Any = None,
        validation_fraction: float = 0.0,
        callbacks: Sequence[Callable[..., Any]] = (),
    ) -> None:
        super().__init__(
            corruption=corruption,
            penalties=penalties,
            n_epochs=n_epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            optimizer=optimizer,
            averaging=averaging,
            batch_transform=batch_transform,
            validation_fraction=validation_fraction,
            callbacks=callbacks,
        )
        self.penalty = penalty

    def default_penalty(self) -> Any:
        """What None stands for."""
        return Contractive()

    def all_penalties(self) -> tuple[Any, ...]:
        own = self.default_penalty() if self.penalty is None else self.penalty
        return (own, *self.penalties)


@register
class Saturation(Contraction):
    """Reconstruct rows from codes near where the activation is flat.

    Needs an activation with a flat part: "relu", "saturated_linear", ``Shrink(θ)``.

    Parameters
    ----------
    penalty : penalty, optional
        Default: ``Saturating(0.1)``.
    corruption, penalties, n_epochs, batch_size, learning_rate, optimizer, averaging, \
batch_transform, validation_fraction, callbacks
        As for `Reconstruction`; ``penalties`` are further ones.

    References
    ----------
    Goroshin, R., LeCun, Y. (2013). Saturating auto-encoders.
    """

    def default_penalty(self) -> Any:
        return Saturating()
