"""Rows wherever they are: every kind of source keeps the same laws."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.sparse
import standin

from energyscape.backend import Purpose, stream, to_host
from energyscape.data import Blocks
from energyscape.sources import (
    Rows,
    buffered,
    compute_dtype,
    joined,
    open_rows,
)
from energyscape.sources.pieces import MapPiece, Pieces
from energyscape.sources.reader import THREAD_NAME, read_ahead

N, D, ROOM = 1000, 7, 190
# Row i begins with i, so that a row says which it is.
VALUES = np.random.default_rng(0).random((N, D), dtype=np.float32)
VALUES[:, 0] = np.arange(N)


def _memmap(folder: Path, values: np.ndarray = VALUES, name: str = "x") -> Any:
    np.save(folder / f"{name}.npy", values)
    return np.load(folder / f"{name}.npy", mmap_mode="r")


def _hdf5(folder: Path, values: np.ndarray = VALUES, name: str = "x", **how: Any) -> Any:
    with h5py.File(folder / f"{name}.h5", "w") as file:
        file.create_dataset("X", data=values, **how)
    return h5py.File(folder / f"{name}.h5", "r")["X"]


def _strided(folder: Path) -> Any:
    """Columns of a wider map: rows that do not follow one another in the file."""
    wide = np.zeros((N, D + 3), np.float32)
    wide[:, 2 : D + 2] = VALUES
    return _memmap(folder, wide)[:, 2 : D + 2]


def _pieces(folder: Path) -> Any:
    return joined(
        [
            _hdf5(folder, VALUES[:95], "a", chunks=(30, D), compression="gzip"),
            _memmap(folder, VALUES[95:96], "b"),
            _memmap(folder, VALUES[96:700], "c"),
            _hdf5(folder, VALUES[700:], "d"),
        ]
    )


def _uneven() -> Iterator[np.ndarray]:
    for lo, hi in ((0, 5), (5, 5), (5, 421), (421, 450), (450, N)):
        yield VALUES[lo:hi]


SOURCES: dict[str, Any] = {
    "array": lambda folder: VALUES,
    "csr": lambda folder: scipy.sparse.csr_matrix(VALUES),
    "memmap": _memmap,
    "memmap of columns": _strided,
    "hdf5": _hdf5,
    "hdf5 in chunks": lambda folder: _hdf5(folder, chunks=(30, D), compression="gzip"),
    "hdf5 in chunks longer than a buffer": lambda folder: _hdf5(folder, chunks=(400, D)),
    "pieces": _pieces,
    "blocks": lambda folder: Blocks(_uneven),
    "blocks of a list": lambda folder: Blocks([VALUES[:400], VALUES[400:]], n_rows=N),
}
IN_MEMORY = ("array", "csr")
BUFFERED = [kind for kind in SOURCES if kind not in IN_MEMORY]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not _readers()


def _readers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == THREAD_NAME]


@pytest.fixture(params=["buffers smaller than the rows", "rows fit a buffer"])
def room(request: Any, monkeypatch: Any) -> int:
    n = ROOM if request.param.startswith("buffers") else N
    monkeypatch.setattr(buffered, "BUFFER_BYTES", n * D * 4)
    return n


@pytest.fixture
def small(monkeypatch: Any) -> None:
    monkeypatch.setattr(buffered, "BUFFER_BYTES", ROOM * D * 4)


@pytest.fixture(params=SOURCES)
def rows(request: Any, tmp_path: Path, room: int) -> Rows:
    return _opened(request.param, tmp_path)


def _opened(kind: str, folder: Path) -> Rows:
    rows = open_rows(SOURCES[kind](folder))
    rows.y = np.arange(N)
    return rows


def _order(rows: Rows, size: int = 37, epoch: int = 0) -> np.ndarray:
    """Which rows come, in the order of the batches of an epoch; labels must be with them."""
    seen = []
    for x, y in rows.batches(size, stream(0, Purpose.ORDER, epoch)):
        assert x.dtype == np.float32
        np.testing.assert_array_equal(to_host(x), VALUES[y])
        seen.append(y)
    assert {len(y) for y in seen[:-1]} <= {size} and 0 < len(seen[-1]) <= size
    return np.concatenate(seen)


# ---------------------------------------------------------------- an epoch


@pytest.mark.parametrize("size", [1, 37, 500, 2000])
def test_every_row_comes_once_in_an_order_that_its_address_says(rows: Rows, size: int) -> None:
    """Batches larger than a buffer of ROOM rows among them; rows equal those in memory bit for bit
    and are with their labels."""
    first = _order(rows, size)
    np.testing.assert_array_equal(np.sort(first), np.arange(N))
    np.testing.assert_array_equal(_order(rows, size), first)
    other = _order(rows, size, epoch=1)
    np.testing.assert_array_equal(np.sort(other), np.arange(N))
    # Equal places in two independent orders: Poisson of mean 1 for a whole shuffle; within a buffer
    # more, at most one in ROOM. 100 has a probability below 1e-6.
    assert (first == other).sum() < 100
    assert (np.diff(first) == 1).sum() < 100


@pytest.mark.parametrize("kind", BUFFERED)
def test_what_fits_a_buffer_is_an_array_in_memory(kind: str, tmp_path: Path) -> None:
    """The same batches, picked rows and blocks, after one pass over the file."""
    rows, array = _opened(kind, tmp_path), Rows(VALUES, y=np.arange(N))
    np.testing.assert_array_equal(_order(rows), _order(array))
    picked = rows.pick(50, stream(0, Purpose.INIT))
    np.testing.assert_array_equal(picked, array.pick(50, stream(0, Purpose.INIT)))
    np.testing.assert_array_equal(rows.take(picked), array.take(picked))
    if kind == "memmap":
        (tmp_path / "x.npy").unlink()
        np.testing.assert_array_equal(_order(rows, epoch=3), _order(array, epoch=3))


@pytest.mark.parametrize("kind", BUFFERED)
def test_a_slow_reader_and_a_slow_user_get_the_same_batches(
    kind: str, tmp_path: Path, small: None, monkeypatch: Any
) -> None:
    rows = _opened(kind, tmp_path)
    wanted = _order(rows)
    filler = type(rows).filler

    def slow(self: Any, rng: Any) -> Any:
        fill = filler(self, rng)
        return lambda out: (time.sleep(0.02), fill(out))[1]

    with monkeypatch.context() as patch:
        patch.setattr(type(rows), "filler", slow)
        np.testing.assert_array_equal(_order(rows), wanted)
    seen = []
    for _, y in rows.batches(37, stream(0, Purpose.ORDER)):
        time.sleep(0.002)
        seen.append(y)
    np.testing.assert_array_equal(np.concatenate(seen), wanted)


def test_rows_far_apart_meet_in_a_batch(tmp_path: Path, small: None) -> None:
    """A buffer holds blocks from all over the file: the mean of a batch's row numbers has about
    the spread that 32 random blocks give it, far below that of a file read from front to back
    (0.29 N), which streams have."""
    stored, streamed = _opened("memmap", tmp_path), _opened("blocks", tmp_path)
    spread = [
        np.std([y.mean() for _, y in rows.batches(37, stream(0, Purpose.ORDER))])
        for rows in (stored, streamed)
    ]
    assert spread[0] < 0.12 * N < 0.2 * N < spread[1]


@pytest.mark.parametrize("size", [1, 64, 300, N, 5000])
def test_blocks_are_the_rows_in_their_order(rows: Rows, size: int) -> None:
    if size == 1:
        rows = rows.part(0, 450)
    blocks = list(rows.blocks(size))
    assert {len(block) for block in blocks[:-1]} <= {size}
    found = np.concatenate(blocks)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, VALUES[: len(rows)])


# ---------------------------------------------------------------- some rows


def test_a_part_is_those_rows_and_no_others(rows: Rows) -> None:
    part = rows.part(100, 700)
    assert len(part) == 600 and part.event_shape == (D,)
    np.testing.assert_array_equal(part.take(slice(0, 600)), VALUES[100:700])
    np.testing.assert_array_equal(part.labels(slice(0, 600)), np.arange(100, 700))
    np.testing.assert_array_equal(np.sort(_order(part)), np.arange(100, 700))
    within = part.part(50, 60)
    np.testing.assert_array_equal(within.take(slice(0, 10)), VALUES[150:160])
    np.testing.assert_array_equal(np.concatenate(list(part.blocks(77))), VALUES[100:700])
    for apart in part.split(len(part) // 4, stream(0, Purpose.SPLIT)):
        _order(apart.part(10, 90))
    assert len(rows.part(5, 5)) == 0
    for lo, hi in ((-1, 5), (0, N + 1), (7, 3)):
        with pytest.raises(ValueError, match=f"not among the {N}"):
            rows.part(lo, hi)


def test_a_part_of_an_array_is_a_view() -> None:
    assert np.shares_memory(Rows(VALUES).part(3, 9).X, VALUES)


def test_rows_are_taken_by_slice_and_by_number(rows: Rows) -> None:
    part = rows.part(50, 950)
    for which in (
        slice(0, 3),
        slice(880, 5000),
        slice(5, 5),
        slice(3, 700, 50),
        np.array([7, 8, 9, 300, 301]),
        np.array([300, 7, 899, 7]),
        np.empty(0, np.intp),
    ):
        np.testing.assert_array_equal(part.take(which), VALUES[50:950][which])
    picked = part.pick(130, stream(0, Purpose.REPORT))
    x, y = part.take(picked), part.labels(picked)
    assert len(np.unique(y)) == 130 and 50 <= y.min() <= y.max() < 950
    np.testing.assert_array_equal(x, VALUES[y])
    assert part.pick(900, stream(0, Purpose.REPORT)) == slice(None)


@pytest.mark.parametrize("kind", ["memmap", "hdf5", "pieces", "blocks"])
def test_rows_that_are_not_there_are_refused(kind: str, tmp_path: Path, small: None) -> None:
    rows = _opened(kind, tmp_path).part(0, 500)
    for wrong in (np.array([3, 500]), np.array([-1, 3])):
        with pytest.raises(IndexError):
            rows.take(wrong)


def test_picked_rows_come_from_all_over_a_file(tmp_path: Path, small: None) -> None:
    """Runs from 64 random places: the number in each tenth of the file is within six standard
    deviations (false alarms below 1e-6 over the ten) of what a uniform choice gives."""
    picked = _opened("memmap", tmp_path).pick(192, stream(0, Purpose.INIT))
    counts = np.histogram(picked, 10, (0, N))[0] / 3
    assert counts.sum() == 64
    assert abs(counts - 6.4).max() < 6 * np.sqrt(64 * 0.1 * 0.9)


@pytest.mark.parametrize("kind", ["memmap", "blocks"])
def test_picked_rows_are_as_many_as_memory_holds(
    kind: str, tmp_path: Path, small: None, monkeypatch: Any
) -> None:
    monkeypatch.setattr(buffered, "PICKED_BYTES", 300 * D * 4)
    monkeypatch.setattr(buffered, "FEWEST_PICKED", 20)
    rows = _opened(kind, tmp_path)
    assert len(rows.sample(10, stream(0, Purpose.INIT))) == 10
    assert len(rows.sample(900, stream(0, Purpose.INIT))) == 300
    monkeypatch.setattr(buffered, "FEWEST_PICKED", 500)
    assert len(rows.sample(900, stream(0, Purpose.INIT))) == 500


# ---------------------------------------------------------------- what is held, and for how long


@pytest.mark.parametrize("kind", BUFFERED)
def test_two_buffers_and_no_more_are_held(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Peak memory of a pass is two buffers in the dtype of the file, two batches of left-overs, a
    few batches, the mask of the check for NaN (a quarter of a block) and row numbers."""
    buffer_bytes, batch, wide = 1 << 20, 100, 64
    monkeypatch.setattr(buffered, "BUFFER_BYTES", buffer_bytes)
    values = np.random.default_rng(0).integers(0, 255, (200_000, wide), np.uint8)
    stored = {
        "hdf5 in chunks": lambda: _hdf5(tmp_path, values, chunks=(256, wide)),
        "blocks": lambda: Blocks(lambda: iter(np.array_split(values, 50))),
        "pieces": lambda: joined([_hdf5(tmp_path, values[:9000]), _memmap(tmp_path, values)]),
    }.get(kind, lambda: _memmap(tmp_path, values))
    rows = open_rows(stored())
    for one_pass in (
        lambda: rows.batches(batch, stream(0, Purpose.ORDER)),
        lambda: ((block, None) for block in rows.blocks(batch)),
    ):
        tracemalloc.start()
        n = 0
        for x, _ in one_pass():
            assert x.dtype == np.float32
            n += len(x)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert n == len(rows)
        batches = 6 * batch * wide * 4
        numbers = 5 * 8 * buffer_bytes // wide
        assert peak < 2 * buffer_bytes + batches + numbers + 200_000, peak / buffer_bytes


