"""Faces by a gated Markov random field: samples, in-painting, and recognition under occlusion.

    python benchmarks/gated_faces.py

Olivetti faces reduced to 32×32, grey levels from 0 to 255, and their mirror images to train on. A
face is x = m + Mz + noise: m the mean face, M principal components, z white, noise with the
variance of the rest. The prior of z is a Gaussian (which makes it probabilistic PCA), a GaussianRBM
or an MPoT. (1) Samples. (2) Seven parts of the face hidden in
turn; found is the mean of the hidden pixels given the others, whose posterior is that of z under
Gaussian noise: a formula for the Gaussian, HMC for the others. 30 persons to train on, 10 others to
test; ranks and the epochs of the models by validation with 24 and 6 of the 30.
(3) Persons recognised from occluded faces, with the hidden part black, from the mean face, or
filled in: 5 images of every person to train on, the other 5 to test; linear discriminant analysis
of principal components. Budget: 15 minutes.
"""

from __future__ import annotations

from common import HERE, Clock, options, table, write

SIDE = 32
FILTERS, MEANS, HIDDEN, BATCH = 128, 64, 128, 50
EPOCHS, OF_MODELS = (10, 30, 100), (40, 80)  # tried: epochs, and ranks of the models' space
RANKS = (10, 20, 30, 40, 60, 80, 100, 150)
WARMUP, STATES = 100, 200
SAMPLES, SAMPLE_STEPS = 12, 1000
SHOWN = ("eyes", "mouth", "left half", "bottom")  # occlusions in the picture
# Rows and columns of what is hidden.
PARTS = {
    "eyes": (slice(7, 15), slice(3, 29)),
    "nose": (slice(12, 22), slice(10, 22)),
    "mouth": (slice(21, 28), slice(7, 25)),
    "left half": (slice(0, 32), slice(0, 16)),
    "right half": (slice(0, 32), slice(16, 32)),
    "top": (slice(0, 16), slice(0, 32)),
    "bottom": (slice(16, 32), slice(0, 32)),
}


def faces():
    """Faces by person, shape (40, 10, 1024), float64."""
    from energyscape.data import load_olivetti

    images = load_olivetti()[0].astype("float64")
    return images.reshape(40, 10, SIDE, 2, SIDE, 2).mean(axis=(3, 5)).reshape(40, 10, -1)


def flat(images):
    return images.reshape(-1, SIDE * SIDE)


def mirrored(rows):
    """The rows and their mirror images."""
    import numpy as np

    images = rows.reshape(-1, SIDE, SIDE)
    return flat(np.concatenate([images, images[:, :, ::-1]]))


def hidden(part: str):
    """True where pixels are hidden, shape (1024,)."""
    import numpy as np

    mask = np.zeros((SIDE, SIDE), bool)
    mask[PARTS[part]] = True
    return mask.ravel()


class Faces:
    """x = m + Mz + noise, from training rows."""

    def __init__(self, rows, rank: int) -> None:
        import numpy as np

        self.mean = rows.mean(axis=0)
        _, s, V = np.linalg.svd(rows - self.mean, full_matrices=False)
        value = s**2 / len(rows)
        self.rank = rank
        self.M = V[:rank].T * np.sqrt(value[:rank])
        self.noise = float(np.sqrt(value[rank:].sum() / (rows.shape[1] - rank)))

    def white(self, rows):
        return (rows - self.mean) @ self.M / (self.M**2).sum(axis=0)

    def back(self, z):
        return z @ self.M.T + self.mean

    def fill(self, rows, mask, model=None):
        """Rows whose pixels at ``mask`` are their posterior means; those are not looked at."""
        import numpy as np

        from energyscape.backend import Purpose, stream
        from energyscape.models.sampling import ChainMeans
        from energyscape.samplers import HMC, Posterior, from_functions

        # Along w = U'z what is seen is w plus independent noise: M = Q diag(s) U' at those pixels.
        Q, s, Ut = np.linalg.svd(self.M[~mask], full_matrices=False)
        y, sigma = (rows[:, ~mask] - self.mean[~mask]) @ Q / s, self.noise / s
        w = y / (1 + sigma**2)
        if model is not None:
            params = {name: value.astype(np.float64) for name, value in model.params_.items()}
            prior = from_functions(
                lambda w: model.free_energy(params, w @ Ut),
                lambda w: model.input_grad(params, w @ Ut) @ Ut.T,
                w.shape[1:],
            )
            kernel = HMC(20, inverse_mass=sigma**2 / (1 + sigma**2))
            run = kernel.run(
                Posterior(prior, y, sigma),
                w,
                STATES,
                stream(0, Purpose.SAMPLE),
                n_warmup=WARMUP,
                reducers=[ChainMeans()],
            )
            w = run.reduced[0]
        filled = rows.copy()
        filled[:, mask] = self.back(w @ Ut)[:, mask]
        return filled


