"""What TF32 and float16 inputs do to energies, gradients and the likelihood of a trained RBM.

    python benchmarks/precision.py

Emulated: the GPU's path runs on the tests' stand-in for CuPy, whose products round their inputs as
the option asks for (to the nearest) and sum in float32. Real tensor cores sum in another order, and
some cut TF32's last bits off. Machines are trained from the same noise in all three precisions, and
their log Z is exact. Budget: 15 minutes.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

from common import HERE, options, table, write

SEEDS, EPOCHS, ROWS, UNITS = 4, 10, 10_000, 20


def trained(stand_in: Any, seed: int) -> dict[str, list[float]]:
    """[training, test] log-likelihood a row of RBM(20) on MNIST, by the inputs' precision."""
    import numpy as np

    import energyscape
    from energyscape.data import binarize, load_mnist
    from energyscape.models import RBM
    from energyscape.trainers import PCD

    sets = [binarize(load_mnist(name)[0][:ROWS], random_state=0) for name in ("train", "test")]
    train, test = (x.astype(np.float32) for x in sets)
    found = {}
    for precision in ("float32", "tf32", "float16"):
        trainer = PCD(n_epochs=EPOCHS, learning_rate=0.1, averaging=0.1)
        model = RBM(UNITS, trainer=trainer, device="cuda", random_state=seed)
        with energyscape.matmul_precision(precision):
            model.fit(train)
        found[precision] = [float(np.mean(model.score_samples(x))) for x in (train, test)]
    return found


def main() -> None:
    chosen = options(__doc__, threads=1)
    sys.path[:0] = [str(HERE.parent / "tests"), str(HERE)]
    import gpu
    import standin

    sys.modules["cupy"] = stand_in = standin.module()
    sizes = gpu.Sizes(rbm=(784, 500, 1000), mpot=(256, 256, 256), batches=(1024,))
    errors = gpu.errors(stand_in, sizes)
    runs = [trained(stand_in, seed) for seed in range(SEEDS)]
    record: dict[str, Any] = {"errors": errors, "likelihoods": runs}
    lines = [
        [name, precision, *(f"{value:.1e}" for value in pair)]
        for name, found in errors.items()
        for precision, pair in found.items()
    ]
    scores = []
    for precision in runs[0]:
        tests = [run[precision][1] for run in runs]
        gaps = [run[precision][1] - run["float32"][1] for run in runs]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5
        said = "" if precision == "float32" else f"{statistics.fmean(gaps):+.3f} ± {error:.3f}"
        scores.append([precision, f"{statistics.fmean(tests):.3f}", said])
    text = [
        "**Emulated** on the CPU, not measured on a card. Norm of the error over the norm, against "
        "float64, at the start of a training (rounding to 11 binary digits is 4.9e-4 at the most, "
        "a third of that on average):",
        table(["", "inputs", "energies", "gradient in W"], lines),
        f"RBM({UNITS}) on {ROWS:,} binarised MNIST digits, PCD, {EPOCHS} epochs; exact mean "
        f"log-likelihood of {ROWS:,} test digits, {SEEDS} seeds, the same noise in each:",
        table(["inputs", "nats", "less float32's, ± error"], scores),
    ]
    title = "TF32 and float16 inputs, emulated"
    write(chosen, "precision", title, "\n\n".join(text), record)


if __name__ == "__main__":
    main()
