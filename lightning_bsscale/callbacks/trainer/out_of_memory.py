"""Recognise that a device ran out of memory, remember how much it holds, and undo what a failed computation left."""

from __future__ import annotations

import sys
import traceback
import warnings
from typing import NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error
from torch.nn import SyncBatchNorm
from torch.nn.parallel import DistributedDataParallel

from lightning_bsscale.callbacks.trainer.traits import has_batch_norm, is_sharded
from lightning_bsscale.theory.micro_batches import smaller_size, smallest

__all__ = [
    "LoggedValues",
    "RecoveryOptions",
    "RowLimit",
    "add_note",
    "free_memory",
    "is_out_of_memory",
    "passed_through",
    "recovery_options",
]

# What `is_oom_error` does not know: other accelerators, C++'s own allocator, libraries that allocate beside torch's.
PHRASES = ("backend out of memory", "not enough memory", "bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED")


class RecoveryOptions(NamedTuple):
    """Whether a window is computed again where memory ran out.

    Attributes:
        is_allowed: whether it is, in smaller micro-batches
        divides: whether a loader batch is split for that
        hint: what would allow it, or allow more of it; empty if nothing would
    """

    is_allowed: bool = False
    divides: bool = False
    hint: str = ""


def recovery_options(trainer: pl.Trainer, split: bool | None) -> RecoveryOptions:
    """Return whether a window is computed again, in smaller micro-batches, where memory runs out.

    Args:
        trainer: the Trainer
        split: whether loader batches may be split; None unless the model has batch normalisation
    """
    model = trainer.strategy.model
    if isinstance(model, DistributedDataParallel):
        # With a static graph torch wants every backward pass of the first step to be exchanged, and SyncBatchNorm waits
        # for all ranks in every pass.
        waits = any(isinstance(module, SyncBatchNorm) for module in model.modules())
        is_possible = not model.static_graph and not waits
    else:
        is_possible = trainer.world_size == 1 and not is_sharded(trainer)
    if not is_possible:
        return RecoveryOptions()
    if has_batch_norm(trainer.lightning_module) and not split:
        hint = (
            "bsscale: smaller micro-batches were not tried, because the model has batch normalisation, whose output "
            "depends on them. Set split=True to allow it."
        )
        return RecoveryOptions(hint=hint)
    if split is False:
        hint = "bsscale: loader batches are kept whole by split=False; split='auto' would compute this one in parts."
        return RecoveryOptions(is_allowed=True, hint=hint)
    return RecoveryOptions(is_allowed=True, divides=True)


class RowLimit:
    """Most rows in a micro-batch since memory ran out on this rank.

    Attributes:
        rows: the limit; None if memory did not run out
        options: whether there may be one
    """

    def __init__(self) -> None:
        self.rows: int | None = None
        self.options = RecoveryOptions()
        self._is_new = False
        self._did_not_fit = 0  # rows, until that is said

    def lower(self, rows: int) -> None:
        """Set the limit to the next smaller size, because so many rows did not fit."""
        self.rows, self._is_new = smallest(self.rows, smaller_size(rows)), True
        self._did_not_fit = max(self._did_not_fit, rows)

    def take_new(self) -> int | None:
        """Return the limit if it was lowered since the last call, else None."""
        was_new, self._is_new = self._is_new, False
        return self.rows if was_new else None

    def warn(self) -> None:
        """Warn if it was lowered since the last call; once what did not fit has been computed."""
        rows, self._did_not_fit = self._did_not_fit, 0
        if rows:
            warnings.warn(
                f"bsscale: memory ran out in a micro-batch of {rows} examples. It was computed again in smaller ones, "
                f"with the same gradient, and from now on at most {self.rows} examples are computed at once. To begin "
                f"with that, set max_micro_batch_size={self.rows}.",
                category=UserWarning,
                stacklevel=2,
            )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there was not enough memory, on an accelerator or on the host."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and (is_oom_error(error) or any(words in str(error) for words in PHRASES))


def free_memory() -> None:
    """Free what nobody refers to any more; to be called outside of `except`, whose traceback refers to tensors."""
    garbage_collection_cuda()


def passed_through(error: BaseException, function: str) -> bool:
    """Return whether an error was raised within a function of this name."""
    return any(frame.f_code.co_name == function for frame, _ in traceback.walk_tb(error.__traceback__))


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an error that is raised again, where Python can (from 3.11 on)."""
    if sys.version_info >= (3, 11):
        error.add_note(note)


class LoggedValues:
    """The logged values as they are now, to return to.

    Args:
        trainer: the Trainer, within a training step
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer
        self._results = trainer._results
        assert self._results is not None
        # A value that is added to is replaced by a new tensor, so the attributes are all there is to keep.
        self._values = {key: dict(vars(value)) for key, value in self._results.items()}
        self._logged_in = trainer._logger_connector._current_fx
        self._called_in = trainer.lightning_module._current_fx_name

    def restore(self) -> None:
        """Make the logged values what they were."""
        assert self._results is not None
        for key in self._results.keys() - self._values.keys():
            del self._results[key]
        for key, attributes in self._values.items():
            vars(self._results[key]).clear()
            vars(self._results[key]).update(attributes)
        self._trainer._logger_connector._current_fx = self._logged_in
        self._trainer.lightning_module._current_fx_name = self._called_in
