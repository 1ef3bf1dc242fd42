"""Each trainer's gradient is that of its textbook, counts are its own, and resume is bit-exact."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import oracles
import pytest
from cases import CASES, Case, short
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from energyscape.backend import Purpose, stream
from energyscape.errors import CapabilityError, UnnormalizedScoreWarning
from energyscape.evaluation.laws import generic_params
from energyscape.models import RBM
from energyscape.optim import SGD, Adam, Constant, ExponentialDecay, LinearDecay, Moment
from energyscape.registry import registered
from energyscape.trainers import CD, FPCD, PCD
from energyscape.trainers.base import Batch, Trainer, contrast_weights

PAIRS = [(case, trainer) for case in CASES for trainer in case.trainers]
BITS = CASES[0].data


def _ids(value: Any) -> str:
    return getattr(value, "name", getattr(value, "__name__", None))


def _equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


# ---------------------------------------------------------------- gradients


def _exact_gradient(model: RBM, params: Any, p_data: np.ndarray, p_model: np.ndarray) -> Any:
    v = oracles.states(len(params["b"]))
    return model.free_energy_grad(params, v, p_data - p_model)


def _mean_collected(trainer: Trainer, model: RBM, params: Any, x: np.ndarray, n: int) -> Any:
    """Mean and standard error of ``collect`` over ``n`` independent runs."""
    total, square = {}, {}
    for step in range(n):
        carry = trainer.start(model, params, x, stream(step, Purpose.START))
        sums = trainer.collect(
            model, params, carry, Batch(x, len(x)), stream(step, Purpose.COLLECT)
        )
        for k in "Wbc":
            total[k] = total.get(k, 0) + sums[k]
            square[k] = square.get(k, 0) + sums[k] ** 2
    mean = {k: t / n for k, t in total.items()}
    return mean, {k: np.sqrt(np.maximum(square[k] / n - mean[k] ** 2, 0) / n) for k in mean}


@pytest.mark.parametrize("n_steps", [1, 3])
def test_cd_gradient_is_that_of_k_steps_of_the_exact_kernel(n_steps: int) -> None:
    """E[collect] = ⟨∂F⟩_data - ⟨∂F⟩ under data·T^k, with T enumerated."""
    from energyscape.evaluation.laws import _transition

    model, x = RBM(4), BITS[:8, :5]
    params = generic_params(model, x, noise=3.0)
    x = np.repeat(x, 50, axis=0)
    v = oracles.states(5)
    p_data = np.bincount((x @ (1 << np.arange(5))).astype(int), minlength=32) / len(x)
    T = _transition(model, params, v, 1.0, None)
    p_chain = p_data @ np.linalg.matrix_power(T, n_steps)
    wanted = _exact_gradient(model, params, p_data, p_chain)
    mean, error = _mean_collected(CD(n_steps=n_steps), model, params, x, 4000)
    off_by_one = p_data @ np.linalg.matrix_power(T, n_steps + 1)
    other = _exact_gradient(model, params, p_data, off_by_one)
    for k in "Wbc":
        # |z| < 6 over 29 entries: false alarm below 1e-6.
        assert (np.abs(mean[k] - wanted[k]) < 6 * error[k] + 1e-9).all()
    assert any((np.abs(mean[k] - other[k]) > 6 * error[k]).any() for k in "Wbc")


@pytest.mark.parametrize("trainer", [PCD(n_chains=50), FPCD(n_chains=50), PCD(3, n_chains=7)])
def test_pcd_gradient_vanishes_at_the_truth(trainer: Trainer) -> None:
    """Data and chains from the model itself: the mean gradient is 0 whatever the chain count."""
    model = RBM(4)
    params = generic_params(model, BITS[:8, :5], noise=1.0)
    total, square, n = {}, {}, 1500
    for step in range(n):
        x = model.sample_exact(params, 20, stream(step, Purpose.SAMPLE))
        start = model.sample_exact(params, 50, stream(step, Purpose.INIT))
        carry = trainer.start(model, params, start, stream(step, Purpose.START))
        sums = trainer.collect(model, params, carry, Batch(x, 20), stream(step, Purpose.COLLECT))
        for k in "Wbc":
            total[k] = total.get(k, 0) + sums[k]
            square[k] = square.get(k, 0) + sums[k] ** 2
    for k in "Wbc":
        mean = total[k] / n
        error = np.sqrt((square[k] / n - mean**2) / n)
        assert (np.abs(mean) < 6 * error).all(), mean / error


def test_each_phase_is_divided_by_its_own_count() -> None:
    w = contrast_weights(np.zeros((10, 1), np.float32), n=7, n_negative=3, rows=7)
    assert w[:7].sum() == pytest.approx(1) and w[7:].sum() == pytest.approx(-1)


@pytest.mark.parametrize("chains", [3, 8, 20])
def test_cd_takes_any_number_of_chains(chains: int) -> None:
    model, x = RBM(4), BITS[:8]
    params = generic_params(model, x)
    trainer = CD(n_chains=chains)
    passed, weights = trainer.points(model, params, {}, Batch(x, 8), stream(0, Purpose.COLLECT))
    assert len(passed.x) == 8 + chains
    assert weights.sum() == pytest.approx(0, abs=1e-12)


def test_fpcd_moves_its_chains_on_the_overlay_only() -> None:
    """A strong overlay moves the chains; the gradient is that of the plain parameters."""
    model, x = RBM(4), BITS[:8]
    params = generic_params(model, x)
    trainer = FPCD(n_chains=400)
    carry = trainer.start(model, params, x, stream(0, Purpose.START))
    carry["fast/b"] = np.full(7, 50.0)
    passed, _ = trainer.points(model, params, carry, Batch(x, 8), stream(0, Purpose.COLLECT))
    assert passed.params is params
    assert (passed.x[8:] == 1).all()


def test_fast_weights_decay_and_follow_the_gradient() -> None:
    model, x = RBM(4, centered=False), BITS[:8]
    params = {k: np.array(v) for k, v in generic_params(model, x).items()}
    trainer = FPCD(fast_learning_rate=0.1, fast_decay=0.5)
    carry = trainer.start(model, params, x, stream(0, Purpose.START))
    carry["fast/W"][...] = 1.0
    sums = {k: np.full_like(params[k], 2.0) for k in "Wbc"}
    trainer.apply(model, params, carry, sums, Moment(0, 0, 0.0))
    np.testing.assert_allclose(carry["fast/W"], 0.5 * 1 - 0.1 * 2)


# ---------------------------------------------------------------- pairs


@pytest.mark.parametrize(("case", "trainer"), PAIRS, ids=_ids)
def test_every_declared_pair_trains(case: Case, trainer: type) -> None:
    model = case.make(trainer=short(trainer, n_epochs=3, batch_size=25, tol=0.0), random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(case.data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnnormalizedScoreWarning)
        assert np.isfinite(model.score(case.data))
    assert model.n_iter_ == model.trainer_.n_epochs


@pytest.mark.parametrize("case", CASES, ids=_ids)
def test_every_other_pair_raises_the_one_error(case: Case) -> None:
    trainers = registered(Trainer)
    assert set(case.trainers) <= set(trainers.values())
    for name, trainer in trainers.items():
        if trainer in case.unfit:
            with pytest.raises(ValueError, match=r"needs (tied=True|flat_distance|codes in)"):
                case.make(trainer=trainer()).fit(case.data)
        elif trainer not in case.trainers:
            with pytest.raises(CapabilityError, match=rf"{name} cannot train"):
                case.make(trainer=trainer()).fit(case.data)


def test_the_error_names_what_is_missing_and_what_would_work() -> None:
    class Unsampled(RBM):
        sample_visible = None

    class NeedsReal(CD):
        domains = ("real",)

    with pytest.raises(CapabilityError, match=r"PCD cannot train Unsampled: it needs sample_vis"):
        Unsampled(trainer=PCD()).fit(BITS)
    with pytest.raises(
        CapabilityError,
        match=r"NeedsReal cannot train RBM: it needs real units; RBM's are binary\. "
        r"Trainers that can: CD, ConditionalNCE, FPCD, MarginLoss, MaximumLikelihood, "
        r"MinimumProbabilityFlow, NCE, PCD, PseudoLikelihood, RatioMatching\.",
    ):
        RBM(trainer=NeedsReal()).fit(BITS)


# ---------------------------------------------------------------- bit-exactness

OPTIMIZERS = [
    SGD(0.1),
    SGD(0.1, momentum=0.9, nesterov=True, l1=1e-3, l2=1e-3),
    SGD(0.1, momentum=0.5, schedule=Constant(), rates={"b": 2.0}),
    Adam(0.01, schedule=ExponentialDecay(0.1)),
    Adam(0.01, l2=1e-2, schedule=LinearDecay(start=0.5, end=0.1)),
]


class Stop:
    """A callback that interrupts after some epochs, as a power cut would."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, model: Any, state: Any, info: Any) -> bool:
        return state.epoch == self.epoch


