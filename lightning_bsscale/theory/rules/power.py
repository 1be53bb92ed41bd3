"""The square-root rule and the power rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from lightning_bsscale.theory.checks import check_number
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.rules.rule import LearningRateRule, batch_ratio

__all__ = ["Power", "Sqrt"]


@final
@dataclass(frozen=True)
class Sqrt(LearningRateRule):
    """Square-root rule: ``sqrt(new / old)``.

    For the Adam family while both batches are far below the noise scale; without a ceiling (``Capped`` adds one).

    Source: Malladi et al. 2022, arXiv 2205.10287; Krizhevsky 2014, arXiv 1404.5997; Hoffer et al. 2017, arXiv
    1705.08741.

    Example:
        >>> Sqrt().ratio(64, 256, None)
        2.0
    """

    name = "sqrt"

    def ratio(self, old_batch: float, new_batch: float, noise: NoiseScale | None) -> float:  # noqa: D102
        return math.sqrt(batch_ratio(old_batch, new_batch))


@final
@dataclass(frozen=True)
class Power(LearningRateRule):
    """Power rule: ``(new / old) ** exponent``.

    Between the square root and the linear rule, for a batch that grows while the learning rate decays, under Adam as
    under SGD. The exponent is empirical, without a derivation.

    Source: McCandlish et al. 2018, arXiv 1812.06162, who report exponents between 0.5 and 1 for Adam.

    Args:
        exponent: From 0 (no change) to 1 (linear); 0.5 is the square root.

    Example:
        >>> Power(0.75).ratio(1, 16, None)
        8.0
    """

    name = "power"
    exponent: float = 0.75

    def __post_init__(self) -> None:
        """Check the option."""
        object.__setattr__(self, "exponent", check_number("exponent", self.exponent, at_least=0, at_most=1))

    def ratio(self, old_batch: float, new_batch: float, noise: NoiseScale | None) -> float:  # noqa: D102
        return float(batch_ratio(old_batch, new_batch) ** self.exponent)
