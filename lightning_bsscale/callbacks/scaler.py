"""BatchSizeScaler: its options, its results, and the checks before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

from lightning_bsscale.callbacks.actuator import Actuator, NullActuator, TrainerActuator
from lightning_bsscale.callbacks.checks import cautions, compatibility, options, preflight
from lightning_bsscale.callbacks.checks.options import RunOptions
from lightning_bsscale.callbacks.monitor import GradientNoiseScaleMonitor
from lightning_bsscale.callbacks.trainer.chosen_rules import choose_also_scale, choose_rule
from lightning_bsscale.callbacks.trainer.micro_batches import MicroBatches
from lightning_bsscale.callbacks.trainer.out_of_memory import recovery_options
from lightning_bsscale.callbacks.window_callback import WindowCallback
from lightning_bsscale.record_lists import DecisionList
from lightning_bsscale.summary import summary_table
from lightning_bsscale.theory.checks import check_integer
from lightning_bsscale.theory.hyperparameters import HyperparameterRule
from lightning_bsscale.theory.numbers import describe_count
from lightning_bsscale.theory.policies import Policy, resolve_policy
from lightning_bsscale.theory.records import DecisionLog
from lightning_bsscale.theory.rules import LearningRateRule
from lightning_bsscale.theory.schedules import Schedule
from lightning_bsscale.theory.shares import check_memory, check_warmup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class BatchSizeScaler(WindowCallback):
    """Measures the gradient noise scale, grows the batch towards it, and rescales the learning rate.

    The batch grows by gradient accumulation, at optimizer steps, from the loader's batch and the Trainer's
    ``accumulate_grad_batches``; what is accumulated is computed in larger micro-batches where that is faster. Warmup,
    memory and budget are counted in examples (or in what `batch_size_fn` counts). The user's ``interval: step``
    schedulers are stepped as often as the user's plan would have stepped them, so a schedule built from
    ``trainer.estimated_stepping_batches`` ends where it should.

    Logged at optimizer steps, under `log_prefix`:

    ============================  =============================================================================
    key                           meaning
    ============================  =============================================================================
    ``noise_scale``               B_simple = tr Σ / ‖G‖², averaged, in examples; not logged while it is not resolved
    ``noise_scale_low``           lower end of its 90 % interval, in examples; not logged while it is 0
    ``noise_scale_high``          upper end, in examples; not logged while there is none
    ``grad_sq_norm``              ‖G‖² averaged, gradient units squared
    ``grad_trace_cov``            tr Σ averaged, gradient units squared × examples
    ``dropped_windows``           measured windows with a NaN or inf so far; they did not enter the averages
    ``limited_windows``           measured windows so far that were far from all others (gradient spikes), and whose
                                  influence on the averages was limited
    ``batch_size``                the current batch size, from the next window on, in examples; in a dry run, the
                                  hypothetical one
    ``accumulate_grad_batches``   loader batches of this window
    ``lr_scale``                  the factor on the learning rate applied in this step; in a dry run, the one that
                                  `batch_size` would have
    ``lr``                        the learning rate of this step (first parameter group), factor included; both are
                                  the last update's if this step made none. Beside a `LearningRateMonitor` it is one
                                  key for each of its keys instead: ``bsscale/lr-SGD`` beside ``lr-SGD``
    ``hold_reason``               why the batch was held, as a number (docs/reference.md has the legend); 0 where it
                                  changed
    ``examples_seen``             examples so far; also on the rows that Lightning writes
    ============================  =============================================================================

    Example::

        from lightning_bsscale import BatchSizeScaler
        trainer = Trainer(callbacks=[BatchSizeScaler()])
    """

    def __init__(
        self,
        *,
        policy: Policy | str = "noise_scale",
        lr_rule: LearningRateRule | str = "auto",
        lr_cap: float | None = None,
        schedule: Schedule | str | None = None,
        also_scale: HyperparameterRule | str | Sequence[HyperparameterRule | str] = "auto",
        warmup: int | float = 0.05,
        total_examples: int | None = None,
        max_batch_size: int | None = None,
        max_micro_batch_size: int | str | None = "auto",
        split: bool | str = "auto",
        merge_fn: Callable[[list[Any]], Any] | None = None,
        split_fn: Callable[[Any, int, int], Any] | None = None,
        loss_is_mean_over: str = "examples",
        measure_every: int = 8,
        memory: float = 0.05,
        batch_size_fn: Callable[[Any], float] | None = None,
        dry_run: bool = False,
        unit: str = "examples",
        log_prefix: str = "bsscale/",
        log_step: str = "optimizer",
        log_figure: bool = False,
        record: bool | str | Path = False,
        progress_bar: bool = False,
        verbose: bool = False,
    ) -> None:
        """Check the options; the run starts at the first loader batch.

        Args:
            policy: When to grow and to what: ``"noise_scale"``, ``"seesaw"``, ``"smith"``, ``"norm_test"``, ``"meta"``,
                or a policy object. Defaults to ``"noise_scale"``.
            lr_rule: How the learning rate follows the batch: ``"auto"`` (by the optimizer's class), ``"linear"``,
                ``"sqrt"``, ``"power"``, ``"saturating"``, ``"surge"``, ``"none"``, or a rule object. Defaults to
                ``"auto"``.
            lr_cap: Largest factor on the learning rate. Defaults to None, no ceiling.
            schedule: None leaves the user's scheduler in control; a name (``"cosine"``, ``"linear"``, ``"step"``,
                ``"exponential"``, ``"wsd"``, ``"constant"``) or a schedule object controls the learning rate, with
                `warmup`. Defaults to None.
            also_scale: What else of the optimizer follows the batch: ``"auto"`` (``"beta2"`` for Adam and relatives,
                else nothing), names (``"weight_decay"``, ``"beta2"``, ``"momentum"``), objects such as
                ``Beta2(floor=0.9)``, or ``()`` for nothing. Defaults to ``"auto"``.
            warmup: No growth before this: a float is a share of the budget, an int a number of examples. Defaults to
                0.05.
            total_examples: The budget in examples; training stops when it is used up. Defaults to None: the user's
                plan, from `max_epochs`, or `max_steps` × the starting batch.
            max_batch_size: Largest batch in examples. Defaults to None: 32 × the start, with at least 8 steps per
                epoch.
            max_micro_batch_size: Largest micro-batch on one device, in examples. Up to this, the loader batches of a
                step are gathered and computed together. ``"auto"`` doubles it while that makes an example at least 3 %
                faster and is expected to fit into memory; it gathers nothing with batch normalisation, and with
                `Trainer(deterministic=True)`, where no clock may take part. An int is a limit, above which a
                loader batch is split. None gathers nothing. Defaults to ``"auto"``.
            split: Whether to split a loader batch in two where a step has no other pair to compare: True, False, or
                ``"auto"``, which is True unless the model has batch normalisation. Defaults to ``"auto"``.
            merge_fn: Joins a list of loader batches. Defaults to None: tensors in any structure.
            split_fn: Returns the examples from a first to before a last one of a batch. Defaults to None, as above.
            loss_is_mean_over: What the loss of a loader batch is a mean over: ``"examples"``, or what `batch_size_fn`
                counts (tokens, say), for which pass ``"batch_size_fn"``. Parts of a loader batch are weighted by it,
                and loader batches are gathered only where it is the same in each, so that the step stays the same.
                Defaults to ``"examples"``.
            measure_every: After warmup, measure the steps that contain one loader batch in so many. Defaults to 8.
            memory: Share of the budget over which measurements are averaged; 1.0 for all. Defaults to 0.05.
            batch_size_fn: Counts the examples (or tokens) of a batch. Defaults to None: first tensor, first dimension.
            dry_run: Measure and decide, but change nothing. Defaults to False.
            unit: What `batch_size_fn` counts, as a plural word (``"tokens"``): messages, tables and axes speak of it.
                Defaults to ``"examples"``.
            log_prefix: Prefix of each logged key. Defaults to ``"bsscale/"``.
            log_step: What the loggers' step of these keys counts: ``"optimizer"`` steps, as in Lightning's own metrics,
                or ``"examples"``, for loggers that can draw against nothing else. Defaults to ``"optimizer"``.
            log_figure: Give the picture of `plot` to the loggers when training ends (TensorBoard, Weights & Biases,
                MLflow, Comet); other loggers have it as ``bsscale.png`` in their folder. Needs matplotlib; a problem
                is a warning. Defaults to False.
            record: True writes ``bsscale.jsonl`` into the log folder, a path names the file. If it exists already,
                ``-v1``, ``-v2``, … is inserted before its suffix (see `journal_path`). Defaults to False.
            progress_bar: Show the batch in the progress bar. Defaults to False.
            verbose: Also log why the batch is held, once for each run of holds. Defaults to False.

        A wrong type raises TypeError and a wrong value ValueError, with the allowed values in the message.
        """
        rule, cap = options.check_rule(lr_rule, lr_cap)
        checked_policy = resolve_policy(policy)
        checked_warmup = check_warmup(warmup)
        super().__init__(
            RunOptions(
                callback="BatchSizeScaler",
                decides=True,
                rule_for=partial(choose_rule, rule, cap, getattr(checked_policy, "lr_rules", None)),
                policy=checked_policy,
                schedule=options.check_schedule(schedule),
                also_scale_for=partial(choose_also_scale, options.check_also_scale(also_scale)),
                warmup=checked_warmup,
                total_examples=options.check_total(total_examples, checked_warmup),
                max_batch_size=options.check_max_batch_size(max_batch_size),
                measure_every=check_integer("measure_every", measure_every, at_least=1),
                max_micro_batch_size=options.check_micro_batch_size(max_micro_batch_size),
                split=options.check_split(split),
                merge_fn=options.check_function("merge_fn", merge_fn, "a list of batches"),
                split_fn=options.check_function("split_fn", split_fn, "a batch, a first and a last example"),
                weighs_counts=options.check_loss_mean(loss_is_mean_over, batch_size_fn),
                memory=check_memory(memory),
                batch_size_fn=options.check_batch_size_fn(batch_size_fn),
                dry_run=options.check_flag("dry_run", dry_run),
                unit=options.check_unit(unit),
                log_prefix=options.check_prefix(log_prefix),
                log_step=options.check_log_step(log_step),
                log_figure=options.check_flag("log_figure", log_figure),
                record=options.check_record(record),
                progress_bar=options.check_flag("progress_bar", progress_bar),
                verbose=options.check_flag("verbose", verbose),
            )
        )

    # ------------------------------------------------------------------ results

    @property
    def batch_size(self) -> int | None:
        """The current batch size, in examples over all devices, hypothetical in a dry run; None before training."""
        return None if self._run is None else self._run.batch.batch_size

    @property
    def lr_scale(self) -> float:
        """The factor on the learning rate that goes with `batch_size`."""
        return 1.0 if self._run is None else self._run.batch.lr_scale

    @property
    def examples_seen(self) -> int:
        """Examples of all windows so far."""
        return 0 if self._run is None else self._run.examples.total

    @property
    def decisions(self) -> DecisionList:
        """Changes of the batch, and the first of each run of holds with one code; thinned in very long runs."""
        return DecisionList(() if self._run is None else self._run.decisions.records)

    @property
    def planned_steps(self) -> int:
        """Optimizer steps that the user's plan (with the starting batch throughout) would have made by now.

        This is what `global_step` would be without the scaler, for schedulers that are stepped with a number of
        updates. In `lr_scheduler_step` it is the planned step for which the scheduler is being stepped. 0 before
        training.
        """
        if self._loop is not None:
            return self._loop.planned_steps
        return 0 if self._run is None else self._run.planned_steps

    def summary(self) -> str:
        """Return a table of the decisions with their numbers: a line for each change, and one for the holds between.

        Returns:
            Its columns are examples, step, batch, factor, noise scale with its two-sided interval, the one-sided bound
            that decided, the target derived from it if it is not the bound itself, the number it was compared with, and
            the reason. A line of holds begins with the first and has the numbers of the last recorded one; `decisions`
            has all that are recorded. Where other processes trained and returned no results, it says so instead.
        """
        if self._channel.is_lost:
            return str(self.verdict())
        log = DecisionLog() if self._run is None else self._run.decisions
        table = summary_table(log.records, changes=log.changes, holds=log.holds, unit=self._options.unit)
        return f"{table}\nDry run: batch and learning rate stayed as they were." if self._options.dry_run else table

    def _stands(self) -> list[str]:
        run, options, stands = self._run, self._options, super()._stands()
        policy = [f"policy={type(options.policy).__name__}", *(["dry run"] if options.dry_run else [])]
        if run is None:
            return [*policy, *stands]
        start, now = run.batch.start_batch_size, run.batch.batch_size
        grown = describe_count(start) if start == now else f"{describe_count(start)} -> {describe_count(now)}"
        return [*policy, f"batch {grown} {options.unit}", *stands]

    def plot(self, ax: Axes | None = None) -> tuple[Figure, Any]:
        """Draw the run against examples seen; needs matplotlib.

        Args:
            ax: axes to draw the noise scale and the batch alone on; None creates a figure with all panels

        Returns:
            The figure and its axes: an array, or one where nothing but the noise scale is drawn. The first panel has
            the noise scale with its band, the bound that decides, the target, and the batch as a staircase, with warmup
            and unresolved stretches marked; the second the learning rate with and without the factor for the batch;
            two more the `losses`, if any are known, against examples and steps.
        """
        return super().plot(ax)

    def _draw(self, ax: Axes | None = None, *, is_shown: bool = True) -> tuple[Figure, Any]:
        from lightning_bsscale.figures import plot_run

        return plot_run(self._drawn_run(), ax, is_shown=is_shown)

    # ------------------------------------------------------------------ before the first step

    def _check_trainer(self, trainer: pl.Trainer) -> None:
        preflight.check_trainer_for_scaler(trainer)
        others: dict[type[Any], str] = {
            GradientNoiseScaleMonitor: "the scaler measures the same itself",
            **compatibility.INCOMPATIBLE_CALLBACKS,
        }
        compatibility.check_incompatible(trainer, self._options.callback, others)
        compatibility.check_finders(trainer, self._options.callback)

    def _check_optimizer(self, trainer: pl.Trainer) -> None:
        if not self._options.dry_run:
            preflight.check_learning_rate_control(trainer)
            preflight.check_hyperparameters(trainer, self._options.also_scale_for)
        preflight.check_policy(self._options.policy, self._options.rule_for(trainer.optimizers[0]))
        preflight.check_schedule(trainer, self._options.schedule)
        cautions.warn_unapplied_schedule(self._options)

    def _make_actuator(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, micro_batches: MicroBatches
    ) -> Actuator:
        name = self._options.callback
        if self._options.dry_run:
            return NullActuator(trainer, name, micro_batches)
        micro_batches.limit.options = recovery_options(trainer, self._options.split)
        given = self._options
        return TrainerActuator(trainer, pl_module, name, micro_batches, given.schedule, given.also_scale_for)
