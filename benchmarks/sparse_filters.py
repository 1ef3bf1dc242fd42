"""Atoms of sparse coding on patches of natural images: are they Gabors?

    python benchmarks/sparse_filters.py

Images: 100 training images of BSDS500, log(1 + grey level), filtered by R(f) = f exp(-(f/f₀)⁴) with
f₀ = 0.4 cycles a pixel (Olshausen and Field, 1997), 4 pixels of the edge left out. Rows: 100,000
random patches of 12×12 and of 16×16, less their mean; those with less than a tenth of the mean
variance are left out. Sparse coding by online dictionary learning at the defaults but for sparsity,
which is given; PSD with a shrinkage encoder, its dictionary; FastICA of scikit-learn on as many
principal components as there are independent components, its mixing matrix; principal components;
and random directions in the whitened space. Each feature is fitted by a Gabor function as
`gated_filters` does it (bounds set beforehand, 8 starts), and counts if R² > 0.8. Budget: 60
minutes.
"""

from __future__ import annotations

import warnings
from typing import Any

from common import HERE, Clock, options, table, write
from gated_filters import gabors_of, verdict

PATCHES, EDGE, SPARSITY, EPOCHS = 100_000, 4, 0.2, 10
# side: (atoms, independent components, principal components and random directions that are fitted)
SIZES = {12: (256, 128, 100), 16: (256, 196, 100)}
SEED = 0


def filtered() -> list[Any]:
    """Filtered images without their edge, float32."""
    import numpy as np

    from energyscape.data import FrequencyWhitening, data_home

    name = "bsds500_train100"
    stored = np.load(data_home() / name / f"{name}_gray.npz")
    images = [np.log1p(stored[key].astype(np.float32)) for key in stored.files]
    white = FrequencyWhitening().fit(np.stack([x for x in images if x.shape == images[0].shape]))
    inner = slice(EDGE, -EDGE)
    return [white.transform(x[None])[0, inner, inner] for x in images]


def patches(images: list[Any], side: int) -> Any:
    """Rows less their mean."""
    from energyscape.data import PatchExtractor

    cut = PatchExtractor(side, PATCHES, flat=0.1, random_state=SEED)
    X = cut.fit_transform(images)
    return X - X.mean(axis=1, keepdims=True)


def features(
    X: Any, atoms: int, independent: int, sample: int
) -> tuple[dict[str, tuple[Any, float]], Any]:
    """By name: images of features, shape (n, side, side), and seconds of training; the model of
    sparse coding."""
    import numpy as np
    from sklearn.decomposition import PCA, FastICA

    from energyscape.models import PSD, SparseCoding
    from energyscape.trainers import EM, EnergyLoss

    side, rng = round(X.shape[1] ** 0.5), np.random.default_rng(SEED)
    found, clock = {}, Clock()
    shared = {"sparsity": SPARSITY, "tol": 1e-3, "random_state": SEED}
    coder = SparseCoding(atoms, trainer=EM(n_epochs=EPOCHS, batch_size=256), **shared).fit(X)
    found["sparse coding"] = coder.components_, clock()
    psd = PSD(atoms, trainer=EnergyLoss(n_epochs=EPOCHS), **shared).fit(X)
    found["PSD"] = psd.components_, clock()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence: its iterations are said in the block
        ica = FastICA(independent, whiten="unit-variance", max_iter=300, random_state=SEED)
        ica.fit(X.astype(np.float64))
    found["FastICA"] = ica.mixing_.T, clock()
    pca = PCA(independent).fit(X)
    some = np.sort(rng.choice(independent, sample, replace=False))
    found["PCA"] = pca.components_[some], clock()
    scaled = pca.components_ * np.sqrt(pca.explained_variance_)[:, None]
    found["random directions"] = rng.standard_normal((sample, independent)) @ scaled, clock()
    shaped = {
        name: (np.asarray(rows, np.float64).reshape(-1, side, side), seconds)
        for name, (rows, seconds) in found.items()
    }
    return shaped, coder


def picture(name: str, parts: list[Any]) -> None:
    """Up to 144 atoms of each, side by side."""
    import numpy as np

    from energyscape.plotting import image_grid, save_png

    grids = [image_grid(images[:144], n_columns=12, symmetric=True) for images in parts]
    gap = np.full((len(grids[0]), 12), 255, np.uint8)
    line = [grids[0]] + [part for grid in grids[1:] for part in (gap, grid)]
    pixels = np.hstack(line).repeat(2, axis=0).repeat(2, axis=1)
    save_png(HERE.parent / "docs" / "images" / name, pixels)


def main() -> None:
    chosen = options(__doc__, threads=1)
    import numpy as np

    images = filtered()
    lines, record, missed = [], {}, []
    for side, settings in SIZES.items():
        X = patches(images, side)
        seen, coder = features(X, *settings)
        shares = {}
        for name, (images_of, seconds) in seen.items():
            r2 = np.array([one["r2"] for one in gabors_of(images_of)])
            shares[name] = float((r2 > 0.8).mean())
            deciles = " ".join(f"{v:.2f}" for v in np.quantile(r2, np.arange(0.1, 0.91, 0.1)))
            share = f"**{100 * shares[name]:.0f} %**"
            lines.append([f"{side}×{side}", name, len(r2), share, deciles, f"{seconds:.0f} s"])
            record[f"{side} {name}"] = {"share": shares[name], "r2": [round(v, 4) for v in r2]}
        H = coder.transform(X[:5000])
        record[f"{side}"] = {
            "rows": len(X),
            "codes on": float((H != 0).sum(axis=1).mean()),
            "replaced": coder.n_replaced_,
        }
        least = shares["FastICA"] - 0.1
        met = [f"{name} {verdict(shares[name] >= least)}" for name in ("sparse coding", "PSD")]
        missed.append(
            f"{side}×{side}: at least FastICA's less 10 points ({100 * least:.0f} %): "
            + ", ".join(met)
        )
        picture(f"sparse_filters_{side}.png", [seen["sparse coding"][0], seen["PSD"][0]])
    said = ", ".join(
        f"{side}×{side}: {record[str(side)]['rows']:,} rows, {record[str(side)]['codes on']:.0f} "
        f"codes on, {record[str(side)]['replaced']} atoms replaced"
        for side in SIZES
    )
    text = [
        f"{PATCHES:,} patches after Olshausen and Field's filter, the flat ones left out ({said}); "
        f"sparsity {SPARSITY}, {EPOCHS} epochs. A Gabor function fits a feature where R² > 0.8.",
        table(["patches", "", "features", "Gabors", "deciles of R²", "training"], lines),
        "Targets: " + "; ".join(missed) + ".",
        "`docs/images/sparse_filters_12.png` and `sparse_filters_16.png`: the first 144 atoms of "
        "sparse coding and of PSD.",
    ]
    write(chosen, "sparse_filters", "Atoms of sparse coding", "\n\n".join(text), record)


if __name__ == "__main__":
    main()
