"""CD, PCD and FPCD whose chains HMC, Langevin, Metropolis or parallel tempering move."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import oracles
import pytest
from cases import MACHINES, MOVED, Case, moved_id
from sklearn.base import clone

from energyscape import load
from energyscape.backend import Purpose, stream
from energyscape.errors import CapabilityError, SamplerWarning
from energyscape.evaluation.laws import generic_params
from energyscape.models import RBM, GaussianRBM
from energyscape.optim import SGD, Constant
from energyscape.samplers import HMC, Gibbs, Langevin, Metropolis, Multiplicative, ParallelTempering
from energyscape.trainers import CD, FPCD, PCD
from energyscape.trainers.base import Batch

BITS, REALS = MACHINES[0].data, MACHINES[2].data
LADDER = (1.0, 0.6, 0.3)


@pytest.mark.parametrize(("case", "trainer"), MOVED, ids=moved_id)
def test_resume_is_bit_exact(case: Case, trainer: Any, tmp_path: Any) -> None:
    def made(*callbacks: Any) -> Any:
        t = clone(trainer).set_params(n_epochs=4, batch_size=25, callbacks=callbacks)
        return case.make(trainer=t, random_state=3)

    whole = made().fit(case.data)
    broken = made(lambda model, state, info: state.epoch == 2).fit(case.data)
    assert broken.n_iter_ == 2
    broken.trainer_.callbacks = ()
    broken.set_params(trainer=broken.trainer_)
    broken.save(tmp_path / "broken.h5")
    resumed = load(tmp_path / "broken.h5").resume(case.data)
    for part in ("params", "carry"):
        wanted, got = getattr(whole._state, part), getattr(resumed._state, part)
        assert wanted.keys() == got.keys()
        for key in wanted:
            np.testing.assert_array_equal(got[key], wanted[key], err_msg=key)


@pytest.mark.parametrize(("case", "trainer"), MOVED, ids=moved_id)
def test_ten_partial_fits_are_one_constant_fit(case: Case, trainer: Any) -> None:
    rate = SGD(0.05, schedule=Constant())
    t = clone(trainer).set_params(n_epochs=3, batch_size=25, optimizer=rate)
    once = case.make(trainer=t, random_state=0).fit(case.data)
    parts = case.make(trainer=t, random_state=0)
    for _ in range(3):
        parts.partial_fit(case.data)
    for key, value in once.params_.items():
        np.testing.assert_array_equal(parts.params_[key], value)


def _mean_gradients(trainer: Any, model: Any, params: Any, draw: Any, n: int) -> float:
    """Largest |z| of the mean collected gradient over ``n`` independent updates at the truth."""
    total: dict[str, Any] = {}
    square: dict[str, Any] = {}
    for step in range(n):
        x, carry = draw(step)
        sums = trainer.collect(
            model, params, carry, Batch(x, len(x)), stream(step, Purpose.COLLECT)
        )
        for key in ("W", "b", "c"):
            total[key] = total.get(key, 0) + sums[key]
            square[key] = square.get(key, 0) + sums[key] ** 2
    worst = 0.0
    for key, value in total.items():
        mean = value / n
        error = np.sqrt((square[key] / n - mean**2) / n)
        worst = max(worst, float(np.abs(mean / error).max()))
    return worst


@pytest.mark.parametrize("heat", [1.0, 1.3])
@pytest.mark.parametrize(
    "sampler", [HMC(4, step_size=0.3), HMC(1, 0.5, persistence=0.8), Langevin(0.1)], ids=repr
)
def test_the_gradient_vanishes_at_the_truth(sampler: Any, heat: float) -> None:
    """Data and chains from the model itself: mean gradient 0 within 6 standard errors (29 entries,
    false alarm below 1e-6); not so for chains that see another temperature."""
    model = GaussianRBM(4, variance=1.0)
    params = generic_params(model, np.random.default_rng(0).standard_normal((20, 5)))
    trainer = PCD(5, n_chains=200, sampler=sampler)

    class Hot(GaussianRBM):
        def target(self, params: Any, base: Any = None, beta: Any = 1.0) -> Any:
            return super().target(params, base, beta / heat)

    moved = Hot(4, variance=1.0)

    def draw(step: int) -> Any:
        x = model.sample_exact(params, 200, stream(step, Purpose.SAMPLE))
        start = model.sample_exact(params, 200, stream(step, Purpose.INIT))
        return x, trainer.start(moved, params, start, stream(step, Purpose.START))

    worst = _mean_gradients(trainer, moved, params, draw, 300)
    assert worst < 6 if heat == 1.0 else worst > 6


@pytest.mark.parametrize("hot_beta", [None, 1.0])
def test_the_gradient_vanishes_with_tempered_chains(hot_beta: float | None) -> None:
    """Replicas from the path's own distributions; from others (all of them cold) it must not."""
    model = RBM(4)
    params = generic_params(model, BITS[:8, :5], noise=3.0)
    base = model.base_measure(params)
    trainer = PCD(3, n_chains=100, sampler=ParallelTempering(betas=LADDER))
    states = oracles.states(5)
    p = [np.exp(oracles.rbm_path_log_p(params, base["b"], hot_beta or beta)) for beta in LADDER]

    def draw(step: int) -> Any:
        rng = np.random.default_rng(step)
        x, *rungs = (states[rng.choice(32, 100, p=q)] for q in (p[0], *p))
        carry = trainer.start(model, params, rungs[0], stream(step, Purpose.START))
        return x, carry | {"chain/x": rungs[0], "chain/hot": np.stack(rungs[1:], axis=1)}

    worst = _mean_gradients(trainer, model, params, draw, 600)
    assert worst < 6 if hot_beta is None else worst > 6


