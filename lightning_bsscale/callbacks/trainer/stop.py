"""The only writer of `trainer.should_stop`: asks for the end of training, and takes back nothing that another asked."""

from __future__ import annotations

import lightning.pytorch as pl


class StopRequest:
    """Asks Lightning to stop, and knows whether it was the first to ask."""

    def __init__(self) -> None:
        """Ask for nothing yet."""
        self._is_ours = False

    def request(self, trainer: pl.Trainer) -> None:
        """Ask for the end of training.

        Args:
            trainer: the Trainer to stop
        """
        self._is_ours = self._is_ours or not trainer.should_stop
        trainer.should_stop = True

    def withdraw(self, trainer: pl.Trainer) -> None:
        """Leave the Trainer as if nothing had been asked for; what another callback asked for before, stays.

        Args:
            trainer: the Trainer whose training has ended
        """
        if self._is_ours:
            self._is_ours = trainer.should_stop = False
