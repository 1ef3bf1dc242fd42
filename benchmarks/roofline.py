"""Every model's update over its floor: matrix products, passes, draws; and where the rest goes.

    python benchmarks/roofline.py
    python benchmarks/roofline.py --models RBM PSD --dry

Each model has a process of its own at one and at two threads. Epochs of some updates take turns
with the floor of as many (`floors.py`, declared by hand), for this machine's speed changes from
second to second; compared are the two halves of each of at least ten pairs. Data are made up:
only their shapes matter, and for sparse codes how many iterations they take. Where the median ratio
at one thread is over 1.3, the three functions that take longest by themselves are told (cProfile;
products are in them). Budget: 30 minutes.
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import Clock, options, table, write

if TYPE_CHECKING:
    from roofline_models import Case

ROUNDS, LIMIT = 12, 1.3
KINDS = ("products", "writes", "draws", "other")
# Where a floor cannot be told apart from the time of an epoch.
MOST = 0.1


# ---------------------------------------------------------------- one model, in its own process


class Iterations:
    """Mean iterations of a row's or an image's inference (or steps of a closed form) since it was
    asked last, by wrapping what counts them."""

    def __init__(self) -> None:
        from energyscape.models import FactorAnalysis, sparse_base, what_where
        from energyscape.solvers.laid_filters import Batch

        self.total = self.rows = 0.0
        for place, name in ((sparse_base, "sparse_codes"), (what_where, "product_codes")):
            setattr(place, name, self._of_rows(getattr(place, name)))
        Batch.leave = self._of_images(Batch.leave)  # type: ignore[method-assign]
        FactorAnalysis.maximize = self._of_steps(  # type: ignore[method-assign]
            FactorAnalysis.maximize
        )

    def _of_rows(self, solve: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **settings: Any) -> Any:
            codes = solve(*args, **settings)
            self.total += float(codes.n_iter.sum())
            self.rows += len(codes.n_iter)
            return codes

        return counted

    def _of_images(self, leave: Callable[..., Any]) -> Callable[..., Any]:
        def counted(batch: Any, *args: Any, **settings: Any) -> Any:
            before = len(batch.x)
            keep = leave(batch, *args, **settings)
            self.total += 10 * len(batch.x)  # they go on until the next check
            self.rows += before - len(batch.x)
            return keep

        return counted

    def _of_steps(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            self.total, self.rows = self.total + 1, 1.0
            return step(*args)

        return counted

    def __call__(self) -> float:
        mean = self.total / max(1.0, self.rows)
        self.total = self.rows = 0.0
        return mean


class Pairs:
    """A callback: the floor after each epoch; all by layer, in milliseconds of an update."""

    def __init__(self, case: Case) -> None:
        self.case, self.iterations = case, Iterations()
        self.ours: dict[str, list[float]] = {}
        self.floors: dict[str, list[dict[str, float]]] = {}
        self.made: list[float] = []

    def __call__(self, model: Any, state: Any, info: Any) -> None:
        self.add(model, info["seconds"])

    def add(self, model: Any, seconds: float) -> None:
        iterations = self.iterations()
        layer = type(model).__name__ + str(getattr(model, "n_components", ""))
        floor = self.case.floor(iterations, model).seconds(min(MOST, seconds / len(KINDS)))
        self.made.append(iterations)
        self.ours.setdefault(layer, []).append(1e3 * seconds / self.case.updates)
        self.floors.setdefault(layer, []).append({k: 1e3 * s for k, s in floor.items()})


def measured(name: str) -> dict[str, Any]:
    """Pairs of rounds, summed over the layers of stacks; the costs where the ratio is large."""
    import warnings

    warnings.simplefilter("ignore")  # nothing converges within so few epochs
    from energyscape.trainers.base import Trainer

    Trainer.monitor_rows = 10
    from roofline_models import cases

    case = cases()[name]
    pairs, args = Pairs(case), case.rows()
    if case.closed:
        for _ in range(ROUNDS + 2):
            model = case.make(1, ()).fit(*args)
            pairs.add(model, sum(model.history_["seconds"]))
    else:
        case.make(ROUNDS + 2, [pairs]).fit(*args)
    ours = [sum(part) for part in zip(*pairs.ours.values(), strict=True)][2:]
    floors = [
        {kind: sum(part[kind] for part in layers) for kind in KINDS}
        for layers in zip(*pairs.floors.values(), strict=True)
    ][2:]
    found = {"ours": ours, "floors": floors, "iterations": statistics.mean(pairs.made[2:])}
    ratios = [a / sum(b.values()) for a, b in zip(ours, floors, strict=True)]
    if statistics.median(ratios) > LIMIT and os.environ["OMP_NUM_THREADS"] == "1":
        found["costs"] = costs(case, args)
    return found


def costs(case: Case, args: Any, epochs: int = 4) -> list[tuple[str, float]]:
    """The functions that take longest by themselves, in milliseconds of an update."""
    profile, seen = cProfile.Profile(), []

    def turn(model: Any, state: Any, info: Any) -> None:
        profile.disable()
        seen.append(model)
        profile.enable()

    if case.closed:
        models = [case.make(1, ()) for _ in range(epochs)]
        profile.enable()
        for model in models:
            model.fit(*args)
        count = epochs
    else:
        case.make(epochs + 1, [turn]).fit(*args)
        layers = len({(type(m), getattr(m, "n_components", 0)) for m in seen})
        count = len(seen) // layers - 1
    profile.disable()
    rows = []
    for (file, line, name), (_, _, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        place = f"{Path(file).stem}.{name}" if line else name.strip("<>").split(" of ")[0]
        if "update" not in name or line:
            rows.append((1e3 * own / count / case.updates, place))
    return [(place, took) for took, place in sorted(rows, reverse=True)[:3]]


# ---------------------------------------------------------------- all of them


def measure(name: str, threads: int) -> dict[str, Any]:
    variables = {f"{lib}_NUM_THREADS": str(threads) for lib in ("OMP", "OPENBLAS", "MKL")}
    said = subprocess.run(
        [sys.executable, __file__, "--contender", name, "--threads", str(threads)],
        env=os.environ | variables | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    if said.returncode:
        raise RuntimeError(f"{name} at {threads} thread(s) failed:\n{said.stderr[-2000:]}")
    return json.loads(said.stdout.splitlines()[-1])


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Medians, the least, and the ratio of pairs."""
    ratios = [a / sum(b.values()) for a, b in zip(found["ours"], found["floors"], strict=True)]
    parts = {kind: statistics.median(b[kind] for b in found["floors"]) for kind in KINDS}
    return {
        **{kind: round(ms, 4) for kind, ms in parts.items()},
        "floor": round(statistics.median(sum(b.values()) for b in found["floors"]), 4),
        "ours": round(statistics.median(found["ours"]), 4),
        "least": round(min(found["ours"]), 4),
        "ratio": round(statistics.median(ratios), 3),
        "quartiles": [round(q, 3) for q in statistics.quantiles(ratios, n=4)[::2]],
        "iterations": round(found["iterations"], 1),
    }


