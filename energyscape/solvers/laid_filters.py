"""Filters at the places of an image: what such dictionaries share, and what solvers ask of them.

    P(z) = ½ Σ m ⊙ (x - D z)² + λ|z|₁        x (n, h, w, c), f (k, fh, fw, c)

What happens at the edge is the ``boundary``:

    full        filters lie inside the image, h' = h - fh + 1 places
    valid       all that meet it, h' = h + fh - 1: border pixels have as many codes as others
    circular    the image is a torus, h' = h
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from energyscape.backend import Array, namespace, to_host
from energyscape.solvers.duality import duality_gap

_LONGER = {"full": 1, "valid": -1, "circular": 0}
BOUNDARIES = tuple(_LONGER)


def longer(boundary: str, size: int) -> int:
    """By how much an image is longer than its places, of filters of that ``size``."""
    return _LONGER[boundary] * (size - 1)


@dataclass(frozen=True)
class ConvCodes:
    """What a solver found.

    Parameters
    ----------
    z : array, shape (n, h', w', k)
    gap : array, shape (n,), float64
        Duality gap of each image over ½ Σ m x²: more than the ``tol`` that was asked for where
        ``max_iter`` came first.
    n_iter : int
        Iterations of the slowest image.
    """

    z: Array
    gap: Array
    n_iter: int


class LaidFilters:
    """Base of dictionaries of images: a subclass writes `synthesize`, `analyze`, `lipschitz` and
    `blocks`, and says what ``maps_shape`` is."""

    maps_shape: tuple[int, int, int]

    def __init__(
        self, filters: Array, image_shape: tuple[int, int], boundary: str, mask: bool
    ) -> None:
        if filters.ndim != 4 or filters.dtype not in (np.float32, np.float64):
            raise ValueError(
                "filters (k, fh, fw, c) of float32 or float64 are wanted, got shape "
                f"{filters.shape} of {filters.dtype}"
            )
        if boundary not in BOUNDARIES:
            raise ValueError(f"boundary must be one of {BOUNDARIES}, got {boundary!r}")
        (h, w), (_, fh, fw, _) = image_shape, filters.shape
        if h < fh or w < fw:
            raise ValueError(f"images of {h}×{w} are smaller than the filters of {fh}×{fw}")
        xp = namespace(filters)
        norms = (filters.astype(np.float64) ** 2).sum(axis=(1, 2, 3))
        if not bool((xp.isfinite(norms) & (norms > 0)).all()):
            raise ValueError("Filters contain NaN or infinity, or are 0 everywhere.")
        sides = h - longer(boundary, fh), w - longer(boundary, fw)
        self.filters, self.boundary, self.dtype = filters, boundary, filters.dtype
        self.image_shape, self.places = (int(h), int(w)), (int(sides[0]), int(sides[1]))
        self.squared_norms = norms
        self.weights = self._coverage() if mask and boundary == "full" else None

    def synthesize(self, z: Array) -> Array:
        """D z."""
        raise NotImplementedError

    def analyze(self, x: Array, out: Array | None = None) -> Array:
        """D'x."""
        raise NotImplementedError

    def lipschitz(self) -> float:
        """An upper bound of the largest eigenvalue of D'D."""
        raise NotImplementedError

    def blocks(self, n: int, width: int) -> Iterator[tuple[slice, slice]]:
        """(images, rows of their maps) that are worked on together."""
        raise NotImplementedError

    def margins(self) -> tuple[int, int]:
        """Rows above and columns to the left of the image that codes can reach."""
        fh, fw = self.filters.shape[1:3]
        return (fh - 1, fw - 1) if self.boundary == "valid" else (0, 0)

    def lam_max(self, x: Array) -> Array:
        """The λ from which on all codes are 0: |D'(m ⊙ x)|_∞ of each image, shape (n,), float64."""
        q = self.analyze(self.weighted(self.images(x)))
        return abs(q.reshape(len(q), -1)).max(axis=1).astype(np.float64)

    def images(self, x: Array) -> Array:
        """``x`` in the dtype of the filters, if these are finite images of the right shape."""
        self._check("images", x, (*self.image_shape, self.filters.shape[3]))
        if not len(x):
            raise ValueError(
                f"Found array with 0 sample(s) (shape={x.shape}) while a minimum of 1 is required."
            )
        x = x.astype(self.dtype, copy=False)
        if not bool(namespace(x).isfinite(x).all()):
            raise ValueError("Input X contains NaN or infinity.")
        return x

    def start(self, n: int, start: Array | None, positive: bool) -> Array:
        """Codes to begin with, a copy of ``start`` or zeros: shape (n, h', w', k)."""
        if start is None:
            return namespace(self.filters).zeros((n, *self.maps_shape), self.dtype)
        self._check("codes", start, self.maps_shape)
        if len(start) != n:
            raise ValueError(f"start has the codes of {len(start)} images, wanted those of {n}")
        if positive and bool((start < 0).any()):
            raise ValueError("Negative values in start, but positive codes are wanted")
        return start.astype(self.dtype, copy=True)

    def weighted(self, residual: Array) -> Array:
        """m ⊙ ``residual``; the same array where all pixels weigh 1."""
        return residual if self.weights is None else residual * self.weights

    def relative_gap(
        self,
        x: Array,
        z: Array,
        residual: Array,
        lam: float,
        positive: bool = False,
        alpha: float = 0.0,
        prediction: Array | None = None,
    ) -> Array:
        """Duality gap over ½ Σ m x² + (α/2)|f|², of images with the residual x - D z: shape (n,),
        float64.

        The weights are √m in front of D and x, so that `duality_gap` needs D'(m ⊙ r) and Σ m r²; a
        prediction f is further rows √α of the identity, and further pixels √α f.
        """
        weighted = self.weighted(residual)
        q = self.analyze(weighted)
        squares, energy = _dot(weighted, residual), 0.5 * _dot(self.weighted(x), x)
        if alpha:
            away = z - prediction
            squares += alpha * _dot(away, away)
            energy += 0.5 * alpha * _dot(prediction, prediction)
            away *= alpha
            q -= away
        gap = duality_gap(z, q, squares, lam, positive)
        # Of an image that is 0, codes of 0 leave no gap.
        return gap / namespace(x).maximum(energy, np.finfo(np.float64).tiny)

    def steepest(
        self,
        z: Array,
        residual: Array,
        penalty: Any = None,
        positive: bool = False,
        alpha: float = 0.0,
        prediction: Array | None = None,
    ) -> Array:
        """The largest slope of the energy, of a smooth ``penalty``, in the codes of each image:
        shape (n,), float64."""
        xp, q = namespace(z), self.analyze(self.weighted(residual))
        if penalty is not None:
            q -= penalty.code_grad(z)
        if alpha:
            q += alpha * (prediction - z)
        if positive:
            q = xp.where((z == 0) & (q < 0), 0, q)
        return xp.abs(q.reshape(len(q), -1)).max(axis=1).astype(np.float64)

    def _check(self, what: str, given: Array, shape: tuple[int, ...]) -> None:
        if given.ndim != 4 or tuple(given.shape[1:]) != shape:
            raise ValueError(
                f"{what} of shape (n, {', '.join(map(str, shape))}) are wanted by a "
                f"{self.boundary!r} dictionary of images of {self.image_shape}, got {given.shape}"
            )

    def _coverage(self) -> Array:
        """The share of the places that cover a pixel, largest 1."""
        counts = []
        for side, size in zip(self.image_shape, self.filters.shape[1:3], strict=True):
            i = np.arange(side)
            counts.append(np.minimum(i, side - size) - np.maximum(i - size + 1, 0) + 1)
        found = np.outer(*counts) / (counts[0].max() * counts[1].max())
        return namespace(self.filters).asarray(found.astype(self.dtype)[:, :, None])


