"""The files of journals: which name a run takes, who may write a file, and how much of one is read.

A new journal is created exclusively (``O_CREAT | O_EXCL``), so two runs never share a file, whenever they start. Its
writer holds an advisory lock (``flock``) on it for as long as it writes, so that a resumed run can tell whether the
run that it resumes is still alive. The kernel drops the lock when the process ends, however it ends: there is no lock
file to clean up. On NFS the lock holds between machines too, and after a machine's failure until the server's lease
has run out. Where no lock can be had (Windows, a file system without locks), an existing journal is never continued,
and the resumed run begins a new one.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

try:
    from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
except ModuleNotFoundError:  # Windows
    HAS_LOCKS = False
else:
    HAS_LOCKS = True

__all__ = [
    "MAX_LINE_BYTES",
    "InUse",
    "NotContinued",
    "bounded_lines",
    "is_at",
    "is_version_of",
    "lock",
    "open_locked",
    "open_new",
    "open_regular",
    "unlock",
]

MAX_LINE_BYTES = 1 << 20
"""Longest line of a journal. Lines are about 1 kB; a thousand times that is no journal's, and is not read further."""

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class NotContinued(Exception):
    """Why a resumed run does not write to the journal of the run that it resumes."""


class InUse(NotContinued):
    """Another process writes that journal at this moment."""


def open_new(path: Path) -> tuple[io.FileIO, Path]:
    """Create a file that nothing else has, under the first free name of ``run.jsonl``, ``run-v1.jsonl``, ….

    Args:
        path: the name to begin with; its folder is made

    Returns:
        the file, unbuffered, and the name that it has
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name, version = path, 0
    while True:
        try:
            return open(name, "xb", buffering=0), name
        except FileExistsError:
            version += 1
            name = path.with_name(f"{path.stem}-v{version}{path.suffix}")


def is_version_of(name: str, path: Path) -> bool:
    """Return whether ``name`` is one of those that `open_new` gives for ``path``.

    Args:
        name: a file's name, without its folder
        path: what `open_new` would be given

    Returns:
        True for the name itself and its versions
    """
    return re.fullmatch(rf"{re.escape(path.stem)}(-v[1-9][0-9]*)?{re.escape(path.suffix)}", name) is not None


def open_regular(path: str | Path, *, write: bool = False) -> io.FileIO:
    """Open a file that is there, if it is a regular one: a device has no end, and a named pipe may never begin.

    Args:
        path: the file; a symbolic link is followed
        write: whether to write, too

    Returns:
        the file, unbuffered, at its start

    Raises:
        ValueError: it is not a regular file
    """
    _check_regular(path, os.stat(path).st_mode)  # first, as opening a device can have effects
    flags = os.O_RDWR if write else os.O_RDONLY
    for name in ("O_NONBLOCK", "O_NOCTTY", "O_BINARY"):
        flags |= getattr(os, name, 0)
    number = os.open(path, flags)
    try:
        _check_regular(path, os.fstat(number).st_mode)  # again, as it may have been replaced in between
    except ValueError:
        os.close(number)
        raise
    return open(number, "r+b" if write else "rb", buffering=0)


def _check_regular(path: str | Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((kind for is_kind, kind in _KINDS if is_kind(mode)), "no file")
        raise ValueError(f"{path} is {kind}; a journal is a regular file. Give the path of the file.")


def bounded_lines(file: io.BufferedReader[Any], path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Read line by line, and never more than one line of bounded length at a time.

    Args:
        file: buffered, at its start
        path: its name, for the message

    Yields:
        each line's number, from 1, and the line with its end; a last line may have none

    Raises:
        ValueError: a line is longer than any of a journal's
    """
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(
                f"{path}, line {number} is longer than {MAX_LINE_BYTES:,} bytes, and a journal's are about 1,000: "
                "this is not a journal, or it was damaged. Cut the file before that line."
            )
        yield number, line


def lock(file: io.FileIO) -> bool | None:
    """Take the lock that the writer of a journal holds; closing the file gives it back, and so does the process's end.

    Args:
        file: open for writing

    Returns:
        True when this file holds it, False when another process (or another object of this one) does, None where that
        cannot be known
    """
    if not HAS_LOCKS:
        return None
    try:
        flock(file, LOCK_EX | LOCK_NB)
    except OSError as error:
        # Where NFS makes a byte-range lock of it, a lock held elsewhere is EACCES or EAGAIN.
        return False if error.errno in {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES} else None
    return True


def unlock(file: io.FileIO) -> None:
    """Give the lock back, also where another process has a copy of the descriptor.

    Args:
        file: what was given to `lock`
    """
    if HAS_LOCKS:
        with contextlib.suppress(OSError):
            flock(file, LOCK_UN)


def open_locked(path: Path) -> io.FileIO:
    """Open a journal that is there in order to continue it, and take its lock.

    Args:
        path: the journal

    Returns:
        the file, locked, at its start

    Raises:
        NotContinued: it is not there, or cannot be written
        InUse: another process is writing to it
    """
    try:
        file = open_regular(path, write=True)
    except FileNotFoundError as error:
        raise NotContinued(f"{path}, where this run would continue it, is not there") from error
    except (OSError, ValueError) as error:
        raise NotContinued(f"it cannot be opened for writing ({error})") from error
    locked = lock(file)
    if locked and is_at(path, file):
        return file
    file.close()
    if locked:
        raise NotContinued("it was replaced just now")
    if locked is None:
        raise NotContinued("it cannot be locked here, so another process may be writing to it")
    raise InUse("another process is writing to it")


def is_at(path: Path, file: io.FileIO) -> bool:
    """Return whether the name still leads to the open file: what is written to a removed file would be lost.

    Args:
        path: the name
        file: what was opened by it

    Returns:
        False where it was removed, or replaced by another
    """
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
