"""Layers of units of which only neighbours are connected, as the two sides of a bipartite graph.

Layers 0, 2, … are the even side and 1, 3, … the odd one; a side is one array, its layers side by
side. Weights come in blocks, W1 between layers 0 and 1 and so on, and each block is multiplied by
itself: nothing is spent on pairs of layers that are not connected.
"""

from __future__ import annotations

from energyscape.backend import Array, namespace
from energyscape.kernels import sigmoid
from energyscape.verbs import Params


class Layers:
    """What the blocks ``W1``, ``W2``, … of ``params`` connect.

    Attributes
    ----------
    last : int
        Number of the last layer; the visible one is layer 0.
    places : list of slice
        Where each layer lies on its side.
    """

    def __init__(self, params: Params) -> None:
        self.params = params
        self.last = sum(name.startswith("W") for name in params)
        sizes = [len(params["W1"])]
        sizes += [params[f"W{layer}"].shape[1] for layer in range(1, self.last + 1)]
        starts = [sum(sizes[layer % 2 : layer : 2]) for layer in range(len(sizes))]
        self.places = [slice(lo, lo + size) for lo, size in zip(starts, sizes, strict=True)]

    def split(self, even: Array, odd: Array) -> list[Array]:
        """What belongs to each layer, from the two sides (units along the last axis)."""
        sides = even, odd
        return [sides[n % 2][..., place] for n, place in enumerate(self.places)]

    def neighbours(self, layer: int) -> list[int]:
        return [n for n in (layer - 1, layer + 1) if 0 <= n <= self.last]

    def pull(self, states: Array, source: int, layer: int) -> Array:
        """What ``states`` of the layer ``source`` add to the field of its neighbour."""
        if layer > source:
            return states @ self.params[f"W{layer}"]
        return states @ self.params[f"W{source}"].T

    def fields(self, states: Array, odd: int) -> Array:
        """Fields, without biases, of the odd side given states of the even one, or (``odd`` 0) the
        other way round."""
        fields = []
        for layer in range(odd, self.last + 1, 2):
            first, *more = self.neighbours(layer)
            field = self.pull(states[:, self.places[first]], first, layer)
            for n in more:
                field += self.pull(states[:, self.places[n]], n, layer)
            fields.append(field)
        return fields[0] if len(fields) == 1 else namespace(states).concatenate(fields, axis=1)

    def products(self, even: Array, odd: Array) -> Params:
        """Sums over rows of the products of neighbouring layers, by the name of their weights."""
        layers = self.split(even, odd)
        return {f"W{n}": layers[n - 1].T @ layers[n] for n in range(1, len(layers))}

    def mean_field(self, held: dict[int, Array], sweeps: int) -> list[Array]:
        """Means of every layer given those ``held``, shape (n, units), or (1, units) where no rows
        have reached it yet.

        The sweeps start where units are at their means over the data. Products of held layers are
        made once.
        """
        params = self.params
        layers = self.split(params["mean_v"][None], params["mean_h"][None])
        fixed = self.split(params["b"][None], params["c"][None])
        for source, states in held.items():
            layers[source] = states
            for n in self.neighbours(source):
                fixed[n] = fixed[n] + self.pull(states, source, n)
        order = (*range(1, self.last + 1, 2), *range(0, self.last + 1, 2))
        for _ in range(sweeps):
            for layer in order:
                if layer in held:
                    continue
                field = fixed[layer]
                for n in self.neighbours(layer):
                    if n not in held:
                        field = field + self.pull(layers[n], n, layer)
                layers[layer] = sigmoid(field)
        return layers
