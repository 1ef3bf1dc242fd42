"""Convolutional codes are those of the lasso with the dictionary written out as a matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import standin
from sklearn.linear_model import Lasso

from energyscape.backend import to_host
from energyscape.solvers import conv_dictionary
from energyscape.solvers.conv_admm import TorusSolver, conv_admm
from energyscape.solvers.conv_descent import _Search, conv_descent
from energyscape.solvers.conv_dictionary import ConvDictionary
from energyscape.solvers.conv_fista import conv_fista
from energyscape.solvers.duality import kkt_violation
from energyscape.solvers.laid_filters import BOUNDARIES

F32, F64 = np.float32, np.float64
# Boundary and mask: all problems that differ.
PROBLEMS = [("full", False), ("full", True), ("valid", False), ("circular", False)]


def _filters(k: int, fh: int, fw: int, c: int, seed: int = 0, dtype: Any = F64) -> np.ndarray:
    """Of different norms, so that nothing may take them to be 1."""
    rng = np.random.default_rng(seed)
    filters = rng.standard_normal((k, fh, fw, c))
    return (filters * rng.uniform(0.5, 1.5, (k, 1, 1, 1))).astype(dtype)


def _matrix(filters: np.ndarray, shape: tuple[int, int], boundary: str) -> np.ndarray:
    """D, a column for each code in the order of z: every filter written where it lies."""
    (k, fh, fw, c), (h, w) = filters.shape, shape
    more = {"full": -1, "valid": 1, "circular": 0}[boundary]
    down, across = h + more * (fh - 1), w + more * (fw - 1)
    top, left = (fh - 1, fw - 1) if boundary == "valid" else (0, 0)
    columns = []
    for i, j, q in np.ndindex(down, across, k):
        image = np.zeros((h, w, c))
        for a, b in np.ndindex(fh, fw):
            y, x = i + a - top, j + b - left
            if boundary == "circular":
                y, x = y % h, x % w
            if 0 <= y < h and 0 <= x < w:
                image[y, x] += filters[q, a, b]
        columns.append(image.ravel())
    return np.array(columns).T


def _coverage(shape: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    counts = np.zeros(shape)
    for i, j in np.ndindex(shape[0] - size[0] + 1, shape[1] - size[1] + 1):
        counts[i : i + size[0], j : j + size[1]] += 1
    return counts / counts.max()


# ---------------------------------------------------------------- the dictionary


@pytest.fixture(params=["windows", "dft"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to make the products, and blocks of a few places."""
    monkeypatch.setattr(
        conv_dictionary, "_LARGEST_DIRECT", [10**9 if request.param == "windows" else 0] * 2
    )
    monkeypatch.setattr(conv_dictionary, "_BLOCK", 700)
    return str(request.param)


SHAPES = [(3, (2, 3), (7, 6)), (2, (4, 1), (6, 5)), (3, (1, 1), (3, 4)), (2, (5, 4), (5, 4))]


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("k", "size", "shape"), SHAPES)
def test_products_are_those_of_the_matrix(
    way: str, boundary: str, channels: int, k: int, size: Any, shape: Any
) -> None:
    """Sums of at most 60 products of numbers of order 1: rounding stays below 1e-12."""
    filters = _filters(k, *size, channels)
    dictionary, matrix = ConvDictionary(filters, shape, boundary), _matrix(filters, shape, boundary)
    rng = np.random.default_rng(1)
    x, z = rng.standard_normal((5, *shape, channels)), None
    z = rng.standard_normal((5, *dictionary.maps_shape))
    np.testing.assert_allclose(
        dictionary.synthesize(z).reshape(5, -1), z.reshape(5, -1) @ matrix.T, atol=1e-12
    )
    np.testing.assert_allclose(
        dictionary.analyze(x).reshape(5, -1), x.reshape(5, -1) @ matrix, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_analysis_is_the_adjoint_of_synthesis(way: str, boundary: str, dtype: Any) -> None:
    """⟨Dz, x⟩ = ⟨z, D'x⟩ to a few roundings of the product of their norms."""
    dictionary = ConvDictionary(_filters(4, 5, 3, 3, dtype=dtype), (19, 23), boundary)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 19, 23, 3)).astype(dtype)
    z = rng.standard_normal((2, *dictionary.maps_shape)).astype(dtype)
    image, maps = dictionary.synthesize(z), dictionary.analyze(x)
    assert image.dtype == maps.dtype == dtype
    one, two = ((a.astype(F64) * b).sum() for a, b in ((image, x), (z, maps)))
    assert abs(one - two) < 4 * np.finfo(dtype).eps * np.linalg.norm(image) * np.linalg.norm(x)
    # A negative control: filters turned round have another adjoint.
    turned = ConvDictionary(dictionary.filters[:, ::-1, ::-1], (19, 23), boundary)
    assert abs(one - (z * turned.analyze(x)).sum()) > 1e-2 * abs(one)


