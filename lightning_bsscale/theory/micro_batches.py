"""How a window is computed: which of its loader batches are gathered into one micro-batch, or split into several.

The loss of a loader batch is a mean over its examples, and a window is the mean over its loader batches: example ``i``
of loader batch ``j`` has the weight ``1 / (A n_j)``, where the window has ``A`` loader batches and this one ``n_j``
examples. The micro-batches of a window must add up to the same gradient, with ``L_k`` the mean loss of micro-batch
``k``, divided by ``A`` as always:

* ``c`` loader batches of the same size, gathered: ``c L_k``, because ``c / (A c n) = 1 / (A n)``;
* a part of ``m`` of the ``n`` examples of one loader batch: ``(m / n) L_k``, because ``m / (n A m) = 1 / (A n)``.

Loader batches of different sizes are not gathered: no factor on the mean over all of their examples gives each loader
batch the same weight. Where the loss is a mean over something else, such as tokens, both hold in numbers of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import NamedTuple

from lightning_bsscale.theory.checks import check_integer

__all__ = [
    "Group",
    "Layout",
    "due_groups",
    "is_due",
    "plan_layout",
    "regroup",
    "smaller_size",
    "smallest",
    "without_empty",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the loader batches of a window are computed.

    Attributes:
        gathered: Loader batches of the same size that make one micro-batch.
        parts: Micro-batches that one loader batch is split into, at least; above 1 nothing is gathered.
        largest: Largest micro-batch that is gathered, in rows; None to gather nothing.
        split_above: Loader batches of more rows are split; None for none.
    """

    gathered: int = 1
    parts: int = 1
    largest: int | None = None
    split_above: int | None = None


class Group(NamedTuple):
    """One micro-batch: consecutive loader batches, or a part of one.

    Attributes:
        loader_batches: How many; 1 for a part.
        start: First row of the part; 0 for whole loader batches.
        stop: Row after the last one; the rows of all of them for whole loader batches.
        weight: What its mean loss counts, in loader batches.
    """

    loader_batches: int
    start: int
    stop: int
    weight: float