@pytest.mark.parametrize("trainer", [CD, PCD, FPCD], ids=_ids)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: repr(o)[:30])
@pytest.mark.parametrize("k", [1, 4])
def test_resume_is_bit_exact(trainer: type, optimizer: Any, k: int, tmp_path: Any) -> None:
    from energyscape import load
    from energyscape.data import Binarize

    settings = {
        "n_epochs": 6,
        "batch_size": 25,
        "optimizer": optimizer,
        "averaging": 0.3,
        "validation_fraction": 0.1,
        "batch_transform": Binarize(),
    }
    X = (0.1 + 0.8 * BITS).astype(np.float32)
    whole = RBM(5, trainer=trainer(**settings), random_state=3).fit(X)
    broken = RBM(5, trainer=trainer(**settings, callbacks=[Stop(k)]), random_state=3).fit(X)
    assert broken.n_iter_ == k
    broken.trainer_.callbacks = ()
    broken.set_params(trainer=broken.trainer_)
    broken.save(tmp_path / "broken.h5")
    resumed = load(tmp_path / "broken.h5").resume(X)
    assert _equal(resumed._state.params, whole._state.params)
    assert _equal(resumed._state.carry, whole._state.carry)
    again = {k: v for k, v in resumed.history_.items() if k != "seconds"}
    assert again == {k: v for k, v in whole.history_.items() if k != "seconds"}


