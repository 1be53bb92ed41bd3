"""One training under the scaler, from first micro-batch to end: the parts, and what each stage of a window does."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_bsscale.callbacks import loaders, output, preflight
from lightning_bsscale.callbacks.accumulation import Accumulation, rescale_cut_window
from lightning_bsscale.callbacks.budget import Budget
from lightning_bsscale.callbacks.control import BatchControl
from lightning_bsscale.callbacks.learning_rate import ExampleClock, ScopedFactor, UnscaledRate, relative_rate
from lightning_bsscale.callbacks.measurement import GradientMeasurement, OpenWindow, watched_parameters
from lightning_bsscale.callbacks.options import ScalerOptions
from lightning_bsscale.callbacks.timing import StepTimes
from lightning_bsscale.journal import describe_policy
from lightning_bsscale.theory.policies import Limits, Situation
from lightning_bsscale.theory.rules import LearningRateRule
from lightning_bsscale.theory.windows import WindowPlan, default_max_batch_size, plan_window

STATE_SCHEMA = 1


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
    ) -> None:
        """Reads the user's plan and attaches the parts.

        Args:
            options: the scaler's options
            trainer: the Trainer, before its first micro-batch
            pl_module: the module
            rule: how the rate follows the batch
            micro_batch_size: examples in the first micro-batch
            state: of a run to go on with, or None
        """
        self.options = options
        self.examples_seen = 0
        self.optimizer_steps = 0
        self._windows = 0
        self._window: OpenWindow | None = None
        self._times = StepTimes()
        self._came_in_epoch = 0
        self._said_lost = False
        self._optimizer = trainer.optimizers[0]
        self._accumulate = int(trainer.accumulate_grad_batches)
        # One unit for the whole training: the micro-batch that a resumed run happens to begin with may be a short one.
        self._micro_batch_size = micro_batch_size if state is None else state["micro_batch_size"]
        micro_batch_size = self._micro_batch_size
        self._sizes = loaders.SizeCheck(micro_batch_size)
        self._granularity = micro_batch_size * trainer.world_size
        start = self._accumulate * self._granularity
        self._read_plan(trainer, micro_batch_size)
        self.control = BatchControl(
            policy=options.policy, rule=rule, limits=self._limits(trainer, start, micro_batch_size), batch_size=start
        )
        memory = (
            math.inf if self.total_examples is None or options.memory == 1 else options.memory * self.total_examples
        )
        self.measurement = GradientMeasurement(trainer, self._optimizer, memory)
        if state is not None:
            self._load(state)
        output.say_start(self.control.batch_size, self.control.limits, options, goes_on=state is not None)
        self._journal = output.open_journal(
            trainer,
            options.record,
            {"policy": describe_policy(options.policy), "lr_rule": rule.name, "dry_run": options.dry_run},
            goes_on=state is not None,
        )
        # Last, so that nothing is held when something above is refused.
        self._attach(trainer, pl_module, state)

    # ------------------------------------------------------------------ start

    def _read_plan(self, trainer: pl.Trainer, micro_batch_size: int) -> None:
        """Sets `total_examples` and `warmup_examples` from the user's plan."""
        given = self.options.total_examples
        # An explicit budget replaces max_steps, which is then only Lightning's own limit on optimizer steps.
        planned = loaders.examples_in_plan(
            trainer, micro_batch_size, self.options.batch_size_fn, with_max_steps=given is None
        )
        self._max_steps = trainer.max_steps if trainer.max_steps >= 0 else None
        self.total_examples = min((total for total in (planned, given) if total is not None), default=None)
        preflight.check_budget(self.total_examples, self.options.shares())
        if given is not None or self._max_steps is not None:
            preflight.check_min_epochs(
                trainer,
                self.total_examples,
                loaders.epoch_examples(trainer, micro_batch_size, self.options.batch_size_fn),
            )
        warmup = self.options.warmup
        self._warmup_examples = warmup if isinstance(warmup, int) else warmup * (self.total_examples or 0.0)

    def _limits(self, trainer: pl.Trainer, start: int, micro_batch_size: int) -> Limits:
        given = self.options.max_batch_size
        if given is None:
            largest = default_max_batch_size(
                start_batch=start,
                granularity=self._granularity,
                epoch_examples=loaders.epoch_examples(trainer, micro_batch_size, self.options.batch_size_fn),
                total_examples=self.total_examples,
            )
        else:
            preflight.check_maximum(given, start)
            largest = given
        # Below the start the steps would outnumber the plan's, and max_steps would end the run before its examples.
        smallest = start if self._max_steps is not None else self._granularity
        return Limits(granularity=self._granularity, min_batch_size=smallest, max_batch_size=largest)

    def _attach(self, trainer: pl.Trainer, pl_module: pl.LightningModule, state: dict[str, Any] | None) -> None:
        """Takes hold of what the scaler changes; a dry run takes hold of nothing."""
        self._accumulation: Accumulation | None = None
        self._clock: ExampleClock | None = None
        self._rate: ScopedFactor | UnscaledRate = UnscaledRate(self._optimizer)
        if not self.options.dry_run:
            self._accumulation = Accumulation(trainer)
            self._rate = ScopedFactor(self._optimizer)
            self._clock = ExampleClock(trainer, pl_module)
        self.budget = Budget(
            accumulate=self._accumulate,
            max_steps=self._max_steps,
            total_examples=self.total_examples if self.options.total_examples is not None else None,
            granularity=self._granularity,
            epoch_batches=loaders.epoch_batches(trainer),
            frequencies=self._clock.frequencies if self._clock is not None else (),
        )
        if state is not None:
            self.budget.load(state["budget"])
            if self._clock is not None:
                self._clock.start_at(self.budget.planned_steps)
        if self._accumulate == 1 and (self.options.dry_run or self.options.probe_every == 0):
            why = "dry_run=True changes nothing" if self.options.dry_run else "probe_every=0 turns probe windows off"
            rank_zero_warn(
                f"bsscale: while a step has one micro-batch on one device, the noise scale cannot be measured, and "
                f"{why}. Set Trainer(accumulate_grad_batches=2) or more with smaller micro-batches.",
                category=UserWarning,
            )

    # ------------------------------------------------------------------ a window's life

    @property
    def _in_warmup(self) -> bool:
        return self.examples_seen < self._warmup_examples

    def _plan(self, batch_idx: int) -> WindowPlan:
        # What the window that begins now should be.
        if self._accumulation is None:
            left = self._accumulate - batch_idx % self._accumulate
            length = self.budget.epoch_length(batch_idx)
            return plan_window(start=batch_idx, wanted=left, epoch_batches=length, budget_batches=None)
        wanted = self.control.batch_size // self._granularity
        every = self.options.probe_every
        is_probe = wanted == 1 and every > 0 and (self._windows + 1) % every == 0
        return plan_window(
            start=batch_idx,
            wanted=2 if is_probe else wanted,
            epoch_batches=self.budget.epoch_length(batch_idx),
            budget_batches=self.budget.batches_left(batch_idx, self.examples_seen),
            is_probe=is_probe,
        )

    def _open_window(self, trainer: pl.Trainer, batch_idx: int) -> None:
        plan = self._plan(batch_idx)
        due = self._in_warmup or plan.is_probe or self._windows % self.options.measure_every == 0
        self._window = OpenWindow(
            planned=plan.num_micro_batches,
            loss_divisor=plan.num_micro_batches if self._accumulation is not None else self._accumulate,
            measured=due and plan.num_micro_batches > 1,
            steps_before=trainer.global_step,
            sizes=[],
        )
        if self._accumulation is not None:
            self._accumulation.place(plan)
        self._set_rate(plan.num_micro_batches, usual=not plan.is_probe and not plan.is_short)
        self.measurement.open(measured=self._window.measured)

    def _schedule_factor(self, window_examples: int) -> float | None:
        # What the callback's own schedule says for a window that begins now; None without one.
        schedule = self.options.schedule
        if schedule is None or self.total_examples is None:
            return None
        return schedule.factor(self.examples_seen + window_examples / 2, self.total_examples, self._warmup_examples)

    def _set_rate(self, num_micro_batches: int, *, usual: bool) -> None:
        """The factor for the window in progress: the batch's own, or that of a window of another size."""
        size = num_micro_batches * self._granularity
        factor = self.control.lr_scale if usual else self.control.window_factor(size, self.measurement.noise)
        schedule = self._schedule_factor(size)
        self._rate.change(factor, 1.0 if schedule is None else schedule)

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
        self._came_in_epoch = batch_idx + 1
        if self._window is None:
            self._open_window(trainer, batch_idx)
        assert self._window is not None
        self._window.sizes.append(size)
        self._times.start()

    def _start_epoch(self, trainer: pl.Trainer) -> None:
        self.drop_window()
        self.budget.start_epoch(loaders.epoch_batches(trainer), came=self._came_in_epoch)

    def drop_window(self) -> None:
        """`on_train_end`, and an epoch's start: Lightning drops a window that no step ended, and that is said once."""
        lost, self._window = self._window, None
        if lost is None:
            return
        self.budget.advance(self._came_in_epoch, is_last=False)
        if self._accumulation is not None and not self._said_lost:
            self._said_lost = True
            rank_zero_warn(
                f"bsscale: the last {lost.came} micro-batches of an epoch were not stepped with, as Lightning drops an "
                f"unfinished window: the epoch ended after {self._came_in_epoch} micro-batches, announced were "
                f"{self.budget.epoch_batches}. If the loader is shorter than it says, or than limit_train_batches, "
                "mend that; from the second epoch on its real length is used.",
                category=UserWarning,
            )

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
        if window is None or not stepped:
            return
        self._window = None
        self._windows += 1
        self.optimizer_steps += 1
        self.examples_seen += window.examples
        self._sizes.add(window.sizes)
        is_last = trainer.is_last_batch or batch_idx + 1 == self.budget.epoch_batches
        self.budget.advance(batch_idx + 1, is_last=is_last)
        if self._clock is not None:
            self._clock.advance(self.budget.planned_steps)
        facts = window.facts(
            examples_seen=self.examples_seen,
            optimizer_steps=self.optimizer_steps,
            batch_size=self.control.batch_size,
            lr=self._rate.rate,
            lr_scale=self._rate.factor,
        )
        output.write_measurement(self._journal, self.measurement.close(facts))
        record = None if self._in_warmup else self.control.ask(self._situation())
        if record is not None:
            if self._journal is not None:
                self._journal.write(record)
            output.say_decision(record, self.options)
        if self._accumulation is not None and self.budget.is_used_up(self.examples_seen):
            trainer.should_stop = True
        if (record is not None and record.is_change) or output.is_log_due(trainer):
            values = output.noise_values(self.measurement.noise) | self._values(window)
            output.log_values(trainer, pl_module, self.options.log_prefix, values, show=self.options.progress_bar)

    def _situation(self) -> Situation:
        schedule = self._schedule_factor(0)
        return Situation(
            batch_size=self.control.batch_size,
            start_batch_size=self.control.start_batch_size,
            examples_seen=self.examples_seen,
            total_examples=self.total_examples,
            warmup_examples=self._warmup_examples,
            optimizer_steps=self.optimizer_steps,
            schedule_factor=relative_rate(self._optimizer) if schedule is None else schedule,
            examples_at_last_change=self.control.examples_at_last_change,
            noise=self.measurement.noise,
            seconds_per_micro_batch=self._times.seconds_per_micro_batch,
            seconds_per_step=self._times.seconds_per_step,
        )

    def _values(self, window: OpenWindow) -> dict[str, float]:
        return {
            "batch_size": self.control.batch_size,
            "accumulate_grad_batches": window.came,
            # A dry run scales nothing: it logs the factor that it would have used, and the rate that was used.
            "lr_scale": self.control.lr_scale if self.options.dry_run else self._rate.factor,
            "lr": self._rate.rate,
            "examples_seen": self.examples_seen,
        }

    # ------------------------------------------------------------------ end and state

    def release(self) -> None:
        """Gives everything back to the user; a second call does nothing."""
        # First what is the user's, and nothing in it can fail; a full disk or a lost device shows only after that.
        self._rate.remove()
        if self._accumulation is not None:
            self._accumulation.restore()
        if self._clock is not None:
            self._clock.release()
        self.measurement.stop_watching()
        output.write_measurement(self._journal, self.measurement.flush())
        if self._journal is not None:
            self._journal.close()

    def state(self) -> dict[str, Any]:
        """What cannot be recomputed, at the last window's end.

        Returns:
            numbers, strings, lists and dicts
        """
        return {
            "schema": STATE_SCHEMA,
            "micro_batch_size": self._micro_batch_size,
            "examples_seen": self.examples_seen,
            "optimizer_steps": self.optimizer_steps,
            "windows": self._windows,
            "budget": self.budget.state(),
            "control": self.control.state(),
            "measurement": self.measurement.state(),
        }

    def _load(self, state: dict[str, Any]) -> None:
        self.examples_seen = state["examples_seen"]
        self.optimizer_steps = state["optimizer_steps"]
        self._windows = state["windows"]
        self.control.load(state["control"])
        self.measurement.load(state["measurement"])
