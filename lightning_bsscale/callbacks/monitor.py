"""GradientNoiseScaleMonitor: measures and logs, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

from lightning_bsscale.callbacks.actuator import Actuator, NullActuator
from lightning_bsscale.callbacks.checks import options
from lightning_bsscale.callbacks.checks.options import RunOptions
from lightning_bsscale.callbacks.trainer.micro_batches import MicroBatches
from lightning_bsscale.callbacks.window_callback import WindowCallback
from lightning_bsscale.theory.checks import check_integer
from lightning_bsscale.theory.shares import check_memory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class GradientNoiseScaleMonitor(WindowCallback):
    """Measures the gradient noise scale during training, and changes nothing.

    It compares the gradients of one window's micro-batches with their mean. A step of a single loader batch on one
    device is split in two where it is measured, which changes the weights by rounding only. It logs the measurements of
    `BatchSizeScaler`, and ``batch_size``, ``accumulate_grad_batches`` and ``examples_seen``, every `log_every_n_steps`
    optimizer steps.

    Example::

        from lightning_bsscale import GradientNoiseScaleMonitor
        trainer = Trainer(accumulate_grad_batches=4, callbacks=[GradientNoiseScaleMonitor()])
    """

    def __init__(
        self,
        *,
        measure_every: int = 16,
        split: bool | str = "auto",
        split_fn: Callable[[Any, int, int], Any] | None = None,
        loss_is_mean_over: str = "examples",
        memory: float = 0.05,
        batch_size_fn: Callable[[Any], float] | None = None,
        unit: str = "examples",
        log_prefix: str = "bsscale/",
        log_step: str = "optimizer",
        log_figure: bool = False,
        record: bool | str | Path = False,
    ) -> None:
        """Check the options.

        Args:
            measure_every: Measure the steps that contain one loader batch in so many. Defaults to 16, half as often as
                the scaler, because nothing waits for the estimate.
            split: Whether to split the loader batch of a measured step in two where there is no other pair to compare:
                True, False, or ``"auto"``, which is True unless the model has batch normalisation. The step is the same
                to rounding; with dropout, equal in law. Defaults to ``"auto"``.
            split_fn: Returns the examples from a first to before a last one of a batch. Defaults to None: tensors in
                any structure.
            loss_is_mean_over: What the loss of a loader batch is a mean over: ``"examples"``, or what `batch_size_fn`
                counts (tokens, say), for which pass ``"batch_size_fn"``. Parts of a loader batch are weighted by it.
                Defaults to ``"examples"``.
            memory: Share of the training's examples over which measurements are averaged; 1.0, or an unknown number
                of examples, averages over all. Defaults to 0.05.
            batch_size_fn: Counts the examples (or tokens) of a batch. Defaults to None: first tensor, first dimension.
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

        A wrong type raises TypeError and a wrong value ValueError, with the allowed values in the message.
        """
        super().__init__(
            RunOptions(
                callback="GradientNoiseScaleMonitor",
                measure_every=check_integer("measure_every", measure_every, at_least=1),
                split=options.check_split(split),
                split_fn=options.check_function("split_fn", split_fn, "a batch, a first and a last example"),
                weighs_counts=options.check_loss_mean(loss_is_mean_over, batch_size_fn),
                memory=check_memory(memory),
                batch_size_fn=options.check_batch_size_fn(batch_size_fn),
                unit=options.check_unit(unit),
                log_prefix=options.check_prefix(log_prefix),
                log_step=options.check_log_step(log_step),
                log_figure=options.check_flag("log_figure", log_figure),
                record=options.check_record(record),
            )
        )

    def plot(self, ax: Axes | None = None) -> tuple[Figure, Any]:
        """Draw the noise scale with its band, and the batch, against examples seen; needs matplotlib.

        Args:
            ax: axes to draw these alone on; None creates a figure

        Returns:
            The figure and its axes: one, or an array where there are two more of the `losses`, against examples and
            steps.
        """
        return super().plot(ax)

    def _draw(self, ax: Axes | None = None, *, is_shown: bool = True) -> tuple[Figure, Any]:
        from lightning_bsscale.figures import plot_noise_scale

        return plot_noise_scale(self._drawn_run(), ax, is_shown=is_shown)

    def _make_actuator(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, micro_batches: MicroBatches
    ) -> Actuator:
        return NullActuator(trainer, self._options.callback, micro_batches)
