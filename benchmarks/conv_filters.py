"""Filters of whole images beside atoms of patches: how different are they from each other?

    python benchmarks/conv_filters.py

Images: crops of 32×32 from the training images of BSDS500, log(1 + grey level), filtered as
Olshausen and Field did (`sparse_filters`), those with less than a tenth of the mean variance left
out, each less its mean. `ConvSparseCoding` and `ConvPSD` (codes of the lasso alone, as in the
authors' program) learn 64 filters of 9×9 on them by gradient descent; `PSD` learns 64 atoms of 9×9
on 100,000 patches with the same share of λ_max. Two figures say how different filters are: the
entropy of the histogram of their orientations in 12 bins (of the Gabor that fits best, all filters,
over log 12; higher is more diverse; beside it what as many uniform orientations have), and the mean
over pairs of the largest correlation over all shifts (lower is more diverse). Kavukcuoglu et al.
(2010) claim both for filters of whole images.
`docs/images/conv_filters.png` shows 1, 2, 4, …, 64 filters of `ConvSparseCoding`, and the 64 atoms
of patches. Budget: 60 minutes.
"""

from __future__ import annotations

from typing import Any

from common import HERE, Clock, options, table, write
from gated_filters import gabors_of, verdict
from sparse_filters import filtered

SIZE, SIDE, CROPS, PATCHES = 9, 32, 1000, 100_000
FILTERS, SERIES = 64, (1, 2, 4, 8, 16, 32)
EPOCHS, SERIES_EPOCHS, PATCH_EPOCHS = 8, 4, 10
SPARSITY, TOL, RATE, BINS, SEED = 0.5, 2e-2, 0.5, 12, 0


def crops(images: list[Any]) -> Any:
    """(CROPS, SIDE, SIDE), float32."""
    import numpy as np

    rng, found = np.random.default_rng(SEED), []
    least = 0.1 * np.mean([image.var() for image in images])
    while len(found) < CROPS:
        image = images[rng.integers(len(images))]
        i, j = (rng.integers(side - SIDE + 1) for side in image.shape)
        cut = image[i : i + SIDE, j : j + SIDE]
        if cut.var() > least:
            found.append(cut - cut.mean())
    return np.stack(found).astype(np.float32)


def patches(images: list[Any]) -> Any:
    """Rows less their mean."""
    from energyscape.data import PatchExtractor

    cut = PatchExtractor(SIZE, PATCHES, flat=0.1, random_state=SEED)
    X = cut.fit_transform(images)
    return X - X.mean(axis=1, keepdims=True)


def entropy(theta: Any) -> float:
    """Of orientations, over its largest value."""
    import numpy as np

    counts = np.histogram(theta, bins=BINS, range=(0, np.pi))[0]
    shares = counts[counts > 0] / max(1, counts.sum())
    return abs(float((shares * np.log(shares)).sum() / np.log(BINS)))


def alike(filters: Any) -> Any:
    """The largest absolute correlation over shifts, of every pair."""
    import numpy as np

    from energyscape.convolution import convolve

    D = np.asarray(filters, np.float64)[..., None]
    D = D / np.sqrt((D**2).sum(axis=(1, 2, 3), keepdims=True))
    found = np.abs(convolve(D, D, "full")).max(axis=(1, 2))
    return found[np.triu_indices(len(D), 1)]


def learned(kind: Any, k: int, epochs: int, X: Any, **settings: Any) -> tuple[Any, float]:
    """A fitted model of whole images, and seconds."""
    from energyscape.trainers import EnergyLoss

    trainer = EnergyLoss(n_epochs=epochs, batch_size=8, learning_rate=RATE)
    clock, shared = Clock(), {"sparsity": SPARSITY, "tol": TOL, "random_state": SEED}
    model = kind(k, filter_size=SIZE, max_iter=200, trainer=trainer, **shared, **settings)
    return model.fit(X), clock()


