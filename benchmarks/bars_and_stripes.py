"""Bars and stripes, 3×3: exact mean log-likelihood of CD-1, PCD-1 and FPCD, five seeds each.

16 images (the two uniform ones twice), 16 hidden units, 96 rows (six copies), 9,000 updates with
the learning rate falling linearly to 0. The best mean log-likelihood is -2.5993 nats. Budget: 5
minutes.
"""

from __future__ import annotations

import statistics
import sys

from common import HERE, Clock, options, table, write

SEEDS = (0, 1, 2, 3, 4)
UPDATES = 9000


def main() -> None:
    chosen = options(__doc__, threads=1)
    sys.path.insert(0, str(HERE.parent / "tests"))
    import numpy as np
    from oracles import bars_and_stripes

    from energyscape.models import RBM
    from energyscape.trainers import CD, FPCD, PCD

    images = bars_and_stripes(3)
    X = np.tile(images, (6, 1))
    clock, lines, record = Clock(), [], {}

    def likelihoods(name: str, target: str, make, rows=X, units: int = 16) -> list[float]:
        scores = []
        for seed in SEEDS:
            model = RBM(units, trainer=make(), random_state=seed).fit(rows)
            scores.append(model.score(images))
        record[name] = scores
        each = " ".join(f"{s:.3f}" for s in scores)
        lines.append([name, target, f"{statistics.median(scores):.3f}", each, f"{clock():.0f} s"])
        return scores

    full = {"n_epochs": UPDATES, "batch_size": 96, "learning_rate": 0.1}
    likelihoods("CD-1", "-2.80", lambda: CD(**full))
    likelihoods("PCD-1, 96 chains", "-2.75", lambda: PCD(n_chains=96, **full))
    likelihoods(
        "FPCD, 96 chains", "-2.70", lambda: FPCD(n_chains=96, fast_learning_rate=0.1, **full)
    )
    few = {"n_epochs": UPDATES // 6, "batch_size": 16, "n_chains": 7, "learning_rate": 0.05}
    likelihoods("PCD-1, 7 chains, batch 16", "-3.1", lambda: PCD(**few))
    likelihoods("FPCD, 7 chains, batch 16", "-3.1", lambda: FPCD(**few))

    # Ragged: 110 rows in batches of 100 and 10, as many updates and chains as with 96 rows.
    rows = np.concatenate([X, images[:14]])
    equal = {"batch_size": 100, "n_chains": 96, "learning_rate": 0.1}
    even = likelihoods("96 rows, batch 100, 6,000 updates", "", lambda: PCD(n_epochs=6000, **equal))
    ragged = likelihoods(
        "110 rows, batch 100, 6,000 updates", "", lambda: PCD(n_epochs=3000, **equal), rows
    )
    gap = abs(statistics.median(even) - statistics.median(ragged))

    trainer = PCD(n_epochs=10, batch_size=16, optimizer=None)
    from energyscape.optim import SGD, Constant

    trainer.set_params(optimizer=SGD(0.1, schedule=Constant()))
    once = RBM(16, trainer=trainer, random_state=0).fit(X)
    parts = RBM(16, trainer=trainer, random_state=0)
    for _ in range(10):
        parts.partial_fit(X)
    same = all(np.array_equal(once.params_[k], parts.params_[k]) for k in once.params_)

    text = "\n\n".join(
        [
            "Exact mean log-likelihood of the 16 images, nats; best possible -2.5993. Seeds "
            f"{', '.join(map(str, SEEDS))}, named beforehand.",
            table(["", "target", "median", "each seed", "time of all"], lines),
            f"Ragged law (target ≤ 0.1): medians differ by {gap:.3f}. Ten `partial_fit(X)` equal "
            f"one constant-rate `fit` of ten epochs bit for bit: {'yes' if same else 'NO'}.",
        ]
    )
    record |= {"ragged gap": gap, "partial_fit equal": same}
    write(chosen, "bars_and_stripes", "Bars and stripes", text, record)


if __name__ == "__main__":
    main()
