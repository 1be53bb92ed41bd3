"""The run's journal: which file it is, and what is recorded of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_bsscale.callbacks.checks.options import is_remote
from lightning_bsscale.journal import Journal, Line, RuleEvent, run_header
from lightning_bsscale.theory.described import describe
from lightning_bsscale.theory.events import (
    DropEvent,
    EndEvent,
    EpochEvent,
    GiveUpEvent,
    MetricEvent,
    Progress,
    SchedulersEvent,
    WindowEvent,
)
from lightning_bsscale.theory.losses import LossEvent, LossPoint
from lightning_bsscale.theory.measured import Arrived
from lightning_bsscale.theory.pace import Pace
from lightning_bsscale.theory.plan import PlanPosition
from lightning_bsscale.theory.profile import RunProfile
from lightning_bsscale.theory.records import DecisionRecord, Measurement
from lightning_bsscale.theory.rules import LearningRateRule
from lightning_bsscale.theory.run import Asked, Conditions, WindowEnd
from lightning_bsscale.theory.state import OpenWindow, RunSettings, RunState

JOURNAL_NAME = "bsscale.jsonl"


def open_journal(
    trainer: pl.Trainer,
    record: bool | str | Path,
    settings: RunSettings,
    state: RunState,
    profile: RunProfile,
    pace: Pace,
    resumes: Mapping[str, Any] | None,
) -> RunJournal:
    """Open the run's journal on the first rank, if the user wants one.

    Args:
        trainer: the Trainer, whose log folder is the default
        record: the option: True writes ``bsscale.jsonl`` into the log folder, a path is used as it is
        settings: the settings of the run
        state: its first state
        profile: what its readers are told beside
        pace: the seconds of its windows so far
        resumes: the journal entry of the resumed checkpoint, or None

    Returns:
        The journal, or one that ignores everything.
    """
    if record is False:
        return RunJournal()
    path = Path(_log_folder(trainer)) / JOURNAL_NAME if record is True else Path(record)
    if not trainer.is_global_zero:
        return RunJournal()
    journal = RecordedRun(Journal(path, run_header(settings, state, profile, pace), resumes=resumes), settings)
    with journal.closed_on_error():  # a warning may be turned into an error
        _log_journal(journal.file, resumes)
    return journal


class RunJournal:
    """Takes the events of a run, and ignores them: no journal is wanted, or this is not the first rank."""

    @property
    def path(self) -> str | None:
        """The journal's file; None without a journal, or if the file was removed because nothing was recorded."""
        return None

    @contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Close the journal if the run that opened it cannot begin."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def start_epoch(self, before: RunState, now: RunState) -> None:
        """Record an epoch's start, from the states around it."""

    def drop_window(self, before: RunState) -> None:
        """Record that a window is dropped, or the rest of one that a checkpoint cut, if there is either."""

    def close_window(
        self,
        window: OpenWindow,
        factors: tuple[float, float],
        end: WindowEnd,
        arrived: Arrived | None,
        measurement: Measurement | None,
        took: float | None,
    ) -> None:
        """Record a window and the sums that have arrived; the line is written when the policy is asked."""

    def ask_policy(self, conditions: Conditions, asked: Asked) -> None:
        """Record the policy's inputs and its decision."""

    def use_rule(self, rule: LearningRateRule) -> None:
        """Record a change to another rule."""

    def follow_schedulers(self, position: PlanPosition) -> None:
        """Record a change to other schedulers."""

    def log_metric(self, name: str, value: float) -> None:
        """Record a value of a watched metric."""

    def log_loss(self, name: str, point: LossPoint) -> None:
        """Record a loss that the user logged."""

    def give_up(self) -> None:
        """Record that sums in flight are abandoned."""

    def end(
        self,
        before: RunState,
        now: RunState,
        arrived: Arrived | None,
        measurement: Measurement | None,
        latest: DecisionRecord | None,
    ) -> None:
        """Record the run's end, from the states around it, and the last decision."""

    def close(self) -> None:
        """Close the file; a second call does nothing."""

    def state(self) -> dict[str, Any] | None:
        """Return the journal's id, path and number of lines for a checkpoint, or None."""
        return None


