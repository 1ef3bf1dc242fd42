"""What a run of chains keeps: traces and running moments, so that nothing else is stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from energyscape.backend import Array, namespace


class Trace:
    """Keep every state that is shown, or a function of it.

    The result has shape (n_chains, n_kept, …), as `rhat`, `ess_bulk` and the rest take it.

    Parameters
    ----------
    function : callable, x of shape (n_chains, *event_shape) → (n_chains, …), optional
        E.g. ``target.energy``, or ``lambda x: x[:, :3]``; default: x itself.
    """

    def __init__(self, function: Callable[[Array], Array] | None = None) -> None:
        self.function = function

    def begin(self, x: Array, n: int) -> list[Array]:
        """Nothing kept yet."""
        if n < 1:
            raise ValueError("a Trace would keep nothing: n_steps is smaller than thin")
        return []

    def add(self, state: list[Array], x: Array) -> list[Array]:
        """Append a copy."""
        # A copy: a slice would keep all of x alive.
        state.append((x if self.function is None else self.function(x)).copy())
        return state

    def end(self, state: list[Array]) -> Array:
        """Draws on axis 1."""
        return namespace(state[0]).stack(state, axis=1)


class Moments:
    """Running mean and variance of x over all chains and the states shown, in float64.

    The result is a dict: ``mean`` and ``variance``, shape event_shape, and ``count``.
    """

    def begin(self, x: Array, n: int) -> dict[str, Any]:
        """Zero states seen."""
        zero = namespace(x).zeros(x.shape[1:], np.float64)
        return {"count": 0, "mean": zero, "squares": zero.copy()}

    def add(self, state: dict[str, Any], x: Array) -> dict[str, Any]:
        """Merge one batch (Chan, Golub, LeVeque, 1983)."""
        mean = x.mean(axis=0, dtype=np.float64)
        squares = ((x - mean) ** 2).sum(axis=0, dtype=np.float64)
        count = state["count"] + len(x)
        gap = mean - state["mean"]
        squares = state["squares"] + squares + gap * gap * (state["count"] * len(x) / count)
        return {
            "count": count,
            "mean": state["mean"] + gap * (len(x) / count),
            "squares": squares,
        }

    def end(self, state: dict[str, Any]) -> dict[str, Any]:
        """Mean, variance (n - 1 in the denominator) and count."""
        if state["count"] < 2:
            raise ValueError("a variance needs at least two states")
        variance = state["squares"] / (state["count"] - 1)
        return {"mean": state["mean"], "variance": variance, "count": state["count"]}
