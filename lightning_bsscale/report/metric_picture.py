"""The picture of a metric that the policy watches, of one run or of several."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from lightning_bsscale.report.axes import Scale, drawable, linear
from lightning_bsscale.report.drawing import BOTTOM, TOP, frame, line, picture
from lightning_bsscale.report.figure import Axis, Figure, shown, spread
from lightning_bsscale.report.markup import Markup, cut, number, tag
from lightning_bsscale.report.run_record import RunRecord

__all__ = ["in_reading_order", "line_class", "line_legend", "metric_figure", "numbers_at_ends"]

APART = 24
"""Smallest distance of two numbers at the ends of lines, on a narrow screen too."""

KINDS = 6
"""Colours of lines; each further six are dashed in another way."""
_COMPARED = (
    "Compare the runs at the same height: the one further left needed less of what is on the axis for that value. "
    "Switch the axis to see who is first in steps, in examples and in seconds."
)
_ALONE = (
    "These are the values that were logged under this name. Switch the axis to see what they cost in steps, in "
    "examples and in seconds."
)


def numbers_at_ends(runs: Sequence[Sequence[tuple[float, float]]], x: Scale, y: Scale) -> list[Markup]:
    """Write each run's number where its line ends, for whoever cannot tell the colours apart, none on another.

    Args:
        runs: the points of each run's line
        x: the axis from left to right
        y: the axis from bottom to top

    Returns:
        The texts, of runs with a point that can be drawn.
    """
    ends = []
    for index, points in enumerate(runs):
        shown = [point for point in points if len(drawable(point)) == len(point)]
        if shown:
            across, up = x.place(shown[-1][0]), y.place(shown[-1][1])
            ends.append((max(up - 6, TOP + APART), across - 6, index))
    ends.sort()
    # Down from the top each is moved below those before it, then up from the bottom above those after it.
    ends = _moved(ends, APART, max)
    ends = _moved([(min(up, BOTTOM), across, index) for up, across, index in reversed(ends)], -APART, min)
    return [
        tag("text", str(index + 1), class_="run-name", x=number(across), y=number(up)) for up, across, index in ends
    ]


_Ends = list[tuple[float, float, int]]


def _moved(ends: _Ends, apart: float, farther: Callable[[Iterable[float]], float]) -> _Ends:
    places: _Ends = []
    for up, across, index in ends:
        near = [other + apart for other, beside, _ in places if abs(beside - across) < APART]
        places.append((farther([up, *near]), across, index))
    return places


def in_reading_order(metrics: Iterable[str]) -> list[str]:
    """Return names of metrics with those of a validation first, as these are what a reader compares."""
    return sorted(metrics, key=lambda name: ("val" not in name.lower(), name))


def line_class(index: int) -> str:
    """Return the classes of one run's line."""
    return f"run run-{index % KINDS} dash-{index // KINDS % 3}"


def line_legend(runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Return the legend of several runs; none for one."""
    if len(runs) == 1:
        return []
    return [(line_class(index), f"{index + 1}: {run.path.name}") for index, run in enumerate(runs)]


def metric_figure(runs: Sequence[RunRecord], metric: str, name: str, limit: int, axes: Sequence[Axis]) -> Figure:
    """Draw a watched metric of one run, or of several together.

    Args:
        runs: the runs
        metric: its name
        name: id of the figure
        limit: most points in a line
        axes: the first axes to draw it on

    Returns:
        The figure.
    """
    values = [spread(run.metrics[metric].items, limit) if metric in run.metrics else [] for run in runs]
    y = linear([value for points in values for _, value in points], BOTTOM, TOP)
    ends = [point for run in runs for point in (run.first, run.now)]
    heading = f"{cut(metric, 80)} of each run" if len(runs) > 1 else cut(metric, 80)
    last = values[0][-1][1] if values[0] else math.nan
    pictures = []
    for axis in axes:
        x = axis.scale(ends)
        lines = [[(axis.of(place), value) for place, value in run] for run in values]
        drawn = [line(points, x, y, line_class(index)) for index, points in enumerate(lines)]
        drawn += numbers_at_ends(lines, x, y) if len(runs) > 1 else []
        pictures.append(
            picture(
                f"{name}-{axis.key}",
                f"{heading} against {axis.name}",
                f"The last value of run 1 is {shown(last)}.",
                frame(x, y, axis.name),
                drawn,
                axis=axis.key,
            )
        )
    rows = [(str(index + 1), *_best(points)) for index, points in enumerate(values) if points]
    return Figure(
        name=name,
        heading=heading,
        pictures=pictures,
        legend=line_legend(runs),
        reading=_COMPARED if len(runs) > 1 else _ALONE,
        head=("run", "first", "smallest", "largest", "last"),
        rows=rows,
    )


def _best(points: Sequence[tuple[object, float]]) -> tuple[str, ...]:
    values = drawable(value for _, value in points) or [math.nan]
    return tuple(map(shown, (values[0], min(values), max(values), values[-1])))
