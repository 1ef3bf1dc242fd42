"""One row per model: what it is made with, small data, and the trainers that fit it.

Laws, files, trainer pairs and the agreement of NumPy and CuPy run over these rows, so a new model
inherits them by adding one; scikit-learn's own checks have their list in test_sklearn.py.
``trainers`` are the declared pairs; every other registered trainer must refuse the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from energyscape.models import RBM, GaussianRBM
from energyscape.samplers import HMC, Langevin, Metropolis, ParallelTempering
from energyscape.trainers import CD, FPCD, PCD


@dataclass(frozen=True)
class Case:
    """A model on its toy."""

    name: str
    make: Callable[..., Any]
    data: np.ndarray
    trainers: tuple[type, ...]


def _bits(n: int, d: int) -> np.ndarray:
    """Correlated bits: noisy copies of a few patterns."""
    rng = np.random.default_rng(1)
    patterns = rng.integers(0, 2, (4, d))
    flips = rng.random((n, d)) < 0.1
    return (patterns[rng.integers(0, 4, n)] ^ flips).astype(np.float64)


def _reals(n: int, d: int) -> np.ndarray:
    """Correlated reals, off zero and of unequal scale."""
    rng = np.random.default_rng(2)
    mixing = rng.standard_normal((d, d))
    return 5 + rng.standard_normal((n, d)) @ mixing * np.linspace(0.5, 3, d)


_CHAINS = (CD, PCD, FPCD)
CASES = [
    Case("RBM", lambda **k: RBM(5, **k), _bits(60, 7), _CHAINS),
    Case("RBM plain", lambda **k: RBM(5, centered=False, **k), _bits(60, 7), _CHAINS),
    Case("GaussianRBM", lambda **k: GaussianRBM(9, **k), _reals(60, 6), _CHAINS),
    Case("GaussianRBM unit", lambda **k: GaussianRBM(5, variance=1.0, **k), _reals(60, 6), _CHAINS),
    Case(
        "GaussianRBM plain", lambda **k: GaussianRBM(5, centered=False, **k), _reals(60, 6), _CHAINS
    ),
]

# Trainers whose chains other samplers than the model's own move, by kind of visible units.
_EITHER = [PCD(2), CD(2), FPCD(2), PCD(sampler=ParallelTempering(n_temperatures=3))]
MOVERS = {
    "binary": [*_EITHER, CD(sampler=Metropolis()), FPCD(sampler=ParallelTempering(Metropolis()))],
    "real": [
        *_EITHER,
        CD(sampler=HMC(3)),
        PCD(2, sampler=HMC(3, persistence=0.5)),
        FPCD(sampler=Langevin()),
        PCD(sampler=ParallelTempering(HMC(2, step_size=0.1), n_temperatures=3)),
    ],
}
MOVED = [(case, trainer) for case in CASES for trainer in MOVERS[case.make().domain]]


def moved_id(value: Any) -> str:
    """How a pair of ``MOVED`` is called in the name of a test."""
    return value.name if isinstance(value, Case) else " ".join(repr(value).split())
