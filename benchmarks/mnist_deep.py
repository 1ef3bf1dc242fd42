"""Classification of MNIST by features, and by networks fine-tuned from them.

One row at a time, by name: `python -m benchmarks.mnist_deep sdae3 --budget 30`. A model learns from
all 60,000 training rows without labels; then (features) scikit-learn's logistic regression takes
its codes, with C from 10,000 training rows held out, and (fine-tuned) `FineTunedClassifier` goes on
from its layers on all rows, with the settings of FINE, the same for every row of the table. 25
epochs were tried first, on SDAE-3 and DBN-3: 1.52 and 1.40 %, with half of the budget unused; 60
use it. Each run is added to results/mnist_deep.json; `--report` writes the block of RESULTS.md from
the newest run of each row. `--times 4` multiplies all epochs and the budget.

Budget: `--budget` CPU minutes are shared between pre-training and fine-tuning; both stop at the
epoch that finds their share spent, and the row says so.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from common import machine, options, table, write

KEPT = Path(__file__).resolve().parent / "results" / "mnist_deep.json"
HELD_OUT, GRID = 10_000, (0.1, 1.0, 10.0)

# What a row is; its layers, by the names of the table in `layer`; published test errors.
ROWS: dict[str, dict[str, Any]] = {
    "ae": {"what": "AutoEncoder", "layers": ["plain"], "published": "1.78 [from memory]"},
    "dae": {"what": "… denoising", "layers": ["masking"], "published": "1.57 [from memory]"},
    "cae": {"what": "… contractive", "layers": ["contractive"], "published": "1.14 [from memory]"},
    "satae": {"what": "… saturating", "layers": ["saturating"], "published": ""},
    "sparse": {"what": "… sparse (KL)", "layers": ["kl"], "published": ""},
    "ksparse": {
        "what": "… k-sparse, k = 25",
        "layers": ["k-sparse"],
        "published": "linear: 1.35 [from memory]",
    },
    "rbm": {"what": "RBM", "layers": ["rbm"], "published": "1.30 [from memory]"},
    "sae3": {"what": "SAE-3", "layers": ["plain"] * 3, "published": "1.40"},
    "sdae3": {"what": "SDAE-3", "layers": ["masking"] * 3, "published": "1.28"},
    "dbn3": {"what": "DBN-3", "layers": ["rbm"] * 3, "published": "1.24"},
    "dbm": {"what": "DBM, 500-1000", "layers": ["dbm"], "published": "0.95 [from memory]"},
}
UNITS = 1000  # of every layer but the DBM's
FINE = {"n_epochs": 60, "batch_size": 100, "rate": 0.1, "momentum": 0.9, "dropout": 0.2}


def layer(kind: str) -> Any:
    """The model of one layer, by the name of what keeps it from copying."""
    from energyscape.activations import TopK
    from energyscape.corruptions import Masking
    from energyscape.data import Binarize
    from energyscape.models import RBM, AutoEncoder
    from energyscape.models.deep_boltzmann import DeepBoltzmannMachine
    from energyscape.optim import Adam
    from energyscape.penalties import KL, Contractive, Saturating
    from energyscape.trainers import (
        PCD,
        Contraction,
        Denoising,
        Reconstruction,
        Saturation,
        Sparsity,
    )

    # Every layer but the DBM has UNITS units and learns for 30 epochs in batches of 100.
    fresh = {"batch_transform": Binarize()}
    steps = {"n_epochs": 30, "batch_size": 100, "optimizer": Adam(0.001)}
    units, entropy = UNITS, {"loss": "cross_entropy"}
    table: dict[str, Any] = {
        "plain": lambda: AutoEncoder(units, **entropy, trainer=Reconstruction(**steps)),
        "masking": lambda: AutoEncoder(units, **entropy, trainer=Denoising(Masking(0.25), **steps)),
        "contractive": lambda: AutoEncoder(
            units, **entropy, trainer=Contraction(Contractive(0.1), **steps)
        ),
        "saturating": lambda: AutoEncoder(
            units,
            activation="saturated_linear",
            **entropy,
            trainer=Saturation(Saturating(0.1), **steps),
        ),
        "kl": lambda: AutoEncoder(units, **entropy, trainer=Sparsity(KL(0.05, 0.1), **steps)),
        "k-sparse": lambda: AutoEncoder(
            units, activation=TopK(25), trainer=Reconstruction(**steps)
        ),
        "rbm": lambda: RBM(units, trainer=PCD(n_epochs=30, learning_rate=0.1, **fresh)),
        "dbm": lambda: DeepBoltzmannMachine(
            (500, 1000), trainer=PCD(n_epochs=100, learning_rate=0.05, n_chains=100, **fresh)
        ),
    }
    return table[kind]()


def model_of(name: str) -> Any:
    """The unsupervised model of a row."""
    from energyscape.models import DeepBeliefNet, StackedAutoEncoder

    layers = [layer(kind) for kind in ROWS[name]["layers"]]
    if len(layers) == 1:
        return layers[0].set_params(random_state=0)
    return (DeepBeliefNet if name == "dbn3" else StackedAutoEncoder)(layers, random_state=0)


class Budget:
    """A callback that stops when so many CPU minutes are spent since it was made."""

    def __init__(self, minutes: float) -> None:
        self.end, self.spent = time.process_time() + 60 * minutes, False

    def __call__(self, model: Any, state: Any, info: dict[str, float]) -> bool:
        self.spent = self.spent or time.process_time() > self.end
        return self.spent


def each_trainer(model: Any) -> list[Any]:
    return [part.trainer for part in getattr(model, "layers", [model])]


def linear(model: Any, data: Any) -> dict[str, float]:
    """Test error of a logistic regression on the codes, with C from the rows held out."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    (X, y), (T, z), held, kept = data
    H, G = model.transform(X), model.transform(T)

    def error(rows: Any, c: float, A: Any, b: Any) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = LogisticRegression(C=c, max_iter=200).fit(H[rows], y[rows])
        return 100 * float(1 - fitted.score(A, b))

    errors = {c: error(kept, c, H[held], y[held]) for c in GRID}
    best = min(errors, key=errors.__getitem__)
    return {"C": best, "held_out": errors[best], "test": error(slice(None), best, G, z)}


