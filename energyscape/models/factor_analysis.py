"""Factor analysis: a Gaussian whose covariance is a few factors and each feature's own noise.

FactorAnalysis (Spearman, 1904; Rubin and Thayer, 1982), with C = W W' + Ψ, Ψ diagonal
    F(x) = (x - m)' C⁻¹ (x - m)/2 + log |C|/2 + D/2 log 2π = -log p(x)
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from energyscape.backend import Array, namespace
from energyscape.models.base import EnergyModel
from energyscape.models.moments import (
    leading_axes,
    mean_and_scatter,
    mean_and_spread,
    moment_sums,
    origin,
)
from energyscape.registry import register
from energyscape.samplers import HMC
from energyscape.trainers import ClosedForm
from energyscape.verbs import Param, Params, Pass, check_count

_LOG_2PI = math.log(2 * math.pi)


@register
class FactorAnalysis(EnergyModel):
    """Factor analysis by maximum likelihood.

    F is normalised: ``-energy(X)`` are exact log-likelihoods, and `sample` gives exact draws.

    Parameters
    ----------
    n_components : int, optional
        Factors; default min(8, n_features).
    tol : float, default 1e-8
        Of the default trainer, which goes over the rows once and iterates on their moments until
        the log-likelihood gains at most this many nats a row.
    max_iter : int, default 1000
        Most of those iterations. With ``trainer=EM()`` each iteration is a pass over the rows, and
        these two are not used.
    min_variance : float in (0, 1), default 1e-6
        Lower bound of a noise variance as a fraction of its feature's variance: the likelihood is
        unbounded where one reaches 0 (Heywood, 1931). `fit` warns of features that rest on it.
    trainer, random_state, device, verbose
        As for `RBM`; the default trainer is ``ClosedForm()``.

    Attributes
    ----------
    components_ : array, shape (n_components, n_features)
        Loadings W'.
    noise_variance_, mean_ : array, shape (n_features,)
        Diagonal of Ψ, and m.
    params_ : dict
        ``mean``, ``W``, ``log_psi`` and the buffers ``spread`` (the features' variances) and
        ``offset`` (which sums are taken about).
    history_, n_iter_, n_features_in_, seed_, trainer_
        As for `RBM`.

    References
    ----------
    Rubin, D., Thayer, D. (1982). EM algorithms for ML factor analysis.
    Liu, C., Rubin, D. (1994). The ECME algorithm.
    """

    domain = "real"
    n_components: int | None  # type: ignore[assignment]

    def __init__(
        self,
        n_components: int | None = None,
        *,
        tol: float = 1e-8,
        max_iter: int = 1000,
        min_variance: float = 1e-6,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.tol = tol
        self.max_iter = max_iter
        self.min_variance = min_variance
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def default_trainer(self) -> Any:
        """One pass over the rows, then EM on their moments."""
        return ClosedForm()

    def default_sampler(self) -> Any:
        """HMC, for in-painting."""
        return HMC()

    def check_settings(self) -> None:
        if self.n_components is not None:
            super().check_settings()
        check_count("FactorAnalysis.max_iter", self.max_iter)
        if not self.tol >= 0:
            raise ValueError(f"FactorAnalysis.tol must be >= 0, got {self.tol!r}")
        if not 0 < self.min_variance < 1:
            raise ValueError(
                f"FactorAnalysis.min_variance must be in (0, 1), got {self.min_variance!r}"
            )

    def check_rows(self, n: int, event_shape: tuple[int, ...]) -> None:
        if self._factors(event_shape[0]) > event_shape[0]:
            raise ValueError(
                f"n_components={self.n_components} must be between 1 and n_features="
                f"{event_shape[0]}: more factors than features say nothing"
            )

    def _factors(self, n_features: int) -> int:
        return min(8, n_features) if self.n_components is None else self.n_components

    # ------------------------------------------------------------ parameters

    def init_params(self, x: Array, rng: Any) -> Params:
        """Small random loadings, and all variance in the noise."""
        xp, d = namespace(x), x.shape[1]
        mean, spread = mean_and_spread(x)
        W = 0.1 * rng.normal((d, self._factors(d)), np.float64) * xp.sqrt(spread)[:, None]
        params = {"mean": mean, "W": W, "log_psi": xp.log(spread), "spread": spread}
        params["offset"] = origin(mean, spread)
        return {k: v.astype(x.dtype) for k, v in params.items()}

    def param_specs(self) -> dict[str, Param]:
        return {
            "mean": Param(),
            "W": Param(decay=True),
            "log_psi": Param(),
            "spread": Param(trainable=False),
            "offset": Param(trainable=False),
        }

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        row = (n_features,)
        shapes = {"mean": row, "W": (*row, self._factors(n_features)), "log_psi": row}
        return shapes | {"spread": row, "offset": row}

    def event_shape(self, params: Params) -> tuple[int, ...]:
        """Shape of one row."""
        return (params["W"].shape[0],)

    def feasible(self, params: Params) -> Params:
        """A copy with noise variances above their bound."""
        xp = namespace(params["W"])
        least = xp.log(params["spread"]) + math.log(self.min_variance)
        return params | {"log_psi": xp.maximum(params["log_psi"], least)}

    def precondition(self, params: Params, grads: Params) -> None:
        """Steps in units of each feature's noise, whatever the scale of the data."""
        psi = namespace(params["W"]).exp(params["log_psi"])
        grads["W"] *= psi[:, None]
        grads["mean"] *= psi

    # ------------------------------------------------------------ energy

    def _inverse(self, params: Params) -> tuple[Array, Array, Array]:
        """1/ψ, B = Ψ⁻¹W and (I + W'Ψ⁻¹W)⁻¹, of which C⁻¹ = Ψ⁻¹ - B (…)⁻¹ B'; float64."""
        xp, W = namespace(params["W"]), params["W"].astype(np.float64)
        precision = xp.exp(-params["log_psi"].astype(np.float64))
        B = precision[:, None] * W
        return precision, B, xp.linalg.inv(xp.eye(W.shape[1]) + W.T @ B)

    def _log_det(self, params: Params, middle: Array) -> Array:
        """log |C|."""
        logs = params["log_psi"].astype(np.float64).sum()
        return logs - namespace(middle).linalg.slogdet(middle)[1]

    def _pull(self, params: Params, x: Array) -> Array:
        """C⁻¹ (x - m), in the dtype of x."""
        precision, B, middle = (a.astype(x.dtype) for a in self._inverse(params))
        away = x - params["mean"]
        return away * precision - ((away @ B) @ middle) @ B.T

    def free_energy(self, params: Params, x: Array) -> Array:
        """F(x) = -log p(x), shape (n,), float64."""
        precision, B, middle = self._inverse(params)
        away = (x - params["mean"]).astype(np.float64)
        code = away @ B
        squares = (away * away) @ precision - ((code @ middle) * code).sum(axis=1)
        return 0.5 * (squares + self._log_det(params, middle) + x.shape[1] * _LOG_2PI)

    def free_energy_grad(self, params: Params, x: Array, weights: Array) -> Params:
        """Σ_i w_i ∂F(x_i)/∂θ by name."""
        precision, B, middle = (a.astype(x.dtype) for a in self._inverse(params))
        a, total = self._pull(params, x), weights.sum()
        weighted = a * weights[:, None]
        solved = B @ middle  # C⁻¹ W
        diagonal = precision - (solved * B).sum(axis=1)
        psi = 1 / precision
        return {
            "mean": -weighted.sum(axis=0),
            "W": total * solved - weighted.T @ (a @ params["W"]),
            "log_psi": 0.5 * psi * (total * diagonal - (weighted * a).sum(axis=0)),
        }

    def input_grad(self, params: Params, x: Array) -> Array:
        """∂F/∂x = C⁻¹ (x - m), shape (n, n_features)."""
        return self._pull(params, x)

    def laplacian(self, params: Params, x: Array) -> Array:
        """ΔF = tr C⁻¹ at every row, shape (n,), float64."""
        precision, B, middle = self._inverse(params)
        trace = precision.sum() - ((B @ middle) * B).sum()
        return namespace(x).full(len(x), trace)

    def score_matching(self, params: Params, passed: Pass, weights: Array) -> tuple[Array, Params]:
        """½|C⁻¹(x - m)|² - tr C⁻¹ of each row, and the gradient of their weighted sum."""
        x = passed.x
        precision, B, middle = (a.astype(x.dtype) for a in self._inverse(params))

        def solved(a: Array) -> Array:
            return a * precision - ((a @ B) @ middle) @ B.T

        g = self._pull(params, x)
        weighted, h = g * weights[:, None], solved(g)
        values = 0.5 * (g * g).sum(axis=1, dtype=np.float64) - self.laplacian(params, x)
        # ∂/∂C = Σ w C⁻² - sym(Σ w g (C⁻¹g)')
        W, total = params["W"], weights.sum()
        twice = solved(solved(W.T)).T  # C⁻² W
        of_w = 2 * total * twice - weighted.T @ (h @ W) - h.T @ (weighted @ W)
        inverse = solved(namespace(x).eye(x.shape[1], dtype=x.dtype))
        of_psi = total * (inverse * inverse).sum(axis=1) - (weighted * h).sum(axis=0)
        of_psi *= namespace(x).exp(params["log_psi"])
        return values, {"mean": -(weights @ h), "W": of_w, "log_psi": of_psi}

    def encode(self, params: Params, x: Array) -> Array:
        """Mean of the factors given x, shape (n, n_components)."""
        _, B, middle = self._inverse(params)
        return (x - params["mean"]) @ (B @ middle).astype(x.dtype)

    def decode(self, params: Params, h: Array) -> Array:
        """m + Wh, shape (n, n_features)."""
        return h @ params["W"].T + params["mean"]

    def log_partition(self, params: Params) -> float:
        """0: F is normalised."""
        return 0.0

    def log_partition_grad(self, params: Params) -> Params:
        """Nothing: F is normalised at all parameters."""
        return {}

    def sample_exact(self, params: Params, n: int, rng: Any) -> Array:
        """``n`` independent draws, shape (n, n_features)."""
        d, q = params["W"].shape
        dtype, xp = params["W"].dtype, namespace(params["W"])
        noise = rng.normal((n, d), dtype) * xp.exp(0.5 * params["log_psi"])
        return params["mean"] + rng.normal((n, q), dtype) @ params["W"].T + noise

    # ------------------------------------------------------------ EM

    def statistics(self, params: Params, x: Array) -> Params:
        """Moments of x - offset, and Σ F at ``params``, which follows from them."""
        stats = moment_sums(x, params["offset"])
        return stats | {"energy": stats["rows"] * self._mean_energy(params, stats)}

    def _mean_energy(self, params: Params, stats: Params) -> Array:
        xp = namespace(params["W"])
        mean = params["mean"].astype(np.float64) - params["offset"]
        precision, B, middle = self._inverse(params)
        cross = xp.outer(mean, stats["x"] / stats["rows"])
        about = stats["xx"] / stats["rows"] - cross - cross.T + xp.outer(mean, mean)
        squares = precision @ xp.diagonal(about) - (middle * (B.T @ about @ B)).sum()
        return 0.5 * (squares + self._log_det(params, middle) + len(mean) * _LOG_2PI)

    def maximize(self, params: Params, stats: Params) -> Params:
        """The best W for Ψ, by eigenvectors of Ψ^-½ S Ψ^-½, then the M step of Ψ for that W.

        Each raises the likelihood (ECME). The M step is diag(S - W W'C⁻¹S), and at the best W
        S C⁻¹ W = W, so that it is diag(S - W W').
        """
        xp, q = namespace(params["W"]), params["W"].shape[1]
        mean, scatter = mean_and_scatter(stats)
        S = scatter / stats["rows"]
        root = xp.exp(0.5 * params["log_psi"].astype(np.float64))
        values, U = leading_axes(S / root[:, None] / root, q)
        W = root[:, None] * U * xp.sqrt(xp.maximum(values - 1, 0))
        own = xp.diagonal(S)
        least = self.min_variance * params["spread"].astype(np.float64)
        psi = xp.maximum(own - (W * W).sum(axis=1), least)
        mean = mean + params["offset"].astype(np.float64)
        new = {"mean": mean, "W": W, "log_psi": xp.log(psi)}
        return params | {k: v.astype(params["W"].dtype) for k, v in new.items()}

    def solve(self, params: Params, stats: Params) -> Params:
        """`maximize` on the same moments, in float64, until it gains no more than ``tol``."""
        dtype = params["W"].dtype
        new = {k: v.astype(np.float64) for k, v in params.items()}
        # From all rows, so that those the fit began with do not matter.
        mean, scatter = mean_and_scatter(stats)
        own = namespace(mean).diagonal(scatter) / stats["rows"]
        rounding = 10 * float(np.finfo(dtype).eps) * mean * mean
        new["spread"] = namespace(mean).where(own > rounding, own, new["spread"])
        new["log_psi"] = namespace(mean).log(new["spread"])
        last = math.inf
        for _ in range(self.max_iter):
            new = self.maximize(new, stats)
            energy = float(self._mean_energy(new, stats))
            if last - energy <= self.tol:
                break
            last = energy
        else:
            warnings.warn(
                f"FactorAnalysis still gained more than tol={self.tol:g} nats a row after "
                f"max_iter={self.max_iter} iterations; raise max_iter, or tol",
                ConvergenceWarning,
                stacklevel=2,
            )
        return {k: v.astype(dtype) for k, v in new.items()}

    def complaint(self) -> str | None:
        """Of noise variances on their bound."""
        params = self._params
        least = namespace(params["W"]).log(params["spread"]) + math.log(self.min_variance)
        fallen = int((params["log_psi"] < least + 1e-3).sum())
        if not fallen:
            return None
        return (
            f"the noise variance of {fallen} features fell to min_variance={self.min_variance:g} "
            "of theirs (Heywood cases): use fewer factors, and drop constant features"
        )

    # ------------------------------------------------------------ fitted

    @property
    def _n_features_out(self) -> int:
        return int(self._params["W"].shape[1])

    @property
    def components_(self) -> Any:
        self._need_fit("components_")
        return self._fitted(self._params["W"].T)

    @property
    def noise_variance_(self) -> Any:
        self._need_fit("noise_variance_")
        return self._fitted(namespace(self._params["W"]).exp(self._params["log_psi"]))

    @property
    def mean_(self) -> Any:
        self._need_fit("mean_")
        return self._fitted(self._params["mean"])
