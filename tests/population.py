"""Mean gradients of strategies over a whole distribution, by enumeration or quadrature."""

from __future__ import annotations

from typing import Any

import numpy as np

from energyscape.backend import Purpose, stream
from energyscape.evaluation.laws import all_states, generic_params
from energyscape.losses import Loss
from energyscape.models import RBM, GaussianMixture
from energyscape.trainers import NCE
from energyscape.trainers.base import Batch
from energyscape.verbs import Params

_STEP, _REACH, _NODES = 0.4, 14.0, 16


class Given:
    """A stream that hands out one array whatever it is asked for."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def _give(self, shape: Any, dtype: Any = np.float64) -> np.ndarray:
        return np.broadcast_to(self._values, shape).astype(dtype)

    uniform = normal = _give

    def bernoulli_logit(self, a: np.ndarray, bias: Any = None) -> np.ndarray:
        """All of it."""
        return self._values


def largest(grads: Params, names: Any = None) -> float:
    """The largest entry of a gradient."""
    return max(float(abs(grads[k]).max()) for k in (names or grads))


def _add(total: Params, more: Params) -> Params:
    return {k: v + total.get(k, 0) for k, v in more.items()}


# ---------------------------------------------------------------- bits


def machine(bits: np.ndarray) -> tuple[Any, Params, np.ndarray, np.ndarray]:
    """An RBM of four units, its parameters, all x and their probabilities."""
    model = RBM(4)
    params = generic_params(model, bits[:8, :6], noise=2.0)
    v = all_states(6)
    return model, params, v, np.exp(-model.free_energy(params, v) - model.log_partition(params))


def of_flips(model: Any, params: Params, v: np.ndarray, p: np.ndarray, slope: Any) -> Params:
    """Σ_x p(x) Σ_d φ'(Δ) (∂F(x) - ∂F(x with d flipped))."""
    total: Params = {}
    for i in range(len(v)):
        one = model.forward(params, v[i : i + 1])
        total = _add(total, one.flips(np.arange(6), lambda d, i=i: p[i] * slope(d))[1])
    return total


def of_pairs(model: Any, params: Params, v: np.ndarray, p: np.ndarray, loss: Loss) -> Params:
    """The mean over x and over flips of one bit of a loss of pairs."""
    own, total = model.free_energy(params, v), dict[str, Any]()
    for d in range(v.shape[1]):
        y = v.copy()
        y[:, d] = 1 - y[:, d]
        q = model.free_energy(params, y)[None] - loss.margins(v, y)
        _, at_p, at_q = loss.evaluate(own, q, "sum")
        weights = np.concatenate([p * at_p, p * at_q[0]])
        total = _add(total, model.free_energy_grad(params, np.concatenate([v, y]), weights))
    return total


def of_noise(
    model: Any, params: Params, v: np.ndarray, p: np.ndarray, bits: np.ndarray, off: float = 0.0
) -> Params:
    """NCE over all rows and all noise, with c off by so much."""
    trainer = NCE(noise_ratio=1)
    carry = trainer.start(model, params, bits[:8, :6], stream(3, Purpose.START))
    carry["nce/log_z"][:] = model.log_partition(params) + off
    logit = carry["noise/logit"]
    noise = np.exp(v @ logit - np.logaddexp(0, logit).sum())
    passed, weights, _ = trainer.evaluate(model, params, carry, Batch(v, 1), Given(v))
    weights = weights * np.concatenate([p, noise])
    return passed.grad(weights) | {"log_z": weights.sum(keepdims=True)}


# ---------------------------------------------------------------- reals


def mixture(widened: float = 0.0, moved: float = 1.0) -> tuple[Any, Params]:
    """Two Gaussians in the plane, with that much variance added and means moved."""
    model = GaussianMixture(2)
    x = np.random.default_rng(0).standard_normal((50, 2))
    params = dict(model.init_params(x, stream(0, Purpose.INIT)))
    L = np.array([[[1.0, 0.4], [0.0, 0.8]], [[1.2, 0.0], [0.0, 0.7]]])
    if widened:
        covariances = np.linalg.inv(L @ L.transpose(0, 2, 1)) + widened * np.eye(2)
        flipped = np.linalg.inv(covariances)[:, ::-1, ::-1]
        L = np.linalg.cholesky(flipped)[:, ::-1, ::-1]
    params |= {"M": moved * np.array([[0.0, 0.0], [2.0, 1.0]]), "L": L, "w": np.array([0.3, 0.0])}
    return model, params


def plane(model: Any, params: Params, step: float = _STEP) -> tuple[np.ndarray, np.ndarray]:
    """A grid and the probability of its cells. What is summed over it is smooth but for poles about
    1 off the plane, where a row could be of either Gaussian: the error is e^(-2π/step)."""
    axis = np.arange(-_REACH, _REACH, step)
    x = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2) + np.array([1.0, 0.5])
    return x, np.exp(-model.free_energy(params, x)) * step**2


def of_scores(trainer: Any, model: Any, truth: Params, params: Params) -> Params:
    """The mean gradient at ``params`` over rows of ``truth`` and all slices, or noise by
    Gauss-Hermite quadrature."""
    x, p = plane(model, truth)
    carry = trainer.start(model, params, x[p > p.max() / 100], stream(3, Purpose.START))
    carry["score/length"][:] = 1.0
    draws = [(np.array([a, b]), 0.25) for a in (0.25, 0.75) for b in (0.25, 0.75)]
    if "score/sigma" in carry:
        nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
        share = weights / weights.sum()
        draws = [
            (np.array([nodes[i], nodes[j]]), share[i] * share[j])
            for i in range(_NODES)
            for j in range(_NODES)
        ]
    total: Params = {}
    for draw, share in draws:
        passed, weights, _ = trainer.evaluate(model, params, carry, Batch(x, 1), Given(draw))
        blocks = len(weights) // len(x)
        total = _add(total, passed.grad(share * weights * np.tile(p, blocks)))
    return total
