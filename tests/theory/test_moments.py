import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_bsscale.theory.moments import WindowMoments, WindowSums, moments_of, window_moments
from tests.helpers.simulated import gaussian_norms, pairwise_grad_sq, pairwise_trace, z_score


def of_gradients(gradients, sizes) -> WindowMoments:
    gradients = np.asarray(gradients, dtype=float)
    return window_moments([float(g @ g) for g in gradients], float(np.sum(gradients.mean(0) ** 2)), list(sizes))


def test_equal_sizes_by_hand():
    # g = (3, 0), (1, 0); m = 5, M = 4, h = 1/4
    moments = of_gradients([[3, 0], [1, 0]], [4, 4])
    assert (moments.trace, moments.grad_sq) == (8.0, 3.0)
    assert (moments.num_samples, moments.examples, moments.harmonic_size) == (2, 8, 4.0)


def test_unequal_sizes_by_hand():
    # g = 4, 1, 1; m = 18/3 = 6, M = 4, h = (1/1 + 1/2 + 1/2)/3 = 2/3: S = 2 * 3 / (2 * 2/3) = 4.5, G2 = (12 - 6)/2 = 3
    moments = of_gradients([[4], [1], [1]], [1, 2, 2])
    assert (moments.trace, moments.grad_sq) == pytest.approx((4.5, 3.0))
    assert (moments.harmonic_size, moments.examples) == (pytest.approx(1.5), 5)


def test_opposite_gradients_give_a_negative_square_and_equal_ones_no_noise():
    assert of_gradients([[1], [-1]], [1, 1]).grad_sq == -1.0
    moments = of_gradients([[3, 4]] * 5, [2] * 5)
    assert (moments.trace, moments.grad_sq) == (pytest.approx(0, abs=1e-12), pytest.approx(25))


@pytest.mark.parametrize("sizes", [(1, 1), (1, 2), (1, 2, 3), (4, 1, 1)])
def test_unbiased_exactly_by_enumerating_a_population(sizes):
    # Every draw of examples from a population of three, with equal probability: nothing is random here.
    population = np.array([[0.0, 1.0], [2.0, -1.0], [7.0, 0.5]])
    truth_trace = float(((population - population.mean(0)) ** 2).sum(1).mean())
    truth_grad_sq = float((population.mean(0) ** 2).sum())
    bounds = np.cumsum([0, *sizes])
    found = []
    for draw in itertools.product(range(3), repeat=sum(sizes)):
        examples = population[list(draw)]
        found.append(of_gradients([examples[a:b].mean(0) for a, b in itertools.pairwise(bounds)], sizes))
    assert np.mean([moments.trace for moments in found]) == pytest.approx(truth_trace, rel=1e-9)
    assert np.mean([moments.grad_sq for moments in found]) == pytest.approx(truth_grad_sq, rel=1e-9)


@pytest.mark.parametrize("sizes", [(8, 8, 8), (8, 8, 1), (1, 5, 2, 9)])
def test_equals_the_mean_over_all_pairs(sizes):
    rng = np.random.default_rng(0)
    gradients = [rng.standard_normal(6) + 1 for _ in sizes]
    moments = of_gradients(gradients, sizes)
    assert moments.grad_sq == pytest.approx(pairwise_grad_sq(gradients))
    assert moments.trace == pytest.approx(pairwise_trace(gradients, sizes))


DIMENSION, TRACE, GRAD_SQ = 48, 30.0, 0.5
SIZES = {2: ((8, 8), (8, 1)), 4: ((8, 8, 8, 8), (8, 8, 8, 1)), 8: ((4,) * 8, (16, 8, 8, 4, 4, 2, 1, 1))}
CASES = [sizes for equal_and_unequal in SIZES.values() for sizes in equal_and_unequal]


def simulated_norms(sizes, windows=6000, seed=0):
    """Squared norms (windows, K) and of the mean (windows), from explicit vectors with an anisotropic covariance."""
    rng = np.random.default_rng(seed)
    spectrum = np.linspace(0.2, 1.8, DIMENSION) * TRACE / DIMENSION
    direction = np.sqrt(GRAD_SQ / DIMENSION)
    noise = rng.standard_normal((windows, len(sizes), DIMENSION)) * np.sqrt(spectrum)
    gradients = direction + noise / np.sqrt(np.array(sizes, dtype=float))[None, :, None]
    return (gradients**2).sum(-1), (gradients.mean(1) ** 2).sum(-1)


