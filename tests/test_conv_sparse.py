"""Convolutional sparse coding: its M step against direct sums and planted truths, what it is in
limits that are known, images of any size, and what users are told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from sklearn.exceptions import ConvergenceWarning

from energyscape.backend import Purpose, stream
from energyscape.convolution import convolve
from energyscape.models import ConvSparseCoding, SparseCoding, conv_sparse
from energyscape.models.conv_filters import (
    best_filters,
    correlated,
    correlations,
    first_filters,
    unit_filters,
    wasted_filters,
    worst_windows,
)
from energyscape.models.dictionary import best_atoms
from energyscape.penalties import L1, Student
from energyscape.samplers import HMC
from energyscape.solvers.conv_dictionary import ConvDictionary
from energyscape.trainers import EM, EnergyLoss

PROBLEMS = [("full", False), ("full", True), ("valid", False), ("circular", False)]
each_problem = pytest.mark.parametrize(("boundary", "mask"), PROBLEMS)


def filters(k: int = 3, fh: int = 3, fw: int = 2, c: int = 1, seed: int = 0) -> np.ndarray:
    return unit_filters(np.random.default_rng(seed).standard_normal((k, fh, fw, c)))


def sparse_maps(shape: tuple[int, ...], share: float = 0.2, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape) * (rng.random(shape) < share)


def planted(n: int = 30, side: int = 16, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Images of a few filters at 2 % of the places, with noise 30 dB below."""
    y, x = np.mgrid[-2:3, -2:3]
    D = np.random.default_rng(0).standard_normal((k, 5, 5)) * np.exp(-(x * x + y * y) / 4)
    dictionary = ConvDictionary(unit_filters(D[..., None]), (side, side))
    x = dictionary.synthesize(sparse_maps((n, *dictionary.maps_shape), 0.02))
    noise = np.random.default_rng(2).standard_normal(x.shape)
    return dictionary.filters, x + 10**-1.5 * x.std() * noise


def recovered(model: Any, D: np.ndarray) -> np.ndarray:
    """Cosines of planted filters with the learned ones that they are, wherever these lie."""
    alike = np.abs(convolve(model.params_["D"], D, "full")).max(axis=(1, 2))
    return alike[linear_sum_assignment(-alike)]


# ---------------------------------------------------------------- sums over images


@pytest.mark.parametrize("wraps", [False, True])
def test_correlations_are_those_that_are_written_out(wraps: bool) -> None:
    """Also of maps narrower than the shifts."""
    for h, w in ((6, 5), (2, 3)):
        z = np.random.default_rng(0).standard_normal((3, h, w, 2))
        found = correlations(z, (3, 2), wraps)
        assert found.shape == (2, 5, 3, 2) and found.dtype == np.float64
        for k, a, b, q in np.ndindex(found.shape):
            if wraps:
                other = np.roll(z[..., q], (2 - a, 1 - b), axis=(1, 2))
            else:
                wide = np.pad(z[..., q], ((0, 0), (2, 2), (1, 1)))
                other = wide[:, a : a + h, b : b + w]
            # A dozen sums of 90 products of numbers of order 1.
            assert abs(found[k, a, b, q] - (z[..., k] * other).sum()) < 1e-11


@each_problem
def test_slopes_are_the_gradient_in_the_filters(boundary: str, mask: bool) -> None:
    """⟨D z, x⟩ is linear in the filters: its gradient is what each of their numbers gives."""
    dictionary = ConvDictionary(filters(c=2), (5, 6), boundary, mask)
    z = sparse_maps((2, *dictionary.maps_shape))
    x = np.random.default_rng(3).standard_normal((2, 5, 6, 2))
    wanted = np.empty((3, 3, 2, 2))
    for at in np.ndindex(wanted.shape):
        moved = dictionary.filters.copy()
        moved[at] += 1
        image = ConvDictionary(moved, (5, 6), boundary).synthesize(z) - dictionary.synthesize(z)
        wanted[at] = (image * x).sum()
    np.testing.assert_allclose(dictionary.slopes(x, z), wanted, atol=1e-12)


def surrogate(stats: dict[str, Any], D: np.ndarray) -> float:
    return float((0.5 * D * correlated(stats["A"], D) - D * stats["B"]).sum())


