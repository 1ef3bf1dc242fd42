"""Samples of models of patches beside held-out patches of natural images.

    python benchmarks/gated_samples.py

Rows: 100,000 patches of 8×8 from the training images of BSDS500, log(1 + grey level), less their
mean, whitened (all 63 components); 20,000 from BSD68 are held out. mPoT (192 filters, 64 mean
units) and GaussianRBM (256 units) are trained by PCD for 20 epochs; their chains (HMC of 5 leapfrog
steps that keeps half of its momentum, since what mixes slowly is the length of x; Gibbs) start from
patches, and from a Gaussian twice as wide, and both must tell the same. The Gaussian has the
training rows' moments. Compared are responses of one bank of filters on pixels, fixed beforehand:
their quantiles, and how neighbours' squares go together. Budget: 30 minutes.
"""

from __future__ import annotations

from typing import Any

from common import HERE, Clock, options, table, write
from gated_patches import COMPONENTS, EPOCHS, SIDE, fitted, small_models, white_rows

TRAIN, TEST = 100_000, 20_000
CHAINS, WARMUP, STEPS, THIN = 300, 6_000, 6_000, 60  # 30,000 states kept
LEVELS = (0.01, 0.05, 0.5, 0.95, 0.99)


def bank() -> tuple[Any, dict[str, list[tuple[int, int]]]]:
    """(filters (n, 64) without a mean, of length 1; pairs of neighbours): 16 random ones, 16
    differences of adjacent pixels, and Gabors of wave length 4 at 9 places in 4 directions."""
    import numpy as np

    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    found = list(np.random.default_rng(0).standard_normal((16, SIDE, SIDE)))
    for top in (1, 3, 4, 6):
        for left in (2, 5):
            for down, right in ((0, 1), (1, 0)):
                step = np.zeros((SIDE, SIDE))
                step[top, left], step[top + down, left + right] = -1, 1
                found.append(step)
    pairs: dict[str, list[tuple[int, int]]] = {"place": [], "direction": []}
    at = {}
    for i in range(3):
        for j in range(3):
            for k in range(4):
                angle, away_y, away_x = k * np.pi / 4, y - 1.5 - 2 * i, x - 1.5 - 2 * j
                wave = np.cos(0.5 * np.pi * (away_x * np.cos(angle) + away_y * np.sin(angle)))
                at[i, j, k] = len(found)
                found.append(wave * np.exp(-(away_x**2 + away_y**2) / (2 * 1.3**2)))
    for (i, j, k), own in at.items():
        near = [(i + 1, j, k), (i, j + 1, k)]
        pairs["place"] += [(own, at[place]) for place in near if place in at]
        pairs["direction"].append((own, at[i, j, (k + 1) % 4]))
    filters = np.stack(found).reshape(len(found), -1)
    filters -= filters.mean(axis=1, keepdims=True)
    return filters / np.linalg.norm(filters, axis=1, keepdims=True), pairs


def chains(model: Any, sampler: Any, X: Any) -> tuple[Any, dict[str, float]]:
    """(states (CHAINS, kept, 63), the greatest R-hat of energy, length and coordinates)."""
    import numpy as np

    from energyscape.samplers import Trace, rhat

    rng, half = np.random.default_rng(0), CHAINS // 2
    start = np.concatenate([X[:half], 2 * rng.standard_normal((half, COMPONENTS))])
    target = model.target(model._params)
    run = sampler.run(
        target,
        start.astype(np.float32),
        STEPS,
        0,
        n_warmup=WARMUP,
        thin=THIN,
        reducers=[Trace()],
    )
    states = np.asarray(run.reduced[0])
    energy = model.energy(states.reshape(-1, COMPONENTS)).reshape(states.shape[:2])
    length = (states.astype(np.float64) ** 2).sum(axis=2)
    told = {
        "energy": float(rhat(energy)),
        "length": float(rhat(length)),
        "coordinates": float(np.max(rhat(states.astype(np.float64)))),
    }
    return states, told


