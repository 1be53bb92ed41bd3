"""The decisions that are kept: bounded, however long the training and whatever the policy."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_bsscale.theory.records import DecisionRecord

__all__ = ["DecisionLog"]

CHANGES_LIMIT = 1024
HOLDS_LIMIT = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionLog:
    """Changes of the batch, and the first of each run of holds with one code.

    Attributes:
        records: Those kept, in order. Beyond each limit the older half of the changes (or of the holds) keeps every
            second one, so the first and the latest are always there, and a long run keeps its whole course.
        changes: Changes in all.
        holds: Runs of holds in all.
        kept_changes: Changes among those kept.
    """

    records: tuple[DecisionRecord, ...] = ()
    changes: int = 0
    holds: int = 0
    kept_changes: int = 0

    def continues(self, record: DecisionRecord) -> bool:
        """Return whether a decision only continues the present run of holds, and so is not kept."""
        last = self.records[-1] if self.records else None
        return (
            last is not None
            and not record.is_change
            and not last.is_change
            and last.decision.code == record.decision.code
        )

    def added(self, record: DecisionRecord) -> DecisionLog:
        """Keep a decision.

        Args:
            record: The decision, one that does not only continue a run of holds.

        Returns:
            A new log.
        """
        records, is_change = (*self.records, record), record.is_change
        changes = self.kept_changes + is_change
        kept, limit = (changes, CHANGES_LIMIT) if is_change else (len(records) - changes, HOLDS_LIMIT)
        if kept > limit:
            places = [place for place, kept in enumerate(records) if kept.is_change is is_change]
            dropped = set(places[: len(places) // 2][1::2])
            records = tuple(kept for place, kept in enumerate(records) if place not in dropped)
            changes -= len(dropped) if is_change else 0
        return DecisionLog(
            records=records,
            changes=self.changes + is_change,
            holds=self.holds + (not is_change),
            kept_changes=changes,
        )
