"""A model and data whose noise scale is known."""

import lightning.pytorch as pl
import torch

DIMENSIONS = 64
NOISE_SCALE = 64.0  # tr Sigma = 64 (unit variance in 64 dimensions) over ||G||^2 = 1


class KnownNoise(pl.LightningModule):
    """The gradient of example i is x_i = G + noise, at any weights; through a Linear, so that autocast acts."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(DIMENSIONS, 1, bias=False)

    def training_step(self, batch, batch_idx):
        return self.linear(batch[0]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def gradients(examples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(DIMENSIONS, generator=generator)
    return direction / direction.norm() + torch.randn(examples, DIMENSIONS, generator=generator)
