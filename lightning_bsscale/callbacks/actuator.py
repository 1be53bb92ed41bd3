"""The only writer of the Trainer, its optimizer and its schedulers.

`TrainerActuator` acts. `NullActuator`, for the monitor and dry runs, only reads the learning rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerStatus

from lightning_bsscale.callbacks.checks import preflight
from lightning_bsscale.callbacks.gradient_watch import watched_parameters
from lightning_bsscale.callbacks.trainer.accumulation import Accumulation, rescale_cut_window
from lightning_bsscale.callbacks.trainer.learning_rate import ScopedFactor, relative_learning_rate
from lightning_bsscale.callbacks.trainer.learning_rate_names import has_monitor
from lightning_bsscale.callbacks.trainer.micro_batches import MicroBatches
from lightning_bsscale.callbacks.trainer.schedulers import ExampleClock
from lightning_bsscale.callbacks.trainer.stop import StopRequest
from lightning_bsscale.theory.hyperparameters import HyperparameterRule
from lightning_bsscale.theory.micro_batches import Layout
from lightning_bsscale.theory.plan import PlanPosition, UserPlan
from lightning_bsscale.theory.schedules import Schedule

__all__ = ["Actuator", "NullActuator", "TrainerActuator"]

AlsoScaleFor = Callable[[Any], Sequence[HyperparameterRule]]


class Actuator:
    """Acts on one training, from `on_train_start` to its end. This base class only reads the learning rate.

    Args:
        trainer: the Trainer
        callback: name of the callback, for messages
        micro_batches: computes windows
    """

    def __init__(self, trainer: pl.Trainer, callback: str, micro_batches: MicroBatches) -> None:
        self.callback = callback
        self.trainer = trainer
        self.micro_batches = micro_batches
        self._held = ExitStack()
        self._held.callback(micro_batches.restore)
        self._lr: ScopedFactor | None = None
        self._also_scale_for: AlsoScaleFor = lambda optimizer: ()

    # ------------------------------------------------------------------ windows

    @property
    def accumulate(self) -> int:
        """The user's `accumulate_grad_batches`."""
        return int(self.trainer.accumulate_grad_batches)

    def place_window(self, start: int, loader_batches: int) -> None:
        """Make the window in progress begin at index `start` of the epoch, with so many loader batches."""

    def skip(self, batch_idx: int, *, is_open: bool) -> None:
        """Move the window past an index for which the loader returned None."""

    def rescale_cut_window(self, planned: int, done: int) -> None:
        """Make the gradient the mean over the loader batches done, if these are fewer than planned."""

    def stop(self) -> None:
        """Ask for the end of training."""

    @property
    def is_interrupted(self) -> bool:
        """Whether an exception ended the training, so that another rank may be gone."""
        return self.trainer.state.status == TrainerStatus.INTERRUPTED

    # ------------------------------------------------------------------ learning rate

    def attach(self, optimizer: Any, plan: UserPlan, position: PlanPosition) -> None:
        """Wrap the optimizer's step, and assume that the user's schedulers are at the plan's position."""
        self._lr = ScopedFactor(optimizer, self._also_scale_for(optimizer), notes_all_groups=has_monitor(self.trainer))
        self._held.callback(self._lr.remove)

    def check_optimizer(self) -> None:
        """Refuse an optimizer that is not supported.

        Raises:
            MisconfigurationException: see `checks.preflight`
        """  # noqa: DOC502
        preflight.check_optimizer(self.trainer, self.callback)

    def follow_optimizer(self, optimizer: Any) -> None:
        """Change to another optimizer, with the same factors."""
        self._scoped.follow(optimizer, self._also_scale_for(optimizer))

    @property
    def _scoped(self) -> ScopedFactor:
        assert self._lr is not None, "attach was not called"
        return self._lr

    def begin_window(self, layout: Layout) -> None:
        """Begin a window, whose update has not been seen, to be computed in these micro-batches."""
        self.micro_batches.begin_window(layout)
        self._scoped.begin_window()

    def scale_learning_rate(self, factor: float, scheduled: float, ratio: float) -> None:
        """Set the factors from the next update on: the batch's, the own schedule's, and the batch over the start's."""

    def before_step(self, *, is_late: bool) -> None:
        """Note the learning rate, in case the update has begun or will begin unnoticed."""
        self._scoped.apply()

    def end_step(self) -> None:
        """Remove the factor from the learning rate, also after an interrupted step."""
        if self._lr is not None:
            self._lr.restore()

    @property
    def lr(self) -> float:
        """The learning rate of the last update (first parameter group); before any, the user's."""
        return self._scoped.lr

    @property
    def lrs(self) -> list[float]:
        """The same of all parameter groups where a `LearningRateMonitor` shows them, else of the first alone."""
        return self._scoped.lrs

    @property
    def factors(self) -> tuple[float, float]:
        """The factors on the learning rate that are set: the batch's, and the own schedule's."""
        return self._scoped.factors

    @property
    def lr_scale(self) -> float:
        """The factor on the learning rate in the last update."""
        return self._scoped.used_factor

    def shown_lr_scale(self, of_batch: float) -> float:
        """Return the factor to log: the applied one, or the hypothetical one if none is applied."""
        return of_batch

    @property
    def relative_lr(self) -> float:
        """The user's learning rate relative to its initial value."""
        return relative_learning_rate(self._scoped.optimizer)

    def is_factor_overwritten(self) -> bool:
        """Judge this window's update once; return whether the optimizer was found to overwrite the factor."""
        return False

    # ------------------------------------------------------------------ schedulers

    @property
    def frequencies(self) -> list[int]:
        """The frequencies of the schedulers that are stepped here, in loader batches."""
        return []

    def follow_schedulers(self, plan: UserPlan, position: PlanPosition) -> PlanPosition:
        """Change to the Trainer's current schedulers, if they were set up again."""
        return position

    def step_schedulers(self, plan: UserPlan, position: PlanPosition) -> bool:
        """Step the schedulers up to the plan; return whether a step was made and the planned step never read."""
        return False

    @property
    def planned_step_in_progress(self) -> int | None:
        """The planned step for which a scheduler is being stepped; None where none is."""
        return None

    # ------------------------------------------------------------------ the end

    def release(self) -> None:
        """Restore everything of the user's, each part even if another fails; a second call does nothing."""
        self._held.close()


