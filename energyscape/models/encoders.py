"""Encoders: quick guesses f(x) of the code that inference would find.

    linear        f = Wx + b
    tanh          f = g tanh(Wx + b)                              (Kavukcuoglu et al., 2008)
    double tanh   f = g (tanh(u + t) + tanh(u - t)),  u = Wx + b  (Gregor and LeCun, 2010)
    shrink        f = sign(u) max(|u| - θ, 0)
    smooth shrink f = sign(u) (log(exp(βθ) + exp(β|u|) - 1)/β - θ) (Kavukcuoglu et al., 2010)

each with its own gain, bias or threshold for every code. An encoder is an object that names its
arrays in the parameters of the model that owns it, and goes forward and backward; unrolled
inference is in `unrolled` and `learned_descent`.

References
----------
Kavukcuoglu, K., Ranzato, M., LeCun, Y. (2008). Fast inference in sparse coding algorithms with
applications to object recognition. Equation 3.
Gregor, K., LeCun, Y. (2010). Learning fast approximations of sparse coding. Section 3.1.
Kavukcuoglu, K., Sermanet, P., Boureau, Y., Gregor, K., Mathieu, M., LeCun, Y. (2010). Learning
convolutional feature hierarchies for visual recognition. Equation 5.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from energyscape.backend import Array, namespace
from energyscape.kernels import rectify, soft_threshold
from energyscape.registry import register
from energyscape.solvers.quadratic import Gram
from energyscape.verbs import Param, Params

__all__ = [
    "DoubleTanhEncoder",
    "LinearEncoder",
    "ShrinkEncoder",
    "SmoothShrinkEncoder",
    "TanhEncoder",
]


class Encoder(BaseEstimator):
    """What models ask of an encoder.

    `init` says what its arrays are at first, given the dictionary; `forward` gives codes and what
    `backward` needs; `scale` says in what units each array is learned.
    """

    names: tuple[str, ...]

    def check(self) -> None:
        """Raise ValueError for settings that cannot be."""

    def specs(self) -> dict[str, Param]:
        """How each array is trained."""
        return {name: Param() for name in self.names}

    def shapes(self, n_features: int, m: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays, for files."""
        raise NotImplementedError

    def init(self, D: Array, lam: float, x: Array) -> Params:
        """The arrays at first.

        Parameters
        ----------
        D : array, shape (n_features, m)
        lam : float
            λ.
        x : array, shape (n, n_features)
        """
        raise NotImplementedError

    def feasible(self, params: Params) -> Params:
        """The arrays that have constraints, within them."""
        return {}

    def curvature(self, params: Params) -> Params:
        """About how curved ½|h - f(x)|² is in each array, in units of which it is learned; 1 where
        nothing is said. ``params`` has E|x'v|² of the steepest direction (``power``) and the mean
        squared codes (``usage``)."""
        return {"W": params["power"]}

    def forward(self, params: Params, x: Array, positive: bool = False) -> tuple[Array, Any]:
        """Codes of shape (n, m), and what `backward` needs.

        ``positive`` keeps codes >= 0.
        """
        raise NotImplementedError

    def backward(
        self, params: Params, cache: Any, dh: Array, need_dx: bool = False
    ) -> tuple[Params, Array]:
        """Gradients by name and, if asked for, in x, of a loss with the derivative ``dh``."""
        raise NotImplementedError


