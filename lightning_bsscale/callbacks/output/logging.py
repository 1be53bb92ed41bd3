"""Log numbers to Lightning's loggers, `callback_metrics` and the progress bar."""

from __future__ import annotations

import math
from collections.abc import Mapping

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_bsscale.theory.measured import MeasuredWindows

EXAMPLES_KEY = "examples_seen"
LOW_KEY = "noise_scale_low"


def measured_values(measured: MeasuredWindows) -> dict[str, float]:
    """Return the numbers of the measured windows by key, without prefix.

    Args:
        measured: the measured windows

    Returns:
        The numbers. What is unknown is infinite, or for a lower end 0: an unresolved noise scale may be anything, and
        what the division gives jumps from window to window.
    """
    noise, averages = measured.noise, measured.averages
    counted: dict[str, float] = {"dropped_windows": averages.dropped, "limited_windows": averages.limited}
    if noise is None:
        return counted
    return {
        "noise_scale": noise.noise_scale if noise.resolved else math.inf,
        LOW_KEY: noise.low,
        "noise_scale_high": noise.high,
        "grad_sq_norm": noise.grad_sq,
        "grad_trace_cov": noise.trace,
        **counted,
    }


def is_log_due(trainer: pl.Trainer) -> bool:
    """Return whether to log at this optimizer step: as Lightning's loggers do, and at an epoch's or training's end."""
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(trainer.should_stop or trainer.is_last_batch or (every and trainer.global_step % every == 0))


def log_values(trainer: pl.Trainer, prefix: str, values: Mapping[str, float], *, step: int) -> None:
    """Log numbers at an optimizer step, to the loggers and `callback_metrics`.

    They go to the loggers directly, as in LearningRateMonitor: `LightningModule.log` would cost more than measuring.

    Args:
        trainer: whose loggers take what is known; `callback_metrics` takes all, as code that asks for a key needs it
        prefix: goes before each key
        values: key → value
        step: the loggers' step
    """
    named = {prefix + key: float(value) for key, value in values.items()}
    # callback_metrics holds tensors; on the host they need no copy to the device and back.
    trainer.callback_metrics.update({key: torch.tensor(value, dtype=torch.float64) for key, value in named.items()})
    if not trainer.log_every_n_steps:  # type: ignore[attr-defined]
        return
    known = {key: value for key, value in named.items() if _is_known(key.removeprefix(prefix), value)}
    for logger in trainer.loggers:
        logger.log_metrics(dict(known), step=step)


def _is_known(key: str, value: float) -> bool:
    return math.isfinite(value) and not (key == LOW_KEY and value <= 0)


def show_batch(trainer: pl.Trainer, prefix: str, batch_size: float) -> None:
    """Show the batch in the progress bar; only where Lightning allows `LightningModule.log`."""
    trainer.lightning_module.log(f"{prefix}batch_size", float(batch_size), prog_bar=True, logger=False, batch_size=1)


class ExamplesOnRows:
    """Puts ``examples_seen`` on the rows that Lightning writes, so that a logger can draw any key against it.

    Like Lightning's own ``epoch`` it is then on every row, also where several rows have one step.

    Args:
        prefix: goes before the key
    """

    def __init__(self, prefix: str) -> None:
        self._key = prefix + EXAMPLES_KEY

    def at_step(self, trainer: pl.Trainer, examples: int) -> None:
        """Put it on the row of a training step, if Lightning is about to write one."""
        if trainer.loggers and self._has_values(trainer, on_step=True):
            self._log(trainer, examples, on_epoch=False)

    def at_epoch_end(self, trainer: pl.Trainer, examples: int) -> None:
        """Put it on the row of an epoch's averages, if Lightning is about to write one."""
        may_come = is_overridden("on_train_epoch_end", trainer.lightning_module)  # which is called after this
        if trainer.loggers and (may_come or self._has_values(trainer, on_step=False)):
            self._log(trainer, examples, on_epoch=True)

    def at_validation_end(self, trainer: pl.Trainer, examples: int) -> None:
        """Put it on the row of a validation, if Lightning is about to write one."""
        may_come = is_overridden("on_validation_epoch_end", trainer.lightning_module)
        if trainer.loggers and (may_come or self._has_values(trainer, on_step=False)):
            self._log(trainer, examples, on_epoch=True)

    def _has_values(self, trainer: pl.Trainer, *, on_step: bool) -> bool:
        results = trainer._results
        return results is not None and any(
            value.meta.logger and (value.meta.on_step if on_step else value.meta.on_epoch)
            for value in results.values()
            if not value.has_reset and value.meta.name != self._key
        )

    def _log(self, trainer: pl.Trainer, examples: int, *, on_epoch: bool) -> None:
        trainer.lightning_module.log(
            self._key,
            torch.tensor(float(examples), dtype=torch.float64),  # on the host; a float would become 32 bits
            on_step=not on_epoch,
            on_epoch=on_epoch,
            reduce_fx="max",
            batch_size=1,
            # All ranks have the same number: nothing is sent, and Lightning need not advise to send it.
            sync_dist=on_epoch,
            rank_zero_only=True,
        )
