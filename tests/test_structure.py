"""Groups, pools and lateral inhibition: proximal steps against brute force, norms against their
definitions, codes against hand-worked cases and another solver, and what is learned with them.

Nothing here is a statistical assertion, unless it says so: seeds fix the problems, and what is
asserted holds for all of them.
"""

from __future__ import annotations

import json
import pickle
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment, linprog, minimize
from scipy.sparse.csgraph import shortest_path
from sklearn.base import clone

import energyscape
from energyscape.models import SparseCoding
from energyscape.penalties import (
    L1,
    GroupL1,
    Lateral,
    PooledL1,
    learned_inhibition,
    ring_inhibition,
    torus_inhibition,
    tree_inhibition,
)
from energyscape.pools import arrangement, pooling, torus_pools
from energyscape.registry import from_tree, to_tree
from energyscape.solvers.duality import norm_gap
from energyscape.solvers.encode import sparse_codes
from energyscape.solvers.proximal import fista, ista
from energyscape.solvers.quadratic import Gram, Rows
from energyscape.trainers import EM

N, M, ROWS, LAM = 12, 20, 30, 0.4
UNEVEN = [[0, 7, 3], [1], [2, 4, 5, 6, 8], [9, 19], list(range(10, 19))]
HEAVY = np.kron(np.diag([0.5, 1.0, 2.0, 4.0, 1.5]), np.ones(4))  # groups of 4 with weights
PENALTIES = [
    GroupL1(4, LAM),
    GroupL1(UNEVEN, LAM),
    GroupL1(HEAVY, LAM),
    PooledL1(5, LAM),
    PooledL1(torus_pools(4, 5, 3, sigma=1.0), 0.15, 0.05),
    Lateral(ring_inhibition(M, 1, 5), 0.7, 0.2),
    Lateral(torus_inhibition(4, 5, 1.2, 2.3), 2.0, 0.0),
]


def name(penalty: Any) -> str:
    return f"{type(penalty).__name__}{PENALTIES.index(penalty)}"


each_penalty = pytest.mark.parametrize("penalty", PENALTIES, ids=name)
each_group = pytest.mark.parametrize("penalty", PENALTIES[:3], ids=["even", "uneven", "heavy"])


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((N, M))
    D /= np.linalg.norm(D, axis=0)
    return D, rng.standard_normal((ROWS, N)) * rng.uniform(0.2, 3, (ROWS, 1))


def energy(D: np.ndarray, x: np.ndarray, h: np.ndarray, penalty: Any) -> np.ndarray:
    return 0.5 * ((x - h @ D.T) ** 2).sum(1) + penalty.code_value(h)


def members(penalty: GroupL1, m: int = M) -> list[tuple[np.ndarray, float]]:
    """Units and √w of each group, read off the setting."""
    groups = penalty.groups
    if isinstance(groups, int):
        return [(np.arange(lo, lo + groups), 1.0) for lo in range(0, m, groups)]
    if isinstance(groups, list):
        return [(np.array(g), 1.0) for g in groups]
    return [(np.flatnonzero(row), float(np.sqrt(row.max()))) for row in groups]


# ---------------------------------------------------------------- values


def test_values_are_those_of_the_definitions() -> None:
    h = np.random.default_rng(1).standard_normal((ROWS, M))
    for penalty in PENALTIES[:3]:
        wanted = sum(LAM * root * np.linalg.norm(h[:, g], axis=1) for g, root in members(penalty))
        np.testing.assert_allclose(penalty.code_value(h), wanted, rtol=1e-13)
    pooled = PENALTIES[4]
    delta = 0.05 * 0.15
    wanted = 0.15 * sum(np.sqrt(delta**2 + h**2 @ w) - delta for w in pooled.pools)
    np.testing.assert_allclose(pooled.code_value(h), wanted, rtol=1e-12)
    lateral = PENALTIES[5]
    quadratic = np.einsum("ni,ij,nj->n", abs(h), lateral.S, abs(h))
    wanted = 0.2 * abs(h).sum(1) + 0.35 * quadratic
    np.testing.assert_allclose(lateral.code_value(h), wanted, rtol=1e-13)
    for penalty in PENALTIES:
        assert penalty.code_value(0 * h).tolist() == [0.0] * ROWS
        single = penalty.code_value(h.astype(np.float32))
        assert single.dtype == np.float64
        np.testing.assert_allclose(single, penalty.code_value(h), rtol=1e-5)


