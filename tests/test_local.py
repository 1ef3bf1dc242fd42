"""Locally connected filters: their products against matrices that are written out, pools of maps
against those of codes, and what limits of the model are known.

Nothing here is a statistical assertion: seeds fix the problems, and what is asserted holds for all
of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_conv_sparse import filters

from energyscape.models import ConvPSD, LocalPSD
from energyscape.models.conv_encoders import (
    ConvLISTAEncoder,
    ConvShrinkEncoder,
    ConvSmoothShrinkEncoder,
    ConvTanhEncoder,
)
from energyscape.models.conv_filters import unit_filters
from energyscape.penalties import L1, MapPools, PooledL1, Student
from energyscape.pools import torus_pools
from energyscape.samplers import HMC
from energyscape.solvers.conv_dictionary import ConvDictionary
from energyscape.solvers.conv_fista import conv_fista
from energyscape.solvers.encode import sparse_codes
from energyscape.solvers.laid_filters import BOUNDARIES
from energyscape.solvers.local_dictionary import LocalDictionary
from energyscape.tiles import tiled, untiled
from energyscape.trainers import EnergyLoss

each_boundary = pytest.mark.parametrize("boundary", BOUNDARIES)
# Period, units at a place, sides of filters, places.
SIZES = [
    (2, 1, (3, 2), (6, 4)),
    (3, 2, (2, 4), (6, 6)),
    (4, 1, (3, 3), (4, 8)),
    (1, 2, (2, 3), (4, 5)),
]
each_size = pytest.mark.parametrize(("period", "u", "size", "places"), SIZES)


def made(period: int, u: int, size: Any, places: Any, boundary: str, c: int = 1) -> LocalDictionary:
    """A dictionary of filters of different norms with so many places."""
    more = {"full": 1, "valid": -1, "circular": 0}[boundary]
    if boundary == "valid":  # places that are left over when the border has its own
        places = tuple(p + period * (f // period + 1) for p, f in zip(places, size, strict=True))
    h, w = (p + more * (f - 1) for p, f in zip(places, size, strict=True))
    rng = np.random.default_rng(0)
    D = rng.standard_normal((period**2 * u, *size, c)) * rng.uniform(0.5, 1.5)
    return LocalDictionary(D, (h, w), period, boundary)


def matrix(dictionary: LocalDictionary, u: int) -> np.ndarray:
    """D, a column for each unit (i, j, v) of the map, its own filter written where it lies."""
    (h, w), D, P = dictionary.image_shape, dictionary.filters, dictionary.period
    (down, across), (top, left) = dictionary.places, dictionary.margins()
    columns = []
    for i, j, v in np.ndindex(down, across, u):
        own, image = D[((i % P) * P + j % P) * u + v], np.zeros((h, w, D.shape[3]))
        for a, b in np.ndindex(*own.shape[:2]):
            y, x = i + a - top, j + b - left
            if dictionary.boundary == "circular":
                y, x = y % h, x % w
            if 0 <= y < h and 0 <= x < w:
                image[y, x] += own[a, b]
        columns.append(image.ravel())
    return np.array(columns).T


def draw(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# ---------------------------------------------------------------- the dictionary


@each_boundary
@pytest.mark.parametrize("channels", [1, 2])
@each_size
def test_products_are_those_of_units_written_out(
    period: int, u: int, size: Any, places: Any, channels: int, boundary: str
) -> None:
    """Sums of at most 100 products of numbers of order 1: rounding stays below 1e-12."""
    dictionary = made(period, u, size, places, boundary, channels)
    D, (h, w) = matrix(dictionary, u), dictionary.image_shape
    x, z = draw(3, h, w, channels), draw(3, *dictionary.places, u)
    found = dictionary.synthesize(tiled(z, period))
    np.testing.assert_allclose(found.reshape(3, -1), z.reshape(3, -1) @ D.T, atol=1e-12)
    maps = untiled(dictionary.analyze(x), period)
    assert maps.shape == z.shape
    np.testing.assert_allclose(maps.reshape(3, -1), x.reshape(3, -1) @ D, atol=1e-12)
    # A negative control: the filters of a period in another order.
    other = LocalDictionary(dictionary.filters[::-1], (h, w), period, boundary)
    assert np.abs(untiled(other.analyze(x), period) - maps).max() > 0.1
    bound, largest = dictionary.lipschitz(), np.linalg.norm(D, 2) ** 2
    assert largest <= bound < 1.3 * largest


@each_boundary
def test_the_bound_holds_where_some_frequencies_are_not_seen(boundary: str) -> None:
    """Filters whose sums over every second row and column are 0: D D' is 0 at a frequency, but for
    rounding of either sign."""
    for seed in range(10):
        D = draw(4, 4, 4, 1, seed=seed)
        for a, b in np.ndindex(2, 2):
            part = D[:, a::2, b::2]
            part -= part.mean(axis=(1, 2), keepdims=True)
        sides = {"full": (9, 11), "valid": (9, 7), "circular": (8, 10)}[boundary]
        dictionary = LocalDictionary(D, sides, 2, boundary)
        assert np.linalg.norm(matrix(dictionary, 1), 2) ** 2 <= dictionary.lipschitz()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@each_boundary
def test_analysis_is_the_adjoint_of_synthesis(boundary: str, dtype: Any) -> None:
    """⟨Dz, x⟩ = ⟨z, D'x⟩ to a few roundings of the product of their norms."""
    D = filters(18, 5, 4, 3).astype(dtype)
    sides = {"full": (25, 18), "valid": (20, 21), "circular": (21, 12)}[boundary]
    dictionary = LocalDictionary(D, sides, 3, boundary)
    x = draw(2, *sides, 3).astype(dtype)
    z = draw(2, *dictionary.maps_shape).astype(dtype)
    image, maps = dictionary.synthesize(z), dictionary.analyze(x)
    assert image.dtype == maps.dtype == dtype
    one, two = ((a.astype(float) * b).sum() for a, b in ((image, x), (z, maps)))
    assert abs(one - two) < 4 * np.finfo(dtype).eps * np.linalg.norm(image) * np.linalg.norm(x)


