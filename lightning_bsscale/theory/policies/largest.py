"""The largest batch that any of several policies asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from lightning_bsscale.theory.numbers import describe_count
from lightning_bsscale.theory.policies.policy import Decision, Limits, Policy, Situation, recorded_decision
from lightning_bsscale.theory.policies.wrapper import PolicyOfPolicies, checked_policies, explained

__all__ = ["Largest"]


@final
@dataclass(frozen=True)
class Largest(PolicyOfPolicies):
    """Ask all policies, and take the largest batch: ``Largest([Seesaw(), Milestones({0.8: 4})])``.

    The reason names the policy, and what the others ask for. Among equal ones the first is taken. The batch shrinks
    only if all of them say so.

    Source: none; it only compares answers. Where it stops being true: what one policy holds back for a reason (a gate,
    a cooldown, a metric), another may do, so put a limit around them all, as in ``HoldIfWorse(Largest([...]))``.

    Args:
        policies: The policies, at least two and at most 16.
    """

    policies: list[Policy]

    def __post_init__(self) -> None:
        """Check the option."""
        object.__setattr__(self, "policies", checked_policies("policies", self.policies, at_least=2))

    @property
    def asked(self) -> tuple[Any, ...]:
        """The policies."""
        return tuple(self.policies)

    def decide(self, situation: Situation, limits: Limits) -> Decision:  # noqa: D102
        answers = [(policy, policy.decide(situation, limits)) for policy in self.policies]
        decided = [(policy, made) for policy, one in answers if (made := recorded_decision(one, situation)) is not None]
        if not decided:
            return answers[0][1]
        policy, largest = max(decided, key=lambda one: one[1].batch_size)
        others = ", ".join(
            f"{type(one).__name__} {describe_count(made.batch_size)}" for one, made in decided if one is not policy
        )
        return explained(largest, situation, type(policy).__name__ + (f"; {others}" if others else ""))
