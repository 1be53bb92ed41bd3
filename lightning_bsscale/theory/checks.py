"""Checks of arguments, in one form: what was wrong, what was found, what is allowed."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable

__all__ = ["check_integer", "check_number", "quoted"]


def check_number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    may_be_infinite: bool = False,
) -> float:
    """Return ``value`` as a float, or say what is wrong with it.

    A bool is not a number here (``warmup=True`` is a mistake, not one example), and NaN is never allowed.

    Args:
        name: The argument's name, for the message.
        value: What was given.
        above: The value must be larger than this.
        at_least: The value must not be smaller than this.
        below: The value must be smaller than this.
        at_most: The value must not be larger than this.
        may_be_infinite: Whether infinity within the bounds is allowed.

    Returns:
        The value as a float.

    Raises:
        TypeError: If the value is not a real number.
        ValueError: If the value is NaN, infinite without leave, or out of bounds.

    Example:
        >>> check_number("target_ratio", 0.5, above=0)
        0.5
        >>> check_number("target_ratio", -1, above=0)
        Traceback (most recent call last):
        ...
        ValueError: target_ratio must be a finite number above 0, got -1
    """
    allowed = "a number" if may_be_infinite else "a finite number"
    bounds = [
        f"{words} {bound:g}"
        for words, bound in (("above", above), ("at least", at_least), ("below", below), ("at most", at_most))
        if bound is not None
    ]
    if bounds:
        allowed = f"{allowed} {' and '.join(bounds)}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be {allowed}, got {value!r} ({type(value).__name__})")
    number = float(value)
    inside = (
        (above is None or number > above)
        and (at_least is None or number >= at_least)
        and (below is None or number < below)
        and (at_most is None or number <= at_most)
    )
    if math.isnan(number) or not inside or (math.isinf(number) and not may_be_infinite):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return number


def check_integer(name: str, value: object, *, at_least: int) -> int:
    """Return ``value`` as an int, or say what is wrong with it.

    Args:
        name: The argument's name, for the message.
        value: What was given; ``8.0`` is no integer, nor is ``True``.
        at_least: The smallest value allowed.

    Returns:
        The value as an int.

    Raises:
        TypeError: If the value is not an integer.
        ValueError: If the value is smaller than ``at_least``.

    Example:
        >>> check_integer("granularity", 0, at_least=1)
        Traceback (most recent call last):
        ...
        ValueError: granularity must be an integer of at least 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer of at least {at_least}, got {value!r} ({type(value).__name__})")
    if value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, got {value!r}")
    return int(value)


def quoted(names: Iterable[str]) -> str:
    """Join the names of a table for an error message.

    Args:
        names: The names, for instance a dict's keys.

    Returns:
        The names in quotes, separated by commas.

    Example:
        >>> quoted({"linear": 1, "sqrt": 2})
        "'linear', 'sqrt'"
    """
    return ", ".join(repr(name) for name in names)
