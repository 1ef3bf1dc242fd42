"""Rows by name: what the command line accepts where it says DATA."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from energyscape.data.digits import load_digits, load_mnist

_IN_MEMORY = 2 << 30  # larger .npy files are mapped instead of read
_IMAGES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}


@dataclass
class Table:
    """Rows with what came along.

    Attributes
    ----------
    X : array, memory map or HDF5 dataset, shape (n, n_features)
    y : array, shape (n,), or None
    image_shape : (h, w) or None
    """

    X: Any
    y: np.ndarray | None = None
    image_shape: tuple[int, ...] | None = None


def read_table(spec: str) -> Table:
    """Rows from a file, a folder of images, or a known set.

    Parameters
    ----------
    spec : str
        ``mnist``, ``mnist-test`` or ``digits``; a folder of images of one size (needs Pillow; grey
        values in [0, 1]); or a ``.npy``, ``.npz`` or ``.h5`` file. In the last two, ``file:name``
        picks an array; else the one called X, or the only one. A labels array is called y.

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
    path = Path(name if colon and Path(name).suffix in (".npz", ".h5", ".hdf5") else spec)
    key = key if str(path) != spec else ""
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{spec!r} is neither a file, nor a folder, nor one of {', '.join(_KNOWN)}"
        )
    reader = {".npy": _read_npy, ".npz": _read_npz, ".h5": _read_h5, ".hdf5": _read_h5}
    if path.suffix not in reader:
        raise ValueError(f"{path} is none of {', '.join(reader)}, and no folder of images")
    return _flat(reader[path.suffix](path, key))


def _flat(table: Table) -> Table:
    """Images (n, h, w) as rows; arrays on disk must be rows already."""
    X = table.X
    if len(X.shape) == 3 and isinstance(X, np.ndarray):
        return Table(X.reshape(len(X), -1), table.y, tuple(X.shape[1:]))
    return table


def _read_npy(path: Path, key: str) -> Table:
    mode: Any = "r" if path.stat().st_size > _IN_MEMORY else None
    return Table(np.load(path, mmap_mode=mode, allow_pickle=False))


def _read_npz(path: Path, key: str) -> Table:
    with np.load(path, allow_pickle=False) as arrays:
        labels = np.asarray(arrays["y"]) if "y" in arrays else None
        return Table(arrays[_pick(list(arrays), key, path)], labels)


def _read_h5(path: Path, key: str) -> Table:
    file = h5py.File(path, "r")
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if hasattr(item, "dtype") else None)
    labels = file["y"][()] if "y" in found else None
    return Table(file[_pick(found, key, path)], labels)


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
            images.append(np.asarray(image.convert("L"), np.float32) / 255)
        if images[-1].shape != images[0].shape:
            raise ValueError(
                f"{file} is {images[-1].shape}, but {files[0].name} is {images[0].shape}: a folder "
                "must hold images of one size"
            )
    shape = images[0].shape
    return Table(np.stack(images).reshape(len(images), math.prod(shape)), None, shape)


_KNOWN: dict[str, Callable[[], Table]] = {
    "digits": lambda: Table(*load_digits(), (8, 8)),
    "mnist": lambda: Table(*load_mnist("train"), (28, 28)),
    "mnist-test": lambda: Table(*load_mnist("test"), (28, 28)),
}
