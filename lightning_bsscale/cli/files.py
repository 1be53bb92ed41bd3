"""Write files whole: whoever interrupts a command finds the old file or the new one."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["picture_of", "unwritable", "write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place, then move it there.

    Args:
        path: the file, which is replaced; its folder is made
        content: its bytes
    """
    target = Path(os.path.realpath(path))  # a link stays a link
    if target.exists() and not target.is_file() and not target.is_dir():
        target.write_bytes(content)  # a device or a pipe is no place to move a file to
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(content)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def picture_of(figure: Figure, path: Path) -> bytes:
    """Return a figure in the format of a file's suffix, PNG without one.

    Args:
        figure: the figure
        path: the file to be

    Returns:
        The bytes.

    Raises:
        ValueError: If the suffix is that of no format.
    """
    drawn, suffix = io.BytesIO(), path.suffix.removeprefix(".").lower() or "png"
    formats = figure.canvas.get_supported_filetypes()
    if suffix not in formats:
        raise ValueError(
            f"{path} has the suffix of no picture: use .png, .svg, .pdf, or another of {', '.join(formats)}."
        )
    figure.savefig(drawn, dpi=120, format=suffix)
    return drawn.getvalue()


def unwritable(path: Path, error: OSError) -> str:
    """Return in one sentence why a file cannot be written."""
    return f"{path} cannot be written: {error.strerror or error}"
