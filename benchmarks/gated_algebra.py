"""Gated Markov random fields against definitions, quadrature, differences and exact log Z.

    python benchmarks/gated_algebra.py

(1) PoT, CovarianceRBM, McRBM and MPoT with filters of their own, fixed pools and learned pools, and
the authors' normalised rows, all in float64: free energies and activities against the definition of
the joint energy, summed over binary units and integrated over gamma units; x given the hidden units
and log Z against sums over a fine grid of the plane; gradients against central differences. (2) log
Z as a formula or by enumeration against annealed importance sampling, whose chains HMC moves.
Budget: 4 minutes.
"""

from __future__ import annotations

import math
import sys

from common import HERE, Clock, options, table, write

FEATURES, ROWS, UNITS = 4, 12, 4
SEEDS, CHAINS = (0, 1, 2), 500
TEMPERATURES, OF_BINARY = 2_000, 8_000  # binary units switch: weights spread more
GAMMAS = (2.5, 1.5, 1.05)
BOUND, NATS = 1e-7, 0.1


def models():
    """(name, model) of every variant."""
    import numpy as np

    from energyscape.models import CovarianceRBM, McRBM, MPoT, PoT

    shared = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    means = {"n_mean_components": 3}
    found = [("PoT, complete, without the Gaussian", PoT(UNITS, sigma=math.inf))]
    for cls, more in ((PoT, {}), (CovarianceRBM, {}), (McRBM, means), (MPoT, means)):
        name = cls.__name__
        found += [
            (f"{name}, a filter each", cls(UNITS, learn_pools=False, **more)),
            (f"{name}, pools of 2", cls(UNITS, pools=2, learn_pools=False, **more)),
            (f"{name}, learned pools that overlap", cls(UNITS, pools=shared, **more)),
            (f"{name}, learned pools, learned σ", cls(UNITS, sigma="learned", **more)),
        ]
        found[-2][1].set_params(learn_pools=True)
        found[-1][1].set_params(learn_pools=True)
        if cls in (CovarianceRBM, McRBM):
            found.append((f"{name}, normalised rows", cls(UNITS, normalize=True, **more)))
    return found


def strong(model, x, seed: int = 1):
    """Parameters off every symmetry whose hidden units matter."""
    import numpy as np

    from energyscape.evaluation.laws import generic_params

    draw, params = np.random.default_rng(seed), dict(generic_params(model, x))
    params["C"] = draw.standard_normal(params["C"].shape)
    if "W" in params:
        params["W"] = draw.standard_normal(params["W"].shape) / model.relative_sigma
    return params


def data(d: int, n: int):
    import numpy as np

    draw = np.random.default_rng(0)
    return 3 + draw.standard_normal((n, d)) @ draw.standard_normal((d, d))


# ---------------------------------------------------------------- the definition


