"""Gated Markov random fields: hidden units that say what the covariance of x is, and its mean.

With u = (x - m)/s (mean and deviation of the data), S that whitens u (symmetric, fixed), filter
outputs r = C'Su, pooled energies z = P'r²/2 (P >= 0) and covariance units h (see `gated_units`),
binary mean units g:

    E(x, h, g) = |u|²/2σ² - b'u + Σ_k E(z_k, h_k) - Σ_j g_j (c_j + W_j'u)
    F(x)       = |u|²/2σ² - b'u + Σ_k F(z_k)      - Σ_j softplus(c_j + W_j'u)
    u | h, g   ~ N(Λ⁻¹(b + Wg), Λ⁻¹),             Λ = I/σ² + SC diag(Ph) C'S

          covariance units   mean units
PoT            gamma              -      Welling, Hinton, Osindero, 2003; Osindero et al., 2006
CovarianceRBM  binary             -      Ranzato, Krizhevsky, Hinton, 2010
McRBM          binary          binary    Ranzato, Hinton, 2010
MPoT           gamma           binary    Ranzato, Mnih, Hinton, 2010

σ is the deviation of u where no constraint holds, and its term makes every density proper. Without
it (σ = ∞) gamma units on at least as many filters as features are proper by themselves. The signs
of P are those of the authors' code.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.integrate import quad
from scipy.special import digamma, gammaln
from sklearn.utils.metaestimators import available_if

from energyscape.backend import Array, namespace, to_host
from energyscape.errors import CapabilityError
from energyscape.models.gated_base import GatedMRF
from energyscape.models.gated_conditional import is_gaussian
from energyscape.models.gated_units import BinaryUnits, GammaUnits
from energyscape.models.states import binary_states, draw_states, log_sum_exp, state_log_weights
from energyscape.registry import register
from energyscape.verbs import Params

_LOG_2PI = math.log(2 * math.pi)
_STATE_BYTES = 1 << 26  # of precision matrices at once


def _sees_filters(model: GatedMRF) -> bool:
    return model.pools is None and not model.learn_pools


def _complete(model: GatedMRF) -> bool:
    return _sees_filters(model) and not model.finite


class _HeavyTailed(GatedMRF):
    """Gamma units; γ > ½ where nothing else makes the density proper."""

    @property
    def units(self) -> GammaUnits:  # type: ignore[override]
        return GammaUnits(0.0 if self.finite else 0.5)


@register
class PoT(_HeavyTailed):
    """Product of Student's t experts: filter outputs that are small mostly, and large now and then.

    Parameters
    ----------
    n_components : int, default 256
        Filters.
    sigma : "auto", "learned" or float > 0, default "auto"
        Deviation of x where no constraint holds, in the units of the data. "auto": four times that
        of the data; "learned": from there on. inf leaves the Gaussian out (without pools).
    pools : int, array of shape (n_pools, n_components), or None
        P', which filters a covariance unit pools: neighbouring groups of so many, a matrix
        (`torus_pools` makes topographies), or by default each filter its own.
    learn_pools : bool, default False
        Learn P in the second half of the training, from the first half's filters; zeros of a
        matrix stay zeros.
    equal_norms : bool, default True
        Keep all filters at their common mean length.
    trainer : Trainer, optional
        Default: ``PCD(learning_rate=0.1, averaging=0.1)``, whose chains `HMC` moves by 20 leapfrog
        steps, of which nine in ten are accepted.
    random_state, device, verbose
        As for `RBM`.

    Attributes
    ----------
    components_ : array, shape (n_components, n_features)
        Filters C'S, which see u.
    patterns_ : array, shape (n_components, n_features)
        What u is like where a filter answers: its covariance times the filter, up to a factor.
    params_ : dict
        ``C``, ``P`` where there is one, ``a`` (γ = e^a, without the Gaussian ½ + e^a), ``b`` and
        ``log_var`` (log σ²) where σ is finite, and the buffers ``S``, ``mean_v``, ``var_v``,
        ``deviation`` (and ``open``: where P may be positive).
    log_partition_, log_partition_interval_, log_partition_ess_, history_, n_iter_, \
