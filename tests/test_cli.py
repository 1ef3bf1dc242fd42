"""The command line: JSON on stdout, the rest on stderr, exit codes, resume to the same model."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
from cases import CASES
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import energyscape
from energyscape import cli, cli_cluster
from energyscape.callbacks import Checkpoint, EarlyStopping, JsonLines
from energyscape.corruptions import Binarize
from energyscape.data import load_digits
from energyscape.errors import WorkerLostError
from energyscape.models import RBM, GaussianRBM, PoT
from energyscape.optim import SGD, LinearDecay
from energyscape.trainers import CD, FPCD, PCD

Image = pytest.importorskip("PIL.Image")  # absent where only the GPU tests run

BITS = CASES[0].data.astype(np.float32)


class Run(NamedTuple):
    """What one command gave."""

    code: int
    records: list[dict[str, Any]]
    err: str


@pytest.fixture
def run(capsys: Any) -> Any:
    """Call the command line in this process; stdout must be JSON lines and nothing else."""

    def call(*arguments: object) -> Run:
        capsys.readouterr()
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as stop:  # argparse ends in this way
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return Run(code, [json.loads(line) for line in out.splitlines()], err)

    return call


@pytest.fixture
def bits(tmp_path: Path) -> Path:
    """60 rows of 7 bits with labels."""
    path = tmp_path / "bits.npz"
    np.savez(path, X=BITS, y=np.arange(60) % 2)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of 8x8 digits, trained by the command line."""
    path = tmp_path_factory.mktemp("trained") / "digits.h5"
    settings = ["-p", "n_components=16", "-t", "n_epochs=3", "--seed", "0", "--quiet"]
    assert cli.main(["train", "digits", *settings, "--out", str(path)]) == 0
    return path


def _params(path: Path) -> dict[str, np.ndarray]:
    return energyscape.load(path).params_


def _assert_equal(one: Path, other: Path) -> None:
    """Parameters and carry, bit for bit."""
    mine, theirs = energyscape.load(one), energyscape.load(other)
    assert mine.n_iter_ == theirs.n_iter_
    for part in ("params", "carry"):
        left, right = getattr(mine._state, part), getattr(theirs._state, part)
        assert left.keys() == right.keys()
        for key in left:
            np.testing.assert_array_equal(left[key], right[key])


# ---------------------------------------------------------------- train


