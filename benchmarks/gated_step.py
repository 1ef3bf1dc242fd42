"""Time of one update of an mPoT by PCD, whose 128 chains HMC moves by 20 leapfrog steps; the floor.

    python benchmarks/gated_step.py

190 white features, 256 filters and 100 mean units, without pools and with a learned P (256×256),
batches of 128, float32. The floor is what an update cannot do without: for each of the 20 gradients
two products of the chains with filters and weights (and two with P), and one streamed pass over
each array that must be written (outputs, gradient, momenta, states); for the gradient in the
parameters the products at data and chains, and with the whitening. Our figure is the least time of
an epoch over its updates. All in processes of their own, five rounds, in turn. Budget: 8 minutes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import options, table, write

D, FILTERS, MEANS, BATCH, LEAPS, UPDATES, ROUNDS = 190, 256, 100, 128, 20, 100, 5


def floor(pools: bool) -> float:
    """Seconds of an update's products and passes."""
    import numpy as np

    rng = np.random.default_rng(0)
    K = FILTERS + MEANS

    def array(*shape: int):
        return rng.standard_normal(shape, dtype=np.float32)

    M, S, C = array(D, K), array(D, D), array(D, FILTERS)
    x, g, q, r = array(BATCH, D), array(BATCH, D), array(BATCH, D), array(BATCH, K)
    both, out, wide = array(2 * BATCH, D), array(2 * BATCH, K), array(2 * BATCH, D)
    grads, one = array(D, K), np.float32(1)
    P, squares, pooled = array(FILTERS, FILTERS), array(BATCH, FILTERS), array(BATCH, FILTERS)
    back, wide_pooled = array(BATCH, FILTERS), array(2 * BATCH, FILTERS)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(UPDATES):
            for _ in range(LEAPS):
                np.matmul(x, M, out=r)
                np.multiply(r, one, out=r)
                if pools:
                    np.matmul(squares, P, out=pooled)
                    np.matmul(pooled, P.T, out=back)
                np.matmul(r, M.T, out=g)
                for a in (g, q, x):
                    np.multiply(a, one, out=a)
                r[0, 0] = 0.5
            np.matmul(S, C)
            np.matmul(both, M, out=out)
            np.multiply(out, one, out=out)
            np.matmul(both.T, out, out=grads)
            if pools:
                np.matmul(out[:, :FILTERS], P, out=wide_pooled)
                np.matmul(wide_pooled, P.T)
                np.matmul(out[:, :FILTERS].T, wide_pooled)
            np.matmul(S, grads[:, :FILTERS])
            np.multiply(grads, one, out=grads)
            np.multiply(wide, one, out=wide)
        times.append((time.perf_counter() - start) / UPDATES)
    return min(times[1:])


def ours(pools: bool) -> float:
    """Seconds of an update, from the history."""
    import numpy as np

    from energyscape.models import MPoT
    from energyscape.trainers import PCD

    X = np.random.default_rng(0).standard_t(5, (BATCH * UPDATES, D)).astype(np.float32)
    trainer = PCD(n_epochs=4, batch_size=BATCH, learning_rate=0.05)
    settings = {"learn_pools": pools, "trainer": trainer, "random_state": 0}
    model = MPoT(FILTERS, n_mean_components=MEANS, **settings).fit(X)
    return min(model.history_["seconds"][1:]) / UPDATES


def measure(name: str, pools: bool, threads: int) -> float:
    """Seconds of a contender in a process of its own."""
    settings = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "OPENBLAS", "MKL")}
    said = subprocess.run(
        [sys.executable, __file__, "--contender", name + " with P" * pools],
        env=os.environ | settings | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(said.stdout.splitlines()[-1]))


def main() -> None:
    chosen = options(__doc__, threads=2, contender={"default": None, "help": "run it here"})
    if chosen.contender:
        name, *pools = chosen.contender.split(maxsplit=1)
        print(json.dumps({"floor": floor, "ours": ours}[name](bool(pools))))
        return
    lines, record = [], {}
    for threads in (1, 2):
        for pools in (False, True):
            runs: dict[str, list[float]] = {"floor": [], "ours": []}
            for turn in range(ROUNDS):
                for name in sorted(runs, reverse=turn % 2 == 1):
                    runs[name].append(1e3 * measure(name, pools, threads))
            middle = {name: statistics.median(values) for name, values in runs.items()}
            ratio = middle["ours"] / middle["floor"]
            record[f"{threads} thread(s){', P' * pools}"] = runs | {"ratio": ratio}
            lines.append(
                [
                    threads,
                    "learned" if pools else "none",
                    f"{middle['floor']:.1f}",
                    f"{middle['ours']:.1f}",
                    f"**{ratio:.2f}**",
                ]
            )
            print(lines[-1], flush=True)
    text = [
        f"MPoT({FILTERS}, n_mean_components={MEANS}) on {D} features, PCD with {BATCH} chains, "
        f"{LEAPS} leapfrog steps, batches of {BATCH}; medians of {ROUNDS} rounds in ms (target: at "
        "most 1.3 times the floor at one thread; two reported).",
        table(["threads", "P", "floor", "ours", "ratio"], lines),
    ]
    write(chosen, "gated_step", "One update of a gated model", "\n\n".join(text), record)


if __name__ == "__main__":
    main()
