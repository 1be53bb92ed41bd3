"""Compute a window in micro-batches of another size than its loader batches: the only writer of how it is computed.

Lightning counts, logs, validates and saves by loader batches, and calls `strategy.training_step` and
`strategy.backward` for each. These two are wrapped during training:

* For a loader batch that is only put aside, `training_step` returns a zero, and `backward` does nothing.
* For one with which micro-batches are due, `training_step` computes the first one's loss, and `backward` its gradient
  and then the others, each with a forward and a backward pass. Lightning clears the gradient between the two calls, so
  no backward pass can happen in the first.

Lightning divides every loss by the window's loader batches, so a micro-batch of c of them returns c times its loss, and
a part of one returns its share. The losses that Lightning reports add up to the window's mean loss as they always do.

Where memory runs out, smaller micro-batches are tried. A forward pass that failed has changed no gradient, so its
examples alone are computed again. A backward pass has added to some of the gradients, so these are discarded, and all
loader batches of the window so far, which are kept until its step, are computed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lightning_bsscale.callbacks.checks.options import BatchSizeFn, MergeFn, SplitFn
from lightning_bsscale.callbacks.checks.preflight import is_sharded
from lightning_bsscale.callbacks.trainer.batches import CannotRegroup, join, part_of, rows_of
from lightning_bsscale.callbacks.trainer.memory import MemoryForecast, read_memory
from lightning_bsscale.callbacks.trainer.out_of_memory import (
    LoggedValues,
    Recovery,
    add_note,
    free_memory,
    is_out_of_memory,
    passed_through,
    warn_smaller,
)
from lightning_bsscale.callbacks.trainer.timing import RowTimes
from lightning_bsscale.gradients.reduce import all_agree
from lightning_bsscale.theory.micro_batches import (
    Group,
    Layout,
    due_groups,
    is_due,
    regroup,
    smaller_size,
    smallest,
    without_empty,
)

__all__ = ["MicroBatches"]

WRAPPED = ("training_step", "backward")


class Computed(NamedTuple):
    """What was measured of micro-batches of about the largest size.

    Attributes:
        seconds: seconds of their forward and backward passes
        rows: their rows
        has_room: whether twice their size is expected to fit into the device's memory
    """

    seconds: float
    rows: int
    has_room: bool


@dataclass(eq=False)
class _Held:
    """A loader batch that was put aside, or that is kept until the step.

    Attributes:
        batch: the loader's batch
        rows: examples by which it can be split
        size: its examples, as `batch_size_fn` counts them
        is_on_host: whether it has left the device, to come back if it is computed again
    """

    batch: Any
    rows: int
    size: float
    is_on_host: bool = False

    def leave(self) -> None:
        """Leave the device."""
        if not self.is_on_host:
            self.batch, self.is_on_host = move_data_to_device(self.batch, torch.device("cpu")), True

    def come_back(self, device: torch.device) -> None:
        """Return to the device."""
        if self.is_on_host:
            self.batch, self.is_on_host = move_data_to_device(self.batch, device), False


class _Due(NamedTuple):
    """A micro-batch to compute.

    Attributes:
        batch: its examples; `_UNMADE` if they are to be taken from its members first
        size: its examples, as `batch_size_fn` counts them
        members: the loader batches that it consists of, or the one that it is a part of
        group: which of their rows, and what its mean loss counts
        is_logged: whether an earlier computation of it has logged its values
    """

    batch: Any
    size: float
    members: tuple[_Held, ...]
    group: Group
    is_logged: bool = False

    @property
    def weight(self) -> float:
        """What its mean loss counts, in loader batches."""
        return self.group.weight

    @property
    def rows(self) -> int:
        """Its examples, as it can be split."""
        return self.group.stop - self.group.start

    def unmade(self, *, is_logged: bool) -> _Due:
        """Return it without its examples, of which a joined batch holds a copy."""
        return self._replace(batch=_UNMADE, is_logged=is_logged)


_UNMADE = object()


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
        recovery: whether smaller micro-batches are tried where memory runs out
        row_limit: most rows in a micro-batch since memory ran out here; None if it did not
        new_row_limit: the same, until somebody sets it to None
        on_discarded: called when the gradients of the window so far are discarded, to be computed again
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
        self.size, self.weight, self.computed = 0.0, 1.0, 1.0
        self.recovery = Recovery()
        self.row_limit: int | None = None
        self.new_row_limit: int | None = None
        self.on_discarded: Callable[[], None] = lambda: None
        self._trainer = trainer
        self._batch_size_fn = batch_size_fn
        self._weighs_counts = weighs_counts
        self._merge: MergeFn = join if merge_fn is None else merge_fn
        self._split: SplitFn = part_of if split_fn is None else split_fn
        self._layout = Layout()
        self._loader_size = 0.0
        self._held: list[_Held] = []
        self._due: list[_Due] = []
        self._kept: list[_Due] = []  # computed since the window's start
        self._current = _Held(None, 0, 0.0)  # which Lightning holds too
        self._losses: list[Tensor | None] = []
        self._output: Any = None
        self._is_adding = False  # whether a backward pass is in progress
        self._did_not_fit = 0  # rows, until that is said
        self._arguments: tuple[Any, ...] = ()
        self._is_warned = False
        self._times = RowTimes(trainer.strategy.root_device)
        self._timed_rows = 0
        self._zero = torch.zeros((), device=trainer.strategy.root_device, requires_grad=True)
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
            self._timed_rows = 0
        self._layout = layout

    def take_times(self) -> Computed:
        """Return what micro-batches of about the largest size took since the last call."""
        largest = self._layout.largest
        seconds, rows = self._times.take()
        has_room = largest is None or not rows or self._forecast.has_room(2 * largest, computed=self._timed_rows)
        return Computed(seconds, rows, has_room)

    def begin_loader_batch(self, size: float) -> None:
        """Begin a loader batch of so many examples."""
        self._loader_size = size

    def _forget(self) -> None:
        self._held, self._due, self._kept, self._losses, self._output, self._arguments = [], [], [], [], None, ()
        self._current = _Held(None, 0, 0.0)

    # ------------------------------------------------------------------ in place of the strategy's methods

    def _training_step(self, batch: Any, *args: Any) -> Any:
        self._arguments, self._losses = args, []
        self._due, are_together = self._take(batch)
        self.computed = math.fsum(due.weight for due in self._due)
        if not self._due:
            return self._zero
        # Parts that fit together are all computed here, so that the loss that is reported is the whole loader batch's.
        number = len(self._due) if are_together else 1
        while not self._fits(number, self._forward_passes, number):
            self._begin_again(number)
            number = 1
        now, output, self._output = self._due[:number], self._output, None
        self._due[:number] = [due._replace(is_logged=True) for due in now]
        if len(self._due) == 1 and self._due[0].weight == 1:
            return output
        losses = [loss * due.weight for due, loss in zip(now, self._losses, strict=True) if loss is not None]
        if len(losses) < len(now):
            self._check_none()
        if not losses:
            # After a None Lightning calls no `backward`, where the micro-batches that follow are computed.
            return None if len(now) == len(self._due) else self._zero
        loss = sum(losses[1:], losses[0])
        return {**output, "loss": loss} if isinstance(output, Mapping) else loss

    def _forward_passes(self, number: int) -> None:
        for due in self._due[:number]:
            with self._without_sync(len(self._due) > 1):
                self._output = self._forward(due)
            self._losses.append(_loss_of(self._output))

    def _backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(self._due) == 1:
            self._losses = [closure_loss]  # which Lightning has divided
        else:
            self._losses = [self._share_of(loss, due) for loss, due in zip(self._losses, self._due, strict=False)]
        while self._due:
            self._make_first()
            number = max(1, len(self._losses))  # those whose forward passes are held together
            if self._fits(number, self._both_passes, *args, **kwargs):
                computed = self._due.pop(0)
                if self._due or self._is_accumulating:
                    self._keep(computed)
            else:
                closure_loss.detach_()  # Lightning holds it, and it would hold the graph
                self._begin_again(number)
        self._losses = []
        if self._kept and not self._is_accumulating:
            self._kept = []
        if self._did_not_fit and self.row_limit is not None:
            warn_smaller(self._did_not_fit, self.row_limit)
            self._did_not_fit = 0
        return closure_loss

    def _both_passes(self, *args: Any, **kwargs: Any) -> None:
        due = self._due[0]
        with self._without_sync(len(self._due) > 1):
            loss = self._losses.pop(0) if self._losses else self._share_of(_loss_of(self._forward(due)), due)
            if loss is None:
                self._check_none()
                return
            self._is_adding = True
            self._backward_pass(due, loss, *args, **kwargs)

    def _share_of(self, loss: Tensor | None, due: _Due) -> Tensor | None:
        return None if loss is None else loss * due.weight / self._trainer.accumulate_grad_batches

    def _backward_pass(self, due: _Due, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.size, self.weight = due.size, due.weight
        with self._timed(due, due.rows):
            self._backward_of_strategy(loss, *args, **kwargs)

    def _timed(self, due: _Due, rows: int) -> AbstractContextManager[None]:
        # Sizes are as equal as the window allows, so that the largest one is rarely met exactly.
        if self._layout.largest is None or not 0.75 * self._layout.largest <= due.rows <= self._layout.largest:
            return nullcontext()
        # On several devices the last one waits for the others' gradients, whatever its size.
        is_last = self._trainer.world_size > 1 and due is self._due[-1] and not self._is_accumulating
        if is_last:
            return nullcontext()
        self._timed_rows = max(self._timed_rows, due.rows)
        return self._times.section(rows)

    @property
    def _is_sharded(self) -> bool:
        return self._trainer.world_size > 1 and is_sharded(self._trainer)

    @property
    def _is_accumulating(self) -> bool:
        return bool(self._trainer.fit_loop._should_accumulate())

    def _forward(self, due: _Due) -> Any:
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
        layout, limit = self._layout, self.row_limit
        rows = rows_of(batch) if layout != Layout() or self.recovery.is_allowed else 0
        self._current = held = _Held(batch, rows, self._loader_size)
        self._leave_device()
        is_whole = layout.gathered == layout.parts == 1 and (layout.split_above is None or rows <= layout.split_above)
        if is_whole and limit is None:
            return [_Due(batch, held.size, (held,), Group(1, 0, rows, 1.0))], True
        self._held.append(held)
        is_last = not self._is_accumulating
        if not is_due(len(self._held), layout, is_last=is_last):
            return [], False
        waiting, self._held = self._held, []
        groups = due_groups(
            [one.rows for one in waiting],
            layout,
            counts=[one.size for one in waiting] if self._weighs_counts else None,
        )
        due, members, parts = [], list(waiting), []
        for group in groups:
            if group.weight >= 1:
                due += self._made(_whole(members[: group.loader_batches]))
                members = members[group.loader_batches :]
                continue
            parts += regroup(group, members[0].rows, limit or members[0].rows, divides=self.recovery.divides)
            if group.stop == members[0].rows:
                due, parts = due + self._parts(members.pop(0), parts), []
        device = self._trainer.strategy.root_device
        if self._is_sharded and layout.gathered > 1 and not all_agree(len(due) == 1, device):
            # Each forward pass waits for the other ranks, so all must make as many of them.
            due = [one for held in waiting for one in self._joined([held])]
        most = smallest(layout.split_above, limit)
        is_whole_batch = len(waiting) == 1 and due[0].weight < 1
        return due, is_whole_batch and self._trainer.world_size == 1 and (most is None or rows <= most)

    def _make_first(self) -> None:
        """Take the examples of the next micro-batch from its members, in smaller ones if it exceeds the limit."""
        if self._due and self._due[0].batch is _UNMADE:
            self._due[:1] = self._made(self._due[0])

    def _made(self, due: _Due) -> list[_Due]:
        limit, divides = self.row_limit or due.rows, self.recovery.divides
        groups, members = regroup(due.group, due.members[0].rows, limit, divides=divides), list(due.members)
        for held in members:
            held.come_back(self._trainer.strategy.root_device)
        made = []
        if due.weight < 1 or len(groups) > 1 == len(members):
            made = self._parts(members[0], groups)
        else:
            for group in groups:
                some, members = members[: group.loader_batches], members[group.loader_batches :]
                made += self._made(_whole(some)) if len(groups) > 1 else self._joined(some)
        return [one._replace(is_logged=due.is_logged) for one in made]

    def _joined(self, members: list[_Held]) -> list[_Due]:
        whole = _whole(members)
        try:
            return [whole._replace(batch=members[0].batch if len(members) == 1 else self._merge_batches(members))]
        except CannotRegroup as problem:
            self._warn_once(problem, "gathered into a larger micro-batch", "merge_fn", "a list of batches")
            return [one for held in members for one in self._joined([held])]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not self.recovery.is_allowed:
                raise
        self._lower_limit(whole.rows)
        free_memory()
        half = len(members) // 2
        return self._joined(members[:half]) + self._joined(members[half:])

    def _merge_batches(self, members: list[_Held]) -> Any:
        return self._merge([held.batch for held in members])

    def _parts(self, member: _Held, groups: list[Group]) -> list[_Due]:
        try:
            parts = [self._split(member.batch, group.start, group.stop) for group in groups]
        except CannotRegroup as problem:
            self._warn_once(problem, "split", "split_fn", "a batch, a first and a last example")
            return self._joined([member])
        rows = [group.stop - group.start for group in groups]
        sizes = rows if self._batch_size_fn is None else [int(self._batch_size_fn(part)) for part in parts]
        if len(groups) > 1 and min(sizes) < 1:
            fewer = without_empty(groups, sizes)
            is_whole = fewer[0].stop - fewer[0].start == member.rows
            return self._joined([member]) if is_whole else self._parts(member, fewer)
        if self._weighs_counts:
            groups = [group._replace(weight=size / member.size) for group, size in zip(groups, sizes, strict=True)]
        return [_Due(part, size, (member,), group) for part, size, group in zip(parts, sizes, groups, strict=True)]

    def _warn_once(self, problem: CannotRegroup, verb: str, option: str, arguments: str) -> None:
        if not self._is_warned:
            self._is_warned = True
            rank_zero_warn(
                f"bsscale: the loader's batches cannot be {verb}: {problem}. They are computed as they are. To join or "
                f"split them yourself, pass {option}, a function of {arguments}.",
                category=UserWarning,
            )

    # ------------------------------------------------------------------ out of memory

    def _fits(self, number: int, compute: Callable[..., None], *args: Any, **kwargs: Any) -> bool:
        """Compute the first of what is due; return whether memory sufficed. Where nothing can be done, raise."""
        self._is_adding = False
        logged = LoggedValues(self._trainer) if self.recovery.is_allowed and not self._losses else None
        called_in = self._trainer.lightning_module._current_fx_name
        try:
            compute(*args, **kwargs)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not self._can_begin_again(error, number):
                raise
            fits = False  # the rest is outside of `except`, because the traceback holds what was computed
        else:
            fits = True
        if logged is not None and (not fits or self._due[0].is_logged):
            logged.restore()
        if not fits:
            self._trainer.lightning_module._current_fx_name = called_in  # a hook may have been interrupted
        return fits

    def _can_begin_again(self, error: BaseException, number: int) -> bool:
        """Return whether a smaller micro-batch can be tried; if not, add to the error what would allow it."""
        can, hint = self._prospect(error, number)
        if hint:
            add_note(error, hint)
        return can

    def _prospect(self, error: BaseException, number: int) -> tuple[bool, str]:
        first = self._due[0]
        if not self.recovery.is_allowed:
            return False, self.recovery.hint
        if number == 1 and first.rows < 2:
            return False, ""
        if number == len(first.members) == 1 and self.row_limit is not None and first.rows > self.row_limit:
            return False, "bsscale: a smaller part would hold nothing that batch_size_fn counts."
        if self._ddp_models:
            if self._is_adding and len(self._due) == 1 and not self._is_accumulating:
                return False, (
                    "bsscale: gradients were being exchanged with the other ranks, so this backward pass cannot be "
                    f"repeated. Set max_micro_batch_size to less than {first.rows}."
                )
            if passed_through(error, "_pre_forward") or self._logs_wait_for_ranks:
                return False, ""
        return self._can_split(first.members[0]) if number == len(first.members) == 1 else (True, "")

    def _can_split(self, member: _Held) -> tuple[bool, str]:
        if not self.recovery.divides:
            return False, self.recovery.hint
        try:
            self._split(member.batch, 0, 1)
        except CannotRegroup as problem:
            return False, f"bsscale: the batch cannot be computed in smaller parts: {problem}. Pass split_fn."
        return True, ""

    @property
    def _ddp_models(self) -> list[DistributedDataParallel]:
        model = self._trainer.strategy.model
        return [model] if isinstance(model, DistributedDataParallel) else []

    @property
    def _logs_wait_for_ranks(self) -> bool:
        # The other ranks would not log as often as this one.
        assert self._trainer._results is not None
        return any(value.meta.on_step and value.meta.sync.should for value in self._trainer._results.values())

    def _begin_again(self, number: int) -> None:
        """Prepare what is due to be computed in smaller micro-batches, and also what was, if its gradient is lost."""
        self._losses, self._output = [], None
        self._lower_limit(sum(due.rows for due in self._due[:number]))
        if self._is_adding:
            for group in self._trainer.optimizers[0].param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
            self._due, self._kept = [*self._kept, *self._due], []
            self.on_discarded()
        else:
            for model in self._ddp_models:
                model.require_forward_param_sync = False  # the pass that failed has waited for the ranks' buffers
        self._due = [due.unmade(is_logged=due.is_logged) for due in self._due]
        self._times.take()
        self._leave_device()
        free_memory()
        self._make_first()

    def _lower_limit(self, rows: int) -> None:
        self.row_limit = self.new_row_limit = smallest(self.row_limit, smaller_size(rows))
        self._did_not_fit = max(self._did_not_fit, rows)

    def _keep(self, due: _Due) -> None:
        if self.recovery.is_allowed:
            self._kept.append(due.unmade(is_logged=True))
            if self.row_limit is not None and due.members[0] is not self._current:
                self._leave_device()

    def _leave_device(self) -> None:
        """Once memory has run out, what is kept need not be on the device."""
        if self.row_limit is None:
            return
        for due in (*reversed(self._kept), *(due for due in self._due if due.batch is _UNMADE)):
            for held in due.members:
                if held is not self._current:
                    held.leave()


def _whole(members: list[_Held]) -> _Due:
    rows = sum(held.rows for held in members)
    group = Group(len(members), 0, rows, float(len(members)))
    return _Due(_UNMADE, sum(held.size for held in members), tuple(members), group)


def _loss_of(output: Any) -> Tensor | None:
    return output.get("loss") if isinstance(output, Mapping) else output
