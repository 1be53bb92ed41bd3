"""The picture of what the batch bought: the worth of an example, and the progress of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_bsscale.report.axes import LARGEST, Scale, linear
from lightning_bsscale.report.drawing import BOTTOM, TOP, frame, line, picture
from lightning_bsscale.report.figure import Axis, Figure, in_order, on_each_axis, shown, spread
from lightning_bsscale.report.markup import Markup
from lightning_bsscale.report.run_record import RunRecord, Window
from lightning_bsscale.theory.numbers import one_of
from lightning_bsscale.theory.tradeoff import sample_efficiency

__all__ = ["is_known_worth", "worth_figure", "worth_of"]

FEWEST = 3
"""Windows with a resolved noise scale below which there is no line to draw."""


def worth_figure(run: RunRecord, name: str, limit: int, axes: Sequence[Axis]) -> Figure | None:
    """Draw what an example was worth, and how far a step got; None where the noise scale was hardly ever resolved."""
    everywhere = spread(run.windows.items, limit)
    windows = [window for window in everywhere if is_known_worth(window)]
    if len(windows) < FEWEST:
        return None
    one = one_of(run.unit)
    worth = [(each.place, worth_of(each) if is_known_worth(each) else math.nan) for each in everywhere]
    progress = [(place, 1 - value) for place, value in worth]
    last = worth_of(windows[-1])
    y = linear([0.0, 1.0], BOTTOM, TOP, ticks=5)
    rows = spread(windows, limit // 3)

    def draw(axis: Axis, x: Scale) -> Markup:
        return picture(
            f"{name}-{axis.key}",
            f"Worth of {one} and progress of a step against {axis.name}",
            f"Where it was last known, {one} is worth {100 * last:.0f} % of one in a tiny batch, and a step "
            f"makes {100 - 100 * last:.0f} % of the most that one step can.",
            frame(x, y, axis.name, percent=True),
            line(in_order(axis, worth), x, y, "worth"),
            line(in_order(axis, progress), x, y, "progress"),
            axis=axis.key,
        )

    pictures, points = on_each_axis(run, axes, rows, draw)
    return Figure(
        name=name,
        heading="What the batch bought, and what it cost",
        pictures=pictures,
        legend=[("worth", f"worth of {one}"), ("progress", "progress of a step")],
        reading=(
            f"A larger batch makes more progress in a step, and less with each of its {run.unit}: the two lines always "
            "add up to 100 %, and cross where the batch equals the noise scale. Both follow from the measured noise "
            "scale by a model of one step (McCandlish et al. 2018); they are not measured losses."
        ),
        note="They have gaps where the noise scale is not resolved." if len(windows) < len(everywhere) else None,
        head=(run.unit, "step", "batch", "noise scale", f"worth of {one}", "progress of a step"),
        rows=[
            (
                shown(row.place.examples),
                shown(row.place.steps),
                shown(row.batch_size),
                shown(row.resolved),
                f"{100 * worth_of(row):.1f} %",
                f"{100 - 100 * worth_of(row):.1f} %",
            )
            for row in rows
        ],
        points=points,
    )


def is_known_worth(window: Window) -> bool:
    """Return whether what an example is worth in this window follows from its numbers."""
    return 0 < window.resolved < LARGEST and window.batch_size > 0


def worth_of(window: Window) -> float:
    """Return what an example is worth, relative to one in a very small batch: 1 / (1 + B / B_noise)."""
    return sample_efficiency(window.batch_size, window.resolved)
