"""Deep Boltzmann machines against sums over all layers, written from the definition alone."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import standin
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks
from streams import ReplayStream

import energyscape
from energyscape.backend import Purpose, stream, to_host
from energyscape.data import Binarize
from energyscape.errors import CapabilityError
from energyscape.evaluation import laws
from energyscape.evaluation.laws import generic_params
from energyscape.models import RBM
from energyscape.models.bipartite import BipartiteModel
from energyscape.models.deep_boltzmann import DeepBoltzmannMachine
from energyscape.models.layered import Layers
from energyscape.optim import SGD, Constant, Moment
from energyscape.samplers import AIS, Metropolis, ParallelTempering
from energyscape.trainers import CD, EM, FPCD, PCD, MaximumLikelihood
from energyscape.trainers.base import Batch

# 4-3-2, 3-3-2-2, and one whose even side is the smaller one: 2-6-2.
SHAPES = [(4, 3, 2), (3, 3, 2, 2), (2, 6, 2)]
over = pytest.mark.parametrize("sizes", SHAPES, ids=str)


def machine(sizes: tuple[int, ...], **settings: Any) -> DeepBoltzmannMachine:
    return DeepBoltzmannMachine(sizes[1:], **settings)


def some_params(sizes: tuple[int, ...], noise: float = 2.0, seed: int = 0) -> Any:
    x = np.random.default_rng(5).integers(0, 2, (20, sizes[0])).astype(np.float64)
    return generic_params(machine(sizes), x, seed, noise)


def some_states(sizes: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Rows over all even layers, off their order: in the first ones the last layers are all 0."""
    y = oracles.states(sum(sizes[::2]))
    return y[np.random.default_rng(seed).permutation(len(y))[:12]]


def layers_of(params: Any, sizes: tuple[int, ...], even: Any, odd: Any) -> list[Any]:
    """Layers from the two sides, counted by hand."""
    ends = {0: 0, 1: 0}
    found = []
    for n, size in enumerate(sizes):
        lo = ends[n % 2]
        ends[n % 2] += size
        found.append((even, odd)[n % 2][..., lo : lo + size])
    return found


def brute(params: Any, sizes: tuple[int, ...]) -> Any:
    """(states of the even side, of the odd side, -E of every pair) from the definition."""
    n_even, n_odd = sum(sizes[0::2]), sum(sizes[1::2])
    y, o = oracles.states(n_even), oracles.states(n_odd)
    Y, O = np.repeat(y, len(o), 0), np.tile(o, (len(y), 1))
    units = layers_of(params, sizes, Y, O)
    biases = layers_of(params, sizes, params["b"], params["c"])
    total = sum(u @ b for u, b in zip(units, biases, strict=True))
    for n in range(1, len(sizes)):
        total = total + np.einsum("ni,ij,nj->n", units[n - 1], params[f"W{n}"], units[n])
    return y, o, total.reshape(len(y), len(o))


def exact_free_energy(params: Any, sizes: tuple[int, ...]) -> tuple[Any, Any, float]:
    """(all v, F(v), log Z)."""
    joint = brute(params, sizes)[2]
    per_y = logsumexp(joint, axis=1)
    # Bit j of a state's number is unit j, and the visible ones come first.
    return (
        oracles.states(sizes[0]),
        -logsumexp(per_y.reshape(-1, 1 << sizes[0]), axis=0),
        float(logsumexp(joint)),
    )


# ---------------------------------------------------------------- the machine over both sides


@over
def test_free_energy_sums_out_the_odd_layers(sizes: tuple[int, ...]) -> None:
    params = some_params(sizes)
    y, o, joint = brute(params, sizes)
    model = machine(sizes)
    np.testing.assert_allclose(
        model.free_energy(params, y), -logsumexp(joint, axis=1), rtol=0, atol=1e-12
    )
    pairs = np.repeat(y, len(o), 0), np.tile(o, (len(y), 1))
    np.testing.assert_allclose(-model.joint_energy(params, *pairs), joint.ravel(), atol=1e-12)


@over
@pytest.mark.parametrize("seed", [0, 1])
def test_the_laws_hold_over_both_sides(sizes: tuple[int, ...], seed: int) -> None:
    """πT = π to 1e-12 on the path too, detailed balance, gradients, float32: the laws of every
    model, at rows of all even layers."""
    params = some_params(sizes, 1.0, seed)
    y = some_states(sizes, seed)
    for law, needed in laws.LAWS.items():
        if not {"input_grad", "infer"} & set(needed):
            assert law(machine(sizes), params, y, np.random.default_rng(seed)) is not False


