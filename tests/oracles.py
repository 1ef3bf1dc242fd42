"""Truths to compare with, written from the definitions and nothing of the library's own."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp


def states(units: int) -> np.ndarray:
    """All binary states, shape (2^units, units)."""
    return ((np.arange(1 << units)[:, None] >> np.arange(units)) & 1).astype(np.float64)


def rbm_log_joint(params: dict[str, np.ndarray], v: np.ndarray, h: np.ndarray) -> np.ndarray:
    """b'v + c'h + v'Wh for every pair, shape (len(v), len(h))."""
    W, b, c = params["W"], params["b"], params["c"]
    return (v @ b)[:, None] + (h @ c)[None] + v @ W @ h.T


def rbm_log_z(params: dict[str, np.ndarray]) -> float:
    """log Σ_v Σ_h exp(-E) over all pairs of states."""
    d, k = params["W"].shape
    return float(logsumexp(rbm_log_joint(params, states(d), states(k))))


def rbm_log_p(params: dict[str, np.ndarray]) -> np.ndarray:
    """Log-probability of every visible state."""
    d, k = params["W"].shape
    joint = rbm_log_joint(params, states(d), states(k))
    return logsumexp(joint, axis=1) - logsumexp(joint)


def strong_rbm() -> dict[str, np.ndarray]:
    """Parameters of a 10×6 RBM with |W| near 1, and the means of its own visible units."""
    rng = np.random.default_rng(0)
    params = {
        "W": rng.standard_normal((10, 6)),
        "b": rng.standard_normal(10),
        "c": rng.standard_normal(6),
        "mean_v": np.full(10, 0.5),
        "mean_h": np.full(6, 0.5),
    }
    return params | {"mean_v": np.exp(rbm_log_p(params)) @ states(10)}


def gaussian_rbm_log_p(params: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Log-density of rows as a mixture of 2^k Gaussians, one per hidden state."""
    W, b, c = params["W"], params["b"], params["c"]
    var = np.exp(params["log_var"])
    h = states(W.shape[1])
    mean = b + h @ W.T
    # Weight of a state: exp(c'h) ∫ exp(-(x-b)²/2σ² + x'Wh/σ²) dx, up to the common constant.
    log_w = h @ c + ((mean**2 - b**2) / (2 * var)).sum(axis=1)
    log_w -= logsumexp(log_w)
    d2 = ((x[:, None] - mean[None]) ** 2 / var).sum(axis=2)
    return logsumexp(log_w - 0.5 * d2 - 0.5 * np.log(2 * np.pi * var).sum(), axis=1)


def bars_and_stripes(side: int) -> np.ndarray:
    """All rows-constant and all columns-constant images; the two uniform ones appear twice."""
    images = []
    for line in states(side):
        images += [
            np.repeat(line[:, None], side, 1).ravel(),
            np.repeat(line[None], side, 0).ravel(),
        ]
    return np.array(images, np.float32)
