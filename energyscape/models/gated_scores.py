"""Curvature of gated Markov random fields, and score matching where a unit sees one filter.

In u = (x - mean)/deviation, with z_m = Σ_k P_mk r_k²/2 and r = A'u
    ΔF = d/σ² - Σ_j g_j (1 - g_j) |W_j|² + Σ_k (f'P)_k |A_k|² + Σ_m f''_m |Σ_k P_mk r_k A_k|²
(Köster and Hyvärinen, 2007; Swersky et al., 2011). The last term costs k² of every row, and its
gradient more: with pools it is an oracle, and `SlicedScoreMatching` trains.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.metaestimators import available_if

from energyscape.backend import Array, namespace
from energyscape.models.filter_energy import Slopes, curved, matched
from energyscape.verbs import Params


def _sees_one_filter(model: Any) -> bool:
    return model.pools is None and not model.learn_pools and not model.normalize


class ScoreMixin:
    """What the filter outputs and mean fields of a pass give."""

    @available_if(lambda self: not self.normalize)
    def laplacian(self: Any, params: Params, x: Array) -> Array:
        """ΔF, shape (n,), float64."""
        xp, passed = namespace(x), self.forward(params, x)
        A, known = self.filters(params), passed.known
        r, z, units = known["r"], known["z"], self.units
        P = params["P"] if "P" in params else xp.eye(r.shape[1], dtype=r.dtype)
        slope, bend = units.slope(params, z, 1.0), units.bend(params, z)
        total = ((slope @ P.T) @ (A * A).sum(axis=0)).astype(np.float64)
        gram = A.T @ A
        for m in range(P.shape[1]):
            pull = r * P[:, m]
            total += bend[:, m] * ((pull @ gram) * pull).sum(axis=1)
        if self.finite:
            total += float(len(A)) * self.precision(params)
        if "a" in known:
            on = passed.hidden()[:, z.shape[1] :]
            total -= (on * (1 - on)) @ (params["W"] ** 2).sum(axis=0)
        return total / params["deviation"].astype(np.float64) ** 2

    @available_if(_sees_one_filter)
    def score_matching(
        self: Any, params: Params, passed: Any, weights: Array
    ) -> tuple[Array, Params]:
        """½|∂F/∂x|² - ΔF of each row, and the gradient of their weighted sum."""
        u, square = passed.known["u"], params["deviation"] ** 2
        g, w = passed.input_grad() * params["deviation"], weights / square
        A, slopes = self._all_filters(params, passed)
        found = matched(u, g, A, slopes, w)
        ahead = found.along * w[:, None], -found.norms * w[:, None]
        grads = self._of_all(params, passed, found, *ahead)
        values = found.values
        if self.finite:
            precision = self.precision(params)
            values = values - u.shape[1] * precision.astype(np.float64)
            grads["b"] = -(w @ g)
            stretched = w @ (g * u).sum(axis=1) - u.shape[1] * w.sum()
            grads["log_var"] = -precision * stretched
        return values / square.astype(np.float64), grads

    @available_if(_sees_one_filter)
    def squared_curvature(
        self: Any, params: Params, passed: Any, weights: Array
    ) -> tuple[Array, Params]:
        """Σ_i (∂²F/∂x_i²)² of each row, and the gradient of their weighted sum."""
        u, fourth = passed.known["u"], params["deviation"] ** 4
        w, xp = weights / fourth, namespace(u)
        A, slopes = self._all_filters(params, passed)
        q = xp.zeros(u.shape[1], u.dtype)
        if self.finite:
            q += self.precision(params)
        found = curved(u, q, A, slopes, w)
        grads = self._of_all(params, passed, found, xp.zeros_like(found.seen), found.seen)
        if self.finite:
            grads["b"] = xp.zeros_like(params["b"])
            grads["log_var"] = -self.precision(params) * found.twice.sum()
        return found.values / fourth.astype(np.float64), grads

    def _all_filters(self: Any, params: Params, passed: Any) -> tuple[Array, Slopes]:
        """Filters of both kinds side by side, and what their units' energies do."""
        A, known = self.filters(params), passed.known
        slopes = self.units.slopes(params, known["r"], known["z"])
        if "a" not in known:
            return A, slopes
        put = namespace(A).concatenate
        on = passed.hidden()[:, A.shape[1] :]
        bent = on * (1 - on)
        return put([A, params["W"]], axis=1), Slopes(
            put([slopes.first, -on], axis=1),
            put([slopes.second, -bent], axis=1),
            put([slopes.third, bent * (2 * on - 1)], axis=1),
        )

    def _of_all(
        self: Any, params: Params, passed: Any, found: Any, first: Array, second: Array
    ) -> Params:
        """Gradients that come by way of the filters, from those in φ' and φ''."""
        r = passed.known["r"]
        k = r.shape[1]
        grads = {"C": params["S"] @ found.of_filters[:, :k]}
        z = passed.known["z"]
        grads |= self.units.match_grads(params, r, z, first[:, :k], second[:, :k])
        if "W" in params:
            of_mean = found.of_fields[:, k:].sum(axis=0)
            of_w = namespace(r).ascontiguousarray(found.of_filters[:, k:])
            grads |= {"W": of_w, "c": of_mean}
        return grads
