"""Convert records to plain values for checkpoints and journals, check plain values, and convert them back.

A stored record is a dict as JSON gives it: numbers, strings, bools, None, dicts and lists. Infinity and NaN, which JSON
does not have, are the words ``"inf"``, ``"-inf"`` and ``"nan"``.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import cache
from numbers import Integral, Real
from typing import Any

from lightning_bsscale.theory.checks import join_names, show

__all__ = ["FRACTIONS", "LISTS", "as_compact", "as_plain", "check_stored", "from_plain", "plain_value", "with_defaults"]

FRACTIONS = frozenset({("Decision", "batch_size")})
"""Class and field of each ``int`` that may be any number: a policy may return 11.9, which the limits then round."""

LISTS = frozenset({"NoiseScale", "WindowSums"})
"""Classes that `as_compact` writes as a list of their numbers: a run has one for every measured window."""

_WORDS = frozenset({"inf", "-inf", "nan"})
_Check = Callable[[Any], "str | None"]
"""Returns what is wrong with a value, worded to follow the field's name, or None."""
_Reader = Callable[[Any], Any]
"""Returns the value of a field for a plain value."""

_PLAIN_ALREADY = frozenset({int, str, bool, type(None)})


def plain_value(value: Any) -> Any:
    """Convert a value to what JSON and `torch.load(weights_only=True)` can hold.

    Args:
        value: numbers, strings, bools, None, dataclass instances, and dicts, lists and tuples of these; anything else
            is returned as it is

    Returns:
        numbers, strings, bools, None, dicts and lists
    """
    # JSON has neither inf nor nan, so they are stored as words. Neither JSON nor a checkpoint holds NumPy numbers.
    kind: Any = type(value)
    if kind in _PLAIN_ALREADY:
        return value
    if kind is float:
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Real) and kind.__module__ != "builtins":
        return plain_value(int(value) if isinstance(value, Integral) else float(value))
    if dataclasses.is_dataclass(kind):
        return as_plain(value)
    if isinstance(value, dict):
        return {key: plain_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) or _item_of(kind) is not None:
        return [plain_value(item) for item in value]
    return value


def as_plain(record: Any) -> dict[str, Any]:
    """Return the fields of a dataclass instance as numbers, strings, bools, None, dicts and lists."""
    # dataclasses.asdict would deep-copy every number, and a checkpoint holds thousands of records.
    cls: Any = type(record)
    return {name: plain_value(getattr(record, name)) for name in _field_names(cls)}


def as_compact(record: Any) -> Any:
    """Return the fields of a record as `as_plain` does, without those that have their default, at every level.

    Args:
        record: a dataclass instance

    Returns:
        what `with_defaults` makes whole again: a dict, or for the classes in `LISTS` the list of their fields' values,
        without those at its end that have their default
    """
    cls: Any = type(record)
    if cls.__name__ in LISTS:
        return _values_of(record)
    made = {}
    for name, default in _defaults_of(cls).items():
        value = getattr(record, name)
        if value is not default and value != default:
            made[name] = as_compact(value) if dataclasses.is_dataclass(type(value)) else plain_value(value)
    return made


def _values_of(record: Any) -> list[Any]:
    cls: Any = type(record)
    defaults = _defaults_of(cls)
    values = [plain_value(getattr(record, name)) for name in defaults]
    for name in reversed(defaults):
        if getattr(record, name) != defaults[name]:
            break
        values.pop()
    return values


def with_defaults(cls: Any, fields: Any) -> Any:
    """Return plain fields with the defaults of those that are missing, at every level.

    Args:
        cls: the record's class
        fields: what `as_compact` returned, or anything else that a file holds

    Returns:
        what `as_plain` would have returned; what is no dict as it is
    """
    if isinstance(fields, list) and cls.__name__ in LISTS and len(fields) <= len(_field_names(cls)):
        fields = dict(zip(_field_names(cls), fields, strict=False))
    if not isinstance(fields, dict):
        return fields
    whole = {**_plain_defaults_of(cls), **fields}
    for name, inner in _records_of(cls):
        if name in whole:
            whole[name] = with_defaults(inner, whole[name])
    return whole


@cache
def _defaults_of(cls: Any) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(cls)}


@cache
def _plain_defaults_of(cls: Any) -> dict[str, Any]:
    return {name: plain_value(value) for name, value in _defaults_of(cls).items() if value is not dataclasses.MISSING}


@cache
def _records_of(cls: Any) -> tuple[tuple[str, Any], ...]:
    # The fields that are records themselves, or None.
    hints = typing.get_type_hints(cls)
    kinds = [(name, (hints[name], *typing.get_args(hints[name]))) for name in _field_names(cls)]
    return tuple((name, kind) for name, of in kinds for kind in of if dataclasses.is_dataclass(kind))


def from_plain(cls: Any, fields: Mapping[str, Any]) -> Any:
    """Make a record of class `cls` from the result of `as_plain`."""
    made = {}
    for name, reader in _readers_of(cls):
        value = fields[name]
        made[name] = value if reader is None or value is None else reader(value)
    return cls(**made)


