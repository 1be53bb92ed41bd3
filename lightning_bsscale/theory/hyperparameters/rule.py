"""The interface of a rule for hyperparameters, and the check of its answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from lightning_bsscale.theory.checks import check_number

__all__ = ["HyperparameterRule", "scaled_values"]


class HyperparameterRule(ABC):
    """What an optimizer updates with at another batch size, beside the learning rate.

    A rule is pure, and knows no history: its answer follows from the user's own values and the ratio of the batch to
    the first one.
    """

    @property
    def name(self) -> str:
        """Name of the rule, for messages."""
        return type(self).__name__

    @property
    @abstractmethod
    def keys(self) -> tuple[str, ...]:
        """The entries of a parameter group that the rule replaces during an update."""

    @abstractmethod
    def scaled(self, group: Mapping[str, Any], ratio: float) -> dict[str, Any]:
        """Compute the values for one parameter group.

        Args:
            group: The parameter group with the user's own values.
            ratio: Examples of this optimizer step over those of a step at the start, above 0.

        Returns:
            A value for each of `keys`: a number, or a tuple of numbers; the user's own where the ratio is 1.
        """


def scaled_values(rule: HyperparameterRule, group: Mapping[str, Any], ratio: float) -> dict[str, Any]:
    """Return a rule's values for a parameter group, each checked: NaN must not reach the optimizer.

    Args:
        rule: The rule.
        group: The parameter group with the user's own values.
        ratio: Examples of this optimizer step over those of a step at the start.

    Returns:
        A value for each of the rule's keys.

    Raises:
        ValueError: If a value is missing, or is not finite.
    """  # noqa: DOC502
    answer = rule.scaled(group, ratio)
    return {key: _checked(f"the {key} of the rule {rule.name!r}", answer.get(key)) for key in rule.keys}


def _checked(name: str, value: Any) -> Any:
    return tuple(_checked(name, one) for one in value) if isinstance(value, tuple) else check_number(name, value)
