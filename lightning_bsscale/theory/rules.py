"""Learning rate against batch size: one frozen class a rule, one table of names, the choice by optimizer.

A rule's ``ratio(old, new, noise)`` is what the rate is multiplied by when the batch goes from ``old`` to ``new``
examples. Rules that use the noise scale are integrated along the path (rate_path.py): every growth multiplies
by the ratio at the noise scale of that moment, and a later estimate never rewrites the past. Without a resolved
estimate such a rule uses the square root, the middle between doing nothing and the linear rule.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from lightning_bsscale.theory.checks import check_number, found, quoted
from lightning_bsscale.theory.estimate import NoiseScale

__all__ = [
    "RULES",
    "Capped",
    "Constant",
    "LearningRateRule",
    "Linear",
    "Power",
    "Saturating",
    "Sqrt",
    "Surge",
    "resolve_rule",
    "rule_for_optimizer",
    "uses_fallback",
]


class LearningRateRule(ABC):
    """What the learning rate is multiplied by when the batch changes."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """Name of the rule, for records."""
        return type(self).__name__

    @property
    def needs_noise(self) -> bool:
        """Whether the rule uses the noise scale (and the square root where it is not resolved)."""
        return False

    @property
    def has_peak(self) -> bool:
        """Whether the rate may fall again when the batch grows."""
        return False

    @abstractmethod
    def ratio(self, old_batch: float, new_batch: float, noise: NoiseScale | None) -> float:
        """Compute the factor on the rate for one change of the batch.

        Args:
            old_batch: Batch before, in examples, above 0.
            new_batch: Batch after, in examples, above 0.
            noise: The present estimate, or None where there is none.

        Returns:
            The factor, above 0; 1 when the batch does not change.
        """

    def applied(self, path_factor: float) -> float:
        """Compute the factor that is put on the rate from the product of all ratios so far.

        Args:
            path_factor: Product of the ratios along the path.

        Returns:
            The factor; the same number unless the rule has a ceiling.
        """
        return path_factor


def _batch_ratio(old_batch: float, new_batch: float) -> float:
    return check_number("new_batch", new_batch, above=0) / check_number("old_batch", old_batch, above=0)


def _resolved_scale(noise: NoiseScale | None) -> float | None:
    return noise.noise_scale if noise is not None and noise.resolved else None


@final
@dataclass(frozen=True, slots=True)
class Linear(LearningRateRule):
    """Linear rule: ``r = new / old``.

    For SGD, exact while both batches are far below the noise scale; diverges above it.

    Source: Goyal et al. 2017, arXiv 1706.02677; Smith et al. 2018, arXiv 1711.00489.

    Example:
        >>> Linear().ratio(64, 128, None)
        2.0
    """

    name = "linear"

    def ratio(self, old_batch: float, new_batch: float, noise: NoiseScale | None) -> float:  # noqa: D102
        return _batch_ratio(old_batch, new_batch)


@final
@dataclass(frozen=True, slots=True)
class Sqrt(LearningRateRule):
    """Square-root rule: ``sqrt(new / old)``.

    For the Adam family while both batches are far below the noise scale; has no ceiling (``Capped`` gives one).

    Source: Malladi et al. 2022, arXiv 2205.10287; Krizhevsky 2014, arXiv 1404.5997; Hoffer et al. 2017, arXiv
    1705.08741.

    Example:
        >>> Sqrt().ratio(64, 256, None)
        2.0
    """

    name = "sqrt"

    def ratio(self, old_batch: float, new_batch: float, noise: NoiseScale | None) -> float:  # noqa: D102
        return math.sqrt(_batch_ratio(old_batch, new_batch))


@final
@dataclass(frozen=True, slots=True)
class Power(LearningRateRule):
    """Power rule: ``(new / old) ** exponent``.

    For Adam, between the square root and the linear rule; an empirical exponent without a derivation.

    Source: McCandlish et al. 2018, arXiv 1812.06162, who report exponents between 0.5 and 1 for Adam.

    Args:
        exponent: From 0 (no change) to 1 (linear); 0.5 is the square root.

    Example:
        >>> Power(0.75).ratio(1, 16, None)
        8.0
    """

    name = "power"
    exponent: float = 0.75

    def __post_init__(self) -> None:
        """Check the option."""
        object.__setattr__(self, "exponent", check_number("exponent", self.exponent, at_least=0, at_most=1))

    def ratio(self, old_batch: float, new_batch: float, noise: NoiseScale | None) -> float:  # noqa: D102
        return float(_batch_ratio(old_batch, new_batch) ** self.exponent)


@final
@dataclass(frozen=True, slots=True)
class Saturating(LearningRateRule):
    """Saturating rule: ``(1 + B_noise/old) / (1 + B_noise/new)``.

    For SGD, whose best rate is ``eps_max / (1 + B_noise/B)``: linear far below the noise scale, constant above. The
    same number as AdaScale's gain. Derived for one step on a quadratic, without momentum.

    Source: McCandlish et al. 2018, arXiv 1812.06162, eq. 2.6; Johnson et al. 2020, arXiv 2007.05105.
    """

    name = "saturating"
    needs_noise = True

    def ratio(self, old_batch: float, new_batch: float, noise: NoiseScale | None) -> float:  # noqa: D102
        growth = _batch_ratio(old_batch, new_batch)
        scale = _resolved_scale(noise)
        if scale is None:
            return math.sqrt(growth)
        return (1 + scale / old_batch) / (1 + scale / new_batch)


@final
@dataclass(frozen=True, slots=True)
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
        growth = _batch_ratio(old_batch, new_batch)
        scale = _resolved_scale(noise)
        if scale is None:
            return math.sqrt(growth)
        # f(new) / f(old) = sqrt(new/old) (scale + old) / (scale + new)
        return math.sqrt(growth) * (scale + old_batch) / (scale + new_batch)


@final
@dataclass(frozen=True, slots=True)
class Constant(LearningRateRule):
    """No rule: the rate stays as it is.

    For experiments; growth without rescaling loses accuracy with SGD.

    Example:
        >>> Constant().ratio(64, 256, None)
        1.0
    """

    name = "none"

    def ratio(self, old_batch: float, new_batch: float, noise: NoiseScale | None) -> float:  # noqa: D102
        _batch_ratio(old_batch, new_batch)
        return 1.0


@final
@dataclass(frozen=True, slots=True)
class Capped(LearningRateRule):
    """Any rule with a ceiling: ``min(rule, cap)`` on the factor since the start.

    The ceiling is on the whole factor, not on a single growth, and the path below it is remembered: a batch that
    shrinks again comes back to the factor that it had.

    Args:
        rule: The rule to cap.
        cap: Largest factor on the rate, at least 1.

    Example:
        >>> Capped(Sqrt(), 3).applied(Sqrt().ratio(4, 64, None))
        3.0
    """

    rule: LearningRateRule
    cap: float

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            TypeError: If ``rule`` is no rule.
        """
        if not isinstance(self.rule, LearningRateRule):
            raise TypeError(f"rule must be a LearningRateRule such as Sqrt(), got {found(self.rule)}")
        object.__setattr__(self, "cap", check_number("cap", self.cap, at_least=1))

    @property
    def name(self) -> str:
        """The rule's name and the ceiling."""
        return f"{self.rule.name}, at most {self.cap:g}"

    @property
    def needs_noise(self) -> bool:
        """As the rule inside."""
        return self.rule.needs_noise

    @property
    def has_peak(self) -> bool:
        """As the rule inside."""
        return self.rule.has_peak

    def ratio(self, old_batch: float, new_batch: float, noise: NoiseScale | None) -> float:  # noqa: D102
        return self.rule.ratio(old_batch, new_batch, noise)

    def applied(self, path_factor: float) -> float:  # noqa: D102
        inside = self.rule.applied(path_factor)
        return min(check_number(f"the factor that the rule {self.rule.name!r} applies", inside, above=0), self.cap)


