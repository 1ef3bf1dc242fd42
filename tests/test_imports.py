"""Knowledge flows one way, the heavy packages stay out, and what is public exists and is told."""

from __future__ import annotations

import ast
import graphlib
import importlib
import json
import pkgutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import energyscape

PACKAGE = Path(energyscape.__file__).parent

# From the bottom to the top. Those of one layer may import each other, but not in a circle.
LAYERS = [
    "_version errors backend",
    "registry workers precision progress",
    "kernels io sources",
    "verbs",
    "activations pools strips tiles",
    "layers convolution corruptions",
    "penalties losses embeddings optim",
    "solvers samplers",
    "trainers sharing memory training callbacks",
    "models",
    "data evaluation plotting cli cli_cluster cli_compare cli_values distributed versions",
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts.split()}
FACADE = "energyscape"


def _name(path: Path) -> str:
    """Dotted name of the module in ``path``."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {_name(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def _imports(tree: ast.AST, module: str, known: set[str]) -> Iterator[str]:
    """All that ``module`` imports, wherever it does; members of ``known`` by their full names."""
    package = (
        module if any(k.startswith(f"{module}.") for k in known) else module.rpartition(".")[0]
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, *([base] if base else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in known else base
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant))


def _own(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Module -> modules of the library that it imports."""
    known = set(trees)
    found = {
        module: {name for name in _imports(tree, module, known) if name.split(".")[0] == FACADE}
        for module, tree in trees.items()
    }
    unknown = {name for names in found.values() for name in names} - known
    assert not unknown, f"imported, but not there: {unknown}"
    return found


def _part(module: str) -> str:
    """The file or folder directly below the package that ``module`` belongs to."""
    return module.split(".")[1]


def _upward(imports: dict[str, set[str]]) -> list[str]:
    return [
        f"{module} imports {name}"
        for module, names in imports.items()
        if module != FACADE
        for name in names
        if name != FACADE and LEVEL[_part(name)] > LEVEL[_part(module)]
    ]


