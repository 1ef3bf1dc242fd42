"""Non-linearities h = f(a) of a layer: value, slope, curvature, and what energies need of them.

The primitive Σ_j ∫ f is what a hidden layer adds to the potential of an auto-encoder (Kamyshanska
and Memisevic, 2015); the distance to where f is flat is the penalty of saturating auto-encoders
(Goroshin and LeCun, 2013).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from energyscape.backend import Array, namespace
from energyscape.kernels import rectify, sigmoid, soft_threshold, softplus_sum
from energyscape.registry import register
from energyscape.verbs import check_count

__all__ = [
    "Identity",
    "Relu",
    "SaturatedLinear",
    "Shrink",
    "Sigmoid",
    "SmoothShrink",
    "Tanh",
    "TopK",
    "activation",
    "largest",
]


class Activation(BaseEstimator):
    """An elementwise f on pre-activations a of shape (n, k).

    Some activations offer more, and the others lack the method: ``curvature(a, h)`` is f''(a)
    (0 where f is a line); ``primitive(a)`` is Σ_j ∫_0^{a_j} f, shape (n,), float64;
    ``flat_distance(a)`` is the distance of each a to the nearest point where f' = 0, and its slope.

    Attributes
    ----------
    codes : {"real", "unit", "nonneg"}
        Where the values of f lie: anywhere, in [0, 1], in [0, ∞).
    linear : bool
        Whether f is the identity, so that its slope need not be multiplied by.
    bounded : bool
        Whether all values of f lie in a finite interval.
    probabilities : bool
        Whether values are probabilities of which a are the log-odds.
    smooth : bool
        Whether f has a curvature everywhere.
    """

    codes: str
    linear = False
    bounded = False
    probabilities = False
    smooth = True

    def check(self) -> None:
        """Raise ValueError for settings that cannot be."""

    def value(self, a: Array, out: Array = None) -> Array:
        """f(a); ``out`` may be ``a`` itself."""
        raise NotImplementedError

    def slope(self, a: Array, h: Array) -> Array:
        """f'(a) as a new array, given h = f(a)."""
        raise NotImplementedError


class PiecewiseLinear(Activation):
    """An activation made of straight lines: no curvature but at its kinks."""

    smooth = False

    def curvature(self, a: Array, h: Array) -> Array:
        """0: f''(a) almost everywhere."""
        return namespace(a).zeros_like(a)


@register
class Identity(PiecewiseLinear):
    """f(a) = a: linear codes."""

    codes = "real"
    linear = True
    smooth = True

    def value(self, a: Array, out: Array = None) -> Array:
        """a itself, not a copy, unless ``out`` is another array."""
        if out is not None and out is not a:
            out[...] = a
            return out
        return a

    def slope(self, a: Array, h: Array) -> Array:
        """1."""
        return namespace(a).ones_like(a)

    def primitive(self, a: Array) -> Array:
        """Σ_j a_j²/2."""
        return _half_squares(a)


@register
class Sigmoid(Activation):
    """f(a) = 1/(1 + exp(-a))."""

    codes = "unit"
    bounded = True
    probabilities = True

    def value(self, a: Array, out: Array = None) -> Array:
        """f(a); ``out`` may be ``a`` itself."""
        return sigmoid(a, out)

    def slope(self, a: Array, h: Array) -> Array:
        """h(1 - h)."""
        s = namespace(h).subtract(1.0, h)
        s *= h
        return s

    def curvature(self, a: Array, h: Array) -> Array:
        """h(1 - h)(1 - 2h)."""
        t = namespace(h).multiply(h, -2.0)
        t += 1.0
        t *= self.slope(a, h)
        return t

    def primitive(self, a: Array) -> Array:
        """Σ_j log(1 + exp(a_j)): ∫_{-∞}^{a_j} f, log 2 a unit more than the integral from 0."""
        return softplus_sum(a)


@register
class Tanh(Activation):
    """f(a) = tanh(a)."""

    codes = "real"
    bounded = True

    def value(self, a: Array, out: Array = None) -> Array:
        """f(a); ``out`` may be ``a`` itself."""
        return namespace(a).tanh(a, out=out)

    def slope(self, a: Array, h: Array) -> Array:
        """1 - h²."""
        s = h * h
        return namespace(h).subtract(1.0, s, out=s)

    def curvature(self, a: Array, h: Array) -> Array:
        """-2h(1 - h²)."""
        t = self.slope(a, h)
        t *= h
        t *= -2.0
        return t

    def primitive(self, a: Array) -> Array:
        """Σ_j log cosh(a_j) = Σ_j log(1 + exp(2a_j)) - a_j - log 2: no cosh overflows."""
        total = softplus_sum(a + a)
        total -= a.sum(axis=1, dtype=np.float64)
        total -= a.shape[1] * math.log(2)
        return total


