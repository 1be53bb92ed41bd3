"""The decisions that are kept."""

from dataclasses import replace

import pytest

from lightning_bsscale.theory import decision_log
from lightning_bsscale.theory.decision_log import DecisionLog
from tests.helpers.records import DECISION


def decision(number, *, is_change=False, code="wait"):
    """A decision whose examples say which one it is."""
    return replace(
        DECISION,
        situation=replace(DECISION.situation, examples_seen=number),
        decision=replace(DECISION.decision, code=code),
        batch_size=16 if is_change else DECISION.situation.batch_size,
    )


@pytest.mark.parametrize(
    ("before", "now", "continues"),
    [
        (None, decision(1), False),
        (decision(0), decision(1), True),
        (decision(0), decision(1, code="other"), False),
        (decision(0, is_change=True), decision(1), False),
        (decision(0), decision(1, is_change=True), False),
        (decision(0, is_change=True), decision(1, is_change=True), False),
    ],
)
def test_only_a_hold_of_the_same_kind_continues(before, now, continues):
    log = DecisionLog() if before is None else DecisionLog().added(before)
    assert log.continues(now) is continues


@pytest.mark.parametrize("is_change", [True, False])
def test_each_kind_is_bounded_and_leaves_the_other_alone(monkeypatch, is_change):
    monkeypatch.setattr(decision_log, "CHANGES_LIMIT", 6)
    monkeypatch.setattr(decision_log, "HOLDS_LIMIT", 6)
    log = DecisionLog().added(decision(0, is_change=not is_change))
    for number in range(1, 51):
        before, log = log, log.added(decision(number, is_change=is_change))
        assert log is not before
        assert len(log.records) <= 7
        assert log.kept_changes == sum(record.is_change for record in log.records)
    kept = [record.situation.examples_seen for record in log.records]
    assert kept == sorted(kept)
    assert (kept[:2], kept[-3:]) == ([0, 1], [48, 49, 50])
    assert (log.changes, log.holds) == ((50, 1) if is_change else (1, 50))
