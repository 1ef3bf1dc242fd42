"""What embeddings of pairs are worth: faces of unknown persons, and a map of digits without shifts.

    python benchmarks/siamese.py [--parts faces map]

Faces: the 400 images of 40 persons of AT&T (Olivetti), 32×32. Eight splits, which between them test
every person once: 35 persons to train, 5 to test, as Chopra, Hadsell and LeCun (2005) have it. Pairs
of the training: all 1,575 of one person, and twice as many of two at random; images are shifted by
up to 2 pixels and mirrored at random. Of a test: all 225 pairs of one person and all 1,000 of two. A
pair is accepted where its distance is below a threshold, which is set, as in the paper, so that at
most 10, 7.5 and 5 % of the test's pairs of two persons are. Beside the two losses: distances of
pixels, the 34 linear discriminants of the same 35 persons (cosine, shrunk covariance), and an
encoder before it learns. All are chosen on persons 0 to 4 of the first split's training, which are
tests of other splits: a small advantage, the same for all.

Map: 3,000 fours and nines of MNIST, each also 6 and 3 pixels to the left and to the right, so that
15,000 images train, and what is near is known of the images that are not shifted alone: their 5
nearest in pixels. Alike are two images where the ones that they were shifted from are the same or
near (Hadsell, Chopra and LeCun, 2006, section 3.2); a random pair is not. In two dimensions, DrLIM
against PCA of the same 15,000 images: how often the nearest of the training's images has the label of
a test image (1,000 of the test set, each with its four shifts), and how far an image's shifts are
spread, over the spread of everything. Budget: 60 minutes.
"""

from __future__ import annotations

from typing import Any

from common import HERE, Clock, options, table, write

SEED, SIDE = 0, 32
PERSONS, TESTED = 40, 5
RATES = (0.1, 0.075, 0.05)
EPOCHS, WIDTH, EMBEDDED = 40, 256, 50
MARGIN = 3.0
DIGITS, DIGITS_TESTED, SHIFTS, NEIGHBOURS = 3000, 1000, (-6, -3, 0, 3, 6), 5
PAIRS, MAP_EPOCHS, MAP_MARGIN = 60_000, 20, 1.0


class Disturbed:
    """Both images of each pair shifted and mirrored, each in its own way."""

    def __init__(self, side: int, shift: int) -> None:
        from energyscape.data import Jitter

        self.side, self.jitter = side, Jitter((side, side), shift, padding="edge")

    def __call__(self, x: Any, rng: Any) -> Any:
        import numpy as np

        rows = self.jitter(x.reshape(-1, x.shape[-1]), rng).reshape(-1, self.side, self.side)
        turned = rng.uniform((len(rows), 1, 1), np.float64) < 0.5
        return np.where(turned, rows[:, :, ::-1], rows).reshape(x.shape)


# ---------------------------------------------------------------- faces


def faces() -> tuple[Any, Any]:
    """Rows of 32×32 pixels in [0, 1], and whose they are."""
    import numpy as np

    from energyscape.data import load_olivetti

    images, y = load_olivetti()
    step = images.shape[1] // SIDE
    small = images.reshape(len(images), SIDE, step, SIDE, step).mean(axis=(2, 4)) / 255
    return small.reshape(len(small), -1).astype(np.float32), y


def splits() -> list[tuple[Any, Any]]:
    """(persons to train, persons to test), of which every person is one once."""
    import numpy as np

    order = np.random.default_rng(SEED).permutation(PERSONS)
    tests = order.reshape(-1, TESTED)
    return [(np.setdiff1d(order, test), test) for test in tests]


def all_pairs(y: Any) -> tuple[Any, Any]:
    """Every pair of two images, (n, 2), and whether both are of one person."""
    import numpy as np

    pairs = np.stack(np.triu_indices(len(y), 1), axis=1)
    return pairs, y[pairs[:, 0]] == y[pairs[:, 1]]


