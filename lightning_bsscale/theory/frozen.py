"""Change fields of a frozen record, at the price of a few assignments.

A run takes several such changes in every loader batch. `dataclasses.replace` looks every field up again and calls the
constructor, which takes several times as long. Here, as in `dataclasses` itself, the function that copies a record is
written once for each class and set of fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["changed"]

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


def _copier(cls: Any, changes: dict[str, Any]) -> Callable[[Any, dict[str, Any]], Any]:
    fields = [field.name for field in dataclasses.fields(cls)]
    unknown = changes.keys() - set(fields)
    assert not unknown, f"{cls.__name__} has no field {', '.join(unknown)}"
    assert not hasattr(cls, "__post_init__"), f"{cls.__name__} has a __post_init__"
    names: dict[str, Any] = {"new": object.__new__, "cls": cls}
    lines = ["def copy(record, changes):", "    copied = new(cls)"]
    for field in fields:
        names[f"set_{field}"] = getattr(cls, field).__set__  # of the slot: a frozen class refuses assignments
        lines.append(f"    set_{field}(copied, {f'changes[{field!r}]' if field in changes else f'record.{field}'})")
    exec("\n".join([*lines, "    return copied"]), names)  # noqa: S102
    return names["copy"]  # type: ignore[no-any-return]
