"""What a sampler sees of a model: a density exp(-F_β(x; θ)) at a temperature, and nothing else.

β multiplies the *joint* energy E(x, h) (latents summed out afterwards, so F_β ≠ βF); where a
base measure is given, the path runs from it (β = 0) to the model (β = 1):
E_β = (1 - β) E_base + β E.
"""

from __future__ import annotations

from typing import Any

from energyscape.backend import Array, namespace
from energyscape.verbs import Params, Pass, speaks


class Target:
    """A model at fixed parameters and temperature, as samplers take it.

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

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.model.event_shape(self.params))

    @property
    def has_sweep(self) -> bool:
        """Whether block Gibbs steps exist."""
        return not speaks(self.model, ("sample_hidden", "sample_visible"))

    def at(self, beta: Any) -> Target:
        """The same target at another inverse temperature."""
        return Target(self.model, self.params, self.base, beta)

    def forward(self, x: Array) -> Pass:
        """The model's pass at ``x``; its ``at(beta)`` re-tempers without a new product."""
        return self.model.forward(self.params, x, self.beta, self.base)

    def energy(self, x: Array) -> Array:
        """F_β(x), shape (n,), float64."""
        return self.forward(x).energy()

    def sweep(self, x: Array, rng: Any) -> Array:
        """One block-Gibbs step x → h → x', which leaves exp(-F_β) invariant (and is reversible)."""
        return self.finish_sweep(self.forward(x), rng)

    def finish_sweep(self, passed: Pass, rng: Any) -> Array:
        """The same from a pass at x and this β, without its product once more."""
        h = passed.sample_hidden(rng)
        return self.model.sample_visible(self.params, h, rng, self.beta, self.base)

    def sample_base(self, n: int, rng: Any) -> Array:
        """``n`` exact draws of the base measure: at β = 0 a sweep forgets where it came from."""
        like = next(iter(self.params.values()))
        x = namespace(like).zeros((n, *self.event_shape), like.dtype)
        return self.at(0.0).sweep(x, rng)

    def base_log_partition(self) -> float:
        """Exact log Z at β = 0."""
        return self.model.base_log_partition(self.params, self.base)


class Clamped:
    """A target with some coordinates held: what is left is the conditional given them.

    Parameters
    ----------
    target : Target
    mask : bool array, shape event_shape or (n, *event_shape)
        True where a coordinate is held.
    values : array that broadcasts to (n, *event_shape)
        What it is held at; read only under the mask.
    """

    def __init__(self, target: Target, mask: Array, values: Array) -> None:
        self.target, self.mask, self.values = target, mask, values
        self.event_shape = target.event_shape
        self.has_sweep = target.has_sweep

    def hold(self, x: Array) -> Array:
        """``x`` with the held coordinates put in."""
        return namespace(x).where(self.mask, self.values, x)

    def sweep(self, x: Array, rng: Any) -> Array:
        """Free coordinates are drawn given all hidden units: exact for conditionally independent
        visible units, because the held ones only drop out of the product."""
        return self.hold(self.target.sweep(x, rng))
