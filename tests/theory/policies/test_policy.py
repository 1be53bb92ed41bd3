import pytest

from lightning_bsscale.theory.policies import Decision, Limits, Policy, Situation


class Hold(Policy):
    def decide(self, situation: Situation, limits: Limits) -> Decision:
        return Decision(batch_size=situation.batch_size, reason="hold")


def test_a_policy_needs_decide_and_nothing_else():
    assert not Hold().needs_budget
    with pytest.raises(TypeError, match="abstract"):
        Policy()
