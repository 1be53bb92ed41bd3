"""Whether `.grad` at the step is what the hooks saw: when that is compared, and what follows from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

# All of the first windows, as most of what changes gradients does so from the start. A prime number afterwards, so that
# what changes them in every second or fourth window is met too.
COMPARED_FIRST = 4
COMPARED_EVERY = 17
# A recipe may change gradients in its first epoch only. One that does so again is not waited for.
MOST_CHANGES = 2


@dataclass(slots=True)
class Agreement:
    """Counts measured windows, and decides which of them are compared, and whether any is measured.

    On several ranks all ranks count alike, and take the same sums.

    Attributes:
        windows: measured windows since the gradients were last found changed, or unchanged again
        changes: how often they were found changed
        is_good: whether windows are measured now
    """

    windows: int = 0
    changes: int = 0
    is_good: bool = True

    def next_window(self) -> tuple[bool, bool]:
        """Count a window that is to be measured.

        Returns:
            whether to watch it, and whether to compare it
        """
        compared = self.windows % COMPARED_EVERY == 0 or (self.is_good and self.windows < COMPARED_FIRST)
        compared = compared and self.changes < MOST_CHANGES
        self.windows += 1
        return self.is_good or compared, compared

    def take(self, explained: bool) -> bool:
        """Take the result of a comparison.

        Args:
            explained: whether rounding explains the difference

        Returns:
            whether the gradients were found changed that were good until now: what rests on them is to be discarded
        """
        found_changed = self.is_good and not explained
        if found_changed:
            self.changes += 1
        if explained != self.is_good:
            # Compared again at once where they are good again, and one period from now where they are not.
            self.windows = 0 if explained else 1
        self.is_good = explained
        return found_changed

    def state(self) -> dict[str, int | bool]:
        """Tell what cannot be recomputed.

        Returns:
            numbers
        """
        return asdict(self)
