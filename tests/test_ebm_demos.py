"""The lectures' example: gradients of both architectures, and which losses make them collapse."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

FILE = Path(__file__).parents[1] / "docs" / "examples" / "ebm_demos.py"


@pytest.fixture
def demos(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("ebm_demos", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ebm_demos", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["Regression", "Implicit"])
def test_slopes_are_central_differences(name: str, demos: ModuleType) -> None:
    architecture, rng = getattr(demos, name)(), np.random.default_rng(0)
    params = architecture.init_params(rng)
    x, y = rng.uniform(-1, 1, 5), rng.uniform(-1, 1, (3, 5))
    weights = rng.standard_normal((3, 5))
    grads = architecture.evaluate(params, x, y)[1](weights)
    assert grads.keys() == params.keys()
    for key, value in params.items():
        for at in np.ndindex(value.shape):
            sides = []
            for sign in (1, -1):
                moved = value.copy()
                moved[at] += sign * 1e-6
                energy = architecture.evaluate(params | {key: moved}, x, y)[0]
                sides.append((weights * energy).sum())
            assert grads[key][at] == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-7)


def test_wrong_answers_are_wrong(demos: ModuleType) -> None:
    """At least ε from y, in the place of those that are not; the perceptron's are all."""
    y = np.linspace(0, 1, 30)
    away = abs(demos.answers(demos.LOSSES["square-square"], y) - y)
    assert away.shape == (demos.ANSWERS, 30) and away.min() > demos.EPSILON - 1e-12
    assert abs(demos.answers(demos.LOSSES["perceptron"], y) - y).min() < 0.025 + 1e-12


@pytest.mark.slow
def test_what_collapses_and_what_does_not(demos: ModuleType, tmp_path: Path) -> None:
    """A with no loss; B with the energy loss, and the perceptron keeps nothing of a margin of 1."""
    found = demos.demos()
    fate: dict[tuple[str, str], Any] = {(a[0], loss): one for (a, loss), one in found.items()}
    for (architecture, loss), one in fate.items():
        if architecture == "A":
            assert not one.collapsed and one.auc > 0.95, loss
    assert fate["B", "energy"].collapsed
    assert fate["B", "energy"].spread < 0.01 * fate["B", "energy"].before
    assert fate["B", "perceptron"].spread < 1
    for loss in ("square-square", "NLL"):
        one = fate["B", loss]
        assert not one.collapsed and one.spread > 1 and one.auc > 0.95, loss
    demos.picture(found, tmp_path / "energies.png")
    assert (tmp_path / "energies.png").stat().st_size > 10_000