def fine_tuned(model: Any, data: Any, minutes: float, settings: dict[str, Any]) -> dict[str, Any]:
    """Test error of the network after its last epoch."""
    from sklearn.frozen import FrozenEstimator

    from energyscape.models import FineTunedClassifier
    from energyscape.optim import SGD
    from energyscape.trainers import Backpropagation

    (X, y), (T, z), *_ = data
    trainer = Backpropagation(
        dropout=settings["dropout"],
        n_epochs=settings["n_epochs"],
        batch_size=settings["batch_size"],
        optimizer=SGD(settings["rate"], momentum=settings["momentum"]),
        callbacks=[Budget(minutes)],
    )
    network = FineTunedClassifier(FrozenEstimator(model), trainer=trainer, random_state=0)
    network.fit(X, y)
    return {
        "epochs": network.n_iter_,
        "test": 100 * float(1 - network.score(T, z)),
        "cut": network.n_iter_ < settings["n_epochs"],
        **settings,
    }


def epochs(chosen: argparse.Namespace, usual: int) -> int:
    return 1 if chosen.quick else chosen.times * usual


def run(chosen: argparse.Namespace, name: str) -> dict[str, Any]:
    """One row, from the data to its errors and CPU minutes."""
    import numpy as np

    from energyscape.data import load_mnist

    (X, y), (T, z) = load_mnist("train"), load_mnist("test")
    n = min(chosen.rows, len(X))
    X, y, held_out = X[:n], y[:n], HELD_OUT * n // len(X)
    order = np.random.default_rng(0).permutation(n)
    data = (X, y), (T, z), np.sort(order[:held_out]), np.sort(order[held_out:])
    model = model_of(name)
    trainers = each_trainer(model)
    budget = chosen.times * chosen.budget
    for i, trainer in enumerate(trainers):
        stop = Budget(0.6 * budget * (i + 1) / len(trainers))
        trainer.set_params(callbacks=[stop], n_epochs=epochs(chosen, trainer.n_epochs))
    began = time.process_time()
    model.fit(X)
    cut = any(part.n_iter_ < part.trainer.n_epochs for part in getattr(model, "layers_", [model]))
    pretrained = time.process_time()
    features = linear(model, data)
    measured = time.process_time()
    settings = FINE | {"n_epochs": epochs(chosen, FINE["n_epochs"])}
    network = fine_tuned(model, data, 0.4 * budget, settings)
    ended = time.process_time()
    return {
        "row": name,
        "date": time.strftime("%Y-%m-%d"),
        "commit": chosen.commit,
        "machine": machine(),
        "threads": chosen.threads,
        "rows": n,
        "quick": chosen.quick,
        "times": chosen.times,
        "model": type(model).__name__,
        "trainers": [_without_callbacks(trainer) for trainer in trainers],
        "features": features | {"minutes": (measured - pretrained) / 60},
        "fine_tuned": network | {"minutes": (ended - measured) / 60},
        "pretraining": {"minutes": (pretrained - began) / 60, "cut": cut},
    }


