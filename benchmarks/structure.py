"""What structured penalties make of patches of natural images: maps, trees, and stable features.

    python benchmarks/structure.py

Rows: 60,000 random patches of 12×12, made as `sparse_filters` makes them. All begin at random rows
(RICA: at random numbers), in no order.

Maps: sparse coding with lateral inhibition on a ring and on a torus; PSD with pools on a torus of
20×20 (6×6 units, stride 2, Gaussian weights, each pool's summing to 1), as in Kavukcuoglu et al.
(2009); RICA with pools of 3×3 on a torus, of 100 whitened components (features are de-whitened).
Gabor functions are fitted to all atoms (`gated_filters`), and differences of orientation between
neighbours on the map, good fits or not, compared with those of 1,000 shuffled maps.

Tree: sparse coding with Szlam, Gregor and LeCun's inhibition between units that are not on one
branch of a binary tree, of growing strength η. Of all pairs of codes that are on together, the
share that lies on one branch, beside what units as often on would give by chance and what 1,000
relabelled trees give; and the share of squared codes off the best branch of each row.

Shifts: windows of the filtered images and the same windows 1 to 4 pixels to the right and down.
Features are sizes |h| of units, or pools of them, divided for each window by their length, because
any sum over many units tells the contrast, which moves little. Squared change of the features,
summed over them, over twice their variance: 1 is what unrelated windows give. Budget: 60 minutes.
"""

from __future__ import annotations

import colorsys
import itertools
import warnings
from typing import Any

from common import HERE, Clock, options, table, write
from gated_filters import gabors_of, verdict
from sparse_filters import filtered
from sparse_filters import patches as cut

SIDE, SEED = 12, 0
PATCHES = 60_000
RING, TORUS, POOLED, RECONSTRUCTED = (8, 16), (12, 12), (20, 20), (16, 16)  # shapes of the maps
INHIBITION, OF_ALL, CODING, ENCODING, ROTATING = 0.3, 0.3, 6, 8, 60  # λ, l1, epochs
KEPT = 100  # whitened components
ETAS, DEPTH, SHOWN = (0.003, 0.01, 0.03, 0.1, 0.3), 5, 0.03
SHIFTS, WINDOWS, SHUFFLES = 4, 5000, 20
ROUGHLY = {"tol": 1e-2, "random_state": SEED}
PSD_UNITS = "PSD, units"
INVARIANT_UNITS = "invariant PSD, units"
POOLS, SHUFFLED = "invariant PSD, pools", "its units in shuffled pools"
LEAST = "least of the shuffled"


# ---------------------------------------------------------------- maps


def inhibited(S: Any, strength: float, X: Any) -> Any:
    """Sparse coding of which units inhibit each other by ``strength`` S."""
    from energyscape.models import SparseCoding
    from energyscape.penalties import Lateral
    from energyscape.trainers import EM

    penalty, trainer = Lateral(S, strength, OF_ALL), EM(n_epochs=CODING, batch_size=256)
    return SparseCoding(len(S), penalty=penalty, trainer=trainer, max_iter=100, **ROUGHLY).fit(X)


def pools() -> Any:
    from energyscape.pools import torus_pools

    P = torus_pools(*POOLED, 6, stride=2, sigma=1.5)
    return P / P.sum(axis=1, keepdims=True)


def encoded(X: Any, **penalty: Any) -> Any:
    """PSD of as many units as the map of pools has."""
    from energyscape.models import PSD
    from energyscape.trainers import EnergyLoss

    trainer = EnergyLoss(n_epochs=ENCODING)
    units = POOLED[0] * POOLED[1]
    return PSD(units, trainer=trainer, max_iter=50, **penalty, **ROUGHLY).fit(X)