@each_problem
def test_sums_are_the_objective_of_all_filters_or_lie_above_it(boundary: str, mask: bool) -> None:
    settings: dict[str, Any] = {"filter_size": (3, 2), "boundary": boundary, "mask": mask}
    model = ConvSparseCoding(3, penalty=L1(0.3), tol=1e-6, **settings)
    x = np.random.default_rng(3).standard_normal((4, 7, 6, 2))
    params = model.init_params(x, stream(0, Purpose.INIT))
    z, stats = model.infer(params, x).h, model.statistics(params, x)
    other = filters(c=2, seed=7)

    def objective(D: np.ndarray) -> float:
        return float(model.joint_energy(params | {"D": D}, x, z).sum())

    def slope(D: np.ndarray) -> np.ndarray:
        return model.joint_grad(params | {"D": D}, x, z, np.ones(4))["D"]

    level = objective(params["D"]) - surrogate(stats, params["D"])
    assert stats["rows"] == 4 and stats["places"] == z[..., 0].size
    np.testing.assert_allclose(stats["energy"], objective(params["D"]), rtol=1e-12)
    found = correlated(stats["A"], params["D"]) - stats["B"]
    np.testing.assert_allclose(found, slope(params["D"]), atol=1e-11)
    above = surrogate(stats, other) + level - objective(other)
    if boundary == "valid" or mask:
        assert above > 1e-3
    else:
        assert abs(above) < 1e-11
        found = correlated(stats["A"], other) - stats["B"]
        np.testing.assert_allclose(found, slope(other), atol=1e-11)
    parts = [model.statistics(params, part) for part in (x[:1], x[1:])]
    for key, value in stats.items():
        np.testing.assert_allclose(parts[0][key] + parts[1][key], value, atol=1e-11)


