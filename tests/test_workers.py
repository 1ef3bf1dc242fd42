"""Sums between workers: the arithmetic, bit for bit; strangers, strife and death.

Most workers here are threads, which is quicker and all the same to the sockets; some are
processes, which can be killed.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import json
import math
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import standin

from energyscape import backend
from energyscape.distributed import flow, meeting, nccl, sockets
from energyscape.distributed.meeting import HELLO, listen
from energyscape.distributed.nccl import NcclWorkers
from energyscape.distributed.sockets import DIRECT_BYTES, SocketWorkers, direct_bytes
from energyscape.errors import DeviceError, EnergyscapeError, WorkerLostError
from energyscape.workers import split_evenly

TOKEN = bytes(range(16))
SOON = 10.0  # seconds: a survivor that ends at all ends within some milliseconds


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Neither sockets nor threads, whatever went wrong in the test."""
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    threads = threading.active_count()
    yield
    gc.collect()
    if before:
        assert len(os.listdir("/proc/self/fd")) <= len(before)
    assert threading.active_count() <= threads


def together(
    size: int,
    work: Callable[[SocketWorkers], Any],
    token: Callable[[int], bytes] = lambda rank: TOKEN,
    absent: tuple[int, ...] = (),
    between: Callable[[list[tuple[str, int]]], None] = lambda addresses: None,
    **settings: Any,
) -> list[Any]:
    """What ``work`` returns, or the error that it raises, for every worker in a thread."""
    doors = [listen("127.0.0.1") for _ in range(size)]
    addresses = [("127.0.0.1", port) for _, port in doors]
    between(addresses)
    for rank in absent:
        doors[rank][0].close()

    def one(rank: int) -> Any:
        if rank in absent:
            return None
        threading.current_thread().name = f"worker-{rank}"
        try:
            workers = SocketWorkers(rank, addresses, token(rank), doors[rank][0], **settings)
        except (EnergyscapeError, ValueError) as error:
            return error
        try:
            return work(workers)
        except (EnergyscapeError, ValueError, TypeError) as error:
            return error
        finally:
            workers.close()

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


def numbers(rank: int, n: int, dtype: str) -> np.ndarray:
    """A worker's buffer: its own copy, to be overwritten."""
    return _drawn(rank, n).astype(dtype)


@functools.cache
def _drawn(rank: int, n: int) -> np.ndarray:
    return np.random.default_rng([rank, n]).standard_normal(n)


# ---------------------------------------------------------------- the arithmetic


