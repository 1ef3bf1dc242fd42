"""Sums between processes over TCP, for arrays on the host.

Small buffers are exchanged directly, in ⌈log₂ size⌉ rounds of which each doubles how many workers
a sum covers; large ones go around a ring in pieces, `flow.ring`. Either way everybody ends with
the same bits. All workers ask for the same sums in the same order; a header tells them where they
do not.
"""

from __future__ import annotations

import hmac
import json
import platform
import select
import socket
import sys
from collections.abc import Sequence

import numpy as np

from energyscape._version import __version__
from energyscape.backend import Array, device_of, is_gpu_array, to_device, to_host
from energyscape.distributed.flow import BLOCK, HEADER, Incoming, Outgoing, pump, remember, ring
from energyscape.distributed.meeting import Address, Gone, Peer, meet
from energyscape.errors import WorkerLostError
from energyscape.workers import Workers

# Up to here fewer hops are worth more than fewer bytes: measured, pairs are quicker to half a
# megabyte on one machine (benchmarks/allreduce.py); slower networks would have it lower, and many
# workers higher (`direct_bytes`).
DIRECT_BYTES = 1 << 18
# Seconds that whoever waits for a worker that may itself wait adds for each step between: those
# that wait for the silent one itself speak first, and name it to the others.
_GRACE = 2.0
_FLOATS = (np.float32, np.float64)


def check_flat(buffer: Array) -> None:
    """That it can be added up, on the host or on a GPU."""
    if buffer.ndim != 1 or buffer.dtype not in _FLOATS or not buffer.flags.c_contiguous:
        raise ValueError(
            "workers add flat, contiguous arrays of float32 or float64; got "
            f"{buffer.dtype} of shape {buffer.shape}"
        )


def direct_bytes(size: int) -> int:
    """Bytes up to which ``size`` workers sum by pairs.

    With latency α and bandwidth β, L = ⌈log₂ size⌉ rounds of α + n/β are quicker than a ring's
    2(size - 1) messages of α + n/(size β) up to n = αβ (2(size - 1) - L)/(L - 2(size - 1)/size);
    αβ is what makes that `DIRECT_BYTES` for four workers, and fewer are taken for four.
    """
    rounds, messages = (size - 1).bit_length(), 2 * (size - 1)
    if size <= 4:
        return DIRECT_BYTES
    ratio = (messages - rounds) / (rounds - messages / size)
    return int(DIRECT_BYTES * max(1.0, ratio / 8.0))


