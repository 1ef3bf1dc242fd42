"""What runs here: for bug reports and for the head of benchmark tables."""

from __future__ import annotations

import importlib.metadata
import os
import platform

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
    found["BLAS threads"] = str(environment("cpu")["threads"])
    found["GPU"] = status.name if status.usable else f"none ({status.reason})"
    return found


def show_versions() -> None:
    """Print `versions`, one a line."""
    for name, value in versions().items():
        print(f"{name}: {value}")
