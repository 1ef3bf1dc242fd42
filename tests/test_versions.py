"""What runs here is said, and where BLAS does not know the processor that is said too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import energyscape
from energyscape import versions


def test_versions_are_printed_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    energyscape.show_versions()
    names = [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()]
    assert {"energyscape", "numpy", "BLAS", "BLAS threads", "GPU"} <= set(names)


@pytest.mark.parametrize(
    ("kernels", "flags", "told"),
    [
        ("Haswell", "avx2 avx512f", True),
        ("Haswell", "avx2", False),
        ("SkylakeX", "avx512f", False),
        ("Zen", "avx512f\nvendor_id\t: AuthenticAMD\ncpu family\t: 25", False),
        ("Zen", "avx512f\nvendor_id\t: AuthenticAMD\ncpu family\t: 26", True),
    ],
)
def test_kernels_that_are_too_old_for_the_processor_are_told(
    kernels: str, flags: str, told: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    found = {
        "user_api": "blas",
        "internal_api": "openblas",
        "version": "0.3",
        "architecture": kernels,
    }
    monkeypatch.setattr(versions, "threadpool_info", lambda: [found])
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags: {flags}\n")
    assert ("OPENBLAS_CORETYPE" in versions._blas(cpuinfo)) is told


def test_no_blas_is_no_error(monkeypatch: Any) -> None:
    monkeypatch.setattr(versions, "threadpool_info", list)
    assert versions._blas() == "unknown"
