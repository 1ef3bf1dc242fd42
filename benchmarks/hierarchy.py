"""Hierarchies of learned and of random filters, with few and many labels (Jarrett et al., 2009).

    python benchmarks/hierarchy.py --part mnist
    python benchmarks/hierarchy.py --part cifar

A stage is a bank of filters, |·|, local contrast and mean pooling; one stage or two, logistic
regression on top. R, RR: random filters. U, UU: PSD's encoder (tanh), learned without labels from
patches of the images, stage by stage. U+, UU+: all filters and a softmax fine-tuned on the labelled
images. MNIST: 10,000 images without labels, tested on all 10,000; the part of CIFAR-10: 4,000
images, of which at most 366 a class get labels, tested on 1,000. Each repeat draws filters and
labelled images anew; ± is a 95 % interval, of the mean over five repeats by Student's t, or
binomial where only one was run (the most labels). Differences are paired by repeats. C of the
logistic regression is chosen among the labelled images by cross-validation, and sets the weight
decay of the softmax of the fine-tuning, too, whose rate is the same everywhere. Budget: 60 minutes
at one thread.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

from common import HERE, Clock, options, table, write

REPEATS, UNLABELLED, PATCHES, EPOCHS = 5, 10_000, 20_000, 5
SYSTEMS = ("R", "U", "RR", "UU", "U+", "UU+")
GRID = (0.001, 0.01, 0.1)
PASSES = {10: 20, 100: 10, 366: 8, 1000: 5}  # epochs of fine-tuning by labels a class
RATE, BATCH = 0.003, 20
PAIRS = (("R", "U"), ("RR", "UU"), ("U", "UU"), ("U", "U+"), ("UU", "UU+"))
SHOWN, STRONGEST = 16, 6


class Data(NamedTuple):
    """Standardised images and labels, and what a hierarchy for them is made of."""

    train: Any
    labels: Any
    test: Any
    truth: Any
    counts: tuple[int, ...]
    size: int  # of the filters of the first stage
    alone: tuple[int, int]  # pool (size, stride) of a stage that is the only one
    last: int  # pool of the second stage


def mnist() -> Data:
    import numpy as np

    from energyscape.data import load_mnist

    (x, y), (t, z) = load_mnist("train"), load_mnist("test")
    x, t = ((v.reshape(-1, 28, 28).astype(np.float32) - 0.1307) / 0.3081 for v in (x, t))
    return Data(x, y, t, z, (10, 100, 1000), 5, (6, 6), 2)


def cifar() -> Data:
    import numpy as np

    from energyscape.data import load_cifar10

    (x, y), (t, z) = load_cifar10("train"), load_cifar10("test")
    mean, deviation = x.mean(dtype=np.float64), x.std(dtype=np.float64)
    x, t = (((v - mean) / deviation).astype(np.float32) for v in (x, t))
    return Data(x, y, t, z, (10, 100, 366), 7, (6, 5), 3)  # 366: of the class that has fewest


def bank(learned: bool, n: int, seed: int, size: int, **settings: Any) -> Any:
    from energyscape.data import FilterBank, RandomFilters
    from energyscape.models import PSD
    from energyscape.models.encoders import TanhEncoder
    from energyscape.trainers import EnergyLoss

    if learned:
        trainer = EnergyLoss(n_epochs=EPOCHS)
        model: Any = PSD(n, encoder=TanhEncoder(), sparsity=0.2, tol=1e-3, trainer=trainer)
    else:
        model = RandomFilters(n, TanhEncoder())
    given = {"n_patches": PATCHES, "flat": 0.05, "random_state": seed}
    return FilterBank(model, size, **given, **settings)


def hierarchy(data: Data, learned: bool, depth: int, seed: int) -> Any:
    """The stages of a system, to be fitted."""
    from sklearn.pipeline import make_pipeline

    from energyscape.data import Flatten, LocalContrastNormalize, Pool, Rectify, Standardize

    contrast = LocalContrastNormalize
    steps = [contrast(floor=1.0), bank(learned, 32, seed, data.size), Rectify(), contrast()]
    if depth == 1:
        return make_pipeline(*steps, Pool("mean", *data.alone), Standardize(), Flatten())
    second = bank(learned, 16, seed + 1000, 5, n_inputs=16, n_groups=4)
    steps += [Pool("mean", 2), second, Rectify(), contrast(), Pool("mean", data.last)]
    return make_pipeline(*steps, Standardize(), Flatten())


def drawn(labels: Any, count: int, seed: int) -> Any:
    """``count`` rows of every class."""
    import numpy as np

    rng = np.random.default_rng([seed, count])
    rows = [rng.permutation(np.flatnonzero(labels == k))[:count] for k in np.unique(labels)]
    return np.concatenate(rows)


def judge(H: Any, y: Any, G: Any, z: Any) -> tuple[float, float]:
    """(error of a logistic regression in percent, its C), which is chosen among (H, y)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold, StratifiedShuffleSplit

    few = len(y) <= 1000
    folds = StratifiedKFold(5) if few else StratifiedShuffleSplit(1, random_state=0)
    search = GridSearchCV(LogisticRegression(max_iter=300), {"C": GRID}, cv=folds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence: 300 iterations are enough to judge by
        search.fit(H, y)
    return 100 * (1 - search.score(G, z)), search.best_params_["C"]


def tuned(stages: Any, data: Data, rows: Any, count: int, c: float, seed: int) -> float:
    """Error of the fine-tuned hierarchy in percent, with the weight decay of C."""
    from sklearn.frozen import FrozenEstimator

    from energyscape.models import FineTunedPipeline
    from energyscape.optim import Adam
    from energyscape.trainers import Backpropagation

    optimizer = Adam(RATE, l2=1 / (c * len(rows)))
    trainer = Backpropagation(n_epochs=PASSES[count], batch_size=BATCH, optimizer=optimizer)
    model = FineTunedPipeline(FrozenEstimator(stages), trainer=trainer, random_state=seed)
    model.fit(data.train[rows], data.labels[rows])
    return 100 * (1 - model.score(data.test, data.truth))


def measured(data: Data, name: str) -> tuple[dict[str, Any], Any]:
    """(errors by system and count, the first UU)."""
    errors: dict[str, Any] = {s: {str(c): [] for c in data.counts} for s in SYSTEMS}
    clock, seconds, kept = Clock(), dict.fromkeys(("learning", "features", *SYSTEMS), 0.0), None
    for repeat in range(REPEATS):
        counts = data.counts if repeat == 0 else data.counts[:-1]
        rows = {count: drawn(data.labels, count, repeat) for count in counts}
        for system in ("R", "U", "RR", "UU"):
            stages = hierarchy(data, system[0] == "U", len(system), 10 * repeat)
            stages.fit(data.train[:UNLABELLED])
            kept = stages if system == "UU" and repeat == 0 else kept
            seconds["learning"] += clock()
            G = stages.transform(data.test)
            seconds["features"] += clock()
            chosen = {}
            for count, some in rows.items():
                H, y = stages.transform(data.train[some]), data.labels[some]
                error, chosen[count] = judge(H, y, G, data.truth)
                errors[system][str(count)].append(error)
            seconds[system] += clock()
            if system[0] == "U":
                for count, some in rows.items():
                    error = tuned(stages, data, some, count, chosen[count], repeat)
                    errors[f"{system}+"][str(count)].append(error)
                seconds[f"{system}+"] += clock()
            print(
                name, repeat, system, {s: errors[s] for s in (system, f"{system}+") if s in errors}
            )
            print({key: round(value) for key, value in seconds.items()}, flush=True)
    return {"errors": errors, "seconds": seconds}, kept


# ---------------------------------------------------------------- what is said


def interval(values: list[float], tests: int) -> tuple[float, float]:
    """Mean, and half its 95 % interval: Student's t, or binomial for a single error."""
    import numpy as np
    from scipy import stats

    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        p = mean / 100
        return mean, 196 * math.sqrt(p * (1 - p) / tests)
    return mean, float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))


