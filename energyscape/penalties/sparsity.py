"""Codes that are mostly off: what a sparse code pays, and constraints on how many units are on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from energyscape.activations import largest
from energyscape.backend import Array, namespace
from energyscape.kernels import soft_threshold
from energyscape.layers import LayerGrad, LayerPass
from energyscape.penalties.base import Penalty
from energyscape.registry import register
from energyscape.verbs import check_count


@register
class L1(Penalty):
    """strength · Σ_j |h_j|.

    As what sparse codes pay, it is the lasso's λ|h|₁. As a penalty of encoders, nothing is limited
    unless the decoder's columns have a bounded norm: otherwise h shrinks and the decoder grows.

    Parameters
    ----------
    strength : float, default 0.1
    """

    # Coordinates pay one by one; where all signs are known, energies are quadratic.
    separable = True
    linear_given_signs = True

    def __init__(self, strength: float = 0.1) -> None:
        self.strength = strength

    def on_layer(self, layer: LayerPass, rng: Any) -> tuple[Array, LayerGrad]:
        xp, h, scale = namespace(layer.h), layer.h, self.scale(layer)
        da = xp.sign(h)
        da *= layer.slope()
        da *= scale
        return xp.abs(h).sum(dtype=np.float64) * scale, LayerGrad(a=da)

    def code_value(self, h: Array) -> Array:
        """λ|h|₁ of each row, shape (n,), float64."""
        return self.strength * namespace(h).abs(h).sum(axis=1, dtype=np.float64)

    def code_grad(self, h: Array) -> Array:
        """λ sign(h): a subgradient, 0 at 0."""
        return namespace(h).sign(h) * h.dtype.type(self.strength)

    def prox(self, v: Array, step: Any, at: Array) -> Array:
        """argmin ½|u - v|² + step λ|u|₁, the soft threshold, in place."""
        return soft_threshold(v, self.threshold(step), out=v)

    def threshold(self, step: Any) -> Any:
        """What `prox` takes off every |v|; no other penalty has one number for all."""
        return step * self.strength

    def dual_norm(self, q: Array) -> Array:
        """|q|_∞/λ of each row, shape (n,), float64."""
        return namespace(q).abs(q).max(axis=1).astype(np.float64) / self.strength


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

    def code_value(self, h: Array) -> Array:
        """λ Σ log(1 + h²) of each row, shape (n,), float64."""
        return self.strength * namespace(h).log1p(h * h).sum(axis=1, dtype=np.float64)

    def code_grad(self, h: Array) -> Array:
        """2λh/(1 + h²)."""
        return h * h.dtype.type(2 * self.strength) / (1 + h * h)

    def prox(self, v: Array, step: Any, at: Array) -> Array:
        """argmin ½|u - v|² + step λ Σ (u² - at²)/(1 + at²), in place: log is concave in u², so
        that its tangent at ``at`` bounds it from above and no step raises the energy."""
        bound = at * at
        bound += 1.0
        shrink = namespace(v).divide(2.0 * self.strength * step, bound, out=bound)
        shrink += 1.0
        v /= shrink
        return v


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

    compares_rows = True

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

    compares_rows = True

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