def verified(X: Any, y: Any, persons: Any, seed: int, epochs: int = EPOCHS) -> dict[str, Any]:
    """By method: distances of pairs (n, 2, d), learned from the images of ``persons``."""
    import numpy as np
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.metrics.pairwise import paired_cosine_distances, paired_distances

    from energyscape.embeddings import DrLIM, Siamese
    from energyscape.models import SiameseEncoder
    from energyscape.optim import Adam
    from energyscape.trainers import EmbeddingLoss

    of = np.isin(y, persons)
    X, y = X[of], y[of]
    pairs, same = all_pairs(y)
    rng = np.random.default_rng(seed)
    others = rng.choice(np.flatnonzero(~same), 2 * int(same.sum()), replace=False)
    chosen = np.concatenate([np.flatnonzero(same), others])
    lda = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto").fit(X, y)
    methods = {
        "pixels": lambda p: paired_distances(p[:, 0], p[:, 1]),
        "linear discriminants": lambda p: paired_cosine_distances(
            lda.transform(p[:, 0]), lda.transform(p[:, 1])
        ),
    }
    losses = {"untrained": DrLIM(), "Siamese": Siamese(2.0 * EMBEDDED), "DrLIM": DrLIM(MARGIN)}
    for name, loss in losses.items():
        trainer = EmbeddingLoss(
            loss,
            n_epochs=1 if name == "untrained" else epochs,
            optimizer=Adam(1e-9 if name == "untrained" else 1e-3),
            batch_transform=Disturbed(SIDE, 2),
        )
        model = SiameseEncoder(
            EMBEDDED, hidden_layer_sizes=(WIDTH,), trainer=trainer, random_state=seed
        )
        methods[name] = model.fit(X[pairs[chosen]], same[chosen]).energy
    return methods


def false_rejects(D: Any, same: Any) -> dict[str, float]:
    """By the rate of false accepts, and where both are equal."""
    import numpy as np

    genuine, impostors = D[same], np.sort(D[~same])
    found = {}
    for rate in RATES:
        threshold = impostors[int(rate * len(impostors))]
        found[str(rate)] = float((genuine >= threshold).mean())
    rejected = np.array([(genuine >= t).mean() for t in impostors])
    accepted = np.arange(len(impostors)) / len(impostors)
    at = int(np.argmin(np.maximum(rejected, accepted)))
    found["equal"] = float(max(rejected[at], accepted[at]))
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half of the 95 % interval of Student's t over splits."""
    import numpy as np
    from scipy.stats import t

    spread = np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(t.ppf(0.975, len(values) - 1) * spread)


def faces_part() -> tuple[str, dict[str, Any]]:
    import numpy as np

    X, y = faces()
    clock, record = Clock(), dict[str, Any]()
    for i, (train, test) in enumerate(splits()):
        of = np.isin(y, test)
        pairs, same = all_pairs(y[of])
        for name, distance in verified(X, y, train, i).items():
            record.setdefault(name, []).append(false_rejects(distance(X[of][pairs]), same))
    lines = []
    for name, found in record.items():
        cells = [interval([one[key] for one in found]) for key in (*map(str, RATES), "equal")]
        lines.append([name, *(f"{100 * mean:.1f} ± {100 * half:.1f}" for mean, half in cells)])
    lines.append(["Chopra et al. (2005), convolutional, one split", "0.0", "1.0", "1.0", "-"])
    header = ["false rejects in %, at false accepts of", *(f"{100 * r:g} %" for r in RATES)]
    text = (
        "Faces of 5 unknown persons, 225 pairs of one and 1,000 of two, after training on 35 "
        f"others ({EPOCHS} epochs of 4,725 pairs). Mean over 8 splits that test each person once, "
        "and half of its 95 % interval.\n\n"
    ) + table([*header, "equal errors"], lines)
    return text + f"\n\n{clock():.0f} s.", {"faces": record}


# ---------------------------------------------------------------- the map


def shifted(images: Any) -> Any:
    """Rows of all shifts of images (n, 28, 28): (n, shifts, 784)."""
    import numpy as np

    moved = []
    for s in SHIFTS:
        image = np.zeros_like(images)
        image[:, :, max(s, 0) : 28 + min(s, 0)] = images[:, :, max(-s, 0) : 28 - max(s, 0)]
        moved.append(image.reshape(len(images), -1))
    return np.stack(moved, axis=1)


