"""The only writer of `trainer.accumulate_grad_batches`: windows of any size, from any micro-batch on, exactly.

Lightning decides with two remainders whether a micro-batch is the first of a window (``batch_idx % A == 0``: clear
the gradient) or the last one (``(batch_idx + 1) % A == 0``: step), and divides each loss by ``A``. All three read the
Trainer's public attribute anew. An integer that counts its remainders from the window's own start therefore makes the
window begin and end where it was planned; a plain integer, changed where the index is no multiple of it, would apply an
old gradient again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor


class _Window(int):
    """The number of micro-batches of a window that begins at `start`: ``x % window`` is ``(x - start) % n``."""

    start: int

    def __new__(cls, num_micro_batches: int, start: int) -> _Window:
        """Makes the number, and keeps where its window starts."""
        window = super().__new__(cls, num_micro_batches)
        window.start = start
        return window

    def __rmod__(self, other: int) -> int:
        # Python asks the right operand first when its class is a proper subclass of the left one's.
        return (int(other) - self.start) % int(self)

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        # A copy or a pickle is a plain integer: the offset means nothing outside its window.
        return int, (int(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> int:
        return int(self)


def check_offset_windows() -> None:
    """The self-test: refuses to start where the remainder of an integer by a window is not counted from its start.

    Raises:
        MisconfigurationException: this Python does not ask the right operand first
    """
    if not (5 % _Window(3, 2) == 0 and 4 % _Window(3, 2) == 2 and 2 % _Window(3, 2) == 0 and _Window(3, 2) == 3):
        raise MisconfigurationException(
            "This Python does not compute `int % subclass of int` by the subclass, so windows cannot be placed "
            "exactly. CPython 3.10 to 3.13 does. Use GradientNoiseScaleMonitor, which changes nothing."
        )


class Accumulation:
    """Places windows on the Trainer, and gives the user's own number back at the end."""

    def __init__(self, trainer: pl.Trainer) -> None:
        """Remembers the user's own number.

        Args:
            trainer: the Trainer to write to
        """
        check_offset_windows()
        self._trainer = trainer
        self.original = int(trainer.accumulate_grad_batches)

    def place(self, start: int, num_micro_batches: int) -> None:
        """Makes the window in progress the one that is wanted.

        Right only in `on_train_batch_start`, where Lightning has decided nothing yet about the micro-batch.

        Args:
            start: index in the epoch of its first micro-batch
            num_micro_batches: micro-batches that it has
        """
        self._trainer.accumulate_grad_batches = _Window(num_micro_batches, start)

    def skip(self, batch_idx: int, *, is_open: bool) -> None:
        """Moves the window past a micro-batch that never done: the loader gave None, and Lightning counts its index.

        Where it was to be a window's last one, no step is made, and the next micro-batch would clear the gradient of
        all the others. Right only in `on_train_batch_end` of that index.

        Args:
            batch_idx: the index
            is_open: whether a window is in progress
        """
        placed = self._trainer.accumulate_grad_batches
        # Between windows: any window in whose middle the index lies, or the loggers would count a step.
        moved = _Window(int(placed), getattr(placed, "start", 0) + 1) if is_open else _Window(2, batch_idx)
        self._trainer.accumulate_grad_batches = moved

    def restore(self) -> None:
        """Gives the Trainer the user's number back."""
        self._trainer.accumulate_grad_batches = self.original


def rescale_cut_window(parameters: Iterable[Tensor], planned: int, done: int) -> None:
    """Makes a window's gradient the mean over the micro-batches that came, where the loader ended before the plan did.

    Each loss was divided by the planned number, so the gradient is multiplied by planned/came. Only a loader without
    a length can end by surprise.

    Args:
        parameters: what the optimizer steps
        planned: micro-batches in the plan
        done: micro-batches that done
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if grads and done != planned:
        torch._foreach_mul_(grads, planned / done)
