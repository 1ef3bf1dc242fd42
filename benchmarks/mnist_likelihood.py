"""Test log-likelihood of an RBM on stochastically binarised MNIST.

    python benchmarks/mnist_likelihood.py --units 20
    python benchmarks/mnist_likelihood.py --units 500
    python benchmarks/mnist_likelihood.py --units 500 --budget 4

Fresh bits for every batch in training; the test set is binarised once with seed 0. 20 units: log Z
is exact. 500 units: annealed importance sampling at K and 4K temperatures, and RAISE on test rows.
`--budget` multiplies the epochs. Budget: 60 minutes each, of which training at most 15 (times
`--budget`).
"""

from __future__ import annotations

from common import Clock, options, table, write

# learning rate, epochs of 600 updates, further settings of PCD
RECIPES = {
    20: (0.3, 60, {}),
    500: (0.2, 100, {"n_chains": 200, "averaging": 0.1}),
}
PUBLISHED = {
    20: "published PCD -150.1; target -136 within 2 minutes",
    500: "published PCD -101.3, CD-25 -86.34; target -86.3 within 15 minutes",
}
CHAINS, TEMPERATURES, RAISE_ROWS = 500, 10_000, 200


def estimate(model, T, k: int, seed: int):
    """Mean test log-likelihood by forward AIS, its interval, and the effective sample size."""
    from energyscape.backend import Purpose, stream
    from energyscape.samplers import AIS

    params = model._params
    path = model.target(params, base=model.base_measure(params))
    result = AIS(CHAINS, k).run(path, stream(seed, Purpose.PARTITION), verbose=True)
    mean = -float(model.energy(T).mean())
    high, low = (mean - edge for edge in result.interval)
    return mean - result.log_partition, (low, high), result.ess


def annealed(model, T, k: int) -> tuple[float, float]:
    """RAISE on test rows with F as control variate: mean test log-likelihood, standard error."""
    import numpy as np

    from energyscape.backend import Purpose, stream
    from energyscape.samplers import AIS

    params = model._params
    path = model.target(params, base=model.base_measure(params))
    x = T[np.random.default_rng(0).permutation(len(T))[:RAISE_ROWS]]
    log_p = AIS(RAISE_ROWS, k).annealed_log_likelihood(
        path, x, stream(3, Purpose.PARTITION), 1, verbose=True
    )
    gap = log_p + model.energy(x)  # -log Z as seen from each row
    error = gap.std(ddof=1) / np.sqrt(len(gap))
    return float(gap.mean() - model.energy(T).mean()), float(error)


def main() -> None:
    chosen = options(
        __doc__,
        units={"type": int, "choices": tuple(RECIPES), "default": 20},
        budget={"type": int, "default": 1},
        out={"help": "keep the model in this file"},
    )
    from energyscape.data import Binarize, binarize, load_mnist
    from energyscape.models import RBM
    from energyscape.trainers import PCD

    X, T = load_mnist("train")[0], binarize(load_mnist("test")[0], 0)
    rate, epochs, more = RECIPES[chosen.units]
    epochs *= chosen.budget
    trainer = PCD(n_epochs=epochs, learning_rate=rate, batch_transform=Binarize(), **more)
    clock = Clock()
    model = RBM(chosen.units, trainer=trainer, random_state=0, verbose=1).fit(X)
    seconds = clock()
    if chosen.out:
        model.save(chosen.out)
    record = {"seconds": seconds, "epochs": epochs, "learning_rate": rate, **more}
    chains = more.get("n_chains", model.trainer_.batch_size)
    average = ", parameters averaged over the last tenth" if "averaging" in more else ""
    lines = [
        f"RBM({chosen.units}), PCD-1, learning rate {rate} falling linearly to 0, {epochs} "
        f"epochs of 600 updates, batches of {model.trainer_.batch_size}, {chains} chains"
        f"{average}; training took **{seconds:.0f} s**. "
        f"({PUBLISHED[chosen.units]})"
    ]
    if chosen.units == 20:
        record["exact"] = model.score(T)
        lines.append(f"Exact test log-likelihood: **{record['exact']:.2f} nats**.")
    else:
        rows = []
        for i, k in enumerate((TEMPERATURES, 4 * TEMPERATURES)):
            value, (low, high), ess = estimate(model, T, k, i)
            rows.append(
                [
                    f"{k:,}",
                    f"{value:.2f}",
                    f"{low:.2f} … {high:.2f}",
                    f"{ess:.0f} ({100 * ess / CHAINS:.0f} %)",
                    f"{clock():.0f} s",
                ]
            )
            record[f"AIS {k}"] = {"value": value, "interval": [low, high], "ess": ess}
        lower, error = annealed(model, T, 4 * TEMPERATURES)
        record["RAISE"] = {"value": lower, "error": error}
        upper, best = (record[f"AIS {k}"]["value"] for k in (TEMPERATURES, 4 * TEMPERATURES))
        header = [
            "temperatures",
            "test log-likelihood",
            "95 % interval",
            "effective chains",
            "time",
        ]
        lines += [
            f"Forward AIS, {CHAINS} chains (schedule from a pilot run):",
            table(header, rows),
            f"K and 4K differ by {abs(upper - best):.2f} nats (target ≤ 0.3). RAISE on "
            f"{RAISE_ROWS} test rows at {4 * TEMPERATURES:,} temperatures: {lower:.2f} ± "
            f"{error:.2f}, {best - lower:.2f} nats below forward AIS (target ≤ 2).",
        ]
    name = f"mnist_{chosen.units}" + (f"_times_{chosen.budget}" if chosen.budget > 1 else "")
    title = f"MNIST, {chosen.units} hidden units" + (
        f", {chosen.budget} times the budget" if chosen.budget > 1 else ""
    )
    write(chosen, name, title, "\n\n".join(lines), record)


if __name__ == "__main__":
    main()
