"""What and where of windows that move: does what stay while where changes?

    python benchmarks/what_where.py

Images: those of `sparse_filters`. Clips: 30,000 of 4 frames, windows of 10×10 that move 1 to 2
pixels a frame in a straight line, each frame less its mean; those with less than a tenth of the
mean variance are left out. `WhatWhere` with 256 atoms, in 32 pools of 8 and in 16 pools of 16.

A what that is shared by the frames of a clip is constant by construction, so that codes here are
those of *single frames* of other clips (5,000), which nothing ties together: of the encoder, and
inferred. The change of a code from one frame to the next is |a - b|²/(|a|² + |b|²), the mean over
clips: 0 for equal codes, 1 where nothing is shared. Beside it that between frames of clips that are
unrelated, and the same for a model trained on clips whose frames are unrelated. Budget: 30 minutes.
"""

from __future__ import annotations

from typing import Any

from common import HERE, Clock, options, table, write
from gated_filters import verdict
from sparse_filters import filtered

SIDE, FRAMES, SPEED, TRAIN, TEST = 10, 4, (1.0, 2.0), 30_000, 5_000
ATOMS, POOLS, SPARSITY, EPOCHS = 256, (8, 16), 0.5, 8
TARGET, SEED = 0.5, 0
SHOWN, STEPS = 8, 8  # rows of generated frames, frames of each


def clips(images: list[Any], n: int, seed: int) -> Any:
    """Clips, each frame less its mean."""
    from energyscape.data import ClipExtractor

    cut = ClipExtractor(SIDE, n, FRAMES, SPEED, flat=0.1, random_state=seed)
    X = cut.fit_transform(images)
    return X - X.mean(axis=2, keepdims=True)


def mixed(X: Any) -> Any:
    """Clips of frames that have nothing to do with each other."""
    import numpy as np

    rows = X.reshape(-1, X.shape[2])
    return rows[np.random.default_rng(SEED).permutation(len(rows))].reshape(X.shape)


def change(a: Any, b: Any) -> tuple[float, float]:
    """Mean relative change of codes, and its standard error."""
    import numpy as np

    both = (a**2).sum(axis=1) + (b**2).sum(axis=1)
    of = ((a - b) ** 2).sum(axis=1)[both > 0] / both[both > 0]
    return float(of.mean()), float(of.std() / np.sqrt(len(of)))


def measured(model: Any, X: Any) -> dict[str, Any]:
    """By kind of codes: changes of what and where, between consecutive and unrelated frames."""
    import numpy as np

    order = np.random.default_rng(SEED).permutation(len(X))
    found: dict[str, Any] = {}
    for kind in ("encoder", "inferred"):
        model.set_params(exact=kind == "inferred")
        (c0, l0), (c1, l1) = (model.factors(X[:, [i]]) for i in (0, 1))
        l0, l1 = l0[:, 0], l1[:, 0]
        found[kind] = {
            "what": change(c0, c1),
            "where": change(l0, l1),
            "what, unrelated": change(c0, c0[order]),
            "where, unrelated": change(l0, l0[order]),
            "what on": float((c0 > 0).sum(axis=1).mean()),
            "where on": float((l0 > 0).sum(axis=1).mean()),
        }
    model.set_params(exact=False)
    return found


