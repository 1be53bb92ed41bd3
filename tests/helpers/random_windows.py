"""Random trainings whose windows are computed in micro-batches of random sizes."""

from __future__ import annotations

import random
import warnings

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_bsscale import BatchSizeScaler
from tests.helpers.training import ByStep, KeepSteps, fit


class Examples(Dataset):
    """Examples in the structure that a program asks for."""

    def __init__(self, number, structure):
        generator = torch.Generator().manual_seed(number)
        self.x = torch.randn(number, 4, generator=generator, dtype=torch.float64)
        self.y = self.x.sum(1, keepdim=True) + torch.randn(number, 1, generator=generator, dtype=torch.float64)
        self.structure = structure

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        x, y = self.x[index], self.y[index]
        return {"tuple": (x, y), "dict": {"x": x, "y": y}, "nested": {"in": [x, {"t": str(index)}], "out": y}}[
            self.structure
        ]


class Stream(IterableDataset):
    def __init__(self, examples):
        self.examples = examples

    def __iter__(self):
        return (self.examples[index] for index in range(len(self.examples)))


class Net(pl.LightningModule):
    """A small net that counts its forward passes, and returns None where a program says so."""

    def __init__(self, returns="loss", none_at=()):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
        self.returns, self.none_at = returns, none_at
        self.sizes, self.outputs, self.steps = [], [], []

    def loss_of(self, batch):
        if isinstance(batch, dict):
            x, y = (batch["x"], batch["y"]) if "x" in batch else (batch["in"][0], batch["out"])
        else:
            x, y = batch
        self.sizes.append(len(x))
        return nn.functional.mse_loss(self.net(x), y)

    def training_step(self, batch, batch_idx):
        loss = self.loss_of(batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        if batch_idx in self.none_at:
            return None
        return {"loss": loss, "half": loss.detach() / 2} if self.returns == "dict" else loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.outputs.append(float(outputs["loss"]) if outputs else 0.0)

    def on_before_optimizer_step(self, optimizer):
        self.steps.append(
            torch.cat([p.grad.flatten() for p in self.parameters() if p.grad is not None] or [torch.zeros(0)])
        )

    def validation_step(self, batch, batch_idx):
        self.log("val", self.loss_of(batch))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.8), "interval": "step"}]


def program(seed):
    """A random training, without what is about micro-batches."""
    rng = random.Random(seed)
    size = rng.choice([1, 2, 3, 5, 8])
    examples = Examples(size * rng.randint(3, 16) + rng.randint(0, size - 1), rng.choice(["tuple", "dict", "nested"]))
    is_stream = rng.random() < 0.25
    loader = DataLoader(Stream(examples) if is_stream else examples, batch_size=size, drop_last=rng.random() < 0.2)
    settings = dict(max_epochs=rng.randint(1, 3), precision="64-true")
    if rng.random() < 0.4:
        settings["gradient_clip_val"] = rng.choice([0.1, 1.0])
        settings["gradient_clip_algorithm"] = rng.choice(["norm", "value"])
    if rng.random() < 0.3:
        settings["limit_train_batches"] = rng.randint(1, 12)
    if rng.random() < 0.3 and not is_stream:
        settings["val_check_interval"] = rng.choice([0.5, 1.0])
    settings["accumulate_grad_batches"] = rng.choice([1, 1, 2, 3])
    batches = [size * rng.choice([1, 2, 3, 5, 8]) * settings["accumulate_grad_batches"] for _ in range(5)]
    options = dict(policy=ByStep(batches), warmup=0, memory=1.0, max_batch_size=size * 60, lr_rule="sqrt")
    options |= dict(measure_every=rng.choice([1, 2, 5]), total_examples=3 * len(examples) if is_stream else None)
    regrouped = dict(max_micro_batch_size=rng.choice(["auto", None, 1, size, 2 * size, 3 * size + 1, 1000]))
    regrouped["split"] = True
    return loader, settings, options, regrouped, dict(returns=rng.choice(["loss", "dict"]))


def trained(loader, settings, options, **net):
    module = Net(**net)
    logger = KeepSteps()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scaler = BatchSizeScaler(**options)
        val = loader if "val_check_interval" in settings else None
        trainer = fit(module, loader, [scaler], val=val, **{**settings, "logger": logger, "log_every_n_steps": 1})
    return module, scaler, trainer, logger


def assert_same_steps(regrouped, plain, rtol=1e-10):
    module, scaler, trainer, logger = regrouped
    expected, plain_scaler, plain_trainer, plain_logger = plain
    assert trainer.global_step == plain_trainer.global_step
    assert [r.batch_size for r in scaler.decisions] == [r.batch_size for r in plain_scaler.decisions]
    for found, wanted in zip(module.steps, expected.steps, strict=True):
        torch.testing.assert_close(found, wanted, rtol=rtol, atol=1e-13)
    for found, wanted in zip(module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=rtol, atol=1e-12)
    assert [step for step, values in logger.logged if "loss_step" in values] == [
        step for step, values in plain_logger.logged if "loss_step" in values
    ]
