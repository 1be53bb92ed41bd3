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

    def __init__(self, optimizer: torch.optim.Optimizer, t_initial: int) -> None:
        self.optimizer, self.t_initial = optimizer, t_initial
        self.peaks = [group["lr"] for group in optimizer.param_groups]

    def step_update(self, num_updates: int) -> None:
        cosine = (1 + math.cos(math.pi * min(1.0, num_updates / self.t_initial))) / 2
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * cosine

    def state_dict(self) -> dict:
        return {}  # each call of step_update brings the number of updates with it

    def load_state_dict(self, state: dict) -> None:
        pass


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        layers = conv(1, 16), conv(16, 32, stride=2), conv(32, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.model = nn.Sequential(*layers, nn.Linear(32, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1], label_smoothing=0.1)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("accuracy", (self.model(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=0.05)
        scheduler = CosineLRScheduler(optimizer, t_initial=int(self.trainer.estimated_stepping_batches))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def lr_scheduler_step(self, scheduler: CosineLRScheduler, metric: object) -> None:
        # self.global_step counts the updates made: fewer, once the batch has grown, so the cosine would not end.
        scaler = next((one for one in self.trainer.callbacks if isinstance(one, BatchSizeScaler)), None)
        scheduler.step_update(num_updates=self.global_step if scaler is None else scaler.planned_steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_epochs", type=int, default=20)
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
    train_loader = DataLoader(train_data, batch_size=8, shuffle=True)
    trainer.fit(model, train_loader, DataLoader(val_data, batch_size=len(val_data)))
    rate, accuracy = trainer.optimizers[0].param_groups[0]["lr"], trainer.callback_metrics["accuracy"]
    print(f"{trainer.global_step} updates instead of {scaler.planned_steps}", end=", ")
    print(f"learning rate at the end {rate:.2g}, accuracy {accuracy:.4f}")
    print(scaler.summary())


if __name__ == "__main__":
    main()
