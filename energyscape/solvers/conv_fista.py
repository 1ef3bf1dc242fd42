"""FISTA for codes of whole images: the gradient method with momentum that starts again.

    y = z_i + (t_{i-1} - 1)/t_i (z_i - z_{i-1})
    z_{i+1} = shrink(y + D'(m ⊙ (x - D y))/L, λ/L)          t_{i+1} = (1 + √(1 + 4 t_i²))/2

A pull to predictions, (α/2)|z - f|², adds α(f - y) to the slope and α to L. In place of λ|z|₁ there
may be a penalty that a quadratic bounds from above and touches at y: its step divides each code by
a number of its own.

Momentum that points uphill, (y - z_{i+1})·(z_{i+1} - z_i) > 0, is dropped, t = 1, which makes
convergence linear near the solution. D y needs no product of its own: D z of the last two codes is
there.

References
----------
Beck, A., Teboulle, M. (2009). A fast iterative shrinkage-thresholding algorithm for linear inverse
problems. SIAM Journal on Imaging Sciences 2(1).
O'Donoghue, B., Candès, E. (2015). Adaptive restart for accelerated gradient schemes. Foundations of
Computational Mathematics 15(3). Section 3.2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from energyscape.backend import Array, is_gpu_array, namespace
from energyscape.kernels import momentum_step, soft_threshold
from energyscape.solvers.laid_filters import Batch, ConvCodes, LaidFilters

__all__ = ["conv_fista"]

# The gap takes one more product and a synchronisation of the host.
_CHECK_EVERY = 10
_SECOND = (1 + 5**0.5) / 2  # t_1


def conv_fista(
    dictionary: LaidFilters,
    x: Array,
    lam: float,
    *,
    start: Array | None = None,
    positive: bool = False,
    alpha: float = 0.0,
    prediction: Array | None = None,
    penalty: Any = None,
    tol: float = 1e-4,
    max_iter: int = 1000,
) -> ConvCodes:
    """Codes of least ½ Σ m ⊙ (x - D z)² + λ|z|₁ + (α/2)|z - f|², at any boundary.

    Parameters
    ----------
    dictionary : LaidFilters
    x : array, shape (n, h, w, c)
    lam : float
        λ > 0.
    start : array, shape (n, h', w', k), optional
        Codes to begin with, >= 0 if ``positive``; zeros if left out.
    positive : bool, default False
        Whether codes are kept >= 0.
    alpha : float, default 0
        α >= 0: how far codes are pulled to predictions.
    prediction : array, shape (n, h', w', k), optional
        f, with α > 0.
    penalty : penalty of maps, optional
        A smooth one with ``shrinkage`` and ``code_grad``, such as `penalties.MapPools`, in place of
        λ|z|₁; ``lam`` is its strength.
    tol : float, default 1e-4
        An image is done when its duality gap is at most ``tol`` · (½ Σ m x² + (α/2)|f|²), with a
        ``penalty`` when no slope is larger than ``tol`` · |D'(m ⊙ x) + αf|_∞. Float32 reaches 1e-5
        or so.
    max_iter : int, default 1000

    Returns
    -------
    ConvCodes
        In the dtype and container of the filters. No warning is given where ``max_iter`` came
        before ``tol``: compare `gap`.

    Raises
    ------
    ValueError
        For images or codes of other shapes, infinite images and λ <= 0.
    """
    batch = Batch(dictionary, x, lam, tol, positive, alpha, prediction, penalty)
    xp, step = namespace(batch.x), 1.0 / (dictionary.lipschitz() + batch.alpha)
    z = dictionary.start(len(x), start, positive)
    image = dictionary.synthesize(z)
    # On a CPU blocks go through the cache; on a GPU all of it is one launch, which looks one step
    # ahead: y_1 is z_1 already, so that t_1 is there.
    moved, room, t = xp.zeros_like(z), xp.empty_like(z), xp.ones(len(x))
    state: tuple[Array, ...] = z, moved, room, image, image, t
    advance = _advance
    if is_gpu_array(z):
        state = z, z.copy(), image, image, xp.full(len(x), _SECOND, z.dtype)
        advance = _advance_fused
    for i in range(max_iter + 1):
        if i % _CHECK_EVERY == 0 or i == max_iter:
            keep = batch.leave(state[0], batch.x - state[-3], last=i == max_iter)
            if not len(batch.x):
                break
            if keep is not None:
                state = tuple(a[keep] for a in state)
        state = advance(dictionary, batch, state, step, positive)
    return batch.codes(i)


def _advance_fused(
    dictionary: LaidFilters,
    batch: Batch,
    state: tuple[Array, ...],
    step: float,
    positive: bool,
) -> tuple[Array, ...]:
    """From (z_i, y_i, D z_i, D y_i, t) to the next; the same iteration as `_advance`."""
    (z, y, image, ahead, t), real = state, state[0].dtype.type
    xp, n, share = namespace(z), len(z), namespace(z).empty_like(t)
    q = dictionary.analyze(dictionary.weighted(batch.x - ahead))
    q *= real(step)
    if batch.alpha:
        pull = batch.prediction - y
        pull *= real(batch.alpha * step)
        q += pull
    theta = None
    if batch.penalty is None:
        theta = batch.lam * step
    else:
        q += y
        if positive:
            xp.maximum(q, 0, out=q)
        q /= batch.penalty.shrinkage(y, step)
    q, before, there = (a.reshape(n, -1) for a in (q, z, y))
    z = momentum_step(q, there, before, there, t, theta, positive, share).reshape(z.shape)
    latest = dictionary.synthesize(z)
    ahead = latest - image
    ahead *= share[:, None, None, None]
    ahead += latest
    return z, y, latest, ahead, t


def _advance(
    dictionary: LaidFilters,
    batch: Batch,
    state: tuple[Array, ...],
    step: float,
    positive: bool,
) -> tuple[Array, ...]:
    """From (z_i, z_i - z_{i-1}, memory for z_{i+1}, D z_i, D z_{i-1}, t_{i-1}) to the next."""
    z, moved, room, image, old_image, t = state
    xp, n = namespace(z), len(z)
    t_next = (1 + xp.sqrt(1 + 4 * t * t)) / 2
    momentum = ((t - 1) / t_next).astype(z.dtype)[:, None, None, None]
    rest = old_image - image
    rest *= momentum
    rest -= image
    rest += batch.x
    rest *= step  # of images, which are smaller than maps
    shrink = None
    if batch.penalty is not None:  # of whole maps, before they are cut into blocks
        shrink = batch.penalty.shrinkage(z + momentum * moved, step)
    slope, uphill = dictionary.analyze(dictionary.weighted(rest), out=room), xp.zeros(n)
    for images, rows in dictionary.blocks(n, 2 * z.shape[3]):
        now, change, q = (a[images, rows] for a in (z, moved, slope))
        y = change * momentum[images]
        y += now
        if batch.alpha:
            pull = batch.prediction[images, rows] - y  # type: ignore[index]
            pull *= batch.alpha * step
            q += pull
        q += y
        if shrink is None:
            soft_threshold(q, batch.lam * step, positive, out=q)
        else:
            if positive:
                xp.maximum(q, 0, out=q)
            q /= shrink[images, rows]
        xp.subtract(q, now, out=change)
        y -= q
        y *= change
        uphill[images] += y.sum(axis=(1, 2, 3)).astype(np.float64)
    t_next = xp.where(uphill > 0, 1.0, t_next)
    return slope, moved, z, dictionary.synthesize(slope), image, t_next
