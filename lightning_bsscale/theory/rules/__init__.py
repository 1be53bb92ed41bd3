"""Rules that scale the learning rate with the batch size: one file per family, and a table of names in ``choose.py``.

A rule's ``ratio(old, new, noise)`` multiplies the learning rate when the batch size changes from ``old`` to ``new``
examples. Rules that use the noise scale are integrated along the path (``FactorPath``): every change multiplies the
factor by the ratio at the noise scale of that moment, and later estimates do not alter it. Without a resolved estimate
such a rule uses the square root, halfway between a constant and the linear rule.

Other folders import from here; the files of this folder import each other.
"""

from lightning_bsscale.theory.rules.capped import Capped
from lightning_bsscale.theory.rules.choose import (
    FOR_FIXED_BATCHES,
    RULES,
    CustomRule,
    resolve_rule,
    rule_for_optimizer,
)
from lightning_bsscale.theory.rules.constant import Constant
from lightning_bsscale.theory.rules.linear import Linear
from lightning_bsscale.theory.rules.power import Power, Sqrt
from lightning_bsscale.theory.rules.rule import FactorPath, LearningRateRule, uses_fallback
from lightning_bsscale.theory.rules.saturating import Saturating
from lightning_bsscale.theory.rules.surge import Surge

__all__ = [
    "FOR_FIXED_BATCHES",
    "RULES",
    "Capped",
    "Constant",
    "CustomRule",
    "FactorPath",
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
