"""What runs here: for bug reports and for the head of benchmark tables."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

from threadpoolctl import threadpool_info

from energyscape._version import __version__
from energyscape.backend import gpu_status
from energyscape.io import environment

_PACKAGES = ("numpy", "scipy", "scikit-learn", "h5py", "tqdm", "cupy-cuda12x", "cupy-cuda13x")


def versions() -> dict[str, str]:
    """Versions of the library and what it stands on, the processor, BLAS threads and the GPU."""
    found = {"energyscape": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    status = gpu_status()
    found["processor"] = f"{platform.machine()}, {os.cpu_count()} cores"
    found["BLAS"] = _blas()
    found["BLAS threads"] = str(environment("cpu")["threads"])
    found["GPU"] = status.name if status.usable else f"none ({status.reason})"
    return found


# Kernels of OpenBLAS that stop at AVX2; releases that do not know a processor fall back to them.
_AVX2_KERNELS = {"Haswell", "Zen"}


def _blas(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """NumPy's BLAS and the kernels that it chose, with a word where it chose poorly."""
    found = [info for info in threadpool_info() if info["user_api"] == "blas"]
    if not found:
        return "unknown"
    first = found[0]
    kernels = first.get("architecture", "unknown")
    text = f"{first['internal_api']} {first['version']}, kernels for {kernels}"
    if first["internal_api"] == "openblas" and kernels in _AVX2_KERNELS and _wide(cpuinfo):
        text += (
            "; this processor has AVX-512: with OPENBLAS_CORETYPE=SkylakeX in the environment "
            "matrix products may be nearly twice as fast"
        )
    return text


def _wide(cpuinfo: Path) -> bool:
    """Whether the processor gains by AVX-512. AMD's Zen 4 (family 25) makes such operations in two
    halves: there the kernels for AVX2 take 0.8 to 1.0 of the time in float32."""
    said = cpuinfo.read_text() if cpuinfo.is_file() else ""
    halves = "AuthenticAMD" in said and re.search(r"cpu family\s*: 25\b", said)
    return "avx512f" in said and not halves


def show_versions() -> None:
    """Print `versions`, one a line."""
    for name, value in versions().items():
        print(f"{name}: {value}")
