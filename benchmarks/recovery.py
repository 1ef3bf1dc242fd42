"""Do strategies find the model that data were drawn from? Each against maximum likelihood.

    python benchmarks/recovery.py

Rows are drawn exactly from a known model, 20 fits of which are wanted: a Gaussian (6 features), a
mixture of two Gaussians (4), square ICA (4 sources of density 1/cosh), a complete PoT (5 filters,
no Gaussian) and an RBM of 10×12 units. Each strategy fits a model of the same kind from two starts,
the truth with noise on its parameters, and one that knows nothing of it (the default one, but where
that is the answer already: see `far`). Reported:

* KL divergence of the fit from the truth: for the RBM summed over all states; for the others
  E[q/p - 1 - log q/p] over 100,000 draws of the truth p, whose every term is >= 0.
* How many times that of maximum likelihood on the same rows from the same start it is.
* Relative error of parameters with the symmetries resolved: the order of components; order and sign
  of filters and sources (ICA: Amari's index); order and flips of hidden units.
* For NCE, its c less log Z of the fit.

Adam (ICA: SGD), its rate falling in a straight line to 0, batches of 500. From far off every fit is
made a second time with half of the epochs: where the two differ by much, what is seen is the
optimiser's error. Denoising score matching estimates data with noise on them: of Gaussians the
known noise is taken off the fitted covariances; in the others it stays as a bias. Neither CD-1 nor
MarginLoss (a hinge) is consistent; the latter is the control. Budget: 30 minutes.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common import Clock, options, table, write

SEEDS, DRAWS, NEAR, FAR = 3, 100_000, "near", "far"
SIGMA = 0.1  # of the noise of denoising, in deviations of a feature


@dataclass
class Truth:
    """A model that is known.

    Attributes
    ----------
    make : callable
        A model by a trainer.
    params : dict of arrays
    rows, epochs : int
        To learn from; of the longer fits.
    optimizer : callable
        By the name of the trainer.
    shift : dict of str to float
        Deviations of the noise of the start near the truth.
    error : callable
        Of parameters.
    trainers : tuple of str
    """

    make: Callable[[Any], Any]
    params: dict[str, Any]
    rows: int
    epochs: int
    optimizer: Callable[[str], Any]
    shift: dict[str, float]
    error: Callable[[dict[str, Any]], float]
    trainers: tuple[str, ...]


REALS = ("NCE", "ConditionalNCE", "ScoreMatching", "SlicedScoreMatching", "DenoisingScoreMatching")
BITS = (
    "MaximumLikelihood",
    "PCD",
    "NCE",
    "ConditionalNCE",
    "PseudoLikelihood",
    "RatioMatching",
    "MinimumProbabilityFlow",
    "CD",
    "MarginLoss",
)


# ---------------------------------------------------------------- truths


def relative(found: Any, wanted: Any) -> float:
    import numpy as np

    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def matched(found: Any, wanted: Any, signs: bool = True) -> float:
    """Relative error of rows up to their order and, it may be, signs."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    near = np.linalg.norm(found[:, None] - wanted, axis=2)
    flipped = np.linalg.norm(found[:, None] + wanted, axis=2) if signs else near
    order = linear_sum_assignment(np.minimum(near, flipped) ** 2)
    best = np.minimum(near, flipped)[order]
    return float(np.linalg.norm(best) / np.linalg.norm(wanted))


def amari(W: Any, mixing: Any) -> float:
    """0 where sources are found up to order and scale, about 1 where nothing is."""
    P = abs(W @ mixing)
    d = len(P)
    off = (P / P.max(axis=0)).sum() + (P / P.max(axis=1, keepdims=True)).sum() - 2 * d
    return float(off / (2 * d * (d - 1)))


def root(covariance: Any) -> Any:
    """The upper triangle L with L L' the inverse."""
    import numpy as np

    return np.linalg.cholesky(np.linalg.inv(covariance)[::-1, ::-1])[::-1, ::-1]


def covariance(rng: Any, d: int) -> Any:
    """Of condition number about 10."""
    import numpy as np

    turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return (turn * np.geomspace(0.3, 3, d)) @ turn.T


