"""The interface of a policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from lightning_bsscale.theory.policies.decision import Decision
from lightning_bsscale.theory.policies.situation import Limits, Situation

__all__ = ["Policy", "SupportsDecide"]


class SupportsDecide(Protocol):
    """Any object that can decide; a user's policy need not inherit from :class:`Policy`."""

    def decide(self, situation: Situation, limits: Limits) -> Decision:
        """Decide on the next batch size."""
        ...


class Policy(ABC):
    """Decides when the batch size changes, and to what. Pure: the same situation and limits give the same decision.

    On several devices every process asks its own copy. A policy that used anything else (a random number, a value known
    to one process only) would give the processes windows of different lengths, and they would wait for each other
    forever.
    """

    __slots__ = ()

    @property
    def needs_budget(self) -> bool:
        """Whether the policy cannot work without knowing the budget."""
        return False

    @abstractmethod
    def decide(self, situation: Situation, limits: Limits) -> Decision:
        """Decide on the batch size from the next window on.

        Args:
            situation: The state of training at the end of a window.
            limits: The possible batch sizes.

        Returns:
            The decision; to hold, its batch size is the current one.
        """
