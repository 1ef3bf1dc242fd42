"""What a code pays beside its reconstruction: sparsity, contraction, saturation, constraints.

A penalty adds a term to an auto-encoder's loss that keeps its energy from being low everywhere:
it limits the information in the code (L1, Student's t, KL, the k largest), makes the code locally
constant (‖∂h/∂x‖²: Rifai et al., 2011) or pulls it to where f is flat (Goroshin and LeCun, 2013).

``penalty(passes, rng)`` gives the value, a mean over rows with the strength in it, and for each
layer the *direct* partial derivatives in a, W, c and x, as if they were independent of each other;
`energyscape.layers.backward_chain` carries them to the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from energyscape.activations import Activation, largest
from energyscape.backend import Array, namespace
from energyscape.layers import LayerGrad, LayerPass
from energyscape.registry import register, registered
from energyscape.verbs import check_count

__all__ = [
    "KL",
    "L1",
    "Contractive",
    "HessianContractive",
    "Hutchinson",
    "KSparse",
    "Lifetime",
    "Saturating",
    "Student",
]

Paid = tuple[Array, list[LayerGrad | None]]


class Penalty(BaseEstimator):
    """A term of the loss that is a sum over the layers of an encoder.

    A subclass writes `on_layer`, and names in ``needs`` the method that it asks of an activation.
    """

    needs = "slope"
    strength: float

    def __call__(self, passes: Sequence[LayerPass], rng: Any) -> Paid:
        """The penalty of an encoder at the rows of its passes.

        Parameters
        ----------
        passes : sequence of LayerPass
            Bottom first.
        rng : Stream
            Randomness of the penalties that draw.

        Returns
        -------
        value : float64 scalar or array of no dimension
            Mean over the rows, times the strength; on the device of the rows.
        grads : list of LayerGrad or None
            Its direct partial derivatives, one for each layer; the 1/n is in them.
        """
        parts = [self.on_layer(layer, rng) for layer in passes]
        return sum(value for value, _ in parts), [grad for _, grad in parts]

    def on_layer(self, layer: LayerPass, rng: Any) -> tuple[Array, LayerGrad]:
        """Value and direct partial derivatives of one layer."""
        raise NotImplementedError

    def scale(self, layer: LayerPass) -> float:
        """Strength over rows, a Python float: one of NumPy's would make float32 arrays float64."""
        return float(self.strength) / len(layer.a)

    def check(self, activations: Sequence[Any]) -> None:
        """Raise ValueError for settings that cannot be, or an activation that does not fit."""
        self.check_numbers()
        able = [name for name, cls in registered(Activation).items() if hasattr(cls, self.needs)]
        for f in activations:
            if not hasattr(f, self.needs):
                raise ValueError(
                    f"{type(self).__name__} needs {self.needs}, which {type(f).__name__} does not "
                    f"offer; activations that do: {', '.join(able)}"
                )

    def check_numbers(self) -> None:
        """Raise ValueError for settings that cannot be."""
        _check_strength(self, "strength")


def _check_strength(penalty: Any, name: str) -> None:
    value = getattr(penalty, name)
    if not 0 <= value < math.inf:
        raise ValueError(f"{type(penalty).__name__}.{name} must be >= 0, got {value!r}")


# ---------------------------------------------------------------- sparse codes


@register
class L1(Penalty):
    """strength · Σ_j |h_j|.

    Nothing is limited unless the decoder's columns have a bounded norm: otherwise h shrinks and
    the decoder grows.

    Parameters
    ----------
    strength : float, default 0.1
    """

    def __init__(self, strength: float = 0.1) -> None:
        self.strength = strength

    def on_layer(self, layer: LayerPass, rng: Any) -> tuple[Array, LayerGrad]:
        xp, h, scale = namespace(layer.h), layer.h, self.scale(layer)
        da = xp.sign(h)
        da *= layer.slope()
        da *= scale
        return xp.abs(h).sum(dtype=np.float64) * scale, LayerGrad(a=da)


@register
class Student(Penalty):
    """strength · Σ_j log(1 + h_j²): the negative log-density of Student's t as a prior of codes.

    Parameters
    ----------
    strength : float, default 0.1

    References
    ----------
    Olshausen, B. A., Field, D. J. (1996). Emergence of simple-cell receptive field properties.
    """

    def __init__(self, strength: float = 0.1) -> None:
        self.strength = strength

    def on_layer(self, layer: LayerPass, rng: Any) -> tuple[Array, LayerGrad]:
        xp, h, scale = namespace(layer.h), layer.h, self.scale(layer)
        square = h * h
        value = xp.log1p(square).sum(dtype=np.float64) * scale
        square += 1.0
        da = h / square
        da *= layer.slope()
        da *= 2.0 * scale
        return value, LayerGrad(a=da)


# Means closer to 0 and 1 count as this far from them. The derivative stays small: where all codes
# of a sigmoid are near 0, so are its slopes.
_EDGE = 1e-10