def differences(errors: dict[str, Any], counts: tuple[int, ...]) -> list[list[str]]:
    """Points of error that the second of each pair saves, by count."""
    import numpy as np

    rows = []
    for worse, better in PAIRS:
        row = [f"{worse} − {better}"]
        for count in map(str, counts[:-1]):
            gain = np.array(errors[worse][count]) - np.array(errors[better][count])
            row.append("{:+.2f} ± {:.2f}".format(*interval(list(gain), 1)))
        rows.append(row)
    return rows


def told(name: str, errors: dict[str, Any], data: Data) -> str:
    header = ["error, %", *(f"{count} labels a class" for count in data.counts)]
    lines = []
    for system in SYSTEMS:
        by = [interval(errors[system][str(c)], len(data.truth)) for c in data.counts]
        lines.append([system, *("{:.2f} ± {:.2f}".format(*pair) for pair in by)])
    parts = [table(header, lines)]
    header = ["points saved", *(f"{count} labels" for count in data.counts[:-1])]
    parts.append(table(header, differences(errors, data.counts)))
    return "\n\n".join([*parts, verdict(name, errors)])


def verdict(name: str, errors: dict[str, Any]) -> str:
    """Whether learned filters are better than random ones with ten labels a class."""
    import numpy as np

    said = []
    for worse, better in PAIRS[:2]:
        gain = np.array(errors[worse]["10"]) - np.array(errors[better]["10"])
        mean, half = interval(list(gain), 1)
        word = "met" if mean > half else "not shown" if mean > -half else "missed"
        said.append(f"{better} below {worse}: {word}")
    return f"With 10 labels a class on {name}: {', '.join(said)}."


