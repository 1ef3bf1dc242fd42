"""Which model, by which strategy? `energyscape.compare` on digits and on patches.

    python benchmarks/compare.py

Digits: scikit-learn's 1,797 of 8×8, thresholded to bits, a quarter to test on; an RBM of 64 hidden
units, one of 16 (whose log Z is exact), a deep Boltzmann machine, by every strategy for bits.
Foreign rows are digits turned upside down. Patches: 16×16 pixels of log(1 + grey level), less their
mean, along 36 whitened components (as in `gated_likelihood`), 20,000 from the training images of
BSDS500 to train on, 2,000 from BSD68 to test on; five models by six strategies, and EM. Foreign
rows are Gaussian ones of the same covariance. Trainers are at their defaults but for their epochs,
which follow from the seconds of processor time that each pair gets. Budget: 30 minutes.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from common import HERE, Clock, options, write
from gated_patches import white_rows

SECONDS = {"digits": 6.0, "patches": 6.0}  # of processor time: others use the machine, too
SIDE, TRAIN, TEST, SEED = 16, 20_000, 2_000, 0


def seen(row: dict[str, Any]) -> None:
    """Say on stderr how far it is."""
    print(time.strftime("%X"), row["model"], row["trainer"], row["status"], file=sys.stderr)


def digits(seconds: float) -> Any:
    """A `Comparison` of models of bits."""
    import energyscape
    from energyscape import trainers
    from energyscape.data import load_digits, threshold
    from energyscape.models import RBM, DeepBoltzmannMachine
    from energyscape.samplers import AIS

    X, y = load_digits()
    X = threshold(X)
    turned = X[:, ::-1]
    names = (
        "MaximumLikelihood CD PCD FPCD NCE ConditionalNCE MarginLoss PseudoLikelihood "
        "RatioMatching MinimumProbabilityFlow"
    )
    models = {
        "RBM(64)": RBM(64),
        "RBM(16)": RBM(16),
        "DBM(64, 32)": DeepBoltzmannMachine((64, 32)),
    }
    strategies = {name: getattr(trainers, name)() for name in names.split()}
    given = {"seconds": seconds, "clock": time.process_time, "random_state": SEED}
    given |= {"foreign": turned, "image_shape": (8, 8), "callback": seen}
    return energyscape.compare(models, strategies, X, y, ais=AIS(100, 1000), **given)


def patches(seconds: float) -> tuple[Any, Any]:
    """A `Comparison` of models of reals, and the whitening."""
    import numpy as np

    import energyscape
    from energyscape import trainers
    from energyscape.models import GaussianMixture, GaussianRBM, MPoT, OvercompleteICA, PoT
    from energyscape.samplers import AIS

    X, T, white = white_rows(SIDE, 36, TRAIN, TEST)
    rng = np.random.default_rng(SEED)
    noise = T.mean(axis=0) + rng.standard_normal(T.shape) @ np.linalg.cholesky(np.cov(T.T)).T
    models = {
        "GaussianRBM(128)": GaussianRBM(128),
        "PoT(128)": PoT(128),
        "MPoT(128, 32)": MPoT(128, n_mean_components=32),
        "OvercompleteICA(128)": OvercompleteICA(128),
        "GaussianMixture(16)": GaussianMixture(16),
    }
    names = (
        "PCD ScoreMatching SlicedScoreMatching DenoisingScoreMatching ConditionalNCE NCE EM".split()
    )
    strategies = {name: getattr(trainers, name)() for name in names}
    given = {"seconds": seconds, "clock": time.process_time, "random_state": SEED}
    given |= {"X_test": T, "foreign": noise, "callback": seen}
    given |= {"ais": AIS(100, 300), "n_samples": 300, "n_steps": 100}
    return energyscape.compare(models, strategies, X, **given), white


def verdicts(bits: Any, reals: Any) -> str:
    """Orderings that the text leans on, seen in earlier runs; a run in which they fail says so."""

    def row(result: Any, model: str, trainer: str) -> dict[str, Any]:
        rows = [*result.rows, *result.references]
        return next(r for r in rows if (r["model"], r["trainer"]) == (model, trainer))

    found = {
        "PCD or FPCD has the best likelihood of digits": bits.best("log_probability")[0][1]
        in ("PCD", "FPCD"),
    }
    gaussian = row(reals, "Gaussian", "")
    pot = row(reals, "PoT(128)", "PCD")
    margin = pot["log_density_low"] - gaussian["log_density"]
    error = (pot["log_density_error"] ** 2 + gaussian["log_density_error"] ** 2) ** 0.5
    found["PoT by PCD is above the Gaussian by five errors"] = margin > 5 * error
    return "; ".join(
        f"{said}: {'holds' if holds else '**fails**'}" for said, holds in found.items()
    )


def main() -> None:
    chosen = options(__doc__, threads=1)
    clock, folder = Clock(), HERE.parent / "docs" / "images"
    text, record = [], {}
    bits = digits(SECONDS["digits"])
    took = {"digits": clock()}
    reals, white = patches(SECONDS["patches"])
    took["patches"] = clock()
    if not chosen.dry:
        bits.save_png(folder / "compare_digits.png")
        reals.save_png(folder / "compare_patches.png", image_shape=(SIDE, SIDE), transformer=white)
    for name, result in (("digits", bits), ("patches", reals)):
        record[name] = {"took": took[name], "rows": result.rows, "references": result.references}
        text += [
            f"**{name.capitalize()}**: {SECONDS[name]:.0f} seconds of processor time for each "
            f"training, {took[name] / 60:.0f} minutes of wall time for all. Picture: "
            f"`docs/images/compare_{name}.png`.",
            f"```text\n{result}\n```",
        ]
    text.append(f"Orderings: {verdicts(bits, reals)}.")
    write(chosen, "compare", "Models and strategies under one budget", "\n\n".join(text), record)


if __name__ == "__main__":
    main()
