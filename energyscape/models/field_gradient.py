"""A field of gated models on the CPU: energies and gradients of chains on tori, and of parameters.

    F(u) = Σ_windows |Sv|²/2σ²q + Σ_k γ_k log(1 + z_k) - Σ_l softplus(a_l)
    ∂F/∂u = Σ_windows [S S v/σ²q + S C (γ r/(1 + z)) - S W p]

with windows v of u, r = C'Sv, z = ½r², a = W'Sv + c and p = σ(a); chains move in y with u = Ay.

What depends on parameters alone is worked into the filters once: S, γ, the halves of squares and
of p = ½ + ½ tanh(a/2). Where windows lie at every place the Gaussian is a convolution, which one
more multiplication of the spectrum does. Windows lie in columns, and a few images at a time are
led from pixels to units and back while they are in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy.fft

from energyscape.backend import Array
from energyscape.kernels import log1p_sum
from energyscape.models.layouts import Layout
from energyscape.models.window_columns import Columns, multiply, outer
from energyscape.verbs import Params

# Numbers of windows and units at once.
_NUMBERS = 1 << 19


class FieldColumns:
    """Units of windows that lie in columns.

    Parameters
    ----------
    params : dict of arrays
        Of a `GatedField`.
    layout : Layout
    shapes : array, shape (sets, units)
        γ.
    """

    def __init__(self, params: Params, layout: Layout, shapes: Array) -> None:
        S, C = params["S"], params["C"]
        self.params, self.layout, self.shapes = params, layout, shapes
        self._real, self._k = C.dtype.type, C.shape[2]
        seen = S @ C * self._real(math.sqrt(0.5))
        up, back = [seen], [seen * (2 * shapes[:, None])]
        self._level = None
        if "W" in params:
            means = S @ params["W"] * self._real(0.5)
            up.append(means)
            back.append(-means)
            self._level = params["c"][:, :, None, None] * self._real(0.5)
        self._width = np.exp(-params["log_var"]) / self._real(layout.coverage)
        self._own = S @ S * self._width
        if not layout.stationary:
            back.append(np.broadcast_to(self._own, (len(C), *S.shape)))
        self._up = np.ascontiguousarray(np.concatenate(up, axis=2).transpose(0, 2, 1))
        self._back = np.concatenate(back, axis=2)
        self._columns: dict[tuple[int, ...], Columns] = {}

    def columns(self, shape: tuple[int, ...]) -> Columns:
        """Where windows of images of ``shape`` (h, w, c) are laid out; kept."""
        if shape not in self._columns:
            self._columns[shape] = self.layout.columns_of(shape, self.params["C"].dtype)
        return self._columns[shape]

    def energies(self, u: Array) -> Array:
        """F of images ``u`` (n, h, w, c), shape (n,), float64."""
        columns, energy = self.columns(u.shape[1:]), np.zeros(len(u))
        for part in self._parts(columns, u):
            columns.load(u[part])
            for i in range(len(self._up)):
                energy[part] += self._energies(columns, i, *self._fields(columns, i))
        return energy

    def grads(self, u: Array, weights: Array) -> Params:
        """Σ_i w_i ∂F(u_i)/∂θ by name, of images ``u`` (n, h, w, c)."""
        columns, sets, k = self.columns(u.shape[1:]), len(self._up), self._k
        found = np.zeros((sets, self._up.shape[2], self._up.shape[1]), u.dtype)
        logs = np.zeros((sets, k))
        rates = np.zeros((sets, self._up.shape[1] - k))
        for part in self._parts(columns, u):
            columns.load(u[part])
            each = weights[part]
            for i in range(sets):
                field, windows, z = self._fields(columns, i)
                logs[i] += log1p_sum(columns.values(z), columns.across) @ each
                self._gate(columns, field, z)
                values = columns.values(field)
                values *= each.reshape(-1, *[1] * (values.ndim - 2))
                found[i] += outer(windows, field)
                if self._level is not None:
                    rates[i] += field[k:].sum(axis=(1, 2), dtype=np.float64)
        S, scale = self.params["S"], self._real(math.sqrt(2)) * self.shapes[:, None]
        grads = {
            "C": S @ found[:, :, :k] * scale,
            "a": logs.astype(u.dtype) * np.exp(self.params["a"]),
        }
        if self._level is not None:
            half = self._real(-0.5)
            grads |= {"W": S @ found[:, :, k:] * half, "c": rates.astype(u.dtype) * half}
        return grads

    def _parts(self, columns: Columns, u: Array) -> list[slice]:
        """Images whose windows stay in the cache."""
        places = math.prod(self.layout.places(*columns.shape[:2]))
        step = max(1, _NUMBERS // (places * sum(self._up.shape[1:])))
        return [slice(lo, lo + step) for lo in range(0, len(u), step)]

    def _fields(self, columns: Columns, i: int) -> tuple[Array, Array, Array]:
        """r/√2 and a/2 of windows of set i, the windows, which lie behind them, and z."""
        units, pixels = self._up.shape[1:]
        both = columns.space("field", units + pixels)
        field, windows = both[:units], both[units:]
        columns.cut(i, windows)
        multiply(self._up[i], windows, field)
        if self._level is not None:
            field[self._k :] += self._level[i]
        r, z = field[: self._k], columns.space("z", self._k)
        return field, windows, np.multiply(r, r, out=z)

    def _energies(
        self,
        columns: Columns,
        i: int,
        field: Array,
        windows: Array,
        z: Array,
        gaussian: bool = True,
    ) -> Array:
        """Of the windows of set i by image; without ``gaussian`` not |Sv|²/2σ²q."""
        logs = log1p_sum(columns.values(z), columns.across)
        energy = self.shapes[i].astype(np.float64) @ logs
        if gaussian:
            white = columns.space("white", len(windows))
            multiply(self.params["S"], windows, white)
            white *= white
            squares = _by_image(columns.values(white)[..., : columns.across])
            energy += 0.5 * self._width.astype(np.float64) * squares
        if self._level is not None:
            half = columns.values(field[self._k :])[..., : columns.across]
            size = abs(half)
            energy -= _by_image(half) + _by_image(size)
            size *= -2
            energy -= log1p_sum(np.exp(size, out=size)).sum(axis=0)
        return energy

    def _gate(self, columns: Columns, field: Array, z: Array) -> None:
        """Fields to r/√2(1 + z) and 2p, in place, 0 in void columns; ``z`` is used up."""
        z += 1 if columns.one is None else columns.one
        field[: self._k] /= z
        if self._level is not None:
            p = field[self._k :]
            np.tanh(p, out=p)
            p += 1
            if columns.one is not None:
                p /= columns.one


class TorusGradient(FieldColumns):
    """States of chains (n, h, w, c) → ∂F/∂state at β = 1, a new array.

    Parameters
    ----------
    params, layout, shapes
        As for `FieldColumns`.
    amplitude : function (shape of tori) → array, shape (1, h, w // 2 + 1, 1)
        By what A multiplies each frequency.
    """

    def __init__(
        self,
        params: Params,
        layout: Layout,
        shapes: Array,
        amplitude: Callable[[tuple[int, ...]], Array],
    ) -> None:
        super().__init__(params, layout, shapes)
        self._amplitude = amplitude
        self._known: dict[tuple[int, ...], tuple[Array, Array | None]] = {}

    def __call__(self, y: Array) -> Array:
        return self._gradient(y, None)

    def energy_and_grad(self, y: Array) -> tuple[Array, Array]:
        """F, shape (n,), float64, and its gradient."""
        energy = np.zeros(len(y))
        return energy, self._gradient(y, energy)

    def _gradient(self, y: Array, energy: Array | None) -> Array:
        """The gradient; the energy is added to ``energy`` where that is wanted."""
        (_, h, w, c), reach = y.shape, self.layout.reach
        columns = self.columns((h + reach, w + reach, c))
        amplitude, gauss = self._spectra(y.shape)
        order, sides = columns.order, (columns.order.index(1), columns.order.index(2))
        back_again = np.argsort(order)

        def pixels(wave: Array) -> Array:
            return scipy.fft.irfft2(wave, s=(h, w), axes=sides).transpose(back_again)

        # Transforms read what they take in any order and write what they give in this one.
        amplitude = amplitude.transpose(order)
        wave = scipy.fft.rfft2(y.transpose(order), axes=sides)
        wave *= amplitude
        u = pixels(wave)
        total = np.empty_like(u)
        for part in self._parts(columns, y):
            columns.load(u[part])
            for i in range(len(self._up)):
                field, windows, z = self._fields(columns, i)
                if energy is not None:
                    gaussian = not self.layout.stationary
                    energy[part] += self._energies(columns, i, field, windows, z, gaussian)
                self._gate(columns, field, z)
                given = columns.space("field", self._back.shape[2])
                multiply(self._back[i], given, columns.room())
                columns.add(i)
            total[part] = columns.total()
        back = scipy.fft.rfft2(total.transpose(order), axes=sides)
        if gauss is not None:
            pull = _by_frequency(gauss, wave.transpose(back_again)).transpose(order)
            back += pull
            if energy is not None:
                energy += 0.5 * (u * pixels(pull)).sum(axis=(1, 2, 3), dtype=np.float64)
        back *= amplitude
        return np.ascontiguousarray(pixels(back))

    def _spectra(self, shape: tuple[int, ...]) -> tuple[Array, Array | None]:
        """A, and the Gaussian's convolution, (h, w // 2 + 1, c, c), where it is one."""
        if shape[1:] not in self._known:
            gauss, layout, (_, h, w, c) = None, self.layout, shape
            if layout.stationary:
                # What it makes of a single pixel, of each channel.
                one = np.zeros((c, h, w, c), self._own.dtype)
                one[range(c), 0, 0, range(c)] = 1
                wrapped = layout.wrap(one)
                rows = layout.cut(wrapped) @ self._own
                gauss = scipy.fft.rfft2(layout.fold(layout.paste(rows, wrapped.shape)), axes=(1, 2))
                gauss = np.ascontiguousarray(gauss.transpose(1, 2, 0, 3))
            self._known[shape[1:]] = self._amplitude(shape), gauss
        return self._known[shape[1:]]


def _by_frequency(gauss: Array, wave: Array) -> Array:
    """Each frequency (n, h, w, c) by its c × c matrix."""
    return sum(gauss[:, :, d] * wave[:, :, :, d, None] for d in range(gauss.shape[2]))


def _by_image(values: Array) -> Array:
    """Sums of (rows, n, …) over all but n, float64; of rows in their own dtype, which streams."""
    return values.sum(axis=0).sum(axis=tuple(range(1, values.ndim - 1)), dtype=np.float64)
