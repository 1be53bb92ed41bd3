"""Write to the terminal what its encoding may not be able to show, such as a path."""

from __future__ import annotations

import sys
from pathlib import Path

CANNOT = 1
"""Exit status where a command cannot do what was asked."""


def write(text: str) -> None:
    """Write text to stdout."""
    print(_shown(text, sys.stdout.encoding))


def complain(sentence: str) -> int:
    """Write to stderr why a command cannot do what was asked, and return its exit status."""
    print(_shown(sentence, sys.stderr.encoding), file=sys.stderr)
    return CANNOT


def problem_with(path: Path, error: Exception) -> str:
    """Return in one sentence why a file cannot be read."""
    if isinstance(error, FileNotFoundError):
        return f"no such journal: {path}"
    if isinstance(error, OSError):
        return f"{path} cannot be read: {error.strerror or error}"
    sentence = str(error)
    return sentence if str(path) in sentence else f"{path}: {sentence}"


def _shown(text: str, encoding: str | None) -> str:
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
