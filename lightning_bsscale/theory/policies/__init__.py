"""Policies, which decide when the batch size changes and to what: one file each, and a table of names in ``choose.py``.

A policy is a pure function: the same situation and limits give the same decision.

Other folders import from here; the files of this folder import each other.
"""

from lightning_bsscale.theory.policies.choose import POLICIES, policy_classes, resolve_policy
from lightning_bsscale.theory.policies.hold_if_worse import HoldIfWorse
from lightning_bsscale.theory.policies.largest import Largest
from lightning_bsscale.theory.policies.milestones import Milestones
from lightning_bsscale.theory.policies.noise_scale import NoiseScalePolicy, most_with_enough_steps
from lightning_bsscale.theory.policies.norm_test import NormTest
from lightning_bsscale.theory.policies.policy import (
    Decision,
    Limits,
    MetricValue,
    Policy,
    Reason,
    Situation,
    SupportsDecide,
    hold_without_decision,
    recorded_decision,
)
from lightning_bsscale.theory.policies.seesaw import Seesaw
from lightning_bsscale.theory.policies.sequence import Sequence
from lightning_bsscale.theory.policies.smith import Smith

__all__ = [
    "POLICIES",
    "Decision",
    "HoldIfWorse",
    "Largest",
    "Limits",
    "MetricValue",
    "Milestones",
    "NoiseScalePolicy",
    "NormTest",
    "Policy",
    "Reason",
    "Seesaw",
    "Sequence",
    "Situation",
    "Smith",
    "SupportsDecide",
    "hold_without_decision",
    "most_with_enough_steps",
    "policy_classes",
    "recorded_decision",
    "resolve_policy",
]
