"""Fits that workers share: the gradient, the model, the speed, and what a lost worker costs.

    python benchmarks/cluster.py --part model
    python benchmarks/cluster.py --part speed

The model: the gradient of RBM-500 on one batch by one process and by two and four over sockets, on
the same rows and noise; the test log-likelihood of RBM-500 on binarised MNIST after the same
training by one process and by workers that meet for every update or every ten; epochs that are lost
when a worker is killed. The speed: updates by 1, 2 and 4 processes of this machine beside the cost
model of docs/scaling.md, which wants a quiet machine and `allreduce.py` run on it. Budget: 30
minutes and 10.
"""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from common import options, table, write

H, EPOCHS, SEEDS = 500, 15, 2
CHAINS, TEMPERATURES = 400, 8_000
BYTES = 4 * (784 * H + 784 + H + 784 + H)  # of an update's sums: gradients, and means of the units
# Of the extrapolation: patches of 16×16, 1024 hidden units, PCD-1 (five products) in float32 on a
# core that does 40 GFLOP/s of them; a network of 10 Gbit/s with 50 µs a message.
PATCH_FLOPS, CORE_FLOPS = 5 * 2 * 256 * 1024, 40e9
PATCH_BYTES, NET_BANDWIDTH, NET_LATENCY = 4 * (256 * 1024 + 2 * (256 + 1024)), 1.25e9, 50e-6
HERE = Path(__file__).parent


# ---------------------------------------------------------------- the gradient


def gradients(X):
    """Largest difference of a sum over workers from that of one process, over the largest entry."""
    import numpy as np

    sys.path.insert(0, str(HERE.parent / "tests"))
    from crew import Sliced

    from energyscape.backend import HostStream, Purpose, stream
    from energyscape.distributed.meeting import listen
    from energyscape.distributed.sockets import SocketWorkers
    from energyscape.models import RBM
    from energyscape.trainers import CD, PCD
    from energyscape.trainers.base import Batch
    from energyscape.workers import add_up, split_evenly

    rows = []
    for dtype in ("float32", "float64"):
        x = X[:400].astype(dtype)
        for strategy in (CD(), PCD(n_chains=400)):
            model = RBM(H)
            params = model.init_params(x, stream(0, Purpose.INIT))
            params["W"] += np.asarray(
                stream(1, Purpose.INIT).normal(params["W"].shape, x.dtype) * 0.05
            )
            carry = strategy.start(model, params, x, stream(0, Purpose.START))

            def collect(workers, carry=carry, strategy=strategy, model=model, params=params, x=x):
                mine = split_evenly(400, workers.size, workers.rank)
                own = {k: v[mine] if k.startswith("chain/") else v for k, v in carry.items()}
                noise = Sliced(HostStream(3, Purpose.COLLECT, 0), workers)
                batch = Batch(x[mine], 400, chains=400)
                return add_up(workers, strategy.collect(model, params, dict(own), batch, noise))

            from energyscape.workers import ALONE

            whole = collect(ALONE)
            for size in (2, 4):
                doors = [listen("127.0.0.1") for _ in range(size)]
                addresses = [("127.0.0.1", port) for _, port in doors]
                found = [None] * size

                def work(rank, size=size, doors=doors, addresses=addresses, found=found):
                    workers = SocketWorkers(rank, addresses, b"benchmark", doors[rank][0])
                    found[rank] = collect(workers)
                    workers.close()

                threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                worst = max(
                    float(np.abs(found[0][k] - v).max() / np.abs(v).max()) for k, v in whole.items()
                )
                same = all(
                    np.array_equal(found[0][k], other[k]) for other in found[1:] for k in whole
                )
                rows.append([type(strategy).__name__, dtype, size, worst, same])
    return rows


# ---------------------------------------------------------------- models


def trained(client, X, sync_every, seed, epochs=EPOCHS):
    """RBM-500 by the workers of a client, or by this process."""
    from energyscape import distributed
    from energyscape.data import Binarize
    from energyscape.models import RBM
    from energyscape.trainers import PCD

    trainer = PCD(
        n_epochs=epochs,
        learning_rate=0.2,
        n_chains=200,
        averaging=0.1,
        batch_transform=Binarize(),
    )
    model = RBM(H, trainer=trainer, random_state=seed)
    if client is None:
        model.fit(X)
    else:
        distributed.fit(model, X, client, sync_every=sync_every)
    return model


