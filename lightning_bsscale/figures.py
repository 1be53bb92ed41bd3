"""Figures drawn from records alone (matplotlib is imported inside the functions)."""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast
from weakref import ref

from lightning_bsscale.theory.branching import BranchAnswer, Verdict
from lightning_bsscale.theory.noise_report import NoiseReport
from lightning_bsscale.theory.numbers import describe_count, describe_number, time_unit
from lightning_bsscale.theory.planning import Plan, Row
from lightning_bsscale.theory.records import DecisionRecord, Measurement
from lightning_bsscale.theory.tradeoff import examples_for_steps, relative_examples, relative_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

NOISE, BATCH, RATE = "#0072B2", "#D55E00", "#009E73"  # distinguishable for colour-blind readers


MOST_OPEN = 10  # pyplot warns about more than 20, and the user may have some too
_open_figures: deque[ref[Figure]] = deque()


def _figure(panels: int, *, shares_x: bool = True) -> tuple[Figure, Any]:
    # Notebooks and plt.show() show pyplot's figures, but pyplot keeps each of them until it is closed. A notebook
    # closes them at the end of the cell, and in an interactive session the user does. A script that plots after each
    # epoch closes none, so the oldest of ours are closed there; a closed figure can still be saved.
    try:
        from matplotlib import is_interactive
        from matplotlib import pyplot as plt
        from matplotlib.figure import Figure as NewFigure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Plots need matplotlib: pip install 'lightning-bsscale[plot]'.") from error
    size: dict[str, Any] = {"figsize": (8, 3.6 * panels), "layout": "constrained"}
    figure: Figure | None = None
    if threading.current_thread() is threading.main_thread():  # other threads cannot open a window
        # Without a display, MPLBACKEND=TkAgg is an ImportError: such a figure can still be saved.
        with contextlib.suppress(ImportError):
            figure = plt.figure(**size)
    if figure is None:
        figure = NewFigure(**size)
    elif not is_interactive():  # checked here, because a notebook's backend is set when it creates its first figure
        _open_figures.append(ref(figure))
        while len(_open_figures) > MOST_OPEN:
            oldest = _open_figures.popleft()()
            if oldest is not None:
                plt.close(oldest)
    return figure, figure.subplots(panels, 1, sharex=shares_x)


def _batch_staircase(
    history: Sequence[Measurement], decisions: Sequence[DecisionRecord]
) -> tuple[list[float], list[float]]:
    """Return x and y of the batch against examples, for steps that change after x."""
    changes = [record for record in decisions if record.is_change]
    last = max(
        [made.examples_seen for made in history] + [record.situation.examples_seen for record in decisions], default=0
    )
    if changes:
        xs = [0.0] + [record.situation.examples_seen for record in changes] + [last]
        ys = [changes[0].situation.batch_size] + [record.batch_size for record in changes]
        return xs, [*ys, ys[-1]]
    if decisions:
        return [0.0, last], [decisions[0].batch_size] * 2
    return [made.examples_seen for made in history], [made.batch_size for made in history]


def _draw_noise(axes: Axes, history: Sequence[Measurement], decisions: Sequence[DecisionRecord], unit: str) -> None:
    known = [made for made in history if made.noise is not None]
    xs = [made.examples_seen for made in known]
    noises = [made.noise for made in known if made.noise is not None]
    batch_xs, batches = _batch_staircase(history, decisions)
    shown = [*(noise.noise_scale for noise in noises if noise.resolved), *batches] or [1.0]
    top, bottom = 4 * max(shown), 0.5 * min(shown)
    # An unknown (or very large) upper end is drawn to the edge, and an unresolved estimate as a gap.
    resolved = [noise.resolved for noise in noises]
    axes.fill_between(
        xs,
        [max(noise.low, bottom) for noise in noises],
        [min(noise.high, top) for noise in noises],
        color=NOISE,
        alpha=0.2,
        linewidth=0,
        label="90 % interval",
    )
    line = [noise.noise_scale if noise.resolved else math.nan for noise in noises]
    axes.plot(
        xs,
        line,
        color=NOISE,
        linewidth=1.2,
        label="noise scale (where resolved)" if not all(resolved) else "noise scale",
    )
    axes.step(batch_xs, batches, where="post", color=BATCH, linewidth=1.6, label="batch")
    axes.set_yscale("log", base=2)
    axes.set_ylim(bottom, top)
    axes.yaxis.set_major_formatter(lambda value, _: describe_count(value))
    axes.set_ylabel(unit)
    axes.legend(loc="best", fontsize="small")


