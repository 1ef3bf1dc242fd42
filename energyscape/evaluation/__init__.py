"""Judging models: laws of their verbs, faults of their training, chains, a rate to begin with."""

from energyscape.evaluation.chains import ChainReport
from energyscape.evaluation.diagnose import Diagnosis, Finding, diagnose
from energyscape.evaluation.laws import check_model
from energyscape.evaluation.learning_rate import find_learning_rate

__all__ = [
    "ChainReport",
    "Diagnosis",
    "Finding",
    "check_model",
    "diagnose",
    "find_learning_rate",
]