def by_pairs(parts: list[np.ndarray]) -> np.ndarray:
    """What small buffers become: those beyond the power of two first, then a binary tree."""
    even = 1 << (len(parts).bit_length() - 1)
    parts = [a + b for a, b in zip(parts, parts[even:], strict=False)] + parts[
        len(parts) - even : even
    ]
    while len(parts) > 1:
        parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def around(parts: list[np.ndarray]) -> np.ndarray:
    """What large buffers become: chunk c summed in the order c, c + 1, …, c - 1."""
    size, out = len(parts), np.empty_like(parts[0])
    for c in range(size):
        chunk = split_evenly(len(out), size, c)
        total = parts[c][chunk].copy()
        for k in range(1, size):
            total += parts[(c + k) % size][chunk]
        out[chunk] = total
    return out


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_are_the_sum_with_the_same_bits_for_everyone(size: int, dtype: str) -> None:
    itemsize = np.dtype(dtype).itemsize
    lengths = [0, 1, 7, DIRECT_BYTES // itemsize, DIRECT_BYTES // itemsize + 1, 100_000, 3_000_000]

    def work(workers: SocketWorkers) -> list[np.ndarray]:
        buffers = [numbers(workers.rank, n, dtype) for n in lengths]
        for buffer in buffers:
            workers.add(buffer)
        return buffers

    everyone = together(size, work)
    for k, n in enumerate(lengths):
        parts = [numbers(rank, n, dtype) for rank in range(size)]
        wanted = (by_pairs if n * itemsize <= DIRECT_BYTES else around)(parts)
        for got in everyone:
            np.testing.assert_array_equal(got[k], wanted, strict=True)
        # size - 1 roundings of half an ulp, of partial sums below Σ|x|: half of this at most.
        exact = np.sum([p.astype(np.longdouble) for p in parts], axis=0)
        bound = (size - 1) * np.finfo(dtype).eps * np.sum(np.abs(parts), axis=0)
        assert (np.abs(wanted - exact) <= bound).all()


def test_the_order_of_a_sum_shows_in_its_bits() -> None:
    """A negative control: the comparison above would see another order."""
    parts = [numbers(rank, 1000, "float32") for rank in range(5)]
    assert (by_pairs(parts) != around(parts)).any()
    assert (around(parts) != around(parts[::-1])).any()


def test_many_workers_sum_longer_buffers_by_pairs() -> None:
    """Where the two ways cost the same by the model: a few messages of latency are many bytes."""
    assert [direct_bytes(size) for size in (2, 3, 4, 5)] == [DIRECT_BYTES] * 4
    alpha, bandwidth = DIRECT_BYTES / 8.0, 1.0  # in units of bytes
    for size in (8, 64, 1000):
        n, rounds = direct_bytes(size), np.ceil(np.log2(size))
        pairs = rounds * (alpha + n / bandwidth)
        ring = 2 * (size - 1) * (alpha + n / size / bandwidth)
        assert abs(pairs / ring - 1) < 1e-4


def test_whatever_pieces_arrive_in_the_sum_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 13 bytes split numbers in two."""
    monkeypatch.setattr(sockets, "BLOCK", 13 * 8)
    monkeypatch.setattr(sockets, "DIRECT_BYTES", 0)

    class Dribble(flow._RingIn):
        def ready(self) -> memoryview:
            return super().ready()[: 1 + self.processed % 13]

    monkeypatch.setattr(flow, "_RingIn", Dribble)

    def work(workers: SocketWorkers) -> np.ndarray:
        buffer = numbers(workers.rank, 2001, "float64")
        workers.add(buffer)
        return buffer

    wanted = around([numbers(rank, 2001, "float64") for rank in range(3)])
    for got in together(3, work):
        np.testing.assert_array_equal(got, wanted)


def test_without_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    monkeypatch.delattr(select, "poll")
    parts = [numbers(rank, 300_000, "float32") for rank in range(3)]

    def work(workers: SocketWorkers) -> np.ndarray:
        workers.add(parts[workers.rank][:5])
        workers.add(parts[workers.rank][5:])
        return parts[workers.rank]

    first, *rest = together(3, work)
    assert not isinstance(first, Exception)
    for other in rest:
        np.testing.assert_array_equal(first, other)


def test_addresses_may_be_of_version_six() -> None:
    try:
        doors = [listen("::1") for _ in range(2)]
    except OSError:
        pytest.skip("this machine has no IPv6")
    addresses = [("::1", port) for _, port in doors]

    def one(rank: int) -> float:
        workers = SocketWorkers(rank, addresses, TOKEN, doors[rank][0])
        buffer = np.ones(1)
        workers.add(buffer)
        workers.close()
        return float(buffer[0])

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(one, range(2))) == [2.0, 2.0]


def _one_after_the_other(out: Any, into: Any, patience: float, silent: str = "") -> None:
    """What `flow.pump` must not be: first all out, then all in."""
    for stream in (out, into):
        while stream is not None and stream.left():
            if not stream.move() and not flow._wait([stream], patience):
                raise meeting.Gone(stream.peer, "stuck")


@pytest.mark.parametrize("stuck", [False, True])
def test_both_may_send_more_than_the_system_keeps(
    stuck: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 MB each way at once; two that first send everything wait for each other forever."""
    if stuck:
        monkeypatch.setattr(sockets, "pump", _one_after_the_other)
    parts = [np.full(100_000_000, rank, np.uint8) for rank in range(2)]

    def work(workers: SocketWorkers) -> bool:
        found = workers.gather(parts[workers.rank])
        return all(np.array_equal(a, b) for a, b in zip(found, parts, strict=True))

    ended = together(2, work, timeout=1.0 if stuck else 60.0)
    assert any(isinstance(e, WorkerLostError) for e in ended) if stuck else ended == [True, True]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_everyones_parts_come_in_the_order_of_ranks(size: int) -> None:
    def part(rank: int, dtype: str) -> np.ndarray:
        shape = [(), (3, rank), (rank, 2, 2), (1,)][rank % 4]
        return (10 * np.random.default_rng(rank).random(shape)).astype(dtype)

    dtypes = ["float64", "float32", "float16", "int64", "uint8", "bool", "complex128", ">i4"]

    def work(workers: SocketWorkers) -> list[list[np.ndarray]]:
        return [workers.gather(part(workers.rank, dtype)) for dtype in dtypes]

    for found in together(size, work):
        for dtype, parts in zip(dtypes, found, strict=True):
            for rank, got in enumerate(parts):
                np.testing.assert_array_equal(got, part(rank, dtype), strict=True)


def test_a_part_need_not_be_contiguous_and_may_differ_in_dtype() -> None:
    parts = [np.arange(12.0).reshape(3, 4).T, np.arange(5)[::2]]
    for found in together(2, lambda workers: workers.gather(parts[workers.rank])):
        for got, wanted in zip(found, parts, strict=True):
            np.testing.assert_array_equal(got, wanted, strict=True)


def test_a_sum_on_a_gpu_goes_over_the_host(fake_cupy: Any) -> None:
    def work(workers: SocketWorkers) -> np.ndarray:
        buffer = fake_cupy.asarray(numbers(workers.rank, 9, "float32"))
        workers.add(buffer)
        return buffer.get()

    wanted = numbers(0, 9, "float32") + numbers(1, 9, "float32")
    for got in together(2, work):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("size", range(1, 40))
def test_partners_are_mutual_and_few(size: int) -> None:
    partners = [sockets._partners(rank, size) for rank in range(size)]
    for rank, others in enumerate(partners):
        assert rank not in others and all(rank in partners[other] for other in others)
        # Two in the ring, a pair for each doubling (two of them neighbours), one beyond.
        assert len(others) <= 3 + math.log2(size)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "bad",
    [{"rank": 1}, {"rank": -1}, {"sync_every": 0}, {"timeout": 0.0}, {"token": b""}],
    ids=str,
)
def test_bad_arguments(bad: dict[str, Any]) -> None:
    door, port = listen("127.0.0.1")
    good = {"rank": 0, "addresses": [("127.0.0.1", port)], "token": TOKEN, "listener": door}
    with pytest.raises(ValueError, match="wanted 0 <= rank"):
        SocketWorkers(**(good | bad))