n_features_in_, seed_, trainer_
        As for `RBM`.

    References
    ----------
    Welling, M., Hinton, G. E., Osindero, S. (2003). Learning sparse topographic representations
    with products of Student-t distributions.
    Osindero, S., Welling, M., Hinton, G. E. (2006). Topographic product models applied to natural
    scene statistics.
    """

    relative_sigma = 4.0

    def __init__(
        self,
        n_components: int = 256,
        *,
        sigma: str | float = "auto",
        pools: Any = None,
        learn_pools: bool = False,
        equal_norms: bool = True,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.sigma = sigma
        self.pools = pools
        self.learn_pools = learn_pools
        self.equal_norms = equal_norms
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    # ------------------------------------------------------------ log Z as a formula

    def enumerable_units(self, params: Params) -> Any:
        """0 where log Z is a formula, infinite where it is not known."""
        return 0 if self._closed(params) else math.inf

    @available_if(_sees_filters)
    def log_partition(self, params: Params) -> float:
        """log Z where filters do not overlap: they are as many as features and σ is infinite, or
        they are orthogonal.

        Raises
        ------
        CapabilityError
            If neither holds.
        """
        if not self._closed(params):
            raise CapabilityError(
                "log Z of a PoT is known for as many filters as features with sigma=inf, and for "
                "orthogonal filters; for others it can be estimated"
            )
        wide = {k: to_host(v).astype(np.float64) for k, v in params.items()}
        C, shapes, d = self.filters(wide), self.units.shapes(wide), len(wide["C"])
        own = d * math.log(wide["deviation"][0])
        if not self.finite:
            gammas = gammaln(shapes - 0.5) - gammaln(shapes)
            return own + float((0.5 * _LOG_2PI + gammas).sum() - np.linalg.slogdet(C)[1])
        lengths = np.sqrt((C * C).sum(axis=0))
        # In units of σ: the Gaussian across the filters, one integral along each.
        sigma = math.exp(0.5 * wide["log_var"][0])
        b = wide["b"] * sigma
        along = (C / lengths).T @ b
        across = float(b @ b - along @ along)
        total = own + d * math.log(sigma) + 0.5 * ((d - C.shape[1]) * _LOG_2PI + across)
        for c, gamma, at in zip(lengths * sigma, shapes, along, strict=True):
            total += _log_expert(float(c), float(gamma), float(at))
        return total

    @available_if(_complete)
    def log_partition_grad(self, params: Params) -> Params:
        """∂ log Z/∂θ by name, for as many filters as features and σ infinite."""
        self.log_partition(params)
        xp, C = namespace(params["C"]), params["C"].astype(np.float64)
        # det S is a constant.
        shapes = self.units.shapes({"a": to_host(params["a"]).astype(np.float64)})
        slope = (digamma(shapes - 0.5) - digamma(shapes)) * (shapes - 0.5)
        grads = {"C": -xp.linalg.inv(C).T, "a": xp.asarray(slope)}
        return {k: v.astype(params[k].dtype) for k, v in grads.items()}

    @available_if(_complete)
    def sample_exact(self, params: Params, n: int, rng: Any) -> Array:
        """``n`` exact, independent draws: Student's t with 2γ - 1 degrees of freedom along every
        filter."""
        xp, C = namespace(params["C"]), self.filters(params)
        shape = xp.broadcast_to(self.units.shapes(params) - 0.5, (n, C.shape[1]))
        t = rng.normal(shape.shape, C.dtype) / xp.sqrt(rng.gamma(xp.ascontiguousarray(shape)))
        u = t @ xp.linalg.inv(C)
        return u * params["deviation"] + params["mean_v"]

    def _closed(self, params: Params) -> bool:
        if not _sees_filters(self):
            return False
        C = self.filters({key: to_host(params[key]).astype(np.float64) for key in ("S", "C")})
        if not self.finite:
            return C.shape[0] == C.shape[1]
        overlap = C.T @ C
        lengths = np.sqrt(np.diag(overlap))
        return bool(
            (abs(overlap - np.diag(lengths**2)) <= 1e-10 * np.outer(lengths, lengths)).all()
        )


class _Enumerable(GatedMRF):
    """Binary units, whose states can be summed over while they are few."""

    units = BinaryUnits()

    def enumerable_units(self, params: Params) -> int:
        """Covariance and mean units together."""
        return self.n_gates + int(self.n_mean_components)

    @available_if(is_gaussian)
    def log_partition(self, params: Params) -> float:
        """Exact log Z by summing over the states of up to 25 units, in blocks.

        Raises
        ------
        CapabilityError
            If there are more units than that.
        """
        return log_sum_exp(self._state_log_weights(params))

    @available_if(is_gaussian)
    def sample_exact(self, params: Params, n: int, rng: Any) -> Array:
        """``n`` exact, independent draws of x, from the enumerated states of the hidden units."""
        index = draw_states(self._state_log_weights(params), n, rng)
        h = binary_states(index, self.enumerable_units(params), params["C"])
        return self.sample_visible(params, h, rng)

    def _state_log_weights(self, params: Params) -> Array:
        """log of ∫dx exp(-E) for every state of the hidden units."""
        d, units = len(params["C"]), self.n_gates
        wide = {k: v.astype(np.float64) for k, v in params.items()}
        xp = namespace(wide["C"])

        def log_weight(h: Array) -> Array:
            precision, pull = self.conditional(wide, h)
            root = xp.linalg.cholesky(precision)
            half = xp.linalg.solve(root, pull[..., None])[..., 0]
            log_det = 2 * xp.log(xp.diagonal(root, axis1=1, axis2=2)).sum(axis=1)
            free = 0.5 * ((half * half).sum(axis=1) - log_det)
            if "c" in wide:
                free += h[:, units:] @ wide["c"]
            return free - self.units.own_energy(wide, h[:, :units])

        blocks = max(1, _STATE_BYTES // (8 * d * d))
        log_w = state_log_weights(log_weight, self.enumerable_units(params), wide["C"], blocks)
        return log_w + d * (0.5 * _LOG_2PI + xp.log(wide["deviation"][0]))


@register
class CovarianceRBM(_Enumerable):
    """Binary units that each say whether a constraint on x holds: factored three-way RBM.

    Parameters
    ----------
    n_components : int, default 256
        Filters.
    sigma : "auto", "learned" or float > 0, default "auto"
        Deviation of x where no constraint holds, in the units of the data. "auto": four times that
        of the data; "learned": from there on.
    pools : int, array of shape (n_pools, n_components), or None
        P', which filters a covariance unit pools: neighbouring groups of so many, a matrix
        (`torus_pools` makes topographies), or by default each filter its own.
    learn_pools : bool, default True
        Learn P in the second half of the training, from the first half's filters; zeros of a
        matrix stay zeros.
    equal_norms : bool, default True
        Keep all filters at their common mean length.
    normalize : bool, default False
        Let filters see y/√(|y|²/d + ½) instead of y, as the authors' code does. x given the hidden
        units is then no Gaussian, and there is no estimate of log Z.
    trainer : Trainer, optional
        Default: ``PCD(learning_rate=0.1, averaging=0.1)``, whose chains `HMC` moves by 20 leapfrog
        steps, of which nine in ten are accepted.
    random_state, device, verbose
        As for `RBM`.

    Attributes
    ----------
    components_ : array, shape (n_components, n_features)
        Filters C'S, which see u.
    patterns_ : array, shape (n_components, n_features)
        What u is like where a filter answers: its covariance times the filter, up to a factor.
    params_ : dict
        ``C``, ``P``, ``d``, ``b``, ``log_var`` (log σ²), and the buffers
        ``S``, ``mean_v``, ``var_v``, ``deviation`` (and ``open``:
        where P may be positive).
    log_partition_, log_partition_interval_, log_partition_ess_, history_, n_iter_, \
