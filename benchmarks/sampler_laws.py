"""What every sampler must leave alone, measured: drift, energy error, reversibility, swaps.

Uses the tables and oracles of tests/ (needs energyscape[test]). The misfit is the log p-value of
the worst statistic over that of an alarm (1e-6 over all statistics of a case): below 1 nothing is
seen, above 1 something is. Budget: 10 minutes.
"""

from __future__ import annotations

import sys

from common import HERE, Clock, options, table, write

STEPS = 4


def drift() -> tuple[list[list[str]], dict]:
    """Every sampler on every target: the misfit after a few steps, and of a wrong temperature."""
    from goodness import misfit
    from sampler_cases import PAIRS, begin, betas_of, replicas

    from energyscape.backend import Purpose, stream

    rows, record = [], {}
    for row, truth in PAIRS:
        if not row.invariant:
            continue
        sampler, target, chains = begin(row, truth, truth.n)
        betas, rng = betas_of(sampler), stream(1, Purpose.SAMPLE)
        for _ in range(STEPS):
            sampler.step(target, chains, rng)
        found = [
            misfit(truth, x, beta / row.temperature, len(betas))
            for x, beta in zip(replicas(chains), betas, strict=True)
        ]
        sampler, target, chains = begin(row, truth, truth.n)
        if len(betas) > 1:
            chains.shared["betas"] = chains.shared["betas"] / truth.heat
        else:
            target = target.at(1 / truth.heat)
        for _ in range(row.slow * truth.slowness):
            sampler.step(target, chains, rng)
        warm = misfit(truth, chains.x, 1 / row.temperature)
        each = ", ".join(f"{value:.2f}" for value in found)
        rows.append([row.name, truth.name, f"{truth.n:,}", each, f"{warm:.1f} ({truth.heat:g})"])
        record[f"{row.name}, {truth.name}"] = {"misfit": found, "warm": warm}
    return rows, record


def broken() -> list[list[str]]:
    """Samplers with a known bug, at the same n: the misfit must be above 1."""
    import numpy as np
    import test_sampler_laws as laws
    from goodness import misfit
    from sampler_cases import ROWS, TRUTHS, Row, begin

    from energyscape.backend import Purpose, stream
    from energyscape.samplers import HMC, hmc

    truth, rows = TRUTHS["Gaussian"], []
    settings = next(r for r in ROWS if r.name == "HMC with persistence").make(truth).get_params()
    for name, cls in (("right", HMC), ("missing flip", laws.NoFlip)):
        kernel, target, chains = begin(Row("", lambda t, c=cls: c(**settings), ()), truth, truth.n)
        rng = stream(1, Purpose.SAMPLE)
        for _ in range(12):
            kernel.step(target, chains, rng)
        rows.append([f"persistent momentum, {name}", f"{misfit(truth, chains.x):.1f}"])
    plain = HMC(3, 0.25)
    for name, kernel in (("right", plain), ("stale cache", laws._ignoring_tags(HMC)(3, 0.25))):
        target, rng = truth.target(truth.n), stream(1, Purpose.SAMPLE)
        chains = kernel.start(target, truth.draw(truth.n, np.random.default_rng(0), 1.0), rng)
        right = chains.shared["step_size"]
        chains.shared["step_size"] = right * 1e4
        kernel.step(target.at(0.5), chains, rng)  # nothing is accepted; the cache is filled
        chains.shared["step_size"] = right
        for _ in range(2):
            kernel.step(target, chains, rng)
        rows.append([f"after another temperature, {name}", f"{misfit(truth, chains.x):.1f}"])
    correct = hmc.trajectory

    def wrong(target, x, grad, z, scale, *rest):
        end = correct(target, x, grad, z, scale, *rest)
        end.z = end.z - 0.5 * scale * end.grad
        return end

    for name, path in (("right", correct), ("a whole kick at the end", wrong)):
        row = next(r for r in ROWS if r.name == "HMC without jitter")
        kernel, target, chains = begin(row, truth, truth.n)
        rng, hmc.trajectory = stream(1, Purpose.SAMPLE), path
        for _ in range(8):
            kernel.step(target, chains, rng)
        rows.append([f"leapfrog, {name}", f"{misfit(truth, chains.x):.1f}"])
    hmc.trajectory = correct
    return rows


