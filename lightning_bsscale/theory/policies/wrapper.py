"""What policies that ask other policies have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning_bsscale.theory.checks import show
from lightning_bsscale.theory.policies.policy import Decision, Policy, Situation, recorded_decision

__all__ = ["PolicyOfPolicies", "checked_policies", "explained"]


class PolicyOfPolicies(Policy):
    """A policy that asks others. It needs whatever one of them needs, and keeps their states."""

    @property
    @abstractmethod
    def asked(self) -> tuple[Any, ...]:
        """The policies that it asks."""

    def _any(self, name: str) -> bool:
        return any(getattr(policy, name, False) for policy in self.asked)

    @property
    def needs_budget(self) -> bool:
        """Whether one of the policies needs the budget."""
        return self._any("needs_budget")

    @property
    def needs_clock(self) -> bool:
        """Whether one of the policies uses measured seconds."""
        return self._any("needs_clock")

    @property
    def monitors(self) -> tuple[str, ...]:
        """The metrics that the policies watch, each once."""
        return tuple(dict.fromkeys(name for policy in self.asked for name in getattr(policy, "monitors", ())))

    @property
    def lr_rules(self) -> tuple[str, ...] | None:
        """The learning-rate rules that suit all policies; None for any."""
        given = [rules for policy in self.asked if (rules := getattr(policy, "lr_rules", None)) is not None]
        return tuple(name for name in given[0] if all(name in rules for rules in given)) if given else None

    def state_dict(self) -> list[Any] | None:
        """Return the states of the policies that have one, in order, for a checkpoint; None if none has."""
        states = [own() if callable(own := getattr(policy, "state_dict", None)) else None for policy in self.asked]
        return None if all(state is None for state in states) else states

    def load_state_dict(self, states: Sequence[Any]) -> None:
        """Give the policies their states again; of another number of policies they are ignored."""
        if len(states) == len(self.asked):
            for policy, state in zip(self.asked, states, strict=True):
                if state is not None and callable(load := getattr(policy, "load_state_dict", None)):
                    load(state)


def explained(answer: Decision, situation: Situation, words: str) -> Decision:
    """Add words to the reason of an answer, whose code stays that of the policy.

    Args:
        answer: What ``decide`` returned.
        situation: The situation it was given.
        words: For example the policy's name.

    Returns:
        The decision; what is no valid one is returned as it is, and recorded as such.
    """
    decision = recorded_decision(answer, situation)
    return answer if decision is None else replace(decision, reason=f"{decision.reason} ({words})")


def checked_policies(name: str, given: Any, *, at_least: int) -> tuple[Any, ...]:
    """Return policies as a tuple.

    Args:
        name: The argument's name, for the message.
        given: A sequence of objects with a ``decide`` method.
        at_least: How many there must be.

    Returns:
        The policies.

    Raises:
        TypeError: If it is anything else.
        ValueError: If there are fewer.
    """
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(f"{name} must be a list of policies, got {show(given)}")
    for place, policy in enumerate(given):
        check_policy(f"{name}[{place}]", policy)
    if not at_least <= len(given) <= 16:
        raise ValueError(f"{name} must be {at_least} to 16 policies, got {len(given)}")
    return tuple(given)


def check_policy(name: str, policy: object) -> None:
    """Refuse what is not an object with a ``decide`` method.

    Args:
        name: The argument's name, for the message.
        policy: What was received.

    Raises:
        TypeError: If it has no such method, or is a class.
    """
    if isinstance(policy, type) or not callable(getattr(policy, "decide", None)):
        raise TypeError(f"{name} must be a policy such as NoiseScalePolicy(), got {show(policy)}")