def reconstructed(X: Any) -> Any:
    """Features of a topographic RICA, de-whitened."""
    import numpy as np

    from energyscape.data import PCAWhitening
    from energyscape.models import RICA
    from energyscape.pools import torus_pools
    from energyscape.trainers import EnergyLoss

    white = PCAWhitening(KEPT).fit(X)
    trainer = EnergyLoss(n_epochs=ROTATING, learning_rate=0.2)
    units, P = RECONSTRUCTED[0] * RECONSTRUCTED[1], torus_pools(*RECONSTRUCTED, 3)
    model = RICA(units, pools=P, epsilon=0.3, trainer=trainer, random_state=SEED)
    return model.fit(white.transform(X)).components_ @ np.asarray(white.mixing_).T


def neighbours(height: int, width: int) -> Any:
    """Pairs of units next to each other on a torus, or on a ring for ``height`` 1."""
    import numpy as np

    at = np.arange(height * width).reshape(height, width)
    axes = (0, 1) if height > 1 else (1,)
    return np.concatenate([np.stack([at, np.roll(at, -1, a)], -1).reshape(-1, 2) for a in axes])


def smoothness(fits: list[dict[str, float]], pairs: Any) -> dict[str, float]:
    """Mean difference of orientation (degrees) over the pairs, that of shuffled maps, and p."""
    import numpy as np

    theta, rng = np.array([one["theta"] for one in fits]), np.random.default_rng(SEED)

    def turned(theta: Any) -> float:
        apart = abs(theta[pairs[:, 0]] - theta[pairs[:, 1]])
        return float(np.degrees(np.minimum(apart, np.pi - apart)).mean())

    shuffled = np.array([turned(rng.permutation(theta)) for _ in range(1000)])
    seen = turned(theta)
    p = (1 + int((shuffled <= seen).sum())) / (1 + len(shuffled))
    r2 = np.array([one["r2"] for one in fits])
    return {
        "neighbours": seen,
        "shuffled": float(shuffled.mean()),
        "p": p,
        "gabors": float((r2 > 0.8).mean()),
    }


def map_picture(name: str, images: Any, fits: list[dict[str, float]], width: int) -> None:
    """Atoms where they lie, and beside each other their orientations as hues, paler where a Gabor
    fits less."""
    import numpy as np

    from energyscape.plotting import image_grid, save_png

    atoms = image_grid(images, n_columns=width, symmetric=True)
    colours = [colorsys.hsv_to_rgb(f["theta"] / np.pi, max(f["r2"], 0.0), 1.0) for f in fits]
    side = images.shape[1] + 1
    tiles = np.array(colours).reshape(-1, width, 3).repeat(side, axis=0).repeat(side, axis=1)
    hues = np.full((*atoms.shape, 3), 255, np.uint8)
    hues[: tiles.shape[0], : tiles.shape[1]] = np.round(255 * tiles)
    gap = np.full((len(atoms), side, 3), 255, np.uint8)
    line = np.hstack([atoms[:, :, None].repeat(3, axis=2), gap, hues])
    save_png(HERE.parent / "docs" / "images" / name, line.repeat(2, axis=0).repeat(2, axis=1))


def maps(X: Any, plain: Any, seconds: float) -> tuple[dict[str, Any], Any]:
    """The record of each map; the PSD with pools. ``plain`` is PSD without, in ``seconds``,
    whose units are in no order: the control."""
    import numpy as np

    from energyscape.penalties import PooledL1, ring_inhibition, torus_inhibition

    ring = ring_inhibition(RING[0] * RING[1], 3, 30)
    torus = torus_inhibition(*TORUS, 1.5, 4.5)
    clock, made, record = Clock(), {}, {}
    made["ring"] = (inhibited(ring, INHIBITION, X).components_, (1, len(ring)), clock())
    made["torus"] = (inhibited(torus, INHIBITION, X).components_, TORUS, clock())
    invariant = encoded(X, penalty=PooledL1(pools(), 2 * plain.strength_, 0.1))
    made["pools"] = (invariant.components_, POOLED, clock())
    made["rica"] = (reconstructed(X), RECONSTRUCTED, clock())
    made["control"] = (plain.components_, POOLED, seconds)
    for name, (atoms, shape, took) in made.items():
        images = np.asarray(atoms, np.float64).reshape(-1, SIDE, SIDE)
        fits = gabors_of(images)
        record[name] = smoothness(fits, neighbours(*shape)) | {"seconds": took}
        if name != "control":
            width = RING[1] if name == "ring" else shape[1]
            map_picture(f"structure_{name}.png", images, fits, width)
    return record, invariant


