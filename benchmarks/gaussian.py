"""GaussianRBM at its defaults on real-valued images: moments of samples, likelihoods, filters.

    python benchmarks/gaussian.py --data digits | mnist | faces | patches

`digits`: scikit-learn's 8×8; `mnist`: 28×28 grey; `faces`: Olivetti reduced to 16×16; `patches`:
8×8 of BSDS500, ZCA-whitened. Nothing but `patches` is whitened. Budget: 30 minutes each.
"""

from __future__ import annotations

from common import HERE, Clock, options, table, write

SAMPLES, STEPS = 20_000, 1000


def digits():
    import numpy as np

    from energyscape.data import load_digits

    X = load_digits()[0]
    X = X[np.random.default_rng(0).permutation(len(X))]
    return X[:1400], X[1400:], None


def mnist():
    from energyscape.data import load_mnist

    return load_mnist("train")[0], load_mnist("test")[0], None


def faces():
    """16×16 by means of 4×4 blocks; 32 persons to train on, 8 others to test."""
    import numpy as np
    import scipy.io

    from energyscape.data import data_home

    F = scipy.io.loadmat(data_home() / "olivetti" / "olivettifaces.mat")["faces"]
    F = F.T.reshape(400, 64, 64).swapaxes(1, 2).astype(np.float32) / 255
    F = F.reshape(400, 16, 4, 16, 4).mean(axis=(2, 4)).reshape(40, 10, 256)
    F = F[np.random.default_rng(0).permutation(40)]
    return F[:32].reshape(-1, 256), F[32:].reshape(-1, 256), None


def patches():
    """60,000 + 10,000 patches, from 80 and 20 images; means and ZCA of the training part."""
    import numpy as np

    from energyscape.data import data_home

    stored = np.load(data_home() / "bsds500_train100" / "bsds500_train100_gray.npz")
    images, rng, parts = [stored[k] for k in stored.files], np.random.default_rng(0), []
    for pool, n in ((images[:80], 60_000), (images[80:], 10_000)):
        rows = np.empty((n, 64))
        for i in range(n):
            image = pool[rng.integers(len(pool))]
            top, left = (rng.integers(s - 7) for s in image.shape)
            rows[i] = image[top : top + 8, left : left + 8].ravel() / 255
        parts.append(rows)
    mean = parts[0].mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(parts[0].T))
    zca = vectors @ np.diag(values**-0.5) @ vectors.T
    train, test = (((rows - mean) @ zca).astype(np.float32) for rows in parts)
    return train, test, np.linalg.inv(zca)


# ---------------------------------------------------------------- figures


def moments(X, S):
    """Variance ratios along the leading eigenvectors (90 %), kurtosis of random projections."""
    import numpy as np
    from scipy.stats import kurtosis

    values, vectors = np.linalg.eigh(np.cov(X.T.astype(np.float64)))
    values, vectors = values[::-1], vectors[:, ::-1]
    lead = 1 + int(np.searchsorted(np.cumsum(values) / values.sum(), 0.9))
    ratio = (S @ vectors[:, :lead]).var(axis=0) / values[:lead]
    rng = np.random.default_rng(0)
    axes = rng.standard_normal((X.shape[1], 200))

    def mean_kurtosis(rows) -> float:
        return float(kurtosis(rows @ axes, fisher=False).mean())

    again = [mean_kurtosis(X[rng.integers(len(X), size=len(X))]) for _ in range(50)]
    return ratio, mean_kurtosis(X), float(np.std(again)), mean_kurtosis(S)


def gaussian_baselines(X, T) -> tuple[float, float]:
    """Mean test log-likelihood of the factorial and of the full Gaussian (ridge on validation)."""
    import numpy as np

    X, T = X.astype(np.float64), T.astype(np.float64)
    mean = X.mean(axis=0)
    var = X.var(axis=0)
    var = np.where(var == 0, 0.01 * var.mean(), var)  # constant pixels, as GaussianRBM has it
    factorial = -0.5 * ((T - mean) ** 2 / var + np.log(2 * np.pi * var)).sum(axis=1).mean()

    def full(rows, test, ridge: float) -> float:
        center = rows.mean(axis=0)
        cov = np.cov(rows.T) + ridge * np.diag(var)
        d = test - center
        _, log_det = np.linalg.slogdet(2 * np.pi * cov)
        return float(-0.5 * ((d * np.linalg.solve(cov, d.T).T).sum(axis=1) + log_det).mean())

    cut = int(0.85 * len(X))
    grid = 10.0 ** np.arange(-6, 1)
    best = max(grid, key=lambda r: full(X[:cut], X[cut:], r))
    return float(factorial), full(X, T, best)