def gaussians(k: int, d: int) -> Truth:
    """A mixture of ``k``; for one, the error is that of the precision."""
    import numpy as np

    from energyscape.models import GaussianMixture
    from energyscape.optim import Adam

    rng = np.random.default_rng(k)
    C = np.array([covariance(rng, d) for _ in range(k)])
    M = rng.standard_normal((k, d)) * (0.0 if k == 1 else 1.5)
    w = np.log(np.array([1.0]) if k == 1 else np.array([0.35, 0.65]))
    params = {"w": w, "M": M, "L": np.array([root(c) for c in C])}
    params |= {"floor": np.zeros(d), "offset": np.zeros(d)}

    def error(found: dict[str, Any]) -> float:
        precision = found["L"] @ found["L"].transpose(0, 2, 1)
        if k == 1:
            return relative(precision[0], np.linalg.inv(C[0]))
        share = np.exp(found["w"] - np.logaddexp.reduce(found["w"]))
        parts = [share[:, None], found["M"], np.linalg.inv(precision).reshape(k, -1)]
        own = np.hstack(parts)
        wanted = np.hstack([np.exp(w)[:, None], M, C.reshape(k, -1)])
        return min(relative(own[list(o)], wanted) for o in itertools.permutations(range(k)))

    shift = {"M": 0.3, "L": 0.1}
    trainers = ("MaximumLikelihood", *REALS, *(("MarginLoss",) if k == 1 else ()))
    return Truth(
        lambda trainer: GaussianMixture(k, trainer=trainer),
        params,
        10_000,
        120,
        lambda name: Adam(0.02),
        shift,
        error,
        trainers,
    )


def sources(d: int) -> Truth:
    import numpy as np

    from energyscape.models import ICA
    from energyscape.optim import SGD

    rng = np.random.default_rng(10)
    turns = [np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(2)]
    W = (turns[0] * np.geomspace(0.5, 2, d)) @ turns[1]
    params = {"W": W, "m": np.zeros(d), "sign": np.ones(d)}
    return Truth(
        lambda trainer: ICA(trainer=trainer),
        params,
        10_000,
        80,
        # Steps along natural gradients, which Adam would bend. Denoising's loss is in units of σ²,
        # far smaller ones than those of the others.
        lambda name: SGD(2.0 if name == "DenoisingScoreMatching" else 0.1),
        {"W": 0.3},
        lambda found: amari(found["W"], np.linalg.inv(W)),
        ("MaximumLikelihood", *REALS, "PCD"),
    )


def students(d: int) -> Truth:
    import numpy as np

    from energyscape.models import PoT
    from energyscape.optim import Adam

    rng = np.random.default_rng(20)
    C = np.linalg.qr(rng.standard_normal((d, d)))[0] * rng.uniform(1, 2, d)
    C += 0.2 * rng.standard_normal((d, d))
    one = np.ones(1)
    params = {"C": C, "a": np.log(rng.uniform(1, 2, d)), "S": np.eye(d), "deviation": one}
    params |= {"mean_v": np.zeros(d), "var_v": np.ones(d)}

    def error(found: dict[str, Any]) -> float:
        return matched((found["S"] @ found["C"]).T / found["deviation"], C.T)

    return Truth(
        lambda trainer: PoT(d, sigma=np.inf, equal_norms=False, trainer=trainer),
        params,
        10_000,
        160,
        lambda name: Adam(0.02),
        {"C": 0.3, "a": 0.3},
        error,
        ("MaximumLikelihood", *REALS, "PCD"),
    )


def machine(d: int, k: int) -> Truth:
    import numpy as np

    from energyscape.models import RBM
    from energyscape.optim import Adam

    rng = np.random.default_rng(30)
    W = rng.standard_normal((d, k)) * 1.5
    b, c = -W.sum(axis=1) / 2, -W.sum(axis=0) / 2  # bits are on half of the time, about
    params = {"W": W, "b": b, "c": c}
    params |= {"mean_v": np.full(d, 0.5), "mean_h": np.full(k, 0.5)}
    return Truth(
        lambda trainer: RBM(k, trainer=trainer),
        params,
        20_000,
        80,
        lambda name: Adam(0.02),
        {"W": 0.3, "b": 0.3, "c": 0.3},
        lambda found: matched(found["W"].T, W.T),
        BITS,
    )


def truths() -> dict[str, Truth]:
    return {
        "Gaussian": gaussians(1, 6),
        "GaussianMixture": gaussians(2, 4),
        "ICA": sources(4),
        "PoT": students(5),
        "RBM": machine(10, 12),
    }


# ---------------------------------------------------------------- fits


def drawn(truth: Truth, n: int, seed: int) -> Any:
    """Exact draws."""
    from energyscape.backend import Purpose, stream

    return truth.make(None).sample_exact(truth.params, n, stream(seed, Purpose.SAMPLE))


def near(truth: Truth, seed: int) -> dict[str, Any]:
    """The truth with noise on its parameters."""
    import numpy as np

    rng = np.random.default_rng(1000 + seed)
    moved = {key: np.array(value) for key, value in truth.params.items()}
    for key, size in truth.shift.items():
        moved[key] = moved[key] + size * rng.standard_normal(moved[key].shape)
    return truth.make(None).feasible(moved) if "L" in moved else moved


