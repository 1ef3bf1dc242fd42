"""Restricted Boltzmann machine over real visible units.

GaussianRBM (Welling, Rosen-Zvi, Hinton, 2005; in the form of Cho, Ilin, Raiko, 2011)
    E(x, h) = Σ_i (x_i - b_i)²/2σ_i² - c'h - Σ_i x_i/σ_i² (Wh)_i
    F(x)    = Σ_i (x_i - b_i)²/2σ_i² - Σ_j softplus(c_j + Σ_i x_i W_ij/σ_i²)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from energyscape.backend import Array, namespace, to_host
from energyscape.kernels import matmul, sigmoid
from energyscape.layers import Affine, Identity, Sigmoid
from energyscape.models.bipartite import BipartiteModel, bipartite_shapes
from energyscape.models.filter_energy import Curved, Matched, Slopes, curved, matched
from energyscape.models.thermometer import thermometer_code
from energyscape.registry import register
from energyscape.trainers import PCD
from energyscape.verbs import Param, Params, as_column

_LOG_2PI = math.log(2 * math.pi)
# Share of the draws in which a unit of a new GaussianRBM is on.
_RARE = 0.01


@register
class GaussianRBM(BipartiteModel):
    """Restricted Boltzmann machine with real visible and binary hidden units.

    A mixture of 2^n_components Gaussians with shared diagonal covariance. Scale and offset of the
    data do not matter: all defaults are relative to its means and variances. (Weight decay alone is
    not: l1 and l2 act on W in the units of the data.)

    Parameters
    ----------
    n_components : int, default 256
        Hidden units.
    variance : "learned" or float > 0, default "learned"
        σ² of the visible units given the hidden ones: learned for each, or one fixed value
        (1.0 for whitened data).
    min_variance : float in (0, 1], default 0.01
        Lower bound of a learned σ² as a fraction of its feature's variance in the data; the
        upper bound is that variance itself.
    centered : bool, default True
        As for `RBM`.
    trainer, random_state, device, verbose
        As for `RBM`.

    Attributes
    ----------
    components_ : array, shape (n_components, n_features)
        Weights W' in the units of the data: what a hidden unit adds to the mean.
    intercept_hidden_, intercept_visible_ : arrays, shape (n_components,) and (n_features,)
        Biases c and b.
    variances_ : array, shape (n_features,)
        σ².
    params_ : dict
        ``W``, ``b``, ``c``, ``log_var``, and the buffers ``mean_v``, ``mean_h``, ``var_v``.
    log_partition_, log_partition_interval_, log_partition_ess_, history_, n_iter_, \
