"""Codes of the lasso against optimality itself, closed forms and other people's solvers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.decomposition import sparse_encode

from energyscape.kernels import soft_threshold
from energyscape.penalties import L1, Student
from energyscape.solvers.active_set import support_step
from energyscape.solvers.duality import duality_gap, kkt_violation, norm_gap
from energyscape.solvers.encode import ALGORITHMS, sparse_codes
from energyscape.solvers.proximal import fista, ista
from energyscape.solvers.quadratic import Gram, Rows, largest_eigenvalue

EXACT = sorted(set(ALGORITHMS) - {"ista"})
N, M, ROWS, LAM = 12, 20, 30, 0.4


def problem(seed=0, norms=False):
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((N, M))
    D /= np.linalg.norm(D, axis=0)
    if norms:
        D *= rng.uniform(0.3, 2, M)
    return D, rng.standard_normal((ROWS, N)) * rng.uniform(0.2, 3, (ROWS, 1))


def objective(D, x, h, lam, alpha=0.0, f=0.0):
    return (
        0.5 * ((x - h @ D.T) ** 2).sum(1)
        + lam * np.abs(h).sum(1)
        + 0.5 * alpha * ((h - f) ** 2).sum(1)
    )


def gap_by_definition(D, x, h, lam):
    """The primal less the dual objective at the scaled residual, as the textbook has them."""
    r = x - h @ D.T
    s = np.maximum(1, np.abs(r @ D).max(1) / lam)[:, None]
    return objective(D, x, h, lam) - (0.5 * (x**2).sum(1) - 0.5 * ((x - r / s) ** 2).sum(1))


# ---------------------------------------------------------------- what is measured


def test_the_gap_is_that_of_the_definition():
    D, x = problem()
    rng = np.random.default_rng(1)
    h = rng.standard_normal((ROWS, M)) * (rng.random((ROWS, M)) < 0.3)
    r = x - h @ D.T
    gap = duality_gap(h, r @ D, (r**2).sum(1), LAM)
    np.testing.assert_allclose(gap, gap_by_definition(D, x, h, LAM), rtol=1e-12)
    np.testing.assert_allclose(norm_gap(L1(LAM), h, r @ D, (r**2).sum(1)), gap, rtol=1e-12)
    best = sparse_codes(D, x, L1(LAM), tol=1e-13).h
    assert (gap >= objective(D, x, h, LAM) - objective(D, x, best, LAM)).all()
    assert (gap > 0).all()


def test_the_gap_of_positive_codes_bounds_how_far_they_are_from_the_best():
    D, x = problem()
    h = np.abs(np.random.default_rng(1).standard_normal((ROWS, M)))
    r = x - h @ D.T
    gap = duality_gap(h, r @ D, (r**2).sum(1), LAM, positive=True)
    best = sparse_codes(D, x, L1(LAM), tol=1e-13, positive=True).h
    assert (gap >= objective(D, x, h, LAM) - objective(D, x, best, LAM)).all()
    np.testing.assert_allclose(norm_gap(L1(LAM), h, r @ D, (r**2).sum(1), True), gap, rtol=1e-12)


def test_the_gap_does_not_cancel_in_float32():
    """At the optimum the difference of the two objectives is rounding; this form is not."""
    D, x = problem()
    h = sparse_codes(D, x, L1(LAM), tol=1e-14).h
    D, x, h = (a.astype(np.float32) for a in (D, x, h))
    gram = Gram.of(D)
    q, rest = Rows.of(gram, x).residual(gram, h)
    relative = duality_gap(h, q, rest, LAM) / (0.5 * (x**2).sum(1))
    # Both terms see the rounding of q alone, ε √m |h|₁ |x| at most.
    assert relative.max() < 2e-6


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("predicted", [False, True])
def test_residuals_by_the_dictionary_are_those_of_the_gram_matrix(alpha, predicted):
    D, x = problem()
    rng = np.random.default_rng(1)
    h, f = rng.standard_normal((2, ROWS, M))
    gram = Gram.of(D, alpha)
    f = f if predicted else None
    some = np.array([7, 2, 11])
    for part in (slice(None), some):
        one, other = Rows.of(gram, x, f)[part], Rows.of(gram, x, f, direct=True)[part]
        np.testing.assert_array_equal(one.c, other.c)
        for a, b in zip(one.residual(gram, h[part]), other.residual(gram, h[part]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_the_bound_of_the_largest_eigenvalue():
    for seed, dtype in ((0, np.float64), (1, np.float32)):
        A = np.random.default_rng(seed).standard_normal((30, 50)).astype(dtype)
        G = A.T @ A
        true = np.linalg.eigvalsh(G.astype(float))[-1]
        assert true <= largest_eigenvalue(G) <= 1.06 * true
        for scale in (1e-30, 1e-12, 1e20, 1e34):
            bound = largest_eigenvalue(dtype(scale) * G) / scale
            assert true * (1 - 1e-6) <= bound <= 1.06 * true
    assert largest_eigenvalue(np.zeros((3, 3))) == 0.0
    assert 3.0 <= largest_eigenvalue(np.diag([3.0] * 20)) <= 3.0 * 20 ** (1 / 64) + 1e-9


def test_the_soft_threshold_takes_numbers():
    assert soft_threshold(np.float32(2), 0.5) == 1.5
    assert soft_threshold(np.array(-2.0), 0.5) == -1.5


@pytest.mark.parametrize("positive", [False, True])
def test_the_soft_threshold_is_the_proximal_step(positive):
    v = np.linspace(-2, 2, 41)
    grid = np.linspace(0 if positive else -2, 2, 40001)
    cost = 0.5 * (grid - v[:, None]) ** 2 + 0.7 * np.abs(grid)
    np.testing.assert_allclose(soft_threshold(v, 0.7, positive), grid[cost.argmin(1)], atol=1e-4)


# ---------------------------------------------------------------- solvers


@pytest.mark.parametrize("norms", [False, True], ids=["unit", "any norm"])
@pytest.mark.parametrize("positive", [False, True], ids=["real", "positive"])
@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_solvers_reach_the_optimum(algorithm, positive, norms):
    D, x = problem(norms=norms)
    settings = {"algorithm": algorithm, "positive": positive, "max_iter": 20_000}
    found = sparse_codes(D, x, L1(LAM), tol=1e-9, **settings)
    assert found.gap.max() <= 1e-9
    assert found.h.min() >= 0 or not positive
    q = (x - found.h @ D.T) @ D
    # gap >= (violation)²/2G_jj where a coordinate is off, so violations are about √gap.
    assert kkt_violation(found.h, q, LAM, positive).max() < 1e-3
    best = sparse_codes(D, x, L1(LAM), tol=1e-14, positive=positive).h
    energy, least = objective(D, x, found.h, LAM), objective(D, x, best, LAM)
    np.testing.assert_allclose(energy, least, rtol=1e-8)
    single = sparse_codes(D.astype(np.float32), x.astype(np.float32), L1(LAM), tol=1e-4, **settings)
    assert single.h.dtype == np.float32 and single.gap.max() <= 1e-4
    assert (objective(D, x, single.h.astype(float), LAM) <= least + 1.01e-4 * (x**2).sum(1)).all()


@pytest.mark.parametrize("algorithm", EXACT)
def test_codes_agree_with_scikit_learn_and_skglm(algorithm):
    skglm = pytest.importorskip("skglm")
    D, x = problem()
    h = sparse_codes(D, x, L1(LAM), tol=1e-12, algorithm=algorithm, max_iter=20_000).h
    ours = objective(D, x, h, LAM)
    theirs = sparse_encode(x, D.T, algorithm="lasso_cd", alpha=LAM, max_iter=100_000)
    np.testing.assert_allclose(ours, objective(D, x, theirs, LAM), rtol=1e-8)
    for i in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = skglm.Lasso(LAM / N, fit_intercept=False, tol=1e-12).fit(D, x[i])
        other = objective(D, x[i : i + 1], model.coef_[None], LAM)
        np.testing.assert_allclose(ours[i : i + 1], other, rtol=1e-8)


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_codes_are_zero_from_lam_max_on(algorithm):
    D, x = problem()
    x /= np.abs(x @ D).max(1)[:, None]  # λ_max is 1
    assert not sparse_codes(D, x, L1(1.0), algorithm=algorithm).h.any()
    assert sparse_codes(D, x, L1(0.98), algorithm=algorithm).h.any(axis=1).all()


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_an_orthonormal_dictionary_has_a_closed_form(algorithm):
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((N, N)))[0]
    x = problem()[1]
    h = sparse_codes(Q, x, L1(LAM), algorithm=algorithm, tol=1e-14).h
    np.testing.assert_allclose(h, soft_threshold(x @ Q, LAM), atol=1e-6)


@pytest.mark.parametrize("algorithm", EXACT)
@pytest.mark.parametrize("alpha", [0.3, 1.0, 1e4])
def test_the_prediction_term_is_a_lasso_with_more_rows(algorithm, alpha):
    D, x = problem()
    f = np.random.default_rng(3).standard_normal((ROWS, M))
    settings = {"algorithm": algorithm, "max_iter": 20_000}
    found = sparse_codes(D, x, L1(LAM), alpha=alpha, prediction=f, tol=1e-12, **settings)
    wide = np.vstack([D, np.sqrt(alpha) * np.eye(M)])
    rows = np.hstack([x, np.sqrt(alpha) * f])
    other = sparse_encode(rows, wide.T, algorithm="lasso_cd", alpha=LAM, max_iter=100_000)
    wanted = objective(D, x, other, LAM, alpha, f)
    np.testing.assert_allclose(objective(D, x, found.h, LAM, alpha, f), wanted, rtol=1e-8)
    assert found.gap.max() <= 1e-12
    # Optimality: α(h - f) = D'(x - Dh) - λ times a subgradient.
    most = (np.abs((x - found.h @ D.T) @ D).max() + LAM) / alpha
    np.testing.assert_allclose(found.h, f, atol=most)


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_a_batch_is_its_rows_and_a_warm_start_is_where_it_begins(algorithm):
    D, x = problem()
    settings = {"algorithm": algorithm, "tol": 1e-10, "max_iter": 20_000}
    found = sparse_codes(D, x, L1(LAM), **settings)
    for i in range(3):
        one = sparse_codes(D, x[i : i + 1], L1(LAM), **settings)
        np.testing.assert_allclose(one.h[0], found.h[i], atol=1e-9)
    again = sparse_codes(D, x, L1(LAM), start=found.h, **settings)
    assert not again.n_iter.any()
    np.testing.assert_array_equal(again.h, found.h)
    none = sparse_codes(D, x, L1(LAM), algorithm=algorithm, max_iter=0)
    assert not none.h.any() and none.gap.min() > 1e-4  # said, not hidden
    assert sparse_codes(D, x[:0], L1(LAM), algorithm=algorithm).h.shape == (0, M)


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_scale_and_order_of_atoms_do_not_matter(algorithm):
    D, x = problem()
    settings = {"algorithm": algorithm, "tol": 1e-12, "max_iter": 50_000}
    h = sparse_codes(D, x, L1(LAM), **settings).h
    np.testing.assert_allclose(sparse_codes(D, 7 * x, L1(7 * LAM), **settings).h, 7 * h, atol=1e-5)
    order = np.random.default_rng(2).permutation(M)
    signs = np.where(np.arange(M) % 2, 1.0, -1.0)
    turned = sparse_codes((D * signs)[:, order], x, L1(LAM), **settings).h
    np.testing.assert_allclose(turned, (h * signs)[:, order], atol=1e-5)


def test_ista_never_goes_up_and_fista_is_within_its_bound():
    D, x = problem()
    gram = Gram.of(D)
    rows = Rows.of(gram, x)
    best = sparse_codes(D, x, L1(LAM), tol=1e-14).h
    least = objective(D, x, best, LAM)
    before = np.full(ROWS, np.inf)
    for k in (0, 1, 2, 5, 10, 25, 60):
        h = ista(gram, rows, L1(LAM), tol=0.0, max_iter=k).h
        energy = objective(D, x, h, LAM)
        assert (energy <= before + 1e-12).all()
        before = energy
        if k:
            size = gram.bound * (best**2).sum(1)
            assert (energy - least <= size / (2 * k) + 1e-12).all()
            fast = objective(D, x, fista(gram, rows, L1(LAM), tol=0.0, max_iter=k).h, LAM)
            assert (fast - least <= 2 * size / (k + 1) ** 2 + 1e-12).all()


@pytest.mark.parametrize("positive", [False, True], ids=["real", "positive"])
def test_fista_is_the_textbook_s_with_a_restart_for_each_row(positive):
    D, x = problem()
    gram, start = Gram.of(D, 0.3), np.random.default_rng(3).random((ROWS, M))
    rows, lam = Rows.of(gram, x), 0.05
    h = y = start
    t, restarts = np.ones(ROWS), 0
    for _ in range(37):
        z = soft_threshold(y + (rows.c - y @ gram.G) / gram.bound, lam / gram.bound, positive)
        uphill = ((y - z) * (z - h)).sum(axis=1) > 0
        t = np.where(uphill, 1, t)
        t_next = 0.5 * (1 + np.sqrt(1 + 4 * t * t))
        y = z + ((t - 1) / t_next)[:, None] * (z - h)
        h, t, restarts = z, t_next, restarts + uphill.sum()
    assert restarts > ROWS
    # No row has a gap below 0: all make as many steps, over checks at 10, 20 and 30.
    found = fista(gram, rows, L1(lam), start=start, positive=positive, tol=-1.0, max_iter=37)
    np.testing.assert_allclose(found.h, h, atol=1e-10)
    assert (found.n_iter == 37).all()


def test_a_zero_row_and_a_zero_atom_have_zero_codes():
    D, x = problem()
    D[:, 4], x[2] = 0, 0
    for algorithm in ALGORITHMS:
        found = sparse_codes(D, x, L1(LAM), algorithm=algorithm, tol=1e-8, max_iter=20_000)
        assert not found.h[:, 4].any() and not found.h[2].any() and found.gap.max() <= 1e-8


@pytest.mark.parametrize("positive", [False, True], ids=["real", "positive"])
def test_a_step_on_the_support_is_the_best_along_its_way(positive):
    D, x = problem()
    gram = Gram.of(D)
    rows = Rows.of(gram, x)
    h = fista(gram, rows, L1(LAM), max_iter=4, tol=0.0, positive=positive).h
    crossed = 0
    for _ in range(40):
        new = support_step(gram, rows, LAM, h, positive)
        # Positive codes cannot go on where one of them has become 0.
        along = np.linspace(0, 1.0 if positive else 1.5, 61)[:, None, None] * (new - h) + h
        assert new.min() >= 0 or not positive
        least = np.stack([objective(D, x, step, LAM) for step in along]).min(0)
        assert (objective(D, x, new, LAM) <= least + 1e-12).all()
        crossed += int(((new != 0) != (h != 0)).sum() + (new * h < 0).sum())
        h = new
    assert crossed > 10  # signs changed on the way, so that there were kinks to be found
    q = rows.residual(gram, h)[0]
    # The ridge of 10 ε L is all that is left, on the support.
    on = h != 0
    assert np.abs(q - LAM * np.sign(h))[on].max() < 1e-11
    assert not support_step(gram, rows, LAM, 0 * h).any()


def test_a_badly_conditioned_dictionary_is_solved_on_its_supports():
    rng = np.random.default_rng(5)
    D = rng.standard_normal((40, 30)) + 6 * rng.standard_normal((40, 1))
    D /= np.linalg.norm(D, axis=0)
    x = rng.standard_normal((50, 40)) + D @ rng.standard_normal(30)
    found = sparse_codes(D, x, L1(0.01), tol=1e-10)
    assert found.gap.max() <= 1e-10
    crawls = sparse_codes(D, x, L1(0.01), tol=1e-10, algorithm="fista")
    assert (crawls.gap > 1e-10).any()  # the negative control: it is badly conditioned


def test_float32_rows_are_finished_in_float64():
    D, x = problem()
    found = sparse_codes(D.astype(np.float32), x.astype(np.float32), L1(LAM), tol=1e-6)
    assert found.h.dtype == np.float32 and found.gap.max() <= 1e-6
    D32, x32 = D.astype(np.float32).astype(float), x.astype(np.float32).astype(float)
    gap = gap_by_definition(D32, x32, found.h.astype(float), LAM) / (0.5 * (x32**2).sum(1))
    np.testing.assert_allclose(found.gap, gap, atol=1e-12)


# ---------------------------------------------------------------- Olshausen and Field's penalty


def test_codes_of_the_logarithm_are_stationary_and_never_go_up():
    D, x = problem()
    penalty = Student(0.5)
    found = sparse_codes(D, x, penalty, tol=1e-10, max_iter=50_000)
    h, q = found.h, (x - found.h @ D.T) @ D
    np.testing.assert_allclose(q, 0.5 * 2 * h / (1 + h**2), atol=1e-7)
    before = np.full(ROWS, np.inf)
    for k in (0, 1, 3, 10, 40):
        h = sparse_codes(D, x, penalty, tol=0.0, max_iter=k).h
        energy = 0.5 * ((x - h @ D.T) ** 2).sum(1) + penalty.code_value(h)
        assert (energy <= before + 1e-12).all()
        before = energy
