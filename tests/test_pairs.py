"""Every declared pair lowers its textbook's loss, by five standard errors of what rows gain."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from cases import CASES, Case, short

from energyscape import load
from energyscape.backend import Purpose, stream
from energyscape.errors import CapabilityError
from energyscape.evaluation.laws import generic_params
from energyscape.optim import Moment
from energyscape.trainers import (
    CD,
    EM,
    PCD,
    ClosedForm,
    EmbeddingLoss,
    EnergyLoss,
    MaximumLikelihood,
    Prediction,
    Reconstruction,
)
from energyscape.trainers.base import Batch, Objective
from energyscape.verbs import speaks

_ROUNDS, _UPDATES, _DRAWS, _COPIES = 30, 50, 10, 4
_NOISE = 0.5  # of the parameters that training begins with
# Losses of embeddings compare rows with each other, and have no value at one: test_embeddings.
EVERY = [(case, t) for case in CASES for t in case.trainers]
PAIRS = [(case, t) for case, t in EVERY if t is not EmbeddingLoss]


def losses(trainer: Any, model: Any, params: Any, carry: Any, x: np.ndarray) -> np.ndarray | None:
    """The loss of every row, with the same noise at every call; None where it has no value."""
    if isinstance(trainer, Objective):
        each = [_sums(trainer, model, params, carry, _again(x[i]), i) for i in range(len(x))]
        return np.array([float(np.sum(sums["loss/mean"])) for sums in each])
    if isinstance(trainer, CD | PCD | MaximumLikelihood):
        return _surprise(model, params, x)
    if isinstance(trainer, Prediction):
        away = model.best_codes(params, x).h - model.guess(params, x)
        return (away * away).reshape(len(x), -1).sum(axis=1)
    if isinstance(trainer, Reconstruction):
        return _rebuilt(trainer, model, params, x)
    assert isinstance(trainer, EM | ClosedForm | EnergyLoss), trainer
    return model.free_energy(params, x)


def _again(row: np.ndarray) -> np.ndarray:
    return np.repeat(row[None], _DRAWS, axis=0)


def _sums(trainer: Any, model: Any, params: Any, carry: Any, x: np.ndarray, step: int) -> Any:
    return trainer.collect(model, params, carry, Batch(x, len(x)), stream(5, Purpose.COLLECT, step))


def _surprise(model: Any, params: Any, x: np.ndarray) -> np.ndarray | None:
    """-log p of every row, where log Z is exact."""
    if speaks(model, ("log_partition",)):
        return None
    x = x if speaks(model, ("complete",)) else model.complete(params, x)
    try:
        return model.free_energy(params, x) + model.log_partition(params)
    except CapabilityError:
        return None


def _rebuilt(trainer: Any, model: Any, params: Any, x: np.ndarray) -> np.ndarray:
    """What rows lose in their reconstruction from corrupted ones, and the penalties."""
    noise, rng = trainer.noise(), stream(5, Purpose.REPORT)
    up = model.encoder(params, x if noise is None else noise.corrupt(x, rng)[0])
    paid = 0.0
    for penalty in trainer.all_penalties():
        if hasattr(penalty, "mask"):
            up[-1].keep(penalty.mask(up[-1], 1.0))
        else:
            paid += float(penalty(up, rng)[0])
    down = model.decoder(params, up[-1].h)
    return paid + model.row_loss(params, down[-1], model.standardized(params, x))


def _more(x: np.ndarray, bits: bool) -> np.ndarray:
    """More rows of the same kind: each one four times, disturbed."""
    rng, x = np.random.default_rng(6), np.repeat(x, _COPIES, axis=0)
    if bits:
        return np.abs(x - (rng.random(x.shape) < 0.05))
    noisy = x + 0.3 * x.std(axis=0) * rng.standard_normal(x.shape)
    return noisy.clip(0, 1) if x.min() >= 0 and x.max() <= 1 else noisy


def _ids(value: Any) -> str:
    return getattr(value, "name", getattr(value, "__name__", None))


@pytest.mark.slow
@pytest.mark.parametrize(("case", "trainer"), PAIRS, ids=_ids)
def test_every_declared_pair_lowers_its_loss(case: Case, trainer: type) -> None:
    """From parameters off any start, by the trainer's own steps; at its own rate, or, where an
    energy in the units of the data is too steep for that, at a hundredth of it."""
    rates = (
        (None, 0.01 * trainer.default_rate) if "learning_rate" in _settings(trainer) else (None,)
    )
    found = []
    for rate in rates:
        gained = _gain(case, trainer, rate)
        if gained is None:
            pytest.skip("chains descend a likelihood that has no value without log Z")
        found.append(gained)
        if _clear(gained):
            return
    raise AssertionError([f"fell by {g.mean():.3g} ± {g.std():.3g} a row" for g in found])


def _settings(trainer: type) -> Any:
    return trainer().get_params(deep=False)


def _clear(gained: np.ndarray) -> bool:
    return bool(gained.mean() > 5 * gained.std() / np.sqrt(len(gained)))


def _gain(case: Case, trainer: type, rate: float | None) -> np.ndarray | None:
    """What the loss of every row fell by; None where it has no value."""
    model = case.make()
    x = _more(case.data, model.domain == "binary")
    size = None if trainer in (EM, ClosedForm) else len(x)
    strategy = short(trainer, batch_size=size, learning_rate=rate)
    params = {k: np.array(v) for k, v in generic_params(model, x, noise=_NOISE).items()}
    carry = strategy.start(model, params, x, stream(5, Purpose.START))
    first = losses(strategy, model, params, carry, x)
    if first is None:
        return None
    gained, step = 0 * first, 0
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for _ in range(_ROUNDS):
            for _ in range(_UPDATES if strategy.every == "batch" else 1):
                sums = _sums(strategy, model, params, carry, x, step)
                progress = 0.0 if trainer is ClosedForm else None
                at = Moment(0, step, progress, stream(5, Purpose.COLLECT, step))
                strategy.apply(model, params, carry, sums, at)
                step += 1
            gained = first - losses(strategy, model, params, carry, x)
            if _clear(gained) or not np.isfinite(gained).all():
                break
    return gained


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("case", "trainer"), EVERY, ids=_ids)
def test_every_pair_goes_on_where_it_stopped(case: Case, trainer: type, tmp_path: Any) -> None:
    """A run that ended early, was kept in a file and goes on is the run that did not end, to the
    bit; and a second `partial_fit` follows the first."""

    rate = 0.01 * trainer.default_rate if "learning_rate" in _settings(trainer) else None

    def made(*callbacks: Any) -> Any:
        settings = {"n_epochs": 3, "batch_size": 7, "n_chains": 5, "learning_rate": rate}
        strategy = short(trainer, callbacks=callbacks, **settings)
        return case.make(trainer=strategy).set_params(random_state=0)

    whole, stopped = made().fit(case.data), made(lambda *_: True).fit(case.data)
    stopped.set_params(trainer=made().trainer).save(tmp_path / "stopped.h5")
    resumed = load(tmp_path / "stopped.h5").resume(case.data)
    assert resumed.n_iter_ == whole.n_iter_
    for part in ("params", "carry"):
        wanted, got = getattr(whole._state, part), getattr(resumed._state, part)
        assert wanted.keys() == got.keys()
        for key in wanted:
            np.testing.assert_array_equal(got[key], wanted[key], err_msg=key)
    if hasattr(case.make(), "partial_fit"):
        assert made().partial_fit(case.data).partial_fit(case.data).n_iter_ == 2
