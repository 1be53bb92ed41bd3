"""Decisions in readable form: the summary table, and the parts of a log line."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.records import DecisionRecord

TABLE_WIDTH = 120
MIN_REASON_WIDTH = 24


def describe_number(value: float, digits: int = 3) -> str:
    """Format a number for reading: ``33,675``, ``43.3``, ``0.0125``.

    Args:
        value: the number
        digits: minimum of significant digits; whole numbers keep all of theirs

    Returns:
        A few characters; powers of ten only from 10¹⁵ on.
    """
    if not math.isfinite(value):
        return str(float(value))
    if abs(value) >= 1e15:
        return f"{value:.{digits - 1}e}"
    whole_digits = len(f"{abs(value):.0f}")
    text = f"{value:,.{max(0, digits - whole_digits)}f}" if abs(value) >= 1 else f"{value:.{digits}g}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def describe_noise(noise: NoiseScale | None) -> str:
    """Format a noise scale: ``"123 [80.1, 210]"`` in examples, or ``"unknown"``."""
    if noise is None:
        return "unknown"
    return f"{describe_number(noise.noise_scale)} [{describe_number(noise.low)}, {describe_number(noise.high)}]"


def _compared(target: float | None, needed: float | None) -> tuple[str, str]:
    """Format target and needed number with enough digits to see which is larger."""
    if target is None or needed is None:
        return tuple("-" if one is None else describe_number(one) for one in (target, needed))  # type: ignore[return-value]
    digits = 3
    while digits < 17 and target != needed and describe_number(target, digits) == describe_number(needed, digits):
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
        parts.append(f"{side} bound{share} {describe_number(decision.bound)}")
        if decision.target is not None and 0 < decision.bound < math.inf:
            parts[0] += f" x {describe_number(decision.target / decision.bound)} = target {target}"
    if decision.target is not None and " = " not in "".join(parts):
        parts.append(f"target {target}")
    if decision.needed is not None:
        parts.append(f"needed at {'most' if record.is_shrink else 'least'} {needed}")
    return ", ".join(parts)


def describe_reason(record: DecisionRecord) -> str:
    """Return a decision's reason, with the requested batch size if the limits or the loader batch changed it."""
    requested, reason = record.decision.batch_size, record.decision.reason
    return reason if requested == record.batch_size else f"{reason} (requested {describe_number(requested)})"


def _row(record: DecisionRecord) -> tuple[str, ...]:
    decision = record.decision
    old, new = describe_number(record.situation.batch_size), describe_number(record.batch_size)
    target, needed = _compared(decision.target, decision.needed)
    upper = " (upper)" if record.is_shrink else ""
    return (
        describe_number(record.situation.examples_seen),
        describe_number(record.situation.optimizer_steps),
        f"{old} -> {new}" if record.is_change else old,
        describe_number(record.lr_scale),
        describe_noise(record.situation.noise),
        "-" if decision.bound is None else f"{describe_number(decision.bound)}{upper}",
        target,
        needed if decision.needed is None else f"{'<=' if record.is_shrink else '>='} {needed}",
        describe_reason(record),
    )


def summary_table(decisions: Sequence[DecisionRecord], *, changes: int | None = None, holds: int | None = None) -> str:
    """Format changes, and the first of each run of holds, as an aligned table of 120 columns.

    Args:
        decisions: the records, in order
        changes: number of all changes, if `decisions` may be thinned
        holds: number of all runs of holds

    Returns:
        The table, with a last line if there were more records than these.
    """
    confidences = {record.decision.confidence for record in decisions if record.decision.bound is not None}
    shared = confidences.pop() if len(confidences) == 1 else None
    bound = "bound" if shared is None else f"bound ({100 * shared:.3g} %)"
    title = ("examples", "step", "batch", "lr factor", "noise scale [90 %]", bound, "target", "needed", "reason")
    rows = [title, *map(_row, decisions)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(title) - 1)]
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
    return [f"Shown are {' and '.join(thinned)}; older ones were thinned."] if thinned else []


_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"))
_TIMES = ((86_400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"))


def describe_count(value: float) -> str:
    """Format a count of examples or steps: ``33,675``, ``12.3 M``, ``1.2 B``."""
    for size, unit in _UNITS:
        if size <= round(value) < math.inf:
            return f"{describe_number(value / size)} {unit}"
    return describe_number(round(value)) if 1 <= value < math.inf else describe_number(value)


def time_unit(seconds: float) -> tuple[float, str]:
    """Return the unit that suits a time, as its seconds and its name."""
    return next((one for one in _TIMES if seconds >= one[0]), _TIMES[-1])


def describe_time(seconds: float, low: float | None = None, high: float | None = None) -> str:
    """Format a time, with its interval in the same unit: ``3.4 h``, ``12 min [9.5, 15.2]``.

    Args:
        seconds: the time
        low: lower end; None for no interval
        high: upper end; None for no interval

    Returns:
        A few characters.
    """
    size, unit = time_unit(seconds)
    text = f"{describe_number(seconds / size)} {unit}"
    if low is None or high is None or low == high:
        return text
    return f"{text} [{describe_number(low / size)}, {describe_number(high / size)}]"


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