# ---------------------------------------------------------------- trees


def on_branches(H: Any, S: Any) -> dict[str, float]:
    """How much of what is on lies on one branch of the tree that S is made of."""
    import numpy as np

    on = (H != 0).astype(np.float64)
    apart = 1 - np.eye(len(S))
    related = (S == 0) * apart
    together = on.T @ on * apart
    often = on.mean(axis=0)
    chance = np.outer(often, often) * apart
    rng, total = np.random.default_rng(SEED), together.sum()
    share = float((together * related).sum() / total)
    orders = [rng.permutation(len(S)) for _ in range(1000)]
    shuffled = np.array([(together[np.ix_(o, o)] * related).sum() / total for o in orders])
    # A leaf and what is above it: the ancestors of a unit have smaller numbers.
    leaves = [i for i in range(len(S)) if 2 * i + 1 >= len(S)]
    branches = np.array([[S[i, j] == 0 and j <= i for j in range(len(S))] for i in leaves])
    squares = np.asarray(H, np.float64) ** 2
    return {
        "on": float(on.sum(axis=1).mean()),
        "share": share,
        "chance": float((chance * related).sum() / chance.sum()),
        "shuffled": float(shuffled.mean()),
        "p": (1 + int((shuffled >= share).sum())) / (1 + len(orders)),
        "off": 1 - float((squares @ branches.T).max(axis=1).sum() / squares.sum()),
    }


def tree_picture(name: str, images: Any) -> None:
    """Atoms level by level, each above the middle of its children."""
    import numpy as np

    from energyscape.plotting import image_grid, save_png

    side = images.shape[1] + 2
    leaves = 2**DEPTH
    canvas = np.full(((DEPTH + 1) * (side + 6), leaves * side), 255, np.uint8)
    for i, image in enumerate(images):
        level = (i + 1).bit_length() - 1
        place = (i + 1 - 2**level + 0.5) * leaves / 2**level
        top, left = level * (side + 6), round((place - 0.5) * side)
        canvas[top : top + side, left : left + side] = image_grid(image[None], symmetric=True)
    pixels = canvas.repeat(2, axis=0).repeat(2, axis=1)
    save_png(HERE.parent / "docs" / "images" / name, pixels)


def trees(X: Any) -> dict[str, Any]:
    """By η: what is on one branch."""
    import numpy as np

    from energyscape.penalties import tree_inhibition

    S, record = tree_inhibition(DEPTH), {}
    for eta in ETAS:
        clock = Clock()
        model = inhibited(S, eta, X)
        record[str(eta)] = on_branches(model.transform(X[:5000]), S) | {"seconds": clock()}
        if eta == SHOWN:
            images = np.asarray(model.components_).reshape(-1, SIDE, SIDE)
            tree_picture("structure_tree.png", images)
    return record


# ---------------------------------------------------------------- shifts


def windows(images: list[Any]) -> dict[tuple[int, int], Any]:
    """Rows at each shift (down, right), the same places in the same order, less their means; flat
    ones are left out by what is there without a shift."""
    import numpy as np

    rng, places = np.random.default_rng(SEED + 1), []
    for _ in range(WINDOWS):
        which = int(rng.integers(len(images)))
        height, width = images[which].shape
        room = SIDE + SHIFTS - 1
        places.append((which, int(rng.integers(height - room)), int(rng.integers(width - room))))
    shifts = [(0, 0)] + [s for k in range(1, SHIFTS + 1) for s in ((k, 0), (0, k))]
    found = {}
    for down, right in shifts:
        rows = np.stack(
            [
                images[i][t + down : t + down + SIDE, x + right : x + right + SIDE].ravel()
                for i, t, x in places
            ]
        )
        found[down, right] = rows - rows.mean(axis=1, keepdims=True)
    variance = found[0, 0].var(axis=1)
    kept = variance > 0.1 * variance.mean()
    return {shift: rows[kept] for shift, rows in found.items()}