@register
class Relu(PiecewiseLinear):
    """f(a) = max(a, 0)."""

    codes = "nonneg"

    def value(self, a: Array, out: Array = None) -> Array:
        """f(a); ``out`` may be ``a`` itself."""
        return rectify(a, out=out)

    def slope(self, a: Array, h: Array) -> Array:
        """1 where a > 0, else 0."""
        return (h > 0).astype(h.dtype)

    def primitive(self, a: Array) -> Array:
        """Σ_j max(a_j, 0)²/2."""
        return _half_squares(self.value(a))

    def flat_distance(self, a: Array) -> tuple[Array, Array]:
        """max(a, 0), the distance to a <= 0, and its slope."""
        h = self.value(a)
        return h, self.slope(a, h)


@register
class Shrink(PiecewiseLinear):
    """f(a) = sign(a) max(|a| - threshold, 0): the soft threshold, proximal step of an L1 code.

    Parameters
    ----------
    threshold : float, default 1
        >= 0.
    """

    codes = "real"

    def __init__(self, threshold: float = 1.0) -> None:
        self.threshold = threshold

    def check(self) -> None:
        """Raise ValueError for a threshold below 0."""
        if not 0 <= self.threshold < math.inf:
            raise ValueError(f"Shrink.threshold must be >= 0, got {self.threshold!r}")

    def value(self, a: Array, out: Array = None) -> Array:
        """f(a); ``out`` may be ``a`` itself."""
        return soft_threshold(a, float(self.threshold), out=out)

    def slope(self, a: Array, h: Array) -> Array:
        """1 where |a| > threshold, else 0."""
        return (h != 0).astype(h.dtype)

    def primitive(self, a: Array) -> Array:
        """Σ_j f(a_j)²/2."""
        return _half_squares(self.value(a))

    def flat_distance(self, a: Array) -> tuple[Array, Array]:
        """max(|a| - threshold, 0), the distance to |a| <= threshold, and its slope."""
        xp = namespace(a)
        h = self.value(a)
        slope = xp.sign(h)
        return xp.abs(h, out=h), slope


@register
class SmoothShrink(Activation):
    """The soft threshold with its kinks rounded, as predictive sparse encoders learn it.

        f(a) = sign(a) (log(exp(βθ) + exp(β|a|) - 1)/β - θ)

    with θ the threshold and β the sharpness: f(0) = 0, f'(0) = exp(-βθ), and `Shrink` for β → ∞.

    Parameters
    ----------
    threshold : float, default 1
        θ > 0.
    sharpness : float, default 10
        β > 0.

    References
    ----------
    Kavukcuoglu, K., Sermanet, P., Boureau, Y., Gregor, K., Mathieu, M., LeCun, Y. (2010). Learning
    convolutional feature hierarchies for visual recognition. The smooth shrinkage operator.
    """

    codes = "real"

    def __init__(self, threshold: float = 1.0, sharpness: float = 10.0) -> None:
        self.threshold = threshold
        self.sharpness = sharpness

    def check(self) -> None:
        """Raise ValueError unless both numbers are finite and above 0."""
        for name in ("threshold", "sharpness"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"SmoothShrink.{name} must be > 0, got {getattr(self, name)!r}")

    def value(self, a: Array, out: Array = None) -> Array:
        """f(a); ``out`` may be ``a`` itself."""
        xp, theta, beta = namespace(a), float(self.threshold), float(self.sharpness)
        # |f| = max(|a| - θ, 0) + log1p(exp(-β||a| - θ|) - exp(-β max(|a|, θ)))/β: every exponent
        # is negative, so that nothing overflows.
        size = xp.abs(a)
        far = xp.maximum(size, theta)
        far *= -beta
        xp.exp(far, out=far)
        size -= theta
        near = xp.abs(size)
        near *= -beta
        xp.exp(near, out=near)
        near -= far
        xp.log1p(near, out=near)
        near /= beta
        xp.maximum(size, 0, out=size)
        size += near
        return xp.multiply(size, xp.sign(a), out=out)

    def slope(self, a: Array, h: Array) -> Array:
        """exp(β|a|)/(exp(βθ) + exp(β|a|) - 1) = exp(β(|a| - |h| - θ)): one exponential, from h."""
        xp = namespace(a)
        s = xp.abs(a)
        s -= xp.abs(h)
        s -= self.threshold
        s *= self.sharpness
        return xp.exp(s, out=s)

    def curvature(self, a: Array, h: Array) -> Array:
        """β f'(1 - f') sign(a)."""
        xp = namespace(a)
        s = self.slope(a, h)
        t = xp.subtract(1.0, s)
        t *= s
        t *= self.sharpness
        t *= xp.sign(a)
        return t


