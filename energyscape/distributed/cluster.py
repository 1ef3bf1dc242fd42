"""The client's side: check, spread the rows, start one long task on every worker, and watch.

Dask places the tasks and carries the rows; what the tasks say to each other while they train goes
over sockets of their own (or NCCL), because a task of Dask costs milliseconds and an update does
too.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from energyscape.backend import draw_seed
from energyscape.callbacks import Checkpoint
from energyscape.distributed.spread import Part, ask, spread
from energyscape.distributed.task import TOPIC, Order, hang_up, open_door, train
from energyscape.errors import CapabilityError, DataRangeWarning, WorkerLostError
from energyscape.progress import Bar
from energyscape.verbs import check_count

_log = logging.getLogger("energyscape")
# Seconds that the other workers get to end by themselves after one has failed.
_GRACE = 15.0
# Seconds that workers get to hang up.
_PATIENCE = 5.0


def fit(
    estimator: Any, data: Any, client: Any, *, sync_every: int = 1, timeout: float = 600.0
) -> Any:
    """``estimator.fit(data)`` by all workers of a Dask cluster together.

    The same trainer with the same settings: a batch of ``batch_size`` rows is made of rows of every
    worker, and so are the ``n_chains`` chains. Rows are shuffled within each worker. What workers
    draw is their own, so that the model is not that of one process bit for bit, but another draw of
    the same training. ``random_state`` gives the same model again for the same array or files and
    as many workers; chunks of a ``dask.array`` are trained on where they happen to lie, and may
    make another draw each time.

    Parameters
    ----------
    estimator : model of `energyscape.models`
        Any whose step is a sum over rows; it gets the fitted attributes. With ``device="cuda"``
        each worker uses its GPU, and sums go over NCCL. Callbacks run on worker 0, and a
        `Checkpoint` writes there.
    data : dask.array, array, or list of str or path-like
        Rows (n, n_features), or images where the model takes them. Chunks of a ``dask.array`` are
        kept in the workers' memory. HDF5 or .npy files, as ``file``, ``file:name`` or a pattern,
        are read by blocks where they lie, and must be seen by all workers under that name.
    client : distributed.Client
    sync_every : int, default=1
        Updates between two sums. 1: gradients (or sufficient statistics) are added up for every
        update. k > 1: each worker makes k updates from its own part of the batches, and then the
        parameters are averaged; quicker where an update is, and not the same. Strategies that
        update once an epoch always add up.
    timeout : float, default=600
        Seconds after which a worker that says nothing is taken for lost; longer than any worker
        computes between two sums. One that dies is noticed at once.

    Returns
    -------
    estimator

    Raises
    ------
    CapabilityError
        If the trainer cannot train the model, or workers cannot share that.
    ValueError, TypeError
        For settings, rows, or a client that is closed or asynchronous, or has no workers.
    WorkerLostError
        If a worker or the scheduler ends or falls silent; the message names the last checkpoint.
        `resume` goes on from there, with whatever workers are left.
    DivergenceError
        As from ``fit``; the estimator stays as it was.
    KeyboardInterrupt
        Likewise; epochs since the last checkpoint are lost, as worker 0 is not told of it.

    Examples
    --------
    >>> from dask.distributed import Client  # doctest: +SKIP
    >>> fit(RBM(500), ["patches-1.h5", "patches-2.h5"], Client(4))  # doctest: +SKIP
    """
    _check(estimator, client, sync_every, timeout)
    model = clone(estimator).set_params(trainer=estimator.trainer)
    if hasattr(estimator, "image_shape_"):
        model.image_shape_ = estimator.image_shape_
    model.seed_ = draw_seed(estimator.random_state)
    return _run(estimator, model, data, client, sync_every, timeout, resumes=False)


def resume(
    estimator: Any, data: Any, client: Any, *, sync_every: int = 1, timeout: float = 600.0
) -> Any:
    """``estimator.resume(data)`` by all workers together, however many there were before.

    Parameters
    ----------
    estimator : fitted model
        From `energyscape.load` of a checkpoint, say; of a fit by workers or by one process.
    data, client, sync_every, timeout
        As for `fit`; the rows that the run began with.

    Returns
    -------
    estimator

    Raises
    ------
    As `fit`; ValueError if the number of rows is not that of the interrupted run.
    """
    _check(estimator, client, sync_every, timeout)
    if not estimator.__sklearn_is_fitted__():
        raise ValueError("resume goes on with a fit that was begun; this model has none: use fit")
    return _run(estimator, estimator, data, client, sync_every, timeout, resumes=True)


def _check(estimator: Any, client: Any, sync_every: int, timeout: float) -> None:
    """Raise for what cannot be, as far as that can be said without the rows."""
    name = type(estimator).__name__
    if not hasattr(estimator, "learn"):
        raise CapabilityError(
            f"{name} cannot be trained by several workers: it is no single model with a trainer. "
            "Train its layers one after the other, each on the codes of the one below"
        )
    bare = clone(estimator)
    if bare.trainer is not None:  # callbacks are checked where they run
        bare.trainer.set_params(callbacks=())
    trainer = bare.chosen_trainer()
    for what in (bare, trainer):
        why = what.sharing_obstacle()
        if why is not None:
            raise CapabilityError(
                f"{type(what).__name__} cannot be shared by several workers: {why}"
            )
    if trainer.sharing_note() is not None:
        _log.warning("%s: %s", type(trainer).__name__, trainer.sharing_note())
    check_count("sync_every", sync_every)
    if not timeout > 0:
        raise ValueError(f"timeout must be > 0 seconds, got {timeout!r}")
    _check_client(client)


def _check_client(client: Any) -> None:
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(
            "training on a cluster needs Dask: pip install 'energyscape[dask]'"
        ) from error
    if not isinstance(client, Client):
        raise TypeError(f"client must be a dask.distributed.Client, got {type(client).__name__}")
    if client.asynchronous:
        raise TypeError("client must not be asynchronous: this call waits until the fit is done")
    if client.status != "running":
        raise ValueError(f"the client is {client.status}: connect a new one to the cluster")


def _run(
    estimator: Any,
    model: Any,
    data: Any,
    client: Any,
    sync_every: int,
    timeout: float,
    resumes: bool,
) -> Any:
    watch = None
    try:
        with _turn(client) as addresses, _doors(client, addresses, timeout) as (name, doors):
            with client.as_current():  # Dask asks for the chunks of rows by whichever is
                parts = spread(data, client, addresses, timeout)
            doors, token = doors[: len(parts)], secrets.token_bytes(32)
            order = Order(name, doors, token, sync_every, timeout, resumes)
            watch = _Watch(client, model, parts, order)
            fitted, complaint = watch.result()
    except Exception as error:
        if client.status == "running":
            raise
        way_out = "no epoch had begun" if watch is None else watch.way_out()
        if client.status == "connecting":  # to whoever closes it that is "closing" or "closed"
            raise WorkerLostError(f"the scheduler is gone; {way_out}") from error
        words = f"the client was closed during the fit ({type(error).__name__}): connect a new one"
        raise ValueError(f"{words}; {way_out}") from error
    if complaint is not None:
        warnings.warn(complaint, DataRangeWarning, stacklevel=3)
    settings = estimator.get_params(deep=False)
    for key in set(vars(estimator)) - set(settings) - set(vars(fitted)):
        delattr(estimator, key)  # of an earlier fit
    vars(estimator).update({k: v for k, v in vars(fitted).items() if k not in settings})
    for words in (fitted.trainer_.complaint(fitted._state.history), fitted.complaint()):
        if words is not None:
            warnings.warn(words, ConvergenceWarning, stacklevel=3)
    return estimator


def _addresses(client: Any) -> list[str]:
    found = sorted(_alive(client))
    if not found:
        raise ValueError("the client's cluster has no workers")
    return found


@contextlib.contextmanager
def _turn(client: Any) -> Iterator[list[str]]:
    """The workers, for one fit at a time: two at once would wait for each other without end."""
    from distributed import MultiLock

    while True:
        addresses = _addresses(client)
        lock = MultiLock(names=addresses, client=client)
        try:
            while not lock.acquire(timeout=5):  # a wait that timed out takes its request back
                _log.warning("waiting for another fit on these workers to end")
        except BaseException:
            if client.status == "running":
                # The scheduler drops a request that waits, too, if it has one.
                lock._locked = True
                with contextlib.suppress(KeyError):
                    lock.release()
            raise
        try:
            if addresses == _addresses(client):
                yield addresses
                return
        finally:
            if client.status == "running":
                lock.release()
            elif client.status != "connecting":  # a scheduler that is gone has no turns to give
                _log.warning(
                    "the client was closed before it could give the workers back: other fits wait "
                    "for them until the scheduler is started anew"
                )


@contextlib.contextmanager
def _doors(
    client: Any, addresses: list[str], timeout: float
) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """A listening socket on every worker, and its address; none is left behind."""
    name, failed = f"energyscape-{secrets.token_hex(8)}", True
    try:
        doors = ask(client, addresses, timeout, open_door, name)
        yield name, [doors[address] for address in addresses]
        failed = False
    finally:
        if client.status == "running":
            here = [address for address in addresses if address in _alive(client)]
            if here:
                with contextlib.suppress(WorkerLostError):
                    ask(client, here, _PATIENCE, hang_up, name, failed, on_error="ignore")


def _alive(client: Any) -> set[str]:
    """Addresses of the workers that the scheduler knows now. Not `Client.scheduler_info`, whose
    answer a timer of the client's replaces every few seconds by one without workers."""
    return set(client.nthreads())


