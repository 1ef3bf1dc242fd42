"""Streams of recorded noise, so that two devices can be fed the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from energyscape.backend import HostStream, Stream


class ReplayStream(Stream):
    """Uniforms and normals from a host stream, handed out in the namespace ``xp``."""

    def __init__(self, xp: Any, seed: int = 0, step: int = 0) -> None:
        self._xp, self._host = xp, HostStream(seed, 0, step)

    def uniform(self, shape: Any = None, dtype: Any = np.float32, out: Any = None) -> Any:
        return self._give(self._host.uniform(shape, dtype), out)

    def normal(self, shape: Any = None, dtype: Any = np.float32, out: Any = None) -> Any:
        return self._give(self._host.normal(shape, dtype), out)

    def _give(self, values: np.ndarray, out: Any) -> Any:
        values = values if self._xp is np else self._xp.asarray(values)
        if out is None:
            return values
        out[...] = values
        return out

    def permutation(self, n: int) -> np.ndarray:
        return self._host.permutation(n)
