"""When to grow and to what: ordered gates, then a target. A policy is a pure function of what it is shown."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, Protocol, cast, final

from lightning_bsscale.theory.checks import check_integer, check_number, found, quoted
from lightning_bsscale.theory.estimate import NoiseScale

__all__ = [
    "POLICIES",
    "Decision",
    "Limits",
    "NoiseScalePolicy",
    "Policy",
    "Reason",
    "Situation",
    "SupportsDecide",
    "hold_without_decision",
    "recorded_decision",
    "resolve_policy",
]

MAX_REASON_LENGTH = 500
MAX_CODE_LENGTH = 80


class Reason(str, Enum):
    """Why the batch changed or did not; the values are the sentences that log, journal and documentation print."""

    IN_WARMUP = "hold: still in warmup"
    NO_ESTIMATE = "hold: no estimate of the noise scale yet"
    UNRESOLVED = "hold: the noise scale is not resolved (its interval has no upper end, or reaches zero)"
    DWELLING = "hold: too soon after the last change"
    AT_LIMIT = "hold: the batch is as large as the limits allow"
    NEAR_END = "hold: too near the end of the budget for a change to pay"
    CLOSE_ENOUGH = "hold: the target is not far enough from the present batch"
    GROW = "grow: the noise scale's lower bound allows a larger batch"
    SHRINK = "shrink: the noise scale's upper bound asks for a smaller batch"

    def __str__(self) -> str:
        """Return the sentence, alike on all Python versions."""
        return str(self.value)

    @property
    def code(self) -> str:
        """The member's name in lower case, such as ``"unresolved"``: what a :class:`Decision` carries as its code."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What a policy is shown at the end of a window.

    Attributes:
        batch_size: The present batch, in examples over all ranks.
        start_batch_size: The batch that training started with, in examples.
        examples_seen: Examples seen so far.
        total_examples: The budget in examples; None when unknown.
        warmup_examples: Length of the warmup, in examples.
        optimizer_steps: Optimizer steps taken so far.
        schedule_factor: The schedule's present factor on the rate (1 at its peak), without the rule's.
        examples_at_last_change: Examples seen when the batch last changed; None when it never did.
        noise: The present estimate; None when there is none.
        seconds_per_micro_batch: Measured seconds of one micro-batch; None when unknown.
        seconds_per_step: Measured seconds of one optimizer step beyond its micro-batches; None when unknown.
    """

    batch_size: int
    start_batch_size: int
    examples_seen: float
    total_examples: float | None = None
    warmup_examples: float = 0.0
    optimizer_steps: int = 0
    schedule_factor: float = 1.0
    examples_at_last_change: float | None = None
    noise: NoiseScale | None = None
    seconds_per_micro_batch: float | None = None
    seconds_per_step: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Which batches are possible: multiples of ``granularity`` within the bounds.

    Attributes:
        granularity: Examples of one micro-batch over all ranks, at least 1.
        min_batch_size: Smallest batch, in examples, at least 1.
        max_batch_size: Largest batch, in examples.
    """

    granularity: int
    min_batch_size: int
    max_batch_size: int

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            ValueError: If no multiple of the granularity lies within the bounds.
        """
        check_integer("granularity", self.granularity, at_least=1)
        check_integer("min_batch_size", self.min_batch_size, at_least=1)
        check_integer("max_batch_size", self.max_batch_size, at_least=1)
        if self._smallest > self._largest:
            raise ValueError(
                "min_batch_size and max_batch_size must have a multiple of granularity between them, "
                f"got {self.min_batch_size}, {self.max_batch_size} and a granularity of {self.granularity}"
            )

    @property
    def _smallest(self) -> int:
        return -(-self.min_batch_size // self.granularity) * self.granularity

    @property
    def _largest(self) -> int:
        return self.max_batch_size // self.granularity * self.granularity

    def clip(self, batch_size: float) -> int:
        """Round to the multiple below (never more than was asked for) and clip to the bounds.

        Args:
            batch_size: Any batch in examples, at least 0; infinity gives the largest.

        Returns:
            A possible batch.

        Example:
            >>> limits = Limits(granularity=8, min_batch_size=8, max_batch_size=100)
            >>> limits.clip(31.9), limits.clip(1), limits.clip(1000)
            (24, 8, 96)
        """
        asked = check_number("batch_size", batch_size, at_least=0, may_be_infinite=True)
        bounded = int(min(asked, self._largest))
        return max(bounded // self.granularity * self.granularity, self._smallest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A policy's answer, and the numbers that it was decided by.

    :class:`NoiseScalePolicy` compares ``target = target_ratio * bound`` with what a change needs: to grow, the target
    of the lower bound must be at least ``needed = hysteresis * batch``; to shrink, that of the upper bound must be at
    most ``needed = batch / hysteresis``. A policy that decides by other numbers leaves these at None.

    Attributes:
        batch_size: The batch from the next window on, in examples; the present one to hold.
        reason: Why, as a sentence; the built-in ones are the values of :class:`Reason`. Cut at 500 characters in a
            record.
        code: The kind of reason, as a short string that stays the same while the kind does: a run of holds with one
            code is one record, whatever numbers the sentence holds. None takes :attr:`Reason.code` where the reason is
            one of its sentences, else ``"hold"``, ``"grow"`` or ``"shrink"``, by the batch that was asked for.
        bound: The one-sided bound of the noise scale that decided, in examples: the upper one where the batch
            shrinks, else the lower one.
        confidence: One-sided confidence of ``bound``, as a share; 0.5 is the estimate itself.
        target: The batch that the bound justifies, in examples.
        needed: What the target was compared with, in examples: at least this to grow, at most this to shrink.
    """

    batch_size: int
    reason: str
    code: str | None = None
    bound: float | None = None
    confidence: float | None = None
    target: float | None = None
    needed: float | None = None


