"""Rows of an iterable of arrays, of which nothing can be read but what comes next."""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Callable, Generator, Iterable
from typing import Any

import numpy as np
import scipy.sparse

from energyscape.backend import Array, to_host
from energyscape.sources.buffered import BufferedRows, Fill

_WAY_OUT = (
    "every epoch begins anew, so give a function that returns a fresh iterator, as in "
    "Blocks(lambda: make_arrays()), or something that can be iterated again, such as a list"
)


class Blocks:
    """Rows that come as arrays, one after the other: more than fit in memory, as the X of a fit.

    Models take it where they take an array. Arrays are read by a thread, cut, and shuffled inside a
    buffer of 64 MiB: what the source has put far apart stays far apart, so it should mix its rows.
    Rows from the middle are reached by reading all that come before them. The rows that
    parameters start from and that the history is measured at are therefore the first ones, and
    those that ``validation_fraction`` sets apart are the last.

    Parameters
    ----------
    source : callable or iterable
        A function without arguments that returns a fresh iterator of arrays, or an object that can
        be iterated again and again (a list of arrays, a loader). Arrays, also CuPy's, CSR matrices
        and those of Dask, have shape (n_i, \\*event_shape) with any n_i, also 0, equal event shapes
        and one dtype of numbers.
    n_rows : int, optional
        Rows of a pass, at which it ends; default: all there are, counted in a pass of its own.

    Attributes
    ----------
    shape : tuple of int
        (rows of a pass, \\*event_shape).
    dtype : numpy.dtype
        Of the rows as they come.
    ndim : int

    Raises
    ------
    TypeError
        If the source can be gone through only once.
    ValueError
        If there is no array, if arrays differ in dtype or in the shape of rows, or if a pass has
        fewer rows than another one or than ``n_rows``.

    Examples
    --------
    >>> import numpy as np
    >>> from energyscape.data import Blocks
    >>> from energyscape.models import RBM
    >>> def arrays():
    ...     for seed in range(5):
    ...         yield np.random.default_rng(seed).random((20, 8)) < 0.5
    >>> RBM(4, random_state=0).partial_fit(Blocks(arrays)).transform(Blocks(arrays)).shape
    (100, 4)
    """

    def __init__(
        self, source: Callable[[], Iterable[Any]] | Iterable[Any], n_rows: int | None = None
    ) -> None:
        whole = isinstance(n_rows, numbers.Integral) and not isinstance(n_rows, bool)
        if n_rows is not None and (not whole or n_rows < 1):
            raise ValueError(f"n_rows must be None or an integer of at least 1, got {n_rows!r}")
        self.source, self.n_rows = source, n_rows
        with contextlib.closing(self._items()) as items:
            first = next(items, None)
        if first is None:
            raise ValueError("Blocks got a source without any array")
        array = _dense(first, 0)
        self._event_shape, self.dtype = array.shape[1:], array.dtype
        self.ndim = array.ndim
        self._n = n_rows

    @property
    def shape(self) -> tuple[int, ...]:
        if self._n is None:
            self._n = sum(len(array) for array in self.arrays())
            if not self._n:
                raise ValueError("Blocks got a source without any row")
        return self._n, *self._event_shape

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise TypeError("Blocks are not made one array: this needs rows in memory")

    def _items(self) -> Generator[Any, None, None]:
        iterable = self.source() if callable(self.source) else self.source
        try:
            iterator = iter(iterable)
        except TypeError as error:
            raise TypeError(
                f"Blocks needs a source of arrays, got {type(iterable).__name__}: {_WAY_OUT}"
            ) from error
        if iterator is self.source:
            raise TypeError(
                f"Blocks got a {type(iterator).__name__}, which can be gone through only once: "
                f"{_WAY_OUT}"
            )
        try:
            yield from iterator
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    def arrays(self) -> Generator[np.ndarray, None, None]:
        """The arrays of one pass, on the host, checked for their shape and dtype."""
        for i, item in enumerate(self._items()):
            array = _dense(item, i)
            if (array.shape[1:], array.dtype) != (self._event_shape, self.dtype):
                raise ValueError(
                    f"array {i} of Blocks has rows of shape {array.shape[1:]} and dtype "
                    f"{array.dtype}, but the first has rows of shape {self._event_shape} and dtype "
                    f"{self.dtype}: all must be alike"
                )
            yield array


