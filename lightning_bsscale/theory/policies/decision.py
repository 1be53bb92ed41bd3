"""A policy's decision, and how it is recorded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from numbers import Integral, Real
from typing import Any

from lightning_bsscale.theory.policies.situation import Situation

__all__ = ["Decision", "Reason", "hold_without_decision", "recorded_decision"]


MAX_REASON_LENGTH = 500
MAX_CODE_LENGTH = 80


class Reason(str, Enum):
    """Why the batch changed or was held; the values are the sentences in log, journal and documentation."""

    IN_WARMUP = "hold: still in warmup"
    NO_ESTIMATE = "hold: no estimate of the noise scale yet"
    UNRESOLVED = "hold: the noise scale is not resolved (its interval has no upper end, or reaches zero)"
    COOLING_DOWN = "hold: cooling down after the last change"
    AT_LIMIT = "hold: the batch is as large as the limits allow"
    NEAR_END = "hold: too near the end of the budget for a change to pay"
    CLOSE_ENOUGH = "hold: the target is not far enough from the current batch size"
    GROW = "grow: the noise scale's lower bound allows a larger batch"
    SHRINK = "shrink: the noise scale's upper bound asks for a smaller batch"

    def __str__(self) -> str:
        """Return the sentence, as all Python versions should."""
        return str(self.value)

    @property
    def code(self) -> str:
        """The member's name in lower case, such as ``"unresolved"``: the code of a :class:`Decision`."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A policy's decision and the numbers behind it.

    :class:`NoiseScalePolicy` compares ``target = target_ratio * bound`` with ``needed``. To grow, the target of the
    lower bound must be at least ``needed = hysteresis * batch_size``. To shrink, the target of the upper bound must be
    at most ``needed = batch_size / hysteresis``. A policy that uses other numbers leaves these at None.

    Attributes:
        batch_size: The batch size from the next window on, in examples; the current one to hold.
        reason: Why, as a sentence; the built-in ones are the values of :class:`Reason`. Truncated to 500 characters
            in a record.
        code: The kind of reason, as a short constant string: a run of holds with one code is one record, whatever
            numbers the sentences contain. None means :attr:`Reason.code` if the reason is one of its sentences,
            otherwise ``"hold"``, ``"grow"`` or ``"shrink"``, by the requested batch size.
        bound: The one-sided bound of the noise scale that decided, in examples: the upper one to shrink, else the lower
            one.
        confidence: One-sided confidence of ``bound``, as a share; 0.5 is the estimate itself.
        target: The batch size that the bound justifies, in examples.
        needed: What the target was compared with, in examples: at least this to grow, at most this to shrink.
    """

    batch_size: int
    reason: str
    code: str | None = None
    bound: float | None = None
    confidence: float | None = None
    target: float | None = None
    needed: float | None = None


_CODES = {reason.value: reason.code for reason in Reason}


def recorded_decision(answer: object, situation: Situation) -> Decision | None:
    """Convert a policy's answer to a recordable decision: Python numbers, a code, and texts of bounded length.

    Args:
        answer: What ``decide`` returned.
        situation: The situation it was given.

    Returns:
        The decision; None if the answer is not a :class:`Decision` with a finite positive batch size.

    Example:
        >>> now = Situation(batch_size=8, start_batch_size=8, examples_seen=0)
        >>> recorded_decision(Decision(batch_size=8, reason="waiting for step 12"), now).code
        'hold'
    """
    size = _positive_number(answer.batch_size) if isinstance(answer, Decision) else None
    if size is None or not isinstance(answer, Decision):
        return None
    reason, code, now = str(answer.reason), answer.code, situation.batch_size
    if code is None:
        code = _CODES.get(reason) or ("hold" if size == now else "grow" if size > now else "shrink")
    return Decision(
        batch_size=size,
        reason=_cut(reason, MAX_REASON_LENGTH),
        code=_cut(str(code), MAX_CODE_LENGTH),
        bound=_float_or_none(answer.bound),
        confidence=_float_or_none(answer.confidence),
        target=_float_or_none(answer.target),
        needed=_float_or_none(answer.needed),
    )


def hold_without_decision(situation: Situation) -> Decision:
    """Return the hold that is recorded if a policy's answer is not a valid decision."""
    return Decision(
        batch_size=situation.batch_size, reason="hold: the policy did not return a valid decision", code="no_decision"
    )


def _positive_number(value: Any) -> Any:
    # Checkpoints and journals hold Python numbers, not NumPy's.
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    as_float = _float_or_none(value)
    if as_float is None or not 0 < as_float < math.inf:
        return None
    return int(value) if isinstance(value, Integral) else as_float


def _float_or_none(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer or a fraction that no float can hold
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 4]} ..."
