"""Leave a model, its random numbers and its loader as they were found, whatever is computed in between."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["Buffers", "preserved"]


class Buffers:
    """The buffers of a model (such as the running statistics of batch normalisation), to be put back in place."""

    def __init__(self, model: nn.Module) -> None:
        """Copy all of them."""
        self._of = [(module, dict(module._buffers)) for module in model.modules()]
        tensors = {id(buffer): buffer for buffer in model.buffers()}
        self._copies = [(buffer, buffer.detach().clone()) for buffer in tensors.values()]
        self._versions = [buffer._version for buffer, _ in self._copies]

    def restore(self, *, all_of_them: bool = False) -> None:
        """Put back those that were written to or replaced.

        Args:
            all_of_them: also those that seem unchanged, as a write through `.data` leaves no trace
        """
        for module, named in self._of:
            if module._buffers.keys() != named.keys() or any(
                module._buffers[name] is not named[name] for name in named
            ):
                module._buffers.clear()
                module._buffers.update(named)
        with torch.no_grad():
            for index, (buffer, copy) in enumerate(self._copies):
                if all_of_them or buffer._version != self._versions[index]:
                    buffer.copy_(copy)
                    self._versions[index] = buffer._version


@contextmanager
def preserved(model: nn.Module, batches: Any = None) -> Iterator[Buffers]:
    """Restore a model's buffers, modes, gradients and requires_grad, and all random states, at the end of a block.

    Args:
        model: the model; its parameters are not copied
        batches: a DataLoader, whose own generators are restored too

    Yields:
        The buffers, to be restored in between as well.
    """
    buffers = Buffers(model)
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    devices = {p.device.index for p, _, _ in parameters if p.device.type == "cuda"}
    generators = [(generator, generator.get_state()) for generator in _generators(batches)]
    python_state, numpy = random.getstate(), sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices=sorted(devices)):
            yield buffers
    finally:
        random.setstate(python_state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)
        for generator, state in generators:
            generator.set_state(state)
        buffers.restore(all_of_them=True)
        for module, mode in modes:
            module.training = mode
        for parameter, requires_grad, gradient in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient


def _generators(loader: Any) -> list[torch.Generator]:
    found: dict[int, torch.Generator] = {}
    sampler = getattr(loader, "sampler", None)
    inner = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    for owner in (loader, sampler, inner):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            found[id(generator)] = generator
    return list(found.values())
