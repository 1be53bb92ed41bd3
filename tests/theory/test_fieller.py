import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy import optimize, stats

from lightning_bsscale.theory.fieller import fieller_interval, student_t_quantile


@pytest.mark.parametrize("degrees", [1, 1.05, 1.5, 2, 2.7, 3, 3.9, 4, 5, 9.5, 30, 1e3, 9e5, 1e7, math.inf])
@pytest.mark.parametrize("probability", [0.55, 0.75, 0.9, 0.95, 0.975, 0.99, 0.9901, 0.9975, 0.9999])
def test_quantiles_agree_with_scipy(probability, degrees):
    truth = stats.norm.ppf(probability) if math.isinf(degrees) else stats.t.ppf(probability, degrees)
    assert student_t_quantile(probability, degrees) == pytest.approx(truth, rel=1e-4)


def test_the_median_is_zero():
    assert student_t_quantile(0.5, 7) == 0


@pytest.mark.parametrize("probability", [0.999, 0.999999])
@pytest.mark.parametrize("degrees", [1, 1.2, 3, 30])
def test_far_quantiles_are_finite_and_at_least_normal(probability, degrees):
    found = student_t_quantile(probability, degrees)
    assert stats.norm.ppf(probability) < found < math.inf


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.4, 5), "probability"),
        ((1.0, 5), "probability"),
        ((0.9, 0.5), "degrees_of_freedom must be a number at least 1"),
    ],
)
def test_quantiles_refuse_what_they_cannot_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        student_t_quantile(*arguments)


def interval(trace, grad_sq, trace_variance=0.0, grad_sq_variance=0.0, covariance=0.0, quantile=2.0):
    return fieller_interval(
        trace=trace,
        grad_sq=grad_sq,
        trace_variance=trace_variance,
        grad_sq_variance=grad_sq_variance,
        covariance=covariance,
        quantile=quantile,
    )


def test_only_the_trace_uncertain_is_a_symmetric_interval():
    assert interval(8, 2, trace_variance=1) == (3.0, 5.0, True)


def test_only_the_square_uncertain_is_the_interval_of_the_inverse():
    low, high, resolved = interval(8, 1, grad_sq_variance=0.0625)  # G2 in 0.5 .. 1.5
    assert (low, high, resolved) == (pytest.approx(8 / 1.5), 16.0, True)


def test_known_exactly_is_a_point():
    assert interval(8, 2) == (4.0, 4.0, True)


@pytest.mark.parametrize(
    ("name", "found", "low_is_positive"),
    [
        ("square within two errors of zero", interval(8, 1, grad_sq_variance=1), True),
        ("square exactly two errors from zero", interval(8, 1, grad_sq_variance=0.25), True),
        ("square below zero, not clearly", interval(8, -1, trace_variance=0.1, grad_sq_variance=1), True),
        ("square clearly below zero", interval(8, -1, grad_sq_variance=0.01), False),
        ("square zero and known", interval(8, 0), False),
        ("nothing clear at all", interval(1, 1, trace_variance=9, grad_sq_variance=9), False),
        ("nothing measured", interval(8, 1, trace_variance=math.inf, grad_sq_variance=math.inf), False),
        ("nothing measured, median", interval(8, 1, 0.0, math.inf, quantile=0.0), False),
        ("trace unknown", interval(8, 1, trace_variance=math.inf), False),
    ],
)
def test_what_is_not_bounded_is_not_resolved(name, found, low_is_positive):
    low, high, resolved = found
    assert not resolved
    assert high == math.inf
    assert (low > 0) == low_is_positive


@pytest.mark.parametrize("found", [interval(1, 2, trace_variance=1), interval(0, 2), interval(-5, 2, trace_variance=1)])
def test_bounded_but_reaching_zero_is_not_resolved(found):
    low, high, resolved = found
    assert (low, resolved) == (0.0, False)
    assert 0 <= high < math.inf


