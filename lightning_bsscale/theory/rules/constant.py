"""The rule that leaves the learning rate alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.rules.rule import LearningRateRule, batch_ratio

__all__ = ["Constant"]


@final
@dataclass(frozen=True)
class Constant(LearningRateRule):
    """Constant rule: the learning rate does not follow the batch.

    For experiments; with SGD, growth without rescaling loses accuracy.

    Example:
        >>> Constant().ratio(64, 256, None)
        1.0
    """

    name = "none"

    def ratio(self, old_batch: float, new_batch: float, noise: NoiseScale | None) -> float:  # noqa: D102
        batch_ratio(old_batch, new_batch)
        return 1.0
