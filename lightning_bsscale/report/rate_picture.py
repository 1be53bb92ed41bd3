"""The picture of the learning rate as it was, with its jumps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_bsscale.report.axes import LARGEST, Scale, linear
from lightning_bsscale.report.drawing import BOTTOM, TOP, frame, line, picture
from lightning_bsscale.report.figure import Axis, Figure, in_order, on_each_axis, shown, spread
from lightning_bsscale.report.markup import Markup
from lightning_bsscale.report.run_record import Place, RunRecord

__all__ = ["learning_rate_figure"]


def learning_rate_figure(run: RunRecord, name: str, limit: int, axes: Sequence[Axis]) -> Figure | None:
    """Draw the learning rate as it was, with its jumps, and without the factor; None where it is not known."""
    windows = [
        one
        for one in spread(run.windows.items, limit)
        if math.isfinite(one.lr) and math.isfinite(one.lr_scale) and one.lr_scale > 0
    ]
    if not windows:
        return None
    plain = [(one.place, one.lr / one.lr_scale) for one in windows]
    real = _with_jumps(run, plain) if run.numbers.acts else [(one.place, one.lr) for one in windows]
    y = linear([value for _, value in [*plain, *real]], BOTTOM, TOP, from_zero=True)
    rows = spread(windows, limit // 3)

    def draw(axis: Axis, x: Scale) -> Markup:
        return picture(
            f"{name}-{axis.key}",
            f"Learning rate against {axis.name}",
            f"The learning rate ends at {shown(real[-1][1])}; without the factor it would end at "
            f"{shown(plain[-1][1])}.",
            frame(x, y, axis.name),
            line(in_order(axis, plain), x, y, "plain"),
            line(in_order(axis, real), x, y, "rate"),
            axis=axis.key,
        )

    pictures, points = on_each_axis(run, axes, rows, draw)
    legend = [("rate", "learning rate")]
    legend += [("plain", "without the factor for the batch")] if real != plain else []
    return Figure(
        name=name,
        heading="Learning rate",
        pictures=pictures,
        legend=legend,
        reading=(
            "Each jump is a change of the batch: a larger batch can take larger steps, and the rule says how much "
            "larger. The dashed line is your schedule alone, at the same place of the training."
        ),
        head=(run.unit, "step", "learning rate", "factor", "without the factor"),
        rows=[
            (
                shown(one.place.examples),
                shown(one.place.steps),
                shown(one.lr),
                shown(one.lr_scale),
                shown(one.lr / one.lr_scale),
            )
            for one in rows
        ],
        points=points,
    )


def _with_jumps(run: RunRecord, plain: Sequence[tuple[Place, float]]) -> list[tuple[Place, float]]:
    """Return the learning rate of usual windows: the schedule's times the factor that was current, with both ends."""
    # A window of another size, such as a short last one, has its own factor, so the windows' own are not joined.
    made: list[tuple[Place, float]] = []
    factor, changes = 1.0, list(run.changes.items)
    if changes:
        factor = _factor_before(run)
    elif run.latest is not None:
        factor = run.latest.lr_scale
    before = plain[0][1]
    for place, value in plain:
        while changes and changes[0].place.examples <= place.examples:
            change = changes.pop(0)
            made.append((change.place, before * factor))
            factor = change.record.lr_scale
            made.append((change.place, before * factor))
        made.append((place, value * factor))
        before = value
    return made


def _factor_before(run: RunRecord) -> float:
    state = run.header.get("state")
    batch = state.get("batch") if isinstance(state, dict) else None
    factor = batch.get("lr_scale") if isinstance(batch, dict) else None
    return float(factor) if isinstance(factor, (int, float)) and 0 < factor < LARGEST else 1.0
