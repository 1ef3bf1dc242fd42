"""Gated Markov random fields on patches of natural images: test log-likelihoods.

    python benchmarks/gated_likelihood.py

Rows: 16×16 patches of log(1 + grey level), less their mean, along their 36 leading principal
components, whitened; 100,000 from the training images of BSDS500, 10,000 from BSD68, at random
places. (1) PoT with as many filters as features and no Gaussian, whose log Z is exact: maximum
likelihood by SciPy's L-BFGS-B against PCD and FPCD, whose chains HMC moves. (2) Models with more
filters than features: log Z by annealed importance sampling (HMC) at K and 4K temperatures.
Budget: 30 minutes.
"""

from __future__ import annotations

from common import Clock, options, table, write
from gated_patches import white_rows

SIZE, KEPT, TRAIN, TEST = 16, 36, 100_000, 10_000
EPOCHS, BATCH = 13, 128  # 10,000 updates
CHAINS, TEMPERATURES = 200, 2_000


def gaussian(X, T) -> float:
    """Mean test log-likelihood of the Gaussian with the training rows' moments."""
    import numpy as np
    from scipy.stats import multivariate_normal

    X = X.astype(np.float64)
    return float(multivariate_normal(X.mean(axis=0), np.cov(X.T)).logpdf(T).mean())


def exact_fit(X):
    """(PoT, parameters, iterations) of maximum likelihood on all rows by L-BFGS-B, float64."""
    import numpy as np
    from scipy.optimize import minimize

    from energyscape.backend import Purpose, stream
    from energyscape.models import PoT

    model, X = PoT(KEPT, sigma=np.inf), X.astype(np.float64)
    params, weights = model.init_params(X, stream(0, Purpose.INIT)), np.full(len(X), 1 / len(X))

    def loss(v):
        at = params | {"C": v[: KEPT**2].reshape(KEPT, KEPT), "a": v[KEPT**2 :]}
        passed, of_z = model.forward(at, X), model.log_partition_grad(at)
        grads = passed.grad(weights)
        slope = [(grads[k] + of_z[k]).ravel() for k in ("C", "a")]
        return passed.energy().mean() + model.log_partition(at), np.concatenate(slope)

    start = np.concatenate([np.linalg.qr(params["C"])[0].ravel(), params["a"]])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    v = found.x
    return model, params | {"C": v[: KEPT**2].reshape(KEPT, KEPT), "a": v[KEPT**2 :]}, found.nit


def complete(X, T, record) -> list[list[str]]:
    """Rows of the first table."""
    import numpy as np

    from energyscape.models import PoT
    from energyscape.trainers import FPCD, PCD

    lines, clock = [["Gaussian", f"{gaussian(X, T):.2f}", "", ""]], Clock()
    record["Gaussian"] = gaussian(X, T)
    model, params, steps = exact_fit(X)
    wide = T.astype(np.float64)
    score = float(-model.free_energy(params, wide).mean() - model.log_partition(params))
    record["exact"] = {"test": score, "seconds": clock(), "iterations": int(steps)}
    shapes = 0.5 + np.exp(params["a"])
    lines.append(
        [
            f"exact maximum likelihood, {steps} iterations",
            f"**{score:.2f}**",
            f"{shapes.min():.2f} … {shapes.max():.2f}",
            f"{record['exact']['seconds']:.0f} s",
        ]
    )
    for kind in (PCD, FPCD):
        for rate in (0.05, 0.1):
            trainer = kind(n_epochs=EPOCHS, batch_size=BATCH, learning_rate=rate, averaging=0.1)
            clock()
            fitted = PoT(
                KEPT, sigma=np.inf, equal_norms=False, trainer=trainer, random_state=0
            ).fit(X)
            seconds, name = clock(), f"{kind.__name__}, rate {rate}"
            shapes = 0.5 + np.exp(fitted.params_["a"])
            record[name] = {"test": fitted.score(T), "seconds": seconds}
            lines.append(
                [
                    name,
                    f"**{record[name]['test']:.2f}**",
                    f"{shapes.min():.2f} … {shapes.max():.2f}",
                    f"{seconds:.0f} s",
                ]
            )
    return lines


def overcomplete(X, T, record) -> list[list[str]]:
    """Rows of the second table."""
    from energyscape.backend import Purpose, stream
    from energyscape.models import CovarianceRBM, GaussianRBM, McRBM, MPoT, PoT
    from energyscape.samplers import AIS, HMC
    from energyscape.trainers import PCD

    lines = []
    for model in (
        GaussianRBM(256, trainer=PCD(n_chains=500, learning_rate=0.05)),
        PoT(144),
        MPoT(144, n_mean_components=72),
        CovarianceRBM(144),
        McRBM(144, n_mean_components=72),
    ):
        name, clock = type(model).__name__, Clock()
        trainer = model.default_trainer() if model.trainer is None else model.trainer
        trainer.set_params(n_epochs=EPOCHS, batch_size=BATCH, averaging=0.1)
        model.set_params(trainer=trainer, random_state=0).fit(X)
        own = {"seconds": clock()}
        params = model._params
        path, free = model.target(params, model.base_measure(params)), float(model.energy(T).mean())
        kernel = None if name == "GaussianRBM" else HMC(10)
        for i, k in enumerate((TEMPERATURES, 4 * TEMPERATURES)):
            found = AIS(CHAINS, k, kernel).run(path, stream(i, Purpose.PARTITION))
            low, high = (-free - edge for edge in found.interval[::-1])
            own[str(k)] = {
                "test": -free - found.log_partition,
                "interval": (low, high),
                "ess": found.ess,
                "seconds": clock(),
            }
        record[name] = own
        short, long = own[str(TEMPERATURES)], own[str(4 * TEMPERATURES)]
        lines.append(
            [
                name,
                f"{short['test']:.2f}",
                f"**{long['test']:.2f}** ({long['interval'][0]:.2f} … {long['interval'][1]:.2f})",
                f"{long['ess']:.0f} of {CHAINS}",
                f"{own['seconds']:.0f} s",
            ]
        )
    return lines


def main() -> None:
    chosen = options(__doc__, threads=1)
    X, T, _ = white_rows(SIZE, KEPT, TRAIN, TEST)
    record: dict[str, object] = {}
    first = complete(X, T, record)
    second = overcomplete(X, T, record)
    lines = [
        f"{TRAIN:,} training and {TEST:,} test rows of {KEPT} features, float32; learning rates "
        f"fall linearly to 0 over {EPOCHS} epochs (10,000 updates of {BATCH} rows), parameters "
        "averaged over the last tenth. Mean test log-likelihoods in nats.",
        "PoT with 36 filters, no Gaussian, log Z exact (target: PCD within 1.5 of the exact fit):",
        table(["", "test", "γ", "time"], first),
        "More filters than features (144, and 72 mean units where there are any; defaults "
        "otherwise), log Z by AIS (target: at least 10 above the Gaussian):",
        table(
            ["", f"K = {TEMPERATURES:,}", f"K = {4 * TEMPERATURES:,}", "effective chains", "fit"],
            second,
        ),
    ]
    write(chosen, "gated_likelihood", "Gated models of patches", "\n\n".join(lines), record)


if __name__ == "__main__":
    main()
