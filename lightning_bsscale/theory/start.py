"""The unit in which a run counts (examples of one loader batch over all ranks), and what else a start fixes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Start", "describe_change", "read_unit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The sizes in which batches and the user's plan are counted.

    Attributes:
        granularity: Examples of one loader batch over all ranks.
        loader_batch_size: The loaders' own `batch_size` over all ranks, which distinguishes a changed loader batch from
            a short one; None if a loader has none.
        world_size: Number of ranks.
        accumulate: Loader batches of one step.
    """

    granularity: int
    loader_batch_size: int | None
    world_size: int
    accumulate: int

    @property
    def granularity_per_rank(self) -> float:
        """Examples of one loader batch on one rank, on average over the ranks."""
        whole, rest = divmod(self.granularity, self.world_size)
        return self.granularity / self.world_size if rest else whole

    @property
    def own_granularity(self) -> int | None:
        """Examples of one loader batch on this rank; None with several ranks, where they may differ."""
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
        first: The first start of the resumed run, or None. The loader batch with which a resumed run happens to begin
            may be a short one, so the unit is kept unless the loaders' `batch_size` changed.

    Returns:
        The number; in a resumed run, at least one example per rank.
    """
    if first is None:
        return first_size
    size = first.granularity_per_rank
    if loader_batch_size is not None and first.loader_batch_size is not None:
        size *= (loader_batch_size / world_size) / (first.loader_batch_size / first.world_size)
    return max(world_size, round(size * world_size))


def describe_change(before: Start, now: Start, unit: str = "examples") -> str:
    """Describe in a phrase how two starts differ, in what is counted; empty if they are alike."""
    names = {
        "granularity_per_rank": f"loader batches of {{}} instead of {{}} {unit}",
        "world_size": "{} instead of {} devices",
        "accumulate": "accumulate_grad_batches={} instead of {}",
    }
    changes = [
        text.format(round(getattr(now, name), 1), round(getattr(before, name), 1))
        for name, text in names.items()
        if getattr(now, name) != getattr(before, name)
    ]
    return ", ".join(changes)
