"""What a report shows of a run: its journal in bounded memory, as far as the file can be read."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from lightning_bsscale.journal import Header, Line, read_lines
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.events import DropEvent, EndEvent, GiveUpEvent, MetricEvent, WindowEvent
from lightning_bsscale.theory.numbers import describe_count
from lightning_bsscale.theory.records import DecisionRecord, Measurement
from lightning_bsscale.theory.state import RunNumbers, RunState
from lightning_bsscale.theory.stored import FRACTIONS, check_stored, from_plain
from lightning_bsscale.verdict import RunFacts, Verdict, read_facts, verdict_of

__all__ = ["Change", "Hold", "Phase", "Place", "RunRecord", "Thinned", "Window", "read_run"]

MOST_KEPT = 2048
MOST_CODES = 32
MOST_METRICS = 8
MOST = 1e30
_T = TypeVar("_T")


class Thinned(Generic[_T]):
    """A list that keeps at most so many items, spread over all that were added, with the first and the last."""

    def __init__(self, limit: int = MOST_KEPT) -> None:
        """Begin an empty list."""
        self._limit, self._stride, self.count = limit, 1, 0
        self._kept: list[_T] = []
        self._last: _T | None = None

    def add(self, item: _T) -> None:
        """Append an item."""
        is_kept = self.count % self._stride == 0
        self.count += 1
        self._last = None if is_kept else item
        if is_kept:
            self._kept.append(item)
            if len(self._kept) > self._limit:
                self._last = None if len(self._kept) % 2 else item
                self._kept, self._stride = self._kept[::2], 2 * self._stride

    @property
    def items(self) -> list[_T]:
        """The items that are kept, in order."""
        return self._kept if self._last is None else [*self._kept, self._last]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run is.

    Attributes:
        examples: examples so far
        steps: optimizer steps so far
        seconds: seconds of the timed windows so far
    """

    examples: float = 0.0
    steps: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Window:
    """A measured window.

    Attributes:
        place: where the run was at its end
        batch_size: the current batch size, in examples
        noise: the averaged estimate after it, or None
        lr: the learning rate of the step
        lr_scale: the factor in it
    """

    place: Place
    batch_size: float
    noise: NoiseScale | None
    lr: float
    lr_scale: float


