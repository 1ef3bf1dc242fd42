"""A convolutional dictionary: images as sums of filters at many places, D z = Σ_k z_k * f_k.

    P(z) = ½ Σ m ⊙ (x - D z)² + λ|z|₁        x (n, h, w, c), f (k, fh, fw, c), z (n, h', w', k)

z(p, k) puts the filter k with its corner at p, so that D is the adjoint of the cross-correlation of
`energyscape.convolution`, and D' is this correlation. What happens at the edge is the ``boundary``:

    full        filters lie inside the image, h' = h - fh + 1
    valid       all that meet it, h' = h + fh - 1: border pixels have as many codes as others
    circular    the image is a torus, h' = h

Few codes reach the border of a "full" image, and they grow to explain it; there weights m of pixels
help, the share of the places whose filters cover the pixel. All three are parts of one circular
dictionary: "full" has some of its codes, "valid" some of its pixels.

References
----------
Kavukcuoglu, K., Sermanet, P., Boureau, Y., Gregor, K., Mathieu, M., LeCun, Y. (2010). Learning
convolutional feature hierarchies for visual recognition. NIPS.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.fft

from energyscape import strips
from energyscape.backend import Array, is_gpu_array, namespace
from energyscape.convolution import convolve, filters_grad
from energyscape.kernels import col2im, im2col, matmul
from energyscape.solvers.laid_filters import LaidFilters

__all__ = ["ConvDictionary"]

# So many elements of maps stay in the cache.
_BLOCK = 1 << 18
# Filters of more pixels go through the DFT. Time of D and D' by windows over that by the DFT, of 64
# filters on 256×256 in float32, one thread: 0.37 for 8×8 (0.55 with 3 channels), 0.78 for 12×12
# (1.13), 1.13 for 16×16. The second number is of images of several channels.
_LARGEST_DIRECT = 150, 125
# On a GPU a model says when, not yet a measurement: products at so many operations in the time of a
# byte of memory (13 of an A100 in float32, 18 of an H100), windows written and read, and transforms
# in two passes each way.
_PER_BYTE, _WINDOW_BYTES, _MAP_BYTES = 15.0, 8.0, 40.0


class ConvDictionary(LaidFilters):
    """Filters, the images that they are to explain, and what happens at the edge.

    Parameters
    ----------
    filters : array, shape (k, fh, fw, c), float32 or float64
        Of any norm but 0. All products are made in their dtype, on their device.
    image_shape : (h, w)
    boundary : {"full", "valid", "circular"}, default "full"
    mask : bool, default False
        Whether a pixel weighs as the number of places whose filters cover it, over the largest such
        number. With "valid" and "circular" all pixels weigh 1 anyway.

    Attributes
    ----------
    maps_shape : (h', w', k)
    weights : array, shape (h, w, 1), or None
        m where pixels differ. `synthesize` and `analyze` know nothing of it: P has the gradient
        -D'(m ⊙ (x - D z)).
    grid : (int, int)
        Sides of the torus of which this dictionary is a part.

    Raises
    ------
    ValueError
        For filters that are 0, not finite or larger than the images, and unknown boundaries.
    """

    def __init__(
        self,
        filters: Array,
        image_shape: tuple[int, int],
        boundary: str = "full",
        mask: bool = False,
    ) -> None:
        super().__init__(filters, image_shape, boundary, mask)
        (h, w), k = self.image_shape, len(filters)
        sides, self.maps_shape = self.places, (*self.places, k)
        grow = int if boundary == "circular" else fast_length
        self.grid = grow(max(h, sides[0])), grow(max(w, sides[1]))
        self._wave: Array = None

    # ------------------------------------------------------------ D and D'

    def synthesize(self, z: Array) -> Array:
        """D z.

        Parameters
        ----------
        z : array, shape (n, h', w', k)
            In the dtype and container of the filters.

        Returns
        -------
        array, shape (n, h, w, c)
        """
        self._check("codes", z, self.maps_shape)
        return self._synthesize_dft(z) if self._by_dft() else self._synthesize_direct(z)

    def analyze(self, x: Array, out: Array | None = None) -> Array:
        """D'x, the exact adjoint of `synthesize`.

        Parameters
        ----------
        x : array, shape (n, h, w, c)
            In the dtype and container of the filters.
        out : array, shape (n, h', w', k), C-contiguous, optional
            Pages of new memory cost as much as a tenth of the product.

        Returns
        -------
        array, shape (n, h', w', k)
        """
        self._check("images", x, (*self.image_shape, self.filters.shape[3]))
        out = namespace(x).empty((len(x), *self.maps_shape), self.dtype) if out is None else out
        (self._analyze_dft if self._by_dft() else self._analyze_direct)(x, out)
        return out

    def slopes(self, x: Array, z: Array) -> Array:
        """The gradient of ⟨D z, x⟩ in the filters, summed over images: shape (k, fh, fw, c)."""
        size = self.filters.shape[1:3]
        if not is_gpu_array(x):
            return filters_grad(self._framed(x), z, size)
        total = namespace(x).zeros_like(self.filters)
        for image, maps in zip(x, z, strict=True):  # windows take fh fw as much as an image
            total += filters_grad(self._framed(image[None]), maps[None], size)
        return total

    def _framed(self, x: Array) -> Array:
        """Images with all pixels that filters reach: wrapped on a torus, 0 beyond an edge."""
        xp, (fh, fw) = namespace(x), self.filters.shape[1:3]
        if self.boundary == "circular":
            x = xp.concatenate([x, x[:, : fh - 1]], axis=1)
            return xp.concatenate([x, x[:, :, : fw - 1]], axis=2)
        (top, left), (n, h, w, c) = self.margins(), x.shape
        if not (top or left):
            return x
        frame = xp.zeros((n, h + 2 * top, w + 2 * left, c), x.dtype)
        frame[:, top : top + h, left : left + w] = x
        return frame

    def torus(self) -> ConvDictionary:
        """The circular dictionary of which this is a part: its codes are the first h' × w', its
        pixels those from `margins` on."""
        if self.boundary == "circular":
            return self
        return ConvDictionary(self.filters, self.grid, "circular")

    def blocks(self, n: int, width: int) -> Iterator[tuple[slice, slice]]:
        """(images, rows of their maps) that stay in the cache if a place has ``width`` numbers:
        several whole images or rows of one; all at once on a GPU."""
        h, w, _ = self.maps_shape
        most = n * h if is_gpu_array(self.filters) else _BLOCK // (w * width)
        return strips.blocks(n, h, most)

    # ------------------------------------------------------------ what is known of D

    def gram(self) -> Array:
        """Inner products of a filter with those at the places around it, all inside the image.

        Returns
        -------
        array, shape (k, 2 fh - 1, 2 fw - 1, k)
            D'D between (p, k) and (p + d, l) at [k, d + (fh - 1, fw - 1), l]. It holds for all
            codes where the boundary is "full" or "circular".
        """
        return convolve(self.filters, self.filters, "full")

    def spectrum(self) -> tuple[Array, Array]:
        """Eigenvalues and eigenvectors of D D' on the torus `grid`, a c×c matrix per frequency.

        Returns
        -------
        values : array, shape (grid[0], grid[1] // 2 + 1, c), float64
            >= 0, those of `rfft2`'s frequencies.
        vectors : array, shape (grid[0], grid[1] // 2 + 1, c, c), complex128
            In columns.
        """
        xp, c = namespace(self.filters), self.filters.shape[3]
        # The correlations of channels over all filters; their DFT takes c² transforms, not k c.
        power = powers(self.filters.transpose(3, 1, 2, 0), self.grid)
        if c == 1:
            return xp.maximum(xp.real(power)[..., 0], 0), xp.ones_like(power)
        values, vectors = xp.linalg.eigh(power)
        return xp.maximum(values, 0), vectors

    def lipschitz(self) -> float:
        """An upper bound of the largest eigenvalue of D'D, so also of D'mD as m <= 1.

        That of the torus: exact for "circular"; the others are parts of its matrix.
        """
        # Rounding of the transform must not turn a bound into an estimate.
        return float(self.spectrum()[0].max()) * (1 + 1e-9)

    # ------------------------------------------------------------ by windows

    def _analyze_direct(self, x: Array, z: Array) -> None:
        if not is_gpu_array(x):
            strips.correlate(self._framed(x), self.filters, out=z)
            return
        (_, fh, fw, _), before = self.filters.shape, self.margins()
        if self.boundary == "circular":
            x, before = self._framed(x), (0, 0)
        rows = im2col(x, (fh, fw), before, self.places)
        matmul(rows, self.filters.reshape(len(self.filters), -1).T, out=z.reshape(len(rows), -1))

    def _synthesize_direct(self, z: Array) -> Array:
        (k, fh, fw, c), (h, w), (top, left) = self.filters.shape, self.image_shape, self.margins()
        if is_gpu_array(z):
            rows = matmul(z.reshape(-1, k), self.filters.reshape(k, -1))
            shape = len(z), self.places[0] + fh - 1, self.places[1] + fw - 1, c
            x = col2im(rows, shape, (fh, fw), (1, 1), self.places)
            if self.boundary == "circular":
                x[:, :, : fw - 1] += x[:, :, w:]
        else:
            x = strips.spread(z, self.filters, wraps=self.boundary == "circular")
        if self.boundary == "circular":
            x[:, : fh - 1] += x[:, h:]
        return namespace(z).ascontiguousarray(x[:, top : top + h, left : left + w])

    # ------------------------------------------------------------ by the DFT

    def _by_dft(self) -> bool:
        k, fh, fw, c = self.filters.shape
        if is_gpu_array(self.filters):
            # Bytes, or what takes as long: of a place by windows, and by the DFT.
            direct = fh * fw * c * (2 * k / _PER_BYTE + _WINDOW_BYTES)
            return direct > _MAP_BYTES * (k + c) + 4.0 * k * c
        return fh * fw > _LARGEST_DIRECT[c > 1]

    def _waves_of_filters(self) -> Array:
        """DFT of the filters on the torus, shape (grid[0], grid[1] // 2 + 1, k, c)."""
        if self._wave is None:
            wave = fft(self.filters).rfft2(self.filters, s=self.grid, axes=(1, 2))
            self._wave = namespace(wave).ascontiguousarray(wave.transpose(1, 2, 0, 3))
        return self._wave

    def _images_at_once(self, n: int) -> Iterator[slice]:
        size = self.grid[0] * self.grid[1] * self.maps_shape[2]
        step = n if is_gpu_array(self.filters) else max(1, _BLOCK // size)
        return (slice(first, first + step) for first in range(0, n, step))

    def _analyze_dft(self, x: Array, z: Array) -> None:
        xp, filters, (h, w, _) = namespace(x), self._waves_of_filters(), self.maps_shape
        (top, left), (down, across) = self.margins(), self.image_shape
        for images in self._images_at_once(len(x)):
            part = x[images]
            torus = xp.zeros((len(part), *self.grid, x.shape[3]), self.dtype)
            torus[:, top : top + down, left : left + across] = part
            # x̂ conj(f̂) as conj(conj(x̂) f̂): no second set of waves.
            wave = conjugate(fft(x).rfft2(torus, axes=(1, 2)))
            wave = conjugate(xp.einsum("nhwc,hwkc->nhwk", wave, filters))
            z[images] = fft(x).irfft2(wave, s=self.grid, axes=(1, 2))[:, :h, :w]

    def _synthesize_dft(self, z: Array) -> Array:
        xp, filters, (h, w, k) = namespace(z), self._waves_of_filters(), self.maps_shape
        (top, left), (down, across) = self.margins(), self.image_shape
        x = xp.empty((len(z), down, across, self.filters.shape[3]), self.dtype)
        for images in self._images_at_once(len(z)):
            torus = z[images]
            if (h, w) != self.grid:
                torus = xp.zeros((len(x[images]), *self.grid, k), self.dtype)
                torus[:, :h, :w] = z[images]
            wave = fft(z).rfft2(torus, axes=(1, 2))
            wave = xp.einsum("nhwk,hwkc->nhwc", wave, filters)
            whole = fft(z).irfft2(wave, s=self.grid, axes=(1, 2))
            x[images] = whole[:, top : top + down, left : left + across]
        return x


# ---------------------------------------------------------------- transforms


def fft(x: Array) -> Any:
    """The module with `rfft2` and `irfft2` for ``x``: SciPy's is up to 6 times as quick as NumPy's
    on 64 maps of 256×256 in float32."""
    return namespace(x).fft if is_gpu_array(x) else scipy.fft


def conjugate(wave: Array) -> Array:
    """The complex conjugate, in place."""
    imaginary = namespace(wave).imag(wave)  # a view
    imaginary *= -1
    return wave


def fast_length(length: int) -> int:
    return int(scipy.fft.next_fast_len(int(length), real=True))


def powers(filters: Array, grid: tuple[int, int]) -> Array:
    """D'D of a torus, a k×k matrix for each frequency of `rfft2`; of ``filters`` with maps and
    channels in each other's place, D D'. Shape (grid[0], grid[1] // 2 + 1, k, k), complex128."""
    xp, (k, fh, fw, _) = namespace(filters), filters.shape
    filters = filters.astype(np.float64)
    table = convolve(filters, filters, "full").transpose(1, 2, 0, 3)
    down = _waves(xp, grid[0], grid[0], fh)
    across = _waves(xp, grid[1], grid[1] // 2 + 1, fw)
    half = (down @ table.reshape(2 * fh - 1, -1)).reshape(-1, 2 * fw - 1, k * k)
    return xp.matmul(across, half).reshape(len(down), len(across), k, k)


def _waves(xp: Any, length: int, kept: int, size: int) -> Array:
    """exp(-2πi f d / length) for f < kept and |d| < size: (kept, 2 size - 1)."""
    turns = np.outer(np.arange(kept), np.arange(1 - size, size)) % length
    return xp.asarray(np.exp(-2j * math.pi * turns / length))
