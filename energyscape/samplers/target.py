"""What a sampler sees: a density exp(-F_β(x)) at a temperature, and nothing else.

For a model β multiplies the *joint* energy E(x, h) (latents summed out afterwards, so F_β ≠ βF);
where a base measure is given, the path runs from it (β = 0) to the model (β = 1):
E_β = (1 - β) E_base + β E. Wrappers of targets are targets too, and so is a pair of functions.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.verbs import Params, Pass, as_column, speaks

_serials = itertools.count()


@dataclass(frozen=True, eq=False)
class Tag:
    """What an energy or gradient was computed under; equal tags mean that it still holds.

    Every target has its own number, shared with what ``at`` makes of it; per-row temperatures are
    compared by identity, because reading them would wait for a GPU.
    """

    serial: int
    beta: Any

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tag) or self.serial != other.serial:
            return False
        if np.ndim(self.beta) or np.ndim(other.beta):
            return self.beta is other.beta
        return bool(self.beta == other.beta)


class Density:
    """Base of all targets: subclasses write ``forward``, and what else they can do.

    ``forward(x)`` gives an object with ``energy()``, ``input_grad()``, ``at(beta)`` and rows by
    index, so that whoever needs several of them at one point pays for one evaluation.

    Attributes
    ----------
    event_shape : tuple of int, or None where only the functions know
    domain : {"binary", "unit", "real", "nonneg"}
    free : bool array or None
        Coordinates that a sampler may move; None for all.
    tag : Tag
        Guards cached energies and gradients.
    """

    event_shape: tuple[int, ...] | None = None
    domain: str = "real"
    free: Array = None
    beta: Any = 1.0
    has_sweep = False
    has_gradient = True
    has_base = False
    has_regeneration = False
    name = "the target"

    @property
    def like(self) -> Array:
        """An array where the target computes; None where nothing says."""
        return None

    @property
    def tag(self) -> Tag:
        if not hasattr(self, "_serial"):
            self._serial = next(_serials)
        return Tag(self._serial, self.beta)

    def at(self, beta: Any) -> Any:
        """The same target at another inverse temperature."""
        self.tag  # noqa: B018 - gives it its number, which the copy shares
        other = copy.copy(self)
        other.beta = beta
        return other

    def tiled(self, copies: int) -> Any:
        """The same target for ``copies`` of every chain, side by side along axis 0."""
        if np.ndim(self.beta) == 0:
            return self
        return self.at(namespace(self.beta).repeat(self.beta, copies))

    def shaped(self, shape: tuple[int, ...]) -> Any:
        """The same target, told the shape of one point where it does not say."""
        if self.event_shape is not None:
            return self
        self.tag  # noqa: B018 - as in `at`
        other = copy.copy(self)
        other.event_shape = shape
        return other

    def hold(self, x: Array) -> Array:
        """``x`` with held coordinates put in."""
        return x

    def forward(self, x: Array) -> Any:
        """What one evaluation at ``x`` gives."""
        raise NotImplementedError

    def energy(self, x: Array) -> Array:
        """F_β(x), shape (n,), float64."""
        return self.forward(x).energy()

    def input_grad(self, x: Array) -> Array:
        """∂F_β/∂x, the shape of x."""
        return self.forward(x).input_grad()

    def gradient(self) -> Callable[[Array], Array]:
        """`input_grad` for many calls: what is worth preparing is prepared once, and the result
        may be the same buffer at every call."""
        return self.input_grad

    def energy_and_grad(self, x: Array) -> tuple[Array, Array]:
        """Both from one evaluation."""
        passed = self.forward(x)
        return passed.energy(), passed.input_grad()


class Target(Density):
    """A model at fixed parameters and temperature, as samplers take it.

    It belongs to the parameters as they are: make a new one after an update.

    Parameters
    ----------
    model : object with the verbs
    params : dict of arrays
    base : dict of arrays, optional
        Parameters of the base measure at β = 0, as ``model.base_measure`` gives them.
    beta : float or array of shape (n,), default 1
        Inverse temperature, common or one per row.
    """

    def __init__(self, model: Any, params: Params, base: Params | None = None, beta: Any = 1.0):
        self.model, self.params, self.base, self.beta = model, params, base, beta
        self._gradient: Callable[[Array], Array] | None = None
        self._shape: tuple[int, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_gradient": None}  # made anew where it is needed

    @property
    def event_shape(self) -> tuple[int, ...] | None:
        """Shape of one point; None for images of any size, until `shaped` says which."""
        if self._shape is None:
            return self.model.event_shape(self.params)
        return self._shape

    @event_shape.setter
    def event_shape(self, shape: tuple[int, ...] | None) -> None:
        self._shape = shape

    @property
    def domain(self) -> str:  # type: ignore[override]
        return self.model.domain

    @property
    def name(self) -> str:  # type: ignore[override]
        return type(self.model).__name__

    @property
    def like(self) -> Array:
        return next(iter(self.params.values()))

    @property
    def has_sweep(self) -> bool:  # type: ignore[override]
        """Whether block Gibbs steps exist."""
        return not speaks(self.model, ("sample_hidden", "sample_visible"))

    @property
    def has_gradient(self) -> bool:  # type: ignore[override]
        """Whether ∂F/∂x exists."""
        return not speaks(self.model, ("input_grad",))

    @property
    def has_regeneration(self) -> bool:  # type: ignore[override]
        """Whether the model draws reconstructions."""
        return not speaks(self.model, ("regenerate",))

    @property
    def has_base(self) -> bool:  # type: ignore[override]
        """Whether β = 0 is a distribution that can be drawn from and has a known Z."""
        return self.base is not None

    def forward(self, x: Array) -> Pass:
        """The model's pass at ``x``; its ``at(beta)`` re-tempers without a new product."""
        return self.model.forward(self.params, x, self.beta, self.base)

    def gradient(self) -> Callable[[Array], Array]:
        plain = np.ndim(self.beta) == 0 and self.beta == 1.0
        if not plain or speaks(self.model, ("input_grad_function",)):
            return self.input_grad
        if self._gradient is None:
            self._gradient = self.model.input_grad_function(self.params)
        return self._gradient

    def sweep(self, x: Array, rng: Any) -> Array:
        """One block-Gibbs step x → h → x', which leaves exp(-F_β) invariant (and is reversible)."""
        return self.finish_sweep(self.forward(x), rng)

    def finish_sweep(self, passed: Pass, rng: Any, free: Array = None) -> Array:
        """The same from a pass at x and this β, without its product once more; coordinates that are
        not ``free`` stay where the pass has them, or are the caller's to put back."""
        h = passed.sample_hidden(rng)
        if free is None or speaks(self.model, ("sample_visible_free",)):
            return self.model.sample_visible(self.params, h, rng, self.beta, self.base)
        return self.model.sample_visible_free(
            self.params, h, rng, passed.x, free, self.beta, self.base
        )

    def regenerate(self, x: Array, rng: Any) -> Array:
        """A draw of the model's reconstruction of ``x``."""
        return self.model.regenerate(self.params, x, rng)

    def sample_base(self, n: int, rng: Any) -> Array:
        """``n`` exact draws of the base measure: at β = 0 a sweep forgets where it came from."""
        x = namespace(self.like).zeros((n, *(self.event_shape or ())), self.like.dtype)
        return self.at(0.0).sweep(x, rng)

    def base_log_partition(self) -> float:
        """Exact log Z at β = 0."""
        return self.model.base_log_partition(self.params, self.base)


