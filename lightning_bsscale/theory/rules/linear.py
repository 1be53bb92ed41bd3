"""The linear rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.rules.rule import LearningRateRule, batch_ratio

__all__ = ["Linear"]


@final
@dataclass(frozen=True)
class Linear(LearningRateRule):
    """Linear rule: ``r = new / old``.

    For SGD, exact while both batches are far below the noise scale; diverges above it.

    Source: Goyal et al. 2017, arXiv 1706.02677; Smith et al. 2018, arXiv 1711.00489.

    Example:
        >>> Linear().ratio(64, 128, None)
        2.0
    """

    name = "linear"

    def ratio(self, old_batch: float, new_batch: float, noise: NoiseScale | None) -> float:  # noqa: D102
        return batch_ratio(old_batch, new_batch)
