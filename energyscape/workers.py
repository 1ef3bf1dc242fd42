"""Who shares a fit: one process by itself, or several that add up what they collect.

The loop asks a `Workers` for sums between its own and the others'. This one is alone and answers at
once; those of `distributed` speak over sockets or NCCL. All of them must ask the same questions in
the same order.
"""

from __future__ import annotations

import numpy as np

from energyscape.backend import Array, namespace


class Workers:
    """The processes of a fit, of which this one has the number ``rank`` of ``size``.

    Attributes
    ----------
    rank, size : int
    sync_every : int
        Updates between two sums. 1 adds up every gradient; more lets each worker make so many
        updates by itself, and then averages the parameters.
    """

    rank = 0
    size = 1
    sync_every = 1

    def add(self, buffer: Array) -> None:
        """Replace ``buffer``, flat and of one floating dtype, by its sum over all workers, with
        the same bits for everyone."""

    def gather(self, part: np.ndarray) -> list[np.ndarray]:
        """Everyone's ``part`` (on the host, any shape and number dtype) in the order of ranks."""
        return [part]

    def progress(self, epoch: int, step: int, rows: int) -> None:
        """Told after every update: finished epochs and updates, rows of this worker in it."""

    def close(self) -> None:
        """Hang up when all is done."""

    def abort(self) -> None:
        """Hang up in the middle: whoever waits for this worker is told that it is gone."""
        self.close()


ALONE = Workers()


def split_evenly(n: int, size: int, rank: int) -> slice:
    """The part of 0 … n-1 that is ``rank``'s of ``size`` parts, equal to within one."""
    return slice(n * rank // size, n * (rank + 1) // size)


def add_up(workers: Workers, arrays: dict[str, Array]) -> dict[str, Array]:
    """Sums over the workers of floating arrays, which have the same keys and shapes everywhere.

    One buffer for each dtype: a sum costs a latency, however many arrays there are. Shapes and
    dtypes stay; the arrays that come out are views of the buffers.
    """
    if workers.size == 1:
        return arrays
    xp = namespace(next(iter(arrays.values())))
    whole = {key: xp.asarray(value) for key, value in arrays.items()}
    out: dict[str, Array] = {}
    for dtype in sorted({str(value.dtype) for value in whole.values()}):
        keys = [key for key, value in whole.items() if str(value.dtype) == dtype]
        buffer = xp.concatenate([whole[key].ravel() for key in keys])
        workers.add(buffer)
        at = 0
        for key in keys:
            size = whole[key].size
            out[key] = buffer[at : at + size].reshape(whole[key].shape)
            at += size
    return {key: out[key] for key in arrays}


def joined(workers: Workers, part: np.ndarray) -> np.ndarray:
    """Everyone's ``part`` (on the host) one after the other along the first axis."""
    if workers.size == 1:
        return part
    return np.concatenate(workers.gather(np.ascontiguousarray(part)))


def first_word(workers: Workers, words: str | None) -> str | None:
    """What the first worker that has something to say says; None where nobody has."""
    if workers.size == 1:
        return words
    speaks = np.array([words is not None], np.float64)
    workers.add(speaks)  # cheaper than to gather, and nearly always enough
    if not speaks[0]:
        return None
    told = workers.gather(np.frombuffer((words or "").encode(), np.uint8))
    return next((bytes(each).decode() for each in told if len(each)), None)


def decided(workers: Workers, answer: bool) -> bool:
    """What worker 0 answers, for everyone."""
    found = np.array([answer and workers.rank == 0], np.float64)
    workers.add(found)
    return bool(found[0])