@pytest.mark.parametrize("trainer", [CD, PCD, FPCD], ids=_ids)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: repr(o)[:30])
def test_ten_partial_fits_are_one_constant_fit(trainer: type, optimizer: Any) -> None:
    X = BITS.astype(np.float32)
    optimizer = clone(optimizer).set_params(schedule=Constant())
    one = RBM(5, trainer=trainer(n_epochs=10, batch_size=25, optimizer=optimizer), random_state=3)
    many = clone(one)
    one.fit(X)
    for _ in range(10):
        assert many.partial_fit(X) is many
    assert _equal(one._state.params, many._state.params)
    assert _equal(one._state.carry, many._state.carry)


def test_partial_fit_takes_any_number_of_rows_in_batches() -> None:
    """A thousand rows at once are mini-batches, not one giant step."""
    model = RBM(5, trainer=PCD(batch_size=25), random_state=0)
    model.partial_fit(np.repeat(BITS, 20, 0)).partial_fit(BITS[:3])
    assert model._state.step == 1200 // 25 + 1
    assert np.isfinite(model.score(BITS))


def test_float32_stays_in_partial_fit() -> None:
    model = RBM(5, random_state=0).partial_fit(BITS.astype(np.float32))
    assert model.partial_fit(BITS.astype(np.float32)).components_.dtype == np.float32


# ---------------------------------------------------------------- optimisers


def _descend(optimizer: Any, n: int, progress: float | None = None) -> np.ndarray:
    """n steps on ½(w - 1)² from 0 through the optimiser's own interface."""
    from energyscape.verbs import Param

    specs = {"W": Param(decay=True), "mean": Param(trainable=False)}
    params = {"W": np.zeros(3), "mean": np.zeros(2)}
    carry = optimizer.start(params, specs)
    for step in range(n):
        grads = {"W": params["W"] - 1}
        optimizer.step(params, grads, carry, specs, Moment(0, step, progress))
    return params["W"]


def test_sgd_is_its_formula() -> None:
    np.testing.assert_allclose(_descend(SGD(0.1), 5), 1 - 0.9**5)
    w = v = 0.0
    nw = nv = 0.0
    for _ in range(5):
        v = 0.5 * v - 0.1 * (w - 1)
        w += v
        nv, g = 0.5 * nv - 0.1 * (nw - 1), nw - 1
        nw += 0.5 * nv - 0.1 * g
    np.testing.assert_allclose(_descend(SGD(0.1, momentum=0.5), 5), w)
    np.testing.assert_allclose(_descend(SGD(0.1, momentum=0.5, nesterov=True), 5), nw)