n_features_in_, seed_, trainer_
        As for `RBM`.

    References
    ----------
    Cho, K., Ilin, A., Raiko, T. (2011). Improved learning of Gaussian-Bernoulli restricted
    Boltzmann machines.
    """

    domain = "real"

    def __init__(
        self,
        n_components: int = 256,
        *,
        variance: str | float = "learned",
        min_variance: float = 0.01,
        centered: bool = True,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.variance = variance
        self.min_variance = min_variance
        self.centered = centered
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    # ------------------------------------------------------------ verbs

    def init_params(self, x: Array, rng: Any) -> Params:
        """The data's Gaussian along its leading axes (`thermometer_code`), rare units besides.

        With a fixed ``variance`` rare units alone: each adds a random direction of length σ to a
        Gaussian around the mean, in one percent of the draws. From much shorter weights, or from
        units that are half on, learning does not get away on whitened data, whose covariance has
        nothing to offer (Melchior, Wang, Wiskott, 2017, start likewise).
        """
        xp = namespace(x)
        mean = x.mean(axis=0, dtype=np.float64)
        spread = ((x - mean) ** 2).mean(axis=0, dtype=np.float64)
        # A feature that is constant in these rows may not be so in others, which a narrow Gaussian
        # would punish by thousands of nats: it gets a hundredth of the mean variance.
        average = float(spread.mean())
        flat = spread <= 1e-12 * mean * mean
        spread = xp.where(flat, 0.01 * average if average > 0 else 1.0, spread)
        W = rng.normal((x.shape[1], self.n_components), x.dtype).astype(np.float64)
        W /= math.sqrt(x.shape[1])
        bias = math.log(_RARE) - 0.5 * (W * W).sum(axis=0)
        if self._fixed:
            var = xp.full_like(spread, self.variance)
            W *= xp.sqrt(var)[:, None]
        else:
            scale = xp.sqrt(spread)
            y = to_host(((x - mean) / scale).astype(x.dtype))
            code = thermometer_code(y, self.n_components, self.min_variance)
            var = code.variance * spread
            W *= xp.sqrt(var)[:, None]
            W[:, : len(code.bias)] = xp.asarray(code.weights) * scale[:, None]
            bias[: len(code.bias)] = xp.asarray(code.bias)
        on = sigmoid(bias)
        params = {
            "W": W,
            "b": mean - W @ on,
            "c": bias - (mean / var) @ W,
            "log_var": xp.log(var),
            "mean_v": mean,
            "mean_h": on,
            "var_v": spread,
        }
        return {name: value.astype(x.dtype) for name, value in params.items()}

    @property
    def _fixed(self) -> bool:
        return not isinstance(self.variance, str)

    def default_trainer(self) -> Any:
        """PCD with many chains at a low rate: real units mix slowly along correlated pixels.

        Averaging keeps the noise of the last updates out of variances (digits, leading axes: 0.80
        to 1.17 of the data's without, 0.93 to 1.05 with).
        """
        return PCD(n_chains=500, learning_rate=0.01, averaging=0.1)

    def check_settings(self) -> None:
        super().check_settings()
        value = math.nan if isinstance(self.variance, str) else self.variance
        if self.variance != "learned" and not 0 < value < math.inf:
            raise ValueError(f"variance must be 'learned' or > 0, got {self.variance!r}")
        if not 0 < self.min_variance <= 1:
            raise ValueError(f"min_variance must be in (0, 1], got {self.min_variance!r}")

    def param_specs(self) -> dict[str, Param]:
        return {
            "W": Param(decay=True),
            "b": Param(),
            "c": Param(),
            "log_var": Param(trainable=not self._fixed),
            "mean_v": Param(trainable=False),
            "mean_h": Param(trainable=False),
            "var_v": Param(trainable=False),
        }

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        return bipartite_shapes(n_features, self.n_components) | {
            "log_var": (n_features,),
            "var_v": (n_features,),
        }

    def scaled(self, params: Params, x: Array) -> Array:
        return x * namespace(x).exp(-params["log_var"])

    def visible_energies(
        self, params: Params, x: Array, base: Params | None
    ) -> tuple[Array, Array | None]:
        def half_square(mean: Array, log_var: Array) -> Array:
            d = x.astype(np.float64) - mean.astype(np.float64)
            d *= d
            return d @ (0.5 * namespace(x).exp(-log_var.astype(np.float64)))

        own = half_square(params["b"], params["log_var"])
        return own, None if base is None else half_square(base["b"], base["log_var"])

    def grad_from(self, params: Params, x: Array, hidden: Array, weights: Array) -> Params:
        """Σ_i w_i ∂F(x_i)/∂θ; that of log σ² comes from the others: the product is shared."""
        xp = namespace(x)
        precision = xp.exp(-params["log_var"])
        h = hidden * -weights[:, None]
        d = x - params["b"]
        grads = {
            "W": matmul((x * precision).T, h),
            "b": -(weights @ d) * precision,
            "c": h.sum(axis=0),
        }
        d *= d
        energy = 0.5 * (weights @ d) * precision
        grads["log_var"] = -energy - (params["W"] * grads["W"]).sum(axis=1)
        return grads

    def input_grad_from(
        self, params: Params, x: Array, hidden: Array, beta: Any, base: Params | None
    ) -> Array:
        """∂F/∂x = (x - b - W p)/σ², times β, and the base's part (1 - β)(x - b₀)/σ₀²."""
        xp = namespace(x)
        grad = self.decode(params, hidden)
        xp.subtract(x, grad, out=grad)
        grad *= xp.exp(-params["log_var"])
        if np.ndim(beta) or beta != 1.0:
            grad *= as_column(beta, grad)
        if base is not None:
            away = (x - base["b"]) * xp.exp(-base["log_var"])
            grad += as_column(1.0 - beta, grad) * away
        return grad

    def input_grad(self, params: Params, x: Array) -> Array:
        """∂F/∂x, shape (n, n_features)."""
        return self.forward(params, x).input_grad()

    def input_grad_function(self, params: Params) -> Callable[[Array], Array]:
        """x → ∂F/∂x into a buffer of its own: two products, and four passes besides.

        With σ(a) = (1 + tanh(a/2))/2 and all factors moved into the weights,
        ∂F/∂x = x/σ² - (b/σ² + B'1) - B' tanh(A'x + c/2), where A = W/2σ² and B' = A.
        """
        xp, precision = namespace(params["W"]), self._precision(params)
        up = params["W"] * (0.5 * precision)[:, None]
        down = xp.ascontiguousarray(up.T)
        level = 0.5 * params["c"]
        rest = params["b"] * precision + down.sum(axis=0)
        kept: dict[int, tuple[Array, Array]] = {}

        def gradient(x: Array) -> Array:
            if len(x) not in kept:
                kept.clear()
                kept[len(x)] = xp.empty((len(x), len(level)), x.dtype), xp.empty_like(x)
            field, grad = kept[len(x)]
            matmul(x, up, out=field)
            field += level
            xp.tanh(field, out=field)
            matmul(field, down, out=grad)
            grad += rest
            own = x * precision
            return xp.subtract(own, grad, out=grad)

        return gradient

    def laplacian(self, params: Params, x: Array) -> Array:
        """ΔF = Σ_i 1/σ_i² - Σ_j p_j (1 - p_j) |W_j/σ²|², shape (n,), float64."""
        precision = self._precision(params)
        A, p = params["W"] * precision[:, None], self.forward(params, x).hidden()
        bent = (p * (1 - p)).astype(np.float64) @ (A * A).sum(axis=0).astype(np.float64)
        return precision.sum(dtype=np.float64) - bent

    def score_matching(self, params: Params, passed: Any, weights: Array) -> tuple[Array, Params]:
        """½|∂F/∂x|² - ΔF of each row, and the gradient of their weighted sum: a tied auto-encoder
        whose units pay for not being saturated (Swersky et al., 2011)."""
        x, precision, g = passed.x, self._precision(params), passed.input_grad()
        A = params["W"] * precision[:, None]
        found = matched(x, g, A, _slopes(passed), weights)
        grads = self._of_filters(params, precision, A, found)
        grads["b"] = -precision * (weights @ g)
        stretched = weights @ (g * (x - params["b"])) - weights.sum()
        grads["log_var"] -= precision * stretched
        return found.values - precision.sum(dtype=np.float64), grads

    def squared_curvature(
        self, params: Params, passed: Any, weights: Array
    ) -> tuple[Array, Params]:
        """Σ_i (∂²F/∂x_i²)² of each row, and the gradient of their weighted sum."""
        precision = self._precision(params)
        A = params["W"] * precision[:, None]
        found = curved(passed.x, precision, A, _slopes(passed), weights)
        grads = self._of_filters(params, precision, A, found)
        grads["b"] = namespace(A).zeros_like(params["b"])
        grads["log_var"] -= precision * found.twice.sum(axis=0)
        return found.values, grads

    def _of_filters(
        self, params: Params, precision: Array, A: Array, found: Matched | Curved
    ) -> Params:
        """Gradients that come by way of A = W/σ² and the fields."""
        return {
            "W": found.of_filters * precision[:, None],
            "c": found.of_fields.sum(axis=0),
            "log_var": -(found.of_filters * A).sum(axis=1),
        }

    def _precision(self, params: Params) -> Array:
        return namespace(params["W"]).exp(-params["log_var"])

    def rescale(self, params: Params, grads: Params, offset: Array | None) -> None:
        """Steps of W and b in units of σ, so that one learning rate fits data on any scale."""
        var = namespace(params["W"]).exp(params["log_var"])
        grads["W"] *= var[:, None]
        grads["b"] *= var
        if offset is not None and not self._fixed:
            # The field at the mean of the data stays where it is while σ² moves.
            grads["log_var"] += offset * (params["W"] @ grads["c"])

    def feasible(self, params: Params) -> Params:
        """A copy with log σ² within its bounds."""
        return params if self._fixed else params | {"log_var": self._bounded(params)}

    def _bounded(self, params: Params) -> Array:
        xp, top = namespace(params["W"]), namespace(params["W"]).log(params["var_v"])
        return xp.clip(params["log_var"], top + math.log(self.min_variance), top)

    def sample_visible(
        self, params: Params, h: Array, rng: Any, beta: Any = 1.0, base: Params | None = None
    ) -> Array:
        """x ~ p(x|h), shape (n, n_features)."""
        xp, mean = namespace(h), self.decode(params, h)
        if base is None and np.ndim(beta) == 0 and beta == 1.0:
            deviation = xp.exp(0.5 * params["log_var"])
        else:
            own = as_column(beta, mean) * xp.exp(-params["log_var"])
            mean *= own
            if base is not None:
                extra = as_column(1.0 - beta, mean) * xp.exp(-base["log_var"])
                mean += extra * base["b"]
                own = own + extra
            mean /= own
            deviation = 1 / xp.sqrt(own)
        noise = rng.normal(mean.shape, mean.dtype)
        noise *= deviation
        noise += mean
        return noise

    def affine_layers(self, params: Params) -> list[Affine]:
        """One layer: p(h = 1|x), and the mean of x given h."""
        W = params["W"]
        up = W * self._precision(params)[:, None]
        return [Affine(up, params["c"], Sigmoid(), W.T, params["b"], Identity())]

    def decode(self, params: Params, h: Array) -> Array:
        """Mean of x given hidden activities, b + Wh, shape (n, n_features)."""
        mean = h @ params["W"].T
        mean += params["b"]
        return mean

    def base_measure(self, params: Params) -> Params:
        """Independent Gaussians with the means and variances of the data."""
        log_var = namespace(params["W"]).log(params["var_v"])
        return {"b": params["mean_v"], "log_var": log_var}

    def base_log_partition(self, params: Params, base: Params) -> float:
        log_var = base["log_var"].astype(np.float64)
        units = params["W"].shape[1]
        return 0.5 * float((_LOG_2PI + log_var).sum()) + units * math.log(2)

    def visible_log_partition(self, params: Params, h: Array) -> Array:
        xp = namespace(h)
        precision = xp.exp(-params["log_var"])
        mean = h @ params["W"].T
        energy = (mean * (0.5 * mean + params["b"])) @ precision
        return energy + 0.5 * (_LOG_2PI + params["log_var"]).sum()

    def state_grad(self, params: Params, h: Array, weights: Array) -> Params:
        precision = self._precision(params)
        mean = h @ params["W"].T
        at_mean = (mean + params["b"]) * precision
        weighted = h * weights[:, None]
        scaled = mean * precision
        grads = {
            "W": at_mean.T @ weighted,
            "b": weights @ scaled,
            "c": weighted.sum(axis=0),
        }
        if not self._fixed:
            bent = 0.5 - scaled * (0.5 * mean + params["b"])
            grads["log_var"] = weights @ bent
        return grads

    # ------------------------------------------------------------ fitted

    @property
    def variances_(self) -> Any:
        self._need_fit("variances_")
        return self._fitted(namespace(self._params["W"]).exp(self._params["log_var"]))


def _slopes(passed: Any) -> Slopes:
    """Of -softplus."""
    p = passed.hidden()
    bent = p * (1 - p)
    return Slopes(-p, -bent, bent * (2 * p - 1))