@each_boundary
@each_size
def test_slopes_are_the_gradient_in_the_filters(
    period: int, u: int, size: Any, places: Any, boundary: str
) -> None:
    """⟨D z, x⟩ is linear in the filters: its gradient is what each of their numbers gives."""
    dictionary = made(period, u, size, places, boundary, 2)
    x, z = draw(2, *dictionary.image_shape, 2), draw(2, *dictionary.maps_shape, seed=2)
    found = dictionary.slopes(x, z)
    for at in list(np.ndindex(found.shape))[::7]:
        moved = dictionary.filters.copy()
        moved[at] += 1
        other = LocalDictionary(moved, dictionary.image_shape, period, boundary)
        wanted = ((other.synthesize(z) - dictionary.synthesize(z)) * x).sum()
        assert abs(found[at] - wanted) < 1e-11


@each_boundary
def test_a_period_of_one_is_convolution(boundary: str) -> None:
    D = filters(3, 3, 2, 2)
    one = LocalDictionary(D, (7, 6), 1, boundary, mask=True)
    two = ConvDictionary(D, (7, 6), boundary, mask=True)
    assert one.maps_shape == two.maps_shape
    x, z = draw(2, 7, 6, 2), draw(2, *two.maps_shape)
    np.testing.assert_allclose(one.synthesize(z), two.synthesize(z), atol=1e-13)
    np.testing.assert_allclose(one.analyze(x), two.analyze(x), atol=1e-13)
    np.testing.assert_allclose(one.slopes(x, z), two.slopes(x, z), atol=1e-12)
    if boundary == "full":
        np.testing.assert_array_equal(one.weights, two.weights)


def test_dictionaries_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="places of a period are wanted, got 3, no multiple of 4"):
        LocalDictionary(filters(3), (8, 7), 2)
    with pytest.raises(ValueError, match=r"have 7×6 places .* crop 1 rows and 0 columns"):
        LocalDictionary(filters(4), (9, 7), 2)
    with pytest.raises(ValueError, match="images of 2×7 are smaller than the filters"):
        LocalDictionary(filters(4), (2, 7), 2)


# ---------------------------------------------------------------- pools of maps


def pool_matrix(size: int, sigma: Any, h: int, w: int, wraps: bool) -> np.ndarray:
    """Weights of the places (columns) in the pool around each (rows), from those of a torus that is
    too large for pools to meet its other side."""
    H, W = (h, w) if wraps else (h + size, w + size)
    whole = torus_pools(H, W, size, sigma=sigma)
    inside = np.array([i * W + j for i in range(h) for j in range(w)])
    return whole[np.ix_(inside, inside)] / whole[0].sum()