class AffineEncoder(Encoder):
    """A non-linearity with parameters, on u = Wx + b: subclasses write `code` and `slopes`."""

    names: tuple[str, ...] = ("W", "c")

    def shapes(self, n_features: int, m: int) -> dict[str, tuple[int, ...]]:
        return {name: (m,) for name in self.names} | {"W": (n_features, m)}

    def units(self, D: Array) -> int:
        """Codes of a dictionary."""
        return D.shape[1]

    def bound(self, D: Array, x: Array) -> float:
        """L: no eigenvalue of D'D is larger."""
        return Gram.of(D).bound

    def scaled(self, D: Array, by: Array) -> Array:
        """Each atom over its number."""
        return D / by

    def respond(self, W: Array, x: Array) -> Array:
        """W'x, a new array."""
        return x @ W

    def respond_grad(self, W: Array, x: Array, du: Array) -> Array:
        """The derivative of ⟨du, W'x⟩ in W."""
        return x.T @ du

    def respond_back(self, W: Array, du: Array) -> Array:
        """The same in x."""
        return du @ W.T

    def spread(self, D: Array, x: Array) -> tuple[Array, Array]:
        """D'x of the rows: its root mean square for each atom, and 0 biases."""
        xp, c = namespace(x), self.respond(D, x)
        spread = xp.sqrt((c * c).mean(axis=tuple(range(c.ndim - 1)), dtype=np.float64))
        spread = xp.where(spread > 0, spread, 1).astype(x.dtype)
        return spread, xp.zeros_like(spread)

    def code(self, params: Params, u: Array) -> Array:
        """f(u), a new array or ``u`` itself, which may hold something else afterwards."""
        raise NotImplementedError

    def slopes(self, params: Params, u: Array, dh: Array) -> tuple[Array, Params]:
        """The derivative of the loss in u, which is as `code` left it, and gradients of what else
        f has."""
        raise NotImplementedError

    def forward(self, params: Params, x: Array, positive: bool = False) -> tuple[Array, Any]:
        u = self.respond(params["W"], x)
        u += params["c"]
        h = self.code(params, u)
        if positive:
            h = rectify(h)
        return h, (x, u, h if positive else None)

    def backward(
        self, params: Params, cache: Any, dh: Array, need_dx: bool = False
    ) -> tuple[Params, Array]:
        x, u, h = cache
        if h is not None:
            dh = dh * (h > 0)
        du, grads = self.slopes(params, u, dh)
        grads |= {"W": self.respond_grad(params["W"], x, du), "c": total(du)}
        return grads, self.respond_back(params["W"], du) if need_dx else None


def total(v: Array) -> Array:
    """The sum for each code, over rows or places of maps."""
    rows = v.reshape(-1, v.shape[-1])
    # As a product: an eighth of the time of NumPy's sums over rows of 32.
    return namespace(v).ones(len(rows), v.dtype) @ rows


def _of_gain(params: Params) -> Params:
    """What g tanh(Wx + b) makes of a change of W and b, g times as much in a code."""
    square = (params["g"] * params["g"]).mean()
    return {"W": params["power"] * square, "c": square}


def reflected(theta: Array) -> Array:
    """Thresholds >= 0: those that a step took below come back from 0 instead of resting there."""
    return namespace(theta).abs(theta)


@register
class LinearEncoder(AffineEncoder):
    """f = Wx + b, from W = D/L."""

    def init(self, D: Array, lam: float, x: Array) -> Params:
        return {"W": D / D.dtype.type(self.bound(D, x)), "c": self.spread(D, x)[1]}

    def code(self, params: Params, u: Array) -> Array:
        return u

    def slopes(self, params: Params, u: Array, dh: Array) -> tuple[Array, Params]:
        return dh, {}


@register
class TanhEncoder(AffineEncoder):
    """f = g tanh(Wx + b): never quite 0. It begins as D'x for rows of usual size."""

    names = ("W", "c", "g")

    def init(self, D: Array, lam: float, x: Array) -> Params:
        spread, zero = self.spread(D, x)
        return {"W": self.scaled(D, spread), "c": zero, "g": spread}

    def curvature(self, params: Params) -> Params:
        return _of_gain(params)

    def code(self, params: Params, u: Array) -> Array:
        return params["g"] * namespace(u).tanh(u)

    def slopes(self, params: Params, u: Array, dh: Array) -> tuple[Array, Params]:
        t = namespace(u).tanh(u)
        return dh * params["g"] * (1 - t * t), {"g": total(dh * t)}


