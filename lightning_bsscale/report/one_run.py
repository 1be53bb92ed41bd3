"""The part of the page about one run: verdict, numbers, pictures, decisions, warnings, settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lightning_bsscale.report.decisions import decision_section
from lightning_bsscale.report.figure import Axis, Figure, figure_block
from lightning_bsscale.report.markup import Markup, cut, tag
from lightning_bsscale.report.metric_picture import in_reading_order, metric_figure
from lightning_bsscale.report.noise_picture import noise_figure
from lightning_bsscale.report.rate_picture import learning_rate_figure
from lightning_bsscale.report.run_record import RunRecord
from lightning_bsscale.report.sections import facts, settings_section, warning_list
from lightning_bsscale.report.time_picture import time_figure
from lightning_bsscale.report.worth_picture import worth_figure

__all__ = ["next_steps", "one_run"]


_DID_IT_HELP = (
    "To see whether the loss kept up, train once more with dry_run=True and record=True, and put both journals on one "
    "page: bsscale report fixed.jsonl grown.jsonl."
)


def next_steps(run: RunRecord, *, is_alone: bool = False) -> Markup:
    """Write what to change next; of a run that grew and is alone on its page, also what to compare it with."""
    helped = (_DID_IT_HELP,) if is_alone and run.numbers.acts and run.changes.count else ()
    steps = (*run.verdict.next_steps, *helped) or ("Nothing in this journal asks for a change.",)
    return tag("div", tag("strong", "What to do next"), _sentences(steps), class_="next")


def _sentences(sentences: Sequence[str]) -> Markup:
    return tag("ul", [tag("li", tag("bdi", cut(sentence))) for sentence in sentences])


def one_run(
    run: RunRecord, name: str, limit: int, axes: Sequence[Axis], *, heading: str, switch: Markup | None = None
) -> tuple[list[Figure], Markup]:
    """Write the part of one run.

    Args:
        run: the run
        name: begin of its ids
        limit: most points in a line, and rows in a table
        axes: the first axes to draw on
        heading: element of its headline
        switch: what chooses the axis, if it belongs to this run alone

    Returns:
        Its figures with points for the script, and its section.
    """
    level = "h2" if heading == "h1" else "h3"
    noise = noise_figure(run, f"{name}-noise", limit, axes) if run.phases or run.windows.count else None
    rate = learning_rate_figure(run, f"{name}-rate", limit, axes)
    worth = worth_figure(run, f"{name}-worth", limit, axes)
    time = time_figure(run, f"{name}-time")
    alone = [] if switch is None else in_reading_order(run.metrics)
    metrics = [
        metric_figure([run], metric, f"{name}-metric-{index}", limit, axes) for index, metric in enumerate(alone)
    ]
    warned = warning_list(run)

    def parts() -> Iterator[object]:
        yield tag(heading, tag("bdi", cut(run.verdict.headline)), id=f"{name}-headline")
        yield None if heading == "h1" else tag("p", "Journal: ", tag("bdi", run.path.name))
        yield tag(
            "div",
            _sentences(run.verdict.reasons) if run.verdict.reasons else None,
            next_steps(run, is_alone=switch is not None),
            class_="verdict",
        )
        if warned:
            yield tag("div", tag("strong", "Know before you read on"), tag("ul", warned), class_="warnings")
        yield facts(run)
        yield switch if noise is not None else None
        yield [figure_block(figure, level) for figure in (noise, rate, *metrics) if figure is not None]
        yield tag(level, "Decisions")
        yield decision_section(run, name, limit, "h3" if level == "h2" else "h4")
        yield [figure_block(figure, level) for figure in (worth, time) if figure is not None]
        yield tag(level, "Settings to reproduce it")
        yield settings_section(run)

    drawn = [figure for figure in (noise, rate, worth) if figure is not None]
    return drawn, tag("section", list(parts()))
