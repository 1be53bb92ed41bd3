"""All pairs of many gradients: exact against the plain formulas, and intervals that cover."""

import math

import numpy as np
import pytest

from lightning_bsscale.theory.blocks import block_noise_scale, relative_half_width
from lightning_bsscale.theory.moments import WindowSums, moments_of


def in_blocks(gradients, sizes, blocks):
    """Gram matrix, sums of squares, numbers and examples of blocks of neighbours."""
    parts = np.array_split(np.arange(len(sizes)), blocks)
    sums = np.stack([(sizes[p, None] * gradients[p]).sum(0) for p in parts])
    squares = [float((sizes[p] * (gradients[p] ** 2).sum(1)).sum()) for p in parts]
    return (sums @ sums.T).tolist(), squares, [len(p) for p in parts], [float(sizes[p].sum()) for p in parts]


@pytest.mark.parametrize("blocks", [2, 5, 12])
def test_the_estimate_is_that_of_one_large_window(blocks):
    rng = np.random.default_rng(0)
    gradients, sizes = rng.normal(size=(12, 7)), rng.integers(1, 9, 12).astype(float)
    found = block_noise_scale(*in_blocks(gradients, sizes, blocks)).noise
    mean = sizes @ gradients / sizes.sum()
    sums = WindowSums(
        sum_sq_norms=float(sizes @ (gradients**2).sum(1)),
        mean_sq_norm=float(mean @ mean),
        num_samples=12,
        sum_inverse_sizes=12.0,
        examples=sizes.sum(),
        sum_weights=sizes.sum(),
        sum_sq_weights=sizes.sum(),
    )
    expected = moments_of(sums)
    assert (found.trace, found.grad_sq) == pytest.approx((expected.trace, expected.grad_sq), rel=1e-12)
    assert math.isinf(found.trace_variance) == (blocks < 4)


def repeated(examples_per_noise_scale, *, repeats=400, dimension=100, count=64, blocks=16):
    """Estimates of Gaussian gradients whose noise scale is 1, with `count` batches."""
    rng = np.random.default_rng(1)
    signal = np.full(dimension, 1 / math.sqrt(dimension))
    size = examples_per_noise_scale / count
    noise = math.sqrt(1 / size / dimension)
    sizes = np.full(count, size)
    return [
        block_noise_scale(*in_blocks(signal + noise * rng.normal(size=(count, dimension)), sizes, blocks))
        for _ in range(repeats)
    ]


@pytest.mark.parametrize("examples", [0.5, 2.0, 50.0], ids=lambda examples: f"{examples} noise scales")
def test_variance_and_interval_are_honest(examples):
    """The second order dominates at 0.5, the first at 50: the plain jackknife is wrong by a factor of two at 0.5."""
    found = repeated(examples)
    squares = [one.noise.grad_sq for one in found]
    assert np.mean([one.noise.grad_sq_variance for one in found]) == pytest.approx(np.var(squares), rel=0.25)
    covered = np.mean([one.noise.low <= 1 <= one.noise.high for one in found])
    assert 0.86 <= covered <= 0.95


@pytest.mark.parametrize("examples", [0.5, 2.0, 50.0])
def test_the_forecast_is_what_more_batches_give(examples):
    small, large = repeated(examples, repeats=150), repeated(4 * examples, repeats=150, count=256)
    forecast = np.mean([one.after(4.0).grad_sq_variance for one in small])
    assert forecast == pytest.approx(np.mean([one.noise.grad_sq_variance for one in large]), rel=0.25)
    wanted = relative_half_width(small[0].after(4.0))
    if math.isfinite(wanted):
        assert small[0].factor_for(wanted) == pytest.approx(4.0, rel=0.06)


def test_few_blocks_never_make_an_interval_without_its_estimate():
    found = [one.noise for one in repeated(2.0, repeats=300, count=13, blocks=7, dimension=3)]
    assert all(n.covariance**2 <= 1.0001 * n.trace_variance * n.grad_sq_variance for n in found)
    assert all(noise.low <= noise.noise_scale <= noise.high for noise in found)
    assert sum(noise.resolved for noise in found) > 30


def test_nothing_is_forecast_from_a_negative_squared_norm():
    found = next(one for one in repeated(0.05, repeats=50) if one.noise.grad_sq < 0)
    assert math.isinf(found.factor_for(0.1))
