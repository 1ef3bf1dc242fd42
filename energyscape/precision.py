"""How exactly a GPU multiplies float32 matrices: as they are, rounded to TF32, or to float16.

Sums are float32 in all three. TF32 keeps 10 bits of each input's mantissa and float32's range;
float16 keeps 10 bits and ends at 65,504. Tensor cores multiply either several times as fast.

CuPy has TF32 as a setting for all float32 products of a process (`CUPY_TF32`, read once); it has
none for float16 inputs with float32 sums, which therefore is for the products that come through
`kernels.matmul` alone.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from energyscape.backend import gpu_module, gpu_status
from energyscape.errors import DeviceError

__all__ = ["matmul_precision"]

_NAMES = ("float32", "tf32", "float16")
_OLDEST = 80  # compute capability that TF32 needs


class _Setting:
    """What the process multiplies by."""

    half = False


class matmul_precision:
    """How exactly a GPU multiplies float32 matrices, for the whole process.

    It holds from the call on; used in a ``with`` statement, until its end. float64 models, energies
    (which are float64 sums), factorisations and everything on a CPU are as exact as ever.

    Parameters
    ----------
    precision : {"float32", "tf32", "float16"}
        Of the inputs; sums are float32 always. "tf32" is CuPy's own setting for products of two
        matrices, whoever makes them; batched products of more dimensions stay float32. "float16"
        is for the products of machines and gated models with their rows; values beyond 65,504
        overflow there and end a fit with `DivergenceError`.

    Raises
    ------
    ValueError
        For any other name.
    DeviceError
        For "tf32" on a GPU older than compute capability 8.0.

    Warns
    -----
    UserWarning
        Where no GPU is usable, so that nothing changes.

    Examples
    --------
    >>> import energyscape
    >>> with energyscape.matmul_precision("float32"):
    ...     pass  # fit, sample, transform
    """

    def __init__(self, precision: str) -> None:
        if precision not in _NAMES:
            raise ValueError(f"precision must be 'float32', 'tf32' or 'float16', got {precision!r}")
        status = gpu_status()
        self._before: tuple[bool, Any] | None = None
        if not status.usable:
            if precision != "float32":
                warnings.warn(
                    f"matmul_precision({precision!r}) is for products on a GPU and changes nothing "
                    f"here: {status.reason}",
                    UserWarning,
                    stacklevel=2,
                )
            return
        linalg = _linalg()
        self._before = _Setting.half, linalg.get_compute_type(np.float32)
        kind = linalg.COMPUTE_TYPE_DEFAULT
        if precision == "tf32":
            capability = int(gpu_module().cuda.Device().compute_capability)
            if capability < _OLDEST:
                raise DeviceError(
                    "matmul_precision('tf32') needs compute capability 8.0 or higher; "
                    f"{status.name} has {capability / 10:.1f}. 'float16' may be what you want"
                )
            kind = linalg.COMPUTE_TYPE_TF32
        _set(precision == "float16", kind)

    def __enter__(self) -> matmul_precision:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._before is not None:
            _set(*self._before)


def half_inputs() -> bool:
    """Whether float32 inputs are to be rounded to float16."""
    return _Setting.half


def _set(half: bool, kind: Any) -> None:
    _Setting.half = half
    _linalg().set_compute_type(np.float32, kind)


def _linalg() -> Any:
    """CuPy's own module of products; private there, and the only place where the setting is."""
    return gpu_module()._core._routines_linalg