class Batch:
    """The images that a solver still works on: those that are done leave it.

    Parameters
    ----------
    dictionary : LaidFilters
    x : array, shape (n, h, w, c)
    lam, tol : float
    positive : bool
    alpha : float, default 0
    prediction : array, shape (n, h', w', k), optional
        What codes are pulled to.
    penalty : penalty of maps, optional
        In place of λ|z|₁; its λ is ``lam``.

    Attributes
    ----------
    x : array
        Images that are left, in the dtype of the dictionary.
    lam : float
        A Python float: NumPy's would turn float32 arrays into float64.
    """

    def __init__(
        self,
        dictionary: LaidFilters,
        x: Array,
        lam: float,
        tol: float,
        positive: bool,
        alpha: float = 0.0,
        prediction: Array | None = None,
        penalty: Any = None,
    ) -> None:
        if not (lam > 0 and math.isfinite(lam)):
            raise ValueError(f"lam must be a number > 0, got {lam}")
        self.x, self.lam = dictionary.images(x), float(lam)
        self._dictionary, self._tol, self._positive = dictionary, tol, positive
        self.alpha, self.prediction, self.penalty = float(alpha), prediction, penalty
        xp, n = namespace(self.x), len(x)
        self._z = xp.empty((n, *dictionary.maps_shape), dictionary.dtype)
        self._gap, self._rows = np.empty(n), np.arange(n)
        self._most: Array = None
        if penalty is not None:
            none = xp.zeros_like(self._z)
            most = dictionary.steepest(none, self.x, alpha=self.alpha, prediction=prediction)
            self._most = xp.maximum(most, np.finfo(np.float64).tiny)

    def gap(self, z: Array, residual: Array) -> Array:
        """Duality gap of each image that is left, with the residual x - D z, over the energy of
        z = 0; with a ``penalty`` the largest slope over that at z = 0. Shape (n,), float64."""
        pull = self._positive, self.alpha, self.prediction
        if self.penalty is None:
            return self._dictionary.relative_gap(self.x, z, residual, self.lam, *pull)
        return self._dictionary.steepest(z, residual, self.penalty, *pull) / self._most

    def leave(self, z: Array, residual: Array, last: bool) -> Array | None:
        """Take note of the codes of images whose gap is small enough, of all if it is the ``last``
        time. Returns the places among ``z`` of those that stay, None if all do."""
        gap = to_host(self.gap(z, residual))
        self._gap[self._rows] = gap
        done = (gap <= self._tol) | last
        if not done.any():
            return None
        xp = namespace(z)
        keep, gone = xp.asarray(np.flatnonzero(~done)), xp.asarray(np.flatnonzero(done))
        self._z[xp.asarray(self._rows[done])] = z[gone]
        self.x, self._rows = self.x[keep], self._rows[~done]
        self.prediction = None if self.prediction is None else self.prediction[keep]
        self._most = None if self._most is None else self._most[keep]
        return keep

    def codes(self, n_iter: int) -> ConvCodes:
        """The result, when all have left."""
        return ConvCodes(self._z, namespace(self._z).asarray(self._gap), n_iter)


def _dot(a: Array, b: Array) -> Array:
    """Inner product of each image, summed in float64: shape (n,)."""
    return (a * b).reshape(len(a), -1).sum(axis=1, dtype=np.float64)
