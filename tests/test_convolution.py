"""Convolution is scipy's correlation, its adjoint is one, and gradients are central differences."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import standin
from scipy.signal import correlate

from energyscape import convolution, strips
from energyscape.backend import to_host
from energyscape.convolution import (
    adjoint,
    convolve,
    filters_grad,
    overlap_add,
    pool,
    pool_grad,
    windows,
)

MODES = ["valid", "full", "same"]
SIZES = [(1, 1), (3, 3), (2, 4), (4, 3)]


def _inputs(size: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, 7, 6, 3)), rng.standard_normal((4, *size, 3))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_convolution_is_scipys_correlation(size: tuple[int, int], mode: str) -> None:
    """Sums of 48 products of numbers of order 1: rounding stays below 1e-13."""
    x, filters = _inputs(size)
    y = convolve(x, filters, mode)
    for n in range(len(x)):
        for k in range(len(filters)):
            parts = [correlate(x[n, :, :, c], filters[k, :, :, c], mode) for c in range(3)]
            np.testing.assert_allclose(y[n, :, :, k], sum(parts), atol=1e-13)
    turned = convolve(x, filters[:, ::-1, ::-1], mode)
    assert size == (1, 1) or abs(turned - y).max() > 0.1  # a convolution in the strict sense


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_the_adjoint_is_one(size: tuple[int, int], mode: str) -> None:
    """⟨Ax, y⟩ = ⟨x, A'y⟩ = ⟨f, gradient in f⟩, because A x is linear in x and in f."""
    x, filters = _inputs(size)
    y = convolve(x, filters, mode)
    dy = np.random.default_rng(1).standard_normal(y.shape)
    product = (y * dy).sum()
    back = adjoint(dy, filters, mode)
    grad = filters_grad(x, dy, size, mode)
    assert back.shape == x.shape and grad.shape == filters.shape
    scale = np.linalg.norm(y) * np.linalg.norm(dy)
    assert abs((x * back).sum() - product) < 1e-12 * scale
    assert abs((filters * grad).sum() - product) < 1e-12 * scale
    # A negative control: the adjoint of turned filters is not that of these.
    wrong = adjoint(dy, filters[:, ::-1, ::-1], mode)
    assert size == (1, 1) or abs((x * wrong).sum() - product) > 1e-6 * scale


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("at_once", [1, 400, 10**9])
def test_blocks_of_strips_do_not_change_products(
    monkeypatch: pytest.MonkeyPatch, at_once: int, dtype: Any
) -> None:
    """Products of windows, whether these are rows of one image, some images or all; some of the
    blocks are shorter. Sums of 36, 72 and 175 products of order 1, which reach 50."""
    monkeypatch.setattr(strips, "_FEWEST", 2)
    for name in ("_STRIPS", "_MAPS", "_TABLES"):
        monkeypatch.setattr(strips, name, at_once)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 7, 10, 3)).astype(dtype)
    filters = rng.standard_normal((6, 3, 4, 3)).astype(dtype)
    dy = rng.standard_normal((5, 5, 7, 6)).astype(dtype)
    cut, atol = windows(x, (3, 4)), 1000 * np.finfo(dtype).eps
    y, back, grad = convolve(x, filters), adjoint(dy, filters), filters_grad(x, dy, (3, 4))
    assert y.dtype == back.dtype == grad.dtype == dtype
    np.testing.assert_allclose(y, np.einsum("nijabc,kabc->nijk", cut, filters), atol=atol)
    np.testing.assert_allclose(grad, np.einsum("nijabc,nijk->kabc", cut, dy), atol=atol)
    rows = np.einsum("nijk,kabc->nijabc", dy, filters).reshape(5, 35, 36)
    np.testing.assert_allclose(back, overlap_add(rows, (3, 4), x.shape), atol=atol)
    around = back[:, :, :7].copy()
    around[:, :, :3] += back[:, :, 7:]
    np.testing.assert_allclose(strips.spread(dy, filters, wraps=True), around, atol=atol)


