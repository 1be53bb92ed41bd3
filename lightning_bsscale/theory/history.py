"""The measured windows of a run in a quarter of the memory that their records would take.

A record of a measured window holds 22 numbers. As Python's objects they take more than 700 bytes, packed 170. The
latest windows are records, because every step looks at the last one. Those before them are packed, and become records
again where somebody reads them.
"""

from __future__ import annotations

import struct
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any, TypeVar, overload

from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.frozen import maker
from lightning_bsscale.theory.records import Measurement

__all__ = ["History"]

CHUNK = 32
"""So many records are packed together, as soon as so many later ones are there."""

_CODES = {int: "q", float: "d", bool: "?"}
_NAMES = [field.name for field in fields(Measurement)]
_PLACE = _NAMES.index("noise")
_OWN_NAMES = [name for name in _NAMES if name != "noise"]
_NOISE_NAMES = [field.name for field in fields(NoiseScale)]


def _codes(cls: Any, names: Iterable[str]) -> str:
    hints = typing.get_type_hints(cls)
    return "".join(_CODES[hints[name]] for name in names)


_LAYOUT = struct.Struct(f"={_codes(Measurement, _OWN_NAMES)}?{_codes(NoiseScale, _NOISE_NAMES)}")
_own_numbers, _noise_numbers = attrgetter(*_OWN_NAMES), attrgetter(*_NOISE_NAMES)
_make_measurement, _make_noise = maker(Measurement), maker(NoiseScale)
_NO_NOISE = (0,) * len(_NOISE_NAMES)

_Chunk = bytes | tuple[Measurement, ...]
_Self = TypeVar("_Self", bound="History")


class History(Sequence[Measurement]):
    """Measured windows in order; immutable, and compared and read as a list of them is.

    Args:
        records: the windows

    Example:
        >>> len(History()), History() == []
        (0, True)
    """

    __slots__ = ("_chunks", "_latest")
    _chunks: tuple[_Chunk, ...]
    _latest: tuple[Measurement, ...]

    def __init__(self, records: Iterable[Measurement] = ()) -> None:
        if isinstance(records, History):
            self._chunks, self._latest = records._chunks, records._latest
            return
        chunks: list[_Chunk] = []
        latest: list[Measurement] = []
        for record in records:
            latest.append(record)
            if len(latest) == 2 * CHUNK:
                chunks.append(_packed(tuple(latest[:CHUNK])))
                del latest[:CHUNK]
        self._chunks, self._latest = tuple(chunks), tuple(latest)

    def added(self, record: Measurement) -> History:
        """Return a history with one more window."""
        history = History()
        history._chunks, history._latest = self._chunks, (*self._latest, record)
        if len(history._latest) == 2 * CHUNK:
            history._chunks = (*self._chunks, _packed(history._latest[:CHUNK]))
            history._latest = history._latest[CHUNK:]
        return history

    def __len__(self) -> int:
        return CHUNK * len(self._chunks) + len(self._latest)

    def __iter__(self) -> Iterator[Measurement]:
        for chunk in self._chunks:
            yield from map(_unpacked, _LAYOUT.iter_unpack(chunk)) if isinstance(chunk, bytes) else chunk
        yield from self._latest

    @overload
    def __getitem__(self, place: int) -> Measurement: ...

    @overload
    def __getitem__(self: _Self, place: slice) -> _Self: ...

    def __getitem__(self: _Self, place: int | slice) -> Measurement | _Self:
        if isinstance(place, slice):
            return type(self)(self[number] for number in range(*place.indices(len(self))))
        length, packed = len(self), CHUNK * len(self._chunks)
        number = place + length if place < 0 else place
        if not 0 <= number < length:
            raise IndexError(f"there are {length} measured windows, but not one with the index {place}")
        if number >= packed:
            return self._latest[number - packed]
        chunk, rest = self._chunks[number // CHUNK], number % CHUNK
        if isinstance(chunk, bytes):
            return _unpacked(_LAYOUT.unpack_from(chunk, rest * _LAYOUT.size))
        return chunk[rest]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, History) and (self._chunks, self._latest) == (other._chunks, other._latest):
            return True  # NaN too
        if not isinstance(other, (History, list, tuple)):
            return NotImplemented
        return len(self) == len(other) and all(own == theirs for own, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self)!r})"


def _packed(records: tuple[Measurement, ...]) -> _Chunk:
    try:
        return b"".join(map(_packed_record, records))
    except struct.error:  # a checkpoint may hold a whole number of more than 64 bits
        return records


def _packed_record(record: Measurement) -> bytes:
    noise = record.noise
    of_noise = _NO_NOISE if noise is None else _noise_numbers(noise)
    return _LAYOUT.pack(*_own_numbers(record), noise is not None, *of_noise)


def _unpacked(numbers: tuple[Any, ...]) -> Measurement:
    count = len(_OWN_NAMES)
    noise = _make_noise(*numbers[count + 1 :]) if numbers[count] else None
    return _make_measurement(*numbers[:_PLACE], noise, *numbers[_PLACE:count])
