"""Block Gibbs sampling: x → h ~ p(h|x) → x' ~ p(x|h), for models that can draw both."""

from __future__ import annotations

from typing import Any, ClassVar

from energyscape.registry import register
from energyscape.samplers.base import Chains, Info, Sampler


@register
class Gibbs(Sampler):
    """Alternating draws of hidden and visible units (Smolensky, 1986; Hinton, 2002).

    Every step leaves the target's distribution as it is; at inverse temperature β that of the
    joint energy βE.
    """

    needs_sweep: ClassVar[bool] = True

    def step(self, target: Any, chains: Chains, rng: Any, passed: Any = None) -> Info:
        if passed is None:
            chains.x = target.sweep(chains.x, rng)
        else:
            chains.x = target.finish_sweep(passed, rng)
        return {}
