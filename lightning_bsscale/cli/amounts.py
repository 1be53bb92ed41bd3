"""Numbers on the command line, as people write them: 33,675, 12.3M or 1e6."""

from __future__ import annotations

import argparse
import math

__all__ = ["amount", "count", "whole"]

SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def amount(text: str) -> float:
    """Return a number of at least 0.

    Args:
        text: The word.

    Returns:
        The number.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    digits = text.replace(",", "").replace("_", "").strip().lower()
    factor = SUFFIXES.get(digits[-1:], 1.0)
    try:
        number = float(digits[:-1] if factor != 1 else digits) * factor
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise argparse.ArgumentTypeError(f"must be a number such as 33,675, 12.3M or 1e6, found {text!r}")
    return number


def count(text: str) -> int:
    """Return a whole number of at least 1.

    Args:
        text: The word.

    Returns:
        The number.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """  # noqa: DOC502
    return _whole_from(1, " such as 512", text)


def whole(text: str) -> int:
    """Return a whole number of at least 0, such as a seed.

    Args:
        text: The word.

    Returns:
        The number.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """  # noqa: DOC502
    return _whole_from(0, "", text)


def _whole_from(least: int, example: str, text: str) -> int:
    number = amount(text)
    if number < least or number != int(number):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}{example}, found {text!r}")
    return int(number)
