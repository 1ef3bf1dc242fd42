"""Strategies without chains find the model that rows were drawn from, up to what so many rows can
tell. `benchmarks/recovery.py` is the whole of it: other seeds, both starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from energyscape.backend import Purpose, stream
from energyscape.evaluation.laws import all_states
from energyscape.models import ICA, RBM, GaussianMixture, PoT
from energyscape.optim import SGD, Adam
from energyscape.trainers import (
    NCE,
    ConditionalNCE,
    MarginLoss,
    MinimumProbabilityFlow,
    PseudoLikelihood,
    RatioMatching,
    ScoreMatching,
    SlicedScoreMatching,
)

# 2n KL tends to a weighted sum of χ²₁ with mean 2n m, of which 24 m bounds all but 1e-6: so much
# has the single χ²₁, and more of smaller weights have less.
_TAIL = 24


def _root(covariance: np.ndarray) -> np.ndarray:
    return np.linalg.cholesky(np.linalg.inv(covariance)[::-1, ::-1])[::-1, ::-1]


def _turned(rng: Any, values: np.ndarray) -> np.ndarray:
    Q = np.linalg.qr(rng.standard_normal((len(values),) * 2))[0]
    return (Q * values) @ Q.T


def _mixture() -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(2)
    C = np.array([_turned(rng, np.geomspace(0.3, 3, 4)) for _ in range(2)])
    params = {"w": np.log([0.35, 0.65]), "M": 1.5 * rng.standard_normal((2, 4))}
    params |= {"L": np.array([_root(c) for c in C]), "floor": np.zeros(4), "offset": np.zeros(4)}
    return GaussianMixture(2), params, None


def _sources() -> tuple[Any, Any, Any]:
    """From a random turn: its own start, FastICA, would be an answer already."""
    rng = np.random.default_rng(10)
    turns = [np.linalg.qr(rng.standard_normal((4, 4)))[0] for _ in range(3)]
    params = {"W": (turns[0] * np.geomspace(0.5, 2, 4)) @ turns[1]}
    params |= {"m": np.zeros(4), "sign": np.ones(4)}
    return ICA(), params, params | {"W": turns[2]}


def _students() -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(20)
    C = np.linalg.qr(rng.standard_normal((5, 5)))[0] * rng.uniform(1, 2, 5)
    params = {"C": C + 0.2 * rng.standard_normal((5, 5)), "a": np.log(rng.uniform(1, 2, 5))}
    params |= {"S": np.eye(5), "deviation": np.ones(1), "mean_v": np.zeros(5), "var_v": np.ones(5)}
    return PoT(5, sigma=np.inf, equal_norms=False), params, None


def _machine() -> tuple[Any, Any, Any]:
    """Units near their true ones to begin with: from small weights many fits end elsewhere."""
    rng = np.random.default_rng(30)
    W = 1.5 * rng.standard_normal((10, 12))
    params = {"W": W, "b": -W.sum(axis=1) / 2, "c": -W.sum(axis=0) / 2}
    moved = {key: v + 0.3 * rng.standard_normal(v.shape) for key, v in params.items()}
    means = {"mean_v": np.full(10, 0.5), "mean_h": np.full(12, 0.5)}
    return RBM(12), params | means, moved | means


TRUTHS = {"mixture": _mixture, "sources": _sources, "students": _students, "machine": _machine}


def _found(kind: str, trainer: Any, n: int, epochs: int) -> tuple[Any, float]:
    """A model fitted to ``n`` draws, and KL(truth || model)."""
    model, truth, start = TRUTHS[kind]()
    X = model.sample_exact(truth, n, stream(1, Purpose.SAMPLE))
    optimizer = SGD(0.3) if kind == "sources" else Adam(0.02)
    trainer.set_params(n_epochs=epochs, batch_size=500, optimizer=optimizer)
    model.set_params(trainer=trainer, random_state=0)
    if start is not None:
        model.init_params = lambda x, rng: {key: value.copy() for key, value in start.items()}
    model.fit(X)
    bits = model.domain == "binary"
    points = (
        all_states(10) if bits else model.sample_exact(truth, 50_000, stream(2, Purpose.SAMPLE))
    )
    log_q, log_p = (
        -model.free_energy(params, points) - model.log_partition(params)
        for params in (model.params_, truth)
    )
    if bits:
        return model, float(np.exp(log_p) @ (log_p - log_q))
    return model, float((np.expm1(log_q - log_p) - (log_q - log_p)).mean())


# Mean KL in thousandths of a nat over several sets of rows (10,000, of the machine 20,000).
MEANS = [
    ("mixture", ScoreMatching(), 1.6),
    ("mixture", SlicedScoreMatching(), 1.7),
    ("mixture", NCE(), 1.4),
    ("mixture", ConditionalNCE(n_negatives=5), 1.4),
    ("sources", ScoreMatching(), 2.9),
    ("sources", SlicedScoreMatching(), 3.0),
    ("sources", NCE(), 1.6),
    ("sources", ConditionalNCE(n_negatives=5), 1.7),
    ("students", ScoreMatching(), 4.7),
    ("students", NCE(), 3.5),
    ("students", ConditionalNCE(n_negatives=5), 5.0),
    ("machine", PseudoLikelihood(), 3.2),
    ("machine", RatioMatching(), 3.4),
    ("machine", MinimumProbabilityFlow(), 3.3),
    ("machine", NCE(), 3.0),
    ("machine", ConditionalNCE(n_negatives=5), 3.2),
]
ROWS = {"mixture": 10_000, "sources": 10_000, "students": 10_000, "machine": 20_000}
EPOCHS = {"mixture": 60, "sources": 80, "students": 120, "machine": 40}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "trainer", "mean"), MEANS, ids=repr)
def test_known_models_are_found_again(kind: str, trainer: Any, mean: float) -> None:
    """False alarm 1e-6; NCE's c is log Z, too."""
    model, divergence = _found(kind, trainer, ROWS[kind], EPOCHS[kind])
    assert divergence < _TAIL * 1e-3 * mean
    if isinstance(trainer, NCE):
        c = model.history_["log_partition"][-1]
        assert abs(c - model.log_partition(model.params_)) < 0.05


@pytest.mark.slow
def test_a_margin_is_no_density() -> None:
    """The control: a hinge ends farther off than any of the above may."""
    _, divergence = _found("machine", MarginLoss(), ROWS["machine"], EPOCHS["machine"])
    assert divergence > _TAIL * 1e-3 * max(mean for _, _, mean in MEANS)
