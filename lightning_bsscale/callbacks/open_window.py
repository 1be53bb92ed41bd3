"""The window in progress, and what the host keeps of one that has ended."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowFacts:
    """What the host knows of a closed window, kept until its norms have arrived.

    The fields are those of `Measurement`, and those for its moments. Examples and sizes are this rank's; the message
    brings those of all ranks.
    """

    examples_seen: int
    optimizer_steps: int
    batch_size: int
    num_micro_batches: int
    window_examples: int
    sum_inverse_sizes: float
    loss_divisor: int
    lr: float
    lr_scale: float


@dataclass(slots=True, kw_only=True)
class OpenWindow:
    """The window in progress on this device.

    Attributes:
        start: index of its first micro-batch in the epoch
        planned: micro-batches that it should have
        loss_divisor: what Lightning divides each loss by
        measured: whether its gradients are watched
        steps_before: the Trainer's optimizer steps when it began
        sizes: examples of each micro-batch so far, the one in progress included
        done: micro-batches that have ended
        is_rest: whether it is what was left of a window that a checkpoint cut
    """

    start: int
    planned: int
    loss_divisor: int
    measured: bool
    steps_before: int
    sizes: list[int]
    done: int = 0
    is_rest: bool = False

    @property
    def came(self) -> int:
        """Micro-batches so far."""
        return len(self.sizes)

    @property
    def examples(self) -> int:
        """Examples so far."""
        return sum(self.sizes)

    def state(self) -> dict[str, Any]:
        """How far it is: what a run that goes on in it must know.

        Returns:
            numbers
        """
        return {
            "start": self.start,
            "planned": self.planned,
            "done": self.done,
            "in_progress": self.came > self.done,
            "is_rest": self.is_rest,
        }

    def facts(
        self, *, examples_seen: int, optimizer_steps: int, batch_size: int, lr: float, lr_scale: float
    ) -> WindowFacts:
        """What is known when the window has ended.

        Args:
            examples_seen: examples of all windows, this one included
            optimizer_steps: optimizer steps, this one included
            batch_size: the batch in force
            lr: the rate of this step
            lr_scale: the factor on it

        Returns:
            the record
        """
        return WindowFacts(
            examples_seen=examples_seen,
            optimizer_steps=optimizer_steps,
            batch_size=batch_size,
            num_micro_batches=self.came,
            window_examples=self.examples,
            sum_inverse_sizes=math.fsum(1 / size for size in self.sizes),
            loss_divisor=self.loss_divisor,
            lr=lr,
            lr_scale=lr_scale,
        )
