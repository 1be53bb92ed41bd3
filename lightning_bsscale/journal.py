"""Write and read a run's measurements, decisions and inputs, one JSON object a line.

A journal answers "why did it hold at step 900?" after the run: every measured window, every change, and the first of
each run of holds are recorded with all their inputs. Everything else that the run depends on is recorded as events
(`theory.events`), so that `replay` can compute the whole run again. Non-finite numbers are written as the strings
``"inf"``, ``"-inf"`` and ``"nan"``, so that every line is standard JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import uuid
import warnings
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_bsscale.journal_file import (
    MAX_LINE_BYTES,
    InUse,
    NotContinued,
    bounded_lines,
    is_at,
    is_version_of,
    lock,
    open_locked,
    open_new,
    open_regular,
    unlock,
)
from lightning_bsscale.theory.checks import show
from lightning_bsscale.theory.described import describe
from lightning_bsscale.theory.events import (
    DropEvent,
    EndEvent,
    EpochEvent,
    GiveUpEvent,
    MetricEvent,
    SchedulersEvent,
    StepEvent,
    WindowEvent,
)
from lightning_bsscale.theory.losses import LossEvent
from lightning_bsscale.theory.pace import Pace
from lightning_bsscale.theory.profile import RunProfile
from lightning_bsscale.theory.records import DecisionRecord, Measurement
from lightning_bsscale.theory.state import RunNumbers, RunSettings, RunState
from lightning_bsscale.theory.stored import (
    FRACTIONS,
    as_compact,
    as_plain,
    check_stored,
    from_plain,
    plain_value,
    with_defaults,
)

__all__ = [
    "REPAIR",
    "Header",
    "Journal",
    "Line",
    "Record",
    "RuleEvent",
    "read_journal",
    "read_lines",
    "run_header",
]

SCHEMA_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleEvent:
    """A change to another rule.

    Attributes:
        rule: the rule, as `theory.described.describe` returns it
    """

    rule: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Header:
    """The settings of a run, at its start and where it is resumed.

    Attributes:
        fields: the fields of the line
    """

    fields: dict[str, Any]


Record = Measurement | DecisionRecord
Line = Record | StepEvent | RuleEvent | LossEvent | Header
_EVENTS: dict[str, Any] = {
    "measurement": Measurement,
    "decision": DecisionRecord,
    "window": WindowEvent,
    "epoch": EpochEvent,
    "dropped": DropEvent,
    "rule": RuleEvent,
    "schedulers": SchedulersEvent,
    "metric": MetricEvent,
    "loss": LossEvent,
    "gave_up": GiveUpEvent,
    "end": EndEvent,
    "resumed": Header,
}
_NAMES: dict[Any, str] = {cls: name for name, cls in _EVENTS.items()}
_OF_A_STEP = (WindowEvent, Measurement, DecisionRecord)


def run_header(
    settings: RunSettings, state: RunState, profile: RunProfile | None = None, pace: Pace | None = None
) -> dict[str, Any]:
    """Return the content of a journal's first line.

    Args:
        settings: the settings of the run
        state: its first state
        profile: what its readers are told beside
        pace: the seconds of its windows so far

    Returns:
        policy, rules and schedule by class and options, the settings that are numbers, the state without its history,
        the profile, and the pace
    """
    numbers = {field.name: getattr(settings, field.name) for field in dataclasses.fields(RunNumbers)}
    return {
        "policy": describe(settings.policy) if settings.decides else None,
        "lr_rule": describe(settings.rule),
        "schedule": None if settings.schedule is None else describe(settings.schedule),
        "also_scale": [describe(rule) for rule in settings.also_scale],
        "dry_run": not settings.acts,
        "settings": plain_value(numbers),
        "state": as_plain(state.without_history()),
        "profile": as_plain(RunProfile() if profile is None else profile),
        "pace": as_plain(Pace() if pace is None else pace),
    }


class Journal:
    """Writes records to a file that no other run writes to, one JSON object a line, after a header line.

    A new journal takes the first free name of ``run.jsonl``, ``run-v1.jsonl``, …, so it never replaces a file. A
    resumed run continues its own journal if the file has the run's id and no other process is writing to it. Otherwise
    it starts a new journal, whose header names the old one.

    Attributes:
        path: the file
        requested: the requested name
        id: the id in its header, which checkpoints hold too
        records: lines after the header
        kept: in a continued journal, lines known to the checkpoint
        replaced: in a continued journal, later lines, which were dropped
        is_continued: whether it is the journal of the resumed run
        not_continued: why a resumed run started a new journal; None otherwise
        in_use: whether the reason is that another process writes to it
        is_removed: whether it was removed when closed, because it held no optimizer step
    """

    def __init__(self, path: str | Path, header: dict[str, Any], *, resumes: Mapping[str, Any] | None = None) -> None:
        """Open the file.

        Args:
            path: the file; missing folders are created
            header: content of the first line beside the schema version; in a continued journal, of the next line
            resumes: the `state` of the journal to continue. Lines that a killed run wrote after its last checkpoint are
                dropped, because the resumed run writes them again

        A file that cannot be created raises ValueError.
        """
        self.requested = Path(path)
        self.kept = self.replaced = 0
        self.not_continued: str | None = None
        self.is_removed = self.in_use = self._has_steps = False
        self._file: io.FileIO | None = None
        if resumes is not None:
            try:
                self._continue(resumes)
            except NotContinued as reason:
                self.not_continued, self.in_use = str(reason), isinstance(reason, InUse)
        self.is_continued = self._file is not None
        if self.is_continued:
            self.write(Header(_bounded(plain_value(header))))
        else:
            self._begin(header, resumes)
        _open_journals.add(self)

    def _begin(self, header: dict[str, Any], resumes: Mapping[str, Any] | None) -> None:
        try:
            self._file, self.path = open_new(self.requested)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"The journal {self.requested} cannot be created ({error}). Give record=... a path in a folder that "
                "can be written to."
            ) from error
        lock(self._file)
        self.id = uuid.uuid4().hex
        self.records = self._end = 0
        names = {"id": self.id, "continues": None if resumes is None else dict(resumes)}
        self._line({"event": "header", "schema": SCHEMA_VERSION, **_bounded({**names, **plain_value(header)})})

    def _continue(self, resumes: Mapping[str, Any]) -> None:
        self.path = self.requested.with_name(Path(str(resumes["path"])).name)
        if not is_version_of(self.path.name, self.requested):
            raise NotContinued("another name was asked for")
        file = open_locked(self.path)
        try:
            self._end, self.kept, self.replaced = _end_of_records(file, self.path, resumes)
            file.truncate(self._end)
            file.seek(self._end)
        except OSError as error:
            file.close()
            raise NotContinued(f"it cannot be written ({error})") from error
        except NotContinued:
            file.close()
            raise
        self.id, self._file, self.records = str(resumes["id"]), file, self.kept

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs to continue this journal: its id, its path, and its lines after the header."""
        return {"id": self.id, "path": str(self.path.absolute()), "records": self.records}

    def write(self, record: Line) -> None:
        """Append a measurement, a decision or an event."""
        if isinstance(record, Header):
            fields = record.fields
        else:
            fields = as_plain(record) if isinstance(record, DecisionRecord) else as_compact(record)
        if self._line({"event": _NAMES[type(record)], **fields}):
            self.records += 1
            self._has_steps = self._has_steps or isinstance(record, _OF_A_STEP)

    def _line(self, fields: dict[str, Any]) -> bool:
        if self._file is None:
            return False
        line = _encoded(fields)
        if len(line) > MAX_LINE_BYTES:
            warnings.warn(
                f"A record of {len(line):,} bytes is too long for the journal {self.path}, and is left out; a line has "
                f"at most {MAX_LINE_BYTES:,}. Shorten the policy's reason.",
                stacklevel=2,
            )
            return False
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError as error:
            # A full disk ends the journal, not the training. The journal then ends with a complete line.
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            self._release()
            warnings.warn(f"The journal {self.path} ends here ({error}); training continues.", stacklevel=2)
            return False
        self._end += len(line)
        return True

    def close(self) -> None:
        """Close the file, and remove a new one without an optimizer step; a second call does nothing."""
        if self._file is not None:
            if not self._has_steps and not self.is_continued and is_at(self.path, self._file):
                with contextlib.suppress(OSError):  # Windows does not remove a file that is open
                    self.path.unlink()
                    self.is_removed = True
            self._release()

    def _release(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            unlock(file)
            file.close()

    def _forget(self) -> None:
        # In a forked child: its copy of the descriptor would keep the parent's lock after the parent's end.
        file, self._file = self._file, None
        if file is not None:
            file.close()


_open_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


def _forget_in_child() -> None:
    for journal in list(_open_journals):
        journal._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


_ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False, default=repr, separators=(",", ":"))