def _label_seen(axes: Axes, unit: str) -> None:
    axes.set_xlabel(f"{unit} seen")
    axes.xaxis.set_major_formatter(lambda value, _: describe_count(value))


def _draw_rate(axes: Axes, history: Sequence[Measurement], decisions: Sequence[DecisionRecord]) -> None:
    xs = [made.examples_seen for made in history]
    without = [made.lr / made.lr_scale if made.lr_scale else math.nan for made in history]
    # A window of another size (a short last one) has its own factor; the current batch's factor is drawn.
    factors = [(record.situation.examples_seen, record.lr_scale) for record in decisions if record.is_change]
    current = [next((f for seen, f in reversed(factors) if seen < x), 1.0) for x in xs]
    axes.plot(
        xs,
        [lr * factor for lr, factor in zip(without, current, strict=True)],
        color=RATE,
        linewidth=1.2,
        label="learning rate",
    )
    axes.plot(
        xs,
        without,
        color="0.4",
        linestyle="--",
        linewidth=1,
        label="without the factor",
    )
    axes.set_ylabel("learning rate")
    axes.legend(loc="best", fontsize="small")


def plot_noise_scale(
    history: Sequence[Measurement],
    decisions: Sequence[DecisionRecord] = (),
    ax: Axes | None = None,
    *,
    unit: str = "examples",
) -> tuple[Figure, Any]:
    """Draw the noise scale with its band and the batch against examples seen.

    Args:
        history: measured windows
        decisions: changes of the batch; without any, the batch of the measured windows is drawn
        ax: axes to draw on; None creates a figure
        unit: what the run counts

    Returns:
        The figure and the axes.
    """
    figure, axes = _figure(1) if ax is None else (cast("Figure", ax.figure), ax)
    _draw_noise(axes, history, decisions, unit)
    _label_seen(axes, unit)
    return figure, axes


def plot_run(
    history: Sequence[Measurement],
    decisions: Sequence[DecisionRecord],
    ax: Axes | None = None,
    *,
    unit: str = "examples",
) -> tuple[Figure, Any]:
    """Draw noise scale and batch, and below them the learning rate with and without the factor.

    Args:
        history: measured windows
        decisions: changes of the batch
        ax: axes to draw the upper panel alone on; None creates a figure with both
        unit: what the run counts

    Returns:
        The figure, and its axes (one or both).
    """
    if ax is not None:
        return plot_noise_scale(history, decisions, ax, unit=unit)
    figure, axes = _figure(2)
    _draw_noise(axes[0], history, decisions, unit)
    _draw_rate(axes[1], history, decisions)
    _label_seen(axes[1], unit)
    return figure, axes


# ---------------------------------------------------------------- a plan


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
    figure, axes = _figure(2 if has_hours else 1, shares_x=False)
    _draw_bend(axes[0] if has_hours else axes, plan)
    if has_hours:
        _draw_time(axes[1], plan)
    return figure, axes


