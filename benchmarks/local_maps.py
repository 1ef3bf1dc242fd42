"""Filters of each place of an image, tied with a period: do they become maps of orientation?

    python benchmarks/local_maps.py

Images: crops of 154×154 from the training images of BSDS500, log(1 + grey level), filtered as
Olshausen and Field did (`sparse_filters`), each less its mean and over its deviation. `LocalPSD`
has one unit at each of 144×144 places, with filters of 11×11 and a period of 16: 256 filters in no
order to begin with. (Near the border fewer units explain the image; where a period has few copies,
that makes those at its edges different.) One model pays for the energy of neighbourhoods of 3×3
units on the map (`MapPools`), the other, the control, for each code by itself (`L1`); codes are
those of the energy without the encoder. Gabor functions are fitted to all filters
(`gated_filters`).

Figures, of the torus that a period is: the mean difference of orientation between neighbours beside
that of 1,000 shuffled maps, of all filters, good fits or not; and how many of the squares of four
neighbours are pinwheels, around which orientation turns by half a circle (once the 4 differences,
each the short way round, are added up): of units in no order a third are, of smooth maps few and of
constant ones none. `docs/images/local_maps.png`: the filters of a period where they lie, and the
orientation of 2×2 periods as a hue, paler where a Gabor function fits less. Budget: 45 minutes.
"""

from __future__ import annotations

import colorsys
import itertools
from typing import Any

from common import HERE, Clock, options, table, write
from gated_filters import gabors_of, verdict
from sparse_filters import filtered
from structure import neighbours, smoothness

SIZE, PERIOD, TILES, CROPS = 11, 16, 9, 200
NEAR, STRENGTH, EPSILON = 3, 1.0, 0.1
STEPS, BATCH, RATE, TOL, MOST, SEED = 1000, 4, 0.7, 3e-2, 40, 0
MAPS, ALONE = "neighbours pay together", "each code pays"


def crops(images: list[Any]) -> Any:
    """(CROPS, side, side), float32, each of mean 0 and variance 1."""
    import numpy as np

    rng, found, side = np.random.default_rng(SEED), [], PERIOD * TILES + SIZE - 1
    for _ in range(CROPS):
        image = images[rng.integers(len(images))]
        i, j = (rng.integers(length - side + 1) for length in image.shape)
        cut = image[i : i + side, j : j + side]
        found.append((cut - cut.mean()) / cut.std())
    return np.stack(found).astype(np.float32)


def learned(X: Any, penalty: Any) -> tuple[Any, float]:
    """A fitted model, and seconds."""
    from energyscape.models import LocalPSD
    from energyscape.trainers import EnergyLoss

    epochs = max(1, round(STEPS * BATCH / len(X)))
    trainer = EnergyLoss(n_epochs=epochs, batch_size=BATCH, learning_rate=RATE)
    shared = {"joint": False, "tol": TOL, "max_iter": MOST, "random_state": SEED}
    model, clock = LocalPSD(period=PERIOD, filter_size=SIZE, penalty=penalty, **shared), Clock()
    return model.set_params(trainer=trainer).fit(X), clock()


def pinwheels(theta: Any) -> float:
    """The share of squares of four neighbours on the torus ``theta`` (P, P), in radians, around
    which orientation turns by half a circle."""
    import numpy as np

    right, down = np.roll(theta, -1, 1), np.roll(theta, -1, 0)
    corners = [theta, right, np.roll(right, -1, 0), down, theta]
    steps = [b - a for a, b in itertools.pairwise(corners)]
    turned = sum(step - np.pi * np.round(step / np.pi) for step in steps)
    return float((abs(turned) > 1).mean())


