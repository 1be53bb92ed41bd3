"""Find the micro-batch size that computes an example fastest, by doubling.

Larger micro-batches use a device better up to a point, and beyond it only need more memory. The search computes windows
alternately in micro-batches of the present size and of twice that, and keeps a doubling if an example is at least 3 %
faster in four of five comparisons of adjacent measurements. Whatever slows the machine for many windows, such as
another program, slows both alike. A doubling is refused for good when it has failed twice. A size can only be tried
when windows are long enough for it, so the search advances as the batch grows.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightning_bsscale.theory.checks import check_number
from lightning_bsscale.theory.frozen import changed

__all__ = ["SizeSearch"]

# At each size. The first is not counted: memory is allocated, kernels are chosen, and modules compiled.
TIMES_NEEDED = 6
# A doubling is kept if an example takes at most this share of its time before.
WORTHWHILE = 0.97
# One of the five, because a machine may change its pace between two measurements.
MOST_AGAINST = 1
# A doubling that fails so often is not tried again.
MOST_FAILURES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeSearch:
    """A search for the largest micro-batch worth using, on all ranks alike.

    Attributes:
        size: Largest micro-batch found to be worth using so far, in rows of one rank.
        times: Seconds of a row measured at this size.
        doubled: The same at twice this size.
        failures: How often twice this size was not worth using.
        ended: Why the search ended; None while it continues.
    """

    size: int
    times: tuple[float, ...] = ()
    doubled: tuple[float, ...] = ()
    failures: int = 0
    ended: str | None = None

    @property
    def next_size(self) -> int:
        """Largest micro-batch of the next window, in rows of one rank: this size, or twice that to try it."""
        return 2 * self.size if self.ended is None and len(self.doubled) < len(self.times) else self.size

    def timed(self, size: int | None, seconds: float | None, *, has_room: bool = True) -> SizeSearch:
        """Add a measurement, and decide when there are enough.

        Args:
            size: Largest micro-batch of the window; one that is not being tried is ignored.
            seconds: Seconds that a row took in micro-batches of about this size; None if there were none.
            has_room: Whether twice the size is expected to fit into the memory of every rank.

        Returns:
            The search from now on, perhaps with another size.

        Example:
            >>> search = SizeSearch(size=8)
            >>> for seconds in (9.0, 1.0, 1.0, 1.0, 1.0, 1.0):
            ...     search = search.timed(8, seconds).timed(16, 0.9 * seconds)
            >>> search.size
            16
            >>> for seconds in 2 * (9.0, 1.0, 1.0, 1.0, 1.0, 1.0):
            ...     search = search.timed(16, seconds).timed(32, 0.99 * seconds)
            >>> search.size, search.ended
            (16, '32 are not 3 % faster')
        """
        if self.ended is not None or seconds is None or size not in (self.size, 2 * self.size):
            return self
        check_number("seconds", seconds, at_least=0)
        if size == self.size:
            if not has_room:
                return SizeSearch(size=self.size, ended=f"{2 * self.size} may not fit into memory")
            added = changed(self, times=(*self.times, seconds)[-TIMES_NEEDED:])
        else:
            added = changed(self, doubled=(*self.doubled, seconds)[-TIMES_NEEDED:])
        return added._compared()

    def _compared(self) -> SizeSearch:
        if min(len(self.times), len(self.doubled)) < TIMES_NEEDED:
            return self
        pairs = zip(self.times[1:], self.doubled[1:], strict=True)
        if sum(doubled > WORTHWHILE * time for time, doubled in pairs) <= MOST_AGAINST:
            return SizeSearch(size=2 * self.size)
        if self.failures + 1 < MOST_FAILURES:
            return SizeSearch(size=self.size, failures=self.failures + 1)
        return SizeSearch(size=self.size, ended=f"{2 * self.size} are not 3 % faster")

    def limited(self, limit: int) -> SizeSearch:
        """End the search, because memory holds no micro-batch of more rows than this."""
        return SizeSearch(size=min(self.size, limit), ended="larger ones do not fit into memory")
