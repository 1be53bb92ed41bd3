"""The size of a batch, and of an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from numbers import Real
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from lightning_bsscale.callbacks.checks.options import BatchSizeFn
from lightning_bsscale.gradients.reduce import extremes, sums
from lightning_bsscale.theory.checks import found
from lightning_bsscale.theory.windows import planned_examples

_said_ambiguous: set[str] = set()  # of which types of batch, in this process, as Lightning does


def _tensors_in(batch: Any) -> Iterator[Tensor]:
    # In the order in which Lightning looks for one. Its own function would warn at every new size, with advice for
    # `self.log`, and would walk through arrays number by number.
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for item in batch.values():
            yield from _tensors_in(item)
    elif isinstance(batch, (str, bytes, Iterator)) or hasattr(batch, "__array__"):
        return  # what can be read only once is the training step's to read
    elif isinstance(batch, Iterable):
        for item in batch:
            yield from _tensors_in(item)
    elif is_dataclass(batch) and not isinstance(batch, type):
        for field in fields(batch):
            yield from _tensors_in(getattr(batch, field.name))


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
            "The number of examples in a batch must be known before the training step, and Lightning shows no batch, "
            "as training_step takes dataloader_iter. Let training_step take the batch."
        )
    size: Any = _size_of_first_tensor(batch) if batch_size_fn is None else batch_size_fn(batch)
    number = math.nan if isinstance(size, bool) or not isinstance(size, Real) else float(size)
    if not 0 < number < math.inf or number != number // 1:
        source = "The loader gave a batch of" if batch_size_fn is None else "batch_size_fn returned"
        hint = " Call .item() on it." if isinstance(size, Tensor) else ""
        raise MisconfigurationException(f"{source} {found(size)} examples; a positive whole number is needed.{hint}")
    return int(number)


def _size_of_first_tensor(batch: Any) -> int:
    kind = type(batch).__name__
    try:
        tensors = list(_tensors_in(batch))
    except RecursionError:
        tensors = []
    if not tensors:
        raise MisconfigurationException(
            f"The number of examples in a batch of type {kind} cannot be found: it holds no tensor. Pass a function "
            "that counts them, for example batch_size_fn=len, or batch_size_fn=lambda batch: batch.num_graphs."
        )
    size = tensors[0].size(0) if tensors[0].ndim else 1
    if kind not in _said_ambiguous and any(tensor.ndim and tensor.size(0) != size for tensor in tensors):
        _said_ambiguous.add(kind)
        rank_zero_warn(
            f"bsscale: the tensors in a batch of type {kind} differ in their first dimension, and that of the first "
            "tensor is taken for the number of examples. If it is not, the noise scale is wrong by that factor: pass a "
            "function that counts them, for example batch_size_fn=lambda batch: len(batch['labels']).",
            category=UserWarning,
        )
    return size


class SizeCheck:
    """Says once where the micro-batches are not of the size that everything is counted in: the first one's."""

    ENOUGH = 50
    TOLERANCE = 0.25

    def __init__(self, micro_batch_size: int | None) -> None:
        """Begins without a micro-batch.

        Args:
            micro_batch_size: the size that this device's batches are counted in; None where that is not known
        """
        self._unit = micro_batch_size
        self._count = 0
        self._examples = 0

    def add(self, examples: int, micro_batches: int) -> None:
        """Add a window of so many examples and micro-batches."""
        if self._unit is None or self._count >= self.ENOUGH:
            return
        self._count += micro_batches
        self._examples += examples
        mean = self._examples / self._count
        if self._count >= self.ENOUGH and abs(mean / self._unit - 1) > self.TOLERANCE:
            rank_zero_warn(
                f"bsscale: the first micro-batch had {self._unit} examples, the first {self._count} have {mean:.4g} "
                "on average. Batches, limits and the budget are counted in micro-batches of the first one's size. Let "
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaders:
    """What the loaders of all ranks say together, the same on every rank: ranks may have loaders of their own.

    Attributes:
        batches: micro-batches in an epoch on each rank, or None where the loaders have no length
        first_size: examples of the ranks' first micro-batches together
        batch_size: the `batch_size` of the ranks' loaders together, as the users gave it; None where one has none
        examples: examples in an epoch, where plain loaders say so exactly, else None
        epoch: when they were asked
        batch_size_fn: the user's way to count
    """

    batches: int | None
    first_size: int
    batch_size: int | None
    examples: int | None
    epoch: int
    batch_size_fn: BatchSizeFn | None

    def are_old(self, trainer: pl.Trainer) -> bool:
        """Whether new ones were made for the present epoch (`reload_dataloaders_every_n_epochs`).

        Args:
            trainer: a Trainer in an epoch

        Returns:
            the same on all ranks
        """
        now = trainer.current_epoch
        every = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
        return bool(every) and self.epoch != now and trainer.fit_loop._last_train_dl_reload_epoch == now

    def asked_again(self, trainer: pl.Trainer, micro_batch_size: int) -> Loaders:
        """Ask the new loaders, at their first micro-batch of so many examples on this rank; it waits for all ranks."""
        return ask_all_ranks(trainer, micro_batch_size, self.batch_size_fn)

    def epoch_examples(self, granularity: int) -> int | None:
        """Examples in an epoch: exact for plain DataLoaders, batches × the usual size for any others with a length.

        Args:
            granularity: examples of one micro-batch on all devices

        Returns:
            the number over all devices, or None for loaders without a length
        """
        # A loader whose batches are of another size than its own `batch_size` does not count examples.
        if self.examples is not None and self.batch_size == granularity:
            return self.examples
        return None if self.batches is None else self.batches * granularity


def ask_all_ranks(trainer: pl.Trainer, micro_batch_size: int, batch_size_fn: BatchSizeFn | None) -> Loaders:
    """Puts together what the ranks' loaders say, and checks that they are of one length.

    It waits for all ranks: for the start of training, and where loaders are made anew.

    Args:
        trainer: a Trainer whose fit has begun
        micro_batch_size: examples in this rank's first micro-batch
        batch_size_fn: the user's way to count; with one the loader's own sizes say nothing

    Returns:
        the record

    Raises:
        MisconfigurationException: the loaders differ in length
    """
    device, ranks, batches = trainer.strategy.root_device, trainer.world_size, epoch_batches(trainer)
    least, most = extremes([-1 if batches is None else batches], device, ranks)
    if least != most:
        names = ["no length" if number < 0 else f"{number:g} micro-batches" for number in (*least, *most)]
        raise MisconfigurationException(
            f"The train dataloaders differ between the ranks: one has {names[0]}, another {names[1]} (rank "
            f"{trainer.global_rank}: {batches}). The ranks would wait for each other for ever at the shorter one's "
            "end. Give every rank the same number: a DistributedSampler does (Trainer(use_distributed_sampler=True)), "
            "or set Trainer(limit_train_batches=...)."
        )
    own = [micro_batch_size, _batch_size(trainer), _epoch_examples(trainer, batch_size_fn)]
    first_size, batch_size, examples = sums([math.nan if number is None else number for number in own], device, ranks)
    return Loaders(
        batches=batches,
        first_size=round(first_size),
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
    found: Loaders,
    granularity: int,
    *,
    with_max_steps: bool = True,
    plan: tuple[int, int] | None = None,
) -> float | None:
    """Examples of the training as the user planned it: by `max_epochs`, by `max_steps`, or the smaller of both.

    Args:
        trainer: a Trainer whose fit has begun
        found: what the ranks' loaders say
        granularity: examples of one micro-batch on all devices
        with_max_steps: whether `max_steps` counts
        plan: micro-batches of a step, and examples of one on all devices, of the start whose steps `max_steps` counts;
            None where it is this one

    Returns:
        the number over all devices, or None where it is unknown
    """
    batches, examples = found.batches, found.epoch_examples(granularity)
    accumulate, size = plan or (int(trainer.accumulate_grad_batches), granularity)
    if examples is not None and size != granularity:
        batches = math.ceil(examples / size)
    return planned_examples(
        max_epochs=trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else None,
        max_steps=trainer.max_steps if with_max_steps and trainer.max_steps >= 0 else None,
        epoch_batches=batches,
        epoch_examples=examples,
        accumulate=accumulate,
        micro_batch_size=size,
    )