def test_gibbs_by_name_is_the_default() -> None:
    default = RBM(4, trainer=PCD(n_epochs=2), random_state=0).fit(BITS)
    named = RBM(4, trainer=PCD(n_epochs=2, sampler=Gibbs()), random_state=0).fit(BITS)
    np.testing.assert_array_equal(named.params_["W"], default.params_["W"])


def test_the_step_size_follows_and_is_told() -> None:
    """`Multiplicative` keeps the rejection near its target while the model learns."""
    trainer = PCD(n_epochs=30, batch_size=10, sampler=HMC(5))
    model = GaussianRBM(4, trainer=trainer, random_state=0).fit(REALS)
    steps = model.history_["chain_step_size"]
    assert len(steps) == 30 and len(set(steps)) > 20
    carry = model._state.carry
    assert 0.02 < float(carry["sampler/rejection"][0]) < 0.5
    assert carry["chain/x"].shape == (100, 6)


def test_a_step_size_at_its_bound_warns() -> None:
    bounded = HMC(5, adaptation=Multiplicative(bounds=(1e-6, 1e-5)))
    trainer = PCD(n_epochs=2, sampler=bounded)
    with pytest.warns(SamplerWarning, match="upper bound"):
        GaussianRBM(4, trainer=trainer, random_state=0).fit(REALS)


def test_samples_begin_at_the_chains_and_take_any_sampler() -> None:
    trainer = PCD(n_epochs=3, n_chains=30, sampler=HMC(3, step_size=0.1))
    model = GaussianRBM(4, trainer=trainer, random_state=0).fit(REALS)
    np.testing.assert_array_equal(model.sample(40, n_steps=0)[:30], model._state.carry["chain/x"])
    mask = np.arange(6) < 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        painted = model.sample(5, sampler=HMC(5), clamp=(mask, REALS[0]), n_steps=20)
        tempered = model.sample(5, sampler=ParallelTempering(HMC(5)), n_steps=20)
    np.testing.assert_array_equal(painted[:, mask], np.tile(REALS[0, mask], (5, 1)))
    assert np.isfinite(tempered).all()


def test_nested_settings_reach_the_sampler() -> None:
    trainer = PCD(sampler=HMC(3)).set_params(sampler__n_leapfrog=7)
    assert trainer.sampler.n_leapfrog == 7
    with pytest.raises(ValueError, match=r"PCD.sampler is None. Pass one first"):
        PCD().set_params(sampler__n_leapfrog=7)


@pytest.mark.parametrize(
    ("model", "trainer", "error", "message"),
    [
        (RBM(3), PCD(sampler=HMC()), CapabilityError, "HMC: it moves real values; those of RBM"),
        (RBM(3), CD(sampler=Langevin()), CapabilityError, "Langevin: it moves real values"),
        (GaussianRBM(3), FPCD(sampler=Metropolis()), CapabilityError, "it moves binary values"),
        (GaussianRBM(3), PCD(sampler=HMC(step_size=0)), ValueError, "HMC.step_size must be > 0"),
        (RBM(3), PCD(sampler="hmc"), ValueError, "PCD.sampler must be a sampler, got 'hmc'"),
        (RBM(3), PCD(sampler=ParallelTempering(betas=[0.5, 1.0])), ValueError, "fall strictly"),
    ],
    ids=repr,
)
def test_what_does_not_fit_is_refused(
    model: Any, trainer: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        clone(model).set_params(trainer=trainer).fit(BITS if model.domain == "binary" else REALS)
