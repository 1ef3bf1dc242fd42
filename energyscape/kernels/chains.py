"""Chains: the parts of a trajectory, and Metropolis' choice."""

from __future__ import annotations

from typing import Any

import numpy as np

from energyscape.backend import Array, is_gpu_array, namespace
from energyscape.kernels.calls import by_rows, each, packed

# Elements that stay in the second-level cache with the arrays beside them.
_BLOCK = 1 << 15


def set_off(x: Array, z: Array, g: Array, scale: Array, heat: float = 1.0) -> tuple[Array, Array]:
    """The first half kick and drift: x + q and q = scale z - scale² g/2T, both new.

    Parameters
    ----------
    x, z, g : arrays, shape (n, d)
        Positions, standardised momenta, gradients.
    scale : array that broadcasts to (n, d): (1, 1), (n, 1), (1, d) or (n, d)
        ε M^-½; 0 where a coordinate is held.
    heat : float, default 1
        T.
    """
    if is_gpu_array(x):
        xp = namespace(x)
        x, z, g, scale = packed(x, z, g.astype(x.dtype, copy=False), scale)
        moved, q = xp.empty_like(x), xp.empty_like(x)
        each("set_off", x, (x, z, g, scale, moved, q, x.dtype.type(heat), *_strides(x, scale)))
        return moved, q
    moved, q = x.copy(), z * scale
    leapfrog(moved, q, g, _half(scale, heat))
    return moved, q


def arrive(q: Array, z: Array, g: Array, scale: Array, heat: float = 1.0) -> Array:
    """The last half kick, and momenta standardised again, (q - scale² g/2T)/scale; ``z`` where a
    coordinate is held. ``q`` is used up."""
    if is_gpu_array(q):
        q, z, g, scale = packed(q, z, g.astype(q.dtype, copy=False), scale)
        each("arrive", q, (q, z, g, scale, q.dtype.type(heat), *_strides(q, scale)))
        return q
    q -= _half(scale, heat) * g
    if scale.shape[1] == 1:
        q /= scale
        return q
    return np.where(scale > 0, q / np.where(scale > 0, scale, 1), z)


def _half(scale: Array, heat: float) -> Array:
    half = scale * scale
    if heat != 1.0:
        half /= scale.dtype.type(heat)
    half *= scale.dtype.type(0.5)
    return half


def leapfrog(x: Array, q: Array, g: Array, factor: Array) -> None:
    """Kick and drift, in place: q ← q - factor·g, then x ← x + q.

    Parameters
    ----------
    x, q, g : arrays, shape (n, d), C-contiguous
        Positions, momenta scaled so that they are displacements, gradients.
    factor : array that broadcasts to (n, d): (1, 1), (n, 1), (1, d) or (n, d)
        ε²/mass.
    """
    if is_gpu_array(x):
        _leapfrog_gpu(x, q, g, factor)
        return
    if x.size <= _BLOCK:
        q -= factor * g
        x += q
        return
    rows = max(1, _BLOCK // max(1, x.shape[1]))
    kick = np.empty((min(rows, len(x)), x.shape[1]), x.dtype)
    for lo in range(0, len(x), rows):
        part = slice(lo, lo + rows)
        qs, xs = q[part], x[part]
        step = kick[: len(qs)]
        np.multiply(g[part], factor if len(factor) == 1 else factor[part], out=step)
        qs -= step
        xs += qs


def _leapfrog_gpu(x: Array, q: Array, g: Array, factor: Array) -> None:
    g, factor = packed(*(a.astype(x.dtype, copy=False) for a in (g, factor)))
    each("leapfrog", x, (x, q, g, factor, *_strides(x, factor)))


def _strides(x: Array, factor: Array) -> tuple[Any, ...]:
    """Columns of ``x``, how far rows and columns of a factor lie apart (0: all are one), size."""
    rows, columns = factor.shape
    between = np.uint64(columns if rows > 1 else 0), np.uint64(1 if columns > 1 else 0)
    return np.uint64(x.shape[1]), *between, np.uint64(x.size)


def accept(
    start: tuple[Array, ...], end: tuple[Array, ...], u: Array, heat: float, divergence: float
) -> tuple[Array, ...]:
    """Each chain takes its proposal where -log(1 - u) > ΔH, or stays.

    ΔH = (F' - F)/T + (|z'|² - |z|²)/2 in float64; one that is no finite number rejects.

    Parameters
    ----------
    start, end : (x, z, g, energy)
        Positions, standardised momenta and gradients, (n, *event_shape), and energies, (n,).
    u : array, shape (n,), float64
        Uniform on [0, 1).
    heat : float
        T.
    divergence : float
        |ΔH| beyond which a trajectory is called divergent.

    Returns
    -------
    x, g, energy : arrays
        Where the chains are now; new memory.
    acceptance : array, shape (n,), float64
        min(1, exp(-ΔH)).
    accepted, divergent : arrays, shape (n,), bool
    """
    if is_gpu_array(u):
        return _accept_gpu(start, end, u, heat, divergence)
    (x, z, g, energy), (end_x, end_z, end_g, end_energy) = start, end
    change = (end_energy - energy) / heat + 0.5 * (squares(end_z) - squares(z))
    change = np.where(np.isfinite(change), change, np.inf)
    accepted = -np.log(1 - u) > change
    column = accepted.reshape(len(x), *([1] * (x.ndim - 1)))
    return (
        np.where(column, end_x, x),
        np.where(column, end_g, g),
        np.where(accepted, end_energy, energy),
        np.exp(-np.maximum(change, 0)),
        accepted,
        abs(change) > divergence,
    )


def squares(z: Array) -> Array:
    """|z|² of each chain, summed in float64, shape (n,)."""
    flat = z.reshape(len(z), -1)
    return (flat * flat).sum(axis=1, dtype=np.float64)


def _accept_gpu(
    start: tuple[Array, ...], end: tuple[Array, ...], u: Array, heat: float, divergence: float
) -> tuple[Array, ...]:
    xp, n, real = namespace(u), len(u), start[0].dtype
    kinds = real, real, real, np.float64
    (x, z, g, energy), (end_x, end_z, end_g, end_energy) = (
        packed(*(a.astype(kind, copy=False) for a, kind in zip(part, kinds, strict=True)))
        for part in (start, end)
    )
    new = xp.empty_like(energy), xp.empty_like(x), xp.empty_like(g), xp.empty_like(energy)
    flags = xp.empty(n, bool), xp.empty(n, bool)
    args = energy, end_energy, z, end_z, u, x, end_x, g, end_g
    sizes = np.float64(heat), np.float64(divergence), np.uint64(x.size // max(1, n))
    by_rows("accept", x, (*args, *sizes, *new, *flags))
    energy, x, g, acceptance = new
    return x, g, energy, acceptance, *flags
