"""The user's plan of optimizer steps: where it would be by now, and where it ends.

The plan is that of the first start, counted in that start's loader batches. A run that is resumed with
loader batches of another size or on another number of devices covers the plan at another pace. Arguments and results
are counted in loader batches of the current start.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from lightning_bsscale.theory.frozen import changed
from lightning_bsscale.theory.windows import batches_until_step, planned_steps, step_of_scheduler_step


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPosition:
    """Position in the user's plan at a window's end; part of a checkpoint.

    Attributes:
        before: (scheduler frequency, steps of the plan before this epoch); the first has frequency 1: all steps
        reached: (scheduler frequency, steps of the plan when Lightning began to repeat an epoch)
        ready: the plan's loader batches of this epoch so far
        is_last: whether the last window ended the epoch; False where the plan ended earlier in it
        loader_batches: loader batches of this epoch so far
        expected: loader batches expected in this epoch: fewer than announced where the last epoch ended early; None for
            a loader without a length
        epoch_batches: loader batches that Lightning announced for this epoch, or None
        epoch_examples: examples in this epoch, or None where unknown
        origin: where the current pace began in this epoch: (the plan's loader batches, this start's)
    """

    before: tuple[tuple[int, int], ...]
    reached: tuple[tuple[int, int], ...]
    ready: int
    is_last: bool
    loader_batches: int
    expected: int | None
    epoch_batches: int | None
    epoch_examples: int | None
    origin: tuple[int, int]


def steps_made(position: PlanPosition, accumulate: int, frequency: int = 1) -> int:
    """Count the steps of the plan up to a position.

    Args:
        position: Where the plan is.
        accumulate: Loader batches of one step of the plan.
        frequency: Count only the steps at which Lightning steps a scheduler of this frequency.

    Returns:
        The number over all epochs; it never decreases.

    Example:
        >>> plan = UserPlan(
        ...     accumulate=4,
        ...     max_steps=None,
        ...     total_examples=None,
        ...     granularity=8,
        ...     plan_granularity=8,
        ...     ends_with_epochs=True,
        ... )
        >>> position = plan.begin(epoch_batches=10, epoch_examples=80)
        >>> steps_made(plan.advance(position, 10, is_last=True), accumulate=4)
        3
    """
    return max(dict(position.reached)[frequency], _counted(position, accumulate, frequency))


def _counted(position: PlanPosition, accumulate: int, frequency: int) -> int:
    """Count the steps up to the position, without those of a repeated epoch's first pass."""
    here = planned_steps(position.ready, accumulate, is_last=position.is_last, frequency=frequency)
    return dict(position.before)[frequency] + here


