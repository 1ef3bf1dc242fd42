"""An RBM whose hidden unit is categorical: one of K values, written as a one-hot row h.

    E(x, h) = -b'x - c'h - x'Wh        for one-hot h, infinite otherwise
    F(x)    = -b'x - log Σ_k exp(c_k + (x'W)_k)
    log Z   = log Σ_k exp(c_k + Σ_i softplus(b_i + W_ik))

It is a mixture of K products of Bernoulli distributions: given h = k the bits are independent,
with log-odds b + W_k. Hence log Z and independent draws are closed forms at every size.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.kernels import sigmoid, softplus_sum
from energyscape.models.base import EnergyModel
from energyscape.registry import register
from energyscape.samplers import Gibbs
from energyscape.trainers import PCD
from energyscape.verbs import Param, Params


@register
class CategoricalRBM(EnergyModel):
    """RBM with binary visible units and one categorical hidden unit of ``n_components`` values.

    Parameters as for `energyscape.models.RBM`, and so are ``components_`` and ``params_``.
    """

    domain = "binary"

    def __init__(
        self,
        n_components: int = 16,
        *,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def default_trainer(self) -> Any:
        return PCD(learning_rate=1.0)

    def default_sampler(self) -> Any:
        return Gibbs()

    def init_params(self, x: Array, rng: Any) -> Params:
        """b at the data's log-odds; each column of W towards a random row of the data."""
        xp, n = namespace(x), len(x)
        mean = x.mean(axis=0)
        p = xp.clip((mean * n + 0.5) / (n + 1), 0.5 / (n + 1), 1 - 0.5 / (n + 1))
        rows = rng.uniform(n).argsort()[xp.arange(self.n_components) % n]
        # Noise, because two components that begin as one stay one.
        W = 0.1 * rng.normal((x.shape[1], self.n_components), x.dtype) + (x[rows] - mean).T
        return {"W": W, "b": xp.log(p / (1 - p)), "c": -(mean @ W)}

    def param_specs(self) -> dict[str, Param]:
        return {"W": Param(decay=True), "b": Param(), "c": Param()}

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        k = self.n_components
        return {"W": (n_features, k), "b": (n_features,), "c": (k,)}

    def event_shape(self, params: Params) -> tuple[int, ...]:
        return params["b"].shape

    def free_energy(self, params: Params, x: Array) -> Array:
        """F(x), shape (n,), float64."""
        x, wide = x.astype(np.float64), {k: v.astype(np.float64) for k, v in params.items()}
        return -(x @ wide["b"]) - log_sum_exp(x @ wide["W"] + wide["c"])

    def free_energy_grad(self, params: Params, x: Array, weights: Array) -> Params:
        """Σ_i w_i ∂F(x_i)/∂θ = -Σ_i w_i (x_i p_i', x_i, p_i) with p_i = p(h|x_i)."""
        p = self.encode(params, x) * -weights[:, None]
        return {"W": x.T @ p, "b": -(weights @ x), "c": p.sum(axis=0)}

    def joint_energy(self, params: Params, x: Array, h: Array) -> Array:
        """E(x, h) row by row, shape (n,), float64: what the laws sum over h."""
        field = x @ params["W"] + params["c"]
        energy = -(x @ params["b"]) - (field * h).sum(axis=1, dtype=np.float64)
        return namespace(x).where(h.sum(axis=1) == 1, energy, np.inf)

    def encode(self, params: Params, x: Array) -> Array:
        """p(h|x), shape (n, n_components)."""
        return softmax(x @ params["W"] + params["c"])

    def decode(self, params: Params, h: Array) -> Array:
        """Mean of x given h, shape (n, n_features)."""
        return sigmoid(h @ params["W"].T + params["b"])

    def sample_hidden(self, params: Params, x: Array, rng: Any, beta: Any = 1.0) -> Array:
        """h ~ p(h|x), one-hot, shape (n, n_components)."""
        return draw_one_hot(self.encode(params, x), rng)

    def sample_visible(
        self, params: Params, h: Array, rng: Any, beta: Any = 1.0, base: Any = None
    ) -> Array:
        """x ~ p(x|h), shape (n, n_features)."""
        return rng.bernoulli_logit(h @ params["W"].T + params["b"])

    def log_weights(self, params: Params) -> Array:
        """log Σ_x exp(-E(x, h)) for every value of h, shape (n_components,), float64."""
        wide = {k: v.astype(np.float64) for k, v in params.items()}
        return wide["c"] + softplus_sum(wide["W"].T + wide["b"])

    def log_partition(self, params: Params) -> float:
        """Exact log Z."""
        return float(log_sum_exp(self.log_weights(params)[None])[0])

    def sample_exact(self, params: Params, n: int, rng: Any) -> Array:
        """``n`` independent draws of x, shape (n, n_features)."""
        p = softmax(self.log_weights(params)[None]).astype(params["W"].dtype)
        h = draw_one_hot(namespace(p).repeat(p, n, axis=0), rng)
        return self.sample_visible(params, h, rng)

    @property
    def components_(self) -> Any:
        """Log-odds that each value of h adds, shape (n_components, n_features)."""
        return self.params_["W"].T


def log_sum_exp(a: Array) -> Array:
    """log Σ_k exp(a_k) of each row, without overflow."""
    top = a.max(axis=1)
    return top + namespace(a).log(namespace(a).exp(a - top[:, None]).sum(axis=1))


def softmax(a: Array) -> Array:
    """exp(a_k) / Σ_k exp(a_k) of each row, without overflow."""
    p = namespace(a).exp(a - a.max(axis=1)[:, None])
    return p / p.sum(axis=1)[:, None]


def draw_one_hot(p: Array, rng: Any) -> Array:
    """A one-hot row with the probabilities of each row of ``p``."""
    upto = p.cumsum(axis=1)
    # Scaled by the last sum, which rounding leaves near 1, so that the index stays below K.
    u = rng.uniform((len(p), 1), p.dtype) * upto[:, -1:]
    index = (upto[:, :-1] <= u).sum(axis=1)
    return (index[:, None] == namespace(p).arange(p.shape[1])).astype(p.dtype)
