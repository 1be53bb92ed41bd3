"""The control under measurement noise: real averages, policy, rule and limits, fed by simulated gradients.

Everything that decides is the package's own: `MeasuredWindows` with its averages, `BatchState` with policy and rule.
Simulated are the window's sums (exact in distribution for Gaussian gradients and for heavy-tailed ones) and what
training does to the true noise scale (a `World`). A run advances from one measured window to the next, and asks the
policy there; a real run asks it after every window, and receives a window's sums one window later.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from lightning_bsscale.theory.controller import BatchState
from lightning_bsscale.theory.estimate import Averages, NoiseScale
from lightning_bsscale.theory.frozen import changed
from lightning_bsscale.theory.measured import ClosedWindow, MeasuredWindows
from lightning_bsscale.theory.moments import WindowMoments
from lightning_bsscale.theory.policies import Limits, Situation, SupportsDecide
from lightning_bsscale.theory.records import DecisionRecord, WindowSums
from lightning_bsscale.theory.rules import Constant, LearningRateRule
from lightning_bsscale.theory.schedules import Schedule, WarmupConstant

__all__ = ["Control", "FalseGrowths", "Still", "Stretch", "World", "controlled", "false_growths", "sampled_sums"]


class World(Protocol):
    """What is trained: it knows its true noise, and changes as it is trained."""

    def truth(self, examples_seen: float) -> tuple[float, float]:
        """Return tr(Sigma) and the squared norm of the true gradient."""
        ...

    def train(self, examples_seen: float, batch_size: int, steps: int, rate: float) -> None:
        """Train some steps at one batch size and one factor on the learning rate."""
        ...


@dataclass(frozen=True, slots=True)
class Still:
    """A world whose noise scale, in examples, stays as it is."""

    noise_scale: float

    def truth(self, examples_seen: float) -> tuple[float, float]:  # noqa: D102
        return self.noise_scale, 1.0

    def train(self, examples_seen: float, batch_size: int, steps: int, rate: float) -> None:  # noqa: D102
        pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The settings of a simulated run, named as those of `BatchSizeScaler`.

    Attributes:
        policy: Any object with `decide(situation, limits)`.
        loader_batch: Examples of one loader batch, which is also the first batch size.
        max_batch_size: Largest batch size, in examples.
        total_examples: The budget, in examples.
        rule: How the learning rate follows the batch.
        schedule: Factor on the learning rate.
        warmup: Share of the budget before the batch may grow.
        memory: Share of the budget over which a window's weight falls to 1/e.
        measure_every: A window is measured if it contains one loader batch in so many.
        samples: Most gradients that a measured window is divided into, at least 2.
        directions: Independent directions of the noise; fewer make a window's trace more uncertain.
        tail: Degrees of freedom of Student's t, above 2, with one factor for a whole example; infinite for Gaussian
            noise.
    """

    policy: SupportsDecide
    loader_batch: int
    max_batch_size: int
    total_examples: int
    rule: LearningRateRule = field(default_factory=Constant)
    schedule: Schedule = field(default_factory=WarmupConstant)
    warmup: float = 0.05
    memory: float = 0.05
    measure_every: int = 8
    samples: int = 2
    directions: int = 1000
    tail: float = math.inf


class Stretch(NamedTuple):
    """The windows from one measured window to the next.

    Attributes:
        examples_seen: Examples at its end.
        steps: Optimizer steps in it.
        batch_size: Their batch size, in examples.
        rate: Factor on the learning rate, of schedule and rule together.
        true_scale: The true noise scale at its end, in examples.
        remembered_scale: Ratio of the weighted means of the true trace and squared norm over the measured windows, with
            the weights of the averages: what the estimate estimates.
        noise: The estimate at its end, or None.
        record: The decision at its end, or None during warmup.
    """

    examples_seen: int
    steps: int
    batch_size: int
    rate: float
    true_scale: float
    remembered_scale: float
    noise: NoiseScale | None
    record: DecisionRecord | None


