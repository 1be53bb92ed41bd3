"""A ceiling on the factor of any rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from lightning_bsscale.theory.checks import check_number, show
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.rules.rule import LearningRateRule

__all__ = ["Capped"]


@final
@dataclass(frozen=True)
class Capped(LearningRateRule):
    """Any rule with a ceiling: ``min(rule, cap)`` on the factor since the start.

    The ceiling applies to the whole factor, not to a single change. The path below it is remembered: a batch that
    shrinks again returns to its earlier factor.

    Args:
        rule: The rule to cap.
        cap: Largest factor on the learning rate, at least 1.

    Example:
        >>> from lightning_bsscale.theory.rules import Sqrt
        >>> Capped(Sqrt(), 3).applied(Sqrt().ratio(4, 64, None))
        3.0
    """

    rule: LearningRateRule
    cap: float

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            TypeError: If ``rule`` is not a rule.
        """
        if not isinstance(self.rule, LearningRateRule):
            raise TypeError(f"rule must be a LearningRateRule such as Sqrt(), got {show(self.rule)}")
        object.__setattr__(self, "cap", check_number("cap", self.cap, at_least=1))

    @property
    def name(self) -> str:
        """The rule's name and the ceiling."""
        return f"{self.rule.name}, at most {self.cap:g}"

    @property
    def needs_noise(self) -> bool:
        """The same as that of the wrapped rule."""
        return self.rule.needs_noise

    @property
    def has_peak(self) -> bool:
        """The same as that of the wrapped rule."""
        return self.rule.has_peak

    def ratio(self, old_batch: float, new_batch: float, noise: NoiseScale | None) -> float:  # noqa: D102
        return self.rule.ratio(old_batch, new_batch, noise)

    def applied(self, path_factor: float) -> float:  # noqa: D102
        uncapped = self.rule.applied(path_factor)
        return min(check_number(f"the factor that the rule {self.rule.name!r} applies", uncapped, above=0), self.cap)
