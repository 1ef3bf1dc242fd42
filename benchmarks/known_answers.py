"""Known answers of k-means, mixtures, sources, auto-encoders and penalties, beside what comes out.

Float64. k-means, beside scikit-learn's best of ten at equal n_init; mixtures whose variance goes to
0 and whose temperature goes to 0; eight Laplace sources from 100,000 rows by the Amari index (0 for
a scaled permutation, 1 at most); linear denoising, linear contraction, ReLU saturation; and every
penalty's gradient by central differences, over 40 random encoders. Budget: 10 minutes.
"""

from __future__ import annotations

import sys
import warnings

from common import HERE, Clock, options, table, write


def k_means() -> list[list[str]]:
    """Inertia: whether it ever rises, and where it ends beside scikit-learn's."""
    import numpy as np
    from sklearn import datasets
    from sklearn.cluster import KMeans as Peer

    from energyscape.backend import Purpose, stream
    from energyscape.models import KMeans
    from energyscape.trainers import EM

    rise, behind = 0.0, []
    for load in (datasets.load_iris, datasets.load_wine, datasets.load_breast_cancer):
        X = load().data
        X = (X - X.mean(axis=0)) / X.std(axis=0)
        for k in (3, 8):
            model, energies = KMeans(k), []
            params = model.init_params(X, stream(0, Purpose.INIT))
            for _ in range(100):
                stats = model.statistics(params, X)
                energies.append(float(stats["energy"]))
                params = model.maximize(params, stats)
            rise = max(rise, float(np.diff(energies).max()) / energies[0])
            own = KMeans(k, trainer=EM(n_init=10), random_state=0).fit(X).inertia_
            behind.append(own / Peer(k, n_init=10, random_state=0).fit(X).inertia_ - 1)
    return [
        ["k-means: largest rise of the inertia in an iteration, relative", "0", f"{rise:.0e}"],
        [
            "k-means: best of 10 against scikit-learn's best of 10, six problems",
            "≤ 1 %",
            f"{100 * min(behind):+.3f} to {100 * max(behind):+.3f} %",
        ],
    ]


def cold_mixtures() -> list[list[str]]:
    """A spherical mixture whose width goes to 0, and any mixture whose temperature does."""
    import numpy as np
    from sklearn.datasets import load_iris

    from energyscape.backend import Purpose, stream
    from energyscape.models import GaussianMixture, KMeans

    X = load_iris().data
    hard = KMeans(3)
    start = hard.init_params(X, stream(0, Purpose.INIT))
    moved = hard.maximize(start, hard.statistics(start, X))["mu"]
    soft = GaussianMixture(3, covariance_type="spherical", reg_covar=0.0)
    params = soft.init_params(X, stream(0, Purpose.INIT))
    params |= {"M": start["mu"], "w": np.zeros(3), "L": np.full(3, 1e4)}
    labels = soft.encode(params, X).argmax(axis=1)
    same = (labels == hard.assign(start, X)).mean()
    means = soft.maximize(params, soft.statistics(params, X))["M"]
    model = GaussianMixture(3, random_state=0).fit(X)
    fitted = model.params_
    least = (-model.log_joint(fitted, X)).min(axis=1)
    energies = {beta: model.forward(fitted, X, beta).energy() for beta in (1, 10, 100)}
    gaps = [abs(energy / beta - least).max() for beta, energy in energies.items()]
    return [
        ["GMM with σ = 1e-4: rows assigned as by k-means", "100 %", f"{100 * same:.0f} %"],
        ["… its M step against k-means' centres", "0", f"{abs(means - moved).max():.0e}"],
        [
            "GMM: |F_β/β - min_k E(x, k)| at β = 1, 10, 100",
            "log 3/β",
            ", ".join(f"{gap:.0e}" for gap in gaps),
        ],
    ]


