"""Stacks are their layers, one on the codes of the other; a belief net's bound and draws are those
that enumeration gives."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import oracles
import pytest
from goodness import ALARM
from scipy.special import logsumexp
from scipy.stats import chi2, norm
from sklearn import config_context
from sklearn.base import clone
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.frozen import FrozenEstimator
from sklearn.utils.estimator_checks import parametrize_with_checks

import energyscape
from energyscape.backend import to_host
from energyscape.corruptions import Binarize
from energyscape.errors import CapabilityError
from energyscape.models import (
    PCA,
    RBM,
    AutoEncoder,
    DeepAutoEncoder,
    DeepBeliefNet,
    DeepBoltzmannMachine,
    GaussianMixture,
    GaussianRBM,
    KMeans,
    StackedAutoEncoder,
)
from energyscape.optim import SGD
from energyscape.trainers import CD, PCD, Denoising, MaximumLikelihood, Reconstruction

CHAINS = {"trainer": PCD(n_epochs=2, n_chains=10, batch_size=20)}
STEPS = {"trainer": Reconstruction(n_epochs=2, batch_size=20)}


def bits(n: int = 60, d: int = 8) -> np.ndarray:
    rng = np.random.default_rng(1)
    patterns = rng.integers(0, 2, (4, d))
    return (patterns[rng.integers(0, 4, n)] ^ (rng.random((n, d)) < 0.1)).astype(np.float64)


def reals(n: int = 60, d: int = 8) -> np.ndarray:
    rng = np.random.default_rng(3)
    return 5 + rng.standard_normal((n, d)) @ rng.standard_normal((d, d))


def greys(n: int = 60, d: int = 8) -> np.ndarray:
    return np.random.default_rng(4).random((n, d))


STACKS = {
    "rbms": (DeepBeliefNet([RBM(6, **CHAINS), RBM(4, **CHAINS)]), bits()),
    "gaussian below": (DeepBeliefNet([GaussianRBM(6, **CHAINS), RBM(4, **CHAINS)]), reals()),
    "averaged": (
        DeepBeliefNet([RBM(6, trainer=CD(n_epochs=2, averaging=0.5)), RBM(4, **CHAINS)]),
        bits(),
    ),
    "squared": (StackedAutoEncoder([AutoEncoder(6, **STEPS), AutoEncoder(4, **STEPS)]), reals()),
    "cross-entropy": (
        StackedAutoEncoder(
            [
                AutoEncoder(6, loss="cross_entropy", tied=False, **STEPS),
                AutoEncoder(4, loss="cross_entropy", **STEPS),
            ]
        ),
        greys(),
    ),
    "tanh, relu": (
        StackedAutoEncoder(
            [
                AutoEncoder(6, activation="tanh", **STEPS),
                AutoEncoder(5, activation="relu", **STEPS),
                AutoEncoder(4, output="tanh", **STEPS),
            ]
        ),
        reals(),
    ),
    "squared in [0, 1]": (
        StackedAutoEncoder([AutoEncoder(6, output="sigmoid", **STEPS), RBM(4, **CHAINS)]),
        greys(),
    ),
    "pca below": (
        StackedAutoEncoder([PCA(6), GaussianRBM(5, **CHAINS), RBM(4, **CHAINS)]),
        reals(),
    ),
    "whitening below": (
        StackedAutoEncoder([PCA(6, whiten=True), AutoEncoder(4, **STEPS)]),
        reals(),
    ),
    "deep below": (
        StackedAutoEncoder([DeepAutoEncoder((7, 6), **STEPS), AutoEncoder(4, **STEPS)]),
        reals(),
    ),
}
each_stack = pytest.mark.parametrize("name", STACKS)


def fitted(name: str, **settings: Any) -> tuple[Any, np.ndarray]:
    model, X = STACKS[name]
    return clone(model).set_params(random_state=7, **settings).fit(X), X


# ---------------------------------------------------------------- layer on codes


@each_stack
def test_training_is_greedy(name: str) -> None:
    """Bit for bit what fitting by hand gives, each layer on the codes below."""
    stack, X = fitted(name)
    h = X
    for i, layer in enumerate(STACKS[name][0].layers):
        alone = clone(layer).set_params(random_state=7 + i).fit(h)
        h = alone.transform(h)
        for key, value in alone.params_.items():
            np.testing.assert_array_equal(value, stack.layers_[i].params_[key], err_msg=key)
    np.testing.assert_array_equal(stack.transform(X), h)


def test_layers_keep_seeds_of_their_own() -> None:
    layers = [RBM(6, random_state=3, **CHAINS), RBM(4, **CHAINS)]
    stack = DeepBeliefNet(layers, random_state=7).fit(bits())
    assert [layer.seed_ for layer in stack.layers_] == [3, 8]
    again = DeepBeliefNet(layers, random_state=np.random.RandomState(0)).fit(bits())
    assert [layer.random_state for layer in again.layers_] == [3, again.seed_ + 1]


def test_frozen_layers_stay_as_they_are() -> None:
    below = RBM(6, **CHAINS).fit(bits())
    before = below.components_.copy()
    stack = DeepBeliefNet([FrozenEstimator(below), RBM(4, **CHAINS)], random_state=7)
    stack.fit(bits(40))
    assert stack.layers_[0] is below
    np.testing.assert_array_equal(below.components_, before)
    alone = RBM(4, random_state=8, **CHAINS).fit(below.transform(bits(40)))
    np.testing.assert_array_equal(stack.layers_[1].components_, alone.components_)


@pytest.mark.parametrize(
    ("features", "which"),
    [("last", [2]), ("all", [0, 1, 2]), (0, [0]), (1, [1]), (-1, [2]), (np.int64(-3), [0])],
)
def test_features_are_the_codes_that_were_asked_for(features: Any, which: list[int]) -> None:
    stack, X = fitted("tanh, relu", features=features)
    codes, h = [], X
    for layer in stack.layers_:
        h = layer.transform(h)
        codes.append(h)
    wanted = np.concatenate([codes[i] for i in which], axis=1)
    np.testing.assert_array_equal(stack.transform(X), wanted)
    names = [f"stackedautoencoder{i}" for i in range(wanted.shape[1])]
    assert list(stack.get_feature_names_out()) == names
    frame = stack.set_output(transform="pandas").transform(X)
    assert list(frame.columns) == names
    np.testing.assert_array_equal(frame.to_numpy(), wanted)


@pytest.mark.parametrize("features", ["all", "last"])
def test_data_frames_go_in_and_come_out(features: str, tmp_path: Any) -> None:
    """Also where every transformer is told to give data frames: between layers go arrays. 1e-13 of
    codes in [0, 1]: scikit-learn hands over columns, and products of those round otherwise."""
    pd = pytest.importorskip("pandas")
    plain, X = fitted("squared", features=features)
    frame = pd.DataFrame(X, columns=[f"x{i}" for i in range(8)])
    with config_context(transform_output="pandas"):
        stack = clone(plain).fit(frame)
        codes, back = stack.transform(frame), stack.reconstruct(frame)
        np.testing.assert_allclose(codes.to_numpy(), plain.transform(X), rtol=0, atol=1e-13)
        np.testing.assert_allclose(np.asarray(back), plain.reconstruct(X), rtol=1e-12)
    stack.save(tmp_path / "stack.h5")
    again = energyscape.load(tmp_path / "stack.h5")
    np.testing.assert_array_equal(again.transform(frame), codes.to_numpy())
    with pytest.raises(ValueError, match="feature names"):
        again.transform(frame[frame.columns[::-1]])


@each_stack
def test_the_way_back_is_that_of_the_layers(name: str) -> None:
    stack, X = fitted(name)
    H = stack.transform(X)
    back = H
    for layer in reversed(stack.layers_):
        back = layer.inverse_transform(back)
    np.testing.assert_array_equal(stack.inverse_transform(H), back)
    np.testing.assert_array_equal(stack.reconstruct(X), back)
    inner = stack.set_params(features=0)  # says what transform gives, not how deep the stack is
    np.testing.assert_array_equal(inner.reconstruct(X), back)
    assert inner.transform(X).shape == (60, inner.layers_[0]._n_features_out)


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ([], ValueError, r"layers is empty: give it models"),
        (
            [PCA(3), RBM(2)],
            ValueError,
            r"layer 2 \(RBM\) takes values in \[0, 1\].*\(PCA\) are real",
        ),
        (
            [AutoEncoder(3, activation="relu"), AutoEncoder(2, loss="cross_entropy")],
            ValueError,
            r"layer 2 \(AutoEncoder\) takes values in \[0, 1\].*are nonneg",
        ),
        ([AutoEncoder(3), SklearnKMeans(3)], CapabilityError, r"layer 2 of .* needs encode"),
        ([3], CapabilityError, r"layer 1 of StackedAutoEncoder needs encode.*int does not"),
        ([StackedAutoEncoder()], CapabilityError, r"layer 1 .*StackedAutoEncoder does not"),
    ],
)
def test_layers_that_do_not_fit_are_named(layers: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        StackedAutoEncoder(layers).fit(greys())


def test_belief_nets_are_made_of_boltzmann_machines() -> None:
    with pytest.raises(CapabilityError, match=r"layer 2 of DeepBeliefNet needs sample_hidden"):
        DeepBeliefNet([RBM(3), AutoEncoder(2)]).fit(bits())
    with pytest.raises(ValueError, match=r"layer 2 generates .* GaussianRBM is a model of real"):
        DeepBeliefNet([RBM(3), GaussianRBM(2)]).fit(bits())


@pytest.mark.parametrize(
    ("features", "message"),
    [("first", "must be 'last', 'all' or a layer's number"), (2, "there are 2 layers"), (-3, "2")],
)
def test_features_that_are_not_there(features: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepBeliefNet([RBM(3), RBM(2)], features=features).fit(bits())


# ---------------------------------------------------------------- unrolled


@each_stack
def test_an_unrolled_stack_gives_its_codes_and_reconstructions(name: str) -> None:
    """To rounding: weights up to 1e2 (whitening) against rows of order 10 in float64."""
    stack, X = fitted(name)
    deep = stack.unroll()
    np.testing.assert_allclose(deep.transform(X), stack.transform(X), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(deep.reconstruct(X), stack.reconstruct(X), rtol=1e-9, atol=1e-10)
    H = stack.transform(X)[:5]
    back = stack.inverse_transform(H)
    np.testing.assert_allclose(deep.inverse_transform(H), back, rtol=1e-9, atol=1e-10)
    assert deep.n_iter_ == 0 and not deep.tied
    shared = any(np.shares_memory(a, b) for a in deep.params_.values() for b in _arrays(stack))
    assert not shared, "training one would change the other"


def _arrays(stack: Any) -> list[np.ndarray]:
    return [v for layer in stack.layers_ for v in layer.params_.values()]


@each_stack
def test_an_unrolled_stack_goes_on_learning(name: str, tmp_path: Any) -> None:
    """By a schedule, from where the stack was: the energy falls in full-batch steps this small."""
    stack, X = fitted(name)
    rate = 1e-5 / np.var(X)
    trainer = Reconstruction(n_epochs=4, batch_size=60, learning_rate=rate)
    deep = stack.unroll(trainer)
    before = deep.energy(X).mean()
    deep.save(tmp_path / "deep.h5")
    deep.resume(X)
    rates = deep.history_["learning_rate"]
    assert deep.n_iter_ == 4 and rates == sorted(rates, reverse=True) and rates[0] == rate
    assert deep.energy(X).mean() < before
    assert deep.partial_fit(X).n_iter_ == 5 and deep.history_["learning_rate"][-1] == rate
    later = energyscape.load(tmp_path / "deep.h5").resume(X).partial_fit(X)
    np.testing.assert_array_equal(later.transform(X), deep.transform(X))


def test_an_unrolled_stack_sets_rows_apart() -> None:
    stack, X = fitted("squared")
    trainer = Reconstruction(n_epochs=2, validation_fraction=0.25)
    again = pickle.loads(pickle.dumps(stack))
    for deep in (stack.unroll(trainer).resume(X), again.unroll(trainer).resume(X)):
        assert len(deep.history_["energy_valid"]) == 2


def test_an_unrolled_stack_learns_alike_on_any_scale() -> None:
    """It keeps the scale that its lowest layer standardises by: 1000 X and X give the same codes.

    1e-6: rounding of 1e-16 through some dozens of updates.
    """
    codes = []
    for factor in (1.0, 1000.0):
        model, X = STACKS["squared"]
        stack = clone(model).set_params(random_state=7).fit(factor * X)
        deep = stack.unroll(Reconstruction(n_epochs=5, learning_rate=0.01)).resume(factor * X)
        codes.append(deep.transform(factor * X))
        np.testing.assert_allclose(stack.layers_[0].params_["scale"], deep.params_["scale"])
    np.testing.assert_allclose(codes[1], codes[0], atol=1e-6)
    assert np.abs(codes[0] - stack.transform(factor * X)).max() > 1e-3  # it did learn


def test_what_has_no_layers_does_not_unroll() -> None:
    stack = StackedAutoEncoder([KMeans(3), AutoEncoder(2, **STEPS)], random_state=0).fit(reals())
    with pytest.raises(CapabilityError, match=r"unrolling layer 1 .* KMeans does not offer"):
        stack.unroll()


# ---------------------------------------------------------------- the belief net, by enumeration

SIZES = (4, 3, 4, 2)


def machine(d: int, k: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "W": 1.5 * rng.standard_normal((d, k)),
        "b": rng.standard_normal(d),
        "c": rng.standard_normal(k),
    }


def planted(machines: list[dict[str, np.ndarray]]) -> DeepBeliefNet:
    """A fitted net whose machines have these parameters."""
    layers = [RBM(len(m["c"]), trainer=CD(n_epochs=1), centered=False) for m in machines]
    stack = DeepBeliefNet(layers, random_state=0)
    stack.fit(oracles.states(len(machines[0]["b"])).astype(np.float64))
    for layer, m in zip(stack.layers_, machines, strict=True):
        layer._state.params.update({k: v.copy() for k, v in m.items()})
        layer._forget()
    return stack


def log_q(x: np.ndarray, h: np.ndarray, m: dict[str, np.ndarray]) -> np.ndarray:
    """log p(h|x) of every pair, shape (len(x), len(h))."""
    a = x @ m["W"] + m["c"]
    return a @ h.T - np.logaddexp(0, a).sum(axis=1, keepdims=True)


def flipped(m: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The machine upside down."""
    return {"W": m["W"].T, "b": m["c"], "c": m["b"]}


