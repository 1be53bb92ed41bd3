"""Read from the optimizer which rules suit it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

from lightning_bsscale.callbacks.trainer.hyperparameters import unusable_entry
from lightning_bsscale.theory.hyperparameters import HyperparameterRule, hyperparameters_for_optimizer
from lightning_bsscale.theory.rules import LearningRateRule, resolve_rule, rule_for_optimizer

__all__ = ["choose_also_scale", "choose_rule"]


def choose_rule(
    lr_rule: Any, lr_cap: float | None, meant_for: Sequence[str] | None, optimizer: Optimizer
) -> LearningRateRule:
    """Return the rule for a name or an object; for ``"auto"`` the one that suits the optimizer and the purpose.

    Args:
        lr_rule: the option
        lr_cap: the largest factor, or None
        meant_for: names of the rules that a policy or a probe works with; None for any
        optimizer: the optimizer that steps

    Returns:
        The rule.

    Raises:
        MisconfigurationException: If ``"auto"`` does not know the optimizer's class.
    """
    if not (isinstance(lr_rule, str) and lr_rule == "auto"):
        return resolve_rule(lr_rule, cap=lr_cap)
    try:
        names = [cls.__name__ for cls in type(optimizer).__mro__]
        rule = rule_for_optimizer(names, meant_for)
    except ValueError as error:
        raise MisconfigurationException(str(error)) from error
    return resolve_rule(rule, cap=lr_cap)


def choose_also_scale(
    also_scale: str | tuple[HyperparameterRule, ...], optimizer: Optimizer
) -> tuple[HyperparameterRule, ...]:
    """Return the option's rules of other hyperparameters; for ``"auto"`` those that suit the optimizer and fit it."""
    if not isinstance(also_scale, str):
        return also_scale
    rules = hyperparameters_for_optimizer([cls.__name__ for cls in type(optimizer).__mro__])
    return tuple(rule for rule in rules if unusable_entry(optimizer.param_groups, rule) is None)
