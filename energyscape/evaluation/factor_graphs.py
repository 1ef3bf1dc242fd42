"""Energies that are sums over the nodes and the edges of a chain, a tree, or several of them.

    E(s) = Σ_t U_t(s_t) + Σ_ab V_ab(s_a, s_b),    s_t in 0 … K_t - 1

Messages from the leaves c to the roots, each through the edge to the node p above it,

    B_c(s_c) = U_c(s_c) + Σ_d m_d(s_c)                       d: the nodes below c
    m_c(s_p) = min over s_c of V(s_p, s_c) + B_c(s_c)        min-sum
    m_c(s_p) = -log Σ_{s_c} exp(-V(s_p, s_c) - B_c(s_c))     sum-product

give min E and -log Z at the roots; the way back down gives the best configuration, exact draws, and

    p(s_c | s_p) = exp(-V(s_p, s_c) - B_c(s_c)) / Σ of the same over s_c.

O(T K²) for each of n graphs, which differ in their energies and are worked on together.

References
----------
Viterbi, A. J. (1967). Error bounds for convolutional codes and an asymptotically optimum decoding
algorithm.
Pearl, J. (1988). Probabilistic reasoning in intelligent systems.
LeCun, Y., Chopra, S., Hadsell, R., Ranzato, M., Huang, F. (2006). A tutorial on energy-based
learning. Section 6: factor graphs with energies.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from energyscape.backend import (
    Array,
    Purpose,
    device_of,
    draw_seed,
    is_gpu_array,
    namespace,
    stream,
)
from energyscape.verbs import check_count


class FactorGraph:
    """n energies of the same chain, tree or forest of discrete nodes, solved exactly.

    Parameters
    ----------
    unary : array, shape (n, T, K), or sequence of T arrays, shapes (n, K_t)
        U, in nats: the energy of each state of each node. +inf forbids one.
    pairwise : array, shape (K, K), or sequence of arrays, shapes (K_a, K_b) or (n, K_a, K_b)
        V: one array for all edges, or one for each edge, whose rows are the states of its first
        node; with three dimensions it differs between the n graphs. +inf forbids a pair.
    edges : sequence of (a, b), optional
        Pairs of nodes, of which no path leads back to its beginning. Default: the chain 0 - 1 - …
        Parts that no edge joins are independent of each other.

    Attributes
    ----------
    n_graphs : int
    n_states : tuple of int
        K_t of each node.
    edges : tuple of (int, int)

    Raises
    ------
    ValueError
        For a cycle, edges of nodes that are not there, shapes that do not fit, NaN and -inf.

    Notes
    -----
    Everything is computed in float64, on the device of ``unary``. Arrays in float64 are not copied,
    and must stay as they are.

    Examples
    --------
    >>> import numpy as np
    >>> from energyscape.evaluation import FactorGraph
    >>> chain = FactorGraph([[[0.0, 1.0], [2.0, 0.0], [0.0, 3.0]]], [[0.0, 1.5], [1.5, 0.0]])
    >>> states, energy = chain.minimum()
    >>> states.tolist(), energy.tolist()
    ([[0, 0, 0]], [2.0])
    >>> nodes, edges = chain.marginals()
    >>> bool(np.isclose(nodes[1].sum(), 1.0)), edges[0].shape
    (True, (1, 2, 2))
    """

    def __init__(self, unary: Any, pairwise: Any, edges: Sequence[Any] | None = None) -> None:
        self._unary = _unaries(unary)
        self.n_graphs = self._unary[0].shape[0]
        self.n_states = tuple(u.shape[1] for u in self._unary)
        count = len(self._unary)
        wanted = [(t, t + 1) for t in range(count - 1)] if edges is None else edges
        self.edges = tuple(_pair(edge, count) for edge in wanted)
        self._pairwise = self._pairs(pairwise)
        self._above = _parents(count, self.edges)

    def energy(self, states: Any) -> Any:
        """E of given configurations.

        Parameters
        ----------
        states : integer array, shape (n, T)

        Returns
        -------
        array, shape (n,), float64
        """
        xp, row = namespace(self._unary[0]), self._rows()
        s = states if is_gpu_array(states) else xp.asarray(states)
        wanted = (self.n_graphs, len(self.n_states))
        if tuple(s.shape) != wanted or s.dtype.kind not in "iu":
            raise ValueError(
                f"states must be integers of shape {wanted}, got {s.dtype} of shape {s.shape}"
            )
        for t, k in enumerate(self.n_states):
            if bool(((s[:, t] < 0) | (s[:, t] >= k)).any()):
                raise ValueError(f"states of node {t} must be in 0 … {k - 1}")
        total = sum(u[row, s[:, t]] for t, u in enumerate(self._unary))
        for (a, b), V in zip(self.edges, self._pairwise, strict=True):
            V = xp.broadcast_to(V, (self.n_graphs, *V.shape[1:]))
            total = total + V[row, s[:, a], s[:, b]]
        return total

    def minimum(self) -> tuple[Any, Any]:
        """The best configurations and their energies, by min-sum.

        Returns
        -------
        states : array, shape (n, T), int64
            Of several that are equally good one.
        energy : array, shape (n,), float64

        Raises
        ------
        ValueError
            If everything is forbidden in one of the graphs.
        """
        xp, row = namespace(self._unary[0]), self._rows()
        below, pointers = list(self._unary), dict[int, Array]()
        energy = xp.zeros(self.n_graphs)
        for c, p, edge in reversed(self._above):
            if p < 0:
                energy = energy + below[c].min(axis=1)
                continue
            J = self._joint(below[c], c, p, edge)
            pointers[c] = xp.argmin(J, axis=2)
            lowered, least = _lowered(J.min(axis=2))
            below[p], energy = below[p] + lowered, energy + least
        states: dict[int, Array] = {}
        for c, p, _ in self._above:
            states[c] = xp.argmin(below[c], axis=1) if p < 0 else pointers[c][row, states[p]]
        self._refuse_forbidden(energy)
        found = xp.stack([states[t] for t in range(len(self.n_states))], axis=1)
        return found.astype(np.int64), energy

    def log_partition(self) -> Any:
        """log Z = log Σ_s exp(-E(s)) of each graph, by sum-product.

        Its derivative in an energy is minus the marginal of `marginals` that belongs to it.

        Returns
        -------
        array, shape (n,), float64

        Raises
        ------
        ValueError
            If everything is forbidden in one of the graphs.
        """
        return self._summed()[1]

    def marginals(self) -> tuple[list[Any], list[Any]]:
        """p(s_t) of each node and p(s_a, s_b) of each edge.

        Returns
        -------
        nodes : list of T arrays, shapes (n, K_t), float64
        edges : list of arrays, shapes (n, K_a, K_b), float64
            In the order of ``edges``.

        Raises
        ------
        ValueError
            If everything is forbidden in one of the graphs.
        """
        nodes, pairs = dict[int, Array](), dict[int, Array]()
        for c, p, edge, table in self._downward():
            if p < 0:
                nodes[c] = table
                continue
            pairs[edge] = nodes[p][:, :, None] * table
            nodes[c] = pairs[edge].sum(axis=1)
            if self.edges[edge][0] == c:
                pairs[edge] = pairs[edge].transpose(0, 2, 1)
        count = len(self.n_states)
        return [nodes[t] for t in range(count)], [pairs[e] for e in range(len(self.edges))]

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """Exact, independent draws of p(s) = exp(-E(s)) / Z.

        Parameters
        ----------
        n_samples : int, default 1
            Draws from each graph.
        random_state : int, RandomState, Generator or None

        Returns
        -------
        array, shape (n_samples, n, T), int64

        Raises
        ------
        ValueError
            If everything is forbidden in one of the graphs, or n_samples < 1.
        """
        check_count("n_samples", n_samples)
        xp, row, n = namespace(self._unary[0]), self._rows(), self.n_graphs
        rng = stream(draw_seed(random_state), Purpose.SAMPLE, 0, device_of(self._unary[0]))
        states: dict[int, Array] = {}
        for c, p, _, table in self._downward():
            steps = table.cumsum(axis=-1)
            steps = xp.broadcast_to(steps[None], (n_samples, *steps.shape))
            if p >= 0:
                steps = steps[xp.arange(n_samples)[:, None], row, states[p]]
            last = steps[:, :, -1:]
            below = steps <= rng.uniform((n_samples, n, 1), np.float64) * last
            # Not beyond the last state that is possible, whatever the product was rounded to.
            states[c] = xp.minimum(below.sum(axis=2), (steps < last).sum(axis=2))
        found = xp.stack([states[t] for t in range(len(self.n_states))], axis=2)
        return found.astype(np.int64)

    # ------------------------------------------------------------ messages

    def _rows(self) -> Array:
        return namespace(self._unary[0]).arange(self.n_graphs)

    def _joint(self, below: Array, c: int, p: int, edge: int) -> Array:
        """V(s_p, s_c) + B_c(s_c), shape (n, K_p, K_c)."""
        V = self._pairwise[edge]
        if self.edges[edge] == (c, p):
            V = V.transpose(0, 2, 1)
        return V + below[:, None, :]

    def _summed(self) -> tuple[list[Array], Array]:
        """B of all nodes, each less a constant, and log Z."""
        below = list(self._unary)
        log_z = namespace(below[0]).zeros(self.n_graphs)
        for c, p, edge in reversed(self._above):
            if p < 0:
                log_z = log_z - _softmin(below[c])
                continue
            lowered, least = _lowered(_softmin(self._joint(below[c], c, p, edge)))
            below[p], log_z = below[p] + lowered, log_z - least
        self._refuse_forbidden(-log_z)
        return below, log_z

    def _downward(self) -> Any:
        """(node, node above or -1, edge, p(s_c | s_p) or p(s_c)) from the roots to the leaves."""
        below, _ = self._summed()
        for c, p, edge in self._above:
            yield c, p, edge, _shares(below[c] if p < 0 else self._joint(below[c], c, p, edge))

    def _refuse_forbidden(self, energy: Array) -> None:
        forbidden = energy == np.inf
        if bool(forbidden.any()):
            first = int(forbidden.argmax())
            raise ValueError(f"graph {first} forbids every configuration: all have energy +inf")

    # ------------------------------------------------------------ what was given

    def _pairs(self, pairwise: Any) -> list[Array]:
        """V of each edge with a leading axis, of length 1 where it is shared."""
        depth, like = _depth(pairwise), self._unary[0]
        if depth == 2:
            pairwise = [_energies(pairwise, like, "pairwise")] * len(self.edges)
        elif depth < 2:
            pairwise = []
        if len(pairwise) != len(self.edges):
            raise ValueError(
                f"pairwise has {len(pairwise)} arrays for {len(self.edges)} edges; give one for "
                "each, or a single one of two dimensions for all"
            )
        found = []
        for (a, b), given in zip(self.edges, pairwise, strict=True):
            name = f"pairwise of edge ({a}, {b})"
            V = _energies(given, like, name)
            V = V[None] if V.ndim == 2 else V
            states = (self.n_states[a], self.n_states[b])
            if V.shape not in ((1, *states), (self.n_graphs, *states)):
                raise ValueError(
                    f"{name} has shape {tuple(V.shape)}, wanted {states} or "
                    f"{(self.n_graphs, *states)}"
                )
            found.append(V)
        return found


def _softmin(E: Array) -> Array:
    """-log Σ exp(-E) over the last axis; +inf where all are."""
    xp = namespace(E)
    least = _finite(E.min(axis=-1))
    with np.errstate(divide="ignore"):
        return least - xp.log(xp.exp(least[..., None] - E).sum(axis=-1))


def _lowered(m: Array) -> tuple[Array, Array]:
    """A message less its minimum, and that: else energies of thousands of nodes would add up in it,
    and their rounding would be that of differences between states."""
    least = _finite(m.min(axis=1))
    return m - least[:, None], least


def _shares(E: Array) -> Array:
    """exp(-E) / Σ exp(-E) over the last axis; 0 where all energies are +inf."""
    xp = namespace(E)
    shares = xp.exp(_finite(E.min(axis=-1))[..., None] - E)
    total = shares.sum(axis=-1, keepdims=True)
    return shares / xp.where(total > 0, total, 1.0)


def _finite(E: Array) -> Array:
    """Energies with 0 for +inf, so that differences of two are never NaN."""
    xp = namespace(E)
    return xp.where(xp.isfinite(E), E, 0.0)


def _energies(given: Any, like: Any, name: str) -> Array:
    """``given`` as float64 on the device of ``like``, checked."""
    xp = np if like is None else namespace(like)
    found = xp.asarray(given)
    if found.dtype.kind not in "fiub":
        raise ValueError(f"{name} must be numbers, got dtype {found.dtype}")
    found = found.astype(np.float64, copy=False)
    if 0 in found.shape:
        raise ValueError(f"{name} is empty: shape {tuple(found.shape)}")
    if not bool((found > -np.inf).all()):  # NaN, too
        raise ValueError(f"{name} holds NaN or -inf; +inf alone is an energy: it forbids a state")
    return found


def _unaries(given: Any) -> list[Array]:
    """U of each node, (n, K_t)."""
    if len(getattr(given, "shape", ())) == 3 or (isinstance(given, Sequence) and _regular(given)):
        like = given if is_gpu_array(given) else None
        whole = _energies(given, like, "unary")
        if whole.ndim != 3:
            raise ValueError(
                f"unary must have shape (n, T, K), or be T arrays (n, K_t); got {whole.shape}"
            )
        return [whole[:, t] for t in range(whole.shape[1])]
    if not isinstance(given, Sequence) or not len(given):
        raise ValueError(
            "unary must be an array of shape (n, T, K), or a sequence of T arrays (n, K_t), got "
            f"{type(given).__name__} of shape {getattr(given, 'shape', ())}"
        )
    like = given[0] if is_gpu_array(given[0]) else None
    found = [_energies(u, like, f"unary of node {t}") for t, u in enumerate(given)]
    for t, u in enumerate(found):
        if u.ndim != 2 or u.shape[0] != found[0].shape[0]:
            raise ValueError(
                f"unary of node {t} has shape {tuple(u.shape)}, wanted (n, K_t) with the same n "
                f"for all, that of node 0: {tuple(found[0].shape)}"
            )
    return found


def _regular(given: Sequence[Any]) -> bool:
    """Whether nested lists, rather than a list of arrays, were given."""
    return len(given) > 0 and not hasattr(given[0], "shape")


def _depth(given: Any) -> int:
    """Dimensions of an array or of nested lists."""
    if hasattr(given, "shape"):
        return len(given.shape)
    nested = isinstance(given, Sequence) and not isinstance(given, str) and len(given)
    return 1 + _depth(given[0]) if nested else 0


def _pair(edge: Any, count: int) -> tuple[int, int]:
    """Two different nodes that exist."""
    try:
        a, b = (operator.index(node) for node in edge)
    except (TypeError, ValueError) as error:
        raise ValueError(f"an edge is a pair of node numbers, got {edge!r}") from error
    if not (0 <= a < count and 0 <= b < count):
        raise ValueError(f"edge ({a}, {b}): nodes are 0 … {count - 1}")
    return a, b


def _parents(count: int, edges: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(node, node above, edge between) from roots, above which is -1, to leaves."""
    _refuse_cycles(count, edges)
    near: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    for edge, (a, b) in enumerate(edges):
        near[a].append((b, edge))
        near[b].append((a, edge))
    order, seen = [], [False] * count
    for root in range(count):
        todo = [] if seen[root] else [(root, -1, -1)]
        while todo:
            node, above, between = todo.pop()
            seen[node] = True
            order.append((node, above, between))
            todo += [(other, node, edge) for other, edge in near[node] if edge != between]
    return order


def _refuse_cycles(count: int, edges: Sequence[tuple[int, int]]) -> None:
    part = list(range(count))

    def end(node: int) -> int:
        while part[node] != node:
            part[node] = node = part[part[node]]
        return node

    for a, b in edges:
        first, second = end(a), end(b)
        if first == second:
            raise ValueError(
                f"edge ({a}, {b}) closes a cycle: messages are exact on chains and trees alone"
            )
        part[first] = second
