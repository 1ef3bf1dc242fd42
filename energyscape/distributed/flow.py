"""How bytes move: one stream out and one stream in at the same time, by one thread.

Both ends of an exchange may have more to send than the system keeps for them. Each therefore
writes what is taken and reads what is there, by turns, and sleeps only when neither is possible;
nobody waits for the other to finish.
"""

from __future__ import annotations

import select
import struct
from collections.abc import Callable, Sequence

import numpy as np

from energyscape.distributed.meeting import Gone, Peer
from energyscape.workers import split_evenly

HEADER = struct.Struct("<4sIQ")  # what is asked for, the number of the call, bytes
# Bytes read before they are added: few enough to be in the cache still.
BLOCK = 1 << 18


class Outgoing:
    """Bytes on their way to a peer."""

    writes = True

    def __init__(self, peer: Peer, view: memoryview) -> None:
        assert peer.outgoing is not None
        self.peer, self.line, self.view = peer, peer.outgoing, view

    def ready(self) -> memoryview:
        """What may be sent by now."""
        return self.view

    def sent(self, n: int) -> None:
        self.view = self.view[n:]

    def left(self) -> bool:
        return len(self.view) > 0

    def move(self) -> bool:
        """Send what is taken without waiting; whether anything was."""
        view = self.ready()
        if not len(view):
            return False
        try:
            n = self.line.send(view)
        except BlockingIOError:
            return False
        except OSError:
            raise Gone(self.peer) from None
        self.sent(n)
        return n > 0


class Incoming:
    """Bytes on their way from a peer; ``check(peer, header)`` sees the first as they come."""

    writes = False

    def __init__(
        self, peer: Peer, view: memoryview, check: Callable[[Peer, memoryview], None] | None = None
    ) -> None:
        assert peer.incoming is not None
        self.peer, self.line, self.whole, self.view = peer, peer.incoming, view, view
        self.check = check

    def ready(self) -> memoryview:
        """Where the next bytes go."""
        return self.view

    def took(self, n: int) -> None:
        self.view = self.view[n:]
        if self.check and len(self.whole) - len(self.view) >= HEADER.size:
            self.check(self.peer, self.whole[: HEADER.size])
            self.check = None

    def left(self) -> bool:
        return len(self.view) > 0

    def move(self) -> bool:
        """Take what is there without waiting; whether anything was."""
        room = self.ready()
        try:
            n = self.line.recv_into(room)
        except BlockingIOError:
            return False
        except OSError:
            n = 0
        if not n:
            raise Gone(self.peer)
        remember(self.peer, room[:n])
        self.took(n)
        return True


def remember(peer: Peer, said: memoryview) -> None:
    """Keep the latest bytes: before it hangs up, a peer says why."""
    latest = bytes(said[-HEADER.size :])
    peer.tail = latest if len(latest) == HEADER.size else (peer.tail + latest)[-HEADER.size :]


def pump(
    out: Outgoing | None, into: Incoming | None, patience: float, silent: str = "said nothing"
) -> None:
    """Move both to their ends.

    Raises
    ------
    Gone
        If a peer hangs up, or nothing moves for ``patience`` seconds.
    """
    streams = [stream for stream in (out, into) if stream is not None]
    while busy := [stream for stream in streams if stream.left()]:
        moved = [stream.move() for stream in busy]  # all of them, whatever the first does
        if not any(moved) and not _wait(busy, patience):
            raise Gone(busy[-1].peer, f"{silent} for {patience:g} s")


def _wait(streams: Sequence[Outgoing | Incoming], seconds: float) -> bool:
    """Sleep until one of them can move; False if that takes too long."""
    if not hasattr(select, "poll"):  # Windows
        out = [s.line for s in streams if s.writes and len(s.ready())]
        return any(select.select([s.line for s in streams if not s.writes], out, [], seconds))
    poll = select.poll()
    for stream in streams:
        if not stream.writes:
            poll.register(stream.line, select.POLLIN)
        elif len(stream.ready()):
            poll.register(stream.line, select.POLLOUT)
    return bool(poll.poll(1000 * seconds))


# ---------------------------------------------------------------- the ring


class _RingIn(Incoming):
    """Chunks from the left: the first ``size - 1`` are added to ours, the rest replace them."""

    def __init__(self, peer: Peer, chunks: list[np.ndarray], n_adding: int, block: np.ndarray):
        super().__init__(peer, memoryview(b""))
        self.chunks, self.n_adding, self.block = chunks, n_adding, block
        self.k = self.done = self.kept = 0  # chunk, its bytes that are final, bytes in the block
        self.processed = 0
        self.raw = block.data

    def left(self) -> bool:
        while self.k < len(self.chunks) and self.done == self.chunks[self.k].nbytes:
            self.k, self.done = self.k + 1, 0
        return self.k < len(self.chunks)

    def ready(self) -> memoryview:
        chunk = self.chunks[self.k]
        if self.k < self.n_adding:
            return self.raw[self.kept : min(len(self.raw), chunk.nbytes - self.done)]
        return chunk.view(np.uint8).data[self.done :]

    def took(self, n: int) -> None:
        if self.k < self.n_adding:
            n = self._add(n)
        self.done += n
        self.processed += n

    def _add(self, n: int) -> int:
        """Add the whole numbers of the block, whose last ``n`` bytes are new; bytes added."""
        chunk, n = self.chunks[self.k], self.kept + n
        whole = n - n % chunk.itemsize
        if whole:
            start = self.done // chunk.itemsize
            part = chunk[start : start + whole // chunk.itemsize]
            part += self.block[:whole].view(chunk.dtype)
            self.block[: n - whole] = self.block[whole:n].copy()
        self.kept = n - whole
        return whole


class _RingOut(Outgoing):
    """Chunks to the right: our own first, then each as far as it has come from the left."""

    def __init__(self, peer: Peer, chunks: list[np.ndarray], source: _RingIn) -> None:
        super().__init__(peer, memoryview(b""))
        self.chunks, self.source = chunks, source
        self.k = self.done = 0
        self.credit = chunks[0].nbytes  # bytes that may be sent, but for the source's

    def left(self) -> bool:
        while self.k < len(self.chunks) and self.done == self.chunks[self.k].nbytes:
            self.credit -= self.done
            self.k, self.done = self.k + 1, 0
        return self.k < len(self.chunks)

    def ready(self) -> memoryview:
        limit = self.credit + self.source.processed
        return self.chunks[self.k].view(np.uint8).data[self.done : max(self.done, limit)]

    def sent(self, n: int) -> None:
        self.done += n


def ring(
    buffer: np.ndarray, rank: int, left: Peer, right: Peer, size: int, block: np.ndarray
) -> tuple[Outgoing, Incoming]:
    """The two streams that replace ``buffer`` by its sum around a ring.

    The buffer is cut into ``size`` chunks. Chunk c sets out from worker c, every worker on the way
    adds its own, and c - 1, where the sum is complete, sends it around once more: each worker
    sends 2 (size - 1)/size of the buffer, whatever the size (Patarasuk and Yuan, 2009). Nothing is
    kept back until a chunk is whole: what has been added goes on at once. So chunk c is summed in
    the order c, c + 1, …, c - 1, once, and all have the same bits.

    A number's final value cannot come back before its own share went out, because it was summed
    from that; so it may be overwritten while later ones are still on their way out.
    """
    chunks = [buffer[split_evenly(len(buffer), size, c)] for c in range(size)]
    order = [chunks[(rank - k) % size] for k in range(2 * size - 1)]
    source = _RingIn(left, order[1:], size - 1, block)
    return _RingOut(right, order[:-1], source), source
