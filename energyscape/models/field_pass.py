"""What one evaluation of a field of gated models gives."""

from __future__ import annotations

from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.kernels import sigmoid, softplus_sum
from energyscape.verbs import Params, Pass, is_one


class FieldPass(Pass):
    """Everything that the filter outputs and mean fields of all windows of a few images give."""

    def __init__(
        self,
        model: Any,
        params: Params,
        x: Array,
        beta: Any = 1.0,
        torus: bool = False,
        known: dict[str, Array] | None = None,
    ) -> None:
        super().__init__(model, params, x)
        self.beta, self.torus = beta, torus
        self.known = self._fields() if known is None else known

    def _fields(self) -> dict[str, Array]:
        """Of every window, (sets, n, places, …): w, filter outputs r, z = ½r², mean fields a."""
        params, model = self.params, self.model
        if self.torus:
            u = model.layout().wrap(model.pulled(params, self.x))
        else:
            u = (self.x - params["mean_v"]) / params["deviation"]
        w = model.white(params, u)
        r = times(w, params["C"])
        z = r * r
        z *= z.dtype.type(0.5)
        known = {"w": w, "r": r, "z": z}
        if "W" in params:
            known["a"] = times(w, params["W"])
            known["a"] += params["c"][:, None, None]
        return known

    def _part(self, x: Array, beta: Any, known: dict[str, Array]) -> FieldPass:
        return FieldPass(self.model, self.params, x, beta, self.torus, known)

    def __getitem__(self, rows: Any) -> FieldPass:
        beta = self.beta if np.ndim(self.beta) == 0 else self.beta[rows]
        known = {key: value[:, rows] for key, value in self.known.items()}
        return self._part(self.x[rows], beta, known)

    def join(self, other: Pass) -> FieldPass:
        xp, more = namespace(self.x), other.known  # type: ignore[attr-defined]
        known = {k: xp.concatenate([v, more[k]], axis=1) for k, v in self.known.items()}
        return self._part(xp.concatenate([self.x, other.x]), self.beta, known)

    def at(self, beta: Any) -> FieldPass:
        """The same points at another inverse temperature, without another product."""
        return self._part(self.x, beta, self.known)

    @property
    def _sides(self) -> tuple[int, int]:
        """Places down and across."""
        layout, (h, w) = self.model.layout(), self.x.shape[1:3]
        if self.torus:
            return h // layout.grain, w // layout.grain
        return layout.places(h, w)

    def _times_beta(self, values: Array) -> Array:
        """Values of windows, (sets, n, places, units), by their images' β; a new array unless that
        is 1."""
        if is_one(self.beta):
            return values
        return values * namespace(values).asarray(self.beta, values.dtype).reshape(-1, 1, 1)

    def _own(self) -> Array:
        """1/σ²q, shape (1,)."""
        width = namespace(self.x).exp(-self.params["log_var"])
        return width / width.dtype.type(self.model.layout().coverage)

    def energy(self) -> Array:
        known, xp = self.known, namespace(self.x)
        w, z = known["w"], known["z"]
        wide = 0.5 * self._own().astype(np.float64) * (w * w).sum(axis=3, dtype=np.float64)
        shapes = self.model.units.shapes(self.params).astype(np.float64)
        gammas = xp.matmul(xp.log1p(z).astype(np.float64), shapes[:, None, :, None])[..., 0]
        energy = (wide + gammas).sum(axis=(0, 2))
        if not is_one(self.beta):
            energy = energy * self.beta
        if "a" not in known:
            return energy
        field = self._times_beta(known["a"])
        rows = softplus_sum(field.reshape(-1, field.shape[3])).reshape(field.shape[:3])
        return energy - rows.sum(axis=(0, 2))

    def hidden(self) -> Array:
        """Activities of the covariance units, then of the mean units, all in [0, 1]."""
        h = self._map(1 / (1 + self.known["z"]))
        if "a" not in self.known:
            return h
        g = sigmoid(self._map(self._times_beta(self.known["a"])))
        return namespace(h).concatenate([h, g], axis=3)

    def sample_hidden(self, rng: Any) -> Array:
        xp, z = namespace(self.x), self.known["z"]
        shapes = self.model.units.shapes(self.params)[:, None, None, :]
        h = rng.gamma(self._map(self._times_beta(xp.broadcast_to(shapes, z.shape))))
        h /= self._map(1 + z)
        if "a" not in self.known:
            return h
        g = rng.bernoulli_logit(self._map(self._times_beta(self.known["a"])))
        return xp.concatenate([h, g], axis=3)

    def _map(self, units: Array) -> Array:
        return self.model.to_maps(units, self._sides)

    def _pull(self) -> tuple[Array, Array | None]:
        """∂F/∂r and the mean units' rates, at β = 1 in the former."""
        shapes = self.model.units.shapes(self.params)[:, None, None, :]
        dr = shapes / (1 + self.known["z"])
        dr *= self.known["r"]
        p = sigmoid(self._times_beta(self.known["a"])) if "a" in self.known else None
        return dr, p

    def input_grad(self) -> Array:
        params, model, (dr, p) = self.params, self.model, self._pull()
        dw = times(dr, params["C"].transpose(0, 2, 1))
        dw += self._own() * self.known["w"]
        if p is not None:
            dw -= times(p, params["W"].transpose(0, 2, 1))
        dw = self._times_beta(dw)
        if not self.torus:
            return model.unwhite(params, dw, self.x.shape) / params["deviation"]
        layout, (n, h, w, c) = model.layout(), self.x.shape
        wide = model.unwhite(params, dw, (n, h + layout.reach, w + layout.reach, c))
        return model.pulled(params, layout.fold(wide))

    def grad(self, weights: Array) -> Params:
        known, (dr, p) = self.known, self._pull()
        each, w = weights[:, None, None], _rows(known["w"]).transpose(0, 2, 1)
        logs = namespace(self.x).log1p(known["z"]) * each
        grads = {
            "C": w @ _rows(dr * each),
            "a": logs.sum(axis=(1, 2)) * namespace(self.x).exp(self.params["a"]),
        }
        if p is not None:
            p = p * each
            grads |= {"W": -(w @ _rows(p)), "c": -p.sum(axis=(1, 2))}
        return grads


def times(rows: Array, matrix: Array) -> Array:
    """Rows (sets, n, places, a) by one matrix (a, b) or one for each set, as one product a set."""
    return (_rows(rows) @ matrix).reshape(*rows.shape[:3], matrix.shape[-1])


def _rows(values: Array) -> Array:
    return values.reshape(len(values), -1, values.shape[3])