def figures(filters: Any) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Of a map, and the fits."""
    import numpy as np

    fits, rng = gabors_of(filters), np.random.default_rng(SEED)
    theta = np.array([fit["theta"] for fit in fits]).reshape(PERIOD, PERIOD)
    mixed = [rng.permutation(theta.ravel()).reshape(theta.shape) for _ in range(1000)]
    seen = smoothness(fits, neighbours(PERIOD, PERIOD))
    turns = {
        "pinwheels": pinwheels(theta),
        "pinwheels shuffled": float(np.mean([pinwheels(one) for one in mixed])),
    }
    return seen | turns, fits


def picture(filters: Any, fits: list[dict[str, float]]) -> None:
    """The filters of a period, and the hues of 2×2 periods, as high."""
    import numpy as np

    from energyscape.plotting import image_grid, save_png

    atoms = image_grid(filters, n_columns=PERIOD, symmetric=True)
    pixels = atoms.repeat(2, axis=0).repeat(2, axis=1)[:, :, None].repeat(3, axis=2)
    colours = [colorsys.hsv_to_rgb(f["theta"] / np.pi, max(f["r2"], 0.0), 1.0) for f in fits]
    hues = np.tile(np.array(colours).reshape(PERIOD, PERIOD, 3), (2, 2, 1))
    side = len(pixels) // len(hues)
    hues = np.round(255 * hues).astype(np.uint8).repeat(side, axis=0).repeat(side, axis=1)
    beside = np.full((len(pixels), hues.shape[1] + 24, 3), 255, np.uint8)
    beside[: len(hues), 24:] = hues
    path = HERE.parent / "docs" / "images" / "local_maps.png"
    save_png(path, np.hstack([pixels, beside]))


def main() -> None:
    chosen = options(__doc__, threads=1)
    import warnings

    import numpy as np
    from sklearn.exceptions import ConvergenceWarning

    from energyscape.penalties import L1, MapPools

    warnings.simplefilter("ignore", ConvergenceWarning)  # said in the block
    X = crops(filtered())
    penalties = {MAPS: MapPools(NEAR, None, STRENGTH, EPSILON), ALONE: L1(STRENGTH)}
    lines, record = [], {}
    for name, penalty in penalties.items():
        model, seconds = learned(X, penalty)
        filters = np.asarray(model.components_, np.float64).reshape(-1, SIZE, SIZE)
        own, fits = figures(filters)
        some = X[:: max(1, CROPS // 20)]
        left = float(((some - model.reconstruct(some)) ** 2).sum() / (some**2).sum())
        late = float(model.params_["late"])
        record[name] = own | {"left": left, "late": late, "seconds": seconds}
        if name == MAPS:
            picture(filters, fits)
        turns = f"{100 * own['pinwheels']:.0f} % ({100 * own['pinwheels shuffled']:.0f} %)"
        lines.append(
            [
                name,
                f"**{own['neighbours']:.1f}°**",
                f"{own['shuffled']:.1f}°",
                f"{own['p']:.3f}",
                turns,
                f"{100 * own['gabors']:.0f} %",
                f"{100 * left:.0f} %",
                f"{100 * late:.0f} %",
                f"{seconds:.0f} s",
            ]
        )
    maps, alone = record[MAPS], record[ALONE]
    header = ["codes", "neighbours differ by", "shuffled", "p", "pinwheels (shuffled)", "Gabors"]
    met = (
        verdict(maps["p"] < 0.01),
        verdict(0 < maps["pinwheels"] < maps["pinwheels shuffled"]),
        verdict(alone["p"] > 0.01),
    )
    text = [
        f"{CROPS} crops of {X.shape[1]}×{X.shape[2]}, {STEPS} updates of {BATCH}; filters of "
        f"{SIZE}×{SIZE}, a period of {PERIOD}×{PERIOD}, pools of {NEAR}×{NEAR}, λ = {STRENGTH:g}.",
        table([*header, "left by encoder", "late", "training"], lines),
        f"Targets: neighbours differ less than shuffled ones, p < 0.01: {met[0]}; pinwheels, "
        f"fewer than of the shuffled: {met[1]}; of codes that each pay by themselves p > 0.01: "
        f"{met[2]}. `docs/images/local_maps.png`.",
    ]
    write(chosen, "local_maps", "Maps of whole images", "\n\n".join(text), record)


if __name__ == "__main__":
    main()
