"""The hooks shared by the scaler and the monitor: a run's life from `setup` to `teardown`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch.optim import Optimizer

from lightning_bsscale.callbacks.actuator import Actuator
from lightning_bsscale.callbacks.checks import cautions, compatibility, preflight
from lightning_bsscale.callbacks.checks.options import RunOptions
from lightning_bsscale.callbacks.output import messages
from lightning_bsscale.callbacks.output.figure import log_figure, warn_without_matplotlib
from lightning_bsscale.callbacks.output.last_line import say_at_exit
from lightning_bsscale.callbacks.start_run import start_run
from lightning_bsscale.callbacks.state.checkpoint import SavedRun, read_checkpoint, state_of_policy, to_checkpoint
from lightning_bsscale.callbacks.state.open_run import OpenRun
from lightning_bsscale.callbacks.state.spawn import Outcome, ResultChannel, without_module
from lightning_bsscale.callbacks.trainer.batches import rows_of
from lightning_bsscale.callbacks.trainer.loaders import batch_size_of
from lightning_bsscale.callbacks.trainer.micro_batches import MicroBatches
from lightning_bsscale.callbacks.window_loop import WindowLoop
from lightning_bsscale.record_lists import MeasurementList
from lightning_bsscale.summary import describe_noise
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.losses import Losses, LossPoint
from lightning_bsscale.theory.numbers import describe_count
from lightning_bsscale.theory.profile import RunContext
from lightning_bsscale.theory.state import RunState
from lightning_bsscale.verdict import Verdict, facts_of_run, verdict_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_bsscale.figures import DrawnRun

__all__ = ["WindowCallback"]

say_at_exit()


class WindowCallback(pl.Callback):
    """Runs a `WindowLoop` through Lightning's hooks, keeps its state, and shows its results.

    Args:
        options: the callback's options, checked
    """

    def __init__(self, options: RunOptions) -> None:
        self._options = options
        self._loop: WindowLoop | None = None
        self._actuator: Actuator | None = None
        self._saved: SavedRun | None = None  # loaded, or of the last run
        self._outcome = Outcome()
        self._finished_at: tuple[int, int] | None = None  # the Trainer of the last run, and its step at the end
        self._open_run = OpenRun()
        self._channel = ResultChannel()

    # ------------------------------------------------------------------ results

    @property
    def _run(self) -> RunState | None:
        if self._loop is not None:
            return self._loop.state
        return self._shown.run

    @property
    def _shown(self) -> Outcome:
        if self._channel.is_lost:
            return Outcome()
        return self._outcome if self._channel.outcome is None else self._channel.outcome

    @property
    def _context(self) -> RunContext | None:
        return self._shown.context if self._loop is None else self._loop.context

    @property
    def noise_scale(self) -> NoiseScale | None:
        """The averaged noise scale with its interval, or None before there is one."""
        return None if self._run is None else self._run.noise

    @property
    def history(self) -> MeasurementList:
        """The measured windows, to be read as a list; in a very long training, older ones are thinned."""
        return MeasurementList(() if self._run is None else self._run.measured.history)

    @property
    def journal_path(self) -> Path | None:
        """The journal of this run (on the first rank); None without `record`, and before training."""
        return None if self._recorded_to is None else Path(self._recorded_to)

    @property
    def _known(self) -> Outcome:
        return Outcome(run=self._run, journal_path=self._recorded_to, context=self._context, losses=self._losses)

    @property
    def _losses(self) -> Losses:
        return self._shown.losses if self._loop is None else self._loop.reports.losses.losses

    @property
    def losses(self) -> dict[str, tuple[LossPoint, ...]]:
        """What was logged with ``self.log`` under names that contain "loss", and where; thinned in a long training.

        A loss of training steps is read where the loggers take it, every `log_every_n_steps` optimizer steps; all are
        those of the first rank.
        """
        return {curve.name: curve.points for curve in self._losses.curves}

    @property
    def _recorded_to(self) -> str | None:
        return self._shown.journal_path if self._loop is None else self._loop.reports.journal.path

    def verdict(self) -> Verdict:
        """Say what the training found, why, and what to change next; also during training, and after an exception.

        Returns:
            A headline, the reasons with their numbers, and next steps; as text, one paragraph.
        """
        run, context = self._run, self._context
        if self._channel.is_lost and run is None:
            return messages.verdict_of_lost_results(self._options.record)
        if run is None or context is None:
            loaded = "" if run is None else ": only the state of a checkpoint is loaded"
            return Verdict(f"No training in this process yet{loaded}.")
        return verdict_of(facts_of_run(run, context))

    @property
    def unit(self) -> str:
        """What the run counts, as a plural word."""
        return self._options.unit

    def plot(self, ax: Axes | None = None) -> tuple[Figure, Any]:
        """Draw the run; the callbacks say what.

        Args:
            ax: axes to draw the noise scale and the batch alone on; None creates a figure

        Returns:
            The figure and its axes.
        """
        return self._draw(ax)

    def _draw(self, ax: Axes | None = None, *, is_shown: bool = True) -> tuple[Figure, Any]:
        raise NotImplementedError

    def _drawn_run(self) -> DrawnRun:
        """Return what is drawn of the run."""
        from lightning_bsscale.figures import DrawnRun

        run, context = self._run, self._context
        verdict = self.verdict()
        drawn = DrawnRun(
            unit=self._options.unit,
            losses=self.losses,
            why=" ".join((verdict.headline, *verdict.reasons)),
        )
        if run is None:
            return drawn
        return replace(
            drawn,
            history=run.measured.history,
            decisions=run.decisions.records,
            examples_seen=float(run.examples.total),
            warmup_examples=0.0 if context is None else context.numbers.warmup_examples,
            batch_size=run.batch.batch_size,
            granularity=run.now.granularity,
            is_dry_run=self._options.decides and self._options.dry_run,
            min_steps=0 if context is None else context.profile.min_steps,
            total_examples=None if context is None else context.numbers.total_examples,
        )

    def _stands(self) -> list[str]:
        """Return where the run stands, in phrases for `repr`."""
        run, unit = self._run, self._options.unit
        if run is None:
            return ["trained in other processes, no results"] if self._channel.is_lost else ["not started"]
        seen, steps = describe_count(run.examples.total, unit), describe_count(run.windows, "steps")
        is_resolved = run.noise is None or run.noise.resolved
        return [f"noise scale {describe_noise(run.noise) if is_resolved else 'not resolved'}", f"{seen} in {steps}"]

    def __repr__(self) -> str:
        """Say what it is and where it stands."""
        return f"{self._options.callback}({', '.join(self._stands())})"

    # ------------------------------------------------------------------ before the first step

    def _check_trainer(self, trainer: pl.Trainer) -> None:
        """Check the Trainer, before anything is set up."""

    def _check_optimizer(self, trainer: pl.Trainer) -> None:
        """Check the optimizer and its schedulers."""

    def _make_actuator(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, micro_batches: MicroBatches
    ) -> Actuator:
        raise NotImplementedError

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the Trainer and the module, before anything is set up."""
        name = self._options.callback
        compatibility.check_namespace(trainer, name)
        if stage != "fit":
            return
        failed = self._open_run.begin(trainer, name)
        if failed is not None:
            self._abandon(failed)
        # A second fit of the same Trainer continues where the last one ended, as Lightning's own counters do.
        is_same = trainer.global_step > 0 and self._finished_at == (id(trainer), trainer.global_step)
        self._saved = self._saved if is_same else None
        self._outcome, self._channel.outcome = self._known if is_same else Outcome(), None
        self._channel.is_lost = False
        preflight.check_measurable(trainer, pl_module, name)
        self._check_trainer(trainer)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the optimizer, the module's normalisation, and whether a picture can be drawn."""
        preflight.check_optimizer(trainer, self._options.callback)
        self._check_optimizer(trainer)
        cautions.warn_batch_norm(pl_module, trainer.world_size)
        if self._options.log_figure:
            warn_without_matplotlib()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Create the actuator, and place the resumed window, which Lightning inspects next."""
        self._open_run.is_training = True
        options = self._options
        micro_batches = MicroBatches(
            trainer,
            options.batch_size_fn,
            options.merge_fn,
            options.split_fn,
            weighs_counts=options.weighs_counts,
        )
        try:
            self._actuator = self._make_actuator(trainer, pl_module, micro_batches)
        except BaseException:
            micro_batches.restore()
            raise
        if self._saved is not None:
            run = self._saved.run
            self._actuator.place_window(*run.window_at_restart())
            # A loaded loader batch is trained on, so a finished run must not load one.
            if run.is_over(trainer.max_steps, self._options.total_examples):
                self._actuator.stop()

    # ------------------------------------------------------------------ a window's life

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin a loader batch, and possibly a window."""
        size = batch_size_of(batch, self._options.batch_size_fn)
        assert self._actuator is not None
        self._actuator.micro_batches.begin_loader_batch(size)
        if self._loop is None:
            self._loop = start_run(
                trainer,
                self._options,
                self._actuator,
                self._saved,
                size=size,
                rows=rows_of(batch),
                batch_idx=batch_idx,
            )
        self._loop.begin_loader_batch(size, batch_idx)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Start watching; gradients computed within the training step do not count."""
        if self._loop is not None:
            self._loop.gradients.before_backward()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop watching."""
        if self._loop is not None:
            micro_batch = self._loop.actuator.micro_batches
            self._loop.gradients.after_backward(micro_batch.size, micro_batch.weight)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Compute the sums, while the gradient is complete and not yet clipped."""
        if self._loop is not None:
            self._loop.before_step(optimizer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End a loader batch, and possibly a window."""
        if self._loop is None:
            # Lightning applies the window that `on_train_start` placed to this index.
            if batch is None and self._saved is not None and self._actuator is not None:
                self._actuator.skip(batch_idx, is_open=False)
        elif batch is None:
            self._loop.skip_loader_batch(batch_idx)
        else:
            self._loop.end_loader_batch(batch_idx)
            self._loop.reports.end_loader_batch(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the validation out of the training's seconds."""
        if self._loop is not None:
            self._loop.clock.pause()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add to the row that Lightning writes."""
        if self._loop is not None:
            self._loop.reports.end_validation_epoch(trainer, self._loop.state)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the metrics that the policy watches."""
        if self._loop is not None:
            self._loop.end_validation()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the metrics that the policy watches."""
        if self._loop is not None:
            self._loop.end_epoch()

    # ------------------------------------------------------------------ the end

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore everything of the user's."""
        if self._loop is not None:
            self._loop.end_training()
        self._finish(trainer)
        self._channel.send(trainer, self._outcome)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore everything of the user's."""
        self._channel.clean_up(trainer)
        if self._channel.is_lost_with(trainer, exception):
            self._channel.receive(None)
            messages.log_verdict(self.verdict())
        if self._open_run.is_in_another(trainer):
            return
        self._open_run.end(trainer)
        self._abandon(trainer)

    def _abandon(self, trainer: pl.Trainer) -> None:
        try:
            if self._loop is not None:
                self._loop.abandon_pending()
                self._loop.close_stepped()
        finally:
            self._finish(trainer, is_interrupted=True)

    def _finish(self, trainer: pl.Trainer, *, is_interrupted: bool = False) -> None:
        actuator, self._actuator = self._actuator, None
        loop = self._loop
        if loop is None:
            if actuator is not None:
                actuator.release()
            return
        self._saved = self._finished_at = None  # if the state cannot be read, an old one must not take its place
        try:
            # Restore the user's objects first. What follows can fail: a policy's state, a full disk, a lost device.
            loop.release()
            # A checkpoint may still be saved, by ModelCheckpoint after an exception or by the user after training.
            self._saved = self._to_save()
            self._finished_at = (id(trainer), trainer.global_step)
        finally:
            self._loop = None
            try:
                loop.flush()
            finally:
                self._outcome = Outcome(
                    run=loop.state,
                    journal_path=loop.reports.journal.path,
                    context=loop.context,
                    losses=loop.reports.losses.losses,
                )
        if loop.state.windows and (not is_interrupted or loop.state.measured.history):
            messages.log_verdict(self.verdict())
            if self._options.log_figure:
                step = loop.reports.logged_step(trainer, loop.state)
                log_figure(trainer, self._options.log_prefix, step, lambda: self._draw(is_shown=False)[0])

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the fit, so that another Trainer may use the callback."""
        if stage == "fit":
            self._open_run.end(trainer)

    # ------------------------------------------------------------------ copies and checkpoints

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes to pickle or copy: options and results, but no Trainer."""
        return without_module(self) | {
            "_loop": None,
            "_actuator": None,
            "_finished_at": None,
            "_saved": self._to_save(),
            "_outcome": self._known,
            "_open_run": OpenRun(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy, in this or another process."""
        vars(self).update(state)
        self._channel = self._channel.for_copy()

    @property
    def state_key(self) -> str:
        """Name of the state in a checkpoint."""
        return self._options.callback

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: the run up to its last window, and the position in the one in progress.

        Returns:
            Numbers, strings, lists and dicts, and whatever a policy's own `state_dict` returns; empty before training.
        """
        saved = self._to_save()
        return {} if saved is None else to_checkpoint(saved)

    def _to_save(self) -> SavedRun | None:
        loop = self._loop
        if loop is None:
            return self._saved
        run, policy = loop.snapshot(), state_of_policy(self._options.policy)
        reports = loop.reports
        journal, losses = reports.journal.state(), reports.losses.losses
        return SavedRun(run=run, policy=policy, journal=journal, pace=loop.pace, losses=losses)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training begins; refuse one of another schema."""
        saved = read_checkpoint(state_dict, self._options.callback)
        if self._open_run.is_training:
            return  # another Trainer validates a checkpoint during this training
        self._saved = saved
        self._outcome, self._channel.outcome = Outcome(run=saved.run, losses=saved.losses), None
