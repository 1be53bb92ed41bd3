"""What the records say of themselves."""

from dataclasses import FrozenInstanceError, replace

import pytest

from tests.helpers.records import DECISION, MEASUREMENT


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
