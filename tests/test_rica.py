"""RICA against its definition, the lemma of its paper, planted sources and subspaces, and ICA.

Nothing here is a statistical assertion, unless it says so: seeds fix the problems, and what is
asserted holds for all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.linalg import block_diag
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks
from test_ica import amari

import energyscape
from energyscape.backend import Purpose, stream
from energyscape.errors import UnnormalizedScoreWarning
from energyscape.models import ICA, RICA
from energyscape.penalties import L1, GroupL1, PooledL1, Student
from energyscape.pools import torus_pools
from energyscape.trainers import EnergyLoss

POOLS = np.array([[1.0, 0.5, 0, 0, 2], [0, 1, 1, 0, 0], [0, 0, 0, 3, 0.1]])
BRIEF = EnergyLoss(n_epochs=1, learning_rate=1e-9)


def rows(n: int = 300, d: int = 6, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.laplace(size=(n, d)) @ rng.standard_normal((d, d)) + 1


def white(X: np.ndarray) -> np.ndarray:
    """Rows with Σxx'/n = I to rounding."""
    values, E = np.linalg.eigh(X.T @ X / len(X))
    return X @ E / np.sqrt(values) @ E.T


def started(model: RICA, X: np.ndarray) -> dict[str, np.ndarray]:
    """Parameters off the tight frame."""
    params = model.init_params(X, stream(0, Purpose.INIT))
    moved = np.random.default_rng(1).standard_normal(params["W"].shape)
    return params | {"W": params["W"] + 0.3 * moved}


# ---------------------------------------------------------------- the energy


@pytest.mark.parametrize("pools", [None, 1, POOLS], ids=["none", "ones", "weighted"])
def test_energies_are_those_of_the_definition(pools: Any) -> None:
    X, model = rows(20), RICA(5, pools=pools, epsilon=0.7)
    params = started(model, X)
    W, lam = params["W"], float(params["lam"])
    P = np.eye(5) if not isinstance(pools, np.ndarray) else pools
    for x, found in zip(X, model.free_energy(params, X), strict=True):
        delta = 0.7 * lam
        squares = [sum(g[j] * (W[j] @ x) ** 2 for j in range(5)) for g in P]
        paid = sum(np.sqrt(delta**2 + square) for square in squares)
        wanted = 0.5 * ((x - W.T @ (W @ x)) ** 2).sum() + lam * (paid - delta * len(P))
        assert found == pytest.approx(wanted, rel=1e-12)
    single = {k: v.astype(np.float32) for k, v in params.items()}
    energies = model.free_energy(single, X.astype(np.float32))
    assert energies.dtype == np.float64
    np.testing.assert_allclose(energies, model.free_energy(params, X), rtol=1e-4)


