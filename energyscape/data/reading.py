"""Rows by name: what the command line accepts where it says DATA."""

from __future__ import annotations

import contextlib
import glob
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from energyscape.data.digits import load_digits, load_mnist
from energyscape.sources import joined

_IN_MEMORY = 2 << 30  # larger .npy files are mapped instead of read
_IMAGES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}


@dataclass
class Table:
    """Rows with what came along.

    Attributes
    ----------
    X : array, memory map, HDF5 dataset or several of the last two, shape (n, n_features)
    y : array, shape (n,), or None
    image_shape : (h, w) or None
    """

    X: Any
    y: np.ndarray | None = None
    image_shape: tuple[int, ...] | None = None


def read_table(spec: str, mapped: bool = False) -> Table:
    """Rows from a file, a folder of images, or a known set.

    Parameters
    ----------
    spec : str
        ``mnist``, ``mnist-test`` or ``digits``; a folder of images of one size (needs Pillow; grey
        values in [0, 1]); or a ``.npy``, ``.npz`` or ``.h5`` file. In the last two, ``file:name``
        picks an array; else the one called X, or the only one. A labels array is called y. With
        ``*``, ``?`` or ``[...]``, all ``.npy`` and ``.h5`` files that match, in the order of their
        names, are one set of rows, which stay on disk.
    mapped : bool, default=False
        Leave ``.npy`` files of any size on disk, and images in files as they are.

    Returns
    -------
    Table

    Raises
    ------
    FileNotFoundError, ValueError
        Saying what was looked for and what there is.
    """
    if spec in _KNOWN:
        return _KNOWN[spec]()
    name, colon, key = spec.rpartition(":")
    if not colon or Path(name).suffix not in (".npz", ".h5", ".hdf5"):
        name, key = spec, ""
    path = Path(name)
    if path.is_dir():
        return _read_folder(path)
    if glob.has_magic(name) and not path.exists():
        return _read_many(name, key)
    if not path.is_file():
        raise FileNotFoundError(
            f"{spec!r} is neither a file, nor a folder, nor one of {', '.join(_KNOWN)}"
        )
    npy = _map_npy if mapped else _read_npy
    reader = {".npy": npy, ".npz": _read_npz, ".h5": _read_h5, ".hdf5": _read_h5}
    if path.suffix not in reader:
        raise ValueError(f"{path} is none of {', '.join(reader)}, and no folder of images")
    table = reader[path.suffix](path, key)
    return table if mapped else _flat(table)


def _read_many(pattern: str, key: str) -> Table:
    """Files as one set of rows; labels where every file has them."""
    paths = sorted(Path(name) for name in glob.glob(pattern))
    readers = {".npy": _map_npy, ".h5": _read_h5, ".hdf5": _read_h5}
    odd = [path for path in paths if path.suffix not in readers]
    if not paths or odd:
        found = f"{odd[0]} is none of them" if odd else "there is none"
        raise ValueError(f"{pattern!r} must match .npy or .h5 files of rows: {found}")
    tables = [readers[path.suffix](path, key) for path in paths]
    labels = [table.y for table in tables if table.y is not None]
    y = np.concatenate(labels) if len(labels) == len(tables) else None
    return Table(joined([table.X for table in tables]), y)


def _flat(table: Table) -> Table:
    """Images (n, h, w) as rows; arrays on disk must be rows already."""
    X = table.X
    if len(X.shape) == 3 and isinstance(X, np.ndarray):
        return Table(X.reshape(len(X), -1), table.y, tuple(X.shape[1:]))
    return table


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """One error, with the name of the file, for the many ways in which it may be broken."""
    try:
        yield
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _read_npy(path: Path, key: str) -> Table:
    with _readable(path):
        if path.stat().st_size > _IN_MEMORY:
            return _map_npy(path, key)
        with path.open("rb") as file:
            X = np.load(file, allow_pickle=False)
            if not isinstance(X, np.ndarray):
                raise ValueError("it is an archive of arrays; call it .npz")
            return Table(X)


def _map_npy(path: Path, key: str) -> Table:
    with _readable(path):
        return Table(np.lib.format.open_memmap(path, mode="r"))


def _read_npz(path: Path, key: str) -> Table:
    with path.open("rb") as file:
        with _readable(path):
            arrays = np.load(file, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise ValueError("it is a single array; call it .npy")
        name = _pick(list(arrays), key, path)
        with _readable(path):
            return Table(arrays[name], _labels(arrays.get("y"), arrays[name]))


def _read_h5(path: Path, key: str) -> Table:
    with _readable(path):
        file = h5py.File(path, "r")
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if hasattr(item, "dtype") else None)
    X = file[_pick(found, key, path)]
    return Table(X, _labels(file["y"][()] if "y" in found else None, X))


def _labels(y: np.ndarray | None, X: Any) -> np.ndarray | None:
    """``y`` if it has one entry for each row: a file may hold labels of another array."""
    return y if y is not None and X.shape and y.shape[:1] == X.shape[:1] else None


def _pick(names: list[str], key: str, path: Path) -> str:
    if key:
        if key not in names:
            raise ValueError(f"{path} has no array {key!r}; there are {', '.join(names)}")
        return key
    rows = [name for name in names if name != "y"]
    if "X" in rows:
        return "X"
    if len(rows) == 1:
        return rows[0]
    if not rows:
        raise ValueError(f"{path} has no array of rows; there is {', '.join(names) or 'nothing'}")
    raise ValueError(f"{path} has several arrays ({', '.join(names)}); name one as {path}:NAME")


def _read_folder(path: Path) -> Table:
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in _IMAGES)
    if not files:
        raise ValueError(f"no images ({', '.join(sorted(_IMAGES))}) in {path}")
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError(
            "reading images needs Pillow: pip install 'energyscape[images]'"
        ) from error
    images = []
    for file in files:
        with Image.open(file) as image:
            images.append(_grey(image, file))
        if images[-1].shape != images[0].shape:
            raise ValueError(
                f"{file} is {images[-1].shape}, but {files[0].name} is {images[0].shape}: a folder "
                "must hold images of one size"
            )
    shape = images[0].shape
    return Table(np.stack(images).reshape(len(images), math.prod(shape)), None, shape)


def _grey(image: Any, file: Path) -> np.ndarray:
    """Pixels in [0, 1]; Pillow's own conversion would clip those of more than 8 bits at 255."""
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG"):
        return np.asarray(image).astype(np.float32) / np.float32(65535)
    if image.mode in ("I", "F"):
        raise ValueError(f"{file} has 32-bit pixels of an unknown range; save it with 8 or 16 bits")
    return np.asarray(image.convert("L"), np.float32) / np.float32(255)


_KNOWN: dict[str, Callable[[], Table]] = {
    "digits": lambda: Table(*load_digits(), (8, 8)),
    "mnist": lambda: Table(*load_mnist("train"), (28, 28)),
    "mnist-test": lambda: Table(*load_mnist("test"), (28, 28)),
}