def picture(series: list[Any], rows: Any) -> None:
    """1, 2, 4, … filters, each number in a panel of its own, and the atoms of patches."""
    import numpy as np

    from energyscape.plotting import image_grid, save_png

    grids = [image_grid(one, n_columns=min(8, len(one)), symmetric=True) for one in [*series, rows]]
    height = max(len(grid) for grid in grids)
    line: list[Any] = []
    for grid in grids:
        panel = np.full((height, grid.shape[1] + 12), 255, np.uint8)
        panel[: len(grid), : grid.shape[1]] = grid
        line.append(panel)
    pixels = np.hstack(line)[:, :-12].repeat(3, axis=0).repeat(3, axis=1)
    save_png(HERE.parent / "docs" / "images" / "conv_filters.png", pixels)


def main() -> None:
    chosen = options(__doc__, threads=1)
    import warnings

    import numpy as np
    from sklearn.exceptions import ConvergenceWarning

    from energyscape.models import PSD, ConvPSD, ConvSparseCoding
    from energyscape.trainers import EnergyLoss

    warnings.simplefilter("ignore", ConvergenceWarning)  # said in the block
    images = filtered()
    X = crops(images)
    series = [
        np.asarray(learned(ConvSparseCoding, k, SERIES_EPOCHS, X)[0].filters_) for k in SERIES
    ]
    models = {
        "ConvSparseCoding": learned(ConvSparseCoding, FILTERS, EPOCHS, X),
        "ConvPSD": learned(ConvPSD, FILTERS, EPOCHS, X, joint=False),
    }
    clock = Clock()
    psd = PSD(FILTERS, sparsity=SPARSITY, tol=1e-3, random_state=SEED)
    psd.set_params(trainer=EnergyLoss(n_epochs=PATCH_EPOCHS)).fit(patches(images))
    models["PSD of patches"] = psd, clock()
    lines, record, seen = [], {}, {}
    for name, (model, seconds) in models.items():
        seen[name] = np.asarray(model.components_, np.float64).reshape(-1, SIZE, SIZE)
        fits = gabors_of(seen[name])
        flat = entropy([fit["theta"] for fit in fits])
        gabors = sum(fit["r2"] > 0.8 for fit in fits)
        pairs = alike(seen[name])
        record[name] = {
            "entropy": flat,
            "gabors": gabors,
            "alike": float(pairs.mean()),
            "deciles": [round(float(v), 4) for v in np.quantile(pairs, np.arange(0.1, 1, 0.1))],
            "late": float(model.params_["late"]),
            "replaced": model.n_replaced_,
            "seconds": seconds,
        }
        figures = [f"{gabors} of {FILTERS}", f"**{flat:.3f}**", f"**{pairs.mean():.3f}**"]
        late = f"{100 * record[name]['late']:.0f} %"
        lines.append([name, *figures, late, f"{seconds:.0f} s"])
    base, met = record["PSD of patches"], []
    for name in ("ConvSparseCoding", "ConvPSD"):
        own = record[name]
        met.append(
            f"{name}: entropy higher ({verdict(own['entropy'] > base['entropy'])}), "
            f"shift-correlation lower ({verdict(own['alike'] < base['alike'])})"
        )
    draws = np.random.default_rng(SEED).uniform(0, np.pi, (1000, FILTERS))
    chance = [entropy(theta) for theta in draws]
    head = ["", "Gabors (R² > 0.8)", "entropy of orientations", "shift-correlation of pairs"]
    head += ["late", "training"]
    picture([*series, seen["ConvSparseCoding"]], seen["PSD of patches"])
    text = [
        f"{CROPS} crops of {SIDE}×{SIDE}, {FILTERS} filters of {SIZE}×{SIZE}, sparsity {SPARSITY}, "
        f"gap {TOL:g} in at most 200 iterations; {PATCHES:,} patches. Late are images of the last "
        "update that did not reach the gap.",
        table(head, lines),
        f"{FILTERS} orientations drawn uniformly have entropies of {np.mean(chance):.3f} ± "
        f"{np.std(chance):.3f}.",
        "Targets, against atoms of patches: " + "; ".join(met) + ".",
        "`docs/images/conv_filters.png`: 1, 2, 4, …, 64 filters of whole images, and on the right "
        "the atoms of patches.",
    ]
    write(chosen, "conv_filters", "Filters of whole images", "\n\n".join(text), record)


if __name__ == "__main__":
    main()
