"""Judging models: laws of their verbs, faults of their training, a rate to begin with."""

from energyscape.evaluation.diagnose import Diagnosis, Finding, diagnose
from energyscape.evaluation.laws import check_model
from energyscape.evaluation.learning_rate import find_learning_rate

__all__ = ["Diagnosis", "Finding", "check_model", "diagnose", "find_learning_rate"]