@register
class DoubleTanhEncoder(AffineEncoder):
    """f = g (tanh(u + t) + tanh(u - t)), u = Wx + b: flat near 0, unlike one tanh."""

    names = ("W", "c", "g", "t")

    def init(self, D: Array, lam: float, x: Array) -> Params:
        spread, zero = self.spread(D, x)
        return {
            "W": self.scaled(D, spread),
            "c": zero,
            "g": spread,
            "t": namespace(x).ones_like(zero),
        }

    def curvature(self, params: Params) -> Params:
        found = _of_gain(params)
        return found | {"t": found["c"]}

    def code(self, params: Params, u: Array) -> Array:
        xp, t = namespace(u), params["t"]
        return params["g"] * (xp.tanh(u + t) + xp.tanh(u - t))

    def slopes(self, params: Params, u: Array, dh: Array) -> tuple[Array, Params]:
        xp, g, t = namespace(u), params["g"], params["t"]
        up, down = xp.tanh(u + t), xp.tanh(u - t)
        dup, ddown = dh * g * (1 - up * up), dh * g * (1 - down * down)
        grads = {"g": total(dh * (up + down)), "t": total(dup - ddown)}
        return dup + ddown, grads


@register
class ShrinkEncoder(AffineEncoder):
    """f = sign(u) max(|u| - θ, 0), u = Wx + b: one step of ISTA at first, W = D/L and θ = λ/L."""

    names = ("W", "c", "theta")

    def init(self, D: Array, lam: float, x: Array) -> Params:
        xp, bound = namespace(x), self.bound(D, x)
        theta = xp.full(self.units(D), lam / bound, x.dtype)
        return {"W": D / D.dtype.type(bound), "c": xp.zeros_like(theta), "theta": theta}

    def feasible(self, params: Params) -> Params:
        return {"theta": reflected(params["theta"])}

    def code(self, params: Params, u: Array) -> Array:
        return soft_threshold(u, params["theta"], out=u)

    def slopes(self, params: Params, u: Array, dh: Array) -> tuple[Array, Params]:
        # ``u`` is f by now: on either side of the dead zone, without signs, which are slow to tell.
        du, below = dh * (u > 0), dh * (u < 0)
        by_theta = total(below) - total(du)
        du += below
        return du, {"theta": by_theta}


@register
class SmoothShrinkEncoder(AffineEncoder):
    """The soft threshold with its kinks rounded; β = exp(r), so that it stays > 0.

    At first W = D/L, θ = λ/L and β = 5/θ.
    """

    names = ("W", "c", "theta", "r")

    def init(self, D: Array, lam: float, x: Array) -> Params:
        xp, bound = namespace(x), self.bound(D, x)
        theta = xp.full(self.units(D), lam / bound, x.dtype)
        r = xp.full(self.units(D), np.log(5 * bound / lam), x.dtype)
        W = D / D.dtype.type(bound)
        return {"W": W, "c": xp.zeros_like(theta), "theta": theta, "r": r}

    def feasible(self, params: Params) -> Params:
        return {"theta": reflected(params["theta"])}

    def curvature(self, params: Params) -> Params:
        return {"W": params["power"], "r": params["usage"].mean()}

    def code(self, params: Params, u: Array) -> Array:
        xp = namespace(u)
        theta, beta = params["theta"], xp.exp(params["r"])
        return xp.sign(u) * (self._log(u, theta, beta) / beta - theta)

    def slopes(self, params: Params, u: Array, dh: Array) -> tuple[Array, Params]:
        xp = namespace(u)
        theta, beta = params["theta"], xp.exp(params["r"])
        log, size = self._log(u, theta, beta), xp.abs(u)
        # Shares of E = exp(βθ) + exp(β|u|) - 1 that belong to the input and to the threshold.
        own, edge = xp.exp(beta * size - log), xp.exp(beta * theta - log)
        signed = dh * xp.sign(u)
        by_theta = total(signed * (edge - 1))
        by_beta = total(signed * ((theta * edge + size * own) / beta - log / beta**2))
        return dh * own, {"theta": by_theta, "r": by_beta * beta}

    @staticmethod
    def _log(u: Array, theta: Array, beta: Array) -> Array:
        """log(exp(βθ) + exp(β|u|) - 1) from exponents that are negative."""
        xp = namespace(u)
        a, b = beta * xp.abs(u), beta * theta
        top = xp.maximum(a, b)
        return top + xp.log1p(xp.exp(xp.minimum(a, b) - top) - xp.exp(-top))
