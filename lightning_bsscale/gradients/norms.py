"""Norms of many tensors in few kernel launches, as exact as float32 allows whatever a tensor's size.

On a CPU, torch adds the squares of a whole float32 tensor one after the other: the squared norm is wrong by 0.07 % at
10⁷ elements, and by 0.6 % at 4·10⁷. Large tensors are therefore reduced in rows of 4,096 elements, whose norms are
added in float64. The error is then 5·10⁻⁹ at either size, in the same time (`benchmarks/norm_accuracy.py`). CUDA needs
no such care: `_foreach_norm` works on pieces of 65,536 elements, of which each thread adds 128, and adds these sums as
a tree.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["move_to", "norm_of_each", "real_and_dense", "squared_norm", "sum_dtype"]

ROW = 4096
# For smaller tensors the error with random elements is at most 2·10⁻⁶, and the rows' extra launches would cost time.
LARGE = 131_073


def squared_norm(gradients: Iterable[Tensor], home: torch.device) -> Tensor:
    """Sum the squares of all elements of all tensors.

    Args:
        gradients: tensors of any device, dtype and layout
        home: device of the sum

    Returns:
        A 0-d tensor on `home`, in float64 if the device has it.
    """
    by_device: dict[torch.device, list[Tensor]] = {}
    for norm in norm_of_each(gradients):
        by_device.setdefault(norm.device, []).append(norm)
    sums = [move_to(_sum_of_squares(norms, device), home) for device, norms in by_device.items()]
    if not sums:
        return torch.zeros((), dtype=sum_dtype(home), device=home)
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum()


def norm_of_each(gradients: Iterable[Tensor]) -> list[Tensor]:
    """Compute the norm of each tensor.

    Args:
        gradients: tensors of any device, dtype and layout

    Returns:
        0-d tensors in the same order, each on its tensor's device, in float32 or float64.
    """
    dense = [
        real_and_dense(gradient) if gradient.layout is not torch.strided or gradient.is_complex() else gradient
        for gradient in gradients
    ]
    groups: dict[tuple[torch.device, torch.dtype, bool], list[int]] = {}
    for index, gradient in enumerate(dense):
        device, dtype = gradient.device, gradient.dtype
        is_large = gradient.numel() >= LARGE and device.type == "cpu" and dtype is not torch.float64
        groups.setdefault((device, dtype, is_large), []).append(index)
    if len(groups) == 1:
        (kind,) = groups
        return _norms_alike(dense, *kind[1:])
    norms: list[Tensor] = list(dense)
    for (_, dtype, is_large), indices in groups.items():
        computed = _norms_alike([dense[index] for index in indices], dtype, is_large)
        for index, norm in zip(indices, computed, strict=True):
            norms[index] = norm
    return norms


def real_and_dense(gradient: Tensor) -> Tensor:
    """Return a real, strided tensor with the same norm, as a view where possible."""
    if gradient.is_sparse:
        # An uncoalesced tensor may contain a row several times; these must be added before they are squared.
        gradient = gradient.coalesce().values()
    elif gradient.layout is not torch.strided:
        gradient = gradient.values()
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient


def move_to(tensor: Tensor, home: torch.device) -> Tensor:
    """Move a result to the device `home`, in the dtype to sum in."""
    # A non-blocking copy from an accelerator to the CPU could be read before it has arrived.
    return tensor.to(home, sum_dtype(home), non_blocking=home.type != "cpu")


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the widest dtype to sum in: float64, or float32 if the device has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _sum_of_squares(norms: list[Tensor], device: torch.device) -> Tensor:
    return torch.stack(norms).to(sum_dtype(device)).square().sum()


def _norms_alike(gradients: list[Tensor], dtype: torch.dtype, is_large: bool) -> list[Tensor]:
    if is_large:
        return [_norm_in_rows(gradient) for gradient in gradients]
    # float16 would overflow, and bfloat16 has only three digits.
    return list(torch._foreach_norm(gradients, 2, dtype=torch.promote_types(dtype, torch.float32)))


def _norm_in_rows(gradient: Tensor) -> Tensor:
    # Ordered by stride, a transposed or channels-last tensor is contiguous: a view, not a copy.
    if gradient.is_contiguous():
        flat = gradient.view(-1)
    else:
        flat = gradient.permute(sorted(range(gradient.dim()), key=gradient.stride, reverse=True)).reshape(-1)
    whole = flat.numel() // ROW * ROW
    summed_in = torch.promote_types(flat.dtype, torch.float32)
    norms = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1, dtype=summed_in)
    if whole < flat.numel():
        rest = torch.linalg.vector_norm(flat[whole:], dim=0, keepdim=True, dtype=summed_in)
        norms = torch.cat([norms, rest])
    norm: Tensor = torch.linalg.vector_norm(norms, dtype=torch.float64)
    return norm
