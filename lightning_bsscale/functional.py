"""Plain functions for measuring and using the noise scale: for loops without Lightning, notebooks, and planning.

Numbers may be Python or NumPy numbers, or tensors of one element; a tensor on a device is waited for. The formulas are
those of `lightning_bsscale.theory`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, SupportsFloat

from lightning_bsscale.gradients.fixed_parameters import measure_noise_scale
from lightning_bsscale.theory import tradeoff
from lightning_bsscale.theory.checks import as_number, as_numbers, check_number, show
from lightning_bsscale.theory.estimate import Averages, NoiseScale, noise_scale_from_means
from lightning_bsscale.theory.moments import window_moments
from lightning_bsscale.theory.rules import FactorPath, LearningRateRule, resolve_rule

__all__ = ["critical_batch_size", "measure_noise_scale", "noise_scale", "scale_learning_rate", "steps_and_examples"]


def noise_scale(
    micro_sq_norms: Iterable[Any],
    mean_sq_norm: Iterable[Any] | float,
    micro_batch_sizes: Iterable[Any],
    *,
    confidence: float = 0.9,
) -> NoiseScale | None:
    """Compute the gradient noise scale from the squared gradient norms of one optimizer step, or of several.

    A window consists of the micro-batches of one step, all at the same parameters, at least two of them. For several
    windows, pass a list with one entry per window for each of the first three arguments; windows may differ in number
    and size of their micro-batches.

    Args:
        micro_sq_norms: Squared norm of each micro-batch's own mean gradient, in gradient units squared.
        mean_sq_norm: Squared norm of the unweighted mean of these gradients, before clipping.
        micro_batch_sizes: Examples in each micro-batch.
        confidence: Two-sided confidence of the interval, between 0 and 1.

    Returns:
        The noise scale in examples with its interval. From a single window the interval is unknown, from 0 to infinity.
        None if no window was finite.

    Raises:
        ValueError: If the three arguments differ in their number of windows. A value that is not a number, or a
            negative norm, raises TypeError or ValueError with its position.

    Example:
        >>> noise_scale([9.0, 1.0], 4.0, [4, 4]).noise_scale
        2.6666666666666665
        >>> noise = noise_scale([[9.0, 1.0], [8.0, 2.0], [9.0, 2.0]], [4.0, 4.0, 4.5], [[4, 4], [4, 4], [4, 4]])
        >>> f"{noise.noise_scale:.2f} examples, between {noise.low:.2f} and {noise.high:.2f}"
        '2.53 examples, between 1.97 and 2.99'
    """
    # A 0-d array has the type of an iterable, but cannot be iterated over.
    if not isinstance(mean_sq_norm, Iterable) or getattr(mean_sq_norm, "ndim", None) == 0:
        norms = [sq_norms_of("micro_sq_norms", micro_sq_norms)]
        means = [sq_norm_of("mean_sq_norm", mean_sq_norm)]
        sizes = [as_numbers("micro_batch_sizes", micro_batch_sizes)]
    else:
        norms = [sq_norms_of(*window) for window in _windows("micro_sq_norms", micro_sq_norms)]
        means = sq_norms_of("mean_sq_norm", mean_sq_norm)
        sizes = [as_numbers(*window) for window in _windows("micro_batch_sizes", micro_batch_sizes)]
    if not len(norms) == len(means) == len(sizes):
        raise ValueError(
            "micro_sq_norms, mean_sq_norm and micro_batch_sizes must have one entry for each window, "
            f"got {len(norms)}, {len(means)} and {len(sizes)}"
        )
    averages = Averages()
    for window in zip(norms, means, sizes, strict=True):
        moments = window_moments(*window)
        averages = averages.updated(moments, examples_since_last=moments.examples, memory=math.inf)
    return noise_scale_of(averages, confidence)


def _windows(name: str, windows: Any) -> list[tuple[str, Any]]:
    if isinstance(windows, str) or not isinstance(windows, Iterable) or getattr(windows, "ndim", None) == 0:
        raise TypeError(f"{name} must have one entry for each window, as mean_sq_norm has, got {show(windows)}")
    return [(f"{name}[{index}]", window) for index, window in enumerate(windows)]


def sq_norm_of(name: str, value: Any) -> float:
    """Return a squared norm as a number of at least 0. NaN and infinity are accepted: an overflow drops its window."""
    norm = as_number(name, value)
    if norm < 0:
        raise ValueError(f"{name} must be at least 0, got {norm}")
    return norm


def sq_norms_of(name: str, values: Any) -> list[float]:
    """Return a sequence of squared norms as numbers of at least 0."""
    return [sq_norm_of(f"{name}[{index}]", norm) for index, norm in enumerate(as_numbers(name, values))]


def noise_scale_of(averages: Averages, confidence: float) -> NoiseScale | None:
    """Compute the noise scale, from a single window with infinite variances; None without any window."""
    noise = averages.noise_scale(confidence)
    if noise is not None or averages.windows == 0:
        return noise
    return noise_scale_from_means(
        trace=averages.trace / averages.weight,
        grad_sq=averages.grad_sq / averages.weight,
        trace_variance=math.inf,
        grad_sq_variance=math.inf,
        covariance=0.0,
        effective_windows=averages.effective_windows,
        confidence=confidence,
    )


def critical_batch_size(*, min_steps: SupportsFloat, min_examples: SupportsFloat) -> float:
    """Compute the critical batch from the two ends of the steps-examples hyperbola.

    It is the batch at which an example is worth half as much as in a very small batch. The noise scale is a proxy for
    it, and often differs by a factor of 1 to 4.

    Args:
        min_steps: Fewest steps to the loss in question (with a very large batch), above 0.
        min_examples: Fewest examples to that loss (with a very small batch), above 0.

    Returns:
        The critical batch, in examples.

    Example:
        >>> critical_batch_size(min_steps=1000, min_examples=64000)
        64.0
    """
    return tradeoff.critical_batch_size(
        min_steps=as_number("min_steps", min_steps), min_examples=as_number("min_examples", min_examples)
    )


def scale_learning_rate(
    lr: SupportsFloat,
    old_batch: SupportsFloat,
    new_batch: SupportsFloat,
    rule: str | LearningRateRule = "sqrt",
    *,
    noise_scale: NoiseScale | SupportsFloat | None = None,
    cap: float | None = None,
) -> float:
    """Compute the learning rate for another batch.

    Args:
        lr: The learning rate for `old_batch`, at least 0.
        old_batch: Examples per optimizer step, before.
        new_batch: Examples per optimizer step, after.
        rule: `"linear"` (SGD, small batches), `"sqrt"` (Adam family), `"power"`, `"saturating"` (SGD), `"surge"`
            (Adam family), `"none"`, or an object such as `Power(exponent=0.75)`.
        noise_scale: The noise scale for `"saturating"` and `"surge"`, in examples. Without a resolved one they use the
            square root.
        cap: Largest factor on the learning rate, at least 1; None for no ceiling.

    Returns:
        The learning rate for `new_batch`.

    Example:
        >>> scale_learning_rate(1e-3, 64, 256)
        0.002
        >>> scale_learning_rate(0.1, 64, 512, "saturating", noise_scale=512.0)
        0.45
    """
    if noise_scale is None or isinstance(noise_scale, NoiseScale):
        noise = noise_scale
    else:
        # A plain number is treated as exact.
        noise = noise_scale_from_means(
            trace=check_number("noise_scale", as_number("noise_scale", noise_scale), above=0),
            grad_sq=1.0,
            trace_variance=0.0,
            grad_sq_variance=0.0,
            covariance=0.0,
            effective_windows=math.inf,
            confidence=0.9,
        )
    chosen = resolve_rule(rule, cap=cap, name="rule")
    batches = as_number("old_batch", old_batch), as_number("new_batch", new_batch)
    factor = FactorPath().extended(chosen, *batches, noise).factor(chosen)
    return check_number("lr", as_number("lr", lr), at_least=0) * factor


def steps_and_examples(batch_size: SupportsFloat, critical_batch_size: SupportsFloat) -> tuple[float, float]:
    """Compute the cost of a batch: steps and examples to a given loss, relative to the fewest possible of each.

    Args:
        batch_size: Examples per optimizer step, above 0.
        critical_batch_size: The critical batch, in examples, above 0; the noise scale is a proxy for it.

    Returns:
        Steps relative to the fewest (`1 + critical / batch`), and examples relative to the fewest
        (`1 + batch / critical`).

    Example:
        >>> steps_and_examples(32, 64)
        (3.0, 1.5)
    """
    batch = as_number("batch_size", batch_size)
    critical = as_number("critical_batch_size", critical_batch_size)
    return tradeoff.relative_steps(batch, critical), tradeoff.relative_examples(batch, critical)
