"""Targets made of other targets: coordinates held, noise observed, a path from a base."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.samplers.target import Density, FunctionTarget, as_target
from energyscape.verbs import as_column


class _Wrapper(Density):
    """A target made of another one, whose properties it keeps.

    ``per_row`` names the arrays that may have one row per chain.
    """

    per_row: tuple[str, ...] = ()

    def __init__(self, target: Any) -> None:
        self.target = as_target(target)
        self.beta = self.target.beta
        self.event_shape, self.domain = self.target.event_shape, self.target.domain
        self.has_gradient, self.name = self.target.has_gradient, self.target.name

    @property
    def free(self) -> Array:
        return self.target.free

    def shaped(self, shape: tuple[int, ...]) -> Any:
        if self.event_shape is not None:
            return self
        other = super().shaped(shape)
        other.target = self.target.shaped(shape)
        return other

    @property
    def like(self) -> Array:
        return self.target.like

    def hold(self, x: Array) -> Array:
        return self.target.hold(x)

    def at(self, beta: Any) -> Any:
        other = super().at(beta)
        other.target = self.target.at(beta)
        return other

    def tiled(self, copies: int) -> Any:
        other = super().tiled(copies) if np.ndim(self.beta) else copy.copy(self)
        other.__dict__.pop("_serial", None)
        other.target = self.target.tiled(copies)
        for name in self.per_row:
            value = getattr(self, name)
            if value is not None and value.ndim > len(self.event_shape or (1,)):
                setattr(other, name, namespace(value).repeat(value, copies, axis=0))
        return other


class Clamped(_Wrapper):
    """A target with some coordinates held: what is left is the conditional given them.

    Parameters
    ----------
    target : Target
    mask : bool array, shape event_shape or (n, *event_shape)
        True where a coordinate is held.
    values : array that broadcasts to (n, *event_shape)
        What it is held at; read only under the mask.
    """

    per_row = ("mask", "values")

    def __init__(self, target: Any, mask: Array, values: Array) -> None:
        super().__init__(target)
        if getattr(getattr(mask, "dtype", None), "kind", None) != "b":
            raise TypeError("the mask must be an array of bool, True where a value is held")
        self.mask, self.values = mask, namespace(mask).asarray(values)
        self._check_shapes()
        self.has_sweep = self.target.has_sweep
        self.has_regeneration = self.target.has_regeneration

    def regenerate(self, x: Array, rng: Any) -> Array:
        """The target's reconstruction, with the held coordinates put back."""
        return self.hold(self.target.regenerate(x, rng))

    @property
    def free(self) -> Array:
        inner = self.target.free
        return ~self.mask if inner is None else ~self.mask & inner

    def _check_shapes(self) -> None:
        shape = self.event_shape
        if shape is None:
            return
        for name, own in (("mask", self.mask.shape), ("values", self.values.shape)):
            fits = len(own) <= len(shape) + 1 and all(
                a == b or (name == "values" and a == 1)
                for a, b in zip(own[::-1], shape[::-1], strict=False)
            )
            if not fits or (name == "mask" and len(own) < len(shape)):
                raise ValueError(
                    f"the {name} has shape {tuple(own)}; points of this target have shape {shape}, "
                    "with one row per chain before it or none"
                )

    def hold(self, x: Array) -> Array:
        held = namespace(x).where(self.mask, self.values, x)
        return self.target.hold(held.astype(x.dtype, copy=False))

    def forward(self, x: Array) -> Any:
        return self.target.forward(x)

    def gradient(self) -> Callable[[Array], Array]:
        return self.target.gradient()

    def sweep(self, x: Array, rng: Any) -> Array:
        """Free coordinates are drawn given all hidden units and the held ones."""
        return self.finish_sweep(self.forward(x), rng)

    def finish_sweep(self, passed: Any, rng: Any, free: Array = None) -> Array:
        """The same from a pass at x."""
        return self.hold(self.target.finish_sweep(passed, rng, self.free if free is None else free))


