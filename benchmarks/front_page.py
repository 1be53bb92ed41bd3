"""Write the front's tables and draw its picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from front_methods import METHODS
from front_tasks import TASKS, Task
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_bsscale.figures.style import plain_log_ticks

DOCS = Path(__file__).parents[1] / "docs"
Summary = dict[str, Any]
# Okabe and Ito's colours, which differ for every kind of colour vision; the shapes differ too.
STYLES = {
    "fixed": ("#000000", "s"),
    "scaler": ("#D55E00", "o"),
    "seesaw": ("#0072B2", "^"),
    "smith": ("#56B4E9", "v"),
    "milestones": ("#009E73", "D"),
    "meta": ("#CC79A7", "P"),
    "norm test": ("#CC79A7", "X"),
    "unscaled": ("#E69F00", "<"),
    "linear": ("#E69F00", ">"),
    "square root": ("#E69F00", "d"),
    "no min_steps": ("#999999", "p"),
    "confidence 0.9": ("#999999", "h"),
}
WORST = 4  # losses of this many times the spread of the fixed batches are drawn at the upper edge


def style_of(name: str) -> tuple[str, str]:
    """Return a row's colour and marker."""
    return next(style for start, style in STYLES.items() if name.startswith(start))


def title_of(name: str) -> str:
    """Return what a row is, in one phrase."""
    return f"fixed {name[5:]}" if name.startswith("fixed") else METHODS[name].title


def number(value: float, error: float, *, signed: bool = False) -> str:
    """Format a value and its standard error, which one seed does not have."""
    if not math.isfinite(value):
        return "diverged"
    text = f"{value:+.4f}" if signed else f"{value:.4f}"
    return f"{text} ± {error:.4f}" if math.isfinite(error) else text


