"""A locally connected dictionary: every place has filters of its own, the same again a period on.

    D z = Σ_p Σ_u z(p, u) f(p mod P, u) at p

so that an image of any size has P²u different filters, and with P = 1 they are convolutional. The
units of a period are maps of a convolution: let images be cut into tiles of P × P pixels, and the
pixels of a tile be channels of one large pixel. Unit (a, b, u) then is a filter of ⌈(s + P - 1)/P⌉
large pixels a side, which is 0 but for the s × s pixels from (a, b) on; it lies at every tile.

References
----------
Gregor, K., LeCun, Y. (2010). Emergence of complex-like cells in a temporal product network with
local receptive fields. arXiv:1006.0448.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from energyscape.backend import Array, is_gpu_array, namespace
from energyscape.solvers.conv_dictionary import ConvDictionary, powers
from energyscape.solvers.laid_filters import LaidFilters
from energyscape.tiles import tiled, untiled

__all__ = ["LocalDictionary"]

_SQUARINGS = 5  # of m×m matrices: a norm to the power of 1/32 is at most m^(1/64) too large


class LocalDictionary(LaidFilters):
    """Filters of the places of a period, the images that they are to explain, and the edge.

    Parameters
    ----------
    filters : array, shape (P·P·u, fh, fw, c), float32 or float64
        Those of the place (a, b) of a period are at (aP + b)u and the next u - 1.
    image_shape : (h, w)
    period : int
        P, which divides the numbers of places h' and w'.
    boundary, mask
        As for `ConvDictionary`.

    Attributes
    ----------
    maps_shape : (h'/P, w'/P, P·P·u)
        Codes are maps as `tiled` gives them.
    weights : array, shape (h, w, 1), or None

    Raises
    ------
    ValueError
        For filters that are 0, not finite, larger than the images, or not those of a period; for
        places that are no multiple of the period; and unknown boundaries.
    """

    def __init__(
        self,
        filters: Array,
        image_shape: tuple[int, int],
        period: int,
        boundary: str = "full",
        mask: bool = False,
    ) -> None:
        super().__init__(filters, image_shape, boundary, mask)
        if len(filters) % period**2:
            raise ValueError(
                f"filters of the {period}×{period} places of a period are wanted, got "
                f"{len(filters)}, no multiple of {period**2}"
            )
        h, w = self.places
        if h % period or w % period:
            raise ValueError(
                f"images of {self.image_shape[0]}×{self.image_shape[1]} have {h}×{w} places with "
                f"the boundary {boundary!r}, which the period of {period} must divide; crop "
                f"{h % period} rows and {w % period} columns"
            )
        self.period = period
        self.maps_shape = h // period, w // period, len(filters)
        # Large pixels that a filter of a tile reaches, and with it the whole image.
        self._wide = tuple(-(-(f + period - 1) // period) for f in filters.shape[1:3])
        reach = (m + s - 1 for m, s in zip(self.maps_shape, self._wide, strict=False))
        self._conv = ConvDictionary(self._expanded(filters), tuple(reach), "full")

    # ------------------------------------------------------------ D and D'

    def synthesize(self, z: Array) -> Array:
        """D z.

        Parameters
        ----------
        z : array, shape (n, h'/P, w'/P, P·P·u)

        Returns
        -------
        array, shape (n, h, w, c)
        """
        self._check("codes", z, self.maps_shape)
        frame = untiled(self._conv.synthesize(z), self.period)
        (h, w), (top, left), (fh, fw) = self.image_shape, self.margins(), self.filters.shape[1:3]
        if self.boundary == "circular":
            frame[:, :, : fw - 1] += frame[:, :, w : w + fw - 1]
            frame[:, : fh - 1] += frame[:, h : h + fh - 1]
        return namespace(z).ascontiguousarray(frame[:, top : top + h, left : left + w])

    def analyze(self, x: Array, out: Array | None = None) -> Array:
        """D'x, the exact adjoint of `synthesize`.

        Parameters
        ----------
        x : array, shape (n, h, w, c)
        out : array, shape (n, h'/P, w'/P, P·P·u), C-contiguous, optional

        Returns
        -------
        array, shape (n, h'/P, w'/P, P·P·u)
        """
        self._check("images", x, (*self.image_shape, self.filters.shape[3]))
        return self._conv.analyze(self._large(x), out)

    def slopes(self, x: Array, z: Array) -> Array:
        """The gradient of ⟨D z, x⟩ in the filters, summed over images: their shape."""
        return self._contracted(self._conv.slopes(self._large(x), z))

    def blocks(self, n: int, width: int) -> Iterator[tuple[slice, slice]]:
        """As those of `ConvDictionary`."""
        return self._conv.blocks(n, width)

    def lipschitz(self) -> float:
        """An upper bound of the largest eigenvalue of D'D: that of the torus of tiles, of which
        other boundaries are a part, and a few per cent at most.

        The norm |A^q| of each frequency's matrix is at least the q-th power of its largest
        eigenvalue, and that is at least tr A²/tr A: squaring A goes on only where the one is above
        the other's largest, most often at a few frequencies.
        """
        xp, filters = namespace(self.filters), self._conv.filters
        if filters.shape[3] < len(filters):  # D D' has the same eigenvalues
            filters = filters.transpose(3, 1, 2, 0)
        torus = self.maps_shape[:2] if self.boundary == "circular" else self._conv.grid
        A, log = powers(filters, torus).reshape(-1, len(filters), len(filters)), 0.0
        for i in range(_SQUARINGS + 1):
            squares = (xp.real(A) ** 2 + xp.imag(A) ** 2).sum(axis=(1, 2))
            largest = xp.sqrt(squares.max())
            log = log + xp.log(largest) / 2**i
            if i == _SQUARINGS:
                break
            if not is_gpu_array(A):  # to pick some waits for a device
                # tr A >= |A|; where A is 0, rounding leaves it a trace of less.
                trace = np.maximum(np.trace(A, axis1=1, axis2=2).real, np.sqrt(squares))
                least = (squares / np.maximum(trace, np.finfo(np.float64).tiny)).max()
                A = A[np.sqrt(squares) >= (1 - 1e-9) * least]
            A = A / largest
            A = xp.matmul(A, A)
        # Rounding must not turn a bound into an estimate.
        return float(xp.exp(log)) * (1 + 1e-9)

    # ------------------------------------------------------------ tiles

    def _large(self, x: Array) -> Array:
        """What filters see of ``x`` as large pixels, 0 where the last of them go beyond it."""
        (down, across), (top, left), P = self._conv.image_shape, self.margins(), self.period
        if self.image_shape == (down * P, across * P):
            return tiled(x, P)
        wide = namespace(x).zeros((len(x), down * P, across * P, x.shape[3]), x.dtype)
        (h, w), (fh, fw) = self.image_shape, self.filters.shape[1:3]
        wide[:, top : top + h, left : left + w] = x
        if self.boundary == "circular":
            wide[:, h : h + fh - 1] = wide[:, : fh - 1]
            wide[:, :, w : w + fw - 1] = wide[:, :, : fw - 1]
        return tiled(wide, P)

    def _where(self) -> tuple[Array, Array, Array]:
        """Unit, row and column of the numbers of every filter among the pixels that tiles reach."""
        xp, (k, fh, fw, _), P = namespace(self.filters), self.filters.shape, self.period
        unit = xp.arange(k)[:, None, None]
        place = unit // (k // P**2)
        rows = place // P + xp.arange(fh)[:, None]
        return unit, rows, place % P + xp.arange(fw)

    def _expanded(self, filters: Array) -> Array:
        """Filters as those of large pixels, shape (k, S, S', P·P·c)."""
        (down, across), P, (k, _, _, c) = self._wide, self.period, filters.shape
        wide = namespace(filters).zeros((k, down * P, across * P, c), filters.dtype)
        wide[self._where()] = filters
        return tiled(wide, P)

    def _contracted(self, wide: Array) -> Array:
        """The adjoint of `_expanded`."""
        return untiled(wide, self.period)[self._where()]
