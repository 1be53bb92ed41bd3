import pytest

from lightning_bsscale.theory.policies import Limits, Milestones, Situation

LIMITS = Limits(granularity=8, min_batch_size=8, max_batch_size=256)


def decide(policy, seen, batch=16, total=1000.0):
    now = Situation(batch_size=batch, start_batch_size=16, examples_seen=seen, total_examples=total)
    return policy.decide(now, LIMITS)


@pytest.mark.parametrize(
    ("policy", "sizes"),
    [
        (Milestones({0.3: 2, 0.6: 4}), {0: 16, 299: 16, 300: 32, 599: 32, 600: 64, 1000: 64}),
        (Milestones({"0.3": 2, "600": 4}), {299: 16, 300: 32, 600: 64}),
        (Milestones([(0.3, 2), (0.6, 0.5)]), {300: 32, 600: 8}),
        (Milestones({0.3: 30, 700: 100}, unit="examples"), {299: 16, 300: 24, 700: 96}),
        (Milestones({700: 3, 0.3: 2}), {300: 32, 700: 48}),  # by position, whatever the order of the two kinds
        (Milestones({0.0: 1000}), {0: 256}),
    ],
)
def test_the_last_milestone_passed_says_the_size(policy, sizes):
    assert {seen: decide(policy, seen).batch_size for seen in sizes} == sizes
    for seen, size in sizes.items():
        assert decide(policy, seen, batch=size).code == "milestone"


def test_the_decision_explains_itself():
    policy = Milestones({0.3: 2, 0.6: 4})
    assert decide(policy, 10).reason == "hold: no milestone is reached yet; the next one is at 300"
    grown = decide(policy, 310)
    assert (grown.code, grown.target) == ("grow", 32)
    assert grown.reason == "grow: the milestone at 300 asks for a batch of 32"
    assert (
        decide(policy, 310, batch=32).reason
        == "hold: the milestone at 300 asks for a batch of 32; the next one is at 600"
    )
    assert decide(policy, 310, batch=64).code == "shrink"


def test_only_shares_need_a_budget():
    assert Milestones({300: 2, 0.6: 4}).needs_budget
    assert not Milestones({300: 2}).needs_budget
    assert decide(Milestones({0.0: 2, 0.6: 4}), 5000, total=None).batch_size == 32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Milestones({}), "milestones must be 1 to 16, got 0"),
        (lambda: Milestones({0.01 * (n + 1): 2 for n in range(17)}), "milestones must be 1 to 16, got 17"),
        (lambda: Milestones({0.6: 2, 0.3: 4}), "milestones must rise"),
        (lambda: Milestones({0.3: 0}), r"milestones\[0.3\] must be a finite number above 0, got 0"),
        (
            lambda: Milestones({0.3: 1.5}, unit="examples"),
            r"milestones\[0.3\] must be an integer of at least 1, got 1.5",
        ),
        (lambda: Milestones({0.3: 2}, unit="tokens"), "unit must be one of 'multiples', 'examples', got 'tokens'"),
        (lambda: Milestones("0.3: 2"), "milestones must map positions to sizes"),
        (lambda: Milestones([0.3, 0.6]), "milestones must map positions to sizes"),
    ],
)
def test_wrong_options(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
