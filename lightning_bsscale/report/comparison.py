"""Several runs in one picture: their losses where the journals have them, and steps against examples."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_bsscale.report.axes import linear
from lightning_bsscale.report.drawing import BOTTOM, LEFT, RIGHT, TOP, frame, line, picture
from lightning_bsscale.report.figure import Axis, Figure, shown, spread
from lightning_bsscale.report.metric_picture import line_class, line_legend, metric_figure, number_at_end
from lightning_bsscale.report.run_record import RunRecord
from lightning_bsscale.report.sections import mean_worth
from lightning_bsscale.theory.numbers import describe_count, describe_time

__all__ = ["comparison_figures"]

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
    names = sorted({name for run in runs for name in run.metrics})
    shared = [name for name in names if sum(name in run.metrics for run in runs) > 1]
    return [
        *(
            metric_figure(runs, name, f"metric-{index}", limit, axes)
            for index, name in enumerate(shared[:MOST_METRICS])
        ),
        _front(runs, limit),
    ]


def _front(runs: Sequence[RunRecord], limit: int) -> Figure:
    axis = Axis("examples", f"{runs[0].unit} seen", lambda place: place.examples)
    x = linear([run.now.examples for run in runs], LEFT, RIGHT, from_zero=True)
    y = linear([run.now.steps for run in runs], BOTTOM, TOP, from_zero=True)
    drawn = []
    for index, run in enumerate(runs):
        points = [(place.examples, place.steps) for place in spread(run.track.items, limit)]
        drawn += [line(points, x, y, line_class(index)), number_at_end(index, points, x, y)]
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
        head=("run", "first batch", "last batch", "steps", runs[0].unit, "worth of an example", "time", "journal"),
        rows=[(str(index + 1), *_numbers(run)) for index, run in enumerate(runs)],
        is_open=True,
    )


def _numbers(run: RunRecord) -> tuple[str, ...]:
    worth = mean_worth(run)
    return (
        shown(run.start_batch),
        shown(run.batch),
        shown(run.now.steps),
        shown(run.now.examples),
        "unknown" if worth is None else f"{100 * worth[0]:.0f} %",
        describe_time(run.now.seconds) if run.timed else "unknown",
        run.path.name,
    )
