"""Rows of arrays on disk, read into memory that is there already.

A memory map is not read through its map: the pages of a map count as memory of the process for as
long as they are there, and a file that was cut short kills the process. Its rows are read from the
file instead, at the place where the map has them.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np


def is_file_array(X: Any) -> bool:
    """Whether ``X`` is an HDF5 dataset or a memory map."""
    return isinstance(X, h5py.Dataset | np.memmap)


class Piece:
    """Rows of one array on disk.

    Attributes
    ----------
    name : str
        Where the rows are, for messages.
    shape, dtype
        Of the array, as it is stored.
    chunk : int
        Rows that are stored together.
    """

    chunk = 1

    def __init__(self, X: Any, name: str, path: str | None) -> None:
        self.X, self.name, self._path = X, name, path
        self.shape, self.dtype = tuple(X.shape), np.dtype(X.dtype)
        self._size = os.stat(path).st_size if path is not None and os.path.isfile(path) else None

    def read(self, lo: int, hi: int, out: np.ndarray) -> None:
        """Rows ``lo`` … ``hi - 1`` into ``out``, C-contiguous and of the dtype of the array.

        Raises
        ------
        OSError
            If the file is gone or has become shorter; it names the file and the rows.
        """
        with self._told(lo, hi):
            self._check_size()
            self._read(lo, hi, out)

    def _read(self, lo: int, hi: int, out: np.ndarray) -> None:
        raise NotImplementedError

    def _check_size(self) -> None:
        # HDF5 gives zeros for what lies beyond the end of a file that was cut short.
        if self._size is not None and (now := os.stat(str(self._path)).st_size) < self._size:
            raise OSError(f"the file had {self._size} bytes and has {now} now")

    @contextlib.contextmanager
    def _told(self, lo: int, hi: int) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            text = f"rows {lo} … {hi - 1} of {self.name} cannot be read: {error}"
            raise OSError(text) from error


class DatasetPiece(Piece):
    """Rows of an HDF5 dataset, whose file must stay open."""

    def __init__(self, X: h5py.Dataset) -> None:
        if not X:
            raise ValueError("an HDF5 dataset is closed: keep its file open while it is in use")
        path = X.file.filename
        super().__init__(X, f"{path}:{X.name}", path)
        self.chunk = X.chunks[0] if X.chunks else 1

    def _read(self, lo: int, hi: int, out: np.ndarray) -> None:
        if hi > lo:
            self.X.read_direct(out, np.s_[lo:hi])


class MapPiece(Piece):
    """Rows of a memory map."""

    def __init__(self, X: np.memmap) -> None:
        path = None if X.filename is None else str(X.filename)
        super().__init__(X, path or "a memory map", path)
        self.start = self._place()
        if self.start is not None and X.mode in ("r+", "w+"):
            X.flush()

    def _place(self) -> int | None:
        """Where in the file the first row begins; None where rows do not follow one another there,
        or the file does not hold what the map shows."""
        X, plain = self.X, np.empty((1, *self.shape[1:]), self.dtype)
        if self._size is None or X.mode == "c" or X.strides != plain.strides:
            return None
        mapped = np.frombuffer(X._mmap, np.uint8).__array_interface__["data"][0]
        here = X.__array_interface__["data"][0]
        return X.offset - X.offset % mmap.ALLOCATIONGRANULARITY + here - mapped

    def _read(self, lo: int, hi: int, out: np.ndarray) -> None:
        if self.start is None:
            out[...] = self.X[lo:hi]
            return
        left = memoryview(out.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        row_bytes = len(left) // max(1, hi - lo)
        with open(str(self._path), "rb", buffering=0) as file:
            file.seek(self.start + lo * row_bytes)
            while left:
                got = file.readinto(left)
                if not got:
                    raise OSError(f"the file ends {len(left)} bytes early")
                left = left[got:]


class Pieces:
    """Arrays on disk one after the other, as if they were one.

    Parameters
    ----------
    arrays : sequence of h5py.Dataset and numpy.memmap, each of shape (n_i, *event_shape)

    Attributes
    ----------
    shape, dtype
        Of all rows, as they are stored.

    Raises
    ------
    ValueError
        If a piece is empty, or has rows of another shape or dtype than the first; it names the
        piece.
    """

    def __init__(self, arrays: Sequence[Any]) -> None:
        kinds = [DatasetPiece if isinstance(X, h5py.Dataset) else MapPiece for X in arrays]
        self.pieces: list[Piece] = [kind(X) for kind, X in zip(kinds, arrays, strict=True)]
        first = self.pieces[0]
        if len(self.pieces) > 1:
            for i, piece in enumerate(self.pieces):
                self._compare(i, piece, first)
        self.ends = np.cumsum([piece.shape[0] if piece.shape else 0 for piece in self.pieces])
        self.shape = (int(self.ends[-1]), *first.shape[1:]) if first.shape else ()
        self.dtype, self.ndim = first.dtype, len(first.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise TypeError("rows of several files are not made one array: this needs rows in memory")

    def _compare(self, i: int, piece: Piece, first: Piece) -> None:
        which = f"piece {i} of {len(self.pieces)} ({piece.name})"
        if not piece.shape or piece.shape[0] == 0:
            raise ValueError(f"{which} has no rows: leave it out")
        if (piece.shape[1:], piece.dtype) != (first.shape[1:], first.dtype):
            raise ValueError(
                f"{which} has rows of shape {piece.shape[1:]} and dtype {piece.dtype}, but the "
                f"first ({first.name}) has rows of shape {first.shape[1:]} and dtype "
                f"{first.dtype}: all must be alike"
            )

    def read(self, lo: int, hi: int, out: np.ndarray) -> None:
        """Rows ``lo`` … ``hi - 1`` into ``out``, C-contiguous and of the stored dtype.

        Raises
        ------
        OSError
            If a file cannot be read; it names the file and its rows.
        """
        out = out.reshape(hi - lo, *self.shape[1:])
        done, i = lo, int(np.searchsorted(self.ends, lo, side="right"))
        while done < hi:
            begin = int(self.ends[i]) - self.pieces[i].shape[0]
            until = min(hi, int(self.ends[i]))
            self.pieces[i].read(done - begin, until - begin, out[done - lo : until - lo])
            done, i = until, i + 1

    def cut(self, lo: int, hi: int, size: int) -> list[tuple[int, int]]:
        """Rows ``lo`` … ``hi - 1`` in blocks of about ``size``, none of which reaches into two
        pieces, and which begin where chunks do."""
        blocks = []
        for piece, end in zip(self.pieces, self.ends.tolist(), strict=True):
            begin = end - piece.shape[0]
            step = max(1, round(size / piece.chunk)) * piece.chunk
            first = begin + max(0, lo - begin) // step * step
            for at in range(first, min(hi, end), step):
                if max(at, lo) < min(at + step, hi, end):
                    blocks.append((max(at, lo), min(at + step, hi, end)))
        return blocks


def joined(X: Any, ndim: int = 2) -> Any:
    """A list or tuple of arrays on disk, of ``ndim`` dimensions at least, as one; anything else as
    it is.

    Raises
    ------
    TypeError
        If some of them are on disk and some are not.
    """
    if not isinstance(X, list | tuple) or not any(map(is_file_array, X)):
        return X
    for i, x in enumerate(X):
        if not is_file_array(x):
            raise TypeError(
                f"piece {i} of {len(X)} is a {type(x).__name__}, but others are on disk: give "
                "arrays on disk alone, or energyscape.data.Blocks of them all"
            )
    return X if any(x.ndim < ndim for x in X) else Pieces(X)
