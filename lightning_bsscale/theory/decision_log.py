"""The decisions that are kept: bounded, however long the training and whatever the policy."""

from __future__ import annotations

from typing import Any

from lightning_bsscale.theory.records import DecisionRecord
from lightning_bsscale.theory.stored import as_plain, from_plain

CHANGES_LIMIT = 1024
HOLDS_LIMIT = 1024


class DecisionLog:
    """Changes of the batch, and the first of each run of holds with one code.

    Attributes:
        records: Those kept, in order. Beyond each limit the older half of the changes (or of the holds) keeps every
            second one, so the first and the latest are always there, and a long run keeps its whole course.
        changes: Changes in all.
        holds: Runs of holds in all.
    """

    def __init__(self) -> None:
        """Begin with nothing decided."""
        self.records: list[DecisionRecord] = []
        self.changes = 0
        self.holds = 0
        self._kept_changes = 0

    def add(self, record: DecisionRecord) -> bool:
        """Keep a decision, unless it only continues a run of holds.

        Args:
            record: The decision.

        Returns:
            Whether it was kept.
        """
        last = self.records[-1] if self.records else None
        if record.is_change:
            self.changes += 1
            self._kept_changes += 1
        elif last is not None and not last.is_change and last.decision.code == record.decision.code:
            return False
        else:
            self.holds += 1
        self.records.append(record)
        kept, limit = self._kept_changes, CHANGES_LIMIT
        if not record.is_change:
            kept, limit = len(self.records) - kept, HOLDS_LIMIT
        if kept > limit:
            self._thin(changes=record.is_change)
        return True

    def _thin(self, *, changes: bool) -> None:
        places = [place for place, record in enumerate(self.records) if record.is_change is changes]
        dropped = set(places[: len(places) // 2][1::2])
        self.records = [record for place, record in enumerate(self.records) if place not in dropped]
        if changes:
            self._kept_changes -= len(dropped)

    def state(self) -> dict[str, Any]:
        """Return what cannot be recomputed.

        Returns:
            Numbers, strings, lists and dicts.
        """
        return {"records": [as_plain(record) for record in self.records], "changes": self.changes, "holds": self.holds}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> DecisionLog:
        """Make the log from its state.

        Args:
            state: What `state` gave.

        Returns:
            The log.
        """
        log = cls()
        log.records = [from_plain(DecisionRecord, record) for record in state["records"]]
        log.changes, log.holds = state["changes"], state["holds"]
        log._kept_changes = sum(record.is_change for record in log.records)
        return log
