"""Data larger than memory: training from disk beside training from memory; 20 GB in little memory.

Throughput: PCD-1 of a 784×240 RBM, batch 100, an epoch of 100,000 rows from each kind of source.
Every contender runs in its own process, ten rounds, in an order that rotates; medians and minima
of the time per update. Files are in the page cache: what is measured is the library, not a disk.
Memory: one epoch over a file of 20 GB of float32, which is made and deleted here.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

D, H, BATCH, ROWS = 784, 240, 100, 100_000
PARTS = 20  # files that Blocks iterates over
WIDE, WIDE_BATCH = 1024, 1000
LIMIT_GB, LIMIT_RATIO = 2.0, 1.10


# ---------------------------------------------------------------- files


def make_files(folder: Path) -> None:
    """The same rows, bits as float32 and as uint8, in every form."""
    import h5py
    import numpy as np

    X = (np.random.default_rng(0).random((ROWS, D), dtype=np.float32) < 0.15).astype(np.uint8)
    np.save(folder / "bytes.npy", X)
    with h5py.File(folder / "bytes.h5", "w") as file:
        file.create_dataset("X", data=X, chunks=(256, D), compression="gzip")
    X = X.astype(np.float32)
    np.save(folder / "x.npy", X)
    for i, part in enumerate(np.array_split(X, PARTS)):
        np.save(folder / f"part{i}.npy", part)
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("contiguous", data=X)
        file.create_dataset("chunks", data=X, chunks=(256, D))


def make_large_file(path: Path, n_bytes: int) -> dict[str, float]:
    """A contiguous HDF5 dataset of uniform float32 numbers."""
    import h5py
    import numpy as np

    start, rng = time.perf_counter(), np.random.default_rng(0)
    some = rng.random((1 << 16, WIDE), dtype=np.float32)
    rows = n_bytes // (4 * WIDE)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("X", (rows, WIDE), np.float32)
        for lo in range(0, rows, len(some)):
            part = some[: rows - lo]
            part[:, 0] = rng.random(len(part), dtype=np.float32)
            data.write_direct(part, dest_sel=np.s_[lo : lo + len(part)])
    os.sync()
    return {"seconds": time.perf_counter() - start, "GB": path.stat().st_blocks * 512 / 1e9}


# ---------------------------------------------------------------- contenders


def source(name: str, folder: Path) -> Any:
    """What a contender trains on."""
    import h5py
    import numpy as np

    from energyscape.data import Blocks

    return {
        "memory": lambda: np.load(folder / "x.npy"),
        "memory, uint8": lambda: np.load(folder / "bytes.npy"),
        "memory map": lambda: np.load(folder / "x.npy", mmap_mode="r"),
        "HDF5, contiguous": lambda: h5py.File(folder / "x.h5")["contiguous"],
        "HDF5, chunks of 256 rows": lambda: h5py.File(folder / "x.h5")["chunks"],
        "HDF5, gzip, uint8": lambda: h5py.File(folder / "bytes.h5")["X"],
        "Blocks of 20 files": lambda: Blocks(
            lambda: (np.load(folder / f"part{i}.npy") for i in range(PARTS)), n_rows=ROWS
        ),
    }[name]()


SOURCES = (
    "memory",
    "memory map",
    "HDF5, contiguous",
    "HDF5, chunks of 256 rows",
    "Blocks of 20 files",
    "memory, uint8",
    "HDF5, gzip, uint8",
)


def epoch(name: str, folder: Path) -> dict[str, float]:
    """Seconds of an update, as recorded in the history: the whole epoch over its updates."""
    from energyscape.models import RBM
    from energyscape.trainers import PCD

    trainer = PCD(n_epochs=1, batch_size=BATCH, learning_rate=0.05)
    model = RBM(H, trainer=trainer, random_state=0).fit(source(name, folder))
    return {"seconds": model.history_["seconds"][0] / (ROWS // BATCH)}


def large(kind: str, path: Path) -> dict[str, float]:
    """One epoch over the large file; peak memory of the process, from its first line to here."""
    import resource

    import h5py
    import numpy as np

    from energyscape.models import RBM
    from energyscape.trainers import PCD

    data = h5py.File(path)["X"]
    n_bytes = data.nbytes
    if kind == "memory map":  # of the bytes that HDF5 has laid down in one piece
        data = np.memmap(path, data.dtype, "r", data.id.get_offset(), data.shape)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    trainer = PCD(n_epochs=1, batch_size=WIDE_BATCH, n_chains=100, learning_rate=0.01)
    model = RBM(16, trainer=trainer, random_state=0).fit(data)
    return {
        "GB": n_bytes / 1e9,
        "updates": model._state.step,
        "seconds": time.perf_counter() - start,
        "GB before": before * 1024 / 1e9,
        "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


# ---------------------------------------------------------------- rounds


def measure(name: str, path: Path, threads: int = 1, **more: Any) -> dict[str, float]:
    """What a contender prints; also files are made in a process of their own, because a process
    inherits the peak of the one that it was started from."""
    variables = {f"{lib}_NUM_THREADS": str(threads) for lib in ("OMP", "OPENBLAS", "MKL")}
    words = ["--contender", name, "--at", str(path), "--threads", str(threads)]
    words += [f"--{key}={value}" for key, value in more.items()]
    run = subprocess.run(
        [sys.executable, __file__, *words],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise RuntimeError(f"{name}: {run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def contend(name: str, path: Path, gigabytes: float) -> dict[str, float]:
    if name == "files":
        make_files(path)
        return {}
    if name == "large file":
        return make_large_file(path, int(gigabytes * 1e9))
    if name.startswith("large "):
        return large(name.removeprefix("large "), path)
    return epoch(name, path)


def throughput(folder: Path, rounds: int, threads: int) -> tuple[str, dict[str, list[float]]]:
    from common import table

    times: dict[str, list[float]] = {name: [] for name in SOURCES}
    for turn in range(rounds):
        k = turn % len(SOURCES)
        for name in SOURCES[k:] + SOURCES[:k]:
            times[name].append(1e3 * measure(name, folder, threads)["seconds"])
    median = {name: statistics.median(t) for name, t in times.items()}
    rows, worst = [], 0.0
    for name, t in times.items():
        base = "memory, uint8" if "uint8" in name else "memory"
        # Round by round: what slows the machine down slows both.
        ratio = statistics.median(a / b for a, b in zip(t, times[base], strict=True))
        worst = max(worst, ratio)
        rows.append([name, f"{median[name]:.2f}", f"{min(t):.2f}", f"{ratio:.3f}"])
    text = (
        f"{threads} thread(s) of BLAS:\n\n"
        + table(["", "median ms", "least ms", "/ memory, median of rounds"], rows)
        + f"\n\nTarget, ≤ {LIMIT_RATIO:.2f} times memory where an update takes ≥ 2 ms (it takes "
        f"{median['memory']:.2f}): {'met' if worst <= LIMIT_RATIO else 'missed'}, the largest is "
        f"{worst:.3f}."
    )
    return text, times


def memory(folder: Path, gigabytes: float) -> tuple[str, dict[str, Any]]:
    from common import table

    path = folder / "large.h5"
    try:
        made = measure("large file", path, gigabytes=gigabytes)
        found = {kind: measure(f"large {kind}", path) for kind in ("HDF5", "memory map")}
    finally:
        path.unlink(missing_ok=True)
    rows = [
        [
            kind,
            f"{f['GB']:.2f}",
            f"{f['updates']:,}",
            f"{f['seconds']:.0f}",
            f"{f['GB before']:.2f}",
            f"{f['peak GB']:.2f}",
        ]
        for kind, f in found.items()
    ]
    peak = max(f["peak GB"] for f in found.values())
    text = (
        f"One epoch of PCD over {WIDE} columns of float32, batch {WIDE_BATCH:,}, RBM with 16 "
        f"hidden units, 1 thread of BLAS; the file takes {made['GB']:.1f} GB of disk (made in "
        f"{made['seconds']:.0f} s):\n\n"
        + table(["", "GB", "updates", "seconds", "GB before fit", "peak GB"], rows)
        + f"\n\nTarget, a 20 GB file in ≤ {LIMIT_GB:.0f} GB of memory: "
        f"{'met' if peak <= LIMIT_GB and gigabytes >= 20 else 'missed'}, {peak:.2f} GB."
    )
    return text, {"made": made, **found}


def main() -> None:
    from common import options, write

    chosen = options(
        __doc__,
        threads=1,
        contender={"help": "run this one and print what it measured"},
        at={"help": "its folder or file"},
        rounds={"type": int, "default": 10},
        gigabytes={"type": float, "default": 20.0, "help": "of the large file; 0 makes none"},
        folder={"help": "where files are made (default: the system's temporary folder)"},
    )
    if chosen.contender:
        print(json.dumps(contend(chosen.contender, Path(chosen.at), chosen.gigabytes)))
        return
    record: dict[str, Any] = {}
    texts = []
    if chosen.gigabytes:
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            text, record["large file"] = memory(Path(folder), chosen.gigabytes)
            texts.append(text)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        measure("files", Path(folder))
        text, record["milliseconds"] = throughput(Path(folder), chosen.rounds, chosen.threads)
        texts.insert(0, text)
    intro = (
        f"PCD-1, {D}×{H}, batch {BATCH}, one epoch of {ROWS:,} rows: seconds of the epoch over its "
        f"updates, so that the wait for the first buffer counts. {chosen.rounds} rounds, each "
        "contender in its own process, order rotating; files are in the page cache. GPU: not "
        "measured."
    )
    alone = chosen.threads == 1
    name = "streaming" if alone else f"streaming_{chosen.threads}_threads"
    title = "Training from disk and from memory" + ("" if alone else f", {chosen.threads} threads")
    write(chosen, name, title, intro + "\n\n" + "\n\n".join(texts), record)


if __name__ == "__main__":
    main()