# ---------------------------------------------------------------- a pair of functions


class _Evaluated:
    """Energy and gradient of functions at points, each computed once and scaled by β."""

    def __init__(self, target: FunctionTarget, x: Array, beta: Any) -> None:
        self.target, self.x, self.beta = target, x, beta
        self._known: dict[str, Array] = {}

    def __getitem__(self, rows: Any) -> _Evaluated:
        beta = self.beta if np.ndim(self.beta) == 0 else self.beta[rows]
        part = _Evaluated(self.target, self.x[rows], beta)
        part._known = {k: v[rows] for k, v in self._known.items()}
        return part

    def at(self, beta: Any) -> _Evaluated:
        """The same points at another inverse temperature."""
        other = _Evaluated(self.target, self.x, beta)
        other._known = self._known
        return other

    def energy(self) -> Array:
        if "energy" not in self._known:
            self._known["energy"] = self.target.plain_energy(self.x)
        return self._known["energy"] * self.beta if _tempered(self.beta) else self._known["energy"]

    def input_grad(self) -> Array:
        if "grad" not in self._known:
            self._known["grad"] = self.target.plain_grad(self.x)
        grad = self._known["grad"]
        return grad * as_column(self.beta, grad) if _tempered(self.beta) else grad


class FunctionTarget(Density):
    """exp(-β U(x)) from functions; made by `from_functions`."""

    def __init__(
        self,
        energy: Callable[[Array], Array],
        grad: Callable[[Array], Array] | None = None,
        event_shape: tuple[int, ...] | None = None,
        domain: str = "real",
    ) -> None:
        self._energy, self._grad = energy, grad
        self.event_shape, self.domain = event_shape, domain
        self.has_gradient = grad is not None
        self.name = getattr(energy, "__qualname__", type(energy).__name__)

    def plain_energy(self, x: Array) -> Array:
        """U(x), float64."""
        energy = self._energy(x)
        if tuple(energy.shape) != (len(x),):
            raise ValueError(
                f"the energy of {len(x)} points has shape {tuple(energy.shape)}, wanted "
                f"({len(x)},): one number per chain"
            )
        return energy.astype(np.float64)  # a copy: functions may hand out one buffer

    def plain_grad(self, x: Array) -> Array:
        """∂U/∂x."""
        grad = self._grad(x)  # type: ignore[misc]
        if grad.shape != x.shape:
            raise ValueError(f"the gradient at x of shape {x.shape} has shape {grad.shape}")
        return grad

    def forward(self, x: Array) -> _Evaluated:
        return _Evaluated(self, x, self.beta)


