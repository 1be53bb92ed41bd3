"""The only writer of a parameter group's ``"lr"`` (put back after each step) and of the schedulers' clock.

The factor is on the rate only while the optimizer updates: a pre-hook multiplies, a post-hook puts back. Lightning
gives the optimizer a closure that runs the training step and the user's hooks; the factor is applied when it has
returned. So the user, their scheduler and the checkpoints see their own rate, whatever the formula. Schedulers with
``interval: step`` are stepped once for each step that the user's own plan would have made (the example clock), not once
for each step made.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer


def _copy(rate: Any) -> Any:
    return rate.detach().clone() if isinstance(rate, Tensor) else rate


def _put(group: dict[str, Any], rate: Any) -> None:
    # A tensor rate may be captured by a compiled or graphed step, so it keeps its identity.
    if isinstance(group["lr"], Tensor):
        with torch.no_grad():
            group["lr"].copy_(rate)
    else:
        group["lr"] = rate


class ScopedFactor:
    """Multiplies the rate of every parameter group for the length of one update."""

    def __init__(self, optimizer: Optimizer) -> None:
        """Registers the step hooks.

        Args:
            optimizer: whose rate to scale
        """
        self._optimizer = optimizer
        self.factor = 1.0
        self._schedule_factor = 1.0
        self._found: list[Any] | None = None
        self._stepped_with: Any = None
        self._handles: list[Any] = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(lambda *_: self.restore()),
        ]

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        # With a gradient scaler the closure has run before, and there is none here.
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._apply()
            return None

        def then_apply() -> Any:
            self.restore()  # an optimizer may call its closure several times
            loss = closure()
            self._apply()
            return loss

        return args[:1], {**kwargs, "closure": then_apply}

    def _apply(self) -> None:
        if self._found is not None:
            return  # a subclass's step that calls its parent's fires the hooks twice
        groups = self._optimizer.param_groups
        self._found = [_copy(group["lr"]) for group in groups]
        for group, rate in zip(groups, self._found, strict=True):
            _put(group, rate * (self.factor * self._schedule_factor))
        self._stepped_with = self._found[0]

    def change(self, factor: float, schedule_factor: float) -> None:
        """Sets both factors, from the next update on.

        Args:
            factor: what goes with the batch
            schedule_factor: what the callback's own schedule says, or 1
        """
        self.factor = factor
        self._schedule_factor = schedule_factor

    @property
    def rate(self) -> float:
        """The rate that the last step was taken with (first parameter group); before any step, the present one."""
        rate = self._stepped_with if self._stepped_with is not None else self._optimizer.param_groups[0]["lr"]
        return float(rate) * self.factor * self._schedule_factor

    def restore(self) -> None:
        """Puts the user's rates back; also after a step that an exception left."""
        if self._found is not None:
            for group, rate in zip(self._optimizer.param_groups, self._found, strict=True):
                _put(group, rate)
            self._found = None

    def remove(self) -> None:
        """Takes the hooks away and puts the user's rates back."""
        self.restore()
        for handle in self._handles:
            handle.remove()
        self._handles = []


class UnscaledRate:
    """The same face for those who only look: the user's rate, and a factor that stays one."""

    factor = 1.0

    def __init__(self, optimizer: Optimizer) -> None:
        """Registers nothing yet.

        Args:
            optimizer: whose rate to read
        """
        self._optimizer = optimizer
        self._handles: list[Any] = []
        self._read()

    def _read(self) -> None:
        self._rate = _copy(self._optimizer.param_groups[0]["lr"])

    def change(self, factor: float, schedule_factor: float) -> None:
        """Changes nothing. From the first call on, the rate is noted at each update, whoever has set it until then.

        Args:
            factor: not used
            schedule_factor: not used
        """
        if not self._handles:
            self._read()
            self._handles.append(self._optimizer.register_step_post_hook(lambda *_: self._read()))

    @property
    def rate(self) -> float:
        """The rate that the last step was taken with (first parameter group); before any step, that at the start."""
        return float(self._rate)

    def remove(self) -> None:
        """Takes the hook away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def relative_rate(optimizer: Optimizer) -> float:
    """Where the user's scheduler has taken the rate (first parameter group).

    Args:
        optimizer: with the user's own rates

    Returns:
        present rate / initial rate; 1 without a scheduler
    """
    group = optimizer.param_groups[0]
    initial = float(group.get("initial_lr", 0.0))
    return float(group["lr"]) / initial if initial else 1.0


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
        self._entries = [
            _Entry(config, config.frequency, 0) for config in trainer.lr_scheduler_configs if config.interval == "step"
        ]
        for entry in self._entries:
            entry.config.frequency = sys.maxsize

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

    def advance(self, planned: Callable[[int], int]) -> None:
        """Steps every scheduler up to the plan.

        Args:
            planned: scheduler steps that the plan has made by now, for a scheduler of the given frequency
        """
        for entry in self._entries:
            due = planned(entry.frequency) - entry.steps
            entry.steps += due
            if entry.config.reduce_on_plateau:
                entry.config.frequency = 1 if due else sys.maxsize
            else:
                for _ in range(due):
                    self._pl_module.lr_scheduler_step(entry.config.scheduler, None)

    def release(self) -> None:
        """Gives the schedulers back to Lightning."""
        for entry in self._entries:
            entry.config.frequency = entry.frequency
        self._entries = []