def geometry() -> tuple[list[list[str]], dict]:
    import numpy as np
    import test_hmc as t

    from energyscape.backend import Purpose, stream
    from energyscape.samplers import HMC

    rows, record = [], {}
    for known in t.CURVED:
        x = known.draw(4000, 0)
        z = np.random.default_rng(1).standard_normal(x.shape)
        slope = t._order(lambda e, n, k=known, x=x, z=z: t._moved(k, x, z, e, n)[1])
        both = t._order(lambda e, n, k=known, x=x, z=z: t._plain(k, x, z, e, n, 0.6, 0.6)[2])
        end, _ = t._moved(known, x, z, 0.3, 100)
        back, _ = t._moved(known, end.x, -end.z, 0.3, 100)
        away = abs(back.x - x).max() / abs(x).max()
        x = known.draw(200_000, 2)
        z = np.random.default_rng(3).standard_normal(x.shape)
        ratio = np.exp(-t._moved(known, x, z, 0.5, 4)[1])
        error = ratio.std(ddof=1) / np.sqrt(len(ratio))
        rows.append(
            [
                *(known.name, f"{slope:.3f}", f"{both:.2f}", f"{away:.0e}"),
                f"{ratio.mean():.5f} ± {error:.5f}",
            ]
        )
        record[known.name] = [slope, both, float(away), float(ratio.mean()), float(error)]
    forms = []
    for d, step, length in ((50, 0.35, 5), (100, 0.6, 3)):
        known = t._gaussian(np.ones(d))
        exact = t._quadratic_law(d, step, length)[2]
        kernel, rng = HMC(length, step, jitter=0), stream(4, Purpose.SAMPLE)
        chains = kernel.start(known.target, known.draw(200_000, 5), rng)
        rate = kernel.step(known.target, chains, rng)["acceptance"]
        error = rate.std() / np.sqrt(len(rate))
        forms.append(
            f"N(0, I) in {d} dimensions, ε = {step}, L = {length}: acceptance "
            f"{rate.mean():.5f} ± {error:.5f}, closed form {exact:.5f}"
        )
        record[f"acceptance {d}"] = [float(rate.mean()), float(error), exact]
    return rows, record | {"forms": forms}


def swaps() -> list[list[str]]:
    """Largest |π(s)T(s, s') - π(s')T(s', s)| of a turn of swaps over all joint states."""
    import test_tempering as t

    from energyscape.samplers import Metropolis, ParallelTempering

    rows = []
    for name, label, make, cls in (
        ("path from a base", "right", t._by_path, ParallelTempering),
        ("multiplied energies", "right", t._by_table, ParallelTempering),
        ("multiplied energies", "wrong sign", t._by_table, t.WrongSign),
        ("multiplied energies", "energies of one side", t._by_table, t.OneSided),
    ):
        target, log_p = make(3)
        gap = t._imbalance(cls(Metropolis(), betas=t.LADDER[::2]), target, log_p, 3, 0)
        rows.append([name, label, f"{abs(gap):.0e}"])
    return rows


def main() -> None:
    chosen = options(__doc__, threads=1)
    sys.path.insert(0, str(HERE.parent / "tests"))
    clock = Clock()
    drifts, record = drift()
    shapes, more = geometry()
    worst = max(max(case["misfit"]) for case in record.values())
    seen = min(case["warm"] for case in record.values())
    text = "\n\n".join(
        [
            f"Chains begin at exact draws and take {STEPS} steps (a figure for every rung of a "
            "ladder). Misfit: log p of the worst statistic over that of an alarm at 1e-6; target: "
            f"below 1, and above 1 at a wrong temperature. Largest {worst:.2f}; smallest of a "
            f"wrong temperature {seen:.1f}.",
            table(["sampler", "target", "chains", "misfit", "of a temperature (times)"], drifts),
            "Bugs that must be seen, correlated Gaussian in 8 d, 20,000 chains:",
            table(["", "misfit"], broken()),
            "Leapfrog in float64: slope of log RMS ΔH over log ε (target 2.0 ± 0.05), the "
            "same with kicks of 0.6 ε at both ends, largest relative error after 100 steps and "
            "back (target 1e-10), mean of exp(-ΔH) (target 1 within its error):",
            table(["target", "slope", "0.6 ε at both ends", "reversed", "E exp(-ΔH)"], shapes),
            "; ".join(more["forms"]) + ".",
            "Swaps of 2 replicas × 3 spins: largest break of detailed balance over all joint "
            "states (target 1e-12; the last two rows are wrong on purpose):",
            table(["energies", "rule", "imbalance"], swaps()),
            f"{clock():.0f} s in all.",
        ]
    )
    write(chosen, "sampler_laws", "Laws of the samplers", text, record | more)


if __name__ == "__main__":
    main()
