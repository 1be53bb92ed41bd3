r"""One window's moments: unbiased estimates of noise and signal from squared norms and sizes.

A window's samples are gradients of separate groups of examples (usually its micro-batches), all at the same parameters.
Sample k has ``b_k`` examples and the mean gradient ``g_k``; the optimizer steps with the unweighted mean
``g = (1/K) sum g_k``. With

    m = (1/K) sum ||g_k||^2        M = ||g||^2        h = (1/K) sum 1/b_k    (1/h: harmonic mean size)

the window's estimates are

    S  = (m - M) K / ((K - 1) h)       of tr(Sigma), the trace of the covariance of one example's gradient
    G2 = (K M - m) / (K - 1)           of ||G||^2, the squared norm of the true gradient

Both are unbiased, for unequal sizes too. Proof: with independent examples, ``E g_k = G`` and
``Cov g_k = Sigma / b_k``. For any random vector, ``E||x||^2 = ||E x||^2 + tr Cov x``, so

    E||g_k||^2 = ||G||^2 + tr(Sigma) / b_k               hence   E m = ||G||^2 + tr(Sigma) h
    Cov g = (1/K^2) sum Sigma / b_k = Sigma h / K        hence   E M = ||G||^2 + tr(Sigma) h / K

    E(m - M)   = tr(Sigma) h (K - 1) / K                 hence   E S  = tr(Sigma)
    E(K M - m) = (K - 1) ||G||^2                         hence   E G2 = ||G||^2                            QED

The proof never uses equal ``b_k``: it is exact because of the unweighted mean and the *harmonic* size.

Where the optimizer steps with a weighted mean ``g = sum v_k g_k``, ``sum v_k = 1`` (a window's micro-batches may
consist of different numbers of loader batches, or of unequal parts of one), the samples get the same weights:

    m = sum v_k ||g_k||^2    h = sum v_k / b_k    q = sum v_k^2 / b_k
    S = (m - M) / (h - q)        G2 = (h M - q m) / (h - q)

because ``E m = ||G||^2 + tr(Sigma) h`` and ``E M = ||G||^2 + tr(Sigma) q``. Equal weights give the formulas above. With
``v_k = b_k / B``, the mean over all examples, ``h = K / B`` and ``q = 1 / B``.

Source: McCandlish et al. 2018, arXiv 1812.06162, appendix A.1 (there: two batch sizes; here: all pairs of a
window, a U-statistic, since ``G2`` is the mean of ``g_i . g_j`` over ``i != j``).

Where it stops being true: gradients of different steps (other parameters); examples that are not independent
(contrastive losses, BatchNorm across a micro-batch, sampling without replacement from a tiny data set); a loss
that is not a mean over examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_bsscale.theory.checks import check_integer, check_number

__all__ = ["WindowMoments", "WindowSums", "moments_of", "window_moments"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSums:
    """Sums over one window's samples, free of loss scale, loss divisor and number of ranks.

    Samples are gradients of separate groups of examples at the same parameters.

    The mean gets the weights ``w_k / sum w_k``. They are all one, except in a window whose micro-batches count
    differently in its mean.

    Attributes:
        sum_sq_norms: Sum of ``w_k`` times the squared norm of sample k's own mean gradient, gradient units squared.
        mean_sq_norm: Squared norm of the weighted mean of these gradients, before clipping, gradient units squared.
        num_samples: K, over all ranks and micro-batches.
        sum_inverse_sizes: Sum of ``w_k / b_k``, in 1/examples.
        examples: Examples of the window.
        sum_weights: Sum of the weights; None if all are one.
        sum_sq_weights: Sum of ``w_k^2 / b_k``, in 1/examples; None if all are one.
    """

    sum_sq_norms: float
    mean_sq_norm: float
    num_samples: int
    sum_inverse_sizes: float
    examples: float
    sum_weights: float | None = None
    sum_sq_weights: float | None = None

    @classmethod
    def from_numbers(cls, numbers: Sequence[float]) -> WindowSums:
        """Make the record from its seven numbers, in the order of the fields, summed over processes."""
        sum_sq_norms, mean_sq_norm, num_samples, sum_inverse_sizes, examples, sum_weights, sum_sq_weights = numbers
        # Sums of the same numbers are the same.
        is_weighted = sum_weights != num_samples or sum_sq_weights != sum_inverse_sizes
        return cls(
            sum_sq_norms=sum_sq_norms,
            mean_sq_norm=mean_sq_norm,
            num_samples=round(num_samples),  # a tenth of each of ten processes does not add up exactly
            sum_inverse_sizes=sum_inverse_sizes,
            examples=examples,
            sum_weights=sum_weights if is_weighted else None,
            sum_sq_weights=sum_sq_weights if is_weighted else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowMoments:
    """Unbiased noise and signal of one window, over all its samples and ranks.

    Attributes:
        trace: Estimate of tr(Sigma), in gradient units squared times examples.
        grad_sq: Estimate of the true gradient's squared norm, in gradient units squared; may be negative.
        num_samples: Samples of the step (over all ranks and micro-batches), at least 2.
        examples: Examples in the window.
        harmonic_size: Harmonic mean of the sample sizes (weighted as the samples are), in examples.
    """

    trace: float
    grad_sq: float
    num_samples: int
    examples: float
    harmonic_size: float


def moments_of(sums: WindowSums) -> WindowMoments:
    """Compute a window's moments by the formulas at the top of this module.

    Args:
        sums: Sums over the window's samples, at least two.

    Returns:
        The moments; non-finite where the norms are. :class:`~lightning_bsscale.theory.estimate.Averages` drops and
        counts such windows, since overflows are ordinary with AMP.

    Example:
        Two samples of 4 examples with gradients (3, 0) and (1, 0), mean (2, 0):

        >>> moments = moments_of(
        ...     WindowSums(sum_sq_norms=10.0, mean_sq_norm=4.0, num_samples=2, sum_inverse_sizes=0.5, examples=8)
        ... )
        >>> moments.trace, moments.grad_sq  # (5 - 4) * 2 / (1 * 1/4), and 3 * 1
        (8.0, 3.0)
    """
    count = check_integer("num_samples", sums.num_samples, at_least=2)
    check_number("sum_inverse_sizes", sums.sum_inverse_sizes, above=0)
    check_number("examples", sums.examples, above=0)
    if sums.sum_weights is not None and sums.sum_sq_weights is not None:
        return _weighted_moments(sums, sums.sum_weights, sums.sum_sq_weights)
    mean_of_squares, square_of_mean = sums.sum_sq_norms / count, sums.mean_sq_norm
    harmonic_size = count / sums.sum_inverse_sizes
    return WindowMoments(
        trace=(mean_of_squares - square_of_mean) * count / (count - 1) * harmonic_size,
        grad_sq=(count * square_of_mean - mean_of_squares) / (count - 1),
        num_samples=count,
        examples=sums.examples,
        harmonic_size=harmonic_size,
    )


def _weighted_moments(sums: WindowSums, sum_weights: float, sum_sq_weights: float) -> WindowMoments:
    weight = check_number("sum_weights", sum_weights, above=0)
    mean_of_squares, square_of_mean = sums.sum_sq_norms / weight, sums.mean_sq_norm
    of_samples, of_mean = sums.sum_inverse_sizes / weight, sum_sq_weights / weight**2
    difference = check_number("the spread of the samples around their mean", of_samples - of_mean, above=0)
    return WindowMoments(
        trace=(mean_of_squares - square_of_mean) / difference,
        grad_sq=(of_samples * square_of_mean - of_mean * mean_of_squares) / difference,
        num_samples=sums.num_samples,
        examples=sums.examples,
        harmonic_size=1 / of_samples,
    )


def window_moments(
    micro_sq_norms: Sequence[float], mean_sq_norm: float, micro_batch_sizes: Sequence[float]
) -> WindowMoments:
    """Compute a window's moments from lists with one entry per micro-batch.

    Args:
        micro_sq_norms: Squared norm of each micro-batch's own mean gradient, gradient units squared.
        mean_sq_norm: Squared norm of the unweighted mean of these gradients, gradient units squared.
        micro_batch_sizes: Examples in each micro-batch, in the same order.

    Returns:
        The window's moments.

    Raises:
        ValueError: If the two lists differ in length or hold fewer than two micro-batches.

    Example:
        >>> window_moments([9.0, 1.0], 4.0, [4, 4]).trace
        8.0
    """
    if len(micro_sq_norms) != len(micro_batch_sizes) or len(micro_sq_norms) < 2:
        raise ValueError(
            "micro_sq_norms and micro_batch_sizes must have the same length of at least 2, "
            f"got {len(micro_sq_norms)} and {len(micro_batch_sizes)}"
        )
    sizes = [check_number(f"micro_batch_sizes[{index}]", size, above=0) for index, size in enumerate(micro_batch_sizes)]
    sums = WindowSums(
        sum_sq_norms=sum(micro_sq_norms),
        mean_sq_norm=mean_sq_norm,
        num_samples=len(sizes),
        sum_inverse_sizes=sum(1 / size for size in sizes),
        examples=sum(sizes),
    )
    return moments_of(sums)
