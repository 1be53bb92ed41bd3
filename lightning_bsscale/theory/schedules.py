"""Learning-rate schedules as factors of progress in examples: linear warmup, then decay.

The number of steps changes when the batch grows, so progress is counted in examples. A schedule is a function of the
position in the budget. Evaluate it at the *middle of the window*, the examples seen before it plus half its own:

    factor(examples_seen + window / 2, total_examples, warmup_examples)

The first step's learning rate is then above zero, the last step's above the end of the decay, and the sum of the
learning rates over the run (the midpoint rule) hardly depends on how the budget is divided into windows.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from lightning_bsscale.theory.checks import check_number, join_names, show

__all__ = [
    "SCHEDULES",
    "Checked",
    "Schedule",
    "WarmupConstant",
    "WarmupCosine",
    "WarmupExponential",
    "WarmupLinear",
    "WarmupStableDecay",
    "WarmupStep",
    "resolve_schedule",
]


class Schedule(ABC):
    """A factor on the learning rate as a function of progress in examples."""

    @property
    def name(self) -> str:
        """Name of the schedule, for messages."""
        return type(self).__name__

    @abstractmethod
    def factor(self, examples_seen: float, total_examples: float, warmup_examples: float) -> float:
        """Compute the factor on the learning rate.

        Args:
            examples_seen: Position in examples, at least 0; use the window's middle. Beyond the end of the budget the
                factor keeps its last value.
            total_examples: The budget, above 0; infinite where the decay needs no end.
            warmup_examples: Length of the linear warmup from 0 to 1, at least 0; 0 for none.

        Returns:
            The factor, from 0 to 1.
        """


def _warmup(examples_seen: float, warmup_examples: float) -> float:
    seen = check_number("examples_seen", examples_seen, at_least=0)
    warmup = check_number("warmup_examples", warmup_examples, at_least=0)
    return 1.0 if seen >= warmup else seen / warmup


def _decay_progress(examples_seen: float, total_examples: float, warmup_examples: float) -> float:
    # 0 at the end of the warmup, 1 at the end of the budget.
    total = check_number("total_examples", total_examples, above=0, may_be_infinite=True)
    if examples_seen >= total:
        return 1.0
    if examples_seen <= warmup_examples:
        return 0.0
    return (examples_seen - warmup_examples) / (total - warmup_examples)


def _checked_final(final_factor: float) -> float:
    return check_number("final", final_factor, at_least=0, at_most=1)


@final
@dataclass(frozen=True)
class WarmupCosine(Schedule):
    """Linear warmup, then half a cosine: ``final + (1 - final) (1 + cos(pi p)) / 2``, p the progress after warmup.

    Args:
        final: Factor at the budget's end, from 0 to 1.

    Source: Loshchilov and Hutter 2017, arXiv 1608.03983, without restarts.

    Example:
        >>> [round(WarmupCosine(final=0.1).factor(seen, 1000, 100), 3) for seen in (50, 100, 550, 1000, 2000)]
        [0.5, 1.0, 0.55, 0.1, 0.1]
    """

    final: float = 0.0

    def __post_init__(self) -> None:
        """Check the option."""
        object.__setattr__(self, "final", _checked_final(self.final))

    def factor(self, examples_seen: float, total_examples: float, warmup_examples: float) -> float:  # noqa: D102
        progress = _decay_progress(examples_seen, total_examples, warmup_examples)
        decay = self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2
        return _warmup(examples_seen, warmup_examples) * decay


@final
@dataclass(frozen=True)
class WarmupLinear(Schedule):
    """Linear warmup, then a straight line down: ``1 - (1 - final) p``, p the progress after warmup.

    Args:
        final: Factor at the budget's end, from 0 to 1.

    Example:
        >>> [WarmupLinear().factor(seen, 1000, 200) for seen in (100, 200, 600, 1000)]
        [0.5, 1.0, 0.5, 0.0]
    """

    final: float = 0.0

    def __post_init__(self) -> None:
        """Check the option."""
        object.__setattr__(self, "final", _checked_final(self.final))

    def factor(self, examples_seen: float, total_examples: float, warmup_examples: float) -> float:  # noqa: D102
        progress = _decay_progress(examples_seen, total_examples, warmup_examples)
        return _warmup(examples_seen, warmup_examples) * (1 - (1 - self.final) * progress)


@final
@dataclass(frozen=True)
class WarmupStep(Schedule):
    """Linear warmup, then a cut by ``gamma`` at each milestone.

    Args:
        milestones: Shares of the whole budget (warmup included), in rising order, each between 0 and 1.
        gamma: Factor of one cut, above 0 and at most 1.

    Example:
        >>> [WarmupStep().factor(seen, 1000, 0) for seen in (499, 500, 749)]
        [1.0, 0.1, 0.1]
    """

    milestones: Sequence[float] = (0.5, 0.75)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            TypeError: If the milestones are not a sequence of numbers.
            ValueError: If they do not rise.
        """
        given: object = self.milestones
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise TypeError(f"milestones must be a sequence of shares of the budget, got {show(given)}")
        shares = tuple(
            check_number(f"milestones[{i}]", share, above=0, below=1) for i, share in enumerate(self.milestones)
        )
        if any(later <= earlier for earlier, later in itertools.pairwise(shares)):
            raise ValueError(f"milestones must rise, got {self.milestones!r}")
        object.__setattr__(self, "gamma", check_number("gamma", self.gamma, above=0, at_most=1))
        object.__setattr__(self, "milestones", shares)  # a list from YAML would make the record unhashable

    def factor(self, examples_seen: float, total_examples: float, warmup_examples: float) -> float:  # noqa: D102
        total = check_number("total_examples", total_examples, above=0, may_be_infinite=True)
        cuts = sum(examples_seen >= share * total for share in self.milestones)
        return float(_warmup(examples_seen, warmup_examples) * self.gamma**cuts)


