"""What strategies without chains must be, measured.

    python benchmarks/strategy_laws.py

Uses the tables and oracles of tests/ (needs energyscape[test]). (1) The largest entry of the mean
gradient at the true parameters, over all 64 states of a machine with four hidden units, or over the
plane, for two Gaussians, by quadrature; beside it the same where it must not vanish. (2) Flips of
bits the quick way against the general one. (3) Score matching in closed form against differences,
every model that has it. (4) The sign: energy at 3 less that at 0 after learning N(0, 1). That each
trainer's gradient is that of its textbook loss, tests/test_strategies.py says. Budget: 5 minutes.
"""

from __future__ import annotations

import sys
from typing import Any

from common import HERE, Clock, options, table, write


def rests() -> list[list[str]]:
    """Strategy, largest entry at the truth, at what must not be at rest, and what that is."""
    import numpy as np
    import population as of
    from cases import CASES

    from energyscape.losses import LVQ2, MCE, Energy, Hinge, Log, Perceptron
    from energyscape.trainers import (
        DenoisingScoreMatching,
        MinimumProbabilityFlow,
        PseudoLikelihood,
        RatioMatching,
        SlicedScoreMatching,
    )

    bits = CASES[0].data
    truth = of.machine(bits)
    noisy = of.generic_params(truth[0], bits[:8, :6], noise=1.0)
    away = (truth[0], noisy, *truth[2:])
    rows = []

    def row(name: str, at: Any, off: Any, what: str) -> None:
        rows.append([name, f"{of.largest(at):.0e}", f"{of.largest(off):.2g}", what])

    for trainer in (PseudoLikelihood(), RatioMatching(), MinimumProbabilityFlow()):
        found = (of.of_flips(*there, trainer.slope) for there in (truth, away))
        row(type(trainer).__name__, *found, "other parameters")
    row("ConditionalNCE, flips", of.of_pairs(*truth, Log()), of.of_pairs(*away, Log()), "the same")
    row("NCE", of.of_noise(*truth, bits), of.of_noise(*truth, bits, off=0.5), "c off by 0.5")
    for loss in (Energy(), Perceptron(), Hinge(), LVQ2(), MCE()):
        found = of.largest(of.of_pairs(*truth, loss))
        rows.append(
            [f"MarginLoss, {type(loss).__name__}", f"{found:.2g}", "", "biased, as documented"]
        )
    model, plane = of.mixture()
    x, p = of.plane(model, plane, 0.15)
    moved = of.mixture(moved=1.2)[1]
    at, off = (
        model.score_matching(there, model.forward(there, x), p)[1] for there in (plane, moved)
    )
    row("ScoreMatching", at, off, "means a fifth farther out")
    for trainer in (SlicedScoreMatching(), SlicedScoreMatching(variance_reduced=False)):
        at, off = (of.of_scores(trainer, model, plane, there) for there in (plane, moved))
        form = "" if trainer.variance_reduced else ", not reduced"
        row(f"SlicedScoreMatching{form} (ε = 1e-4)", at, off, "the same")
    trainer, wide = DenoisingScoreMatching(0.5), of.mixture(widened=0.25)[1]
    at, off = (of.of_scores(trainer, model, plane, there) for there in (wide, plane))
    row("DenoisingScoreMatching, at the smoothed truth", at, off, "the truth itself")
    assert np.isfinite(p).all()
    return rows


def flips() -> str:
    """How far the quick way is from the general one, in words."""
    import numpy as np

    from energyscape.evaluation.laws import generic_params
    from energyscape.models import RBM
    from energyscape.trainers import PseudoLikelihood
    from energyscape.verbs import Pass

    x = (np.random.default_rng(0).random((100, 196)) < 0.3).astype(np.float64)
    model = RBM(100)
    passed = model.forward(generic_params(model, x), x)
    slope, bits = PseudoLikelihood().slope, np.arange(196)
    quick, general = passed.flips(bits, slope), Pass.flips(passed, bits, slope)
    change = abs(quick[0] - general[0]).max() / abs(general[0]).max()
    grads = max(
        abs(quick[1][key] - value).max() / abs(value).max() for key, value in general[1].items()
    )
    return f"differences of energies {change:.0e}, gradients {grads:.0e}"


