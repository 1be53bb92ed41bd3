r"""The critical batch from branches: what an example is worth in a larger batch, measured instead of derived.

From one state of training, branches continue with the batches ``b = k B`` over the same ``E`` examples in the same
order, with the learning rate by the rule. Let ``L(b, n)`` be the expected loss on held-out examples after ``n``
examples in batches of ``b``, and ``b0`` the smallest batch. On the hyperbola (tradeoff.py) a loss costs examples in
proportion to ``1 + b / B_crit``, so that at ``b = B_crit`` the smallest batch needs ``(1 + b0 / b) / 2`` of them:

    L(b, E) = L(b0, (1 + b0 / b) / 2 * E)

**That equation defines B_crit here.** It contains no tolerance and compares at equal loss, as the hyperbola does, from
this state on and at the learning rates of the rule. For short branches at the best learning rate of each batch it is
B_noise: a step then makes the progress ``dL_max / (1 + B_noise / b)``. (At equal examples, with half the progress
instead of half the examples, B_crit comes out larger where a branch is long, as the loss falls ever more slowly.)

Each offset (another part of the data, from the same state) gives one number for each batch,

    X(b) = L(b0, (1 + b0 / b) / 2 * E) - L(b, E),

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

__all__ = ["BranchAnswer", "BranchRow", "Ratio", "Verdict", "critical_batch", "ratio_to_noise_scale", "shares_needed"]


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
        worth: Share of the examples after which the smallest batch has this loss: what an example is worth, relative
            to one there. Between the shares at which the smallest batch was looked at, it is interpolated.
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
    earlier: Sequence[Sequence[float]] = (),
    *,
    confidence: float = 0.9,
    tolerance: float | None = None,
) -> BranchAnswer:
    """Compute the critical batch from the losses of branches.

    Args:
        batch_sizes: The batch of each branch, in examples, ascending; at least two.
        start_loss: Loss on the held-out examples before the branches.
        losses: For each offset, the loss on the same held-out examples after each branch; at least two offsets.
        earlier: For each offset, the loss of the smallest batch after each of the shares `shares_needed` of its
            examples. Not used with a tolerance.
        confidence: Two-sided confidence of the interval, between 0 and 1.
        tolerance: Ask for the largest batch that is not worse than any smaller one by more than this loss. None for
            the definition by the worth of an example.

    Returns:
        The critical batch with its interval.

    Raises:
        ValueError: If there are too few branches or offsets, or their numbers disagree.

    Example:
        Batches of 16 to 256 whose examples are worth 1/(1 + b/64), with small deviations in three offsets:

        >>> sizes = [16, 32, 64, 128, 256]
        >>> fall = lambda worth: 2 - worth
        >>> losses = [[fall(1 / (1 + b / (64 + shift))) for b in sizes] for shift in (-1, 0, 2)]
        >>> earlier = [[fall(share / (1 + 16 / 64)) for share in shares_needed(sizes)] for _ in losses]
        >>> answer = critical_batch(sizes, 2.0, losses, earlier)
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
    elif len(earlier) != len(losses) or any(len(row) != len(sizes) - 1 for row in earlier):
        raise ValueError(
            f"earlier must have {len(losses)} offsets with {len(sizes) - 1} losses of the smallest batch each, got "
            f"{[len(row) for row in earlier]}"
        )
    tail = (1 - confidence) / 2
    each = tail / (len(sizes) - 1)
    reference = [start_loss - row[0] for row in losses]
    reason = ""
    if not all(map(math.isfinite, reference)):
        reason = "Not resolved: the branch of the smallest batch diverged"
    elif tolerance is None and _bounds(reference, tail)[0] <= 0:
        reason = "Not resolved: the smallest batch made no progress that stands out from its noise; branch for longer"
    curve = [] if reason or tolerance is not None else _mean_curve(sizes, start_loss, losses, earlier)
    rows = []
    for index, size in enumerate(batch_sizes):
        margins, verdict = [math.nan], Verdict.REFERENCE
        if not all(math.isfinite(row[index]) for row in losses):
            verdict = Verdict.DIVERGED
        elif index and reason:
            verdict = Verdict.OPEN
        elif index and tolerance is None:
            margins = [before[index - 1] - row[index] for before, row in zip(earlier, losses, strict=True)]
            verdict = _verdict(*_bounds(margins, each))
        elif index and tolerance is not None:
            margins, verdict = _by_tolerance(losses, index, each, tolerance)
        loss = sum(row[index] for row in losses) / len(losses)
        margin, error = _mean_and_error(margins)
        rows.append(
            BranchRow(
                batch_size=size,
                loss=loss,
                worth=_share_of(loss, curve),
                needed=math.nan if tolerance is not None else (1 + sizes[0] / sizes[index]) / 2,
                margin=margin,
                error=error,
                verdict=verdict,
            )
        )
    return _answer(rows, reason, confidence, len(losses))


