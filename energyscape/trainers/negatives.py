"""Points whose energy is pulled up, found near the rows that are pushed down.

A step that is as likely there as back (`GaussianJitter`, `BitFlips`) needs no model. `Chains` go
where the model's energy is low, `MostOffending` to where it is lowest outside a ball: the "most
offending incorrect answer" of LeCun et al. (2006, equation 9).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator

from energyscape.backend import Array, namespace
from energyscape.registry import register
from energyscape.samplers.base import Sampler
from energyscape.trainers.contrastive_divergence import CD
from energyscape.verbs import Params, check_count

_TINY = 1e-30


class Negatives(BaseEstimator):
    """A way to one more point for every row."""

    symmetric: ClassVar[bool] = False
    domains: ClassVar[tuple[str, ...]] = ("binary", "real")
    requires: ClassVar[tuple[str, ...]] = ()

    def validate(self, model: Any) -> None:
        """Raise ValueError for settings that cannot be."""

    def start(self, model: Any, params: Params, x: Array, rng: Any) -> Params:
        """What it keeps between updates, keys ``owner/name``."""
        return {}

    def draw(self, model: Any, params: Params, carry: Params, x: Array, rng: Any) -> Array:
        """A point for every row of ``x``, of its shape."""
        raise NotImplementedError


@register
class GaussianJitter(Negatives):
    """Gaussian steps from the rows, in proportion to each feature's standard deviation.

    Parameters
    ----------
    length : float > 0, default 1
        Root mean square length of a step, in standard deviations (of the features' root mean
        square); a row is about √n_features of these from the mean.
    """

    symmetric = True
    domains = ("real",)

    def __init__(self, length: float = 1.0) -> None:
        self.length = length

    def validate(self, model: Any) -> None:
        if not 0 < self.length < math.inf:
            raise ValueError(f"GaussianJitter.length must be > 0, got {self.length!r}")

    def start(self, model: Any, params: Params, x: Array, rng: Any) -> Params:
        spread = x.var(axis=0, dtype=np.float64)
        step = namespace(x).sqrt(spread / spread.size) * self.length
        return {"negatives/step": step.astype(x.dtype)}

    def draw(self, model: Any, params: Params, carry: Params, x: Array, rng: Any) -> Array:
        z = rng.normal(x.shape, x.dtype)
        z *= carry["negatives/step"]
        z += x
        return z


@register
class BitFlips(Negatives):
    """Rows with a few bits flipped.

    Parameters
    ----------
    n_bits : int, default 1
        Different bits that are flipped in every row (all, if there are no more).
    """

    symmetric = True
    domains = ("binary",)

    def __init__(self, n_bits: int = 1) -> None:
        self.n_bits = n_bits

    def validate(self, model: Any) -> None:
        check_count("BitFlips.n_bits", self.n_bits)

    def draw(self, model: Any, params: Params, carry: Params, x: Array, rng: Any) -> Array:
        xp, y = namespace(x), x.reshape(len(x), -1).copy()
        rows = xp.arange(len(y))
        order = rng.uniform(y.shape)
        for _ in range(min(self.n_bits, y.shape[1])):
            bit = xp.argmax(order, axis=1)
            order[rows, bit] = -1
            y[rows, bit] = 1 - y[rows, bit]
        return y.reshape(x.shape)


@register
class Chains(Negatives):
    """States of short Markov chains that begin at the rows.

    With a loss of p - q it is contrastive divergence that no longer pulls where a margin is kept.

    Parameters
    ----------
    n_steps : int, default 1
    sampler : sampler, optional
        Default: the model's own.
    """

    requires = CD.requires

    def __init__(self, n_steps: int = 1, sampler: Sampler | None = None) -> None:
        self.n_steps = n_steps
        self.sampler = sampler

    def _moves(self) -> CD:
        return CD(self.n_steps, sampler=self.sampler)

    def validate(self, model: Any) -> None:
        self._moves().validate(model)

    def start(self, model: Any, params: Params, x: Array, rng: Any) -> Params:
        return self._moves().start(model, params, x, rng)

    def draw(self, model: Any, params: Params, carry: Params, x: Array, rng: Any) -> Array:
        return self._moves().moved(model, params, carry, x, rng)


@register
class MostOffending(Negatives):
    """Descent of the energy from the rows, kept outside a ball around each.

    Parameters
    ----------
    radius : float > 0, default 1
        Of the ball, in the same units as `GaussianJitter`'s length.
    n_steps : int, default 10
        Steps of the descent, from a random point of the sphere.
    step : float in (0, 1], default 0.2
        Length of the first step as a fraction of the radius; steps shrink to 0 in a straight line.
    """

    domains = ("real",)
    requires = ("input_grad",)

    def __init__(self, radius: float = 1.0, n_steps: int = 10, step: float = 0.2) -> None:
        self.radius = radius
        self.n_steps = n_steps
        self.step = step

    def validate(self, model: Any) -> None:
        if not 0 < self.radius < math.inf:
            raise ValueError(f"MostOffending.radius must be > 0, got {self.radius!r}")
        check_count("MostOffending.n_steps", self.n_steps)
        if not 0 < self.step <= 1:
            raise ValueError(f"MostOffending.step must be in (0, 1], got {self.step!r}")

    def start(self, model: Any, params: Params, x: Array, rng: Any) -> Params:
        spread = x.var(axis=0, dtype=np.float64).mean(keepdims=True).ravel()
        radius = namespace(x).sqrt(spread) * self.radius
        return {"negatives/radius": radius.astype(x.dtype)}

    def draw(self, model: Any, params: Params, carry: Params, x: Array, rng: Any) -> Array:
        radius = carry["negatives/radius"]
        away = rng.normal(x.shape, x.dtype)
        away *= radius / _lengths(away)
        for i in range(self.n_steps):
            down = model.input_grad(params, x + away)
            length = x.dtype.type(self.step * (1 - i / self.n_steps))
            away -= down * (length * radius / _lengths(down))
            away *= namespace(x).maximum(1, radius / _lengths(away))
        return x + away


def _lengths(a: Array) -> Array:
    """Euclidean norm of every row, ready to multiply them, kept off 0."""
    flat = a.reshape(len(a), -1)
    squares = (flat * flat).sum(axis=1) + a.dtype.type(_TINY)
    return (squares**0.5).reshape(-1, *([1] * (a.ndim - 1)))
