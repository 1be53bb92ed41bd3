"""Draw the pictures of docs/pictures.md: `python docs/draw_pictures.py` trains three times (some minutes)."""

import argparse
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from lightning_bsscale.demo import LARGE, RATE, SMALL, DigitsModel, digits_data
from lightning_bsscale.figures import plot_comparison

DOCS = Path(__file__).parent
DPI = 100


class LogsLosses(DigitsModel):
    """The demonstration's model, which also logs its training loss."""

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss


def train(callback: pl.Callback, batch_size: int, rate: float, epochs: int) -> pl.Callback:
    """Train with this callback, and return it."""
    train_data, val_data = digits_data()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(train_data, batch_size=batch_size, shuffle=True, generator=order)
    trainer.fit(LogsLosses(rate), loader, DataLoader(val_data, batch_size=len(val_data)))
    return callback


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the pictures")
    parser.add_argument("--epochs", type=int, default=25, help="passes over the data in each run")
    arguments = parser.parse_args()
    large_rate = RATE * LARGE / SMALL
    runs = {
        f"fixed {SMALL}": train(GradientNoiseScaleMonitor(), SMALL, RATE, arguments.epochs),
        f"fixed {LARGE}": train(GradientNoiseScaleMonitor(), LARGE, large_rate, arguments.epochs),
        f"BatchSizeScaler() from {SMALL}": train(BatchSizeScaler(), SMALL, RATE, arguments.epochs),
    }
    scaler = runs[f"BatchSizeScaler() from {SMALL}"]
    scaler.plot()[0].savefig(arguments.out / "pictures_run.png", dpi=DPI)
    plot_comparison(runs)[0].savefig(arguments.out / "pictures_comparison.png", dpi=DPI)


if __name__ == "__main__":
    main()
