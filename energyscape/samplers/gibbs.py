"""Block Gibbs sampling: x → h ~ p(h|x) → x' ~ p(x|h), for models that can draw both."""

from __future__ import annotations

from typing import Any

from sklearn.base import BaseEstimator
from tqdm import tqdm

from energyscape.backend import Array
from energyscape.errors import CapabilityError
from energyscape.registry import register


@register
class Gibbs(BaseEstimator):
    """Alternating draws of hidden and visible units (Smolensky, 1986; Hinton, 2002).

    Every step leaves the target's distribution as it is; at inverse temperature β that of the
    joint energy βE.
    """

    def step(self, target: Any, x: Array, rng: Any) -> Array:
        """One sweep of every chain.

        Parameters
        ----------
        target : Target or Clamped
        x : array, shape (n_chains, *event_shape)
        rng : Stream

        Returns
        -------
        array, shape (n_chains, *event_shape)
        """
        return target.sweep(x, rng)

    def run(
        self, target: Any, start: Array, n_steps: int, rng: Any, verbose: bool = False
    ) -> Array:
        """``n_steps`` sweeps from ``start``; only the last state is kept.

        Raises
        ------
        CapabilityError
            If the target's model has no conditionals to draw from.
        ValueError
            If ``start`` does not fit the target.
        """
        if not target.has_sweep:
            raise CapabilityError("Gibbs needs a model with sample_hidden and sample_visible")
        if start.ndim != len(target.event_shape) + 1 or start.shape[1:] != target.event_shape:
            raise ValueError(
                f"start has shape {start.shape}; chains of this target have shape "
                f"(n_chains, {', '.join(map(str, target.event_shape))})"
            )
        x = start
        for _ in tqdm(range(n_steps), desc="Gibbs", disable=not verbose, leave=False):
            x = self.step(target, x, rng)
        return x
