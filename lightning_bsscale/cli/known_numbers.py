"""What a probe and a journal know of a training that is to be planned."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_bsscale.journal import Header, read_lines
from lightning_bsscale.theory.checks import check_number, show
from lightning_bsscale.theory.described import make_rule
from lightning_bsscale.theory.events import WindowEvent
from lightning_bsscale.theory.planning import Interval, Spent
from lightning_bsscale.theory.records import Measurement
from lightning_bsscale.theory.rules import LearningRateRule
from lightning_bsscale.theory.state import RunNumbers
from lightning_bsscale.theory.stored import check_stored, from_plain

MOST_BYTES = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRun:
    """What a journal knows.

    Attributes:
        noise_scale: the last resolved noise scale; None if none was
        spent: examples at each batch, the first batch first
        ranks: devices at the end
        seconds_per_example: of one device; None where they are not known
        seconds_per_step: of a step beyond its loader batches; None where they are not known
        rule: the rule of the learning rate; None for a user's own
    """

    noise_scale: Interval | None
    spent: tuple[Spent, ...]
    ranks: int
    seconds_per_example: float | None
    seconds_per_step: float | None
    rule: LearningRateRule | None


def read_run(path: Path) -> KnownRun:
    """Read a journal.

    Args:
        path: the file

    Returns:
        What it knows at its end.

    Raises:
        ValueError: If it is no journal, or holds no optimizer step.
    """
    noise: Interval | None = None
    spent: dict[int, int] = {}
    numbers: RunNumbers | None = None
    seconds: tuple[float, float] | None = None
    described: Any = None
    for number, line in read_lines(path):
        if isinstance(line, Header):
            numbers, described = _settings(path, number, line.fields), line.fields.get("lr_rule")
        elif isinstance(line, Measurement) and line.noise is not None and line.noise.resolved:
            noise = Interval(value=line.noise.noise_scale, low=line.noise.low, high=line.noise.high)
        elif isinstance(line, WindowEvent) and line.length:
            assert numbers is not None
            batch = line.length * numbers.now.granularity
            # On several ranks, these are one rank's alone.
            examples = batch if line.examples is None or numbers.now.world_size > 1 else line.examples
            spent[batch] = spent.get(batch, 0) + examples
            per_loader_batch, per_step = line.seconds
            if per_loader_batch is not None and per_step is not None:
                seconds = (per_loader_batch * numbers.now.world_size / numbers.now.granularity, per_step)
    if numbers is None or not any(spent.values()):
        raise ValueError(f"{path} holds no optimizer step to plan from. Pass the journal of a run that trained.")
    return KnownRun(
        noise_scale=noise,
        spent=tuple(Spent(examples=examples, batch_size=batch) for batch, examples in spent.items() if examples),
        ranks=numbers.now.world_size,
        seconds_per_example=None if seconds is None else seconds[0],
        seconds_per_step=None if seconds is None else seconds[1],
        rule=_rule(described, path),
    )


def _settings(path: Path, number: int, header: dict[str, Any]) -> RunNumbers:
    try:
        check_stored(RunNumbers, header.get("settings"))
    except ValueError as error:
        raise ValueError(f"{path}, line {number} holds no settings of a run: {error}.") from error
    numbers: RunNumbers = from_plain(RunNumbers, header["settings"])
    return numbers


def _rule(described: Any, path: Path) -> LearningRateRule | None:
    try:
        return make_rule(described, path)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownProbe:
    """What a probe knows.

    Attributes:
        ratio: critical batch over noise scale; None if it was not resolved
        noise_scale: the noise scale; None if it was not resolved
    """

    ratio: Interval | None
    noise_scale: Interval | None


def read_probe(path: Path) -> KnownProbe:
    """Read the JSON of a probe.

    Args:
        path: the file

    Returns:
        What it holds of ``critical_batch_ratio`` and ``noise_scale``.

    Raises:
        ValueError: If it is no JSON object with either of them.
    """
    try:
        with open(path, encoding="utf-8") as file:
            found = json.loads(file.read(MOST_BYTES))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON file of a probe: {error}.") from error
    names = ("critical_batch_ratio", "noise_scale")
    if not isinstance(found, dict) or not any(name in found for name in names):
        raise ValueError(f"{path} is no JSON file of a probe: it has neither {' nor '.join(names)}.")
    ratio, noise = (_interval(path, name, found.get(name)) for name in names)
    return KnownProbe(ratio=ratio, noise_scale=noise)


def _interval(path: Path, name: str, found: Any) -> Interval | None:
    if found is None or (isinstance(found, dict) and found.get("value") is None):
        return None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold {name} as an object with value, low and high, got {show(found)}.")
    return interval(f"{path}: {name}", *(found.get(key) for key in ("value", "low", "high")))


def interval(name: str, value: Any, low: Any = None, high: Any = None) -> Interval:
    """Return an interval of numbers above 0; an unknown low end is 0, and an unknown high end infinite.

    Args:
        name: for the message
        value: the number
        low: the lower end, or None
        high: the upper end, or None

    Returns:
        The interval.

    Raises:
        ValueError: If the value is outside of its interval.
    """
    made = Interval(
        value=check_number(f"{name}.value", value, above=0),
        low=0.0 if low is None else check_number(f"{name}.low", low, at_least=0),
        high=float("inf") if high is None else check_number(f"{name}.high", high, above=0, may_be_infinite=True),
    )
    if not made.low <= made.value <= made.high:
        raise ValueError(f"{name}: the value {value} must lie between low and high, got {low} and {high}.")
    return made