n_features_in_, seed_, trainer_
        As for `RBM`.

    References
    ----------
    Ranzato, M., Krizhevsky, A., Hinton, G. E. (2010). Factored 3-way restricted Boltzmann machines
    for modeling natural images.
    """

    relative_sigma = 4.0

    def __init__(
        self,
        n_components: int = 256,
        *,
        sigma: str | float = "auto",
        pools: Any = None,
        learn_pools: bool = True,
        equal_norms: bool = True,
        normalize: bool = False,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.sigma = sigma
        self.pools = pools
        self.learn_pools = learn_pools
        self.equal_norms = equal_norms
        self.normalize = normalize
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose


@register
class McRBM(_Enumerable):
    """Mean and covariance RBM: binary units for constraints on x and for its mean.

    Parameters
    ----------
    n_components : int, default 256
        Filters.
    n_mean_components : int, default 100
        Binary units that move the mean.
    sigma : "auto", "learned" or float > 0, default "auto"
        Deviation of x where no constraint holds, in the units of the data. "auto": four times that
        of the data; "learned": from there on.
    pools : int, array of shape (n_pools, n_components), or None
        P', which filters a covariance unit pools: neighbouring groups of so many, a matrix
        (`torus_pools` makes topographies), or by default each filter its own.
    learn_pools : bool, default True
        Learn P in the second half of the training, from the first half's filters; zeros of a
        matrix stay zeros.
    equal_norms : bool, default True
        Keep all filters at their common mean length.
    normalize : bool, default False
        Let filters see y/√(|y|²/d + ½) instead of y, as the authors' code does. x given the hidden
        units is then no Gaussian, and there is no estimate of log Z.
    trainer : Trainer, optional
        Default: ``PCD(learning_rate=0.1, averaging=0.1)``, whose chains `HMC` moves by 20 leapfrog
        steps, of which nine in ten are accepted.
    random_state, device, verbose
        As for `RBM`.

    Attributes
    ----------
    components_ : array, shape (n_components, n_features)
        Filters C'S, which see u.
    patterns_ : array, shape (n_components, n_features)
        What u is like where a filter answers: its covariance times the filter, up to a factor.
    mean_components_ : array, shape (n_mean_components, n_features)
        Weights W' of the mean units, which see u.
    params_ : dict
        ``C``, ``P``, ``d``, ``b``, ``W`` and ``c`` of the mean units, ``log_var``
        (log σ²), and the buffers ``S``, ``mean_v``, ``var_v``, ``deviation`` (and ``open``:
        where P may be positive).
    log_partition_, log_partition_interval_, log_partition_ess_, history_, n_iter_, \