def test_units_alone_are_the_lasso() -> None:
    h = 2 * np.random.default_rng(1).standard_normal((ROWS, M))
    one, l1 = GroupL1(1, LAM), L1(LAM)
    np.testing.assert_allclose(one.code_value(h), l1.code_value(h), rtol=1e-14)
    np.testing.assert_allclose(one.dual_norm(h), l1.dual_norm(h), rtol=1e-14)
    mine, other = (p.prox(h.copy(), 0.9, h) for p in (one, l1))
    np.testing.assert_allclose(mine, other, rtol=1e-14, atol=1e-15)
    assert ((mine == 0) == (other == 0)).all()
    D, x = problem()
    codes = [sparse_codes(D, x, p, tol=1e-13, max_iter=20_000).h for p in (one, l1)]
    np.testing.assert_allclose(energy(D, x, codes[0], l1), energy(D, x, codes[1], l1), rtol=1e-12)
    np.testing.assert_allclose(codes[0], codes[1], atol=1e-5)  # errors are about √gap


# ---------------------------------------------------------------- groups


def test_the_step_of_a_pair_is_the_best_of_a_grid() -> None:
    line = np.linspace(-2, 2, 401)
    grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    penalty = GroupL1(np.array([[2.0, 2.0]]), 0.5)
    for v in np.random.default_rng(0).uniform(-2, 2, (20, 2)):
        cost = 0.5 * ((grid - v) ** 2).sum(1) + 0.8 * penalty.code_value(grid)
        found = penalty.prox(v[None].copy(), 0.8, v[None])
        least = 0.5 * ((found - v) ** 2).sum(1) + 0.8 * penalty.code_value(found)
        # The nearest cell is 0.0071 away at most, where curvature and slope add up to this.
        assert least <= cost.min() <= least + 0.01
        # The cost is 1-strongly convex: a point that is above the least by c is √2c away at most.
        away = np.linalg.norm(found[0] - grid[cost.argmin()])
        assert away <= np.sqrt(2 * (cost.min() - least[0])) + 1e-12


@each_group
def test_the_step_of_groups_is_the_minimum(penalty: GroupL1) -> None:
    rng = np.random.default_rng(2)
    v, step = rng.standard_normal((40, M)) * rng.uniform(0.1, 2, (40, 1)), 0.6
    u = penalty.prox(v.copy(), step, v)
    off = 0
    for group, root in members(penalty):
        theta, length = step * LAM * root, np.linalg.norm(v[:, group], axis=1)
        on = length > theta
        off += (~on).sum()
        assert not u[~on][:, group].any()
        part = u[on][:, group]
        slope = part - v[on][:, group]
        slope += theta * part / np.linalg.norm(part, axis=1)[:, None]
        assert np.abs(slope).max() < 1e-13
    assert 0 < off < 40 * len(members(penalty))
    # And no other point is better, by a minimiser that knows nothing of this.
    for row, best in zip(v[:3], u[:3], strict=True):

        def cost(w: np.ndarray, row: np.ndarray = row) -> float:
            return 0.5 * ((w - row) ** 2).sum() + step * penalty.code_value(w[None])[0]

        found = minimize(cost, row, method="Powell", options={"xtol": 1e-8, "ftol": 1e-12})
        assert cost(best) <= found.fun + 1e-12
        assert found.fun <= cost(best) + 1e-2 * cost(row)  # it got there: Powell stops at kinks


@each_group
def test_the_dual_norm_is_the_largest_product_on_the_unit_ball(penalty: GroupL1) -> None:
    rng = np.random.default_rng(3)
    q = rng.standard_normal((ROWS, M))
    dual = penalty.dual_norm(q)
    assert dual.dtype == np.float64
    for _ in range(200):
        h = rng.standard_normal((ROWS, M)) * (rng.random((ROWS, M)) < 0.3)
        assert ((h * q).sum(1) <= dual * penalty.code_value(h) * (1 + 1e-12)).all()
    # Attained: by the part of q in one of the groups.
    parts = [np.isin(np.arange(M), group) * q for group, _ in members(penalty)]
    reached = np.max([(h * q).sum(1) / penalty.code_value(h) for h in parts], axis=0)
    np.testing.assert_allclose(reached, dual, rtol=1e-12)


@pytest.mark.parametrize("positive", [False, True], ids=["real", "positive"])
@each_group
def test_the_gap_bounds_how_far_codes_are_from_the_best(penalty: GroupL1, positive: bool) -> None:
    D, x = problem()
    settings = {"positive": positive, "max_iter": 50_000}
    best = sparse_codes(D, x, penalty, tol=1e-13, **settings)
    assert best.gap.max() <= 1e-13
    assert best.h.min() >= 0 or not positive
    least = energy(D, x, best.h, penalty)
    h = best.h
    for scale in (1.0, 1e-1, 1e-3, 0.0):
        h = best.h + scale * np.random.default_rng(1).standard_normal(best.h.shape)
        h = np.maximum(h, 0) if positive else h
        r = x - h @ D.T
        gap = norm_gap(penalty, h, r @ D, (r**2).sum(1), positive)
        over = energy(D, x, h, penalty) - least
        assert (gap >= over - 1e-12).all()
        if scale:
            assert (gap > 0).all()
    single = sparse_codes(D.astype("f"), x.astype("f"), penalty, tol=1e-6, **settings)
    assert single.h.dtype == np.float32 and single.gap.max() <= 1e-6


