"""Strategies without chains on 784×500 units: time of an update, errors of float32.

    python benchmarks/strategy_steps.py
    python benchmarks/strategy_steps.py --rounds 1 --dry

Times: one update of 100 rows, float32; an RBM by the strategies of bits, a GaussianRBM by those of
reals, CD-1 and PCD-1 beside them. Every contender runs in its own process, ten rounds, in an order
that rotates; medians and minima. Flips are timed all 784 a row and 98 of them, by the machine's own
way (`RBMPass.flips`) and by the one that every model has (`Pass.flips`).

Gradients: GaussianRBM, 64 rows of standard normal noise, the same signs and noise in both
precisions; error of ∂L/∂W in float32 at several steps ε, against float64 at its default one, over
the latter's norm. Budget: 30 minutes; of a trial, 3.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from typing import Any

from common import Clock, options, table, write

D, H, BATCH, PART = 784, 500, 100, 98
STEPS = {
    "sliced": (0.3, 0.1, 0.03, 0.01, 0.003),
    "sliced, not reduced": (0.3, 0.1, 0.03, 0.01, 0.003),
    "denoising": (3.0, 1.0, 0.28, 0.1, 0.03),
}
TARGETS = {"sliced": 1e-3, "sliced, not reduced": 1e-3, "denoising": 1e-4}


# ---------------------------------------------------------------- time


def bits(updates: int) -> Any:
    import numpy as np

    rows = np.random.default_rng(0).random((BATCH * updates, D)) < 0.15
    return rows.astype(np.float32)


def reals(updates: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).standard_normal((BATCH * updates, D), np.float32)


def of_bits(trainer: str, updates: int, general: bool = False, **settings: Any) -> float:
    """Seconds an update of the RBM, best epoch after the first."""
    from energyscape import trainers
    from energyscape.models import RBM
    from energyscape.models.rbm import RBMPass
    from energyscape.verbs import Pass

    if general:
        RBMPass.flips = Pass.flips  # type: ignore[method-assign]
    how = getattr(trainers, trainer)(n_epochs=3, batch_size=BATCH, learning_rate=0.001, **settings)
    model = RBM(H, trainer=how, random_state=0).fit(bits(updates))
    return min(model.history_["seconds"][1:]) / updates


def of_reals(trainer: str, updates: int = 20, **settings: Any) -> float:
    """Seconds an update of the GaussianRBM, best epoch after the first."""
    from energyscape import trainers
    from energyscape.models import GaussianRBM

    how = getattr(trainers, trainer)(n_epochs=3, batch_size=BATCH, learning_rate=0.0001, **settings)
    model = GaussianRBM(H, variance=1.0, trainer=how, random_state=0).fit(reals(updates))
    return min(model.history_["seconds"][1:]) / updates


CONTENDERS = {
    "RBM": {
        "CD-1": lambda: of_bits("CD", 100),
        "PCD-1": lambda: of_bits("PCD", 100),
        "NCE, 10 draws a row": lambda: of_bits("NCE", 20),
        "ConditionalNCE": lambda: of_bits("ConditionalNCE", 100),
        "PseudoLikelihood": lambda: of_bits("PseudoLikelihood", 2),
        "RatioMatching": lambda: of_bits("RatioMatching", 2),
        "MinimumProbabilityFlow": lambda: of_bits("MinimumProbabilityFlow", 2),
        f"PseudoLikelihood, {PART} bits": lambda: of_bits("PseudoLikelihood", 10, n_bits=PART),
        "PseudoLikelihood, general": lambda: of_bits("PseudoLikelihood", 1, True),
        f"PseudoLikelihood, {PART} bits, general": lambda: of_bits(
            "PseudoLikelihood", 2, True, n_bits=PART
        ),
    },
    "GaussianRBM": {
        "CD-1 ": lambda: of_reals("CD"),
        "PCD-1 ": lambda: of_reals("PCD"),
        "ScoreMatching": lambda: of_reals("ScoreMatching"),
        "SlicedScoreMatching": lambda: of_reals("SlicedScoreMatching"),
        "SlicedScoreMatching, not reduced": lambda: of_reals(
            "SlicedScoreMatching", variance_reduced=False
        ),
        "DenoisingScoreMatching": lambda: of_reals("DenoisingScoreMatching"),
        "ConditionalNCE ": lambda: of_reals("ConditionalNCE"),
        "NCE, 10 draws a row ": lambda: of_reals("NCE"),
    },
}


def measure(name: str, threads: int) -> float:
    variables = {f"{lib}_NUM_THREADS": str(threads) for lib in ("OMP", "OPENBLAS", "MKL")}
    run = subprocess.run(
        [sys.executable, __file__, "--contender", name, "--threads", str(threads)],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(run.stdout.splitlines()[-1])["milliseconds"])


def times(rounds: int, threads: int) -> dict[str, list[float]]:
    """Milliseconds of every round, by contender."""
    names = [name for group in CONTENDERS.values() for name in group]
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        k = turn % len(names)
        for name in names[k:] + names[:k]:
            found[name].append(measure(name, threads))
    return found


# ---------------------------------------------------------------- float32


class Same:
    """The same noise in both precisions."""

    def __init__(self, draws: Any) -> None:
        self.draws = draws

    def uniform(self, shape: Any) -> Any:
        return self.draws

    def normal(self, shape: Any, dtype: Any) -> Any:
        return (self.draws * 2 - 1).astype(dtype) * math.sqrt(3)


def gradient(trainer: Any, dtype: Any) -> Any:
    """∂L/∂W, float64."""
    import numpy as np

    from energyscape.backend import Purpose, stream
    from energyscape.models import GaussianRBM
    from energyscape.trainers.base import Batch

    rng = np.random.default_rng(0)
    model, x = GaussianRBM(H, variance=1.0), rng.normal(size=(64, D))
    params = model.init_params(x, stream(0, Purpose.INIT))
    params["W"] = rng.normal(size=(D, H)) / 28
    params, x = {k: v.astype(dtype) for k, v in params.items()}, x.astype(dtype)
    carry = trainer.start(model, params, x, stream(3, Purpose.START))
    noise = Same(np.random.default_rng(1).random(x.shape))
    sums = trainer.collect(model, params, carry, Batch(x, len(x)), noise)
    return sums["W"].astype(np.float64)


def errors() -> dict[str, dict[str, float | str]]:
    """Relative errors in float32 by strategy and step."""
    import numpy as np

    from energyscape.trainers import DenoisingScoreMatching, SlicedScoreMatching

    kinds = {
        "sliced": lambda epsilon: SlicedScoreMatching(epsilon=epsilon),
        "sliced, not reduced": lambda epsilon: SlicedScoreMatching(1, False, epsilon),
        "denoising": lambda epsilon: DenoisingScoreMatching(0.3, epsilon=epsilon),
    }
    found: dict[str, dict[str, float | str]] = {}
    for name, make in kinds.items():
        wanted, own = gradient(make(None), np.float64), {}
        for epsilon in (None, *STEPS[name]):
            key = "default" if epsilon is None else f"{epsilon:g}"
            try:
                got = gradient(make(epsilon), np.float32)
            except ValueError:
                own[key] = "refused"
            else:
                own[key] = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
        found[name] = own
    return found


def told(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.1e}"


def main() -> None:
    chosen = options(
        __doc__,
        threads=1,
        contender={"help": "run this one and print its time"},
        rounds={"type": int, "default": 10},
    )
    if chosen.contender:
        make = next(g[chosen.contender] for g in CONTENDERS.values() if chosen.contender in g)
        print(json.dumps({"milliseconds": 1e3 * make()}))
        return
    whole = Clock()
    of_float, found = errors(), times(chosen.rounds, chosen.threads)
    median = {name: statistics.median(t) for name, t in found.items()}
    text = [f"{chosen.rounds} rounds, every contender in its own process."]
    for group, names in CONTENDERS.items():
        first = median[next(iter(names))]
        rows = [
            [n.strip(), f"{median[n]:.2f}", f"{min(found[n]):.2f}", f"{median[n] / first:.1f}"]
            for n in names
        ]
        header = [group, "median ms", "least ms", "/ CD-1"]
        text.append(table(header, rows))
    whole_row = median["PseudoLikelihood, general"] / median["PseudoLikelihood"]
    part = f"PseudoLikelihood, {PART} bits"
    text.append(
        f"The machine's own way to flip takes 1/{whole_row:.1f} of the general one's time (of "
        f"{PART} bits: 1/{median[part + ', general'] / median[part]:.1f})."
    )
    text.append("Relative error of ∂L/∂W in float32, by the step ε over ℓ:")
    for name, own in of_float.items():
        text.append(table([name, *own], [["error", *map(told, own.values())]]))
    met = ", ".join(
        f"{name} {told(own['default'])} ({'met' if own['default'] < TARGETS[name] else 'missed'})"
        for name, own in of_float.items()
    )
    text.append(f"Targets at the default step: sliced below 1e-3, denoising below 1e-4: {met}.")
    text.append(f"{whole():.0f} s in all.")
    record = {"milliseconds": found, "float32": of_float}
    title = f"Strategies without chains: {D}×{H}, batch {BATCH}, float32"
    write(chosen, "strategy_steps", title, "\n\n".join(text), record)


if __name__ == "__main__":
    main()
