"""Maximum likelihood with independent draws: what persistent chains would do if they mixed at once.

    Δθ ∝ − ⟨∂F/∂θ⟩_data + ⟨∂F/∂θ⟩_draws

each mean over its own count. The draws are exact and new for every update, so that the step is an
unbiased estimate of the gradient of the log-likelihood, without the error of a Markov chain. That
makes it the yardstick for CD and PCD wherever a model can be drawn from directly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from energyscape.backend import Array, namespace
from energyscape.optim import Optimizer
from energyscape.registry import register
from energyscape.trainers.base import Batch, Contrast, contrast_weights
from energyscape.verbs import Params, Pass


@register
class ExactDraws(Contrast):
    """Stochastic gradient ascent of the log-likelihood, negative rows drawn exactly.

    Parameters
    ----------
    n_draws : int, default 100
        Negative rows per update.
    n_epochs, batch_size, learning_rate, optimizer, averaging, batch_transform, \
validation_fraction, callbacks
        As for `energyscape.trainers.CD`.
    """

    requires = (*Contrast.requires, "free_energy_grad", "sample_exact")

    def __init__(
        self,
        n_draws: int = 100,
        n_epochs: int | None = None,
        batch_size: int = 100,
        learning_rate: float | None = None,
        optimizer: Optimizer | None = None,
        averaging: float | None = None,
        batch_transform: Any = None,
        validation_fraction: float = 0.0,
        callbacks: Sequence[Callable[..., Any]] = (),
    ) -> None:
        self.n_draws = n_draws
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
        if self.n_draws < 1:
            raise ValueError(f"ExactDraws.n_draws must be >= 1, got {self.n_draws!r}")

    def points(
        self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any
    ) -> tuple[Pass, Array]:
        draws = model.sample_exact(params, self.n_draws, rng)
        x = namespace(draws).concatenate([batch.x, draws])
        weights = contrast_weights(x, batch.n, self.n_draws, len(batch.x))
        return model.forward(params, x), weights