def from_functions(
    energy: Callable[[Array], Array],
    grad: Callable[[Array], Array] | None = None,
    event_shape: tuple[int, ...] | None = None,
    domain: str = "real",
) -> FunctionTarget:
    """A target from functions of a batch of points.

    Parameters
    ----------
    energy : callable, x of shape (n, *event_shape) → (n,)
        U(x), up to a constant: the density is exp(-U).
    grad : callable, x → array of the shape of x, optional
        ∂U/∂x, which HMC and Langevin need. Both functions may return the same buffer at every call:
        samplers copy what they keep.
    event_shape : tuple of int, optional
        Shape of one point, to check starts against.
    domain : {"real", "binary"}, default "real"

    Returns
    -------
    FunctionTarget
    """
    if not callable(energy) or not (grad is None or callable(grad)):
        raise TypeError("from_functions takes callables: energy(x) → (n,), grad(x) → like x")
    if domain not in ("real", "binary"):
        raise ValueError(f"domain must be 'real' or 'binary', got {domain!r}")
    return FunctionTarget(energy, grad, event_shape, domain)


def as_target(target: Any) -> Any:
    """A target of whatever gives an energy: a target, a pair of functions, or an object with the
    methods ``energy`` and ``grad`` (or ``input_grad``)."""
    if isinstance(target, Density):
        return target
    if isinstance(target, tuple | list) and 1 <= len(target) <= 2:
        return from_functions(*target)
    if callable(getattr(target, "energy", None)):
        grad = getattr(target, "grad", getattr(target, "input_grad", None))
        shape = getattr(target, "event_shape", None)
        return from_functions(target.energy, grad, shape, getattr(target, "domain", "real"))
    raise TypeError(
        f"a target is wanted: model.target(params), (energy, grad) or an object with both; got "
        f"{type(target).__name__}"
    )


def _tempered(beta: Any) -> bool:
    return np.ndim(beta) > 0 or beta != 1.0