@pytest.mark.parametrize(
    "buffer",
    [np.zeros((2, 2)), np.zeros(4, int), np.zeros(8)[::2], np.zeros(3, ">f4"), np.zeros(3, "f2")],
    ids=lambda b: f"{b.dtype.str} {b.shape} {b.strides}",
)
def test_only_flat_floats_are_added(buffer: np.ndarray) -> None:
    for error in together(1, lambda workers: workers.add(buffer)):
        assert isinstance(error, ValueError) and "flat, contiguous arrays of float32" in str(error)


@pytest.mark.parametrize("part", [np.array(["a"]), np.array([None])])
def test_only_numbers_are_gathered(part: np.ndarray) -> None:
    (error,) = together(1, lambda workers: workers.gather(part))
    assert isinstance(error, TypeError) and "workers gather numbers" in str(error)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda w: w.add(np.zeros(4 + w.rank)), ["sum of 4 numbers of float64", "sum of 5"]),
        (lambda w: w.add(np.zeros(100_000 * (1 + w.rank))), ["100000", "200000"]),
        (lambda w: w.add(np.zeros(4 + 100_000 * w.rank)), ["sum of 4 ", "100004"]),
        (lambda w: w.add(np.zeros(4, ["f4", "f8"][w.rank])), ["float32", "float64"]),
        (lambda w: w.add(np.zeros(4)) if w.rank else w.gather(np.zeros(4)), ["everyone's part"]),
    ],
)
def test_workers_that_ask_for_different_things_are_told(ask: Any, words: list[str]) -> None:
    errors = together(2, ask, timeout=SOON)
    for error in errors:
        assert isinstance(error, ValueError | WorkerLostError)
    (said, *_) = [str(error) for error in errors if isinstance(error, ValueError)]
    assert all(word in said for word in [*words, "rows of the same length"])


