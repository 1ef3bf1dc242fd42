"""What one evaluation of a model of whole images gives: everything about its windows.

Arrays of windows have the axes (sets, n, places, …), so that each set is one product.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from energyscape.backend import Array, is_gpu_array, namespace
from energyscape.verbs import Params, Pass, is_one

_NUMBERS = 1 << 18  # of windows at once


class WindowPass(Pass):
    """Whatever arrays of windows a model needs, at a few images or tori."""

    def __init__(
        self,
        model: Any,
        params: Params,
        x: Array,
        beta: Any = 1.0,
        torus: bool = False,
        known: dict[str, Array] | None = None,
    ) -> None:
        super().__init__(model, params, x)
        self.beta, self.torus = beta, torus
        self._known = known
        self._whole: tuple[WindowPass, Any] | None = None  # the pass that this one is rows of

    @property
    def known(self) -> dict[str, Array]:
        """What `fields` gives, made when it is asked for first; rows of a pass share its own."""
        if self._known is None and self._whole is not None:
            whole, rows = self._whole
            self._known = {key: value[:, rows] for key, value in whole.known.items()}
        elif self._known is None:
            self._known = self.fields()
        return self._known

    def parts(self) -> list[tuple[slice, Any]]:
        """Rows and passes of images whose windows stay in the cache while something is made of
        them; all at once where their fields are there already, or on a GPU."""
        layout, (n, h, w, c) = self.model.layout(), self.x.shape
        if self._known is not None or is_gpu_array(self.x):
            return [(slice(None), self)]
        step = max(1, _NUMBERS // (layout.coverage * h * w * c))
        rows = [slice(lo, lo + step) for lo in range(0, n, step)]
        return [(part, self._part(self.x[part], self._beta_of(part), None)) for part in rows]

    def _beta_of(self, rows: Any) -> Any:
        return self.beta if np.ndim(self.beta) == 0 else self.beta[rows]

    def fields(self) -> dict[str, Array]:
        """What is known of every window, by name, (sets, n, places, …)."""
        raise NotImplementedError

    def _part(self, x: Array, beta: Any, known: dict[str, Array] | None) -> Any:
        return type(self)(self.model, self.params, x, beta, self.torus, known)

    def __getitem__(self, rows: Any) -> Any:
        part = self._part(self.x[rows], self._beta_of(rows), None)
        part._whole = self, rows
        return part

    def join(self, other: Pass) -> Any:
        xp, more = namespace(self.x), other.known  # type: ignore[attr-defined]
        known = {k: xp.concatenate([v, more[k]], axis=1) for k, v in self.known.items()}
        return self._part(xp.concatenate([self.x, other.x]), self.beta, known)

    def at(self, beta: Any) -> Any:
        """The same points at another inverse temperature, without another product."""
        return self._part(self.x, beta, self.known)

    def times_beta(self, values: Array) -> Array:
        """Values of windows, (sets, n, places, units), by their images' β; a new array unless that
        is 1."""
        if is_one(self.beta):
            return values
        return values * namespace(values).asarray(self.beta, values.dtype).reshape(-1, 1, 1)

    def to_maps(self, units: Array) -> Array:
        """Units of windows as maps (n, down, across, units of all sets)."""
        layout, (h, w) = self.model.layout(), self.x.shape[1:3]
        if self.torus:
            return layout.to_maps(units, (h // layout.grain, w // layout.grain))
        return layout.to_maps(units, layout.places(h, w))


def times(windows: Array, matrix: Array) -> Array:
    """Windows (sets, n, places, a) by one matrix (a, b) or one for each set, as one product a
    set."""
    return (flat(windows) @ matrix).reshape(*windows.shape[:3], matrix.shape[-1])


def flat(values: Array) -> Array:
    """Windows of all images as rows, (sets, n · places, …)."""
    return values.reshape(len(values), -1, values.shape[3])
