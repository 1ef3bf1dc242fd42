"""`compare`: each measure against what it is by definition, planted truths that must win, budgets
that are kept, and pairs that cannot be.

Where a test asserts something statistical, its bound is five or more standard errors: it fails by
chance less than once in 10^6 (two-sided 6e-7 at five).
"""

from __future__ import annotations

import csv
import json
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from cases import CASES, Case
from scipy.sparse import csr_matrix
from scipy.special import logsumexp
from scipy.stats import norm

import energyscape
from energyscape import cli
from energyscape.backend import Purpose, stream
from energyscape.callbacks import EarlyStopping
from energyscape.evaluation import metrics
from energyscape.evaluation.comparison import Comparison
from energyscape.evaluation.metrics import Measure
from energyscape.models import (
    PCA,
    RBM,
    GaussianMixture,
    GaussianRBM,
    KMeans,
    OvercompleteICA,
    TiledRBM,
)
from energyscape.samplers import AIS
from energyscape.trainers import CD, EM, PCD, ClosedForm, PseudoLikelihood

compare = energyscape.compare
AWAY = 5  # standard errors


# ---------------------------------------------------------------- measures


def _away(measure: Measure, truth: float) -> float:
    return abs(measure.value - truth) / measure.error


def test_the_energy_distance_is_its_definition(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((7, 3)), rng.standard_normal((5, 3)) + 0.5

    def direct(x: np.ndarray, y: np.ndarray) -> float:
        def mean(a: np.ndarray, b: np.ndarray, apart: bool) -> float:
            return float(
                np.mean(
                    [
                        np.linalg.norm(p - q)
                        for i, p in enumerate(a)
                        for j, q in enumerate(b)
                        if not (apart and i == j)
                    ]
                )
            )

        return 2 * mean(x, y, False) - mean(x, x, True) - mean(y, y, True)

    found = metrics.energy_distance(x, y)
    assert found.value == pytest.approx(direct(x, y), abs=1e-12)
    left = [direct(np.delete(x, i, 0), y) for i in range(7)]
    jackknife = 6 / 7 * np.sum((np.array(left) - np.mean(left)) ** 2)
    left = [direct(x, np.delete(y, j, 0)) for j in range(5)]
    jackknife += 4 / 5 * np.sum((np.array(left) - np.mean(left)) ** 2)
    assert found.error**2 == pytest.approx(jackknife, rel=1e-10)


def test_the_energy_distance_of_normals_is_that_of_their_distribution_functions() -> None:
    """2 ∫ (F - G)², in one dimension."""
    rng = np.random.default_rng(1)
    grid = np.linspace(-10, 10, 20001)
    truth = 2 * np.trapezoid((norm.cdf(grid) - norm.cdf(grid, 0.5, 1.5)) ** 2, grid)
    x, y = rng.standard_normal((1500, 1)), 0.5 + 1.5 * rng.standard_normal((1000, 1))
    found = metrics.energy_distance(x, y)
    assert _away(found, truth) < AWAY
    assert found.error < 0.2 * truth  # the bound above says something


def test_the_energy_distance_of_equals_is_zero_on_average() -> None:
    rng = np.random.default_rng(2)
    found = [
        metrics.energy_distance(rng.standard_normal((40, 2)), rng.standard_normal((50, 2)))
        for _ in range(200)
    ]
    values = np.array([f.value for f in found])
    assert abs(values.mean()) < AWAY * values.std() / np.sqrt(200)
    # The jackknife's error is, on average, not too small.
    assert np.mean([f.error**2 for f in found]) > 0.9 * values.var()


def test_auc_of_perfect_void_and_inverted_energies() -> None:
    low, high = np.arange(10.0), np.arange(20.0) + 100
    assert metrics.separation(low, high).value == 1
    assert metrics.separation(high, low).value == 0
    void = metrics.separation(np.zeros(10), np.zeros(30))
    assert (void.value, void.error) == (0.5, 0)


def test_the_error_of_an_auc_is_its_spread() -> None:
    """The ratio of the deviation of 400 values to the mean error: ± 1/√800 = 3.5 % by chance."""
    rng = np.random.default_rng(3)
    found = [
        metrics.separation(rng.standard_normal(60), 1 + rng.standard_normal(40)) for _ in range(400)
    ]
    values, errors = np.array([f.value for f in found]), np.array([f.error for f in found])
    truth = norm.cdf(1 / np.sqrt(2))
    assert abs(values.mean() - truth) < AWAY * values.std() / 20
    assert abs(values.std() / errors.mean() - 1) < AWAY * 0.035 + 0.03
    direct = (np.subtract.outer([2.0, 1.0], [1.0, 0.0, 3.0]) > 0).mean() + 0.5 / 6
    assert metrics.auc(np.array([2.0, 1.0]), np.array([1.0, 0.0, 3.0])) == pytest.approx(direct)


def test_differences_are_of_the_same_rows() -> None:
    rng = np.random.default_rng(4)
    hard = 10 * rng.standard_normal(100)
    one = metrics.mean_of(hard + 0.01 * rng.standard_normal(100))
    other = metrics.mean_of(hard + 0.1 + 0.01 * rng.standard_normal(100))
    assert other.better(one, larger=True) and not one.better(other, larger=True)
    assert one.better(other, larger=False)
    assert one.error > 0.5 > AWAY * one.difference_error(other)
    # An interval of log Z counts against the claim.
    unsure = Measure(other.value, other.parts, below=0.2)
    assert not unsure.better(one, larger=True)
    assert not other.better(Measure(one.value, one.parts, above=0.2), larger=True)


def _bits(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Noisy copies of three patterns."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(99).integers(0, 2, (3, d))
    return (patterns[rng.integers(0, 3, n)] ^ (rng.random((n, d)) < 0.1)).astype(np.float64)


def test_the_pseudo_likelihood_is_that_of_conditionals() -> None:
    X = _bits(60, 5)
    model = RBM(4, trainer=PCD(n_epochs=20, learning_rate=0.3), random_state=0).fit(X)
    states = ((np.arange(32)[:, None] >> np.arange(5)) & 1).astype(np.float64)
    log_p = dict(zip(map(tuple, states), -model.energy(states), strict=True))
    total = 0.0
    for x in X:
        for d in range(5):
            other = x.copy()
            other[d] = 1 - x[d]
            pair = [log_p[tuple(x)], log_p[tuple(other)]]
            total += pair[0] - logsumexp(pair)
    found = metrics.pseudo_likelihood(model, X)
    assert found is not None and found.value == pytest.approx(total / 300, abs=1e-10)
    assert metrics.pseudo_likelihood(KMeans(2).fit(X), X) is None


def test_the_score_of_a_gaussian() -> None:
    """½ tr(P S P) - tr P with the precision P, at rows of covariance S."""
    rng = np.random.default_rng(5)
    X = rng.standard_normal((400, 3)) @ np.diag([1.0, 2.0, 0.5])
    X -= X.mean(axis=0)
    P, S = np.diag([0.5, 2.0, 1.0]), X.T @ X / 400
    v = np.where(rng.random((2, *X.shape)) < 0.5, -1.0, 1.0)
    found = metrics.sliced(lambda x: x @ P, X, v, 1.5)
    truth = (0.5 * np.trace(P @ S @ P) - np.trace(P)) * 1.5**2 / 3
    assert found.value == pytest.approx(truth, rel=1e-6)
    # A diagonal H has v'Hv = tr H for signs v: no other direction would do better.
    model = GaussianMixture(1, reg_covar=0.0, trainer=EM()).fit(X)
    own, other = (metrics.score_matching(m, X, v, 1.0) for m in (model, _widened(X)))
    assert own is not None and other is not None and own.better(other, larger=False)
    # In float32, too.
    model = GaussianMixture(1, reg_covar=0.0, trainer=EM()).fit(X.astype(np.float32))
    single = metrics.score_matching(model, X.astype(np.float32), v, 1.0)
    assert single is not None and single.value == pytest.approx(own.value, rel=1e-3)
    assert metrics.score_matching(PCA(2).fit(X), X, v, 1.0) is None
    assert metrics.score_matching(KMeans(2).fit(X), X, v, 1.0) is None  # it has kinks


def _widened(X: np.ndarray) -> GaussianMixture:
    return GaussianMixture(1, reg_covar=0.0, trainer=EM()).fit(1.5 * X)


def test_an_exact_likelihood_is_the_score() -> None:
    X = _bits(60, 5)
    model = RBM(4, trainer=PCD(n_epochs=3), random_state=0).fit(X)
    found = metrics.log_likelihood(model, X, X, AIS(), 0)
    assert found is not None and found.value == pytest.approx(model.score(X), abs=1e-12)
    assert (found.found, found.below, found.above) == ("exact", 0, 0)


def test_an_estimated_likelihood_holds_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    X = _bits(200, 8)
    model = RBM(6, trainer=PCD(n_epochs=60, learning_rate=0.2), random_state=0).fit(X)
    exact = model.score(X)
    monkeypatch.setattr(RBM, "_sums_exactly", lambda self, params: False)
    found = metrics.log_likelihood(model, X, X, AIS(100, 300), 0)
    assert found is not None and found.found == "AIS"
    # 95 % intervals of a seed; three times as wide ones are ones of far less than 1e-6.
    assert found.value - 3 * found.below - 1e-3 < exact < found.value + 3 * found.above + 1e-3
    assert 0 < found.above < 0.2


def test_a_model_without_a_base_is_annealed_from_a_student() -> None:
    """Against a sum over a grid, in two dimensions."""
    X = np.random.default_rng(6).laplace(size=(500, 2)) @ np.array([[1.0, 0.5], [0, 1]])
    model = OvercompleteICA(3, trainer=CD(n_epochs=5), random_state=0).fit(X)
    side = np.linspace(-60, 60, 1201)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    log_z = float(logsumexp(-model.energy(grid))) + 2 * np.log(side[1] - side[0])
    found = metrics.log_likelihood(model, X, X, AIS(100, 200), 0)
    assert found is not None and found.found == "AIS"
    exact = -float(model.energy(X).mean()) - log_z
    assert found.value - 3 * found.below - 0.01 < exact < found.value + 3 * found.above + 0.01


# ---------------------------------------------------------------- planted truths


def _mixture(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = np.array([[-4.0, 0], [4, 0], [0, 6]])
    return centers[rng.integers(0, 3, n)] + rng.standard_normal((n, 2))


def test_the_mixture_that_made_the_rows_wins() -> None:
    X = _mixture(800, 0)
    result = compare(
        {k: GaussianMixture(int(k), random_state=1) for k in "13"},
        {"EM": EM(n_init=3)},
        X,
        rows=200_000,
        random_state=0,
    )
    assert result.best("log_density") == [("3", "EM")]
    assert result.best("score_matching") == result.best("auc_shuffled") == [("3", "EM")]
    assert result.best("energy_distance") == [("3", "EM")]
    right, gaussian = result.rows[1], result.references[1]
    assert gaussian["model"] == "Gaussian"
    assert right["log_density_by"] == "exact"
    # One Gaussian is the reference, but for the least variance that each of them adds.
    assert result.rows[0]["log_density"] == pytest.approx(gaussian["log_density"], abs=1e-3)
    # The density of the truth itself.
    truth = logsumexp([norm.logpdf(X - c).sum(1) for c in [(-4, 0), (4, 0), (0, 6)]], axis=0)
    truth = (truth - np.log(3)).mean()
    assert abs(right["log_density"] - truth) < AWAY * right["log_density_error"] + 0.05
    text = str(result)
    assert "Best by log density (nats): 3 / EM\n" in text
    assert text.endswith("Most often the best, or not told from it: 3 / EM (5 of 5 measures).")
    assert right["energy_distance"] < AWAY * right["energy_distance_error"]


def test_the_machine_that_made_the_rows_wins() -> None:
    """Rows of a machine of three hidden units: three of them beat one, and independent bits."""
    planted = RBM(3, centered=False, trainer=PCD(n_epochs=1), random_state=0).fit(_bits(60, 10))
    rng = np.random.default_rng(7)
    W = 3.0 * rng.standard_normal((10, 3))
    planted._state.params["W"][...] = W
    planted._state.params["b"][...] = -0.5 * W.sum(axis=1)
    planted._state.params["c"][...] = -0.5 * W.sum(axis=0)
    X = planted.sample_exact(planted._params, 1200, stream(0, Purpose.SAMPLE))
    trainer = PCD(learning_rate=0.3, batch_size=50)
    result = compare({"three": RBM(3), "one": RBM(1)}, [trainer], X, rows=60_000, n_steps=20)
    assert result.best("log_probability") == [("three", "PCD")]
    assert result.best("pseudo_likelihood") == [("three", "PCD")]
    three, one = result.rows
    bits = result.references[1]
    assert bits["model"] == "independent bits"
    assert three["log_probability"] > one["log_probability"] > bits["log_probability"]
    # What the planted machine gives on rows of its own, up to what was not learned.
    truth = planted.score(X)
    assert truth - 0.5 < three["log_probability"] < truth + AWAY * three["log_probability_error"]


def test_features_are_judged_by_their_labels() -> None:
    X = _mixture(600, 1)
    y = (X[:, 1] > 3).astype(int)
    result = compare([KMeans(3), PCA(1)], [EM(), ClosedForm()], X, y, rows=20_000)
    status = {(r["model"], r["trainer"]): r["status"] for r in result.rows}
    assert status == {
        ("KMeans", "EM"): "trained",
        ("KMeans", "ClosedForm"): "refused",
        ("PCA", "EM"): "refused",
        ("PCA", "ClosedForm"): "trained",
    }
    rows = {r["model"]: r for r in result.rows if r["status"] == "trained"}
    assert 0.9 < rows["KMeans"]["accuracy"] <= 1
    p = rows["PCA"]["accuracy"]
    assert rows["PCA"]["accuracy_error"] == pytest.approx(np.sqrt(p * (1 - p) / 149))
    assert "score_matching" not in rows["PCA"]  # its energy is that of no density; its scores are
    (model,) = (m for key, m in result.models.items() if key[0] == "PCA")
    assert rows["PCA"]["log_density"] == pytest.approx(model.score(result.test))


# ---------------------------------------------------------------- pairs that cannot be


def test_what_cannot_be_says_why() -> None:
    X = np.random.default_rng(8).standard_normal((200, 4))
    X[:, 3] = 0
    rate = {"learning_rate": 1e300}
    seen: list[dict[str, Any]] = []
    result = compare(
        {"machine": RBM(3), "reals": GaussianRBM(3)},
        {"EM": EM(), "far": PCD(**rate), "NCE": energyscape.trainers.NCE()},
        X,
        rows=2000,
        callback=seen.append,
    )
    assert seen == result.rows
    notes = {(r["model"], r["trainer"]): (r["status"], r["note"]) for r in result.rows}
    status, note = notes["machine", "far"]
    assert status == "refused" and "binary units and expects values in [0, 1]" in note
    status, note = notes["reals", "EM"]
    assert status == "refused" and "needs statistics" in note
    status, note = notes["reals", "far"]
    assert status == "diverged" and "learning rate" in note
    status, note = notes["reals", "NCE"]
    assert status == "failed" and "do not vary along 1" in note
    assert ("reals", "far") in result.models  # at its last good epoch
    text = str(result)
    assert "reals / far diverged: " in text
    assert text.endswith("There is nothing to choose between.")
    with pytest.raises(ValueError, match="nothing to draw"):
        result.save_png("nowhere.png")


def test_grey_rows_have_no_probability() -> None:
    X = np.random.default_rng(9).random((100, 4))
    (row,) = compare(RBM(2), None, X, rows=200).rows
    assert row["status"] == "trained" and "no bits" in row["note"]
    assert "log_probability" not in row and "pseudo_likelihood" not in row


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": []}, "at least one of models"),
        ({"models": {}}, "at least one of models"),
        ({"trainers": []}, "at least one of trainers"),
        ({"rows": None}, "needs a budget"),
        ({"rows": 0}, "rows must be an integer >= 1"),
        ({"rows": None, "seconds": 0.0}, "seconds must be > 0"),
        ({"seconds": -1.0}, "seconds must be > 0"),
        ({"seconds": np.inf}, "seconds must be > 0"),
        ({"y": np.zeros(39)}, "one label for each of 40 rows"),
        ({"X": np.zeros((40, 4)).tolist(), "X_test": np.zeros((40, 3))}, "rows of shape"),
        ({"y": np.zeros(40), "X_test": np.zeros((40, 4))}, "go together"),
        ({"y_test": np.zeros(40)}, "y_test goes with X_test"),
        ({"X": np.zeros(40)}, "2D array"),
        ({"X": np.full((40, 4), np.nan)}, "NaN"),
        ({"X": np.zeros((30, 4))}, "too few"),
        ({"foreign": np.zeros((5, 3))}, "foreign has 3 features"),
        ({"image_shape": (3, 3)}, "does not hold 4 features"),
        ({"n_samples": 2}, "n_samples must be an integer >= 3"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"models": [RBM(2)], "trainers": [PCD()], "X": np.eye(40)[:, :4]}
    given |= {"rows": 100} | change
    with pytest.raises(ValueError, match=message):
        compare(given.pop("models"), given.pop("trainers"), given.pop("X"), **given)


@pytest.mark.parametrize("wrong", [[RBM], ["RBM"], [PCD()], {"a": None}])
def test_what_is_no_model_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="models are instances"):
        compare(wrong, [PCD()], np.eye(40), rows=10)
    with pytest.raises(TypeError, match="trainers are instances"):
        compare([RBM(2)], [RBM(2)], np.eye(40), rows=10)


def test_names() -> None:
    X = _bits(80, 4)
    trainers = [PCD(), PCD(learning_rate=0.3), CD()]
    result = compare([RBM(2), RBM(2)], trainers, X, rows=100, n_steps=1)
    names = [(r["model"], r["trainer"]) for r in result.rows]
    assert names[:3] == [
        ("RBM(n_components=2)", t) for t in ("PCD()", *["PCD(learning_rate=0.3)"], "CD")
    ]
    assert len(set(names)) == 6
    assert compare(RBM(2), None, X, rows=100, n_steps=1).rows[0]["trainer"] == "PCD"


# ---------------------------------------------------------------- budgets


@pytest.mark.parametrize("rows", [7, 50, 59, 60, 61, 500])
def test_rows_are_whole_epochs_that_fit(rows: int) -> None:
    """60 of 80 rows are trained on, in batches of 10."""
    X = _bits(80, 4)
    result = compare(RBM(2), PCD(batch_size=10, n_epochs=999), X, rows=rows, n_steps=1)
    (row,) = result.rows
    if rows >= 60:
        assert row["rows"] == rows // 60 * 60 == 60 * row["epochs"]
    else:
        assert (row["rows"], row["epochs"]) == (max(10, rows), 1)
        assert "of the 60 rows is all that fits" in row["note"]
    model = result.models["RBM", "PCD"]
    assert model.trainer_.n_epochs == row["epochs"]
    assert model.history_["learning_rate"][-1] <= model.history_["learning_rate"][0]


def test_rows_count_every_start_and_what_is_set_apart() -> None:
    X = _mixture(100, 2)
    trainer = EM(tol=0.0, n_init=2, validation_fraction=0.2)
    (row,) = compare(GaussianMixture(2), trainer, X, rows=1000).rows
    assert row["rows"] <= 1000 and row["rows"] % 60 == 0 and row["epochs"] <= 8


class FakeTime:
    """Seconds that pass by what a callback says."""

    def __init__(self, lengths: list[float]) -> None:
        self.now, self.lengths = 0.0, lengths

    def read(self) -> float:
        return self.now

    def __call__(self, model: Any, state: Any, info: Any) -> bool:
        self.now += self.lengths[min(state.epoch, len(self.lengths)) - 1]
        return False


def test_seconds_are_planned_with() -> None:
    """Epochs of one second: a budget of 10 takes 9, with the rate falling to its end."""
    fake = FakeTime([1.0])
    trainer = PCD(callbacks=[fake], batch_size=10)
    given = {"n_steps": 1, "clock": fake.read}
    result = compare(RBM(2), trainer, _bits(80, 4), seconds=10.0, **given)
    (row,) = result.rows
    assert (row["epochs"], row["seconds"], row["rows"], row["note"]) == (9, 9.0, 540, "")
    assert result.models["RBM", "PCD"].trainer_.callbacks == (fake,)
    (row,) = compare(RBM(2), trainer, _bits(80, 4), seconds=10.0, rows=200, **given).rows
    assert (row["epochs"], row["rows"]) == (3, 180)
    (row,) = compare(RBM(2), trainer, _bits(80, 4), seconds=0.5, **given).rows
    assert (row["epochs"], row["rows"]) == (1, 27) and "all that fits" in row["note"]


def test_a_run_that_slows_down_is_stopped() -> None:
    """Epochs of one second in the trial, of three from the fourth on: 1 + 1 + 1 + 3 + 3."""
    fake = FakeTime([1.0, 1.0, 1.0, 3.0])
    trainer = PCD(callbacks=[fake], batch_size=10)
    given = {"n_steps": 1, "clock": fake.read}
    (row,) = compare(RBM(2), trainer, _bits(80, 4), seconds=10.0, **given).rows
    assert (row["epochs"], row["seconds"]) == (5, 9.0)
    assert row["planned"] == 9


def test_real_seconds_are_kept() -> None:
    (row,) = compare(RBM(4), CD(), _bits(400, 8), seconds=0.3, n_steps=1).rows
    assert row["epochs"] > 3 and row["seconds"] < 0.6  # twice, for a machine that is shared


def test_the_users_callbacks_stay() -> None:
    stop = EarlyStopping("reconstruction", patience=1, min_delta=1e9)
    result = compare(RBM(2), CD(callbacks=[stop]), _bits(80, 4), rows=6000, n_steps=1)
    assert result.rows[0]["epochs"] == 2
    model = result.models["RBM", "CD"]
    assert model.trainer.callbacks == model.trainer_.callbacks == (stop,)


def _comparable(result: Comparison) -> list[dict[str, Any]]:
    rows = [*result.rows, *result.references]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_the_same_call_gives_the_same_figures() -> None:
    X, y = _bits(120, 6), np.arange(120) % 2
    given = {"rows": 500, "n_steps": 5, "n_samples": 50, "ais": AIS(10, 20)}

    def called(seed: int) -> list[dict[str, Any]]:
        return _comparable(compare([RBM(3)], [PCD(), CD()], X, y, random_state=seed, **given))

    assert called(3) == called(3)
    assert called(3) != called(4)


def test_given_rows_are_held_out() -> None:
    X, T = _bits(60, 5), _bits(50, 5, 1)
    y, y_test = np.arange(60) % 2, np.arange(50) % 3
    foreign = np.zeros((30, 5))
    given = {"y": y, "X_test": T, "y_test": y_test, "foreign": foreign}
    result = compare(RBM(3), None, X, rows=600, n_steps=5, **given)
    np.testing.assert_array_equal(result.test, T)
    (row,) = result.rows
    assert row["rows"] == 600 and row["log_probability"] == result.models["RBM", "PCD"].score(T)
    energies = result.models["RBM", "PCD"].energy(T), result.models["RBM", "PCD"].energy(foreign)
    assert row["auc_foreign"] == metrics.auc(energies[1], energies[0])
    assert "auc_uniform" not in row


def test_images_and_rows_meet() -> None:
    """A model of rows and one of maps, on rows with a shape, and on maps."""
    rng = np.random.default_rng(10)
    maps = (rng.standard_normal((120, 5, 5, 2)).cumsum(axis=1) > 0).astype(np.float64)
    models = {"tiled": TiledRBM(3), "rows": RBM(3)}
    given = {"rows": 300, "n_steps": 2, "n_samples": 20, "ais": AIS(10, 20)}
    by_rows = compare(models, [CD()], maps.reshape(120, 50), image_shape=(5, 5, 2), **given)
    by_maps = compare(models, [CD()], maps, **given)
    assert _comparable(by_rows) == _comparable(by_maps)
    assert [row["status"] for row in by_rows.rows] == ["trained", "trained"]
    (row,) = compare(TiledRBM(3), CD(), maps.reshape(120, 50), **given).rows
    assert row["status"] == "refused" and "image_shape says" in row["note"]


@pytest.mark.parametrize("kind", ["list", "uint8", "csr", "memmap", "hdf5"])
def test_rows_from_wherever_they_are(kind: str, tmp_path: Path) -> None:
    X = _bits(80, 5)
    given: Any = {"list": X.tolist(), "uint8": X.astype(np.uint8), "csr": csr_matrix(X)}.get(kind)
    if kind == "memmap":
        given = np.memmap(tmp_path / "rows", X.dtype, "w+", shape=X.shape)
        given[...] = X
    if kind == "hdf5":
        given = h5py.File(tmp_path / "rows.h5", "w").create_dataset("X", data=X)
    shared = {"rows": 300, "n_steps": 2, "X_test": given}
    result = compare(RBM(3), CD(), given, **shared)
    X = X.astype(np.float32 if kind == "uint8" else np.float64)  # what they are computed in
    assert _comparable(result) == _comparable(compare(RBM(3), CD(), X, **shared | {"X_test": X}))


def test_rows_on_a_device(fake_cupy: Any) -> None:
    """What is trained on stays there; what is measured comes to the host."""
    X = _bits(80, 5).astype(np.float32)
    result = compare(RBM(3), [PCD(), PseudoLikelihood()], fake_cupy.asarray(X), rows=200, n_steps=2)
    assert [row["status"] for row in result.rows] == ["trained", "trained"], str(result)
    assert isinstance(result.models["RBM", "PCD"].components_, fake_cupy.ndarray)
    assert all("log_probability" in row for row in result.rows)


def test_warnings_become_notes() -> None:
    """Of an estimate by too few chains, and of a run that did not come to its end."""
    X = _mixture(100, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (row,) = compare(GaussianMixture(3), EM(tol=0.0), X, rows=150).rows
    assert row["epochs"] == 2 and "EM still gained" in row["note"]


def test_what_diverges_in_the_trial_says_so() -> None:
    X = np.random.default_rng(8).standard_normal((100, 4))
    (row,) = compare(GaussianRBM(3), PCD(learning_rate=1e300), X, seconds=5.0).rows
    assert row["status"] == "diverged" and row["rows"] == 0 and "planned" not in row


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_model_can_be_compared(case: Case) -> None:
    X = np.concatenate([case.data, case.data])  # clips are few
    given = {"rows": 60, "n_steps": 2, "n_samples": 10, "ais": AIS(10, 20)}
    (row,) = compare(case.make(), None, X, **given).rows
    assert row["status"] == "trained", row
    assert {"auc_shuffled", "auc_uniform"} <= set(row)
    model = case.make()
    whole_images = X.ndim > 2
    if model.has_density and not whole_images:
        assert {"log_density", "log_probability"} & set(row), row
    if whole_images or model.limited:
        assert "log_density" not in row


# ---------------------------------------------------------------- tables, files, pictures


@pytest.fixture(scope="module")
def small() -> Comparison:
    X, y = _bits(200, 9), np.arange(200) % 2
    models = {"small": RBM(2), "large, with a comma": RBM(5)}
    given = {"rows": 1500, "n_steps": 5, "n_samples": 60, "image_shape": (3, 3)}
    return compare(models, [PCD(), EM()], X, y, **given)


def test_a_table_comes_back_from_its_file(small: Comparison, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    small.save_csv(path)
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    rows = [*small.rows, *small.references]
    assert len(found) == len(rows) == 6
    for got, row in zip(found, rows, strict=True):
        assert {k for k, v in got.items() if v} == {k for k, v in row.items() if v != ""}
        for key, value in row.items():
            assert got[key] == value if isinstance(value, str) else float(got[key]) == value


def test_a_table_is_aligned(small: Comparison) -> None:
    lines = str(small).splitlines()
    assert lines[0].split() == [
        *("model trainer log p log Z pseudo-lik. energy dist. AUC AUC accuracy".split()),
        *("seconds rows epochs".split()),  # as many as planned
    ]
    table = lines[: lines.index("") + 3]
    assert len({len(line) for line in table[2:] if line} | {len(lines[0])}) == 1
    assert len(lines[0]) < 180
    assert sum("refused" in line for line in table) == 0
    (refused,) = (line for line in lines if "refused: it needs" in line)
    assert refused.startswith("small / EM, large, with a comma / EM refused")
    with pytest.raises(ValueError, match="no pair has 'speed'; there are log_probability"):
        small.best("speed")


def test_the_picture_is_one(small: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    Image = pytest.importorskip("PIL.Image")
    path = tmp_path / "picture.png"
    small.save_png(path)
    with Image.open(path) as image:
        with_samples = image.size
    twice = types.SimpleNamespace(inverse_transform=lambda x: np.repeat(x, 2, axis=1))
    small.save_png(path, image_shape=(6, 3), transformer=twice)
    without = Comparison(small.test)
    for row in small.rows:
        key = row["model"], row["trainer"]
        without.add(
            {k: row[k] for k in ("model", "trainer", "status", "note")}, small._measured[key]
        )
    without.save_png(path)
    with Image.open(path) as image:
        assert image.size[0] == with_samples[0] and image.size[1] < with_samples[1]


# ---------------------------------------------------------------- the command


def _called(capsys: Any, *arguments: object) -> tuple[int, list[dict[str, Any]], str]:
    capsys.readouterr()
    try:
        code = cli.main(["compare", *map(str, arguments)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def test_the_command(capsys: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    data, table, picture = (tmp_path / name for name in ("bits.npz", "table.csv", "table.png"))
    np.savez(data, X=_bits(120, 6).astype(np.float32), y=np.arange(120) % 2)
    common = ["--rows", 400, "--steps", 2, "-n", 40, "--temperatures", 20, "--quiet"]
    code, records, err = _called(
        capsys, data, "--model", "RBM(n_components=3)", "--model", "DeepBoltzmannMachine((3, 2))",
        "--trainer", "PCD", "--trainer", "PseudoLikelihood(n_bits=2)", *common,
        "--image-shape", "2,3", "--out", table, "--png", picture,
    )  # fmt: skip
    assert code == 0, err
    assert [(r["model"], r["trainer"], r["status"]) for r in records] == [
        ("RBM(n_components=3)", "PCD", "trained"),
        ("RBM(n_components=3)", "PseudoLikelihood(n_bits=2)", "trained"),
        ("DeepBoltzmannMachine((3, 2))", "PCD", "trained"),
        ("DeepBoltzmannMachine((3, 2))", "PseudoLikelihood(n_bits=2)", "refused"),
    ]
    assert records[0]["rows"] == 360 and 0 < records[0]["accuracy"] <= 1
    assert records[2]["log_probability_by"] == "exact, from below"
    assert err.splitlines()[0].startswith("model") and "Most often the best" in err
    assert len(table.read_text().splitlines()) == 1 + 4 + 2
    assert picture.read_bytes()[:4] == b"\x89PNG"
    # Given rows to hold out and to tell apart; the default trainer; nothing to write.
    code, records, err = _called(
        capsys, data, "--model", "RBM", "--test", data, "--foreign", data, "--seed", 1, *common
    )
    assert code == 0 and records[0]["trainer"] == "PCD" and "auc_foreign" in records[0]
    assert records[0]["rows"] == 360


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--rows", 100], 2, "--model"),
        (["--model", "RBM"], 2, "give a budget"),
        (["--model", "RBM", "--rows", 0], 2, "no integer of at least 1"),
        (["--model", "RBM", "--seconds", -1], 1, "seconds must be > 0"),
        (["--model", "Nobody", "--rows", 9], 2, "'Nobody' is none of"),
        (["--model", "PCD", "--rows", 9], 2, "'PCD' is none of"),
        (["--model", "PCD()", "--rows", 9], 2, "'PCD()' is none of"),
        (["--model", "RBM(units=3)", "--rows", 9], 2, "units"),
        (["--model", "3", "--rows", 9], 2, "'3' is none of"),
        (["--model", "RBM", "--trainer", "RBM", "--rows", 9], 2, "'RBM' is none of"),
        (["--model", "RBM", "--rows", 9, "--out", "a.txt"], 2, "must end in .csv"),
        (["--model", "RBM", "--rows", 9, "--png", "no/a.png"], 2, "there is no folder"),
        (["--model", "RBM", "--trainer", "EM", "--rows", 9], 1, "no pair could be trained"),
    ],
)
def test_the_command_refuses(
    arguments: list[Any], code: int, message: str, capsys: Any, tmp_path: Path
) -> None:
    data = tmp_path / "bits.npy"
    np.save(data, _bits(60, 4))
    found = _called(capsys, data, *arguments, "--quiet")
    assert found[0] == code and message in found[2], found


def test_the_command_without_matplotlib_says_so_first(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    data = tmp_path / "bits.npy"
    np.save(data, _bits(60, 4))
    path = tmp_path / "a.png"
    code, records, err = _called(capsys, data, "--model", "RBM", "--rows", 99, "--png", path)
    assert (code, records) == (1, []) and "matplotlib" in err
