"""Rows of training data, wherever they are.

`Rows` are in memory; `StoredRows` are read from memory maps and HDF5 datasets, `StreamedRows` from
an iterable of arrays (`Blocks`). `open_rows` picks.
"""

from __future__ import annotations

from typing import Any

from energyscape.sources.blocks import Blocks, StreamedRows
from energyscape.sources.buffered import BufferedRows, StoredRows
from energyscape.sources.pieces import Pieces, is_file_array, joined
from energyscape.sources.rows import Rows, compute_dtype, rows_per_block

__all__ = [
    "Blocks",
    "BufferedRows",
    "Pieces",
    "Rows",
    "StoredRows",
    "StreamedRows",
    "compute_dtype",
    "is_stored",
    "joined",
    "open_rows",
    "rows_per_block",
]


def is_stored(X: Any) -> bool:
    """Whether rows of ``X`` are to be read by blocks: an open HDF5 dataset, a memory map, several
    of them `joined`, or `Blocks`."""
    return is_file_array(X) or isinstance(X, Pieces | Blocks)


def open_rows(X: Any, event_shape: tuple[int, ...] | None = None) -> Rows:
    """Rows of whatever holds them: an array in memory, CSR, or what `is_stored`."""
    if isinstance(X, Blocks):
        return StreamedRows(X, event_shape=event_shape)
    kind = StoredRows if is_stored(X) else Rows
    return kind(X, event_shape=event_shape)
