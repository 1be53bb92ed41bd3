"""The pictures of one run: noise scale and batch, learning rate, worth of an example, holds, and time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_bsscale.report.axes import LARGEST, Scale, drawable, linear, logarithmic
from lightning_bsscale.report.drawing import (
    BOTTOM,
    TOP,
    WIDTH,
    band,
    frame,
    line,
    picture,
    spans,
    stairs,
)
from lightning_bsscale.report.figure import Axis, Figure, shown, spread
from lightning_bsscale.report.markup import Markup, cut, number, tag
from lightning_bsscale.report.run_record import Phase, Place, RunRecord, Window
from lightning_bsscale.theory.numbers import describe_count, describe_time
from lightning_bsscale.theory.tradeoff import sample_efficiency

__all__ = ["bars", "learning_rate_figure", "noise_figure", "time_figure", "worth_figure"]

MOST_MARKS = 60
ROW, BAR = 58, 18
LONGEST_NAME = 64
"""Characters of a bar's name that fit on a narrow screen."""


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


def batch_stairs(run: RunRecord) -> list[tuple[Place, float]]:
    """Return the batch as a staircase: where each size begins, and the end."""
    changes = run.changes.items
    first = float(changes[0].record.situation.batch_size) if changes else run.batch
    steps = [(run.first, first)]
    steps += [(change.place, float(change.record.batch_size)) for change in changes]
    return [*steps, (run.now, steps[-1][1])]


def _in_order(axis: Axis, points: Sequence[tuple[Place, float]]) -> list[tuple[float, float]]:
    return [(axis.of(place), value) for place, value in points]


