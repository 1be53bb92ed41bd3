"""Choose a rule: by name, by optimizer, or the user's own object."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from lightning_bsscale.theory.checks import join_names, show
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.rules.capped import Capped
from lightning_bsscale.theory.rules.constant import Constant
from lightning_bsscale.theory.rules.linear import Linear
from lightning_bsscale.theory.rules.power import Power, Sqrt
from lightning_bsscale.theory.rules.rule import LearningRateRule
from lightning_bsscale.theory.rules.saturating import Saturating
from lightning_bsscale.theory.rules.surge import Surge

__all__ = ["FOR_FIXED_BATCHES", "RULES", "CustomRule", "resolve_rule", "rule_for_optimizer"]


RULES: dict[str, type[LearningRateRule]] = {
    "linear": Linear,
    "sqrt": Sqrt,
    "power": Power,
    "saturating": Saturating,
    "surge": Surge,
    "none": Constant,
}
"""Rules by name; each can be created without arguments."""

FOR_FIXED_BATCHES = ("saturating", "linear", "sqrt")
"""Rules between batches that stay as they are, in a plan or in a probe's branches.

The power is for a batch that grows while the learning rate decays: at once, and without the decay, Adam's loss rises
with it. The square root keeps the noise of Adam's updates (Malladi et al. 2022, arXiv 2205.10287); for SGD the
saturating rule follows the best learning rate of a single step (McCandlish et al. 2018, arXiv 1812.06162).
"""

_SGD = ("SGD", "ASGD")
_LARS = ("LARS",)
_ADAM = (
    *("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "SparseAdam", "FusedAdam", "DeepSpeedCPUAdam"),
    *("Adam8bit", "AdamW8bit", "PagedAdam", "PagedAdamW", "PagedAdam8bit", "PagedAdamW8bit", "AdamWScheduleFree"),
    *("Lion", "Lion8bit", "PagedLion", "Adafactor", "LAMB", "FusedLAMB", "NVLAMB", "Adagrad", "RMSprop", "Muon"),
    *("MuonWithAuxAdam", "SingleDeviceMuonWithAuxAdam"),  # Muon for matrices and Adam for the rest, in one optimizer
)
# Of each family the rules that suit it, the best one first, as docs/options.md and docs/front.md measured it. Folded to
# lower case, because libraries disagree on LAMB and Lamb, LARS and Lars.
_RULES_BY_OPTIMIZER: dict[str, tuple[str, ...]] = {
    **{optimizer.lower(): ("power", "saturating", "linear") for optimizer in _SGD},
    **{optimizer.lower(): ("linear", "saturating") for optimizer in _LARS},
    **{optimizer.lower(): ("power", "sqrt", "surge") for optimizer in _ADAM},
}


def rule_for_optimizer(
    class_names_along_mro: Sequence[str], meant_for: Sequence[str] | None = None
) -> LearningRateRule:
    """Choose the rule by the optimizer's class: the first known name in its method resolution order.

    LARS: linear. All others (the families of SGD and Adam, Lion, Adafactor, LAMB, Adagrad, RMSprop, Muon): power, with
    an exponent of 0.75.

    Args:
        class_names_along_mro: ``[cls.__name__ for cls in type(optimizer).__mro__]``, so that a user's subclass
            of a known optimizer is recognised. Case is ignored.
        meant_for: The names that a policy works with; of the rules that suit the optimizer, the best one among these.
            None for any.

    Returns:
        The rule. If no suitable one is among those that the policy works with, the best one all the same.

    Raises:
        ValueError: If no name is known; the message lists the choices.

    Example:
        >>> rule_for_optimizer(["MyAdamW", "AdamW", "Adam", "Optimizer", "object"]).name
        'power'
        >>> rule_for_optimizer(["Adam"], meant_for=("sqrt", "surge")).name
        'sqrt'
    """
    for class_name in class_names_along_mro:
        suitable = _RULES_BY_OPTIMIZER.get(class_name.lower())
        if suitable is not None:
            usable = [name for name in suitable if meant_for is None or name in meant_for]
            return RULES[(usable or suitable)[0]]()
    raise ValueError(
        f"lr_rule='auto' does not know the optimizer {next(iter(class_names_along_mro), '?')}. "
        f"Give its rule: lr_rule must be one of {join_names(RULES)}, or an object such as Power(exponent=0.75). "
        f"Known optimizers (and their subclasses): {', '.join((*_SGD, *_LARS, *_ADAM))}"
    )


def resolve_rule(rule: object, *, cap: float | None = None, name: str = "lr_rule", auto: str = "") -> LearningRateRule:
    """Return the rule for a name, a rule, or any object with a ``ratio`` method.

    Args:
        rule: A key of :data:`RULES`, or an object. ``"auto"`` is handled by :func:`rule_for_optimizer`.
        cap: Largest factor on the learning rate since the start, at least 1; None for no ceiling.
        name: The argument's name, for the message.
        auto: What else the caller allows, for the message.

    Returns:
        The rule, wrapped in :class:`Capped` if there is a ceiling.

    Raises:
        ValueError: If the name is unknown.
        TypeError: If it is neither a name nor an object with a ``ratio`` method.

    Example:
        >>> resolve_rule("sqrt", cap=8)
        Capped(rule=Sqrt(), cap=8.0)
    """
    allowed = f"one of {join_names(RULES)}{auto}, or an object with ratio(old_batch, new_batch, noise)"
    resolved: LearningRateRule
    if isinstance(rule, str):
        if rule not in RULES:
            raise ValueError(f"{name} must be {allowed}, got {show(rule)}")
        resolved = RULES[rule]()
    elif isinstance(rule, LearningRateRule):
        resolved = rule
    elif inspect.isclass(rule) or not callable(getattr(rule, "ratio", None)):
        raise TypeError(f"{name} must be {allowed}, got {show(rule)}")
    else:
        resolved = CustomRule(rule)
    return resolved if cap is None else Capped(resolved, cap)


@final
@dataclass(frozen=True)
class CustomRule(LearningRateRule):
    """A user's object with a ``ratio`` method; ``FactorPath`` checks its results."""

    rule: Any

    @property
    def name(self) -> str:  # noqa: D102
        return str(getattr(self.rule, "name", type(self.rule).__name__))

    @property
    def needs_noise(self) -> bool:  # noqa: D102
        return bool(getattr(self.rule, "needs_noise", False))

    def ratio(self, old_batch: float, new_batch: float, noise: NoiseScale | None) -> Any:  # noqa: D102
        return self.rule.ratio(old_batch, new_batch, noise)

    def applied(self, path_factor: float) -> Any:  # noqa: D102
        applied = getattr(self.rule, "applied", None)
        return path_factor if applied is None else applied(path_factor)
