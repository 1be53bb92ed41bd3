"""The size of a batch, and of an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from numbers import Real
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from lightning_bsscale.callbacks.options import BatchSizeFn
from lightning_bsscale.gradients.collective import extremes
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
        raise MisconfigurationException(f"{source} {size!r} examples; a positive whole number is needed.{hint}")
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


def agreed_micro_batch_size(trainer: pl.Trainer, micro_batch_size: int) -> int:
    """The unit that all ranks count in, and a check that their loaders are of one length.

    It waits for all ranks: for the start of training, and where loaders are made anew.

    Args:
        trainer: a Trainer whose fit has begun
        micro_batch_size: examples in this rank's first micro-batch

    Returns:
        the largest of the ranks' first micro-batches

    Raises:
        MisconfigurationException: the loaders differ in length
    """
    batches = epoch_batches(trainer)
    own = [-1 if batches is None else batches, micro_batch_size]
    least, most = extremes(own, trainer.strategy.root_device, trainer.world_size)
    if least[0] != most[0]:
        names = ["no length" if number < 0 else f"{number:g} micro-batches" for number in (least[0], most[0])]
        raise MisconfigurationException(
            f"The train dataloaders differ between the ranks: one has {names[0]}, another {names[1]} (rank "
            f"{trainer.global_rank}: {batches}). The ranks would wait for each other for ever at the shorter one's "
            "end. Give every rank the same number: a DistributedSampler does (Trainer(use_distributed_sampler=True)), "
            "or set Trainer(limit_train_batches=...)."
        )
    return int(most[1])


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


def loader_batch_size(trainer: pl.Trainer) -> int | None:
    """The size that the user gave the loader.

    Args:
        trainer: a Trainer whose fit has begun

    Returns:
        the `batch_size` of a DataLoader; None for any other loader, and where a batch sampler makes the batches
    """
    loader = trainer.train_dataloader
    return loader.batch_size if isinstance(loader, DataLoader) else None


def examples_in_plan(
    trainer: pl.Trainer,
    micro_batch_size: int,
    batch_size_fn: BatchSizeFn | None,
    *,
    with_max_steps: bool = True,
    plan: tuple[int, int] | None = None,
) -> float | None:
    """Examples of the training as the user planned it: by `max_epochs`, by `max_steps`, or the smaller of both.

    Args:
        trainer: a Trainer whose fit has begun
        micro_batch_size: examples in a micro-batch
        batch_size_fn: the user's way to count
        with_max_steps: whether `max_steps` counts
        plan: micro-batches of a step, and examples of one on all devices, of the start whose steps `max_steps` counts;
            None where it is this one

    Returns:
        the number over all devices, or None where it is unknown
    """
    batches, examples = epoch_batches(trainer), epoch_examples(trainer, micro_batch_size, batch_size_fn)
    accumulate, size = plan or (int(trainer.accumulate_grad_batches), micro_batch_size * trainer.world_size)
    if examples is not None and size != micro_batch_size * trainer.world_size:
        batches = math.ceil(examples / size)
    return planned_examples(
        max_epochs=trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else None,
        max_steps=trainer.max_steps if with_max_steps and trainer.max_steps >= 0 else None,
        epoch_batches=batches,
        epoch_examples=examples,
        accumulate=accumulate,
        micro_batch_size=size,
    )
