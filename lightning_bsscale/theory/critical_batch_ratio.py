"""The measured ratio of the critical batch to the noise scale, from a file that a probe has written."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_bsscale.theory.checks import check_number
from lightning_bsscale.theory.probe_file import read_probe

__all__ = ["read_critical_batch_ratio"]


def read_critical_batch_ratio(name: str, given: object) -> float:
    """Return a ratio of the critical batch size to the noise scale: a number, or the value in a probe's file.

    Args:
        name: The argument's name, for the messages.
        given: A number above 0, or the path of a JSON file with the key ``critical_batch_ratio``: an
            object with ``value``, ``low`` and ``high``.

    Returns:
        The ratio, above 0.

    Raises:
        ValueError: If the file cannot be read, or holds no resolved ratio.
    """
    if not isinstance(given, (str, os.PathLike)):
        return check_number(name, given, above=0)
    path = Path(given)
    try:
        return read_probe(path).resolved_ratio("give a number").value
    except (OSError, ValueError) as error:
        why = f"{path} cannot be read: {error.strerror or error}" if isinstance(error, OSError) else str(error)
        raise ValueError(
            f"{name} must be a number above 0 or the path of a file that `python -m lightning_bsscale probe` wrote; "
            f"{why}"
        ) from error
