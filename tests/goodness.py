"""How far draws are off a distribution that is known, at a stated rate of false alarms.

A truth is a row of `sampler_cases`: exact draws at every β, and the probabilities of all states
where there are few.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from scipy.stats import chi2, norm

ALARM = 1e-6  # false-alarm rate of every statistical test
SIGMAS = float(norm.isf(ALARM / 2))  # the same as a two-sided normal quantile: 4.9


def displacement(truth: Any, x: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Mean |x - start| of every coordinate that varies, over that of independent draws."""
    fresh = truth.draw(20_000, np.random.default_rng(10), 1.0)
    apart = abs(fresh[::2] - fresh[1::2]).mean(axis=0)
    return abs(x - start).mean(axis=0)[apart > 0] / apart[apart > 0]


_POOLED = 100_000


@functools.lru_cache(maxsize=1)
def _directions(d: int) -> np.ndarray:
    """Twenty random directions, and the axes."""
    return np.concatenate([np.eye(d), np.random.default_rng(8).standard_normal((20, d))])


def _statistics(truth: Any, x: np.ndarray, beta: float) -> np.ndarray:
    """Coordinates and random projections in units of their spread, and U: one sorted row each."""
    flat = (x / truth.spread).reshape(len(x), -1)
    projected = _directions(flat.shape[1]) @ flat.T
    energy = truth.target(len(x)).at(beta).energy(x)
    return np.sort(np.concatenate([projected, energy[None]]), axis=1)


@functools.lru_cache(maxsize=16)
def _reference(truth: Any, beta: float) -> np.ndarray:
    return _statistics(truth, truth.draw(_POOLED, np.random.default_rng(7), beta), beta)


def misfit(truth: Any, x: np.ndarray, beta: float = 1.0, checks: int = 1) -> float:
    """How unlikely ``x`` is under the truth at β: log p-value over that of an alarm, so that 1 is
    the threshold at a false-alarm rate of 1e-6 for a test that asks ``checks`` times.

    Bits: Pearson's χ² over all states, and over twenty classes of states of like energy. Reals:
    Kolmogorov and Smirnov's distance from fresh draws along axes and random directions and of U,
    and the mean of U (U sees a wrong temperature best). Bonferroni over all of them.
    """
    log_ps = (_binary_log_p if truth.log_p else _real_log_p)(truth, x, beta)
    return float(min(log_ps) / np.log(ALARM / (checks * len(log_ps))))


def _binary_log_p(truth: Any, x: np.ndarray, beta: float) -> list[float]:
    flat = x.reshape(len(x), -1)
    log_p = truth.log_p(beta)
    counts = np.bincount((flat @ (1 << np.arange(flat.shape[1]))).astype(int), minlength=len(log_p))
    if counts[np.isneginf(log_p)].any():
        return [-np.inf]
    possible = np.isfinite(log_p)
    p, counts = np.exp(log_p[possible]), counts[possible]
    order = np.argsort(p)
    classes = np.empty(len(p), int)
    classes[order] = np.minimum(20 * np.cumsum(p[order]), 19).astype(int)
    coarse = np.bincount(classes, counts), np.bincount(classes, p)
    return [_chi2_log_p(counts, p), _chi2_log_p(*coarse)]


def _chi2_log_p(counts: np.ndarray, p: np.ndarray) -> float:
    """Cells of fewer than five expected counts are pooled; with the rest if they are still few."""
    n = counts.sum()
    rare = n * p < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = n * np.append(p[~rare], p[rare].sum())
    if expected[-1] < 5:
        last = np.argmax(expected)
        observed[last] += observed[-1]
        expected[last] += expected[-1]
        observed, expected = observed[:-1], expected[:-1]
    return float(chi2.logsf(((observed - expected) ** 2 / expected).sum(), len(expected) - 1))


def _real_log_p(truth: Any, x: np.ndarray, beta: float) -> list[float]:
    mine, fresh = _statistics(truth, x, beta), _reference(truth, beta)
    n = len(x)
    size = n * _POOLED / (n + _POOLED)
    steps = np.arange(n + 1) / n
    log_ps = []
    for own, other in zip(mine, fresh, strict=True):
        below = np.searchsorted(other, own, side="left") / _POOLED
        up_to = np.searchsorted(other, own, side="right") / _POOLED
        # The largest gap is at one of our own points, from its left or at it; ties are one point.
        gap = max((steps[1:] - up_to).max(), (below - steps[:-1]).max())
        log_ps.append(min(0.0, np.log(2) - 2 * size * gap * gap))
    energy, known = mine[-1], fresh[-1]
    error = np.sqrt(energy.var() / n + known.var() / _POOLED)
    log_ps.append(float(np.log(2) + norm.logsf(abs(energy.mean() - known.mean()) / error)))
    return log_ps
