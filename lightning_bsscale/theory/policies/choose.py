"""Choose a policy: by name, or the user's own object."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import cast

from lightning_bsscale.theory.checks import join_names, show
from lightning_bsscale.theory.policies.hold_if_worse import HoldIfWorse
from lightning_bsscale.theory.policies.largest import Largest
from lightning_bsscale.theory.policies.milestones import Milestones
from lightning_bsscale.theory.policies.noise_scale import NoiseScalePolicy
from lightning_bsscale.theory.policies.norm_test import NormTest
from lightning_bsscale.theory.policies.policy import Policy, SupportsDecide
from lightning_bsscale.theory.policies.seesaw import Seesaw
from lightning_bsscale.theory.policies.sequence import Sequence
from lightning_bsscale.theory.policies.smith import Smith

__all__ = ["POLICIES", "policy_classes", "resolve_policy"]


POLICIES: dict[str, Callable[[], Policy]] = {
    "noise_scale": NoiseScalePolicy,
    "seesaw": Seesaw,
    "smith": Smith,
    "norm_test": NormTest,
    "meta": NoiseScalePolicy.meta,
}
"""Policies by name: classes that need no arguments, and named settings of one."""

_WITH_ARGUMENTS: tuple[type[Policy], ...] = (Milestones, HoldIfWorse, Sequence, Largest)


def policy_classes() -> list[type[Policy]]:
    """Return the classes of all policies of the package."""
    return [*(made for made in POLICIES.values() if isinstance(made, type)), *_WITH_ARGUMENTS]


def resolve_policy(policy: object) -> SupportsDecide:
    """Return the policy for a name, or any object with a ``decide`` method as it is.

    Args:
        policy: A key of :data:`POLICIES`, or an object.

    Returns:
        The policy.

    Raises:
        ValueError: If the name is unknown.
        TypeError: If it is neither a name nor an object with a ``decide`` method.

    Example:
        >>> resolve_policy("noise_scale").target_ratio
        1.25
    """
    allowed = f"one of {join_names(POLICIES)}, or an object with decide(situation, limits)"
    if isinstance(policy, str):
        if policy not in POLICIES:
            raise ValueError(f"policy must be {allowed}, got {show(policy)}")
        return POLICIES[policy]()
    if inspect.isclass(policy) or not callable(getattr(policy, "decide", None)):
        raise TypeError(f"policy must be {allowed}, got {show(policy)}")
    return cast("SupportsDecide", policy)
