"""The facts that a verdict is made from: the same of a run in a process and of its journal."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning_bsscale.journal import REPAIR, Header, Line, read_lines
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.events import EndEvent, WindowEvent
from lightning_bsscale.theory.pace import Pace
from lightning_bsscale.theory.profile import RunContext, RunProfile
from lightning_bsscale.theory.records import DecisionLog, DecisionRecord, Measurement
from lightning_bsscale.theory.state import RunNumbers, RunState
from lightning_bsscale.theory.stored import FRACTIONS, check_stored, from_plain

__all__ = ["RunFacts", "facts_of_run", "read_facts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What is known of a run, at its end or in its midst.

    Attributes:
        numbers: Its settings.
        profile: Its unit, optimizer and options.
        batch_size: The batch at the end; in a dry run the hypothetical one, for a monitor that of its
            windows, whose last one of an epoch may be short.
        start_batch_size: The first batch.
        examples_seen: Examples of all windows.
        used_examples: Examples of the budget that are used: seen or lost.
        optimizer_steps: Steps that were made.
        planned_steps: Steps that the user's plan would have made by then.
        is_planned_exactly: Whether these were counted, not computed from the examples.
        noise: The averaged noise scale, or None.
        measured_windows: Windows in the averages.
        dropped_windows: Windows with a NaN or inf, which did not enter them.
        found_changed: Whether gradients were changed between the backward passes and the step.
        decisions: The recorded decisions.
        latest: The last decision; None if the policy was never asked.
        pace: The seconds of the windows.
        seconds_per_step: Measured seconds of a step beyond its loader batches; None while unknown.
    """

    numbers: RunNumbers
    profile: RunProfile
    batch_size: int
    start_batch_size: int
    examples_seen: int
    used_examples: int
    optimizer_steps: int
    planned_steps: int
    is_planned_exactly: bool = True
    noise: NoiseScale | None
    measured_windows: int
    dropped_windows: int
    found_changed: bool
    decisions: DecisionLog = field(default_factory=DecisionLog)
    latest: DecisionRecord | None = None
    pace: Pace = field(default_factory=Pace)
    seconds_per_step: float | None = None

    @property
    def changes(self) -> tuple[DecisionRecord, ...]:
        """The recorded changes of the batch, in order."""
        return tuple(record for record in self.decisions.records if record.is_change)

    @property
    def largest_batch_size(self) -> int:
        """The largest possible batch."""
        return self.numbers.limits.clip(math.inf)


def facts_of_run(state: RunState, context: RunContext) -> RunFacts:
    """Return the facts of a run in this process.

    Args:
        state: Its state.
        context: What else is known of it.

    Returns:
        The facts.
    """
    sums = state.measured.averages.sums
    return RunFacts(
        numbers=context.numbers,
        profile=context.profile,
        batch_size=state.batch.batch_size,
        start_batch_size=state.batch.start_batch_size if context.numbers.decides else state.batch.batch_size,
        examples_seen=state.examples.total,
        used_examples=state.used_examples,
        optimizer_steps=state.windows,
        planned_steps=state.planned_steps - context.pace.steps_before,
        noise=state.noise,
        measured_windows=sums.windows,
        dropped_windows=sums.dropped,
        found_changed=not state.measured.agreement.is_good,
        decisions=state.decisions,
        latest=context.latest,
        pace=context.pace,
        seconds_per_step=context.seconds[1],
    )


def read_facts(path: str | Path) -> RunFacts:
    """Read the facts of a run from its journal, also of one that was killed.

    Args:
        path: The journal.

    Returns:
        The facts at its last line.

    Raises:
        ValueError: If it is no journal, or holds no optimizer step.
    """
    reading: _Reading | None = None
    for number, line in read_lines(path):
        if isinstance(line, Header):
            reading = _Reading.begun(path, number, line.fields, reading)
        else:
            assert reading is not None
            reading.read(line)
    assert reading is not None
    facts = reading.facts()
    if not facts.optimizer_steps:
        raise ValueError(f"{path} holds no optimizer step, so there is nothing to say. Pass the journal of a training.")
    return facts