@dataclass(frozen=True, slots=True)
class Hold:
    """What one reason to hold amounts to.

    Attributes:
        reason: its sentence, the first one with its code
        runs: runs of holds with that code
        examples: examples seen in them
    """

    reason: str
    runs: int = 0
    examples: float = 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the batch, with the holds before it.

    Attributes:
        place: where the run was
        record: the decision
        holds: by code, the holds since the last change
    """

    place: Place
    record: DecisionRecord
    holds: dict[str, Hold]


@dataclass(slots=True)
class Phase:
    """The windows of one batch size.

    Attributes:
        batch_size: in examples
        steps: optimizer steps
        examples: their examples
        timed: of these, the steps that were timed
        seconds: seconds of the timed ones
        computing: of these, in forward and backward passes
        stepping: of these, in the optimizer's step and what belongs to it
        undivided: of these, of steps whose parts were not measured
    """

    batch_size: float
    steps: int = 0
    examples: float = 0.0
    timed: int = 0
    seconds: float = 0.0
    computing: float = 0.0
    stepping: float = 0.0
    undivided: float = 0.0


@dataclass(eq=False)
class RunRecord:
    """What a journal tells of its run.

    Attributes:
        path: the file
        header: its first line
        numbers: the settings of the last start
        first: where the journal begins
        now: where the run is at its end
        start_batch: batch size at the run's first start, in examples
        batch: batch size at the end
        track: places of the run
        windows: measured windows
        changes: changes of the batch
        holds: by code, all holds
        last_holds: by code, the holds since the last change
        latest: the last decision, or None
        phases: by batch size
        metrics: values of the watched metrics, by name
        resumed: how often the run was resumed into this file
        ended: the end record, or None
        gave_up: whether an error ended the measurements
        drops: windows that were left without a step
        problems: what was wrong with the file
        facts: what its verdict is made from; None where that cannot be said
        verdict: what it found, why, and what to change next
    """

    path: Path
    header: dict[str, Any]
    numbers: RunNumbers
    first: Place
    now: Place
    start_batch: float
    batch: float
    track: Thinned[Place] = field(default_factory=Thinned)
    windows: Thinned[Window] = field(default_factory=Thinned)
    changes: Thinned[Change] = field(default_factory=Thinned)
    holds: dict[str, Hold] = field(default_factory=dict)
    last_holds: dict[str, Hold] = field(default_factory=dict)
    latest: DecisionRecord | None = None
    phases: dict[float, Phase] = field(default_factory=dict)
    metrics: dict[str, Thinned[tuple[Place, float]]] = field(default_factory=dict)
    resumed: int = 0
    ended: EndEvent | None = None
    gave_up: bool = False
    drops: int = 0
    problems: list[str] = field(default_factory=list)
    facts: RunFacts | None = None
    verdict: Verdict = field(default_factory=lambda: Verdict(""))

    @property
    def unit(self) -> str:
        """What a batch is counted in, as a plural word."""
        profile = self.header.get("profile")
        unit = profile.get("unit") if isinstance(profile, dict) else None
        return unit if isinstance(unit, str) and unit else "examples"

    @property
    def timed(self) -> int:
        """Optimizer steps with seconds."""
        return sum(phase.timed for phase in self.phases.values())

    @property
    def has_seconds(self) -> bool:
        """Whether nearly all steps were timed, so that the seconds can be an axis."""
        steps = sum(phase.steps for phase in self.phases.values())
        return self.now.seconds > 0 and self.timed >= 0.9 * (steps - 2 * (1 + self.resumed))

    @property
    def noise(self) -> NoiseScale | None:
        """The last estimate, or None."""
        return next((window.noise for window in reversed(self.windows.items) if window.noise is not None), None)

    def at_step(self, steps: float) -> Place:
        """Return the recorded place that is nearest before a step."""
        places = self.track.items
        low, high = 0, len(places)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if places[middle].steps <= steps else (low, middle)
        return places[max(0, low - 1)] if places else self.first


def read_run(path: Path) -> RunRecord:
    """Read a journal, of an interrupted run too.

    Args:
        path: the file

    Returns:
        What it tells. A line that cannot be read ends it there, and is a problem that the report names.

    Raises:
        ValueError: If it is no journal.
    """  # noqa: DOC502
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lines = read_lines(path)
        reader = _Reader(path, next(lines)[1])
        try:
            for number, line in lines:
                reader.past(number, line)
        except ValueError as error:
            reader.run.problems.append(f"The file can be read up to here only: {error}")
    run = reader.finished()
    run.problems += [str(one.message) for one in caught]
    run.facts, run.verdict = _judged(run)
    return run


def _judged(run: RunRecord) -> tuple[RunFacts | None, Verdict]:
    if not run.phases and not run.windows.count:
        ended = "The run ended" if run.ended is not None else "The run was interrupted, or is still,"
        why = f"{ended} before its first optimizer step, so there is nothing to draw."
        return None, Verdict("Nothing was trained.", (why,), ("Train for at least one optimizer step.",))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            facts = read_facts(run.path)
        return facts, verdict_of(facts)
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
        # The file is damaged, or holds numbers that do not belong together.
        now, reason = describe_count(run.batch, run.unit), f"The journal does not allow a verdict: {error}"
        return None, Verdict(f"The batch was {now} at the last line that can be read.", (reason,))


def _started(path: Path, number: int, line: Line) -> tuple[RunNumbers, RunState]:
    assert isinstance(line, Header)
    try:
        check_stored(RunNumbers, line.fields.get("settings"))
        check_stored(RunState, line.fields.get("state"), fractions=FRACTIONS)
        numbers: RunNumbers = from_plain(RunNumbers, line.fields["settings"])
        state: RunState = from_plain(RunState, line.fields["state"])
    except (TypeError, ValueError) as error:  # each number was checked on its own, but not in combination
        raise ValueError(f"{path}, line {number} holds no settings of a run: {error}.") from error
    return numbers, state


def _believable(value: float, otherwise: float = 0.0) -> float:
    """Return a count or a time of a file, or the alternative for a number that no run can have."""
    # Sums of these stay far below the largest float.
    return float(value) if 0 <= value <= MOST else otherwise


def _total(state: RunState) -> float:
    return _believable(state.examples.total)


class _Reader:
    """Takes a record past the lines of its journal."""

    def __init__(self, path: Path, header: Line) -> None:
        assert isinstance(header, Header)
        numbers, state = _started(path, 1, header)
        place = Place(_total(state), _believable(state.windows))
        self.run = RunRecord(
            path,
            header.fields,
            numbers,
            first=place,
            now=place,
            start_batch=_believable(state.batch.start_batch_size),
            batch=_believable(state.batch.batch_size),
        )
        self.run.track.add(place)
        self._code: str | None = None
        self._reason, self._since = "", place.examples

    def past(self, number: int, line: Line) -> None:
        """Take in one line."""
        run = self.run
        if isinstance(line, Header):
            run.numbers, state = _started(run.path, number, line)
            run.now = Place(_total(state), _believable(state.windows), run.now.seconds)
            run.batch, run.ended, run.gave_up = _believable(state.batch.batch_size), None, False
            run.resumed += 1
        elif isinstance(line, WindowEvent):
            self._window(line)
        elif isinstance(line, Measurement):
            self._measurement(line)
        elif isinstance(line, DecisionRecord):
            self._decision(line)
        elif isinstance(line, MetricEvent):
            if line.name in run.metrics or len(run.metrics) < MOST_METRICS:
                run.metrics.setdefault(line.name, Thinned()).add((run.now, line.value))
        elif isinstance(line, DropEvent):
            run.drops += 1
        elif isinstance(line, GiveUpEvent):
            run.gave_up = True
        elif isinstance(line, EndEvent):
            run.ended = line
            run.now = Place(_total(line.state), run.now.steps, run.now.seconds)

    def _window(self, line: WindowEvent) -> None:
        run, now = self.run, self.run.now
        usual = _believable(line.length * run.numbers.now.granularity)
        # On several ranks, these are one rank's alone.
        alone = line.examples is not None and run.numbers.now.world_size == 1
        examples = _believable(line.examples or 0, usual) if alone else usual
        computing, stepping = _parts(line)
        took = line.took
        if took is None and None not in line.seconds:
            took = computing + stepping
        phase = run.phases.setdefault(run.batch, Phase(run.batch))
        phase.steps += 1
        phase.examples += examples
        if took is not None:
            took = _believable(took)
            phase.timed += 1
            phase.seconds += took
            phase.computing += min(took, computing)
            phase.stepping += min(max(0.0, took - computing), stepping)
            phase.undivided += took if None in line.seconds else 0.0
        run.now = Place(now.examples + examples, now.steps + 1, now.seconds + (took or 0.0))
        run.track.add(run.now)

    def _measurement(self, line: Measurement) -> None:
        run = self.run
        near = run.at_step(line.optimizer_steps)
        place = Place(_believable(line.examples_seen), _believable(line.optimizer_steps), near.seconds)
        run.windows.add(Window(place, _believable(line.batch_size), line.noise, line.lr, line.lr_scale))

    def _decision(self, line: DecisionRecord) -> None:
        run = self.run
        run.latest = line
        seen = _believable(line.situation.examples_seen, run.now.examples)
        run.now = Place(seen, run.now.steps, run.now.seconds)
        self._end_of_hold()
        if line.is_change:
            run.changes.add(Change(run.now, line, run.last_holds))
            run.last_holds, self._code = {}, None
            run.batch = _believable(line.batch_size)
        else:
            code = line.decision.code or "hold"
            known = code in run.holds or len(run.holds) < MOST_CODES
            self._code, self._reason, self._since = code if known else "other", line.decision.reason, run.now.examples

    def _end_of_hold(self) -> None:
        if self._code is None:
            return
        examples = max(0.0, self.run.now.examples - self._since)
        for holds in (self.run.holds, self.run.last_holds):
            before = holds.get(self._code) or Hold(self._reason)
            holds[self._code] = Hold(before.reason, before.runs + 1, before.examples + examples)

    def finished(self) -> RunRecord:
        """Return the record at the end of the file."""
        self._end_of_hold()
        if self.run.ended is not None and self.run.ended.latest is not None:
            self.run.latest = self.run.ended.latest
        return self.run


def _parts(line: WindowEvent) -> tuple[float, float]:
    """Return the measured seconds of a window's forward and backward passes, and of its step."""
    per_loader_batch, per_step = (_believable(value or 0.0) for value in line.seconds)
    return _believable(line.length) * per_loader_batch, per_step