class Definition:
    """E(x, h, g) of one model, written out from the equations and nothing of the library's own."""

    def __init__(self, model, params) -> None:
        self.model, self.p = model, params
        self.gamma = "a" in params
        self.shapes = (0.0 if model.finite else 0.5) + math.e ** params.get("a", 0.0)

    def parts(self, x):
        """Energy of x alone, pooled energies z and fields of the mean units, by row."""
        import numpy as np

        p = self.p
        u = (x - p["mean_v"]) / p["deviation"]
        v = u @ p["S"].T
        if self.model.normalize:
            v = v / np.sqrt((v**2).sum(axis=1, keepdims=True) / v.shape[1] + 0.5)
        z = 0.5 * (v @ p["C"]) ** 2
        z = z @ p["P"] if "P" in p else z
        own = np.zeros(len(x))
        if self.model.finite:
            own = (u**2).sum(axis=1) / (2 * np.exp(p["log_var"][0])) - u @ p["b"]
        fields = u @ p["W"] + p["c"] if "W" in p else np.zeros((len(x), 0))
        return own, z, fields

    def unit(self, k: int, h, z):
        """E(z, h) of covariance unit ``k``."""
        import numpy as np
        from scipy.special import gammaln

        if self.gamma:
            shape = self.shapes[k]
            return h * (1 + z) + (1 - shape) * np.log(h) + gammaln(shape)
        return h * (z - self.p["d"][k])

    def joint(self, x, h):
        import numpy as np

        own, z, fields = self.parts(x)
        k = z.shape[1]
        each = [self.unit(j, h[:, j], z[:, j]) for j in range(k)]
        return own + np.sum(each, axis=0) - (fields * h[:, k:]).sum(axis=1)

    def marginal(self, x):
        """(F(x), activities) by sums over all states of binary units and by quadrature, unit by
        unit, over gamma units."""
        import numpy as np
        import oracles
        from scipy.integrate import quad
        from scipy.special import logsumexp

        own, z, fields = self.parts(x)
        free, active = np.empty(len(x)), []
        g = oracles.states(fields.shape[1])
        h = None if self.gamma else oracles.states(z.shape[1])
        for i in range(len(x)):
            log_mean = g @ fields[i]
            log_means = logsumexp(log_mean)
            mean = np.exp(log_mean - log_means) @ g
            if h is not None:
                log_w = -sum(self.unit(j, h[:, j], z[i, j]) for j in range(h.shape[1]))
                total = logsumexp(log_w)
                gates = np.exp(log_w - total) @ h
            else:
                total, gates = 0.0, np.empty(z.shape[1])
                for j, shape in enumerate(self.shapes):
                    # In t = log h, where the integrand is smooth for every γ.
                    def weight(t, power=0, j=j, i=i):
                        at = math.exp(t)
                        return math.exp((1 + power) * t - self.unit(j, at, z[i, j]))

                    peak = math.log(shape / (1 + z[i, j]))
                    ends = peak - 60 / min(shape, 1), peak + 8
                    mass, first = (
                        quad(weight, *ends, (n,), points=[peak], epsabs=0, epsrel=1e-12, limit=500)
                        for n in (0, 1)
                    )
                    total += math.log(mass[0])
                    gates[j] = first[0] / mass[0] / shape
            free[i] = own[i] - total - log_means
            active.append(np.concatenate([gates, mean]))
        return free, np.array(active)

    def free(self, x):
        """F(x) with the units' sums and integrals as formulas, for many rows."""
        import numpy as np

        own, z, fields = self.parts(x)
        gate = np.log1p(z) @ self.shapes if self.gamma else -np.logaddexp(0, self.p["d"] - z).sum(1)
        return own + gate - np.logaddexp(0, fields).sum(axis=1)


def off(got, wanted) -> float:
    """Largest error as a share of the largest value wanted."""
    import numpy as np

    got, wanted = np.asarray(got), np.asarray(wanted)
    return float(abs(got - wanted).max() / max(abs(wanted).max(), 1e-300))


def slope(f, at, step: float = 1e-3):
    """Central differences of a scalar function of an array, fourth order."""
    import numpy as np

    found = np.empty(at.shape)
    for index in np.ndindex(at.shape):
        ends = []
        for move in (2, 1, -1, -2):
            moved = at.copy()
            moved[index] += move * step
            ends.append(f(moved))
        found[index] = (-ends[0] + 8 * ends[1] - 8 * ends[2] + ends[3]) / (12 * step)
    return found


# ---------------------------------------------------------------- the table of errors


def gradients(model, params, x) -> tuple[float, float]:
    """Errors of ∂F/∂θ (the worst of all parameters) and of ∂F/∂x."""
    import numpy as np

    weights = np.random.default_rng(2).standard_normal(len(x))
    grads, worst = model.free_energy_grad(params, x, weights), 0.0
    for name, grad in grads.items():

        def loss(value, name=name):
            return float(weights @ model.free_energy(params | {name: value}, x))

        worst = max(worst, off(grad, slope(loss, params[name])))
    by_row = [
        slope(lambda row: float(model.free_energy(params, row[None])[0]), row, 1e-3) for row in x
    ]
    gradient = model.input_grad_function(params)
    return worst, max(off(model.input_grad(params, x), by_row), off(gradient(x), by_row))


def plane(model, seed: int = 3):
    """Parameters over two features, and a fine grid of the plane with its area element. Sums over
    it are exact but for rounding: the densities are smooth and small at its border."""
    import numpy as np

    params = strong(model, data(2, 40), seed)
    params["C"] = 0.7 * params["C"]
    width = 14 * float(params["deviation"][0]) * math.exp(0.5 * params["log_var"][0])
    lines = [m + np.linspace(-width, width, 1001) for m in params["mean_v"]]
    grid = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, 2)
    return params, grid, float(np.diff(lines[0][:2])[0] ** 2)


