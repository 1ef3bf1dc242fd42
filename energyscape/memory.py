"""What to say when a GPU's memory is full: how much was wanted, is free, and would do.

What a row and a chain take is measured: small updates on the CPU, where NumPy tells the
interpreter of every array that it makes (`tracemalloc`). The GPU's path makes much the same arrays,
so that the counts are meant as "about".
"""

from __future__ import annotations

import contextlib
import math
import re
import traceback
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone

from energyscape.backend import Purpose, gpu_module, is_gpu_array, stream, to_host
from energyscape.errors import DeviceError
from energyscape.optim import Moment
from energyscape.sources import Rows, compute_dtype
from energyscape.trainers.base import Batch
from energyscape.verbs import Params

_FEW, _MORE = 32, 96  # rows of the updates that are measured, or chains where these are fewer
_USABLE = 0.9  # of free memory: the rest is lost between blocks of unequal size


@dataclass(frozen=True)
class Needs:
    """Bytes that an update takes besides the parameters and what the strategy keeps of their size.

    Attributes
    ----------
    fixed, row : float
        Of what is collected: for itself, and for each row of a batch with its share of the chains.
    apply : float
        Of what follows, whatever the rows were.
    """

    fixed: float
    row: float
    apply: float

    def of(self, rows: float) -> float:
        """Bytes of an update."""
        return max(self.apply, self.fixed + rows * self.row)


@contextlib.contextmanager
def told_of_memory(model: Any, trainer: Any, rows: Rows, state: Any = None) -> Iterator[None]:
    """Turn a GPU's full memory into a `DeviceError` that says what would fit."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if error.__traceback__ is not None:
            traceback.clear_frames(error.__traceback__)  # which hold what was made until then
        raise out_of_memory(model, trainer, rows, state, error) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether CuPy found no room for an array."""
    return type(error).__name__ == "OutOfMemoryError" and type(error).__module__.startswith("cupy")


def out_of_memory(
    model: Any, trainer: Any, rows: Rows, state: Any, error: BaseException
) -> DeviceError:
    """The error for a fit of ``model`` by ``trainer`` on ``rows`` that met ``error``.

    Parameters
    ----------
    model, trainer
    rows : Rows
    state : TrainState or None
        None before there is one.
    error : cupy.cuda.memory.OutOfMemoryError
    """
    cupy = gpu_module()
    free, total = cupy.cuda.Device().mem_info
    capacity = free + cupy.get_default_memory_pool().total_bytes()
    wanted = re.search(r"allocating ([\d,]+) bytes", str(error))
    asked = f"an array of {_size(int(wanted[1].replace(',', '')))}" if wanted else "an array"
    device = f"cuda:{cupy.cuda.Device().id}"
    what = (
        f"{type(model).__name__} by {type(trainer).__name__} ran out of memory on {device}: "
        f"{asked} found no room; of {_size(total)} this process can have {_size(capacity)}"
    )
    try:
        advice = _advice(model, trainer, rows, state, _USABLE * capacity)
    except Exception as other:  # whatever a small update may raise: the fault to tell is the first
        advice = f"A smaller batch_size may fit; how small could not be measured ({other})"
    return DeviceError(f"{what}. {advice}")


def measured_needs(
    model: Any,
    trainer: Any,
    params: Params,
    x: np.ndarray,
    share: float = 1.0,
    labels: np.ndarray | None = None,
) -> Needs:
    """What an update takes, from two small ones on the CPU.

    Peaks are the largest of several sums, which are linear in rows and in chains. Both grow
    together here, in the proportion of the fit, so that it is the same sum that is largest.

    Parameters
    ----------
    model, trainer
    params : dict of NumPy arrays
        Left as they are.
    x : array, shape (n, *event_shape)
        Rows to repeat, in the dtype of the parameters.
    share : float, default 1
        Chains for each row of a batch.
    labels : array, shape (n,), optional
        Of the rows, where the trainer learns from labels.
    """
    least = min(1.0, share) if share > 0 else 1.0
    counts = [math.ceil(n / least) for n in (_FEW, _MORE)]
    peaks = [_peaks(model, trainer, params, x, n, max(1, round(n * share)), labels) for n in counts]
    (few, applied), (more, _) = peaks
    row = max(1.0, (more - few) / (counts[1] - counts[0]))
    return Needs(max(0.0, few - counts[0] * row), row, applied)


