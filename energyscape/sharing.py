"""A run that several workers make together: what each does, and where they meet.

A batch of an update is made of rows of every worker, in proportion to how many each has. Its sums
are added up before the update, so that all of them make the same one (`Workers.sync_every` = 1), or
each makes some updates by itself and the parameters are averaged after them (McMahan and others,
2017). Chains and noise are each worker's own. A state outside of a run is whole, whoever holds it.

References
----------
McMahan, B., Moore, E., Ramage, D., Hampson, S., Agüera y Arcas, B. (2017). Communication-efficient
learning of deep networks from decentralized data.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from energyscape.backend import Array, Purpose, namespace, stream, to_host
from energyscape.sources import Rows
from energyscape.trainers.base import Batch
from energyscape.verbs import Params
from energyscape.workers import Workers, add_up, decided, first_word, joined, split_evenly


def total_rows(workers: Workers, rows: Rows) -> int:
    """Rows of all workers."""
    return int(joined(workers, np.array([len(rows)])).sum())


def shared_rows(workers: Workers, x: Array) -> Array:
    """Everyone's rows ``x``, on everyone's device."""
    return x if workers.size == 1 else namespace(x).asarray(joined(workers, to_host(x)))


def held_out_rows(workers: Workers, rows: Rows, trainer: Any) -> int:
    """How many of this worker's rows are set apart: of all rows, as many as one process would.

    Raises
    ------
    ValueError
        Unless there are rows on both sides, for every worker.
    """
    fraction = trainer.validation_fraction
    ends = np.cumsum([0, *joined(workers, np.array([len(rows)]))])
    counts = [round(hi * fraction) - round(lo * fraction) for lo, hi in pairwise(ends.tolist())]
    left = [n - held_out for n, held_out in zip(np.diff(ends).tolist(), counts, strict=True)]
    if min(counts) < 1 or min(left) < 1:
        whose = f"the {ends[-1]} rows" if len(left) == 1 else "the rows of some worker"
        raise ValueError(
            f"validation_fraction={fraction} of {whose} leaves {min(counts)} for validation and "
            f"{min(left)} for training; both must be at least 1"
        )
    return counts[workers.rank]


class Share:
    """One worker's part in a run.

    Parameters
    ----------
    workers : Workers
    rows : Rows
        This worker's.
    trainer : Trainer
    seed : int

    Raises
    ------
    ValueError
        If some worker has fewer rows than there are updates in an epoch.
    """

    def __init__(self, workers: Workers, rows: Rows, trainer: Any, seed: int) -> None:
        self.workers, self.seed = workers, seed
        self.counts = joined(workers, np.array([len(rows)]))
        self.total = int(self.counts.sum())
        self.updates = trainer.updates_per_epoch(self.total)
        self.local = workers.sync_every > 1 and trainer.every == "batch"
        self.chains: int | None = None
        # Whether anyone looks at the whole state after an epoch: worker 0 alone may.
        self.watched = self.decided(bool(trainer.callbacks))
        self._since = 0
        if workers.size > 1 and self.counts.min() < self.updates:
            poor = int(self.counts.argmin())
            raise ValueError(
                f"worker {poor} has {self.counts[poor]} of {self.total} rows, fewer than the "
                f"{self.updates} updates of an epoch: spread the rows more evenly, or raise "
                f"batch_size={trainer.batch_size}"
            )

    # ------------------------------------------------------------ rows

    def batches(self, rows: Rows, batch_size: int, order: Any) -> Any:
        """This worker's rows of every batch of an epoch, all in a random order."""
        if self.workers.size == 1:
            return rows.batches(batch_size, order)
        return _cut(rows, [self._count(len(rows), i) for i in range(self.updates)], order)

    def _count(self, n: int, i: int) -> int:
        part = split_evenly(n, self.updates, i)
        return part.stop - part.start

    def batch(self, i: int, x: Array, y: Array, progress: float | None) -> Batch:
        """Rows of update ``i``, with what they are a part of."""
        if self.workers.size == 1 or self.local:
            return Batch(x, len(x), y, progress)
        n = sum(self._count(int(count), i) for count in self.counts)
        return Batch(x, n, y, progress, self.chains)

    # ------------------------------------------------------------ sums

    def summed(self, sums: Params) -> Params:
        """Sums over all workers, where every update is made together."""
        return sums if self.local else add_up(self.workers, sums)

    def rng(self, mine: Any, step: int, device: str) -> Any:
        """What an update draws from: the same for all who make it."""
        if self.workers.size == 1:
            return mine
        return stream(self.seed, Purpose.APPLY, step, device)

    def updated(self, model: Any, state: Any) -> None:
        """Told after every update; averages the parameters where that is due."""
        self._since += 1
        if self.local and self._since >= self.workers.sync_every:
            self._average(model, state)

    def _average(self, model: Any, state: Any) -> None:
        self._since = 0
        state.params |= self._of_first(state.params, integers=True)
        state.carry |= self._of_first(state.carry, integers=True)
        state.carry |= self._means(state.carry)
        moved = model.coordinates(state.params)
        model.set_coordinates(state.params, moved | self._means(moved))

    def _means(self, arrays: Params) -> Params:
        """Means of floating arrays over the workers, weighted by their rows; chains stay apart."""
        share = self.counts[self.workers.rank] / self.total
        parts = {key: v * v.dtype.type(share) for key, v in _shared(arrays).items()}
        return add_up(self.workers, parts) if parts else {}

    def end_epoch(self, model: Any, state: Any) -> None:
        """Put together what each did by itself since they last met."""
        if self.workers.size == 1:
            return
        if self.local and self._since:
            self._average(model, state)
        elif not self.local:
            state.carry |= self._means(_own(state.carry, "sampler/"))
            # Unlike processors round unlike; a choice that hangs by a hair must not part workers.
            state.params |= self._of_first(state.params)
            state.carry |= self._of_first(state.carry)

    def agreed(self, complaint: str | None) -> str | None:
        """What any worker has to complain of."""
        return first_word(self.workers, complaint)

    def decided(self, answer: bool) -> bool:
        """What worker 0, which alone has callbacks, decides."""
        return answer if self.workers.size == 1 else decided(self.workers, answer)

    def mean_info(self, info: dict[str, Any]) -> dict[str, Any]:
        """An epoch's numbers, as means over the workers."""
        if self.workers.size == 1:
            return info
        keys = [key for key, value in info.items() if not isinstance(value, int)]
        share = self.counts[self.workers.rank] / self.total
        mean = np.array([float(info[key]) for key in keys]) * share
        self.workers.add(mean)
        return info | dict(zip(keys, mean.tolist(), strict=True))

    # ------------------------------------------------------------ the state

    def enter(self, state: Any) -> None:
        """From a whole state to this worker's: worker 0's numbers, and a part of the chains."""
        if self.workers.size == 1:
            return
        for integers in (False, True):
            state.params |= self._of_first(state.params, integers)
            state.carry |= self._of_first(state.carry, integers)
        chains = _own(state.carry, "chain/")
        if not chains:
            return
        self.chains = len(next(iter(chains.values())))
        if self.chains < self.workers.size:
            raise ValueError(
                f"{self.chains} chains cannot be shared by {self.workers.size} workers: raise "
                "n_chains of the trainer, or take fewer workers"
            )
        part = split_evenly(self.chains, self.workers.size, self.workers.rank)
        state.carry |= {key: value[part].copy() for key, value in chains.items()}

    def _of_first(self, arrays: Params, integers: bool = False) -> Params:
        """Worker 0's floating arrays, or those of integers and of yes and no (below 2**53)."""
        found = {
            key: value.astype(np.float64) if integers else value
            for key, value in _shared(arrays, "iub" if integers else "f").items()
        }
        if self.workers.rank:
            found = {key: namespace(value).zeros_like(value) for key, value in found.items()}
        if not found:
            return {}
        return {k: v.astype(arrays[k].dtype) for k, v in add_up(self.workers, found).items()}

    def leave(self, state: Any) -> None:
        """Back to a whole state: everyone's chains."""
        if self.workers.size > 1:
            state.carry |= self._all_chains(state)

    def _all_chains(self, state: Any) -> Params:
        chains = _own(state.carry, "chain/")
        found = {key: joined(self.workers, to_host(chains[key])) for key in sorted(chains)}
        return {key: namespace(chains[key]).asarray(value) for key, value in found.items()}

    @contextlib.contextmanager
    def shown(self, state: Any) -> Iterator[None]:
        """The whole state, while callbacks look at it."""
        if self.workers.size == 1 or not self.watched:
            yield
            return
        mine = _own(state.carry, "chain/")
        state.carry |= self._all_chains(state)
        try:
            yield
        finally:
            state.carry |= mine


def _own(carry: Params, prefix: str) -> Params:
    return {key: value for key, value in carry.items() if key.startswith(prefix)}


def _shared(arrays: Params, kinds: str = "f") -> Params:
    """Arrays of some kinds of dtype that are no chains."""
    return {
        key: value
        for key, value in arrays.items()
        if value.dtype.kind in kinds and not key.startswith("chain/")
    }


def _cut(rows: Rows, sizes: list[int], order: Any) -> Iterator[tuple[Array, np.ndarray | None]]:
    """Rows in a random order, in batches of the given sizes, which differ by one at most."""
    stock: Any = rows.batches(max(sizes), order)
    with contextlib.closing(stock):
        x, y = next(stock)
        for size in sizes:
            if len(x) < size:
                more, labels = next(stock)
                if len(x):
                    more = namespace(x).concatenate([x, more])
                    labels = None if y is None else np.concatenate([y, labels])
                x, y = more, labels
            yield x[:size], None if y is None else y[:size]
            x, y = x[size:], None if y is None else y[size:]
