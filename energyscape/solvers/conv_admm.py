"""ADMM for codes of whole images: a quadratic problem on a torus and a shrinkage, in turn.

    minimise ½|s - D z|² + λ|y|₁ where z = y:        θ = λ/ρ, and with scaled multipliers u

    z = argmin ½|s - D z|² + ρ/2 |z - y + u|² = v + D'(ρ + D D')⁻¹ (s - D v)        v = y - u
    y = shrink(a z + (1 - a) y + u, θ),    u += a z + (1 - a) y_before - y           a = 1.8

On a torus D D' is a c×c matrix per frequency (one number for grey images: the Sherman–Morrison
formula of Wohlberg, Woodbury's for colours), so that only images, not the k maps, go through the
DFT; D and D' are the products of the dictionary. As u = clip(w, -θ, θ) and y = w - u for
w = y_before + u, the state is w alone, and w += a (D'(ρ + D D')⁻¹ (s - D v) - u). It is kept in
units of θ, where to clip needs numbers alone, and images take the factors, which are smaller.

A dictionary of another boundary is a part of a circular one (`conv_dictionary`). Codes that it does
not have are 0 in y. Pixels that it does not have, or that weigh m < 1, need a second split, that of
r = D z - s (mask decoupling): ½ Σ m r² + ½|D z - s - r + u₀|² takes the place of the first term,
and s + r - u₀ that of s. Its penalty is 1, the largest m.

References
----------
Boyd, S., Parikh, N., Chu, E., Peleato, B., Eckstein, J. (2011). Distributed optimization and
statistical learning via the alternating direction method of multipliers. Sections 3.3, 3.4.
Wohlberg, B. (2016). Efficient algorithms for convolutional sparse representations. IEEE
Transactions on Image Processing 25(1).
Heide, F., Heidrich, W., Wetzstein, G. (2015). Fast and flexible convolutional sparse coding. CVPR.
Wohlberg, B. (2017). ADMM penalty parameter selection by residual balancing. arXiv:1704.06209.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.solvers.conv_dictionary import ConvDictionary, conjugate, fft
from energyscape.solvers.laid_filters import Batch, ConvCodes

__all__ = ["TorusSolver", "conv_admm"]

# The gap takes two more products and a synchronisation of the host.
_CHECK_EVERY = 10
_RELAXATION = 1.8
# ρ is balanced in this many iterations only: convergence is proven for one that stays (Boyd et al.,
# section 3.4.1).
_BALANCE_UNTIL = 300
_BALANCED, _LARGEST_CHANGE = 1.2, 10.0  # changes of ρ below the one are not made, nor larger ones
# Relative residuals |z - y|/|y| and |y - y_before|/|u| are kept at this ratio, and ρ starts at the
# mean eigenvalue of D D' times (λ/λ_max)^1.25. Measured on a natural image with Gabor and with
# random filters: after 200 iterations E is 2 to 100 times as far from the least at a ratio of 1 if
# λ/λ_max is 0.1 or 0.3, and at one of 3 up to 3 times if it is 0.02. ρ moved by 0.6 to 1.2.
_RATIO, _RHO_POWER = 2.0, 1.25


def conv_admm(
    dictionary: ConvDictionary,
    x: Array,
    lam: float,
    *,
    start: Array | None = None,
    positive: bool = False,
    tol: float = 1e-4,
    max_iter: int = 1000,
) -> ConvCodes:
    """Codes of least ½ Σ m ⊙ (x - D z)² + λ|z|₁, at any boundary: the sparse ones, y.

    Parameters
    ----------
    dictionary : ConvDictionary
    x : array, shape (n, h, w, c)
    lam : float
        λ > 0.
    start : array, shape (n, h', w', k), optional
        Codes to begin with, >= 0 if ``positive``; zeros if left out.
    positive : bool, default False
        Whether codes are kept >= 0.
    tol : float, default 1e-4
        An image is done when the duality gap of y is at most ``tol`` · ½ Σ m x².
    max_iter : int, default 1000

    Returns
    -------
    ConvCodes
        In the dtype and container of the filters. No warning is given where ``max_iter`` came
        before ``tol``: compare `gap`.

    Raises
    ------
    ValueError
        For images or codes of other shapes, infinite images and λ <= 0.
    """
    batch = Batch(dictionary, x, lam, tol, positive)
    z = dictionary.start(len(x), start, positive)
    state = _State(dictionary, batch.x, batch.lam, z, positive)
    for i in range(max_iter + 1):
        check = i % _CHECK_EVERY == 0 or i == max_iter
        if check:
            z = state.codes() if i else z
            keep = batch.leave(z, batch.x - dictionary.synthesize(z), last=i == max_iter)
            if not len(batch.x):
                break
            if keep is not None:
                state.keep(keep)
        state.advance(balance=check and 0 < i <= _BALANCE_UNTIL)
    return batch.codes(i)


class TorusSolver:
    """The systems (ρ + D D') t = d of a circular dictionary, by the DFT.

    Parameters
    ----------
    torus : ConvDictionary
        "circular".
    """

    def __init__(self, torus: ConvDictionary) -> None:
        self.values, self._vectors = torus.spectrum()
        complex_type = np.complex64 if torus.dtype == np.float32 else np.complex128
        self._vectors = self._vectors.astype(complex_type)
        self._shape, self._dtype = torus.image_shape, torus.dtype

    def __call__(self, d: Array, rho: Array) -> Array:
        """t for images d (n, h, w, c) and a ρ for each, shape (n,), float64."""
        xp, c = namespace(d), d.shape[3]
        factors = (1.0 / (rho[:, None, None, None] + self.values)).astype(self._dtype)
        wave = fft(d).rfft2(d, axes=(1, 2))
        if c == 1:
            wave *= factors
        else:
            # V'ŵ as the conjugate of V^T conj(ŵ), for the vectors V: no second set of them.
            wave = xp.einsum("hwab,nhwa->nhwb", self._vectors, conjugate(wave))
            wave = conjugate(wave)
            wave *= factors
            wave = xp.einsum("hwab,nhwb->nhwa", self._vectors, wave)
        return fft(d).irfft2(wave, s=self._shape, axes=(1, 2)).astype(self._dtype, copy=False)


class _State:
    """w in units of θ, v = w - 2u, ρ and what else moves, on the torus, for the images that are
    left."""

    def __init__(
        self, dictionary: ConvDictionary, x: Array, lam: float, z: Array, positive: bool
    ) -> None:
        xp, n, tiny = namespace(x), len(x), np.finfo(np.float64).tiny
        self.torus, self.maps = dictionary.torus(), dictionary.maps_shape[:2]
        self.solve, self.lam, self.positive = TorusSolver(self.torus), lam, positive
        share = xp.minimum(lam / xp.maximum(dictionary.lam_max(x), tiny), 1.0)
        self.rho = float(self.solve.values.mean()) * share**_RHO_POWER
        self.image, self.weights = _on_torus(dictionary, x), None
        if dictionary.weights is not None or dictionary.boundary == "valid":
            ones = xp.ones((1, *x.shape[1:3], 1), x.dtype)
            self.weights = _on_torus(dictionary, dictionary.weighted(ones))[0]
        h, w = self.maps
        self.w = xp.zeros((n, *self.torus.maps_shape), x.dtype)
        self.w[:, :h, :w] = z
        # Multipliers as they are at a solution: u₀ = m ⊙ (D z - x), ρ u = -D' of it.
        self.w0 = self.torus.synthesize(self.w) - self.image
        slope = self.w0 if self.weights is None else self.w0 * self.weights
        self.w *= _spread(self.rho / lam, x.dtype)
        self.v = self.torus.analyze(slope * (-1 / lam))
        self.w += self._dual(self.v, 0)
        self.w0 = self.w0 + slope
        self._reflect()

    def codes(self) -> Array:
        """y, where the dictionary has codes."""
        h, w = self.maps
        found = self.w[:, :h, :w]
        found = found - self._dual(self.w, 0)[:, :h, :w]
        found *= _spread(self.lam / self.rho, found.dtype)
        return found

    def keep(self, places: Array) -> None:
        """Go on with some of the images."""
        self.rho, self.image, self.w, self.w0, self.v = (
            a[places] for a in (self.rho, self.image, self.w, self.w0, self.v)
        )

    def advance(self, balance: bool) -> None:
        """One iteration; ρ is changed too if ``balance``."""
        reflected = self.torus.synthesize(self.v)
        reflected *= _spread(self.lam / self.rho, reflected.dtype)
        rest = self._residual(reflected)
        rest *= _spread(self.rho / self.lam, rest.dtype)
        step = self.torus.analyze(rest, out=self.v)
        norms = namespace(step).zeros((4, len(step)))
        for images, rows in self._blocks():
            w, g = self.w[images, rows], step[images, rows]
            u = self._dual(w, rows.start)
            y = w - u if balance else None
            g -= u
            if balance:
                norms[:3, images] += _squares(g, u, y)
            g *= _RELAXATION
            w += g
            u = self._dual(w, rows.start, out=u)
            if balance:
                y -= w
                y += u
                norms[3:, images] += _squares(y)
            else:  # as `_reflect`, while they are in the cache
                namespace(u).multiply(u, -2, out=g)
                g += w
        if balance:
            self._balance(norms)
            self._reflect()

    def _reflect(self) -> None:
        for images, rows in self._blocks():
            w, v = self.w[images, rows], self.v[images, rows]
            u = self._dual(w, rows.start)
            u *= -2
            u += w
            v[...] = u

    def _blocks(self) -> Iterator[tuple[slice, slice]]:
        return self.torus.blocks(len(self.w), 2 * self.torus.maps_shape[2])

    def _dual(self, w: Array, top: int, out: Array = None) -> Array:
        """u of rows from ``top`` on: what shrinkage takes off, all where there is no code."""
        h, across = self.maps
        u = namespace(w).clip(w, -np.inf if self.positive else -1, 1, out=out)
        if w.shape[2] > across:
            u[:, :, across:] = w[:, :, across:]
        first = max(0, h - top)
        if w.shape[1] > first:
            u[:, first:] = w[:, first:]
        return u

    def _residual(self, reflected: Array) -> Array:
        """t such that z = v + D't, for D v; the second split moves as well."""
        if self.weights is None:
            return self.solve(self.image - reflected, self.rho)
        # The least ½ m r² + ½ (r - w₀)² leaves u₀ = m/(m + 1) w₀.
        u0 = self.weights / (self.weights + 1) * self.w0
        target = self.w0 - 2 * u0
        target += self.image
        target -= reflected
        t = self.solve(target, self.rho)
        # D z - s - r is -u₀ - ρ t, as D D'(ρ + D D')⁻¹ is 1 - ρ (ρ + D D')⁻¹.
        u0 += t * _spread(self.rho, t.dtype)
        u0 *= _RELAXATION
        self.w0 -= u0
        return t

    def _balance(self, norms: Array) -> None:
        """Bring the ratio of relative residuals nearer to `_RATIO` (Wohlberg, 2017), from the
        squared norms of z - y, u, y and y - y_before."""
        xp = namespace(norms)
        off, u, y, moved = norms
        known = (off > 0) & (u > 0) & (y > 0) & (moved > 0)
        ratio = xp.sqrt(xp.where(known, off * u, 1.0) / xp.where(known, y * moved, 1.0))
        ratio = xp.where(known, ratio / _RATIO, 1.0)
        factor = xp.clip(xp.sqrt(ratio), 1 / _LARGEST_CHANGE, _LARGEST_CHANGE)
        factor = xp.where((factor > _BALANCED) | (factor < 1 / _BALANCED), factor, 1.0)
        # y stays, and u in units of θ.
        y = self.w - self._dual(self.w, 0)
        y *= _spread(factor - 1, y.dtype)
        self.w += y
        self.rho = self.rho * factor


def _on_torus(dictionary: ConvDictionary, x: Array) -> Array:
    """Images with zeros around them, where only the torus has pixels."""
    (h, w), (top, left) = dictionary.image_shape, dictionary.margins()
    whole = namespace(x).zeros((len(x), *dictionary.grid, x.shape[3]), x.dtype)
    whole[:, top : top + h, left : left + w] = x
    return whole


def _spread(value: Any, dtype: Any) -> Any:
    """A number for each image as an array that multiplies images and maps."""
    return value.astype(dtype)[:, None, None, None]


def _squares(*arrays: Array) -> Array:
    """Sums of squares of each image: (number of arrays, n)."""
    xp = namespace(arrays[0])
    return xp.stack([(a * a).sum(axis=(1, 2, 3)).astype(np.float64) for a in arrays])
