"""A task for the command `probe`, as a user would write it: a module, a data module, and their configuration."""

TASK = """
import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset


def data(examples):
    generator = torch.Generator().manual_seed(examples)
    x = torch.randn(examples, 4, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True) + torch.randn(examples, 1, generator=generator))


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 1)

    def loss(self, batch):
        return torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02)


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(data(400), batch_size=4, shuffle=True)

    def val_dataloader(self):
        return DataLoader(data(256), batch_size=256)


def task():
    return Model(), Data().train_dataloader(), Data().val_dataloader()


def wrong():
    return Model()
"""
CONFIG = """
model: {class_path: probed_task.Model}
data: {class_path: probed_task.Data}
trainer: {accelerator: cpu, logger: false, gradient_clip_val: 10.0}
"""
