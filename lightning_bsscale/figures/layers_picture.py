"""The picture of the noise scale of each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_bsscale.figures.canvas import one_panel
from lightning_bsscale.figures.style import BATCH, NOISE, plain_log_ticks
from lightning_bsscale.theory.noise_report import NoiseReport
from lightning_bsscale.theory.numbers import describe_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_layers"]


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
    figure, axes = one_panel(ax, height=max(2.5, 1.2 + 0.28 * len(names)))
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
        plain_log_ticks(bar.ax.yaxis)
        if len(several) <= 8:
            _write_values(axes, values)
    return figure, axes


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
    plain_log_ticks(axes.xaxis)
    axes.set_ylim(len(names) - 0.4, -0.6)
    confidence = f"{100 * report.noise.confidence:.3g} %"
    axes.set_xlabel(f"noise scale in examples, with its {confidence} interval (grey: not resolved)")