def likelihood(model, T, seed):
    """Mean test log-likelihood by AIS, and half its 95 % interval."""
    from energyscape.backend import Purpose, stream
    from energyscape.samplers import AIS

    params = model._params
    path = model.target(params, base=model.base_measure(params))
    result = AIS(CHAINS, TEMPERATURES).run(path, stream(seed, Purpose.PARTITION))
    mean = -float(model.energy(T).mean())
    low, high = (mean - edge for edge in reversed(result.interval))
    return mean - result.log_partition, 0.5 * (high - low)


def machines(n):
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=n, threads_per_worker=1, dashboard_address=":0", memory_limit=0, processes=True
    )


# ---------------------------------------------------------------- speed and its model


def speed(client, batch: int, sync_every: int, updates: int) -> float:
    """Seconds of an update: the median of five epochs."""
    import numpy as np

    from energyscape import distributed
    from energyscape.models import RBM
    from energyscape.trainers import PCD

    X = (np.random.default_rng(0).random((batch * updates, 784)) < 0.15).astype(np.float32)
    trainer = PCD(n_epochs=6, batch_size=batch, learning_rate=0.05, n_chains=batch)
    model = RBM(H, trainer=trainer, random_state=0)
    if client is None:
        model.fit(X)
    else:
        distributed.fit(model, X, client, sync_every=sync_every)
    return statistics.median(model.history_["seconds"][1:]) / updates


