"""Filter responses, squared and pooled, of gated models on a GPU.

On a CPU the same is done with NumPy's functions where the responses are (`models.gated_base`):
what streams through a cache gains nothing from being fused.
"""

from __future__ import annotations

import numpy as np

from energyscape.backend import Array, is_gpu_array, namespace
from energyscape.kernels.calls import by_rows, each, packed
from energyscape.kernels.units import log1p


def half_square(r: Array) -> Array:
    """r²/2, a new array."""
    if is_gpu_array(r):
        (r,) = packed(r)
        z = namespace(r).empty_like(r)
        each("half_square", r, (r, z, np.uint64(r.size)))
        return z
    z = r * r
    z *= z.dtype.type(0.5)
    return z


def respond(field: Array, bias: Array, squares: Array) -> None:
    """Squares of the first columns of field + bias into ``squares``, shape (n, k); on a GPU."""
    sizes = np.uint64(squares.shape[1]), np.uint64(field.shape[1]), np.uint64(squares.size)
    each("respond", squares, (field, bias, squares, *sizes))


def slope(z: Array, level: Array, binary: bool, out: Array = None) -> Array:
    """∂F/∂z of gating units at z, (n, k): level/(1 + z), of binary ones σ(level - z); on a GPU.
    ``out`` may be ``z``."""
    z, level = packed(z, level)
    out = namespace(z).empty_like(z) if out is None else out
    sizes = np.uint32(binary), np.uint64(z.shape[1]), np.uint64(z.size)
    each("slope", z, (z, level, out, *sizes))
    return out


def log_sum(z: Array, level: Array) -> Array:
    """Σ_j level_j log(1 + z_j) of every row, (n,), float64."""
    if is_gpu_array(z):
        z, level = packed(z, level)
        out = namespace(z).empty(len(z), np.float64)
        by_rows("log_sum", z, (z, level, out, np.uint64(z.shape[1])))
        return out
    return log1p(z).astype(np.float64, copy=False) @ level.astype(np.float64)


def square_sum(u: Array, width: Array, b: Array) -> Array:
    """|u|² width/2 - b'u of every row, (n,), float64; ``width`` has shape (1,)."""
    if is_gpu_array(u):
        (u,) = packed(u)
        out = namespace(u).empty(len(u), np.float64)
        by_rows("square_sum", u, (u, width, b, out, np.uint64(u.shape[1])))
        return out
    wide, half = u.astype(np.float64), 0.5 * width.astype(np.float64)
    return (wide * (half * wide - b)).sum(axis=1)


def gate(field: Array, bias: Array, k: int, binary: bool, level: Array, back: Array = None) -> None:
    """field + bias on its way back, in place; on a GPU.

    Of the first ``k`` columns r times what pools send ``back``, shape (n, k), or where there are
    none times 1/(1 + r²), of binary units σ(level - r²); of the others tanh.
    """
    kind = 2 if back is not None else int(binary)
    by = back if back is not None else level
    sizes = np.uint32(kind), np.uint64(k), np.uint64(field.shape[1]), np.uint64(field.size)
    each("gate", field, (field, bias, by, *sizes))


def pull(grad: Array, x: Array, width: Array, rest: Array) -> None:
    """grad ← grad + width x - rest, for one width, shape (1,), and a rest of each column; on a
    GPU."""
    each("pull", grad, (grad, x, width, rest, np.uint64(x.shape[1]), np.uint64(x.size)))
