"""A figure of the page: pictures, legend, how to read them, and the table behind them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from lightning_bsscale.report.axes import LARGEST, Scale, linear
from lightning_bsscale.report.drawing import LEFT, RIGHT
from lightning_bsscale.report.markup import Markup, number, tag
from lightning_bsscale.report.run_record import Place, RunRecord, Window
from lightning_bsscale.theory.numbers import describe_number

__all__ = ["Axis", "Figure", "axes_of", "figure_block", "in_order", "on_each_axis", "shown", "spread", "table"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Axis:
    """What a reader can choose for the first axis.

    Attributes:
        key: its name in classes and data
        name: its name under the picture
        of: the number of a place
    """

    key: str
    name: str
    of: Callable[[Place], float]

    def scale(self, places: Sequence[Place]) -> Scale:
        """Return the axis from the first to the last place."""
        return linear([self.of(place) for place in places], LEFT, RIGHT, from_zero=True)


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure.

    Attributes:
        name: its id, unique on the page
        heading: what it shows
        pictures: one, or one for each first axis
        legend: classes of line and words
        reading: how to read it, in two sentences
        head: titles of the columns of its table
        rows: the table behind it
        points: for each first axis, where the table's rows are in the picture
        note: what is left out, or None
        is_open: whether the table is shown without opening it
    """

    name: str
    heading: str
    pictures: Sequence[Markup]
    legend: Sequence[tuple[str, str]]
    reading: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    points: dict[str, list[float]] = field(default_factory=dict)
    note: str | None = None
    is_open: bool = False


def axes_of(runs: Sequence[RunRecord]) -> list[Axis]:
    """Return the first axes that all of these runs have."""
    unit = runs[0].unit
    axes = [
        Axis("examples", f"{unit} seen", lambda place: place.examples),
        Axis("steps", "optimizer steps", lambda place: place.steps),
    ]
    if all(run.has_seconds for run in runs):
        axes.append(Axis("seconds", "seconds of training", lambda place: place.seconds))
    return axes


def on_each_axis(
    run: RunRecord, axes: Sequence[Axis], rows: Sequence[Window], draw: Callable[[Axis, Scale], Markup]
) -> tuple[list[Markup], dict[str, list[float]]]:
    """Draw a picture of a run on each first axis.

    Args:
        run: the run
        axes: the first axes
        rows: windows of the table behind the picture
        draw: draws the picture on one of the axes

    Returns:
        The pictures, and for each axis where the table's rows are in its picture.
    """
    pictures, points = [], {}
    for axis in axes:
        x = axis.scale([run.first, run.now])
        pictures.append(draw(axis, x))
        points[axis.key] = [round(x.place(axis.of(one.place)), 1) for one in rows]
    return pictures, points


def shown(value: float | None) -> str:
    """Format a number of a journal; what is not known says so."""
    if value is None or math.isnan(value):
        return "unknown"
    if abs(value) >= LARGEST:
        return "unbounded"
    return describe_number(value)


def spread(items: Sequence[_T], limit: int) -> list[_T]:
    """Return at most so many items, evenly spread, with the first and the last."""
    if len(items) <= limit:
        return list(items)
    return [items[round(index * (len(items) - 1) / (limit - 1))] for index in range(limit)]


def in_order(axis: Axis, points: Sequence[tuple[Place, float]]) -> list[tuple[float, float]]:
    """Return points by their number on the first axis."""
    return [(axis.of(place), value) for place, value in points]


def table(head: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str, left: int = 0) -> Markup:
    """Write a table; on a narrow screen it can be scrolled.

    Args:
        head: titles of the columns
        rows: the cells
        caption: what it holds
        left: columns with words, at the right end

    Returns:
        The element.
    """

    def side(place: int) -> str | None:
        return "words" if place >= len(head) - left else None

    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption),
            tag(
                "thead",
                tag("tr", [tag("th", title, scope="col", class_=side(place)) for place, title in enumerate(head)]),
            ),
            tag(
                "tbody",
                [
                    tag(
                        "tr",
                        [tag("td", cell, class_=side(place)) for place, cell in enumerate(row)],
                    )
                    for row in rows
                ],
            ),
        ),
        class_="scroll",
        tabindex="0",
        role="group",
        aria_label=caption,
    )


def figure_block(figure: Figure, heading: str) -> Markup:
    """Write a figure under a heading of this level."""
    return tag(
        "figure",
        tag(heading, figure.heading),
        _legend(figure.legend),
        figure.pictures,
        tag(
            "figcaption",
            tag("strong", "How to read it. "),
            figure.reading,
            None if not figure.note else f" {figure.note}",
        ),
        tag(
            "details",
            tag("summary", "The numbers behind it"),
            table(figure.head, figure.rows, caption=f"{figure.heading}: numbers"),
            open=figure.is_open,
        )
        if figure.rows
        else None,
        id=f"{figure.name}-figure",
        class_="chart",
    )


def _legend(entries: Sequence[tuple[str, str]]) -> Markup | None:
    if not entries:
        return None
    items = []
    for cls, words in entries:
        shape = "rect" if cls.split()[0] in {"band", "veil", "span", "bar"} else "line"
        mark = (
            tag("rect", class_=cls, x="0", y="2", width="26", height="10")
            if shape == "rect"
            else tag("path", class_=cls, d="M0 7H26")
        )
        if cls == "mark":
            mark = tag("circle", class_=cls, cx="13", cy="7", r=number(5))
        items.append(tag("li", tag("svg", mark, class_="key", viewBox="0 0 26 14", aria_hidden="true"), words))
    return tag("ul", items, class_="legend")
