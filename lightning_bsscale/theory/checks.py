"""Checks of arguments. Each message says which argument is wrong, what is allowed, and what was received."""

from __future__ import annotations

import contextlib
import inspect
import math
import numbers
from collections.abc import Iterable
from typing import Any

__all__ = ["as_number", "as_numbers", "check_integer", "check_number", "is_real", "join_names", "show"]

_LONGEST = 120


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
    """Return ``value`` as a float, or raise an error that says what is allowed.

    A bool is not accepted as a number (``warmup=True`` is a mistake, not one example). NaN is never allowed.

    Args:
        name: The argument's name, for the message.
        value: The value received.
        above: The value must be larger than this.
        at_least: The value must not be smaller than this.
        below: The value must be smaller than this.
        at_most: The value must not be larger than this.
        may_be_infinite: Whether infinity within the bounds is allowed.

    Returns:
        The value as a float.

    Raises:
        TypeError: If the value is not a real number.
        ValueError: If the value is NaN, out of bounds, or infinite where that is not allowed.

    Example:
        >>> check_number("target_ratio", 0.5, above=0)
        0.5
        >>> check_number("target_ratio", -1, above=0)
        Traceback (most recent call last):
        ...
        ValueError: target_ratio must be a finite number above 0, got -1
    """
    number = _as_float(value)
    inside = (
        (above is None or number > above)
        and (at_least is None or number >= at_least)
        and (below is None or number < below)
        and (at_most is None or number <= at_most)
        and (may_be_infinite or -math.inf < number < math.inf)
    )
    if inside and number == number:
        return number
    allowed = "a number" if may_be_infinite else "a finite number"
    bounds = [
        f"{words} {bound:g}"
        for words, bound in (("above", above), ("at least", at_least), ("below", below), ("at most", at_most))
        if bound is not None
    ]
    if bounds:
        allowed = f"{allowed} {' and '.join(bounds)}"
    if not is_real(value):
        raise TypeError(f"{name} must be {allowed}, got {show(value)} ({type(value).__name__})")
    raise ValueError(f"{name} must be {allowed}, got {show(value)}")


def is_real(value: object) -> bool:
    """Return whether a value is a real number; a bool is not.

    Example:
        >>> is_real(8), is_real(True), is_real("8")
        (True, False, False)
    """
    # Asked several times in every step, and the exact types are far cheaper to recognise than the abstract one.
    kind = type(value)
    return kind is float or kind is int or (isinstance(value, numbers.Real) and kind is not bool)


def _as_float(value: Any) -> float:
    if not is_real(value):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # an integer or a fraction that no float can hold
        return math.inf if value > 0 else -math.inf


def check_integer(name: str, value: object, *, at_least: int) -> int:
    """Return ``value`` as an int, or raise an error that says what is allowed.

    Args:
        name: The argument's name, for the message.
        value: The value received; neither ``8.0`` nor ``True`` is an integer.
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
    if type(value) is int and value >= at_least:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        kind = type(value).__name__
        raise TypeError(f"{name} must be an integer of at least {at_least}, got {show(value)} ({kind})")
    if value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, got {show(value)}")
    return int(value)


def as_number(name: str, value: Any) -> float:
    """Return a Python or NumPy number, or a tensor of one element, as a float.

    Args:
        name: The argument's name, for the message.
        value: The value received. NaN and infinity are accepted; strings and bools are not.

    Returns:
        The number.

    Raises:
        TypeError: If it is not a single number.

    Example:
        >>> as_number("lr", "0.1")
        Traceback (most recent call last):
        ...
        TypeError: lr must be a number (or a tensor of one element), got '0.1' (str)
    """
    one = value
    if callable(getattr(value, "item", None)):
        with contextlib.suppress(RuntimeError, TypeError, ValueError):  # several elements, or none
            one = value.item()
    if isinstance(one, bool) or not isinstance(one, numbers.Real):
        kind = type(value).__name__
        raise TypeError(f"{name} must be a number (or a tensor of one element), got {show(value)} ({kind})")
    return float(one)


def as_numbers(name: str, values: Any) -> list[float]:
    """Return several numbers as floats.

    Args:
        name: The argument's name, for the message.
        values: A sequence, an array or a tensor with one dimension.

    Returns:
        The numbers.

    Raises:
        TypeError: If it is not a sequence.
        ValueError: If it does not have exactly one dimension.
    """
    dimensions = getattr(values, "ndim", 1)
    if dimensions != 1:
        raise ValueError(f"{name} must have one dimension, got the shape {tuple(values.shape)}")
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of numbers, got {show(values)} ({type(values).__name__})")
    # One transfer for the whole tensor, not one for each element.
    to_list = getattr(values, "tolist", None)
    listed = to_list() if callable(to_list) else values
    return [as_number(f"{name}[{index}]", value) for index, value in enumerate(listed)]


def show(value: object) -> str:
    """Format a received value for one line of a message.

    Args:
        value: Any object.

    Returns:
        Its ``repr``, truncated if it is long (a tensor, a batch). A class is named as such, because nearly always an
        instance was meant.

    Example:
        >>> show(0.5), show(dict)
        ('0.5', 'the class dict instead of an instance')
        >>> len(show("a" * 1000))
        120
    """
    if inspect.isclass(value):
        return f"the class {value.__name__} instead of an instance"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a user's class; its broken repr must not hide the message
        text = f"an instance of {type(value).__name__} whose repr fails"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."


def join_names(names: Iterable[str]) -> str:
    """Join names for a message.

    Args:
        names: The names, for instance the keys of a dict.

    Returns:
        The names in quotes, separated by commas.

    Example:
        >>> join_names({"linear": 1, "sqrt": 2})
        "'linear', 'sqrt'"
    """
    return ", ".join(repr(name) for name in names)
