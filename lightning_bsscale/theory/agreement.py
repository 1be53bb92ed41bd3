"""Which measured windows are compared with `.grad`, and what follows from the result."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_bsscale.theory.frozen import changed

__all__ = ["Agreement"]

# Most code that changes gradients does so from the start, so all of the first windows are compared. Afterwards the
# period is a prime number, which also catches changes in every second or fourth window.
COMPARED_FIRST = 4
COMPARED_EVERY = 17
# A recipe may change gradients in its first epoch only. If they change again, measurement stops for good.
MOST_CHANGES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Whether `.grad` at the step equals what the hooks observed; the same on all ranks, which use the same sums.

    Attributes:
        windows: Measured windows since the last change of `is_good`.
        changes: How often changed gradients were detected.
        is_good: Whether windows are measured now.
    """

    windows: int = 0
    changes: int = 0
    is_good: bool = True

    def next_window(self) -> tuple[Agreement, bool, bool]:
        """Count a window that is due for measurement.

        Returns:
            The new record, whether to watch the window, and whether to compare it.
        """
        compared = self.windows % COMPARED_EVERY == 0 or (self.is_good and self.windows < COMPARED_FIRST)
        compared = compared and self.changes < MOST_CHANGES
        return changed(self, windows=self.windows + 1), self.is_good or compared, compared

    def with_result(self, explained: bool) -> tuple[Agreement, bool]:
        """Add the result of a comparison.

        Args:
            explained: Whether rounding explains the difference.

        Returns:
            The new record, and whether this comparison is the first to detect changed gradients. Averages that rest on
            them must then be discarded.
        """
        if explained == self.is_good:
            return self, False
        # Good gradients are compared again at once, changed ones a period later.
        windows = 0 if explained else 1
        found_changed = not explained
        return Agreement(windows=windows, changes=self.changes + found_changed, is_good=explained), found_changed
