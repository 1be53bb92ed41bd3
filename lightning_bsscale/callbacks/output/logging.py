"""Log numbers to Lightning's loggers and the progress bar."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
import torch

from lightning_bsscale.theory.measured import MeasuredWindows


def measured_values(measured: MeasuredWindows) -> dict[str, float]:
    """Return the logged numbers of the measured windows by key, without prefix; an unknown upper end is inf."""
    noise, averages = measured.noise, measured.averages
    counted: dict[str, float] = {"dropped_windows": averages.dropped, "limited_windows": averages.limited}
    if noise is None:
        return counted
    return {
        "noise_scale": noise.noise_scale,
        "noise_scale_low": noise.low,
        "noise_scale_high": noise.high,
        "grad_sq_norm": noise.grad_sq,
        "grad_trace_cov": noise.trace,
        **counted,
    }


def is_log_due(trainer: pl.Trainer) -> bool:
    """Return whether to log at this optimizer step: as Lightning's loggers do, and at an epoch's or training's end."""
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(trainer.should_stop or trainer.is_last_batch or (every and trainer.global_step % every == 0))


def log_values(trainer: pl.Trainer, prefix: str, values: Mapping[str, float], *, show: bool = False) -> None:
    """Log numbers at an optimizer step, to the loggers and `callback_metrics`.

    They go to the loggers directly, as in LearningRateMonitor: `LightningModule.log` would cost more than measuring.

    Args:
        trainer: whose loggers take them
        prefix: goes before each key
        values: key → value
        show: whether the progress bar shows the batch
    """
    named = {prefix + key: float(value) for key, value in values.items()}
    # callback_metrics holds tensors; on the host they need no copy to the device and back.
    trainer.callback_metrics.update({key: torch.tensor(value, dtype=torch.float64) for key, value in named.items()})
    # The loggers' step is the index from 0 of the step just made, as in Lightning's own metrics.
    if trainer.log_every_n_steps:  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            logger.log_metrics(named, step=trainer.global_step - 1)
    if show:
        key = prefix + "batch_size"
        trainer.lightning_module.log(key, named[key], prog_bar=True, logger=False, batch_size=1)
