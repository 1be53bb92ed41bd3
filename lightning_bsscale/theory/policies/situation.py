"""A policy's input: the situation at the end of a window, and the limits of the batch size."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_bsscale.theory.checks import check_integer, check_number
from lightning_bsscale.theory.estimate import NoiseScale

__all__ = ["Limits", "Situation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """The state of training at the end of a window.

    Attributes:
        batch_size: The current batch size, in examples over all ranks.
        start_batch_size: The batch size at the start of training, in examples.
        examples_seen: Examples seen so far.
        total_examples: The budget in examples; None when unknown.
        warmup_examples: Length of the warmup, in examples.
        optimizer_steps: Optimizer steps taken so far.
        schedule_factor: The schedule's current factor on the learning rate (1 at its peak), without the rule's.
        examples_at_last_change: Examples seen when the batch size last changed; None when it never did.
        noise: The current estimate; None when there is none.
        seconds_per_micro_batch: Measured seconds of one micro-batch; None when unknown.
        seconds_per_step: Measured seconds of one optimizer step beyond its micro-batches; None when unknown.
    """

    batch_size: int
    start_batch_size: int
    examples_seen: float
    total_examples: float | None = None
    warmup_examples: float = 0.0
    optimizer_steps: int = 0
    schedule_factor: float = 1.0
    examples_at_last_change: float | None = None
    noise: NoiseScale | None = None
    seconds_per_micro_batch: float | None = None
    seconds_per_step: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The possible batch sizes: multiples of ``granularity`` within the bounds.

    Attributes:
        granularity: Examples of one micro-batch over all ranks, at least 1.
        min_batch_size: Smallest batch size, in examples, at least 1.
        max_batch_size: Largest batch size, in examples.
    """

    granularity: int
    min_batch_size: int
    max_batch_size: int

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            ValueError: If no multiple of the granularity lies within the bounds.
        """
        check_integer("granularity", self.granularity, at_least=1)
        check_integer("min_batch_size", self.min_batch_size, at_least=1)
        check_integer("max_batch_size", self.max_batch_size, at_least=1)
        if self._smallest > self._largest:
            raise ValueError(
                "min_batch_size and max_batch_size must have a multiple of granularity between them, "
                f"got {self.min_batch_size}, {self.max_batch_size} and a granularity of {self.granularity}"
            )

    @property
    def _smallest(self) -> int:
        return -(-self.min_batch_size // self.granularity) * self.granularity

    @property
    def _largest(self) -> int:
        return self.max_batch_size // self.granularity * self.granularity

    def clip(self, batch_size: float) -> int:
        """Round down to a multiple of the granularity and clip to the bounds.

        Args:
            batch_size: Any batch size in examples, at least 0; infinity gives the largest.

        Returns:
            A possible batch size.

        Example:
            >>> limits = Limits(granularity=8, min_batch_size=8, max_batch_size=100)
            >>> limits.clip(31.9), limits.clip(1), limits.clip(1000)
            (24, 8, 96)
        """
        asked = check_number("batch_size", batch_size, at_least=0, may_be_infinite=True)
        bounded = int(min(asked, self._largest))
        return max(bounded // self.granularity * self.granularity, self._smallest)