@pytest.mark.parametrize("wraps", [False, True])
@pytest.mark.parametrize(("size", "sigma"), [(1, None), (2, None), (3, 0.8), (4, 1.5)])
@pytest.mark.parametrize(("period", "u"), [(1, 1), (2, 2), (3, 1)])
def test_pools_of_maps_are_those_of_codes(
    wraps: bool, size: int, sigma: Any, period: int, u: int
) -> None:
    """Across the borders of tiles: neighbours are those of the image."""
    weights = np.kron(pool_matrix(size, sigma, 6, 6, wraps), np.ones((1, u)))
    codes = PooledL1(weights, 0.7, 0.2)
    maps = MapPools(size, sigma, 0.7, 0.2).at(wraps, period)
    z = draw(4, 6, 6, u) * np.array([2, 1, 0.1, 0])[:, None, None, None]
    rows, tiles = z.reshape(4, -1), tiled(z, period)

    def flat(values: np.ndarray) -> np.ndarray:
        return untiled(values, period).reshape(4, -1)

    np.testing.assert_allclose(maps.code_value(tiles), codes.code_value(rows), rtol=1e-12)
    np.testing.assert_allclose(flat(maps.code_grad(tiles)), codes.code_grad(rows), atol=1e-13)
    v = draw(4, 6, 6, u, seed=2)
    found = flat(tiled(v, period) / maps.shrinkage(tiles, 0.6))
    np.testing.assert_allclose(found, codes.prox(v.reshape(4, -1), 0.6, rows), atol=1e-13)


def test_pools_keep_single_numbers_single_and_sum_in_double() -> None:
    z = draw(2, 6, 6, 4).astype(np.float32)
    pools = MapPools(3, 1.0, 0.7).at(False, 2)
    assert pools.code_value(z).dtype == np.float64
    assert pools.code_grad(z).dtype == pools.shrinkage(z, 0.3).dtype == np.float32
    np.testing.assert_allclose(pools.code_value(z), pools.code_value(z.astype(float)), rtol=1e-6)
    # Of one place, and δ far below the codes, they are the lasso's.
    one = MapPools(1, None, 0.7, 1e-9).code_value(z.astype(float).reshape(2, 12, 12, 1))
    np.testing.assert_allclose(one, L1(0.7).code_value(z.astype(float).reshape(2, -1)), rtol=1e-6)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("mask", [False, True])
def test_codes_are_those_of_the_dictionary_written_out(
    positive: bool, alpha: float, mask: bool
) -> None:
    """The energy is convex: two points whose slopes are small have the same, to their square."""
    D, u, P = filters(8, 3, 2), 2, 2
    dictionary = LocalDictionary(D, (8, 7), P, "full", mask)
    root = np.sqrt(1 if dictionary.weights is None else dictionary.weights)
    x = 2 * draw(3, 8, 7, 1)
    f = draw(3, *dictionary.places, u, seed=4)
    if positive:
        f = abs(f)
    pull: Any = {"alpha": alpha, "prediction": tiled(f, P)} if alpha else {}
    settings: dict[str, Any] = {"positive": positive, "tol": 1e-9, "max_iter": 20_000}
    pools = MapPools(3, None, 0.8, 0.2)
    found = conv_fista(dictionary, x, 0.8, penalty=pools.at(False, P), **settings, **pull)
    assert found.gap.max() <= 1e-9 and found.n_iter < 20_000
    weights = np.kron(pool_matrix(3, None, 6, 6, False), np.ones((1, u)))
    rows = (root * np.ones((8, 7, 1))).reshape(-1, 1) * matrix(dictionary, u)
    other = PooledL1(weights, 0.8, 0.2)
    if alpha:
        settings |= {"alpha": alpha, "prediction": f.reshape(3, -1)}
    wanted = sparse_codes(rows, (root * x).reshape(3, -1), other, **settings)
    np.testing.assert_allclose(untiled(found.z, P).reshape(3, -1), wanted.h, atol=1e-6)


# ---------------------------------------------------------------- encoders


