"""Which rows go to which worker: chunks of a Dask array, slices of an array, ranges of files."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from energyscape.data.reading import read_table
from energyscape.errors import WorkerLostError
from energyscape.sources import is_stored
from energyscape.workers import split_evenly

# Of an equal share of the rows: with less, a worker would hold up the others' batches.
_LEAST_SHARE = 0.5


@dataclass
class Part:
    """What one worker trains on.

    Attributes
    ----------
    address : str
        The worker's.
    pieces : list
        Futures of arrays that go one after the other, or names of files.
    lo, hi : int or None
        The range of rows of the pieces that counts; None for all.
    """

    address: str
    pieces: list[Any]
    lo: int | None = None
    hi: int | None = None


def ask(
    client: Any, addresses: list[str], timeout: float, what: Any, *args: Any, **options: Any
) -> dict[str, Any]:
    """What ``what(*args)`` returns on each worker, by its address.

    Raises
    ------
    WorkerLostError
        If one of them says nothing for ``timeout`` seconds.
    """
    try:
        found: dict[str, Any] = client.run(
            what, *args, workers=addresses, callback_timeout=timeout, **options
        )
    except TimeoutError as error:
        words = f"one of {len(addresses)} workers has said nothing for {timeout:g} seconds"
        raise WorkerLostError(words) from error
    return found


def spread(data: Any, client: Any, addresses: list[str], timeout: float) -> list[Part]:
    """Parts of ``data`` for workers at ``addresses``, or for fewer where rows do not reach.

    Parameters
    ----------
    data : dask.array, array, path-like, or sequence of these names
        Rows (n, n_features), or images; or HDF5 or .npy files that all workers see, each as
        ``file``, ``file:name`` or a pattern.
    client : distributed.Client
    addresses : list of str
    timeout : float
        Seconds that workers get to look at files.

    Raises
    ------
    FileNotFoundError, ValueError, TypeError
        Naming the file, the worker, and what is wrong with it.
    """
    if isinstance(data, str | os.PathLike):
        data = [data]
    if isinstance(data, list | tuple) and all(isinstance(x, str | os.PathLike) for x in data):
        if not data:
            raise ValueError("the list of files is empty")
        return _spread_files([os.fspath(name) for name in data], client, addresses, timeout)
    if is_stored(data):
        raise TypeError(
            "rows on disk are read by the workers, not sent there: give the names of their files, "
            'as "file.h5" or "file.h5:name"'
        )
    if hasattr(data, "shape") and len(data.shape) < 2:
        raise ValueError(f"Expected 2D array, got {len(data.shape)}D array instead")
    if hasattr(data, "__dask_keys__") and hasattr(data, "chunks"):
        return _spread_chunks(data, client, addresses)
    if hasattr(data, "shape") and hasattr(data, "__getitem__"):
        return _spread_array(data, client, addresses)
    raise TypeError(
        "rows come as a dask.array, an array, or a list of HDF5 files that all workers see; got "
        f"{type(data).__name__}"
    )


def _spread_array(data: Any, client: Any, addresses: list[str]) -> list[Part]:
    addresses = _fewer(addresses, data.shape[0])
    parts = []
    for rank, address in enumerate(addresses):
        mine = data[split_evenly(data.shape[0], len(addresses), rank)]
        [piece] = client.scatter([mine], workers=[address], hash=False)
        parts.append(Part(address, [piece]))
    return parts


def _spread_chunks(data: Any, client: Any, addresses: list[str]) -> list[Part]:
    """Chunks to the workers that hold them already, as far as all get equally many rows; cut anew
    where they are too few or too unequal for that."""
    if any(math.isnan(size) for size in data.shape):
        data = data.compute_chunk_sizes()
    addresses = _fewer(addresses, data.shape[0])
    data = data.rechunk({axis: -1 for axis in range(1, data.ndim)})
    chosen, loads = _by_holder(data, client, addresses)
    if min(loads.values()) < _LEAST_SHARE * data.shape[0] / len(addresses):
        ranks = range(len(addresses))
        parts = [split_evenly(data.shape[0], len(addresses), rank) for rank in ranks]
        data = data.rechunk({0: tuple(part.stop - part.start for part in parts)})
        chosen, _ = _by_holder(data, client, addresses)
    return [Part(address, chosen[address]) for address in addresses]


def _by_holder(
    data: Any, client: Any, addresses: list[str]
) -> tuple[dict[str, list[Any]], dict[str, int]]:
    """Futures of chunks for each worker, in their order, and how many rows these are."""
    from distributed import futures_of, wait

    data = client.persist(data)
    wait(data)
    futures = {future.key: future for future in futures_of(data)}
    keys = [_key(nested) for nested in data.__dask_keys__()]
    sizes = dict(zip(keys, data.chunks[0], strict=True))
    holders = client.who_has(list(futures.values()))
    quota, loads = data.shape[0] / len(addresses), dict.fromkeys(addresses, 0)
    chosen: dict[str, list[Any]] = {address: [] for address in addresses}
    homeless = []
    for key in sorted(keys, key=lambda k: -sizes[k]):
        if not sizes[key]:
            continue  # an empty chunk, as filtering leaves behind
        at = [a for a in holders.get(key, ()) if a in loads and loads[a] + sizes[key] <= quota]
        if at:
            chosen[at[0]].append(key)
            loads[at[0]] += sizes[key]
        else:
            homeless.append(key)
    for key in homeless:
        least = min(loads, key=lambda address: loads[address])
        chosen[least].append(key)
        loads[least] += sizes[key]
    order = {key: i for i, key in enumerate(keys)}
    parts = {
        address: [futures[key] for key in sorted(mine, key=order.__getitem__)]
        for address, mine in chosen.items()
    }
    return parts, loads


def _key(nested: Any) -> Any:
    """The key of a chunk that has all columns, from Dask's nested lists."""
    while isinstance(nested, list):
        [nested] = nested
    return nested


