"""Strategy 6, limit the information in the code: a sparse code cannot reconstruct everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from energyscape.optim import Optimizer
from energyscape.penalties import KL
from energyscape.registry import register
from energyscape.trainers.reconstruction import Reconstruction


@register
class Sparsity(Reconstruction):
    """Reconstruct rows from codes that are mostly off.

    Parameters
    ----------
    penalty : penalty or constraint, optional
        `KL`, `L1`, `Student`, `KSparse`, `Lifetime`. Default: ``KL(0.05, 0.1)``.
    corruption, penalties, n_epochs, batch_size, learning_rate, optimizer, averaging, \
batch_transform, validation_fraction, callbacks
        As for `Reconstruction`; ``penalties`` are further ones.

    References
    ----------
    Ranzato, M., Boureau, Y., LeCun, Y. (2007). Sparse feature learning for deep belief networks.
    Makhzani, A., Frey, B. (2013). k-sparse autoencoders.
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

    def all_penalties(self) -> tuple[Any, ...]:
        return (KL() if self.penalty is None else self.penalty, *self.penalties)
