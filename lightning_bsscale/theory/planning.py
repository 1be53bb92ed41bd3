"""Plan a training before it runs: what each batch would take in steps, examples, hours and money, and which to use.

What was spent on a loss elsewhere (examples ``E_i`` in batches of ``B_i``) is worth
``E_min = sum E_i / (1 + B_i/B_crit)`` examples in a very small batch. The same loss with a batch of B takes
``E = E_min (1 + B/B_crit)`` examples, that is

    E = sum E_i (B_crit + B) / (B_crit + B_i),    steps S = E / B = S_min (1 + B_crit/B),    S_min = E_min / B_crit

which has a value for every critical batch, also 0 and infinity. Each term of E changes in one direction with B_crit, so
the ends of its interval are its values at those of B_crit's.

Source: McCandlish et al. 2018, arXiv 1812.06162, eq. 2.11 and 2.12. Where it stops being true: see `theory.tradeoff`;
and a training whose critical batch grows has one at each moment, of which this takes one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_bsscale.theory.checks import check_integer, check_number
from lightning_bsscale.theory.tradeoff import batch_size_for_efficiency, batch_size_for_prices, sample_efficiency

__all__ = ["Hardware", "Interval", "Plan", "Prices", "Row", "Spent", "examples_for_batch", "plan_batches"]

FARTHEST = 8.0
"""Rows reach this many times beyond the batches in question: the critical, the cheapest and the present one."""
DEFAULT_EFFICIENCY = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A number with an interval.

    Attributes:
        value: The number.
        low: Lower end, at most the value.
        high: Upper end, at least the value; may be infinite.
    """

    value: float
    low: float
    high: float

    @classmethod
    def checked(cls, name: str, value: object, low: object = None, high: object = None) -> Interval:
        """Return an interval of numbers above 0; an unknown low end is 0, and an unknown high end infinite.

        Args:
            name: For the message.
            value: The number.
            low: The lower end, or None.
            high: The upper end, or None.

        Returns:
            The interval.

        Raises:
            ValueError: If the value is outside of its interval.
        """
        made = cls(
            value=check_number(f"{name}.value", value, above=0),
            low=0.0 if low is None else check_number(f"{name}.low", low, at_least=0),
            high=math.inf if high is None else check_number(f"{name}.high", high, above=0, may_be_infinite=True),
        )
        if not made.low <= made.value <= made.high:
            raise ValueError(f"{name}: the value {value} must lie between low and high, got {low} and {high}.")
        return made

    @classmethod
    def over(cls, function: Callable[[float], float], argument: Interval) -> Interval:
        """Return a function's value, and the range of its values over an argument's interval."""
        value, *ends = (function(one) for one in (argument.value, argument.low, argument.high))
        return cls(value=value, low=min(value, *ends), high=max(value, *ends))

    def times(self, factor: float) -> Interval:
        """Return the interval of a multiple."""
        return Interval(value=factor * self.value, low=factor * self.low, high=factor * self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Examples that were, or would be, spent in batches of one size.

    Attributes:
        examples: The examples, above 0.
        batch_size: Examples of each optimizer step, above 0.
    """

    examples: float
    batch_size: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """The devices of a training.

    Attributes:
        ranks: Number of devices, each with the same share of the batch.
        max_per_device: Most examples of a micro-batch on one device; None for no limit.
    """

    ranks: int = 1
    max_per_device: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_integer("ranks", self.ranks, at_least=1)
        if self.max_per_device is not None:
            check_integer("max_per_device", self.max_per_device, at_least=1)

    def layout(self, batch_size: int) -> tuple[int, int] | None:
        """Compute how a batch is divided into equal micro-batches, as few as fit.

        Args:
            batch_size: Examples of an optimizer step.

        Returns:
            Examples of a micro-batch and micro-batches of each device; None if the devices cannot share it equally.

        Example:
            >>> Hardware(ranks=8, max_per_device=24).layout(512)
            (16, 4)
        """
        share, rest = divmod(batch_size, self.ranks)
        if rest or not share:
            return None
        fewest = 1 if self.max_per_device is None else -(-share // self.max_per_device)
        accumulate = next(count for count in range(fewest, share + 1) if share % count == 0)
        return share // accumulate, accumulate

    def batches(self, lowest: float, highest: float) -> set[int]:
        """Return powers of two, and full devices once and in powers of two, from one number of examples to another."""
        units = {1, self.ranks, self.ranks * (self.max_per_device or 1)}
        found = {unit << power for unit in units for power in range(max(1, math.ceil(highest)).bit_length())}
        possible = {batch for batch in found if lowest <= batch <= highest and self.layout(batch)}
        return possible or {self.ranks}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What steps and examples take.

    Attributes:
        seconds_per_example: Seconds of one example on one device, above 0.
        seconds_per_step: Seconds of a step beyond its examples (the update, and the exchange of gradients), at least 0.
        per_hour: Price of one device for an hour, above 0; None if unknown.
    """

    seconds_per_example: float
    seconds_per_step: float
    per_hour: float | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_number("seconds_per_example", self.seconds_per_example, above=0)
        check_number("seconds_per_step", self.seconds_per_step, at_least=0)
        if self.per_hour is not None:
            check_number("price", self.per_hour, above=0)

    def hours_per_step(self, batch_size: int, ranks: int) -> float:
        """Return the hours of one step."""
        return (self.seconds_per_step + self.seconds_per_example * batch_size / ranks) / 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One batch, and what the loss in question takes with it.

    Attributes:
        batch_size: Examples of an optimizer step.
        ranks: Number of devices.
        micro_batch_size: Examples of a micro-batch on one device.
        accumulate: Micro-batches of one device in a step.
        efficiency: Worth of an example, relative to one in a very small batch.
        steps: Optimizer steps.
        examples: Examples.
        hours: Hours; None without prices.
        cost: Cost of all devices for these hours; None without a price of an hour.
    """

    batch_size: int
    ranks: int
    micro_batch_size: int
    accumulate: int
    efficiency: float
    steps: Interval
    examples: Interval
    hours: Interval | None
    cost: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The rows, and the one to use.

    Attributes:
        critical: The critical batch, in examples.
        min_steps: S_min, steps with an infinite batch.
        min_examples: E_min, examples in a very small batch.
        rows: A row for each batch, by devices and batch.
        recommended: The row to use.
        reason: Why, as words that follow "Use a batch of ...:".
        cheapest: The batch at which time is least on the recommended devices, not rounded; None without prices.
        between: The smallest and the largest batch that would be recommended within the critical batch's interval.
    """

    critical: Interval
    min_steps: float
    min_examples: float
    rows: tuple[Row, ...]
    recommended: Row
    reason: str
    cheapest: float | None
    between: tuple[int, int]


def examples_for_batch(batch_size: float, critical_batch_size: float, spent: Sequence[Spent]) -> float:
    """Compute the examples that a batch takes to the loss that others were spent on.

    ``sum E_i (B_crit + B) / (B_crit + B_i)``.

    Args:
        batch_size: B, in examples, above 0.
        critical_batch_size: B_crit, in examples, at least 0; may be infinite.
        spent: Examples and their batches.

    Returns:
        The examples.

    Example:
        >>> examples_for_batch(64, 64, [Spent(examples=1000, batch_size=16)])
        1600.0
    """
    batch = check_number("batch_size", batch_size, above=0)
    critical = check_number("critical_batch_size", critical_batch_size, at_least=0, may_be_infinite=True)
    if math.isinf(critical):
        return math.fsum(one.examples for one in spent)
    return math.fsum(one.examples * (critical + batch) / (critical + one.batch_size) for one in spent)


def plan_batches(
    critical: Interval,
    spent: Sequence[Spent],
    machines: Sequence[Hardware] = (Hardware(),),
    prices: Prices | None = None,
    efficiency: float | None = None,
) -> Plan:
    """Compute a row for each batch worth looking at, and choose one.

    Args:
        critical: The critical batch with its interval, in examples.
        spent: What was spent on the loss in question elsewhere: examples and their batches.
        machines: The devices to choose from.
        prices: What steps and examples take; None if unknown.
        efficiency: Share of an example's worth to keep. None chooses the batch of the least cost where an hour has a
            price, else of the least time, and without prices keeps half an example's worth.

    Returns:
        The plan.
    """
    value = check_number("the critical batch", critical.value, above=0)
    for one in spent:
        check_number("examples", one.examples, above=0)
        check_number("the batch that they were spent in", one.batch_size, above=0)
    if efficiency is not None:
        check_number("efficiency", efficiency, above=0, below=1)
    rows = tuple(
        _row(batch, hardware, critical, spent, prices)
        for hardware in sorted(machines, key=lambda one: one.ranks)
        for batch in sorted(_batches(value, hardware, spent, prices))
    )
    recommended = _chosen(rows, value, spent, prices, efficiency)
    ends = [_chosen(rows, end, spent, prices, efficiency).batch_size for end in (critical.low, critical.high)]
    between = (min(*ends, recommended.batch_size), max(*ends, recommended.batch_size))
    min_examples = math.fsum(one.examples * sample_efficiency(one.batch_size, value) for one in spent)
    cheapest = None if prices is None else _cheapest(value, recommended.ranks, prices)
    return Plan(
        critical=critical,
        min_steps=min_examples / value,
        min_examples=min_examples,
        rows=rows,
        recommended=recommended,
        reason=_reason(recommended, prices, efficiency, cheapest),
        cheapest=cheapest,
        between=between,
    )


def _cheapest(critical: float, ranks: int, prices: Prices) -> float:
    return batch_size_for_prices(
        critical, step_price=prices.seconds_per_step, example_price=prices.seconds_per_example / ranks
    )


def _batches(critical: float, hardware: Hardware, spent: Sequence[Spent], prices: Prices | None) -> set[int]:
    # A run that grew has been at many batches; its first is the one to compare with.
    present = spent[0].batch_size
    of_interest = [critical, present]
    if prices is not None and prices.seconds_per_step > 0:
        of_interest.append(_cheapest(critical, hardware.ranks, prices))
    found = hardware.batches(min(of_interest) / FARTHEST, max(of_interest) * FARTHEST)
    return found | ({int(present)} if present == int(present) and hardware.layout(int(present)) else set())


def _row(batch_size: int, hardware: Hardware, critical: Interval, spent: Sequence[Spent], prices: Prices | None) -> Row:
    layout = hardware.layout(batch_size)
    assert layout is not None
    examples = Interval.over(lambda end: examples_for_batch(batch_size, end, spent), critical)
    steps = examples.times(1 / batch_size)
    hours = None if prices is None else steps.times(prices.hours_per_step(batch_size, hardware.ranks))
    per_hour = None if prices is None else prices.per_hour
    return Row(
        batch_size=batch_size,
        ranks=hardware.ranks,
        micro_batch_size=layout[0],
        accumulate=layout[1],
        efficiency=sample_efficiency(batch_size, critical.value),
        steps=steps,
        examples=examples,
        hours=hours,
        cost=None if hours is None or per_hour is None else hours.times(per_hour * hardware.ranks),
    )


def _chosen(
    rows: Sequence[Row], critical: float, spent: Sequence[Spent], prices: Prices | None, efficiency: float | None
) -> Row:
    if prices is None or efficiency is not None:
        share = DEFAULT_EFFICIENCY if efficiency is None else efficiency
        most = critical if critical in (0, math.inf) else batch_size_for_efficiency(share, critical)
        # Of a batch that several numbers of devices can have, the fewest of them.
        return max((row for row in rows if row.batch_size <= most), key=_size_then_fewest, default=min(rows, key=_size))

    def price(row: Row) -> float:
        steps = examples_for_batch(row.batch_size, critical, spent) / row.batch_size
        hours = steps * prices.hours_per_step(row.batch_size, row.ranks)
        return hours if prices.per_hour is None else hours * row.ranks

    return min(rows, key=lambda row: (price(row), row.ranks, row.batch_size))


def _size(row: Row) -> tuple[int, int]:
    return row.batch_size, row.ranks


def _size_then_fewest(row: Row) -> tuple[int, int]:
    return row.batch_size, -row.ranks


def _reason(row: Row, prices: Prices | None, efficiency: float | None, cheapest: float | None) -> str:
    if prices is None or efficiency is not None:
        share = DEFAULT_EFFICIENCY if efficiency is None else efficiency
        if row.efficiency < share:
            return f"the smallest of these batches, as none keeps {100 * share:.3g} % of an example's worth"
        why = "" if efficiency is not None else " (there is no time to compare without seconds)"
        return f"the largest of these batches that keeps {100 * share:.3g} % of an example's worth{why}"
    superlative, price = ("fastest", "time") if prices.per_hour is None else ("cheapest", "cost")
    return f"the {superlative} of these batches (the {price} is least near {max(1, round(cheapest or 0)):,})"
