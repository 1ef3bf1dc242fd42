"""Model files: HDF5 that runs no code, is checked before it is parsed, and is never half written.

A file is a 512-byte header (an HDF5 user block: format number, size and SHA-256 of the rest)
followed by a plain HDF5 image that any HDF5 tool opens: the dataset ``meta`` (UTF-8 JSON as
bytes) and one contiguous dataset per array. Classes come from the registry; links other than hard
ones, external or virtual data, and dtypes other than numbers are refused.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from sklearn.pipeline import Pipeline
from threadpoolctl import ThreadpoolController

from energyscape._version import __version__
from energyscape.errors import FileFormatError
from energyscape.registry import from_tree, to_tree

FORMAT = 1
_MAGIC = b"energyscape model\n"
_HEADER_BYTES = 512
_MAX_DEPTH = 16
Arrays = dict[str, np.ndarray]


def save(estimator: Any, path: str | os.PathLike[str]) -> None:
    """Write a fitted model, a transformer of ours, or a `Pipeline` of them.

    The file appears at once and whole: it is written beside ``path``, flushed to disk and moved
    over what was there, so that a crash or a full disk leaves the old file as it was.

    Parameters
    ----------
    estimator : fitted estimator of this library, or sklearn.pipeline.Pipeline of such
    path : path-like

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If the estimator is not fitted.
    TypeError
        If a step of the pipeline is not from this library (or registered with it).
    OSError
        If the file cannot be written; nothing of it is left.
    """
    write_file(path, *describe(estimator))


def load(path: str | os.PathLike[str]) -> Any:
    """Read what `save` wrote.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    estimator
        The fitted model (or pipeline), with its training state, on the CPU.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If the file is not a model of ours, is truncated or damaged, comes from a newer format,
        names a class that is not registered, or holds what a model file has no need for.
    """
    return restore(*read_file(path))


def describe(estimator: Any) -> tuple[dict[str, Any], Arrays]:
    """What a file holds of a fitted estimator of ours, or a pipeline: JSON-able, and arrays."""
    if isinstance(estimator, Pipeline):
        steps: list[Any] = []
        arrays: Arrays = {}
        for i, (name, step) in enumerate(estimator.steps):
            meta, part = describe(step)
            steps.append([name, meta])
            arrays.update({f"steps/{i}/{key}": value for key, value in part.items()})
        return {"pipeline": steps}, arrays
    if not hasattr(estimator, "file_state"):
        raise TypeError(
            f"{type(estimator).__name__} cannot be saved in a model file: only models and "
            "transformers of energyscape, and pipelines of them, can"
        )
    state, arrays = estimator.file_state()
    return {"estimator": to_tree(estimator), "state": state}, arrays


def restore(meta: dict[str, Any], arrays: Arrays) -> Any:
    """The estimator that `describe` told of; `FileFormatError` where a part is missing."""
    try:
        if "pipeline" in meta:
            steps = enumerate(meta["pipeline"])
            return Pipeline([(n, restore(m, under(arrays, f"steps/{i}/"))) for i, (n, m) in steps])
        estimator = from_tree(meta["estimator"])
        estimator.set_file_state(meta["state"], arrays)
    except FileFormatError:
        raise
    except (
        LookupError,
        TypeError,
        ValueError,
        ArithmeticError,
        AttributeError,
        RecursionError,
    ) as error:
        raise FileFormatError(
            f"the file lacks a part of the model: {type(error).__name__}: {error}"
        ) from error
    return estimator


def under(arrays: Arrays, prefix: str) -> Arrays:
    """The arrays whose names begin with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


@functools.cache
def thread_pools() -> ThreadpoolController:
    """The thread pools of this process; finding them takes milliseconds, asking them none."""
    return ThreadpoolController()


def environment(device: str) -> dict[str, Any]:
    """What a bit-exact resume depends on besides the file: versions, device type, threads."""
    blas = [pool["num_threads"] for pool in thread_pools().info() if pool["user_api"] == "blas"]
    return {
        "energyscape": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "device": device.partition(":")[0],
        "threads": max(blas, default=1),
    }


# ---------------------------------------------------------------- bytes