def test_skewed_windows_move_one_end_outwards():
    """By hand, of a squared norm that is known: (trace + t² third / variance ± t deviation) / squared norm."""
    known = dict(trace=8, grad_sq=2, trace_variance=0.25, grad_sq_variance=0, covariance=0, quantile=1.5)
    low, high = (8 - 1.5 * 0.5) / 2, (8 + 1.5 * 0.5) / 2
    shift = 2.25 * 0.1 / 0.25 / 2
    assert fieller_interval(**known) == pytest.approx((low, high, True))
    assert fieller_interval(**known, third_moment=0.1) == pytest.approx((low, high + shift, True))
    assert fieller_interval(**known, third_moment=-0.1) == pytest.approx((low - shift, high, True))
    # A skew as large as the trace: nothing is known below.
    assert fieller_interval(**known, third_moment=-0.9) == pytest.approx((0.0, high, False))


@given(st.floats(1, 10), st.floats(-10, 10), st.floats(0.01, 5), st.floats(0.01, 5), st.floats(-20, 20))
@example(trace=1.0, grad_sq=1e-155, se_trace=1.0, se_sq=1.0, third_moment=1.0)  # a ratio whose square is infinite
def test_skewness_never_shortens_the_interval(trace, grad_sq, se_trace, se_sq, third_moment):
    known = dict(trace=trace, grad_sq=grad_sq, trace_variance=se_trace**2, grad_sq_variance=se_sq**2, covariance=0.0)
    low, high, resolved = fieller_interval(**known, quantile=1.6)
    lower, higher, still_resolved = fieller_interval(**known, quantile=1.6, third_moment=third_moment)
    assert 0 <= lower <= low
    assert higher >= high
    assert resolved or not still_resolved


means = st.floats(-10, 10)
errors = st.floats(0.01, 5)


@given(means, means, errors, errors, st.floats(-0.95, 0.95), st.floats(0.1, 4), st.floats(0, 100))
def test_every_ratio_is_inside_exactly_when_the_test_keeps_it(trace, grad_sq, se_trace, se_sq, rho, quantile, ratio):
    covariance = rho * se_trace * se_sq
    low, high, resolved = interval(trace, grad_sq, se_trace**2, se_sq**2, covariance, quantile)
    spread = math.sqrt(se_trace**2 - 2 * ratio * covariance + ratio**2 * se_sq**2)
    excess = abs(trace - ratio * grad_sq) - quantile * spread
    assume(abs(excess) > 1e-6 * (1 + ratio))
    inside = low <= ratio <= high
    if excess < 0:
        assert inside  # the interval holds the whole set
    elif resolved:
        assert not inside  # and nothing else, where it is a bounded interval above zero


@given(st.floats(1, 10), st.floats(1, 10), errors, errors, st.floats(-0.9, 0.9))
def test_ends_are_where_the_test_is_just_kept(trace, grad_sq, se_trace, se_sq, rho):
    covariance = rho * se_trace * se_sq
    low, high, resolved = interval(trace, grad_sq, se_trace**2, se_sq**2, covariance, 1.6)
    assume(resolved)

    def excess(ratio):
        spread = math.sqrt(se_trace**2 - 2 * ratio * covariance + ratio**2 * se_sq**2)
        return trace - ratio * grad_sq - 1.6 * spread

    assert low == pytest.approx(optimize.brentq(excess, 0, trace / grad_sq), rel=1e-4, abs=1e-9)
    assert high >= trace / grad_sq >= low


@given(st.floats(1, 10), means, errors, errors, st.floats(0.01, 100), st.floats(0.01, 100))
def test_units_do_not_matter(trace, grad_sq, se_trace, se_sq, trace_unit, sq_unit):
    assume(abs(grad_sq**2 - 2.25 * se_sq**2) > 1e-3)
    low, high, resolved = interval(trace, grad_sq, se_trace**2, se_sq**2, 0.0, 1.5)
    other = interval(
        trace * trace_unit, grad_sq * sq_unit, (se_trace * trace_unit) ** 2, (se_sq * sq_unit) ** 2, 0.0, 1.5
    )
    scale = trace_unit / sq_unit
    assert other[0] == pytest.approx(low * scale, rel=1e-6, abs=1e-9)
    assert other[1] == pytest.approx(high * scale, rel=1e-6)
    assert other[2] == resolved or abs(low) < 1e-6
