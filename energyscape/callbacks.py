"""What is called after every epoch: checkpoints, early stopping, a log of numbers.

A callback is ``callback(model, state, info) → True to stop``. One with ``stopped(state)`` is asked
before a resumed run goes on, one with ``interrupted(model, state)`` is told of an interrupt.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from energyscape import io
from energyscape.registry import register
from energyscape.training import TrainState
from energyscape.verbs import check_count

__all__ = ["Checkpoint", "EarlyStopping", "JsonLines"]


@register
class Checkpoint(BaseEstimator):
    """Save the model, with all that a resumed run needs, every few epochs.

    Parameters
    ----------
    path : str or path-like
        Where to; ``{epoch}`` in it is replaced, otherwise each save replaces the last.
    every : int, default 1
        Epochs between saves. A run that is interrupted saves its last finished epoch too if it is
        alone; on a cluster, epochs since the last save are lost.
    """

    def __init__(self, path: str | os.PathLike[str], every: int = 1) -> None:
        self.path = path
        self.every = every

    def validate(self) -> None:
        """Raise for settings that would fail only after the first epoch."""
        check_count("Checkpoint.every", self.every)
        folder = Path(self.path).parent
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder} for Checkpoint to write to")

    def __call__(self, model: Any, state: TrainState, info: dict[str, float]) -> bool:
        if state.epoch % self.every == 0:
            self.interrupted(model, state)
        return False

    def interrupted(self, model: Any, state: TrainState) -> None:
        """Save now; nothing is saved before the first epoch is done."""
        if state.epoch:
            io.save(model, os.fspath(self.path).replace("{epoch}", str(state.epoch)))


@register
class OwnCheckpoint(Checkpoint):
    """The one that the command line adds of itself, and takes off again wherever the file lies."""


@register
class EarlyStopping(BaseEstimator):
    """Stop when a value of the history has not fallen for some epochs.

    Parameters
    ----------
    monitor : str, default "reconstruction"
        A key of the history, e.g. ``"energy_gap"`` (needs ``validation_fraction``).
    patience : int, default 5
        Epochs to wait for a new minimum.
    min_delta : float, default 0
        By how much a minimum must undercut the last one to count.
    """

    def __init__(
        self, monitor: str = "reconstruction", patience: int = 5, min_delta: float = 0.0
    ) -> None:
        self.monitor = monitor
        self.patience = patience
        self.min_delta = min_delta

    def validate(self) -> None:
        """Raise for a patience that would stop the fit before its first epoch."""
        check_count("EarlyStopping.patience", self.patience)

    def __call__(self, model: Any, state: TrainState, info: dict[str, float]) -> bool:
        if self.monitor not in info:
            raise ValueError(
                f"EarlyStopping.monitor={self.monitor!r} is not in the history; there are "
                f"{', '.join(info)}"
            )
        return self.stopped(state)

    def stopped(self, state: TrainState) -> bool:
        """Whether the history says that it is over, as a resumed run asks before it goes on."""
        best, since = np.inf, 0
        for value in state.history.get(self.monitor, ()):
            best, since = (value, 0) if value < best - self.min_delta else (best, since + 1)
        return since >= self.patience


@register
class JsonLines(BaseEstimator):
    """Append each epoch's metrics to a file, one JSON object a line.

    Numbers that JSON does not know (infinities, NaN) become null.

    Parameters
    ----------
    path : str or path-like
        ``"-"`` is standard output.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path

    def __call__(self, model: Any, state: TrainState, info: dict[str, float]) -> bool:
        line = json_line(info)
        if self.path == "-":
            print(line, flush=True)
        else:
            with Path(self.path).open("a") as file:
                file.write(line + "\n")
        return False


def json_line(record: dict[str, Any]) -> str:
    """The record as JSON, with null for numbers that JSON does not know."""
    odd = {k for k, v in record.items() if isinstance(v, float) and not math.isfinite(v)}
    return json.dumps({k: None if k in odd else v for k, v in record.items()})