def write_file(path: str | os.PathLike[str], meta: dict[str, Any], arrays: Arrays) -> None:
    """Write ``meta`` (JSON-able) and ``arrays`` (numbers only) as one checked file, atomically."""
    # In memory first: HDF5 is then not in play when the disk is full or the process is killed.
    file = h5py.File("image", "w", driver="core", backing_store=False, libver="earliest")
    try:
        text = json.dumps(meta, allow_nan=False).encode()
        file.create_dataset("meta", data=np.frombuffer(text, np.uint8))
        for name, array in arrays.items():
            file.create_dataset(f"arrays/{name}", data=array)
        file.flush()
        image = file.id.get_file_image()
    finally:
        file.close()
    digest = hashlib.sha256(image).hexdigest()
    header = _MAGIC + f"format {FORMAT}\nsize {len(image)}\nsha256 {digest}\n".encode()
    write_atomic(path, header.ljust(_HEADER_BYTES, b"\0"), image)


def write_atomic(path: str | os.PathLike[str], *parts: bytes) -> None:
    """Put ``parts`` into ``path`` so that a reader sees the old file or the new, never a piece."""
    path = Path(os.path.realpath(path))  # a link stays one: what it leads to is replaced
    handle, temporary = tempfile.mkstemp(prefix=".save-", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def read_file(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Arrays]:
    """The meta data and arrays of a model file; `FileFormatError` for anything else."""
    data = Path(path).read_bytes()
    try:
        return _parse(data)
    except FileFormatError as error:
        raise FileFormatError(f"{os.fspath(path)}: {error}") from error.__cause__


def _parse(data: bytes) -> tuple[dict[str, Any], Arrays]:
    image = _checked_image(data)
    try:
        with h5py.File(io.BytesIO(image), "r") as file:
            found: Arrays = {}
            _collect(file, "", found, len(image), 0)
    except FileFormatError:
        raise
    except Exception as error:  # HDF5 meets forged bytes in more ways than can be listed
        raise FileFormatError(f"not a readable HDF5 file: {error}") from error
    try:
        meta = json.loads(found.pop("meta").tobytes().decode())
    except (KeyError, ValueError, RecursionError) as error:
        raise FileFormatError(f"its description is missing or malformed: {error}") from error
    if not isinstance(meta, dict):
        raise FileFormatError("its description is malformed")
    return meta, {k.removeprefix("arrays/"): v for k, v in found.items()}


def _checked_image(data: bytes) -> bytes:
    if not data.startswith(_MAGIC):
        raise FileFormatError("not an energyscape model file")
    lines = data[len(_MAGIC) : _HEADER_BYTES].rstrip(b"\0").decode("ascii", "replace").split("\n")
    fields = dict(line.split(" ", 1) for line in lines if " " in line)
    number = fields.get("format", "")
    if not number.isdigit() or int(number) < 1:
        raise FileFormatError("damaged: its format number is unreadable")
    if int(number) > FORMAT:
        raise FileFormatError(
            f"written in format {number}, this version reads up to {FORMAT}; upgrade energyscape"
        )
    image = data[_HEADER_BYTES:]
    if not fields.get("size", "").isdigit() or len(image) != int(fields["size"]):
        raise FileFormatError(
            f"truncated or damaged: {len(image)} bytes of {fields.get('size', '?')} are there"
        )
    if hashlib.sha256(image).hexdigest() != fields.get("sha256"):
        raise FileFormatError("damaged: its checksum does not match its content")
    return image


def _collect(group: Any, prefix: str, found: Arrays, limit: int, depth: int) -> None:
    """Read every dataset under ``group``, refusing what could reach outside the file."""
    if depth > _MAX_DEPTH:
        raise FileFormatError("its groups are nested too deep")
    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise FileFormatError(f"{prefix}{name} is a {type(link).__name__}, which is refused")
        item = group[name]
        if isinstance(item, h5py.Group):
            _collect(item, f"{prefix}{name}/", found, limit, depth + 1)
            continue
        if not isinstance(item, h5py.Dataset):
            raise FileFormatError(f"{prefix}{name} is a {type(item).__name__}, which is refused")
        if item.external or item.is_virtual:
            raise FileFormatError(f"{prefix}{name} keeps its data outside, which is refused")
        if item.dtype.kind not in "fiub":
            raise FileFormatError(f"{prefix}{name} has dtype {item.dtype}, which is refused")
        if item.size * item.dtype.itemsize > limit:
            raise FileFormatError(f"{prefix}{name} claims more bytes than the file has")
        found[f"{prefix}{name}"] = item[()] if item.shape else np.asarray(item[()])


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
