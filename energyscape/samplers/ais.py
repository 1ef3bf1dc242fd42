"""Annealed importance sampling: log Z of a model by a path from a base measure, and its reverse.

Forward (Neal, 2001; Salakhutdinov and Murray, 2008): x_0 ~ base; for k = 0 … K-1:
log w += log f_{k+1}(x) - log f_k(x), *then* x moves by the kernel of β_{k+1}. E[w] Z_base = Z, so
log Ẑ is low on average: a stochastic lower bound on log Z.
Backward: from x_K ~ model the same path down, K factors; E[w] = Z_base/Z, so that from *exact*
draws Z_base / mean w is high on average: a stochastic upper bound. From draws that are not exact
it is an estimate and no bound. From data rows it is RAISE (Burda, Grosse, Salakhutdinov, 2015).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import logsumexp
from sklearn.base import BaseEstimator
from tqdm import tqdm

from energyscape.backend import Array, namespace, to_host
from energyscape.errors import CapabilityError, SamplerWarning
from energyscape.registry import register

_BOOTSTRAPS = 1000
_LEVEL = 0.95


@dataclass(frozen=True)
class PartitionEstimate:
    """log Z with what tells how far to trust it.

    Attributes
    ----------
    log_partition : float
        The estimate, in nats.
    interval : (float, float)
        95 % bootstrap percentile interval of it. It covers the noise of the chains that ran, not
        regions that none of them found.
    ess : float
        Effective sample size (Σw)²/Σw² of the weights, in chains; infinite for an exact value.
    kind : {"exact", "lower bound", "upper bound", "estimate"}
        What the value is, in expectation, for log Z.
    log_weights : array, shape (n_chains,)
    """

    log_partition: float
    interval: tuple[float, float]
    ess: float
    kind: str
    log_weights: np.ndarray = field(repr=False, default_factory=lambda: np.zeros(0))

    @property
    def ess_fraction(self) -> float:
        """``ess`` over the number of chains."""
        return self.ess / max(1, len(self.log_weights))


@register
class AIS(BaseEstimator):
    """Annealed importance sampling with the target's own block-Gibbs kernel.

    Parameters
    ----------
    n_chains : int, default 100
        Independent runs, moved as one batch.
    n_temperatures : int, default 1000
        Steps K of the path. The bias of log Ẑ falls as 1/K.
    bend : float, default 1
        β_k = 1 - (1 - k/K)^bend: 1 is linear, 2 spends half of the steps above β = 0.75.
    """

    def __init__(self, n_chains: int = 100, n_temperatures: int = 1000, bend: float = 1.0) -> None:
        self.n_chains = n_chains
        self.n_temperatures = n_temperatures
        self.bend = bend

    def betas(self) -> np.ndarray:
        """Inverse temperatures from 0 to 1, shape (n_temperatures + 1,)."""
        for name in ("n_chains", "n_temperatures"):
            if getattr(self, name) < 1:
                raise ValueError(f"AIS.{name} must be at least 1, got {getattr(self, name)!r}")
        if not self.bend > 0:
            raise ValueError(f"AIS.bend must be > 0, got {self.bend!r}")
        return 1.0 - np.linspace(1.0, 0.0, self.n_temperatures + 1) ** self.bend

    def run(self, target: Any, rng: Any, verbose: bool = False) -> PartitionEstimate:
        """Forward estimate of log Z: a stochastic lower bound.

        Parameters
        ----------
        target : Target with a base measure
        rng : Stream
        verbose : bool, default False
            Show progress on stderr.

        Returns
        -------
        PartitionEstimate

        Warns
        -----
        SamplerWarning
            If the weights are so uneven that fewer than five chains count.
        """
        _check(target)
        betas = self.betas()
        x = target.sample_base(self.n_chains, rng)
        log_w = namespace(x).zeros(len(x), np.float64)
        for k in _progress(range(len(betas) - 1), "AIS", verbose):
            passed = target.forward(x)
            upper = passed.at(betas[k + 1])
            log_w += passed.at(betas[k]).energy() - upper.energy()
            x = target.at(betas[k + 1]).finish_sweep(upper, rng)
        return _estimate(to_host(log_w), target.base_log_partition(), 1, "lower bound")

    def reverse(
        self, target: Any, draws: Array, rng: Any, exact: bool, verbose: bool = False
    ) -> PartitionEstimate:
        """Backward estimate of log Z from draws of the model, one chain per draw.

        Parameters
        ----------
        target : Target with a base measure
        draws : array, shape (n, *event_shape)
        rng : Stream
        exact : bool
            Whether ``draws`` are exact: then the result is a stochastic upper bound on log Z, and
            is labelled so; otherwise it is labelled an estimate.

        Returns
        -------
        PartitionEstimate
        """
        log_w = to_host(self._descend(target, draws, rng, verbose))
        kind = "upper bound" if exact else "estimate"
        return _estimate(log_w, target.base_log_partition(), -1, kind)

    def annealed_log_likelihood(
        self, target: Any, x: Array, rng: Any, chains_per_row: int = 1, verbose: bool = False
    ) -> np.ndarray:
        """RAISE: log of an unbiased estimate of p_ann(x), the density of the path's last state.

        p_ann tends to the model's density as the temperatures grow in number. The mean over rows
        is a stochastic lower bound on the mean log-likelihood *under p_ann*, not under the model.

        Parameters
        ----------
        target : Target with a base measure
        x : array, shape (n, *event_shape)
        rng : Stream
        chains_per_row : int, default 1

        Returns
        -------
        array, shape (n,), float64, in nats
        """
        if chains_per_row < 1:
            raise ValueError(f"chains_per_row must be at least 1, got {chains_per_row!r}")
        xp = namespace(x)
        energy = to_host(target.energy(x))
        start = xp.repeat(x, chains_per_row, axis=0)
        log_w = to_host(self._descend(target, start, rng, verbose)).reshape(len(x), chains_per_row)
        mean = logsumexp(log_w, axis=1) - np.log(chains_per_row)
        return -energy - target.base_log_partition() + mean

    def _descend(self, target: Any, x: Array, rng: Any, verbose: bool) -> Array:
        """log w of the reversed path; the Gibbs kernel on x is its own reverse."""
        _check(target)
        betas = self.betas()
        log_w = namespace(x).zeros(len(x), np.float64)
        passed = target.forward(x)
        for k in _progress(range(len(betas) - 2, -1, -1), "reverse AIS", verbose):
            x = target.at(betas[k + 1]).finish_sweep(passed.at(betas[k + 1]), rng)
            passed = target.forward(x)
            log_w += passed.at(betas[k + 1]).energy() - passed.at(betas[k]).energy()
        return log_w


def exact_partition(value: float) -> PartitionEstimate:
    """The record of an exactly known log Z."""
    return PartitionEstimate(float(value), (float(value), float(value)), np.inf, "exact")


def _check(target: Any) -> None:
    if not target.has_sweep or target.base is None:
        raise CapabilityError(
            "AIS needs a target with block-Gibbs steps and a base measure: "
            "model.target(params, base=model.base_measure(params))"
        )


def _progress(steps: range, name: str, verbose: bool) -> Any:
    return tqdm(steps, desc=name, disable=not verbose, leave=False)


def _estimate(log_w: np.ndarray, log_z_base: float, sign: int, kind: str) -> PartitionEstimate:
    """log Z = log Z_base ± log mean w, with a bootstrap interval (weights shifted by their max)."""
    n, top = len(log_w), log_w.max()
    w = np.exp(log_w - top)
    ess = float(w.sum() ** 2 / (w * w).sum())
    rng = np.random.default_rng(0)
    resampled = [w[rng.integers(n, size=n)].mean() for _ in range(_BOOTSTRAPS)]
    means = np.maximum(resampled, np.finfo(float).tiny)
    tails = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    edges = sorted(log_z_base + sign * (top + np.log(tails)))
    if ess < 5:
        warnings.warn(
            f"the AIS weights are too wide to be trusted: {ess:.1f} of {n} chains count; use more "
            "temperatures (n_temperatures)",
            SamplerWarning,
            stacklevel=3,
        )
    value = log_z_base + sign * (top + np.log(w.mean()))
    return PartitionEstimate(float(value), (float(edges[0]), float(edges[1])), ess, kind, log_w)
