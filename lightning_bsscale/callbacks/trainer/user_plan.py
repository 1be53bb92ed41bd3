"""The user's plan, read from the Trainer once: how many examples, how long the warmup, between which batches."""

from __future__ import annotations

from dataclasses import dataclass

import lightning.pytorch as pl

from lightning_bsscale.callbacks.budget import Budget
from lightning_bsscale.callbacks.checks import preflight
from lightning_bsscale.callbacks.checks.options import ScalerOptions
from lightning_bsscale.callbacks.state.resume import Start
from lightning_bsscale.callbacks.trainer.loaders import Loaders, examples_in_plan
from lightning_bsscale.theory.plan import UserPlan
from lightning_bsscale.theory.policies import Limits
from lightning_bsscale.theory.windows import default_max_batch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the user planned.

    Attributes:
        total_examples: the budget, or None where it is unknown
        warmup_examples: examples before the batch may grow
        max_steps: steps of the plan, or None
        ends_with_epochs: whether `max_epochs` ends the training, not a number of steps or examples
        limits: between which the batch may move
    """

    total_examples: float | None
    warmup_examples: float
    max_steps: int | None
    ends_with_epochs: bool
    limits: Limits


def read_plan(trainer: pl.Trainer, options: ScalerOptions, found: Loaders, first: Start, now: Start) -> Plan:
    """Reads the plan.

    Args:
        trainer: the Trainer, before its first micro-batch
        options: the scaler's
        found: what the ranks' loaders say
        first: the start whose steps `max_steps` counts
        now: this start

    Returns:
        the plan

    What cannot be planned raises MisconfigurationException.
    """
    given, size = options.total_examples, now.granularity
    max_steps = trainer.max_steps if trainer.max_steps >= 0 else None
    # An explicit budget replaces max_steps, which is then only Lightning's own limit on optimizer steps.
    planned = examples_in_plan(
        trainer, found, size, with_max_steps=given is None, plan=(first.accumulate, first.granularity)
    )
    total = min((examples for examples in (planned, given) if examples is not None), default=None)
    preflight.check_budget(total, options.shares())
    preflight.check_plan(trainer, options, total, first.batch_size, now.accumulate)
    epoch_examples = found.epoch_examples(size)
    if given is not None or max_steps is not None:
        preflight.check_min_epochs(trainer, total, epoch_examples)
    warmup = options.warmup
    # Below the start the steps would outnumber the plan's, and max_steps would end the run before its examples.
    smallest = -(-first.batch_size // size) * size
    largest = options.max_batch_size
    if largest is None:
        largest = default_max_batch_size(
            start_batch=smallest,
            granularity=size,
            epoch_examples=epoch_examples,
            total_examples=total,
        )
    else:
        preflight.check_maximum(largest, smallest)
    return Plan(
        total_examples=total,
        warmup_examples=warmup if isinstance(warmup, int) else warmup * (total or 0.0),
        max_steps=max_steps,
        ends_with_epochs=_ends_with_epochs(trainer, epoch_examples, total),
        limits=Limits(
            granularity=size,
            min_batch_size=smallest if max_steps is not None else size,
            max_batch_size=largest,
        ),
    )


def _ends_with_epochs(trainer: pl.Trainer, epoch_examples: float | None, total: float | None) -> bool:
    if trainer.max_epochs is None or trainer.max_epochs < 0:
        return False
    return total is None or epoch_examples is None or trainer.max_epochs * epoch_examples <= total


def make_budget(
    options: ScalerOptions, plan: Plan, found: Loaders, first: Start, now: Start, frequencies: list[int]
) -> Budget:
    """Makes the counter of the plan's steps.

    Args:
        options: the scaler's
        plan: what the user planned
        found: what the ranks' loaders say
        first: the start whose steps the plan counts
        now: this start
        frequencies: the user's schedulers' own

    Returns:
        the counter, at its beginning
    """
    user_plan = UserPlan(
        accumulate=first.accumulate,
        max_steps=plan.max_steps,
        total_examples=plan.total_examples if options.total_examples is not None else None,
        granularity=now.granularity,
        plan_granularity=first.granularity,
        ends_with_epochs=plan.ends_with_epochs,
    )
    return Budget(
        user_plan,
        epoch_batches=found.batches,
        epoch_examples=found.epoch_examples(now.granularity),
        frequencies=frequencies,
    )
