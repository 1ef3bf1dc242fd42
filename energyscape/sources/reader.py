"""A thread that fills the next buffer while the present one is in use."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

THREAD_NAME = "energyscape-reader"


@dataclass(eq=False)
class Buffer:
    """Memory for rows.

    Attributes
    ----------
    rows : array, shape (room, *event_shape)
    numbers : integer array, shape (n,)
        Which rows are in it, the first n.
    busy : callable
        Returns when nobody reads the memory any more, such as a copy to a device on its way.
    """

    rows: np.ndarray
    numbers: np.ndarray
    busy: Callable[[], None] = lambda: None


def read_ahead(
    fill: Callable[[np.ndarray], np.ndarray], buffers: Sequence[np.ndarray]
) -> Generator[Buffer, None, None]:
    """Buffers as ``fill`` fills them in a thread, each free to be filled again once the next is
    asked for.

    Parameters
    ----------
    fill : callable
        Writes rows to an array and returns their numbers; none at all says that it is the end.
    buffers : sequence of arrays
        What is filled in turn: two let one be filled while the other is used.

    Raises
    ------
    Exception
        Whatever ``fill`` raises. The thread ends with it, at the end, and when the iterator is
        closed, which waits for the filling that is under way.
    """
    free: queue.SimpleQueue[Buffer] = queue.SimpleQueue()
    full: queue.SimpleQueue[Buffer | BaseException] = queue.SimpleQueue()
    stop = threading.Event()

    def work() -> None:
        try:
            while True:
                buffer = free.get()
                if stop.is_set():
                    return
                buffer.busy()
                buffer.numbers = fill(buffer.rows)
                full.put(buffer)
                if not len(buffer.numbers):
                    return
        except BaseException as error:  # it belongs to who waits for the buffer
            full.put(error)

    for rows in buffers:
        free.put(Buffer(rows, np.empty(0, np.intp)))
    thread = threading.Thread(target=work, name=THREAD_NAME, daemon=True)
    thread.start()
    try:
        while True:
            got = full.get()
            if isinstance(got, BaseException):
                raise got
            if not len(got.numbers):
                return
            yield got
            free.put(got)
    finally:
        stop.set()
        free.put(Buffer(buffers[0][:0], np.empty(0, np.intp)))
        if not sys.is_finalizing():  # the thread is stopped for good then
            thread.join()
