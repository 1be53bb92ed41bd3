import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_bsscale.theory.estimate import SUM_NAMES, Averages, NoiseScale, noise_scale_from_means, sums_of
from lightning_bsscale.theory.moments import moments_of
from lightning_bsscale.theory.policies import Limits, NoiseScalePolicy, Situation
from tests.helpers.simulated import averaged, equal_sums, gaussian_norms, window


def test_equal_weights_are_plain_means_and_their_standard_errors():
    rng = np.random.default_rng(0)
    traces, squares = rng.normal(8, 1, 30), rng.normal(1, 0.2, 30)
    found = averaged(map(window, traces, squares)).noise_scale()
    covariance = np.cov(traces, squares, ddof=1) / 30
    assert found.trace == pytest.approx(traces.mean())
    assert found.grad_sq == pytest.approx(squares.mean())
    assert found.noise_scale == pytest.approx(traces.mean() / squares.mean())
    assert found.trace_variance == pytest.approx(covariance[0, 0])
    assert found.grad_sq_variance == pytest.approx(covariance[1, 1])
    assert found.covariance == pytest.approx(covariance[0, 1])
    assert found.effective_windows == pytest.approx(30)
    assert found.degrees_of_freedom == pytest.approx(29)


def test_windows_weigh_by_their_examples():
    found = averaged([window(10, 1, examples=30), window(20, 2, examples=10)])
    assert found.trace / found.weight == pytest.approx(12.5)
    assert found.grad_sq / found.weight == pytest.approx(1.25)
    assert found.effective_windows == pytest.approx(40**2 / (30**2 + 10**2))


def test_unequal_weights_have_the_sandwich_variance():
    weights, traces = np.array([3.0, 1, 2, 2]), np.array([1.0, 5, 3, 2])
    found = averaged(window(t, 1 + t / 10, examples=w) for t, w in zip(traces, weights, strict=True)).noise_scale()
    mean = (weights * traces).sum() / weights.sum()
    count = weights.sum() ** 2 / (weights**2).sum()
    expected = (weights**2 * (traces - mean) ** 2).sum() / weights.sum() ** 2 * count / (count - 1)
    assert found.trace_variance == pytest.approx(expected)
    assert found.grad_sq_variance == pytest.approx(expected / 100)
    assert found.covariance == pytest.approx(expected / 10)


def test_memory_is_a_weight_of_one_over_e_at_that_age():
    averages = Averages().updated(window(1, 1), examples_since_last=0, memory=1000)
    averages = averages.updated(window(0, 0), examples_since_last=1000, memory=1000)
    assert averages.trace / averages.weight == pytest.approx(math.exp(-1) / (1 + math.exp(-1)))


def test_an_exponential_memory_has_the_known_effective_windows():
    decay = math.exp(-16 / 160)
    averages = averaged([window(1, 1)] * 400, memory=160)
    assert averages.effective_windows == pytest.approx((1 + decay) / (1 - decay))
    assert averages.noise_scale().degrees_of_freedom == pytest.approx((1 + decay**2) / (1 - decay**2))


def test_smoothing_does_not_depend_on_how_examples_are_cut_into_windows():
    # The same examples in windows of 16 and of 64: the old estimate keeps the same weight.
    start = Averages().updated(window(8, 1), examples_since_last=0, memory=500)
    small, large = start, start
    for _ in range(16):
        small = small.updated(window(0, 0, examples=16), examples_since_last=16, memory=500)
    for _ in range(4):
        large = large.updated(window(0, 0, examples=64), examples_since_last=64, memory=500)
    assert small.trace == pytest.approx(large.trace)
    assert small.weight == pytest.approx(large.weight, rel=0.06)


def test_constant_windows_are_known_exactly():
    found = averaged([window(8.0, 1.0)] * 5).noise_scale()
    assert (found.low, found.noise_scale, found.high, found.resolved) == (8.0, 8.0, 8.0, True)


@pytest.mark.parametrize("level", [1e3, 1e4, 1e5, 1e6, 1e7])
def test_the_rounding_of_windows_that_hardly_differ_is_no_skew(level):
    found = averaged(window(level + 1e-4 * k, 1.0) for k in range(10)).noise_scale()
    assert abs(found.third_moment) <= math.sqrt(found.trace_variance**3 * found.effective_windows)


def test_a_negative_square_is_an_infinite_noise_scale_and_unresolved():
    found = averaged([window(8, -0.1), window(8, 0.05), window(8, -0.05)]).noise_scale()
    assert found.noise_scale == math.inf
    assert (found.grad_sq < 0, found.resolved, found.high) == (True, False, math.inf)


