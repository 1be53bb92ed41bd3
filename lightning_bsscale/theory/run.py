"""The pure functions that take a run from window to window.

A *window* opens at its first loader batch (`open_window`) and closes when the optimizer has stepped (`close_window`).
Then the policy is asked (`ask_policy`). Each function returns a new `RunState` and the actions to take. Nothing here
touches a Trainer, a tensor or a clock.
"""

from __future__ import annotations

from typing import NamedTuple

from lightning_bsscale.theory.controller import BatchState, Decided
from lightning_bsscale.theory.frozen import changed
from lightning_bsscale.theory.measured import Arrived, ClosedWindow
from lightning_bsscale.theory.micro_batches import plan_layout, smallest
from lightning_bsscale.theory.plan import PlanPosition
from lightning_bsscale.theory.policies import MetricValue, Situation
from lightning_bsscale.theory.records import DecisionRecord, Measurement
from lightning_bsscale.theory.rules import LearningRateRule
from lightning_bsscale.theory.size_search import SizeSearch
from lightning_bsscale.theory.state import CutWindow, OpenWindow, RunSettings, RunState
from lightning_bsscale.theory.windows import WindowPlan, plan_window

__all__ = [
    "Asked",
    "Closed",
    "Conditions",
    "EpochStarted",
    "WindowEnd",
    "ask_policy",
    "batch_ratio",
    "begin_run",
    "close_window",
    "drop_window",
    "learning_rate_factors",
    "log_metric",
    "open_window",
    "resume_run",
    "settle_unsent",
    "start_epoch",
    "take_arrived",
    "use_rule",
]


VALUES_KEPT = 8  # of a metric, before and after the last change of the batch


class WindowEnd(NamedTuple):
    """The host's knowledge of a window after the optimizer's step.

    Attributes:
        ready: Loader batches of the epoch so far.
        is_last: Whether the epoch ends here.
        lr: The learning rate of the step (first parameter group).
        lr_scale: The factor on it.
        has_sums: Whether the window's gradients were seen.
        sends: Whether messages are still sent, on several ranks.
        row_limit: Most rows in a micro-batch if one rank alone ran out of memory in this window; else None. Several
            ranks learn it from their messages.
    """

    ready: int
    is_last: bool
    lr: float
    lr_scale: float
    has_sums: bool
    sends: bool
    row_limit: int | None = None


class Conditions(NamedTuple):
    """Inputs of a policy beside the run's state; the same on all ranks.

    Attributes:
        relative_lr: The user's learning rate relative to its initial value.
        seconds_per_loader_batch: None while unknown.
        seconds_per_step: Seconds of a step beyond its loader batches; None while unknown.
    """

    relative_lr: float
    seconds_per_loader_batch: float | None
    seconds_per_step: float | None


class Closed(NamedTuple):
    """The outcome of closing a window.

    Attributes:
        state: The new state; its `pending` says whether this window's sums are to be sent.
        measurement: The measurement of an earlier window that has arrived, or None.
        found_changed: Whether changed gradients were detected; this window's sums are then to be discarded.
    """

    state: RunState
    measurement: Measurement | None
    found_changed: bool


class Asked(NamedTuple):
    """The outcome of asking the policy.

    Attributes:
        state: The new state.
        record: A change of the batch, or the first of a run of holds; else None.
        decided: The policy's answer and its effect; None if it was not asked.
    """

    state: RunState
    record: DecisionRecord | None
    decided: Decided | None


class EpochStarted(NamedTuple):
    """The outcome of starting an epoch.

    Attributes:
        state: The new state.
        dropped: Loader batches dropped with the window that the last epoch left open.
        state_at_end: The state at the end of the last epoch.
        is_repeated: Whether it is the epoch in progress, which Lightning repeats.
    """

    state: RunState
    dropped: int
    state_at_end: RunState
    is_repeated: bool


# ---------------------------------------------------------------- a run's start


