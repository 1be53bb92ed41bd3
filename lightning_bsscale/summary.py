"""Decisions in readable form: the summary table, and the parts of a log line."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.numbers import describe_count, describe_number
from lightning_bsscale.theory.policies import Reason
from lightning_bsscale.theory.records import DecisionRecord

TABLE_WIDTH = 100
MIN_REASON_WIDTH = 20

# A table shows the numbers beside the reason, so that a few words are enough; records and log lines have the sentence.
SHORT = {
    Reason.IN_WARMUP: "in warmup",
    Reason.NOT_BEFORE: "before not_before",
    Reason.FEW_STEPS: "too few steps left",
    Reason.NO_ESTIMATE: "no estimate yet",
    Reason.UNRESOLVED: "not resolved",
    Reason.COOLING_DOWN: "cooling down",
    Reason.AT_LIMIT: "at the limit",
    Reason.NEAR_END: "too near the end",
    Reason.NO_PRICES: "seconds not measured yet",
    Reason.CLOSE_ENOUGH: "below needed",
    Reason.GROW: "grow",
    Reason.SHRINK: "shrink",
}
_BY_CODE = {reason.code: reason for reason in Reason}


def describe_noise(noise: NoiseScale | None) -> str:
    """Format a noise scale: ``"123 [80.1, 210]"`` in the run's unit, or ``"unknown"``."""
    if noise is None:
        return "unknown"
    return f"{describe_count(noise.noise_scale)} [{describe_count(noise.low)}, {describe_count(noise.high)}]"


def _compared(target: float | None, needed: float | None) -> tuple[str, str]:
    """Format target and needed number with enough digits to see which is larger."""
    if target is None or needed is None:
        return tuple("-" if one is None else describe_count(one) for one in (target, needed))  # type: ignore[return-value]
    short = describe_count(target), describe_count(needed)
    if short[0] != short[1] or target == needed:
        return short
    digits = 3
    while digits < 17 and describe_number(target, digits) == describe_number(needed, digits):
        digits += 1
    return describe_number(target, digits), describe_number(needed, digits)


def describe_grounds(record: DecisionRecord) -> str:
    """Format the numbers behind a decision.

    Args:
        record: the decision

    Returns:
        ``"lower bound (90 %) 34.1 x 0.5 = target 17.1, needed at least 16"``, without the numbers that the policy left
        out.
    """
    decision, side = record.decision, "upper" if record.is_shrink else "lower"
    target, needed = _compared(decision.target, decision.needed)
    parts = []
    if decision.bound is not None:
        share = "" if decision.confidence is None else f" ({100 * decision.confidence:.3g} %)"
        parts.append(f"{side} bound{share} {describe_count(decision.bound)}")
        if decision.target is not None and 0 < decision.bound < math.inf:
            parts[0] += f" x {describe_number(decision.target / decision.bound)} = target {target}"
    if decision.target is not None and " = " not in "".join(parts):
        parts.append(f"target {target}")
    if decision.needed is not None:
        parts.append(f"needed at {'most' if record.is_shrink else 'least'} {needed}")
    return ", ".join(parts)


def describe_reason(record: DecisionRecord) -> str:
    """Return a decision's reason, with the requested batch size if the limits or the loader batch changed it."""
    return record.decision.reason + _requested(record)


def _requested(record: DecisionRecord) -> str:
    requested = record.decision.batch_size
    return "" if requested == record.batch_size else f" (requested {describe_count(requested)})"


def _stretches(decisions: Sequence[DecisionRecord]) -> list[list[DecisionRecord]]:
    """Return each change on its own, and the holds between two changes together."""
    stretches: list[list[DecisionRecord]] = []
    for record in decisions:
        if record.is_change or not stretches or stretches[-1][-1].is_change:
            stretches.append([])
        stretches[-1].append(record)
    return stretches


