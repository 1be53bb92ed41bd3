"""One run as one frozen record: everything that a checkpoint must hold, and nothing else.

A checkpoint is this record made plain (`theory.stored`), beside the schema and what a policy keeps for itself. The
functions of `theory.run` take it from window to window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lightning_bsscale.theory.controller import BatchState
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.example_count import ExampleCount
from lightning_bsscale.theory.frozen import changed
from lightning_bsscale.theory.hyperparameters import HyperparameterRule
from lightning_bsscale.theory.measured import ClosedWindow, MeasuredWindows
from lightning_bsscale.theory.micro_batches import Layout
from lightning_bsscale.theory.plan import PlanPosition, UserPlan, steps_made
from lightning_bsscale.theory.policies import Limits, MetricValue
from lightning_bsscale.theory.records import DecisionLog
from lightning_bsscale.theory.rules import LearningRateRule
from lightning_bsscale.theory.schedules import Schedule
from lightning_bsscale.theory.size_search import SizeSearch
from lightning_bsscale.theory.start import Start

__all__ = ["CutWindow", "OpenWindow", "RunNumbers", "RunSettings", "RunState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunNumbers:
    """The settings that a journal holds as they are: numbers and flags.

    Attributes:
        first: The start that the plan counts in.
        now: This start.
        plan: The user's own plan.
        limits: The possible batch sizes.
        total_examples: The budget in examples; None if unknown.
        warmup_examples: Examples before the batch may grow.
        memory: Examples over which a measured window's weight falls to 1/e.
        measure_every: After warmup, windows that contain one loader batch in this many are measured.
        rows: Examples by which a loader batch of this rank can be split, usually.
        max_micro_batch_size: Most of them in a micro-batch; None to gather nothing, or as the search finds.
        searches_size: Whether the largest micro-batch is searched for.
        splits: Whether a loader batch is split where a measurement needs two micro-batches.
        divides: Whether a loader batch is split that does not fit into memory.
        samples_per_micro_batch: Gradients that can be distinguished in one micro-batch of all ranks.
        decides: Whether the policy is asked; a monitor does not ask.
        acts: Whether windows are placed and the learning rate is scaled; false for a dry run and a monitor.
    """

    first: Start
    now: Start
    plan: UserPlan
    limits: Limits
    total_examples: float | None
    warmup_examples: float
    memory: float
    measure_every: int
    rows: int
    max_micro_batch_size: int | None
    searches_size: bool
    splits: bool
    divides: bool
    samples_per_micro_batch: int
    decides: bool
    acts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings(RunNumbers):
    """The settings of a run. The same options give the same settings again, so none of it is in a checkpoint.

    Attributes:
        policy: Any object with `decide(situation, limits)`.
        rule: How the learning rate follows the batch.
        rule_for: Makes the rule that fits another optimizer.
        schedule: The callback's own schedule; None if the user's scheduler controls the learning rate.
        also_scale: Rules of other hyperparameters. Nothing that a run computes depends on them.
    """

    policy: Any
    rule: LearningRateRule
    rule_for: Callable[[Any], LearningRateRule]
    schedule: Schedule | None
    also_scale: tuple[HyperparameterRule, ...] = ()

    def scheduled(self, examples: float) -> float | None:
        """Return the factor of the callback's own schedule after so many examples; None without one."""
        if self.schedule is None or self.total_examples is None:
            return None
        return self.schedule.factor(examples, self.total_examples, self.warmup_examples)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenWindow:
    """The window in progress on this rank.

    Attributes:
        start: Index of its first loader batch in the epoch.
        planned: Planned loader batches.
        loss_divisor: What Lightning divides each loss by.
        steps_before: The Trainer's optimizer steps when it began.
        is_measured: Whether it is to be measured. On several ranks it then sends a message.
        is_watched: Whether its gradients are watched.
        is_compared: Whether `.grad` is compared with the observed gradients.
        has_usual_size: Whether it has the current batch size: it is not cut short.
        layout: The micro-batches in which it is computed.
        is_rest: Whether it is the rest of a window that a checkpoint cut.
        skipped: Indices since its start for which the loader returned None.
        begun: Loader batches so far, the one in progress included.
        ended: Loader batches that have ended.
        examples: Examples of this rank so far.
    """

    start: int
    planned: int
    loss_divisor: int
    steps_before: int
    is_measured: bool
    is_watched: bool
    is_compared: bool
    has_usual_size: bool
    layout: Layout = field(default_factory=Layout)
    is_rest: bool = False
    skipped: int = 0
    begun: int = 0
    ended: int = 0
    examples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CutWindow:
    """A window that a checkpoint cut.

    Attributes:
        lost: Its loader batches before the checkpoint, whose gradient no checkpoint holds.
        rest: Those after it, which make the next window.
    """

    lost: int
    rest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Everything that a checkpoint must hold.

    Attributes:
        first: The start that the plan counts in.
        now: The start of the process that holds this state.
        batch: The current batch size and its learning-rate factor.
        position: Position in the user's plan.
        examples: Examples of all windows.
        measured: The measured windows and their averages.
        decisions: The decisions that are kept.
        search: The search for the largest micro-batch; None without one.
        row_limit: Most rows in a micro-batch since a device ran out of memory; None if none did.
        pending: The closed window whose sums have not arrived, or None.
        window: The window in progress, or None.
        windows: Windows so far; each ended with an optimizer step.
        loader_batches: Loader batches of one rank in them.
        lost_loader_batches: Dropped loader batches, which entered no step.
        lost_examples: Their examples.
        epoch: The Trainer's epoch.
        loader_batches_in_epoch: Loader batches of the epoch so far.
        is_resumed: Whether no loader batch has begun since a checkpoint was loaded.
        cut: The window that the checkpoint cut, until the next one opens; else None.
        schedule_peak: Largest factor of the schedule so far; a monitor does not follow it.
        metrics: The values of watched metrics that a policy is given.
    """

    first: Start
    now: Start
    batch: BatchState
    position: PlanPosition
    examples: ExampleCount = field(default_factory=ExampleCount)
    measured: MeasuredWindows = field(default_factory=MeasuredWindows)
    decisions: DecisionLog = field(default_factory=DecisionLog)
    search: SizeSearch | None = None
    row_limit: int | None = None
    pending: ClosedWindow | None = None
    window: OpenWindow | None = None
    windows: int = 0
    loader_batches: int = 0
    lost_loader_batches: int = 0
    lost_examples: int = 0
    epoch: int = 0
    loader_batches_in_epoch: int = 0
    is_resumed: bool = False
    cut: CutWindow | None = None
    schedule_peak: float = 1.0
    metrics: tuple[MetricValue, ...] = ()

    @property
    def noise(self) -> NoiseScale | None:
        """The averaged noise scale, or None before there is one."""
        return self.measured.noise

    @property
    def used_examples(self) -> int:
        """Examples of the budget that are used: seen or lost, because the plan advances past both."""
        return self.examples.total + self.lost_examples

    @property
    def planned_steps(self) -> int:
        """Optimizer steps of the user's plan at the last window's end."""
        return steps_made(self.position, self.first.accumulate)

    def is_over(self, max_steps: int, total_examples: float | None) -> bool:
        """Return whether the budget was used up at the last window's end.

        Args:
            max_steps: The Trainer's; -1 for none.
            total_examples: The user's budget, or None.

        Returns:
            True if no loader batch is left.
        """
        if total_examples is not None:
            return self.used_examples >= total_examples
        return 0 <= max_steps <= self.planned_steps

    def window_at_restart(self) -> tuple[int, int]:
        """Return start and length of the window that Lightning must see when it restores its position.

        Lightning checks whether the last loader batch before the checkpoint ended a window, to count the loggers'
        steps. After an exception within a loader batch the answer must be no, because the previous step was counted.
        """
        window = self.window
        if window is None:
            return self.position.loader_batches, max(1, self.batch.batch_size // self.now.granularity)
        return window.start + window.skipped, window.planned + (window.begun > window.ended)

    def with_begun(self, window: OpenWindow, size: int, batch_idx: int) -> RunState:
        """Return the state when a loader batch of `size` examples has begun in a window, and any before has ended."""
        window = changed(window, begun=window.begun + 1, ended=window.begun, examples=window.examples + size)
        return changed(self, window=window, loader_batches_in_epoch=batch_idx, is_resumed=False)

    def with_ended(self, batch_idx: int) -> RunState:
        """Return the state when a loader batch has ended, that of the open window if there is one."""
        window = self.window if self.window is None else changed(self.window, ended=self.window.begun)
        return changed(self, window=window, loader_batches_in_epoch=batch_idx + 1)

    def with_skipped(self, batch_idx: int) -> RunState:
        """Return the state past an index for which the loader returned None."""
        window = self.window if self.window is None else changed(self.window, skipped=self.window.skipped + 1)
        return changed(self, window=window, loader_batches_in_epoch=batch_idx + 1)

    def without_history(self) -> RunState:
        """Return the state with the last measurement and the last decision alone, which is all that a run needs."""
        log = self.decisions
        if len(self.measured.history) <= 1 and len(log.records) <= 1:
            return self
        last = log.records[-1:]
        return changed(
            self,
            measured=changed(self.measured, history=self.measured.history[-1:]),
            decisions=changed(log, records=last, kept_changes=sum(record.is_change for record in last)),
        )
