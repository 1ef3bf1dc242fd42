"""What runs on a worker: one long task that trains on its rows and speaks with the others."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import scipy.sparse
from threadpoolctl import threadpool_limits

from energyscape.backend import namespace, resolve_device
from energyscape.data.reading import read_table
from energyscape.distributed.allocator import kept_memory
from energyscape.distributed.meeting import listen
from energyscape.distributed.nccl import NcclWorkers
from energyscape.distributed.sockets import SocketWorkers
from energyscape.distributed.spread import Part
from energyscape.errors import DeviceError, WorkerLostError
from energyscape.models.inputs import range_complaint
from energyscape.sources import Pieces, Rows, is_stored
from energyscape.workers import Workers, first_word

_log = logging.getLogger("energyscape")
_REPORTS_EVERY, _EPOCHS_EVERY = 0.5, 0.05  # seconds
# Of the reports of all fits: the scheduler keeps topics for ever, and few events of each.
TOPIC = "energyscape"

# Doors that are open for a fit, and whoever takes part in one, by its name and the worker.
_DOORS: dict[tuple[str, str], socket.socket] = {}
_PRESENT: dict[tuple[str, str], Workers] = {}


@dataclass
class Order:
    """What all workers of a fit are told.

    Attributes
    ----------
    name : str
        Of the fit.
    addresses : list of (host, port)
        Where each listens, in the order of ranks.
    token : bytes
        What they know each other by.
    sync_every : int
    timeout : float
        Seconds.
    resumes : bool
        Whether the model goes on where it was.
    """

    name: str
    addresses: list[tuple[str, int]]
    token: bytes
    sync_every: int
    timeout: float
    resumes: bool


def open_door(name: str, dask_worker: Any = None) -> tuple[str, int]:
    """Listen where other workers reach this one; its host and port."""
    protocol, _, address = dask_worker.address.rpartition("://")
    host = "127.0.0.1" if protocol == "inproc" else address.rpartition(":")[0].strip("[]")
    try:
        door, port = listen(host)
    except OSError:  # an address that is this machine's only seen from outside
        door, port = listen("")
    _DOORS[name, dask_worker.address] = door
    return host, port


def hang_up(name: str, failed: bool, dask_worker: Any = None) -> None:
    """End this worker's part in a fit, wherever it is."""
    where = name, dask_worker.address
    door, present = _DOORS.pop(where, None), _PRESENT.pop(where, None)
    if door is not None:
        door.close()
    if present is not None:
        present.abort()
    if failed:  # the error and Dask's frames hold each other, and these the rows
        gc.collect()


class _Reporter:
    """Tells the client how far this worker is, twice a second and, if epochs are no shorter than a
    twentieth of one, when an epoch has ended."""

    def __init__(self, worker: Any, fit: str, rank: int) -> None:
        self.worker, self.fit, self.rank = worker, fit, rank
        self.task = worker.get_current_task()
        self.rows, self.epoch, self.told = 0, 0, 0.0

    def __call__(self, epoch: int, step: int, rows: int) -> None:
        self.rows += rows
        now = time.monotonic()
        if now - self.told < (_REPORTS_EVERY if epoch == self.epoch else _EPOCHS_EVERY):
            return
        self.epoch, self.told = epoch, now
        task = self.worker.state.tasks.get(self.task)
        if task is None or task.state == "cancelled":  # Dask does not stop a thread
            raise WorkerLostError("the client that began the fit is gone")
        report = {"rank": self.rank, "epoch": epoch, "step": step, "rows": self.rows}
        self.worker.log_event(TOPIC, report | {"fit": self.fit})


def train(model: Any, pieces: list[Any], part: Part, rank: int, order: Order) -> Any:
    """Train ``model`` together with the others.

    Parameters
    ----------
    model : EnergyModel
        With its seed; fitted so far where the order says that it resumes.
    pieces : list
        Of ``part``, with arrays in place of futures.
    part : Part
    rank : int
    order : Order

    Returns
    -------
    (model, complaint) from worker 0, None from the others
    """
    from distributed import get_worker

    here = get_worker()
    # A limit holds for a process: workers that are threads would change it for their user.
    n_threads = None if here.address.startswith("inproc://") else here.state.nthreads
    quick = threadpool_limits(n_threads), kept_memory()
    with _present(order, rank, here.address) as sockets, quick[0], quick[1], _opened(pieces) as X:
        device = resolve_device(model.device, X)
        workers = _on_device(sockets, device)
        _PRESENT[order.name, here.address] = workers
        workers.progress = _Reporter(here, order.name, rank)  # type: ignore[method-assign]
        model = copy.deepcopy(model)  # workers of one process are shipped one object
        complaint = _learn(model, X, part, workers, device, order.resumes)
        return (model, complaint) if rank == 0 else None


