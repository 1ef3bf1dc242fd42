"""What a fitted model is worth on held-out rows: each number with its sampling error.

    energy distance   2⟨|x - y|⟩ - ⟨|x - x'|⟩ - ⟨|y - y'|⟩ >= 0, and 0 only for equal distributions
                      (Székely and Rizzo, 2013), without bias
    AUC               P(F(other) > F(data)), its error by placements (DeLong et al., 1988)
    pseudo-likelihood ⟨log p(x_d | the other bits)⟩, in nats a bit
    score matching    ⟨½|∂F/∂x|² - v'Hv⟩ σ²/d, v of random signs: the score of Hyvärinen (2005)
    log-likelihood    -F - log Z, log Z exact or by annealed importance sampling

A `Measure` keeps the share of every row, so that two models are compared on the same rows: much of
what makes a row hard is the same for both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from energyscape.backend import Array, Purpose, on_device, stream, to_device, to_host
from energyscape.errors import CapabilityError
from energyscape.samplers import AIS, Bridge, StudentT
from energyscape.samplers.ais import exact_partition
from energyscape.trainers import PseudoLikelihood, SlicedScoreMatching
from energyscape.verbs import Params, obstacle, speaks

_STEP = 0.01  # of the differences of slopes, over the deviation of the features
_APART = 2.0  # standard errors from which on two values are told apart


@dataclass(frozen=True)
class Measure:
    """A number about a model, and how well it is known.

    Attributes
    ----------
    value : float
    parts : tuple of arrays
        What its error comes from: the variance of the value is Σ var(part)/len(part). Parts of two
        models that belong to the same rows are in the same order.
    below, above : float
        How much lower or higher it may be for other reasons: the interval of log Z.
    found : str
        How it was found, where that differs: "exact", "AIS", "exact, from below" ...
    """

    value: float
    parts: tuple[np.ndarray, ...]
    below: float = 0.0
    above: float = 0.0
    found: str = ""

    @property
    def finite(self) -> bool:
        """Whether it is a number for every row."""
        return bool(np.isfinite(self.value) and all(np.isfinite(p).all() for p in self.parts))

    @property
    def error(self) -> float:
        """Standard error of the value."""
        return _error(self.parts)

    def difference_error(self, other: Measure) -> float:
        """Standard error of the difference of two values on the same rows."""
        return _error(tuple(a - b for a, b in zip(self.parts, other.parts, strict=True)))

    def better(self, other: Measure, larger: bool) -> bool:
        """Whether this is better than ``other`` by more than two standard errors of the difference,
        wherever in its interval either may be."""
        one, two = (self, other) if larger else (other, self)
        margin = one.value - one.below - two.value - two.above
        return margin > _APART * self.difference_error(other)


def _error(parts: tuple[np.ndarray, ...]) -> float:
    return math.sqrt(sum(float(part.var(ddof=1)) / len(part) for part in parts))


def mean_of(values: np.ndarray, found: str = "") -> Measure:
    """The mean of one value a row."""
    return Measure(float(values.mean()), (values,), found=found)


def auc(high: np.ndarray, low: np.ndarray) -> float:
    """P(a value of ``high`` exceeds one of ``low``), ties counting half."""
    return float(_share_below(high, low).mean())


def _share_below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The share of ``others`` that each value exceeds, ties counting half."""
    others = np.sort(others)
    below = np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")
    return below / (2 * len(others))


def separation(energies: np.ndarray, others: np.ndarray) -> Measure:
    """AUC of rows of low energy against others of high energy.

    Parameters
    ----------
    energies : array, shape (n,)
        Of the data.
    others : array, shape (m,)

    References
    ----------
    DeLong, E., DeLong, D., Clarke-Pearson, D. (1988). Comparing the areas under two or more
    correlated receiver operating characteristic curves.
    """
    # What exceeds a row is what -F of the row exceeds.
    parts = _share_below(-energies, -others), _share_below(others, energies)
    return Measure(float(parts[0].mean()), parts)


