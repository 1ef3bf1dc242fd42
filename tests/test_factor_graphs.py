"""Messages on chains and trees against sums and minima over all configurations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from energyscape.backend import to_host
from energyscape.evaluation import FactorGraph

# Energies are of order 10, log Z of order 20: a hundred roundings of these.
EXACT = 1e-12


def enumerated(unary: Any, pairwise: Any, edges: Any) -> tuple[np.ndarray, np.ndarray]:
    """All configurations, (S, T), and their energies in each graph, (n, S)."""
    shape = [u.shape[1] for u in unary]
    states = np.indices(shape).reshape(len(shape), -1).T
    energy = sum(u[:, states[:, t]] for t, u in enumerate(unary))
    for (a, b), V in zip(edges, pairwise, strict=True):
        V = V if V.ndim == 3 else V[None]
        energy = energy + V[:, states[:, a], states[:, b]]
    return states, energy


def answers(unary: Any, pairwise: Any, edges: Any) -> dict[str, Any]:
    """What the messages must give."""
    states, energy = enumerated(unary, pairwise, edges)
    least = energy.min(axis=1, keepdims=True)
    weight = np.exp(least - energy)
    Z = weight.sum(axis=1, keepdims=True)
    p, rows = weight / Z, np.arange(len(energy))[:, None]
    nodes, pairs = [np.zeros(u.shape) for u in unary], []
    for t, table in enumerate(nodes):
        np.add.at(table, (rows, states[None, :, t]), p)
    for a, b in edges:
        pairs.append(np.zeros((len(energy), unary[a].shape[1], unary[b].shape[1])))
        np.add.at(pairs[-1], (rows, states[None, :, a], states[None, :, b]), p)
    log_z = np.log(Z[:, 0]) - least[:, 0]
    return {"s": states[energy.argmin(axis=1)], "E": least[:, 0], "Z": log_z, "p": (nodes, pairs)}


def random_tree(rng: Any, chain: bool, forest: bool = False, forbid: float = 0.0) -> Any:
    """A few graphs of one random shape, with energies of their own or shared ones."""
    n, T = int(rng.integers(1, 4)), int(rng.integers(1, 7))
    names = np.arange(T) if chain else rng.permutation(T)
    ends = [(t - 1 if chain else int(rng.integers(t)), t) for t in range(1, T)]
    edges = [(int(names[a]), int(names[b]))[:: rng.choice([-1, 1])] for a, b in ends]
    if forest:
        edges = [edge for edge in edges if rng.random() < 0.5]
    K = rng.integers(1, 5, T)
    unary = [2 * rng.standard_normal((n, k)) for k in K]
    pairwise = []
    for a, b in edges:
        lead = (n,) if rng.random() < 0.5 else ()
        V = 2 * rng.standard_normal((*lead, K[a], K[b]))
        V[rng.random(V.shape) < forbid] = np.inf
        pairwise.append(V)
    return unary, pairwise, edges


def agree(graph: FactorGraph, wanted: dict[str, Any]) -> None:
    states, energy = graph.minimum()
    np.testing.assert_array_equal(states, wanted["s"])
    np.testing.assert_allclose(energy, wanted["E"], rtol=0, atol=EXACT)
    np.testing.assert_allclose(graph.energy(states), wanted["E"], rtol=0, atol=EXACT)
    np.testing.assert_allclose(graph.log_partition(), wanted["Z"], rtol=0, atol=EXACT)
    for found, right in zip(graph.marginals(), wanted["p"], strict=True):
        assert len(found) == len(right)
        for mine, theirs in zip(found, right, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=EXACT)


@pytest.mark.parametrize("kind", ["chain", "tree", "forest", "forbidden"])
def test_messages_equal_enumeration(kind: str) -> None:
    """200 random graphs of each kind; a tie of random energies has probability 0."""
    rng, done = np.random.default_rng(0), 0
    while done < 200:
        forbid = 0.3 if kind == "forbidden" else 0.0
        given = random_tree(rng, kind == "chain", kind == "forest", forbid)
        possible = np.isfinite(enumerated(*given)[1]).any(axis=1)
        graph = FactorGraph(*given)
        if possible.all():
            agree(graph, answers(*given))
            done += 1
            continue
        for solve in (graph.minimum, graph.log_partition, graph.marginals, graph.sample):
            with pytest.raises(ValueError, match=f"graph {possible.argmin()} forbids every"):
                solve()


def test_an_edge_read_the_wrong_way_is_found() -> None:
    """A negative control: the transposed edge does not agree."""
    rng = np.random.default_rng(0)
    unary = [rng.standard_normal((2, 3)) for _ in range(3)]
    pairwise = [rng.standard_normal((3, 3)) for _ in range(2)]
    edges = [(0, 1), (1, 2)]
    wanted = answers(unary, [pairwise[0].T, pairwise[1]], edges)
    with pytest.raises(AssertionError):
        agree(FactorGraph(unary, pairwise, edges), wanted)


def test_one_array_for_all() -> None:
    """Nodes of as many states and one shared V, as arrays and as lists of numbers."""
    rng = np.random.default_rng(1)
    U, V = rng.standard_normal((4, 5, 3)), rng.standard_normal((3, 3))
    edges = [(t, t + 1) for t in range(4)]
    wanted = answers(list(U.transpose(1, 0, 2)), [V] * 4, edges)
    agree(FactorGraph(U, V), wanted)
    agree(FactorGraph(U.tolist(), V.tolist()), wanted)
    agree(FactorGraph(U, np.stack([V] * 4), edges), wanted)


def test_marginals_are_the_derivatives_of_log_z() -> None:
    """Central differences of every energy of a tree; truncation h² = 1e-10, rounding 1e-9."""
    rng = np.random.default_rng(2)
    unary = [rng.standard_normal((1, k)) for k in (2, 3, 2, 4)]
    edges = [(1, 0), (1, 2), (3, 1)]
    pairwise = [rng.standard_normal((unary[a].shape[1], unary[b].shape[1])) for a, b in edges]
    nodes, pairs = FactorGraph(unary, pairwise, edges).marginals()
    for group, p in ((unary, nodes), (pairwise, pairs)):
        for array, table in zip(group, p, strict=True):
            for at in np.ndindex(array.shape):
                kept, sides = array[at], []
                for h in (1e-5, -1e-5):
                    array[at] = kept + h
                    sides.append(FactorGraph(unary, pairwise, edges).log_partition()[0])
                array[at] = kept
                slope = (sides[0] - sides[1]) / 2e-5
                assert slope == pytest.approx(-np.asarray(table).reshape(array.shape)[at], abs=1e-8)


def test_a_long_chain_neither_under_nor_overflows() -> None:
    """Independent nodes and a periodic one: log Z of 5,000 nodes is a sum, or a power's trace."""
    T, K = 5000, 3
    U, V = np.full((1, T, K), 700.0), np.zeros((K, K))
    log_z = FactorGraph(U, V).log_partition()
    assert log_z[0] == pytest.approx(T * (np.log(K) - 700), rel=1e-12)
    some = np.random.default_rng(1).standard_normal((1, T, K))
    graph = FactorGraph(U + some, V)
    p = np.exp(-some) / np.exp(-some).sum(axis=2, keepdims=True)
    np.testing.assert_allclose(np.stack(graph.marginals()[0], axis=1), p, rtol=0, atol=EXACT)
    np.testing.assert_array_equal(graph.minimum()[0], some.argmin(axis=2))
    A = np.exp(-np.random.default_rng(0).standard_normal((K, K)))
    vector, total = np.ones(K), 0.0
    for _ in range(T - 1):
        vector = A @ vector
        total += np.log(vector.sum())
        vector /= vector.sum()
    found = FactorGraph(np.zeros((1, T, K)), -np.log(A)).log_partition()[0]
    assert found == pytest.approx(total + np.log(vector.sum()), rel=1e-12)


