"""Make micro-batches of loader batches: several joined, or one split into parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities import rank_zero_warn

from lightning_bsscale.callbacks.checks.options import BatchSizeFn, MergeFn, SplitFn
from lightning_bsscale.callbacks.trainer.batches import CannotRegroup, join, part_of
from lightning_bsscale.callbacks.trainer.out_of_memory import RowLimit, free_memory, is_out_of_memory
from lightning_bsscale.theory.micro_batches import Group, Layout, due_groups, regroup, without_empty

__all__ = ["LoaderBatch", "MicroBatch", "Regrouper"]


@dataclass(eq=False)
class LoaderBatch:
    """A loader batch of the window in progress.

    Attributes:
        batch: what the loader yielded
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


class MicroBatch(NamedTuple):
    """Examples that go through one forward and one backward pass.

    Attributes:
        batch: the examples; None until they are taken from its members
        size: its examples, as `batch_size_fn` counts them
        members: the loader batches that it consists of, or the one that it is a part of
        group: which of their rows, and what its mean loss counts
        is_logged: whether an earlier computation of it has logged its values
    """

    batch: Any
    size: float
    members: tuple[LoaderBatch, ...]
    group: Group
    is_logged: bool = False

    @classmethod
    def of_whole(cls, members: list[LoaderBatch], batch: Any = None) -> MicroBatch:
        """Return one of whole loader batches."""
        rows = sum(member.rows for member in members)
        group = Group(len(members), 0, rows, float(len(members)))
        return cls(batch, sum(member.size for member in members), tuple(members), group)

    @property
    def weight(self) -> float:
        """What its mean loss counts, in loader batches."""
        return self.group.weight

    @property
    def rows(self) -> int:
        """Its examples, as it can be split."""
        return self.group.stop - self.group.start

    @property
    def is_whole(self) -> bool:
        """Whether it consists of whole loader batches."""
        return self.group.weight >= 1


class Regrouper:
    """Makes micro-batches of no more rows than the device's memory is known to hold.

    What cannot be joined or split is computed as the loader yields it, and one warning says so.

    Args:
        device: the device that computes
        limit: most rows in a micro-batch
        batch_size_fn: the user's function that counts examples, or None
        merge_fn: joins a list of loader batches; None for batches of tensors in any structure
        split_fn: returns the examples from a first to before a last one of a batch; None as for `merge_fn`
        weighs_counts: whether the loss is a mean over what `batch_size_fn` counts, instead of over examples
    """

    def __init__(
        self,
        device: torch.device,
        limit: RowLimit,
        batch_size_fn: BatchSizeFn | None = None,
        merge_fn: MergeFn | None = None,
        split_fn: SplitFn | None = None,
        *,
        weighs_counts: bool = False,
    ) -> None:
        self._device = device
        self._limit = limit
        self._batch_size_fn = batch_size_fn
        self._merge: MergeFn = join if merge_fn is None else merge_fn
        self._split: SplitFn = part_of if split_fn is None else split_fn
        self._weighs_counts = weighs_counts
        self._has_warned = False

    def micro_batches(self, waiting: list[LoaderBatch], layout: Layout) -> list[MicroBatch]:
        """Divide the loader batches that wait into micro-batches, as the layout and the limit say."""
        counts = [one.size for one in waiting] if self._weighs_counts else None
        made: list[MicroBatch] = []
        parts: list[Group] = []  # of the first of the rest
        rest = list(waiting)
        for group in due_groups([one.rows for one in waiting], layout, counts=counts):
            if group.weight >= 1:
                members, rest = rest[: group.loader_batches], rest[group.loader_batches :]
                made += self._made(MicroBatch.of_whole(members))
                continue
            parts += self._within_limit(group, rest[0].rows)
            if group.stop == rest[0].rows:
                made, parts = made + self._parts(rest.pop(0), parts), []
        return made

    def make_first(self, due: list[MicroBatch]) -> None:
        """Take the examples of the first micro-batch from its members, if it has none."""
        if due[0].batch is None:
            due[:1] = self._made(due[0])

    def _made(self, micro_batch: MicroBatch) -> list[MicroBatch]:
        """Take the examples of a micro-batch from its members, in several micro-batches if it exceeds the limit."""
        members = list(micro_batch.members)
        groups = self._within_limit(micro_batch.group, members[0].rows)
        for member in members:
            member.come_back(self._device)
        if micro_batch.is_whole and len(groups) == 1:
            made = self._joined(members)
        elif len(members) == 1:
            made = self._parts(members[0], groups)
        else:
            made = []
            for group in groups:
                some, members = members[: group.loader_batches], members[group.loader_batches :]
                made += self._made(MicroBatch.of_whole(some))
        return [one._replace(is_logged=micro_batch.is_logged) for one in made]

    def _joined(self, members: list[LoaderBatch]) -> list[MicroBatch]:
        """Join loader batches into one micro-batch; into several if they cannot be joined or memory runs out."""
        if len(members) == 1:
            return [MicroBatch.of_whole(members, members[0].batch)]
        try:
            return [MicroBatch.of_whole(members, self._merge([member.batch for member in members]))]
        except CannotRegroup as problem:
            self._warn_once(problem, "gathered into a larger micro-batch", "merge_fn", "a list of batches")
            return [MicroBatch.of_whole([member], member.batch) for member in members]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not self._limit.options.is_allowed:
                raise
        # Outside of `except`, because the traceback holds what was joined.
        self._limit.lower(sum(member.rows for member in members))
        free_memory()
        half = len(members) // 2
        return self._joined(members[:half]) + self._joined(members[half:])

    def why_indivisible(self, member: LoaderBatch) -> CannotRegroup | None:
        """Return why a loader batch cannot be split; None if it can."""
        try:
            self._split(member.batch, 0, 1)
        except CannotRegroup as problem:
            return problem
        return None

    def _within_limit(self, group: Group, rows: int) -> list[Group]:
        limit = self._limit.rows
        return [group] if limit is None else regroup(group, rows, limit, divides=self._limit.options.divides)

    def _parts(self, member: LoaderBatch, groups: list[Group]) -> list[MicroBatch]:
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
        return [
            MicroBatch(part, size, (member,), group) for part, size, group in zip(parts, sizes, groups, strict=True)
        ]

    def _warn_once(self, problem: CannotRegroup, verb: str, option: str, arguments: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                f"bsscale: the loader's batches cannot be {verb}: {problem}. They are computed as they are. To join or "
                f"split them yourself, pass {option}, a function of {arguments}.",
                category=UserWarning,
            )
