"""``energyscape train --cluster``: the same training by the workers of a Dask cluster."""

from __future__ import annotations

import argparse
import contextlib
import glob
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from energyscape import distributed
from energyscape.data.reading import read_table
from energyscape.errors import WorkerLostError
from energyscape.io import load
from energyscape.sources import is_stored

_ON_DISK = (".h5", ".hdf5", ".npy")


def add_cluster_arguments(parser: argparse.ArgumentParser, count: Any) -> None:
    """Options of ``train``; ``count`` is the type of numbers of at least 1."""
    parser.add_argument(
        "--cluster",
        metavar="WHERE",
        help="train on the workers of a Dask cluster: a number of processes to start here, the "
        "address of a scheduler, or its scheduler file",
    )
    parser.add_argument(
        "--sync-every",
        type=count,
        default=1,
        metavar="UPDATES",
        help="of each worker by itself before their parameters are averaged; 1 adds up gradients",
    )


def train_on_cluster(
    options: argparse.Namespace, model: Any, X: Any, resumes: bool, emit: Callable[..., None]
) -> None:
    """Fit ``model`` to DATA; files are read by the workers, where they see them under that name.

    Epochs are told (by ``emit``) at the end, as callbacks run where worker 0 is; of a run that is
    cut off, those that its checkpoint holds, from which ``--resume`` goes on.
    """
    data, name = X, str(options.data).rpartition(":")[0] or options.data
    on_disk = Path(name).suffix in _ON_DISK or (glob.has_magic(name) and is_stored(X))
    as_is = on_disk and not options.binarize
    if as_is and read_table(options.data, mapped=True).X.shape == X.shape:
        data = [str(Path(name).resolve()) + str(options.data)[len(name) :]]
    train = distributed.resume if resumes else distributed.fit
    out, done = Path(options.out), model.n_iter_ if resumes else 0
    before = out.stat().st_mtime_ns if out.exists() else None
    with _client(options.cluster) as client:
        try:
            train(model, data, client, sync_every=options.sync_every)
        except (WorkerLostError, KeyboardInterrupt) as error:
            saved = out.exists() and out.stat().st_mtime_ns != before
            if saved:
                _tell(load(out), done, emit)
            if isinstance(error, KeyboardInterrupt):
                raise
            way_out = f"the same command with --resume goes on from {out}"
            what = str(error).partition("; ")[0]
            raise WorkerLostError(
                f"{what}; {way_out if saved or resumes else 'no epoch was saved'}"
            ) from error
    _tell(model, done, emit)


def _tell(model: Any, done: int, emit: Callable[..., None]) -> None:
    """The history after ``done`` epochs."""
    for epoch in range(done, model.n_iter_):
        emit({key: values[epoch] for key, values in model.history_.items()})


@contextlib.contextmanager
def _client(where: str) -> Iterator[Any]:
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ImportError("--cluster needs Dask: pip install 'energyscape[dask]'") from error
    if where.isdecimal() and int(where) > 0:
        cluster = LocalCluster(
            n_workers=int(where), threads_per_worker=1, dashboard_address=":0", memory_limit=0
        )
        with cluster, Client(cluster) as client:
            yield client
    elif "://" in where or ":" in where:
        with Client(where) as client:
            yield client
    elif Path(where).is_file():
        with Client(scheduler_file=where) as client:
            yield client
    else:
        raise ValueError(
            f"--cluster takes a number of processes, the address of a scheduler "
            f"(tcp://host:8786) or its scheduler file; {where!r} is none of them"
        )
