"""Penalties against central differences, brute-force Jacobians, and the cases that are known."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import standin
from sklearn.base import clone
from streams import ReplayStream

from energyscape import penalties
from energyscape.layers import (
    Identity,
    LayerPass,
    Relu,
    SaturatedLinear,
    Shrink,
    Sigmoid,
    SmoothShrink,
    Tanh,
    TopK,
    backward_chain,
)
from energyscape.penalties import (
    KL,
    L1,
    Contractive,
    HessianContractive,
    Hutchinson,
    KSparse,
    Lifetime,
    Saturating,
    Student,
)
from energyscape.registry import from_tree, to_tree

SIZES = [5, 4, 3, 4]
SMOOTH = [Sigmoid(), Tanh(), SmoothShrink(0.5, 3.0)]
UNIT = [Sigmoid(), SaturatedLinear(), Sigmoid()]
FLAT = [Relu(), Shrink(0.2), SaturatedLinear()]
CASES: list[tuple[Any, list[Any]]] = [
    (L1(0.7), SMOOTH),
    (L1(0.7), [Relu(), Shrink(0.2), Identity()]),
    (Student(0.7), SMOOTH),
    (KL(0.1, 0.7), UNIT),
    (Contractive(0.7), SMOOTH),
    (Contractive(0.7), [Identity(), Relu(), Sigmoid()]),
    (HessianContractive(0.7, 0.9, 0.5, 2), SMOOTH),
    (Hutchinson(0.7, 2), SMOOTH),
    (Hutchinson(0.7), [Sigmoid(), Relu(), Tanh()]),
    (Saturating(0.7), FLAT),
]
KINKS = {"Relu": [0.0], "Shrink": [-0.2, 0.2], "SaturatedLinear": [0.0, 0.5, 1.0]}
CLOSE = 1e-7  # relative error of a gradient: STEP² f'''/6 with rounding 1e-16/STEP, both ~ 1e-9
STEP = 1e-5


def label(case: Any) -> str:
    return "-".join(type(v).__name__ for v in (case[0], *case[1]))


each_case = pytest.mark.parametrize("case", CASES, ids=label)


def encoder(rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    x = rng.standard_normal((6, SIZES[0]))
    return x, [
        (1.5 * rng.standard_normal((d, k)) / np.sqrt(d), 0.3 * rng.standard_normal(k))
        for d, k in pairwise(SIZES)
    ]


def forward(x: Any, params: Any, activations: list[Any], masks: Any = None) -> list[LayerPass]:
    passes = []
    for i, ((W, c), f) in enumerate(zip(params, activations, strict=True)):
        passes.append(LayerPass(x, W, c, f))
        kinks = KINKS.get(type(f).__name__, [])
        assert all(abs(passes[-1].a - kink).min() > 20 * STEP for kink in kinks)
        if masks is not None:
            passes[-1].keep(masks[i])
        x = passes[-1].h
    return passes


def chain_error(
    penalty: Any,
    activations: list[Any],
    rng: np.random.Generator,
    spoil: Any = None,
    masks: Any = None,
) -> float:
    """Largest relative error of the gradient in all W and c along random directions."""
    x, params = encoder(rng)

    def value(params: Any) -> float:
        return float(penalty(forward(x, params, activations, masks), ReplayStream(np, 3))[0])

    passes = forward(x, params, activations, masks)
    _, extras = penalty(passes, ReplayStream(np, 3))
    if spoil is not None:
        spoil(extras)
    grads, _ = backward_chain(passes, np.zeros_like(passes[-1].h), extras)
    worst = 0.0
    for _ in range(3):
        _, moves = encoder(rng)
        ends = [
            value([(W + t * U, c + t * b) for (W, c), (U, b) in zip(params, moves, strict=True)])
            for t in (STEP, -STEP)
        ]
        parts = [
            v
            for (g, e), (U, b) in zip(grads, moves, strict=True)
            for v in ((g * U).sum(), (e * b).sum())
        ]
        size = np.abs(parts).sum()
        worst = max(worst, abs(sum(parts) - (ends[0] - ends[1]) / (2 * STEP)) / size)
    return worst


@each_case
def test_the_gradient_in_all_parameters_is_the_central_difference(
    case: Any, rng: np.random.Generator
) -> None:
    assert chain_error(*case, rng) < CLOSE


@each_case
def test_and_with_units_that_are_dropped(case: Any, rng: np.random.Generator) -> None:
    masks = [1.5 * rng.integers(0, 2, (6, k)) for k in SIZES[1:]]
    if type(case[0]) is KL:
        masks = [mask / 1.5 for mask in masks]
    assert chain_error(*case, rng, masks=masks) < CLOSE


@each_case
def test_differences_tell_a_wrong_gradient(case: Any, rng: np.random.Generator) -> None:
    """A part of the gradient that is left out, or 1 % too large, shows."""

    def without_w(extras: Any) -> None:
        extras[1].W = None

    def scaled_a(extras: Any) -> None:
        extras[0].a *= 1.01

    if type(case[0]) in (Contractive, HessianContractive, Hutchinson):
        assert chain_error(*case, rng, spoil=without_w) > 1e-3
    if type(case[1][0]) is not Identity:
        assert chain_error(*case, rng, spoil=scaled_a) > 1e-5


def free_layer(x: Any, W: Any, c: Any, a: Any, f: Any) -> LayerPass:
    """A layer whose pre-activations are given, whatever x, W and c are."""
    layer = LayerPass(x, W, c, f)
    layer.a, layer.h = a, f.value(a)
    return layer


@each_case
def test_direct_partials_are_those_of_independent_arrays(
    case: Any, rng: np.random.Generator
) -> None:
    penalty, activations = case
    x, params = encoder(rng)
    plain = forward(x, params, activations)
    arrays = [[p.x, p.W, p.c, p.a] for p in plain]

    def run(arrays: Any) -> Any:
        layers = [free_layer(*four, f) for four, f in zip(arrays, activations, strict=True)]
        return penalty(layers, ReplayStream(np, 3))

    _, grads = run(arrays)
    for i, grad in enumerate(grads):
        for j, key in enumerate(("x", "W", "c", "a")):
            move = rng.standard_normal(arrays[i][j].shape)
            ends = []
            for t in (STEP, -STEP):
                moved = [list(four) for four in arrays]
                moved[i][j] = moved[i][j] + t * move
                ends.append(float(run(moved)[0]))
            partial = getattr(grad, key)
            got = 0.0 if partial is None else (partial * move).sum()
            size = 0.0 if partial is None else abs(partial * move).sum()
            # rounding of the two values, 1e-16 of them each, over the step
            slack = 1e-10 + 1e-15 * abs(ends[0]) / STEP
            assert got == pytest.approx((ends[0] - ends[1]) / (2 * STEP), abs=CLOSE * size + slack)


# ---------------------------------------------------------------- values


def jacobians(passes: list[LayerPass]) -> np.ndarray:
    """∂h/∂x of every row, shape (n, d, k), from the chain of ∂h_l/∂h_{l-1} by differences."""
    n, d = passes[0].x.shape
    total = np.broadcast_to(np.eye(d), (n, d, d))
    for layer in passes:
        f, (m, k) = layer.activation, layer.W.shape
        local = np.empty((n, m, k))
        for j in range(m):
            e = STEP * np.eye(m)[j]
            up, down = (f.value((layer.x + t * e) @ layer.W + layer.c) for t in (1, -1))
            local[:, j] = (up - down) / (2 * STEP)
        total = total @ local
    return total


def test_values_are_their_definitions(rng: np.random.Generator) -> None:
    x, params = encoder(rng)
    passes = forward(x, params, UNIT)
    stream = ReplayStream(np, 3)
    h = [p.h for p in passes]
    assert L1(0.7)(passes, stream)[0] == pytest.approx(
        0.7 * sum(abs(v).sum(axis=1).mean() for v in h), rel=1e-13
    )
    assert Student(0.7)(passes, stream)[0] == pytest.approx(
        0.7 * sum(np.log(1 + v**2).sum(axis=1).mean() for v in h), rel=1e-13
    )
    kl = 0.0
    for v in h:
        q = v.mean(axis=0)
        kl += (0.1 * np.log(0.1 / q) + 0.9 * np.log(0.9 / (1 - q))).sum()
    assert KL(0.1, 0.7)(passes, stream)[0] == pytest.approx(0.7 * kl, rel=1e-12)
    # Jacobians by differences: 1e-10 in each entry
    by_layer = sum((jacobians([p]) ** 2).sum(axis=(1, 2)).mean() for p in passes)
    assert Contractive(0.7)(passes, stream)[0] == pytest.approx(0.7 * by_layer, rel=1e-8)


def test_a_linear_contraction_is_weight_decay(rng: np.random.Generator) -> None:
    x, params = encoder(rng)
    (W, c) = params[0]
    layer = LayerPass(x, W, c, Identity())
    value, (grad,) = Contractive(0.7)([layer], None)
    assert value == pytest.approx(0.7 * (W**2).sum(), rel=1e-14)
    np.testing.assert_allclose(grad.W, 1.4 * W, rtol=1e-14)
    assert not grad.a.any()


def test_the_hessian_term_is_the_mean_change_of_the_jacobian(rng: np.random.Generator) -> None:
    x, params = encoder(rng)
    passes = forward(x, params[:1], SMOOTH[:1])
    value = HessianContractive(0.0, 0.9, 0.5, 3)(passes, ReplayStream(np, 3))[0]
    stream, wanted = ReplayStream(np, 3), 0.0
    for _ in range(3):
        moved = forward(x + 0.5 * stream.normal(x.shape, x.dtype), params[:1], SMOOTH[:1])
        wanted += ((jacobians(moved) - jacobians(passes)) ** 2).sum(axis=(1, 2)).mean() / 3
    assert value == pytest.approx(0.9 * wanted, rel=1e-8)


class AllSigns:
    """Uniforms that stand for every vector of signs, one after another in the rows."""

    def uniform(self, shape: Any, dtype: Any) -> np.ndarray:
        n, k = shape
        bits = (np.arange(n)[:, None] // (n >> k) >> np.arange(k)) & 1
        return (0.75 * bits).astype(dtype)


@pytest.mark.parametrize("activations", [SMOOTH, UNIT, [Tanh(), Relu(), Identity()]])
def test_the_mean_over_all_signs_is_the_jacobian_of_a_deep_encoder(
    activations: list[Any], rng: np.random.Generator
) -> None:
    x, params = encoder(rng)
    exact = (jacobians(forward(x, params, activations)) ** 2).sum(axis=(1, 2)).mean()
    many = forward(np.tile(x, (16, 1)), params, activations)
    assert Hutchinson(0.7)(many, AllSigns())[0] == pytest.approx(0.7 * exact, rel=1e-8)


def test_hutchinson_of_one_layer_averages_to_contractive(rng: np.random.Generator) -> None:
    x, params = encoder(rng)
    ((W, c), f) = params[0], Sigmoid()
    one, many = LayerPass(x, W, c, f), LayerPass(np.tile(x, (16, 1)), W, c, f)
    value, (grad,) = Contractive(0.7)([one], None)
    mean, (average,) = Hutchinson(0.7)([many], AllSigns())
    assert mean == pytest.approx(value, rel=1e-13)
    np.testing.assert_allclose(average.W, grad.W, rtol=1e-11, atol=1e-14)
    by_row = average.a.reshape(16, *one.a.shape).sum(axis=0)
    np.testing.assert_allclose(by_row, grad.a, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("f", [Relu(), Shrink(0.2)], ids=lambda f: type(f).__name__)
def test_saturating_units_that_are_flat_at_zero_pay_l1_bit_for_bit(
    f: Any, dtype: Any, rng: np.random.Generator
) -> None:
    x, params = encoder(rng)
    W, c = params[0]
    for masked in (False, True):
        layer = LayerPass(x.astype(dtype), W.astype(dtype), c.astype(dtype), f)
        if masked:
            layer.keep(2 * rng.integers(0, 2, layer.h.shape).astype(dtype))
        one, (left,) = L1(0.37)([layer], None)
        two, (right,) = Saturating(0.37)([layer], None)
        assert one == two > 0
        assert left.a.dtype == right.a.dtype == dtype
        assert np.array_equal(left.a, right.a)


def test_kl_is_finite_and_its_gradient_small_where_units_are_dead(
    rng: np.random.Generator,
) -> None:
    for dtype in (np.float32, np.float64):
        a = np.array([[-800.0, 800.0, -20.0], [-800.0, 800.0, -25.0]], dtype)
        layer = LayerPass(a, np.eye(3, dtype=dtype), np.zeros(3, dtype), Sigmoid())
        value, (grad,) = KL(0.05, 1.0)([layer], None)
        assert np.isfinite(value)
        assert value > 0
        assert abs(grad.a).max() <= 1.0
        assert grad.a.dtype == dtype


# ---------------------------------------------------------------- arrays


@each_case
def test_float32_agrees(case: Any, rng: np.random.Generator) -> None:
    penalty, activations = case
    penalty = clone(penalty).set_params(strength=np.float64(0.7))  # a NumPy scalar, as grids give
    x, params = encoder(rng)
    exact = penalty(forward(x, params, activations), ReplayStream(np, 3))
    single = [(W.astype(np.float32), c.astype(np.float32)) for W, c in params]
    value, grads = penalty(forward(x.astype(np.float32), single, activations), ReplayStream(np, 3))
    if type(penalty) is not HessianContractive:  # it draws other normals in float32
        assert value == pytest.approx(exact[0], rel=1e-5)
    assert value.dtype == np.float64
    for one, two in zip(exact[1], grads, strict=True):
        for key in ("a", "W"):
            left, right = getattr(one, key), getattr(two, key)
            assert (left is None) == (right is None)
            if right is not None:
                assert right.dtype == np.float32
                if type(penalty) is not HessianContractive:
                    # tens of roundings of 6e-8
                    np.testing.assert_allclose(right, left, atol=1e-5 * abs(left).max())


@each_case
def test_the_device_path_agrees_without_waiting(
    case: Any, cupy: Any, rng: np.random.Generator
) -> None:
    penalty, activations = case
    x, params = encoder(rng)
    masks = [rng.integers(0, 2, (6, k)).astype(float) for k in SIZES[1:]]
    here, there = [], []
    device = cupy.asarray(x)
    for (W, c), f, mask in zip(params, activations, masks, strict=True):
        here.append(LayerPass(x, W, c, f))
        there.append(LayerPass(device, cupy.asarray(W), cupy.asarray(c), f))
        here[-1].keep(mask)
        there[-1].keep(cupy.asarray(mask))
        x, device = here[-1].h, there[-1].h
    value, grads = penalty(here, ReplayStream(np, 3))
    standin.Counter.syncs = 0
    twin, twins = penalty(there, ReplayStream(cupy, 3))
    assert standin.Counter.syncs == 0
    assert twin.shape == ()
    assert float(twin) == pytest.approx(float(value), rel=1e-12)
    for one, two in zip(grads, twins, strict=True):
        for key in ("a", "W", "c", "x"):
            left, right = getattr(one, key), getattr(two, key)
            assert (left is None) == (right is None)
            if left is not None:
                np.testing.assert_allclose(right.get(), left, rtol=1e-11, atol=1e-14)


@each_case
def test_nothing_is_written_to(case: Any, rng: np.random.Generator) -> None:
    penalty, activations = case
    x, params = encoder(rng)
    passes = forward(x, params, activations)
    arrays = [v for p in passes for v in (p.x, p.W, p.c, p.a, p.h, p.slope())]
    kept = [v.copy() for v in arrays]
    first = penalty(passes, ReplayStream(np, 3))[0]
    assert first == penalty(passes, ReplayStream(np, 3))[0]
    assert all(np.array_equal(v, k) for v, k in zip(arrays, kept, strict=True))


# ---------------------------------------------------------------- settings


@each_case
def test_penalties_take_the_activations_that_fit(case: Any) -> None:
    penalty, activations = case
    penalty.check(activations)
    same = from_tree(to_tree(penalty))
    assert same.get_params() == clone(penalty).get_params() == penalty.get_params()


@pytest.mark.parametrize(
    ("penalty", "f", "says"),
    [
        (KL(), Tanh(), r"KL needs codes in \[0, 1\].*Tanh are real"),
        (KL(), Relu(), "Relu are nonneg"),
        (Saturating(), Sigmoid(), "which Sigmoid does not offer.*Relu, SaturatedLinear, Shrink"),
        (Contractive(), TopK(3), "Contractive needs curvature, which TopK does not.*Sigmoid"),
        (HessianContractive(), TopK(3), "HessianContractive needs curvature"),
        (Hutchinson(), TopK(3), "Hutchinson needs curvature"),
    ],
)
def test_other_activations_are_refused(penalty: Any, f: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        penalty.check([Sigmoid() if type(penalty) is not Saturating else Relu(), f])


@pytest.mark.parametrize(
    "wrong",
    [
        L1(-1.0),
        Student(np.nan),
        KL(0.0),
        KL(1.0),
        Contractive(np.inf),
        HessianContractive(hessian_strength=-1.0),
        HessianContractive(noise=0.0),
        HessianContractive(n_draws=0),
        Hutchinson(n_draws=1.5),  # type: ignore[arg-type]
        Saturating(-1.0),
        KSparse(0),
        KSparse(10, start=9),
        KSparse(anneal=0.0),
        Lifetime(0.0),
        Lifetime(1.1),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"{type(wrong).__name__}\\.[a-z_]+ must"):
        wrong.check([SaturatedLinear()])


def test_every_public_name_is_there() -> None:
    assert all(hasattr(penalties, name) for name in penalties.__all__)


# ---------------------------------------------------------------- constraints


def code(rng: np.random.Generator, n: int = 20, k: int = 10) -> LayerPass:
    x = rng.standard_normal((n, 5))
    return LayerPass(x, rng.standard_normal((5, k)), rng.standard_normal(k), Sigmoid())


def test_k_sparse_keeps_the_largest_of_a_row(rng: np.random.Generator) -> None:
    layer = code(rng)
    mask = KSparse(3).mask(layer, 0.0)
    assert mask.dtype == layer.h.dtype
    assert set(np.unique(mask)) == {0, 1}
    for row, kept in zip(layer.a, mask, strict=True):
        assert set(np.flatnonzero(kept)) == set(np.argsort(row)[-3:])
    assert KSparse(10).mask(layer, None).all()


def test_k_sparse_is_annealed_on_a_line(rng: np.random.Generator) -> None:
    slow = KSparse(2, start=10, anneal=0.5)
    at = [0.0, 0.125, 0.25, 0.375, 0.5, 0.8, 1.0, None]
    assert [slow.units(p) for p in at] == [10, 8, 6, 4, 2, 2, 2, 2]
    assert KSparse(2).units(0.0) == 2
    layer = code(rng)
    assert slow.mask(layer, 0.25).sum(axis=1).tolist() == [6] * 20


def test_lifetime_keeps_the_largest_of_a_unit(rng: np.random.Generator) -> None:
    layer = code(rng)
    mask = Lifetime(0.1).mask(layer, 0.5)
    for column, kept in zip(layer.a.T, mask.T, strict=True):
        assert set(np.flatnonzero(kept)) == set(np.argsort(column)[-2:])
    assert Lifetime(1e-9).mask(layer, None).sum(axis=0).tolist() == [1] * 10
    assert Lifetime(1.0).mask(layer, None).all()


@pytest.mark.parametrize("constraint", [KSparse(3, start=5), Lifetime(0.2)])
def test_constraints_on_the_device(constraint: Any, cupy: Any, rng: np.random.Generator) -> None:
    here = code(rng)
    there = LayerPass(*map(cupy.asarray, (here.x, here.W, here.c)), Sigmoid())
    standin.Counter.syncs = 0
    mask = constraint.mask(there, 0.1)
    assert standin.Counter.syncs == 0
    assert np.array_equal(mask.get(), constraint.mask(here, 0.1))
    constraint.check([Sigmoid(), TopK(2)])
    assert from_tree(to_tree(constraint)).get_params() == constraint.get_params()
