"""Gradients of networks in training, with their true noise scale on the way: digits and a byte-level language model.

The examples of a step are drawn independently, with replacement, so that the truth is that of the whole data set. It is
measured at frozen parameters, before the step, every few steps and always before the last: between two truths the true
values may move, and what an average over many steps estimates is their mean (see benchmarks/estimators.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

MICRO_BATCHES = 4
Truth = Callable[[], tuple[float, float]]


class Step(NamedTuple):
    """One optimizer step of several runs.

    Attributes:
        gradients: Mean gradient of each micro-batch, of the shape (runs, micro-batches, parameters).
        trace: True tr(Sigma) of each run at these parameters; nan where it was not measured.
        grad_sq: True squared norm; the same.
    """

    gradients: np.ndarray
    trace: np.ndarray
    grad_sq: np.ndarray


class Training:
    """A network and its optimizer.

    Attributes:
        parameters: The trained parameters.
    """

    def __init__(
        self, parameters: list[Any], loss: Callable[[Tensor], Tensor], draw: Callable[[], Tensor], update: Any
    ) -> None:
        """Keep what a step needs.

        Args:
            parameters: The trained parameters.
            loss: The mean loss of the examples with these indices.
            draw: Draws the indices of a step, one row for each micro-batch.
            update: Steps with the gradients in `.grad`.
        """
        self.parameters, self._loss, self._draw, self._update = parameters, loss, draw, update

    def gradient(self, chosen: Tensor) -> Tensor:
        """Compute the mean gradient of examples, flattened."""
        return torch.cat([part.flatten() for part in torch.autograd.grad(self._loss(chosen), self.parameters)])

    def step(self) -> Tensor:
        """Make one step, and return the gradients of its micro-batches."""
        gradients = torch.stack([self.gradient(chosen) for chosen in self._draw()])
        parts = gradients.mean(0).split([parameter.numel() for parameter in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).clone()
        self._update()
        return gradients

    def windows(self, count: int, truth: Truth, every: int) -> Iterator[Step]:
        """Make some steps, and measure the truth before each `every`-th of them, counted from the last.

        Args:
            count: Number of steps.
            truth: Measures true trace and squared norm at the parameters of the moment.
            every: Steps from one truth to the next.

        Yields:
            The steps.
        """
        for left in reversed(range(count)):
            trace, grad_sq = truth() if left % every == 0 else (math.nan, math.nan)
            yield Step(self.step().numpy()[None], np.array([trace]), np.array([grad_sq]))


def digits(seed: int, *, stretches: int, windows: int, every: int, size: int) -> Iterator[Iterator[Step]]:
    """Train the demo's CNN with SGD, learning rate 0.02, momentum 0.9; the truth is exact, from all images.

    Args:
        seed: Of the weights and of the batches.
        stretches: Number of paths.
        windows: Steps of a path.
        every: Steps from one truth to the next.
        size: Images of a micro-batch.

    Yields:
        The paths, to be consumed in order, one run each.
    """
    from torch.func import functional_call, grad, vmap
    from torch.nn import functional as F

    from lightning_bsscale.demo import DigitsModel, digits_data

    images, labels = digits_data()[0].tensors
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitsModel()
    generator = torch.Generator().manual_seed(seed)
    parameters = list(model.parameters())

    def one_loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, values, (image[None],)), label[None])

    one_gradient = vmap(grad(one_loss), in_dims=(None, 0, 0))

    def truth() -> tuple[float, float]:
        values = {name: parameter.detach() for name, parameter in model.named_parameters()}
        squares, total = 0.0, {name: torch.zeros_like(value) for name, value in values.items()}
        for part in zip(images.split(128), labels.split(128), strict=True):
            for name, found in one_gradient(values, *part).items():
                squares += float(found.square().sum())
                total[name] += found.sum(0)
        grad_sq = sum(float((value / len(labels)).square().sum()) for value in total.values())
        return squares / len(labels) - grad_sq, grad_sq

    training = Training(
        parameters,
        lambda chosen: F.cross_entropy(model(images[chosen]), labels[chosen]),
        lambda: torch.randint(len(labels), (MICRO_BATCHES, size), generator=generator),
        torch.optim.SGD(parameters, lr=0.02, momentum=0.9).step,
    )
    for _ in range(stretches):
        yield training.windows(windows, truth, every)


def language(
    seed: int, *, stretches: int, windows: int, every: int, size: int, between: int, samples: int
) -> Iterator[Iterator[Step]]:
    """Train the byte-level transformer of benchmarks/front.py, at half its width, depth and context, as it is there.

    AdamW, learning rate 0.0056 (that of batch 16 there), clipping at norm 1, warmup and cosine. The truth is unbiased,
    by all pairs of many micro-batches, which no step sees.

    Args:
        seed: Of the weights and of the batches.
        stretches: Number of paths.
        windows: Steps of a path.
        every: Steps from one truth to the next.
        size: Sequences of a micro-batch.
        between: Steps from the end of a path to the start of the next.
        samples: Micro-batches of a truth.

    Yields:
        The paths, to be consumed in order, one run each.
    """
    from front_tasks import TASKS
    from language_model import TASK, ByteModel, corpus, warmup_and_cosine

    half = {**TASK, **{name: TASK[name] // 2 for name in ("width", "heads", "layers", "context")}}

    class Half(ByteModel):
        task = half

    rows = corpus()[0][:, : half["context"] + 1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Half(0.7 * TASK["base_rate"] * math.sqrt(MICRO_BATCHES * size / TASKS["lm"].start))
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=model.rate, betas=TASK["betas"], weight_decay=TASK["weight_decay"], fused=True
    )
    steps = stretches * windows + (stretches - 1) * between
    scheduler = warmup_and_cosine(optimizer, steps)["lr_scheduler"]["scheduler"]
    of_steps, of_truths = (torch.Generator().manual_seed(2 * seed + kind) for kind in (0, 1))

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, TASK["clip"])
        optimizer.step()
        scheduler.step()

    training = Training(
        parameters,
        lambda chosen: model.loss(rows[chosen]),
        lambda: torch.randint(len(rows), (MICRO_BATCHES, size), generator=of_steps),
        update,
    )

    def truth() -> tuple[float, float]:
        squares, total = 0.0, torch.zeros(sum(parameter.numel() for parameter in parameters))
        for chosen in torch.randint(len(rows), (samples, size), generator=of_truths):
            gradient = training.gradient(chosen)
            squares += float(gradient.square().sum())
            total += gradient
        mean_of_squares, square_of_mean = squares / samples, float((total / samples).square().sum())
        trace = (mean_of_squares - square_of_mean) * size * samples / (samples - 1)
        return trace, (samples * square_of_mean - mean_of_squares) / (samples - 1)

    for stretch in range(stretches):
        for _ in range(between if stretch else 0):
            training.step()
        yield training.windows(windows, truth, every)