def test_one_window_says_nothing_of_its_uncertainty():
    assert Averages().noise_scale() is None
    assert averaged([window(8, 1)]).noise_scale() is None
    assert averaged([window(8, 1)] * 2).noise_scale() is not None


def test_a_memory_of_less_than_two_windows_is_unresolved():
    found = averaged([window(8, 1)] * 50, memory=10).noise_scale()
    assert found.effective_windows < 2
    assert found.noise_scale == pytest.approx(8)
    assert (found.low, found.high, found.resolved) == (0.0, math.inf, False)
    assert found.lower_bound(0.5) == 0.0
    assert found.lower_bound(0.9) == 0.0


@pytest.mark.parametrize(
    "bad", [window(math.nan, 1), window(8, math.inf), window(-math.inf, math.nan), window(1e200, 1), window(8, -1e200)]
)
def test_non_finite_windows_are_dropped_and_counted(bad):
    windows = [window(8, 1), window(9, 1.1), window(7, 0.9)]
    clean = averaged(windows)
    with_bad = averaged([windows[0], bad, *windows[1:], bad])
    assert (with_bad.windows, with_bad.dropped, clean.dropped) == (3, 2, 0)
    assert dataclasses.replace(with_bad, dropped=0) == clean


def test_a_dropped_window_still_lets_the_others_age():
    averages = averaged([window(8, 1)])
    aged = averages.updated(window(math.nan, 1), examples_since_last=160, memory=160)
    assert aged.weight == pytest.approx(16 / math.e)
    assert aged.trace / aged.weight == pytest.approx(8)


finite_windows = st.lists(
    st.builds(window, st.floats(0, 1e3), st.floats(-1e3, 1e3), st.integers(1, 512)), min_size=2, max_size=8
)


@given(finite_windows)
def test_sums_are_additive(windows):
    added = dict.fromkeys(SUM_NAMES, 0.0)
    for moments in windows:
        for name, value in sums_of(moments).items():
            added[name] += value
    assert Averages.from_state(added).to_state() == pytest.approx(averaged(windows).to_state())


@given(finite_windows, st.floats(1, 1e4))
def test_the_state_is_the_whole_record(windows, memory):
    averages = averaged(windows, memory)
    state = averages.to_state()
    assert Averages.from_state(state) == averages
    assert set(state) == set(SUM_NAMES)
    assert all(type(value) in (int, float) for value in state.values())


@given(finite_windows, st.floats(1e-3, 1e3))
def test_scaling_gradients_leaves_the_noise_scale(windows, factor):
    plain = averaged(windows).noise_scale()
    scaled = averaged(window(m.trace * factor**2, m.grad_sq * factor**2, m.examples) for m in windows).noise_scale()
    assert scaled.trace == pytest.approx(plain.trace * factor**2, rel=1e-6, abs=1e-9)
    assert scaled.grad_sq == pytest.approx(plain.grad_sq * factor**2, rel=1e-6, abs=1e-9 * factor**2)
    if plain.resolved and plain.low > 1e-3 and plain.high < 1e3 * plain.low:
        assert scaled.noise_scale == pytest.approx(plain.noise_scale, rel=1e-6)
        assert scaled.low == pytest.approx(plain.low, rel=1e-3)


def known(**changes) -> NoiseScale:
    means = {"trace": 8.0, "grad_sq": 1.0, "trace_variance": 0.25, "grad_sq_variance": 0.04, "covariance": 0.02}
    return noise_scale_from_means(**(means | {"effective_windows": 20.0, "confidence": 0.9} | changes))


def test_one_sided_bounds_are_the_ends_of_the_two_sided_interval():
    noise = known(degrees_of_freedom=12.0)
    assert noise.lower_bound(0.95) == pytest.approx(noise.low)
    assert noise.upper_bound(0.95) == pytest.approx(noise.high)
    assert noise.lower_bound(0.5) == noise.upper_bound(0.5) == noise.noise_scale


def test_bounds_widen_with_confidence_and_with_fewer_degrees_of_freedom():
    noise = known()
    lows = [noise.lower_bound(confidence) for confidence in (0.5, 0.7, 0.9, 0.99)]
    assert lows == sorted(lows, reverse=True)
    assert known(degrees_of_freedom=3.0).lower_bound(0.9) < noise.lower_bound(0.9)
    assert known(confidence=0.99).low < noise.low < noise.high < known(confidence=0.99).high


@pytest.mark.parametrize("confidence", [0.4, 1.0, math.nan, -1])
def test_a_confidence_out_of_range_is_refused(confidence):
    with pytest.raises(ValueError, match=r"confidence must be a finite number at least 0\.5 and below 1, got"):
        known().lower_bound(confidence)