def cell(ms: float) -> str:
    return f"{ms:.2f}" if ms < 10 else f"{ms:.1f}"


def main() -> None:
    chosen = options(
        __doc__,
        contender={"help": "run this one and print its times"},
        models={"nargs": "*", "help": "these rows alone; writes nothing"},
    )
    if chosen.contender:
        print(json.dumps(measured(chosen.contender)))
        return
    from roofline_models import cases

    whole, names = Clock(), chosen.models or list(cases())
    missing = [n for n in everyone() if not any(name.split()[0] == n for name in names)]
    if missing and not chosen.models:
        raise RuntimeError(f"no floor is declared for {', '.join(missing)}")
    chosen.dry |= bool(chosen.models)
    record: dict[str, Any] = {}
    for name in names:
        found = {threads: measure(name, threads) for threads in (1, 2)}
        record[name] = {f"{t} thread(s)": summary(of) for t, of in found.items()}
        record[name]["costs"] = found[1].get("costs", [])
        print(name, record[name], flush=True)
    write(
        chosen,
        "roofline",
        "Every model's update over its floor, float32",
        told(record, whole()),
        record,
    )


def everyone() -> list[str]:
    from energyscape import models

    return models.__all__


def told(record: dict[str, Any], seconds: float) -> str:
    """The block: figures, then where the time goes that is over the limit."""
    from roofline_models import cases

    what, lines, over = cases(), [], []
    for name, row in record.items():
        one, two = row["1 thread(s)"], row["2 thread(s)"]
        made = f"; {one['iterations']:g} iterations" if one["iterations"] else ""
        ratio = f"{one['ratio']:.2f} ({one['quartiles'][0]:.2f} to {one['quartiles'][1]:.2f})"
        lines.append(
            [
                name,
                what[name].what + made,
                *(cell(one[kind]) if one[kind] else "" for kind in KINDS),
                cell(one["floor"]),
                f"{cell(one['ours'])} ({cell(one['least'])})",
                ratio if one["ratio"] <= LIMIT else f"**{ratio}**",
                f"{cell(two['floor'])} / {cell(two['ours'])}",
                f"{two['ratio']:.2f}",
            ]
        )
        if one["ratio"] > LIMIT and row["costs"]:
            costs = ", ".join(f"`{place}` {cell(ms)}" for place, ms in row["costs"])
            over.append(f"* {name}: {costs}")
    header = ["model", "update", *KINDS, "floor", "ours (least)", "ratio", "two threads", "ratio"]
    met = sum(row["1 thread(s)"]["ratio"] <= LIMIT for row in record.values())
    text = [
        f"Milliseconds, medians of {ROUNDS} pairs of an epoch and its floor in one process, ratios "
        "of pairs with their quartiles. Floor: the products that the mathematics needs, one "
        "streamed pass over each array that must be written, the bulk draw of each random number, "
        "and factorisations or transforms by themselves (other), as `benchmarks/floors.py` "
        "declares them.",
        table(header, lines),
        f"Target: at most {LIMIT} at one thread: {met} of {len(record)} rows meet it.",
    ]
    if over:
        text.append(
            "The three functions that take longest by themselves in an update over it, in ms "
            "(one thread, by cProfile; their products are in them, and what the history takes of "
            "ten rows an epoch):\n\n" + "\n".join(over)
        )
    return "\n\n".join([*text, f"{seconds:.0f} s in all."])


if __name__ == "__main__":
    main()
