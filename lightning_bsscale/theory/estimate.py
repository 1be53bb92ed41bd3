r"""Averages over many windows with a memory in examples, and the noise scale with an interval that covers it.

One window's estimate of the squared gradient norm can be zero or negative, so ratios of single windows are
meaningless. The weighted means of trace and squared norm are kept separately and divided once:

    B_simple = S / G2,   S = sum w_i S_i / sum w_i,   G2 = sum w_i G2_i / sum w_i

The weight of a window is its number of examples, which does not depend on any measurement, times the memory's decay
``exp(-a_i / memory)``, where ``a_i`` is the window's age in examples. Weights that depend on a measurement would
bias the means. Since both means are normalised by the sum of weights, they need no further debiasing.

Variances are those of weighted means with unknown, unequal variances (the "sandwich"; White 1980), because
windows differ in size and in number of micro-batches, and so in scatter:

    Var S = n/(n - 1) * sum w_i^2 (S_i - S)^2 / (sum w_i)^2,     n = (sum w_i)^2 / sum w_i^2   (Kish 1965)

and likewise for ``G2`` and the covariance. ``n`` is the effective number of windows. Student's t replaces the normal
quantile, with ``min(n - 1, (sum w_i^2)^2 / sum w_i^4)`` degrees of freedom (Satterthwaite 1946, for a sum of squares
with weights ``w_i^2``): an exponential memory worth n windows knows its scatter only as well as n/2 of them.

The interval around the ratio is Fieller's (fieller.py). Where the windows are skewed, one of its ends moves outwards by
the third moment of the weighted mean of ``D_i = S_i - B G2_i``, with ``B`` the point estimate:

    sum w_i^3 D_i^3 / (sum w_i)^3        (the weighted mean of D_i is zero)

It is above zero where a few large windows make up much of the trace, and below where they make up much of the squared
norm. Late in the training of a network that has learned most examples, a handful of hard ones make up nearly all of the
gradient; few windows hold two of them, and the squared norm is mostly far too low and sometimes far too high.

Windows need no correction for autocorrelation. Each window's moments are unbiased *at its own parameters*, given
everything before, so their errors are uncorrelated (martingale differences) however slowly the true value moves. Its
movement within the memory adds to the scatter and only widens the interval. The interval covers the weighted
mean over the memory, not the last step's value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from lightning_bsscale.theory.checks import check_number
from lightning_bsscale.theory.fieller import fieller_interval, student_t_quantile
from lightning_bsscale.theory.frozen import changed
from lightning_bsscale.theory.moments import WindowMoments

__all__ = ["SUM_NAMES", "Averages", "NoiseScale", "noise_scale_from_means", "sums_of"]

_MIN_EFFECTIVE_WINDOWS = 2.0
# Of trace and squared norm; beyond, the noise scale is infinite for every purpose, and its powers overflow.
_LARGEST_RATIO = 1e30


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseScale:
    """The gradient noise scale with its interval. An unknown one is a value, never an exception.

    Attributes:
        noise_scale: trace / grad_sq, in examples; infinite where ``grad_sq`` is not above zero.
        low: Lower end of the two-sided interval, in examples, at least 0.
        high: Upper end of the two-sided interval, in examples; may be infinite.
        trace: Weighted mean of the windows' tr(Sigma), gradient units squared times examples.
        grad_sq: Weighted mean of the windows' squared gradient norm, gradient units squared; may be negative.
        effective_windows: Equivalent number of windows of equal weight (Kish).
        resolved: Whether the interval is bounded and lies above zero; otherwise no decision is based on it.
        trace_variance: Variance of ``trace``, in its unit squared.
        grad_sq_variance: Variance of ``grad_sq``, in its unit squared.
        covariance: Covariance of ``trace`` and ``grad_sq``, in the product of their units.
        confidence: Two-sided confidence of ``low`` and ``high``.
        degrees_of_freedom: Degrees of freedom of the variances, for Student's t; infinite where they are exact.
        third_moment: Third central moment of ``trace - noise_scale * grad_sq``, in the trace's unit cubed: above zero
            where a few large windows make up much of the trace, below where they make up much of the squared norm; 0
            where ``grad_sq`` is not above zero.
    """

    noise_scale: float
    low: float
    high: float
    trace: float
    grad_sq: float
    effective_windows: float
    resolved: bool
    trace_variance: float
    grad_sq_variance: float
    covariance: float
    confidence: float
    degrees_of_freedom: float = math.inf
    third_moment: float = 0.0

    def lower_bound(self, confidence: float) -> float:
        """Compute a one-sided lower bound of the noise scale.

        Args:
            confidence: Probability that the true value lies above, from 0.5 (the point estimate) to below 1.

        Returns:
            The bound in examples, at least 0; 0 where nothing is known.

        Example:
            >>> noise = noise_scale_from_means(
            ...     trace=8.0, grad_sq=1.0, trace_variance=0.04, grad_sq_variance=0.01, covariance=0.0,
            ...     effective_windows=100.0, confidence=0.9,
            ... )
            >>> noise.lower_bound(0.5), round(noise.lower_bound(0.95), 3) == round(noise.low, 3)
            (8.0, True)
        """
        return self._bounds(check_number("confidence", confidence, at_least=0.5, below=1))[0]

    def upper_bound(self, confidence: float) -> float:
        """Compute a one-sided upper bound of the noise scale.

        Args:
            confidence: Probability that the true value lies below, from 0.5 (the point estimate) to below 1.

        Returns:
            The bound in examples; infinite where nothing is known.
        """
        return self._bounds(check_number("confidence", confidence, at_least=0.5, below=1))[1]

    def _bounds(self, confidence: float) -> tuple[float, float]:
        low, high, _ = fieller_interval(
            trace=self.trace,
            grad_sq=self.grad_sq,
            trace_variance=self.trace_variance,
            grad_sq_variance=self.grad_sq_variance,
            covariance=self.covariance,
            quantile=student_t_quantile(confidence, self.degrees_of_freedom),
            third_moment=self.third_moment,
        )
        return low, high


def noise_scale_from_means(
    *,
    trace: float,
    grad_sq: float,
    trace_variance: float,
    grad_sq_variance: float,
    covariance: float,
    effective_windows: float,
    confidence: float,
    degrees_of_freedom: float = math.inf,
    third_moment: float = 0.0,
) -> NoiseScale:
    """Divide the means, and compute Fieller's interval around the ratio.

    Args:
        trace: Mean of tr(Sigma).
        grad_sq: Mean of the squared gradient norm.
        trace_variance: Variance of that mean of the trace.
        grad_sq_variance: Variance of that mean of the squared norm.
        covariance: Covariance of the two means.
        effective_windows: Effective number of windows, for the record.
        confidence: Two-sided confidence of the interval, between 0 and 1.
        degrees_of_freedom: Degrees of freedom of the variances, at least 1; infinite where they are exact.
        third_moment: Third central moment of ``trace - rho_hat grad_sq``, with ``rho_hat`` the ratio of the means.

    Returns:
        The noise scale with interval.

    Source: Fieller 1954, Journal of the Royal Statistical Society B 16.

    Example:
        Signal five standard errors above zero, then one:

        >>> known = dict(trace=8.0, trace_variance=0.0, covariance=0.0, effective_windows=100.0, confidence=0.9)
        >>> clear = noise_scale_from_means(grad_sq=1.0, grad_sq_variance=0.04, **known)
        >>> print(f"{clear.low:.1f} {clear.noise_scale:.1f} {clear.high:.1f} {clear.resolved}")
        6.0 8.0 11.9 True
        >>> unclear = noise_scale_from_means(grad_sq=1.0, grad_sq_variance=1.0, **known)
        >>> print(f"{unclear.low:.1f} {unclear.noise_scale:.1f} {unclear.high:.1f} {unclear.resolved}")
        3.0 8.0 inf False
    """
    check_number("confidence", confidence, above=0, below=1)
    low, high, resolved = fieller_interval(
        trace=trace,
        grad_sq=grad_sq,
        trace_variance=trace_variance,
        grad_sq_variance=grad_sq_variance,
        covariance=covariance,
        quantile=student_t_quantile((1 + confidence) / 2, degrees_of_freedom),
        third_moment=third_moment,
    )
    return NoiseScale(
        noise_scale=trace / grad_sq if grad_sq > 0 else math.inf,
        low=low,
        high=high,
        trace=trace,
        grad_sq=grad_sq,
        effective_windows=effective_windows,
        resolved=resolved,
        trace_variance=trace_variance,
        grad_sq_variance=grad_sq_variance,
        covariance=covariance,
        confidence=confidence,
        degrees_of_freedom=degrees_of_freedom,
        third_moment=third_moment,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Averages:
    """Running weighted sums over windows, immutable; ``Averages()`` is empty.

    All sums are additive over windows, so that they can also be added over ranks or kept as metric states. ``w``
    is a window's weight (examples times decay), ``S`` its trace and ``G`` its squared norm.

    Attributes:
        weight: Sum of w, in examples.
        weight_sq: Sum of w^2.
        weight_fourth: Sum of w^4.
        trace: Sum of w S.
        grad_sq: Sum of w G.
        trace_weight_sq: Sum of w^2 S.
        grad_sq_weight_sq: Sum of w^2 G.
        trace_trace: Sum of w^2 S^2.
        grad_sq_grad_sq: Sum of w^2 G^2.
        trace_grad_sq: Sum of w^2 S G.
        trace_cubed: Sum of w^3 S^3.
        trace_trace_grad_sq: Sum of w^3 S^2 G.
        trace_grad_sq_grad_sq: Sum of w^3 S G^2.
        grad_sq_cubed: Sum of w^3 G^3.
        windows: Windows that entered, never decayed.
        dropped: Non-finite windows that did not enter.
    """

    weight: float = 0.0
    weight_sq: float = 0.0
    weight_fourth: float = 0.0
    trace: float = 0.0
    grad_sq: float = 0.0
    trace_weight_sq: float = 0.0
    grad_sq_weight_sq: float = 0.0
    trace_trace: float = 0.0
    grad_sq_grad_sq: float = 0.0
    trace_grad_sq: float = 0.0
    trace_cubed: float = 0.0
    trace_trace_grad_sq: float = 0.0
    trace_grad_sq_grad_sq: float = 0.0
    grad_sq_cubed: float = 0.0
    windows: int = 0
    dropped: int = 0

    @property
    def effective_windows(self) -> float:
        """Kish's effective number of windows, (sum w)^2 / sum w^2; 0 when empty."""
        return self.weight**2 / self.weight_sq if self.weight_sq > 0 else 0.0

    def updated(self, moments: WindowMoments, *, examples_since_last: float, memory: float) -> Averages:
        """Decay the sums and add one window.

        Args:
            moments: The window's moments. A non-finite window is dropped and counted; the sums still decay.
            examples_since_last: Examples seen since the last update (of all windows, measured or not); ignored by an
                empty record.
            memory: Examples over which a window's weight falls to 1/e; infinite for all windows alike.

        Returns:
            A new record.

        Example:
            >>> window = WindowMoments(trace=8.0, grad_sq=1.0, num_samples=2, examples=16, harmonic_size=8.0)
            >>> averages = Averages().updated(window, examples_since_last=16, memory=math.inf)
            >>> averages.windows, averages.trace / averages.weight
            (1, 8.0)
        """
        aged, added = self.aged(examples_since_last, memory), sums_of(moments)
        return changed(aged, **{name: getattr(aged, name) + value for name, value in added.items()})

    def aged(self, examples: float, memory: float) -> Averages:
        """Let the sums decay, and add nothing.

        Args:
            examples: Examples seen meanwhile.
            memory: Examples over which a window's weight falls to 1/e; infinite for no decay.

        Returns:
            A new record.
        """
        check_number("examples_since_last", examples, at_least=0)
        check_number("memory", memory, above=0, may_be_infinite=True)
        decay = math.exp(-examples / memory)
        powers = decay, decay**2, decay**3, decay**4
        return self if decay == 1 else changed(self, **{n: powers[p] * getattr(self, n) for n, p in _DECAYING})

    @property
    def spread(self) -> tuple[float, float]:
        """Standard deviation of a window of usual weight, of its trace and of its squared norm; 0 below two windows."""
        count = self.effective_windows
        if count <= 1:
            return 0.0, 0.0
        scale = count / (count - 1) / self.weight_sq
        trace, grad_sq, _ = self._scatter()
        return math.sqrt(trace * scale), math.sqrt(grad_sq * scale)

    def _scatter(self) -> tuple[float, float, float]:
        # Sums of w^2 times the squared deviations from the means, and of their product. Sums of squares in exact
        # arithmetic; rounding must not make them negative.
        trace, grad_sq = self.trace / self.weight, self.grad_sq / self.weight
        return (
            max(0.0, self.trace_trace - 2 * trace * self.trace_weight_sq + trace**2 * self.weight_sq),
            max(0.0, self.grad_sq_grad_sq - 2 * grad_sq * self.grad_sq_weight_sq + grad_sq**2 * self.weight_sq),
            self.trace_grad_sq
            - trace * self.grad_sq_weight_sq
            - grad_sq * self.trace_weight_sq
            + trace * grad_sq * self.weight_sq,
        )

    def _third_moment(self, trace_variance: float, grad_sq_variance: float, covariance: float) -> float:
        # Third central moment of the weighted mean of D = S - ratio G, whose own mean is zero.
        if self.grad_sq <= 0:
            return 0.0
        ratio = self.trace / self.grad_sq
        if not abs(ratio) <= _LARGEST_RATIO:
            return 0.0
        moment = (
            self.trace_cubed
            - 3 * ratio * self.trace_trace_grad_sq
            + 3 * ratio**2 * self.trace_grad_sq_grad_sq
            - ratio**3 * self.grad_sq_cubed
        ) / self.weight**3
        # No n numbers are skewed by more than sqrt(n); beyond lies the rounding of windows that hardly differ.
        variance = max(0.0, trace_variance - 2 * ratio * covariance + ratio**2 * grad_sq_variance)
        limit = math.sqrt(variance**3 * self.effective_windows)
        return min(max(moment, -limit), limit)

    def noise_scale(self, confidence: float = 0.9) -> NoiseScale | None:
        """Compute the noise scale with interval from the sums.

        Args:
            confidence: Two-sided confidence of the interval, between 0 and 1.

        Returns:
            The noise scale; None before the second window, because scatter needs two. Where the memory has faded to
            less than two windows of equal weight, the variances are infinite and the estimate is unresolved.

        Example:
            >>> averages = Averages()
            >>> for trace, grad_sq in ((7.0, 1.1), (9.0, 0.9), (8.0, 1.0)):
            ...     window = WindowMoments(
            ...         trace=trace, grad_sq=grad_sq, num_samples=2, examples=16, harmonic_size=8.0
            ...     )
            ...     averages = averages.updated(window, examples_since_last=16, memory=math.inf)
            >>> round(averages.noise_scale().noise_scale, 6)
            8.0
        """
        if self.windows < 2:
            return None
        count = self.effective_windows
        trace, grad_sq = self.trace / self.weight, self.grad_sq / self.weight
        if count < _MIN_EFFECTIVE_WINDOWS:
            return noise_scale_from_means(
                trace=trace,
                grad_sq=grad_sq,
                trace_variance=math.inf,
                grad_sq_variance=math.inf,
                covariance=0.0,
                effective_windows=count,
                confidence=confidence,
                degrees_of_freedom=1.0,
            )
        # The first factor makes the scatter unbiased where all weights are equal, and where variances go as 1/weight.
        scale = count / (count - 1) / self.weight**2
        trace_scatter, grad_sq_scatter, cross_scatter = self._scatter()
        return noise_scale_from_means(
            trace=trace,
            grad_sq=grad_sq,
            trace_variance=trace_scatter * scale,
            grad_sq_variance=grad_sq_scatter * scale,
            covariance=cross_scatter * scale,
            effective_windows=count,
            confidence=confidence,
            degrees_of_freedom=max(1.0, min(count - 1, self.weight_sq**2 / self.weight_fourth)),
            third_moment=self._third_moment(trace_scatter * scale, grad_sq_scatter * scale, cross_scatter * scale),
        )

    def to_state(self) -> dict[str, float | int]:
        """Return the sums as plain numbers for a checkpoint, one for each of :data:`SUM_NAMES`."""
        return {name: getattr(self, name) for name in SUM_NAMES}

    @classmethod
    def from_state(cls, state: Mapping[str, float | int]) -> Averages:
        """Make the record from its plain numbers, or from added :func:`sums_of` windows.

        Args:
            state: One number for each of :data:`SUM_NAMES`.

        Returns:
            The record.

        Example:
            >>> Averages.from_state(Averages().to_state()) == Averages()
            True
        """
        sums: dict[str, float] = {name: float(state[name]) for name in SUM_NAMES}
        windows, dropped = int(sums.pop("windows")), int(sums.pop("dropped"))
        return cls(**sums, windows=windows, dropped=dropped)


