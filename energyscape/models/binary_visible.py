"""What machines with binary units on both sides share: all about the side that x is on.

Given the other side x_i are independent bits with field_i = b_i + (Wh)_i, and
Σ_x exp(-E(x, h)) = exp(c'h) Π_i (1 + exp(field_i)): either side can be summed out, so that log Z is
the sum over the states of the smaller one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.kernels import sigmoid, softplus_sum
from energyscape.models.bipartite import BipartiteModel
from energyscape.models.states import binary_states, draw_states
from energyscape.verbs import Params, as_column


class BinaryVisible(BipartiteModel):
    """A bipartite machine over bits x (all even layers of a deep one), given `visible_product`."""

    domain = "binary"

    def visible_field(self, params: Params, h: Array) -> Array:
        """b + Wh, shape (n, units of x); a new array."""
        field = self.visible_product(params, h)
        field += params["b"]
        return field

    def visible_product(self, params: Params, h: Array) -> Array:
        """Wh; a new array."""
        raise NotImplementedError

    def visible_energies(
        self, params: Params, x: Array, base: Params | None
    ) -> tuple[Array, Array | None]:
        wide = x.astype(np.float64)
        own = -(wide @ params["b"].astype(np.float64))
        return own, None if base is None else -(wide @ base["b"].astype(np.float64))

    def sample_visible(
        self, params: Params, h: Array, rng: Any, beta: Any = 1.0, base: Params | None = None
    ) -> Array:
        """x ~ p(x|h), shape (n, units of x)."""
        if base is None and np.ndim(beta) == 0 and beta == 1.0:
            product = self.visible_product(params, h)
            return rng.bernoulli_logit(product, out=product, bias=params["b"])
        field = self.visible_field(params, h)
        field *= as_column(beta, field)
        if base is not None:
            field += as_column(1.0 - beta, field) * base["b"]
        return rng.bernoulli_logit(field, out=field)

    def base_measure(self, params: Params) -> Params:
        """Independent units, x at the rates ``mean_v`` of the data kept away from 0 and 1."""
        xp = namespace(params["mean_v"])
        p = xp.clip(params["mean_v"], 1e-3, 1 - 1e-3)
        return {"b": xp.log(p / (1 - p))}

    def base_log_partition(self, params: Params, base: Params) -> float:
        wide = base["b"].astype(np.float64)[None]
        return float(softplus_sum(wide)[0]) + len(params["c"]) * math.log(2)

    # ------------------------------------------------------------ exact sums over states

    def enumerable_units(self, params: Params) -> int:
        """Units of the smaller side."""
        return min(len(params["b"]), len(params["c"]))

    def visible_log_partition(self, params: Params, h: Array) -> Array:
        return softplus_sum(self.visible_field(params, h))

    def _log_weight(self, params: Params, states: Array) -> Array:
        if _sums_over_visible(params):
            return -self.free_energy(params, states)
        return super()._log_weight(params, states)

    def state_grad(self, params: Params, h: Array, weights: Array) -> Params:
        if _sums_over_visible(params):
            return self.free_energy_grad(params, h, -weights)
        field = self.visible_field(params, h)
        return self.grad_from(params, sigmoid(field, out=field), h, -weights)

    def sample_exact(self, params: Params, n: int, rng: Any) -> Array:
        """``n`` exact, independent draws of x, from the enumerated states of the smaller side."""
        if not _sums_over_visible(params):
            return super().sample_exact(params, n, rng)
        states = draw_states(self._state_log_weights(params), n, rng)
        return binary_states(states, self.enumerable_units(params), params["b"])


def _sums_over_visible(params: Params) -> bool:
    return len(params["b"]) < len(params["c"])
