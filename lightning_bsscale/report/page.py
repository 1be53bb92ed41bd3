"""The page: one file with everything in it, the verdict first."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources

from lightning_bsscale.report.comparison import comparison_figures, comparison_summary
from lightning_bsscale.report.figure import Axis, Figure, axes_of, figure_block
from lightning_bsscale.report.markup import Markup, cut, data_block, tag
from lightning_bsscale.report.one_run import next_steps, one_run
from lightning_bsscale.report.run_record import RunRecord

__all__ = ["MOST_RUNS", "make_page"]

MOST_RUNS = 8
MOST_BYTES = 480_000
MOST_POINTS = 300
"""Points of a line, and rows of a table, on a page of one run; several runs share them, so that a page stays small."""
FEWEST_POINTS = 12
_THEMES = (("auto", "auto"), ("light", "light"), ("dark", "dark"))


def make_page(runs: Sequence[RunRecord]) -> str:
    """Write the report of one run, or of several.

    Args:
        runs: what their journals hold

    Returns:
        The page as HTML; the same text for the same journals.

    Raises:
        ValueError: If there are too many.
    """
    if not 0 < len(runs) <= MOST_RUNS:
        raise ValueError(f"A report shows 1 to {MOST_RUNS} runs, got {len(runs):,}.")
    limit = MOST_POINTS // len(runs)
    while len((page := _page(runs, limit)).encode()) > MOST_BYTES and limit > FEWEST_POINTS:
        limit //= 2  # a thousand long reasons, or names
    return page


def _page(runs: Sequence[RunRecord], limit: int) -> str:
    axes = axes_of(runs)
    if len(runs) == 1:
        title = cut(runs[0].verdict.headline)
        figures, section = one_run(runs[0], "run", limit, axes, heading="h1", switch=_axis_switch(axes))
        return _document(title, runs, [section], figures)
    title = f"{len(runs)} runs compared"
    figures, sections = comparison_figures(runs, limit, axes), list[Markup]()
    parts: list[object] = [tag("h1", title), *comparison_summary(runs)]
    parts += [tag("ol", [_card(run, index) for index, run in enumerate(runs)])]
    parts += [_axis_switch(axes), [figure_block(figure, "h2") for figure in figures]]
    for index, run in enumerate(runs):
        more, section = one_run(run, f"run{index + 1}", limit, axes, heading="h2")
        figures, sections = (
            [*figures, *more],
            [
                *sections,
                tag("details", tag("summary", f"All about run {index + 1}: ", tag("bdi", run.path.name)), section),
            ],
        )
    return _document(title, runs, [*parts, *sections], figures)


def _card(run: RunRecord, index: int) -> Markup:
    link = tag("a", tag("bdi", run.path.name), href=f"#run{index + 1}-headline")
    return tag(
        "li", tag("div", link, ": ", tag("bdi", cut(run.verdict.headline)), next_steps(run), class_="card verdict")
    )


def _document(title: str, runs: Sequence[RunRecord], parts: Sequence[object], figures: Sequence[Figure]) -> str:
    style, script = (_own(name) for name in ("style.css", "script.js"))
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    names = [
        name if index == 0 else [", ", name] for index, name in enumerate(tag("bdi", run.path.name) for run in runs)
    ]
    body = tag(
        "body",
        tag("header", tag("div", "Report of ", names), _choice("theme", "Colours", _THEMES)),
        tag("main", parts),
        tag("footer", "Drawn from the journal alone. Pictures can be read with the arrow keys."),
        data_block("report-data", {one.name: one.points for one in figures if one.points and one.rows}),
        tag("script", Markup(script)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _choice(name: str, legend: str, options: Sequence[tuple[str, str]]) -> Markup:
    buttons = [
        tag(
            "label",
            tag("input", type="radio", name=name, id=f"{name}-{key}", value=key, checked=index == 0),
            words,
        )
        for index, (key, words) in enumerate(options)
    ]
    return tag("fieldset", tag("legend", legend), buttons, class_=name)


def _axis_switch(axes: Sequence[Axis]) -> Markup:
    options = [(axis.key, axis.name) for axis in axes]
    return tag("div", _choice("axis", "Pictures against", options), class_="switch")


def _own(name: str) -> str:
    return resources.files("lightning_bsscale.report").joinpath(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
