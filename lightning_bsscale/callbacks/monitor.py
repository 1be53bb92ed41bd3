"""GradientNoiseScaleMonitor: measures, logs, changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from lightning_bsscale.callbacks.checks import compatibility as neighbours
from lightning_bsscale.callbacks.checks import options, preflight
from lightning_bsscale.callbacks.measurement import GradientMeasurement
from lightning_bsscale.callbacks.open_window import OpenWindow
from lightning_bsscale.callbacks.output import logging as output
from lightning_bsscale.callbacks.state.open_run import OpenRun
from lightning_bsscale.callbacks.state.resume import STATE_SCHEMA, Outcome, check_schema, outcome_of
from lightning_bsscale.callbacks.state.spawn import WayBack, without_module
from lightning_bsscale.callbacks.trainer import loaders
from lightning_bsscale.callbacks.trainer.learning_rate import UnscaledRate
from lightning_bsscale.callbacks.trainer.optimizer_step import unwrapped
from lightning_bsscale.callbacks.trainer.timing import StepTimes
from lightning_bsscale.journal import Journal
from lightning_bsscale.theory.checks import check_integer
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.example_count import ExamplesSeen
from lightning_bsscale.theory.records import Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class GradientNoiseScaleMonitor(pl.Callback):
    """Measures the gradient noise scale while training, and changes nothing.

    It compares the gradients of the micro-batches of one window with their mean, so it needs at least two of them:
    ``accumulate_grad_batches`` of 2 or more. It logs the keys of `BatchSizeScaler` that are measurements, and
    ``batch_size``, ``accumulate_grad_batches`` and ``examples_seen``, every `log_every_n_steps` optimizer steps.

    Example::

        from lightning_bsscale import GradientNoiseScaleMonitor
        trainer = Trainer(accumulate_grad_batches=4, callbacks=[GradientNoiseScaleMonitor()])
    """

    def __init__(
        self,
        *,
        measure_every: int = 8,
        memory: float = 0.05,
        batch_size_fn: Callable[[Any], float] | None = None,
        log_prefix: str = "bsscale/",
        record: bool | str | Path = False,
    ) -> None:
        """Checks the options.

        Args:
            measure_every: One window in so many is measured. Defaults to 8.
            memory: Share of the training's examples over which measurements are averaged; 1.0 for all, and also where
                the number of examples is unknown. Defaults to 0.05.
            batch_size_fn: Counts the examples (or tokens) of a batch. Defaults to None: first tensor, first dimension.
            log_prefix: Goes before each logged key. Defaults to ``"bsscale/"``.
            record: True writes ``bsscale.jsonl`` into the log folder, a path says which file; where there is one
                already, ``-v1``, ``-v2``, … is put before its suffix (see `journal_path`). Defaults to False.

        A wrong type raises TypeError, a wrong value ValueError, with what is allowed.
        """
        self._measure_every = check_integer("measure_every", measure_every, at_least=1)
        self._memory = options.check_memory(memory)
        self._batch_size_fn = options.check_batch_size_fn(batch_size_fn)
        self._log_prefix = options.check_prefix(log_prefix)
        self._record = options.check_record(record)
        self._measurement: GradientMeasurement | None = None
        self._journal: Journal | None = None
        self._window: OpenWindow | None = None
        self._windows = 0
        self._optimizer_steps = 0
        self._examples = ExamplesSeen(1, 1)
        self._loaded: dict[str, Any] | None = None
        self._open = OpenRun()
        self._way_back = WayBack()

    @property
    def _outcome(self) -> Outcome:
        if self._way_back.outcome is not None:
            return self._way_back.outcome
        if self._measurement is None:
            return outcome_of(self._loaded)
        return Outcome(
            noise=self._measurement.noise,
            history=self._measurement.history,
            journal_path=output.journal_path(self._journal),
        )

    @property
    def noise_scale(self) -> NoiseScale | None:
        """The averaged noise scale with its interval, or None before there is one."""
        return self._outcome.noise

    @property
    def history(self) -> list[Measurement]:
        """The measured windows; of a very long training, older ones thinned."""
        return list(self._outcome.history)

    @property
    def journal_path(self) -> Path | None:
        """The file that this run records to (on the first rank); None without `record`, and before training."""
        path = self._outcome.journal_path
        return None if path is None else Path(path)

    def plot(self, ax: Axes | None = None) -> tuple[Figure, Any]:
        """Draws the noise scale with its band, and the batch, against examples seen.

        Args:
            ax: where to draw; None makes a figure

        Returns:
            the figure, and its axes
        """
        from lightning_bsscale.figures import plot_noise_scale

        return plot_noise_scale(self.history, ax=ax)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuses what cannot work, before anything is set up."""
        neighbours.check_namespace(trainer, "GradientNoiseScaleMonitor")
        if stage == "fit":
            if self._open.begin(trainer, "GradientNoiseScaleMonitor") is not None:
                self._release(after_error=True)
            self._measurement = None
            self._way_back.outcome = None
            self._window = None
            self._windows = self._optimizer_steps = 0
            self._loaded = None
            preflight.check_measurable(trainer, pl_module, "GradientNoiseScaleMonitor")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses what only the optimizer can tell."""
        preflight.check_optimizer(trainer, "GradientNoiseScaleMonitor")
        preflight.warn_of_batch_norm(pl_module, trainer.world_size)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on a checkpoint that is loaded is not this training's."""
        self._open.is_training = True

    def _start(self, trainer: pl.Trainer, micro_batch_size: int) -> GradientMeasurement:
        self._loaders = loaders.ask_all_ranks(trainer, micro_batch_size, self._batch_size_fn)
        granularity = self._loaders.first_size
        accumulate = int(trainer.accumulate_grad_batches)
        ranks = trainer.world_size
        total = loaders.examples_in_plan(trainer, self._loaders, granularity)
        memory = math.inf if total is None or self._memory == 1 else self._memory * total
        self._examples = ExamplesSeen(ranks, granularity)
        optimizer = unwrapped(trainer.optimizers[0])
        measurement = GradientMeasurement(trainer, optimizer, memory, self._examples, StepTimes())
        if total is not None and accumulate * measurement.seen_at_once > 1:
            preflight.warn_of_short_memory(
                total, self._memory, accumulate * granularity, measure_every=self._measure_every
            )
        if self._loaded is not None:
            self._windows = self._loaded["windows"]
            self._optimizer_steps = self._loaded["optimizer_steps"]
            self._examples.load(self._loaded["examples"])
            measurement.load(self._loaded["measurement"])  # last, as a message of other ranks is given up
        if accumulate * measurement.seen_at_once == 1:
            rank_zero_warn(
                "GradientNoiseScaleMonitor needs at least two micro-batches a step to measure, and with "
                "accumulate_grad_batches=1 on one device there is one. Halve the loader's batch_size and set "
                "Trainer(accumulate_grad_batches=2): the training is the same.",
                category=UserWarning,
            )
        elif measurement.seen_at_once == 1 and self._loaders.batches == 1 and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(
                "GradientNoiseScaleMonitor needs at least two micro-batches a step to measure, and an epoch has one, "
                "at whose end Lightning steps. Halve the loader's batch_size.",
                category=UserWarning,
            )
        self._journal = output.open_journal(
            trainer,
            self._record,
            {"policy": None, "lr_rule": None, "dry_run": True},
            self._loaded,
        )
        self._rate = UnscaledRate(optimizer)
        return measurement

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A micro-batch begins, and with it perhaps a window."""
        size = loaders.batch_size_of(batch, self._batch_size_fn)
        if self._measurement is None:
            self._measurement = self._start(trainer, size)
        elif self._loaders.are_old(trainer):
            self._loaders = loaders.ask_all_ranks(trainer, size, self._batch_size_fn)
        self._follow(trainer, self._measurement, trainer.optimizers[0])
        divisor = int(trainer.accumulate_grad_batches)
        # Here Lightning clears the gradient, also where no step ended the window before: the epoch ended within it, or
        # the loader gave None for its last micro-batch. Elsewhere (it gave None for the first one) it clears nothing,
        # so that an old gradient is stepped with again: no window to measure.
        is_aligned = batch_idx % divisor == 0
        if self._window is None or is_aligned:
            left = math.inf if self._loaders.batches is None else self._loaders.batches - batch_idx
            # On several ranks an epoch's last window too: what it sends makes the count of examples exact.
            is_last = trainer.world_size > 1 and left <= divisor
            due = is_last or self._windows % self._measure_every == 0
            measured = is_aligned and due and min(divisor, left) * self._measurement.seen_at_once > 1
            self._window = OpenWindow(
                start=batch_idx,
                planned=divisor,
                loss_divisor=divisor,
                measured=measured,
                steps_before=trainer.global_step,
                sizes=[],
            )
            self._measurement.open(measured=measured)
            self._rate.begin_window()
        self._window.sizes.append(size)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Watching begins: gradients made before, in the training step, do not count."""
        if self._measurement is not None:
            self._measurement.before_backward()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Watching ends."""
        if self._measurement is not None and self._window is not None:
            self._measurement.after_backward(self._window.sizes[-1])

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """The gradient is complete and not yet clipped."""
        if self._measurement is not None and self._window is not None:
            self._follow(trainer, self._measurement, optimizer)
            self._rate.apply()  # where the step cannot be watched
            self._measurement.before_step(self._window)

    def _follow(self, trainer: pl.Trainer, measurement: GradientMeasurement, optimizer: Optimizer) -> None:
        """Go over to another optimizer, where the user had it set up anew in mid-training."""
        optimizer = unwrapped(optimizer)
        if optimizer is not self._rate.optimizer:
            preflight.check_optimizer(trainer, "GradientNoiseScaleMonitor")
            measurement.follow(optimizer)
            self._rate.follow(optimizer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A micro-batch has ended, and with it perhaps a window."""
        window, measurement = self._window, self._measurement
        if window is None or measurement is None or trainer.global_step == window.steps_before:
            return
        self._window = None
        self._windows += 1
        self._optimizer_steps += 1
        batch_size = self._examples.add(window.examples, window.came)
        facts = window.facts(
            examples_seen=self._examples.total,
            optimizer_steps=self._optimizer_steps,
            batch_size=batch_size,
            lr=self._rate.rate,
            lr_scale=1.0,
        )
        output.write_measurement(self._journal, measurement.close(facts))
        if output.is_log_due(trainer):
            values = {
                **output.noise_values(measurement),
                "batch_size": batch_size,
                "accumulate_grad_batches": window.came,
                "examples_seen": self._examples.total,
            }
            output.log_values(trainer, pl_module, self._log_prefix, values)

    def _release(self, *, after_error: bool = False) -> None:
        if self._measurement is not None:
            self._rate.remove()
            self._measurement.stop_watching()
            if after_error:
                self._measurement.give_up_waiting()
            output.write_measurement(self._journal, self._measurement.flush())
        if self._journal is not None:
            self._journal.close()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gives everything back."""
        self._release()
        self._way_back.send(trainer, self._outcome)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The callback may be part of another Trainer's fit from now on."""
        if stage == "fit":
            self._open.end(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Gives everything back."""
        self._way_back.clean_up(trainer)
        if self._open.is_in_another(trainer):
            return
        self._open.end(trainer)
        self._release(after_error=True)

    def __getstate__(self) -> dict[str, Any]:
        """A copy has the options and shows what this callback shows, but holds no Trainer.

        Returns:
            what is pickled, or copied
        """
        if self._measurement is None:
            return vars(self) | {"_open": OpenRun()}
        told = {
            "_loaded": self.state_dict(),
            "_way_back": self._way_back.holding(self._outcome),
            "_open": OpenRun(),
        }
        return without_module(self) | dict.fromkeys(("_measurement", "_journal", "_window", "_rate")) | told

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
        return "GradientNoiseScaleMonitor"

    def state_dict(self) -> dict[str, Any]:
        """What cannot be recomputed, at the last window's end.

        Returns:
            numbers, strings, lists and dicts; empty before training
        """
        if self._measurement is None:
            return self._loaded or {}
        return {
            "schema": STATE_SCHEMA,
            "journal": output.journal_state(self._journal),
            "windows": self._windows,
            "optimizer_steps": self._optimizer_steps,
            "examples": self._examples.state(),
            "measurement": self._measurement.state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state until training begins.

        Args:
            state_dict: what `state_dict` gave; of a schema that this version does not read, it is refused
        """
        check_schema(state_dict, "GradientNoiseScaleMonitor")
        if self._open.is_training:
            return  # another Trainer validates a checkpoint within this training
        self._way_back.outcome = None
        self._loaded = state_dict
