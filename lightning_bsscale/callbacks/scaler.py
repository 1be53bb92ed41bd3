"""BatchSizeScaler: options, hooks in the order of a window's life, state; no arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch.optim import Optimizer

from lightning_bsscale.callbacks import shown
from lightning_bsscale.callbacks.checks import compatibility as neighbours
from lightning_bsscale.callbacks.checks import options, preflight
from lightning_bsscale.callbacks.checks.options import ScalerOptions
from lightning_bsscale.callbacks.monitor import GradientNoiseScaleMonitor
from lightning_bsscale.callbacks.scaled_run import ScaledRun
from lightning_bsscale.callbacks.state.open_run import OpenRun
from lightning_bsscale.callbacks.state.resume import Outcome, check_schema, is_over, outcome_of, window_at_restart
from lightning_bsscale.callbacks.state.spawn import WayBack, without_module
from lightning_bsscale.callbacks.trainer.accumulation import Accumulation
from lightning_bsscale.callbacks.trainer.learning_rate import ExampleClock
from lightning_bsscale.callbacks.trainer.loaders import batch_size_of
from lightning_bsscale.callbacks.trainer.stop import StopRequest
from lightning_bsscale.summary import summary_table
from lightning_bsscale.theory.checks import check_integer
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.policies import Policy, resolve_policy
from lightning_bsscale.theory.records import DecisionRecord, Measurement
from lightning_bsscale.theory.rules import LearningRateRule
from lightning_bsscale.theory.schedules import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class BatchSizeScaler(pl.Callback):
    """Measures the gradient noise scale, grows the batch towards it, and rescales the learning rate.

    The batch grows by gradient accumulation, at optimizer-step boundaries, from the micro-batch and
    ``accumulate_grad_batches`` that the Trainer was given. Everything is counted in examples (or in what
    `batch_size_fn` counts): warmup, memory, budget. The user's ``interval: step`` schedulers are stepped as often as
    the user's own plan would have stepped them, so a schedule built from ``trainer.estimated_stepping_batches`` ends
    where it should.

    Logged at optimizer steps, under `log_prefix`:

    ============================  =============================================================================
    key                           meaning
    ============================  =============================================================================
    ``noise_scale``               B_simple = tr Σ / ‖G‖², averaged, in examples (inf: ‖G‖² is not above zero)
    ``noise_scale_low``           lower end of its 90 % interval, in examples
    ``noise_scale_high``          upper end, in examples (inf: unknown)
    ``grad_sq_norm``              ‖G‖² averaged, gradient units squared
    ``grad_trace_cov``            tr Σ averaged, gradient units squared × examples
    ``dropped_windows``           measured windows with a NaN or inf so far; they did not enter the averages
    ``limited_windows``           measured windows so far that were far from all others (gradient spikes); their
                                  influence on the averages was limited
    ``batch_size``                the current batch size, from the next window on, in examples; in a dry run, the
                                  one that would be
    ``accumulate_grad_batches``   micro-batches of this window
    ``lr_scale``                  the factor on the learning rate in this step, as it was applied; in a dry run, the
                                  one that `batch_size` would have had
    ``lr``                        the learning rate of this step (first parameter group), factor included, as the
                                  optimizer had it; both are the last update's where this step made none
    ``examples_seen``             examples so far
    ============================  =============================================================================

    Example::

        from lightning_bsscale import BatchSizeScaler
        trainer = Trainer(callbacks=[BatchSizeScaler()])
    """

    def __init__(
        self,
        *,
        policy: str | Policy = "noise_scale",
        lr_rule: str | LearningRateRule = "auto",
        lr_cap: float | None = None,
        schedule: str | Schedule | None = None,
        warmup: int | float = 0.05,
        total_examples: int | None = None,
        max_batch_size: int | None = None,
        measure_every: int = 8,
        probe_every: int = 4,
        memory: float = 0.05,
        batch_size_fn: Callable[[Any], float] | None = None,
        dry_run: bool = False,
        log_prefix: str = "bsscale/",
        record: bool | str | Path = False,
        progress_bar: bool = False,
        verbose: bool = False,
    ) -> None:
        """Checks the options; everything else waits for the first micro-batch.

        Args:
            policy: When to grow and to what: ``"noise_scale"`` or a policy object. Defaults to ``"noise_scale"``.
            lr_rule: How the rate follows the batch: ``"auto"`` (by the optimizer's class), ``"linear"``, ``"sqrt"``,
                ``"power"``, ``"saturating"``, ``"surge"``, ``"none"``, or a rule object. Defaults to ``"auto"``.
            lr_cap: Largest factor on the rate. Defaults to None, no ceiling.
            schedule: None leaves the user's scheduler in charge; a name (``"cosine"``, ``"linear"``, ``"step"``,
                ``"exponential"``, ``"constant"``) or a schedule object owns the rate, with `warmup`. Defaults to None.
            warmup: No growth before this: a float is a share of the budget, an int a number of examples. Defaults to
                0.05.
            total_examples: The budget in examples; training stops when it is used up. Defaults to None: the user's own
                plan, from `max_epochs`, or `max_steps` × the starting batch.
            max_batch_size: Largest batch in examples. Defaults to None: 32 × the start, at least 8 steps an epoch. (A
                probe window has two micro-batches whatever this says.)
            measure_every: After warmup, one window in so many is measured. Defaults to 8.
            probe_every: While a window has one micro-batch, one window in so many has two, to be measured; 0 turns this
                off. Defaults to 4.
            memory: Share of the budget over which measurements are averaged; 1.0 for all. Defaults to 0.05.
            batch_size_fn: Counts the examples (or tokens) of a batch. Defaults to None: first tensor, first dimension.
            dry_run: Measure and decide, but change nothing. Defaults to False.
            log_prefix: Goes before each logged key. Defaults to ``"bsscale/"``.
            record: True writes ``bsscale.jsonl`` into the log folder, a path says which file; where there is one
                already, ``-v1``, ``-v2``, … is put before its suffix (see `journal_path`). Defaults to False.
            progress_bar: Show the batch in the progress bar. Defaults to False.
            verbose: Also say why the batch is held, once for each run of holds. Defaults to False.

        A wrong type raises TypeError, a wrong value ValueError, with what is allowed.
        """
        self._lr_rule, self._lr_cap = options.check_rule(lr_rule, lr_cap)
        self._options = ScalerOptions(
            policy=resolve_policy(policy),
            schedule=options.check_schedule(schedule),
            warmup=options.check_warmup(warmup),
            total_examples=options.check_total(total_examples, options.check_warmup(warmup)),
            max_batch_size=None
            if max_batch_size is None
            else check_integer("max_batch_size", max_batch_size, at_least=1),
            measure_every=check_integer("measure_every", measure_every, at_least=1),
            probe_every=check_integer("probe_every", probe_every, at_least=0),
            memory=options.check_memory(memory),
            batch_size_fn=options.check_batch_size_fn(batch_size_fn),
            dry_run=options.check_flag("dry_run", dry_run),
            log_prefix=options.check_prefix(log_prefix),
            record=options.check_record(record),
            progress_bar=options.check_flag("progress_bar", progress_bar),
            verbose=options.check_flag("verbose", verbose),
        )
        self._run: ScaledRun | None = None
        self._ended: ScaledRun | None = None
        self._loaded: dict[str, Any] | None = None
        self._placed: Accumulation | None = None
        self._clock: ExampleClock | None = None
        self._stop = StopRequest()
        self._open = OpenRun()
        self._way_back = WayBack()

    # ------------------------------------------------------------------ what happened

    @property
    def _outcome(self) -> Outcome:
        if self._way_back.outcome is not None:
            return self._way_back.outcome
        return outcome_of(self._loaded) if self._run is None else shown.outcome(self._run)

    @property
    def batch_size(self) -> int | None:
        """The batch in force, in examples over all devices; None before training. A dry run: the one it would use."""
        return self._outcome.batch_size

    @property
    def noise_scale(self) -> NoiseScale | None:
        """The averaged noise scale with its interval, or None before there is one."""
        return self._outcome.noise

    @property
    def lr_scale(self) -> float:
        """The factor on the rate that goes with `batch_size`."""
        return self._outcome.lr_scale

    @property
    def examples_seen(self) -> int:
        """Examples of all windows so far."""
        return self._outcome.examples_seen

    @property
    def decisions(self) -> list[DecisionRecord]:
        """Changes of the batch, and the first of each run of holds with one code; older ones of very many thinned."""
        return list(self._outcome.decisions)

    @property
    def history(self) -> list[Measurement]:
        """The measured windows; of a very long training, older ones thinned."""
        return list(self._outcome.history)

    @property
    def journal_path(self) -> Path | None:
        """The file that this run records to (on the first rank); None without `record`, and before training."""
        path = self._outcome.journal_path
        return None if path is None else Path(path)

    @property
    def planned_steps(self) -> int:
        """Optimizer steps that the user's own plan (the starting batch throughout) would have made by now.

        What `global_step` would be without the scaler, for a scheduler that is stepped with a number of updates. In
        `lr_scheduler_step` it is the planned step for which the scheduler is being stepped. 0 before training.
        """
        if self._run is not None and self._way_back.outcome is None:
            return self._run.ask_planned_steps()
        return self._outcome.planned_steps

    def summary(self) -> str:
        """What was decided, why, and by which numbers.

        Returns:
            a table: examples, step, batch, factor, noise scale with its two-sided interval, the one-sided bound that
            decided, the target made of it, what the target was compared with, reason
        """
        outcome = self._outcome
        table = summary_table(outcome.decisions, changes=outcome.num_changes, holds=outcome.num_holds)
        return f"{table}\nDry run: batch and learning rate stayed as they were." if self._options.dry_run else table

    def plot(self, ax: Axes | None = None) -> tuple[Figure, Any]:
        """Draws noise scale with band, batch, and rate with and without the factor, against examples seen.

        Args:
            ax: where to draw the noise scale and the batch alone; None makes a figure with both panels

        Returns:
            the figure, and its axes
        """
        from lightning_bsscale.figures import plot_run

        return plot_run(self.history, self.decisions, ax=ax)

    # ------------------------------------------------------------------ before the first step

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuses what cannot work, before anything is set up."""
        neighbours.check_namespace(trainer, "BatchSizeScaler")
        if stage != "fit":
            return
        failed = self._open.begin(trainer, "BatchSizeScaler")
        if failed is not None:
            self._abandon(failed)
        self._stop = StopRequest()
        ended = self._run or self._ended
        self._loaded = ended.state() if ended is not None and ended.goes_on_in(trainer) else None
        self._run, self._ended = None, ended
        self._way_back.outcome = None
        preflight.check_measurable(trainer, pl_module, "BatchSizeScaler")
        preflight.check_trainer_for_scaler(trainer)
        neighbours.check_alone(
            trainer,
            "BatchSizeScaler",
            {GradientNoiseScaleMonitor: "the scaler measures the same itself", **neighbours.REFUSED_NEIGHBOURS},
        )
        neighbours.check_finders(trainer, "BatchSizeScaler")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses what only the optimizer can tell."""
        preflight.check_optimizer(trainer, "BatchSizeScaler")
        if not self._options.dry_run:
            preflight.check_learning_rate_is_ours(trainer)
        preflight.choose_rule(self._lr_rule, self._lr_cap, trainer.optimizers[0])
        preflight.check_schedule(trainer, self._options.schedule)
        preflight.warn_of_dry_schedule(self._options)
        preflight.warn_of_batch_norm(pl_module, trainer.world_size)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before a run goes on, Lightning asks whether its checkpoint was saved at a window's end."""
        self._open.is_training = True
        if self._options.dry_run:
            return
        # From here on, as Lightning steps schedulers also for a None that comes before the first micro-batch.
        self._clock = ExampleClock(trainer, pl_module)
        if self._loaded is not None:
            self._placed = Accumulation(trainer)
            self._placed.place(*window_at_restart(self._loaded))
            # A micro-batch that is loaded is trained on, so a run that was over must not load one.
            if is_over(self._loaded, trainer.max_steps, self._options.total_examples):
                self._stop.ask(trainer)

    def _start(self, trainer: pl.Trainer, batch: Any, batch_idx: int) -> ScaledRun:
        return ScaledRun(
            self._options,
            trainer,
            partial(preflight.choose_rule, self._lr_rule, self._lr_cap),
            batch_size_of(batch, self._options.batch_size_fn),
            self._loaded,
            self._placed,
            self._clock,
            self._stop,
            batch_idx,
        )

    # ------------------------------------------------------------------ a window's life

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A micro-batch begins, and with it perhaps a window."""
        if self._run is None:
            self._run = self._start(trainer, batch, batch_idx)
        self._run.start_micro_batch(trainer, pl_module, batch, batch_idx)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Watching begins: gradients made before, in the training step, do not count."""
        if self._run is not None:
            self._run.measurement.before_backward()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Watching ends."""
        if self._run is not None:
            self._run.after_backward()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """The gradient is complete and not yet clipped."""
        if self._run is not None:
            self._run.before_step(trainer, optimizer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A micro-batch has ended, and with it perhaps a window."""
        if self._run is None:
            if self._placed is not None and batch is None:
                self._placed.skip(batch_idx, is_open=False)
            return
        if batch is None:
            self._run.skip_micro_batch(trainer, batch_idx)
        else:
            self._run.end_micro_batch(trainer, pl_module, batch_idx)

    # ------------------------------------------------------------------ the end

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gives everything back."""
        if self._run is not None:
            self._run.drop_window()
        self._release(trainer)
        self._way_back.send(trainer, self._outcome)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Gives everything back."""
        self._way_back.clean_up(trainer)
        if self._open.is_in_another(trainer):
            return
        self._open.end(trainer)
        self._abandon(trainer)

    def _abandon(self, trainer: pl.Trainer) -> None:
        try:
            if self._run is not None:
                self._run.measurement.give_up_waiting()
                self._run.close_stepped()
        finally:
            self._release(trainer, after_error=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The callback may be part of another Trainer's fit from now on."""
        if stage == "fit":
            self._open.end(trainer)

    def _release(self, trainer: pl.Trainer, *, after_error: bool = False) -> None:
        self._stop.withdraw(trainer)
        placed, self._placed = self._placed, None
        clock, self._clock = self._clock, None
        if self._run is not None:
            self._run.release(trainer, after_error=after_error)
            return
        if placed is not None:
            placed.restore()
        if clock is not None:
            clock.release()

    def __getstate__(self) -> dict[str, Any]:
        """A copy has the options and shows what this callback shows, but holds no Trainer.

        Returns:
            what is pickled, or copied
        """
        if self._run is None:
            return vars(self) | {"_open": OpenRun()}
        told = {
            "_loaded": self.state_dict(),
            "_way_back": self._way_back.holding(self._outcome),
            "_open": OpenRun(),
        }
        return without_module(self) | dict.fromkeys(("_run", "_ended", "_placed", "_clock")) | told

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy was made, here or in another process.

        Args:
            state: what `__getstate__` gave
        """
        vars(self).update(state)
        self._way_back = self._way_back.arrived()

    @property
    def state_key(self) -> str:
        """Name of the state in a checkpoint."""
        return "BatchSizeScaler"

    def state_dict(self) -> dict[str, Any]:
        """What cannot be recomputed, at the last window's end.

        Returns:
            numbers, strings, lists, dicts and what a policy's own `state_dict` gives; empty before training
        """
        if self._run is not None:
            return self._run.state()
        return self._loaded or {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state until training begins.

        Args:
            state_dict: what `state_dict` gave; of a schema that this version does not read, it is refused
        """
        check_schema(state_dict, "BatchSizeScaler")
        if self._open.is_training:
            return  # another Trainer validates a checkpoint within this training
        self._way_back.outcome = None
        self._loaded = state_dict
