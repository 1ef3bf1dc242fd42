"""How workers find each other: a listening socket each, a call in both directions, a secret word.

Every worker calls each of its partners and waits until each has called back. A connection carries
data one way only, from who called: a process that dies is then noticed by whoever waits for it
*and* by whoever writes to it, also before all have met, and its last words are never cut off by
what it left unread. Callers show by a keyed digest (HMAC) that they know the token of the fit;
others are turned away. That keeps out stray callers, not whoever can read or change the network's
traffic: nothing is encrypted.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import logging
import selectors
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_log = logging.getLogger("energyscape")

Address = tuple[str, int]

HELLO = struct.Struct("!8sI32s")
_MAGIC = b"escape-1"  # the number is that of the format of what is sent
_PENDING = 64  # strangers that may sit silent at the door; the longest there has to go


class Gone(Exception):
    """The ``peer`` hung up, or ``silent`` says what it left undone; for use between these files."""

    def __init__(self, peer: Peer, silent: str = "") -> None:
        self.peer, self.silent = peer, silent


@dataclass
class Peer:
    """A partner: its number and address, the connections to and from it, its latest bytes."""

    rank: int
    address: Address
    outgoing: socket.socket | None = None
    incoming: socket.socket | None = None
    tail: bytes = b""

    def __str__(self) -> str:
        return f"worker {self.rank} at {self.address[0]}:{self.address[1]}"

    def __getstate__(self) -> dict[str, Any]:
        # Errors travel with what they come from; connections stay.
        return vars(self) | {"outgoing": None, "incoming": None}

    def close(self) -> None:
        for line in (self.outgoing, self.incoming):
            if line is not None:
                with contextlib.suppress(OSError):
                    line.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for it
                line.close()


def listen(host: str = "") -> tuple[socket.socket, int]:
    """A listening socket on a free port.

    Parameters
    ----------
    host : str
        The address of the interface by which the other workers reach this one; "" is all of them.

    Returns
    -------
    listener : socket.socket
        For `SocketWorkers`, which closes it.
    port : int
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family, backlog=128)
    return listener, listener.getsockname()[1]


def _hello(rank: int, token: bytes) -> bytes:
    word = hmac.digest(token, _MAGIC + rank.to_bytes(4, "big"), "sha256")
    return HELLO.pack(_MAGIC, rank, word)


def _caller(hello: bytes, token: bytes) -> int | None:
    """The rank of who says ``hello``; None for a stranger."""
    rank = HELLO.unpack(hello)[1]
    return rank if hmac.compare_digest(hello, _hello(rank, token)) else None


def _tune(line: socket.socket, timeout: float) -> None:
    """No waiting for fuller packets; a machine that vanished is missed after about a minute."""
    line.setblocking(False)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    settings = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
    # What was sent and is not taken counts too. A worker that computes takes nothing for as long
    # as it is allowed to be silent, so that this limit must not be below that.
    settings["TCP_USER_TIMEOUT"] = min(int(1000 * timeout), 2**31 - 1)
    for name, value in settings.items():
        if hasattr(socket, name):  # which of them exist depends on the system
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def meet(
    listener: socket.socket, rank: int, token: bytes, peers: dict[int, Peer], timeout: float
) -> None:
    """Call all ``peers`` and wait for their calls; fills in their connections.

    Raises
    ------
    Gone
        If one cannot be reached, hangs up, or has not called after ``timeout`` seconds.
    """
    end = time.monotonic() + timeout
    for peer in peers.values():
        try:
            peer.outgoing = socket.create_connection(peer.address, timeout)
            peer.outgoing.sendall(_hello(rank, token))
            _tune(peer.outgoing, timeout)
        except OSError as error:
            raise Gone(peer, f"cannot be reached ({error})") from None
    with _Door(listener, token, peers, timeout) as door:
        while missing := [peer for peer in peers.values() if peer.incoming is None]:
            left = end - time.monotonic()
            if left <= 0:
                raise Gone(missing[0], f"did not call within {timeout:g} s")
            door.wait(left)


class _Door:
    """The listening socket, and the callers that have not said yet who they are."""

    def __init__(
        self, listener: socket.socket, token: bytes, peers: dict[int, Peer], timeout: float
    ) -> None:
        self.listener, self.token, self.peers, self.timeout = listener, token, peers, timeout
        self.pending: dict[socket.socket, bytes] = {}
        self.selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._watch(listener, self._accept)
        for peer in peers.values():
            self._watch(peer.outgoing, functools.partial(self._heard, peer))

    def __enter__(self) -> _Door:
        return self

    def __exit__(self, *args: object) -> None:
        self.selector.close()
        for line in self.pending:
            line.close()

    def wait(self, seconds: float) -> None:
        """Serve whoever comes or speaks within ``seconds``."""
        for key, _ in self.selector.select(seconds):
            key.data(key.fileobj)

    def _watch(self, line: socket.socket | None, act: Callable[[socket.socket], None]) -> None:
        assert line is not None
        self.selector.register(line, selectors.EVENT_READ, act)

    def _heard(self, peer: Peer, line: socket.socket) -> None:
        """Nobody speaks on a line that we called: what can be read there is its end."""
        raise Gone(peer)

    def _accept(self, listener: socket.socket) -> None:
        try:
            line, _ = listener.accept()
        except OSError:  # the caller has gone again
            return
        line.setblocking(False)
        if len(self.pending) >= _PENDING:
            self._turn_away(next(iter(self.pending)))
        self.pending[line] = b""
        self._watch(line, self._listen_to)

    def _listen_to(self, line: socket.socket) -> None:
        if line not in self.pending:  # turned away a moment ago
            return
        try:
            said = line.recv(HELLO.size - len(self.pending[line]))
        except BlockingIOError:
            return
        except OSError:
            said = b""
        self.pending[line] += said
        if not said:
            self._turn_away(line)
        elif len(self.pending[line]) == HELLO.size:
            self._admit(line)

    def _admit(self, line: socket.socket) -> None:
        rank = _caller(self.pending[line], self.token)
        peer = None if rank is None else self.peers.get(rank)
        if peer is None or peer.incoming is not None:
            self._turn_away(line)
            return
        self.selector.unregister(line)
        del self.pending[line]
        _tune(line, self.timeout)
        peer.incoming = line

    def _turn_away(self, line: socket.socket) -> None:
        _log.info("a caller that does not belong to the fit was turned away")
        self.selector.unregister(line)
        del self.pending[line]
        line.close()
