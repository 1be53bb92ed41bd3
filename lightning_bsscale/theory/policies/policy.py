"""The interface of a policy: what it is given, what it answers, and how the answer is recorded."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from numbers import Integral
from typing import Any, Protocol

from lightning_bsscale.theory.checks import check_integer, check_number, is_real
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.numbers import describe_count

__all__ = [
    "Decision",
    "Limits",
    "MetricValue",
    "Policy",
    "Reason",
    "Situation",
    "SupportsDecide",
    "hold_in_warmup",
    "hold_without_decision",
    "noise_bounds",
    "recorded_decision",
]

MAX_REASON_LENGTH = 500
MAX_CODE_LENGTH = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricValue:
    """One value of a watched metric; the same on all ranks.

    Attributes:
        name: The metric's key in ``trainer.callback_metrics``.
        examples_seen: Examples seen when it was logged.
        value: The mean over the ranks that logged it.
    """

    name: str
    examples_seen: float
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """The state of training at the end of a window.

    Attributes:
        batch_size: The current batch size, in examples over all ranks.
        start_batch_size: The batch size at the start of training, in examples.
        examples_seen: Examples seen so far.
        total_examples: The budget in examples; None if unknown.
        warmup_examples: Length of the warmup, in examples.
        optimizer_steps: Optimizer steps taken so far.
        schedule_factor: The schedule's current factor on the learning rate, without the rule's: the callback's own
            schedule, or the user's learning rate relative to its initial value (where that was not noted, as by
            ReduceLROnPlateau, to the optimizer's default).
        schedule_peak: The largest of these factors so far; in a warmup it rises with `schedule_factor`.
        examples_at_last_change: Examples seen when the batch size last changed; None if it never did.
        noise: The current estimate, or None.
        memory: Examples over which the weight of a window in the estimate falls to 1/e; infinite where all count alike.
        seconds_per_loader_batch: Measured seconds of one loader batch; None if unknown.
        seconds_per_step: Measured seconds of one optimizer step beyond its loader batches; None if unknown.
        metrics: The latest values of the metrics that the policy watches (its ``monitors``), in order: of each at most
            eight up to the last change of the batch size, and eight since.
    """

    batch_size: int
    start_batch_size: int
    examples_seen: float
    total_examples: float | None = None
    warmup_examples: float = 0.0
    optimizer_steps: int = 0
    schedule_factor: float = 1.0
    schedule_peak: float = 1.0
    examples_at_last_change: float | None = None
    noise: NoiseScale | None = None
    memory: float = math.inf
    seconds_per_loader_batch: float | None = None
    seconds_per_step: float | None = None
    metrics: tuple[MetricValue, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The possible batch sizes: multiples of ``granularity`` within the bounds.

    Attributes:
        granularity: Examples of one loader batch over all ranks, at least 1.
        min_batch_size: Smallest batch size, in examples, at least 1.
        max_batch_size: Largest batch size, in examples.
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
        """Round down to a multiple of the granularity and clip to the bounds.

        Args:
            batch_size: Any batch size in examples, at least 0; infinity gives the largest.

        Returns:
            A possible batch size.

        Example:
            >>> limits = Limits(granularity=8, min_batch_size=8, max_batch_size=100)
            >>> limits.clip(31.9), limits.clip(1), limits.clip(1000)
            (24, 8, 96)
        """
        requested = check_number("batch_size", batch_size, at_least=0, may_be_infinite=True)
        bounded = int(min(requested, self._largest))
        return max(bounded // self.granularity * self.granularity, self._smallest)


class Reason(str, Enum):
    """Why the batch changed or was held; the values are the sentences in log, journal and documentation.

    Where a number says until when or how far, it is added to the sentence.
    """

    IN_WARMUP = "hold: still in warmup"
    NOT_BEFORE = "hold: growth begins later, by the policy's not_before"
    FEW_STEPS = "hold: a larger batch would leave too few steps, by the policy's min_steps"
    NO_ESTIMATE = "hold: no estimate of the noise scale yet"
    UNRESOLVED = "hold: the noise scale is not resolved (its interval has no upper end, or reaches zero)"
    COOLING_DOWN = "hold: cooling down after the last change"
    AT_LIMIT = "hold: the batch is as large as the limits allow"
    NEAR_END = "hold: too near the end of the budget for a change to pay"
    NO_PRICES = "hold: the seconds of a step and of an example are not measured yet"
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

    def with_number(self, number: str) -> str:
        """Return the sentence with a number that explains it.

        Example:
            >>> Reason.IN_WARMUP.with_number("until 5,000")
            'hold: still in warmup, until 5,000'
        """
        return f"{self.value}, {number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A policy's decision and the numbers behind it.

    :class:`NoiseScalePolicy` compares ``target = target_ratio * bound`` with ``needed``. To grow, the target of the
    lower bound must be at least ``needed = hysteresis * batch_size``, or the next possible batch size if that is
    larger. To shrink, the target of the upper bound must be at most ``needed = batch_size / hysteresis``. A policy that
    uses other numbers leaves these at None.

    Attributes:
        batch_size: The batch size from the next window on, in examples; the current one to hold.
        reason: Why, as a sentence; the built-in ones begin with a value of :class:`Reason`. Truncated to 500
            characters in a record.
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


class SupportsDecide(Protocol):
    """Any object that can decide; a user's policy need not inherit from :class:`Policy`."""

    def decide(self, situation: Situation, limits: Limits) -> Decision:
        """Decide on the next batch size."""
        ...


