"""The only writer of a parameter group's ``"lr"``, which is restored after each step.

The factor is on the learning rate only during the optimizer's update (see `optimizer_step`). Users, their schedulers
and checkpoints therefore see their own learning rate, whatever its formula.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_bsscale.callbacks.trainer.hyperparameters import ScopedHyperparameters
from lightning_bsscale.callbacks.trainer.optimizer_step import UpdateWrapper
from lightning_bsscale.theory.hyperparameters import HyperparameterRule
from lightning_bsscale.theory.numbers import significant

RELATIVE_DIGITS = 9


def _copy(lr: Any) -> Any:
    return lr.detach().clone() if isinstance(lr, Tensor) else lr


def _version(lr: Any) -> int:
    # Detects writes to a tensor without reading it from its device.
    return lr._version if isinstance(lr, Tensor) else 0


@dataclass(slots=True)
class _ScaledGroup:
    """One parameter group while the factor is on its learning rate: the original value and the one written."""

    group: dict[str, Any]
    original: Any
    written: Any = None
    version: int = 0

    def write(self, lr: Any) -> None:
        # A tensor may be captured by a compiled or graphed step, so it keeps its identity.
        if isinstance(self.original, Tensor):
            with torch.no_grad():
                self.group["lr"].copy_(lr)
        else:
            self.group["lr"] = lr

    def note_written(self) -> None:
        self.written = self.group["lr"]
        self.version = _version(self.written)

    def unscaled(self, factor: float) -> Any:
        """Return the user's learning rate: the original or, if the update changed it, the new value / factor."""
        now = self.group["lr"]
        same = now is self.written if isinstance(now, Tensor) else now is self.written or now == self.written
        if same and _version(now) == self.version:
            return self.original
        if factor == 0:
            return _copy(now)
        return now.detach() / factor if isinstance(now, Tensor) else now / factor

    def restore(self, lr: Any) -> None:
        if isinstance(lr, Tensor) and self.group["lr"] is self.written:
            self.write(lr)
        else:
            self.group["lr"] = lr


