"""Pictures from records alone (matplotlib inside the functions)."""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import ref

from lightning_bsscale.theory.records import DecisionRecord, Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOISE, BATCH, RATE = "#0072B2", "#D55E00", "#009E73"  # told apart by colour-blind readers too


MOST_OPEN = 10  # pyplot warns of more than 20, and the user has some too
_open_figures: deque[ref[Figure]] = deque()


def _figure(panels: int) -> tuple[Figure, Any]:
    # pyplot's figures are those that notebooks and plt.show() show, but it keeps each of them until it is closed. A
    # notebook closes them at the end of the cell, and in an interactive session the user does. A script that plots
    # after each epoch closes none, so there the oldest of ours are closed: whoever holds one can still save it.
    try:
        from matplotlib import is_interactive
        from matplotlib import pyplot as plt
        from matplotlib.figure import Figure as NewFigure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Plots need matplotlib: pip install 'lightning-bsscale[plot]'.") from error
    size: dict[str, Any] = {"figsize": (8, 3.6 * panels), "layout": "constrained"}
    figure: Figure | None = None
    if threading.current_thread() is threading.main_thread():  # elsewhere a window cannot be opened
        # Without a display, MPLBACKEND=TkAgg is an ImportError: such a figure can still be saved.
        with contextlib.suppress(ImportError):
            figure = plt.figure(**size)
    if figure is None:
        figure = NewFigure(**size)
    elif not is_interactive():  # asked now, as a notebook's backend says so when it makes its first figure
        _open_figures.append(ref(figure))
        while len(_open_figures) > MOST_OPEN:
            oldest = _open_figures.popleft()()
            if oldest is not None:
                plt.close(oldest)
    return figure, figure.subplots(panels, 1, sharex=True)


def _batch_staircase(
    history: Sequence[Measurement], decisions: Sequence[DecisionRecord]
) -> tuple[list[float], list[float]]:
    # Corners of the batch against examples, for steps that change after the given x.
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


def _draw_noise(axes: Axes, history: Sequence[Measurement], decisions: Sequence[DecisionRecord]) -> None:
    known = [made for made in history if made.noise is not None]
    xs = [made.examples_seen for made in known]
    noises = [made.noise for made in known if made.noise is not None]
    batch_xs, batches = _batch_staircase(history, decisions)
    told = [*(noise.noise_scale for noise in noises if noise.resolved), *batches] or [1.0]
    top, bottom = 4 * max(told), 0.5 * min(told)
    # An unknown (or very far) upper end is drawn to the edge, an unresolved estimate as a gap: neither is a number.
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
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylabel("examples")
    axes.legend(loc="best", fontsize="small")


def _draw_rate(axes: Axes, history: Sequence[Measurement], decisions: Sequence[DecisionRecord]) -> None:
    xs = [made.examples_seen for made in history]
    without = [made.lr / made.lr_scale if made.lr_scale else math.nan for made in history]
    # A window of another size (a probe, a short last one) has a factor of its own: drawn is that of the batch in force.
    factors = [(record.situation.examples_seen, record.lr_scale) for record in decisions if record.is_change]
    in_force = [next((f for seen, f in reversed(factors) if seen < x), 1.0) for x in xs]
    axes.plot(
        xs,
        [rate * factor for rate, factor in zip(without, in_force, strict=True)],
        color=RATE,
        linewidth=1.2,
        label="rate",
    )
    axes.plot(
        xs,
        without,
        color="0.4",
        linestyle="--",
        linewidth=1,
        label="rate without the factor",
    )
    axes.set_ylabel("learning rate")
    axes.legend(loc="best", fontsize="small")


def plot_noise_scale(
    history: Sequence[Measurement], decisions: Sequence[DecisionRecord] = (), ax: Axes | None = None
) -> tuple[Figure, Any]:
    """Draws the noise scale with its band over the batch staircase, against examples seen.

    Args:
        history: measured windows
        decisions: changes of the batch; without any, the measured windows' own batch is drawn
        ax: where to draw; None makes a figure

    Returns:
        the figure and the axes
    """
    figure: Any = None if ax is None else ax.figure
    axes: Any = ax
    if ax is None:
        figure, axes = _figure(1)
    _draw_noise(axes, history, decisions)
    axes.set_xlabel("examples seen")
    return figure, axes


def plot_run(
    history: Sequence[Measurement], decisions: Sequence[DecisionRecord], ax: Axes | None = None
) -> tuple[Figure, Any]:
    """Draws noise scale and batch, and below them the rate with and without the factor, against examples seen.

    Args:
        history: measured windows
        decisions: changes of the batch
        ax: where to draw the upper panel alone; None makes a figure with both

    Returns:
        the figure, and its axes (one, or both)
    """
    if ax is not None:
        return plot_noise_scale(history, decisions, ax)
    figure, axes = _figure(2)
    _draw_noise(axes[0], history, decisions)
    _draw_rate(axes[1], history, decisions)
    axes[1].set_xlabel("examples seen")
    return figure, axes
