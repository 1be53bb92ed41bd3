"""The current batch size and the factor that goes with it: asks the policy, checks its answer, applies the rule."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lightning_bsscale.theory.checks import found
from lightning_bsscale.theory.decision_log import DecisionLog
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.policies import Decision, Limits, Situation, hold_without_decision, recorded_decision
from lightning_bsscale.theory.records import DecisionRecord
from lightning_bsscale.theory.rules import LearningRateRule, RatePath, uses_fallback
from lightning_bsscale.theory.stored import as_plain, from_plain


class BatchControl:
    """Batch, factor, and every change of them."""

    def __init__(self, *, policy: Any, rule: LearningRateRule, limits: Limits, batch_size: int) -> None:
        """Begins with the user's own batch and a factor of one.

        Args:
            policy: what decides
            rule: how the rate follows the batch
            limits: between which the batch may move
            batch_size: the start, in examples
        """
        self.limits = limits
        self.batch_size = batch_size
        self.start_batch_size = batch_size
        self.examples_at_last_change: float | None = None
        self.log = DecisionLog()
        self._policy = policy
        self._rule = rule
        self._path = RatePath()
        self._complained = False

    @property
    def lr_scale(self) -> float:
        """The factor on the rate that goes with the batch in force."""
        return self._path.factor(self._rule)

    def window_factor(self, window_examples: int, noise: NoiseScale | None) -> float:
        """The factor for one window of another size than the batch in force: a probe, or a short last one.

        A short window gets the factor of its own size, by the same rule. It is never below the user's own rate, though:
        the user's plan has short last windows too, and takes them at the full rate.

        Args:
            window_examples: its examples
            noise: the noise scale now

        Returns:
            the factor
        """
        factor = self._path.factor_at(self._rule, self.batch_size, window_examples, noise)
        return factor if window_examples > self.batch_size else min(self.lr_scale, max(1.0, factor))

    def _checked(self, answer: Any, situation: Situation) -> Decision:
        # A policy may be the user's own: an answer that is no decision holds, and is named once.
        decision = recorded_decision(answer, situation)
        if decision is not None:
            return decision
        if not self._complained:
            self._complained = True
            rank_zero_warn(
                f"{type(self._policy).__name__}.decide answered {found(answer)}; a Decision with a finite positive "
                "batch_size is needed. The batch is held; this is said once.",
                category=UserWarning,
            )
        return hold_without_decision(situation)

    def ask(self, situation: Situation) -> DecisionRecord | None:
        """Asks the policy at the end of a window and applies its answer to batch and factor.

        Args:
            situation: what is known

        Returns:
            the record of a change, or of the first of a run of holds with one code; None for the rest of the run
        """
        decision = self._checked(self._policy.decide(situation, self.limits), situation)
        old, noise = self.batch_size, situation.noise
        new = old if decision.batch_size == old else self.limits.clip(decision.batch_size)
        rule = self._rule.name
        if new != old:
            if uses_fallback(self._rule, noise):
                rule = f"sqrt, as {rule} needs a resolved noise scale"
            self._path = self._path.grown(self._rule, old, new, noise)
            self.batch_size = new
            self.examples_at_last_change = situation.examples_seen
        record = DecisionRecord(
            situation=situation,
            limits=self.limits,
            decision=decision,
            batch_size=new,
            lr_scale=self.lr_scale,
            lr_rule=rule,
        )
        return record if self.log.add(record) else None

    def use_rule(self, rule: LearningRateRule, noise: NoiseScale | None) -> None:
        """Go over to another rule, where the optimizer is another: its learning rate is meant for the first batch.

        Args:
            rule: how the learning rate follows the batch from now on; one of the same name changes nothing
            noise: the noise scale now
        """
        if rule.name != self._rule.name:
            self._rule = rule
            self._path = RatePath()
            if self.batch_size != self.start_batch_size:
                self._path = self._path.grown(rule, self.start_batch_size, self.batch_size, noise)

    def fit_limits(self, noise: NoiseScale | None) -> None:
        """Takes the nearest possible batch, where another start has made the one in force impossible.

        Args:
            noise: the noise scale now
        """
        step = self.limits.granularity
        nearest = self.limits.clip((self.batch_size + step / 2) // step * step)
        if nearest != self.batch_size:
            self._path = self._path.grown(self._rule, self.batch_size, nearest, noise)
            self.batch_size = nearest

    def state(self) -> dict[str, Any]:
        """What cannot be recomputed.

        Returns:
            numbers, strings, lists and dicts; a policy's own, where it has `state_dict`
        """
        own = getattr(self._policy, "state_dict", None)
        return {
            "policy": own() if callable(own) else None,
            "policy_class": type(self._policy).__qualname__,
            "batch_size": self.batch_size,
            "start_batch_size": self.start_batch_size,
            "examples_at_last_change": self.examples_at_last_change,
            "path": as_plain(self._path),
            "lr_scale": self.lr_scale,  # for whoever reads the state; the path and the rule make it anew
            "decisions": self.log.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes up where `state` left off.

        Args:
            state: what `state` gave
        """
        of_this = state["policy_class"] == type(self._policy).__qualname__
        if of_this and state["policy"] is not None and callable(getattr(self._policy, "load_state_dict", None)):
            self._policy.load_state_dict(state["policy"])
        self.batch_size = state["batch_size"]
        self.start_batch_size = state["start_batch_size"]
        self.examples_at_last_change = state["examples_at_last_change"]
        self._path = from_plain(RatePath, state["path"])
        self.log = DecisionLog.from_state(state["decisions"])
