"""Simulated gradients with known truth, and slow and obvious formulas for them."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from lightning_bsscale.theory.estimate import Averages, NoiseScale, noise_scale_from_means
from lightning_bsscale.theory.moments import WindowMoments, WindowSums
from lightning_bsscale.theory.rules import LearningRateRule


def z_score(sample: np.ndarray, truth: float) -> float:
    return float((sample.mean() - truth) / (sample.std(ddof=1) / math.sqrt(sample.size)))


def pairwise_grad_sq(gradients: Sequence[np.ndarray]) -> float:
    """||G||^2 as the mean of g_i . g_j over all ordered pairs i != j."""
    return float(np.mean([a @ b for a, b in itertools.permutations(gradients, 2)]))


def pairwise_trace(gradients: Sequence[np.ndarray], sizes: Sequence[float]) -> float:
    """tr(Sigma) from E||g_i - g_j||^2 = tr(Sigma) (1/b_i + 1/b_j), with both sides summed over all pairs."""
    pairs = list(itertools.permutations(range(len(gradients)), 2))
    distances = sum(float(np.sum((gradients[i] - gradients[j]) ** 2)) for i, j in pairs)
    return distances / sum(1 / sizes[i] + 1 / sizes[j] for i, j in pairs)


def equal_sums(sum_sq_norms: float, mean_sq_norm: float, micro_batches: int, size: float) -> WindowSums:
    """The sums of a window of so many micro-batches of `size` examples."""
    return WindowSums(
        sum_sq_norms=float(sum_sq_norms),
        mean_sq_norm=float(mean_sq_norm),
        num_samples=micro_batches,
        sum_inverse_sizes=micro_batches / size,
        examples=micro_batches * size,
    )


def window(trace: float, grad_sq: float = 1.0, examples: float = 16.0) -> WindowMoments:
    """A window with these moments."""
    return WindowMoments(trace=trace, grad_sq=grad_sq, num_samples=2, examples=examples, harmonic_size=8.0)


def averaged(windows: Iterable[WindowMoments], memory: float = math.inf, *, kind: Callable[[], Any] = Averages) -> Any:
    """The averages of a kind over windows that follow each other without a gap."""
    averages = kind()
    for moments in windows:
        averages = averages.updated(moments, examples_since_last=moments.examples, memory=memory)
    return averages


def gaussian_norms(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    *,
    num_micro_batches: int,
    micro_batch_size: float,
    dimension: int,
    trace: float,
    grad_sq: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Norms of windows of isotropic Gaussian gradients: sum over micro-batches of ||g_k||^2, and ||mean g||^2.

    Exact in distribution without drawing the vectors: along G each g_k is normal; across it the squared norm of the
    mean and the scatter around the mean are independent chi-squares with d - 1 and (K - 1)(d - 1) degrees of freedom.
    """
    variance = trace / dimension / micro_batch_size
    along = math.sqrt(grad_sq) + math.sqrt(variance) * rng.standard_normal((*shape, num_micro_batches))
    across_mean = variance / num_micro_batches * rng.chisquare(dimension - 1, shape)
    across_scatter = variance * rng.chisquare((num_micro_batches - 1) * (dimension - 1), shape)
    sums = (along**2).sum(-1) + across_scatter + num_micro_batches * across_mean
    return sums, along.mean(-1) ** 2 + across_mean


def heavy_tailed_windows(
    rng: np.random.Generator, family: str, windows: int, *, trace: float, grad_sq: float, micro_batch_size: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Compute trace and squared norm of windows of two micro-batches, for examples with tails.

    An example's noise is a vector of 256 independent coordinates. "gaussian"; "student": each of them Student's t
    with 3 degrees of freedom; "student per example" and "log-normal": a Gaussian vector times one random factor for the
    example, Student's (so its square has no variance) or exp of a standard normal number.
    """
    dimension, size = 256, micro_batch_size
    if family == "student":
        noise = rng.standard_t(3, (windows, 2, size, dimension)).mean(2) / math.sqrt(3)
    else:
        shape = (windows, 2, size)
        squares = {
            "gaussian": lambda: np.ones(shape),
            "student per example": lambda: 1 / rng.chisquare(3, shape),
            "log-normal": lambda: np.exp(2 * rng.standard_normal(shape) - 2),
        }[family]()
        # The mean of a micro-batch is Gaussian, given its examples' factors.
        noise = rng.standard_normal((windows, 2, dimension)) * np.sqrt(squares.sum(2) / size**2)[..., None]
    gradients = math.sqrt(trace / dimension) * noise
    gradients[..., 0] += math.sqrt(grad_sq)
    mean_of_squares, square_of_mean = (gradients**2).sum(-1).mean(1), (gradients.mean(1) ** 2).sum(-1)
    return 2 * size * (mean_of_squares - square_of_mean), 2 * square_of_mean - mean_of_squares


def noise_of(scale: float, *, spread: float = 0.0, resolved: bool = True) -> NoiseScale:
    """A noise scale whose mean squared norm is uncertain by `spread` (relative)."""
    return noise_scale_from_means(
        trace=float(scale),
        grad_sq=1.0,
        trace_variance=0.0,
        grad_sq_variance=spread**2 if resolved else 100.0,
        covariance=0.0,
        effective_windows=50.0,
        confidence=0.9,
    )


def ratios(rule: LearningRateRule, *, old: float = 64, scale: float = 512.0) -> list[float]:
    """The rule's ratios when the batch grows from `old` to 1, 2, 4 and 8 times that, at this noise scale."""
    return [rule.ratio(old, old * growth, noise_of(scale)) for growth in (1, 2, 4, 8)]
