"""What a report shows of a run, in bounded memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.events import EndEvent
from lightning_bsscale.theory.records import DecisionRecord
from lightning_bsscale.theory.state import RunNumbers
from lightning_bsscale.verdict import RunFacts, Verdict

__all__ = ["Change", "Hold", "Phase", "Place", "RunRecord", "Thinned", "Window"]

MOST_KEPT = 2048
_T = TypeVar("_T")


class Thinned(Generic[_T]):
    """A list that keeps at most so many items, spread over all that were added, with the first and the last."""

    def __init__(self, limit: int = MOST_KEPT) -> None:
        """Begin an empty list."""
        self._limit, self._stride, self.count = limit, 1, 0
        self._kept: list[_T] = []
        self._last: _T | None = None

    def add(self, item: _T) -> None:
        """Append an item."""
        is_kept = self.count % self._stride == 0
        self.count += 1
        self._last = None if is_kept else item
        if is_kept:
            self._kept.append(item)
            if len(self._kept) > self._limit:
                self._last = None if len(self._kept) % 2 else item
                self._kept, self._stride = self._kept[::2], 2 * self._stride

    @property
    def items(self) -> list[_T]:
        """The items that are kept, in order."""
        return self._kept if self._last is None else [*self._kept, self._last]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run is.

    Attributes:
        examples: examples so far
        steps: optimizer steps so far
        seconds: seconds of the timed windows so far
    """

    examples: float = 0.0
    steps: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Window:
    """A measured window.

    Attributes:
        place: where the run was at its end
        batch_size: the current batch size, in examples
        noise: the averaged estimate after it, or None
        lr: the learning rate of the step
        lr_scale: the factor in it
    """

    place: Place
    batch_size: float
    noise: NoiseScale | None
    lr: float
    lr_scale: float

    @property
    def is_resolved(self) -> bool:
        """Whether the noise scale is resolved."""
        return self.noise is not None and self.noise.resolved

    @property
    def resolved(self) -> float:
        """The noise scale, in examples; nan where it is not resolved."""
        return self.noise.noise_scale if self.noise is not None and self.noise.resolved else math.nan


@dataclass(frozen=True, slots=True)
class Hold:
    """What one reason to hold amounts to.

    Attributes:
        reason: its sentence, the first one with its code
        runs: runs of holds with that code
        examples: examples seen in them
    """

    reason: str
    runs: int = 0
    examples: float = 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the batch, with the holds before it.

    Attributes:
        place: where the run was
        record: the decision
        holds: by code, the holds since the last change
    """

    place: Place
    record: DecisionRecord
    holds: dict[str, Hold]


@dataclass(slots=True)
class Phase:
    """The windows of one batch size.

    Attributes:
        batch_size: in examples
        steps: optimizer steps
        examples: their examples
        timed: of these, the steps that were timed
        seconds: seconds of the timed ones
        computing: of these, in forward and backward passes
        stepping: of these, in the optimizer's step and what belongs to it
        undivided: of these, of steps whose parts were not measured
    """

    batch_size: float
    steps: int = 0
    examples: float = 0.0
    timed: int = 0
    seconds: float = 0.0
    computing: float = 0.0
    stepping: float = 0.0
    undivided: float = 0.0


@dataclass(eq=False)
class RunRecord:
    """What a journal tells of its run.

    Attributes:
        path: the file
        header: its first line
        numbers: the settings of the last start
        first: where the journal begins
        now: where the run is at its end
        start_batch: batch size at the run's first start, in examples
        batch: batch size at the end
        track: places of the run
        windows: measured windows
        changes: changes of the batch
        holds: by code, all holds
        last_holds: by code, the holds since the last change
        latest: the last decision, or None
        phases: by batch size
        metrics: values of the watched metrics and of logged losses, by name
        resumed: how often the run was resumed into this file
        ended: the end record, or None
        gave_up: whether an error ended the measurements
        drops: windows that were left without a step
        problems: what was wrong with the file
        facts: what its verdict is made from; None where that cannot be said
        verdict: what it found, why, and what to change next
    """

    path: Path
    header: dict[str, Any]
    numbers: RunNumbers
    first: Place
    now: Place
    start_batch: float
    batch: float
    track: Thinned[Place] = field(default_factory=Thinned)
    windows: Thinned[Window] = field(default_factory=Thinned)
    changes: Thinned[Change] = field(default_factory=Thinned)
    holds: dict[str, Hold] = field(default_factory=dict)
    last_holds: dict[str, Hold] = field(default_factory=dict)
    latest: DecisionRecord | None = None
    phases: dict[float, Phase] = field(default_factory=dict)
    metrics: dict[str, Thinned[tuple[Place, float]]] = field(default_factory=dict)
    resumed: int = 0
    ended: EndEvent | None = None
    gave_up: bool = False
    drops: int = 0
    problems: list[str] = field(default_factory=list)
    facts: RunFacts | None = None
    verdict: Verdict = field(default_factory=lambda: Verdict(""))

    @property
    def unit(self) -> str:
        """What a batch is counted in, as a plural word."""
        profile = self.header.get("profile")
        unit = profile.get("unit") if isinstance(profile, dict) else None
        return unit if isinstance(unit, str) and unit else "examples"

    @property
    def timed(self) -> int:
        """Optimizer steps with seconds."""
        return sum(phase.timed for phase in self.phases.values())

    @property
    def has_seconds(self) -> bool:
        """Whether nearly all steps were timed, so that the seconds can be an axis."""
        steps = sum(phase.steps for phase in self.phases.values())
        return self.now.seconds > 0 and self.timed >= 0.9 * (steps - 2 * (1 + self.resumed))

    @property
    def noise(self) -> NoiseScale | None:
        """The last estimate, or None."""
        return next((window.noise for window in reversed(self.windows.items) if window.noise is not None), None)

    def at_step(self, steps: float) -> Place:
        """Return the recorded place that is nearest before a step."""
        places = self.track.items
        low, high = 0, len(places)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if places[middle].steps <= steps else (low, middle)
        return places[max(0, low - 1)] if places else self.first