def begin_run(settings: RunSettings, position: PlanPosition, *, epoch: int, relative_lr: float = 1.0) -> RunState:
    """Begin a run that is not resumed.

    Args:
        settings: Its settings.
        position: Where the user's plan begins.
        epoch: The Trainer's epoch.
        relative_lr: The user's learning rate relative to its initial value.

    Returns:
        The state before the first window.
    """
    scheduled = settings.scheduled(0)
    return RunState(
        first=settings.first,
        now=settings.now,
        batch=BatchState.begin(settings.first.batch_size, settings.rule),
        position=position,
        epoch=epoch,
        search=SizeSearch(size=settings.rows) if settings.searches_size else None,
        schedule_peak=relative_lr if scheduled is None else scheduled,
    )


def resume_run(settings: RunSettings, stored: RunState, position: PlanPosition, *, epoch: int) -> RunState:
    """Resume a run, perhaps with loader batches of another size, or on another number of ranks.

    Args:
        settings: The settings from now on.
        stored: What the checkpoint holds.
        position: Where the plan is, counted in this start's loader batches.
        epoch: The Trainer's epoch.

    Returns:
        The state before the next window. The rest of a window that the checkpoint cut becomes a window.
    """
    before, now, window = stored.now, settings.now, stored.window
    examples, pending, cut = stored.examples.resumed(now.world_size), stored.pending, stored.cut
    if pending is not None and before.world_size != now.world_size:
        # A message of other ranks: one measurement less, but its examples count.
        if pending.arrived is not None and pending.arrived.examples is not None:
            examples = examples.arrived(pending.arrived.examples)
        pending = None
    lost = 0 if window is None else window.ended
    if window is not None:
        cut = CutWindow(lost=lost, rest=window.planned - lost) if lost or window.is_rest else None
    if cut is not None:
        cut = changed(cut, rest=max(1, round(cut.rest * before.granularity / now.granularity)))
    same_unit = before.granularity == now.granularity
    begun = SizeSearch(size=settings.rows) if settings.searches_size else None
    if begun is not None and stored.row_limit is not None:
        begun = begun.limited(stored.row_limit)
    return changed(
        stored,
        now=now,
        # Where nothing is decided, the current batch size is that of the last window.
        batch=stored.batch.fitted(settings.limits, settings.rule, stored.noise) if settings.decides else stored.batch,
        position=position,
        examples=examples,
        pending=pending,
        window=None,
        cut=cut,
        lost_loader_batches=stored.lost_loader_batches + lost,
        lost_examples=stored.lost_examples + lost * before.granularity,
        loader_batches_in_epoch=stored.loader_batches_in_epoch if same_unit and stored.epoch != epoch else 0,
        # The size that was found stays, whatever the loader's batch is now.
        search=stored.search or begun,
        is_resumed=True,
    )


# ---------------------------------------------------------------- a window's life


def start_epoch(
    settings: RunSettings,
    state: RunState,
    *,
    epoch: int,
    epoch_batches: int | None,
    epoch_examples: int | None,
    first: int = 0,
) -> EpochStarted:
    """Start an epoch, at its first loader batch.

    Args:
        settings: The settings of the run.
        state: The state at the end of the last epoch.
        epoch: The Trainer's epoch.
        epoch_batches: Loader batches that Lightning announces, or None.
        epoch_examples: Examples in it; None if unknown.
        first: Index of the loader batch with which a resumed run begins the epoch.

    Returns:
        The new state.
    """
    position = state.position
    # A second fit after an exception repeats its epoch too.
    is_repeated = epoch == state.epoch and position.loader_batches > 0 and not position.is_last
    at_end, dropped = drop_window(settings, state)
    started = settings.plan.start_epoch(
        at_end.position,
        epoch_batches,
        loader_batches=at_end.loader_batches_in_epoch,
        epoch_examples=epoch_examples,
        first=first,
        is_repeated=is_repeated,
    )
    return EpochStarted(
        changed(at_end, position=started, epoch=epoch, loader_batches_in_epoch=0), dropped, at_end, is_repeated
    )


