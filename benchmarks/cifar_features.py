"""Features of CIFAR-10 patches by any model: the pipeline of Coates, Lee and Ng (2011).

All 5,000 images of the part at hand. Patches of 6x6x3 are normalised, whitened and given to the
model, features of all places are summed over quadrants, standardised, and classified linearly, by
regularised least squares (the linear SVM of the paper took 20 times longer and was no better on
features of k-means). Features are learned without labels once a repeat, from 100,000 patches of all
images; the classifier is judged by 5-fold cross-validation, five times over with other folds and
other random numbers. Folds are the same for all models, so that differences are paired: an order is
claimed where the 95 % interval of the mean difference excludes 0 (Nadeau and Bengio, 2003, whose
variance counts that training sets overlap). Names on the command line are entries of the table
below, or any model of the library. Strengths of penalties and noise were chosen among three or
four each on two of the folds. Budget: 60 minutes.
"""

from __future__ import annotations

import json
import math
import time
import warnings

from common import HERE, options, table, write

FOLDS, REPEATS, PATCHES = 5, 5, 100_000
STORE = HERE / "results" / "cifar_features.json"


def entries(k: int, seed: int):
    """Name → (model or steps, encoder): what enters the table without being asked for by class."""
    from energyscape import models as m
    from energyscape import trainers as t
    from energyscape.corruptions import GaussianNoise
    from energyscape.data import PCAWhitening, SoftThreshold, Triangle
    from energyscape.penalties import KL, Contractive, Saturating

    s = {"random_state": seed}
    long = {"n_epochs": 30, "batch_size": 100}
    noisy = t.Denoising(GaussianNoise(1.0), **long)
    return {
        "kmeans-triangle": (m.KMeans(k, features="triangle", **s), None),
        "kmeans-hard": (m.KMeans(k, features="hard", **s), None),
        "kmeans-soft": (m.KMeans(k, **s), SoftThreshold(0.5)),
        "spherical": (m.KMeans(k, spherical=True, **s), SoftThreshold(0.5)),
        "gmm": (m.GaussianMixture(k, covariance_type="diag", **s), None),
        "ica": (
            # The mean of a patch is gone: not all 108 directions are left.
            (PCAWhitening(96), m.ICA(**s)),
            SoftThreshold(0.5, split=True),
        ),
        "pca": (m.PCA(96, **s), SoftThreshold(0.5, split=True)),
        "gaussian-rbm": (m.GaussianRBM(k, variance=1.0, trainer=t.PCD(**long), **s), None),
        "rbm-triangle": (m.GaussianRBM(k, variance=1.0, trainer=t.PCD(**long), **s), Triangle()),
        "autoencoder": (m.AutoEncoder(k, trainer=t.Reconstruction(**long), **s), None),
        "denoising": (m.AutoEncoder(k, activation="relu", trainer=noisy, **s), None),
        "contracting": (
            m.AutoEncoder(k, trainer=t.Contraction(Contractive(10.0), **long), **s),
            None,
        ),
        "sparse": (m.AutoEncoder(k, trainer=t.Sparsity(KL(0.03, 10.0), **long), **s), None),
        "saturating": (
            m.AutoEncoder(k, activation="relu", trainer=t.Saturation(Saturating(1.0), **long), **s),
            None,
        ),
    }


def entry(name: str, k: int, seed: int):
    """The entry of that name, or a model of the library at its defaults."""
    known = entries(k, seed)
    if name in known:
        return known[name]
    from energyscape.models.base import EnergyModel
    from energyscape.registry import lookup

    cls = lookup(name, EnergyModel)
    size = {"n_components": k} if "n_components" in cls().get_params(deep=False) else {}
    return cls(random_state=seed, **size), None


def run(name: str, k: int, images, labels, keep: bool) -> dict:
    """Accuracy of every fold of every repeat, and what it took."""
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline

    from energyscape.data import ZCA, ContrastNormalize, PatchFeatures

    began, scores, learned = time.perf_counter(), [], 0.0
    for repeat in range(REPEATS):
        model, encoder = entry(name, k, repeat)
        steps = model if isinstance(model, tuple) else (model,)
        features = PatchFeatures(
            make_pipeline(ContrastNormalize(), ZCA(), *steps),
            patch=6,
            encoder=encoder,
            n_patches=PATCHES,
            random_state=repeat,
        )
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            H = features.fit_transform(images).astype("float64")
        learned += time.perf_counter() - started
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=repeat)
        scores.append([judge(H, labels, *fold) for fold in folds.split(H, labels)])
    if keep:
        picture(name, features)
    return {
        "scores": scores,
        "seconds": time.perf_counter() - began,
        "feature_seconds": learned,
        "k": features.n_features_per_region_,
    }


