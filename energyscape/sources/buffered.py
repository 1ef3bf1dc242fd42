"""Rows that are read through buffers: consecutive ones, shuffled where they have come to lie.

A random row of an HDF5 chunk costs as much as the chunk, and a stream has no random rows at all.
So rows are read in long stretches into a buffer, which is shuffled as a whole and cut into batches
while a thread fills the next one. Buffers hold rows in the dtype that they are stored in; a batch
is cast when it is made. Rows that fit into one buffer are read once, and then are an array in
memory.

Held at most: two buffers of `BUFFER_BYTES`, or of `FEWEST_BATCHES` batches where these are more,
and room for the left-overs of a batch in each.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from energyscape.backend import Array, empty_for_copies, send, to_device
from energyscape.sources.pieces import Pieces
from energyscape.sources.reader import Buffer, read_ahead
from energyscape.sources.rows import Rows, check_part

BUFFER_BYTES = 64 << 20
BUFFER_BLOCKS = 64
FIRST_SHARE = 8  # the first filling of a pass is 1/8 of a buffer, so that it begins at once
FEWEST_BATCHES = 4
# Picked rows stay below this, but are no fewer than FEWEST_PICKED where there are so many.
PICKED_BYTES, FEWEST_PICKED = 256 << 20, 1000
# Places that picked rows come from, a run of consecutive ones at each.
PICKED_RUNS = 64

Fill = Callable[[np.ndarray], np.ndarray]


def _growing(fill: Fill, first: int) -> Fill:
    """``fill`` of ``first`` rows, then of twice as many each time, up to what there is room for."""
    n = first

    def grown(out: np.ndarray) -> np.ndarray:
        nonlocal n
        n, now = min(2 * n, len(out)), n
        return fill(out[:now])

    return grown


class BufferedRows(Rows):
    """Rows ``lo`` … ``hi - 1`` of something that is read from the front to the back.

    Subclasses write `filler`.
    """

    def __init__(
        self,
        X: Any,
        lo: int = 0,
        hi: int | None = None,
        y: np.ndarray | None = None,
        event_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(X, y=y, event_shape=event_shape)
        self.lo, self.hi = lo, X.shape[0] if hi is None else hi
        self._loaded: Array = None

    def filler(self, rng: Any) -> Fill:
        """What fills buffers with these rows, all of them once, and tells their numbers: in an
        order that ``rng`` chooses, or in their own where it is None."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.hi - self.lo

    @property
    def room(self) -> int:
        """Rows of a buffer."""
        stored = math.prod(self.event_shape) * np.dtype(self.X.dtype).itemsize
        return max(1, BUFFER_BYTES // max(1, stored))

    def part(self, lo: int, hi: int) -> Rows:
        check_part(lo, hi, len(self))
        return type(self)(self.X, self.lo + lo, self.lo + hi, self.y, self.event_shape)

    def split(self, held_out: int, rng: Any) -> tuple[Rows, Rows]:
        """The last rows set apart, so that reading stays sequential."""
        cut = len(self) - held_out
        return self.part(0, cut), self.part(cut, len(self))

    def labels(self, rows: Any) -> np.ndarray | None:
        return None if self.y is None else self.y[self._mine()][rows]

    def _mine(self) -> Any:
        return slice(self.lo, self.hi)

    # ------------------------------------------------------------ a pass over all rows

    def batches(self, batch_size: int, rng: Any) -> Iterator[tuple[Array, np.ndarray | None]]:
        """One pass over all rows in a random order, with their labels; the last may be short."""
        if len(self) <= self.room:
            yield from self._in_memory().batches(batch_size, rng)
            return
        room = max(self.room, FEWEST_BATCHES * batch_size)
        buffers = [self._empty(batch_size + room) for _ in range(2)]
        fill = _growing(self.filler(rng), max(room // FIRST_SHARE, FEWEST_BATCHES * batch_size))
        left, numbers = self._empty(0), np.empty(0, np.intp)
        with contextlib.closing(read_ahead(lambda rows: fill(rows[batch_size:]), buffers)) as ahead:
            for buffer in ahead:
                # What the last one left goes before what was read, so that a pool is one array.
                pool = buffer.rows[batch_size - len(left) : batch_size + len(buffer.numbers)]
                pool[: len(left)] = left
                numbers = np.concatenate([numbers, buffer.numbers])
                order = rng.permutation(len(numbers))
                whole = len(order) // batch_size * batch_size
                yield from self._cut(buffer, pool, numbers, order[:whole], batch_size)
                left, numbers = pool[order[whole:]], numbers[order[whole:]]
        if len(left):
            yield self._cast(to_device(left, self.device)), self.labels(numbers)

    def _cut(
        self, buffer: Buffer, pool: Array, numbers: np.ndarray, order: np.ndarray, batch_size: int
    ) -> Iterator[tuple[Array, np.ndarray | None]]:
        """Batches of a pool in some order."""
        if self.device != "cpu":
            pool, buffer.busy = send(pool, self.device)
        places = to_device(order, self.device)
        for lo in range(0, len(order), batch_size):
            labels = self.labels(numbers[order[lo : lo + batch_size]])
            yield self._cast(pool[places[lo : lo + batch_size]]), labels

    def blocks(self, size: int) -> Iterator[Array]:
        """One pass over all rows in their order."""
        if len(self) <= self.room:
            yield from self._in_memory().blocks(size)
            return
        buffers = [self._empty(min(self.room, len(self))) for _ in range(2)]
        block, done, left = self._block(size, len(self)), 0, len(self)
        fill = _growing(self.filler(None), max(1, self.room // FIRST_SHARE))
        with contextlib.closing(read_ahead(fill, buffers)) as ahead:
            for buffer in ahead:
                lo, n = 0, len(buffer.numbers)
                while lo < n:
                    more = min(n - lo, len(block) - done)
                    block[done : done + more] = buffer.rows[lo : lo + more]
                    lo, done = lo + more, done + more
                    if done == len(block):
                        yield block
                        left -= done
                        block, done = self._block(size, left), 0

    def _block(self, size: int, left: int) -> np.ndarray:
        return np.empty((min(size, left), *self.event_shape), self.dtype)

    def _empty(self, n: int) -> np.ndarray:
        """Memory for ``n`` rows as they are stored."""
        return empty_for_copies((n, *self.event_shape), self.X.dtype, self.device)

    def _found(self, n: int) -> np.ndarray:
        """The same for rows that stay on the host."""
        return np.empty((n, *self.event_shape), self.X.dtype)

    def _cast(self, x: Array) -> Array:
        return x.astype(self.dtype, copy=False)

    # ------------------------------------------------------------ some rows

    def affordable(self, n: int) -> int:
        """``n``, or as many rows as may be in memory at once in the dtype that is computed in."""
        return min(n, max(FEWEST_PICKED, PICKED_BYTES // max(1, self.row_bytes)))

    def is_loaded(self, rows: Any) -> bool:
        """Whether rows are had from memory: all of them are there, or fit and are wanted in
        pieces."""
        return self._loaded is not None or (len(self) <= self.room and not isinstance(rows, slice))

    def _in_memory(self) -> Rows:
        """All rows as an array, which is read once."""
        if self._loaded is None:
            loaded, fill, done = self._empty(len(self)), self.filler(None), 0
            while n := len(fill(loaded[done:])):
                done += n
            self._loaded = loaded
        self._loaded = to_device(self._loaded, self.device)
        return Rows(self._loaded, None, self.labels(slice(None)), self.event_shape)

    def pick(self, n: int, rng: Any) -> Any:
        """Indices of ``n`` rows, or of as many as `PICKED_BYTES` hold, in runs of consecutive ones
        from random places; of all in their order where there are no more."""
        n = self.affordable(n)
        length = max(1, -(-n // PICKED_RUNS))
        runs = -(-n // length)
        if len(self) <= self.room or len(self) // length <= runs:
            return super().pick(n, rng)
        first = np.sort(rng.choice(len(self) // length, runs)) * length
        return (first[:, None] + np.arange(length)).reshape(-1)[:n]


class StoredRows(BufferedRows):
    """Rows of HDF5 datasets and memory maps, in random blocks of consecutive rows.

    Parameters
    ----------
    X : h5py.Dataset, numpy.memmap or Pieces, shape (n, *event_shape)
    lo, hi : int
        The range of rows that counts.
    """

    def __init__(
        self,
        X: Any,
        lo: int = 0,
        hi: int | None = None,
        y: np.ndarray | None = None,
        event_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(X, lo, hi, y, event_shape)
        self._pieces = X if isinstance(X, Pieces) else Pieces([X])

    def filler(self, rng: Any) -> Fill:
        pieces, lo = self._pieces, self.lo
        blocks = pieces.cut(lo, self.hi, max(1, self.room // BUFFER_BLOCKS))
        order = range(len(blocks)) if rng is None else rng.permutation(len(blocks))
        waiting = [blocks[i] for i in order][::-1]

        def fill(out: np.ndarray) -> np.ndarray:
            numbers, done = [np.empty(0, np.intp)], 0
            # A block goes into one buffer whole, unless it is longer than any.
            while waiting and (done == 0 or waiting[-1][1] - waiting[-1][0] <= len(out) - done):
                begin, end = waiting.pop()
                cut = min(end, begin + len(out) - done)
                if cut < end:
                    waiting.append((cut, end))
                self._read(begin, cut, out[done : done + cut - begin])
                numbers.append(np.arange(begin - lo, cut - lo))
                done += cut - begin
            return np.concatenate(numbers)

        return fill

    def _read(self, lo: int, hi: int, out: np.ndarray) -> None:
        self._pieces.read(lo, hi, out)
        if out.dtype.kind == "f" and not np.isfinite(out).all():
            raise ValueError(
                f"Input X contains NaN or infinity (in rows {lo} … {hi - 1}); clean the rows in "
                "the file first"
            )

    def take(self, rows: Any) -> Array:
        """Rows by index or slice, in the dtype that is computed in; consecutive ones are read at
        once, so that increasing indices are quickest."""
        if self.is_loaded(rows):
            return self._in_memory().take(rows)
        if isinstance(rows, slice) and rows.step in (None, 1):
            lo, hi, _ = rows.indices(len(self))
            found = self._found(max(0, hi - lo))
            self._read(self.lo + lo, self.lo + lo + len(found), found)
            return self._cast(found)
        wanted = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        numbers, back = np.unique(wanted, return_inverse=True)
        if len(numbers) and not 0 <= numbers[0] <= numbers[-1] < len(self):
            raise IndexError(f"rows {numbers[0]} … {numbers[-1]} are not among {len(self)}")
        found = self._found(len(numbers))
        ends = np.flatnonzero(np.diff(numbers) != 1) + 1
        for lo, hi in zip([0, *ends], [*ends, len(numbers)], strict=True):
            if lo < hi:
                first = self.lo + int(numbers[lo])
                self._read(first, first + int(hi - lo), found[lo:hi])
        ordered = len(wanted) == len(numbers) and bool((back[1:] > back[:-1]).all())
        return self._cast(found if ordered else found[back])
