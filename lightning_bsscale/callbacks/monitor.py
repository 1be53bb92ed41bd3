"""GradientNoiseScaleMonitor: measures, logs, changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

from lightning_bsscale.callbacks.actuator import Actuator, NullActuator
from lightning_bsscale.callbacks.checks import options
from lightning_bsscale.callbacks.checks.options import RunOptions
from lightning_bsscale.callbacks.window_callback import WindowCallback
from lightning_bsscale.theory.checks import check_integer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class GradientNoiseScaleMonitor(WindowCallback):
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
        super().__init__(
            RunOptions(
                callback="GradientNoiseScaleMonitor",
                measure_every=check_integer("measure_every", measure_every, at_least=1),
                memory=options.check_memory(memory),
                batch_size_fn=options.check_batch_size_fn(batch_size_fn),
                log_prefix=options.check_prefix(log_prefix),
                record=options.check_record(record),
            )
        )

    def plot(self, ax: Axes | None = None) -> tuple[Figure, Any]:
        """Draw the noise scale with its band, and the batch, against examples seen.

        Args:
            ax: where to draw; None makes a figure

        Returns:
            the figure, and its axes
        """
        from lightning_bsscale.figures import plot_noise_scale

        return plot_noise_scale(self.history, ax=ax)

    def _make_actuator(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Actuator:
        return NullActuator(trainer, self._options.callback)
