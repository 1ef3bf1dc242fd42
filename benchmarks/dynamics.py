"""Dynamics that lead to the data: auto-encoders on a curve in the plane, and on MNIST.

On a curve: iterating a denoising auto-encoder leads corrupted points to the curve; off the curve
the reconstruction error of contracting and saturating codes grows faster than that of plain ones
(Goroshin and LeCun, 2013). On MNIST: iterating one from corrupted test digits lowers the distance
to the nearest of the training digits. Pictures go to ``--out``. Budget: 10 minutes.
"""

from __future__ import annotations

import math
from pathlib import Path

from common import Clock, options, table, write

SEEDS, MNIST_SEEDS, STEPS = range(10, 16), 3, 5  # strengths were chosen on other seeds
END = 2.4  # of the curve's parameter, on both sides
NOISE, SPREAD = 0.2, 0.3  # of the training, and of the points that are led back
DISTANCES = (0.0, 0.1, 0.2, 0.3, 0.5)  # along the normals; 0.5 is past the centre of bends
UNITS, UPDATES, RATE = 100, 8000, 0.005
ROWS = 10_000


def curve(t):
    """(t, 0.8 sin 2t), shape (n, 2)."""
    import numpy as np

    return np.stack([t, 0.8 * np.sin(2 * t)], axis=1)


def normals(t):
    import numpy as np

    along = np.stack([np.ones_like(t), 1.6 * np.cos(2 * t)], axis=1)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    return along[:, ::-1] * [-1, 1]


def contenders(n_rows: int):
    """Each beside the plain one of its own architecture."""
    from energyscape.corruptions import GaussianNoise
    from energyscape.models.autoencoder import AutoEncoder
    from energyscape.optim import Adam
    from energyscape.penalties import Contractive, Saturating
    from energyscape.trainers import Contraction, Denoising, Reconstruction, Saturation

    settings = {"optimizer": Adam(RATE), "n_epochs": UPDATES * 100 // n_rows}
    free = {"activation": "tanh", "tied": False}
    return {
        "plain, tanh, untied": AutoEncoder(UNITS, trainer=Reconstruction(**settings), **free),
        "denoising, tanh, untied": AutoEncoder(
            UNITS, trainer=Denoising(GaussianNoise(NOISE), **settings), **free
        ),
        "plain, tanh": AutoEncoder(UNITS, activation="tanh", trainer=Reconstruction(**settings)),
        "contracting, tanh": AutoEncoder(
            UNITS, activation="tanh", trainer=Contraction(Contractive(0.03), **settings)
        ),
        "plain, saturated linear": AutoEncoder(
            UNITS, activation="saturated_linear", trainer=Reconstruction(**settings)
        ),
        "saturating, saturated linear": AutoEncoder(
            UNITS, activation="saturated_linear", trainer=Saturation(Saturating(0.05), **settings)
        ),
    }


def interval(values) -> tuple[float, float]:
    """Mean and half width of Student's 99% interval over the seeds."""
    import numpy as np
    from scipy import stats

    half = stats.t.ppf(0.995, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values)), float(half)


