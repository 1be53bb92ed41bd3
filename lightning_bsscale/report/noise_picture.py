"""The picture of the noise scale and of the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_bsscale.report.axes import LARGEST, Scale, drawable, logarithmic
from lightning_bsscale.report.drawing import BOTTOM, TOP, band, frame, line, picture, spans, stairs
from lightning_bsscale.report.figure import Axis, Figure, in_order, on_each_axis, shown, spread
from lightning_bsscale.report.markup import Markup, number, tag
from lightning_bsscale.report.run_record import Place, RunRecord, Window
from lightning_bsscale.theory.numbers import describe_number
from lightning_bsscale.theory.policies import most_with_enough_steps

__all__ = ["batch_stairs", "noise_figure"]

MOST_MARKS = 60


def _bound(window: Window, confidence: float | None) -> float:
    """Return the one-sided lower bound that a policy of this confidence decides by; nan where it does not."""
    noise = window.noise
    if noise is None or not noise.resolved or confidence is None or not 0.5 <= confidence < 1:
        return math.nan
    try:
        return noise.lower_bound(confidence)
    except (ArithmeticError, ValueError):  # numbers of a file that cannot belong together
        return math.nan


def _confidence(run: RunRecord) -> float | None:
    return None if run.latest is None else run.latest.decision.confidence


def _target_ratio(run: RunRecord) -> float:
    """Return the target as a multiple of the bound, where all decisions agree on one; else 1."""
    records = [change.record for change in run.changes.items]
    records += [] if run.latest is None else [run.latest]
    pairs = [(record.decision.bound, record.decision.target) for record in records]
    ratios = [target / bound for bound, target in pairs if bound and target and 0 < bound < LARGEST]
    is_one = bool(ratios) and all(math.isclose(ratio, ratios[0], rel_tol=1e-6) for ratio in ratios)
    return ratios[0] if is_one and 0 < ratios[0] < LARGEST else 1.0


def _min_steps(run: RunRecord) -> int:
    return 0 if run.facts is None else run.facts.profile.min_steps


def _step_limit(run: RunRecord, y: Scale, limit: int) -> list[tuple[Place, float]]:
    """Return the largest batch that the policy's `min_steps` allows, where it lies within the picture."""
    points = []
    for place in run.track.items:
        try:
            most = most_with_enough_steps(_min_steps(run), run.numbers.total_examples, place.examples)
        except ArithmeticError:  # numbers of a file that cannot belong together
            return []
        if y.low <= most <= y.high:
            points.append((place, most))
    return spread(points, limit)


def batch_stairs(run: RunRecord) -> list[tuple[Place, float]]:
    """Return the batch as a staircase: where each size begins, and the end."""
    changes = run.changes.items
    first = float(changes[0].record.situation.batch_size) if changes else run.batch
    steps = [(run.first, first)]
    steps += [(change.place, float(change.record.batch_size)) for change in changes]
    return [*steps, (run.now, steps[-1][1])]


_WHY_IT_GROWS = (
    "The batch grows where the lower bound, not the line itself, has risen well above it, so that an uncertain "
    "measurement does not make it grow."
)
_WHAT_IT_MEANS = (
    "Where the whole band lies above the batch, a larger one would save steps; where it lies below, a smaller one "
    "would save examples."
)


