"""Gaussian mixture: everything about it is exact, so that it serves as the tests' reference model.

GaussianMixture (Dempster, Laird, Rubin, 1977), with y_k = (x - μ_k) L_k and L_k L_k' = Σ_k⁻¹
    E(x, k) = |y_k|²/2 - log |det L_k| + D/2 log 2π - log π_k
    F(x)    = -log Σ_k exp(-E(x, k)) = -log p(x)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from energyscape.backend import Array, is_gpu_array, namespace
from energyscape.models import covariances
from energyscape.models.base import EnergyModel
from energyscape.models.from_pass import EnergyFromPass
from energyscape.models.kmeans import KMeans
from energyscape.models.moments import mean_and_spread
from energyscape.registry import register
from energyscape.samplers import HMC
from energyscape.trainers import EM
from energyscape.verbs import Param, Params, Pass, as_column

_LOG_2PI = math.log(2 * math.pi)
# Elements of the rows that are worked on at once: what stays in the second-level cache of a CPU,
# and what keeps a GPU busy without filling it.
_BLOCK, _ON_GPU = 1 << 16, 1 << 26
_START_PASSES = 10
# The same where reg_covar is 0: rounding in float64 would leave less than nothing below it.
_LEAST = 1e-12


class MixturePass(Pass):
    """Joint energies of rows and components, from which all else follows at any temperature."""

    def __init__(
        self, model: GaussianMixture, params: Params, x: Array, beta: Any = 1.0, joint: Array = None
    ) -> None:
        super().__init__(model, params, x)
        self.beta = beta
        self.joint = model.log_joint(params, x) if joint is None else joint

    def __getitem__(self, rows: Any) -> MixturePass:
        beta = self.beta if np.ndim(self.beta) == 0 else self.beta[rows]
        return MixturePass(self.model, self.params, self.x[rows], beta, self.joint[rows])

    def join(self, other: Pass) -> MixturePass:
        xp = namespace(self.x)
        joint = xp.concatenate([self.joint, other.joint])  # type: ignore[attr-defined]
        x = xp.concatenate([self.x, other.x])
        return MixturePass(self.model, self.params, x, self.beta, joint)

    def at(self, beta: Any) -> MixturePass:
        """The same points at another inverse temperature of the joint energy."""
        return MixturePass(self.model, self.params, self.x, beta, self.joint)

    def energy(self) -> Array:
        return -self._log_sum()[:, 0]

    def _tempered(self) -> Array:
        return self.joint * as_column(self.beta, self.joint)

    def _log_sum(self) -> Array:
        xp, log_p = namespace(self.x), self._tempered()
        top = log_p.max(axis=1, keepdims=True)
        return top + xp.log(xp.exp(log_p - top).sum(axis=1, keepdims=True))

    def hidden(self) -> Array:
        """p(k|x), shape (n, n_components), in the dtype of x."""
        log_p = self._tempered()
        log_p -= self._log_sum()
        return namespace(self.x).exp(log_p).astype(self.x.dtype)

    def grad(self, weights: Array) -> Params:
        return self.model.grad_from(self.params, self.x, self.hidden(), weights)

    def input_grad(self) -> Array:
        return self.model.input_grad_from(self.params, self.x, self.hidden(), self.beta)


@register
class GaussianMixture(EnergyFromPass, EnergyModel):
    """Mixture of Gaussians with full, diagonal or spherical covariances.

    F is normalised: ``-energy(X)`` are exact log-likelihoods, and `sample` gives exact draws.

    Parameters
    ----------
    n_components : int, default 8
        Gaussians.
    covariance_type : {"full", "diag", "spherical"}, default "full"
        A matrix, a variance per feature, or one variance for each component.
    reg_covar : float >= 0, default 1e-6
        Least variance of a component, as a fraction of each feature's variance in the rows that
        the fit begins with, so that none collapses onto a point; `fit` warns where one rests on it.
        It is a constraint and not added to variances, so that EM never loses likelihood and most
        fits do not feel it.
    trainer : Trainer, optional
        Default: ``EM()``.
    random_state, device, verbose
        As for `RBM`.

    Attributes
    ----------
    weights_ : array, shape (n_components,)
    means_ : array, shape (n_components, n_features)
        Also ``components_``.
    covariances_ : array, shape (n_components, n_features, n_features), (n_components, n_features) \
