import math

import pytest

from lightning_bsscale.theory.policies import Decision, Reason, Situation, hold_without_decision, recorded_decision

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

    recorded = recorded_decision(
        Decision(batch_size=8, reason=Long(), code=Long(), bound=10**400, target=True, needed="8"), NOW
    )
    assert len(recorded.reason) == 500
    assert len(recorded.code) == 80
    assert (recorded.bound, recorded.target, recorded.needed) == (math.inf, None, None)
    assert recorded_decision(Decision(batch_size=10**400, reason=""), NOW) is None  # no journal could hold it


@pytest.mark.parametrize("answer", [None, 64, Decision(batch_size=0, reason=""), Decision(batch_size="8", reason="")])
def test_no_decision_is_a_hold(answer):
    assert recorded_decision(answer, NOW) is None
    held = hold_without_decision(NOW)
    assert (held.batch_size, held.code) == (32, "no_decision")
    assert recorded_decision(held, NOW) == held
