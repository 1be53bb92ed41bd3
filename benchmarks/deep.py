"""Where a small batch wastes the processor: does the scaler save time?

A deep, narrow network: 30 residual blocks of width 32 on scikit-learn's digits (1,347 images to train on, 450 to
validate on), AdamW with warmup and cosine, 25 epochs. Each of its many layers is a small operation, whose cost hardly
depends on the batch: an example in a batch of 64 takes about a seventh of its time in a batch of 8. Fixed batch 8,
fixed batch 64 at the learning rate scaled by the square root, and `BatchSizeScaler()` at its defaults from batch 8. A
seed fixes the initial weights and the order of the examples. No learning rate is tuned.

    python benchmarks/deep.py                    # 8 seeds, about a minute each
"""

from __future__ import annotations

import dataclasses
import sys
from functools import partial
from typing import Any

import torch
from paired import Clock, parser, run
from torch import Tensor, nn

from lightning_bsscale import BatchSizeScaler
from lightning_bsscale.demo import DigitsModel, train

BLOCKS, WIDTH = 30, 32
SMALL, LARGE, RATE = 8, 64, 1e-3
RUNS = {"fixed 8": (SMALL, RATE), "fixed 64": (LARGE, RATE * (LARGE / SMALL) ** 0.5), "scaler from 8": (SMALL, RATE)}


class Residual(nn.Module):
    """A block that adds to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        nn.init.zeros_(self.layers[-1].weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class DeepModel(DigitsModel):
    """The demo's training of a deep network with AdamW."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        blocks = [Residual() for _ in range(BLOCKS)]
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, WIDTH), *blocks, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)
        )

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.rate)


def one(job: tuple[str, int], epochs: int) -> dict[str, Any]:
    """Make one run.

    Args:
        job: The run's name and the seed.
        epochs: Passes over the data.

    Returns:
        Its results.
    """
    name, seed = job
    batch_size, rate = RUNS[name]
    clock, scaler = Clock(), BatchSizeScaler()
    callbacks = [clock, scaler] if name.startswith("scaler") else [clock]
    settings = dict(batch_size=batch_size, rate=rate, seed=seed, epochs=epochs, callbacks=callbacks)
    result = train(name, model=DeepModel, **settings)
    final = scaler.batch_size if len(callbacks) > 1 else batch_size
    return {**dataclasses.asdict(result), "seed": seed, "final_batch": final, **clock.read()}


def main() -> int:
    """Make all runs and write the table.

    Returns:
        The exit status.
    """
    options = parser(__doc__, name="deep", seeds=8)
    options.add_argument("--epochs", type=int, default=25, help="passes over the data (default: 25)")
    chosen = options.parse_args()
    return run(
        chosen,
        partial(one, epochs=chosen.epochs),
        list(RUNS),
        scores={"val_loss": "val loss", "val_accuracy": "val accuracy"},
        title="A deep, narrow network: fixed small, fixed large, scaler",
        text=f"Digits, {BLOCKS} residual blocks of width {WIDTH}, AdamW, {chosen.epochs} epochs.",
        settings={"epochs": chosen.epochs, "blocks": BLOCKS, "width": WIDTH, "rate": RATE},
    )


if __name__ == "__main__":
    sys.exit(main())
