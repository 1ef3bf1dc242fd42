"""Rows of arrays in memory: indexed in any order, never copied as a whole."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse
import sklearn

from energyscape.backend import Array, is_gpu_array, namespace


def compute_dtype(dtype: Any) -> type[np.floating[Any]]:
    """The dtype that rows of ``dtype`` are computed in.

    float32 and float64 stay, in the machine's own order of bytes; bool, 8-bit integers and float16
    are exact in float32; all other integers go to float64.
    """
    dtype = np.dtype(dtype).newbyteorder("=")
    if dtype == np.float32 or dtype.itemsize == 1 or dtype == np.float16:
        return np.float32
    return np.float64


def rows_per_block(row_bytes: int) -> int:
    """Rows of a block that fits scikit-learn's ``working_memory``, at least 1."""
    return max(1, int(sklearn.get_config()["working_memory"] * (1 << 20)) // max(1, row_bytes))


class Rows:
    """Rows of an array in memory (NumPy, CuPy or CSR), in whatever order is asked for.

    Parameters
    ----------
    X : array, shape (n, *event_shape), or CSR matrix
    index : integer array, optional
        The rows that count; default all.
    y : array, shape (n,), optional
        Labels of the rows of ``X``, on the host.
    event_shape : tuple of int, optional
        Shape to give every row, with as many elements as it has.

    Attributes
    ----------
    device : str
        Where a fit computes, "cpu" unless it says otherwise: rows that are read through buffers
        hand their batches out there.
    """

    device = "cpu"

    def __init__(
        self,
        X: Any,
        index: np.ndarray | None = None,
        y: np.ndarray | None = None,
        event_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.X, self.index, self.y = X, index, y
        self.event_shape = tuple(X.shape[1:]) if event_shape is None else event_shape

    def __len__(self) -> int:
        return self.X.shape[0] if self.index is None else len(self.index)

    @property
    def dtype(self) -> Any:
        return compute_dtype(self.X.dtype)

    @property
    def row_bytes(self) -> int:
        """Size of a row in the dtype that is computed in."""
        return int(np.prod(self.event_shape)) * np.dtype(self.dtype).itemsize

    def take(self, rows: Any) -> Array:
        """Rows by index or slice, dense, in the dtype that is computed in."""
        if self.index is not None:
            rows = self.index[rows]
        if is_gpu_array(self.X) and isinstance(rows, np.ndarray):
            rows = namespace(self.X).asarray(rows)
        part = self.X[rows]
        if scipy.sparse.issparse(part):
            part = part.toarray()
        part = part.astype(self.dtype, copy=False)
        return part.reshape(len(part), *self.event_shape)

    def labels(self, rows: Any) -> np.ndarray | None:
        """Labels by index or slice; None where there are none."""
        if self.y is None:
            return None
        return self.y[rows if self.index is None else self.index[rows]]

    def labelled(self, y: np.ndarray) -> Rows:
        """The same rows with labels of any shape, one for each of them in their order."""
        rows = copy.copy(self)
        rows.y = np.empty((self.X.shape[0], *y.shape[1:]), y.dtype)
        rows.y[self._mine()] = y
        return rows

    def _mine(self) -> Any:
        """Where these rows are in ``X``."""
        return slice(None) if self.index is None else self.index

    def pick(self, n: int, rng: Any) -> Any:
        """Indices of ``n`` random rows, or of all in their order where there are no more."""
        if n >= len(self):
            return slice(None)
        return np.sort(rng.choice(len(self), n))

    def sample(self, n: int, rng: Any) -> Array:
        """The rows of `pick`."""
        return self.take(self.pick(n, rng))

    def batches(self, batch_size: int, rng: Any) -> Iterator[tuple[Array, np.ndarray | None]]:
        """One pass over all rows in a random order, with their labels; the last may be short."""
        order = rng.permutation(len(self))
        for lo in range(0, len(order), batch_size):
            rows = order[lo : lo + batch_size]
            yield self.take(rows), self.labels(rows)

    def blocks(self, size: int) -> Iterator[Array]:
        """One pass over all rows in their order."""
        for lo in range(0, len(self), size):
            yield self.take(slice(lo, min(lo + size, len(self))))

    def part(self, lo: int, hi: int) -> Rows:
        """Rows ``lo`` … ``hi - 1`` with their labels, as a view.

        Raises
        ------
        ValueError
            Unless 0 ≤ lo ≤ hi ≤ the number of rows.
        """
        check_part(lo, hi, len(self))
        if self.index is None and not scipy.sparse.issparse(self.X):
            y = None if self.y is None else self.y[lo:hi]
            return Rows(self.X[lo:hi], None, y, self.event_shape)
        index = np.arange(lo, hi) if self.index is None else self.index[lo:hi]
        return Rows(self.X, index, self.y, self.event_shape)

    def split(self, held_out: int, rng: Any) -> tuple[Rows, Rows]:
        """Random rows set apart: (the rest, ``held_out`` of them), by index, without a copy."""
        order = rng.permutation(len(self))
        kept, apart = np.sort(order[held_out:]), np.sort(order[:held_out])
        return tuple(  # type: ignore[return-value]
            Rows(self.X, index, self.y, self.event_shape) for index in (kept, apart)
        )


def check_part(lo: int, hi: int, n: int) -> None:
    """Raise ValueError unless ``lo`` … ``hi - 1`` are among ``n`` rows."""
    if not 0 <= lo <= hi <= n:
        raise ValueError(f"rows {lo} … {hi - 1} are not among the {n} there are")
