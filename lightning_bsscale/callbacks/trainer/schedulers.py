"""The only writer of a scheduler's `frequency`: schedulers follow the user's plan, not the steps that were made.

A scheduler with ``interval: step`` is stepped once for each step that the user's own plan would have made by now.
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
    """One scheduler of the user's, its own frequency, and how often it was stepped by us."""

    config: Any
    frequency: int
    steps: int


class ExampleClock:
    """Steps the user's ``interval: step`` schedulers as often as the user's own plan would have by now.

    ReduceLROnPlateau stays with Lightning, which knows its metric: one value counted several times would look like a
    plateau. It is let through at the window ends at which the plan would have stepped it since the last one.
    """

    def __init__(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the schedulers from Lightning: it steps one when the micro-batch index is a multiple of `frequency`.

        Args:
            trainer: whose schedulers to take
            pl_module: whose `lr_scheduler_step` does the step
        """
        self._pl_module = pl_module
        self._entries = [_Entry(config, config.frequency, 0) for config in _step_configs(trainer)]
        for entry in self._entries:
            entry.config.frequency = sys.maxsize
        self._now: int | None = None
        self._was_asked = False

    def is_of(self, trainer: pl.Trainer) -> bool:
        """Whether these are the Trainer's schedulers still.

        Args:
            trainer: the Trainer

        Returns:
            False where others were set up since
        """
        configs = _step_configs(trainer)
        return len(configs) == len(self._entries) and all(
            entry.config is config for entry, config in zip(self._entries, configs, strict=True)
        )

    @property
    def frequencies(self) -> list[int]:
        """The user's own frequency of each."""
        return [entry.frequency for entry in self._entries]

    def start_at(self, planned: Callable[[int], int]) -> None:
        """Takes the plan's count as made already: the schedulers of a resumed run come with their own state.

        Args:
            planned: scheduler steps that the plan has made by now, for a scheduler of the given frequency
        """
        for entry in self._entries:
            entry.steps = planned(entry.frequency)

    def ask_planned_step(self) -> int | None:
        """Return the planned step for which a scheduler is being stepped; None where none is.

        Returns:
            the number, from 1
        """
        self._was_asked = self._was_asked or self._now is not None
        return self._now

    def advance(self, planned: Callable[[int], int], step_of: Callable[[int, int], int]) -> bool:
        """Step every scheduler up to the plan.

        Args:
            planned: scheduler steps that the plan has made by now, for a scheduler of the given frequency
            step_of: the planned step at which a scheduler of the given frequency is stepped for the given time

        Returns:
            whether a scheduler was stepped, and nobody has asked yet for which planned step
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
        return stepped and not self._was_asked

    def release(self) -> None:
        """Gives the schedulers back to Lightning."""
        for entry in self._entries:
            entry.config.frequency = entry.frequency
        self._entries = []
