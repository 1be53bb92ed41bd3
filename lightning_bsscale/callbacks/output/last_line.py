"""Where LightningCLI buries the sentence about a wrong option, say it again as the last line of the output.

LightningCLI creates the callback by jsonargparse, which catches its ValueError, tries what else the flag could mean,
and raises a ValueError of its own: many lines, of which the last holds every option. A constructor cannot change that,
so the sentence is said when the interpreter ends by such an error.
"""

from __future__ import annotations

import atexit
import sys
from types import TracebackType

__all__ = ["buried_sentence", "say_at_exit"]

PARSER, PACKAGE = "jsonargparse", "lightning_bsscale"


def say_at_exit() -> None:
    """Say the sentence when the interpreter ends, if an error of this kind ended it; a second call does nothing."""
    atexit.unregister(_say)
    atexit.register(_say)


def _say() -> None:
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)  # Python 3.12 renamed it
    sentence = buried_sentence(error)
    if sentence is not None:
        print(f"\n{sentence}", file=sys.stderr)


def buried_sentence(error: BaseException | None) -> str | None:
    """Return the error of this package that an error of jsonargparse's hides.

    Args:
        error: What ended the program, or None.

    Returns:
        Class and message, as Python writes them; None if the error is another, or hides none.
    """
    if error is None or _raised_in(error.__traceback__) != PARSER:
        return None
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if _raised_in(error.__traceback__) == PACKAGE:
            return f"{type(error).__name__}: {error}"
        error = error.__cause__ or error.__context__
    return None


def _raised_in(traceback: TracebackType | None) -> str:
    """Return the top-level module of the innermost frame."""
    name = ""
    while traceback is not None:
        name = str(traceback.tb_frame.f_globals.get("__name__", ""))
        traceback = traceback.tb_next
    return name.partition(".")[0]
