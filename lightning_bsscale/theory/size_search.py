"""Find the micro-batch size that computes an example fastest, by doubling.

Larger micro-batches use a device better up to a point, and beyond it only need more memory. The search measures the
seconds an example takes at one size, doubles the size, and keeps a doubling that is at least 3 % faster. It can only
try a size when windows are long enough for it, so it advances as the batch grows.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from lightning_bsscale.theory.checks import check_number

__all__ = ["SizeSearch"]

# The first is not counted: memory is allocated, kernels are chosen, and modules compiled.
TIMES_NEEDED = 6
# A doubling is kept if an example takes at most this share of its time before.
WORTHWHILE = 0.97


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeSearch:
    """A search for the largest micro-batch worth using, on all ranks alike.

    Attributes:
        size: Largest micro-batch, in rows of one rank.
        before: Seconds of a row at half this size; None before the first doubling.
        times: Seconds of a row measured at this size so far.
        ended: Why the search ended; None while it continues.
    """

    size: int
    before: float | None = None
    times: tuple[float, ...] = ()
    ended: str | None = None

    def timed(self, seconds: float | None, *, has_room: bool = True) -> SizeSearch:
        """Add a measurement, and decide when there are enough.

        Args:
            seconds: Seconds that a row took in micro-batches of the present size; None if there were none.
            has_room: Whether twice the size is expected to fit into the memory of every rank.

        Returns:
            The search from now on, perhaps with another size.

        Example:
            >>> search = SizeSearch(size=8)
            >>> for seconds in (9.0, 1.0, 1.0, 1.0, 1.0, 1.0):
            ...     search = search.timed(seconds)
            >>> search.size, search.before
            (16, 1.0)
            >>> for seconds in (9.0, 0.99, 0.99, 0.99, 0.99, 0.99):
            ...     search = search.timed(seconds)
            >>> search.size, search.ended
            (8, '16 are not 3 % faster')
        """
        if self.ended is not None or seconds is None:
            return self
        times = (*self.times, check_number("seconds", seconds, at_least=0))
        if len(times) < TIMES_NEEDED:
            return SizeSearch(size=self.size, before=self.before, times=times)
        now = median(times[1:])
        if self.before is not None and now > WORTHWHILE * self.before:
            return SizeSearch(size=self.size // 2, ended=f"{self.size} are not 3 % faster")
        if not has_room:
            return SizeSearch(size=self.size, ended=f"{2 * self.size} may not fit into memory")
        return SizeSearch(size=2 * self.size, before=now)

    def limited(self, limit: int) -> SizeSearch:
        """End the search, because memory holds no micro-batch of more rows than this."""
        return SizeSearch(size=min(self.size, limit), ended="larger ones do not fit into memory")