def table(task: Task, summary: Summary) -> str:
    """Write a task's tables.

    Args:
        task: The task.
        summary: What `front_summary.summarize` returns, with `machine`.

    Returns:
        Markdown.
    """
    rows = [row for row in summary["rows"] if row["is_main"]]
    rows.sort(
        key=lambda row: (
            not row["name"].startswith("fixed"),
            list(METHODS).index(row["name"]) if row["name"] in METHODS else 0,
            -row["steps"],
        )
    )
    machine = summary["machine"]
    tried = ", ".join(f"{factor:g}" for factor in sorted({rate for rates in task.rates.values() for rate in rates}))
    lines = [
        f"| run | learning rate | seeds | loss ({task.unit}) | against fixed {task.start} | steps | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        against = row.get("against_start")
        difference = (
            "–"
            if row["name"] == f"fixed{task.start}" or not against
            else number(against["difference"], against["error"], signed=True)
        )
        seconds = "–" if row["seconds"] is None else f"{row['seconds']:.1f}"
        name = title_of(row["name"])
        lines.append(
            f"| {f'**{name}**' if row['name'] == 'scaler' else name} | {row['learning_rate']:.3g} | {row['seeds']} |"
            f" {number(row['loss'], row['error'])} | {difference} | {row['steps']:,.0f} | {seconds} |"
        )
    followed = "by its square root" if task.power == 0.5 else "linearly"
    lines += [
        "",
        "Paired by seed; ± is one standard error. Learning rates tried for the fixed batches:"
        f" {tried} times"
        f" {task.settings['base_rate']:g}, which follows the batch {followed};"
        f" the best one counts. Seconds are medians of the training loop on an otherwise idle machine. Python"
        f" {machine['python']}, torch {machine['torch']}, lightning {machine['lightning']}, {machine['processor']}, 1"
        " thread a run.",
        "",
    ]
    if summary["against_fixed"]:
        lines += [
            "| the scaler against | loss, difference | steps | share of its steps |",
            "|---|---|---|---|",
            *(
                f"| fixed {row['against'][5:]} | {number(row['difference'], row['error'], signed=True)} |"
                f" {row['steps_against']:,.0f} | {row['steps_ratio']:.2f} |"
                for row in reversed(summary["against_fixed"])
            ),
            "",
            "| against the scaler with the target that takes as many steps | loss, difference | steps |",
            "|---|---|---|",
            *(
                f"| {title_of(row['name'])} | {number(row['difference'], row['error'], signed=True)}"
                f"{' †' if row['is_beyond'] else ''} | {row['steps']:,.0f} |"
                for row in sorted(summary["against_others"], key=lambda row: list(METHODS).index(row["name"]))
            ),
            "",
        ]
        if any(row["is_beyond"] for row in summary["against_others"]):
            lines += ["† No target of the scaler took as many or as few steps: against the nearest.", ""]
    packages = sorted({name for row in rows for name in row.get("packages", ())})
    if len(packages) > 1:
        lines += [f"Caution: these runs mix {len(packages)} versions of the package ({', '.join(packages)}).", ""]
    return "\n".join(lines)


def draw(summaries: dict[str, Summary]) -> Figure:
    """Draw loss against steps, and against seconds, one row of axes for each task.

    Args:
        summaries: The summary of each task.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(11, 4.1 * len(summaries)), layout="constrained")
    axes = figure.subplots(len(summaries), 2, squeeze=False)
    for (name, summary), (left, right) in zip(summaries.items(), axes, strict=True):
        rows = [row for row in summary["rows"] if row["is_main"]]
        fixed = [row["loss"] for row in rows if row["name"].startswith("fixed")]
        top = min(fixed) + WORST * max(max(fixed) - min(fixed), 1e-3)
        for axis, quantity, label in ((left, "steps", "optimizer steps"), (right, "seconds", "seconds of training")):
            shown = [row for row in rows if row[quantity] is not None]
            points(axis, shown, quantity, top)
            axis.set_visible(bool(shown))
            axis.set_xscale("log")
            plain_log_ticks(axis.xaxis)
            axis.set_xlabel(label)
            axis.grid(alpha=0.3)
        left.set_title(TASKS[name].title, loc="left", fontsize=10)
        left.set_ylabel(f"held-out loss ({TASKS[name].unit})")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def points(axis: Axes, rows: list[dict[str, Any]], quantity: str, top: float) -> None:
    """Draw the rows of one task.

    Args:
        axis: Where.
        rows: The rows.
        quantity: What is on the x axis.
        top: Losses above are drawn there, with an arrow.
    """
    for start in ("fixed", "scaler"):
        line = sorted((row[quantity], min(row["loss"], top)) for row in rows if row["name"].startswith(start))
        axis.plot(*zip(*line, strict=True), color=STYLES[start][0], linewidth=1, alpha=0.6) if line else None
    for row in rows:
        color, marker = style_of(row["name"])
        is_above = not row["loss"] <= top
        is_default = row["name"] == "scaler"
        label = {"fixed": "fixed batch at its best learning rate", "scaler": "scaler; large: at its defaults"}.get(
            "fixed" if row["name"].startswith("fixed") else row["name"],
            title_of(row["name"]).replace("the same with", "scaler with").replace("`", ""),
        )
        first = row["name"] == next(
            (other["name"] for other in rows if style_of(other["name"]) == (color, marker)), row["name"]
        )
        if row["name"].startswith("scaler"):
            label, first = "scaler; large: at its defaults", is_default
        axis.errorbar(
            row[quantity],
            top if is_above else row["loss"],
            0 if is_above else row["error"],
            color=color,
            marker="$\\uparrow$" if is_above else marker,
            markersize=11 if is_default else 6,
            linestyle="",
            capsize=2,
            label=label if first else None,
        )
        if row["name"].startswith("fixed"):
            axis.annotate(
                row["name"][5:], (row[quantity], min(row["loss"], top)), (4, 5), textcoords="offset points", fontsize=8
            )
