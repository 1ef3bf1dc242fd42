"""What an update asks of a GPU: how many kernels, and never to be waited for.

Counted on the stand-in, which takes every function, method and operator that computes for a launch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import standin
from cases import CASES, Case
from sklearn.base import clone

from energyscape.backend import Purpose, stream
from energyscape.models import RBM, MPoT
from energyscape.optim import SGD, Adam, Moment
from energyscape.penalties import L1, GroupL1
from energyscape.samplers import HMC, Langevin
from energyscape.solvers import proximal
from energyscape.solvers.conv_dictionary import ConvDictionary
from energyscape.solvers.conv_fista import conv_fista
from energyscape.solvers.quadratic import Gram, Rows
from energyscape.trainers import PCD
from energyscape.trainers.base import Batch
from energyscape.verbs import Param


def _updates(model: Any, trainer: Any, x: Any, n: int = 1) -> None:
    """Updates of a model that has begun; counters are at 0 where they do."""
    params = model.init_params(x, stream(0, Purpose.INIT, 0, "cuda:0"))
    carry = trainer.start(model, params, x, stream(0, Purpose.START, 0, "cuda:0"))
    y = trainer.targets(model, params, x)
    standin.Counter.syncs = 0
    standin.Counter.launches.clear()
    for step in range(n):
        rng = stream(0, Purpose.COLLECT, step, "cuda:0")
        sums = trainer.collect(model, params, carry, Batch(x, len(x), y, 0.1), rng)
        trainer.apply(model, params, carry, sums, Moment(0, step, 0.1, rng))


def _launched() -> tuple[int, int]:
    """Matrix products, and whatever else."""
    products = sum(standin.Counter.launches[name] for name in standin.PRODUCTS)
    return products, standin.small_launches()


# ---------------------------------------------------------------- how many


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        # v, x'W of data and chains, both gradients in two: and b's. Small: x and v side by side,
        # weights (2), sigmoid, two draws, -w, w·p, sum of h, three steps.
        (RBM(5, centered=False), (4, 12)),
        # Besides: four products with the means (before and after the step), and with what they
        # give; sums of x and h and their means (4), one correction of W, two means that follow.
        (RBM(5), (8, 25)),
    ],
    ids=["plain", "centred"],
)
def test_a_pcd_update_of_an_rbm(model: RBM, wanted: tuple[int, int], fake_cupy: Any) -> None:
    x = fake_cupy.asarray(CASES[0].data.astype(np.float32))
    _updates(model, PCD(optimizer=SGD(0.1)), x)
    assert _launched() == wanted


@pytest.mark.parametrize(
    ("pools", "wanted"), [(False, (2, 3)), (True, (4, 5))], ids=["apart", "pools"]
)
def test_a_leapfrog_step_of_an_mpot(pools: bool, wanted: tuple[int, int], fake_cupy: Any) -> None:
    """Products with filters each way (and with pools); responses with their biases, the Gaussian,
    kick and drift (and squares, slopes)."""
    x = fake_cupy.asarray(np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32))
    found = []
    for n in (20, 21, 31):
        model = MPoT(6, n_mean_components=4, learn_pools=pools)
        _updates(model, PCD(sampler=HMC(n, 0.01)), x)
        found.append(_launched())
    for steps, later in ((1, found[1]), (11, found[2])):
        each = tuple((b - a) / steps for a, b in zip(found[0], later, strict=True))
        assert each == wanted


def test_what_surrounds_a_trajectory(fake_cupy: Any) -> None:
    """Momenta, step sizes, two evaluations, the ends of a trajectory and Metropolis' choice: all of
    an update of an mPoT but its 19 inner steps. More would show that something came apart."""
    x = fake_cupy.asarray(np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32))
    for pools, most in ((False, (18, 145)), (True, (25, 157))):
        model = MPoT(6, n_mean_components=4, learn_pools=pools)
        _updates(model, PCD(sampler=HMC(20, 0.01)), x)
        products, small = _launched()
        inner = (4, 5) if pools else (2, 3)
        assert (products - 19 * inner[0], small - 19 * inner[1]) == most


def test_metropolis_chooses_in_one_launch(fake_cupy: Any) -> None:
    x = fake_cupy.asarray(np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32))
    _updates(MPoT(6, n_mean_components=4), PCD(sampler=Langevin(0.01)), x)
    for name in ("accept_f", "set_off_f", "arrive_f"):
        assert standin.Counter.launches[name] == 1
    assert not {"where", "isfinite"} & set(standin.Counter.launches)


@pytest.mark.parametrize(
    ("penalty", "accelerate", "wanted"),
    [(L1(0.1), True, (1, 1)), (L1(0.1), False, (1, 3)), (GroupL1(2, 0.1), True, (2, 11))],
    ids=["FISTA", "ISTA", "FISTA of groups"],
)
def test_an_iteration_of_a_proximal_solver(
    penalty: Any, accelerate: bool, wanted: tuple[int, int], fake_cupy: Any
) -> None:
    rng = np.random.default_rng(0)
    D, x = (fake_cupy.asarray(rng.standard_normal(s).astype(np.float32)) for s in ((5, 8), (7, 5)))
    gram = Gram.of(D)
    rows = Rows.of(gram, x)
    moves = proximal._Moves(gram.G, 0.1, penalty, False, accelerate)
    state = proximal._Ahead.begin(rows.c.copy(), rows.c, 0.1)
    standin.Counter.launches.clear()
    state.advance(moves, None, 0, 1)
    assert _launched() == wanted


def test_adam_takes_two_launches_for_each_parameter(fake_cupy: Any) -> None:
    params = {key: fake_cupy.ones((3, 4), np.float32) for key in "Wb"}
    grads = {key: fake_cupy.ones((3, 4), np.float32) for key in "Wb"}
    specs = {"W": Param(decay=True), "b": Param()}
    adam = Adam(0.01, l2=0.1)
    carry = adam.start(params, specs)
    standin.Counter.launches.clear()
    adam.step(params, grads, carry, specs, Moment(0, 0, None, None))
    assert dict(standin.Counter.launches) == {"adapt_f": 2, "descend_f": 2}


# ---------------------------------------------------------------- never to be waited for

# Models whose updates look at numbers on the device, with the reason.
_GAPS = "its codes are solved to a tolerance, which is looked at every ten iterations"
WAITS = {
    "FactorAnalysis": "its one solve an epoch stops when noise variances have settled",
    "GaussianMixture full": "once an epoch it asks whether a covariance has to be floored",
    **dict.fromkeys(("SparseCoding", "PSD", "WhatWhere"), _GAPS),
    **dict.fromkeys(("ConvSparseCoding", "ConvPSD", "LocalPSD"), _GAPS),
}


def _reason(case: Case) -> str | None:
    return next(
        (why for name, why in WAITS.items() if f"{case.name} ".startswith(f"{name} ")), None
    )


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_no_model_is_waited_for_within_an_epoch(case: Case, fake_cupy: Any) -> None:
    """Every model by its default trainer; those that have to wait say why, and do wait."""
    model = case.make()
    x = fake_cupy.asarray(case.data.astype(np.float32))
    _updates(model, clone(model.default_trainer()), x, 2)
    assert (standin.Counter.syncs > 0) == (_reason(case) is not None)


def _by_batches(case: Case) -> bool:
    return _reason(case) is None and case.make().default_trainer().every == "batch"


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::energyscape.errors.SamplerWarning")
@pytest.mark.parametrize("case", [c for c in CASES if _by_batches(c)], ids=lambda c: c.name)
def test_a_fit_waits_as_often_for_many_batches_as_for_one(case: Case, fake_cupy: Any) -> None:
    """The loop with its order of rows, its labels and norms: what it waits for is the epoch's."""
    if "LISTA" in case.name:
        pytest.skip("targets, solved to a tolerance, are made before the first epoch")
    x = fake_cupy.asarray(case.data.astype(np.float32))
    waited = []
    for size in (len(x), len(x) // 4):
        trainer = clone(case.make().default_trainer())
        wanted = {"n_epochs": 1, "batch_size": size, "n_chains": 20}
        known = trainer.get_params(deep=False)
        trainer.set_params(**{key: value for key, value in wanted.items() if key in known})
        standin.Counter.syncs = 0
        case.make(trainer=trainer, random_state=0).fit(x)
        waited.append(standin.Counter.syncs)
    assert waited[0] == waited[1]


def test_fista_waits_once_a_check(fake_cupy: Any) -> None:
    rng = np.random.default_rng(0)
    D, x = (fake_cupy.asarray(rng.standard_normal(s)) for s in ((5, 8), (40, 5)))
    gram = Gram.of(D)
    rows = Rows.of(gram, x)
    standin.Counter.syncs = 0
    found = proximal.fista(gram, rows, L1(0.5), tol=1e-8, max_iter=500)
    waited = standin.Counter.syncs
    iterations = found.n_iter.get()
    assert len(set(iterations.tolist())) > 3, "rows leave at different times"
    assert waited <= 1 + iterations.max() // proximal._EVERY


@pytest.mark.parametrize(
    ("boundary", "wanted"), [("full", (1, 1)), ("valid", (1, 1)), ("circular", (1, 3))]
)
def test_windows_of_a_dictionary_are_cut_at_once(
    boundary: str, wanted: tuple[int, int], fake_cupy: Any
) -> None:
    """One product and one kernel each way, but for the seams of a torus and what is cut off at the
    border; on the CPU it takes 2 fh fw copies or sums."""
    rng = np.random.default_rng(0)
    filters, x = (rng.standard_normal(s) for s in ((7, 3, 2, 2), (2, 9, 8, 2)))
    on_cpu = ConvDictionary(filters, (9, 8), boundary)
    on_gpu = ConvDictionary(fake_cupy.asarray(filters), (9, 8), boundary)
    assert not on_gpu._by_dft()
    standin.Counter.launches.clear()
    z = on_gpu.analyze(fake_cupy.asarray(x))
    assert _launched() == wanted
    standin.Counter.launches.clear()
    image = on_gpu.synthesize(z)
    cut = 0 if boundary == "full" else 1
    assert _launched() == (1, 1 + cut + 2 * 2 * (boundary == "circular"))
    wanted_z = on_cpu.analyze(x)
    np.testing.assert_allclose(z.get(), wanted_z, atol=1e-12)
    np.testing.assert_allclose(image.get(), on_cpu.synthesize(wanted_z), atol=1e-12)


def test_large_filters_go_through_the_dft(fake_cupy: Any) -> None:
    """By a model of what either moves; more channels of windows make windows dearer."""
    sides = {}
    for channels in (1, 3):
        for side in range(2, 30):
            filters = fake_cupy.ones((64, side, side, channels), np.float32)
            if ConvDictionary(filters, (32, 32))._by_dft():
                sides[channels] = side
                break
    assert sides == {1: 14, 3: 9}


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_an_iteration_of_convolutional_fista(alpha: float, fake_cupy: Any) -> None:
    """Windows each way, the residual, step, momentum, and the next image ahead (and the pull)."""
    rng = np.random.default_rng(0)
    shapes = (7, 3, 2, 1), (2, 9, 8, 1), (2, 7, 7, 7)
    filters, x, f = (fake_cupy.asarray(rng.standard_normal(s)) for s in shapes)
    dictionary = ConvDictionary(filters, (9, 8))
    counts = []
    for n in (21, 23):
        standin.Counter.launches.clear()
        pull = {"alpha": alpha, "prediction": f} if alpha else {}
        conv_fista(dictionary, x, 0.1, tol=0.0, max_iter=n, **pull)
        counts.append(_launched())
    each = tuple((b - a) / 2 for a, b in zip(*counts, strict=True))
    assert each == (2, 8 + 3 * (alpha > 0))