@dataclass(frozen=True, slots=True, kw_only=True)
class UserPlan:
    """The user's plan: `accumulate` loader batches per step, and one step at an epoch's ragged end.

    The plan ends after `total_examples` if the user set them, otherwise after `max_steps` of its steps. Lightning
    itself ends training after `max_epochs`.

    After resuming within an epoch with loader batches of another size, Lightning continues at the same index of an
    epoch of another length: it skips a part of the epoch, repeats a part, or begins it again. If epochs end the
    training, the plan follows the position in the epoch, so that both end together. If a number of steps or examples
    does, the plan follows the examples that are trained on.

    Attributes:
        accumulate: loader batches of one step of the plan
        max_steps: steps of the plan, or None
        total_examples: the budget that the user set, or None
        granularity: examples of one loader batch on all devices, at this start
        plan_granularity: the same at the first start, in which the plan is counted
        ends_with_epochs: whether `max_epochs` ends the training, not a number of steps or examples
    """

    accumulate: int
    max_steps: int | None
    total_examples: float | None
    granularity: int
    plan_granularity: int
    ends_with_epochs: bool

    def begin(
        self, *, epoch_batches: int | None, epoch_examples: int | None, frequencies: Iterable[int] = ()
    ) -> PlanPosition:
        """Return the position before the first loader batch.

        Args:
            epoch_batches: loader batches in an epoch, or None for a loader without a length
            epoch_examples: examples in an epoch, or None where unknown
            frequencies: of the user's schedulers, in loader batches as Lightning counts them
        """
        none = tuple(dict.fromkeys((1, *frequencies), 0).items())
        return PlanPosition(
            before=none,
            reached=none,
            ready=0,
            is_last=False,
            loader_batches=0,
            expected=epoch_batches,
            epoch_batches=epoch_batches,
            epoch_examples=epoch_examples,
            origin=(0, 0),
        )

    def begin_at(self, position: PlanPosition, batch_idx: int, steps: int) -> PlanPosition:
        """Return the position within a training that has followed the plan without the scaler.

        Args:
            position: the result of `begin`
            batch_idx: index in the epoch of the next loader batch
            steps: optimizer steps so far
        """
        before = max(0, steps - planned_steps(batch_idx, self.accumulate, is_last=False))
        return changed(position, before=((1, before), *position.before[1:]), ready=batch_idx, loader_batches=batch_idx)

    def resumed(
        self,
        position: PlanPosition,
        *,
        epoch_batches: int | None,
        epoch_examples: int | None,
        frequencies: Iterable[int] = (),
        lost: int = 0,
        lost_examples: int = 0,
    ) -> PlanPosition:
        """Adapt a checkpoint's position to the loaders and schedulers of this start.

        Args:
            position: from the checkpoint
            epoch_batches: as for `begin`
            epoch_examples: as for `begin`
            frequencies: as for `begin`
            lost: loader batches between the position and the checkpoint, in a window that it cut
            lost_examples: their examples, of the loader that yielded them

        Returns:
            the adapted position
        """
        done, expected = position.loader_batches, epoch_batches
        # This start's pace begins after what is lost, which the plan passes at the pace of the last start.
        origin = (position.ready + lost_examples // self.plan_granularity, done + lost)
        if self._pace == 1:
            if position.expected is not None and epoch_batches is not None:
                expected = min(epoch_batches, position.expected)
            # The same as in an uninterrupted run, wherever the two are equivalent.
            is_within = self.ends_with_epochs or epoch_batches is None or done < epoch_batches
            origin = (0, 0) if is_within and position.ready == done else origin
        return changed(
            self.count_for(position, frequencies),
            expected=expected,
            epoch_batches=epoch_batches,
            epoch_examples=epoch_examples,
            origin=origin,
        )

    def count_for(self, position: PlanPosition, frequencies: Iterable[int]) -> PlanPosition:
        """Return the position with steps also counted for schedulers of these frequencies, from here on."""
        counted = dict(position.before)
        new = tuple((frequency, 0) for frequency in dict.fromkeys(frequencies) if frequency not in counted)
        return changed(position, before=position.before + new, reached=position.reached + new)

    def start_epoch(
        self,
        position: PlanPosition,
        epoch_batches: int | None,
        *,
        loader_batches: int,
        epoch_examples: int | None = None,
        first: int = 0,
        is_repeated: bool = False,
    ) -> PlanPosition:
        """Return the position at the start of an epoch.

        Args:
            position: at the end of the last epoch, or before the first
            epoch_batches: loader batches that Lightning announces, or None
            loader_batches: loader batches received in the last epoch; 0 before the first
            epoch_examples: examples in this epoch, or None where unknown
            first: index of the loader batch at which a resumed run begins
            is_repeated: whether Lightning starts the epoch in progress again
        """
        # Expect an early end only if the last epoch ended early; a loader may also have become longer.
        ended_early = 0 < loader_batches < (position.epoch_batches or 0)
        expected = min(loader_batches, epoch_batches) if ended_early and epoch_batches is not None else epoch_batches
        before, reached = position.before, position.reached
        if is_repeated and self.ends_with_epochs:
            reached = tuple((frequency, self.steps(position, frequency)) for frequency, _ in before)
        else:
            before = tuple((frequency, _counted(position, self.accumulate, frequency)) for frequency, _ in before)
        is_skipped = self.ends_with_epochs and epoch_batches is not None  # the part before `first`
        ready = math.floor(first * self._pace) if is_skipped else 0
        return PlanPosition(
            before=before,
            reached=reached,
            ready=ready,
            is_last=False,
            loader_batches=first,
            expected=expected,
            epoch_batches=epoch_batches,
            epoch_examples=epoch_examples,
            origin=(ready, first),
        )

    def advance(self, position: PlanPosition, ready: int, *, is_last: bool) -> PlanPosition:
        """Return the position at a window's end.

        Args:
            position: at the end of the window before
            ready: loader batches of this epoch so far
            is_last: whether the epoch ends here
        """
        end = self._end_in_epoch(position)
        planned = self._in_plan(position, ready, is_last=is_last)
        # The plan stops at its end: with an explicit budget training may continue, but schedulers stay there.
        reached = planned if end is None else min(planned, end)
        return changed(position, loader_batches=ready, ready=reached, is_last=is_last and reached == planned)

    def steps(self, position: PlanPosition, frequency: int = 1) -> int:
        """Count the steps of the plan up to the position; see `steps_made`."""
        return steps_made(position, self.accumulate, frequency)

    def steps_after(self, position: PlanPosition, ready: int, *, is_last: bool) -> int:
        """Count the steps of the plan up to the end of the window in progress; see `advance`."""
        return self.steps(self.advance(position, ready, is_last=is_last))

    def step_of_scheduler_step(self, position: PlanPosition, frequency: int, number: int) -> int:
        """Return the step of the plan at which a scheduler is stepped.

        Args:
            position: where the plan is
            frequency: the scheduler's frequency
            number: index of the scheduler's step over all epochs, from 1

        Returns:
            index of the plan's step over all epochs, from 1
        """
        before = dict(position.before)
        here = step_of_scheduler_step(number - before[frequency], self.accumulate, frequency)
        # A scheduler step at an epoch's ragged end belongs to the epoch's last step.
        return min(before[1] + here, self.steps(position))

    def epoch_length(self, position: PlanPosition, batch_idx: int) -> int | None:
        """Return the expected number of loader batches in this epoch.

        Args:
            position: where the plan is
            batch_idx: index of the next loader batch

        Returns:
            the announced number, or fewer if the last epoch ended early; None for a loader without a length
        """
        if position.expected is not None and batch_idx < position.expected:
            return position.expected
        # After resuming from an epoch's end without max_epochs, Lightning loads one more batch in that epoch.
        return None if position.epoch_batches is None else max(position.epoch_batches, batch_idx + 1)

    def batches_left(self, position: PlanPosition, batch_idx: int, examples_seen: float) -> int | None:
        """Return the number of loader batches left at the start of a window.

        Args:
            position: where the plan is
            batch_idx: index of the next loader batch
            examples_seen: examples so far

        Returns:
            at least 1; None if the plan does not end within the epoch, or has ended already
        """
        if self.total_examples is not None:
            left = math.ceil((self.total_examples - examples_seen) / self.granularity)
        else:
            end = self._end_in_epoch(position)
            if end is None:
                return None
            planned, done = position.origin
            left = done + math.ceil((end - planned) / self._pace) - batch_idx
        return left if left > 0 else None

    def is_used_up(self, position: PlanPosition, examples_seen: float) -> bool:
        """Return whether training should end here, at a window's end."""
        if self.total_examples is not None:
            return examples_seen >= self.total_examples
        return self.max_steps is not None and self.steps(position) >= self.max_steps

    @property
    def _pace(self) -> Fraction:
        """The plan's loader batches in one of this start."""
        return Fraction(self.granularity, self.plan_granularity)

    def _in_plan(self, position: PlanPosition, batches: int, *, is_last: bool) -> int:
        """Return this epoch's loader batches so far, counted in those of the plan."""
        planned, done = position.origin
        if self._pace == 1 and planned == done:
            return batches
        passed, length = planned + math.floor((batches - done) * self._pace), self._planned_epoch_batches(position)
        if length is None:
            return passed
        return length if is_last else min(passed, length)

    def _planned_epoch_batches(self, position: PlanPosition) -> int | None:
        """Return the plan's loader batches in this epoch, or None for a loader without a length."""
        if position.epoch_batches is None:
            return None
        planned, done = position.origin
        if self.ends_with_epochs or not done:
            planned = done = 0
        elif done >= position.epoch_batches:  # one batch more than announced; see `epoch_length`
            return planned + math.ceil(self._pace)
        if self._pace == 1:
            return planned + position.epoch_batches - done
        # A loader that cannot be resumed starts with its first batch again and never reaches the short last one.
        left = (position.epoch_batches - done) * self.granularity
        return planned + math.ceil(min(left, position.epoch_examples or left) / self.plan_granularity)

    def _end_in_epoch(self, position: PlanPosition) -> int | None:
        """Return the number of the plan's loader batches in this epoch after which `max_steps` ends it, or None."""
        if self.max_steps is None:
            return None
        left = max(0, self.max_steps - dict(position.before)[1])
        return batches_until_step(left, self.accumulate, self._planned_epoch_batches(position))