def _peaks(
    model: Any,
    trainer: Any,
    params: Params,
    x: np.ndarray,
    rows: int,
    chains: int,
    labels: np.ndarray | None = None,
) -> tuple[float, float]:
    """Most bytes of arrays at any time of the two halves of an update, rows and chains included.

    Apart, because the second has no rows in it: of few rows it may be the larger one.
    """
    trial, own = clone(trainer), {key: value.copy() for key, value in params.items()}
    if "n_chains" in trial.get_params(deep=False):
        trial.set_params(n_chains=chains)
    again = np.arange(rows) % len(x)
    batch = x[again]
    rng = stream(0, Purpose.COLLECT)
    with np.errstate(all="ignore"):
        carry = trial.start(model, own, batch, rng)
        y = trial.targets(model, own, batch) if labels is None else labels[again]
        kept = sum(v.nbytes for key, v in carry.items() if key.startswith("chain/"))
        tracing = tracemalloc.is_tracing()
        tracemalloc.start()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            sums = trial.collect(model, own, carry, Batch(batch, rows, y, 0.0), rng)
            collected = tracemalloc.get_traced_memory()[1] - before
            tracemalloc.reset_peak()
            trial.apply(model, own, carry, sums, Moment(0, 0, 0.0, rng))
            applied = tracemalloc.get_traced_memory()[1] - before
        finally:
            if not tracing:
                tracemalloc.stop()
    return collected + batch.nbytes + kept, applied + batch.nbytes + kept


def _advice(model: Any, trainer: Any, rows: Rows, state: Any, usable: float) -> str:
    """What would fit into ``usable`` bytes, in words."""
    if trainer.every == "epoch":
        return (
            f"{type(trainer).__name__} reads rows in blocks of its own size: fewer features or "
            "components, or device='cpu', would fit"
        )
    some = slice(0, min(len(rows), _MORE))
    x = to_host(rows.take(some))
    x = np.asarray(x, compute_dtype(x.dtype))
    kept = _kept(model, trainer, x, state)
    batch, chains = min(trainer.batch_size, len(rows)), _chains(trainer)
    needs = measured_needs(model, trainer, kept, x, chains / batch, rows.labels(some))
    held = sum(_resident(model, trainer, kept)) + (rows.X.nbytes if is_gpu_array(rows.X) else 0)
    alone = held + max(needs.fixed, needs.apply)
    counted = (
        f"Parameters with what belongs to them take about {_size(alone)}, a row of a batch"
        f"{' with its share of the chains' * bool(chains)} {_size(needs.row)}"
    )
    share = (usable - held - needs.fixed) / (batch * needs.row)
    if alone > usable or share * batch < 1:
        return f"{counted}: no batch fits. Fewer components or features, or device='cpu', would"
    if share >= 1:
        return (
            f"{counted}: batch_size={batch} should fit, so that something else holds the memory: "
            "other arrays of this process, or other programs"
        )
    fits = f"batch_size={_round_down(batch * share)}"
    if chains:
        fits += f" with n_chains={_round_down(chains * share)}"
    return f"{counted}: {fits} would fit"


def _kept(model: Any, trainer: Any, x: np.ndarray, state: Any) -> Params:
    """Parameters on the host: those of the state, or such as a fit would begin with."""
    if state is not None:
        return {key: to_host(value) for key, value in state.params.items()}
    with np.errstate(all="ignore"):
        params: Params = model.init_params(x, stream(0, Purpose.INIT))
    return params


def _resident(model: Any, trainer: Any, params: Params) -> tuple[float, float]:
    """Bytes of the parameters, twice for the copy of the last good epoch, and of the optimiser."""
    own = sum(v.nbytes for v in params.values())
    carry = trainer.resolved_optimizer().start(params, model.param_specs())
    return 2.0 * own, 2.0 * sum(v.nbytes for v in carry.values())


def _chains(trainer: Any) -> int:
    """How many chains a trainer moves besides the rows of a batch."""
    settings = trainer.get_params(deep=False)
    if "n_chains" not in settings:
        return 0
    chosen = settings["n_chains"]
    return max(int(trainer.batch_size), 100) if chosen is None else int(chosen)


def _round_down(count: float) -> int:
    """Two digits of a count."""
    digits = 10 ** max(0, int(math.log10(max(1.0, count))) - 1)
    return max(1, int(count) // digits * digits)


def _size(n: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}" if unit != "bytes" else f"{n:.0f} bytes"
        n /= 1000
    return f"{n:.3g} GB"
