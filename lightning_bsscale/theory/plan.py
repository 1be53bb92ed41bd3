"""The user's own plan, counted in micro-batches: where it would be by now, and where it ends.

The plan is that of the first start. A run that goes on with other micro-batches, or on another number of devices,
covers the plan's micro-batches at another pace; what is handed in and out is always counted in those that come now.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from lightning_bsscale.theory.windows import batches_until_step, planned_steps, step_of_scheduler_step


class Budget:
    """Counts the plan's steps by the position in the epoch, so that ragged ends count as the plan would count them.

    The plan: `accumulate` micro-batches a step, and one step at an epoch's ragged end. It ends with `total_examples`
    where the user gave them, else with `max_steps` of the plan's steps; an end by `max_epochs` is Lightning's own.

    Resumed within an epoch and with other micro-batches, Lightning goes to the same index of an epoch that has another
    length: it leaves out a part of the epoch, or takes one again, or begins it anew. Where epochs end the training, the
    plan is where the epoch is, so that both end together. Where a number of steps does, what is trained on counts.
    """

    def __init__(
        self,
        *,
        accumulate: int,
        max_steps: int | None,
        total_examples: float | None,
        granularity: int,
        epoch_batches: int | None,
        frequencies: Iterable[int] = (),
        plan_granularity: int | None = None,
        epoch_examples: int | None = None,
        ends_with_epochs: bool = True,
    ) -> None:
        """Begins at the plan's first micro-batch.

        Args:
            accumulate: micro-batches of one step of the plan
            max_steps: steps of the plan, or None
            total_examples: the budget that the user gave, or None
            granularity: examples of one micro-batch on all devices
            epoch_batches: micro-batches in an epoch, or None for a loader without a length
            frequencies: the schedulers' own frequencies, in micro-batches as Lightning counts them
            plan_granularity: examples of one micro-batch of the plan on all devices, where it differs
            epoch_examples: examples in an epoch, or None where they are not known
            ends_with_epochs: whether `max_epochs` ends the training, not a number of steps or examples
        """
        self.epoch_batches = epoch_batches
        self._expected = epoch_batches
        self._epoch_examples = epoch_examples
        self._accumulate = accumulate
        self._max_steps = max_steps
        self._total_examples = total_examples
        self._granularity = granularity
        self._pace = Fraction(granularity, plan_granularity or granularity)  # the plan's micro-batches in one of ours
        self._ends_with_epochs = ends_with_epochs
        self._before = {frequency: 0 for frequency in (1, *frequencies)}
        self._reached = dict(self._before)  # before Lightning began the epoch anew
        self._ready = 0
        self._is_last = False
        self._came = 0
        self._origin = (0, 0)  # where the present pace began: the plan's micro-batches, and ours

    @property
    def came(self) -> int:
        """Micro-batches of this epoch up to the last window's end."""
        return self._came

    def _in_plan(self, batches: int, *, is_last: bool) -> int:
        planned, came = self._origin
        if self._pace == 1 and planned == came:
            return batches
        passed, length = planned + math.floor((batches - came) * self._pace), self._planned_epoch_batches()
        if length is None:
            return passed
        return length if is_last else min(passed, length)

    def _in_ours(self, planned_batches: int) -> int:
        planned, came = self._origin
        return came + math.ceil((planned_batches - planned) / self._pace)

    def _planned_epoch_batches(self) -> int | None:
        if self.epoch_batches is None:
            return None
        planned, came = self._origin
        if self._ends_with_epochs or not came:
            planned = came = 0
        elif came >= self.epoch_batches:  # one micro-batch more than there are: see `epoch_length`
            return planned + math.ceil(self._pace)
        if self._pace == 1:
            return planned + self.epoch_batches - came
        # A loader that cannot be resumed begins with its first micro-batch again: it never comes to the short last one.
        left = (self.epoch_batches - came) * self._granularity
        return planned + math.ceil(min(left, self._epoch_examples or left) / (self._granularity / self._pace))

    def planned_steps(self, frequency: int = 1) -> int:
        """Steps that the plan has made by now; they never become fewer.

        Args:
            frequency: count only the steps at which Lightning would step a scheduler of this frequency

        Returns:
            the number over all epochs
        """
        return max(self._reached[frequency], self._counted(frequency))

    def _counted(self, frequency: int) -> int:
        here = planned_steps(self._ready, self._accumulate, is_last=self._is_last, frequency=frequency)
        return self._before[frequency] + here

    def planned_steps_after(self, ready: int, *, is_last: bool) -> int:
        """Steps that the plan will have made when the window that has stepped is closed.

        Args:
            ready: micro-batches of this epoch so far
            is_last: whether the epoch ends here

        Returns:
            the number over all epochs
        """
        ready, is_last = self._position_after(ready, is_last=is_last)
        counted = self._before[1] + planned_steps(ready, self._accumulate, is_last=is_last)
        return max(self._reached[1], counted)

    def step_of_scheduler_step(self, frequency: int, number: int) -> int:
        """The step of the plan at which a scheduler is stepped.

        Args:
            frequency: the scheduler's
            number: which of its steps, over all epochs, from 1

        Returns:
            the number over all epochs, from 1
        """
        here = step_of_scheduler_step(number - self._before[frequency], self._accumulate, frequency)
        # A scheduler step at an epoch's ragged end belongs to the epoch's last step.
        return min(self._before[1] + here, self.planned_steps())

    def count_for(self, frequencies: Iterable[int]) -> None:
        """Count for other schedulers too, from here on.

        Args:
            frequencies: their own frequencies
        """
        for frequency in frequencies:
            self._before.setdefault(frequency, 0)
            self._reached.setdefault(frequency, 0)

    def epoch_length(self, batch_idx: int) -> int | None:
        """Micro-batches to expect in this epoch.

        Args:
            batch_idx: index of the next one

        Returns:
            the announced number, or fewer where the last epoch ended sooner; None for a loader without a length
        """
        expected = self._expected
        if expected is not None and batch_idx < expected:
            return expected
        # Resumed from an epoch's end without max_epochs, Lightning takes one micro-batch more in that epoch.
        return None if self.epoch_batches is None else max(self.epoch_batches, batch_idx + 1)

    @property
    def is_at_epoch_end(self) -> bool:
        """Whether the last window was an epoch's last one."""
        return self._is_last

    def start_epoch(
        self,
        epoch_batches: int | None,
        came: int,
        epoch_examples: int | None = None,
        *,
        first: int = 0,
        is_repeated: bool = False,
    ) -> None:
        """An epoch begins, at its first micro-batch.

        Args:
            epoch_batches: micro-batches that Lightning announces, or None
            came: micro-batches that came in the last epoch; 0 before the first
            epoch_examples: examples in it, or None where they are not known
            first: index of the micro-batch with which a resumed run begins the epoch
            is_repeated: whether it is the epoch in progress, which a resumed run begins anew
        """
        # Only an epoch that ended before its announced end says that this one may; a loader may also have grown.
        ended_early = 0 < came < (self.epoch_batches or 0)
        self.epoch_batches = epoch_batches
        self._epoch_examples = epoch_examples
        self._expected = min(came, epoch_batches) if ended_early and epoch_batches is not None else epoch_batches
        if is_repeated and self._ends_with_epochs:
            self._reached = {frequency: self.planned_steps(frequency) for frequency in self._before}
        else:
            self._before = {frequency: self._counted(frequency) for frequency in self._before}
        self._came = first
        leaves_out = self._ends_with_epochs and epoch_batches is not None  # what lies before its first micro-batch
        self._ready = math.floor(first * self._pace) if leaves_out else 0
        self._origin = (self._ready, self._came)
        self._is_last = False

    def _end_in_epoch(self) -> int | None:
        # The plan's micro-batches of this epoch at which max_steps ends it.
        if self._max_steps is None:
            return None
        left = max(0, self._max_steps - self._before[1])
        return batches_until_step(left, self._accumulate, self._planned_epoch_batches())

    def advance(self, ready: int, *, is_last: bool) -> None:
        """A window has ended.

        Args:
            ready: micro-batches of this epoch so far
            is_last: whether the epoch ends here
        """
        self._came = ready
        self._ready, self._is_last = self._position_after(ready, is_last=is_last)

    def _position_after(self, ready: int, *, is_last: bool) -> tuple[int, bool]:
        end = self._end_in_epoch()
        planned = self._in_plan(ready, is_last=is_last)
        # Past its end a plan makes no steps: only an explicit budget goes further, and schedulers stay at their end.
        reached = planned if end is None else min(planned, end)
        return reached, is_last and reached == planned

    def batches_left(self, batch_idx: int, examples_seen: float) -> int | None:
        """Micro-batches until the budget ends, for the window that begins now.

        Args:
            batch_idx: index of the next micro-batch in the epoch
            examples_seen: examples so far

        Returns:
            at least 1, or None where no budget ends within the epoch (or it has ended, and Lightning goes on)
        """
        if self._total_examples is not None:
            left = math.ceil((self._total_examples - examples_seen) / self._granularity)
        else:
            end = self._end_in_epoch()
            if end is None:
                return None
            left = self._in_ours(end) - batch_idx
        return left if left > 0 else None

    def is_used_up(self, examples_seen: float) -> bool:
        """Whether training should end here.

        Args:
            examples_seen: examples so far

        Returns:
            True at the end of the budget's last window
        """
        if self._total_examples is not None:
            return examples_seen >= self._total_examples
        return self._max_steps is not None and self.planned_steps() >= self._max_steps

    def begin_at(self, batch_idx: int, steps: int) -> None:
        """Begins within a training that went on without the scaler: what it has done, it did by the plan.

        Args:
            batch_idx: index in the epoch of the micro-batch that comes now
            steps: optimizer steps so far
        """
        self._ready = self._came = batch_idx
        self._before[1] = max(0, steps - planned_steps(batch_idx, self._accumulate, is_last=False))

    def state(self) -> dict[str, Any]:
        """What cannot be recomputed.

        Returns:
            numbers and lists
        """
        return {
            "before": [[frequency, steps] for frequency, steps in self._before.items()],
            "reached": [[frequency, steps] for frequency, steps in self._reached.items()],
            "ready": self._ready,
            "is_last": self._is_last,
            "came": self._came,
            "expected": self._expected,
            "planned": self.planned_steps(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes up where `state` left off.

        Args:
            state: what `state` gave
        """
        self._before.update({frequency: steps for frequency, steps in state["before"]})
        self._reached.update({frequency: steps for frequency, steps in state["reached"]})
        self._ready = state["ready"]
        self._is_last = state["is_last"]
        self._came = state["came"]
        self._origin = (self._ready, self._came)
        if self._pace == 1 and state["expected"] is not None and self.epoch_batches is not None:
            self._expected = min(self.epoch_batches, state["expected"])
