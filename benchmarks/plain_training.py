"""Train a small CNN on scikit-learn's digits without a Trainer, as the experiments need it: thousands of short runs.

The batch is cut from one endless order of the examples, a new permutation for each pass, so that runs of a seed see the
same examples in the same order at every batch size. The loss that is looked at is that of 450 training images, without
dropout; the loss that is trained has dropout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_bsscale.demo import digits_data
from lightning_bsscale.functional import measure_noise_scale
from lightning_bsscale.theory.noise_report import NoiseReport

DIVERGED = 5.0  # a loss of chance is 2.3


def layers() -> nn.Sequential:
    """Make the network: convolution, dropout, linear."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout2d(0.2),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


@cache
def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the training images and labels, and those held out."""
    train, held_out = digits_data()
    return (*train.tensors, *held_out.tensors)


class Order:
    """The endless order of the examples of one seed."""

    def __init__(self, size: int, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._size, self._rest = size, torch.empty(0, dtype=torch.long)

    def take(self, count: int) -> Tensor:
        """Return the next examples."""
        while len(self._rest) < count:
            self._rest = torch.cat([self._rest, torch.randperm(self._size, generator=self._generator)])
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken


def mean_loss(model: nn.Module, batch: Any) -> Tensor:
    """The trained loss of a batch."""
    return F.cross_entropy(model(batch[0]), batch[1])


@torch.no_grad()
def look(model: nn.Module) -> float:
    """Return the loss on 450 of the training images, without dropout."""
    images, labels, *_ = data()
    model.eval()
    loss = F.cross_entropy(model(images[:450]), labels[:450]).item()
    model.train()
    return loss


def noise_of(model: nn.Module, *, seed: int, size: int = 4, hessian: bool = False) -> NoiseReport:
    """Measure the noise scale from one pass over the training images, with dropout."""
    images, labels = data()[:2]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    batches = list(zip(images[order].split(size), labels[order].split(size), strict=True))
    return measure_noise_scale(model, batches, mean_loss, relative_error=0.02, hessian=hessian, hessian_batches=4)


def largest_eigenvalue(loss: Tensor, parameters: list[Tensor], iterations: int = 40) -> float:
    """Find the Hessian's eigenvalue of the largest size by power iteration.

    Args:
        loss: The loss, with its graph.
        parameters: What the Hessian is of.
        iterations: Hessian-vector products.

    Returns:
        The eigenvalue.
    """
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    flat = torch.cat([one.flatten() for one in gradients])
    direction, value = torch.randn(len(flat), generator=torch.Generator().manual_seed(0)), 0.0
    for _ in range(iterations):
        direction = direction / direction.norm()
        products = torch.autograd.grad(flat @ direction, parameters, retain_graph=True)
        product = torch.cat([one.flatten() for one in products])
        value = (direction @ product).item()
        direction = product
    return value


def train(
    *,
    batch: int,
    rate: float,
    seed: int,
    examples: int,
    optimizer: str = "SGD",
    spacing: float = 1.05,
    looks: tuple[int, ...] = (),
    stop: float = 0.0,
    at_look: Callable[[nn.Module, dict[str, float]], None] | None = None,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train at a constant batch and learning rate.

    Args:
        batch: Examples of a step.
        rate: The learning rate.
        seed: Of the weights, the order and the dropout.
        examples: Examples to train on, up to a whole step.
        optimizer: Its name in `torch.optim`.
        spacing: Look again after this many times as many examples.
        looks: Or exactly after these.
        stop: End at the first look with a lower loss.
        at_look: Called at each look.

    Returns:
        The model, and what was seen at each look.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = layers()
    made = getattr(torch.optim, optimizer)(model.parameters(), lr=rate)
    images, labels = data()[:2]
    order, seen, steps, curve = Order(len(images), seed), 0, 0, []
    left = list(looks)
    due = left.pop(0) if left else 0.0
    while True:
        if seen >= due or seen >= examples:
            point = {"examples": seen, "steps": steps, "loss": look(model)}
            curve.append(point)
            if at_look is not None:
                at_look(model, point)
            # A negation: NaN is not below the limit either.
            if seen >= examples or point["loss"] < stop or not point["loss"] < DIVERGED:
                return model, curve
            due = (left.pop(0) if left else math.inf) if looks else max(64.0, spacing * seen)
        taken = order.take(batch)
        made.zero_grad(set_to_none=True)
        mean_loss(model, (images[taken], labels[taken])).backward()
        made.step()
        seen, steps = seen + batch, steps + 1
