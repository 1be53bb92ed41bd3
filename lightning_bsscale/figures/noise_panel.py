"""The panel of the noise scale and the batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lightning_bsscale.figures.drawn_run import DrawnRun, spread
from lightning_bsscale.figures.style import BATCH, GREY, NOISE, TARGET, VEIL, count_ticks, legend_above, plain, say
from lightning_bsscale.theory.numbers import describe_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_noise", "draw_veil"]

MOST_MARKS = 60
WARMUP, UNRESOLVED = "warmup: no growth yet", "not resolved"
FOOT = 0.035  # height of the strip, as a share of the axes


def draw_noise(axes: Axes, run: DrawnRun, *, is_alone: bool) -> None:
    """Draw the noise scale with its band, the bound that decides, the target and the batch.

    Args:
        axes: where to draw
        run: the run
        is_alone: whether the axes are the user's
    """
    windows = spread([made for made in run.history if made.noise is not None])
    noises = [made.noise for made in windows if made.noise is not None]
    resolved = [noise.noise_scale for noise in noises if noise.resolved]
    sizes = [size for _, size in run.batch]
    draw_veil(axes, run, label=WARMUP)
    bound = run.bound(windows)
    bottom, top = _limits([*resolved, *sizes, *_targets(run, bound)])
    if resolved:
        line = [noise.noise_scale if noise.resolved else math.nan for noise in noises]
        axes.plot([made.examples_seen for made in windows], line, color=NOISE, linewidth=1.6, label="noise scale")
    if noises:
        # An unknown (or very large) upper end is drawn to the edge, and an unresolved estimate as a gap.
        axes.fill_between(
            [made.examples_seen for made in windows],
            [max(noise.low, bottom) for noise in noises],
            [min(noise.high, top) for noise in noises],
            color=NOISE,
            alpha=0.2,
            linewidth=0,
            label=f"its {100 * noises[-1].confidence:.3g} % interval",
        )
        _draw_bound(axes, run, bound)
    _draw_batch(axes, run)
    _draw_limit(axes, run, bottom, top)
    _draw_unresolved(axes, run)
    axes.set_yscale("log", base=2)
    axes.set_ylim(bottom, top)
    count_ticks(axes.yaxis)
    axes.set_ylabel(f"{plain(run.unit)} in one step")
    legend_above(axes, is_alone=is_alone, last=[WARMUP, UNRESOLVED])
    if not run.history:
        say(axes, run.why or "Nothing was measured, so there is nothing to draw.")
    elif not resolved and run.why:
        say(axes, run.why)


def _limits(values: list[float]) -> tuple[float, float]:
    shown = values or [1.0]
    return 0.4 * min(shown), 4 * max(shown)


def _targets(run: DrawnRun, bound: list[tuple[float, float]]) -> list[float]:
    ratio = run.target_ratio
    if ratio is None:
        return [target for _, target in run.targets]
    return [ratio * value for _, value in bound if not math.isnan(value)]


def draw_veil(axes: Axes, run: DrawnRun, *, label: str | None = None) -> None:
    """Shade the warmup."""
    if run.warmup_examples > 0 and run.end > 0:
        axes.axvspan(0, min(run.warmup_examples, run.end), color=VEIL, linewidth=0, zorder=0, label=label)


def _draw_bound(axes: Axes, run: DrawnRun, bound: list[tuple[float, float]]) -> None:
    if all(math.isnan(value) for _, value in bound):
        return
    ratio, share = run.target_ratio, f"{100 * (run.confidence or 0):.3g} %"
    is_target = ratio is not None and math.isclose(ratio, 1)
    label = f"its lower bound ({share}){' = target' if is_target else ''}"
    xs = [seen for seen, _ in bound]
    axes.plot(xs, [value for _, value in bound], color=NOISE, linestyle="--", linewidth=1, label=label)
    if ratio is not None and not is_target:
        label = f"target: {describe_number(ratio)} × lower bound"
        axes.plot(xs, [ratio * value for _, value in bound], color=TARGET, linestyle="-.", linewidth=1.2, label=label)
    elif ratio is None and run.targets:
        at, targets = zip(*run.targets, strict=True)
        axes.plot(at, targets, color=TARGET, linestyle="", marker="D", markersize=4, label="target of a decision")


def _draw_batch(axes: Axes, run: DrawnRun) -> None:
    if not run.batch:
        return
    xs, sizes = zip(*run.batch, strict=True)
    label = "batch (dry run: not used)" if run.is_dry_run else "batch"
    axes.step(xs, sizes, where="post", color=BATCH, linewidth=2, label=label)
    changes = run.changes
    if 0 < len(changes) <= MOST_MARKS:
        axes.plot(
            [record.situation.examples_seen for record in changes],
            [record.batch_size for record in changes],
            linestyle="",
            marker="o",
            markersize=4.5,
            markerfacecolor="white",
            markeredgecolor=BATCH,
            label="batch changed",
        )


def _draw_limit(axes: Axes, run: DrawnRun, bottom: float, top: float) -> None:
    limit = run.step_limit(bottom, top)
    if limit:
        seen, most = zip(*limit, strict=True)
        label = f"largest batch that min_steps={run.min_steps:,} allows"
        axes.plot(seen, most, color=BATCH, linestyle=(0, (2, 2)), linewidth=0.9, label=label)


def _draw_unresolved(axes: Axes, run: DrawnRun) -> None:
    stretches = run.unresolved
    if stretches:
        axes.broken_barh(
            [(begin, end - begin) for begin, end in stretches],
            (0, FOOT),
            transform=axes.get_xaxis_transform(),
            facecolor="white",
            edgecolor=GREY,
            hatch="//////",
            linewidth=0.5,
            label=UNRESOLVED,
        )
