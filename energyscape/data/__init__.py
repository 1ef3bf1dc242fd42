"""Data sets for demos and benchmarks, and the two ways of making grey images binary."""

from energyscape.corruptions import Binarize
from energyscape.data.binary import binarize, threshold
from energyscape.data.digits import data_home, load_digits, load_mnist

__all__ = ["Binarize", "binarize", "data_home", "load_digits", "load_mnist", "threshold"]