def closed_forms() -> list[list[str]]:
    """Model, and how far its closed forms are from differences, relative."""
    import numpy as np
    from cases import CASES

    from energyscape.evaluation import laws
    from energyscape.verbs import speaks

    checked = (
        laws.laplacian_is_the_trace_of_second_derivatives,
        laws.score_matching_is_its_definition,
        laws.squared_curvature_is_its_definition,
    )
    rows, worst = [], [0.0]
    close = laws._close

    def noted(got: Any, wanted: Any, tolerance: float, what: str) -> None:
        got, wanted = np.asarray(got), np.asarray(wanted)
        scale = max(1.0, float(abs(wanted).max(initial=0.0)))
        worst[0] = max(worst[0], float(abs(got - wanted).max(initial=0.0)) / scale)
        close(got, wanted, tolerance, what)

    laws._close = noted
    try:
        for case in CASES:
            model, x = case.make(), case.data[:12]
            row = [case.name]
            for law in checked:
                if speaks(model, laws.LAWS[law]):
                    row.append("")
                    continue
                worst[0] = 0.0
                law(model, laws.generic_params(model, x), x, np.random.default_rng(0))
                row.append(f"{worst[0]:.0e}")
            if any(row[1:]):
                rows.append(row)
    finally:
        laws._close = close
    return rows


def _named(trainer: Any) -> str:
    """The trainer without what it was shortened by."""
    return repr(trainer.set_params(n_epochs=None))


def signs() -> list[list[str]]:
    """Trainer, and the energy at 3 less that at 0."""
    import numpy as np

    from energyscape.models import FactorAnalysis, OvercompleteICA
    from energyscape.trainers import (
        NCE,
        ConditionalNCE,
        DenoisingScoreMatching,
        ScoreMatching,
        SlicedScoreMatching,
    )

    X, rows = np.random.default_rng(0).normal(size=(2000, 1)), []
    trainers = [
        ScoreMatching(n_epochs=30),
        ScoreMatching(0.1, n_epochs=30),
        SlicedScoreMatching(n_epochs=30),
        SlicedScoreMatching(variance_reduced=False, n_epochs=30),
        DenoisingScoreMatching(n_epochs=30),
        NCE(n_epochs=30),
        ConditionalNCE(n_epochs=30),
    ]
    for trainer in trainers:
        model = OvercompleteICA(2) if getattr(trainer, "curvature", 0) else FactorAnalysis(1)
        model.set_params(trainer=trainer, random_state=0).fit(X)
        low, high = model.energy(np.array([[0.0], [3.0]]))
        rows.append(
            [
                _named(trainer),
                type(model).__name__,
                f"{high - low:.2f}",
            ]
        )
    return rows


def main() -> None:
    chosen = options(__doc__, threads=1)
    sys.path.insert(0, str(HERE.parent / "tests"))
    clock = Clock()
    at, closed, sign = rests(), closed_forms(), signs()
    text = (
        "Largest entry of the mean gradient at the true parameters, and where it must not "
        "vanish:\n\n"
        + table(["strategy", "at the truth", "elsewhere", "where"], at)
        + f"\n\nFlips of an RBM (196×100), quick against general, relative: {flips()}."
        + "\n\nClosed forms against central differences, relative (1e-8 is about what "
        "differences of second derivatives can tell):\n\n"
        + table(["model", "ΔF", "score matching", "Σ (∂²F/∂x_i²)²"], closed)
        + "\n\nEnergy at 3 less that at 0 after learning 2,000 draws of N(0, 1), which have 4.5; a "
        "wrong sign would be below 0 (denoising: of the smoothed density; OvercompleteICA has "
        "exponential tails):\n\n"
        + table(["trainer", "model", "F(3) - F(0)"], sign)
        + f"\n\n{clock():.0f} s."
    )
    write(
        chosen,
        "strategy_laws",
        "Strategies without chains: what they must be",
        text,
        {"rests": at, "closed_forms": closed, "signs": sign},
    )


if __name__ == "__main__":
    main()