def log_marginal(m: dict[str, np.ndarray]) -> np.ndarray:
    """log p(x) of every state of a machine's visible units."""
    x, h = oracles.states(len(m["b"])), oracles.states(len(m["c"]))
    joint = (x @ m["b"])[:, None] + h @ m["c"] + x @ m["W"] @ h.T
    return logsumexp(joint, axis=1) - logsumexp(joint)


def log_p(machines: list[dict[str, np.ndarray]]) -> np.ndarray:
    """log p(x) of every visible state of the generative model: the top machine, then down."""
    log_h = log_marginal(machines[-1])
    for m in reversed(machines[:-1]):
        x, h = oracles.states(len(m["b"])), oracles.states(len(m["c"]))
        log_h = logsumexp(log_q(h, x, flipped(m)).T + log_h, axis=1)
    return log_h


def bound(machines: list[dict[str, np.ndarray]]) -> np.ndarray:
    """E_q[log p(x, h1, …) - log q(h1, …|x)] of every visible state."""
    first, *rest = machines
    if not rest:
        return log_marginal(first)
    x, h = oracles.states(len(first["b"])), oracles.states(len(first["c"]))
    up, down = log_q(x, h, first), log_q(h, x, flipped(first)).T
    return (np.exp(up) * (down - up + bound(rest))).sum(axis=1)


