"""What a journal knows of a training that is to be planned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_bsscale.journal import Header, read_lines
from lightning_bsscale.theory.described import make_rule
from lightning_bsscale.theory.events import WindowEvent
from lightning_bsscale.theory.planning import Interval, Spent
from lightning_bsscale.theory.records import Measurement
from lightning_bsscale.theory.rules import LearningRateRule
from lightning_bsscale.theory.state import RunNumbers
from lightning_bsscale.theory.stored import check_stored, from_plain


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