def _encoded(fields: dict[str, Any]) -> bytes:
    text = _ENCODER.encode(fields) + "\n"
    return text.encode("utf-8", "backslashreplace")  # half a surrogate pair becomes JSON's own escape


def _bounded(header: dict[str, Any]) -> dict[str, Any]:
    if len(_encoded(header)) <= MAX_LINE_BYTES // 2:
        return header
    # Such a header could not be read again.
    return {key: value if len(_encoded({key: value})) < 10_000 else None for key, value in header.items()}


def _end_of_records(file: io.FileIO, path: Path, known: Mapping[str, Any]) -> tuple[int, int, int]:
    # Return the end of the lines known to the checkpoint, their number, and the number of later ones.
    reader = io.BufferedReader(file)
    try:
        lines = bounded_lines(reader, path)
        number, line = next(lines, (1, b""))
        header = _parsed(path, number, line)
        if header.get("event") != "header" or header.get("schema") != SCHEMA_VERSION or header.get("id") != known["id"]:
            raise NotContinued("the file there is of another run")
        if not line.endswith(b"\n"):
            raise NotContinued("it was damaged in line 1")
        end, kept, beyond = len(line), 0, 0
        for number, line in lines:
            if not line.endswith(b"\n"):  # torn: the run was killed while it wrote
                break
            if kept == known["records"]:
                beyond += 1
                continue
            if not line.startswith(b'{"event":"') or not line.endswith(b"}\n") or b"\0" in line:
                raise NotContinued(f"it was damaged in line {number}")
            end, kept = end + len(line), kept + 1
        return end, kept, beyond
    except ValueError as error:
        raise NotContinued(str(error)) from error
    finally:
        reader.detach()