def _is_resolved(window: Window) -> bool:
    return window.noise is not None and window.noise.resolved


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
    resolved = [_value(one) for one in known if _is_resolved(one)]
    seen = drawable([*resolved, *(size for _, size in steps)]) or [1.0]
    y = logarithmic([0.5 * min(seen), 3 * max(seen)], BOTTOM, TOP)
    bounds = {id(one): _bound(one, _confidence(run)) for one in known}
    rows = spread(windows, limit // 3)
    pictures, points = [], {}
    for axis in axes:
        x = axis.scale([run.first, run.now])
        pictures.append(
            picture(
                f"{name}-{axis.key}",
                f"Noise scale and batch against {axis.name}",
                _noise_words(run, resolved),
                _veils(run, axis, x, windows),
                frame(x, y, axis.name),
                band(_ends(known, axis), x, y, "band"),
                line([(axis.of(one.place), bounds[id(one)] or math.nan) for one in known], x, y, "bound"),
                line([(axis.of(one.place), _value(one)) for one in known], x, y, "noise"),
                stairs(_in_order(axis, steps), x, y, "batch"),
                _marks(run, axis, x, y),
                axis=axis.key,
            )
        )
        points[axis.key] = [round(x.place(axis.of(one.place)), 1) for one in rows]
    return Figure(
        name=name,
        heading="Noise scale and batch",
        pictures=pictures,
        legend=_noise_legend(run, windows, has_bound=any(value > 0 for value in bounds.values())),
        reading=(
            f"The noise scale says how many {run.unit} one step can average before more of them stop helping; "
            f"a good batch is near it or below. {_WHY_IT_GROWS if run.numbers.decides else _WHAT_IT_MEANS}"
        ),
        head=(run.unit, "step", "batch", "noise scale", "low", "high", "lower bound"),
        rows=[_noise_row(one, bounds.get(id(one), math.nan)) for one in rows],
        points=points,
    )


def _noise_legend(run: RunRecord, windows: Sequence[Window], *, has_bound: bool) -> list[tuple[str, str]]:
    known = [one for one in windows if one.noise is not None]
    confidence = _confidence(run) or 0.5
    entries = [
        (known, "noise", "noise scale, where it is resolved"),
        (known, "band", f"its {_percent(known)} interval"),
        (has_bound, "bound", f"lower bound that decides ({100 * confidence:.3g} %)"),
        (True, "batch", "batch in one optimizer step"),
        (0 < run.changes.count <= MOST_MARKS, "mark", "the batch changed"),
        (run.numbers.warmup_examples > run.first.examples, "veil", "warmup"),
        (not all(map(_is_resolved, windows)), "span", "not resolved"),
    ]
    return [(cls, words) for is_there, cls, words in entries if is_there]


def _noise_row(window: Window, bound: float) -> tuple[str, ...]:
    noise, is_resolved = window.noise, _is_resolved(window)
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


def _value(window: Window) -> float:
    return window.noise.noise_scale if window.noise is not None and window.noise.resolved else math.nan


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
        if not _is_resolved(window):
            gaps.append((axis.of(since), axis.of(window.place)))
        since = window.place
    return parts + spans(gaps, x, "span", top=BOTTOM - 7)


def _marks(run: RunRecord, axis: Axis, x: Scale, y: Scale) -> list[Markup]:
    changes = run.changes.items
    if len(changes) > MOST_MARKS:
        return []
    places = [(x.place(axis.of(one.place)), y.place(float(one.record.batch_size))) for one in changes]
    return [tag("circle", class_="mark", cx=number(across), cy=number(up), r="4") for across, up in places]


# ---------------------------------------------------------------- learning rate


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
    pictures, points = [], {}
    for axis in axes:
        x = axis.scale([run.first, run.now])
        pictures.append(
            picture(
                f"{name}-{axis.key}",
                f"Learning rate against {axis.name}",
                f"The learning rate ends at {shown(real[-1][1])}; without the factor it would end at "
                f"{shown(plain[-1][1])}.",
                frame(x, y, axis.name),
                line(_in_order(axis, plain), x, y, "plain"),
                line(_in_order(axis, real), x, y, "rate"),
                axis=axis.key,
            )
        )
        points[axis.key] = [round(x.place(axis.of(one.place)), 1) for one in rows]
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


# ---------------------------------------------------------------- what the batch bought


def worth_figure(run: RunRecord, name: str, limit: int, axes: Sequence[Axis]) -> Figure | None:
    """Draw what an example was worth, and how far a step got; None where the noise scale was never resolved."""
    everywhere = spread(run.windows.items, limit)
    windows = [one for one in everywhere if is_known_worth(one)]
    if not windows:
        return None
    worth = [(one.place, worth_of(one) if is_known_worth(one) else math.nan) for one in everywhere]
    progress = [(place, 1 - value) for place, value in worth]
    last = worth_of(windows[-1])
    y = linear([0.0, 1.0], BOTTOM, TOP, ticks=5)
    rows = spread(windows, limit // 3)
    pictures, points = [], {}
    for axis in axes:
        x = axis.scale([run.first, run.now])
        pictures.append(
            picture(
                f"{name}-{axis.key}",
                f"Worth of an example and progress of a step against {axis.name}",
                f"Where it was last known, an example is worth {100 * last:.0f} % of one in a tiny batch, and a step "
                f"makes {100 - 100 * last:.0f} % of the most that one step can.",
                frame(x, y, axis.name, percent=True),
                line(_in_order(axis, worth), x, y, "worth"),
                line(_in_order(axis, progress), x, y, "progress"),
                axis=axis.key,
            )
        )
        points[axis.key] = [round(x.place(axis.of(one.place)), 1) for one in rows]
    return Figure(
        name=name,
        heading="What the batch bought, and what it cost",
        pictures=pictures,
        legend=[("worth", "worth of an example"), ("progress", "progress of a step")],
        reading=(
            "A larger batch makes more progress in a step, and less with each example: the two lines always add up to "
            "100 %, and cross where the batch equals the noise scale. Both follow from the measured noise scale by a "
            "model of one step (McCandlish et al. 2018); they are not measured losses."
        ),
        note="They have gaps where the noise scale is not resolved." if len(windows) < len(everywhere) else None,
        head=(run.unit, "step", "batch", "noise scale", "worth of an example", "progress of a step"),
        rows=[
            (
                shown(one.place.examples),
                shown(one.place.steps),
                shown(one.batch_size),
                shown(_value(one)),
                f"{100 * worth_of(one):.1f} %",
                f"{100 - 100 * worth_of(one):.1f} %",
            )
            for one in rows
        ],
        points=points,
    )


def is_known_worth(window: Window) -> bool:
    """Return whether what an example is worth in this window follows from its numbers."""
    return 0 < _value(window) < LARGEST and window.batch_size > 0


def worth_of(window: Window) -> float:
    """Return what an example is worth, relative to one in a very small batch: 1 / (1 + B / B_noise)."""
    return sample_efficiency(window.batch_size, _value(window))


# ---------------------------------------------------------------- bars


def bars(name: str, title: str, description: str, rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> Markup:
    """Draw horizontal bars under their names.

    Args:
        name: id of the picture
        title: what it shows
        description: what can be seen in it
        rows: of each bar its name, and its parts as class and length

    Returns:
        The picture.
    """
    longest = max((sum(length for _, length in parts) for _, parts in rows), default=0.0) or 1.0
    drawn: list[Markup] = []
    for index, (label, parts) in enumerate(rows):
        top, at = index * ROW, 0.0
        drawn.append(tag("text", cut(label, LONGEST_NAME), class_="bar-name", x="0", y=number(top + 22)))
        for cls, length in parts:
            width = WIDTH * length / longest
            box = dict(x=number(at), y=number(top + 30), width=number(max(0.5, width)), height=number(BAR))
            drawn.append(tag("rect", class_=f"bar {cls}", **box))
            at += width
    return picture(name, title, description, drawn, height=max(1, len(rows)) * ROW)


def time_figure(run: RunRecord, name: str, most: int = 10) -> Figure | None:
    """Draw the seconds of each batch size; None where the journal has none."""
    phases = [phase for phase in run.phases.values() if phase.timed and phase.seconds > 0]
    if not phases:
        return None
    phases = sorted(sorted(phases, key=lambda one: -one.seconds)[:most], key=lambda one: one.batch_size)
    total = sum(phase.seconds for phase in run.phases.values())
    rows = [
        (
            f"batch {shown(phase.batch_size)}: {describe_time(phase.seconds)}, {_per_example(phase)} per 1,000",
            list(zip((cls for cls, _ in _PARTS), _parts(phase), strict=True)),
        )
        for phase in phases
    ]
    longest = max(phases, key=lambda one: one.seconds)
    spent = [sum(part) for part in zip(*map(_parts, phases), strict=True)]
    return Figure(
        name=name,
        heading="Where the time went",
        pictures=[
            bars(
                f"{name}-bars",
                "Time at each batch size",
                f"Most time, {100 * longest.seconds / total:.0f} %, was spent at batch {shown(longest.batch_size)}.",
                rows,
            )
        ],
        legend=[(f"bar {cls}", words) for (cls, words), seconds in zip(_PARTS, spent, strict=True) if seconds > 0],
        reading=(
            f"Each bar is the time spent at one batch size, with the time that 1,000 {run.unit} took there. If that "
            "falls as the batch grows, a larger batch is also faster on your machine; if not, it saved no time."
        ),
        head=("batch", "steps", run.unit, "time", f"time per 1,000 {run.unit}"),
        rows=[
            (
                shown(phase.batch_size),
                describe_count(phase.steps),
                shown(phase.examples),
                describe_time(phase.seconds),
                _per_example(phase),
            )
            for phase in phases
        ],
        note=f"Shown are the {most} batch sizes that took longest." if len(run.phases) > most else None,
    )


_PARTS = (
    ("rate-bar", "forward and backward passes"),
    ("batch-bar", "optimizer's step"),
    ("rest-bar", "everything else, such as loading"),
    ("noise-bar", "all of it, where the parts cannot be told apart"),
)


def _parts(phase: Phase) -> tuple[float, ...]:
    computing, stepping, undivided = phase.computing, phase.stepping, phase.undivided
    return computing, stepping, max(0.0, phase.seconds - computing - stepping - undivided), undivided


def _per_example(phase: Phase) -> str:
    timed = phase.examples * phase.timed / phase.steps
    return describe_time(1000 * phase.seconds / timed) if timed > 0 else "unknown"