def drop_window(settings: RunSettings, state: RunState) -> tuple[RunState, int]:
    """Drop a window that no step ended, as Lightning does at an epoch's end.

    Args:
        settings: The settings of the run.
        state: The state.

    Returns:
        The new state, and how many loader batches were dropped.
    """
    window, state = state.window, changed(state, window=None, cut=None)
    if window is None or window.ended == 0:
        return state, 0
    return (
        changed(
            state,
            lost_loader_batches=state.lost_loader_batches + window.ended,
            lost_examples=state.lost_examples + window.ended * settings.now.granularity,
            position=settings.plan.advance(state.position, state.loader_batches_in_epoch, is_last=False),
        ),
        window.ended,
    )


def open_window(
    settings: RunSettings, state: RunState, batch_idx: int, *, accumulate: int, steps_before: int
) -> RunState:
    """Open the next window.

    Args:
        settings: The settings of the run.
        state: The state.
        batch_idx: Index in the epoch of the window's first loader batch.
        accumulate: The Trainer's `accumulate_grad_batches`, which makes the windows if none are placed.
        steps_before: The Trainer's optimizer steps.

    Returns:
        The new state with its window.
    """
    plan = _planned_window(settings, state, batch_idx, accumulate)
    # If windows are not placed, one that does not begin at a multiple contains an old gradient.
    is_clear = settings.acts or batch_idx % accumulate == 0
    at_least = -(-2 // settings.samples_per_micro_batch)
    has_pair = plan.num_loader_batches >= at_least
    # In the warmup every window, but for those that would have to be split, which takes time.
    in_warmup = has_pair and state.examples.total < settings.warmup_examples
    # Counted in loader batches: however long windows are, the averages are fed at the same pace.
    is_due = in_warmup or -state.loader_batches % settings.measure_every < plan.num_loader_batches
    # On several ranks an epoch's last window too: what it sends makes the count of examples exact.
    is_due = is_due or (settings.now.world_size > 1 and _is_last(settings, state, plan))
    is_measured = is_due and is_clear and (has_pair or (settings.splits and settings.rows > 1))
    measured, is_watched, is_compared = state.measured, False, False
    if is_measured:
        agreement, is_watched, is_compared = measured.agreement.next_window()
        measured = changed(measured, agreement=agreement)
    window = OpenWindow(
        start=plan.start,
        planned=plan.num_loader_batches,
        loss_divisor=plan.num_loader_batches if settings.acts else accumulate,
        steps_before=steps_before,
        is_measured=is_measured,
        is_watched=is_watched,
        is_compared=is_compared,
        has_usual_size=not plan.is_short,
        layout=plan_layout(
            plan.num_loader_batches,
            settings.rows,
            largest=_largest(settings, state),
            split_above=smallest(settings.max_micro_batch_size, state.row_limit if settings.divides else None),
            at_least=at_least if is_measured else 1,
        ),
        is_rest=settings.acts and state.cut is not None,
    )
    return changed(state, window=window, measured=measured, cut=None)


def _largest(settings: RunSettings, state: RunState) -> int | None:
    searched = state.search.next_size if settings.searches_size and state.search is not None else None
    largest = settings.max_micro_batch_size if searched is None else searched
    return None if largest is None else smallest(largest, state.row_limit)


def _planned_window(settings: RunSettings, state: RunState, batch_idx: int, accumulate: int) -> WindowPlan:
    epoch_length = settings.plan.epoch_length(state.position, batch_idx)
    if not settings.acts:
        left = accumulate - batch_idx % accumulate
        return plan_window(start=batch_idx, wanted=left, epoch_batches=epoch_length, budget_batches=None)
    wanted, rest = state.batch.batch_size // settings.now.granularity, 0 if state.cut is None else state.cut.rest
    plan = plan_window(
        start=batch_idx,
        wanted=rest or wanted,
        epoch_batches=epoch_length,
        budget_batches=settings.plan.batches_left(state.position, batch_idx, state.used_examples),
    )
    return changed(plan, is_short=True) if rest else plan


def _is_last(settings: RunSettings, state: RunState, plan: WindowPlan) -> bool:
    length = settings.plan.epoch_length(state.position, plan.start)
    left = settings.plan.batches_left(state.position, plan.start, state.used_examples)
    ends = [left, None if length is None else length - plan.start]
    return any(end is not None and plan.num_loader_batches >= end for end in ends)


def learning_rate_factors(
    settings: RunSettings, state: RunState, loader_batches: int, *, has_usual_size: bool
) -> tuple[float, float]:
    """Compute the learning-rate factors of the open window's step.

    Args:
        settings: The settings of the run.
        state: The state.
        loader_batches: Loader batches of the window on one rank.
        has_usual_size: Whether it has the current batch size.

    Returns:
        The factor for its size, and that of the callback's own schedule at its middle (1 without one).
    """
    examples = loader_batches * settings.now.granularity
    factor = state.batch.lr_scale
    if not has_usual_size:
        factor = state.batch.window_factor(examples, settings.rule, state.noise)
    scheduled = settings.scheduled(state.examples.total + examples / 2)
    return factor, 1.0 if scheduled is None else scheduled


def batch_ratio(settings: RunSettings, state: RunState, loader_batches: int, *, has_usual_size: bool) -> float:
    """Compute the size of the open window over the first batch size, for what else depends on it.

    Args:
        settings: The settings of the run.
        state: The state.
        loader_batches: Loader batches of the window on one rank.
        has_usual_size: Whether it has the current batch size.

    Returns:
        The ratio.
    """
    return state.batch.ratio(None if has_usual_size else loader_batches * settings.now.granularity)


def close_window(settings: RunSettings, state: RunState, end: WindowEnd, arrived: Arrived | None) -> Closed:
    """Close the open window, after the optimizer's step.

    Args:
        settings: The settings of the run.
        state: The state, with an open window.
        end: The host's knowledge of the step.
        arrived: The sums of the pending window that have arrived, or None.

    Returns:
        The new state, and what to do.
    """
    window = state.window
    assert window is not None
    counted = _counted(settings, state, window, end)
    state, measurement, found_changed = take_arrived(settings, counted, arrived)
    state = _limited(state, end.row_limit)
    on_ranks = settings.now.world_size > 1
    # Every rank sends for every window to be measured, also if it saw no gradients.
    if window.is_measured and (end.sends if on_ranks else end.has_sums and not found_changed):
        closed = ClosedWindow(
            examples_seen=counted.examples.total,
            optimizer_steps=state.windows,
            batch_size=state.batch.batch_size,
            loader_batches=window.begun,
            lr=end.lr,
            lr_scale=end.lr_scale,
            largest=window.layout.largest,
        )
        state = changed(state, pending=closed, examples=state.examples.sent() if on_ranks else state.examples)
    return Closed(state, measurement, found_changed)


def ask_policy(settings: RunSettings, state: RunState, conditions: Conditions) -> Asked:
    """Ask the policy at a window's end, and apply its answer from the next window on.

    Args:
        settings: The settings of the run.
        state: The state after `close_window`.
        conditions: Inputs beside the state.

    Returns:
        The new state, and the decision to show.
    """
    if not settings.decides:
        return Asked(state, None, None)
    scheduled = settings.scheduled(state.examples.total)
    factor = conditions.relative_lr if scheduled is None else scheduled
    if factor > state.schedule_peak:
        state = changed(state, schedule_peak=factor)
    if state.examples.total < settings.warmup_examples:
        return Asked(state, None, None)
    situation = _situation(settings, state, conditions, factor)
    decided = state.batch.decided(situation, policy=settings.policy, rule=settings.rule, limits=settings.limits)
    log, record = state.decisions, decided.record
    if log.continues(record):
        return Asked(state, None, decided)
    return Asked(changed(state, batch=decided.batch, decisions=log.added(record)), record, decided)


def log_metric(state: RunState, name: str, value: float) -> RunState:
    """Add a value of a watched metric, and drop those that no policy is given any more.

    Args:
        state: The state.
        name: The metric's name.
        value: Its value; the same on all ranks.

    Returns:
        The new state.
    """
    added = MetricValue(name=name, examples_seen=float(state.examples.total), value=value)
    changed_at = state.batch.examples_at_last_change
    known = [one for one in (*state.metrics, added) if one.name == name]
    before = [] if changed_at is None else [one for one in known if one.examples_seen <= changed_at]
    kept = [*before[-VALUES_KEPT:], *known[len(before) :][-VALUES_KEPT:]]
    return changed(state, metrics=(*(one for one in state.metrics if one.name != name), *kept))


def take_arrived(
    settings: RunSettings, state: RunState, arrived: Arrived | None
) -> tuple[RunState, Measurement | None, bool]:
    """Add the pending window's sums to the averages.

    Args:
        settings: The settings of the run.
        state: The state.
        arrived: The sums, or None.

    Returns:
        The new state, the measurement if there is one, and whether changed gradients were detected.
    """
    window = state.pending
    if window is None:
        return state, None, False
    state = changed(state, pending=None)
    if arrived is None:
        return state, None, False
    if arrived.examples is not None:
        examples = state.examples.arrived(arrived.examples)
        state, window = changed(state, examples=examples), changed(window, examples_seen=examples.known)
    if state.search is not None:
        search = state.search.timed(window.largest, arrived.seconds_per_row, has_room=arrived.has_room)
        state = changed(state, search=search)
    state = _limited(state, arrived.row_limit)
    measured, found_changed = state.measured.compared(arrived.explained)
    measurement = None
    if measured.agreement.is_good:
        added = measured.added(arrived.sums, window, memory=settings.memory)
        if added is not measured:
            measured, measurement = added, added.history[-1]
    return changed(state, measured=measured), measurement, found_changed


def _limited(state: RunState, row_limit: int | None) -> RunState:
    limit = smallest(state.row_limit, row_limit)
    if limit is None or limit == state.row_limit:
        return state
    return changed(state, row_limit=limit, search=None if state.search is None else state.search.limited(limit))


def settle_unsent(state: RunState) -> RunState:
    """Return the state without the pending window, whose examples stay as assumed."""
    return changed(state, pending=None, examples=state.examples.settled())


def use_rule(settings: RunSettings, state: RunState, rule: LearningRateRule) -> tuple[RunSettings, RunState]:
    """Change to another rule, and take the learning rate to be that of the first batch size.

    Args:
        settings: The settings of the run.
        state: The state.
        rule: How the learning rate follows the batch from now on.

    Returns:
        The new settings and the new state.
    """
    return changed(settings, rule=rule), changed(state, batch=state.batch.with_rule(rule, state.noise))


def _counted(settings: RunSettings, state: RunState, window: OpenWindow, end: WindowEnd) -> RunState:
    if settings.now.world_size == 1:
        counted, examples = window.examples, state.examples.counted(window.examples)
    else:
        counted = window.begun * settings.now.granularity
        examples = state.examples.assuming(counted)
    return changed(
        state,
        window=None,
        windows=state.windows + 1,
        loader_batches=state.loader_batches + window.begun,
        examples=examples,
        position=settings.plan.advance(state.position, end.ready, is_last=end.is_last),
        loader_batches_in_epoch=end.ready,
        batch=_batch_after(settings, state, window, end),
    )


def _batch_after(settings: RunSettings, state: RunState, window: OpenWindow, end: WindowEnd) -> BatchState:
    """Return the batch: where nothing is decided, that of a window that the epoch's end did not make short."""
    if settings.decides or (end.is_last and window.start > 0):
        return state.batch
    return changed(state.batch, batch_size=window.begun * settings.now.granularity)


def _situation(settings: RunSettings, state: RunState, conditions: Conditions, factor: float) -> Situation:
    return Situation(
        batch_size=state.batch.batch_size,
        start_batch_size=state.batch.start_batch_size,
        examples_seen=state.examples.total,
        total_examples=settings.total_examples,
        warmup_examples=settings.warmup_examples,
        optimizer_steps=state.windows,
        schedule_factor=factor,
        schedule_peak=state.schedule_peak,
        examples_at_last_change=state.batch.examples_at_last_change,
        noise=state.noise,
        memory=settings.memory,
        seconds_per_loader_batch=conditions.seconds_per_loader_batch,
        seconds_per_step=conditions.seconds_per_step,
        metrics=state.metrics,
    )
