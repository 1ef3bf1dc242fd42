"""Where rows come from: digit sets, the two ways to make bits, files and folders by name."""

from __future__ import annotations

import gzip
import math
import struct
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import sklearn.datasets

from energyscape.backend import Purpose, stream, to_host
from energyscape.data import (
    Binarize,
    binarize,
    data_home,
    digits,
    load_digits,
    load_mnist,
    reading,
    threshold,
)
from energyscape.data.reading import Table, read_table
from energyscape.models import RBM
from energyscape.sources import open_rows
from energyscape.trainers import PCD

Image = pytest.importorskip("PIL.Image")  # absent where only the GPU tests run

FALSE_ALARM = 1e-6


def _allowed(n: int, tests: int = 1) -> float:
    """How far a mean of ``n`` independent values in [0, 1] may lie off, by Hoeffding's bound.

    P(|mean - expected| > t) <= 2 exp(-2 n t²), shared out over ``tests`` comparisons.
    """
    return math.sqrt(math.log(2 * tests / FALSE_ALARM) / (2 * n))


# ---------------------------------------------------------------- digits


def test_digits_are_grey_images() -> None:
    X, y = load_digits()
    assert X.shape == (1797, 64) and X.dtype == np.float32
    assert (X.min(), X.max()) == (0.0, 1.0)
    assert y.shape == (1797,) and y.dtype == np.int64
    bunch = sklearn.datasets.load_digits()
    np.testing.assert_array_equal(X.reshape(-1, 8, 8) * 16, bunch.images)
    np.testing.assert_array_equal(y, bunch.target)


def test_mnist_is_whole(mnist: Any) -> None:
    train, test = mnist
    assert train.shape == (60_000, 784) and test.shape == (10_000, 784)
    for X in mnist:
        assert X.dtype == np.float32 and (X.min(), X.max()) == (0.0, 1.0)
        np.testing.assert_array_equal(np.round(X[:100] * 255), X[:100] * np.float32(255))
    # The mean and deviation of the training pixels that the literature normalises with.
    assert train.mean(dtype=np.float64) == pytest.approx(0.1307, abs=5e-5)
    assert train.std(dtype=np.float64) == pytest.approx(0.3081, abs=5e-5)
    y = load_mnist("test")[1]
    assert y.dtype == np.int64 and y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    # Zeros are dark in the middle, ones are bright there: images are upright and in C order.
    middle = test.reshape(-1, 28, 28)[:, 12:16, 12:16].mean(axis=(1, 2))
    assert middle[y == 1].mean() > 0.5 > 0.2 > middle[y == 0].mean()


def test_mnist_by_name(mnist: Any) -> None:
    table = read_table("mnist-test")
    np.testing.assert_array_equal(table.X, mnist[1])
    assert table.image_shape == (28, 28) and table.y is not None and len(table.y) == 10_000