def test_the_thread_is_one_buffer_ahead_and_waits() -> None:
    filled = []

    def fill(out: np.ndarray) -> np.ndarray:
        filled.append(len(filled))
        out[:] = filled[-1]
        return np.arange(len(out) if len(filled) <= 10 else 0)

    ahead = read_ahead(fill, [np.empty(3), np.empty(3)])
    for i, buffer in enumerate(ahead):
        time.sleep(0.01)
        assert filled[-1] <= i + 1
        np.testing.assert_array_equal(buffer.rows, i)
    assert i == 9


@pytest.mark.parametrize("kind", BUFFERED)
def test_leaving_early_ends_the_thread(kind: str, tmp_path: Path, small: None) -> None:
    rows = _opened(kind, tmp_path)
    batches = rows.batches(10, stream(0, Purpose.ORDER))
    next(batches)
    assert len(_readers()) == 1
    batches.close()  # type: ignore[attr-defined]
    assert not _readers()
    blocks = rows.blocks(10)
    next(blocks)
    del blocks
    assert not _readers()
    with pytest.raises(ZeroDivisionError):
        _fails_within(rows)
    assert not _readers()
    rows.batches(10, stream(0, Purpose.ORDER))  # never begun: no thread
    assert not _readers()


def _fails_within(rows: Rows) -> None:
    for _ in rows.batches(10, stream(0, Purpose.ORDER)):
        raise ZeroDivisionError


