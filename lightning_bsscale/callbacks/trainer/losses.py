"""Read the losses that the user logs, for pictures and the journal."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto

import lightning.pytorch as pl
from torch import Tensor

from lightning_bsscale.theory.frozen import changed
from lightning_bsscale.theory.losses import Losses, LossPoint

__all__ = ["LossReader", "When"]


class When(Enum):
    """Where losses are read."""

    STEP = auto()
    VALIDATION_END = auto()
    EPOCH = auto()  # after an epoch's end, when Lightning has averaged over it


class LossReader:
    """Reads what the user logs with ``self.log`` under a name that contains "loss", each where it is new.

    A value is kept as a tensor, and read from its device the next time, so that no step waits for its own loss. A name
    is read where it was first seen, so that no old value is taken for a new one.

    Args:
        losses: those of the resumed run
        prefix: of the callback's own keys, which are not read
    """

    def __init__(self, losses: Losses, prefix: str) -> None:
        self.losses = losses
        self._prefix = prefix
        self._when: dict[str, When] = {}
        self._seen: dict[str, Tensor] = {}
        self._unread: list[tuple[str, LossPoint, Tensor]] = []

    def read(self, trainer: pl.Trainer, when: When, at: LossPoint) -> list[tuple[str, LossPoint]]:
        """Note the new values, and read those that were noted before.

        Args:
            trainer: the Trainer
            when: where training is
            at: the same in numbers; its value is ignored

        Returns:
            The names and values that were read.
        """
        read = self.settle()
        for name, value in self._logged(trainer, when):
            seen, self._seen[name] = self._seen.get(name), value
            # Each value that is logged is another tensor; while the old one is held, no other has its address.
            is_new = seen is None or seen.data_ptr() != value.data_ptr()
            if is_new and self._when.setdefault(name, when) is when:
                self._unread.append((name, at, value))
        return read

    def settle(self) -> list[tuple[str, LossPoint]]:
        """Read the values that were noted, and return them."""
        unread, self._unread = self._unread, []
        read = [(name, changed(at, value=float(value))) for name, at, value in unread]
        for name, point in read:
            self.losses = self.losses.with_point(name, point)
        return read

    def abandon(self) -> None:
        """Forget what was noted, after an error, since the device may be gone."""
        self._unread = []

    def _logged(self, trainer: pl.Trainer, when: When) -> Iterator[tuple[str, Tensor]]:
        logged = trainer.callback_metrics
        # In a validation, the Trainer's results are those of the validation alone.
        results = {} if trainer._results is None else trainer._results
        validated = {value.meta.name for value in results.values()}
        for name, value in list(logged.items()):
            base, _, fork = name.rpartition("_")
            is_fork = fork in ("step", "epoch") and base in logged
            is_own = bool(self._prefix) and name.startswith(self._prefix)
            is_elsewhere = when is When.VALIDATION_END and name.partition("/dataloader_idx_")[0] not in validated
            if "loss" in name.lower() and not (is_fork or is_own or is_elsewhere) and isinstance(value, Tensor):
                yield name, value