def statistics(rows: Any, white: Any, filters: Any, pairs: Any, unit: Any) -> dict[str, Any]:
    """Quantiles of the responses over ``unit``, (filters, levels), and the correlations of squared
    responses of neighbours."""
    import numpy as np

    responses = white.inverse_transform(rows.astype(np.float64)) @ filters.T
    if unit is None:
        unit = responses.std(axis=0)
    responses /= unit
    squares = np.corrcoef((responses**2).T)
    return {
        "unit": unit,
        "quantiles": np.quantile(responses, LEVELS, axis=0).T,
        "neighbours": {
            kind: float(np.mean([squares[pair] for pair in among])) for kind, among in pairs.items()
        },
        "pairs": np.array([squares[pair] for among in pairs.values() for pair in among]),
        "variance": rows.astype(np.float64).var(axis=0),
    }


def picture(name: str, panels: list[Any]) -> None:
    """Panels of 100 patches side by side on one grey scale."""
    import numpy as np

    from energyscape.plotting import image_grid, save_png

    images = np.concatenate(panels).reshape(-1, SIDE, SIDE)
    top = np.quantile(abs(panels[0]), 0.995)
    grid = image_grid(np.clip(images, -top, top), n_columns=10, symmetric=True, scale="all")
    high = 10 * (SIDE + 1)
    parts = [grid[i * high : (i + 1) * high + 1] for i in range(len(panels))]
    gap = np.full((high + 1, 12), 255, np.uint8)
    line = [parts[0]] + [part for panel in parts[1:] for part in (gap, panel)]
    pixels = np.hstack(line).repeat(2, axis=0).repeat(2, axis=1)
    save_png(HERE.parent / "docs" / "images" / name, pixels)


