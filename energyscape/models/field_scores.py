"""Curvature and score matching of fields: every window's filters as those of a gated model.

In u = (x - mean)/deviation, with w = Su of every window, r = C'w, own = 1/σ²q and g = ∂F/∂u
    ΔF = Σ_windows own |S|² + Σ_k φ''(r_k) |SC_k|² - Σ_l p_l (1 - p_l) |SW_l|²
(Köster and Hyvärinen, 2007, for one window).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.kernels import sigmoid
from energyscape.models.filter_energy import Slopes
from energyscape.models.window_pass import flat, times
from energyscape.verbs import Params


class FieldScoreMixin:
    """What the windows of a pass give."""

    def laplacian(self: Any, params: Params, x: Array) -> Array:
        """ΔF, shape (n,), float64."""
        passed = self.forward(params, x)
        total = self._window_curvature(params, passed)
        for name, slopes in self._window_slopes(params, passed).items():
            norms = _norms(params, name).astype(np.float64)
            total = total + (slopes.second * norms).sum(axis=(0, 2, 3))
        return total / params["deviation"].astype(np.float64) ** 2

    def score_matching(
        self: Any, params: Params, passed: Any, weights: Array
    ) -> tuple[Array, Params]:
        """½|∂F/∂x|² - ΔF of each image, and the gradient of their weighted sum."""
        square = params["deviation"] ** 2
        each = (weights / square)[:, None, None]
        g = passed.input_grad() * params["deviation"]
        values = 0.5 * (g * g).sum(axis=(1, 2, 3), dtype=np.float64)
        values -= self._window_curvature(params, passed)
        white, grads, S = self.white(params, g), {}, params["S"]
        rows = [flat(a).transpose(0, 2, 1) for a in (passed.known["w"], white)]
        for name, slopes in self._window_slopes(params, passed).items():
            along, norms = times(white, params[name]), _norms(params, name)
            values -= (slopes.second * norms).sum(axis=(0, 2, 3), dtype=np.float64)
            of_fields = (slopes.second * along - slopes.third * norms) * each
            second = slopes.second * each
            grads[name] = rows[0] @ flat(of_fields) + rows[1] @ flat(slopes.first * each)
            grads[name] -= 2 * (S @ (S @ params[name])) * second.sum(axis=(1, 2))[:, None]
            if name == "W":
                grads["c"] = of_fields.sum(axis=(1, 2))
            else:
                total = (slopes.first * each * along - second * norms).sum(axis=(1, 2))
                shapes = self.units.shapes(params)
                grads["a"] = total * namespace(total).exp(params["a"]) / shapes
        return values / square.astype(np.float64), grads

    def _window_curvature(self: Any, params: Params, passed: Any) -> Array:
        """Σ_windows own |S|², (1,), float64."""
        S, (sets, _, places, _) = params["S"].astype(np.float64), passed.known["w"].shape
        own = namespace(S).exp(-params["log_var"].astype(np.float64)) / self.layout().coverage
        return sets * places * own * (S * S).sum()

    def _window_slopes(self: Any, params: Params, passed: Any) -> dict[str, Slopes]:
        """Of what the units of each kind cost, by the name of their filters."""
        known, shared = passed.known, params | {"a": params["a"][:, None, None]}
        found = {"C": self.units.slopes(shared, known["r"], known["z"])}
        if "a" in known:
            p = sigmoid(known["a"])
            bent = p * (1 - p)
            found["W"] = Slopes(-p, -bent, bent * (2 * p - 1))
        return found


def _norms(params: Params, name: str) -> Array:
    """|SC_k|² of the filters of every set, (sets, 1, 1, k)."""
    seen = params["S"] @ params[name]
    return (seen * seen).sum(axis=1)[:, None, None]
