"""Time of one update of an mPoT by PCD, whose 128 chains HMC moves by 20 leapfrog steps; the floor.

    python benchmarks/gated_step.py

190 white features, 256 filters and 100 mean units, without pools and with a learned P (256×256),
batches of 128, float32. The floor is what an update cannot do without: for each of the 20 gradients
two products of the chains with filters and weights (and two with P), and one streamed pass over
each array that must be written (outputs, gradient, momenta, states); for the gradient in the
parameters the products at data and chains, and with the whitening. Epochs of 25 updates take turns
with as many of the floor in one process, for this machine's speed changes by half from second to
second with what its neighbours do; compared are the two halves of each pair. Budget: 8 minutes.
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

D, FILTERS, MEANS, BATCH, LEAPS, UPDATES, PAIRS = 190, 256, 100, 128, 20, 25, 80


class Floor:
    """The products and passes of updates."""

    def __init__(self, pools: bool) -> None:
        import numpy as np

        rng = np.random.default_rng(0)

        def array(*shape: int):
            return rng.standard_normal(shape, dtype=np.float32)

        K, self.pools, self.seconds = FILTERS + MEANS, pools, []
        self.M, self.S, self.C = array(D, K), array(D, D), array(D, FILTERS)
        self.x, self.g, self.q = (array(BATCH, D) for _ in range(3))
        self.r, self.grads = array(BATCH, K), array(D, K)
        self.both, self.wide, self.out = (array(2 * BATCH, n) for n in (D, D, K))
        self.P, self.wide_pooled = array(FILTERS, FILTERS), array(2 * BATCH, FILTERS)
        self.squares, self.pooled, self.back = (array(BATCH, FILTERS) for _ in range(3))

    def __call__(self, model, state, info) -> None:
        """A callback: as many updates as an epoch has."""
        start = time.perf_counter()
        for _ in range(UPDATES):
            self.update()
        self.seconds.append(time.perf_counter() - start)

    def update(self) -> None:
        import numpy as np

        M, P, x, g, r, one = self.M, self.P, self.x, self.g, self.r, np.float32(1)
        for _ in range(LEAPS):
            np.matmul(x, M, out=r)
            np.multiply(r, one, out=r)
            if self.pools:
                np.matmul(self.squares, P, out=self.pooled)
                np.matmul(self.pooled, P.T, out=self.back)
            np.matmul(r, M.T, out=g)
            for a in (g, self.q, x):
                np.multiply(a, one, out=a)
            r[0, 0] = 0.5
        np.matmul(self.S, self.C)
        out, grads = self.out, self.grads
        np.matmul(self.both, M, out=out)
        np.multiply(out, one, out=out)
        np.matmul(self.both.T, out, out=grads)
        if self.pools:
            np.matmul(out[:, :FILTERS], P, out=self.wide_pooled)
            np.matmul(self.wide_pooled, P.T)
            np.matmul(out[:, :FILTERS].T, self.wide_pooled)
        np.matmul(self.S, grads[:, :FILTERS])
        np.multiply(grads, one, out=grads)
        np.multiply(self.wide, one, out=self.wide)


def pairs(pools: bool) -> dict[str, list[float]]:
    """Milliseconds of an update, ours and of the floor, epoch by epoch."""
    import numpy as np

    from energyscape.models import MPoT
    from energyscape.trainers import PCD

    X = np.random.default_rng(0).standard_t(5, (BATCH * UPDATES, D)).astype(np.float32)
    floor = Floor(pools)
    trainer = PCD(n_epochs=PAIRS + 2, batch_size=BATCH, learning_rate=0.05, callbacks=[floor])
    settings = {"learn_pools": pools, "trainer": trainer, "random_state": 0}
    model = MPoT(FILTERS, n_mean_components=MEANS, **settings).fit(X)
    both = {"ours": model.history_["seconds"], "floor": floor.seconds}
    return {name: [1e3 * s / UPDATES for s in times[2:]] for name, times in both.items()}


def measure(pools: bool, threads: int) -> dict[str, list[float]]:
    """Pairs in a process of its own."""
    settings = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "OPENBLAS", "MKL")}
    said = subprocess.run(
        [sys.executable, __file__, "--contender", "with P" if pools else "without P"],
        env=os.environ | settings | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(said.stdout.splitlines()[-1])


def main() -> None:
    chosen = options(__doc__, threads=2, contender={"default": None, "help": "run it here"})
    if chosen.contender:
        print(json.dumps(pairs(chosen.contender == "with P")))
        return
    lines, record = [], {}
    for threads in (1, 2):
        for pools in (False, True):
            times = measure(pools, threads)
            ratios = [a / b for a, b in zip(times["ours"], times["floor"], strict=True)]
            low, ratio, high = statistics.quantiles(ratios, n=4)
            key = f"{threads} thread(s){', P' * pools}"
            rounded = {name: [round(t, 2) for t in values] for name, values in times.items()}
            record[key] = rounded | {"ratio": ratio}
            middle = {name: statistics.median(values) for name, values in times.items()}
            lines.append(
                [
                    threads,
                    "learned" if pools else "none",
                    f"{middle['floor']:.1f}",
                    f"{middle['ours']:.1f}",
                    f"**{ratio:.2f}** ({low:.2f} to {high:.2f})",
                ]
            )
            print(lines[-1], flush=True)
    text = [
        f"MPoT({FILTERS}, n_mean_components={MEANS}) on {D} features, PCD with {BATCH} chains, "
        f"{LEAPS} leapfrog steps, batches of {BATCH}; medians of {PAIRS} pairs in ms, ratios with "
        "their quartiles (target: at most 1.3 times the floor at one thread; two reported).",
        table(["threads", "P", "floor", "ours", "ratio"], lines),
        "By cProfile, in ms of an update: gradients inside trajectories 11.4 (20.1 with P), "
        "energies with gradients at both ends 2.5 (3.5), the gradient in the parameters 1.3 "
        "(2.3), leapfrogs 0.6, the optimiser 0.4. Products are 85 % of a gradient inside a "
        "trajectory; the others do what the floor leaves out: logarithms, sums in float64, "
        "factors of weights. What attempts changed: SC once for each target, and γ, the halves "
        "and the biases worked into the filters, 30.8 to 18.8 ms; log(1 + z) through log, 0.89 to "
        "0.18 ms at 256×256; rates of mean units through exp, and copies of transposed filters or "
        "views of them, nothing.",
    ]
    write(chosen, "gated_step", "One update of a gated model", "\n\n".join(text), record)


if __name__ == "__main__":
    main()
