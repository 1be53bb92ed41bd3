"""The surge rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.rules.rule import LearningRateRule, batch_ratio, resolved_scale

__all__ = ["Surge"]


@final
@dataclass(frozen=True)
class Surge(LearningRateRule):
    """Surge rule: ``f(new) / f(old)`` with ``f(B) = 2 / (sqrt(B_noise/B) + sqrt(B/B_noise))``.

    For sign-like updates (Adam): rises as the square root, peaks at the noise scale, and then *falls*. Derived for the
    sign of a Gaussian gradient with equal signal-to-noise in every coordinate.

    Source: Li et al. 2024, arXiv 2405.14578.
    """

    name = "surge"
    needs_noise = True
    has_peak = True

    def ratio(self, old_batch: float, new_batch: float, noise: NoiseScale | None) -> float:  # noqa: D102
        growth = batch_ratio(old_batch, new_batch)
        scale = resolved_scale(noise)
        if scale is None:
            return math.sqrt(growth)
        # f(new) / f(old) = sqrt(new/old) (scale + old) / (scale + new)
        return math.sqrt(growth) * (scale + old_batch) / (scale + new_batch)