or (n_components,)
    params_ : dict
        ``w`` (log π up to a constant), ``M`` (means), ``L`` (roots of the precisions), and the
        buffers ``floor`` (what ``reg_covar`` comes to) and ``offset`` (the mean of the rows that
        the fit began with, which sums are taken about).
    history_, n_iter_, n_features_in_, seed_, trainer_
        As for `RBM`; ``bound`` in the history is the mean log-likelihood before each update.

    References
    ----------
    Dempster, A., Laird, N., Rubin, D. (1977). Maximum likelihood from incomplete data.

    Examples
    --------
    >>> from energyscape.data import load_digits
    >>> from energyscape.models import GaussianMixture
    >>> X, _ = load_digits()
    >>> GaussianMixture(4, covariance_type="diag", random_state=0).fit(X).means_.shape
    (4, 64)
    """

    domain = "real"
    _counted = ("w", 0)

    def __init__(
        self,
        n_components: int = 8,
        *,
        covariance_type: str = "full",
        reg_covar: float = 1e-6,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.reg_covar = reg_covar
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def default_trainer(self) -> Any:
        """EM with its defaults."""
        return EM()

    def default_sampler(self) -> Any:
        """HMC, for in-painting and other temperatures."""
        return HMC()

    def check_settings(self) -> None:
        super().check_settings()
        if self.covariance_type not in covariances.KINDS:
            raise ValueError(
                f"GaussianMixture.covariance_type must be one of {', '.join(covariances.KINDS)}, "
                f"got {self.covariance_type!r}"
            )
        if not 0 <= self.reg_covar < math.inf:
            raise ValueError(
                f"GaussianMixture.reg_covar must be >= 0 and finite, got {self.reg_covar!r}"
            )

    def check_rows(self, n: int, event_shape: tuple[int, ...]) -> None:
        if n < self.n_components:
            raise ValueError(
                f"Expected n_samples >= n_components but got n_components = {self.n_components}, "
                f"n_samples = {n}"
            )

    @property
    def _kind(self) -> Any:
        return covariances.KINDS[self.covariance_type]

    # ------------------------------------------------------------ parameters

    def init_params(self, x: Array, rng: Any) -> Params:
        """Components from a few passes of k-means."""
        xp, rows = namespace(x), KMeans(min(self.n_components, len(x)))
        start = rows.init_params(x, rng)
        for _ in range(_START_PASSES):
            start = rows.maximize(start, rows.statistics(start, x))
        labels = rows.assign(start, x)
        one_hot = (xp.arange(self.n_components)[:, None] == labels).astype(np.float64)
        mean, spread = mean_and_spread(x)
        d = x.shape[1]
        params = {
            "w": xp.zeros(self.n_components, x.dtype),
            "M": xp.tile(mean, (self.n_components, 1)).astype(x.dtype),
            "L": self._kind.unit(xp, self.n_components, d, x.dtype),
            "floor": (max(self.reg_covar, _LEAST) * spread).astype(x.dtype),
            "offset": mean.astype(x.dtype),
        }
        return self.maximize(params, self._sums(params, x, lambda rows, _: (one_hot[:, rows], 0.0)))

    def param_specs(self) -> dict[str, Param]:
        fixed = Param(trainable=False)
        return {"w": Param(), "M": Param(), "L": Param(), "floor": fixed, "offset": fixed}

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        k = self.n_components
        return {
            "w": (k,),
            "M": (k, n_features),
            "L": self._kind.shape(k, n_features),
            "floor": (n_features,),
            "offset": (n_features,),
        }

    def event_shape(self, params: Params) -> tuple[int, ...]:
        """Shape of one row."""
        return (params["M"].shape[1],)

    def feasible(self, params: Params) -> Params:
        """A copy with triangular roots."""
        return params | {"L": self._kind.feasible(params["L"])}

    def precondition(self, params: Params, grads: Params) -> None:
        """Steps in units of each component's own spread, whatever the scale of the data."""
        self._kind.precondition(params["L"], grads)

    # ------------------------------------------------------------ energy

    def forward(self, params: Params, x: Array, beta: Any = 1.0, base: Any = None) -> MixturePass:
        """The joint energies at ``x``, and all that follows from them."""
        if base is not None:
            raise TypeError("GaussianMixture has no path from a base measure: its Z is known")
        return MixturePass(self, params, x, beta)

    def log_joint(self, params: Params, x: Array) -> Array:
        """log p(x, k), shape (n, n_components), float64."""
        ready, logs = self._kind.ready(params), self._logs(params)
        joint = namespace(x).empty((len(params["M"]), len(x)), np.float64)
        for rows in self._blocks(x):
            joint[:, rows] = _joint(
                self._kind.distances(ready, self._kind.rows(ready, x[rows])), logs
            )
        return joint.T

    def _logs(self, params: Params) -> Array:
        """log π_k |det L_k| (2π)^-D/2, shape (n_components, 1), float64."""
        w, d = params["w"].astype(np.float64), params["M"].shape[1]
        logs = w - _log_sum_exp(w) + self._kind.log_det(params["L"], d) - 0.5 * d * _LOG_2PI
        return logs[:, None]

    def grad_from(self, params: Params, x: Array, hidden: Array, weights: Array) -> Params:
        """The same from p(k|x)."""
        xp, share = namespace(x), hidden * weights[:, None]
        prior = xp.exp(params["w"] - params["w"].max())
        grads = {"w": prior / prior.sum() * weights.sum() - share.sum(axis=0)}
        return grads | self._kind.gradients(params, x, share)

    def input_grad(self, params: Params, x: Array) -> Array:
        """∂F/∂x, shape (n, n_features)."""
        return self.forward(params, x).input_grad()

    def input_grad_from(self, params: Params, x: Array, hidden: Array, beta: Any) -> Array:
        """The same from p(k|x) at inverse temperature ``beta``."""
        return self._kind.pulls(params, x, hidden * as_column(beta, hidden))

    def laplacian(self, params: Params, x: Array) -> Array:
        """Σ_i ∂²F/∂x_i², shape (n,), float64: Σ_k r_k (tr Σ_k⁻¹ - |a_k|²) + |∂F/∂x|²."""
        passed = self.forward(params, x)
        traces, squares = self._kind.curvatures(params, x)
        own = (passed.hidden() * (traces - squares)).sum(axis=1, dtype=np.float64)
        return own + (passed.input_grad() ** 2).sum(axis=1, dtype=np.float64)

    def score_matching(
        self, params: Params, passed: MixturePass, weights: Array
    ) -> tuple[Array, Params]:
        """½|∂F/∂x|² - ΔF of each row, and the gradient of their weighted sum.

        With r = p(k|x), a_k = ∂E/∂x of component k, τ_k = tr Σ_k⁻¹ and g = Σ_k r_k a_k it is
        Σ_k r_k (|a_k|² - τ_k) - ½|g|², whose derivative is r_k (2 a_k - g) in a_k, -r_k in τ_k and
        -r_k (s_k - Σ_l r_l s_l) in E(x, k), where s_k = |a_k|² - τ_k - g'a_k.
        """
        x, g, r = passed.x, passed.input_grad(), passed.hidden()
        traces, squares = self._kind.curvatures(params, x)
        apart = squares - traces
        values = (r * apart).sum(axis=1, dtype=np.float64)
        values -= 0.5 * (g * g).sum(axis=1, dtype=np.float64)
        s = apart - self._kind.along(params, x, g)
        s -= (r * s).sum(axis=1, keepdims=True)
        share = r * weights[:, None]
        of_energy = -share * s
        grads = self._kind.gradients(params, x, of_energy)
        for key, more in self._kind.pull_gradients(params, x, g, share).items():
            grads[key] += more
        return values, grads | {"w": -of_energy.sum(axis=0)}

    def encode(self, params: Params, x: Array) -> Array:
        """p(k|x), shape (n, n_components)."""
        return self.forward(params, x).hidden()

    def decode(self, params: Params, h: Array) -> Array:
        """Mean of x given shares of the components, shape (n, n_features)."""
        return h @ params["M"]

    def log_partition(self, params: Params) -> float:
        """0: F is normalised."""
        return 0.0

    def log_partition_grad(self, params: Params) -> Params:
        """Nothing: F is normalised at all parameters."""
        return {}

    def sample_exact(self, params: Params, n: int, rng: Any) -> Array:
        """``n`` independent draws, shape (n, n_features)."""
        xp, w = namespace(params["M"]), params["w"].astype(np.float64)
        cumulative = xp.cumsum(xp.exp(w - _log_sum_exp(w)))
        k = xp.searchsorted(cumulative, rng.uniform(n, np.float64), side="right")
        k = xp.minimum(k, len(w) - 1)
        noise = rng.normal((n, params["M"].shape[1]), params["M"].dtype)
        return params["M"][k] + self._kind.coloured(params["L"], noise, k)

    # ------------------------------------------------------------ EM

    def statistics(self, params: Params, x: Array) -> Params:
        """Σ r_k, Σ r_k z and Σ r_k zz' (its diagonal, or trace) with z = x - offset; with Σ F and
        the rows. All float64."""
        ready, logs = self._kind.ready(params), self._logs(params)

        def shares(rows: slice, kept: Array) -> tuple[Array, Array]:
            xp, joint = namespace(x), _joint(self._kind.distances(ready, kept), logs)
            top = joint.max(axis=0)
            joint -= top
            xp.exp(joint, out=joint)
            mass = joint.sum(axis=0)
            joint /= mass
            return joint, -(top + xp.log(mass)).sum()

        return self._sums(params, x, shares)

    def _sums(self, params: Params, x: Array, shares: Callable[..., Any]) -> Params:
        """The same from (r, Σ F) of blocks of rows."""
        ready, total = self._kind.ready(params), dict[str, Array]()
        for rows in self._blocks(x):
            kept = self._kind.rows(ready, x[rows])
            share, energy = shares(rows, kept)
            part = self._kind.sums(ready, kept, share)
            part = {key: value.astype(np.float64, copy=False) for key, value in part.items()}
            part["energy"] = energy
            total = {k: total[k] + v for k, v in part.items()} if total else part
        energy = namespace(x).asarray(total.pop("energy"), np.float64)
        sums = self._kind.about_offset(params, total)
        return sums | {"energy": energy, "rows": namespace(x).asarray(float(len(x)))}

    def _blocks(self, x: Array) -> Iterator[slice]:
        fit = (_ON_GPU if is_gpu_array(x) else _BLOCK) // x.shape[1]
        size = max(self._kind.least_rows, fit)
        return (slice(lo, lo + size) for lo in range(0, len(x), size))

    def maximize(self, params: Params, stats: Params) -> Params:
        """The M step; a component that got nothing keeps its place."""
        xp, dtype = namespace(params["M"]), params["M"].dtype
        count = stats["count"]
        some = count > 1e-10 * stats["rows"]
        count = xp.where(some, count, 1.0)
        offset = params["offset"].astype(np.float64)
        means = stats["x"] / count[:, None]
        xx = xp.where(_beside(some, stats["xx"]), stats["xx"], 0.0)
        means = xp.where(some[:, None], means, 0.0)
        root = self._kind.roots(xx, count, means, params["floor"].astype(np.float64))
        return params | {
            "w": xp.log(xp.where(some, count, 1e-10 * stats["rows"])).astype(dtype),
            "M": xp.where(some[:, None], means + offset, params["M"]).astype(dtype),
            "L": xp.where(_beside(some, root), root, params["L"]).astype(dtype),
        }

    def complaint(self) -> str | None:
        """Of components that rest on the floor of ``reg_covar``."""
        floor = self._params["floor"].astype(np.float64)
        # In float32 a variance on the floor is off by rounding.
        fallen = int((self._kind.least_variances(self._params["L"], floor) < 1.001).sum())
        if not fallen:
            return None
        return (
            f"{fallen} of {self.n_components} covariances are singular and rest on reg_covar="
            f"{self.reg_covar:g} (times the variances of the features): their likelihood is that "
            "of the floor. Drop constant features, or use fewer components, a simpler "
            "covariance_type or a larger reg_covar"
        )

    # ------------------------------------------------------------ fitted

    def predict(self, X: Any) -> Any:
        """Most probable component of each row, shape (n,), integers."""
        return self._map(X, lambda p, x: self.log_joint(p, x).argmax(axis=1))

    def predict_proba(self, X: Any) -> Any:
        """p(k|x) of each row, shape (n, n_components); what `transform` gives."""
        return self.transform(X)

    @property
    def weights_(self) -> Any:
        self._need_fit("weights_")
        w = self._params["w"].astype(np.float64)
        return self._fitted(namespace(w).exp(w - _log_sum_exp(w)).astype(self._dtype))

    @property
    def means_(self) -> Any:
        self._need_fit("means_")
        return self._fitted(self._params["M"])

    @property
    def components_(self) -> Any:
        self._need_fit("components_")
        return self._fitted(self._params["M"])

    @property
    def covariances_(self) -> Any:
        self._need_fit("covariances_")
        return self._fitted(self._kind.covariances(self._params["L"]))


def _joint(distances: Array, logs: Array) -> Array:
    """log p(x, k) from |y_k|², in place."""
    distances *= -0.5
    distances += logs
    return distances


def _beside(some: Array, values: Array) -> Array:
    """One flag per component, ready to choose among ``values`` of theirs."""
    return some.reshape(-1, *([1] * (values.ndim - 1)))


def _log_sum_exp(a: Array) -> Array:
    top = a.max()
    return top + namespace(a).log(namespace(a).exp(a - top).sum())
