"""The only writer of a parameter group's entries beside ``"lr"``, which are restored after each step.

As with the learning rate, users, their schedules and checkpoints see their own values: the rules' values are there only
during the optimizer's update, and follow from what the user's are at that moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from lightning_bsscale.theory.hyperparameters import HyperparameterRule, scaled_values


class ScopedHyperparameters:
    """Replaces entries of every parameter group during one update.

    If the optimizer itself changes one in the update, that is the user's: the same change is made to the user's value.
    Where the ratio is one, nothing is written.

    Args:
        rules: what to replace, and by what
    """

    def __init__(self, rules: Sequence[HyperparameterRule]) -> None:
        self._rules = rules
        self._replaced: list[tuple[dict[str, Any], str, Any, Any]] = []  # group, key, the user's value, the written one
        self.ratio = 1.0

    @property
    def is_wanted(self) -> bool:
        """Whether the current ratio changes anything."""
        return bool(self._rules) and self.ratio != 1

    def apply(self, groups: Sequence[dict[str, Any]]) -> None:
        """Write the rules' values as the update begins; a second call does nothing."""
        if self._replaced or not self.is_wanted:
            return
        # First all of them are computed, so that an error leaves nothing replaced.
        made = [(group, scaled_values(rule, group, self.ratio)) for group in groups for rule in self._rules]
        for group, values in made:
            for key, value in values.items():
                self._replaced.append((group, key, group[key], value))
                group[key] = value

    def restore(self) -> None:
        """Put the user's values back, also after a step that raised an exception."""
        if not self._replaced:
            return  # as nearly always, and asked several times in every step
        replaced, self._replaced = self._replaced, []
        with ExitStack() as each:  # even if another fails
            for one in replaced:
                each.callback(_restore, *one)


def _restore(group: dict[str, Any], key: str, original: Any, written: Any) -> None:
    now = group[key]
    group[key] = original if now is written or now == written else _same_change(original, written, now)


def _same_change(original: Any, written: Any, now: Any) -> Any:
    if isinstance(original, tuple) and isinstance(now, (tuple, list)) and len(now) == len(original):
        return tuple(map(_same_change, original, written, now))
    return now * (original / written) if written else now


def unusable_entry(groups: Sequence[Mapping[str, Any]], rule: HyperparameterRule) -> tuple[str, Any] | None:
    """Find the first of a rule's entries that a parameter group lacks, or holds as something else than numbers.

    Args:
        groups: the parameter groups
        rule: the rule

    Returns:
        Its key, and what is there; None if there is no such entry.
    """
    for group in groups:
        for key in rule.keys:
            value = group.get(key)
            parts = value if isinstance(value, (tuple, list)) else [value]
            if not all(isinstance(part, (int, float)) and not isinstance(part, bool) for part in parts):
                return key, value
    return None
