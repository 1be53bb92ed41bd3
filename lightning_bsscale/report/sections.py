"""The sections of words: what the batch bought, warnings, and the settings of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from lightning_bsscale.report.figure import shown, table
from lightning_bsscale.report.markup import Markup, cut, tag, text
from lightning_bsscale.report.run_record import RunRecord
from lightning_bsscale.report.worth_picture import is_known_worth, worth_of
from lightning_bsscale.theory.numbers import describe_count, describe_time, one_of

__all__ = ["facts", "settings_section", "warning_list"]

LONGEST_OPTION = 120
LONGEST_LINE = 80
MOST_OPTIONS = 64
KNOWN = 0.5
"""Share of a run with a resolved noise scale, below which an average over it says nothing of the run."""


def mean_worth(run: RunRecord) -> tuple[float, float] | None:
    """Return what an example was worth on average, and the share of the run over which that is known."""
    total = known = weighted = 0.0
    since = run.first.examples
    for window in run.windows.items:
        stretch = max(0.0, window.place.examples - since)
        since, total = window.place.examples, total + stretch
        if is_known_worth(window):
            known, weighted = known + stretch, weighted + stretch * worth_of(window)
    return (weighted / known, known / total) if known > 0 else None


def facts(run: RunRecord) -> Markup:
    """Write the few numbers that everyone looks for first."""
    examples, steps = run.now.examples - run.first.examples, run.now.steps - run.first.steps
    rows: list[tuple[str, str]] = [
        (
            "batch" if run.numbers.acts or not run.numbers.decides else "batch, in a dry run",
            shown(run.batch) if run.batch == run.start_batch else f"{shown(run.start_batch)} → {shown(run.batch)}",
        ),
        ("optimizer steps", describe_count(steps)),
        (f"{run.unit} seen", describe_count(examples)),
    ]
    if run.facts is not None and run.facts.numbers.acts and run.changes.count:
        planned = run.facts.planned_steps
        saved = planned - run.facts.optimizer_steps
        if saved > 0:
            of = f"steps saved, of {describe_count(planned)} ({100 * saved / planned:.0f} %)"
            rows.append((of, describe_count(saved)))
    worth = mean_worth(run)
    if worth is not None and worth[1] >= KNOWN:
        rows.append((f"worth of {one_of(run.unit)}, on average", f"{100 * worth[0]:.0f} %"))
    pace = None if run.facts is None else run.facts.pace
    if pace is not None and pace.windows:
        rows.append(("training time, without pauses", describe_time(pace.seconds)))
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in rows], class_="facts")


def warning_list(run: RunRecord) -> list[Markup]:
    """Write what a reader of the numbers must know; an empty list if nothing."""
    return [tag("li", words) for words in _warnings(run)]


def _warnings(run: RunRecord) -> Iterator[str]:
    yield from (cut(problem) for problem in run.problems)
    if run.ended is None and run.phases:
        yield "The journal has no end record: the run was interrupted, or is still training. The numbers end there."
    if isinstance(run.header.get("continues"), dict):
        old = cut(str(run.header["continues"].get("path", "another file")))
        yield f"This run continues another one, whose journal is {old}; the numbers here begin where it was resumed."
    if run.resumed:
        yield f"The run was resumed {describe_count(run.resumed)} {'times' if run.resumed > 1 else 'time'}."
    if run.gave_up:
        yield "After an error the measurements of the last windows were abandoned."
    ended = None if run.ended is None else run.ended.state
    if ended is not None and ended.lost_examples:
        yield f"{shown(ended.lost_examples)} {run.unit} entered no optimizer step: their window was left unfinished."
    elif run.drops:
        yield f"{describe_count(run.drops)} windows were left without an optimizer step."
    if ended is not None and ended.row_limit is not None:
        yield f"Memory ran out: since then a micro-batch holds at most {shown(ended.row_limit)} rows."
    if not run.numbers.acts and run.numbers.decides:
        yield "This was a dry run: the batch and the learning rate of the training stayed as they were."
    if run.numbers.now.world_size > 1:
        yield (
            f"{run.numbers.now.world_size:,} ranks: between two measurements, their {run.unit} are counted at the "
            "usual size of a loader batch."
        )
    dropped = [window for window in run.windows.items if window.noise is None]
    if len(dropped) == len(run.windows.items) and run.windows.count:
        yield "No window could be used to estimate the noise scale."


# ---------------------------------------------------------------- settings


def settings_section(run: RunRecord) -> list[Markup]:
    """Write the settings that reproduce a run: as code, and as a table."""
    numbers, header = run.numbers, run.header
    policy, rule, schedule = (header.get(name) for name in ("policy", "lr_rule", "schedule"))
    rows = [
        ("policy", _described(policy) if numbers.decides else "none: a monitor"),
        ("learning-rate rule", _described(rule)),
        ("schedule", "the user's own" if schedule is None else _described(schedule)),
        ("first batch", shown(run.start_batch)),
        ("loader batch over all ranks", shown(numbers.now.granularity)),
        ("ranks", f"{numbers.now.world_size:,}"),
        ("accumulate_grad_batches", shown(numbers.now.accumulate)),
        (
            "smallest and largest batch",
            f"{shown(numbers.limits.min_batch_size)} to {shown(numbers.limits.max_batch_size)}",
        ),
        (f"budget in {run.unit}", shown(numbers.total_examples)),
        (f"warmup in {run.unit}", shown(numbers.warmup_examples)),
        (f"memory in {run.unit}", shown(numbers.memory)),
        ("measure_every", shown(numbers.measure_every)),
        ("largest micro-batch", "found by search" if numbers.searches_size else shown(numbers.max_micro_batch_size)),
        ("journal's id", cut(str(header.get("id")), 64)),
    ]
    code = Markup("\n".join(map(text, _call(run))))
    return [
        tag("pre", tag("code", code), tabindex="0", role="group", aria_label="Code"),
        table(("setting", "value"), rows, caption="Settings of the run, from its journal", left=1),
    ]


def _call(run: RunRecord) -> list[str]:
    numbers, header = run.numbers, run.header
    options: list[str] = []
    if numbers.decides:
        for name in ("policy", "lr_rule", "schedule"):
            if header.get(name) is not None:
                options += _in_lines(name, header[name])
        if header.get("also_scale"):
            options.append(f"also_scale={_option(header['also_scale'])}")
        warmup = numbers.warmup_examples
        options.append(f"warmup={_share(run, warmup) if numbers.total_examples else round(_finite(warmup))}")
        options.append(f"max_batch_size={numbers.limits.max_batch_size}")
    options.append(f"memory={_share(run, numbers.memory)}")
    options.append(f"measure_every={numbers.measure_every}")
    if numbers.decides and not numbers.acts:
        options.append("dry_run=True")
    if run.unit != "examples":
        options += ["batch_size_fn=...", f"unit={cut(run.unit, 40)!r}"]
    name = "BatchSizeScaler" if numbers.decides else "GradientNoiseScaleMonitor"
    return [f"{name}(", *(f"    {option}{'' if option.endswith('(') else ','}" for option in options), ")"]


def _finite(value: float) -> float:
    return value if 0 <= value < math.inf else 0.0


def _share(run: RunRecord, examples: float) -> float:
    """Return examples as a share of the budget, as the options take them; 1.0 if either has no end."""
    total = run.numbers.total_examples
    share = examples / total if total and examples < math.inf else 1.0
    return float(f"{min(1.0, share):.6g}")


def _in_lines(name: str, thing: Any) -> list[str]:
    """Write a described object: on one line if it is short, else with a line for each option."""
    written = f"{name}={_described(thing)}"
    if len(written) <= LONGEST_LINE or not isinstance(thing, Mapping) or not isinstance(thing.get("options"), Mapping):
        return [written]
    return [f"{name}={cut(str(thing.get('class')), 80)}(", *(f"    {one}" for one in _options(thing["options"])), ")"]


def _options(options: Mapping[Any, Any]) -> list[str]:
    return [f"{cut(str(key), 40)}={_option(value)}" for key, value in list(options.items())[:MOST_OPTIONS]]


def _described(thing: Any) -> str:
    """Return a policy, a rule or a schedule as it is written in code."""
    if not isinstance(thing, Mapping):
        return cut(repr(thing), LONGEST_OPTION)
    options = thing.get("options")
    inside = "..." if options is None else ""
    if isinstance(options, Mapping):
        inside = ", ".join(_options(options))
    return cut(f"{cut(str(thing.get('class')), 80)}({inside})", 2000)


def _option(value: Any) -> str:
    if isinstance(value, Mapping):
        return _described(value)
    if value in ("inf", "-inf", "nan"):
        return f"float({value!r})"
    if isinstance(value, list):
        return cut(f"[{', '.join(map(_option, value[:16]))}]", 400)
    return cut(repr(value), LONGEST_OPTION)