def digits(part: str, n: int) -> tuple[Any, Any]:
    """The first fours and nines, as many of each: all shifts, and labels."""
    import numpy as np

    from energyscape.data import load_mnist

    X, y = load_mnist(part)
    first = np.sort(np.concatenate([np.flatnonzero(y == k)[: n // 2] for k in (4, 9)]))
    return shifted(X[first].reshape(-1, 28, 28)), y[first]


def map_pairs(X: Any) -> tuple[Any, Any]:
    """Pairs of shifted digits, and whether they are alike."""
    import numpy as np
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.default_rng(SEED)
    plain = X[:, SHIFTS.index(0)]
    near = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(plain).kneighbors(plain)[1]
    n, half = len(X), PAIRS // 2
    one = rng.integers(n, size=PAIRS)
    other = near[one, rng.integers(NEIGHBOURS + 1, size=PAIRS)]  # itself, or a neighbour
    other[half:] = rng.integers(n, size=PAIRS - half)
    alike = (near[one] == other[:, None]).any(axis=1) | (near[other] == one[:, None]).any(axis=1)
    at = rng.integers(len(SHIFTS), size=(2, PAIRS))
    return np.stack([X[one, at[0]], X[other, at[1]]], axis=1), alike


def judged(Z: Any, y: Any, tested: Any, labels: Any) -> dict[str, float]:
    """Of maps (n, shifts, 2): nearest neighbours' labels, and the spread of shifts."""
    import numpy as np
    from sklearn.neighbors import KNeighborsClassifier

    rows = KNeighborsClassifier(1).fit(Z.reshape(-1, 2), np.repeat(y, len(SHIFTS)))
    right = rows.score(tested.reshape(-1, 2), np.repeat(labels, len(SHIFTS)))
    within = tested.var(axis=1).sum(axis=1).mean()
    return {"error": 1 - float(right), "spread": float(within / tested.var(axis=(0, 1)).sum())}


def map_picture(maps: dict[str, Any], labels: Any) -> None:
    """Test digits on both maps: by label above, by shift below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(2, len(maps), figsize=(5 * len(maps), 9.5), layout="constrained")
    for column, (name, Z) in zip(axes.T, maps.items(), strict=True):
        points = Z.reshape(-1, 2)
        order = np.random.default_rng(SEED).permutation(len(points))  # none on top of all
        of = np.repeat(labels, len(SHIFTS)), np.tile(SHIFTS, len(Z))
        for axis, values, colours in zip(column, of, ("coolwarm", "viridis"), strict=True):
            axis.scatter(*points[order].T, c=values[order], s=3, cmap=colours, linewidths=0)
            axis.set_xticks([])
            axis.set_yticks([])
        column[0].set_title(f"{name}: 4 blue, 9 red")
        column[1].set_title("shift: left 6 dark … right 6 light")
    figure.savefig(HERE.parent / "docs" / "images" / "drlim_map.png", dpi=80)
    plt.close(figure)


def map_part() -> tuple[str, dict[str, Any]]:
    from sklearn.decomposition import PCA

    from energyscape.embeddings import DrLIM
    from energyscape.models import SiameseEncoder
    from energyscape.trainers import EmbeddingLoss

    clock = Clock()
    (X, y), (T, labels) = digits("train", DIGITS), digits("test", DIGITS_TESTED)
    pairs, alike = map_pairs(X)
    trainer = EmbeddingLoss(DrLIM(MAP_MARGIN), n_epochs=MAP_EPOCHS)
    model = SiameseEncoder(2, hidden_layer_sizes=(500, 500), trainer=trainer, random_state=SEED)
    model.fit(pairs, alike)
    pca = PCA(2).fit(X.reshape(-1, 784))
    maps, record = {}, {}
    for name, function in (("DrLIM", model.transform), ("PCA", pca.transform)):
        trained, tested = (
            function(rows.reshape(-1, 784)).reshape(*rows.shape[:2], 2) for rows in (X, T)
        )
        maps[name], record[name] = tested, judged(trained, y, tested, labels)
    map_picture(maps, labels)
    lines = [
        [name, f"{100 * found['error']:.1f} %", f"{100 * found['spread']:.0f} %"]
        for name, found in record.items()
    ]
    text = (
        f"{DIGITS:,} fours and nines, each at five shifts, in two dimensions ({MAP_EPOCHS} epochs "
        f"of {PAIRS:,} pairs, {100 * alike.mean():.0f} % alike): errors of the label of the nearest "
        f"training image on {DIGITS_TESTED:,} test digits at five shifts each, and the variance of "
        "a digit's own shifts over that of all. `docs/images/drlim_map.png` shows both.\n\n"
    ) + table(["", "errors", "spread of shifts"], lines)
    return text + f"\n\n{clock():.0f} s.", {"map": record}


def main() -> None:
    parts = {"faces": faces_part, "map": map_part}
    chosen = options(
        __doc__, threads=1, parts={"nargs": "+", "default": list(parts), "choices": list(parts)}
    )
    texts, record = [], dict[str, Any]()
    for name in chosen.parts:
        text, found = parts[name]()
        texts.append(text)
        record |= found
    write(chosen, "siamese", "Embeddings of pairs", "\n\n".join(texts), record)


if __name__ == "__main__":
    main()
