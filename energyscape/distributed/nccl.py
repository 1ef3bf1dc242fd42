"""Sums between GPUs by NCCL, with sockets beside it for what lies on the host.

NCCL adds in the order of the stream and the host never waits for it. It does not notice that a
worker died, though: its kernel, and whoever waits for that, would hang forever. So a thread
watches the sockets, which do notice, and takes NCCL down when one of them ends.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import numpy as np

from energyscape.backend import Array, is_gpu_array, namespace, nccl, on_device
from energyscape.distributed.sockets import SocketWorkers, check_flat
from energyscape.errors import DeviceError, WorkerLostError
from energyscape.workers import Workers

_WAY_OUT = "install it there as here, or let the workers add up over sockets, which is slower"
_log = logging.getLogger("energyscape")

_LOOKS_EVERY = 1.0  # seconds between two looks at the sockets
# Workers that end together hang up one after the other; who is last must not be taken down.
_GRACE = 10.0


class NcclWorkers(Workers):
    """Workers that have a GPU each.

    Parameters
    ----------
    sockets : SocketWorkers
        The same workers; carries everything on the host, and is closed with this.
    device : str, default="cuda:0"
        The GPU of this worker: no two workers may share one.

    Raises
    ------
    DeviceError
        If one of the workers has no CuPy or no NCCL, for everyone: install it, or use ``sockets``
        as they are.
    """

    def __init__(self, sockets: SocketWorkers, device: str = "cuda:0") -> None:
        self.rank, self.size, self.sync_every = sockets.rank, sockets.size, sockets.sync_every
        self._sockets = sockets
        self._lost = threading.Event()
        self._closed = threading.Event()
        library = _agreed(sockets)
        self._sum = library.NCCL_SUM
        self._types = {"f": library.NCCL_FLOAT32, "d": library.NCCL_FLOAT64}
        # The name of the meeting, 128 signed bytes, is made by one and told to all.
        name = np.array(library.get_unique_id() if self.rank == 0 else (), np.int8)
        told = tuple(sockets.gather(name)[0].tolist())
        with on_device(device):
            self._communicator = library.NcclCommunicator(self.size, told, self.rank)
        self._watcher = threading.Thread(target=self._watch, name="nccl-watch", daemon=True)
        self._watcher.start()

    def add(self, buffer: Array) -> None:
        """Replace ``buffer`` by its sum over all workers, with the same bits for everyone.

        Parameters
        ----------
        buffer : array, flat and contiguous, float32 or float64
            On the GPU: added on the current stream, without waiting. On the host: over sockets.

        Raises
        ------
        WorkerLostError
            If a worker was found to be gone.
        """
        if not is_gpu_array(buffer):
            self._sockets.add(buffer)
            return
        check_flat(buffer)
        if self._lost.is_set() or self._closed.is_set():
            raise WorkerLostError("sums between GPUs have ended: a worker has hung up")
        kind = self._types[buffer.dtype.char]
        pointer, stream = buffer.data.ptr, namespace(buffer).cuda.get_current_stream().ptr
        self._communicator.allReduce(pointer, pointer, buffer.size, kind, self._sum, stream)

    def gather(self, part: np.ndarray) -> list[np.ndarray]:
        """Everyone's ``part``, on the host, in the order of ranks: over sockets."""
        return self._sockets.gather(part)

    def close(self) -> None:
        """Hang up, at the end of a fit that went well; can be called again."""
        if not self._closed.is_set():
            self._closed.set()
            self._watcher.join()
            if not self._lost.is_set():
                self._communicator.destroy()
        self._sockets.close()

    def abort(self) -> None:
        """Hang up in the middle, waiting for nobody: others may be in a sum."""
        self._sockets.close()
        if not self._closed.is_set():
            self._closed.set()
            if not self._lost.is_set():
                self._lost.set()
                self._communicator.abort()

    def _watch(self) -> None:
        """Take NCCL down some time after a socket has ended, unless all is over by then."""
        while not self._closed.wait(_LOOKS_EVERY):
            if self._sockets.ended():
                if not self._closed.wait(_GRACE):
                    _log.warning("a worker has hung up: sums between GPUs are given up")
                    self._lost.set()
                    self._communicator.abort()
                return


def _agreed(sockets: SocketWorkers) -> Any:
    """CuPy's module, if all workers have it: nobody waits for one that cannot come."""
    library, reason = None, ""
    try:
        library = nccl()
    except DeviceError as error:
        reason = str(error)
    have = np.concatenate(sockets.gather(np.array([library is not None])))
    if not have.all():
        lacking = ", ".join(str(rank) for rank in np.flatnonzero(~have))
        raise DeviceError(reason or f"NCCL cannot be loaded by worker(s) {lacking}: {_WAY_OUT}")
    return library
