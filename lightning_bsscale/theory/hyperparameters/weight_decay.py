"""Weight decay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from lightning_bsscale.theory.checks import check_number
from lightning_bsscale.theory.hyperparameters.rule import HyperparameterRule

__all__ = ["WeightDecay"]


@final
@dataclass(frozen=True)
class WeightDecay(HyperparameterRule):
    """Weight decay times ``ratio ** exponent``.

    Decoupled weight decay (AdamW) shrinks the weights by ``lr * weight_decay`` a step, so they forget in
    ``batch / (lr * weight_decay)`` examples. This stays the same if learning rate and weight decay together grow like
    the batch: under ``lr ~ ratio ** a`` with an exponent of ``1 - a``, which is 0.25 for the default rule of Adam's
    family, 0.5 for ``sqrt`` and 0 for ``linear``.

    Source: Bergsma et al. 2025, arXiv 2505.13738. Where it stops being true: weight decay that is added to the gradient
    (``SGD``, ``Adam``).

    Args:
        exponent: From 0 (no change) to 1. Defaults to 0.25, which fits ``power``, the default rule.

    Example:
        >>> WeightDecay().scaled({"weight_decay": 0.1}, 16.0)
        {'weight_decay': 0.2}
    """

    exponent: float = 0.25

    def __post_init__(self) -> None:
        """Check the option."""
        object.__setattr__(self, "exponent", check_number("exponent", self.exponent, at_least=0, at_most=1))

    @property
    def keys(self) -> tuple[str, ...]:  # noqa: D102
        return ("weight_decay",)

    def scaled(self, group: Mapping[str, Any], ratio: float) -> dict[str, Any]:  # noqa: D102
        return {"weight_decay": group["weight_decay"] * ratio**self.exponent}
