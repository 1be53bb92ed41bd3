"""Policies that ask others: one after the other, or the largest."""

import pytest

from lightning_bsscale.theory.policies import (
    Decision,
    HoldIfWorse,
    Largest,
    Limits,
    Milestones,
    NoiseScalePolicy,
    Seesaw,
    Sequence,
    Situation,
    Smith,
)

LIMITS = Limits(granularity=8, min_batch_size=8, max_batch_size=256)


class Says:
    """What a user writes, which inherits from nothing."""

    def __init__(self, answer, reason="mine"):
        self.answer, self.reason = answer, reason

    def decide(self, situation, limits):
        return self.answer and Decision(batch_size=self.answer, reason=self.reason, code="mine")


def at(seen, total=1000.0):
    return Situation(batch_size=32, start_batch_size=8, examples_seen=seen, total_examples=total)


@pytest.mark.parametrize(("places", "total"), [([0.3, 0.7], 1000.0), ([300, 700], None), ([300, 0.7], 1000.0)])
def test_one_policy_after_the_other(places, total):
    policy = Sequence([Says(8), Says(16), Says(64)], at=places)
    asked = {seen: policy.decide(at(seen, total), LIMITS).batch_size for seen in (0, 299, 300, 699, 700, 1000)}
    assert asked == {0: 8, 299: 8, 300: 16, 699: 16, 700: 64, 1000: 64}
    assert policy.needs_budget == any(isinstance(place, float) for place in places)
    assert policy.decide(at(299, total), LIMITS).reason == "mine (Says, from 0 on)"
    assert policy.decide(at(700, total), LIMITS).reason == "mine (Says, from 700 on)"
    assert policy.decide(at(700, total), LIMITS).code == "mine"


@pytest.mark.parametrize(
    ("answers", "batch", "reason"),
    [
        ([8, 64, 16], 64, "mine (Says; Says 8, Says 16)"),
        ([32, 32, 8], 32, "first (Says; Says 32, Says 8)"),
        ([8, 16, 24], 24, "mine (Says; Says 8, Says 16)"),
        ([None, 16, None], 16, "mine (Says)"),
    ],
)
def test_the_largest_answer_wins(answers, batch, reason):
    policy = Largest([Says(answers[0], "first"), *map(Says, answers[1:])])
    decision = policy.decide(at(5), LIMITS)
    assert (decision.batch_size, decision.reason, decision.code) == (batch, reason, "mine")


def test_no_valid_answer_is_passed_on():
    assert Largest([Says(None), Says(None)]).decide(at(5), LIMITS) is None
    assert HoldIfWorse(Says(None)).decide(at(5), LIMITS) is None
    assert Sequence([Says(None), Says(8)], at=[300]).decide(at(5), LIMITS) is None


def test_rules_must_suit_all():
    assert Largest([Seesaw(), Milestones({300: 2})]).lr_rules == ("sqrt", "surge")
    assert Largest([Seesaw(form="sgd"), Smith()]).lr_rules == ("linear", "saturating")
    assert Sequence([Seesaw(), Smith()], at=[300]).lr_rules == ()
    assert Sequence([NoiseScalePolicy(), NoiseScalePolicy.meta()], at=[300]).needs_budget


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Largest([Says(8)]), "policies must be 2 to 16 policies, got 1"),
        (lambda: Largest([Says(8)] * 17), "policies must be 2 to 16 policies, got 17"),
        (lambda: Largest(Says(8)), "policies must be a list of policies"),
        (
            lambda: Largest([Says(8), Says]),
            r"policies\[1\] must be a policy such as NoiseScalePolicy\(\), got the class",
        ),
        (lambda: Sequence([Says(8), Says(8)], at=[]), r"one position less than there are policies \(2\), got 0"),
        (lambda: Sequence([Says(8)] * 3, at=[0.7, 0.3]), "at must rise"),
        (lambda: Sequence([Says(8)] * 2, at=0.3), "at must be a list of positions, got 0.3"),
        (lambda: Sequence([Says(8)] * 2, at=[1.5]), r"at\[0\] .* at most 1, got 1.5"),
    ],
)
def test_wrong_options(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