@register
class SaturatedLinear(PiecewiseLinear):
    """f(a) = min(max(a, 0), 1): linear between two flat ends, which favours binary codes."""

    codes = "unit"
    bounded = True

    def value(self, a: Array, out: Array = None) -> Array:
        """f(a); ``out`` may be ``a`` itself."""
        return namespace(a).clip(a, 0, 1, out=out)

    def slope(self, a: Array, h: Array) -> Array:
        """1 where 0 < a < 1, else 0."""
        return ((h > 0) & (h < 1)).astype(h.dtype)

    def primitive(self, a: Array) -> Array:
        """Σ_j 0, a_j²/2 or a_j - 1/2: h_j(a_j - h_j/2) in all three pieces."""
        h = self.value(a)
        t = h * -0.5
        t += a
        t *= h
        return t.sum(axis=1, dtype=np.float64)

    def flat_distance(self, a: Array) -> tuple[Array, Array]:
        """The tent min(max(a, 0), max(1 - a, 0)) and its slope: ±1 inside, 0 at its top."""
        xp = namespace(a)
        tent = xp.subtract(1.0, a)
        xp.minimum(tent, a, out=tent)
        xp.maximum(tent, 0, out=tent)
        slope = xp.sign(0.5 - a)
        slope *= tent > 0
        return tent, slope


@register
class TopK(Activation):
    """Keep the k largest pre-activations of each row, zero elsewhere (Makhzani and Frey, 2013).

    All that equal the k-th largest are kept, so that the kept set depends on scores alone and is
    the same on every device. It has no curvature: f is not elementwise.

    Parameters
    ----------
    k : int
        Units that stay; all of them where there are no more than k.
    """

    codes = "real"
    smooth = False

    def __init__(self, k: int = 25) -> None:
        self.k = k

    def check(self) -> None:
        """Raise ValueError unless k is an integer >= 1."""
        check_count("TopK.k", self.k)

    def value(self, a: Array, out: Array = None) -> Array:
        """f(a); ``out`` may be ``a`` itself."""
        return namespace(a).multiply(a, largest(a, self.k), out=out)

    def slope(self, a: Array, h: Array) -> Array:
        """1 where a was kept, else 0."""
        # A kept 0 shows in h as a dropped unit does: it was kept if fewer than k are above 0.
        few = (h > 0).sum(axis=1, keepdims=True) < self.k
        return ((h != 0) | ((a == 0) & few)).astype(h.dtype)


def largest(a: Array, k: int, axis: int = 1) -> Array:
    """Where ``a`` is among the k largest along an axis, ties with the k-th included.

    Parameters
    ----------
    a : array, shape (n, m)
    k : int
        >= 1; everything is kept where the axis is no longer than k.
    axis : {0, 1}, default 1

    Returns
    -------
    array of bool, shape (n, m)
    """
    xp, length = namespace(a), a.shape[axis]
    if k >= length:
        return xp.ones(a.shape, bool)
    kth = length - k
    if axis == 0:
        return a >= xp.partition(a.T, kth, axis=1)[:, kth]
    return a >= xp.partition(a, kth, axis=1)[:, kth : kth + 1]


def _half_squares(h: Array) -> Array:
    total = (h * h).sum(axis=1, dtype=np.float64)
    total *= 0.5
    return total


_BY_NAME: dict[str, type[Activation]] = {
    "identity": Identity,
    "linear": Identity,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "relu": Relu,
    "saturated_linear": SaturatedLinear,
}


def activation(which: Any) -> Any:
    """The activation that is meant.

    Parameters
    ----------
    which : str or activation
        "identity" or "linear", "sigmoid", "tanh", "relu", "saturated_linear", or an instance.

    Returns
    -------
    activation
        An instance whose settings are checked.

    Raises
    ------
    ValueError
        For another name or object, or settings that cannot be.
    """
    if isinstance(which, str) and which in _BY_NAME:
        return _BY_NAME[which]()
    if isinstance(which, str | type) or not hasattr(which, "slope"):
        raise ValueError(
            f"activation must be one of {', '.join(map(repr, _BY_NAME))} or an instance such as "
            f"Shrink(0.5) or TopK(25); got {which!r}"
        )
    which.check()
    return which
