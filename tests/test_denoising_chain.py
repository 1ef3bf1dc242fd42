"""The chain of a denoising auto-encoder has the distribution that can be worked out for it."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from scipy.linalg import solve_discrete_lyapunov
from streams import ReplayStream

from energyscape.backend import Purpose, stream, to_host
from energyscape.corruptions import GaussianNoise, Masking
from energyscape.errors import CapabilityError, DivergenceError
from energyscape.models import RBM
from energyscape.models.autoencoder import AutoEncoder
from energyscape.registry import from_tree, to_tree
from energyscape.samplers import AIS, Bridge, DenoisingChain, Gaussian, ParallelTempering, Posterior
from energyscape.samplers.wrappers import Clamped
from energyscape.trainers import CD, Denoising, Reconstruction

D, SIGMA, N = 3, 0.7, 20_000


def linear() -> tuple[AutoEncoder, Any]:
    """Reconstruction x → m + A(x - m) with A = W W', noise of the given residuals."""
    rng = np.random.default_rng(5)
    axes = np.linalg.qr(rng.standard_normal((D, D)))[0]
    params = {
        "W": axes * np.sqrt([0.9, 0.6, 0.2]),
        "c": np.zeros(D),
        "b": np.zeros(D),
        "mean": np.array([1.0, -2.0, 5.0]),
        "scale": np.array(2.0),
        "residual": np.array([0.3, 0.1, 0.5]),
    }
    return AutoEncoder(D, activation="identity"), params


def stationary(params: Any) -> np.ndarray:
    """C = A(C + σ²)A' + diag(residual)·scale²."""
    A = params["W"] @ params["W"].T
    own = np.diag(params["residual"]) * params["scale"] ** 2
    return solve_discrete_lyapunov(A, SIGMA**2 * A @ A.T + own)


def deviations(x: np.ndarray, mean: np.ndarray, C: np.ndarray) -> np.ndarray:
    """Means and second moments of independent normal rows, in units of their errors."""
    n, y = len(x), x - mean
    first = y.mean(axis=0) / np.sqrt(np.diag(C) / n)
    spread = np.sqrt((np.outer(np.diag(C), np.diag(C)) + C * C) / n)
    second = (y.T @ y / n - C) / spread
    return np.concatenate([first, second[np.triu_indices(len(C))]])


def test_a_linear_chain_has_its_stationary_covariance() -> None:
    """From exact draws, chains stay; from far away they arrive: 9 statistics each within 6
    errors (false alarm 4e-8), the slowest mode decays by 0.9 a step, so by 1e-9 in 200."""
    model, params = linear()
    mean, C, target = params["mean"], stationary(params), model.target(params)
    chain = DenoisingChain(GaussianNoise(SIGMA))
    start = stream(1, Purpose.SAMPLE).normal((N, D), np.float64) @ np.linalg.cholesky(C).T + mean
    stayed = chain.run(target, start, 5, stream(2, Purpose.SAMPLE)).x
    assert (np.abs(deviations(stayed, mean, C)) < 6).all()
    far = chain.run(target, np.full((N, D), 3.0), 200, stream(3, Purpose.SAMPLE)).x
    assert (np.abs(deviations(far, mean, C)) < 6).all()
    # Other noise, or means for draws (the usual slip), have another distribution.
    other = DenoisingChain(GaussianNoise(1.2 * SIGMA)).run(target, start, 5, stream(2, 5, 0)).x
    assert np.abs(deviations(other, mean, C)).max() > 6
    params = params | {"residual": np.zeros(D)}
    means = chain.run(model.target(params), start, 5, stream(2, 5, 0)).x
    assert np.abs(deviations(means, mean, C)).max() > 6


def test_held_values_stay_and_the_rest_follows_them() -> None:
    """With x_0 held at v: y' = A_fr (ỹ) + A_f0 (v + σξ), another linear chain, exactly known."""
    model, params = linear()
    A, s2 = params["W"] @ params["W"].T, params["scale"] ** 2
    held = np.array([True, False, False])
    values = np.array([4.0, np.nan, np.nan])
    free, v = A[1:, 1:], 4.0 - params["mean"][0]
    noise = SIGMA**2 * A[1:] @ A[1:].T + np.diag(params["residual"][1:]) * s2
    C = solve_discrete_lyapunov(free, noise)
    mean = params["mean"][1:] + np.linalg.solve(np.eye(2) - free, A[1:, 0] * v)
    target = Clamped(model.target(params), held, np.where(held, values, 0.0))
    chain = DenoisingChain(GaussianNoise(SIGMA))
    x = chain.run(target, np.zeros((N, D)), 200, stream(4, Purpose.SAMPLE)).x
    assert (x[:, 0] == 4.0).all()
    assert (np.abs(deviations(x[:, 1:], mean, C)) < 6).all()  # 5 statistics: 1e-8
    let_go = chain.run(model.target(params), np.zeros((N, D)), 200, stream(4, 5, 0)).x
    assert np.abs(deviations(let_go[:, 1:], mean, C)).max() > 6


