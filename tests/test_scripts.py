"""The examples run, and leave what they say they leave."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from energyscape import cli
from energyscape.models import DeepGatedMRF, MPoT, TiledMPoT, TiledRBM
from energyscape.trainers import PCD

Image = pytest.importorskip("PIL.Image")  # absent where only the GPU tests run

ROOT = Path(__file__).parent.parent


def run(script: str, *words: str | Path) -> str:
    command = [sys.executable, str(ROOT / "scripts" / script), *map(str, words)]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_demo_ends_with_its_files_and_figures(tmp_path: Path) -> None:
    said = run("demo.py", "--bundled", "--out", tmp_path / "demo")
    made = {p.name for p in (tmp_path / "demo").iterdir()}
    assert made == {"rbm.h5", "filters.png", "real_and_samples.png", "curves.png"}
    for what in ("forward", "reverse", "raw pixels", "RBM features"):
        assert what in said
    said = run("sample.py", tmp_path / "demo/rbm.h5", "digits", "--out", tmp_path / "pictures")
    for name in ("samples.png", "filters.png", "painted_in.png"):
        with Image.open(tmp_path / "pictures" / name) as image:
            image.verify()


@pytest.mark.slow
def test_pictures_of_gated_models(tmp_path: Path) -> None:
    """Of rows and of whole images; filters of the mean units apart."""
    images = np.random.default_rng(0).random((30, 6, 6)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    short = PCD(n_epochs=1, n_chains=10, batch_size=10)
    MPoT(4, n_mean_components=3, pools=2, trainer=short).fit(images.reshape(30, 36)).save(
        tmp_path / "a.h5"
    )
    TiledMPoT(3, n_mean_components=2, tile=4, trainer=short).fit(images).save(tmp_path / "b.h5")
    for model in ("a", "b"):
        said = run(
            "sample.py", tmp_path / f"{model}.h5", tmp_path / "images.npy", "--out", tmp_path
        )
        assert "patterns.png, mean_filters.png" in said and "50 sweeps" in said
        assert ("pools.png" in said) == (model == "a")
        with Image.open(tmp_path / "painted_in.png") as image:
            assert image.size == (2 * 71, 2 * 71)
    images = np.random.default_rng(1).random((30, 7, 7)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    layers = [TiledMPoT(3, tile=2, stride=1, trainer=short), TiledRBM(3, trainer=short)]
    DeepGatedMRF(layers).fit(images).save(tmp_path / "c.h5")
    said = run("sample.py", tmp_path / "c.h5", tmp_path / "images.npy", "--out", tmp_path)
    assert "filters" not in said and "50 sweeps" in said


@pytest.mark.slow
def test_features_from_the_command_line_go_into_a_classifier(tmp_path: Path, capsys) -> None:
    model, features = tmp_path / "m.h5", tmp_path / "f.npz"
    train = ["train", "digits", "-t", "n_epochs=50", "--seed", "0", "--quiet"]
    assert cli.main([*train, "--out", str(model)]) == 0
    assert cli.main(["features", str(model), "digits", "--out", str(features)]) == 0
    error = float(run("classify.py", features, features).split()[-2])
    assert error < 20  # on its own training rows after 900 updates; chance is 90


def test_the_matrix_is_written_between_its_marks(tmp_path: Path) -> None:
    """Into copies of the pages whose matrix is out of date: they come out as they are here."""
    pages = ["README.md", "docs/strategies.md"]
    (tmp_path / "docs").mkdir()
    for page in pages:
        stale = re.sub(
            r"(<!-- matrix -->\n).*?(<!-- /)", r"\1old\n\2", _text(ROOT / page), flags=re.S
        )
        assert stale != _text(ROOT / page)
        (tmp_path / page).write_text(stale)
    run("matrix.py", "--root", tmp_path)
    for page in pages:
        assert _text(tmp_path / page) == _text(ROOT / page)


def _text(path: Path) -> str:
    return path.read_text()


@pytest.mark.slow
def test_the_seven_strategies_are_low_at_the_spiral(tmp_path: Path) -> None:
    """Each has less energy there than at nine in ten of the uniform points (0.962 can be had)."""
    said = run("seven_strategies.py", "--out", tmp_path / "seven.png").splitlines()
    found = {line[7:8]: float(line[:5]) for line in said[:-1]}
    assert [key for key in found if key.isdigit()] == list("1234567") and len(found) == 8
    assert min(auc for key, auc in found.items() if key.isdigit()) > 0.9
    with Image.open(tmp_path / "seven.png") as image:
        image.verify()