def test_weights_are_the_share_of_places_that_cover_a_pixel() -> None:
    for size, shape in [((2, 3), (7, 6)), ((4, 4), (4, 4)), ((5, 3), (6, 9))]:
        dictionary = ConvDictionary(_filters(2, *size, 1), shape, "full", mask=True)
        assert dictionary.weights.shape == (*shape, 1)
        np.testing.assert_allclose(dictionary.weights[:, :, 0], _coverage(shape, size), atol=1e-15)
    for boundary in ("valid", "circular"):
        assert ConvDictionary(_filters(2, 2, 2, 1), (4, 4), boundary, mask=True).weights is None


@pytest.mark.parametrize("boundary", ["full", "circular"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_gram_tensor_is_the_matrix_around_a_place(boundary: str, channels: int) -> None:
    filters, shape = _filters(3, 2, 3, channels), (8, 11)
    dictionary, gram = ConvDictionary(filters, shape, boundary), None
    gram, (h, w, k) = dictionary.gram(), dictionary.maps_shape
    matrix = _matrix(filters, shape, boundary)
    products = (matrix.T @ matrix).reshape(h, w, k, h, w, k)
    assert gram.shape == (3, 3, 5, 3)
    for q in range(3):
        np.testing.assert_allclose(products[3, 4, q, 2:5, 2:7], gram[q], atol=1e-12)
    np.testing.assert_allclose(dictionary.squared_norms, gram[range(3), 1, 2, range(3)])


@pytest.mark.parametrize(("boundary", "mask"), PROBLEMS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_bound_of_the_eigenvalues(boundary: str, mask: bool, channels: int) -> None:
    """Above the largest one, and not far: the border matters little on 15×14 pixels."""
    filters, shape = _filters(3, 3, 2, channels), (15, 14)
    dictionary = ConvDictionary(filters, shape, boundary, mask)
    largest = np.linalg.norm(_matrix(filters, shape, boundary), 2) ** 2
    assert largest <= dictionary.lipschitz() <= 1.3 * largest
    if boundary == "circular":
        assert dictionary.lipschitz() == pytest.approx(largest, rel=1e-8)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_spectrum_is_that_of_the_torus(channels: int) -> None:
    """Also where windows are wider than the torus."""
    for size, shape in [((2, 3), (7, 6)), ((4, 4), (5, 4))]:
        filters = _filters(3, *size, channels)
        values, vectors = ConvDictionary(filters, shape, "circular").spectrum()
        wave = np.fft.rfft2(filters, s=shape, axes=(1, 2)).transpose(1, 2, 3, 0)
        wanted = wave @ wave.conj().swapaxes(2, 3)
        found = (vectors * values[:, :, None]) @ vectors.conj().swapaxes(2, 3)
        np.testing.assert_allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((_filters(2, 3, 3, 1), (2, 5)), "images of 2×5 are smaller than the filters of 3×3"),
        ((_filters(2, 3, 3, 1), (5, 5), "same"), "boundary must be one of"),
        ((_filters(2, 3, 3, 1)[0], (5, 5)), r"filters \(k, fh, fw, c\) of float32"),
        ((np.ones((2, 3, 3, 1), int), (5, 5)), "got shape .* of int64"),
        ((np.zeros((2, 3, 3, 1)), (5, 5)), "Filters contain NaN or infinity, or are 0"),
        ((np.full((2, 3, 3, 1), np.nan), (5, 5)), "Filters contain NaN"),
    ],
)
def test_wrong_dictionaries_are_named(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvDictionary(*arguments)


def test_wrong_arrays_are_named() -> None:
    dictionary = ConvDictionary(_filters(2, 3, 3, 1), (5, 6), "full")
    with pytest.raises(ValueError, match=r"images of shape \(n, 5, 6, 1\) are wanted"):
        dictionary.analyze(np.zeros((1, 5, 6, 3)))
    with pytest.raises(ValueError, match=r"codes of shape \(n, 3, 4, 2\) are wanted"):
        dictionary.synthesize(np.zeros((1, 5, 6, 2)))
    with pytest.raises(ValueError, match="Input X contains NaN or infinity"):
        dictionary.lam_max(np.full((1, 5, 6, 1), np.inf))


# ---------------------------------------------------------------- codes

SOLVERS = [conv_fista, conv_admm, conv_descent]
# Every solver on every problem that it solves.
RUNS = [
    (solver, boundary, mask)
    for solver in SOLVERS
    for boundary, mask in PROBLEMS
    if solver is not conv_descent or (boundary != "valid" and not mask)
]


def _problem(
    boundary: str, mask: bool, channels: int = 1, dtype: Any = F64, n: int = 3
) -> tuple[ConvDictionary, np.ndarray, float]:
    """Images of different sizes, and a λ of a fifth of what makes the first code 0."""
    filters, shape = _filters(2, 3, 2, channels, dtype=dtype), (8, 7)
    dictionary = ConvDictionary(filters, shape, boundary, mask)
    x = np.random.default_rng(2).standard_normal((n, *shape, channels)).astype(dtype)
    x *= np.array([1, 1.5, 0.5], dtype)[:n, None, None, None]
    return dictionary, x, 0.2 * float(dictionary.lam_max(x)[0])


def _weights(dictionary: ConvDictionary) -> np.ndarray:
    if dictionary.weights is None:
        return np.ones((*dictionary.image_shape, 1))
    return _coverage(dictionary.image_shape, dictionary.filters.shape[1:3])[:, :, None]


def _objective(dictionary: ConvDictionary, x: np.ndarray, z: np.ndarray, lam: float) -> np.ndarray:
    """By the matrix, in float64."""
    matrix = _matrix(dictionary.filters.astype(F64), dictionary.image_shape, dictionary.boundary)
    residual = x - (z.astype(F64).reshape(len(z), -1) @ matrix.T).reshape(x.shape)
    squares = (_weights(dictionary) * residual**2).sum(axis=(1, 2, 3))
    return 0.5 * squares + lam * abs(z).sum(axis=(1, 2, 3), dtype=F64)


def _lasso(
    dictionary: ConvDictionary, x: np.ndarray, lam: float, positive: bool = False
) -> np.ndarray:
    """scikit-learn's codes of the matrix, whose objective is ours over the number of pixels."""
    matrix = _matrix(dictionary.filters, dictionary.image_shape, dictionary.boundary)
    roots = np.sqrt(np.broadcast_to(_weights(dictionary), x.shape[1:])).ravel()
    model = Lasso(lam / len(roots), fit_intercept=False, tol=1e-12, max_iter=10**6)
    model.set_params(positive=positive)
    found = [model.fit(matrix * roots[:, None], row.ravel() * roots).coef_ for row in x]
    return np.array(found).reshape(len(x), *dictionary.maps_shape)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize(("solver", "boundary", "mask"), RUNS)
def test_codes_are_the_lassos(solver: Any, boundary: str, mask: bool, positive: bool) -> None:
    """The gap bounds P - P*, and ½ Σ m x² is less than 10 P* here: a gap of 1e-9 of the one is 1e-8
    of the other."""
    for channels in (1, 3):
        dictionary, x, lam = _problem(boundary, mask, channels)
        found = solver(dictionary, x, lam, positive=positive, tol=1e-9, max_iter=50_000)
        wanted = _objective(dictionary, x, _lasso(dictionary, x, lam, positive), lam)
        assert 0 < found.gap.max() <= 1e-9 and found.gap.dtype == F64
        assert not positive or found.z.min() == 0
        energy = 0.5 * (_weights(dictionary) * x**2).sum(axis=(1, 2, 3))
        assert (energy < 10 * wanted).all()
        objective = _objective(dictionary, x, found.z, lam)
        np.testing.assert_allclose(objective, wanted, rtol=1e-8)
        # Of strong convexity in the span of few codes: an error of the root of the gap.
        slope = dictionary.analyze(dictionary.weighted(x - dictionary.synthesize(found.z)))
        assert (kkt_violation(found.z, slope, lam, positive) < 1e-3 * lam).all()


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize(("boundary", "mask"), PROBLEMS)
def test_codes_that_are_pulled_are_those_of_a_larger_lasso(
    boundary: str, mask: bool, positive: bool
) -> None:
    """(α/2)|z - f|² is √α I under D and √α f under x; tolerances as above."""
    dictionary, x, lam = _problem(boundary, mask)
    f = np.random.default_rng(3).standard_normal((3, *dictionary.maps_shape))
    settings: dict[str, Any] = {"alpha": 0.7, "prediction": f, "positive": positive}
    found = conv_fista(dictionary, x, lam, tol=1e-9, max_iter=50_000, **settings)
    matrix = _matrix(dictionary.filters, (8, 7), boundary)
    roots = np.sqrt(np.broadcast_to(_weights(dictionary), x.shape[1:])).ravel()
    matrix = np.vstack([matrix * roots[:, None], np.sqrt(0.7) * np.eye(f[0].size)])
    model = Lasso(lam / len(matrix), fit_intercept=False, tol=1e-12, max_iter=10**6)
    model.set_params(positive=positive)
    for row, own, code in zip(x, f, found.z, strict=True):
        target = np.concatenate([row.ravel() * roots, np.sqrt(0.7) * own.ravel()])
        wanted = model.fit(matrix, target).coef_
        np.testing.assert_allclose(code.ravel(), wanted, atol=1e-4)
    assert 0 < found.gap.max() <= 1e-9
    plain = conv_fista(dictionary, x, lam, tol=1e-9, max_iter=50_000, positive=positive)
    assert np.abs(plain.z - found.z).max() > 0.1  # the negative control


@pytest.mark.parametrize(("solver", "boundary", "mask"), RUNS)
def test_float32_reaches_its_tolerance(solver: Any, boundary: str, mask: bool) -> None:
    dictionary, x, lam = _problem(boundary, mask, 3, F32)
    found = solver(dictionary, x, lam, tol=1e-5, max_iter=5000)
    same = solver(dictionary, x, F64(lam), tol=1e-5, max_iter=5000)
    np.testing.assert_array_equal(same.z, found.z)
    assert found.z.dtype == F32 and found.gap.dtype == F64 and found.gap.max() <= 1e-5
    exact = ConvDictionary(dictionary.filters.astype(F64), (8, 7), boundary, mask)
    wanted = conv_fista(exact, x.astype(F64), lam, tol=1e-9, max_iter=5000)
    best = _objective(exact, x, wanted.z, lam)
    np.testing.assert_allclose(_objective(dictionary, x, found.z, lam), best, rtol=1e-4)


@pytest.mark.parametrize(("solver", "boundary", "mask"), RUNS)
def test_images_do_not_see_each_other(solver: Any, boundary: str, mask: bool) -> None:
    """A batch, from which they leave one by one, gives what each gives alone, to rounding; scaled
    images and λ scale the codes, filters in another order permute them."""
    dictionary, x, lam = _problem(boundary, mask)
    found = solver(dictionary, x, lam, tol=1e-5, max_iter=5000)
    alone = [solver(dictionary, x[i : i + 1], lam, tol=1e-5, max_iter=5000) for i in range(3)]
    assert len({one.n_iter for one in alone}) > 1
    assert found.n_iter == max(one.n_iter for one in alone) or solver is conv_descent
    for i, one in enumerate(alone):
        np.testing.assert_allclose(found.z[i], one.z[0], atol=1e-9 * abs(one.z).max())
    scaled = solver(dictionary, 8 * x, 8 * lam, tol=1e-5, max_iter=5000)
    np.testing.assert_allclose(scaled.z, 8 * found.z, atol=1e-8 * abs(found.z).max())
    other = ConvDictionary(dictionary.filters[::-1], (8, 7), boundary, mask)
    turned = solver(other, x, lam, tol=1e-5, max_iter=5000)
    np.testing.assert_allclose(turned.z[..., ::-1], found.z, atol=1e-8 * abs(found.z).max())


@pytest.mark.parametrize(("solver", "boundary", "mask"), RUNS)
def test_codes_are_0_from_the_largest_lambda_on(solver: Any, boundary: str, mask: bool) -> None:
    dictionary, x, _ = _problem(boundary, mask, n=1)
    largest = float(dictionary.lam_max(x)[0])
    found = solver(dictionary, x, largest)
    assert not found.z.any() and found.n_iter == 0 and found.gap.max() < 1e-12
    assert solver(dictionary, x, 0.99 * largest, tol=1e-9).z.any()
    empty = solver(dictionary, 0 * x, 1.0)
    assert not empty.z.any() and empty.gap.tolist() == [0.0]


@pytest.mark.parametrize(("solver", "boundary", "mask"), RUNS)
def test_a_warm_start_takes_few_iterations(solver: Any, boundary: str, mask: bool) -> None:
    """At the solution none; near it fewer than from zeros, and the start is left as it was."""
    dictionary, x, lam = _problem(boundary, mask)
    cold = solver(dictionary, x, lam, tol=1e-8, max_iter=5000)
    assert solver(dictionary, x, lam, start=cold.z, tol=1e-8).n_iter == 0
    start = cold.z.copy()
    warm = solver(dictionary, x, 1.001 * lam, start=start, tol=1e-6, max_iter=5000)
    assert 0 < warm.n_iter < solver(dictionary, x, 1.001 * lam, tol=1e-6, max_iter=5000).n_iter
    np.testing.assert_array_equal(start, cold.z)


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_end_before_the_tolerance_is_told_by_the_gap(solver: Any) -> None:
    dictionary, x, lam = _problem("full", False)
    found = solver(dictionary, x, lam, tol=1e-8, max_iter=7)
    assert found.n_iter == 7 and found.gap.max() > 1e-8
    residual = x - dictionary.synthesize(found.z)
    np.testing.assert_allclose(found.gap, dictionary.relative_gap(x, found.z, residual, lam))
    nothing = solver(dictionary, x, lam, max_iter=0)
    assert nothing.n_iter == 0 and not nothing.z.any()


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_place_is_the_lasso_of_a_patch(solver: Any) -> None:
    filters = _filters(6, 4, 3, 2)
    dictionary = ConvDictionary(filters, (4, 3), "full")
    x = np.random.default_rng(1).standard_normal((2, 4, 3, 2))
    found = solver(dictionary, x, 0.3, tol=1e-12, max_iter=5000)
    model = Lasso(0.3 / 24, fit_intercept=False, tol=1e-14, max_iter=10**6)
    for row, code in zip(x, found.z, strict=True):
        wanted = model.fit(filters.reshape(6, -1).T, row.ravel()).coef_
        np.testing.assert_allclose(code.ravel(), wanted, atol=1e-5)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_filters_of_one_pixel_shrink_each(boundary: str) -> None:
    """One filter f of one pixel: shrink(f x, λ)/f² at every place."""
    dictionary = ConvDictionary(np.full((1, 1, 1, 1), 0.8), (3, 4), boundary)
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 1))
    wanted = np.sign(x) * np.maximum(0.8 * abs(x) - 0.2, 0) / 0.64
    for solver in SOLVERS if boundary != "valid" else SOLVERS[:2]:
        found = solver(dictionary, x, 0.2, tol=1e-13)
        np.testing.assert_allclose(found.z, wanted, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_shifted_images_on_a_torus_have_shifted_codes(solver: Any) -> None:
    dictionary, x, lam = _problem("circular", False, 3)
    found = solver(dictionary, x, lam, tol=1e-9, max_iter=50_000)
    moved = solver(dictionary, np.roll(x, (3, -2), (1, 2)), lam, tol=1e-9, max_iter=50_000)
    # The gap's root, times a condition of the codes in use that is below 10.
    np.testing.assert_allclose(moved.z, np.roll(found.z, (3, -2), (1, 2)), atol=3e-3)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("boundary", ["full", "circular"])
def test_greedy_steps_are_those_of_the_matrix(boundary: str, positive: bool) -> None:
    """While maps are one segment, each step is the greatest of all, one code after the other; the
    windows of the second problem are wider than its torus."""
    for size, shape in [((3, 3), (6, 7)), ((3, 4), (4, 5))]:
        filters = _filters(3, *size, 2)
        dictionary, matrix = ConvDictionary(filters, shape, boundary), None
        matrix = _matrix(filters, shape, boundary)
        x = np.random.default_rng(3).standard_normal((1, *shape, 2))
        lam, z = 0.1 * float(dictionary.lam_max(x)[0]), np.zeros(matrix.shape[1])
        norms = (matrix**2).sum(axis=0)
        for step in range(1, 40):
            beta = matrix.T @ (x.ravel() - matrix @ z) + norms * z
            best = np.maximum((beta if positive else abs(beta)) - lam, 0) / norms
            best *= 1 if positive else np.sign(beta)
            j = np.argmax(abs(best - z) * np.sqrt(norms))
            z[j] = best[j]
            found = conv_descent(dictionary, x, lam, positive=positive, tol=0.0, max_iter=step)
            np.testing.assert_allclose(found.z.ravel(), z, atol=1e-12)


def test_segments_of_a_colour_do_not_meet() -> None:
    """β kept up through changes in many segments at once is that of the codes, to rounding."""
    for boundary, mark in (("full", 1), ("circular", 0)):
        filters = _filters(2, 2, 3, 1)
        dictionary = ConvDictionary(filters, (13, 23), boundary)
        x = np.random.default_rng(0).standard_normal((2, 13, 23, 1))
        z = np.zeros((2, *dictionary.maps_shape))
        search = _Search(dictionary, z, dictionary.analyze(x), 0.2, False)
        sweeps = search.run(30)
        z, (h, w, _) = search.codes(), dictionary.maps_shape
        assert (z != 0).sum() > 4 * sweeps  # more than one each sweep
        wanted = dictionary.analyze(x - dictionary.synthesize(z)) + dictionary.squared_norms * z
        found = search._beta[:, mark : mark + h, 2 * mark : 2 * mark + w]
        np.testing.assert_allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_systems_of_the_torus_are_solved(channels: int) -> None:
    """(ρ + D'D) z = D's + ρ v for z = v + D'(ρ + D D')⁻¹ (s - D v), a ρ for each image."""
    torus = ConvDictionary(_filters(5, 3, 4, channels), (9, 8), "circular")
    rng, rho = np.random.default_rng(0), np.array([0.01, 1.0, 50.0])
    s, v = rng.standard_normal((3, 9, 8, channels)), rng.standard_normal((3, 9, 8, 5))
    z = v + torus.analyze(TorusSolver(torus)(s - torus.synthesize(v), rho))
    rho = rho[:, None, None, None]
    wanted = torus.analyze(s) + rho * v
    assert abs(torus.analyze(torus.synthesize(z)) + rho * z - wanted).max() < 1e-10


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("solver", "boundary", "mask"), RUNS)
def test_both_kinds_of_arrays_agree(
    cupy: Any, solver: Any, boundary: str, mask: bool, channels: int
) -> None:
    dictionary, x, lam = _problem(boundary, mask, channels)
    wanted = solver(dictionary, x, lam, tol=1e-7, max_iter=60)
    device = ConvDictionary(cupy.asarray(dictionary.filters), (8, 7), boundary, mask)
    found = solver(device, cupy.asarray(x), lam, tol=1e-7, max_iter=60)
    assert isinstance(found.z, cupy.ndarray) and isinstance(found.gap, cupy.ndarray)
    np.testing.assert_allclose(to_host(found.z), wanted.z, atol=1e-10)
    # At both ends the host waits for whether numbers are finite and for the bound; between, once a
    # look at the gaps, and for those that leave.
    if solver is not conv_descent:
        standin.Counter.syncs = 0
        solver(device, cupy.asarray(x), lam, tol=0.0, max_iter=30)
        assert standin.Counter.syncs <= 5 + 4