def change(features: Any, rows: dict[tuple[int, int], Any], contrast: bool) -> list[float]:
    """Squared change over twice the variance, by pixels of the shift: 0, 1, ...; of features over
    their length unless ``contrast``."""
    import numpy as np

    def told(shift: tuple[int, int]) -> Any:
        found = features(rows[shift])
        length = 1.0 if contrast else np.linalg.norm(found, axis=1)[:, None]
        return found / np.maximum(length, 1e-12)

    first = told((0, 0))
    curve = [0.0]
    for k in range(1, SHIFTS + 1):
        shares = []
        for shift in ((k, 0), (0, k)):
            moved = told(shift)
            spread = first.var(axis=0).sum() + moved.var(axis=0).sum()
            shares.append(((moved - first) ** 2).mean(axis=0).sum() / spread)
        curve.append(float(np.mean(shares)))
    return curve


def shifts(
    rows: dict[tuple[int, int], Any], plain: Any, invariant: Any, contrast: bool
) -> dict[str, list[float]]:
    """Curves by the name of the features; of shuffled pools the mean."""
    import numpy as np

    P, rng = pools(), np.random.default_rng(SEED)

    def sizes(model: Any) -> Any:
        return lambda x: np.abs(model.transform(x), dtype=np.float64)

    def pooled(weights: Any) -> Any:
        return lambda x: np.sqrt(sizes(invariant)(x) ** 2 @ weights.T)

    def curve(features: Any) -> list[float]:
        return change(features, rows, contrast)

    curves = {
        "pixels": curve(lambda x: x.astype(np.float64)),
        PSD_UNITS: curve(sizes(plain)),
        INVARIANT_UNITS: curve(sizes(invariant)),
        POOLS: curve(pooled(P)),
    }
    many = [curve(pooled(P[:, rng.permutation(P.shape[1])])) for _ in range(SHUFFLES)]
    curves[SHUFFLED] = [float(v) for v in np.mean(many, axis=0)]
    curves[LEAST] = [float(v) for v in np.min(many, axis=0)]
    return curves


