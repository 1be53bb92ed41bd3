"""The output of a run during training: logged numbers, losses, journal records, and messages, each warning once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl

from lightning_bsscale.callbacks.actuator import Actuator
from lightning_bsscale.callbacks.checks.options import RunOptions
from lightning_bsscale.callbacks.output import logging, messages
from lightning_bsscale.callbacks.output.journal import RunJournal
from lightning_bsscale.callbacks.trainer.learning_rate_names import monitored_names
from lightning_bsscale.callbacks.trainer.loaders import SizeCheck
from lightning_bsscale.callbacks.trainer.losses import LossReader, When
from lightning_bsscale.theory.losses import LossPoint
from lightning_bsscale.theory.measured import MANY_DROPPED
from lightning_bsscale.theory.reason_numbers import reason_number
from lightning_bsscale.theory.run import Asked, Closed, Conditions, EpochStarted
from lightning_bsscale.theory.state import CutWindow, OpenWindow, RunSettings, RunState


class Reports:
    """The output of one run.

    Args:
        options: the callback's options
        settings: the settings of the run
        journal: receives the records
        sizes: checks the sizes of loader batches
        losses: reads what the user logs
    """

    def __init__(
        self,
        options: RunOptions,
        settings: RunSettings,
        journal: RunJournal,
        sizes: SizeCheck,
        losses: LossReader,
    ) -> None:
        self.journal = journal
        self.losses = losses
        self._options = options
        self._settings = settings
        self._sizes = sizes
        self._shown: set[Callable[..., None]] = set()
        # A key cannot have points at two kinds of step.
        self._rows = logging.ExamplesOnRows(options.log_prefix) if options.log_step == "optimizer" else None
        self._logged: RunState | None = None  # in this loader batch

    def once(self, message: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Show a message the first time only."""
        if message not in self._shown:
            self._shown.add(message)
            message(*args, **kwargs)

    def epoch_started(self, before: RunState, started: EpochStarted) -> None:
        """Record an epoch's start, and say what it lost or repeats."""
        self.journal.start_epoch(before, started.state)
        self._warn_dropped(started.state_at_end, started.dropped)
        received, announced = started.state_at_end.position.loader_batches, started.state.position.epoch_batches
        if self._settings.decides and started.is_repeated and announced is not None and received >= announced:
            messages.warn_repeated_epoch(received, announced, waits=self._settings.plan.ends_with_epochs)

    def window_dropped(self, before: RunState, state: RunState, loader_batches: int) -> None:
        """Record that a window without a step was dropped, and warn once."""
        self.journal.drop_window(before)
        self._warn_dropped(state, loader_batches)

    def _warn_dropped(self, state: RunState, loader_batches: int) -> None:
        if loader_batches and self._settings.acts:
            self.once(
                messages.warn_dropped_loader_batches,
                loader_batches,
                state.loader_batches_in_epoch,
                state.position.epoch_batches,
            )

    def window_opened(self, window: OpenWindow, cut: CutWindow | None) -> None:
        """Warn about the part of a window that a checkpoint lacks."""
        if cut is not None and cut.lost and self._settings.decides:
            messages.warn_cut_window(cut.lost, window.planned if self._settings.acts else 0)

    def window_closed(self, window: OpenWindow, closed: Closed, *, has_gradient_scaler: bool) -> None:
        """Check the window's size, warn if many windows were dropped, and log the micro-batch that was found."""
        self._sizes.add(window.examples, window.begun)
        search = closed.state.search
        if search is not None and search.ended is not None:
            self.once(messages.log_micro_batches, search)
        if closed.state.measured.many_were_dropped:
            self.once(messages.warn_dropped_windows, MANY_DROPPED, has_scaler=has_gradient_scaler)

    def decided(self, conditions: Conditions, asked: Asked) -> None:
        """Record and log a decision."""
        self.journal.ask_policy(conditions, asked)
        if asked.decided is not None and not asked.decided.is_valid:
            self.once(messages.warn_invalid_decision, self._settings.policy, asked.decided.answer)
        if asked.record is not None:
            messages.log_decision(asked.record, self._options)

    # ------------------------------------------------------------------ numbers

    def log(self, state: RunState, actuator: Actuator, asked: Asked, window: OpenWindow, at: LossPoint) -> None:
        """Log numbers at an optimizer step if it is due or the batch changed, and read losses if it is due."""
        trainer = actuator.trainer
        is_due = logging.is_log_due(trainer)
        if not (is_due or (asked.record is not None and asked.record.is_change)):
            return
        values = {
            **logging.measured_values(state.measured),
            "batch_size": state.batch.batch_size,
            "accumulate_grad_batches": window.begun,
            logging.EXAMPLES_KEY: state.examples.total,
        }
        if self._settings.decides:
            values["hold_reason"] = reason_number(None if asked.decided is None else asked.decided.record)
            values["lr_scale"] = actuator.shown_lr_scale(state.batch.lr_scale)
            values |= _learning_rates(actuator)
        logging.log_values(trainer, self._options.log_prefix, values, step=self.logged_step(trainer, state))
        self._logged = state
        if is_due:
            self.read_losses(trainer, When.STEP, at)

    def logged_step(self, trainer: pl.Trainer, state: RunState) -> int:
        """Return the loggers' step: examples, or as in Lightning's own metrics the index from 0 of the last step."""
        return state.examples.total if self._options.log_step == "examples" else trainer.global_step - 1

    def end_loader_batch(self, trainer: pl.Trainer) -> None:
        """Add to the progress bar, and to the row that Lightning writes next; called in `on_train_batch_end` only."""
        state, self._logged = self._logged, None
        if state is None:
            return
        if self._options.progress_bar:
            logging.show_batch(trainer, self._options.log_prefix, state.batch.batch_size)
        if self._rows is not None:
            self._rows.at_step(trainer, state.examples.total)

    def end_validation_epoch(self, trainer: pl.Trainer, state: RunState) -> None:
        """Add to the row that Lightning writes next; called in `on_validation_epoch_end` only."""
        if self._rows is not None:
            self._rows.at_validation_end(trainer, state.examples.total)

    def end_epoch(self, trainer: pl.Trainer, state: RunState) -> None:
        """Add to the row that Lightning writes next; called in `on_train_epoch_end` only."""
        if self._rows is not None:
            self._rows.at_epoch_end(trainer, state.examples.total)

    def read_losses(self, trainer: pl.Trainer, when: When, at: LossPoint) -> None:
        """Note what the user has logged, and record what was noted before."""
        self._record(self.losses.read(trainer, when, at))

    def settle_losses(self) -> None:
        """Record the losses that were noted."""
        self._record(self.losses.settle())

    def _record(self, read: list[tuple[str, LossPoint]]) -> None:
        for name, point in read:
            self.journal.log_loss(name, point)


def _learning_rates(actuator: Actuator) -> dict[str, float]:
    """Return the learning rates of the step: by the names of `LearningRateMonitor`, or the first group's as ``lr``."""
    names = monitored_names(actuator.trainer)
    if not names:
        return {"lr": actuator.lr}
    # A group that was added in this step has no update yet.
    lrs = actuator.lrs
    return {name: lrs[index] for name, index in names if index < len(lrs)}
