"""One training under the scaler, from first micro-batch to end: the parts, and what each stage of a window does."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import lightning.pytorch as pl

from lightning_bsscale.callbacks import loaders, output, preflight
from lightning_bsscale.callbacks.accumulation import Accumulation, rescale_cut_window
from lightning_bsscale.callbacks.budget import Budget
from lightning_bsscale.callbacks.control import BatchControl
from lightning_bsscale.callbacks.learning_rate import ExampleClock
from lightning_bsscale.callbacks.measurement import GradientMeasurement, OpenWindow, watched_parameters
from lightning_bsscale.callbacks.options import ScalerOptions
from lightning_bsscale.callbacks.plan import read_plan
from lightning_bsscale.callbacks.resume import STATE_SCHEMA, Outcome, Start, read_start
from lightning_bsscale.callbacks.timing import StepTimes
from lightning_bsscale.callbacks.window_rate import WindowRate
from lightning_bsscale.journal import describe_policy
from lightning_bsscale.theory.policies import Situation
from lightning_bsscale.theory.rules import LearningRateRule
from lightning_bsscale.theory.windows import WindowPlan, plan_window


class ScaledRun:
    """Holds the parts of one training and calls them in the order of a window's life."""

    def __init__(
        self,
        options: ScalerOptions,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        rule: LearningRateRule,
        micro_batch_size: int,
        state: dict[str, Any] | None,
        accumulation: Accumulation | None,
    ) -> None:
        """Reads the user's plan and attaches the parts.

        Args:
            options: the scaler's options
            trainer: the Trainer, before its first micro-batch
            pl_module: the module
            rule: how the rate follows the batch
            micro_batch_size: examples in the first micro-batch
            state: of a run to go on with, or None
            accumulation: where the window was placed already, for Lightning's own restart; else None
        """
        self.options = options
        self.examples_seen = 0
        self.optimizer_steps = 0
        self.lost_micro_batches = 0
        self._windows = 0
        self._window: OpenWindow | None = None
        self._interrupted = 0
        self._last_state: dict[str, Any] | None = None
        self._trainer_id = id(trainer)
        self._global_step = 0
        self._times = StepTimes()
        self._came_in_epoch = 0
        self._said_lost = False
        self._stops = False
        self._optimizer = trainer.optimizers[0]
        accumulate = int(trainer.accumulate_grad_batches) if accumulation is None else accumulation.original
        first = None if state is None else Start(**state["start"])
        self._now = read_start(trainer, micro_batch_size, accumulate, first)
        self._first = first or self._now
        self._plan = read_plan(trainer, options, self._first, self._now)
        self._sizes = loaders.SizeCheck(self._now.micro_batch_size)
        self.control = BatchControl(
            policy=options.policy, rule=rule, limits=self._plan.limits, batch_size=self._first.batch_size
        )
        total = self._plan.total_examples
        memory = math.inf if total is None or options.memory == 1 else options.memory * total
        self.measurement = GradientMeasurement(trainer, self._optimizer, memory)
        if state is not None:
            self._load(state)
        output.say_start(self.control.batch_size, self.control.limits, options, goes_on=state is not None)
        self._journal = output.open_journal(
            trainer,
            options.record,
            {"policy": describe_policy(options.policy), "lr_rule": rule.name, "dry_run": options.dry_run},
            keep=None if state is None else state["records"],
        )
        # Last, so that nothing is held when something above is refused.
        self._attach(trainer, pl_module, state, accumulation)

    # ------------------------------------------------------------------ start

    def _attach(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        state: dict[str, Any] | None,
        accumulation: Accumulation | None,
    ) -> None:
        """Takes hold of what the scaler changes; a dry run takes hold of nothing."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            # First, as a warning may be made an error.
            preflight.warn_of_single_micro_batch(self.options, self._now.accumulate, loaders.epoch_batches(trainer))
        self._accumulation: Accumulation | None = None
        self._clock: ExampleClock | None = None
        if not self.options.dry_run:
            self._accumulation = accumulation or Accumulation(trainer)  # refuses where windows cannot be placed
            self._clock = ExampleClock(trainer, pl_module)
        self._rate = WindowRate(
            self._optimizer, self.control, self._plan, self.options.schedule, dry_run=self.options.dry_run
        )
        self.budget = Budget(
            accumulate=self._first.accumulate,
            max_steps=self._plan.max_steps,
            total_examples=self._plan.total_examples if self.options.total_examples is not None else None,
            granularity=self._now.granularity,
            epoch_batches=loaders.epoch_batches(trainer),
            frequencies=self._clock.frequencies if self._clock is not None else (),
            plan_granularity=self._first.granularity,
            epoch_examples=self._epoch_examples(trainer),
        )
        if state is not None:
            self.budget.load(state["budget"])
            if self._clock is not None:
                self._clock.start_at(self.budget.planned_steps)

    def _epoch_examples(self, trainer: pl.Trainer) -> int | None:
        return loaders.epoch_examples(trainer, self._now.micro_batch_size, self.options.batch_size_fn)

    # ------------------------------------------------------------------ a window's life

    @property
    def _in_warmup(self) -> bool:
        return self.examples_seen < self._plan.warmup_examples

    def _next_window(self, batch_idx: int) -> WindowPlan:
        # What the window that begins now should be.
        if self._accumulation is None:
            left = self._now.accumulate - batch_idx % self._now.accumulate
            length = self.budget.epoch_length(batch_idx)
            return plan_window(start=batch_idx, wanted=left, epoch_batches=length, budget_batches=None)
        wanted = self.control.batch_size // self._now.granularity
        every = self.options.probe_every
        is_probe = wanted == 1 and every > 0 and (self._windows + 1) % every == 0
        rest, self._interrupted = self._interrupted, 0
        plan = plan_window(
            start=batch_idx,
            wanted=rest or (2 if is_probe else wanted),
            epoch_batches=self.budget.epoch_length(batch_idx),
            budget_batches=self.budget.batches_left(batch_idx, self.examples_seen),
            is_probe=is_probe and not rest,
        )
        return replace(plan, is_short=True) if rest else plan

    def _open_window(self, trainer: pl.Trainer, batch_idx: int) -> None:
        is_rest = self._interrupted > 0
        plan = self._next_window(batch_idx)
        is_clear = self._accumulation is not None or batch_idx % self._now.accumulate == 0  # no old gradient in it
        due = self._in_warmup or plan.is_probe or self._windows % self.options.measure_every == 0
        self._window = OpenWindow(
            start=plan.start,
            planned=plan.num_micro_batches,
            loss_divisor=plan.num_micro_batches if self._accumulation is not None else self._now.accumulate,
            measured=due and plan.num_micro_batches > 1 and is_clear,
            steps_before=trainer.global_step,
            sizes=[],
            is_rest=is_rest,
        )
        if self._accumulation is not None:
            self._accumulation.place(plan.start, plan.num_micro_batches)
        self._set_rate(plan.num_micro_batches, usual=not plan.is_probe and not plan.is_short)
        self.measurement.open(measured=self._window.measured)

    def _set_rate(self, num_micro_batches: int, *, usual: bool) -> None:
        size = num_micro_batches * self._now.granularity
        self._rate.set(self.examples_seen, size, self.measurement.noise, usual=usual)

    def start_micro_batch(self, trainer: pl.Trainer, batch: Any, batch_idx: int) -> None:
        """`on_train_batch_start`.

        Args:
            trainer: the Trainer
            batch: the micro-batch
            batch_idx: its index in the epoch
        """
        size = loaders.batch_size_of(batch, self.options.batch_size_fn)
        if batch_idx == 0:
            self._start_epoch(trainer)
        elif self._accumulation is None and batch_idx % self._now.accumulate == 0:
            self.drop_window()  # here Lightning clears the gradient, whether or not a step ended the window before
        if self._window is None:
            self._open_window(trainer, batch_idx)
        assert self._window is not None
        self._window.sizes.append(size)
        self._times.start()

    def _start_epoch(self, trainer: pl.Trainer) -> None:
        self.drop_window()
        self.budget.start_epoch(
            loaders.epoch_batches(trainer), came=self._came_in_epoch, epoch_examples=self._epoch_examples(trainer)
        )
        self._came_in_epoch = 0

    def drop_window(self) -> None:
        """`on_train_end`, and an epoch's start: Lightning drops a window that no step ended, and that is said once."""
        lost, self._window = self._window, None
        self._interrupted = 0
        if lost is None or lost.done == 0:
            return
        self.lost_micro_batches += lost.done
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
            self._start_epoch(trainer)
        self._came_in_epoch = batch_idx + 1
        if self._accumulation is not None:
            self._accumulation.skip(batch_idx, is_open=self._window is not None)
            if self._window is not None:
                self._window.start += 1

    def before_step(self) -> None:
        """`on_before_optimizer_step`: the gradient is complete, not yet clipped."""
        window = self._window
        if window is None:
            return
        self.measurement.before_step(window)
        if self._accumulation is not None and window.came != window.planned:
            rescale_cut_window(watched_parameters(self._optimizer), window.planned, window.came)
            self._set_rate(window.came, usual=False)

    def end_micro_batch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch_idx: int) -> None:
        """`on_train_batch_end`: after the last micro-batch of a window, everything that happens at a window's end.

        Args:
            trainer: the Trainer
            pl_module: the module
            batch_idx: index in the epoch of the micro-batch that ended
        """
        window = self._window
        stepped = window is not None and trainer.global_step > window.steps_before
        self._times.stop(stepped=stepped)
        self._came_in_epoch = batch_idx + 1
        if window is not None:
            window.done += 1
        if window is None or not stepped:
            return
        self._window = None
        self._windows += 1
        self.optimizer_steps += 1
        self.examples_seen += window.examples
        self._sizes.add(window.sizes)
        is_last = trainer.is_last_batch or batch_idx + 1 >= (self.budget.epoch_batches or math.inf)
        self.budget.advance(batch_idx + 1, is_last=is_last)
        if self._clock is not None:
            self._clock.advance(self.budget.planned_steps)
        facts = window.facts(
            examples_seen=self.examples_seen,
            optimizer_steps=self.optimizer_steps,
            batch_size=self.control.batch_size,
            lr=self._rate.rate,
            lr_scale=self._rate.used_factor,
        )
        output.write_measurement(self._journal, self.measurement.close(facts))
        record = None if self._in_warmup else self.control.ask(self._situation())
        if record is not None:
            if self._journal is not None:
                self._journal.write(record)
            output.say_decision(record, self.options)
        if self._accumulation is not None and self.budget.is_used_up(self.examples_seen):
            self._stops = not trainer.should_stop
            trainer.should_stop = True
        if (record is not None and record.is_change) or output.is_log_due(trainer):
            values = output.noise_values(self.measurement) | self._values(window)
            output.log_values(trainer, pl_module, self.options.log_prefix, values, show=self.options.progress_bar)

    def _situation(self) -> Situation:
        return Situation(
            batch_size=self.control.batch_size,
            start_batch_size=self.control.start_batch_size,
            examples_seen=self.examples_seen,
            total_examples=self._plan.total_examples,
            warmup_examples=self._plan.warmup_examples,
            optimizer_steps=self.optimizer_steps,
            schedule_factor=self._rate.schedule_factor(self.examples_seen),
            examples_at_last_change=self.control.examples_at_last_change,
            noise=self.measurement.noise,
            seconds_per_micro_batch=self._times.seconds_per_micro_batch,
            seconds_per_step=self._times.seconds_per_step,
        )

    def _values(self, window: OpenWindow) -> dict[str, float]:
        return {
            "batch_size": self.control.batch_size,
            "accumulate_grad_batches": window.came,
            "lr_scale": self._rate.shown_factor,
            "lr": self._rate.rate,
            "examples_seen": self.examples_seen,
        }

    # ------------------------------------------------------------------ end and state

    @property
    def outcome(self) -> Outcome:
        """What it has to show so far."""
        return Outcome(
            batch_size=self.control.batch_size,
            noise=self.measurement.noise,
            lr_scale=self.control.lr_scale,
            examples_seen=self.examples_seen,
            decisions=self.control.decisions,
            history=self.measurement.history,
        )

    def goes_on_in(self, trainer: pl.Trainer) -> bool:
        """Whether a second `fit` of this Trainer goes on where this run ended: Lightning's own counters do.

        Args:
            trainer: the Trainer that is about to fit

        Returns:
            True where it is the same, and has not done anything else since
        """
        return id(trainer) == self._trainer_id and trainer.global_step == self._global_step > 0

    def release(self, trainer: pl.Trainer) -> None:
        """Gives everything back to the user; a second call does nothing.

        Args:
            trainer: the Trainer
        """
        self._global_step = trainer.global_step
        # First what is the user's, and nothing in it can fail; a policy's state, a full disk or a lost device can.
        self._rate.remove()
        if self._stops:
            self._stops = trainer.should_stop = False
        if self._accumulation is not None:
            self._accumulation.restore()
        if self._clock is not None:
            self._clock.release()
        self.measurement.stop_watching()
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
        window = self._window
        return {
            "schema": STATE_SCHEMA,
            "start": asdict(self._first),
            "examples_seen": self.examples_seen,
            "optimizer_steps": self.optimizer_steps,
            "lost_micro_batches": self.lost_micro_batches,
            "windows": self._windows,
            "window": None if window is None else window.state(),
            "records": self._journal.records if self._journal is not None else 0,
            "budget": self.budget.state(),
            "control": self.control.state(),
            "measurement": self.measurement.state(),
        }

    def _load(self, state: dict[str, Any]) -> None:
        self.examples_seen = state["examples_seen"]
        self.optimizer_steps = state["optimizer_steps"]
        self.lost_micro_batches = state["lost_micro_batches"]
        self._windows = state["windows"]
        self.control.load(state["control"])
        self.measurement.load(state["measurement"])
        batch_size = self.control.batch_size
        self.control.fit_limits(self.measurement.noise)
        window = state["window"]
        lost = 0 if window is None else window["done"]
        self.lost_micro_batches += lost
        if lost or (window is not None and window["is_rest"]):
            self._interrupted = window["planned"] - lost
        output.say_resumed(
            self._first, self._now, batch_size, self.control.batch_size, lost=lost, rest=self._interrupted
        )
