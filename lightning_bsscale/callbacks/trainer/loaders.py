"""Sizes of batches and epochs, read from batches and loaders."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from lightning_bsscale.callbacks.checks.options import BatchSizeFn
from lightning_bsscale.gradients.reduce import extremes, sums
from lightning_bsscale.theory.checks import is_real, show
from lightning_bsscale.theory.numbers import describe_count, describe_number
from lightning_bsscale.theory.windows import planned_examples

_warned_types: set[str] = set()  # types of batches, per process as in Lightning


def _tensors_in(batch: Any) -> Iterator[Tensor]:
    # The order is Lightning's. Its own function would warn about every new size, with advice for `self.log`, and
    # would walk through arrays number by number.
    if isinstance(batch, Tensor):
        yield batch
    elif type(batch) is list or type(batch) is tuple:  # nearly always, and found faster than by what follows
        for item in batch:
            yield from _tensors_in(item)
    elif isinstance(batch, Mapping):
        for item in batch.values():
            yield from _tensors_in(item)
    elif isinstance(batch, (str, bytes, Iterator)) or hasattr(batch, "__array__"):
        return  # an iterator can be read only once, by the training step
    elif isinstance(batch, Iterable):
        for item in batch:
            yield from _tensors_in(item)
    elif is_dataclass(batch) and not isinstance(batch, type):
        for field in fields(batch):
            yield from _tensors_in(getattr(batch, field.name))


def batch_size_of(batch: Any, batch_size_fn: BatchSizeFn | None) -> int:
    """Return the number of examples in a loader batch, or in a part of one.

    Args:
        batch: the batch or the part
        batch_size_fn: the user's function; None uses the first tensor's first dimension, as Lightning does

    Returns:
        A positive whole number of examples (or of what `batch_size_fn` counts, such as tokens).

    Raises:
        MisconfigurationException: If the size cannot be determined, or is not a positive whole number.
    """
    if batch is None:
        raise MisconfigurationException(
            "The number of examples in a batch must be known before the training step, but Lightning passes no batch "
            "because training_step takes dataloader_iter. Let training_step take the batch."
        )
    size: Any = _size_of_first_tensor(batch) if batch_size_fn is None else batch_size_fn(batch)
    if type(size) is int and size > 0:
        return size  # as always but for a mistake
    number = float(size) if is_real(size) else math.nan
    if not 0 < number < math.inf or number != number // 1:
        source = "The loader returned a batch of" if batch_size_fn is None else "batch_size_fn returned"
        hint = " Call .item() on it." if isinstance(size, Tensor) else ""
        raise MisconfigurationException(f"{source} {show(size)} examples; expected a positive whole number.{hint}")
    return int(number)


def _size_of_first_tensor(batch: Any) -> int:
    kind = type(batch).__name__
    try:
        tensors = list(_tensors_in(batch))
    except RecursionError:
        tensors = []
    if not tensors:
        raise MisconfigurationException(
            f"The number of examples in a batch of type {kind} cannot be determined: it contains no tensor. Pass a "
            "function that counts them, for example batch_size_fn=len, or batch_size_fn=lambda batch: batch.num_graphs."
        )
    size = tensors[0].size(0) if tensors[0].ndim else 1
    if kind not in _warned_types and any(tensor.ndim and tensor.size(0) != size for tensor in tensors):
        _warned_types.add(kind)
        rank_zero_warn(
            f"bsscale: the tensors in a batch of type {kind} differ in their first dimension, and that of the first "
            "tensor is used as the number of examples. If it is not, the noise scale is wrong by that factor: pass a "
            "function that counts them, for example batch_size_fn=lambda batch: len(batch['labels']).",
            category=UserWarning,
        )
    return size


class SizeCheck:
    """Warns once if the mean size of the first loader batches differs from the first one's, the unit of all counts.

    Args:
        usual: examples of one loader batch of this device; None disables the check
        unit: what is counted
    """

    LOADER_BATCHES = 50
    TOLERANCE = 0.25

    def __init__(self, usual: int | None, unit: str = "examples") -> None:
        self._usual = usual
        self._unit = unit
        self._count = 0
        self._examples = 0

    def add(self, examples: int, loader_batches: int) -> None:
        """Add a window."""
        if self._usual is None or self._count >= self.LOADER_BATCHES:
            return
        self._count += loader_batches
        self._examples += examples
        mean = self._examples / self._count
        if self._count >= self.LOADER_BATCHES and abs(mean / self._usual - 1) > self.TOLERANCE:
            rank_zero_warn(
                f"bsscale: the first loader batch had {describe_count(self._usual, self._unit)}, the first "
                f"{self._count} have {describe_number(mean, 4)} on average. Batches, limits and the budget are counted "
                "in loader batches of the first one's size. Let the loader start with a typical batch.",
                category=UserWarning,
            )


def epoch_batches(trainer: pl.Trainer) -> int | None:
    """Return the loader batches in an epoch on this device, or None for a loader without a length."""
    batches = trainer.num_training_batches
    return int(batches) if math.isfinite(batches) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaders:
    """Sizes and lengths of the loaders of all ranks; the same on every rank, also if ranks have different loaders.

    Attributes:
        batches: loader batches in an epoch on each rank, or None for loaders without a length
        first_size: sum of the examples in the ranks' first loader batches
        first_rows: sum of the rows by which these can be split
        batch_size: sum of the loaders' `batch_size` as users set it; None if a loader has none
        examples: examples in an epoch if plain loaders state them exactly, else None
        epoch: the epoch in which they were read
        batch_size_fn: the user's function that counts examples
    """

    batches: int | None
    first_size: int
    first_rows: int
    batch_size: int | None
    examples: int | None
    epoch: int
    batch_size_fn: BatchSizeFn | None

    def were_replaced(self, trainer: pl.Trainer) -> bool:
        """Return whether this epoch has new loaders (`reload_dataloaders_every_n_epochs`); the same on all ranks."""
        now = trainer.current_epoch
        every = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
        return bool(every) and self.epoch != now and trainer.fit_loop._last_train_dl_reload_epoch == now

    def read_again(self, trainer: pl.Trainer, size: int) -> Loaders:
        """Read the new loaders at their first loader batch, of `size` examples on this rank; it waits for all ranks."""
        return read_loaders(trainer, size, size, self.batch_size_fn)

    def epoch_examples(self, granularity: int) -> int | None:
        """Return the examples in an epoch over all devices, or None for loaders without a length.

        The number is exact for plain DataLoaders, and batches × `granularity` for other loaders with a length.
        """
        # A loader whose batches differ from its own `batch_size` does not count examples.
        if self.examples is not None and self.batch_size == granularity:
            return self.examples
        return None if self.batches is None else self.batches * granularity


def read_loaders(trainer: pl.Trainer, size: int, rows: int, batch_size_fn: BatchSizeFn | None) -> Loaders:
    """Combine the loaders of all ranks, and check that they have the same length.

    It waits for all ranks: for the start of training, and for new loaders.

    Args:
        trainer: a Trainer whose fit has begun
        size: examples in this rank's first loader batch
        rows: rows by which it can be split
        batch_size_fn: the user's function that counts examples; with one, the loader's own sizes are not used

    Returns:
        The record.

    Raises:
        MisconfigurationException: If the loaders differ in length.
    """
    device, ranks, batches = trainer.strategy.root_device, trainer.world_size, epoch_batches(trainer)
    least, most = extremes([-1 if batches is None else batches], device, ranks)
    if least != most:
        names = ["no length" if number < 0 else f"{number:g} loader batches" for number in (*least, *most)]
        raise MisconfigurationException(
            f"The train dataloaders differ between the ranks: one has {names[0]}, another {names[1]} (rank "
            f"{trainer.global_rank}: {batches}). The ranks would wait for each other forever at the end of the "
            "shorter one. Give every rank the same number, with a DistributedSampler "
            "(Trainer(use_distributed_sampler=True)), or set Trainer(limit_train_batches=...)."
        )
    own = [
        math.nan if number is None else number
        for number in (_batch_size(trainer), _epoch_examples(trainer, batch_size_fn))
    ]
    first_size, first_rows, batch_size, examples = sums([size, rows, *own], device, ranks)
    return Loaders(
        batches=batches,
        first_size=round(first_size),
        first_rows=round(first_rows),
        batch_size=None if math.isnan(batch_size) else round(batch_size),
        examples=None if math.isnan(examples) else round(examples),
        epoch=trainer.current_epoch,
        batch_size_fn=batch_size_fn,
    )


def _epoch_examples(trainer: pl.Trainer, batch_size_fn: BatchSizeFn | None) -> int | None:
    loader = trainer.train_dataloader
    if (
        batch_size_fn is None
        and isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and type(loader.batch_sampler) is BatchSampler
        and not loader.drop_last
        and epoch_batches(trainer) == len(loader)
    ):
        return len(loader.sampler)  # type: ignore[arg-type]  # a loader with a length has a sampler with one
    return None


def _batch_size(trainer: pl.Trainer) -> int | None:
    loader = trainer.train_dataloader
    return loader.batch_size if isinstance(loader, DataLoader) else None


def examples_in_plan(
    trainer: pl.Trainer,
    loaders: Loaders,
    granularity: int,
    *,
    with_max_steps: bool = True,
    plan: tuple[int, int] | None = None,
) -> float | None:
    """Return the examples of the training as planned by `max_epochs` and `max_steps`, the smaller number of both.

    Args:
        trainer: a Trainer whose fit has begun
        loaders: the loaders of all ranks
        granularity: examples of one loader batch on all devices
        with_max_steps: whether `max_steps` limits the plan
        plan: loader batches of a step, and examples of one on all devices, of the start in whose steps `max_steps` is
            counted; None for this one

    Returns:
        The number over all devices, or None if unknown.
    """
    batches, examples = loaders.batches, loaders.epoch_examples(granularity)
    accumulate, size = plan or (int(trainer.accumulate_grad_batches), granularity)
    if examples is not None and size != granularity:
        batches = math.ceil(examples / size)
    return planned_examples(
        max_epochs=trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else None,
        max_steps=trainer.max_steps if with_max_steps and trainer.max_steps >= 0 else None,
        epoch_batches=batches,
        epoch_examples=examples,
        accumulate=accumulate,
        granularity=size,
    )