def test_rows_of_windows_multiply_as_if_they_were_made() -> None:
    """Sums of at most 72 products of numbers of order 1: rounding stays below 1e-12."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 7, 9, 3))
    made, rows = windows(x, (2, 4)).reshape(-1, 24), strips.WindowRows(x, (2, 4))
    W, y = rng.standard_normal((24, 5)), rng.standard_normal((len(made), 5))
    assert rows.shape == made.shape and len(rows) == len(made) and rows.dtype == made.dtype
    np.testing.assert_allclose(rows @ W, made @ W, atol=1e-12)
    np.testing.assert_allclose(rows.T @ y, made.T @ y, atol=1e-12)
    np.testing.assert_array_equal(rows - 2 * made, -made)


@pytest.mark.parametrize("stride", [(1, 1), (2, 3), (5, 1)])
@pytest.mark.parametrize("at_once", [1, 1000, 10**9])
def test_windows_add_up_where_they_lie(
    monkeypatch: pytest.MonkeyPatch, at_once: int, stride: tuple[int, int]
) -> None:
    """The adjoint of cutting them out, however many images are added up together."""
    monkeypatch.setattr(convolution, "_PLANES_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 7, 9, 3))
    cut = windows(x, (2, 4), stride)
    rows = rng.standard_normal((5, cut.shape[1] * cut.shape[2], 2 * 4 * 3))
    product = (cut.reshape(rows.shape) * rows).sum()
    assert (x * overlap_add(rows, (2, 4), x.shape, stride)).sum() == pytest.approx(product, 1e-12)


def test_windows_of_no_images_and_of_others() -> None:
    assert overlap_add(np.zeros((0, 18, 24)), (2, 4), (0, 7, 6, 3)).shape == (0, 7, 6, 3)
    with pytest.raises(ValueError, match=r"have shape \(5, 18, 24\), got \(5, 17, 24\)"):
        overlap_add(np.zeros((5, 17, 24)), (2, 4), (5, 7, 6, 3))


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_central_differences(mode: str) -> None:
    """Linear functions: differences of step 1 are exact but for rounding, about 1e-13."""
    x, filters = _inputs((2, 3))
    dy = np.random.default_rng(1).standard_normal(convolve(x, filters, mode).shape)
    grads = adjoint(dy, filters, mode), filters_grad(x, dy, (2, 3), mode)
    for which, at in [(0, (1, 2, 3, 0)), (0, (0, 6, 5, 2)), (1, (3, 1, 0, 2)), (1, (0, 0, 2, 1))]:
        sides = []
        for sign in (1, -1):
            moved = [x.copy(), filters.copy()]
            moved[which][at] += sign
            sides.append((convolve(*moved, mode) * dy).sum())
        assert grads[which][at] == pytest.approx((sides[0] - sides[1]) / 2, abs=1e-11)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, f: convolve(x[0], f),
        lambda x, f: convolve(x, f[..., :2]),
        lambda x, f: convolve(x, f, "circular"),
        lambda x, f: convolve(x[:, :2], f),
        lambda x, f: adjoint(x, f),
        lambda x, f: filters_grad(x, x, (3, 3)),
    ],
)
def test_wrong_shapes_are_named(call: Any) -> None:
    x, filters = _inputs((3, 3))
    with pytest.raises(ValueError, match=r"wanted|mode must be|do not fit|give valid responses"):
        call(x, filters)


def test_windows_step_and_share_memory() -> None:
    x = np.arange(2 * 5 * 6 * 1.0).reshape(2, 5, 6, 1)
    found = windows(x, (2, 3), (2, 3))
    assert found.shape == (2, 2, 2, 2, 3, 1) and np.shares_memory(found, x)
    np.testing.assert_array_equal(found[1, 1, 1], x[1, 2:4, 3:6])
    turned = x.swapaxes(1, 2)  # any memory layout
    np.testing.assert_array_equal(windows(turned, (2, 2))[0, 3, 2], turned[0, 3:5, 2:4])


# ---------------------------------------------------------------- pooling


def _regions(length: int, parts: int) -> list[slice]:
    """By the words of the docstring, one at a time."""
    edges = [int(np.floor(i * length / parts + 0.5)) for i in range(parts + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("kind", ["max", "mean", "sum"])
@pytest.mark.parametrize(
    ("shape", "regions"),
    [
        ((6, 8), {"size": 2}),
        ((6, 8), {"size": (3, 4)}),
        ((7, 5), {"grid": 2}),
        ((7, 5), {"grid": (3, 5)}),
    ],
)
def test_pooling_is_by_region(shape: tuple[int, int], regions: Any, kind: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, *shape, 2))
    y = pool(x, kind, **regions)
    value = next(iter(regions.values()))
    pair = np.array((value, value) if isinstance(value, int) else value)
    grid = pair if "grid" in regions else np.array(shape) // pair
    assert y.shape == (3, *grid, 2)
    for i, rows in enumerate(_regions(shape[0], grid[0])):
        for j, columns in enumerate(_regions(shape[1], grid[1])):
            wanted = getattr(x[:, rows, columns], kind)(axis=(1, 2))
            np.testing.assert_allclose(y[:, i, j], wanted, rtol=1e-13, atol=1e-13)


def test_twenty_seven_places_are_split_as_in_the_paper() -> None:
    """The first part of 27 has round(27 / 2) = 14 in MATLAB."""
    x = np.ones((1, 27, 27, 1))
    areas = pool(x, "sum", grid=2)[0, :, :, 0]
    np.testing.assert_array_equal(areas, np.outer([14, 13], [14, 13]))


@pytest.mark.parametrize("kind", ["max", "mean", "sum"])
@pytest.mark.parametrize("regions", [{"size": (3, 2)}, {"grid": (2, 3)}, {"grid": 4}])
def test_pooling_gradients_are_central_differences(regions: Any, kind: str) -> None:
    """Steps of 1e-6: no two values are so close that another becomes the largest."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 8, 2))
    dy = rng.standard_normal(pool(x, kind, **regions).shape)
    grad, numeric = pool_grad(dy, x, kind, **regions), np.empty_like(x)
    for at in np.ndindex(x.shape):
        sides = []
        for sign in (1, -1):
            moved = x.copy()
            moved[at] += sign * 1e-6
            sides.append((pool(moved, kind, **regions) * dy).sum())
        numeric[at] = (sides[0] - sides[1]) / 2e-6
    # Rounding of a sum of order 10 divided by the step.
    np.testing.assert_allclose(grad, numeric, atol=1e-8)


