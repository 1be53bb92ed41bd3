r"""The noise scale from many gradients at the same parameters, by all pairs of them, with an interval.

Micro-batch ``i`` has ``b_i`` examples and the mean gradient ``g_i``, and all ``N`` are at the same parameters. With
``B = sum b_i``, ``m = sum b_i ||g_i||^2 / B`` and ``M = ||sum b_i g_i / B||^2`` (moments.py, weights ``b_i / B``):

    S = (m - M) B / (N - 1)        G2 = (N M - m) / (N - 1)

``G2`` is the weighted mean of ``g_i . g_j`` over all pairs. Where the noise dominates, pairs of neighbours alone would
need about N times as many gradients for the same error: the variance of a mean over N/2 disjoint pairs falls as 1/N,
that over all pairs as 1/N^2.

For the interval the gradients are summed in ``J`` blocks, ``s_k = sum_{i in k} b_i g_i``, so that only J gradients are
kept. The Gram matrix ``s_k . s_l`` gives the estimate without each block (the jackknife), and with it the variances:

    Var = (J - 1)/J * sum_k (estimate without k - their mean)^2

For a U-statistic of pairs the jackknife counts the variance of second order twice (Efron and Stein 1981, Annals of
Statistics 9, 586-596). With the residuals ``r_kl = h_kl - h - a_k - a_l`` of ``h_kl = s_k . s_l / (B_k B_l)``, whose
variance is estimated by ``d = sum_{k<l} r_kl^2 / (J (J - 3) / 2)``, the excess is ``2 d / ((J - 1)(J - 2))``, which is
taken off; what remains of second order is ``2 d / (J (J - 1))``.

The same holds with any symmetric matrix H between the gradients, ``s_k . H s_l``: then S is tr(H Sigma) and G2 is
G . H G. If H is unknown and ``H_k`` are independent unbiased estimates of it, independent of the gradients, the kernel
``s_k . (H_k + H_l) s_l / 2`` is again a symmetric function of independent pairs ``(s_k, H_k)``, so that all of the
above holds, and the interval contains the uncertainty of H as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_bsscale.theory.checks import check_number
from lightning_bsscale.theory.estimate import NoiseScale, noise_scale_from_means

__all__ = ["BlockNoise", "block_noise_scale", "relative_half_width"]

_MIN_BLOCKS = 4
_FARTHEST = 1e6
_STEP = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockNoise:
    """A noise scale from blocks, and what a forecast needs.

    Attributes:
        noise: The noise scale with its interval.
        pair_variance: The part of the variance of the squared norm that falls as 1/N^2.
    """

    noise: NoiseScale
    pair_variance: float

    def after(self, factor: float) -> NoiseScale:
        """Forecast the noise scale with its interval for another number of batches.

        Args:
            factor: That number, relative to the present one, above 0.

        Returns:
            The same estimate with the variances expected then.
        """
        noise, share = self.noise, 1 / check_number("factor", factor, above=0)
        return noise_scale_from_means(
            trace=noise.trace,
            grad_sq=noise.grad_sq,
            trace_variance=noise.trace_variance * share,
            grad_sq_variance=(noise.grad_sq_variance - self.pair_variance) * share + self.pair_variance * share**2,
            covariance=noise.covariance * share,
            effective_windows=noise.effective_windows,
            confidence=noise.confidence,
            degrees_of_freedom=noise.degrees_of_freedom,
            third_moment=noise.third_moment * share**2,
        )

    def factor_for(self, relative_error: float) -> float:
        """Forecast how many times as many batches a relative error needs.

        Args:
            relative_error: Half the width of the interval over the estimate, above 0.

        Returns:
            The factor, at least 1, to 5 %; infinite where nothing is known yet, or above a million.

        Example:
            Twice the error, first order alone:

            >>> noise = noise_scale_from_means(
            ...     trace=8.0, grad_sq=1.0, trace_variance=0.04, grad_sq_variance=0.0, covariance=0.0,
            ...     effective_windows=16.0, confidence=0.9,
            ... )
            >>> error = relative_half_width(noise)
            >>> 4 <= BlockNoise(noise=noise, pair_variance=0.0).factor_for(error / 2) <= 4 * 1.06
            True
        """
        wanted = check_number("relative_error", relative_error, above=0)
        if not (self.noise.grad_sq > 0 and self.noise.trace > 0) or math.isinf(self.noise.grad_sq_variance):
            return math.inf
        factor = 1.0
        while relative_half_width(self.after(factor)) > wanted:
            factor *= _STEP
            if factor > _FARTHEST:
                return math.inf
        return factor


def relative_half_width(noise: NoiseScale) -> float:
    """Compute half the width of the interval over the estimate; infinite where it is not resolved."""
    return (noise.high - noise.low) / (2 * noise.noise_scale) if noise.resolved else math.inf


def block_noise_scale(
    gram: Sequence[Sequence[float]],
    sum_sq_norms: Sequence[float],
    num_micro_batches: Sequence[int],
    examples: Sequence[float],
    *,
    confidence: float = 0.9,
) -> BlockNoise:
    """Compute the noise scale from block sums.

    Args:
        gram: ``s_k . s_l`` for all pairs of blocks, symmetric.
        sum_sq_norms: ``sum_{i in k} b_i ||g_i||^2`` of each block.
        num_micro_batches: Number of micro-batches of each block; together at least 2.
        examples: ``B_k``, examples of each block.
        confidence: Two-sided confidence of the interval, between 0 and 1.

    Returns:
        The noise scale; with fewer than four blocks its variances are infinite.

    Example:
        Two micro-batches of 4 examples with gradients (3, 0) and (1, 0):

        >>> found = block_noise_scale([[144.0, 48.0], [48.0, 16.0]], [36.0, 4.0], [1, 1], [4, 4])
        >>> found.noise.trace, found.noise.grad_sq, found.noise.high
        (8.0, 3.0, inf)
    """
    blocks = range(len(examples))
    rows = [sum(gram[k]) for k in blocks]
    whole = (sum(rows), sum(sum_sq_norms), sum(num_micro_batches), sum(examples))
    trace, grad_sq = _moments(*whole)
    if len(examples) < _MIN_BLOCKS:
        variances, pair_variance = (math.inf, math.inf, 0.0, 0.0), 0.0
    else:
        without = [
            _moments(
                whole[0] - 2 * rows[k] + gram[k][k],
                whole[1] - sum_sq_norms[k],
                whole[2] - num_micro_batches[k],
                whole[3] - examples[k],
            )
            for k in blocks
        ]
        kernel = [[gram[k][m] / (examples[k] * examples[m]) for m in blocks] for k in blocks]
        ratio = trace / grad_sq if grad_sq > 0 else None
        trace_variance, grad_sq_variance, covariance, third_moment = _jackknife(without, ratio)
        residual = _residual_variance(kernel)
        count = len(examples)
        pair_variance = 2 * residual / (count * (count - 1))
        plain = grad_sq_variance
        grad_sq_variance = max(pair_variance, plain - 2 * residual / ((count - 1) * (count - 2)))
        if grad_sq_variance < plain:  # with the same correlation, or the three would be no covariance matrix
            covariance *= math.sqrt(grad_sq_variance / plain)
        variances = (trace_variance, grad_sq_variance, covariance, third_moment)
    noise = noise_scale_from_means(
        trace=trace,
        grad_sq=grad_sq,
        trace_variance=variances[0],
        grad_sq_variance=variances[1],
        covariance=variances[2],
        effective_windows=float(len(examples)),
        confidence=confidence,
        degrees_of_freedom=max(1.0, len(examples) - 1.0),
        third_moment=variances[3],
    )
    return BlockNoise(noise=noise, pair_variance=pair_variance)


def _moments(square_of_sum: float, sum_sq_norms: float, count: float, examples: float) -> tuple[float, float]:
    mean_of_squares, square_of_mean = sum_sq_norms / examples, square_of_sum / examples**2
    trace = (mean_of_squares - square_of_mean) * examples / (count - 1)
    return trace, (count * square_of_mean - mean_of_squares) / (count - 1)


def _jackknife(without: Sequence[tuple[float, float]], ratio: float | None) -> tuple[float, float, float, float]:
    """Return the variances of trace and squared norm, their covariance, and the third moment of the difference."""
    count = len(without)
    traces, squares = zip(*without, strict=True)
    trace, grad_sq = sum(traces) / count, sum(squares) / count
    scale = (count - 1) / count
    # The pseudo-values n t - (n - 1) t_k scatter as n independent terms of a mean would.
    third_moment = 0.0
    if ratio is not None:
        third_moment = sum(((count - 1) * (trace - a - ratio * (grad_sq - b))) ** 3 for a, b in without) / count**3
    return (
        scale * sum((one - trace) ** 2 for one in traces),
        scale * sum((one - grad_sq) ** 2 for one in squares),
        scale * sum((a - trace) * (b - grad_sq) for a, b in without),
        third_moment,
    )


def _residual_variance(kernel: Sequence[Sequence[float]]) -> float:
    count = len(kernel)
    off_diagonal = [sum(row) - row[k] for k, row in enumerate(kernel)]
    mean = sum(off_diagonal) / (count * (count - 1))
    effects = [(total - (count - 1) * mean) / (count - 2) for total in off_diagonal]
    squares = sum(
        (kernel[k][m] - mean - effects[k] - effects[m]) ** 2 for k in range(count) for m in range(k + 1, count)
    )
    return squares / (count * (count - 3) / 2)
