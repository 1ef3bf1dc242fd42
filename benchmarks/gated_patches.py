"""Patches of natural images, and models of them that several benchmarks look at.

A trained model is kept in `out/`, under its settings, so that the next command need not train it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from common import Clock

KEPT_IN = Path(__file__).parent.parent / "out"
SIDE, COMPONENTS, EPOCHS, OF_POT = 8, 63, 20, 7  # of the small patches; PoT


def patches(size: int, train: int, test: int) -> list[Any]:
    """Square patches of log(1 + grey level), less their mean: of the training images of BSDS500,
    and of BSD68."""
    import numpy as np

    from energyscape.data import data_home

    rng, parts = np.random.default_rng(0), []
    for folder, name, n in (
        ("bsds500_train100", "bsds500_train100_gray", train),
        ("bsd68", "bsd68_gray", test),
    ):
        stored = np.load(data_home() / folder / f"{name}.npz")
        images = [np.log1p(stored[key].astype(np.float64)) for key in stored.files]
        found = np.empty((n, size * size))
        for i in range(n):
            image = images[rng.integers(len(images))]
            top, left = (rng.integers(side - size + 1) for side in image.shape)
            patch = image[top : top + size, left : left + size].ravel()
            found[i] = patch - patch.mean()
        parts.append(found)
    return parts


def white_rows(size: int, kept: int, train: int, test: int) -> tuple[Any, Any, Any]:
    """(training rows, test rows, the whitening fitted on the former), float32."""
    import numpy as np

    from energyscape.data import PCAWhitening

    parts = patches(size, train, test)
    white = PCAWhitening(kept).fit(parts[0])
    return *(white.transform(part).astype(np.float32) for part in parts), white


def fitted(name: str, model: Any, X: Any) -> tuple[Any, float]:
    """(the model fitted to X, seconds that took), from `out/` where this package made it before."""
    import energyscape

    code = hashlib.sha256()
    for file in sorted(Path(energyscape.__file__).parent.rglob("*.py")):
        code.update(file.read_bytes())
    said = f"{name} {model!r} {X.shape} {X[:100].sum():.6g} {code.hexdigest()}"
    path = KEPT_IN / f"gated_{name}_{hashlib.sha256(said.encode()).hexdigest()[:12]}.h5"
    notes = path.with_suffix(".json")
    if path.exists() and notes.exists():
        return energyscape.load(path), json.loads(notes.read_text())["seconds"]
    clock = Clock()
    model.fit(X)
    seconds = clock()
    KEPT_IN.mkdir(exist_ok=True)
    energyscape.save(model, path)
    notes.write_text(json.dumps({"model": said, "seconds": seconds}) + "\n")
    return model, seconds


def small_models() -> dict[str, Any]:
    """Models of 8×8 patches, by name; not fitted."""
    from energyscape.models import GaussianRBM, MPoT, PoT
    from energyscape.trainers import PCD

    shared = {"n_epochs": EPOCHS, "batch_size": 128, "averaging": 0.1}
    slow, short = (PCD(learning_rate=0.1, **shared | {"n_epochs": n}) for n in (EPOCHS, OF_POT))
    return {
        "mPoT": MPoT(192, n_mean_components=64, trainer=slow, random_state=0),
        "GaussianRBM": GaussianRBM(
            256, trainer=PCD(n_chains=500, learning_rate=0.05, **shared), random_state=0
        ),
        "PoT": PoT(192, trainer=short, random_state=0),
    }
