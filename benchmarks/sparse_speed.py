"""The lasso for many rows, and learning a dictionary: ours beside scikit-learn's.

    python benchmarks/sparse_speed.py                              the lasso, at 1 and 2 threads
    python benchmarks/sparse_speed.py --part learning --threads 1

12×12 patches of log(1 + grey level) of the training part of BSDS500, less their mean, ZCA-whitened;
256 atoms that `SparseCoding` learned from 50,000 of them; λ is 0.5, 0.2, 0.1 and 0.05 × the median
over rows of λ_max, from which on codes are 0. D, x and λ are the same numbers for all. Each
contender in its own process, ten rounds in an order that rotates, every round on another tenth of
100,000 other patches, of which scikit-learn gets the first 200 (of LARS 50). Timed is from the
arrays to the codes, Gram matrix included. One referee in float64 measures the duality gaps.
Learning: ten rounds, each with another start and order, that take scikit-learn through 5 epochs of
20,480 patches and ours until it is as good at 2,000 patches of BSD68. Budget: 60 minutes for each.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from common import options, table, write

SIZE, ATOMS, ROWS, LEARNED, TESTS = 12, 256, 100_000, 50_000, 2000
SHARES = (0.5, 0.2, 0.1, 0.05)  # of the median λ_max
OURS = [f"ours, {dtype}, {tol}" for dtype in ("float32", "float64") for tol in ("1e-4", "1e-6")]
MOST = {"lasso_cd": 200, "Lasso, 1e-4": 200, "lasso_lars": 50}  # rows of a round
TARGETS = {"lasso_cd": (2, 2, 4, 4), "lasso_lars": (10, 10, 10, 10)}  # at the shares, gap 1e-4
BATCH, UPDATES, EPOCHS, MOST_EPOCHS = 256, 80, 5, 20  # of learning: the last is ours
PEER, LEARNERS = "MiniBatchDictionaryLearning", ("float64", "float32")
OUT = Path(__file__).parent.parent / "out"


def kept(rows: int) -> Path:
    return OUT / f"sparse_speed_{rows}.npz"


def make_problem(rows: int) -> None:
    """Numbers that float32 has, so that both precisions solve the same problem."""
    import numpy as np
    from gated_patches import fitted, patches

    from energyscape.data import ZCA
    from energyscape.models import SparseCoding
    from energyscape.trainers import EM

    learned = LEARNED if rows == ROWS else rows
    raw, test = patches(SIZE, learned + rows, TESTS)
    white = ZCA().fit(raw)
    X, test = (white.transform(part).astype(np.float32) for part in (raw, test))
    trainer = EM(n_epochs=10 if rows == ROWS else 2, batch_size=BATCH)
    model = SparseCoding(ATOMS, sparsity=0.2, trainer=trainer, random_state=0)
    D = np.asarray(fitted("sparse_speed", model, X[:learned])[0].components_, np.float32)
    largest = np.median(np.abs(X[learned:] @ D.T).max(axis=1).astype(float))
    parts = {"train": X[:learned], "X": X[learned:], "test": test}
    np.savez(kept(rows), D=D.T, largest=largest, epsilon=white.epsilon_, **parts)


def gaps(D: Any, x: Any, h: Any, lam: float) -> Any:
    """The referee: duality gap of each row over ½|x|², in float64.

    P = ½|x - Dh|² + λ|h|₁; θ = (x - Dh)/s with s = max(1, |D'(x - Dh)|_∞/λ) is dual feasible, and
    its value is ½|x|² - ½|x - θ|².
    """
    import numpy as np

    D, x, h = (np.asarray(a, np.float64) for a in (D, x, h))
    rest = x - h @ D.T
    s = np.maximum(1.0, np.abs(rest @ D).max(axis=1, keepdims=True) / lam)
    primal = 0.5 * (rest**2).sum(axis=1) + lam * np.abs(h).sum(axis=1)
    half = 0.5 * (x**2).sum(axis=1)
    return (primal - half + 0.5 * ((x - rest / s) ** 2).sum(axis=1)) / half


# ---------------------------------------------------------------- contenders


def solve(name: str, D: Any, x: Any, lam: float) -> Any:
    """Codes: ours, those of sparse_encode at its own tolerance, or of Lasso, which lasso_cd calls,
    with the tolerance at which ours stops (it is relative to |x|²)."""
    from sklearn.decomposition import sparse_encode
    from sklearn.linear_model import Lasso

    from energyscape.penalties import L1
    from energyscape.solvers.encode import sparse_codes

    if name in OURS:
        return sparse_codes(D, x, L1(lam), tol=float(name[-4:])).h
    if name == "Lasso, 1e-4":
        settings = {"fit_intercept": False, "precompute": D.T @ D, "tol": 0.5e-4}
        return Lasso(lam / len(D), **settings).fit(D, x.T).coef_
    return sparse_encode(x, D.T, algorithm=name, alpha=lam, n_jobs=1)


def code(name: str, chosen: Any) -> list[dict[str, float]]:
    """Milliseconds a row, non-zeros and gaps at each λ, on the rows of a round."""
    import numpy as np

    dtype, part = "float32" if "float32" in name else "float64", chosen.rows // chosen.rounds
    stored, found = np.load(kept(chosen.rows)), []
    x = stored["X"][chosen.turn * part :][: min(part, MOST.get(name, part))].astype(dtype)
    D = np.ascontiguousarray(stored["D"].astype(dtype))
    for share in SHARES:
        lam = share * float(stored["largest"])
        solve(name, D, x[:10], lam)  # first calls are not counted
        start = time.perf_counter()
        h = solve(name, D, x, lam)
        ms = 1e3 * (time.perf_counter() - start) / len(x)
        gap, on = gaps(D, x, h, lam), float((h != 0).sum(axis=1).mean())
        found.append({"ms": ms, "on": on, "gap": float(gap.max()), "mid": float(np.median(gap))})
    return found


class Curve:
    """[seconds, objective at test rows] after every epoch; the time of looking is left out."""

    def __init__(self, test: Any, lam: float, goal: float) -> None:
        self.test, self.lam, self.goal, self.points = test, lam, goal, []
        self.start = time.perf_counter()

    def __call__(self, D: Any) -> bool:
        """Exact codes of atoms with norm 1: scikit-learn's may be shorter, which costs more."""
        import numpy as np

        now = time.perf_counter()
        D = D.astype(np.float64) / np.maximum(np.linalg.norm(D, axis=0), 1e-12)
        h = solve("ours, float64, 1e-6", D, self.test, self.lam)
        squares = ((self.test - h @ D.T) ** 2).sum(axis=1)
        objective = float((0.5 * squares + self.lam * np.abs(h).sum(axis=1)).mean())
        self.points.append([now - self.start, objective])
        self.start += time.perf_counter() - now
        return objective <= self.goal


def learn(name: str, chosen: Any) -> list[list[float]]:
    """The curve of a contender from the start and with the rows of a round."""
    import numpy as np
    from sklearn.decomposition import MiniBatchDictionaryLearning

    from energyscape.models import SparseCoding
    from energyscape.penalties import L1
    from energyscape.trainers import EM

    stored, rng = np.load(kept(chosen.rows)), np.random.default_rng(chosen.turn)
    X, seed = stored["train"], chosen.turn
    updates = min(UPDATES, len(X) // BATCH)
    X = X[rng.permutation(len(X))[: updates * BATCH]].astype("float64" if name == PEER else name)
    first = X[rng.permutation(len(X))[:ATOMS]].astype(np.float64)
    first /= np.linalg.norm(first, axis=1)[:, None]
    test, lam = stored["test"].astype(np.float64), 0.2 * float(stored["largest"])
    solve("ours, float64, 1e-6", first.T.copy(), test[:10], lam)  # first calls are not counted
    curve = Curve(test, lam, chosen.goal)

    def look(now: dict[str, Any]) -> None:
        if (now["i"] + 1) % updates == 0:
            curve(now["dictionary"].T)

    if name == PEER:
        settings = {"alpha": lam, "fit_algorithm": "cd", "batch_size": BATCH, "max_iter": EPOCHS}
        settings |= {"dict_init": first, "shuffle": False, "tol": 0, "max_no_improvement": None}
        MiniBatchDictionaryLearning(ATOMS, **settings, random_state=seed, callback=look).fit(X)
    else:
        looks = [lambda model, state, info: curve(state.params["D"])]
        trainer = EM(n_epochs=MOST_EPOCHS, batch_size=BATCH, callbacks=looks)
        settings = {"penalty": L1(lam), "dictionary": first, "trainer": trainer}
        SparseCoding(ATOMS, **settings, random_state=seed).fit(X)
    return curve.points


# ---------------------------------------------------------------- rounds


def measure(chosen: Any, name: str, turn: int, threads: int, goal: float = 0.0) -> Any:
    """What a process of its own says."""
    words = {"contender": name, "turn": turn, "threads": threads, "goal": goal}
    words |= {key: getattr(chosen, key) for key in ("part", "rows", "rounds")}
    run = subprocess.run(
        [sys.executable, __file__, *(w for k, v in words.items() for w in (f"--{k}", str(v)))],
        env=os.environ | {f"{lib}_NUM_THREADS": str(threads) for lib in ("OMP", "OPENBLAS", "MKL")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


def spread(values: list[float], digits: int = 1) -> str:
    """Median, and the least and the greatest of the rounds."""
    middle, low, high = (f(values) for f in (statistics.median, min, max))
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def lasso_rows(runs: dict[str, Any], threads: int) -> tuple[list[Any], list[Any]]:
    """Lines of the table, and of what became of the targets."""
    lines, verdict = [], {}
    for i, share in enumerate(SHARES):
        for name, found in runs.items():
            ms, on, gap, mid = ([r[i][k] for r in found] for k in ("ms", "on", "gap", "mid"))
            line = [threads, share, name, f"{statistics.mean(on):.1f}"]
            line += [f"{statistics.median(ms):.3f}", f"{min(ms):.3f}"]
            line += [f"{max(gap):.0e}", f"{statistics.median(mid):.0e}"]
            for peer, wanted in TARGETS.items():
                over = [a[i]["ms"] / b for a, b in zip(runs[peer], ms, strict=True)]
                line.append(spread(over))
                if name in OURS and name.endswith("1e-4"):
                    word = "met" if statistics.median(over) >= wanted[i] else "**missed**"
                    key = (threads, name[6:13], peer)
                    said = f"{statistics.median(over):.1f} (≥ {wanted[i]}: {word})"
                    verdict.setdefault(key, [*key]).append(said)
            lines.append(line)
    return lines, [*verdict.values()]


def race(chosen: Any) -> None:
    """All contenders at all λ."""
    import numpy as np

    record, lines, verdict, names = {}, [], [], [*OURS, *MOST]
    for threads in range(1, chosen.threads + 1):
        runs: dict[str, Any] = {name: [] for name in names}
        for turn in range(chosen.rounds):
            k = turn % len(names)
            for name in names[k:] + names[:k]:
                runs[name].append(measure(chosen, name, turn, threads))
        more, said = lasso_rows(runs, threads)
        lines, verdict = lines + more, verdict + said
        record[f"{threads} threads"] = runs
    header = ["threads", "λ", "", "on", "median ms", "least ms", "largest gap", "median gap"]
    text = (
        f"{chosen.rounds} rounds of {chosen.rows // chosen.rounds:,} rows (scikit-learn's: 200, of "
        f"LARS 50); {SIZE}×{SIZE} patches, ZCA with ε = {np.load(kept(chosen.rows))['epsilon']:.2g}"
        f" (0.1 of the mean variance), {ATOMS} learned atoms; λ over the median λ_max; non-zeros "
        "and ms of a row, gaps over ½|x|². lasso_cd and lasso_lars are sparse_encode's, at its own "
        "tolerance and 1000 iterations; Lasso is what lasso_cd calls, stopped at our gap. The last "
        "two columns: their times over its, medians of rounds (least to greatest).\n\n"
        + table([*header, "lasso_cd / it", "lasso_lars / it"], lines)
        + "\n\nTargets at a gap of 1e-4, by the medians of times theirs is slower:\n\n"
        + table(["threads", "ours", "than", *(f"λ = {share:g}" for share in SHARES)], verdict)
    )
    write(chosen, "sparse_speed", f"The lasso for many rows, {SIZE**2}×{ATOMS}", text, record)


def learning(chosen: Any) -> None:
    """Time in which our dictionary is as good as scikit-learn's after each of its epochs."""
    record: dict[str, Any] = {name: [] for name in (PEER, *LEARNERS)}
    for turn in range(chosen.rounds):
        record[PEER].append(measure(chosen, PEER, turn, chosen.threads))
        for name in LEARNERS[:: 1 if turn % 2 else -1]:
            goal = record[PEER][-1][-1][1]
            record[name].append(measure(chosen, name, turn, chosen.threads, goal))
    lines, verdict = [], []
    for epoch in range(EPOCHS):
        theirs = [curve[epoch] for curve in record[PEER]]
        seconds, objective = map(statistics.median, zip(*theirs, strict=True))
        lines.append([epoch + 1, f"{objective:.4f}", f"{seconds:.1f}"])
        for name in LEARNERS:
            taken = [
                next((s for s, e in curve if e <= goal), float("inf")) / of
                for curve, (of, goal) in zip(record[name], theirs, strict=True)
            ]
            lines[-1].append(spread(taken, 2))
            if epoch == EPOCHS - 1:
                word = "met" if statistics.median(taken) <= 1 / 3 else "missed"
                verdict.append(f"{name} {lines[-1][-1]}, {word}")
    text = (
        f"Mean lasso objective of {TESTS:,} patches of BSD68 (codes to a gap of 1e-6, both sides), "
        f"medians of {chosen.rounds} rounds, λ = 0.2; the same start, rows and batches of {BATCH}; "
        "ours draws an order each epoch, theirs keeps one, with coordinate descent in float64, its "
        "own rule to stop switched off. Seconds are of fit, with what our history measures, "
        "and without the looks at these patches, one after each epoch. Last columns: "
        f"time of ours until it is as good, over theirs (inf: not in {MOST_EPOCHS} epochs).\n\n"
        + table(["epoch", "objective", "its s", *(f"ours, {n}" for n in LEARNERS)], lines)
        + f"\n\nTarget: ≤ 1/3 of its time for {EPOCHS} epochs: {'; '.join(verdict)}."
    )
    write(chosen, "sparse_learning", "Learning a dictionary of patches", text, record)


def main() -> None:
    chosen = options(
        __doc__,
        part={"choices": ["lasso", "learning"], "default": "lasso"},
        rows={"type": int, "default": ROWS, "help": "other than the default: a trial, not written"},
        rounds={"type": int, "default": 10},
        contender={"help": "run this one and print what it took"},
        turn={"type": int, "default": 0},
        goal={"type": float, "default": 0.0},
    )
    if chosen.contender:
        warnings.simplefilter("ignore")  # of convergence: the referee says how far codes are
        print(json.dumps((code if chosen.part == "lasso" else learn)(chosen.contender, chosen)))
        return
    chosen.dry |= chosen.rows != ROWS
    make_problem(chosen.rows)
    (race if chosen.part == "lasso" else learning)(chosen)


if __name__ == "__main__":
    main()
