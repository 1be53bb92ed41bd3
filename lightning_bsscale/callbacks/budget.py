"""The user's own plan, counted in micro-batches: where it would be by now, and where it ends."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from lightning_bsscale.theory.windows import batches_until_step, planned_steps


class Budget:
    """Counts the plan's steps by the position in the epoch, so that ragged ends count as the plan would count them.

    The plan: `accumulate` micro-batches a step, and one step at an epoch's ragged end. It ends with `total_examples`
    where the user gave them, else with `max_steps` of the plan's steps; an end by `max_epochs` is Lightning's own.
    """

    def __init__(
        self,
        *,
        accumulate: int,
        max_steps: int | None,
        total_examples: float | None,
        granularity: float,
        epoch_batches: int | None,
        frequencies: Iterable[int] = (),
    ) -> None:
        """Begins at the plan's first micro-batch.

        Args:
            accumulate: micro-batches of one step of the plan
            max_steps: steps of the plan, or None
            total_examples: the budget that the user gave, or None
            granularity: examples of one micro-batch on all devices
            epoch_batches: micro-batches in an epoch, or None for a loader without a length
            frequencies: the schedulers' own frequencies, in micro-batches as Lightning counts them
        """
        self.epoch_batches = epoch_batches
        self._expected = epoch_batches
        self._accumulate = accumulate
        self._max_steps = max_steps
        self._total_examples = total_examples
        self._granularity = granularity
        self._before = {frequency: 0 for frequency in (1, *frequencies)}
        self._ready = 0
        self._is_last = False

    def planned_steps(self, frequency: int = 1) -> int:
        """Steps that the plan has made by now.

        Args:
            frequency: count only the steps at which Lightning would step a scheduler of this frequency

        Returns:
            the number over all epochs
        """
        here = planned_steps(self._ready, self._accumulate, is_last=self._is_last, frequency=frequency)
        return self._before[frequency] + here

    def epoch_length(self, batch_idx: int) -> int | None:
        """Micro-batches to expect in this epoch.

        Args:
            batch_idx: index of the next one

        Returns:
            the announced number, or fewer where the last epoch ended sooner; None for a loader without a length
        """
        expected = self._expected
        return expected if expected is not None and batch_idx < expected else self.epoch_batches

    def start_epoch(self, epoch_batches: int | None, came: int) -> None:
        """An epoch begins, at its first micro-batch.

        Args:
            epoch_batches: micro-batches that Lightning announces, or None
            came: micro-batches that came in the last epoch; 0 before the first
        """
        self.epoch_batches = epoch_batches
        self._expected = epoch_batches if not came or epoch_batches is None else min(came, epoch_batches)
        self._before = {frequency: self.planned_steps(frequency) for frequency in self._before}
        self._ready = 0
        self._is_last = False

    def _end_in_epoch(self) -> int | None:
        # Micro-batches of this epoch at which max_steps ends the plan.
        if self._max_steps is None:
            return None
        return batches_until_step(self._max_steps - self._before[1], self._accumulate, self.epoch_batches)

    def advance(self, ready: int, *, is_last: bool) -> None:
        """A window has ended.

        Args:
            ready: micro-batches of this epoch so far
            is_last: whether the epoch ends here
        """
        end = self._end_in_epoch()
        # Past its end a plan makes no steps: only an explicit budget goes further, and schedulers stay at their end.
        self._ready = ready if end is None else min(ready, end)
        self._is_last = is_last and self._ready == ready

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
            left = end - batch_idx
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

    def state(self) -> dict[str, Any]:
        """What cannot be recomputed.

        Returns:
            numbers and lists
        """
        return {"before": [[f, n] for f, n in self._before.items()], "ready": self._ready, "is_last": self._is_last}

    def load(self, state: dict[str, Any]) -> None:
        """Takes up where `state` left off.

        Args:
            state: what `state` gave
        """
        self._before.update({frequency: steps for frequency, steps in state["before"]})
        self._ready = state["ready"]
        self._is_last = state["is_last"]