def sources() -> list[list[str]]:
    import numpy as np
    from sklearn.decomposition import FastICA
    from test_ica import amari

    from energyscape.models import ICA

    found: dict[str, list[float]] = {"ours": [], "theirs": []}
    for seed in range(3):
        rng = np.random.default_rng(seed)
        A = rng.standard_normal((8, 8))
        X = rng.laplace(size=(100_000, 8)) @ A.T
        found["ours"].append(amari(ICA(random_state=seed).fit(X).components_, A))
        peer = FastICA(whiten="unit-variance", random_state=seed, max_iter=1000).fit(X)
        found["theirs"].append(amari(peer.components_, A))
    text = {who: " ".join(f"{v:.4f}" for v in values) for who, values in found.items()}
    words = "ICA: Amari index of 8 Laplace sources, 100,000 rows, three mixings (FastICA's)"
    return [[words, "< 0.05", f"{text['ours']} ({text['theirs']})"]]


def auto_encoders() -> list[list[str]]:
    import numpy as np
    import test_reconstruction as laws

    from energyscape.activations import Shrink
    from energyscape.backend import Purpose, stream
    from energyscape.corruptions import GaussianNoise
    from energyscape.models import AutoEncoder
    from energyscape.optim import SGD
    from energyscape.penalties import L1, Contractive, Saturating
    from energyscape.trainers import Contraction, Denoising, Reconstruction, Saturation, Sparsity

    x = 3 + np.repeat(laws.corners(3), 8, axis=0) @ laws.MIXING
    S, sigma = np.cov(x.T, bias=True), 0.8
    model = AutoEncoder(3, activation="identity")
    p = model.init_params(x, stream(0, Purpose.INIT))
    trainer = Denoising(GaussianNoise(sigma), optimizer=SGD(0.05, momentum=0.9))
    p = laws.descended(trainer, model, p, x, 2000, laws.ExactNoise())
    wanted = S @ np.linalg.inv(S + sigma**2 * np.eye(3))
    wiener = abs(p["W"] @ p["W"].T - wanted).max()
    model, p, x, _, _ = laws.prepared("identity", False, True)
    plain = laws.gradient(Reconstruction(), model, p, x)["W"]
    contracted = laws.gradient(Contraction(Contractive(0.3)), model, p, x)["W"]
    decay = abs(contracted - plain - 2 * 0.3 * p["W"]).max()
    settings = {"n_epochs": 20, "batch_size": 10, "learning_rate": 0.05}
    apart = []
    for f in ("relu", Shrink(0.3)):
        rows = laws.reals(60)
        a = laws.fitted(Saturation(Saturating(0.2), **settings), rows, activation=f).params_
        b = laws.fitted(Sparsity(L1(0.2), **settings), rows, activation=f).params_
        apart.append(max(abs(a[key] - b[key]).max() for key in a))
    return [
        ["Linear denoising: WW' against S(S + σ²)⁻¹", "0", f"{wiener:.0e}"],
        ["Linear contraction: its gradient against weight decay's", "0", f"{decay:.0e}"],
        [
            "ReLU and shrink: saturation against L1, 20 epochs, largest difference",
            "0, bit for bit",
            " and ".join(f"{v:g}" for v in apart),
        ],
    ]


def penalties() -> list[list[str]]:
    import numpy as np
    import test_penalties as laws

    worst: dict[str, float] = {}
    for case in laws.CASES:
        name = type(case[0]).__name__
        for seed in range(40):
            try:
                error = laws.chain_error(*case, np.random.default_rng(seed))
            except AssertionError:  # a unit at a kink, where there is no derivative
                continue
            worst[name] = max(worst.get(name, 0.0), error)
    text = ", ".join(f"{name} {error:.0e}" for name, error in worst.items())
    return [["Penalties: gradient against central differences, relative, worst", "1e-7", text]]


def main() -> None:
    chosen = options(__doc__, threads=1)
    sys.path.insert(0, str(HERE.parent / "tests"))
    warnings.simplefilter("ignore")
    clock = Clock()
    rows = [*k_means(), *cold_mixtures(), *sources(), *auto_encoders(), *penalties()]
    text = f"{table(['', 'wanted', 'measured'], rows)}\n\n{clock():.0f} s in all."
    write(chosen, "known_answers", "Known answers", text, {"rows": rows})


if __name__ == "__main__":
    main()
