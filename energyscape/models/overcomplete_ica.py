"""More filters than features.

OvercompleteICA (Teh, Welling, Osindero, Hinton, 2003)
    F(x) = Σ_k a_k log cosh(w_k'(x - m))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.kernels import matmul
from energyscape.models.filter_energy import Slopes
from energyscape.models.ica import decorrelated
from energyscape.models.linear_sources import LinearSources, log_cosh, whitening
from energyscape.registry import register
from energyscape.samplers import HMC
from energyscape.trainers import PCD
from energyscape.verbs import Param, Params


@register
class OvercompleteICA(LinearSources):
    """More filters than features: a product of experts that each see one projection.

    Sources are no longer independent, and log Z is not known: chains train it. Tails are
    exponential.

    Parameters
    ----------
    n_components : int, default 256
        Filters, at least as many as features.
    trainer : Trainer, optional
        Default: ``PCD(learning_rate=0.02)``, whose chains HMC moves.
    random_state, device, verbose
        As for `RBM`.

    Attributes
    ----------
    components_ : array, shape (n_components, n_features)
        Filters W.
    strengths_ : array, shape (n_components,)
        a.
    mixing_, mean_
        As for `ICA`; ``mixing_`` is the pseudo-inverse, which decodes.
    params_ : dict
        ``W``, ``m``, ``log_a``.
    history_, n_iter_, n_features_in_, seed_, trainer_
        As for `RBM`.

    References
    ----------
    Teh, Y. W., Welling, M., Osindero, S., Hinton, G. E. (2003). Energy-based models for sparse
    overcomplete representations.
    """

    def __init__(
        self,
        n_components: int = 256,
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
        """Persistent chains, moved by HMC."""
        return PCD(learning_rate=0.02)

    def default_sampler(self) -> Any:
        """HMC."""
        return HMC()

    def check_rows(self, n: int, event_shape: tuple[int, ...]) -> None:
        super().check_rows(n, event_shape)
        d = math.prod(event_shape)
        if self.n_components < d:
            raise ValueError(
                f"OvercompleteICA needs at least as many components as features, got n_components="
                f"{self.n_components} for {d}: the energy would be flat along the rest"
            )

    # ------------------------------------------------------------ verbs

    def init_params(self, x: Array, rng: Any) -> Params:
        """Random directions of white rows that cover all of them alike (a tight frame, W'W ∝ the
        inverse covariance), as strong as lets exp(-F) spread as the rows do.

        E[x'∂F/∂x] = d holds for every density (by parts), which gives the strength.
        """
        xp, (m, V) = namespace(x), whitening(x)
        k, d = self.n_components, x.shape[1]
        B = decorrelated(rng.normal((d, k), np.float64)).T * math.sqrt(k / d)
        y = (x.astype(np.float64) - m) @ (B @ V).T
        a = d / (y * xp.tanh(y)).mean(axis=0).sum()
        log_a = xp.zeros(k) + xp.log(a)
        return {k: v.astype(x.dtype) for k, v in {"W": B @ V, "m": m, "log_a": log_a}.items()}

    def param_specs(self) -> dict[str, Param]:
        return {"W": Param(), "m": Param(), "log_a": Param()}

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        k = self.n_components
        return {"W": (k, n_features), "m": (n_features,), "log_a": (k,)}

    def mixing(self, params: Params) -> Array:
        """The pseudo-inverse: of the rows that sources may stand for, the nearest."""
        W = params["W"]
        try:
            return namespace(W).linalg.pinv(W)
        except np.linalg.LinAlgError:  # learning went astray: what is not finite ends it
            return namespace(W).full_like(W.T, math.nan)

    def source_energy(self, params: Params, u: Array) -> Array:
        return log_cosh(u).astype(np.float64) @ _strengths(params).astype(np.float64)

    def source_grad(self, params: Params, u: Array) -> Array:
        return namespace(u).tanh(u) * _strengths(params)

    def input_grad_function(self, params: Params) -> Callable[[Array], Array]:
        """x → ∂F/∂x = (aW)' tanh(W(x - m)) into a buffer of its own: two products, two passes."""
        xp, W, m = namespace(params["W"]), params["W"], params["m"]
        # A product with a transposed matrix takes a sixth longer.
        up, down = xp.ascontiguousarray(W.T), W * _strengths(params)[:, None]
        kept: dict[int, tuple[Array, Array]] = {}

        def gradient(x: Array) -> Array:
            if len(x) not in kept:
                kept.clear()
                kept[len(x)] = xp.empty((len(x), len(W)), x.dtype), xp.empty_like(x)
            u, grad = kept[len(x)]
            xp.subtract(x, m, out=grad)
            matmul(grad, up, out=u)
            xp.tanh(u, out=u)
            return matmul(u, down, out=grad)

        return gradient

    def source_slopes(self, params: Params, u: Array) -> Slopes:
        a, t = _strengths(params), namespace(u).tanh(u)
        bent = a * (1 - t * t)
        return Slopes(a * t, bent, -2 * t * bent)

    def strength_grads(self, params: Params, along: Array, bent: Array) -> Params:
        return {"log_a": along - bent}

    def offset(self, params: Params) -> Any:
        return 0.0

    def other_grads(self, params: Params, u: Array, weights: Array, of_w: Array) -> Params:
        return {"log_a": (weights @ log_cosh(u)) * _strengths(params)}

    @property
    def strengths_(self) -> Any:
        self._need_fit("strengths_")
        return self._fitted(_strengths(self._params))


def _strengths(params: Params) -> Array:
    return namespace(params["log_a"]).exp(params["log_a"])
