"""The records that pass between folders: a window's sums, a measured window, a decision, and the log of decisions."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.moments import WindowSums
from lightning_bsscale.theory.policies import Decision, Limits, Situation

__all__ = ["DecisionLog", "DecisionRecord", "Measurement", "WindowSums"]

CHANGES_LIMIT = 1024
HOLDS_LIMIT = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One measured window and the estimate after it.

    Attributes:
        examples_seen: examples of all windows up to and including this one
        optimizer_steps: optimizer steps up to and including this one
        batch_size: the current batch size, in examples (an epoch's last window may have another size);
            in a dry run, the hypothetical one
        accumulate_grad_batches: loader batches of this window on one device
        window_examples: examples of this window
        trace: this window's estimate of tr Σ, gradient units squared; nan where the window was dropped
        grad_sq: this window's estimate of ‖G‖², gradient units squared; may be negative
        noise: the averaged estimate after this window, or None
        lr: the learning rate of this step, factor included (first parameter group)
        lr_scale: the factor applied in this step; 1 in a dry run
    """

    examples_seen: int
    optimizer_steps: int
    batch_size: int
    accumulate_grad_batches: int
    window_examples: int
    trace: float
    grad_sq: float
    noise: NoiseScale | None
    lr: float
    lr_scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRecord:
    """One decision of the policy with its inputs and its effect.

    Attributes:
        situation: the policy's input
        limits: the policy's other input
        decision: what the policy returned
        batch_size: the batch from the next window on, in examples: the requested one, rounded and within the limits
        lr_scale: the factor on the learning rate from the next window on
        lr_rule: the rule that changed the factor, with its fallback if it needed a resolved noise scale and had none
    """

    situation: Situation
    limits: Limits
    decision: Decision
    batch_size: int
    lr_scale: float
    lr_rule: str

    @property
    def is_change(self) -> bool:
        """Whether the batch changed."""
        return self.batch_size != self.situation.batch_size

    @property
    def is_shrink(self) -> bool:
        """Whether a smaller batch was requested, so that `decision.bound` is an upper bound."""
        return self.decision.batch_size < self.situation.batch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionLog:
    """Changes of the batch, and the first of each run of holds with the same code.

    Attributes:
        records: The decisions that are kept, in order. Beyond each limit every second change (or hold) of the older
            half is dropped, so the first and the latest are always kept, and the record covers the whole run.
        changes: Number of all changes.
        holds: Number of all runs of holds.
        kept_changes: Number of changes in `records`.
    """

    records: tuple[DecisionRecord, ...] = ()
    changes: int = 0
    holds: int = 0
    kept_changes: int = 0

    def continues(self, record: DecisionRecord) -> bool:
        """Return whether a decision only continues the current run of holds, and need not be kept."""
        last = self.records[-1] if self.records else None
        return (
            last is not None
            and not record.is_change
            and not last.is_change
            and last.decision.code == record.decision.code
        )

    def added(self, record: DecisionRecord) -> DecisionLog:
        """Return a log with one more decision, one that does not only continue a run of holds."""
        records, is_change = (*self.records, record), record.is_change
        changes = self.kept_changes + is_change
        kept, limit = (changes, CHANGES_LIMIT) if is_change else (len(records) - changes, HOLDS_LIMIT)
        if kept > limit:
            places = [place for place, kept in enumerate(records) if kept.is_change is is_change]
            dropped = set(places[: len(places) // 2][1::2])
            records = tuple(kept for place, kept in enumerate(records) if place not in dropped)
            changes -= len(dropped) if is_change else 0
        return DecisionLog(
            records=records,
            changes=self.changes + is_change,
            holds=self.holds + (not is_change),
            kept_changes=changes,
        )
