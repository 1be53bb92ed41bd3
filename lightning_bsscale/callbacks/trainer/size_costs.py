"""What micro-batches of about the largest size cost, for the search of the best size: seconds and memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import torch

from lightning_bsscale.callbacks.trainer.memory import MemoryForecast, read_memory
from lightning_bsscale.callbacks.trainer.timing import RowTimes

__all__ = ["SizeCosts"]

# Sizes are as equal as the window allows, so that the largest one is rarely met exactly.
ABOUT = 0.75


class SizeCost(NamedTuple):
    """What was measured of micro-batches of about the largest size.

    Attributes:
        seconds: seconds of their forward and backward passes
        rows: their rows
        has_room: whether twice their size is expected to fit into the device's memory
    """

    seconds: float
    rows: int
    has_room: bool


class SizeCosts:
    """Measures micro-batches of about the largest size.

    Args:
        device: the device that computes
    """

    def __init__(self, device: torch.device) -> None:
        self._largest: int | None = None
        self._most_rows = 0
        self._times = RowTimes(device)
        self._forecast = MemoryForecast(partial(read_memory, device))

    def begin_window(self, largest: int | None) -> None:
        """Begin a window whose micro-batches have at most so many rows; None to measure nothing."""
        if largest != self._largest:
            self.discard()
            self._largest, self._most_rows = largest, 0

    def section(self, rows: int, *, counted: int) -> AbstractContextManager[None]:
        """Time one pass of a micro-batch, if it has about the largest size.

        Args:
            rows: its rows
            counted: none in its forward pass, and all of them in its backward pass

        Returns:
            A context for the pass.
        """
        if self._largest is None or not ABOUT * self._largest <= rows <= self._largest:
            return nullcontext()
        self._most_rows = max(self._most_rows, rows)
        return self._times.section(counted)

    def discard(self) -> None:
        """Discard the times since the last call of `take`."""
        self._times.take()

    def take(self) -> SizeCost:
        """Return what micro-batches of about the largest size have cost since the last call."""
        largest = self._largest
        seconds, rows = self._times.take()
        has_room = largest is None or not rows or self._forecast.has_room(2 * largest, computed=self._most_rows)
        return SizeCost(seconds, rows, has_room)
