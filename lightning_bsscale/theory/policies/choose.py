"""Choose a policy: by name, or the user's own object."""

from __future__ import annotations

import inspect
from typing import cast

from lightning_bsscale.theory.checks import join_names, show
from lightning_bsscale.theory.policies.noise_scale import NoiseScalePolicy
from lightning_bsscale.theory.policies.policy import Policy, SupportsDecide

__all__ = ["POLICIES", "resolve_policy"]


POLICIES: dict[str, type[Policy]] = {
    "noise_scale": NoiseScalePolicy,
}
"""Policies by name; each can be created without arguments."""


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
        1.0
    """
    allowed = f"one of {join_names(POLICIES)}, or an object with decide(situation, limits)"
    if isinstance(policy, str):
        if policy not in POLICIES:
            raise ValueError(f"policy must be {allowed}, got {show(policy)}")
        return POLICIES[policy]()
    if inspect.isclass(policy) or not callable(getattr(policy, "decide", None)):
        raise TypeError(f"policy must be {allowed}, got {show(policy)}")
    return cast("SupportsDecide", policy)
