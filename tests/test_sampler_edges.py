"""Where samplers, targets, temperatures and trainers meet at their edges."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import oracles
import pytest
from cases import CASES
from scipy.stats import norm

from energyscape import load
from energyscape.backend import Purpose, stream
from energyscape.errors import CapabilityError, SamplerWarning
from energyscape.models import RBM, GaussianRBM
from energyscape.registry import from_tree, to_tree
from energyscape.samplers import (
    AIS,
    HMC,
    Bridge,
    ChEES,
    Clamped,
    DualAveraging,
    Gaussian,
    Gibbs,
    Langevin,
    Metropolis,
    Multiplicative,
    ParallelTempering,
    PooledMass,
    Posterior,
    RobbinsMonro,
    from_functions,
)
from energyscape.samplers.ais import Path
from energyscape.trainers import PCD

BITS, REALS = CASES[0].data, CASES[2].data


def _energy(x: Any) -> Any:
    return 0.5 * (x * x).reshape(len(x), -1).sum(axis=1)


def _grad(x: Any) -> Any:
    return x.copy()


ROUND = (_energy, _grad)


# ---------------------------------------------------------------- annealing


def test_a_target_of_bounded_support_has_its_partition_function() -> None:
    """exp(-x²/2) on |x| < 1: forbidden base draws weigh nothing, and are no error."""

    def walled(x: Any) -> Any:
        return np.where((abs(x) < 1).all(axis=1), _energy(x), np.inf)

    bridge = Bridge(Gaussian(np.zeros(1), np.eye(1)), (walled, _grad))
    found = AIS(4000, 20, HMC(3, 0.3), n_pilot=0).run(bridge, 1)
    share = norm.cdf(1) - norm.cdf(-1)
    exact = np.log(share * np.sqrt(2 * np.pi))
    # Weights are 0 or 1 here: a share of 4,000 with a standard error of 0.011 of itself.
    assert abs(found.log_partition - exact) < 0.055
    assert found.ess == pytest.approx(4000 * share, rel=0.06)


def test_base_and_target_that_do_not_overlap_are_told() -> None:
    bridge = Bridge(
        Gaussian(np.zeros(1), np.eye(1)),
        (lambda x: np.where(x[:, 0] > 50, _energy(x), np.inf), _grad),
    )
    with pytest.raises(ValueError, match="do not overlap"):
        AIS(20, 5, HMC(1, 0.1), n_pilot=0).run(bridge, 1)


def test_a_path_to_a_clamped_target_is_refused() -> None:
    clamped = Clamped(from_functions(*ROUND, (2,)), np.array([True, False]), np.array([3.0, 0]))
    with pytest.raises(CapabilityError, match="base measure"):
        AIS(20, 5).run(Bridge(Gaussian(np.zeros(2), np.eye(2)), clamped), 1)


def test_the_path_sets_beta() -> None:
    model, params = RBM(6), oracles.strong_rbm()
    target = model.target(params, model.base_measure(params), 0.5)
    with pytest.raises(ValueError, match="the target at β = 1"):
        AIS(20, 5).run(target, 1)


def test_a_path_belongs_to_its_kind_of_sampler() -> None:
    bridge = Bridge(Gaussian(np.zeros(2), np.eye(2)), ROUND)
    bare = Path(np.linspace(0, 1, 6))
    with pytest.raises(ValueError, match="the path lacks step sizes"):
        AIS(20, 5).run(bridge, 1, path=bare)
    model, params = RBM(6), oracles.strong_rbm()
    target = model.target(params, model.base_measure(params))
    with pytest.raises(ValueError, match="the path has step sizes"):
        AIS(20, 5).run(target, 1, path=AIS(20, 5).plan(bridge, stream(0, Purpose.PARTITION)))


def test_few_chains_say_so_and_equal_weights_do_not_warn() -> None:
    bridge = Bridge(Gaussian(np.zeros(2), np.eye(2)), ROUND)
    with pytest.warns(SamplerWarning, match="4 AIS chains say nothing"):
        AIS(4, 5).run(bridge, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AIS(6, 5, n_pilot=1).run(bridge, 1)


@pytest.mark.parametrize(
    "adapter", [RobbinsMonro, DualAveraging, lambda aim: Multiplicative(target_rejection=1 - aim)]
)
def test_the_pilot_aims_where_the_adapter_does(adapter: Any) -> None:
    X = np.random.default_rng(0).standard_normal((500, 20))
    bridge = Bridge(Gaussian.fit(X), ROUND)
    plans = [
        AIS(100, 100, HMC(5, adaptation=adapter(aim))).plan(bridge, stream(0, Purpose.PARTITION))
        for aim in (0.6, 0.97)
    ]
    assert plans[0].steps[-1] > 1.3 * plans[1].steps[-1]


def test_the_pilot_adapts_a_first_step_size_too() -> None:
    bridge = Bridge(Gaussian(np.zeros(2), np.eye(2)), ROUND)
    ais = AIS(100, 100, HMC(5, 1e-3, adaptation=RobbinsMonro()))
    plan = ais.plan(bridge, stream(0, Purpose.PARTITION))
    assert plan.steps is not None and plan.steps[-1] > 0.1
    assert ais.run(bridge, 0, path=plan).ess > 50


# ---------------------------------------------------------------- what can be normalised


@pytest.mark.parametrize(
    ("energy", "grad"),
    [
        (lambda x: x.sum(axis=1), np.ones_like),
        (lambda x: -np.exp(abs(x)).sum(axis=1), lambda x: -np.sign(x) * np.exp(abs(x))),
        (lambda x: np.log1p((x * x).sum(axis=1)), lambda x: 2 * x / (1 + (x * x).sum(1))[:, None]),
        (lambda x: np.zeros(len(x)), np.zeros_like),
    ],
    ids=["linear", "falling", "logarithmic", "flat"],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_improper_energies_are_refused(energy: Any, grad: Any, dtype: Any) -> None:
    with pytest.raises(ValueError, match="improper"):
        HMC(3, 0.1).run((energy, grad), np.zeros((20, 3), dtype), 5, 0)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e4, 1e9])
def test_proper_energies_pass_on_any_scale(scale: float) -> None:
    target = (lambda x: _energy(x / scale), lambda x: x / scale**2)
    HMC(3, 0.1 * scale).run(target, np.zeros((4, 3)), 2, 0)


def test_heavy_tails_and_walls_pass() -> None:
    def cauchy(x: Any) -> Any:
        return np.log1p(x * x).sum(axis=1)

    HMC(3, 0.1).run((cauchy, lambda x: 2 * x / (1 + x * x)), np.zeros((20, 3)), 5, 0)

    def walled(x: Any) -> Any:
        return np.where((abs(x) < 2).all(axis=1), 0.0, np.inf)

    HMC(3, 0.1).run((walled, np.zeros_like), np.zeros((20, 3)), 5, 0)


def test_everything_may_be_held() -> None:
    model = GaussianRBM(3, trainer=PCD(n_epochs=2), random_state=0).fit(REALS)
    held = np.ones(6, bool)
    for sampler in (None, HMC(3, 0.1)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SamplerWarning)
            x = model.sample(5, sampler=sampler, clamp=(held, REALS[0]), n_steps=3)
        np.testing.assert_array_equal(x, np.tile(REALS[0], (5, 1)))


# ---------------------------------------------------------------- held rows on a ladder


def test_rows_held_apart_move_on_a_bridge_and_a_ladder() -> None:
    mask = np.array([[True, False, False], [False, True, True]] * 50)
    target = Clamped(from_functions(*ROUND, (3,)), mask, np.full((100, 3), 0.5))
    bridge = Bridge(Gaussian(np.zeros(3), np.eye(3)), target)
    sampler = ParallelTempering(HMC(5, 0.5), n_temperatures=3)
    x = sampler.run(bridge, np.zeros((100, 3)), 40, 0).x
    assert (x[mask] == 0.5).all()
    # 150 standard normals: their variance is within 6 standard errors of 1.
    assert abs(x[~mask].var() - 1) < 6 * np.sqrt(2 / 150)


@pytest.mark.parametrize("wrapper", ["clamped", "posterior"])
def test_images_of_plain_functions_on_a_ladder(wrapper: str) -> None:
    target = from_functions(*ROUND)  # no shape given
    mask = np.array([[True, False], [False, False]])
    if wrapper == "clamped":
        target = Clamped(target, mask, 0.25)
    else:
        target = Posterior(target, np.ones((2, 2)), 1.0)
    start = np.zeros((60, 2, 2), np.float32)
    run = ParallelTempering(HMC(5, 0.5), n_temperatures=2).run(target, start, 40, 0)
    assert run.x.shape == (60, 2, 2) and run.x.dtype == np.float32
    if wrapper == "clamped":
        assert (run.x[:, mask] == 0.25).all()
    else:
        # N(1/2, 1/2) for each of 240 values.
        assert abs(run.x.mean() - 0.5) < 6 * np.sqrt(0.5 / 240)


def test_a_mask_is_of_bools_and_values_take_the_dtype_of_the_chains() -> None:
    target = from_functions(*ROUND, (2,))
    with pytest.raises(TypeError, match="bool"):
        Clamped(target, np.array([1, 0]), np.zeros(2))
    clamped = Clamped(target, np.array([True, False]), np.zeros(2))
    assert HMC(2, 0.1).run(clamped, np.zeros((3, 2), np.float32), 2, 0).x.dtype == np.float32


def test_interacting_bits_are_found_at_any_offset() -> None:
    for offset in (0.0, 1e5):
        target = from_functions(
            lambda x, o=offset: o - 2 * x[:, 0] * x[:, 1], event_shape=(2,), domain="binary"
        )
        with pytest.raises(ValueError, match="interact"):
            Metropolis([[0, 1]]).run(target, np.zeros((4, 2)), 1, 0)


# ---------------------------------------------------------------- settings and files


@pytest.mark.parametrize(
    "sampler",
    [
        HMC(3, 0.1, inverse_mass=np.array([1.0, 2.0])),
        HMC(3, adaptation=(RobbinsMonro(0.7), ChEES(), PooledMass())),
        ParallelTempering(Langevin(0.1), betas=np.array([1.0, 0.5])),
        Metropolis([[0, 1], [2]]),
    ],
    ids=lambda s: type(s).__name__,
)
def test_settings_go_through_files(sampler: Any) -> None:
    again = from_tree(to_tree(sampler))
    assert to_tree(again) == to_tree(sampler)
    for key in ("inverse_mass", "betas"):
        if hasattr(sampler, key):
            np.testing.assert_array_equal(getattr(again, key), getattr(sampler, key))


def test_a_model_with_masses_goes_on_from_its_file(tmp_path: Any) -> None:
    sampler = HMC(3, inverse_mass=np.linspace(0.5, 2, 6))
    trainer = PCD(n_epochs=2, sampler=sampler)
    model = GaussianRBM(3, trainer=trainer, random_state=0).fit(REALS)
    model.save(tmp_path / "m.h5")
    again = load(tmp_path / "m.h5").partial_fit(REALS)
    model.partial_fit(REALS)
    np.testing.assert_array_equal(again.params_["W"], model.params_["W"])


def test_settings_that_change_between_fits_take_effect() -> None:
    def fitted(**sampler: Any) -> Any:
        trainer = PCD(n_epochs=2, sampler=HMC(3, **sampler))
        return GaussianRBM(3, trainer=trainer, random_state=0).fit(REALS)

    model = fitted(step_size=0.5)
    model.set_params(trainer__sampler__step_size=0.01).partial_fit(REALS)
    assert model._state.carry["sampler/step_size"] == pytest.approx(0.01)
    tempered = ParallelTempering(betas=[1, 0.9, 0.8])
    model = RBM(3, trainer=PCD(n_epochs=2, sampler=tempered), random_state=0).fit(BITS)
    model.set_params(trainer__sampler__betas=[1, 0.5, 0.1]).partial_fit(BITS)
    np.testing.assert_allclose(model._state.carry["sampler/betas"], [1, 0.5, 0.1])
    # An adapted step size is state: it goes on.
    model = fitted(adaptation=Multiplicative())
    before = float(model._state.carry["sampler/step_size"][0])
    model.partial_fit(REALS)
    assert 0.9 < float(model._state.carry["sampler/step_size"][0]) / before < 1.1


@pytest.mark.parametrize("adapter", [RobbinsMonro(), DualAveraging(), ChEES(), PooledMass()])
def test_trainers_refuse_what_adapts_in_a_warm_up(adapter: Any) -> None:
    trainer = PCD(sampler=HMC(3, adaptation=[Multiplicative(), adapter]))
    with pytest.raises(ValueError, match="adapts within a warm-up"):
        GaussianRBM(3, trainer=trainer).fit(REALS)


def test_trainers_refuse_another_temperature() -> None:
    with pytest.raises(ValueError, match="another one of its own"):
        GaussianRBM(3, trainer=PCD(sampler=Langevin(temperature=2.0))).fit(REALS)


@pytest.mark.parametrize("adapter", [RobbinsMonro(), DualAveraging()], ids=repr)
def test_masses_that_change_late_leave_the_acceptance(adapter: Any) -> None:
    """Standard deviations over four decades: lengths are carried over into the new units."""
    s = np.logspace(-2, 2, 20)
    target = (lambda x: _energy(x / s), lambda x: x / s**2)
    start = s * np.random.default_rng(0).standard_normal((20, 20))
    run = HMC(10, adaptation=[adapter, PooledMass()]).run(target, start, 200, 0, n_warmup=200)
    assert abs(run.rates["acceptance"] - 0.8) < 0.15


def test_messages_fit_their_sampler() -> None:
    model = GaussianRBM(3, trainer=PCD(n_epochs=2), random_state=0).fit(REALS)
    with pytest.raises(ValueError, match="sampler must be a sampler, got 'hmc'"):
        model.sample(2, sampler="hmc")
    with pytest.raises(ValueError, match=r"beta=0.5 with ParallelTempering.*ladder leads"):
        model.sample(2, sampler=ParallelTempering(Gibbs()), beta=0.5)
    stuck = from_functions(lambda x: 1e6 * x.sum(axis=1), event_shape=(3,), domain="binary")
    with pytest.warns(SamplerWarning, match="hardly moved") as told:
        Metropolis().run(stuck, np.zeros((5, 3)), 20, 0)
    assert "step_size" not in str(told[0].message)


def test_held_values_of_a_binary_model_may_be_grey() -> None:
    target = from_functions(lambda x: x.sum(axis=1), event_shape=(3,), domain="binary")
    clamped = Clamped(target, np.array([True, False, False]), np.array([0.4, 0, 0]))
    x = Metropolis().run(clamped, np.zeros((50, 3)), 5, 0).x
    assert (x[:, 0] == 0.4).all() and set(np.unique(x[:, 1:])) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("mask", "values", "what"),
    [
        ((3,), (2,), "mask"),
        ((2,), (3,), "values"),
        ((4, 5, 2), (2,), "mask"),
        ((5, 3), (2,), "mask"),
    ],
)
def test_masks_and_values_must_fit(mask: Any, values: Any, what: str) -> None:
    target = from_functions(*ROUND, (2,))
    with pytest.raises(ValueError, match=rf"the {what} has shape"):
        Clamped(target, np.zeros(mask, bool), np.zeros(values))
