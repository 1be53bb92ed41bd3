"""What the records say of themselves, and which decisions are kept."""

import random
import tracemalloc
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from lightning_bsscale.theory import records
from lightning_bsscale.theory.records import DecisionLog
from tests.helpers.records import DECISION, LIMITS, MEASUREMENT, NOISE, SITUATION


@pytest.mark.parametrize(
    ("asked", "given", "is_change", "is_shrink"),
    [(8, 8, False, False), (16, 16, True, False), (4, 8, False, True), (4, 4, True, True), (16, 8, False, False)],
)
def test_a_decision_knows_what_was_asked_and_what_was_made_of_it(asked, given, is_change, is_shrink):
    record = replace(DECISION, decision=replace(DECISION.decision, batch_size=asked), batch_size=given)
    assert (record.is_change, record.is_shrink) == (is_change, is_shrink)


@pytest.mark.parametrize("record", [DECISION, MEASUREMENT])
def test_records_are_frozen_and_have_no_other_attributes(record):
    with pytest.raises(FrozenInstanceError):
        record.lr_scale = 2.0
    assert not hasattr(record, "__dict__")


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
    monkeypatch.setattr(records, "CHANGES_LIMIT", 6)
    monkeypatch.setattr(records, "HOLDS_LIMIT", 6)
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


def test_a_decision_takes_about_1400_bytes():
    """As `docs/resume.md` says, with numbers of its own in every place and a sentence of usual length."""
    dice = random.Random(0)

    def own_numbers(number):
        names = [field.name for field in fields(NOISE) if field.name not in ("resolved", "confidence")]
        situation = replace(
            SITUATION,
            **{name: dice.random() for name in ("schedule_factor", "seconds_per_loader_batch", "seconds_per_step")},
            batch_size=1000 + number,
            examples_seen=1000 * number,
            optimizer_steps=1000 + number,
            examples_at_last_change=900 * number,
            noise=replace(NOISE, **{name: dice.random() for name in names}),
        )
        reason = f"grow: the noise scale's lower bound allows a larger batch, {number} examples after the last change"
        numbers = dict(bound=dice.random(), target=dice.random(), needed=dice.random(), batch_size=2000 + number)
        made = replace(DECISION.decision, reason=reason, **numbers)
        record = replace(DECISION, situation=situation, limits=LIMITS, decision=made, lr_scale=dice.random())
        return replace(record, batch_size=3000 + number)

    log = DecisionLog().added(own_numbers(0))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1, 1001):
            log = log.added(own_numbers(number))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(log.records) == 1001
    assert 1000 < taken / 1000 < 1450