def found_moments(norms, means, sizes):
    found = [window_moments(n, m, sizes) for n, m in zip(norms.tolist(), means.tolist(), strict=True)]
    return np.array([f.trace for f in found]), np.array([f.grad_sq for f in found])


@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_simulated_gradients_give_the_truth_and_wrong_formulas_do_not(sizes):
    norms, means = simulated_norms(sizes)
    traces, grad_sqs = found_moments(norms, means, sizes)
    assert abs(z_score(traces, TRACE)) < 4.5
    assert abs(z_score(grad_sqs, GRAD_SQ)) < 4.5
    # The twins: without K/(K-1); the batch gradient's own norm; the arithmetic size; samples weighted by their sizes.
    count, harmonic = len(sizes), len(sizes) / sum(1 / size for size in sizes)
    assert z_score((norms.mean(1) - means) * harmonic, TRACE) < -10
    assert z_score(means, GRAD_SQ) > 10
    if len(set(sizes)) > 1:
        assert z_score(found_moments(norms, means, [sum(sizes) / count] * count)[0], TRACE) > 10
        weighted = (norms * np.array(sizes)).sum(1) / sum(sizes)
        assert abs(z_score((count * means - weighted) / (count - 1), GRAD_SQ)) > 10


def test_the_simulation_of_norms_has_the_moments_of_real_vectors():
    rng = np.random.default_rng(1)
    sums, means = gaussian_norms(
        rng, (40_000,), num_micro_batches=4, micro_batch_size=8, dimension=16, trace=30.0, grad_sq=0.5
    )
    assert abs(z_score(sums, 4 * (0.5 + 30 / 8))) < 4.5
    assert abs(z_score(means, 0.5 + 30 / 32)) < 4.5
    vectors = math.sqrt(0.5 / 16) + rng.standard_normal((40_000, 4, 16)) * math.sqrt(30 / 16 / 8)
    covariance = np.cov((vectors**2).sum((1, 2)), (vectors.mean(1) ** 2).sum(1))
    assert np.cov(sums, means) == pytest.approx(covariance, rel=0.06)


norms_and_sizes = st.lists(st.tuples(st.floats(0, 1e3), st.integers(1, 64)), min_size=2, max_size=12)
windows = st.tuples(norms_and_sizes, st.floats(0, 1e3))


@given(windows, st.floats(1e-3, 1e3))
def test_scaling_gradients_scales_both_moments_by_its_square(window, factor):
    entries, mean = window
    norms, sizes = zip(*entries, strict=True)
    plain = window_moments(norms, mean, sizes)
    scaled = window_moments([norm * factor**2 for norm in norms], mean * factor**2, sizes)
    tolerance = 1e-9 * factor**2 * (1 + max(norms) + mean) * max(sizes) * len(sizes)
    assert scaled.trace == pytest.approx(plain.trace * factor**2, abs=tolerance)
    assert scaled.grad_sq == pytest.approx(plain.grad_sq * factor**2, abs=tolerance)


