"""Axes of a picture: from numbers to places on the paper, and the ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Scale", "linear", "logarithmic", "short"]

LARGEST = 1e150
"""Numbers beyond it are not drawn: their ratio to a small one would no longer be a number."""


@dataclass(frozen=True, slots=True)
class Scale:
    """One axis.

    Attributes:
        low: number at its start
        high: number at its end
        start: place of the start on the paper
        end: place of the end
        ticks: numbers with a tick
        is_log: whether equal distances are equal ratios
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def place(self, value: float) -> float:
        """Return where a number lies; beyond the ends, at the end."""
        bounded = min(max(value, self.low), self.high)
        if self.is_log:
            share = math.log(bounded / self.low) / math.log(self.high / self.low)
        else:
            share = (bounded - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def drawable(values: Iterable[float]) -> list[float]:
    """Return the values that can be drawn."""
    return [value for value in values if -LARGEST < value < LARGEST]


def linear(values: Iterable[float], start: float, end: float, *, ticks: int = 6, from_zero: bool = False) -> Scale:
    """Return an axis of equal distances that holds all values.

    Args:
        values: the numbers; those that cannot be drawn are ignored
        start: place of its start on the paper
        end: place of its end
        ticks: about so many ticks
        from_zero: whether it begins at 0

    Returns:
        The axis.
    """
    shown = drawable(values)
    low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
    low = min(low, 0.0) if from_zero else low
    if not high - low > 1e-9 * max(abs(high), abs(low), 1e-290):
        high = low + (max(abs(low), 1e-290) if low else 1.0)
    rough = (high - low) / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * factor for factor in (1, 2, 5, 10) if power * factor >= rough), rough)
    first = math.ceil(low / step - 1e-9)
    places = [(first + index) * step for index in range(4 * ticks)]
    return Scale(low, high, start, end, tuple(one for one in places if low <= one <= high * (1 + 1e-12)))


def logarithmic(values: Iterable[float], start: float, end: float, *, ticks: int = 7) -> Scale:
    """Return an axis of equal ratios that holds all values above 0, with ticks at powers of two (or sixteen, …).

    Args:
        values: the numbers; those that cannot be drawn are ignored
        start: place of its start on the paper
        end: place of its end
        ticks: at most so many ticks

    Returns:
        The axis.
    """
    shown = [value for value in drawable(values) if value > 1 / LARGEST]
    low, high = (min(shown), max(shown)) if shown else (1.0, 2.0)
    if high < 2 * low:
        low, high = low / math.sqrt(2), high * math.sqrt(2)
    first, last = math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9)
    stride = max(1, -(-(last - first + 1) // ticks))
    places = [2.0**power for power in range(first, last + 1, stride) if abs(power) < 1000]
    return Scale(low, high, start, end, tuple(one for one in places if low <= one <= high), is_log=True)


_SIZES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def short(value: float) -> str:
    """Format the number of a tick in a few characters: ``0.05``, ``512``, ``2k``, ``1.5M``.

    Args:
        value: the number

    Returns:
        At most about five characters.

    Example:
        >>> [short(value) for value in (0, 0.05, 512, 2048, 1_500_000)]
        ['0', '0.05', '512', '2k', '1.5M']
    """
    for size, name in _SIZES:
        if size <= abs(value) < 1e15:
            scaled = value / size
            return f"{scaled:.{0 if abs(scaled) >= 100 else 1}f}".removesuffix(".0") + name
    return f"{value:.3g}"