def test_draws_have_the_marginals() -> None:
    """30,000 draws of pairs of nodes, also far apart, within 6 standard errors: of the 2 · 61
    frequencies one is farther off with probability below 1e-6. Chains would not be."""
    rng = np.random.default_rng(3)
    unary = [rng.standard_normal((2, k)) for k in (2, 3, 2, 3)]
    edges = [(0, 1), (2, 1), (2, 3)]
    pairwise = [2 * rng.standard_normal((unary[a].shape[1], unary[b].shape[1])) for a, b in edges]
    pairwise[1][0, 2] = np.inf
    n = 30_000
    draws = FactorGraph(unary, pairwise, edges).sample(n, random_state=0)
    assert draws.shape == (n, 2, 4) and draws.dtype == np.int64
    states, energy = enumerated(unary, pairwise, edges)
    p = np.exp(-energy) / np.exp(-energy).sum(axis=1, keepdims=True)
    assert not ((draws[:, :, 2] == 0) & (draws[:, :, 1] == 2)).any()
    for a in range(4):
        for b in range(a):
            for i in range(2):
                for at in np.ndindex(unary[a].shape[1], unary[b].shape[1]):
                    on = (states[:, a] == at[0]) & (states[:, b] == at[1])
                    q = p[i, on].sum()
                    seen = ((draws[:, i, a] == at[0]) & (draws[:, i, b] == at[1])).mean()
                    assert abs(seen - q) < 6 * np.sqrt(q * (1 - q) / n) + 1e-12
    with pytest.raises(ValueError, match="n_samples must be an integer >= 1"):
        FactorGraph(unary, pairwise, edges).sample(0)
    again = FactorGraph(unary, pairwise, edges).sample(n, random_state=0)
    np.testing.assert_array_equal(draws, again)


