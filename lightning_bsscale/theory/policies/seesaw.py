"""Growth in exchange for the schedule's decay: the batch that follows from the schedule, and Seesaw's policy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from lightning_bsscale.theory.checks import check_number, join_names, show
from lightning_bsscale.theory.numbers import describe_count
from lightning_bsscale.theory.policies.policy import (
    Decision,
    Limits,
    Policy,
    Reason,
    Situation,
    hold_in_warmup,
    noise_bounds,
)

__all__ = ["Seesaw", "grow_for_decay"]

FORMS: dict[str, tuple[float, tuple[str, ...]]] = {
    "adam": (1.0, ("sqrt", "surge")),
    "sgd": (0.5, ("linear", "saturating")),
}
"""Form -> the exponent of a cut by which the batch grows, and the learning-rate rules that leave its rest."""

ROUNDING = 1e-9  # by which a power of a cut may miss a whole batch


@final
@dataclass(frozen=True, kw_only=True)
class Seesaw(Policy):
    """Where the schedule cuts the learning rate by α, cut it by √α and grow the batch, up to the noise scale.

    The schedule is the callback's own or the user's scheduler, whatever its shape; ``f`` is its factor relative to its
    peak so far, so nothing grows while it rises. The schedule stays as it is, and the learning-rate rule multiplies
    it by the factor of the batch. The noise of training stays that of the schedule wherever a·√b = α (Adam) or a·b = α
    (SGD), for a cut by a and a growth by b. The square-root and the linear rule give exactly that at every batch size,
    rounded and gated ones included. Seesaw adds how far to grow:

    - ``form="adam"``: b = α, so B = B0 / f, and with the rule ``sqrt`` the learning rate is √f. More growth for less
      decay is unstable (a < √b).
    - ``form="sgd"``: b = √α, so B = B0 / √f, and with the rule ``linear`` the learning rate is √f. ``Smith`` is the
      other end, with a constant learning rate.

    Between two cuts the learning rate falls with the schedule. What the gate or the limits withhold stays decay. With
    the rules ``surge`` and ``saturating`` the learning rate falls below √f as the batch comes near the noise scale.
    Other rules of the package are refused. The batch never shrinks: after a restart of the schedule it stays.

    Source: Meterez et al. 2025, arXiv 2510.14717. Where it stops being true: it needs noise to dominate the gradient, a
    batch below the critical one; above, it loses to the schedule (in the paper 3.132 against 3.121 at batch 1024, but
    3.021 against 3.028 at batch 128). Hence the gate.

    Args:
        cut: Ratio α of the schedule from one growth to the next, above 1. Fine cuts save more steps: over a cosine to 5
            %, 34.5 % with cuts of 2, 43.7 % with the default (the fourth root of 2), 47.5 % in the limit.
        form: ``"adam"`` for the Adam family and other normalised optimizers, ``"sgd"`` for SGD.
        gate: Largest batch size as a share of the noise scale's lower bound, above 0; None for no gate, as published.
        confidence: Confidence of that one-sided bound, from 0.5 (the point estimate) to below 1.
    """

    cut: float = 2**0.25
    form: str = "adam"
    gate: float | None = 1.0
    confidence: float = 0.9

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: If the form is unknown.
        """
        check_trade(self)
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {join_names(FORMS)}, got {show(self.form)}")

    @property
    def lr_rules(self) -> tuple[str, ...]:
        """The rules that leave the square root of the schedule to the learning rate."""
        return FORMS[self.form][1]

    def decide(self, situation: Situation, limits: Limits) -> Decision:  # noqa: D102
        return grow_for_decay(
            situation,
            limits,
            cut=self.cut,
            exponent=FORMS[self.form][0],
            gate=self.gate,
            confidence=self.confidence,
        )


def check_trade(policy: Policy) -> None:
    """Check the options ``cut``, ``gate`` and ``confidence`` of a new policy, and store them as Python numbers."""
    options: dict[str, object] = {name: getattr(policy, name) for name in ("cut", "gate", "confidence")}
    checked = {
        "cut": check_number("cut", options["cut"], above=1),
        "gate": None if options["gate"] is None else check_number("gate (or None)", options["gate"], above=0),
        "confidence": check_number("confidence", options["confidence"], at_least=0.5, below=1),
    }
    for name, value in checked.items():
        object.__setattr__(policy, name, value)


def grow_for_decay(
    situation: Situation, limits: Limits, *, cut: float, exponent: float, gate: float | None, confidence: float
) -> Decision:
    """Decide on the batch that the schedule's decay is worth, at most a share of the noise scale.

    Args:
        situation: The state of training at the end of a window.
        limits: The possible batch sizes.
        cut: Ratio of the schedule from one growth to the next.
        exponent: The batch grows by ``cut ** exponent`` at each.
        gate: Largest batch as a share of the noise scale's lower bound; None for no gate.
        confidence: Confidence of that bound.

    Returns:
        The decision.
    """
    batch, noise = situation.batch_size, situation.noise
    if (hold := hold_in_warmup(situation)) is not None:
        return hold
    share = situation.schedule_factor / situation.schedule_peak if situation.schedule_peak > 0 else 1.0
    wanted = situation.start_batch_size * _whole_cuts(share, cut) ** exponent
    needed = batch * cut**exponent
    if math.isclose(wanted, needed, rel_tol=ROUNDING):
        needed = wanted
    bound = None if gate is None or noise is None else noise_bounds(noise, confidence)[0]
    allowed = math.inf if gate is None or bound is None else gate * bound
    numbers = {
        "bound": bound,
        "confidence": None if bound is None else confidence,
        "target": wanted if bound is None else allowed,
        "needed": needed,
    }

    def possible(size: float) -> int:
        return limits.clip(size * (1 + ROUNDING))

    def held(reason: str, code: str) -> Decision:
        return Decision(batch_size=batch, reason=reason, code=code, **numbers)

    asks = f"the schedule is at {share:.3g} of its peak and asks for a batch of {describe_count(wanted)}"
    if wanted < needed or possible(wanted) <= batch < limits.clip(math.inf):
        return held(f"hold: {asks}, less than one cut more than the batch", "no_cut_due")
    if limits.clip(math.inf) <= batch:
        return held(Reason.AT_LIMIT.with_number(describe_count(batch)), Reason.AT_LIMIT.code)
    if gate is not None and noise is None:
        return held(Reason.NO_ESTIMATE.value, Reason.NO_ESTIMATE.code)
    if gate is not None and noise is not None and not noise.resolved:
        return held(Reason.UNRESOLVED.value, Reason.UNRESOLVED.code)
    grown = possible(min(wanted, allowed))
    if allowed < needed * (1 - ROUNDING) or grown <= batch:
        least = f"the noise scale's lower bound allows {describe_count(allowed)}"
        return held(f"hold: {asks}, but {least}", "above_noise_scale")
    gated = f", of which the noise scale's lower bound allows {describe_count(allowed)}" if allowed < wanted else ""
    return Decision(batch_size=grown, reason=f"grow: {asks}{gated}", code=Reason.GROW.code, **numbers)


def _whole_cuts(share: float, cut: float) -> float:
    """Return ``1 / share``, rounded down to a whole number of cuts."""
    if share <= 0:
        return math.inf
    number = math.log(max(1.0, 1 / share)) / math.log(cut)
    try:
        return float(cut ** math.floor(number + ROUNDING))
    except OverflowError:
        return math.inf
