"""Sparse coding: its dictionary against least squares and planted truths; what users are told."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import sparse_encode
from sklearn.exceptions import ConvergenceWarning

from energyscape.backend import is_gpu_array, to_host
from energyscape.errors import CapabilityError
from energyscape.models import PCA, SparseCoding
from energyscape.models.dictionary import best_atoms, first_atoms, unit_columns, wasted, worst_rows
from energyscape.penalties import KL, L1, Student
from energyscape.trainers import EM, EnergyLoss


def planted(n=16, m=24, k=2, rows=1500, seed=0):
    """Rows of k atoms of a random dictionary each, with noise 30 dB below."""
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((m, n))
    D /= np.linalg.norm(D, axis=1)[:, None]
    H = np.zeros((rows, m))
    for row in H:
        row[rng.choice(m, k, replace=False)] = rng.standard_normal(k)
    X = H @ D
    return D, X + 10**-1.5 * np.sqrt((X**2).mean()) * rng.standard_normal(X.shape)


def recovered(model, D):
    cosines = np.abs(model.components_ @ D.T)
    return (cosines[linear_sum_assignment(-cosines)] > 0.99).mean()


def _brief():
    return EM(n_epochs=3, batch_size=100)


def sums(seed=0, n=6, m=9, rows=40):
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((n, m))
    D /= np.linalg.norm(D, axis=0)
    H = rng.standard_normal((rows, m)) * (rng.random((rows, m)) < 0.4)
    X = rng.standard_normal((rows, n))
    return D, H, X


# ---------------------------------------------------------------- the dictionary


def test_each_atom_becomes_the_best_one_given_the_others():
    D, H, X = sums()
    A, B = H.T @ H, X.T @ H
    moved = best_atoms(D, A, B)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=0), 1, rtol=1e-14)
    before = ((X - H @ D.T) ** 2).sum()
    assert ((X - H @ moved.T) ** 2).sum() < before
    # The last atom was chosen last: no other unit vector in its place is better.
    best = ((X - H @ moved.T) ** 2).sum()
    rng = np.random.default_rng(1)
    for scale in (1e-3, 0.1, 10):
        other = moved.copy()
        other[:, -1] += scale * rng.standard_normal(len(D))
        other[:, -1] /= np.linalg.norm(other[:, -1])
        assert ((X - H @ other.T) ** 2).sum() >= best
    still = best_atoms(D, A, B, sweeps=2000)
    np.testing.assert_allclose(best_atoms(still, A, B), still, atol=1e-9)


@pytest.mark.parametrize("gpu", [False, True])
def test_blocks_of_atoms_are_the_same_as_one_after_the_other(gpu, fake_cupy):
    D, H, X = sums(n=12, m=40, rows=90)
    H[:, [3, 16, 39]] = 0
    A, B = H.T @ H, X.T @ H
    wanted = D.copy()
    for j in range(40):
        way = B[:, j] - wanted @ A[:, j] + wanted[:, j] * A[j, j]
        if A[j, j] > 0:
            wanted[:, j] = way / np.linalg.norm(way)
    moved = best_atoms(*(fake_cupy.asarray(v) if gpu else v for v in (D, A, B)))
    assert is_gpu_array(moved) == gpu
    np.testing.assert_allclose(to_host(moved) if gpu else moved, wanted, atol=1e-12)


def test_atoms_that_no_code_uses_stay():
    D, H, X = sums()
    H[:, 3] = 0
    moved = best_atoms(D, H.T @ H, X.T @ H)
    np.testing.assert_allclose(moved[:, 3], D[:, 3], rtol=1e-14)


def test_wasted_atoms_are_dead_ones_and_doubles():
    D = sums()[0]
    D = np.concatenate([D, D, D], axis=1)  # 27 atoms, of which 18 are doubles
    usage = np.arange(1.0, 28)
    assert wasted(D[:, :9], usage[:9]).tolist() == []
    assert wasted(D, usage).tolist() == [0]  # the least used; one of 20 at a time
    usage[5] = 1e-9
    assert wasted(D, usage).tolist() == [5]
    D[:, 14] *= -1
    assert wasted(D, usage).tolist() == [5]
    # Codes that are not negative need an atom and its negative.
    both, used = np.concatenate([D[:, :9], -D[:, :9]], axis=1), np.arange(1.0, 19)
    assert wasted(both, used).tolist() == [0] and wasted(both, used, True).tolist() == []
    assert wasted(D[:, [0, 1, 2, 0]], used[:4], True).tolist() == [0]


def test_the_worst_rows_are_those_that_are_explained_least_and_differ():
    rest = np.array([[3.0, 0], [0, 1], [-4, 0.01], [0, 0], [1, 1]])
    found = worst_rows(rest, 3)
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), 1)
    np.testing.assert_allclose(found[:, 0], rest[2] / np.linalg.norm(rest[2]))
    np.testing.assert_allclose(found[:, 1], [np.sqrt(0.5)] * 2)
    assert found.shape == (2, 3) and worst_rows(rest, 9).shape == (2, 3)


def test_the_first_atoms_are_rows_and_random_directions_where_these_do_not_suffice():
    from energyscape.backend import Purpose, stream

    x = np.array([[0.0, 0, 0], [0, 2, 0], [3, 0, 0]])
    D = first_atoms(x, 5, stream(0, Purpose.INIT))
    np.testing.assert_allclose(np.linalg.norm(D, axis=0), 1)
    assert sorted(D[:, :2].T.tolist()) == [[0, 1, 0], [1, 0, 0]]


# ---------------------------------------------------------------- learning


def test_batch_learning_never_raises_its_objective():
    X = planted(rows=200)[1]
    model = SparseCoding(24, sparsity=0.2, tol=1e-13, algorithm="active_set", replace=False)
    model.set_params(trainer=EM(n_epochs=30, tol=0.0), random_state=0)
    with pytest.warns(ConvergenceWarning, match="still gained"):
        model.fit(X)
    energy = -np.array(model.history_["bound"])
    assert len(energy) == 30
    assert (np.diff(energy) <= 1e-12 * energy[:-1]).all()
    assert energy[-1] < 0.8 * energy[0]
    assert model.n_replaced_ == 0


def test_the_history_is_the_lasso_objective_of_scikit_learn():
    X = planted(rows=200)[1]
    model = SparseCoding(24, tol=1e-8, random_state=0, trainer=_brief()).fit(X)
    D, lam = model.components_, model.strength_
    H = sparse_encode(X, D, algorithm="lasso_cd", alpha=lam, max_iter=100_000)
    wanted = 0.5 * ((X - H @ D) ** 2).sum(1) + lam * np.abs(H).sum(1)
    np.testing.assert_allclose(model.energy(X), wanted, rtol=1e-7)
    np.testing.assert_allclose(model.transform(X), H, atol=1e-3)
    np.testing.assert_allclose(model.reconstruct(X), model.transform(X) @ D, atol=1e-12)
    np.testing.assert_allclose(model.inverse_transform(H), H @ D)


@pytest.mark.parametrize(
    "trainer",
    [EM(n_epochs=60, batch_size=100), EM(n_epochs=100), EnergyLoss(n_epochs=30)],
    ids=["online", "batch", "gradient"],
)
def test_a_planted_dictionary_is_found(trainer):
    D, X = planted(20, 20)
    model = SparseCoding(20, trainer=trainer, random_state=0).fit(X)
    assert recovered(model, D) >= 0.9
    start = SparseCoding(20, trainer=EnergyLoss(n_epochs=1, learning_rate=1e-9), random_state=0)
    # The negative control: that is not where it began (a row of one large code is an atom).
    assert recovered(start.fit(X), D) <= 0.3


@pytest.mark.slow
def test_most_of_a_large_planted_dictionary_is_found():
    D, X = planted(64, 128, 3, 5000)
    assert recovered(SparseCoding(128, random_state=0).fit(X), D) >= 0.9


def near(D, seed=5):
    """The dictionary with noise on its atoms: cosines around 0.92."""
    noise = np.random.default_rng(seed).standard_normal(D.shape) / np.sqrt(D.shape[1])
    moved = D + 0.42 * noise
    return moved / np.linalg.norm(moved, axis=1)[:, None]


def test_the_logarithm_is_led_to_it_too():
    """Where codes are long: log(1 + h²) is a square near 0, which is no reason to be sparse."""
    D, X = planted(20, 20)
    assert (near(D) * D).sum(1).max() < 0.98
    model = SparseCoding(20, penalty=Student(3.0), dictionary=near(D), random_state=0, tol=1e-3)
    model.set_params(trainer=EM(n_epochs=30, batch_size=100)).fit(30 * X)
    assert recovered(model, D) >= 0.9


def test_positive_codes_are_led_to_a_positive_mixture():
    rng = np.random.default_rng(3)
    D = planted()[0]
    H = rng.exponential(size=(1500, 24)) * (rng.random((1500, 24)) < 0.08)
    model = SparseCoding(24, positive=True, dictionary=near(D), random_state=0, sparsity=0.05)
    model.set_params(trainer=EM(n_epochs=30, batch_size=100)).fit(H @ D)
    assert model.transform(H @ D).min() >= 0
    # Atom by atom and with its sign: neither is free from there.
    assert ((model.components_ * D).sum(1) > 0.99).mean() >= 0.9


@pytest.mark.parametrize("trainer", [EM(n_epochs=20, batch_size=64), EnergyLoss(n_epochs=20)])
def test_dead_and_double_atoms_are_replaced(trainer):
    D, X = planted()
    start = D.copy()
    start[1] = start[0]  # a double
    X = np.concatenate([X, np.zeros((len(X), 1))], axis=1)
    start = np.concatenate([start, np.zeros((24, 1))], axis=1)
    start[2] = np.eye(17)[16]  # a direction that no row has
    model = SparseCoding(24, dictionary=start, trainer=trainer, random_state=0).fit(X)
    assert model.n_replaced_ >= 1
    cosines = np.abs(model.components_ @ model.components_.T) - np.eye(24)
    assert cosines.max() < 0.99 and np.abs(model.components_[:, 16]).max() < 0.5
    keeps = SparseCoding(24, dictionary=start, trainer=trainer, random_state=0, replace=False).fit(
        X
    )
    assert keeps.n_replaced_ == 0
    np.testing.assert_allclose(np.abs(keeps.components_[2]), np.eye(17)[16])


def test_partial_fit_goes_on_from_sums_of_what_was_seen():
    D, X = planted(20, 20)
    model = SparseCoding(20, random_state=0, trainer=EM(n_epochs=1, batch_size=100))
    for _ in range(60):
        model.partial_fit(X)
    assert recovered(model, D) >= 0.9


def test_sparsity_says_how_many_codes_are_on():
    X = planted()[1]
    on = []
    for sparsity in (0.05, 0.2, 0.6):
        model = SparseCoding(24, sparsity=sparsity, random_state=0, trainer=_brief())
        H = model.fit(X).transform(X)
        most = np.median(np.abs(X @ random_rows(X).T).max(1))
        assert 0.5 < model.strength_ / (sparsity * most) < 2
        on.append((H != 0).mean())
    assert on[0] > on[1] > on[2] > 0
    scaled = SparseCoding(24, random_state=0, trainer=_brief()).fit(1e4 * X)
    plain = SparseCoding(24, random_state=0, trainer=_brief()).fit(X)
    np.testing.assert_allclose(scaled.components_, plain.components_, atol=1e-6)


def random_rows(X):
    """Random rows as a dictionary."""
    rows = X[np.random.default_rng(0).choice(len(X), 24, replace=False)]
    return rows / np.linalg.norm(rows, axis=1)[:, None]


# ---------------------------------------------------------------- what users are told


def test_rows_that_do_not_reach_the_tolerance_are_marked():
    X = planted(rows=100)[1]
    model = SparseCoding(24, random_state=0, max_iter=2, trainer=_brief())
    with pytest.warns(ConvergenceWarning, match=r"of the codes of the last update did not reach"):
        model.fit(X)
    with pytest.warns(ConvergenceWarning, match=r"rows did not reach tol=0.0001 in max_iter=2"):
        model.transform(X)
    gap = model.dual_gap(X)
    assert gap.shape == (100,) and 0 < (gap > 1e-4).mean() <= 1
    model.set_params(max_iter=1000)
    assert model.dual_gap(X).max() <= 1e-4 and model.transform(X).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dictionary": np.eye(6)[:4] * [[1], [1], [0], [1]]}, "1 atom.s. of zeros .first: 2."),
        ({"dictionary": np.eye(5)}, r"dictionary must have shape \(4, 6\)"),
        ({"dictionary": np.full((4, 6), np.nan)}, "contains NaN or infinity"),
        ({"penalty": L1(-1.0)}, "L1.strength must be >= 0, got -1.0"),
        ({"penalty": L1(0.0)}, "λ must be > 0"),
        ({"penalty": KL()}, "must be a penalty of codes"),
        ({"penalty": L1}, "must be a penalty of codes"),
        ({"penalty": L1(1.0), "sparsity": 0.1}, "sparsity sets the λ of L1"),
        ({"sparsity": 0.0}, "sparsity must be > 0"),
        ({"algorithm": "lars"}, "algorithm must be one of 'auto'"),
        ({"penalty": Student(1.0), "algorithm": "cyclic"}, "does not solve Student"),
        ({"tol": 0.0}, "tol must be > 0"),
        ({"max_iter": 0}, "max_iter must be an integer >= 1"),
        ({"n_components": 0}, "n_components must be an integer >= 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    X = np.random.default_rng(0).standard_normal((30, 6))
    with pytest.raises(ValueError, match=message):
        SparseCoding(**{"n_components": 4} | settings).fit(X)


def test_pushing_down_alone_needs_a_bounded_volume():
    with pytest.raises(CapabilityError, match="nothing keeps the energy of PCA from being low"):
        PCA(2, trainer=EnergyLoss()).fit(np.random.default_rng(0).standard_normal((30, 6)))


def test_samples_are_sparse_mixtures():
    X = planted(rows=400)[1]
    model = SparseCoding(24, random_state=0, sparsity=0.3).fit(X)
    samples = model.sample(50, n_steps=20)
    assert samples.shape == (50, 16) and np.isfinite(samples).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("features", [1, 7, 1000])
def test_atoms_of_norm_1_stay_as_they_are(features, dtype, rng):
    D = (100 * rng.standard_normal((features, 300))).astype(dtype)
    D[:, 7] = 0
    once = unit_columns(D)
    norms = np.linalg.norm(np.delete(once, 7, axis=1).astype(np.float64), axis=0)
    np.testing.assert_allclose(norms, 1, rtol=1e-7 if dtype == np.float32 else 1e-14)
    np.testing.assert_array_equal(unit_columns(once), once)
