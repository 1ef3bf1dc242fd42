"""How exact the exact things are: energies, gradients, Gibbs steps, annealed importance sampling.

Oracles are those of the tests: enumeration from the definitions, central differences. Needs
MNIST for the 20-hidden model. Budget: 10 minutes.
"""

from __future__ import annotations

import sys

from common import HERE, Clock, options, table, write

CHAINS, REPEATS = 10_000, 20


def closed_forms(model, params) -> list[list[str]]:
    """Largest errors of F, ∂F/∂θ and πT."""
    import numpy as np
    import oracles
    from scipy.special import logsumexp

    from energyscape.evaluation.laws import _transition

    v, h = oracles.states(10), oracles.states(6)
    joint = oracles.rbm_log_joint(params, v, h)
    error_f = np.abs(model.free_energy(params, v) + logsumexp(joint, axis=1)).max()

    weights = np.random.default_rng(1).standard_normal(len(v))
    grads, worst, step = model.forward(params, v).grad(weights), 0.0, 1e-5
    for key in "Wbc":
        flat = params[key].ravel()
        for i in range(flat.size):
            ends = []
            for sign in (1, -1):
                moved = flat.copy()
                moved[i] += sign * step
                at = params | {key: moved.reshape(params[key].shape)}
                ends.append(float(weights @ model.free_energy(at, v)))
            numeric = (ends[0] - ends[1]) / (2 * step)
            analytic = float(grads[key].ravel()[i])
            worst = max(worst, abs(numeric - analytic) / max(1.0, abs(numeric)))

    p = np.exp(oracles.rbm_log_p(params))
    T = _transition(model, params, v, 1.0, None)
    error_pi = np.abs(p @ T - p).max()
    return [
        ["F against enumeration, largest error", "1e-10", f"{error_f:.1e}"],
        ["∂F/∂θ against central differences, largest relative error", "1e-6", f"{worst:.1e}"],
        ["πT = π for a Gibbs step, largest error", "1e-12", f"{error_pi:.1e}"],
    ]


def unbiasedness(model, params) -> list[list[str]]:
    """Mean of Ẑ/Z over chains with its standard error, at few temperatures."""
    import numpy as np
    import oracles

    from energyscape.backend import Purpose, stream
    from energyscape.samplers import AIS

    log_z = oracles.rbm_log_z(params)
    path = model.target(params, base=model.base_measure(params))
    base, rows = path.base_log_partition(), []
    n = CHAINS * REPEATS
    for k in (3, 10, 30):
        ais = AIS(n, k)
        up = ais.run(path, stream(1, Purpose.PARTITION))
        draws = model.sample_exact(params, n, stream(2, Purpose.SAMPLE))
        down = ais.reverse(path, draws, stream(3, Purpose.PARTITION), exact=True)
        cells = [str(k)]
        for ratio in (
            np.exp(up.log_weights + base - log_z),
            np.exp(down.log_weights + log_z - base),
        ):
            cells.append(f"{ratio.mean():.4f} ± {ratio.std(ddof=1) / np.sqrt(n):.4f}")
        rows.append(cells)
    return rows


def trained(threads: int) -> tuple[list[list[str]], dict]:
    """A 20-hidden RBM trained on MNIST: AIS from both ends next to exact log Z."""
    from energyscape.backend import Purpose, stream
    from energyscape.data import Binarize, load_mnist
    from energyscape.models import RBM
    from energyscape.samplers import AIS
    from energyscape.trainers import PCD

    X = load_mnist("train")[0]
    trainer = PCD(n_epochs=30, learning_rate=0.3, batch_transform=Binarize())
    model = RBM(20, trainer=trainer, random_state=0).fit(X)
    params = model._params
    exact = model.log_partition_
    path = model.target(params, base=model.base_measure(params))
    rows, record = [], {"exact": exact}
    for k in (1000, 10_000):
        ais = AIS(1000, k)
        up = ais.run(path, stream(1, Purpose.PARTITION))
        draws = model.sample_exact(params, 1000, stream(2, Purpose.SAMPLE))
        down = ais.reverse(path, draws, stream(3, Purpose.PARTITION), exact=True)
        record[str(k)] = [up.log_partition - exact, down.log_partition - exact]
        rows.append(
            [
                k,
                f"{up.log_partition - exact:+.3f} ({up.ess:.0f})",
                f"{down.log_partition - exact:+.3f} ({down.ess:.0f})",
            ]
        )
    return rows, record


def main() -> None:
    chosen = options(__doc__)
    sys.path.insert(0, str(HERE.parent / "tests"))
    clock = Clock()
    from oracles import strong_rbm

    from energyscape.models import RBM

    model, params = RBM(6), strong_rbm()
    exact = closed_forms(model, params)
    ratios = unbiasedness(model, params)
    mnist, record = trained(chosen.threads)
    text = "\n\n".join(
        [
            "A 10×6 RBM with |W| ~ 1, float64:",
            table(["", "target", "measured"], exact),
            f"The same model, mean of Ẑ/Z and of Z_base-to-Z weights over {CHAINS * REPEATS:,} "
            "chains (target: 1 within the error):",
            table(["temperatures", "forward", "reverse, from exact draws"], ratios),
            "A 20-hidden RBM trained on MNIST (30 epochs), error of log Z in nats at 1,000 chains, "
            "schedule from a pilot run (effective sample size in brackets); target: within "
            "0.1 at ≥ 1,000 temperatures:",
            table(["temperatures", "forward", "reverse, from exact draws"], mnist),
            f"{clock():.0f} s in all.",
        ]
    )
    record |= {"exact forms": exact, "ratios": ratios}
    write(chosen, "exactness", "Exactness", text, record)


if __name__ == "__main__":
    main()