@final
@dataclass(frozen=True)
class WarmupExponential(Schedule):
    """Linear warmup, then an exponential: ``final ** p``, p the progress after warmup.

    Args:
        final: Factor at the budget's end, above 0 (an exponential never reaches 0) and at most 1.

    Example:
        >>> [round(WarmupExponential(final=0.01).factor(seen, 1000, 0), 3) for seen in (0, 500, 1000)]
        [1.0, 0.1, 0.01]
    """

    final: float = 0.01

    def __post_init__(self) -> None:
        """Check the option."""
        object.__setattr__(self, "final", check_number("final", self.final, above=0, at_most=1))

    def factor(self, examples_seen: float, total_examples: float, warmup_examples: float) -> float:  # noqa: D102
        progress = _decay_progress(examples_seen, total_examples, warmup_examples)
        return float(_warmup(examples_seen, warmup_examples) * self.final**progress)


@final
@dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """Linear warmup, a constant learning rate, then a straight line down over the last part: ``1 - (1 - final) q``.

    ``q`` is the progress from the start of the decay (or the end of the warmup, if that is later) to the budget's end.

    Args:
        decay: Share of the whole budget in which the learning rate falls, above 0 and at most 1.
        final: Factor at the budget's end, from 0 to 1.

    Source: Hu et al. 2024, arXiv 2404.06395 (warmup, stable, decay); Hägele et al. 2024, arXiv 2405.18392 (its length).

    Example:
        >>> [round(WarmupStableDecay(final=0.1).factor(seen, 1000, 100), 3) for seen in (50, 100, 800, 900, 1000)]
        [0.5, 1.0, 1.0, 0.55, 0.1]
    """

    decay: float = 0.2
    final: float = 0.0

    def __post_init__(self) -> None:
        """Check the options."""
        object.__setattr__(self, "decay", check_number("decay", self.decay, above=0, at_most=1))
        object.__setattr__(self, "final", _checked_final(self.final))

    def factor(self, examples_seen: float, total_examples: float, warmup_examples: float) -> float:  # noqa: D102
        total = check_number("total_examples", total_examples, above=0, may_be_infinite=True)
        begins = math.inf if math.isinf(total) else max(warmup_examples, (1 - self.decay) * total)
        progress = _decay_progress(examples_seen, total, begins)
        return _warmup(examples_seen, warmup_examples) * (1 - (1 - self.final) * progress)


@final
@dataclass(frozen=True)
class WarmupConstant(Schedule):
    """Linear warmup, then a constant learning rate.

    Example:
        >>> [WarmupConstant().factor(seen, 1000, 200) for seen in (100, 200, 1000)]
        [0.5, 1.0, 1.0]
    """

    def factor(self, examples_seen: float, total_examples: float, warmup_examples: float) -> float:  # noqa: D102
        check_number("total_examples", total_examples, above=0, may_be_infinite=True)
        return _warmup(examples_seen, warmup_examples)


@final
@dataclass(frozen=True, repr=False)
class Checked(Schedule):
    """Any schedule with its factors checked, so that an invalid one never reaches the optimizer.

    Args:
        schedule: The schedule to check, usually a user's.

    Example:
        >>> Checked(WarmupCosine()).factor(500, 1000, 0)
        0.5
    """

    schedule: Schedule

    def __repr__(self) -> str:
        return repr(self.schedule)

    @property
    def name(self) -> str:
        """Name of the wrapped schedule."""
        return self.schedule.name

    def factor(self, examples_seen: float, total_examples: float, warmup_examples: float) -> float:  # noqa: D102
        answer = self.schedule.factor(examples_seen, total_examples, warmup_examples)
        return check_number(f"the factor of the schedule {self.name!r}", answer, at_least=0)


SCHEDULES: dict[str, type[Schedule]] = {
    "cosine": WarmupCosine,
    "linear": WarmupLinear,
    "step": WarmupStep,
    "exponential": WarmupExponential,
    "wsd": WarmupStableDecay,
    "constant": WarmupConstant,
}
"""Schedules by name; each can be created without arguments."""


def resolve_schedule(schedule: object) -> Schedule:
    """Return the schedule for a name, or a schedule as it is.

    Args:
        schedule: A key of :data:`SCHEDULES`, or a schedule.

    Returns:
        The schedule.

    Raises:
        ValueError: If the name is unknown.
        TypeError: If it is neither a name nor a schedule.

    Example:
        >>> resolve_schedule("cosine")
        WarmupCosine(final=0.0)
    """
    allowed = f"one of {join_names(SCHEDULES)}, or a Schedule such as WarmupCosine(final=0.05)"
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule must be {allowed}, got {show(schedule)}")
        return SCHEDULES[schedule]()
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be {allowed}, got {show(schedule)}")
    return schedule
