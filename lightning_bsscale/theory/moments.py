r"""One window's moments: squared norms and sizes in, unbiased noise and signal out.

The micro-batches of one window are all taken at the same parameters. Micro-batch k has ``b_k`` examples and
the mean gradient ``g_k``; the optimizer steps with the unweighted mean ``g = (1/K) sum g_k``. With

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

Nowhere was equality of the ``b_k`` used; the unweighted mean and the *harmonic* size are what makes it exact.

Source: McCandlish et al. 2018, arXiv 1812.06162, appendix A.1 (there: two batch sizes; here: all pairs of a
window, a U-statistic, since ``G2`` is the mean of ``g_i . g_j`` over ``i != j``).

Where it stops being true: gradients of different steps (other parameters); examples that are not independent
(contrastive losses, BatchNorm across a micro-batch, sampling without replacement from a tiny data set); a loss
that is no mean over examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_bsscale.theory.checks import check_integer, check_number

__all__ = ["WindowMoments", "moments_from_sums", "window_moments"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowMoments:
    """Unbiased noise and signal of one window, over all its micro-batches and ranks.

    Attributes:
        trace: Estimate of tr(Sigma), in gradient units squared times examples.
        grad_sq: Estimate of the true gradient's squared norm, in gradient units squared; may be negative.
        num_micro_batches: Micro-batches behind the step (over ranks and accumulation), at least 2.
        examples: Examples in the window.
        harmonic_size: Harmonic mean of the micro-batch sizes, in examples.
    """

    trace: float
    grad_sq: float
    num_micro_batches: int
    examples: float
    harmonic_size: float


def moments_from_sums(
    *,
    sum_sq_norms: float,
    mean_sq_norm: float,
    sum_inverse_sizes: float,
    num_micro_batches: int,
    examples: float,
    loss_divisor: float | None = None,
) -> WindowMoments:
    """Compute a window's moments from the sums that travel between ranks.

    The formulas and the proof that they are unbiased stand at the top of this module. With
    ``loss_divisor=N`` every loss had been divided by N before its backward pass, so that the watched norms are
    those of ``g_k / N`` and the step was taken with ``(1/N) sum g_k``: the norms are multiplied by ``N^2`` and
    the squared norm of the mean by ``(N/K)^2`` first. (N differs from K at an epoch's ragged end.)

    Args:
        sum_sq_norms: Sum over micro-batches of the squared gradient norms, gradient units squared.
        mean_sq_norm: Squared norm of the mean gradient, before clipping, gradient units squared.
        sum_inverse_sizes: Sum over micro-batches of ``1 / b_k``, in 1/examples.
        num_micro_batches: K, over ranks and accumulation; at least 2, since one gradient has no pair.
        examples: Examples in the window, over ranks.
        loss_divisor: What each loss was divided by; None when the norms are those of the micro-batches' own
            gradients and the mean is theirs.

    Returns:
        The moments. They are non-finite where the norms are; they are then dropped and counted by
        :class:`~lightning_bsscale.theory.estimate.Averages`, since an overflow is an ordinary event with AMP.

    Example:
        Two micro-batches of 4 examples with gradients (3, 0) and (1, 0), mean (2, 0):

        >>> moments = moments_from_sums(
        ...     sum_sq_norms=10.0, mean_sq_norm=4.0, sum_inverse_sizes=0.5, num_micro_batches=2, examples=8
        ... )
        >>> moments.trace, moments.grad_sq  # (5 - 4) * 2 / (1 * 1/4), and 3 * 1
        (8.0, 3.0)
    """
    count = check_integer("num_micro_batches", num_micro_batches, at_least=2)
    check_number("sum_inverse_sizes", sum_inverse_sizes, above=0)
    check_number("examples", examples, above=0)
    mean_of_squares = sum_sq_norms / count
    square_of_mean = mean_sq_norm
    if loss_divisor is not None:
        check_number("loss_divisor", loss_divisor, above=0)
        mean_of_squares *= loss_divisor**2
        square_of_mean *= (loss_divisor / count) ** 2
    harmonic_size = count / sum_inverse_sizes
    return WindowMoments(
        trace=(mean_of_squares - square_of_mean) * count / (count - 1) * harmonic_size,
        grad_sq=(count * square_of_mean - mean_of_squares) / (count - 1),
        num_micro_batches=count,
        examples=examples,
        harmonic_size=harmonic_size,
    )


def window_moments(
    micro_sq_norms: Sequence[float], mean_sq_norm: float, micro_batch_sizes: Sequence[float]
) -> WindowMoments:
    """Compute a window's moments from lists, one entry a micro-batch.

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
    return moments_from_sums(
        sum_sq_norms=sum(micro_sq_norms),
        mean_sq_norm=mean_sq_norm,
        sum_inverse_sizes=sum(1 / size for size in sizes),
        num_micro_batches=len(sizes),
        examples=sum(sizes),
    )