def likelihood(model, T):
    """Mean test log-likelihood: exact, or AIS with 500 chains and 10,000 temperatures."""
    import math

    from energyscape.samplers import AIS

    if math.isinf(model.log_partition_ess_):
        return model.score(T), model.score(T), math.inf
    bounds = model.log_likelihood_bounds(T, AIS(500, 10_000))
    return bounds.low, bounds.high, bounds.partition.ess


def study(name: str, X, T, unwhiten) -> tuple[str, dict]:
    from energyscape.models import GaussianRBM
    from energyscape.plotting import save_grid
    from energyscape.trainers import PCD

    clock = Clock()
    settings, trainer = "defaults", None
    if name == "patches":  # whitened: as fast along every axis, so that a higher rate is stable
        trainer = PCD(n_epochs=60, n_chains=500, learning_rate=0.05, averaging=0.1)
        settings = f"`{trainer}`"
    model = GaussianRBM(trainer=trainer, random_state=0, verbose=1).fit(X)
    seconds = clock()
    S = model.sample(SAMPLES, n_steps=STEPS, random_state=1)
    ratio, data_k, error_k, sample_k = moments(X, S)
    off = int((abs(ratio - 1) > 0.2).sum())
    low, high, ess = likelihood(model, T)
    small = GaussianRBM(20, trainer=trainer, random_state=0).fit(X)
    exact = small.score(T)
    factorial, full = gaussian_baselines(X, T)
    pictures = HERE / "results"
    zoom = max(1, 40 // int(X.shape[1] ** 0.5))
    filters, images = model.components_[:100], S[:100]
    if unwhiten is not None:
        filters, images = filters @ unwhiten, images @ unwhiten  # as pixels
    save_grid(pictures / f"gaussian_{name}_filters.png", filters, zoom, symmetric=True)
    save_grid(pictures / f"gaussian_{name}_samples.png", images, zoom)
    rows = [
        [
            "leading eigenvectors (90 % of variance) off by more than 20 %",
            f"{off} of {len(ratio)}",
            "0",
        ],
        [
            "variance along them, samples / data, least and most",
            f"{ratio.min():.2f}, {ratio.max():.2f}",
            "0.80, 1.20",
        ],
        ["kurtosis of random projections: samples", f"{sample_k:.3f}", "between these two"],
        ["… data (± bootstrap), Gaussian", f"{data_k:.3f} ± {error_k:.3f}, 3", ""],
        [
            f"test log-likelihood, RBM({model.n_components}), RAISE and forward AIS "
            f"({ess:.0f} of 500 chains count)",
            f"{low:.1f}, {high:.1f}",
            "",
        ],
        [
            "test log-likelihood, RBM(20), exact",
            f"**{exact:.2f}**",
            "" if name == "patches" else f"≥ {factorial + 10:.2f}",
        ],
        ["… factorial Gaussian", f"{factorial:.2f}", ""],
        ["… full Gaussian (ridge chosen on training rows)", f"{full:.2f}", ""],
    ]
    text = (
        f"{len(X):,} training rows of {X.shape[1]} pixels, {settings}, {SAMPLES:,} samples after "
        f"{STEPS} Gibbs steps from the training's chains; training {seconds:.0f} s.\n\n"
        + table(["", "measured", "target"], rows)
        + f"\n\nFilters and samples: `results/gaussian_{name}_filters.png`, `…_samples.png`."
    )
    record = {
        "ratio": ratio.tolist(),
        "kurtosis": [data_k, error_k, sample_k],
        "exact 20": exact,
        "factorial": factorial,
        "full": full,
        "AIS": [low, high, ess],
    }
    return text, record


def main() -> None:
    sets = {"digits": digits, "mnist": mnist, "faces": faces, "patches": patches}
    chosen = options(__doc__, data={"choices": tuple(sets), "required": True})
    text, record = study(chosen.data, *sets[chosen.data]())
    write(chosen, f"gaussian_{chosen.data}", f"GaussianRBM: {chosen.data}", text, record)


if __name__ == "__main__":
    main()
