"""Refuse combinations that cannot work, before the first step, each with a way out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.xla import XLAStrategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import Optimizer

from lightning_bsscale.callbacks.checks.options import RunOptions
from lightning_bsscale.callbacks.trainer.hyperparameters import unusable_entry
from lightning_bsscale.callbacks.trainer.optimizer_step import can_wrap_step, unwrapped
from lightning_bsscale.callbacks.trainer.traits import is_sharded
from lightning_bsscale.theory.checks import show
from lightning_bsscale.theory.hyperparameters import HyperparameterRule
from lightning_bsscale.theory.numbers import describe_count
from lightning_bsscale.theory.rules import RULES, Capped, LearningRateRule


def check_measurable(trainer: pl.Trainer, pl_module: pl.LightningModule, callback: str) -> None:
    """Refuse what cannot be measured.

    Args:
        trainer: the Trainer
        pl_module: the module
        callback: the callback's name, for the message

    Raises:
        MisconfigurationException: If optimization is manual, or the strategy or one of its options is not supported.
    """
    if not pl_module.automatic_optimization:
        raise MisconfigurationException(
            f"{callback} needs automatic optimization, but {type(pl_module).__name__} sets automatic_optimization = "
            "False: with manual optimization Lightning does not tell where a window begins. Use automatic "
            "optimization, or update lightning_bsscale.GradientNoiseScale in your training_step."
        )
    strategy = type(trainer.strategy).__name__
    if trainer.strategy.handles_gradient_accumulation or "DeepSpeed" in strategy:
        raise MisconfigurationException(
            f"{callback} cannot work with {strategy}: it accumulates gradients by itself, with a number fixed at the "
            "start. Use another strategy, or update lightning_bsscale.GradientNoiseScale in your own training loop."
        )
    known = isinstance(trainer.strategy, (DDPStrategy, FSDPStrategy, ModelParallelStrategy))
    # Lightning's strategy for TPUs inherits from DDPStrategy, but reduces without torch's process group.
    if trainer.world_size > 1 and (not known or isinstance(trainer.strategy, XLAStrategy)):
        raise MisconfigurationException(
            f"{callback} works on one device, with DDP and with FSDP (FSDPStrategy, ModelParallelStrategy), but the "
            f"Trainer has {trainer.world_size} devices with {strategy}. Use Trainer(strategy='ddp') or one device, or "
            "update lightning_bsscale.GradientNoiseScale in your own training loop."
        )
    if isinstance(trainer.strategy, ModelParallelStrategy) and _shares_micro_batches(trainer.strategy):
        raise MisconfigurationException(
            f"{callback} cannot work with tensor parallelism: several processes share one micro-batch, so no gradient "
            "is that of one process's own examples. Use ModelParallelStrategy(tensor_parallel_size=1, "
            "data_parallel_size=...), which shards by fully_shard, or update lightning_bsscale.GradientNoiseScale in "
            "your own training loop."
        )
    if isinstance(trainer.strategy, FSDPStrategy) and trainer.gradient_clip_val and not _clips_by_value(trainer):
        raise MisconfigurationException(
            f"Trainer(gradient_clip_val={trainer.gradient_clip_val}) clips by norm, which Lightning does not do with "
            "FSDPStrategy, where each rank holds a part of the gradient. Set gradient_clip_algorithm='value', or "
            "override configure_gradient_clipping and call self.trainer.model.clip_grad_norm_(max_norm) there."
        )
    if getattr(trainer.strategy, "_ddp_kwargs", {}).get("static_graph"):
        raise MisconfigurationException(
            f"{callback} cannot work with DDPStrategy(static_graph=True): with it, torch fails as soon as a step has "
            "more than one micro-batch (pytorch issue 143580). Use static_graph=False."
        )
    averages = getattr(trainer.strategy, "_model_averaging_period", None) is not None
    if averages or type(getattr(trainer.strategy, "_ddp_comm_state", None)).__name__ == "PostLocalSGDState":
        raise MisconfigurationException(
            f"{callback} cannot work with post-local SGD (DDPStrategy(model_averaging_period=...)): each group of "
            "ranks steps on its own, so no gradient is the mean over all ranks. Remove model_averaging_period and "
            "PostLocalSGDState."
        )


def _shares_micro_batches(strategy: Any) -> bool:
    try:
        return bool(strategy.device_mesh["tensor_parallel"].size() > 1)
    except (RuntimeError, KeyError):  # no mesh yet, or one without that dimension
        return False


def _clips_by_value(trainer: pl.Trainer) -> bool:
    overridden = is_overridden("configure_gradient_clipping", trainer.lightning_module)
    return overridden or trainer.gradient_clip_algorithm == "value"


def check_trainer_for_scaler(trainer: pl.Trainer) -> None:
    """Refuse limits that count what the scaler changes.

    Args:
        trainer: the Trainer

    Raises:
        MisconfigurationException: If `min_steps` is set.
    """
    if trainer.min_steps:
        raise MisconfigurationException(
            f"Trainer(min_steps={trainer.min_steps}) counts optimizer steps, of which BatchSizeScaler makes fewer for "
            "the same examples, so training would continue beyond its budget. Use min_epochs, within the budget."
        )


def check_min_epochs(trainer: pl.Trainer, total_examples: float | None, epoch_examples: float | None) -> None:
    """Refuse `min_epochs` beyond the budget.

    Args:
        trainer: the Trainer
        total_examples: the budget, or None
        epoch_examples: examples in an epoch, or None if unknown

    Raises:
        MisconfigurationException: If `min_epochs` requires more examples than the budget.
    """
    if trainer.min_epochs and total_examples is not None and epoch_examples is not None:
        needed = trainer.min_epochs * epoch_examples
        if needed > total_examples:
            raise MisconfigurationException(
                f"Trainer(min_epochs={trainer.min_epochs}) requires {describe_count(needed)} examples, but the budget "
                f"(max_steps, or total_examples) ends after {describe_count(total_examples)}. Lower min_epochs, or "
                "raise the budget."
            )


def check_optimizer(trainer: pl.Trainer, callback: str) -> None:
    """Refuse an optimizer that does not step once per window, or whose learning rate cannot be read.

    Args:
        trainer: the Trainer, with its optimizers
        callback: the callback's name, for the message

    Raises:
        MisconfigurationException: If there is no optimizer, if it calls its closure several times per step, or if a
            parameter group has no learning rate.
    """
    groups = trainer.optimizers[0].param_groups if trainer.optimizers else []
    if not groups:
        raise MisconfigurationException(
            f"{callback} needs an optimizer, but configure_optimizers returns none. Return one, or remove the callback."
        )
    optimizer = type(trainer.optimizers[0])
    if any("lbfgs" in cls.__name__.lower() for cls in optimizer.__mro__):
        raise MisconfigurationException(
            f"{callback} cannot work with {optimizer.__name__}: in one step it calls its closure, and with it the "
            "training step, several times, so a step is no longer the mean over one window's micro-batches. Use an "
            "optimizer that calls it once, such as SGD or AdamW, or remove the callback."
        )
    if any(group.get("lr") is None for group in groups):
        raise MisconfigurationException(
            f"{callback} needs a learning rate in every parameter group of the optimizer, but {optimizer.__name__} has "
            "a group without one (no 'lr', or None). An optimizer that sets its own learning rate must be configured "
            "not to, for example transformers' Adafactor(relative_step=False, lr=1e-3)."
        )


def check_learning_rate_control(trainer: pl.Trainer) -> None:
    """Refuse an optimizer whose step cannot be wrapped, or whose learning rate cannot be set.

    Args:
        trainer: the Trainer, with its optimizers

    Raises:
        MisconfigurationException: If `step` is a property, or `param_groups` returns new dictionaries at each access.
    """
    optimizer = unwrapped(trainer.optimizers[0])
    name = type(optimizer).__name__
    if not can_wrap_step(optimizer):
        raise MisconfigurationException(
            f"BatchSizeScaler applies the learning-rate factor within optimizer.step(), and the step of {name} cannot "
            "be wrapped, because it is a property of the class. Make it a method, or use dry_run=True or "
            "GradientNoiseScaleMonitor, which change nothing."
        )
    if not all(one is other for one, other in zip(optimizer.param_groups, optimizer.param_groups, strict=True)):
        raise MisconfigurationException(
            f"BatchSizeScaler sets the learning rate in the optimizer's parameter groups, and {name}.param_groups "
            "returns new dictionaries at each access, so changes to them are lost. Return the same ones, or use "
            "dry_run=True or GradientNoiseScaleMonitor, which change nothing."
        )


def check_hyperparameters(
    trainer: pl.Trainer, also_scale_for: Callable[[Optimizer], Sequence[HyperparameterRule]]
) -> None:
    """Refuse rules for what the optimizer does not have.

    Args:
        trainer: the Trainer, with its optimizers
        also_scale_for: returns the rules for an optimizer

    Raises:
        MisconfigurationException: If a parameter group lacks an entry that a rule replaces, or holds no numbers there.
    """
    optimizer = unwrapped(trainer.optimizers[0])
    for rule in also_scale_for(optimizer):
        unusable = unusable_entry(optimizer.param_groups, rule)
        if unusable is not None:
            key, value = unusable
            raise MisconfigurationException(
                f"also_scale has {rule.name}, which replaces {key!r} in the optimizer's parameter groups, and a group "
                f"of {type(optimizer).__name__} has {show(value)} there, not numbers. Remove the rule from also_scale, "
                "or use another optimizer."
            )


# A module that overrides optimizer_step may skip steps on purpose, but not this many from the start on.
MANY_MISSED = 20


def check_update(trainer: pl.Trainer, missed: int, *, was_seen: bool) -> None:
    """Refuse weights that are updated by other means than `optimizer.step()`.

    Args:
        trainer: the Trainer
        missed: consecutive steps with a factor in which `optimizer.step()` was not called
        was_seen: whether it was ever called

    Raises:
        MisconfigurationException: If neither a gradient scaler nor an overridden `optimizer_step` explains it.
    """
    pl_module = trainer.lightning_module
    overridden = is_overridden("optimizer_step", pl_module)
    skips = getattr(trainer.precision_plugin, "scaler", None) is not None  # steps with a non-finite gradient
    if (overridden and (was_seen or missed < MANY_MISSED)) or (skips and not overridden):
        return
    where = f"{type(pl_module).__name__}.optimizer_step" if overridden else type(trainer.precision_plugin).__name__
    raise MisconfigurationException(
        f"BatchSizeScaler applies the learning-rate factor within optimizer.step(), and in the last {missed} optimizer "
        f"steps {type(unwrapped(trainer.optimizers[0])).__name__}.step was not called: {where} updates the weights by "
        "other means. Call optimizer.step(closure=...) there, or use lr_rule='none' without a schedule."
    )


def check_policy(policy: Any, rule: LearningRateRule) -> None:
    """Refuse a policy that cannot do what it promises in this training.

    Args:
        policy: the policy
        rule: the rule that the learning rate follows

    Raises:
        MisconfigurationException: If it is meant for other rules, or decides by a clock in a deterministic training.
    """
    name, meant_for = type(policy).__name__, getattr(policy, "lr_rules", None)
    inner = rule.rule if isinstance(rule, Capped) else rule
    if meant_for is not None and inner.name in RULES and inner.name not in meant_for:
        choices = " or ".join(f"lr_rule='{one}'" for one in meant_for) or "none of the package's rules"
        raise MisconfigurationException(
            f"{name} trades the schedule's decay for growth, which needs the learning rate to follow the batch by "
            f"{choices} ({policy!r}), but lr_rule is {inner.name!r} here. Pass one of these rules, or for SGD "
            "Seesaw(form='sgd') or Smith()."
        )
    if getattr(policy, "needs_clock", False) and torch.are_deterministic_algorithms_enabled():
        raise MisconfigurationException(
            f"{name} decides by measured seconds, but with Trainer(deterministic=True) no clock may decide what is "
            "computed. Pass step_price and example_price as numbers."
        )


def check_schedule(trainer: pl.Trainer, schedule: Any) -> None:
    """Refuse two owners of the learning rate.

    Args:
        trainer: the Trainer, with its optimizers
        schedule: the callback's own schedule, or None

    Raises:
        MisconfigurationException: If the module has a scheduler and the callback a schedule.
    """
    if schedule is not None and trainer.lr_scheduler_configs:
        names = ", ".join(type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs)
        raise MisconfigurationException(
            f"BatchSizeScaler(schedule={schedule!r}) would control the learning rate, but configure_optimizers returns "
            f"a scheduler ({names}). Remove that scheduler, or leave schedule=None: the scheduler then follows the "
            "examples instead of the steps."
        )


def check_plan(trainer: pl.Trainer, options: RunOptions, total_examples: float | None, start_batch_size: int) -> None:
    """Refuse a budget of less than one batch, and warn about a warmup that covers all of it.

    Args:
        trainer: the Trainer
        options: the callback's options
        total_examples: the budget, or None
        start_batch_size: loader batch × accumulation × devices, in examples

    Raises:
        MisconfigurationException: If the user's budget is below one batch.
    """
    user_total, warmup = options.total_examples, options.warmup
    if user_total is not None and user_total < start_batch_size:
        raise MisconfigurationException(
            f"total_examples={user_total} is less than one starting batch of {start_batch_size} examples (loader batch "
            "× accumulate_grad_batches × devices). It counts examples, not steps or epochs; omit it to use the "
            "Trainer's own limits."
        )
    if total_examples is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    if isinstance(warmup, int) and warmup >= total_examples:
        rank_zero_warn(
            f"bsscale: warmup={warmup} examples covers all of this training ({describe_count(total_examples)} "
            "examples), so the batch never grows. An int counts examples; a float such as 0.05 is a share of the "
            "training.",
            category=UserWarning,
        )


def check_budget(total_examples: float | None, needed_by: list[str]) -> None:
    """Refuse shares of an unknown budget.

    Args:
        total_examples: the budget, or None
        needed_by: the options that are shares of it

    Raises:
        MisconfigurationException: If the budget is needed and unknown.
    """
    if total_examples is None and needed_by:
        raise MisconfigurationException(
            f"The number of examples of this training is unknown (the loader has no length, or max_epochs is -1), but "
            f"{', '.join(needed_by)} {'are shares' if len(needed_by) > 1 else 'is a share'} of it. "
            "Set Trainer(max_steps=...), or pass BatchSizeScaler(total_examples=...)."
        )


def check_maximum(max_batch_size: int, start_batch_size: int) -> None:
    """Refuse a maximum below the start.

    Args:
        max_batch_size: the user's maximum, in examples
        start_batch_size: loader batch × accumulation × devices, in examples

    Raises:
        MisconfigurationException: If it is below the start.
    """
    if max_batch_size < start_batch_size:
        raise MisconfigurationException(
            f"max_batch_size={max_batch_size} is below the starting batch of {start_batch_size} examples (loader batch "
            f"× accumulate_grad_batches × devices). Use at least {start_batch_size}, or a smaller start."
        )


def check_micro_batches(trainer: pl.Trainer, largest: int | str | None, rows: int) -> None:
    """Refuse a limit below the loader batch where every forward pass waits for the other ranks.

    Args:
        trainer: the Trainer
        largest: the option `max_micro_batch_size`
        rows: usual rows of a loader batch on one rank

    Raises:
        MisconfigurationException: If the model is sharded: ranks with other rows would make other numbers of parts.
    """
    if isinstance(largest, int) and largest < rows and is_sharded(trainer):
        raise MisconfigurationException(
            f"max_micro_batch_size={largest} would split loader batches of {rows} examples, which cannot be done with "
            f"{type(trainer.strategy).__name__}: a sharded model's forward passes wait for all ranks. Use at least "
            f"{rows}, or a smaller batch_size in the loader."
        )
