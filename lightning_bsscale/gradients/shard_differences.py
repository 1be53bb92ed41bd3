"""Shards of gradients as torch shows them publicly: DTensors in `.grad`.

Here is the share that a process has in the squared norm of the mean, and the watcher that needs nothing else: it takes
what each backward pass adds to `.grad`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from lightning_bsscale.gradients.comparison import Compared, Comparison, Held
from lightning_bsscale.gradients.norms import squared_norm, sum_dtype
from lightning_bsscale.gradients.watcher import GradientWatcher, Parameters, Seen

__all__ = [
    "ShardDifferences",
    "UnsupportedSharding",
    "check_mesh",
    "held_shard",
    "is_dtensor",
    "num_holders",
    "shards_of",
    "share_of_shards",
    "weighted_squared_norm",
]

NONE: Final[Mapping[int, Any]] = MappingProxyType({})


class UnsupportedSharding(ValueError):
    """The model is split over processes in a way that hides the gradients of samples; says how, and why."""


def is_dtensor(tensor: Tensor) -> bool:
    """Tell whether a tensor is a DTensor. The class itself has moved between versions of torch.

    Args:
        tensor: any

    Returns:
        Whether it is one.
    """
    return hasattr(tensor, "placements") and hasattr(tensor, "to_local")


def check_mesh(parameter: Any, world_size: int) -> None:
    """Check that all processes share one parameter for its memory's sake only, each with data of its own.

    Args:
        parameter: a DTensor
        world_size: number of processes

    Raises:
        UnsupportedSharding: If it is split in more than one dimension of the mesh, or over some processes only.
    """
    mesh, placements = parameter.device_mesh, parameter.placements
    kinds = [type(placement).__name__ for placement in placements]
    found = f"a parameter of shape {tuple(parameter.shape)} is placed as {placements} on a mesh of {tuple(mesh.shape)}"
    # FSDP, HSDP (replicated groups of shards), or DDP as a mesh of replicas.
    if set(kinds[:-1]) - {"Replicate"} or kinds[-1] not in {"Replicate", "Shard"}:
        raise UnsupportedSharding(
            f"{found}: this is tensor parallelism, where several processes share one micro-batch. Shard over one "
            "dimension: ModelParallelStrategy(data_parallel_size=<all processes>, tensor_parallel_size=1)"
        )
    if mesh.size() != world_size:
        raise UnsupportedSharding(
            f"{found}, which is {mesh.size()} of {world_size} processes: all must step with the mean over all"
        )


def num_holders(parameter: Any) -> int:
    """Count the processes that hold the same shard as this one.

    Args:
        parameter: a DTensor

    Returns:
        The number, this process included.
    """
    sizes = zip(parameter.device_mesh.shape, parameter.placements, strict=True)
    return math.prod(size for size, placement in sizes if placement.is_replicate())


def held_shard(parameter: Any) -> Held:
    """Tell which part of the gradient this process holds.

    Args:
        parameter: a DTensor with a gradient, placed as `check_mesh` allows

    Returns:
        The shard, and where it begins.
    """
    shard, mesh = parameter.grad.to_local(), parameter.device_mesh
    dim, shards = shards_of(parameter)
    if shards == 1:
        return Held(id(parameter), shard)
    # All shards are of one size, but the last ones, which may be smaller or empty.
    size = -(-parameter.shape[dim] // shards)
    return Held(id(parameter), shard, dim, mesh.get_local_rank(mesh.ndim - 1) * size)


def shards_of(parameter: Any) -> tuple[int, int]:
    """Tell how a parameter is sharded.

    Args:
        parameter: a DTensor, placed as `check_mesh` allows

    Returns:
        The dimension, and the number of shards; one if it is only replicated.
    """
    placement = parameter.placements[-1]
    return (0, 1) if placement.is_replicate() else (placement.dim, parameter.device_mesh.shape[-1])


def share_of_shards(
    parameters: Iterable[Any], *, factors: Mapping[int, float] = NONE, before: Mapping[int, Tensor] = NONE
) -> Tensor:
    """Compute this process's share of a squared norm: of the gradient in `.grad`, or of what was added to it.

    Args:
        parameters: DTensors; those without a `.grad` count as zero
        factors: by id of a parameter, what its gradient is multiplied by
        before: by id of a parameter, what was in its `.grad` before

    Returns:
        A 0-d tensor, whose sum over processes is the squared norm. Nothing waits for it.

    Raises:
        UnsupportedSharding: If a gradient has not been reduced.
    """
    shards = []
    with torch.no_grad():
        for p in parameters:
            if p.grad is None:
                continue
            if p.grad.placements != p.placements:
                raise UnsupportedSharding(
                    f"a parameter of shape {tuple(p.shape)} that is placed as {p.placements} has a gradient that is "
                    f"placed as {p.grad.placements}: it was not reduced, and the processes will step apart. Call the "
                    "modules that were sharded, not functions that use their parameters"
                )
            shard = p.grad.to_local()
            if id(p) in before:
                shard = shard - before[id(p)]
            shards.append((shard, factors.get(id(p), 1.0) ** 2 / num_holders(p)))
        return weighted_squared_norm(shards)


def weighted_squared_norm(gradients: Iterable[tuple[Tensor, float]]) -> Tensor:
    """Sum the squares of all elements of all tensors, each tensor with a weight.

    Args:
        gradients: pairs of a tensor and its weight

    Returns:
        A 0-d tensor on the first one's device.
    """
    by_weight: dict[float, list[Tensor]] = {}
    for gradient, weight in gradients:
        if gradient.numel():  # of a small parameter the last processes have nothing
            by_weight.setdefault(weight, []).append(gradient.detach())
    home = next((group[0].device for group in by_weight.values()), torch.device("cpu"))
    total = torch.zeros((), dtype=sum_dtype(home), device=home)
    for weight, group in by_weight.items():
        total = total + weight * squared_norm(group, home)
    return total


class ShardDifferences(GradientWatcher):
    """Watches sharded parameters by what each backward pass adds to `.grad`.

    What it sees is each sample's mean over all processes, so a window needs two samples, and every backward pass must
    reduce. It keeps a copy of the shards of `.grad`. In a low precision the differences are rough.

    Args:
        parameters: gives the parameters to watch anew for each window; those that are no DTensors are left out
        world_size: number of processes
    """

    sees_mean_over_ranks = True

    def __init__(self, parameters: Parameters, *, world_size: int) -> None:
        super().__init__(parameters, world_size=world_size)
        self._sharded: list[Tensor] = []
        self._before: dict[int, Tensor] = {}

    @property
    def watched(self) -> list[Tensor]:
        """The parameters of the open window, or of the last one."""
        return self._sharded

    def _open(self, compared: bool) -> None:
        self._sharded = [p for p in self._trained().values() if is_dtensor(p)]
        if compared and self._sharded:
            # Each process compares its own shards with themselves.
            shards: list[Tensor] = [p.detach().to_local() for p in self._sharded]  # type: ignore[attr-defined]
            named = zip(self._sharded, shards, strict=True)
            listed = [Compared(id(p), tuple(shard.shape), shard.dtype) for p, shard in named]
            self._comparison = Comparison(listed, shards[0].device, turn=self._turn, on_ranks=False)

    def _begin_sample(self) -> None:
        with torch.no_grad():
            self._before = {key: shard.clone() for key, shard, *_ in self._held()}

    def _end_sample(self) -> Tensor:
        before, self._before = self._before, {}
        sq_norm = share_of_shards(self._sharded, before=before)
        if self._comparison is not None:
            added = ((key, shard - before[key] if key in before else shard) for key, shard, *_ in self._held())
            self._comparison.take(added)
        return sq_norm

    def _close(self) -> None:
        self._before = {}

    def _seen(self, loss_scale: Tensor | None) -> Seen:
        mean = share_of_shards(self._sharded)
        difference = None
        if self._comparison is not None:
            counted = torch.ones(len(self._sharded), dtype=torch.bool)
            difference = self._comparison.difference(self._held(), counted, loss_scale)
        sq_norms = self.sq_norms.sum() if self._sq_norms else torch.zeros_like(mean)
        return Seen(sq_norms, mean, difference)

    def _held(self) -> list[Held]:
        grads: Iterable[tuple[int, Any]] = ((id(p), p.grad) for p in self._sharded)
        return [Held(key, grad.to_local()) for key, grad in grads if grad is not None]
