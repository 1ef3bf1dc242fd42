"""Gated models on CIFAR-10: the pipeline of Ranzato and Hinton (2010).

All 5,000 images of the part at hand. Patches of 8x8x3 are whitened along the principal components
that hold 99 % of their variance (no contrast normalisation), models learn from 100,000 of them
without labels, and the features at 7x7 places, 4 pixels apart, are concatenated, standardised and
classified linearly. A second column sums them over quadrants instead. 256 features a place for all
models, the share of mean units about as published (81 of 225); "deep" adds a layer of 256 binary
units that learned from the activities of mPoT, and is given those of both layers.

Features are learned once; the classifier is judged by 5-fold cross-validation, three times over.
Folds are the same for all, so that differences are paired, with the intervals of Nadeau and Bengio
(2003). ``--names`` takes entries by name; results of earlier calls are kept. Budget: 75 minutes.
"""

from __future__ import annotations

import json
import time

from common import HERE, options, table, write

SIZE, STRIDE, PATCHES, KEPT = 8, 4, 100_000, 0.99
REPEATS, FOLDS = 3, 5
EPOCHS, BATCH, AVERAGING = 12, 128, 0.1
PENALTIES = (10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
STORE = HERE / "results" / "gated_cifar.json"
NAMES = (
    *("mPoT", "GaussianRBM", "raw", "deep", "cRBM", "mcRBM"),
    *("GaussianRBM, variance learned", "pixels"),
)
PAIRS = (
    *(("cRBM", "GaussianRBM"), ("mcRBM", "cRBM"), ("mPoT", "cRBM"), ("mPoT", "mcRBM")),
    *(("deep", "mPoT"), ("GaussianRBM", "raw")),
)


def model(name: str, epochs: int):
    """The model of that name, to be fitted to whitened patches."""
    from energyscape.models import CovarianceRBM, GaussianRBM, McRBM, MPoT
    from energyscape.trainers import PCD

    made = {
        # The setting for whitened rows that `cifar_features` has, and the model's own.
        "GaussianRBM": GaussianRBM(256, variance=1.0, trainer=PCD()),
        "GaussianRBM, variance learned": GaussianRBM(256),
        "cRBM": CovarianceRBM(256),
        "mcRBM": McRBM(160, n_mean_components=96),
        "mPoT": MPoT(160, n_mean_components=96),
    }[name]
    trainer = made.default_trainer() if made.trainer is None else made.trainer
    trainer.set_params(n_epochs=epochs, batch_size=BATCH, averaging=AVERAGING)
    return made.set_params(trainer=trainer, random_state=0)


class Features:
    """Features of all places by entry; what has been learned is kept."""

    def __init__(self, images, patches: int, epochs: int) -> None:
        import numpy as np

        from energyscape.convolution import windows
        from energyscape.data import PatchExtractor, PCAWhitening

        drawn = PatchExtractor(SIZE, patches, random_state=0).fit_transform(images)
        share = PCAWhitening().fit(drawn).explained_variance_
        share = np.cumsum(share) / share.sum()
        white = PCAWhitening(int(np.searchsorted(share, KEPT)) + 1).fit(drawn)
        self.X = white.transform(drawn)
        places = windows(images, (SIZE, SIZE), (STRIDE, STRIDE))
        self.grid = places.shape[:3]
        self.places = white.transform(places.reshape(-1, drawn.shape[1]))
        self.images, self.epochs = images.reshape(len(images), -1), epochs
        self.models: dict[str, object] = {}

    def learned(self, name: str):
        """The fitted model."""
        from sklearn.frozen import FrozenEstimator

        from energyscape.models import RBM, StackedAutoEncoder
        from energyscape.trainers import PCD

        if name not in self.models:
            if name == "deep":
                trainer = PCD(n_epochs=self.epochs, batch_size=BATCH, averaging=AVERAGING)
                layers = [FrozenEstimator(self.learned("mPoT")), RBM(256, trainer=trainer)]
                made = StackedAutoEncoder(layers, features="all", random_state=0)
            else:
                made = model(name, self.epochs)
            self.models[name] = made.fit(self.X)
        return self.models[name]

    def maps(self, name: str):
        """Features of every image and place, shape (n, down, across, k); of pixels (n, d)."""
        if name == "pixels":
            return self.images
        rows = self.places if name == "raw" else self.learned(name).transform(self.places)
        return rows.reshape(*self.grid, -1)


def judge(H, y, train, test) -> tuple[float, int]:
    """Accuracy of a ridge classifier in percent, and its penalty, chosen within the training rows.

    As `cifar_features.judge` does it, but with one matrix of products for all penalties, and with
    what is added to the variances in proportion to them: there the sums over places are large, here
    the activities of rare units are small.
    """
    import numpy as np
    from scipy.linalg import cho_factor, cho_solve

    mean, var = H[train].mean(axis=0), H[train].var(axis=0)
    Z = (H - mean) / np.sqrt(var + 0.01 * var.mean())
    signs = 2.0 * (y[:, None] == np.unique(y)) - 1
    dual = Z.shape[1] > len(train)
    products = (Z @ Z.T).astype(np.float64) if dual else None
    Z = Z if dual else Z.astype(np.float64)

    def scores(penalties, rows, held):
        """Accuracy on held rows for each penalty."""
        level = signs[rows].mean(axis=0)
        target = signs[rows] - level
        if dual:
            # Rows centred by those that are fitted.
            K, across = products[np.ix_(rows, rows)], products[np.ix_(held, rows)]
            column = K.mean(axis=0)
            across = across - across.mean(axis=1)[:, None] - column + column.mean()
            K = K - column - column[:, None] + column.mean()
        else:
            centre = Z[rows].mean(axis=0)
            part, across = Z[rows] - centre, Z[held] - centre
            K, target = part.T @ part, part.T @ target
        found = []
        for penalty in penalties:
            A = K.copy()
            A[np.diag_indices(len(A))] += penalty
            factor = cho_factor(A, overwrite_a=True, check_finite=False)
            guess = across @ cho_solve(factor, target, check_finite=False) + level
            found.append(100 * float((guess.argmax(axis=1) == y[held]).mean()))
        return found

    inner, held = train[: len(train) * 4 // 5], train[len(train) * 4 // 5 :]
    best = PENALTIES[int(np.argmax(scores(PENALTIES, inner, held)))]
    return scores((best,), train, test)[0], best


def run(name: str, features: Features, labels) -> dict:
    """Accuracy of every fold of every repeat, concatenated and over quadrants."""
    from sklearn.model_selection import StratifiedKFold

    from energyscape.convolution import pool

    began = time.perf_counter()
    maps = features.maps(name)
    own = {"learning": time.perf_counter() - began, "k": maps.shape[-1]}
    kinds = {"concatenated": maps.reshape(len(maps), -1)}
    if maps.ndim == 4:
        kinds["quadrants"] = pool(maps, "sum", grid=2).reshape(len(maps), -1)
    for kind, H in kinds.items():
        judged = []
        for repeat in range(REPEATS):
            folds = StratifiedKFold(FOLDS, shuffle=True, random_state=repeat)
            judged.append([judge(H, labels, *fold) for fold in folds.split(H, labels)])
        own[kind] = [[score for score, _ in line] for line in judged]
        own[kind + "_penalties"] = [[penalty for _, penalty in line] for line in judged]
    return own | {"seconds": time.perf_counter() - began, "rows": len(labels)}


def gap(runs: dict, a: str, b: str, kind: str = "concatenated") -> tuple[float, float, float]:
    """Mean difference of two entries, half its 95 % interval, and p (two-sided)."""
    from cifar_features import difference
    from scipy import stats

    mean, half = difference(runs[a][kind], runs[b][kind])
    free = REPEATS * FOLDS - 1
    t = abs(mean) / max(half, 1e-12) * stats.t.ppf(0.975, free)
    return mean, half, float(2 * stats.t.sf(t, free))


def report(chosen) -> None:
    """Both tables: all that was run, best first, and the differences."""
    import numpy as np

    every = json.loads(STORE.read_text())
    runs = {name: own for name, own in every.items() if own["rows"] == chosen.rows}
    order = sorted(runs, key=lambda name: -np.mean(runs[name]["concatenated"]))
    lines = []
    for name in order:
        own = runs[name]
        cells = []
        for kind in ("concatenated", "quadrants"):
            cells.append(f"{np.mean(own[kind]):.2f}" if kind in own else "")
        penalties = np.ravel(own["concatenated_penalties"])
        lines.append(
            [
                *(name, own["k"] if name != "pixels" else "", f"**{cells[0]}**", cells[1]),
                f"{penalties.min():,} … {penalties.max():,}",
                f"{own['learning']:.0f} s",
            ]
        )
    boltzmann = [name for name in order if name.startswith("GaussianRBM")]
    wanted = [("mPoT", name, 3.0 if name in boltzmann else 0.0) for name in (*boltzmann, "raw")]
    differences = []
    for a, b, least in (*wanted, *((a, b, None) for a, b in PAIRS)):
        if a not in runs or b not in runs:
            continue
        mean, half, p = gap(runs, a, b)
        verdict = ("above" if mean > 0 else "below") if abs(mean) > half else "no order claimed"
        if least is not None:
            words = f"at least {least:g}, p < .01" if least else "above 0, p < .01"
            verdict = f"{words}: {'met' if mean > 0 and mean >= least and p < 0.01 else 'missed'}"
        pooled = ""
        if "quadrants" in runs[a] and "quadrants" in runs[b]:
            pooled = "{:+.2f} ± {:.2f}".format(*gap(runs, a, b, "quadrants")[:2])
        p = f"{p:.3f}" if p >= 0.001 else "< .001"
        differences.append([f"{a} - {b}", f"{mean:+.2f} ± {half:.2f}", p, verdict, pooled])
    text = (
        f"{chosen.rows:,} images, {REPEATS} × {FOLDS}-fold cross-validation of a ridge classifier, "
        "mean accuracy in percent. Models learned once, from 100,000 whitened patches of 8×8×3, "
        f"{EPOCHS} epochs: intervals count what rows the classifier saw, not what random numbers "
        "the models did. Main column: features at 7×7 places, concatenated; beside it sums over "
        "quadrants. Penalties: least and most of those chosen, from "
        f"{PENALTIES[0]} to {PENALTIES[-1]:,}. raw: the whitened patches themselves; pixels: the "
        "images. Published, on all of CIFAR-10: GaussianRBM 59.7, cRBM 64.7, mcRBM "
        "68.2, deep 71.0.\n\n"
        + table(
            ["features", "a place", "accuracy, %", "quadrants", "penalties", "learning, features"],
            lines,
        )
        + "\n\nDifferences with 95 % intervals (Nadeau and Bengio); an order is claimed where they "
        "exclude 0.\n\n" + table(["", "difference", "p", "", "quadrants"], differences)
    )
    write(chosen, "gated_cifar", "Gated models, CIFAR-10 part", text, every)


def main() -> None:
    chosen = options(
        __doc__,
        names={"nargs": "*", "default": []},
        rows={"type": int, "default": 5000},
        patches={"type": int, "default": PATCHES},
        epochs={"type": int, "default": EPOCHS},
        report={"action": "store_true", "help": "only write the block anew"},
    )
    import numpy as np

    from energyscape.data import load_cifar10

    if chosen.report:
        return report(chosen)
    parts = [load_cifar10(part) for part in ("train", "test")]
    images = np.concatenate([x for x, _ in parts])[: chosen.rows].astype(np.float32)
    labels = np.concatenate([y for _, y in parts])[: chosen.rows]
    features = Features(images, chosen.patches, chosen.epochs)
    print("whitened:", features.X.shape, "places:", features.grid, flush=True)
    runs = json.loads(STORE.read_text()) if STORE.exists() else {}
    for name in chosen.names or NAMES:
        own = runs[name] = run(name, features, labels)
        kinds = [kind for kind in ("concatenated", "quadrants") if kind in own]
        means = [round(float(np.mean(own[kind])), 2) for kind in kinds]
        print(name, means, round(own["learning"]), round(own["seconds"]), flush=True)
        if not chosen.dry:
            STORE.write_text(json.dumps(runs, indent=1))
    return None if chosen.dry else report(chosen)


if __name__ == "__main__":
    main()
