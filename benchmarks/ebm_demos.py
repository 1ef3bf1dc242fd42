"""Which losses make an energy collapse: the lectures' y = x² by two architectures.

    python benchmarks/ebm_demos.py

Runs `docs/examples/ebm_demos.py`: four losses, architectures A (a regression, whose energies cannot
be low everywhere) and B (implicit, whose energy is 0 everywhere if both of its networks are the
same constant), from five starts. Range: the middle 90 % of energies over the answers to an x, the
mean over x, where the losses that keep a margin ask for 1; collapsed is less than a tenth of that.
AUC: how often the right answer has less energy than a random one to the same x. Budget: 10 minutes.
"""

from __future__ import annotations

from typing import Any

from common import HERE, options, table, write

STARTS = 5


def line(name: str, loss: str, runs: list[Any]) -> list[str]:
    """Means over starts, and extremes."""
    spread, auc = sorted(r.spread for r in runs), sorted(r.auc for r in runs)
    collapsed = sum(r.collapsed for r in runs)
    return [
        name.replace("|", r"\|"),
        loss,
        f"{sum(r.before for r in runs) / len(runs):.2f}",
        f"**{sum(spread) / len(runs):.3g}** ({spread[0]:.2g} to {spread[-1]:.2g})",
        f"{sum(auc) / len(runs):.3f} ({auc[0]:.2f} to {auc[-1]:.2f})",
        f"{collapsed} of {len(runs)}",
    ]


def main() -> None:
    chosen = options(__doc__, threads=1)
    import sys

    examples = HERE.parent / "docs" / "examples"
    sys.path.insert(0, str(examples))
    import ebm_demos
    from gated_filters import verdict

    runs = [ebm_demos.demos(seed) for seed in range(STARTS)]
    ebm_demos.picture(runs[0], HERE.parent / "docs" / "images" / "ebm_demos.png")
    lines, record = [], {}
    for key in runs[0]:
        each = [run[key] for run in runs]
        lines.append(line(*key, each))
        record[" ".join(key)] = {
            "before": [round(r.before, 4) for r in each],
            "range": [round(r.spread, 5) for r in each],
            "auc": [round(r.auc, 4) for r in each],
        }
    fates = {
        f"{name[0]} {loss}": [run[name, loss].collapsed for run in runs] for name, loss in runs[0]
    }
    a = verdict(not any(any(fate) for key, fate in fates.items() if key.startswith("A")))
    b = verdict(all(fates["B energy"]))
    margins = verdict(not any(fates["B square-square"] + fates["B NLL"]))
    text = [
        f"{ebm_demos.UPDATES:,} updates of {ebm_demos.BATCH} pairs, {ebm_demos.ANSWERS} answers in "
        f"the grid, wrong ones at least {ebm_demos.EPSILON} off; {STARTS} starts.",
        table(["", "loss", "range at first", "range", "AUC", "collapsed"], lines),
        f"Targets: A never collapses: {a}; B does by the energy loss: {b}, and does not by "
        f"square-square and NLL: {margins}. AUC sees ranks alone: what is left of a collapsed "
        "energy may still be in order. `docs/images/ebm_demos.png` is the first start.",
    ]
    write(chosen, "ebm_demos", "Losses that collapse", "\n\n".join(text), record)


if __name__ == "__main__":
    main()
