"""Seconds per micro-batch and per optimizer step, as the loop sees them."""

from __future__ import annotations

import time

WEIGHT_OF_NEW = 0.1


class StepTimes:
    """Running means over the micro-batches that only accumulate, and over those that step.

    On an accelerator the loop runs ahead of the device, so single values are no device times; their means are, as soon
    as the loop is held up by the device.
    """

    def __init__(self) -> None:
        """Begins without a value."""
        self.shared: tuple[float | None, float | None] = (None, None)
        self.seconds_per_micro_batch: float | None = None
        self._stepping: float | None = None
        self._began: float | None = None

    @property
    def seconds_per_step(self) -> float | None:
        """What a step costs beyond its last micro-batch, or None while that is unknown."""
        if self._stepping is None or self.seconds_per_micro_batch is None:
            return None
        return max(0.0, self._stepping - self.seconds_per_micro_batch)

    def start(self) -> None:
        """A micro-batch begins."""
        self._began = time.perf_counter()

    def stop(self, *, stepped: bool) -> None:
        """A micro-batch has ended.

        Args:
            stepped: whether the optimizer stepped in it
        """
        if self._began is None:
            return
        seconds = time.perf_counter() - self._began
        self._began = None
        if stepped:
            self._stepping = self._mean(self._stepping, seconds)
        else:
            self.seconds_per_micro_batch = self._mean(self.seconds_per_micro_batch, seconds)

    def take_mean(self, seconds_per_micro_batch: float | None, seconds_per_step: float | None) -> None:
        """Note the means over ranks: with several ranks decisions depend on these alone."""
        self.shared = (seconds_per_micro_batch, seconds_per_step)

    @property
    def own(self) -> tuple[float | None, float | None]:
        """Seconds per micro-batch and per step of this rank."""
        return self.seconds_per_micro_batch, self.seconds_per_step

    def to_decide_by(self, world_size: int) -> tuple[float | None, float | None]:
        """Return seconds per micro-batch and per step that are the same on all ranks."""
        return self.own if world_size == 1 else self.shared

    @staticmethod
    def _mean(before: float | None, seconds: float) -> float:
        return seconds if before is None else before + WEIGHT_OF_NEW * (seconds - before)
