"""What the model and the strategy are like."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["has_batch_norm", "is_sharded"]


def is_sharded(trainer: pl.Trainer) -> bool:
    """Return whether the strategy shards the model over ranks."""
    return isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy))


def has_batch_norm(pl_module: pl.LightningModule) -> bool:
    """Return whether the function of the model depends on the micro-batch."""
    return any(isinstance(module, _BatchNorm) for module in pl_module.modules())
