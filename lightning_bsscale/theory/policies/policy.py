"""What a policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from lightning_bsscale.theory.policies.decision import Decision
from lightning_bsscale.theory.policies.situation import Limits, Situation

__all__ = ["Policy", "SupportsDecide"]


class SupportsDecide(Protocol):
    """Anything that can decide; a user's policy need not inherit from anything."""

    def decide(self, situation: Situation, limits: Limits) -> Decision:
        """Decide on the next batch."""
        ...


class Policy(ABC):
    """When to grow and to what. Pure: the same situation and limits give the same decision.

    On several devices every process asks its own copy. One that answered by anything else (a random number, what one
    process alone knows) would leave them with windows of different length, in which they wait for each other for ever.
    """

    __slots__ = ()

    @property
    def needs_budget(self) -> bool:
        """Whether the policy cannot work without knowing the budget."""
        return False

    @abstractmethod
    def decide(self, situation: Situation, limits: Limits) -> Decision:
        """Decide on the batch from the next window on.

        Args:
            situation: What is known at the end of a window.
            limits: Which batches are possible.

        Returns:
            The decision; its batch is the present one to hold.
        """