@each_boundary
@pytest.mark.parametrize(
    "encoder",
    [ConvShrinkEncoder(), ConvSmoothShrinkEncoder(), ConvTanhEncoder(), ConvLISTAEncoder(2)],
    ids=repr,
)
def test_gradients_of_encoders_are_central_differences(encoder: Any, boundary: str) -> None:
    encoder = encoder.at(boundary, 2)
    sides = {"full": (6, 5), "valid": (6, 5), "circular": (6, 4)}[boundary]
    x = draw(2, *sides, 2)
    params = encoder.init(filters(4, 3, 2, 2), 0.3, x)
    for i, key in enumerate(encoder.names):
        params[key] = params[key] + 0.1 * draw(*params[key].shape, seed=i)
    params |= encoder.feasible(params)
    code, cache = encoder.forward(params, x)
    weights = draw(*code.shape, seed=9)
    grads, dx = encoder.backward(params, cache, weights, need_dx=True)

    def loss(params: Any, x: Any) -> float:
        return float((weights * encoder.forward(params, x)[0]).sum())

    step = 1e-6
    for key, grad in [*grads.items(), ("x", dx)]:
        at = x if key == "x" else params[key]
        for flat in np.random.default_rng(3).permutation(at.size)[:20]:
            moved = [np.array(at), np.array(at)]
            moved[0].flat[flat] += step
            moved[1].flat[flat] -= step
            both = [loss(params, m) if key == "x" else loss(params | {key: m}, x) for m in moved]
            # Rounding of a sum of at most 500 terms over 2e-6.
            assert abs(grad.flat[flat] - (both[0] - both[1]) / (2 * step)) < 5e-7, key


# ---------------------------------------------------------------- the model


def quick(**settings: Any) -> LocalPSD:
    given: dict[str, Any] = {"period": 2, "filter_size": 3, "random_state": 0, "tol": 1e-2}
    return LocalPSD(trainer=EnergyLoss(n_epochs=1, batch_size=5), **given | settings)


def test_a_period_of_one_with_l1_is_convolutional() -> None:
    X = draw(10, 7, 8)
    shared: dict[str, Any] = {"filter_size": 3, "penalty": L1(0.4), "random_state": 0}
    shared |= {"trainer": EnergyLoss(n_epochs=3, batch_size=5), "tol": 1e-8}
    one = LocalPSD(2, period=1, replace=False, **shared).fit(X)
    two = ConvPSD(2, algorithm="fista", replace=False, **shared).fit(X)
    np.testing.assert_array_equal(one.components_, two.components_)
    np.testing.assert_array_equal(one.transform(X), two.transform(X))
    np.testing.assert_array_equal(one.energy(X), two.energy(X))
    assert one.strength_ == two.strength_


def planted() -> tuple[np.ndarray, np.ndarray]:
    """Images of 4 filters that lie at their own places of a period of 2, 4 % of these on."""
    y, x = np.mgrid[-2:3, -2:3]
    D = draw(4, 5, 5, seed=0) * np.exp(-(x * x + y * y) / 4)
    D = unit_filters(D[..., None])
    dictionary, rng = LocalDictionary(D, (16, 16), 2), np.random.default_rng(1)
    shape = 40, *dictionary.maps_shape
    z = rng.standard_normal(shape) * (rng.random(shape) < 0.04)
    x = dictionary.synthesize(z)
    return D, x + 10**-1.5 * x.std() * rng.standard_normal(x.shape)


@pytest.mark.parametrize("kind", [L1, MapPools])
def test_planted_filters_are_found_at_their_places(kind: Any) -> None:
    """From filters that are as much like noise as like the planted ones."""
    D, X = planted()
    start = unit_filters(D) + 0.25 * draw(*D.shape, seed=5)
    penalty = L1(0.1) if kind is L1 else MapPools(1, None, 0.1)
    model = LocalPSD(period=2, filter_size=5, dictionary=start, penalty=penalty, joint=False)
    model.set_params(tol=2e-2, max_iter=100, random_state=0)
    model.set_params(trainer=EnergyLoss(n_epochs=1, learning_rate=1e-9))

    def cosines(model: Any) -> np.ndarray:
        return abs((model.params_["D"] * D).sum(axis=(1, 2, 3)))

    before = cosines(model.fit(X))  # the negative control
    model.set_params(trainer=EnergyLoss(n_epochs=8, batch_size=5, learning_rate=0.5))
    after = cosines(model.fit(X))
    assert before.max() < 0.8 and after.min() > 0.9


def test_maps_of_larger_images_are_those_of_smaller_ones() -> None:
    X = draw(4, 19, 20)
    model = quick(filter_size=(4, 5)).fit(X[:, :9, :10])
    whole = model.transform(X)
    assert whole.shape == (4, 16, 16, 1)
    # A period on, the same units see the image: 4 rows and 6 columns.
    part = model.transform(X[:, 4:15, 6:18])
    np.testing.assert_allclose(whole[:, 4:12, 6:14], part, atol=1e-13)
    other = model.transform(X[:, 5:16, 6:18])  # the negative control: other units
    assert np.abs(whole[:, 5:13, 6:14] - other).max() > 1e-2


