"""Join loader batches of any structure, and take parts of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_bsscale.callbacks.trainer.out_of_memory import is_out_of_memory

__all__ = ["CannotRegroup", "join", "part_of", "rows_of"]


class CannotRegroup(Exception):
    """A batch holds something that cannot be joined or split.

    Args:
        place: where it is in the batch
        problem: what is wrong with it
    """

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"batch{place} {problem}")


def rows_of(batch: Any) -> int:
    """Return the number of examples by which a batch can be split: the first dimension of its first tensor.

    Args:
        batch: a loader's batch

    Returns:
        The number; a batch of graphs (PyTorch Geometric's) has its graphs. 1 if there is none.
    """
    if _holds_graphs(batch):
        return int(batch.num_graphs)
    first = next(_arrays_in(batch), None)
    return 1 if first is None or first.ndim == 0 else int(first.shape[0])


def join(batches: Sequence[Any]) -> Any:
    """Join batches of the same structure along the dimension of examples.

    Args:
        batches: at least one

    Returns:
        A batch of the same structure: tensors and arrays are concatenated along their first dimension, and so are lists
        with one entry for each example. Anything else must be the same in all batches.

    Raises:
        CannotRegroup: If they cannot be joined.
    """  # noqa: DOC502
    return batches[0] if len(batches) == 1 else _rebuilt(list(batches), _Joined([rows_of(batch) for batch in batches]))


def part_of(batch: Any, start: int, stop: int) -> Any:
    """Return the examples from `start` to before `stop` of a batch.

    Args:
        batch: a loader's batch
        start: first example, from 0
        stop: example after the last one

    Returns:
        A batch of the same structure. Tensors are views. What has no dimension of examples is in every part.

    Raises:
        CannotRegroup: If a tensor has another first dimension than the batch has examples.
    """  # noqa: DOC502
    return _rebuilt([batch], _Part(rows_of(batch), start, stop))


class _Joined:
    """Joins what is at one place of several batches."""

    def __init__(self, rows: list[int]) -> None:
        self.rows = rows

    def graphs(self, batches: list[Any]) -> Any:
        return type(batches[0]).from_data_list([graph for batch in batches for graph in batch.to_data_list()])

    def array(self, arrays: list[Any], place: str) -> Any:
        _check_rows(arrays, self.rows, place)
        if arrays[0].ndim == 0:
            raise CannotRegroup(place, "is a single number, which a joined batch would have several of")
        shapes = {tuple(array.shape[1:]) for array in arrays}
        if len(shapes) > 1:
            raise CannotRegroup(place, f"differs in shape between batches ({_listed(shapes)}), as padded sequences do")
        try:
            return torch.cat(arrays) if isinstance(arrays[0], Tensor) else np.concatenate(arrays)
        except (RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise CannotRegroup(place, f"cannot be concatenated: {error}") from error

    def listed(self, lists: list[Any]) -> Any:
        return type(lists[0])([item for entries in lists for item in entries])

    def other(self, values: list[Any], place: str) -> Any:
        first = values[0]
        is_same = all(value is first for value in values)
        if not is_same and not (_is_plain(first) and all(type(v) is type(first) and v == first for v in values)):
            kinds = _listed({type(value).__name__ for value in values})
            raise CannotRegroup(place, f"({kinds}) is not the same in all batches, and has no dimension of examples")
        return first


class _Part:
    """Takes a part of what is at one place of a batch."""

    def __init__(self, rows: int, start: int, stop: int) -> None:
        self.rows = [rows]
        self._slice = slice(start, stop)

    def graphs(self, batches: list[Any]) -> Any:
        return type(batches[0]).from_data_list(batches[0].to_data_list()[self._slice])

    def array(self, arrays: list[Any], place: str) -> Any:
        if arrays[0].ndim == 0:
            return arrays[0]
        _check_rows(arrays, self.rows, place)
        try:
            return arrays[0][self._slice]
        except (RuntimeError, NotImplementedError) as error:  # some sparse layouts
            raise CannotRegroup(place, f"cannot be split: {error}") from error

    def listed(self, lists: list[Any]) -> Any:
        return type(lists[0])(lists[0][self._slice])

    def other(self, values: list[Any], place: str) -> Any:
        return values[0]


def _rebuilt(items: list[Any], at: _Joined | _Part, place: str = "") -> Any:
    """Walk through batches of one structure side by side, and rebuild it from what `at` makes of the leaves."""
    first = items[0]
    if any(type(item) is not type(first) for item in items):
        raise CannotRegroup(place, f"differs in type between batches ({_listed({type(i).__name__ for i in items})})")
    if _holds_graphs(first):
        return at.graphs(items)
    if _is_array(first):
        return at.array(items, place)
    if isinstance(first, Mapping):
        return _of_mapping(items, at, place)
    if is_dataclass(first) and not isinstance(first, type):
        rebuilt = copy.copy(first)
        for field in fields(first):
            values = [getattr(item, field.name) for item in items]
            # Also in a frozen one: the copy is nobody's yet.
            object.__setattr__(rebuilt, field.name, _rebuilt(values, at, f"{place}.{field.name}"))
        return rebuilt
    if isinstance(first, (list, tuple)):
        return _of_sequence(items, at, place)
    return at.other(items, place)


def _of_mapping(items: list[Any], at: _Joined | _Part, place: str) -> Any:
    first = items[0]
    if any(item.keys() != first.keys() for item in items):
        raise CannotRegroup(place, "has other keys in other batches")
    values = {key: _rebuilt([item[key] for item in items], at, f"{place}[{key!r}]") for key in first}
    rebuilt = copy.copy(first)  # keeps what a subclass holds besides, such as the tokenizer's encodings
    try:
        for key, value in values.items():
            rebuilt[key] = value
    except TypeError:  # a mapping that cannot be changed
        return type(first)(values)
    return rebuilt


def _of_sequence(items: list[Any], at: _Joined | _Part, place: str) -> Any:
    first = items[0]
    if _is_listed_by_example(items, at.rows):
        return at.listed(items)
    if any(len(item) != len(first) for item in items):
        raise CannotRegroup(place, "differs in length between batches")
    rebuilt = [_rebuilt(list(values), at, f"{place}[{index}]") for index, values in enumerate(zip(*items, strict=True))]
    return type(first)(*rebuilt) if hasattr(first, "_fields") else type(first)(rebuilt)


def _is_listed_by_example(items: Sequence[Any], rows: Sequence[int]) -> bool:
    """Return whether these are lists with one entry for each example, such as texts, instead of a structure."""
    has_entry_for_each = all(len(item) == number for item, number in zip(items, rows, strict=True))
    return (
        has_entry_for_each
        and not hasattr(items[0], "_fields")
        and all(next(_arrays_in(entry), None) is None for item in items for entry in item)
    )


def _check_rows(arrays: Sequence[Any], rows: Sequence[int], place: str) -> None:
    for array, number in zip(arrays, rows, strict=True):
        if array.ndim and array.shape[0] != number:
            raise CannotRegroup(place, f"has {array.shape[0]} rows, in a batch of {number} examples")


def _arrays_in(batch: Any) -> Any:
    if _is_array(batch):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _arrays_in(value)
    elif is_dataclass(batch) and not isinstance(batch, type):
        for field in fields(batch):
            yield from _arrays_in(getattr(batch, field.name))
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from _arrays_in(value)


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, bytes))


def _holds_graphs(batch: Any) -> bool:
    has_calls: Callable[[str], bool] = lambda name: callable(getattr(type(batch), name, None))  # noqa: E731
    return has_calls("to_data_list") and has_calls("from_data_list") and hasattr(batch, "num_graphs")


def _listed(values: Any) -> str:
    return ", ".join(sorted(str(value) for value in values))
