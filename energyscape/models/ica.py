"""Independent components and subspaces: energies of as many linear sources as features.

ICA (Bell and Sejnowski, 1995; Pham and Garat, 1997), with u = W(x - m)
    F(x) = Σ_k G_k(u_k) - log |det W| = -log p(x)
    G(u) = log cosh u + log π                     heavy tails: p(u) = 1/(π cosh u)
         = u²/2 - log cosh u + (1 + log 2π)/2     light tails: Gaussians around -1 and 1
         = u²/4 + log(4π)/2                       what is left where fewer components are asked for
with pools (Hyvärinen and Hoyer, 2000; Hyvärinen, Hoyer, Inki, 2001)
    F(x) = Σ_p √(ε + Σ_k P_pk u_k²) - log |det W| + const.

A square W only stretches space, so that -log |det W| is all that log Z has to do with it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.utils.metaestimators import available_if

from energyscape.backend import Array, namespace, to_host
from energyscape.models.filter_energy import Slopes
from energyscape.models.linear_sources import LinearSources, log_cosh, whitening
from energyscape.pools import arrangement, log_integral, pooling
from energyscape.registry import register
from energyscape.samplers import HMC
from energyscape.trainers import MaximumLikelihood
from energyscape.verbs import Param, Params

_FIXED_POINTS, _SCALINGS = 200, 30
# log ∫ exp(-energy of one source), and E log cosh of a standard normal variable.
_LOG_HEAVY, _LOG_GAUSSIAN = math.log(math.pi), 0.5 * math.log(4 * math.pi)
_LOG_LIGHT = 0.5 + 0.5 * math.log(2 * math.pi)
_GAUSSIAN_LOG_COSH = 0.37456721


def _apart(model: Any) -> bool:
    return model.pools is None


@register
class ICA(LinearSources):
    """Independent component analysis by exact maximum likelihood, from a start by FastICA.

    Sources are unit-free: W makes them fit their density, whose standard deviation is π/2 where
    tails are heavy and √2 where they are light (signs of the tails are settled once, at the start,
    by the criterion of Lee, Girolami and Sejnowski, 1999). Scores are log-likelihoods.

    With ``pools`` sources are no longer independent: those of a pool are active together, in any
    direction. Pools that share no source (subspaces) have an exact density as well. Where they
    overlap (topographies), log Z is a constant that is not known but does not depend on the
    parameters, so that the likelihood is climbed exactly and its value is not to be had.

    With fewer components than features W stays square: the rest of the sources, those that FastICA
    finds nearest to Gaussian, are a Gaussian that is learned with them and not shown.

    Parameters
    ----------
    n_components : int, optional
        Sources that are not Gaussian; None for as many as features. For more, see
        `OvercompleteICA`.
    pools : int or array, shape (n_pools, n_components), optional
        Size of equal subspaces that share no source, or any weights P >= 0, as of
        `energyscape.pools.torus_pools`, on the host.
    epsilon : float > 0, default 0.01
        ε, which rounds the tip of a pool's energy; not used without pools.
    trainer : Trainer, optional
        Default: ``MaximumLikelihood(n_epochs=20, batch_size=500, learning_rate=0.2)``.
    random_state, device, verbose
        As for `RBM`.

    Attributes
    ----------
    components_ : array, shape (n_components, n_features)
        The unmixing matrix W.
    mixing_ : array, shape (n_features, n_components)
        What each source adds to a row: the inverse of W, or its first columns.
    mean_ : array, shape (n_features,)
    params_ : dict
        ``W`` of all sources, shape (n_features, n_features), ``m``, and the buffers ``sign`` (1
        for heavy tails, -1 for light ones, 0 for a Gaussian) and, with pools, ``P``.
    log_partition_ : float
        0: F is normalised. Absent where pools overlap.
    history_, n_iter_, n_features_in_, seed_, trainer_
        As for `RBM`.

    References
    ----------
    Hyvärinen, A. (1999). Fast and robust fixed-point algorithms for independent component analysis.
    Amari, S., Cichocki, A., Yang, H. (1996). A new learning algorithm for blind signal separation.
    Lee, T.-W., Girolami, M., Sejnowski, T. (1999). Independent component analysis using an extended
    infomax algorithm for mixed sub-Gaussian and super-Gaussian sources.
    Cardoso, J.-F. (1998). Multidimensional independent component analysis.
    Hyvärinen, A., Hoyer, P. (2000). Emergence of phase- and shift-invariant features by
    decomposition of natural images into independent feature subspaces.
    Hyvärinen, A., Hoyer, P., Inki, M. (2001). Topographic independent component analysis.

    Examples
    --------
    >>> import numpy as np
    >>> from energyscape.models import ICA
    >>> sources = np.random.default_rng(0).laplace(size=(1000, 2))
    >>> X = sources @ np.array([[1.0, 0.5], [-0.5, 2.0]])
    >>> ICA(random_state=0).fit_transform(X).shape
    (1000, 2)
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        pools: Any = None,
        epsilon: float = 0.01,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components  # type: ignore[assignment]
        self.pools = pools
        self.epsilon = epsilon
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def default_trainer(self) -> Any:
        """Maximum likelihood along the natural gradient, a few passes from where FastICA ends."""
        return MaximumLikelihood(n_epochs=20, batch_size=500, learning_rate=0.2)

    def default_sampler(self) -> Any:
        """HMC, for in-painting and overlapping pools; other draws are exact."""
        return HMC()

    def check_settings(self) -> None:
        if self.n_components is not None:
            super().check_settings()
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon must be > 0, got {self.epsilon!r}")

    def check_rows(self, n: int, event_shape: tuple[int, ...]) -> None:
        super().check_rows(n, event_shape)
        d = math.prod(event_shape)
        if self._count(d) > d:
            raise ValueError(
                f"ICA has at most as many components as features, got n_components="
                f"{self.n_components} for {d}. Use OvercompleteICA for more"
            )
        if self.pools is not None:
            pooling(self.pools, self._count(d))

    def _count(self, n_features: int) -> int:
        return n_features if self.n_components is None else int(self.n_components)

    @staticmethod
    def _shown_sources(params: Params) -> int:
        """How many sources are not Gaussian."""
        return int((params["sign"] != 0).sum())

    @property
    def _n_features_out(self) -> int:
        return self._shown_sources(self._state.params)

    @property
    def components_(self) -> Any:
        self._need_fit("components_")
        return self._fitted(self._params["W"][: self._n_features_out])

    @property
    def normalised(self) -> bool:
        """Whether F is -log p with its constant: not where pools overlap."""
        shared = 0 if np.ndim(self.pools) == 0 else (np.asarray(self.pools) > 0).sum(axis=0)
        return bool(np.all(np.asarray(shared) <= 1))

    # ------------------------------------------------------------ verbs

    def init_params(self, x: Array, rng: Any) -> Params:
        """FastICA (tanh, symmetric), and each source on its scale.

        With pools the sources are first put where those that go together share pools: subspaces
        are found by independent components up to that order (Cardoso, 1998), from which FastICA
        with the pools' own ψ goes on.
        """
        xp, d = namespace(x), x.shape[1]
        m, V = whitening(x)
        z, k = (x.astype(np.float64) - m) @ V.T, self._count(d)
        own: Params = {"sign": xp.ones(d, np.float64)}
        B = self._fixed_point(own, z, decorrelated(rng.normal((d, d), np.float64)))
        if k < d:
            far = abs(log_cosh(z @ B.T).mean(axis=0) - _GAUSSIAN_LOG_COSH)
            B = B[(-far).argsort()]
            own["sign"][k:] = 0
        if self.pools is not None:
            P, y = pooling(self.pools, k), z @ B[:k].T
            order = arrangement(P, np.corrcoef(to_host(abs(y)).T).reshape(k, k))
            pooled = {"sign": own["sign"][:k], "P": xp.asarray(P)}
            inner = self._fixed_point(pooled, y, xp.eye(k)[xp.asarray(order)])
            B = xp.concatenate([inner @ B[:k], B[k:]])
            own["P"] = xp.concatenate([pooled["P"], xp.zeros((len(P), d - k))], axis=1)
        y = z @ B.T
        if self.pools is None:
            t = xp.tanh(y)
            tails = xp.where((1 - t * t).mean(axis=0) >= (t * y).mean(axis=0), 1.0, -1.0)
            own["sign"] *= tails
        W = self._scales(own, y)[:, None] * (B @ V)
        return {key: v.astype(x.dtype) for key, v in ({"W": W, "m": m} | own).items()}

    def _scales(self, own: Params, y: Array) -> Array:
        """Factors at which E[ψ(u) u] = 1 for every source: there the likelihood is at its top."""
        xp, log_scale = namespace(y), namespace(y).zeros(y.shape[1])
        for _ in range(_SCALINGS):
            u = y * xp.exp(log_scale)
            log_scale += 0.5 * (1 - (self.source_grad(own, u) * u).mean(axis=0))
        return xp.exp(log_scale)

    def _fixed_point(self, own: Params, z: Array, B: Array) -> Array:
        """w ← E[z ψ] - E[∂ψ/∂u] w on white rows, all w at once and then decorrelated (Hyvärinen,
        1999, eq. 20), until the energy of the sources stays."""
        last = math.inf
        for _ in range(_FIXED_POINTS):
            y = z @ B.T
            energy = float(self.source_energy(own, y).mean())
            if abs(energy - last) <= 1e-9 * abs(energy):
                break
            last = energy
            curvature = self._curvature(own, y).mean(axis=0)
            B = decorrelated(self.source_grad(own, y).T @ z / len(z) - curvature[:, None] * B)
        return B

    def param_specs(self) -> dict[str, Param]:
        kept = ("sign",) if self.pools is None else ("sign", "P")
        return {"W": Param(), "m": Param()} | {name: Param(trainable=False) for name in kept}

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        d = n_features
        shapes: dict[str, tuple[int, ...]] = {"W": (d, d), "m": (d,), "sign": (d,)}
        if self.pools is None:
            return shapes
        return shapes | {"P": (len(pooling(self.pools, self._count(d))), d)}

    def encode(self, params: Params, x: Array) -> Array:
        """Sources W(x - m) that are not Gaussian, shape (n, n_components)."""
        return self.sources(params, x)[:, : self._shown_sources(params)]

    def decode(self, params: Params, h: Array) -> Array:
        """Mean of x given the sources ``h``, the Gaussian rest at its mean, 0."""
        rest = len(params["W"]) - h.shape[1]
        u = namespace(h).concatenate([h, namespace(h).zeros((len(h), rest), h.dtype)], axis=1)
        return super().decode(params, u)

    def mixing(self, params: Params) -> Array:
        W = params["W"]
        try:
            return namespace(W).linalg.inv(W)
        except np.linalg.LinAlgError:  # learning went astray: what is not finite ends it
            return namespace(W).full_like(W, math.nan)

    def source_energy(self, params: Params, u: Array) -> Array:
        sign = params["sign"]
        own = log_cosh(u) * sign if "P" not in params else self._radii(params, u)
        total = own.sum(axis=1, dtype=np.float64)
        return total + (u * u) @ (0.25 * (1 - sign)).astype(np.float64)

    def source_grad(self, params: Params, u: Array) -> Array:
        sign = params["sign"]
        rest = u * (0.5 * (1 - sign))
        if "P" in params:
            return u * ((1 / self._radii(params, u)) @ params["P"]) + rest
        return namespace(u).tanh(u) * sign + rest

    def _curvature(self, own: Params, u: Array) -> Array:
        """∂ψ_k/∂u_k, the shape of u."""
        rest = 0.5 * (1 - own["sign"])
        if "P" in own:
            inverse, P = 1 / self._radii(own, u), own["P"]
            return inverse @ P - u * u * ((inverse * inverse * inverse) @ (P * P)) + rest
        t = namespace(u).tanh(u)
        return (1 - t * t) * own["sign"] + rest

    def source_slopes(self, params: Params, u: Array) -> Slopes:
        sign, t = params["sign"], namespace(u).tanh(u)
        bent = (1 - t * t) * sign
        rest = 0.5 * (1 - sign)
        return Slopes(t * sign + u * rest, bent + rest, -2 * t * bent)

    # Sources of one pool bend each other.
    laplacian = available_if(_apart)(LinearSources.laplacian)
    score_matching = available_if(_apart)(LinearSources.score_matching)
    squared_curvature = available_if(_apart)(LinearSources.squared_curvature)

    def _radii(self, params: Params, u: Array) -> Array:
        """√(ε + Σ_k P_pk u_k²) of every pool, shape (n, n_pools)."""
        return namespace(u).sqrt((u * u) @ params["P"].T + u.dtype.type(self.epsilon))

    def offset(self, params: Params) -> Any:
        W = params["W"].astype(np.float64)
        return self._constant(params) - namespace(W).linalg.slogdet(W)[1]

    def _constant(self, params: Params) -> Any:
        """log of the integral of exp(-source energy), but for pools of which it is not known."""
        sign, xp = params["sign"], namespace(params["sign"])
        each = xp.where(sign > 0, _LOG_HEAVY, xp.where(sign < 0, _LOG_LIGHT, _LOG_GAUSSIAN))
        if self.pools is None:
            return each.sum()
        k = self._count(len(sign))
        rest = (len(sign) - k) * _LOG_GAUSSIAN
        if not self.normalised:
            return rest
        # From the setting, which is on the host: u_k = v_k/√P_k within a pool.
        P = pooling(self.pools, k)
        whole = sum(log_integral(int(size), self.epsilon) for size in (P > 0).sum(axis=1))
        return rest + whole - 0.5 * float(np.log(P[P > 0]).sum())

    def other_grads(self, params: Params, u: Array, weights: Array, of_w: Array) -> Params:
        return {"W": of_w - weights.sum() * self.mixing(params).T}

    @available_if(lambda self: self.normalised)
    def log_partition(self, params: Params) -> float:
        """0: F is normalised."""
        return 0.0

    def log_partition_grad(self, params: Params) -> Params:
        """Nothing: log Z does not depend on the parameters, overlapping pools included."""
        return {}

    @available_if(lambda self: self.normalised)
    def sample_exact(self, params: Params, n: int, rng: Any) -> Array:
        """``n`` exact draws of x: of the sources, then mixed."""
        u = self._draw_sources(params, n, rng)
        if "P" in params:
            k = self._count(len(params["W"]))
            u[:, :k] = self._draw_pools(params["P"][:, :k].astype(np.float64), n, rng)
        return super().decode(params, u.astype(params["W"].dtype))

    def _draw_sources(self, params: Params, n: int, rng: Any) -> Array:
        """The logarithm of a Cauchy variable's size is sech; a light source is ±1 + noise."""
        one, two = rng.normal((2, n, len(params["W"])), np.float64)
        xp, sign = namespace(one), params["sign"]
        heavy = xp.log(abs(one)) - xp.log(abs(two))
        light = one + xp.where(two > 0, 1.0, -1.0)
        return xp.where(sign > 0, heavy, xp.where(sign < 0, light, math.sqrt(2) * one))

    def _draw_pools(self, P: Array, n: int, rng: Any) -> Array:
        """A direction and a radius of density ∝ r^(s-1) exp(-√(ε + r²)): a Gamma variable r of
        rate a is accepted with probability exp(a r + √((1 - a²) ε) - √(ε + r²)) <= 1. The a that
        accepts most depends on ε and s."""
        xp, member, k = namespace(P), (P > 0).astype(np.float64), P.shape[1]
        squared = 2 / (1 + xp.sqrt(1 + 4 * self.epsilon / member.sum(axis=1) ** 2))
        a, least = xp.sqrt(squared), xp.sqrt((1 - squared) * self.epsilon)
        r, done = xp.zeros((n, len(P))), xp.zeros((n, len(P)), np.bool_)
        while not bool(done.all()):
            r = xp.where(done, r, rng.exponential((n, k)) @ member.T / a)
            bound = a * r + least - xp.sqrt(self.epsilon + r * r)
            done |= rng.uniform(r.shape, np.float64) < xp.exp(bound)
        g = rng.normal((n, k), np.float64)
        length = xp.sqrt((g * g) @ member.T)
        return g * ((r / length) @ member) / xp.sqrt(P.sum(axis=0))


def decorrelated(B: Array) -> Array:
    """(BB')^-½ B, the orthogonal matrix nearest to B."""
    values, E = namespace(B).linalg.eigh(B @ B.T)
    return E @ ((E.T @ B) / namespace(B).sqrt(namespace(B).maximum(values, 1e-300))[:, None])
