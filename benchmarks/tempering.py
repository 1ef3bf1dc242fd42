"""PCD with tempered chains against plain PCD, bars and stripes 4×4, at five times the best rate.

30 images (the two uniform ones twice: 32 rows), 16 hidden units, exact log Z. All contenders spend
the same matrix products an update: 96 rows through W and back. First the constant rate at which
plain PCD does best is looked for; then everyone runs at five times that. Budget: 20 minutes.
"""

from __future__ import annotations

import sys

from common import HERE, Clock, options, table, write

RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
SEARCH_SEEDS = (100, 101, 102)
SEEDS = tuple(range(10))
UPDATES, REPLICAS, ROWS, UNITS = 6000, 4, 96, 16


def main() -> None:
    chosen = options(__doc__, threads=1)
    sys.path.insert(0, str(HERE.parent / "tests"))
    import numpy as np
    from oracles import bars_and_stripes
    from scipy.stats import t as student

    from energyscape.models import RBM
    from energyscape.optim import SGD, Constant
    from energyscape.samplers import ParallelTempering
    from energyscape.trainers import PCD

    images = bars_and_stripes(4)
    X = np.tile(images, (3, 1))

    def score(seed: int, rate: float, **settings) -> float:
        trainer = PCD(
            n_epochs=UPDATES,
            batch_size=len(X),
            optimizer=SGD(rate, schedule=Constant()),
            **settings,
        )
        return RBM(UNITS, trainer=trainer, random_state=seed).fit(X).score(images)

    clock = Clock()
    found = {rate: [score(seed, rate, n_chains=ROWS) for seed in SEARCH_SEEDS] for rate in RATES}
    best = max(RATES, key=lambda rate: np.mean(found[rate]))
    rate = 5 * best
    tempered = ParallelTempering(n_temperatures=REPLICAS)
    contenders = {
        f"PCD-1, {ROWS} chains": {"n_chains": ROWS},
        f"PCD-{REPLICAS}, {ROWS // REPLICAS} chains": {
            "n_chains": ROWS // REPLICAS,
            "n_steps": REPLICAS,
        },
        f"tempered, {ROWS // REPLICAS} chains of {REPLICAS} replicas": {
            "n_chains": ROWS // REPLICAS,
            "sampler": tempered,
        },
    }
    scores = {
        name: [score(seed, rate, **settings) for seed in SEEDS]
        for name, settings in contenders.items()
    }
    *plain, ours = scores
    lines, intervals = [], []
    for name, values in scores.items():
        each = " ".join(f"{v:.3f}" for v in values)
        lines.append([name, f"{np.mean(values):.3f}", each])
    for name in plain:
        gain = np.array(scores[ours]) - np.array(scores[name])
        half = student.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
        intervals.append((gain.mean() - half, gain.mean() + half))
    won = all(low > 0 for low, _ in intervals)
    search = ", ".join(f"{rate:g}: {np.mean(values):.3f}" for rate, values in found.items())
    text = "\n\n".join(
        [
            f"Exact mean log-likelihood of the 32 rows, nats (best possible "
            f"{-np.log(32) + 2 * 2 / 32 * np.log(2):.4f}), after {UPDATES:,} updates at a constant "
            f"rate. Plain PCD-1 of {ROWS} chains, mean of seeds {SEARCH_SEEDS}: {search}. Best: "
            f"{best:g}. At five times that, {rate:g}:",
            table(["", "mean", f"seeds {SEEDS[0]} to {SEEDS[-1]}"], lines),
            "Tempered minus plain, mean of paired differences with 95 % interval: "
            + "; ".join(
                f"against {name}: [{low:+.3f}, {high:+.3f}]"
                for name, (low, high) in zip(plain, intervals, strict=True)
            )
            + f". Better by both intervals: {'yes' if won else 'NO'}. ({clock():.0f} s)",
        ]
    )
    record = {"search": found, "rate": rate, "scores": scores, "intervals": intervals}
    write(chosen, "tempering", "Tempered chains in PCD", text, record)


if __name__ == "__main__":
    main()