@contextlib.contextmanager
def _opened(pieces: list[Any]) -> Iterator[Any]:
    """Rows of all pieces; files stay open, and locked, for as long as they are read."""
    with contextlib.ExitStack() as files:
        arrays = []
        for piece in pieces:
            X = read_table(piece, mapped=True).X if isinstance(piece, str) else piece
            for array in [part.X for part in X.pieces] if isinstance(X, Pieces) else [X]:
                if isinstance(array, h5py.Dataset):
                    files.callback(array.file.close)
                arrays.append(array)
        yield arrays[0] if len(arrays) == 1 else _joined(arrays)


def _joined(pieces: list[Any]) -> Any:
    """Arrays in memory one after the other; what is on disk stays apart."""
    if any(map(is_stored, pieces)):
        return pieces
    for i, piece in enumerate(pieces):
        if piece.shape[1:] != pieces[0].shape[1:]:
            raise ValueError(
                f"chunk {i} of a worker has rows {piece.shape[1:]}, its first has "
                f"{pieces[0].shape[1:]}: all must have the same columns"
            )
    if any(map(scipy.sparse.issparse, pieces)):
        return scipy.sparse.vstack(pieces, format="csr")
    return namespace(pieces[0]).concatenate(pieces)


def _on_device(sockets: SocketWorkers, device: str) -> Workers:
    """What adds up arrays on ``device``: NCCL on GPUs where all have it, else sockets."""
    everyone = sockets.gather(np.array([device != "cpu"]))
    if len({bool(on_gpu[0]) for on_gpu in everyone}) > 1:
        raise DeviceError(
            "some workers compute on a GPU and some on the CPU: say which by the model's device"
        )
    if device == "cpu":
        return sockets
    try:
        return NcclWorkers(sockets, device)
    except DeviceError as error:  # for everyone alike
        _log.warning("gradients go over sockets, which is slower: %s", error)
        return sockets


@contextlib.contextmanager
def _present(order: Order, rank: int, address: str) -> Iterator[SocketWorkers]:
    """Sockets to all others; an end that comes early tells them."""
    where = order.name, address
    door = _DOORS.pop(where, None)
    if door is None:
        raise WorkerLostError("this worker was started anew after the fit began")
    sockets = SocketWorkers(
        rank, order.addresses, order.token, door, order.sync_every, order.timeout
    )
    _PRESENT[where] = sockets
    try:
        yield sockets
    except BaseException:
        _PRESENT.pop(where, sockets).abort()
        raise
    _PRESENT.pop(where, sockets).close()


def _learn(
    model: Any, X: Any, part: Part, workers: Workers, device: str, resumes: bool
) -> str | None:
    """A model's `fit` or `resume` where ``X`` are one worker's rows; what to warn of."""
    verbose, model.verbose = model.verbose, 0  # the client shows how far all are
    if workers.rank and model.trainer is not None:
        model.trainer.set_params(callbacks=())
    trainer, rows = model._prepare(X, None, reset=not resumes)
    if part.lo is not None:
        rows = rows.part(part.lo, part.hi)
    _compare_rows(rows, workers)
    complaint = first_word(workers, range_complaint(model, rows.X))
    if resumes:
        model._settle(rows.X)
        model.go_on(trainer, rows, workers)
    else:
        model._device = device
        model.learn(trainer, rows, workers)
    model.verbose = verbose
    return complaint


def _compare_rows(rows: Rows, workers: Workers) -> None:
    """Raise where workers have rows of unequal shape or dtype."""
    what = f"{rows.event_shape} of {np.dtype(rows.dtype)}"
    everyone = workers.gather(np.frombuffer(what.encode(), np.uint8))
    for rank, words in enumerate(everyone):
        other = bytes(words).decode()
        if other != bytes(everyone[0]).decode():
            raise ValueError(
                f"worker {rank} has rows {other}, worker 0 has {bytes(everyone[0]).decode()}: all "
                "must have the same columns and dtype"
            )
