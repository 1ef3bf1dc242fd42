"""How much quicker an encoder is than the inference that it stands for.

    python benchmarks/encoder_speed.py --threads 1

Patches, atoms and λ of `sparse_speed.py`. `PSD` with that dictionary and a shrinkage encoder that
`Prediction` taught in 5 epochs of 50,000 patches; both ways to a code go through ``transform``. Ten
rounds in an order that rotates, each contender in its own process, on another 10,000 patches
(scikit-learn: 200, of LARS 50). Budget: 30 minutes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from functools import partial
from typing import Any

from common import options, table, write
from gated_filters import verdict
from sparse_speed import ATOMS, OUT, ROWS, kept, make_problem, solve, spread

SHARES, EPOCHS, WANTED = (0.5, 0.2, 0.05), 5, 100
EXACT = {f"exact, {tol}": float(tol) for tol in ("1e-3", "1e-4", "1e-6")}
PEERS = {"lasso_cd": 200, "lasso_lars": 50}  # rows of a round
NAMES = ("encoder", "product alone", *EXACT, *PEERS)


def model_file(share: float) -> Any:
    return OUT / f"encoder_speed_{share}.h5"


def teach(rows: int) -> dict[float, float]:
    """Models in files; how far their encoders are from codes of rows they have not seen."""
    import numpy as np

    from energyscape.models import PSD
    from energyscape.penalties import L1
    from energyscape.trainers import Prediction

    stored, away = np.load(kept(rows)), {}
    for share in SHARES:
        lam = share * float(stored["largest"])
        settings = {"dictionary": stored["D"].T, "train_dictionary": False, "joint": False}
        model = PSD(ATOMS, penalty=L1(lam), **settings, random_state=0)
        model.set_params(trainer=Prediction(n_epochs=EPOCHS)).fit(stored["train"])
        model.save(model_file(share))
        guess, h = model.transform(stored["test"]), model.set_params(exact=True).transform
        h = h(stored["test"])
        away[share] = float(((guess - h) ** 2).sum() / (h**2).sum())
    return away


def product(D: Any, rows: Any) -> Any:
    return rows @ D


def code(name: str, chosen: Any) -> list[float]:
    """Microseconds a row at each λ."""
    import numpy as np

    import energyscape

    stored, part, found = np.load(kept(chosen.rows)), chosen.rows // chosen.rounds, []
    x = stored["X"][chosen.turn * part :][: min(part, PEERS.get(name, part))]
    D, wide = stored["D"], np.ascontiguousarray(stored["D"].astype(np.float64))
    for share in SHARES:
        model = energyscape.load(model_file(share))
        model.set_params(exact=name in EXACT, tol=EXACT.get(name, model.tol))
        lam = share * float(stored["largest"])
        if name in PEERS:
            x = x.astype(np.float64)
            run = partial(solve, name, wide, lam=lam)
        elif name == "product alone":
            run = partial(product, D)
        else:
            run = model.transform
        run(x)  # a first call, in which memory is touched for the first time, is not counted
        start = time.perf_counter()
        run(x)
        found.append(1e6 * (time.perf_counter() - start) / len(x))
    return found


def measure(chosen: Any, name: str, turn: int) -> Any:
    """What a process of its own says."""
    words = {"contender": name, "turn": turn, "threads": chosen.threads}
    words |= {key: getattr(chosen, key) for key in ("rows", "rounds")}
    run = subprocess.run(
        [sys.executable, __file__, *(w for k, v in words.items() for w in (f"--{k}", str(v)))],
        env=os.environ | {"OMP_NUM_THREADS": str(chosen.threads)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    chosen = options(
        __doc__,
        threads=1,
        rows={"type": int, "default": ROWS, "help": "other than the default: a trial, not written"},
        rounds={"type": int, "default": 10},
        contender={"help": "run this one and print what it took"},
        turn={"type": int, "default": 0},
    )
    if chosen.contender:
        warnings.simplefilter("ignore")  # of convergence: peers at their own tolerance
        print(json.dumps(code(chosen.contender, chosen)))
        return
    chosen.dry |= chosen.rows != ROWS
    if not kept(chosen.rows).exists():
        make_problem(chosen.rows)
    away = teach(chosen.rows)
    runs: dict[str, Any] = {name: [] for name in NAMES}
    for turn in range(chosen.rounds):
        k = turn % len(NAMES)
        for name in NAMES[k:] + NAMES[:k]:
            runs[name].append(measure(chosen, name, turn))
    lines, said = [], []
    for i, share in enumerate(SHARES):
        for name, found in runs.items():
            us = [r[i] for r in found]
            over = [a / b[i] for a, b in zip(us, runs["encoder"], strict=True)]
            lines.append([share, name, f"{statistics.median(us):.2f}", f"{min(us):.2f}"])
            lines[-1].append(spread(over))
            if name == "exact, 1e-4":
                ratio = statistics.median(over)
                said.append(f"{ratio:.0f} at λ = {share} ({verdict(ratio >= WANTED)})")
    errors = ", ".join(f"{100 * error:.0f} % at {share}" for share, error in away.items())
    text = (
        f"{chosen.rounds} rounds of {chosen.rows // chosen.rounds:,} rows, 144 features, {ATOMS} "
        "atoms, float32 (scikit-learn: float64, 200 rows, of LARS 50, at its own tolerance); λ "
        "over the median λ_max; microseconds a row. The product alone is x W, which nothing that "
        "looks at every row with every atom can do without. Squared error of the encoder's codes "
        f"over the squared size of exact ones: {errors}.\n\n"
        + table(["λ", "", "median µs", "least µs", "over the encoder's"], lines)
        + f"\n\nTarget: ≥ {WANTED} times as quick as exact inference (ours, gap 1e-4): "
        + ", ".join(said)
        + "."
    )
    write(chosen, "encoder_speed", "An encoder instead of inference", text, {"runs": runs} | away)


if __name__ == "__main__":
    main()
