"""What was measured and decided, as one JSON object a line: write, read, replay.

A journal answers "why did it hold at step 900?" after the run, and proves the answer: every change, and the first of
each run of holds, stands there with all its inputs, and `replay` puts the same inputs to the same policy again.
Non-finite numbers are written as the strings ``"inf"``, ``"-inf"`` and ``"nan"``, so that every line is standard JSON.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TextIO

from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.policies import POLICIES, Decision, Limits, Situation

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One measured window and what was known after it.

    Attributes:
        examples_seen: examples of all windows up to and including this one
        optimizer_steps: optimizer steps up to and including this one
        batch_size: the current batch size, in examples (a probe or an epoch's last window has another size);
            in a dry run, the one that would be
        accumulate_grad_batches: micro-batches of this window on one device
        window_examples: examples of this window
        trace: this window's estimate of tr Σ, gradient units squared; nan where the window was dropped
        grad_sq: this window's estimate of ‖G‖², gradient units squared; may be negative
        noise: the averaged estimate after this window, or None
        lr: the learning rate that this step was made with (first parameter group)
        lr_scale: the factor on it in this step, as it was applied; 1 in a dry run
    """

    examples_seen: int
    optimizer_steps: int
    batch_size: int
    accumulate_grad_batches: int
    window_examples: int
    trace: float
    grad_sq: float
    noise: NoiseScale | None
    lr: float
    lr_scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRecord:
    """One answer of the policy, with everything it was asked with and what was made of it.

    Attributes:
        situation: the policy's input
        limits: the policy's other input
        decision: the policy's answer
        batch_size: the batch from the next window on, in examples: the answer, rounded and within the limits
        lr_scale: the factor on the rate from the next window on
        lr_rule: the rule that changed the factor; one that had no resolved noise scale to work with names its stand-in
    """

    situation: Situation
    limits: Limits
    decision: Decision
    batch_size: int
    lr_scale: float
    lr_rule: str

    @property
    def is_change(self) -> bool:
        """Whether the batch changed."""
        return self.batch_size != self.situation.batch_size


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
        """Whether batch and reason are the same."""
        return self.recorded == self.replayed


_HEADER_BEGINS = b'{"event": "header"'
Record = Measurement | DecisionRecord
_EVENTS: dict[str, type[Record]] = {"measurement": Measurement, "decision": DecisionRecord}
_NAMES: dict[type[Record], str] = {cls: name for name, cls in _EVENTS.items()}
_NESTED: dict[str, Any] = {"noise": NoiseScale, "situation": Situation, "limits": Limits, "decision": Decision}


def _plain(value: Any) -> Any:
    # JSON has no inf and no nan, so they travel as words; and neither it nor a checkpoint has NumPy's numbers.
    if isinstance(value, Real) and type(value).__module__ != "builtins":
        value = int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def as_plain(record: Any) -> dict[str, Any]:
    """The fields of a record as strings, numbers, lists and dicts.

    Args:
        record: a dataclass instance, such as a `Measurement`

    Returns:
        a dict that JSON and `torch.load(weights_only=True)` can hold
    """
    plain: dict[str, Any] = _plain(dataclasses.asdict(record))
    return plain


def from_plain(cls: Any, fields: dict[str, Any]) -> Any:
    """The record back from `as_plain`.

    Args:
        cls: the record's class
        fields: what `as_plain` gave

    Returns:
        an instance of `cls`
    """
    made: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        value = fields[field.name]
        if field.name in _NESTED and isinstance(value, dict):
            value = from_plain(_NESTED[field.name], value)
        elif isinstance(value, str) and "float" in str(field.type):
            value = float(value)
        made[field.name] = value
    return cls(**made)


def describe_policy(policy: Any) -> dict[str, Any]:
    """Name and options of a policy, for the journal's first line.

    Args:
        policy: any policy

    Returns:
        ``{"class": name, "options": fields}``; the options of a policy that is no dataclass are unknown (None)
    """
    options = as_plain(policy) if dataclasses.is_dataclass(policy) else None
    return {"class": type(policy).__name__, "options": options}