# ---------------------------------------------------------------- reading

_MOST_DIGITS = 310  # more than the largest float has
_MOST_LEVELS = 1000


def _whole_number(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits is too large")
    return int(text)


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON's, and is written as a string")


_DECODER = json.JSONDecoder(parse_int=_whole_number, parse_constant=_no_number)


def _parsed(path: str | Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        if line.count(b"{") + line.count(b"[") > _MOST_LEVELS:
            raise RecursionError  # before the parser runs into it
        fields = _DECODER.decode(line.decode("utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path}, line {number} is nested too deeply for a record. {REPAIR}") from error
    except ValueError as error:
        raise ValueError(f"{path}, line {number} is no JSON: {error}. {REPAIR}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path}, line {number} is no JSON object, got {show(fields)}. {REPAIR}")
    return fields


REPAIR = "Restore the line, or cut the file before it."
_KNOWN = ", ".join(_EVENTS)


def _parsed_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # The header first, each line with its number in the file; the caller holds one at a time.
    with io.BufferedReader(open_regular(path)) as file:
        expected = "header"
        for number, line in bounded_lines(file, path):
            if not line.endswith(b"\n") and expected != "header":
                warnings.warn(f"The last line of {path} was cut while it was written; it is left out.", stacklevel=3)
                return
            if not line.strip():
                continue
            if expected == "header":
                fields = _parsed_header(path, number, line)
                expected = "record"
            else:
                fields = _parsed(path, number, line)
            yield number, fields
        if expected == "header":
            _check_header(path, {})


def _parsed_header(path: str | Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        header = _parsed(path, number, line)
    except ValueError:
        header = {}  # any other file
    _check_header(path, header)
    return header


def _check_header(path: str | Path, header: dict[str, Any]) -> None:
    if header.get("event") != "header":
        raise ValueError(
            f"{path} is not a journal: its first line must be a header, as BatchSizeScaler(record=True) writes it."
        )
    schema = header.get("schema")
    if isinstance(schema, bool) or schema != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has journal schema {show(schema)}; this version reads {SCHEMA_VERSION}. "
            "Read it with the version of lightning-bsscale that wrote it."
        )


def _record(path: str | Path, number: int, fields: dict[str, Any]) -> Line:
    event = fields.pop("event", None)
    cls = _EVENTS.get(event) if isinstance(event, str) else None
    if cls is None:
        raise ValueError(f"{path}, line {number}: unknown event {show(event)}; known are {_KNOWN}. {REPAIR}")
    if cls is Header:
        return Header(fields)
    try:
        fields = with_defaults(cls, fields)
        check_stored(cls, fields, fractions=FRACTIONS)
        record: Line = from_plain(cls, fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}, line {number} is no whole {event}: {error}. {REPAIR}") from error
    return record


def read_lines(path: str | Path) -> Iterator[tuple[int, Line]]:
    """Read a journal line by line.

    Args:
        path: the file

    Yields:
        the number of each line, and what it holds; the header first

    Raises:
        ValueError: If this is not a regular file, if the header is missing or has another schema, or if a line is not
            a record or has more than a mebibyte.
    """  # noqa: DOC502
    lines = _parsed_lines(path)
    number, header = next(lines)
    yield number, Header(header)
    for number, fields in lines:
        yield number, _record(path, number, fields)


def read_journal(path: str | Path) -> tuple[dict[str, Any], list[Record]]:
    """Read a journal's header, measurements and decisions.

    Args:
        path: the file

    Returns:
        the header, and the measurements and decisions in their order

    Raises:
        ValueError: If the file is not a journal, as for `read_lines`.
    """  # noqa: DOC502
    lines = read_lines(path)
    _, header = next(lines)
    assert isinstance(header, Header)
    return header.fields, [record for _, record in lines if isinstance(record, (Measurement, DecisionRecord))]
