"""Codes that stay the same: contraction (Rifai et al., 2011), and units pulled to where their
activation is flat (Goroshin and LeCun, 2013)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.layers import LayerGrad, LayerPass
from energyscape.penalties.base import Paid, Penalty, check_strength
from energyscape.registry import register
from energyscape.verbs import check_count


@register
class Contractive(Penalty):
    """strength · ‖∂h/∂x‖²_F of each layer: Σ_j f'(a_j)² ‖W_j‖², in closed form.

    x is the layer's own input. Tie the decoder's weights or bound them, lest the encoder shrink
    and the decoder grow. With linear units this is weight decay.

    Parameters
    ----------
    strength : float, default 0.1

    References
    ----------
    Rifai, S., Vincent, P., Muller, X., Glorot, X., Bengio, Y. (2011). Contractive auto-encoders:
    explicit invariance during feature extraction. Equations 5 and 9.
    """

    needs = "curvature"

    def __init__(self, strength: float = 0.1) -> None:
        self.strength = strength

    def on_layer(self, layer: LayerPass, rng: Any) -> tuple[Array, LayerGrad]:
        value, grad = _slopes_pay(layer, layer.slope(), self.scale(layer))
        grad.a *= layer.curvature()
        return value, grad


def _slopes_pay(layer: LayerPass, s: Array, scale: float) -> tuple[Array, LayerGrad]:
    """scale Σ_ij s_ij² ‖W_j‖², and its derivatives: in s (as ``a``), and in W at fixed s."""
    W = layer.W
    norms = (W * W).sum(axis=0)
    ds = s * s
    sums = ds.sum(axis=0, dtype=np.float64)
    value = (sums * norms).sum() * scale
    namespace(s).multiply(s, norms * (2.0 * scale), out=ds)
    return value, LayerGrad(a=ds, W=W * (sums * (2.0 * scale)).astype(W.dtype))


@register
class HessianContractive(Contractive):
    """`Contractive`, and the change of ∂h/∂x over a small step pays too.

    hessian_strength · E_ε ‖J(x) - J(x + ε)‖²_F with ε ~ N(0, noise²): first and second
    derivatives, the second ones by finite differences.

    Parameters
    ----------
    strength, hessian_strength : float, default 0.1
        Of the Jacobian and of its change.
    noise : float, default 0.1
        Standard deviation of ε, in units of the layer's input.
    n_draws : int, default 4
        Draws of ε for each row.

    References
    ----------
    Rifai, S., Mesnil, G., Vincent, P., Muller, X., Bengio, Y., Dauphin, Y., Glorot, X. (2011).
    Higher order contractive auto-encoder. Equation 8.
    """

    def __init__(
        self,
        strength: float = 0.1,
        hessian_strength: float = 0.1,
        noise: float = 0.1,
        n_draws: int = 4,
    ) -> None:
        self.strength = strength
        self.hessian_strength = hessian_strength
        self.noise = noise
        self.n_draws = n_draws

    def check_numbers(self) -> None:
        super().check_numbers()
        check_strength(self, "hessian_strength")
        check_count("HessianContractive.n_draws", self.n_draws)
        if not 0 < self.noise < math.inf:
            raise ValueError(f"HessianContractive.noise must be > 0, got {self.noise!r}")

    def on_layer(self, layer: LayerPass, rng: Any) -> tuple[Array, LayerGrad]:
        value, total = super().on_layer(layer, rng)
        for _ in range(self.n_draws):
            more, grad = self._change(layer, rng)
            value = value + more
            total.add(grad)
        return value, total

    def _change(self, layer: LayerPass, rng: Any) -> tuple[Array, LayerGrad]:
        # The second point is a + εW: its derivative in a goes down the chain with the layer's own,
        # and only ε'da is left for W.
        eps = rng.normal(layer.x.shape, layer.x.dtype)
        eps *= self.noise
        f, a = layer.activation, eps @ layer.W
        a += layer.a
        h = f.value(a)
        slope, curvature = f.slope(a, h), f.curvature(a, h)
        if layer.mask is not None:
            slope *= layer.mask
            curvature *= layer.mask
        change = layer.slope() - slope
        scale = float(self.hessian_strength) / (len(h) * self.n_draws)
        value, grad = _slopes_pay(layer, change, scale)
        there = grad.a * curvature
        grad.a *= layer.curvature()
        grad.a -= there
        grad.W -= eps.T @ there
        return value, grad


@register
class Hutchinson(Penalty):
    """strength · ‖∂h/∂x‖²_F of a whole encoder, estimated by E_v ‖J'v‖² with random signs v.

    The exact norm of a deep encoder takes a product for each code; a draw takes three for each
    layer: J'v backwards, JJ'v forwards, and the gradient.

    Parameters
    ----------
    strength : float, default 0.1
    n_draws : int, default 1
        Draws of v for each row.

    References
    ----------
    Hutchinson, M. F. (1990). A stochastic estimator of the trace of the influence matrix.
    """

    needs = "curvature"

    def __init__(self, strength: float = 0.1, n_draws: int = 1) -> None:
        self.strength = strength
        self.n_draws = n_draws

    def check_numbers(self) -> None:
        super().check_numbers()
        check_count("Hutchinson.n_draws", self.n_draws)

    def __call__(self, passes: Sequence[LayerPass], rng: Any) -> Paid:
        """As `Penalty.__call__`, of all layers together."""
        h = passes[-1].h
        scale = self.scale(passes[-1]) / self.n_draws
        value, totals = 0.0, [LayerGrad() for _ in passes]
        for _ in range(self.n_draws):
            v = (rng.uniform(h.shape, np.float32) < 0.5).astype(h.dtype) * 2.0 - 1.0
            more, grads = _squared_pullback(passes, v, scale)
            value = value + more
            for total, grad in zip(totals, grads, strict=True):
                total.add(grad)
        return value, list(totals)


def _squared_pullback(
    passes: Sequence[LayerPass], v: Array, scale: float
) -> tuple[Array, list[LayerGrad]]:
    """scale Σ_i ‖J_i'v_i‖² and its direct partials.

    With w = J'v the derivative of ‖w‖² is that of 2v'Jw at fixed w: one sweep of tangents up.
    """
    pulled = []
    up = v
    for layer in reversed(passes):
        da = up * layer.slope()
        pulled.append((up, da))
        up = da @ layer.W.T
    value = (up * up).sum(dtype=np.float64) * scale
    tangent, grads = up * (2.0 * scale), []
    for layer, (dh, da) in zip(passes, reversed(pulled), strict=True):
        moved = tangent @ layer.W
        partial = dh * moved
        partial *= layer.curvature()
        grads.append(LayerGrad(a=partial, W=tangent.T @ da))
        moved *= layer.slope()
        tangent = moved
    return value, grads


@register
class Saturating(Penalty):
    """strength · Σ_j distance of a_j to where the activation is flat.

    Units that do not move code the data, and nothing far from it is reconstructed well. With
    `Relu` and `Shrink` this is `L1`; with `SaturatedLinear` codes become nearly binary.

    Parameters
    ----------
    strength : float, default 0.1

    References
    ----------
    Goroshin, R., LeCun, Y. (2013). Saturating auto-encoders. The complementary nonlinearity.
    """

    needs = "flat_distance"

    def __init__(self, strength: float = 0.1) -> None:
        self.strength = strength

    def on_layer(self, layer: LayerPass, rng: Any) -> tuple[Array, LayerGrad]:
        distance, da = layer.activation.flat_distance(layer.a)
        if layer.mask is not None:  # dropped units pay nothing
            distance *= layer.mask
            da *= layer.mask
        scale = self.scale(layer)
        da *= scale
        return distance.sum(dtype=np.float64) * scale, LayerGrad(a=da)