def curves_picture(name: str, curves: dict[str, list[float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for label, curve in curves.items():
        axes.plot(range(len(curve)), curve, marker="o", markersize=3, label=label)
    axes.set_xlabel("shift, pixels")
    axes.set_ylabel("squared change / 2 variances")
    axes.set_xticks(range(SHIFTS + 1))
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(HERE.parent / "docs" / "images" / name, dpi=120, format="png")


# ---------------------------------------------------------------- all of it


MAPS = {
    "ring": f"ring of {RING[0] * RING[1]}, inhibition from 3 to 30 apart",
    "torus": f"torus of {TORUS[0]}×{TORUS[1]}, inhibition from 1.5 to 4.5 apart",
    "pools": f"torus of {POOLED[0]}×{POOLED[1]}, PSD with pools",
    "rica": f"torus of {RECONSTRUCTED[0]}×{RECONSTRUCTED[1]}, RICA with pools",
    "control": f"torus of {POOLED[0]}×{POOLED[1]}, PSD without pools",
}


def said_of_maps(record: dict[str, Any]) -> list[str]:
    lines = [
        [
            said,
            f"**{record[name]['neighbours']:.1f}°**",
            f"{record[name]['shuffled']:.1f}°",
            f"{record[name]['p']:.3f}",
            f"{100 * record[name]['gabors']:.0f} %",
            f"{record[name]['seconds']:.0f} s",
        ]
        for name, said in MAPS.items()
    ]
    met = ", ".join(
        f"{name} {verdict(record[name]['p'] < 0.01)}" for name in MAPS if name != "control"
    )
    return [
        "**Maps.** Orientation of neighbours beside that of shuffled maps:",
        table(["map", "neighbours differ by", "shuffled", "p", "Gabors", "training"], lines),
        f"Target: neighbours differ less than shuffled ones, p < 0.01: {met} (the last, "
        f"whose units are in no order, must not: {verdict(record['control']['p'] > 0.01)}). "
        "`docs/images/structure_ring.png` (line by line), `structure_torus.png`, "
        "`structure_pools.png`, `structure_rica.png`: atoms where they lie; on the right their "
        "orientation as a hue, paler where a Gabor function fits less.",
    ]


def said_of_trees(record: dict[str, Any]) -> list[str]:
    lines = [
        [
            eta,
            f"{of['on']:.1f}",
            f"**{100 * of['share']:.1f} %**",
            f"{100 * of['chance']:.1f} %",
            f"{100 * of['shuffled']:.1f} % (p = {of['p']:.3f})",
            f"{100 * of['off']:.1f} %",
        ]
        for eta, of in record.items()
    ]
    off = [of["off"] for of in record.values()]
    falls = all(b < a for a, b in itertools.pairwise(off))
    last = list(record.values())[-1]
    header = ["η", "codes on", "pairs on a branch", "by chance", "relabelled", "h² off the branch"]
    return [
        f"**Tree** of {2 ** (DEPTH + 1) - 1} units, l1 = {OF_ALL}; 5,000 rows:",
        table(header, lines),
        f"Targets: squared codes off the best branch fall as η grows: {verdict(falls)}; at the "
        f"largest η pairs lie on a branch more often than by chance, p < 0.01: "
        f"{verdict(last['share'] > last['chance'] and last['p'] < 0.01)}. "
        f"`docs/images/structure_tree.png`: η = {SHOWN}.",
    ]


def said_of_shifts(curves: dict[str, list[float]], raw: dict[str, list[float]]) -> list[str]:
    lines = [[name, *(f"{v:.3f}" for v in curve[1:])] for name, curve in curves.items()]

    def below(other: str) -> str:
        pairs = zip(curves[POOLS][1:], curves[other][1:], strict=True)
        return verdict(all(a < b for a, b in pairs))

    return [
        f"**Shifts.** {WINDOWS:,} windows, flat ones left out; {SHUFFLES} shuffles:",
        table(["squared change", *(f"{k} px" for k in range(1, SHIFTS + 1))], lines),
        f"Targets: pools change less than PSD's units: {below(PSD_UNITS)}; than the units that "
        f"they are made of: {below(INVARIANT_UNITS)}; than the best of the shuffled pools: "
        f"{below('least of the shuffled')}. `docs/images/structure_shifts.png`.",
    ]


def main() -> None:
    chosen = options(__doc__, threads=1)
    import sparse_filters

    warnings.simplefilter("ignore")  # of convergence: a few codes in a thousand end early
    sparse_filters.PATCHES = PATCHES
    images = filtered()
    X = cut(images, SIDE)
    whole, clock = Clock(), Clock()
    plain = encoded(X)
    seconds = clock()
    of_maps, invariant = maps(X, plain, seconds)
    of_trees = trees(X)
    rows = windows(images)
    curves, raw = (shifts(rows, plain, invariant, contrast) for contrast in (False, True))
    curves_picture("structure_shifts.png", curves)
    record = {
        "rows": len(X),
        "lambda": plain.strength_,
        "maps": of_maps,
        "trees": of_trees,
        "shifts": curves,
        "shifts with contrast": raw,
    }
    text = [
        f"{len(X):,} patches of {SIDE}×{SIDE} after Olshausen and Field's filter, the flat ones "
        f"left out; no atoms in any order to begin with. {CODING} epochs of EM for inhibition "
        f"(λ = {INHIBITION} on maps, l1 = {OF_ALL}), {ENCODING} of EnergyLoss for PSD (pools: "
        f"λ = {2 * plain.strength_:.2f}), {ROTATING} for RICA.",
        *said_of_maps(of_maps),
        *said_of_trees(of_trees),
        *said_of_shifts(curves, raw),
        f"{whole():.0f} s in all.",
    ]
    write(chosen, "structure", "Structured codes of patches", "\n\n".join(text), record)


if __name__ == "__main__":
    main()