def test_no_step_of_a_filter_raises_the_sum_and_steps_end() -> None:
    z, B = sparse_maps((4, 8, 9, 3)), np.random.default_rng(5).standard_normal((3, 3, 2, 2))
    A = correlations(z, (3, 2), False)
    D, values = filters(c=2), []
    for _ in range(100):
        values.append(surrogate({"A": A, "B": B}, D))
        D = best_filters(D, A, B)
        np.testing.assert_allclose((D**2).sum(axis=(1, 2, 3)), 1, rtol=1e-14)
    assert (np.diff(values) <= 1e-12 * abs(values[0])).all() and values[-1] < values[0] - 1
    D = best_filters(D, A, B, 2000)
    slope = correlated(A, D) - B
    along = (slope * D).sum(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(slope, along * D, atol=1e-6)
    A[1], A[..., 1], B[1] = 0, 0, 0
    np.testing.assert_array_equal(best_filters(D, A, B)[1], D[1])


def test_filters_of_one_place_take_the_steps_of_atoms() -> None:
    z = sparse_maps((40, 1, 1, 3))
    D, B = filters(), np.random.default_rng(5).standard_normal((3, 3, 2, 1))
    A = correlations(z, (3, 2), False)
    codes = z.reshape(40, 3)
    wanted = best_atoms(D.reshape(3, -1).T, codes.T @ codes, B.reshape(3, -1).T)
    np.testing.assert_allclose(best_filters(D, A, B).reshape(3, -1).T, wanted, atol=1e-13)


def test_wasted_filters_are_dead_ones_and_doubles_wherever_they_lie() -> None:
    D, usage = np.zeros((4, 5, 5, 1)), np.array([1.0, 2.0, 3.0, 4.0])
    D[0, 1:3, 1:3, 0] = [[1, 2], [-1, 1]]
    D[1, 2:4, 3:5, 0] = [[-1, -2], [1, -1]]  # shifted, with the other sign
    D[2:] = filters(2, 5, 5)
    D = unit_filters(D)
    assert wasted_filters(D, usage).tolist() == [0]
    assert wasted_filters(D[1:], usage[1:]).tolist() == []
    usage[3] = 1e-9
    assert 3 in wasted_filters(D[1:], np.array([1.0, 1.0, 1e-9])) + 1


def test_first_and_worst_filters_are_windows() -> None:
    x = np.zeros((2, 6, 6, 1))
    x[1] = np.random.default_rng(0).standard_normal((6, 6, 1))
    found = first_filters(x[1:], (4, 3, 3, 1), stream(0, Purpose.INIT))
    cut = np.lib.stride_tricks.sliding_window_view(x[1, :, :, 0], (3, 3)).reshape(-1, 9)
    cosines = found.reshape(4, 9) @ (cut / np.linalg.norm(cut, axis=1)[:, None]).T
    np.testing.assert_allclose(cosines.max(axis=1), 1)
    found = first_filters(x[:1], (4, 3, 3, 1), stream(0, Purpose.INIT))
    np.testing.assert_allclose((found**2).sum(axis=(1, 2, 3)), 1)
    x[0, 3:, :3] = 9
    found = worst_windows(x, (4, 3, 3, 1), 2)
    assert found.shape == (2, 3, 3, 1)
    np.testing.assert_allclose(np.abs(found[0]), 1 / 3)
    assert worst_windows(np.zeros((1, 6, 6, 1)), (4, 3, 3, 1), 2).shape == (0, 3, 3, 1)


# ---------------------------------------------------------------- learning


@each_problem
def test_batch_learning_never_raises_its_objective(boundary: str, mask: bool) -> None:
    X = planted(3, 9)[1]
    model = ConvSparseCoding(2, filter_size=3, boundary=boundary, mask=mask, sparsity=0.9)
    model.set_params(tol=1e-11, max_iter=5000, algorithm="fista", replace=False, random_state=0)
    model.set_params(trainer=EM(n_epochs=5, tol=0.0))
    with pytest.warns(ConvergenceWarning, match="still gained"):
        model.fit(X)
    energy = -np.array(model.history_["bound"])
    assert len(energy) == 5
    # A code may be worse than the best by its gap: 1e-11 of ½ Σ x².
    assert (np.diff(energy) <= 1e-11 * 0.5 * (X**2).sum(axis=(1, 2, 3)).mean()).all()
    assert energy[-1] < 0.97 * energy[0]


@pytest.mark.parametrize(
    "trainer",
    [EM(n_epochs=10, batch_size=5), EnergyLoss(n_epochs=6, batch_size=5, learning_rate=0.5)],
    ids=["EM", "gradient"],
)
def test_planted_filters_are_found(trainer: Any) -> None:
    """From filters that are less like the planted ones than a shift of them would be."""
    D, X = planted()
    start = D + 0.2 * np.random.default_rng(5).standard_normal(D.shape)
    model = ConvSparseCoding(3, filter_size=5, tol=1e-2, algorithm="fista", dictionary=start)
    model.set_params(random_state=0, trainer=EnergyLoss(n_epochs=1, learning_rate=1e-9))
    before = recovered(model.fit(X), D)  # the negative control
    after = recovered(model.set_params(trainer=trainer).fit(X), D)
    assert before.max() < 0.8 and after.min() > 0.85 and after.max() > 0.95
    np.testing.assert_allclose(np.linalg.norm(model.components_, axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize("kind", [EM, EnergyLoss])
def test_dead_and_double_filters_are_replaced(kind: Any) -> None:
    trainer = kind(n_epochs=2, batch_size=5)
    D, X = planted(10)
    start = D.copy()
    start[1] = start[0]
    settings: dict[str, Any] = {"filter_size": 5, "tol": 1e-2, "dictionary": start}
    model = ConvSparseCoding(3, trainer=trainer, random_state=0, **settings).fit(X)
    alike = np.abs(convolve(model.params_["D"], model.params_["D"], "full")).max(axis=(1, 2))
    assert model.n_replaced_ >= 1 and (alike - np.eye(3)).max() < 0.99
    keeps = ConvSparseCoding(3, trainer=trainer, random_state=0, replace=False, **settings)
    assert keeps.fit(X).n_replaced_ == 0


# ---------------------------------------------------------------- what is known


def test_filters_of_one_pixel_are_atoms_of_colours(monkeypatch: Any) -> None:
    monkeypatch.setattr(conv_sparse, "_SWEEPS", 1)
    X = np.random.default_rng(0).standard_normal((5, 4, 3, 2))
    shared: dict[str, Any] = {"penalty": L1(0.4), "tol": 1e-12, "random_state": 0}
    D = filters(3, 1, 1, 2)
    model = ConvSparseCoding(3, filter_size=1, dictionary=D, algorithm="fista", **shared)
    model.set_params(trainer=EM(n_epochs=1), max_iter=20_000).fit(X)
    rows = SparseCoding(3, dictionary=D.reshape(3, 2), trainer=EM(n_epochs=1), **shared)
    rows.fit(X.reshape(-1, 2))
    np.testing.assert_allclose(model.components_, rows.components_, atol=1e-5)
    rows._state.params["D"][...] = model.components_.T
    wanted = rows.transform(X.reshape(-1, 2)).reshape(5, 4, 3, 3)
    np.testing.assert_allclose(model.transform(X), wanted, atol=1e-5)


def test_filters_of_the_images_size_are_atoms_of_images(monkeypatch: Any) -> None:
    monkeypatch.setattr(conv_sparse, "_SWEEPS", 1)
    X = np.random.default_rng(0).standard_normal((30, 4, 3))
    shared: dict[str, Any] = {"tol": 1e-12, "random_state": 0}
    D = filters(5, 4, 3)
    model = ConvSparseCoding(5, filter_size=(4, 3), dictionary=D, algorithm="fista", **shared)
    model.set_params(trainer=EM(n_epochs=3, batch_size=10), max_iter=20_000).fit(X)
    rows = SparseCoding(5, dictionary=D.reshape(5, 12), **shared)
    rows.set_params(trainer=EM(n_epochs=3, batch_size=10)).fit(X.reshape(30, 12))
    assert model.strength_ == pytest.approx(rows.strength_, rel=1e-12)
    # Codes are right to about the root of the gap, and so are sums over them.
    np.testing.assert_allclose(model.components_, rows.components_, atol=1e-5)
    H = model.transform(X)
    assert H.shape == (30, 1, 1, 5)
    np.testing.assert_allclose(H.reshape(30, 5), rows.transform(X.reshape(30, 12)), atol=1e-4)
    np.testing.assert_allclose(model.energy(X), rows.energy(X.reshape(30, 12)), rtol=1e-5)


def test_a_torus_that_repeats_has_codes_that_repeat() -> None:
    X = planted(1, 10)[1][..., 0]
    model = ConvSparseCoding(2, filter_size=3, boundary="circular", random_state=0, tol=1e-10)
    model.set_params(trainer=EM(n_epochs=1), max_iter=20_000, sparsity=0.9, algorithm="fista")
    model.fit(X)
    small, large = model.transform(X), model.transform(np.tile(X, (1, 2, 3)))
    assert large.shape == (1, 20, 30, 2)
    np.testing.assert_allclose(large, np.tile(small, (1, 2, 3, 1)), atol=1e-4)
    np.testing.assert_allclose(model.energy(np.tile(X, (1, 2, 3))), 6 * model.energy(X), rtol=1e-9)


def test_codes_far_from_the_border_are_those_of_a_larger_image() -> None:
    X = planted(10, 24)[1][..., 0]
    model = ConvSparseCoding(3, filter_size=5, random_state=0, tol=1e-8, max_iter=20_000)
    model.set_params(trainer=EM(n_epochs=1, batch_size=10), sparsity=0.9).fit(X[:, :10, :10])
    whole, part = model.transform(X[:2]), model.transform(X[:2, :, :18])
    assert whole.shape == (2, 20, 20, 3) and part.shape == (2, 20, 14, 3)
    off = np.abs(whole[:, :, :14] - part).max(axis=(0, 1, 3))
    # Near the cut codes are of another problem; what is left of it decays with distance.
    assert off[:2].max() < 0.05 * np.abs(part).max() < off[-3:].max()
    assert model.reconstruct(X[:2]).shape == (2, 24, 24)
    np.testing.assert_allclose(model.inverse_transform(whole), model.reconstruct(X[:2]), atol=1e-12)


# ---------------------------------------------------------------- what users meet


def quick(**settings: Any) -> ConvSparseCoding:
    given: dict[str, Any] = {"filter_size": 3, "random_state": 0, "tol": 1e-2}
    return ConvSparseCoding(3, trainer=EM(n_epochs=1, batch_size=5), **given | settings)


def test_shapes_of_grey_images_and_of_colours() -> None:
    X = np.random.default_rng(0).standard_normal((10, 8, 9)).astype(np.float32)
    model = quick().fit(X)
    assert model.filters_.shape == (3, 3, 3) and model.components_.shape == (3, 9)
    assert model.transform(X).shape == (10, 6, 7, 3) and model.transform(X).dtype == np.float32
    assert model.dual_gap(X).shape == (10,) and model.dual_gap(X).max() <= 1e-2
    assert quick(boundary="valid").fit(X).transform(X).shape == (10, 10, 11, 3)
    X = np.random.default_rng(0).standard_normal((10, 8, 9, 2))
    model = quick().fit(X)
    assert model.filters_.shape == (3, 3, 3, 2) and model.components_.shape == (3, 18)
    assert model.reconstruct(X).shape == X.shape
    assert quick(positive=True).fit(X).transform(X).min() == 0


def test_samples_have_any_size() -> None:
    X = np.random.default_rng(0).standard_normal((10, 8, 9))
    model, few = quick().fit(X), {"n_steps": 2, "sampler": HMC(2, 0.05)}
    assert model.sample(2, **few).shape == (2, 8, 9)
    larger = model.sample(2, shape=(12, 10), **few)
    assert larger.shape == (2, 12, 10) and np.isfinite(larger).all()
    np.testing.assert_array_equal(larger, model.sample(2, shape=(12, 10), **few))
    mask = np.zeros((12, 10), bool)
    mask[:, :6] = True
    painted = model.sample(2, clamp=(mask, larger[0]), **few)
    np.testing.assert_array_equal(painted[:, :, :6], larger[[0, 0], :, :6])
    assert (painted[:, :, 6:] != larger[0, :, 6:]).any()
    assert model.denoise(X, 0.5, n_steps=2, n_warmup=0, sampler=HMC(2, 0.05)).shape == X.shape


def test_images_that_do_not_reach_the_tolerance_are_marked() -> None:
    X = planted(6, 9)[1]
    with pytest.warns(ConvergenceWarning, match="of the codes of the last update did not reach"):
        model = quick(tol=1e-6, max_iter=2).fit(X)
    with pytest.warns(ConvergenceWarning, match="rows did not reach tol=1e-06 in max_iter=2"):
        model.transform(X)
    assert model.dual_gap(X).max() > 1e-6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"filter_size": 9}, "has filters of 9×9, X has smaller images, of 6×7"),
        ({"filter_size": 0}, "filter_size must be an int >= 1 or two of them"),
        ({"boundary": "same"}, "boundary must be one of 'full', 'valid', 'circular'"),
        ({"dictionary": np.zeros((3, 3, 3))}, r"3 atom\(s\) of zeros \(first: 0, 1, 2\)"),
        ({"dictionary": np.ones((3, 3, 2))}, r"dictionary must have shape \(3, 3, 3\)"),
        ({"dictionary": np.full((3, 3, 3), np.nan)}, "contains NaN or infinity"),
        ({"penalty": L1(-1.0)}, "λ must be > 0"),
        ({"penalty": Student(1.0)}, r"solved for L1\(λ\) alone"),
        ({"penalty": L1(1.0), "sparsity": 0.1}, "sparsity sets the λ of"),
        ({"sparsity": 0.0}, "sparsity must be > 0"),
        ({"algorithm": "cyclic"}, "algorithm must be one of 'auto', 'fista', 'admm', 'greedy'"),
        ({"algorithm": "greedy"}, "needs maps without a border"),
        ({"tol": 0.0}, "tol must be > 0"),
        ({"max_iter": 0}, "max_iter must be an integer >= 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    X = np.random.default_rng(0).standard_normal((10, 6, 7))
    with pytest.raises(ValueError, match=message):
        quick(**settings).fit(X)


def test_images_that_cannot_be_are_refused() -> None:
    X = np.random.default_rng(0).standard_normal((10, 6, 7))
    model = quick().fit(X)
    with pytest.raises(ValueError, match="fitted to images of 1 channel"):
        model.transform(np.zeros((2, 6, 7, 3)))
    with pytest.raises(ValueError, match="X has smaller images, of 2×7"):
        model.transform(X[:, :2])
    with pytest.raises(ValueError, match="needs images"):
        model.transform(X.reshape(10, -1))
    with pytest.raises(ValueError, match=r"decodes maps of shape \(n, h', w', 3\)"):
        model.inverse_transform(np.zeros((2, 4, 5, 2)))
    with pytest.raises(ValueError, match="NaN"):
        model.energy(X * np.nan)
