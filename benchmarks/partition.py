"""AIS by every kernel: log Z of a 36-dimensional PoT in closed form, and unbiasedness of Ẑ.

(1) Complete PoT, 36 filters, γ = 2.5, 1.5 and 1.05, HMC kernel, bases fitted to 5,000 exact draws.
(2) Mean of Ẑ/Z at 3, 10 and 30 temperatures, forward and from exact draws. Budget: 10 minutes.
"""

from __future__ import annotations

import sys
import warnings

from common import HERE, Clock, options, table, write

D, CHAINS, SEEDS = 36, 500, (0, 1, 2)
GAMMAS = (2.5, 1.5, 1.05)
MANY = 40_000


def pot(gamma: float):
    """Target, exact draws and log Z of a complete PoT whose filters have lengths from 0.5 to 2."""
    import numpy as np
    from oracles import product_of_t_log_z

    from energyscape.samplers import from_functions

    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((D, D)))[0] for _ in range(2))
    W = (left * np.linspace(0.5, 2.0, D)) @ right

    def energy(x):
        return gamma * np.log1p(0.5 * (x @ W.T) ** 2).sum(axis=1)

    def grad(x):
        y = x @ W.T
        return (gamma * y / (1 + 0.5 * y * y)) @ W

    df = 2 * gamma - 1
    draws = np.sqrt(2 / df) * np.random.default_rng(1).standard_t(df, (5000, D))
    X = np.linalg.solve(W, draws.T).T
    return from_functions(energy, grad, (D,)), X, product_of_t_log_z(W, gamma)


def closed_form() -> tuple[list[list[str]], dict]:
    from energyscape.backend import Purpose, stream
    from energyscape.errors import SamplerWarning
    from energyscape.samplers import AIS, Bridge, Gaussian, StudentT

    rows, record = [], {}
    for gamma in GAMMAS:
        target, X, log_z = pot(gamma)
        for name, base in (
            ("Gaussian", Gaussian.fit(X)),
            ("Student-t, 5 df", StudentT.fit(X, 5)),
        ):
            for k in (1000, 3000):
                cells = []
                for seed in SEEDS:
                    with warnings.catch_warnings(record=True) as told:
                        warnings.simplefilter("always", SamplerWarning)
                        rng = stream(seed, Purpose.PARTITION)
                        found = AIS(CHAINS, k).run(Bridge(base, target), rng)
                    low, high = (edge - log_z for edge in found.interval)
                    warned = " warned" if told else ""
                    cells.append(
                        f"{found.log_partition - log_z:+.3f} [{low:+.3f}, {high:+.3f}] "
                        f"({found.ess:.0f}{warned})"
                    )
                    key = f"gamma {gamma}, {name}, {k}, seed {seed}"
                    record[key] = [found.log_partition - log_z, low, high, found.ess]
                rows.append([gamma, name, k, *cells])
    return rows, record


def ratios() -> tuple[list[list[str]], dict]:
    """Mean of Ẑ/Z (forward) and of its inverse (reverse) with standard errors."""
    import numpy as np
    from sampler_cases import STRONG, STRONG_RBM, TRUTHS, product_of_t

    from energyscape.backend import Purpose, stream
    from energyscape.samplers import (
        AIS,
        HMC,
        Bridge,
        Gaussian,
        Gibbs,
        Langevin,
        Metropolis,
        StudentT,
        from_functions,
    )

    rbm = STRONG_RBM.target(STRONG, base=STRONG_RBM.base_measure(STRONG))
    exact = STRONG_RBM.log_partition(STRONG)
    rows, record = [], {}

    def bits(n, seed):
        return STRONG_RBM.sample_exact(STRONG, n, stream(seed, Purpose.SAMPLE))

    def reals(truth, base):
        t = TRUTHS[truth]
        fitted = base(t.draw(5000, np.random.default_rng(9), 1.0).reshape(5000, -1))
        flat = t.target(MANY)
        if truth == "product of t":
            inner = product_of_t()
            flat = from_functions(
                lambda x: inner.energy(x.reshape(-1, 2, 3)),
                lambda x: inner.input_grad(x.reshape(-1, 2, 3)).reshape(x.shape),
                (6,),
            )
        path = Bridge(fitted, flat)

        def draw(n, seed):
            return t.draw(n, np.random.default_rng(seed), 1.0).reshape(n, -1)

        return path, t.log_z, draw, t.step

    pot_path = reals("product of t", StudentT.fit)
    normal = reals("Gaussian", Gaussian.fit)
    modes = reals("GaussianRBM", Gaussian.fit)
    cases = [
        ("Gibbs, RBM 10×6", rbm, exact, bits, Gibbs()),
        ("Metropolis, RBM 10×6", rbm, exact, bits, Metropolis()),
        ("HMC, PoT in 6 d", *pot_path[:3], HMC(5, pot_path[3])),
        ("Langevin, PoT in 6 d", *pot_path[:3], Langevin(0.4 * pot_path[3] ** 2)),
        ("HMC, GaussianRBM 5×4", *modes[:3], HMC(5, modes[3])),
        ("HMC, Gaussian in 8 d", *normal[:3], HMC(5, normal[3])),
    ]
    for name, path, log_z, draw, kernel in cases:
        for k in (3, 10, 30):
            ais = AIS(MANY, k, sampler=kernel, n_pilot=0)
            base = path.base_log_partition()
            up = ais.run(path, stream(1, Purpose.PARTITION))
            down = ais.reverse(path, draw(MANY, 2), stream(3, Purpose.PARTITION), exact=True)
            cells = []
            for estimate, sign in ((up, 1), (down, -1)):
                w = np.exp(estimate.log_weights + sign * (base - log_z))
                error = w.std(ddof=1) / np.sqrt(MANY)
                cells.append(f"{w.mean():.4f} ± {error:.4f} ({estimate.ess_fraction:.2f})")
                record[f"{name}, {k}, {estimate.kind}"] = [float(w.mean()), float(error)]
            rows.append([name, k, *cells])
    return rows, record


def main() -> None:
    chosen = options(__doc__, threads=1)
    sys.path.insert(0, str(HERE.parent / "tests"))
    clock = Clock()
    known, record = closed_form()
    unbiased, more = ratios()
    text = "\n\n".join(
        [
            f"Error of log Z in nats, 95 % interval, effective sample size of {CHAINS} chains "
            "(target: within 0.1 at γ = 2.5 and 1.5; at γ near 1 the variance is infinite):",
            table(["γ", "base", "temperatures", *(f"seed {s}" for s in SEEDS)], known),
            f"Mean of Ẑ/Z and of its inverse from exact draws, {MANY:,} chains, equal steps of β "
            "(target: 1 within the error, where the effective share in brackets is above 0.1):",
            table(["kernel, model", "temperatures", "forward", "reverse"], unbiased),
            f"{clock():.0f} s in all.",
        ]
    )
    write(chosen, "partition", "Partition functions by every kernel", text, record | more)


if __name__ == "__main__":
    main()
