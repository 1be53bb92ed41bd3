"""Measure the gradient noise scale in training, grow the batch by it, and rescale the learning rate.

The names below are imported when they are first used: ``import lightning_bsscale`` loads neither torch nor Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_bsscale import functional
    from lightning_bsscale.callbacks.monitor import GradientNoiseScaleMonitor
    from lightning_bsscale.callbacks.scaler import BatchSizeScaler
    from lightning_bsscale.metric import GradientNoiseScale
    from lightning_bsscale.theory.estimate import NoiseScale
    from lightning_bsscale.theory.hyperparameters import Beta2, HyperparameterRule, Momentum, WeightDecay
    from lightning_bsscale.theory.policies import (
        Decision,
        HoldIfWorse,
        Largest,
        Limits,
        MetricValue,
        Milestones,
        NoiseScalePolicy,
        NormTest,
        Policy,
        Reason,
        Seesaw,
        Sequence,
        Situation,
        Smith,
    )
    from lightning_bsscale.theory.rules import (
        Capped,
        Constant,
        LearningRateRule,
        Linear,
        Power,
        Saturating,
        Sqrt,
        Surge,
    )
    from lightning_bsscale.theory.schedules import WarmupCosine

__version__ = "0.1.0"

__all__ = [
    "BatchSizeScaler",
    "Beta2",
    "Capped",
    "Constant",
    "Decision",
    "GradientNoiseScale",
    "GradientNoiseScaleMonitor",
    "HoldIfWorse",
    "HyperparameterRule",
    "Largest",
    "LearningRateRule",
    "Limits",
    "Linear",
    "MetricValue",
    "Milestones",
    "Momentum",
    "NoiseScale",
    "NoiseScalePolicy",
    "NormTest",
    "Policy",
    "Power",
    "Reason",
    "Saturating",
    "Seesaw",
    "Sequence",
    "Situation",
    "Smith",
    "Sqrt",
    "Surge",
    "WarmupCosine",
    "WeightDecay",
    "__version__",
    "functional",
]

_HOMES = {
    "BatchSizeScaler": "lightning_bsscale.callbacks.scaler",
    "Beta2": "lightning_bsscale.theory.hyperparameters",
    "Capped": "lightning_bsscale.theory.rules",
    "Constant": "lightning_bsscale.theory.rules",
    "Decision": "lightning_bsscale.theory.policies",
    "GradientNoiseScale": "lightning_bsscale.metric",
    "GradientNoiseScaleMonitor": "lightning_bsscale.callbacks.monitor",
    "HoldIfWorse": "lightning_bsscale.theory.policies",
    "HyperparameterRule": "lightning_bsscale.theory.hyperparameters",
    "Largest": "lightning_bsscale.theory.policies",
    "LearningRateRule": "lightning_bsscale.theory.rules",
    "Limits": "lightning_bsscale.theory.policies",
    "Linear": "lightning_bsscale.theory.rules",
    "MetricValue": "lightning_bsscale.theory.policies",
    "Milestones": "lightning_bsscale.theory.policies",
    "Momentum": "lightning_bsscale.theory.hyperparameters",
    "NoiseScale": "lightning_bsscale.theory.estimate",
    "NoiseScalePolicy": "lightning_bsscale.theory.policies",
    "NormTest": "lightning_bsscale.theory.policies",
    "Policy": "lightning_bsscale.theory.policies",
    "Power": "lightning_bsscale.theory.rules",
    "Reason": "lightning_bsscale.theory.policies",
    "Saturating": "lightning_bsscale.theory.rules",
    "Seesaw": "lightning_bsscale.theory.policies",
    "Sequence": "lightning_bsscale.theory.policies",
    "Situation": "lightning_bsscale.theory.policies",
    "Smith": "lightning_bsscale.theory.policies",
    "Sqrt": "lightning_bsscale.theory.rules",
    "Surge": "lightning_bsscale.theory.rules",
    "WarmupCosine": "lightning_bsscale.theory.schedules",
    "WeightDecay": "lightning_bsscale.theory.hyperparameters",
}


def __getattr__(name: str) -> Any:
    if name == "functional":
        return import_module("lightning_bsscale.functional")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
