"""Where a small batch wastes the processor: does the scaler save time?

A deep, narrow network: 30 residual blocks of width 32 on scikit-learn's digits (1,347 images to train on, 450 to
validate on), AdamW with warmup and cosine, 25 epochs. Each of its many layers is a small operation, whose cost hardly
depends on the batch: an example in a batch of 64 takes about a seventh of its time in a batch of 8. Fixed batch 8,
fixed batch 64 at the learning rate scaled by the square root, and `BatchSizeScaler()` at its defaults from batch 8. A
seed fixes the initial weights and the order of the examples. No learning rate is tuned.

    python benchmarks/deep.py                    # 8 seeds, about a minute each
"""

from __future__ import annotations

import sys

import torch
from digits import compare
from torch import Tensor, nn

from lightning_bsscale.demo import DigitsModel

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


def main() -> int:
    """Compare the three runs.

    Returns:
        The exit status.
    """
    return compare(
        "deep",
        RUNS,
        description=__doc__,
        title="A deep, narrow network: fixed small, fixed large, scaler",
        text=f"Digits, {BLOCKS} residual blocks of width {WIDTH}, AdamW. ",
        model=DeepModel,
    )


if __name__ == "__main__":
    sys.exit(main())
