"""Losses of energies: their slopes, what margins they keep, and how several points are taken."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from energyscape.losses import (
    LVQ2,
    MCE,
    MEE,
    NLL,
    POOLINGS,
    Energy,
    Hinge,
    Log,
    Perceptron,
    SquareExponential,
    SquareSquare,
)

ALL = [
    Energy(),
    Perceptron(),
    Hinge(0.7),
    Log(),
    LVQ2(1.3),
    MCE(),
    SquareSquare(0.7),
    SquareExponential(0.5),
    NLL(0.8),
    MEE(1.5),
]


def _value(loss: Any, p: np.ndarray, q: np.ndarray, pooling: str = "sum") -> np.ndarray:
    return loss.evaluate(p, q - loss.margins(p, q), pooling)[0]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("loss", ALL, ids=repr)
def test_slopes_are_central_differences(loss: Any, pooling: str) -> None:
    rng = np.random.default_rng(0)
    p, q, h = rng.normal(size=20), rng.normal(size=(3, 20)), 1e-6
    value, at_p, at_q = loss.evaluate(p, q - loss.margins(p, q), pooling)
    assert value.shape == p.shape and at_q.shape == q.shape
    up, down = (_value(loss, p + s * h, q, pooling) for s in (1, -1))
    np.testing.assert_allclose(at_p, (up - down) / (2 * h), atol=1e-7)
    for k in range(3):
        step = h * (np.arange(3) == k)[:, None]
        up, down = (_value(loss, p, q + s * step, pooling) for s in (1, -1))
        np.testing.assert_allclose(at_q[k], (up - down) / (2 * h), atol=1e-7)


# Formulas as printed in table 2 of the tutorial (square-square with its plus), one point each.
TABLE = [
    (Energy(), lambda p, q: p),
    (Perceptron(), lambda p, q: max(0.0, p - q)),
    (Hinge(0.7), lambda p, q: max(0.0, 0.7 + p - q)),
    (Log(), lambda p, q: math.log(1 + math.exp(p - q))),
    (LVQ2(1.3), lambda p, q: min(1.3, max(0.0, p - q))),
    (MCE(), lambda p, q: 1 / (1 + math.exp(q - p))),
    (SquareSquare(0.7), lambda p, q: p * p + max(0.0, 0.7 - q) ** 2),
    (SquareExponential(0.5), lambda p, q: p * p + 0.5 * math.exp(-q)),
    (NLL(0.8), lambda p, q: p + math.log(math.exp(-0.8 * p) + math.exp(-0.8 * q)) / 0.8),
    (MEE(1.5), lambda p, q: 1 - math.exp(-1.5 * p) / (math.exp(-1.5 * p) + math.exp(-1.5 * q))),
]


@pytest.mark.parametrize(("loss", "formula"), TABLE, ids=lambda a: repr(a)[:20])
def test_losses_are_those_of_the_table(loss: Any, formula: Any) -> None:
    p, q = np.random.default_rng(1).uniform(0, 3, (2, 50))
    wanted = [formula(*pair) for pair in zip(p, q, strict=True)]
    np.testing.assert_allclose(_value(loss, p, q[None]), wanted, rtol=1e-12)


def keeps(loss: Any, margin: float, low: float) -> bool:
    """Condition 2 on a grid of energies from ``low`` to 4: some pair with p + m < q costs less than
    every pair without."""
    p, q = np.meshgrid(np.linspace(low, 4, 81), np.linspace(low, 4, 81))
    cost = _value(loss, p.ravel(), q.reshape(1, -1))
    apart = p.ravel() + margin < q.ravel() - 1e-12
    return bool(cost[apart].min() < cost[~apart].min() - 1e-12)


@pytest.mark.parametrize(
    ("loss", "margin", "low"),
    [
        (Hinge(0.7), 0.65, -4.0),
        (Log(), 1.0, -4.0),
        (MCE(), 1.0, -4.0),
        (NLL(0.8), 1.0, -4.0),
        (MEE(1.5), 1.0, -4.0),
        (SquareSquare(0.7), 0.65, 0.0),
        (SquareExponential(0.5), 1.0, 0.0),
    ],
    ids=repr,
)
def test_declared_margins_are_kept(loss: Any, margin: float, low: float) -> None:
    assert keeps(loss, margin, low)


@pytest.mark.parametrize("loss", [Energy(), Perceptron(), LVQ2()], ids=repr)
def test_three_losses_keep_none(loss: Any) -> None:
    assert not keeps(loss, 0.1, -4.0)
    assert not keeps(loss, 0.1, 0.0)


def test_a_hinge_keeps_its_margin_and_no_more() -> None:
    assert not keeps(Hinge(0.7), 0.75, -4.0)
    assert not keeps(SquareSquare(0.7), 0.75, 0.0)


def test_the_minus_of_the_slides_pulls_the_wrong_way() -> None:
    """p² - max(0, m - q)², as printed, would keep no margin: its least cost is at q = 0."""

    class Printed(SquareSquare):
        def value(self, p: np.ndarray, q: np.ndarray) -> np.ndarray:
            return p * p - np.minimum(q, 0) ** 2

    assert not keeps(Printed(0.7), 0.65, 0.0)


def test_margins_may_depend_on_both_ends() -> None:
    x, away = np.zeros((4, 2)), np.arange(16.0).reshape(2, 4, 2)
    loss = Hinge(lambda x, y: abs(y - x).sum(axis=2))
    q = np.zeros((2, 4))
    value, _, _ = loss.evaluate(np.zeros(4), q - loss.margins(x, away), "sum")
    np.testing.assert_allclose(value, abs(away).sum(axis=(0, 2)))


def test_poolings_of_several_points() -> None:
    p, q = np.zeros(1), np.array([[0.0], [2.0]])
    (total,) = _value(Hinge(1.0), p, q, "sum")
    (worst,) = _value(Hinge(1.0), p, q, "worst")
    (soft,) = _value(Hinge(1.0), p, q, "softmax")
    assert total == pytest.approx(1.0) and worst == pytest.approx(1.0)
    assert soft == pytest.approx(1 + math.log((math.exp(0) + math.exp(-2)) / 2))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (Hinge(0), "Hinge.margin must be > 0 or callable, got 0"),
        (SquareSquare(-1), "SquareSquare.margin must be > 0"),
        (LVQ2(0), "LVQ2.ceiling must be > 0"),
        (SquareExponential(math.inf), "SquareExponential.weight must be > 0"),
        (NLL(0), "NLL.beta must be > 0"),
        (MEE(-1), "MEE.beta must be > 0"),
    ],
    ids=repr,
)
def test_bad_settings_are_named(loss: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss.validate()
