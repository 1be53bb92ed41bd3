"""The only writer of a strategy's `training_step` and `backward`: a window in micro-batches of any size.

Lightning counts, logs, validates and saves by loader batches, and calls `strategy.training_step` and
`strategy.backward` for each. These two are wrapped during training:

* For a loader batch that is only put aside, `training_step` returns a zero, and `backward` does nothing.
* For one with which micro-batches are due, `training_step` computes the first one's loss, and `backward` its gradient
  and then the others, each with a forward and a backward pass. Lightning clears the gradient between the two calls, so
  no backward pass can happen in the first.

Lightning divides every loss by the window's loader batches, so a micro-batch of c of them returns c times its loss, and
a part of one returns its share. The losses that Lightning reports add up to the window's mean loss as they always do.

`regrouping.py` makes the micro-batches. `recovery.py` attempts them, and again in smaller ones where memory runs out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from lightning_bsscale.callbacks.checks.options import BatchSizeFn, MergeFn, SplitFn
from lightning_bsscale.callbacks.trainer.batches import rows_of
from lightning_bsscale.callbacks.trainer.out_of_memory import RowLimit
from lightning_bsscale.callbacks.trainer.recovery import Recovery, WindowInProgress
from lightning_bsscale.callbacks.trainer.regrouping import LoaderBatch, MicroBatch, Regrouper
from lightning_bsscale.callbacks.trainer.size_costs import SizeCosts
from lightning_bsscale.callbacks.trainer.traits import is_sharded
from lightning_bsscale.gradients.reduce import all_agree
from lightning_bsscale.theory.micro_batches import Layout, is_due, smallest

__all__ = ["MicroBatches"]

WRAPPED = ("training_step", "backward")


class MicroBatches:
    """Wraps a strategy's `training_step` and `backward`, until `restore`.

    Args:
        trainer: the Trainer
        batch_size_fn: the user's function that counts examples, or None
        merge_fn: joins a list of loader batches; None for batches of tensors in any structure
        split_fn: returns the examples from a first to before a last one of a batch; None as for `merge_fn`
        weighs_counts: whether the loss is a mean over what `batch_size_fn` counts, instead of over examples

    Attributes:
        size: examples of the micro-batch in progress
        weight: what its mean loss counts in the window, in loader batches
        computed: loader batches computed with the last one, those put aside before included
        costs: what micro-batches of about the largest size cost
        limit: most rows in a micro-batch since memory ran out here
        recovery: computes again where memory runs out
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        batch_size_fn: BatchSizeFn | None = None,
        merge_fn: MergeFn | None = None,
        split_fn: SplitFn | None = None,
        *,
        weighs_counts: bool = False,
    ) -> None:
        strategy, device = trainer.strategy, trainer.strategy.root_device
        self.size, self.weight, self.computed = 0.0, 1.0, 1.0
        self.costs = SizeCosts(device)
        self.limit = RowLimit()
        self._regrouper = Regrouper(device, self.limit, batch_size_fn, merge_fn, split_fn, weighs_counts=weighs_counts)
        self.recovery = Recovery(trainer, self.limit, self._regrouper)
        self._trainer = trainer
        self._layout = Layout()
        self._window = WindowInProgress()
        self._loader_size = 0.0
        self._arguments: tuple[Any, ...] = ()  # of `training_step`, beside the batch
        self._zero = torch.zeros((), device=device, requires_grad=True)
        self._training_step_of_strategy, self._backward_of_strategy = strategy.training_step, strategy.backward
        self._replaced = {name: vars(strategy)[name] for name in WRAPPED if name in vars(strategy)}
        strategy.training_step = self._training_step  # type: ignore[method-assign]
        strategy.backward = self._backward  # type: ignore[method-assign]

    def restore(self) -> None:
        """Give the strategy its own methods back."""
        self._window = WindowInProgress()
        for name in WRAPPED:
            vars(self._trainer.strategy).pop(name, None)
        vars(self._trainer.strategy).update(self._replaced)

    def begin_window(self, layout: Layout) -> None:
        """Begin a window; what an unfinished one had put aside is dropped, as Lightning drops its gradient."""
        self._window, self._layout = WindowInProgress(), layout
        self.costs.begin_window(layout.largest)

    def begin_loader_batch(self, size: float) -> None:
        """Begin a loader batch of so many examples."""
        self._loader_size = size

    # ------------------------------------------------------------------ in place of the strategy's methods

    def _training_step(self, batch: Any, *args: Any) -> Any:
        window, self._arguments = self._window, args
        self._receive(batch)
        self.computed = math.fsum(due.weight for due in window.due)
        if not window.due:
            return self._zero
        number = self._number_together()
        while not self.recovery.attempt(partial(self._forward_passes, number), window, number):
            self._divide(number)
            number = 1
        now, output, window.output = window.due[:number], window.output, None
        window.due[:number] = [due._replace(is_logged=True) for due in now]
        if len(window.due) == 1 and window.due[0].weight == 1:
            return output
        losses = [loss * due.weight for due, loss in zip(now, window.losses, strict=True) if loss is not None]
        if len(losses) < len(now):
            self._check_none()
        if not losses:
            # After a None Lightning calls no `backward`, where the micro-batches that follow are computed.
            return None if len(now) == len(window.due) else self._zero
        loss = sum(losses[1:], losses[0])
        return {**output, "loss": loss} if isinstance(output, Mapping) else loss

    def _backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        window = self._window
        if len(window.due) == 1:
            window.losses = [closure_loss]  # which Lightning has divided
        else:
            window.losses = [self._share_of(loss, due) for loss, due in zip(window.losses, window.due, strict=False)]
        while window.due:
            self._regrouper.make_first(window.due)
            number = max(1, len(window.losses))  # those whose forward passes are held together
            if self.recovery.attempt(partial(self._both_passes, *args, **kwargs), window, number):
                self.recovery.keep(window.due.pop(0), window)
            else:
                closure_loss.detach_()  # Lightning holds it, and it would hold the graph
                self._divide(number)
        window.losses = []
        self.limit.warn()
        return closure_loss

    # ------------------------------------------------------------------ what is due

    def _receive(self, batch: Any) -> None:
        """Receive a loader batch, and set what is due with it."""
        window, layout, limit = self._window, self._layout, self.limit.rows
        is_counted = layout != Layout() or self.limit.options.is_allowed
        current = LoaderBatch(batch, rows_of(batch) if is_counted else 0, self._loader_size)
        window.current, window.is_last = current, not self._trainer.fit_loop._should_accumulate()
        window.due, window.losses = [], []
        if limit is not None:
            window.rest_on_host()
        is_whole = layout.gathered == layout.parts == 1
        if is_whole and limit is None and (layout.split_above is None or current.rows <= layout.split_above):
            window.due = [MicroBatch.of_whole([current], batch)]
            return
        window.waiting.append(current)
        if not is_due(len(window.waiting), layout, is_last=window.is_last):
            return
        waiting, window.waiting = window.waiting, []
        window.due = self._regrouper.micro_batches(waiting, layout)
        # Under FSDP each forward pass waits for the other ranks, so all must make as many of them.
        must_agree = self._trainer.world_size > 1 and layout.gathered > 1 and is_sharded(self._trainer)
        if must_agree and not all_agree(len(window.due) == 1, self._trainer.strategy.root_device):
            window.due = [MicroBatch.of_whole([one], one.batch) for one in waiting]

    def _number_together(self) -> int:
        """Return how many forward passes `training_step` makes.

        Parts that fit together are all computed there, so that the loss that is reported is the whole loader batch's.
        """
        window, most = self._window, smallest(self._layout.split_above, self.limit.rows)
        first, current = window.due[0], window.current
        assert current is not None
        is_split = first.members[0] is current and not first.is_whole
        fits = most is None or current.rows <= most
        return len(window.due) if is_split and fits and self._trainer.world_size == 1 else 1

    def _divide(self, number: int) -> None:
        """Make smaller micro-batches of what failed, whose time says nothing."""
        self.costs.discard()
        self.recovery.divide(self._window, number)

    # ------------------------------------------------------------------ passes

    def _forward_passes(self, number: int) -> None:
        window = self._window
        for due in window.due[:number]:
            with self._without_sync(len(window.due) > 1):
                window.output = self._forward(due)
            window.losses.append(_loss_of(window.output))

    def _both_passes(self, *args: Any, **kwargs: Any) -> None:
        window, due = self._window, self._window.due[0]
        with self._without_sync(len(window.due) > 1):
            loss = window.losses.pop(0) if window.losses else self._share_of(_loss_of(self._forward(due)), due)
            if loss is None:
                self._check_none()
                return
            self.recovery.is_adding = True
            self.size, self.weight = due.size, due.weight
            with self._timed(due, due.rows):
                self._backward_of_strategy(loss, *args, **kwargs)

    def _forward(self, due: MicroBatch) -> Any:
        module, results = self._trainer.lightning_module, self._trainer._results
        before = module._current_fx_name
        assert results is not None
        if due.batch is results.batch and before == "training_step":
            with self._timed(due, 0):
                return self._training_step_of_strategy(due.batch, *self._arguments)
        module._current_fx_name = "training_step"  # which `self.log` asks for; Lightning may be within `backward`
        # Lightning weights the means that the user logs by the size of this batch.
        batch, results.batch, results.batch_size = results.batch, due.batch, None
        try:
            with self._timed(due, 0):
                return self._training_step_of_strategy(due.batch, *self._arguments)
        finally:
            module._current_fx_name = before
            results.batch, results.batch_size = batch, None

    def _share_of(self, loss: Tensor | None, due: MicroBatch) -> Tensor | None:
        return None if loss is None else loss * due.weight / self._trainer.accumulate_grad_batches

    def _timed(self, due: MicroBatch, counted: int) -> AbstractContextManager[None]:
        # On several devices the last one waits for the others' gradients, whatever its size.
        if self._trainer.world_size > 1 and due is self._window.due[-1] and self._window.is_last:
            return nullcontext()
        return self.costs.section(due.rows, counted=counted)

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


def _loss_of(output: Any) -> Tensor | None:
    return output.get("loss") if isinstance(output, Mapping) else output
