"""Where LightningCLI buries the sentence about a wrong option, say it again as the last line of the output.

LightningCLI creates the callback by jsonargparse, which catches its ValueError, tries what else the flag could mean,
and raises its own ValueError: many lines, of which the last holds every option. A constructor cannot change that, so
the sentence is printed again when such an error ends the interpreter.
"""

from __future__ import annotations

import atexit
import sys
from types import FrameType, TracebackType

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
    if error is None or _module_of(_innermost(error.__traceback__)) != PARSER:
        return None
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        error = waiting.pop(0)
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        frame = _innermost(error.__traceback__)
        if _module_of(frame) == PACKAGE:
            return f"{type(error).__name__}: {error}"
        # Of several that it tried, the parser names the first as the cause, in an order that differs between versions.
        tried = None if frame is None else frame.f_locals.get("exceptions")
        waiting += [error.__cause__ or error.__context__, *(tried if isinstance(tried, list) else ())]
    return None


def _innermost(traceback: TracebackType | None) -> FrameType | None:
    frame = None
    while traceback is not None:
        frame, traceback = traceback.tb_frame, traceback.tb_next
    return frame


def _module_of(frame: FrameType | None) -> str:
    """Return the top-level module of a frame."""
    return "" if frame is None else str(frame.f_globals.get("__name__", "")).partition(".")[0]
