r"""Averages in which no single window can outweigh the others, so that a gradient spike does not spoil the estimate.

A micro-batch whose gradient is 10 or 1,000 times the usual one (a corrupt example, a rare loss spike) has a trace 10^2
or 10^6 times the usual one. In a plain average it inflates the variance: the interval stays unbounded, and nothing is
decided, until the memory has faded by that factor.

A window's trace and squared norm are therefore each limited to

    mean +- k * s * max(1, sqrt(usual weight / w)),     k = effective windows, at least 10 and at most 50

where mean, spread ``s`` and usual weight are those of the previous windows. The newest window of an exponential memory
has about 2/n of the weight, so one window moves the mean by at most about two standard deviations of a window. Values
beyond the limits are clamped and counted; no window is left out. Each limited window widens the spread, so a lasting
change of level enters within a fraction of the memory, while a single spike is soon forgotten. ``s`` is at least 5 %
of the mean, so that almost equal windows do not limit an ordinary drift.

The first windows have no predecessors to compare with. Up to `START` of them are kept individually, and each time one
arrives all are limited together, by their median and 1.4826 times their median absolute deviation.

The cost: clamping a heavy upper tail lowers the mean of the trace. For Gaussian examples nothing is clamped. For
log-normal ones the mean is up to 2 % too low, and where single examples are Student t with 3 degrees of freedom (a
squared norm without a variance) up to 3 % in small windows and short memories. benchmarks/averages.py measures this,
with the interval's coverage and the delay that a spike causes.

Source: Huber 1964, Annals of Mathematical Statistics 35, 73-101 (limiting an observation's influence); here with limits
so wide that ordinary windows are not touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from lightning_bsscale.theory.estimate import Averages, NoiseScale, sums_of
from lightning_bsscale.theory.frozen import changed
from lightning_bsscale.theory.moments import WindowMoments

__all__ = ["START", "RobustAverages"]

START = 8
"""Number of windows at the start that are limited together."""

_MIN_WINDOWS = 4  # fewer windows do not define a usual range
_MIN_RELATIVE_SPREAD = 0.05  # of the mean
_MAD_TO_DEVIATION = 1.4826  # of a normal distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class _StartWindow:
    """One of the first windows.

    Attributes:
        moments: Its moments as measured.
        age: Examples seen since.
    """

    moments: WindowMoments
    age: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustAverages:
    """Running averages over windows, each of limited influence; immutable, ``RobustAverages()`` is empty.

    Attributes:
        sums: The sums over all windows, after limiting.
        limited: Number of windows whose trace or squared norm was limited.
        limited_in_start: Those of them in ``start``, for which this may still change.
        start: The first windows, while there are fewer than :data:`START`; they are in ``sums`` too.
    """

    sums: Averages = field(default_factory=Averages)
    limited: int = 0
    limited_in_start: int = 0
    start: tuple[_StartWindow, ...] = ()

    @property
    def dropped(self) -> int:
        """Number of non-finite windows, which did not enter."""
        return self.sums.dropped

    def noise_scale(self, confidence: float = 0.9) -> NoiseScale | None:
        """Compute the noise scale with interval; see :meth:`Averages.noise_scale`."""
        return self.sums.noise_scale(confidence)

    def updated(self, moments: WindowMoments, *, examples_since_last: float, memory: float) -> RobustAverages:
        """Decay the sums and add one window with limited influence.

        Args:
            moments: The window's moments. A non-finite window is dropped and counted; the sums still decay.
            examples_since_last: Examples seen since the last update (of all windows, measured or not).
            memory: Examples over which a window's weight falls to 1/e; infinite for all windows alike.

        Returns:
            A new record.

        Example:
            Sixteen windows, and one whose gradient is a thousand times larger:

            >>> usual = [
            ...     WindowMoments(trace=8 + i % 3, grad_sq=1.0, num_samples=2, examples=16, harmonic_size=8.0)
            ...     for i in range(16)
            ... ]
            >>> spike = WindowMoments(trace=8e6, grad_sq=1e3, num_samples=2, examples=16, harmonic_size=8.0)
            >>> averages = RobustAverages()
            >>> for window in [*usual, spike]:
            ...     averages = averages.updated(window, examples_since_last=16, memory=math.inf)
            >>> round(averages.noise_scale().trace, 1), averages.limited
            (9.7, 1)
        """
        sums = self.sums.aged(examples_since_last, memory)
        start = tuple(changed(window, age=window.age + examples_since_last) for window in self.start)
        if sums_of(moments)["dropped"]:
            return changed(self, sums=changed(sums, dropped=sums.dropped + 1), start=start)
        if sums.windows >= START:
            entered = _limit(moments, sums)
            sums = sums.updated(entered, examples_since_last=0, memory=memory)
            return RobustAverages(sums=sums, limited=self.limited + (entered != moments))
        start = (*start, _StartWindow(moments=moments, age=0.0))
        together, limited = _limit_together(start, memory)
        sums = changed(together, dropped=sums.dropped)
        before = self.limited - self.limited_in_start
        if len(start) == START:
            return RobustAverages(sums=sums, limited=before + limited)
        return RobustAverages(sums=sums, limited=before + limited, limited_in_start=limited, start=start)

    def cleared(self) -> RobustAverages:
        """Return a record without windows, but with the counts of limited and dropped ones."""
        return RobustAverages(sums=Averages(dropped=self.sums.dropped), limited=self.limited)


def _max_deviations(windows: float) -> float:
    return min(max(windows, 10.0), 50.0)


def _limit(moments: WindowMoments, before: Averages) -> WindowMoments:
    count = before.effective_windows
    if count < _MIN_WINDOWS:
        return moments
    usual_weight = before.weight_sq / before.weight
    reach = _max_deviations(count) * max(1.0, math.sqrt(usual_weight / moments.examples))
    means = before.trace / before.weight, before.grad_sq / before.weight
    distances = [_distance(reach, spread, mean) for spread, mean in zip(before.spread, means, strict=True)]
    return changed(
        moments,
        trace=_clamp(moments.trace, means[0] - distances[0], means[0] + distances[0]),
        grad_sq=_clamp(moments.grad_sq, means[1] - distances[1], means[1] + distances[1]),
    )


def _limit_together(start: Sequence[_StartWindow], memory: float) -> tuple[Averages, int]:
    """Return the sums of the first windows, and how many of them were limited."""
    traces = _usual_range([window.moments.trace for window in start])
    squares = _usual_range([window.moments.grad_sq for window in start])
    sums, limited, age = Averages(), 0, start[0].age
    for window in start:
        trace, grad_sq = window.moments.trace, window.moments.grad_sq
        entered = changed(window.moments, trace=_clamp(trace, *traces), grad_sq=_clamp(grad_sq, *squares))
        limited += entered != window.moments
        sums = sums.updated(entered, examples_since_last=age - window.age, memory=memory)
        age = window.age
    return sums.aged(age, memory), limited


def _usual_range(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < _MIN_WINDOWS:
        return -math.inf, math.inf
    middle = median(values)
    spread = _MAD_TO_DEVIATION * median(abs(value - middle) for value in values)
    distance = _distance(_max_deviations(len(values)), spread, middle)
    return middle - distance, middle + distance


def _distance(reach: float, spread: float, middle: float) -> float:
    # Without any variation there is no usual range.
    return reach * max(spread, _MIN_RELATIVE_SPREAD * abs(middle)) if spread > 0 else math.inf


def _clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