def _without_callbacks(trainer: Any) -> str:
    from sklearn.base import clone

    return " ".join(repr(clone(trainer).set_params(callbacks=())).split())


def kept_runs() -> list[dict[str, Any]]:
    return json.loads(KEPT.read_text())["runs"] if KEPT.exists() else []


def report(chosen: argparse.Namespace) -> None:
    """The block of RESULTS.md: the newest run of each row on so many training rows."""
    runs = [run for run in kept_runs() if not run["quick"] and run["rows"] == chosen.rows]
    newest = {(run["row"], run.get("times", 1)): run for run in runs}
    more = [key for key in newest if key[1] > 1]
    lines = []
    for name, times in [*((name, 1) for name in ROWS), *more]:
        row, run = ROWS[name], newest.get((name, times))
        what = row["what"] + (f", {times} times the epochs" if times > 1 else "")
        if run is None:
            lines.append([what, "not run", "", "", row["published"], ""])
            continue
        parts = ("pretraining", "features", "fine_tuned")
        minutes = " + ".join(f"{run[part]['minutes']:.1f}" for part in parts)
        cut = run["pretraining"]["cut"] or run["fine_tuned"]["cut"]
        lines.append(
            [
                what,
                f"{run['features']['test']:.2f}",
                f"**{run['fine_tuned']['test']:.2f}**",
                run["fine_tuned"]["epochs"],
                row["published"],
                minutes + (" (cut by the budget)" if cut else ""),
            ]
        )
    header = ["", "linear on features", "fine-tuned", "epochs", "published", "CPU minutes"]
    made = ", ".join(sorted({r["commit"] for r in newest.values()}))
    text = (
        "Test errors in percent, one run each (at 1.3 % the standard error of one is 0.11: that "
        f"of 10,000 test images). One hidden layer of {UNITS} units, or three; published rows are "
        "those of Vincent et al. (2010), Rifai et al. (2011), Makhzani and Frey (2013), "
        "Salakhutdinov and Hinton (2009), fine-tuned unless they say linear. CPU minutes: "
        f"pre-training + linear + fine-tuning. {chosen.rows:,} rows; commits {made}.\n\n"
        f"{table(header, lines)}"
    )
    write(chosen, "mnist_deep", "MNIST, deep", text, {"runs": kept_runs()})


def main() -> None:
    names = [word for word in sys.argv[1:] if word in ROWS]
    sys.argv[1:] = [word for word in sys.argv[1:] if word not in ROWS]
    chosen = options(
        f"Rows by name ({', '.join(ROWS)}), or --report. {__doc__}",
        rows={"type": int, "default": 60_000, "help": "training rows"},
        budget={"type": float, "default": 60.0, "help": "CPU minutes of a row"},
        quick={"action": "store_true", "help": "one epoch of everything; not reported"},
        times={"type": int, "default": 1, "help": "multiplies epochs and budget"},
        report={"action": "store_true", "help": "write the block of RESULTS.md and stop"},
    )
    if chosen.report:
        report(chosen)
    elif not names:
        sys.exit(f"name rows ({', '.join(ROWS)}), or --report")
    for name in names:
        made = run(chosen, name)
        print(json.dumps(made, indent=1))
        if not chosen.dry:
            KEPT.write_text(json.dumps({"runs": [*kept_runs(), made]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
