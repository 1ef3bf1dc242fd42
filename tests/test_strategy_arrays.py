"""Strategies without chains on both kinds of arrays: equal updates from equal noise, no waiting."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import standin
from cases import CASES, Case, short
from streams import ReplayStream

from energyscape.backend import Purpose, stream, to_host
from energyscape.losses import MEE, NLL, Log, SquareSquare
from energyscape.optim import SGD, Adam, Moment
from energyscape.trainers import (
    Chains,
    ConditionalNCE,
    MarginLoss,
    MostOffending,
    PseudoLikelihood,
    ScoreMatching,
    SlicedScoreMatching,
)
from energyscape.trainers.base import Batch, Objective

# Those whose inference does not decide on the host when it is done.
DENSE = [c for c in CASES if not hasattr(c.make(), "dictionary")]
OWN = [(c, short(t)) for c in DENSE for t in c.trainers if issubclass(t, Objective)]
_NAMED = {c.name: c for c in CASES}
SET = [
    (_NAMED["RBM"], PseudoLikelihood(3)),
    (_NAMED["RBM"], MarginLoss(Log(), Chains(2))),
    (_NAMED["GaussianRBM"], ConditionalNCE(n_negatives=2)),
    (_NAMED["GaussianRBM"], MarginLoss(NLL(), n_negatives=2)),
    (_NAMED["GaussianRBM"], MarginLoss(MEE(), MostOffending(), 2)),
    (_NAMED["GaussianRBM"], MarginLoss(Log(), n_negatives=3, pooling="softmax")),
    (_NAMED["GaussianRBM"], MarginLoss(Log(), n_negatives=3, pooling="worst")),
    (_NAMED["GaussianRBM"], ScoreMatching(0.1)),
    (_NAMED["PoT"], ScoreMatching(0.1)),
    (_NAMED["PoT"], SlicedScoreMatching(2, variance_reduced=False)),
    (_NAMED["KMeans"], MarginLoss(SquareSquare(2.0))),
]
PAIRS = OWN + SET


def _id(value: Any) -> str:
    return getattr(value, "name", repr(value))


@pytest.mark.parametrize(("case", "trainer"), PAIRS, ids=_id)
def test_both_paths_agree_on_the_same_noise(case: Case, trainer: Any, cupy: ModuleType) -> None:
    model, results = case.make(), []
    trainer.set_params(optimizer=SGD(0.01, momentum=0.5))
    for xp in (np, cupy):
        x = case.data if xp is np else xp.asarray(case.data)
        params = model.init_params(x, ReplayStream(xp, 1))
        carry = trainer.start(model, params, x, ReplayStream(xp, 2))
        for step in range(2):
            sums = trainer.collect(
                model, params, carry, Batch(x, len(x)), ReplayStream(xp, 3, step)
            )
            trainer.apply(model, params, carry, sums, Moment(0, step, 0.1))
        results.append({k: to_host(v) for k, v in (params | carry).items()})
    # Kernels have another formula for a sigmoid, and differences of gradients over steps of 1e-5
    # make 1e5 times as much of a rounding of gradients, which are of order 10 here.
    tolerance = 1e-6 if isinstance(trainer, SlicedScoreMatching) else 1e-8
    for name, value in results[0].items():
        assert value.dtype == results[1][name].dtype, name
        scale = max(1.0, float(np.abs(value).max(initial=0)))
        np.testing.assert_allclose(
            results[1][name] / scale, value / scale, rtol=tolerance, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize(("case", "trainer"), PAIRS, ids=_id)
def test_a_step_does_not_wait_for_the_device(case: Case, trainer: Any, fake_cupy: Any) -> None:
    model, x = case.make(), fake_cupy.asarray(case.data.astype(np.float32))
    trainer.set_params(optimizer=Adam())
    params = model.init_params(x, stream(0, Purpose.INIT, 0, "cuda:0"))
    carry = trainer.start(model, params, x, stream(0, Purpose.START, 0, "cuda:0"))
    rng = stream(0, Purpose.COLLECT, 0, "cuda:0")
    before = standin.Counter.syncs
    sums = trainer.collect(model, params, carry, Batch(x, len(x)), rng)
    found = standin.Counter.syncs - before
    assert found == _waits(model, params, x), "the model itself waits no less"
    trainer.apply(model, params, carry, sums, Moment(0, 0, 0.1, rng))


def _waits(model: Any, params: Any, x: Any) -> int:
    """Synchronisations of the model's own pass, of which strategies add none."""
    before = standin.Counter.syncs
    model.forward(params, x).energy()
    return standin.Counter.syncs - before


def test_flips_on_a_device_are_those_of_the_host(cupy: ModuleType) -> None:
    case = _NAMED["RBM"]
    model = case.make()
    params = model.init_params(case.data, ReplayStream(np, 1))
    there = {k: cupy.asarray(v) for k, v in params.items()}
    slope = PseudoLikelihood().slope
    here = model.forward(params, case.data).flips(np.arange(7), slope)
    moved = model.forward(there, cupy.asarray(case.data)).flips(cupy.arange(7), slope)
    np.testing.assert_allclose(to_host(moved[0]), here[0], atol=1e-12)
    for key in here[1]:
        np.testing.assert_allclose(to_host(moved[1][key]), here[1][key], atol=1e-12)
