"""A 784-500-1000 deep Boltzmann machine: the cost of an update, and MNIST's test log-likelihood.

    python benchmarks/deep_boltzmann.py
    python benchmarks/deep_boltzmann.py --budget 4

Cost: one PCD-1 update with 100 rows and 100 chains in float32 against its matrix products alone,
in ten interleaved rounds. MNIST: fresh bits for every batch in training; the test set is binarised
once with seed 0. Two machines: one that starts from an RBM (`pretraining`), and one that starts
from small weights and gets as many minutes. log Z by annealed importance sampling at K and 4K
temperatures, the free energy of test rows by mean field: a lower bound of their log-likelihood, up
to the error of log Z. `--budget` multiplies the epochs. Budget: 60 minutes.
"""

from __future__ import annotations

from common import Clock, options, table, write

SIZES, BATCH, ROUNDS, UPDATES = (784, 500, 1000), 100, 10, 20
SWEEPS = 5
# (learning rate, epochs) of the RBM, of the whole machine after it, and of one from small weights.
RBM_FIRST, THEN, AT_ONCE = (0.2, 100), (0.1, 24), (0.2, 60)
CHAINS, TEMPERATURES = 100, 5_000
PUBLISHED = "published, after pre-training: -84.62 (Salakhutdinov and Hinton, 2009)"


def products(sweeps: int):
    """A function that makes the matrix products of one update, into arrays that are there."""
    import numpy as np

    d, first, second = SIZES
    rng = np.random.default_rng(0)

    def rows(n: int, units: int):
        return rng.standard_normal((n, units)).astype(np.float32)

    W1, W2 = rows(d, first), rows(first, second)
    x, h1, h2 = rows(BATCH, d), rows(BATCH, first), rows(BATCH, second)
    both = [rows(2 * BATCH, units) for units in SIZES]
    at_v, at_1, at_2 = (np.empty((BATCH, units), np.float32) for units in SIZES)
    fields, grad1, grad2 = np.empty_like(both[1]), np.empty_like(W1), np.empty_like(W2)

    def update() -> None:
        np.matmul(x, W1, out=at_1)  # mean field
        for _ in range(sweeps):
            np.matmul(h2, W2.T, out=at_1)
            np.matmul(h1, W2, out=at_2)
        np.matmul(h1, W1.T, out=at_v)  # chains: odd layer to even ones
        np.matmul(h1, W2, out=at_2)
        np.matmul(both[0], W1, out=fields)  # data and chains: even layers to the odd one
        np.matmul(both[2], W2.T, out=fields)
        np.matmul(both[0].T, both[1], out=grad1)
        np.matmul(both[1].T, both[2], out=grad2)

    return update


def updates(sweeps: int):
    """A function that makes one PCD-1 update of the machine."""
    import itertools

    import numpy as np

    from energyscape.backend import Purpose, stream
    from energyscape.models import DeepBoltzmannMachine
    from energyscape.optim import Moment
    from energyscape.trainers import PCD
    from energyscape.trainers.base import Batch

    model = DeepBoltzmannMachine(SIZES[1:], n_mean_field=sweeps)
    trainer = PCD(n_chains=BATCH, learning_rate=AT_ONCE[0])
    x = (np.random.default_rng(0).random((BATCH, SIZES[0])) < 0.15).astype(np.float32)
    params = model.init_params(x, stream(0, Purpose.INIT))
    carry = trainer.start(model, params, x, stream(0, Purpose.START))
    steps = itertools.count()

    def update() -> None:
        step = next(steps)
        rng = stream(0, Purpose.COLLECT, step)
        sums = trainer.collect(model, params, carry, Batch(x, BATCH), rng)
        trainer.apply(model, params, carry, sums, Moment(0, step, None, rng))

    return update


def cost() -> dict[str, dict[str, float]]:
    """Milliseconds of an update and of its products, median and minimum over the rounds."""
    import statistics

    found = {}
    for sweeps in (SWEEPS, 10):
        contenders = {"update": updates(sweeps), "products": products(sweeps)}
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(ROUNDS + 1):  # the first warms up
            for name in sorted(contenders, reverse=bool(turn % 2)):
                clock = Clock()
                for _ in range(UPDATES):
                    contenders[name]()
                times[name].append(1e3 * clock() / UPDATES)
        for name, values in times.items():
            found[f"{name}, {sweeps} sweeps"] = {
                "median": statistics.median(values[1:]),
                "minimum": min(values[1:]),
            }
    return found


def log_partition(model, k: int, seed: int) -> dict[str, object]:
    from energyscape.backend import Purpose, stream
    from energyscape.samplers import AIS

    clock, params = Clock(), model._params
    path = model.target(params, base=model.base_measure(params))
    found = AIS(CHAINS, k).run(path, stream(seed, Purpose.PARTITION), verbose=True)
    return {
        "log Z": found.log_partition,
        "interval": found.interval,
        "ess": found.ess,
        "seconds": clock(),
    }