def energy_distance(x: np.ndarray, y: np.ndarray) -> Measure:
    """Squared energy distance of two samples, in the units of the rows.

    The estimate is a U-statistic: without bias, so that it may come out below 0 where the two are
    alike. Its error is the jackknife's, which is on average too large rather than too small (Efron
    and Stein, 1981).

    Parameters
    ----------
    x, y : arrays, shape (n, d) and (m, d), of at least 3 rows

    References
    ----------
    Székely, G., Rizzo, M. (2013). Energy statistics: a class of statistics based on distances.
    """
    n, m = len(x), len(y)
    between, within_x, within_y = cdist(x, y), cdist(x, x), cdist(y, y)
    value = 2 * between.mean() - within_x.sum() / (n * (n - 1)) - within_y.sum() / (m * (m - 1))
    parts = (
        _pseudovalues(value, between.sum(axis=1), within_x, within_y.sum() / (m * (m - 1)), m),
        _pseudovalues(value, between.sum(axis=0), within_y, within_x.sum() / (n * (n - 1)), n),
    )
    return Measure(float(value), parts)


def _pseudovalues(
    value: float, between: np.ndarray, within: np.ndarray, other: float, m: int
) -> np.ndarray:
    """n value - (n - 1)(value without the row), for every row of a sample of n.

    ``between`` are a row's distances to the m rows of the other sample, summed; ``other`` is the
    mean distance in there.
    """
    n, own = len(between), within.sum(axis=1)
    left = 2 * (between.sum() - between) / ((n - 1) * m) - other
    left -= (own.sum() - 2 * own) / ((n - 1) * (n - 2))
    return n * value - (n - 1) * left


def pseudo_likelihood(model: Any, X: Any) -> Measure | None:
    """Mean of log p(x_d | the other bits), in nats a bit; None where flips do not give that.

    Parameters
    ----------
    model : fitted model of bits
    X : array of bits, shape (n, n_features)
    """
    if obstacle(model, PseudoLikelihood) is not None:
        return None

    def of_rows(params: Params, x: Array) -> Array:
        return model.forward(params, x).pseudo_log_likelihood() / x[0].size

    return mean_of(to_host(model._map(X, of_rows)))


def score_matching(model: Any, X: np.ndarray, v: np.ndarray, scale: float) -> Measure | None:
    """Mean of ½|∂F/∂x|² - v'Hv times ``scale``²/d, H the second derivatives; lower is better.

    A proper score of densities on reals that needs no log Z (Hyvärinen, 2005; Parry, Dawid and
    Lauritzen, 2012). It judges how F changes near the rows, and hardly how much each of two modes
    weighs that are far apart. Independent normals of deviation ``scale`` have -½ at rows of theirs.
    (The error of one step of denoising, which is proper as well, is so for the density of noisy
    rows; at noise that can be seen, the density of the rows themselves loses to blunter ones.)

    Parameters
    ----------
    model : fitted model of reals
    X : array, shape (n, ...)
    v : array of ±1, shape (k, n, ...)
        Directions of each row.
    scale : float
        Unit of length: that of the features, the same for all models.

    Returns
    -------
    Measure, or None where the energy is that of no density, or has kinks
    """
    if obstacle(model, SlicedScoreMatching) is not None:
        return None
    return sliced(lambda x: to_host(model._map(x, model.input_grad)), X, v, scale)


def sliced(slope: Callable[[np.ndarray], np.ndarray], X: Any, v: Any, scale: float) -> Measure:
    """The same from ∂F/∂x as a function of rows."""
    step, d = _STEP * scale, X[0].size

    def wide(x: np.ndarray) -> np.ndarray:
        return slope(x.astype(X.dtype)).reshape(len(X), -1).astype(np.float64)

    values = 0.5 * (wide(X) ** 2).sum(axis=1)
    for one in v:
        change = wide(X + step * one) - wide(X - step * one)
        values -= (change * one.reshape(len(X), -1)).sum(axis=1) / (2 * step * len(v))
    return mean_of(values * (scale**2 / d))