def test_train_writes_a_json_line_an_epoch_and_a_model(
    run: Any, bits: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.h5"
    code, records, err = run("train", bits, "-t", "n_epochs=3", "--seed", 5, "--out", out)
    assert code == 0 and "RBM/PCD" in err
    assert [r.get("epoch") for r in records] == [1, 2, 3, None]
    assert {"seconds", "energy_train", "reconstruction", "grad_norm"} <= set(records[0])
    assert records[-1] == {"out": str(out), "epochs": 3, "seed": 5}
    model = energyscape.load(out)
    assert records[1]["energy_train"] == model.history_["energy_train"][1]
    # What the command added for its own sake is not part of the model.
    assert list(model.trainer.callbacks) == list(model.trainer_.callbacks) == []


@pytest.mark.slow
def test_train_on_a_cluster_of_processes(run: Any, tmp_path: Path) -> None:
    """Files that the workers read, by a pattern; and an interrupted run that goes on."""
    pytest.importorskip("distributed")
    for i in range(2):
        np.save(tmp_path / f"part-{i}.npy", BITS.astype(np.float32))
    out, data = tmp_path / "m.h5", tmp_path / "part-*.npy"
    words = ("--cluster", 2, "--sync-every", 2, "--seed", 5, "--quiet", "--out", out)
    code, records, err = run("train", data, "-t", "n_epochs=3", "-t", "batch_size=20", *words)
    assert code == 0, err
    assert [r.get("epoch") for r in records] == [1, 2, 3, None]
    assert energyscape.load(out)._state.n_rows == 120
    again = run("train", data, "-t", "n_epochs=4", *words, "--resume")
    assert [r.get("epoch") for r in again.records] == [4, None]
    assert list(energyscape.load(out).trainer.callbacks) == []


def test_files_for_a_cluster_are_read_by_its_workers(
    run: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    """Where they see what the model is given: by any pattern, but not images as rows."""
    given = []

    def fit(model: Any, data: Any, *args: Any, **options: Any) -> None:
        given.append(data)
        raise ValueError("enough")

    monkeypatch.setattr(cli_cluster, "_client", lambda where: contextlib.nullcontext())
    monkeypatch.setattr(cli_cluster.distributed, "fit", fit)
    (tmp_path / "parts").mkdir()
    np.save(tmp_path / "parts" / "a.npy", BITS)
    np.save(tmp_path / "images.npy", BITS[:, None])
    for data in ("parts/*", "parts/a.npy", "images.npy"):
        words = ("--cluster", 2, "--quiet", "--out", tmp_path / "m.h5")
        assert run("train", tmp_path / data, *words).code == 1
    assert given[:2] == [[str(tmp_path / "parts" / "*")], [str(tmp_path / "parts" / "a.npy")]]
    assert given[2].shape == BITS.shape


def test_a_lost_cluster_tells_what_it_saved(
    run: Any, bits: Path, monkeypatch: Any, tmp_path: Path
) -> None:
    """The epochs of its checkpoint, and the way to go on in words of the command line."""

    def lost(model: Any, data: Any, client: Any, **options: Any) -> None:
        if not hasattr(model, "seed_"):
            model.fit(data)
        raise WorkerLostError("worker 1 is gone; energyscape.distributed.resume(...)")

    monkeypatch.setattr(cli_cluster, "_client", lambda where: contextlib.nullcontext())
    monkeypatch.setattr(cli_cluster.distributed, "fit", lost)
    monkeypatch.setattr(cli_cluster.distributed, "resume", lost)
    out = tmp_path / "m.h5"
    words = ("train", bits, "-t", "n_epochs=3", "--cluster", 2, "--quiet", "--out", out)
    code, records, err = run(*words)
    assert code == 1 and [record["epoch"] for record in records] == [1, 2, 3], err
    assert f"worker 1 is gone; the same command with --resume goes on from {out}" in err
    code, records, err = run(*words, "--resume")
    assert code == 1 and not records and "with --resume goes on" in err
    code, records, err = run(*words, "--checkpoint-every", 5)
    assert code == 1 and not records and "no epoch was saved" in err


def test_clusters_that_are_none(run: Any, bits: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    code, _, err = run("train", bits, "--cluster", "nowhere", "--out", tmp_path / "m.h5")
    assert code == 1 and "'nowhere' is none of them" in err


def test_quiet_is_silent_and_seeds_repeat(run: Any, bits: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.h5" for i in range(3)]
    for path, seed in zip(paths, (3, 3, 4), strict=True):
        end = ("--seed", seed, "--quiet", "--out", path)
        code, _, err = run("train", bits, "-t", "n_epochs=2", *end)
        assert (code, err) == (0, "")
    _assert_equal(paths[0], paths[1])
    assert not np.array_equal(_params(paths[0])["W"], _params(paths[2])["W"])


def test_without_a_seed_the_one_drawn_is_told(run: Any, bits: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    drawn = run("train", bits, "-t", "n_epochs=1", "--out", one).records[-1]["seed"]
    assert run("train", bits, "-t", "n_epochs=1", "--seed", drawn, "--out", two).code == 0
    _assert_equal(one, two)


def test_parameters_reach_the_model_and_the_trainer(run: Any, bits: Path, tmp_path: Path) -> None:
    model = ["--model", "GaussianRBM", "-p", "n_components=3", "-p", "variance=1.0"]
    trainer = ["--trainer", "FPCD", "-t", "n_epochs=2", "-t", "validation_fraction=0.2"]
    trainer += ["-t", "optimizer=SGD(0.02, momentum=0.5)", "-t", "batch_transform=Binarize()"]
    trainer += ["-t", "callbacks=[EarlyStopping(monitor=energy_gap, patience=9)]"]
    out = tmp_path / "m.h5"
    assert run("train", bits, *model, *trainer, "--out", out).code == 0
    found = energyscape.load(out)
    assert type(found) is GaussianRBM and type(found.trainer) is FPCD
    assert (found.n_components, found.variance, found.trainer.n_epochs) == (3, 1.0, 2)
    assert (found.trainer.optimizer.learning_rate, found.trainer.optimizer.momentum) == (0.02, 0.5)
    assert isinstance(found.trainer.batch_transform, Binarize)
    (stopping,) = found.trainer.callbacks
    assert isinstance(stopping, EarlyStopping)
    assert (stopping.monitor, stopping.patience) == ("energy_gap", 9)
    # And they do what they do from Python.
    twin = FPCD(
        n_epochs=2,
        validation_fraction=0.2,
        optimizer=SGD(0.02, momentum=0.5),
        batch_transform=Binarize(),
    )
    twin = GaussianRBM(3, variance=1.0, trainer=twin, random_state=found.seed_).fit(BITS)
    np.testing.assert_array_equal(found.params_["W"], twin.params_["W"])


def test_the_default_trainer_takes_parameters_too(run: Any, bits: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.h5"
    assert run("train", bits, "-t", "n_epochs=1", "-t", "n_steps=2", "--out", out).code == 0
    assert energyscape.load(out).trainer.n_steps == 2
    # An optimiser replaces the learning rate that GaussianRBM's own trainer comes with.
    own = ["--model", "GaussianRBM", "-t", "n_epochs=1", "-t", "optimizer=SGD(0.003)"]
    assert run("train", bits, *own, "--out", out).code == 0
    assert energyscape.load(out).trainer.optimizer.learning_rate == 0.003


def test_rows_are_binarised_on_request(run: Any, tmp_path: Path) -> None:
    grey = tmp_path / "grey.npy"
    np.save(grey, np.full((100, 6), 0.7))
    means = {}
    for how in ("stochastic", "threshold"):
        out = tmp_path / f"{how}.h5"
        assert run("train", grey, "--binarize", how, "-t", "n_epochs=1", "--out", out).code == 0
        means[how] = _params(out)["mean_v"]
    np.testing.assert_allclose(means["threshold"], 1, atol=0.05)
    # 100 draws of a pixel are all ones with probability 0.7**100 < 1e-15, for a threshold always.
    assert means["stochastic"].max() < 1


def test_images_keep_their_shape(run: Any, bits: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.h5"
    np.save(tmp_path / "images.npy", np.zeros((20, 2, 5), np.float32))
    assert run("train", tmp_path / "images.npy", "-t", "n_epochs=1", "--out", out).code == 0
    assert energyscape.load(out).image_shape_ == (2, 5)
    assert run("train", bits, "--image-shape", "1x7", "-t", "n_epochs=1", "--out", out).code == 0
    assert energyscape.load(out).image_shape_ == (1, 7)


def test_models_of_images_take_images(run: Any, bits: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images.npy", tmp_path / "m.h5"
    np.save(images, np.random.default_rng(0).standard_normal((20, 6, 10)).astype(np.float32))
    settings = ["-p", "n_components=3", "-p", "tile=4", "-p", "n_mean_components=2"]
    settings += ["-t", "n_epochs=1", "--model", "TiledMPoT", "--out", out]
    assert run("train", images, *settings).code == 0
    assert energyscape.load(out).image_shape_ == (6, 10)
    assert (
        run(
            "sample",
            out,
            "-n",
            "2",
            "--steps",
            "2",
            "--image-shape",
            "7x9",
            "--out",
            tmp_path / "x.npy",
        ).code
        == 0
    )
    assert np.load(tmp_path / "x.npy").shape == (2, 7, 9)
    assert run("features", out, images, "--out", tmp_path / "h.npy").code == 0
    assert np.load(tmp_path / "h.npy").shape == (20, 20)
    assert run("evaluate", out, images).code == 0
    for what in ("filters", "patterns", "mean-filters"):
        assert run("plot", out, what, "--out", tmp_path / "p.png").code == 0
    code, _, err = run("plot", out, "pools", "--out", tmp_path / "p.png")
    assert code == 2 and "TiledMPoT has no pools" in err
    rows = np.random.default_rng(1).standard_normal((30, 6)).astype(np.float32)
    PoT(4, pools=2, trainer=PCD(n_epochs=1)).fit(rows).save(tmp_path / "pot.h5")
    size = ["--image-shape", "2x3", "--out", tmp_path / "pools.png"]
    assert run("plot", tmp_path / "pot.h5", "pools", *size).code == 0
    assert (tmp_path / "pools.png").exists()
    code, _, err = run("train", bits, *settings)
    assert code == 2 and "--image-shape" in err
    rbm = tmp_path / "rbm.h5"
    assert run("train", bits, "-t", "n_epochs=1", "--out", rbm).code == 0
    code, _, err = run("plot", rbm, "mean-filters", "--out", tmp_path / "p.png")
    assert code == 2 and "RBM has no mean-filters" in err


# ---------------------------------------------------------------- values are data, not code


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-0.5", -0.5),
        ("1e-3", 1e-3),
        ("None", None),
        ("True", True),
        ("(28, 28)", (28, 28)),
        ("[1, 2]", [1, 2]),
        ("{'b': 0.5}", {"b": 0.5}),
        ("'two words'", "two words"),
        ("two words", "two words"),
        ("auto", "auto"),
        ("cuda:1", "cuda:1"),
        ("runs/m.h5", "runs/m.h5"),
        ("[auto, cuda]", ["auto", "cuda"]),
        ("[runs/a, 1]", ["runs/a", 1]),
        ("", ""),
        ("inf", math.inf),
        ("-inf", -math.inf),
        ("(inf, 1)", (math.inf, 1)),
        ("infinite", "infinite"),
        ("-x", "-x"),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert cli.parse_value(text) == value


def test_values_construct_registered_classes() -> None:
    made = cli.parse_value("SGD(0.2, momentum=0.5, schedule=LinearDecay(end=0.1), rates={'b': 2})")
    assert type(made) is SGD and type(made.schedule) is LinearDecay
    assert (made.learning_rate, made.momentum, made.schedule.end) == (0.2, 0.5, 0.1)
    assert made.rates == {"b": 2}
    assert isinstance(cli.parse_value("[Binarize()]")[0], Binarize)
    assert cli.parse_value("PoT(n_components=6, sigma=inf)").sigma == math.inf
    assert math.isnan(cli.parse_value("nan"))


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch {}')",
        "open('{}', 'w')",
        "[open('{}', 'w')]",
        "SGD(open('{}', 'w'))",
        "SGD(learning_rate=open('{}', 'w').close())",
        "SGD.__init__.__globals__['os'].system('touch {}')",
        "(lambda: open('{}', 'w'))()",
        "[open('{}', 'w') for _ in 'a']",
        "f\"{{open('{}', 'w')}}\"",
        "(0, eval(\"open('{}', 'w')\"))",
        "SGD(*[open('{}', 'w')])",
        "SGD(**dict(learning_rate=open('{}', 'w')))",
    ],
)
def test_values_run_no_code(text: str, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    text = text.format(touched)
    try:
        value = cli.parse_value(text)
    except cli.UsageError:
        value = None
    assert not touched.exists()
    assert value is None or isinstance(value, str | list | SGD)
    # A negative control: this is what running it would have done.
    if text.startswith("open"):
        eval(text).close()
        assert touched.exists()


def test_only_registered_names_are_called(run: Any, bits: Path, tmp_path: Path) -> None:
    with pytest.raises(cli.UsageError, match="'__import__' is none of AIS, Adam"):
        cli.parse_value('__import__("os")')
    out = tmp_path / "m.h5"
    code, records, err = run("train", bits, "-p", 'n_components=__import__("os")', "--out", out)
    assert (code, records) == (2, []) and "is none of" in err
    assert not out.exists()


# ---------------------------------------------------------------- interrupt, kill and resume


def _settings(epochs: int) -> list[str]:
    rate = "optimizer=SGD(0.05, momentum=0.5)"
    return ["-p", "n_components=4", "-t", f"n_epochs={epochs}", "-t", "batch_size=10", "-t", rate]


def test_an_interrupted_run_resumes_to_the_same_model(
    run: Any, bits: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    whole, parts = tmp_path / "whole.h5", tmp_path / "parts.h5"
    common = [*_settings(6), "--seed", "1", "--quiet"]
    assert run("train", bits, *common, "--out", whole).code == 0
    apply = PCD.apply

    def interrupted(*args: Any) -> None:
        apply(*args)
        if args[-1].step == 20:  # in the fourth epoch of six batches
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PCD, "apply", interrupted)
        code, records, err = run("train", bits, *common, "--out", parts)
    assert code == 130 and err == "interrupted\n"
    assert [r["epoch"] for r in records] == [1, 2, 3]
    assert energyscape.load(parts).n_iter_ == 3
    code, records, _ = run("train", bits, "--resume", "--quiet", "--out", parts)
    assert code == 0 and [r.get("epoch") for r in records] == [4, 5, 6, None]
    _assert_equal(whole, parts)
    # Resuming what is done changes nothing, and more epochs may be asked for.
    before = parts.read_bytes()
    assert run("train", bits, *common, "--resume", "--out", parts).code == 0
    assert parts.read_bytes() == before
    assert run("train", bits, "-t", "n_epochs=8", "--resume", "--out", parts).code == 0
    assert energyscape.load(parts).n_iter_ == 8


def test_resume_begins_anew_where_there_is_no_file(run: Any, bits: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    common = [*_settings(2), "--seed", "1"]
    assert run("train", bits, *common, "--resume", "--out", one).code == 0
    assert run("train", bits, *common, "--out", two).code == 0
    _assert_equal(one, two)


def test_resume_keeps_what_was_asked_for_at_the_start(
    run: Any, bits: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """The shape of the images and the user's own callbacks outlive the interruption."""
    out, log = tmp_path / "m.h5", tmp_path / "log.jsonl"
    own = ["-t", f"callbacks=[JsonLines('{log}'), Checkpoint('{tmp_path}/at{{epoch}}.h5')]"]
    apply = PCD.apply

    def interrupted(*args: Any) -> None:
        apply(*args)
        if args[-1].step == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PCD, "apply", interrupted)
        start = ["train", bits, *_settings(3), *own, "--image-shape", "7,1"]
        assert run(*start, "--out", out).code == 130
    assert run("train", bits, "--resume", "--out", out).code == 0
    model = energyscape.load(out)
    assert model.image_shape_ == (7, 1)
    assert [type(c) for c in model.trainer_.callbacks] == [JsonLines, Checkpoint]
    assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == [1, 2, 3]
    assert all((tmp_path / f"at{epoch}.h5").exists() for epoch in (1, 2, 3))


def _cut_off(run: Any, monkeypatch: Any, *words: object) -> None:
    """A training that is interrupted in the fourth epoch of six batches."""
    apply = PCD.apply

    def interrupted(*args: Any) -> None:
        apply(*args)
        if args[-1].step == 20:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PCD, "apply", interrupted)
        assert run("train", *words).code == 130


def test_a_file_that_was_moved_resumes_where_it_lies(
    run: Any, bits: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    own = ["-t", f"callbacks=[Checkpoint('{tmp_path}/own.h5')]"]
    _cut_off(run, monkeypatch, bits, *_settings(6), *own, "--out", old / "m.h5")
    old.rename(new)
    (new / "m.h5").rename(new / "other.h5")
    code, records, _ = run("train", bits, "--resume", "--out", new / "other.h5")
    assert code == 0 and [r.get("epoch") for r in records] == [4, 5, 6, None]
    assert not old.exists() and [p.name for p in new.iterdir()] == ["other.h5"]
    # The user's own goes on, and stays.
    kept = energyscape.load(new / "other.h5").trainer_.callbacks
    assert [type(c) for c in kept] == [Checkpoint]
    assert energyscape.load(tmp_path / "own.h5").n_iter_ == 6


def test_out_may_be_a_link(run: Any, bits: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "far").mkdir()
    link, there = tmp_path / "m.h5", tmp_path / "far" / "m.h5"
    link.symlink_to(there)
    _cut_off(run, monkeypatch, bits, *_settings(6), "--out", link)
    assert energyscape.load(there).n_iter_ == 3
    assert run("train", bits, "--resume", "--out", link).code == 0
    assert link.is_symlink() and energyscape.load(there).n_iter_ == 6


# Handlers are set anew because a shell may start tests with the interrupt signal ignored.
_COMMAND = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from energyscape.cli import main
raise SystemExit(main())
"""


@pytest.fixture
def start(bits: Path) -> Iterator[Any]:
    """Begin a training that writes more than a pipe holds: it cannot end before it is read."""
    children: list[subprocess.Popen[str]] = []

    def begin(out: Path, *more: str) -> subprocess.Popen[str]:
        settings = [*_settings(600), "--seed", "1", "--out", str(out), *more]
        child = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, "train", str(bits), *settings],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        return child

    yield begin
    for child in children:
        if child.poll() is None:
            child.kill()
            child.communicate()


def _epochs(child: subprocess.Popen[str], n: int) -> None:
    assert child.stdout is not None
    for epoch in range(1, n + 1):
        assert json.loads(child.stdout.readline())["epoch"] == epoch


def test_a_killed_run_resumes_to_the_same_model(
    run: Any, start: Any, bits: Path, tmp_path: Path
) -> None:
    killed, whole = tmp_path / "killed.h5", tmp_path / "whole.h5"
    child = start(killed)
    _epochs(child, 3)
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    # A checkpoint follows its line, so the third line vouches for the second epoch.
    assert 2 <= energyscape.load(killed).n_iter_ < 600
    quick = ["--quiet", "--checkpoint-every", "1000"]
    assert run("train", bits, "--resume", *quick, "--out", killed).code == 0
    assert run("train", bits, *_settings(600), "--seed", 1, *quick, "--out", whole).code == 0
    _assert_equal(whole, killed)


def test_an_interrupt_signal_leaves_a_checkpoint_and_code_130(start: Any, tmp_path: Path) -> None:
    out = tmp_path / "m.h5"
    child = start(out, "--checkpoint-every", "1000")
    _epochs(child, 2)
    child.send_signal(signal.SIGINT)
    rest, err = child.communicate(timeout=60)
    assert child.returncode == 130 and err.endswith("interrupted\n")
    assert "Traceback" not in err
    assert all(json.loads(line)["epoch"] for line in rest.splitlines())
    # The only save is the one at the interrupt: no epoch is a multiple of 1000.
    assert 2 <= energyscape.load(out).n_iter_ < 600
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


@pytest.mark.parametrize(
    "contradiction",
    [
        ["--model", "GaussianRBM"],
        ["--trainer", "CD"],
        ["--seed", "2"],
        ["-p", "n_components=5"],
        ["-p", "no_such=5"],
        ["-t", "no_such=5"],
    ],
)
def test_options_that_contradict_the_file_are_refused(
    run: Any, bits: Path, tmp_path: Path, contradiction: list[str]
) -> None:
    out = tmp_path / "m.h5"
    RBM(4, trainer=PCD(n_epochs=1), random_state=1).fit(BITS).save(out)
    before = out.read_bytes()
    code, records, err = run("train", bits, *contradiction, "--resume", "--out", out)
    assert (code, records) == (2, [])
    assert contradiction[-1].partition("=")[0] in err
    assert out.read_bytes() == before
    agreement = ["--model", "RBM", "--trainer", "PCD", "--seed", 1, "-p", "n_components=4"]
    assert run("train", bits, *agreement, "--resume", "--out", out).code == 0


def test_other_rows_and_other_files_do_not_resume(run: Any, bits: Path, tmp_path: Path) -> None:
    out, fewer = tmp_path / "m.h5", tmp_path / "fewer.npy"
    RBM(4, trainer=CD(n_epochs=1), random_state=1).fit(BITS).save(out)
    np.save(fewer, BITS[:50])
    code, _, err = run("train", fewer, "--resume", "--out", out)
    assert code == 1 and "had 60 training rows, X gives 50" in err
    two = make_pipeline(RBM(4, trainer=CD(n_epochs=1)), RBM(2, trainer=CD(n_epochs=1))).fit(BITS)
    energyscape.save(two, out)
    code, _, err = run("train", bits, "--resume", "--out", out)
    assert code == 2 and "holds a Pipeline, not a single model" in err
    out.write_bytes(b"text")
    code, _, err = run("train", bits, "--resume", "--out", out)
    assert code == 1 and "not an energyscape model file" in err
    assert out.read_bytes() == b"text"


# ---------------------------------------------------------------- sample and features


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npy":
        return {"X": np.load(path)}
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return dict(arrays)
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".hdf5"])
def test_samples_as_arrays(run: Any, trained: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"s{suffix}"
    code, records, _ = run("sample", trained, "-n", 5, "--steps", 20, "--seed", 3, "--out", out)
    assert code == 0 and records == [{"out": str(out), "samples": 5, "steps": 20}]
    S = _read(out)["X"]
    np.testing.assert_array_equal(
        S, energyscape.load(trained).sample(5, n_steps=20, random_state=3)
    )


def test_samples_as_a_picture(run: Any, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.png"
    assert run("sample", trained, "-n", 6, "--steps", 5, "--beta", 0.5, "--out", out).code == 0
    with Image.open(out) as image:
        # Two lines of three 8x8 images with frames, enlarged twice.
        assert image.size == (2 * (3 * 9 + 1), 2 * (2 * 9 + 1))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
def test_features_feed_any_classifier(run: Any, trained: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"f{suffix}"
    code, records, _ = run("features", trained, "digits", "--out", out)
    assert code == 0 and records == [{"out": str(out), "rows": 1797, "features": 16}]
    X, y = load_digits()
    found = _read(out)
    assert found["X"].shape == (1797, 16) and np.isfinite(found["X"]).all()
    np.testing.assert_array_equal(found["X"], energyscape.load(trained).transform(X))
    labels = found.get("y", y)
    np.testing.assert_array_equal(labels, y)
    assert ("y" in found) == (suffix != ".npy")
    classifier = LogisticRegression(C=1e3, max_iter=5000).fit(found["X"][:1000], labels[:1000])
    # Ten classes: the share of the most frequent one is 0.1.
    assert classifier.score(found["X"][1000:], labels[1000:]) > 0.3


# ---------------------------------------------------------------- evaluate, diagnose, plot


@pytest.mark.parametrize(
    ("model", "trainer", "density"),
    [("PCA", "ClosedForm", True), ("GaussianMixture", "EM", True), ("KMeans", "EM", False)],
)
def test_evaluate_says_what_there_is(
    run: Any, tmp_path: Path, model: str, trainer: str, density: bool
) -> None:
    """No bounds without a base measure, and no likelihood without a density."""
    out = tmp_path / "m.h5"
    settings = ["-p", "n_components=3", "--trainer", trainer, "--seed", "0"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        assert run("train", "digits", "--model", model, *settings, "--out", out)[0] == 0
    code, (found,), _ = run("evaluate", out, "digits")
    again, X = energyscape.load(out), load_digits()[0]
    assert code == 0 and found["energy"] == pytest.approx(again.energy(X).mean())
    assert ("log_likelihood" in found) == density and "bound_low" not in found


def test_evaluate_with_an_exact_partition_function(run: Any, trained: Path) -> None:
    ais = ["--chains", "30", "--temperatures", "100", "--seed", "0"]
    code, (found,), _ = run("evaluate", trained, "digits", *ais)
    model, X = energyscape.load(trained), load_digits()[0]
    assert code == 0 and found["rows"] == 1797
    assert found["log_partition_exact"] is True and found["log_partition_ess"] is None
    assert found["log_likelihood"] == model.score(X)
    assert found["reconstruction"] == pytest.approx(((model.reconstruct(X) - X) ** 2).mean())
    # Barely trained, so that both bounds are all but tight; 30 chains of weights near one.
    assert found["bound_low"] == pytest.approx(found["log_likelihood"], abs=0.5)
    assert found["bound_high"] == pytest.approx(found["log_likelihood"], abs=0.5)
    assert found["bound_low_holds_for"] == "model" and 1 <= found["ais_ess"] <= 30


def test_evaluate_by_annealed_importance_sampling(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "m.h5"
    train = ["-p", "n_components=24", "-t", "n_epochs=1", "--seed", "0", "--quiet"]
    assert run("train", "digits", *train, "--out", out).code == 0
    ais = ["--chains", "20", "--temperatures", "50"]
    code, (found,), _ = run("evaluate", out, "digits", *ais, "--binarize", "threshold")
    assert code == 0 and found["log_partition_exact"] is False
    assert found["log_partition_ess"] > 1 and found["bound_low_holds_for"] == "annealed model"
    assert all(np.isfinite(v) for k, v in found.items() if k != "bound_low_holds_for")


def test_diagnose_gives_findings_numbers_and_a_picture(
    run: Any, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "d.png"
    code, records, err = run("diagnose", trained, "digits", "--out", out)
    assert code == 0 and "RBM: " in err
    *findings, numbers = records
    assert numbers["findings"] == len(findings)
    assert all(set(f) == {"finding", "measured", "remedy"} for f in findings)
    assert {"dead", "saturated", "auc_uniform", "filter_smoothness"} <= set(numbers)
    with Image.open(out) as image:
        image.load()
        assert image.format == "PNG"


@pytest.mark.parametrize("what", ["filters", "samples", "curves"])
def test_plots_are_pictures(run: Any, trained: Path, tmp_path: Path, what: str) -> None:
    out = tmp_path / "p.png"
    code, records, _ = run("plot", trained, what, "-n", 4, "--seed", 0, "--out", out)
    assert code == 0 and records == [{"out": str(out)}]
    with Image.open(out) as image:
        image.load()
        assert image.format == "PNG"
        if what != "curves":
            assert image.size == (2 * 19, 2 * 19)


def test_the_image_shape_of_a_picture_can_be_given(run: Any, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.png"
    assert run("plot", trained, "filters", "-n", 1, "--image-shape", "4,16", "--out", out).code == 0
    with Image.open(out) as image:
        assert image.size == (2 * 18, 2 * 6)
    code, _, err = run("plot", trained, "filters", "--image-shape", "5,5", "--out", out)
    assert code == 1 and "does not hold 64" in err


def test_curves_without_matplotlib_say_what_is_missing(
    run: Any, trained: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    code, _, err = run("plot", trained, "curves", "--out", tmp_path / "p.png")
    assert code == 1 and "matplotlib" in err
    assert run("plot", trained, "filters", "--out", tmp_path / "p.png").code == 0


# ---------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "required"),
        (["no-such-command"], "invalid choice"),
        (["train"], "required"),
        (["train", "BITS"], "required"),
        (["train", "BITS", "--out", "OUT", "--no-such-option"], "unrecognized"),
        (
            ["train", "BITS", "--out", "OUT", "--model", "NoModel"],
            "is none of AutoEncoder, ConvPSD, ConvSparseCoding",
        ),
        (["train", "BITS", "--out", "OUT", "--model", "PCD"], "'PCD' is none of"),
        (
            ["train", "BITS", "--out", "OUT", "--trainer", "NoTrainer"],
            "is none of Backpropagation, CD, ClosedForm",
        ),
        (["train", "BITS", "--out", "OUT", "--trainer", "RBM"], "'RBM' is none of"),
        (["train", "BITS", "--out", "OUT", "-p", "no_such=1"], "no_such"),
        (["train", "BITS", "--out", "OUT", "-t", "no_such=1"], "no_such"),
        (["train", "BITS", "--out", "OUT", "--trainer", "CD", "-t", "no_such=1"], "no_such"),
        (["train", "BITS", "--out", "OUT", "-p", "trainer=CD()"], "named by --trainer"),
        (["train", "BITS", "--out", "OUT", "-p", "n_components"], "-p takes name=value"),
        (["train", "BITS", "--out", "OUT", "-t", "=3"], "-t takes name=value"),
        (["train", "BITS", "--out", "OUT", "-t", "optimizer=Sgd(1)"], "'Sgd' is none of"),
        (["train", "BITS", "--out", "OUT", "-t", "optimizer=SGD(rate=1)"], "rate"),
        (["train", "BITS", "--out", "OUT", "--seed", "one"], "invalid int"),
        (["train", "BITS", "--out", "OUT", "--binarize", "maybe"], "invalid choice"),
        (["train", "BITS", "--out", "OUT", "--image-shape", "7"], "is no image shape"),
        (["train", "BITS", "--out", "OUT", "--image-shape", "a,b"], "is no image shape"),
        (["train", "BITS", "--out", "OUT", "--image-shape", "0,7"], "is no image shape"),
        (["train", "BITS", "--out", "OUT", "--image-shape", "1,2,3"], "is no image shape"),
        (["train", "BITS", "--out", "OUT", "--image-shape", "2,3"], "does not hold 7"),
        (["train", "BITS", "--out", "OUT", "--checkpoint-every", "0"], "at least 1"),
        (["train", "BITS", "--out", "NOWHERE/m.h5"], "there is no folder"),
        (["sample", "MODEL", "--out", "NOWHERE/s.npy"], "there is no folder"),
        (["sample", "MODEL", "--out", "s.jpg"], "must end in .png, .npy, .npz, .h5"),
        (["sample", "MODEL", "--out", "s.npy", "-n", "0"], "at least 1"),
        (["sample", "MODEL"], "required"),
        (["features", "MODEL", "BITS", "--out", "NOWHERE/f.npy"], "there is no folder"),
        (["features", "MODEL", "BITS", "--out", "f.png"], "must end in .npy, .npz, .h5"),
        (["features", "MODEL", "BITS", "--out", "f.csv"], "must end in"),
        (["evaluate", "MODEL", "BITS", "--chains", "many"], "invalid"),
        (["diagnose", "MODEL", "BITS", "--out", "NOWHERE/d.png"], "there is no folder"),
        (["diagnose", "MODEL", "BITS", "--out", "d.jpg"], "must end in .png"),
        (["train", "BITS", "--out", "m{epoch}.h5"], "--out is one file"),
        (["plot", "MODEL", "nothing", "--out", "p.png"], "invalid choice"),
        (["plot", "MODEL", "filters", "--out", "p.jpg"], "must end in .png"),
        (["plot", "MODEL", "filters", "-n", "-1", "--out", "p.png"], "at least 1"),
        (["plot", "MODEL", "curves", "--out", "NOWHERE/p.png"], "there is no folder"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_wrong_usage_is_code_2_and_does_no_work(
    run: Any,
    bits: Path,
    tmp_path: Path,
    monkeypatch: Any,
    arguments: list[str],
    complaint: str,
) -> None:
    model = tmp_path / "model.h5"
    RBM(4, trainer=PCD(n_epochs=1), random_state=0).fit(BITS).save(model)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    for verb in ("fit", "resume", "sample", "transform", "energy"):
        monkeypatch.setattr(RBM, verb, _never)
    names = {"BITS": str(bits), "MODEL": str(model), "OUT": "out.h5"}
    arguments = [names.get(a, a.replace("NOWHERE", "nowhere")) for a in arguments]
    code, records, err = run(*arguments)
    assert (code, records) == (2, []), err
    assert complaint in err and "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before


def _never(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("work was done before the arguments were checked")


@pytest.mark.parametrize("command", ["sample", "features", "evaluate", "diagnose", "plot"])
def test_a_pipeline_is_no_single_model(run: Any, bits: Path, tmp_path: Path, command: str) -> None:
    small = {"trainer": PCD(n_epochs=1), "random_state": 0}
    path = tmp_path / "p.h5"
    energyscape.save(make_pipeline(RBM(5, **small), RBM(3, **small)).fit(BITS), path)
    data = {"features": [bits], "evaluate": [bits], "diagnose": [bits], "plot": ["filters"]}
    out = [] if command == "evaluate" else ["--out", tmp_path / "o.png"]
    if command == "features":
        out = ["--out", tmp_path / "o.npy"]
    code, _, err = run(command, path, *data.get(command, []), *out)
    assert code == 2 and "holds a Pipeline, not a single model" in err


def _commands(model: Path, data: object, out: Path) -> dict[str, list[object]]:
    return {
        "train": ["train", data, "-t", "n_epochs=1", "--out", out / "new.h5"],
        "features": ["features", model, data, "--out", out / "f.npy"],
        "evaluate": ["evaluate", model, data],
    }


@pytest.mark.parametrize("command", ["train", "features", "evaluate"])
def test_bad_rows_are_code_1(run: Any, tmp_path: Path, command: str) -> None:
    model = tmp_path / "model.h5"
    RBM(4, trainer=PCD(n_epochs=1), random_state=0).fit(BITS).save(model)
    nan, wide = BITS.copy(), (255 * BITS).astype(np.uint8)
    nan[3, 2] = np.nan
    for name, rows, complaint in [
        ("range", wide, "expects values in [0, 1]; X has values in [0, 255]"),
        ("negative", BITS - 1, "X has values in [-1, 0]"),
        ("nan", nan, "NaN"),
        ("infinite", np.where(nan > 0, np.inf, BITS), "X has values in"),
        (
            "words",
            np.full((9, 7), "a"),
            "rows of numbers are wanted, got shape (9, 7) of dtype <U1",
        ),
        ("one", BITS[0], "rows of numbers are wanted, got shape (7,)"),
        ("none", BITS[:0], "rows of numbers are wanted, got shape (0, 7)"),
    ]:
        path = tmp_path / f"{name}.npy"
        np.save(path, rows)
        before = sorted(tmp_path.iterdir())
        code, records, err = run(*_commands(model, path, tmp_path)[command])
        assert (code, records) == (1, []) and complaint in err, (name, err)
        assert "Traceback" not in err
        assert sorted(tmp_path.iterdir()) == before
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["X"] = BITS[0]
    code, _, err = run(*_commands(model, tmp_path / "flat.h5", tmp_path)[command])
    assert code == 1 and "rows of numbers are wanted, got shape (7,)" in err
    code, _, err = run(*_commands(model, tmp_path / "missing.npy", tmp_path)[command])
    assert code == 1 and "is neither a file" in err


@pytest.mark.parametrize("command", ["features", "evaluate", "diagnose"])
def test_rows_of_another_width_are_code_1(
    run: Any, trained: Path, bits: Path, command: str
) -> None:
    out = ["--out", bits.parent / "f.npy"] if command == "features" else []
    code, _, err = run(command, trained, bits, *out)
    assert code == 1 and "X has 7 features, but RBM is expecting 64" in err


def test_missing_sets_and_foreign_files_are_code_1(
    run: Any, bits: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("ENERGYSCAPE_DATA", str(tmp_path))
    code, _, err = run("train", "mnist", "--out", tmp_path / "m.h5")
    assert code == 1 and "train-images-idx3-ubyte.gz is missing" in err
    code, _, err = run("sample", bits, "--out", tmp_path / "s.npy")
    assert code == 1 and "bits.npz: not an energyscape model file" in err
    code, _, err = run("sample", tmp_path / "none.h5", "--out", tmp_path / "s.npy")
    assert code == 1 and "none.h5" in err


def test_diverged_training_is_code_1(run: Any, bits: Path, tmp_path: Path) -> None:
    rate = ["-t", "optimizer=SGD(1e30, schedule=Constant())", "-t", "n_epochs=9"]
    model = ["--model", "GaussianRBM", "-p", "n_components=3"]
    code, _, err = run("train", bits, *model, *rate, "--quiet", "--out", tmp_path / "m.h5")
    assert code == 1 and "not finite" in err and "find_learning_rate" in err


def test_the_version(capsys: Any) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"{energyscape.__version__}\n"


def test_a_process_of_its_own(bits: Path, tmp_path: Path) -> None:
    """Exit codes and streams as a shell sees them."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "energyscape.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    done = call("train", str(bits), "-t", "n_epochs=1", "--out", "m.h5")
    assert done.returncode == 0 and "RBM/PCD" in done.stderr
    assert [next(iter(json.loads(s))) for s in done.stdout.splitlines()] == ["epoch", "out"]
    wrong = call("train", str(bits), "--out", "m.h5", "--model", "Rbm")
    assert wrong.returncode == 2 and wrong.stdout == "" and wrong.stderr.count("\n") == 1
