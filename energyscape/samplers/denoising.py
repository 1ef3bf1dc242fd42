"""Sampling by the dynamics that a denoising model learned: corrupt, then reconstruct."""

from __future__ import annotations

from typing import Any

import numpy as np

from energyscape.corruptions import GaussianNoise
from energyscape.registry import register
from energyscape.samplers.base import Chains, Info, Sampler


@register
class DenoisingChain(Sampler):
    """x → x̃ ~ corruption → x' ~ what the model reconstructs from x̃.

    Its stationary distribution is the model's estimate of the data's (generalised denoising,
    Bengio et al., 2013), not exp(-F).

    Parameters
    ----------
    corruption : corruption, optional
        That of the training. Default: ``GaussianNoise()``.

    References
    ----------
    Bengio, Y., Yao, L., Alain, G., Vincent, P. (2013). Generalized denoising auto-encoders as
    generative models.
    """

    def __init__(self, corruption: Any = None) -> None:
        self.corruption = corruption

    follows_energy = False

    @property
    def reversible(self) -> bool:
        """No detailed balance is known of what was learned."""
        return False

    @property
    def invariant(self) -> bool:
        """It does not leave exp(-F) as it is."""
        return False

    def validate(self) -> None:
        corruption = self.corruption
        if corruption is not None and (isinstance(corruption, type) or not callable(corruption)):
            raise ValueError(
                "DenoisingChain.corruption must be a corruption such as Masking(0.25), got "
                f"{corruption!r}"
            )

    def obstacle(self, target: Any) -> str | None:
        if not target.has_regeneration:
            return f"it needs a model that reconstructs, which {target.name} does not"
        if np.ndim(target.beta) or target.beta != 1:
            return "its dynamics have no temperature, and beta is not 1"
        return super().obstacle(target)

    def step(self, target: Any, chains: Chains, rng: Any, passed: Any = None) -> Info:
        corruption = GaussianNoise() if self.corruption is None else self.corruption
        chains.x = target.regenerate(corruption(chains.x, rng), rng)
        return {}
