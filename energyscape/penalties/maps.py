"""Maps whose neighbours are on together: pools around every place, whatever the size of the image.

    λ Σ_p (√(δ² + s(p)) - δ),    s(p) = Σ_q w(q - p) Σ_u z(q, u)²

with weights w = w_1 w_1' that fall off down and across alike, Σ w = 1: s is the mean square of the
codes around p. It is `PooledL1` of codes that lie on a map (`energyscape.pools.torus_pools` on a
torus), without the matrix of pools.

References
----------
Kavukcuoglu, K., Ranzato, M., Fergus, R., LeCun, Y. (2009). Learning invariant features through
topographic filter maps.
Gregor, K., LeCun, Y. (2010). Emergence of complex-like cells in a temporal product network with
local receptive fields. arXiv:1006.0448.
"""

from __future__ import annotations

import copy
import math
from functools import lru_cache

import numpy as np
from sklearn.base import BaseEstimator

from energyscape.backend import Array, namespace
from energyscape.penalties.base import check_strength
from energyscape.registry import register
from energyscape.tiles import tiled, untiled
from energyscape.verbs import check_count


@register
class MapPools(BaseEstimator):
    """strength · Σ_p (√(δ² + s(p)) - δ): the root mean square around each place of maps.

    Units that are near on the map go on together, which makes neighbours alike. A code that is on
    alone pays about λ ``size`` |z|, and as many as all around it λ|z| each. Each step is that of
    `PooledL1`: it divides codes by 1 + step λ Σ_p w(q - p)/√(δ² + s(p)), never raises the energy,
    and leaves codes that are off near 0. The energy is convex in the codes.

    Parameters
    ----------
    size : int, default 3
        Sides of the neighbourhood of a place; 1 is its own units alone.
    sigma : float, optional
        Weights fall off as exp(-d²/2 sigma²) with the distance d to the middle of the
        neighbourhood. Default: all are equal.
    strength : float, default 0.1
        λ, in the units of the data.
    epsilon : float > 0, default 0.1
        δ/λ.
    """

    # Of the boundary and the tiles, which the model that owns it knows.
    _wraps, _period = False, 1

    def __init__(
        self,
        size: int = 3,
        sigma: float | None = None,
        strength: float = 0.1,
        epsilon: float = 0.1,
    ) -> None:
        self.size = size
        self.sigma = sigma
        self.strength = strength
        self.epsilon = epsilon

    def check_numbers(self) -> None:
        """Raise ValueError for settings that cannot be."""
        check_strength(self, "strength")
        check_count("MapPools.size", self.size)
        if self.sigma is not None and not 0 < self.sigma < math.inf:
            raise ValueError(f"MapPools.sigma must be > 0, got {self.sigma!r}")
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"MapPools.epsilon must be > 0, got {self.epsilon!r}")

    def at(self, wraps: bool = False, period: int = 1) -> MapPools:
        """The same for maps that are tori, or whose places lie in tiles of ``period`` as
        `energyscape.tiles.tiled` gives them. Maps are 0 beyond an edge."""
        other = copy.copy(self)
        other._wraps, other._period = wraps, period
        return other

    def code_value(self, z: Array) -> Array:
        """λ Σ_p (r_p - δ) of maps (n, h, w, u), r = √(δ² + s): shape (n,), float64."""
        s, delta = self._around(z), self._delta
        # r - δ = s/(r + δ), which does not cancel.
        s /= namespace(z).sqrt(s + delta**2) + delta
        return float(self.strength) * s.reshape(len(z), -1).sum(axis=1, dtype=np.float64)

    def code_grad(self, z: Array) -> Array:
        """λ z(q) Σ_p w(q - p)/r_p, the shape of z."""
        return self._units(z, self._pull(z)) * z

    def shrinkage(self, at: Array, step: float) -> Array:
        """By how much a step divides codes: 1 + step λ Σ_p w(q - p)/r_p, with r at ``at``."""
        pull = self._pull(at)
        pull *= step
        pull += 1.0
        return self._units(at, pull)

    # ------------------------------------------------------------ neighbourhoods

    @property
    def _delta(self) -> float:
        return float(self.epsilon) * float(self.strength)

    def _kernel(self) -> tuple[float, ...]:
        """w_1, from (size - 1)//2 before a place on; Σ w_1 = 1."""
        return _weights(self.size, self.sigma)

    def _around(self, z: Array) -> Array:
        """s of each place, shape (n, h, w)."""
        n, down, across, _ = z.shape
        squares, units = z * z, z.shape[3] // self._period**2
        if units > 1:
            squares = squares.reshape(n, down, across, -1, units).sum(axis=4)
        s = untiled(squares, self._period)[..., 0]
        return self._spread(s, self._kernel(), (self.size - 1) // 2)

    def _pull(self, z: Array) -> Array:
        """λ Σ_p w(q - p)/r_p of each place q, shape (n, h, w)."""
        r = self._around(z)
        r += self._delta**2
        inverse = namespace(z).sqrt(r, out=r)
        namespace(z).divide(float(self.strength), r, out=inverse)
        # The adjoint: the kernel turned round.
        return self._spread(inverse, self._kernel()[::-1], self.size // 2)

    def _spread(self, s: Array, w: tuple[float, ...], before: int) -> Array:
        """Σ_{d, e} w[d] w[e] s[p + (d, e) - before] of (n, h, w)."""
        xp, (n, *sides), more = namespace(s), s.shape, len(w) - 1
        if self._wraps:
            for axis, side in enumerate(sides, 1):
                s = xp.take(s, xp.arange(-before, side + more - before) % side, axis=axis)
        else:
            wide = xp.zeros((n, *(side + more for side in sides)), s.dtype)
            wide[:, before : before + sides[0], before : before + sides[1]] = s
            s = wide
        for axis, side in enumerate(sides, 1):
            parts = [s[(slice(None),) * axis + (slice(d, d + side),)] for d in range(len(w))]
            if w == w[:1] * len(w):  # all alike: one multiplication
                s = sum(parts[2:], parts[0] + parts[1]) if more else parts[0].copy()
                s *= w[0]
                continue
            s = parts[0] * w[0]
            for part, weight in zip(parts[1:], w[1:], strict=True):
                s += part * weight
        return s

    def _units(self, z: Array, values: Array) -> Array:
        """Values of places (n, h, w), one for every unit: the shape of z."""
        tiles, units = tiled(values[..., None], self._period), z.shape[3] // self._period**2
        if units > 1:
            tiles = namespace(z).repeat(tiles, units, axis=3)
        return tiles


@lru_cache
def _weights(size: int, sigma: float | None) -> tuple[float, ...]:
    d = np.arange(size) - (size - 1) / 2
    w = np.ones(size) if sigma is None else np.exp(-(d**2) / (2 * sigma**2))
    return tuple(float(v) for v in w / w.sum())