def test_a_stream_that_is_left_is_closed(small: None) -> None:
    closed = []

    def arrays() -> Iterator[np.ndarray]:
        try:
            yield from _uneven()
        finally:
            closed.append(threading.current_thread())

    rows = open_rows(Blocks(arrays, n_rows=N))
    closed.clear()
    batches = rows.batches(10, stream(0, Purpose.ORDER))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    del batches
    assert len(closed) == 1


# ---------------------------------------------------------------- files that go wrong


def _cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("kind", ["memmap", "hdf5"])
@pytest.mark.parametrize("harm", [_cut_short, Path.unlink])
def test_a_file_that_goes_is_named_with_its_rows(
    kind: str, harm: Any, tmp_path: Path, small: None
) -> None:
    """In the middle of an epoch, and before one. Without the check of its size HDF5 would give
    zeros for what was cut off, and a map would end the process."""
    rows = _opened(kind, tmp_path)
    (path,) = tmp_path.iterdir()
    batches = rows.batches(37, stream(0, Purpose.ORDER))
    next(batches)
    harm(path)
    for failing in (batches, rows.blocks(10)):
        with pytest.raises(OSError, match=rf"rows \d+ … \d+ of .*{path.name}.* cannot be read"):
            list(failing)
    with pytest.raises(OSError, match=f"rows 5 … 8 of .*{path.name}"):
        rows.take(slice(5, 9))


