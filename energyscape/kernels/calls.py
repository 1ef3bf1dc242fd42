"""How kernels are called: the name for a dtype, and the arguments in their exact types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from energyscape.backend import THREADS, Array, launch, namespace


def each(kernel: str, like: Array, args: Sequence[Any], threads: int | None = None) -> None:
    """One thread for each element of ``like``, in whose dtype the kernel computes."""
    launch(f"{kernel}_{suffix(like)}", like.size if threads is None else threads, args)


def by_rows(kernel: str, like: Array, args: Sequence[Any]) -> None:
    """One block for each row."""
    each(kernel, like, args, len(like) * THREADS)


def suffix(like: Array) -> str:
    return "f" if like.dtype == np.float32 else "d"


def biased(a: Array, bias: Array) -> tuple[Array, np.uint64]:
    """Bias and columns as kernels take them: 0 columns say that there is none."""
    return (a, np.uint64(0)) if bias is None else (bias, np.uint64(a.shape[-1]))


def packed(*arrays: Array) -> list[Array]:
    """The arrays in C order; the same objects where they are."""
    return [namespace(a).ascontiguousarray(a) for a in arrays]
