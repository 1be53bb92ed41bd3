"""SGD's momentum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from lightning_bsscale.theory.hyperparameters.rule import HyperparameterRule

__all__ = ["Momentum"]


@final
@dataclass(frozen=True)
class Momentum(HyperparameterRule):
    r"""SGD's momentum to the power of the ratio, so that gradients are averaged over the same number of examples.

    A gradient moves the weights by ``lr (1 - dampening) (1 + m + m^2 + ...) = lr (1 - dampening) / (1 - m)`` in all. A
    smaller momentum alone would therefore also be a smaller learning rate. That is the learning-rate rule's to decide,
    so the dampening is lowered along with the momentum, below zero if it was zero:

        1 - dampening' = (1 - dampening) (1 - m') / (1 - m),    m' = m ** ratio

    and the buffer, which holds the sum, is neither too large nor too small for the new values. With Nesterov momentum a
    gradient counts ``1 + m (1 - dampening) / (1 - m)``, which is kept likewise, once the buffer has filled up.

    Source: as `Beta2`, for the averaging time; the dampening follows from the sum above.

    Example:
        >>> new = Momentum().scaled({"momentum": 0.9, "dampening": 0.0, "nesterov": False}, 2.0)
        >>> round(new["momentum"], 2), round((1 - new["dampening"]) / (1 - new["momentum"]), 6)
        (0.81, 10.0)
    """

    @property
    def keys(self) -> tuple[str, ...]:  # noqa: D102
        return "momentum", "dampening"

    def scaled(self, group: Mapping[str, Any], ratio: float) -> dict[str, Any]:  # noqa: D102
        momentum, dampening = group["momentum"], group["dampening"]
        scaled = momentum**ratio
        if scaled in (0, momentum):
            return {"momentum": momentum, "dampening": dampening}
        weight = (1 - dampening) * (1 - scaled) / (1 - momentum)
        if group.get("nesterov"):
            weight *= momentum / scaled
        return {"momentum": scaled, "dampening": 1 - weight}
