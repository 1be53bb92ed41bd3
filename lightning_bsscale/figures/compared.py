"""Read the losses of runs that are compared: of a callback, of a journal, or of columns of numbers."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_bsscale.journal import Header, read_lines
from lightning_bsscale.theory.checks import show
from lightning_bsscale.theory.events import WindowEvent
from lightning_bsscale.theory.losses import Losses, LossEvent, LossPoint

__all__ = ["COLUMNS", "ComparedRun", "choose_loss", "read_runs"]

COLUMNS = {"steps": "optimizer_steps", "examples": "examples_seen", "seconds": "seconds"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """One of the runs.

    Attributes:
        name: What it is called.
        unit: What it counts, as a plural word.
        losses: The values by name; a number that is not known is nan.
    """

    name: str
    unit: str = "examples"
    losses: Mapping[str, tuple[LossPoint, ...]] = field(default_factory=dict)


def read_runs(runs: Any) -> list[ComparedRun]:
    """Read the losses of all runs.

    Args:
        runs: a mapping from names to runs, or a list of runs

    Returns:
        One record for each, in order.

    Raises:
        TypeError: If there is something that is no run.
    """
    if isinstance(runs, Mapping) and not _is_columns(runs):
        named = list(runs.items())
    elif isinstance(runs, Iterable) and not isinstance(runs, (str, Path)) and not _is_columns(runs):
        named = [(_name_of(run, number), run) for number, run in enumerate(runs, start=1)]
    else:
        raise TypeError(f"runs must be a list of runs, or a mapping from names to runs, got {show(runs)}")
    return [_read(str(name), run) for name, run in named]


def _name_of(run: Any, number: int) -> str:
    return Path(run).name if isinstance(run, (str, Path)) else f"run {number}"


def _is_columns(run: Any) -> bool:
    # A DataFrame is no Mapping, and has the keys of one.
    return hasattr(run, "keys") and "loss" in run and any(column in run for column in COLUMNS)


def _read(name: str, run: Any) -> ComparedRun:
    if isinstance(run, (str, Path)):
        return _of_journal(name, Path(run))
    losses, unit = getattr(run, "losses", None), getattr(run, "unit", "examples")
    if isinstance(losses, Mapping):
        return ComparedRun(name=name, unit=unit, losses={key: tuple(points) for key, points in losses.items()})
    if _is_columns(run):
        return _of_columns(name, run)
    example = '{"loss": [...], "steps": [...], "examples": [...]}'
    raise TypeError(
        f"{name} must be a callback, the path of a journal, or columns of numbers such as {example}, got {show(run)}"
    )


def _of_columns(name: str, columns: Any) -> ComparedRun:
    values = [float(value) for value in columns["loss"]]
    known: dict[str, list[Any]] = {}
    for column, attribute in COLUMNS.items():
        known[attribute] = [float(one) for one in columns[column]] if column in columns else [math.nan] * len(values)
        if len(known[attribute]) != len(values):
            raise ValueError(
                f"{name} must have as many {column} as losses, got {len(known[attribute])} and {len(values)}"
            )
    points = tuple(
        LossPoint(value=value, **{attribute: numbers[index] for attribute, numbers in known.items()})
        for index, value in enumerate(values)
    )
    return ComparedRun(name=name, losses={"loss": points})


def _of_journal(name: str, path: Path) -> ComparedRun:
    losses, unit, steps, seconds = Losses(), "examples", 0, 0.0
    clock: list[tuple[int, float]] = [(0, 0.0)]
    for _, line in read_lines(path):
        if isinstance(line, Header):
            profile, state = line.fields.get("profile"), line.fields.get("state")
            unit = profile.get("unit", unit) if isinstance(profile, dict) else unit
            steps = state.get("windows", steps) if isinstance(state, dict) else steps
        elif isinstance(line, WindowEvent):
            steps, seconds = steps + 1, seconds + (line.took or 0.0)
            clock.append((steps, seconds))
        elif isinstance(line, LossEvent):
            # The last step up to the loss that was timed; in a resumed journal, steps may begin again.
            place = bisect.bisect_right(clock, (line.optimizer_steps, math.inf)) - 1
            point = LossPoint(
                examples_seen=line.examples_seen,
                optimizer_steps=line.optimizer_steps,
                seconds=clock[place][1],
                value=line.value,
            )
            losses = losses.with_point(line.name, point)
    return ComparedRun(name=name, unit=str(unit), losses={curve.name: curve.points for curve in losses.curves})


def choose_loss(runs: Iterable[ComparedRun], loss: str | None) -> str | None:
    """Return the loss to compare: the one asked for, or that of most runs, of a validation if there is one.

    Args:
        runs: the runs
        loss: its name; None to choose

    Returns:
        Its name; None where no run has any.

    Raises:
        ValueError: If none of the runs has the one asked for.
    """
    many: dict[str, int] = {}
    for run in runs:
        for name in run.losses:
            many[name] = many.get(name, 0) + 1
    if loss is not None and loss not in many:
        names = ", ".join(map(repr, many)) or "none"
        raise ValueError(f"loss must be one that a run has logged ({names}), got {show(loss)}")
    if loss is not None or not many:
        return loss
    return max(many, key=lambda name: (many[name], "val" in name.lower()))