def sampled_sums(
    rng: np.random.Generator,
    *,
    samples: int,
    examples: int,
    trace: float,
    grad_sq: float,
    directions: int,
    tail: float = math.inf,
) -> WindowSums:
    """Draw the sums of a measured window, exact in distribution, without the vectors.

    Along the true gradient each sample's gradient is normal. Across it, the squared norm of the mean and the scatter
    around the mean are independent chi-squares.

    With a tail, the noise of each example has a factor of its own, ``(tail - 2) / chi-square(tail)`` on its variance,
    and a sample is normal given its examples' factors. Across the true gradient the samples' inner products are then
    those of normal vectors of unequal lengths: a Wishart matrix, drawn by its triangular root (Bartlett 1933,
    Proceedings of the Royal Society of Edinburgh 53).

    Args:
        rng: The random generator.
        samples: Gradients in the window, of equal size, at least 2.
        examples: Examples in the window.
        trace: tr(Sigma).
        grad_sq: Squared norm of the true gradient.
        directions: Independent directions of the noise, more than `samples`.
        tail: Degrees of freedom of Student's t, above 2; infinite for Gaussian noise.

    Returns:
        The sums.
    """
    variance = trace / directions * samples / examples
    if tail == math.inf:
        along = math.sqrt(grad_sq) + math.sqrt(variance) * rng.standard_normal(samples)
        across_mean = variance / samples * float(rng.chisquare(directions - 1))
        across = variance * float(rng.chisquare((samples - 1) * (directions - 1)))
        sum_sq_norms = float((along**2).sum()) + across + samples * across_mean
    else:
        factors = (tail - 2) / rng.chisquare(tail, (samples, max(1, round(examples / samples))))
        deviations = np.sqrt(variance * factors.mean(1))
        along = math.sqrt(grad_sq) + deviations * rng.standard_normal(samples)
        root = np.tril(rng.standard_normal((samples, samples)), -1)
        root += np.diag(np.sqrt(rng.chisquare(directions - 1 - np.arange(samples))))
        vectors = deviations[:, None] * root
        across_mean = float((vectors.mean(0) ** 2).sum())
        sum_sq_norms = float((along**2).sum() + (vectors**2).sum())
    return WindowSums(
        sum_sq_norms=sum_sq_norms,
        mean_sq_norm=float(along.mean()) ** 2 + across_mean,
        num_samples=samples,
        sum_inverse_sizes=samples**2 / examples,
        examples=examples,
    )


