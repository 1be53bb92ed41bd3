"""The panel of the learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_bsscale.figures.drawn_run import DrawnRun
from lightning_bsscale.figures.noise_panel import MOST_MARKS, draw_veil
from lightning_bsscale.figures.style import GREY, RATE, legend_above, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_learning_rate"]


def draw_learning_rate(axes: Axes, run: DrawnRun) -> None:
    """Draw the learning rate as it was, with its jumps, and without the factor for the batch."""
    draw_veil(axes, run)
    plain, real = run.schedule, run.learning_rate
    axes.set_ylabel("learning rate")
    if not real:
        say(axes, "The learning rate is noted where a window is measured, and none was.")
        return
    axes.plot(*zip(*real, strict=True), color=RATE, linewidth=1.6, label="learning rate")
    if real != plain:
        label = "without the batch's factor"
        axes.plot(*zip(*plain, strict=True), color=GREY, linestyle="--", linewidth=1, label=label)
    changes = [] if run.is_dry_run else run.changes
    if 0 < len(changes) <= MOST_MARKS:
        places = {record.situation.examples_seen for record in changes}
        # Of the two points of a jump, the second.
        ends = {seen: value for seen, value in real if seen in places}
        axes.plot(
            list(ends),
            list(ends.values()),
            linestyle="",
            marker="o",
            markersize=4.5,
            markerfacecolor="white",
            markeredgecolor=RATE,
            label="batch changed",
        )
    axes.set_ylim(bottom=0)
    legend_above(axes, is_alone=False)
