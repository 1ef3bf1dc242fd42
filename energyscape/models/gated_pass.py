"""What one evaluation of a gated Markov random field gives."""

from __future__ import annotations

from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.kernels import matmul, sigmoid, softplus_sum
from energyscape.verbs import Params, Pass, as_column, is_one


class GatedPass(Pass):
    """Everything that the filter outputs and mean fields of a few rows give, at any β."""

    def __init__(
        self,
        model: Any,
        params: Params,
        x: Array,
        beta: Any = 1.0,
        base: Params | None = None,
        known: dict[str, Array] | None = None,
    ) -> None:
        super().__init__(model, params, x)
        self.beta, self.base = beta, base
        self.known = model.fields(params, x) if known is None else known  # shared by all β

    def __getitem__(self, rows: Any) -> GatedPass:
        beta = self.beta if np.ndim(self.beta) == 0 else self.beta[rows]
        known = {key: value[rows] for key, value in self.known.items()}
        return GatedPass(self.model, self.params, self.x[rows], beta, self.base, known)

    def join(self, other: Pass) -> GatedPass:
        xp, more = namespace(self.x), other.known  # type: ignore[attr-defined]
        known = {key: xp.concatenate([value, more[key]]) for key, value in self.known.items()}
        x = xp.concatenate([self.x, other.x])
        return GatedPass(self.model, self.params, x, self.beta, self.base, known)

    def at(self, beta: Any) -> GatedPass:
        """The same points at another inverse temperature, without another product."""
        return GatedPass(self.model, self.params, self.x, beta, self.base, self.known)

    def _field(self) -> Array:
        """β times the field of the mean units."""
        a = self.known["a"]
        return a if is_one(self.beta) else a * as_column(self.beta, a)

    def energy(self) -> Array:
        own = self.model.visible_energy(self.params, self.known["u"])
        beta, z = self.beta, self.known["z"]
        energy = own if is_one(beta) else beta * own
        if self.base is not None:
            energy = energy + (1.0 - beta) * _base_energy(self.base, self.x)
        energy = energy + self.model.units.energy(self.params, z, beta)
        return energy - softplus_sum(self._field()) if "a" in self.known else energy

    def hidden(self) -> Array:
        """Activities of the covariance units, then of the mean units, all in [0, 1]."""
        activity = self.model.units.activity(self.params, self.known["z"])
        if "a" not in self.known:
            return activity
        return namespace(activity).concatenate([activity, sigmoid(self.known["a"])], axis=1)

    def sample_hidden(self, rng: Any) -> Array:
        h = self.model.units.sample(self.params, self.known["z"], rng, self.beta)
        if "a" not in self.known:
            return h
        g = rng.bernoulli_logit(self._field())
        return namespace(h).concatenate([h, g], axis=1)

    def _pull(self) -> tuple[Array, Array, Array | None]:
        """∂F_β/∂z, ∂F_β/∂r and the tempered mean units' rates."""
        slope = self.model.units.slope(self.params, self.known["z"], self.beta)
        r = self.known["r"]
        dr = (matmul(slope, self.params["P"].T) if "P" in self.params else slope) * r
        if "a" not in self.known:
            return slope, dr, None
        p = sigmoid(self._field())
        return slope, dr, p if is_one(self.beta) else p * as_column(self.beta, p)

    def input_grad(self) -> Array:
        _, dr, p = self._pull()
        grad = self.model.grad_of_u(self.params, self.known, dr, p, self.beta)
        grad /= self.params["deviation"]
        if self.base is not None:
            away = (self.x - self.base["b"]) * namespace(grad).exp(-self.base["log_var"])
            grad += as_column(1.0 - self.beta, grad) * away
        return grad

    def grad(self, weights: Array) -> Params:
        params, known, model = self.params, self.known, self.model
        slope, dr, p = self._pull()
        w = weights[:, None]
        if "v" in known:
            grads = {"C": matmul(known["v"].T, dr * w)}
        else:
            grads = {"C": params["S"] @ matmul(known["u"].T, dr * w)}
        grads |= model.units.grad(params, known["z"], weights)
        if "P" in params:
            r = known["r"]
            grads["P"] = matmul((0.5 * r * r).T, slope * w)
        if not model.finite:
            return grads
        grads["b"] = -(weights @ known["u"])
        if p is not None:
            grads |= {"W": -matmul(known["u"].T, p * w), "c": -(weights @ p)}
        if model.learns_scale:
            u = known["u"]
            grads["log_var"] = -0.5 * model.precision(params) * (weights @ (u * u).sum(axis=1))
        return grads


def _base_energy(base: Params, x: Array) -> Array:
    d = x.astype(np.float64) - base["b"].astype(np.float64)
    d *= d
    return d @ (0.5 * namespace(x).exp(-base["log_var"].astype(np.float64)))
