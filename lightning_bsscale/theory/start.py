"""The unit that a run counts in: examples of one loader batch over all ranks, and what else a start fixes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Start", "describe_change", "read_unit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What batches and the user's plan are counted in.

    Attributes:
        granularity: Examples of one loader batch over all ranks.
        loader_batch_size: The loaders' own `batch_size` over all ranks, which tells a changed loader batch from a short
            one; None where a loader has none.
        world_size: Number of ranks.
        accumulate: Loader batches of one step.
    """

    granularity: int
    loader_batch_size: int | None
    world_size: int
    accumulate: int

    @property
    def micro_batch_size(self) -> float:
        """Examples of one loader batch on one rank, on average over the ranks."""
        whole, rest = divmod(self.granularity, self.world_size)
        return self.granularity / self.world_size if rest else whole

    @property
    def own_micro_batch_size(self) -> int | None:
        """Examples of one loader batch on this rank; None with several ranks, which may differ."""
        return self.granularity if self.world_size == 1 else None

    @property
    def batch_size(self) -> int:
        """Examples of one step."""
        return self.accumulate * self.granularity


def read_unit(first_size: int, loader_batch_size: int | None, world_size: int, first: Start | None) -> int:
    """Compute the examples of one loader batch over all ranks.

    Args:
        first_size: Examples of the ranks' first loader batches together.
        loader_batch_size: The loaders' own `batch_size` together, or None.
        world_size: Number of ranks.
        first: The start of the run that is resumed, or None. The loader batch that a resumed run happens to begin with
            may be a short one, so its unit is kept, unless the loaders say that it was changed.

    Returns:
        The number, at least one example for each rank of a resumed run.
    """
    if first is None:
        return first_size
    size = first.micro_batch_size
    if loader_batch_size is not None and first.loader_batch_size is not None:
        size *= (loader_batch_size / world_size) / (first.loader_batch_size / first.world_size)
    return max(world_size, round(size * world_size))


def describe_change(before: Start, now: Start) -> str:
    """Describe how two starts differ.

    Args:
        before: The first one.
        now: The present one.

    Returns:
        A part of a sentence, empty where they are alike.
    """
    names = {
        "micro_batch_size": "micro-batches of {} instead of {} examples",
        "world_size": "{} instead of {} devices",
        "accumulate": "accumulate_grad_batches={} instead of {}",
    }
    changes = [
        text.format(round(getattr(now, name), 1), round(getattr(before, name), 1))
        for name, text in names.items()
        if getattr(now, name) != getattr(before, name)
    ]
    return ", ".join(changes)
