"""Strategy 6, limit the information in the code: a sparse code cannot reconstruct everything."""

from __future__ import annotations

from typing import Any

from energyscape.penalties import KL
from energyscape.registry import register
from energyscape.trainers.reconstruction import Penalised


@register
class Sparsity(Penalised):
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

    def default_penalty(self) -> Any:
        return KL()