def shown(values, digits: int = 3) -> str:
    mean, half = interval(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


# ---------------------------------------------------------------- the curve


def on_the_curve(seed: int):
    """Reconstruction errors by distance, and distances by step, for every contender."""
    import numpy as np
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(seed)
    tree = cKDTree(curve(np.linspace(-END, END, 10_000)))
    X = curve(rng.uniform(-END, END, 3000))
    t = rng.uniform(-END + 0.2, END - 0.2, 1000)
    start = curve(t) + SPREAD * rng.standard_normal((len(t), 2))
    errors, paths, models = {}, {}, contenders(len(X))
    for name, model in models.items():
        model.set_params(random_state=seed).fit(X)
        sides = [
            np.concatenate([curve(t) + d * normals(t), curve(t) - d * normals(t)])
            for d in DISTANCES
        ]
        errors[name] = [math.sqrt(model.energy(points).mean()) for points in sides]
        x, path = start, []
        for _ in range(STEPS + 1):
            path.append(float(tree.query(x)[0].mean()))
            x = model.reconstruct(x)
        paths[name] = path
    return errors, paths, models


def growth_table(errors: list[dict]) -> tuple[str, str]:
    """Errors by distance, and how much faster they grow than the plain ones."""
    import numpy as np

    names, rows, lines = list(errors[0]), [], []
    for name in names:
        each = np.array([e[name] for e in errors])
        rows.append([name, *(shown(column) for column in each.T)])
    for plain, other in zip(names[::2], names[1::2], strict=True):
        a, b = (np.array([e[name] for e in errors]) for name in (plain, other))
        grown = np.log((b[:, 1:] - b[:, :1]) / (a[:, 1:] - a[:, :1]))
        words = []
        for d, column in zip(DISTANCES[1:], grown.T, strict=True):
            if not np.isfinite(column).all():
                words.append(f"not above 0 in every seed at {d}")
                continue
            mean, half = interval(column)
            low, high = math.exp(mean - half), math.exp(mean + half)
            verdict = "" if low > 1 else " (no order)" if high > 1 else " (slower)"
            words.append(f"{math.exp(mean):.1f} [{low:.1f}, {high:.1f}] at {d}{verdict}")
        lines.append(f"* {other}: {', '.join(words)}")
    header = ["√⟨F⟩ at distance", *map(str, DISTANCES)]
    return table(header, rows), "\n".join(lines)


def path_table(paths: list[dict]) -> tuple[str, int]:
    """Distances by step, and how many first steps of the denoising one lower them for certain."""
    import numpy as np

    rows = []
    for name in paths[0]:
        each = np.array([p[name] for p in paths])
        rows.append([name, *(shown(column) for column in each.T)])
    falls = -np.diff(np.array([p["denoising, tanh, untied"] for p in paths]), axis=1)
    certain = [interval(column)[0] > interval(column)[1] for column in falls.T]
    first = certain.index(False) if False in certain else len(certain)
    return table(["step", *map(str, range(STEPS + 1))], rows), first


def draw_fields(models: dict, path: Path) -> None:
    """Energy (dark: low) and steps to the reconstruction; each panel has its own scales."""
    import numpy as np
    from matplotlib.figure import Figure

    names = [n for n in models if n not in ("plain, tanh, untied", "plain, saturated linear")]
    figure = Figure(figsize=(13, 7), layout="constrained")
    x, y = np.meshgrid(np.linspace(-3, 3, 121), np.linspace(-1.8, 1.8, 73))
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    t = np.linspace(-END, END, 400)
    for axes, name in zip(figure.subplots(2, 2).ravel(), names, strict=True):
        error = np.sqrt(models[name].energy(points)).reshape(x.shape)
        axes.pcolormesh(x, y, error, cmap="viridis", shading="gouraud", vmin=0)
        coarse = (slice(None, None, 4), slice(None, None, 4))
        u, v = (models[name].reconstruct(points) - points).T.reshape(2, *x.shape)
        axes.quiver(
            x[coarse], y[coarse], u[coarse], v[coarse], color="white", angles="xy", width=0.002
        )
        axes.plot(*curve(t).T, color="tab:red", linewidth=1.5)
        axes.set_title(f"{name}: √F up to {error.max():.2g}", fontsize="medium")
        axes.set_aspect("equal")
    figure.savefig(path, dpi=90, format="png")


# ---------------------------------------------------------------- MNIST


def nearest(points, rows):
    """Distance of each point to the nearest row."""
    import numpy as np

    squares = (points**2).sum(1)[:, None] - 2 * points @ rows.T + (rows**2).sum(1)
    return np.sqrt(np.maximum(squares.min(axis=1), 0))


def on_mnist(seed: int):
    """Distances by step of reconstructing corrupted test digits, and the model."""
    import numpy as np

    from energyscape.backend import Purpose, stream
    from energyscape.corruptions import SaltAndPepper
    from energyscape.data import load_mnist
    from energyscape.models.autoencoder import AutoEncoder
    from energyscape.optim import Adam
    from energyscape.trainers import Denoising

    X, T = load_mnist("train")[0], load_mnist("test")[0][:500]
    X = X[np.random.default_rng(seed).permutation(len(X))[:ROWS]]
    noise = SaltAndPepper(0.4)
    trainer = Denoising(noise, walkback=2, n_epochs=12, optimizer=Adam(0.002))
    model = AutoEncoder(500, loss="cross_entropy", trainer=trainer, random_state=seed).fit(X)
    points, seen = noise(T, stream(seed, Purpose.SAMPLE)), []
    to_data, to_clean = [], []
    for _ in range(STEPS + 1):
        to_data.append(nearest(points, X))
        to_clean.append(np.linalg.norm(points - T, axis=1))
        seen.append(points[:20])
        points = model.reconstruct(points)
    samples = model.sample(80, n_steps=200)
    return np.array(to_data), np.array(to_clean), model, np.concatenate(seen), samples


def falls(distances) -> list[str]:
    """Mean change of each step with its 99% interval, paired, over points within seeds and over
    seeds, whichever is wider."""
    import numpy as np

    cells = []
    for k in range(STEPS):
        change = np.array([d[k + 1] - d[k] for d in distances])  # (seeds, points)
        points = 2.576 * change.std(ddof=1) / math.sqrt(change.size)
        mean, seeds = interval(change.mean(axis=1))
        cells.append(f"{mean:+.3f} ± {max(points, seeds):.3f}")
    whole = np.array([(d[-1] - d[0]).mean() for d in distances])
    mean, seeds = interval(whole)
    cells.append(f"{mean:+.3f} ± {seeds:.3f}")
    return cells


def draw_mnist(model, seen, samples, path: Path) -> None:
    """Corrupted digits and their steps; the means of sampled digits; filters."""
    import numpy as np

    from energyscape.plotting import image_grid, save_png

    means = model.reconstruct(samples)
    panels = [
        image_grid(seen, n_columns=20, scale="all"),
        image_grid(means, n_columns=20, scale="all"),
        image_grid(model.components_[:80], n_columns=20, symmetric=True),
    ]
    gap = np.full((12, panels[0].shape[1]), 255, np.uint8)
    stacked = np.vstack([panels[0], gap, panels[1], gap, panels[2]])
    save_png(path, stacked.repeat(2, axis=0).repeat(2, axis=1))


def main() -> None:
    chosen = options(__doc__, threads=1, out={"default": "out", "help": "folder of the pictures"})
    clock, out = Clock(), Path(chosen.out)
    out.mkdir(parents=True, exist_ok=True)
    errors, paths, models = zip(*map(on_the_curve, SEEDS), strict=True)
    draw_fields(models[0], out / "dynamics_curve.png")
    by_distance, ratios = growth_table(errors)
    by_step, first = path_table(paths)
    assert first >= 2, "the denoising one does not lead to the curve"
    planar = clock()
    to_data, to_clean, fitted, seen, samples = zip(*map(on_mnist, range(MNIST_SEEDS)), strict=True)
    draw_mnist(fitted[0], seen[0], samples[0], out / "dynamics_mnist.png")
    names = ("to the nearest training digit", "to the clean digit")
    steps = [
        [name, f"{sum(d[0].mean() for d in each) / len(each):.2f}", *falls(each)]
        for name, each in zip(names, (to_data, to_clean), strict=True)
    ]
    text = "\n\n".join(
        [
            f"{len(SEEDS)} seeds, 3000 points of (t, 0.8 sin 2t), {UNITS} units, {UPDATES} "
            f"updates of Adam({RATE}); ± is Student's 99% interval over the seeds. Root mean "
            "reconstruction error at fixed distances along the normals (0.5 is past the centre of "
            "the bends: 18% of those points are nearer to the curve, none nearer than 0.41):",
            by_distance,
            "How many times more the error grows from the curve to a distance than that of the "
            "plain code of the same architecture, with 99% interval:",
            ratios,
            f"Mean distance to the curve, from points {SPREAD} off in both coordinates, by the "
            f"number of reconstructions (training noise of the denoising one: {NOISE}):",
            by_step,
            f"The denoising one lowers it for certain (99%, paired) at each of the first {first} "
            "steps.",
            f"MNIST, {ROWS:,} training rows, {MNIST_SEEDS} seeds, 784-500, salt and pepper 0.4, "
            "walkback 2; 500 test digits corrupted alike and reconstructed again and again. "
            "Distance at the start, and its change at each step (99%, paired):",
            table(["", "start", *(f"step {k + 1}" for k in range(STEPS)), "all"], steps),
            f"{planar:.0f} s and {clock():.0f} s. Pictures: energies and steps around the curve; "
            "corrupted digits with their steps, means of samples after 200 steps, filters.",
        ]
    )
    record = {"errors": errors, "distances": paths}
    record["mnist"] = {
        name: [d.mean(axis=1).tolist() for d in each]
        for name, each in zip(names, (to_data, to_clean), strict=True)
    }
    write(chosen, "dynamics", "Dynamics of auto-encoders", text, record)


if __name__ == "__main__":
    main()
