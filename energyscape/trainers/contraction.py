"""Strategy 7, make the code locally constant: what does not move the code is not reconstructed."""

from __future__ import annotations

from typing import Any

from energyscape.penalties import Contractive, Saturating
from energyscape.registry import register
from energyscape.trainers.reconstruction import Penalised


@register
class Contraction(Penalised):
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

    def default_penalty(self) -> Any:
        return Contractive()


@register
class Saturation(Penalised):
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
