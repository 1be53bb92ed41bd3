"""Policy, rule and path: from the situation at a window's end to the next batch size and learning-rate factor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.frozen import changed
from lightning_bsscale.theory.policies import Limits, Situation, hold_without_decision, recorded_decision
from lightning_bsscale.theory.records import DecisionRecord
from lightning_bsscale.theory.rules import FactorPath, LearningRateRule, uses_fallback

__all__ = ["BatchState", "Decided"]


class Decided(NamedTuple):
    """The outcome of asking a policy.

    Attributes:
        batch: The batch from the next window on.
        record: The decision with all its inputs.
        is_valid: Whether the policy returned a valid decision; otherwise the batch is held.
        answer: What the policy returned.
    """

    batch: BatchState
    record: DecisionRecord
    is_valid: bool
    answer: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchState:
    """The current batch size, and the learning-rate factor that goes with it.

    Attributes:
        batch_size: The current batch size, in examples.
        start_batch_size: The batch size of the first start, in examples.
        examples_at_last_change: Examples seen when the batch last changed, or None.
        path: Product of the rule's ratios over the changes so far.
        lr_scale: The factor that follows from the path, after any ceiling.
    """

    batch_size: int
    start_batch_size: int
    examples_at_last_change: float | None = None
    path: FactorPath = field(default_factory=FactorPath)
    lr_scale: float = 1.0

    @classmethod
    def begin(cls, batch_size: int, rule: LearningRateRule) -> BatchState:
        """Begin at the user's batch size, in examples, with the factor of an empty path."""
        return cls(batch_size=batch_size, start_batch_size=batch_size, lr_scale=FactorPath().factor(rule))

    def decided(self, situation: Situation, *, policy: Any, rule: LearningRateRule, limits: Limits) -> Decided:
        """Ask the policy, check its answer, round it, clip it to the limits, and apply the rule.

        Args:
            situation: The state of training at the window's end.
            policy: Any object with `decide(situation, limits)`.
            rule: How the learning rate follows the batch.
            limits: The possible batch sizes.

        Returns:
            The next batch and the record of the decision.
        """
        answer = policy.decide(situation, limits)
        checked = recorded_decision(answer, situation)
        decision = hold_without_decision(situation) if checked is None else checked
        old, noise = self.batch_size, situation.noise
        new = old if decision.batch_size == old else limits.clip(decision.batch_size)
        batch, rule_name = self, rule.name
        if new != old:
            if uses_fallback(rule, noise):
                rule_name = f"sqrt, as {rule_name} needs a resolved noise scale"
            batch = changed(self._moved(new, rule, noise), examples_at_last_change=situation.examples_seen)
        record = DecisionRecord(
            situation=situation,
            limits=limits,
            decision=decision,
            batch_size=new,
            lr_scale=batch.lr_scale,
            lr_rule=rule_name,
        )
        return Decided(batch, record, checked is not None, answer)

    def window_factor(self, window_examples: int, rule: LearningRateRule, noise: NoiseScale | None) -> float:
        """Compute the factor for one window whose size differs from the current batch size.

        A short last window gets the factor for its size by the same rule. It never gets less than the user's learning
        rate: the user's plan has short last windows too, at the full learning rate.

        Args:
            window_examples: Examples of the window.
            rule: How the learning rate follows the batch.
            noise: The current noise scale, or None.

        Returns:
            The factor.
        """
        factor = self.path.factor_at(rule, self.batch_size, window_examples, noise)
        return factor if window_examples > self.batch_size else min(self.lr_scale, max(1.0, factor))

    def ratio(self, window_examples: int | None = None) -> float:
        """Compute the current batch size, or that of one window of another size, over the first one.

        A short last window of a batch that grew counts by its own size, but never as less than the first batch: the
        user's plan has short last windows too.

        Args:
            window_examples: Examples of the window; None for the current batch size.

        Returns:
            The ratio.
        """
        current = self.batch_size / self.start_batch_size
        if window_examples is None or window_examples == self.batch_size:
            return current
        ratio = window_examples / self.start_batch_size
        return ratio if window_examples > self.batch_size else min(current, max(1.0, ratio))

    def with_rule(self, rule: LearningRateRule, noise: NoiseScale | None) -> BatchState:
        """Change to another rule, and take the learning rate to be that of the first batch size.

        Args:
            rule: How the learning rate follows the batch from now on.
            noise: The current noise scale, or None.

        Returns:
            A new record with the same batch size.
        """
        begun = changed(self, batch_size=self.start_batch_size, path=FactorPath(), lr_scale=FactorPath().factor(rule))
        return begun if self.batch_size == self.start_batch_size else begun._moved(self.batch_size, rule, noise)

    def fitted(self, limits: Limits, rule: LearningRateRule, noise: NoiseScale | None) -> BatchState:
        """Move to the nearest possible batch size, where a new start made the current one impossible.

        Args:
            limits: The limits of this start.
            rule: How the learning rate follows the batch.
            noise: The current noise scale, or None.

        Returns:
            A new record, or this one with the factor of this rule.
        """
        step = limits.granularity
        nearest = limits.clip((self.batch_size + step / 2) // step * step)
        if nearest != self.batch_size:
            return self._moved(nearest, rule, noise)
        return changed(self, lr_scale=self.path.factor(rule))

    def _moved(self, batch_size: int, rule: LearningRateRule, noise: NoiseScale | None) -> BatchState:
        path = self.path.extended(rule, self.batch_size, batch_size, noise)
        return changed(self, batch_size=batch_size, path=path, lr_scale=path.factor(rule))