@given(windows, st.data())
def test_splitting_micro_batches_over_ranks_does_not_matter(window, data):
    entries, mean = window
    ranks = data.draw(st.lists(st.integers(0, 3), min_size=len(entries), max_size=len(entries)))
    split = [[entry for entry, rank in zip(entries, ranks, strict=True) if rank == r] for r in range(4)]
    # What travels: seven sums a rank, added up.
    shares = []
    for own in split:
        inverse = sum(1 / size for _, size in own)
        shares.append((sum(n for n, _ in own), mean / 4, len(own), inverse, sum(s for _, s in own), len(own), inverse))
    reduced = moments_of(WindowSums.from_numbers([sum(numbers) for numbers in zip(*shares, strict=True)]))
    plain = window_moments([n for n, _ in entries], mean, [s for _, s in entries])
    assert reduced.trace == pytest.approx(plain.trace, rel=1e-9, abs=1e-6)
    assert reduced.grad_sq == pytest.approx(plain.grad_sq, rel=1e-9, abs=1e-6)
    assert reduced.harmonic_size == pytest.approx(plain.harmonic_size)
    assert reduced.examples == plain.examples


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_non_finite_norms_make_non_finite_moments_without_an_exception(bad):
    for moments in (window_moments([bad, 1.0], 1.0, [4, 4]), window_moments([1.0, 1.0], bad, [4, 4])):
        assert not math.isfinite(moments.trace)
        assert not math.isfinite(moments.grad_sq)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_samples": 1}, ValueError, "num_samples must be an integer of at least 2, got 1"),
        ({"num_samples": 2.0}, TypeError, "num_samples must be an integer"),
        ({"sum_inverse_sizes": 0.0}, ValueError, "sum_inverse_sizes must be a finite number above 0"),
        ({"examples": -1}, ValueError, "examples must be a finite number above 0"),
    ],
)
def test_wrong_sums_are_refused(change, error, message):
    sums = WindowSums(sum_sq_norms=2.0, mean_sq_norm=1.0, sum_inverse_sizes=0.5, num_samples=2, examples=8)
    with pytest.raises(error, match=message):
        moments_of(replace(sums, **change))


def test_sums_are_read_in_the_order_of_the_fields():
    num_samples = math.nextafter(2, 0)  # added over ten ranks that see two samples as means over ranks
    expected = WindowSums(sum_sq_norms=10.0, mean_sq_norm=4.0, num_samples=2, sum_inverse_sizes=0.5, examples=8.0)
    assert WindowSums.from_numbers([10.0, 4.0, num_samples, 0.5, 8.0, num_samples, 0.5]) == expected
    weighted = replace(expected, sum_weights=3.0, sum_sq_weights=0.75)
    assert WindowSums.from_numbers([10.0, 4.0, num_samples, 0.5, 8.0, 3.0, 0.75]) == weighted
    assert isinstance(WindowSums.from_numbers([1.0] * 7).num_samples, int)


@given(st.lists(st.tuples(st.integers(1, 20), st.floats(0.1, 5)), min_size=2, max_size=5), st.floats(0.01, 100))
def test_moments_of_a_weighted_mean_are_unbiased(samples, trace):
    """By the expectations of the squared norms: E||g_k||^2 = ||G||^2 + tr / b_k, of the mean with sum v_k^2 / b_k."""
    grad_sq, weight = 3.0, sum(w for _, w in samples)
    of_mean = sum(w * w / size for size, w in samples)
    sums = WindowSums(
        sum_sq_norms=sum(w * (grad_sq + trace / size) for size, w in samples),
        mean_sq_norm=grad_sq + trace * of_mean / weight**2,
        num_samples=len(samples),
        sum_inverse_sizes=sum(w / size for size, w in samples),
        examples=float(sum(size for size, _ in samples)),
        sum_weights=weight,
        sum_sq_weights=of_mean,
    )
    moments = moments_of(sums)
    assert (moments.trace, moments.grad_sq) == (pytest.approx(trace, rel=1e-6), pytest.approx(grad_sq, rel=1e-4))


def test_a_weighted_mean_is_not_taken_for_an_unweighted_one():
    """The twin: weights of 1 and 3 on samples of 2 and 6 examples, so the mean over all eight."""
    sums = WindowSums(
        sum_sq_norms=1 / 2 * 8 + 3 / 6 * 8,
        mean_sq_norm=1.0,
        num_samples=2,
        sum_inverse_sizes=1.0,
        examples=8.0,
        sum_weights=4.0,
        sum_sq_weights=2.0,
    )
    assert moments_of(sums).trace == pytest.approx(8.0)  # of no gradient: tr / b in each sample, tr / 8 in the mean
    assert moments_of(sums).grad_sq == pytest.approx(0.0)
    assert moments_of(replace(sums, sum_weights=None, sum_sq_weights=None)).trace != pytest.approx(8.0, rel=0.1)
