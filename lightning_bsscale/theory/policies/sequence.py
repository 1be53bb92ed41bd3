"""Policies one after the other."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, final

from lightning_bsscale.theory.checks import show
from lightning_bsscale.theory.numbers import describe_count
from lightning_bsscale.theory.policies.policy import Decision, Limits, Policy, Situation
from lightning_bsscale.theory.policies.position import check_position, in_examples, need_budget
from lightning_bsscale.theory.policies.wrapper import PolicyOfPolicies, checked_policies, explained

__all__ = ["Sequence"]


@final
@dataclass(frozen=True)
class Sequence(PolicyOfPolicies):
    """Ask one policy after the other: ``Sequence([NoiseScalePolicy(), Seesaw()], at=[0.5])``.

    Each decides from its position on, and starts from the batch size that the one before has left. The reason names the
    policy and where it begins.

    Source: none; it only passes the question on. Where it stops being true: a policy that computes the batch from the
    start batch (``Seesaw``, ``Smith``, ``Milestones``) counts from there, not from what the one before has left, so it
    waits until its own batch is larger, and ``Milestones`` shrinks to it.

    Args:
        policies: The policies, at least two and at most 16.
        at: Where the second, the third and so on begins: floats are shares of the budget, ints numbers of examples.
    """

    policies: list[Policy]
    at: list[int | float]

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            TypeError: If ``at`` is not a list.
            ValueError: If there is not one position less than policies, or if they do not rise.
        """
        policies, at = checked_policies("policies", self.policies, at_least=2), self.at
        if not isinstance(at, (list, tuple)):
            raise TypeError(f"at must be a list of positions, got {show(at)}")
        places = tuple(check_position(f"at[{place}]", one) for place, one in enumerate(at))
        if len(places) != len(policies) - 1:
            raise ValueError(f"at must have one position less than there are policies ({len(policies)}), got {len(at)}")
        for kind in (int, float):
            alike = [place for place in places if isinstance(place, kind)]
            if any(later <= earlier for earlier, later in itertools.pairwise(alike)):
                raise ValueError(f"at must rise, got {show(at)}")
        object.__setattr__(self, "policies", policies)  # lists would make the record unhashable
        object.__setattr__(self, "at", places)

    @property
    def asked(self) -> tuple[Any, ...]:
        """The policies."""
        return tuple(self.policies)

    @property
    def needs_budget(self) -> bool:
        """Whether a position is a share of the budget, or a policy needs it."""
        return need_budget(self.at) or self._any("needs_budget")

    def decide(self, situation: Situation, limits: Limits) -> Decision:  # noqa: D102
        seen = situation.examples_seen
        place = sum(in_examples(one, situation.total_examples) <= seen for one in self.at)
        policy = self.policies[place]
        begins = in_examples(self.at[place - 1], situation.total_examples) if place else 0.0
        return explained(
            policy.decide(situation, limits), situation, f"{type(policy).__name__}, from {describe_count(begins)} on"
        )
