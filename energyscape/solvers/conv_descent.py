"""Greedy coordinate descent for codes of whole images, in many places of an image at a time.

With β = D'(x - D z) + |f_k|² z, the correlations without a code's own part, the best value of one
code with all others kept is z̄ = shrink(β, λ)/|f_k|². The code that changes most, |f_k| |z̄ - z|,
takes it, and β follows in a window of (2 fh - 1)×(2 fw - 1) around it, by the Gram tensor of the
filters (ConvCoD of Kavukcuoglu et al., 2010; there filters have norm 1).

Changes at distant places do not meet. Maps are cut into segments of at least the size of a window,
each of which takes its own greatest change (Moreau et al., 2018), and segments are coloured like a
board of four colours: those of one colour change at once. A segment whose greatest change is below
a threshold rests; the threshold falls when all rest. It is a method for sparse codes on a CPU: on a
GPU, the list of segments that change must be waited for each time.

References
----------
Kavukcuoglu, K., Sermanet, P., Boureau, Y., Gregor, K., Mathieu, M., LeCun, Y. (2010). Learning
convolutional feature hierarchies for visual recognition. NIPS. Algorithm 1.
Moreau, T., Oudre, L., Vayatis, N. (2018). DICOD: distributed convolutional coordinate descent for
convolutional sparse coding. ICML.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.kernels import soft_threshold
from energyscape.solvers.conv_dictionary import ConvDictionary
from energyscape.solvers.laid_filters import Batch, ConvCodes

__all__ = ["conv_descent"]

# Segments rest whose greatest change is below this part of the greatest one of the image.
_REST = 0.1


def conv_descent(
    dictionary: ConvDictionary,
    x: Array,
    lam: float,
    *,
    start: Array | None = None,
    positive: bool = False,
    tol: float = 1e-4,
    max_iter: int = 100_000,
) -> ConvCodes:
    """Codes of least ½ Σ (x - D z)² + λ|z|₁, for "full" and "circular" boundaries without weights.

    Parameters
    ----------
    dictionary : ConvDictionary
        One whose D'D is the same at all places.
    x : array, shape (n, h, w, c)
    lam : float
        λ > 0.
    start : array, shape (n, h', w', k), optional
        Codes to begin with, >= 0 if ``positive``; zeros if left out.
    positive : bool, default False
        Whether codes are kept >= 0.
    tol : float, default 1e-4
        An image is done when its duality gap is at most ``tol`` · ½ Σ x².
    max_iter : int, default 100_000
        Sweeps, in each of which every segment changes one code at most.

    Returns
    -------
    ConvCodes
        In the dtype and container of the filters. No warning is given where ``max_iter`` came
        before ``tol``: compare `gap`.

    Raises
    ------
    ValueError
        For a "valid" boundary and for weights of pixels, images or codes of other shapes, infinite
        images and λ <= 0.
    """
    if dictionary.boundary == "valid" or dictionary.weights is not None:
        what = "a 'valid' boundary" if dictionary.boundary == "valid" else "weights of pixels"
        raise ValueError(
            f"conv_descent needs a D'D that is the same at all places; with {what} it is not near "
            "the border. Solvers that can: conv_fista, conv_admm."
        )
    batch = Batch(dictionary, x, lam, tol, positive)
    z, done, stuck = dictionary.start(len(x), start, positive), 0, False
    while True:
        residual = batch.x - dictionary.synthesize(z)
        keep = batch.leave(z, residual, last=stuck or done >= max_iter)
        if not len(batch.x):
            break
        if keep is not None:
            z, residual = z[keep], residual[keep]
        # β is computed anew each time: many small changes add up roundings.
        search = _Search(dictionary, z, dictionary.analyze(residual), batch.lam, positive)
        sweeps = search.run(max_iter - done)
        z, done = search.codes(), done + sweeps
        stuck = not sweeps  # nothing changes any more in numbers of this precision
    return batch.codes(done)


class _Search:
    """β, z and, of each place, the greatest change and the code that would make it."""

    def __init__(
        self, dictionary: ConvDictionary, z: Array, q: Array, lam: float, positive: bool
    ) -> None:
        xp, (fh, fw) = namespace(z), dictionary.filters.shape[1:3]
        self._lam, self._positive, self._maps = lam, positive, dictionary.maps_shape[:2]
        self._wraps = dictionary.boundary == "circular"
        self._norms = dictionary.squared_norms.astype(z.dtype)
        gram = dictionary.gram()
        # Windows reach over the border of maps that do not wrap, where nobody looks.
        self._margins = (0, 0) if self._wraps else (fh - 1, fw - 1)
        self._offsets = []
        for axis, (size, length) in enumerate(zip((fh, fw), self._maps, strict=True)):
            offsets = np.arange(1 - size, size)
            if self._wraps and length < len(offsets):
                gram, offsets = _folded(gram, axis + 1, length), np.arange(length)
            self._offsets.append(offsets)
        self._gram, self._colours = gram, self._board(xp, fh, fw)
        self._z, self._beta = self._padded(z), self._padded(q + self._norms * z)
        self._best, self._which = self._changes(self._beta, self._z)

    def run(self, max_sweeps: int) -> int:
        """Change codes until all changes left are small; returns in how many sweeps."""
        (top, left), (h, w) = self._margins, self._maps
        inside = self._best[:, top : top + h, left : left + w]
        rest = inside.reshape(len(inside), -1).max(axis=1) * _REST
        for sweep in range(max_sweeps):
            moved = [self._visit(rows, columns, rest) for rows, columns in self._colours]
            if not any(moved):
                return sweep
        return max_sweeps

    def codes(self) -> Array:
        (top, left), (h, w) = self._margins, self._maps
        return self._z[:, top : top + h, left : left + w]

    def _visit(self, rows: Array, columns: Array, rest: Array) -> bool:
        """One change in each segment of a colour that does not rest."""
        xp, n = namespace(rest), len(rest)
        places = self._best[:, rows[:, None, :, None], columns[None, :, None, :]]
        (down, high), (across, wide) = rows.shape, columns.shape
        places = places.reshape(n * down * across, high * wide)
        awake = places.max(axis=1) > xp.repeat(rest, down * across)
        chosen = xp.arange(len(places))[awake]
        if not len(chosen):
            return False
        at, segment = places.argmax(axis=1)[chosen], chosen % (down * across)
        i = rows[segment // across, at // wide]
        j = columns[segment % across, at % wide]
        self._change(chosen // (down * across), i, j)
        return True

    def _change(self, image: Array, i: Array, j: Array) -> None:
        """The greatest change at each of these places."""
        xp, k = namespace(i), self._which[image, i, j]
        own = self._beta[image, i, j, k]
        best = soft_threshold(own, self._lam, self._positive) / self._norms[k]
        change = best - self._z[image, i, j, k]
        self._z[image, i, j, k] = best
        around = []
        for at, offsets, length in zip((i, j), self._offsets, self._maps, strict=True):
            found = at[:, None] + xp.asarray(offsets)
            around.append(found % length if self._wraps else found)
        window = image[:, None, None], around[0][:, :, None], around[1][:, None, :]
        moved = self._gram[k]
        moved *= -change[:, None, None, None]
        moved += self._beta[window]
        self._beta[window] = moved
        self._beta[image, i, j, k] = own
        self._best[window], self._which[window] = self._changes(self._beta[window], self._z[window])

    def _changes(self, beta: Array, z: Array) -> tuple[Array, Array]:
        """Greatest |f_k| |z̄ - z| over k, the root of twice what it takes off P at least, and k."""
        xp = namespace(beta)
        change = soft_threshold(beta, self._lam, self._positive)
        change -= self._norms * z
        xp.abs(change, out=change)
        change /= xp.sqrt(self._norms)
        return change.max(axis=-1), change.argmax(axis=-1)

    def _padded(self, maps: Array) -> Array:
        (top, left), (n, h, w, k) = self._margins, maps.shape
        whole = namespace(maps).zeros((n, h + 2 * top, w + 2 * left, k), maps.dtype)
        whole[:, top : top + h, left : left + w] = maps
        return whole

    def _board(self, xp: Any, fh: int, fw: int) -> list[tuple[Array, Array]]:
        """Rows and columns of the segments of each colour: (segments, places) each."""
        lines = []
        for size, length, margin in zip((fh, fw), self._maps, self._margins, strict=True):
            count = max(1, length // (2 * size - 1))
            if self._wraps and count > 1:
                count -= count % 2  # the last one meets the first, of the other colour
            edges = np.arange(count + 1) * length // count
            places = edges[:-1, None] + np.arange(np.diff(edges).max())
            # Shorter segments name their last place twice.
            lines.append(np.minimum(places, edges[1:, None] - 1) + margin)
        return [
            (xp.asarray(lines[0][a::2]), xp.asarray(lines[1][b::2]))
            for a in (0, 1)
            for b in (0, 1)
            if len(lines[0]) > a and len(lines[1]) > b
        ]


def _folded(gram: Array, axis: int, length: int) -> Array:
    """The Gram tensor on a torus narrower than its windows: offsets 0 … length - 1 of an axis."""
    size = (gram.shape[axis] + 1) // 2
    parts = [0] * length
    for offset in range(1 - size, size):
        at = (slice(None),) * axis + (offset + size - 1,)
        parts[offset % length] = parts[offset % length] + gram[at]
    return namespace(gram).stack(parts, axis=axis)