class Journal:
    """Appends records to a file, one JSON object a line, the first of which is a header with the schema version."""

    def __init__(self, path: str | Path, header: dict[str, Any], *, keep: int | None = None) -> None:
        """Opens the file.

        Args:
            path: where to write; folders are made. A journal that is there is replaced, any other file is refused
            header: what the first line says beside the schema version
            keep: go on with the journal that is there after so many of its records: what a killed run wrote after its
                last checkpoint is written again by the one that goes on, and a torn last line is no record
        """
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        end, self.records = _end_of_records(self.path, keep or 0)
        begun = keep is not None and end > 0
        self._file: TextIO | None = self.path.open("r+" if begun else "w", encoding="utf-8")
        if begun:
            self._file.truncate(end)
            self._file.seek(end)
        else:
            self._line({"event": "header", "schema": SCHEMA_VERSION, **_plain(header)})
            self.records = 0

    def write(self, record: Record) -> None:
        """Appends one record.

        Args:
            record: a measurement or a decision
        """
        self._line({"event": _NAMES[type(record)], **as_plain(record)})

    def _line(self, fields: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(fields, allow_nan=False, ensure_ascii=False, default=repr) + "\n")
            self._file.flush()
            self.records += 1
        except OSError as error:
            # A full disk ends the journal, not the training.
            self._file = None
            warnings.warn(f"The journal {self.path} ends here ({error}); training goes on.", stacklevel=2)

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _end_of_records(path: Path, count: int) -> tuple[int, int]:
    # Where in the file its first `count` whole records end (0: it has not even a header), and how many these are.
    if not path.exists():
        return 0, 0
    with path.open("rb") as file:
        first = file.readline()
        end = len(first)
        if not first.startswith(_HEADER_BEGINS) and not _HEADER_BEGINS.startswith(first):
            raise ValueError(f"{path} is there and is no journal. It is left as it is: give record=... another path.")
        if not first.endswith(b"\n"):
            return 0, 0
        for found in range(count):
            line = file.readline()
            if not line.endswith(b"\n"):
                return end, found
            end += len(line)
    return end, count


def _parsed(path: str | Path, number: int, line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number} is no JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path}, line {number} is no JSON object, got {fields!r}.")
    return fields


def read_journal(path: str | Path) -> tuple[dict[str, Any], list[Record]]:
    """Reads a journal.

    Args:
        path: the file

    Returns:
        the header, and the records in their order

    Raises:
        ValueError: the file does not begin with a header of a schema that this version knows, or a line is no record
    """
    with Path(path).open(encoding="utf-8") as file:
        written = list(file)
    if written and not written[-1].endswith("\n"):
        warnings.warn(f"The last line of {path} was cut while it was written; it is left out.", stacklevel=2)
        written.pop()
    lines = [_parsed(path, number, line) for number, line in enumerate(written, start=1) if line.strip()]
    if not lines or lines[0].get("event") != "header":
        raise ValueError(
            f"{path} is not a journal: its first line must be a header, as BatchSizeScaler(record=True) writes it."
        )
    header = lines[0]
    if header.get("schema") != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has journal schema {header.get('schema')!r}; this version reads {SCHEMA_VERSION}. "
            "Read it with the version of lightning-bsscale that wrote it."
        )
    records: list[Record] = []
    for number, fields in enumerate(lines[1:], start=2):
        event = fields.pop("event", None)
        if event not in _EVENTS:
            raise ValueError(f"{path}, line {number}: unknown event {event!r}; known are {', '.join(_EVENTS)}.")
        try:
            records.append(from_plain(_EVENTS[event], fields))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number} is no whole {event}: {error!r}.") from error
    return header, records


def _policy_of(header: dict[str, Any], path: str | Path) -> Any:
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
        f"{path} was written with the policy {told.get('class')!r}, which is not one of "
        f"{', '.join(cls.__name__ for cls in POLICIES.values())}: pass the policy, replay(path, policy=...)."
    )


def replay(path: str | Path, policy: Any = None) -> Iterator[Replayed]:
    """Puts every recorded situation to the policy again.

    Args:
        path: a journal
        policy: the policy to ask; None makes the one that the header names, with its options

    Yields:
        each recorded decision with the one taken now; they agree when the policy is the same

    A file that is no journal, and a policy that is unknown and not given, raise ValueError.
    """
    header, records = read_journal(path)
    asked = policy if policy is not None else _policy_of(header, path)
    for record in records:
        if isinstance(record, DecisionRecord):
            yield Replayed(record=record, replayed=asked.decide(record.situation, record.limits))


def _brief(value: float) -> str:
    return f"{value:.4g}" if value < 1e5 else f"{value:.2e}"


def describe_noise(noise: NoiseScale | None) -> str:
    """A noise scale in a few characters.

    Args:
        noise: an estimate, or None

    Returns:
        ``"123 [80, 210]"`` in examples, or ``"unknown"``
    """
    if noise is None:
        return "unknown"
    return f"{_brief(noise.noise_scale)} [{_brief(noise.low)}, {_brief(noise.high)}]"


def summary_table(decisions: Sequence[DecisionRecord]) -> str:
    """Changes, and the first of each run of holds, as an aligned table.

    Args:
        decisions: the records, in order

    Returns:
        a table of text, one line a record
    """
    rows = [("examples", "step", "batch", "lr factor", "noise scale [90 %]", "reason")]
    for record in decisions:
        old, new = record.situation.batch_size, record.batch_size
        rows.append(
            (
                f"{record.situation.examples_seen:g}",
                str(record.situation.optimizer_steps),
                f"{old:g} -> {new:g}" if record.is_change else f"{old:g}",
                f"{record.lr_scale:.3g}",
                describe_noise(record.situation.noise),
                record.decision.reason,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