def test_a_closed_file_is_refused(tmp_path: Path, small: None) -> None:
    dataset = _hdf5(tmp_path)
    rows = open_rows(dataset)
    dataset.file.close()
    with pytest.raises(OSError, match=r"rows 5 … 8 of .*x\.h5:/X cannot be read"):
        rows.take(slice(5, 9))
    with pytest.raises(ValueError, match="keep its file open"):
        open_rows(dataset)


@pytest.mark.parametrize("kind", ["memmap", "hdf5", "pieces", "blocks"])
def test_numbers_that_are_not_finite_are_found(kind: str, tmp_path: Path, small: None) -> None:
    values = VALUES.copy()
    values[612, 3] = np.inf
    X = {
        "memmap": lambda: _memmap(tmp_path, values),
        "hdf5": lambda: _hdf5(tmp_path, values),
        "pieces": lambda: joined([_hdf5(tmp_path, VALUES), _memmap(tmp_path, values)]),
        "blocks": lambda: Blocks([VALUES, values]),
    }[kind]()
    rows = open_rows(X)
    for reading in (rows.batches(37, stream(0, Purpose.ORDER)), rows.blocks(10)):
        with pytest.raises(ValueError, match="NaN or infinity"):
            list(reading)
    with contextlib.suppress(StopIteration):  # those before it are fine
        next(rows.blocks(10))


