"""Filters of a convolutional dictionary: where they begin, their best answer to maps of codes, and
what a filter is replaced by that nobody uses.

    min over f of Σ_i ½ Σ m ⊙ (x_i - Σ_k z_ik * f_k)²,   |f_k| = 1

needs of the maps their correlations with each other A(k, d, l) = Σ_p z_k(p) z_l(p + d), and of the
images B = Af - ∇, the correlations of maps and images where ∇ is the gradient at the filters f that
the maps were found with. Then ½⟨g, Ag⟩ - ⟨B, g⟩ is the sum above for all filters g, up to a
constant, if every pixel that codes reach counts alike. Where pixels count less (m < 1, or beyond
the edge) it lies above, and touches it at f, so that to lower the one is to lower the other. What
an update costs does not depend on how many images there were, nor on how large they are.

One filter after the other takes its best answer among those of norm 1 to A_kk at its bound,
b f_k - (Af - B)_k; as no eigenvalue of A_kk is larger than b, no step raises the sum. For filters
of one place it is the step of `dictionary.best_atoms`.

References
----------
Mairal, J., Bach, F., Ponce, J., Sapiro, G. (2010). Online learning for matrix factorization and
sparse coding.
Moreau, T., Gramfort, A. (2020). DiCoDiLe: distributed convolutional dictionary learning. IEEE
Transactions on Pattern Analysis and Machine Intelligence. Section 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.convolution import convolve, windows
from energyscape.models.dictionary import alike_or_dead, unit_columns, worst_rows
from energyscape.solvers.conv_dictionary import ConvDictionary, conjugate, fast_length, fft
from energyscape.solvers.local_dictionary import LocalDictionary

_TINY = float(np.finfo(np.float64).tiny)
# Numbers of the products of waves that are made at once.
_AT_ONCE = 1 << 22


def laid_out(
    filters: Array, sides: tuple[int, int], boundary: str, mask: bool = False, period: int = 1
) -> ConvDictionary | LocalDictionary:
    """The dictionary of filters that are the same again a period on. Training may have led them to
    infinity, which it can go back from: FloatingPointError."""
    try:
        if period == 1:
            return ConvDictionary(filters, sides, boundary, mask)
        return LocalDictionary(filters, sides, period, boundary, mask)
    except ValueError:
        if bool(namespace(filters).isfinite(filters).all()):
            raise
        raise FloatingPointError("filters are not finite") from None


def unit_filters(D: Array) -> Array:
    """Filters (k, fh, fw, c) divided by their norms; filters of zeros stay."""
    return unit_columns(D.reshape(len(D), -1).T).T.reshape(D.shape)


def first_filters(x: Array, shape: tuple[int, int, int, int], rng: Any) -> Array:
    """Windows of images at random places, normalised; random directions where these are 0.

    Parameters
    ----------
    x : array, shape (n, h, w, c)
    shape : (k, fh, fw, c)
    rng : Stream

    Returns
    -------
    array of ``shape``
    """
    xp, (k, fh, fw, _) = namespace(x), shape
    limits = (len(x), x.shape[1] - fh + 1, x.shape[2] - fw + 1)
    draws = (rng.uniform((k,), np.float64) for _ in limits)
    image, top, left = ((u * most).astype(np.int64) for u, most in zip(draws, limits, strict=True))
    down = (top[:, None] + xp.arange(fh))[:, :, None]
    across = (left[:, None] + xp.arange(fw))[:, None]
    found = x[image[:, None, None], down, across]
    empty = (found * found).sum(axis=(1, 2, 3)) == 0
    found = xp.where(empty[:, None, None, None], rng.normal(shape, x.dtype), found)
    return unit_filters(found)


def correlations(z: Array, size: tuple[int, int], wraps: bool) -> Array:
    """A: products of maps with each other, shifted by less than a filter, summed over images.

    Parameters
    ----------
    z : array, shape (n, h', w', k)
    size : (fh, fw)
    wraps : bool
        Whether maps are tori; else they are 0 beyond their edge.

    Returns
    -------
    array, shape (k, 2 fh - 1, 2 fw - 1, k), float64
        Σ_p z_k(p) z_l(p + d) at [k, d + (fh - 1, fw - 1), l].
    """
    xp, (h, w, k), (fh, fw) = namespace(z), z.shape[1:], size
    sides = (h, w) if wraps else (fast_length(h + fh - 1), fast_length(w + fw - 1))
    down, across = (
        xp.asarray(np.arange(1 - s, s) % side) for s, side in zip(size, sides, strict=True)
    )
    # Frequencies first, so that their products are those of matrices.
    wave = fft(z).rfft2(z, s=sides, axes=(1, 2)).transpose(1, 2, 3, 0)
    other = xp.ascontiguousarray(wave.transpose(0, 1, 3, 2))
    wave = conjugate(wave.copy())
    step = max(1, _AT_ONCE // (other.shape[0] * other.shape[1] * k))
    out = xp.empty((k, 2 * fh - 1, 2 * fw - 1, k))
    for lo in range(0, k, step):
        power = xp.matmul(wave[:, :, lo : lo + step], other)
        found = fft(z).irfft2(power, s=sides, axes=(0, 1))
        out[lo : lo + step] = found[down[:, None], across].transpose(2, 0, 1, 3)
    return out


def correlated(A: Array, D: Array) -> Array:
    """Af: shape (k, fh, fw, c), where A may be that of some of the filters."""
    turned = D[:, ::-1, ::-1].transpose(3, 1, 2, 0)
    return convolve(A, namespace(D).ascontiguousarray(turned))


def best_filters(D: Array, A: Array, B: Array, sweeps: int = 1) -> Array:
    """The filters after ``sweeps`` steps of each, given the others.

    Parameters
    ----------
    D : array, shape (k, fh, fw, c)
        Where they begin; of norm 1.
    A : array, shape (k, 2 fh - 1, 2 fw - 1, k), float64
    B : array, shape (k, fh, fw, c), float64
    sweeps : int, default 1

    Returns
    -------
    array, shape and dtype of ``D``
        Filters that no code uses stay.
    """
    xp, found = namespace(D), D.astype(np.float64)
    k, fh, fw, _ = D.shape
    own = xp.abs(A[xp.arange(k), :, :, xp.arange(k)])
    # Row sums bound eigenvalues.
    bounds = windows(own[..., None], (fh, fw)).sum(axis=(3, 4, 5)).reshape(k, -1).max(axis=1)
    for _ in range(sweeps):
        for j in range(k):
            way = bounds[j] * found[j] + B[j] - correlated(A[j : j + 1], found)[0]
            norm = xp.sqrt((way * way).sum())
            moved = (bounds[j] > 0) & (norm > 0)
            found[j] = xp.where(moved, way / xp.maximum(norm, _TINY), found[j])
    return unit_filters(found).astype(D.dtype)


def wasted_filters(D: Array, usage: Array) -> Array:
    """Numbers of filters that are dead, or doubles, wherever they lie in their windows, of one that
    is used more; as `dictionary.wasted`."""
    alike = namespace(D).abs(convolve(D, D, "full")).max(axis=(1, 2))
    return alike_or_dead(alike, usage)


def worst_windows(residuals: Array, shape: tuple[int, int, int, int], count: int) -> Array:
    """Up to ``count`` windows of norm 1 that are explained worst and not alike.

    Parameters
    ----------
    residuals : array, shape (n, h, w, c)
    shape : (k, fh, fw, c)
    count : int

    Returns
    -------
    array, shape (at most count, fh, fw, c)
    """
    tiles = windows(residuals, shape[1:3], shape[1:3])
    rows = namespace(residuals).ascontiguousarray(tiles).reshape(-1, int(np.prod(shape[1:])))
    return worst_rows(rows, count).T.reshape(-1, *shape[1:])
