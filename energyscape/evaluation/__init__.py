"""Judging models: laws of their verbs, faults of their training, chains, a rate to begin with,
and which model by which strategy; exact answers for chains and trees of discrete units."""

from energyscape.evaluation.chains import ChainReport
from energyscape.evaluation.compare import compare
from energyscape.evaluation.comparison import Comparison
from energyscape.evaluation.diagnose import Diagnosis, Finding, diagnose
from energyscape.evaluation.factor_graphs import FactorGraph
from energyscape.evaluation.laws import check_model
from energyscape.evaluation.learning_rate import find_learning_rate
from energyscape.evaluation.matrix import TrainerMatrix, trainer_matrix

__all__ = [
    "ChainReport",
    "Comparison",
    "Diagnosis",
    "FactorGraph",
    "Finding",
    "TrainerMatrix",
    "check_model",
    "compare",
    "diagnose",
    "find_learning_rate",
    "trainer_matrix",
]
