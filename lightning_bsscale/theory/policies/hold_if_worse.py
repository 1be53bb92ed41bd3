"""Stop growing where a watched metric falls behind its own trend."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

from lightning_bsscale.theory.checks import check_number, join_names, show
from lightning_bsscale.theory.numbers import describe_count, describe_number
from lightning_bsscale.theory.policies.policy import Decision, Limits, MetricValue, Policy, Situation, recorded_decision
from lightning_bsscale.theory.policies.wrapper import PolicyOfPolicies, check_policy

__all__ = ["HoldIfWorse"]

SPREADS = 2.0
"""Standard deviations around the trend that count as no difference."""
TO_NORMAL = 1.4826  # of a median deviation to a standard deviation, of normal values


@final
@dataclass(frozen=True)
class HoldIfWorse(PolicyOfPolicies):
    """Ask a policy, but hold while a metric is behind its trend: ``HoldIfWorse(Seesaw(), monitor="val_loss")``.

    The trend is a straight line against the logarithm of the examples, by the median slope (Theil and Sen) of the last
    values (at most eight) up to the last change of the batch size; with fewer than three it is level, at the last one.
    The latest value since then is *behind* if it is worse than the trend by more than ``tolerance`` (a share of the
    trend's value) and by more than two standard deviations of the values around their line. Until there is a value
    since the change, the batch is held too, so each growth is judged before the next. The batch never shrinks for this,
    and a metric that returns to its trend lets it grow again.

    The metric is read where validation ends, or at the epoch's end if it is not there by then: the mean over the ranks
    that logged it. It is recorded with the run, so resumed and replayed runs hold alike.

    Source: none is published. Where it stops being true: where a metric falls faster than its trend for another reason
    at the same time (a learning rate that decays), what growth costs may not show; where it levels off by itself,
    growth is blamed.

    Args:
        policy: The policy that is asked.
        monitor: Name of the metric, as in ``self.log``.
        mode: ``"min"`` where smaller is better, else ``"max"``.
        tolerance: Smallest difference from the trend that counts, as a share of the trend's value, at least 0.
    """

    policy: Policy
    monitor: str = "val_loss"
    mode: str = "min"
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            TypeError: If the metric's name is not a string.
            ValueError: If the mode is unknown.
        """
        check_policy("policy", self.policy)
        monitor: object = self.monitor
        if not isinstance(monitor, str) or not monitor:
            raise TypeError(f"monitor must be the name of a logged metric, got {show(monitor)}")
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode must be one of {join_names(['min', 'max'])}, got {show(self.mode)}")
        object.__setattr__(self, "tolerance", check_number("tolerance", self.tolerance, at_least=0))

    @property
    def asked(self) -> tuple[Any, ...]:
        """The policy."""
        return (self.policy,)

    @property
    def monitors(self) -> tuple[str, ...]:
        """This metric, and those of the policy that is asked."""
        return tuple(dict.fromkeys((self.monitor, *getattr(self.policy, "monitors", ()))))

    def decide(self, situation: Situation, limits: Limits) -> Decision:  # noqa: D102
        answer, changed_at = self.policy.decide(situation, limits), situation.examples_at_last_change
        decision = recorded_decision(answer, situation)
        if decision is None or decision.batch_size <= situation.batch_size or changed_at is None:
            return answer
        values = [one for one in situation.metrics if one.name == self.monitor]
        before = [one for one in values if one.examples_seen <= changed_at]
        since = [one for one in values if one.examples_seen > changed_at]
        reason, code = self._against(before, since, changed_at)
        if code is None:
            return answer
        return replace(decision, batch_size=situation.batch_size, reason=reason, code=code)

    def _against(
        self, before: Sequence[MetricValue], since: Sequence[MetricValue], changed_at: float
    ) -> tuple[str, str | None]:
        at = f"the change of the batch at {describe_count(changed_at)}"
        if not since:
            return f"hold: {self.monitor} has not been logged since {at}", "awaits_metric"
        latest = since[-1]
        if not math.isfinite(latest.value):
            return f"hold: {self.monitor} is {latest.value}", "behind_trend"
        usable = [one for one in before if math.isfinite(one.value) and one.examples_seen > 0]
        if not usable:
            return "", None
        trend = _trend(usable, latest.examples_seen)
        worse = (latest.value - trend.value) * (1 if self.mode == "min" else -1)
        if worse <= max(self.tolerance * abs(trend.value), SPREADS * trend.deviation):
            return "", None
        value, expected = describe_number(latest.value, 4), describe_number(trend.value, 4)
        reason = f"hold: {self.monitor} is {value}, behind its trend of {expected} before {at}"
        return reason, "behind_trend"


class _Trend(NamedTuple):
    value: float
    deviation: float


def _trend(values: Sequence[MetricValue], at: float) -> _Trend:
    """Return a trend's value after so many examples, and the deviation of single values from its line."""
    if len(values) < 3:
        return _Trend(values[-1].value, 0.0)
    points = [(math.log(one.examples_seen), one.value) for one in values]
    # Medians, so that a few bad values before a recovery do not make the trend steep.
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in itertools.combinations(points, 2) if x2 > x1]
    slope = statistics.median(slopes) if slopes else 0.0
    level = statistics.median(y - slope * x for x, y in points)
    deviation = statistics.median(abs(y - slope * x - level) for x, y in points)
    return _Trend(level + slope * math.log(at), TO_NORMAL * deviation)
