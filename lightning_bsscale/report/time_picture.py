"""The picture of the seconds at each batch size."""

from __future__ import annotations

from lightning_bsscale.report.bars import bars
from lightning_bsscale.report.figure import Figure, shown
from lightning_bsscale.report.run_record import Phase, RunRecord
from lightning_bsscale.theory.numbers import describe_count, describe_time

__all__ = ["time_figure"]


_PARTS = (
    ("rate-bar", "forward and backward passes"),
    ("batch-bar", "optimizer's step"),
    ("rest-bar", "everything else, such as loading"),
    ("noise-bar", "all of it, where the parts cannot be told apart"),
)


def _parts(phase: Phase) -> tuple[float, ...]:
    computing, stepping, undivided = phase.computing, phase.stepping, phase.undivided
    return computing, stepping, max(0.0, phase.seconds - computing - stepping - undivided), undivided


def _per_example(phase: Phase) -> str:
    timed = phase.examples * phase.timed / phase.steps
    return describe_time(1000 * phase.seconds / timed) if timed > 0 else "unknown"


def time_figure(run: RunRecord, name: str, most: int = 10) -> Figure | None:
    """Draw the seconds of each batch size; None where the journal has none."""
    phases = [phase for phase in run.phases.values() if phase.timed and phase.seconds > 0]
    if not phases:
        return None
    phases = sorted(sorted(phases, key=lambda one: -one.seconds)[:most], key=lambda one: one.batch_size)
    total = sum(phase.seconds for phase in run.phases.values())
    rows = [
        (
            f"batch {shown(phase.batch_size)}: {describe_time(phase.seconds)}, {_per_example(phase)} per 1,000",
            list(zip((cls for cls, _ in _PARTS), _parts(phase), strict=True)),
        )
        for phase in phases
    ]
    longest = max(phases, key=lambda one: one.seconds)
    spent = [sum(part) for part in zip(*map(_parts, phases), strict=True)]
    return Figure(
        name=name,
        heading="Where the time went",
        pictures=[
            bars(
                f"{name}-bars",
                "Time at each batch size",
                f"Most time, {100 * longest.seconds / total:.0f} %, was spent at batch {shown(longest.batch_size)}.",
                rows,
            )
        ],
        legend=[(f"bar {cls}", words) for (cls, words), seconds in zip(_PARTS, spent, strict=True) if seconds > 0],
        reading=(
            f"Each bar is the time spent at one batch size, with the time that 1,000 {run.unit} took there. If that "
            "falls as the batch grows, a larger batch is also faster on your machine; if not, it saved no time."
        ),
        head=("batch", "steps", run.unit, "time", f"time per 1,000 {run.unit}"),
        rows=[
            (
                shown(phase.batch_size),
                describe_count(phase.steps),
                shown(phase.examples),
                describe_time(phase.seconds),
                _per_example(phase),
            )
            for phase in phases
        ],
        note=f"Shown are the {most} batch sizes that took longest." if len(run.phases) > most else None,
    )
