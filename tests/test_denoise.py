"""Posterior means of noisy rows against closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from energyscape.backend import Purpose, stream
from energyscape.errors import CapabilityError
from energyscape.models import PCA, RBM, FactorAnalysis, GaussianMixture, McRBM
from energyscape.models.states import binary_states
from energyscape.samplers import HMC, Posterior
from energyscape.trainers import EM, PCD

rng = np.random.default_rng(0)
CENTRES = np.array([[2.0, 0, 0], [-1.5, 1, 1], [0, -2.0, 1]])
MIXING = np.eye(3) + 0.3 * rng.standard_normal((3, 3))
X = CENTRES[rng.integers(0, 3, 900)] + rng.standard_normal((900, 3)) @ MIXING
SIGMA = np.array([2.0, 1.0, 3.0])
Y = X[:80] + SIGMA * rng.standard_normal((80, 3))


def mixture_means(
    Y: np.ndarray, sigma: np.ndarray, log_w: np.ndarray, means: Any, covariances: Any
) -> tuple[np.ndarray, float]:
    """E[x|y] of a mixture of Gaussians, and the mean posterior variance."""
    noise, log_p, parts, inner = np.diag(sigma**2), [], [], []
    for log_weight, m, C in zip(log_w, means, covariances, strict=True):
        log_p.append(log_weight + multivariate_normal(m, C + noise).logpdf(Y))
        gain = C @ np.linalg.inv(C + noise)
        parts.append(m + (Y - m) @ gain.T)
        inner.append(np.diag(C - gain @ C))
    share = np.exp(np.array(log_p) - logsumexp(log_p, axis=0))[:, :, None]
    mean = (share * np.array(parts)).sum(axis=0)
    square = (share * (np.array(parts) ** 2 + np.array(inner)[:, None])).sum(axis=0)
    return mean, float((square - mean**2).mean())


def check(model: Any, wanted: tuple[np.ndarray, float], sigma: Any, **more: Any) -> None:
    """The mean of 300 states is off by a tenth of the posterior variance at most (30 independent
    ones would be, and these are not independent), and noise of another size is seen."""
    mean, variance = wanted
    off = ((model.denoise(Y, sigma, n_steps=300, **more) - mean) ** 2).mean() / variance
    assert off < 0.1, off
    wrong = ((model.denoise(Y, 2 * np.asarray(sigma), n_steps=300, **more) - mean) ** 2).mean()
    assert wrong / variance > 0.2


@pytest.mark.slow
def test_means_of_a_mixture_are_those_of_the_formula() -> None:
    model = GaussianMixture(3, trainer=EM(n_epochs=50), random_state=0).fit(X)
    log_w = np.log(model.weights_)
    for sigma in (SIGMA, np.full(3, 1.5)):
        wanted = mixture_means(Y, sigma, log_w, model.means_, model.covariances_)
        check(model, wanted, sigma if np.ptp(sigma) else 1.5)
        check(model, wanted, sigma, sampler=HMC(10))


def test_means_of_a_gated_model_are_those_of_its_states() -> None:
    """Given its hidden units an McRBM is a Gaussian: all states as one mixture."""
    model = McRBM(3, n_mean_components=2, trainer=PCD(n_epochs=3), random_state=0).fit(X)
    params = model.params_
    h = binary_states(np.arange(32), 5, params["C"])
    precision, pull = model.conditional(params, h)
    s = params["deviation"]
    means = np.linalg.solve(precision, pull[..., None])[..., 0] * s + params["mean_v"]
    log_w = model._state_log_weights(params)
    wanted = mixture_means(Y, SIGMA, log_w, means, np.linalg.inv(precision) * s**2)
    check(model, wanted, SIGMA)


def test_the_container_dtype_and_seed_are_kept() -> None:
    model = GaussianMixture(1, random_state=0).fit(X.astype(np.float32))
    first = model.denoise(Y[:5].astype(np.float32), 1.0, n_steps=5, n_warmup=5)
    assert first.dtype == np.float32 and first.shape == (5, 3)
    again = model.denoise(Y[:5].astype(np.float32), 1.0, n_steps=5, n_warmup=5)
    np.testing.assert_array_equal(first, again)
    other = model.denoise(Y[:5], 1.0, n_steps=5, n_warmup=5, random_state=1)
    assert abs(other - first).max() > 0


def test_a_feature_that_was_not_observed_comes_from_the_prior() -> None:
    """σ = ∞: what is left of it is its mean given the others."""
    C, m = MIXING.T @ MIXING, np.array([1.0, 2.0, 3.0])
    rows = m + np.random.default_rng(1).standard_normal((2000, 3)) @ MIXING
    model = GaussianMixture(1, random_state=0).fit(rows)
    y = np.random.default_rng(2).standard_normal((50, 3)) @ MIXING + m
    target = Posterior(model.target(model.params_), y, np.array([np.inf, 0.5, 0.5]))
    start = np.array(y)
    draws = HMC().run(target, start, 300, stream(0, Purpose.SAMPLE), reducers=[Means()]).reduced[0]
    C = np.cov(rows.T)
    inverse = np.linalg.inv(C[1:, 1:] + 0.25 * np.eye(2))
    wanted = rows.mean(axis=0)[0] + (y[:, 1:] - rows.mean(axis=0)[1:]) @ inverse @ C[1:, 0]
    variance = C[0, 0] - C[0, 1:] @ inverse @ C[1:, 0]
    assert ((draws[:, 0] - wanted) ** 2).mean() < 0.1 * variance


def test_denoising_takes_features_that_were_not_observed() -> None:
    """Whatever stands in their place; a Gaussian's conditional mean is the oracle."""
    model = FactorAnalysis(1, random_state=0).fit(X)
    W, m = model.components_, model.mean_
    C = W.T @ W + np.diag(model.noise_variance_)
    y = np.array(Y)
    y[:, 0] = 7.0
    sigma = np.array([np.inf, 0.5, 0.5])
    gain = C[:, 1:] @ np.linalg.inv(C[1:, 1:] + 0.25 * np.eye(2))
    wanted = m + (y[:, 1:] - m[1:]) @ gain.T
    variance = np.diag(C - gain @ C[1:]).mean()
    found = model.denoise(y, sigma, n_steps=300)
    assert ((found - wanted) ** 2).mean() < 0.1 * variance
    # Where nothing was observed at all, the prior's mean is left.
    found = model.denoise(y, np.inf, n_steps=300)
    assert ((found - m) ** 2).mean() < 0.1 * np.diag(C).mean()


