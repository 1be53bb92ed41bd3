"""Compute a window in micro-batches of another size than its loader batches: the only writer of how it is computed.

Lightning counts, logs, validates and saves by loader batches, and calls `strategy.training_step` and
`strategy.backward` for each. These two are wrapped during training:

* For a loader batch that is only put aside, `training_step` returns a zero, and `backward` does nothing.
* For one with which micro-batches are due, `training_step` computes the first one's loss, and `backward` its gradient
  and then the others, each with a forward and a backward pass. Lightning clears the gradient between the two calls, so
  no backward pass can happen in the first.

Lightning divides every loss by the window's loader batches, so a micro-batch of c of them returns c times its loss, and
a part of one returns its share. The losses that Lightning reports add up to the window's mean loss as they always do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_bsscale.callbacks.checks.options import BatchSizeFn, MergeFn, SplitFn
from lightning_bsscale.callbacks.trainer.batches import CannotRegroup, join, part_of, rows_of
from lightning_bsscale.callbacks.trainer.loaders import batch_size_of
from lightning_bsscale.callbacks.trainer.memory import MemoryForecast, read_memory
from lightning_bsscale.callbacks.trainer.timing import RowTimes
from lightning_bsscale.theory.micro_batches import Group, Layout, due_groups

__all__ = ["MicroBatches"]

WRAPPED = ("training_step", "backward")


class Computed(NamedTuple):
    """What was measured of the largest micro-batches.

    Attributes:
        seconds: seconds of their forward and backward passes
        rows: their rows
        has_room: whether twice their size is expected to fit into the device's memory
    """

    seconds: float
    rows: int
    has_room: bool


class _Held(NamedTuple):
    """A loader batch that was put aside.

    Attributes:
        batch: the loader's batch, on the device
        rows: examples by which it can be split
        size: its examples, as `batch_size_fn` counts them
    """

    batch: Any
    rows: int
    size: float


class _Due(NamedTuple):
    """A micro-batch to compute.

    Attributes:
        batch: its examples
        weight: what its mean loss counts, in loader batches
        size: its examples, as `batch_size_fn` counts them
        rows: its examples, as it can be split
    """

    batch: Any
    weight: float
    size: float
    rows: int


class MicroBatches:
    """Wraps a strategy's `training_step` and `backward`, until `restore`.

    Args:
        trainer: the Trainer
        batch_size_fn: the user's function that counts examples, or None
        merge_fn: joins a list of loader batches; None for batches of tensors in any structure
        split_fn: returns the examples from a first to before a last one of a batch; None as for `merge_fn`

    Attributes:
        size: examples of the micro-batch in progress
        weight: what its mean loss counts in the window, in loader batches
        computed: loader batches computed with the last one, those put aside before included
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        batch_size_fn: BatchSizeFn | None = None,
        merge_fn: MergeFn | None = None,
        split_fn: SplitFn | None = None,
    ) -> None:
        self.size, self.weight, self.computed = 0.0, 1.0, 1.0
        self._trainer = trainer
        self._batch_size_fn = batch_size_fn
        self._merge: MergeFn = join if merge_fn is None else merge_fn
        self._split: SplitFn = part_of if split_fn is None else split_fn
        self._layout = Layout()
        self._loader_size = 0.0
        self._held: list[_Held] = []
        self._due: list[_Due] = []
        self._losses: list[Tensor | None] = []
        self._arguments: tuple[Any, ...] = ()
        self._is_warned = False
        self._times = RowTimes(trainer.strategy.root_device)
        self._forecast = MemoryForecast(partial(read_memory, trainer.strategy.root_device))
        strategy = trainer.strategy
        self._training_step_of_strategy, self._backward_of_strategy = strategy.training_step, strategy.backward
        self._replaced = {name: vars(strategy)[name] for name in WRAPPED if name in vars(strategy)}
        strategy.training_step = self._training_step  # type: ignore[method-assign]
        strategy.backward = self._backward  # type: ignore[method-assign]

    def restore(self) -> None:
        """Give the strategy its own methods back."""
        self._forget()
        for name in WRAPPED:
            vars(self._trainer.strategy).pop(name, None)
        vars(self._trainer.strategy).update(self._replaced)

    def begin_window(self, layout: Layout) -> None:
        """Begin a window; what an unfinished one had put aside is dropped, as Lightning drops its gradient."""
        self._forget()
        if layout.largest != self._layout.largest:
            self._times.take()
        self._layout = layout

    def take_times(self) -> Computed:
        """Return what micro-batches of the largest size took since the last call."""
        largest = self._layout.largest
        seconds, rows = self._times.take()
        return Computed(seconds, rows, largest is None or rows == 0 or self._forecast.has_room(largest))

    def begin_loader_batch(self, size: float) -> None:
        """Begin a loader batch of so many examples."""
        self._loader_size = size

    def _forget(self) -> None:
        self._held, self._due, self._losses, self._arguments = [], [], [], ()

    # ------------------------------------------------------------------ in place of the strategy's methods

    def _training_step(self, batch: Any, *args: Any) -> Any:
        self._arguments, self._losses = args, []
        self._due, are_together = self._take(batch)
        self.computed = math.fsum(due.weight for due in self._due)
        if not self._due:
            return self._zero()
        # Parts that fit together are all computed here, so that the loss that is reported is the whole loader batch's.
        now = self._due if are_together else self._due[:1]
        output: Any = None
        for due in now:
            with self._without_sync(len(self._due) > 1):
                output = self._forward(due)
            self._losses.append(_loss_of(output))
        if len(self._due) == 1 and self._due[0].weight == 1:
            return output
        losses = [loss * due.weight for due, loss in zip(now, self._losses, strict=True) if loss is not None]
        if len(losses) < len(now):
            self._check_none()
        if not losses:
            # After a None Lightning calls no `backward`, where the micro-batches that follow are computed.
            return None if len(now) == len(self._due) else self._zero()
        loss = sum(losses[1:], losses[0])
        return {**output, "loss": loss} if isinstance(output, Mapping) else loss

    def _backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(self._due) == 1:
            self._backward_pass(self._due[0], closure_loss, *args, **kwargs)
        else:
            for number, due in enumerate(self._due, start=1):
                with self._without_sync(number < len(self._due)):
                    loss = self._losses.pop(0) if self._losses else _loss_of(self._forward(due))
                    if loss is None:
                        self._check_none()
                        continue
                    loss = loss * due.weight / self._trainer.accumulate_grad_batches
                    self._backward_pass(due, loss, *args, **kwargs)
        self._due, self._losses = [], []  # a joined batch need not stay in memory until the next one
        return closure_loss

    def _backward_pass(self, due: _Due, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.size, self.weight = due.size, due.weight
        with self._timed(due, due.rows):
            self._backward_of_strategy(loss, *args, **kwargs)

    def _timed(self, due: _Due, rows: int) -> AbstractContextManager[None]:
        # On several devices the last one waits for the others' gradients, whatever its size.
        is_last = self._trainer.world_size > 1 and due is self._due[-1] and not self._is_accumulating
        return nullcontext() if due.rows != self._layout.largest or is_last else self._times.section(rows)

    @property
    def _is_accumulating(self) -> bool:
        return bool(self._trainer.fit_loop._should_accumulate())

    def _zero(self) -> Tensor:
        return torch.zeros((), device=self._trainer.strategy.root_device, requires_grad=True)

    def _forward(self, due: _Due) -> Any:
        module, results = self._trainer.lightning_module, self._trainer._results
        before = module._current_fx_name
        module._current_fx_name = "training_step"  # which `self.log` asks for; Lightning may be within `backward`
        assert results is not None
        # Lightning weights the means that the user logs by the size of this batch.
        batch, results.batch, results.batch_size = results.batch, due.batch, None
        try:
            with self._timed(due, 0):
                return self._training_step_of_strategy(due.batch, *self._arguments)
        finally:
            module._current_fx_name = before
            results.batch, results.batch_size = batch, None

    def _without_sync(self, is_blocked: bool) -> AbstractContextManager[None]:
        strategy = self._trainer.strategy
        if is_blocked and isinstance(strategy, ParallelStrategy):
            return strategy.block_backward_sync()
        return nullcontext()

    def _check_none(self) -> None:
        if self._trainer.world_size > 1:
            raise MisconfigurationException(
                "training_step returned None, which Lightning does not support on several devices. Return a loss, zero "
                "for example."
            )

    # ------------------------------------------------------------------ micro-batches

    def _take(self, batch: Any) -> tuple[list[_Due], bool]:
        """Take a loader batch.

        Returns:
            The micro-batches that are due, and whether they fit together in memory as the loader batch does.
        """
        size, layout = self._loader_size, self._layout
        if layout == Layout():
            return [_Due(batch, 1.0, size, 0)], True
        rows = rows_of(batch)
        is_last = not self._is_accumulating
        groups, _ = due_groups([held.rows for held in self._held], rows, layout, is_last=is_last)
        waiting, due = [*self._held, _Held(batch, rows, size)], []
        for group in groups:
            if group.weight >= 1:
                due += self._joined(waiting[: group.loader_batches])
                waiting = waiting[group.loader_batches :]
        parts = [group for group in groups if group.weight < 1]
        if parts:  # of this loader batch
            due, waiting = due + self._parts(waiting[0], parts), []
        self._held = waiting
        fit_together = self._trainer.world_size == 1 and (layout.split_above is None or rows <= layout.split_above)
        return due, fit_together and len(due) == len(parts)

    def _joined(self, members: list[_Held]) -> list[_Due]:
        weight, size = float(len(members)), sum(held.size for held in members)
        try:
            merged = members[0].batch if len(members) == 1 else self._merge([held.batch for held in members])
            return [_Due(merged, weight, size, sum(held.rows for held in members))]
        except CannotRegroup as problem:
            self._warn_once(problem, "gathered into a larger micro-batch", "merge_fn", "a list of batches")
            return [_Due(held.batch, 1.0, held.size, held.rows) for held in members]

    def _parts(self, member: _Held, groups: list[Group]) -> list[_Due]:
        try:
            parts = [self._split(member.batch, group.start, group.stop) for group in groups]
        except CannotRegroup as problem:
            self._warn_once(problem, "split", "split_fn", "a batch, a first and a last example")
            return [_Due(member.batch, 1.0, member.size, member.rows)]
        due = []
        for part, group in zip(parts, groups, strict=True):
            rows = group.stop - group.start
            size = rows if self._batch_size_fn is None else batch_size_of(part, self._batch_size_fn)
            due.append(_Due(part, group.weight, size, rows))
        return due

    def _warn_once(self, problem: CannotRegroup, verb: str, option: str, arguments: str) -> None:
        if not self._is_warned:
            self._is_warned = True
            rank_zero_warn(
                f"bsscale: the loader's batches cannot be {verb}: {problem}. They are computed as they are. To join or "
                f"split them yourself, pass {option}, a function of {arguments}.",
                category=UserWarning,
            )


def _loss_of(output: Any) -> Tensor | None:
    return output.get("loss") if isinstance(output, Mapping) else output
