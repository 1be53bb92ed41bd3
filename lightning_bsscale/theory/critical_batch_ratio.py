"""The measured ratio of the critical batch to the noise scale, from a file that a probe has written."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from lightning_bsscale.theory.checks import check_number, show

__all__ = ["read_critical_batch_ratio"]

KEY = "critical_batch_ratio"


def read_critical_batch_ratio(name: str, given: object) -> float:
    """Return a ratio of the critical batch size to the noise scale: a number, or the value in a probe's file.

    Args:
        name: The argument's name, for the messages.
        given: A number above 0, or the path of a JSON file with the key ``critical_batch_ratio``: an
            object with ``value``, ``low`` and ``high``.

    Returns:
        The ratio, above 0.

    Raises:
        ValueError: If the file cannot be read, or holds no such value.
    """
    if not isinstance(given, (str, os.PathLike)):
        return check_number(name, given, above=0)
    path = Path(given)
    found = f"{name} must be a number above 0 or the path of a file that `python -m lightning_bsscale probe` wrote"
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{found}; {str(path)!r} cannot be read: {error}") from error
    ratio = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(ratio, dict) or "value" not in ratio:
        raise ValueError(f"{found}; {str(path)!r} has no {KEY} with a value")
    value = ratio["value"]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(
            f"{found}; in {str(path)!r} the {KEY} is not resolved, its value is {show(value)}. Probe with a larger "
            "budget, or give a number"
        )
    return float(value)
