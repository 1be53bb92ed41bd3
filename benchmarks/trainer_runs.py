"""The experiments' small CNN under the Trainer: decay against growth, seconds per epoch, and optimizers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from paired import Clock
from plain_training import layers

from lightning_bsscale import BatchSizeScaler, Seesaw, Smith
from lightning_bsscale.demo import DigitsModel, train

Record = dict[str, Any]
# The optimizer, the loader's batch, the highest learning rate of warmup and cosine, and the scaler.
DECAYS: dict[str, tuple[str, int, float, Callable[[], BatchSizeScaler] | None]] = {
    "SGD, cosine": ("SGD", 8, 0.1, None),
    "SGD, Seesaw": ("SGD", 8, 0.1, lambda: BatchSizeScaler(policy=Seesaw(form="sgd", gate=None), lr_rule="linear")),
    "SGD, Smith": ("SGD", 8, 0.1, lambda: BatchSizeScaler(policy=Smith(gate=None), lr_rule="linear")),
    "SGD, cosine, batch 16": ("SGD", 16, 0.2, None),
    "Adam, cosine": ("Adam", 8, 0.004, None),
    "Adam, Seesaw": ("Adam", 8, 0.004, lambda: BatchSizeScaler(policy=Seesaw(gate=None), lr_rule="sqrt")),
    "Adam, cosine, batch 16": ("Adam", 16, 0.004 * 2**0.5, None),
}


class SmallModel(DigitsModel):
    """The demo's training of the experiments' network."""

    def __init__(self, rate: float, optimizer: str = "SGD") -> None:
        super().__init__(rate)
        self.optimizer, self.layers = optimizer, layers()

    def make_optimizer(self) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = getattr(torch.optim, self.optimizer)(self.parameters(), lr=self.rate)
        return made


def decay_run(job: dict[str, Any]) -> Record:
    """Train with a cosine, or with growth in its place."""
    optimizer, batch, rate, make_scaler = DECAYS[job["name"]]
    scaler = None if make_scaler is None else make_scaler()
    result = train(
        job["name"],
        batch_size=batch,
        rate=rate,
        seed=job["seed"],
        epochs=job["epochs"],
        callbacks=[] if scaler is None else [scaler],
        model=partial(SmallModel, optimizer=optimizer),
    )
    return {**dataclasses.asdict(result), "final_batch": batch if scaler is None else scaler.batch_size}


def epoch_run(job: dict[str, Any]) -> Record:
    """Time one epoch at a batch of the loader, after one that is not timed."""
    settings: dict[str, Any] = {"batch_size": job["batch"], "rate": 0.05, "seed": job["seed"], "model": SmallModel}
    train("warm", epochs=1, **settings)
    clock = Clock()
    train("timed", epochs=1, callbacks=[clock], **settings)
    return clock.read()
