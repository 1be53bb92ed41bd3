"""Grow towards a share of the noise scale: first the gates in order, then a target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import final

from lightning_bsscale.theory.checks import check_number, show
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.policies.policy import Decision, Limits, Policy, Reason, Situation

__all__ = ["NoiseScalePolicy"]


def _in_warmup(policy: NoiseScalePolicy, situation: Situation, limits: Limits) -> Reason | None:
    return Reason.IN_WARMUP if situation.examples_seen < situation.warmup_examples else None


def _no_estimate(policy: NoiseScalePolicy, situation: Situation, limits: Limits) -> Reason | None:
    return Reason.NO_ESTIMATE if situation.noise is None else None


def _unresolved(policy: NoiseScalePolicy, situation: Situation, limits: Limits) -> Reason | None:
    return Reason.UNRESOLVED if situation.noise is not None and not situation.noise.resolved else None


def _cooling_down(policy: NoiseScalePolicy, situation: Situation, limits: Limits) -> Reason | None:
    if situation.examples_at_last_change is None or situation.total_examples is None:
        return None
    waited = situation.examples_seen - situation.examples_at_last_change
    return Reason.COOLING_DOWN if waited < policy.cooldown * situation.total_examples else None


def _at_limit(policy: NoiseScalePolicy, situation: Situation, limits: Limits) -> Reason | None:
    # A batch that may shrink is not stuck at the top.
    stuck = not policy.allow_shrink and limits.clip(float("inf")) <= situation.batch_size
    return Reason.AT_LIMIT if stuck else None


def _near_end(policy: NoiseScalePolicy, situation: Situation, limits: Limits) -> Reason | None:
    if situation.total_examples is None:
        return None
    remaining = situation.total_examples - situation.examples_seen
    return Reason.NEAR_END if remaining < policy.cooldown * situation.total_examples else None


@lru_cache(maxsize=8)
def _bounds(noise: NoiseScale, confidence: float) -> tuple[float, float]:
    # A policy decides at every step, but the estimate changes only after a measured window.
    return noise.lower_bound(confidence), noise.upper_bound(confidence)


_Gate = Callable[["NoiseScalePolicy", Situation, Limits], "Reason | None"]
_GATES: tuple[_Gate, ...] = (_in_warmup, _no_estimate, _unresolved, _cooling_down, _at_limit, _near_end)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseScalePolicy(Policy):
    """Grow towards a share of the noise scale, by its one-sided lower bound.

    The gates are checked first, and the first reason to hold wins: in warmup, no estimate, unresolved, cooling down, at
    the limit, too near the end. The target is ``target_ratio * lower_bound(confidence)``. If it is at least
    ``hysteresis`` times the current batch size, the batch grows to the target, by at most ``max_growth`` at a time.

    A run looks at the bound many times, and each look may be too high by chance. With ``whole_run`` the probability of
    error, ``1 - confidence``, is divided among the looks that do not share their windows: as many as the averaging
    memory fits into the budget after the warmup (Bonferroni). The confidence then holds for all looks of a run whose
    noise scale stays as it is, at the price of later growth (docs/simulation.md measures both).

    Source: McCandlish et al. 2018, arXiv 1812.06162 (the noise scale as the batch where an example is worth half).
    Where it stops being true: the noise scale is the critical batch only up to a task-dependent factor, for which there
    is ``target_ratio``; it says that examples are used well, not that few steps are enough.

    Args:
        target_ratio: Target batch size as a share of the noise scale, above 0.
        confidence: Confidence of the one-sided bound, from 0.5 (the point estimate) to below 1.
        max_growth: Largest ratio of one change, above 1; one more loader batch per rank is always allowed.
        hysteresis: Smallest ratio of target and current batch size for a change, at least 1.
        cooldown: Smallest distance between two changes, and from the last change to the end, as a share of the budget,
            from 0 to below 1; needs a budget unless it is 0.
        allow_shrink: Whether the batch may also shrink (by the upper bound, with the same hysteresis and ratio).
        whole_run: Whether the confidence holds for all looks of a run together, not for each of them. Without a budget,
            or where all windows count alike, there is a single look.
    """

    target_ratio: float = 1.0
    confidence: float = 0.9
    max_growth: float = 2.0
    hysteresis: float = 1.25
    cooldown: float = 0.01
    allow_shrink: bool = False
    whole_run: bool = False

    def __post_init__(self) -> None:
        """Check the options, and store them as Python numbers for the journal.

        Raises:
            TypeError: If ``allow_shrink`` or ``whole_run`` is not a bool.
        """
        checked = {
            "target_ratio": check_number("target_ratio", self.target_ratio, above=0),
            "confidence": check_number("confidence", self.confidence, at_least=0.5, below=1),
            "max_growth": check_number("max_growth", self.max_growth, above=1),
            "hysteresis": check_number("hysteresis", self.hysteresis, at_least=1),
            "cooldown": check_number("cooldown", self.cooldown, at_least=0, below=1),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        for name in ("allow_shrink", "whole_run"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {show(getattr(self, name))}")

    @property
    def needs_budget(self) -> bool:
        """Whether ``cooldown``, a share of the budget, is above 0; without a budget its gates never hold."""
        return self.cooldown > 0

    def decide(self, situation: Situation, limits: Limits) -> Decision:  # noqa: D102
        batch = situation.batch_size
        for gate in _GATES:
            reason = gate(self, situation, limits)
            if reason is not None:
                return self._decision(situation, batch, reason)
        assert situation.noise is not None  # the second gate
        lower, upper = _bounds(situation.noise, self._confidence_of_a_look(situation))
        wanted = self.target_ratio * lower
        if wanted >= self.hysteresis * batch:
            # max_growth may lie below the next possible batch; holding forever would be worse than exceeding it.
            step = max(self.max_growth * batch, batch + limits.granularity)
            grown = limits.clip(min(wanted, step))
            return self._decision(situation, max(grown, batch), Reason.GROW if grown > batch else Reason.AT_LIMIT)
        at_most = self.target_ratio * upper
        if self.allow_shrink and at_most * self.hysteresis <= batch:
            shrunk = limits.clip(max(at_most, batch / self.max_growth))
            if shrunk < batch:
                return self._decision(situation, shrunk, Reason.SHRINK)
        return self._decision(situation, batch, Reason.CLOSE_ENOUGH)

    def _confidence_of_a_look(self, situation: Situation) -> float:
        if not self.whole_run or situation.total_examples is None:
            return self.confidence
        looks = max(1.0, (situation.total_examples - situation.warmup_examples) / situation.memory)
        return 1 - (1 - self.confidence) / looks

    def _decision(self, situation: Situation, batch_size: int, reason: Reason) -> Decision:
        """Return the decision with its numbers; for a hold, those of the test for growth."""
        if situation.noise is None:
            return Decision(batch_size=batch_size, reason=reason.value, code=reason.code)
        lower, upper = _bounds(situation.noise, self._confidence_of_a_look(situation))
        shrinks = reason is Reason.SHRINK
        bound = upper if shrinks else lower
        return Decision(
            batch_size=batch_size,
            reason=reason.value,
            code=reason.code,
            bound=bound,
            confidence=self._confidence_of_a_look(situation),
            target=self.target_ratio * bound,
            needed=situation.batch_size / self.hysteresis if shrinks else self.hysteresis * situation.batch_size,
        )
