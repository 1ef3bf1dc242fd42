"""Losses of the energy at a row, p, and at points that should have more, q.

    energy              p                            keeps no margin, and so pulls nothing up
    perceptron          max(0, p - q)                m = 0
    hinge               max(0, m + p - q)            m
    log                 log(1 + e^(p - q))           some m > 0
    LVQ2                min(M, max(0, p - q))        m = 0
    MCE                 σ(p - q)                     some m > 0
    square-square       p² + max(0, m - q)²          m, where energies are not negative
    square-exponential  p² + γ e^-q                  some m > 0, where energies are not negative
    NLL                 p + (1/β) log Σ e^-βE        some m > 0; sum over the row and all q
    MEE                 1 - e^-βp / Σ e^-βE          some m > 0

A loss keeps the margin m if some pair with p + m < q costs less than all pairs without it (LeCun et
al., 2006, condition 2): then to lower it pulls the two apart. Of these only the log, with points
that are symmetric disturbances of the rows, and NLL, with a model's own samples, estimate a density
(Gutmann and Hyvärinen, 2012); all others shape an energy, whose scale they leave open or fix by m.

References
----------
LeCun, Y., Chopra, S., Hadsell, R., Ranzato, M., Huang, F. (2006). A tutorial on energy-based
learning. Tables 1 and 2; the square-square loss has a plus there, as here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

from sklearn.base import BaseEstimator

from energyscape.backend import Array, namespace
from energyscape.kernels import sigmoid
from energyscape.registry import register

__all__ = [
    "LVQ2",
    "MCE",
    "MEE",
    "NLL",
    "Energy",
    "Hinge",
    "Log",
    "Perceptron",
    "SquareExponential",
    "SquareSquare",
]

POOLINGS = ("sum", "worst", "softmax")


class Loss(BaseEstimator):
    """What all share. Energies are float64; p has shape (n,), q (k, n)."""

    # Whether energies below 0 would turn it round.
    needs_nonnegative: ClassVar[bool] = False

    def validate(self) -> None:
        """Raise ValueError for settings that cannot be."""

    def margins(self, x: Array, negatives: Array) -> Any:
        """What q is to exceed p by: a number, or one for each point, (k, n)."""
        return 0.0

    def evaluate(self, p: Array, q: Array, pooling: str) -> tuple[Array, Array, Array]:
        """Loss of every row, (n,), and its slopes in p, (n,), and in q, (k, n).

        Parameters
        ----------
        p : array, shape (n,), float64
        q : array, shape (k, n), float64
            Less the margins.
        pooling : {"sum", "worst", "softmax"}
            Add up the losses of all k; take the one with the least q; or take a soft minimum of q.
        """
        raise NotImplementedError


class PairLoss(Loss):
    """A loss of one p and one q, element by element."""

    def value(self, p: Array, q: Array) -> Array:
        """Loss of every pair."""
        raise NotImplementedError

    def slopes(self, p: Array, q: Array) -> tuple[Array, Array]:
        """Its partial derivatives in p and in q."""
        raise NotImplementedError

    def evaluate(self, p: Array, q: Array, pooling: str) -> tuple[Array, Array, Array]:
        xp = namespace(p)
        if pooling == "sum":
            p = xp.broadcast_to(p, q.shape)
            at_p, at_q = self.slopes(p, q)
            return self.value(p, q).sum(axis=0), at_p.sum(axis=0), at_q
        least = q.min(axis=0)
        if pooling == "worst":
            share = xp.arange(len(q))[:, None] == xp.argmin(q, axis=0)
            pooled = least
        else:
            share = xp.exp(least - q)
            total = share.sum(axis=0)
            share /= total
            pooled = least - xp.log(total / len(q))
        at_p, at_q = self.slopes(p, pooled)
        return self.value(p, pooled), at_p, at_q * share


class _Difference(PairLoss):
    """A loss of p - q."""

    def of(self, d: Array) -> Array:
        """Loss."""
        raise NotImplementedError

    def slope(self, d: Array) -> Array:
        """Its derivative."""
        raise NotImplementedError

    def value(self, p: Array, q: Array) -> Array:
        return self.of(p - q)

    def slopes(self, p: Array, q: Array) -> tuple[Array, Array]:
        slope = self.slope(p - q)
        return slope, -slope


class _WithMargin(PairLoss):
    """A loss that says the margin.

    Parameters
    ----------
    margin : float > 0 or callable, default 1
        In the units of energies. A callable gets the rows, (n, ...), and the points, (k, n, ...),
        and says one for each, (k, n).
    """

    def __init__(self, margin: float | Callable[[Array, Array], Array] = 1.0) -> None:
        self.margin = margin

    def validate(self) -> None:
        if not callable(self.margin) and not 0 < self.margin < math.inf:
            raise ValueError(
                f"{type(self).__name__}.margin must be > 0 or callable, got {self.margin!r}"
            )

    def margins(self, x: Array, negatives: Array) -> Any:
        return self.margin(x, negatives) if callable(self.margin) else self.margin


@register
class Energy(PairLoss):
    """p: pushes down on the data alone, so that the energy collapses unless its low volume is
    bounded."""

    def value(self, p: Array, q: Array) -> Array:
        return p + 0 * q

    def slopes(self, p: Array, q: Array) -> tuple[Array, Array]:
        xp = namespace(p)
        return xp.ones_like(p), xp.zeros_like(q)


@register
class Perceptron(_Difference):
    """max(0, p - q) (LeCun et al., 1998): content when energies are equal, and so keeps no
    margin."""

    def of(self, d: Array) -> Array:
        return namespace(d).maximum(d, 0)

    def slope(self, d: Array) -> Array:
        return (d > 0).astype(d.dtype)


@register
class Hinge(_Difference, _WithMargin):
    """max(0, m + p - q) (Altun, Johnson, Hofmann, 2003).

    Parameters
    ----------
    margin : float > 0 or callable, default 1
        m, in the units of energies. A callable gets the rows, (n, ...), and the points,
        (k, n, ...), and says one for each, (k, n).
    """

    def of(self, d: Array) -> Array:
        return namespace(d).maximum(d, 0)

    def slope(self, d: Array) -> Array:
        return (d > 0).astype(d.dtype)


@register
class Log(_Difference):
    """log(1 + e^(p - q)): a hinge with an infinite, soft margin; of symmetric disturbances it is
    conditional noise-contrastive estimation."""

    def of(self, d: Array) -> Array:
        return namespace(d).logaddexp(0.0, d)

    def slope(self, d: Array) -> Array:
        return sigmoid(d)


@register
class LVQ2(_Difference):
    """min(M, max(0, p - q)) (Driancourt, Bottou, Gallinari, 1991): hopeless rows do not pull.

    Parameters
    ----------
    ceiling : float > 0, default 1
        M, the most that a row costs.
    """

    def __init__(self, ceiling: float = 1.0) -> None:
        self.ceiling = ceiling

    def validate(self) -> None:
        if not 0 < self.ceiling < math.inf:
            raise ValueError(f"LVQ2.ceiling must be > 0, got {self.ceiling!r}")

    def of(self, d: Array) -> Array:
        return namespace(d).clip(d, 0, self.ceiling)

    def slope(self, d: Array) -> Array:
        return ((d > 0) & (d < self.ceiling)).astype(d.dtype)


@register
class MCE(_Difference):
    """σ(p - q), minimum classification error (Juang, Hou, Lee, 1997): a soft count of errors."""

    def of(self, d: Array) -> Array:
        return sigmoid(d)

    def slope(self, d: Array) -> Array:
        on = sigmoid(d)
        return on * (1 - on)


@register
class SquareSquare(_WithMargin):
    """p² + max(0, m - q)² (LeCun and Huang, 2005), for energies that are not negative.

    Parameters
    ----------
    margin : float > 0 or callable, default 1
        As for `Hinge`.
    """

    needs_nonnegative = True

    def value(self, p: Array, q: Array) -> Array:
        return p * p + namespace(q).minimum(q, 0) ** 2

    def slopes(self, p: Array, q: Array) -> tuple[Array, Array]:
        return 2 * p, 2 * namespace(q).minimum(q, 0)


@register
class SquareExponential(PairLoss):
    """p² + γ e^-q (Osadchy, Miller, LeCun, 2005), for energies that are not negative.

    Parameters
    ----------
    weight : float > 0, default 1
        γ.
    """

    needs_nonnegative = True

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def validate(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"SquareExponential.weight must be > 0, got {self.weight!r}")

    def value(self, p: Array, q: Array) -> Array:
        return p * p + self.weight * namespace(q).exp(-q)

    def slopes(self, p: Array, q: Array) -> tuple[Array, Array]:
        return 2 * p, -self.weight * namespace(q).exp(-q)


class _SetLoss(Loss):
    """A loss of the row's share of e^-βE among itself and all its points, whatever the pooling.

    Parameters
    ----------
    beta : float > 0, default 1
        Inverse temperature β.
    """

    def __init__(self, beta: float = 1.0) -> None:
        self.beta = beta

    def validate(self) -> None:
        if not 0 < self.beta < math.inf:
            raise ValueError(f"{type(self).__name__}.beta must be > 0, got {self.beta!r}")

    def shares(self, p: Array, q: Array) -> tuple[Array, Array, Array]:
        """-log of the row's share, (n,), that share, and those of the points, (k, n)."""
        xp, beta = namespace(p), self.beta
        least = xp.minimum(p, q.min(axis=0))
        own, others = xp.exp(beta * (least - p)), xp.exp(beta * (least - q))
        total = own + others.sum(axis=0)
        return beta * (p - least) + xp.log(total), own / total, others / total


@register
class NLL(_SetLoss):
    """p + (1/β) log (e^-βp + Σ_k e^-βq_k): the negative log-likelihood of the row in the set.

    Parameters
    ----------
    beta : float > 0, default 1
        Inverse temperature β.
    """

    def evaluate(self, p: Array, q: Array, pooling: str) -> tuple[Array, Array, Array]:
        loss, own, others = self.shares(p, q)
        return loss / self.beta, 1 - own, -others


@register
class MEE(_SetLoss):
    """1 - e^-βp/(e^-βp + Σ_k e^-βq_k), minimum empirical error: the chance to choose another.

    Parameters
    ----------
    beta : float > 0, default 1
        Inverse temperature β.
    """

    def evaluate(self, p: Array, q: Array, pooling: str) -> tuple[Array, Array, Array]:
        _, own, others = self.shares(p, q)
        return 1 - own, self.beta * own * (1 - own), -self.beta * own * others
