"""Every decay of the learning rate becomes growth of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from lightning_bsscale.theory.policies.policy import Decision, Limits, Policy, Situation
from lightning_bsscale.theory.policies.seesaw import check_trade, grow_for_decay

__all__ = ["Smith"]


@final
@dataclass(frozen=True, kw_only=True)
class Smith(Policy):
    """Where the schedule cuts the learning rate by α, grow the batch by α instead, at a constant learning rate.

    For SGD, with the rule ``linear``: B = B0 / f, and the learning rate f · B / B0 is that of the schedule's peak. The
    schedule is the callback's own or the user's scheduler, as for ``Seesaw``; what the batch cannot follow (its size is
    a multiple of the loader's batch, and has a largest value) stays decay. With the rule ``saturating``, which
    ``lr_rule="auto"`` chooses for SGD, the learning rate is constant only well below the noise scale, and falls beyond.
    Other rules of the package are refused: the square root gives ``Seesaw``.

    Source: Smith et al. 2018, arXiv 1711.00489. Where it stops being true: a batch that is not far below the noise
    scale, or a tenth of the examples; normalised optimizers such as Adam, which become unstable at a constant learning
    rate.

    Args:
        cut: Ratio α of the schedule from one growth to the next, above 1.
        gate: Largest batch size as a share of the noise scale's lower bound, above 0; None for no gate, as published.
        confidence: Confidence of that one-sided bound, from 0.5 (the point estimate) to below 1.
    """

    cut: float = 2**0.25
    gate: float | None = None
    confidence: float = 0.9

    def __post_init__(self) -> None:
        """Check the options."""
        check_trade(self)

    @property
    def lr_rules(self) -> tuple[str, ...]:
        """The rules that leave nothing of the decay to the learning rate."""
        return ("linear", "saturating")

    def decide(self, situation: Situation, limits: Limits) -> Decision:  # noqa: D102
        return grow_for_decay(situation, limits, cut=self.cut, exponent=1.0, gate=self.gate, confidence=self.confidence)
