"""Which measured windows are compared with `.grad`, and what follows from the result."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Agreement"]

# All of the first windows, as most of what changes gradients does so from the start. A prime number afterwards, so that
# what changes them in every second or fourth window is found too.
COMPARED_FIRST = 4
COMPARED_EVERY = 17
# A recipe may change gradients in its first epoch only. One that does so again is not measured any more.
MOST_CHANGES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Whether `.grad` at the step is what the hooks saw. All ranks count alike, from the same sums.

    Attributes:
        windows: Measured windows since the gradients were last found changed, or unchanged again.
        changes: How often they were found changed.
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
        return replace(self, windows=self.windows + 1), self.is_good or compared, compared

    def with_result(self, explained: bool) -> tuple[Agreement, bool]:
        """Take the result of a comparison.

        Args:
            explained: Whether rounding explains the difference.

        Returns:
            The new record, and whether gradients that were good until now were found changed. Averages that rest on
            them are then to be discarded.
        """
        if explained == self.is_good:
            return self, False
        # Compared again at once where they are good again, and one period later where they are not.
        windows = 0 if explained else 1
        found_changed = not explained
        return Agreement(windows=windows, changes=self.changes + found_changed, is_good=explained), found_changed
