"""Which sources are active together: matrices of pools, and the Z of one pool."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import kve

from energyscape.backend import Array, namespace
from energyscape.verbs import check_count


def torus_pools(
    height: int, width: int, size: int = 3, *, stride: int = 1, sigma: float | None = None
) -> np.ndarray:
    """Pools of a topography: each the ``size`` × ``size`` sources around one place of a torus.

    Parameters
    ----------
    height, width : int
        Sources lie on a grid of this shape, whose opposite edges meet.
    size : int, default 3
        At most the smaller side.
    stride : int, default 1
        From one pool to the next, down and across; divides both sides.
    sigma : float, optional
        Weights fall off as exp(-d²/2 sigma²) with the distance d to the middle of the pool (between
        sources where ``size`` is even). Default: all are 1.

    Returns
    -------
    array, shape (height·width/stride², height·width), float64

    References
    ----------
    Kavukcuoglu, K., Ranzato, M., Fergus, R., LeCun, Y. (2009). Learning invariant features through
    topographic filter maps: pools of 6 × 6 with a stride of 2 and Gaussian weights.
    """
    check_count("size", size)
    check_count("stride", stride)
    if size > min(height, width):
        raise ValueError(f"size must be at most {min(height, width)}, got {size!r}")
    if height % stride or width % stride:
        raise ValueError(f"stride must divide {height} and {width}, got {stride!r}")
    if sigma is not None and not sigma > 0:
        raise ValueError(f"sigma must be > 0, got {sigma!r}")

    def near(side: int) -> np.ndarray:
        # How far beyond its first source a pool's sources lie; that is at (size - 1)//2 before it.
        first = np.arange(0, side, stride)[:, None] - (size - 1) // 2
        beyond = (np.arange(side) - first) % side
        fall = 1.0 if sigma is None else np.exp(-((beyond - (size - 1) / 2) ** 2) / (2 * sigma**2))
        return np.where(beyond < size, fall, 0.0)

    return np.kron(near(height), near(width))


def pooling(pools: Any, k: int) -> np.ndarray:
    """P, shape (n_pools, k), of a ``pools`` setting; ValueError for one that cannot be."""
    if np.ndim(pools) == 0:
        if isinstance(pools, bool) or not isinstance(pools, int | np.integer) or pools < 1:
            raise ValueError(f"pools must be an integer >= 1 or an array, got {pools!r}")
        if k % pools:
            raise ValueError(f"pools of {pools} do not divide {k} components")
        return np.kron(np.eye(k // int(pools)), np.ones(int(pools)))
    P = np.asarray(pools, np.float64)
    if P.ndim != 2 or P.shape[1] != k:
        raise ValueError(f"pools have shape {P.shape}, wanted (n_pools, {k})")
    if not (np.isfinite(P).all() and (P >= 0).all()):
        raise ValueError("pools must be finite and >= 0")
    if not (P.any(axis=0).all() and P.any(axis=1).all()):
        raise ValueError("every component must be in a pool, and no pool may be empty")
    return P


def arrangement(P: np.ndarray, together: np.ndarray) -> np.ndarray:
    """Order in which sources that go together share pools: the best of all swaps, until none helps.

    Parameters
    ----------
    P : array, shape (n_pools, k)
    together : array, shape (k, k), symmetric
        How much two sources go together, e.g. correlations of their sizes.

    Returns
    -------
    integer array, shape (k,)
        The source to put at each place.
    """
    empty = 1 - np.eye(len(together))
    shared, together = (P.T @ P) * empty, together * empty
    order = np.arange(len(together))
    while True:
        gain = _of_swaps(shared, together[np.ix_(order, order)])
        i, j = np.unravel_index(gain.argmax(), gain.shape)
        if not gain[i, j] > 1e-9:
            return order
        order[[i, j]] = order[[j, i]]


def best_swap(P: Array, together: Array, least: float) -> Array:
    """Pools after the two sources change places that gain most, if that is more than ``least``.

    Parameters
    ----------
    P : array, shape (n_pools, k)
    together : array, shape (k, k), symmetric
        As for `arrangement`; NumPy or CuPy, of which nothing is read.
    least : float

    Returns
    -------
    array, shape (n_pools, k)
    """
    xp, k = namespace(P), P.shape[1]
    empty = 1 - xp.eye(k, dtype=P.dtype)
    shared, here = (P.T @ P) * empty, together * empty
    gain = _of_swaps(shared, here).ravel()
    best, source = gain.argmax(), xp.arange(k)
    i, j = best // k, best % k
    order = xp.where(source == i, j, xp.where(source == j, i, source))
    return xp.take(P, xp.where(gain.max() > least, order, source), axis=1)


def _of_swaps(shared: Array, here: Array) -> Array:
    """What a swap of i and j adds to half of Σ shared · here, shape (k, k)."""
    across = shared @ here
    own = namespace(across).diagonal(across)
    return across + across.T - own[:, None] - own + 2 * shared * here


def log_integral(s: int, epsilon: float) -> float:
    """log ∫ exp(-√(ε + |u|²)) du over s dimensions.

    The integral is 2 (2π)^((s-1)/2) δ^((s+1)/2) K_((s+1)/2)(δ) with δ = √ε; the Bessel function by
    its recurrence, in logarithms, which is stable upwards.
    """
    delta, order = math.sqrt(epsilon), (s + 1) / 2
    at = 0.5 if s % 2 == 0 else 1.0
    below = kve(at - 1, delta)  # K_-½ = K_½
    log_k, ratio = math.log(kve(at, delta)) - delta, kve(at, delta) / below
    while at < order:
        ratio = 2 * at / delta + 1 / ratio
        log_k, at = log_k + math.log(ratio), at + 1
    return math.log(2) + 0.5 * (s - 1) * math.log(2 * math.pi) + order * math.log(delta) + log_k
