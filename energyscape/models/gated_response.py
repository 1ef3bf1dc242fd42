"""∂F/∂x of gated models inside a trajectory on a GPU: two products and two launches, or four and
four where there are pools.

What fills a CPU's cache is cut up differently: `gated_base` has the same for NumPy, where biases
come as one more row of the product. Here that row would spoil the alignment that a matrix product
on a GPU is quick at, and every pass saved is a launch saved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from energyscape.backend import Array, namespace
from energyscape.kernels import gate, matmul, pull, respond, slope
from energyscape.verbs import Params


@dataclass(frozen=True)
class Response:
    """Filters and mean weights side by side, and what their units are.

    Attributes
    ----------
    up : array, shape (d, k + m)
        To the field: its first k columns are responses whose square is z.
    level : array, shape (k + m,)
        What is added to the field.
    back : array, shape (k + m, d)
    k : int
    pools : array, shape (k, gates), or None
    units : kind of gating units
    params : dict of arrays
    """

    up: Array
    level: Array
    back: Array
    k: int
    pools: Array | None
    units: Any
    params: Params

    def gradient(self, width: Array | None, rest: Array) -> Callable[[Array], Array]:
        """x → ∂F/∂x in new memory, with the Gaussian's width x - rest where it has a width."""
        xp, pools, k, binary = namespace(self.up), self.pools, self.k, self.units.binary
        offset = self.units.offset(self.params)
        pools_back = None if pools is None else xp.ascontiguousarray(pools.T)

        def gradient(x: Array) -> Array:
            field, sent = matmul(x, self.up), None
            if pools is not None:
                sent = xp.empty((len(x), k), x.dtype)
                respond(field, self.level, sent)
                pooled = matmul(sent, pools)
                slope(pooled, offset, binary, out=pooled)
                sent = matmul(pooled, pools_back)
            gate(field, self.level, k, binary, offset, sent)
            grad = matmul(field, self.back)
            if width is not None:
                pull(grad, x, width, rest)
            return grad

        return gradient
