"""What the commands have in common: how they end, and what they write beside their answer."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

CANNOT, WRONG_WORDS, DISAGREES, INTERRUPTED = 1, 2, 3, 130
"""Exit statuses beside 0."""

JOURNAL = "the .jsonl file that a training with BatchSizeScaler(record=True) wrote"
"""The help of each argument that names a journal."""

_PACKAGE = Path(__file__).parents[1]


def write(text: str) -> None:
    """Write text to stdout."""
    print(_shown(text, sys.stdout.encoding))


def write_json(value: Any) -> None:
    """Write one JSON object to stdout; numbers that are not finite become null."""
    write(json.dumps(_finite(value), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def tell(sentence: str) -> None:
    """Write a line to stderr, at once."""
    print(_shown(sentence, sys.stderr.encoding), file=sys.stderr, flush=True)


def complain(sentence: str) -> int:
    """Write to stderr why a command cannot do what was asked, and return its exit status."""
    tell(sentence)
    return CANNOT


def one_line(error: BaseException) -> str:
    """Return an error's message as one line."""
    return " ".join(str(error).split())


def problem_with(path: Path, error: Exception) -> str:
    """Return in one sentence why a file cannot be read."""
    if isinstance(error, FileNotFoundError):
        return f"no such journal: {path}"
    if isinstance(error, OSError):
        return f"{path} cannot be read: {error.strerror or error}"
    sentence = one_line(error)
    if path.is_dir():
        sentence += _journals_in(path)
    return sentence if str(path) in sentence else f"{path}: {sentence}"


def _journals_in(folder: Path) -> str:
    try:
        found = sorted(folder.glob("*.jsonl"))
    except OSError:
        return ""
    if not found:
        return " There is no .jsonl file in it."
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f" It holds {', '.join(path.name for path in found[:3])}{more}."


@contextmanager
def short_warnings() -> Iterator[None]:
    """Write the package's own warnings as one line on stderr, without the line of source that gave them."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if _PACKAGE in Path(filename).parents:
                tell(f"note: {message}")
            else:
                usual(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


class Working:
    """Reports on stderr that a long task is still running: first after some seconds, then from time to time.

    Args:
        what: what is done, such as "reading run.jsonl"
        first: seconds until the first line
        then: seconds between the lines after it
    """

    def __init__(self, what: str, first: float = 3.0, then: float = 10.0) -> None:
        self.what, self.at, self._first, self._then = what, "", first, then
        self._began, self._ended = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Working:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End, whether or not a line was written."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        wait = self._first
        while not self._ended.wait(wait):
            at = f", {self.at}" if self.at else ""
            tell(f"{self.what}{at} ... ({time.monotonic() - self._began:.0f} s)")
            wait = self._then


def _shown(text: str, encoding: str | None) -> str:
    # The encoding may not have all that a path or a reason is made of.
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