@pytest.mark.parametrize("confidence", [0, 1, math.nan])
def test_a_wrong_two_sided_confidence_is_refused(confidence):
    with pytest.raises(ValueError, match="confidence must be a finite number above 0 and below 1, got"):
        averaged([window(8, 1)] * 3).noise_scale(confidence)


REPEATS, WINDOWS, NUM_MICRO, SIZE, DIMENSION = 500, 100, 4, 16, 256
BATCH = NUM_MICRO * SIZE


def repeated_estimates(batch_over_noise_scale, seed=1) -> list[NoiseScale]:
    sums, means = gaussian_norms(
        np.random.default_rng(seed),
        (REPEATS, WINDOWS),
        num_micro_batches=NUM_MICRO,
        micro_batch_size=SIZE,
        dimension=DIMENSION,
        trace=1.0,
        grad_sq=batch_over_noise_scale / BATCH,
    )
    found = []
    for of_a_run in zip(sums.tolist(), means.tolist(), strict=True):
        windows = [moments_of(equal_sums(*norms, NUM_MICRO, SIZE)) for norms in zip(*of_a_run, strict=True)]
        found.append(averaged(windows).noise_scale(0.9))
    return found


def delta_method_width(noise: NoiseScale) -> float:
    """Width of the usual interval from the linearised ratio: right only far from zero."""
    relative = (
        noise.trace_variance / noise.trace**2
        + noise.grad_sq_variance / noise.grad_sq**2
        - 2 * noise.covariance / (noise.trace * noise.grad_sq)
    )
    return 2 * stats.norm.ppf(0.95) * abs(noise.noise_scale) * math.sqrt(max(0.0, relative))


@pytest.mark.parametrize("batch_over_noise_scale", [1.0, 0.1, 0.01])
def test_the_interval_covers_the_truth(batch_over_noise_scale):
    found = repeated_estimates(batch_over_noise_scale)
    truth = BATCH / batch_over_noise_scale
    assert 0.85 <= np.mean([noise.low <= truth <= noise.high for noise in found]) <= 0.95
    assert 0.93 <= np.mean([noise.lower_bound(0.95) <= truth for noise in found]) <= 0.97
    unresolved = np.mean([not noise.resolved for noise in found])
    if batch_over_noise_scale == 1.0:
        assert unresolved == 0
        widths = [noise.high - noise.low for noise in found]
        assert np.median(widths) == pytest.approx(np.median([delta_method_width(noise) for noise in found]), rel=0.2)
    if batch_over_noise_scale == 0.01:
        assert unresolved >= 0.6


BUDGET, MICRO, TRUTH = 33_600, 8, 200.0


def scaled_run(seed) -> list[tuple[NoiseScale, int]]:
    """A run as the scaler makes it: from one micro-batch, probes of two, growth by the policy, one in eight measured.

    Returns the estimate and the batch at a quarter, half and the end of the budget.
    """
    rng = np.random.default_rng(seed)
    policy = NoiseScalePolicy()
    limits = Limits(granularity=MICRO, min_batch_size=MICRO, max_batch_size=168)
    averages, noise, batch, seen, measured_at, changed_at = Averages(), None, MICRO, 0, 0, None
    checkpoints, answers = [0.25, 0.5, 1.0], []
    for index in range(BUDGET):
        warmup = seen < 0.05 * BUDGET
        probe = batch == MICRO and index % 4 == 0
        count = 2 if probe else batch // MICRO
        seen += count * MICRO
        if count >= 2 and (warmup or probe or index % 8 == 0):
            sums, mean = gaussian_norms(
                rng, (), num_micro_batches=count, micro_batch_size=MICRO, dimension=256, trace=1.0, grad_sq=1 / TRUTH
            )
            moments = moments_of(equal_sums(sums, mean, count, MICRO))
            averages = averages.updated(moments, examples_since_last=seen - measured_at, memory=0.05 * BUDGET)
            measured_at, noise = seen, averages.noise_scale()
            situation = Situation(
                batch_size=batch,
                start_batch_size=MICRO,
                examples_seen=seen,
                total_examples=BUDGET,
                warmup_examples=0.05 * BUDGET,
                examples_at_last_change=changed_at,
                noise=noise,
            )
            decided = policy.decide(situation, limits).batch_size
            changed_at = seen if decided != batch else changed_at
            batch = decided
        if seen >= checkpoints[len(answers)] * BUDGET:
            answers.append((noise, batch))
            if len(answers) == len(checkpoints):
                break
    return answers


