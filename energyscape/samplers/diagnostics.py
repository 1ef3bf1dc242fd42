"""Have the chains mixed, and how many independent draws are theirs worth?

Rank-normalised split R̂, bulk and tail ESS and Monte Carlo errors (Vehtari, Gelman, Simpson,
Carpenter, Bürkner, 2021), nested R̂ for many short chains (Margossian, Hoffman, Sountsov,
Riou-Durand, Vehtari, Gelman, 2024), Geyer's (1992) initial monotone positive sequence.
Draws are (n_chains, n_draws, *event). Every quantity of the event is measured at once, in blocks
that bound the memory, in float64 and where the draws are: on a GPU nothing comes to the host.
The chains are split into halves everywhere; of an odd number of draws the middle one is left out.

Draws with fewer than two axes, four draws or one quantity, or that are not real, raise ValueError.
A quantity with NaN or infinity among its draws has NaN for every diagnostic. One that never moves
has ESS 0, infinite Monte Carlo error, and R̂ = ∞ if the chains are stuck at different values, else
NaN: nothing tells whether there is more than that value. (In the middle draw that is left out it
may have moved.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from scipy.fft import next_fast_len
from scipy.special import ndtri

from energyscape.backend import Array, namespace

__all__ = [
    "autocorrelation",
    "ess_bulk",
    "ess_mean",
    "ess_tail",
    "mcse_mean",
    "mcse_sd",
    "rhat",
    "rhat_nested",
    "summary",
]

_SUMMARY = "mean", "sd", "mcse_mean", "rhat", "ess_bulk", "ess_tail"
_TAILS = 0.05, 0.95
_BLOCK = 1 << 22  # numbers per block: 32 MB, times about ten while it is worked on
_ZERO = 1e-12  # a sum of autocorrelations; those of counts may be 0 but for rounding


# ---------------------------------------------------------------- public


def rhat(draws: Array) -> Array:
    """Rank-normalised split R̂: the larger of that of the draws and that of the folded draws.

    1 if the chains agree in location and in scale; above 1.01 they have not mixed.

    Parameters
    ----------
    draws : array, shape (n_chains, n_draws, *event), real
        At least 4 draws.

    Returns
    -------
    array, shape event, float64
        NaN for a single chain: its halves cannot tell whether another start would agree.

    References
    ----------
    Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021).
    """
    return _each(draws, lambda x: _rhat(_halves(x), None))


def rhat_nested(draws: Array, superchains: int) -> Array:
    """Rank-normalised split nested R̂, for many chains that are too short for `rhat`.

    Parameters
    ----------
    draws : array, shape (n_chains, n_draws, *event), real
        Chains of a superchain stand next to each other, and should have the same start.
    superchains : int
        Number of superchains, at least 2 and a divisor of n_chains.

    Returns
    -------
    array, shape event, float64

    Raises
    ------
    ValueError
        If ``superchains`` does not divide the chains.

    References
    ----------
    Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari, Gelman (2024), equations 4 to 8.
    """
    draws = _checked(draws)
    _check_superchains(superchains, len(draws))
    return _each(draws, lambda x: _rhat(_halves(x), superchains))


def ess_bulk(draws: Array) -> Array:
    """Effective sample size of the rank-normalised draws: how well the centre is known.

    It exists also where the draws have no mean (Vehtari et al., 2021).

    Parameters
    ----------
    draws : array, shape (n_chains, n_draws, *event), real
        At least 4 draws.

    Returns
    -------
    array, shape event, float64
        In draws; may exceed n_chains · n_draws where draws are anticorrelated.
    """
    return _each(draws, lambda x: _ess_bulk(_halves(x)))


def ess_tail(draws: Array) -> Array:
    """The smaller effective sample size of the 5 % and the 95 % quantile (Vehtari et al., 2021).

    A quantile at the largest value has no draws above it and is left out (as n_chains · n_draws);
    if both are there, the lower one is measured by the draws below that value.

    Parameters
    ----------
    draws : array, shape (n_chains, n_draws, *event), real
        At least 4 draws.

    Returns
    -------
    array, shape event, float64
        In draws.
    """
    return _each(draws, _ess_tail)


def ess_mean(draws: Array) -> Array:
    """Effective sample size of the draws as they are, for the error of their mean.

    Gelman, Carlin, Stern, Dunson, Vehtari, Rubin (2013), section 11.5.

    Parameters
    ----------
    draws : array, shape (n_chains, n_draws, *event), real
        At least 4 draws, of finite variance.

    Returns
    -------
    array, shape event, float64
        In draws.
    """
    return _each(draws, _ess_mean)


def mcse_mean(draws: Array) -> Array:
    """Monte Carlo standard error of the mean, sd / √`ess_mean`.

    Parameters
    ----------
    draws : array, shape (n_chains, n_draws, *event), real
        At least 4 draws, of finite variance.

    Returns
    -------
    array, shape event, float64
        In units of the draws.
    """
    return _each(draws, lambda x: _error(_moments(x)[1], _ess_mean(x)))


def mcse_sd(draws: Array) -> Array:
    """Monte Carlo standard error of the standard deviation, from the fourth moment.

    Parameters
    ----------
    draws : array, shape (n_chains, n_draws, *event), real
        At least 4 draws, of finite fourth moment.

    Returns
    -------
    array, shape event, float64
        In units of the draws.
    """
    return _each(draws, _mcse_sd)


def autocorrelation(draws: Array, max_lag: int) -> Array:
    """Autocorrelation of each chain at lags 0 … max_lag, about the chain's own mean.

    Parameters
    ----------
    draws : array, shape (n_chains, n_draws, *event), real
        At least 4 draws.
    max_lag : int
        Below n_draws.

    Returns
    -------
    array, shape (n_chains, max_lag + 1, *event), float64
        Sums over n_draws - lag products, divided by that at lag 0; NaN for chains that stand still.

    Raises
    ------
    ValueError
        If ``max_lag`` is not below n_draws.
    """
    draws = _checked(draws)
    if not 0 <= max_lag < draws.shape[1]:
        raise ValueError(
            f"max_lag must be at least 0 and below the {draws.shape[1]} draws, got {max_lag!r}"
        )
    return _each(draws, lambda x: _autocorrelation(x, max_lag))


def summary(draws: Array, superchains: int | None = None) -> dict[str, Array]:
    """Everything about each quantity, with what is common computed once.

    Parameters
    ----------
    draws : array, shape (n_chains, n_draws, *event), real
        At least 4 draws.
    superchains : int, optional
        If given, ``rhat`` is `rhat_nested`.

    Returns
    -------
    dict of str to array, each of shape event, float64
        "mean", "sd", "mcse_mean", "rhat", "ess_bulk", "ess_tail".
    """
    draws = _checked(draws)
    if superchains is not None:
        _check_superchains(superchains, len(draws))
    return dict(zip(_SUMMARY, _each(draws, lambda x: _summary(x, superchains)), strict=True))


# ---------------------------------------------------------------- blocks of quantities


def _checked(draws: Array) -> Array:
    draws = namespace(draws).asarray(draws)
    if draws.ndim < 2 or draws.shape[1] < 4 or 0 in draws.shape:
        raise ValueError(
            "draws of shape (n_chains, n_draws, *event) with at least 4 draws of one quantity are "
            f"wanted, got shape {draws.shape}"
        )
    if draws.dtype.kind not in "biuf":
        raise ValueError(f"draws must be real numbers, got dtype {draws.dtype}")
    return draws


def _check_superchains(superchains: int, n_chains: int) -> None:
    if superchains < 2 or n_chains % superchains:
        raise ValueError(
            f"superchains must be at least 2 and divide the {n_chains} chains, got {superchains!r}"
        )


def _each(draws: Array, measure: Callable[[Array], Array]) -> Array:
    """``measure`` of every quantity; it takes (d, n_chains, n_draws) and returns (…, d)."""
    draws = _checked(draws)
    xp = namespace(draws)
    n_chains, n_draws, *event = draws.shape
    flat = draws.reshape(n_chains, n_draws, -1)
    width = max(1, _BLOCK // (n_chains * n_draws))
    found = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for start in range(0, flat.shape[2], width):
            block = xp.moveaxis(flat[:, :, start : start + width], 2, 0)
            x = xp.ascontiguousarray(block, dtype=np.float64)
            finite = xp.isfinite(x).all(axis=2).all(axis=1)
            found.append(xp.where(finite, measure(x), np.nan))
    result = xp.concatenate(found, axis=-1)
    return result.reshape((*result.shape[:-1], *event))[()]


def _halves(x: Array) -> Array:
    """(d, 2·n_chains, n_draws // 2); the halves of a chain stand next to each other."""
    d, n_chains, n_draws = x.shape
    half = n_draws // 2
    if n_draws % 2:
        x = namespace(x).concatenate([x[:, :, :half], x[:, :, -half:]], axis=2)
    return x.reshape(d, 2 * n_chains, half)


def _frozen(halves: Array) -> Array:
    """(d,): whether no chain moves. Exact, as variances of equal numbers are not."""
    d, m, half = halves.shape
    chains = halves.reshape(d, m // 2, 2 * half)
    return (chains == chains[:, :, :1]).all(axis=2).all(axis=1)


def _constant(x: Array) -> Array:
    """(d,): whether all draws of all chains are the same."""
    return (x == x[:, :1, :1]).all(axis=2).all(axis=1)


# ---------------------------------------------------------------- measures of a block


def _summary(x: Array, superchains: int | None) -> Array:
    halves = _halves(x)
    scores = _normal_scores(halves)
    mean, sd = _moments(x)
    found = [
        mean,
        sd,
        _error(sd, _ess_mean(x)),
        _rhat(halves, superchains, scores),
        _ess_bulk(halves, scores),
        _ess_tail(x),
    ]
    return namespace(x).stack(found)


def _moments(x: Array) -> tuple[Array, Array]:
    """Mean and standard deviation over all draws, the latter exactly 0 of equal draws."""
    xp = namespace(x)
    sd = xp.sqrt(x.reshape(len(x), -1).var(axis=1, ddof=1))
    return x.mean(axis=(1, 2)), xp.where(_constant(x), 0.0, sd)


def _normal_scores(x: Array) -> Array:
    """Normal quantiles of the average ranks within each quantity, in the shape of ``x``.

    Blom's (1958) (r - 3/8)/(n + 1/4). Equal values are groups in the sorted order; the average
    rank of a group is that of its ends.
    """
    xp = namespace(x)
    d, n = len(x), math.prod(x.shape[1:])
    row = (xp.arange(d) * n)[:, None]
    order = (x.reshape(d, n).argsort(axis=1) + row).reshape(-1)
    ordered = x.reshape(-1)[order].reshape(d, n)
    opens = xp.ones((d, n), dtype=bool)
    opens[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    opens = opens.reshape(-1)
    group = xp.cumsum(opens, dtype=np.int64)
    # Where each group begins. All that opens no group is written to place 0, which nobody reads:
    # unlike a mask, this has a size that is known beforehand, and no two writes that matter meet.
    begin = xp.full(d * n + 2, d * n, dtype=np.int64)
    begin[xp.where(opens, group, 0)] = xp.arange(d * n)
    twice = (begin[group] + begin[group + 1]).reshape(d, n) - 2 * row  # 2 · rank - 1
    scores = xp.empty(d * n, dtype=np.float64)
    scores[order] = xp.asarray(_score_table(n))[twice.reshape(-1) - 1]
    return scores.reshape(x.shape)


@functools.lru_cache(maxsize=1)
def _score_table(n: int) -> np.ndarray:
    """Normal scores of the ranks 1, 3/2, 2 … n: averages of ranks are halves of whole numbers.

    There are so few that the quantile function is evaluated on the host and looked up elsewhere.
    """
    table = ndtri((np.arange(2, 2 * n + 1) / 2 - 3 / 8) / (n + 1 / 4))
    table.flags.writeable = False
    return table


def _rhat(halves: Array, superchains: int | None, scores: Array | None = None) -> Array:
    xp = namespace(halves)
    d, m, half = halves.shape
    if m == 2:
        return xp.full(d, np.nan)
    ordered = xp.sort(halves.reshape(d, -1), axis=1)
    middle = m * half // 2
    median = (ordered[:, middle - 1] + ordered[:, middle]) / 2
    folded = _normal_scores(abs(halves - median[:, None, None]))
    bulk = _shrinkage(_normal_scores(halves) if scores is None else scores, superchains)
    tail = _shrinkage(folded, superchains)
    # Not the maximum: of two values that are as frequent, the folded draws are all the same, and
    # their NaN says nothing.
    larger = xp.where(tail > bulk, tail, bulk)
    # Chains that never left their starts would look like wide superchains.
    return xp.where(_frozen(halves) & ~_constant(halves), np.inf, larger)


def _shrinkage(z: Array, superchains: int | None) -> Array:
    """√(variance of the whole / within the chains): how far the scale may still shrink."""
    xp = namespace(z)
    d, _, half = z.shape
    mean, variance = z.mean(axis=2), z.var(axis=2, ddof=1)
    still = (z == z[:, :, :1]).all(axis=2)
    variance = xp.where(still, 0.0, variance)
    if superchains is None:
        between, within, rest = mean.var(axis=1, ddof=1), variance.mean(axis=1), (half - 1) / half
    else:
        groups = mean.reshape(d, superchains, -1)
        between = groups.mean(axis=2).var(axis=1, ddof=1)
        within = groups.var(axis=2, ddof=1).mean(axis=1) + variance.mean(axis=1)
        rest = 1.0
    return xp.sqrt(between / within + rest)  # draws all the same score exactly 0: NaN


def _ess_bulk(halves: Array, scores: Array | None = None) -> Array:
    ess = _ess(_normal_scores(halves) if scores is None else scores)
    return namespace(halves).where(_frozen(halves), 0.0, ess)


def _ess_mean(x: Array) -> Array:
    halves = _halves(x)
    return namespace(x).where(_frozen(halves), 0.0, _ess(halves))


def _ess_tail(x: Array) -> Array:
    xp = namespace(x)
    ordered = xp.sort(x.reshape(len(x), -1), axis=1)
    # The draw below the quantile: none lies between it and a value that is interpolated.
    last = ordered.shape[1] - 1
    low, high = (ordered[:, math.floor(last * p)][:, None, None] for p in _TAILS)
    halves = _halves(x)
    # "Up to the largest value" is true of every draw and would pass for a perfect one.
    lower = xp.where(low == ordered[:, last][:, None, None], halves < low, halves <= low)
    ess = xp.minimum(_ess(lower.astype(np.float64)), _ess((halves <= high).astype(np.float64)))
    return xp.where(_frozen(halves), 0.0, ess)


def _error(sd: Array, ess: Array) -> Array:
    xp = namespace(sd)
    return xp.where(ess > 0, sd / xp.sqrt(ess), np.inf)


def _mcse_sd(x: Array) -> Array:
    """Kenney and Keeping (1951, p. 141): var(s²) from the fourth moment, then the delta method."""
    xp = namespace(x)
    ess = _ess_mean(x)
    square = (x - x.mean(axis=(1, 2))[:, None, None]) ** 2
    variance = square.mean(axis=(1, 2))
    spread = xp.maximum((square**2).mean(axis=(1, 2)) - variance**2, 0.0)  # or rounds below 0
    return xp.where(ess > 0, xp.sqrt(spread / ess / variance / 4), np.inf)


def _autocovariance(x: Array, pooled: bool) -> Array:
    """Biased (over n, not n - lag) autocovariance of (d, m, n); its mean over m if ``pooled``."""
    xp = namespace(x)
    n = x.shape[2]
    size = next_fast_len(2 * n, real=True)
    wave = xp.fft.rfft(x - x.mean(axis=2)[:, :, None], n=size, axis=2)
    power = xp.real(wave) ** 2 + xp.imag(wave) ** 2
    if pooled:  # the transform is linear: one inverse for all chains
        power = power.mean(axis=1)
    return xp.fft.irfft(power, n=size, axis=power.ndim - 1)[..., :n] / n


def _autocorrelation(x: Array, max_lag: int) -> Array:
    xp = namespace(x)
    acov = _autocovariance(x, pooled=False)[:, :, : max_lag + 1]
    still = (x == x[:, :, :1]).all(axis=2)[:, :, None]
    return xp.moveaxis(xp.where(still, np.nan, acov / acov[:, :, :1]), 0, 2)


def _ess(x: Array) -> Array:
    """ESS of (d, m, n) chains; m·n for quantities whose draws are all the same."""
    xp = namespace(x)
    _, m, n = x.shape
    acov = _autocovariance(x, pooled=True)
    within = acov[:, 0] * (n / (n - 1))
    whole = acov[:, 0] + x.mean(axis=2).var(axis=1, ddof=1)
    rho = 1 - (within[:, None] - acov) / whole[:, None]
    rho[:, 0] = 1
    tau = xp.maximum(_geyer(rho), 1 / math.log10(m * n))
    return xp.where(_constant(x), float(m * n), m * n / tau)


def _geyer(rho: Array) -> Array:
    """Autocorrelation time by Geyer's initial monotone positive sequence, shape (d,).

    Sums of neighbours ρ(2k) + ρ(2k+1) of a reversible chain are positive and fall; what comes
    after the first that is not positive is noise, and one above its predecessor is cut to it. Of
    the first pair left out the even lag still counts, once (Vehtari et al., 2021).
    """
    xp = namespace(rho)
    d, n = rho.shape
    last = max(0, (n - 3) // 2)
    pairs = rho[:, : 2 * last + 2].reshape(d, last + 1, 2).sum(axis=2)
    kept = xp.cumsum((pairs <= _ZERO).astype(np.int64), axis=1)[:, :last] == 0
    end = kept.astype(np.int64).sum(axis=1)
    row = xp.arange(d)
    even = rho[row, 2 * end]
    even = xp.where((even > 0) | (pairs[row, end] >= -_ZERO), even, 0.0)
    lowest, step = pairs[:, :last], 1
    while step < last:  # running minimum by doubling: CuPy has no minimum.accumulate
        lowest = xp.concatenate(
            [lowest[:, :step], xp.minimum(lowest[:, step:], lowest[:, :-step])], axis=1
        )
        step *= 2
    return 2 * xp.where(kept, lowest, 0.0).sum(axis=1) + even - 1
