"""The only writer of `trainer.should_stop`, which withdraws only its own request."""

from __future__ import annotations

import lightning.pytorch as pl


class StopRequest:
    """Asks Lightning to stop, and remembers whether it was the first to do so."""

    def __init__(self) -> None:
        """Start without a request."""
        self._is_ours = False

    def request(self, trainer: pl.Trainer) -> None:
        """Ask the Trainer to end training."""
        self._is_ours = self._is_ours or not trainer.should_stop
        trainer.should_stop = True

    def withdraw(self, trainer: pl.Trainer) -> None:
        """Withdraw the request after training; that of another callback stays."""
        if self._is_ours:
            self._is_ours = trainer.should_stop = False