@each_group
def test_energies_are_those_of_the_dual_problem(penalty: GroupL1) -> None:
    """min E is the maximum of ½|x|² - ½|x - θ|² over all θ with |D_g'θ| <= λ√w_g, which is smooth:
    a solver of constrained problems, which knows nothing of groups, finds it."""
    D, x = problem()
    ours = energy(D, x, sparse_codes(D, x, penalty, tol=1e-13, max_iter=50_000).h, penalty)
    parts = [(D[:, group], LAM * root) for group, root in members(penalty)]

    def room(theta: np.ndarray) -> np.ndarray:
        return np.array([top**2 - ((theta @ A) ** 2).sum() for A, top in parts])

    def slope(theta: np.ndarray) -> np.ndarray:
        return np.stack([-2 * A @ (theta @ A) for A, _ in parts])

    within = {"type": "ineq", "fun": room, "jac": slope}
    for row, least in zip(x[:10], ours[:10], strict=True):
        found = minimize(
            lambda theta, row=row: (0.5 * ((row - theta) ** 2).sum(), theta - row),
            0 * row,
            jac=True,
            method="SLSQP",
            constraints=within,
            options={"ftol": 1e-15, "maxiter": 500},
        )
        assert room(found.x).min() > -1e-9
        np.testing.assert_allclose(0.5 * (row**2).sum() - found.fun, least, rtol=1e-8)


def test_groups_are_off_from_lam_max_on() -> None:
    D, x = problem()
    penalty = GroupL1(UNEVEN, 1.0)
    x /= penalty.dual_norm(x @ D)[:, None]
    assert not sparse_codes(D, x, penalty).h.any()
    h = sparse_codes(D, x, GroupL1(UNEVEN, 0.98)).h
    assert h.any(axis=1).all()
    for group in UNEVEN:  # all of a group or none
        assert set((h[:, group] != 0).sum(1)) <= {0, len(group)}


# ---------------------------------------------------------------- steps never go up


@pytest.mark.parametrize("positive", [False, True], ids=["real", "positive"])
@each_penalty
def test_a_step_never_raises_the_energy(penalty: Any, positive: bool) -> None:
    """From anywhere, at 60 problems of 30 rows: ½|x - Dh|² with its L and the bound of p."""
    fell = 0
    for seed in range(60):
        D, x = problem(seed)
        rng = np.random.default_rng(seed)
        h = rng.standard_normal((ROWS, M)) * (rng.random((ROWS, M)) < 0.5)
        h *= 10.0 ** rng.uniform(-4, 1, (ROWS, 1))
        h = abs(h) if positive else h
        gram = Gram.of(D)
        rows, before = Rows.of(gram, x), energy(D, x, h, penalty)
        moved = ista(gram, rows, penalty, start=h, max_iter=1, tol=0.0, positive=positive).h
        after = energy(D, x, moved, penalty)
        assert (after <= before * (1 + 1e-14)).all()
        fell += (after < before - 1e-9).sum()
    assert fell > 0.99 * 60 * ROWS


class Uncurved(Lateral):
    curvature = 0.0  # type: ignore[assignment]


def test_without_its_curvature_a_lateral_step_may_go_up() -> None:
    """The negative control, by hand: D = I, x = (1, 1), both inhibit each other by 3. From 0 the
    step of L = 1 goes to (1, 1), where E is 3 and not 1; that of L = 4 to (¼, ¼), where it is ¾."""
    gram, x, S = Gram.of(np.eye(2)), np.ones((1, 2)), ring_inhibition(2, 0, 2)
    for cls, wanted in ((Uncurved, 3.0), (Lateral, 0.75)):
        penalty = cls(S, 3.0, 0.0)
        h = ista(gram, Rows.of(gram, x), penalty, max_iter=1, tol=0.0).h
        # The bound of the largest eigenvalue of I is 1 % above it.
        np.testing.assert_allclose(energy(np.eye(2), x, h, penalty), wanted, rtol=0.04)


def test_the_curvature_is_the_largest_eigenvalue() -> None:
    S = tree_inhibition(3)
    largest = np.linalg.eigvalsh(S)[-1]
    penalty = Lateral(S, 0.3)
    assert 0.3 * largest <= penalty.curvature <= 0.3 * largest * (1 + 2e-6)
    assert isinstance(penalty.curvature, float)  # NumPy's would make float32 codes float64
    assert Lateral(np.zeros((3, 3)), 0.3).curvature == 0.0
    # Something of it is needed: in this direction the bound is met.
    top = abs(np.linalg.eigh(S)[1][:, -1:]).T
    a, d = 3 * top, 0.1 * top
    p = Lateral(S, 1.0, 0.0)
    rise = p.code_value(a + d) - p.code_value(a) - ((a @ S) * d).sum(1)
    np.testing.assert_allclose(rise, 0.5 * largest * (d**2).sum(1), rtol=1e-9)


