"""Score matching in closed form, for energies of one layer of filters.

    F(x) = Σ_i q_i (x_i - b_i)²/2 + Σ_k φ_k(u_k),    u = xA + c,    g = ∂F/∂x
    ½|g|² - ΔF = ½|g|² - Σ_i q_i - Σ_k φ_k''(u_k) |A_k|²

(Hyvärinen, 2005; Köster and Hyvärinen, 2007). GaussianRBM: φ = -softplus; products of Student's t:
φ = γ log(1 + u²/2); OvercompleteICA: φ = a log cosh. Five products, and nothing is sampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from energyscape.backend import Array


@dataclass
class Slopes:
    """φ', φ'' and φ''' of every filter at every row, each (n, k)."""

    first: Array
    second: Array
    third: Array


@dataclass
class Matched:
    """What one evaluation gives.

    Attributes
    ----------
    values : array, shape (n,), float64
        Of each row, but for -Σ_i q_i, which belongs to no filter.
    of_filters : array, shape (d, k)
        Gradient of the weighted sum in A.
    of_fields : array, shape (n, k)
        The same in u, row by row.
    along : array, shape (n, k)
        gA, and with ``norms`` what a parameter θ of φ needs: Σ_n w (∂φ'/∂θ gA - ∂φ''/∂θ |A|²).
    norms : array, shape (k,)
        |A_k|².
    """

    values: Array
    of_filters: Array
    of_fields: Array
    along: Array
    norms: Array


def matched(x: Array, g: Array, A: Array, slopes: Slopes, weights: Array) -> Matched:
    """Score matching of the filters.

    Parameters
    ----------
    x, g : arrays, shape (n, d)
        Rows as the filters see them, and ∂F/∂x.
    A : array, shape (d, k)
    slopes : Slopes
    weights : array, shape (n,)
        Of each row; signed.
    """
    norms, along, w = (A * A).sum(axis=0), g @ A, weights[:, None]
    values = 0.5 * (g * g).sum(axis=1, dtype=np.float64)
    values -= slopes.second.astype(np.float64) @ norms.astype(np.float64)
    of_fields = (slopes.second * along - slopes.third * norms) * w
    of_filters = x.T @ of_fields + g.T @ (slopes.first * w)
    of_filters -= 2 * A * (weights @ slopes.second)
    return Matched(values, of_filters, of_fields, along, norms)


@dataclass
class Curved:
    """The squared curvature Σ_i (∂²F/∂x_i²)², and what it comes from.

    Attributes
    ----------
    values : array, shape (n,), float64
    of_filters : array, shape (d, k)
    of_fields : array, shape (n, k)
    twice : array, shape (n, d)
        2 w ∂²F/∂x_i², which is the gradient in q, row by row.
    seen : array, shape (n, k)
        Σ_i of those A_ik²: what a parameter θ of φ needs is Σ_n ∂φ''/∂θ times it.
    """

    values: Array
    of_filters: Array
    of_fields: Array
    twice: Array
    seen: Array


def curved(x: Array, q: Array, A: Array, slopes: Slopes, weights: Array) -> Curved:
    """The penalty of regularised score matching (Kingma and LeCun, 2010, equation 5).

    Parameters
    ----------
    x : array, shape (n, d)
    q : array, shape (d,)
    A : array, shape (d, k)
    slopes : Slopes
    weights : array, shape (n,)
    """
    squares = A * A
    curvature = slopes.second @ squares.T
    curvature += q
    values = (curvature * curvature).sum(axis=1, dtype=np.float64)
    twice = curvature * (2 * weights[:, None])
    seen = twice @ squares
    of_fields = seen * slopes.third
    of_filters = x.T @ of_fields + 2 * A * (twice.T @ slopes.second)
    return Curved(values, of_filters, of_fields, twice, seen)