SUM_NAMES = tuple(field.name for field in fields(Averages))
"""Names of the sums, in order; each is additive over windows of equal age."""

# The power of the decay by which a sum is multiplied, less one; "windows" and "dropped" never decay.
_DECAYING = (
    *((name, 0) for name in ("weight", "trace", "grad_sq")),
    *((name, 1) for name in ("weight_sq", "trace_weight_sq", "grad_sq_weight_sq", "trace_trace", "grad_sq_grad_sq")),
    ("trace_grad_sq", 1),
    *((name, 2) for name in ("trace_cubed", "trace_trace_grad_sq", "trace_grad_sq_grad_sq", "grad_sq_cubed")),
    ("weight_fourth", 3),
)


def sums_of(moments: WindowMoments) -> dict[str, float]:
    """Compute what one window adds to each sum of :class:`Averages`.

    Args:
        moments: The window's moments.

    Returns:
        One number for each of :data:`SUM_NAMES`; all zero but ``dropped`` for a window with a non-finite number.

    Example:
        >>> window = WindowMoments(trace=8.0, grad_sq=1.0, num_samples=2, examples=16, harmonic_size=8.0)
        >>> sums_of(window)["trace"], sums_of(window)["windows"]
        (128.0, 1)
    """
    w, trace, grad_sq = moments.examples, moments.trace, moments.grad_sq
    sums: dict[str, float] = {
        "weight": w,
        "weight_sq": w**2,
        "weight_fourth": w**4,
        "trace": w * trace,
        "grad_sq": w * grad_sq,
        "trace_weight_sq": w**2 * trace,
        "grad_sq_weight_sq": w**2 * grad_sq,
        "trace_trace": (w * trace) * (w * trace),
        "grad_sq_grad_sq": (w * grad_sq) * (w * grad_sq),
        "trace_grad_sq": (w * trace) * (w * grad_sq),
        "trace_cubed": (w * trace) * (w * trace) * (w * trace),
        "trace_trace_grad_sq": (w * trace) * (w * trace) * (w * grad_sq),
        "trace_grad_sq_grad_sq": (w * trace) * (w * grad_sq) * (w * grad_sq),
        "grad_sq_cubed": (w * grad_sq) * (w * grad_sq) * (w * grad_sq),
        "windows": 1,
        "dropped": 0,
    }
    # A finite window whose squares overflow is dropped too: it would make the sums infinite for good.
    if not all(math.isfinite(value) for value in sums.values()):
        return {**dict.fromkeys(SUM_NAMES, 0.0), "windows": 0, "dropped": 1}
    return sums
