"""The gradient of a field of gated models along a trajectory of chains on tori.

    ∂F/∂y = A Σ_windows [S C (γ r/(1 + z)) - S W p + S S v/σ²q]

with windows v of u = Ay, r = C'Sv, z = ½r² and p = σ(W'Sv + c).

What depends on parameters alone is worked into the filters once: S, γ, the halves of squares and
of p = ½ + ½ tanh. Windows lie in columns, so that the outputs of a unit are contiguous, and a few
images at a time are led from pixels to units and back while they are in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from energyscape.backend import Array, namespace
from energyscape.models.layouts import Layout
from energyscape.verbs import Params

# Numbers of windows and units at once.
_NUMBERS = 1 << 17


class TorusGradient:
    """States of chains (n, h, w, c) → ∂F/∂state at β = 1, a new array.

    Parameters
    ----------
    params : dict of arrays
        Of a `GatedField`.
    layout : Layout
    shapes : array, shape (sets, units)
        γ.
    shade : function (tori) → tori
        A.
    """

    def __init__(
        self, params: Params, layout: Layout, shapes: Array, shade: Callable[[Array], Array]
    ) -> None:
        xp, S, C = namespace(params["S"]), params["S"], params["C"]
        real = C.dtype.type
        self._layout, self._shade, self._k = layout, shade, C.shape[2]
        seen = S @ C * real(math.sqrt(0.5))
        back = [seen * (2 * shapes[:, None])]
        up, self._level, self._rest = [seen], None, None
        if "W" in params:
            means = S @ params["W"] * real(0.5)
            up.append(means)
            back.append(-means)
            self._level = params["c"][:, :, None] * real(0.5)
            self._rest = -means.sum(axis=2)
        self._up = xp.ascontiguousarray(xp.concatenate(up, axis=2).transpose(0, 2, 1))
        self._back = xp.concatenate(back, axis=2)
        self._own = S @ S * (xp.exp(-params["log_var"]) / real(layout.coverage))
        self._constants: dict[tuple[int, ...], Array] = {}

    def __call__(self, y: Array) -> Array:
        layout, u = self._layout, self._shade(y)
        frame = layout.wrap(u)
        total = self._constant(frame).repeat(len(y), axis=0)
        places = math.prod(layout.places(*frame.shape[1:3]))
        step = max(1, _NUMBERS // (places * sum(self._up.shape[1:])))
        for lo in range(0, len(y), step):
            part = slice(lo, lo + step)
            for i in range(layout.sets):
                columns = self._of_windows(i, layout.columns(frame[part], i))
                layout.add_columns(columns, i, total[part])
        return self._shade(layout.fold(total))

    def _of_windows(self, i: int, w: Array) -> Array:
        """The gradient in the pixels of windows ``w`` of set i, (pixels, windows)."""
        xp, k = namespace(w), self._k
        field = self._up[i] @ w
        r = field[:k]
        z = r * r
        z += 1
        r /= z
        if self._level is not None:
            p = field[k:]
            p += self._level[i]
            xp.tanh(p, out=p)
        grad = xp.empty_like(w)  # laid out as the windows are
        xp.matmul(self._back[i], field, out=grad)
        grad += self._own @ w
        return grad

    def _constant(self, frame: Array) -> Array:
        """What half of the mean units' rates give, whatever the image; shape (1, h, w, c)."""
        shape = (1, *frame.shape[1:])
        if shape not in self._constants:
            xp = namespace(frame)
            image = self._constants[shape] = xp.zeros(shape, frame.dtype)
            if self._rest is not None:
                places = math.prod(self._layout.places(*shape[1:3]))
                for i, rest in enumerate(self._rest):
                    columns = xp.ascontiguousarray(
                        xp.broadcast_to(rest[:, None], (len(rest), places))
                    )
                    self._layout.add_columns(columns, i, image)
        return self._constants[shape]
