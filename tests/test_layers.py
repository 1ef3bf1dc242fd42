"""Activations and layers against their definitions: central differences, sums, brute force."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import standin
from sklearn.base import clone

from energyscape.layers import (
    Identity,
    LayerGrad,
    LayerPass,
    Relu,
    SaturatedLinear,
    Shrink,
    Sigmoid,
    SmoothShrink,
    Tanh,
    TopK,
    activation,
    backward_chain,
    largest,
)
from energyscape.registry import from_tree, to_tree

ELEMENTWISE = [
    Identity(),
    Sigmoid(),
    Tanh(),
    Relu(),
    Shrink(0.4),
    SmoothShrink(0.5, 4.0),
    SaturatedLinear(),
]
ALL = [*ELEMENTWISE, TopK(3)]
PRIMITIVE = [f for f in ELEMENTWISE if hasattr(f, "primitive")]
FLAT = [f for f in ALL if hasattr(f, "flat_distance")]
KINKS = np.array([-0.4, 0.0, 0.4, 0.5, 1.0])
STEP = 1e-5


def name(f: Any) -> str:
    return type(f).__name__


def points(rng: np.random.Generator, n: int = 6, k: int = 50) -> np.ndarray:
    """Pre-activations that lie more than 1e-3 from every kink."""
    a = 1.5 * rng.standard_normal((n, k))
    near = abs(a[..., None] - KINKS).min(axis=-1) < 1e-3
    return a + 5e-3 * near


# ---------------------------------------------------------------- activations


@pytest.mark.parametrize("f", ELEMENTWISE, ids=name)
def test_slope_and_curvature_are_central_differences(f: Any, rng: np.random.Generator) -> None:
    a = points(rng)
    h = f.value(a)
    up, down = f.value(a + STEP), f.value(a - STEP)
    # h²f'''/6 ~ 1e-10 times a third derivative of at most β² = 16, rounding 1e-16/1e-5
    np.testing.assert_allclose(f.slope(a, h), (up - down) / (2 * STEP), atol=1e-8)
    bend = (f.slope(a + STEP, up) - f.slope(a - STEP, down)) / (2 * STEP)
    np.testing.assert_allclose(f.curvature(a, h), bend, atol=1e-7)


@pytest.mark.parametrize("f", ALL, ids=name)
def test_values_may_be_written_in_place(f: Any, rng: np.random.Generator) -> None:
    a = points(rng)
    kept = a.copy()
    h = f.value(a)
    f.slope(a, h)
    assert np.array_equal(a, kept)
    assert f.value(a, out=a) is a
    assert np.array_equal(a, h)
    other = np.empty_like(a)
    assert f.value(kept, out=other) is other
    assert np.array_equal(other, h)


@pytest.mark.parametrize("f", ALL, ids=name)
def test_codes_lie_where_they_are_said_to(f: Any, rng: np.random.Generator) -> None:
    h = f.value(10 * rng.standard_normal((50, 4)))
    assert (h.min() >= 0) == (f.codes != "real")
    assert (h.max() <= 1) == (f.codes == "unit" or name(f) == "Tanh")


@pytest.mark.parametrize("f", PRIMITIVE, ids=name)
def test_the_primitive_is_the_integral(f: Any, rng: np.random.Generator) -> None:
    a = points(rng, 4, 7)
    at_0 = 7 * np.log(2) if name(f) == "Sigmoid" else 0.0
    # exact at 0, and f is its derivative in each coordinate; a kink of f costs STEP at most
    np.testing.assert_allclose(f.primitive(np.zeros((4, 7))), at_0, atol=1e-14)
    for j in range(7):
        e = STEP * np.eye(7)[j]
        slope = (f.primitive(a + e) - f.primitive(a - e)) / (2 * STEP)
        np.testing.assert_allclose(slope, f.value(a)[:, j], atol=1e-9)
    assert f.primitive(a.astype(np.float32)).dtype == np.float64
    np.testing.assert_allclose(f.primitive(a.astype(np.float32)), f.primitive(a), rtol=1e-5)


@pytest.mark.parametrize("f", FLAT, ids=name)
def test_the_flat_distance_is_that_to_the_nearest_flat_point(
    f: Any, rng: np.random.Generator
) -> None:
    a = np.clip(points(rng, 4, 30), -3, 3)
    grid = np.linspace(-4, 4, 80_001)
    flat = grid[f.slope(grid[None], f.value(grid[None]))[0] == 0]
    wanted = abs(a[..., None] - flat).min(axis=-1)
    value, slope = f.flat_distance(a)
    np.testing.assert_allclose(value, wanted, atol=1.01e-4)  # one step of the grid
    up, down = f.flat_distance(a + STEP)[0], f.flat_distance(a - STEP)[0]
    np.testing.assert_allclose(slope, (up - down) / (2 * STEP), atol=1e-9)


def test_only_activations_with_a_flat_region_have_a_distance_to_it() -> None:
    assert {name(f) for f in FLAT} == {"Relu", "Shrink", "SaturatedLinear"}
    assert {name(f) for f in ALL if not hasattr(f, "curvature")} == {"TopK"}


def test_the_tent_has_slope_zero_at_its_top_and_outside() -> None:
    a = np.array([[-1.0, 0.0, 0.5, 1.0, 2.0]])
    value, slope = SaturatedLinear().flat_distance(a)
    assert value.tolist() == [[0, 0, 0.5, 0, 0]]
    assert slope.tolist() == [[0, 0, 0, 0, 0]]


@pytest.mark.parametrize(("threshold", "sharpness"), [(1.0, 10.0), (0.3, 2.0), (3.0, 20.0)])
def test_the_smooth_shrink_is_its_formula(threshold: float, sharpness: float) -> None:
    f = SmoothShrink(threshold, sharpness)
    a = np.linspace(-5, 5, 201)[None]
    long = a.astype(np.longdouble)
    inner = np.exp(sharpness * np.longdouble(threshold)) + np.expm1(sharpness * abs(long))
    wanted = np.sign(long) * (np.log(inner) / sharpness - threshold)
    np.testing.assert_allclose(f.value(a), wanted.astype(float), atol=1e-14)
    assert f.value(np.zeros((1, 1)))[0, 0] == 0


def test_the_smooth_shrink_neither_overflows_nor_loses_the_threshold() -> None:
    a = np.array([[-1e4, -30.0, -1.0, 0.0, 1.0, 30.0, 1e4]], np.float32)
    f = SmoothShrink(2.0, 100.0)
    h = f.value(a)  # warnings are errors
    np.testing.assert_allclose(h, Shrink(2.0).value(a), atol=1e-6)
    assert h.dtype == f.slope(a, h).dtype == f.curvature(a, h).dtype == np.float32
    np.testing.assert_allclose(f.slope(a, h), [[1, 1, 0, 0, 0, 1, 1]], atol=1e-6)


def test_top_k_keeps_the_largest_of_each_row(rng: np.random.Generator) -> None:
    a = rng.standard_normal((20, 9)) - 1.0  # the third largest is below 0 in most rows
    h = TopK(3).value(a)
    for row, kept in zip(a, h, strict=True):
        best = np.argsort(row)[-3:]
        assert set(np.flatnonzero(kept)) == set(best)
        assert np.array_equal(kept[best], row[best])
    assert np.array_equal(TopK(3).slope(a, h), h != 0)
    assert np.array_equal(TopK(9).value(a), a)
    assert np.array_equal(TopK(50).value(a), a)


def test_top_k_keeps_all_that_tie_and_knows_a_kept_zero() -> None:
    a = np.array([[1.0, 0, 0, -1], [2.0, 1, 0, -1], [1.0, 0, -1, -1], [0.0, 0, 0, 0]])
    kept = {1: [[1, 0, 0, 0]] * 3 + [[1] * 4], 2: [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]]}
    kept[2] += [[1] * 4]
    kept[3] = [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1] * 4]
    for k, mask in kept.items():
        f = TopK(k)
        assert largest(a, k).tolist() == np.array(mask, bool).tolist()
        assert f.slope(a, f.value(a)).tolist() == mask
    assert largest(a, 1, axis=0).tolist() == [
        [False, False, True, False],
        [True, True, True, False],
        [False, False, False, False],
        [False, False, True, True],
    ]


def test_activations_by_name_and_instance() -> None:
    for which, cls in {"identity": Identity, "linear": Identity, "relu": Relu}.items():
        assert type(activation(which)) is cls
    shrink = Shrink(0.5)
    assert activation(shrink) is shrink
    for f in ALL:
        same = from_tree(to_tree(f))
        assert type(same) is type(f)
        assert same.get_params() == clone(f).get_params() == f.get_params()


@pytest.mark.parametrize("which", ["relux", None, Relu, 3])
def test_what_is_no_activation_is_refused_with_the_names(which: Any) -> None:
    with pytest.raises(ValueError, match=r"'sigmoid', 'tanh'.*got"):
        activation(which)


@pytest.mark.parametrize(
    "wrong",
    [TopK(0), TopK(2.5), Shrink(-1.0), SmoothShrink(0.0), SmoothShrink(1.0, np.inf)],  # type: ignore[arg-type]
)
def test_settings_that_cannot_be_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"{name(wrong)}\\.[a-z]+ must be"):
        activation(wrong)


def test_settings_of_numpy_keep_float32(rng: np.random.Generator) -> None:
    a = rng.standard_normal((3, 4)).astype(np.float32)
    for f in (Shrink(np.float64(0.4)), SmoothShrink(np.float64(0.5), np.float64(4.0))):
        h = f.value(a)
        assert h.dtype == f.slope(a, h).dtype == f.curvature(a, h).dtype == np.float32


# ---------------------------------------------------------------- layers


def weights(rng: np.random.Generator, sizes: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (rng.standard_normal((d, k)) / np.sqrt(d), 0.3 * rng.standard_normal(k))
        for d, k in pairwise(sizes)
    ]


def forward(x: Any, params: Any, activations: list[Any], masks: Any = None) -> list[LayerPass]:
    passes = []
    for i, ((W, c), f) in enumerate(zip(params, activations, strict=True)):
        passes.append(LayerPass(x, W, c, f))
        if masks is not None:
            passes[-1].keep(masks[i])
        x = passes[-1].h
    return passes


def along(params: Any, moves: Any, t: float) -> Any:
    return [(W + t * U, c + t * b) for (W, c), (U, b) in zip(params, moves, strict=True)]


def inner(grads: Any, moves: Any) -> float:
    return float(
        sum((g * U).sum() + (e * b).sum() for (g, e), (U, b) in zip(grads, moves, strict=True))
    )


@pytest.mark.parametrize("f", ALL, ids=name)
@pytest.mark.parametrize("masked", [False, True])
def test_a_layer_goes_backward_as_differences_do(
    f: Any, masked: bool, rng: np.random.Generator
) -> None:
    ((W, c),) = weights(rng, [5, 6])
    x, dh, da = (rng.standard_normal((4, m)) for m in (5, 6, 6))
    mask = 1.5 * rng.integers(0, 2, (4, 6)) if masked else np.ones((4, 6))

    def loss(x: np.ndarray, W: np.ndarray, c: np.ndarray) -> float:
        layer = LayerPass(x, W, c, f)
        layer.keep(mask)
        return float((dh * layer.h).sum() + (da * layer.a).sum())

    layer = LayerPass(x, W, c, f)
    if masked:
        layer.keep(mask)
    kept = da.copy()
    grad = layer.backward(dh.copy(), da)
    assert np.array_equal(da, kept)
    for key, at in {"x": x, "W": W, "c": c}.items():
        move = rng.standard_normal(at.shape)
        args = {"x": x, "W": W, "c": c}
        up, down = (loss(**args | {key: at + t * move}) for t in (STEP, -STEP))
        # third derivatives are of order 100 at most, times STEP²/6
        assert (getattr(grad, key) * move).sum() == pytest.approx((up - down) / 2 / STEP, abs=1e-7)
    assert layer.backward(None, da, need_dx=False).x is None


@pytest.mark.parametrize("f", ELEMENTWISE, ids=name)
def test_slope_and_curvature_are_those_of_the_masked_code(f: Any, rng: np.random.Generator) -> None:
    ((W, c),) = weights(rng, [5, 6])
    x, mask = rng.standard_normal((4, 5)), 2.0 * rng.integers(0, 2, (4, 6))
    for first in (False, True):
        plain, layer = LayerPass(x, W, c, f), LayerPass(x, W, c, f)
        if first:
            layer.slope(), layer.curvature()
        layer.keep(mask)
        layer.keep(mask)
        assert np.array_equal(layer.a, plain.a)
        for got, want in zip(
            (layer.h, layer.slope(), layer.curvature()),
            (plain.h, plain.slope(), plain.curvature()),
            strict=True,
        ):
            np.testing.assert_allclose(got, want * mask * mask, rtol=1e-14)
    assert plain.slope() is plain.slope()
    assert plain.curvature() is plain.curvature()


def test_tied_weights_are_a_view_and_are_not_copied(rng: np.random.Generator) -> None:
    ((W, c),) = weights(rng, [5, 6])
    x, dh = rng.standard_normal((4, 5)), rng.standard_normal((4, 6))
    stored = np.ascontiguousarray(W.T)
    layer, plain = LayerPass(x, stored.T, c, Tanh()), LayerPass(x, W, c, Tanh())
    assert np.shares_memory(layer.W, stored)
    one, two = layer.backward(dh.copy()), plain.backward(dh.copy())
    for key in ("x", "W", "c"):
        np.testing.assert_allclose(getattr(one, key), getattr(two, key), rtol=1e-12)


THREE = [
    [Sigmoid(), Tanh(), SmoothShrink(0.5, 4.0)],
    [Identity(), Relu(), Sigmoid()],
    [Tanh(), SaturatedLinear(), Identity()],
]


def chain_case(
    activations: list[Any], rng: np.random.Generator
) -> tuple[Any, Any, np.ndarray, Any, list[LayerGrad]]:
    """A loss that touches h of the top and every a, W, c and x directly, and its extras."""
    sizes = [5, 4, 3, 4]
    params, x = weights(rng, sizes), rng.standard_normal((6, 5))
    top = rng.standard_normal((6, 4))
    extras = [
        LayerGrad(
            rng.standard_normal((6, k)),
            rng.standard_normal((d, k)),
            rng.standard_normal(k),
            rng.standard_normal((6, d)),
        )
        for d, k in pairwise(sizes)
    ]

    def loss(params: Any, x: np.ndarray) -> float:
        passes = forward(x, params, activations)
        value = (top * passes[-1].h).sum()
        for p, e in zip(passes, extras, strict=True):
            value += (e.a * p.a).sum() + (e.W * p.W).sum() + (e.c * p.c).sum() + (e.x * p.x).sum()
        return float(value)

    return loss, params, x, top, extras


@pytest.mark.parametrize("activations", THREE, ids=lambda fs: "-".join(map(name, fs)))
def test_a_chain_goes_backward_as_differences_do(
    activations: list[Any], rng: np.random.Generator
) -> None:
    loss, params, x, top, extras = chain_case(activations, rng)
    passes = forward(x, params, activations)
    grads, dx = backward_chain(passes, top.copy(), extras, need_dx=True)
    for _ in range(3):
        moves, step = weights(rng, [5, 4, 3, 4]), rng.standard_normal(x.shape)
        up = loss(along(params, moves, STEP), x + STEP * step)
        down = loss(along(params, moves, -STEP), x - STEP * step)
        wanted = (up - down) / (2 * STEP)
        assert inner(grads, moves) + (dx * step).sum() == pytest.approx(wanted, abs=1e-7)
    assert backward_chain(passes, top.copy(), extras)[1] is None


@pytest.mark.parametrize("field", ["a", "W", "c", "x"])
def test_no_extra_may_be_forgotten(field: str, rng: np.random.Generator) -> None:
    loss, params, x, top, extras = chain_case(THREE[0], rng)
    extras = [extras[0], replace(extras[1], **{field: None}), extras[2]]
    grads, dx = backward_chain(forward(x, params, THREE[0]), top.copy(), extras, need_dx=True)
    moves, step = weights(rng, [5, 4, 3, 4]), rng.standard_normal(x.shape)
    up = loss(along(params, moves, STEP), x + STEP * step)
    down = loss(along(params, moves, -STEP), x - STEP * step)
    assert abs(inner(grads, moves) + (dx * step).sum() - (up - down) / (2 * STEP)) > 1e-2


def test_layer_gradients_add_up() -> None:
    total = LayerGrad(a=np.ones(2))
    total.add(LayerGrad(a=np.ones(2), W=np.ones(3)))
    total.add(LayerGrad(W=np.ones(3), c=np.ones(1)))
    assert total.a.tolist() == [2, 2]
    assert total.W.tolist() == [2, 2, 2]
    assert total.c.tolist() == [1]
    assert total.x is None


@pytest.mark.parametrize("f", ALL, ids=name)
def test_float32_agrees_and_stays(f: Any, rng: np.random.Generator) -> None:
    ((W, c),) = weights(rng, [5, 6])
    x, dh = rng.standard_normal((4, 5)), rng.standard_normal((4, 6))
    exact, single = (
        LayerPass(*(v.astype(dtype) for v in (x, W, c)), f) for dtype in (np.float64, np.float32)
    )
    one, two = exact.backward(dh.copy()), single.backward(dh.astype(np.float32))
    # five terms of order 1 each at 6e-8, times slopes of curvature up to β = 4
    for key in ("x", "W", "c"):
        assert getattr(two, key).dtype == np.float32
        np.testing.assert_allclose(getattr(two, key), getattr(one, key), atol=2e-5)


@pytest.mark.parametrize("f", ALL, ids=name)
def test_the_device_path_agrees_without_waiting(
    f: Any, cupy: Any, rng: np.random.Generator
) -> None:
    ((W, c),) = weights(rng, [5, 6])
    arrays = (rng.standard_normal((4, 5)), W, c)
    dh, mask = rng.standard_normal((4, 6)), rng.integers(0, 2, (4, 6)).astype(float)
    here, there = LayerPass(*arrays, f), LayerPass(*map(cupy.asarray, arrays), f)
    standin.Counter.syncs = 0
    here.keep(mask)
    there.keep(cupy.asarray(mask))
    pairs = [(here.h, there.h)]
    one, two = here.backward(dh.copy()), there.backward(cupy.asarray(dh))
    pairs += [(getattr(one, key), getattr(two, key)) for key in ("x", "W", "c")]
    if hasattr(f, "curvature"):
        pairs.append((here.curvature(), there.curvature()))
    if hasattr(f, "primitive"):
        pairs.append((f.primitive(here.a), f.primitive(there.a)))
    if hasattr(f, "flat_distance"):
        pairs += zip(f.flat_distance(here.a), f.flat_distance(there.a), strict=True)
    assert standin.Counter.syncs == 0
    for host, device in pairs:
        np.testing.assert_allclose(device.get(), host, rtol=1e-12, atol=1e-14)
