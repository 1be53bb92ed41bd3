"""The seconds of a run's windows: what the whole run took, and what it would have taken at the first batch size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_bsscale.theory.frozen import changed
from lightning_bsscale.theory.state import RunNumbers

__all__ = ["Pace"]

MIN_FIRST_WINDOWS = 8
"""Windows of the first batch size that must be timed before the plan's seconds are known."""
PAUSE = 10.0
"""A window that takes so many times the mean is a pause (a checkpoint, a compilation), not training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds of the windows of one rank, from the end of one to the end of the next, validation left out.

    Attributes:
        steps_before: Optimizer steps of the training before the callback took part in it.
        windows: Timed windows.
        examples: Their examples over all ranks.
        seconds: Their seconds.
        first_windows: Those of the first batch size that were not measured, as in a training without the callback.
        first_examples: Their examples over all ranks.
        first_seconds: Their seconds.
        first_seconds_sq: Sum of the squares of each one's seconds.
    """

    steps_before: int = 0
    windows: int = 0
    examples: int = 0
    seconds: float = 0.0
    first_windows: int = 0
    first_examples: int = 0
    first_seconds: float = 0.0
    first_seconds_sq: float = 0.0

    def with_window(
        self, numbers: RunNumbers, seconds: float | None, loader_batches: int, examples: int, *, is_measured: bool
    ) -> Pace:
        """Add a window as a run or its journal knows it.

        Args:
            numbers: The settings of the run.
            seconds: What the window took; None if it was not timed.
            loader_batches: Loader batches of one rank in it.
            examples: Examples of one rank; the others are taken to have as many as usual.
            is_measured: Whether it was measured, which takes time.

        Returns:
            A new record, or this one.
        """
        usual = loader_batches * numbers.now.granularity
        is_plain_first = usual == numbers.first.batch_size and not is_measured
        return self.added(seconds, examples if numbers.now.world_size == 1 else usual, is_plain_first=is_plain_first)

    def added(self, seconds: float | None, examples: int, *, is_plain_first: bool) -> Pace:
        """Add a window.

        Args:
            seconds: What it took; None if it was not timed.
            examples: Its examples over all ranks.
            is_plain_first: Whether it had the first batch size and was not measured.

        Returns:
            A new record, or this one if the window was not timed, or paused.
        """
        if seconds is None or examples <= 0:
            return self
        if self.windows and seconds * self.examples > PAUSE * self.seconds * examples:
            return self
        first = (1, examples, seconds) if is_plain_first else (0, 0, 0.0)
        return changed(
            self,
            windows=self.windows + 1,
            examples=self.examples + examples,
            seconds=self.seconds + seconds,
            first_windows=self.first_windows + first[0],
            first_examples=self.first_examples + first[1],
            first_seconds=self.first_seconds + first[2],
            first_seconds_sq=self.first_seconds_sq + first[2] ** 2,
        )

    @property
    def seconds_of_plan(self) -> float | None:
        """Seconds that the timed examples would have taken at the first batch's pace; None where that is unknown."""
        if self.first_windows < MIN_FIRST_WINDOWS:
            return None
        return self.first_seconds / self.first_examples * self.examples

    @property
    def relative_error(self) -> float:
        """Standard error of `seconds_of_plan` as a share of it, from the windows' scatter; infinite if unknown."""
        count = self.first_windows
        if count < MIN_FIRST_WINDOWS or self.first_seconds <= 0:
            return math.inf
        mean = self.first_seconds / count
        variance = max(0.0, self.first_seconds_sq / count - mean**2) * count / (count - 1)
        return math.sqrt(variance / count) / mean
