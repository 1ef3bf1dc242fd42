"""The only loop: batches, updates, history, progress, callbacks, checkpoint and resume.

Everything that survives an update is a `TrainState`: named arrays and a few numbers. Randomness
is addressed by (seed, purpose, step), so that a run continued from the state of epoch k repeats
the uninterrupted one bit for bit.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from energyscape.backend import Array, Purpose, namespace, stream, to_device, to_host
from energyscape.errors import DivergenceError
from energyscape.optim import Moment
from energyscape.progress import Bar
from energyscape.sharing import Share, held_out_rows, shared_rows, total_rows
from energyscape.sources import Rows, rows_per_block
from energyscape.trainers.base import Batch
from energyscape.verbs import Params, speaks
from energyscape.workers import ALONE, Workers

_log = logging.getLogger("energyscape")
# Rows that a pass over all of them takes at once; verbs cut them up further for the caches.
EPOCH_BLOCK_BYTES = 64 << 20
_FEWEST_MONITORED = 100


@dataclass
class TrainState:
    """All that survives an update.

    Attributes
    ----------
    params, carry : dict of arrays
        Of the model and of the strategy.
    epoch, step : int
        Finished epochs and updates.
    history : dict of lists
        One entry per epoch and key, Python numbers.
    n_rows : int
        Training rows per epoch, which a resumed run must find again.
    """

    params: Params
    carry: Params
    epoch: int = 0
    step: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)
    n_rows: int = 0

    def move(self, device: str) -> None:
        """All arrays onto ``device``."""
        for part in (self.params, self.carry):
            part.update({key: to_device(value, device) for key, value in part.items()})


@dataclass(frozen=True)
class Plan:
    """What a run is to do: everything that the state does not say.

    Attributes
    ----------
    seed : int
    device : str
    until : int
        Epoch at which to stop.
    span : int or None
        Epochs over which the learning rate is scheduled; None keeps it constant.
    verbose : bool
    workers : Workers
        Who shares the run.
    """

    seed: int
    device: str
    until: int
    span: int | None
    verbose: bool = False
    workers: Workers = ALONE

    def stream(self, purpose: Purpose, step: int, device: str = "cpu") -> Any:
        """Random numbers that are this worker's own."""
        return stream(self.seed, purpose, step, device, self.workers.rank)


def split(
    trainer: Any, rows: Rows, seed: int, workers: Workers = ALONE
) -> tuple[Rows, Rows | None, int]:
    """Rows to train on and, where the trainer asks for them, rows set apart; the number of the
    former over all workers, for which the trainer's settings are settled."""
    held_out = None
    if trainer.validation_fraction:
        order = stream(seed, Purpose.SPLIT, 2, part=workers.rank)
        rows, held_out = rows.split(held_out_rows(workers, rows, trainer), order)
    total = total_rows(workers, rows)
    trainer.settle(total)
    return rows, held_out, total


