"""Recover where memory ran out: compute in smaller micro-batches what did not fit, and what was lost with it.

A forward pass that failed has changed no gradient, so its examples alone are computed again. A backward pass has added
to some of the gradients, so these are discarded, and all loader batches of the window so far, which are kept until its
step, are computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lightning_bsscale.callbacks.trainer.out_of_memory import (
    LoggedValues,
    RowLimit,
    add_note,
    free_memory,
    is_out_of_memory,
    passed_through,
)
from lightning_bsscale.callbacks.trainer.regrouping import LoaderBatch, MicroBatch, Regrouper

__all__ = ["Recovery", "WindowInProgress"]


@dataclass(eq=False)
class WindowInProgress:
    """How far a window is computed.

    Attributes:
        current: the loader batch in progress, which Lightning holds too
        is_last: whether the optimizer steps after it
        waiting: loader batches that are put aside
        due: micro-batches to compute with this loader batch, in order
        losses: of the first ones of these, whose graphs are held
        output: what `training_step` returned for the last of these
        kept: micro-batches that are computed, and may have to be computed again before the step
    """

    current: LoaderBatch | None = None
    is_last: bool = False
    waiting: list[LoaderBatch] = field(default_factory=list)
    due: list[MicroBatch] = field(default_factory=list)
    losses: list[Tensor | None] = field(default_factory=list)
    output: Any = None
    kept: list[MicroBatch] = field(default_factory=list)

    def compute_again(self, *, also_kept: bool) -> None:
        """Release all graphs and joined batches, so that what is due is made anew, and also what was computed."""
        self.losses, self.output = [], None
        if also_kept:
            self.due, self.kept = self.kept + self.due, []
        self.due = [one._replace(batch=None) for one in self.due]

    def rest_on_host(self) -> None:
        """Move to the host what need not be on the device until it is computed again."""
        for micro_batch in (*reversed(self.kept), *(due for due in self.due if due.batch is None)):
            for member in micro_batch.members:
                if member is not self.current:
                    member.leave()


class Recovery:
    """Attempts micro-batches, and prepares smaller ones where memory did not suffice.

    Args:
        trainer: the Trainer
        limit: most rows in a micro-batch
        regrouper: makes micro-batches

    Attributes:
        is_adding: whether a backward pass has begun in this attempt, which adds to the gradients
        on_discarded: called when the gradients of the window so far are discarded, to be computed again
    """

    def __init__(self, trainer: pl.Trainer, limit: RowLimit, regrouper: Regrouper) -> None:
        self.is_adding = False
        self.on_discarded: Callable[[], None] = lambda: None
        self._trainer = trainer
        self._limit = limit
        self._regrouper = regrouper

    def attempt(self, compute: Callable[[], None], window: WindowInProgress, number: int) -> bool:
        """Compute some of what is due.

        Args:
            compute: computes them
            window: the window in progress
            number: micro-batches whose graphs are held together

        Returns:
            Whether memory sufficed.

        Raises:
            RuntimeError: If nothing smaller can be tried where memory did not suffice, and whatever `compute` raises.
            MemoryError: The same.
        """
        self.is_adding, module = False, self._trainer.lightning_module
        has_forward = self._limit.options.is_allowed and not window.losses
        logged, called_in = LoggedValues(self._trainer) if has_forward else None, module._current_fx_name
        try:
            compute()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            obstacle = self._obstacle(error, window, number)
            if obstacle is not None:
                if obstacle:
                    add_note(error, obstacle)
                raise
            fits = False  # the rest is outside of `except`, because the traceback holds what was computed
        else:
            fits = True
        if logged is not None and (not fits or window.due[0].is_logged):
            logged.restore()
        if not fits:
            module._current_fx_name = called_in  # a hook may have been interrupted
        return fits

    def divide(self, window: WindowInProgress, number: int) -> None:
        """Make smaller micro-batches of what failed, after those whose gradient was lost with it.

        Args:
            window: the window in progress
            number: micro-batches that failed together
        """
        self._limit.lower(sum(due.rows for due in window.due[:number]))
        if self.is_adding:
            for group in self._trainer.optimizers[0].param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
            self.on_discarded()
        elif self._ddp_model is not None:
            # The pass that failed has waited for the other ranks' buffers.
            self._ddp_model.require_forward_param_sync = False
        window.compute_again(also_kept=self.is_adding)
        window.rest_on_host()
        free_memory()
        self._regrouper.make_first(window.due)

    def keep(self, computed: MicroBatch, window: WindowInProgress) -> None:
        """Keep what is computed until the window's step: its loader batches, of which a joined batch is a copy."""
        if not self._limit.options.is_allowed:
            return
        if window.is_last and not window.due:
            window.kept = []
            return
        window.kept.append(computed._replace(batch=None, is_logged=True))
        if self._limit.rows is not None:
            window.rest_on_host()

    def _obstacle(self, error: BaseException, window: WindowInProgress, number: int) -> str | None:
        """Return why nothing smaller can be tried, as a note for the user that may be empty; None if it can."""
        first, options, limit = window.due[0], self._limit.options, self._limit.rows
        is_of_one = number == len(first.members) == 1
        if not options.is_allowed:
            return options.hint
        if number == 1 and first.rows < 2:
            return ""
        if is_of_one and limit is not None and first.rows > limit:
            return "bsscale: a smaller part would hold nothing that batch_size_fn counts."
        if self._ddp_model is not None:
            if self.is_adding and len(window.due) == 1 and window.is_last:
                return (
                    "bsscale: gradients were being exchanged with the other ranks, so this backward pass cannot be "
                    f"repeated. Set max_micro_batch_size to less than {first.rows}."
                )
            if passed_through(error, "_pre_forward") or self._logs_wait_for_ranks:
                return ""
        if not is_of_one:
            return None
        if not options.divides:
            return options.hint
        problem = self._regrouper.why_indivisible(first.members[0])
        if problem is None:
            return None
        return f"bsscale: the batch cannot be computed in smaller parts: {problem}. Pass split_fn."

    @property
    def _ddp_model(self) -> DistributedDataParallel | None:
        model = self._trainer.strategy.model
        return model if isinstance(model, DistributedDataParallel) else None

    @property
    def _logs_wait_for_ranks(self) -> bool:
        # The other ranks would not log as often as this one.
        assert self._trainer._results is not None
        return any(value.meta.on_step and value.meta.sync.should for value in self._trainer._results.values())