@pytest.mark.parametrize("solver", SOLVERS)
def test_wrong_arguments_are_named(solver: Any) -> None:
    dictionary, x, lam = _problem("full", False)
    z = np.zeros((3, *dictionary.maps_shape))
    for call, message in [
        (lambda: solver(dictionary, x[..., [0, 0]], lam), "images of shape"),
        (lambda: solver(dictionary, x[:0], lam), r"Found array with 0 sample\(s\)"),
        (lambda: solver(dictionary, x, 0.0), "lam must be a number > 0, got 0.0"),
        (lambda: solver(dictionary, x, np.nan), "lam must be a number > 0"),
        (lambda: solver(dictionary, x * np.nan, lam), "Input X contains NaN"),
        (lambda: solver(dictionary, x, lam, start=z[:, :-1]), "codes of shape"),
        (lambda: solver(dictionary, x, lam, start=z[:2]), "codes of 2 images, wanted those of 3"),
        (lambda: solver(dictionary, x, lam, start=z - 1, positive=True), "Negative values in"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(("boundary", "mask"), [("valid", False), ("full", True)])
def test_descent_says_who_can_where_it_cannot(boundary: str, mask: bool) -> None:
    dictionary, x, lam = _problem(boundary, mask)
    with pytest.raises(ValueError, match="Solvers that can: conv_fista, conv_admm"):
        conv_descent(dictionary, x, lam)