def test_equal_largest_values_share_the_gradient() -> None:
    dy = np.array([6.0]).reshape(1, 1, 1, 1)
    x = np.array([[1.0, 2.0], [2.0, 2.0]]).reshape(1, 2, 2, 1)
    grad = pool_grad(dy, x, "max", size=2)
    assert grad.ravel().tolist() == [0, 2, 2, 2]


def test_float32_sums_are_accurate() -> None:
    """A plain float32 sum of 256² equal numbers, one after the other, is off by 1e-3 and more."""
    x = np.full((1, 256, 256, 1), 0.1, np.float32)
    y = pool(x, "sum", grid=1)
    assert y.dtype == np.float32
    # 256 additions in float32 at most: 256 roundings of 2^-24.
    assert y.item() == pytest.approx(float(np.float32(0.1)) * 65536, rel=256 * 2.0**-24)


@pytest.mark.parametrize(
    ("kind", "regions", "message"),
    [
        ("sum", {}, "one of size and grid"),
        ("sum", {"size": 2, "grid": 2}, "one of size and grid"),
        ("sum", {"size": 4}, "crop these to 4×4"),
        ("sum", {"grid": 8}, "finer than maps of 7×5"),
        ("sum", {"grid": 0}, "grid must be an int >= 1 or two"),
        ("median", {"grid": 1}, "kind must be"),
    ],
)
def test_wrong_regions_are_named(kind: str, regions: Any, message: str) -> None:
    x = np.zeros((1, 7, 5, 1))
    for call in (lambda: pool(x, kind, **regions), lambda: pool_grad(x, x, kind, **regions)):
        with pytest.raises(ValueError, match=message):
            call()


def test_both_kinds_of_arrays_agree(cupy: Any) -> None:
    x, filters = _inputs((2, 3))
    dy = np.random.default_rng(1).standard_normal((2, 6, 4, 4))

    def results(xp: Any) -> list[Any]:
        a, f, d = xp.asarray(x), xp.asarray(filters), xp.asarray(dy)
        found = [convolve(a, f), adjoint(d, f), filters_grad(a, d, (2, 3)), convolve(a, f, "same")]
        for kind in ("max", "mean", "sum"):
            y = pool(a, kind, grid=(3, 2))
            found += [y, pool_grad(y, a, kind, grid=(3, 2)), pool(a, kind, size=(7, 3))]
        return found

    wanted = results(np)
    standin.Counter.syncs = 0
    found = results(cupy)
    assert standin.Counter.syncs == 0
    for a, b in zip(found, wanted, strict=True):
        assert isinstance(a, cupy.ndarray)
        np.testing.assert_allclose(to_host(a), b, atol=1e-12)


def test_the_stand_in_has_strides_as_cupy_has() -> None:
    real = pytest.importorskip("cupy", reason="CuPy is not installed")
    found = real.lib.stride_tricks
    assert [name for name in standin.STRIDES if not hasattr(found, name)] == []


@pytest.mark.parametrize("kind", ["sum", "mean", "max"])
def test_bytes_do_not_overflow(kind: str) -> None:
    x = np.full((1, 4, 4, 1), 200, np.uint8)
    found = pool(x, kind, size=2)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, 800 if kind == "sum" else 200)


def test_sums_of_bytes_do_not_overflow() -> None:
    x = np.full((1, 4, 4, 2), 200, np.uint8)
    out = convolve(x, np.ones((1, 3, 3, 2), np.uint8))
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, 3600)
