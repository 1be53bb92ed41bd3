"""The experiments' small CNN under the Trainer: decay against growth, seconds per epoch, and optimizers."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from paired import Clock
from plain_training import layers
from torch import nn

from lightning_bsscale import BatchSizeScaler, Seesaw, Smith
from lightning_bsscale.demo import DigitsModel, train
from lightning_bsscale.theory.rules import rule_for_optimizer

Record = dict[str, Any]
EPOCHS = 10  # of the optimizers' runs
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


def _of_torch(name: str, **settings: Any) -> Callable[[nn.Module, float], torch.optim.Optimizer]:
    return lambda model, rate: getattr(torch.optim, name)(model.parameters(), lr=rate, **settings)


def _of_library(name: str, **settings: Any) -> Callable[[nn.Module, float], torch.optim.Optimizer]:
    def make(model: nn.Module, rate: float) -> torch.optim.Optimizer:
        import pytorch_optimizer

        made: torch.optim.Optimizer = getattr(pytorch_optimizer, name)(model.parameters(), lr=rate, **settings)
        return made

    return make


def _muon(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Make one optimizer of two: Muon for the hidden matrices, AdamW for the last layer and the biases."""
    from pytorch_optimizer import Muon

    *hidden, head, bias = model.parameters()
    matrices = [parameter for parameter in hidden if parameter.ndim > 1]
    others = [*(parameter for parameter in hidden if parameter.ndim == 1), head, bias]
    return Muon(
        [
            {"params": matrices, "lr": rate, "use_muon": True},
            {"params": others, "lr": rate / 5, "betas": (0.9, 0.999), "use_muon": False},
        ]
    )


# At their defaults, but for the momentum of SGD and LARS's trust coefficient: biases get LARS's learning rate without a
# trust ratio, and at one that they stand, the default of 0.001 would hardly move the matrices.
OPTIMIZERS: dict[str, Callable[[nn.Module, float], torch.optim.Optimizer]] = {
    "SGD": _of_torch("SGD"),
    "momentum": _of_torch("SGD", momentum=0.9),
    "Adagrad": _of_torch("Adagrad"),
    "RMSprop": _of_torch("RMSprop"),
    "Adam": _of_torch("Adam"),
    "AdamW": _of_torch("AdamW"),
    "LAMB": _of_library("Lamb"),
    "LARS": _of_library("LARS", trust_coefficient=0.1),
    "Lion": _of_library("Lion"),
    "Muon": _muon,
}


class SmallModel(DigitsModel):
    """The demo's training of the experiments' network."""

    def __init__(self, rate: float, optimizer: str = "SGD") -> None:
        super().__init__(rate)
        self.optimizer, self.layers = optimizer, layers()

    def make_optimizer(self) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.optimizer](self.layers, self.rate)


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


def rule_of(optimizer: str) -> str:
    """Return the rule that `lr_rule="auto"` chooses for an optimizer, or "error" where it knows none."""
    made = OPTIMIZERS[optimizer](layers(), 0.1)
    try:
        return rule_for_optimizer([cls.__name__ for cls in type(made).__mro__]).name
    except ValueError:
        return "error"


def optimizer_run(job: dict[str, Any]) -> Record:
    """Train at a fixed batch, or with the scaler at its defaults. An error is a result too."""
    scaler = BatchSizeScaler() if job["scaler"] else None
    try:
        result = train(
            job["optimizer"],
            batch_size=job["batch"],
            rate=job["rate"],
            seed=job["seed"],
            epochs=EPOCHS,
            callbacks=[] if scaler is None else [scaler],
            model=partial(SmallModel, optimizer=job["optimizer"]),
        )
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    record = {key: value for key, value in dataclasses.asdict(result).items() if key not in {"name", "seconds"}}
    if scaler is None:
        return record
    resolved = [one.noise.noise_scale for one in scaler.history if one.noise is not None and one.noise.resolved]
    noise = {"noise_scale": statistics.median(resolved) if resolved else None}
    controlled = {"final_batch": scaler.batch_size, "factor": scaler.lr_scale, "rule": rule_of(job["optimizer"])}
    return {**record, **controlled, **noise}