def plot_layers(reports: NoiseReport | Mapping[str, NoiseReport], ax: Axes | None = None) -> tuple[Figure, Any]:
    """Draw the noise scale of each layer: bars with intervals, or a heat map of layers against checkpoints.

    Args:
        reports: one report, or several by the name of their checkpoint, in order
        ax: axes to draw on; None creates a figure

    Returns:
        The figure and the axes.
    """
    several = {"": reports} if isinstance(reports, NoiseReport) else dict(reports)
    names = list(dict.fromkeys(name for report in several.values() for name in report.layers))
    figure, axes = _figure(1) if ax is None else (cast("Figure", ax.figure), ax)
    if ax is None:
        figure.set_size_inches(8, max(2.5, 1.2 + 0.28 * len(names)))
    labels = [name or "(model)" for name in names]
    if isinstance(reports, NoiseReport):
        _draw_bars(axes, reports, names)
        axes.set_yticks(range(len(names)), labels, fontsize="small")
    else:
        values = [[_resolved(report, name) for report in several.values()] for name in names]
        image = axes.imshow(values, aspect="auto", norm="log", interpolation="nearest")
        axes.set_facecolor("0.85")
        axes.set_xticks(range(len(several)), list(several), rotation=30, ha="right")
        axes.set_yticks(range(len(names)), labels, fontsize="small")
        axes.set_title("noise scale of each layer, in examples (grey: not resolved)", fontsize="medium")
        bar = figure.colorbar(image, ax=axes)
        _plain_ticks(bar.ax.yaxis)
        if len(several) <= 8:
            _write_values(axes, values)
    return figure, axes


def _plain_ticks(axis: Axis) -> None:
    """Write the numbers of a logarithmic axis out, at 1, 2 and 5 times each power of ten where the powers are few."""
    low, high = axis.get_view_interval()
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
    is_wide = high > 100 * low
    axis.set_minor_formatter(lambda value, _: "" if is_wide or f"{value:e}"[0] not in "25" else f"{value:,g}")


def _write_values(axes: Axes, values: Sequence[Sequence[float]]) -> None:
    known = [value for row in values for value in row if math.isfinite(value)]
    middle = math.sqrt(min(known) * max(known)) if known else 1.0
    for line, row in enumerate(values):
        for place, value in enumerate(row):
            if math.isfinite(value):
                color = "white" if value <= middle else "black"
                axes.text(
                    place, line, describe_number(value), ha="center", va="center", fontsize="x-small", color=color
                )


def _resolved(report: NoiseReport, name: str) -> float:
    noise = report.layers.get(name)
    return noise.noise_scale if noise is not None and noise.resolved else math.nan


def _draw_bars(axes: Axes, report: NoiseReport, names: Sequence[str]) -> None:
    layers = [report.layers[name] for name in names]
    ends = [end for noise in [*layers, report.noise] for end in (noise.low, noise.high) if 0 < end < math.inf]
    left, right = (0.7 * min(ends), 1.4 * max(ends)) if ends else (0.5, 2.0)
    for place, noise in enumerate(layers):
        # An unknown upper end is drawn to the edge, in grey.
        low, high = max(noise.low, left), min(noise.high, right)
        axes.barh(place, high - low, left=low, height=0.5, color=NOISE if noise.resolved else "0.8", alpha=0.45)
        if noise.resolved:
            axes.plot([noise.noise_scale], [place], marker="o", markersize=4, color=NOISE)
    if report.noise.resolved:
        axes.axvline(report.noise.noise_scale, color=BATCH, linewidth=1.4, label="whole model")
        axes.legend(loc="best", fontsize="small")
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    _plain_ticks(axes.xaxis)
    axes.set_ylim(len(names) - 0.4, -0.6)
    confidence = f"{100 * report.noise.confidence:.3g} %"
    axes.set_xlabel(f"noise scale in examples, with its {confidence} interval (grey: not resolved)")


def plot_branches(answer: BranchAnswer, ax: Axes | None = None) -> tuple[Figure, Any]:
    """Draw what an example is worth in each branch, and where the critical batch lies.

    Args:
        answer: the critical batch by branching
        ax: axes to draw on; None creates a figure

    Returns:
        The figure and the axes.
    """
    figure, axes = _figure(1) if ax is None else (cast("Figure", ax.figure), ax)
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
