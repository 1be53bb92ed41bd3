"""The pictures of one run: noise scale and batch, and below them the learning rate and the losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_bsscale.figures.canvas import new_figure, one_panel
from lightning_bsscale.figures.drawn_run import DrawnRun
from lightning_bsscale.figures.learning_rate_panel import draw_learning_rate
from lightning_bsscale.figures.loss_panel import draw_losses
from lightning_bsscale.figures.noise_panel import draw_noise
from lightning_bsscale.figures.style import plain, seen

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_noise_scale", "plot_run"]

HEIGHTS = {"noise": 3.9, "rate": 2.6, "loss": 2.8}


def plot_noise_scale(run: DrawnRun, ax: Axes | None = None, *, is_shown: bool = True) -> tuple[Figure, Any]:
    """Draw the noise scale and the batch, and below them the losses, if any are known.

    Args:
        run: the run
        ax: axes to draw the noise scale and the batch alone on; None creates a figure
        is_shown: whether a notebook and ``plt.show()`` show it

    Returns:
        The figure and its axes: one, or an array.
    """
    return _plot(run, ax, ["noise"], is_shown=is_shown)


def plot_run(run: DrawnRun, ax: Axes | None = None, *, is_shown: bool = True) -> tuple[Figure, Any]:
    """Draw noise scale and batch, the learning rate, and the losses if any are known, against examples seen.

    Args:
        run: the run
        ax: axes to draw the noise scale and the batch alone on; None creates a figure
        is_shown: whether a notebook and ``plt.show()`` show it

    Returns:
        The figure and its axes: one, or an array.
    """
    return _plot(run, ax, ["noise", "rate"] if run.history else ["noise"], is_shown=is_shown)


def _plot(run: DrawnRun, ax: Axes | None, panels: list[str], *, is_shown: bool) -> tuple[Figure, Any]:
    if ax is not None:
        figure, axes = one_panel(ax)
        draw_noise(axes, run, is_alone=True)
        seen(axes, run.unit)
        axes.set_xlim(0, max(1.0, run.end))
        return figure, axes
    has_losses = any(run.losses.values())
    heights = [HEIGHTS[panel] for panel in [*panels, *(["loss"] if has_losses else [])]]
    figure = new_figure(8, sum(heights), is_shown=is_shown)
    mosaic: list[Any] = [[panel] * 2 for panel in panels] + ([["examples", "steps"]] if has_losses else [])
    by_name = figure.subplot_mosaic(mosaic, height_ratios=heights)
    draw_noise(by_name["noise"], run, is_alone=False)
    if "rate" in by_name:
        draw_learning_rate(by_name["rate"], run)
        by_name["noise"].sharex(by_name["rate"])
    for panel in panels:
        seen(by_name[panel], run.unit)
        by_name[panel].set_xlim(0, max(1.0, run.end))
    if has_losses:
        draw_losses(by_name["examples"], run.losses, lambda point: point.examples_seen, has_legend=False)
        draw_losses(by_name["steps"], run.losses, lambda point: point.optimizer_steps, has_legend=True)
        by_name["examples"].set_xlabel(f"{plain(run.unit)} seen")
        by_name["steps"].set_xlabel("optimizer steps")
    drawn = [by_name[name] for name in dict.fromkeys(name for row in mosaic for name in row)]
    return figure, drawn[0] if len(drawn) == 1 else np.array(drawn, dtype=object)
