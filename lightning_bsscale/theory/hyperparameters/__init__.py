"""Rules for what else depends on the batch size, beside the learning rate: one file each.

Other folders import from here; the files of this folder import each other.
"""

from lightning_bsscale.theory.hyperparameters.beta2 import Beta2
from lightning_bsscale.theory.hyperparameters.choose import (
    HYPERPARAMETERS,
    hyperparameters_for_optimizer,
    resolve_hyperparameters,
)
from lightning_bsscale.theory.hyperparameters.momentum import Momentum
from lightning_bsscale.theory.hyperparameters.rule import HyperparameterRule, scaled_values
from lightning_bsscale.theory.hyperparameters.weight_decay import WeightDecay

__all__ = [
    "HYPERPARAMETERS",
    "Beta2",
    "HyperparameterRule",
    "Momentum",
    "WeightDecay",
    "hyperparameters_for_optimizer",
    "resolve_hyperparameters",
    "scaled_values",
]