def net(depth: int) -> list[dict[str, np.ndarray]]:
    return [machine(SIZES[i], SIZES[i + 1], i) for i in range(depth)]


def test_a_tied_second_layer_leaves_the_likelihood_as_it_was() -> None:
    """For every draw of h, not on average: to 1e-10, energies being of order 10."""
    m = machine(5, 4, 0)
    stack = planted([m, flipped(m)])
    x = oracles.states(5).astype(np.float64)
    exact = log_marginal(m)
    np.testing.assert_allclose(stack.layers_[0].score_samples(x), exact, atol=1e-10)
    for seed in range(5):
        got = stack.score_samples(x, n_draws=1, random_state=seed)
        np.testing.assert_allclose(got, exact, atol=1e-10)
    np.testing.assert_allclose(bound([m, flipped(m)]), exact, atol=1e-10)
    stack.layers_[1]._state.params["b"] += 0.1
    stack.layers_[1]._forget()
    off = stack.score_samples(x, n_draws=1) - exact
    assert np.abs(off).max() > 0.01


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_scores_are_the_variational_bound(depth: int) -> None:
    """Means of 4000 draws for each of 16 rows: within errors of the enumerated bound, false alarm
    1e-6 for all, and the bound is below log p(x), which is outside the errors (except for one
    machine, whose score is exact)."""
    n, machines = 4000, net(depth)
    stack = planted(machines)
    x = oracles.states(4).astype(np.float64)
    scores = stack.score_samples(np.repeat(x, n, axis=0), n_draws=1).reshape(16, n)
    mean, error = scores.mean(axis=1), scores.std(axis=1) / np.sqrt(n)
    wanted, exact = bound(machines), log_p(machines)
    sigmas = norm.isf(ALARM / 2 / 16)
    assert (np.abs(mean - wanted) <= sigmas * error + 1e-10).all()
    assert (wanted <= exact + 1e-10).all() and (mean - sigmas * error <= exact + 1e-10).all()
    assert logsumexp(exact) == pytest.approx(0, abs=1e-10)
    if depth > 1:
        assert (mean + sigmas * error < exact).any()


