"""Which trainer can train which model: every pair of the registry, asked as `fit` asks it.

Models and trainers are constructed by default; a pair that cannot be has the words of the error
that `fit` would raise. Where a model's settings decide, the pair is asked again with those that are
named here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from energyscape.errors import CapabilityError
from energyscape.models.base import EnergyModel
from energyscape.registry import registered
from energyscape.trainers.base import Trainer
from energyscape.verbs import VERBS, obstacle

__all__ = ["STRATEGIES", "TrainerMatrix", "trainer_matrix"]

# The seven strategies of LeCun (2013), their trainers, and what these are called in narrow columns.
STRATEGIES: dict[str, dict[str, str]] = {
    "1 constant volume": {"ClosedForm": "CF", "EM": "EM", "Reconstruction": "Rec"},
    "2 push up everywhere": {"MaximumLikelihood": "ML"},
    "3 push up chosen places": {
        "CD": "CD",
        "PCD": "PCD",
        "FPCD": "FPCD",
        "NCE": "NCE",
        "ConditionalNCE": "CNCE",
        "MarginLoss": "Mar",
        "PseudoLikelihood": "PL",
        "RatioMatching": "RM",
        "MinimumProbabilityFlow": "MPF",
        "EmbeddingLoss": "Emb",
    },
    "4 flat and convex at the data": {
        "ScoreMatching": "SM",
        "SlicedScoreMatching": "SSM",
        "DenoisingScoreMatching": "DSM",
    },
    "5 dynamics that lead to the data": {"Denoising": "Den"},
    "6 limited codes": {"Sparsity": "Spa", "EnergyLoss": "En", "Prediction": "Pre"},
    "7 locally constant codes": {"Contraction": "Con", "Saturation": "Sat"},
}
OTHERS = "of no strategy"
# Settings that make other trainers fit than the defaults do.
_SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "AutoEncoder": (
        {"activation": "relu"},
        {"activation": "saturated_linear"},
        {"loss": "cross_entropy"},
        {"tied": False},
        {"energy_kind": "potential"},
    ),
    "CovarianceRBM": ({"learn_pools": False},),
    "DeepAutoEncoder": ({"activation": "relu"}, {"activation": "tanh"}, {"tied": False}),
    "ICA": ({"pools": 2},),
    "KMeans": ({"spherical": True},),
    "MPoT": ({"learn_pools": False},),
    "McRBM": ({"learn_pools": False},),
    "PoT": ({"pools": 2}, {"sigma": math.inf}),
}
_ALWAYS, _MOSTLY, _SOMETIMES = "●", "◐", "○"
_COLUMNS = 14  # that a page shows beside the names of models


@dataclass(frozen=True)
class TrainerMatrix:
    """Every registered model against every registered trainer.

    Attributes
    ----------
    models, trainers : tuples of str
        Names in alphabetical order; of trainers, strategy by strategy.
    why : dict
        (model, trainer) → None if the pair trains as both are by default, else the reason.
    otherwise : dict
        (model, trainer) → settings of the model, as they are written, with which it is the other
        way round.
    """

    models: tuple[str, ...]
    trainers: tuple[str, ...]
    why: dict[tuple[str, str], str | None]
    otherwise: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)

    def mark(self, model: str, trainer: str) -> str:
        """What stands in a cell: "●" if the pair trains, "◐" if it does but with some settings, "○"
        if it does with some settings alone, "" if it does not."""
        turned = (model, trainer) in self.otherwise
        if self.why[model, trainer] is None:
            return _MOSTLY if turned else _ALWAYS
        return _SOMETIMES if turned else ""

    def idle(self) -> list[str]:
        """Trainers that train none of the models."""
        return [t for t in self.trainers if not any(self.mark(m, t) for m in self.models)]

    def to_markdown(self) -> str:
        """The matrix as tables, settings that matter, and a reason for every empty cell."""
        idle, parts = self.idle(), []
        columns = [(s, t, label) for s, t, label in self._columns() if t not in idle]
        for lo in range(0, len(columns), _COLUMNS):
            parts.append(self._cells(columns[lo : lo + _COLUMNS]))
        parts += [self._legend(idle), self._settings(), self._reasons()]
        return "\n\n".join(parts)

    def to_short_markdown(self) -> str:
        """A line for all trainers of a strategy that train the same models."""
        lines: dict[tuple[str, str], list[str]] = {}
        for strategy, trainer, _ in self._columns():
            if trainer not in self.idle():
                lines.setdefault((strategy, self._trained_by(trainer)), []).append(trainer)
        rows = [[s, " ".join(map(_code, names)), models] for (s, models), names in lines.items()]
        return _table(["strategy", "trainers", "models"], rows)

    def _columns(self) -> list[tuple[str, str, str]]:
        """Strategy, trainer and label of every column."""
        found = [
            (strategy, trainer, label)
            for strategy, labels in STRATEGIES.items()
            for trainer, label in labels.items()
            if trainer in self.trainers
        ]
        placed = {trainer for _, trainer, _ in found}
        return found + [(OTHERS, t, t) for t in self.trainers if t not in placed]

    def _cells(self, columns: list[tuple[str, str, str]]) -> str:
        heads = [f"{s.partition(' ')[0]}<br>{label}" for s, _, label in columns]
        rows = [[_code(m), *(self.mark(m, t) for _, t, _ in columns)] for m in self.models]
        return _table(["", *heads], rows, ":-:")

    def _legend(self, idle: list[str]) -> str:
        by_strategy: dict[str, list[str]] = {}
        for strategy, trainer, label in self._columns():
            if trainer not in idle:
                name = _code(trainer) if label == trainer else f"{label} {_code(trainer)}"
                by_strategy.setdefault(strategy, []).append(name)
        lines = [f"* {strategy}: {', '.join(names)}" for strategy, names in by_strategy.items()]
        marks = (
            f"{_ALWAYS} trains; {_MOSTLY} trains, but not with some settings of the model; "
            f"{_SOMETIMES} trains with some settings, and not by default."
        )
        return "\n".join([marks, "", *lines])

    def _settings(self) -> str:
        """What settings take away or give."""
        turned: dict[str, tuple[list[str], list[str]]] = {}
        for (model, trainer), settings in self.otherwise.items():
            for one in settings:
                lost, won = turned.setdefault(one, ([], []))
                (lost if self.why[model, trainer] is None else won).append(trainer)
        rows = [[_code(one), *(_codes(names) for names in turned[one])] for one in sorted(turned)]
        return _table(["with", "do not train", "train as well"], rows)

    def _reasons(self) -> str:
        """Every reason of an empty cell, once."""
        refused: dict[tuple[str, str], list[str]] = {}
        for _, trainer, _ in self._columns():
            by_reason: dict[str, list[str]] = {}
            for model in self.models:
                why = self.why[model, trainer]
                if why is not None:
                    by_reason.setdefault(_said(why, model), []).append(model)
            for reason, models in by_reason.items():
                refused.setdefault((reason, self._all_but(models)), []).append(trainer)
        rows = [[_codes(names), models, reason] for (reason, models), names in refused.items()]
        return _table(["", "cannot train", "because"], rows)

    def _trained_by(self, trainer: str) -> str:
        marks = {m: self.mark(m, trainer) for m in self.models if self.mark(m, trainer)}
        some = [f"{_code(m)} {mark}" for m, mark in marks.items() if mark != _ALWAYS]
        rest = len(self.models) - len(marks)
        if rest < len(marks):
            text = self._all_but(list(marks))
            return text + (f" ({', '.join(some)})" if some else "")
        return ", ".join(_code(m) + f" {mark}" * (mark != _ALWAYS) for m, mark in marks.items())

    def _all_but(self, names: list[str]) -> str:
        """The models by name, or those that are left out where these are fewer."""
        rest = [m for m in self.models if m not in names]
        if not rest:
            return "all"
        return f"all but {_codes(rest)}" if len(rest) < len(names) else _codes(names)


def trainer_matrix() -> TrainerMatrix:
    """Ask every registered model and trainer whether they fit.

    Returns
    -------
    TrainerMatrix
        With classes that others registered, too: a trainer that is not the library's stands at the
        end, and a model of theirs is asked as it is by default.

    Examples
    --------
    >>> from energyscape.evaluation import trainer_matrix
    >>> matrix = trainer_matrix()
    >>> matrix.mark("RBM", "PCD"), matrix.mark("RBM", "ScoreMatching")
    ('●', '')
    >>> print(matrix.why["RBM", "EnergyLoss"])
    nothing keeps the energy of RBM from being low everywhere
    """
    models, trainers = registered(EnergyModel), registered(Trainer)
    ordered = [t for labels in STRATEGIES.values() for t in labels if t in trainers]
    ordered += [t for t in trainers if t not in ordered]
    why, otherwise = {}, {}
    for name, kind in models.items():
        variants = [kind(**settings) for settings in _SETTINGS.get(name, ())]
        for other in ordered:
            trainer = trainers[other]()
            why[name, other] = refusal(kind(), trainer)
            fits = why[name, other] is None
            turned = [one for one in variants if (refusal(one, trainer) is None) != fits]
            if turned:
                otherwise[name, other] = tuple(" ".join(repr(one).split()) for one in turned)
    return TrainerMatrix(tuple(models), tuple(ordered), why, otherwise)


def refusal(model: Any, trainer: Any) -> str | None:
    """What ``fit`` would say against the pair before it sees data; None if nothing."""
    why = obstacle(model, trainer)
    if why is not None:
        return why
    try:
        model.check_settings()
        trainer.validate(model)
    except (CapabilityError, ValueError) as error:
        return str(error)
    return None


def _said(why: str, model: str) -> str:
    """A reason in which the model has no name, and verbs no signatures."""
    for verb, described in VERBS.items():
        why = why.replace(verb + described, _code(verb))
    why = why.replace(f", which {model} does not offer", "")
    return re.sub(rf"\b{model}\b", "the model", why)


def _code(name: str) -> str:
    return f"`{name}`"


def _codes(names: Iterable[str]) -> str:
    return ", ".join(map(_code, names))


def _table(header: list[str], rows: list[list[str]], rule: str = "---") -> str:
    lines = [header, ["---", *[rule] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line).strip() + " |" for line in lines)