def prior(name: str, epochs: int, space: Faces, rows):
    """The named model of white training rows."""
    import numpy as np

    from energyscape.models import GaussianRBM, MPoT
    from energyscape.trainers import PCD

    trainer = {"n_epochs": epochs, "batch_size": BATCH, "averaging": 0.1}
    if name == "MPoT":
        model = MPoT(FILTERS, n_mean_components=MEANS, trainer=PCD(learning_rate=0.1, **trainer))
    else:
        model = GaussianRBM(HIDDEN, trainer=PCD(learning_rate=0.02, **trainer))
    return model.set_params(random_state=0).fit(space.white(rows).astype(np.float32))


def rmse(space: Faces, rows, part: str, model=None) -> float:
    """Root of the mean square error at the hidden pixels."""
    mask = hidden(part)
    wrong = space.fill(rows, mask, model)[:, mask] - rows[:, mask]
    return float((wrong**2).mean() ** 0.5)


def settle(train, record) -> tuple[int, dict[str, tuple[int, int]]]:
    """The Gaussian's rank, and each model's rank and epochs, of the least validation error over all
    parts."""
    import numpy as np

    own, held = mirrored(flat(train[:24])), flat(train[24:])

    def score(space: Faces, model=None) -> float:
        return float(np.mean([rmse(space, held, part, model) for part in PARTS]))

    ranks = {rank: score(Faces(own, rank)) for rank in RANKS}
    record["ranks"] = ranks
    print(ranks, flush=True)
    best = {}
    for name in ("GaussianRBM", "MPoT"):
        scores = {}
        for rank in OF_MODELS:
            space = Faces(own, rank)
            for n in EPOCHS:
                scores[rank, n] = score(space, prior(name, n, space, own))
        record[f"rank, epochs of {name}"] = {f"{r}, {n}": v for (r, n), v in scores.items()}
        best[name] = min(scores, key=scores.get)
        print(name, scores, flush=True)
    return min(ranks, key=ranks.get), best


def priors(best, rows):
    """Name → (space, model) of training rows."""
    made = {}
    for name, (rank, n) in best.items():
        space = Faces(rows, rank)
        made[name] = space, prior(name, n, space, rows)
    return made


def inpainting(train, test, rank, best, record):
    """Rows of the first table, and the models."""
    import numpy as np

    own, rows = mirrored(flat(train)), flat(test)
    plain, models = Faces(own, rank), priors(best, own)
    lines, every = [], []
    for part in PARTS:
        mask = hidden(part)
        away = float(((rows - plain.mean)[:, mask] ** 2).mean() ** 0.5)
        scores = [away, rmse(plain, rows, part)]
        scores += [rmse(space, rows, part, model) for space, model in models.values()]
        record[part], every = scores, [*every, scores]
        lines.append([part, *(f"{score:.1f}" for score in scores)])
        print(lines[-1], flush=True)
    means = np.mean(every, axis=0)
    record["mean"] = means.tolist()
    lines.append(["mean", *(f"**{score:.1f}**" for score in means)])
    return lines, plain, models


