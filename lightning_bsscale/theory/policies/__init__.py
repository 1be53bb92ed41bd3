"""Policies, which decide when the batch size changes and to what: one file each, and a table of names in ``choose.py``.

A policy is a pure function: the same situation and limits give the same decision.

Other folders import from here; the files of this folder import each other.
"""

from lightning_bsscale.theory.policies.choose import POLICIES, resolve_policy
from lightning_bsscale.theory.policies.noise_scale import NoiseScalePolicy
from lightning_bsscale.theory.policies.policy import (
    Decision,
    Limits,
    Policy,
    Reason,
    Situation,
    SupportsDecide,
    hold_without_decision,
    recorded_decision,
)

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
