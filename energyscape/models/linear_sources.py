"""What models of linear sources u = W(x - m) share, whatever their sources cost.

    F(x) = energy of u + what does not depend on x

The gradient is taken in the metric W'W, the natural one (Amari, Cichocki, Yang, 1996; Cardoso and
Laheld, 1996, call it relative): where W is square ΔW ∝ (I - ψ(u)u')W learns the same whatever the
data were mixed by.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from energyscape.backend import Array, namespace, to_host
from energyscape.kernels import norm
from energyscape.models.base import EnergyModel
from energyscape.models.filter_energy import Curved, Matched, Slopes, curved, matched
from energyscape.verbs import Params, Pass

# Least variance along an axis of the standardised data as a fraction of the largest, and of a
# feature as a fraction of its squared mean: less is rounding.
_FLAT, _CONSTANT = 1e-10, 1e-20


class SourcePass(Pass):
    """Energy and gradients from one product W(x - m)."""

    def __init__(self, model: LinearSources, params: Params, x: Array, u: Array = None) -> None:
        super().__init__(model, params, x)
        self.u = model.sources(params, x) if u is None else u

    def __getitem__(self, rows: Any) -> SourcePass:
        return SourcePass(self.model, self.params, self.x[rows], self.u[rows])

    def join(self, other: Pass) -> SourcePass:
        xp = namespace(self.x)
        u = xp.concatenate([self.u, other.u])  # type: ignore[attr-defined]
        return SourcePass(self.model, self.params, xp.concatenate([self.x, other.x]), u)

    def energy(self) -> Array:
        return self.model.source_energy(self.params, self.u) + self.model.offset(self.params)

    def input_grad(self) -> Array:
        return self.model.source_grad(self.params, self.u) @ self.params["W"]

    def grad(self, weights: Array) -> Params:
        psi = self.model.source_grad(self.params, self.u) * weights[:, None]
        W, m = self.params["W"], self.params["m"]
        own = {"W": psi.T @ (self.x - m), "m": -psi.sum(axis=0) @ W}
        return own | self.model.other_grads(self.params, self.u, weights, own["W"])


class LinearSources(EnergyModel):
    """What all of them share; each says what its sources cost."""

    domain = "real"
    _counted = ("W", 0)

    def source_energy(self, params: Params, u: Array) -> Array:
        """What sources u cost, (n,), float64."""
        raise NotImplementedError

    def source_grad(self, params: Params, u: Array) -> Array:
        """ψ(u), the gradient of `source_energy`, the shape of u."""
        raise NotImplementedError

    def source_slopes(self, params: Params, u: Array) -> Slopes:
        """First to third derivatives of what each source costs, where they do not meet."""
        raise NotImplementedError

    def strength_grads(self, params: Params, along: Array, bent: Array) -> Params:
        """Gradients in factors of what each source costs, where the sum that is followed changes by
        (along - bent)/a as a does; nothing by default."""
        return {}

    def offset(self, params: Params) -> Any:
        """What of F does not depend on x."""
        raise NotImplementedError

    def other_grads(self, params: Params, u: Array, weights: Array, of_w: Array) -> Params:
        """Further gradients by name; ∂F/∂W may be finished here."""
        raise NotImplementedError

    # ------------------------------------------------------------ verbs

    def forward(self, params: Params, x: Array, beta: Any = 1.0, base: Any = None) -> SourcePass:
        """One product, and all that follows from it."""
        super().forward(params, x, beta, base)  # refuses other temperatures
        return SourcePass(self, params, x)

    def free_energy(self, params: Params, x: Array) -> Array:
        """F(x), shape (n,), float64."""
        return SourcePass(self, params, x).energy()

    def free_energy_grad(self, params: Params, x: Array, weights: Array) -> Params:
        """Σ_i w_i ∂F(x_i)/∂θ by name."""
        return SourcePass(self, params, x).grad(weights)

    def input_grad(self, params: Params, x: Array) -> Array:
        """∂F/∂x = W'ψ(W(x - m)), shape (n, n_features)."""
        return SourcePass(self, params, x).input_grad()

    def laplacian(self, params: Params, x: Array) -> Array:
        """ΔF = Σ_k φ_k''(u_k) |w_k|², shape (n,), float64."""
        W, bent = params["W"], self.source_slopes(params, self.sources(params, x)).second
        return bent.astype(np.float64) @ (W * W).sum(axis=1).astype(np.float64)

    def score_matching(self, params: Params, passed: Any, weights: Array) -> tuple[Array, Params]:
        """½|∂F/∂x|² - ΔF of each row, and the gradient of their weighted sum."""
        slopes, W = self.source_slopes(params, passed.u), params["W"]
        found = matched(passed.x - params["m"], passed.input_grad(), W.T, slopes, weights)
        along = weights @ (slopes.first * found.along)
        bent = (weights @ slopes.second) * found.norms
        return found.values, self._of_filters(W, found) | self.strength_grads(params, along, bent)

    def squared_curvature(
        self, params: Params, passed: Any, weights: Array
    ) -> tuple[Array, Params]:
        """Σ_i (∂²F/∂x_i²)² of each row, and the gradient of their weighted sum."""
        slopes, W = self.source_slopes(params, passed.u), params["W"]
        found = curved(passed.x - params["m"], 0 * params["m"], W.T, slopes, weights)
        bent = (slopes.second * found.seen).sum(axis=0)
        return found.values, self._of_filters(W, found) | self.strength_grads(params, bent, 0)

    def _of_filters(self, W: Array, found: Matched | Curved) -> Params:
        of_w = namespace(W).ascontiguousarray(found.of_filters.T)
        return {"W": of_w, "m": -(found.of_fields.sum(axis=0) @ W)}

    def sources(self, params: Params, x: Array) -> Array:
        """u = W(x - m), shape (n, len(W))."""
        return (x - params["m"]) @ params["W"].T

    def encode(self, params: Params, x: Array) -> Array:
        """Sources u = W(x - m), shape (n, n_components)."""
        return self.sources(params, x)

    def mixing(self, params: Params) -> Array:
        """What each source adds to a row: the (pseudo-)inverse of W, shape (n_features, len(W))."""
        raise NotImplementedError

    def decode(self, params: Params, h: Array) -> Array:
        """m + the mixture of the sources ``h``."""
        return h @ self.mixing(params).T + params["m"]

    def start_points(self, params: Params, n: int, rng: Any) -> Array:
        """Where chains begin: mixtures of normal sources."""
        h = rng.normal((n, len(params["W"])), params["W"].dtype)
        return self.decode(params, h)

    def event_shape(self, params: Params) -> tuple[int, ...]:
        """Shape of one row."""
        return (params["W"].shape[1],)

    def precondition(self, params: Params, grads: Params) -> None:
        """∇ → the natural direction, in place: ∇W M and M⁻¹∇m with M = W'W d/k (d features).

        A batch with a row far out may ask for a step of many times W itself, from which there is
        no return: a step of W is at most the size of W, and one of m the spread of a source.
        """
        xp, W = namespace(params["W"]), params["W"]
        share = W.dtype.type(W.shape[1] / len(W))
        relative = (grads["W"] @ W.T) * share
        step, length = self._natural(W, grads["m"] / share)
        root = W.dtype.type(math.sqrt(len(W)))
        grads["W"][...] = (relative @ W) * xp.minimum(1, root / _size(relative))
        grads["m"][...] = step * xp.minimum(1, root / length)

    @staticmethod
    def _natural(W: Array, g: Array) -> tuple[Array, Array]:
        """s = (W'W)⁻¹g and √(g's), the length of the least v with W'v = g.

        In float64: the condition of W'W is the square of that of W. It takes half as long as a
        QR factor of W.
        """
        wide, g = W.astype(np.float64), g.astype(np.float64)
        try:
            step = namespace(W).linalg.solve(wide.T @ wide, g)
        except np.linalg.LinAlgError:  # learning went astray: what is not finite ends it
            return g * math.nan, g.sum() * math.nan
        square = g @ step  # below 0 where rounding is all that is left
        return step, namespace(W).sqrt(namespace(W).where(square < 0, math.nan, square)) + 1e-30

    def check_rows(self, n: int, event_shape: tuple[int, ...]) -> None:
        d = math.prod(event_shape)
        if n <= d:
            raise ValueError(
                f"{type(self).__name__} needs more rows than features to whiten them; got "
                f"n_samples={n}, n_features={d}. Reduce the features first (PCA)"
            )

    # ------------------------------------------------------------ fitted attributes

    @property
    def components_(self) -> Any:
        self._need_fit("components_")
        return self._fitted(self._params["W"])

    @property
    def mean_(self) -> Any:
        self._need_fit("mean_")
        return self._fitted(self._params["m"])

    @property
    def mixing_(self) -> Any:
        self._need_fit("mixing_")
        return self._fitted(self.mixing(self._params)[:, : self._n_features_out])


