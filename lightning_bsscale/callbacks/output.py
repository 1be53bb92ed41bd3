"""Where the callbacks' numbers go: Lightning's log and the journal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_bsscale.journal import Journal, Measurement
from lightning_bsscale.theory.estimate import NoiseScale

JOURNAL_NAME = "bsscale.jsonl"


def noise_values(noise: NoiseScale | None) -> dict[str, float]:
    """The logged numbers of an estimate; none before the first.

    Args:
        noise: the estimate, or None

    Returns:
        key without prefix → value; an unknown upper end is inf
    """
    if noise is None:
        return {}
    return {
        "noise_scale": noise.noise_scale,
        "noise_scale_low": noise.low,
        "noise_scale_high": noise.high,
        "grad_sq_norm": noise.grad_sq,
        "grad_trace_cov": noise.trace,
    }


def is_log_due(trainer: pl.Trainer) -> bool:
    """Whether to log at this optimizer step: where Lightning's loggers take values, and at an epoch's end.

    Not at every step: one value costs Lightning's log a third of a millisecond.

    Args:
        trainer: the Trainer, in `on_train_batch_end` of a window's last micro-batch

    Returns:
        True also at the last step
    """
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(trainer.should_stop or trainer.is_last_batch or (every and trainer.global_step % every == 0))


def log_values(pl_module: pl.LightningModule, prefix: str, values: Mapping[str, float], *, show: bool = False) -> None:
    """Logs numbers at an optimizer step, for loggers and `callback_metrics`.

    Args:
        pl_module: whose log to use
        prefix: goes before each key
        values: key → value
        show: whether the progress bar shows the batch
    """
    for key, value in values.items():
        # A tensor on the host: a plain number would be copied to the device, and back, at every step.
        tensor = torch.tensor(value, dtype=torch.float64)
        pl_module.log(
            prefix + key, tensor, on_step=True, on_epoch=False, prog_bar=show and key == "batch_size", batch_size=1
        )


def open_journal(
    trainer: pl.Trainer, record: bool | str | Path, header: dict[str, Any], *, goes_on: bool
) -> Journal | None:
    """Opens the journal where the user wants one.

    Args:
        trainer: whose folder is the default
        record: the option: True writes ``bsscale.jsonl`` into the log folder, a path is taken as given
        header: what the first line says
        goes_on: whether a resumed run writes on where it is; else a journal that is there is replaced

    Returns:
        the journal, or None for `record=False`
    """
    if record is False:
        return None
    path = Path(trainer.log_dir or trainer.default_root_dir) / JOURNAL_NAME if record is True else Path(record)
    return Journal(path, header, append=goes_on)


def write_measurement(journal: Journal | None, measurement: Measurement | None) -> None:
    """Writes a measurement that has arrived.

    Args:
        journal: where, or None
        measurement: what, or None
    """
    if measurement is not None and journal is not None:
        journal.write(measurement)
