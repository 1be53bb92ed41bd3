"""An interval for a ratio of two uncertain means that is valid even if the denominator is not clearly above zero."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

from lightning_bsscale.theory.checks import check_number

__all__ = ["fieller_interval", "student_t_quantile"]

_FEW_DEGREES = 4.0


@lru_cache(maxsize=64)
def student_t_quantile(probability: float, degrees_of_freedom: float) -> float:
    """Compute a quantile of Student's t distribution, for real degrees of freedom.

    With ``t = sqrt(nu) tan(theta)`` the density becomes ``C cos(theta)^(nu - 1)``, so the quantile's angle solves
    ``C * integral_0^theta cos^(nu - 1) = probability - 1/2``. The left side is concave, so Newton's method converges
    from any angle below; it starts at the first terms of the expansion in ``1 / nu`` (Abramowitz and Stegun, 26.7.5).

    Far out, with few degrees of freedom, the density at the end is too steep for that. There the equation is solved for
    ``phi = pi/2 - theta``, whose tail probability is almost a power: ``C phi^nu / nu`` times a mean close to one.

    Args:
        probability: Probability below the quantile, from 0.5 to below 1.
        degrees_of_freedom: Any number from 1 to infinity (the normal distribution).

    Returns:
        The quantile, with a relative error below 1e-4 for probabilities up to 0.9999.

    Example:
        >>> round(student_t_quantile(0.95, 9), 4), round(student_t_quantile(0.95, math.inf), 4)
        (1.8331, 1.6449)
    """
    check_number("probability", probability, at_least=0.5, below=1)
    nu = check_number("degrees_of_freedom", degrees_of_freedom, at_least=1, may_be_infinite=True)
    normal = NormalDist().inv_cdf(probability)
    if probability == 0.5 or nu > 1e6:
        return normal
    log_constant = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - math.log(math.pi) / 2
    if probability > 0.99 and nu < _FEW_DEGREES:
        return _far_quantile(probability, nu, log_constant)
    goal = (probability - 0.5) / math.exp(log_constant)
    start = normal + (normal**3 + normal) / (4 * nu) + (5 * normal**5 + 16 * normal**3 + 3 * normal) / (96 * nu**2)
    theta = math.atan(start / math.sqrt(nu))
    for _ in range(50):
        width = theta / 64
        inner = sum((2 + 2 * (i % 2)) * math.cos(i * width) ** (nu - 1) for i in range(1, 64))
        density = math.cos(theta) ** (nu - 1)
        step = (goal - (1 + inner + density) * width / 3) / density  # Simpson's rule
        theta = min(theta + step, (theta + math.pi / 2) / 2)
        if abs(step) < 1e-6 * theta:  # convergence is quadratic
            break
    return math.sqrt(nu) * math.tan(theta)


def _far_quantile(probability: float, nu: float, log_constant: float) -> float:
    # tail(phi) = C integral_0^phi sin^(nu - 1) = C phi^nu / nu * mean over v in [0, 1] of (sin u / u)^(nu - 1),
    # u = phi v^(1 / nu).
    log_tail = math.log1p(-probability)
    phi = min(1.5, math.exp((log_tail - log_constant + math.log(nu)) / nu))
    for _ in range(50):
        places = (phi * (i / 64) ** (1 / nu) for i in range(1, 65))
        values = [(math.sin(u) / u) ** (nu - 1) for u in places]
        mean = (1 + sum((2 + 2 * (i % 2)) * value for i, value in enumerate(values[:-1], 1)) + values[-1]) / 192
        excess = log_constant + nu * math.log(phi) - math.log(nu) + math.log(mean) - log_tail
        step = excess * mean / (values[-1] * nu)  # d log tail / d log phi = nu * last value / mean
        phi = min(1.5, phi * math.exp(-step))
        if abs(step) < 1e-9:
            break
    return math.sqrt(nu) / math.tan(phi)


def fieller_interval(
    *,
    trace: float,
    grad_sq: float,
    trace_variance: float,
    grad_sq_variance: float,
    covariance: float,
    quantile: float,
    third_moment: float = 0.0,
) -> tuple[float, float, bool]:
    """Compute Fieller's set for the ratio trace / grad_sq, restricted to zero and above, longer for skewed windows.

    The set contains all ratios ``rho`` for which ``trace - rho grad_sq`` lies within ``quantile`` standard errors of
    zero:

        (trace - rho grad_sq)^2 <= quantile^2 (trace_variance - 2 rho covariance + rho^2 grad_sq_variance)

    or ``a rho^2 - 2 b rho + c <= 0``. For ``a > 0`` that is an interval around the point estimate. For ``a <= 0`` the
    squared norm is not clearly above zero and the set is unbounded; the delta method's interval is bounded there too,
    and wrong.

    A mean over heavy-tailed windows usually lies *below* the true value, since most samples contain too few of the rare
    large values. Where they are values of the trace (single examples with a large gradient), the ratio is usually too
    low; where they are values of the squared norm (two micro-batches of a window that both hold a rare example of the
    same large gradient), it is too high. The set tests ``D = trace - rho_hat grad_sq``, whose third moment has both.
    One end is therefore that of Fieller's set for a trace of

        trace + quantile^2 * third_moment / variance of D

    the upper end for a third moment above zero, the lower end for one below. The form is Johnson's (1978), who has (1 +
    2 quantile^2) / 6 instead of quantile^2: a sample from a heavy tail underestimates its own third moment, and about
    three times his term restores the coverage of both ends (benchmarks/averages.py). Without skewness the interval is
    Fieller's.

    Args:
        trace: Mean of tr(Sigma).
        grad_sq: Mean of the squared gradient norm.
        trace_variance: Variance of that mean of the trace, at least 0; may be infinite.
        grad_sq_variance: Variance of that mean of the squared norm, at least 0; may be infinite.
        covariance: Covariance of the two means.
        quantile: Standard errors on each side, at least 0.
        third_moment: Third central moment of ``trace - rho_hat grad_sq``, with the point estimate ``rho_hat``, in the
            trace's unit cubed.

    Returns:
        The lower end, the upper end (both in examples, infinite where there is none), and whether the ratio is
        *resolved*: the set is a bounded interval above zero.

    Sources: Fieller 1954, Journal of the Royal Statistical Society B 16, 175-185; Johnson 1978, Journal of the American
    Statistical Association 73, 536-544.

    Example:
        >>> fieller_interval(
        ...     trace=8.0, grad_sq=1.0, trace_variance=0.0, grad_sq_variance=0.0625, covariance=0.0, quantile=2.0
        ... )
        (5.333333333333333, 16.0, True)
    """
    known = (grad_sq, trace_variance, grad_sq_variance, covariance, quantile**2)
    low, high = _fieller_set(trace, *known)
    shift = 0.0
    if third_moment != 0 and grad_sq > 0:
        ratio = trace / grad_sq
        variance = trace_variance - 2 * ratio * covariance + ratio * ratio * grad_sq_variance  # a power would raise
        shift = quantile**2 * third_moment / variance if 0 < variance < math.inf else 0.0
    if shift > 0 and high < math.inf:
        high = _fieller_set(trace + shift, *known)[1]
    elif shift < 0:
        low = min(low, _fieller_set(trace + shift, *known)[0]) if trace + shift > 0 else 0.0
    return max(0.0, low), max(0.0, high), low > 0 and high < math.inf


def _fieller_set(
    trace: float, grad_sq: float, trace_variance: float, grad_sq_variance: float, covariance: float, t2: float
) -> tuple[float, float]:
    """Return the ends of the set; the upper one is infinite, and the lower one 0, where there is none."""
    a = grad_sq**2 - t2 * grad_sq_variance
    b = trace * grad_sq - t2 * covariance
    c = trace**2 - t2 * trace_variance
    # Where a > 0 the point estimate is in the set, so the discriminant is negative by rounding only.
    root = math.sqrt(max(0.0, b * b - a * c))
    if a > 0 and grad_sq > 0:
        return (b - root) / a, (b + root) / a
    if a <= 0 < c and (b > 0 or a < 0):
        # The roots have opposite signs and the set lies outside them: only a lower end is known. Both forms are the
        # same number; the first neither cancels nor divides by an a that is almost zero.
        return (c / (b + root) if b > 0 else (b - root) / a), math.inf
    # Nothing is known: the trace itself is not above zero, or the squared norm is clearly *below* zero, which is
    # impossible for the true gradient and rare by chance.
    return 0.0, math.inf