class Means:
    def begin(self, x: Any, n: int) -> Any:
        return []

    def add(self, state: Any, x: Any) -> Any:
        return [*state, x]

    def end(self, state: Any) -> Any:
        return np.mean(state, axis=0)


def test_what_cannot_be() -> None:
    model = GaussianMixture(1, random_state=0).fit(X)
    for sigma in (0.0, -1.0, np.nan, np.ones(2), np.array([1.0, 1.0, 0.0])):
        with pytest.raises(ValueError, match="sigma must be > 0"):
            model.denoise(Y, sigma)
    with pytest.raises(ValueError, match="sampler must be a sampler"):
        model.denoise(Y, 1.0, sampler="hmc")
    with pytest.raises(ValueError, match="n_steps must be an integer >= 1"):
        model.denoise(Y, 1.0, n_steps=0)
    with pytest.raises(ValueError, match="2 features"):
        model.denoise(Y[:, :2], 1.0)
    with pytest.raises(CapabilityError, match="RBM does not offer"):
        RBM(2, trainer=PCD(n_epochs=1)).fit((X > 0).astype(float)).denoise((Y > 0) * 1.0, 1.0)
    with pytest.raises(CapabilityError, match="needs a density of real values; PCA has none"):
        PCA(2).fit(X).denoise(Y, 1.0)
