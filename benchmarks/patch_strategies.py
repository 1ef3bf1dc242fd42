"""Models of natural patches by score matching, denoising score matching and persistent chains.

    python benchmarks/patch_strategies.py

Rows: 8×8 patches as `gated_filters` makes them (log grey level less its mean, whitened along 63
components, over their root mean square, so that contrast is not what there is to learn); 100,000
from the training images of BSDS500, 5,000 from BSD68. Each of GaussianRBM, PoT and mPoT (its pools
are learned, so that score matching is sliced) is fitted by each strategy in as many updates, from
the same start; by score matching three times, of rows as they are, with a penalty on the curvature
(Kingma and LeCun, 2010), and of rows with noise, because nearly flat patches of 8-bit pixels are a
peak of the density, which score matching makes ever sharper.
Log-likelihoods of test rows by annealed importance sampling, with its interval; Gabor functions
fitted to the longest features (`gated_filters`). Denoising score matching, and score matching of
noisy rows, estimate the density of rows with noise: likelihoods are also given at such rows, where
they are at home and the others are not. Budget: 40 minutes.
"""

from __future__ import annotations

import warnings
from typing import Any

from common import HERE, Clock, options, table, write
from gated_filters import gabors_of
from gated_patches import COMPONENTS, SIDE, fitted, white_rows

TRAIN, TEST, FILTERS, MEANS = 100_000, 5_000, 128, 32
EPOCHS, BATCH, SIGMA = 20, 128, 0.3  # SIGMA: of the noise, in deviations of a feature
CHAINS, TEMPERATURES, SHOWN = 100, 1_000, 64
# Of SGD, by how fast likelihood rose in short trials.
RATES = {
    ("GaussianRBM", "score matching"): 0.2,
    ("GaussianRBM", "score matching, noisy rows"): 0.2,
    ("GaussianRBM", "regularised"): 0.2,
    ("GaussianRBM", "denoising"): 1.0,
    ("GaussianRBM", "PCD"): 0.1,
    ("PoT", "score matching"): 0.1,
    ("PoT", "score matching, noisy rows"): 0.1,
    ("PoT", "regularised"): 0.05,
    ("PoT", "denoising"): 0.3,
    ("PoT", "PCD"): 0.1,
    ("MPoT", "score matching"): 0.03,
    ("MPoT", "score matching, noisy rows"): 0.1,
    ("MPoT", "denoising"): 0.3,
    ("MPoT", "PCD"): 0.1,
}
MODELS = ("GaussianRBM", "PoT", "MPoT")
STRATEGIES = (
    "score matching",
    "regularised",
    "score matching, noisy rows",
    "denoising",
    "PCD",
)
CURVATURE = 1.0  # λ of regularised score matching, which has no closed form for learned pools


def strategy(model: str, name: str) -> Any:
    from energyscape.corruptions import GaussianNoise
    from energyscape.trainers import (
        PCD,
        DenoisingScoreMatching,
        ScoreMatching,
        SlicedScoreMatching,
    )

    shared = {"n_epochs": EPOCHS, "batch_size": BATCH, "averaging": 0.1}
    shared["learning_rate"] = RATES[model, name]
    if name == "PCD":
        return PCD(n_chains=500, **shared)
    if name == "denoising":
        return DenoisingScoreMatching(SIGMA, **shared)
    if name == "regularised":
        return ScoreMatching(CURVATURE, **shared)
    if name.endswith("noisy rows"):
        shared["batch_transform"] = GaussianNoise(SIGMA)
    return (SlicedScoreMatching if model == "MPoT" else ScoreMatching)(**shared)


def fresh(model: str, name: str) -> Any:
    from energyscape import models

    more = {"n_mean_components": MEANS} if model == "MPoT" else {}
    trainer = strategy(model, name)
    return getattr(models, model)(FILTERS, trainer=trainer, random_state=0, **more)


def likelihood(model: Any, T: Any, noisy: Any) -> dict[str, Any]:
    """Mean test log-likelihoods by AIS, the interval of the first, and effective chains."""
    from energyscape.backend import Purpose, stream
    from energyscape.samplers import AIS, HMC

    params = model._params
    path = model.target(params, model.base_measure(params))
    kernel = None if type(model).__name__ == "GaussianRBM" else HMC(10)
    found = AIS(CHAINS, TEMPERATURES, kernel).run(path, stream(0, Purpose.PARTITION))
    free = float(model.energy(T).mean())
    return {
        "test": -free - found.log_partition,
        "interval": [-free - edge for edge in found.interval[::-1]],
        "noisy": -float(model.energy(noisy).mean()) - found.log_partition,
        "ess": found.ess,
    }


def features(model: Any, white: Any) -> Any:
    """What each filter (GaussianRBM: what each unit adds to the mean) is like among patches."""
    import numpy as np

    found = np.asarray(model.components_, np.float64) @ np.asarray(white.mixing_).T
    return found.reshape(-1, SIDE, SIDE)


