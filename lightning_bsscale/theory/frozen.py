"""Change fields of a frozen record, or make one from its values, at the price of a few assignments.

A run takes several such changes in every loader batch. `dataclasses.replace` looks every field up again and calls the
constructor, which takes several times as long. Here, as in `dataclasses` itself, the function that copies a record is
written once for each class and set of fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["changed", "maker"]

Record = TypeVar("Record")

_COPIERS: dict[tuple[Any, ...], Callable[[Any, dict[str, Any]], Any]] = {}


def changed(record: Record, **changes: Any) -> Record:
    """Return a copy of a record with other values in some of its fields.

    Args:
        record: A frozen dataclass instance with slots and without `__post_init__`, as its constructor is not called.
        **changes: Name of a field → new value.

    Returns:
        A new record.

    Example:
        >>> from lightning_bsscale.theory.example_count import ExampleCount
        >>> changed(ExampleCount(known=8), assumed=4).total
        12
    """
    key = (type(record), *changes)
    copier = _COPIERS.get(key)
    if copier is None:
        copier = _COPIERS[key] = _copier(type(record), changes)
    return copier(record, changes)  # type: ignore[no-any-return]


def maker(cls: type[Record]) -> Callable[..., Record]:
    """Write a function that makes a record of a class from the values of all its fields, in their order.

    Args:
        cls: A frozen dataclass with slots and without `__post_init__`, as its constructor is not called.

    Returns:
        The function.

    Example:
        >>> from lightning_bsscale.theory.example_count import ExampleCount
        >>> maker(ExampleCount)(8, 0, 4)
        ExampleCount(known=8, in_flight=0, assumed=4)
    """
    fields = _fields_of(cls)
    return _written(cls, ", ".join(fields), fields)


def _copier(cls: Any, changes: dict[str, Any]) -> Callable[[Any, dict[str, Any]], Any]:
    fields = _fields_of(cls)
    unknown = changes.keys() - set(fields)
    assert not unknown, f"{cls.__name__} has no field {', '.join(unknown)}"
    values = [f"changes[{field!r}]" if field in changes else f"record.{field}" for field in fields]
    return _written(cls, "record, changes", values)


def _fields_of(cls: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _written(cls: Any, arguments: str, values: list[str]) -> Callable[..., Any]:
    assert not hasattr(cls, "__post_init__"), f"{cls.__name__} has a __post_init__"
    names: dict[str, Any] = {"_new": object.__new__, "_cls": cls}
    lines = [f"def make({arguments}):", "    _made = _new(_cls)"]
    for field, value in zip(_fields_of(cls), values, strict=True):
        names[f"_set_{field}"] = getattr(cls, field).__set__  # of the slot: a frozen class refuses assignments
        lines.append(f"    _set_{field}(_made, {value})")
    exec("\n".join([*lines, "    return _made"]), names)  # noqa: S102
    return names["make"]  # type: ignore[no-any-return]