def _cycle(imports: dict[str, set[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_every_file_has_its_layer() -> None:
    unplaced = {_part(m) for m in TREES if m != FACADE} - set(LEVEL)
    assert not unplaced, f"say in LAYERS where {unplaced} belong"


def test_no_import_goes_up() -> None:
    assert _upward(_own(TREES)) == []


def test_no_imports_form_a_circle() -> None:
    assert _cycle(_own(TREES)) == []


def test_only_the_command_line_uses_the_facade() -> None:
    users = {module for module, names in _own(TREES).items() if FACADE in names}
    assert users <= {"energyscape.cli"}


def test_models_and_trainers_do_not_know_of_each_other() -> None:
    """A trainer knows verbs, never a model; a sampler sees a target, never a trainer."""
    forbidden = {"trainers": {"models"}, "samplers": {"models", "trainers"}}
    for module, names in _own(TREES).items():
        if module != FACADE:
            met = {_part(n) for n in names if n != FACADE} & forbidden.get(_part(module), set())
            assert not met, (module, met)


@pytest.mark.parametrize(
    "source",
    [
        "import energyscape.models.rbm",
        "from energyscape import models",
        "from energyscape.models import RBM",
        "from .models import RBM",
        "from . import models",
        "def f():\n    from energyscape.models.rbm import RBM",
        "class A:\n    def f(self):\n        import energyscape.models as m",
        "if TYPE_CHECKING:\n    from energyscape.models.base import EnergyModel",
        "try:\n    import energyscape.models\nexcept ImportError:\n    pass",
        "importlib.import_module('energyscape.models')",
    ],
)
def test_a_planted_upward_import_is_found(source: str) -> None:
    """A negative control: verbs must not import models in any of these ways."""
    planted = TREES | {"energyscape.verbs": ast.parse(source)}
    (found,) = _upward(_own(planted))
    assert found.startswith("energyscape.verbs imports energyscape.models")


def test_a_planted_circle_is_found() -> None:
    source = "def f():\n    from energyscape.models import rbm"
    planted = TREES | {"energyscape.models.inputs": ast.parse(source)}
    assert "energyscape.models.inputs" in _cycle(_own(planted))
    planted = TREES | {"energyscape.samplers.gibbs": ast.parse("from . import ais, Target")}
    assert _upward(_own(planted)) == []
    assert set(_cycle(_own(planted))) == {"energyscape.samplers", "energyscape.samplers.gibbs"}


# ---------------------------------------------------------------- heavy packages


def _foreign(trees: dict[str, ast.Module], package: str) -> set[str]:
    known = set(trees)
    return {
        module
        for module, tree in trees.items()
        if any(name.split(".")[0] == package for name in _imports(tree, module, known))
    }


def test_only_the_backend_imports_cupy() -> None:
    assert _foreign(TREES, "cupy") == {"energyscape.backend"}


def test_nothing_imports_pandas() -> None:
    assert _foreign(TREES, "pandas") == set()


@pytest.mark.parametrize("package", ["matplotlib", "PIL"])
def test_pictures_are_imported_where_they_are_needed(package: str) -> None:
    """Only inside functions: a module that is imported must not bring them in."""
    for module in _foreign(TREES, package):
        nodes = [n for n in TREES[module].body if isinstance(n, ast.Import | ast.ImportFrom)]
        top = ast.Module(nodes, [])
        assert all(n.split(".")[0] != package for n in _imports(top, module, set(TREES))), module


def test_importing_is_quick_and_light() -> None:
    """With scikit-learn, h5py and tqdm at hand the library itself is some tens of milliseconds.

    Processor time, so that a busy machine does not matter. scikit-learn imports pandas where it
    is installed; that the library does not need it is shown by forbidding it.
    """
    code = """
        import json, sys, time
        sys.modules["pandas"] = None
        import h5py, numpy, scipy.sparse, threadpoolctl, tqdm
        import sklearn.base, sklearn.datasets, sklearn.pipeline, sklearn.utils.validation
        before, start = set(sys.modules), time.process_time()
        import energyscape
        seconds = time.process_time() - start
        import energyscape.cli
        print(json.dumps([seconds, sorted(set(sys.modules) - before)]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    seconds, added = json.loads(run.stdout)
    assert seconds < 1.0
    assert {"energyscape.models.rbm", "energyscape.cli"} <= set(added)
    assert {name.split(".")[0] for name in added}.isdisjoint({"cupy", "matplotlib", "PIL"})


# ---------------------------------------------------------------- files and names


def test_no_file_is_longer_than_500_lines() -> None:
    files = [p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".cu")]
    assert len(files) > 30
    lengths = {p.relative_to(PACKAGE).as_posix(): len(p.read_text().splitlines()) for p in files}
    assert {name: n for name, n in lengths.items() if n > 500} == {}


def _printing(tree: ast.Module) -> set[str]:
    """Names of the outermost functions and classes that print."""
    return {
        getattr(node, "name", "the module")
        for node in tree.body
        for inner in ast.walk(node)
        if isinstance(inner, ast.Call)
        and isinstance(inner.func, ast.Name)
        and inner.func.id == "print"
    }


def test_only_what_is_there_to_print_does() -> None:
    found = {(m, name) for m, tree in TREES.items() for name in _printing(tree)}
    assert {pair for pair in found if pair[0] != "energyscape.cli"} == {
        ("energyscape.cli_compare", "run_compare"),
        ("energyscape.callbacks", "JsonLines"),
        ("energyscape.versions", "show_versions"),
    }


def _modules() -> list[str]:
    found = pkgutil.walk_packages(energyscape.__path__, "energyscape.")
    return ["energyscape", *(info.name for info in found)]


def test_every_module_is_walked() -> None:
    assert set(_modules()) == set(TREES)


@pytest.mark.parametrize("module", _modules())
def test_public_names_exist_and_have_docstrings(module: str) -> None:
    found = importlib.import_module(module)
    assert found.__doc__ and found.__doc__.strip(), f"{module} has no docstring"
    names = getattr(found, "__all__", [])
    assert len(names) == len(set(names))
    for name in names:
        value = getattr(found, name)
        if name == "__version__":
            continue
        # Not inherited: a subclass says for itself what it is.
        text = vars(value).get("__doc__") if isinstance(value, type) else value.__doc__
        assert text and text.strip(), f"{module}.{name} has no docstring"


@pytest.mark.parametrize(
    "package", ["callbacks", "data", "models", "optim", "samplers", "trainers"]
)
def test_public_packages_say_what_is_public(package: str) -> None:
    assert package in energyscape.__all__
    assert importlib.import_module(f"energyscape.{package}").__all__
