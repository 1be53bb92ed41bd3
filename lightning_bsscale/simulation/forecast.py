r"""What each policy would do with the user's numbers: batch, steps, and the loss that they cost.

The measurement and the decisions are those of control.py. The loss is a model's: a quadratic with a wide power-law
spectrum, whose slowest modes take longer than the whole run and whose stiffest one limits the learning rate, trained by
SGD in expectation. Its noise changes during the run such that the noise scale follows the user's law in the *reference
run*, which holds the start batch to the end at the best learning rate for it. The other runs have the same noise at the
same number of examples, and the noise scale that follows from their own gradient.

Adam divides by the root mean square of the gradient, ``sqrt(||G||^2 + tr(Sigma)/B)``, so in the model its learning rate
is SGD's times that of the reference run divided by its own. Far below the noise scale the square-root rule is then the
linear one, as it should be.

Losses are shares of the reference run's. They show what a policy's growth costs or saves under these assumptions, not
what a network would reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from lightning_bsscale.simulation.control import Control, Stretch, controlled
from lightning_bsscale.simulation.quadratic import Array
from lightning_bsscale.theory.checks import check_integer, check_number, join_names, show
from lightning_bsscale.theory.policies import POLICIES, Decision, Limits, Situation, resolve_policy
from lightning_bsscale.theory.rules import LearningRateRule, resolve_rule, rule_for_optimizer
from lightning_bsscale.theory.schedules import Schedule, resolve_schedule

__all__ = ["GROWTHS", "OPTIMIZERS", "Fixed", "Forecast", "Numbers", "Row", "Training", "forecast"]

GROWTHS = ("linear", "power", "exponential")
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam"}
MODES = 48
LOSS_EXPONENT, NOISE_EXPONENT = 0.5, 1 / 3
MOST_LOOKS = 1200
PARTS, ROUNDS = 200, 8  # of the reference run


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """The user's numbers.

    Args:
        noise_scale: At the beginning, in examples.
        noise_scale_end: At the end of the budget, in examples.
        growth: How it goes from the one to the other against examples: "linear", "power" (fast at first, a straight
            line where both axes are logarithmic, from 1 % of the budget on) or "exponential" (fast at the end).
        examples: The budget.
        batch_size: The first batch size, which is also that of a loader batch.
        max_batch_size: The largest batch size.
        optimizer: "sgd" or "adam".
        rule: How the learning rate follows the batch: a rule, its name, or "auto" for the optimizer's.
        schedule: Of the learning rate: a schedule or its name.
        warmup: Share of the budget before the batch may grow, in which the learning rate rises.
        memory: Averaging memory, as a share of the budget.
    """

    noise_scale: float
    noise_scale_end: float
    examples: int
    batch_size: int
    max_batch_size: int
    growth: str = "linear"
    optimizer: str = "adam"
    rule: Any = "auto"
    schedule: Any = "cosine"
    warmup: float = 0.05
    memory: float = 0.05

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: If one of them is impossible.
        """
        check_number("noise_scale", self.noise_scale, above=0)
        check_number("noise_scale_end", self.noise_scale_end, above=0)
        check_integer("batch_size", self.batch_size, at_least=1)
        check_integer("max_batch_size", self.max_batch_size, at_least=self.batch_size)
        check_integer("examples", self.examples, at_least=20 * self.batch_size)
        check_number("warmup", self.warmup, at_least=0, below=1)
        check_number("memory", self.memory, above=0, at_most=1)
        for name, value, allowed in (
            ("growth", self.growth, GROWTHS),
            ("optimizer", self.optimizer, tuple(OPTIMIZERS)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {join_names(allowed)}, got {show(value)}")

    def law(self, examples: Any) -> Any:
        """Return the true noise scale after so many examples."""
        share, ratio = np.clip(np.asarray(examples) / self.examples, 0, 1), self.noise_scale_end / self.noise_scale
        if self.growth == "linear":
            return self.noise_scale * (1 + share * (ratio - 1))
        if self.growth == "exponential":
            return self.noise_scale * ratio**share
        return self.noise_scale * (1 + share / 0.01) ** (np.log(ratio) / np.log(101))

    def resolved_rule(self) -> LearningRateRule:
        """Return the rule."""
        if self.rule == "auto":
            return rule_for_optimizer([OPTIMIZERS[self.optimizer]])
        return resolve_rule(self.rule, name="rule", auto=", or 'auto'")


class Fixed:
    """Keeps a batch size, or grows to it at the first chance."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def decide(self, situation: Situation, limits: Limits) -> Decision:
        """Return the batch size."""
        return Decision(batch_size=self.batch_size, reason=f"fixed at {self.batch_size}", code="fixed")


@dataclass(frozen=True, eq=False)
class _Reference:
    """The reference run, as functions of the examples seen.

    Attributes:
        examples: Where it was looked at.
        trace: The noise's trace.
        grad_sq: The expected squared norm of the gradient.
        rate: The highest learning rate, relative to the inverse of the largest curvature.
    """

    examples: Array
    trace: Array
    grad_sq: Array
    rate: float


class Training:
    """The model's training, in expectation; a `World`.

    Args:
        numbers: The user's.
        reference: The reference run.
        rates: Highest learning rates, to train several times at once; by default that of the reference run.
    """

    def __init__(self, numbers: Numbers, reference: _Reference, rates: Any = None) -> None:
        steps = numbers.examples / numbers.batch_size
        self.numbers, self.reference = numbers, reference
        self.base = np.asarray(reference.rate if rates is None else rates, dtype=np.float64)[..., None]
        self.curvature: Array = np.geomspace(1.0, 0.1 / steps, MODES)
        share: Array = self.curvature**NOISE_EXPONENT
        self.noise_shares = share / share.sum()
        moments: Array = self.curvature ** (LOSS_EXPONENT - 1)
        self.moments = np.broadcast_to(moments, (*self.base.shape[:-1], MODES)).copy()

    @property
    def loss(self) -> Any:
        """Expected loss above the optimum."""
        return (self.curvature * self.moments).sum(-1) / 2

    @property
    def grad_sq(self) -> Any:
        """Expected squared norm of the true gradient."""
        return (self.curvature**2 * self.moments).sum(-1)

    def truth(self, examples_seen: float) -> tuple[float, float]:  # noqa: D102
        return float(np.interp(examples_seen, self.reference.examples, self.reference.trace)), float(self.grad_sq)

    def train(self, examples_seen: float, batch_size: int, steps: int, rate: float) -> None:  # noqa: D102
        middle, reference = examples_seen + batch_size * steps / 2, self.reference
        trace = np.interp(middle, reference.examples, reference.trace)
        rates = self.base * rate
        if self.numbers.optimizer == "adam":
            usual = np.interp(middle, reference.examples, reference.grad_sq) + trace / self.numbers.batch_size
            rates = rates * np.sqrt(usual / (self.grad_sq[..., None] + trace / batch_size))
        kept = (1 - rates * self.curvature) ** 2
        added = rates**2 * trace / batch_size * self.noise_shares
        with np.errstate(all="ignore"):
            sums = np.where(kept == 1, steps, (1 - kept**steps) / np.where(kept == 1, 1.0, 1 - kept))
            self.moments = np.minimum(kept**steps * self.moments + added * sums, 1e100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one policy does.

    Attributes:
        policy: Its name.
        final_batch_size: The last batch size, in examples.
        steps: Optimizer steps.
        examples: Examples seen.
        loss: The loss at the end, relative to the start batch held to the end.
        stretches: The run.
        losses: The loss after each stretch, relative to the same.
    """

    policy: str
    final_batch_size: int
    steps: int
    examples: int
    loss: float
    stretches: tuple[Stretch, ...] = field(repr=False)
    losses: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What each policy would do.

    Attributes:
        numbers: The user's numbers.
        rule: Name of the rule.
        measure_every: A window is measured if it contains one loader batch in so many; more than 8 in long runs, to
            answer in seconds.
        rows: The start batch held to the end, then the policies.
    """

    numbers: Numbers
    rule: str
    measure_every: int
    rows: tuple[Row, ...]


def forecast(
    numbers: Numbers, *, policies: Sequence[str] | None = None, fixed: Sequence[int] = (), seed: int = 0
) -> Forecast:
    """Simulate each policy.

    Args:
        numbers: The user's numbers.
        policies: Names of policies; by default all that need no more than a name.
        fixed: Batch sizes to compare with, each held from the end of the warmup on.
        seed: Of the measurements.

    Returns:
        The outcome.

    Raises:
        ValueError: If a name or a number is not possible.
    """  # noqa: DOC502
    rule, schedule = numbers.resolved_rule(), resolve_schedule(numbers.schedule)
    loader_batches = numbers.examples // numbers.batch_size
    measure_every = max(8, -(-loader_batches // MOST_LOOKS))
    chosen: dict[str, Any] = {f"fixed {numbers.batch_size}": Fixed(numbers.batch_size)}
    chosen |= {name: resolve_policy(name) for name in (POLICIES if policies is None else policies)}
    for size in fixed:
        chosen[f"fixed {size}"] = Fixed(check_integer("fixed", size, at_least=numbers.batch_size))
    reference = _reference_run(numbers, schedule)
    runs: dict[str, tuple[list[Stretch], list[float]]] = {}
    for name, policy in chosen.items():
        is_fixed = isinstance(policy, Fixed)
        control = Control(
            policy=policy,
            rule=rule,
            schedule=schedule,
            loader_batch=numbers.batch_size,
            max_batch_size=max(numbers.max_batch_size, policy.batch_size) if is_fixed else numbers.max_batch_size,
            total_examples=loader_batches * numbers.batch_size,
            warmup=numbers.warmup,
            memory=numbers.memory,
            # Nothing that is fixed needs a measurement.
            measure_every=max(measure_every, loader_batches // 100) if is_fixed else measure_every,
        )
        world, stretches, losses = Training(numbers, reference), list[Stretch](), list[float]()
        for stretch in controlled(control, world, np.random.default_rng(seed)):
            stretches.append(stretch)
            losses.append(float(world.loss))
        runs[name] = stretches, losses
    unit = next(iter(runs.values()))[1][-1]
    rows = tuple(_row(name, stretches, losses, unit) for name, (stretches, losses) in runs.items())
    return Forecast(numbers=numbers, rule=rule.name, measure_every=measure_every, rows=rows)


def _row(name: str, stretches: Sequence[Stretch], losses: Sequence[float], unit: float) -> Row:
    return Row(
        policy=name,
        final_batch_size=stretches[-1].batch_size,
        steps=sum(stretch.steps for stretch in stretches),
        examples=stretches[-1].examples_seen,
        loss=losses[-1] / unit,
        stretches=tuple(stretches),
        losses=tuple(loss / unit for loss in losses),
    )


def _reference_run(numbers: Numbers, schedule: Schedule) -> _Reference:
    """Find the noise with which the best run of the start batch follows the law, by a fixed-point iteration."""
    steps, size = numbers.examples // numbers.batch_size, numbers.batch_size
    edges = np.unique(np.linspace(0, steps, PARTS + 1).astype(int))
    examples = (edges * size).astype(np.float64)
    law, rates = numbers.law(examples), np.geomspace(1e-4, 1.0, 40)
    found = _Reference(examples, law * float(Training(numbers, _nothing()).grad_sq), np.zeros_like(law), 1.0)
    for _ in range(ROUNDS):
        world = Training(replace(numbers, optimizer="sgd"), found, rates)
        grad_sq = [np.broadcast_to(world.grad_sq, rates.shape)]
        for first, last in pairwise(edges):
            factor = schedule.factor((first + last) / 2 * size, steps * size, numbers.warmup * steps * size)
            world.train(float(first * size), size, int(last - first), factor)
            grad_sq.append(world.grad_sq)
        best = int(world.loss.argmin())
        followed = np.asarray(grad_sq)[:, best]
        found = _Reference(examples, np.sqrt(found.trace * law * followed), followed, float(rates[best]))
    return found


def _nothing() -> _Reference:
    return _Reference(np.zeros(1), np.zeros(1), np.zeros(1), 1.0)
