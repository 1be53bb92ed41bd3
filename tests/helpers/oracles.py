"""Slow and obvious versions of what the package computes."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def sq_norm(gradient: Tensor) -> float:
    """Squared norm of one gradient, in double precision; sparse and complex ones too."""
    dense = gradient.detach()
    dense = dense.to_dense() if dense.is_sparse else dense
    wide = dense.to(torch.complex128 if dense.is_complex() else torch.float64)
    return float(wide.abs().square().sum())


def own_sq_norms(
    model: nn.Module, batches: Sequence[Tensor], loss_of: Callable[[nn.Module, Tensor], Tensor]
) -> list[float]:
    """Squared norm of each micro-batch's own gradient: a fresh copy of the model and a `torch.autograd.grad` for each.

    The copy has no hooks, and no checkpointing: that changes no gradient, and its reentrant form cannot be asked by
    `torch.autograd.grad`.
    """
    norms = []
    for batch in batches:
        fresh = copy.deepcopy(model)
        for module in fresh.modules():
            if hasattr(module, "use_reentrant"):
                module.use_reentrant = None
        parameters = [p for p in fresh.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss_of(fresh, batch), parameters, allow_unused=True)
        norms.append(sum(sq_norm(g) for g in gradients if g is not None))
    return norms