def given_hidden(model) -> float:
    """Error of the mean and the precision of x given hidden units."""
    import numpy as np

    params, grid, _ = plane(model)
    draw, true, worst = np.random.default_rng(4), Definition(model, params), 0.0
    units, means = model._n_units, int(model.n_mean_components)
    for _ in range(3):
        gates = draw.gamma(1.0, size=units) if "a" in params else draw.integers(0, 2, units)
        h = np.concatenate([gates, draw.integers(0, 2, means)]).astype(np.float64)[None]
        own, z, fields = true.parts(grid)
        energy = own + z @ h[0, :units] - fields @ h[0, units:]
        p = np.exp(energy.min() - energy)
        p /= p.sum()
        mean = p @ grid
        away = grid - mean
        covariance = away.T @ (p[:, None] * away)
        precision, pull = model.conditional(params, h)
        s = params["deviation"][0]
        centre = np.linalg.solve(precision[0], pull[0]) * s + params["mean_v"]
        worst = max(worst, off(centre, mean))
        worst = max(worst, off(np.linalg.inv(precision[0]) * s * s, covariance))
    return worst


def log_z_error(model) -> float:
    """Error of log Z of two features (orthogonal filters, for a PoT)."""
    import numpy as np

    params, grid, cell = plane(model)
    if "a" in params:
        turn = np.linalg.qr(params["C"][:, :2])[0] * np.array([0.8, 1.7])
        params["C"] = np.linalg.solve(params["S"], turn)
    energy = Definition(model, params).free(grid)
    low = energy.min()
    wanted = math.log(np.exp(low - energy).sum() * cell) - low
    return abs(model.log_partition(params) - wanted) / abs(wanted)


def complete_log_z(model, params) -> float:
    """Worst error of log Z of a complete PoT and of its gradient."""
    import numpy as np
    from scipy.special import gammaln

    shapes = 0.5 + np.exp(params["a"])
    each = 0.5 * np.log(2 * np.pi) + gammaln(shapes - 0.5) - gammaln(shapes)
    wanted = each.sum() - np.linalg.slogdet(params["S"] @ params["C"])[1]
    wanted += len(params["C"]) * math.log(params["deviation"][0])
    worst = abs(model.log_partition(params) - wanted) / abs(wanted)
    for name, grad in model.log_partition_grad(params).items():
        by_steps = slope(
            lambda value, name=name: model.log_partition(params | {name: value}), params[name]
        )
        worst = max(worst, off(grad, by_steps))
    return worst


def errors(record) -> list[list[str]]:
    import numpy as np

    x, lines = data(FEATURES, 200), []
    for name, model in models():
        params = strong(model, x)
        true, rows = Definition(model, params), x[:ROWS]
        free, active = true.marginal(rows)
        draw = np.random.default_rng(5)
        h = draw.integers(0, 2, active.shape).astype(np.float64)
        if true.gamma:
            units = model._n_units
            h[:, :units] = draw.gamma(1.0, size=(ROWS, units))
        own = {
            "E": off(model.joint_energy(params, rows, h), true.joint(rows, h)),
            "F": off(model.free_energy(params, rows), free),
            "h given x": off(model.encode(params, rows), active),
        }
        own["dF/dtheta"], own["dF/dx"] = gradients(model, params, rows)
        # A Gaussian in x, which takes one with σ, for sums over the plane.
        if model.finite and not model.normalize:
            own["x given h"] = given_hidden(model)
        if not model.finite:
            own["log Z"] = complete_log_z(model, params)
        elif not true.gamma and not model.normalize:
            own["log Z"] = log_z_error(model)
        elif hasattr(model, "log_partition"):
            from energyscape.models import PoT

            own["log Z"] = log_z_error(PoT(2))
        record[name] = own
        keys = ("E", "F", "h given x", "x given h", "dF/dtheta", "dF/dx", "log Z")
        lines.append([name, *(f"{own[key]:.0e}" if key in own else "" for key in keys)])
        print(lines[-1], flush=True)
    return lines


