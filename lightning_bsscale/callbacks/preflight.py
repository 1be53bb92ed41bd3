"""Every combination we refuse, before the first step, with the way out."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from lightning_bsscale.theory.rules import LearningRateRule, resolve_rule, rule_for_optimizer


def check_measurable(trainer: pl.Trainer, pl_module: pl.LightningModule, callback: str) -> None:
    """Refuses what cannot be measured.

    Args:
        trainer: the Trainer
        pl_module: the module
        callback: the callback's name, for the message

    Raises:
        MisconfigurationException: manual optimization, DeepSpeed, or several devices
    """
    if not pl_module.automatic_optimization:
        raise MisconfigurationException(
            f"{callback} needs automatic optimization, and {type(pl_module).__name__} sets automatic_optimization = "
            "False: with manual optimization Lightning does not say where a window begins. Use automatic optimization, "
            "or feed lightning_bsscale.GradientNoiseScale in your training_step."
        )
    strategy = type(trainer.strategy).__name__
    if trainer.strategy.handles_gradient_accumulation or "DeepSpeed" in strategy:
        raise MisconfigurationException(
            f"{callback} cannot work with {strategy}: it accumulates gradients by itself, with a number fixed at the "
            "start. Use another strategy, or feed lightning_bsscale.GradientNoiseScale in a loop of your own."
        )
    if trainer.world_size > 1:
        raise MisconfigurationException(
            f"{callback} works on one device for now, and the Trainer has {trainer.world_size}. "
            "Set Trainer(devices=1), or remove the callback."
        )


def check_alone(trainer: pl.Trainer, callback: str, others: dict[type[Any], str]) -> None:
    """Refuses callbacks that do the same or write the same things.

    Args:
        trainer: the Trainer
        callback: the callback's name, for the message
        others: class to refuse, and why

    Raises:
        MisconfigurationException: the Trainer has one of them
    """
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        for cls, why in others.items():
            if isinstance(other, cls):
                raise MisconfigurationException(
                    f"{callback} cannot work beside {type(other).__name__}: {why}. Remove one of the two."
                )


WRITERS_OF_THE_WINDOW: dict[type[Any], str] = {
    GradientAccumulationScheduler: "both would set trainer.accumulate_grad_batches",
    StochasticWeightAveraging: "it sets trainer.accumulate_grad_batches for an epoch without training",
}


def check_trainer_for_scaler(trainer: pl.Trainer) -> None:
    """Refuses limits that count what the scaler changes.

    Args:
        trainer: the Trainer

    Raises:
        MisconfigurationException: `min_steps` is set
    """
    if trainer.min_steps:
        raise MisconfigurationException(
            f"Trainer(min_steps={trainer.min_steps}) counts optimizer steps, of which BatchSizeScaler makes fewer for "
            "the same examples, so training would go on after its budget. Use min_epochs, within the budget."
        )


def check_min_epochs(trainer: pl.Trainer, total_examples: float | None, epoch_examples: float | None) -> None:
    """Refuses epochs beyond the budget.

    Args:
        trainer: the Trainer
        total_examples: the budget
        epoch_examples: examples in an epoch, or None where it is unknown

    Raises:
        MisconfigurationException: `min_epochs` reaches past the budget
    """
    if trainer.min_epochs and total_examples is not None and epoch_examples is not None:
        needed = trainer.min_epochs * epoch_examples
        if needed > total_examples:
            raise MisconfigurationException(
                f"Trainer(min_epochs={trainer.min_epochs}) asks for {needed:g} examples, and the budget (max_steps, or "
                f"total_examples) ends after {total_examples:g}. Lower min_epochs, or raise the budget."
            )


def choose_rule(lr_rule: Any, lr_cap: float | None, optimizer: Optimizer) -> LearningRateRule:
    """The rule, by name, by object, or by the optimizer's class for ``"auto"``.

    Args:
        lr_rule: the option
        lr_cap: the largest factor, or None
        optimizer: what steps

    Returns:
        the rule

    Raises:
        MisconfigurationException: ``"auto"`` and an optimizer of an unknown class
    """
    if lr_rule != "auto":
        return resolve_rule(lr_rule, cap=lr_cap)
    try:
        rule = rule_for_optimizer([cls.__name__ for cls in type(optimizer).__mro__])
    except ValueError as error:
        raise MisconfigurationException(str(error)) from error
    return resolve_rule(rule, cap=lr_cap)


def check_schedule(trainer: pl.Trainer, schedule: Any) -> None:
    """Refuses two owners of the rate.

    Args:
        trainer: the Trainer, with its optimizers
        schedule: the callback's own schedule, or None

    Raises:
        MisconfigurationException: the module has a scheduler and the callback a schedule
    """
    if schedule is not None and trainer.lr_scheduler_configs:
        found = ", ".join(type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs)
        raise MisconfigurationException(
            f"BatchSizeScaler(schedule={schedule!r}) would own the rate, and configure_optimizers returns a scheduler "
            f"({found}). Remove the scheduler there, or leave schedule=None: yours is then put on the example clock."
        )


def check_budget(total_examples: float | None, needed_by: list[str]) -> None:
    """Refuses shares of an unknown budget.

    Args:
        total_examples: the budget, or None
        needed_by: the options that are shares of it

    Raises:
        MisconfigurationException: the budget is unknown and needed
    """
    if total_examples is None and needed_by:
        raise MisconfigurationException(
            f"The number of examples of this training is unknown (the loader has no length, or max_epochs is -1), and "
            f"{', '.join(needed_by)} {'are shares' if len(needed_by) > 1 else 'is a share'} of it. "
            "Set Trainer(max_steps=...), or pass BatchSizeScaler(total_examples=...)."
        )


def check_maximum(max_batch_size: int, start_batch_size: int) -> None:
    """Refuses a maximum below the start.

    Args:
        max_batch_size: the user's maximum, in examples
        start_batch_size: micro-batch × accumulation × devices, in examples

    Raises:
        MisconfigurationException: it is below the start
    """
    if max_batch_size < start_batch_size:
        raise MisconfigurationException(
            f"max_batch_size={max_batch_size} is below the starting batch of {start_batch_size} examples (micro-batch "
            f"× accumulate_grad_batches × devices). Use at least {start_batch_size}, or start smaller."
        )


def warn_of_batch_norm(pl_module: pl.LightningModule) -> None:
    """Says once where the micro-batch defines the function.

    Args:
        pl_module: the module
    """
    found = sorted({type(module).__name__ for module in pl_module.modules() if isinstance(module, _BatchNorm)})
    if found:
        rank_zero_warn(
            f"The model has {', '.join(found)}: its output depends on the micro-batch, not on the batch, so the "
            "measured noise scale holds for this micro-batch only. Growing by accumulation leaves its statistics as "
            "they are.",
            category=UserWarning,
        )
