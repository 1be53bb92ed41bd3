"""What was measured and decided, as one JSON object a line: write, read, replay.

A journal answers "why did it hold at step 900?" after the run, and proves the answer: every change, and the first of
each run of holds, stands there with all its inputs, and `replay` puts the same inputs to the same policy again.
Non-finite numbers are written as the strings ``"inf"``, ``"-inf"`` and ``"nan"``, so that every line is standard JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import uuid
import warnings
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from numbers import Integral, Real
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
from lightning_bsscale.theory.checks import found
from lightning_bsscale.theory.policies import (
    POLICIES,
    Decision,
    hold_without_decision,
    recorded_decision,
)
from lightning_bsscale.theory.records import DecisionRecord, Measurement
from lightning_bsscale.theory.stored import FRACTIONS, as_plain, check_stored, from_plain, plain_value

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """A recorded decision beside the one that the same policy takes now.

    Attributes:
        record: the line of the journal
        replayed: what the policy answers to the same inputs
    """

    record: DecisionRecord
    replayed: Decision

    @property
    def recorded(self) -> Decision:
        """The answer in the journal."""
        return self.record.decision

    @property
    def agrees(self) -> bool:
        """Whether batch and reason are the same, and the numbers behind them to rounding."""
        names = [field.name for field in dataclasses.fields(Decision)]
        return all(_are_close(getattr(self.recorded, name), getattr(self.replayed, name)) for name in names)


def _are_close(recorded: Any, replayed: Any) -> bool:
    # The mathematical functions of another machine may round the last digit of a bound differently.
    if isinstance(recorded, float) and isinstance(replayed, float):
        both_unknown = math.isnan(recorded) and math.isnan(replayed)
        return both_unknown or math.isclose(recorded, replayed, rel_tol=1e-9)
    return bool(recorded == replayed)


Record = Measurement | DecisionRecord
_EVENTS: dict[str, type[Record]] = {"measurement": Measurement, "decision": DecisionRecord}
_NAMES: dict[type[Record], str] = {cls: name for name, cls in _EVENTS.items()}
MAX_OPTIONS = 64
MAX_OPTION_LENGTH = 200
MAX_OPTION_BITS = 1024
MAX_OPTION_ITEMS = 16


def describe_policy(policy: Any) -> dict[str, Any]:
    """Name and options of a policy, for the journal's first line.

    Args:
        policy: any policy

    Returns:
        ``{"class": name, "options": fields}``, of bounded size: numbers, strings, bools, None, enums (by value) and
        short sequences of these as they are, anything else as the name of its class. The options of a policy that is
        no dataclass are unknown (None)
    """
    options: dict[str, Any] | None = None
    if dataclasses.is_dataclass(policy):
        options = {}
        for name in [field.name for field in dataclasses.fields(policy)][:MAX_OPTIONS]:
            try:
                options[name] = _option(getattr(policy, name))
            except Exception:  # whatever an attribute of the user's raises when it is looked at
                options[name] = "unreadable"
    return {"class": type(policy).__name__, "options": options}


def _option(value: Any, depth: int = 2) -> Any:
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)[:MAX_OPTION_LENGTH]
    if isinstance(value, Integral) and int(value).bit_length() <= MAX_OPTION_BITS:
        return int(value)
    if isinstance(value, Real) and not isinstance(value, Integral):
        return plain_value(float(value))
    if isinstance(value, (list, tuple)) and len(value) <= MAX_OPTION_ITEMS and depth:
        return [_option(item, depth - 1) for item in value]
    kind = type(value)
    return f"<{kind.__module__}.{kind.__qualname__}>"[:MAX_OPTION_LENGTH]


class Journal:
    """Writes records to a file that no other run writes to, one JSON object a line, after a header line.

    A new journal takes the first free name of ``run.jsonl``, ``run-v1.jsonl``, …, so that nothing that is there is ever
    replaced. One that resumes a run continues that run's journal, which it knows by its id, if the file has that id and
    no other process is writing to it; else it begins a new one, whose header names the one that it continues.

    Attributes:
        path: the file that is written
        requested: the name that was asked for
        id: of this file, in its header and in the state
        records: how many records it holds
        replaced: of a continued journal, how many records beyond those of the checkpoint were dropped
        is_continued: whether it is the journal of the resumed run
        not_continued: of a resumed run with a new journal, why; None else
        in_use: whether that is because another process writes to it
        is_removed: whether it was removed in the end, as it had no record
    """

    def __init__(self, path: str | Path, header: dict[str, Any], *, resumes: Mapping[str, Any] | None = None) -> None:
        """Opens the file.

        Args:
            path: where to write; folders are made
            header: what the first line says beside the schema version
            resumes: the `state` of the journal to continue after that many of its records: what a killed run wrote
                after its last checkpoint is written again by the run that resumes it

        A file that cannot be created raises ValueError.
        """
        self.requested = Path(path)
        self.replaced = 0
        self.not_continued: str | None = None
        self.is_removed = self.in_use = False
        self._file: io.FileIO | None = None
        if resumes is not None:
            try:
                self._continue(resumes)
            except NotContinued as reason:
                self.not_continued, self.in_use = str(reason), isinstance(reason, InUse)
        self.is_continued = self._file is not None
        if self._file is None:
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
        told = {"id": self.id, "continues": None if resumes is None else dict(resumes), **plain_value(header)}
        if len(_encoded(told)) > MAX_LINE_BYTES // 2:  # such a header could not be read again
            told = {key: value if len(_encoded({key: value})) < 10_000 else None for key, value in told.items()}
        self._line({"event": "header", "schema": SCHEMA_VERSION, **told})

    def _continue(self, resumes: Mapping[str, Any]) -> None:
        self.path = self.requested.with_name(Path(str(resumes["path"])).name)
        if not is_version_of(self.path.name, self.requested):
            raise NotContinued("another name was asked for")
        file = open_locked(self.path)
        try:
            self._end, self.records, self.replaced = _end_of_records(file, self.path, resumes)
            file.truncate(self._end)
            file.seek(self._end)
        except OSError as error:
            file.close()
            raise NotContinued(f"it cannot be written ({error})") from error
        except NotContinued:
            file.close()
            raise
        self.id, self._file = str(resumes["id"]), file

    def state(self) -> dict[str, Any]:
        """What a checkpoint must know to continue this journal.

        Returns:
            its id, its path, and how many records it holds
        """
        return {"id": self.id, "path": str(self.path.absolute()), "records": self.records}

    def write(self, record: Record) -> None:
        """Appends one record.

        Args:
            record: a measurement or a decision
        """
        if self._line({"event": _NAMES[type(record)], **as_plain(record)}):
            self.records += 1

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
            # A full disk ends the journal, not the training; and the journal ends with a whole line.
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            self._release()
            warnings.warn(f"The journal {self.path} ends here ({error}); training goes on.", stacklevel=2)
            return False
        self._end += len(line)
        return True

    def close(self) -> None:
        """Closes the file, and removes a new one without a record; a second call does nothing."""
        if self._file is not None:
            if self.records == 0 and not self.is_continued and is_at(self.path, self._file):
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
        # In a forked child, whose copy of the descriptor would keep the lock after the parent's end. The lock itself
        # is the parent's.
        file, self._file = self._file, None
        if file is not None:
            file.close()


_open_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


def _forget_in_child() -> None:
    for journal in list(_open_journals):
        journal._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def _encoded(fields: dict[str, Any]) -> bytes:
    text = json.dumps(fields, allow_nan=False, ensure_ascii=False, default=repr) + "\n"
    return text.encode("utf-8", "backslashreplace")  # half a surrogate pair becomes JSON's own escape


def _end_of_records(file: io.FileIO, path: Path, known: Mapping[str, Any]) -> tuple[int, int, int]:
    # Where the records that the checkpoint knows of end, how many of them are there, and how many are beyond.
    reader = io.BufferedReader(file)
    try:
        lines = bounded_lines(reader, path)
        number, line = next(lines, (1, b""))
        header = _parsed(path, number, line)
        if header.get("event") != "header" or header.get("schema") != SCHEMA_VERSION or header.get("id") != known["id"]:
            raise NotContinued("the file there is of another run")
        end, kept, beyond = len(line), 0, 0
        for number, line in lines:
            if not line.endswith(b"\n"):  # torn: the run was killed while it wrote
                break
            if kept == known["records"]:
                beyond += 1
                continue
            if not line.startswith(b'{"event": "') or not line.endswith(b"}\n") or b"\0" in line:
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
        raise ValueError(f"{path}, line {number} is nested too deeply for a record. {_MEND}") from error
    except ValueError as error:
        raise ValueError(f"{path}, line {number} is no JSON: {error}. {_MEND}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path}, line {number} is no JSON object, got {found(fields)}. {_MEND}")
    return fields


_MEND = "Restore the line, or cut the file before it."
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
            fields = _parsed(path, number, line)
            if expected == "header":
                _check_header(path, fields)
                expected = "record"
            yield number, fields
        if expected == "header":
            _check_header(path, {})


def _check_header(path: str | Path, header: dict[str, Any]) -> None:
    if header.get("event") != "header":
        raise ValueError(
            f"{path} is not a journal: its first line must be a header, as BatchSizeScaler(record=True) writes it."
        )
    schema = header.get("schema")
    if isinstance(schema, bool) or schema != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has journal schema {found(schema)}; this version reads {SCHEMA_VERSION}. "
            "Read it with the version of lightning-bsscale that wrote it."
        )


def _record(path: str | Path, number: int, fields: dict[str, Any]) -> Record:
    event = fields.pop("event", None)
    cls = _EVENTS.get(event) if isinstance(event, str) else None
    if cls is None:
        raise ValueError(f"{path}, line {number}: unknown event {found(event)}; known are {_KNOWN}. {_MEND}")
    try:
        check_stored(cls, fields, fractions=FRACTIONS)
        record: Record = from_plain(cls, fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}, line {number} is no whole {event}: {error}. {_MEND}") from error
    return record


def read_journal(path: str | Path) -> tuple[dict[str, Any], list[Record]]:
    """Reads a journal, line by line: no line of more than a mebibyte, and no file that is not a regular one.

    Args:
        path: the file

    Returns:
        the header, and the records in their order

    What is not a regular file, does not begin with a header of a schema that this version knows, or has a line that is
    no record, raises ValueError with the file, the line, what was expected and what was found.
    """
    lines = _parsed_lines(path)
    _, header = next(lines)
    return header, [_record(path, number, fields) for number, fields in lines]


def _policy_of(header: dict[str, Any], path: str | Path) -> Any:
    # Only a class of ours is ever made, and its constructor checks every option.
    told = header.get("policy")
    told = told if isinstance(told, dict) else {}
    for cls in POLICIES.values():
        if cls.__name__ == told.get("class") and told.get("options") is not None:
            try:
                return cls(**told["options"])
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{path} was written with other options of {cls.__name__} ({error}): pass the policy, "
                    "replay(path, policy=...)."
                ) from error
    raise ValueError(
        f"{path} was written with the policy {found(told.get('class'))}, which is not one of "
        f"{', '.join(cls.__name__ for cls in POLICIES.values())}: pass the policy, replay(path, policy=...)."
    )


def replay(path: str | Path, policy: Any = None) -> Iterator[Replayed]:
    """Puts every recorded situation to the policy again, one at a time.

    Args:
        path: a journal
        policy: the policy to ask; None makes the one that the header names, with its options

    Yields:
        each recorded decision with the one taken now; they agree when the policy is the same

    A file that `read_journal` refuses, a policy that is unknown and not given, and numbers that the header's policy
    cannot work with raise ValueError.
    """
    lines = _parsed_lines(path)
    _, header = next(lines)
    asked = _policy_of(header, path) if policy is None else policy
    for number, fields in lines:
        record = _record(path, number, fields)
        if isinstance(record, DecisionRecord):
            where = None if policy is not None else f"{path}, line {number}"
            yield Replayed(record=record, replayed=_asked_again(asked, record, where))


def _asked_again(policy: Any, record: DecisionRecord, where: str | None) -> Decision:
    try:
        answer = recorded_decision(policy.decide(record.situation, record.limits), record.situation)
    except (ArithmeticError, TypeError, ValueError) as error:
        if where is None:  # the user's own policy, and so the user's own error
            raise
        # Each number was checked by itself, but not what they add up to.
        raise ValueError(
            f"{where} holds numbers that {type(policy).__name__} cannot work with ({error}). {_MEND}"
        ) from error
    return answer or hold_without_decision(record.situation)
