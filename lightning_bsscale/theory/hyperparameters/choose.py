"""Choose rules for hyperparameters: by name, or the user's own objects."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_bsscale.theory.checks import join_names, show
from lightning_bsscale.theory.hyperparameters.beta2 import Beta2
from lightning_bsscale.theory.hyperparameters.momentum import Momentum
from lightning_bsscale.theory.hyperparameters.rule import HyperparameterRule
from lightning_bsscale.theory.hyperparameters.weight_decay import WeightDecay

__all__ = ["HYPERPARAMETERS", "hyperparameters_for_optimizer", "resolve_hyperparameters"]

HYPERPARAMETERS: dict[str, type[HyperparameterRule]] = {
    "weight_decay": WeightDecay,
    "beta2": Beta2,
    "momentum": Momentum,
}
"""Rules by name; each can be created without arguments."""

# Those that average the squared gradient by the second of their `betas`, folded to lower case. Adamax's decays a
# maximum, Lion's averages the gradient itself, and Adafactor's changes with the steps.
_SECOND_MOMENT = frozenset(
    name.lower()
    for name in (
        *("Adam", "AdamW", "NAdam", "RAdam", "SparseAdam", "FusedAdam", "DeepSpeedCPUAdam"),
        *("Adam8bit", "AdamW8bit", "PagedAdam", "PagedAdamW", "PagedAdam8bit", "PagedAdamW8bit"),
        *("LAMB", "FusedLAMB", "NVLAMB"),
    )
)


def hyperparameters_for_optimizer(class_names_along_mro: Sequence[str]) -> tuple[HyperparameterRule, ...]:
    """Choose the rules by the optimizer's class: ``beta2`` for Adam, its relatives and LAMB, else nothing.

    Without it the squared gradients of the small batches, which are larger by their noise, shorten the steps of a grown
    batch for about ``1 / (1 - beta2)`` of these: 1,000 at Adam's default, often more than are left.

    Args:
        class_names_along_mro: ``[cls.__name__ for cls in type(optimizer).__mro__]``. Case is ignored.

    Returns:
        The rules.

    Example:
        >>> hyperparameters_for_optimizer(["MyAdamW", "AdamW", "Adam", "Optimizer", "object"])
        (Beta2(floor=0.95),)
        >>> hyperparameters_for_optimizer(["SGD", "Optimizer", "object"])
        ()
    """
    return (Beta2(),) if any(name.lower() in _SECOND_MOMENT for name in class_names_along_mro) else ()


def resolve_hyperparameters(also_scale: object, *, auto: str = "") -> tuple[HyperparameterRule, ...]:
    """Return the rules for a name, a rule, or a sequence of these.

    Args:
        also_scale: Keys of :data:`HYPERPARAMETERS`, or rules. ``"auto"`` is handled by
            :func:`hyperparameters_for_optimizer`.
        auto: How an error names ``"auto"`` where that is allowed too.

    Returns:
        The rules.

    Raises:
        ValueError: If a name is unknown, or if two rules replace the same entry; what is neither a name nor a rule is a
            TypeError.

    Example:
        >>> resolve_hyperparameters(["beta2", WeightDecay(exponent=0.25)])
        (Beta2(floor=0.95), WeightDecay(exponent=0.25))
    """
    listed = list(also_scale) if isinstance(also_scale, Sequence) and not isinstance(also_scale, str) else [also_scale]
    rules = tuple(_resolved(rule, auto) for rule in listed)
    keys = [key for rule in rules for key in rule.keys]
    twice = [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
    if twice:
        raise ValueError(f"also_scale has several rules for {join_names(twice)}; give one for each")
    return rules


def _resolved(rule: object, auto: str) -> HyperparameterRule:
    allowed = f"{auto}a list of {join_names(HYPERPARAMETERS)}, or of objects such as WeightDecay(exponent=0.5)"
    if isinstance(rule, str):
        if rule not in HYPERPARAMETERS:
            raise ValueError(f"also_scale must be {allowed}, got {show(rule)}")
        return HYPERPARAMETERS[rule]()
    if not isinstance(rule, HyperparameterRule):
        raise TypeError(f"also_scale must be {allowed}, got {show(rule)}")
    return rule
