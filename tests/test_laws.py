"""Every model obeys the laws, and each law catches the bug that it is there for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import CASES, MACHINES, Case

from energyscape.evaluation.laws import LAWS, check_model
from energyscape.models import RBM, GaussianRBM
from energyscape.trainers import ScoreMatching


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("seed", [0, 1])
def test_model_obeys_the_laws(case: Case, seed: int) -> None:
    checked = check_model(case.make(**case.exact), case.data[:10], random_state=seed)
    wanted = {law.__name__ for law in LAWS}
    if hasattr(case.make(), "takes_images"):  # test_tiled sums out hidden units of windows
        wanted -= {"gibbs_leaves_the_model_invariant", "free_energy_sums_out_hidden_units"}
    if getattr(case.make(), "latents", None) != "minimized":
        wanted -= {"free_energy_is_the_minimum"}
    if case.make().domain == "binary":
        wanted -= {"input_gradient_is_central_difference"}
    else:
        wanted -= {"gibbs_leaves_the_model_invariant"}
        if case not in MACHINES and getattr(case.make(), "latents", None) != "binary":
            wanted -= {"free_energy_sums_out_hidden_units"}
    wanted -= {law for law, verb in OF_CURVATURE.items() if not hasattr(case.make(), verb)}
    assert set(checked) == wanted
    assert (ScoreMatching in case.trainers) == ("score_matching_is_its_definition" in checked)


# Laws of verbs that not every model has.
OF_CURVATURE = {
    "laplacian_is_the_trace_of_second_derivatives": "laplacian",
    "score_matching_is_its_definition": "score_matching",
    "squared_curvature_is_its_definition": "squared_curvature",
}


class WrongSign(RBM):
    def grad_from(self, params: Any, x: Any, hidden: Any, weights: Any) -> Any:
        grads = super().grad_from(params, x, hidden, weights)
        return grads | {"b": -grads["b"]}


class WritesToParams(RBM):
    def scaled(self, params: Any, x: Any) -> Any:
        params["b"] += 1
        return x


class MeanNotSum(RBM):
    def grad_from(self, params: Any, x: Any, hidden: Any, weights: Any) -> Any:
        grads = super().grad_from(params, x, hidden, weights)
        return {k: v / len(x) for k, v in grads.items()}


class BatchDependent(RBM):
    def scaled(self, params: Any, x: Any) -> Any:
        return x - x.mean(axis=0)


class DroppedHiddenUnit(RBM):
    def joint_energy(self, params: Any, x: Any, h: Any) -> Any:
        return super().joint_energy(params, x, h * (np.arange(h.shape[1]) > 0))


class VisibleAtWrongTemperature(RBM):
    def sample_visible(
        self, params: Any, h: Any, rng: Any, beta: Any = 1.0, base: Any = None
    ) -> Any:
        return super().sample_visible(params, h, rng, 1.02 * beta, base)


class BaseForgotten(RBM):
    def sample_visible(
        self, params: Any, h: Any, rng: Any, beta: Any = 1.0, base: Any = None
    ) -> Any:
        return super().sample_visible(params, h, rng, beta, None)


class InputGradientWithoutVariance(GaussianRBM):
    def input_grad_from(self, params: Any, x: Any, hidden: Any, *path: Any) -> Any:
        return x - self.decode(params, hidden)


class NotAdditive(RBM):
    """The verb is right, the pass forgets the signs of the weights."""

    def free_energy_grad(self, params: Any, x: Any, weights: Any) -> Any:
        return super().forward(params, x).grad(weights)

    def forward(self, params: Any, x: Any, beta: Any = 1.0, base: Any = None) -> Any:
        passed = super().forward(params, x, beta, base)
        grad = passed.grad
        passed.grad = lambda weights: grad(abs(weights))  # type: ignore[method-assign]
        return passed


class CurvatureOfOneRow(GaussianRBM):
    def laplacian(self, params: Any, x: Any) -> Any:
        return super().laplacian(params, x)[:1] + 0 * x[:, 0]


class PrintedSign(GaussianRBM):
    """½|∂F/∂x|² + ΔF, as on the slides."""

    def score_matching(self, params: Any, passed: Any, weights: Any) -> Any:
        values, grads = super().score_matching(params, passed, weights)
        return values + 2 * self.laplacian(params, passed.x), grads


class HalfTheGradient(GaussianRBM):
    def squared_curvature(self, params: Any, passed: Any, weights: Any) -> Any:
        values, grads = super().squared_curvature(params, passed, weights)
        return values, {key: value / 2 for key, value in grads.items()}


BROKEN = [
    (NotAdditive, "gradient_is_additive"),
    (WrongSign, "gradient_is_central_difference"),
    (WritesToParams, "read-only"),
    (MeanNotSum, "gradient_is_central_difference"),
    (BatchDependent, "energy_is_free_energy"),
    (DroppedHiddenUnit, "free_energy_sums_out_hidden_units"),
    (VisibleAtWrongTemperature, "gibbs_leaves_the_model_invariant"),
    (BaseForgotten, "gibbs_leaves_the_model_invariant"),
    (InputGradientWithoutVariance, "input_gradient_is_central_difference"),
    (CurvatureOfOneRow, "laplacian_is_the_trace_of_second_derivatives"),
    (PrintedSign, "score_matching_is_its_definition"),
    (HalfTheGradient, "squared_curvature_is_its_definition"),
]


@pytest.mark.parametrize(("model", "law"), BROKEN, ids=lambda v: getattr(v, "__name__", v))
def test_laws_catch_what_they_are_for(model: type, law: str) -> None:
    data = CASES[2 if issubclass(model, GaussianRBM) else 0].data[:10]
    with pytest.raises((AssertionError, ValueError), match=law):
        check_model(model(5), data)
