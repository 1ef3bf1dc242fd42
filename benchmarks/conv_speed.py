"""Time to the codes of a whole image: ours beside SPORCO's convolutional basis pursuit.

A 256×256 image of BSD68 less what is smooth in it, 64 Gabor filters of 8×8, circular boundary,
float32. How many iterations a contender takes to (E - E*)/E* <= 1e-3 and 1e-4 is found first; timed
are runs of so many, set-up included, each in its own process, rounds interleaved. One referee in
float64 evaluates the sparse iterate of each. Budget: 60 minutes. The peer lives in
`benchmarks/.venv`, made from peers.txt at the first run, or where --peer says.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SIDE, FILTERS, SIZE = 256, 64, 8
SHARES = (0.1, 0.02)  # of the λ from which on codes are 0
TARGETS = (1e-3, 1e-4)
SMOOTH = 4.0  # standard deviation of what is taken off the image, in pixels
EXACT, MOST = 1500, 1000  # iterations of ADMM in float64 for E*, and of a contender
HERE = Path(__file__).parent
PROBLEM = HERE.parent / "out" / "conv_speed.npz"


# ---------------------------------------------------------------- the problem


def gabors(seed: int = 0) -> Any:
    """(64, 8, 8): sine waves under Gaussian windows, mean 0 and norm 1."""
    import numpy as np

    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    angle, phase = np.pi * rng.random((2, FILTERS, 1, 1)) * np.array([1, 2])[:, None, None, None]
    wave = 2 * np.pi / rng.uniform(2.5, SIZE, (FILTERS, 1, 1))
    width = rng.uniform(1.0, 2.5, (FILTERS, 1, 1))
    along = x * np.cos(angle) + y * np.sin(angle)
    found = np.cos(wave * along + phase) * np.exp(-0.5 * (x * x + y * y) / width**2)
    found -= found.mean(axis=(1, 2), keepdims=True)
    return found / np.sqrt((found**2).sum(axis=(1, 2), keepdims=True))


def make_problem() -> None:
    import numpy as np
    import scipy.ndimage

    from energyscape.data import data_home
    from energyscape.solvers.conv_dictionary import ConvDictionary

    stored = np.load(data_home() / "bsd68" / "bsd68_gray.npz")
    image = stored[stored.files[0]][:SIDE, :SIDE].astype(np.float64) / 255
    image -= scipy.ndimage.gaussian_filter(image, SMOOTH, mode="wrap")
    image, filters = image.astype(np.float32), gabors().astype(np.float32)
    largest = ConvDictionary(filters[..., None], image.shape, "circular").lam_max(
        image[None, :, :, None]
    )
    PROBLEM.parent.mkdir(exist_ok=True)
    np.savez(PROBLEM, image=image, filters=filters, largest=largest)


def problem() -> tuple[Any, Any, float]:
    import numpy as np

    stored = np.load(PROBLEM)
    return stored["image"], stored["filters"], float(stored["largest"][0])


def objective(z: Any, lam: float) -> float:
    """The referee: E of maps (k, h, w), in float64."""
    import numpy as np
    import scipy.fft

    image, filters, _ = problem()
    wave = sum(
        scipy.fft.rfft2(code.astype(np.float64))
        * scipy.fft.rfft2(f.astype(np.float64), (SIDE,) * 2)
        for code, f in zip(z, filters, strict=True)
    )
    residual = image - scipy.fft.irfft2(wave, (SIDE,) * 2)
    return float(0.5 * (residual**2).sum() + lam * np.abs(z).sum(dtype=np.float64))


# ---------------------------------------------------------------- contenders: (seconds, maps)


def ours(solver: str, lam: float, iterations: int) -> tuple[float, Any]:
    from energyscape.solvers.conv_admm import conv_admm
    from energyscape.solvers.conv_descent import conv_descent
    from energyscape.solvers.conv_dictionary import ConvDictionary
    from energyscape.solvers.conv_fista import conv_fista

    image, filters, _ = problem()
    solve = {"ADMM": conv_admm, "FISTA": conv_fista, "descent": conv_descent}[solver]
    start = time.perf_counter()
    dictionary = ConvDictionary(filters[..., None], image.shape, "circular")
    found = solve(dictionary, image[None, :, :, None], lam, tol=0.0, max_iter=iterations)
    return time.perf_counter() - start, found.z[0].transpose(2, 0, 1)


def sporco(lam: float, iterations: int, look: Any = None) -> tuple[float, Any]:
    """Its defaults, ρ balanced at every iteration, without what it prints, and with its cache."""
    import numpy as np
    import sporco.fft
    from sporco.admm.cbpdn import ConvBPDN

    sporco.fft.pyfftw_threads = int(os.environ["OMP_NUM_THREADS"])
    image, filters, _ = problem()
    settings = {
        "FastSolve": True,
        "HighMemSolve": True,
        "MaxMainIter": iterations,
        "RelStopTol": 0.0,
        "DataType": np.float32,
        "Callback": look,
    }
    start = time.perf_counter()
    solver = ConvBPDN(filters.transpose(1, 2, 0), image, lam, ConvBPDN.Options(settings))
    z = solver.solve()  # the sparse iterate, as "ReturnX" is False
    return time.perf_counter() - start, z[:, :, 0, 0].transpose(2, 0, 1)


CONTENDERS = {
    "ours, ADMM": lambda *problem: ours("ADMM", *problem),
    "ours, FISTA": lambda *problem: ours("FISTA", *problem),
    "ours, descent": lambda *problem: ours("descent", *problem),
    "SPORCO, ADMM": sporco,
}


# ---------------------------------------------------------------- iterations that reach a goal


def needed_by_ours(name: str, lam: float, goals: list[float]) -> list[int | None]:
    """To the next multiple of 10 or 5 %, by halving; None where `MOST` are not enough."""
    known: dict[int, float] = {}

    def reached(k: int, goal: float) -> bool:
        if k not in known:
            known[k] = objective(CONTENDERS[name](lam, k)[1], lam)
        return known[k] <= goal

    found: list[int | None] = []
    for goal in goals:
        low, high = 0, 40
        while not reached(high, goal) and high < MOST:
            low, high = high, min(2 * high, MOST)
        while high - low > max(10, high // 20):
            middle = (low + high) // 20 * 10
            low, high = (low, middle) if reached(middle, goal) else (middle, high)
        found.append(high if reached(high, goal) else None)
    return found


def needed_by_sporco(lam: float, goals: list[float]) -> list[int | None]:
    """The same, by a look at every tenth iterate of one run."""
    found: list[int | None] = [None] * len(goals)

    def look(solver: Any) -> bool:
        if (solver.k + 1) % 10 == 0:
            energy = objective(solver.Y[:, :, 0, 0].transpose(2, 0, 1), lam)
            for i, goal in enumerate(goals):
                if energy <= goal and found[i] is None:
                    found[i] = solver.k + 1
        return None not in found

    sporco(lam, MOST, look)
    return found


def contend(name: str, lam: float, goals: list[float], iterations: int) -> None:
    """Print how many iterations reach the goals or, of so many, the seconds and the energy."""
    if not iterations:
        by_peer = name.startswith("SPORCO")
        needed = needed_by_sporco(lam, goals) if by_peer else needed_by_ours(name, lam, goals)
        print(json.dumps({"needed": needed}))
        return
    CONTENDERS[name](lam, 2)  # plans of transforms and first calls are not counted
    seconds, z = CONTENDERS[name](lam, iterations)
    print(json.dumps({"seconds": seconds, "objective": objective(z, lam)}))


# ---------------------------------------------------------------- rounds


def peer(given: str | None) -> str:
    from step_time import peers_python

    return given or peers_python()


def measure(
    chosen: Any, name: str, lam: float, goals: list[float], iterations: int
) -> dict[str, Any]:
    python = sys.executable if name.startswith("ours") else peer(chosen.peer)
    libraries = ("OMP", "OPENBLAS", "MKL", "NUMEXPR")
    words = ["--contender", name, "--lam", repr(lam), "--iterations", str(iterations)]
    run = subprocess.run(
        [python, __file__, *words, "--goals", json.dumps(goals), "--threads", str(chosen.threads)],
        env=os.environ | {f"{library}_NUM_THREADS": str(chosen.threads) for library in libraries},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


def least(lam: float) -> list[float]:
    """E after half of `EXACT` iterations and after all, and the duality gap then, relative to E."""
    import numpy as np

    from energyscape.solvers.conv_admm import conv_admm
    from energyscape.solvers.conv_dictionary import ConvDictionary

    image, filters, _ = problem()
    x = image.astype(np.float64)[None, :, :, None]
    dictionary = ConvDictionary(filters.astype(np.float64)[..., None], image.shape, "circular")
    energies, z = [], None
    for _ in range(2):
        found = conv_admm(dictionary, x, lam, start=z, tol=0.0, max_iter=EXACT // 2)
        z = found.z
        energies.append(objective(z[0].transpose(2, 0, 1), lam))
    return [*energies, float(found.gap[0]) * 0.5 * float((x * x).sum()) / energies[1]]


def race(chosen: Any, lam: float) -> dict[str, Any]:
    """All contenders at one λ."""
    half, best, gap = least(lam)
    goals = [best * (1 + target) for target in TARGETS]
    fallen = (half - best) / best
    record: dict[str, Any] = {"lam": lam, "least": best, "last half": fallen, "gap": gap}
    needed = {name: measure(chosen, name, lam, goals, 0)["needed"] for name in CONTENDERS}
    names = list(CONTENDERS)
    for i, target in enumerate(TARGETS):
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in names if needed[name][i]}
        for turn in range(chosen.rounds):
            k = turn % len(names)
            for name in names[k:] + names[:k]:
                if name in runs:
                    runs[name].append(measure(chosen, name, lam, goals, needed[name][i]))
        assert all(run["objective"] <= goals[i] for found in runs.values() for run in found)
        record[f"{target:g}"] = {
            name: {"iterations": needed[name][i], "seconds": [run["seconds"] for run in runs[name]]}
            for name in runs
        }
    return record


def rows(record: dict[str, Any], share: float) -> list[list[str]]:
    found = []
    for target in TARGETS:
        timed = record[f"{target:g}"]
        peer_median = statistics.median(timed["SPORCO, ADMM"]["seconds"])
        for name in CONTENDERS:
            if name not in timed:
                found.append([f"{share:g}", f"{target:g}", name, f"> {MOST}", "", "", ""])
                continue
            seconds = timed[name]["seconds"]
            median = statistics.median(seconds)
            found.append(
                [
                    f"{share:g}",
                    f"{target:g}",
                    name,
                    str(timed[name]["iterations"]),
                    f"{median:.2f}",
                    f"{min(seconds):.2f}",
                    f"{peer_median / median:.2f}",
                ]
            )
    return found


def main() -> None:
    from common import options, table, write

    chosen = options(
        __doc__,
        threads=1,
        contender={"help": "run this one and print what it took"},
        lam={"type": float},
        goals={"type": json.loads},
        iterations={"type": int},
        rounds={"type": int, "default": 10},
        peer={"help": "the Python that has SPORCO"},
    )
    if chosen.contender:
        contend(chosen.contender, chosen.lam, chosen.goals, chosen.iterations)
        return
    make_problem()
    record = {f"{share:g}": race(chosen, share * problem()[2]) for share in SHARES}
    header = ["λ/λ_max", "(E - E*)/E*", "", "iterations", "median s", "least s", "SPORCO / it"]
    cells = [row for share in SHARES for row in rows(record[f"{share:g}"], share)]
    of = [record[f"{share:g}"] for share in SHARES]
    text = (
        f"{chosen.rounds} rounds, each contender in its own process, order rotating; set-up is "
        "counted, plans of transforms are not. Iterations: multiples of 10, ours to 5 %. E* is "
        f"that of {EXACT} iterations of ADMM in float64, in whose last half it fell by "
        f"{max(r['last half'] for r in of):.0e} of itself (duality gap, a bound: "
        f"{max(r['gap'] for r in of):.0e}).\n\n" + table(header, cells)
    )
    title = f"Codes of a {SIDE}×{SIDE} image, {FILTERS} filters of {SIZE}×{SIZE}, circular, float32"
    write(chosen, "conv_speed", title, text, record)


if __name__ == "__main__":
    main()
