"""The size of a batch, and of an epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.data import extract_batch_size
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from lightning_bsscale.callbacks.options import BatchSizeFn
from lightning_bsscale.theory.windows import planned_examples


def batch_size_of(batch: Any, batch_size_fn: BatchSizeFn | None) -> int:
    """Examples in one micro-batch.

    Args:
        batch: what the loader gave
        batch_size_fn: the user's way to count; None looks for the first tensor's first dimension, as Lightning does

    Returns:
        a positive whole number of examples (or of what `batch_size_fn` counts, such as tokens)

    Raises:
        MisconfigurationException: the size cannot be found, or `batch_size_fn` gave no positive whole number
    """
    if batch is None:
        raise MisconfigurationException(
            "The number of examples in a batch must be known before the training step, and Lightning shows no batch: "
            "the loader gave None, or training_step takes dataloader_iter. Let training_step take the batch."
        )
    if batch_size_fn is None:
        try:
            size: Any = extract_batch_size(batch)
        except (MisconfigurationException, RecursionError) as error:
            raise MisconfigurationException(
                f"The number of examples in a batch of type {type(batch).__name__} cannot be found: it holds no "
                "tensor. Pass a function that counts them, for example batch_size_fn=len."
            ) from error
    else:
        size = batch_size_fn(batch)
    if isinstance(size, bool) or not isinstance(size, (int, float)) or size != size // 1 or not 0 < size < math.inf:
        source = "The loader gave a batch of" if batch_size_fn is None else "batch_size_fn returned"
        raise MisconfigurationException(f"{source} {size!r} examples; a positive whole number is needed.")
    return int(size)


class SizeCheck:
    """Says once where the micro-batches are not of the size that everything is counted in: the first one's."""

    ENOUGH = 50
    TOLERANCE = 0.25

    def __init__(self, micro_batch_size: int) -> None:
        """Begins without a micro-batch.

        Args:
            micro_batch_size: the size that batches are counted in
        """
        self._unit = micro_batch_size
        self._count = 0
        self._examples = 0

    def add(self, sizes: Sequence[int]) -> None:
        """Takes a window's micro-batches.

        Args:
            sizes: their examples
        """
        if self._count >= self.ENOUGH:
            return
        self._count += len(sizes)
        self._examples += sum(sizes)
        mean = self._examples / self._count
        if self._count >= self.ENOUGH and abs(mean / self._unit - 1) > self.TOLERANCE:
            rank_zero_warn(
                f"bsscale: the first micro-batch had {self._unit} examples, the first {self._count} have {mean:.4g} on "
                "average. Batches, limits and the budget are counted in micro-batches of the first one's size. Let "
                "the loader begin with a typical batch.",
                category=UserWarning,
            )


def epoch_batches(trainer: pl.Trainer) -> int | None:
    """Micro-batches in an epoch on this device.

    Args:
        trainer: a Trainer whose fit has begun

    Returns:
        the number, or None for a loader without a length
    """
    batches = trainer.num_training_batches
    return int(batches) if math.isfinite(batches) else None


def epoch_examples(trainer: pl.Trainer, micro_batch_size: int, batch_size_fn: BatchSizeFn | None) -> int | None:
    """Examples in an epoch: exact for a plain DataLoader, batches × the first one's size for any other with a length.

    Args:
        trainer: a Trainer whose fit has begun
        micro_batch_size: examples in the first micro-batch
        batch_size_fn: the user's way to count; with one the loader's own sizes say nothing

    Returns:
        the number over all devices, or None for a loader without a length
    """
    batches = epoch_batches(trainer)
    if batches is None:
        return None
    loader = trainer.train_dataloader
    full = batches * micro_batch_size
    if (
        batch_size_fn is None
        and isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and type(loader.batch_sampler) is BatchSampler
        and loader.batch_size == micro_batch_size
        and not loader.drop_last
        and batches == len(loader)
    ):
        full = len(loader.sampler)  # type: ignore[arg-type]  # a loader with a length has a sampler with one
    return full * trainer.world_size


def examples_in_plan(
    trainer: pl.Trainer, micro_batch_size: int, batch_size_fn: BatchSizeFn | None, *, with_max_steps: bool = True
) -> float | None:
    """Examples of the training as the user planned it: by `max_epochs`, by `max_steps`, or the smaller of both.

    Args:
        trainer: a Trainer whose fit has begun
        micro_batch_size: examples in the first micro-batch
        batch_size_fn: the user's way to count
        with_max_steps: whether `max_steps` counts

    Returns:
        the number over all devices, or None where it is unknown
    """
    return planned_examples(
        max_epochs=trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else None,
        max_steps=trainer.max_steps if with_max_steps and trainer.max_steps >= 0 else None,
        epoch_batches=epoch_batches(trainer),
        epoch_examples=epoch_examples(trainer, micro_batch_size, batch_size_fn),
        accumulate=int(trainer.accumulate_grad_batches),
        micro_batch_size=micro_batch_size * trainer.world_size,
    )