def test_a_step_is_corrupt_then_draw() -> None:
    """Bits from masked bits, by the numbers of one recorded stream."""
    x = (np.random.default_rng(6).random((20, 4)) < 0.5).astype(float)
    model = AutoEncoder(3, loss="cross_entropy")
    params = model.init_params(x, stream(0, Purpose.INIT))
    rng = ReplayStream(np, 8)
    seen = x * (rng.uniform(x.shape, np.float32) >= 0.4)
    r = model.decode(params, model.encode(params, seen))
    wanted = (rng.uniform(x.shape, np.float64) < r).astype(float)
    got = DenoisingChain(Masking(0.4)).run(model.target(params), x, 1, ReplayStream(np, 8)).x
    np.testing.assert_array_equal(got, wanted)


def fitted(trainer: Any = None, loss: str = "squared") -> AutoEncoder:
    x = np.random.default_rng(7).random((60, 4))
    trainer = Denoising(GaussianNoise(0.2), n_epochs=3) if trainer is None else trainer
    return AutoEncoder(3, loss=loss, trainer=trainer, random_state=0).fit(x)


def test_samples_come_from_the_chain_of_the_training() -> None:
    model = fitted()
    one = model.sample(5, n_steps=7)
    chain = DenoisingChain(GaussianNoise(0.2))
    np.testing.assert_array_equal(one, model.sample(5, n_steps=7, sampler=chain))
    assert (one != model.sample(5, n_steps=7, sampler=DenoisingChain())).any()
    np.testing.assert_array_equal(one, pickle.loads(pickle.dumps(model)).sample(5, n_steps=7))
    bits = fitted(Denoising(n_epochs=2), "cross_entropy").sample(5, n_steps=3)
    assert set(np.unique(bits)) <= {0, 1}
    mask = np.array([False, True, False, True])
    values = np.array([np.nan, 0.25, np.nan, 0.5])
    painted = model.sample(5, n_steps=7, clamp=(mask, values))
    np.testing.assert_array_equal(painted[:, mask], np.tile(values[mask], (5, 1)))


def test_what_it_cannot_move_is_refused() -> None:
    rbm = RBM(3, trainer=CD(n_epochs=1), random_state=0).fit(np.eye(4))
    model = fitted()
    words = r"DenoisingChain cannot sample RBM: it needs a model that reconstructs, which RBM does"
    with pytest.raises(CapabilityError, match=words):
        rbm.sample(2, n_steps=1, sampler=DenoisingChain())
    with pytest.raises(CapabilityError, match=r"dynamics have no temperature, and beta is not 1"):
        model.sample(2, n_steps=1, beta=0.5)
    with pytest.raises(CapabilityError, match=r"which AutoEncoder does not"):
        target = Posterior(model.target(model.params_), np.zeros(4), 1.0)
        DenoisingChain().run(target, np.zeros((2, 4)), 1, 0)
    bridge = Bridge(Gaussian(np.zeros(4), np.eye(4)), model.target(model.params_))
    with pytest.raises((CapabilityError, ValueError), match=r"DenoisingChain"):
        AIS(10, 5, sampler=DenoisingChain()).run(bridge, stream(0, Purpose.PARTITION))
    with pytest.raises(CapabilityError, match=r"ParallelTempering"):
        model.sample(2, n_steps=1, sampler=ParallelTempering(DenoisingChain(), n_temperatures=3))
    for wrong in (0.3, GaussianNoise):
        with pytest.raises(ValueError, match=r"DenoisingChain\.corruption must be a corruption"):
            model.sample(2, n_steps=1, sampler=DenoisingChain(wrong))


def test_it_is_stored_and_says_what_it_is() -> None:
    chain = DenoisingChain(Masking(0.1))
    assert repr(from_tree(to_tree(chain))) == repr(chain)
    assert not chain.invariant and not chain.reversible
    assert not isinstance(fitted(Reconstruction(n_epochs=1)).default_sampler(), DenoisingChain)


def test_both_paths_agree_and_do_not_wait(cupy: Any) -> None:
    """Ten steps from equal noise, to rounding."""
    model, params = linear()
    host = np.zeros((6, D))
    ends = []
    for xp in (np, cupy):
        p = {k: xp.asarray(v) for k, v in params.items()}
        chain = DenoisingChain(GaussianNoise(SIGMA))
        x = chain.run(model.target(p), xp.asarray(host), 10, ReplayStream(xp, 9)).x
        ends.append(to_host(x))
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-12)


def test_chains_that_run_away_are_not_given_for_samples() -> None:
    X = np.random.default_rng(0).standard_normal((60, 3))
    model = AutoEncoder(3, activation="relu", trainer=Denoising(n_epochs=1), random_state=0).fit(X)
    model._state.params["W"] *= 2  # a map that doubles what it is given, at the least
    model._forget()
    assert np.isfinite(model.sample(5, n_steps=1)).all()
    with pytest.raises(DivergenceError, match="chains of AutoEncoder ran away"):
        model.sample(5, n_steps=200)