def test_errors_of_a_stream_come_out(small: None) -> None:
    def arrays() -> Iterator[np.ndarray]:
        yield VALUES[:400]
        raise ConnectionResetError("the loader went away")

    rows = open_rows(Blocks(arrays, n_rows=N))
    with pytest.raises(ConnectionResetError, match="the loader went away"):
        list(rows.batches(37, stream(0, Purpose.ORDER)))


# ---------------------------------------------------------------- memory maps and pieces


def test_maps_are_read_from_their_files_wherever_rows_follow_one_another(tmp_path: Path) -> None:
    values = np.arange(600.0).reshape(50, 4, 3)
    plain = _memmap(tmp_path, values)
    for view in (plain, plain[7:], plain[3:40][2:], plain[:1]):
        piece = MapPiece(view)
        assert piece.start is not None
        out = np.empty(view.shape)
        piece.read(0, len(view), out)
        np.testing.assert_array_equal(out, view)
    raw = np.memmap(tmp_path / "raw", ">f4", "w+", offset=5000, shape=(50, 6))
    raw[:] = np.arange(300).reshape(50, 6)
    piece, out = MapPiece(raw[10:]), np.empty((40, 6), ">f4")
    piece.read(0, 40, out)
    assert piece.start is not None
    np.testing.assert_array_equal(out, raw[10:])
    written = np.load(tmp_path / "x.npy", mmap_mode="c")
    written[3] = 1.0
    for view in (plain[::2], plain[::-1], plain[:, :2], plain[:, :, ::-1], written, written.copy()):
        piece = MapPiece(view)
        assert piece.start is None
        out = np.empty(view.shape)
        piece.read(0, len(view), out)
        np.testing.assert_array_equal(out, view)


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [("u1", "f4"), ("?", "f4"), ("f2", "f4"), (">f4", "f4"), (">f8", "f8"), ("i8", "f8")],
)
def test_rows_stay_as_they_are_stored_until_a_batch_is_made(
    dtype: str, wanted: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(buffered, "BUFFER_BYTES", 500)
    values = (np.random.default_rng(0).random((400, 5)) * 3).astype(dtype)
    assert np.dtype(compute_dtype(dtype)) == wanted
    for X in (_memmap(tmp_path, values), _hdf5(tmp_path, values), Blocks([values])):
        rows = open_rows(X)
        assert rows._empty(3).dtype == values.dtype  # type: ignore[attr-defined]
        batches = [x for x, _ in rows.batches(32, stream(0, Purpose.ORDER))]
        assert {x.dtype for x in batches} == {np.dtype(wanted)}
        seen = np.concatenate(batches)
        np.testing.assert_array_equal(
            seen[np.lexsort(seen.T)], values.astype(wanted)[np.lexsort(values.T)]
        )


def test_blocks_of_pieces_begin_at_chunks_and_stay_in_their_piece(tmp_path: Path) -> None:
    pieces = _pieces(tmp_path)
    blocks = pieces.cut(20, 900, 50)
    assert blocks[:2] == [(20, 60), (60, 95)] and blocks[2] == (95, 96)
    assert blocks[-1][1] == 900 and [b for b, _ in blocks[1:]] == [e for _, e in blocks[:-1]]
    assert max(e - b for b, e in blocks) <= 60


def test_pieces_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    first = _hdf5(tmp_path, VALUES, "first")
    with pytest.raises(ValueError, match=r"piece 1 of 2 \(.*wide\.npy\) has rows of shape \(8,\)"):
        Pieces([first, _memmap(tmp_path, np.zeros((4, 8), np.float32), "wide")])
    with pytest.raises(ValueError, match=r"piece 1 of 2 \(.*bytes\.h5:/X\) .* dtype uint8"):
        Pieces([first, _hdf5(tmp_path, VALUES.astype(np.uint8), "bytes")])
    with pytest.raises(ValueError, match=r"piece 0 of 2 \(.*none\.h5:/X\) has no rows: leave it"):
        Pieces([_hdf5(tmp_path, VALUES[:0], "none"), first])
    with pytest.raises(TypeError, match="piece 1 of 2 is a ndarray, but others are on disk"):
        joined([first, VALUES])
    assert joined([VALUES, VALUES])[0] is VALUES  # nothing on disk: not for us
    flat = [_memmap(tmp_path, VALUES[0], "row")]
    assert joined(flat) is flat  # a list of rows, as scikit-learn has it


# ---------------------------------------------------------------- Blocks


def test_blocks_know_their_shape_and_count_only_when_they_must() -> None:
    passes = []

    def arrays() -> Iterator[np.ndarray]:
        passes.append(1)
        yield from _uneven()

    blocks = Blocks(arrays)
    assert (blocks.dtype, blocks.ndim, len(passes)) == (np.float32, 2, 1)
    assert blocks.shape == (N, D) == (len(blocks), D) and len(passes) == 2
    assert Blocks(arrays, n_rows=300).shape == (300, D) and len(passes) == 3
    rows = open_rows(Blocks(arrays, n_rows=300))
    np.testing.assert_array_equal(np.concatenate(list(rows.blocks(70))), VALUES[:300])


def test_blocks_take_what_can_be_made_an_array(fake_cupy: Any) -> None:
    as_they_come = [
        scipy.sparse.csr_matrix(VALUES[:300]),
        fake_cupy.asarray(VALUES[300:310]),
        VALUES[310:].tolist(),
    ]
    with pytest.raises(ValueError, match=r"array 2 of Blocks .* dtype float64"):
        list(Blocks(as_they_come).arrays())
    found = np.concatenate(list(Blocks([*as_they_come[:2], VALUES[310:]]).arrays()))
    np.testing.assert_array_equal(found, VALUES)


def test_blocks_of_a_dask_array() -> None:
    dask_array = pytest.importorskip("dask.array")
    X = dask_array.from_array(VALUES, chunks=(300, D))
    rows = open_rows(Blocks(lambda: (X.blocks[i] for i in range(X.numblocks[0])), n_rows=N))
    np.testing.assert_array_equal(next(rows.blocks(N)), VALUES)


def test_blocks_refuse_what_they_cannot_go_through_twice(small: None) -> None:
    with pytest.raises(TypeError, match=r"generator, .* only once: .*lambda"):
        Blocks(_uneven())
    with pytest.raises(TypeError, match="needs a source of arrays, got int"):
        Blocks(3)  # type: ignore[arg-type]
    once = _uneven()  # closed once its first array is known
    with pytest.raises(ValueError, match="gave 0 rows in this pass"):
        list(open_rows(Blocks(lambda: once, n_rows=N)).blocks(10))
    with pytest.raises(ValueError, match="without any array"):
        Blocks([])
    with pytest.raises(ValueError, match="without any row"):
        Blocks([VALUES[:0]]).shape  # noqa: B018
    for n_rows in (0, 50.0, True):
        with pytest.raises(ValueError, match="n_rows must be"):
            Blocks([VALUES], n_rows=n_rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [[VALUES], [VALUES, VALUES[:6]]])
def test_a_pass_with_other_rows_than_were_counted_is_an_error(change: Any, small: None) -> None:
    now = [VALUES, VALUES[:5]]
    blocks = Blocks(lambda: iter(now))
    rows = open_rows(blocks)
    now = change
    n = sum(map(len, change))
    with pytest.raises(ValueError, match=f"gave {n} rows in this pass where {N + 5} were wanted"):
        list(rows.batches(37, stream(0, Purpose.ORDER)))
    with pytest.raises(ValueError, match=f"gave {N} rows in this pass where 3000"):
        list(open_rows(Blocks([VALUES], n_rows=3000)).blocks(10))


def test_arrays_of_blocks_must_be_alike(small: None) -> None:
    for odd in (VALUES[:, 1:], VALUES.astype(np.float64)):
        with pytest.raises(ValueError, match=r"array 1 of Blocks has rows of shape .* alike"):
            len(Blocks([VALUES, odd]))
    for wrong in (np.zeros(3), np.array([["a", "b"]])):
        with pytest.raises(ValueError, match=r"array 0 of Blocks has shape .* wanted are numbers"):
            Blocks([wrong])


# ---------------------------------------------------------------- on a GPU


@pytest.mark.parametrize("kind", BUFFERED)
def test_batches_are_handed_out_on_the_device(
    kind: str, tmp_path: Path, room: int, cupy: Any
) -> None:
    rows = _opened(kind, tmp_path)
    wanted = _order(rows)
    rows.device = "cuda:0"
    batches = list(rows.batches(37, stream(0, Purpose.ORDER)))
    for x, y in batches:
        assert isinstance(x, cupy.ndarray) and x.dtype == np.float32
        np.testing.assert_array_equal(x.get(), VALUES[y])
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), wanted)