def recognition(images, rank, best, record):
    """Rows of the second table: shares of test faces whose person is found."""
    import numpy as np
    from sklearn.decomposition import PCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.pipeline import make_pipeline

    order = np.random.default_rng(1).permuted(np.tile(np.arange(10), (40, 1)), axis=1)
    shuffled = np.take_along_axis(images, order[:, :, None], axis=1)
    train, test = flat(shuffled[:, :5]), flat(shuffled[:, 5:])
    who = np.repeat(np.arange(40), 5)
    classifier = make_pipeline(
        PCA(100, random_state=0), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    ).fit(train, who)
    own = mirrored(train)
    plain, models = Faces(own, rank), priors(best, own)
    whole = float(classifier.score(test, who))
    record["not occluded"] = whole
    lines, every = [["nothing", *[f"{whole:.1%}"] * (3 + len(models))]], []
    for part in PARTS:
        mask = hidden(part)
        ways = [
            np.where(mask, 0.0, test),
            np.where(mask, plain.mean, test),
            plain.fill(test, mask),
            *(space.fill(test, mask, model) for space, model in models.values()),
        ]
        scores = [float(classifier.score(way, who)) for way in ways]
        record[part], every = scores, [*every, scores]
        lines.append([part, *(f"{score:.1%}" for score in scores)])
        print(lines[-1], flush=True)
    means = np.mean(every, axis=0)
    record["mean"] = means.tolist()
    lines.append(["mean of the seven", *(f"**{score:.1%}**" for score in means)])
    return lines


def picture(train, test, plain, models) -> None:
    """Training faces; samples of the Gaussian, the GaussianRBM and the MPoT; then columns of
    occluded test faces, the three fillings and the truth."""
    import numpy as np

    from energyscape.plotting import image_grid, save_png

    rows = flat(train)[np.random.default_rng(2).permutation(len(flat(train)))[:SAMPLES]]
    draws = [plain.back(np.random.default_rng(3).standard_normal((SAMPLES, plain.rank)))]
    for space, model in models.values():
        draws.append(space.back(model.sample(SAMPLES, n_steps=SAMPLE_STEPS, random_state=0)))
    tested = flat(test[:, 0])[: SAMPLES // len(SHOWN)]
    columns = []
    for part in SHOWN:
        mask = hidden(part)
        found = [plain.fill(tested, mask)]
        found += [space.fill(tested, mask, model) for space, model in models.values()]
        columns.append([np.where(mask, 0.0, tested), *found, tested])
    lines = [np.concatenate([column[i] for column in columns]) for i in range(len(columns[0]))]
    pixels = np.clip(np.concatenate([rows, *draws, *lines]), 0, 255)
    grid = image_grid(pixels, n_columns=SAMPLES, scale="all")
    cut = (1 + len(draws)) * (SIDE + 1)
    gap = np.full((6, grid.shape[1]), 255, np.uint8)
    whole = np.concatenate([grid[: cut + 1], gap, grid[cut:]])
    save_png(HERE.parent / "docs" / "images" / "gated_faces.png", whole.repeat(2, 0).repeat(2, 1))


def main() -> None:
    chosen = options(__doc__, threads=1)
    import numpy as np

    clock, record = Clock(), {"validation": {}, "in-painting": {}, "recognition": {}}
    images = faces()
    persons = np.random.default_rng(0).permutation(40)
    train, test = images[persons[:30]], images[persons[30:]]
    rank, best = settle(train, record["validation"])
    record["rank"], record["rank and epochs"] = rank, best
    first, plain, models = inpainting(train, test, rank, best, record["in-painting"])
    picture(train, test, plain, models)
    second = recognition(images, rank, best, record["recognition"])
    names = ["mean face", f"Gaussian, rank {rank}", *models]
    text = [
        f"MPoT: {FILTERS} filters, {MEANS} mean units; GaussianRBM: {HIDDEN} units. By validation, "
        f"of {'/'.join(map(str, OF_MODELS))} components and {'/'.join(map(str, EPOCHS))} epochs: "
        + "; ".join(f"{name} {r} and {n}" for name, (r, n) in best.items())
        + f". Posterior means of {STATES} states of HMC.",
        "In-painting of 10 other persons: root of the mean square error at the hidden pixels, in "
        "grey levels (target: MPoT below the Gaussian and the GaussianRBM):",
        table(["hidden", *names], first),
        "Persons recognised in the 200 test faces (5 images of each of 40 persons to train on), by "
        "what the hidden pixels were set to:",
        table(["hidden", "black", *names], second),
        f"{clock():.0f} s in all.",
        "![Faces and samples above, in-painting below](../docs/images/gated_faces.png)",
        "Above: training faces, samples of the Gaussian, the GaussianRBM, the MPoT. Below: occluded"
        " faces of other persons, the same three fillings, the truth.",
    ]
    write(chosen, "gated_faces", "Faces by a gated model", "\n\n".join(text), record)


if __name__ == "__main__":
    main()
