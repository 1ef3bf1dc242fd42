"""Time of one sum between processes of this machine, by its bytes, beside PyTorch's gloo.

Every contender has its own processes, which sleep while it is not their turn. Ten rounds, an order
that rotates; in each, some sums of every length, of which the mean time by the clock of the first
process counts. Latency and bandwidth are fitted to the
medians by least squares of relative errors, for a model of what a fit on several workers costs.
What is sent goes through the loopback device, so that the processor is the network, and four
processes share what cores there are.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# Bytes of float32; 1,568,000 is the gradient of a 784×500 RBM.
LENGTHS = (
    *(4, 1 << 10, 1 << 13, 1 << 15, 1 << 16, 1 << 17, 1 << 18),
    *(1 << 19, 1_568_000, 6_400_000, 25_000_000, 100_000_000),
)
BOTH_WAYS = [n for n in LENGTHS if n <= 6_400_000]  # summed by pairs and around the ring
SIZES = (2, 4)
NOTES = {4: 0.02, 1_568_000: 1.6}  # ms of a bare exchange by own sockets, measured beforehand


def repeats(n: int) -> int:
    return max(3, min(200, 10_000_000 // max(n, 1)))


# ---------------------------------------------------------------- one of the processes


def sum_ours(rank: int, size: int) -> Iterator[dict[str, dict[int, float]]]:
    """Yields nothing when all have met, then what one round takes, by the way of adding."""
    from energyscape.distributed import sockets
    from energyscape.distributed.meeting import listen

    threshold, sockets.DIRECT_BYTES = sockets.DIRECT_BYTES, max(BOTH_WAYS)  # room for all
    listener, port = listen("127.0.0.1")
    print(port, flush=True)
    addresses = [("127.0.0.1", port) for port in json.loads(sys.stdin.readline())]
    workers = sockets.SocketWorkers(rank, addresses, b"benchmark", listener)
    yield {}
    while True:
        found = {}
        sockets.DIRECT_BYTES = max(BOTH_WAYS)
        found["by pairs"] = times(workers.add, BOTH_WAYS)
        sockets.DIRECT_BYTES = -1
        found["ring"] = times(workers.add, BOTH_WAYS)
        sockets.DIRECT_BYTES = threshold
        found["energyscape"] = times(workers.add, LENGTHS)
        yield found


def sum_gloo(rank: int, size: int) -> Iterator[dict[str, dict[int, float]]]:
    import socket

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    print(port, flush=True)
    where = f"tcp://127.0.0.1:{json.loads(sys.stdin.readline())[0]}"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=size)
    yield {}
    while True:
        found = times(lambda buffer: dist.all_reduce(torch.from_numpy(buffer)), LENGTHS)
        yield {"PyTorch gloo": found}


CONTENDERS = {"energyscape": sum_ours, "PyTorch gloo": sum_gloo}


def times(add: Callable[[Any], object], lengths: Sequence[int]) -> dict[int, float]:
    """Mean seconds of a sum by its bytes."""
    import time

    import numpy as np

    found = {}
    for n in lengths:
        buffer = np.zeros(n // 4, np.float32)
        for _ in range(2):
            add(buffer)
        start = time.perf_counter()
        for _ in range(repeats(n)):
            add(buffer)
        found[n] = (time.perf_counter() - start) / repeats(n)
    return found


# ---------------------------------------------------------------- rounds


class Group:
    """The processes of a contender."""

    def __init__(self, name: str, size: int) -> None:
        peer = HERE / ".venv" / "bin" / "python"  # made by step_time.py
        python = sys.executable if name == "energyscape" else str(peer)
        command = [python, __file__, "--contender", name, "--size", str(size), "--rank"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.size = size
        self.processes = [subprocess.Popen([*command, str(rank)], **pipes) for rank in range(size)]
        self.tell([json.loads(process.stdout.readline()) for process in self.processes])

    def tell(self, what: Any) -> None:
        for process in self.processes:
            process.stdin.write(json.dumps(what) + "\n")
            process.stdin.flush()

    def measure(self) -> dict[str, dict[int, float]]:
        """Seconds of a sum by its bytes, as the first of the processes saw them."""
        self.tell("go")
        said, *_ = [json.loads(process.stdout.readline()) for process in self.processes]
        return {kind: {int(n): t for n, t in found.items()} for kind, found in said.items()}

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


def fit(median: dict[int, float]) -> tuple[float, float, float]:
    """Latency in s and s per byte with least relative errors; the greatest of these."""
    import numpy as np

    n, t = (np.array(list(part), float) for part in (median.keys(), median.values()))
    design = np.stack([1 / t, n / t], axis=1)
    (latency, per_byte), *_ = np.linalg.lstsq(design, np.ones(len(t)), rcond=None)
    worst = np.abs((latency + per_byte * n) / t - 1).max()
    return float(latency), float(per_byte), float(worst)


def cells(runs: list[dict[int, float]]) -> dict[int, str]:
    """Median and least milliseconds."""
    by_length = {n: [1e3 * run[n] for run in runs] for n in runs[0]}
    return {n: f"{statistics.median(t):.3f} ({min(t):.3f})" for n, t in by_length.items()}


def report(record: dict[str, Any], rounds: int) -> str:
    from common import table

    seconds = record["seconds"]
    blocks = [f"{rounds} rounds. Median ms of a sum (least)."]
    for kinds in (CONTENDERS, ("by pairs", "ring")):
        keys = [f"{kind}, {size}" for size in SIZES for kind in kinds]
        columns = [cells(seconds[key]) for key in keys]
        rows = [[f"{n:,}", *(column[n] for column in columns)] for n in columns[0]]
        blocks.append(table(["bytes", *keys], rows))
    median = {
        key: {n: statistics.median(t[n] for t in seconds[key]) for n in LENGTHS}
        for key in seconds
        if key.split(",")[0] in CONTENDERS
    }
    lines = []
    for key, found in median.items():
        latency, per_byte, worst = record["fit"][key] = fit(found)
        cells_ = f"{1e3 * latency:.3f}", f"{1e-9 / per_byte:.2f}", f"{100 * worst:.0f} %"
        lines.append([key, *cells_])
    blocks.append(table(["latency + bytes / bandwidth", "ms", "GB/s", "worst error"], lines))
    two, gloo = median["energyscape, 2"], median["PyTorch gloo, 2"]
    notes = ", ".join(f"{n:,} B {1e3 * two[n]:.3f} ms beside {ms}" for n, ms in NOTES.items())
    blocks.append(f"A bare exchange between two, noted before this was built: {notes}.")
    ratios = ", ".join(f"{n:,} B {gloo[n] / two[n]:.1f}" for n in LENGTHS)
    blocks.append(f"gloo's time over ours between two: {ratios}.")
    return "\n\n".join(blocks)


def main() -> None:
    from common import options, write

    chosen = options(
        __doc__,
        threads=1,
        contender={"help": "be one process of this contender"},
        rank={"type": int, "default": 0},
        size={"type": int, "default": 2},
        rounds={"type": int, "default": 10},
    )
    if chosen.contender:
        rounds = CONTENDERS[chosen.contender](chosen.rank, chosen.size)
        next(rounds)
        while sys.stdin.readline():
            print(json.dumps(next(rounds)), flush=True)
        return
    groups = [Group(name, size) for size in SIZES for name in CONTENDERS]
    seconds: dict[str, list[dict[int, float]]] = {}
    try:
        for turn in range(chosen.rounds):
            k = turn % len(groups)
            for group in groups[k:] + groups[:k]:
                for kind, found in group.measure().items():
                    seconds.setdefault(f"{kind}, {group.size}", []).append(found)
    finally:
        for group in groups:
            group.stop()
    record: dict[str, Any] = {"seconds": seconds, "fit": {}}
    text = report(record, chosen.rounds)
    write(chosen, "allreduce", "Sums between processes", text, record)


if __name__ == "__main__":
    main()
