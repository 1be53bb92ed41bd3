"""The only writer of a scheduler's `frequency`: schedulers follow the user's plan, not the steps that were made.

A scheduler with ``interval: step`` is stepped once for each step that the user's plan would have made by now.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl


def _step_configs(trainer: pl.Trainer) -> list[Any]:
    return [config for config in trainer.lr_scheduler_configs if config.interval == "step"]


@dataclass(slots=True)
class _Entry:
    """One of the user's schedulers, its own frequency, and the number of its steps made here."""

    config: Any
    frequency: int
    steps: int


class ExampleClock:
    """Steps the user's ``interval: step`` schedulers as often as the user's plan would have by now.

    Lightning keeps stepping ReduceLROnPlateau, because it knows the metric, and one value counted several times would
    look like a plateau. Its frequency is enabled at window ends at which the plan would have stepped it since the last
    one.
    """

    def __init__(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep Lightning from stepping the schedulers, which it does at multiples of `frequency`."""
        self._pl_module = pl_module
        self._entries = [_Entry(config, config.frequency, 0) for config in _step_configs(trainer)]
        for entry in self._entries:
            entry.config.frequency = sys.maxsize
        self._now: int | None = None
        self._was_read = False

    def matches(self, trainer: pl.Trainer) -> bool:
        """Return whether these are still the Trainer's schedulers."""
        configs = _step_configs(trainer)
        return len(configs) == len(self._entries) and all(
            entry.config is config for entry, config in zip(self._entries, configs, strict=True)
        )

    @property
    def frequencies(self) -> list[int]:
        """The user's own frequency of each."""
        return [entry.frequency for entry in self._entries]

    def start_at(self, planned: Callable[[int], int]) -> None:
        """Assume the schedulers are caught up; the checkpoint restored their state.

        Args:
            planned: returns the plan's number of scheduler steps by now, for a frequency
        """
        for entry in self._entries:
            entry.steps = planned(entry.frequency)

    def read_planned_step(self) -> int | None:
        """Return the planned step, from 1, for which a scheduler is being stepped, or None."""
        self._was_read = self._was_read or self._now is not None
        return self._now

    def advance(self, planned: Callable[[int], int], step_of: Callable[[int, int], int]) -> bool:
        """Step every scheduler up to the plan.

        Args:
            planned: returns the plan's number of scheduler steps by now, for a frequency
            step_of: returns the planned step at which a scheduler of a frequency makes its n-th step

        Returns:
            Whether a scheduler was stepped although `read_planned_step` was never used during a step.
        """
        stepped = False
        for entry in self._entries:
            due = planned(entry.frequency) - entry.steps
            if entry.config.reduce_on_plateau:
                entry.steps += due
                entry.config.frequency = 1 if due else sys.maxsize
                continue
            for _ in range(due):
                entry.steps += 1
                self._now, stepped = step_of(entry.frequency, entry.steps), True
                try:
                    self._pl_module.lr_scheduler_step(entry.config.scheduler, None)
                finally:
                    self._now = None
        return stepped and not self._was_read

    def release(self) -> None:
        """Let Lightning step the schedulers again."""
        for entry in self._entries:
            entry.config.frequency = entry.frequency
        self._entries = []