def test_more_draws_are_the_mean_of_draws() -> None:
    """Unbiased with an error that falls as the root of their number: variances of 300 estimates
    from one and from 16 draws differ 16-fold, within a factor 2 (15 errors of either)."""
    stack = planted(net(2))
    x = np.repeat(oracles.states(4)[6:7].astype(np.float64), 300, axis=0)
    one = stack.score_samples(x, n_draws=1).var()
    many = stack.score_samples(x, n_draws=16).var()
    assert 8 < one / many < 32
    assert stack.score(x) == stack.score_samples(x).mean() == stack.score_samples(x, 10).mean()
    assert stack.score_samples(x, 1)[0] != stack.score_samples(x, 1, random_state=5)[0]
    with pytest.raises(ValueError, match="n_draws must be an integer >= 1, got 0"):
        stack.score_samples(x, 0)


def chi2_log_p(x: np.ndarray, log_p: np.ndarray) -> float:
    counts = np.bincount((x @ (1 << np.arange(x.shape[1]))).astype(int), minlength=len(log_p))
    expected = len(x) * np.exp(log_p)
    assert expected.min() > 5
    return float(chi2.logsf(((counts - expected) ** 2 / expected).sum(), len(log_p) - 1))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_draws_have_the_distribution_of_the_net(depth: int) -> None:
    """Pearson's χ² over all 16 states of 20,000 chains of 200 steps, false alarm 1e-6; those of the
    lowest machine alone are another distribution, and so are draws without the chains' steps."""
    machines = net(depth)
    stack = planted(machines)
    truth = log_p(machines)
    draws = stack.sample(20_000, n_steps=200)
    assert draws.shape == (20_000, 4) and draws.dtype == np.float64
    assert chi2_log_p(draws, truth) > np.log(ALARM)
    np.testing.assert_array_equal(stack.sample(5, n_steps=3), stack.sample(5, n_steps=3))
    if depth > 1:
        assert chi2_log_p(draws, log_marginal(machines[0])) < np.log(ALARM)
    stack.layers_[-1]._state.carry["chain/h"] = np.zeros((1, SIZES[depth]))
    assert chi2_log_p(stack.sample(20_000, n_steps=0), truth) < np.log(ALARM)


