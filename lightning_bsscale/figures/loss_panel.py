"""Panels of losses, against whatever a training is counted in."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_bsscale.figures.style import BATCH, NOISE, RATE, TARGET, few_ticks, plain
from lightning_bsscale.theory.losses import LossPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MANY_POINTS", "draw_losses", "scale_loss", "smoothed"]

MANY_POINTS = 40
"""A line of more points than these is noisy, and is drawn with its running median."""
WIDE = 30.0
_LINES = ((NOISE, "o"), (BATCH, "s"), (RATE, "^"), (TARGET, "D"))

Place = Callable[[LossPoint], float]


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the running median of many values over a tenth of them; few values as they are."""
    if len(values) <= MANY_POINTS:
        return list(values)
    half, medians = len(values) // 20, []
    for index in range(len(values)):
        near = [value for value in values[max(0, index - half) : index + half + 1] if math.isfinite(value)]
        medians.append(statistics.median(near) if near else math.nan)
    return medians


def scale_loss(axes: Axes, values: Sequence[float]) -> None:
    """Choose a logarithmic axis for losses that span a wide range, and plain numbers on it."""
    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) > WIDE * min(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def draw_losses(axes: Axes, losses: Mapping[str, Sequence[LossPoint]], place: Place, *, has_legend: bool) -> None:
    """Draw losses by name.

    Args:
        axes: where to draw
        losses: the values by name
        place: where each of them goes
        has_legend: whether the lines are named here
    """
    for (name, points), (color, marker) in zip(losses.items(), _LINES, strict=False):
        xs, values = [place(point) for point in points], [point.value for point in points]
        line: dict[str, Any] = dict(color=color, linewidth=1.5)
        if len(values) > MANY_POINTS:
            axes.plot(xs, values, color=color, linewidth=0.6, alpha=0.35)
            axes.plot(xs, smoothed(values), label=f"{plain(name)} (median)", **line)
        else:
            axes.plot(xs, values, marker=marker, markersize=3.5, label=plain(name), **line)
    scale_loss(axes, [point.value for points in losses.values() for point in points])
    axes.set_ylabel("loss")
    axes.grid(alpha=0.25, linewidth=0.6)
    few_ticks(axes.xaxis, 3)
    if has_legend:
        axes.legend(loc="best", fontsize="small")