def run(
    model: Any, trainer: Any, state: TrainState, rows: Rows, held_out: Rows | None, plan: Plan
) -> None:
    """Advance ``state`` in place to epoch ``plan.until``, or until a callback stops it.

    With several workers ``rows`` are this one's, and all begin and end with the same state.

    Raises
    ------
    DivergenceError
        If a parameter is no longer finite, or chains that HMC moves have come to rest; the state
        is put back to the last good epoch first.
    KeyboardInterrupt
        Likewise put back, as after any other exception from within an epoch; callbacks with an
        ``interrupted`` method are told.
    """
    ends = [c.stopped for c in trainer.callbacks if hasattr(c, "stopped")]
    rows.device = plan.device
    share = Share(plan.workers, rows, trainer, plan.seed)
    if plan.span is not None and share.decided(any([stopped(state) for stopped in ends])):
        return
    if plan.span is not None and trainer.converged(state.history):
        return
    rows = _with_targets(model, trainer, state, rows, plan)
    monitor = Monitor(model, trainer, state, rows, held_out, plan)
    share.enter(state)
    good = _snapshot(state)
    bar = Bar(
        total=(plan.until - state.epoch) * share.updates,
        desc=f"{type(model).__name__}/{type(trainer).__name__}",
        unit="batch",
        file=sys.stderr,
        disable=not plan.verbose,
    )
    with bar, np.errstate(over="ignore", invalid="ignore"):
        try:
            while state.epoch < plan.until:
                started = time.perf_counter()
                try:
                    norm = _epoch(model, trainer, state, rows, plan, share, bar)
                except FloatingPointError:
                    state.epoch += 1
                    raise _diverged(model, trainer, state, good, _NOT_FINITE) from None
                share.end_epoch(model, state)
                state.epoch += 1
                lost = trainer.lost(model, state.carry) if _finite(state) else _NOT_FINITE
                info = dict[str, Any]()
                if lost is None:
                    try:
                        info = monitor(state, norm, time.perf_counter() - started)
                    except np.linalg.LinAlgError:
                        lost = _SINGULAR
                lost = share.agreed(lost)
                if lost is not None:
                    raise _diverged(model, trainer, state, good, lost)
                info = share.mean_info(info)
                _record(state.history, info)
                good = _snapshot(state)
                bar.set_postfix({k: f"{info[k]:.4g}" for k in monitor.shown if k in info})
                with share.shown(state):
                    # A list, not a generator: every callback hears of every epoch.
                    stop = any([callback(model, state, info) for callback in trainer.callbacks])
                if share.watched and share.decided(stop):
                    break
                if plan.span is not None and trainer.converged(state.history):
                    break
            share.leave(state)
        except BaseException as error:
            _restore(state, good)
            for callback in trainer.callbacks if plan.workers.size == 1 else ():
                if isinstance(error, KeyboardInterrupt) and hasattr(callback, "interrupted"):
                    callback.interrupted(model, state)
            raise