def noise_figure(run: RunRecord, name: str, limit: int, axes: Sequence[Axis]) -> Figure:
    """Draw the noise scale with its band, the bound that decides, and the batch.

    Args:
        run: the run
        name: id of the figure
        limit: most points in a line
        axes: the first axes to draw it on

    Returns:
        The figure.
    """
    windows = spread(run.windows.items, limit)
    known = [window for window in windows if window.noise is not None]
    steps = batch_stairs(run)
    resolved = [one.resolved for one in known if one.is_resolved]
    seen = drawable([*resolved, *(size for _, size in steps)]) or [1.0]
    y = logarithmic([0.5 * min(seen), 3 * max(seen)], BOTTOM, TOP)
    bounds = {id(one): _bound(one, _confidence(run)) for one in known}
    ratio = _target_ratio(run)
    rows = spread(windows, limit // 3)
    most = _step_limit(run, y, limit)

    def draw(axis: Axis, x: Scale) -> Markup:
        return picture(
            f"{name}-{axis.key}",
            f"Noise scale and batch against {axis.name}",
            _noise_words(run, resolved) + (" A thin dashed line is the most that min_steps allows." if most else ""),
            _veils(run, axis, x, windows),
            frame(x, y, axis.name),
            band(_ends(known, axis), x, y, "band"),
            line([(axis.of(one.place), ratio * bounds[id(one)] or math.nan) for one in known], x, y, "bound"),
            line([(axis.of(one.place), one.resolved) for one in known], x, y, "noise"),
            line(in_order(axis, most), x, y, "limit"),
            stairs(in_order(axis, steps), x, y, "batch"),
            _marks(run, axis, x, y),
            axis=axis.key,
        )

    pictures, points = on_each_axis(run, axes, rows, draw)
    return Figure(
        name=name,
        heading="Noise scale and batch",
        pictures=pictures,
        legend=_noise_legend(run, windows, has_bound=any(value > 0 for value in bounds.values()), has_limit=bool(most)),
        reading=(
            f"The noise scale says how many {run.unit} one step can average before more of them stop helping; "
            f"a good batch is near it or below. {_WHY_IT_GROWS if run.numbers.decides else _WHAT_IT_MEANS}"
        ),
        head=(run.unit, "step", "batch", "noise scale", "low", "high", "lower bound"),
        rows=[_noise_row(one, bounds.get(id(one), math.nan)) for one in rows],
        points=points,
    )


def _noise_legend(
    run: RunRecord, windows: Sequence[Window], *, has_bound: bool, has_limit: bool
) -> list[tuple[str, str]]:
    known = [one for one in windows if one.noise is not None]
    decides = f"lower bound that decides ({100 * (_confidence(run) or 0.5):.3g} %)"
    ratio = _target_ratio(run)
    if ratio != 1:
        decides = f"target: {describe_number(ratio)} × the {decides}"
    entries = [
        (known, "noise", "noise scale, where it is resolved"),
        (known, "band", f"its {_percent(known)} interval"),
        (has_bound, "bound", decides),
        (True, "batch", "batch in one optimizer step"),
        (0 < run.changes.count <= MOST_MARKS, "mark", "the batch changed"),
        (has_limit, "limit", f"largest batch that min_steps={shown(_min_steps(run))} allows"),
        (run.numbers.warmup_examples > run.first.examples, "veil", "warmup"),
        (not all(one.is_resolved for one in windows), "span", "not resolved"),
    ]
    return [(cls, words) for is_there, cls, words in entries if is_there]


def _noise_row(window: Window, bound: float) -> tuple[str, ...]:
    noise, is_resolved = window.noise, window.is_resolved
    return (
        shown(window.place.examples),
        shown(window.place.steps),
        shown(window.batch_size),
        "no estimate" if noise is None else shown(noise.noise_scale) if is_resolved else "not resolved",
        "-" if noise is None else shown(noise.low),
        "-" if noise is None else shown(noise.high),
        "-" if math.isnan(bound) else shown(bound),
    )


def _noise_words(run: RunRecord, resolved: Sequence[float]) -> str:
    unit, steps = run.unit, batch_stairs(run)
    batch = f"The batch goes from {shown(steps[0][1])} to {shown(steps[-1][1])} {unit}"
    if steps[0][1] == steps[-1][1]:
        batch = f"The batch is {shown(steps[0][1])} {unit}"
    if not resolved:
        return f"{batch}. The noise scale is not resolved anywhere."
    return f"{batch}. The noise scale goes from {shown(resolved[0])} to {shown(resolved[-1])} where it is resolved."


def _percent(windows: Sequence[Window]) -> str:
    noise = windows[-1].noise if windows else None
    return "" if noise is None or not 0 < noise.confidence < 1 else f"{100 * noise.confidence:.3g} %"


def _ends(windows: Sequence[Window], axis: Axis) -> list[tuple[float, float, float]]:
    return [(axis.of(one.place), one.noise.low, one.noise.high) for one in windows if one.noise is not None]


def _veils(run: RunRecord, axis: Axis, x: Scale, windows: Sequence[Window]) -> list[Markup]:
    """Draw the warmup, and at the foot the stretches without a resolved noise scale."""
    warmup = run.numbers.warmup_examples
    places = [place for place in run.track.items if place.examples <= warmup]
    parts = []
    if places and warmup > run.first.examples:
        end = warmup if axis.key == "examples" else axis.of(places[-1])
        parts += spans([(axis.of(run.first), end)], x, "veil")
    gaps, since = [], run.first
    for window in windows:
        if not window.is_resolved:
            gaps.append((axis.of(since), axis.of(window.place)))
        since = window.place
    return parts + spans(gaps, x, "span", top=BOTTOM - 7)


def _marks(run: RunRecord, axis: Axis, x: Scale, y: Scale) -> list[Markup]:
    changes = run.changes.items
    if len(changes) > MOST_MARKS:
        return []
    places = [(x.place(axis.of(one.place)), y.place(float(one.record.batch_size))) for one in changes]
    return [tag("circle", class_="mark", cx=number(across), cy=number(up), r="4") for across, up in places]