def likelihood(budget: int, pretrained: bool):
    """(model, record) of an MNIST run."""
    from energyscape.data import Binarize, binarize, load_mnist
    from energyscape.models import DeepBoltzmannMachine
    from energyscape.trainers import PCD

    first: dict[str, object] = {}

    def keep(model, state, info) -> None:
        first["rbm"] = model

    def trainer(recipe, **more):
        rate, epochs = recipe
        return PCD(
            n_epochs=epochs * budget,
            learning_rate=rate,
            n_chains=200,
            averaging=0.1,
            batch_transform=Binarize(),
            **more,
        )

    X, T = load_mnist("train")[0], binarize(load_mnist("test")[0], 0)
    clock = Clock()
    model = DeepBoltzmannMachine(
        SIZES[1:],
        n_mean_field=SWEEPS,
        pretraining=trainer(RBM_FIRST, callbacks=[keep]) if pretrained else None,
        trainer=trainer(THEN if pretrained else AT_ONCE),
        random_state=0,
        verbose=1,
    ).fit(X)
    record: dict[str, object] = {"seconds": clock(), "epochs": model.n_iter_}
    if pretrained:
        rbm = first["rbm"]
        found = log_partition(rbm, TEMPERATURES, 2)
        record["RBM"] = found | {"free energy": float(rbm.energy(T).mean())}
    for i, k in enumerate((TEMPERATURES, 4 * TEMPERATURES)[: 1 + pretrained]):
        record[f"AIS {k}"] = log_partition(model, k, i)
    for sweeps in (1, 50, SWEEPS):  # as it was trained in the end, since it may be saved
        model.n_mean_field = sweeps
        record[f"free energy, {sweeps} sweeps"] = float(model.energy(T).mean())
    return model, record


def row(name: str, ais: dict, free: float, k: int) -> list[str]:
    low, high = ais["interval"]
    return [
        name,
        f"{k:,}",
        f"{ais['log Z']:.2f} ({low:.2f} … {high:.2f})",
        f"{-free - ais['log Z']:.2f}",
        f"{ais['ess']:.0f} of {CHAINS}",
        f"{ais['seconds']:.0f} s",
    ]


def main() -> None:
    chosen = options(__doc__, threads=1, budget={"type": int, "default": 1}, out={"help": "a file"})
    times = cost()
    rows = [
        [name, f"{value['median']:.2f} ms", f"{value['minimum']:.2f} ms"]
        for name, value in times.items()
    ]
    model, record = likelihood(chosen.budget, True)
    if chosen.out:
        model.save(chosen.out)
    _, at_once = likelihood(chosen.budget, False)
    free = record["free energy, 50 sweeps"]
    rbm = record["RBM"]
    found = [row("RBM, where it starts", rbm, rbm["free energy"], TEMPERATURES)]
    for k in (TEMPERATURES, 4 * TEMPERATURES):
        found.append(row("machine, from the RBM", record[f"AIS {k}"], free, k))
    other = at_once["free energy, 50 sweeps"]
    found.append(
        row("machine, from small weights", at_once[f"AIS {TEMPERATURES}"], other, TEMPERATURES)
    )
    loose = {n: record[f"free energy, {n} sweeps"] - free for n in (1, SWEEPS)}
    lines = [
        f"One PCD-1 update, {'-'.join(map(str, SIZES))}, {BATCH} rows and {BATCH} chains, float32:",
        table(["", "median", "minimum"], rows),
        f"MNIST: PCD-1, centred, 200 chains, learning rates falling linearly to 0, parameters "
        f"averaged over the last tenth, epochs of 600 updates, {SWEEPS} sweeps. From an RBM: its "
        f"{RBM_FIRST[1] * chosen.budget} epochs at {RBM_FIRST[0]}, then {record['epochs']} of the "
        f"whole machine at {THEN[0]}, **{record['seconds']:.0f} s** in all. From small weights: "
        f"{at_once['epochs']} epochs at {AT_ONCE[0]}, {at_once['seconds']:.0f} s. ({PUBLISHED})",
        table(["", "temperatures", "log Z", "test bound", "effective chains", "time"], found),
        f"The bound is taken at 50 sweeps; from the RBM it is {loose[1]:.2f} nats lower at 1 sweep "
        f"and {loose[SWEEPS]:.3f} at {SWEEPS}.",
    ]
    name = "deep_boltzmann" + (f"_times_{chosen.budget}" if chosen.budget > 1 else "")
    kept = times | {"from an RBM": record, "from small weights": at_once}
    write(chosen, name, "Deep Boltzmann machine", "\n\n".join(lines), kept)


if __name__ == "__main__":
    main()
