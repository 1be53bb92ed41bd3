"""The rate of one window: the factor of the batch in force, or of the window's own size, times the own schedule."""

from __future__ import annotations

from torch.optim import Optimizer

from lightning_bsscale.callbacks.control import BatchControl
from lightning_bsscale.callbacks.trainer.learning_rate import ScopedFactor, UnscaledRate, relative_rate
from lightning_bsscale.callbacks.trainer.user_plan import Plan
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.schedules import Schedule


class WindowRate:
    """Sets the factors before each step; a dry run sets nothing."""

    def __init__(
        self, optimizer: Optimizer, control: BatchControl, plan: Plan, schedule: Schedule | None, *, dry_run: bool
    ) -> None:
        """Takes hold of the rate, except in a dry run.

        Args:
            optimizer: whose rate
            control: knows the factors
            plan: knows the budget
            schedule: the callback's own, or None
            dry_run: whether to look only
        """
        self._optimizer = optimizer
        self._control = control
        self._plan = plan
        self._schedule = schedule
        self._dry_run = dry_run
        self._rate = UnscaledRate(optimizer) if dry_run else ScopedFactor(optimizer)

    def _scheduled(self, examples: float) -> float | None:
        # What the callback's own schedule says; None without one.
        plan = self._plan
        if self._schedule is None or plan.total_examples is None:
            return None
        return self._schedule.factor(examples, plan.total_examples, plan.warmup_examples)

    def schedule_factor(self, examples_seen: float) -> float:
        """Where the schedule is: the callback's own, or the user's scheduler.

        Args:
            examples_seen: examples so far

        Returns:
            the factor, 1 at its peak
        """
        scheduled = self._scheduled(examples_seen)
        return relative_rate(self._optimizer) if scheduled is None else scheduled

    def set(self, examples_seen: float, window_examples: int, noise: NoiseScale | None, *, usual: bool) -> None:
        """Sets the rate of the window in progress.

        Args:
            examples_seen: examples before it
            window_examples: its examples; the schedule is asked at its middle
            noise: the noise scale now
            usual: whether it has the size of the batch in force
        """
        factor = self._control.lr_scale if usual else self._control.window_factor(window_examples, noise)
        scheduled = self._scheduled(examples_seen + window_examples / 2)
        self._rate.change(factor, 1.0 if scheduled is None else scheduled)

    def begin_window(self) -> None:
        """A window begins: its step has not been seen."""
        self._rate.begin_window()

    @property
    def is_seen(self) -> bool:
        """Whether an update was seen in this window."""
        return self._rate.is_seen

    def is_overwritten(self) -> bool:
        """Judge the update of this window, once.

        Returns:
            whether the optimizer computes its learning rate by itself, whatever is put there
        """
        return self._rate.is_overwritten()

    @property
    def was_missed(self) -> bool:
        """Whether a factor other than one was to be applied in this window, and no update was seen."""
        return self._rate.is_wanted and not self._rate.is_seen

    @property
    def rate(self) -> float:
        """The learning rate that the last update was made with (first parameter group)."""
        return self._rate.rate

    @property
    def used_factor(self) -> float:
        """The factor on the learning rate in that update."""
        return self._rate.used_factor

    @property
    def shown_factor(self) -> float:
        """What the log shows: that factor; of a dry run, which scales nothing, the one that it would have used."""
        return self._control.lr_scale if self._dry_run else self._rate.used_factor

    def apply(self) -> None:
        """Apply the factor now, where the update has begun without being noticed, or cannot be noticed."""
        self._rate.apply()

    def follow(self, optimizer: Optimizer) -> None:
        """Go over to another optimizer, with the same factors.

        Args:
            optimizer: the one that steps from now on
        """
        self._optimizer = optimizer
        self._rate.follow(optimizer)

    def restore(self) -> None:
        """Gives the rate back for now, where a step was left in its middle."""
        self._rate.restore()

    def remove(self) -> None:
        """Gives the rate back."""
        self._rate.remove()
