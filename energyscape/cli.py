"""The command line: train, sample, features, evaluate, diagnose, compare, plot.

Results are JSON lines on stdout, progress and log go to stderr. Exit codes: 0 done, 1 failed,
2 wrong usage, 130 interrupted (with a checkpoint of the last epoch if the run is alone; on a
cluster, epochs since the last save are lost).
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import energyscape
from energyscape.backend import to_host
from energyscape.callbacks import JsonLines, OwnCheckpoint, json_line
from energyscape.cli_cluster import add_cluster_arguments, train_on_cluster
from energyscape.cli_compare import add_arguments, run_compare
from energyscape.cli_values import UsageError, construct, parse_value, settings_of
from energyscape.data import binarize, threshold
from energyscape.data.reading import Table, read_table
from energyscape.errors import EnergyscapeError
from energyscape.evaluation import diagnose
from energyscape.models.base import EnergyModel
from energyscape.models.inputs import range_complaint
from energyscape.plotting import pool_members, save_curves, save_grid
from energyscape.registry import registered, to_tree
from energyscape.samplers import AIS
from energyscape.trainers.base import Trainer
from energyscape.verbs import speaks

_log = logging.getLogger("energyscape")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s: %(message)s")
    options = _parser().parse_args(arguments)
    _log.setLevel(logging.WARNING if getattr(options, "quiet", True) else logging.INFO)
    try:
        options.run(options)
    except UsageError as error:
        _complain(error)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (EnergyscapeError, ValueError, TypeError, OSError, ImportError) as error:
        _complain(error)
        return 1
    return 0


def _complain(error: Exception) -> None:
    print(f"energyscape: {error}", file=sys.stderr)


def _emit(record: dict[str, Any]) -> None:
    print(json_line(record), flush=True)


# ---------------------------------------------------------------- what options say


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if len(shape) != 2 or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no image shape such as 28,28")
    return shape


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer of at least 1")
    return int(text)


_ARRAYS = (".npy", ".npz", ".h5", ".hdf5")


def _check_out(out: str, *suffixes: str) -> Path:
    """The file to write, refused before any work is done for it."""
    path = Path(out)
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent} to write {path.name} to")
    if suffixes and path.suffix not in suffixes:
        raise UsageError(f"{out!r} must end in {', '.join(suffixes)}")
    return path


# ---------------------------------------------------------------- commands


def _data(options: argparse.Namespace, spec: str) -> Table:
    """DATA, binarised if asked."""
    table = read_table(spec)
    if options.binarize:
        X = np.asarray(table.X, np.float32)
        table.X = binarize(X, 0) if options.binarize == "stochastic" else threshold(X)
    return table


def _points(options: argparse.Namespace, model: Any, table: Table) -> Any:
    """Rows as ``model`` takes them: as images where it takes these."""
    _refuse_rows(model, table)
    if not hasattr(model, "takes_images"):
        return table.X
    shape = _rows_shape(options, model, table)
    if shape is None:
        name = type(model).__name__
        raise UsageError(f"{name} takes images: --image-shape says how high and wide rows are")
    return np.asarray(table.X).reshape(len(table.X), *shape)


def _refuse_rows(model: Any, table: Table) -> None:
    """Raise for what no model could take, or what is of the wrong scale for this one."""
    X = table.X
    if len(X.shape) != 2 or 0 in X.shape or X.dtype.kind not in "fiub":
        raise ValueError(f"rows of numbers are wanted, got shape {X.shape} of dtype {X.dtype}")
    complaint = range_complaint(model, X)
    if complaint is not None:
        raise ValueError(complaint)


def train(options: argparse.Namespace) -> None:
    """Train a model and write it; the file is a checkpoint until the last epoch is done."""
    if "{epoch}" in options.out:
        raise UsageError(
            "--out is one file, from which --resume goes on; for one of each epoch add "
            "-t \"callbacks=[Checkpoint('m{epoch}.h5')]\""
        )
    out, table = _check_out(options.out), _data(options, options.data)
    if options.resume and out.exists():
        model = _stored(options, out)
        _log.info("resuming %s at epoch %d", out, model.n_iter_)
    else:
        model = _requested(options)
    X = _points(options, model, table)
    model.image_shape_ = _rows_shape(options, model, table)
    resumes = hasattr(model, "seed_")
    checkpoint = OwnCheckpoint(out.resolve(), every=options.checkpoint_every)
    own = list(model.trainer.callbacks)
    if options.cluster:
        model.trainer.set_params(callbacks=[*own, checkpoint])
        train_on_cluster(options, model, X, resumes, _emit)
    else:
        model.trainer.set_params(callbacks=[*own, JsonLines("-"), checkpoint])
        (model.resume if resumes else model.fit)(X)
    for trainer in (model.trainer, model.trainer_):
        trainer.set_params(callbacks=own)
    model.save(out)
    _emit({"out": str(out), "epochs": model.n_iter_, "seed": model.seed_})


def _rows_shape(options: argparse.Namespace, model: Any, table: Table) -> tuple[int, ...] | None:
    shape, width = options.image_shape, table.X.shape[1]
    if shape is not None and math.prod(shape) != width:
        raise UsageError(f"--image-shape {shape[0]},{shape[1]} does not hold {width} features")
    return shape or table.image_shape or getattr(model, "image_shape_", None)


def _requested(options: argparse.Namespace) -> Any:
    """The model that the options describe, with its trainer."""
    own = settings_of(options.p, "-p")
    if "trainer" in own:
        raise UsageError("the trainer is named by --trainer and set by -t, not by -p")
    settings = {"random_state": options.seed, "device": options.device}
    settings |= {"verbose": int(not options.quiet)} | own
    model = construct(options.model or "RBM", EnergyModel, settings)
    trainer = settings_of(options.t, "-t")
    if options.trainer:
        model.trainer = construct(options.trainer, Trainer, trainer)
    else:
        if "optimizer" in trainer:  # in the place of the rate that the default comes with
            trainer = {"learning_rate": None} | trainer
        model.trainer = _configured(model.default_trainer(), trainer)
    return model


def _stored(options: argparse.Namespace, path: Path) -> Any:
    """The interrupted model; options that describe another one are refused, -t may add epochs."""
    model = _single(path)
    found = {"--model": type(model).__name__, "--trainer": type(model.trainer_).__name__}
    found |= {"--seed": model.seed_}
    asked = {"--model": options.model, "--trainer": options.trainer, "--seed": options.seed}
    stored = model.get_params()
    for name, value in settings_of(options.p, "-p").items():
        found[f"-p {name}"], asked[f"-p {name}"] = stored.get(name), value
    for name, value in asked.items():
        if value is not None and to_tree(found[name]) != to_tree(value):
            raise UsageError(f"{path} has {name}={found[name]}, not {value}; train anew without it")
    trainer = model.trainer_
    own = list(trainer.callbacks)
    # Those that train had added: the file's own checkpoint, and before it the lines on stdout.
    if own and isinstance(own[-1], OwnCheckpoint):  # wherever the file lay then
        own.pop()
        if own and isinstance(own[-1], JsonLines) and own[-1].path == "-":
            own.pop()
    trainer = _configured(trainer.set_params(callbacks=own), settings_of(options.t, "-t"))
    return model.set_params(trainer=trainer, device=options.device, verbose=int(not options.quiet))


def _configured(trainer: Any, settings: dict[str, Any]) -> Any:
    try:
        return trainer.set_params(**settings)
    except ValueError as error:
        raise UsageError(str(error)) from error


def sample(options: argparse.Namespace) -> None:
    """Draw samples from a trained model into a picture or an array file."""
    out, model = _check_out(options.out, ".png", *_ARRAYS), _load(options)
    size = {"shape": options.image_shape} if hasattr(model, "takes_images") else {}
    S = model.sample(
        options.n, n_steps=options.steps, beta=options.beta, random_state=options.seed, **size
    )
    if out.suffix == ".png":
        _save_samples(out, S, options, model)
    else:
        _write_arrays(out, {"X": to_host(S)})
    _emit({"out": options.out, "samples": options.n, "steps": options.steps})


def features(options: argparse.Namespace) -> None:
    """Features (and labels, where DATA has them) into a file that any classifier can read."""
    out = _check_out(options.out, *_ARRAYS)
    model, table = _load(options), _data(options, options.data)
    arrays = {"X": to_host(model.transform(_points(options, model, table)))}
    if table.y is not None:
        arrays["y"] = table.y
    _write_arrays(out, arrays)
    _emit({"out": options.out, "rows": len(arrays["X"]), "features": arrays["X"].shape[1]})


def evaluate(options: argparse.Namespace) -> None:
    """Mean energy, reconstruction error and, of a density, log-likelihood and bounds."""
    model, table = _load(options), _data(options, options.data)
    X = np.asarray(_points(options, model, table))
    record = {"rows": len(X), "energy": float(model.energy(X).mean())}
    if not speaks(model, ("encode", "decode")):
        record["reconstruction"] = float(((to_host(model.reconstruct(X)) - X) ** 2).mean())
    if model.has_density:
        record["log_likelihood"] = model.score(X)
    if not speaks(model, ("base_measure",)):
        record |= _bounds(model, table.X, AIS(options.chains, options.temperatures), options.seed)
    _emit(record)


def _bounds(model: Any, X: Any, ais: AIS, seed: int | None) -> dict[str, Any]:
    bounds = model.log_likelihood_bounds(X, ais, seed)
    return {
        "log_partition_exact": math.isinf(model.log_partition_ess_),
        "log_partition_ess": model.log_partition_ess_,
        "bound_low": bounds.low,
        "bound_high": bounds.high,
        "bound_low_holds_for": bounds.low_holds_for,
        "ais_ess": bounds.partition.ess,
    }


def diagnose_model(options: argparse.Namespace) -> None:
    """What is wrong with a model: findings as JSON lines, the report on stderr, a picture."""
    if options.out:
        _check_out(options.out, ".png")
    model, table = _load(options), _data(options, options.data)
    X = _points(options, model, table)
    result = diagnose(model, X, image_shape=_image_shape(options, model))
    for finding in result.findings:
        _emit({"finding": finding.name, "measured": finding.measured, "remedy": finding.remedy})
    _emit({"findings": len(result.findings)} | result.numbers)
    print(result, file=sys.stderr)
    if options.out:
        result.save_png(options.out)


def compare_models(options: argparse.Namespace) -> None:
    """Which model, by which strategy: train every pair under one budget and measure them all."""
    for out, suffix in ((options.out, ".csv"), (options.png, ".png")):
        if out:
            _check_out(out, suffix)
    if options.seconds is None and options.rows is None:
        raise UsageError("give a budget: --seconds, --rows, or both")
    models, trainers = _named(options.model, EnergyModel), _named(options.trainer, Trainer)
    for model in models.values():
        model.set_params(device=options.device)
    run_compare(options, models, trainers, lambda spec: _data(options, spec), _emit)


def _named(texts: list[str], base: type) -> dict[str, Any]:
    """Objects by what describes them."""
    made = {text: parse_value(text) for text in texts}
    made = {t: construct(t, base, {}) if isinstance(v, str) else v for t, v in made.items()}
    for text, value in made.items():
        if not isinstance(value, base):
            raise UsageError(f"{text!r} is none of {', '.join(registered(base))}")
    return made


def plot(options: argparse.Namespace) -> None:
    """A picture of a model: filters, what they are like in the data (patterns), those of its mean
    units, its pools, samples or learning curves."""
    _check_out(options.out, ".png")
    model = _load(options)
    if options.what in _FILTERS:
        shape = getattr(model, "filter_shape", None) or _image_shape(options, model)
        rows, columns = getattr(model, _FILTERS[options.what], None), None
        pools = model.params_.get("P")
        if rows is None or (options.what == "pools" and pools is None):
            raise UsageError(f"{type(model).__name__} has no {options.what}")
        if options.what == "pools":
            columns = _OF_A_POOL
            rows = pool_members(rows, pools, options.n, columns)
        else:
            rows = rows[: options.n]
        save_grid(options.out, rows, image_shape=shape, symmetric=True, n_columns=columns)
    elif options.what == "samples":
        size = {"shape": options.image_shape} if hasattr(model, "takes_images") else {}
        S = model.sample(options.n, random_state=options.seed, **size)
        _save_samples(options.out, S, options, model)
    else:
        save_curves(options.out, model.history_)
    _emit({"out": options.out})


def _load(options: argparse.Namespace) -> Any:
    return _single(options.model_file).set_params(device=options.device)


def _single(path: str | Path) -> Any:
    model = energyscape.load(path)
    if not isinstance(model, EnergyModel):
        raise UsageError(f"{path} holds a {type(model).__name__}, not a single model")
    return model


_FILTERS = {
    "filters": "components_",
    "patterns": "patterns_",
    "mean-filters": "mean_components_",
    "pools": "patterns_",
}
_OF_A_POOL = 9  # filters of a pool that are shown


def _save_samples(out: str | Path, S: Any, options: argparse.Namespace, model: Any) -> None:
    """Rows as a picture of images; images as they are."""
    shape = None if len(S.shape) > 2 else _image_shape(options, model)
    save_grid(out, S, image_shape=shape, scale="all")


def _image_shape(options: argparse.Namespace, model: Any) -> tuple[int, ...] | None:
    return options.image_shape or getattr(model, "image_shape_", None)


def _write_arrays(out: Path, arrays: dict[str, np.ndarray]) -> None:
    if out.suffix == ".npy":
        np.save(out, arrays["X"])
    elif out.suffix == ".npz":
        np.savez(out, **arrays)  # type: ignore[arg-type]
    else:
        with h5py.File(out, "w") as file:
            for name, array in arrays.items():
                file[name] = array


# ---------------------------------------------------------------- arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="energyscape", description=energyscape.__doc__)
    parser.add_argument("--version", action="version", version=energyscape.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, **common: bool) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=run.__doc__.split("\n")[0], description=run.__doc__)
        sub.set_defaults(run=run, binarize=None)
        if common.get("model"):
            sub.add_argument("model_file", metavar="MODEL", help="a file that train wrote")
        if common.get("data"):
            known = "mnist, mnist-test, digits, a file, or 'parts/*.h5'"
            sub.add_argument("data", metavar="DATA", help=known)
            sub.add_argument(
                "--binarize",
                choices=("stochastic", "threshold"),
                help="turn rows into bits, once (seed 0)",
            )
        sub.add_argument("--seed", type=int, help="of all random numbers")
        sub.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
        sub.add_argument("--image-shape", type=_shape, help="height,width of a row or a sample")
        return sub

    sub = command("train", train, data=True)
    sub.add_argument("--model", help=", ".join(registered(EnergyModel)) + "; default: RBM")
    sub.add_argument("--trainer", help=", ".join(registered(Trainer)) + "; default: the model's")
    sub.add_argument("-p", action="append", default=[], metavar="NAME=VALUE", help="of the model")
    sub.add_argument("-t", action="append", default=[], metavar="NAME=VALUE", help="of the trainer")
    sub.add_argument("--out", required=True, metavar="FILE.h5", help="model and checkpoint")
    sub.add_argument("--resume", action="store_true", help="go on from FILE.h5 if it is there")
    sub.add_argument("--checkpoint-every", type=_count, default=1, metavar="EPOCHS")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")
    add_cluster_arguments(sub, _count)

    sub = command("sample", sample, model=True)
    sub.add_argument("-n", type=_count, default=64)
    sub.add_argument("--steps", type=int, default=1000)
    sub.add_argument("--beta", type=float, default=1.0, help="inverse temperature")
    sub.add_argument("--out", required=True, help=".png, .npy, .npz or .h5")

    sub = command("features", features, model=True, data=True)
    sub.add_argument("--out", required=True, help=".npy, .npz or .h5, arrays X and y")

    sub = command("evaluate", evaluate, model=True, data=True)
    sub.add_argument("--chains", type=int, default=100)
    sub.add_argument("--temperatures", type=int, default=1000)

    sub = command("diagnose", diagnose_model, model=True, data=True)
    sub.add_argument("--out", help="a picture (.png, needs matplotlib)")

    sub = command("compare", compare_models, data=True)
    add_arguments(sub, _count)

    sub = command("plot", plot, model=True)
    sub.add_argument("what", choices=(*_FILTERS, "samples", "curves"))
    sub.add_argument("-n", type=_count, default=100)
    sub.add_argument("--out", required=True, help=".png")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
