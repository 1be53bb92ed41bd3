"""What a policy is given, and how its answer is recorded."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_bsscale.theory.policies import (
    Decision,
    Limits,
    Policy,
    Reason,
    Situation,
    hold_without_decision,
    recorded_decision,
)


class Hold(Policy):
    def decide(self, situation: Situation, limits: Limits) -> Decision:
        return Decision(batch_size=situation.batch_size, reason="hold")


def test_a_policy_needs_decide_and_nothing_else():
    assert not Hold().needs_budget
    with pytest.raises(TypeError, match="abstract"):
        Policy()


@pytest.mark.parametrize(
    ("asked", "expected"), [(0, 8), (8, 8), (15.9, 8), (16, 16), (100, 96), (1e9, 96), (math.inf, 96)]
)
def test_clip_rounds_down_and_stays_within(asked, expected):
    limits = Limits(granularity=8, min_batch_size=5, max_batch_size=100)
    assert limits.clip(asked) == expected
    with pytest.raises(ValueError, match="batch_size must be a number at least 0, got nan"):
        limits.clip(math.nan)


@given(st.integers(1, 20), st.integers(1, 200), st.integers(0, 200), st.floats(0, 1e4))
def test_clip_gives_only_possible_batches(granularity, smallest, width, asked):
    largest = smallest + width + granularity
    batch = Limits(granularity=granularity, min_batch_size=smallest, max_batch_size=largest).clip(asked)
    assert batch % granularity == 0
    assert smallest <= batch <= largest
    assert batch <= asked or batch < smallest + granularity


@pytest.mark.parametrize(
    ("granularity", "smallest", "largest", "error", "message"),
    [
        (0, 1, 8, ValueError, "granularity must be an integer of at least 1, got 0"),
        (8, 8.0, 8, TypeError, "min_batch_size must be an integer of at least 1, got 8.0"),
        (8, 9, 15, ValueError, "must have a multiple of granularity between them, got 9, 15 and a granularity of 8"),
    ],
)
def test_bounds_are_checked(granularity, smallest, largest, error, message):
    with pytest.raises(error, match=message):
        Limits(granularity=granularity, min_batch_size=smallest, max_batch_size=largest)


NOW = Situation(batch_size=32, start_batch_size=8, examples_seen=5000)


def test_reasons_are_sentences():
    assert len({reason.value for reason in Reason}) == len(Reason)
    for reason in Reason:
        assert str(reason) == f"{reason}" == reason.value
        assert reason.value.split(":")[0] in {"hold", "grow", "shrink"}


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Decision(batch_size=32, reason="wait"), "hold"),
        (Decision(batch_size=33, reason="more"), "grow"),
        (Decision(batch_size=31, reason="less"), "shrink"),
        (Decision(batch_size=32, reason=Reason.GROW), "grow"),
        (Decision(batch_size=64, reason=Reason.UNRESOLVED.value), "unresolved"),
        (Decision(batch_size=64, reason="more", code="by plan"), "by plan"),
        (Decision(batch_size=32, reason="wait", code=7), "7"),
    ],
)
def test_a_decision_without_a_code_gets_one(answer, code):
    recorded = recorded_decision(answer, NOW)
    assert recorded.code == code
    assert recorded_decision(recorded, NOW) == recorded


def test_what_is_recorded_is_bounded_and_pythons_own():
    class Long:
        def __str__(self):
            return "x" * 10**6

    odd = Decision(batch_size=8, reason=Long(), code=Long(), bound=10**400, target=True, needed="8")
    recorded = recorded_decision(odd, NOW)
    assert (len(recorded.reason), len(recorded.code)) == (500, 80)
    assert (recorded.bound, recorded.target, recorded.needed) == (math.inf, None, None)
    assert recorded_decision(Decision(batch_size=10**400, reason=""), NOW) is None  # no journal could hold it


@pytest.mark.parametrize("answer", [None, 64, Decision(batch_size=0, reason=""), Decision(batch_size="8", reason="")])
def test_no_decision_is_a_hold(answer):
    assert recorded_decision(answer, NOW) is None
    held = hold_without_decision(NOW)
    assert (held.batch_size, held.code) == (32, "no_decision")
    assert recorded_decision(held, NOW) == held