class NullActuator(Actuator):
    """The actuator of the monitor and of dry runs: windows, learning rate and schedulers stay the Trainer's."""


class TrainerActuator(Actuator):
    """The actuator of the scaler: places windows, scales the learning rate, and steps the user's schedulers.

    Args:
        trainer: the Trainer
        pl_module: the module, whose `lr_scheduler_step` steps a scheduler
        callback: name of the callback, for messages
        micro_batches: computes windows
        schedule: the callback's own schedule, which excludes the user's scheduler
        also_scale_for: returns the rules of other hyperparameters for an optimizer
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        callback: str,
        micro_batches: MicroBatches,
        schedule: Schedule | None,
        also_scale_for: AlsoScaleFor,
    ) -> None:
        super().__init__(trainer, callback, micro_batches)
        self._also_scale_for = also_scale_for
        self._schedule = schedule
        self._accumulation = Accumulation(trainer)  # first, as it may refuse to start
        self._held.callback(self._accumulation.restore)
        self._stop = StopRequest()
        self._held.callback(self._stop.withdraw, trainer)
        # From the start, because Lightning steps schedulers also for a None before the first loader batch.
        self._clock = ExampleClock(trainer, pl_module)
        self._held.callback(lambda: self._clock.release())
        self._missed = 0
        self._was_seen = self._is_overwritten = False

    @property
    def accumulate(self) -> int:
        """The user's `accumulate_grad_batches`."""
        return self._accumulation.original

    def place_window(self, start: int, loader_batches: int) -> None:
        """Make the window in progress begin at index `start` of the epoch, with so many loader batches."""
        self._accumulation.place(start, loader_batches)

    def skip(self, batch_idx: int, *, is_open: bool) -> None:
        """Move the window past an index for which the loader returned None."""
        self._accumulation.skip(batch_idx, is_open=is_open)

    def rescale_cut_window(self, planned: int, done: int) -> None:
        """Make the gradient the mean over the loader batches done, if these are fewer than planned."""
        rescale_cut_window(watched_parameters(self._scoped.optimizer), planned, done)

    def stop(self) -> None:
        """Ask for the end of training."""
        self._stop.request(self.trainer)

    def attach(self, optimizer: Any, plan: UserPlan, position: PlanPosition) -> None:
        """Wrap the optimizer's step, and assume that the user's schedulers are at the plan's position."""
        super().attach(optimizer, plan, position)
        self._clock.start_at(lambda frequency: plan.steps(position, frequency))

    def check_optimizer(self) -> None:
        """Refuse an optimizer that is not supported, or whose learning rate cannot be scaled.

        Raises:
            MisconfigurationException: see `checks.preflight`
        """  # noqa: DOC502
        super().check_optimizer()
        preflight.check_learning_rate_control(self.trainer)
        preflight.check_hyperparameters(self.trainer, self._also_scale_for)

    def scale_learning_rate(self, factor: float, scheduled: float, ratio: float) -> None:
        """Set the factors from the next update on: the batch's, the own schedule's, and the batch over the start's."""
        self._scoped.change(factor, scheduled, ratio)

    def before_step(self, *, is_late: bool) -> None:
        """Apply the factor if the update may have begun before the optimizer's step was wrapped."""
        if is_late:
            self._scoped.apply()

    def shown_lr_scale(self, of_batch: float) -> float:
        """Return the factor to log: the applied one, or the hypothetical one if none is applied."""
        return self._scoped.used_factor

    def is_factor_overwritten(self) -> bool:
        """Judge this window's update once; return whether the optimizer was found to overwrite the factor."""
        scoped = self._scoped
        self._was_seen = self._was_seen or scoped.is_seen
        self._missed = self._missed + 1 if scoped.is_wanted and not scoped.is_seen else 0
        if self._missed:
            preflight.check_update(self.trainer, self._missed, was_seen=self._was_seen)
        if self._is_overwritten or not scoped.is_overwritten():
            return False
        self._is_overwritten = True
        return True

    @property
    def frequencies(self) -> list[int]:
        """The frequencies of the schedulers that are stepped here, in loader batches."""
        return self._clock.frequencies

    def follow_schedulers(self, plan: UserPlan, position: PlanPosition) -> PlanPosition:
        """Change to the Trainer's current schedulers, if they were set up again."""
        if self._clock.matches(self.trainer):
            return position
        preflight.check_schedule(self.trainer, self._schedule)
        self._clock.release()
        self._clock = ExampleClock(self.trainer, self.trainer.lightning_module)
        position = plan.count_for(position, self._clock.frequencies)
        self._clock.start_at(lambda frequency: plan.steps(position, frequency))
        return position

    def step_schedulers(self, plan: UserPlan, position: PlanPosition) -> bool:
        """Step the schedulers up to the plan; return whether a step was made and the planned step never read."""
        return self._clock.advance(
            lambda frequency: plan.steps(position, frequency),
            lambda frequency, number: plan.step_of_scheduler_step(position, frequency, number),
        )

    @property
    def planned_step_in_progress(self) -> int | None:
        """The planned step for which a scheduler is being stepped; None where none is."""
        return self._clock.read_planned_step()
