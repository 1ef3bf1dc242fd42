"""Time of one PCD-1 update of a 784×500 RBM, batch 100: ours, the floor and the peers.

Every contender runs in its own process, ten rounds, in an order that rotates; medians and minima
of the time per update. The peers live in `benchmarks/.venv`, made from peers.txt at the first run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

D, H, BATCH, UPDATES = 784, 500, 100, 200
HERE = Path(__file__).parent
OURS = ("floor", "bare", "defaults", "momentum and L2")
PEERS = ("scikit-learn float64", "scikit-learn float32", "PyTorch", "rbms")


def bits(dtype: str = "float32"):
    import numpy as np

    rng = np.random.default_rng(0)
    return (rng.random((BATCH * UPDATES, D)) < 0.15).astype(dtype)


# ---------------------------------------------------------------- contenders: seconds per update


def floor() -> float:
    """The five matrix products of a step, each by itself, into arrays that are there."""
    import time

    import numpy as np

    rng = np.random.default_rng(0)
    W = rng.standard_normal((D, H)).astype(np.float32)
    v, v2, h = (
        rng.standard_normal(s).astype(np.float32) for s in ((BATCH, D), (BATCH, D), (BATCH, H))
    )
    a, b, g = np.empty((BATCH, H), np.float32), np.empty((BATCH, D), np.float32), np.empty_like(W)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(UPDATES):
            np.matmul(v, W, out=a)
            np.matmul(h, W.T, out=b)
            np.matmul(v2, W, out=a)
            np.matmul(v.T, h, out=g)
            np.matmul(v2.T, h, out=g)
        times.append((time.perf_counter() - start) / UPDATES)
    return min(times[1:])


def ours(kind: str) -> float:
    """Seconds per update as recorded in the history, best epoch after the first."""
    from energyscape.models import RBM
    from energyscape.optim import SGD
    from energyscape.trainers import PCD

    optimizer = SGD(0.05, momentum=0.5, l2=1e-4) if kind == "momentum and L2" else SGD(0.05)
    trainer = PCD(n_epochs=3, batch_size=BATCH, optimizer=optimizer)
    model = RBM(H, centered=kind != "bare", trainer=trainer, random_state=0).fit(bits())
    return min(model.history_["seconds"][1:]) / UPDATES


def scikit_learn(dtype: str) -> float:
    import time

    from sklearn.neural_network import BernoulliRBM

    X = bits(dtype)
    times = []
    for _ in range(3):
        model = BernoulliRBM(H, learning_rate=0.05, batch_size=BATCH, n_iter=1, random_state=0)
        start = time.perf_counter()
        model.fit(X)
        times.append((time.perf_counter() - start) / UPDATES)
    return min(times[1:])


def pytorch() -> float:
    """Plain PCD-1 with in-place updates and shuffling."""
    import time

    import torch

    torch.manual_seed(0)
    X = torch.from_numpy(bits())
    W, b, c = 0.01 * torch.randn(D, H), torch.zeros(D), torch.zeros(H)
    chain = torch.bernoulli(torch.full((BATCH, H), 0.5))
    times = []
    with torch.no_grad():
        for _ in range(3):
            start = time.perf_counter()
            for rows in torch.randperm(len(X)).split(BATCH):
                x = X[rows]
                p = torch.sigmoid(torch.addmm(c, x, W))
                v = torch.bernoulli(torch.sigmoid(torch.addmm(b, chain, W.T)))
                q = torch.sigmoid(torch.addmm(c, v, W))
                chain = torch.bernoulli(q)
                W.addmm_(x.T, p, alpha=0.05 / BATCH).addmm_(v.T, q, alpha=-0.05 / BATCH)
                b += 0.05 * (x.mean(0) - v.mean(0))
                c += 0.05 * (p.mean(0) - q.mean(0))
            times.append((time.perf_counter() - start) / UPDATES)
    return min(times[1:])


def rbms() -> float:
    """The update of rbms (its own loop rewrites an HDF5 file at every one; that is left out)."""
    import time

    import torch
    from rbms.bernoulli_bernoulli.classes import BBRBM
    from rbms.training.pcd import fit_batch_pcd

    torch.manual_seed(0)
    X, ones = torch.from_numpy(bits()), torch.ones(BATCH)
    params = BBRBM(0.01 * torch.randn(D, H), torch.zeros(D), torch.zeros(H))
    chains = params.init_chains(BATCH)
    for parameter in params.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.SGD(params.parameters(), lr=0.05, maximize=True)
    times = []
    with torch.no_grad():
        for _ in range(3):
            start = time.perf_counter()
            for rows in torch.randperm(len(X)).split(BATCH):
                optimizer.zero_grad(set_to_none=False)
                chains, _ = fit_batch_pcd((X[rows], ones), chains, params, 1, 1.0)
                optimizer.step()
            times.append((time.perf_counter() - start) / UPDATES)
    return min(times[1:])


CONTENDERS = {
    "floor": floor,
    "bare": lambda: ours("bare"),
    "defaults": lambda: ours("defaults"),
    "momentum and L2": lambda: ours("momentum and L2"),
    "scikit-learn float64": lambda: scikit_learn("float64"),
    "scikit-learn float32": lambda: scikit_learn("float32"),
    "PyTorch": pytorch,
    "rbms": rbms,
}


# ---------------------------------------------------------------- rounds


def peers_python() -> str:
    python = HERE / ".venv" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(HERE / ".venv")], check=True)
        install = [str(python), "-m", "pip", "install", "-q", "-r", str(HERE / "peers.txt")]
        subprocess.run(install, check=True)
    return str(python)


def measure(name: str, threads: int) -> float:
    python = sys.executable if name in OURS else peers_python()
    variables = {f"{lib}_NUM_THREADS": str(threads) for lib in ("OMP", "OPENBLAS", "MKL")}
    run = subprocess.run(
        [python, __file__, "--contender", name, "--threads", str(threads)],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(run.stdout.splitlines()[-1])["seconds"])


def main() -> None:
    from common import options, table, write

    chosen = options(
        __doc__,
        contender={"help": "run this one and print its time"},
        rounds={"type": int, "default": 10},
    )
    if chosen.contender:
        print(json.dumps({"seconds": CONTENDERS[chosen.contender]()}))
        return
    names, record, blocks = list(CONTENDERS), {}, []
    for threads in (1, 2):
        times: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(chosen.rounds):
            k = turn % len(names)
            for name in names[k:] + names[:k]:
                times[name].append(1e3 * measure(name, threads))
        median = {name: statistics.median(t) for name, t in times.items()}
        rows = [
            [
                name,
                f"{median[name]:.2f}",
                f"{min(t):.2f}",
                f"{median[name] / median['floor']:.2f}",
                f"{median[name] / median['defaults']:.2f}",
            ]
            for name, t in times.items()
        ]
        header = ["", "median ms", "least ms", "/ floor", "/ our defaults"]
        blocks.append(f"{threads} thread(s):\n\n{table(header, rows)}")
        record[f"{threads} threads"] = times
        bare, full, floor_ms = (median[n] for n in ("bare", "defaults", "floor"))
        limits = {1: (1.2, 1.35), 2: (1.4, 1.7)}[threads]
        blocks.append(
            f"Targets: bare ≤ {limits[0]} × floor: {bare / floor_ms:.2f}; defaults ≤ {limits[1]}: "
            f"{full / floor_ms:.2f}; scikit-learn ≥ 2 × slower on float64: "
            f"{median['scikit-learn float64'] / full:.2f}, ≥ 1.2 × on float32: "
            f"{median['scikit-learn float32'] / full:.2f}; PyTorch ≥ 1: "
            f"{median['PyTorch'] / full:.2f} (times our defaults; bare: "
            f"{median['PyTorch'] / bare:.2f})."
        )
    title = f"One PCD-1 update, {D}×{H}, batch {BATCH}, float32"
    text = (
        f"{chosen.rounds} rounds, each contender in its own process, order rotating. Floor: the "
        "five matrix products. GPU: not measured.\n\n" + "\n\n".join(blocks)
    )
    write(chosen, "step_time", title, text, record)


if __name__ == "__main__":
    main()
