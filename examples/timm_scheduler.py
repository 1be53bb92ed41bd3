"""Train a CNN as timm does: batch normalisation, a cosine in updates, stepped with a number of updates.

    python examples/timm_scheduler.py                  # twenty epochs
    python examples/timm_scheduler.py --max_epochs 2   # a quick look

Needs: pip install 'lightning-bsscale[examples]'; timm itself is not needed. Two things differ from timm's own loop:
`lr_scheduler_step` passes the plan's number of updates, and the plan accumulates two loader batches.
"""

import argparse
import math

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_bsscale import BatchSizeScaler
from lightning_bsscale.demo import digits_data


class CosineLRScheduler:
    """Stands in for `timm.scheduler.CosineLRScheduler(..., t_in_epochs=False)`: what it does, by the same calls."""

    def __init__(self, optimizer: torch.optim.Optimizer, t_initial: int, warmup_t: int = 0) -> None:
        self.optimizer, self.t_initial, self.warmup_t = optimizer, t_initial, warmup_t
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.step_update(0)

    def step_update(self, num_updates: int) -> None:
        warmup = min(1.0, (num_updates + 1) / (self.warmup_t + 1))
        cosine = (1 + math.cos(math.pi * min(1.0, num_updates / self.t_initial))) / 2
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * (warmup if warmup < 1 else cosine)


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


class Classifier(pl.LightningModule):
    def __init__(self, rate: float = 2e-3) -> None:
        super().__init__()
        self.rate = rate
        layers = conv(1, 16), conv(16, 32, stride=2), conv(32, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.model = nn.Sequential(*layers, nn.Linear(32, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.model(images), labels, label_smoothing=0.1)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.log("accuracy", (self.model(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.rate, weight_decay=0.05)
        updates = int(self.trainer.estimated_stepping_batches)
        scheduler = CosineLRScheduler(optimizer, t_initial=updates, warmup_t=updates // 20)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def lr_scheduler_step(self, scheduler: CosineLRScheduler, metric: object) -> None:
        # self.global_step counts the updates made: fewer, once the batch has grown, so the cosine would not end.
        scaler = next((one for one in self.trainer.callbacks if isinstance(one, BatchSizeScaler)), None)
        scheduler.step_update(num_updates=self.global_step if scaler is None else scaler.planned_steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_epochs", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=8, help="size of a loader batch; the batch starts at two")
    options = parser.parse_args()

    pl.seed_everything(0)
    torch.set_num_threads(1)
    train_data, val_data = digits_data()
    scaler = BatchSizeScaler()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=options.max_epochs,
        accumulate_grad_batches=2,  # with batch normalisation a loader batch is not split: two are compared
        callbacks=[scaler],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Classifier()
    train_loader = DataLoader(train_data, batch_size=options.batch_size, shuffle=True)
    trainer.fit(model, train_loader, DataLoader(val_data, batch_size=len(val_data)))
    print(f"{trainer.global_step} updates instead of {scaler.planned_steps}, learning rate at the end", end=" ")
    print(f"{trainer.optimizers[0].param_groups[0]['lr']:.2g}, accuracy {trainer.callback_metrics['accuracy']:.4f}")
    print(scaler.summary())


if __name__ == "__main__":
    main()
