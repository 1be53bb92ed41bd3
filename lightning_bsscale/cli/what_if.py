"""What ``replay`` shows of a what-if: the run as it was, beside what it would have been."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_bsscale.what_if import Course, WhatIf

__all__ = ["as_json", "as_text"]

_ROWS = 24
_WIDTH = 100


def as_text(found: WhatIf, asked: Sequence[str]) -> str:
    """Return a title, the two ends, the batch along the way, and what a what-if cannot know."""
    from lightning_bsscale.summary import aligned
    from lightning_bsscale.theory.numbers import describe_count, describe_number

    was, other = found.as_it_was, found.what_if
    ends = [
        ("", "as it was", "what if"),
        *(
            (name, describe_count(one), describe_count(two))
            for name, one, two in (
                (f"batch at the end, {found.unit}", was.end.batch_size, other.end.batch_size),
                ("changes of the batch", was.num_changes, other.num_changes),
                ("optimizer steps", was.optimizer_steps, other.optimizer_steps),
            )
        ),
        ("learning-rate factor at the end", describe_number(was.end.lr_scale), describe_number(other.end.lr_scale)),
    ]
    places = sorted({one.examples_seen for course in (was, other) for one in (course.start, *course.changes)})
    last, most = len(places) - 1, _ROWS - 1
    shown = places if last <= most else [places[round(row * last / most)] for row in range(_ROWS)]
    batches = [(f"from {found.unit}", "as it was", "what if")]
    batches += [
        (describe_count(place), describe_count(was.batch_at(place)), describe_count(other.batch_at(place)))
        for place in shown
    ]
    title = f"What if {', '.join(asked)}, and all else as it was?" if asked else "What if the scaler had acted?"
    said = "\n".join(
        textwrap.fill(sentence, _WIDTH, break_on_hyphens=False)
        for sentence in (*_notes(found), _steps_sentence(found), HONEST)
    )
    return "\n".join([title, "", *aligned(ends), "", *aligned(batches), "", said])


HONEST = (
    "A what-if cannot know what would have been measured: with other batches training takes another path, and the "
    "noise scale is measured along it, by windows of other sizes. Here it is that of this run at the same place, so "
    "the further the two columns lie apart, the less it says. It says nothing about the loss."
)


def _notes(found: WhatIf) -> list[str]:
    notes = []
    if not found.acted:
        notes.append("The run itself changed no batch: it was a dry run, or a monitor watched it.")
    if found.missing_metrics:
        names = ", ".join(repr(name) for name in found.missing_metrics)
        notes.append(f"The policy watches {names}, of which the journal holds no value: it decides as without.")
    return notes


def _steps_sentence(found: WhatIf) -> str:
    from lightning_bsscale.theory.numbers import describe_count, describe_time

    was, other = found.as_it_was.optimizer_steps, found.what_if.optimizer_steps
    examples = describe_count(found.examples, found.unit)
    if was == other:
        return f"Both make {describe_count(was)} optimizer steps on the same {examples}."
    fewer, less = ("more", "more") if other > was else ("fewer", "less")
    sentence = f"That is {describe_count(abs(other - was))} {fewer} optimizer steps on the same {examples}"
    if not found.seconds_per_step:
        return f"{sentence}."
    seconds = describe_time(abs(other - was) * found.seconds_per_step)
    per_step = describe_time(found.seconds_per_step)
    return f"{sentence}, about {seconds} {less}: a forecast, by the {per_step} of a step beyond its loader batches."


def as_json(found: WhatIf) -> dict[str, Any]:
    """Return the same as numbers."""

    def course(one: Course) -> dict[str, Any]:
        return {
            "optimizer_steps": one.optimizer_steps,
            "batch_size": one.end.batch_size,
            "lr_scale": one.end.lr_scale,
            "num_changes": one.num_changes,
            "changes": [
                {"examples_seen": change.examples_seen, "batch_size": change.batch_size, "lr_scale": change.lr_scale}
                for change in (one.start, *one.changes)
            ],
        }

    return {
        "unit": found.unit,
        "examples_seen": found.examples,
        "seconds_per_step": found.seconds_per_step,
        "acted": found.acted,
        "as_it_was": course(found.as_it_was),
        "what_if": course(found.what_if),
        "notes": [*_notes(found), HONEST],
    }