class RecordedRun(RunJournal):
    """Writes the events of a run into a journal.

    Args:
        file: the open journal
        settings: the settings of the run
    """

    def __init__(self, file: Journal, settings: RunSettings) -> None:
        self.file = file
        self._settings = settings
        self._window: dict[str, Any] | None = None  # fields of a `WindowEvent`, until the policy is asked
        self._measurement: Measurement | None = None

    @property
    def path(self) -> str | None:
        """The journal's file; None if it was removed because nothing was recorded."""
        return None if self.file.is_removed else str(self.file.path)

    def start_epoch(self, before: RunState, now: RunState) -> None:
        """Record an epoch's start, from the states around it."""
        position = now.position
        event = EpochEvent(
            epoch=now.epoch,
            batches=position.epoch_batches,
            examples=position.epoch_examples,
            first=position.loader_batches,
            ready=before.loader_batches_in_epoch,
            window=self._progress(before.window),
        )
        self._write(event)

    def drop_window(self, before: RunState) -> None:
        """Record that a window is dropped, or the rest of one that a checkpoint cut, if there is either."""
        if before.window is not None or before.cut is not None:
            self._write(DropEvent(ready=before.loader_batches_in_epoch, window=self._progress(before.window)))

    def close_window(
        self,
        window: OpenWindow,
        factors: tuple[float, float],
        end: WindowEnd,
        arrived: Arrived | None,
        measurement: Measurement | None,
        took: float | None,
    ) -> None:
        """Record a window and the sums that have arrived; the line is written when the policy is asked."""
        is_alone = self._settings.now.world_size == 1
        usual = window.begun * self._settings.now.granularity
        self._measurement = measurement
        self._window = dict(
            start=window.start,
            length=window.begun,
            planned=None if window.planned == window.begun else window.planned,
            ready=None if end.ready == window.start + window.begun else end.ready,
            accumulate=self._accumulate(window),
            examples=window.examples if is_alone and window.examples != usual else None,
            is_last=end.is_last,
            lr=end.lr if window.is_measured else None,
            factor=factors[0],
            scheduled=factors[1],
            lr_scale=end.lr_scale if window.is_measured and end.lr_scale != factors[0] else None,
            has_sums=end.has_sums and window.is_measured and is_alone,
            sends=end.sends,
            row_limit=end.row_limit,
            arrived=arrived,
            is_asked=False,
            took=took,
        )

    def ask_policy(self, conditions: Conditions, asked: Asked) -> None:
        """Record the policy's inputs and its decision."""
        if self._window is not None:
            self._window["is_asked"] = True
            relative_lr, *seconds = conditions
            if self._settings.decides:  # also in the warmup, where the schedule has its peak
                self._window["relative_lr"] = relative_lr
            if asked.decided is not None:
                self._window["seconds"] = tuple(seconds)
        self._write(asked.record)

    def use_rule(self, rule: LearningRateRule) -> None:
        """Record a change to another rule."""
        self._write(RuleEvent(rule=describe(rule)))

    def follow_schedulers(self, position: PlanPosition) -> None:
        """Record a change to other schedulers."""
        self._write(SchedulersEvent(frequencies=tuple(frequency for frequency, _ in position.before)))

    def log_metric(self, name: str, value: float) -> None:
        """Record a value of a watched metric."""
        self._write(MetricEvent(name=name, value=value))

    def log_loss(self, name: str, point: LossPoint) -> None:
        """Record a loss that the user logged."""
        event = LossEvent(
            name=name,
            value=point.value,
            examples_seen=point.examples_seen,
            optimizer_steps=point.optimizer_steps,
        )
        self._write(event)

    def give_up(self) -> None:
        """Record that sums in flight are abandoned."""
        self._write(GiveUpEvent())

    def end(
        self,
        before: RunState,
        now: RunState,
        arrived: Arrived | None,
        measurement: Measurement | None,
        latest: DecisionRecord | None,
    ) -> None:
        """Record the run's end, from the states around it, and the last decision."""
        event = EndEvent(
            ready=before.loader_batches_in_epoch,
            window=self._progress(before.window),
            arrived=arrived,
            state=replace(now.without_history(), window=None),
            latest=latest,
        )
        self._write(event)
        self._write(measurement)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self.file.close()

    def state(self) -> dict[str, Any] | None:
        """Return the journal's id, path and number of lines, those that are still held back included."""
        state = self.file.state()
        held = sum(line is not None for line in (self._window, self._measurement))
        return state | {"records": state["records"] + held}

    def _progress(self, window: OpenWindow | None) -> Progress | None:
        if window is None:
            return None
        accumulate = self._accumulate(window)
        return Progress(start=window.start, accumulate=accumulate, begun=window.begun, ended=window.ended)

    def _accumulate(self, window: OpenWindow) -> int | None:
        has_effect = not self._settings.acts and window.loss_divisor != self._settings.now.accumulate
        return window.loss_divisor if has_effect else None

    def _write(self, record: Line | None) -> None:
        window, self._window = self._window, None
        for line in (None if window is None else WindowEvent(**window), self._measurement, record):
            if line is not None:
                self.file.write(line)
        self._measurement = None


def _log_folder(trainer: pl.Trainer) -> str:
    # Called on every rank: Lightning broadcasts the first rank's log folder, and waits for all of them.
    folder = str(trainer.log_dir or trainer.default_root_dir)
    if is_remote(folder):
        raise MisconfigurationException(
            f"record=True writes a local file into the log folder, but the log folder is {folder!r}. Pass a local path "
            "such as record='runs/bsscale.jsonl', and copy the file after training."
        )
    return folder


def _log_journal(journal: Journal, resumes: Mapping[str, Any] | None) -> None:
    if journal.is_continued:
        replaced = f"; {journal.replaced} later records, unknown to the checkpoint, are replaced"
        rank_zero_info(
            f"bsscale: continuing the journal {journal.path} after {journal.kept} records"
            f"{replaced if journal.replaced else ''}."
        )
        return
    if resumes is not None and journal.in_use:
        rank_zero_warn(
            f"bsscale: another process is writing to the journal {resumes['path']} of the resumed run, so this run "
            f"records to {journal.path}. Is the same training running twice?",
            category=UserWarning,
        )
        return
    if resumes is not None:
        rank_zero_info(
            f"bsscale: the resumed run's journal {resumes['path']} is not continued: {journal.not_continued}."
        )
    why = "" if journal.path == journal.requested else f" because {journal.requested.name} exists already"
    rank_zero_info(f"bsscale: recording to {journal.path}{why}.")
