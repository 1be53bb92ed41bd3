"""Numbers as people write them, in one place for messages, tables, axes and reasons."""

from __future__ import annotations

import math

__all__ = ["describe_count", "describe_number", "describe_time", "one_of", "significant", "time_unit"]

_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"))
_TIMES = ((86_400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"))


def describe_number(value: float, digits: int = 3) -> str:
    """Format a number for reading: ``33,675``, ``43.3``, ``0.0125``.

    Args:
        value: The number.
        digits: Minimum of significant digits; whole numbers keep all of theirs.

    Returns:
        A few characters; powers of ten only from 10¹⁵ on.
    """
    if not math.isfinite(value):
        return str(float(value))
    if abs(value) >= 1e15:
        return f"{value:.{digits - 1}e}"
    whole_digits = len(f"{abs(value):.0f}")
    text = f"{value:,.{max(0, digits - whole_digits)}f}" if abs(value) >= 1 else f"{value:.{digits}g}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def describe_count(value: float, unit: str = "") -> str:
    """Format a count of examples, tokens or steps: ``33,675``, ``12.3 M``, ``12.3 M tokens``.

    Args:
        value: The count; a bound or a target below 1,000 keeps three significant digits.
        unit: What is counted, as a plural word; empty for the number alone.

    Returns:
        A few characters.

    Example:
        >>> describe_count(33_675), describe_count(1_048_576, "tokens"), describe_count(16.54)
        ('33,675', '1.05 M tokens', '16.5')
    """
    scale = next((one for one in _UNITS if one[0] - 0.5 <= value < math.inf), None)
    text = describe_number(value) if scale is None else f"{describe_number(value / scale[0])} {scale[1]}"
    if not unit:
        return text
    return f"{text} {unit.removesuffix('s') if text == '1' else unit}"


_NOT_BY_S = ("ss", "ies", "ches", "shes", "xes", "ses", "zes")


def one_of(unit: str) -> str:
    """Name one of what is counted, with its article.

    Args:
        unit: The plural word.

    Returns:
        ``"a token"``; where the singular is not the plural without its s, ``"one of the entries"``.

    Example:
        >>> one_of("examples"), one_of("tokens"), one_of("entries")
        ('an example', 'a token', 'one of the entries')
    """
    if not unit.endswith("s") or unit.endswith(_NOT_BY_S) or len(unit) < 3:
        return f"one of the {unit}"
    return f"{'an' if unit[0].lower() in 'aeiou' else 'a'} {unit[:-1]}"


def time_unit(seconds: float) -> tuple[float, str]:
    """Return the unit that suits a time, as its seconds and its name."""
    return next((one for one in _TIMES if seconds >= one[0]), _TIMES[-1])


def describe_time(seconds: float, low: float | None = None, high: float | None = None) -> str:
    """Format a time, with its interval in the same unit: ``3.4 h``, ``12 min [9.5, 15.2]``.

    Args:
        seconds: The time.
        low: Lower end; None for no interval.
        high: Upper end; None for no interval.

    Returns:
        A few characters.
    """
    size, unit = time_unit(seconds)
    text = f"{describe_number(seconds / size)} {unit}"
    if low is None or high is None or low == high:
        return text
    return f"{text} [{describe_number(low / size)}, {describe_number(high / size)}]"


def significant(value: float, digits: int) -> float:
    """Round to so many significant digits.

    Args:
        value: The number; infinity and NaN stay.
        digits: How many.

    Returns:
        The nearest number that is written with them.

    Example:
        >>> significant(1 / 3, 4), significant(123_456.0, 4), significant(0.1 + 0.2, 9)
        (0.3333, 123500.0, 0.3)
    """
    return float(f"{value:.{digits}g}")