# ---------------------------------------------------------------- pictures


def projections(stages: Any, images: Any, size: int) -> tuple[Any, Any]:
    """For some maps of the second bank, what their strongest places lead back to, and the pixels
    there: two arrays (maps, STRONGEST, h, w[, c])."""
    import numpy as np

    bank_at = [i for i, (_, step) in enumerate(stages.steps) if hasattr(step, "models_")][1]
    up = stages[: bank_at + 2]  # the second bank and its |·|
    maps = up.transform(images)
    field = size + 2 * 5 - 1  # pixels that a place of the second bank sees
    best = maps.max(axis=(1, 2))
    shown = np.linspace(0, maps.shape[3] - 1, SHOWN).astype(int)
    back, pixels = [], []
    for k in shown:
        which = np.argsort(-best[:, k])[:STRONGEST]
        codes = up.transform(images[which])  # the switches of these images
        places = codes[..., k].reshape(STRONGEST, -1).argmax(axis=1)
        alone = np.zeros_like(codes)
        rows, columns = np.divmod(places, codes.shape[2])
        alone[np.arange(STRONGEST), rows, columns, k] = best[which, k]
        down = up.inverse_transform(alone)
        for i, (a, b) in enumerate(zip(2 * rows, 2 * columns, strict=True)):
            back.append(down[i, a : a + field, b : b + field])
            pixels.append(images[which[i], a : a + field, b : b + field])
    return np.array(back), np.array(pixels)


def pictures(name: str, stages: Any, data: Data) -> None:
    """Filters of the first bank; features of the second, with the pixels that they answer to."""
    import numpy as np

    from energyscape.plotting import image_grid, save_grid, save_png

    out = HERE.parent / "docs" / "images"
    filters = stages.named_steps["filterbank-1"].filters_
    filters = filters[..., 0] if filters.shape[3] == 1 else filters
    save_grid(out / f"hierarchy_{name}_filters.png", filters, 4, n_columns=16, symmetric=True)
    back, pixels = projections(stages, data.train[:2000], data.size)
    left = image_grid(back, n_columns=2 * STRONGEST, symmetric=True)
    right = image_grid(pixels, n_columns=2 * STRONGEST)
    both = np.concatenate([left, right], axis=1)
    save_png(out / f"hierarchy_{name}.png", both.repeat(2, axis=0).repeat(2, axis=1))


def main() -> None:
    sets = {"mnist": (mnist, "MNIST"), "cifar": (cifar, "the part of CIFAR-10")}
    chosen = options(__doc__, threads=1, part={"choices": [*sets], "default": "mnist"})
    clock, (load, name) = Clock(), sets[chosen.part]
    data = load()
    record, stages = measured(data, chosen.part)
    if not chosen.dry:
        pictures(chosen.part, stages, data)
    passes = ", ".join(f"{count}: {PASSES[count]}" for count in data.counts)
    text = [
        "One stage: 32 filters (5×5, 7×7×3 on CIFAR-10), |·|, local contrast, mean pooling to 4×4 "
        "(5×5); two: pooling by 2, four groups of 16 filters of 5×5 on 16 of the maps each, |·|, "
        f"local contrast, pooling to 4×4 (3×3). {PATCHES:,} patches, {EPOCHS} epochs of PSD, λ "
        f"= 0.2 λ_max. Fine-tuning: Adam at {RATE} falling to 0, batches of {BATCH}, epochs by "
        f"labels a class: {passes}.",
        told(name, record["errors"], data),
        f"`docs/images/hierarchy_{chosen.part}.png`: what features of the second stage answer to, "
        "led back down to pixels, beside the pixels there; `…_filters.png`: the first filters.",
        f"{clock() / 60:.0f} minutes in all.",
    ]
    title = f"Hierarchies of filters on {name}"
    write(chosen, f"hierarchy_{chosen.part}", title, "\n\n".join(text), record)


if __name__ == "__main__":
    main()