def test_the_laws_notice_a_missing_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine of this kind gets wrong first: h2 does not pull at h1."""
    params, y, model = some_params((4, 3, 2)), some_states((4, 3, 2)), machine((4, 3, 2))
    monkeypatch.setattr(Layers, "neighbours", lambda self, n: [[1], [0], [1]][n])
    with pytest.raises(AssertionError):
        laws.gibbs_leaves_the_model_invariant(model, params, y, None)
    with pytest.raises(AssertionError):
        laws.gradient_is_central_difference(model, params, y, np.random.default_rng(0))


@over
def test_log_partition_and_its_gradient_are_exact(sizes: tuple[int, ...]) -> None:
    model, params = machine(sizes), some_params(sizes)
    _, _, log_z = exact_free_energy(params, sizes)
    assert model.log_partition(params) == pytest.approx(log_z, abs=1e-12)
    grads, h = model.log_partition_grad(params), 1e-5
    for name, grad in grads.items():
        for flat in range(0, grad.size, 2):
            sides = []
            for sign in (1, -1):
                moved = np.array(params[name])
                moved.flat[flat] += sign * h
                sides.append(model.log_partition({**params, name: moved}))
            # Truncation h², rounding ε·20/h.
            assert grad.flat[flat] == pytest.approx((sides[0] - sides[1]) / (2 * h), abs=1e-8)


@over
def test_exact_draws_have_the_frequencies_of_the_model(sizes: tuple[int, ...]) -> None:
    model, params, n = machine(sizes), some_params(sizes), 40_000
    _, _, joint = brute(params, sizes)
    p = np.exp(logsumexp(joint, axis=1) - logsumexp(joint))
    draws = model.sample_exact(params, n, stream(0, Purpose.SAMPLE))
    numbers = (draws @ (1 << np.arange(draws.shape[1]))).astype(int)
    counts = np.bincount(numbers, minlength=len(p))
    # Chi-squared over at most 63 degrees of freedom: above 140 once in 1e7; cells under 1 pooled.
    big = n * p > 5
    misfit = ((counts - n * p)[big] ** 2 / (n * p)[big]).sum()
    assert misfit < 140
    shifted = np.roll(p, 1)
    assert ((counts - n * shifted)[big] ** 2 / np.maximum(n * shifted, 5)[big]).sum() > 140


def test_one_hidden_layer_is_an_rbm() -> None:
    deep, flat = DeepBoltzmannMachine((4,)), RBM(4)
    x = oracles.states(5)
    ours = generic_params(deep, x, noise=1.0)
    theirs = {"W": ours["W1"]} | {k: ours[k] for k in ("b", "c", "mean_v", "mean_h")}
    np.testing.assert_allclose(deep.free_energy(ours, x), flat.free_energy(theirs, x), atol=1e-12)
    np.testing.assert_allclose(deep.encode(ours, x), flat.encode(theirs, x), atol=1e-12)
    assert deep.log_partition(ours) == pytest.approx(flat.log_partition(theirs), abs=1e-12)
    results = []
    for model, params in ((deep, ours), (flat, theirs)):
        params, trainer = {k: v.copy() for k, v in params.items()}, PCD(n_chains=7)
        carry = trainer.start(model, params, x, stream(0, Purpose.START))
        for step in range(5):
            rng = stream(0, Purpose.COLLECT, step)
            sums = trainer.collect(model, params, carry, Batch(x, len(x)), rng)
            trainer.apply(model, params, carry, sums, Moment(0, step, None, rng))
        results.append(params)
    np.testing.assert_allclose(results[0]["W1"], results[1]["W"], atol=1e-12)
    np.testing.assert_allclose(results[0]["b"], results[1]["b"], atol=1e-12)


# ---------------------------------------------------------------- mean field


@over
@pytest.mark.parametrize("noise", [0.3, 2.0, 6.0])
def test_variational_free_energy_is_above_the_exact_one(sizes: Any, noise: float) -> None:
    """For any number of sweeps, and lower after each; tight where the posterior is factorial."""
    params = some_params(sizes, noise)
    v, exact, _ = exact_free_energy(params, sizes)
    before = np.inf
    for sweeps in (1, 2, 3, 10, 100):
        bound = machine(sizes, n_mean_field=sweeps).free_energy(params, v)
        assert (bound >= exact - 1e-12).all() and (bound <= before + 1e-12).all()
        before = bound
    apart = {k: (v * 0 if k not in ("W1", "b", "c") else v) for k, v in params.items()}
    v, exact, _ = exact_free_energy(apart, sizes)
    np.testing.assert_allclose(machine(sizes).free_energy(apart, v), exact, atol=1e-12)


@over
def test_variational_energy_is_that_of_the_factorial_distribution(sizes: Any) -> None:
    """E_q[E] - H(q) summed over all states, q from the features."""
    model, params = machine(sizes), some_params(sizes)
    y, o, joint = brute(params, sizes)
    for row in oracles.states(sizes[0])[:4]:
        means = model.encode(params, row[None])[0]
        parts = np.split(means, np.cumsum(sizes[1:-1]))
        even, odd = np.concatenate([row, *parts[1::2]]), np.concatenate(parts[0::2])
        q_even = np.prod(np.where(y == 1, even, 1 - even), axis=1)
        q_odd = np.prod(np.where(o == 1, odd, 1 - odd), axis=1)
        q = np.outer(q_even, q_odd)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_q = np.where(q > 0, np.log(q), 0)
        wanted = (q * (log_q - joint)).sum()
        assert model.free_energy(params, row[None])[0] == pytest.approx(wanted, abs=1e-10)


def test_gradient_at_the_fixed_point_is_that_of_the_bound() -> None:
    """Central differences through the whole mean field; with one sweep they must not agree."""
    rng, h = np.random.default_rng(0), 1e-5
    for sizes in SHAPES:
        params, v = some_params(sizes, 1.0), oracles.states(sizes[0])
        w = rng.standard_normal(len(v))
        worst = {}
        for sweeps in (1, 200):
            model, gap = machine(sizes, n_mean_field=sweeps), []
            grads = model.free_energy_grad(params, v, w)
            for name in (*(f"W{n}" for n in range(1, len(sizes))), "b", "c"):
                for flat in range(params[name].size):
                    sides = []
                    for sign in (1, -1):
                        moved = np.array(params[name])
                        moved.flat[flat] += sign * h
                        sides.append(w @ model.free_energy({**params, name: moved}, v))
                    slope = (sides[0] - sides[1]) / (2 * h)
                    gap.append(abs(slope - grads[name].flat[flat]))
            worst[sweeps] = max(gap)
        # h² in truncation and ε·50/h in rounding: 1e-9 each, for 16 rows of weight 1.
        assert worst[200] < 2e-8, worst
        assert worst[1] > 1e-4, worst


# ---------------------------------------------------------------- training


def _mean_gradient(sizes: Any, params: Any, narrow: bool, n: int = 1500) -> float:
    """The largest |z| of the mean PCD gradient with data and chains drawn from the model."""
    model, trainer = machine(sizes), PCD(n_chains=50)
    names = [k for k, spec in model.param_specs().items() if spec.trainable]
    total, square = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for step in range(n):
        x = model.sample_exact(params, 20, stream(step, Purpose.SAMPLE))
        start = model.sample_exact(params, 50, stream(step, Purpose.INIT))
        carry = trainer.start(model, params, start, stream(step, Purpose.START))
        x = x[:, : sizes[0]] if narrow else x
        rng = stream(step, Purpose.COLLECT)
        sums = trainer.collect(model, params, carry, Batch(x, 20), rng)
        for k in names:
            total[k] = total[k] + sums[k]
            square[k] = square[k] + sums[k] ** 2
    worst = 0.0
    for k in names:
        mean = total[k] / n
        error = np.sqrt(square[k] / n - mean**2) / np.sqrt(n)
        worst = max(worst, float((np.abs(mean) / error).max()))
    return worst


def test_pcd_gradient_vanishes_at_the_truth() -> None:
    """With the hidden layers of the data drawn from the exact posterior; mean field is biased."""
    params = some_params((4, 3, 2), 1.0)
    # |z| < 6 over 27 entries: false alarm below 1e-6.
    assert _mean_gradient((4, 3, 2), params, narrow=False) < 6
    assert _mean_gradient((4, 3, 2), params, narrow=True) > 6


@over
@pytest.mark.parametrize("centered", [True, False])
def test_centred_step_is_gradient_descent_on_centred_parameters(sizes: Any, centered: Any) -> None:
    """A step is along PP'∇ with P the Jacobian of E = -Σ(x_l - μ_l)'W(x_l+1 - μ_l+1) - …: P has
    full rank, so that plain and centred training rest at the same points. And there and back."""
    model, params = machine(sizes, centered=centered), some_params(sizes)
    means = layers_of(params, sizes, params["mean_v"], params["mean_h"])
    names = [k for k, spec in model.param_specs().items() if spec.trainable]

    def plain(t: Any) -> np.ndarray:
        """Plain parameters from increments of the centred ones."""
        new = {k: params[k] + t[k] for k in names}
        biases = layers_of(params, sizes, new["b"], new["c"])
        for n in range(1, len(sizes)) if centered else ():
            biases[n - 1] -= t[f"W{n}"] @ means[n]  # views: they are changed in `new`
            biases[n] -= means[n - 1] @ t[f"W{n}"]
        return np.concatenate([new[k].ravel() for k in names])

    zero = {k: np.zeros_like(params[k]) for k in names}
    columns = []
    for k in names:
        for i in range(params[k].size):
            t = copy.deepcopy(zero)
            t[k].flat[i] = 1.0
            columns.append(plain(t) - plain(zero))  # the map is linear
    P, rng = np.array(columns).T, np.random.default_rng(3)
    grads = {k: rng.standard_normal(params[k].shape) for k in names}
    wanted = P @ (P.T @ np.concatenate([grads[k].ravel() for k in names]))
    after = {k: v.copy() for k, v in params.items()}
    model.precondition(after, grads)
    moved = model.coordinates(after)
    moved |= {k: moved[k] + grads[k] for k in names}
    model.set_coordinates(after, moved)
    got = np.concatenate([(after[k] - params[k]).ravel() for k in names])
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-11 * np.abs(wanted).max())
    back = {k: v.copy() for k, v in params.items()}
    model.set_coordinates(back, model.coordinates(back))
    for key, value in params.items():
        np.testing.assert_allclose(back[key], value, rtol=0, atol=1e-12)


BARS = np.tile(oracles.bars_and_stripes(3), (6, 1))
INDEPENDENT, BEST = 9 * np.log(0.5), -(0.75 * np.log(16) + 0.25 * np.log(8))


def _true_log_likelihood(model: DeepBoltzmannMachine, X: np.ndarray) -> float:
    sizes = (X.shape[1], *model.hidden_layer_sizes)
    params = {k: v.astype(np.float64) for k, v in model.params_.items()}
    hidden = oracles.states(sum(sizes[2::2]))
    log_p = []
    for row in np.unique(X, axis=0):
        y = np.concatenate([np.repeat(row[None], len(hidden), 0), hidden], axis=1)
        count = (row == X).all(axis=1).sum()
        log_p.append(count * logsumexp(-model.free_energy(params, y)))
    return sum(log_p) / len(X) - model.log_partition(params)


@pytest.mark.parametrize("centered", [True, False])
def test_bars_and_stripes(centered: bool) -> None:
    """Best possible -2.60, independent pixels -6.24 nats: at least three quarters of the way, by
    the sum over all hidden states, and the score is below it."""
    trainer = PCD(n_epochs=1500, batch_size=96, learning_rate=0.3)
    model = DeepBoltzmannMachine((12, 4), centered=centered, trainer=trainer, random_state=0)
    model.fit(BARS)
    truth = _true_log_likelihood(model, BARS)
    assert model.score(BARS) <= truth + 1e-6 < BEST
    assert truth > INDEPENDENT + 0.75 * (BEST - INDEPENDENT), truth


# ---------------------------------------------------------------- log Z


def test_ais_meets_the_exact_log_partition() -> None:
    """E[w] Z_base = Z at few temperatures, forwards and backwards; |z| < 5.5: 1e-7."""
    sizes, ais = (4, 3, 2), AIS(20_000, 5)
    model, params = machine(sizes), some_params(sizes)
    log_z = exact_free_energy(params, sizes)[2]
    path = model.target(params, base=model.base_measure(params))
    up = ais.run(path, stream(0, Purpose.PARTITION))
    draws = model.sample_exact(params, 20_000, stream(1, Purpose.SAMPLE))
    down = ais.reverse(path, draws, stream(1, Purpose.PARTITION), exact=True)

    def z(log_w: np.ndarray, shift: float) -> float:
        w = np.exp(log_w + shift)
        return (w.mean() - 1) / (w.std() / np.sqrt(len(w)))

    shift = path.base_log_partition() - log_z
    assert abs(z(up.log_weights, shift)) < 5.5 and abs(z(down.log_weights, -shift)) < 5.5
    # One unit less in the base's log Z, or a tenth more in the odd biases: both are seen.
    assert abs(z(up.log_weights, shift - np.log(2))) > 5.5
    wrong = params | {"c": params["c"] + 0.1}
    other = ais.run(model.target(wrong, base=path.base), stream(0, Purpose.PARTITION))
    assert abs(z(other.log_weights, shift)) > 5.5


def test_bounds_are_below_the_truth() -> None:
    """By exact draws where states can be counted, and by RAISE where they are said not to be."""

    class Uncountable(DeepBoltzmannMachine):
        def _sums_exactly(self, params: Any) -> bool:
            return False

    for kind, holds_for in (
        (DeepBoltzmannMachine, "model"),
        (Uncountable, "annealed model"),
    ):
        model = kind((6, 3), trainer=PCD(n_epochs=300, batch_size=96), random_state=0).fit(BARS)
        truth = _true_log_likelihood(model, BARS)
        low, high = bounds = model.log_likelihood_bounds(BARS, AIS(500, 500))
        assert bounds.low_holds_for == holds_for and high == np.inf
        # The means of 500 chains have errors of about 0.01 nat.
        assert truth - 1.0 < low < truth + 0.05
        assert model.log_partition_ == pytest.approx(bounds.partition.log_partition, abs=0.2)


# ---------------------------------------------------------------- the face

SHORT = {"n_epochs": 2, "n_chains": 20}


@pytest.mark.filterwarnings("ignore::energyscape.errors.DataRangeWarning")
@pytest.mark.filterwarnings("ignore::energyscape.errors.SamplerWarning")
@parametrize_with_checks(
    [
        DeepBoltzmannMachine((4, 3), trainer=PCD(**SHORT)),
        DeepBoltzmannMachine(
            (4, 3, 2), features="last", centered=False, trainer=CD(n_epochs=2), n_mean_field=3
        ),
    ]
)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_fitted_attributes_and_shapes() -> None:
    model = DeepBoltzmannMachine((5, 4, 3), trainer=PCD(n_epochs=1), random_state=0).fit(BARS)
    assert [w.shape for w in model.coefs_] == [(9, 5), (5, 4), (4, 3)]
    assert [b.shape for b in model.intercepts_] == [(9,), (5,), (4,), (3,)]
    assert model.components_.shape == (5, 9)
    assert model.transform(BARS).shape == (96, 12) == (96, len(model.get_feature_names_out()))
    assert model.inverse_transform(model.transform(BARS)).shape == BARS.shape
    last = clone(model).set_params(features="last").fit(BARS)
    np.testing.assert_array_equal(last.transform(BARS), model.transform(BARS)[:, -3:])
    assert last.reconstruct(BARS).shape == BARS.shape
    assert repr(clone(DeepBoltzmannMachine())) == "DeepBoltzmannMachine()"
    for name in ("coefs_", "intercepts_", "components_", "params_"):
        assert not hasattr(DeepBoltzmannMachine(), name)


def test_samples_are_of_the_visible_units_and_can_be_clamped() -> None:
    trainer = PCD(n_epochs=800, batch_size=96, learning_rate=0.3)
    model = DeepBoltzmannMachine((12, 4), trainer=trainer, random_state=0).fit(BARS)
    params, sizes = model.params_, (9, 12, 4)
    hidden = oracles.states(4)
    log_p = np.array(
        [
            logsumexp(-model.free_energy(params, np.concatenate([np.tile(v, (16, 1)), hidden], 1)))
            for v in oracles.states(sizes[0]).astype(np.float32)
        ]
    )
    first = BARS[4, :3]
    fits = (oracles.states(9)[:, :3] == first).all(axis=1)
    p = np.exp(log_p - logsumexp(log_p[fits])) * fits
    mask = np.arange(9) < 3
    draws = model.sample(4000, clamp=(mask, np.where(mask, BARS[4], np.nan)), n_steps=200)
    assert draws.shape == (4000, 9) and (draws[:, :3] == first).all()
    wanted = p @ oracles.states(9)
    spread = np.sqrt(np.maximum(wanted * (1 - wanted), 1e-3) / 4000)
    # Independent chains; |z| < 6 over six means, with 1e-3 of a rate for what has not mixed.
    assert (np.abs(draws.mean(0) - wanted) < 6 * spread + 1e-3).all()
    free = np.exp(log_p - logsumexp(log_p)) @ oracles.states(9)
    assert (np.abs(draws.mean(0) - free) > 6 * spread + 1e-3).any()
    assert model.sample(3, start=BARS[:3], n_steps=0).tolist() == BARS[:3].tolist()


@pytest.mark.parametrize(
    "trainer",
    [
        CD(2, n_chains=7),
        FPCD(n_chains=9),
        CD(sampler=Metropolis()),
        PCD(n_chains=9, sampler=ParallelTempering(n_temperatures=3)),
        PCD(n_chains=9, sampler=ParallelTempering(Metropolis(), n_temperatures=2)),
    ],
    ids=repr,
)
def test_other_trainers_and_samplers(trainer: Any) -> None:
    """Chains of bits, whatever the fractions that complete the data."""
    trainer = clone(trainer).set_params(n_epochs=2, batch_size=40)
    model = DeepBoltzmannMachine((5, 3), trainer=trainer, random_state=0).fit(BARS)
    assert np.isfinite(model.score(BARS))
    for key in ("chain/x", "chain/h"):
        chains = model._state.carry.get(key, np.zeros(1))
        assert np.isin(chains, (0, 1)).all()


def test_maximum_likelihood_climbs_the_bound() -> None:
    """Its gradient is that of mean F(v, μ) - H(μ) + log Z, by central differences."""
    sizes, h = (4, 3, 2), 1e-5
    params, v = some_params(sizes, 1.0), oracles.states(4)[:9]
    model = machine(sizes, n_mean_field=200)
    sums = MaximumLikelihood().collect(model, params, {}, Batch(v, 9), stream(0, Purpose.COLLECT))
    for name in ("W1", "W2", "b", "c"):
        for flat in range(params[name].size):
            sides = []
            for sign in (1, -1):
                moved = {**params, name: np.array(params[name])}
                moved[name].flat[flat] += sign * h
                sides.append(model.free_energy(moved, v).mean() + model.log_partition(moved))
            # h² in truncation and ε·20/h in rounding.
            slope = (sides[0] - sides[1]) / (2 * h)
            assert sums[name].flat[flat] == pytest.approx(slope, abs=1e-8)


def test_a_pass_at_rows_completes_them() -> None:
    """And knows the entropy, also in parts and joined to chains, where it is 0."""
    model, params = machine((4, 3, 2)), some_params((4, 3, 2))
    v = oracles.states(4)
    passed, chains = model.forward(params, v), model.forward(params, some_states((4, 3, 2)))
    wanted = model.free_energy(params, v)
    np.testing.assert_allclose(passed.energy(), wanted, atol=1e-12)
    np.testing.assert_allclose(passed[3:7].energy(), wanted[3:7], atol=1e-12)
    both = np.concatenate([wanted, chains.energy()])
    np.testing.assert_allclose(passed.join(chains).energy(), both, atol=1e-12)
    assert (wanted < BipartiteModel.forward(model, params, passed.x).energy()).all()
    np.testing.assert_array_equal(passed.x, model.complete(params, v))


@over
def test_decode_is_the_mean_of_the_visible_units_given_the_first_layer(sizes: Any) -> None:
    params = some_params(sizes)
    y, o, joint = brute(params, sizes)
    for h1 in oracles.states(sizes[1]):
        here = (o[:, : sizes[1]] == h1).all(axis=1)
        weight = np.exp(logsumexp(joint[:, here], axis=1) - logsumexp(joint[:, here]))
        code = np.concatenate([h1, np.full(sum(sizes[2:]), 0.5)])
        got = machine(sizes).decode(params, code[None])[0]
        np.testing.assert_allclose(got, weight @ y[:, : sizes[0]], atol=1e-12)


def test_one_sweep_through_many_layers_keeps_its_rows() -> None:
    sizes = (4, 3, 2, 3, 2, 2)
    params, v = some_params(sizes), oracles.states(4)
    for features, units in (("all", 12), ("last", 2)):
        model = machine(sizes, n_mean_field=1, features=features)
        codes = model.encode(params, v)
        assert codes.shape == (16, units) and model.decode(params, codes).shape == v.shape


def test_completion_by_draws_has_the_rates_of_mean_field() -> None:
    model, params, v = machine((4, 3, 2)), some_params((4, 3, 2)), oracles.states(4)
    wanted = model.complete(params, v)
    bits = model.complete(params, np.repeat(v, 4000, 0), stream(0, Purpose.START))
    assert np.isin(bits, (0, 1)).all()
    rates = bits.reshape(16, 4000, -1).mean(axis=1)
    # |z| < 6 over 32 rates: false alarm below 1e-6.
    assert (np.abs(rates - wanted) <= 6 * np.sqrt(0.25 / 4000)).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hidden_layer_sizes": ()}, "at least one integer"),
        ({"hidden_layer_sizes": 5}, "at least one integer"),
        ({"hidden_layer_sizes": (3, 0)}, "every entry of hidden_layer_sizes"),
        ({"n_mean_field": 0}, "n_mean_field must be an integer >= 1"),
        ({"features": "first"}, "'all' or 'last'"),
    ],
)
def test_settings_are_checked(settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DeepBoltzmannMachine(**settings).fit(BARS)


def test_too_many_units_are_refused() -> None:
    model = DeepBoltzmannMachine((30, 30))
    params = model.init_params(np.ones((2, 30)) * 0.5, stream(0, Purpose.INIT))
    with pytest.raises(CapabilityError, match=r"2\^30 states"):
        model.log_partition(params)


# ---------------------------------------------------------------- state


class Stop:
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, model: Any, state: Any, info: Any) -> bool:
        return state.epoch == self.epoch


def _equal(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("trainer", [CD, PCD, FPCD], ids=lambda t: t.__name__)
def test_resume_is_bit_exact(trainer: Any, tmp_path: Path) -> None:
    settings = {
        "n_epochs": 5,
        "batch_size": 25,
        "averaging": 0.3,
        "batch_transform": Binarize(),
        "optimizer": SGD(0.1, momentum=0.5),
    }
    X = (0.1 + 0.8 * BARS).astype(np.float32)
    model = DeepBoltzmannMachine((5, 4, 3), random_state=3)
    whole = clone(model).set_params(trainer=trainer(**settings)).fit(X)
    broken = clone(model).set_params(trainer=trainer(**settings, callbacks=[Stop(2)])).fit(X)
    broken.trainer_.callbacks = ()
    broken.set_params(trainer=broken.trainer_)
    broken.save(tmp_path / "broken.h5")
    loaded = energyscape.load(tmp_path / "broken.h5")
    np.testing.assert_array_equal(loaded.transform(X), broken.transform(X))
    np.testing.assert_array_equal(loaded.sample(3, n_steps=3), broken.sample(3, n_steps=3))
    again = pickle.loads(pickle.dumps(broken))
    for resumed in (loaded.resume(X), again.resume(X)):
        assert _equal(resumed._state.params, whole._state.params)
        assert _equal(resumed._state.carry, whole._state.carry)


def test_partial_fits_are_one_constant_fit() -> None:
    optimizer = SGD(0.05, schedule=Constant())
    trainer = PCD(n_epochs=4, batch_size=25, optimizer=optimizer)
    one = DeepBoltzmannMachine([5, 4], trainer=trainer, random_state=3)
    many = clone(one)
    one.fit(BARS)
    for _ in range(4):
        assert many.partial_fit(BARS) is many
    assert _equal(one._state.params, many._state.params)
    assert _equal(one._state.carry, many._state.carry)
    assert one.components_.dtype == np.float32


# ---------------------------------------------------------------- arrays


@pytest.mark.parametrize("trainer", [CD(2), PCD(2), FPCD()], ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numpy_and_cupy_agree_on_the_same_noise(trainer: Any, dtype: Any, cupy: Any) -> None:
    model, X, results = DeepBoltzmannMachine((5, 4, 3)), BARS.astype(dtype), []
    for xp in (np, cupy):
        x = X if xp is np else xp.asarray(X)
        params = model.init_params(x, ReplayStream(xp, 1))
        carry = trainer.start(model, params, x, ReplayStream(xp, 2))
        for step in range(3):
            rng = ReplayStream(xp, 3, step)
            sums = trainer.collect(model, params, carry, Batch(x, len(x)), rng)
            trainer.apply(model, params, carry, sums, Moment(0, step, 0.1))
        path = model.target(params, base=model.base_measure(params))
        ais = AIS(10, 5).run(path, ReplayStream(xp, 5))
        codes = model.encode(params, x)
        result = {k: to_host(v) for k, v in (params | carry).items()}
        result |= {"energy": to_host(model.free_energy(params, x)), "codes": to_host(codes)}
        result |= {"mean": to_host(model.decode(params, codes)), "ais": ais.log_weights}
        result["bits"] = to_host(model.complete(params, x, ReplayStream(xp, 6)))
        results.append(result | {"log Z": np.array(model.log_partition(params))})
    # As in test_backend: rounding in float64, and what one flipped comparison does in float32.
    tolerance = 1e-9 if dtype == np.float64 else 2e-3
    for name, value in results[0].items():
        assert value.dtype == results[1][name].dtype, name
        scale = max(1.0, float(np.abs(value).max(initial=0)))
        np.testing.assert_allclose(
            results[1][name] / scale, value / scale, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize("trainer", [CD(2), PCD(2, averaging=0.5), FPCD()], ids=repr)
def test_a_step_does_not_wait_for_the_device(trainer: Any, fake_cupy: Any) -> None:
    model, x = DeepBoltzmannMachine((5, 4, 3)), fake_cupy.asarray(BARS)
    params = model.init_params(x, stream(0, Purpose.INIT, 0, "cuda:0"))
    carry = trainer.start(model, params, x, stream(0, Purpose.START, 0, "cuda:0"))
    standin.Counter.syncs = 0
    for step in range(3):
        rng = stream(0, Purpose.COLLECT, step, "cuda:0")
        sums = trainer.collect(model, params, carry, Batch(x, len(x)), rng)
        trainer.apply(model, params, carry, sums, Moment(0, step, 0.1, rng))
    assert standin.Counter.syncs == 0
    float(params["W1"].sum())
    assert standin.Counter.syncs == 1, "the counter counts"


def test_the_face_on_the_device(cupy: Any) -> None:
    X = cupy.asarray(BARS)
    model = DeepBoltzmannMachine((5, 4), trainer=PCD(n_epochs=2), random_state=0).fit(X)
    mask = cupy.asarray(np.arange(9) < 3)
    for result in (
        model.transform(X),
        model.energy(X),
        model.sample(4, n_steps=2, clamp=(mask, X[0])),
        model.reconstruct(X),
        model.coefs_[1],
    ):
        assert isinstance(result, cupy.ndarray)
    assert np.isfinite(model.log_likelihood_bounds(X, AIS(20, 20)).low)


# ---------------------------------------------------------------- pre-training


@over
def test_an_rbm_taken_up_keeps_its_density(sizes: tuple[int, ...]) -> None:
    """Exactly, where nothing couples the layers above; h2 and the rest hang on by O(W2) else."""
    rng = np.random.default_rng(3)
    rbm = {
        "W": rng.standard_normal(sizes[:2]),
        "b": rng.standard_normal(sizes[0]),
        "c": rng.standard_normal(sizes[1]),
        "mean_v": rng.random(sizes[0]),
        "mean_h": rng.random(sizes[1]),
    }
    x = np.random.default_rng(5).integers(0, 2, (20, sizes[0])).astype(np.float64)
    model = machine(sizes)
    params = model.init_params(x, stream(0, Purpose.INIT))
    above = [name for name in params if name.startswith("W") and name != "W1"]
    drift = []
    for scale in (1.0, 0.5, 0.0):
        for name in above:
            params[name] *= scale
        model.take_up(params, rbm)
        v, free, log_z = exact_free_energy(params, sizes)
        own = RBM(sizes[1]).free_energy(rbm, v)
        drift.append(np.ptp(free + log_z - own))
    assert drift[1] < 0.6 * drift[0]
    assert drift[2] < 1e-12


def test_pretraining_is_the_fit_of_an_rbm() -> None:
    x = np.random.default_rng(5).integers(0, 2, (50, 4)).astype(np.float64)
    seen: list[int] = []
    first = PCD(n_epochs=3, callbacks=[lambda model, state, info: seen.append(state.epoch)])
    still = PCD(n_epochs=1, learning_rate=1e-12)
    model = DeepBoltzmannMachine((3, 2), pretraining=first, trainer=still, random_state=0).fit(x)
    rbm = RBM(3, trainer=PCD(n_epochs=3), random_state=0).fit(x)
    np.testing.assert_allclose(model.coefs_[0], rbm.components_.T, atol=1e-9)
    np.testing.assert_allclose(model.intercepts_[0], rbm.intercept_visible_, atol=1e-9)
    assert seen == [1, 2, 3] and model.n_iter_ == 1
    assert clone(model).get_params()["pretraining__n_epochs"] == 3


def test_pretraining_refuses_what_cannot_train_an_rbm() -> None:
    x = np.eye(4)
    with pytest.raises(CapabilityError, match="EM cannot train RBM"):
        DeepBoltzmannMachine((3, 2), pretraining=EM()).fit(x)
    with pytest.raises(ValueError, match=r"pretraining__n_epochs has nothing to set"):
        DeepBoltzmannMachine((3, 2)).set_params(pretraining__n_epochs=2)