def test_the_pass_down_has_noise_of_its_own() -> None:
    """With machines that do not listen (W = 0) the layers are independent coins; noise shared with
    the chains of the top would make them equal. The correlation of 20,000 pairs has error 0.007."""
    flat = {"W": np.zeros((3, 3)), "b": np.zeros(3), "c": np.zeros(3)}
    stack = planted([flat, flat, flat])
    for steps in (0, 1, 2):
        top = stack.layers_[-1].sample(20_000, n_steps=steps, random_state=0)
        x = stack.sample(20_000, n_steps=steps, random_state=0)
        between = np.corrcoef(top.T, x.T)[:3, 3:]
        assert np.abs(between).max() < norm.isf(ALARM / 2 / 27) / np.sqrt(20_000)
    shared = np.corrcoef(top[:, 0], top[:, 0])[0, 1]
    assert shared == pytest.approx(1)


def test_draws_of_a_gaussian_layer_have_its_moments() -> None:
    """Means of 20,000 rows against E_h[b + Wh] of the top machine's exact states, false alarm 1e-6;
    the deviations are those of the data's model, not of the mean of x alone."""
    stack = fitted("gaussian below")[0]
    below, top = stack.layers_
    x = stack.sample(20_000, n_steps=100)
    p_h = np.exp(log_marginal({k: top.params_[k] for k in "Wbc"}))
    means = below.inverse_transform(oracles.states(6).astype(np.float64))
    wanted = p_h @ means
    var = below.variances_ + p_h @ (means - wanted) ** 2
    assert (np.abs(x.mean(axis=0) - wanted) < norm.isf(ALARM / 16) * np.sqrt(var / 20_000)).all()
    np.testing.assert_allclose(x.var(axis=0), var, rtol=0.2)  # 20 errors of √(2/20,000)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_the_second_layer_raises_the_bound(seed: int) -> None:
    """From a tied second layer, where the bound is the log-likelihood of the first one (trained by
    CD, whose p(h) is not what data give), by exact gradients on fresh bits of the codes: bars and
    stripes, all by enumeration. It rises (measured: 0.03, 0.60, 0.36 nats); an untrained second
    layer costs more than it gives.
    """
    X = np.tile(oracles.bars_and_stripes(3), (10, 1)).astype(np.float64)
    steps = {"n_epochs": 1000, "batch_size": 160, "optimizer": SGD(0.3, momentum=0.9)}
    few = {"n_epochs": 1, "batch_size": 160, "optimizer": SGD(0.1, momentum=0.9)}
    second = MaximumLikelihood(batch_transform=Binarize(), **few)
    layers = [RBM(6, trainer=CD(**steps)), RBM(9, trainer=second, centered=False)]
    stack = DeepBeliefNet(layers, random_state=seed).fit(X)
    lower, upper = stack.layers_
    m = {k: lower.params_[k] for k in "Wbc"}
    index = (X[:16] @ (1 << np.arange(9))).astype(int)
    alone = log_marginal(m)[index].mean()
    assert alone == pytest.approx(lower.score(X[:16]), abs=1e-10)
    assert bound([m, {k: upper.params_[k] for k in "Wbc"}])[index].mean() < alone
    upper._state.params.update({k: v.copy() for k, v in flipped(m).items()})
    for _ in range(300):
        upper.partial_fit(lower.transform(X))
    gained = bound([m, {k: upper.params_[k] for k in "Wbc"}])[index].mean() - alone
    assert gained > 0


