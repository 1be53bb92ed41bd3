"""Adam's second beta."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from lightning_bsscale.theory.checks import check_number
from lightning_bsscale.theory.hyperparameters.rule import HyperparameterRule

__all__ = ["Beta2"]


@final
@dataclass(frozen=True)
class Beta2(HyperparameterRule):
    """Adam's second beta to the power of the ratio, but not below a floor.

    The squared gradient is averaged over about ``batch / (1 - beta2)`` examples. ``beta2 ** ratio`` forgets as much in
    one large step as ``beta2`` does in the small ones that it replaces.

    Source: Marek et al. 2025, arXiv 2507.07101. Where it stops being true: Adam corrects the start by
    ``1 - beta2 ** steps`` as if beta2 had never been another, so a change within the first ``1 / (1 - beta2)`` steps
    makes some steps longer: by up to ``sqrt(2)`` where the batch doubles.

    Args:
        floor: Lowest value, from 0 to below 1; one that is lower at the start stays as it is.

    Example:
        >>> [round(Beta2().scaled({"betas": (0.9, 0.99)}, ratio)["betas"][1], 4) for ratio in (1, 4, 16)]
        [0.99, 0.9606, 0.95]
    """

    floor: float = 0.95

    def __post_init__(self) -> None:
        """Check the option."""
        object.__setattr__(self, "floor", check_number("floor", self.floor, at_least=0, below=1))

    @property
    def keys(self) -> tuple[str, ...]:  # noqa: D102
        return ("betas",)

    def scaled(self, group: Mapping[str, Any], ratio: float) -> dict[str, Any]:  # noqa: D102
        beta1, beta2, *others = group["betas"]
        return {"betas": (beta1, max(beta2**ratio, min(beta2, self.floor)), *others)}
