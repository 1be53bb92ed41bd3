"""Numbers for Lightning's loggers and the progress bar."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
import torch

from lightning_bsscale.theory.measured import MeasuredWindows


def measured_values(measured: MeasuredWindows) -> dict[str, float]:
    """Return the logged numbers of what was measured; those of the estimate from the first one on.

    Args:
        measured: the measured windows

    Returns:
        key without prefix → value; an unknown upper end is inf
    """
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
    """Whether to log at this optimizer step: where Lightning's loggers take values, and at an epoch's end.

    Args:
        trainer: the Trainer, in `on_train_batch_end` of a window's last micro-batch

    Returns:
        True also at the last step
    """
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(trainer.should_stop or trainer.is_last_batch or (every and trainer.global_step % every == 0))


def log_values(trainer: pl.Trainer, prefix: str, values: Mapping[str, float], *, show: bool = False) -> None:
    """Logs numbers at an optimizer step, for loggers and `callback_metrics`.

    Handed to the loggers directly, as LearningRateMonitor does: `LightningModule.log` would cost more than measuring.

    Args:
        trainer: whose loggers take them
        prefix: goes before each key
        values: key → value
        show: whether the progress bar shows the batch
    """
    named = {prefix + key: float(value) for key, value in values.items()}
    # Tensors, as everything there is; on the host, so that nothing is copied to the device and back.
    trainer.callback_metrics.update({key: torch.tensor(value, dtype=torch.float64) for key, value in named.items()})
    # The loggers' step is that of the step just made, counted from 0: Lightning's own metrics of it have the same.
    if trainer.log_every_n_steps:  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            logger.log_metrics(named, step=trainer.global_step - 1)
    if show:
        key = prefix + "batch_size"
        trainer.lightning_module.log(key, named[key], prog_bar=True, logger=False, batch_size=1)
