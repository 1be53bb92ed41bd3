"""Several runs compared: who ended where, their losses in one picture, and steps against examples."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_bsscale.report.axes import drawable, linear
from lightning_bsscale.report.drawing import BOTTOM, LEFT, RIGHT, TOP, frame, line, picture
from lightning_bsscale.report.figure import Axis, Figure, shown, spread, table
from lightning_bsscale.report.markup import Markup, cut, tag
from lightning_bsscale.report.metric_picture import (
    in_reading_order,
    line_class,
    line_legend,
    metric_figure,
    numbers_at_ends,
)
from lightning_bsscale.report.run_record import RunRecord
from lightning_bsscale.report.sections import KNOWN, mean_worth
from lightning_bsscale.theory.numbers import describe_count, describe_number, describe_time, one_of

__all__ = ["comparison_figures", "comparison_summary"]

MOST_METRICS = 4


def comparison_figures(runs: Sequence[RunRecord], limit: int, axes: Sequence[Axis]) -> list[Figure]:
    """Draw several runs together.

    Args:
        runs: the runs, at least two
        limit: most points in a line
        axes: the first axes to draw on

    Returns:
        The figures.
    """
    return [
        *(metric_figure(runs, name, f"metric-{index}", limit, axes) for index, name in enumerate(_shared(runs))),
        _front(runs, limit),
    ]


def comparison_summary(runs: Sequence[RunRecord]) -> list[Markup]:
    """Say which run ended with the smallest loss and which made the fewest steps, over a table of all of them.

    Args:
        runs: the runs, at least two

    Returns:
        A paragraph and a table.
    """
    # The last value of a training's own loss is that of one window: it compares nothing.
    metrics = [name for name in _shared(runs) if "val" in name.lower()] or _shared(runs)
    head = ("run", "batch", "steps", runs[0].unit, "time", f"worth of {one_of(runs[0].unit)}", *metrics, "journal")
    rows = [(str(index + 1), *_numbers(run, metrics)) for index, run in enumerate(runs)]
    loss = next((name for name in metrics if "loss" in name.lower()), None)
    return [tag("p", _who_is_first(runs, loss)), table(head, rows, caption="The runs in numbers", left=1)]


def _shared(runs: Sequence[RunRecord]) -> list[str]:
    names = in_reading_order({name for run in runs for name in run.metrics})
    return [name for name in names if sum(name in run.metrics for run in runs) > 1][:MOST_METRICS]


def _last(run: RunRecord, metric: str | None) -> float:
    values = run.metrics[metric].items if metric is not None and metric in run.metrics else []
    return values[-1][1] if values else math.nan


def _written(value: float) -> str:
    return "unknown" if math.isnan(value) else describe_number(value, 4)


def _who_is_first(runs: Sequence[RunRecord], loss: str | None) -> Markup:
    fewest = min(range(len(runs)), key=lambda index: runs[index].now.steps)
    steps = [describe_count(run.now.steps) for run in runs]
    ends = {index: value for index, run in enumerate(runs) if drawable([value := _last(run, loss)])}
    if loss is None or len(ends) < 2:
        return tag("bdi", f"Run {fewest + 1} made the fewest optimizer steps, {steps[fewest]}.")
    best, name = min(ends, key=lambda index: ends[index]), cut(loss, 80)
    said = f"Run {best + 1} ended with the smallest {name}, {_written(ends[best])}, "
    if best == fewest:
        said += f"after the fewest optimizer steps, {steps[best]}."
    else:
        ended = f", and ended with {_written(ends[fewest])}" if fewest in ends else ""
        said += f"after {steps[best]} optimizer steps. Run {fewest + 1} made the fewest, {steps[fewest]}{ended}."
    return tag("bdi", f"{said} A difference that is no larger than that between two seeds is none.")


def _front(runs: Sequence[RunRecord], limit: int) -> Figure:
    axis = Axis("examples", f"{runs[0].unit} seen", lambda place: place.examples)
    x = linear([run.now.examples for run in runs], LEFT, RIGHT, from_zero=True)
    y = linear([run.now.steps for run in runs], BOTTOM, TOP, from_zero=True)
    lines = [[(place.examples, place.steps) for place in spread(run.track.items, limit)] for run in runs]
    drawn = [line(points, x, y, line_class(index)) for index, points in enumerate(lines)]
    drawn += numbers_at_ends(lines, x, y)
    fewest = min(range(len(runs)), key=lambda index: runs[index].now.steps)
    return Figure(
        name="front",
        heading=f"Optimizer steps against {axis.name}",
        pictures=[
            picture(
                "front-picture",
                f"Optimizer steps of each run against {axis.name}",
                f"Fewest steps, {describe_count(runs[fewest].now.steps)}, has run {fewest + 1}.",
                frame(x, y, axis.name),
                drawn,
            )
        ],
        legend=line_legend(runs),
        reading=(
            "A flatter line is a larger batch: more is averaged in each step. Where a line bends to the right, that "
            "run's batch grew."
        ),
        head=("run", "steps", runs[0].unit),
        rows=[(str(index + 1), shown(run.now.steps), shown(run.now.examples)) for index, run in enumerate(runs)],
    )


def _numbers(run: RunRecord, metrics: Sequence[str]) -> tuple[object, ...]:
    # The batches of a dry run were not trained with, so neither they nor what they are worth belong here.
    is_dry, worth = run.numbers.decides and not run.numbers.acts, mean_worth(run)
    is_known = worth is not None and worth[1] >= KNOWN and not is_dry
    stays = is_dry or run.batch == run.start_batch
    return (
        shown(run.start_batch) if stays else f"{shown(run.start_batch)} → {shown(run.batch)}",
        shown(run.now.steps),
        shown(run.now.examples),
        describe_time(run.now.seconds) if run.timed else "unknown",
        f"{100 * worth[0]:.0f} %" if is_known and worth is not None else "-",
        *(_written(_last(run, name)) for name in metrics),
        tag("bdi", run.path.name),
    )
