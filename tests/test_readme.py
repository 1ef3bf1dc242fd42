"""What the README says runs, and its tables name all models and trainers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES

from energyscape import cli
from energyscape.models import RBM
from energyscape.models.base import EnergyModel
from energyscape.registry import registered

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::energyscape.errors.SamplerWarning")
def test_the_python_lines_run(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    on_cpu, on_gpu, more = blocks("python")
    exec(on_cpu, scope)
    assert scope["H"].shape == (1797, 64) and scope["S"].shape == (100, 64)
    # Each side is a bound in expectation; the noise of 100 chains is far below half a nat here.
    assert scope["low"] < scope["high"] + 0.5
    assert "cupy" in on_gpu
    exec(more, scope)
    np.testing.assert_array_equal(scope["painted"][:, :32], np.tile(scope["X"][0][:32], (10, 1)))
    assert "RBM" in capsys.readouterr().out


def test_the_lines_for_a_gpu_run(fake_cupy: Any) -> None:
    rng = np.random.default_rng(0)
    scope = {"X": rng.random((20, 64), np.float32), "RBM": _short_rbm}
    exec(blocks("python")[1], scope)
    assert isinstance(scope["H"], fake_cupy.ndarray) and isinstance(scope["S"], fake_cupy.ndarray)


def _short_rbm(**settings: Any) -> RBM:
    from energyscape.trainers import PCD

    return RBM(trainer=PCD(n_epochs=1), **settings)


@pytest.mark.slow
def test_the_command_lines_run(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = [b for b in blocks("bash") if b.startswith("energyscape")]
    for line in block.replace("\\\n", " ").splitlines():
        assert cli.main(shlex.split(line, comments=True)[1:]) == 0, line
    made = {p.name for p in tmp_path.iterdir()}
    pictures = {"samples.png", "diagnosis.png", "filters.png"}
    assert made == {"rbm.h5", "features.npz", "table.csv"} | pictures


def test_the_table_names_every_model_and_the_matrix_its_trainers() -> None:
    """`tests/test_matrix.py` holds the matrix to the declared pairs."""
    rows = re.findall(r"^\| `(\w+)` \|", README, re.M)
    assert len(rows) == len(set(rows)) and set(rows) == set(registered(EnergyModel))
    (matrix,) = re.findall(r"<!-- matrix -->\n(.*?)<!-- /matrix -->", README, re.S)
    named = {name for line in matrix.splitlines() for name in re.findall(r"`(\w+)`", line)}
    declared = {trainer.__name__ for case in CASES for trainer in case.trainers}
    assert declared <= named <= declared | set(rows)