@final
@dataclass(frozen=True, slots=True)
class _Foreign(LearningRateRule):
    """A user's object with a ``ratio`` method, inheriting from nothing; rate_path.py checks its answers."""

    rule: Any

    @property
    def name(self) -> str:
        return str(getattr(self.rule, "name", type(self.rule).__name__))

    @property
    def needs_noise(self) -> bool:
        return bool(getattr(self.rule, "needs_noise", False))

    def ratio(self, old_batch: float, new_batch: float, noise: NoiseScale | None) -> Any:
        return self.rule.ratio(old_batch, new_batch, noise)

    def applied(self, path_factor: float) -> Any:
        applied = getattr(self.rule, "applied", None)
        return path_factor if applied is None else applied(path_factor)


RULES: dict[str, type[LearningRateRule]] = {
    "linear": Linear,
    "sqrt": Sqrt,
    "power": Power,
    "saturating": Saturating,
    "surge": Surge,
    "none": Constant,
}
"""Rules by name; each can be made without an argument."""

_SATURATING = ("SGD", "ASGD")
_LINEAR = ("LARS",)
_SQRT = (
    *("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "SparseAdam", "FusedAdam", "DeepSpeedCPUAdam"),
    *("Adam8bit", "AdamW8bit", "PagedAdam", "PagedAdamW", "PagedAdam8bit", "PagedAdamW8bit", "AdamWScheduleFree"),
    *("Lion", "Lion8bit", "PagedLion", "Adafactor", "LAMB", "FusedLAMB", "NVLAMB", "Adagrad", "RMSprop", "Muon"),
)
# Folded to lower case, because libraries disagree on LAMB and Lamb, LARS and Lars.
_RULE_NAME_BY_OPTIMIZER: dict[str, str] = {
    **{optimizer.lower(): "saturating" for optimizer in _SATURATING},
    **{optimizer.lower(): "linear" for optimizer in _LINEAR},
    **{optimizer.lower(): "sqrt" for optimizer in _SQRT},
}


def rule_for_optimizer(class_names_along_mro: Sequence[str]) -> LearningRateRule:
    """Choose the rule by the optimizer's class name: the first known one along its method resolution order.

    SGD family: saturating. Adam family, Lion, Adafactor, LAMB, Adagrad, RMSprop, Muon: sqrt. LARS: linear.

    Args:
        class_names_along_mro: ``[cls.__name__ for cls in type(optimizer).__mro__]``, so that a user's subclass
            of a known optimizer works. Upper and lower case are not distinguished.

    Returns:
        The rule.

    Raises:
        ValueError: If no name is known; the message lists the choices.

    Example:
        >>> rule_for_optimizer(["MyAdamW", "AdamW", "Adam", "Optimizer", "object"]).name
        'sqrt'
    """
    for class_name in class_names_along_mro:
        rule_name = _RULE_NAME_BY_OPTIMIZER.get(class_name.lower())
        if rule_name is not None:
            return RULES[rule_name]()
    raise ValueError(
        f"lr_rule='auto' does not know the optimizer {next(iter(class_names_along_mro), '?')}. "
        f"Give its rule: lr_rule must be one of {quoted(RULES)}, or an object such as Power(exponent=0.75). "
        f"Known optimizers (and their subclasses): {', '.join((*_SATURATING, *_LINEAR, *_SQRT))}"
    )


def resolve_rule(rule: object, *, cap: float | None = None, name: str = "lr_rule", auto: str = "") -> LearningRateRule:
    """Make a rule from what the user gave: a name, a rule, or any object with a ``ratio`` method.

    Args:
        rule: A key of :data:`RULES`, or an object. ``"auto"`` is no rule: see :func:`rule_for_optimizer`.
        cap: Largest factor on the rate since the start, at least 1; None for no ceiling.
        name: The argument's name, for the message.
        auto: What the caller allows besides, for the message.

    Returns:
        The rule, inside a :class:`Capped` if there is a ceiling.

    Raises:
        ValueError: If the name is unknown.
        TypeError: If it is neither a name nor an object with a ``ratio`` method.

    Example:
        >>> resolve_rule("sqrt", cap=8)
        Capped(rule=Sqrt(), cap=8.0)
    """
    allowed = f"one of {quoted(RULES)}{auto}, or an object with ratio(old_batch, new_batch, noise)"
    resolved: LearningRateRule
    if isinstance(rule, str):
        if rule not in RULES:
            raise ValueError(f"{name} must be {allowed}, got {found(rule)}")
        resolved = RULES[rule]()
    elif isinstance(rule, LearningRateRule):
        resolved = rule
    elif inspect.isclass(rule) or not callable(getattr(rule, "ratio", None)):
        raise TypeError(f"{name} must be {allowed}, got {found(rule)}")
    else:
        resolved = _Foreign(rule)
    return resolved if cap is None else Capped(resolved, cap)


def uses_fallback(rule: LearningRateRule, noise: NoiseScale | None) -> bool:
    """Say whether the rule must use the square root now, for the record.

    Args:
        rule: The rule.
        noise: The present estimate, or None.

    Returns:
        True when the rule needs a noise scale and there is no resolved one.
    """
    return rule.needs_noise and _resolved_scale(noise) is None