def test_pools_of_one_are_no_pools() -> None:
    X = rows()
    one, none = (RICA(8, pools=pools, random_state=0).fit(X) for pools in (1, None))
    np.testing.assert_allclose(one.components_, none.components_, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(one.energy(X), none.energy(X), rtol=1e-10)
    np.testing.assert_allclose(none.pooled(X), abs(none.transform(X)), rtol=1e-12)
    np.testing.assert_allclose(one.pooled(X), none.pooled(X), rtol=1e-9, atol=1e-12)


def test_pools_are_the_penalty_of_the_same_pools() -> None:
    X = rows()
    P = torus_pools(2, 4, 2, sigma=1.0)
    model = RICA(8, pools=P, epsilon=0.5, random_state=0).fit(X)
    other = RICA(8, penalty=PooledL1(P, model.strength_, 0.5), random_state=0).fit(X)
    np.testing.assert_allclose(other.components_, model.components_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(other.energy(X), model.energy(X), rtol=1e-10)
    np.testing.assert_allclose(model.pooled(X) ** 2, model.transform(X) ** 2 @ P.T, rtol=1e-10)


def test_the_lemma() -> None:
    """On white rows the mean reconstruction error is ½|W'W - I|², whatever W is; not on others."""
    X = rows(400)
    for m in (3, 6, 11):
        model = RICA(m, penalty=L1(1e-12))  # but for its L1, the energy is the error
        for data, holds in ((white(X), True), (X, False)):
            params = started(model, data)
            W = params["W"]
            wanted = 0.5 * ((W.T @ W - np.eye(6)) ** 2).sum()
            found = model.free_energy(params, data).mean()
            assert (abs(found - wanted) < 1e-8 * wanted) == holds


@pytest.mark.parametrize("m", [3, 6, 9])
def test_sparsity_is_a_share_of_the_power(m: int) -> None:
    """λ is what makes codes of the first W pay that much of the mean |x|², tips left sharp."""
    X = rows()
    for pools in (None, 3):
        model = RICA(m, pools=pools, sparsity=0.2)
        params = model.init_params(X, stream(0, Purpose.INIT))
        W = params["W"]
        np.testing.assert_allclose((W**2).sum(axis=1), min(1, 6 / m), rtol=1e-12)
        lengths = np.sqrt(((X @ W.T) ** 2).reshape(len(X), -1, pools or 1).sum(axis=2))
        paid = float(params["lam"]) * lengths.sum(axis=1).mean()
        assert paid == pytest.approx(0.2 * (X**2).sum(axis=1).mean(), rel=1e-12)


class Free(RICA):
    """Rows of W of any norm: the energy as the paper prints it."""

    def feasible(self, params: Any) -> Any:
        return params


def test_norms_that_are_free_leave_most_units_unused() -> None:
    """Why they are fixed: with twice as many units as features, half come to nothing."""
    X = white(rows(1000))
    kept, free = (cls(12, random_state=0).fit(X).components_ for cls in (RICA, Free))
    np.testing.assert_allclose((kept**2).sum(axis=1), 0.5, rtol=1e-12)
    assert ((free**2).sum(axis=1) < 1e-3).sum() >= 4


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 0.3, 1.0, 3.0, 1e2])
def test_no_w_makes_the_energy_low_far_away(scale: float) -> None:
    """What `limited` promises. Split x along eigenvectors of W'W with a < ½ and the rest. The
    first part is left by at least half of itself, the second is coded by at least half its square;
    √ is concave, so that Σ_j (√(δ² + h_j²) - δ) >= √(δ² + |h|²) - δ. One part has half of |x|²."""
    rng = np.random.default_rng(0)
    model = RICA(9, epsilon=0.5)
    params = model.init_params(rows(), stream(0, Purpose.INIT))
    lam, delta = float(params["lam"]), 0.5 * float(params["lam"])
    for _ in range(50):
        W = scale * rng.standard_normal((9, 6)) * rng.exponential(size=6)
        x = rng.standard_normal((40, 6)) * 10.0 ** rng.uniform(-3, 4, (40, 1))
        square = (x**2).sum(axis=1)
        least = np.minimum(square / 16, lam * (np.sqrt(delta**2 + square / 4) - delta))
        assert (model.free_energy(params | {"W": W}, x) >= least * (1 - 1e-9)).all()


# ---------------------------------------------------------------- what is learned


