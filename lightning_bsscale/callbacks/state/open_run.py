"""Which Trainer's fit a callback is part of: one at a time, as it holds the window and the hooks of one."""

from __future__ import annotations

from weakref import ReferenceType, ref

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.trainer.states import TrainerStatus


class OpenRun:
    """The fit in progress, from `setup` to `teardown` or `on_exception`."""

    def __init__(self) -> None:
        """Begin outside of any fit."""
        self._trainer: ReferenceType[pl.Trainer] | None = None
        self.is_training = False

    @property
    def trainer(self) -> pl.Trainer | None:
        """The Trainer whose fit was set up and has not ended."""
        return None if self._trainer is None else self._trainer()

    def is_in_another(self, trainer: pl.Trainer) -> bool:
        """Return whether the callback is part of another Trainer's fit, so that this one's hooks are not for it.

        Args:
            trainer: the Trainer that calls a hook
        """
        return self.trainer not in (None, trainer)

    def begin(self, trainer: pl.Trainer, callback: str) -> pl.Trainer | None:
        """Open a run in `setup`.

        Args:
            trainer: whose fit begins
            callback: the callback's name, for the message

        Returns:
            the Trainer of a run that failed without the callback's knowledge, and holds what was never given back

        Raises:
            MisconfigurationException: another Trainer's fit is in progress
        """
        last = self.trainer
        # Another callback's `on_exception` may have failed before this callback's: then only the status says so.
        if last is not None and last is not trainer and last.state.status == TrainerStatus.RUNNING:
            raise MisconfigurationException(
                f"This {callback} is part of the fit of another Trainer, which has not ended, and was given to a "
                f"second one within it. It can hold the window and the hooks of one training only: give the inner "
                f"Trainer a {callback} that is made for it, or none."
            )
        self._trainer = ref(trainer)
        self.is_training = False
        return last

    def end(self, trainer: pl.Trainer) -> None:
        """Close the run, if it is this Trainer's.

        Args:
            trainer: whose fit has ended, or failed
        """
        if self.trainer is trainer:
            self._trainer = None
            self.is_training = False