@pytest.mark.parametrize("solver", [ista, fista])
@each_penalty
def test_codes_are_stationary(penalty: Any, solver: Any) -> None:
    """Central differences of the energy vanish where a code is on, and no coordinate that is off
    (no group, of those that share a tip) can go down alone."""
    D, x = problem()
    gram, most = Gram.of(D), 20_000 if solver is fista else 100_000
    settings: dict[str, Any] = {"tol": 1e-10, "max_iter": most}
    h = solver(gram, Rows.of(gram, x[:8]), penalty, **settings).h
    step, least = 1e-6, energy(D, x[:8], h, penalty)
    for j in range(M):
        e = step * (np.arange(M) == j)
        up, down = (energy(D, x[:8], h + s * e, penalty) for s in (1, -1))
        on = abs(h[:, j]) > 10 * step
        # Differences have an error of step² times third derivatives < 1/δ² and of 1e-15/step.
        assert abs((up - down)[on] / (2 * step)).max(initial=0.0) < 1e-5
        assert (np.minimum(up, down) - least)[~on].min(initial=0.0) > -1e-11


# ---------------------------------------------------------------- pools


def test_pools_are_convex_and_forget_where_they_began() -> None:
    D, x = problem()
    penalty = PENALTIES[4]
    found = [
        sparse_codes(D, x, penalty, tol=1e-10, max_iter=20_000, start=start).h
        for start in (None, np.random.default_rng(0).standard_normal((ROWS, M)))
    ]
    np.testing.assert_allclose(*(energy(D, x, h, penalty) for h in found), rtol=1e-10)
    single = sparse_codes(D.astype("f"), x.astype("f"), penalty, tol=1e-5, max_iter=20_000)
    assert single.h.dtype == np.float32
    wide = single.h.astype(float)
    np.testing.assert_allclose(
        energy(D, x, wide, penalty), energy(D, x, found[0], penalty), rtol=1e-6
    )


@pytest.mark.parametrize("exact", [L1(LAM), GroupL1(4, LAM)], ids=["L1", "GroupL1"])
@pytest.mark.parametrize("epsilon", [0.1, 0.01])
def test_pools_that_share_nothing_are_groups_but_for_their_tips(exact: Any, epsilon: float) -> None:
    """0 <= √s - (√(δ² + s) - δ) <= δ for each pool, so that energies differ by λδ a pool at most,
    those of the other's best codes included."""
    D, x = problem()
    size = getattr(exact, "groups", 1)
    pooled = PooledL1(size, LAM, epsilon)
    best = sparse_codes(D, x, exact, tol=1e-12, max_iter=20_000).h
    least = energy(D, x, best, exact)
    h = sparse_codes(D, x, pooled, tol=1e-9, max_iter=20_000).h
    most = LAM * epsilon * LAM * M / size
    below = least - energy(D, x, h, pooled)
    assert below.min() >= -1e-9 and below.max() <= most + 1e-9
    over = energy(D, x, h, exact) - least
    assert over.min() >= -1e-9 and over.max() <= most + 1e-9
    assert abs(h - best).max() < 3 * np.sqrt(2 * most)  # what strong convexity of 1/9 would allow


def test_pools_scale_with_the_data() -> None:
    D, x = problem()
    pools = torus_pools(4, 5)
    one = sparse_codes(D, x, PooledL1(pools, 0.1), tol=1e-9, max_iter=20_000).h
    for scale in (1e-6, 1e6):
        big = sparse_codes(D, scale * x, PooledL1(pools, 0.1 * scale), tol=1e-9, max_iter=20_000).h
        np.testing.assert_allclose(big / scale, one, atol=1e-6)


