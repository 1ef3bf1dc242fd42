"""First and second moments of rows as additive sums, exact enough for float32 rows far from 0; sums
over groups of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse

from energyscape.backend import Array, is_gpu_array, namespace
from energyscape.io import thread_pools
from energyscape.verbs import Params

# Elements of a block: few enough to stay in the cache, many enough for a good product.
_BLOCK, _ON_GPU = 1 << 17, 1 << 26
_LARGE = 256  # a matrix whose leading axes are quicker to find alone


def moment_sums(x: Array, offset: Array) -> Params:
    """``rows`` n, ``x`` Σz and ``xx`` Σzz' of z = x - offset, float64.

    With ``offset`` near the rows nothing cancels: blocks are summed in the dtype of the rows and
    put together in float64. It is the caller's to keep it the same over all that is added up.
    """
    xp, (n, d) = namespace(x), x.shape
    first, second = xp.zeros(d, np.float64), xp.zeros((d, d), np.float64)
    size = max(4 * d, 256, (_ON_GPU if is_gpu_array(x) else _BLOCK) // d)
    ones = xp.ones(min(size, n), x.dtype)
    far = is_gpu_array(x) or offset.any()  # to ask a GPU would be to wait for it
    block = xp.empty((min(size, n) if far else 0, d), x.dtype)
    for lo in range(0, n, size):
        away = x[lo : lo + size]
        if far:
            away = xp.subtract(away, offset, out=block[: len(away)])
        first += ones[: len(away)] @ away
        second += away.T @ away  # which NumPy makes at half the cost of another product
    return {"rows": xp.asarray(float(n)), "x": first, "xx": second}


def origin(mean: Array, spread: Array) -> Array:
    """Where sums are best taken about: 0 where rows are as near to it as to each other, so that
    nothing need be subtracted, else the mean. A feature's variance keeps all but ten roundings."""
    far = (mean * mean > 10 * spread).any()
    return namespace(mean).where(far, mean, 0.0)


def mean_and_spread(x: Array) -> tuple[Array, Array]:
    """Mean and variance of each feature, float64; a variance that is but rounding is replaced by
    the features' mean variance, or 1."""
    xp, mean = namespace(x), x.mean(axis=0, dtype=np.float64)
    away = x - mean.astype(x.dtype)
    variance = xp.einsum("ij,ij->j", away, away).astype(np.float64) / len(x)
    rounding = (10 * float(np.finfo(x.dtype).eps) * mean) ** 2
    variance = xp.where(variance > rounding, variance, 0.0)
    average = variance.mean()
    return mean, xp.where(variance > 0, variance, xp.where(average > 0, average, 1.0))


def mean_and_scatter(stats: Params) -> tuple[Array, Array]:
    """The mean less the offset, and Σ(x - mean)(x - mean)', of what `moment_sums` gave."""
    mean = stats["x"] / stats["rows"]
    return mean, stats["xx"] - stats["rows"] * namespace(mean).outer(mean, mean)


def leading_axes(matrix: Array, count: int) -> tuple[Array, Array]:
    """The ``count`` largest eigenvalues of a symmetric matrix, falling, with their vectors.

    Each vector's largest entry is positive, so that results do not depend on a solver's signs.
    """
    xp, n = namespace(matrix), len(matrix)
    if n > _LARGE and 2 * count < n and not is_gpu_array(matrix):
        # A third of the time of all axes; on one thread, because SciPy's BLAS has threads of its
        # own, which would wait in NumPy's way for a while afterwards.
        with thread_pools().limit(limits=1, user_api="blas"):
            values, vectors = scipy.linalg.eigh(matrix, subset_by_index=(n - count, n - 1))
    else:
        values, vectors = xp.linalg.eigh(matrix)
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    return xp.maximum(values, 0), signed(vectors)


def signed(vectors: Array) -> Array:
    """Columns with their largest entry made positive."""
    xp = namespace(vectors)
    largest = abs(vectors).argmax(axis=0)
    return vectors * xp.sign(vectors[largest, xp.arange(vectors.shape[1])])


def group_sums(z: Array, groups: Array, k: int, weights: Array = None) -> Array:
    """Sums over the rows of each group, weighted if asked.

    Parameters
    ----------
    z : array, shape (n, d)
    groups : array of int, shape (n,)
        In [0, k).
    k : int
        Groups, those without rows included.
    weights : array, shape (n,), optional

    Returns
    -------
    array, shape (k, d), dtype of ``z``
    """
    if is_gpu_array(z):  # a product: the order of scattered additions would not be fixed
        rows = one_hot(groups, k, z.dtype)
        return (rows if weights is None else rows * weights[:, None]).T @ z
    each = np.ones(len(z), z.dtype) if weights is None else weights
    return scipy.sparse.csr_array((each, groups, np.arange(len(z) + 1)), shape=(len(z), k)).T @ z


def one_hot(labels: Array, k: int, dtype: Any) -> Array:
    """Rows of zeros with a 1 at each label, shape (n, k)."""
    return (labels[:, None] == namespace(labels).arange(k)).astype(dtype)
