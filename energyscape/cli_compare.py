"""The command ``energyscape compare``: its arguments, and what is done with them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from energyscape.data.reading import Table
from energyscape.evaluation import Comparison, compare
from energyscape.samplers import AIS


def add_arguments(sub: argparse.ArgumentParser, count: Callable[[str], int]) -> None:
    """The command's own; ``count`` reads integers of at least 1."""
    again = {"action": "append", "default": []}
    what = "NAME or NAME(setting=value, ...); repeat for more"
    sub.add_argument("--model", metavar="MODEL", help=what, required=True, **again)  # type: ignore[arg-type]
    sub.add_argument(
        "--trainer",
        metavar="TRAINER",
        help=f"{what}; default: that of each model",
        **again,  # type: ignore[arg-type]
    )
    sub.add_argument("--seconds", type=float, help="of each training")
    sub.add_argument("--rows", type=count, help="through the gradient, of each training")
    sub.add_argument("--test", metavar="DATA", help="held-out rows; default: a quarter of DATA")
    sub.add_argument("--foreign", metavar="DATA", help="rows of another kind; default: uniform")
    sub.add_argument("-n", type=count, default=500, help="samples of each model")
    sub.add_argument("--steps", type=count, default=200, help="of the chains that draw them")
    sub.add_argument("--chains", type=count, default=100, help="of AIS")
    sub.add_argument("--temperatures", type=count, default=1000, help="of AIS")
    sub.add_argument("--out", metavar="FILE.csv", help="the table")
    sub.add_argument("--png", metavar="FILE.png", help="a picture (needs matplotlib)")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")


def run_compare(
    options: argparse.Namespace,
    models: dict[str, Any],
    trainers: dict[str, Any],
    data: Callable[[str], Table],
    emit: Callable[[dict[str, Any]], None],
) -> None:
    """Compare; rows go to ``emit`` as they are done, the table to stderr, files where asked.

    Raises
    ------
    ValueError
        Also if no pair could be trained.
    """
    if options.png:
        import matplotlib.figure  # noqa: F401 - that it is missing is said before the work
    table = data(options.data)
    held = data(options.test) if options.test else Table(None)
    labelled = table.y is not None and (not options.test or held.y is not None)
    result = compare(
        models,
        trainers or None,
        table.X,
        table.y if labelled else None,
        seconds=options.seconds,
        rows=options.rows,
        X_test=held.X,
        y_test=held.y if labelled else None,
        foreign=data(options.foreign).X if options.foreign else None,
        image_shape=options.image_shape or table.image_shape,
        ais=AIS(options.chains, options.temperatures),
        n_samples=options.n,
        n_steps=options.steps,
        random_state=0 if options.seed is None else options.seed,
        verbose=not options.quiet,
        callback=emit,
    )
    print(result, file=sys.stderr)
    _write(options, result)
    if not any(row["status"] == "trained" for row in result.rows):
        raise ValueError("no pair could be trained; the rows say why")


def _write(options: argparse.Namespace, result: Comparison) -> None:
    if options.out:
        result.save_csv(options.out)
    if options.png and result.models:
        result.save_png(options.png)
