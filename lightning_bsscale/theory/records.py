"""What passes between folders: a window's sums, a measured window, and a decision with everything it was taken by."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.moments import WindowSums
from lightning_bsscale.theory.policies import Decision, Limits, Situation

__all__ = ["DecisionRecord", "Measurement", "WindowSums"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One measured window and what was known after it.

    Attributes:
        examples_seen: examples of all windows up to and including this one
        optimizer_steps: optimizer steps up to and including this one
        batch_size: the current batch size, in examples (a probe or an epoch's last window has another size);
            in a dry run, the one that would be
        accumulate_grad_batches: micro-batches of this window on one device
        window_examples: examples of this window
        trace: this window's estimate of tr Σ, gradient units squared; nan where the window was dropped
        grad_sq: this window's estimate of ‖G‖², gradient units squared; may be negative
        noise: the averaged estimate after this window, or None
        lr: the learning rate that this step was made with (first parameter group)
        lr_scale: the factor on it in this step, as it was applied; 1 in a dry run
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
    lr_scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRecord:
    """One answer of the policy, with everything it was asked with and what was made of it.

    Attributes:
        situation: the policy's input
        limits: the policy's other input
        decision: the policy's answer
        batch_size: the batch from the next window on, in examples: the answer, rounded and within the limits
        lr_scale: the factor on the rate from the next window on
        lr_rule: the rule that changed the factor; one that had no resolved noise scale to work with names its stand-in
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
        """Whether a smaller batch was asked for, so that `decision.bound` is an upper one."""
        return self.decision.batch_size < self.situation.batch_size