def picture(shown: dict[tuple[str, str], Any]) -> None:
    """A row of grids for each model, a column for each strategy."""
    import numpy as np

    from energyscape.plotting import image_grid, save_png

    lines = []
    for model in MODELS:
        made = {
            name: image_grid(shown[model, name], n_columns=8, symmetric=True)
            for name in STRATEGIES
            if (model, name) in shown
        }
        blank = np.full_like(next(iter(made.values())), 255)
        grids = [made.get(name, blank) for name in STRATEGIES]
        gap = np.full((len(blank), 10), 255, np.uint8)
        line = np.hstack([part for grid in grids for part in (grid, gap)][:-1])
        lines += [line, np.full((10, line.shape[1]), 255, np.uint8)]
    pixels = np.vstack(lines[:-1]).repeat(3, axis=0).repeat(3, axis=1)
    save_png(HERE.parent / "docs" / "images" / "patch_strategies.png", pixels)


def gaussian(X: Any, T: Any, noisy: Any) -> dict[str, float]:
    """Mean log-likelihoods by the moments of X, and of X with noise."""
    import numpy as np
    from scipy.stats import multivariate_normal

    wide = X.astype(np.float64)
    mean, covariance = wide.mean(axis=0), np.cov(wide.T)
    plain = multivariate_normal(mean, covariance)
    spread = multivariate_normal(mean, covariance + SIGMA**2 * np.eye(len(mean)))
    return {"test": float(plain.logpdf(T).mean()), "noisy": float(spread.logpdf(noisy).mean())}


def measured(kind: str, name: str, X: Any, T: Any, noisy: Any, white: Any) -> tuple[Any, Any]:
    """What one fit comes to, and its longest features as images."""
    import numpy as np

    file = f"strategies_{kind}_{name}".replace(", ", "_").replace(" ", "_")
    model, seconds = fitted(file, fresh(kind, name), X)
    own: dict[str, Any] = {"seconds": seconds} | likelihood(model, T, noisy)
    images = features(model, white)
    images = images[np.argsort(-(images**2).sum(axis=(1, 2)))[:SHOWN]]
    r2 = np.array([fit["r2"] for fit in gabors_of(images)])
    own["gabors"] = float((r2 > 0.8).mean())
    own["r2"] = [round(float(v), 3) for v in r2]
    return own, images


def main() -> None:
    chosen = options(__doc__, threads=1)
    import numpy as np

    warnings.simplefilter("ignore")
    whole = Clock()
    X, T, white = white_rows(SIDE, COMPONENTS, TRAIN, TEST)
    for rows in (X, T):
        rows /= np.sqrt((rows * rows).mean(axis=1, keepdims=True) + np.float32(0.1))
    noisy = T + SIGMA * np.random.default_rng(1).standard_normal(T.shape, np.float32)
    record: dict[str, Any] = {"Gaussian": gaussian(X, T, noisy)}
    lines = [["Gaussian", "moments"]]
    lines[0] += [f"{record['Gaussian'][key]:.2f}" for key in ("test", "noisy")] + [""] * 3
    shown = {}
    for kind, name in ((kind, name) for kind in MODELS for name in STRATEGIES):
        if (kind, name) not in RATES:
            continue
        own, shown[kind, name] = measured(kind, name, X, T, noisy, white)
        record[f"{kind}, {name}"] = own
        low, high = own["interval"]
        lines.append([kind, f"{name}, rate {RATES[kind, name]:g}"])
        lines[-1] += [f"**{own['test']:.2f}** ({low:.2f} … {high:.2f})", f"{own['noisy']:.2f}"]
        lines[-1] += [f"{own['ess']:.0f} of {CHAINS}", f"{100 * own['gabors']:.0f} %"]
        lines[-1] += [f"{own['seconds']:.0f} s"]
        print(lines[-1], flush=True)
    picture(shown)
    header = ["", "strategy", "test rows", "with noise", "effective chains", "Gabors", "training"]
    text = [
        f"{TRAIN:,} training and {TEST:,} test rows of {COMPONENTS} features, float32; "
        f"{FILTERS} units (mPoT {MEANS} mean units besides); SGD, {EPOCHS} epochs of batches of "
        f"{BATCH}, rates falling linearly to 0, parameters averaged over the last tenth. Mean test "
        f"log-likelihoods in nats by AIS ({CHAINS} chains, {TEMPERATURES:,} temperatures; 95 % "
        f"interval); noise of deviation {SIGMA}; how many of the {SHOWN} longest features a Gabor "
        "function fits with R² > 0.8.",
        table(header, lines),
        "`docs/images/patch_strategies.png`: GaussianRBM, PoT and mPoT from top to bottom; score "
        f"matching, the same regularised by λ = {CURVATURE:g} (but mPoT), with noise on the rows, "
        "denoising and PCD from left to right; the "
        f"{SHOWN} longest features of each. "
        "(Times are those of a core that other work shared.)",
        f"{whole():.0f} s in all.",
    ]
    title = "Patches without and with chains"
    write(chosen, "patch_strategies", title, "\n\n".join(text), record)


if __name__ == "__main__":
    main()
