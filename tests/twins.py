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


def bernoulli_logit_f(
    threads: int, seed: Any, purpose: Any, step: Any, call: Any, a: Any, out: Any, n: Any
) -> None:
    assert threads * (4 if out.dtype == np.float32 else 2) >= n
    u = _uniform(int(n), out.dtype, (seed, purpose, step, call)).reshape(a.shape)
    with np.errstate(over="ignore"):
        out[...] = u * (1 + np.exp(-a)) < 1


def softplus_sum_f(threads: int, a: np.ndarray, out: np.ndarray, columns: Any) -> None:
    assert threads == 256 * len(a) and columns == a.shape[1]
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
    i = np.arange(x.size)
    at = (i // int(columns)) * int(row_stride) + (i % int(columns)) * int(column_stride)
    q -= factor.ravel()[at].reshape(x.shape) * g
    x += q


uniform_d, normal_d, bernoulli_logit_d = uniform_f, normal_f, bernoulli_logit_f
softplus_sum_d, descend_d, leapfrog_d = softplus_sum_f, descend_f, leapfrog_f