def _positive_number(value: Any) -> Any:
    # In a checkpoint and a journal only Python's own numbers can be read again, not NumPy's.
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


_CODES = {reason.value: reason.code for reason in Reason}


def recorded_decision(answer: object, situation: Situation) -> Decision | None:
    """Make of a policy's answer what is recorded: Python's own numbers, a code, and texts of bounded length.

    Args:
        answer: What ``decide`` returned.
        situation: What it was asked with.

    Returns:
        The decision; None where the answer is no :class:`Decision` with a finite positive batch.

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
    """Hold, where a policy's answer was no decision.

    Args:
        situation: What the policy was asked with.

    Returns:
        The hold that is recorded.
    """
    return Decision(
        batch_size=situation.batch_size, reason="held: the policy's answer was no decision", code="no_decision"
    )


class SupportsDecide(Protocol):
    """Anything that can decide; a user's policy need not inherit from anything."""

    def decide(self, situation: Situation, limits: Limits) -> Decision:
        """Decide on the next batch."""
        ...


class Policy(ABC):
    """When to grow and to what. Pure: the same situation and limits give the same decision.

    On several devices every process asks its own copy. One that answered by anything else (a random number, what one
    process alone knows) would leave them with windows of different length, in which they wait for each other for ever.
    """

    __slots__ = ()

    @property
    def needs_budget(self) -> bool:
        """Whether the policy cannot work without knowing the budget."""
        return False

    @abstractmethod
    def decide(self, situation: Situation, limits: Limits) -> Decision:
        """Decide on the batch from the next window on.

        Args:
            situation: What is known at the end of a window.
            limits: Which batches are possible.

        Returns:
            The decision; its batch is the present one to hold.
        """


def _in_warmup(policy: NoiseScalePolicy, situation: Situation, limits: Limits) -> Reason | None:
    return Reason.IN_WARMUP if situation.examples_seen < situation.warmup_examples else None


def _no_estimate(policy: NoiseScalePolicy, situation: Situation, limits: Limits) -> Reason | None:
    return Reason.NO_ESTIMATE if situation.noise is None else None


def _unresolved(policy: NoiseScalePolicy, situation: Situation, limits: Limits) -> Reason | None:
    return Reason.UNRESOLVED if situation.noise is not None and not situation.noise.resolved else None


def _dwelling(policy: NoiseScalePolicy, situation: Situation, limits: Limits) -> Reason | None:
    if situation.examples_at_last_change is None or situation.total_examples is None:
        return None
    waited = situation.examples_seen - situation.examples_at_last_change
    return Reason.DWELLING if waited < policy.dwell * situation.total_examples else None


def _at_limit(policy: NoiseScalePolicy, situation: Situation, limits: Limits) -> Reason | None:
    # A batch that may shrink is not stuck at the top.
    stuck = not policy.allow_shrink and limits.clip(float("inf")) <= situation.batch_size
    return Reason.AT_LIMIT if stuck else None


def _near_end(policy: NoiseScalePolicy, situation: Situation, limits: Limits) -> Reason | None:
    if situation.total_examples is None:
        return None
    remaining = situation.total_examples - situation.examples_seen
    return Reason.NEAR_END if remaining < policy.dwell * situation.total_examples else None


@lru_cache(maxsize=8)
def _bounds(noise: NoiseScale, confidence: float) -> tuple[float, float]:
    # A policy is asked at every step, and the estimate is a new one only after a measured window.
    return noise.lower_bound(confidence), noise.upper_bound(confidence)


