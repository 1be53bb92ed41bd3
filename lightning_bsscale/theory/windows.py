"""Plans in loader batches: the next window, the user's plan of steps, the budget, the default maximum.

A *window* is the sequence of loader batches between two optimizer steps. Loader batches are counted per rank and per
epoch, as Lightning counts batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_bsscale.theory.checks import check_integer, check_number

__all__ = [
    "WindowPlan",
    "batches_until_step",
    "default_max_batch_size",
    "plan_window",
    "planned_examples",
    "planned_steps",
    "step_of_scheduler_step",
    "windows_in_memory",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPlan:
    """The next window.

    Attributes:
        start: Index of its first loader batch in the epoch.
        num_loader_batches: Loader batches of one rank, at least 1.
        is_short: Whether the end of the epoch or the budget made it shorter than wanted.
    """

    start: int
    num_loader_batches: int
    is_short: bool


def plan_window(*, start: int, wanted: int, epoch_batches: int | None, budget_batches: int | None) -> WindowPlan:
    """Plan one window: the wanted length, cut at the end of the epoch and of the budget.

    Args:
        start: Index of the next loader batch in this epoch, from 0.
        wanted: Loader batches that the batch requires, at least 1.
        epoch_batches: Loader batches in this epoch, more than ``start``; None for a loader without a length.
        budget_batches: Loader batches left in the budget; None for no budget. At least one is always planned,
            since one that is loaded is trained on.

    Returns:
        The plan.

    Raises:
        ValueError: If the epoch has no loader batch left.

    Example:
        >>> plan_window(start=8, wanted=4, epoch_batches=10, budget_batches=None)
        WindowPlan(start=8, num_loader_batches=2, is_short=True)
    """
    check_integer("start", start, at_least=0)
    check_integer("wanted", wanted, at_least=1)
    length = wanted
    if epoch_batches is not None:
        if start >= check_integer("epoch_batches", epoch_batches, at_least=0):
            raise ValueError(f"start must be below epoch_batches ({epoch_batches}), got {start}")
        length = min(length, epoch_batches - start)
    if budget_batches is not None:
        length = min(length, max(1, budget_batches))
    return WindowPlan(start=start, num_loader_batches=length, is_short=length < wanted)


def planned_steps(ready: int, accumulate: int, *, is_last: bool, frequency: int = 1) -> int:
    """Count the steps of the user's plan in this epoch.

    Lightning steps after every ``accumulate`` loader batches and after an epoch's last one. It steps a scheduler at
    those steps whose number of loader batches is a multiple of the scheduler's frequency.

    Args:
        ready: Loader batches done in this epoch.
        accumulate: The user's ``accumulate_grad_batches``, at least 1.
        is_last: Whether ``ready`` is the epoch's last loader batch.
        frequency: The scheduler's frequency, in loader batches as Lightning counts it; 1 counts optimizer steps.

    Returns:
        The count.

    Example:
        >>> planned_steps(10, 4, is_last=True), planned_steps(12, 4, is_last=True, frequency=3)
        (3, 1)
    """
    check_integer("ready", ready, at_least=0)
    period = math.lcm(
        check_integer("accumulate", accumulate, at_least=1), check_integer("frequency", frequency, at_least=1)
    )
    ragged_step = is_last and ready % accumulate != 0 and ready % frequency == 0
    return ready // period + ragged_step


def step_of_scheduler_step(number: int, accumulate: int, frequency: int) -> int:
    """Compute the optimizer step of an epoch at which the user's plan makes a given scheduler step.

    Args:
        number: Index of the scheduler step in this epoch, from 1; 0 or less for one of an earlier epoch.
        accumulate: The user's ``accumulate_grad_batches``, at least 1.
        frequency: The scheduler's frequency, in loader batches as Lightning counts it.

    Returns:
        Index of the optimizer step, from 1; 0 for an earlier epoch. It may exceed the number of steps at an epoch's
        ragged end, and then means the epoch's last step.

    Example:
        >>> step_of_scheduler_step(3, 4, 1), step_of_scheduler_step(2, 4, 6)
        (3, 6)
    """
    period = math.lcm(
        check_integer("accumulate", accumulate, at_least=1), check_integer("frequency", frequency, at_least=1)
    )
    return max(0, number) * (period // accumulate)


def batches_until_step(step: int, accumulate: int, epoch_batches: int | None) -> int | None:
    """Compute the number of loader batches of an epoch after which the user's plan has made ``step`` steps.

    Args:
        step: Steps within this epoch, from 0.
        accumulate: The user's ``accumulate_grad_batches``, at least 1.
        epoch_batches: Loader batches in this epoch; None for a loader without a length.

    Returns:
        The count of loader batches, or None when the epoch has fewer steps.

    Example:
        >>> [batches_until_step(step, 4, 10) for step in (0, 2, 3, 4)]
        [0, 8, 10, None]
    """
    batches = check_integer("step", step, at_least=0) * check_integer("accumulate", accumulate, at_least=1)
    if epoch_batches is None or batches <= epoch_batches:
        return batches
    return epoch_batches if batches - accumulate < epoch_batches else None


def planned_examples(
    *,
    max_epochs: int | None,
    max_steps: int | None,
    epoch_batches: int | None,
    epoch_examples: float | None,
    accumulate: int,
    granularity: float,
) -> float | None:
    """Compute the budget: the examples of the user's plan, or of the smaller one if there are two.

    ``max_epochs`` plans ``max_epochs`` times the epoch's examples. ``max_steps`` plans that many windows of the
    starting batch, with a shorter one at the end of each epoch that is not a multiple of it.

    Args:
        max_epochs: Epochs planned; None for no limit.
        max_steps: Optimizer steps planned; None for no limit.
        epoch_batches: Loader batches of one rank in an epoch; None for a loader without a length.
        epoch_examples: Examples in an epoch over all ranks; None to assume ``epoch_batches`` full loader batches.
        accumulate: The user's ``accumulate_grad_batches``, at least 1.
        granularity: Examples of one loader batch over all ranks, above 0.

    Returns:
        The budget in examples, or None if no plan can be computed. (If one of two plans cannot be computed, the other
        applies.)

    Example:
        >>> planned_examples(
        ...     max_epochs=3, max_steps=7, epoch_batches=10, epoch_examples=None, accumulate=4, granularity=8
        ... )  # two epochs of three steps, 80 examples each, and one step of 32
        192.0
    """
    size = check_number("granularity", granularity, above=0)
    window = check_integer("accumulate", accumulate, at_least=1) * size
    if epoch_examples is None and epoch_batches is not None:
        epoch_examples = epoch_batches * size
    plans: list[float] = []
    if max_epochs is not None and epoch_examples is not None:
        plans.append(float(check_integer("max_epochs", max_epochs, at_least=0) * epoch_examples))
    if max_steps is not None:
        max_steps = check_integer("max_steps", max_steps, at_least=0)
        if epoch_batches is None or epoch_examples is None:
            plans.append(max_steps * window)
        else:
            full_epochs, steps = divmod(max_steps, math.ceil(epoch_batches / accumulate))
            plans.append(
                full_epochs * epoch_examples + steps * window
            )  # fewer steps than an epoch has, all of them full
    return min(plans, default=None)


def default_max_batch_size(
    *, start_batch: int, granularity: int, epoch_examples: float | None, total_examples: float | None
) -> int:
    """Compute the default largest batch.

    It is 32 times the start, but at least 8 steps per epoch remain (8 in the whole budget if the epoch's length is
    unknown), and it is never below the start.

    Args:
        start_batch: The starting batch, in examples.
        granularity: The unit of batch sizes: examples of one loader batch over all ranks.
        epoch_examples: Examples in an epoch; None when unknown.
        total_examples: The budget in examples; None when unknown.

    Returns:
        The batch in examples, a multiple of ``granularity`` (or the start itself).

    Example:
        >>> default_max_batch_size(start_batch=8, granularity=8, epoch_examples=1347, total_examples=None)
        168
    """
    start = check_integer("start_batch", start_batch, at_least=1)
    step = check_integer("granularity", granularity, at_least=1)
    largest: float = 32 * start
    horizon = epoch_examples if epoch_examples is not None else total_examples
    if horizon is not None:
        largest = min(largest, horizon / 8)
    return max(start, int(largest // step) * step)


def windows_in_memory(memory: float, spacing: float) -> float:
    """Compute how many measured windows the averages hold in the long run (Kish's effective number).

    With one window in every ``spacing`` examples the weights are powers of ``r = exp(-spacing / memory)``, and
    ``(sum w)^2 / sum w^2`` tends to ``(1 + r) / (1 - r) = coth(spacing / (2 memory))``.

    Args:
        memory: Examples over which a window's weight falls to 1/e, above 0; may be infinite.
        spacing: Examples from one measured window to the next, above 0.

    Returns:
        The number, at least 1; infinite for an infinite memory.

    Example:
        >>> round(windows_in_memory(1000, 100), 1), round(windows_in_memory(100, 256), 1)
        (20.0, 1.2)
    """
    check_number("memory", memory, above=0, may_be_infinite=True)
    ratio = check_number("spacing", spacing, above=0) / memory
    return 1 / math.tanh(ratio / 2) if ratio > 0 else math.inf
