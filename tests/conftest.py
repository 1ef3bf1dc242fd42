"""Fixtures: the three places where arrays can live, data sets, and one BLAS thread per worker."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import standin
from threadpoolctl import threadpool_limits

from energyscape import backend
from energyscape.data import data_home

# Products of a few kilobytes are quicker on one thread, and two workers share two cores.
threadpool_limits(1)


def pytest_report_header(config: pytest.Config) -> str:
    status = backend.gpu_status()
    return f"energyscape: GPU {status.name if status.usable else 'not used: ' + status.reason}"


# Rows of tables that take four seconds or more, most of them chains of whole images or of gated
# models that warm up: test → parts of the row's name. Other rows keep these tests quick.
_LONG = {
    "test_a_model_comes_back_whole": ("TiledMPoT", "FieldsOfExperts", "DeepAutoEncoder"),
    "test_a_wrong_temperature_is_seen": ("PoT", "McRBM", "FieldsOfExperts"),
    "test_code_runs_and_prints_what_is_shown": (
        "sparse.md",
        "gated.md",
        "sampling.md",
        "deep.md",
        "seven_strategies.md",
        "compare.md",
    ),
    "test_containers_in_are_containers_out": ("PoT", "SparseCoding", "PSD", "LISTA"),
    "test_every_model_can_be_looked_at": (
        "TiledMPoT",
        "FieldsOfExperts",
        "SparseCoding groups",
        "LocalPSD",
    ),
    "test_exact_draws_do_not_drift": (
        "tempered Gibbs-PoT",
        "tempered Gibbs-McRBM",
        "tempered HMC",
        "FieldsOfExperts",
    ),
    "test_models_construct_without_arguments_and_clone": (
        "TiledMPoT",
        "FieldsOfExperts",
        "DeepAutoEncoder",
        "McRBM",
    ),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark long rows as slow."""
    for item in items:
        name, _, row = item.name.partition("[")
        if any(part in row for part in _LONG.get(name, ())):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """Where every oracle must be there (``ENERGYSCAPE_ORACLES=required``), a missing one fails."""
    report = yield
    required = os.environ.get("ENERGYSCAPE_ORACLES") == "required"
    if required and report.skipped and "is not installed" in str(report.longrepr):
        report.outcome = "failed"
    return report


def _forget_cupy() -> None:
    backend.gpu_status.cache_clear()
    backend._cuda_function.cache_clear()


@pytest.fixture
def fake_cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in in CuPy's place, with its count of synchronisations at 0."""
    fake = standin.module()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    _forget_cupy()
    standin.Counter.syncs = 0
    yield fake
    _forget_cupy()


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)])
def cupy(request: pytest.FixtureRequest) -> ModuleType:
    """CuPy: the stand-in everywhere, and the real one where a GPU is usable."""
    if request.param == "stand-in":
        return request.getfixturevalue("fake_cupy")
    status = backend.gpu_status()
    if not status.usable:
        pytest.skip(status.reason)
    import cupy as real

    return real


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine where CuPy is not installed."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    _forget_cupy()
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "cupy")
    yield
    _forget_cupy()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def mnist() -> Any:
    """(train, test) grey rows; skipped where the files are absent."""
    from energyscape.data import load_mnist

    if not (data_home() / "mnist").is_dir():
        pytest.skip(f"no MNIST in {data_home() / 'mnist'}")
    return load_mnist("train")[0], load_mnist("test")[0]