def test_energies_of_given_states() -> None:
    rng = np.random.default_rng(4)
    given = random_tree(rng, chain=False)
    graph = FactorGraph(*given)
    states, energy = enumerated(*given)
    for s, E in zip(states, energy.T, strict=True):
        found = graph.energy(np.tile(s, (graph.n_graphs, 1)))
        np.testing.assert_allclose(found, E, rtol=0, atol=EXACT)
    with pytest.raises(ValueError, match="states must be integers of shape"):
        graph.energy(states[:, :1])
    with pytest.raises(ValueError, match="states of node 0 must be in 0"):
        graph.energy(np.full((graph.n_graphs, states.shape[1]), 7))


def test_float32_and_integers_are_computed_in_float64() -> None:
    U = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    graph = FactorGraph(U, np.eye(3, dtype=np.int64))
    assert graph.log_partition().dtype == np.float64
    agree(graph, answers([U[:, 0].astype(float), U[:, 1].astype(float)], [np.eye(3)], [(0, 1)]))


def test_on_a_device(cupy: Any) -> None:
    rng = np.random.default_rng(5)
    unary, pairwise, edges = random_tree(rng, chain=False)
    there = FactorGraph([cupy.asarray(u) for u in unary], pairwise, edges)
    here = FactorGraph(unary, pairwise, edges)
    results = (*there.minimum(), there.log_partition(), there.sample(3, random_state=1))
    for found in results + tuple(v for part in there.marginals() for v in part):
        assert type(found) is cupy.ndarray
    np.testing.assert_array_equal(to_host(results[0]), here.minimum()[0])
    np.testing.assert_allclose(to_host(results[2]), here.log_partition(), rtol=0, atol=EXACT)
    np.testing.assert_allclose(to_host(there.energy(results[0])), here.minimum()[1], rtol=1e-12)
    whole = FactorGraph(cupy.asarray(rng.standard_normal((2, 4, 3))), cupy.zeros((3, 3)))
    assert type(whole.log_partition()) is cupy.ndarray


U3, V2 = np.zeros((1, 3, 2)), np.zeros((2, 2))


@pytest.mark.parametrize(
    ("unary", "pairwise", "edges", "message"),
    [
        (U3, V2, [(0, 1), (1, 2), (2, 0)], r"edge \(2, 0\) closes a cycle"),
        (U3, V2, [(0, 1), (1, 0)], r"edge \(1, 0\) closes a cycle"),
        (U3, V2, [(1, 1)], r"edge \(1, 1\) closes a cycle"),
        (U3, V2, [(0, 3)], r"edge \(0, 3\): nodes are 0 … 2"),
        (U3, V2, [(0, -1)], r"edge \(0, -1\): nodes are 0 … 2"),
        (U3, V2, [0], "an edge is a pair of node numbers"),
        (U3, V2, [(0, 1, 2)], "an edge is a pair of node numbers"),
        (U3, V2, [(0, 0.5)], "an edge is a pair of node numbers"),
        (U3, np.zeros((3, 2)), None, r"pairwise of edge \(0, 1\) has shape"),
        (U3, [V2], None, "pairwise has 1 arrays for 2 edges"),
        (U3, [V2, np.zeros((4, 2, 2))], None, r"pairwise of edge \(1, 2\) has shape"),
        (U3, np.zeros(2), None, "pairwise has 0 arrays for 2 edges"),
        (U3, [[0, np.nan], [0, 0]], None, "pairwise holds NaN or -inf"),
        (U3, [["a", "b"], ["c", "d"]], None, "pairwise must be numbers"),
        (U3 - np.inf, V2, None, "unary holds NaN or -inf"),
        (U3[0], V2, None, "unary must be an array of shape"),
        ([[0.0, 1.0]], V2, None, r"unary must have shape \(n, T, K\)"),
        ([], V2, None, "unary must be an array of shape"),
        (3.0, V2, None, "unary must be an array of shape"),
        (np.zeros((0, 3, 2)), V2, None, "unary is empty"),
        ([np.zeros((1, 2)), np.zeros((2, 2))], V2, None, "unary of node 1 has shape"),
        ([np.zeros((1, 2)), np.zeros(2)], V2, None, "unary of node 1 has shape"),
    ],
)
def test_bad_graphs_are_refused(unary: Any, pairwise: Any, edges: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FactorGraph(unary, pairwise, edges)