def log_likelihood(model: Any, X: Any, fitted_to: Any, ais: AIS, seed: int) -> Measure | None:
    """Mean log-likelihood of rows in nats; None where there is no log Z to be had.

    log Z is exact where `score_samples` has it exact; else by forward AIS from the model's base
    measure, or, of smooth energies of rows whose codes are not limited, from a Student t with the
    moments of the training rows. The interval reaches from what RAISE gives, or the bootstrap of
    log Z, down to up.

    Parameters
    ----------
    model : fitted model
    X : array, shape (n, n_features)
    fitted_to : array, shape (m, n_features)
        Rows of the training.
    ais : AIS
    seed : int
    """
    if model.has_density and speaks(model, ("log_partition|base_measure",)):
        return mean_of(to_host(model.score_samples(X)), "exact")  # a density beside the energy
    low = math.inf
    if model._sums_exactly(model._params):
        log_z = exact_partition(model.log_partition(model._params))
    elif model.has_density:
        bounds = model.log_likelihood_bounds(X, ais, seed)
        log_z, low = bounds.partition, bounds.low
    elif _annealed(model):
        log_z, low = _along_bridge(model, X, fitted_to, ais, seed)
    else:
        return None
    values = -to_host(model.energy(X)) - log_z.log_partition
    mean = float(values.mean())
    down, up = log_z.interval
    found = "exact" if log_z.kind == "exact" else "AIS"
    if not speaks(model, ("complete",)):  # the energy is a bound of the free energy
        found += ", from below"
    below = max(up - log_z.log_partition, mean - low, 0.0)
    return Measure(mean, (values,), below, log_z.log_partition - down, found)


def _annealed(model: Any) -> bool:
    """Whether exp(-F) is a density that HMC moves in: not where codes are found by inference, nor
    across kinks."""
    reals = model.domain == "real" and not speaks(model, ("input_grad",))
    return model.proper and model.smooth and not model.limited and reals


def _along_bridge(model: Any, X: Any, fitted_to: Any, ais: AIS, seed: int) -> tuple[Any, float]:
    """(log Z, mean log-likelihood by RAISE) of a model that has no base measure."""
    device, dtype = model._device, model._dtype
    with on_device(device):
        rows = to_device(fitted_to, device).astype(dtype, copy=False)
        target = model.target(model._params)
        if len(rows.shape) != 2 or target.event_shape != tuple(rows.shape[1:]):
            raise CapabilityError(
                f"log Z of {type(model).__name__} is not estimated: its points are no rows"
            )
        path = Bridge(StudentT.fit(rows), target)
        rng = stream(seed, Purpose.PARTITION, 1, device)
        plan = ais.plan(path, rng)
        up = ais.run(path, rng, path=plan)
        x = model._some_rows(X, ais.n_chains, seed)
        energies = to_host(target.energy(x))
        rng = stream(seed, Purpose.PARTITION, 2, device)
        log_p = ais.annealed_log_likelihood(path, x, rng, path=plan)
    control = float((log_p + energies).mean())  # as in log_likelihood_bounds
    return up, control - float(to_host(model.energy(X)).mean())


def accuracy(H: np.ndarray, H_test: np.ndarray, y: np.ndarray, y_test: np.ndarray) -> Measure:
    """Share of test rows that logistic regression on standardised features labels rightly.

    Parameters
    ----------
    H, H_test : arrays, shape (n, n_components) and (m, n_components)
    y, y_test : arrays of labels
    """
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, tol=1e-3))
    right = classifier.fit(H.astype(np.float64), y).predict(H_test.astype(np.float64)) == y_test
    return mean_of(right.astype(np.float64))
