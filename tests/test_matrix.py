"""Which trainer trains which model: the matrix says what `fit` does, and pages show it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES, Case, short

from energyscape import registry
from energyscape.evaluation import TrainerMatrix, trainer_matrix
from energyscape.evaluation.matrix import OTHERS, STRATEGIES, refusal
from energyscape.models import RBM
from energyscape.models.base import EnergyModel
from energyscape.registry import registered
from energyscape.trainers import CD
from energyscape.trainers.base import Trainer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def matrix() -> TrainerMatrix:
    return trainer_matrix()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_pair_is_refused_exactly_where_it_is_not_declared(case: Case) -> None:
    """`tests/test_trainers.py` fits all declared pairs, and that others raise what is said here."""
    fitting = {t for t in registered(Trainer).values() if refusal(case.make(), t()) is None}
    assert fitting == set(case.trainers)


def test_marks_hold_for_all_settings_of_the_table(matrix: TrainerMatrix) -> None:
    """A pair that settings decide is marked so; and of each model some row shows what is full."""
    for name, kind in registered(EnergyModel).items():
        rows = [set(case.trainers) for case in CASES if type(case.make()) is kind]
        for trainer in matrix.trainers:
            seen = {registered(Trainer)[trainer] in row for row in rows}
            mark = matrix.mark(name, trainer)
            if seen == {True, False}:
                assert mark in ("◐", "○"), (name, trainer)
            elif mark in ("●", ""):
                assert seen == {mark == "●"}, (name, trainer)


def test_settings_turn_the_answer_round(matrix: TrainerMatrix) -> None:
    """As they are written, they make a model that has the other answer."""
    assert matrix.otherwise
    names = registered(EnergyModel) | {"inf": float("inf")}
    for (name, trainer), settings in matrix.otherwise.items():
        for one in settings:
            why = refusal(eval(one, dict(names)), registered(Trainer)[trainer]())
            assert (why is None) != (matrix.why[name, trainer] is None), (one, trainer)


def test_what_settings_add_trains(matrix: TrainerMatrix) -> None:
    """Six units fit six features, where "○" is more than a check that passes."""
    X = next(case.data for case in CASES if case.name == "GaussianRBM")
    names = registered(EnergyModel) | {"inf": float("inf")}
    added = [(pair, one) for pair, some in matrix.otherwise.items() for one in some]
    added = [(pair, one) for pair, one in added if matrix.why[pair] is not None]
    assert added
    for (_, trainer), one in added:
        model = eval(one, dict(names))
        size = (
            {"n_components": 6}
            if "n_components" in model.get_params()
            else {"hidden_layer_sizes": (4, 3)}
        )
        settings = short(registered(Trainer)[trainer], n_epochs=2, batch_size=25)
        model.set_params(**size, trainer=settings, random_state=0).fit(X)
        assert np.isfinite(model.energy(X)).all(), one


def test_every_trainer_of_the_library_has_its_strategy(matrix: TrainerMatrix) -> None:
    placed = [trainer for labels in STRATEGIES.values() for trainer in labels]
    assert len(set(placed)) == len(placed)
    assert set(registered(Trainer)) - set(placed) == {"Backpropagation"}
    assert set(placed) <= set(registered(Trainer))
    assert matrix.idle() == ["Backpropagation"]
    labels = [label for labels in STRATEGIES.values() for label in labels.values()]
    assert len(set(labels)) == len(labels)


def test_every_empty_cell_has_its_reason_once(matrix: TrainerMatrix) -> None:
    text = matrix.to_markdown()
    lines = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", text.split("because")[1], re.M)
    models, given = set(matrix.models), set()
    for trainers, of, reason in lines[1:]:
        named = set(re.findall(r"`(\w+)`", of))
        refused = models - named if of.startswith("all") else named
        # Reasons go for all of their models, whose names and verbs' signatures they leave out.
        assert "→" not in reason and not re.search(rf"\b({'|'.join(models)})\b", reason)
        pairs = {(m, t) for m in refused for t in re.findall(r"`(\w+)`", trainers)}
        assert not pairs & given
        given |= pairs
    assert given == {pair for pair, why in matrix.why.items() if why is not None}


def test_the_short_form_says_the_same(matrix: TrainerMatrix) -> None:
    said: dict[str, set[str]] = {}
    for line in matrix.to_short_markdown().splitlines()[2:]:
        _, strategy, trainers, models, _ = (cell.strip() for cell in line.split("|"))
        assert strategy in STRATEGIES
        text, *marked = models.split(" (")
        names = set(re.findall(r"`(\w+)`", text))
        for trainer in re.findall(r"`(\w+)`", trainers):
            said[trainer] = set(matrix.models) - names if text.startswith("all") else names
            marks = {m: matrix.mark(m, trainer) for m in matrix.models}
            some = {m: mark for m, mark in marks.items() if mark in ("◐", "○")}
            assert dict(re.findall(r"`(\w+)` ([◐○])", models)) == some
            assert text.startswith("all") or not marked
    for trainer, models_ in said.items():
        assert models_ == {m for m in matrix.models if matrix.mark(m, trainer)}
    assert set(said) == set(matrix.trainers) - set(matrix.idle())


def test_classes_of_others_have_their_row_and_column(monkeypatch: Any) -> None:
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))

    class Unsampled(RBM):
        sample_visible = None

    class NeedsReal(CD):
        domains = ("real",)

    for one in (Unsampled, NeedsReal):
        registry.register(one)
    found = trainer_matrix()
    assert found.mark("Unsampled", "CD") == "" and found.mark("Unsampled", "NCE") == "●"
    assert "sample_visible" in str(found.why["Unsampled", "PCD"])
    assert found.mark("GaussianRBM", "NeedsReal") == "●" and not found.mark("RBM", "NeedsReal")
    assert f"* {OTHERS}: `NeedsReal`" in found.to_markdown()


@pytest.mark.parametrize("page", ["README.md", "docs/strategies.md"])
def test_pages_show_the_matrix_as_it_is(page: str, matrix: TrainerMatrix) -> None:
    (shown,) = re.findall(
        r"<!-- matrix -->\n(.*?)<!-- /matrix -->", (ROOT / page).read_text(), re.S
    )
    wanted = matrix.to_short_markdown() if page == "README.md" else matrix.to_markdown()
    assert shown.strip() == wanted, "run scripts/matrix.py"
