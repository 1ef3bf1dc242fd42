"""What every benchmark shares: threads, the record of the machine, and its block of RESULTS.md."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"


def options(doc: str, threads: int = 2, **extra: dict[str, Any]) -> argparse.Namespace:
    """Parse the command line and pin the threads (call before NumPy is imported)."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--dry", action="store_true", help="print the block, write nothing")
    for name, settings in extra.items():
        parser.add_argument("--" + name.replace("_", "-"), **settings)
    chosen = parser.parse_args()
    chosen.commit = commit()  # of the code that is imported next, not of what it is at the end
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = str(chosen.threads)
    sys.path.insert(0, str(HERE.parent))
    return chosen


class Clock:
    """Seconds since it was made, or last asked."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def __call__(self) -> float:
        now = time.perf_counter()
        passed, self.start = now - self.start, now
        return passed


def machine() -> str:
    """Processor, cores and versions, in one line."""
    import numpy
    import scipy
    import sklearn

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"model name\s*: (.*)", info.read_text())
        model = found.group(1).strip() if found else model
    return (
        f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, "
        f"NumPy {numpy.__version__}, SciPy {scipy.__version__}, scikit-learn {sklearn.__version__}"
    )


def commit() -> str:
    def git(*words: str) -> str:
        run = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False)
        return run.stdout.strip()

    changed = bool(git("status", "--porcelain", "--untracked-files=no", "--", "../energyscape"))
    return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write(
    chosen: argparse.Namespace, name: str, title: str, text: str, record: dict[str, Any]
) -> None:
    """Put the block ``name`` into RESULTS.md, with how it was made, and keep the record as JSON."""
    words = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    words = re.sub(r" --dry| --out \S+", "", words)  # they change nothing in the figures
    made = [
        f"`python benchmarks/{words}`",
        f"{datetime.date.today()}, commit {chosen.commit}",
        f"{chosen.threads} thread(s)",
        machine(),
    ]
    block = (
        f"<!-- {name} -->\n## {title}\n\n{text.strip()}\n\n*{' · '.join(made)}*\n<!-- /{name} -->"
    )
    print(block)
    if chosen.dry:
        return
    whole = RESULTS.read_text() if RESULTS.exists() else "# Results\n"
    found = re.search(f"<!-- {name} -->.*?<!-- /{name} -->", whole, re.S)
    if found:
        whole = whole[: found.start()] + block + whole[found.end() :]
    else:
        whole = whole.rstrip() + "\n\n" + block + "\n"
    RESULTS.write_text(whole)
    kept = HERE / "results"
    kept.mkdir(exist_ok=True)
    (kept / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