class _Sum:
    """(1 - β) A + β B of two evaluations, or A + β B where the first is not faded out."""

    def __init__(self, first: Any, second: Any, beta: Any, fade: bool) -> None:
        self.first, self.second, self.beta, self.fade = first, second, beta, fade
        self._known: dict[str, tuple[Array, Array]] = {}

    def __getitem__(self, rows: Any) -> _Sum:
        beta = self.beta if np.ndim(self.beta) == 0 else self.beta[rows]
        return _Sum(self.first[rows], self.second[rows], beta, self.fade)

    def at(self, beta: Any) -> _Sum:
        """The same points elsewhere on the path."""
        if not self.fade:
            return _Sum(self.first.at(beta), self.second, beta, False)
        other = _Sum(self.first, self.second, beta, True)
        other._known = self._known
        return other

    def _both(self, what: str) -> tuple[Array, Array]:
        if what not in self._known:
            self._known[what] = getattr(self.first, what)(), getattr(self.second, what)()
        return self._known[what]

    def energy(self) -> Array:
        first, second = self._both("energy")
        if not self.fade:
            return first + self.beta * second
        # Where the target forbids a point, the base alone (β = 0) still allows it.
        second = namespace(second).where(self.beta == 0, 0.0, second)
        return self.beta * second + (1 - self.beta) * first

    def input_grad(self) -> Array:
        first, second = self._both("input_grad")
        second = second * as_column(self.beta, second)
        return second + (first * as_column(1 - self.beta, first) if self.fade else first)


class Posterior(_Wrapper):
    """p(x | y) for y = x + σξ with ξ standard normal: U(x) + |y - x|²/2σ².

    Parameters
    ----------
    target : Target
        The prior.
    y : array, shape event_shape or (n, *event_shape)
        What was observed.
    sigma : float > 0, or array of such, shape event_shape
        Standard deviation of the noise, in the units of x; infinite where nothing was observed.
    """

    per_row = ("y",)

    def __init__(self, target: Any, y: Array, sigma: Any) -> None:
        if not (sigma > 0 if np.ndim(sigma) == 0 else bool((sigma > 0).all())):
            raise ValueError(f"sigma must be > 0, got {sigma!r}")
        super().__init__(target)
        self.y, self.sigma, self.precision = y, sigma, sigma**-2

    def forward(self, x: Array) -> _Sum:
        noise = FunctionTarget(self._misfit, self._pull)
        return _Sum(self.target.forward(x), noise.forward(x), self.beta, fade=False)

    def _misfit(self, x: Array) -> Array:
        d = (x - self.y).astype(np.float64) / self.sigma
        return 0.5 * (d * d).reshape(len(x), -1).sum(axis=1)

    def _pull(self, x: Array) -> Array:
        precision = self.precision
        if np.ndim(precision):
            precision = precision.astype(x.dtype, copy=False)
        return (x - self.y) * precision


class Bridge(_Wrapper):
    """The path E_β = (1 - β) E_base + β E from a density that can be drawn from to a target.

    Parameters
    ----------
    base : Gaussian or StudentT
        Or any target with ``sample(n, rng)`` and ``log_partition()``.
    target : Target
    """

    @property
    def has_base(self) -> bool:  # type: ignore[override]
        """Not for a clamped target: draws of the base and its Z know nothing of what is held."""
        return self.free is None

    def __init__(self, base: Any, target: Any) -> None:
        super().__init__(target)
        if base.event_shape != self.event_shape and self.event_shape is not None:
            raise ValueError(
                f"the base has points of shape {base.event_shape}, the target {self.event_shape}"
            )
        self.base, self.event_shape = base, base.event_shape
        self.beta = 1.0

    def at(self, beta: Any) -> Bridge:
        return Density.at(self, beta)

    def forward(self, x: Array) -> _Sum:
        return _Sum(self.base.forward(x), self.target.forward(x), self.beta, fade=True)

    @property
    def like(self) -> Array:
        return self.base.like

    def sample_base(self, n: int, rng: Any) -> Array:
        """``n`` exact draws of the base."""
        return self.base.sample(n, rng)

    def base_log_partition(self) -> float:
        """Exact log Z of the base."""
        return self.base.log_partition()
