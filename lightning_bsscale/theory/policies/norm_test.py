"""The norm test of adaptive sampling: grow where the batch's gradient is too noisy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from lightning_bsscale.theory.checks import check_number
from lightning_bsscale.theory.numbers import describe_count, describe_number
from lightning_bsscale.theory.policies.policy import Decision, Limits, Policy, Reason, Situation, hold_in_warmup

__all__ = ["NormTest"]


@final
@dataclass(frozen=True, kw_only=True)
class NormTest(Policy):
    """Grow to tr Σ / (θ² ‖ḡ‖²) where the variance of the mean, tr Σ / B, exceeds θ² ‖ḡ‖².

    ḡ is the mean gradient of the batch. Its squared norm is *biased*: E‖ḡ‖² = ‖G‖² + tr Σ / B, which the test takes for
    ‖G‖². So it sees at most 1/θ² times the batch as necessary, whatever the noise scale, and comes to rest at

        B = (1/θ² − 1) · B_simple,

    and never tests at all for θ ≥ 1. With θ = 0.6 that is 1.78 B_simple (Meta's rule, see ``NoiseScalePolicy.meta``),
    reached by steps of at most 2.78. tr Σ and ‖G‖² are the callback's averages, and ‖ḡ‖² is computed from them for the
    current batch, so a decision is less noisy than in the sources, which test single batches. They have no interval,
    and so this policy decides on unresolved estimates too; ``NoiseScalePolicy`` does not.

    Source: Byrd et al. 2012, Mathematical Programming 134; Lau et al. 2024, arXiv 2402.11215 (AdAdaGrad)
    and 2412.21124 (under DDP and FSDP); Naganuma et al. 2026, arXiv 2602.03001. Where it stops being true: for the
    bias, see above; the test bounds the error of a descent direction in plain gradient descent and says nothing about
    Adam's.

    Args:
        theta: Tolerance θ: largest relative error of the gradient, between 0 and 1.
    """

    theta: float = 0.6

    def __post_init__(self) -> None:
        """Check the option."""
        object.__setattr__(self, "theta", check_number("theta", self.theta, above=0, below=1))

    def decide(self, situation: Situation, limits: Limits) -> Decision:  # noqa: D102
        batch, noise = situation.batch_size, situation.noise
        if (hold := hold_in_warmup(situation)) is not None:
            return hold
        if noise is None:
            return Decision(batch_size=batch, reason=Reason.NO_ESTIMATE.value, code=Reason.NO_ESTIMATE.code)
        biased = max(noise.grad_sq, 0.0) + noise.trace / batch
        if not biased > 0:  # neither signal nor noise: nothing to divide by
            return Decision(batch_size=batch, reason=Reason.UNRESOLVED.value, code=Reason.UNRESOLVED.code)
        wanted = noise.trace / (self.theta**2 * biased)
        variance, tolerated = noise.trace / batch, self.theta**2 * biased
        numbers = {"target": wanted, "needed": float(batch)}
        tested = f"the variance of the mean gradient, {describe_number(variance)},"
        if variance <= tolerated:
            reason = f"hold: {tested} is within θ²‖ḡ‖² = {describe_number(tolerated)}"
            return Decision(batch_size=batch, reason=reason, code="test_passed", **numbers)
        grown = max(batch, limits.clip(wanted))
        if grown == batch:
            reason = (
                f"hold: {tested} exceeds θ²‖ḡ‖² = {describe_number(tolerated)}, "
                f"but no larger batch up to {describe_count(wanted)} is possible"
            )
            return Decision(batch_size=batch, reason=reason, code=Reason.AT_LIMIT.code, **numbers)
        reason = f"grow: {tested} exceeds θ²‖ḡ‖² = {describe_number(tolerated)}"
        return Decision(batch_size=grown, reason=reason, code=Reason.GROW.code, **numbers)
