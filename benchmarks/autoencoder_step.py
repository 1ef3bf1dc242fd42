"""Time of one update of a 784-500-784 auto-encoder, batch 100, float32: ours, the floor, PyTorch.

Tied weights, sigmoid codes, plain SGD. Every contender runs in its own process, ten rounds, in an
order that rotates; medians and minima of the time per update. PyTorch lives in `benchmarks/.venv`
(see step_time.py). Budget: 15 minutes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

D, H, BATCH, UPDATES = 784, 500, 100, 200
LOSSES = ("cross_entropy", "squared")
RATE = 0.001


def rows():
    import numpy as np

    return np.random.default_rng(0).random((BATCH * UPDATES, D), np.float32)


# ---------------------------------------------------------------- contenders: seconds per update


def floor() -> float:
    """Five matrix products into arrays that are there, and one streamed pass over each array that
    must be written: batch, code, reconstruction, both derivatives, weights."""
    import time

    import numpy as np

    rng = np.random.default_rng(0)
    W = rng.standard_normal((D, H)).astype(np.float32)
    x, r, da = (rng.random((BATCH, D), np.float32) for _ in range(3))
    h, dh = (rng.random((BATCH, H), np.float32) for _ in range(2))
    g, one = np.empty_like(W), np.float32(1)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(UPDATES):
            np.multiply(da, one, out=x)
            np.matmul(x, W, out=h)
            np.multiply(h, one, out=h)
            np.matmul(h, W.T, out=r)
            np.multiply(r, one, out=r)
            np.multiply(r, one, out=da)
            np.matmul(da, W, out=dh)
            np.multiply(dh, one, out=dh)
            np.matmul(x.T, dh, out=g)
            np.matmul(da.T, h, out=g)
            np.multiply(g, one, out=W)
            W[0, 0] = da[0, 0] = 0.5  # nothing overflows, nothing is a denormal
            da *= np.float32(0.01)
        times.append((time.perf_counter() - start) / UPDATES)
    return min(times[1:])


def ours(loss: str, denoising: bool = False) -> float:
    """Seconds per update as recorded in the history, best epoch after the first."""
    from energyscape.corruptions import Masking
    from energyscape.models.autoencoder import AutoEncoder
    from energyscape.trainers import Reconstruction

    trainer = Reconstruction(
        Masking(0.25) if denoising else None, n_epochs=3, batch_size=BATCH, learning_rate=RATE
    )
    model = AutoEncoder(H, loss=loss, trainer=trainer, random_state=0).fit(rows())
    return min(model.history_["seconds"][1:]) / UPDATES


def _torch_parameters():
    import torch

    torch.manual_seed(0)
    W, b, c = 0.01 * torch.randn(D, H), torch.zeros(D), torch.zeros(H)
    return torch.from_numpy(rows()), W, b, c


def autograd(loss: str) -> float:
    """As one writes it: functional layers, backward, torch.optim.SGD."""
    import time

    import torch
    from torch.nn import functional as F

    X, *parameters = _torch_parameters()
    W, b, c = (p.requires_grad_() for p in parameters)
    optimizer, times = torch.optim.SGD([W, b, c], lr=RATE), []
    for _ in range(3):
        start = time.perf_counter()
        for part in torch.randperm(len(X)).split(BATCH):
            x = X[part]
            a = torch.addmm(b, torch.sigmoid(torch.addmm(c, x, W)), W.T)
            if loss == "squared":
                value = ((a - x) ** 2).sum() / BATCH
            else:
                value = F.binary_cross_entropy_with_logits(a, x, reduction="sum") / BATCH
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        times.append((time.perf_counter() - start) / UPDATES)
    return min(times[1:])


def by_hand(loss: str) -> float:
    """The gradient written out, products added into W in place."""
    import time

    import torch

    X, W, b, c = _torch_parameters()
    times = []
    with torch.no_grad():
        for _ in range(3):
            start = time.perf_counter()
            for part in torch.randperm(len(X)).split(BATCH):
                x = X[part]
                h = torch.sigmoid(torch.addmm(c, x, W))
                a = torch.addmm(b, h, W.T)
                da = (a if loss == "squared" else torch.sigmoid(a)).sub_(x)
                dh = (da @ W).mul_(h).mul_(1 - h)
                step = -RATE / BATCH * (2 if loss == "squared" else 1)
                W.addmm_(x.T, dh, alpha=step).addmm_(da.T, h, alpha=step)
                b.add_(da.sum(0), alpha=step)
                c.add_(dh.sum(0), alpha=step)
            times.append((time.perf_counter() - start) / UPDATES)
    return min(times[1:])


CONTENDERS = {
    "floor": floor,
    **{f"ours, {loss}": lambda loss=loss: ours(loss) for loss in LOSSES},
    "ours, cross_entropy, masked": lambda: ours("cross_entropy", True),
    **{f"PyTorch autograd, {loss}": lambda loss=loss: autograd(loss) for loss in LOSSES},
    **{f"PyTorch by hand, {loss}": lambda loss=loss: by_hand(loss) for loss in LOSSES},
}


# ---------------------------------------------------------------- rounds


def measure(name: str, threads: int) -> float:
    from step_time import peers_python

    python = peers_python() if name.startswith("PyTorch") else sys.executable
    variables = {f"{lib}_NUM_THREADS": str(threads) for lib in ("OMP", "OPENBLAS", "MKL")}
    run = subprocess.run(
        [python, __file__, "--contender", name, "--threads", str(threads)],
        env=os.environ | variables | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(run.stdout.splitlines()[-1])["seconds"])


def main() -> None:
    from common import options, table, write

    chosen = options(
        __doc__,
        threads=1,
        contender={"help": "run this one and print its time"},
        rounds={"type": int, "default": 10},
    )
    if chosen.contender:
        print(json.dumps({"seconds": CONTENDERS[chosen.contender]()}))
        return
    names = list(CONTENDERS)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(chosen.rounds):
        k = turn % len(names)
        for name in names[k:] + names[:k]:
            times[name].append(1e3 * measure(name, chosen.threads))
    least = {name: min(t) for name, t in times.items()}
    cells = [
        [
            name,
            f"{statistics.median(t):.2f}",
            f"{least[name]:.2f}",
            f"{least[name] / least['floor']:.2f}",
        ]
        for name, t in times.items()
    ]
    lines = []
    for loss in LOSSES:
        own = least[f"ours, {loss}"]
        peers = {n: t / own for n, t in least.items() if n.startswith("PyTorch") and loss in n}
        lines.append(
            f"{loss}: {own / least['floor']:.2f} × floor (target ≤ 1.25); "
            + ", ".join(f"{n.split(',')[0]} takes {ratio:.2f} × ours" for n, ratio in peers.items())
            + " (target ≥ 1)."
        )
    text = (
        f"{chosen.rounds} rounds, each contender in its own process, order rotating; ratios are of "
        "the least times, because the machine is shared. Floor: five matrix products and one "
        "streamed pass over each array that must be written.\n\n"
        + table(["", "median ms", "least ms", "/ floor"], cells)
        + "\n\n"
        + "\n".join(lines)
    )
    title = f"One auto-encoder update, {D}-{H}-{D}, batch {BATCH}, float32"
    write(chosen, "autoencoder_step", title, text, {"milliseconds": times})


if __name__ == "__main__":
    main()
