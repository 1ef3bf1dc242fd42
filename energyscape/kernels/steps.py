"""Steps of parameters, of their averages, and of codes."""

from __future__ import annotations

from typing import Any

import numpy as np

from energyscape.backend import Array, is_gpu_array, namespace
from energyscape.kernels.calls import by_rows, each
from energyscape.kernels.units import soft_threshold


def descend(
    w: Array,
    g: Array,
    velocity: Array,
    rate: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    l1: float = 0.0,
    l2: float = 0.0,
) -> None:
    """One step of gradient descent on ``w``, in place; ``g`` is used up.

    v ← momentum·v − rate·g;  w ← w + v (Nesterov: w + momentum·v − rate·g);  then the proximal
    step of l1|w| + l2 w²/2, which is stable for every rate and gives exact zeros:
    w ← sign(w) max(|w| − rate·l1, 0) / (1 + rate·l2).

    Parameters
    ----------
    w, g : arrays of one shape
        Parameter and gradient.
    velocity : array of that shape, or None where ``momentum`` is 0
    rate, momentum, l1, l2 : float
    """
    if is_gpu_array(w):
        _descend_gpu(w, g, velocity, rate, momentum, nesterov, l1, l2)
        return
    real = w.dtype.type
    g *= real(-rate)
    if momentum:
        velocity *= real(momentum)
        velocity += g
        if nesterov:
            g += real(momentum) * velocity
            w += g
        else:
            w += velocity
    else:
        w += g
    if l1:
        w -= np.clip(w, real(-rate * l1), real(rate * l1))
    if l2:
        w *= real(1.0 / (1.0 + rate * l2))


def _descend_gpu(
    w: Array, g: Array, velocity: Array, rate: float, momentum: float, nesterov: bool, *decay: float
) -> None:
    _need_c_order(w, g)
    real: Any = w.dtype.type
    l1, l2 = (real(rate * d) for d in decay)
    v = w if velocity is None else velocity
    scalars = (real(rate), real(momentum), np.uint32(nesterov), l1, l2, np.uint64(w.size))
    each("descend", w, (w, g, v, *scalars))


def _need_c_order(*arrays: Array) -> None:
    if not all(a.flags.c_contiguous for a in arrays):
        raise ValueError("parameters and gradients must be C-contiguous on the GPU")


def adapt(mean: Array, square: Array, g: Array, beta1: float, beta2: float, epsilon: float) -> None:
    """Running moments of a gradient, and what Adam steps along, in place.

    mean ← β₁ mean + (1 - β₁) g;  square ← β₂ square + (1 - β₂) g²;  g ← mean / (√square + ε)

    Parameters
    ----------
    mean, square, g : arrays of one shape
    beta1, beta2, epsilon : float
    """
    real = g.dtype.type
    rest1, rest2 = real(1.0 - beta1), real(1.0 - beta2)
    if is_gpu_array(g):
        _need_c_order(mean, square, g)
        scalars = real(beta1), real(beta2), rest1, rest2, real(epsilon), np.uint64(g.size)
        each("adapt", g, (mean, square, g, *scalars))
        return
    mean *= real(beta1)
    mean += rest1 * g
    g *= g
    g *= rest2
    square *= real(beta2)
    square += g
    np.sqrt(square, out=g)
    g += real(epsilon)
    np.divide(mean, g, out=g)


def follow(mean: Array, value: Array, rate: float) -> None:
    """mean ← mean + rate (value - mean), in place."""
    real: Any = mean.dtype.type
    if is_gpu_array(mean):
        each("follow", mean, (mean, value, real(rate), np.uint64(mean.size)))
        return
    mean += real(rate) * (value - mean)


def rank_two(w: Array, a: Array, b: Array, c: Array, d: Array) -> None:
    """w ← w - ab' - cd', in place, for vectors as long as w has rows (a, c) and columns (b, d)."""
    if is_gpu_array(w):
        each("rank_two", w, (w, a, b, c, d, np.uint64(w.shape[1]), np.uint64(w.size)))
        return
    # One product into new memory and one pass: quicker than two outer products.
    w -= np.stack([a, c], axis=1) @ np.stack([b, d])


def momentum_step(
    v: Array,
    b: Array,
    h: Array,
    y: Array,
    t: Array,
    theta: float | None,
    positive: bool = False,
    share: Array = None,
) -> Array:
    """What FISTA does once its product is made: shrink, momentum with a restart for each row.

    z = shrink(v + b, θ);  t₀ = 1 where (y - z)'(z - h) > 0, else t;  t ← (1 + √(1 + 4t₀²))/2;
    y ← z + (t₀ - 1)/t (z - h). In place; ``v`` and ``h`` are used up.

    Parameters
    ----------
    v, b, h, y : arrays, shape (n, m)
        ``b`` may be ``y``.
    t : array, shape (n,)
        In their dtype.
    theta : float or None
        None: ``v`` is z already.
    positive : bool, default False
        z >= 0.
    share : array, shape (n,), optional
        Where to put (t₀ - 1)/t.

    Returns
    -------
    array, shape (n, m)
        z, in the memory of one of the two.
    """
    if is_gpu_array(v):
        kind = np.uint32(2 if theta is None else int(positive))
        share = namespace(t).empty_like(t) if share is None else share
        sizes = v.dtype.type(theta or 0), kind, np.uint64(v.shape[1])
        by_rows("momentum", v, (v, b, h, y, t, share, *sizes))
        return h
    if theta is not None:
        v += b
        soft_threshold(v, theta, positive, out=v)
    moved = np.subtract(v, h, out=h)
    y -= v
    before = np.where(np.einsum("ij,ij->i", y, moved) > 0, 1, t)
    t[...] = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * before * before))
    part = ((before - 1) / t).astype(v.dtype)
    if share is not None:
        share[...] = part
    moved *= part[:, None]
    np.add(v, moved, out=y)
    return v
