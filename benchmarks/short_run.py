"""Does the scaler harm a short run, in which it can gain nothing?

A first try as many people make it: scikit-learn's digits (1,437 images to train on, 360 to validate on), an MLP, AdamW
with a cosine schedule on steps, batch 32, 3 epochs, with and without `BatchSizeScaler()` at its defaults. A seed fixes
the initial weights and the order of the examples, so differences are computed per seed.

    python benchmarks/short_run.py               # 10 seeds, a minute
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from paired import Clock, parser, run
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsscale import BatchSizeScaler

BATCH, EPOCHS, RATE = 32, 3, 1e-3


class Classifier(pl.LightningModule):
    """An MLP with AdamW and a cosine schedule on steps."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
        self.examples = 0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        self.examples += len(labels)
        return F.cross_entropy(self.layers(images), labels)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=RATE)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def one(job: tuple[str, int]) -> dict[str, Any]:
    """Make one run.

    Args:
        job: The run's name and the seed.

    Returns:
        Its results.
    """
    name, seed = job
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=0.2, random_state=0, stratify=labels)
    x, val_x = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    y, val_y = (torch.tensor(part) for part in parts[2:])
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    model, clock, scaler = Classifier(), Clock(), BatchSizeScaler()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=[clock, scaler] if name == "scaler" else [clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True, generator=order))
    with torch.no_grad():
        logits = model.layers(val_x)
    noise = scaler.noise_scale
    return {
        "name": name,
        "seed": seed,
        "optimizer_steps": trainer.global_step,
        "examples": model.examples,
        "val_loss": F.cross_entropy(logits, val_y).item(),
        "val_accuracy": (logits.argmax(1) == val_y).float().mean().item(),
        "noise_scale": None if noise is None else noise.noise_scale,
        **clock.read(),
    }


def main() -> int:
    """Make all runs and write the table.

    Returns:
        The exit status.
    """
    return run(
        parser(__doc__, name="short_run", seeds=10).parse_args(),
        one,
        ["without", "scaler"],
        scores={"val_loss": "val loss", "val_accuracy": "val accuracy"},
        title="A short run: with the scaler and without",
        text=f"Digits, MLP, AdamW with cosine, batch {BATCH}, {EPOCHS} epochs.",
        settings={"batch": BATCH, "epochs": EPOCHS, "rate": RATE},
    )


if __name__ == "__main__":
    sys.exit(main())