def _with_targets(model: Any, trainer: Any, state: TrainState, rows: Rows, plan: Plan) -> Rows:
    """Rows with the trainer's targets, where it has some, rows stay as they are, and all targets
    fit in scikit-learn's ``working_memory``."""
    if trainer.batch_transform is not None:
        return rows

    def targets(part: Array) -> Any:
        return trainer.targets(model, state.params, _cast(to_device(part, plan.device), state))

    first = targets(rows.take(slice(0, 1)))
    if first is None or rows_per_block(first.nbytes) < len(rows):
        return rows
    size = max(1, EPOCH_BLOCK_BYTES // max(1, rows.row_bytes, first.nbytes))
    return rows.labelled(np.concatenate([to_host(targets(part)) for part in rows.blocks(size)]))


def _epoch(
    model: Any,
    trainer: Any,
    state: TrainState,
    rows: Rows,
    plan: Plan,
    share: Share,
    bar: Any,
) -> Array:
    """One pass over the rows; returns the norm of the last gradient, still on the device."""
    if trainer.every == "epoch":
        return _whole_epoch(model, trainer, state, rows, plan, share, bar)
    end = None if plan.span is None else plan.span * share.updates
    norm: Array = 0.0
    order = plan.stream(Purpose.ORDER, state.epoch)
    # Closed at once if anything fails, and not when the traceback goes: a thread may read ahead.
    with contextlib.closing(share.batches(rows, trainer.batch_size, order)) as batches:
        for i, (raw, labels) in enumerate(batches):
            rng = plan.stream(Purpose.COLLECT, state.step, plan.device)
            x = _prepared(trainer, raw, plan, state)
            progress = None if end is None else min(1.0, state.step / end)
            y = None if labels is None else to_device(labels, plan.device)
            batch = share.batch(i, x, y, progress)
            sums = share.summed(trainer.collect(model, state.params, state.carry, batch, rng))
            if i == share.updates - 1:
                norm = _norm(sums)
            at = Moment(state.epoch, state.step, progress, share.rng(rng, state.step, plan.device))
            trainer.apply(model, state.params, state.carry, sums, at)
            state.step += 1
            share.updated(model, state)
            plan.workers.progress(state.epoch, state.step, len(x))
            bar.update()
    return norm


def _whole_epoch(
    model: Any,
    trainer: Any,
    state: TrainState,
    rows: Rows,
    plan: Plan,
    share: Share,
    bar: Any,
) -> Array:
    """One update from the sums over all rows, read in their order by blocks."""
    sums: Params = {}
    size = max(1, EPOCH_BLOCK_BYTES // max(1, rows.row_bytes))
    count = -(-len(rows) // size)
    for i, raw in enumerate(rows.blocks(size)):
        address = state.epoch * count + i
        rng = plan.stream(Purpose.COLLECT, address, plan.device)
        x = _prepared(trainer, raw, plan, state, address)
        part = trainer.collect(model, state.params, state.carry, Batch(x, share.total), rng)
        sums = part if not sums else {key: sums[key] + part[key] for key in sums}
    sums = share.summed(sums)
    if not all([bool(namespace(v).isfinite(v).all()) for v in sums.values()]):
        raise FloatingPointError("sums over the rows are not finite")  # no solver takes them
    progress = None if plan.span is None else state.epoch / plan.span
    mine = plan.stream(Purpose.COLLECT, (state.epoch + 1) * count, plan.device)
    rng = share.rng(mine, state.step, plan.device)
    at = Moment(state.epoch, state.step, progress, rng)
    trainer.apply(model, state.params, state.carry, sums, at)
    state.step += 1
    plan.workers.progress(state.epoch, state.step, len(rows))
    bar.update()
    return math.nan


def _prepared(
    trainer: Any, raw: Array, plan: Plan, state: TrainState, address: int | None = None
) -> Array:
    x = _cast(to_device(raw, plan.device), state)
    if trainer.batch_transform is None:
        return x
    step = state.step if address is None else address
    rng = plan.stream(Purpose.TRANSFORM, step, plan.device)
    return trainer.batch_transform(x, rng)


def _cast(x: Array, state: TrainState | None) -> Array:
    """``x`` in the dtype of the parameters: rows of another fit may come in another one."""
    if state is None:
        return x
    return x.astype(next(iter(state.params.values())).dtype, copy=False)


def first_rows(
    trainer: Any,
    rows: Rows,
    n: int,
    plan: Plan,
    purpose: Purpose,
    state: TrainState | None = None,
    transformed: bool = True,
) -> Array:
    """Up to ``n`` random training rows on the device, as the trainer would see them."""
    x = _cast(to_device(rows.sample(n, plan.stream(purpose, 0)), plan.device), state)
    if trainer.batch_transform is None or not transformed:
        return x
    return trainer.batch_transform(x, plan.stream(purpose, 1, plan.device))


def start_rows(trainer: Any, rows: Rows, plan: Plan) -> tuple[Array, int]:
    """Random training rows to begin from, of all workers in proportion, and how many rows there are
    in all."""
    total = total_rows(plan.workers, rows)
    n = -(-trainer.start_rows * len(rows) // total)
    x = first_rows(trainer, rows, n, plan, Purpose.INIT)
    return shared_rows(plan.workers, x), total


class Monitor:
    """The history's scalars at the end of an epoch, on the same rows every time."""

    shown = ("energy_train", "energy_gap", "loss_train", "error_valid", "reconstruction")

    def __init__(
        self,
        model: Any,
        trainer: Any,
        state: TrainState,
        rows: Rows,
        held_out: Rows | None,
        plan: Plan,
    ) -> None:
        self.model, self.trainer, self.plan = model, trainer, plan
        self.train = self._rows(rows, Purpose.REPORT, state)
        self.valid = None if held_out is None else self._rows(held_out, Purpose.SPLIT, state)

    def _rows(self, rows: Rows, purpose: Purpose, state: TrainState) -> tuple[Array, Array]:
        """Rows with their labels, as the trainer would see them."""
        n, plan = min(self.trainer.monitor_rows, self.model.monitored_rows), self.plan
        if plan.span is None:  # not to measure longer than one learns, in streams of small parts
            n = min(n, max(_FEWEST_MONITORED, len(rows) // 10))
        labels = rows.labels(rows.pick(n, plan.stream(purpose, 0)))
        x = first_rows(
            self.trainer, rows, n, plan, purpose, state, self.trainer.monitor_transformed
        )
        return x, None if labels is None else to_device(labels, plan.device)

    def __call__(self, state: TrainState, norm: Array, seconds: float) -> dict[str, float]:
        model, plan, params = self.model, self.plan, state.params
        progress = None if plan.span is None else min(1.0, (state.epoch - 1) / plan.span)
        began = Moment(state.epoch - 1, state.step, progress)
        rate = self.trainer.rate(began)
        info: dict[str, Any] = {
            "epoch": state.epoch,
            "seconds": seconds,
        }
        if rate is not None:
            info |= {"learning_rate": rate, "grad_norm": norm}
        here = self.trainer.measure(model, params, *self.train)
        info |= {f"{key}_train": value for key, value in here.items()}
        if self.valid is not None:
            there = self.trainer.measure(model, params, *self.valid)
            info |= {f"{key}_valid": value for key, value in there.items()}
            info |= {f"{key}_gap": there[key] - here[key] for key in here}
        if not speaks(model, ("encode", "decode")):
            x = self.train[0][: model.decoded_rows]
            mean = model.decode(params, model.encode(params, x))
            info["reconstruction"] = ((x - mean) ** 2).mean()
        rng = stream(plan.seed, Purpose.REPORT, state.epoch + 2, plan.device)
        info |= self.trainer.report(model, params, state.carry, rng)
        return {k: v if isinstance(v, int) else float(v) for k, v in info.items()}


def _record(history: dict[str, list[float]], info: dict[str, float]) -> None:
    """Append one epoch; keys that come or go between fits are filled with NaN."""
    epochs = max(map(len, history.values()), default=0)
    for key in history | info:
        history.setdefault(key, [math.nan] * epochs).append(info.get(key, math.nan))


def _norm(sums: Params) -> Array:
    """Euclidean norm over all gradients, without waiting for the device."""
    total: Array = 0.0
    for key, g in sums.items():
        if "/" not in key:
            flat = g.ravel()
            total = total + flat.dot(flat)
    return total**0.5


def _snapshot(state: TrainState) -> TrainState:
    copy = {part: {k: v.copy() for k, v in getattr(state, part).items()} for part in _PARTS}
    history = {k: list(v) for k, v in state.history.items()}
    return TrainState(copy["params"], copy["carry"], state.epoch, state.step, history, state.n_rows)


def _restore(state: TrainState, good: TrainState) -> None:
    for part in _PARTS:
        getattr(state, part).update(getattr(good, part))
    state.epoch, state.step, state.history = good.epoch, good.step, good.history


_PARTS = ("params", "carry")


def _finite(state: TrainState) -> bool:
    arrays = [v for part in _PARTS for v in getattr(state, part).values() if v.dtype.kind == "f"]
    return all([bool(namespace(v).isfinite(v).all()) for v in arrays])


_SINGULAR = "has a matrix that can no longer be factored"
_NOT_FINITE = "met numbers that are not finite"


def _diverged(
    model: Any, trainer: Any, state: TrainState, good: TrainState, why: str
) -> DivergenceError:
    epoch, rate = state.epoch, trainer.rate(Moment(0, 0, None))
    largest = {k: float(abs(v).max()) for k, v in good.params.items()}
    worst = max(largest, key=lambda k: largest[k])
    _restore(state, good)
    where = "" if rate is None else f" at learning rate {rate:g}"
    cause = (
        "The likely cause is the scale of the data: standardise them, or use float64"
        if rate is None
        else f"The likely cause is the learning rate: try {rate / 10:g}, or "
        "energyscape.find_learning_rate"
    )
    return DivergenceError(
        f"{type(model).__name__} {why} in epoch {epoch}{where}; the model is back at epoch "
        f"{good.epoch} (largest parameter then: |{worst}| = "
        f"{largest[worst]:.3g}). {cause}"
    )
