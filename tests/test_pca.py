"""Principal components against eigenvalues, scikit-learn, and probabilistic PCA's density."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA as Reference

import energyscape
from energyscape.backend import Purpose, stream
from energyscape.errors import CapabilityError
from energyscape.evaluation.laws import check_model
from energyscape.models.pca import PCA
from energyscape.trainers import CD, EM, PCD, ClosedForm

DIGITS = load_digits().data  # with constant features


def _rows(n: int = 300, d: int = 12, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.asarray(rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + 5)


def _deficient() -> np.ndarray:
    return _rows(100, 4) @ np.random.default_rng(1).standard_normal((4, 10))


def _projector(components: np.ndarray) -> np.ndarray:
    return np.asarray(components.T @ components)


# ---------------------------------------------------------------- the solution


@pytest.mark.parametrize("q", [1, 3, 11])
@pytest.mark.parametrize("X", [_rows(), _rows(200, 40), _rows() + 1e3], ids=["12", "40", "far"])
def test_mean_energy_is_the_discarded_variance(X: np.ndarray, q: int) -> None:
    model = PCA(q).fit(X)
    away = X - X.mean(axis=0)
    discarded = np.linalg.svd(away, compute_uv=False)[q:] ** 2 / len(X)
    # Eigenvalues come with ε of the largest, which is that of the total here.
    total = (away**2).sum() / len(X)
    assert model.energy(X).mean() == pytest.approx(discarded.sum(), abs=1e-12 * total)
    # The control: any other subspace costs more.
    rng = np.random.default_rng(0)
    W = np.linalg.qr(model.params_["W"] + 1e-2 * rng.standard_normal((X.shape[1], q)))[0]
    other = model.free_energy(model.params_ | {"W": W}, X).mean()
    assert other > discarded.sum() * (1 + 1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("X", "q"),
    [
        (_rows(), 4),
        (_rows(), 12),
        (_rows(8, 30), 5),
        (_rows(8, 30), 8),
        (DIGITS, 10),
        (_deficient(), 4),
        (_rows() + 1e3, 4),
    ],
    ids=["some", "all", "wide", "wide, all", "constant", "deficient", "far"],
)
def test_axes_are_scikit_learns(X: np.ndarray, q: int, dtype: Any) -> None:
    X = X.astype(dtype)
    ours, theirs = PCA(q).fit(X), Reference(q, svd_solver="full").fit(X.astype(np.float64))
    assert ours.components_.dtype == dtype and ours.components_.shape == (q, X.shape[1])
    # ε of the largest eigenvalue by its gap to the others, which is a hundredth at least (the last
    # of the rows that are fewer than features have variance ε and any axis).
    exact = q if q < len(X) else q - 1
    tolerance = {np.float32: 2e-4, np.float64: 1e-10}[dtype]
    np.testing.assert_allclose(
        _projector(ours.components_[:exact]), _projector(theirs.components_[:exact]), atol=tolerance
    )
    eye = np.eye(q)
    np.testing.assert_allclose(ours.components_ @ ours.components_.T, eye, atol=tolerance)
    largest = theirs.explained_variance_[0]
    for name in ("explained_variance_", "explained_variance_ratio_"):
        wanted = getattr(theirs, name)
        np.testing.assert_allclose(getattr(ours, name), wanted, atol=tolerance * wanted[0])
    # The likeliest noise is spread over all other axes (Tipping, Bishop, eq. 8), of which
    # scikit-learn counts only those that fewer rows than features span.
    n, d = X.shape
    rest = theirs.noise_variance_ * max(0, min(n, d) - q)
    assert ours.noise_variance_ * (d - q) == pytest.approx(rest, abs=tolerance * d * largest)
    np.testing.assert_allclose(ours.mean_, theirs.mean_, atol=1e-2 * tolerance * np.abs(X).max())
    np.testing.assert_allclose(
        np.abs(ours.transform(X[:20])[:, :exact]),
        np.abs(theirs.transform(X[:20].astype(np.float64))[:, :exact]),
        atol=10 * tolerance * np.sqrt(largest),
    )


def test_far_off_zero_nothing_is_lost() -> None:
    """Sums about 0 would lose (1e7)² ε, a hundredth of the variances; differences lose nothing."""
    X = np.round(_rows() * 2.0**20) / 2.0**20  # exact after the shift
    near, far = PCA(3).fit(X), PCA(3).fit(X + 2.0**24)
    np.testing.assert_allclose(far.explained_variance_, near.explained_variance_, rtol=1e-11)
    np.testing.assert_allclose(
        _projector(far.components_), _projector(near.components_), atol=1e-10
    )


def _spectrum(n: int, d: int, decay: float) -> np.ndarray:
    """Rows whose standard deviations fall by ``decay`` from axis to axis."""
    rng = np.random.default_rng(3)
    U = np.linalg.qr(rng.standard_normal((n, d)) - 0.0)[0]
    V = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return np.asarray(U * (100 * decay ** np.arange(d)) @ V.T + 3)


@pytest.mark.parametrize("shift", [0, 1e3])
def test_randomized_axes_come_as_near_as_the_spectrum_lets_them(shift: float) -> None:
    """Each pass multiplies the error of the subspace by λ_(q+10) / λ_q (Halko et al., §9.3: random
    starts cost a factor of some √(d q) once)."""
    q, decay, n_passes = 5, 0.9, 5
    X = _spectrum(400, 60, decay) + shift
    exact = PCA(q, algorithm="covariance").fit(X)
    errors = []
    for passes in (1, n_passes):
        model = PCA(q, algorithm="randomized", n_passes=passes, random_state=0).fit(X)
        assert model.n_iter_ == passes
        errors.append(np.abs(_projector(model.components_) - _projector(exact.components_)).max())
        rate = decay ** (2 * 10 * passes)
        assert errors[-1] <= 20 * np.sqrt(60 * q) * rate
        # The energy is stationary at the solution: its error is the square of the axes'.
        gain = model.energy(X).mean() / exact.energy(X).mean() - 1
        assert -1e-12 <= gain <= 20 * 60 * q * rate**2 + 1e-12
    assert errors[0] > 10 * errors[1]
    assert model.noise_variance_ == pytest.approx(exact.noise_variance_, rel=1e-3)
    np.testing.assert_allclose(model.mean_, X.mean(axis=0), rtol=1e-12)


def test_randomized_in_float32_far_off_zero() -> None:
    X = (_spectrum(400, 60, 0.7) + 1e3).astype(np.float32)
    exact = PCA(5, algorithm="covariance").fit(X.astype(np.float64))
    model = PCA(5, algorithm="randomized", random_state=0).fit(X)
    assert model.components_.dtype == np.float32
    # Products of 400 rows in float32, by the gap of the fifth eigenvalue, a hundredth of the first.
    np.testing.assert_allclose(
        _projector(model.components_), _projector(exact.components_), atol=1e-4
    )
    np.testing.assert_allclose(model.explained_variance_, exact.explained_variance_, rtol=1e-4)


def test_auto_is_randomized_for_few_axes_of_many_features() -> None:
    X = _rows(30, 1100)
    assert "range" in PCA(3, random_state=0).fit(X).params_
    for model, rows in ((PCA(), X), (PCA(3), X[:, :1000]), (PCA(3, algorithm="covariance"), X)):
        assert "range" not in model.fit(rows).params_


@pytest.mark.parametrize("X", [_rows(), _rows(6, 20), DIGITS])
def test_whitened_features_have_unit_variance(X: np.ndarray) -> None:
    H = PCA(5, whiten=True).fit_transform(X)
    np.testing.assert_allclose(np.cov(H.T), np.eye(5), atol=1e-10)
    plain = PCA(5).fit(X)
    assert not np.allclose(np.cov(plain.transform(X).T), np.eye(5), atol=1e-2)
    back = PCA(5, whiten=True).fit(X).inverse_transform(H)
    np.testing.assert_allclose(back, plain.reconstruct(X), atol=1e-9)


def test_whitening_leaves_axes_without_variance_alone() -> None:
    X = np.column_stack([_rows(50, 2), np.full((50, 2), 7.0)])
    H = PCA(4, whiten=True).fit_transform(X)
    assert np.isfinite(H).all() and np.abs(H[:, 2:]).max() < 1e-6


# ---------------------------------------------------------------- probabilistic PCA


@pytest.mark.parametrize("q", [1, 4, 11, 12])
def test_scores_are_scikit_learns(q: int) -> None:
    X = _rows()
    ours, theirs = PCA(q).fit(X), Reference(q, svd_solver="full").fit(X)
    np.testing.assert_allclose(ours.score_samples(X), theirs.score_samples(X), rtol=1e-9)
    narrow = PCA(q).fit(X.astype(np.float32))
    # Each of twelve squares comes with ε of its axis by the largest one.
    assert narrow.score(X) == pytest.approx(theirs.score(X), rel=1e-4)
    C = theirs.get_covariance()
    wanted = multivariate_normal(X.mean(axis=0), C).logpdf(X)
    np.testing.assert_allclose(ours.score_samples(X), wanted, rtol=1e-8)


def _z(x: np.ndarray, mean: np.ndarray, C: np.ndarray) -> np.ndarray:
    """|z| of all first and second moments of ``x`` under a Gaussian."""
    n, s = len(x), np.sqrt(np.diag(C))
    away = x - mean
    first = away.mean(axis=0) / s * np.sqrt(n)
    error = np.sqrt((C**2 + np.outer(s, s) ** 2) / n)
    second = (away.T @ away / n - C) / error
    return np.abs(np.concatenate([first, second[np.triu_indices(len(C))]]))


@pytest.mark.parametrize("q", [2, 5])
def test_draws_are_of_probabilistic_pca(q: int) -> None:
    X = _rows(300, 5)
    model = PCA(q, random_state=0).fit(X)
    theirs = Reference(q).fit(X)
    z = _z(model.sample(50_000), theirs.mean_, theirs.get_covariance())
    bound = norm.isf(1e-6 / 2 / len(z))  # false alarm 1e-6 in all
    assert z.max() < bound
    # The control: noise in all directions instead of those left is seen (and a variance of 3 %).
    wrong = theirs.get_covariance() * 1.03
    assert _z(model.sample(50_000), theirs.mean_, wrong).max() > bound


@pytest.mark.parametrize("X", [np.full((20, 3), 7.0), _deficient()], ids=["constant", "deficient"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_degenerate_rows_stay_finite(X: np.ndarray, dtype: Any) -> None:
    for q in (1, None):
        model = PCA(q, random_state=0).fit(X.astype(dtype))
        for values in (
            model.score_samples(X),
            model.sample(5),
            model.transform(X),
            model.energy(X),
        ):
            assert np.isfinite(values).all()


# ---------------------------------------------------------------- verbs and the face


def test_it_obeys_the_laws() -> None:
    for model in (PCA(3), PCA(3, whiten=True), PCA(2, algorithm="randomized")):
        assert "gradient_is_central_difference" in check_model(model, _rows(20, 6))


def test_too_many_axes_are_refused() -> None:
    for X in (_rows(5, 12), _rows(12, 5)):
        with pytest.raises(ValueError, match=r"n_components=6 must be between 1 and min\(n_sam"):
            PCA(6).fit(X)
        assert PCA().fit(X).components_.shape == (5, X.shape[1])
        assert PCA().fit(X).transform(X).shape == (X.shape[0], 5)
    with pytest.raises(ValueError, match=r"n_components must be an integer >= 1, got 0\.5"):
        PCA(0.5).fit(_rows())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"algorithm must be one of auto, covariance, randomized"):
        PCA(2, algorithm="full").fit(_rows())
    with pytest.raises(ValueError, match=r"PCA.n_passes must be an integer >= 1"):
        PCA(2, n_passes=0).fit(_rows())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_in_parts_are_one_fit(dtype: Any) -> None:
    """Even if the first part lies elsewhere than the others."""
    X = _rows().astype(dtype)
    X = X[np.argsort(X[:, 0])]
    whole, parts = PCA(4).fit(X), PCA(4)
    for lo, hi in ((0, 10), (10, 90), (90, 300)):
        parts.partial_fit(X[lo:hi])
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    assert parts.n_iter_ == 3
    for key in ("mean", "variance", "noise", "total"):
        np.testing.assert_allclose(parts.params_[key], whole.params_[key], rtol=10 * tolerance)
    np.testing.assert_allclose(
        _projector(parts.components_), _projector(whole.components_), atol=10 * tolerance
    )
    last = PCA(4).fit(X[90:])
    assert np.abs(_projector(last.components_) - _projector(whole.components_)).max() > 1e-3
    more = PCA(4).fit(X[:90]).partial_fit(X[90:])
    np.testing.assert_allclose(
        more.params_["variance"], whole.params_["variance"], rtol=10 * tolerance
    )
    assert not hasattr(PCA(2, algorithm="randomized"), "partial_fit")
    with pytest.raises(ValueError, match="'auto' is 'randomized' for 1100 features"):
        PCA(2).partial_fit(_rows(5, 1100))


@pytest.mark.parametrize(
    "model", [PCA(), PCA(3, whiten=True), PCA(3, algorithm="randomized"), PCA(3)], ids=repr
)
def test_files_hold_everything(model: PCA, tmp_path: Path) -> None:
    X = _rows(5, 12) if model.n_components is None else _rows()
    model.fit(X).save(tmp_path / "pca.h5")
    again: Any = energyscape.load(tmp_path / "pca.h5")
    assert repr(again) == repr(model)
    for name in ("components_", "explained_variance_", "mean_", "noise_variance_"):
        np.testing.assert_array_equal(getattr(again, name), getattr(model, name))
    np.testing.assert_array_equal(again.transform(X), model.transform(X))
    np.testing.assert_array_equal(again.sample(3), model.sample(3))
    np.testing.assert_array_equal(again.score_samples(X), model.score_samples(X))


def test_chains_have_nowhere_to_go() -> None:
    for trainer in (CD(), PCD()):
        with pytest.raises(CapabilityError, match="cannot train PCA"):
            PCA(2, trainer=trainer).fit(_rows())
    with pytest.raises(CapabilityError, match="EM cannot train PCA: it needs maximize"):
        PCA(2, trainer=EM()).fit(_rows())
    assert isinstance(PCA(2).fit(_rows()).trainer_, ClosedForm)
    model, params = PCA(2), PCA(2).init_params(_rows(), stream(0, Purpose.INIT))
    assert not model.proper and set(params) == set(model.param_shapes(12))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_random_subspace_wider_than_the_rows_allow(dtype: Any) -> None:
    """Axes without variance must not become variance by dividing rounding by its root."""
    X = (5 * np.random.default_rng(0).standard_normal((12, 300))).astype(dtype)
    exact = PCA(6, algorithm="covariance").fit(X).explained_variance_
    model = PCA(6, algorithm="randomized", random_state=0).fit(X)
    np.testing.assert_allclose(model.explained_variance_, exact, rtol=1e-3)
    low = X[:, :3] @ np.random.default_rng(1).standard_normal((3, 60)).astype(dtype)
    model = PCA(5, algorithm="randomized", random_state=0).fit(low)
    assert model.explained_variance_ratio_.sum() <= 1 + 1e-6
    assert model.explained_variance_[3] < 1e-5 * model.explained_variance_[0]


def test_rows_in_parts_are_refused_for_lists_too() -> None:
    wide = np.random.default_rng(0).standard_normal((30, 1001))
    for rows in (wide, wide.tolist()):
        with pytest.raises(ValueError, match="'auto' is 'randomized' for 1001 features"):
            PCA(2).partial_fit(rows)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_whitening_leaves_axes_alone_that_only_rounding_made(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    model = PCA(whiten=True).fit(rng.standard_normal((10, 64)).astype(dtype))
    assert abs(model.transform(rng.standard_normal((5, 64)).astype(dtype))).max() < 10