@register
class KL(Penalty):
    """strength · Σ_j KL(target ‖ mean of h_j over the batch): units that are seldom on.

    Give it batches of 100 rows or more.

    Parameters
    ----------
    target : float, default 0.05
        Mean value that each unit ought to have, in (0, 1).
    strength : float, default 0.1

    References
    ----------
    Ng, A. (2011). Sparse autoencoder (CS294A lecture notes), section 3.
    """

    def __init__(self, target: float = 0.05, strength: float = 0.1) -> None:
        self.target = target
        self.strength = strength

    def check(self, activations: Sequence[Any]) -> None:
        """Raise ValueError for settings that cannot be, or codes outside [0, 1]."""
        super().check(activations)
        for f in activations:
            if f.codes != "unit":
                raise ValueError(
                    f"KL needs codes in [0, 1], those of {type(f).__name__} are {f.codes}; take "
                    "Sigmoid or SaturatedLinear, or another penalty (L1, Student)"
                )

    def check_numbers(self) -> None:
        super().check_numbers()
        if not 0 < self.target < 1:
            raise ValueError(f"KL.target must lie in (0, 1), got {self.target!r}")

    def on_layer(self, layer: LayerPass, rng: Any) -> tuple[Array, LayerGrad]:
        h, rho = layer.h, self.target
        xp = namespace(h)
        mean = xp.clip(h.mean(axis=0, dtype=np.float64), _EDGE, 1 - _EDGE)
        value = xp.log(rho / mean).sum() * rho + xp.log((1 - rho) / (1 - mean)).sum() * (1 - rho)
        each = ((1 - rho) / (1 - mean) - rho / mean) * self.scale(layer)
        return value * self.strength, LayerGrad(a=layer.slope() * each.astype(h.dtype))


# ---------------------------------------------------------------- codes that stay the same


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
        _check_strength(self, "hessian_strength")
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


# ---------------------------------------------------------------- constraints on the code


@register
class KSparse(BaseEstimator):
    """Only the k largest pre-activations of each row are kept, while training. The activation
    ``TopK(k)`` keeps them in codes, energies and reconstructions, too.

    Parameters
    ----------
    k : int, default 25
        Units that stay.
    start : int, optional
        Units that stay at first, > k: fewer units die if k is reached slowly. Default: k.
    anneal : float, default 0.5
        Fraction of the run in which the number falls from ``start`` to ``k``, in (0, 1].

    References
    ----------
    Makhzani, A., Frey, B. (2013). k-sparse autoencoders.
    """

    def __init__(self, k: int = 25, start: int | None = None, anneal: float = 0.5) -> None:
        self.k = k
        self.start = start
        self.anneal = anneal

    def check(self, activations: Sequence[Any]) -> None:
        """Raise ValueError for settings that cannot be."""
        check_count("KSparse.k", self.k)
        if self.start is not None:
            check_count("KSparse.start", self.start, self.k)
        if not 0 < self.anneal <= 1:
            raise ValueError(f"KSparse.anneal must lie in (0, 1], got {self.anneal!r}")

    def units(self, progress: float | None) -> int:
        """Units that stay once a fraction ``progress`` of the run is done."""
        if self.start is None or progress is None:
            return self.k
        return round(self.start + (self.k - self.start) * min(1.0, progress / self.anneal))

    def mask(self, layer: LayerPass, progress: float | None) -> Array:
        """1 for what stays.

        Parameters
        ----------
        layer : LayerPass
        progress : float or None
            Finished fraction of the run; None for no annealing.

        Returns
        -------
        array, shape (n, k) of the layer's h and in its dtype
            Ties with the last unit that stays, stay.
        """
        return largest(layer.a, self.units(progress)).astype(layer.h.dtype)


@register
class Lifetime(BaseEstimator):
    """Each unit is kept at the rows of the batch where its pre-activation is largest.

    Every unit is on for the same fraction of rows, so that none is dead: for training alone.

    Parameters
    ----------
    fraction : float, default 0.05
        Of the rows of a batch, in (0, 1]; rounded, one row at least.

    References
    ----------
    Makhzani, A., Frey, B. (2015). Winner-take-all autoencoders.
    """

    def __init__(self, fraction: float = 0.05) -> None:
        self.fraction = fraction

    def check(self, activations: Sequence[Any]) -> None:
        """Raise ValueError for settings that cannot be; every activation will do."""
        if not 0 < self.fraction <= 1:
            raise ValueError(f"Lifetime.fraction must lie in (0, 1], got {self.fraction!r}")

    def mask(self, layer: LayerPass, progress: float | None) -> Array:
        """1 for what stays, as `KSparse.mask`, at any ``progress``."""
        rows = max(1, round(self.fraction * len(layer.a)))
        return largest(layer.a, rows, axis=0).astype(layer.h.dtype)