def test_best_codes_far_from_the_border_are_those_of_a_larger_image() -> None:
    X = draw(2, 26, 20)
    model = quick(exact=True, tol=1e-6, max_iter=5000).fit(X[:, :10, :10])
    whole, part = model.transform(X), model.transform(X[:, :18])
    off = np.abs(whole[:, :16] - part).max(axis=(0, 2, 3))
    # Near the cut codes are of another problem; what is left of it decays with distance.
    assert off[:3].max() < 0.02 * np.abs(part).max() < off[-3:].max()


def test_shapes_and_the_way_back() -> None:
    X = draw(10, 8, 12).astype(np.float32)
    model = quick(n_components=2).fit(X)
    assert model.filters_.shape == (2, 2, 2, 3, 3) and model.components_.shape == (8, 9)
    Z = model.transform(X)
    assert Z.shape == (10, 6, 10, 2) and Z.dtype == np.float32
    np.testing.assert_allclose(model.inverse_transform(Z), model.reconstruct(X), atol=1e-5)
    best = model.set_params(exact=True).transform(X)
    assert best.shape == Z.shape and model.dual_gap(X).max() <= 1e-2
    # A unit's filter is where `filters_` says.
    one = np.zeros((1, 6, 10, 2), np.float32)
    one[0, 3, 4, 1] = 1
    image = model.inverse_transform(one)[0]
    np.testing.assert_allclose(image[3:6, 4:7], model.filters_[1, 0, 1], atol=1e-6)
    assert quick(boundary="valid").fit(X).transform(X).shape == (10, 10, 14, 1)
    assert quick(boundary="circular").fit(X).transform(X).shape == (10, 8, 12, 1)
    assert quick(positive=True).fit(X).transform(X).min() >= 0
    colours = draw(10, 8, 8, 3)
    model = quick().fit(colours)
    assert model.filters_.shape == (2, 2, 1, 3, 3, 3)
    assert model.reconstruct(colours).shape == colours.shape
    few = {"n_steps": 2, "sampler": HMC(2, 0.05)}
    assert model.sample(2, shape=(12, 10), **few).shape == (2, 12, 10, 3)


def test_dead_filters_are_replaced_and_others_stay() -> None:
    model = quick()
    D, usage = filters(4), np.array([1.0, 1e-9, 2.0, 1.0])
    D[3] = D[2]  # of another place, and no double
    assert model.wasted_filters(D, usage).tolist() == [1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"period": 0}, "LocalPSD.period must be an integer >= 1"),
        ({"period": 4}, r"period of 4, which does not divide the 6×6 .* crop 2 rows and 2 columns"),
        ({"period": 7}, "does not divide the 6×6 places .* take larger ones"),
        ({"dictionary": np.ones((3, 3, 3))}, r"dictionary must have shape \(4, 3, 3\)"),
        ({"penalty": MapPools(strength=0.0)}, "λ must be > 0"),
        ({"penalty": MapPools(0)}, "MapPools.size must be an integer >= 1"),
        ({"penalty": MapPools(sigma=0.0)}, "MapPools.sigma must be > 0"),
        ({"penalty": MapPools(epsilon=0.0)}, "MapPools.epsilon must be > 0"),
        ({"penalty": MapPools(strength=-1.0)}, "MapPools.strength must be >= 0"),
        ({"penalty": Student(1.0)}, r"solved for MapPools or L1\(λ\) alone"),
        ({"penalty": MapPools(), "sparsity": 0.1}, "so give one"),
        ({"boundary": "same"}, "boundary must be one of"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quick(**settings).fit(draw(10, 8, 8))


def test_images_that_cannot_be_are_refused() -> None:
    model = quick().fit(draw(10, 8, 8))
    with pytest.raises(ValueError, match="does not divide the 7×6 places"):
        model.transform(draw(2, 9, 8))
    with pytest.raises(ValueError, match=r"the 6×7 places of images of 8×9; crop 0 rows and 1 col"):
        model.sample(shape=(8, 9))
    with pytest.raises(ValueError, match="X has smaller images"):
        model.transform(draw(2, 2, 8))
    with pytest.raises(ValueError, match=r"decodes maps of shape .* in tiles of 2×2"):
        model.inverse_transform(draw(2, 5, 6, 1))
