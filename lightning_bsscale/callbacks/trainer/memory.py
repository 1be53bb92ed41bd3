"""Forecast whether larger micro-batches fit into a device's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

__all__ = ["MemoryForecast"]

# Share of the device's memory that a forecast may reach: what is cached is fragmented, and a batch may be larger.
HEADROOM = 0.9


class MemoryUse(NamedTuple):
    """What the allocator has counted.

    Attributes:
        peak: most bytes allocated so far
        total: bytes of the device
        retries: how often an allocation succeeded only after the cache was freed
    """

    peak: int
    total: int
    retries: int


def read_memory(device: torch.device) -> MemoryUse | None:
    """Return a device's memory, or None where nobody counts it."""
    if device.type != "cuda":
        return None
    counted = torch.cuda.memory_stats(device)
    total = torch.cuda.mem_get_info(device)[1]
    return MemoryUse(counted["allocated_bytes.all.peak"], total, counted["num_alloc_retries"])


class MemoryForecast:
    """Forecasts peak memory as ``a + c b`` in the rows b of a micro-batch, from the peaks at the two largest sizes.

    Where only one size is known, ``a`` is taken to be zero, which forecasts too much. It stops being true where the
    memory of a row changes, as with sequences of other lengths.

    Args:
        read: returns the device's memory, or None
    """

    def __init__(self, read: Callable[[], MemoryUse | None]) -> None:
        self._read = read
        self._peaks: dict[int, int] = {}
        first = read()
        self._retries = 0 if first is None else first.retries

    def has_room(self, wanted: int, *, computed: int) -> bool:
        """Return whether larger micro-batches are expected to fit.

        Args:
            wanted: their rows
            computed: rows of the largest one that has just been computed
        """
        use = self._read()
        if use is None:
            return True
        self._peaks.setdefault(computed, use.peak)  # a later peak may be that of a larger one
        *smaller, rows = sorted(size for size in self._peaks if size <= computed)
        peak = self._peaks[rows]
        of_row = (peak - self._peaks[smaller[-1]]) / (rows - smaller[-1]) if smaller else peak / rows
        forecast = max(use.peak, peak + of_row * (wanted - rows))
        return use.retries == self._retries and forecast <= HEADROOM * use.total
