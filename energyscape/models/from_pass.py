"""Verbs of models whose `forward` gives a pass of their own: each asks it one question."""

from __future__ import annotations

from typing import Any

from energyscape.backend import Array
from energyscape.verbs import Params


class EnergyFromPass:
    """The energy and its gradient in the parameters."""

    def free_energy(self: Any, params: Params, x: Array) -> Array:
        """F(x), shape (n,), float64."""
        return self.forward(params, x).energy()

    def free_energy_grad(self: Any, params: Params, x: Array, weights: Array) -> Params:
        """Σ_i w_i ∂F(x_i)/∂θ by name."""
        return self.forward(params, x).grad(weights)


class UnitsFromPass(EnergyFromPass):
    """The same, and the hidden units given x."""

    def sample_hidden(self: Any, params: Params, x: Array, rng: Any, beta: Any = 1.0) -> Array:
        """h ~ p_β(h|x), shape (n, units), or (n, places down, across, units) of images."""
        return self.forward(params, x, beta).sample_hidden(rng)

    def encode(self: Any, params: Params, x: Array) -> Array:
        """Activities given x, the shape of h: of binary units p(h = 1|x), of Gamma units
        E[h|x]/γ; covariance units before mean units, each set by set."""
        return self.forward(params, x).hidden()
