"""Compute a whole run again from its journal, without torch: windows, averages, decisions and factors.

The journal's events pass through the same pure functions as in training. Recorded and recomputed values are compared
line by line, in bounded memory.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from typing import Any

from lightning_bsscale.journal import REPAIR, Header, Line, RuleEvent, read_lines
from lightning_bsscale.theory import run
from lightning_bsscale.theory.described import make_policy, make_rule, make_schedule
from lightning_bsscale.theory.events import Applied, EndEvent, StepEvent, WindowEvent, apply
from lightning_bsscale.theory.history import History
from lightning_bsscale.theory.losses import LossEvent
from lightning_bsscale.theory.records import DecisionRecord, Measurement
from lightning_bsscale.theory.rules import LearningRateRule
from lightning_bsscale.theory.schedules import Schedule
from lightning_bsscale.theory.state import RunNumbers, RunSettings, RunState
from lightning_bsscale.theory.stored import FRACTIONS, check_stored, from_plain

__all__ = ["KINDS", "Replayed", "explained", "read_start", "replay", "settings_with"]

KINDS = {
    "window": "windows",
    "factor": "factors",
    "measurement": "measurements",
    "decision": "decisions",
    "end": "end states",
}
"""Kinds of compared values: singular → plural."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """A recorded value beside the recomputed one.

    Attributes:
        line: line number in the journal
        kind: one of `KINDS`
        recorded: a window's start and length, its two learning-rate factors, a `Measurement`, a `DecisionRecord`, or
            the `RunState` at the end; None if the journal lacks it
        replayed: the same, recomputed; None if nothing was
    """

    line: int
    kind: str
    recorded: Any
    replayed: Any

    @property
    def agrees(self) -> bool:
        """Whether both are equal, numbers to rounding."""
        return _are_close(self.recorded, self.replayed)


def _are_close(recorded: Any, replayed: Any) -> bool:
    if isinstance(recorded, float) or isinstance(replayed, float):
        if not (isinstance(recorded, (int, float)) and isinstance(replayed, (int, float))):
            return False
        # The mathematical functions of another machine may round the last digit of a bound differently.
        both_unknown = math.isnan(recorded) and math.isnan(replayed)
        return both_unknown or math.isclose(recorded, replayed, rel_tol=1e-9)
    if dataclasses.is_dataclass(recorded) and type(recorded) is type(replayed):
        names = (field.name for field in dataclasses.fields(recorded))
        return all(_are_close(getattr(recorded, name), getattr(replayed, name)) for name in names)
    if isinstance(recorded, (tuple, History)) and isinstance(replayed, (tuple, History)):
        return len(recorded) == len(replayed) and all(map(_are_close, recorded, replayed))
    return bool(recorded == replayed)


def replay(path: str | Path, policy: Any = None, rule: Any = None, schedule: Any = None) -> Iterator[Replayed]:
    """Replay a run, event by event.

    Args:
        path: a journal
        policy: the policy; None for the one that the header names, with its options
        rule: the rule, None for the header's; the ceiling of `lr_cap` is in the journal in either case
        schedule: the callback's own schedule; None for the header's

    Yields:
        each window, factor, measurement and decision, and the state at the end, as recorded and as recomputed

    A file that `read_lines` refuses, an unknown policy, rule or schedule that was not given, and numbers that no run
    can have raise ValueError.
    """
    given = {"policy": policy, "rule": rule, "schedule": schedule}
    at: _Run | None = None
    for number, line in read_lines(path):
        if isinstance(line, Header):
            at = _Run.begun(path, number, line.fields, given)
            continue
        assert at is not None
        yield from at.past(number, line)
    # Missing lines at the end are no disagreement: a run may be killed between a window and its measurement.


@dataclass(eq=False)
class _Run:
    """A run in progress, with the recomputed records that the journal has not shown yet."""

    path: str | Path
    settings: RunSettings
    state: RunState
    given: dict[str, Any]
    line: int = 0
    waiting: tuple[Measurement | DecisionRecord, ...] = ()

    @classmethod
    def begun(cls, path: str | Path, number: int, header: dict[str, Any], given: dict[str, Any]) -> _Run:
        """Begin at a header, or where a run was resumed."""
        numbers, state = read_start(path, number, header)
        policy = given["policy"]
        if policy is None and numbers.decides:
            policy = make_policy(header.get("policy"), path)
        rule = make_rule(header.get("lr_rule"), path, given["rule"])
        schedule = make_schedule(header.get("schedule"), path, given["schedule"])
        return cls(path, settings_with(numbers, policy, rule, schedule), state, given)

    def past(self, number: int, line: Line) -> Iterator[Replayed]:
        """Advance the run by one line."""
        if isinstance(line, LossEvent):  # on which nothing depends
            return
        if isinstance(line, (Measurement, DecisionRecord)):
            yield self._found(number, line)
            return
        for record in self.waiting:
            yield Replayed(line=self.line, kind=_kind(record), recorded=None, replayed=record)
        self.line, self.waiting = number, ()
        if isinstance(line, RuleEvent):
            self._use_rule(line)
        elif not isinstance(line, Header):
            yield from _compared(number, line, self._apply(line))

    def _apply(self, event: StepEvent) -> Applied:
        with self._explained():
            applied = apply(self.settings, self.state, event)
        self.state = applied.state.without_history()
        self.waiting = tuple(record for record in (applied.measurement, applied.record) if record is not None)
        return applied

    def _found(self, number: int, recorded: Measurement | DecisionRecord) -> Replayed:
        replayed = next((record for record in self.waiting if type(record) is type(recorded)), None)
        self.waiting = tuple(record for record in self.waiting if record is not replayed)
        return Replayed(line=number, kind=_kind(recorded), recorded=recorded, replayed=replayed)

    def _use_rule(self, event: RuleEvent) -> None:
        try:
            rule = make_rule(event.rule, self.path)
        except ValueError:
            if self.given["rule"] is None:
                raise
            rule = make_rule(event.rule, self.path, self.given["rule"])
        with self._explained():
            self.settings, self.state = run.use_rule(self.settings, self.state, rule)

    def _explained(self) -> AbstractContextManager[None]:
        name = type(self.settings.policy).__name__ if self.settings.decides else "a replay"
        return explained(self.path, self.line, name)


def read_start(path: str | Path, number: int, header: dict[str, Any]) -> tuple[RunNumbers, RunState]:
    """Read the settings and the state of a header, or of the line where a run was resumed.

    Args:
        path: the journal
        number: the line
        header: its fields

    Returns:
        The settings that are numbers, and the state before the next window.

    Raises:
        ValueError: If the line lacks either, or holds another type or range.
    """
    try:
        for name in ("settings", "state"):
            if not isinstance(header.get(name), dict):
                raise ValueError(f"lacks {name}")
        check_stored(RunNumbers, header["settings"])
        check_stored(RunState, header["state"], fractions=FRACTIONS)
        return from_plain(RunNumbers, header["settings"]), from_plain(RunState, header["state"])
    except (TypeError, ValueError) as error:
        event = "header" if number == 1 else "resumed"
        raise ValueError(f"{path}, line {number} is no whole {event}: {error}. {REPAIR}") from error


def settings_with(
    numbers: RunNumbers, policy: Any, rule: LearningRateRule, schedule: Schedule | None, **changes: Any
) -> RunSettings:
    """Return the settings of a run: those that are numbers, and the objects that a journal cannot hold.

    Args:
        numbers: the settings that are numbers
        policy: the policy, or None
        rule: the learning-rate rule
        schedule: the callback's own schedule, or None
        **changes: other numbers
    """
    same = {field.name: getattr(numbers, field.name) for field in dataclasses.fields(RunNumbers)}
    objects = {"policy": policy, "rule": rule, "rule_for": lambda optimizer: rule, "schedule": schedule}
    return RunSettings(**{**same, **objects, **changes})


@contextmanager
def explained(path: str | Path, line: int, name: str) -> Iterator[None]:
    """Say where a journal holds numbers that do not belong together: each was checked on its own only.

    An error in a user-defined policy, rule or schedule is raised as it is.

    Args:
        path: the journal
        line: the line in progress
        name: what works with the numbers

    Raises:
        ValueError: Instead of what the numbers have caused.
    """  # noqa: DOC501
    try:
        yield
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
        if _is_in_other_code(error):
            raise
        raise ValueError(
            f"{path}, line {line} holds numbers that {name} cannot work with ({error}). {REPAIR}"
        ) from error


def _is_in_other_code(error: Exception) -> bool:
    modules = {str(frame.f_globals.get("__name__", "")).partition(".")[0] for frame, _ in walk_tb(error.__traceback__)}
    return bool(modules - {"", "lightning_bsscale", *sys.stdlib_module_names})


def _compared(number: int, event: StepEvent, applied: Applied) -> Sequence[Replayed]:
    if isinstance(event, EndEvent):
        replayed = applied.state.without_history()
        return [Replayed(line=number, kind="end", recorded=event.state, replayed=replayed)]
    if not isinstance(event, WindowEvent):
        return []
    recorded, opened = event.opened, applied.opened
    assert opened is not None
    return [
        Replayed(line=number, kind="window", recorded=recorded[:2], replayed=opened[:2]),
        Replayed(line=number, kind="factor", recorded=recorded[2:], replayed=opened[2:]),
    ]


def _kind(record: Measurement | DecisionRecord) -> str:
    return "measurement" if isinstance(record, Measurement) else "decision"
