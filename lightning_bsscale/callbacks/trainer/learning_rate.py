"""The only writer of a parameter group's ``"lr"``, which is put back after each step.

The factor is on the learning rate only while the optimizer updates (see `optimizer_step`). So the user, their scheduler
and the checkpoints see their own learning rate, whatever the formula.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_bsscale.callbacks.trainer.optimizer_step import UpdateSpan


def _copy(rate: Any) -> Any:
    return rate.detach().clone() if isinstance(rate, Tensor) else rate


def _version(rate: Any) -> int:
    # Tells whether a tensor was written to, without reading it from its device.
    return rate._version if isinstance(rate, Tensor) else 0


@dataclass(slots=True)
class _Scaled:
    """One parameter group while the factor is on its learning rate: what was found, and what was put there."""

    group: dict[str, Any]
    found: Any
    put: Any = None
    version: int = 0

    def put_there(self, rate: Any) -> None:
        # A tensor may be captured by a compiled or graphed step, so it keeps its identity.
        if isinstance(self.found, Tensor):
            with torch.no_grad():
                self.group["lr"].copy_(rate)
        else:
            self.group["lr"] = rate

    def remember(self) -> None:
        self.put = self.group["lr"]
        self.version = _version(self.put)

    def without(self, factor: float) -> Any:
        """Return what the user has there now: what was found or, where it was changed, the new value / factor."""
        now = self.group["lr"]
        same = now is self.put if isinstance(now, Tensor) else now is self.put or now == self.put
        if same and _version(now) == self.version:
            return self.found
        if factor == 0:
            return _copy(now)
        return now.detach() / factor if isinstance(now, Tensor) else now / factor

    def give_back(self, rate: Any) -> None:
        if isinstance(rate, Tensor) and self.group["lr"] is self.put:
            self.put_there(rate)
        else:
            self.group["lr"] = rate


class _OwnComputation:
    """Finds out that the optimizer computes its learning rate anew in each step: what is put there has no effect.

    Where an optimizer multiplies its learning rate in a step, the change does not depend on the factor. Where it
    computes, what it finds has been divided by the last step's factor and multiplied by this one's, and that is undone.
    """

    def __init__(self) -> None:
        self._factor = 1.0
        self._usual: float | None = None
        self._signs = 0

    def add(self, factor: float, change: float) -> None:
        before, self._factor = self._factor, factor
        if min(before, factor, change) <= 0:
            return
        undone = math.log(before / factor)
        if undone == 0:
            self._usual = math.log(change)
        elif self._usual is not None and abs(undone) > 0.2:  # less could be a decay that varies
            distance = abs(math.log(change) - self._usual - undone)
            # One sign is enough of an optimizer that changes its learning rate in every step, and then undoes the
            # factor exactly. One that changes it now and then may have done so by chance when the batch changed.
            is_exact = self._usual != 0 and distance < 0.01 * abs(undone)
            self._signs = self._signs + (2 if is_exact else 1) if distance < abs(undone) / 4 else 0

    @property
    def is_sure(self) -> bool:
        return self._signs >= 2


class ScopedFactor:
    """Multiplies the learning rate of every parameter group for the length of one update.

    What the optimizer itself, or code that it calls, changes within the update is the user's: it is kept, divided by
    the factor. Where the factor is one, nothing is written.
    """

    def __init__(self, optimizer: Any) -> None:
        """Takes hold of the optimizer's step.

        Args:
            optimizer: whose learning rate to scale
        """
        self.optimizer = optimizer
        self._factor = 1.0
        self._schedule_factor = 1.0
        self._scaled: list[_Scaled] = []
        self._applied = 1.0
        self._stepped_with: Any = None
        self._put_first: float | None = None
        self._change = 1.0
        self._own_computation = _OwnComputation()
        self.used_factor = 1.0
        self.is_seen = False
        self._span = UpdateSpan(optimizer, self.apply, self.restore)

    def apply(self) -> None:
        """Puts the factor on, where it is not; the update begins."""
        if self._scaled:
            return
        self._applied = both = self._factor * self._schedule_factor
        groups = self.optimizer.param_groups
        if both != 1:
            self._scaled = [_Scaled(group, _copy(group["lr"])) for group in groups]
            for one in self._scaled:
                one.put_there(one.found * both)
            for one in self._scaled:  # when all are written, as groups may share one tensor
                one.remember()
        first = groups[0]["lr"]
        self._stepped_with = _copy(first)
        self._put_first = None if isinstance(first, Tensor) else first  # a tensor would have to be read
        self.used_factor = self._factor
        self.is_seen = True

    def restore(self) -> None:
        """Takes the factor off; also after a step that an exception left."""
        if self._put_first is not None:
            self._change = self.optimizer.param_groups[0]["lr"] / self._put_first if self._put_first else 1.0
            self._put_first = None
        scaled, self._scaled = self._scaled, []
        rates = [one.without(self._applied) for one in scaled]
        for one, rate in zip(scaled, rates, strict=True):
            one.give_back(rate)

    def change(self, factor: float, schedule_factor: float) -> None:
        """Sets both factors, from the next update on.

        Args:
            factor: what goes with the batch
            schedule_factor: what the callback's own schedule says, or 1
        """
        self._factor = factor
        self._schedule_factor = schedule_factor

    def begin_window(self) -> None:
        """A window begins: what its step does is not known yet."""
        self.restore()
        self.is_seen = False
        self._span.keep_in_place()

    def is_overwritten(self) -> bool:
        """Judge the update of this window, once.

        Returns:
            whether the optimizer computes its learning rate by itself, whatever is put there
        """
        if self.is_seen:
            self._own_computation.add(self._applied, float(self._change))
        return self._own_computation.is_sure

    @property
    def factors(self) -> tuple[float, float]:
        """Both factors that are set."""
        return self._factor, self._schedule_factor

    @property
    def is_wanted(self) -> bool:
        """Whether the present factors change anything."""
        return self._factor * self._schedule_factor != 1

    @property
    def lr(self) -> float:
        """The learning rate that the last update was made with (first parameter group); before any, the user's."""
        return float(self._stepped_with if self._stepped_with is not None else self.optimizer.param_groups[0]["lr"])

    def follow(self, optimizer: Any) -> None:
        """Goes over to another optimizer.

        Args:
            optimizer: the one that steps from now on
        """
        self.remove()
        self.optimizer = optimizer
        self._own_computation = _OwnComputation()
        self._span = UpdateSpan(optimizer, self.apply, self.restore)

    def remove(self) -> None:
        """Lets the step go and puts the user's learning rates back."""
        self.restore()
        self._span.remove()


def relative_learning_rate(optimizer: Optimizer) -> float:
    """Compute where the user's scheduler has taken the learning rate (first parameter group).

    Args:
        optimizer: with the user's own learning rates

    Returns:
        present learning rate / initial one; 1 without a scheduler
    """
    group = optimizer.param_groups[0]
    initial = float(group.get("initial_lr", 0.0))
    return float(group["lr"]) / initial if initial else 1.0
