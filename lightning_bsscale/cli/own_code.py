"""User-defined code: load it, and say in one sentence what went wrong in it, and where."""

from __future__ import annotations

import argparse
import os
import pkgutil
import sys
import traceback
from pathlib import Path
from typing import Any

__all__ = ["add_traceback", "explain", "load"]

# Frames of these are never the user's code.
_LIBRARIES = frozenset(
    {
        *("__main__", "lightning_bsscale", "lightning", "lightning_fabric", "pytorch_lightning", "lightning_utilities"),
        *("torch", "torchmetrics", "numpy", "jsonargparse", "yaml", "matplotlib", *sys.stdlib_module_names),
    }
)


def add_traceback(parser: argparse.ArgumentParser) -> None:
    """Add the option that shows the whole of an error."""
    parser.add_argument(
        "--traceback", action="store_true", help="show the traceback of an error in your own code, not one sentence"
    )


def load(option: str, name: str, form: str = "package.module:function") -> Any:
    """Load an object by its import path, from installed packages and from the current folder.

    Args:
        option: The option that named it, for the message.
        name: The path, with a colon before the object.
        form: What is allowed, for the message.

    Returns:
        The object.

    Raises:
        ValueError: If the path has another form, or cannot be loaded.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"{option} must be {form}, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return pkgutil.resolve_name(name)
    except Exception as error:  # a module may raise anything
        said = str(error) if isinstance(error, (ImportError, AttributeError, SyntaxError)) else explain(error)
        raise ValueError(
            f"{option} {name} cannot be loaded: {said or repr(error)}. Run the command where it can be imported."
        ) from error


def explain(error: BaseException) -> str | None:
    """Say what went wrong in the user's code.

    Args:
        error: What was raised.

    Returns:
        Class, message, file and line, as one line; None if no frame of the user's code is in its traceback.
    """
    own = installed = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] in _LIBRARIES:
            continue
        path = Path(frame.f_code.co_filename)
        place = f"{_from_here(path)}, line {line}"
        if "site-packages" in path.parts:
            installed = place  # the user's package, or another library that it calls
        else:
            own = place
    if own is None and installed is None:
        return None
    message = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' if message else ''}{message} ({own or installed})"


def _from_here(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