def test_the_data_folder_follows_the_environment(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("ENERGYSCAPE_DATA", str(tmp_path))
    assert data_home() == tmp_path
    for unset in (lambda: monkeypatch.setenv("ENERGYSCAPE_DATA", ""), lambda: _unset(monkeypatch)):
        unset()
        assert data_home() == Path("data")


def _unset(monkeypatch: Any) -> None:
    monkeypatch.delenv("ENERGYSCAPE_DATA")


@pytest.fixture
def small_mnist(monkeypatch: Any, tmp_path: Path) -> Path:
    """Folder of a set in MNIST's format with three training images; its pixels count up."""
    monkeypatch.setenv("ENERGYSCAPE_DATA", str(tmp_path))
    monkeypatch.setattr(digits, "_MNIST", {"train": ("train", 3)})
    folder = tmp_path / "mnist"
    folder.mkdir()
    pixels = (np.arange(3 * 784) % 256).astype(np.uint8).tobytes()
    _write(folder, "images-idx3", struct.pack(">4I", 0x803, 3, 28, 28) + pixels)
    _write(folder, "labels-idx1", struct.pack(">2I", 0x801, 3) + bytes([5, 0, 4]))
    return folder


def _write(folder: Path, kind: str, content: bytes) -> None:
    (folder / f"train-{kind}-ubyte.gz").write_bytes(gzip.compress(content))


def test_idx_files_are_read_byte_by_byte(small_mnist: Path) -> None:
    X, y = load_mnist()
    np.testing.assert_array_equal(X.ravel(), np.float32(np.arange(3 * 784) % 256) / np.float32(255))
    assert X.shape == (3, 784) and y.tolist() == [5, 0, 4]
    assert X.flags.writeable


def test_missing_mnist_files_are_named(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("ENERGYSCAPE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        load_mnist("test")
    message = str(caught.value)
    assert str(tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz") in message
    assert "ENERGYSCAPE_DATA" in message
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'valid'"):
        load_mnist("valid")


def _images(n: int = 3, magic: int = 0x803, extra: int = 0) -> bytes:
    return gzip.compress(struct.pack(">4I", magic, n, 28, 28) + bytes(3 * 784 + extra))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not gzip",
        gzip.compress(b""),
        gzip.compress(b"not idx"),
        _images(n=4),
        _images(magic=0x801),
        _images(magic=0xD03),
        _images(extra=-1),
        _images(extra=1),
        _images()[:-12],
        _images()[:40],
    ],
    ids=(
        "empty, not gzip, nothing inside, not idx, wrong count, labels, floats, too short, too "
        "long, cut in the checksum, cut in the data"
    ).split(", "),
)
def test_malformed_idx_files_are_refused(small_mnist: Path, content: bytes) -> None:
    (small_mnist / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is not an idx file"):
        load_mnist()


# ---------------------------------------------------------------- bits


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_bits_have_the_grey_values_as_means(dtype: Any) -> None:
    """False-alarm rate 1e-6 over all levels together, by Hoeffding and the union bound."""
    levels = np.array([0.0, 1e-3, 0.25, 0.5, 0.9, 1.0], dtype)
    n = 100_000
    allowed = _allowed(n, len(levels))
    X = np.broadcast_to(levels, (n, len(levels))).copy()
    bits = binarize(X, 0)
    assert bits.dtype == dtype and bits.shape == X.shape
    assert set(np.unique(bits)) == {0.0, 1.0}
    off = np.abs(bits.mean(axis=0, dtype=np.float64) - levels)
    assert (off <= allowed).all()
    assert (bits[:, 0] == 0).all() and (bits[:, -1] == 1).all()
    # Negative controls: bits of a shifted probability, and those of a threshold, are found out.
    shifted = binarize(np.clip(X + dtype(3 * allowed), 0, 1), 0)
    assert (np.abs(shifted.mean(axis=0, dtype=np.float64) - levels)[:-1] > allowed).all()
    assert (np.abs(threshold(X).mean(axis=0) - levels)[[2, 3, 4]] > allowed).all()


def test_bits_of_two_pixels_are_independent() -> None:
    """The share of rows where two fair bits agree, at a false-alarm rate of 1e-6."""
    n = 50_000
    bits = binarize(np.full((n, 2), 0.5, np.float32), 1)
    assert abs((bits[:, 0] == bits[:, 1]).mean() - 0.5) <= _allowed(n)
    # Negative control: one bit for both pixels.
    assert abs((bits[:, 0] == bits[:, 0]).mean() - 0.5) > _allowed(n)


def test_seeds_repeat_and_differ() -> None:
    X = np.full((50, 20), 0.5, np.float32)
    np.testing.assert_array_equal(binarize(X, 3), binarize(X, 3))
    generators = [np.random.default_rng(3), np.random.default_rng(3)]
    first, second = (binarize(X, g) for g in generators)
    np.testing.assert_array_equal(first, second)
    # A thousand fair bits agree in two draws with probability 2**-1000.
    assert not np.array_equal(binarize(X, 3), binarize(X, 4))
    assert not np.array_equal(first, binarize(X, generators[0]))


def test_binary_rows_stay_what_they_are() -> None:
    X = np.random.default_rng(0).integers(0, 2, (40, 5)).astype(np.float32)
    np.testing.assert_array_equal(binarize(X, 0), X)
    np.testing.assert_array_equal(threshold(X), X)


def test_the_input_is_left_alone() -> None:
    X = np.full((4, 3, 2), 0.5)
    for bits in (binarize(X, 0), threshold(X)):
        assert bits.shape == X.shape and not np.shares_memory(bits, X)
    assert (X == 0.5).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_threshold_is_exclusive(dtype: Any) -> None:
    X = np.array([[0, 0.25, 0.5, 0.75, 1]], dtype)
    bits = threshold(X)
    assert bits.dtype == dtype and bits.tolist() == [[0, 0, 0, 1, 1]]
    assert threshold(X, 0.2).tolist() == [[0, 1, 1, 1, 1]]


@pytest.mark.parametrize("function", [binarize, threshold])
def test_only_values_between_0_and_1_become_bits(function: Any) -> None:
    for bad, shown in [(-0.1, r"\[-0\.1, 0\.5\]"), (1.1, r"\[0\.5, 1\.1\]"), (np.nan, "nan")]:
        with pytest.raises(ValueError, match=rf"values in \[0, 1\] are wanted.*{shown}"):
            function(np.array([[0.5, bad]]))
    for dtype in (np.uint8, np.int64, bool):
        with pytest.raises(ValueError, match=r"X has dtype .*; divide by its range"):
            function(np.ones((2, 2), dtype))


def test_cupy_rows_stay_on_the_device(cupy: Any) -> None:
    X = cupy.asarray(np.full((30, 40), 0.5, np.float32))
    for bits in (binarize(X, 0), threshold(X)):
        assert type(bits) is type(X) and bits.dtype == np.float32
    assert set(np.unique(to_host(binarize(X, 0)))) == {0.0, 1.0}


def test_every_batch_is_binarised_afresh(monkeypatch: Any) -> None:
    drawn: list[np.ndarray] = []
    call = Binarize.__call__

    def recorded(self: Any, x: Any, rng: Any) -> Any:
        bits = call(self, x, rng)
        if len(x) == 20:  # a batch, not the rows that the history is measured on
            drawn.append(bits.copy())
        return bits

    monkeypatch.setattr(Binarize, "__call__", recorded)
    X = np.full((60, 8), 0.5, np.float32)

    def fitted() -> RBM:
        trainer = PCD(n_epochs=3, batch_size=20, batch_transform=Binarize())
        return RBM(3, trainer=trainer, random_state=0).fit(X)

    one = fitted()
    batches = drawn.copy()
    assert len(batches) == 9 and all(set(np.unique(b)) == {0.0, 1.0} for b in batches)
    # Two of the 36 pairs of 160 fair bits agree with probability below 36 * 2**-160.
    assert len({b.tobytes() for b in batches}) == 9
    drawn.clear()
    np.testing.assert_array_equal(fitted().params_["W"], one.params_["W"])
    assert all(np.array_equal(a, b) for a, b in zip(batches, drawn, strict=True))


def test_transforms_take_their_bits_from_the_stream_they_are_given() -> None:
    x = np.full((10, 10), 0.5, np.float32)
    bits = [Binarize()(x, stream(0, Purpose.TRANSFORM, step)) for step in (0, 0, 1)]
    np.testing.assert_array_equal(bits[0], bits[1])
    assert not np.array_equal(bits[0], bits[2])


# ---------------------------------------------------------------- rows by name

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3) / 12
LABELS = np.array([0, 1, 0, 1])


def test_known_sets() -> None:
    table = read_table("digits")
    np.testing.assert_array_equal(table.X, load_digits()[0])
    np.testing.assert_array_equal(table.y, load_digits()[1])
    assert table.image_shape == (8, 8)


def test_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", ROWS)
    table = read_table(str(tmp_path / "x.npy"))
    np.testing.assert_array_equal(table.X, ROWS)
    assert not isinstance(table.X, np.memmap)
    assert table.y is None and table.image_shape is None


def test_large_npy_is_mapped(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "x.npy"
    np.save(path, ROWS)
    monkeypatch.setattr(reading, "_IN_MEMORY", path.stat().st_size)
    assert not isinstance(read_table(str(path)).X, np.memmap)
    monkeypatch.setattr(reading, "_IN_MEMORY", path.stat().st_size - 1)
    table = read_table(str(path))
    assert isinstance(table.X, np.memmap) and not table.X.flags.writeable
    np.testing.assert_array_equal(table.X, ROWS)
    np.save(path, ROWS.reshape(2, 2, 3))
    table = read_table(str(path))
    assert isinstance(table.X, np.memmap) and table.X.shape == (2, 6)


def test_mapped_files_stay_as_they_are(tmp_path: Path) -> None:
    X = np.arange(24.0).reshape(2, 3, 4)
    np.save(tmp_path / "X.npy", X)
    mapped = read_table(str(tmp_path / "X.npy"), mapped=True).X
    assert isinstance(mapped, np.memmap) and mapped.shape == (2, 3, 4)
    assert read_table(str(tmp_path / "X.npy")).X.shape == (2, 12)


def test_several_files_are_one_set_of_rows(tmp_path: Path) -> None:
    _save(tmp_path / "b.h5", X=ROWS, y=np.arange(len(ROWS)))
    np.save(tmp_path / "a.npy", ROWS[:1])
    table = read_table(str(tmp_path / "*"))
    assert table.X.shape == (len(ROWS) + 1, 3) and table.y is None
    found = open_rows(table.X).take(slice(None))
    np.testing.assert_array_equal(found, np.concatenate([ROWS[:1], ROWS]))
    _save(tmp_path / "c.h5", X=ROWS[::-1], other=ROWS, y=np.arange(len(ROWS)))
    table = read_table(str(tmp_path / "[bc].h5"))
    np.testing.assert_array_equal(table.y, np.tile(np.arange(len(ROWS)), 2))
    assert read_table(f"{tmp_path}/?.h5:X").X.shape == table.X.shape
    with pytest.raises(TypeError, match="not made one array"):
        np.asarray(table.X)
    with pytest.raises(ValueError, match=r"must match \.npy or \.h5 files of rows: there is none"):
        read_table(str(tmp_path / "*.npz"))
    (tmp_path / "d.txt").touch()
    with pytest.raises(ValueError, match=r"d\.txt is none of them"):
        read_table(str(tmp_path / "*"))


def _save(path: Path, **arrays: np.ndarray) -> str:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name.replace("__", "/")] = array
    return str(path)


@pytest.fixture(params=[".npz", ".h5", ".hdf5"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Name of a file that holds several arrays."""
    return tmp_path / f"x{request.param}"


def _equal(table: Table, X: np.ndarray, y: np.ndarray | None = None) -> None:
    np.testing.assert_array_equal(table.X[:], X)
    assert table.X.dtype == X.dtype and tuple(table.X.shape) == X.shape
    if y is None:
        assert table.y is None
    else:
        np.testing.assert_array_equal(table.y, y)


def test_the_array_called_x_is_taken(file: Path) -> None:
    _equal(read_table(_save(file, X=ROWS, other=LABELS)), ROWS)
    _equal(read_table(_save(file, other=LABELS, X=ROWS, y=LABELS)), ROWS, LABELS)


def test_else_the_only_one(file: Path) -> None:
    _equal(read_table(_save(file, train=ROWS)), ROWS)
    _equal(read_table(_save(file, y=LABELS, train=ROWS)), ROWS, LABELS)


def test_or_the_one_that_is_named(file: Path) -> None:
    spec = _save(file, X=ROWS, test=ROWS[:2])
    _equal(read_table(f"{spec}:test"), ROWS[:2])
    _equal(read_table(f"{spec}:X"), ROWS)


def test_datasets_may_be_nested(tmp_path: Path) -> None:
    spec = _save(tmp_path / "x.h5", set__train=ROWS, set__test=ROWS[:2])
    _equal(read_table(f"{spec}:set/test"), ROWS[:2])
    table = read_table(f"{spec}:set/train")
    assert isinstance(table.X, h5py.Dataset)


def test_paths_need_not_be_normal(file: Path, monkeypatch: Any) -> None:
    _save(file, X=ROWS, test=ROWS[:2])
    monkeypatch.chdir(file.parent)
    file.with_name("deep").mkdir()
    for spec in (file.name, f"./{file.name}", f"deep/../{file.name}", f".//{file.name}"):
        _equal(read_table(spec), ROWS)
        _equal(read_table(f"{spec}:test"), ROWS[:2])


def test_colons_may_be_part_of_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "run:1.npz"
    folder.mkdir()
    np.save(folder / "x.npy", ROWS)
    _equal(read_table(str(folder / "x.npy")), ROWS)
    _equal(read_table(_save(folder / "a:b.npz", X=ROWS)), ROWS)


def test_arrays_that_cannot_be_told_apart_are_named(file: Path) -> None:
    spec = _save(file, a=ROWS, b=ROWS)
    with pytest.raises(ValueError, match=r"several arrays \(a, b\); name one as .*x\.\w+:NAME"):
        read_table(spec)
    with pytest.raises(ValueError, match="has no array 'c'; there are a, b"):
        read_table(f"{spec}:c")
    with pytest.raises(ValueError, match="has no array of rows"):
        read_table(_save(file, y=LABELS))


def test_images_become_rows(tmp_path: Path) -> None:
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.save(tmp_path / "x.npy", images)
    for spec in (str(tmp_path / "x.npy"), _save(tmp_path / "x.npz", X=images, y=LABELS[:2])):
        table = read_table(spec)
        np.testing.assert_array_equal(table.X, images.reshape(2, 12))
        assert table.X.dtype == np.uint8 and table.image_shape == (3, 4)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".hdf5"])
@pytest.mark.parametrize(
    "content",
    [b"", b"text", b"\x93NUMPY", b"PK\x03\x04" + bytes(50)],
    ids=["empty", "text", "npy", "zip"],
)
def test_files_that_are_not_what_they_are_called(
    tmp_path: Path, suffix: str, content: bytes
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\{suffix} cannot be read"):
        read_table(str(path))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
def test_cut_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    np.save(path, ROWS) if suffix == ".npy" else _save(path, X=ROWS)
    whole = path.read_bytes()
    for kept in (len(whole) // 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=rf"x\{suffix} cannot be read"):
            read_table(str(path))


def test_a_name_that_hides_another_format(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", X=ROWS)
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with pytest.raises(ValueError, match=r"x\.npy"):
        read_table(str(tmp_path / "x.npy"))
    np.save(tmp_path / "z.npy", ROWS)
    (tmp_path / "z.npy").rename(tmp_path / "z.npz")
    with pytest.raises(ValueError, match=r"z\.npz"):
        read_table(str(tmp_path / "z.npz"))


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}, {}], object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", X=np.array([{}, {}], object))
    for name in ("x.npy", "x.npz"):
        with pytest.raises(ValueError, match=rf"{name}.*allow_pickle=False"):
            read_table(str(tmp_path / name))


def test_what_is_no_table_says_what_is(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"'nothing' is neither a file, nor a folder, nor one of digits, mnist, mnist-test",
    ):
        read_table("nothing")
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"x\.csv is none of \.npy, \.npz, \.h5, \.hdf5, and no f"):
        read_table(str(tmp_path / "x.csv"))


# ---------------------------------------------------------------- folders of images


def _picture(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three grey images of 2x3 pixels, and a file that is none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, name in enumerate(("b.png", "a.PNG", "c.bmp")):
        _picture(folder / name, np.full((2, 3), 100 * i, np.uint8) + np.uint8([0, 1, 2]))
    (folder / "readme.txt").write_text("text")
    return folder


def test_folders_of_images_are_read_in_the_order_of_their_names(pictures: Path) -> None:
    table = read_table(str(pictures))
    assert table.X.dtype == np.float32 and table.image_shape == (2, 3) and table.y is None
    row = np.array([0, 1, 2, 0, 1, 2])
    wanted = np.array([100 + row, row, 200 + row])
    np.testing.assert_array_equal(table.X, np.float32(wanted) / np.float32(255))


def test_colours_become_grey(tmp_path: Path) -> None:
    _picture(tmp_path / "x.png", np.array([[[255, 255, 255], [0, 0, 0], [255, 0, 0]]], np.uint8))
    # ITU-R 601 luma of pure red: 0.299, in 8 bits.
    np.testing.assert_allclose(read_table(str(tmp_path)).X, [[1, 0, 0.299]], atol=1 / 255)


def test_bilevel_and_16_bit_images_keep_their_range(tmp_path: Path) -> None:
    bits = np.array([[True, False], [False, True]])
    deep = np.array([[0, 256], [32768, 65535]], np.uint16)
    for name, pixels, wanted in [("bits", bits, [1, 0, 0, 1]), ("deep", deep, deep / 65535)]:
        folder = tmp_path / name
        folder.mkdir()
        _picture(folder / "x.png", pixels)
        np.testing.assert_allclose(read_table(str(folder)).X, np.reshape(wanted, (1, 4)), atol=1e-6)


def test_images_of_an_unknown_range_are_refused(tmp_path: Path) -> None:
    _picture(tmp_path / "x.tif", np.array([[0.0, 1000.0]], np.float32))
    with pytest.raises(ValueError, match=r"x\.tif has 32-bit pixels of an unknown range"):
        read_table(str(tmp_path))


def test_images_of_different_sizes_are_refused(pictures: Path) -> None:
    _picture(pictures / "d.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(ValueError, match=r"d\.png is \(3, 3\), but a\.PNG is \(2, 3\): a folder"):
        read_table(str(pictures))


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("text")
    with pytest.raises(ValueError, match=r"no images \(\.bmp, .*\.tiff\) in "):
        read_table(str(tmp_path))


def test_a_broken_image_is_named(pictures: Path) -> None:
    (pictures / "broken.png").write_bytes(b"text")
    with pytest.raises(OSError, match=r"broken\.png"):
        read_table(str(pictures))


def test_folders_need_pillow(pictures: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ValueError, match=r"needs Pillow: pip install 'energyscape\[images\]'"):
        read_table(str(pictures))
