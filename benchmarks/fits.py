"""Fit the closed forms of batch sizes to what was measured: the hyperbola, the best learning rate, and its laws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")
Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Fit(NamedTuple):
    """A law with one scale and one batch, fitted to logarithms.

    Attributes:
        limit: Its factor, such as the fewest steps or the largest learning rate.
        batch: Where it bends: B_crit, or B_noise. 0 or infinity if the points show no bend.
        error: Root of the mean squared relative error of the points.
    """

    limit: float
    batch: float
    error: float


def crossing(curve: Sequence[Sequence[float]], target: float) -> float:
    """Find where a curve of [x, loss] first falls to a loss, between its points by the logarithm of the loss.

    Args:
        curve: The points, in order.
        target: The loss.

    Returns:
        The x; NaN if the curve does not get there.
    """
    for (x, loss), (next_x, next_loss) in itertools.pairwise(curve):
        if next_loss <= target < loss:
            return x + (next_x - x) * math.log(loss / target) / math.log(loss / next_loss)
    return math.nan


def best(rates: Sequence[float], costs: Sequence[float]) -> tuple[float, float]:
    """Find the learning rate of the lowest cost by a parabola through three points, in logarithms.

    Args:
        rates: Learning rates.
        costs: A positive cost of each; NaN for a failed run.

    Returns:
        Learning rate and cost; NaN if the lowest of the costs is at an end of the rates that were tried. A failed
        run beyond it is no end: there the best of the tried rates is returned.
    """
    pairs = sorted(zip(rates, costs, strict=True))
    known = [(place, cost) for place, (_, cost) in enumerate(pairs) if math.isfinite(cost)]
    if not known:
        return math.nan, math.nan
    place = min(known, key=lambda one: one[1])[0]
    if not 0 < place < len(pairs) - 1:
        return math.nan, math.nan
    around = pairs[place - 1 : place + 2]
    if not all(math.isfinite(cost) for _, cost in around):
        return pairs[place]
    x, y = np.log(np.array(around)).T
    square, slope, level = np.polyfit(x - x[1], y, 2)
    if square <= 0:
        return pairs[place]
    top = -slope / (2 * square)
    return float(np.exp(x[1] + top)), float(np.exp(level + slope * top + square * top**2))


def fit(shape: Shape, batches: Sequence[float], values: Sequence[float]) -> Fit:
    """Fit values = limit × shape(batch, bend) to logarithms, by a fine grid of bends.

    Args:
        shape: The law without its factor.
        batches: Batch sizes.
        values: A value of each, NaN where unknown.

    Returns:
        The fit; all NaN with fewer than three points.
    """
    sizes, wanted = np.asarray(batches, dtype=float), np.asarray(values, dtype=float)
    known = np.isfinite(wanted)
    if known.sum() < 3:
        return Fit(math.nan, math.nan, math.nan)
    sizes, wanted = sizes[known], np.log(wanted[known])
    bends = np.geomspace(sizes.min() / 100, sizes.max() * 100, 4001)
    with np.errstate(divide="ignore"):
        rest = wanted - np.log(shape(sizes, bends[:, None]))
    errors = rest.std(axis=1)
    place = int(errors.argmin())
    bend = 0.0 if place == 0 else math.inf if place == len(bends) - 1 else float(bends[place])
    return Fit(float(np.exp(rest[place].mean())), bend, float(errors[place]))


def hyperbola(sizes: np.ndarray, critical: np.ndarray) -> np.ndarray:
    """Steps over the fewest: (S/S_min − 1)(E/E_min − 1) = 1 with E = S·B."""
    return 1 + critical / sizes


def saturating(sizes: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The best learning rate over the largest, for SGD."""
    return 1 / (1 + noise / sizes)


def surge(sizes: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The best learning rate over its peak, for updates like the sign."""
    return 2 / (np.sqrt(noise / sizes) + np.sqrt(sizes / noise))


def exponent(batches: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Fit a power law.

    Args:
        batches: Batch sizes.
        values: A value of each, NaN where unknown.

    Returns:
        The exponent, and the root of the mean squared relative error.
    """
    known = np.isfinite(values)
    x, y = np.log(np.asarray(batches, dtype=float)[known]), np.log(np.asarray(values, dtype=float)[known])
    if len(x) < 3:
        return math.nan, math.nan
    slope, level = np.polyfit(x, y, 1)
    return float(slope), float(np.std(y - slope * x - level))


def interval(compute: Callable[[Sequence[T]], float], seeds: Sequence[T], draws: int = 200) -> tuple[float, float]:
    """Bootstrap a number over seeds.

    Args:
        compute: The number of a list of seeds.
        seeds: What is drawn with replacement.
        draws: How often.

    Returns:
        The 5 % and 95 % quantiles.
    """
    generator = np.random.default_rng(0)
    drawn = [compute([seeds[place] for place in generator.integers(len(seeds), size=len(seeds))]) for _ in range(draws)]
    finite = [value for value in drawn if not math.isnan(value)]
    if not finite:
        return math.nan, math.nan
    low, high = np.quantile(finite, [0.05, 0.95], method="nearest")
    return float(low), float(high)
