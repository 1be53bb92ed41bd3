"""The noise scale in words: what was measured, from how many windows, or why nothing was."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_bsscale.theory.estimate import NoiseScale, noise_scale_from_means
from lightning_bsscale.theory.numbers import describe_count, describe_number
from lightning_bsscale.verdict.facts import RunFacts

__all__ = [
    "Said",
    "describe_measured",
    "explain_unmeasured",
    "measure_more",
    "more_windows",
    "windows_needed",
    "with_windows",
]

MOST_TIMES = 64
"""Largest multiple of the windows that a forecast looks at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A part of a verdict.

    Attributes:
        reasons: Sentences with numbers.
        next_steps: What to change.
    """

    reasons: tuple[str, ...] = ()
    next_steps: tuple[str, ...] = ()


def describe_measured(facts: RunFacts) -> tuple[str, ...]:
    """Say what the noise scale is, and how many windows stand behind it."""
    noise, unit = facts.noise, facts.profile.unit
    if noise is None:
        return ()
    windows = max(1, round(noise.effective_windows))
    many = f"from {describe_count(windows)} windows" if windows > 1 else "from one window"
    if facts.measured_windows > windows:
        counts = f"the last {describe_count(windows)} or so count" if windows > 1 else "only the last one or so counts"
        many = f"from {describe_count(facts.measured_windows)} windows ({counts})"
    confidence = f"({100 * noise.confidence:.3g} %)"
    if noise.resolved:
        interval = f"[{describe_count(noise.low)}, {describe_count(noise.high)}] {confidence}"
        return (f"Noise scale about {describe_count(noise.noise_scale, unit)} {interval} {many}.",)
    least = f": at least {describe_count(noise.low, unit)} {confidence}" if noise.low > 0 else ""
    return (f"The noise scale is not resolved{least} {many}.",)


def explain_unmeasured(facts: RunFacts) -> Said:
    """Say why there is no noise scale, and what to change."""
    numbers, steps = facts.numbers, describe_count(facts.optimizer_steps)
    if facts.found_changed:
        return Said(
            reasons=("Other code changes the gradients before the step, so nothing was measured.",),
            next_steps=("See the warning at the start of training.",),
        )
    if facts.dropped_windows and not facts.measured_windows:
        many = describe_count(facts.dropped_windows)
        return Said(
            reasons=(f"The gradient of all {many} measured windows was not finite (NaN or inf).",),
            next_steps=("Lower the learning rate, or clip the gradient (gradient_clip_val).",),
        )
    has_pair = numbers.samples_per_micro_batch > 1 or numbers.now.accumulate > 1
    if not has_pair and numbers.rows < 2:
        return Said(
            reasons=("A step has one loader batch with one row, which leaves no two gradients to compare.",),
            next_steps=("Use loader batches of at least two rows, or accumulate_grad_batches=2.",),
        )
    if not has_pair and not numbers.splits:
        why = "split=False" if facts.profile.split is False else "the model has batch normalisation"
        return Said(
            reasons=(f"A step has one loader batch, which is not split in two ({why}): no two gradients to compare.",),
            next_steps=("Use accumulate_grad_batches=2, or split=True.",),
        )
    few = "One window was" if facts.measured_windows == 1 else "No window was"
    return Said(
        reasons=(f"{few} measured in {steps} optimizer steps; an interval needs at least two.",),
        next_steps=(measure_more(facts),),
    )


def measure_more(facts: RunFacts) -> str:
    """Say how to measure more windows, as a next step."""
    return f"{_listed(['A longer run', *_ways(facts, 4)])} would measure more windows."


def _ways(facts: RunFacts, times: int) -> list[str]:
    """Return the options that give about so many times the windows."""
    every, total, noise = facts.numbers.measure_every, facts.numbers.total_examples, facts.noise
    ways = [f"measure_every={max(1, every // times)} (now {every})"] if every > 1 else []
    is_forgotten = noise is not None and facts.measured_windows >= 2 * noise.effective_windows
    if is_forgotten and total is not None and times * facts.numbers.memory <= total:
        share = facts.numbers.memory / total
        ways.append(f"memory={describe_number(times * share)} (now {describe_number(share)})")
    return ways


def _listed(ways: list[str]) -> str:
    return ways[0] if len(ways) == 1 else f"{', '.join(ways[:-1])} or {ways[-1]}"


def with_windows(noise: NoiseScale, times: float) -> NoiseScale:
    """Return the noise scale that so many times the windows would give, if they were like those so far.

    Args:
        noise: The noise scale.
        times: How many times the windows.

    Returns:
        The same means, with variances of as many windows: a forecast.
    """
    return noise_scale_from_means(
        trace=noise.trace,
        grad_sq=noise.grad_sq,
        trace_variance=noise.trace_variance / times,
        grad_sq_variance=noise.grad_sq_variance / times,
        covariance=noise.covariance / times,
        effective_windows=noise.effective_windows * times,
        confidence=noise.confidence,
        degrees_of_freedom=noise.degrees_of_freedom * times,
        third_moment=noise.third_moment / times**2,
    )


def windows_needed(noise: NoiseScale, needed_bound: float, confidence: float) -> int | None:
    """Forecast how many times the windows would resolve the noise scale, with a lower bound of at least a number.

    Args:
        noise: The noise scale.
        needed_bound: What its lower bound must reach.
        confidence: The one-sided confidence of that bound.

    Returns:
        A power of two; None if even `MOST_TIMES` would not, or the variances are not known.
    """
    if not (math.isfinite(noise.trace_variance) and math.isfinite(noise.grad_sq_variance)):
        return None
    times = 2
    while times <= MOST_TIMES:
        more = with_windows(noise, times)
        if more.resolved and more.lower_bound(confidence) >= needed_bound:
            return times
        times *= 2
    return None


def more_windows(facts: RunFacts, times: int, effect: str) -> str:
    """Say what so many times the windows would do, and how to get them, as a next step.

    Args:
        facts: The facts.
        times: How many times the windows.
        effect: What they would do, after "would".

    Returns:
        A sentence.
    """
    many = "twice" if times == 2 else f"{times} times"
    longer = f"a run of {many} as many {facts.profile.unit}"
    enough = _ways(facts, times) if facts.numbers.measure_every >= times else []
    ways = _listed([longer, *enough])
    return f"About {many} as many windows would {effect} (a forecast): {ways}."
