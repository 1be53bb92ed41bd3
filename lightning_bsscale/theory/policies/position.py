"""A position in the training: a share of the budget, or a number of examples."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral

from lightning_bsscale.theory.checks import check_integer, check_number

__all__ = ["check_position", "in_examples", "need_budget"]


def check_position(name: str, value: object, *, may_be_text: bool = False) -> int | float:
    """Return a position, whose type says what it is: a share of the budget (float) or examples (int).

    Args:
        name: The argument's name, for the message.
        value: A float from 0 to 1, or an integer above 1 (or 0).
        may_be_text: Whether it may be text, as the keys of a file may be.

    Returns:
        A float or an int.

    Raises:
        ValueError: If it is the integer 1, which could mean either, or out of range.

    Example:
        >>> check_position("not_before", 0.3), check_position("a milestone", "10_000", may_be_text=True)
        (0.3, 10000)
    """
    allowed = f"{name} (a float is a share of the budget, an int a number of examples)"
    if may_be_text and isinstance(value, str):
        value = _number_of(value)
    if isinstance(value, bool) or not isinstance(value, Integral):
        return check_number(allowed, value, at_least=0, at_most=1)
    examples = check_integer(allowed, value, at_least=0)
    if examples == 1:
        raise ValueError(f"{allowed} must not be the integer 1: write 1.0 for the end of the budget")
    return examples


def _number_of(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def in_examples(position: int | float, total_examples: float | None) -> float:
    """Return a position in examples; infinite for a share of an unknown budget."""
    if isinstance(position, int) or position == 0:
        return float(position)
    return position * (math.inf if total_examples is None else total_examples)


def need_budget(positions: Iterable[int | float]) -> bool:
    """Return whether one of the positions is a share of the budget."""
    return any(isinstance(position, float) and position > 0 for position in positions)
