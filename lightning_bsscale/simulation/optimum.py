r"""The best possible schedule of batch and learning rate on a quadratic of one or two modes, by dynamic programming.

Given a budget of examples, which batches and learning rates minimise

    expected loss at the end + price * number of steps ?

The state of SGD is the second moment of each mode (quadratic.py), and a step changes it deterministically, so Bellman's
equation holds on a grid:

    V(0, p) = loss(p)        V(e, p) = min over B <= e and rate of price + V(e - B, p after the step)

Between the grid's points V is interpolated, linearly in the logarithm of p. The schedule is then read off by walking
forward from the start with the exact recursion, so its loss is exact, and only its optimality is up to the grid.

With a single mode the answer is known: a step at the best learning rate takes 1/p to ``1/p + h^2 B / s`` whatever B is
(it weighs all examples alike, as the mean of all would), so nothing is lost with one large batch. It takes a second
mode, which limits the learning rate, to give a batch a price.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_bsscale.simulation.quadratic import Array, NoisyQuadratic

__all__ = ["Schedule", "best_schedule"]


@dataclass(frozen=True, eq=False)
class Schedule:
    """A schedule of batch and learning rate.

    Attributes:
        batches: Batch size of each step, in examples.
        rates: Learning rate of each step.
        loss: Expected loss at the end, exactly.
        value: What the grid promised: loss at the end and price of the steps.
    """

    batches: tuple[int, ...]
    rates: tuple[float, ...]
    loss: float
    value: float


class _Grid:
    """Values on a grid over the logarithms of the moments."""

    def __init__(self, lowest: Array, highest: Array, points: int) -> None:
        self.low = np.log(lowest)
        self.step = (np.log(highest) - self.low) / (points - 1)
        self.points = points
        axes = [np.exp(low + step * np.arange(points)) for low, step in zip(self.low, self.step, strict=True)]
        self.moments: Array = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)

    def places(self, moments: Array) -> tuple[Any, Array]:
        """Return the indices of the corners around each point, and their weights (last axis)."""
        place = np.clip((np.log(moments) - self.low) / self.step, 0, self.points - 1)  # beyond, the edge counts
        below = np.minimum(place.astype(int), self.points - 2)
        share, modes = place - below, place.shape[-1]
        corners = np.array(list(np.ndindex(*[2] * modes)))
        weights = np.prod(np.where(corners, share[..., None, :], 1 - share[..., None, :]), axis=-1)
        flat = (below[..., None, :] + corners) @ self.points ** np.arange(modes)[::-1]
        return flat, weights

    def read(self, values: Array, places: tuple[Any, Array]) -> Array:
        """Interpolate the values there."""
        indices, weights = places
        return np.asarray((values.ravel()[indices] * weights).sum(-1))


def best_schedule(
    quadratic: NoisyQuadratic,
    start: Any,
    *,
    units: int,
    unit: int,
    batches: Sequence[int],
    rates: Sequence[float],
    price: float,
    points: int = 48,
) -> Schedule:
    """Compute the best schedule.

    Args:
        quadratic: One or two modes.
        start: The first distance from the optimum, one number for each mode.
        units: The budget, in units.
        unit: Examples of one unit.
        batches: Possible batch sizes, in units; 1 must be among them.
        rates: Possible learning rates.
        price: Loss that one step less is worth.
        points: Of the grid, for each mode.

    Returns:
        The schedule.

    Raises:
        ValueError: If there are more than two modes, or no batch of one unit.
    """
    if quadratic.curvature.size > 2 or 1 not in batches:
        raise ValueError("best_schedule needs a quadratic of one or two modes, and 1 among the batches")
    first = np.broadcast_to(np.asarray(start, dtype=np.float64), quadratic.curvature.shape) ** 2
    grid = _Grid(*_range(quadratic, first, units * unit, max(rates)), points)
    learning_rates = np.asarray(rates, dtype=np.float64).reshape(-1, 1)
    values = [quadratic.loss(grid.moments)]
    # Where a step leads does not depend on what is left of the budget.
    shaped = learning_rates.reshape(*[1] * first.size, -1, 1)
    after = {
        batch: grid.places(quadratic.after_sgd(grid.moments[..., None, :], batch * unit, shaped)) for batch in batches
    }
    for left in range(1, units + 1):
        answers = [grid.read(values[left - batch], after[batch]).min(axis=-1) for batch in batches if batch <= left]
        values.append(price + np.min(answers, axis=0))
    return _walked(quadratic, first, grid, values, units, unit, batches, learning_rates, price)


def _range(quadratic: NoisyQuadratic, first: Array, examples: float, largest_rate: float) -> tuple[Array, Array]:
    # Below what the mean of all examples could reach nothing is of interest; above, what noise alone could add.
    lowest = 1 / (1 / first + quadratic.curvature**2 * examples / np.maximum(quadratic.noise, 1e-300)) / 4
    highest = np.maximum(first, largest_rate * quadratic.noise / quadratic.curvature) * 4
    return lowest, highest


def _walked(
    quadratic: NoisyQuadratic,
    first: Array,
    grid: _Grid,
    values: list[Array],
    units: int,
    unit: int,
    batches: Sequence[int],
    rates: Array,
    price: float,
) -> Schedule:
    """Walk forward from the start, and take the best step at each point."""
    moments, left = first, units
    chosen: list[tuple[int, float]] = []
    while left:
        possible = [batch for batch in batches if batch <= left]
        options = [quadratic.after_sgd(moments, batch * unit, rates) for batch in possible]
        worth = np.array(
            [grid.read(values[left - b], grid.places(after)) for b, after in zip(possible, options, strict=True)]
        )
        number, rate = np.unravel_index(int(worth.argmin()), worth.shape)
        moments, left = options[number][rate], left - possible[number]
        chosen.append((possible[number] * unit, float(rates[rate, 0])))
    value = float(grid.read(values[units], grid.places(first)))
    return Schedule(tuple(b for b, _ in chosen), tuple(r for _, r in chosen), float(quadratic.loss(moments)), value)
