"""What a user installs: the wheel holds the library, all of it, and nothing else."""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import energyscape

ROOT = Path(__file__).parents[1]
SOURCES = {p.relative_to(ROOT).as_posix() for p in (ROOT / "energyscape").rglob("*.py")}


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built from a copy of what is under version control."""
    copy = tmp_path_factory.mktemp("build") / "tree"
    for name in _tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    run = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    (path,) = (copy / "dist").iterdir()
    with zipfile.ZipFile(path) as file:
        yield file


def _tracked() -> list[str]:
    """Files that git has or would take up; in a hook it would look for them in another place."""
    listing = ["git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    names = subprocess.run(listing, check=True, capture_output=True, text=True, env=env).stdout
    return [name for name in names.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_is_pure_and_named_by_the_version(wheel: zipfile.ZipFile) -> None:
    name = Path(str(wheel.filename)).name
    assert name == f"energyscape-{energyscape.__version__}-py3-none-any.whl"
    assert wheel.testzip() is None


def test_the_library_is_there_as_it_is_here(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert SOURCES and names >= SOURCES
    extra = {p.relative_to(ROOT).as_posix() for p in (ROOT / "energyscape/kernels").glob("*.cu")}
    assert extra and "energyscape/py.typed" in names
    for name in SOURCES | extra:
        assert wheel.read(name) == (ROOT / name).read_bytes(), name


def test_nothing_else_is_there(wheel: zipfile.ZipFile) -> None:
    """Above all no top-level ``tests``, ``models``, ``benchmarks`` … in a user's site-packages."""
    names = wheel.namelist()
    info = f"energyscape-{energyscape.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"energyscape", info}
    assert {Path(n).suffix for n in names if n.startswith("energyscape/")} == {
        ".py",
        ".cu",
        ".typed",
    }
    assert {n for n in names if n.endswith(".py")} == SOURCES
    assert not any("test" in Path(n).name for n in names)


def test_the_licence_and_the_command_come_along(wheel: zipfile.ZipFile) -> None:
    info = f"energyscape-{energyscape.__version__}.dist-info"
    assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    scripts = configparser.ConfigParser()
    scripts.read_string(wheel.read(f"{info}/entry_points.txt").decode())
    assert dict(scripts["console_scripts"]) == {"energyscape": "energyscape.cli:main"}


def test_the_metadata_say_what_the_library_needs(
    metadata: Message, project: dict[str, object]
) -> None:
    assert metadata["Name"] == "energyscape" and metadata["Version"] == energyscape.__version__
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["Requires-Python"] == project["requires-python"]
    needed = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert sorted(needed) == sorted(project["dependencies"])  # type: ignore[call-overload]
    assert not any("cupy" in r for r in needed)
    extras = project["optional-dependencies"]
    assert set(metadata.get_all("Provides-Extra", [])) == set(extras)  # type: ignore[call-overload]


def test_the_library_runs_from_the_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Imported from the archive alone, with no source tree in reach."""
    wheel.extractall(tmp_path)
    code = "import energyscape, energyscape.cli; print(energyscape.__file__)"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.stdout.strip() == str(tmp_path / "energyscape" / "__init__.py"), run.stderr[-2000:]


def test_there_is_one_version(project: dict[str, object]) -> None:
    assert project["version"] == energyscape.__version__
    assert importlib.metadata.version("energyscape") == energyscape.__version__
