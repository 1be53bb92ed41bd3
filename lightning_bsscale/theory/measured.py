"""The measured windows of a run: averages, history, and whether the gradients can be trusted."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.frozen import changed
from lightning_bsscale.theory.history import History
from lightning_bsscale.theory.moments import moments_of
from lightning_bsscale.theory.records import Measurement, WindowSums
from lightning_bsscale.theory.robust import RobustAverages

__all__ = ["Agreement", "Arrived", "ClosedWindow", "MeasuredWindows"]

HISTORY_LIMIT = 4096
MANY_DROPPED = 10

# Most code that changes gradients does so from the start, so all of the first windows are compared. Afterwards the
# period is a prime number, which also catches changes in every second or fourth window.
COMPARED_FIRST = 4
COMPARED_EVERY = 17
# A recipe may change gradients in its first epoch only. If they change again, measurement stops for good.
MOST_CHANGES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Whether `.grad` at the step equals what the hooks observed; the same on all ranks, which use the same sums.

    Attributes:
        windows: Measured windows since the last change of `is_good`.
        changes: How often changed gradients were detected.
        is_good: Whether windows are measured now.
    """

    windows: int = 0
    changes: int = 0
    is_good: bool = True

    def next_window(self) -> tuple[Agreement, bool, bool]:
        """Count a window that is due for measurement.

        Returns:
            The new record, whether to watch the window, and whether to compare it.
        """
        compared = self.windows % COMPARED_EVERY == 0 or (self.is_good and self.windows < COMPARED_FIRST)
        compared = compared and self.changes < MOST_CHANGES
        return changed(self, windows=self.windows + 1), self.is_good or compared, compared

    def with_result(self, explained: bool) -> tuple[Agreement, bool]:
        """Add the result of a comparison.

        Args:
            explained: Whether rounding explains the difference.

        Returns:
            The new record, and whether this comparison is the first to detect changed gradients. Averages that rest on
            them must then be discarded.
        """
        if explained == self.is_good:
            return self, False
        # Good gradients are compared again at once, changed ones a period later.
        windows = 0 if explained else 1
        found_changed = not explained
        return Agreement(windows=windows, changes=self.changes + found_changed, is_good=explained), found_changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """Numbers of a closed window that have arrived; the same on all ranks.

    Attributes:
        sums: The window's sums over all ranks.
        explained: Whether rounding explains the difference between `.grad` and the observed gradients; None if it was
            not compared.
        examples: Examples over all ranks since the previous message; None on one rank, which counts exactly.
        seconds_per_loader_batch: Mean over ranks; None on one rank, or if a rank has not timed one yet.
        seconds_per_step: The same for a step.
        seconds_per_row: Seconds of a row in micro-batches of about the largest size; None if no rank had any.
        has_room: Whether twice their size is expected to fit into the memory of every rank.
        row_limit: Most rows in a micro-batch that the memory of every rank holds; None if none has run out of it. One
            rank does not need it: `WindowEnd` has it.
    """

    sums: WindowSums
    explained: bool | None = None
    examples: int | None = None
    seconds_per_loader_batch: float | None = None
    seconds_per_step: float | None = None
    seconds_per_row: float | None = None
    has_room: bool = True
    row_limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedWindow:
    """What is known about a window at its end; kept until its sums have arrived.

    Attributes:
        examples_seen: Examples of all windows including this one, as counted at its end.
        optimizer_steps: Optimizer steps including this one.
        batch_size: The current batch size, in examples.
        loader_batches: Loader batches of one rank.
        lr: The learning rate of this step.
        lr_scale: The factor on it.
        largest: Largest micro-batch that it was computed in, in rows; None without a limit.
        arrived: Its sums, if a checkpoint waited for them; otherwise None.
    """

    examples_seen: int
    optimizer_steps: int
    batch_size: int
    loader_batches: int
    lr: float
    lr_scale: float
    largest: int | None = None
    arrived: Arrived | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredWindows:
    """Averages over the measured windows, and the windows themselves.

    Attributes:
        averages: The averages that the noise scale is computed from.
        agreement: Which windows are compared, and whether any is measured.
        history: The measured windows. Beyond :data:`HISTORY_LIMIT` every second one of the older half is dropped, so
            that the history covers a long run in bounded memory.
        examples_at_last: Examples seen at the last measured window.
        dropped_in_a_row: Number of windows dropped since the last one that entered the averages.
    """

    averages: RobustAverages = field(default_factory=RobustAverages)
    agreement: Agreement = field(default_factory=Agreement)
    history: History = field(default_factory=History)
    examples_at_last: float = 0.0
    dropped_in_a_row: int = 0

    @property
    def noise(self) -> NoiseScale | None:
        """The averaged noise scale, or None before there is one."""
        # Taken from the last measurement, so that it is computed once for each measured window.
        return self.history[-1].noise if self.averages.sums.windows and self.history else None

    @property
    def many_were_dropped(self) -> bool:
        """Whether enough windows in a row were dropped to suspect the loss."""
        return self.dropped_in_a_row >= MANY_DROPPED

    def compared(self, explained: bool | None) -> tuple[MeasuredWindows, bool]:
        """Add the result of a comparison of `.grad` with the observed gradients.

        Args:
            explained: Whether rounding explains the difference; None if they were not compared.

        Returns:
            A new record, and whether changed gradients were detected: the averages are then empty.
        """
        if explained is None:
            return self, False
        agreement, found_changed = self.agreement.with_result(explained)
        averages = self.averages.cleared() if found_changed else self.averages
        return changed(self, agreement=agreement, averages=averages), found_changed

    def added(self, sums: WindowSums, window: ClosedWindow, *, memory: float) -> MeasuredWindows:
        """Add a window to averages and history, unless it has fewer than two samples or no gradient at all.

        Args:
            sums: The window's sums, over all ranks.
            window: The window at its end, with the exact `examples_seen` if a message has brought it.
            memory: Examples over which a window's weight falls to 1/e; infinite for equal weights.

        Returns:
            A new record, or this one if the window was not added.
        """
        if sums.num_samples < 2 or sums.sum_sq_norms == sums.mean_sq_norm == 0:
            return self
        moments = moments_of(sums)
        since = window.examples_seen - self.examples_at_last
        averages = self.averages.updated(moments, examples_since_last=since, memory=memory)
        was_dropped = averages.dropped > self.averages.dropped
        measurement = Measurement(
            examples_seen=window.examples_seen,
            optimizer_steps=window.optimizer_steps,
            batch_size=window.batch_size,
            accumulate_grad_batches=window.loader_batches,
            window_examples=round(sums.examples),
            trace=moments.trace,
            grad_sq=moments.grad_sq,
            noise=averages.noise_scale(),
            lr=window.lr,
            lr_scale=window.lr_scale,
        )
        history = self.history.added(measurement)
        if len(history) > HISTORY_LIMIT:
            half = HISTORY_LIMIT // 2
            history = History(made for place, made in enumerate(history) if place >= half or place % 2 == 0)
        return changed(
            self,
            averages=averages,
            history=history,
            examples_at_last=float(window.examples_seen),
            dropped_in_a_row=self.dropped_in_a_row + 1 if was_dropped else 0,
        )
