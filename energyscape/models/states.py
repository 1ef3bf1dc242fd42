"""Sums over all states of a few binary units, in blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.errors import CapabilityError

# Summed over without being asked up to 2^20 states (seconds), on request up to 2^25 (minutes).
EXACT_UNITS = 20
ENUMERABLE_UNITS = 25
STATE_BLOCK = 1 << 14


def binary_states(index: Array, units: int, like: Array) -> Array:
    """Binary states by number, shape (len(index), units): bit j of the number is unit j."""
    bits = namespace(like).arange(units)
    return ((index[:, None] >> bits) & 1).astype(like.dtype)


def state_log_weights(
    log_weight: Callable[[Array], Array], units: int, like: Array, block: int = STATE_BLOCK
) -> Array:
    """``log_weight`` of every state of ``units`` bits, shape (2^units,), float64.

    Raises
    ------
    CapabilityError
        If there are more than 2^25.
    """
    if units > ENUMERABLE_UNITS:
        raise CapabilityError(
            f"exact log Z sums over 2^{units} states; that is done up to "
            f"2^{ENUMERABLE_UNITS}. Use log_likelihood_bounds, or AIS"
        )
    xp, like = namespace(like), like.astype(np.float64)
    log_w = xp.empty(1 << units, np.float64)
    for lo in range(0, 1 << units, block):
        index = xp.arange(lo, min(lo + block, 1 << units))
        log_w[lo : lo + len(index)] = log_weight(binary_states(index, units, like))
    return log_w


def log_sum_exp(log_w: Array) -> float:
    """log Σ exp(log_w)."""
    xp, top = namespace(log_w), log_w.max()
    return float(top + xp.log(xp.exp(log_w - top).sum()))


def draw_states(log_w: Array, n: int, rng: Any) -> Array:
    """Numbers of ``n`` states, drawn in proportion to exp(log_w)."""
    xp = namespace(log_w)
    cumulative = xp.cumsum(xp.exp(log_w - log_w.max()))
    cumulative /= cumulative[-1]
    index = xp.searchsorted(cumulative, rng.uniform(n, np.float64), side="right")
    return xp.minimum(index, len(log_w) - 1)