def test_at_the_default_memory_the_interval_covers_the_truth_through_growth():
    runs = [scaled_run(seed) for seed in range(240)]
    for checkpoint in zip(*runs, strict=True):
        estimates = [noise for noise, _ in checkpoint]
        assert 0.85 <= np.mean([noise.low <= TRUTH <= noise.high for noise in estimates]) <= 0.97
        assert np.mean([noise.resolved for noise in estimates]) > 0.9
    batches = [batch for _, batch in runs[0]]
    assert batches[-1] >= 4 * MICRO  # the window sizes did change
    # The twin: the normal quantile, as if the scatter of a handful of windows were known exactly, covers too little.
    exact = dict(degrees_of_freedom=math.inf, third_moment=0.0)
    naive = [dataclasses.replace(noise, **exact) for run in runs for noise, _ in run]
    assert np.mean([noise.lower_bound(0.95) <= TRUTH <= noise.upper_bound(0.95) for noise in naive]) < 0.85


def hard_examples(rng, windows, share, *, num_micro=4, size=8, dimension=16):
    """Windows in which a few hard examples make up the gradient, and all others have none: trace and squared norm.

    A hard example has the gradient u + z with E||z||^2 = 1 and ||u|| = 1, so ||G||^2 = share^2 and tr(Sigma) =
    2 share - share^2.
    """
    hard = rng.binomial(size, share, (windows, num_micro))
    gradients = rng.standard_normal((windows, num_micro, dimension)) * np.sqrt(hard / dimension)[..., None] / size
    gradients[..., 0] += hard / size
    mean_of_squares, square_of_mean = (gradients**2).sum(-1).mean(-1), (gradients.mean(1) ** 2).sum(-1)
    traces = (mean_of_squares - square_of_mean) * size * num_micro / (num_micro - 1)
    return traces, (num_micro * square_of_mean - mean_of_squares) / (num_micro - 1)


@pytest.mark.parametrize("share", [0.03, 0.015])
def test_the_lower_bound_holds_where_a_few_hard_examples_make_up_the_gradient(share):
    """One or half a hard example in a window of 32: its squared norm is mostly far too low, and sometimes too high."""
    rng, truth, found = np.random.default_rng(7), (2 - share) / share, []
    for _ in range(300):
        windows = [window(*pair) for pair in zip(*hard_examples(rng, 150, share), strict=True)]
        found.append(averaged(windows, memory=50 * 16.0).noise_scale())
    assert np.mean([noise.low <= truth for noise in found]) >= 0.92  # nominal 0.95
    assert np.mean([noise.low <= truth <= noise.high for noise in found]) >= 0.87
    assert np.mean([noise.lower_bound(0.9) <= truth for noise in found]) >= 0.86
    # The twin: Fieller's interval alone.
    plain = [dataclasses.replace(noise, third_moment=0.0) for noise in found]
    assert np.mean([noise.lower_bound(0.95) <= truth for noise in plain]) < 0.9
    assert np.mean([noise.lower_bound(0.9) <= truth for noise in plain]) < 0.83


def test_the_third_moment_is_that_of_the_weighted_mean():
    rng = np.random.default_rng(3)
    traces, squares = 8 + rng.gamma(1, 3, 40), 1 + rng.gamma(0.5, 1, 40)
    windows = [window(*pair) for pair in zip(traces, squares, strict=True)]
    found = averaged(windows, memory=10 * 16.0).noise_scale()
    weights = np.exp(np.arange(-39, 1) / 10)
    contrast = traces - found.noise_scale * squares
    assert weights @ contrast == pytest.approx(0, abs=1e-9)
    assert found.third_moment == pytest.approx((weights**3 @ contrast**3) / weights.sum() ** 3, rel=1e-9)


def test_a_wandering_truth_only_widens_the_interval():
    # Both truths wander slowly (autocorrelated), the errors are independent: covered is the weighted mean truth.
    rng = np.random.default_rng(5)
    covered, widths, still_widths = [], [], []
    for _ in range(150):
        wander = np.cumsum(rng.normal(0, 0.03, 120))
        truths = np.stack([8 * np.exp(wander), np.exp(-wander)])
        errors = rng.normal(0, 1, (2, 120)) * [[0.8], [0.3]]
        averages = averaged(map(window, *(truths + errors)))
        noise = averages.noise_scale()
        still = averaged(map(window, *(np.array([[8.0], [1.0]]) + errors))).noise_scale()
        covered.append(noise.low <= truths[0].mean() / truths[1].mean() <= noise.high)
        widths.append((noise.high - noise.low) / noise.noise_scale)
        still_widths.append((still.high - still.low) / still.noise_scale)
    assert np.mean(covered) >= 0.87
    assert np.median(widths) > np.median(still_widths)