def far(name: str, truth: Truth, X: Any, seed: int) -> dict[str, Any] | None:
    """The default start (None), but for models whose default start is an answer already: a Gaussian
    begins at independent features, ICA at random directions of white rows."""
    import numpy as np

    spread = X.std(axis=0)
    if name == "Gaussian":
        L = np.diag(1 / spread)[None]
        return truth.params | {"L": L, "M": X[:1].copy(), "floor": 1e-9 * spread**2}
    if name == "ICA":
        rng = np.random.default_rng(2000 + seed)
        turn = np.linalg.qr(rng.standard_normal((X.shape[1],) * 2))[0]
        value, vector = np.linalg.eigh(np.cov(X.T))
        return truth.params | {"W": turn @ (vector / np.sqrt(value)).T}
    return None


def trainer(name: str, truth: Truth, epochs: int, X: Any) -> Any:
    from energyscape import trainers

    settings: dict[str, Any] = {"n_epochs": epochs, "batch_size": 500}
    settings["optimizer"] = truth.optimizer(name)
    if name == "PCD":
        settings["n_chains"] = 500
    if name == "DenoisingScoreMatching":
        settings["sigma"] = noise(X)
    if name == "ConditionalNCE":
        settings["n_negatives"] = 5
    return getattr(trainers, name)(**settings)


def noise(X: Any) -> float:
    import numpy as np

    return float(SIGMA * np.sqrt(X.var(axis=0).mean()))


def fitted(truth: Truth, name: str, X: Any, start: Any, epochs: int, seed: int) -> Any:
    """A model begun at ``start`` (None: where it begins by itself)."""
    model = truth.make(trainer(name, truth, epochs, X)).set_params(random_state=seed)
    if start is not None:
        model.init_params = lambda x, rng: {key: value.copy() for key, value in start.items()}
    return model.fit(X)


def without_noise(name: str, params: dict[str, Any], X: Any) -> dict[str, Any]:
    """Gaussians that were fitted to rows with known noise, less that noise."""
    import numpy as np

    if name != "DenoisingScoreMatching" or "L" not in params:
        return params
    L = params["L"]
    C = np.linalg.inv(L @ L.transpose(0, 2, 1)) - noise(X) ** 2 * np.eye(L.shape[1])
    return params | {"L": np.array([root(c) for c in C])}


def divergence(truth: Truth, params: dict[str, Any], points: Any) -> float:
    """KL(truth || params), in nats; from draws of the truth, or (bits) all states."""
    import numpy as np

    model = truth.make(None)
    log_q = -model.free_energy(params, points) - model.log_partition(params)
    log_p = -model.free_energy(truth.params, points) - model.log_partition(truth.params)
    if model.domain == "binary":
        return float(np.exp(log_p) @ (log_p - log_q))
    ratio = log_q - log_p
    return float((np.expm1(ratio) - ratio).mean())


