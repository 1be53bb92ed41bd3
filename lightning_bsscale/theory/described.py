"""Describe policies, rules and schedules for a journal, and create them from their descriptions.

Only classes of this package are created, and their constructors check every option.
"""

from __future__ import annotations

import dataclasses
from enum import Enum
from numbers import Integral, Real
from typing import Any

from lightning_bsscale.theory.checks import show
from lightning_bsscale.theory.policies import HoldIfWorse, NoiseScalePolicy, Policy, policy_classes
from lightning_bsscale.theory.rules import RULES, Capped, CustomRule, LearningRateRule, resolve_rule
from lightning_bsscale.theory.schedules import SCHEDULES, Checked, Schedule, resolve_schedule
from lightning_bsscale.theory.stored import plain_value

__all__ = ["describe", "make_policy", "make_rule", "make_schedule", "min_steps_of"]

MAX_OPTIONS = 64
MAX_OPTION_LENGTH = 200
MAX_OPTION_BITS = 1024
MAX_OPTION_ITEMS = 16
MAX_NESTING = 4  # of policies within policies


def describe(thing: Any) -> dict[str, Any]:
    """Name the class and the options of a policy, a rule or a schedule.

    Args:
        thing: A policy, rule or schedule, also a user's own.

    Returns:
        ``{"class": name, "options": fields}``, of bounded size. Options are numbers, strings, bools, None, enums (by
        value), short sequences of these, rules and policies. Anything else becomes the name of its class. The options
        of an object that is no dataclass are unknown (None).
    """
    return _described(thing, 2, MAX_NESTING)


def _described(thing: Any, depth: int, nesting: int) -> dict[str, Any]:
    if isinstance(thing, CustomRule):
        thing = thing.rule
    elif isinstance(thing, Checked):
        thing = thing.schedule
    options: dict[str, Any] | None = None
    if dataclasses.is_dataclass(thing):
        options = {}
        for name in [field.name for field in dataclasses.fields(thing)][:MAX_OPTIONS]:
            try:
                options[name] = _option(getattr(thing, name), depth, nesting)
            except Exception:  # an attribute of the user's object may raise anything
                options[name] = "unreadable"
    return {"class": type(thing).__name__, "options": options}


def _option(value: Any, depth: int, nesting: int) -> Any:
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)[:MAX_OPTION_LENGTH]
    if isinstance(value, Integral) and int(value).bit_length() <= MAX_OPTION_BITS:
        return int(value)
    if isinstance(value, Real) and not isinstance(value, Integral):
        return plain_value(float(value))
    if isinstance(value, (list, tuple)) and len(value) <= MAX_OPTION_ITEMS and depth:
        return [_option(item, depth - 1, nesting) for item in value]
    if isinstance(value, LearningRateRule) and depth:
        return _described(value, depth - 1, nesting)
    if isinstance(value, Policy) and nesting:
        return _described(value, 2, nesting - 1)
    kind = type(value)
    return f"<{kind.__module__}.{kind.__qualname__}>"[:MAX_OPTION_LENGTH]


def min_steps_of(described: Any) -> int:
    """Return the `min_steps` of a described policy, which limits its batch.

    Args:
        described: The description, also from a file.

    Returns:
        The option of a `NoiseScalePolicy`, also of one within `HoldIfWorse`; 0 of any other.

    Example:
        >>> min_steps_of(describe(NoiseScalePolicy(min_steps=100))), min_steps_of({"class": "Mine", "options": None})
        (100, 0)
    """
    for _ in range(MAX_NESTING):
        options = described.get("options") if isinstance(described, dict) else None
        if not isinstance(options, dict):
            return 0
        if described.get("class") == NoiseScalePolicy.__name__:
            found = options.get("min_steps")
            return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else 0
        if described.get("class") != HoldIfWorse.__name__:
            return 0
        described = options.get("policy")
    return 0


def make_policy(described: Any, path: Any) -> Any:
    """Create a policy from its description.

    Args:
        described: The description, from a file.
        path: The file, for the message.

    Returns:
        The policy.

    Raises:
        ValueError: If it is of another class, or has other options.
    """  # noqa: DOC502
    return _made_policy(described, path, MAX_NESTING)


def _made_policy(described: Any, path: Any, nesting: int) -> Any:
    options = described.get("options") if isinstance(described, dict) else None
    if isinstance(options, dict) and nesting:

        def made(value: Any) -> Any:
            return _made_policy(value, path, nesting - 1) if isinstance(value, dict) else value

        inside = {
            name: [made(item) for item in value] if isinstance(value, list) else made(value)
            for name, value in options.items()
        }
        described = {**described, "options": inside}
    return _made(described, "policy", policy_classes(), path)


def make_schedule(described: Any, path: Any, given: Any = None) -> Schedule | None:
    """Create a schedule from its description, or None from None; one that is given replaces it."""
    if given is not None:
        return resolve_schedule(given)
    made: Schedule | None = None if described is None else _made(described, "schedule", SCHEDULES.values(), path)
    return made


def make_rule(described: Any, path: Any, given: object = None) -> LearningRateRule:
    """Create a rule from its description.

    Args:
        described: The description, from a file.
        path: The file, for the message.
        given: The user's own rule, which replaces the described one under its ceiling; None for none.

    Returns:
        The rule.

    Raises:
        ValueError: If none is given and it is of another class, or has other options.
    """  # noqa: DOC502
    options = described.get("options") if isinstance(described, dict) else None
    if isinstance(options, dict) and described.get("class") == Capped.__name__ and not isinstance(given, Capped):
        inside = options.get("rule")
        if not isinstance(inside, dict) or inside.get("class") != Capped.__name__:
            capped: Capped = _with_options(Capped, {**options, "rule": make_rule(inside, path, given)}, "rule", path)
            return capped
    if given is not None:
        return resolve_rule(given, name="rule")
    made: LearningRateRule = _made(described, "rule", RULES.values(), path)
    return made


def _made(described: Any, kind: str, classes: Any, path: Any) -> Any:
    described = described if isinstance(described, dict) else {}
    for cls in classes:
        if cls.__name__ == described.get("class") and described.get("options") is not None:
            return _with_options(cls, described["options"], kind, path)
    raise ValueError(
        f"{path} was written with the {kind} {show(described.get('class'))}, which is not one of "
        f"{', '.join(cls.__name__ for cls in classes)}: pass the {kind}, replay(path, {kind}=...) or --{kind}."
    )


def _with_options(cls: Any, options: Any, kind: str, path: Any) -> Any:
    try:
        return cls(**{name: _value(value) for name, value in options.items()})
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} was written with other options of {cls.__name__} ({error}): pass the {kind}, "
            f"replay(path, {kind}=...) or --{kind}."
        ) from error


def _value(value: Any) -> Any:
    return float(value) if isinstance(value, str) and value in {"inf", "-inf", "nan"} else value
