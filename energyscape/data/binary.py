"""Grey values in [0, 1] to bits. Likelihoods of the two kinds do not compare: name which."""

from __future__ import annotations

from typing import Any

from energyscape.backend import Array, Purpose, device_of, draw_seed, stream
from energyscape.corruptions import Binarize
from energyscape.sources import compute_dtype


def binarize(X: Array, random_state: Any = None) -> Array:
    """Stochastic bits, drawn once: 1 with the value as its probability.

    Parameters
    ----------
    X : float array with values in [0, 1]
    random_state : int, RandomState, Generator or None

    Returns
    -------
    array of the shape, dtype and container of X

    Raises
    ------
    ValueError
        If a value lies outside [0, 1].

    See Also
    --------
    Binarize : fresh bits for every batch while training.
    """
    _check_unit(X)
    rng = stream(draw_seed(random_state), Purpose.TRANSFORM, 0, device_of(X))
    bits = Binarize()(X.astype(compute_dtype(X.dtype), copy=False), rng)
    return bits.astype(X.dtype, copy=False)


def threshold(X: Array, level: float = 0.5) -> Array:
    """1 where the value exceeds ``level``, else 0: fewer nats per image than stochastic bits.

    Parameters
    ----------
    X : float array with values in [0, 1]
    level : float, default 0.5

    Returns
    -------
    array of the shape, dtype and container of X
    """
    _check_unit(X)
    return (level < X).astype(X.dtype)


def _check_unit(X: Array) -> None:
    if X.dtype.kind != "f":
        raise ValueError(f"values in [0, 1] are wanted, X has dtype {X.dtype}; divide by its range")
    lo, hi = float(X.min()), float(X.max())
    if not (lo >= 0 and hi <= 1):
        raise ValueError(f"values in [0, 1] are wanted, X has values in [{lo:.6g}, {hi:.6g}]")
