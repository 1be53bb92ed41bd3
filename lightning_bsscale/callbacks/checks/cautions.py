"""Warn, before the first step, of what works but will not give what is asked for."""

from __future__ import annotations

import math

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch.nn import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_bsscale.callbacks.checks.options import RunOptions
from lightning_bsscale.theory.numbers import describe_count
from lightning_bsscale.theory.windows import windows_in_memory

# Below two windows of equal weight, theory/estimate.py calls every estimate unresolved.
MIN_WINDOWS = 2.0
# In fewer steps even a callback's default options hold too few windows, and there is little to learn: for the scaler,
# and for the monitor, which measures half as often.
MIN_STEPS = {True: 150, False: 300}


def warn_unapplied_schedule(options: RunOptions) -> None:
    """Warn that a dry run does not apply the callback's own schedule."""
    if options.dry_run and options.schedule is not None:
        rank_zero_warn(
            f"bsscale: dry_run=True changes nothing, so schedule={options.schedule!r} is not applied: the learning "
            "rate stays the optimizer's own. For a run to compare with, return a scheduler from configure_optimizers.",
            category=UserWarning,
        )


def warn_short_plan(
    trainer: pl.Trainer, options: RunOptions, total_examples: float | None, start_batch_size: int, loader_batch: int
) -> None:
    """Warn if the averages cannot resolve a noise scale in this training, given its budget and measured windows."""
    if total_examples is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        spacing = max(start_batch_size, loader_batch * options.measure_every)
        least = MIN_STEPS[options.decides] * start_batch_size
        warn_short_memory(total_examples, options.memory, least, spacing)


def warn_short_memory(total_examples: float, memory: float, least: int, spacing: int) -> None:
    """Warn if the averages cannot hold the two windows that an interval needs.

    Args:
        total_examples: the budget
        memory: the option
        least: examples of a training that is too short to warn of
        spacing: examples from one measured window to the next
    """
    examples = memory * total_examples
    held = math.ceil(total_examples / spacing) if memory == 1 else windows_in_memory(examples, spacing)
    if held < MIN_WINDOWS and total_examples >= least:
        better = 4 * spacing / total_examples
        advice = "Set a lower measure_every" + (f", or memory={better:.2g}." if memory < better <= 1 else ".")
        rank_zero_warn(
            "bsscale: the noise scale can hardly be resolved in this training: one window in "
            f"{describe_count(spacing)} examples is measured, and memory={memory:g} of "
            f"{describe_count(total_examples)} examples averages over {describe_count(examples)}. These hold "
            f"{held:.1f} windows, but an interval needs more than {MIN_WINDOWS:g}. {advice}",
            category=UserWarning,
        )


def warn_batch_norm(pl_module: pl.LightningModule, world_size: int) -> None:
    """Warn if the function of the model depends on the micro-batch, or on the micro-batches of all ranks."""
    layers = {type(module) for module in pl_module.modules() if isinstance(module, _BatchNorm)}
    if SyncBatchNorm in layers and world_size > 1:
        layers.remove(SyncBatchNorm)
        rank_zero_warn(
            "bsscale: the model has SyncBatchNorm: each rank's gradient depends on the other ranks' examples, so the "
            "ranks are not independent samples, and the measured noise scale is wrong, mostly too large. Use "
            "Trainer(sync_batchnorm=False), or a normalisation within the example such as GroupNorm.",
            category=UserWarning,
        )
    names = sorted(layer.__name__ for layer in layers)
    if names:
        rank_zero_warn(
            f"bsscale: the model has {', '.join(names)}: its output depends on the micro-batch, not on the batch, so "
            "the measured noise scale holds for this micro-batch only. Growing by accumulation does not change its "
            "statistics.",
            category=UserWarning,
        )


def warn_single_micro_batch(
    options: RunOptions, *, accumulate: int, epoch_batches: int | None, rows: int, splits: bool, world_size: int
) -> None:
    """Warn that nothing can be measured while a step has one micro-batch, and so no second gradient.

    Args:
        options: the callback's options
        accumulate: loader batches per step
        epoch_batches: loader batches in an epoch, or None for a loader without a length
        rows: examples by which the first one can be split
        splits: whether loader batches are split
        world_size: number of devices; with several, only the mean of their gradients can be observed
    """
    if accumulate > 1 and epoch_batches != 1:
        return
    if splits and rows > 1:
        return
    if world_size > 1:
        why = (
            "this version of torch shows only the mean of the devices' gradients. Set "
            "Trainer(accumulate_grad_batches=2) with half the loader's batch_size"
        )
    elif splits:
        why = "a loader batch of a single example cannot be split. Use a larger batch_size in the loader"
    elif options.split is None:
        why = (
            "a model with batch normalisation is not split unasked, because its output depends on the micro-batch. Set "
            "split=True, or Trainer(accumulate_grad_batches=2) with half the loader's batch_size"
        )
    else:
        why = "split=False keeps loader batches whole. Set Trainer(accumulate_grad_batches=2) with half their size"
    rank_zero_warn(
        "bsscale: while a step has one micro-batch, the noise scale cannot be measured: " + why + ".",
        category=UserWarning,
    )
