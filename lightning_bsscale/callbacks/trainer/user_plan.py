"""The user's plan, read from the Trainer once: budget, warmup, and limits of the batch size."""

from __future__ import annotations

from dataclasses import dataclass

import lightning.pytorch as pl

from lightning_bsscale.callbacks.checks import cautions, preflight
from lightning_bsscale.callbacks.checks.options import RunOptions
from lightning_bsscale.callbacks.trainer.loaders import Loaders, examples_in_plan
from lightning_bsscale.theory.plan import UserPlan
from lightning_bsscale.theory.policies import Limits
from lightning_bsscale.theory.shares import warmup_in_examples
from lightning_bsscale.theory.start import Start
from lightning_bsscale.theory.windows import default_max_batch_size

__all__ = ["ReadPlan", "read_plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """The user's plan.

    Attributes:
        steps: the plan's steps
        total_examples: the budget, or None if unknown
        warmup_examples: examples before the batch may grow
        limits: the possible batch sizes
    """

    steps: UserPlan
    total_examples: float | None
    warmup_examples: float
    limits: Limits


def read_plan(trainer: pl.Trainer, options: RunOptions, loaders: Loaders, first: Start, now: Start) -> ReadPlan:
    """Read the plan, and raise MisconfigurationException for what cannot be planned.

    Args:
        trainer: the Trainer, before its first loader batch
        options: the callback's options
        loaders: the loaders of all ranks
        first: the start whose steps `max_steps` counts
        now: this start

    Returns:
        The plan.
    """
    user_total, size = options.total_examples, now.granularity
    max_steps = trainer.max_steps if trainer.max_steps >= 0 else None
    # An explicit budget replaces max_steps, which then only limits Lightning's optimizer steps.
    planned = examples_in_plan(
        trainer, loaders, size, with_max_steps=user_total is None, plan=(first.accumulate, first.granularity)
    )
    total = min((examples for examples in (planned, user_total) if examples is not None), default=None)
    epoch_examples = loaders.epoch_examples(size)
    if options.decides:
        preflight.check_budget(total, options.shares())
        preflight.check_plan(trainer, options, total, first.batch_size)
        if user_total is not None or max_steps is not None:
            preflight.check_min_epochs(trainer, total, epoch_examples)
    cautions.warn_short_plan(trainer, options, total, first.batch_size, size)
    return ReadPlan(
        steps=UserPlan(
            accumulate=first.accumulate,
            max_steps=max_steps,
            total_examples=total if user_total is not None else None,
            granularity=size,
            plan_granularity=first.granularity,
            ends_with_epochs=_ends_with_epochs(trainer, epoch_examples, total),
        ),
        total_examples=total,
        warmup_examples=warmup_in_examples(options.warmup, total),
        limits=_limits(options, first, size, max_steps, epoch_examples, total),
    )


def _limits(
    options: RunOptions,
    first: Start,
    size: int,
    max_steps: int | None,
    epoch_examples: float | None,
    total: float | None,
) -> Limits:
    smallest, largest = -(-first.batch_size // size) * size, options.max_batch_size
    if largest is None:
        largest = default_max_batch_size(
            start_batch=smallest, granularity=size, epoch_examples=epoch_examples, total_examples=total
        )
    else:
        preflight.check_maximum(largest, smallest)
    # Below the start, steps would outnumber the plan's, and max_steps would end the run before its budget.
    smallest = smallest if max_steps is not None else size
    return Limits(granularity=size, min_batch_size=smallest, max_batch_size=largest)


def _ends_with_epochs(trainer: pl.Trainer, epoch_examples: float | None, total: float | None) -> bool:
    if trainer.max_epochs is None or trainer.max_epochs < 0:
        return False
    return total is None or epoch_examples is None or trainer.max_epochs * epoch_examples <= total