def _reasons(stretch: Sequence[DecisionRecord]) -> str:
    """Return the reason of a change, or the different ones of a stretch of holds, each once."""
    last = stretch[-1]
    if last.is_change:
        return f"{_short(last)}{_requested(last)}"
    short = {record.decision.code: _short(record) for record in stretch}
    if len(short) > 1:
        short.pop(Reason.COOLING_DOWN.code, None)  # it follows every change, and says nothing beside another reason
    text = ", ".join(one.removeprefix("hold: ") for one in short.values())
    is_hold = len(short) > 1 or text != last.decision.reason
    return f"{'hold: ' if is_hold else ''}{text}{_requested(last)}"


def _short(record: DecisionRecord) -> str:
    """Return the reason of one decision, one of the package's own shortened to a few words and its number."""
    text, reason = record.decision.reason, _BY_CODE.get(record.decision.code or "")
    if reason is None or not text.startswith(reason.value):
        return text
    return SHORT[reason] + text.removeprefix(reason.value)


def _row(stretch: Sequence[DecisionRecord], *, has_target: bool) -> tuple[str, ...]:
    # A stretch of holds begins at its first record, and shows the numbers of its last.
    first, record = stretch[0], stretch[-1]
    decision = record.decision
    old, new = describe_count(record.situation.batch_size), describe_count(record.batch_size)
    target, needed = _compared(decision.target, decision.needed)
    bound = "-" if decision.bound is None else describe_count(decision.bound)
    if decision.bound is not None and decision.bound == decision.target:
        bound = target
    return (
        describe_count(first.situation.examples_seen),
        describe_count(first.situation.optimizer_steps),
        f"{old} -> {new}" if record.is_change else old,
        describe_number(record.lr_scale),
        describe_noise(record.situation.noise),
        f"{bound}{' (upper)' if record.is_shrink and decision.bound is not None else ''}",
        *([target] if has_target else []),
        needed if decision.needed is None else f"{'<=' if record.is_shrink else '>='} {needed}",
        _reasons(stretch),
    )


def summary_table(
    decisions: Sequence[DecisionRecord],
    *,
    changes: int | None = None,
    holds: int | None = None,
    unit: str = "examples",
) -> str:
    """Format decisions as an aligned table of 100 columns: a line for each change, and one for the holds in between.

    Args:
        decisions: the records, in order
        changes: number of all changes, if `decisions` may be thinned
        holds: number of all runs of holds
        unit: what the run counts

    Returns:
        The table, with a last line if there were more records than these. The target has a column of its own only
        where it is not the bound itself.
    """
    confidences = {record.decision.confidence for record in decisions if record.decision.bound is not None}
    shared = confidences.pop() if len(confidences) == 1 else None
    has_target = any(record.decision.target != record.decision.bound for record in decisions)
    target = ["target"] if has_target else []
    # In two lines: a column is hardly wider than its numbers.
    upper = ("", "", "", "lr", "noise scale", "bound", *("" for _ in target), "", "")
    share = "" if shared is None else f"({100 * shared:.3g} %)"
    lower = (unit, "step", "batch", "factor", "[90 %]", share, *target, "needed", "reason")
    rows = [upper, lower, *(_row(one, has_target=has_target) for one in _stretches(decisions))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    indent = " " * (sum(widths) + 2 * len(widths))
    room = max(MIN_REASON_WIDTH, TABLE_WIDTH - len(indent))
    lines = []
    for row in rows:
        begins = "".join(cell.ljust(width) + "  " for cell, width in zip(row, widths, strict=False))
        reason = textwrap.wrap(row[-1], room) or [""]
        lines += [(begins + reason[0]).rstrip(), *(indent + more for more in reason[1:])]
    return "\n".join([*lines, *_omitted(decisions, changes, holds)])


def _omitted(decisions: Sequence[DecisionRecord], changes: int | None, holds: int | None) -> list[str]:
    shown = sum(record.is_change for record in decisions)
    counts = [("changes", shown, changes), ("runs of holds", len(decisions) - shown, holds)]
    thinned = [
        f"{describe_number(kept)} of {describe_number(made)} {name}"
        for name, kept, made in counts
        if made is not None and made > kept
    ]
    return [f"Kept are {' and '.join(thinned)}; older ones were thinned."] if thinned else []


def aligned(rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Align the cells of a table.

    Args:
        rows: rows of cells, the title first
        left: columns that are aligned to the left, before those that are aligned to the right

    Returns:
        The lines.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