class SocketWorkers(Workers):
    """One of several processes that add up what they collect, over TCP.

    Parameters
    ----------
    rank : int
        The number of this worker.
    addresses : sequence of (host, port)
        Where each worker listens, in the order of ranks, this one included.
    token : bytes
        A secret that all workers of this fit share, and no others.
    listener : socket.socket
        From `listen`, of ``addresses[rank]``; is closed when all have met.
    sync_every : int, default=1
        Updates between two sums.
    timeout : float, default=600
        Seconds that another worker may be silent, at the beginning or while this one waits for its
        numbers. Has to be longer than any worker computes between two sums; a process that dies is
        noticed at once, whatever the timeout.

    Raises
    ------
    WorkerLostError
        If a worker cannot be reached or does not come; from `add` and `gather` if one is gone,
        silent, or says that it lost another. The connections are closed then.
    ValueError
        If the workers run different versions of Python, NumPy or this library; for everyone.
    """

    def __init__(
        self,
        rank: int,
        addresses: Sequence[Address],
        token: bytes,
        listener: socket.socket,
        sync_every: int = 1,
        timeout: float = 600.0,
    ) -> None:
        if not 0 <= rank < len(addresses) or sync_every < 1 or not timeout > 0 or not token:
            listener.close()
            raise ValueError(
                "wanted 0 <= rank < len(addresses), sync_every >= 1, timeout > 0 and a token; got "
                f"rank={rank} of {len(addresses)}, sync_every={sync_every}, timeout={timeout}, "
                f"a token of {len(token)} bytes"
            )
        self.rank, self.size, self.sync_every = rank, len(addresses), sync_every
        self.timeout = timeout
        self._addresses = [(host, port) for host, port in addresses]
        self._key = int.from_bytes(hmac.digest(token, b"lost", "sha256")[:8], "little")
        self._calls = 0
        self._end: WorkerLostError | None = None
        self._block = np.empty(BLOCK, np.uint8)
        self._packets = [bytearray(HEADER.size + direct_bytes(self.size)) for _ in range(2)]
        self._peers = {k: Peer(k, self._addresses[k]) for k in _partners(rank, self.size)}
        try:
            with listener:
                meet(listener, rank, token, self._peers, timeout)
            self._compare_versions()
        except Gone as gone:
            raise self._fail(gone) from None
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------ what the loop asks for

    def add(self, buffer: Array) -> None:
        """Replace ``buffer`` by its sum over all workers, with the same bits for everyone.

        Parameters
        ----------
        buffer : array, flat and contiguous, float32 or float64
            On the host; one on a GPU goes over the host and back.

        Raises
        ------
        WorkerLostError
            If a worker is gone or silent.
        ValueError
            If the buffer is of another kind, or another worker's is of another length or dtype.
        """
        if is_gpu_array(buffer):
            host = to_host(buffer)
            self.add(host)
            buffer[...] = to_device(host, device_of(buffer))
            return
        check_flat(buffer)
        if self.size == 1:
            return
        header = self._next(b"add" + buffer.dtype.char.encode(), buffer.nbytes)
        try:
            if buffer.nbytes <= direct_bytes(self.size):
                self._double(buffer, header)
            else:
                self._around(buffer, header)
        except Gone as gone:
            raise self._fail(gone) from None

    def gather(self, part: np.ndarray) -> list[np.ndarray]:
        """Everyone's ``part`` in the order of ranks; shapes and number dtypes may differ.

        Raises
        ------
        WorkerLostError
            If a worker is gone or silent.
        TypeError
            If ``part`` holds objects, or anything else but numbers and truth values.
        """
        part = np.ascontiguousarray(part).reshape(np.shape(part))
        if part.dtype.kind not in "biufc":
            raise TypeError(f"workers gather numbers; got an array of {part.dtype}")
        parts = [part] * self.size
        try:
            for step in range(self.size - 1):
                sent, came = (self.rank - step) % self.size, (self.rank - step - 1) % self.size
                parts[came] = self._pass_on(parts[sent], step)
        except Gone as gone:
            raise self._fail(gone) from None
        return parts

    def ended(self) -> bool:
        """Whether a worker that this one speaks with, or this one, has hung up."""
        poll = select.poll()
        try:
            for peer in self._peers.values():
                poll.register(peer.incoming, select.POLLRDHUP)  # type: ignore[arg-type]
        except ValueError:  # closed
            return True
        return bool(poll.poll(0))

    def close(self) -> None:
        """Hang up, without last words; can be called again."""
        for peer in self._peers.values():
            peer.close()
        self._end = self._end or WorkerLostError(f"worker {self.rank} has hung up itself")

    # ------------------------------------------------------------ sums

    def _next(self, kind: bytes, n_bytes: int) -> bytes:
        if self._end is not None:
            raise self._end.with_traceback(None)
        self._calls = (self._calls + 1) % 2**32
        return HEADER.pack(kind, self._calls, n_bytes)

    def _double(self, buffer: np.ndarray, header: bytes) -> None:
        """Sum by pairs: 0 with 1, 2 with 3; then 0 with 2, 1 with 3; and so on.

        Those beyond the largest power of two give theirs to a partner and get the sum back. Both
        of a pair add the same two numbers, so that they have the same bits.
        """
        even = _power_of_two(self.size)
        if self.rank >= even:
            self._swap(buffer, header, send=self.rank - even)
            last = even.bit_length() + 1
            self._swap(buffer, header, take=self.rank - even, add=False, depth=last)
            return
        extra = self.rank + even if self.rank + even < self.size else None
        if extra is not None:
            self._swap(buffer, header, take=extra)
        for k in range(even.bit_length() - 1):
            other = self.rank ^ (1 << k)
            self._swap(buffer, header, send=other, take=other, depth=k + (even < self.size))
        if extra is not None:
            self._swap(buffer, header, send=extra)

    def _swap(
        self,
        buffer: np.ndarray,
        header: bytes,
        send: int | None = None,
        take: int | None = None,
        add: bool = True,
        depth: int = 0,
    ) -> None:
        """Send the buffer to one worker and take that of one."""
        n = HEADER.size + buffer.nbytes
        packet, reply = (memoryview(packet)[:n] for packet in self._packets)
        out = into = None
        if send is not None:
            packet[: HEADER.size] = header
            packet[HEADER.size :] = buffer.view(np.uint8).data
            out = Outgoing(self._peers[send], packet)
        if take is not None:
            into = Incoming(self._peers[take], reply, lambda peer, h: self._check(peer, h, header))
        self._pump(out, into, depth)
        if take is not None:
            came = np.frombuffer(reply, buffer.dtype, offset=HEADER.size)
            if add:
                buffer += came
            else:
                buffer[:] = came

    def _around(self, buffer: np.ndarray, header: bytes) -> None:
        right, left = (self._peers[(self.rank + k) % self.size] for k in (1, -1))
        reply = memoryview(bytearray(HEADER.size))
        check = Incoming(left, reply, lambda peer, h: self._check(peer, h, header))
        self._pump(Outgoing(right, memoryview(header)), check, depth=0)
        streams = ring(buffer, self.rank, left, right, self.size, self._block)
        self._pump(*streams, depth=1)

    def _pass_on(self, part: np.ndarray, step: int) -> np.ndarray:
        """Send ``part`` to the right and return what comes from the left."""
        right, left = (self._peers[(self.rank + k) % self.size] for k in (1, -1))
        words = json.dumps([part.dtype.str, part.shape]).encode()
        header = self._next(b"part", len(words))
        reply = memoryview(bytearray(HEADER.size))
        check = Incoming(left, reply, lambda peer, h: self._check(peer, h, header, sized=False))
        self._pump(Outgoing(right, memoryview(header)), check, depth=min(step, 1))
        described = memoryview(bytearray(HEADER.unpack(reply)[2]))
        self._pump(Outgoing(right, memoryview(words)), Incoming(left, described), depth=1)
        dtype, shape = json.loads(bytes(described))
        came = np.empty(shape, dtype)
        views = (a.reshape(-1).view(np.uint8).data for a in (part, came))
        self._pump(Outgoing(right, next(views)), Incoming(left, next(views)), depth=1)
        return came

    def _pump(self, out: Outgoing | None, into: Incoming | None, depth: int) -> None:
        """Move both; ``depth`` is how many workers in a row may wait, the last for a silent one."""
        silent = "said nothing, or waited for another worker that did," if depth else "said nothing"
        pump(out, into, self.timeout + depth * min(_GRACE, self.timeout / 2), silent)

    # ------------------------------------------------------------ what goes wrong

    def _check(self, peer: Peer, got: memoryview, wanted: bytes, sized: bool = True) -> None:
        """That ``peer`` does what we do, and has not said its last words."""
        kind, call, n = HEADER.unpack(got)
        kind_, call_, n_ = HEADER.unpack(wanted)
        if (kind, call) == (kind_, call_) and (n == n_ or not sized):
            return
        if (kind, n) == (b"lost", self._key):
            raise Gone(peer)
        self._hang_up(self.rank)
        raise ValueError(
            f"{peer} asks for {_words(kind, n)} as call {call}, worker {self.rank} for "
            f"{_words(kind_, n_)} as call {call_}: all workers must have the same model and "
            "trainer, and rows of the same length"
        )

    def _fail(self, gone: Gone) -> WorkerLostError:
        """Hang up, tell the others who is lost, and say it."""
        peer, rank = gone.peer, gone.peer.rank
        text = f"{peer} {gone.silent}" if gone.silent else f"{peer} is gone: it hung up"
        if not gone.silent:
            told = self._last_words(peer)
            if told == self.rank:
                text = f"worker {self.rank} was given up as lost by {peer}"
            elif told is not None and told != rank:
                rank, (host, port) = told, self._addresses[told]
                text = f"worker {told} at {host}:{port} is lost: {peer} said so and hung up"
        self._hang_up(rank)
        error = WorkerLostError(text)
        error.rank = rank
        self._end = error
        return error

    def _last_words(self, peer: Peer) -> int | None:
        """Whom ``peer`` named as lost before it hung up."""
        block = self._block.data
        try:
            while peer.incoming is not None and (n := peer.incoming.recv_into(block)):
                remember(peer, block[:n])
        except OSError:  # its end, or nothing there
            pass
        if len(peer.tail) < HEADER.size:
            return None
        kind, rank, key = HEADER.unpack(peer.tail)
        return rank if (kind, key) == (b"lost", self._key) and rank < self.size else None

    def _hang_up(self, lost: int) -> None:
        """Say who is lost, as far as anybody listens, and close."""
        note = HEADER.pack(b"lost", lost, self._key)
        for peer in self._peers.values():
            try:
                if peer.outgoing is not None:
                    peer.outgoing.send(note)
            except OSError:  # it is gone, or its line is full: it will see the end of the line
                pass
        self.close()

    def _compare_versions(self) -> None:
        mine = {"energyscape": __version__, "NumPy": np.__version__}
        mine |= {"Python": platform.python_version(), "byte order": sys.byteorder}
        text = np.frombuffer(json.dumps(mine).encode(), np.uint8)
        all_ = [json.loads(part.tobytes()) for part in self.gather(text)]
        for rank, theirs in enumerate(all_):
            differ = [name for name in mine if theirs.get(name) != all_[0][name]]
            if differ:
                host, port = self._addresses[rank]
                raise ValueError(
                    f"worker {rank} at {host}:{port} has "
                    + " and ".join(f"{name} {theirs.get(name)}" for name in differ)
                    + ", worker 0 has "
                    + " and ".join(f"{name} {all_[0][name]}" for name in differ)
                    + ": install the same versions on all workers"
                )


def _words(kind: bytes, n: int) -> str:
    if kind[:3] == b"add":
        dtype = np.dtype(kind[3:].decode())
        return f"a sum of {n // dtype.itemsize} numbers of {dtype}"
    return "everyone's part" if kind == b"part" else "what nobody knows"


def _power_of_two(size: int) -> int:
    """The largest one that is not above ``size``."""
    return 1 << (size.bit_length() - 1)


def _partners(rank: int, size: int) -> list[int]:
    """Whom ``rank`` speaks with: its neighbours in the ring, and its pairs when sums double."""
    even = _power_of_two(size)
    found = {(rank - 1) % size, (rank + 1) % size}
    if rank >= even:
        found.add(rank - even)
    else:
        found |= {rank ^ (1 << k) for k in range(even.bit_length() - 1)}
        found |= {rank + even} & set(range(size))
    return sorted(found - {rank})
