"""A learning rate to begin with, by trying."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
from sklearn.base import clone

from energyscape.backend import Purpose, draw_seed, on_device, stream, to_device
from energyscape.errors import (
    CapabilityError,
    DivergenceError,
    SamplerWarning,
    UnnormalizedScoreWarning,
)
from energyscape.optim import Constant
from energyscape.verbs import speaks

_log = logging.getLogger("energyscape")
_ROWS, _UPDATES, _HALVINGS = 2000, 300, 24


def find_learning_rate(
    model: Any, X: Any, *, start: float | None = None, random_state: Any = None
) -> float:
    """The largest learning rate, halving from ``start``, at which a short run does not diverge.

    Each trial trains a clone at a constant rate for about 300 updates on up to 2,000 rows. It has
    diverged if a number is not finite, or if the model ends up worse than knowing nothing of how
    features hang together: less likely, on those rows, than independent units with their rates or
    variances. A run whose rate falls to 0 (the default) can begin at the rate that is returned.

    Parameters
    ----------
    model : model instance
        Its trainer's other settings are kept; ``trainer=None`` means ``default_trainer()``.
    X : array, shape (n, n_features)
    start : float, optional
        First rate to try; default ten times that of the trainer.
    random_state : int, RandomState, Generator or None
        Of the trials and of the choice of rows; None uses the model's ``random_state``.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If even the smallest of 24 halvings diverges: then the data or other settings are amiss.
    """
    seed = draw_seed(model.random_state if random_state is None else random_state)
    trial = clone(model).set_params(random_state=seed)
    rows = trial.read(X, reset=True)
    x = rows.sample(_ROWS, stream(seed, Purpose.DIAGNOSE))
    trainer = clone(model.trainer) if model.trainer is not None else model.default_trainer()
    if "optimizer" not in trainer.get_params(deep=False):
        raise CapabilityError(
            f"{type(trainer).__name__} takes no learning rate: there is none to be found for "
            f"{type(model).__name__}"
        )
    optimizer = clone(trainer.resolved_optimizer()).set_params(schedule=Constant())
    trainer.set_params(
        learning_rate=None, optimizer=optimizer, validation_fraction=0.0, callbacks=()
    )
    trainer.n_epochs = max(1, _UPDATES // trainer.updates_per_epoch(len(x)))
    trial.set_params(trainer=trainer)
    rate = 10 * optimizer.learning_rate if start is None else start
    for _ in range(_HALVINGS):
        if _holds(trial.set_params(trainer__optimizer__learning_rate=rate), x):
            return float(rate)
        _log.info("find_learning_rate: %g diverges", rate)
        rate /= 2
    raise ValueError(
        f"{type(model).__name__} diverges at every rate down to {rate * 2:g}: look at the scale "
        "of X and at the other settings"
    )


def _holds(trial: Any, x: Any) -> bool:
    """Whether a short run ends finite and above where it must begin, by a score to be trusted."""
    with warnings.catch_warnings(), np.errstate(over="ignore", invalid="ignore"):
        warnings.simplefilter("error", SamplerWarning)
        warnings.simplefilter("ignore", UnnormalizedScoreWarning)
        try:
            return bool(trial.fit(x).score(x) > independent_score(trial, x))
        except (DivergenceError, SamplerWarning):
            return False


def independent_score(model: Any, x: Any) -> float:
    """Mean log-likelihood of rows under the model's base measure: features that know no other.

    Where there is no base measure, the mean score of the model before it was trained.
    """
    params = model._params
    if speaks(model, ("base_measure", "base_log_partition")):
        with on_device(model._device):
            x = to_device(x, model._device)
            start = model.init_params(x, stream(model.seed_, Purpose.INIT, 2, model._device))
            return -float(model.free_energy(start, x).mean())
    base = model.base_measure(params)
    with on_device(model._device):
        energy = model.target(params, base, 0.0).energy(to_device(x, model._device))
    return -float(energy.mean()) - model.base_log_partition(params, base)
