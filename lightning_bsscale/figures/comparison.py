"""The picture of several runs: their losses against steps, examples and seconds, and the front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_bsscale.figures.canvas import new_figure
from lightning_bsscale.figures.compared import ComparedRun, choose_loss, read_runs
from lightning_bsscale.figures.loss_panel import MANY_POINTS, scale_loss, smoothed
from lightning_bsscale.figures.style import BATCH, GREY, NOISE, RATE, TARGET, few_ticks, plain, plain_log_ticks, say
from lightning_bsscale.theory.losses import LossPoint
from lightning_bsscale.theory.numbers import time_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_comparison"]

COLORS = (NOISE, BATCH, RATE, TARGET, "#E69F00", "#56B4E9", "black")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
MARKERS = "osD^vPX*"
NEAR = 14.0
End = tuple[float, float, int]
"""Where a curve ends: its place, its value, and the index of its run."""
NO_LOSS = (
    'None of the runs has a loss to compare. Log one with self.log under a name that contains "loss", such as '
    "val_loss, and train again."
)


def plot_comparison(runs: Any, *, loss: str | None = None, is_shown: bool = True) -> tuple[Figure, Any]:
    """Draw a loss of several runs against optimizer steps, examples and seconds, and the front of its last values.

    Args:
        runs: A mapping from names to runs, or a list of runs. A run is a callback after its training, the path of a
            journal, or columns of numbers (a mapping or a DataFrame) with ``"loss"`` and ``"steps"``, ``"examples"`` or
            ``"seconds"``.
        loss: The name that the loss was logged by. Defaults to None: the one that most runs have, of a validation if
            there is one.
        is_shown: Whether a notebook and ``plt.show()`` show it.

    Returns:
        The figure and its four axes, or one that says that no run has a loss.
    """
    compared = read_runs(runs)
    name = choose_loss(compared, loss)
    if name is None:
        figure = new_figure(6, 2.4, is_shown=is_shown)
        empty = figure.subplots()
        empty.set_axis_off()
        say(empty, NO_LOSS)
        return figure, empty
    figure = new_figure(10, 7.4, is_shown=is_shown)
    axes = figure.subplots(2, 2)
    panels = list(axes.flat)
    unit = compared[0].unit if compared else "examples"
    curves = [run.losses.get(name, ()) for run in compared]
    ends = [
        _draw(panels[0], curves, "optimizer_steps", "optimizer steps"),
        _draw(panels[1], curves, "examples_seen", f"{plain(unit)} seen"),
        _draw_seconds(panels[2], curves),
        _draw_front(panels[3], curves),
    ]
    values = [point.value for points in curves for point in points]
    for panel in panels[:3]:
        scale_loss(panel, values)
    for panel in panels:
        panel.set_ylabel(plain(name))
        panel.grid(alpha=0.25, linewidth=0.6)
    for panel, ended in zip(panels, ends, strict=True):  # where the axes reach from and to is known now
        _number(panel, ended)
    _explain(figure, panels[0], compared, name)
    return figure, axes


def _style(index: int) -> dict[str, Any]:
    return dict(color=COLORS[index % len(COLORS)], linestyle=DASHES[index % len(DASHES)])


def _draw(
    axes: Axes, curves: Sequence[Sequence[LossPoint]], attribute: str, label: str, divisor: float = 1
) -> list[End]:
    """Draw the curves against one attribute of their points, and return where they end."""
    ends = []
    for index, points in enumerate(curves):
        places = [getattr(point, attribute) / divisor for point in points]
        if not any(math.isfinite(place) for place in places):
            continue
        values = [point.value for point in points]
        if len(points) > MANY_POINTS:
            axes.plot(places, values, color=_style(index)["color"], linewidth=0.5, alpha=0.25)
        axes.plot(places, smoothed(values), linewidth=1.7, **_style(index))
        ends.append((places[-1], smoothed(values)[-1], index))
    axes.set_xlabel(label)
    few_ticks(axes.xaxis, 4)
    if not ends:
        say(axes, f"None of these runs knows its {label}.", width=30)
    return ends


def _number(axes: Axes, ends: Sequence[End]) -> None:
    """Mark where runs end with their numbers, for whoever cannot tell the colours apart."""
    known = [end for end in ends if math.isfinite(end[0]) and math.isfinite(end[1])]
    places = {end[2]: axes.transData.transform(end[:2]) for end in known}
    for place, value, index in known:
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        axes.plot([place], [value], marker=marker, color=color, markersize=6)
        # Numbers that would lie on each other are written in a column, in the order of the values.
        near = [other for other in places if np.abs(places[other] - places[index]).max() < NEAR]
        near.sort(key=lambda other: (float(places[other][1]), other))
        up = 10 * (near.index(index) - (len(near) - 1) / 2) + 1
        axes.annotate(
            str(index + 1),
            (place, value),
            textcoords="offset points",
            xytext=(7, up),
            fontsize="small",
            color=color,
            fontweight="bold",
        )


def _draw_seconds(axes: Axes, curves: Sequence[Sequence[LossPoint]]) -> list[End]:
    longest = max((point.seconds for points in curves for point in points if point.seconds > 0), default=0.0)
    size, unit = time_unit(longest) if longest > 0 else (1.0, "s")
    return _draw(axes, curves, "seconds", f"time of training, in {unit}", size)


def _draw_front(axes: Axes, curves: Sequence[Sequence[LossPoint]]) -> list[End]:
    """Draw the last value of each run against its steps, and the line of those that no other run beats in both."""
    ends = []
    for index, points in enumerate(curves):
        known = [point for point in points if math.isfinite(point.value) and point.optimizer_steps > 0]
        if known:
            ends.append((float(known[-1].optimizer_steps), smoothed([point.value for point in known])[-1], index))
    best, front = math.inf, []
    for steps, value, _ in sorted(ends):
        if value < best:
            best = value
            front.append((steps, value))
    if len(front) > 1:
        axes.step(*zip(*front, strict=True), where="post", color=GREY, linewidth=1, zorder=0)
    axes.plot([end[0] for end in ends], [end[1] for end in ends], linestyle="")  # for the limits
    if ends:
        axes.set_xscale("log")
        axes.margins(0.15)
        plain_log_ticks(axes.xaxis)
    else:
        say(axes, "None of these runs knows its optimizer steps.", width=30)
    axes.set_xlabel("optimizer steps of the run")
    axes.set_title("front: last loss against steps", fontsize="small", color=GREY)
    return ends


def _explain(figure: Figure, axes: Axes, compared: Sequence[ComparedRun], name: str) -> None:
    handles = []
    for index, run in enumerate(compared):
        missing = "" if run.losses.get(name) else f" (has no {name})"
        label, marker = plain(f"{index + 1}: {run.name}{missing}"), MARKERS[index % len(MARKERS)]
        handles += axes.plot([], [], linewidth=1.7, marker=marker, markersize=5, label=label, **_style(index))
    figure.legend(
        handles=handles, loc="outside upper left", ncols=min(3, len(handles)), fontsize="small", frameon=False
    )
