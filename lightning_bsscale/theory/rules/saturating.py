"""The saturating rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.rules.rule import LearningRateRule, batch_ratio, resolved_scale

__all__ = ["Saturating"]


@final
@dataclass(frozen=True)
class Saturating(LearningRateRule):
    """Saturating rule: ``(1 + B_noise/old) / (1 + B_noise/new)``.

    For SGD, whose best learning rate is ``eps_max / (1 + B_noise/B)``: linear far below the noise scale,
    constant above. The same number as AdaScale's gain. Derived for one step on a quadratic, without momentum.

    Source: McCandlish et al. 2018, arXiv 1812.06162, eq. 2.6; Johnson et al. 2020, arXiv 2007.05105.
    """

    name = "saturating"
    needs_noise = True

    def ratio(self, old_batch: float, new_batch: float, noise: NoiseScale | None) -> float:  # noqa: D102
        growth = batch_ratio(old_batch, new_batch)
        scale = resolved_scale(noise)
        if scale is None:
            return math.sqrt(growth)
        return (1 + scale / old_batch) / (1 + scale / new_batch)