n_features_in_, seed_, trainer_
        As for `RBM`.

    References
    ----------
    Ranzato, M., Hinton, G. E. (2010). Modeling pixel means and covariances using factorized
    third-order Boltzmann machines.
    """

    relative_sigma = 4.0

    def __init__(
        self,
        n_components: int = 256,
        *,
        n_mean_components: int = 100,
        sigma: str | float = "auto",
        pools: Any = None,
        learn_pools: bool = True,
        equal_norms: bool = True,
        normalize: bool = False,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.n_mean_components = n_mean_components
        self.sigma = sigma
        self.pools = pools
        self.learn_pools = learn_pools
        self.equal_norms = equal_norms
        self.normalize = normalize
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose


@register
class MPoT(_HeavyTailed):
    """Mean and product of Student's t: a PoT's constraints and binary units for the mean.

    Parameters
    ----------
    n_components : int, default 256
        Filters.
    n_mean_components : int, default 100
        Binary units that move the mean.
    sigma : "auto", "learned" or float > 0, default "auto"
        Deviation of x where no constraint holds, in the units of the data. "auto": twice that of
        the data; "learned": from there on.
    pools : int, array of shape (n_pools, n_components), or None
        P', which filters a covariance unit pools: neighbouring groups of so many, a matrix
        (`torus_pools` makes topographies), or by default each filter its own.
    learn_pools : bool, default True
        Learn P in the second half of the training, from the first half's filters; zeros of a
        matrix stay zeros.
    equal_norms : bool, default True
        Keep all filters at their common mean length.
    trainer : Trainer, optional
        Default: ``PCD(learning_rate=0.1, averaging=0.1)``, whose chains `HMC` moves by 20 leapfrog
        steps, of which nine in ten are accepted.
    random_state, device, verbose
        As for `RBM`.

    Attributes
    ----------
    components_ : array, shape (n_components, n_features)
        Filters C'S, which see u.
    patterns_ : array, shape (n_components, n_features)
        What u is like where a filter answers: its covariance times the filter, up to a factor.
    mean_components_ : array, shape (n_mean_components, n_features)
        Weights W' of the mean units, which see u.
    params_ : dict
        ``C``, ``P``, ``a`` (γ = e^a), ``b``, ``W`` and ``c`` of the mean units, ``log_var``
        (log σ²), and the buffers ``S``, ``mean_v``, ``var_v``, ``deviation`` (and ``open``:
        where P may be positive).
    log_partition_, log_partition_interval_, log_partition_ess_, history_, n_iter_, \
n_features_in_, seed_, trainer_
        As for `RBM`.

    References
    ----------
    Ranzato, M., Mnih, V., Hinton, G. E. (2010). Generating more realistic images using gated
    MRF's.
    """

    relative_sigma = 2.0

    def __init__(
        self,
        n_components: int = 256,
        *,
        n_mean_components: int = 100,
        sigma: str | float = "auto",
        pools: Any = None,
        learn_pools: bool = True,
        equal_norms: bool = True,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.n_mean_components = n_mean_components
        self.sigma = sigma
        self.pools = pools
        self.learn_pools = learn_pools
        self.equal_norms = equal_norms
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose


def _log_expert(c: float, gamma: float, b: float) -> float:
    """log ∫ exp(bt - t²/2) (1 + c²t²/2)^-γ dt."""

    def density(t: float) -> float:
        return math.exp(-0.5 * (t - b) ** 2 - gamma * math.log1p(0.5 * (c * t) ** 2))

    value, _ = quad(density, -np.inf, np.inf, points=None, epsabs=0, epsrel=1e-12, limit=500)
    return 0.5 * b * b + math.log(value)
