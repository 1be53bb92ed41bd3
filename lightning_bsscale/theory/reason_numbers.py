"""Reasons to hold the batch as small numbers, for loggers that draw numbers only."""

from __future__ import annotations

from lightning_bsscale.theory.policies import Reason
from lightning_bsscale.theory.records import DecisionRecord

__all__ = ["CHANGED", "OF_A_POLICY", "REASON_NUMBERS", "reason_number"]

CHANGED = 0
"""The batch changed, so nothing was held."""
OF_A_POLICY = 1
"""A hold with a code that is not in the table: one of a user-defined policy."""

REASON_NUMBERS: dict[str, int] = {
    Reason.GROW.code: CHANGED,
    Reason.SHRINK.code: CHANGED,
    Reason.IN_WARMUP.code: 2,
    Reason.NOT_BEFORE.code: 3,
    Reason.NO_ESTIMATE.code: 4,
    Reason.UNRESOLVED.code: 5,
    Reason.COOLING_DOWN.code: 6,
    Reason.AT_LIMIT.code: 7,
    Reason.NEAR_END.code: 8,
    Reason.NO_PRICES.code: 9,
    Reason.CLOSE_ENOUGH.code: 10,
    "milestone": 11,
    "no_cut_due": 12,
    "above_noise_scale": 13,
    "test_passed": 14,
    "awaits_metric": 15,
    "behind_trend": 16,
    "no_decision": 17,
    Reason.FEW_STEPS.code: 18,
}
"""The number of each code of the package's policies. A number is never given to another code: logs are compared."""


def reason_number(record: DecisionRecord | None) -> int:
    """Return the number of a decision's reason.

    Args:
        record: The decision; None where the policy was not asked, which is so in the warmup.

    Returns:
        A number of :data:`REASON_NUMBERS`; :data:`CHANGED` for any change, and :data:`OF_A_POLICY` for a hold whose
        code is not in the table.
    """
    if record is None:
        return REASON_NUMBERS[Reason.IN_WARMUP.code]
    if record.is_change:
        return CHANGED
    # A policy may ask for a batch that the limits do not allow: then it is held, whatever the code.
    number = REASON_NUMBERS.get(record.decision.code or "", OF_A_POLICY)
    return OF_A_POLICY if number == CHANGED else number
