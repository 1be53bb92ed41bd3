"""The picture of a critical batch that was found by branching."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lightning_bsscale.figures.canvas import one_panel
from lightning_bsscale.figures.style import BATCH, NOISE
from lightning_bsscale.theory.branching import BranchAnswer, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_branches"]


def plot_branches(answer: BranchAnswer, ax: Axes | None = None) -> tuple[Figure, Any]:
    """Draw what an example is worth in each branch, and where the critical batch lies.

    Args:
        answer: the critical batch by branching
        ax: axes to draw on; None creates a figure

    Returns:
        The figure and the axes.
    """
    figure, axes = one_panel(ax)
    sizes = [row.batch_size for row in answer.rows]
    left, right = sizes[0] / 1.3, sizes[-1] * 1.3
    axes.set_xscale("log", base=2)
    axes.set_xlim(left, right)
    if answer.low > 0 or answer.high < math.inf:
        ends = max(answer.low, left), min(answer.high, right)
        axes.axvspan(*ends, color=BATCH, alpha=0.15, linewidth=0, label="the critical batch is here")
    rows = [row for row in answer.rows if math.isfinite(row.worth)]
    axes.plot([row.batch_size for row in rows], [row.worth for row in rows], color=NOISE, label="worth of an example")
    for is_open in (False, True):
        some = [row for row in rows if (row.verdict is Verdict.OPEN) is is_open]
        axes.plot(
            [row.batch_size for row in some],
            [row.worth for row in some],
            marker="o",
            color=NOISE,
            markerfacecolor="white" if is_open else NOISE,
            linestyle="",
            label="undecided" if is_open and some else "_",
        )
    needed = [row for row in answer.rows if math.isfinite(row.needed)]
    axes.plot(
        [row.batch_size for row in needed],
        [row.needed for row in needed],
        color="0.4",
        linestyle="--",
        label="half its worth in a very small batch",
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_xlabel("batch in examples")
    axes.set_ylabel("relative to the smallest batch")
    axes.set_ylim(bottom=min(0.0, *(row.worth for row in rows), 0.0) if rows else 0.0)
    axes.set_title(answer.reason, fontsize="medium", wrap=True)
    axes.legend(loc="best", fontsize="small")
    return figure, axes
