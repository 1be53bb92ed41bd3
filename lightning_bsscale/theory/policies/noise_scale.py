"""Grow towards a share of the noise scale: first the gates in order, then a target."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast, final

from lightning_bsscale.theory.checks import check_integer, check_number, show
from lightning_bsscale.theory.critical_batch_ratio import read_critical_batch_ratio
from lightning_bsscale.theory.numbers import describe_count
from lightning_bsscale.theory.policies.policy import Decision, Limits, Policy, Reason, Situation, noise_bounds
from lightning_bsscale.theory.policies.position import check_position, in_examples, need_budget
from lightning_bsscale.theory.tradeoff import batch_size_for_prices

__all__ = ["NoiseScalePolicy", "most_with_enough_steps"]


def _in_warmup(policy: NoiseScalePolicy, situation: Situation, limits: Limits) -> Reason | None:
    return Reason.IN_WARMUP if situation.examples_seen < situation.warmup_examples else None


def _not_before(policy: NoiseScalePolicy, situation: Situation, limits: Limits) -> Reason | None:
    begins = in_examples(policy.not_before, situation.total_examples)
    return Reason.NOT_BEFORE if situation.examples_seen < begins < math.inf else None


def _few_steps(policy: NoiseScalePolicy, situation: Situation, limits: Limits) -> Reason | None:
    # A batch that may shrink is not stuck either: here, as at the limits, growth alone is held.
    stuck = policy.most_with_enough_steps(situation) < policy.needed(situation.batch_size, limits)
    return Reason.FEW_STEPS if stuck and not policy.allow_shrink else None


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


MEASURED = "measured"


def _checked_price(name: str, value: object) -> float | str | None:
    if value is None or (isinstance(value, str) and value == MEASURED):
        return value
    return check_number(f"{name} ('measured', None, or a price)", value, above=0)


_Gate = Callable[["NoiseScalePolicy", Situation, Limits], "Reason | None"]
_GATES: tuple[_Gate, ...] = (
    _in_warmup,
    _not_before,
    _few_steps,
    _no_estimate,
    _unresolved,
    _cooling_down,
    _at_limit,
    _near_end,
)


def most_with_enough_steps(min_steps: int, total_examples: float | None, examples_seen: float) -> float:
    """Return the largest batch with which a run that grows as early as it may makes at least so many steps.

    Args:
        min_steps: The fewest steps; 0 for no limit.
        total_examples: The budget in examples; None if unknown.
        examples_seen: Examples seen so far.

    Returns:
        N / (2 M u) for at least M steps in a budget of N examples, of which the share u is left; infinite without a
        limit, without a budget, or at its end.

    Example:
        >>> most_with_enough_steps(500, 100_000, 0), most_with_enough_steps(500, 100_000, 75_000)
        (100.0, 400.0)
    """
    if min_steps == 0 or total_examples is None:
        return math.inf
    left = total_examples - examples_seen
    return total_examples**2 / (2 * min_steps * left) if left > 0 else math.inf


@final
@dataclass(frozen=True, kw_only=True)
class NoiseScalePolicy(Policy):
    """Grow towards a share of the noise scale, by its one-sided lower bound.

    The gates are checked first, and the first reason to hold wins: in warmup, before ``not_before``, too few steps, no
    estimate, unresolved, cooling down, at the limit, too near the end. The target is ``target_ratio *
    lower_bound(confidence)``. If it is at least ``hysteresis`` times the current batch size, and at least the next
    possible one, the batch grows to the target, by at most ``max_growth`` at a time.

    The noise scale says how well a batch uses its examples, not how many steps a training needs. So with N examples in
    all, of which the share u is left, the batch grows to at most

        B = N / (2 min_steps u).

    A run that follows this limit from its beginning makes ``min_steps`` steps, and half of them are left at u = 0.7: as
    the learning rate decays, steps are worth less. Growth is late, or none, in a run that makes few steps anyway. This
    form is empirical (docs/front.md measures it); without a budget it does not apply.

    A run looks at the bound many times, and each look may be too high by chance. With ``whole_run`` the probability of
    error, ``1 - confidence``, is divided among the looks that do not share their windows: as many as the averaging
    memory fits into the budget after the warmup (Bonferroni). The confidence then holds for all looks of a run whose
    noise scale stays as it is, at the price of later growth (docs/simulation.md measures both).

    With prices the target is the batch of most progress per price instead: with C that target as the critical batch,
    progress per step is B / (B + C) and its price is ``step_price + example_price * B``, so

        B = sqrt(C * step_price / example_price).

    Without prices there is no such optimum, only a trade-off of steps against examples.

    Source: McCandlish et al. 2018, arXiv 1812.06162 (the noise scale as the batch where an example is worth half, and
    the progress of a step).
    Where it stops being true: the noise scale is the critical batch only up to a task-dependent factor, for which there
    is ``target_ratio``; it says that examples are used well, not that few steps are enough.

    Args:
        target_ratio: Target batch size as a share of the noise scale, above 0; or the path of a JSON file that
            ``python -m lightning_bsscale probe`` wrote, whose ``critical_batch_ratio`` is used.
        confidence: Confidence of the one-sided bound, from 0.5 (the point estimate) to below 1.
        max_growth: Largest ratio of one change, above 1; one more loader batch per rank is always allowed.
        hysteresis: Smallest ratio of target and current batch size for a change, at least 1.
        cooldown: Smallest distance between two changes, and from the last change to the end, as a share of the budget,
            from 0 to below 1; needs a budget unless it is 0.
        allow_shrink: Whether the batch may also shrink (by the upper bound, with the same hysteresis and ratio).
        whole_run: Whether the confidence holds for all looks of a run together, not for each of them. Without a budget,
            or where all windows count alike, there is a single look.
        min_steps: Optimizer steps that a run makes at least if the batch grows as early as it may; 0 for no such limit.
        not_before: No growth before this: a float is a share of the budget, an int a number of examples.
        step_price: Price of an optimizer step beyond its examples: a number, or ``"measured"`` for the seconds that the
            callback measures, which differ from run to run. None for no prices.
        example_price: Price of an example in the same unit: a number, or ``"measured"``. Both prices or none. Ranks
            that compute at the same time share the seconds of an example. While a measured price is unknown, which it
            is with one loader batch per step, the batch grows by one more at most.
    """

    target_ratio: float | str = 1.25
    confidence: float = 0.8
    max_growth: float = 2.0
    hysteresis: float = 1.25
    cooldown: float = 0.01
    allow_shrink: bool = False
    whole_run: bool = False
    min_steps: int = 500
    not_before: int | float = 0
    step_price: float | str | None = None
    example_price: float | str | None = None

    def __post_init__(self) -> None:
        """Check the options, and store them as Python numbers for the journal.

        Raises:
            TypeError: If ``allow_shrink`` or ``whole_run`` is not a bool.
            ValueError: If there is only one price.
        """
        checked = {
            "target_ratio": read_critical_batch_ratio("target_ratio", self.target_ratio),
            "confidence": check_number("confidence", self.confidence, at_least=0.5, below=1),
            "max_growth": check_number("max_growth", self.max_growth, above=1),
            "hysteresis": check_number("hysteresis", self.hysteresis, at_least=1),
            "cooldown": check_number("cooldown", self.cooldown, at_least=0, below=1),
            "min_steps": check_integer("min_steps", self.min_steps, at_least=0),
            "not_before": check_position("not_before", self.not_before),
            "step_price": _checked_price("step_price", self.step_price),
            "example_price": _checked_price("example_price", self.example_price),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        for name in ("allow_shrink", "whole_run"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {show(getattr(self, name))}")
        if (self.step_price is None) != (self.example_price is None):
            raise ValueError(
                "step_price and example_price must both be given, or neither, "
                f"got {show(self.step_price)} and {show(self.example_price)}"
            )

    @classmethod
    def meta(cls) -> NoiseScalePolicy:
        """Return the setting that comes to rest where Meta's rule does, also ``policy="meta"``.

        The rule is the norm test with θ² = 0.36 (see ``NormTest``): its bias makes it come to rest at 1/0.36 − 1 = 1.78
        times the noise scale, by steps of at most 1/0.36. Here that target is reached by the unbiased point estimate,
        and only when that is resolved.

        Source: Naganuma et al. 2026, arXiv 2602.03001, who save 67 % of the steps at 160 million parameters, and report
        failure with AdamW at 1 billion.

        Example:
            >>> round(NoiseScalePolicy.meta().target_ratio, 2)
            1.78
        """
        return cls(target_ratio=1 / 0.36 - 1, confidence=0.5, max_growth=1 / 0.36, min_steps=0)

    @property
    def needs_budget(self) -> bool:
        """Whether an option is a share of the budget; without a budget its gates never hold."""
        return self.cooldown > 0 or need_budget([self.not_before])

    @property
    def needs_clock(self) -> bool:
        """Whether a price is measured."""
        return MEASURED in (self.step_price, self.example_price)

    def decide(self, situation: Situation, limits: Limits) -> Decision:  # noqa: D102
        batch = situation.batch_size
        for gate in _GATES:
            reason = gate(self, situation, limits)
            if reason is not None:
                return self._decision(situation, limits, batch, reason)
        assert situation.noise is not None  # the second gate
        lower, upper = noise_bounds(situation.noise, self._confidence_of_a_look(situation))
        wanted, at_most = (self._target(bound, situation, limits) for bound in (lower, upper))
        if wanted is None or at_most is None:
            return self._decision(situation, limits, batch, Reason.NO_PRICES)
        if wanted >= self.needed(batch, limits):
            most = self.most_with_enough_steps(situation)
            if most < self.needed(batch, limits):
                return self._decision(situation, limits, batch, Reason.FEW_STEPS)
            # max_growth may lie below the next possible batch; holding forever would be worse than exceeding it.
            step = max(self.max_growth * batch, batch + limits.granularity)
            grown = limits.clip(min(wanted, step, most))
            return self._decision(
                situation, limits, max(grown, batch), Reason.GROW if grown > batch else Reason.AT_LIMIT
            )
        if self.allow_shrink and at_most * self.hysteresis <= batch:
            shrunk = limits.clip(max(at_most, batch / self.max_growth))
            if shrunk < batch:
                return self._decision(situation, limits, shrunk, Reason.SHRINK)
        return self._decision(situation, limits, batch, Reason.CLOSE_ENOUGH)

    def _confidence_of_a_look(self, situation: Situation) -> float:
        if not self.whole_run or situation.total_examples is None:
            return self.confidence
        looks = max(1.0, (situation.total_examples - situation.warmup_examples) / situation.memory)
        return 1 - (1 - self.confidence) / looks

    def _target(self, bound: float, situation: Situation, limits: Limits) -> float | None:
        """Return the batch that a bound of the noise scale justifies; None while a price is unknown."""
        critical = cast(float, self.target_ratio) * bound
        if self.step_price is None:
            return critical
        seconds = situation.seconds_per_loader_batch
        # All ranks compute their loader batches at the same time.
        per_example = None if seconds is None else seconds / limits.granularity
        step = situation.seconds_per_step if self.step_price == MEASURED else cast(float, self.step_price)
        example = per_example if self.example_price == MEASURED else cast(float, self.example_price)
        if step is not None and example is not None and example > 0:
            return batch_size_for_prices(critical, step_price=step, example_price=example) if critical > 0 else 0.0
        # Seconds of a loader batch can be told from those of a step only where a window has two loader batches.
        one_more = situation.batch_size + limits.granularity
        return min(critical, one_more) if situation.batch_size <= limits.granularity else None

    def _decision(self, situation: Situation, limits: Limits, batch_size: int, reason: Reason) -> Decision:
        """Return the decision with its numbers; for a hold, those of the test for growth."""
        said = self._sentence(situation, reason)
        if situation.noise is None:
            return Decision(batch_size=batch_size, reason=said, code=reason.code)
        lower, upper = noise_bounds(situation.noise, self._confidence_of_a_look(situation))
        shrinks = reason is Reason.SHRINK
        bound = upper if shrinks else lower
        return Decision(
            batch_size=batch_size,
            reason=said,
            code=reason.code,
            bound=bound,
            confidence=self._confidence_of_a_look(situation),
            target=self._target(bound, situation, limits),
            needed=situation.batch_size / self.hysteresis if shrinks else self.needed(situation.batch_size, limits),
        )

    def most_with_enough_steps(self, situation: Situation) -> float:
        """Return the largest batch that ``min_steps`` allows now, in examples; infinite without a limit or a budget."""
        return most_with_enough_steps(self.min_steps, situation.total_examples, situation.examples_seen)

    def needed(self, batch: int, limits: Limits) -> float:
        """Return the smallest target with which the batch grows; one below the next possible batch changes nothing."""
        return max(self.hysteresis * batch, (batch // limits.granularity + 1) * limits.granularity)

    def _sentence(self, situation: Situation, reason: Reason) -> str:
        """Return the reason, with until when or how far where the record has no other number that says so."""
        total = situation.total_examples
        if reason is Reason.IN_WARMUP:
            return reason.with_number(f"until {describe_count(situation.warmup_examples)}")
        if reason is Reason.NOT_BEFORE:
            return reason.with_number(f"at {describe_count(in_examples(self.not_before, total))}")
        if reason is Reason.FEW_STEPS:
            return reason.with_number(
                f"a batch of at most {describe_count(math.floor(self.most_with_enough_steps(situation)))} now"
            )
        if reason is Reason.COOLING_DOWN and total is not None and situation.examples_at_last_change is not None:
            return reason.with_number(
                f"until {describe_count(situation.examples_at_last_change + self.cooldown * total)}"
            )
        if reason is Reason.AT_LIMIT:
            return reason.with_number(describe_count(situation.batch_size))
        if reason is Reason.NEAR_END and total is not None:
            return reason.with_number(f"at {describe_count(total)}")
        return str(reason)
