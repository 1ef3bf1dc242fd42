"""Strategy 5, dynamics that lead to the data: reconstruct clean rows from corrupted ones.

Denoising (Vincent et al., 2008; walkback: Bengio et al., 2013)
    ⟨L(x, g(f(x̃)))⟩,   x̃ ~ corruption of x
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from energyscape.backend import Array, namespace
from energyscape.corruptions import Masking
from energyscape.optim import Optimizer
from energyscape.registry import register
from energyscape.trainers.base import Batch
from energyscape.trainers.reconstruction import Reconstruction
from energyscape.verbs import Params, check_count


@register
class Denoising(Reconstruction):
    """Reconstruct rows from corrupted ones.

    Parameters
    ----------
    corruption : corruption, optional
        `Masking`, `SaltAndPepper`, `GaussianNoise`. Default: ``Masking(0.25)``. It sees rows as
        they are given: centre data first whose 0 is no neutral value, if they are to be masked.
    emphasis : (float, float), default (1.0, 1.0)
        Weights in the loss of corrupted and of clean entries; (1, 0) is for what was masked alone.
        `GaussianNoise` leaves no entry clean.
    walkback : int, default 0
        Further steps of the chain corrupt → reconstruct → corrupt … from each row, all of which
        must lead back to the row: spurious modes next to the data are unlearned.
    penalties, n_epochs, batch_size, learning_rate, optimizer, averaging, batch_transform, \
validation_fraction, callbacks
        As for `Reconstruction`.

    References
    ----------
    Vincent, P., Larochelle, H., Lajoie, I., Bengio, Y., Manzagol, P. (2010). Stacked denoising
    autoencoders.
    Bengio, Y., Yao, L., Alain, G., Vincent, P. (2013). Generalized denoising auto-encoders as
    generative models.
    """

    def __init__(
        self,
        corruption: Any = None,
        emphasis: tuple[float, float] = (1.0, 1.0),
        walkback: int = 0,
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
        self.emphasis = emphasis
        self.walkback = walkback

    requires = (*Reconstruction.requires, "redraw")

    def validate(self, model: Any) -> None:
        super().validate(model)
        check_count("Denoising.walkback", self.walkback, 0)
        pair = self.emphasis
        fits = (
            isinstance(pair, Sequence)
            and len(pair) == 2
            and all(isinstance(w, Real) and 0 <= w < math.inf for w in pair)
        )
        if not fits or max(pair) == 0:
            raise ValueError(
                "Denoising.emphasis must be two weights >= 0, not both 0 (of corrupted and of "
                f"clean entries), got {self.emphasis!r}"
            )

    def noise(self) -> Any:
        return Masking() if self.corruption is None else self.corruption

    def collect(self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any) -> Params:
        sums: Params = {}
        start = batch.x
        for step in range(self.walkback + 1):
            seen, touched = self.noise().corrupt(start, rng)
            weights = self.weights(batch.x, touched)
            part, out = self.push(model, params, batch, seen, weights, rng)
            sums = {k: sums[k] + v for k, v in part.items()} if sums else part
            if step < self.walkback:
                start = model.redraw(params, out, rng)
        if self.walkback:
            for value in sums.values():
                value *= value.dtype.type(1.0 / (self.walkback + 1))
        return sums

    def weights(self, x: Array, touched: Array) -> Array:
        on, off = self.emphasis
        if on == off:
            return None if on == 1.0 else x.dtype.type(on)
        xp = namespace(x)
        return xp.where(touched, x.dtype.type(on), x.dtype.type(off))