def _spread_files(
    names: list[str], client: Any, addresses: list[str], timeout: float
) -> list[Part]:
    """Ranges of the rows of all files, one after the other; each is seen by every worker."""
    seen = ask(client, addresses, timeout, look_at, names)
    for address, found in seen.items():
        for name, what in zip(names, found, strict=True):
            if isinstance(what, str):
                kind = FileNotFoundError if what.startswith("missing") else ValueError
                raise kind(f"worker {address} cannot read {name}: {what}")
    first = seen[addresses[0]]
    for address, found in seen.items():
        for name, mine, other in zip(names, first, found, strict=True):
            if mine != other:
                raise ValueError(
                    f"{name} is {other} for worker {address}, but {mine} for {addresses[0]}: all "
                    "workers must see the same files"
                )
    for name, (shape, dtype) in zip(names, first, strict=True):
        if len(shape) < 2:
            raise ValueError(f"{name}: Expected 2D array, got {len(shape)}D array instead")
        if shape[1:] != first[0][0][1:] or dtype != first[0][1]:
            raise ValueError(
                f"{name} has rows {shape[1:]} of {dtype}, but {names[0]} has {first[0][0][1:]} of "
                f"{first[0][1]}: all files must have the same columns"
            )
        if not shape[0]:
            raise ValueError(f"{name} has no rows: leave it out")
    total = sum(shape[0] for shape, _ in first)
    addresses = _fewer(addresses, total)
    ends = np.cumsum([shape[0] for shape, _ in first])
    parts = []
    for rank, address in enumerate(addresses):
        part = split_evenly(total, len(addresses), rank)
        a = int(np.searchsorted(ends, part.start, side="right"))
        b = int(np.searchsorted(ends, part.stop, side="left"))
        before = int(ends[a - 1]) if a else 0
        parts.append(Part(address, names[a : b + 1], part.start - before, part.stop - before))
    return parts


def look_at(names: Sequence[str]) -> list[Any]:
    """Shape and dtype of the rows in each file, or what is wrong with it, in words."""
    found: list[Any] = []
    for name in names:
        try:
            X = read_table(name, mapped=True).X
            found.append((tuple(int(size) for size in X.shape), str(X.dtype)))
        except FileNotFoundError as error:
            found.append(f"missing: {error}")
        except (OSError, ValueError) as error:
            found.append(str(error))
    return found


def _fewer(addresses: list[str], n: int) -> list[str]:
    """No more workers than rows."""
    if n < 1:
        raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
    return addresses[:n]
