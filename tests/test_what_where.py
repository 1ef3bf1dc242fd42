"""What and where: inference against closed forms, planted content that moves, what users are told.

That descent rests at a minimum nearby, and that gradients are right in the dictionary, the encoder
and x, is asked of the rows of tests/cases.py by test_laws.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.optimize import brentq
from sklearn.exceptions import ConvergenceWarning

from energyscape.errors import CapabilityError
from energyscape.models import WhatWhere
from energyscape.pools import best_swap, pooling, torus_pools
from energyscape.solvers.product import next_what, product_codes, simple_codes
from energyscape.trainers import PCD, EnergyLoss, Prediction

F64 = np.float64
K, G, N = 6, 4, 24  # pools, atoms of each, features


def planted(rows=400, t=4, seed=0, noise=0.03):
    """(atoms, clips, what, numbers of the atoms that are on): two pools of a clip are on all the
    time, each with one atom at a time, which changes."""
    rng = np.random.default_rng(seed)
    D = np.linalg.qr(rng.standard_normal((N, N)))[0]
    what = np.zeros((rows, K))
    np.put_along_axis(what, rng.random((rows, K)).argsort(axis=1)[:, :2], 1.0, axis=1)
    what *= rng.uniform(1, 2, what.shape)
    at = rng.integers(0, G, (rows, t, K))
    z = (what[:, None, :, None] * (at[..., None] == np.arange(G))).reshape(rows, t, N)
    return D, z @ D.T + noise * rng.standard_normal((rows, t, N)), what, at


def energy(z, c, x, D, P, lam):
    """E at alpha = 0 of z and c."""
    w = c @ P
    paid = np.where(w[:, None] > 0, z / np.where(w > 0, w, 1)[:, None], np.where(z > 0, np.inf, 0))
    rest = ((x - z @ D.T) ** 2).sum(axis=(1, 2))
    return 0.5 * rest + lam * (x.shape[1] * c.sum(axis=1) + paid.sum(axis=(1, 2)))


def random_problem(P, seed=0, n=7, t=3, d=5):
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((d, P.shape[1]))
    D /= np.linalg.norm(D, axis=0)
    return D, rng.standard_normal((n, t, d))


# ---------------------------------------------------------------- inference


def test_what_is_the_root_of_a_pools_mean_activity():
    P = pooling(2, 6)
    z = np.random.default_rng(0).random((5, 4, 6)) * (np.arange(6) != 2) * (np.arange(6) != 3)
    c = next_what(z, np.full((5, 3), 0.7), P)
    np.testing.assert_allclose(c, np.sqrt(z.sum(axis=1) @ P.T / 4), rtol=1e-14)
    x, D, lam = np.zeros((5, 4, 6)), np.eye(6), 0.3
    paid = energy(z, c, x, D, P, lam) - 0.5 * (z**2).sum(axis=(1, 2))
    pools = (z.sum(axis=1) @ P.T) / 4
    np.testing.assert_allclose(paid, 2 * lam * 4 * np.sqrt(pools).sum(axis=1), rtol=1e-13)
    for factor in (0.9, 0.999, 1.001, 1.1):  # no other is better
        assert (energy(z, factor * c, x, D, P, lam) > energy(z, c, x, D, P, lam)).all()


def test_what_of_overlapping_pools_comes_to_rest_at_its_best():
    P = torus_pools(2, 3, 2, sigma=1.0)
    z = np.random.default_rng(1).random((4, 2, 6))
    x, D = np.zeros_like(z), np.eye(6)
    c, last = np.full((4, 6), 0.5), np.inf
    for _ in range(2000):
        c = next_what(z, c, P)
        now = energy(z, c, x, D, P, 0.3)
        assert (now <= last + 1e-12).all()
        last = now
    # The problem is convex in c: the slope is 0 where c is not, and never negative.
    s, w = z.sum(axis=1), c @ P
    slope = 2 - (s / w**2) @ P.T
    assert slope.min() > -1e-3 and np.abs(slope * c).max() < 1e-3


@pytest.mark.parametrize(
    "P", [pooling(2, 6), torus_pools(2, 3, 2)], ids=["disjoint", "overlapping"]
)
def test_no_step_of_inference_raises_the_energy(P):
    D, x = random_problem(P)
    lam, last, first = 0.05, np.inf, None
    for steps in range(1, 60):
        h = product_codes(D, x, P, lam, tol=1e-300, max_iter=steps).h
        now = energy(simple_codes(h, P), h[:, : len(P)], x, D, P, lam)
        assert (now <= last + 1e-12).all()
        last, first = now, now if first is None else first
    assert (last < first).all()
    with pytest.raises(ValueError, match="max_iter must be an integer >= 1, got 0"):
        product_codes(D, x, P, lam, max_iter=0)


def test_a_lone_code_is_the_root_of_its_cubic_and_comes_on_where_it_should():
    lam = 0.4
    on = 3 * (lam / 2) ** (2 / 3)
    x = np.array([0.5, 0.99, 1.01, 1.5, 3.0]) * on
    clips = np.repeat(x[:, None, None], 3, axis=1)
    found = product_codes(np.eye(1), clips, np.eye(1), lam, tol=1e-12, max_iter=100_000)
    z = simple_codes(found.h, np.eye(1))
    assert (z[:2] == 0).all() and (found.h[:2] == 0).all()
    for value, code in zip(x[2:], z[2:], strict=True):
        root = brentq(lambda z, a=value: z - a + lam / np.sqrt(z), value / 3, value)
        np.testing.assert_allclose(code, root, rtol=1e-9)
    c, where = found.h[2:, 0], found.h[2:, 1:]
    np.testing.assert_allclose(c[:, None] * where, z[2:, :, 0], rtol=1e-12)
    np.testing.assert_allclose(c, where[:, 0], rtol=1e-9)  # one λ for both


def test_frames_and_pools_have_no_order_and_scale_is_only_scale():
    P = pooling(2, 6)
    D, x = random_problem(P, n=20)
    lam, settings = 0.05, {"tol": 1e-13, "max_iter": 20_000}
    h = product_codes(D, x, P, lam, **settings).h
    z, c = simple_codes(h, P), h[:, :3]
    assert 0.1 < (c > 0).mean() < 1
    turned = product_codes(D, x[:, ::-1].copy(), P, lam, **settings).h
    np.testing.assert_allclose(turned[:, :3], c, atol=1e-9)
    np.testing.assert_allclose(simple_codes(turned, P), z[:, ::-1], atol=1e-9)
    order = np.array([4, 5, 1, 0, 2, 3])  # pools 2, 0, 1
    moved = product_codes(D[:, order], x, P, lam, **settings).h
    np.testing.assert_allclose(moved[:, :3], c[:, [2, 0, 1]], atol=1e-9)
    np.testing.assert_allclose(simple_codes(moved, P), z[..., order], atol=1e-9)
    large = product_codes(D, 100 * x, P, 1000 * lam, **settings).h
    np.testing.assert_allclose(large[:, :3], 10 * c, atol=1e-8)
    start = h.copy()
    start.flags.writeable = False
    again = product_codes(D, x, P, lam, start=start, **settings).h
    np.testing.assert_allclose(again, h, atol=1e-9)
    twice = product_codes(D, np.concatenate([x, x], axis=1), P, lam, **settings).h
    np.testing.assert_allclose(twice[:, :3], c, atol=1e-9)  # a longer clip of the same


def test_pools_that_fade_do_not_become_infinite():
    """c of a pool whose atoms another one explains falls by a factor at each step, to underflow."""
    P = np.array([[1, 1, 0.5, 0], [0, 0.5, 1, 1]])
    x = np.tile(np.array([5.0, 4, 0, 0]), (1, 2, 1))
    for dtype in (np.float32, F64):
        args = np.eye(4, dtype=dtype), x.astype(dtype), P.astype(dtype), 1.0
        found = product_codes(*args, tol=1e-300, max_iter=2000)
        assert np.isfinite(found.h).all() and found.h.dtype == dtype
        assert found.h[0, 0] > 1 and found.h[0, 1] < 1e-6


# ---------------------------------------------------------------- planted content


def test_planted_what_is_constant_and_where_moves():
    D, X, what, at = planted()
    model = WhatWhere(N, pools=G, dictionary=D.T, alpha=0.0, sparsity=0.3, exact=True)
    model.set_params(trainer=EnergyLoss(n_epochs=1, learning_rate=1e-12), random_state=0)
    c, where = model.fit(X).factors(X)
    np.testing.assert_array_equal(c > 0, what > 0)
    np.testing.assert_allclose(c[what > 0] ** 2, what[what > 0], rtol=0.2)
    found = where.reshape(*at.shape, G)
    on = np.broadcast_to(what[:, None] > 0, at.shape)
    np.testing.assert_array_equal(found.argmax(axis=3)[on], at[on])
    assert (np.sort(found, axis=3)[..., :-1] <= 0.1).all()
    # From single frames: the same content, although nothing holds it.
    singles = np.stack([model.transform(X[:, [i]]) for i in range(4)])
    np.testing.assert_array_equal(singles > 0, np.broadcast_to(what > 0, singles.shape))
    assert np.abs(singles / singles.mean(axis=0).clip(1e-9) - (what > 0)).max() < 0.2


def pure_pools(model, D):
    """Pools whose atoms are all of one pool of the truth."""
    pool = (model.components_ @ D).argmax(axis=1) // G
    return sum(len(set(pool[row > 0])) == 1 for row in model.pools_)


def learned(X):
    trainer = EnergyLoss(n_epochs=20, batch_size=50)
    settings = {"pools": G, "sparsity": 0.3, "tol": 1e-2, "random_state": 0}
    return WhatWhere(N, trainer=trainer, **settings).fit(X)


@pytest.fixture(scope="module")
def moving():
    D, X, *_ = planted(rows=600, seed=1)
    X = X.astype(np.float32)
    return learned(X), X, D


def test_pools_of_what_moves_are_learned(moving):
    """Three pools in six may be mixed, and four atoms missed. Where 24 atoms are thrown into pools
    of 4 one is pure with a chance of 3·2·1/(23·22·21), and three of six with less than 1e-8."""
    model, _, D = moving
    assert (np.sort((model.components_ @ D).max(axis=0))[4:] > 0.95).all()
    assert pure_pools(model, D) >= 3


def test_pools_of_frames_that_are_unrelated_are_not_learned(moving):
    """Three pure pools would be there by chance with a probability below 1e-8."""
    _, X, D = moving
    frames = X.reshape(-1, N)[np.random.default_rng(2).permutation(4 * len(X))]
    assert pure_pools(learned(frames.reshape(X.shape)), D) <= 2


def test_codes_of_the_encoder_are_near_those_of_inference(moving):
    model, X, _ = moving
    guessed = model.transform(X)
    exact = model.forward(model.params_, X).codes.h[:, :K]
    # The share of |c|² that is missed; 1 for an encoder that is silent.
    assert ((guessed - exact) ** 2).sum() < 0.1 * (exact**2).sum()


def test_pools_that_are_given_stay_if_asked_to():
    X = planted(rows=100)[1]
    P = np.random.default_rng(3).permutation(pooling(G, N).T).T
    P.flags.writeable = False
    model = WhatWhere(N, pools=P, sparsity=0.5, learn_pools=False, trainer=EnergyLoss(3, 10))
    np.testing.assert_array_equal(model.fit(X).pools_, P)
    learned = model.set_params(learn_pools=True).fit(X).pools_
    assert (learned != P).any() and (learned.sum(axis=1) == G).all()
    assert (learned.sum(axis=0) == 1).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_best_swap_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    P, noise = torus_pools(3, 3, 2, stride=1), rng.standard_normal((9, 9))
    together = noise + noise.T

    def gained(P):
        return (P.T @ P * together * (1 - np.eye(9))).sum() / 2

    found = best_swap(P, together, 0.0)
    pairs = [(i, j) for i in range(9) for j in range(i)]
    every = []
    for i, j in pairs:
        order = np.arange(9)
        order[[i, j]] = j, i
        every.append(gained(P[:, order]))
    assert gained(found) == pytest.approx(max(every), abs=1e-12)
    gain = gained(found) - gained(P)
    np.testing.assert_array_equal(best_swap(P, together, gain + 1e-9), P)
    np.testing.assert_array_equal(best_swap(P, together, gain - 1e-9), found)


# ---------------------------------------------------------------- the face


@pytest.fixture(scope="module")
def fitted():
    X = planted(rows=200)[1].astype(np.float32)
    trainer = EnergyLoss(n_epochs=3)
    return WhatWhere(N, pools=G, sparsity=0.5, trainer=trainer, random_state=0).fit(X), X


def test_what_alone_takes_clips_of_any_length(fitted):
    model, X = fitted
    what, where = model.factors(X)
    assert what.shape == (200, K) and where.shape == (200, 4, N) and what.dtype == np.float32
    np.testing.assert_array_equal(model.transform(X), what)
    assert model.transform(X[:, :1]).shape == (200, K)
    assert model.factors(X[:5, :3])[1].shape == (5, 3, N)
    assert model.energy(X[:, :2]).dtype == F64
    assert next(iter(model.get_feature_names_out())) == "whatwhere0"
    assert not hasattr(model, "decode")
    with pytest.raises(CapabilityError, match="inverse_transform needs decode"):
        model.inverse_transform(what)


def test_images_are_generated_by_moving_where(fitted):
    model, X = fitted
    what, where = model.factors(X)
    z = (what @ model.pools_)[:, None] * where
    clips = model.generate(what, where)
    np.testing.assert_allclose(clips, z @ model.components_, atol=1e-5)
    np.testing.assert_allclose(model.reconstruct(X), clips, atol=1e-5)
    moved = model.generate(what, where[:, [3, 0, 1, 2, 0]])
    np.testing.assert_allclose(moved, clips[:, [3, 0, 1, 2, 0]], atol=1e-5)
    np.testing.assert_allclose(model.generate(2 * what, where), 2 * clips, atol=1e-4)


def test_both_factors_come_back_as_clips(fitted):
    X = fitted[1]
    model = WhatWhere(**fitted[0].get_params(deep=False)).set_params(features="both", exact=True)
    H = model.fit(X).transform(X)
    assert H.shape == (200, K + 4 * N) == (200, len(model.get_feature_names_out()))
    what, where = model.factors(X)
    np.testing.assert_array_equal(H, np.hstack([what, where.reshape(200, -1)]))
    np.testing.assert_allclose(model.inverse_transform(H), model.reconstruct(X), atol=1e-5)
    assert (model.dual_gap(X) <= model.tol).all()
    with pytest.raises(ValueError, match="clips of 4 frames, X has clips of 2"):
        model.transform(X[:, :2])
    assert model.factors(X[:, :2])[1].shape == (200, 2, N)


def test_codes_that_were_not_reached_are_said(fitted):
    model, X = fitted
    hasty = WhatWhere(**model.get_params(deep=False)).set_params(max_iter=1, exact=True)
    with pytest.warns(ConvergenceWarning, match="did not reach tol"):
        hasty.fit(X)
    with pytest.warns(ConvergenceWarning, match=r"of 200 rows did not reach tol=0.0001 in max"):
        hasty.transform(X)
    assert (hasty.dual_gap(X) > hasty.tol).any()


def test_chains_are_refused(fitted):
    with pytest.raises(CapabilityError, match="PCD cannot train WhatWhere: the energy of WhatWh"):
        WhatWhere(trainer=PCD()).fit(fitted[1])
    with pytest.raises(CapabilityError, match=r"exp\(-F\) of WhatWhere has no normaliser"):
        fitted[0].sample(3)


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({}, (9, 4), "needs clips (n, t, n_features), X has shape (9, 4); single frames become"),
        ({}, (9, 0, 4), "at least one clip of at least one frame, X has shape (9, 0, 4)"),
        ({}, (0, 2, 4), "at least one clip of at least one frame, X has shape (0, 2, 4)"),
        ({"alpha": -1.0}, (9, 2, 4), "WhatWhere.alpha must be >= 0, got -1.0"),
        ({"sparsity": 0.0}, (9, 2, 4), "WhatWhere.sparsity must be > 0, got 0.0"),
        ({"sparsity": -0.1}, (9, 2, 4), "WhatWhere.sparsity must be > 0, got -0.1"),
        ({"pools": 3}, (9, 2, 4), "pools of 3 do not divide 4 components"),
        ({"pools": [[1, 1, 1, 0]]}, (9, 2, 4), "every component must be in a pool"),
        ({"pools": [[1, 1, 1, 1], [0] * 4]}, (9, 2, 4), "no pool may be empty"),
        ({"pools": [[-1, 1, 1, 1]]}, (9, 2, 4), "pools must be finite and >= 0"),
        ({"features": "where"}, (9, 2, 4), "features must be 'what' or 'both', got 'where'"),
        (
            {"trainer": EnergyLoss(averaging=0.5)},
            (9, 2, 4),
            "set averaging=None, or learn_pools=False",
        ),
        ({"encoder": 3}, (9, 2, 4), "WhatWhere.encoder must be an encoder such as"),
        ({"max_iter": 0}, (9, 2, 4), "WhatWhere.max_iter must be an integer >= 1"),
    ],
)
def test_what_cannot_be_is_said(settings, shape, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        WhatWhere(**settings).fit(np.random.default_rng(0).standard_normal(shape))


def test_codes_and_clips_of_other_shapes_are_refused(fitted):
    model, X = fitted
    what, where = model.factors(X[:3])
    for pair in ((what[:2], where), (what[:, :2], where), (what, where[0]), (what, where[:, :0])):
        with pytest.raises(ValueError, match=r"generates from \(n, 6\) and \(n, t, 24\)"):
            model.generate(*pair)
    with pytest.raises(ValueError, match="frames of 23 features, but WhatWhere is expecting 24"):
        model.transform(X[..., 1:])
    with pytest.raises(ValueError, match="contains NaN or infinity"):
        model.transform(np.where(X > 1, np.nan, X))
    with pytest.raises(ValueError, match="needs clips of numbers"):
        model.transform([[["a"]]])


def test_the_encoder_can_be_taught_afterwards():
    X = planted(rows=200)[1]
    model = WhatWhere(N, pools=G, tol=1e-2, random_state=0, trainer=EnergyLoss(n_epochs=3))
    D = model.fit(X).components_
    later = model.set_params(dictionary=D, trainer=Prediction(n_epochs=5)).fit(X)
    np.testing.assert_allclose(later.components_, D, atol=1e-12)
    errors = later.history_["prediction_train"]
    assert errors[-1] < 0.9 * errors[0]
