"""The plan of the branches: which batches, each of how many loader batches, over how many examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_bsscale.callbacks.trainer.batches import CannotRegroup, part_of, rows_of
from lightning_bsscale.critical_batch.probe import ProbeError
from lightning_bsscale.theory.branching import shares_needed
from lightning_bsscale.theory.checks import check_number

__all__ = ["Branch", "BranchPlan", "plan_branches"]

STEPS_OF_LARGEST = 8


@dataclass(frozen=True, slots=True)
class Branch:
    """One batch: how many loader batches a step has, and whether each is computed as two halves, a step each."""

    batch_size: float
    accumulate: int
    halves: bool = False


@dataclass(frozen=True, slots=True)
class BranchPlan:
    """All branches, over the same examples.

    Attributes:
        branches: From the smallest batch.
        loader_batches: Loader batches of each branch.
        rows: Examples of a loader batch.
        batch_size: The batch at the branching point, in examples.
    """

    branches: tuple[Branch, ...]
    loader_batches: int
    rows: int
    batch_size: float

    @property
    def examples(self) -> int:
        """Examples of each branch."""
        return self.loader_batches * self.rows

    @property
    def looks(self) -> list[int]:
        """Steps of the smallest batch after which it is compared with each larger one."""
        steps = self.examples / self.branches[0].batch_size
        return [max(1, round(share * steps)) for share in shares_needed([one.batch_size for one in self.branches])]


def plan_branches(
    module: pl.LightningModule, first: Any, accumulate: int, multiples: Sequence[float], examples: int | None
) -> tuple[BranchPlan, list[str]]:
    """Plan the branches.

    Args:
        module: Says whether a loader batch can be split.
        first: The first loader batch.
        accumulate: Loader batches of a step at the branching point.
        multiples: Batches relative to that, ascending.
        examples: Examples of each branch; None for 8 steps of the largest batch.

    Returns:
        The plan, and what its reader must know.

    Raises:
        ProbeError: If a multiple gives no batch.
    """
    rows, notes = rows_of(first), []
    wanted = [check_number("multiples", multiple, above=0) for multiple in multiples]
    if len(wanted) < 2 or sorted(set(wanted)) != wanted:
        raise ProbeError(f"multiples must be at least two, each larger than the one before, got {list(multiples)}")
    base = accumulate
    if wanted[0] * base == 0.5 and not _can_split(module, first, rows):
        base = 2 * accumulate
        notes.append(
            "A loader batch cannot be split into two steps here, so it is taken as the first multiple, "
            f"{wanted[0]:g}: the others follow from it."
        )
    branches = []
    for multiple in wanted:
        steps = multiple * base
        if steps != round(steps) and steps != 0.5:
            raise ProbeError(
                f"multiples must give whole numbers of loader batches (or half of one), but {multiple:g} x {base} "
                "is not: choose others, such as 0.5 1 2 4 8"
            )
        branches.append(Branch(steps * rows, max(1, round(steps)), halves=steps == 0.5))
    longest = branches[-1].accumulate
    windows = STEPS_OF_LARGEST if examples is None else max(1, math.ceil(examples / rows / longest))
    return BranchPlan(tuple(branches), windows * longest, rows, float(accumulate * rows)), notes


def _can_split(module: pl.LightningModule, batch: Any, rows: int) -> bool:
    if rows < 2 or any(isinstance(part, _BatchNorm) for part in module.modules()):
        return False
    try:
        part_of(batch, 0, rows // 2)
    except CannotRegroup:
        return False
    return True
