"""Restricted Boltzmann machines over binary and over real visible units.

RBM (Smolensky, 1986; Hinton, 2002)
    E(x, h) = -b'x - c'h - x'Wh
    F(x)    = -b'x - Σ_j softplus(c_j + (x'W)_j)
GaussianRBM (Welling, Rosen-Zvi, Hinton, 2005; in the form of Cho, Ilin, Raiko, 2011)
    E(x, h) = Σ_i (x_i - b_i)²/2σ_i² - c'h - Σ_i x_i/σ_i² (Wh)_i
    F(x)    = Σ_i (x_i - b_i)²/2σ_i² - Σ_j softplus(c_j + Σ_i x_i W_ij/σ_i²)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from energyscape.backend import Array, namespace, to_host
from energyscape.kernels import sigmoid, softplus_sum
from energyscape.models.bipartite import BipartiteModel, binary_states
from energyscape.models.thermometer import thermometer_code
from energyscape.registry import register
from energyscape.sources import rows_per_block
from energyscape.trainers import PCD
from energyscape.verbs import Param, Params, as_column

_LOG_2PI = math.log(2 * math.pi)
# Share of the draws in which a unit of a new GaussianRBM is on.
_RARE = 0.01


@register
class RBM(BipartiteModel):
    """Restricted Boltzmann machine with binary visible and hidden units.

    Rows in [0, 1] are read as probabilities or as bits; for grey images give the trainer
    ``batch_transform=Binarize()``, which draws fresh bits each epoch.

    Parameters
    ----------
    n_components : int, default 256
        Hidden units.
    centered : bool, default True
        Train on centred units: steadier, and as good on data with bits flipped. The attributes
        show the plain parameters either way.
    trainer : Trainer, optional
        Default: ``PCD()``.
    random_state : int, RandomState, Generator or None
    device : {"auto", "cpu", "cuda", "cuda:i"}, default "auto"
        Where to compute; "auto" follows the data.
    verbose : int, default 0
        Progress on stderr where not 0.

    Attributes
    ----------
    components_ : array, shape (n_components, n_features)
        Weights W'.
    intercept_hidden_, intercept_visible_ : arrays, shape (n_components,) and (n_features,)
        Biases c and b.
    params_ : dict
        ``W`` (n_features, n_components), ``b``, ``c`` and the offsets ``mean_v``, ``mean_h``.
    log_partition_, log_partition_interval_, log_partition_ess_ : float, (float, float), float
        log Z, exact up to 20 units on the smaller side, and how far to trust it.
    history_ : dict of lists
    n_iter_, n_features_in_, seed_ : int
    trainer_ : Trainer

    References
    ----------
    Hinton, G. E. (2002). Training products of experts by minimizing contrastive divergence.
    Melchior, J., Fischer, A., Wiskott, L. (2016). How to center deep Boltzmann machines.

    Examples
    --------
    >>> from energyscape.data import load_digits
    >>> from energyscape.models import RBM
    >>> X, _ = load_digits()
    >>> RBM(n_components=16, random_state=0).fit_transform(X).shape
    (1797, 16)
    """

    domain = "binary"

    def __init__(
        self,
        n_components: int = 256,
        *,
        centered: bool = True,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.centered = centered
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    # ------------------------------------------------------------ verbs

    def init_params(self, x: Array, rng: Any) -> Params:
        """b at the data's log-odds, small W, c so that hidden units are on half of the time."""
        xp, n = namespace(x), len(x)
        mean = x.mean(axis=0, dtype=np.float64).astype(x.dtype)
        p = xp.clip((mean * n + 0.5) / (n + 1), 0.5 / (n + 1), 1 - 0.5 / (n + 1))
        spread = xp.maximum(p * (1 - p), 0).sum()
        W = rng.normal((x.shape[1], self.n_components), x.dtype)
        W *= (0.1 / xp.sqrt(spread)).astype(x.dtype)
        return {
            "W": W,
            "b": xp.log(p / (1 - p)).astype(x.dtype),
            "c": -(mean @ W),
            "mean_v": mean,
            "mean_h": xp.full(self.n_components, 0.5, x.dtype),
        }

    def param_specs(self) -> dict[str, Param]:
        return {
            "W": Param(decay=True),
            "b": Param(),
            "c": Param(),
            "mean_v": Param(trainable=False),
            "mean_h": Param(trainable=False),
        }

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        return _shapes(n_features, self.n_components)

    def scaled(self, params: Params, x: Array) -> Array:
        return x

    def visible_energies(
        self, params: Params, x: Array, base: Params | None
    ) -> tuple[Array, Array | None]:
        wide = x.astype(np.float64)
        own = -(wide @ params["b"].astype(np.float64))
        return own, None if base is None else -(wide @ base["b"].astype(np.float64))

    def grad_from(self, params: Params, x: Array, hidden: Array, weights: Array) -> Params:
        """Σ_i w_i ∂F(x_i)/∂θ = -Σ_i w_i (x_i p_i', x_i, p_i) with p = p(h = 1|x)."""
        h = hidden * -weights[:, None]
        return {"W": x.T @ h, "b": -(weights @ x), "c": h.sum(axis=0)}

    def sample_visible(
        self, params: Params, h: Array, rng: Any, beta: Any = 1.0, base: Params | None = None
    ) -> Array:
        """x ~ p(x|h), shape (n, n_features)."""
        field = self._visible_field(params, h)
        if base is None and np.ndim(beta) == 0 and beta == 1.0:
            return rng.bernoulli_logit(field, out=field)
        field *= as_column(beta, field)
        if base is not None:
            field += as_column(1.0 - beta, field) * base["b"]
        return rng.bernoulli_logit(field, out=field)

    def decode(self, params: Params, h: Array) -> Array:
        """Mean of x given hidden activities, shape (n, n_features)."""
        field = self._visible_field(params, h)
        return sigmoid(field, out=field)

    def _visible_field(self, params: Params, h: Array) -> Array:
        field = h @ params["W"].T
        field += params["b"]
        return field

    def base_measure(self, params: Params) -> Params:
        """Independent units at the rates of the data, kept away from 0 and 1."""
        xp = namespace(params["mean_v"])
        p = xp.clip(params["mean_v"], 1e-3, 1 - 1e-3)
        return {"b": xp.log(p / (1 - p))}

    def base_log_partition(self, params: Params, base: Params) -> float:
        wide = base["b"].astype(np.float64)[None]
        return float(softplus_sum(wide)[0]) + params["W"].shape[1] * math.log(2)

    # ------------------------------------------------------------ exact sums over states

    def enumerable_units(self, params: Params) -> int:
        return min(params["W"].shape)

    def visible_log_partition(self, params: Params, h: Array) -> Array:
        return softplus_sum(self._visible_field(params, h))

    def _log_weight(self, params: Params, states: Array) -> Array:
        if _sums_over_visible(params):
            return -self.free_energy(params, states)
        return super()._log_weight(params, states)

    def sample_exact(self, params: Params, n: int, rng: Any) -> Array:
        if not _sums_over_visible(params):
            return super().sample_exact(params, n, rng)
        states = self._draw_states(self._state_log_weights(params), n, rng)
        return binary_states(states, self.enumerable_units(params), params["W"])

    # ------------------------------------------------------------ fitted

    def pseudo_log_likelihood(self, X: Any) -> Any:
        """Σ_i log p(x_i | all other x) of each row, exact, over all its bits.

        A cheap monitor for runs of one model on one data set. It grows with the number of
        features, sees nothing of Z, and must not choose between models: that is `score_samples`.

        Parameters
        ----------
        X : array, shape (n, n_features)
            Bits; other values are taken at their word, a flip being x → 1 - x.

        Returns
        -------
        array, shape (n,), float64, in nats
        """
        return self._map(X, self._pseudo_log_likelihood)

    def _pseudo_log_likelihood(self, params: Params, x: Array) -> Array:
        xp, W = namespace(x), params["W"]
        out = xp.empty(len(x), np.float64)
        size = rows_per_block(3 * W.size * W.dtype.itemsize)
        for lo in range(0, len(x), size):
            rows = x[lo : lo + size]
            passed = self.forward(params, rows)
            flip = (1 - 2 * rows)[:, :, None]
            flipped = softplus_sum((passed.field[:, None] + flip * W).reshape(-1, W.shape[1]))
            flipped = -flipped.reshape(rows.shape) - flip[:, :, 0] * params["b"]
            gained = flipped + softplus_sum(passed.field)[:, None]
            out[lo : lo + size] = -softplus_sum(-gained)
        return out


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
        return _shapes(n_features, self.n_components) | {
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
        grads = {"W": (x * precision).T @ h, "b": -(weights @ d) * precision, "c": h.sum(axis=0)}
        d *= d
        energy = 0.5 * (weights @ d) * precision
        grads["log_var"] = -energy - (params["W"] * grads["W"]).sum(axis=1)
        return grads

    def input_grad_from(self, params: Params, x: Array, hidden: Array) -> Array:
        """∂F/∂x = (x - b - W p)/σ²."""
        return (x - self.decode(params, hidden)) * namespace(x).exp(-params["log_var"])

    def input_grad(self, params: Params, x: Array) -> Array:
        """∂F/∂x, shape (n, n_features)."""
        return self.forward(params, x).input_grad()

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

    # ------------------------------------------------------------ fitted

    @property
    def variances_(self) -> Any:
        self._need_fit("variances_")
        return self._fitted(namespace(self._params["W"]).exp(self._params["log_var"]))


def _shapes(n_features: int, n_components: int) -> dict[str, tuple[int, ...]]:
    return {
        "W": (n_features, n_components),
        "b": (n_features,),
        "c": (n_components,),
        "mean_v": (n_features,),
        "mean_h": (n_components,),
    }


def _sums_over_visible(params: Params) -> bool:
    return params["W"].shape[0] < params["W"].shape[1]