def planted(d: int = 5, n: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """White mixtures of independent Laplacian sources, and the mixing matrix."""
    rng = np.random.default_rng(0)
    S = white(rng.laplace(size=(n, d)))
    A = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return S @ A.T, A


class WithoutSparsity(RICA):
    """Wrong: nothing is paid for codes, so that every orthogonal W is as good."""

    def paid_grad(self, params: Any, h: Any) -> Any:
        return 0 * h


def test_independent_sources_are_found() -> None:
    """As ICA finds them. Statistical, at one seed: the standard error of an angle of FastICA-like
    estimates of Laplacian sources is about 1/√n = 0.018 (Hyvärinen, Karhunen, Oja, 2001, ch. 14),
    Amari's distance about as much; 0.1 is more than five of them, less than 1e-6."""
    X, A = planted()
    model = RICA(random_state=0).fit(X)
    ica = ICA(random_state=0).fit(X)
    assert amari(model.components_, A) < 0.1
    # The same rows move both estimates alike: they are nearer to each other than to the truth.
    assert amari(model.components_, np.linalg.inv(ica.components_)) < 0.1
    start, wrong = (cls(random_state=0, **s).fit(X).components_ for cls, s in _CONTROLS)
    assert amari(start, A) > 0.3 and amari(wrong, A) > 0.3
    # Both are tight frames, but for what sparsity takes.
    np.testing.assert_allclose(wrong.T @ wrong, np.eye(5), atol=1e-6)
    np.testing.assert_allclose(model.components_.T @ model.components_, np.eye(5), atol=0.02)


_CONTROLS: list[tuple[type[RICA], dict[str, Any]]] = [
    (RICA, {"trainer": BRIEF}),
    (WithoutSparsity, {"trainer": EnergyLoss(n_epochs=10)}),
]


def test_training_comes_to_a_minimum() -> None:
    """Where 3,000 updates end, scipy's L-BFGS on all rows gains less than 2 % of what was gained in
    all; and from the start, run to the end, it comes less than 10 % further."""
    X = white(rows(1000))
    trainer = RICA().default_trainer().set_params(n_epochs=300)
    model = RICA(10, random_state=0, trainer=trainer).fit(X)
    start = RICA(10, random_state=0, trainer=BRIEF).fit(X)
    params = model.params_

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        V = w.reshape(10, 6)
        norms = np.linalg.norm(V, axis=1)[:, None]
        U = V / norms
        passed = model.forward(params | {"W": np.sqrt(0.6) * U}, X)
        along = np.sqrt(0.6) * passed.grad(np.full(1000, 1e-3))["W"]
        along -= (along * U).sum(axis=1)[:, None] * U
        return passed.energy().mean(), (along / norms).ravel()

    def least(begin: RICA) -> float:
        settings = {"maxiter": 500, "gtol": 1e-7}
        w = begin.components_.ravel()
        return float(minimize(loss, w, jac=True, method="L-BFGS-B", options=settings).fun)

    first, last = start.energy(X).mean(), model.energy(X).mean()
    near, best = least(model), least(start)
    assert near <= last < near + 0.02 * (first - near)
    assert last < first - 0.9 * (first - best)


def test_overcomplete_features_are_found() -> None:
    """Rows of one of 8 directions in 4 dimensions, with some noise: more than ICA has room for."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((8, 4))
    A /= np.linalg.norm(A, axis=1)[:, None]
    H = rng.laplace(size=(3000, 8)) * np.eye(8)[rng.integers(8, size=3000)]
    X = H @ A + 0.02 * rng.standard_normal((3000, 4))

    def match(W: np.ndarray) -> np.ndarray:
        return abs(W / np.linalg.norm(W, axis=1)[:, None] @ A.T).max(axis=0)

    model = RICA(8, random_state=0).fit(X)
    start = RICA(8, random_state=0, trainer=BRIEF).fit(X)
    assert match(model.components_).mean() > match(start.components_).mean() + 0.1


def test_pools_find_subspaces() -> None:
    """Planted subspaces, of which the sizes are independent and the directions uniform: pools of
    the same size find them, units alone do not."""
    rng = np.random.default_rng(0)
    on = rng.exponential(size=(3000, 3, 1)) * (rng.random((3000, 3, 1)) < 0.3)
    S = white((on * rng.standard_normal((3000, 3, 2))).reshape(3000, 6))
    A = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    X, blocks = S @ A.T, block_diag(*np.ones((3, 2, 2)))

    def apart(model: RICA) -> float:
        """Share of squared |WA| that a pool has in the subspace that it has most of."""
        squares = (model.fit(X).components_ @ A) ** 2 @ blocks[:, ::2]
        pools = squares.reshape(3, 2, 3).sum(axis=1)
        return float(pools.max(axis=1).sum() / pools.sum())

    assert apart(RICA(pools=2, random_state=0)) > 0.95
    assert apart(RICA(pools=2, random_state=0, trainer=BRIEF)) < 0.8


def test_scales_do_not_matter() -> None:
    X = rows()
    plain = RICA(9, random_state=0).fit(X)
    for scale in (2.0**-40, 2.0**40):
        scaled = RICA(9, random_state=0).fit(scale * X)
        np.testing.assert_allclose(scaled.components_, plain.components_, rtol=1e-9, atol=1e-9)
        assert scaled.strength_ == pytest.approx(scale * plain.strength_, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_far_out_do_not_blow_it_up(dtype: Any) -> None:
    """Cauchy's tails, of which the largest row of a batch may ask for 10⁸ times what others do."""
    X = np.random.default_rng(0).standard_cauchy((1000, 10)).astype(dtype)
    model = RICA(14, random_state=0).fit(X)
    assert model.components_.dtype == dtype and np.isfinite(model.components_).all()
    assert ((model.reconstruct(X) - X) ** 2).sum() < 0.1 * (X**2).sum(dtype=np.float64)


@pytest.mark.parametrize("X", [np.zeros((9, 3)), np.ones((9, 3)), np.eye(3)[:1]])
def test_rows_that_say_little_are_taken(X: np.ndarray) -> None:
    model = RICA(4, random_state=0).fit(X)
    assert np.isfinite(model.components_).all() and model.strength_ > 0


# ---------------------------------------------------------------- the face


def test_codes_are_linear_and_lead_back(tmp_path: Any) -> None:
    X = rows()
    model = RICA(8, pools=torus_pools(2, 4, 2), random_state=0).fit(X)
    W = model.components_
    np.testing.assert_allclose(model.transform(X), X @ W.T)
    np.testing.assert_allclose(model.inverse_transform(X @ W.T), X @ W.T @ W)
    np.testing.assert_allclose(model.reconstruct(X), X @ W.T @ W)
    assert model.get_feature_names_out()[-1] == "rica7"
    model.save(tmp_path / "m.h5")
    again = energyscape.load(tmp_path / "m.h5")
    np.testing.assert_array_equal(again.pooled(X), model.pooled(X))
    with pytest.warns(UnnormalizedScoreWarning):
        np.testing.assert_array_equal(again.score_samples(X), -model.energy(X))
    assert clone(model).get_params()["pools"].shape == (8, 8)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n_components": 0}, "n_components must be an integer >= 1"),
        ({"sparsity": 0.0}, "RICA.sparsity must be > 0, got 0.0"),
        ({"epsilon": np.inf}, "RICA.epsilon must be > 0"),
        ({"pools": 3}, "pools of 3 do not divide 4 components"),
        ({"pools": np.eye(3)}, "pools have shape"),
        ({"pools": 2, "penalty": L1(1.0)}, "got both pools and a penalty"),
        ({"sparsity": 0.1, "penalty": L1(1.0)}, "got both sparsity and a penalty"),
        ({"penalty": L1(0.0)}, "λ must be > 0"),
        ({"penalty": "l1"}, "RICA.penalty must be a penalty of codes with a gradient"),
        ({"penalty": Student}, "RICA.penalty must be a penalty of codes with a gradient"),
        ({"penalty": GroupL1(2)}, "PooledL1.* got GroupL1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RICA(**{"n_components": 4} | settings).fit(rows(20))


@pytest.mark.filterwarnings("ignore::energyscape.errors.UnnormalizedScoreWarning")
@parametrize_with_checks(
    [
        RICA(trainer=EnergyLoss(n_epochs=2)),
        RICA(6, pools=1, trainer=EnergyLoss(n_epochs=2)),
        RICA(3, penalty=Student(), trainer=EnergyLoss(n_epochs=1)),
    ]
)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)
