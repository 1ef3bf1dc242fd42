"""NumPy twins of the CUDA kernels: same arguments, written into the same arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

U32, MASK = np.uint64, np.uint64(0xFFFFFFFF)


def philox(block: Any, call: int, step: int, purpose: int, seed: int) -> np.ndarray:
    """Philox4x32-10, shape (len(block), 4), uint32 (Salmon, Moraes, Dror, Shaw, 2011)."""
    block = np.atleast_1d(np.asarray(block, np.uint64))
    c = [block & MASK] + [np.full_like(block, int(v)) for v in (call, step, purpose)]
    k0, k1 = int(seed) & 0xFFFFFFFF, int(seed) >> 32
    for _ in range(10):
        p0, p1 = c[0] * U32(0xD2511F53), c[2] * U32(0xCD9E8D57)
        c = [
            (p1 >> U32(32)) ^ c[1] ^ U32(k0),
            p1 & MASK,
            (p0 >> U32(32)) ^ c[3] ^ U32(k1),
            p0 & MASK,
        ]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, axis=1).astype(np.uint32)


def _words(n: int, per_thread: int, address: tuple[Any, ...]) -> np.ndarray:
    seed, purpose, step, call = (int(a) for a in address)
    return philox(np.arange(-(-n // per_thread)), call, step, purpose, seed)


def _uniform(n: int, dtype: Any, address: tuple[Any, ...]) -> np.ndarray:
    if dtype == np.float32:
        words = _words(n, 4, address)
        return ((words >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)).ravel()[:n]
    words = _words(n, 2, address).astype(np.float64)
    high, low = np.floor(words[:, 0::2] / 32), np.floor(words[:, 1::2] / 64)
    return ((high * 67108864.0 + low) * 2.0**-53).ravel()[:n]


def _fill(out: np.ndarray, values: np.ndarray) -> None:
    out[...] = values.reshape(out.shape)


def random_words(threads: int, seed: Any, purpose: Any, step: Any, call: Any, out: Any) -> None:
    _fill(out, philox(0, call, step, purpose, seed)[0])


def uniform_f(
    threads: int, seed: Any, purpose: Any, step: Any, call: Any, out: np.ndarray, n: Any
) -> None:
    assert threads * (4 if out.dtype == np.float32 else 2) >= n
    _fill(out, _uniform(int(n), out.dtype, (seed, purpose, step, call)))


def normal_f(
    threads: int, seed: Any, purpose: Any, step: Any, call: Any, out: np.ndarray, n: Any
) -> None:
    even = int(n) + (-int(n)) % (4 if out.dtype == np.float32 else 2)
    assert threads * (4 if out.dtype == np.float32 else 2) >= n
    u = _uniform(even, out.dtype, (seed, purpose, step, call)).reshape(-1, 2)
    one, two_pi = out.dtype.type(1), out.dtype.type(2 * np.pi)
    radius, angle = np.sqrt(-2 * np.log(one - u[:, 0])), two_pi * u[:, 1]
    z = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    _fill(out, z.ravel()[: int(n)])


def _biased(a: Any, bias: Any, columns: Any) -> Any:
    assert columns in (0, a.shape[-1]) and (not columns or bias.size == columns)
    return a + bias if columns else a


def bernoulli_logit_f(
    threads: int,
    seed: Any,
    purpose: Any,
    step: Any,
    call: Any,
    a: Any,
    bias: Any,
    out: Any,
    columns: Any,
    n: Any,
) -> None:
    assert threads * (4 if out.dtype == np.float32 else 2) >= n
    u = _uniform(int(n), out.dtype, (seed, purpose, step, call)).reshape(a.shape)
    with np.errstate(over="ignore"):
        out[...] = u * (1 + np.exp(-_biased(a, bias, columns))) < 1


def sigmoid_f(threads: int, a: Any, bias: Any, out: Any, columns: Any, n: Any) -> None:
    assert threads >= n == a.size
    with np.errstate(over="ignore"):
        out[...] = 1 / (1 + np.exp(-_biased(a, bias, columns)))


def softplus_sum_f(threads: int, a: Any, bias: Any, out: Any, columns: Any, biased: Any) -> None:
    assert threads == 256 * len(a) and columns == a.shape[1]
    a = _biased(a, bias, columns if biased else 0)
    terms = np.maximum(a, 0).astype(np.float64) + np.log1p(np.exp(-np.abs(a)))
    out[...] = terms.sum(axis=1)


def descend_f(
    threads: int,
    w: np.ndarray,
    g: np.ndarray,
    v: np.ndarray,
    rate: Any,
    momentum: Any,
    nesterov: Any,
    l1: Any,
    l2: Any,
    n: Any,
) -> None:
    assert threads >= n == w.size
    step = -rate * g
    if momentum > 0:
        v[...] = momentum * v + step
        step = momentum * v + step if nesterov else v
    x = w + step
    w[...] = np.sign(x) * np.maximum(np.abs(x) - l1, 0) / (1 + l2)


def adapt_f(
    threads: int,
    mean: np.ndarray,
    square: np.ndarray,
    g: np.ndarray,
    beta1: Any,
    beta2: Any,
    rest1: Any,
    rest2: Any,
    epsilon: Any,
    n: Any,
) -> None:
    assert threads >= n == g.size
    mean[...] = beta1 * mean + rest1 * g
    square[...] = beta2 * square + rest2 * (g * g)
    g[...] = mean / (np.sqrt(square) + epsilon)


def leapfrog_f(
    threads: int,
    x: Any,
    q: Any,
    g: Any,
    factor: Any,
    columns: Any,
    row_stride: Any,
    column_stride: Any,
    n: Any,
) -> None:
    assert threads >= n == x.size and columns == x.shape[1]
    q -= _stretched(factor, x, columns, row_stride, column_stride) * g
    x += q


def _stretched(factor: Any, like: Any, *strides: Any) -> Any:
    """A factor of few numbers at all places of an array, by its strides."""
    columns, row_stride, column_stride = (int(s) for s in strides)
    assert columns == like.shape[1]
    i = np.arange(like.size)
    at = (i // columns) * row_stride + (i % columns) * column_stride
    return factor.ravel()[at].reshape(like.shape)


def set_off_f(threads: int, x: Any, z: Any, g: Any, scale: Any, moved: Any, q: Any, *rest: Any):
    heat, *strides, n = rest
    assert threads >= n == x.size
    s = _stretched(scale, x, *strides)
    q[...] = z * s - s * s / heat * q.dtype.type(0.5) * g
    moved[...] = x + q


def arrive_f(threads: int, q: Any, z: Any, g: Any, scale: Any, heat: Any, *rest: Any) -> None:
    *strides, n = rest
    assert threads >= n == q.size
    s = _stretched(scale, q, *strides)
    with np.errstate(divide="ignore", invalid="ignore"):
        q[...] = np.where(s > 0, (q - s * s / heat * q.dtype.type(0.5) * g) / s, z)


def accept_f(threads: int, energy: Any, end_energy: Any, z: Any, end_z: Any, u: Any, *rest: Any):
    x, end_x, g, end_g, heat, divergence, columns, *out = rest
    energy_out, x_out, g_out, acceptance, accepted, divergent = out
    assert threads == 256 * len(x) and columns * len(x) == x.size == g.size == z.size
    first, last = (a.reshape(len(x), -1).astype(np.float64) for a in (z, end_z))
    with np.errstate(invalid="ignore"):
        squares = (last * last - first * first).sum(axis=1)
        change = 0.5 * squares + (end_energy - energy) / heat
    change = np.where(np.isfinite(change), change, np.inf)
    accepted[...] = -np.log(1 - u) > change
    column = accepted.reshape(-1, *[1] * (x.ndim - 1))
    x_out[...], g_out[...] = np.where(column, end_x, x), np.where(column, end_g, g)
    energy_out[...] = np.where(accepted, end_energy, energy)
    acceptance[...] = np.exp(-np.maximum(change, 0))
    divergent[...] = abs(change) > divergence


def momentum_f(threads: int, v: Any, b: Any, h: Any, y: Any, t: Any, *rest: Any) -> None:
    share, theta, kind, columns = rest
    assert threads == 256 * len(v) and columns == v.shape[1]
    if kind < 2:
        v += b
        inside = np.where(np.isnan(v), v, 0)
        below = np.where((v < -theta) & (kind == 0), v + theta, inside)
        v[...] = np.where(v > theta, v - theta, below)
    uphill = ((y - v).astype(np.float64) * (v - h)).sum(axis=1) > 0
    before = np.where(uphill, 1, t.astype(np.float64))
    t[...] = 0.5 * (1 + np.sqrt(1 + 4 * before * before))
    share[...] = (before - 1) / t
    y[...] = v + share[:, None] * (v - h)
    h[...] = v


def follow_f(threads: int, mean: Any, value: Any, rate: Any, n: Any) -> None:
    assert threads >= n == mean.size
    mean += rate * (value - mean)


def rank_two_f(threads: int, w: Any, a: Any, b: Any, c: Any, d: Any, columns: Any, n: Any) -> None:
    assert threads >= n == w.size and columns == w.shape[1]
    w -= np.outer(a, b) + np.outer(c, d)


def half_square_f(threads: int, r: Any, z: Any, n: Any) -> None:
    assert threads >= n == r.size
    z[...] = z.dtype.type(0.5) * r * r


def respond_f(threads: int, field: Any, bias: Any, squares: Any, k: Any, columns: Any, n: Any):
    assert threads >= n == squares.size and columns == field.shape[1]
    squares[...] = (field + bias)[:, : int(k)] ** 2


def log_sum_f(threads: int, z: Any, level: Any, out: Any, columns: Any) -> None:
    assert threads == 256 * len(z) and columns == z.shape[1] == level.size
    out[...] = np.log1p(z).astype(np.float64) @ level.astype(np.float64)


def square_sum_f(threads: int, u: Any, width: Any, b: Any, out: Any, columns: Any) -> None:
    assert threads == 256 * len(u) and columns == u.shape[1] == b.size and width.size == 1
    wide = u.astype(np.float64)
    out[...] = (wide * (0.5 * width.astype(np.float64) * wide - b)).sum(axis=1)


def slope_f(threads: int, z: Any, level: Any, out: Any, binary: Any, columns: Any, n: Any) -> None:
    assert threads >= n == z.size and columns == z.shape[1] == level.size
    with np.errstate(over="ignore"):
        out[...] = 1 / (1 + np.exp(z - level)) if binary else level / (1 + z)


def gate_f(threads: int, field: Any, bias: Any, gate: Any, kind: Any, k: Any, columns: Any, n: Any):
    assert threads >= n == field.size and columns == field.shape[1]
    k = int(k)
    field += bias
    r, others = field[:, :k], field[:, k:]
    np.tanh(others, out=others)
    with np.errstate(over="ignore"):
        if kind == 0:
            r /= 1 + r * r
        else:
            r *= 1 / (1 + np.exp(r * r - gate.ravel())) if kind == 1 else gate


def pull_f(threads: int, grad: Any, x: Any, width: Any, rest: Any, columns: Any, n: Any) -> None:
    assert threads >= n == grad.size and columns == x.shape[1] == rest.size
    grad += x * width - rest


def im2col_f(threads: int, x: Any, rows: Any, *sizes: Any) -> None:
    h, w, c, fh, fw, top, left, down, across, n = (int(s) for s in sizes)
    assert threads >= n == rows.size and x.shape[1:] == (h, w, c)
    padded = np.zeros((len(x), down + fh - 1, across + fw - 1, c), x.dtype)
    padded[:, top : top + h, left : left + w] = x
    found = np.lib.stride_tricks.sliding_window_view(padded, (fh, fw), axis=(1, 2))
    rows[...] = found.transpose(0, 1, 2, 4, 5, 3).reshape(rows.shape)


def col2im_f(threads: int, rows: Any, x: Any, *sizes: Any) -> None:
    h, w, c, fh, fw, sh, sw, down, across, n = (int(s) for s in sizes)
    assert threads >= n == x.size and x.shape[1:] == (h, w, c)
    parts = rows.reshape(len(x), down, across, fh, fw, c)
    x[...] = 0
    for a in range(fh):
        for b in range(fw):
            x[:, a : a + down * sh : sh, b : b + across * sw : sw] += parts[:, :, :, a, b]


# The same in float64.
for _name in [name for name in globals() if name.endswith("_f")]:
    globals()[f"{_name[:-2]}_d"] = globals()[_name]
