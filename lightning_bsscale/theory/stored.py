"""Fields of a record that come from outside (a file), checked against the annotations of its class.

A stored record is a dict as JSON gives it: numbers, strings, bools, None, dicts and lists. Infinity and NaN, which JSON
does not have, are the words ``"inf"``, ``"-inf"`` and ``"nan"``.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from typing import Any

from lightning_bsscale.theory.checks import found, quoted

__all__ = ["check_stored"]

_WORDS = frozenset({"inf", "-inf", "nan"})
_Check = Callable[[Any], "str | None"]
"""Given a value, what is wrong with it in words that follow the field's name, or None."""


def check_stored(cls: type, fields: Mapping[str, Any], *, fractions: frozenset[tuple[str, str]] = frozenset()) -> None:
    """Check that a dict holds the fields of a record, all of them and no others, each of its type and finite.

    An ``int`` is a count: not below 0. A ``float`` may also be one of the three words. A nested record is checked too.

    Args:
        cls: the record's class, a dataclass
        fields: name → value
        fractions: class and field of each ``int`` that may be any number not below 0

    Raises:
        ValueError: something is missing, too much, or of another type

    Example:
        >>> from lightning_bsscale.theory.policies import Limits
        >>> check_stored(Limits, {"granularity": 8, "min_batch_size": 8, "max_batch_size": "64"})
        Traceback (most recent call last):
        ...
        ValueError: max_batch_size must be a whole number of at least 0, got '64'
    """
    problem = _record_check(cls, fractions)(fields)
    if problem is not None:
        raise ValueError(problem)


@cache
def _record_check(cls: type, fractions: frozenset[tuple[str, str]]) -> _Check:
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    checks = {
        name: _is_any_count if (cls.__name__, name) in fractions else _check_of(hints[name], fractions)
        for name in names
    }

    def check(fields: Any) -> str | None:
        if not isinstance(fields, dict):
            return f"must be an object with the fields of a {cls.__name__}, got {found(fields)}"
        if fields.keys() != checks.keys():
            missing, extra = sorted(checks.keys() - fields.keys()), sorted(fields.keys() - checks.keys())
            lacks = [f"lacks {', '.join(missing)}"] if missing else []
            return " and ".join([*lacks, *([f"has unknown fields: {found(', '.join(extra))}"] if extra else [])])
        for name, is_wrong in checks.items():
            problem = is_wrong(fields[name])
            if problem is not None:
                return f"{name} {problem}" if problem.startswith(("must ", "lacks ", "has ")) else f"{name}.{problem}"
        return None

    return check


def _check_of(annotation: Any, fractions: frozenset[tuple[str, str]]) -> _Check:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in {typing.Union, types.UnionType}:
        return _any_of([_check_of(argument, fractions) for argument in arguments])
    if origin in {list, tuple}:
        item = _check_of(arguments[0], fractions) if arguments else _says_nothing
        return lambda value: _list_problem(value, item)
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _record_check(annotation, fractions)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        values = [member.value for member in annotation]
        one_of = f"must be one of {quoted(map(str, values))}"
        return lambda value: None if value in values else f"{one_of}, got {found(value)}"
    return _SIMPLE.get(annotation, _says_nothing)


def _any_of(checks: list[_Check]) -> _Check:
    may_be_none, others = _is_none in checks, [check for check in checks if check is not _is_none]

    def check(value: Any) -> str | None:
        if value is None and may_be_none:
            return None
        problems = [problem(value) for problem in others]
        return None if None in problems else problems[0]

    return check


def _list_problem(value: Any, item: _Check) -> str | None:
    if not isinstance(value, list):
        return f"must be a list, got {found(value)}"
    return next((f"must be a list, but an item {problem}" for problem in map(item, value) if problem is not None), None)


def _is_number(value: Any) -> bool:
    # JSON's 1e999 is read as inf, and Python's whole numbers can be larger than any float.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_float(value: Any) -> str | None:
    if _is_number(value) or (isinstance(value, str) and value in _WORDS):
        return None
    return f'must be a finite number, "inf", "-inf" or "nan", got {found(value)}'


def _is_count(value: Any) -> str | None:
    if isinstance(value, int) and _is_number(value) and value >= 0:
        return None
    return f"must be a whole number of at least 0, got {found(value)}"


def _is_any_count(value: Any) -> str | None:
    return None if _is_number(value) and value >= 0 else f"must be a finite number of at least 0, got {found(value)}"


def _is_string(value: Any) -> str | None:
    return None if isinstance(value, str) else f"must be a string, got {found(value)}"


def _is_flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else f"must be true or false, got {found(value)}"


def _is_none(value: Any) -> str | None:
    return None if value is None else f"must be null, got {found(value)}"


def _says_nothing(value: Any) -> str | None:
    return None


_SIMPLE: dict[Any, _Check] = {float: _is_float, int: _is_count, str: _is_string, bool: _is_flag, type(None): _is_none}
