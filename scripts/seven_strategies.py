"""The energy that each of the seven strategies gives one spiral in the plane, and that of none.

python scripts/seven_strategies.py --out docs/images/seven_strategies.png
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from energyscape.corruptions import GaussianNoise
from energyscape.models import DeepAutoEncoder, GaussianMixture, KMeans, SparseCoding
from energyscape.optim import Adam
from energyscape.penalties import Hutchinson
from energyscape.trainers import (
    EM,
    NCE,
    Contraction,
    Denoising,
    MaximumLikelihood,
    Reconstruction,
    SlicedScoreMatching,
)

EDGE, SIDE = 2.0, 160  # of the square, and its points on a side


def spiral(n: int, rng: np.random.Generator) -> np.ndarray:
    """Rows (n, 2) along a turn and a half, with noise of deviation 0.04."""
    t = rng.random(n) ** 0.6  # evenly, as the outer turns are longer
    angle, radius = np.pi * (0.7 + 2.9 * t), 0.35 + 1.35 * t
    line = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return line + 0.04 * rng.standard_normal((n, 2))


def on_sphere(x: np.ndarray) -> np.ndarray:
    """The plane wrapped round a sphere (n, 3): atoms are directions, so that each is a place."""
    square = (x**2).sum(axis=1, keepdims=True)
    return np.concatenate([2 * x, square - 1], axis=1) / (square + 1)


def network(trainer: Any, activation: str = "relu", tied: bool = True) -> DeepAutoEncoder:
    """2-64-64-64-2 units: wide enough to copy all of the plane."""
    return DeepAutoEncoder((64, 64), activation=activation, tied=tied, trainer=trainer)


def panels() -> list[tuple[str, Any, Callable[[np.ndarray], np.ndarray]]]:
    """Title, model, and what it sees of a row."""

    def short(epochs: int, rate: float = 0.005) -> dict[str, Any]:
        return {"n_epochs": epochs, "optimizer": Adam(rate)}

    def plain(x: np.ndarray) -> np.ndarray:
        return x

    likelihood = MaximumLikelihood(n_epochs=20)
    noise = NCE(noise_ratio=3, **short(30, 0.003))
    slices = SlicedScoreMatching(**short(30, 0.003))
    clean = Denoising(GaussianNoise(0.2), **short(50))
    still = Contraction(Hutchinson(0.01), **short(50))
    coder = SparseCoding(
        30, sparsity=0.5, positive=True, tol=1e-3, trainer=EM(n_epochs=5, batch_size=100)
    )
    return [
        ("1 constant volume\nKMeans(20), EM", KMeans(20), plain),
        (
            "2 pushed up everywhere\nGaussianMixture(16), likelihood",
            GaussianMixture(16, trainer=likelihood),
            plain,
        ),
        ("3 pushed up at noise\ndeep auto-encoder, NCE", network(noise, "tanh", tied=False), plain),
        (
            "4 flat and convex at data\nthe same, SlicedScoreMatching",
            network(slices, "tanh", tied=False),
            plain,
        ),
        ("5 dynamics that lead to data\ndeep auto-encoder, Denoising", network(clean), plain),
        ("6 limited codes\nSparseCoding(30), on a sphere", coder, on_sphere),
        ("7 locally constant codes\ndeep auto-encoder, Contraction", network(still), plain),
        ("none of them\nthe same, Reconstruction", network(Reconstruction(**short(50))), plain),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/seven_strategies.png"))
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    X, test = spiral(2000, rng), spiral(1000, rng)
    uniform = rng.uniform(-EDGE, EDGE, (4000, 2))
    line = np.linspace(-EDGE, EDGE, SIDE)
    grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    figure = Figure(figsize=(11, 6.3), layout="constrained")
    axes = figure.subplots(2, 4)
    for axis, (title, model, seen) in zip(axes.ravel(), panels(), strict=True):
        model.set_params(random_state=0).fit(seen(X))
        points = model.energy(seen(np.concatenate([test, uniform])))
        auc = roc_auc_score(np.repeat([0, 1], [len(test), len(uniform)]), points)
        # Energies have no unit in common: each place shows how much of the square has less.
        rank = model.energy(seen(grid)).argsort().argsort() / len(grid)
        shown = axis.imshow(
            rank.reshape(SIDE, SIDE),
            cmap="magma",
            vmin=0,
            vmax=1,
            origin="lower",
            extent=(-EDGE, EDGE, -EDGE, EDGE),
        )
        axis.plot(*X[:400].T, ".", color="cyan", markersize=1.5)
        axis.set_title(f"{title}\nAUC {auc:.3f}", fontsize=9)
        axis.set_axis_off()
        print(f"{auc:.3f}  {title.replace(chr(10), ': ')}", flush=True)
    bar = figure.colorbar(shown, ax=axes, shrink=0.6, ticks=[0, 0.5, 1])
    bar.set_label("share of the square with less energy")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=100)
    print(options.out)


if __name__ == "__main__":
    main()