def predicted(compute: dict[int, float], batch: int, workers: int, sync_every: int, cores: int):
    """docs/scaling.md: seconds of an update from those of the parts and the cost of a sum."""
    sums = 0.0
    if workers > 1:
        cost = json.loads((HERE / "results" / "allreduce.json").read_text())
        latency, per_byte, _ = cost["fit"][f"energyscape, {workers}"]
        sums = latency + per_byte * BYTES
    crowd = max(1.0, workers / cores)  # processes that share a core take turns
    return compute[batch // workers] * crowd + sums / sync_every


def extrapolated() -> list[list[str]]:
    """docs/scaling.md: an epoch over 10⁹ patches by up to 1000 workers. Nobody measured this."""
    rows = []
    for workers in (1, 10, 100, 1000):
        rounds = math.ceil(math.log2(workers)) if workers > 1 else 0
        pairs = rounds * (NET_LATENCY + PATCH_BYTES / NET_BANDWIDTH)
        ring = 2 * (workers - 1) * (NET_LATENCY + PATCH_BYTES / workers / NET_BANDWIDTH)
        for each, every in ((100, 1), (100, 10), (1000, 1), (1000, 10)):
            compute = each * PATCH_FLOPS / CORE_FLOPS
            update = compute + min(pairs, ring) / every
            hours = 1e9 / (each * workers) * update / 3600
            rows.append(
                [
                    f"{workers:,}",
                    f"{each * workers:,}",
                    every,
                    f"{1e3 * compute:.1f}",
                    f"{1e3 * min(pairs, ring) / every:.1f}",
                    f"{100 * compute / update:.0f} %",
                    f"{hours:.2g}" if hours > 0.1 else f"{60 * hours:.2g} min",
                    f"{hours * workers:.0f}",
                ]
            )
    return rows


# ---------------------------------------------------------------- a lost worker


def lost(X) -> dict[str, float]:
    """A worker killed in the middle of epoch k: epochs done then, and epochs in the checkpoint."""
    from distributed import Client

    import energyscape
    from energyscape import distributed
    from energyscape.callbacks import Checkpoint
    from energyscape.errors import WorkerLostError
    from energyscape.models import RBM
    from energyscape.trainers import PCD

    with tempfile.TemporaryDirectory() as folder, machines(2) as cluster, Client(cluster) as client:
        path = Path(folder) / "rbm.h5"
        seen = []
        trainer = PCD(n_epochs=100, callbacks=[Checkpoint(path, every=2)])
        victim = client.run(os.getpid)[sorted(client.nthreads())[1]]

        def kill():
            while not path.exists():
                time.sleep(0.01)
            time.sleep(3.0)
            seen.append(time.time())
            os.kill(victim, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            distributed.fit(RBM(100, trainer=trainer, random_state=0), X, client)
        except WorkerLostError as error:
            noticed, words = time.time() - seen[0], str(error)
        killer.join()
        kept = energyscape.load(path)
        return {"epoch": kept.n_iter_, "seconds": noticed, "words": words.replace(folder, "…")}


def model_part(chosen) -> None:
    from distributed import Client

    from energyscape.data import binarize, load_mnist

    X, T = load_mnist("train")[0], binarize(load_mnist("test")[0], 0)
    record = {"gradients": gradients(binarize(X[:400], 0))}
    text = [
        f"The sums of an update of RBM({H}) on 400 rows and chains, by one process and by workers "
        "over sockets with the same rows and noise: largest difference over the largest entry, and "
        "whether all workers have the same bits.",
        table(
            ["strategy", "dtype", "workers", "difference", "same bits"],
            [
                [s, d, w, f"{e:.1e}", "yes" if same else "**no**"]
                for s, d, w, e, same in record["gradients"]
            ],
        ),
    ]
    runs = [
        ("one process", 0, 1),
        ("2 workers", 2, 1),
        ("2 workers", 2, 10),
        ("4 workers", 4, 10),
    ]
    rows, values = [], {}
    for name, size, every in runs:
        found = []
        for seed in range(SEEDS):
            if size:
                with machines(size) as cluster, Client(cluster) as client:
                    model = trained(client, X, every, seed)
            else:
                model = trained(None, X, every, seed)
            found.append(likelihood(model, T, seed))
        values[f"{size} {every}"] = found
        mean = statistics.fmean(value for value, _ in found)
        rows.append(
            [
                name,
                every if size else "",
                ", ".join(f"{value:.2f} ± {half:.2f}" for value, half in found),
                f"{mean - statistics.fmean(v for v, _ in values['0 1']):+.2f}",
            ]
        )
    record["likelihood"] = values
    text += [
        f"Mean test log-likelihood on binarised MNIST after {EPOCHS} epochs of PCD-1 (batches of "
        "100, 200 chains, learning rate 0.2 falling to 0, averages of the last tenth), "
        f"{SEEDS} seeds; AIS with {CHAINS} chains and {TEMPERATURES:,} temperatures, "
        "95 % intervals. Wanted: within 0.5 nat of the single process with a sum every ten "
        "updates.",
        table(["who", "sync_every", "log-likelihood (nats)", "difference"], rows),
    ]
    record["lost"] = lost(binarize(X[:20_000], 0))
    text.append(
        f"A worker killed three seconds after the first checkpoint (every two epochs): the fit "
        f"ended {record['lost']['seconds']:.1f} s later with “{record['lost']['words']}”; the "
        f"checkpoint has epoch {record['lost']['epoch']}."
    )
    assert all(math.isfinite(v) for found in values.values() for v, _ in found)
    assert record["lost"]["epoch"] % 2 == 0
    write(chosen, "cluster_model", "Fits that workers share", "\n\n".join(text), record)


def speed_part(chosen) -> None:
    from distributed import Client

    cores = os.cpu_count() or 1
    compute = {
        batch: speed(None, batch, 1, max(20, 10_000 // batch))
        for batch in (25, 50, 100, 250, 500, 1000)
    }
    rows, speeds = [], {}
    for size in (1, 2, 4):
        with machines(size) as cluster, Client(cluster) as client:
            for batch, every in ((100, 1), (100, 10), (1000, 1), (1000, 10)):
                if size == 1 and every > 1:
                    continue
                found = speed(client, batch, every, max(20, 20_000 // batch))
                model = predicted(compute, batch, size, every, cores)
                speeds[f"{size} {batch} {every}"] = [found, model]
                rows.append(
                    [
                        size,
                        batch,
                        every,
                        f"{1e3 * found:.2f}",
                        f"{1e3 * model:.2f}",
                        f"{found / model:.2f}",
                        f"{compute[batch] / found:.2f}",
                    ]
                )
    text = [
        f"Milliseconds of an update of RBM({H}), PCD-1, one thread each, on this machine's {cores} "
        "cores: measured, by the cost model of docs/scaling.md (from the time of one process at "
        "each worker's share of the batch, and of a sum alone), their ratio, and the speed-up over "
        "one process without a cluster. Four workers share two cores.",
        table(["workers", "batch", "sync_every", "measured", "model", "ratio", "speed-up"], rows),
        "**Extrapolated, not measured**: an epoch of PCD-1 over 10⁹ patches of 16×16 pixels by an "
        "RBM of 1024 units, one core a worker of 40 GFLOP/s, 10 Gbit/s, 50 µs a message; sums by "
        "pairs or around the ring, whichever is quicker. Milliseconds an update.",
        table(
            ["workers", "batch", "sync_every", "compute", "sum", "busy", "hours", "core hours"],
            extrapolated(),
        ),
    ]
    record = {"compute": compute, "speed": speeds}
    write(chosen, "cluster_speed", "What workers gain", "\n\n".join(text), record)


PARTS = {"model": model_part, "speed": speed_part}


def main() -> None:
    chosen = options(__doc__, threads=1, part={"choices": tuple(PARTS), "required": True})
    PARTS[chosen.part](chosen)


if __name__ == "__main__":
    main()
