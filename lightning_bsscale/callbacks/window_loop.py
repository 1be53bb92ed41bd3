"""The life of a window in order, shared by the scaler, its dry run, and the monitor.

    begin_loader_batch → before_backward → after_backward → … → before_step → end_loader_batch

`theory.run` decides, the `GradientWatch` observes, the `Actuator` acts, the `Reports` show. Here is only the order.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass, fields

from torch.optim import Optimizer

from lightning_bsscale.callbacks.actuator import Actuator
from lightning_bsscale.callbacks.gradient_watch import GradientWatch
from lightning_bsscale.callbacks.output import messages
from lightning_bsscale.callbacks.output.reports import Reports
from lightning_bsscale.callbacks.trainer.loaders import Loaders
from lightning_bsscale.callbacks.trainer.losses import When
from lightning_bsscale.callbacks.trainer.metrics import WatchedMetrics
from lightning_bsscale.callbacks.trainer.optimizer_step import unwrapped
from lightning_bsscale.callbacks.trainer.timing import WindowClock
from lightning_bsscale.theory import run
from lightning_bsscale.theory.frozen import changed
from lightning_bsscale.theory.losses import LossPoint
from lightning_bsscale.theory.pace import Pace
from lightning_bsscale.theory.profile import RunContext, RunProfile
from lightning_bsscale.theory.records import DecisionRecord
from lightning_bsscale.theory.rules import Constant, LearningRateRule
from lightning_bsscale.theory.state import OpenWindow, RunNumbers, RunSettings, RunState


@dataclass(eq=False)
class WindowLoop:
    """Takes one run from window to window."""

    settings: RunSettings
    state: RunState
    actuator: Actuator
    gradients: GradientWatch
    loaders: Loaders
    reports: Reports
    profile: RunProfile
    pace: Pace
    latest: DecisionRecord | None = None
    _in_progress: int | None = None  # index of the loader batch in progress
    _ended: int | None = None  # index of one that has ended and is not yet counted as ended in the state

    def __post_init__(self) -> None:
        """Watch the metrics that the policy names; a monitor has no policy."""
        self._metrics = WatchedMetrics(getattr(self.settings.policy, "monitors", ()))
        self.clock = WindowClock()

    # ------------------------------------------------------------------ a window's life

    def begin_loader_batch(self, size: int, batch_idx: int) -> None:
        """Begin a loader batch of `size` examples, and possibly an epoch or a window."""
        self._in_progress, trainer, position = batch_idx, self.actuator.trainer, self.state.position
        # An epoch may begin with None, and a stopped run's checkpoint counts its unfinished epoch as the next one.
        if batch_idx == 0 or (trainer.current_epoch != self.state.epoch and batch_idx < position.loader_batches):
            self._start_epoch(size)
        elif self.state.is_resumed and position.is_last:
            self._start_epoch(size, first=batch_idx)
        elif not self.settings.acts and batch_idx % self.actuator.accumulate == 0:
            self.drop_window()  # Lightning clears the gradient here, whether or not a step ended the last window
        self._follow(trainer.optimizers[0])
        window = self.state.window or self._open_window(batch_idx)
        self.state, self._ended = self.state.with_begun(window, size, batch_idx), None
        self.gradients.times.start()
        self.clock.run()

    def _start_epoch(self, size: int, *, first: int = 0) -> None:
        self._catch_up()
        trainer = self.actuator.trainer
        if self.loaders.were_replaced(trainer):
            self.loaders = self.loaders.read_again(trainer, size)
        started = run.start_epoch(
            self.settings,
            self.state,
            epoch=trainer.current_epoch,
            epoch_batches=self.loaders.batches,
            epoch_examples=self.loaders.epoch_examples(self.settings.now.granularity),
            first=first,
        )
        before, self.state = self.state, started.state
        self.reports.epoch_started(before, started)
        self.reports.read_losses(trainer, When.EPOCH, self._place)

    def _open_window(self, batch_idx: int) -> OpenWindow:
        cut, accumulate, steps = self.state.cut, self.actuator.accumulate, self.actuator.trainer.global_step
        self.state = run.open_window(self.settings, self.state, batch_idx, accumulate=accumulate, steps_before=steps)
        window = self.state.window
        assert window is not None
        self.reports.window_opened(window, cut)
        self.actuator.place_window(window.start, window.planned)
        self.actuator.begin_window(window.layout)
        self._scale_learning_rate(window.planned, has_usual_size=window.has_usual_size)
        self.gradients.open(window)
        return window

    def _scale_learning_rate(self, loader_batches: int, *, has_usual_size: bool) -> None:
        window = (self.settings, self.state, loader_batches)
        factors = run.learning_rate_factors(*window, has_usual_size=has_usual_size)
        self.actuator.scale_learning_rate(*factors, run.batch_ratio(*window, has_usual_size=has_usual_size))

    def before_step(self, optimizer: Optimizer) -> None:
        """Compute the sums, while the gradient is complete and not yet clipped."""
        window = self.state.window
        if window is None:
            return
        is_late = self._follow(optimizer)
        self.gradients.before_step(window)
        if window.begun != window.planned:
            self.actuator.rescale_cut_window(window.planned, window.begun)
            self._scale_learning_rate(window.begun, has_usual_size=False)
        self.actuator.before_step(is_late=is_late)

    @property
    def _has_stepped(self) -> bool:
        window = self.state.window
        return window is not None and self.actuator.trainer.global_step > window.steps_before

    def end_loader_batch(self, batch_idx: int) -> None:
        """End a loader batch and, if the optimizer has stepped, its window."""
        window, has_stepped, self._ended = self.state.window, self._has_stepped, batch_idx
        self.gradients.times.stop(stepped=has_stepped, computed=self.actuator.micro_batches.computed)
        if window is not None and has_stepped:
            self._close_window(window, batch_idx)

    def _catch_up(self) -> None:
        # Only where somebody looks, as most loader batches are followed by another one that counts it too.
        if self._ended is not None:
            self.state, self._ended = self.state.with_ended(self._ended), None

    def _close_window(self, window: OpenWindow, batch_idx: int) -> None:
        self.actuator.end_step()
        arrived = self.gradients.receive(self.state.pending)
        end = run.WindowEnd(
            ready=batch_idx + 1,
            is_last=self._is_epochs_end(batch_idx),
            lr=self.actuator.lr,
            lr_scale=self.actuator.lr_scale,
            has_sums=self.gradients.has_sums,
            sends=self.gradients.sends,
            row_limit=self.gradients.take_row_limit(),
        )
        closed = run.close_window(self.settings, self.state, end, arrived)
        self.state, self._in_progress, self._ended = closed.state, None, None
        took = self._timed(window)
        self.reports.journal.close_window(window, self.actuator.factors, end, arrived, closed.measurement, took)
        if closed.found_changed:
            self.gradients.discard()
            self.reports.once(messages.warn_changed_gradients, self.gradients.most_changed)
        self.gradients.end_window(window, is_sent=closed.state.pending is not None)
        self.reports.window_closed(window, closed, has_gradient_scaler=self.gradients.has_gradient_scaler)
        was_ignored = self.actuator.step_schedulers(self.settings.plan, self.state.position)
        if was_ignored and self.settings.limits.max_batch_size > self.settings.first.batch_size:
            self.reports.once(messages.warn_scheduler_step, self.actuator.trainer.lightning_module)
        conditions = run.Conditions(self.actuator.relative_lr, *self.gradients.times.shared)
        asked = run.ask_policy(self.settings, self.state, conditions)
        self.state = asked.state
        self.latest = self.latest if asked.decided is None else asked.decided.record
        self.reports.decided(conditions, asked)
        if self.settings.acts and self.settings.plan.is_used_up(self.state.position, self.state.used_examples):
            self.actuator.stop()
        self.reports.log(self.state, self.actuator, asked, window, self._place)
        if self.actuator.is_factor_overwritten():
            # Not an error, because it may show only when the batch first grows, days into a training.
            messages.warn_overwritten_factor(self.gradients.optimizer)
            self._use_rule(Constant())

    def _timed(self, window: OpenWindow) -> float | None:
        """Return the seconds of a window that has closed, and count them."""
        took, numbers = self.clock.lap(), self.settings
        self.pace = self.pace.with_window(numbers, took, window.begun, window.examples, is_measured=window.is_measured)
        return took

    @property
    def _place(self) -> LossPoint:
        """Where the run is, for a loss that is read here."""
        return LossPoint(
            examples_seen=self.state.examples.total,
            optimizer_steps=self.state.windows,
            seconds=self.pace.seconds,
            value=math.nan,
        )

    @property
    def context(self) -> RunContext:
        """What is known of the run beside its state."""
        numbers = RunNumbers(**{one.name: getattr(self.settings, one.name) for one in fields(RunNumbers)})
        return RunContext(
            numbers=numbers,
            profile=self.profile,
            latest=self.latest,
            pace=self.pace,
            seconds=self.gradients.times.shared,
        )

    def _is_epochs_end(self, batch_idx: int) -> bool:
        return self.actuator.trainer.is_last_batch or batch_idx + 1 >= (self.state.position.epoch_batches or math.inf)

    # ------------------------------------------------------------------ what interrupts it

    def _follow(self, optimizer: Optimizer) -> bool:
        """Change to another optimizer and other schedulers if they were set up again during training."""
        optimizer = unwrapped(optimizer)
        is_other = optimizer is not self.gradients.optimizer
        if is_other:
            self.actuator.check_optimizer()
            rule = self.settings.rule_for(optimizer)
            self.gradients.follow(optimizer)
            self.actuator.follow_optimizer(optimizer)
            self._use_rule(rule)
        position = self.actuator.follow_schedulers(self.settings.plan, self.state.position)
        if position is not self.state.position:
            self.state = changed(self.state, position=position)
            self.reports.journal.follow_schedulers(position)
        return is_other

    def _use_rule(self, rule: LearningRateRule) -> None:
        if rule.name != self.settings.rule.name:
            self.settings, self.state = run.use_rule(self.settings, self.state, rule)
            self.reports.journal.use_rule(rule)
        window = self.state.window
        if window is not None:
            self._scale_learning_rate(window.planned, has_usual_size=window.has_usual_size)

    def skip_loader_batch(self, batch_idx: int) -> None:
        """Skip an index for which the loader returned None, which Lightning counts all the same."""
        if batch_idx == 0:
            self._start_epoch(0)
        self._catch_up()
        self.actuator.skip(batch_idx, is_open=self.state.window is not None)
        self.state = self.state.with_skipped(batch_idx)

    def drop_window(self) -> None:
        """Drop a window that no step ended, as Lightning does at an epoch's end."""
        self._catch_up()
        before, (self.state, dropped) = self.state, run.drop_window(self.settings, self.state)
        self.reports.window_dropped(before, self.state, dropped)

    def close_stepped(self) -> None:
        """Close a window whose step was made, if another callback saves or raised before the loader batch's end."""
        if self._in_progress is not None and self._has_stepped:
            self.end_loader_batch(self._in_progress)

    @property
    def planned_steps(self) -> int:
        """Steps of the user's plan, including that of the current window once it has been made."""
        being_made, batch_idx = self.actuator.planned_step_in_progress, self._in_progress
        if being_made is not None:
            return being_made
        if batch_idx is None or not self._has_stepped:
            return self.state.planned_steps
        is_last = self._is_epochs_end(batch_idx)
        return self.settings.plan.steps_after(self.state.position, batch_idx + 1, is_last=is_last)

    def end_validation(self) -> None:
        """Read the watched metrics and the losses of a validation."""
        trainer = self.actuator.trainer
        self._log_metrics(self._metrics.at_validation_end(trainer))
        self.reports.read_losses(trainer, When.VALIDATION_END, self._place)

    def end_epoch(self) -> None:
        """Read the watched metrics of an epoch."""
        self.clock.pause()
        trainer = self.actuator.trainer
        self._log_metrics(self._metrics.at_epoch_end(trainer))
        self.reports.end_epoch(trainer, self.state)

    def end_training(self) -> None:
        """Drop a window that no step ended, and read the last losses."""
        self.drop_window()
        self.reports.read_losses(self.actuator.trainer, When.EPOCH, self._place)
        self.reports.settle_losses()

    def _log_metrics(self, values: list[tuple[str, float]]) -> None:
        for name, value in values:
            self.state = run.log_metric(self.state, name, value)
            self.reports.journal.log_metric(name, value)

    # ------------------------------------------------------------------ checkpoint and end

    def snapshot(self) -> RunState:
        """Return the run for a checkpoint, after waiting for the sums in flight."""
        self.actuator.end_step()  # an exception may have interrupted a step
        self.close_stepped()
        self._catch_up()
        if self.actuator.is_interrupted:  # another callback saves before this one is notified of the exception
            self.abandon_pending()
        pending = self.state.pending
        if pending is None or pending.arrived is not None:
            return self.state
        arrived = self.gradients.peek()
        return changed(self.state, pending=None if arrived is None else changed(pending, arrived=arrived))

    def abandon_pending(self) -> None:
        """Stop waiting and sending after an error, since another rank may be gone."""
        self.reports.losses.abandon()
        pending = self.state.pending
        if self.gradients.abandon_pending() and (pending is None or pending.arrived is None):
            self.state = run.settle_unsent(self.state)
            self.reports.journal.give_up()

    def release(self) -> None:
        """Restore everything of the user's; a second call does nothing."""
        self._in_progress = None
        try:
            self.actuator.release()
        finally:
            self.gradients.stop()

    def flush(self) -> None:
        """Receive the sums in flight, and close the journal."""
        with closing(self.reports.journal):
            arrived, before = self.gradients.receive(self.state.pending), self.state
            self.state, measurement, found_changed = run.take_arrived(self.settings, before, arrived)
            if found_changed:
                self.reports.once(messages.warn_changed_gradients, self.gradients.most_changed)
            self.reports.journal.end(before, self.state, arrived, measurement, self.latest)
