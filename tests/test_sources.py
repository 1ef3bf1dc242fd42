"""Rows wherever they are: every kind of source keeps the same laws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.sparse

from energyscape.backend import Purpose, stream
from energyscape.sources import Rows, StoredRows

N, D = 1000, 7
# Row i begins with i, so that a row says which it is.
VALUES = np.random.default_rng(0).random((N, D), dtype=np.float32)
VALUES[:, 0] = np.arange(N)


def _memmap(folder: Path) -> Any:
    np.save(folder / "x.npy", VALUES)
    return np.load(folder / "x.npy", mmap_mode="r")


def _hdf5(folder: Path) -> Any:
    file = h5py.File(folder / "x.h5", "w")
    return file.create_dataset("X", data=VALUES, chunks=(30, D))


KINDS: dict[str, Any] = {
    "array": lambda folder: Rows(VALUES, y=np.arange(N)),
    "csr": lambda folder: Rows(scipy.sparse.csr_matrix(VALUES), y=np.arange(N)),
    "memmap": lambda folder: StoredRows(_memmap(folder), y=np.arange(N)),
    "hdf5": lambda folder: StoredRows(_hdf5(folder), y=np.arange(N)),
}


@pytest.fixture(params=KINDS)
def rows(request: Any, tmp_path: Path) -> Rows:
    return KINDS[request.param](tmp_path)


def _order(rows: Rows, size: int = 37, epoch: int = 0) -> np.ndarray:
    """Which rows come, in the order of the batches of an epoch; labels must be with them."""
    seen = []
    for x, y in rows.batches(size, stream(0, Purpose.ORDER, epoch)):
        np.testing.assert_array_equal(x, VALUES[y])
        seen.append(y)
    assert {len(y) for y in seen[:-1]} <= {size}
    return np.concatenate(seen)


def test_a_part_is_those_rows_and_no_others(rows: Rows) -> None:
    part = rows.part(100, 700)
    assert len(part) == 600 and part.event_shape == (D,)
    np.testing.assert_array_equal(part.take(slice(0, 600)), VALUES[100:700])
    np.testing.assert_array_equal(part.labels(slice(0, 600)), np.arange(100, 700))
    np.testing.assert_array_equal(np.sort(_order(part)), np.arange(100, 700))
    within = part.part(50, 60)
    np.testing.assert_array_equal(within.take(slice(0, 10)), VALUES[150:160])
    for apart in part.split(0.25, stream(0, Purpose.SPLIT)):
        _order(apart.part(10, 90))
    assert len(rows.part(5, 5)) == 0
    for lo, hi in ((-1, 5), (0, N + 1), (7, 3)):
        with pytest.raises(ValueError, match=f"not among the {N}"):
            rows.part(lo, hi)


def test_a_part_of_an_array_is_a_view() -> None:
    assert np.shares_memory(Rows(VALUES).part(3, 9).X, VALUES)