def similar(model: Any) -> tuple[float, float]:
    """How alike atoms are up to shifts, of a pool and of different pools: the mean of the largest
    correlation over shifts of up to half a window, of either sign."""
    import numpy as np

    atoms = np.asarray(model.components_, np.float64).reshape(-1, SIDE, SIDE)
    spectra = np.fft.fft2(atoms, (2 * SIDE, 2 * SIDE))
    best = np.zeros((len(atoms), len(atoms)))
    reach = np.r_[0 : SIDE // 2 + 1, -(SIDE // 2) : 0]
    for i, one in enumerate(spectra):
        over = np.fft.ifft2(spectra * one.conj()).real
        best[i] = np.abs(over[:, reach][:, :, reach]).max(axis=(1, 2))
    P = np.asarray(model.pools_)
    same = (P.T @ P > 0) & ~np.eye(len(atoms), dtype=bool)
    return float(best[same].mean()), float(best[P.T @ P == 0].mean())


def by_pool(model: Any) -> Any:
    """Atoms as images, a row for each pool, those that are used most at the top."""
    import numpy as np

    P, usage = np.asarray(model.pools_), np.asarray(model.params_["usage"])
    rows = np.argsort(-(P @ usage))
    order = np.concatenate([np.flatnonzero(P[k]) for k in rows])
    return np.asarray(model.components_)[order].reshape(-1, SIDE, SIDE)


def moving_where(model: Any, X: Any) -> Any:
    """Rows of images: a frame, what the model makes of it, and then the same what with the where of
    its largest pool on one atom of that pool after the other. Frames are those of different
    largest pools in which that pool has most of all there is."""
    import numpy as np

    frames = X[:, :1]
    what, where = model.factors(frames)
    largest, shares = what.argmax(axis=1), (what**2).max(axis=1) / (what**2).sum(axis=1).clip(1e-9)
    order = np.argsort(-shares)
    first = np.unique(largest[order], return_index=True)[1]
    images = []
    for i in order[np.sort(first)[:SHOWN]]:
        atoms = np.flatnonzero(model.pools_[largest[i]])
        atoms = atoms[np.argsort(-model.params_["usage"][atoms])]  # those used most first
        moved = np.repeat(where[i], min(STEPS, len(atoms)), axis=0)
        moved[:, atoms] = where[i, 0, atoms].sum() * np.eye(len(moved), len(atoms))
        made = model.generate(what[i][None], moved[None])[0]
        images += [X[i, 0], model.reconstruct(frames[[i]])[0, 0], *made]
    return np.stack(images).reshape(-1, SIDE, SIDE)


def picture(name: str, images: Any, columns: int) -> None:
    from energyscape.plotting import image_grid, save_png

    pixels = image_grid(images, n_columns=columns, symmetric=True)
    save_png(HERE.parent / "docs" / "images" / name, pixels.repeat(3, axis=0).repeat(3, axis=1))


def lines_of(name: str, found: dict[str, Any]) -> list[list[str]]:
    def said(value: tuple[float, float]) -> str:
        return f"{value[0]:.3f} ± {value[1]:.3f}"

    lines = []
    for kind, of in found.items():
        ratio = of["what"][0] / of["where"][0]
        changes = []
        for key in ("what", "where"):
            least = of[f"{key}, unrelated"]
            changes.append(f"{said(least)} ({100 * of[key][0] / least[0]:.0f} %)")
        on = [f"{of['what on']:.1f}", f"{of['where on']:.1f}"]
        own = [said(of["what"]), said(of["where"]), f"**{ratio:.2f}**"]
        lines.append([name, kind, *own, *changes, *on])
    return lines


def main() -> None:
    chosen = options(__doc__, threads=1)

    from energyscape.models import WhatWhere
    from energyscape.trainers import EnergyLoss

    images = filtered()
    X, Y = clips(images, TRAIN, SEED), clips(images, TEST, SEED + 1)
    lines, record, met, alike = [], {}, [], []
    for pool in POOLS:
        for name, rows in ((f"pools of {pool}", X), (f"pools of {pool}, control", mixed(X))):
            clock = Clock()
            settings = {"sparsity": SPARSITY, "tol": 1e-2, "max_iter": 100, "random_state": SEED}
            model = WhatWhere(ATOMS, pools=pool, trainer=EnergyLoss(n_epochs=EPOCHS), **settings)
            model.fit(rows)
            model.set_params(tol=1e-3, max_iter=1000)
            found, pools, seconds = measured(model, Y), similar(model), clock()
            print(name, found, pools, f"{seconds:.0f} s", flush=True)
            lines += lines_of(name, found)
            record[name] = found | {"alike": pools, "seconds": seconds}
            alike.append(f"{name}: {pools[0]:.2f} in a pool, {pools[1]:.2f} across pools")
            if rows is X:
                for kind, of in found.items():
                    word = verdict(of["what"][0] <= TARGET * of["where"][0])
                    met.append(f"{name}, {kind}: {word}")
                picture(f"what_where_atoms_{pool}.png", by_pool(model)[: 16 * pool], pool)
                picture(f"what_where_moved_{pool}.png", moving_where(model, Y), STEPS + 2)
    header = ["", "codes", "what", "where", "ratio", "what, unrelated", "where, unrelated"]
    text = "\n\n".join(
        [
            f"Clips of {FRAMES} windows of {SIDE}×{SIDE} that move {SPEED[0]:g} to {SPEED[1]:g} "
            f"pixels a frame ({len(X):,} to learn from, {len(Y):,} to look at); {ATOMS} atoms, "
            f"sparsity {SPARSITY}, {EPOCHS} epochs. Codes are those of single frames; changes are "
            "between the first and the second frame of a clip, then between those of unrelated "
            "clips, of which the former are the share in brackets: codes that are always on change "
            "little whatever is seen. The control learned from clips of unrelated frames.",
            table([*header, "what on", "where on"], lines),
            "How alike atoms are, the largest correlation over shifts: " + "; ".join(alike) + ".",
            f"Target: what changes at most {TARGET:g} times as much as where. {'; '.join(met)}.",
            "`docs/images/what_where_atoms_8.png` and `_16.png`: atoms, a row for each of the "
            "16 pools that are used most. `what_where_moved_8.png` and `_16.png`: a frame, its "
            "reconstruction, and the same what with where moved from atom to atom of its largest "
            "pool.",
        ]
    )
    write(chosen, "what_where", "What and where", text, record)


if __name__ == "__main__":
    main()