def whitening(x: Array) -> tuple[Array, Array]:
    """Mean of the rows, and V that makes V(x - m) white; float64.

    Raises
    ------
    ValueError
        If the rows do not span all features: along the rest a likelihood has no bound.
    """
    xp, wide = namespace(x), x.astype(np.float64)
    m = wide.mean(axis=0)
    wide -= m
    spread = (wide * wide).mean(axis=0)
    # By feature first, so that their units do not decide what is flat.
    varies = spread > _CONSTANT * m * m
    scale = xp.where(varies, xp.sqrt(spread), 1)
    wide *= varies / scale
    values, E = xp.linalg.eigh(wide.T @ wide / len(x))
    found = to_host(values)
    rank = int((found > max(_FLAT * found[-1], 0.0)).sum())
    if rank < len(found):
        raise ValueError(
            f"the rows (n_samples={len(x)}) vary along {rank} of {len(found)} directions, and "
            "every one is needed; remove constant features, or reduce them first (PCA)"
        )
    return m, E.T / xp.sqrt(values)[:, None] / scale


def log_cosh(u: Array) -> Array:
    """log cosh u, which never overflows."""
    xp = namespace(u)
    size = abs(u)
    return size + xp.log1p(xp.exp(-2 * size)) - u.dtype.type(math.log(2))


def _size(a: Array) -> Array:
    """Euclidean norm, kept off 0."""
    return norm(a) + a.dtype.type(1e-30)
