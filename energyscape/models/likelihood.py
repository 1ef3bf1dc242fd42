"""Scores that compare between models: log-likelihood with exact or estimated log Z.

Neither -F nor a pseudo-likelihood will do as a score: both make a grid search pick the worst
learning rate, because they do not see what Z does.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sklearn.utils.validation import check_is_fitted

from energyscape.backend import Array, Purpose, draw_seed, on_device, stream, to_device, to_host
from energyscape.errors import UnnormalizedScoreWarning
from energyscape.models.states import EXACT_UNITS
from energyscape.samplers import AIS, PartitionEstimate
from energyscape.samplers.ais import exact_partition
from energyscape.verbs import Params, need, speaks


@dataclass(frozen=True)
class LikelihoodBounds:
    """Mean log-likelihood per row from both sides; unpacks as ``low, high``.

    Attributes
    ----------
    low, high : float
        In nats. Stochastic bounds: they hold in expectation over the chains.
    low_holds_for : {"model", "annealed model"}
        What ``low`` bounds: the model, where chains could start from exact draws of it, else (by
        RAISE) the density of the annealing path's last state, which tends to the model's as
        temperatures grow in number.
    partition : PartitionEstimate
        The forward estimate behind ``high``, with its effective sample size and interval.
    """

    low: float
    high: float
    low_holds_for: str
    partition: PartitionEstimate

    def __iter__(self) -> Iterator[float]:
        return iter((self.low, self.high))


class LikelihoodMixin:
    """``score_samples`` and its kin, for models that offer a base measure and enumeration."""

    @property
    def has_density(self: Any) -> bool:
        """Whether scores are log-likelihoods: log Z is known, or can be estimated."""
        return not speaks(self, ("log_partition|base_log_partition",))

    def score_samples(self: Any, X: Any) -> Any:
        """Log-likelihood of each row, -F(x) - log Z; -F(x), with a warning, where there is no Z.

        log Z is a formula, or exact up to 20 units on the smaller side (2^20 states), else
        estimated once after a fit by a short AIS whose seed is the model's: see
        ``log_partition_``, ``log_partition_interval_`` and ``log_partition_ess_`` for how far to
        trust it, and `log_likelihood_bounds` for both sides.

        Parameters
        ----------
        X : array, shape (n, n_features)

        Returns
        -------
        array, shape (n,), float64, in nats

        Warns
        -----
        UnnormalizedScoreWarning
            If log Z is not known, or there is none (codes, reconstruction errors), so that scores
            rank rows under one model and must not choose between models.
        """
        energy = self.energy(X)
        if not self.has_density:
            what = "log Z is not known" if self.proper else "the energy is that of no density"
            warnings.warn(
                f"{type(self).__name__}: {what}, so that scores are -F(x), which compare rows "
                "under one model, not models",
                UnnormalizedScoreWarning,
                stacklevel=2,
            )
            return -energy
        return -energy - self.log_partition_

    def score(self: Any, X: Any, y: Any = None) -> float:
        """Mean of `score_samples` over the rows, in nats."""
        return float(self.score_samples(X).mean())

    def __dir__(self: Any) -> list[str]:
        """What is listed leaves out log Z until it was asked for: a notebook that displays a
        model reads everything that is listed, and should not start an estimate."""
        names = [str(name) for name in object.__dir__(self)]
        if getattr(self, "_partition", None) is None:
            names = [name for name in names if not name.startswith("log_partition_")]
        return [name for name in names if hasattr(self, name)]  # as scikit-learn's own does

    @property
    def log_partition_(self: Any) -> float:
        """log Z: exact, or the kept estimate."""
        return self._partition_estimate().log_partition

    @property
    def log_partition_interval_(self: Any) -> tuple[float, float]:
        """95 % interval of ``log_partition_``; of no width where it is exact."""
        return self._partition_estimate().interval

    @property
    def log_partition_ess_(self: Any) -> float:
        """Effective sample size behind ``log_partition_``; infinite where it is exact."""
        return self._partition_estimate().ess

    def _partition_estimate(self: Any) -> PartitionEstimate:
        check_is_fitted(self)
        if not self.has_density:
            raise AttributeError(f"{type(self).__name__} has no log Z: its energy has no density")
        # By the step: a callback may ask in the middle of a run.
        if self._partition is None or self._partition[0] != self._state.step:
            self._settle()
            with on_device(self._device):
                self._partition = (self._state.step, self._estimate_partition())
        return self._partition[1]

    def _estimate_partition(self: Any) -> PartitionEstimate:
        params = self._params
        if self._sums_exactly(params):
            return exact_partition(self.log_partition(params))
        rng = stream(self.seed_, Purpose.PARTITION, 0, self._device)
        return AIS().run(self._path(params), rng)

    def _sums_exactly(self: Any, params: Params) -> bool:
        exact = not speaks(self, ("log_partition",))
        return exact and self.enumerable_units(params) <= EXACT_UNITS

    def _path(self: Any, params: Params) -> Any:
        need(self, ("base_measure", "base_log_partition"), "an estimate of log Z")
        base = self.base_measure(params)
        return self.target(params, base=base)

    def log_likelihood_bounds(
        self: Any, X: Any, ais: AIS | None = None, random_state: Any = None
    ) -> LikelihoodBounds:
        """Mean log-likelihood of ``X`` from both sides; changes nothing in the model.

        ``high`` is -F - log Ẑ with log Ẑ by forward AIS. ``low`` starts at the other end of the
        path: from exact draws where 2^20 states can be enumerated, else from rows of ``X`` (RAISE),
        at most ``ais.n_chains`` of them with the free energy as control variate. Chains never
        start from draws that are only nearly right.

        Parameters
        ----------
        X : array, shape (n, n_features)
        ais : AIS, optional
            Chains and temperatures; default ``AIS()``.
        random_state : int, RandomState, Generator or None
            None uses the model's own.

        Returns
        -------
        LikelihoodBounds
            Unpacks as ``low, high``, in nats per row.
        """
        check_is_fitted(self)
        ais = AIS() if ais is None else ais
        seed = self.seed_ if random_state is None else draw_seed(random_state)
        energy = self.energy(X)
        mean = float(energy.mean())
        with on_device(self._device):
            params = self._params
            path, verbose = self._path(params), bool(self.verbose)
            rng = stream(seed, Purpose.PARTITION, 1, self._device)
            plan = ais.plan(path, rng, verbose)
            up = ais.run(path, rng, verbose, plan)
            rng = stream(seed, Purpose.PARTITION, 2, self._device)
            if self._sums_exactly(params) and not speaks(self, ("sample_exact",)):
                draws = self.sample_exact(params, ais.n_chains, rng)
                log_z = ais.reverse(path, draws, rng, True, verbose, plan).log_partition
                return LikelihoodBounds(-mean - log_z, -mean - up.log_partition, "model", up)
            x = self._some_rows(X, ais.n_chains, seed)
            log_p = ais.annealed_log_likelihood(path, x, rng, 1, verbose, plan)
            control = float((log_p + to_host(path.energy(x))).mean())
        return LikelihoodBounds(control - mean, -mean - up.log_partition, "annealed model", up)

    def _some_rows(self: Any, X: Any, n: int, seed: int) -> Array:
        rows = self.read(X, reset=False)
        x = rows.sample(n, stream(seed, Purpose.PARTITION, 3))
        return to_device(x, self._device).astype(self._dtype, copy=False)
