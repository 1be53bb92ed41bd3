"""Colours that colour-blind readers can tell apart, and what all pictures write in the same way."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_bsscale.theory.numbers import describe_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = [
    "BATCH",
    "GREY",
    "NOISE",
    "RATE",
    "TARGET",
    "VEIL",
    "count_ticks",
    "few_ticks",
    "legend_above",
    "plain",
    "plain_log_ticks",
    "say",
    "seen",
]

# Of Okabe and Ito, https://jfly.uni-koeln.de/color/. Lines differ in their dashes or markers too.
NOISE, BATCH, RATE, TARGET = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
GREY, VEIL = "0.4", "0.92"


def plain(text: str) -> str:
    """Return a name of the user's as matplotlib shows it: without formulas, and also where it begins with ``_``."""
    escaped = text.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def seen(axes: Axes, unit: str) -> None:
    """Name the horizontal axis that counts what a training has seen."""
    axes.set_xlabel(f"{plain(unit)} seen")
    few_ticks(axes.xaxis, 5)


def count_ticks(axis: Axis) -> None:
    """Write the ticks of an axis as counts."""
    axis.set_major_formatter(lambda value, _: describe_count(value))


def few_ticks(axis: Axis, most: int) -> None:
    """Write the ticks of a linear axis as counts, so few that they do not run into each other."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
    count_ticks(axis)


def plain_log_ticks(axis: Axis) -> None:
    """Write the numbers of a logarithmic axis out, at 1, 2 and 5 times each power of ten where the powers are few."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    low, high = axis.get_view_interval()
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
    if high < 5 * low:  # 1, 2 and 5 would leave one number, or none
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.set_minor_locator(NullLocator())
        return
    is_wide = high > 100 * low
    axis.set_minor_formatter(lambda value, _: "" if is_wide or f"{value:e}"[0] not in "25" else f"{value:,g}")


def legend_above(axes: Axes, *, is_alone: bool, last: Sequence[str] = ()) -> None:
    """Explain the lines above the axes, where nothing is covered; within them if the axes are the user's.

    Args:
        axes: the axes
        is_alone: whether they are the user's
        last: beginnings of the labels that come last
    """
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    order = sorted(range(len(labels)), key=lambda place: labels[place].startswith(tuple(last)))
    handles, labels = [handles[place] for place in order], [labels[place] for place in order]
    place: dict[str, Any] = dict(loc="best")
    if not is_alone:
        place = dict(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0.2)
    axes.legend(handles, labels, fontsize="small", **place)


def say(axes: Axes, text: str, *, width: int = 48) -> None:
    """Write in the middle of the axes why there is nothing to see."""
    axes.text(
        0.5,
        0.5,
        plain(textwrap.fill(text, width)),
        transform=axes.transAxes,
        ha="center",
        va="center",
        color="0.25",
        bbox={"facecolor": "white", "edgecolor": "0.8", "boxstyle": "round,pad=0.6"},
    )
