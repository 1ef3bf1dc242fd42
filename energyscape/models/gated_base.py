"""What gated Markov random fields share: everything but which hidden units they have.

The equations are those of `gated_mrf`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.utils.metaestimators import available_if

from energyscape.backend import Array, is_gpu_array, namespace
from energyscape.kernels import half_square, matmul, square_sum
from energyscape.models.base import EnergyModel
from energyscape.models.from_pass import UnitsFromPass
from energyscape.models.gated_conditional import ConditionalMixin, is_gaussian
from energyscape.models.gated_pass import GatedPass
from energyscape.models.gated_response import Response
from energyscape.models.gated_scores import ScoreMixin
from energyscape.models.gated_units import BinaryUnits, GammaUnits
from energyscape.models.inputs import deviation
from energyscape.pools import pooling
from energyscape.samplers import HMC, Multiplicative, Target
from energyscape.trainers import PCD
from energyscape.verbs import Param, Params, as_column, check_count, is_one

_LOG_2PI = math.log(2 * math.pi)
_FLOOR = 0.5  # of the mean square that a row is normalised by (Ranzato and Hinton's code)
_WIDEST = 20.0  # times the deviation of the data, or a fraction: what σ is taken to be meant
_ROWS_OF_START, FIRST_LENGTH = 1000, 1.5
# Share of their length that filters move by at most, at a rate of 1. A step of 0.1 runs away on 190
# components of patches, whatever the gradient; steps that follow the gradient alone run away there
# at rates that 36 components need.
_LONGEST_STEP = 0.03
RIDGE = 1e-4  # of the mean variance, added to that of every direction before whitening


class GatedMRF(UnitsFromPass, ConditionalMixin, ScoreMixin, EnergyModel):
    """What all four share; they say which units they have."""

    domain = "real"
    codes = "unit"
    decoded_rows = 100  # a linear system each: 1000 of 190 features take as long as 100 updates
    units: GammaUnits | BinaryUnits

    sigma: Any
    pools: Any
    learn_pools: bool
    equal_norms: bool
    # Not all of them take these.
    normalize = False
    n_mean_components = 0

    @property
    def finite(self) -> bool:
        """Whether |u|²/2σ² is in the energy."""
        return not (isinstance(self.sigma, float) and math.isinf(self.sigma))

    @property
    def learns_scale(self) -> bool:
        return self.sigma == "learned"

    @property
    def latents(self) -> str:
        """What the hidden units are."""
        return self.units.latents

    def default_trainer(self) -> Any:
        """PCD with averaged parameters, whose chains HMC moves."""
        return PCD(learning_rate=0.1, averaging=0.1)

    def default_sampler(self) -> Any:
        """HMC: 20 leapfrog steps of jittered length, nine of ten accepted."""
        return HMC(adaptation=Multiplicative(0.1))

    def check_settings(self) -> None:
        super().check_settings()
        if "n_mean_components" in vars(self):
            check_count("n_mean_components", self.n_mean_components)
        sigma = self.sigma
        named = isinstance(sigma, str)
        if (named and sigma not in ("auto", "learned")) or not (named or sigma > 0):
            raise ValueError(f"sigma must be 'auto', 'learned' or > 0, got {sigma!r}")
        alone = self.pools is None and not self.learn_pools and not self.n_mean_components
        if not self.finite and not (alone and isinstance(self.units, GammaUnits)):
            raise ValueError(
                f"sigma=inf leaves {type(self).__name__} without a normaliser: only Gamma units "
                "with a filter each, and no mean units, do without the Gaussian. Give it a finite "
                "one"
            )
        if self.pools is not None:
            pooling(self.pools, self.n_components)

    def check_rows(self, n: int, event_shape: tuple[int, ...]) -> None:
        d = math.prod(event_shape)
        if n < 2:
            raise ValueError(
                f"{type(self).__name__} learns what rows differ by and needs at least 2 samples, "
                f"got n_samples = {n}"
            )
        if not self.finite and self.n_components < d:
            raise ValueError(
                f"sigma=inf needs at least as many filters as features, got n_components="
                f"{self.n_components} for {d}: the density would not fall along the rest"
            )

    def scale_complaint(self, X: Any) -> str | None:
        """That ``sigma`` is for data on another scale; None where it fits, or follows the data."""
        if isinstance(self.sigma, str) or not self.finite:
            return None
        spread = deviation(X)
        if spread / _WIDEST <= self.sigma <= spread * _WIDEST or spread == 0:
            return None
        return (
            f"{type(self).__name__} has sigma={self.sigma:.6g}, but features of X deviate by "
            f"{spread:.6g} from their means (root mean square). Scale X, or take sigma='auto', "
            f"which is {self.relative_sigma:g} times that"
        )

    # ------------------------------------------------------------ parameters

    def init_params(self, x: Array, rng: Any) -> Params:
        """S from the covariance of the rows; random filters, long enough to be off for some rows
        and on for others; the units' own parameter where it lets exp(-F) spread as the rows do; W
        small, its units rare.

        For every density E[u_i ∂F/∂u_i] = 1 (by parts): along principal directions where the
        Gaussian is too wide, the units have to make up for what it lacks. Without it 144 filters on
        36 components of patches stay near the Gaussian (-46.9 nats instead of -31.1).
        """
        xp, (n, d), k = namespace(x), x.shape, int(self.n_components)
        mean = x.mean(axis=0, dtype=np.float64)
        spread = ((x - mean) ** 2).mean(axis=0, dtype=np.float64)
        average = float(spread.mean()) or 1.0
        flat = spread <= 1e-12 * mean * mean
        spread = xp.where(flat, 0.01 * average, spread)
        scale = math.sqrt(average)
        C = rng.normal((d, k), x.dtype).astype(np.float64)
        C *= FIRST_LENGTH / xp.sqrt((C * C).sum(axis=0))
        P = None if self.pools is None else pooling(self.pools, k).T
        if P is None and self.learn_pools:
            P = np.eye(k)
        u = (x.astype(np.float64) - mean) / scale
        # Directions that few rows say nothing of count as those of the mean variance.
        value, vector = xp.linalg.eigh(u.T @ u / n)
        white = (vector / xp.sqrt(xp.maximum(value, 0) + RIDGE + 0.1 * (d / n) ** 2)) @ vector.T
        params = {"C": C, "S": white, "mean_v": mean, "var_v": spread}
        params["deviation"] = xp.full(1, scale)
        if P is not None:
            params["P"] = xp.asarray(P / P.sum(axis=0))
        if self._masked:
            params["open"] = (params["P"] > 0).astype(x.dtype)
        sigma = self.relative_sigma if isinstance(self.sigma, str) else self.sigma / scale
        if self.finite:
            params |= {"b": xp.zeros(d), "log_var": xp.full(1, 2 * math.log(sigma))}
        if self.n_mean_components:
            W = rng.normal((d, int(self.n_mean_components)), x.dtype).astype(np.float64)
            params["W"] = W * (0.05 / min(sigma, 1.0))
            params["c"] = xp.full(int(self.n_mean_components), -2.0)
        v = u[:_ROWS_OF_START] @ white
        if self.normalize:
            v /= xp.sqrt((v * v).mean(axis=1) + _FLOOR)[:, None]
        wanted = float(xp.maximum(1 - value / sigma**2, 0).sum()) if self.finite else d
        z = 0.5 * (v @ C) ** 2
        params[self.units.name] = self.units.start(z @ params["P"] if "P" in params else z, wanted)
        return {name: value.astype(x.dtype) for name, value in params.items()}

    def param_specs(self) -> dict[str, Param]:
        # P and d about as slow as in the authors' code. Where d is quick, units are on for all
        # rows, which is a Gaussian, before filters have found directions that are worth a
        # constraint (256 filters of 16×16 patches: d = 12 at a rate of 0.1, 4 at 0.005).
        # Without a Gaussian, chains go so far out now and then that C learns more slowly.
        specs = {"C": Param(10.0 if self.finite else 3.0), self.units.name: self.units.spec()}
        if self.pools is not None or self.learn_pools:
            specs["P"] = Param(rate=0.01, start=0.5, trainable=self.learn_pools)
        if self._masked:
            specs["open"] = Param(trainable=False)
        if self.finite:
            specs |= {"b": Param(rate=0.1), "log_var": Param(0.01, trainable=self.learns_scale)}
        if self.n_mean_components:
            specs |= {"W": Param(rate=0.2, decay=True), "c": Param(rate=0.1)}
        buffers = "S", "mean_v", "var_v", "deviation"
        return specs | {key: Param(trainable=False) for key in buffers}

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        d, k, m = n_features, int(self.n_components), int(self.n_mean_components)
        shapes: dict[str, tuple[int, ...]] = {"C": (d, k), "mean_v": (d,), "var_v": (d,)}
        shapes |= {"S": (d, d), "deviation": (1,), self.units.name: (self.n_gates,)}
        if self.pools is not None or self.learn_pools:
            shapes["P"] = (k, self.n_gates)
        if self._masked:
            shapes["open"] = (k, self.n_gates)
        if self.finite:
            shapes |= {"b": (d,), "log_var": (1,)}
        return shapes | ({"W": (d, m), "c": (m,)} if m else {})

    @property
    def n_gates(self) -> int:
        """Covariance units."""
        k, pools = int(self.n_components), self.pools
        if pools is None:
            return k
        return k // int(pools) if np.ndim(pools) == 0 else len(pools)

    @property
    def _n_features_out(self) -> int:
        params = self._state.params
        return sum(len(params[name]) for name in (self.units.name, "c") if name in params)

    def precision(self, params: Params) -> Array:
        """1/σ² of u, shape (1,)."""
        return namespace(params["C"]).exp(-params["log_var"])

    def precondition(self, params: Params, grads: Params) -> None:
        """Where σ is small, what b and W have to be to move the mean is 1/σ² as large; filters move
        by no more than a share of their length; in place."""
        if self.finite:
            longer = namespace(params["C"]).maximum(self.precision(params), 1)
            for name in grads.keys() & {"W", "b"}:
                grads[name] *= longer
        shorten(params["C"], grads["C"])
        self.units.precondition(params, grads)

    def project(self, params: Params, sums: Params, rng: Any) -> None:
        """Filters of equal length, which may drift together; P >= 0 with columns that sum to 1,
        zero where it began at zero."""
        xp, C = namespace(params["C"]), params["C"]
        if self.equal_norms:
            lengths = xp.sqrt((C * C).sum(axis=0))
            C *= lengths.mean() / xp.maximum(lengths, np.finfo(C.dtype).tiny)
        if "P" in params and self.learn_pools:
            _project_pools(params["P"], params.get("open"))

    def feasible(self, params: Params) -> Params:
        """A copy with P >= 0."""
        if "P" not in params:
            return params
        return params | {"P": namespace(params["P"]).maximum(params["P"], 0)}

    @property
    def _masked(self) -> bool:
        """Whether P may be positive only where it began so, and not everywhere."""
        return self.learn_pools and self.pools is not None

    # ------------------------------------------------------------ energies

    def filters(self, params: Params) -> Array:
        """SC, which see u; shape (n_features, n_components)."""
        return params["SC"] if "SC" in params else params["S"] @ params["C"]

    def prepared(self, params: Params) -> Params:
        """With the product SC, where filters see u."""
        if "C" not in params or self.normalize:
            return params
        return params | {"SC": self.filters(params)}

    def target(self, params: Params, base: Params | None = None, beta: Any = 1.0) -> Target:
        """What a sampler sees of this model at ``params``, the product SC made once."""
        return super().target(self.prepared(params), base, beta)

    def fields(self, params: Params, x: Array) -> dict[str, Array]:
        """u, v where rows are normalised, r, z and the mean units' field a."""
        u = x - params["mean_v"]
        u /= params["deviation"]
        known = {"u": u}
        if self.normalize:
            v = u @ params["S"]
            root = namespace(u).sqrt((v * v).mean(axis=1) + u.dtype.type(_FLOOR))[:, None]
            v /= root
            known |= {"v": v, "root": root}
        r = matmul(known["v"], params["C"]) if self.normalize else matmul(u, self.filters(params))
        z = half_square(r)
        known |= {"r": r, "z": matmul(z, params["P"]) if "P" in params else z}
        if "W" in params:
            known["a"] = matmul(u, params["W"])
            known["a"] += params["c"]
        return known

    def visible_energy(self, params: Params, u: Array) -> Array:
        """|u|²/2σ² - b'u of every row, (n,), float64."""
        if not self.finite:
            return namespace(u).zeros(len(u), np.float64)
        return square_sum(u, self.precision(params), params["b"])

    def grad_of_u(
        self, params: Params, known: dict[str, Array], dr: Array, p: Array | None, beta: Any
    ) -> Array:
        """∂F_β/∂u from what it is in the filter outputs and mean fields; a new array."""
        u = known["u"]
        if self.normalize:  # v is Su over nearly its length: only what is across it turns it
            grad = dr @ params["C"].T
            along = (grad * known["v"]).sum(axis=1) / u.shape[1]
            grad -= along[:, None] * known["v"]
            grad /= known["root"]
            grad = grad @ params["S"]
        else:
            grad = matmul(dr, self.filters(params).T)
        if self.finite:
            own = u * self.precision(params)
            own -= params["b"]
            grad += own if is_one(beta) else own * as_column(beta, own)
        if p is not None:
            grad -= matmul(p, params["W"].T)
        return grad

    # ------------------------------------------------------------ verbs

    def event_shape(self, params: Params) -> tuple[int, ...]:
        """Shape of one row."""
        return (len(params["C"]),)

    def forward(
        self, params: Params, x: Array, beta: Any = 1.0, base: Params | None = None
    ) -> GatedPass:
        """One product with the filters of each kind, and all that follows."""
        return GatedPass(self, params, x, beta, base)

    def input_grad(self, params: Params, x: Array) -> Array:
        """∂F/∂x, shape (n, n_features)."""
        return self.forward(params, x).input_grad()

    def joint_energy(self, params: Params, x: Array, h: Array) -> Array:
        """E(x, h, g) row by row, with h and g side by side, shape (n,), float64."""
        known = self.fields(params, x)
        units = known["z"].shape[1]
        own, h, g = self.visible_energy(params, known["u"]), h[:, :units], h[:, units:]
        own = own + self.units.own_energy(params, h)
        own += (self.units.coupling(h, 1.0) * known["z"]).sum(axis=1, dtype=np.float64)
        return own - (known["a"] * g).sum(axis=1, dtype=np.float64) if "a" in known else own

    def input_grad_function(self, params: Params) -> Callable[[Array], Array]:
        """x → ∂F/∂x into a buffer of its own, the scale worked into the filters once: one product
        with filters and mean weights side by side each way, and one with P."""
        if self.normalize:
            return lambda x: self.input_grad(params, x)
        xp, C, units = namespace(params["C"]), self.filters(params), self.units
        (d, k), inverse = C.shape, 1 / params["deviation"]
        pools = params.get("P")
        # Half a square is the square of filters shorter by √½; the other half of the way back is
        # that filters come in twice. Rates of mean units are ½ + ½ tanh of half their field.
        blocks = [C * (inverse * C.dtype.type(math.sqrt(0.5)))]
        if "W" in params:
            blocks.append(params["W"] * (inverse * C.dtype.type(0.5)))
        up = xp.concatenate(blocks, axis=1)
        back = up.T.copy()  # never a view, which it would be of a single filter
        back[:k] *= 2 if pools is not None else 2 * units.level(params)[:, None]
        level, rest = -(params["mean_v"] @ up), 0
        if "W" in params:
            level[k:] += params["c"] * C.dtype.type(0.5)
            rest = up[:, k:].sum(axis=1)
            back[k:] *= C.dtype.type(-1)
        up = xp.concatenate([up, level[None]])
        pools_back = None if pools is None else xp.ascontiguousarray(pools.T)
        width = None
        if self.finite:
            width = inverse * inverse * self.precision(params)
            rest = rest + params["mean_v"] * width + params["b"] * inverse
        if is_gpu_array(C):
            filters = Response(up[:d], level, back, k, pools, units, params)
            return filters.gradient(width, rest)
        kept: dict[int, tuple[Array, ...]] = {}

        def gradient(x: Array) -> Array:
            if len(x) not in kept:
                kept.clear()
                n = len(x)
                kept[n] = (
                    xp.ones((n, d + 1), x.dtype),
                    xp.empty((n, up.shape[1]), x.dtype),
                    xp.empty((n, k), x.dtype),
                    None if pools is None else xp.empty((n, pools.shape[1]), x.dtype),
                    xp.empty_like(x),
                    xp.empty_like(x),
                )
            wide, field, squares, pooled, grad, own = kept[len(x)]
            wide[:, :d] = x
            xp.matmul(wide, up, out=field)
            r, fields = field[:, :k], field[:, k:]
            xp.square(r, out=squares)
            if pools is None:
                units.gate(params, squares, r)
            else:
                xp.matmul(squares, pools, out=pooled)
                units.slope_into(params, pooled)
                xp.matmul(pooled, pools_back, out=squares)
                r *= squares
            if fields.shape[1]:
                xp.tanh(fields, out=fields)
            xp.matmul(field, back, out=grad)
            if width is not None:
                xp.multiply(x, width, out=own)
                own -= rest
                grad += own
            return grad

        return gradient

    # ------------------------------------------------------------ log Z

    @available_if(is_gaussian)
    def base_measure(self, params: Params) -> Params:
        """Independent Gaussians with the means and variances of the data."""
        return {"b": params["mean_v"], "log_var": namespace(params["C"]).log(params["var_v"])}

    @available_if(is_gaussian)
    def base_log_partition(self, params: Params, base: Params) -> float:
        log_var = base["log_var"].astype(np.float64)
        hidden = self.units.base_log_partition(self.n_gates)
        means = int(self.n_mean_components) * math.log(2)
        return 0.5 * float((_LOG_2PI + log_var).sum()) + hidden + means

    def start_points(self, params: Params, n: int, rng: Any) -> Array:
        """Where chains begin without a base measure: Gaussians like the data, by feature."""
        x = rng.normal((n, len(params["C"])), params["C"].dtype)
        x *= namespace(x).sqrt(params["var_v"])
        x += params["mean_v"]
        return x

    # ------------------------------------------------------------ fitted

    @property
    def components_(self) -> Any:
        self._need_fit("components_")
        return self._fitted(self.filters(self._params).T)

    @property
    def patterns_(self) -> Any:
        """S⁻¹C as rows: what the data are like where a filter answers, their covariance times the
        filter, up to a factor; shape (n_components, n_features)."""
        self._need_fit("patterns_")
        S, C = self._params["S"], self._params["C"]
        return self._fitted(namespace(S).linalg.solve(S, C).T)

    @property
    def mean_components_(self) -> Any:
        """W', the weights of the mean units, which see u."""
        self._need_fit("mean_components_")
        if "W" not in self._params:
            raise AttributeError(f"{type(self).__name__} has no mean units, no mean_components_")
        return self._fitted(self._params["W"].T)


def shorten(C: Array, grad: Array) -> None:
    """Hold a step of filters to a share of their length, in place."""
    xp, real = namespace(C), C.dtype.type
    share = xp.sqrt((C * C).sum() / ((grad * grad).sum() + real(1e-30)))
    grad *= xp.minimum(share * real(_LONGEST_STEP), 1)


def _project_pools(P: Array, may: Array | None) -> None:
    xp = namespace(P)
    xp.maximum(P, 0, out=P)
    if may is not None:
        P *= may
    total = P.sum(axis=0)
    # A pool that has lost all of its filters takes them all up again.
    lost = total <= 0
    P += lost * (xp.ones_like(P) if may is None else may)
    P /= P.sum(axis=0)