def picture(name: str, features) -> None:
    """Save the first hundred filters, where they are in pixels (whitened ones)."""
    from energyscape.data.encoders import dictionary_of
    from energyscape.plotting import save_grid

    filters = dictionary_of(features.model_[-1])
    if filters.shape[1] == 6 * 6 * 3:
        path = HERE / "results" / f"cifar_features_{name}.png"
        save_grid(path, filters[:100], zoom=3, image_shape=(6, 6, 3))


def judge(H, y, train, test) -> float:
    """Accuracy of a ridge classifier in percent, its penalty chosen within the training rows."""
    import numpy as np
    from sklearn.linear_model import RidgeClassifier

    mean, var = H[train].mean(axis=0), H[train].var(axis=0)
    Z = (H - mean) / np.sqrt(var + 0.01)
    inner, held = train[: len(train) * 4 // 5], train[len(train) * 4 // 5 :]

    def fitted(penalty: float, rows):
        return RidgeClassifier(penalty).fit(Z[rows], y[rows])

    best = max((10, 30, 100, 300, 1000), key=lambda a: fitted(a, inner).score(Z[held], y[held]))
    return 100 * float(fitted(best, train).score(Z[test], y[test]))


def difference(a, b) -> tuple[float, float]:
    """Mean paired difference, and half its 95 % interval."""
    import numpy as np
    from scipy import stats

    d = (np.array(a) - np.array(b)).ravel()
    n = len(d)
    error = math.sqrt((1 / n + 1 / (FOLDS - 1)) * d.var(ddof=1))
    return float(d.mean()), float(stats.t.ppf(0.975, n - 1) * error)


def report(chosen) -> None:
    """The table of all that was run, best first, each against the one above."""
    import numpy as np

    every = json.loads(STORE.read_text())
    runs = {name: own for name, own in every.items() if own["rows"] == chosen.rows}
    order = sorted(runs, key=lambda name: -np.mean(runs[name]["scores"]))
    rows, above = [], None
    for name in order:
        own = runs[name]
        mean, spread = np.mean(own["scores"]), np.std(np.mean(own["scores"], axis=1), ddof=1)
        gap = "" if above is None else "{:+.2f} ± {:.2f}".format(*difference(own["scores"], above))
        best = difference(own["scores"], runs[order[0]]["scores"])
        claimed = "" if name == order[0] else ("yes" if abs(best[0]) > best[1] else "no")
        rows.append(
            [
                *(name, own["k"], f"**{mean:.2f}**", f"{spread:.2f}", gap, claimed),
                f"{own['feature_seconds'] / REPEATS:.0f} s",
            ]
        )
        above = own["scores"]
    header = ["features", "a region", "accuracy, %", "sd of repeats", "against the row above"]
    header += ["below the first", "learning and features, a repeat"]
    text = (
        f"{chosen.rows} images, {REPEATS} × {FOLDS}-fold cross-validation, mean accuracy. "
        f"Differences with 95 % intervals for pairs of folds; an order is claimed where they "
        "exclude 0. The classifier is ridge regression, not the paper's SVM. Noise and penalties "
        "of the auto-encoders were chosen among three or four each on two of these folds, other "
        "entries were not tuned: the auto-encoders' figures flatter them a little. Filters: "
        "`results/cifar_features_….png`.\n\n"
        f"{table(header, rows)}"
    )
    write(chosen, "cifar_features", "CIFAR-10 part, Coates-Ng pipeline", text, every)


def main() -> None:
    chosen = options(
        __doc__,
        names={"nargs": "*", "default": []},
        k={"type": int, "default": 256},
        rows={"type": int, "default": 5000},
    )
    import numpy as np

    from energyscape.data import load_cifar10

    parts = [load_cifar10(part) for part in ("train", "test")]
    images = np.concatenate([x for x, _ in parts])[: chosen.rows].astype(np.float32)
    labels = np.concatenate([y for _, y in parts])[: chosen.rows]
    runs = json.loads(STORE.read_text()) if STORE.exists() else {}
    for name in chosen.names or entries(chosen.k, 0):
        runs[name] = run(name, chosen.k, images, labels, not chosen.dry) | {"rows": len(labels)}
        print(name, np.mean(runs[name]["scores"]), round(runs[name]["seconds"]), flush=True)
        if not chosen.dry:
            STORE.write_text(json.dumps(runs, indent=1))
    if not chosen.dry:
        report(chosen)


if __name__ == "__main__":
    main()
