"""Who shares a fit: one process by itself, or several that add up what they collect.

The loop asks a `Workers` for sums between its own and the others'. This one is alone and answers at
once; those of `distributed` speak over sockets or NCCL. All of them must ask the same questions in
the same order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from energyscape.backend import Array


class Workers:
    """The processes of a fit, of which this one has the number ``rank`` of ``size``.

    Attributes
    ----------
    rank, size : int
    sync_every : int
        Updates between two sums. 1 adds up every gradient; more lets each worker make so many
        updates by itself, and then averages the parameters.
    """

    rank = 0
    size = 1
    sync_every = 1

    def add(self, buffer: Array) -> None:
        """Replace ``buffer``, flat and of one floating dtype, by its sum over all workers, with
        the same bits for everyone."""

    def gather(self, part: np.ndarray) -> list[np.ndarray]:
        """Everyone's ``part`` (on the host, any shape and number dtype) in the order of ranks."""
        return [part]

    def close(self) -> None:
        """Hang up: whoever waits for this worker is told that it is gone."""


def split_evenly(n: int, size: int, rank: int) -> tuple[int, int]:
    """Bounds of the part of 0 … n-1 that is ``rank``'s of ``size`` parts, equal to within one."""
    return n * rank // size, n * (rank + 1) // size


ALONE: Any = Workers()
