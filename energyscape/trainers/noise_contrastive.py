"""Noise-contrastive estimation: push down on the data, pull up where noise falls.

NCE (Gutmann and Hyvärinen, 2012): a logistic regression tells n rows from νn draws y of noise, by
    G(u) = -F(u) - c - log p_noise(u) - log ν
    L = (1/n) [Σ_x softplus(-G(x)) + Σ_y softplus(G(y))]
in which c, learned with the rest, becomes log Z.

Conditional NCE (Ceylan and Gutmann, 2018): the noise is the rows themselves, disturbed by a step
that is as likely as the step back, so that neither Z nor the density of the noise is left:
    L = ⟨softplus(F(x) - F(x̃))⟩
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.kernels import sigmoid
from energyscape.losses import Log
from energyscape.optim import Moment, Optimizer
from energyscape.registry import register
from energyscape.trainers.base import Batch, PointLoss
from energyscape.trainers.margin import MarginLoss
from energyscape.verbs import Param, Params, Pass, check_count

_LOG_2PI = math.log(2 * math.pi)
_STARTS = 1000  # draws of noise that the first c is estimated from
_OWN = {"log_z": Param()}
# A point is told from the other kind for sure where less than this is left of its weight; if this
# share of all points is, hardly anything is learned from them.
_SURE, _MOST_SURE = 1e-3, 0.99


@register
class NCE(PointLoss):
    """Noise-contrastive estimation, which learns log Z with the parameters.

    Consistent, and the closer the noise is to the data, the better. Its noise is a Gaussian with
    the means and covariance of the data, or independent bits at their rates: where these are told
    from the data at a glance, as of images of more than a few pixels, hardly a gradient is left, of
    which `fit` warns.

    Parameters
    ----------
    noise_ratio : int, default 10
        ν, draws of noise for each row.
    n_epochs : int, optional
        Default: as many as make 10,000 updates, at least 10 and at most 1000.
    batch_size : int, default 100
    learning_rate : float, optional
        Shorthand for ``optimizer=SGD(learning_rate)``; default 0.1. c is learned at it, too.
    optimizer : Optimizer, optional
    averaging : float in (0, 1], optional
        As for `CD`.
    batch_transform : transform, optional
        Applied to each batch with fresh random numbers, e.g. `Binarize()`.
    validation_fraction : float in [0, 1), default 0
        Rows set apart (by index) for ``energy_valid`` in the history.
    callbacks : sequence of callables, default ()
        ``callback(model, state, info)`` after each epoch; True stops the training.

    Notes
    -----
    The history has ``log_partition``, c, and ``noise_saturated``, the share of points of which the
    model is sure whether they are noise.

    References
    ----------
    Gutmann, M., Hyvärinen, A. (2012). Noise-contrastive estimation of unnormalized statistical
    models, with applications to natural image statistics. Equations 2-4.
    """

    domains = ("binary", "real")
    needs_proper = True
    needs_visible = True

    def __init__(
        self,
        noise_ratio: int = 10,
        n_epochs: int | None = None,
        batch_size: int = 100,
        learning_rate: float | None = None,
        optimizer: Optimizer | None = None,
        averaging: float | None = None,
        batch_transform: Any = None,
        validation_fraction: float = 0.0,
        callbacks: Sequence[Callable[..., Any]] = (),
    ) -> None:
        self.noise_ratio = noise_ratio
        self.n_epochs = n_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.averaging = averaging
        self.batch_transform = batch_transform
        self.validation_fraction = validation_fraction
        self.callbacks = callbacks

    def validate(self, model: Any) -> None:
        super().validate(model)
        check_count("NCE.noise_ratio", self.noise_ratio)

    def start(self, model: Any, params: Params, x: Array, rng: Any) -> Params:
        xp, flat = namespace(x), x.reshape(len(x), -1)
        carry = self._own(model, params, x, rng)
        carry |= _bits(flat) if model.domain == "binary" else _gaussian(flat)
        y, log_p = _draw(carry, _STARTS, rng)
        # log Z = log E_noise[exp(-F)/p_noise]
        terms = -model.free_energy(params, y.reshape(-1, *x.shape[1:])) - log_p
        top = terms.max()
        carry["nce/log_z"] += top + xp.log(xp.exp(terms - top).mean())
        return carry

    def start_again(self, model: Any, params: Params, x: Array, rng: Any, kept: Params) -> Params:
        noise = {key: value for key, value in kept.items() if key.startswith("noise/")}
        return self._own(model, params, x, rng) | noise

    def _own(self, model: Any, params: Params, x: Array, rng: Any) -> Params:
        """What is kept besides the noise, c at 0."""
        carry = super().start(model, params, x, rng)
        for key in ("log_z", "saturated"):
            carry[f"nce/{key}"] = namespace(x).zeros(1, np.float64)
        return carry | self.resolved_optimizer().start({"log_z": carry["nce/log_z"]}, _OWN)

    def evaluate(
        self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any
    ) -> tuple[Pass, Array, Array]:
        xp, x = namespace(batch.x), batch.x
        n, m = len(x), len(x) * self.noise_ratio
        y, of_noise = _draw(carry, m, rng)
        log_p = xp.concatenate([_log_density(carry, x.reshape(n, -1)), of_noise])
        passed = model.forward(params, xp.concatenate([x, y.reshape(-1, *x.shape[1:])]))
        G = -passed.energy() - carry["nce/log_z"] - log_p - math.log(self.noise_ratio)
        G[:n] *= -1  # from here on the wrong side of each point
        loss = xp.logaddexp(0.0, G)
        weights = sigmoid(G)
        weights /= batch.n
        weights[n:] *= -1
        of_noise = loss[n:].reshape(self.noise_ratio, n).sum(axis=0)
        return passed, weights, loss[:n] + of_noise

    def collect(self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any) -> Params:
        passed, weights, loss = self.evaluate(model, params, carry, batch, rng)
        share = 1.0 / (batch.n * (1 + self.noise_ratio))
        sums = self.summed(passed, weights, loss, batch)
        # ∂L/∂c is the sum of the signed weights, as c stands beside F.
        sums["log_z"] = weights.sum(keepdims=True)
        sums["nce/saturated"] = (abs(weights) * batch.n < _SURE).sum() * share
        return sums

    def apply(self, model: Any, params: Params, carry: Params, sums: Params, at: Moment) -> None:
        self.remember(carry, sums, "nce/saturated", at)
        super().apply(model, params, carry, sums, at)

    def _descend(self, model: Any, moved: Params, carry: Params, sums: Params, at: Moment) -> None:
        super()._descend(model, moved, carry, sums, at)
        own = {"log_z": carry["nce/log_z"]}
        self.resolved_optimizer().step(own, sums, carry, _OWN, at)

    def report(self, model: Any, params: Params, carry: Params, rng: Any) -> dict[str, Any]:
        return super().report(model, params, carry, rng) | {
            "log_partition": carry["nce/log_z"][0],
            "noise_saturated": carry["nce/saturated"][0],
        }

    def complaint(self, history: dict[str, list[float]]) -> str | None:
        """That the noise never overlaps the data."""
        share = history["noise_saturated"][-1]
        if share < _MOST_SURE:
            return None
        return (
            f"NCE tells {100 * share:.1f} % of the points from noise for sure, so that hardly any "
            "of them teaches anything: the noise does not overlap the data. Reduce or whiten the "
            "features (PCA, ZCA), or use ConditionalNCE, PCD or DenoisingScoreMatching"
        )


def _gaussian(x: Array) -> Params:
    """Mean of the rows, root of their covariance, and its inverse."""
    xp = namespace(x)
    if len(x) <= x.shape[1]:
        raise ValueError(
            f"NCE's noise has the covariance of the rows, and {len(x)} of them do not tell that of "
            f"{x.shape[1]} features. Reduce the features first (PCA), or use ConditionalNCE"
        )
    wide = x.astype(np.float64)
    mean = wide.mean(axis=0)
    wide -= mean
    value, vector = xp.linalg.eigh(wide.T @ wide / len(x))
    flat = int((value <= 1e-10 * value[-1]).sum())
    if flat:
        raise ValueError(
            f"NCE's noise has the covariance of the rows, which do not vary along {flat} of "
            f"{len(value)} directions: no Gaussian has a density there. Remove constant features, "
            "or reduce them first (PCA)"
        )
    spread = xp.sqrt(value)
    found = {"mean": mean, "root": vector * spread, "white": vector / spread}
    found["level"] = 0.5 * len(value) * _LOG_2PI + xp.log(spread).sum(keepdims=True)
    return {f"noise/{key}": v.astype(x.dtype) for key, v in found.items()}


def _bits(x: Array) -> Params:
    """Log-odds of the rates of the bits, kept off 0 and 1 by half a row."""
    xp, n = namespace(x), len(x)
    rate = (x.sum(axis=0, dtype=np.float64) + 0.5) / (n + 1)
    rate = xp.clip(rate, 0.5 / (n + 1), 1 - 0.5 / (n + 1))
    return {"noise/logit": (xp.log(rate) - xp.log1p(-rate)).astype(x.dtype)}


def _draw(carry: Params, n: int, rng: Any) -> tuple[Array, Array]:
    """Flat rows of noise, and their log-densities, float64."""
    if "noise/logit" in carry:
        logit = carry["noise/logit"]
        xp = namespace(logit)
        y = rng.bernoulli_logit(xp.ascontiguousarray(xp.broadcast_to(logit, (n, len(logit)))))
        return y, _log_density(carry, y)
    root = carry["noise/root"]
    z = rng.normal((n, len(root)), root.dtype)
    return carry["noise/mean"] + z @ root.T, _normal(carry, z)


def _log_density(carry: Params, x: Array) -> Array:
    """log p_noise of flat rows, float64."""
    if "noise/logit" in carry:
        logit = carry["noise/logit"].astype(np.float64)
        return x.astype(np.float64) @ logit - namespace(x).logaddexp(0.0, logit).sum()
    return _normal(carry, (x - carry["noise/mean"]) @ carry["noise/white"])


def _normal(carry: Params, z: Array) -> Array:
    squares = (z * z).sum(axis=1, dtype=np.float64)
    return -0.5 * squares - carry["noise/level"].astype(np.float64)


@register
class ConditionalNCE(MarginLoss):
    """Conditional noise-contrastive estimation: rows against themselves, disturbed.

    Consistent, on bits and on reals, for every model that has an energy and its gradient, and
    without a normaliser. Small steps see the density close by alone, steps as large as the data
    hardly anything: a few are worth trying. With one of d bits flipped it pulls but 1/d as hard as
    `PseudoLikelihood`, and wants a learning rate, or negatives, that many times larger.

    Parameters
    ----------
    negatives : Negatives, optional
        A symmetric disturbance: `GaussianJitter` (default on reals), `BitFlips` (default on bits).
    n_negatives : int, default 1
        Disturbed rows for each row.
    learning_rate : float, optional
        Default 0.3: one step says less than ten draws of noise do.
    n_epochs, batch_size, optimizer, averaging, batch_transform, validation_fraction, callbacks
        As for `NCE`.

    References
    ----------
    Ceylan, C., Gutmann, M. (2018). Conditional noise-contrastive estimation of unnormalised models.
    Equation 8.
    """

    def __init__(
        self,
        negatives: Any = None,
        n_negatives: int = 1,
        n_epochs: int | None = None,
        batch_size: int = 100,
        learning_rate: float | None = None,
        optimizer: Optimizer | None = None,
        averaging: float | None = None,
        batch_transform: Any = None,
        validation_fraction: float = 0.0,
        callbacks: Sequence[Callable[..., Any]] = (),
    ) -> None:
        self.negatives = negatives
        self.n_negatives = n_negatives
        self.n_epochs = n_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.averaging = averaging
        self.batch_transform = batch_transform
        self.validation_fraction = validation_fraction
        self.callbacks = callbacks

    default_rate = 0.3
    # What makes it the logistic loss of a symmetric step.
    loss = Log()
    pooling = "sum"

    def validate(self, model: Any) -> None:
        super().validate(model)
        if not self.chosen_negatives(model).symmetric:
            raise ValueError(
                "ConditionalNCE.negatives must step as often there as back (GaussianJitter, "
                f"BitFlips), got {self.negatives!r}; MarginLoss takes the others"
            )