def main() -> None:
    chosen = options(__doc__, threads=1)
    import numpy as np

    from energyscape.samplers import HMC

    X, T, white = white_rows(SIDE, COMPONENTS, TRAIN, TEST)
    filters, pairs = bank()
    rng, record = np.random.default_rng(0), {}
    X64 = X.astype(np.float64)
    root = np.linalg.cholesky(np.cov(X64.T))
    draws = rng.standard_normal((CHAINS * STEPS // THIN, COMPONENTS)) @ root.T + X64.mean(axis=0)
    rows, told = {"held-out patches": T, "training patches": X}, []
    for name, model in small_models().items():
        if name == "PoT":
            continue
        model, seconds = fitted(name, model, X)
        clock = Clock()
        sampler = HMC(5, persistence=0.5) if name == "mPoT" else model.default_sampler()
        states, agreement = chains(model, sampler, X)
        record[name] = {"seconds": seconds, "sampling": clock(), "rhat": agreement}
        half = CHAINS // 2
        told.append((name, states[:half].reshape(-1, COMPONENTS), states[half:]))
        rows[name] = states.reshape(-1, COMPONENTS)
        rows["last of " + name] = states[:, -1]
    rows["Gaussian"] = draws
    eigenvalues = np.linalg.eigvalsh(white.covariance_)[::-1]
    leading = int(np.searchsorted(eigenvalues.cumsum() / eigenvalues.sum(), 0.9)) + 1
    known, unit = {}, None
    for name in (key for key in rows if not key.startswith("last")):
        known[name] = statistics(rows[name], white, filters, pairs, unit)
        unit = known[name]["unit"] if unit is None else unit
    test, lines, spectra = known["held-out patches"], [], []
    for name, own in known.items():
        away = float(abs(own["quantiles"] - test["quantiles"]).mean())
        off = float(abs(own["pairs"] - test["pairs"]).mean())
        quantiles = own["quantiles"].mean(axis=0)
        lines.append(
            [
                name,
                *(f"{q:.2f}" for q in quantiles),
                f"**{away:.3f}**",
                f"{own['neighbours']['place']:.2f}, {own['neighbours']['direction']:.2f}",
                f"**{off:.3f}**",
            ]
        )
        record.setdefault(name, {})
        record[name] |= {"quantiles": quantiles.tolist(), "quantiles_off": away}
        record[name] |= {"neighbours": own["neighbours"], "neighbours_off": off}
        for against in ("training patches", "held-out patches"):
            ratio = own["variance"][:leading] / known[against]["variance"][:leading]
            record[name]["variance over " + against] = [round(float(v), 3) for v in ratio]
        ratio = own["variance"][:leading] / known["training patches"]["variance"][:leading]
        quartiles = np.quantile(ratio, (0, 0.25, 0.5, 0.75, 1))
        within = int((abs(ratio - 1) <= 0.15).sum())
        spectra.append([name, *(f"{v:.2f}" for v in quartiles), f"{within} of {leading}"])
    halves = {}
    for name, first, second in told:
        parts = [first, second.reshape(-1, COMPONENTS)]
        owns = [statistics(part, white, filters, pairs, unit) for part in parts]
        halves[name] = {
            key: float(abs(owns[0][which] - owns[1][which]).mean())
            for key, which in (("quantiles", "quantiles"), ("neighbours", "pairs"))
        }
        for kind, own in zip(("patches", "wide"), owns, strict=True):
            ratio = own["variance"][:leading] / known["training patches"]["variance"][:leading]
            off = float(abs(own["quantiles"] - test["quantiles"]).mean())
            record[name]["from " + kind] = {
                "quantiles_off": off,
                "neighbours_off": float(abs(own["pairs"] - test["pairs"]).mean()),
                "variance": [float(v) for v in np.quantile(ratio, (0, 0.5, 1))],
            }
        record[name]["starts_apart"] = halves[name]
    shown = [T[:100], rows["last of mPoT"][::3], rows["last of GaussianRBM"][::3], draws[:100]]
    picture("gated_samples.png", [white.inverse_transform(np.asarray(part)) for part in shown])
    closer = {
        key: record["mPoT"][key] < min(record[k][key] for k in ("GaussianRBM", "Gaussian"))
        for key in ("quantiles_off", "neighbours_off")
    }
    ratios = np.array(record["mPoT"]["variance over training patches"])
    met = "met" if (abs(ratios - 1) <= 0.15).all() else "**missed**"
    agreement = []
    for name, apart in halves.items():
        own, worst = record[name], max(record[name]["rhat"].values())
        off = [own["from " + kind]["quantiles_off"] for kind in ("patches", "wide")]
        agreement.append(
            f"{name}: R-hat at most {worst:.3f}{' (**not converged**)' * (worst > 1.05)}, "
            f"quantiles of the two starts {apart['quantiles']:.3f} apart, {off[0]:.3f} and "
            f"{off[1]:.3f} from those of held-out patches, correlations {apart['neighbours']:.3f} "
            f"apart (training {own['seconds']:.0f} s, sampling {own['sampling']:.0f} s)"
        )
    text = [
        f"{TRAIN:,} training patches of {SIDE}×{SIDE}, {COMPONENTS} whitened components; mPoT(192 "
        f"filters, 64 mean units) and GaussianRBM(256), PCD, {EPOCHS} epochs. {CHAINS} chains, "
        f"half from patches, half from a Gaussian twice as wide, {WARMUP:,} steps to warm up "
        f"and {STEPS:,} of which every {THIN}th is kept. " + ". ".join(agreement) + ". Times are "
        "those of a core that other work shared.",
        f"Responses of {len(filters)} filters on pixels (random, differences of adjacent pixels, "
        "Gabors), in units of their deviation on held-out patches: quantiles, mean over filters, "
        "and how far they are from those of held-out patches, mean of |difference|; correlations "
        "of squared responses of neighbouring Gabors (2 pixels, 45° apart), and how far off:",
        table(
            ["", "1 %", "5 %", "50 %", "95 %", "99 %", "off", "place, direction", "off"],
            lines,
        ),
        "Target: mPoT closer than GaussianRBM and Gaussian in quantiles "
        + ("(met)" if closer["quantiles_off"] else "(**missed**)")
        + " and in neighbours "
        + ("(met)." if closer["neighbours_off"] else "(**missed**)."),
        f"Variance along the {leading} leading principal axes (90 % of the variance), over that of "
        "training patches:",
        table(["", "least", "25 %", "median", "75 %", "most", "within 15 %"], spectra),
        f"Target: mPoT within 15 % on all of them: {met}. (Images of BSD68 have more contrast than "
        "those of the training part.)",
        "`docs/images/gated_samples.png`: held-out patches, mPoT, GaussianRBM, Gaussian, on one "
        "grey scale.",
    ]
    title = "Samples of gated models of patches"
    write(chosen, "gated_samples", title, "\n\n".join(text), record)


if __name__ == "__main__":
    main()
