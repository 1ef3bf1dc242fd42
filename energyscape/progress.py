"""Bars of progress."""

from __future__ import annotations

from tqdm import tqdm


class Bar(tqdm):
    """A bar of tqdm's without the thread that it starts to watch bars, even those not shown."""

    monitor_interval = 0
