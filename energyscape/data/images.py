"""Images from files: faces, CIFAR-10, silhouettes, folders, and scikit-learn's two photographs."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import sklearn.datasets

from energyscape.data.digits import data_home

__all__ = [
    "load_cifar10",
    "load_images",
    "load_olivetti",
    "load_photographs",
    "load_silhouettes",
]

_SUFFIXES = (".png", ".jpg", ".jpeg")


def load_olivetti() -> tuple[np.ndarray, np.ndarray]:
    """The Olivetti faces from ``data_home() / "olivetti" / "olivettifaces.mat"``.

    Returns
    -------
    images : array, shape (400, 64, 64), uint8
        Grey values 0 to 242, upright.
    y : array, shape (400,), int64
        The person, 0 to 39; ten images each.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file is missing or damaged; the message says where it was looked for.

    References
    ----------
    AT&T Laboratories Cambridge, The database of faces; 64×64 version by S. Roweis.
    """
    faces = _mat("olivetti/olivettifaces.mat", "load_olivetti", {"faces": (4096, 400)})["faces"]
    images = faces.T.reshape(400, 64, 64).swapaxes(1, 2)
    return np.ascontiguousarray(images), np.repeat(np.arange(40), 10)


def load_cifar10(subset: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """A part of CIFAR-10 from ``data_home() / "cifar10_subset" / "cifar10_subset.npz"``.

    Parameters
    ----------
    subset : {"train", "test"}
        The first 4,000 training images, or the first 1,000 test images.

    Returns
    -------
    images : array, shape (4000 or 1000, 32, 32, 3), uint8
    y : array, shape (n,), int64
        0 to 9: airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file is missing or damaged; the message says where it was looked for.

    References
    ----------
    Krizhevsky, A. (2009). Learning multiple layers of features from tiny images.
    """
    if subset not in ("train", "test"):
        raise ValueError(f"subset must be 'train' or 'test', got {subset!r}")
    path = _found("cifar10_subset/cifar10_subset.npz", "load_cifar10")
    try:
        with np.load(path, allow_pickle=False) as file:
            images, y = file[f"X_{subset}"], file[f"y_{subset}"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is not the part of CIFAR-10 that it should be: {error}"
        ) from error
    return images, y.astype(np.int64)


def load_silhouettes() -> tuple[np.ndarray, np.ndarray]:
    """Caltech 101 silhouettes, from ``data_home() / "caltech101_silhouettes"``.

    Returns
    -------
    images : array, shape (8671, 28, 28), uint8
        1 on the object and 0 around it (the file has it the other way round), upright.
    y : array, shape (8671,), int64
        Classes 0 to 100.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file is missing or damaged; the message says where it was looked for.

    References
    ----------
    Marlin, B., Swersky, K., Chen, B., de Freitas, N. (2010). Inductive principles for restricted
    Boltzmann machine learning. AISTATS.
    """
    name = "caltech101_silhouettes/caltech101_silhouettes_28.mat"
    file = _mat(name, "load_silhouettes", {"X": (8671, 784), "Y": (1, 8671)})
    images = 1 - file["X"].reshape(-1, 28, 28).swapaxes(1, 2)
    return np.ascontiguousarray(images), file["Y"].ravel().astype(np.int64) - 1


def load_images(folder: str | Path) -> list[np.ndarray]:
    """All images of a folder, in the order of their names; of unequal sizes if they are.

    The ``.png`` and ``.jpg`` files (which needs Pillow: the extra ``images``), grey or colour as
    they are; or, where the folder has none, the arrays of its only ``.npz`` file.

    Parameters
    ----------
    folder : path-like
        Relative to the working folder, else to ``data_home()``. An ``.npz`` file by its own path is
        taken too, such as ``"bsd68/bsd68_gray.npz"``, which needs no Pillow.

    Returns
    -------
    list of arrays, shape (h, w) or (h, w, 3), uint8 (or what the ``.npz`` file holds)

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or nothing in it.
    ImportError
        If Pillow is not installed.
    ValueError
        If a file cannot be read.
    """
    path = Path(folder) if Path(folder).exists() else data_home() / folder
    if path.is_file() and path.suffix == ".npz":
        return _arrays(path)
    if not path.is_dir():
        raise FileNotFoundError(
            f"{folder} is neither here nor in {data_home()}; load_images wants a folder of "
            f"{', '.join(_SUFFIXES)} files, or an .npz file of images"
        )
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
    if files:
        return _pictures(files)
    archives = sorted(path.glob("*.npz"))
    if len(archives) != 1:
        raise FileNotFoundError(
            f"{path} has no {', '.join(_SUFFIXES)} files, and {len(archives)} .npz files where one "
            "is wanted"
        )
    return _arrays(archives[0])


def load_photographs() -> list[np.ndarray]:
    """scikit-learn's two bundled photographs, which need no download but Pillow to read them.

    Returns
    -------
    list of two arrays, shape (427, 640, 3), uint8
        A temple in China and a flower.

    Raises
    ------
    ImportError
        If Pillow is not installed: ``pip install 'energyscape[images]'``.
    """
    _pillow()
    return list(sklearn.datasets.load_sample_images().images)


def _found(name: str, loader: str) -> Path:
    path = data_home() / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing, which {loader} reads (set ENERGYSCAPE_DATA to the folder that "
            f"holds {path.parent.name}/)"
        )
    return path


def _mat(name: str, loader: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Variables of a MATLAB file, which must have these shapes."""
    path = _found(name, loader)
    try:
        file = scipy.io.loadmat(path, variable_names=list(shapes))
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    found = {key: file[key].shape for key in shapes if key in file}
    if found != shapes:
        raise ValueError(f"{path} should hold arrays of shapes {shapes}, it has {found}")
    return file


def _arrays(path: Path) -> list[np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in file.files]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _pictures(files: list[Path]) -> list[np.ndarray]:
    Image = _pillow()
    images = []
    for file in files:
        try:
            with Image.open(file) as image:
                deep = image.mode.startswith(("I", "F"))  # which converting would clip at 255
                grey = image.mode in ("1", "L", "LA")
                images.append(np.asarray(image if deep else image.convert("L" if grey else "RGB")))
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
    return images


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "reading images needs Pillow: pip install 'energyscape[images]'"
        ) from error
    return Image
