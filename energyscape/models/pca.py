"""Principal components: low energy on a linear subspace, and nowhere else.

PCA (Pearson, 1901; its density: Tipping and Bishop, 1999)
    F(x) = |x - m - W W'(x - m)|²,    W'W = I

The mean energy at its minimum is the sum of the discarded eigenvalues of the covariance. F is flat
along the subspace, so that exp(-F) has no normaliser: what is scored and sampled is the Gaussian
N(m, W (Λ - σ²) W' + σ² I), of which F/2σ² is the limit for Λ → ∞.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
from sklearn.utils.metaestimators import available_if

from energyscape.backend import Array, namespace
from energyscape.layers import Affine, Identity
from energyscape.models.base import EnergyModel
from energyscape.models.moments import leading_axes, mean_and_scatter, moment_sums, origin, signed
from energyscape.registry import register
from energyscape.samplers import HMC
from energyscape.sharing import total_rows
from energyscape.sources import Rows, joined
from energyscape.trainers import ClosedForm
from energyscape.verbs import Param, Params, check_count
from energyscape.workers import ALONE, Workers

_LOG_2PI = math.log(2 * math.pi)
_ROWS, _ROWS_OF_START = 2048, 500
_ALGORITHMS = ("auto", "covariance", "randomized")
_OVERSAMPLED = 10


@register
class PCA(EnergyModel):
    """Principal component analysis.

    Parameters
    ----------
    n_components : int, optional
        Axes to keep; default min(n, n_features).
    whiten : bool, default False
        Whether features have unit variance.
    algorithm : {"auto", "covariance", "randomized"}, default "auto"
        "covariance" is exact, in one pass over the rows, whatever their number, and takes rows in
        parts (``partial_fit``). "randomized" refines a random subspace in ``n_passes`` passes
        (Halko, Martinsson, Tropp, 2011), which is quicker for few axes of more than 1000 features;
        "auto" takes it there.
    n_passes : int, default 5
        Of "randomized": more where the spectrum falls slowly.
    trainer, random_state, device, verbose
        As for `RBM`; the default trainer is ``ClosedForm()``.

    Attributes
    ----------
    components_ : array, shape (n_components, n_features)
        Orthonormal axes W', by falling variance.
    explained_variance_, explained_variance_ratio_ : array, shape (n_components,)
    noise_variance_ : float
        Mean variance of the discarded axes.
    mean_ : array, shape (n_features,)
    params_ : dict
        ``mean``, ``W``, and the buffers ``offset`` (which sums are taken about), ``variance``,
        ``noise``, ``total`` and, if randomized, ``range``.
    history_, n_iter_, n_features_in_, seed_, trainer_
        As for `RBM`.

    References
    ----------
    Tipping, M. E., Bishop, C. M. (1999). Probabilistic principal component analysis.
    Halko, N., Martinsson, P., Tropp, J. (2011). Finding structure with randomness.

    Examples
    --------
    >>> from energyscape.data import load_digits
    >>> from energyscape.models import PCA
    >>> X, _ = load_digits()
    >>> PCA(8).fit_transform(X).shape
    (1797, 8)
    """

    domain = "real"
    nonnegative = True
    n_components: int | None  # type: ignore[assignment]

    def __init__(
        self,
        n_components: int | None = None,
        *,
        whiten: bool = False,
        algorithm: str = "auto",
        n_passes: int = 5,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.whiten = whiten
        self.algorithm = algorithm
        self.n_passes = n_passes
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def default_trainer(self) -> Any:
        """The closed form."""
        return ClosedForm()

    def default_sampler(self) -> Any:
        """HMC; `sample` needs none, since it draws from the Gaussian."""
        return HMC()

    @property
    def proper(self) -> bool:
        """No: the energy is flat along the subspace."""
        return False

    def check_settings(self) -> None:
        if self.n_components is not None:
            super().check_settings()
        check_count("PCA.n_passes", self.n_passes)
        if self.algorithm not in _ALGORITHMS:
            raise ValueError(
                f"PCA.algorithm must be one of {', '.join(_ALGORITHMS)}, got {self.algorithm!r}"
            )

    def check_rows(self, n: int, event_shape: tuple[int, ...]) -> None:
        most = min(n, *event_shape)
        if isinstance(self.n_components, numbers.Integral) and self.n_components > most:
            raise ValueError(
                f"n_components={self.n_components} must be between 1 and min(n_samples, "
                f"n_features)={most}"
            )

    def _begin(self, trainer: Any, rows: Rows, start: int = 0, workers: Workers = ALONE) -> None:
        if self.n_components is None:  # the rows shown say how many axes there are
            most = min(total_rows(workers, rows), *rows.event_shape)
            trainer.start_rows = max(trainer.start_rows, most)
        super()._begin(trainer, rows, start, workers)

    def passes(self, params: Params) -> int:
        """One, or those that refine a random subspace."""
        return self.n_passes if "range" in params else 1

    @available_if(lambda self: self.algorithm != "randomized")
    def partial_fit(self, X: Any, y: Any = None) -> Any:
        """Add rows: the result is that of one ``fit`` on all rows so far.

        The first call needs ``n_components`` rows; if that is None, it settles how many axes there
        are.

        Parameters
        ----------
        X : array, shape (n, n_features)
        y : ignored

        Returns
        -------
        self
        """
        X = joined(X)
        shape = X.shape if hasattr(X, "shape") else np.shape(X)
        if len(shape) == 2 and self._randomized(shape[1]):
            raise ValueError(
                f"PCA.partial_fit needs the sums of algorithm='covariance'; 'auto' is 'randomized' "
                f"for {shape[1]} features, which goes over all rows several times"
            )
        return super().partial_fit(X, y)

    def _randomized(self, n_features: int) -> bool:
        if self.algorithm != "auto":
            return self.algorithm == "randomized"
        return (
            n_features > 1000
            and self.n_components is not None
            and self.n_components < 0.8 * n_features
        )

    # ------------------------------------------------------------ parameters

    def init_params(self, x: Array, rng: Any) -> Params:
        """The first axes through the mean, which nothing need be computed for; and random ones
        where the subspace is found from them."""
        xp, d = namespace(x), x.shape[1]
        q = min(len(x), d) if self.n_components is None else self.n_components
        some = x[:_ROWS_OF_START].astype(np.float64)
        mean = some.mean(axis=0)
        params = {
            "mean": mean.astype(x.dtype),
            "offset": origin(mean, some.var(axis=0)).astype(x.dtype),
            "W": xp.eye(d, q, dtype=x.dtype),
            "variance": xp.ones(q, x.dtype),
            "noise": xp.ones((), x.dtype),
            "total": xp.ones((), x.dtype),
        }
        if self._randomized(d):
            random = rng.normal((d, min(d, q + _OVERSAMPLED)), np.float64)
            params["range"] = xp.linalg.qr(random)[0].astype(x.dtype)
        return params

    def param_specs(self) -> dict[str, Param]:
        fixed = Param(trainable=False)
        buffers = ("offset", "variance", "noise", "total", "range")
        return {"mean": Param(), "W": Param()} | dict.fromkeys(buffers, fixed)

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        return self._shapes(n_features, self.n_components or n_features)

    def _shapes(self, n_features: int, q: int) -> dict[str, tuple[int, ...]]:
        row = (n_features,)
        shapes = {"mean": row, "offset": row, "W": (*row, q), "variance": (q,)}
        shapes |= {"noise": (), "total": ()}
        if self._randomized(n_features):
            shapes["range"] = (n_features, min(n_features, q + _OVERSAMPLED))
        return shapes

    def event_shape(self, params: Params) -> tuple[int, ...]:
        """Shape of one row."""
        return (params["W"].shape[0],)

    # ------------------------------------------------------------ energy

    def _parts(self, params: Params, x: Array) -> tuple[Array, Array, Array]:
        """x - m, its code, and the residual."""
        away = x - params["mean"]
        code = away @ params["W"]
        return away, code, away - code @ params["W"].T

    def free_energy(self, params: Params, x: Array) -> Array:
        """|x - m - WW'(x - m)|², shape (n,), float64."""
        return (self._parts(params, x)[2] ** 2).sum(axis=1, dtype=np.float64)

    def free_energy_grad(self, params: Params, x: Array, weights: Array) -> Params:
        """Σ_i w_i ∂F(x_i)/∂θ by name, W taken as any matrix (a linear auto-encoder's)."""
        away, code, rest = self._parts(params, x)
        rest *= -2 * weights[:, None]
        back = rest @ params["W"]
        return {
            "mean": (rest - back @ params["W"].T).sum(axis=0),
            "W": away.T @ back + rest.T @ code,
        }

    def input_grad(self, params: Params, x: Array) -> Array:
        """∂F/∂x, shape (n, n_features)."""
        rest = 2 * self._parts(params, x)[2]
        return rest - (rest @ params["W"]) @ params["W"].T

    def encode(self, params: Params, x: Array) -> Array:
        """W'(x - m), divided by standard deviations if ``whiten``; shape (n, n_components)."""
        code = (x - params["mean"]) @ params["W"]
        if self.whiten:
            code /= self._deviations(params)
        return code

    def decode(self, params: Params, h: Array) -> Array:
        """m + Wh, shape (n, n_features)."""
        h = h * self._deviations(params) if self.whiten else h
        return h @ params["W"].T + params["mean"]

    def affine_layers(self, params: Params) -> list[Affine]:
        """One linear layer, there and back."""
        W, V, f = params["W"], params["W"].T, Identity()
        if self.whiten:
            deviations = self._deviations(params)
            W, V = W / deviations, V * deviations[:, None]
        return [Affine(W, -(params["mean"] @ W), f, V, params["mean"], f)]

    def _deviations(self, params: Params) -> Array:
        """Of the codes; 1 where there is none but by rounding."""
        xp, variance = namespace(params["W"]), params["variance"]
        rounding = variance.dtype.type(10 * np.finfo(variance.dtype).eps) * variance.max()
        return xp.sqrt(xp.where(variance > rounding, variance, 1))

    # ------------------------------------------------------------ solution

    def statistics(self, params: Params, x: Array) -> Params:
        """Moments of z = x - offset; for "randomized" Σz, Σ|z|² and Z'ZQ, which refines Q."""
        if "range" not in params:
            return moment_sums(x, params["offset"])
        xp, Q = namespace(x), params["range"]
        wide = (x.shape[1], Q.shape[1])
        cross, first = xp.zeros(wide, np.float64), xp.zeros(x.shape[1], np.float64)
        total = xp.zeros((), np.float64)
        for lo in range(0, len(x), _ROWS):
            away = x[lo : lo + _ROWS] - params["offset"]
            cross += away.T @ (away @ Q)
            first += away.sum(axis=0, dtype=np.float64)
            total += (away * away).sum(dtype=np.float64)
        return {"rows": xp.asarray(float(len(x))), "x": first, "cross": cross, "square": total}

    def solve(self, params: Params, stats: Params) -> Params:
        """Axes and variances from the sums of a pass."""
        q, n = params["W"].shape[1], stats["rows"]
        xp, free = namespace(params["W"]), namespace(n).maximum(n - 1, 1)
        new = {}
        if "range" in params:
            # The products were taken about the offset: put right what that shifts.
            shift, Q = stats["x"] / n, params["range"].astype(np.float64)
            cross = stats["cross"] - n * xp.outer(shift, shift @ Q)
            # All eigenvalues are raised by the rounding of the products, which the root below
            # would blow up (Tropp, Yurtsever, Udell and Cevher, 2017).
            nudge = np.finfo(params["W"].dtype).eps * xp.sqrt((cross * cross).sum())
            cross += nudge * Q
            inner = Q.T @ cross
            values, vectors = xp.linalg.eigh(0.5 * (inner + inner.T))
            keep = xp.maximum(values, xp.maximum(values[-1] * 1e-14, 1e-300))
            left, sizes, _ = xp.linalg.svd((cross @ vectors) / xp.sqrt(keep), full_matrices=False)
            mean, left = shift, signed(left)
            variance, W = xp.maximum(sizes[:q] ** 2 - nudge, 0) / free, left[:, :q]
            total = (stats["square"] - n * (shift @ shift)) / free
            new["range"] = left
        else:
            mean, scatter = mean_and_scatter(stats)
            variance, W = leading_axes(scatter / free, q)
            total = xp.trace(scatter) / free
        rest = xp.maximum(total - variance.sum(), 0) / max(1, len(mean) - q)
        new |= {"W": W, "variance": variance, "noise": rest, "total": total}
        new["mean"] = mean + params["offset"].astype(np.float64)
        return params | {k: v.astype(params["W"].dtype) for k, v in new.items()}

    # ------------------------------------------------------------ density

    @property
    def has_density(self) -> bool:
        """Yes: that of probabilistic PCA, if not exp(-F)."""
        return True

    def score_samples(self, X: Any) -> Any:
        """Log-likelihood of each row under probabilistic PCA, with the fitted variances.

        Where these are but rounding (as many axes as rows), rows that were not fitted are
        impossible: keep fewer axes.

        Parameters
        ----------
        X : array, shape (n, n_features)

        Returns
        -------
        array, shape (n,), float64, in nats
        """
        return self._map(X, self._log_likelihood)

    def _log_likelihood(self, params: Params, x: Array) -> Array:
        xp, (_, code, rest) = namespace(x), self._parts(params, x)
        d, q = params["W"].shape
        variance, noise = self._variances(params)
        squares = (code.astype(np.float64) ** 2 / variance).sum(axis=1) + xp.log(variance).sum()
        if q < d:
            squares += (rest**2).sum(axis=1, dtype=np.float64) / noise + (d - q) * xp.log(noise)
        return -0.5 * (squares + d * _LOG_2PI)

    def _variances(self, params: Params) -> tuple[Array, Array]:
        """Of the axes and of the rest, kept off 0 by rounding's share of the total."""
        xp, least = namespace(params["W"]), np.finfo(params["W"].dtype).eps
        total = params["total"].astype(np.float64)
        floor = least * xp.where(total > 0, total, 1.0) / len(params["mean"])
        return (
            xp.maximum(params["variance"].astype(np.float64), floor),
            xp.maximum(params["noise"].astype(np.float64), floor),
        )

    def sample_exact(self, params: Params, n: int, rng: Any) -> Array:
        """``n`` draws of probabilistic PCA, shape (n, n_features)."""
        d, q = params["W"].shape
        dtype, xp = params["W"].dtype, namespace(params["W"])
        variance, noise = (v.astype(dtype) for v in self._variances(params))
        x = params["mean"] + (rng.normal((n, q), dtype) * xp.sqrt(variance)) @ params["W"].T
        if q < d:
            rest = rng.normal((n, d), dtype) * xp.sqrt(noise)
            x += rest - (rest @ params["W"]) @ params["W"].T
        return x

    # ------------------------------------------------------------ fitted

    @property
    def _n_features_out(self) -> int:
        return int(self._params["W"].shape[1])

    def _check_shapes(self) -> None:
        """As every model's; without ``n_components`` the axes that are there are counted."""
        found = {key: value.shape for key, value in self._state.params.items()}
        q = self.n_components or int(np.prod(found.get("variance", ())))
        wanted = self._shapes(self.n_features_in_, q)
        if found != wanted:
            raise ValueError(f"parameters have shapes {found}, wanted {wanted}")

    @property
    def components_(self) -> Any:
        self._need_fit("components_")
        return self._fitted(self._params["W"].T)

    @property
    def explained_variance_(self) -> Any:
        self._need_fit("explained_variance_")
        return self._fitted(self._params["variance"])

    @property
    def explained_variance_ratio_(self) -> Any:
        self._need_fit("explained_variance_ratio_")
        return self._fitted(self._params["variance"] / self._params["total"])

    @property
    def noise_variance_(self) -> float:
        self._need_fit("noise_variance_")
        return float(self._params["noise"])

    @property
    def mean_(self) -> Any:
        self._need_fit("mean_")
        return self._fitted(self._params["mean"])
