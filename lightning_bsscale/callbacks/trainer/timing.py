"""Seconds per loader batch and per optimizer step, and of a row in large micro-batches, measured in the loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lightning_bsscale.theory.numbers import significant

WEIGHT_OF_NEW = 0.1
UNTIMED_WINDOWS = 2  # of a process, at its start
SECONDS_DIGITS = 4

Seconds = tuple[float | None, float | None]


class StepTimes:
    """Running means over the loader batches that only accumulate, and over those that step.

    On an accelerator the loop runs ahead of the device, so single values are not device times. Their means are, once
    the loop has to wait for the device.

    Args:
        world_size: number of ranks

    Attributes:
        seconds_per_loader_batch: of this rank, or None
    """

    def __init__(self, *, world_size: int) -> None:
        self.seconds_per_loader_batch: float | None = None
        self._world_size = world_size
        self._of_all_ranks: Seconds = (None, None)
        self._stepping: float | None = None
        self._began: float | None = None

    @property
    def seconds_per_step(self) -> float | None:
        """Seconds of a step of this rank beyond its last loader batch, or None while unknown."""
        if self._stepping is None or self.seconds_per_loader_batch is None:
            return None
        return max(0.0, self._stepping - self.seconds_per_loader_batch)

    @property
    def own(self) -> Seconds:
        """Seconds per loader batch and per step of this rank."""
        return self.seconds_per_loader_batch, self.seconds_per_step

    @property
    def shared(self) -> Seconds:
        """The seconds for decisions, the same on all ranks: those of a single rank, or the last means over ranks.

        They have `SECONDS_DIGITS` digits: a journal has them for every window, as the policy is given them.
        """
        per_loader_batch, per_step = self.own if self._world_size == 1 else self._of_all_ranks
        return _rounded(per_loader_batch), _rounded(per_step)

    def share(self, seconds: Seconds) -> None:
        """Set the means over ranks."""
        self._of_all_ranks = seconds

    def start(self) -> None:
        """Begin a loader batch."""
        self._began = time.perf_counter()

    def stop(self, *, stepped: bool, computed: float = 1.0) -> None:
        """End a loader batch, with the optimizer's step or without.

        Args:
            stepped: whether the optimizer stepped
            computed: loader batches that were computed, of those put aside and this one
        """
        if self._began is None:
            return
        seconds = time.perf_counter() - self._began
        self._began = None
        if stepped:
            others = (computed - 1) * (self.seconds_per_loader_batch or 0.0)
            self._stepping = self._mean(self._stepping, seconds - others)
        elif computed > 0:
            self.seconds_per_loader_batch = self._mean(self.seconds_per_loader_batch, seconds / computed)

    @staticmethod
    def _mean(before: float | None, seconds: float) -> float:
        return seconds if before is None else before + WEIGHT_OF_NEW * (seconds - before)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else significant(seconds, SECONDS_DIGITS)


class WindowClock:
    """Times windows from the end of one to the end of the next: with the loader, loggers and other callbacks.

    What lies between two epochs, and validation, are left out. On an accelerator the loop runs ahead of the device;
    sums over many windows are right, as for `StepTimes`. The first windows of a process start its libraries, and are
    not timed.
    """

    def __init__(self) -> None:
        self._untimed = UNTIMED_WINDOWS
        self._since: float | None = None
        self._seconds = 0.0

    def run(self) -> None:
        """Run on after a pause, at the beginning of a loader batch."""
        if self._since is None:
            self._since = time.perf_counter()

    def pause(self) -> None:
        """Stop until the next loader batch."""
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def lap(self) -> float | None:
        """End a window.

        Returns:
            Its seconds, to microseconds: a journal has them for every window. None for the first of a process.
        """
        self.pause()
        self.run()
        seconds, self._seconds = round(self._seconds, 6), 0.0
        if self._untimed:
            self._untimed -= 1
            return None
        return seconds


class RowTimes:
    """Seconds of the forward and backward passes of some micro-batches, by their device's own clock.

    Args:
        device: the device that computes
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._stream_of = device
        self._seconds, self._rows = 0.0, 0
        self._running: list[tuple[Any, Any, int]] = []  # sections whose end the device has not reached

    @contextmanager
    def section(self, rows: int) -> Iterator[None]:
        """Time a section, of which so many rows are counted: a forward pass counts none, and its backward pass all."""
        if not self._is_cuda:
            now = time.perf_counter()
            yield
            self._seconds, self._rows = self._seconds + time.perf_counter() - now, self._rows + rows
            return
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began.record(torch.cuda.current_stream(self._stream_of))
        yield
        ended.record(torch.cuda.current_stream(self._stream_of))
        self._running.append((began, ended, rows))
        self._count_ended()  # here too, because nobody takes the times of windows that are not measured

    def _count_ended(self) -> None:
        while self._running and self._running[0][1].query():
            began, ended, rows = self._running.pop(0)
            self._seconds, self._rows = self._seconds + began.elapsed_time(ended) / 1e3, self._rows + rows

    def take(self) -> tuple[float, int]:
        """Return seconds and rows of the sections that have ended since the last call, without waiting."""
        self._count_ended()
        taken, self._seconds, self._rows = (self._seconds, self._rows), 0.0, 0
        return taken