def one_seed(name: str, truth: Truth, seed: int) -> list[dict[str, Any]]:
    """The figures of every strategy and start on the rows of a seed."""
    from energyscape.evaluation.laws import all_states

    X = drawn(truth, truth.rows, 10 * seed + 1)
    binary = truth.make(None).domain == "binary"
    points = all_states(X.shape[1]) if binary else drawn(truth, DRAWS, 10 * seed + 2)
    found = []
    for where in (NEAR, FAR):
        start = near(truth, seed) if where == NEAR else far(name, truth, X, seed)
        for strategy in truth.trainers:
            one: dict[str, Any] = {"trainer": strategy, "start": where, "seed": seed}
            lengths = {"kl": truth.epochs}
            if where == FAR:
                lengths = {"half": truth.epochs // 2} | lengths
            for key, epochs in lengths.items():
                clock = Clock()
                model = fitted(truth, strategy, X, start, epochs, seed)
                one["seconds"] = clock()
                params = without_noise(strategy, model._params, X)
                one[key] = divergence(truth, params, points)
            one["error"] = truth.error(params)
            if where == NEAR:
                one["begin"] = divergence(truth, start, points)
            if strategy == "NCE":
                c = model.history_["log_partition"][-1]
                one["c"] = c - model.log_partition(model._params)
            found.append(one)
    return found


# ---------------------------------------------------------------- report


def summary(runs: list[dict[str, Any]], trainers: tuple[str, ...]) -> list[list[str]]:
    import numpy as np

    by = {
        (t, w): [r for r in runs if r["trainer"] == t and r["start"] == w]
        for t in trainers
        for w in (NEAR, FAR)
    }
    lines = []
    for t in trainers:
        line = [t]
        for w in (NEAR, FAR):
            kl = 1e3 * np.array([r["kl"] for r in by[t, w]])
            half = 1e3 * np.mean([r["half"] for r in by[t, w]]) if w == FAR else 0
            ml = 1e3 * np.array([r["kl"] for r in by["MaximumLikelihood", w]])
            cell = f"**{kl.mean():.3g}** ± {error_of(kl):.2g}"
            line.append(cell + (f" ({half:.3g})" if w == FAR else ""))
            line.append("" if t == "MaximumLikelihood" else f"{kl.mean() / ml.mean():.2f}")
        errors = 100 * np.array([r["error"] for r in by[t, FAR]])
        line.append(f"{errors.mean():.2f} ± {error_of(errors):.2g} %")
        lines.append([*line, f"{np.mean([r['seconds'] for r in by[t, FAR]]):.1f} s"])
    return lines


def error_of(values: Any) -> float:
    """Standard error of the mean."""
    return float(values.std(ddof=1) / len(values) ** 0.5)


def said_of_c(record: dict[str, Any]) -> str:
    import numpy as np

    parts, met = [], True
    for name, runs in record.items():
        c = np.array([r["c"] for r in runs if "c" in r])
        met = met and bool(abs(c).max() <= 0.05)
        parts.append(f"{name} {abs(c).mean():.4f} (at most {abs(c).max():.4f})")
    return (
        "NCE's c beside log Z of its own fit, mean |c - log Z| over seeds and both starts: "
        + ", ".join(parts)
        + f". Target: all within 0.05: {'met' if met else 'missed'}."
    )


def numbers(truth: Truth) -> int:
    """How many are free: roots of precisions are triangles, shares sum to 1."""
    specs = truth.make(None).param_specs()
    count = sum(v.size for key, v in truth.params.items() if specs[key].trainable)
    if "L" in truth.params:
        k, d, _ = truth.params["L"].shape
        count -= k * d * (d - 1) // 2 + 1
    return count


def said_of_control(record: dict[str, Any]) -> str:
    """Whether the hinge ends farther off than every consistent strategy, from both starts."""
    import numpy as np

    met = []
    for runs in record.values():
        names = {r["trainer"] for r in runs} - {"CD", "DenoisingScoreMatching"}
        for where in (NEAR, FAR) if "MarginLoss" in names else ():
            kl = {
                t: [r["kl"] for r in runs if (r["trainer"], r["start"]) == (t, where)]
                for t in names
            }
            worst = max(max(v) for t, v in kl.items() if t != "MarginLoss")
            met.append(np.min(kl["MarginLoss"]) > worst)
    return (
        "The control: on every set of rows the hinge ends farther off than any consistent strategy "
        f"on any: {'met' if all(met) else 'missed'}."
    )


def report(record: dict[str, Any], seconds: float) -> str:
    """The block, from the runs of every model."""
    known, text = truths(), []
    for name, runs in record.items():
        truth = known[name]
        begin = [r["begin"] for r in runs if "begin" in r]
        count = numbers(truth)
        header = ["", "near", "× ML", "far", "× ML", "error of parameters", "a fit"]
        text += [
            f"**{name}**, {truth.rows:,} rows, {count} numbers to learn (maximum likelihood in "
            f"theory: {1e3 * count / (2 * truth.rows):.3g}); near starts are "
            f"{1e3 * sum(begin) / len(begin):.3g} away:",
            table(header, summary(runs, truth.trainers)),
        ]
    sets = 1 + max(r["seed"] for runs in record.values() for r in runs)
    first = (
        f"{sets} sets of rows for each model. KL divergence from the truth in thousandths "
        "of a nat, ± a standard error over the sets, from a start near the truth and from one far "
        "off (in brackets: with half of the epochs), and how many times that of maximum likelihood "
        "it is; error of the parameters from far off. (The mean of PoT is the rows', and not "
        "learned: near starts have the true one. Weights of an RBM with more hidden than visible "
        "units are hardly determined by what is visible.)"
    )
    last = [said_of_c(record), said_of_control(record), f"{seconds:.0f} s in all."]
    return "\n\n".join([first, *text, *last])


def main() -> None:
    chosen = options(
        __doc__,
        threads=1,
        seeds={"type": int, "default": SEEDS},
        only={"help": "one of the models"},
    )
    warnings.simplefilter("ignore")
    whole, record = Clock(), {}
    for name, truth in truths().items():
        if chosen.only in (None, name):
            record[name] = [
                one for seed in range(chosen.seeds) for one in one_seed(name, truth, seed)
            ]
            print(table([name], summary(record[name], truth.trainers)), flush=True)
    text = report(record, whole())
    write(chosen, "recovery", "Known models found again", text, record)


if __name__ == "__main__":
    main()