def test_pools_on_a_torus_by_their_definition() -> None:
    for size, stride, sigma in product((1, 2, 3, 4), (1, 2), (None, 0.8)):
        P = torus_pools(4, 6, size, stride=stride, sigma=sigma)
        wanted = np.zeros((4 // stride, 6 // stride, 4, 6))
        for a, b, i, j in product(range(4 // stride), range(6 // stride), range(size), range(size)):
            down, across = i - (size - 1) / 2, j - (size - 1) / 2
            weight = 1.0 if sigma is None else np.exp(-(down**2 + across**2) / (2 * sigma**2))
            row, column = stride * a + i - (size - 1) // 2, stride * b + j - (size - 1) // 2
            wanted[a, b, row % 4, column % 6] = weight
        np.testing.assert_allclose(P, wanted.reshape(P.shape), rtol=1e-14)
    # The layout of Kavukcuoglu et al. (2009): 400 units, pools of 6 × 6 that overlap by 4.
    assert torus_pools(20, 20, 6, stride=2, sigma=1.5).shape == (100, 400)
    for wrong in ({"stride": 3}, {"stride": 0}, {"size": 5}, {"size": 2.5}, {"sigma": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            torus_pools(4, 6, **wrong)  # type: ignore[arg-type]


# ---------------------------------------------------------------- lateral inhibition


def test_no_inhibition_is_the_lasso() -> None:
    D, x = problem()
    none = sparse_codes(D, x, Lateral(np.zeros((M, M)), 1.0, LAM), tol=1e-10, max_iter=50_000).h
    lasso = sparse_codes(D, x, L1(LAM), tol=1e-14, max_iter=50_000).h
    np.testing.assert_allclose(none, lasso, atol=1e-6)


@pytest.mark.parametrize("solver", [ista, fista])
def test_two_units_by_hand(solver: Any) -> None:
    """D = I, S joins both, k = λ: ½(a - u)² + ½(b - v)² + l1(u + v) + kuv for u, v >= 0.

    With a' = a - l1 and b' = b - l1 both are on at u = (a' - kb')/(1 - k²) if that is > 0 for both
    and k < 1; else the larger is at a', and the other off."""
    gram, S = Gram.of(np.eye(2)), np.array([[0.0, 1.0], [1.0, 0.0]])
    x = np.array([[2.0, 1.5], [2.0, 0.9], [1.5, -2.0], [2.0, 0.3], [0.2, -0.1]])
    l1, k = 0.25, 0.5
    a, b = 1.75, 1.25
    both = [(a - k * b) / (1 - k**2), (b - k * a) / (1 - k**2)]
    wanted = [both, [1.75, 0.0], both[::-1], [1.75, 0.0], [0.0, 0.0]]
    wanted[2] = [both[1], -both[0]]  # signs are those of x
    h = solver(gram, Rows.of(gram, x), Lateral(S, k, l1), tol=1e-12, max_iter=5000).h
    np.testing.assert_allclose(h, wanted, atol=1e-9)
    # Inhibition of k >= 1 leaves one on, the larger from h = 0; the other is a minimum, too.
    strong = Lateral(S, 2.0, l1)
    rows, settings = Rows.of(gram, x[:1]), {"tol": 1e-12, "max_iter": 5000}
    np.testing.assert_allclose(solver(gram, rows, strong, **settings).h, [[1.75, 0]], atol=1e-9)
    start = np.array([[0.0, 1.25]])
    np.testing.assert_allclose(solver(gram, rows, strong, start=start, **settings).h, start)
    np.testing.assert_allclose(strong.code_value(np.array([[1.0, 1.25]])), [l1 * 2.25 + 2 * 1.25])


def test_a_tree_by_its_graph() -> None:
    for depth, branching in ((1, 2), (3, 2), (2, 3)):
        S = tree_inhibition(depth, branching)
        m = sum(branching**level for level in range(depth + 1))
        edges = np.zeros((m, m))
        above: list[set[int]] = [set()]
        for i in range(1, m):
            parent = (i - 1) // branching
            edges[i, parent] = 1
            above.append(above[parent] | {parent})
        wanted = shortest_path(edges, directed=False)
        for i, j in product(range(m), range(m)):
            if i == j or i in above[j] or j in above[i]:
                wanted[i, j] = 0
        np.testing.assert_array_equal(S, wanted)
        assert not S[0].any() and S[-1, 1] == depth + 1
        Lateral(S).check_numbers()


def test_rings_and_tori_by_their_distances() -> None:
    S = ring_inhibition(9, 1, 3.5)
    for i, j in product(range(9), range(9)):
        d = min((i - j) % 9, (j - i) % 9)
        assert S[i, j] == (1 < d < 3.5)
    S = torus_inhibition(4, 5, 1.0, 2.3)
    for i, j in product(range(20), range(20)):
        down, across = abs(i // 5 - j // 5), abs(i % 5 - j % 5)
        d = np.hypot(min(down, 4 - down), min(across, 5 - across))
        assert S[i, j] == (1 < d < 2.3)
    for matrix in (S, ring_inhibition(6, 0, 9)):
        Lateral(matrix).check_numbers()
    assert (ring_inhibition(6, 0, 9) == 1 - np.eye(6)).all()


@pytest.mark.parametrize("seed", range(3))
def test_learned_inhibition_is_the_least_that_may_be_paid(seed: int) -> None:
    rng, m, alpha, beta = np.random.default_rng(seed), 9, 2.5, 0.7
    H = rng.laplace(size=(300, m)) * (rng.random((300, m)) < 0.4)
    S = learned_inhibition(H, alpha, beta)
    Lateral(S).check_numbers()
    assert S.max() <= beta
    np.testing.assert_allclose(S.sum(0), alpha, rtol=1e-9)
    # The programme in all entries with sums of rows and columns, which does not ask for symmetry:
    # with S its transpose is as good, so the mean of both is, and the optima are the same.
    cost = (abs(H).T @ abs(H)).ravel() / len(H)
    rows = np.kron(np.eye(m), np.ones(m))
    columns = np.kron(np.ones(m), np.eye(m))
    most = [(0, 0 if i == j else beta) for i, j in product(range(m), range(m))]
    sums = np.full(2 * m, alpha)
    other = linprog(cost, A_eq=np.vstack([rows, columns]), b_eq=sums, bounds=most)
    paid = 2 * Lateral(S, 1.0, 0.0).code_value(H).mean()
    np.testing.assert_allclose(paid, other.fun, rtol=1e-9)
    even = np.where(np.eye(m) > 0, 0, alpha / (m - 1))
    assert paid < 2 * Lateral(even, 1.0, 0.0).code_value(H).mean()


def test_units_that_go_together_do_not_inhibit_each_other() -> None:
    rng = np.random.default_rng(0)
    on = np.kron(np.eye(4), np.ones(3))[rng.integers(4, size=400)]
    H = on * rng.standard_normal((400, 12))
    S = learned_inhibition(H, 6.0, 1.0)
    together = np.kron(np.eye(4), np.ones((3, 3))) > 0
    assert not S[together].any() and S[~together].sum() == pytest.approx(72)


# ---------------------------------------------------------------- devices, files, errors


@each_penalty
def test_the_device_gives_the_same(penalty: Any, cupy: Any) -> None:
    D, x = problem()
    # Steps in float32 part by rounding: codes agree where both are as near the optimum as that.
    for dtype, near, tol in ((np.float64, 1e-9, 1e-6), (np.float32, 1e-4, 1e-10)):
        here = (D.astype(dtype), x.astype(dtype))
        there = [cupy.asarray(a) for a in here]
        for positive in (False, True):
            settings: dict[str, Any] = {"tol": tol, "max_iter": 3000, "positive": positive}
            mine = sparse_codes(*here, penalty, **settings)
            yours = sparse_codes(*there, penalty, **settings)
            assert yours.h.dtype == dtype
            np.testing.assert_allclose(yours.h.get(), mine.h, atol=near)
            value = penalty.code_value(yours.h)
            assert value.dtype == np.float64
            np.testing.assert_allclose(value.get(), penalty.code_value(mine.h), rtol=1e-3)


def test_structure_may_come_from_the_device(cupy: Any) -> None:
    h = np.random.default_rng(0).standard_normal((3, 6))
    S, P = ring_inhibition(6, 0, 2), torus_pools(2, 3, 2)
    for make, array in ((Lateral, S), (PooledL1, P), (GroupL1, pooling(2, 6))):
        given = make(cupy.asarray(array))
        given.check_numbers()
        wanted = make(array).code_value(h)
        np.testing.assert_allclose(given.code_value(h), wanted)
        np.testing.assert_allclose(given.code_value(cupy.asarray(h)).get(), wanted)
    np.testing.assert_allclose(
        learned_inhibition(cupy.asarray(h), 1.0, 0.5), learned_inhibition(h, 1.0, 0.5)
    )


@each_penalty
def test_penalties_survive_clones_trees_and_pickles(penalty: Any) -> None:
    h = np.random.default_rng(0).standard_normal((4, M))
    value = penalty.code_value(h)  # what follows from the structure is held from here on
    for other in (
        clone(penalty),
        from_tree(json.loads(json.dumps(to_tree(penalty)))),
        pickle.loads(pickle.dumps(penalty)),
    ):
        assert type(other) is type(penalty) and "_held" not in vars(other)
        np.testing.assert_array_equal(other.code_value(h), value)
        np.testing.assert_array_equal(other.prox(h.copy(), 0.3, h), penalty.prox(h.copy(), 0.3, h))
        other.check_numbers()


def test_a_new_structure_is_taken_up() -> None:
    h = np.random.default_rng(0).standard_normal((4, 6))
    lateral, group = Lateral(ring_inhibition(6, 0, 2)), GroupL1(2)
    before = lateral.curvature, lateral.code_value(h), group.code_value(h)
    lateral.set_params(S=ring_inhibition(6, 0, 9))
    group.set_params(groups=3)
    assert lateral.curvature > before[0] and (lateral.code_value(h) > before[1]).all()
    assert (group.code_value(h) < before[2]).all()
    lateral.S[...] = 0  # changes within are seen where settings are checked, as in fit
    lateral.check_numbers()
    assert lateral.curvature == 0.0
    np.testing.assert_allclose(lateral.code_value(h), L1(0.1).code_value(h))


@pytest.mark.parametrize("penalty", PENALTIES[1::2], ids=name)
def test_models_keep_their_penalty_in_files(penalty: Any, tmp_path: Any) -> None:
    x = problem()[1]
    model = SparseCoding(M, penalty=penalty, tol=1e-3, trainer=EM(n_epochs=1), random_state=0)
    model.fit(x)
    model.save(tmp_path / "m.h5")
    again = energyscape.load(tmp_path / "m.h5")
    assert type(again.penalty) is type(penalty)
    np.testing.assert_array_equal(again.transform(x), model.transform(x))
    np.testing.assert_array_equal(again.energy(x), model.energy(x))


@pytest.mark.parametrize(
    ("penalty", "says"),
    [
        (GroupL1(0), "pools must be an integer >= 1"),
        (GroupL1(2.0), "pools must be an integer >= 1"),
        (GroupL1([]), "groups must hold at least one list"),
        (GroupL1([[0, 1], []]), "each of groups must be a list of unit numbers"),
        (GroupL1([[0, -1]]), "each of groups must be a list of unit numbers"),
        (GroupL1([0, 1]), "each of groups must be a list of unit numbers"),
        (GroupL1([[0, 1, 1]]), "groups name a unit twice"),
        (GroupL1([[0], [2]]), "every component must be in a pool"),
        (GroupL1([[0, 1], [1, 2]]), "share no unit, but unit 1 is in 2.*PooledL1"),
        (GroupL1(np.array([[1.0, 2.0]])), "equal weights within each group.*PooledL1"),
        (GroupL1(-np.eye(2)), "finite and >= 0"),
        (GroupL1(2, -1.0), "GroupL1.strength must be >= 0"),
        (PooledL1(2, 0.1, 0.0), "PooledL1.epsilon must be > 0"),
        (PooledL1(2, np.inf), "PooledL1.strength must be >= 0"),
        (PooledL1([[0], [2]]), "every component must be in a pool"),
        (PooledL1(np.eye(3)[:2]), "every component must be in a pool"),
        (Lateral(np.ones((2, 3))), r"square matrix, got shape \(2, 3\)"),
        (Lateral(1.0), "square matrix"),
        (Lateral(-ring_inhibition(4, 0, 2)), "finite and >= 0"),
        (Lateral(np.nan * np.ones((2, 2))), "finite and >= 0"),
        (Lateral(np.triu(np.ones((3, 3)), 1)), "must be symmetric"),
        (Lateral(np.ones((3, 3))), "diagonal of zeros"),
        (Lateral(ring_inhibition(4, 0, 2), l1=-1.0), "Lateral.l1 must be >= 0"),
        (Lateral(ring_inhibition(4, 0, 2), np.nan), "Lateral.strength must be >= 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(penalty: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SparseCoding(6, penalty=penalty).fit(np.ones((5, 4)))


@pytest.mark.parametrize(
    ("penalty", "says"),
    [
        (GroupL1(4), "pools of 4 do not divide 6 components"),
        (GroupL1([[0, 1], [2, 3]]), "every component must be in a pool"),
        (GroupL1([[0, 1, 2, 3, 4, 5, 6, 7]]), "groups name unit 7, but codes have 6 units"),
        (PooledL1(np.ones((2, 3))), r"shape \(2, 3\), wanted \(n_pools, 6\)"),
        (Lateral(ring_inhibition(4, 0, 2)), "Lateral.S is for codes of 4 units, got 6"),
    ],
)
def test_a_structure_of_other_codes_is_refused(penalty: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SparseCoding(6, penalty=penalty).fit(problem()[1])


@pytest.mark.parametrize("penalty", [GroupL1(2), PooledL1(2), Lateral(ring_inhibition(4, 0, 2))])
@pytest.mark.parametrize("algorithm", ["cyclic", "greedy", "active_set"])
def test_solvers_of_the_lasso_are_refused(penalty: Any, algorithm: str) -> None:
    with pytest.raises(ValueError, match=f"does not solve {type(penalty).__name__}"):
        SparseCoding(4, penalty=penalty, algorithm=algorithm).fit(problem()[1])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ring_inhibition(1, 0, 2), "m must be an integer >= 2"),
        (lambda: ring_inhibition(5, 2, 2), "inner and outer must be"),
        (lambda: ring_inhibition(5, -1, 2), "inner and outer must be"),
        (lambda: ring_inhibition(5, 2, 9), "no two units lie between 2 and 9 apart"),
        (lambda: torus_inhibition(0, 3, 0, 2), "height must be an integer >= 1"),
        (lambda: tree_inhibition(0), "depth must be an integer >= 1"),
        (lambda: tree_inhibition(2, 1), "branching must be an integer >= 2"),
        (lambda: learned_inhibition(np.ones((3, 4)), 4.0, 1.0), "alpha must be in"),
        (lambda: learned_inhibition(np.ones((3, 4)), 0.0, 1.0), "alpha must be in"),
        (lambda: learned_inhibition(np.ones((3, 1)), 1.0, 1.0), "2 units or more"),
        (lambda: learned_inhibition(np.full((3, 2), np.nan), 1.0, 1.0), "finite"),
    ],
)
def test_matrices_that_cannot_be_are_refused(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


# ---------------------------------------------------------------- what is learned


def learn(X: np.ndarray, penalty: Any, m: int, epochs: int = 15, **settings: Any) -> SparseCoding:
    trainer = EM(n_epochs=epochs, batch_size=256)
    return SparseCoding(m, penalty=penalty, trainer=trainer, random_state=0, **settings).fit(X)


def arranged(model: SparseCoding, X: np.ndarray, pools: np.ndarray) -> np.ndarray:
    """The atoms of a lasso, those that are on together in the same pools."""
    order = arrangement(pools, np.corrcoef(abs(model.transform(X)).T))
    return model.components_[order]


def subspaces(rows: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Rows in one of 6 random subspaces of 3 of 16 dimensions each, with a little noise."""
    rng = np.random.default_rng(0)
    B = np.stack([np.linalg.qr(rng.standard_normal((16, 3)))[0] for _ in range(6)])
    X = np.einsum("ndk,nk->nd", B[rng.integers(6, size=rows)], rng.standard_normal((rows, 3)))
    return B, X + 0.05 * rng.standard_normal(X.shape)


def same_spans(atoms: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Mean squared cosine between groups of atoms and the subspaces that they match best."""
    spans = np.stack([np.linalg.qr(part.T)[0] for part in atoms.reshape(len(B), 3, -1)])
    cosines = (np.einsum("gdi,bdj->gbij", spans, B) ** 2).sum((2, 3)) / 3
    return cosines[linear_sum_assignment(-cosines)]


def test_groups_learn_subspaces() -> None:
    """From atoms of a lasso, arranged by what is on together, not all of which are right."""
    B, X = subspaces()
    lasso = learn(X, L1(0.15), 18)
    assert same_spans(lasso.components_, B).mean() < 0.7  # its atoms are in no order
    first = arranged(lasso, X, pooling(3, 18))
    model = learn(X, GroupL1(3, 0.3), 18, dictionary=first)
    found = same_spans(model.components_, B)
    assert found.min() > 0.95
    assert found.mean() > same_spans(first, B).mean() + 0.02
    # One group explains a row: most of the squared code is in it.
    squares = (model.transform(X) ** 2).reshape(len(X), 6, 3).sum(2)
    assert squares.max(1).sum() > 0.95 * squares.sum()


def test_pools_learn_a_topography() -> None:
    """Sources of a 5 × 5 torus of which the 9 around one place are on at a time."""
    rng, pools = np.random.default_rng(0), torus_pools(5, 5)
    A = np.linalg.qr(rng.standard_normal((30, 30)))[0][:25]
    S = rng.standard_normal((1500, 25)) * pools[rng.integers(25, size=1500)]
    X = S @ A + 0.05 * rng.standard_normal((1500, 30))

    def contrast(codes: np.ndarray) -> float:
        together = np.corrcoef(abs(codes).T)
        near = pools * (1 - np.eye(25)) > 0
        return float(together[near].mean() - together[pools == 0].mean())

    def purity(model: SparseCoding) -> float:
        return float(abs(model.components_ @ A.T).max(1).mean())

    lasso = learn(X, L1(0.3), 25)
    first = arranged(lasso, X, pools)
    model = learn(X, PooledL1(torus_pools(5, 5, sigma=1.0), 0.15), 25, dictionary=first)
    # Neighbours are on together; those of a lasso are not.
    assert contrast(model.transform(X)) > 0.5 * contrast(S)
    assert abs(contrast(lasso.transform(X))) < 0.25 * contrast(S)
    # And atoms are nearer to the sources that they stand for.
    assert purity(model) > purity(lasso) + 0.02


def test_a_tree_puts_codes_on_its_branches() -> None:
    """Rows are sums over a branch of a planted tree. The share of squared codes off their best
    branch falls as inhibition grows; without it a third of what is on is elsewhere."""
    rng, S = np.random.default_rng(0), tree_inhibition(2)
    branches = [[0, 1, 3], [0, 1, 4], [0, 2, 5], [0, 2, 6]]
    on = np.array([np.isin(np.arange(7), b) for b in branches])
    A = np.linalg.qr(rng.standard_normal((12, 12)))[0][:7]
    H = rng.standard_normal((1200, 7)) * on[rng.integers(4, size=1200)]
    X = H @ A + 0.05 * rng.standard_normal((1200, 12))

    def off(strength: float) -> float:
        h = learn(X, Lateral(S, strength, 0.05), 7).transform(X)
        squares = h**2
        return 1 - float((squares @ on.T).max(1).sum() / squares.sum())

    shares = [off(strength) for strength in (1e-3, 0.1, 1.0)]
    assert shares[0] > 0.1 > 0.05 > shares[1] > shares[2]
    assert shares[2] < 1e-3
