"""Random changes of a batch of rows, drawn afresh each time from a stream of their own."""

from __future__ import annotations

from typing import Any

from sklearn.base import BaseEstimator

from energyscape.backend import Array
from energyscape.registry import register

__all__ = ["Binarize"]


@register
class Binarize(BaseEstimator):
    """0 or 1 with the row's value as the probability of a 1 (stochastic binarisation).

    As a trainer's ``batch_transform`` every epoch sees new bits, so that grey values in [0, 1] are
    learned as probabilities (Salakhutdinov and Murray, 2008). Likelihoods of rows binarised this
    way and by a threshold do not compare.
    """

    def __call__(self, x: Array, rng: Any) -> Array:
        """Bits of the shape and dtype of ``x``, whose values lie in [0, 1]."""
        return rng.bernoulli(x)
