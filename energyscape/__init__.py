"""Unsupervised energy-based models with a scikit-learn face, on NumPy and CuPy."""

import logging

from energyscape import callbacks, data, models, optim, samplers, trainers
from energyscape._version import __version__
from energyscape.evaluation import check_model, compare, diagnose, find_learning_rate
from energyscape.io import load, save
from energyscape.precision import matmul_precision
from energyscape.registry import register
from energyscape.versions import show_versions

logging.getLogger("energyscape").addHandler(logging.NullHandler())

__all__ = [
    "__version__",
    "callbacks",
    "check_model",
    "compare",
    "data",
    "diagnose",
    "find_learning_rate",
    "load",
    "matmul_precision",
    "models",
    "optim",
    "register",
    "samplers",
    "save",
    "show_versions",
    "trainers",
]
