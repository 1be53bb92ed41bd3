"""How what a callback has to show gets back to the process that called `fit`, where Lightning trained in others.

Under `ddp_spawn`, `ddp_fork` and `ddp_notebook` each process trains with a copy of the callback, and the user holds the
one that nobody trained with. Of what the first process made, Lightning sends back weights, metrics and `trainer.state`;
the outcome travels with the last, and is handed over where that is unpickled.
"""

from __future__ import annotations

import os
import uuid
from copy import copy
from typing import Any
from weakref import WeakValueDictionary

import lightning.pytorch as pl

from lightning_bsscale.callbacks.resume import Outcome

_waiting: WeakValueDictionary[str, WayBack] = WeakValueDictionary()


class WayBack:
    """A callback's, from wherever it is trained with to where it is held.

    Attributes:
        outcome: what came back, or what a copy was made with; None else
    """

    def __init__(self, outcome: Outcome | None = None) -> None:
        """Begins to wait.

        Args:
            outcome: what a copy was made with
        """
        self.outcome = outcome
        self._process = os.getpid()
        self._name = uuid.uuid4().hex
        self._last_letter: str | None = None
        _waiting[self._name] = self

    def send(self, trainer: pl.Trainer, outcome: Outcome) -> None:
        """Sends, where this is a copy in another process; elsewhere there is nothing to do.

        Args:
            trainer: whose state Lightning sends back when training has ended
            outcome: what the callback has to show
        """
        if os.getpid() != self._process:
            vars(trainer.state)[f"bsscale_{self._name}"] = _Letter(self._name, outcome)

    def take(self, letter: _Letter) -> None:
        """Takes what came back, once: the letter stays in the Trainer's state, which is copied again.

        Args:
            letter: what came
        """
        if letter.number != self._last_letter:
            self._last_letter, self.outcome = letter.number, letter.outcome

    def holding(self, outcome: Outcome) -> WayBack:
        """The same way, for a copy of the callback that is about to travel.

        Args:
            outcome: what the callback has to show

        Returns:
            the copy's, until it has arrived
        """
        way = copy(self)
        way.outcome = outcome
        return way

    def arrived(self) -> WayBack:
        """A copy of the callback was made: what is sent to the first one is not the copy's.

        Returns:
            a way of the copy's own, or in another process, which may train for this one, the same
        """
        if os.getpid() == self._process:
            return WayBack(self.outcome)
        _waiting[self._name] = self
        return self


def without_module(callback: pl.Callback) -> dict[str, Any]:
    """What a callback holds, without what Lightning put there: the module's own `log` and `log_dict`.

    Args:
        callback: one that has trained

    Returns:
        its attributes
    """
    return {name: value for name, value in vars(callback).items() if name not in ("log", "log_dict")}


class _Letter:
    def __init__(self, name: str, outcome: Outcome) -> None:
        self.name, self.outcome = name, outcome
        self.number = uuid.uuid4().hex
        self._sender = os.getpid()

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        way = _waiting.get(self.name)
        if way is not None and os.getpid() != self._sender:  # Lightning also copies it, before it is sent
            way.take(self)
