"""Horizontal bars."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_bsscale.report.drawing import WIDTH, picture
from lightning_bsscale.report.markup import Markup, cut, number, tag

__all__ = ["bars"]

ROW, BAR = 58, 18
LONGEST_NAME = 64
"""Characters of a bar's name that fit on a narrow screen."""


def bars(name: str, title: str, description: str, rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> Markup:
    """Draw horizontal bars under their names.

    Args:
        name: id of the picture
        title: what it shows
        description: what can be seen in it
        rows: of each bar its name, and its parts as class and length

    Returns:
        The picture.
    """
    longest = max((sum(length for _, length in parts) for _, parts in rows), default=0.0) or 1.0
    drawn: list[Markup] = []
    for index, (label, parts) in enumerate(rows):
        top, at = index * ROW, 0.0
        drawn.append(tag("text", cut(label, LONGEST_NAME), class_="bar-name", x="0", y=number(top + 22)))
        for cls, length in parts:
            width = WIDTH * length / longest
            box = dict(x=number(at), y=number(top + 30), width=number(max(0.5, width)), height=number(BAR))
            drawn.append(tag("rect", class_=f"bar {cls}", **box))
            at += width
    return picture(name, title, description, drawn, height=max(1, len(rows)) * ROW)
