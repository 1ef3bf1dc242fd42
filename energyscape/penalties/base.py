"""What every penalty of a layer is: a value, and its direct partial derivatives.

``penalty(passes, rng)`` gives the value, a mean over rows with the strength in it, and for each
layer the *direct* partial derivatives in a, W, c and x, as if they were independent of each other;
`energyscape.layers.backward_chain` carries them to the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sklearn.base import BaseEstimator

from energyscape.activations import Activation
from energyscape.backend import Array
from energyscape.layers import LayerGrad, LayerPass
from energyscape.registry import registered

Paid = tuple[Array, list[LayerGrad | None]]


class Penalty(BaseEstimator):
    """A term of the loss that is a sum over the layers of an encoder.

    A subclass writes `on_layer`, and names in ``needs`` the method that it asks of an activation.
    """

    needs = "slope"
    strength: float

    def __call__(self, passes: Sequence[LayerPass], rng: Any) -> Paid:
        """The penalty of an encoder at the rows of its passes.

        Parameters
        ----------
        passes : sequence of LayerPass
            Bottom first.
        rng : Stream
            Randomness of the penalties that draw.

        Returns
        -------
        value : float64 scalar or array of no dimension
            Mean over the rows, times the strength; on the device of the rows.
        grads : list of LayerGrad or None
            Its direct partial derivatives, one for each layer; the 1/n is in them.
        """
        parts = [self.on_layer(layer, rng) for layer in passes]
        return sum(value for value, _ in parts), [grad for _, grad in parts]

    def on_layer(self, layer: LayerPass, rng: Any) -> tuple[Array, LayerGrad]:
        """Value and direct partial derivatives of one layer."""
        raise NotImplementedError

    def scale(self, layer: LayerPass) -> float:
        """Strength over rows, a Python float: one of NumPy's would make float32 arrays float64."""
        return float(self.strength) / len(layer.a)

    def check(self, activations: Sequence[Any]) -> None:
        """Raise ValueError for settings that cannot be, or an activation that does not fit."""
        self.check_numbers()
        able = [name for name, cls in registered(Activation).items() if hasattr(cls, self.needs)]
        for f in activations:
            if not hasattr(f, self.needs):
                raise ValueError(
                    f"{type(self).__name__} needs {self.needs}, which {type(f).__name__} does not "
                    f"offer; activations that do: {', '.join(able)}"
                )

    def check_numbers(self) -> None:
        """Raise ValueError for settings that cannot be."""
        check_strength(self, "strength")


def check_strength(penalty: Any, name: str) -> None:
    value = getattr(penalty, name)
    if not 0 <= value < math.inf:
        raise ValueError(f"{type(penalty).__name__}.{name} must be >= 0, got {value!r}")
