"""Change fields of a frozen record, at the price of a few assignments.

A run takes several such changes in every loader batch. `dataclasses.replace` looks every field up again and calls the
constructor, which takes two to three times as long.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

__all__ = ["changed"]

Record = TypeVar("Record")

_FIELDS: dict[type, tuple[str, ...]] = {}
_set = object.__setattr__


def changed(record: Record, **changes: Any) -> Record:
    """Return a copy of a record with other values in some of its fields.

    Args:
        record: A frozen dataclass instance without `__post_init__`, as its constructor is not called.
        **changes: Name of a field → new value.

    Returns:
        A new record.

    Example:
        >>> from lightning_bsscale.theory.example_count import ExampleCount
        >>> changed(ExampleCount(known=8), assumed=4).total
        12
    """
    cls = type(record)
    names = _FIELDS.get(cls)
    if names is None:
        assert not hasattr(cls, "__post_init__"), f"{cls.__name__} has a __post_init__"
        names = _FIELDS[cls] = tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]
    new = object.__new__(cls)
    for name in names:
        _set(new, name, changes.pop(name) if name in changes else getattr(record, name))
    assert not changes, f"{cls.__name__} has no field {', '.join(changes)}"
    return new