def test_adam_is_its_formula() -> None:
    w = m = s = 0.0
    for t in range(1, 6):
        g = w - 1
        m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g * g
        w -= 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(s / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(_descend(Adam(0.01), 5), w, rtol=1e-12)


def test_weight_decay_is_the_proximal_step() -> None:
    """Stationary point of ½(w-1)² + l1|w| + l2 w²/2 is (1 - l1)/(1 + l2); large l1 gives zeros."""
    np.testing.assert_allclose(_descend(SGD(0.1, l1=0.2, l2=0.5), 2000), 0.8 / 1.5, rtol=1e-10)
    assert (_descend(SGD(0.1, l1=1.5), 10) == 0).all()


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_leaves_the_penalty_as_it_is(nesterov: bool) -> None:
    """The same stationary points as without: 1/(1 - μ) of the gradient's reach is the penalty's."""
    for momentum in (0.5, 0.9):
        sgd = SGD(0.05, momentum, nesterov, l1=0.2, l2=0.5)
        np.testing.assert_allclose(_descend(sgd, 4000), 0.8 / 1.5, rtol=1e-9)


def test_schedules() -> None:
    assert [LinearDecay()(f) for f in (0, 0.5, 1)] == [1, 0.5, 0]
    assert [LinearDecay(0.5, 0.2)(f) for f in (0, 0.5, 1)] == [1, 1, pytest.approx(0.2)]
    assert ExponentialDecay(0.01)(0.5) == pytest.approx(0.1)
    assert SGD(0.3).rate(Moment(0, 0, None)) == 0.3
    assert SGD(0.4).rate(Moment(0, 0, 0.75)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (CD(batch_size=0), "CD.batch_size must be an integer >= 1, got 0"),
        (PCD(n_chains=0), "PCD.n_chains must be an integer >= 1, got 0"),
        (PCD(n_steps=0), "PCD.n_steps must be an integer >= 1"),
        (PCD(n_epochs=0), "PCD.n_epochs must be an integer >= 1"),
        (PCD(learning_rate=-1), "SGD.learning_rate must be > 0"),
        (PCD(learning_rate=0.1, optimizer=SGD()), "shorthand for SGD"),
        (PCD(optimizer=SGD(momentum=1.0)), "momentum must be in"),
        (PCD(optimizer=SGD(nesterov=True)), "nesterov needs momentum"),
        (PCD(optimizer=SGD(rates={"Q": 1.0})), "rates names 'Q'; the model's parameters are W"),
        (PCD(optimizer=SGD(l2=-1)), "l1 and l2 must be >= 0"),
        (PCD(optimizer=Adam(beta1=1.0)), "beta1 must be in"),
        (PCD(averaging=0.0), "averaging must be None or in"),
        (PCD(validation_fraction=1.0), "validation_fraction must be in"),
        (PCD(validation_fraction=0.001), "leaves 0 for validation"),
        (FPCD(fast_learning_rate=0), "fast_learning_rate must be > 0"),
        (FPCD(fast_decay=1.0), "fast_decay must be in"),
    ],
    ids=repr,
)
def test_bad_settings_are_named(trainer: Trainer, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RBM(3, trainer=trainer).fit(BITS)


def test_averaging_shows_the_running_mean() -> None:
    """With averaging=1 the shown parameters are the mean over all updates."""
    seen = []

    class Spy(PCD):
        def apply(self, *args: Any) -> None:
            super().apply(*args)
            seen.append(args[1]["W"].copy())

    model = RBM(3, trainer=Spy(n_epochs=4, batch_size=20, averaging=1.0), random_state=0).fit(BITS)
    np.testing.assert_allclose(model.params_["W"], np.mean(seen, axis=0), rtol=1e-10)
    assert not np.allclose(model._state.params["W"], model.params_["W"])


@pytest.mark.parametrize(
    ("rows", "epochs"), [(30, 1000), (2000, 500), (1950, 500), (60_000, 17), (10_000_000, 10)]
)
def test_default_epochs_make_ten_thousand_updates(rows: int, epochs: int) -> None:
    trainer = PCD()
    trainer.settle(rows)
    assert trainer.n_epochs == epochs


# ---------------------------------------------------------------- bars and stripes


def _exact_bas(trainer: Trainer, seed: int, rows: int = 96) -> float:
    images = oracles.bars_and_stripes(3)
    X = np.tile(images, (rows // 16 + 1, 1))[:rows]
    return RBM(16, trainer=trainer, random_state=seed).fit(X).score(images)


@pytest.mark.slow
def test_ragged_batches_do_not_change_what_is_learned() -> None:
    """110 rows at batch 100 against 96 rows, at equal updates and chains: within 0.1 nat."""
    seeds = (1, 2, 3, 4, 5)
    ragged = [_exact_bas(PCD(n_epochs=2000, n_chains=100), s, 110) for s in seeds]
    even = [_exact_bas(PCD(n_epochs=4000, n_chains=100, batch_size=96), s, 96) for s in seeds]
    assert abs(np.median(ragged) - np.median(even)) < 0.1, (ragged, even)
