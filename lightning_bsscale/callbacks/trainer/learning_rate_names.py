"""The names under which `LearningRateMonitor` logs the learning rates of the parameter groups."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import LearningRateMonitor

__all__ = ["has_monitor", "monitored_names"]


def has_monitor(trainer: pl.Trainer) -> bool:
    """Return whether a `LearningRateMonitor` is among the callbacks."""
    return any(isinstance(callback, LearningRateMonitor) for callback in trainer.callbacks)  # type: ignore[attr-defined]


def monitored_names(trainer: pl.Trainer) -> list[tuple[str, int]]:
    """Return its names of the learning rates of the Trainer's only optimizer.

    Args:
        trainer: the Trainer

    Returns:
        Each name and the index of its parameter group; none without a `LearningRateMonitor`. Several schedulers of one
        optimizer have names of their own.
    """
    if not has_monitor(trainer):
        return []
    optimizer, configs = trainer.optimizers[0], trainer.lr_scheduler_configs
    if not configs:
        return _of_groups(f"lr-{_class_name(getattr(optimizer, 'optimizer', optimizer))}", optimizer)
    names, unnamed = [], 0
    for config in configs:
        unnamed += config.name is None
        base = f"lr-{_class_name(config.scheduler.optimizer)}" if config.name is None else config.name
        names += _of_groups(f"{base}-{unnamed - 1}" if unnamed > 1 else base, optimizer)
    return names


def _class_name(optimizer: Any) -> str:
    return type(optimizer).__name__


def _of_groups(base: str, optimizer: Any) -> list[tuple[str, int]]:
    groups = optimizer.param_groups
    if len(groups) == 1:
        name = groups[0].get("name")
        return [(f"{base}/{name}" if name else base, 0)]
    return [(f"{base}/{group.get('name', f'pg{index + 1}')}", index) for index, group in enumerate(groups)]
