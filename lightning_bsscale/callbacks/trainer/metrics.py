"""Read the metrics that a policy watches, the same on all ranks."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_bsscale.gradients.reduce import sums
from lightning_bsscale.theory.checks import join_names


class WatchedMetrics:
    """Reads watched metrics where validation and epochs end, each at one of the two.

    A metric that is there when a validation ends is read at those; another one at the ends of epochs. So none is read
    twice, and no old value is taken for a new one.

    Args:
        names: the metrics' keys in `trainer.callback_metrics`; nothing is read or sent if there are none
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._at_validation: dict[str, bool] = {}  # of each metric that was seen
        self._has_validated = False

    def at_validation_end(self, trainer: pl.Trainer) -> list[tuple[str, float]]:
        """Return name and value of the metrics that are read here; every rank must call this."""
        self._has_validated = True
        return self._read(trainer, at_validation=True)

    def at_epoch_end(self, trainer: pl.Trainer) -> list[tuple[str, float]]:
        """Return name and value of the metrics that are read here; every rank must call this.

        Args:
            trainer: the Trainer

        Returns:
            The means over the ranks that logged them.

        Raises:
            MisconfigurationException: If a metric was not logged by any rank so far.
        """
        read = self._read(trainer, at_validation=False)
        missing = [name for name in self._names if name not in self._at_validation]
        if missing and (self._has_validated or not trainer.enable_validation):
            raise MisconfigurationException(
                f"The policy watches {join_names(missing)}, which was not logged in the first epoch. Log it with "
                f"self.log; what was logged is {join_names(sorted(trainer.callback_metrics)) or 'nothing'}."
            )
        return read

    def _read(self, trainer: pl.Trainer, *, at_validation: bool) -> list[tuple[str, float]]:
        if not self._names:
            return []
        logged = trainer.callback_metrics
        own = [float(logged[name]) if name in logged else 0.0 for name in self._names]
        counts = [float(name in logged) for name in self._names]
        both = sums([*own, *counts], trainer.strategy.root_device, trainer.world_size)
        read = []
        for name, total, ranks in zip(self._names, both, both[len(self._names) :], strict=False):
            if ranks and self._at_validation.setdefault(name, at_validation) is at_validation:
                read.append((name, total / ranks))
        return read