# ---------------------------------------------------------------- log Z by AIS


def known_log_z():
    """(name, model, parameters) of densities whose log Z is known."""
    import numpy as np

    from energyscape.models import CovarianceRBM, McRBM, PoT

    d = 8
    x = data(d, 2000)
    for gamma in GAMMAS:
        model = PoT(d, sigma=math.inf)
        params = strong(model, x)
        draws = (np.random.default_rng(s).standard_normal((d, d)) for s in (1, 2))
        left, right = (np.linalg.qr(draw)[0] for draw in draws)
        params["C"] = np.linalg.solve(params["S"], (left * np.linspace(0.5, 2, d)) @ right)
        params["a"] = np.full(d, math.log(gamma - 0.5))
        yield f"PoT, complete, γ = {gamma}", model, params
    model = PoT(6)
    params = strong(model, x)
    turn = np.linalg.qr(params["C"])[0] * np.linspace(0.5, 3, 6)
    params["C"] = np.linalg.solve(params["S"], turn)
    yield "PoT, 6 orthogonal filters", model, params
    for model in (CovarianceRBM(12), McRBM(10, n_mean_components=6)):
        params = strong(model, x)
        yield f"{type(model).__name__}, 2^{model.enumerable_units(params)} states", model, params


def by_ais(record) -> tuple[list[list[str]], bool]:
    import numpy as np

    from energyscape.backend import Purpose, stream
    from energyscape.samplers import AIS, HMC

    lines, met = [], True
    for name, model, params in known_log_z():
        exact, cells = model.log_partition(params), []
        if hasattr(model, "sample_exact"):  # the base has the variances of data, here the model's
            drawn = model.sample_exact(params, 5000, stream(0, Purpose.SAMPLE))
            params = params | {"var_v": ((drawn - params["mean_v"]) ** 2).mean(axis=0)}
        path = model.target(params, model.base_measure(params))
        k = TEMPERATURES if "a" in params else OF_BINARY
        for seed in SEEDS:
            found = AIS(CHAINS, k, HMC(5)).run(path, stream(seed, Purpose.PARTITION))
            w = np.exp(found.log_weights - found.log_weights.max())
            error = float(w.std(ddof=1) / w.mean() / math.sqrt(CHAINS))
            away = found.log_partition - exact
            record[f"{name}, seed {seed}"] = [away, error, found.ess]
            bad = abs(away) > NATS
            met = met and not bad
            cells.append(f"{'**' * bad}{away:+.3f}{'**' * bad} ± {error:.3f} ({found.ess:.0f})")
        lines.append([name, f"{k:,}", f"{exact:.3f}", *cells])
        print(lines[-1], flush=True)
    return lines, met


def main() -> None:
    chosen = options(__doc__, threads=1)
    sys.path.insert(0, str(HERE.parent / "tests"))
    clock = Clock()
    record: dict[str, object] = {"errors": {}, "ais": {}}
    first = errors(record["errors"])
    second, met = by_ais(record["ais"])
    worst = max(value for own in record["errors"].values() for value in own.values())
    record["worst"] = worst
    text = [
        f"Largest errors as shares of the largest value, float64, {FEATURES} features (2 where x "
        f"is summed over a grid), {UNITS} filters, 3 mean units. Target: at most {BOUND:.0e}; the "
        f"worst is {worst:.0e} (**{'met' if worst <= BOUND else 'missed'}**).",
        table(["", "E", "F", "h given x", "x given h", "∂F/∂θ", "∂F/∂x", "log Z"], first),
        f"log Z by AIS with HMC ({CHAINS} chains) less the exact "
        "one, in nats, ± the standard error that the weights give (effective chains); 8 features. "
        f"Target: within {NATS} (**{'met' if met else 'missed, in bold'}**). Up to γ = 1.5 the "
        "variance of x is infinite, and near 1 chains from a Gaussian do not get into the tails.",
        table(["", "temperatures", "exact", *(f"seed {s}" for s in SEEDS)], second),
        f"{clock():.0f} s in all.",
    ]
    write(chosen, "gated_algebra", "Gated models against exact values", "\n\n".join(text), record)


if __name__ == "__main__":
    main()
