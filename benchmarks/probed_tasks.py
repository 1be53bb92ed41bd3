"""The trainings that `branches.py` probes, as any user has them: a LightningModule and a DataModule.

cd benchmarks
python -m lightning_bsscale probe --task probed_tasks:digits --ckpt ../runs/branches/digits_0.5_0.ckpt
python -m lightning_bsscale probe --task probed_tasks:language --ckpt ../runs/branches/language_0.1_0.ckpt
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from language_model import TASK, ByteModel, Sequences, as_is, corpus
from plain_training import data, look
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from trainer_runs import SmallModel

START = 4
LANGUAGE_RATE = 0.7 * TASK["base_rate"]  # the best for a batch of 4 in front.py
DIGITS_BATCH, LOOKED_AT = 8, 450


class ConstantRate(SmallModel):
    """The experiments' CNN on the digits, by SGD at a constant learning rate."""

    def __init__(self, rate: float = 0.1) -> None:
        super().__init__(rate)
        self.warmup, self.final = 0.0, 1.0


class Digits(pl.LightningDataModule):
    """The digits, with the loss that the experiments look at: that of 450 training images without dropout."""

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*data()[:2]), batch_size=DIGITS_BATCH, shuffle=True)

    def val_dataloader(self) -> Any:
        images, labels = (part[:LOOKED_AT] for part in data()[:2])
        return DataLoader(TensorDataset(images, labels), batch_size=LOOKED_AT)


class ValidatedByteModel(ByteModel):
    """The language model of front.py, with a validation step."""

    def __init__(self, rate: float = LANGUAGE_RATE) -> None:
        super().__init__(rate)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))


class Text(pl.LightningDataModule):
    """The sequences of front.py in the order of a seed, from one of them on, and those held out."""

    def __init__(self, seed: int = 0, first: int = 0, batch_size: int = START) -> None:
        super().__init__()
        self.seed, self.first, self.batch_size = seed, first, batch_size

    def train_dataloader(self) -> Any:
        rows = corpus()[0]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))[: TASK["sequences"]]
        return DataLoader(Sequences(rows[order][self.first :]), batch_size=self.batch_size, collate_fn=as_is)

    def val_dataloader(self) -> Any:
        return DataLoader(Sequences(corpus()[1]), batch_size=256, collate_fn=as_is)


def digits() -> tuple[pl.LightningModule, Any, Any]:
    """Return module, training loader and validation loader, for `probe --task`."""
    return ConstantRate(), Digits().train_dataloader(), Digits().val_dataloader()


def language() -> tuple[pl.LightningModule, Any, Any]:
    """Return module, training loader and validation loader, for `probe --task`."""
    return ValidatedByteModel(), Text().train_dataloader(), Text().val_dataloader()


class SaveWhen(pl.Callback):
    """Saves a checkpoint where a condition holds first, and ends the training there."""

    def __init__(self, path: Path, is_there: Callable[[pl.Trainer, pl.LightningModule], bool]) -> None:
        self.path, self.is_there = path, is_there

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self.is_there(trainer, pl_module):
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def train_to(path: Path, job: dict[str, Any]) -> None:
    """Train one of the two to where a job wants its checkpoint."""
    torch.manual_seed(job["seed"])
    module: pl.LightningModule
    if job["task"] == "digits":
        module, datamodule = ConstantRate(job["rate"]), Digits()
        save = SaveWhen(path, lambda trainer, it: trainer.global_step % 10 == 0 and look(it.layers) <= job["stage"])
    else:
        module, datamodule = ValidatedByteModel(), Text(job["seed"])
        steps = round(job["stage"] * TASK["sequences"] / START)
        save = SaveWhen(path, lambda trainer, _: trainer.global_step == steps)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=100 if job["task"] == "digits" else 1,
        gradient_clip_val=clipping(job["task"]),
        callbacks=[save],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, datamodule=datamodule)
    assert path.exists(), f"the training ended before it came to {job}"


def clipping(task: str) -> float | None:
    """Return the largest gradient norm of a task's training."""
    return TASK["clip"] if task == "language" else None


def sequences_seen(job: dict[str, Any]) -> int:
    """Return how much of the text a training had read where its checkpoint is."""
    return math.ceil(job["stage"] * TASK["sequences"])
