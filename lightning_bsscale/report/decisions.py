"""The decisions of a run: its changes in full, its holds by reason."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_bsscale.report.bars import bars
from lightning_bsscale.report.figure import Figure, figure_block, shown, spread, table
from lightning_bsscale.report.markup import Markup, cut, tag
from lightning_bsscale.report.run_record import Change, Hold, RunRecord
from lightning_bsscale.theory.numbers import describe_count
from lightning_bsscale.theory.policies import Reason
from lightning_bsscale.theory.records import DecisionRecord

__all__ = ["decision_section", "readable"]

MOST_OPEN = 12
"""Changes that are shown without opening anything."""
MOST_REASONS = 8
_OF_PACKAGE = {reason.code: str(reason) for reason in Reason}


def readable(reason: str) -> str:
    """Return a reason without the word before its colon, which its place says already."""
    head, colon, rest = cut(reason, 200).partition(": ")
    return rest if colon and head in {"hold", "grow", "shrink"} else cut(reason, 200)


def decision_section(run: RunRecord, name: str, limit: int, heading: str) -> list[Markup]:
    """Write what was decided and why.

    Args:
        run: the run
        name: begin of its ids
        limit: most rows of a table
        heading: element of the headings in it

    Returns:
        The parts of the section.
    """
    if not run.numbers.decides:
        return [tag("p", "A monitor measures and changes nothing, so there are no decisions.")]
    if run.latest is None:
        return [tag("p", "The policy was not asked: the run ended before its warmup did, or before its first step.")]
    return [*_changes(run, limit), *_holds(run, f"{name}-holds", limit, heading)]


def _changes(run: RunRecord, limit: int) -> list[Markup]:
    changes, count = run.changes.items, run.changes.count
    if not count:
        latest = run.latest
        assert latest is not None
        words = f"The batch never changed. The last decision, after {shown(latest.situation.examples_seen)} {run.unit}:"
        return [tag("p", words, " ", tag("bdi", readable(latest.decision.reason)), _grounds(latest))]
    times = f"{describe_count(count)} times" if count > 1 else "once"
    reasons = {readable(change.record.decision.reason) for change in changes}
    why = [", each time because " if count > 1 else " because ", tag("bdi", reasons.pop())] if len(reasons) == 1 else []
    parts = [tag("p", f"The batch changed {times}", why, ".")]
    if len(changes) <= MOST_OPEN:
        return [*parts, _change_table(run, changes, "Changes of the batch")]
    half = MOST_OPEN // 2
    some = [*changes[:half], *changes[-half:]]
    rows = spread(changes, limit)
    all_of = f"All {describe_count(count)} changes"
    if len(rows) < count:
        all_of = f"{describe_count(len(rows))} of the {describe_count(count)} changes, evenly spread"
    return [
        *parts,
        _change_table(run, some, f"The first and the last {half} changes"),
        tag("details", tag("summary", all_of), _change_table(run, rows, all_of)),
    ]


def _grounds(record: DecisionRecord) -> str:
    decision = record.decision
    if decision.target is None or decision.needed is None:
        return "."
    sides = "at most" if record.is_shrink else "at least"
    return f". Its target was {shown(decision.target)}, where a change needed {sides} {shown(decision.needed)}."


def _change_table(run: RunRecord, changes: Sequence[Change], caption: str) -> Markup:
    """Write one row for each change; what is the same in all of them is left out."""
    decisions = [change.record.decision for change in changes]
    reasons = {decision.reason for decision in decisions}
    has_target = any(decision.target != decision.bound for decision in decisions)
    head = [
        run.unit,
        "step",
        "batch",
        "noise scale",
        "bound",
        "target",
        "needed",
        "learning rate",
        "reason",
        "held before",
    ]
    rows = [_change_row(change) for change in changes]
    if not has_target:
        head, rows = _without(head, rows, "target")
    if len(reasons) == 1:
        head, rows = _without(head, rows, "reason")
    return table(head, rows, caption=caption, left=1 if "reason" not in head else 2)


_Rows = list[tuple[object, ...]]


def _without(head: list[str], rows: _Rows, title: str) -> tuple[list[str], _Rows]:
    place = head.index(title)
    return [*head[:place], *head[place + 1 :]], [(*row[:place], *row[place + 1 :]) for row in rows]


def _change_row(change: Change) -> tuple[object, ...]:
    record, noise = change.record, change.record.situation.noise
    decision = record.decision
    return (
        shown(change.place.examples),
        shown(float(record.situation.optimizer_steps)),
        f"{shown(record.situation.batch_size)} → {shown(record.batch_size)}",
        "unknown" if noise is None else f"{shown(noise.noise_scale)} [{shown(noise.low)}, {shown(noise.high)}]",
        "-" if decision.bound is None else shown(decision.bound),
        "-" if decision.target is None else shown(decision.target),
        "-" if decision.needed is None else f"{'≤' if record.is_shrink else '≥'} {shown(decision.needed)}",
        f"× {shown(record.lr_scale)}",
        tag("bdi", readable(decision.reason)),
        _held(change.holds),
    )


def _held(holds: dict[str, Hold]) -> Markup | str:
    if not holds:
        return "-"
    longest = sorted(holds.items(), key=lambda one: -one[1].examples)[:2]
    names = [f"{cut(code.replace('_', ' '), 30)} ({describe_count(hold.examples)})" for code, hold in longest]
    more = f", {len(holds) - 2} more" if len(holds) > 2 else ""
    return tag("bdi", f"{', '.join(names)}{more}")


def _share(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.005 else "less than 1 %"


def _shared(code: str, hold: Hold) -> str:
    """Return what all holds of one code have in common: one of the package's own without the number of the first."""
    reason = _OF_PACKAGE.get(code, "")
    return reason if reason and hold.reason.startswith(reason) else hold.reason


def _holds(run: RunRecord, name: str, limit: int, heading: str) -> list[Markup]:
    holds = sorted(run.holds.items(), key=lambda one: (-one[1].examples, one[0]))
    covered = run.now.examples - run.first.examples
    if not holds or covered <= 0:
        return []
    held = [(code, hold, hold.examples / covered) for code, hold in holds]
    most = held[0]
    rows = [
        (
            f"{_share(share)}: {readable(_shared(code, hold)).partition(' (')[0].partition(', ')[0]}",
            [("hold-bar", share)],
        )
        for code, hold, share in held[:MOST_REASONS]
    ]
    figure = Figure(
        name=name,
        heading="Why it held",
        pictures=[
            bars(
                f"{name}-bars",
                "Share of the run for each reason to hold",
                f"Longest, {100 * most[2]:.0f} % of the run: {readable(_shared(most[0], most[1]))}.",
                rows,
            )
        ],
        legend=[],
        reading=(
            f"Each bar is the share of all {run.unit} seen while the policy kept the batch for that reason. What is "
            "long here is what to change: a longer run or more frequent measurements against an unresolved noise "
            "scale, a higher limit where the limit held."
        ),
        head=("code", "stretches", run.unit, "share", "reason"),
        rows=[
            (
                cut(code, 40),
                describe_count(hold.runs),
                shown(hold.examples),
                f"{100 * share:.1f} %",
                cut(_shared(code, hold), 200),
            )
            for code, hold, share in held[:limit]
        ],
    )
    return [figure_block(figure, heading)]