def plan_layout(
    loader_batches: int, rows: int, *, largest: int | None, split_above: int | None = None, at_least: int
) -> Layout:
    """Plan a window in as few micro-batches as the limits allow.

    Args:
        loader_batches: Loader batches of the window on this rank, at least 1.
        rows: Usual number of rows (examples, as a batch can be split) of one, at least 1.
        largest: Largest micro-batch that is gathered, in rows; None to gather nothing.
        split_above: Rows above which a loader batch is split; None to split only where `at_least` requires it.
        at_least: Micro-batches needed on this rank: 2 for a measured window on one device, else 1.

    Returns:
        The layout. A window of a single loader batch of one row has one micro-batch, whatever was needed.

    Example:
        >>> plan_layout(5, 8, largest=64, at_least=2)
        Layout(gathered=3, parts=1, largest=64, split_above=None)
        >>> plan_layout(1, 8, largest=None, at_least=2)
        Layout(gathered=1, parts=2, largest=None, split_above=None)
    """
    check_integer("loader_batches", loader_batches, at_least=1)
    check_integer("rows", rows, at_least=1)
    gathered = 1 if largest is None else max(1, largest // rows)
    # As many micro-batches as that makes, or as are needed, of sizes that are as equal as possible.
    number = max(-(-loader_batches // gathered), min(at_least, loader_batches))
    parts = 1 if loader_batches >= at_least else min(rows, -(-at_least // loader_batches))
    gathered = 1 if parts > 1 else -(-loader_batches // number)
    return Layout(gathered=gathered, parts=parts, largest=largest, split_above=split_above)


def is_due(waiting: int, layout: Layout, *, is_last: bool) -> bool:
    """Decide whether micro-batches are computed now that one more loader batch has arrived.

    This depends on the number of loader batches alone, and not on their rows: ranks may have different ones, and must
    compute at the same time.

    Args:
        waiting: Loader batches that were put aside, and the one that has arrived.
        layout: The window's layout.
        is_last: Whether no other loader batch will join the window.

    Returns:
        Whether all that wait are computed; otherwise all stay aside.
    """
    return is_last or waiting >= layout.gathered


def due_groups(waiting: Sequence[int], layout: Layout, *, counts: Sequence[float] | None = None) -> list[Group]:
    """Divide the loader batches that are due into micro-batches.

    Args:
        waiting: Rows of the loader batches, in order.
        layout: The window's layout.
        counts: What else must be the same for loader batches to be gathered, such as their tokens; None for nothing.

    Returns:
        The micro-batches, in order.

    Example:
        >>> due_groups([8, 8, 5], Layout(gathered=4))
        [Group(loader_batches=2, start=0, stop=16, weight=2.0), Group(loader_batches=1, start=0, stop=5, weight=1.0)]
    """
    groups = []
    for (rows, _), alike in groupby(zip(waiting, counts or [0] * len(waiting), strict=True)):
        number = sum(1 for _ in alike)
        parts = layout.parts if layout.split_above is None else max(layout.parts, -(-rows // layout.split_above))
        if min(parts, rows) > 1:
            groups += number * _parts(rows, min(parts, rows))
        else:
            groups += regroup(
                _whole(number, rows),
                rows,
                layout.gathered * rows if layout.largest is None else layout.largest,
                divides=False,
            )
    return groups


def regroup(group: Group, rows: int, limit: int, *, divides: bool = True) -> list[Group]:
    """Divide a micro-batch into smaller ones, which have the same gradient together.

    Args:
        group: The micro-batch.
        rows: Rows of each of its loader batches.
        limit: Rows of the smaller ones, at most. Whole loader batches of more rows are to be divided once more.
        divides: Whether a loader batch is split.

    Returns:
        Whole loader batches if it has several, else parts; in order, of sizes that are as equal as possible.

    Example:
        >>> [part.stop - part.start for part in regroup(Group(3, 0, 24, 3.0), 8, 16)]
        [16, 8]
        >>> regroup(Group(1, 4, 7, 0.375), 8, 2)
        [Group(loader_batches=1, start=4, stop=6, weight=0.25), Group(loader_batches=1, start=6, stop=7, weight=0.125)]
    """
    if group.stop - group.start <= limit:
        return [group]
    if group.loader_batches == 1:
        return _parts(rows, -(-(group.stop - group.start) // limit), group.start, group.stop) if divides else [group]
    number = -(-group.loader_batches // max(1, limit // rows))
    bounds = [-(-group.loader_batches * part // number) for part in range(number + 1)]
    return [_whole(end - begin, rows) for begin, end in pairwise(bounds)]


def without_empty(parts: Sequence[Group], counts: Sequence[float]) -> list[Group]:
    """Join each part in which nothing is counted, such as one of padding alone, to the one beside it.

    Args:
        parts: Consecutive parts of one loader batch.
        counts: What is counted in each; above zero in one of them.

    Returns:
        Parts that hold the same rows, with something counted in each.

    Example:
        >>> without_empty([Group(1, 0, 2, 0.25), Group(1, 2, 4, 0.25), Group(1, 4, 8, 0.5)], [0, 3, 0])
        [Group(loader_batches=1, start=0, stop=8, weight=1.0)]
    """
    kept: list[tuple[Group, float]] = []
    for part, count in zip(parts, counts, strict=True):
        if kept and (count < 1 or kept[-1][1] < 1):
            before, counted = kept[-1]
            kept[-1] = before._replace(stop=part.stop, weight=before.weight + part.weight), counted + count
        else:
            kept.append((part, count))
    return [part for part, _ in kept]


def smaller_size(rows: int) -> int:
    """Return the rows to try next where so many (at least 2) did not fit: the largest power of two below.

    Powers of two take the fewest attempts, and the smallest of several ranks' can be told from a sum.

    Example:
        >>> [smaller_size(rows) for rows in (2, 7, 8, 48)]
        [1, 4, 4, 32]
    """
    return 1 << (rows - 1).bit_length() - 1


def smallest(*limits: int | None) -> int | None:
    """Return the smallest limit; None if there is none."""
    return min((limit for limit in limits if limit is not None), default=None)


def _whole(loader_batches: int, rows: int) -> Group:
    return Group(loader_batches, 0, loader_batches * rows, float(loader_batches))


def _parts(rows: int, parts: int, start: int = 0, stop: int | None = None) -> list[Group]:
    stop = rows if stop is None else stop
    bounds = [start + -(-(stop - start) * part // parts) for part in range(parts + 1)]
    return [Group(1, begin, end, (end - begin) / rows) for begin, end in pairwise(bounds)]
