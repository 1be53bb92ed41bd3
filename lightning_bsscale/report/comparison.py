"""Several runs in one picture: their losses where the journals have them, and steps against examples."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_bsscale.report.axes import Scale, drawable, linear
from lightning_bsscale.report.drawing import BOTTOM, LEFT, RIGHT, TOP, frame, line, picture
from lightning_bsscale.report.figure import Axis, Figure, shown, spread
from lightning_bsscale.report.markup import Markup, number, tag
from lightning_bsscale.report.run_record import RunRecord
from lightning_bsscale.report.sections import mean_worth
from lightning_bsscale.theory.numbers import describe_count, describe_time

__all__ = ["comparison_figures"]

KINDS = 6
"""Colours of lines; each further six are dashed in another way."""


def comparison_figures(runs: Sequence[RunRecord], limit: int, axes: Sequence[Axis]) -> list[Figure]:
    """Draw several runs together.

    Args:
        runs: the runs, at least two
        limit: most points in a line
        axes: the first axes to draw on

    Returns:
        The figures.
    """
    names = sorted({name for run in runs for name in run.metrics})
    shared = [name for name in names if sum(name in run.metrics for run in runs) > 1]
    return [
        *(_metric_figure(runs, name, f"metric-{index}", limit, axes) for index, name in enumerate(shared[:4])),
        _front(runs, limit),
    ]


def _number_at_end(index: int, points: Sequence[tuple[float, float]], x: Scale, y: Scale) -> Markup | None:
    """Write the run's number where its line ends, for whoever cannot tell the colours apart."""
    shown = [point for point in points if len(drawable(point)) == len(point)]
    if not shown:
        return None
    across, up = x.place(shown[-1][0]), y.place(shown[-1][1])
    place = dict(x=number(across - 6), y=number(up - 6 if up > TOP + 20 else up + 18))
    return tag("text", str(index + 1), class_="run-name", **place)


def line_class(index: int) -> str:
    """Return the classes of one run's line."""
    return f"run run-{index % KINDS} dash-{index // KINDS % 3}"


def _legend(runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    return [(line_class(index), f"{index + 1}: {run.path.name}") for index, run in enumerate(runs)]


def _metric_figure(runs: Sequence[RunRecord], metric: str, name: str, limit: int, axes: Sequence[Axis]) -> Figure:
    values = [spread(run.metrics[metric].items, limit) if metric in run.metrics else [] for run in runs]
    y = linear([value for points in values for _, value in points], BOTTOM, TOP)
    ends = [point for run in runs for point in (run.first, run.now)]
    pictures = []
    for axis in axes:
        x = axis.scale(ends)
        drawn = [
            part
            for index, points in enumerate([(axis.of(place), value) for place, value in run] for run in values)
            for part in (line(points, x, y, line_class(index)), _number_at_end(index, points, x, y))
        ]
        pictures.append(
            picture(
                f"{name}-{axis.key}",
                f"{metric} of each run against {axis.name}",
                f"{len(runs)} runs.",
                frame(x, y, axis.name),
                drawn,
                axis=axis.key,
            )
        )
    rows = [(str(index + 1), *_best(points)) for index, points in enumerate(values) if points]
    return Figure(
        name=name,
        heading=f"{metric} of each run",
        pictures=pictures,
        legend=_legend(runs),
        reading=(
            "Compare the runs at the same height: the one further left needed less of what is on the axis for that "
            "value. Switch the axis to see who is first in steps, in examples and in seconds."
        ),
        head=("run", "first", "smallest", "largest", "last"),
        rows=rows,
    )


def _best(points: Sequence[tuple[object, float]]) -> tuple[str, ...]:
    values = drawable(value for _, value in points) or [math.nan]
    return tuple(map(shown, (values[0], min(values), max(values), values[-1])))


def _front(runs: Sequence[RunRecord], limit: int) -> Figure:
    axis = Axis("examples", f"{runs[0].unit} seen", lambda place: place.examples)
    x = linear([run.now.examples for run in runs], LEFT, RIGHT, from_zero=True)
    y = linear([run.now.steps for run in runs], BOTTOM, TOP, from_zero=True)
    drawn = []
    for index, run in enumerate(runs):
        points = [(place.examples, place.steps) for place in spread(run.track.items, limit)]
        drawn += [line(points, x, y, line_class(index)), _number_at_end(index, points, x, y)]
    fewest = min(range(len(runs)), key=lambda index: runs[index].now.steps)
    return Figure(
        name="front",
        heading=f"Optimizer steps against {axis.name}",
        pictures=[
            picture(
                "front-picture",
                f"Optimizer steps of each run against {axis.name}",
                f"Fewest steps, {describe_count(runs[fewest].now.steps)}, has run {fewest + 1}.",
                frame(x, y, axis.name),
                drawn,
            )
        ],
        legend=_legend(runs),
        reading=(
            "A flatter line is a larger batch: more is averaged in each step. Where a line bends to the right, that "
            "run's batch grew."
        ),
        head=("run", "first batch", "last batch", "steps", runs[0].unit, "worth of an example", "time", "journal"),
        rows=[(str(index + 1), *_numbers(run)) for index, run in enumerate(runs)],
        is_open=True,
    )


def _numbers(run: RunRecord) -> tuple[str, ...]:
    worth = mean_worth(run)
    return (
        shown(run.start_batch),
        shown(run.batch),
        shown(run.now.steps),
        shown(run.now.examples),
        "unknown" if worth is None else f"{100 * worth[0]:.0f} %",
        describe_time(run.now.seconds) if run.timed else "unknown",
        run.path.name,
    )
