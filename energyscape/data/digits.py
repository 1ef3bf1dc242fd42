"""Handwritten digits: MNIST from its own files, and scikit-learn's bundled 8×8 set."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import sklearn.datasets

_MNIST = {"train": ("train", 60_000), "test": ("t10k", 10_000)}


def data_home() -> Path:
    """Folder of the data sets: ``$ENERGYSCAPE_DATA``, or ``data`` below the working folder."""
    return Path(os.environ.get("ENERGYSCAPE_DATA") or "data")


def load_mnist(split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """MNIST digits from the four original ``.gz`` files in ``data_home() / "mnist"``.

    Parameters
    ----------
    split : {"train", "test"}

    Returns
    -------
    X : array, shape (60000 or 10000, 784), float32
        Grey values in [0, 1], images of 28×28 in C order.
    y : array, shape (n,), int64
        Labels 0 to 9.

    Raises
    ------
    FileNotFoundError
        If a file is missing; the message says which one and where it was looked for.
    ValueError
        If a file is damaged or not what its name says.

    References
    ----------
    LeCun, Y., Cortes, C., Burges, C. The MNIST database of handwritten digits.
    """
    if split not in _MNIST:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    stem, n = _MNIST[split]
    images = _read_idx(f"{stem}-images-idx3-ubyte.gz", (n, 28, 28))
    labels = _read_idx(f"{stem}-labels-idx1-ubyte.gz", (n,))
    X = images.reshape(n, 784).astype(np.float32)
    X /= np.float32(255)
    return X, labels.astype(np.int64)


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's bundled digits.

    Returns
    -------
    X : array, shape (1797, 64), float32
        Grey values in [0, 1], images of 8×8 in C order.
    y : array, shape (1797,), int64
    """
    X, y = sklearn.datasets.load_digits(return_X_y=True)
    return (X / 16.0).astype(np.float32), y.astype(np.int64)


def _read_idx(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Bytes of an idx file of the given shape (big-endian sizes after a 4-byte magic number)."""
    path = data_home() / "mnist" / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing. load_mnist needs MNIST's four original .gz files in "
            f"{path.parent} (set ENERGYSCAPE_DATA to the folder that holds mnist/)"
        )
    try:
        data = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not an idx file of shape {shape}: {error}") from error
    header = struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape)
    if not data.startswith(header) or len(data) != len(header) + int(np.prod(shape)):
        raise ValueError(f"{path} is not an idx file of shape {shape}")
    return np.frombuffer(data, np.uint8, offset=len(header)).reshape(shape)
