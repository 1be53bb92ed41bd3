r"""The critical batch from branches: what an example is worth in a larger batch, measured instead of derived.

From one state of training, branches continue with the batches ``b = k B`` over the same examples in the same order,
with the learning rate by the rule. Let ``D(b)`` be the expected decrease of the loss on held-out examples, and ``b0``
the smallest batch. An example of a branch is worth ``D(b) / D(b0)`` of one in a batch of ``b0``. By the hyperbola
(tradeoff.py) an example is worth ``1 / (1 + b / B_crit)`` of one in a very small batch, so that at ``b = B_crit``

    D(b) / D(b0) = (1 + b0 / b) / 2

**That equation defines B_crit here.** It contains no tolerance, it is what ``B_crit`` means elsewhere in this package
(half the worth of an example), and for short branches at the best learning rate of each batch it is B_noise: a step
then makes the progress ``dL_max / (1 + B_noise / b)``, so that ``D(b)`` is proportional to ``1 / (b + B_noise)``.

Each offset (another part of the data, from the same state) gives one number for each batch,

    X(b) = (start - loss(b)) - (1 + b0 / b) / 2 * (start - loss(b0)),

whose mean is above zero exactly for the batches below ``B_crit``. Offsets are the independent repetitions; the held-out
examples are the same for all branches, so that their choice cancels to a large part. Student's t of X over the offsets
tests each batch, upwards and downwards, each with the probability (1 - confidence) / 2 shared among the batches that
are judged (Bonferroni). So with at least the confidence, no batch is called below or above wrongly, and the interval
from the largest batch below to the smallest one above covers ``B_crit``. This assumes that X changes its sign once;
where a batch is above and a larger one below, nothing is resolved. (Testing in order, from the smallest batch, needs no
correction, but one noisy small batch then hides what every larger one shows.)

Merrill et al. 2025 (arXiv 2505.23971) ask for the largest batch whose loss is *not worse* than that of all smaller
ones, by a tolerance in the loss. Without a tolerance that batch is always smaller the longer one measures; with one it
is the other definition here: every difference to a smaller batch must be significantly below the tolerance (no
correction: all must hold), or one of them significantly above (Bonferroni again: any may).

Where it stops being true: a learning rate that does not fit the smallest branch; branches so short that the loss still
follows the change of the learning rate; optima where the batch matters for more than the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Any

from lightning_bsscale.theory.checks import check_number
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.fieller import student_t_quantile

__all__ = ["BranchAnswer", "BranchRow", "Ratio", "Verdict", "critical_batch", "ratio_to_noise_scale"]


class Verdict(str, Enum):
    """What the branches say of one batch."""

    REFERENCE = "the smallest batch"
    BELOW = "below the critical batch"
    ABOVE = "above the critical batch"
    OPEN = "undecided"
    DIVERGED = "diverged: above the critical batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchRow:
    """One batch of the branches.

    Attributes:
        batch_size: Examples per optimizer step.
        loss: Mean loss on the held-out examples over the offsets.
        worth: Decrease of the loss relative to the smallest batch: what an example is worth, relative to one there.
        needed: The worth at which this batch would be the critical one; NaN with a tolerance.
        margin: Mean of X (see the module): above zero below the critical batch.
        error: Standard error of the margin over the offsets.
        verdict: What the test says.
    """

    batch_size: float
    loss: float
    worth: float
    needed: float
    margin: float
    error: float
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchAnswer:
    """The critical batch by branching.

    Attributes:
        value: Point estimate in examples, by interpolation; NaN if the margins do not change their sign.
        low: Largest batch that is significantly below the critical one, in examples; 0 if there is none.
        high: Smallest batch that is significantly above, in examples; infinite if there is none.
        confidence: At least so probable does the interval cover the critical batch.
        resolved: Whether the interval has two ends.
        reason: What was found, in one sentence.
        rows: One for each batch, from the smallest.
        offsets: Number of offsets.
    """

    value: float
    low: float
    high: float
    confidence: float
    resolved: bool
    reason: str
    rows: tuple[BranchRow, ...]
    offsets: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A ratio with its interval; an unknown value is NaN, and an unknown end 0 or infinite."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """Return the numbers for a JSON file: unknown ones are None."""
        values = {"value": self.value, "low": self.low, "high": self.high}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}


def critical_batch(
    batch_sizes: Sequence[float],
    start_loss: float,
    losses: Sequence[Sequence[float]],
    *,
    confidence: float = 0.9,
    tolerance: float | None = None,
) -> BranchAnswer:
    """Compute the critical batch from the losses of branches.

    Args:
        batch_sizes: The batch of each branch, in examples, ascending; at least two.
        start_loss: Loss on the held-out examples before the branches.
        losses: For each offset, the loss on the same held-out examples after each branch; at least two offsets.
        confidence: Two-sided confidence of the interval, between 0 and 1.
        tolerance: Ask for the largest batch that is not worse than any smaller one by more than this loss. None for
            the definition by the worth of an example.

    Returns:
        The critical batch with its interval.

    Raises:
        ValueError: If there are too few branches or offsets, or their numbers disagree.

    Example:
        Progress 1/(1 + b/64), in batches of 16 to 256, with small deviations in three offsets:

        >>> sizes = [16, 32, 64, 128, 256]
        >>> losses = [[2 - 1 / (1 + b / (64 + shift)) for b in sizes] for shift in (-1, 0, 2)]
        >>> answer = critical_batch(sizes, 2.0, losses)
        >>> answer.low, answer.high, answer.resolved
        (32, 128, True)
        >>> 60 < answer.value < 70
        True
    """
    sizes = [check_number("batch_sizes", size, above=0) for size in batch_sizes]
    check_number("confidence", confidence, above=0, below=1)
    if len(sizes) < 2 or sorted(set(sizes)) != sizes:
        raise ValueError(f"batch_sizes must be at least two, each larger than the one before, got {list(batch_sizes)}")
    if len(losses) < 2 or any(len(row) != len(sizes) for row in losses):
        raise ValueError(
            f"losses must have at least two offsets with {len(sizes)} losses each, got {[len(row) for row in losses]}"
        )
    if tolerance is not None:
        check_number("tolerance", tolerance, at_least=0)
    progress = [[start_loss - loss for loss in row] for row in losses]
    tail = (1 - confidence) / 2
    each = tail / (len(sizes) - 1)
    rows = [_row(batch_sizes, losses, progress, index, each, tolerance) for index in range(len(sizes))]
    reference = [row[0] for row in progress]
    if not all(map(math.isfinite, reference)) or (tolerance is None and _bounds(reference, tail)[0] <= 0):
        reason = "Not resolved: the smallest batch made no progress that stands out from its noise; branch for longer"
        if not all(map(math.isfinite, reference)):
            reason = "Not resolved: the branch of the smallest batch diverged"
        opened = (_opened(row) for row in rows)
        return BranchAnswer(
            value=math.nan,
            low=0.0,
            high=math.inf,
            confidence=confidence,
            resolved=False,
            reason=reason,
            rows=tuple(opened),
            offsets=len(losses),
        )
    low = max((index for index, row in enumerate(rows) if row.verdict is Verdict.BELOW), default=0)
    above = (Verdict.ABOVE, Verdict.DIVERGED)
    high = min((index for index, row in enumerate(rows) if row.verdict in above), default=0)
    is_contradictory = 0 < high < low
    if is_contradictory:
        low = high = 0
    ends = (batch_sizes[low] if low else 0.0, batch_sizes[high] if high else math.inf)
    return BranchAnswer(
        value=_interpolated(rows, *ends),
        low=ends[0],
        high=ends[1],
        confidence=confidence,
        resolved=bool(low and high),
        reason=_CONTRADICTION if is_contradictory else _reason(*ends, batch_sizes),
        rows=tuple(rows),
        offsets=len(losses),
    )


def _row(
    batch_sizes: Sequence[float],
    losses: Sequence[Sequence[float]],
    progress: Sequence[Sequence[float]],
    index: int,
    tail: float,
    tolerance: float | None,
) -> BranchRow:
    made, first = [row[index] for row in progress], sum(row[0] for row in progress)
    needed = (1 + batch_sizes[0] / batch_sizes[index]) / 2 if tolerance is None else math.nan
    margins, verdict = [math.nan], Verdict.REFERENCE
    if not all(map(math.isfinite, made)):
        verdict = Verdict.DIVERGED
    elif index and tolerance is None:
        margins = [of_this - needed * row[0] for of_this, row in zip(made, progress, strict=True)]
        low, high = _bounds(margins, tail)
        verdict = Verdict.BELOW if low > 0 else Verdict.ABOVE if high < 0 else Verdict.OPEN
    elif index and tolerance is not None:
        finite = [j for j in range(index) if all(math.isfinite(row[j]) for row in losses)]
        against = [[tolerance - (row[index] - row[j]) for row in losses] for j in finite]
        margins = min(against, key=sum)
        is_below = all(_bounds(one, tail)[0] > 0 for one in against)
        is_above = any(_bounds(one, tail / len(against))[1] < 0 for one in against)
        verdict = Verdict.BELOW if is_below else Verdict.ABOVE if is_above else Verdict.OPEN
    mean, error = _mean_and_error(margins)
    return BranchRow(
        batch_size=batch_sizes[index],
        loss=sum(row[index] for row in losses) / len(losses),
        worth=sum(made) / first if first > 0 else math.nan,
        needed=needed,
        margin=mean,
        error=error,
        verdict=verdict,
    )


def _opened(row: BranchRow) -> BranchRow:
    verdict = row.verdict if row.verdict in (Verdict.REFERENCE, Verdict.DIVERGED) else Verdict.OPEN
    return BranchRow(
        batch_size=row.batch_size,
        loss=row.loss,
        worth=math.nan,
        needed=row.needed,
        margin=row.margin,
        error=row.error,
        verdict=verdict,
    )


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    count, mean = len(values), sum(values) / len(values)
    if count < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)


def _bounds(values: Sequence[float], tail: float) -> tuple[float, float]:
    mean, error = _mean_and_error(values)
    reach = student_t_quantile(1 - tail, len(values) - 1) * error
    return mean - reach, mean + reach


def _interpolated(rows: Sequence[BranchRow], low: float, high: float) -> float:
    # The first change of sign of the mean margin, linear in the logarithm of the batch.
    for one, other in pairwise(rows[1:]):
        if one.margin >= 0 > other.margin:
            share = one.margin / (one.margin - other.margin)
            distance = share * math.log(other.batch_size / one.batch_size)
            return min(max(one.batch_size * math.exp(distance), low), high)
    return math.nan


_CONTRADICTION = "Not resolved: a batch is above the critical one, and a larger one below; branch for longer"


def _reason(low: float, high: float, batch_sizes: Sequence[float]) -> str:
    if low and high < math.inf:
        return f"The critical batch is between {low:,g} and {high:,g}"
    if low == batch_sizes[-1]:
        return f"Not resolved: the critical batch is above {low:,g}, the largest that was tried"
    if high == batch_sizes[1]:
        return f"Not resolved: the critical batch is below {high:,g}, the smallest that can be judged"
    if not low and math.isinf(high):
        return "Not resolved: no batch could be told from the critical one; more offsets or longer branches are needed"
    known = f"above {low:,g}" if low else f"below {high:,g}"
    return f"Not resolved: the critical batch is {known}; more offsets or longer branches are needed"


def ratio_to_noise_scale(answer: BranchAnswer, noise: NoiseScale) -> Ratio:
    """Divide the critical batch by the noise scale: what `target_ratio` of the policy should be.

    Args:
        answer: The critical batch, with confidence 1 - a.
        noise: The noise scale at the same parameters, with the same confidence.

    Returns:
        The ratio; its value is unknown unless both are resolved. Its interval is of the ends, so that it covers with
        at least the confidence 1 - 2 a.
    """
    value = answer.value / noise.noise_scale if answer.resolved and noise.resolved else math.nan
    low = answer.low / noise.high if noise.high > 0 else 0.0
    return Ratio(value=value, low=low, high=answer.high / noise.low if noise.low > 0 else math.inf)
