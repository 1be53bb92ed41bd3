"""The parts of a picture: lines with gaps, bands, staircases, marks, axes, and a picture's frame."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from lightning_bsscale.report.axes import LARGEST, Scale, short
from lightning_bsscale.report.markup import Markup, number, tag

__all__ = ["BOTTOM", "HEIGHT", "LEFT", "RIGHT", "TOP", "WIDTH", "band", "frame", "line", "picture", "spans", "stairs"]

WIDTH, HEIGHT = 720, 370
LEFT, RIGHT, TOP, BOTTOM = 72, 706, 12, 312
Point = tuple[float, float]


def _is_drawable(point: Point) -> bool:
    return all(-LARGEST < value < LARGEST for value in point)


def _path(points: Sequence[str], cls: str) -> Markup | None:
    return tag("path", class_=cls, d="".join(points)) if points else None


def line(points: Iterable[Point], x: Scale, y: Scale, cls: str) -> Markup | None:
    """Draw a line through points; one that is no number is a gap.

    Args:
        points: numbers of both axes, in order
        x: the axis from left to right
        y: the axis from bottom to top
        cls: class of the style

    Returns:
        A path, or None without a point.
    """
    made, is_down = [], False
    for point in points:
        if not _is_drawable(point):
            is_down = False
            continue
        made.append(f"{'L' if is_down else 'M'}{number(x.place(point[0]))} {number(y.place(point[1]))}")
        if not is_down:
            made.append("h.1")  # a single point between two gaps is a dot
        is_down = True
    return _path(made, cls)


def stairs(points: Iterable[Point], x: Scale, y: Scale, cls: str) -> Markup | None:
    """Draw a staircase: each value lasts until the next point. Steps that fall on one place are one.

    Args:
        points: numbers of both axes, in order
        x: the axis from left to right
        y: the axis from bottom to top
        cls: class of the style

    Returns:
        A path, or None without a point.
    """
    made: list[str] = []
    last = -1.0
    shown = [(x.place(a), y.place(b)) for a, b in points if _is_drawable((a, b))]
    for index, (across, up) in enumerate(shown):
        if not made:
            made.append(f"M{number(across)} {number(up)}")
        elif across - last >= 1 or index == len(shown) - 1:
            made.append(f"H{number(across)}V{number(up)}")
        else:
            made.append(f"V{number(up)}")
            continue
        last = across
    return _path(made, cls)


def band(points: Iterable[tuple[float, float, float]], x: Scale, y: Scale, cls: str) -> Markup | None:
    """Draw the area between two lines, an infinite end to the edge.

    Args:
        points: number of the first axis, and both ends
        x: the axis from left to right
        y: the axis from bottom to top
        cls: class of the style

    Returns:
        A path, or None with fewer than two points.
    """
    shown = [
        (number(x.place(a)), number(y.place(low)), number(y.place(high)))
        for a, low, high in points
        if -LARGEST < a < LARGEST and not math.isnan(low) and not math.isnan(high)
    ]
    if len(shown) < 2:
        return None
    there = "L".join(f"{a} {high}" for a, _, high in shown)
    back = "L".join(f"{a} {low}" for a, low, _ in reversed(shown))
    return tag("path", class_=cls, d=f"M{there}L{back}Z")


def spans(ends: Iterable[Point], x: Scale, cls: str, *, top: float = TOP, bottom: float = BOTTOM) -> list[Markup]:
    """Draw rectangles between pairs of numbers of the first axis; those that touch are one."""
    joined: list[list[float]] = []
    for first, last in ends:
        if not _is_drawable((first, last)):
            continue
        start, end = x.place(first), x.place(last)
        if joined and start <= joined[-1][1] + 0.6:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([start, end])
    return [
        tag(
            "rect",
            class_=cls,
            x=number(start),
            y=number(top),
            width=number(max(0.6, end - start)),
            height=number(bottom - top),
        )
        for start, end in joined
    ]


def frame(x: Scale, y: Scale, x_name: str, *, percent: bool = False) -> Markup:
    """Draw the axes: horizontal lines at the ticks, numbers, and the first axis's name."""
    parts: list[Markup] = []
    for tick in y.ticks:
        up = y.place(tick)
        parts.append(tag("line", class_="grid", x1=LEFT, x2=RIGHT, y1=number(up), y2=number(up)))
        name = f"{100 * tick:.0f} %" if percent else short(tick)
        parts.append(tag("text", name, class_="y-tick", x=LEFT - 8, y=number(up + 4.5)))
    for index, tick in enumerate(x.ticks):
        across = x.place(tick)
        parts.append(tag("line", class_="axis", x1=number(across), x2=number(across), y1=BOTTOM, y2=BOTTOM + 5))
        # A narrow screen shows every second number.
        cls = "x-tick odd" if index % 2 else "x-tick"
        parts.append(tag("text", short(tick), class_=cls, x=number(across), y=BOTTOM + 22))
    parts.append(tag("line", class_="axis", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM))
    parts.append(tag("text", x_name, class_="axis-name", x=number((LEFT + RIGHT) / 2), y=BOTTOM + 48))
    return tag("g", parts)


def picture(
    name: str, title: str, description: str, *inside: object, height: float = HEIGHT, axis: str | None = None
) -> Markup:
    """Write a picture with its title and its description in words.

    Args:
        name: its id, unique on the page
        title: what it shows
        description: what can be seen in it
        inside: its parts
        height: its height; its width is `WIDTH`
        axis: the first axis it is drawn on, where the reader can choose one

    Returns:
        The element.
    """
    names = f"{name}-title {name}-description"
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        tag("desc", description, id=f"{name}-description"),
        inside,
        id=name,
        class_="picture" if axis is None else f"picture on-{axis}",
        viewBox=f"0 0 {WIDTH} {number(height)}",
        role="img",
        aria_labelledby=names,
        tabindex="0",
    )
