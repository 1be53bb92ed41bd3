"""The picture of a forecast (matplotlib is imported inside the function)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lightning_bsscale.simulation.forecast import Forecast

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_forecast"]

COLORS = ("#555555", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*"


def draw_forecast(forecast: Forecast) -> Figure:
    """Draw batch sizes against examples, and the losses at the end against steps.

    Args:
        forecast: What each policy would do.

    Returns:
        The figure.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Pictures need matplotlib: pip install 'lightning-bsscale[plot]'.") from error
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    batches, ends = figure.subplots(1, 2, width_ratios=(3, 2))
    numbers = forecast.numbers
    examples = np.linspace(0, numbers.examples, 200)
    batches.plot(examples, numbers.law(examples), color="#888888", linestyle="--", label="noise scale, as given")
    for number, row in enumerate(forecast.rows):
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        xs = [0, *(stretch.examples_seen for stretch in row.stretches)]
        ys = [row.stretches[0].batch_size, *(stretch.batch_size for stretch in row.stretches)]
        line = {"color": color, "linewidth": 1.5, "marker": marker, "markersize": 6, "markevery": [len(xs) - 1]}
        batches.plot(xs, ys, drawstyle="steps-pre", label=row.policy, **line)
        ends.plot([row.steps], [row.loss], marker, color=color, markersize=8, label=row.policy)
    batches.set(xlabel="examples", ylabel="batch size, in examples", title="Batch size", xlim=(0, numbers.examples))
    batches.set_yscale("log", base=2)
    ends.set(xlabel="optimizer steps", ylabel=f"loss, relative to {forecast.rows[0].policy}", title="Loss at the end")
    ends.set_xscale("log")
    ends.axhline(1, color="#bbbbbb", linewidth=0.8, zorder=0)
    for axes in (batches, ends):
        axes.xaxis.set_major_formatter(lambda value, _: _short(value))
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.grid(alpha=0.25, linewidth=0.6)
    batches.yaxis.set_major_formatter(lambda value, _: _short(value))
    ends.margins(0.15)
    # Below both, because staircases leave no corner free.
    figure.legend(*batches.get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=5)
    return figure


def _short(number: float) -> str:
    for size, name in ((1e9, " B"), (1e6, " M")):
        if abs(number) >= size:
            return f"{number / size:g}{name}"
    return f"{number:,g}"