class _OverwriteDetector:
    """Detects an optimizer that recomputes its learning rate in each step, so that the factor has no effect.

    If an optimizer multiplies its learning rate in a step, the change does not depend on the factor. If it computes the
    learning rate, the value before the step has been divided by the last step's factor and multiplied by this one's,
    and the change undoes that.
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
            # One sign is enough for an optimizer that changes its learning rate in every step and undoes the factor
            # exactly. One that changes it now and then may have done so by coincidence when the batch changed.
            is_exact = self._usual != 0 and distance < 0.01 * abs(undone)
            self._signs = self._signs + (2 if is_exact else 1) if distance < abs(undone) / 4 else 0

    @property
    def is_sure(self) -> bool:
        return self._signs >= 2


class ScopedFactor:
    """Multiplies the learning rate of every parameter group during one update.

    Changes that the optimizer or code that it calls makes during the update belong to the user: they are kept, divided
    by the factor. If the factor is one, nothing is written. Other hyperparameters are replaced along with it.
    """

    def __init__(
        self, optimizer: Any, also_scale: Sequence[HyperparameterRule] = (), *, notes_all_groups: bool = False
    ) -> None:
        """Wrap the optimizer's step.

        Args:
            optimizer: the optimizer
            also_scale: rules of other hyperparameters
            notes_all_groups: whether the learning rates of all groups are noted, not of the first alone
        """
        self.optimizer = optimizer
        self._notes_all_groups = notes_all_groups
        self._others = ScopedHyperparameters(also_scale)
        self._factor = 1.0
        self._schedule_factor = 1.0
        self._scaled: list[_ScaledGroup] = []
        self._applied = 1.0
        self._last_lrs: list[Any] = []
        self._first_written: float | None = None
        self._change = 1.0
        self._detector = _OverwriteDetector()
        self.used_factor = 1.0
        self.is_seen = False
        self._wrapper = UpdateWrapper(optimizer, self.apply, self.restore)

    def apply(self) -> None:
        """Apply the factor as the update begins; a second call does nothing."""
        if self._scaled:
            return
        self._applied = both = self._factor * self._schedule_factor
        groups = self.optimizer.param_groups
        self._others.apply(groups)
        if both != 1:
            self._scaled = [_ScaledGroup(group, _copy(group["lr"])) for group in groups]
            for one in self._scaled:
                one.write(one.original * both)
            for one in self._scaled:  # after all writes, because groups may share a tensor
                one.note_written()
        first = groups[0]["lr"]
        self._last_lrs = [_copy(group["lr"]) for group in (groups if self._notes_all_groups else groups[:1])]
        # A tensor would have to be read from its device.
        self._first_written = None if isinstance(first, Tensor) else first
        self.used_factor = self._factor
        self.is_seen = True

    def restore(self) -> None:
        """Remove the factor, also after a step that raised an exception."""
        try:
            self._others.restore()
        finally:
            self._restore_learning_rates()

    def _restore_learning_rates(self) -> None:
        if self._first_written is not None:
            self._change = self.optimizer.param_groups[0]["lr"] / self._first_written if self._first_written else 1.0
            self._first_written = None
        if not self._scaled:
            return  # most calls: a step restores at each place where the user's code may look
        scaled, self._scaled = self._scaled, []
        originals = [one.unscaled(self._applied) for one in scaled]
        for one, lr in zip(scaled, originals, strict=True):
            one.restore(lr)

    def change(self, factor: float, schedule_factor: float, ratio: float = 1.0) -> None:
        """Set both factors, from the next update on.

        Args:
            factor: the factor of the batch
            schedule_factor: the factor of the callback's own schedule, or 1
            ratio: the batch over that of the start, for other hyperparameters
        """
        self._others.ratio = ratio
        self._factor = factor
        self._schedule_factor = schedule_factor

    def begin_window(self) -> None:
        """Begin a window, whose update has not been seen."""
        self.restore()
        self.is_seen = False
        self._wrapper.keep_in_place()

    def is_overwritten(self) -> bool:
        """Judge this window's update once; return whether the optimizer overwrites the factor."""
        if self.is_seen:
            self._detector.add(self._applied, float(self._change))
        return self._detector.is_sure

    @property
    def factors(self) -> tuple[float, float]:
        """Both factors that are set."""
        return self._factor, self._schedule_factor

    @property
    def is_wanted(self) -> bool:
        """Whether the current factors change anything."""
        return self._factor * self._schedule_factor != 1 or self._others.is_wanted

    @property
    def lr(self) -> float:
        """The learning rate of the last update (first parameter group); before any, the user's."""
        return float(self._noted_lrs[0])

    @property
    def lrs(self) -> list[float]:
        """The same of all parameter groups, if they are noted."""
        return [float(lr) for lr in self._noted_lrs]

    @property
    def _noted_lrs(self) -> list[Any]:
        return self._last_lrs or [group["lr"] for group in self.optimizer.param_groups]

    def follow(self, optimizer: Any, also_scale: Sequence[HyperparameterRule] = ()) -> None:
        """Change to another optimizer and its rules of other hyperparameters, with the same factors."""
        self.remove()
        ratio, self._others = self._others.ratio, ScopedHyperparameters(also_scale)
        self._others.ratio = ratio
        self.optimizer = optimizer
        self._detector = _OverwriteDetector()
        self._wrapper = UpdateWrapper(optimizer, self.apply, self.restore)

    def remove(self) -> None:
        """Unwrap the step, and restore the user's learning rates."""
        try:
            self.restore()
        finally:
            self._wrapper.remove()


def relative_learning_rate(optimizer: Optimizer) -> float:
    """Return the user's learning rate relative to the initial one (first parameter group); 1 where none is known.

    It has `RELATIVE_DIGITS` digits: a journal has it for every window, as the policy is given it.

    ReduceLROnPlateau and changes by hand leave no note of the initial one. There it is the optimizer's default, also of
    a group that began with another: the ratio of two of these numbers is the same.
    """
    group = optimizer.param_groups[0]
    initial = group.get("initial_lr")
    if initial is None:
        initial = getattr(optimizer, "defaults", {}).get("lr")
        if initial is None or isinstance(initial, Tensor):  # which the group may share, and change in place
            return 1.0
    return significant(float(group["lr"]) / float(initial), RELATIVE_DIGITS) if initial else 1.0


def reset_to_initial(optimizer: Optimizer) -> None:
    """Set every learning rate to its initial value, where a scheduler has noted one."""
    for group in optimizer.param_groups:
        if "initial_lr" in group:
            group["lr"] = _copy(group["initial_lr"])
