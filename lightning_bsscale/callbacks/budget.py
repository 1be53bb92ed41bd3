"""The user's plan and its present position, held together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning_bsscale.theory.plan import PlanPosition, UserPlan
from lightning_bsscale.theory.stored import as_plain, from_plain


class Budget:
    """Keep the position in a `UserPlan`; the methods are the plan's, for this position."""

    def __init__(
        self, plan: UserPlan, *, epoch_batches: int | None, epoch_examples: int | None, frequencies: Iterable[int] = ()
    ) -> None:
        """Begin before the first micro-batch."""
        self._plan = plan
        self._loaders: dict[str, Any] = {
            "epoch_batches": epoch_batches,
            "epoch_examples": epoch_examples,
            "frequencies": tuple(frequencies),
        }
        self._position = plan.begin(**self._loaders)

    @property
    def came(self) -> int:
        """Loader batches of this epoch up to the last window's end."""
        return self._position.micro_batches

    @property
    def epoch_batches(self) -> int | None:
        """Loader batches that Lightning announced for this epoch."""
        return self._position.epoch_batches

    @property
    def is_at_epoch_end(self) -> bool:
        """Whether the last window was an epoch's last one."""
        return self._position.is_last

    def planned_steps(self, frequency: int = 1) -> int:
        """Return the steps of the plan by now."""
        return self._plan.steps(self._position, frequency)

    def planned_steps_after(self, ready: int, *, is_last: bool) -> int:
        """Return the steps of the plan when the window in progress ends."""
        return self._plan.steps_after(self._position, ready, is_last=is_last)

    def step_of_scheduler_step(self, frequency: int, number: int) -> int:
        """Return the step of the plan at which a scheduler is stepped."""
        return self._plan.step_of_scheduler_step(self._position, frequency, number)

    def epoch_length(self, batch_idx: int) -> int | None:
        """Return how many loader batches to expect in this epoch."""
        return self._plan.epoch_length(self._position, batch_idx)

    def batches_left(self, batch_idx: int, examples_seen: float) -> int | None:
        """Return how many loader batches are left."""
        return self._plan.batches_left(self._position, batch_idx, examples_seen)

    def is_used_up(self, examples_seen: float) -> bool:
        """Return whether training should end here."""
        return self._plan.is_used_up(self._position, examples_seen)

    def count_for(self, frequencies: Iterable[int]) -> None:
        """Count for more schedulers from here on."""
        self._position = self._plan.count_for(self._position, frequencies)

    def start_epoch(
        self,
        epoch_batches: int | None,
        came: int,
        epoch_examples: int | None = None,
        *,
        first: int = 0,
        is_repeated: bool = False,
    ) -> None:
        """Begin an epoch."""
        self._position = self._plan.start_epoch(
            self._position,
            epoch_batches,
            micro_batches=came,
            epoch_examples=epoch_examples,
            first=first,
            is_repeated=is_repeated,
        )

    def advance(self, ready: int, *, is_last: bool) -> None:
        """Go to a window's end."""
        self._position = self._plan.advance(self._position, ready, is_last=is_last)

    def begin_at(self, batch_idx: int, steps: int) -> None:
        """Begin within a training that has run without the scaler."""
        self._position = self._plan.begin_at(self._position, batch_idx, steps)

    def state(self) -> dict[str, Any]:
        """Return the position, and the steps that the plan has made."""
        return as_plain(self._position) | {"planned": self.planned_steps()}

    def load(self, state: dict[str, Any]) -> None:
        """Resume from what `state` returned."""
        self._position = self._plan.resumed(from_plain(PlanPosition, state), **self._loaders)