def _dense(item: Any, i: int) -> np.ndarray:
    array = np.asarray(item.toarray() if scipy.sparse.issparse(item) else to_host(item))
    if array.ndim < 2 or array.dtype.kind not in "fiub":
        raise ValueError(
            f"array {i} of Blocks has shape {array.shape} and dtype {array.dtype}; wanted are "
            "numbers of shape (n, *event_shape)"
        )
    return array


class StreamedRows(BufferedRows):
    """Rows of `Blocks`, in the order in which they come, shuffled in a buffer.

    Parameters
    ----------
    X : Blocks
    lo, hi : int
        The range of rows that counts; those before it are read and dropped.
    """

    def filler(self, rng: Any) -> Fill:
        pieces, number = self._pieces(), 0
        rest = np.empty((0, *self.X.shape[1:]), self.X.dtype)

        def fill(out: np.ndarray) -> np.ndarray:
            nonlocal rest, number
            done = 0
            while done < len(out):
                if not len(rest):
                    rest = next(pieces, rest)
                    if not len(rest):
                        break
                n = min(len(rest), len(out) - done)
                out[done : done + n] = rest[:n].reshape(n, *self.event_shape)
                rest, done = rest[n:], done + n
            number += done
            return np.arange(number - done, number)

        return fill

    def _pieces(self) -> Generator[np.ndarray, None, None]:
        """What arrays have of rows ``lo`` … ``hi - 1``, checked for their values."""
        end, n = 0, self.X.shape[0]
        counted = self.hi == n and self.X.n_rows is None
        with contextlib.closing(self.X.arrays()) as arrays:
            for i, array in enumerate(arrays):
                begin, end = end, end + len(array)
                piece = array[max(0, self.lo - begin) : self.hi - begin]
                if piece.dtype.kind == "f" and not np.isfinite(piece).all():
                    raise ValueError(f"Input X contains NaN or infinity (in array {i} of Blocks)")
                if len(piece):
                    yield piece
                if end >= self.hi and not counted:
                    return
        if end != n:
            raise ValueError(
                f"the source of Blocks gave {end} rows in this pass where {n} were wanted: "
                f"{_WAY_OUT}"
            )

    def take(self, rows: Any) -> Array:
        """Rows by index or slice, in the dtype that is computed in, from one pass that ends with
        the last of them."""
        if self.is_loaded(rows):
            return self._in_memory().take(rows)
        wanted = np.asarray(range(len(self))[rows] if isinstance(rows, slice) else rows)
        until = int(wanted.max(initial=-1)) + 1
        if until > len(self) or wanted.min(initial=0) < 0:
            raise IndexError(f"rows are 0 … {len(self) - 1}, got {wanted.min()} … {until - 1}")
        found, lo = self._found(len(wanted)), 0
        first = type(self)(self.X, self.lo, self.lo + until, None, self.event_shape)
        with contextlib.closing(first._pieces()) as pieces:
            for piece in pieces if until else ():
                here = np.flatnonzero((lo <= wanted) & (wanted < lo + len(piece)))
                found[here] = piece[wanted[here] - lo].reshape(-1, *self.event_shape)
                lo += len(piece)
        return self._cast(found)

    def pick(self, n: int, rng: Any) -> Any:
        """The first ``n`` rows: no others can be had without reading what comes before."""
        n = self.affordable(n)
        return super().pick(n, rng) if n >= len(self) or len(self) <= self.room else slice(0, n)
