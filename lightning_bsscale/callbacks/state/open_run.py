"""The fit that a callback is part of: one at a time, since it holds the window and the hooks of one."""

from __future__ import annotations

from weakref import ReferenceType, ref

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.trainer.states import TrainerStatus


class OpenRun:
    """The fit in progress, from `setup` to `teardown` or `on_exception`."""

    def __init__(self) -> None:
        """Start outside any fit."""
        self._trainer: ReferenceType[pl.Trainer] | None = None
        self.is_training = False

    @property
    def trainer(self) -> pl.Trainer | None:
        """The Trainer whose fit was set up and has not ended."""
        return None if self._trainer is None else self._trainer()

    def is_in_another(self, trainer: pl.Trainer) -> bool:
        """Return whether the callback is part of another Trainer's fit than the one that calls a hook."""
        return self.trainer not in (None, trainer)

    def begin(self, trainer: pl.Trainer, callback: str) -> pl.Trainer | None:
        """Open a run in `setup`.

        Args:
            trainer: the Trainer whose fit begins
            callback: the callback's name, for the message

        Returns:
            The Trainer of an earlier run that failed without notifying the callback, and still holds resources, or
            None.

        Raises:
            MisconfigurationException: If another Trainer's fit is in progress.
        """
        last = self.trainer
        # If another callback's `on_exception` failed before this callback's, only the status shows the failure.
        if last is not None and last is not trainer and last.state.status == TrainerStatus.RUNNING:
            raise MisconfigurationException(
                f"This {callback} is in use by the fit of another Trainer, which has not ended. It can serve one "
                f"training at a time: pass the inner Trainer its own {callback}, or none."
            )
        self._trainer = ref(trainer)
        self.is_training = False
        return last

    def end(self, trainer: pl.Trainer) -> None:
        """Close the run, if it is this Trainer's."""
        if self.trainer is trainer:
            self._trainer = None
            self.is_training = False
