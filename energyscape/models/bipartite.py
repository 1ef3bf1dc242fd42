"""What machines with binary hidden units over independent visible ones share.

With the joint energy E(x, h) = A(x) - c'h - s(x)'Wh the hidden units are independent given x, and
F(x) = A(x) - Σ_j softplus(c_j + (s(x)'W)_j): one product s(x)'W gives the energy, the gradient and
the draw of h at every inverse temperature. At β it is the joint energy that is multiplied; with a
base measure (a factorial one near the data) E_β = (1 - β) E_base + β E.

Training is *centred* (Melchior, Fischer, Wiskott, 2016): the step is what gradient descent would
do on the weights between x - μ and h - λ, where μ and λ are moving means of the data, written back
into the plain parameters. With P the Jacobian of that change of variables the direction is PP'∇.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from energyscape.backend import Array, is_gpu_array, namespace
from energyscape.kernels import follow, matmul, rank_two, sigmoid, softplus_sum
from energyscape.models.base import EnergyModel
from energyscape.models.from_pass import UnitsFromPass
from energyscape.models.states import (
    STATE_BLOCK,
    binary_states,
    draw_states,
    log_sum_exp,
    state_log_weights,
)
from energyscape.samplers import Gibbs
from energyscape.trainers import PCD
from energyscape.verbs import Params, Pass, as_column, is_one

_OFFSET_RATE = 0.01  # of the moving means, per update (Melchior et al., 2016)


class BipartitePass(Pass):
    """Everything that one product x'W gives, at any inverse temperature."""

    def __init__(
        self,
        model: BipartiteModel,
        params: Params,
        x: Array,
        beta: Any = 1.0,
        base: Params | None = None,
        field: Array = None,
    ) -> None:
        super().__init__(model, params, x)
        self.beta, self.base = beta, base
        # The field but for ``bias``, which kernels add as they read it; None where it is in.
        self.product, self.bias = model.hidden_parts(params, x) if field is None else (field, None)
        self._hidden: Array = None
        self._visible: list[Any] = []  # shared by the passes of all β at these points

    @property
    def field(self) -> Array:
        """W's(x) + c, shape (n, n_components)."""
        if self.bias is not None:
            self.product, self.bias = self.product + self.bias, None
        return self.product

    def _alike(self, x: Array, beta: Any, product: Array) -> BipartitePass:
        """A pass at points whose ``product`` is known."""
        other = type(self)(self.model, self.params, x, beta, self.base, product)
        other.bias = self.bias
        return other

    def __getitem__(self, rows: Any) -> BipartitePass:
        beta = self.beta if np.ndim(self.beta) == 0 else self.beta[rows]
        part = self._alike(self.x[rows], beta, self.product[rows])
        part._hidden = None if self._hidden is None else self._hidden[rows]
        return part

    def join(self, other: Pass) -> BipartitePass:
        xp = namespace(self.x)
        x = xp.concatenate([self.x, other.x])
        field = xp.concatenate([self.field, other.field])  # type: ignore[attr-defined]
        return type(self)(self.model, self.params, x, self.beta, self.base, field)

    def at(self, beta: Any) -> BipartitePass:
        """The same points at another inverse temperature, without another product."""
        other = self._alike(self.x, beta, self.product)
        other._visible = self._visible
        return other

    def _visible_energies(self) -> tuple[Array, Array | None]:
        if not self._visible:
            self._visible += self.model.visible_energies(self.params, self.x, self.base)
        own, at_base = self._visible
        return own, at_base

    def _tempered(self) -> Array:
        return self.field * as_column(self.beta, self.field)

    def energy(self) -> Array:
        own, at_base = self._visible_energies()
        beta = self.beta
        energy = own if is_one(beta) else beta * own
        if at_base is not None:
            energy = energy + (1.0 - beta) * at_base
        if is_one(beta):
            return energy - softplus_sum(self.product, self.bias)
        return energy - softplus_sum(self._tempered())

    def hidden(self) -> Array:
        """p(h = 1 | x), shape (n, n_components)."""
        if self._hidden is None:
            if is_one(self.beta):
                self._hidden = sigmoid(self.product, bias=self.bias)
            else:
                self._hidden = sigmoid(self._tempered())
        return self._hidden

    def sample_hidden(self, rng: Any) -> Array:
        if is_one(self.beta):
            return rng.bernoulli_logit(self.product, bias=self.bias)
        return rng.bernoulli_logit(self._tempered())

    def grad(self, weights: Array) -> Params:
        return self.model.grad_from(self.params, self.x, self.hidden(), weights)

    def input_grad(self) -> Array:
        p = self.params
        return self.model.input_grad_from(p, self.x, self.hidden(), self.beta, self.base)

    def stats(self) -> Params:
        if not self.model.centered:
            return {}
        return {"mean/v": self.x.sum(axis=0), "mean/h": self.hidden().sum(axis=0)}


