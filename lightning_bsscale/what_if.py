"""What other options would have done with the batch, by the measurements of a run that was trained, without torch.

A journal holds what was measured at each place of a training. Two runs are computed side by side: the one that was
trained, whose batches are taken from the journal, and one with other options, which is given the same loader batches
and, at each place, the noise scale measured there. Its windows, limits, decisions and factors are computed by the
functions that a training calls. What it cannot have is what its own training would have measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_bsscale.journal import Header, Line, RuleEvent, read_lines
from lightning_bsscale.replay import explained, read_start, settings_with
from lightning_bsscale.theory import run
from lightning_bsscale.theory.checks import check_integer, check_number
from lightning_bsscale.theory.controller import BatchState
from lightning_bsscale.theory.described import make_policy, make_rule, make_schedule
from lightning_bsscale.theory.events import DropEvent, EndEvent, EpochEvent, MetricEvent, StepEvent, WindowEvent, apply
from lightning_bsscale.theory.example_count import ExampleCount
from lightning_bsscale.theory.frozen import changed
from lightning_bsscale.theory.losses import LossEvent
from lightning_bsscale.theory.policies import Decision, Limits, NoiseScalePolicy, Situation, resolve_policy
from lightning_bsscale.theory.records import DecisionLog, DecisionRecord, Measurement
from lightning_bsscale.theory.rules import Capped, Constant, LearningRateRule, resolve_rule, rule_for_optimizer
from lightning_bsscale.theory.shares import check_memory, check_warmup, memory_in_examples, warmup_in_examples
from lightning_bsscale.theory.state import RunNumbers, RunSettings, RunState

__all__ = ["Change", "Course", "WhatIf", "what_if"]

SCALERS_WARMUP = 0.05  # the default of `BatchSizeScaler`, which a monitor does not have


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of the batch.

    Attributes:
        examples_seen: examples seen when it was decided
        batch_size: the batch from the next window on, in examples
        lr_scale: the factor on the learning rate that goes with it
    """

    examples_seen: float
    batch_size: int
    lr_scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What the batch did in a run.

    Attributes:
        start: where the journal begins
        changes: the changes, in order; thinned in very long runs, as `scaler.decisions` is
        num_changes: number of all changes
        optimizer_steps: optimizer steps at the end
    """

    start: Change
    changes: tuple[Change, ...]
    num_changes: int
    optimizer_steps: int

    @property
    def end(self) -> Change:
        """The last change, or the start."""
        return self.changes[-1] if self.changes else self.start

    def batch_at(self, examples_seen: float) -> int:
        """Return the batch after so many examples."""
        before = [one.batch_size for one in self.changes if one.examples_seen <= examples_seen]
        return before[-1] if before else self.start.batch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """A run as it was, and what it would have been.

    Attributes:
        as_it_was: the run of the journal; of a dry run and of a monitor, what was trained
        what_if: the run with other options
        examples: examples that both have seen
        missing_metrics: names of the metrics that the policy watches and the journal holds no value of
        acted: whether the run of the journal changed the batch itself; false for a dry run and a monitor
        unit: what is counted
        seconds_per_step: measured seconds of a step beyond its loader batches; None while unknown
    """

    as_it_was: Course
    what_if: Course
    examples: int
    missing_metrics: tuple[str, ...]
    acted: bool
    unit: str
    seconds_per_step: float | None


def what_if(
    path: str | Path,
    *,
    policy: Any = None,
    lr_rule: Any = None,
    lr_cap: float | None = None,
    schedule: Any = None,
    max_batch_size: int | None = None,
    warmup: int | float | None = None,
    memory: float | None = None,
) -> WhatIf:
    """Compute what a run would have been with other options of `BatchSizeScaler`.

    Args:
        path: the journal of a scaler, also of a dry run, or of a monitor
        policy: another policy, by name or as an object. None for the recorded one, or for a monitor the default
        lr_rule: another rule, which acts on the learning rate and not on the batch. None for the recorded one, or for a
            monitor that of the optimizer
        lr_cap: another ceiling of the factor
        schedule: the callback's own schedule, if its class is user-defined
        max_batch_size: another limit, in examples
        warmup: another warmup
        memory: another averaging memory

    Returns:
        The run as it was, and what it would have been on the same examples. None in an option leaves it as it was.
        The noise scale is the measured one, as the run measured it on its own path: nothing is known of the noise
        scale, nor of the loss, on another.

    Raises:
        ValueError: If it is no journal, if its numbers do not belong together, if an option is out of range, or if the
            policy, rule or schedule that it names is user-defined and was not given.
    """  # noqa: DOC502
    if max_batch_size is not None:
        check_integer("max_batch_size", max_batch_size, at_least=1)
    options = _Options(
        policy=None if policy is None else resolve_policy(policy),
        lr_rule=None if lr_rule is None else resolve_rule(lr_rule),
        lr_cap=None if lr_cap is None else check_number("lr_cap", lr_cap, at_least=1),
        schedule=schedule,
        max_batch_size=max_batch_size,
        warmup=None if warmup is None else check_warmup(warmup),
        memory=None if memory is None else check_memory(memory),
    )
    runs: _Runs | None = None
    for number, line, decision in _with_decisions(path):
        if isinstance(line, Header):
            runs = _Runs.begun(path, number, line.fields, options, runs)
        else:
            assert runs is not None
            runs.past(number, line, decision)
    assert runs is not None
    return runs.compared()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """What was asked; None for as it was."""

    policy: Any
    lr_rule: LearningRateRule | None
    lr_cap: float | None
    schedule: Any
    max_batch_size: int | None
    warmup: int | float | None
    memory: float | None


def _with_decisions(path: str | Path) -> Iterator[tuple[int, Line, DecisionRecord | None]]:
    """Yield each header and event, with the decision that the journal holds after it."""
    waiting: tuple[int, Line] | None = None
    decision: DecisionRecord | None = None
    for number, line in read_lines(path):
        if isinstance(line, DecisionRecord):
            decision = line
        elif not isinstance(line, Measurement):
            if waiting is not None:
                yield (*waiting, decision)
            waiting, decision = (number, line), None
    assert waiting is not None
    yield (*waiting, decision)


class _AsRecorded:
    """Answers what the journal holds, so that no user-defined policy is needed for the run as it was."""

    decision: DecisionRecord | None = None

    def decide(self, situation: Situation, limits: Limits) -> Decision:
        size = situation.batch_size if self.decision is None else self.decision.batch_size
        return Decision(batch_size=size, reason="as it was", code="as_it_was")


@dataclass(eq=False)
class _Runs:
    """The run as it was and the other one, at the same place."""

    path: str | Path
    options: _Options
    recorded: _AsRecorded
    was_settings: RunSettings
    was: RunState
    settings: RunSettings
    state: RunState
    starts: tuple[Change, Change]
    unit: str
    log: DecisionLog = field(default_factory=DecisionLog)  # of the run as it was
    seconds_per_step: float | None = None
    metrics: set[str] = field(default_factory=set)
    line: int = 1

    @classmethod
    def begun(
        cls, path: str | Path, number: int, header: dict[str, Any], options: _Options, before: _Runs | None
    ) -> _Runs:
        """Begin at a header, or where a run was resumed."""
        numbers, was = read_start(path, number, header)
        profile = header.get("profile")
        profile = profile if isinstance(profile, dict) else {}
        unit = profile.get("unit")
        memory = (
            numbers.memory if options.memory is None else memory_in_examples(options.memory, numbers.total_examples)
        )
        recorded = _AsRecorded()
        settings = _other_settings(path, header, numbers, options, profile.get("optimizer"), memory)
        with explained(path, number, "a what-if"):
            state = _other_state(settings, numbers, was, options, None if before is None else before.state)
        seen = float(was.examples.total)
        size = was.batch.batch_size if numbers.acts else numbers.now.batch_size
        begun = cls(
            path=path,
            options=options,
            recorded=recorded,
            # The factor as it was is in the decisions.
            was_settings=settings_with(numbers, recorded, Constant(), None, memory=memory),
            was=was,
            settings=settings,
            state=state,
            starts=(
                Change(examples_seen=seen, batch_size=size, lr_scale=was.batch.lr_scale if numbers.acts else 1.0),
                Change(examples_seen=seen, batch_size=state.batch.batch_size, lr_scale=state.batch.lr_scale),
            ),
            unit=unit if isinstance(unit, str) and unit else "examples",
            line=number,
        )
        if before is not None:
            begun.starts, begun.log = before.starts, before.log
            begun.seconds_per_step, begun.metrics = before.seconds_per_step, before.metrics
        return begun

    def past(self, number: int, event: Line, decision: DecisionRecord | None) -> None:
        """Take both past an event."""
        self.line = number
        if isinstance(event, LossEvent):  # on which nothing depends
            return
        if decision is not None and self.was_settings.acts:
            self.log = self.log.added(decision)
        with explained(self.path, self.line, "a what-if"):
            if isinstance(event, RuleEvent):
                self._use_rule(event)
                return
            assert not isinstance(event, (Header, Measurement, DecisionRecord))
            before, self.recorded.decision = self.was, decision
            self.was = apply(self.was_settings, self.was, event).state.without_history()
            self._other_past(event, before)

    def _use_rule(self, event: RuleEvent) -> None:
        if self.options.lr_rule is None:
            rule = _capped(make_rule(event.rule, self.path), self.options.lr_cap)
            self.settings, self.state = run.use_rule(self.settings, self.state, rule)

    def _other_past(self, event: StepEvent, before: RunState) -> None:
        """Take the other run past an event that the run as it was has passed."""
        if isinstance(event, WindowEvent):
            self._window(event, before)
            if event.seconds[1] is not None:
                self.seconds_per_step = event.seconds[1]
        elif isinstance(event, EpochEvent):
            self.state = run.start_epoch(
                self.settings,
                changed(self.state, loader_batches_in_epoch=event.ready),
                epoch=event.epoch,
                epoch_batches=event.batches,
                epoch_examples=event.examples,
                first=event.first,
            ).state
        elif isinstance(event, DropEvent):
            state = changed(self.state, loader_batches_in_epoch=event.ready)
            self.state, _ = run.drop_window(self.settings, state)
        elif isinstance(event, EndEvent):
            self.state = changed(self.state, window=None)
        else:
            self.state = apply(self.settings, self.state, event).state
            if isinstance(event, MetricEvent):
                self.metrics.add(event.name)

    def _window(self, event: WindowEvent, before: RunState) -> None:
        """Put the loader batches of a window into windows of the other size."""
        done = 0
        while done < event.length:
            state, settings = self.state, self.settings
            if state.window is None:
                state = run.open_window(
                    settings, state, event.start + done, accumulate=settings.now.accumulate, steps_before=state.windows
                )
            window = state.window
            assert window is not None
            taken = max(1, min(window.planned - window.begun, event.length - done))
            done += taken
            is_end, begun = done == event.length, window.begun + taken
            ready = event.start + done if not is_end or event.ready is None else event.ready
            state = changed(
                state,
                window=changed(window, begun=begun, ended=begun, examples=begun * settings.now.granularity),
                loader_batches_in_epoch=ready,
                is_resumed=False,
            )
            ends_epoch = is_end and event.is_last
            if begun < window.planned and not ends_epoch:
                self.state = state
                continue
            # What was measured in the window in progress is known at its end.
            known = self.was if is_end else before
            seen = before.examples.total + done * settings.now.granularity
            total = self.was.examples.total if is_end else min(seen, self.was.examples.total)
            self._close(state, event, known, total, ready, is_last=ends_epoch)

    def _close(
        self, state: RunState, event: WindowEvent, known: RunState, total: int, ready: int, *, is_last: bool
    ) -> None:
        end = run.WindowEnd(ready=ready, is_last=is_last, lr=math.nan, lr_scale=1.0, has_sums=False, sends=False)
        closed = run.close_window(self.settings, state, end, None).state
        self.state = changed(closed, measured=known.measured, examples=ExampleCount(known=total))
        if event.is_asked:
            self.state = run.ask_policy(
                self.settings, self.state, run.Conditions(event.relative_lr, *event.seconds)
            ).state

    def compared(self) -> WhatIf:
        """Return both at the end."""
        was, other = self.starts
        return WhatIf(
            as_it_was=_course(was, self.log, self.was.windows),
            what_if=_course(other, self.state.decisions, self.state.windows),
            examples=self.was.examples.total,
            missing_metrics=tuple(
                name for name in getattr(self.settings.policy, "monitors", ()) if name not in self.metrics
            ),
            acted=self.was_settings.acts,
            unit=self.unit,
            seconds_per_step=self.seconds_per_step,
        )


def _course(start: Change, log: DecisionLog, steps: int) -> Course:
    changes = tuple(
        Change(
            examples_seen=float(record.situation.examples_seen),
            batch_size=record.batch_size,
            lr_scale=record.lr_scale,
        )
        for record in log.records
        if record.is_change
    )
    return Course(start=start, changes=changes, num_changes=log.changes, optimizer_steps=steps)


def _other_settings(
    path: str | Path, header: dict[str, Any], numbers: RunNumbers, options: _Options, optimizer: Any, memory: float
) -> RunSettings:
    policy = options.policy
    if policy is None:
        policy = make_policy(header.get("policy"), path) if numbers.decides else NoiseScalePolicy()
    if options.lr_rule is not None:
        rule = options.lr_rule
    elif numbers.decides:
        rule = make_rule(header.get("lr_rule"), path)
    else:
        rule = rule_for_optimizer([str(optimizer)])
    warmup = options.warmup if numbers.decides or options.warmup is not None else SCALERS_WARMUP
    total = numbers.total_examples
    return settings_with(
        numbers,
        policy,
        _capped(rule, options.lr_cap),
        make_schedule(header.get("schedule"), path, options.schedule),
        memory=memory,
        warmup_examples=numbers.warmup_examples if warmup is None else warmup_in_examples(warmup, total),
        limits=_limits(numbers, options.max_batch_size),
        decides=True,
        acts=True,
    )


def _capped(rule: LearningRateRule, cap: float | None) -> LearningRateRule:
    if cap is None:
        return rule
    return Capped(rule.rule if isinstance(rule, Capped) else rule, cap)


def _limits(numbers: RunNumbers, max_batch_size: int | None) -> Limits:
    if max_batch_size is None:
        return numbers.limits
    first = numbers.first.batch_size
    if max_batch_size < first:
        raise ValueError(f"max_batch_size must be at least the first batch of {first}, got {max_batch_size}")
    return Limits(
        granularity=numbers.limits.granularity,
        min_batch_size=numbers.limits.min_batch_size,
        max_batch_size=max_batch_size,
    )


def _other_state(
    settings: RunSettings, numbers: RunNumbers, was: RunState, options: _Options, before: RunState | None
) -> RunState:
    """Return the state of the other run at a header: its own where it has one, else that of the journal."""
    rule, noise = settings.rule, was.noise
    if before is not None:
        batch = before.batch.fitted(settings.limits, rule, noise)
        return changed(
            was,
            batch=batch,
            decisions=before.decisions,
            windows=before.windows,
            schedule_peak=before.schedule_peak,
            metrics=before.metrics,
            window=None,
            pending=None,
        )
    batch = was.batch if numbers.acts else BatchState.begin(numbers.now.batch_size, rule)
    if numbers.acts and (options.lr_rule is not None or options.lr_cap is not None):
        batch = batch.with_rule(rule, noise)
    return changed(
        was, batch=batch.fitted(settings.limits, rule, noise), decisions=DecisionLog(), window=None, pending=None
    )