def test_different_versions_are_named_to_everyone(monkeypatch: pytest.MonkeyPatch) -> None:
    def version() -> str:
        return "3.99.1" if threading.current_thread().name == "worker-2" else "3.11.7"

    monkeypatch.setattr(sockets.platform, "python_version", version)
    errors = together(4, lambda workers: None)
    for error in errors:
        assert isinstance(error, ValueError)
        assert "worker 2 at 127.0.0.1:" in str(error)
        assert "has Python 3.99.1, worker 0 has Python 3.11.7" in str(error)
        assert "NumPy" not in str(error)


# ---------------------------------------------------------------- strangers


def _call(address: tuple[str, int], said: bytes) -> socket.socket:
    line = socket.create_connection(address)
    line.sendall(said)
    return line


def test_strangers_are_turned_away_and_do_no_harm() -> None:
    """Silent ones, chatterers, one with another token, one that repeats what it overheard."""
    other = meeting._hello(1, b"another fit's token")
    overheard = meeting._hello(0, TOKEN)  # rank 0 does not call itself
    words = [b"", b"GET / HTTP/1.1\r\n\r\n" * 10, other, overheard, b"\0" * HELLO.size, other[:9]]
    lines: list[socket.socket] = []

    def between(addresses: list[tuple[str, int]]) -> None:
        lines.extend(_call(addresses[0], said) for said in words)

    def work(workers: SocketWorkers) -> float:
        buffer = np.full(3, 1.0 + workers.rank)
        workers.add(buffer)
        return float(buffer[0])

    assert together(3, work, between=between, timeout=SOON) == [6.0] * 3
    for line in lines:
        line.settimeout(SOON)
        with line, contextlib.suppress(ConnectionResetError):
            assert line.recv(100) == b""


def test_a_crowd_at_the_door_does_not_lock_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "_PENDING", 3)
    lines: list[socket.socket] = []

    def between(addresses: list[tuple[str, int]]) -> None:
        lines.extend(_call(addresses[0], b"") for _ in range(20))

    assert together(2, lambda w: w.size, between=between, timeout=SOON) == [2, 2]
    for line in lines:
        line.close()


def test_a_worker_of_another_fit_is_not_let_in() -> None:
    errors = together(2, lambda workers: None, token=lambda rank: b"token %d" % rank, timeout=0.5)
    for rank, error in enumerate(errors):
        assert isinstance(error, WorkerLostError)
        assert f"worker {1 - rank} at 127.0.0.1:" in str(error)


# ---------------------------------------------------------------- the lost


def _until_lost(workers: SocketWorkers, n: int) -> None:
    buffer = np.zeros(n)
    for _ in range(10_000):
        workers.add(buffer)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@pytest.mark.parametrize("n", [3, 100_000])
def test_survivors_name_the_one_that_hung_up(size: int, n: int) -> None:
    """Between two sums, when the system's buffers are empty and last words always fit."""
    lost = size - 1

    def work(workers: SocketWorkers) -> float:
        buffer = np.zeros(n)
        workers.add(buffer)
        start = time.monotonic()
        if workers.rank != lost:
            try:
                workers.add(buffer)
            except WorkerLostError:
                assert time.monotonic() - start < SOON
                with pytest.raises(WorkerLostError):
                    workers.add(buffer)
                raise
        return 0.0

    *errors, ended = together(size, work)
    assert ended == 0.0
    for error in errors:
        assert isinstance(error, WorkerLostError) and error.rank == lost, error
        assert f"worker {lost} at 127.0.0.1:" in str(error)
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), copy.rank) == (type(error), str(error), lost)


def test_one_that_never_came_is_missed_at_once() -> None:
    """Its door is shut: nobody waits for the timeout, though only some call it."""
    start = time.monotonic()
    errors = together(5, lambda workers: None, absent=(2,), timeout=600.0)
    assert time.monotonic() - start < SOON
    assert errors.pop(2) is None
    assert all(isinstance(error, WorkerLostError) for error in errors)
    assert any("worker 2" in str(e) and "cannot be reached" in str(e) for e in errors)