@cache
def _item_of(cls: Any) -> Any:
    # The type of the items of a class such as `History(Sequence[Measurement])`; None of any other class.
    bases = getattr(cls, "__orig_bases__", ())
    return next((typing.get_args(base)[0] for base in bases if typing.get_origin(base) is Sequence), None)


@cache
def _field_names(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


@cache
def _readers_of(cls: Any) -> tuple[tuple[str, _Reader | None], ...]:
    hints = typing.get_type_hints(cls)
    return tuple((name, _reader_of(hints[name])) for name in _field_names(cls))


def _reader_of(annotation: Any) -> _Reader | None:
    # None if the plain value needs no conversion.
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in {typing.Union, types.UnionType}:
        return next(filter(None, map(_reader_of, arguments)), None)
    if origin in {list, tuple}:
        items = [_reader_of(argument) for argument in arguments if argument is not Ellipsis]
        if origin is tuple and Ellipsis not in arguments:
            return lambda value: tuple(item(one) if item else one for item, one in zip(items, value, strict=True))
        item = items[0]
        return origin if item is None else lambda value: origin(map(item, value))
    if dataclasses.is_dataclass(annotation):
        return lambda value: from_plain(annotation, value)
    if _item_of(annotation) is not None:
        of_item = _reader_of(_item_of(annotation))
        return lambda value: annotation(value if of_item is None else map(of_item, value))
    return _float_of if annotation is float else None


def _float_of(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value


def check_stored(cls: type, fields: Any, *, fractions: frozenset[tuple[str, str]] = frozenset()) -> None:
    """Check that a dict holds exactly the fields of a record, each of its type and finite.

    An ``int`` is a count of at least 0. A ``float`` may also be one of the three words. Nested records are checked too.

    Args:
        cls: the record's class, a dataclass
        fields: name → value
        fractions: class and field of each ``int`` that may be any number of at least 0

    Raises:
        ValueError: a field is missing, unknown, or of another type

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
            return f"must be an object with the fields of a {cls.__name__}, got {show(fields)}"
        if fields.keys() != checks.keys():
            missing, extra = sorted(checks.keys() - fields.keys()), sorted(fields.keys() - checks.keys())
            lacks = [f"lacks {', '.join(missing)}"] if missing else []
            return " and ".join([*lacks, *([f"has unknown fields: {show(', '.join(extra))}"] if extra else [])])
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
        item = _check_of(arguments[0], fractions) if arguments else _accept_any
        length = len(arguments) if origin is tuple and Ellipsis not in arguments else None  # a pair has one type here
        return lambda value: _list_problem(value, item, length)
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _record_check(annotation, fractions)
    if _item_of(annotation) is not None:
        item = _check_of(_item_of(annotation), fractions)
        return lambda value: _list_problem(value, item, None)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        values = [member.value for member in annotation]
        one_of = f"must be one of {join_names(map(str, values))}"
        return lambda value: None if value in values else f"{one_of}, got {show(value)}"
    return _SIMPLE.get(annotation, _accept_any)


def _any_of(checks: list[_Check]) -> _Check:
    may_be_none, others = _is_none in checks, [check for check in checks if check is not _is_none]

    def check(value: Any) -> str | None:
        if value is None and may_be_none:
            return None
        problems = [problem(value) for problem in others]
        return None if None in problems else problems[0]

    return check


def _list_problem(value: Any, item: _Check, length: int | None) -> str | None:
    if not isinstance(value, list):
        return f"must be a list, got {show(value)}"
    if length is not None and len(value) != length:
        return f"must be a list of {length}, got {show(value)}"
    return next((f"must be a list, but an item {problem}" for problem in map(item, value) if problem is not None), None)


def _is_number(value: Any) -> bool:
    # JSON's 1e999 is read as inf, and Python's whole numbers can be larger than any float.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_float(value: Any) -> str | None:
    if _is_number(value) or (isinstance(value, str) and value in _WORDS):
        return None
    return f'must be a finite number, "inf", "-inf" or "nan", got {show(value)}'


def _is_count(value: Any) -> str | None:
    if isinstance(value, int) and _is_number(value) and value >= 0:
        return None
    return f"must be a whole number of at least 0, got {show(value)}"


def _is_any_count(value: Any) -> str | None:
    return None if _is_number(value) and value >= 0 else f"must be a finite number of at least 0, got {show(value)}"


def _is_string(value: Any) -> str | None:
    return None if isinstance(value, str) else f"must be a string, got {show(value)}"


def _is_flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else f"must be true or false, got {show(value)}"


def _is_none(value: Any) -> str | None:
    return None if value is None else f"must be null, got {show(value)}"


def _accept_any(value: Any) -> str | None:
    return None


_SIMPLE: dict[Any, _Check] = {float: _is_float, int: _is_count, str: _is_string, bool: _is_flag, type(None): _is_none}
