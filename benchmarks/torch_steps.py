"""Updates beside the same in plain PyTorch: RBM, mPoT, auto-encoder, PSD; at one and two threads.

    python benchmarks/torch_steps.py

Every contender runs in its own process, ten rounds, in an order that rotates; ratios are those of
the two of a round. PyTorch (`benchmarks/.venv`, see step_time.py) is written both by hand and with
autograd where that says something, and the quicker one counts.

RBM and auto-encoder are those of step_time.py and autoencoder_step.py. The mPoT is that of
gated_step.py with a learned P; PyTorch's sees rows that are white already, and so saves our two
products with a whitening. PSD: 144 features, 256 atoms, 100 rows, shrinkage encoder; ours infers
codes until the duality gap of each row is 1e-4 (median iterations are told), PyTorch makes as many
iterations of FISTA for all rows and knows no gap; in a second pair it goes on until the gap of
every row is that, too. Budget: 20 minutes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import autoencoder_step
import gated_step
import step_time
from common import Clock, options, table, write

D, M, BATCH, UPDATES, ALPHA = 144, 256, 100, 100, 1.0
ROUNDS = 10


# ---------------------------------------------------------------- mPoT, seconds per update


def our_mpot() -> float:
    """The best epoch of a few."""
    gated_step.PAIRS = 4
    return min(gated_step.pairs(True)["ours"]) / 1e3


def torch_mpot(by_hand: bool) -> float:
    """PCD, chains moved by HMC; filters of equal length, P >= 0 with columns that sum to 1,
    averaged parameters, a step size that follows the acceptance."""
    import time

    import torch

    d, k, m, n = gated_step.D, gated_step.FILTERS, gated_step.MEANS, gated_step.BATCH
    torch.manual_seed(0)
    count = n * gated_step.UPDATES
    rows = torch.randn(count, d) / (torch.rand(count, 1) + 0.5)
    params = {
        "C": 0.1 * torch.randn(d, k),
        "P": torch.eye(k),
        "a": torch.zeros(k),
        "W": 0.05 * torch.randn(d, m),
        "c": torch.full((m,), -2.0),
        "b": torch.zeros(d),
    }
    averages = {name: value.clone() for name, value in params.items()}
    precision, step = 1.0 / 16, 0.05

    def energy(x: Any, p: Any) -> Any:
        z = (0.5 * (x @ p["C"]) ** 2) @ p["P"]
        own = 0.5 * precision * (x * x).sum(1) - x @ p["b"]
        units = torch.log1p(z) @ torch.exp(p["a"])
        return own + units - torch.nn.functional.softplus(x @ p["W"] + p["c"]).sum(1)

    def slope(x: Any) -> Any:
        p = params
        if not by_hand:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                return torch.autograd.grad(energy(x, p).sum(), x)[0]
        r = x @ p["C"]
        pull = (torch.exp(p["a"]) / (1 + (0.5 * r * r) @ p["P"])) @ p["P"].T
        grad = torch.addmm(precision * x - p["b"], pull.mul_(r), p["C"].T)
        return grad.addmm_(torch.sigmoid(torch.addmm(p["c"], x, p["W"])), p["W"].T, alpha=-1)

    def hmc(x: Any, step: float) -> tuple[Any, float]:
        q, start = torch.randn_like(x), energy(x, params)
        before, y = 0.5 * (q * q).sum(1), x.clone()
        q -= 0.5 * step * slope(y)
        for i in range(gated_step.LEAPS):
            y += step * q
            q -= (step if i < gated_step.LEAPS - 1 else 0.5 * step) * slope(y)
        change = energy(y, params) + 0.5 * (q * q).sum(1) - start - before
        accepted = torch.rand(len(x)) < torch.exp(-change)
        return torch.where(accepted[:, None], y, x), float(accepted.float().mean())

    def gradients(x: Any, w: Any) -> dict[str, Any]:
        p, w = params, w[:, None]
        r, gamma = x @ p["C"], torch.exp(p["a"])
        half = 0.5 * r * r
        z = half @ p["P"]
        pull = gamma / (1 + z)
        rates = torch.sigmoid(torch.addmm(p["c"], x, p["W"])) * w
        return {
            "C": x.T @ ((pull @ p["P"].T) * r * w),
            "P": half.T @ (pull * w),
            "a": (torch.log1p(z) * w).sum(0) * gamma,
            "W": -(x.T @ rates),
            "c": -rates.sum(0),
            "b": -(x * w).sum(0),
        }

    chains = rows[:n].clone()
    weights = torch.cat([torch.full((n,), 1.0 / n), torch.full((n,), -1.0 / n)])
    times = []
    with torch.no_grad():
        for _ in range(6):
            start = time.perf_counter()
            for part in torch.randperm(count).split(n):
                chains, rate = hmc(chains, step)
                step *= 1.02 if rate > 0.9 else 0.98
                grads = gradients(torch.cat([rows[part], chains]), weights)
                for name, value in params.items():
                    value.add_(grads[name], alpha=-0.01)
                lengths = params["C"].norm(dim=0)
                params["C"] *= lengths.mean() / lengths
                params["P"].clamp_(min=0).div_(params["P"].sum(0))
                for name, value in averages.items():
                    value.lerp_(params[name], 0.01)
            times.append((time.perf_counter() - start) / gated_step.UPDATES)
    return min(times[1:])


# ---------------------------------------------------------------- PSD


def sparse_rows() -> Any:
    """Mixtures of a tenth of as many atoms as are learned, and noise."""
    import numpy as np

    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((M, D))
    atoms /= np.sqrt((atoms * atoms).sum(axis=1, keepdims=True))
    n = BATCH * UPDATES
    z = rng.laplace(size=(n, M)) * (rng.random((n, M)) < 0.1)
    return (z @ atoms + 0.05 * rng.standard_normal((n, D))).astype(np.float32)


def our_psd() -> dict[str, float]:
    """Seconds of an update and iterations of inference, the best epoch after the first."""
    from roofline import Iterations

    from energyscape.models import PSD
    from energyscape.trainers import EnergyLoss

    counted, made = Iterations(), []
    trainer = EnergyLoss(
        n_epochs=4,
        batch_size=BATCH,
        learning_rate=0.1,
        callbacks=[lambda *told: made.append(counted())],
    )
    model = PSD(M, alpha=ALPHA, trainer=trainer, random_state=0).fit(sparse_rows())
    seconds = min(model.history_["seconds"][1:]) / UPDATES
    return {"seconds": seconds, "iterations": statistics.median(made[1:])}


def torch_psd(by_hand: bool, iterations: int, tol: float = 0.0) -> float:
    """Codes by FISTA from the encoder's on; a step of the atoms, which are normalised, and of the
    encoder. The largest eigenvalue by power iterations that go on from the last update. With a
    ``tol`` all rows go on until each has that duality gap, which is looked at as often as ours."""
    import time

    import torch
    from torch.nn import functional as F

    torch.manual_seed(0)
    X = torch.from_numpy(sparse_rows())
    atoms = F.normalize(X[torch.randperm(len(X))[:M]]).T.contiguous()
    encoder = {"W": 0.1 * atoms.clone(), "c": torch.zeros(M), "theta": torch.full((M,), 0.05)}
    vector, rate = torch.randn(M), 0.1 / BATCH
    lam = 0.2 * float((X @ atoms).abs().max(dim=1).values.median())  # as our default is
    times = []

    def shrink(v: Any, t: Any) -> Any:
        return v - torch.clamp(v, -t, t)

    def gap(x: Any, f: Any, h: Any) -> float:
        rest, away = torch.addmm(x, h, atoms.T, beta=1, alpha=-1), f - h
        q = torch.addmm(away, rest, atoms, beta=ALPHA)
        scale = lam / q.abs().max(dim=1).values.clamp(min=lam)
        squares = rest.square().sum(1) + ALPHA * away.square().sum(1)
        paid = lam * h.abs().sum(1) - (h * q).sum(1) * scale
        whole = x.square().sum(1) + ALPHA * f.square().sum(1)
        return float(((squares * (1 - scale) ** 2 + 2 * paid) / whole).max())

    def infer(x: Any, f: Any, vector: Any) -> tuple[Any, Any]:
        gram = atoms.T @ atoms
        gram.diagonal().add_(ALPHA)
        for _ in range(3):
            vector = F.normalize(gram @ vector, dim=0)
        step = 1 / (1.05 * float(vector @ (gram @ vector)))
        b = torch.addmm(f, x, atoms, beta=ALPHA).mul_(step)
        S = torch.eye(M).sub_(gram, alpha=step)
        h, y, t = f, f, 1.0
        for i in range(1000 if tol else iterations):
            if tol and i % 10 == 0 and gap(x, f, h) <= tol:
                break
            new = shrink(torch.addmm(b, y, S), lam * step)
            following = 0.5 * (1 + (1 + 4 * t * t) ** 0.5)
            y = torch.add(new, new - h, alpha=(t - 1) / following)
            h, t = new, following
        return h, vector

    for _ in range(4):
        start = time.perf_counter()
        for part in torch.randperm(len(X)).split(BATCH):
            x = X[part]
            with torch.set_grad_enabled(not by_hand):
                leaves = {k: v.detach().requires_grad_(not by_hand) for k, v in encoder.items()}
                u = torch.addmm(leaves["c"], x, leaves["W"])
                f = torch.sign(u) * F.relu(torch.abs(u) - leaves["theta"])
            with torch.no_grad():
                h, vector = infer(x, f, vector)
                rest = torch.addmm(x, h, atoms.T, beta=-1)
                away = f - h
                if by_hand:
                    du = away * (torch.abs(u) > leaves["theta"])
                    grads = {"W": x.T @ du, "c": du.sum(0), "theta": -(torch.sign(u) * du).sum(0)}
                atoms.addmm_(rest.T, h, alpha=-rate)
                atoms.div_(atoms.norm(dim=0))
            if not by_hand:
                (0.5 * ALPHA * (f - h).square().sum()).backward()
                grads = {k: leaves[k].grad for k in leaves}
            with torch.no_grad():
                for name, value in encoder.items():
                    value.add_(grads[name], alpha=-rate)
                encoder["theta"].abs_()
        times.append((time.perf_counter() - start) / UPDATES)
    return min(times[1:])


# ---------------------------------------------------------------- rounds

PAIRS: dict[str, dict[str, Any]] = {
    "RBM": {
        "ours": lambda i: step_time.ours("defaults"),
        "PyTorch, by hand": lambda i: step_time.pytorch(),
    },
    "mPoT": {
        "ours": lambda i: our_mpot(),
        "PyTorch, by hand": lambda i: torch_mpot(True),
        "PyTorch, autograd": lambda i: torch_mpot(False),
    },
    "auto-encoder": {
        "ours": lambda i: autoencoder_step.ours("squared"),
        "PyTorch, by hand": lambda i: autoencoder_step.by_hand("squared"),
        "PyTorch, autograd": lambda i: autoencoder_step.autograd("squared"),
    },
    "PSD": {
        "ours": lambda i: our_psd(),
        "PyTorch, by hand": lambda i: torch_psd(True, i),
        "PyTorch, autograd": lambda i: torch_psd(False, i),
    },
    "PSD to the same gap": {
        "ours": lambda i: our_psd(),
        "PyTorch, by hand": lambda i: torch_psd(True, i, 1e-4),
    },
}


def measure(pair: str, who: str, threads: int, iterations: int) -> dict[str, float]:
    python = step_time.peers_python() if who != "ours" else sys.executable
    variables = {f"{lib}_NUM_THREADS": str(threads) for lib in ("OMP", "OPENBLAS", "MKL")}
    words = ["--contender", f"{pair}/{who}", "--iterations", str(iterations)]
    said = subprocess.run(
        [python, __file__, *words, "--threads", str(threads)],
        env=os.environ | variables | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    if said.returncode:
        raise RuntimeError(f"{pair}, {who} failed:\n{said.stderr[-2000:]}")
    return json.loads(said.stdout.splitlines()[-1])


def rounds(pair: str, threads: int, count: int) -> dict[str, Any]:
    """Milliseconds of every round by contender; inference of PSD in as many iterations as ours."""
    names, found = list(PAIRS[pair]), {name: list[float]() for name in PAIRS[pair]}
    made = 1
    if pair == "PSD":
        made = round(measure(pair, "ours", threads, 1)["iterations"])
    for turn in range(count):
        k = turn % len(names)
        for name in names[k:] + names[:k]:
            found[name].append(1e3 * measure(pair, name, threads, made)["seconds"])
    return {"milliseconds": found, "iterations": made if pair == "PSD" else None}


def main() -> None:
    chosen = options(
        __doc__,
        contender={"help": "run this one and print its time"},
        iterations={"type": int, "default": 1},
        rounds={"type": int, "default": ROUNDS},
    )
    if chosen.contender:
        pair, who = chosen.contender.split("/")
        found = PAIRS[pair][who](chosen.iterations)
        print(json.dumps(found if isinstance(found, dict) else {"seconds": found}))
        return
    whole, lines, record, slower = Clock(), [], {}, []
    for threads in (1, 2):
        for pair in PAIRS:
            found = rounds(pair, threads, chosen.rounds)
            times = found["milliseconds"]
            record[f"{pair}, {threads} thread(s)"] = found
            theirs = min((n for n in times if n != "ours"), key=lambda n: min(times[n]))
            ratios = [b / a for a, b in zip(times["ours"], times[theirs], strict=True)]
            ratio, least = statistics.median(ratios), min(times[theirs]) / min(times["ours"])
            note = "" if found["iterations"] is None else f" ({found['iterations']} iterations)"
            lines.append(
                [
                    threads,
                    pair + note,
                    *(
                        f"{statistics.median(times[n]):.2f} ({min(times[n]):.2f})"
                        for n in ("ours", theirs)
                    ),
                    theirs.split(", ")[1],
                    f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                    f"{least:.2f}",
                ]
            )
            print(lines[-1], flush=True)
            if min(ratio, least) < 1:
                slower.append(f"{pair} at {threads} thread(s)")
    header = ["threads", "update", "ours, ms", "PyTorch, ms", "", "theirs / ours", "of the least"]
    verdict = "met by all" if not slower else "**missed** by " + ", ".join(slower)
    text = (
        f"{chosen.rounds} rounds, every contender in its own process, order rotating: medians "
        "(least), ratios of the two of a round (least to greatest), and of the least times. The "
        "quicker of PyTorch by hand and by autograd.\n\n"
        + table(header, lines)
        + f"\n\nTarget: ahead of PyTorch, at one thread and at two: {verdict}. {whole():.0f} s."
    )
    write(chosen, "torch_steps", "Updates beside plain PyTorch, float32", text, record)


if __name__ == "__main__":
    main()
