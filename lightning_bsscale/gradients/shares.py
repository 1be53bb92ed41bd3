"""The share that one process has in a window's sums: free of loss scale, loss divisor and number of ranks.

A watcher sees gradients of losses that were divided by N and multiplied by the loss scale s before their backward pass:
``s g_k / N`` of sample k. ``.grad`` is then the mean over ranks of ``(s / N) sum g_k``, or without s where it was
unscaled. With K samples on each rank the mean of all samples' gradients is N/K times that.

Some watchers see a sample as its mean over all W ranks only. A window has then K such samples, each rank contributes to
all of them, and each has the variance of one with ``1 / ((1/W^2) sum 1/b_k)`` examples, the sum being over its ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_bsscale.gradients.norms import moved

__all__ = ["share_of_sums"]


def share_of_sums(
    sq_norms: Tensor,
    mean_sq_norm: Tensor,
    sizes: Sequence[float],
    *,
    loss_divisor: float,
    loss_scale: Tensor | None = None,
    is_grad_scaled: bool = False,
    ranks_in_sample: int = 1,
) -> Tensor:
    """Compute this process's share from what it saw.

    Args:
        sq_norms: sum of the squared norms of the gradients of this process's samples as they were seen, 0-d
        mean_sq_norm: this process's share of the squared norm of `.grad`, 0-d
        sizes: examples of each of this process's samples
        loss_divisor: what each loss was divided by
        loss_scale: what each loss was multiplied by, 0-d, on the device; None for 1
        is_grad_scaled: whether `.grad` is still multiplied by it
        ranks_in_sample: processes over whose mean a sample is seen; 1 where it is this process's own

    Returns:
        Five numbers on the device of `sq_norms`, which added up over processes are the fields of a `WindowSums`.
        Nothing waits for them. Without a sample there is no mean: it is NaN.
    """
    home, count = sq_norms.device, len(sizes)
    norms = torch.stack([sq_norms, moved(mean_sq_norm, home)])
    if loss_scale is not None:
        squared = loss_scale.to(norms).square()
        norms = norms / (squared if is_grad_scaled else torch.stack([squared, torch.ones_like(squared)]))
    known = [
        loss_divisor**2,
        (loss_divisor / count) ** 2 if count else math.nan,
        count / ranks_in_sample,
        math.fsum(1 / size for size in sizes) / ranks_in_sample**2,
        sum(sizes),
    ]
    factors, counts = torch.tensor(known, dtype=norms.dtype).to(home, non_blocking=True).tensor_split([2])
    return torch.cat([norms * factors, counts])