class Policy(ABC):
    """Decides when the batch size changes, and to what. Pure: the same situation and limits give the same decision.

    On several devices every process has its own copy. If a policy used anything else (a random number, a value known to
    one process only), the processes would get windows of different lengths and wait for each other forever.
    """

    @property
    def needs_budget(self) -> bool:
        """Whether the policy needs to know the budget."""
        return False

    @property
    def needs_clock(self) -> bool:
        """Whether decisions depend on measured seconds, which a deterministic training must not use."""
        return False

    @property
    def monitors(self) -> tuple[str, ...]:
        """Names of the logged metrics that the policy watches, as in ``trainer.callback_metrics``."""
        return ()

    @property
    def lr_rules(self) -> tuple[str, ...] | None:
        """Names of the learning-rate rules that the policy is meant for; None if it works with any.

        Training with another one of the package's rules is refused. A user's own rule is not.
        """
        return None

    @abstractmethod
    def decide(self, situation: Situation, limits: Limits) -> Decision:
        """Decide on the batch size from the next window on.

        Args:
            situation: The state of training at the end of a window.
            limits: The possible batch sizes.

        Returns:
            The decision; to hold, its batch size is the current one.
        """


def hold_in_warmup(situation: Situation) -> Decision | None:
    """Return the hold of the scaler's warmup; None after it."""
    if situation.examples_seen >= situation.warmup_examples:
        return None
    reason = Reason.IN_WARMUP.with_number(f"until {describe_count(situation.warmup_examples)}")
    return Decision(batch_size=situation.batch_size, reason=reason, code=Reason.IN_WARMUP.code)


@lru_cache(maxsize=8)
def noise_bounds(noise: NoiseScale, confidence: float) -> tuple[float, float]:
    """Return the one-sided lower and upper bound of a noise scale, computed once for each estimate."""
    # A policy decides at every step, but the estimate changes only after a measured window.
    return noise.lower_bound(confidence), noise.upper_bound(confidence)


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
    if not is_real(value):
        return None
    as_float = _float_or_none(value)
    if as_float is None or not 0 < as_float < math.inf:
        return None
    return int(value) if type(value) is int or isinstance(value, Integral) else as_float


def _float_or_none(value: Any) -> float | None:
    if not is_real(value):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer or a fraction that no float can hold
        return math.inf if value > 0 else -math.inf


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 4]} ..."
