"""x given the hidden units of a gated Markov random field: a Gaussian, by Cholesky factors.

    u | h, g ~ N(Λ⁻¹(b + Wg), Λ⁻¹),  Λ = I/σ² + SC diag(Ph) C'S

References
----------
Ranzato, M., Krizhevsky, A., Hinton, G. E. (2010). Factored 3-way restricted Boltzmann machines for
modeling natural images, equation 6.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.metaestimators import available_if

from energyscape.backend import Array, namespace
from energyscape.verbs import Params, as_column

_CONDITIONAL_BYTES = 1 << 26  # of precision matrices at once


def is_gaussian(model: Any) -> bool:
    """Whether x given the hidden units is a Gaussian."""
    return not model.normalize


class ConditionalMixin:
    """Draws and means of x given h, for `GatedMRF`."""

    @available_if(is_gaussian)
    def sample_visible(
        self: Any, params: Params, h: Array, rng: Any, beta: Any = 1.0, base: Params | None = None
    ) -> Array:
        """x ~ p_β(x|h, g), shape (n, n_features), by a Cholesky factor of every row's precision."""
        noise = rng.normal((len(h), len(params["C"])), h.dtype)
        return self._given(params, h, noise, beta, base)

    @available_if(is_gaussian)
    def sample_visible_free(
        self: Any,
        params: Params,
        h: Array,
        rng: Any,
        x: Array,
        free: Array,
        beta: Any = 1.0,
        base: Params | None = None,
    ) -> Array:
        """x ~ p_β(x|h, g, x at the coordinates that are not ``free``), shape (n, n_features)."""
        noise = rng.normal(x.shape, h.dtype)
        return self._given(params, h, noise, beta, base, (x, free))

    @available_if(is_gaussian)
    def decode(self: Any, params: Params, h: Array) -> Array:
        """Mean of x given activities as `encode` gives them, m + sΛ⁻¹(b + Wg)."""
        units = self.n_gates
        levels = self.units.from_activity(params, h[:, :units])
        return self._given(params, namespace(h).concatenate([levels, h[:, units:]], axis=1))

    def _given(
        self: Any,
        params: Params,
        h: Array,
        noise: Array | None = None,
        beta: Any = 1.0,
        base: Params | None = None,
        held: tuple[Array, Array] | None = None,
    ) -> Array:
        """Mean of x given h, or with noise a draw; given what is not free of some x, too."""
        xp, d = namespace(h), len(params["C"])
        x = xp.empty((len(h), d), h.dtype)
        size = max(1, _CONDITIONAL_BYTES // (8 * d * d))
        for lo in range(0, len(h), size):
            rows = slice(lo, lo + size)
            at = beta if np.ndim(beta) == 0 else beta[rows]
            precision, pull = self.conditional(params, h[rows], at, base)
            if held is not None:
                known, free = held[0][rows], held[1] if held[1].ndim == 1 else held[1][rows]
                u = (known - params["mean_v"]) / params["deviation"]
                precision, pull = _freed(precision, pull, u.astype(np.float64), free)
            if noise is None:
                u = _solve(precision, pull, xp)
            else:  # Λ = LL': u = L'⁻¹(L⁻¹ pull + ξ)
                root = xp.linalg.cholesky(precision)
                u = _solve(root, pull, xp)
                u += noise[rows].astype(np.float64)
                u = _solve(root.transpose(0, 2, 1), u, xp)
            x[rows] = u * params["deviation"] + params["mean_v"]
        return x if held is None else xp.where(held[1], x, held[0])

    def conditional(
        self: Any, params: Params, h: Array, beta: Any = 1.0, base: Params | None = None
    ) -> tuple[Array, Array]:
        """Precision Λ, shape (n, d, d), and Λ times the mean, (n, d), of u given hidden units;
        float64."""
        xp, n_units = namespace(h), self.n_gates
        wide = {key: value.astype(np.float64) for key, value in params.items()}
        h, C = h.astype(np.float64), self.filters(wide)
        level = self.units.coupling(h[:, :n_units], beta)
        if "P" in wide:
            level = level @ wide["P"].T
        # A matrix with its own transpose: NumPy makes half of the product.
        root = C * xp.sqrt(level)[:, None, :]
        precision = root @ root.transpose(0, 2, 1)
        pull = xp.zeros((len(h), len(C)))
        if self.finite:
            own = as_column(beta, h)
            width = own * self.precision(wide)
            precision += xp.eye(len(C)) * (width[..., None] if width.ndim > 1 else width)
            mean = wide["b"]
            if "W" in wide:
                mean = mean + h[:, n_units:] @ wide["W"].T
            pull += own * mean
        if base is not None:
            s = wide["deviation"]
            inverse = xp.exp(-base["log_var"].astype(np.float64)) * s * s
            away = (base["b"].astype(np.float64) - wide["mean_v"]) / s
            rest = as_column(1.0 - beta, h) * inverse
            precision += rest[..., None] * xp.eye(len(C))
            pull += rest * away
        return precision, pull


def _solve(A: Array, b: Array, xp: Any) -> Array:
    return xp.linalg.solve(A, b[..., None])[..., 0]


def _freed(precision: Array, pull: Array, u: Array, free: Array) -> tuple[Array, Array]:
    """Λ and Λ times the mean of the free coordinates given the others at ``u``, which become
    independent of them: N(0, 1)."""
    mask = free.astype(u.dtype) + namespace(u).zeros_like(u)
    held = u * (1 - mask)
    pull = (pull - (precision @ held[..., None])[..., 0]) * mask
    precision = precision * (mask[:, :, None] * mask[:, None, :])
    precision += (1 - mask)[:, :, None] * namespace(u).eye(u.shape[1])
    return precision, pull