def controlled(control: Control, world: World, rng: np.random.Generator) -> Iterator[Stretch]:
    """Run the control over a whole budget.

    Args:
        control: The settings.
        world: What is trained.
        rng: The random generator of the measurements.

    Yields:
        The stretches, in order.
    """
    unit, total = control.loader_batch, control.total_examples
    limits = Limits(granularity=unit, min_batch_size=unit, max_batch_size=max(unit, control.max_batch_size))
    batch, measured = BatchState.begin(unit, control.rule), MeasuredWindows()
    seen, steps, warmup = 0, 0, control.warmup * total
    truth, memory = Averages(), control.memory * total
    while total - seen >= unit:
        size = min(batch.batch_size, (total - seen) // unit * unit)
        count = _windows_to_next_measured(seen // unit, size // unit, control, in_warmup=seen < warmup)
        count = min(count, (total - seen) // size)
        rate = batch.lr_scale * control.schedule.factor(seen + count * size / 2, total, warmup)
        world.train(seen, size, count, rate)
        seen, steps = seen + count * size, steps + count
        trace, grad_sq = world.truth(seen)
        samples = max(2, min(control.samples, size // unit))
        sums = sampled_sums(
            rng,
            samples=samples,
            examples=size,
            trace=trace,
            grad_sq=grad_sq,
            directions=control.directions,
            tail=control.tail,
        )
        exact = WindowMoments(
            trace=trace, grad_sq=grad_sq, num_samples=samples, examples=size, harmonic_size=size / samples
        )
        truth = truth.updated(exact, examples_since_last=count * size, memory=memory)
        closed = ClosedWindow(
            examples_seen=seen,
            optimizer_steps=steps,
            batch_size=size,
            loader_batches=size // unit,
            lr=rate,
            lr_scale=batch.lr_scale,
        )
        measured = measured.added(sums, closed, memory=memory)
        measured = changed(measured, history=measured.history[-1:])
        before, record = batch, None
        if seen >= warmup:
            situation = _situation(control, batch, measured.noise, seen, steps)
            decided = batch.decided(situation, policy=control.policy, rule=control.rule, limits=limits)
            batch, record = decided.batch, decided.record
        scales = trace / grad_sq, truth.trace / truth.grad_sq
        yield Stretch(seen, count, before.batch_size, rate, *scales, measured.noise, record)


def _windows_to_next_measured(before: int, length: int, control: Control, *, in_warmup: bool) -> int:
    """Count the windows up to the next measured one, as `open_window` does."""
    if (in_warmup and length > 1) or length >= control.measure_every:
        return 1
    to_due = -before % control.measure_every
    return to_due // length + 1


def _situation(control: Control, batch: BatchState, noise: NoiseScale | None, seen: int, steps: int) -> Situation:
    warmup = control.warmup * control.total_examples
    return Situation(
        batch_size=batch.batch_size,
        start_batch_size=batch.start_batch_size,
        examples_seen=seen,
        total_examples=control.total_examples,
        warmup_examples=warmup,
        optimizer_steps=steps,
        schedule_factor=control.schedule.factor(seen, control.total_examples, warmup),
        examples_at_last_change=batch.examples_at_last_change,
        noise=noise,
        memory=control.memory * control.total_examples,
    )


class FalseGrowths(NamedTuple):
    """What many runs did, against the true noise scale of the moment.

    Attributes:
        share: Share of runs that grew to a batch beyond what the true noise scale allows.
        on_high_bound: Share of runs that grew at all on a bound above the truth.
        on_high_mean_bound: Share of runs that grew at all on a bound above the true mean over the memory, which is what
            the bound promises to be below. The same as `on_high_bound` where the truth stands still.
        final: Mean of the last batch size, as a share of what the truth allows at the end.
        largest: The largest batch size that any run grew to, as a share of what the truth allowed then.
    """

    share: float
    on_high_bound: float
    on_high_mean_bound: float
    final: float
    largest: float


def false_growths(control: Control, world: World, *, target_ratio: float, runs: int, seed: int) -> FalseGrowths:
    """Count the false growths of many runs.

    Args:
        control: The settings.
        world: What is trained. It must not remember being trained, because all runs share it.
        target_ratio: The batch that the truth allows, as a share of the noise scale.
        runs: Number of runs.
        seed: Of the measurements.

    Returns:
        The counts.
    """
    rows = []
    for run in range(runs):
        beyond, high, above_mean, size = 0.0, False, False, control.loader_batch
        for stretch in controlled(control, world, np.random.default_rng((seed, run))):
            record, truth = stretch.record, stretch.true_scale
            if record is not None and record.batch_size > record.situation.batch_size:
                size, bound = record.batch_size, record.decision.bound or 0.0
                beyond = max(beyond, size / (target_ratio * truth))
                high, above_mean = high or bound > truth, above_mean or bound > stretch.remembered_scale
        rows.append((beyond > 1, high, above_mean, size / (target_ratio * truth), beyond))
    share, on_high_bound, on_high_mean_bound, final, largest = np.array(rows, dtype=np.float64).T
    return FalseGrowths(
        float(share.mean()),
        float(on_high_bound.mean()),
        float(on_high_mean_bound.mean()),
        float(final.mean()),
        float(largest.max()),
    )
