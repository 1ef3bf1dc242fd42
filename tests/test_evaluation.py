"""`diagnose` names planted faults and nothing on a good model; a learning rate is found."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES, short
from sklearn.exceptions import NotFittedError

import energyscape
from energyscape.data import load_digits
from energyscape.errors import CapabilityError
from energyscape.evaluation import diagnose
from energyscape.evaluation.diagnose import auc
from energyscape.models import RBM, GaussianRBM, KMeans
from energyscape.optim import SGD, Constant
from energyscape.trainers import PCD

X = load_digits()[0]


class PushOnly(PCD):
    """A trainer that forgot its negative phase."""

    def points(self, *args: Any) -> Any:
        passed, weights = super().points(*args)
        weights[weights < 0] = 0
        return passed, weights


def _rbm(rate: float = 0.1, trainer: type = PCD, epochs: int = 200, **settings: Any) -> RBM:
    optimizer = SGD(rate, **settings)
    return RBM(64, trainer=trainer(n_epochs=epochs, optimizer=optimizer), random_state=0)


@pytest.fixture(scope="module")
def good() -> RBM:
    return _rbm().fit(X)


def _names(model: Any, rows: np.ndarray = X) -> list[str]:
    return [finding.name for finding in diagnose(model, rows).findings]


def _planted(good: RBM, change: Any) -> RBM:
    model = copy.deepcopy(good)
    change(model._state.params)
    return model


def _noise(params: Any) -> None:
    W, mean = params["W"], params["mean_v"]
    field = mean @ W + params["c"]
    # Half as strong as the strokes: dense noise of their strength digs minima of its own, which is
    # another fault and named first.
    W[...] = np.random.default_rng(0).standard_normal(W.shape) * (0.5 * W.std())
    params["c"][...] = field - mean @ W


def _twins(params: Any) -> None:
    params["W"][:, :8], params["c"][:8] = params["W"][:, 8:16], params["c"][8:16]


def _bias(value: float) -> Any:
    def change(params: Any) -> None:
        params["c"][:16] = value

    return change


def test_a_good_model_has_no_finding(good: RBM) -> None:
    result = diagnose(good, X)
    assert result.findings == [], str(result)
    assert result.activations.shape == (len(X), 64)
    assert set(result.energies) == {"data", "jittered", "shuffled", "uniform", "samples"}
    assert result.numbers["parameters"] == 64 * 64 + 64 + 64
    assert result.numbers["multiply_adds_per_row"] == 64 * 64
    assert "no finding" in str(result)


def test_a_good_gaussian_model_has_no_finding() -> None:
    trainer = PCD(n_epochs=100, n_chains=500, learning_rate=0.01)
    assert _names(GaussianRBM(64, trainer=trainer, random_state=0).fit(X)) == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (_bias(-60.0), "dead units"),
        (_bias(60.0), "saturated units"),
        (_twins, "duplicated units"),
        (_noise, "noise filters"),
    ],
)
def test_planted_units_are_named(good: RBM, change: Any, name: str) -> None:
    assert _names(_planted(good, change)) == [name]


def test_correlated_filters_are_named(good: RBM) -> None:
    def lean(params: Any) -> None:
        """Every filter half its own, half one and the same."""
        W = params["W"]
        W += 2 * np.abs(W).mean()

    assert "correlated filters" in _names(_planted(good, lean))
    assert "correlated filters" not in _names(good)


@pytest.mark.parametrize("rate", [1e-5, 1e-4])
def test_a_rate_that_is_too_low_is_named(rate: float) -> None:
    assert _names(_rbm(rate).fit(X)) == ["learning rate too low"]


@pytest.mark.filterwarnings("ignore::energyscape.errors.SamplerWarning")
@pytest.mark.parametrize("rate", [10.0, 100.0])
def test_a_rate_that_is_too_high_is_named(rate: float) -> None:
    model = _rbm(rate, epochs=100, schedule=Constant()).fit(X)
    assert _names(model) == ["learning rate too high"]


def test_a_missing_pull_up_is_named() -> None:
    assert "no pull-up" in _names(_rbm(trainer=PushOnly, epochs=100).fit(X))


@pytest.mark.filterwarnings("ignore::energyscape.errors.DataRangeWarning")
def test_unscaled_data_are_named() -> None:
    assert "unscaled data" in _names(_rbm(epochs=50).fit(X * 255), X * 255)


def test_findings_say_cause_and_remedy(good: RBM, tmp_path: Path) -> None:
    result = diagnose(_planted(good, _bias(-60.0)), X)
    assert str(result.findings[0]).startswith("dead units: 25% of the units are never on. Fewer")
    result.save_png(tmp_path / "d.png")
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")


def test_filters_are_judged_as_images_only() -> None:
    model = RBM(4, trainer=PCD(n_epochs=1), random_state=0).fit(X[:, :40])
    assert "filter_smoothness" not in diagnose(model, X[:, :40]).numbers
    assert "filter_smoothness" in diagnose(model, X[:, :40], image_shape=(5, 8)).numbers
    with pytest.raises(ValueError, match="does not hold 40 features"):
        diagnose(model, X[:, :40], image_shape=(5, 5))
    with pytest.raises(NotFittedError):
        diagnose(RBM(), X)


def test_auc_counts_ties_half() -> None:
    assert auc(np.array([1.0, 2.0]), np.array([0.0, 1.0])) == pytest.approx((0.5 + 1 + 1 + 1) / 4)


@pytest.mark.slow
@pytest.mark.parametrize("model", [RBM(32, random_state=0), GaussianRBM(32, random_state=0)])
def test_the_rate_found_holds_and_the_next_does_not(model: Any) -> None:
    rate = energyscape.find_learning_rate(model, X, start=1e4)
    assert 1e-3 < rate < 1e4
    trainer = model.default_trainer().set_params(
        learning_rate=None, n_epochs=17, optimizer=SGD(rate, schedule=Constant())
    )
    assert np.isfinite(model.set_params(trainer=trainer).fit(X).score(X))
    assert energyscape.find_learning_rate(model, X, start=rate) == rate


def test_a_hopeless_search_says_so(monkeypatch: Any) -> None:
    from energyscape.evaluation import learning_rate

    monkeypatch.setattr(learning_rate, "_holds", lambda trial, x: False)
    with pytest.raises(ValueError, match="RBM diverges at every rate down to"):
        energyscape.find_learning_rate(RBM(4, random_state=0), X)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::energyscape.errors.SamplerWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_model_can_be_looked_at(case: Any, monkeypatch: Any) -> None:
    """Whatever its parameters are called, and whether or not there are chains to draw from."""
    own = sys.modules["energyscape.evaluation.diagnose"]
    for name, few in (("_SAMPLES", 50), ("_SAMPLE_STEPS", 20)):
        monkeypatch.setattr(own, name, few)
    model = case.make(trainer=short(case.trainers[0], n_epochs=2), random_state=0).fit(case.data)
    if not (model.proper or hasattr(model, "sample_exact") or hasattr(model, "regenerate")):
        pytest.skip("its energy is that of no density: there are no samples to look at")
    numbers = diagnose(model, case.data).numbers
    assert numbers["parameters"] > 0 and np.isfinite(numbers["multiply_adds_per_row"])


_OF_IMAGES = [c for c in CASES if hasattr(c.make(), "takes_images")]
_ONE_OF_EACH = {type(c.make()): c for c in reversed(_OF_IMAGES)}.values()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::energyscape.errors.SamplerWarning")
@pytest.mark.parametrize("case", _ONE_OF_EACH, ids=lambda case: case.name)
def test_models_of_grey_images_can_be_looked_at(case: Any, monkeypatch: Any) -> None:
    """Images (n, h, w), without an axis of channels."""
    own = sys.modules["energyscape.evaluation.diagnose"]
    for name, few in (("_SAMPLES", 20), ("_SAMPLE_STEPS", 5)):
        monkeypatch.setattr(own, name, few)
    grey = case.data[:30, ..., 0]
    assert grey.ndim == 3
    model = case.make(trainer=short(case.trainers[0], n_epochs=1), random_state=0).fit(grey)
    assert diagnose(model, grey).activations.shape[0] == 30


def test_codes_that_are_no_probabilities_are_not_called_saturated() -> None:
    assert not {"saturated", "dead"} & set(_names(KMeans(4, random_state=0).fit(X)))


def test_a_trainer_without_a_rate_is_told_apart() -> None:
    with pytest.raises(CapabilityError, match="EM takes no learning rate"):
        energyscape.find_learning_rate(KMeans(4), X)
