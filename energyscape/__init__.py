"""Unsupervised energy-based models with a scikit-learn face, on NumPy and CuPy."""

import logging

from energyscape import corruptions, models, optim, samplers, trainers, training
from energyscape._version import __version__
from energyscape.io import load, save
from energyscape.registry import register

logging.getLogger("energyscape").addHandler(logging.NullHandler())

__all__ = [
    "__version__",
    "corruptions",
    "load",
    "models",
    "optim",
    "register",
    "samplers",
    "save",
    "trainers",
    "training",
]
