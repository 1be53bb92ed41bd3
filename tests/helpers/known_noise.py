"""A model and data whose noise scale is known."""

import functools

import lightning.pytorch as pl
import torch
from torch.optim import SGD

DIMENSIONS = 64
NOISE_SCALE = 64.0  # tr Sigma = 64 (unit variance in 64 dimensions) over ||G||^2 = 1


def mean_output(linear, xs):
    return linear(xs).mean()


class KnownNoise(pl.LightningModule):
    """The gradient of example i is x_i = G + noise, at any weights; through a Linear, so that autocast acts."""

    def __init__(self, dimensions=DIMENSIONS, loss=mean_output, optimizer=SGD, **options):
        super().__init__()
        self.loss = loss
        self.linear = torch.nn.Linear(dimensions, 1, bias=False)
        self.make_optimizer = functools.partial(optimizer, lr=0.0, **options)

    def training_step(self, batch, batch_idx):
        return self.loss(self.linear, batch[0])

    def configure_optimizers(self):
        return self.make_optimizer(self.parameters())


def gradients(examples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(DIMENSIONS, generator=generator)
    return direction / direction.norm() + torch.randn(examples, DIMENSIONS, generator=generator)
