"""Mixtures, k-means, principal components, factors: exactness, and times by scikit-learn's.

Every contender runs in its own process, which makes the data and one fit to warm up; then ten
rounds in an order that alternates; medians and minima of the time of a fit, float32. Mixtures and
k-means make ten iterations, or as many as ours need until the bound stands still. A fit begins with
each one's own start (a mixture's: ours ten passes of k-means over 10,000 rows, scikit-learn's
k-means over all); "alone" are the iterations and the labels from ours, without the start and, of
ours, the checks of input. Budget: 60 minutes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

HERE = Path(__file__).parent
ITERATIONS, AXES = 10, 16
SIZES = (100_000, 64), (20_000, 784)
MIXTURES = [("full", 8, *SIZES[0]), ("diag", 8, *SIZES[0]), ("spherical", 8, *SIZES[0])]
MIXTURES += [("full", 4, *SIZES[1]), ("diag", 4, *SIZES[1])]
MEANS = [("kmeans", k, *size) for size in SIZES for k in (64, 256)]
# Covariances or model, components, rows, features; and whether from a given start.
FITS = {
    f"{title}, K = {k}, {n:,}×{d}": (kind, k, n, d, alone)
    for words, models, alone in (
        ("GMM {kind}", MIXTURES, False),
        ("EM alone, {kind}", MIXTURES, True),
        ("k-means", MEANS, False),
        ("Lloyd alone", MEANS, True),
    )
    for kind, k, n, d in models
    for title in [words.format(kind=kind)]
} | {f"PCA, {AXES} axes, {n:,}×{d}": ("pca", AXES, n, d, False) for n, d in SIZES}


# ---------------------------------------------------------------- speed


def rows(n: int, d: int):
    """Clouds of unequal width that overlap, so that EM has something to do in every pass."""
    import numpy as np

    rng = np.random.default_rng(0)
    centres = 0.25 * rng.standard_normal((8, d), np.float32)
    mixing = 0.7 * rng.standard_normal((d, d), np.float32) / np.float32(np.sqrt(d))
    width = np.exp(0.3 * rng.standard_normal((n, 1), np.float32))
    noise = rng.standard_normal((n, d), np.float32) @ mixing
    noise += 0.5 * rng.standard_normal((n, d), np.float32)
    return centres[rng.integers(0, 8, n)] + width * noise


def ours(kind: str, k: int, X):
    from energyscape.models import PCA, GaussianMixture, KMeans
    from energyscape.trainers import EM

    if kind == "pca":
        return PCA(k, random_state=0)
    trainer = EM(n_epochs=ITERATIONS, tol=0)
    if kind == "kmeans":
        return KMeans(k, trainer=trainer, random_state=0)
    return GaussianMixture(k, covariance_type=kind, trainer=trainer, random_state=0)


def theirs(kind: str, k: int, X, alone: bool, iterations: int):
    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    from energyscape.backend import Purpose, stream

    if kind == "pca":
        return PCA(k, random_state=0)
    start = {}
    if alone:
        some = X[np.random.default_rng(0).permutation(len(X))[:10_000]]
        start = ours(kind, k, X).init_params(some, stream(0, Purpose.INIT))
    settings = {"tol": 0, "max_iter": iterations, "random_state": 0}
    if kind == "kmeans":
        init = np.ascontiguousarray(start["mu"]) if alone else "k-means++"
        return KMeans(k, init=init, n_init=1, algorithm="lloyd", **settings)
    if alone:
        L, weights = start["L"], np.exp(start["w"] - start["w"].max())
        settings |= {
            "weights_init": weights / weights.sum(),
            "means_init": start["M"],
            "precisions_init": L @ L.transpose(0, 2, 1) if kind == "full" else L * L,
        }
    return GaussianMixture(k, covariance_type=kind, **settings)


def contender(who: str, fit: str, iterations: int) -> None:
    """Print seconds of a fit, and the score it ends at, for every line that comes."""
    kind, k, n, d, alone = FITS[fit]
    X = rows(n, d)
    for _ in sys.stdin:
        model = ours(kind, k, X) if who == "ours" else theirs(kind, k, X, alone, iterations)
        started = time.perf_counter()
        model.fit(X)
        seconds = time.perf_counter() - started
        if alone and who == "ours":  # the iterations, and the pass that labels
            started = time.perf_counter()
            model.predict(X)
            seconds = sum(model.history_["seconds"]) + time.perf_counter() - started
        made = 1 if kind == "pca" else model.n_iter_
        assert who == "ours" or made == iterations, f"{made} iterations, not {iterations}"
        score = -model.inertia_ / n if kind == "kmeans" else float(model.score(X))
        print(json.dumps({"seconds": seconds, "score": score, "iterations": made}), flush=True)


class Contender:
    """A process that waits, without work, for its turn to fit."""

    def __init__(self, who: str, fit: str, threads: int, iterations: int = ITERATIONS) -> None:
        variables = {f"{lib}_NUM_THREADS": str(threads) for lib in ("OMP", "OPENBLAS", "MKL")}
        words = ["--contender", who, "--fit", fit, "--threads", str(threads)]
        words += ["--iterations", str(iterations)]
        self.process = subprocess.Popen(
            [sys.executable, __file__, *words],
            env=os.environ | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def fit(self) -> dict[str, float]:
        ends = self.process.stdin, self.process.stdout
        assert ends[0] is not None and ends[1] is not None
        time.sleep(0.1)  # the other's threads spin for a while before they sleep
        ends[0].write("fit\n")
        ends[0].flush()
        return json.loads(ends[1].readline())

    def stop(self) -> None:
        self.process.communicate()


def speed(rounds: int, names: list[str]) -> tuple[str, dict]:
    blocks, record = [], {}
    for threads in (1, 2):
        table_rows = []
        for fit in names:
            found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
            contenders = {"ours": Contender("ours", fit, threads)}
            made = int(contenders["ours"].fit()["iterations"])
            contenders["theirs"] = Contender("theirs", fit, threads, made)
            contenders["theirs"].fit()
            for turn in range(rounds):
                for who in ("ours", "theirs") if turn % 2 else ("theirs", "ours"):
                    found[who].append(contenders[who].fit())
            for each in contenders.values():
                each.stop()
            times = {who: [r["seconds"] for r in runs] for who, runs in found.items()}
            record[f"{fit}, {threads} threads"] = {
                who: " ".join(f"{1e3 * t:.1f}" for t in all_times)
                for who, all_times in times.items()
            }
            median = {who: statistics.median(t) for who, t in times.items()}
            cells = [f"{1e3 * median[who]:.0f} ({1e3 * min(times[who]):.0f})" for who in times]
            least = min(times["theirs"]) / min(times["ours"])
            ends = [f"{runs[0]['score']:.4f}" for runs in found.values()]
            ratio = f"{median['theirs'] / median['ours']:.2f} ({least:.2f})"
            table_rows.append([fit, made, *cells, ratio, " / ".join(ends)])
            print(fit, threads, *cells, ratio, *ends, file=sys.stderr, flush=True)
        from common import table

        header = [
            "median (least) ms",
            "iterations",
            "ours",
            "scikit-learn",
            "theirs / ours",
            "ends at",
        ]
        blocks.append(f"{threads} thread(s):\n\n{table(header, table_rows)}")
    return "\n\n".join(blocks), record


# ---------------------------------------------------------------- exactness


def em_steps(kind: str) -> tuple[float, float, float]:
    """Difference to scikit-learn's log-likelihood after 20 steps from one start, and the worst
    fall of the bound in 300 steps, ours and theirs, all relative."""
    import numpy as np
    from sklearn.datasets import load_iris
    from sklearn.mixture import GaussianMixture as Reference

    from energyscape.backend import Purpose, stream
    from energyscape.models.mixture import GaussianMixture

    X, worst = load_iris().data, []
    for floor in (0.0, 0.1):
        model = GaussianMixture(3, covariance_type=kind, reg_covar=floor)
        start = params = model.init_params(X, stream(0, Purpose.INIT))
        L, weights = start["L"], np.exp(start["w"] - start["w"].max())
        peer = Reference(
            3,
            covariance_type=kind,
            tol=0,
            reg_covar=floor,
            max_iter=300 if floor else 20,
            weights_init=weights / weights.sum(),
            means_init=start["M"],
            precisions_init=L @ L.transpose(0, 2, 1) if kind == "full" else L * L,
        ).fit(X)
        bounds = []
        for step in range(300):
            if step == 20 and not floor:
                score = -model.free_energy(params, X).mean()
                apart = abs(score / peer.score(X) - 1)
            stats = model.statistics(params, X)
            bounds.append(-float(stats["energy"]) / len(X))
            params = model.maximize(params, stats)
        worst.append(-min(np.diff(bounds)) / max(map(abs, bounds)))
    falls = np.array(peer.lower_bounds_)
    return apart, max(0.0, *worst), max(0.0, -np.diff(falls).min() / abs(falls).max())


def linear_models() -> list[list[str]]:
    import numpy as np
    from sklearn.decomposition import PCA as PeerPCA
    from sklearn.decomposition import FactorAnalysis as PeerFactors

    from energyscape.models.factor_analysis import FactorAnalysis
    from energyscape.models.pca import PCA

    rng = np.random.default_rng(0)
    X = rng.standard_normal((500, 12)) @ rng.standard_normal((12, 12)) + 5
    model, peer = PCA(4).fit(X), PeerPCA(4, svd_solver="full").fit(X)
    away = X - X.mean(axis=0)
    rest = np.linalg.svd(away, compute_uv=False)[4:] ** 2 / len(X)
    energy = abs(model.energy(X).mean() / rest.sum() - 1)
    P, Q = (m.components_.T @ m.components_ for m in (model, peer))
    scores = abs(model.score_samples(X) / peer.score_samples(X) - 1).max()
    W, psi = rng.standard_normal((12, 3)), 0.3 + rng.random(12)
    Y = rng.standard_normal((500, 3)) @ W.T + rng.standard_normal((500, 12)) * np.sqrt(psi)
    factors = FactorAnalysis(3, tol=1e-12, max_iter=20_000).fit(Y)
    other = PeerFactors(3, tol=1e-10, max_iter=20_000, svd_method="lapack").fit(Y)
    return [
        ["PCA: mean energy against discarded eigenvalues, relative", "1e-12", f"{energy:.1e}"],
        ["PCA: projector against scikit-learn's SVD", "1e-10", f"{abs(P - Q).max():.1e}"],
        ["PCA: log-likelihoods against scikit-learn's, relative", "1e-6", f"{scores:.1e}"],
        [
            "Factor analysis: converged log-likelihood against scikit-learn's, relative",
            "1e-6",
            f"{abs(factors.score(Y) / other.score(Y) - 1):.1e}",
        ],
    ]


def exact_likelihood() -> list[list[str]]:
    """∂ log Z/∂θ against central differences, and exact maximum likelihood beside PCD."""
    import numpy as np
    import oracles

    from energyscape.models import RBM
    from energyscape.trainers import PCD, MaximumLikelihood

    model, params = RBM(6), oracles.strong_rbm()
    grads, worst = model.log_partition_grad(params), 0.0
    for key in "Wbc":
        for i in range(params[key].size):
            ends = []
            for sign in (1, -1):
                moved = np.array(params[key])
                moved.flat[i] += sign * 1e-5
                ends.append(model.log_partition(params | {key: moved}))
            numeric = (ends[0] - ends[1]) / 2e-5
            worst = max(worst, abs(numeric - grads[key].flat[i]) / max(1.0, abs(numeric)))
    bars = np.tile(oracles.bars_and_stripes(3), (6, 1))
    ends = []
    for trainer in (MaximumLikelihood, PCD):
        chosen = trainer(n_epochs=4000, batch_size=96, learning_rate=0.3)
        ends.append(RBM(8, trainer=chosen, random_state=0).fit(bars).score(bars))
    most = (12 * np.log(1 / 16) + 4 * np.log(2 / 16)) / 16
    text = f"{ends[0]:.3f} / {ends[1]:.3f} (at most {most:.3f})"
    return [
        ["∂ log Z/∂θ of an RBM against central differences", "1e-6", f"{worst:.1e}"],
        ["Bars and stripes, exact log-likelihood: MaximumLikelihood / PCD", "≥ PCD's", text],
    ]


def exactness() -> list[list[str]]:
    warnings.simplefilter("ignore")
    found = []
    for kind in ("full", "diag", "spherical"):
        apart, fall, their_fall = em_steps(kind)
        name = f"GMM {kind}"
        found.append(
            [
                f"{name}: log-likelihood after 20 steps against scikit-learn's",
                "1e-6",
                f"{apart:.1e}",
            ]
        )
        text = f"{fall:.1e} ({their_fall:.1e})"
        words = "worst fall of the bound, floors 0 and 0.1 (scikit-learn's at 0.1)"
        found.append([f"{name}: {words}", "1e-10", text])
    return found + linear_models() + exact_likelihood()


def main() -> None:
    from common import Clock, options, table, write

    chosen = options(
        __doc__,
        contender={"help": "run this one (ours, theirs) and print its time"},
        fit={"choices": list(FITS), "action": "append", "help": "only this fit"},
        rounds={"type": int, "default": 10},
        iterations={"type": int, "default": ITERATIONS, "help": "of a contender of theirs"},
    )
    if chosen.contender:
        warnings.simplefilter("ignore")
        contender(chosen.contender, chosen.fit[0], chosen.iterations)
        return
    sys.path.insert(0, str(HERE.parent / "tests"))
    clock = Clock()
    exact = exactness()
    times, record = speed(chosen.rounds, chosen.fit or list(FITS))
    text = "\n\n".join(
        [
            table(["relative errors, float64", "target", "measured"], exact),
            f"Time of a fit, float32, {chosen.rounds} rounds, each contender in its own process, "
            "order alternating. A fit begins with each one's own start (a mixture's: ten passes of "
            "k-means over 10,000 rows, scikit-learn's k-means over all until it converges); "
            '"alone" are the iterations and the labels from the start of ours, without making it '
            "and, of ours, without the checks of input. Target: not slower, k-means at most 1.5 "
            "times. GPU: not measured.",
            times,
            f"{clock():.0f} s in all.",
        ]
    )
    record |= {"exactness": exact}
    title = "Mixtures, k-means, principal components, factors"
    write(chosen, "constant_volume", title, text, record)


if __name__ == "__main__":
    main()
