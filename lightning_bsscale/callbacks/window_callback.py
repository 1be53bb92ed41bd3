"""The hooks that the scaler and the monitor share: a run's life from `setup` to `teardown`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.optim import Optimizer

from lightning_bsscale.callbacks.actuator import Actuator
from lightning_bsscale.callbacks.checks import compatibility, preflight
from lightning_bsscale.callbacks.checks.options import RunOptions
from lightning_bsscale.callbacks.start_run import start_run
from lightning_bsscale.callbacks.state.checkpoint import read_run, to_checkpoint
from lightning_bsscale.callbacks.state.open_run import OpenRun
from lightning_bsscale.callbacks.state.spawn import Outcome, WayBack, without_module
from lightning_bsscale.callbacks.trainer.loaders import batch_size_of
from lightning_bsscale.callbacks.window_loop import WindowLoop
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.records import Measurement
from lightning_bsscale.theory.state import RunState

__all__ = ["WindowCallback"]


class WindowCallback(pl.Callback):
    """Runs a `WindowLoop` through Lightning's hooks, keeps its state, and shows its results.

    Args:
        options: the callback's options, checked
    """

    def __init__(self, options: RunOptions) -> None:
        self._options = options
        self._loop: WindowLoop | None = None
        self._actuator: Actuator | None = None
        self._checkpoint: dict[str, Any] | None = None
        self._outcome = Outcome()
        self._finished_at: tuple[int, int] | None = None  # the Trainer of the last run, and its step at the end
        self._size = 0
        self._open = OpenRun()
        self._way_back = WayBack()

    # ------------------------------------------------------------------ results

    @property
    def _run(self) -> RunState | None:
        if self._loop is not None:
            return self._loop.state
        return self._shown.run

    @property
    def _shown(self) -> Outcome:
        return self._outcome if self._way_back.outcome is None else self._way_back.outcome

    @property
    def noise_scale(self) -> NoiseScale | None:
        """The averaged noise scale with its interval, or None before there is one."""
        return None if self._run is None else self._run.noise

    @property
    def history(self) -> list[Measurement]:
        """The measured windows; of a very long training, older ones thinned."""
        return [] if self._run is None else list(self._run.measured.history)

    @property
    def journal_path(self) -> Path | None:
        """The file that this run records to (on the first rank); None without `record`, and before training."""
        return None if self._recorded_to is None else Path(self._recorded_to)

    @property
    def _recorded_to(self) -> str | None:
        return self._shown.journal_path if self._loop is None else self._loop.reports.journal.path

    # ------------------------------------------------------------------ before the first step

    def _check_trainer(self, trainer: pl.Trainer) -> None:
        """Refuse what the callback cannot work with, before anything is set up."""

    def _check_optimizer(self, trainer: pl.Trainer) -> None:
        """Refuse what only the optimizer and its schedulers can tell."""

    def _make_actuator(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Actuator:
        raise NotImplementedError

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, before anything is set up."""
        name = self._options.callback
        compatibility.check_namespace(trainer, name)
        if stage != "fit":
            return
        failed = self._open.begin(trainer, name)
        if failed is not None:
            self._abandon(failed)
        # A second fit of the same Trainer goes on where the last one ended, as Lightning's own counters do.
        is_same = trainer.global_step > 0 and self._finished_at == (id(trainer), trainer.global_step)
        self._checkpoint = self._checkpoint if is_same else None
        self._outcome, self._way_back.outcome = Outcome(run=self._run if is_same else None), None
        preflight.check_measurable(trainer, pl_module, name)
        self._check_trainer(trainer)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse what only the optimizer can tell."""
        preflight.check_optimizer(trainer, self._options.callback)
        self._check_optimizer(trainer)
        preflight.warn_of_batch_norm(pl_module, trainer.world_size)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take hold of the schedulers. Lightning then asks whether the checkpoint was saved at a window's end."""
        self._open.is_training = True
        self._actuator = self._make_actuator(trainer, pl_module)
        if self._checkpoint is not None:
            run = read_run(self._checkpoint, self._options.callback)
            self._actuator.place_window(*run.window_at_restart())
            # A micro-batch that is loaded is trained on, so a run that was over must not load one.
            if run.is_over(trainer.max_steps, self._options.total_examples):
                self._actuator.stop()

    # ------------------------------------------------------------------ a window's life

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin a micro-batch, and with it perhaps a window."""
        self._size = size = batch_size_of(batch, self._options.batch_size_fn)
        if self._loop is None:
            assert self._actuator is not None
            self._loop = start_run(
                trainer,
                self._options,
                self._actuator,
                self._checkpoint,
                micro_batch_size=size,
                batch_idx=batch_idx,
            )
        self._loop.begin_micro_batch(trainer, pl_module, size, batch_idx)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Begin to watch: gradients made before, in the training step, do not count."""
        if self._loop is not None:
            self._loop.gradients.before_backward()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop watching."""
        if self._loop is not None:
            self._loop.gradients.after_backward(self._size)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Take the sums: the gradient is complete and not yet clipped."""
        if self._loop is not None:
            self._loop.before_step(trainer, optimizer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End a micro-batch, and with it perhaps a window."""
        if self._loop is None:
            # Lightning judges the index by the window that `on_train_start` placed.
            if batch is None and self._checkpoint is not None and self._actuator is not None:
                self._actuator.skip(batch_idx, is_open=False)
        elif batch is None:
            self._loop.skip_micro_batch(trainer, batch_idx)
        else:
            self._loop.end_micro_batch(trainer, pl_module, batch_idx)

    # ------------------------------------------------------------------ the end

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give everything back."""
        if self._loop is not None:
            self._loop.drop_window()
        self._finish(trainer)
        self._way_back.send(trainer, self._outcome)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give everything back."""
        self._way_back.clean_up(trainer)
        if self._open.is_in_another(trainer):
            return
        self._open.end(trainer)
        self._abandon(trainer)

    def _abandon(self, trainer: pl.Trainer) -> None:
        try:
            if self._loop is not None:
                self._loop.give_up_waiting()
                self._loop.close_stepped()
        finally:
            self._finish(trainer)

    def _finish(self, trainer: pl.Trainer) -> None:
        actuator, self._actuator = self._actuator, None
        loop = self._loop
        if loop is None:
            if actuator is not None:
                actuator.release()
            return
        self._checkpoint = self._finished_at = None  # where the state cannot be read, no old one stands in for it
        try:
            # First what is the user's. The rest can fail: a policy's state, a full disk, a lost device.
            loop.release()
            # A checkpoint may still be saved: by ModelCheckpoint after an exception, by the user after training.
            self._checkpoint = self.state_dict()
            self._finished_at = (id(trainer), trainer.global_step)
        finally:
            self._loop = None
            try:
                loop.flush()
            finally:
                self._outcome = Outcome(run=loop.state, journal_path=loop.reports.journal.path)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the fit: the callback may be part of another Trainer's from now on."""
        if stage == "fit":
            self._open.end(trainer)

    # ------------------------------------------------------------------ copies and checkpoints

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled or copied: options and results, but no Trainer."""
        return without_module(self) | {
            "_loop": None,
            "_actuator": None,
            "_finished_at": None,
            "_checkpoint": self.state_dict() or None,
            "_outcome": Outcome(run=self._run, journal_path=self._recorded_to),
            "_open": OpenRun(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin as a copy, here or in another process."""
        vars(self).update(state)
        self._way_back = self._way_back.arrived()

    @property
    def state_key(self) -> str:
        """Name of the state in a checkpoint."""
        return self._options.callback

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds: everything up to the last window's end, and how far the one in progress is.

        Returns:
            numbers, strings, lists and dicts, and what a policy's own `state_dict` returns; empty before training
        """
        if self._loop is None:
            return self._checkpoint or {}
        run = self._loop.snapshot()
        return to_checkpoint(run, self._options.policy, self._loop.reports.journal.state())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training begins.

        Args:
            state_dict: what `state_dict` returned; of a schema that this version does not read, it is refused
        """
        run = read_run(state_dict, self._options.callback)
        if self._open.is_training:
            return  # another Trainer validates a checkpoint within this training
        self._checkpoint = state_dict
        self._outcome, self._way_back.outcome = Outcome(run=run), None
