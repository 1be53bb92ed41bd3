"""What the functions of a run are given from outside, as records: a run follows from its start and its events.

An event holds what cannot be recomputed. `apply` puts it to the functions of `theory.run` that the training called, so
a whole run can be computed again where there is no torch, no Trainer and no data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from lightning_bsscale.theory import run
from lightning_bsscale.theory.frozen import changed
from lightning_bsscale.theory.measured import Arrived
from lightning_bsscale.theory.records import DecisionRecord, Measurement
from lightning_bsscale.theory.state import OpenWindow, RunSettings, RunState

__all__ = [
    "Applied",
    "DropEvent",
    "EndEvent",
    "EpochEvent",
    "GiveUpEvent",
    "MetricEvent",
    "Opened",
    "Progress",
    "SchedulersEvent",
    "StepEvent",
    "WindowEvent",
    "apply",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowEvent:
    """A window that ended with an optimizer step.

    Attributes:
        start: Index in the epoch of its first loader batch.
        length: Its loader batches.
        planned: Loader batches that it should have had; None for the same.
        ready: Loader batches of the epoch at its end; None for start + length, where the loader gave no None.
        accumulate: The Trainer's `accumulate_grad_batches`; None where it is that of the start, or has no effect.
        examples: Its examples on one rank; None where they are `length` loader batches of the usual size. On several
            ranks a message brings them.
        is_last: Whether the epoch ends with it.
        lr: The learning rate of the step (first parameter group), of a window to measure; else None.
        factor: What was set to multiply it, for the batch size.
        scheduled: The same, for the callback's own schedule.
        lr_scale: The factor of the last update, of a window to measure; None for `factor`. They differ where the
            optimizer made no update.
        has_sums: Whether its gradients were seen.
        sends: Whether messages are still sent, on several ranks.
        row_limit: Most rows in a micro-batch, where memory ran out in this window on a single rank; else None.
        arrived: What has arrived of an earlier window.
        is_asked: Whether the policy could be asked: not where an exception ended the run before.
        relative_lr: Where the user's scheduler has taken the learning rate, 1 at its start.
        seconds: Of a loader batch, and of a step beyond its loader batches; None while unknown.
        took: Seconds since the end of the last window, without validation; None for the first windows of a process.
    """

    start: int
    length: int
    planned: int | None = None
    ready: int | None = None
    accumulate: int | None = None
    examples: int | None = None
    is_last: bool = False
    lr: float | None = None
    factor: float = 1.0
    scheduled: float = 1.0
    lr_scale: float | None = None
    has_sums: bool = False
    sends: bool = True
    row_limit: int | None = None
    arrived: Arrived | None = None
    is_asked: bool = True
    relative_lr: float = 1.0
    seconds: tuple[float | None, float | None] = (None, None)
    took: float | None = None

    @property
    def opened(self) -> Opened:
        """What the window was opened with, as it is recorded."""
        planned = self.length if self.planned is None else self.planned
        return Opened(self.start, planned, self.factor, self.scheduled)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a window is that no step has ended.

    Attributes:
        start: Index in the epoch of its first loader batch.
        accumulate: The Trainer's `accumulate_grad_batches`; None where it is that of the start, or has no effect.
        begun: Loader batches so far, the one in progress included.
        ended: Loader batches that have ended.
    """

    start: int
    accumulate: int | None = None
    begun: int
    ended: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEvent:
    """An epoch started.

    Attributes:
        epoch: The Trainer's number of it.
        batches: Loader batches that Lightning announces, or None.
        examples: Examples in it, or None where they are not known.
        first: Index of the loader batch with which a resumed run begins it.
        ready: Indices of the last epoch so far, those for which the loader gave None included.
        window: The window that the last epoch left open, or None.
    """

    epoch: int
    batches: int | None
    examples: int | None
    first: int = 0
    ready: int
    window: Progress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DropEvent:
    """A window was left that no step ended, within an epoch or at the end of training.

    Attributes:
        ready: Indices of the epoch so far.
        window: The window; None where what a checkpoint had cut was left.
    """

    ready: int
    window: Progress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulersEvent:
    """Other schedulers are followed.

    Attributes:
        frequencies: All that are counted, in loader batches.
    """

    frequencies: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricEvent:
    """A metric that the policy watches was logged.

    Attributes:
        name: Its name.
        value: The mean over the ranks that logged it.
    """

    name: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUpEvent:
    """After an error nothing is waited for any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndEvent:
    """The run's end.

    Attributes:
        ready: Indices of the epoch so far.
        window: The window that an exception left open, or None.
        arrived: What has arrived of the last window that was sent.
        state: The state at the end, without its history and without the window.
        latest: The policy's last decision, which the journal lacks if it only continued a run of holds.
    """

    ready: int
    window: Progress | None = None
    arrived: Arrived | None = None
    state: RunState
    latest: DecisionRecord | None = None


StepEvent = WindowEvent | EpochEvent | DropEvent | SchedulersEvent | MetricEvent | GiveUpEvent | EndEvent


class Opened(NamedTuple):
    """What a window is opened with.

    Attributes:
        start: Index in the epoch of its first loader batch.
        planned: Loader batches that it should have.
        factor: What multiplies the learning rate of its step, for the batch size.
        scheduled: The same, for the callback's own schedule.
    """

    start: int
    planned: int
    factor: float
    scheduled: float


class Applied(NamedTuple):
    """The outcome of an event.

    Attributes:
        state: The new state.
        opened: What the window was opened with, after a window.
        measurement: What it measured, if anything.
        record: What it decided, if anything.
    """

    state: RunState
    opened: Opened | None = None
    measurement: Measurement | None = None
    record: DecisionRecord | None = None


def apply(settings: RunSettings, state: RunState, event: StepEvent) -> Applied:
    """Take a run past one event.

    Args:
        settings: The settings of the run.
        state: The state before.
        event: The event.

    Returns:
        The new state, and what was recomputed.
    """
    return _APPLY[type(event)](settings, state, event)


def _window(settings: RunSettings, state: RunState, event: WindowEvent) -> Applied:
    # In one process an epoch's indices only rise; a resumed run may repeat some.
    start = event.start if state.is_resumed else max(event.start, state.position.loader_batches)
    state, window = _opened(settings, state, event.start, event.accumulate)
    opened = Opened(start, window.planned, *_factors(settings, state, window, event.length))
    usual = event.length * settings.now.granularity
    examples = usual if event.examples is None else event.examples
    state = changed(state, window=changed(window, begun=event.length, ended=event.length, examples=examples))
    end = run.WindowEnd(
        ready=event.start + event.length if event.ready is None else event.ready,
        is_last=event.is_last,
        lr=math.nan if event.lr is None else event.lr,
        lr_scale=event.factor if event.lr_scale is None else event.lr_scale,
        has_sums=event.has_sums,
        sends=event.sends,
        row_limit=event.row_limit,
    )
    state, measurement, _ = run.close_window(settings, state, end, event.arrived)
    if not event.is_asked:
        return Applied(state, opened, measurement)
    asked = run.ask_policy(settings, state, run.Conditions(event.relative_lr, *event.seconds))
    return Applied(asked.state, opened, measurement, asked.record)


def _factors(settings: RunSettings, state: RunState, window: OpenWindow, length: int) -> tuple[float, float]:
    if not settings.acts:
        return 1.0, 1.0
    has_usual_size = window.has_usual_size and window.planned == length
    return run.learning_rate_factors(settings, state, length, has_usual_size=has_usual_size)


def _opened(settings: RunSettings, state: RunState, start: int, accumulate: int | None) -> tuple[RunState, OpenWindow]:
    accumulate = settings.now.accumulate if accumulate is None else accumulate
    state = run.open_window(settings, state, start, accumulate=accumulate, steps_before=state.windows)
    assert state.window is not None
    return changed(state, is_resumed=False), state.window


def _at(settings: RunSettings, state: RunState, ready: int, progress: Progress | None) -> RunState:
    if progress is not None:
        state, window = _opened(settings, state, progress.start, progress.accumulate)
        state = changed(state, window=changed(window, begun=progress.begun, ended=progress.ended))
    return changed(state, loader_batches_in_epoch=ready)


def _epoch(settings: RunSettings, state: RunState, event: EpochEvent) -> Applied:
    started = run.start_epoch(
        settings,
        _at(settings, state, event.ready, event.window),
        epoch=event.epoch,
        epoch_batches=event.batches,
        epoch_examples=event.examples,
        first=event.first,
    )
    return Applied(started.state)


def _drop(settings: RunSettings, state: RunState, event: DropEvent) -> Applied:
    return Applied(run.drop_window(settings, _at(settings, state, event.ready, event.window))[0])


def _schedulers(settings: RunSettings, state: RunState, event: SchedulersEvent) -> Applied:
    return Applied(changed(state, position=settings.plan.count_for(state.position, event.frequencies)))


def _metric(settings: RunSettings, state: RunState, event: MetricEvent) -> Applied:
    return Applied(run.log_metric(state, event.name, event.value))


def _give_up(settings: RunSettings, state: RunState, event: GiveUpEvent) -> Applied:
    return Applied(run.settle_unsent(state))


def _end(settings: RunSettings, state: RunState, event: EndEvent) -> Applied:
    state = _at(settings, state, event.ready, event.window)
    state, measurement, _ = run.take_arrived(settings, state, event.arrived)
    return Applied(changed(state, window=None), measurement=measurement)


_APPLY: dict[type, Callable[[RunSettings, RunState, Any], Applied]] = {
    WindowEvent: _window,
    EpochEvent: _epoch,
    DropEvent: _drop,
    SchedulersEvent: _schedulers,
    MetricEvent: _metric,
    GiveUpEvent: _give_up,
    EndEvent: _end,
}