def shares_needed(batch_sizes: Sequence[float]) -> list[float]:
    """Return the share of its examples at which the smallest batch is compared with each larger one."""
    return [(1 + batch_sizes[0] / size) / 2 for size in batch_sizes[1:]]


def _verdict(low: float, high: float) -> Verdict:
    return Verdict.BELOW if low > 0 else Verdict.ABOVE if high < 0 else Verdict.OPEN


def _by_tolerance(
    losses: Sequence[Sequence[float]], index: int, tail: float, tolerance: float
) -> tuple[list[float], Verdict]:
    """Judge a batch by its differences to all smaller ones; the margins are those of the largest difference."""
    finite = [j for j in range(index) if all(math.isfinite(row[j]) for row in losses)]
    against = [[tolerance - (row[index] - row[j]) for row in losses] for j in finite]
    is_below = all(_bounds(one, tail)[0] > 0 for one in against)
    is_above = any(_bounds(one, tail / len(against))[1] < 0 for one in against)
    return min(against, key=sum), Verdict.BELOW if is_below else Verdict.ABOVE if is_above else Verdict.OPEN


def _answer(rows: list[BranchRow], reason: str, confidence: float, offsets: int) -> BranchAnswer:
    """Read the interval from the verdicts; with a reason, nothing is resolved for it."""
    sizes = [row.batch_size for row in rows]
    above = (Verdict.ABOVE, Verdict.DIVERGED)
    low = max((index for index, row in enumerate(rows) if row.verdict is Verdict.BELOW), default=0)
    high = min((index for index, row in enumerate(rows) if row.verdict in above), default=0)
    if reason:
        low = high = 0
    elif 0 < high < low:
        low, high, reason = 0, 0, _CONTRADICTION
    ends = (sizes[low] if low else 0.0, sizes[high] if high else math.inf)
    return BranchAnswer(
        value=_interpolated(rows, *ends),
        low=ends[0],
        high=ends[1],
        confidence=confidence,
        resolved=bool(low and high),
        reason=reason or _reason(*ends, sizes),
        rows=tuple(rows),
        offsets=offsets,
    )


def _mean_curve(
    sizes: Sequence[float], start_loss: float, losses: Sequence[Sequence[float]], earlier: Sequence[Sequence[float]]
) -> list[tuple[float, float]]:
    """Return share and mean loss of the smallest batch from its start to its end."""
    number = len(losses)
    means = [sum(row[place] for row in earlier) / number for place in range(len(sizes) - 1)]
    looks = sorted(zip(shares_needed(sizes), means, strict=True))
    return [(0.0, start_loss), *looks, (1.0, sum(row[0] for row in losses) / number)]


def _share_of(loss: float, curve: list[tuple[float, float]]) -> float:
    """Return where the curve first falls to a loss; beyond its end in proportion to the whole fall."""
    if not curve or not math.isfinite(loss):
        return math.nan
    for (share, before), (next_share, after) in pairwise(curve):
        if after <= loss <= before and after < before:
            return share + (next_share - share) * (before - loss) / (before - after)
    start, end = curve[0][1], curve[-1][1]
    return (start - loss) / (start - end)


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
        return f"Not resolved: the critical batch is above {low:,g}, the largest that was tried; try larger ones"
    if high == batch_sizes[1]:
        return f"Not resolved: the critical batch is below {high:,g}, the smallest that can be judged; try smaller ones"
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