def test_one_that_dies_at_the_door_is_missed_at_once() -> None:
    """It listened, but did not live to answer."""
    (door, port), (other, port_) = listen("127.0.0.1"), listen("127.0.0.1")
    addresses = [("127.0.0.1", port), ("127.0.0.1", port_)]
    timer = threading.Timer(0.3, other.close)
    timer.start()
    start = time.monotonic()
    with pytest.raises(WorkerLostError, match=r"worker 1 at .* is gone: it hung up"):
        SocketWorkers(0, addresses, TOKEN, door, timeout=600.0)
    assert time.monotonic() - start < SOON
    timer.join()


@pytest.mark.parametrize("said", ["half a header", "half the numbers", "no bytes at all"])
@pytest.mark.parametrize("size", [2, 4])
def test_one_that_dies_in_the_middle_of_a_sum(size: int, said: str) -> None:
    n = 1_000_000

    def work(workers: SocketWorkers) -> None:
        if workers.rank == 1:
            header = workers._next(b"addd", 8 * n)
            line = workers._peers[2 % size].outgoing
            assert line is not None
            line.setblocking(True)
            if said == "half a header":
                line.sendall(header[:7])
            elif said == "half the numbers":
                line.sendall(header + bytes(4 * n // size + 3))
            return
        workers.add(np.zeros(n))

    start = time.monotonic()
    errors = together(size, work)
    assert time.monotonic() - start < SOON
    assert errors.pop(1) is None
    for error in errors:
        assert isinstance(error, WorkerLostError) and error.rank is not None
    assert any(error.rank == 1 for error in errors)


@pytest.mark.parametrize("size", [2, 4, 6])
@pytest.mark.parametrize("n", [3, 100_000])
def test_a_silent_one_is_named_by_all(size: int, n: int) -> None:
    """Also by those that wait for one that waits for it: these are given half a second more."""
    silent, done = 1, threading.Event()
    left = itertools.count(1)

    def work(workers: SocketWorkers) -> None:
        try:
            if workers.rank == silent:
                assert done.wait(SOON)
                workers.add(np.zeros(n))
            workers.add(np.zeros(n))
        finally:
            if next(left) == size - 1:
                done.set()

    errors = together(size, work, timeout=1.0)
    late = errors.pop(silent)
    assert isinstance(late, WorkerLostError) and "was given up as lost" in str(late)
    for error in errors:
        assert isinstance(error, WorkerLostError) and error.rank == silent
    assert any(
        f"worker {silent} at 127.0.0.1:" in e and "said nothing" in e for e in map(str, errors)
    )


def test_one_that_computes_is_not_lost() -> None:
    def work(workers: SocketWorkers) -> float:
        buffer = np.ones(100_000)
        for _ in range(3):
            time.sleep(0.4 * workers.rank)
            workers.add(buffer)
        return float(buffer[0])

    assert together(2, work, timeout=3.0) == [8.0, 8.0]


def test_close_can_be_called_again_and_is_final() -> None:
    def work(workers: SocketWorkers) -> None:
        workers.close()
        workers.close()
        workers.gather(np.zeros(2))

    for rank, error in enumerate(together(2, work)):
        assert isinstance(error, WorkerLostError) and error.rank is None
        assert f"worker {rank} has hung up itself" in str(error)


# ---------------------------------------------------------------- processes

PROCESS = """
import json, sys, time
import numpy as np
from energyscape.distributed.meeting import listen
from energyscape.distributed.sockets import SocketWorkers
from energyscape.errors import WorkerLostError

rank, n = int(sys.argv[1]), int(sys.argv[2])
listener, port = listen("127.0.0.1")
print(port, flush=True)
addresses = json.loads(sys.stdin.readline())
workers = SocketWorkers(rank, addresses, b"a token", listener)
buffer = np.random.default_rng(rank).standard_normal(n)
workers.add(buffer)
print(buffer.tobytes()[:8000].hex(), flush=True)
try:
    while True:
        workers.add(buffer)
        buffer /= workers.size
except WorkerLostError as error:
    print(error.rank, flush=True)
"""


@pytest.mark.parametrize("n", [100, 3_000_000])
def test_a_killed_process_ends_the_others(n: int) -> None:
    size, killed = 3, 1
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(n)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.enter_context(process)
            stack.callback(process.kill)
        ports = [int(process.stdout.readline()) for process in processes]
        for process in processes:
            process.stdin.write(json.dumps([("127.0.0.1", port) for port in ports]) + "\n")
            process.stdin.flush()
        sums = [bytes.fromhex(process.stdout.readline()) for process in processes]
        parts = [np.random.default_rng(rank).standard_normal(n) for rank in range(size)]
        wanted = (by_pairs if 8 * n <= DIRECT_BYTES else around)(parts)
        assert sums == [wanted.tobytes()[:8000]] * size
        processes[killed].send_signal(signal.SIGKILL)
        start = time.monotonic()
        survivors = [process for rank, process in enumerate(processes) if rank != killed]
        named = [process.communicate(timeout=60)[0].strip() for process in survivors]
        assert time.monotonic() - start < SOON
        assert [process.returncode for process in survivors] == [0, 0]
        # In the middle of a large sum the lines may be too full for last words.
        assert str(killed) in named if n > 100 else named == [str(killed)] * 2


# ---------------------------------------------------------------- NCCL


class _FakeNccl:
    """NCCL between threads, for the stand-in's arrays, which it finds by their addresses."""

    NCCL_SUM, NCCL_FLOAT32, NCCL_FLOAT64 = 0, 7, 8
    available = True

    def __init__(self, size: int) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.gone: list[str] = []
        self.parts: dict[int, np.ndarray] = {}
        self.barrier = threading.Barrier(size, timeout=SOON)
        fake = self

        class NcclCommunicator:
            def __init__(self, size: int, name: tuple[int, ...], rank: int) -> None:
                assert name == tuple(range(-64, 64)) and size == fake.barrier.parties
                self.rank = rank

            def allReduce(
                self, sent: int, got: int, count: int, kind: int, op: int, stream: int
            ) -> None:
                fake.calls.append((kind, op, stream, count))
                kind_ = {7: np.float32, 8: np.float64}[kind]
                raw = np.ctypeslib.ctypes.c_char * (count * np.dtype(kind_).itemsize)
                fake.parts[self.rank] = np.frombuffer(raw.from_address(sent), kind_).copy()
                fake.barrier.wait()
                total = sum(fake.parts[rank] for rank in range(size))
                fake.barrier.wait()
                np.frombuffer(raw.from_address(got), kind_)[:] = total

            def destroy(self) -> None:
                fake.gone.append("destroyed")

            def abort(self) -> None:
                fake.gone.append("aborted")

        self.NcclCommunicator = NcclCommunicator

    def get_unique_id(self) -> tuple[int, ...]:
        return tuple(range(-64, 64))


@pytest.fixture
def fake_nccl(fake_cupy: Any, monkeypatch: pytest.MonkeyPatch) -> _FakeNccl:
    fake = _FakeNccl(3)
    cuda = fake_cupy.cuda
    cuda.nccl, cuda.get_current_stream = fake, lambda: types.SimpleNamespace(ptr=17)
    monkeypatch.setitem(sys.modules, "cupy.cuda", cuda)
    address = property(lambda self: types.SimpleNamespace(ptr=self._host.ctypes.data))
    monkeypatch.setattr(standin.ndarray, "data", address, raising=False)
    monkeypatch.setattr(nccl, "_LOOKS_EVERY", 0.02)
    monkeypatch.setattr(nccl, "_GRACE", 0.3)
    return fake


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nccl_adds_on_the_gpu_without_waiting(
    dtype: str, fake_cupy: Any, fake_nccl: _FakeNccl
) -> None:
    def work(sockets: SocketWorkers) -> tuple[Any, ...]:
        workers = NcclWorkers(sockets)
        assert (workers.rank, workers.size, workers.sync_every) == (sockets.rank, 3, 5)
        device, host = (numbers(workers.rank, 9, dtype) for _ in range(2))
        device = fake_cupy.asarray(device)
        workers.add(device)
        workers.add(host)
        parts = workers.gather(np.array(workers.rank))
        workers.close()
        workers.close()
        with pytest.raises(WorkerLostError):
            workers.add(device)
        return device, host, parts

    everyone = together(3, work, sync_every=5)
    assert standin.Counter.syncs == 0
    wanted = sum(numbers(rank, 9, dtype) for rank in range(3))
    for device, host, parts in everyone:
        np.testing.assert_array_equal(device.get(), wanted)
        np.testing.assert_array_equal(host, by_pairs([numbers(r, 9, dtype) for r in range(3)]))
        assert [int(part) for part in parts] == [0, 1, 2]
    assert fake_nccl.calls == [({"float32": 7, "float64": 8}[dtype], 0, 17, 9)] * 3
    assert fake_nccl.gone == ["destroyed"] * 3


def test_nccl_refuses_what_it_cannot_add(fake_cupy: Any, fake_nccl: _FakeNccl) -> None:
    def work(sockets: SocketWorkers) -> None:
        workers = NcclWorkers(sockets)
        try:
            workers.add(fake_cupy.zeros((2, 2)))
        finally:
            workers.close()

    for error in together(3, work):
        assert isinstance(error, ValueError) and "of shape (2, 2)" in str(error)


def test_a_lost_worker_takes_nccl_down(fake_cupy: Any, fake_nccl: _FakeNccl) -> None:
    def work(sockets: SocketWorkers) -> None:
        workers = NcclWorkers(sockets)
        try:
            if sockets.rank:
                assert workers._lost.wait(SOON)
                workers.add(fake_cupy.zeros(3))
        finally:
            workers.close()

    first, *errors = together(3, work)
    assert first is None
    assert all(isinstance(error, WorkerLostError) for error in errors)
    assert sorted(fake_nccl.gone) == ["aborted", "aborted", "destroyed"]


def test_without_nccl_everyone_is_told(fake_cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that have it; and the sockets still serve."""

    class Sometimes(_FakeNccl):
        available = property(lambda self: threading.current_thread().name == "worker-0")  # type: ignore

    cuda = fake_cupy.cuda
    cuda.nccl = Sometimes(2)
    monkeypatch.setitem(sys.modules, "cupy.cuda", cuda)

    def work(sockets: SocketWorkers) -> str:
        with pytest.raises(DeviceError) as caught:
            NcclWorkers(sockets)
        buffer = np.ones(2)
        sockets.add(buffer)
        assert (buffer == 2).all()
        return str(caught.value)

    has, lacks = together(2, work)
    assert "worker(s) 1" in has and "over sockets, which is slower" in has
    assert "nvidia-nccl-cu12" in lacks and "over sockets, which is slower" in lacks


def test_the_accessor_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cupy", "cupy.cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DeviceError, match="nvidia-nccl-cu12"):
        backend.nccl()


def test_the_installed_cupy_has_nccl_or_we_say_so() -> None:
    """In a process of its own, where CuPy's own warning would be an error."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    code = """
        from energyscape import backend, errors
        try:
            library = backend.nccl()
            print(library.available and all(hasattr(library, name) for name in
                "NcclCommunicator get_unique_id NCCL_SUM NCCL_FLOAT32 NCCL_FLOAT64".split()))
        except errors.DeviceError as error:
            print("nvidia-nccl-cu12" in str(error))
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.stdout == "True\n", run.stderr[-2000:]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_a_long_task_keeps_its_memory() -> None:
    """Under a nanny's settings arrays of 256 KB are mapped anew, and their pages touched for
    the first time; within the block they are not. Page faults are counted by the system."""
    code = """
import resource
import numpy as np
from energyscape.distributed.allocator import kept_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        np.ones(1 << 15)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

apart = faults()
with kept_memory():
    np.ones(1 << 15)
    kept = faults()
print(apart, kept, faults())
"""
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    apart, kept, again = map(int, run.stdout.split())
    assert min(apart, again) > 100 * 60  # 64 pages an array
    assert kept < 640
