"""The only writer of `trainer.accumulate_grad_batches`: exact windows of any size, from any loader batch on.

Lightning decides with two remainders whether a loader batch is the first of a window (``batch_idx % A == 0``: clear the
gradient) or the last (``(batch_idx + 1) % A == 0``: step), and divides each loss by ``A``. All three read the Trainer's
public attribute each time. An integer that counts its remainders from the start of the window therefore makes the
window begin and end as planned. A plain integer, changed where the index is not a multiple of it, would apply an old
gradient again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor


class _Window(int):
    """The number of loader batches of a window that begins at `start`: ``x % window`` is ``(x - start) % n``."""

    start: int

    def __new__(cls, num_loader_batches: int, start: int) -> _Window:
        """Create the number, with the start of its window."""
        window = super().__new__(cls, num_loader_batches)
        window.start = start
        return window

    def __rmod__(self, other: int) -> int:
        # Python tries the right operand first if its class is a proper subclass of the left one's.
        return (int(other) - self.start) % int(self)

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        # A copy or a pickle is a plain integer: the offset is meaningless outside its window.
        return int, (int(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> int:
        return int(self)


def check_offset_windows() -> None:
    """Check that this Python counts the remainder of an integer by a window from the window's start.

    Raises:
        MisconfigurationException: If it does not try the right operand first.
    """
    if not (5 % _Window(3, 2) == 0 and 4 % _Window(3, 2) == 2 and 2 % _Window(3, 2) == 0 and _Window(3, 2) == 3):
        raise MisconfigurationException(
            "This Python does not compute `int % subclass of int` by the subclass, so windows cannot be placed "
            "exactly. CPython 3.10 to 3.13 does. Use GradientNoiseScaleMonitor, which changes nothing."
        )


class Accumulation:
    """Places windows on the Trainer, and restores the user's number at the end."""

    def __init__(self, trainer: pl.Trainer) -> None:
        """Store the user's number."""
        check_offset_windows()
        self._trainer = trainer
        self.original = int(trainer.accumulate_grad_batches)

    def place(self, start: int, num_loader_batches: int) -> None:
        """Make the window in progress begin at index `start` of the epoch, with so many loader batches.

        Correct only in `on_train_batch_start`, before Lightning decides about the loader batch.
        """
        self._trainer.accumulate_grad_batches = _Window(num_loader_batches, start)

    def skip(self, batch_idx: int, *, is_open: bool) -> None:
        """Move the window past an index for which the loader returned None, which Lightning counts all the same.

        If that was the window's last index, no step is made, and the next loader batch would clear the gradient of all
        the others. Correct only in `on_train_batch_end` of that index.

        Args:
            batch_idx: the index
            is_open: whether a window is in progress
        """
        placed = self._trainer.accumulate_grad_batches
        # Between windows, place one with the index in its middle; otherwise the loggers would count a step.
        moved = _Window(int(placed), getattr(placed, "start", 0) + 1) if is_open else _Window(2, batch_idx)
        self._trainer.accumulate_grad_batches = moved

    def restore(self) -> None:
        """Restore the user's number on the Trainer."""
        self._trainer.accumulate_grad_batches = self.original


def rescale_cut_window(parameters: Iterable[Tensor], planned: int, done: int) -> None:
    """Make the gradient of a window that the loader cut short the mean over the loader batches done.

    Each loss was divided by the planned number, so the gradient is multiplied by planned/done. Only a loader without a
    length can end unexpectedly.

    Args:
        parameters: the parameters of the optimizer
        planned: loader batches planned
        done: loader batches done
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if grads and done != planned:
        torch._foreach_mul_(grads, planned / done)
