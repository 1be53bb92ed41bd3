"""Read a run's journal for a report, as far as the file can be read."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from lightning_bsscale.journal import Header, Line, read_lines
from lightning_bsscale.report.run_record import Change, Hold, Phase, Place, RunRecord, Thinned, Window
from lightning_bsscale.theory.events import DropEvent, EndEvent, GiveUpEvent, MetricEvent, WindowEvent
from lightning_bsscale.theory.losses import LossEvent
from lightning_bsscale.theory.numbers import describe_count
from lightning_bsscale.theory.records import DecisionRecord, Measurement
from lightning_bsscale.theory.state import RunNumbers, RunState
from lightning_bsscale.theory.stored import FRACTIONS, check_stored, from_plain
from lightning_bsscale.verdict import RunFacts, Verdict, read_facts, verdict_of

__all__ = ["read_run"]

MOST_CODES = 32
MOST_METRICS = 4
MOST = 1e30


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
        self._losses: dict[str, Thinned[tuple[Place, float]]] = {}

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
        elif isinstance(line, LossEvent):
            place = Place(_believable(line.examples_seen), _believable(line.optimizer_steps))
            near = run.at_step(place.steps)
            self._losses.setdefault(line.name, Thinned()).add((replace(place, seconds=near.seconds), line.value))
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
        for name, values in self._losses.items():  # one that the policy watches is there already
            if len(self.run.metrics) < MOST_METRICS:
                self.run.metrics.setdefault(name, values)
        if self.run.ended is not None and self.run.ended.latest is not None:
            self.run.latest = self.run.ended.latest
        return self.run


def _parts(line: WindowEvent) -> tuple[float, float]:
    """Return the measured seconds of a window's forward and backward passes, and of its step."""
    per_loader_batch, per_step = (_believable(value or 0.0) for value in line.seconds)
    return _believable(line.length) * per_loader_batch, per_step
