"""One training under the scaler, from first micro-batch to end: the parts, and what each stage of a window does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl
from torch.optim import Optimizer

from lightning_bsscale.callbacks import shown
from lightning_bsscale.callbacks.checks import preflight
from lightning_bsscale.callbacks.checks.options import ScalerOptions
from lightning_bsscale.callbacks.control import BatchControl
from lightning_bsscale.callbacks.measurement import GradientMeasurement, watched_parameters
from lightning_bsscale.callbacks.next_window import WindowPlanner
from lightning_bsscale.callbacks.open_window import OpenWindow
from lightning_bsscale.callbacks.output import logging as output
from lightning_bsscale.callbacks.state.resume import STATE_SCHEMA, Start, read_start
from lightning_bsscale.callbacks.trainer import loaders
from lightning_bsscale.callbacks.trainer.accumulation import Accumulation, rescale_cut_window
from lightning_bsscale.callbacks.trainer.learning_rate import ExampleClock
from lightning_bsscale.callbacks.trainer.optimizer_step import unwrapped
from lightning_bsscale.callbacks.trainer.stop import StopRequest
from lightning_bsscale.callbacks.trainer.timing import StepTimes
from lightning_bsscale.callbacks.trainer.user_plan import make_budget, read_plan
from lightning_bsscale.callbacks.window_rate import WindowRate
from lightning_bsscale.journal import Journal, describe_policy
from lightning_bsscale.theory.example_count import ExamplesSeen
from lightning_bsscale.theory.rules import Constant, LearningRateRule


class ScaledRun:
    """Holds the parts of one training and calls them in the order of a window's life."""

    def __init__(
        self,
        options: ScalerOptions,
        trainer: pl.Trainer,
        rule_for: Callable[[Optimizer], LearningRateRule],
        micro_batch_size: int,
        state: dict[str, Any] | None,
        accumulation: Accumulation | None,
        clock: ExampleClock | None,
        stop: StopRequest,
        batch_idx: int,
    ) -> None:
        """Reads the user's plan and attaches the parts.

        Args:
            options: the scaler's options
            trainer: the Trainer, before its first micro-batch
            rule_for: how the learning rate follows the batch, with a given optimizer
            micro_batch_size: examples in the first micro-batch
            state: of a run to go on with, or None
            accumulation: where the window was placed already, for Lightning's own restart; else None
            clock: of the user's schedulers; None in a dry run
            stop: asks for the end of training
            batch_idx: index in the epoch of the first micro-batch
        """
        self.options = options
        self.optimizer_steps = 0
        self.lost_micro_batches = 0
        self._lost_examples = 0
        self._windows = 0
        self._window: OpenWindow | None = None
        self._rest = 0
        self._last_state: dict[str, Any] | None = None
        self._trainer_id = id(trainer)
        self._global_step = 0
        self.times = StepTimes()
        self._came_in_epoch = 0
        self._is_resuming = state is not None
        self._epoch = trainer.current_epoch
        self._in_progress: tuple[pl.Trainer, pl.LightningModule, int] | None = None
        self._lost_at_start = 0
        self._usual = True
        self._said_lost = False
        self._stop = stop
        self._said_scheduler_step = False
        self._missed = 0
        self._was_seen = False
        self._is_overwritten = False
        self._optimizer = unwrapped(trainer.optimizers[0])
        self._rule_for = rule_for
        rule = rule_for(self._optimizer)
        accumulate = int(trainer.accumulate_grad_batches) if accumulation is None else accumulation.original
        self._loaders = loaders.ask_all_ranks(trainer, micro_batch_size, options.batch_size_fn)
        first = None if state is None else Start(**state["start"])
        self.now = read_start(trainer, self._loaders, accumulate, first)
        self._first = first or self.now
        self._examples = ExamplesSeen(trainer.world_size, self.now.granularity)
        self.plan = read_plan(trainer, options, self._loaders, self._first, self.now)
        self._sizes = loaders.SizeCheck(micro_batch_size if first is None else self.now.own_micro_batch_size)
        self.control = BatchControl(
            policy=options.policy, rule=rule, limits=self.plan.limits, batch_size=self._first.batch_size
        )
        total = self.plan.total_examples
        memory = math.inf if total is None or options.memory == 1 else options.memory * total
        self.measurement = GradientMeasurement(trainer, self._optimizer, memory, self._examples, self.times)
        if state is not None:
            self._load(state)
        output.say_start(self.control.batch_size, self.control.limits, options, goes_on=state is not None)
        self._journal = self._open_journal(trainer, rule, state)
        with output.closed_on_error(self._journal):
            # Last, so that nothing is held when something above is refused.
            self._attach(trainer, clock, state, accumulation, batch_idx)

    # ------------------------------------------------------------------ start

    def _open_journal(
        self, trainer: pl.Trainer, rule: LearningRateRule, state: dict[str, Any] | None
    ) -> Journal | None:
        options, header = self.options, dict[str, Any]()
        if options.record is not False:  # a policy may be anything: describe it only for a reader
            header = {"policy": describe_policy(options.policy), "lr_rule": rule.name, "dry_run": options.dry_run}
        return output.open_journal(trainer, options.record, header, state)

    def _attach(
        self,
        trainer: pl.Trainer,
        clock: ExampleClock | None,
        state: dict[str, Any] | None,
        accumulation: Accumulation | None,
        batch_idx: int,
    ) -> None:
        """Takes hold of what the scaler changes; a dry run takes hold of nothing."""
        if self.measurement.seen_at_once == 1 and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            # First, as a warning may be made an error.
            in_force = max(1, self.control.batch_size // self.now.granularity)  # of a run that goes on, not the user's
            accumulate = self.now.accumulate if self.options.dry_run else in_force
            preflight.warn_of_single_micro_batch(self.options, accumulate, self._loaders.batches)
        self._accumulation: Accumulation | None = None
        if not self.options.dry_run:
            self._accumulation = accumulation or Accumulation(trainer)  # refuses where windows cannot be placed
        self._clock = clock
        self.rate = WindowRate(
            self._optimizer, self.control, self.plan, self.options.schedule, dry_run=self.options.dry_run
        )
        frequencies = self._clock.frequencies if self._clock is not None else []
        self.budget = make_budget(self.options, self.plan, self._loaders, self._first, self.now, frequencies)
        if state is not None:
            self.budget.load(state["budget"])
        elif trainer.global_step > 0:
            self.budget.begin_at(batch_idx, trainer.global_step)
        if self._clock is not None:
            self._clock.start_at(self.budget.planned_steps)
            self._follow(trainer, self._optimizer)
        self._planner = WindowPlanner(
            self.control,
            self.budget,
            granularity=self.now.granularity,
            probe_every=self.options.probe_every,
            seen_at_once=self.measurement.seen_at_once,
        )

    # ------------------------------------------------------------------ a window's life

    @property
    def _used(self) -> int:
        # Lost micro-batches are gone from the budget too: the user's schedulers, which end with it, went past them.
        return self.examples_seen + self._lost_examples

    @property
    def examples_seen(self) -> int:
        """Examples of all windows so far, over all ranks."""
        return self._examples.total

    @property
    def _in_warmup(self) -> bool:
        return self.examples_seen < self.plan.warmup_examples

    def _open_window(self, trainer: pl.Trainer, batch_idx: int) -> None:
        is_rest = self._rest > 0 and self._accumulation is not None
        rest, self._rest = self._rest, 0
        if self._accumulation is None:
            plan = self._planner.as_the_trainer(batch_idx, self.now.accumulate)
        else:
            plan = self._planner.next(batch_idx, self._windows, self._used, rest)
        if self._lost_at_start:
            output.say_unfinished(self._lost_at_start, plan.num_micro_batches if self._accumulation is not None else 0)
            self._lost_at_start = 0
        is_clear = self._accumulation is not None or batch_idx % self.now.accumulate == 0  # no old gradient in it
        due = self._in_warmup or plan.is_probe or self._windows % self.options.measure_every == 0
        # On several ranks an epoch's last window too: what it sends makes the count of examples exact.
        due = due or (trainer.world_size > 1 and self._planner.is_last(plan, self._used))
        self._window = OpenWindow(
            start=plan.start,
            planned=plan.num_micro_batches,
            loss_divisor=plan.num_micro_batches if self._accumulation is not None else self.now.accumulate,
            measured=due and plan.num_micro_batches * self.measurement.seen_at_once > 1 and is_clear,
            steps_before=trainer.global_step,
            sizes=[],
            is_rest=is_rest,
        )
        if self._accumulation is not None:
            self._accumulation.place(plan.start, plan.num_micro_batches)
        self.rate.begin_window()
        self._set_rate(plan.num_micro_batches, usual=not plan.is_probe and not plan.is_short)
        self.measurement.open(measured=self._window.measured)

    def _set_rate(self, num_micro_batches: int, *, usual: bool) -> None:
        size = num_micro_batches * self.now.granularity
        self._usual = usual
        self.rate.set(self.examples_seen, size, self.measurement.noise, usual=usual)

    def start_micro_batch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """`on_train_batch_start`.

        Args:
            trainer: the Trainer
            pl_module: the module
            batch: the micro-batch
            batch_idx: its index in the epoch
        """
        size = loaders.batch_size_of(batch, self.options.batch_size_fn)
        self._in_progress = (trainer, pl_module, batch_idx)
        # An epoch may begin with None, and a stopped run's checkpoint calls the epoch that it is in the next one.
        first_of_resumed, self._is_resuming = self._is_resuming, False
        if batch_idx == 0 or (trainer.current_epoch != self._epoch and batch_idx < self.budget.came):
            self._start_epoch(trainer, size)
        elif first_of_resumed and self.budget.is_at_epoch_end:
            self._start_epoch(trainer, size, first=batch_idx)
        elif self._accumulation is None and batch_idx % self.now.accumulate == 0:
            self.drop_window()  # here Lightning clears the gradient, whether or not a step ended the window before
        self._follow(trainer, trainer.optimizers[0])
        if self._window is None:
            self._open_window(trainer, batch_idx)
        assert self._window is not None
        self._window.sizes.append(size)
        self.times.start()

    def _start_epoch(self, trainer: pl.Trainer, size: int, *, first: int = 0) -> None:
        is_repeated = trainer.current_epoch == self._epoch and self.budget.came > 0 and not self.budget.is_at_epoch_end
        self._epoch = trainer.current_epoch
        self.drop_window()
        if self._loaders.are_old(trainer):
            self._loaders = loaders.ask_all_ranks(trainer, size, self.options.batch_size_fn)
        # A second fit after an exception begins its epoch anew too, as anyone expects.
        if is_repeated and self._loaders.batches is not None and self.budget.came >= self._loaders.batches:
            output.say_repeated(self.budget.came, self._loaders.batches, waits=self.plan.ends_with_epochs)
        self.budget.start_epoch(
            self._loaders.batches,
            came=self._came_in_epoch,
            epoch_examples=self._loaders.epoch_examples(self.now.granularity),
            first=first,
            is_repeated=is_repeated,
        )
        self._came_in_epoch = 0

    def drop_window(self) -> None:
        """`on_train_end`, and an epoch's start: Lightning drops a window that no step ended, and that is said once."""
        lost, self._window = self._window, None
        self._rest = self._lost_at_start = 0
        if lost is None or lost.done == 0:
            return
        self.lost_micro_batches += lost.done
        self._lost_examples += lost.done * self.now.granularity
        self.budget.advance(self._came_in_epoch, is_last=False)
        if self._accumulation is not None and not self._said_lost:
            self._said_lost = True
            output.say_lost(lost.done, self._came_in_epoch, self.budget.epoch_batches)

    def skip_micro_batch(self, trainer: pl.Trainer, batch_idx: int) -> None:
        """`on_train_batch_end` where the loader gave None: nothing began, but Lightning counts the index.

        Args:
            trainer: the Trainer
            batch_idx: the index
        """
        if batch_idx == 0:
            self._start_epoch(trainer, 0)
        self._came_in_epoch = batch_idx + 1
        if self._accumulation is not None:
            self._accumulation.skip(batch_idx, is_open=self._window is not None)
            if self._window is not None:
                self._window.start += 1

    def after_backward(self) -> None:
        """`on_after_backward`: watching ends."""
        if self._window is not None:
            self.measurement.after_backward(self._window.sizes[-1])

    def before_step(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        """`on_before_optimizer_step`: the gradient is complete, not yet clipped.

        Args:
            trainer: the Trainer
            optimizer: the one that steps
        """
        window = self._window
        if window is None:
            return
        is_late = self._follow(trainer, optimizer)
        self.measurement.before_step(window)
        if self._accumulation is not None and window.came != window.planned:
            rescale_cut_window(watched_parameters(self._optimizer), window.planned, window.came)
            self._set_rate(window.came, usual=False)
        if is_late or self.options.dry_run:
            self.rate.apply()  # this optimizer's step may have begun before it was wrapped

    def _follow(self, trainer: pl.Trainer, optimizer: Optimizer) -> bool:
        # Go over to another optimizer and other schedulers, where the user had them set up anew in mid-training.
        optimizer = unwrapped(optimizer)
        is_other = optimizer is not self._optimizer
        if is_other:
            preflight.check_optimizer(trainer, "BatchSizeScaler")
            if not self.options.dry_run:
                preflight.check_learning_rate_is_ours(trainer)
            rule = self._rule_for(optimizer)
            self._optimizer = optimizer
            self.measurement.follow(optimizer)
            self.rate.follow(optimizer)
            self.control.use_rule(rule, self.measurement.noise)
            if self._window is not None:
                self._set_rate(self._window.planned, usual=self._usual)
        if self._clock is not None and not self._clock.is_of(trainer):
            preflight.check_schedule(trainer, self.options.schedule)
            self._clock.release()
            self._clock = ExampleClock(trainer, trainer.lightning_module)
            self.budget.count_for(self._clock.frequencies)
            self._clock.start_at(self.budget.planned_steps)
        return is_other

    def close_stepped(self) -> None:
        """Ends a window whose step was made before its `on_train_batch_end` came: another callback saves, or raised."""
        window, now = self._window, self._in_progress
        if self._last_state is None and window is not None and now is not None:
            trainer, pl_module, batch_idx = now
            if trainer.global_step > window.steps_before:
                self.end_micro_batch(trainer, pl_module, batch_idx)

    def end_micro_batch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch_idx: int) -> None:
        """`on_train_batch_end`: after the last micro-batch of a window, everything that happens at a window's end.

        Args:
            trainer: the Trainer
            pl_module: the module
            batch_idx: index in the epoch of the micro-batch that ended
        """
        window = self._window
        stepped = window is not None and trainer.global_step > window.steps_before
        self.times.stop(stepped=stepped)
        self._came_in_epoch = batch_idx + 1
        if window is not None:
            window.done += 1
        if window is None or not stepped:
            return
        self._window = None
        self._windows += 1
        self.optimizer_steps += 1
        self._examples.add(window.examples, window.came)
        self._sizes.add(window.sizes)
        self.rate.restore()
        self.budget.advance(batch_idx + 1, is_last=self._is_epochs_end(trainer, batch_idx))
        if self._clock is not None and self._clock.advance(
            self.budget.planned_steps, self.budget.step_of_scheduler_step
        ):
            self._warn_of_scheduler_step(pl_module)
        facts = window.facts(
            examples_seen=self.examples_seen,
            optimizer_steps=self.optimizer_steps,
            batch_size=self.control.batch_size,
            lr=self.rate.rate,
            lr_scale=self.rate.used_factor,
        )
        output.write_measurement(self._journal, self.measurement.close(facts))
        record = None if self._in_warmup else self.control.ask(shown.situation(self))
        if record is not None:
            if self._journal is not None:
                self._journal.write(record)
            output.say_decision(record, self.options)
        if self._accumulation is not None and self.budget.is_used_up(self._used):
            self._stop.ask(trainer)
        if (record is not None and record.is_change) or output.is_log_due(trainer):
            values = output.noise_values(self.measurement) | shown.log_values(self, window.came)
            output.log_values(trainer, pl_module, self.options.log_prefix, values, show=self.options.progress_bar)
        self._check_update(trainer, pl_module)

    def _is_epochs_end(self, trainer: pl.Trainer, batch_idx: int) -> bool:
        return trainer.is_last_batch or batch_idx + 1 >= (self.budget.epoch_batches or math.inf)

    def _warn_of_scheduler_step(self, pl_module: pl.LightningModule) -> None:
        if not self._said_scheduler_step and self.plan.limits.max_batch_size > self._first.batch_size:
            preflight.warn_of_scheduler_step(pl_module)
        self._said_scheduler_step = True

    def _check_update(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._was_seen = self._was_seen or self.rate.is_seen
        self._missed = self._missed + 1 if self.rate.was_missed else 0
        if self._missed:
            preflight.check_update(trainer, pl_module, self._missed, was_seen=self._was_seen)
        if not self._is_overwritten and self.rate.is_overwritten():
            # Not an error: it may show only when the batch first grows, days into a training.
            self._is_overwritten = True
            preflight.warn_of_own_computation(self._optimizer)
            self.control.use_rule(Constant(), self.measurement.noise)

    @property
    def planned_steps(self) -> int:
        """Steps of the user's own plan; from a window's step on, that one included."""
        now, window = self._in_progress, self._window
        if now is not None and window is not None and now[0].global_step > window.steps_before:
            trainer, _, batch_idx = now
            return self.budget.planned_steps_after(batch_idx + 1, is_last=self._is_epochs_end(trainer, batch_idx))
        return self.budget.planned_steps()

    def ask_planned_steps(self) -> int:
        """Return the planned step for which a scheduler is being stepped now, or those made by now.

        Returns:
            the number
        """
        being_made = None if self._clock is None else self._clock.ask_planned_step()
        return self.planned_steps if being_made is None else being_made

    # ------------------------------------------------------------------ end and state

    @property
    def journal_path(self) -> str | None:
        """The file that is recorded to, or None."""
        return output.journal_path(self._journal)

    def goes_on_in(self, trainer: pl.Trainer) -> bool:
        """Whether a second `fit` of this Trainer goes on where this run ended: Lightning's own counters do.

        Args:
            trainer: the Trainer that is about to fit

        Returns:
            True where it is the same, and has not done anything else since
        """
        return id(trainer) == self._trainer_id and trainer.global_step == self._global_step > 0

    def release(self, trainer: pl.Trainer, *, after_error: bool = False) -> None:
        """Gives everything back to the user; a second call does nothing.

        Args:
            trainer: the Trainer
            after_error: whether other ranks may have stopped
        """
        self._global_step = trainer.global_step
        self._in_progress = None
        # First what is the user's, and nothing in it can fail; a policy's state, a full disk or a lost device can.
        self.rate.remove()
        if self._accumulation is not None:
            self._accumulation.restore()
        if self._clock is not None:
            self._clock.release()
        self.measurement.stop_watching()
        if after_error:
            self.measurement.give_up_waiting()
        # A checkpoint may still be saved: by ModelCheckpoint after an exception, by the user after training.
        self._last_state = self._last_state or self.state()
        output.write_measurement(self._journal, self.measurement.flush())
        if self._journal is not None:
            self._journal.close()

    def state(self) -> dict[str, Any]:
        """What cannot be recomputed: all up to the last window's end, and how far the one in progress is.

        Returns:
            numbers, strings, lists and dicts
        """
        if self._last_state is not None:
            return self._last_state
        self.rate.restore()  # an exception may have left a step in its middle, and a checkpoint holds the user's rate
        self.close_stepped()
        window = self._window
        return {
            "schema": STATE_SCHEMA,
            "start": asdict(self._first),
            "examples": self._examples.state(),
            "optimizer_steps": self.optimizer_steps,
            "lost_micro_batches": self.lost_micro_batches,
            "lost_examples": self._lost_examples,
            "windows": self._windows,
            "now": asdict(self.now),
            "epoch": self._epoch,
            "came_in_epoch": self._came_in_epoch,
            "window": None if window is None else window.state(),
            "journal": output.journal_state(self._journal),
            "budget": self.budget.state(),
            "control": self.control.state(),
            "measurement": self.measurement.state(),
        }

    def _load(self, state: dict[str, Any]) -> None:
        self._examples.load(state["examples"])
        self.optimizer_steps = state["optimizer_steps"]
        self.lost_micro_batches = state["lost_micro_batches"]
        self._lost_examples = state["lost_examples"]
        self._windows = state["windows"]
        self.control.load(state["control"])
        self.measurement.load(state["measurement"])
        before, batch_size = Start(**state["now"]), self.control.batch_size
        self.control.fit_limits(self.measurement.noise)
        window = state["window"]
        lost = 0 if window is None else window["done"]
        self.lost_micro_batches += lost
        self._lost_examples += lost * before.granularity
        if lost or (window is not None and window["is_rest"]):
            rest = (window["planned"] - lost) * before.granularity
            self._rest = max(1, round(rest / self.now.granularity))
        self._lost_at_start = lost
        if before.granularity == self.now.granularity and state["epoch"] != self._epoch:
            self._came_in_epoch = state["came_in_epoch"]
        self._epoch = state["epoch"]
        output.say_resumed(self._first, before, self.now, batch_size, self.control.batch_size)