def test_no_batch_waits_for_the_device(tmp_path: Path, small: None, fake_cupy: Any) -> None:
    """And what is copied to it lies in page-locked memory: two buffers with their left-overs."""
    rows = _opened("hdf5", tmp_path)
    rows.device = "cuda:0"
    standin.Counter.pinned = 0
    for _ in rows.batches(37, stream(0, Purpose.ORDER)):
        pass
    assert standin.Counter.syncs == 0
    assert 2 * ROOM * D * 4 <= standin.Counter.pinned <= 2 * (ROOM + 37) * D * 4 + 1


def test_a_buffer_is_not_filled_while_it_is_copied(
    tmp_path: Path, small: None, fake_cupy: Any, monkeypatch: Any
) -> None:
    """A negative control: copies of the stand-in arrive when they are waited for, so that rows
    change on the way if a buffer does not wait."""
    rows = _opened("hdf5", tmp_path)
    rows.device = "cuda:0"
    send, pools, before = buffered.send, [], []

    def keeping(x: np.ndarray, device: str) -> Any:
        copy, wait = send(x, device)
        pools.append(copy)
        before.append(x.copy())
        return copy, wait if waiting else lambda: None

    monkeypatch.setattr(buffered, "send", keeping)
    for waiting in (True, False):
        pools.clear()
        before.clear()
        for _ in rows.batches(37, stream(0, Purpose.ORDER)):
            pass
        same = [np.array_equal(pool._host, x) for pool, x in zip(pools, before, strict=True)]
        assert len(same) > 4 and all(same) == waiting