_Gate = Callable[["NoiseScalePolicy", Situation, Limits], "Reason | None"]
_GATES: tuple[_Gate, ...] = (_in_warmup, _no_estimate, _unresolved, _dwelling, _at_limit, _near_end)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseScalePolicy(Policy):
    """Grow towards a share of the noise scale, by its one-sided lower bound.

    Gates first, in this order; the first reason to hold wins: in warmup, no estimate, unresolved, dwelling, at the
    limit, too near the end. Then the target ``target_ratio * lower_bound(confidence)``: the batch grows when the
    target is at least ``hysteresis`` times the present batch, to the target, but by at most ``max_growth`` at a time.

    Source: McCandlish et al. 2018, arXiv 1812.06162 (the noise scale as the batch where an example is worth half).
    Where it stops being true: the noise scale is the critical batch only up to a task-dependent factor, which is what
    ``target_ratio`` is for; it says that examples are used well, not that few steps are enough.

    Args:
        target_ratio: Target batch as a share of the noise scale, above 0.
        confidence: Confidence of the one-sided bound, from 0.5 (the point estimate) to below 1.
        max_growth: Largest ratio of one change, above 1; but one micro-batch per rank more is always allowed.
        hysteresis: How far the target must be from the present batch, as a ratio of at least 1.
        dwell: Least distance between two changes, and from the last change to the end, as a share of the budget,
            from 0 to below 1; needs a budget unless it is 0.
        allow_shrink: Whether the batch may also shrink (by the upper bound, with the same hysteresis and ratio).
    """

    target_ratio: float = 0.5
    confidence: float = 0.9
    max_growth: float = 2.0
    hysteresis: float = 2.0
    dwell: float = 0.01
    allow_shrink: bool = False

    def __post_init__(self) -> None:
        """Check the options, and keep them as Python's own numbers: a journal can hold no others.

        Raises:
            TypeError: If ``allow_shrink`` is no bool.
        """
        checked = {
            "target_ratio": check_number("target_ratio", self.target_ratio, above=0),
            "confidence": check_number("confidence", self.confidence, at_least=0.5, below=1),
            "max_growth": check_number("max_growth", self.max_growth, above=1),
            "hysteresis": check_number("hysteresis", self.hysteresis, at_least=1),
            "dwell": check_number("dwell", self.dwell, at_least=0, below=1),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if not isinstance(self.allow_shrink, bool):
            raise TypeError(f"allow_shrink must be True or False, got {found(self.allow_shrink)}")

    @property
    def needs_budget(self) -> bool:
        """Whether ``dwell``, a share of the budget, is above 0; asked without a budget, its gates are open."""
        return self.dwell > 0

    def decide(self, situation: Situation, limits: Limits) -> Decision:  # noqa: D102
        batch = situation.batch_size
        for gate in _GATES:
            reason = gate(self, situation, limits)
            if reason is not None:
                return self._decision(situation, batch, reason)
        assert situation.noise is not None  # the second gate
        lower, upper = _bounds(situation.noise, self.confidence)
        wanted = self.target_ratio * lower
        if wanted >= self.hysteresis * batch:
            # max_growth may lie below the next possible batch; holding for ever would be worse than exceeding it.
            step = max(self.max_growth * batch, batch + limits.granularity)
            grown = limits.clip(min(wanted, step))
            return self._decision(situation, max(grown, batch), Reason.GROW if grown > batch else Reason.AT_LIMIT)
        at_most = self.target_ratio * upper
        if self.allow_shrink and at_most * self.hysteresis <= batch:
            shrunk = limits.clip(max(at_most, batch / self.max_growth))
            if shrunk < batch:
                return self._decision(situation, shrunk, Reason.SHRINK)
        return self._decision(situation, batch, Reason.CLOSE_ENOUGH)

    def _decision(self, situation: Situation, batch_size: int, reason: Reason) -> Decision:
        """Return the decision with the numbers it was taken by; of a hold, those that growth was judged by."""
        if situation.noise is None:
            return Decision(batch_size=batch_size, reason=reason.value, code=reason.code)
        lower, upper = _bounds(situation.noise, self.confidence)
        shrinks = reason is Reason.SHRINK
        bound = upper if shrinks else lower
        return Decision(
            batch_size=batch_size,
            reason=reason.value,
            code=reason.code,
            bound=bound,
            confidence=self.confidence,
            target=self.target_ratio * bound,
            needed=situation.batch_size / self.hysteresis if shrinks else self.hysteresis * situation.batch_size,
        )


POLICIES: dict[str, type[Policy]] = {"noise_scale": NoiseScalePolicy}
"""Policies by name; each can be made without an argument."""


def resolve_policy(policy: object) -> SupportsDecide:
    """Make a policy from what the user gave: a name, or any object with a ``decide`` method.

    Args:
        policy: A key of :data:`POLICIES`, or an object.

    Returns:
        The policy.

    Raises:
        ValueError: If the name is unknown.
        TypeError: If it is neither a name nor an object with a ``decide`` method.

    Example:
        >>> resolve_policy("noise_scale").target_ratio
        0.5
    """
    allowed = f"one of {quoted(POLICIES)}, or an object with decide(situation, limits)"
    if isinstance(policy, str):
        if policy not in POLICIES:
            raise ValueError(f"policy must be {allowed}, got {found(policy)}")
        return POLICIES[policy]()
    if inspect.isclass(policy) or not callable(getattr(policy, "decide", None)):
        raise TypeError(f"policy must be {allowed}, got {found(policy)}")
    return cast("SupportsDecide", policy)
