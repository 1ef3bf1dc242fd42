"""Workers that are threads of one process, and noise that does not know where rows are."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from energyscape.backend import HostStream, Stream
from energyscape.workers import Workers


class _Table:
    """Where threads lay down what they bring, and take up what all have brought."""

    def __init__(self, size: int) -> None:
        self.parts: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=60)


class Threaded(Workers):
    """Workers of one process; sums in the order of ranks, the same bits for everyone."""

    def __init__(self, rank: int, size: int, table: _Table, sync_every: int = 1) -> None:
        self.rank, self.size, self.sync_every = rank, size, sync_every
        self._table = table
        self.sums = 0

    def _exchange(self, part: Any) -> list[Any]:
        self._table.parts[self.rank] = part
        self._table.barrier.wait()
        everyone = list(self._table.parts)
        self._table.barrier.wait()
        return everyone

    def add(self, buffer: Any) -> None:
        everyone = self._exchange(buffer.copy())
        assert len({(part.shape, str(part.dtype)) for part in everyone}) == 1
        total = everyone[0].copy()
        for part in everyone[1:]:
            total += part
        buffer[...] = total
        self.sums += 1

    def gather(self, part: np.ndarray) -> list[np.ndarray]:
        return [np.asarray(each) for each in self._exchange(part.copy())]

    def close(self) -> None:
        self._table.barrier.abort()


def together(size: int, work: Callable[[Threaded], Any], sync_every: int = 1) -> list[Any]:
    """What ``work`` returns for every one of ``size`` workers; the first error of any is raised."""
    table, found, errors = _Table(size), [None] * size, list[BaseException]()

    def run(rank: int) -> None:
        workers = Threaded(rank, size, table, sync_every)
        try:
            found[rank] = work(workers)
        except threading.BrokenBarrierError as error:
            errors.append(error)
        except BaseException as error:
            errors.insert(0, error)
            workers.close()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found


class RowBlind(Stream):
    """Noise that is the same for every row: what a row gets does not depend on its neighbours."""

    def __init__(self, seed: int) -> None:
        self._host = HostStream(seed, 0, 0)

    def _rows(self, draw: Any, shape: Any, dtype: Any, out: Any) -> Any:
        shape = np.shape(out) if out is not None else tuple(np.atleast_1d(shape))
        row = draw((1, *shape[1:]), dtype if out is None else out.dtype)
        if out is None:
            return np.repeat(row, shape[0], axis=0)
        out[...] = row
        return out

    def uniform(self, shape: Any = None, dtype: Any = np.float32, out: Any = None) -> Any:
        return self._rows(self._host.uniform, shape, dtype, out)

    def normal(self, shape: Any = None, dtype: Any = np.float32, out: Any = None) -> Any:
        return self._rows(self._host.normal, shape, dtype, out)

    def permutation(self, n: int) -> np.ndarray:
        return self._host.permutation(n)

    def choice(self, n: int, k: int) -> np.ndarray:
        return self._host.choice(n, k)


class Sliced(Stream):
    """This worker's rows of what one process would draw for all of them, who have equally many."""

    def __init__(self, whole: Stream, workers: Workers) -> None:
        self._whole, self._workers = whole, workers

    def _slice(self, draw: Any, shape: Any, dtype: Any, out: Any) -> Any:
        rows, *rest = np.shape(out) if out is not None else tuple(np.atleast_1d(shape))
        dtype = dtype if out is None else out.dtype
        lo = rows * self._workers.rank
        mine = draw((rows * self._workers.size, *rest), dtype)[lo : lo + rows]
        if out is None:
            return mine
        out[...] = mine
        return out

    def uniform(self, shape: Any = None, dtype: Any = np.float32, out: Any = None) -> Any:
        return self._slice(self._whole.uniform, shape, dtype, out)

    def normal(self, shape: Any = None, dtype: Any = np.float32, out: Any = None) -> Any:
        return self._slice(self._whole.normal, shape, dtype, out)
