"""Fit a table of numbers with an MLP and AdamW, where the callback also owns the learning rate's schedule.

    python examples/tabular.py                              # ten epochs
    python examples/tabular.py --rows 2000                  # a quick look
    python examples/tabular.py --record runs/tabular.jsonl  # for: bsscale report runs/tabular.jsonl -o report.html

Needs: pip install 'lightning-bsscale[examples]'. The table is synthetic (Friedman's first problem): nothing is
downloaded, and the best possible error is known. It is the variance of the noise that the targets were made with.
"""

import argparse

import lightning.pytorch as pl
import torch
from sklearn.datasets import make_friedman1
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsscale import BatchSizeScaler, WarmupCosine

NOISE = 5.0  # standard deviation


class TableModel(pl.LightningModule):
    def __init__(self, columns: int, rate: float = 5e-3) -> None:
        super().__init__()
        self.rate = rate
        self.layers = nn.Sequential(
            nn.Linear(columns, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1), nn.Flatten(0)
        )

    def loss(self, batch: list[Tensor]) -> Tensor:
        table, targets = batch
        return F.mse_loss(self.layers(table), targets)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_mse", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.rate)  # the peak of the schedule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, help="rows to train on")
    parser.add_argument("--max_epochs", type=int, default=10)
    parser.add_argument(
        "--batch_size", type=int, default=16, help="size of a loader batch, and the starting batch size"
    )
    parser.add_argument("--record", default=False, help="write a journal to this file")
    options = parser.parse_args()

    pl.seed_everything(0)
    torch.set_num_threads(1)  # the layers are tiny: a second thread costs more than it saves
    table, targets = make_friedman1(options.rows + 2000, n_features=10, noise=NOISE, random_state=0)
    data = TensorDataset(torch.tensor(table, dtype=torch.float32), torch.tensor(targets, dtype=torch.float32))
    train_data, val_data = torch.utils.data.random_split(data, [options.rows, 2000])
    scaler = BatchSizeScaler(
        unit="rows",  # messages, tables and axes speak of rows
        schedule=WarmupCosine(final=0.01),  # in rows, so it needs no number of steps, which nobody knows in advance
        memory=0.1,  # such noisy targets take more windows to resolve: average over a tenth of the training
        max_batch_size=1024,
        record=options.record,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=options.max_epochs,
        callbacks=[scaler],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    train_loader = DataLoader(train_data, batch_size=options.batch_size, shuffle=True)
    trainer.fit(TableModel(table.shape[1]), train_loader, DataLoader(val_data, batch_size=500))
    print(f"{trainer.global_step} optimizer steps, {scaler.examples_seen} rows")
    print(f"validation error {trainer.callback_metrics['val_mse']:.3f}; nobody can come below {NOISE**2:g}")
    print(scaler.summary())


if __name__ == "__main__":
    main()
