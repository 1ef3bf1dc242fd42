"""What one evaluation of a field of gated models gives."""

from __future__ import annotations

from typing import Any

import numpy as np

from energyscape.backend import Array, is_gpu_array, namespace
from energyscape.kernels import log1p, sigmoid, softplus_sum
from energyscape.models.field_gradient import FieldColumns
from energyscape.models.window_pass import WindowPass, flat, times
from energyscape.verbs import Params, is_one


class FieldPass(WindowPass):
    """Everything that the filter outputs and mean fields of all windows of a few images give."""

    def fields(self) -> dict[str, Array]:
        """Of every window: w, filter outputs r, z = ½r², mean fields a."""
        params, model = self.params, self.model
        u = model.layout().wrap(model.pulled(params, self.x)) if self.torus else self._standard()
        w = model.white(params, u)
        r = times(w, params["C"])
        z = r * r
        z *= z.dtype.type(0.5)
        known = {"w": w, "r": r, "z": z}
        if "W" in params:
            known["a"] = times(w, params["W"])
            known["a"] += params["c"][:, None, None]
        return known

    def _standard(self) -> Array:
        """u = (x - mean)/deviation."""
        return (self.x - self.params["mean_v"]) / self.params["deviation"]

    def _columns(self) -> FieldColumns | None:
        """The quick way of images whose `fields` are not there yet, on the CPU."""
        fresh = self._known is None and self._whole is None
        if not fresh or self.torus or not is_one(self.beta) or is_gpu_array(self.x):
            return None
        params, model = self.params, self.model
        return FieldColumns(params, model.layout(), model.units.shapes(params))

    def _own(self) -> Array:
        """1/σ²q, shape (1,)."""
        width = namespace(self.x).exp(-self.params["log_var"])
        return width / width.dtype.type(self.model.layout().coverage)

    def energy(self) -> Array:
        columns = self._columns()
        if columns is not None:
            return columns.energies(self._standard())
        known, xp = self.known, namespace(self.x)
        w, z = known["w"], known["z"]
        wide = 0.5 * self._own().astype(np.float64) * (w * w).sum(axis=3, dtype=np.float64)
        shapes = self.model.units.shapes(self.params).astype(np.float64)
        gammas = xp.matmul(log1p(z).astype(np.float64, copy=False), shapes[:, None, :, None])[
            ..., 0
        ]
        energy = (wide + gammas).sum(axis=(0, 2))
        if not is_one(self.beta):
            energy = energy * self.beta
        if "a" not in known:
            return energy
        field = self.times_beta(known["a"])
        rows = softplus_sum(field.reshape(-1, field.shape[3])).reshape(field.shape[:3])
        return energy - rows.sum(axis=(0, 2))

    def hidden(self) -> Array:
        """Activities of the covariance units, then of the mean units, all in [0, 1]."""
        h = self.to_maps(1 / (1 + self.known["z"]))
        if "a" not in self.known:
            return h
        g = sigmoid(self.to_maps(self.times_beta(self.known["a"])))
        return namespace(h).concatenate([h, g], axis=3)

    def sample_hidden(self, rng: Any) -> Array:
        xp, z = namespace(self.x), self.known["z"]
        shapes = self.model.units.shapes(self.params)[:, None, None, :]
        h = rng.gamma(self.to_maps(self.times_beta(xp.broadcast_to(shapes, z.shape))))
        h /= self.to_maps(1 + z)
        if "a" not in self.known:
            return h
        g = rng.bernoulli_logit(self.to_maps(self.times_beta(self.known["a"])))
        return xp.concatenate([h, g], axis=3)

    def _pull(self) -> tuple[Array, Array | None]:
        """∂F/∂r and the mean units' rates, at β = 1 in the former."""
        shapes = self.model.units.shapes(self.params)[:, None, None, :]
        dr = shapes / (1 + self.known["z"])
        dr *= self.known["r"]
        p = sigmoid(self.times_beta(self.known["a"])) if "a" in self.known else None
        return dr, p

    def input_grad(self) -> Array:
        params, model, (dr, p) = self.params, self.model, self._pull()
        dw = times(dr, params["C"].transpose(0, 2, 1))
        dw += self._own() * self.known["w"]
        if p is not None:
            dw -= times(p, params["W"].transpose(0, 2, 1))
        dw = self.times_beta(dw)
        if not self.torus:
            return model.unwhite(params, dw, self.x.shape) / params["deviation"]
        layout, (n, h, w, c) = model.layout(), self.x.shape
        wide = model.unwhite(params, dw, (n, h + layout.reach, w + layout.reach, c))
        return model.pulled(params, layout.fold(wide))

    def grad(self, weights: Array) -> Params:
        columns = self._columns()
        if columns is not None:
            return columns.grads(self._standard(), weights)
        total: Params = {}
        for rows, part in self.parts():
            more = part._grad(weights[rows])
            total = {key: total[key] + value for key, value in more.items()} if total else more
        return total

    def _grad(self, weights: Array) -> Params:
        known, (dr, p) = self.known, self._pull()
        each, w = weights[:, None, None], flat(known["w"]).transpose(0, 2, 1)
        logs = log1p(known["z"]) * each
        grads = {
            "C": w @ flat(dr * each),
            "a": logs.sum(axis=(1, 2)) * namespace(self.x).exp(self.params["a"]),
        }
        if p is not None:
            p = p * each
            grads |= {"W": -(w @ flat(p)), "c": -p.sum(axis=(1, 2))}
        return grads
