"""What the next window should be: the batch in force, a probe, the rest of a window that a checkpoint cut."""

from __future__ import annotations

from dataclasses import replace

from lightning_bsscale.callbacks.budget import Budget
from lightning_bsscale.callbacks.control import BatchControl
from lightning_bsscale.theory.windows import WindowPlan, plan_window


class WindowPlanner:
    """Plans window after window."""

    def __init__(
        self, control: BatchControl, budget: Budget, *, granularity: int, probe_every: int, seen_at_once: int
    ) -> None:
        """Begins with no window cut.

        Args:
            control: knows the batch in force
            budget: knows where epoch and budget end
            granularity: examples of one micro-batch on all devices
            probe_every: the option
            seen_at_once: micro-batches that can be told apart in one of Lightning's: one for each rank
        """
        self._control = control
        self._budget = budget
        self._granularity = granularity
        self._probe_every = probe_every
        self._seen_at_once = seen_at_once

    def next(self, batch_idx: int, windows: int, used_examples: int, rest: int) -> WindowPlan:
        """Plans the window that begins now.

        Args:
            batch_idx: index in the epoch of its first micro-batch
            windows: windows so far
            used_examples: examples of the budget that are gone
            rest: micro-batches that are left of a window that a checkpoint cut, or 0

        Returns:
            the plan
        """
        wanted = self._control.batch_size // self._granularity
        is_probe = wanted * self._seen_at_once == 1 and self._probe_every > 0 and (windows + 1) % self._probe_every == 0
        plan = plan_window(
            start=batch_idx,
            wanted=rest or (2 if is_probe else wanted),
            epoch_batches=self._budget.epoch_length(batch_idx),
            budget_batches=self._budget.batches_left(batch_idx, used_examples),
            is_probe=is_probe and not rest,
        )
        return replace(plan, is_short=True) if rest else plan

    def is_last(self, plan: WindowPlan, used_examples: int) -> bool:
        """Whether the epoch or the budget ends with a window.

        Args:
            plan: the window
            used_examples: examples of the budget that are gone before it

        Returns:
            False where no end is known
        """
        left, length = self._budget.batches_left(plan.start, used_examples), self._budget.epoch_length(plan.start)
        ends = [left, None if length is None else length - plan.start]
        return any(end is not None and plan.num_micro_batches >= end for end in ends)

    def as_the_trainer(self, batch_idx: int, accumulate: int) -> WindowPlan:
        """The window that Lightning makes by itself, for a dry run.

        Args:
            batch_idx: index in the epoch of its first micro-batch
            accumulate: the user's own `accumulate_grad_batches`

        Returns:
            the plan
        """
        left = accumulate - batch_idx % accumulate
        length = self._budget.epoch_length(batch_idx)
        return plan_window(start=batch_idx, wanted=left, epoch_batches=length, budget_batches=None)
