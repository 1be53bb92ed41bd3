"""The picture of a plan: examples against steps, and the time of each batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_bsscale.figures.canvas import new_figure
from lightning_bsscale.figures.style import BATCH, NOISE
from lightning_bsscale.theory.numbers import describe_number, time_unit
from lightning_bsscale.theory.planning import Plan, Row
from lightning_bsscale.theory.tradeoff import examples_for_steps, relative_examples, relative_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_plan"]


def _draw_bend(axes: Axes, plan: Plan) -> None:
    critical, chosen = plan.critical, plan.recommended
    shown = [row for row in plan.rows if row.ranks == chosen.ranks]
    sizes = [row.batch_size for row in shown]
    # The hyperbola (S/S_min - 1)(E/E_min - 1) = 1; which batch is where depends on the critical one.
    ends = [relative_steps(size, critical.value) for size in (max(*sizes, critical.value), min(*sizes, critical.value))]
    span = [ends[0] * (ends[1] / ends[0]) ** (number / 200) for number in range(201)]
    axes.plot(span, [examples_for_steps(x, min_steps=1, min_examples=1) for x in span], color="0.6", linewidth=1.2)
    if critical.low < critical.high:
        lowest, highest = max(critical.low, min(sizes) / 8), min(critical.high, 8 * max(sizes))
        bounds = [relative_steps(chosen.batch_size, end) for end in (lowest, highest)]
        inside = [bounds[0] * (bounds[1] / bounds[0]) ** (number / 50) for number in range(51)]
        axes.plot(
            inside,
            [examples_for_steps(x, min_steps=1, min_examples=1) for x in inside],
            color=BATCH,
            alpha=0.25,
            linewidth=9,
            solid_capstyle="round",
            label="its interval",
        )
    label = f"critical batch, {describe_number(critical.value)}"
    axes.plot([2], [2], marker="o", color=NOISE, markersize=8, linestyle="", label=label)
    for row in shown:
        _mark(axes, row, plan, is_chosen=row is chosen)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("steps (fewest = 1)")
    axes.set_ylabel("examples (fewest = 1)")
    axes.legend(loc="upper right", fontsize="small")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(lambda value, _: "")
        axis.set_ticks([1, 1.5, 2, 3, 5, 10, 20, 50])
    axes.set_xlim(0.95, 1.15 * max(ends))
    axes.set_ylim(0.95, 1.25 * relative_examples(max(*sizes, critical.value), critical.value))


def _mark(axes: Axes, row: Row, plan: Plan, *, is_chosen: bool) -> None:
    size, critical = row.batch_size, plan.critical.value
    place = relative_steps(size, critical), relative_examples(size, critical)
    axes.plot(
        *([one] for one in place),
        marker="o" if is_chosen else ".",
        markersize=9 if is_chosen else 6,
        color=BATCH if is_chosen else "0.25",
        linestyle="",
        zorder=3,
        label="recommended" if is_chosen else "_",
    )
    share = size // row.ranks
    if is_chosen or share & (share - 1) == 0:  # powers of two on each device; others stand too close to them
        axes.annotate(
            f"{size:,}",
            place,
            textcoords="offset points",
            xytext=(5, 5),
            fontsize="small",
            color=BATCH if is_chosen else "0.25",
            fontweight="bold" if is_chosen else "normal",
        )


def _draw_time(axes: Axes, plan: Plan) -> None:
    chosen = plan.recommended
    assert chosen.hours is not None
    size, unit = time_unit(3600 * chosen.hours.value)
    for place, ranks in enumerate(sorted({row.ranks for row in plan.rows})):
        style = ("-", "--", "-.", ":")[place % 4]
        rows = [row for row in plan.rows if row.ranks == ranks]
        times = [row.hours.times(3600 / size) for row in rows if row.hours is not None]
        sizes = [row.batch_size for row in rows]
        axes.fill_between(
            sizes, [one.low for one in times], [one.high for one in times], color=NOISE, alpha=0.15, linewidth=0
        )
        label = f"{ranks:,} device{'s' if ranks > 1 else ''}"
        axes.plot(sizes, [one.value for one in times], style, color=NOISE, linewidth=1.4, label=label)
    axes.plot(chosen.batch_size, 3600 * chosen.hours.value / size, "o", color=BATCH, markersize=9, label="recommended")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("batch, in examples")
    axes.set_ylabel(f"time in {unit}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:,g}" if f"{value:e}"[0] in "25" else "")  # of 2 to 9
    axes.legend(loc="best", fontsize="small")


def plot_plan(plan: Plan) -> tuple[Figure, Any]:
    """Draw the bend of examples against steps with the batches on it, and below it the time of each, if known.

    Args:
        plan: the plan

    Returns:
        The figure, and its axes (one or both).
    """
    has_hours = plan.recommended.hours is not None
    figure = new_figure(8, 7.2 if has_hours else 3.6)
    axes: Any = figure.subplots(2 if has_hours else 1, 1)
    _draw_bend(axes[0] if has_hours else axes, plan)
    if has_hours:
        _draw_time(axes[1], plan)
    return figure, axes
