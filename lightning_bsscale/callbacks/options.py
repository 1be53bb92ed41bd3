"""Checks of the callbacks' own options, as `theory.checks` does for numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_bsscale.theory.checks import check_number


def check_warmup(value: object) -> int | float:
    """Checks a warmup.

    Args:
        value: a share of the budget (float) or a number of examples (int)

    Returns:
        the value; its type says which of the two it is
    """
    if isinstance(value, int) and not isinstance(value, bool):
        check_number("warmup (as a number of examples)", value, at_least=0)
        return value
    return check_number(
        "warmup (a float is a share of the budget, an int a number of examples)", value, at_least=0, below=1
    )


def check_memory(value: object) -> float:
    """Checks the memory of the averages.

    Args:
        value: a share of the budget

    Returns:
        the value
    """
    return check_number("memory (a share of the budget; 1.0 averages over everything)", value, above=0, at_most=1)


def check_batch_size_fn(value: Any) -> Any:
    """Checks a function that counts examples.

    Args:
        value: a callable, or None

    Returns:
        the value

    Raises:
        TypeError: it is neither
    """
    if value is not None and not callable(value):
        raise TypeError(
            f"batch_size_fn must be a function from a batch to a number of examples, or None, got {value!r}"
        )
    return value


def check_record(value: object) -> bool | str | Path:
    """Checks where to write the journal.

    Args:
        value: True, False, or a path

    Returns:
        the value

    Raises:
        TypeError: it is none of these
    """
    if not isinstance(value, (bool, str, Path)):
        raise TypeError(f"record must be True, False or a path, got {value!r} ({type(value).__name__})")
    return value


def check_flag(name: str, value: object) -> bool:
    """Checks a switch.

    Args:
        name: the option
        value: what was given

    Returns:
        the value

    Raises:
        TypeError: it is no bool
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__})")
    return value


def check_prefix(value: object) -> str:
    """Checks the prefix of the logged keys.

    Args:
        value: a string

    Returns:
        the value

    Raises:
        TypeError: it is no string
    """
    if not isinstance(value, str):
        raise TypeError(f"log_prefix must be a string, got {value!r} ({type(value).__name__})")
    return value
