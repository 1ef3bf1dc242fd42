"""Convolutional encoders: quick guesses f(x) of the maps that inference would find.

    shrink        f = sign(u) max(|u| - θ, 0)                          u_k = w_k ⋆ x + b_k
    smooth shrink f = sign(u) (log(exp(βθ) + exp(β|u|) - 1)/β - θ)
    tanh          f = g tanh(u)
    LISTA         z_0 = h_θ(We ⋆ x),   z_t = h_θ(z_{t-1} + We ⋆ (x - Wd * z_{t-1}))

The non-linearities are those of `encoders`, one gain, bias or threshold for each map (Kavukcuoglu
et al., 2010, equation 5). LISTA is kept in factors, so that a step costs two convolutions and no
table of products of filters (Sreter and Giryes, 2018). All of them are the same at every place:
maps of a larger image are those of the smaller one, and pixels do not weigh less at the border.

References
----------
Kavukcuoglu, K., Sermanet, P., Boureau, Y., Gregor, K., Mathieu, M., LeCun, Y. (2010). Learning
convolutional feature hierarchies for visual recognition. NIPS.
Sreter, H., Giryes, R. (2018). Learned convolutional sparse coding. ICASSP.
"""

from __future__ import annotations

import copy
from typing import Any

from energyscape.backend import Array, namespace
from energyscape.models.conv_filters import laid_out
from energyscape.models.encoders import (
    Encoder,
    ShrinkEncoder,
    SmoothShrinkEncoder,
    TanhEncoder,
    reflected,
    total,
)
from energyscape.models.unrolled import UnrolledEncoder
from energyscape.registry import register
from energyscape.solvers.conv_dictionary import ConvDictionary
from energyscape.solvers.laid_filters import longer
from energyscape.solvers.local_dictionary import LocalDictionary
from energyscape.verbs import Params

__all__ = [
    "ConvLISTAEncoder",
    "ConvShrinkEncoder",
    "ConvSmoothShrinkEncoder",
    "ConvTanhEncoder",
]


_SOME_PIXELS = 1 << 15  # of images that say how large responses are


class ConvEncoder(Encoder):
    """What they share: arrays of filters in place of matrices, and products of filters in place of
    those of matrices. Shapes are asked for filters of (height, width, channels) and a number of
    maps; `init` gets filters (k, height, width, channels) and images."""

    _boundary, _period = "full", 1

    def at(self, boundary: str, period: int = 1) -> Any:
        """The same for maps with this boundary, or for filters and numbers that are each place's
        own and the same again a ``period`` on (`solvers.local_dictionary`)."""
        other = copy.copy(self)
        other._boundary, other._period = boundary, period
        return other

    def filters(self, W: Array, x: Array) -> ConvDictionary | LocalDictionary:
        """The convolution with ``W`` at images ``x``."""
        return laid_out(W, x.shape[1:3], self._boundary, period=self._period)

    def units(self, D: Array) -> int:
        return len(D)

    def bound(self, D: Array, x: Array) -> float:
        return self.filters(D, x).lipschitz()

    def scaled(self, D: Array, by: Array) -> Array:
        return D / by[:, None, None, None]

    def respond(self, W: Array, x: Array) -> Array:
        return self.filters(W, x).analyze(x)

    def spread(self, D: Array, x: Array) -> tuple[Array, Array]:
        few = max(1, _SOME_PIXELS // (x.shape[1] * x.shape[2]))
        return super().spread(D, x[:few])

    def respond_grad(self, W: Array, x: Array, du: Array) -> Array:
        return self.filters(W, x).slopes(x, du)

    def respond_back(self, W: Array, du: Array) -> Array:
        edge, P = self._boundary, self._period
        h, w = (P * s + longer(edge, f) for s, f in zip(du.shape[1:3], W.shape[1:3], strict=True))
        return laid_out(W, (h, w), edge, period=P).synthesize(du)

    def shapes(self, n_features: Any, m: int) -> dict[str, tuple[int, ...]]:
        return {name: (m,) for name in self.names} | {"W": (m, *n_features)}


@register
class ConvShrinkEncoder(ConvEncoder, ShrinkEncoder):
    """f = sign(u) max(|u| - θ, 0): one step of ISTA at first, w_k = f_k/L and θ = λ/L."""


@register
class ConvSmoothShrinkEncoder(ConvEncoder, SmoothShrinkEncoder):
    """The soft threshold with its kinks rounded; β = exp(r) for each map."""


@register
class ConvTanhEncoder(ConvEncoder, TanhEncoder):
    """f = g tanh(u): never quite 0. It begins as D'x for places of usual size."""


@register
class ConvLISTAEncoder(ConvEncoder, UnrolledEncoder):
    """z_t = h_θ(z_{t-1} + We ⋆ (x - Wd * z_{t-1})): T + 1 steps of ISTA at first.

    Parameters
    ----------
    n_layers : int, default 1
        T: steps after the first.
    """

    names = ("We", "Wd", "theta")

    def __init__(self, n_layers: int = 1) -> None:
        self.n_layers = n_layers

    def shapes(self, n_features: Any, m: int) -> dict[str, tuple[int, ...]]:
        decoder = {"Wd": (m, *n_features)} if self.n_layers else {"Wd": (0, *n_features)}
        return {"We": (m, *n_features), "theta": (m,)} | decoder

    def curvature(self, params: Params) -> Params:
        found = super().curvature(params)
        return {key: found[key] for key in ("We", "theta")} | {"Wd": found["S"]}

    def init(self, D: Array, lam: float, x: Array) -> Params:
        bound = self.bound(D, x)
        theta = namespace(D).full(len(D), lam / bound, D.dtype)
        decoder = D.copy() if self.n_layers else D[:0].copy()
        return {"We": D / D.dtype.type(bound), "Wd": decoder, "theta": theta}

    def feasible(self, params: Params) -> Params:
        return {"theta": reflected(params["theta"])}

    def threshold(self, params: Params, t: int) -> Array:
        return params["theta"]

    def threshold_grad(self, params: Params, t: int, of_theta: Array, grads: Params) -> None:
        grads["theta"] += total(of_theta)

    def step(self, params: Params, t: int, given: Array, z: Array | None) -> Array:
        if z is None:
            return self.respond(params["We"], given)
        a = self.respond(params["We"], given - self.filters(params["Wd"], given).synthesize(z))
        a += z
        return a

    def step_grad(
        self, params: Params, t: int, given: Array, z: Array | None, da: Array, grads: Params
    ) -> tuple[Array | None, Array]:
        back = self.respond_back(params["We"], da)
        if z is None:
            grads["We"] += self.respond_grad(params["We"], given, da)
            return None, back
        decoder = self.filters(params["Wd"], given)
        rest = given - decoder.synthesize(z)
        grads["We"] += self.respond_grad(params["We"], rest, da)
        grads["Wd"] -= decoder.slopes(back, z)
        return da - decoder.analyze(back), back
