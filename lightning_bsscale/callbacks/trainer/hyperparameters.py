"""The only writer of a parameter group's entries beside ``"lr"``, which are restored after each step.

As with the learning rate, users, their schedules and checkpoints see their own values: the rules' values are there only
during the optimizer's update, and follow from what the user's are at that moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_bsscale.theory.hyperparameters import HyperparameterRule, scaled_values

MOST_KNOWN = 256  # tensors whose number is remembered


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
        self._tensors = _ScopedTensors()
        self.ratio = 1.0

    @property
    def is_wanted(self) -> bool:
        """Whether the current ratio changes anything."""
        return bool(self._rules) and self.ratio != 1

    def apply(self, groups: Sequence[dict[str, Any]]) -> None:
        """Write the rules' values as the update begins; a second call does nothing."""
        if self._replaced or self._tensors.are_filled or not self.is_wanted:
            return
        # First all of them are computed, so that an error leaves nothing replaced.
        made = [(group, self._values(rule, group)) for group in groups for rule in self._rules]
        for group, values in made:
            for key, value in values.items():
                original = group[key]
                if any(isinstance(part, Tensor) for part in _parts(original)):
                    self._tensors.fill(_parts(original), _parts(value))
                    continue
                self._replaced.append((group, key, original, value))
                group[key] = value

    def _values(self, rule: HyperparameterRule, group: dict[str, Any]) -> dict[str, Any]:
        numbers = {key: self._tensors.as_numbers(group[key]) for key in rule.keys if key in group}
        return scaled_values(rule, {**group, **numbers}, self.ratio)

    def restore(self) -> None:
        """Put the user's values back, also after a step that raised an exception."""
        if not (self._replaced or self._tensors.are_filled):
            return  # as nearly always, and asked several times in every step
        replaced, self._replaced = self._replaced, []
        with ExitStack() as each:  # even if another fails
            each.callback(self._tensors.restore)
            for one in replaced:
                each.callback(_restore, *one)


@dataclass(frozen=True, slots=True)
class _Filled:
    tensor: Tensor
    original: Tensor
    number: float  # that of the original
    written: float
    version: int


class _ScopedTensors:
    """Entries that are tensors: they keep their identity, because a captured or compiled step may hold them.

    A tensor is read from its device when it is first seen, and again only after the user has changed it.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, int, float]] = {}
        self._filled: dict[int, _Filled] = {}

    @property
    def are_filled(self) -> bool:
        return bool(self._filled)

    def as_numbers(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return tuple(map(self.as_numbers, value))
        return self._number(value) if isinstance(value, Tensor) else value

    def _number(self, tensor: Tensor) -> float:
        known = self._known.get(id(tensor))
        if known is None or known[0] is not tensor or known[1] != tensor._version:
            if len(self._known) >= MOST_KNOWN:  # new tensors in every step
                self._known = {}
            self._known[id(tensor)] = known = (tensor, tensor._version, tensor.item())
        return known[2]

    def fill(self, tensors: Sequence[Tensor], values: Sequence[float]) -> None:
        for tensor, value in zip(tensors, values, strict=True):
            number = self._number(tensor) if id(tensor) not in self._filled else value  # groups may share one
            if value != number:
                original = tensor.detach().clone()
                with torch.no_grad():
                    tensor.fill_(value)
                self._filled[id(tensor)] = _Filled(tensor, original, number, value, tensor._version)

    def restore(self) -> None:
        filled, self._filled = self._filled, {}
        for one in filled.values():
            with torch.no_grad():
                if one.tensor._version == one.version:
                    one.tensor.copy_(one.original)
                    self._known[id(one.tensor)] = (one.tensor, one.tensor._version, one.number)
                elif one.written:  # the optimizer has changed it: the same change is the user's
                    one.tensor.mul_(one.number / one.written)


def _parts(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (tuple, list)) else (value,)


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
            are_tensors = [isinstance(part, Tensor) for part in _parts(value)]
            if any(are_tensors) != all(are_tensors) or not all(map(_is_number, _parts(value))):
                return key, value
    return None


def _is_number(part: Any) -> bool:
    if isinstance(part, Tensor):
        return part.numel() == 1 and part.is_floating_point()
    return isinstance(part, (int, float)) and not isinstance(part, bool)
