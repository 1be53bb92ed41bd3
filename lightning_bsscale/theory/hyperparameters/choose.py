"""Choose rules for hyperparameters: by name, or the user's own objects."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_bsscale.theory.checks import join_names, show
from lightning_bsscale.theory.hyperparameters.beta2 import Beta2
from lightning_bsscale.theory.hyperparameters.momentum import Momentum
from lightning_bsscale.theory.hyperparameters.rule import HyperparameterRule
from lightning_bsscale.theory.hyperparameters.weight_decay import WeightDecay

__all__ = ["HYPERPARAMETERS", "resolve_hyperparameters"]

HYPERPARAMETERS: dict[str, type[HyperparameterRule]] = {
    "weight_decay": WeightDecay,
    "beta2": Beta2,
    "momentum": Momentum,
}
"""Rules by name; each can be created without arguments."""


def resolve_hyperparameters(also_scale: object) -> tuple[HyperparameterRule, ...]:
    """Return the rules for a name, a rule, or a sequence of these.

    Args:
        also_scale: Keys of :data:`HYPERPARAMETERS`, or rules.

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
    rules = tuple(map(_resolved, listed))
    keys = [key for rule in rules for key in rule.keys]
    twice = [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
    if twice:
        raise ValueError(f"also_scale has several rules for {join_names(twice)}; give one for each")
    return rules


def _resolved(rule: object) -> HyperparameterRule:
    allowed = f"a list of {join_names(HYPERPARAMETERS)}, or of objects such as WeightDecay(exponent=0.5)"
    if isinstance(rule, str):
        if rule not in HYPERPARAMETERS:
            raise ValueError(f"also_scale must be {allowed}, got {show(rule)}")
        return HYPERPARAMETERS[rule]()
    if not isinstance(rule, HyperparameterRule):
        raise TypeError(f"also_scale must be {allowed}, got {show(rule)}")
    return rule