_OF_HEADER = (("settings", RunNumbers), ("state", RunState), ("profile", RunProfile), ("pace", Pace))


@dataclass(eq=False)
class _Reading:
    """A journal read so far."""

    context: RunContext
    state: RunState  # the last whole one: that of a header, or of the end
    log: DecisionLog = field(default_factory=DecisionLog)
    last: Measurement | None = None
    entered: int = 0  # windows since that state, as the next four
    dropped: int = 0
    windows: int = 0
    examples: int = 0
    batch_size: int | None = None

    @classmethod
    def begun(cls, path: str | Path, number: int, header: dict[str, Any], before: _Reading | None) -> _Reading:
        """Begin at a header, or where a run was resumed."""
        try:
            for name, kind in _OF_HEADER:
                check_stored(kind, header.get(name), fractions=FRACTIONS)
            numbers: RunNumbers = from_plain(RunNumbers, header["settings"])
            state: RunState = from_plain(RunState, header["state"])
            profile: RunProfile = from_plain(RunProfile, header["profile"])
            pace: Pace = from_plain(Pace, header["pace"])
        except (TypeError, ValueError) as error:
            event = "header" if number == 1 else "resumed"
            raise ValueError(f"{path}, line {number} is no whole {event}: {error}. {REPAIR}") from error
        # Of a resumed run that begins a new journal, the header's state has the counts and the last decision.
        log = state.decisions if before is None else before.log
        return cls(RunContext(numbers=numbers, profile=profile, pace=pace), state, log)

    def read(self, line: Line) -> None:
        """Read one line."""
        numbers, context = self.context.numbers, self.context
        if isinstance(line, WindowEvent):
            usual = line.length * numbers.now.granularity
            examples = usual if line.examples is None or numbers.now.world_size > 1 else line.examples
            self.windows, self.examples = self.windows + 1, self.examples + examples
            if not numbers.decides and not (line.is_last and line.start > 0):
                self.batch_size = usual  # the epoch's end makes its last window short
            pace = context.pace.with_window(numbers, line.took, line.length, examples, is_measured=line.lr is not None)
            seconds = line.seconds if line.seconds != (None, None) else context.seconds
            self.context = replace(context, pace=pace, seconds=seconds)
        elif isinstance(line, Measurement):
            self.last = line
            is_dropped = math.isnan(line.trace)
            self.entered, self.dropped = self.entered + (not is_dropped), self.dropped + is_dropped
        elif isinstance(line, DecisionRecord):
            self.log, self.batch_size = self.log.added(line), line.batch_size
            self.context = replace(context, latest=line)
        elif isinstance(line, EndEvent):
            self.state = line.state
            self.entered = self.dropped = self.windows = self.examples = 0
            self.last = self.batch_size = None
            self.context = replace(context, latest=line.latest)

    def facts(self) -> RunFacts:
        """Return the facts at the last line."""
        facts = facts_of_run(replace(self.state, decisions=self.log), self.context)
        if not self.windows:
            return facts
        # The run was killed: what followed its last whole state is added up.
        planned = facts.planned_steps + round(self.examples / self.context.numbers.first.batch_size)
        batch_size = facts.batch_size if self.batch_size is None else self.batch_size
        return replace(
            facts,
            batch_size=batch_size,
            start_batch_size=facts.start_batch_size if self.context.numbers.decides else batch_size,
            examples_seen=facts.examples_seen + self.examples,
            used_examples=facts.used_examples + self.examples,
            optimizer_steps=facts.optimizer_steps + self.windows,
            planned_steps=planned,
            is_planned_exactly=False,
            noise=facts.noise if self.last is None else self.last.noise,
            measured_windows=facts.measured_windows + self.entered,
            dropped_windows=facts.dropped_windows + self.dropped,
        )