class BipartiteModel(UnitsFromPass, EnergyModel):
    """What both machines share: everything about the hidden side, and the centred step."""

    centered: bool
    codes = "unit"

    def default_trainer(self) -> Any:
        """PCD with its defaults."""
        return PCD()

    def default_sampler(self) -> Any:
        """Block Gibbs."""
        return Gibbs()

    # ------------------------------------------------------------ what each machine says itself

    def scaled(self, params: Params, x: Array) -> Array:
        """What multiplies W: x, or x/σ²."""
        raise NotImplementedError

    def visible_energies(
        self, params: Params, x: Array, base: Params | None
    ) -> tuple[Array, Array | None]:
        """The part of E that sees x alone, of the model and of the base; (n,) float64 each."""
        raise NotImplementedError

    def visible_log_partition(self, params: Params, h: Array) -> Array:
        """log Σ_x or ∫dx of exp(-E(x, h)) without c'h, for states h in float64; shape (n,)."""
        raise NotImplementedError

    # ------------------------------------------------------------ verbs

    def hidden_field(self, params: Params, x: Array) -> Array:
        """W's(x) + c, of which everything about the hidden side is made."""
        field = self.hidden_product(params, x)
        field += params["c"]
        return field

    def hidden_product(self, params: Params, x: Array) -> Array:
        """The field but for c; a new array."""
        return matmul(self.scaled(params, x), params["W"])

    def hidden_parts(self, params: Params, x: Array) -> tuple[Array, Array | None]:
        """The field as a product and what is still to be added: c on a GPU, where the kernels that
        read a field add it in passing; nothing on a CPU."""
        if is_gpu_array(x):
            return self.hidden_product(params, x), params["c"]
        return self.hidden_field(params, x), None

    def event_shape(self, params: Params) -> tuple[int, ...]:
        """Shape of one row."""
        return (params["W"].shape[0],)

    def forward(
        self, params: Params, x: Array, beta: Any = 1.0, base: Params | None = None
    ) -> BipartitePass:
        """One product x'W, and all that follows from it."""
        return BipartitePass(self, params, x, beta, base)

    def joint_energy(self, params: Params, x: Array, h: Array) -> Array:
        """E(x, h) row by row, shape (n,), float64: what the tests sum over h."""
        own, _ = self.visible_energies(params, x, None)
        return own - (self.hidden_field(params, x) * h).sum(axis=1, dtype=np.float64)

    def hidden_free_energy(self, params: Params, h: Array) -> Array:
        """-log Σ_x exp(-E(x, h)), shape (n,), float64: the hidden units' own free energy."""
        wide = {k: v.astype(np.float64) for k, v in params.items()}
        h = h.astype(np.float64)
        return -(h @ wide["c"] + self.visible_log_partition(wide, h))

    # ------------------------------------------------------------ the centred step

    def coordinates(self, params: Params) -> Params:
        """Biases at the means of the data, b + Wλ and c + W's(μ), if ``centered``; else as base."""
        if not self.centered:
            return super().coordinates(params)
        at_h, at_v = self._fields_at_means(params)
        at_h += params["b"]
        at_v += params["c"]
        return params | {"b": at_h, "c": at_v}

    def set_coordinates(self, params: Params, coordinates: Params) -> None:
        """The way back, with whatever W and σ² have become."""
        super().set_coordinates(params, coordinates)
        if self.centered:
            at_h, at_v = self._fields_at_means(params)
            params["b"] -= at_h
            params["c"] -= at_v

    def _fields_at_means(self, params: Params) -> tuple[Array, Array]:
        W = params["W"]
        return W @ params["mean_h"], self.scaled(params, params["mean_v"]) @ W

    def precondition(self, params: Params, grads: Params) -> None:
        """∇ in plain parameters → ∇ in `coordinates`, in place."""
        offset = None
        if self.centered:
            offset = self.scaled(params, params["mean_v"])
            rank_two(grads["W"], offset, grads["c"], grads["b"], params["mean_h"])
        self.rescale(params, grads, offset)

    def rescale(self, params: Params, grads: Params, offset: Array | None) -> None:
        """What a machine's own units add to the metric; nothing by default."""

    def project(self, params: Params, sums: Params, rng: Any) -> None:
        """Let the offsets follow the means of the data."""
        follow_means(params, sums)

    # ------------------------------------------------------------ exact sums over states

    def enumerable_units(self, params: Params) -> int:
        """Units on the side that `log_partition` enumerates."""
        return params["W"].shape[1]

    def log_partition(self, params: Params) -> float:
        """Exact log Z by summing over the states of up to 25 units, in blocks.

        Raises
        ------
        CapabilityError
            If there are more units than that on the smaller side.
        """
        return log_sum_exp(self._state_log_weights(params))

    def log_partition_grad(self, params: Params) -> Params:
        """∂ log Z/∂θ by name, from the enumerated states of the hidden units."""
        log_w = self._state_log_weights(params)
        xp, units = namespace(log_w), self.enumerable_units(params)
        p = xp.exp(log_w - log_w.max())
        p /= p.sum()
        wide = {k: v.astype(np.float64) for k, v in params.items()}
        total: Params = {}
        for lo in range(0, len(p), STATE_BLOCK):
            index = xp.arange(lo, min(lo + STATE_BLOCK, len(p)))
            states = binary_states(index, units, p)
            part = self.state_grad(wide, states, p[lo : lo + len(index)])
            total = {k: v + total[k] for k, v in part.items()} if total else part
        return {k: v.astype(params[k].dtype) for k, v in total.items()}

    def state_grad(self, params: Params, h: Array, weights: Array) -> Params:
        """Σ_s w_s ∂/∂θ [c'h_s + `visible_log_partition` of h_s]."""
        raise NotImplementedError

    def sample_exact(self, params: Params, n: int, rng: Any) -> Array:
        """``n`` exact, independent draws of x, from the enumerated states of the hidden units."""
        states = draw_states(self._state_log_weights(params), n, rng)
        h = binary_states(states, self.enumerable_units(params), params["c"])
        return self.sample_visible(params, h, rng)

    def _state_log_weights(self, params: Params) -> Array:
        """log of the unnormalised probability of every state, shape (2^units,), float64."""
        wide = {k: v.astype(np.float64) for k, v in params.items()}
        units = self.enumerable_units(params)
        return state_log_weights(lambda h: self._log_weight(wide, h), units, params["c"])

    def _log_weight(self, params: Params, states: Array) -> Array:
        return states @ params["c"] + self.visible_log_partition(params, states)

    # ------------------------------------------------------------ fitted attributes

    @property
    def components_(self) -> Any:
        self._need_fit("components_")
        return self._fitted(self._params["W"].T)

    @property
    def intercept_hidden_(self) -> Any:
        self._need_fit("intercept_hidden_")
        return self._fitted(self._params["c"])

    @property
    def intercept_visible_(self) -> Any:
        self._need_fit("intercept_visible_")
        return self._fitted(self._params["b"])


def follow_means(params: Params, sums: Params) -> None:
    """Move the offsets ``mean_v`` and ``mean_h`` towards means of the data, where there are any."""
    for name in ("v", "h"):
        if f"mean/{name}" in sums:
            follow(params[f"mean_{name}"], sums[f"mean/{name}"], _OFFSET_RATE)


def bipartite_shapes(d: int, k: int) -> dict[str, tuple[int, ...]]:
    """Shapes of what both machines have, for ``d`` visible and ``k`` hidden units."""
    return {"W": (d, k), "b": (d,), "c": (k,), "mean_v": (d,), "mean_h": (k,)}