class _Watch:
    """The tasks of a fit, from their start to the end of the last one."""

    def __init__(self, client: Any, model: Any, parts: list[Part], order: Order) -> None:
        self.client, self.model, self.parts = client, model, parts
        self.told: dict[int, dict[str, int]] = {}
        self.asked, self.missing = time.monotonic(), list[str]()
        self.name = order.name
        client.subscribe_topic(TOPIC, self._hear)
        addresses = [part.address for part in parts]
        [shipped] = client.scatter([model], workers=addresses, broadcast=True, hash=False)
        self.futures = [
            client.submit(
                train,
                shipped,
                part.pieces,
                Part(part.address, [], part.lo, part.hi),
                rank,
                order,
                workers=[part.address],
                allow_other_workers=False,
                pure=False,
                retries=0,
            )
            for rank, part in enumerate(parts)
        ]

    async def _hear(self, event: Any) -> None:
        report = event[1]
        if report["fit"] == self.name:
            self.told[report["rank"]] = report

    def result(self) -> Any:
        """What worker 0 returns, or the error that ended the fit."""
        bar = Bar(
            desc=f"{type(self.model).__name__} on {len(self.parts)} workers",
            unit="update",
            file=sys.stderr,
            disable=not self.model.verbose,
        )
        try:
            with bar:
                self._wait(bar)
            return self.futures[0].result()
        finally:
            if self.client.status == "running":
                self.client.unsubscribe_topic(TOPIC)
                self.client.cancel(self.futures)

    def _wait(self, bar: Any) -> None:
        """Until all tasks are done; raises the error of the first that tells why it failed."""
        failed_at: float | None = None
        while True:
            if self.client.status != "running":
                raise ConnectionError("the client is closed")
            states = [future.status for future in self.futures]
            self._show(bar)
            if all(state == "finished" for state in states):
                return
            gone = self._gone()
            if gone or "error" in states or "lost" in states or "cancelled" in states:
                failed_at = time.monotonic() if failed_at is None else failed_at
                ended = {"finished", "error", "lost", "cancelled"}
                waits = [
                    part.address
                    for part, state in zip(self.parts, states, strict=True)
                    if state not in ended and part.address not in gone
                ]
                if not waits or time.monotonic() - failed_at > _GRACE:
                    raise self._error(gone)
            time.sleep(0.05 if failed_at is None else 0.2)

    def _gone(self) -> list[str]:
        """Workers that the scheduler no longer knows; asked once a second."""
        now = time.monotonic()
        if now - self.asked > 1.0:
            self.asked, alive = now, _alive(self.client)
            self.missing = [part.address for part in self.parts if part.address not in alive]
        return self.missing

    def _show(self, bar: Any) -> None:
        """How far the slowest worker is, and the rows of all."""
        reports = list(self.told.values())
        step = min((report["step"] for report in reports), default=0)
        if step > bar.n:
            epoch, rows = reports[0]["epoch"], sum(report["rows"] for report in reports)
            bar.set_postfix(epoch=epoch, rows=rows, refresh=False)
            bar.update(step - bar.n)

    def _error(self, gone: list[str]) -> BaseException:
        """The error of a worker that failed by itself, else that one was lost."""
        errors = [future.exception() for future in self.futures if future.status == "error"]
        own = [error for error in errors if not isinstance(error, WorkerLostError)]
        if own and not gone:
            return own[0]
        if gone:
            words = f"worker {', '.join(gone)} is gone"
        else:
            words = str(errors[0]) if errors else "a worker is gone"
        return WorkerLostError(f"{words}; {self.way_out()}")

    def way_out(self) -> str:
        """Where a fit that was cut off can go on."""
        begun = self.model._state.epoch if self.model.__sklearn_is_fitted__() else 0
        epochs = max((report["epoch"] for report in self.told.values()), default=begun)
        for callback in getattr(self.model.trainer, "callbacks", ()):
            if isinstance(callback, Checkpoint):
                last = epochs // callback.every * callback.every
                if not last:
                    return (
                        f"no epoch is known to have ended; if there is a checkpoint "
                        f"{callback.path}, energyscape.distributed.resume goes on from it"
                    )
                path = str(callback.path).replace("{epoch}", str(last))
                return (
                    f"the last checkpoint is {path}, of epoch {last}: "
                    f"energyscape.distributed.resume(energyscape.load({path!r}), data, client) "
                    "goes on from there with the workers that are left"
                )
        return "there is no checkpoint to go on from: give the trainer callbacks=[Checkpoint(path)]"
