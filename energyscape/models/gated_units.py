"""Hidden units that gate: each weighs a pooled energy z >= 0 of filter outputs.

    gamma units   E(z, h) = h (1 + z) + (1 - γ) log h + log Γ(γ),  h > 0   γ = least + e^a
                  F(z)    = γ log(1 + z)
                  p(h|z)  = Gamma(γ, rate 1 + z)                           (Osindero et al., 2006)
    binary units  E(z, h) = h (z - d),  h in {0, 1}
                  F(z)    = -softplus(d - z)
                  p(h = 1|z) = sigmoid(d - z)                  (Ranzato, Krizhevsky, Hinton, 2010)

γ > ½ keeps a product of as many experts as features normalisable without a Gaussian in it; with one
any γ > 0 will do, which many filters need: 144 on 36 features of patches, all held above ½, pull so
hard that they stay near the Gaussian. At an inverse temperature β gamma units have F_β = βF, which
is a draw from Gamma(βγ, 1 + z), so that it reaches down to β = 0; binary units temper their joint
energy, as those of an RBM do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import gammaln

from energyscape.backend import Array, is_gpu_array, namespace, to_host
from energyscape.kernels import log1p, log_sum, sigmoid, slope, softplus_sum
from energyscape.models.filter_energy import Slopes
from energyscape.verbs import Param, Params, as_column, is_one

_TINY = 1e-300
_HALVINGS = 20


class GammaUnits:
    """Inverse variances: Student's t where a unit sees one filter.

    Parameters
    ----------
    least : float
        Bound that γ stays above.
    """

    name = "a"
    latents = "nonneg"
    binary = False

    def __init__(self, least: float) -> None:
        self.least = least

    def start(self, z: Array, wanted: float) -> Array:
        """log(γ - least) for the common γ in [least + 0.02, 2] at which the mean of Σ_k 2z ∂F/∂z
        over rows is nearest to ``wanted``, float64."""
        xp = namespace(z)
        reach = float((2 * z / (1 + z)).sum(axis=1).mean())
        gamma = min(max(wanted / max(reach, _TINY), self.least + 0.02), 2.0)
        return xp.full(z.shape[1], np.log(gamma - self.least))

    def spec(self) -> Param:
        return Param()

    def precondition(self, params: Params, grads: Params) -> None:
        """Steps of γ where it is large, which those of a would multiply; in place."""
        xp = namespace(params["a"])
        grads["a"] /= xp.maximum(xp.exp(2 * params["a"]), 1)

    def shapes(self, params: Params) -> Array:
        """γ, shape (units,)."""
        return self.least + namespace(params["a"]).exp(params["a"])

    def energy(self, params: Params, z: Array, beta: Any) -> Array:
        """F_β(z) of every row, (n,), float64."""
        total = log_sum(z, self.shapes(params))
        return total if is_one(beta) else beta * total

    def slope(self, params: Params, z: Array, beta: Any) -> Array:
        """∂F_β/∂z, which is E[h|z], shape (n, units)."""
        if is_gpu_array(z) and is_one(beta):
            return slope(z, self.shapes(params), self.binary)
        level = as_column(beta, z) * self.shapes(params)
        return level / (1 + z)

    def slope_into(self, params: Params, z: Array) -> Array:
        """`slope` at β = 1, written over ``z``."""
        z += z.dtype.type(1)
        return namespace(z).divide(self.shapes(params), z, out=z)

    def level(self, params: Params) -> Array:
        """What `gate` leaves out."""
        return self.shapes(params)

    def offset(self, params: Params) -> Array:
        """What tells `kernels.slope` one unit from another."""
        return self.shapes(params)

    def gate(self, params: Params, z: Array, r: Array) -> None:
        """r times `slope` at β = 1 over `level`, in place; ``z`` is used up."""
        z += z.dtype.type(1)
        r /= z

    def activity(self, params: Params, z: Array) -> Array:
        """E[h|z]/γ = 1/(1 + z), in (0, 1]."""
        return 1 / (1 + z)

    def from_activity(self, params: Params, q: Array) -> Array:
        """h whose `activity` is ``q``."""
        return q * self.shapes(params).reshape(-1)

    def sample_at(self, params: Params, q: Array, rng: Any) -> Array:
        """h ~ p(h|z) at the z whose `activity` is ``q``: Gamma(γ, rate 1/q)."""
        shapes = namespace(q).broadcast_to(self.shapes(params).reshape(-1), q.shape)
        return q * rng.gamma(shapes)

    def sample(self, params: Params, z: Array, rng: Any, beta: Any) -> Array:
        """h ~ p_β(h|z)."""
        shapes = as_column(beta, z) * self.shapes(params)
        return rng.gamma(namespace(z).broadcast_to(shapes, z.shape)) / (1 + z)

    def coupling(self, h: Array, beta: Any) -> Array:
        """What multiplies z in E_β."""
        return h

    def grad(self, params: Params, z: Array, weights: Array) -> Params:
        """Σ_i w_i ∂F(z_i)/∂θ by name."""
        return {"a": (weights @ log1p(z)) * namespace(z).exp(params["a"])}

    def bend(self, params: Params, z: Array) -> Array:
        """∂²F/∂z², shape (n, units)."""
        return -self.shapes(params) / (1 + z) ** 2

    def slopes(self, params: Params, r: Array, z: Array) -> Slopes:
        """First to third derivatives of F(r²/2) in r."""
        level, t = self.shapes(params), 1 / (1 + z)
        level = level * t
        bent = level * (1 - z) * t
        return Slopes(level * r, bent, level * r * (z - 3) * t * t)

    def match_grads(
        self, params: Params, r: Array, z: Array, first: Array, second: Array
    ) -> Params:
        """Gradients of Σ first φ' + Σ second φ'' in the unit's own parameter."""
        slopes = self.slopes(params, r, z)
        total = (slopes.first * first + slopes.second * second).sum(axis=0)
        return {"a": total * namespace(z).exp(params["a"]) / self.shapes(params)}

    def own_energy(self, params: Params, h: Array) -> Array:
        """E(0, h) of every row, (n,), float64."""
        xp, h = namespace(h), h.astype(np.float64)
        shapes = self.shapes(params).astype(np.float64)
        constant = float(gammaln(to_host(shapes)).sum())
        return h.sum(axis=1) + xp.log(h) @ (1 - shapes) + constant

    def base_log_partition(self, units: int) -> float:
        """log ∫ exp(-E_0) dh at β = 0."""
        return 0.0


class BinaryUnits:
    """Constraints that hold (on) or are broken (off)."""

    name = "d"
    latents = "binary"
    binary = True

    def start(self, z: Array, wanted: float) -> Array:
        """The common d in [-3, 3] at which the mean of Σ_k 2z ∂F/∂z over rows, which grows with
        d, is nearest to ``wanted``; float64."""
        xp, low, high = namespace(z), -3.0, 3.0
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            pull = float((2 * z * sigmoid(middle - z)).sum(axis=1).mean())
            low, high = (middle, high) if pull < wanted else (low, middle)
        return xp.full(z.shape[1], high)

    def spec(self) -> Param:
        return Param(rate=0.005)

    def precondition(self, params: Params, grads: Params) -> None:
        """Steps as they are."""

    def energy(self, params: Params, z: Array, beta: Any) -> Array:
        """F_β(z) of every row, (n,), float64."""
        field = self._field(params, z)
        return -softplus_sum(field if is_one(beta) else field * as_column(beta, field))

    def slope(self, params: Params, z: Array, beta: Any) -> Array:
        """∂F_β/∂z, shape (n, units)."""
        if is_gpu_array(z) and is_one(beta):
            return slope(z, params["d"], self.binary)
        field = self._field(params, z)
        if is_one(beta):
            return sigmoid(field, out=field)
        beta = as_column(beta, field)
        field *= beta
        return sigmoid(field, out=field) * beta

    def slope_into(self, params: Params, z: Array) -> Array:
        """`slope` at β = 1, written over ``z``."""
        return sigmoid(namespace(z).subtract(params["d"], z, out=z), out=z)

    def level(self, params: Params) -> Array:
        """What `gate` leaves out."""
        return namespace(params["d"]).ones_like(params["d"])

    def offset(self, params: Params) -> Array:
        """What tells `kernels.slope` one unit from another."""
        return params["d"]

    def gate(self, params: Params, z: Array, r: Array) -> None:
        """r times `slope` at β = 1, in place; ``z`` is used up."""
        r *= self.slope_into(params, z)

    def activity(self, params: Params, z: Array) -> Array:
        """p(h = 1|z)."""
        return self.slope(params, z, 1.0)

    def from_activity(self, params: Params, q: Array) -> Array:
        """h whose `activity` is ``q``."""
        return q

    def sample_at(self, params: Params, q: Array, rng: Any) -> Array:
        """h ~ p(h|z) at the z whose `activity` is ``q``."""
        return rng.bernoulli(q)

    def sample(self, params: Params, z: Array, rng: Any, beta: Any) -> Array:
        """h ~ p_β(h|z)."""
        field = self._field(params, z)
        if not is_one(beta):
            field *= as_column(beta, field)
        return rng.bernoulli_logit(field, out=field)

    def coupling(self, h: Array, beta: Any) -> Array:
        """What multiplies z in E_β."""
        return h if is_one(beta) else h * as_column(beta, h)

    def grad(self, params: Params, z: Array, weights: Array) -> Params:
        """Σ_i w_i ∂F(z_i)/∂θ by name."""
        return {"d": -(weights @ self.slope(params, z, 1.0))}

    def bend(self, params: Params, z: Array) -> Array:
        """∂²F/∂z², shape (n, units)."""
        p = self.slope(params, z, 1.0)
        return -p * (1 - p)

    def slopes(self, params: Params, r: Array, z: Array) -> Slopes:
        """First to third derivatives of F(r²/2) in r."""
        p = self.slope(params, z, 1.0)
        pq = p * (1 - p)
        return Slopes(p * r, p - 2 * pq * z, pq * r * (2 * z * (1 - 2 * p) - 3))

    def match_grads(
        self, params: Params, r: Array, z: Array, first: Array, second: Array
    ) -> Params:
        """Gradients of Σ first φ' + Σ second φ'' in the unit's own parameter."""
        p = self.slope(params, z, 1.0)
        pq = p * (1 - p)
        of_second = pq * (1 - 2 * z * (1 - 2 * p))
        return {"d": (pq * r * first + of_second * second).sum(axis=0)}

    def own_energy(self, params: Params, h: Array) -> Array:
        """E(0, h) of every row, (n,), float64."""
        return -(h.astype(np.float64) @ params["d"].astype(np.float64))

    def base_log_partition(self, units: int) -> float:
        """log Σ_h exp(-E_0) at β = 0."""
        return units * float(np.log(2))

    def _field(self, params: Params, z: Array) -> Array:
        return params["d"] - z