# ---------------------------------------------------------------- scikit-learn, files, devices


# `score_samples` of a belief net is an estimate from draws, which every row has of its own.
ESTIMATED = {
    f"check_methods_{kind}_invariance": "score_samples is estimated from draws"
    for kind in ("sample_order", "subset")
}


@pytest.mark.filterwarnings("ignore::energyscape.errors.DataRangeWarning")
@pytest.mark.filterwarnings("ignore::energyscape.errors.SamplerWarning")
@parametrize_with_checks(
    [
        StackedAutoEncoder([AutoEncoder(3, **STEPS), AutoEncoder(2, **STEPS)]),
        DeepBeliefNet([RBM(3, **CHAINS), RBM(2, **CHAINS)], features="all"),
    ],
    expected_failed_checks=lambda estimator: ESTIMATED if hasattr(estimator, "sample") else {},
)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@each_stack
def test_stacks_are_cloned_pickled_and_saved(name: str, tmp_path: Any) -> None:
    stack, X = fitted(name, features="all")
    stack.save(tmp_path / "stack.h5")
    for again in (
        pickle.loads(pickle.dumps(stack)),
        energyscape.load(tmp_path / "stack.h5"),
        clone(stack).fit(X),
    ):
        assert repr(again) == repr(stack) and again.n_features_in_ == 8 and again.seed_ == 7
        np.testing.assert_array_equal(again.transform(X), stack.transform(X))
        np.testing.assert_array_equal(again.reconstruct(X), stack.reconstruct(X))
        np.testing.assert_array_equal(again.unroll().reconstruct(X), stack.unroll().reconstruct(X))


def test_stacks_of_defaults_have_two_layers() -> None:
    X = bits(40).astype(np.float32)
    for stack in (StackedAutoEncoder(), DeepBeliefNet()):
        assert [layer.n_components for layer in stack.default_layers()] == [256, 256]
    trainer = Denoising(n_epochs=1)
    layers = [layer.set_params(trainer=trainer) for layer in StackedAutoEncoder().default_layers()]
    assert StackedAutoEncoder(layers).fit(X).transform(X).shape == (40, 256)


def test_rows_on_disk_are_taken(tmp_path: Any) -> None:
    h5py = pytest.importorskip("h5py")
    plain, X = fitted("rbms")
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        rows = file.create_dataset("x", data=X)
        stack = clone(plain).fit(rows)
        np.testing.assert_array_equal(stack.transform(rows), stack.transform(X))


@pytest.mark.parametrize(
    "name", ["rbms", "gaussian below", "squared", "cross-entropy", "pca below"]
)
def test_a_stack_on_the_device(name: str, fake_cupy: Any) -> None:
    """Everything stays there, nothing mixes, and what is handed out is where the rows were."""
    model, X = STACKS[name]
    x = fake_cupy.asarray(X.astype(np.float32))
    stack = clone(model).set_params(random_state=0, features="all").fit(x)
    H = stack.transform(x)
    assert isinstance(H, fake_cupy.ndarray) and H.dtype == np.float32
    assert isinstance(stack.reconstruct(x), fake_cupy.ndarray)
    deep = stack.unroll(Reconstruction(n_epochs=1))
    back = to_host(deep.reconstruct(x)), to_host(stack.reconstruct(x))
    np.testing.assert_allclose(*back, rtol=1e-3, atol=1e-3)
    assert isinstance(deep.resume(x).transform(x), fake_cupy.ndarray)
    if hasattr(stack, "sample"):
        assert isinstance(stack.sample(3, n_steps=2), fake_cupy.ndarray)
        assert isinstance(stack.score_samples(x, 2), fake_cupy.ndarray)
    again = pickle.loads(pickle.dumps(stack))
    np.testing.assert_allclose(again.transform(X), to_host(H), rtol=1e-3, atol=1e-3)


def test_a_mixture_is_no_layer_of_a_chain() -> None:
    with pytest.raises(CapabilityError, match="unrolling layer 1"):
        StackedAutoEncoder([GaussianMixture(2)]).fit(reals()).unroll()


def test_features_that_are_set_after_the_fit_are_checked_too() -> None:
    X = np.random.default_rng(0).random((40, 6))
    quick = Reconstruction(n_epochs=1)
    stack = StackedAutoEncoder([AutoEncoder(4, trainer=quick), AutoEncoder(3, trainer=quick)])
    stack.fit(X).set_params(features=5)
    with pytest.raises(ValueError, match="features=5, but there are 2 layers"):
        stack.transform(X)


def test_a_boltzmann_machine_of_many_layers_may_only_be_the_top() -> None:
    X, deep = bits(), DeepBoltzmannMachine((6, 4), **CHAINS)
    with pytest.raises(CapabilityError, match=r"layer 1 \(DeepBoltz.* several .*only be the top"):
        DeepBeliefNet([deep, RBM(3, **CHAINS)]).fit(X)
    top = DeepBeliefNet([RBM(5, **CHAINS), deep], random_state=0).fit(X)
    assert top.sample(3, n_steps=2).shape == (3, 8)
    stack = StackedAutoEncoder([clone(deep).set_params(features="last")]).fit(X)
    with pytest.raises(CapabilityError, match=r"layer 1 .*DeepBoltz.* guesses .* by itself"):
        stack.unroll()


def test_callbacks_of_layers_are_the_users_own() -> None:
    class Count:
        seen = 0

        def __call__(self, model: Any, state: Any, info: Any) -> None:
            self.seen += 1

    count = Count()
    layer = AutoEncoder(3, trainer=Reconstruction(n_epochs=2, callbacks=[count]))
    state = np.random.RandomState(0)
    stack = StackedAutoEncoder([layer, clone(layer).set_params(random_state=state)]).fit(greys())
    assert count.seen == 2 and not hasattr(layer, "seed_") and layer.random_state is None
    again = clone(stack).fit(greys())  # the second layer's generator is not used up
    assert again.layers_[1].seed_ == stack.layers_[1].seed_


def test_layers_that_are_fitted_must_fit_the_rows() -> None:
    frozen = FrozenEstimator(RBM(5, **CHAINS).fit(bits(d=7)))
    with pytest.raises(ValueError, match="X has 8 features, but RBM is expecting 7"):
        StackedAutoEncoder([frozen]).fit(bits())
    with pytest.raises(ValueError, match="layers must be a sequence of models, got AutoEncoder"):
        StackedAutoEncoder(AutoEncoder(3)).fit(bits())


def test_an_unrolled_stack_keeps_the_names_of_features() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(greys(), columns=list("abcdefgh"))
    deep = StackedAutoEncoder([AutoEncoder(3, **STEPS)]).fit(frame).unroll()
    assert list(deep.feature_names_in_) == list("abcdefgh")
    deep.transform(frame)
